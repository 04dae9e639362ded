//! The OpenAPI document, built next to the handlers that it describes. A test holds it against the
//! router.

mod answers;

use super::api::{Need, TABLE};
use crate::daemon::Role;
use crate::store::MAX_NAME;
use crate::train::Task;
use crate::train::tasks::MAX_BEAM;
use serde_json::{Map, Value, json};

/// The document that is served at `/openapi.json`: OpenAPI 3.0.
pub fn document() -> Value {
    json!({
        "openapi": "3.0.3",
        "info": {
            "title": "Offshoot",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "LoRA adapters for ONNX models on the device that uses them. Every \
                refusal is an Error. The TCP port needs a bearer token, the Unix socket none. A token, or \
                a user of the socket, has a role: 'answer', 'teach' (what 'answer' may, too) or 'administer' \
                (everything). Each operation says in x-role which it needs; others get 403.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "security": [{}, {"token": []}],
        "paths": with_roles(paths()),
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer",
                "description": "As 'offshoot token add NAME --role ROLE' made it"}},
            "schemas": schemas(),
        },
    })
}

/// Paths with what each operation needs, from the table of routes.
fn with_roles(mut paths: Value) -> Value {
    for route in TABLE {
        let methods = paths.get_mut(route.path);
        let operation = methods.and_then(|methods| methods.get_mut(route.method.to_lowercase()));
        // The page is not described.
        let (Some(role), Some(operation)) =
            (route.need.role(), operation.and_then(Value::as_object_mut))
        else {
            continue;
        };
        let socket = match route.need {
            Need::Socket => ", on the Unix socket alone",
            _ => "",
        };
        operation.insert("x-role".into(), role.name().into());
        operation.insert("description".into(), format!("Needs the role '{role}'{socket}.").into());
    }
    paths
}

