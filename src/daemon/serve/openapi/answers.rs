//! The answers of the OpenAPI document. A test holds what the daemon answers against them. Later versions
//! may add properties, which is why clients must pass over those that they don't know.

use super::{nullable as or_null, reference as named, role, word as text};
use serde_json::{Map, Value, json};

/// Schemas by name.
pub fn schemas() -> Map<String, Value> {
    let mut all = Map::new();
    for part in [of_names(), of_samples(), of_learning(), of_the_daemon()] {
        if let Value::Object(part) = part {
            all.extend(part);
        }
    }
    all
}

fn of_names() -> Value {
    json!({
        "Trial": answer(json!({"generation": whole(), "since": time(), "seconds": whole()})),
        "Name": answer(json!({
            "name": text(), "active": or_null(whole()), "served": or_null(whole()),
            "fault": or_null(text()), "trial": or_null(named("Trial")), "base": or_null(text()),
            "generations": list(whole()),
        })),
        "Names": answer(json!({"adapters": list(named("Name"))})),
        "Generation": answer(json!({
            "number": whole(), "hash": text(), "bytes": whole(), "base": or_null(text()),
            "state": {"type": "string",
                "enum": ["candidate", "trial", "promoted", "bad", "retired"]},
            "created": time(), "parent": or_null(whole()), "job": or_null(whole()),
            "verdict": or_null(anything("What the gate said")),
            "samples": whole(), "why": or_null(text()),
        })),
        "Switch": answer(json!({
            "time": time(), "generation": or_null(whole()), "before": or_null(whole()),
            "how": {"type": "string", "enum": ["activated", "rolled_back", "interrupted",
                "deactivated", "removed", "forgotten", "stopped"]},
            "why": or_null(text()),
        })),
        "NameDetails": answer(json!({
            "name": text(), "active": or_null(whole()), "trial": or_null(named("Trial")),
            "generations": list(named("Generation")), "history": list(named("Switch")),
            "samples": named("Counts"),
        })),
        "Removed": answer(json!({"removed": list(whole()), "known": flag()})),
    })
}

fn of_samples() -> Value {
    let part = || json!({"type": "string", "enum": ["train", "hold_out"]});
    let state = || json!({"type": "string", "enum": ["kept", "quarantined"]});
    json!({
        "Recorded": answer_with(&["stored", "outcome"], json!({
            "stored": flag(), "id": whole(), "hash": text(), "part": part(),
            "outcome": {"description": "new, merged, relabelled, no_consent; or quarantined and why",
                "anyOf": [text(), {"type": "object"}]},
        })),
        "Sample": answer(json!({
            "id": whole(), "name": text(), "hash": text(),
            "kind": {"type": "string", "enum": ["text", "file", "tensors"]},
            "bytes": whole(), "label": or_null(text()), "predicted": or_null(text()),
            "generation": or_null(whole()), "source": text(), "time": time(), "received": time(),
            "seen": whole(), "part": part(), "state": state(), "reason": or_null(text()),
        })),
        "Samples": answer(json!({"samples": list(named("Sample")), "next": or_null(whole())})),
        "SampleDetails": answer(json!({
            "sample": named("Sample"),
            "input": answer_with(&[], json!({
                "text": text(), "messages": list(anything("What was said")), "image": base64(), "audio": base64(), "mime": text(), "npz": base64(),
            })),
            "values": or_null(list(number())), "answer": or_null(anything("The label of other tasks")),
        })),
        "SampleSet": answer(json!({"id": whole(), "state": state()})),
        "Counts": answer(json!({
            "classes": list(answer(json!({
                "label": or_null(text()), "train": whole(), "held": whole(), "new": whole(),
            }))),
            "kept": whole(), "held": whole(), "new": whole(), "unlearned": whole(),
            "quarantined": whole(), "bytes": whole(),
        })),
        "Outcomes": answer(json!({"right": whole(), "total": whole()})),
        "Forgotten": answer(json!({
            "samples": whole(),
            "generations": list(answer(json!({"name": text(), "generation": whole()}))),
            "fallbacks": list(answer(json!({
                "name": text(), "from": or_null(whole()), "to": or_null(whole()),
            }))),
            "jobs_ended": list(whole()), "jobs_queued": list(whole()), "bytes": whole(),
            "lost": whole(), "finished": flag(),
        })),
    })
}