fn paths() -> Value {
    let name = || vec![path_parameter("name", name_schema())];
    let generation = json!({"type": "integer", "minimum": 1, "maximum": 1_000_000_000});
    let id = || json!({"type": "integer", "minimum": 1, "maximum": i64::MAX});
    let with = |mut list: Vec<Value>, more: Value| {
        list.push(more);
        list
    };
    json!({
        "/health": {"get": Operation::new("health", "Whether a probe was answered").gives(200, "Health").end()},
        "/metrics": {"get": Operation::new("metrics", "Counters for Prometheus").text("text/plain").end()},
        "/openapi.json": {"get": Operation::new("openapi", "This document").gives(200, "Any").end()},
        "/v1/status": {"get": Operation::new("status", "What is served, awaited and done").gives(200, "Status").end()},
        "/v1/events": {"get": Operation::new("events", "What happened, oldest first")
            .query("limit", up_to(1000)).query("after", integer()).gives(200, "Events").end()},
        "/v1/predict": {"post": Operation::new("predict", "Ask the base with an adapter. JSON, or a picture or \
            .npz file as the body; then the query holds the rest")
            .query("adapter", json!({"type": "string"}))
            .query("top", json!({"type": "integer", "minimum": 0, "maximum": 1000}))
            .query("among", json!({"type": "string", "description": "labels, separated by commas"}))
            .query("reject", rate()).query("beam", up_to(MAX_BEAM)).query("outputs", json!({"type": "boolean"}))
            .takes("Question", true).gives(200, "Answer").or_events().refuses(&[404, 409, 422]).end()},
        "/v1/feedback": {"post": Operation::new("feedback", "Tell the right answer: kept for training when this \
            is answered. JSON, or a raw body with the rest in the query")
            .query("adapter", name_schema()).query("label", word()).query("predicted", word())
            .query("generation", unsigned()).query("source", word()).query("time", unsigned())
            .query("consent", json!({"type": "boolean"}))
            .takes("Feedback", true).gives(201, "Recorded").gives(200, "Recorded")
            .refuses(&[404, 409, 422, 507]).end()},
        "/v1/samples": {"get": Operation::new("listSamples", "Samples without their inputs, oldest first")
            .query("adapter", name_schema()).query("label", word()).query("source", word())
            .query("since", unsigned()).query("until", unsigned())
            .query("part", json!({"type": "string", "enum": ["train", "hold_out"]}))
            .query("state", json!({"type": "string", "enum": ["kept", "quarantined"]}))
            .query("limit", up_to(1000)).query("after", integer()).gives(200, "Samples").end()},
        "/v1/samples/{id}": {
            "parameters": [path_parameter("id", id())],
            "get": Operation::new("showSample", "A sample with its input").gives(200, "SampleDetails").refuses(&[404]).end(),
            "post": Operation::new("setSample", "Put a sample into quarantine or take it out")
                .takes("SampleState", false).gives(200, "SampleSet").refuses(&[404, 409]).end(),
        },
        "/v1/forget": {"post": Operation::new("forget", "Remove samples and every generation that learned \
            from them. All that is given must hold of a sample")
            .query("dry_run", json!({"type": "boolean"}))
            .takes("Selector", false).gives(200, "Forgotten").refuses(&[409, 507]).end()},
        "/v1/adapters": {"get": Operation::new("listAdapters", "Names and what is active").gives(200, "Names").end()},
        "/v1/adapters/{name}": {
            "parameters": name(),
            "get": Operation::new("showAdapter", "Generations, history and samples of a name")
                .gives(200, "NameDetails").refuses(&[404]).end(),
            "post": Operation::new("addAdapter", "Add a .adapter file as a generation, if it fits the base")
                .bytes("application/octet-stream").gives(201, "Added").gives(200, "Added")
                .refuses(&[409, 422, 507]).end(),
            "delete": Operation::new("removeAdapter", "Remove a name and its generations")
                .query("force", json!({"type": "boolean"})).gives(200, "Removed")
                .refuses(&[404, 409]).end(),
        },
        "/v1/adapters/{name}/{generation}": {
            "parameters": with(name(), path_parameter("generation", generation)),
            "get": Operation::new("downloadGeneration", "Its .adapter file").gives_bytes().refuses(&[404]).end(),
            "delete": Operation::new("removeGeneration", "Remove a generation")
                .query("force", json!({"type": "boolean"})).gives(200, "Removed")
                .refuses(&[404, 409]).end(),
        },
        "/v1/adapters/{name}/activate": {
            "parameters": name(),
            "post": Operation::new("activate", "Serve a generation (null: the base). With expected_generation \
                only if that is served now, else 409")
                .takes("Activate", false).gives(200, "Switched").refuses(&[404, 409, 422])
                .end(),
        },
        "/v1/adapters/{name}/rollback": {
            "parameters": name(),
            "post": Operation::new("rollback", "Serve what was served before. With expected_generation only if \
                that is served now, else 409")
                .takes_nullable("Rollback").gives(200, "Switched").refuses(&[404, 409]).end(),
        },
        "/v1/train": {
            "get": Operation::new("listJobs", "Jobs and conditions").gives(200, "Jobs").end(),
            "post": Operation::new("train", "Train now").takes("Train", false).gives(202, "Queued")
                .refuses(&[404, 409]).end(),
        },
        "/v1/train/{job}": {
            "parameters": [path_parameter("job", id())],
            "get": Operation::new("showJob", "A job").gives(200, "JobDetails").refuses(&[404]).end(),
        },
        "/v1/train/{job}/events": {
            "parameters": [path_parameter("job", id())],
            "get": Operation::new("followJob", "A job's changes as server-sent events, until it has ended")
                .text("text/event-stream").refuses(&[404]).end(),
        },
        "/v1/tokens": {
            "get": Operation::new("listTokens", "The tokens of the TCP port, without what would let somebody in")
                .gives(200, "Tokens").end(),
            "post": Operation::new("addToken", "Make a token: this answer alone shows it")
                .takes("NewToken", false).gives(201, "MadeToken").refuses(&[409, 507]).end(),
        },
        "/v1/tokens/{name}": {
            "parameters": name(),
            "delete": Operation::new("revokeToken", "Take a token's rights away, at once")
                .gives(200, "Token").refuses(&[404, 409, 507]).end(),
        },
        "/lora-adapters": {
            "get": Operation::new("listLora", "llama.cpp's list: the scale is what requests get that name no \
                adapter").gives(200, "LoraList").end(),
            "post": Operation::new("setLora", "Set those scales until the daemon ends; what is not listed \
                gets 0").takes("LoraWeights", false).gives(200, "LoraList")
                .refuses(&[404, 422]).end(),
        },
    })
}

/// One method of a path.
struct Operation {
    /// What generated clients call it. It stays as it is.
    id: &'static str,
    summary: &'static str,
    parameters: Vec<Value>,
    body: Option<Value>,
    responses: Map<String, Value>,
}

impl Operation {
    fn new(id: &'static str, summary: &'static str) -> Operation {
        let operation =
            Operation { id, summary, parameters: vec![], body: None, responses: Map::new() };
        // Any request may meet these: bad heads and bodies, the port's guards, limits, faults.
        operation.refuses(&[400, 401, 403, 408, 413, 500, 503])
    }

    fn query(mut self, name: &str, schema: Value) -> Operation {
        self.parameters.push(json!({"name": name, "in": "query", "schema": schema}));
        self
    }

    fn takes(mut self, schema: &str, raw: bool) -> Operation {
        let mut content = Map::new();
        content.insert("application/json".into(), json!({"schema": reference(schema)}));
        if raw {
            for mime in [
                "image/png",
                "image/jpeg",
                "image/webp",
                "image/gif",
                "audio/wav",
                "application/x-npz",
            ] {
                content.insert(mime.into(), json!({"schema": binary()}));
            }
        }
        self.body = Some(json!({"required": true, "content": content}));
        self.refuses(&[415])
    }

    fn takes_nullable(self, schema: &str) -> Operation {
        let mut operation = self.takes(schema, false);
        if let Some(body) = operation.body.as_mut().and_then(Value::as_object_mut) {
            body.insert("required".into(), false.into());
        }
        operation
    }

    fn bytes(mut self, mime: &str) -> Operation {
        self.body = Some(json!({"required": true, "content": {mime: {"schema": binary()}}}));
        self.refuses(&[415])
    }

    fn gives(mut self, status: u16, schema: &str) -> Operation {
        let content = json!({"application/json": {"schema": reference(schema)}});
        self.responses
            .insert(status.to_string(), json!({"description": "Done", "content": content}));
        self
    }

    /// The answer may come as events, too.
    fn or_events(mut self) -> Operation {
        let content = self.responses.get_mut("200").and_then(|done| done.get_mut("content"));
        if let Some(content) = content.and_then(Value::as_object_mut) {
            content.insert("text/event-stream".into(), json!({"schema": {"type": "string"}}));
        }
        self
    }

    fn text(mut self, mime: &str) -> Operation {
        let content = json!({mime: {"schema": {"type": "string"}}});
        self.responses.insert("200".into(), json!({"description": "Done", "content": content}));
        self
    }

    fn refuses(mut self, statuses: &[u16]) -> Operation {
        for status in statuses {
            let description = match status {
                400 => "The request makes no sense",
                401 => "No token, or a wrong one (TCP only)",
                403 => "Not with this role; or a Host that this port does not answer to (TCP only)",
                404 => "There is no such thing",
                408 => "The body came too slowly",
                409 => "The state is another than expected, or a limit refuses it",
                413 => "The body, or the memory that it asks for, is too large",
                415 => "Another Content-Type is expected",
                422 => "It does not fit the base, or is not supported",
                500 => "A fault of the daemon or the machine",
                503 => "Not now: busy, too slow, stopping, or the state can't be used",
                507 => "The disk is full",
                _ => "Refused",
            };
            let content = json!({"application/json": {"schema": reference("Error")}});
            self.responses.insert(
                status.to_string(),
                json!({"description": description, "content": content}),
            );
        }
        self
    }