fn of_learning() -> Value {
    json!({
        "Job": answer_with(JOB, job()),
        "JobDetails": answer_with(JOB, with(job(), json!({"running": or_null(named("Running"))}))),
        "Running": answer(json!({
            "job": whole(), "name": text(), "pid": whole(), "step": whole(), "steps": whole(),
            "loss": or_null(number()), "measuring": flag(), "limit": text(),
        })),
        "Condition": answer(json!({
            "name": text(), "value": {}, "threshold": {}, "met": flag(), "sentence": text(),
        })),
        "Learner": answer(json!({
            "job": or_null(named("Running")), "waiting": text(),
            "names": list(answer(json!({
                "name": text(), "conditions": list(named("Condition")), "met": flag(), "missing": text(),
                "trial_left": or_null(whole()), "watch": or_null(anything("Live feedback on it")),
                "verdict": or_null(anything("The gate's last")),
            }))),
        })),
        "Jobs": answer(json!({"jobs": list(named("Job")), "learner": or_null(named("Learner"))})),
        "Queued": answer(json!({"job": whole()})),
    })
}

const JOB: &[&str] =
    &["id", "name", "reason", "state", "created", "updated", "attempts", "not_before"];

fn job() -> Value {
    json!({
        "id": whole(), "name": text(), "reason": text(),
        "state": {"type": "string", "enum": ["queued", "running", "paused", "done", "failed",
            "cancelled", "forgotten"]},
        "created": time(), "updated": time(), "attempts": whole(), "not_before": time(),
        "progress": or_null(anything("Steps, losses, the gate's verdict")), "error": or_null(text()),
    })
}

fn of_the_daemon() -> Value {
    let token = json!({"name": text(), "role": role(), "created": time()});
    json!({
        "Token": answer(token.clone()),
        "Tokens": answer(json!({"tokens": list(named("Token"))})),
        "MadeToken": answer(with(token, json!({"token": text()}))),
        "Event": answer(json!({
            "id": whole(), "time": time(), "kind": text(), "name": or_null(text()), "text": text(),
            "data": {}, "count": whole(),
        })),
        "Events": answer(json!({"events": list(named("Event"))})),
        "Status": answer(json!({
            "version": text(), "ready": flag(), "uptime_seconds": whole(),
            "resident_bytes": or_null(whole()),
            "base": answer(json!({
                "path": text(), "fingerprint": text(), "changed": flag(),
                "integrity": {"type": "string", "enum": ["unchecked", "whole", "damaged"]},
            })),
            "encrypted": flag(), "read_only": flag(), "problems": list(text()),
            "state": answer(json!({
                "path": text(), "doubt": or_null(text()),
                "lost": list(answer(json!({"path": text(), "name": or_null(text())}))),
            })),
            "default_adapter": or_null(text()),
            "adapters": list(answer(json!({
                "name": text(), "active": or_null(whole()), "trial": or_null(named("Trial")),
                "generations": list(whole()), "served": or_null(whole()), "fault": or_null(text()),
                "samples": named("Counts"), "outcomes": named("Outcomes"),
            }))),
            "jobs": list(named("Job")), "learner": or_null(named("Learner")),
            "webhooks": list(answer(json!({
                "name": text(), "waiting": whole(), "delivered": whole(), "dropped": whole(),
                "refused": whole(), "last_success": or_null(time()),
                "failing": or_null(answer(json!({
                    "since": time(), "tries": whole(), "why": text(),
                }))),
            }))),
            "events": list(named("Event")),
        })),
    })
}

/// An object in which all of these properties stand.
fn answer(properties: Value) -> Value {
    let required: Vec<_> =
        properties.as_object().map(|p| p.keys().cloned().collect()).unwrap_or_default();
    json!({"type": "object", "required": required, "properties": properties})
}

/// An object in which these properties may stand; `required` do.
fn answer_with(required: &[&str], properties: Value) -> Value {
    let mut schema = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn with(mut properties: Value, more: Value) -> Value {
    if let (Some(all), Value::Object(more)) = (properties.as_object_mut(), more) {
        all.extend(more);
    }
    properties
}

fn list(of: Value) -> Value {
    json!({"type": "array", "items": of})
}

fn base64() -> Value {
    json!({"type": "string", "format": "byte"})
}

fn flag() -> Value {
    json!({"type": "boolean"})
}

fn whole() -> Value {
    json!({"type": "integer"})
}

fn number() -> Value {
    json!({"type": "number"})
}

fn time() -> Value {
    json!({"type": "integer", "description": "Seconds since 1970-01-01 UTC"})
}

fn anything(description: &str) -> Value {
    json!({"type": "object", "description": description})
}