    fn gives_bytes(mut self) -> Self {
        let content = json!({"application/octet-stream": {"schema": binary()}});
        self.responses.insert("200".into(), json!({"description": "The file", "content": content}));
        self
    }

    fn end(self) -> Value {
        let mut operation = json!({
            "operationId": self.id, "summary": self.summary, "responses": self.responses,
        });
        if let Some(map) = operation.as_object_mut() {
            if !self.parameters.is_empty() {
                map.insert("parameters".into(), self.parameters.into());
            }
            if let Some(body) = self.body {
                map.insert("requestBody".into(), body);
            }
        }
        operation
    }
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn binary() -> Value {
    json!({"type": "string", "format": "binary"})
}

fn path_parameter(name: &str, schema: Value) -> Value {
    json!({"name": name, "in": "path", "required": true, "schema": schema})
}

fn name_schema() -> Value {
    let pattern = r"^[a-z0-9]([a-z0-9_\-]|\.(?!\.))*$";
    json!({"type": "string", "minLength": 1, "maxLength": MAX_NAME, "pattern": pattern})
}

fn word() -> Value {
    json!({"type": "string"})
}

fn role() -> Value {
    json!({"type": "string", "enum": Role::ALL})
}

fn integer() -> Value {
    json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX})
}

fn unsigned() -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": i64::MAX})
}

/// A share that is neither 0 nor 1.
fn rate() -> Value {
    json!({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1})
}

fn up_to(most: usize) -> Value {
    json!({"type": "integer", "minimum": 1, "maximum": most})
}

/// An object of these properties and no others.
fn object(required: &[&str], properties: Value) -> Value {
    let mut schema =
        json!({"type": "object", "additionalProperties": false, "properties": properties});
    if let (false, Some(map)) = (required.is_empty(), schema.as_object_mut()) {
        map.insert("required".into(), json!(required));
    }
    schema
}

/// Null too. A reference can't say so itself in OpenAPI 3.0.
fn nullable(mut schema: Value) -> Value {
    if schema.get("$ref").is_some() {
        return json!({"nullable": true, "allOf": [schema]});
    }
    schema["nullable"] = true.into();
    schema
}

fn schemas() -> Value {
    let tensor = object(
        &["shape", "data"],
        json!({
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "dtype": {"type": "string", "enum": ["f32", "i64", "i32", "u8", "bool"]},
            "data": {"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "boolean"}]}},
        }),
    );
    let inputs = json!({
        "text": nullable(word()),
        "image": nullable(json!({"type": "string", "format": "byte"})),
        "audio": nullable(json!({"type": "string", "format": "byte"})),
        "inputs": {
            "type": "object", "nullable": true, "additionalProperties": reference("Tensor"),
        },
    });
    let also = |more: Value| {
        let mut all = inputs.clone();
        if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
            all.extend(more.clone());
        }
        all
    };
    let weight = object(
        &["id", "scale"],
        json!({"id": {"type": "integer", "minimum": 0}, "scale": {"type": "number"}}),
    );
    let mut feedback = json!({
        "adapter": nullable(name_schema()), "predicted": {},
        "generation": nullable(unsigned()),
        "source": nullable(word()), "time": nullable(unsigned()),
        "consent": nullable(json!({"type": "boolean"})),
    });
    let mut messages = json!({});
    for (field, schema) in Task::field_schemas() {
        if field == "messages" {
            messages = schema.clone();
        }
        feedback[field] = nullable(schema);
    }
    let mut all = json!({
        "Any": {"type": "object"},
        "Tensor": tensor,
        "Error": object(&["error"], json!({"error": object(&["code", "type", "message"], json!({
            "code": {"type": "integer"}, "type": word(), "message": word(), "hint": word(),
        }))})),
        "Health": object(&["status", "base_changed", "problems"], json!({
            "status": {"type": "string", "enum": ["ok", "degraded"]},
            "base_changed": {"type": "boolean"},
            "problems": {"type": "array", "items": word()},
        })),
        "Question": object(&[], also(json!({
            "adapter": nullable(json!({"type": "string"})),
            "lora": nullable(json!({"type": "array", "maxItems": 16, "items": weight})),
            "top": nullable(json!({"type": "integer", "minimum": 0, "maximum": 1000})),
            "among": nullable(json!({"type": "array", "items": word(),
                "description": "labels to choose from: the others are left out"})),
            "reject": nullable(rate()),
            "beam": nullable(up_to(MAX_BEAM)),
            "outputs": nullable(json!({"type": "boolean"})),
            "messages": nullable(messages),
            "tokens": nullable(json!({"type": "integer", "minimum": 1,
                "description": "new ones of a language model, limits.tokens at most"})),
            "temperature": nullable(json!({"type": "number", "minimum": 0})),
            "top_k": nullable(json!({"type": "integer", "minimum": 0})),
            "top_p": nullable(json!({"type": "number", "minimum": 0, "maximum": 1})),
            "repetition_penalty": nullable(json!({"type": "number", "minimum": 0})),
            "seed": nullable(json!({"type": "integer", "minimum": 0})),
            "stop": nullable(json!({"type": "array", "maxItems": 16,
                "items": {"type": "string", "maxLength": 256}})),
            "stream": nullable(json!({"type": "boolean", "description": "server-sent events: 'text' for \
                each part as it comes, then 'answer' with the whole, or 'error'"})),
        }))),
        "Answer": object(&["adapter", "generation", "predictions"], json!({
            "adapter": nullable(word()),
            "generation": nullable(json!({"type": "integer"})),
            "instead_of": object(&["generation", "why"],
                json!({"generation": {"type": "integer"}, "why": word()})),
            "instant": {"type": "integer", "description": "samples that an instant head was made of"},
            "predictions": {"type": "array", "items": {"anyOf": Task::answer_schemas()}},
            "no_answer": word(),
            "outputs": {"type": "object"},
        })),
        "Feedback": object(&[], also(feedback)),
        "SampleState": object(&["state"], json!({
            "state": {"type": "string", "enum": ["kept", "quarantined"]},
            "reason": nullable(json!({"type": "string", "maxLength": 300})),
        })),
        "Selector": object(&[], json!({
            "ids": {"type": "array", "items": integer()},
            "hashes": {"type": "array", "items": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
            "label": nullable(word()), "source": nullable(word()),
            "since": nullable(unsigned()), "until": nullable(unsigned()),
            "name": nullable(name_schema()), "all": {"type": "boolean"},
        })),
        "Added": object(&["generation", "new", "active"], json!({
            "generation": {"type": "integer"}, "new": {"type": "boolean"},
            "active": {"type": "boolean"},
        })),
        "Activate": object(&["generation"], json!({
            "generation": nullable(unsigned()), "expected_generation": nullable(unsigned()),
            "trial_seconds": nullable(json!({"type": "integer", "minimum": 1, "maximum": 7_776_000})),
        })),
        "Rollback": object(&[], json!({
            "why": nullable(json!({"type": "string", "maxLength": 250})),
            "expected_generation": nullable(unsigned()), "dry_run": {"type": "boolean"},
        })),
        "Switched": object(&["name", "active", "before"], json!({
            "name": word(), "active": nullable(json!({"type": "integer"})),
            "before": nullable(json!({"type": "integer"})),
        })),
        "NewToken": object(&["name", "role"], json!({"name": name_schema(), "role": role()})),
        "Train": object(&["adapter"], json!({"adapter": name_schema()})),
        "LoraWeights": {"type": "array", "maxItems": 16, "items": weight},
        "LoraList": {"type": "array", "items": object(&["id", "path", "scale"], json!({
            "id": {"type": "integer"}, "path": word(), "scale": {"type": "number"},
        }))},
    });
    if let Some(all) = all.as_object_mut() {
        all.extend(answers::schemas());
    }
    all
}

#[cfg(test)]
mod tests;
