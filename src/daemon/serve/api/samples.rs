//! Feedback, samples, and forgetting them.

use super::table::{did, only_asked};
use super::{Answer, Call, now, ok, with};
use crate::daemon::serve::app::App;
use crate::daemon::serve::ask::{self, Asked, INPUTS, Mime, TensorBody, input, raw_input};
use crate::daemon::serve::problem::Problem;
use crate::daemon::serve::recent::TALK;
use crate::daemon::serve::roster::Selection;
use crate::runtime::Taken;
use crate::store::{
    Filter, ForgetReport, Input, Label, NewSample, Part, Recorded, SampleState, Selector,
};
use crate::train::Task;
use crate::train::data::Row;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use serde::de::{self, Deserializer, MapAccess};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Samples of one page where the request does not say, and at most.
const PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;
/// Longest reason for a quarantine in bytes.
const MAX_REASON: usize = 300;
/// Where feedback comes from if it does not say.
const DEFAULT_SOURCE: &str = "api";

/// Feedback as JSON or, but for the input, as the query of a raw body.
#[derive(Default)]
struct FeedbackBody {
    text: Option<String>,
    image: Option<String>,
    audio: Option<String>,
    inputs: Option<BTreeMap<String, TensorBody>>,
    adapter: Option<String>,
    /// What tasks read: `label`, ...
    label: Map<String, Value>,
    predicted: Option<Value>,
    generation: Option<u64>,
    source: Option<String>,
    time: Option<u64>,
    consent: Option<bool>,
}

impl<'de> Deserialize<'de> for FeedbackBody {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<FeedbackBody, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = FeedbackBody;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FeedbackBody, A::Error> {
                let mut body = FeedbackBody::default();
                let mut seen = HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "text" => body.text = map.next_value()?,
                        "image" => body.image = map.next_value()?,
                        "audio" => body.audio = map.next_value()?,
                        "inputs" => body.inputs = map.next_value()?,
                        "adapter" => body.adapter = map.next_value()?,
                        "predicted" => body.predicted = map.next_value()?,
                        "generation" => body.generation = map.next_value()?,
                        "source" => body.source = map.next_value()?,
                        "time" => body.time = map.next_value()?,
                        "consent" => body.consent = map.next_value()?,
                        field if Task::label_fields().contains(&field) => {
                            let value: Value = map.next_value()?;
                            if !value.is_null() {
                                body.label.insert(field.into(), value);
                            }
                        }
                        other => {
                            return Err(de::Error::custom(format!("unknown field `{other}`")));
                        }
                    }
                    if !seen.insert(key.clone()) {
                        return Err(de::Error::custom(format!("duplicate field `{key}`")));
                    }
                }
                Ok(body)
            }
        }
        d.deserialize_map(Visitor)
    }
}

struct Feedback {
    input: Asked,
    judged: Judged,
    rest: FeedbackBody,
}

fn parse(
    body: &Bytes,
    mime: Mime,
    query: FeedbackBody,
    bare: bool,
    taken: &mut Taken,
) -> Result<Feedback, Problem> {
    let raw = raw_input(body, mime, taken)?;
    let mut b = match raw {
        Some(_) => query,
        None if !bare => {
            return Err(Problem::invalid("the query is for raw bodies: put it into the JSON"));
        }
        None => ask::object(body)?,
    };
    let fields = std::mem::take(&mut b.label);
    let row = if raw.is_some() { Row::untyped(&fields) } else { Row::typed(&fields) };
    let (text, image, audio) = (b.text.take(), b.image.take(), b.audio.take());
    let inputs = b.inputs.take();
    let given = text.is_some() || image.is_some() || audio.is_some() || inputs.is_some();
    let named = |e: crate::error::Error| Problem::invalid(e.message());
    let messages = Task::conversation_of(&row).map_err(named)?;
    if messages.is_some() && given {
        return Err(Problem::invalid("'messages' are the input: expected no other"));
    }
    if given && row.get("prompt").is_some() {
        return Err(Problem::invalid("'prompt' is the input: expected no other"));
    }
    let input = match raw {
        Some(_) if given => {
            return Err(Problem::invalid("the body is the input: expected no other in the query"));
        }
        Some(raw) => raw,
        None if messages.is_some() => input(None, messages, None, None, None)?,
        None if !given => input(Task::text_of(&row)?, None, None, None, None)?,
        None => input(text, None, image, audio, inputs)?,
    };
    let judged = judge(&fields, row, b.predicted.take())?;
    Ok(Feedback { input, judged, rest: b })
}

/// What feedback says of an answer.
#[derive(Default)]
struct Judged {
    label: Option<Label>,
    /// Whether what was answered was right, where that can be told.
    right: Option<bool>,
    /// The class that was answered.
    predicted: Option<String>,
    /// Whether the label is a text that goes on from the input.
    completes: bool,
}

fn judge(
    fields: &Map<String, Value>,
    row: Row<'_>,
    predicted: Option<Value>,
) -> Result<Judged, Problem> {
    let word = |predicted: Option<Value>| match predicted {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Problem::invalid("predicted: expected a string")),
    };
    if fields.is_empty() {
        return Ok(Judged { predicted: word(predicted)?, ..Judged::default() });
    }
    let named = |e: crate::error::Error| Problem::invalid(e.message());
    let task = Task::reading_one(&row).map_err(named)?;
    let right = predicted.as_ref().and_then(|predicted| task.right(&row, predicted));
    let mut names = fields.iter();
    let (label, predicted) = match (names.next(), names.next()) {
        (Some((name, Value::String(class))), None) if name == "label" => {
            (Label::Class(class.clone()), word(predicted)?)
        }
        (Some((name, _)), None) if name == "label" => {
            return Err(Problem::invalid("label: expected a string"));
        }
        (Some((name, _)), None) if name == "values" => {
            (Label::Values(task.numbers(&row).map_err(named)?), word(predicted)?)
        }
        _ => {
            let text = task.stored(&row).map_err(named)?;
            // The store tells a right answer by its text.
            let said = right.map(|right| if right { text.clone() } else { "another".into() });
            (Label::Answer(text), said)
        }
    };
    let completes = task.rules().completes();
    Ok(Judged { label: Some(label), right, predicted, completes })
}

/// `POST /v1/feedback`: a sample, and whether what was answered was right. On the medium when it is
/// answered.
pub async fn feedback(State(app): State<Arc<App>>, call: Call) -> Answer {
    let Some(mime) = call.mime().filter(|m| *m != Mime::Bytes) else {
        return Err(ask::unsupported_media(INPUTS));
    };
    let query: FeedbackBody = call.query()?;
    let bare = call.parts.uri.query().is_none_or(str::is_empty);
    let who = call.who()?.clone();
    app.blocking(move |app| {
        let mut taken = app.answerer.memory().take(0)?;
        let mut feedback = parse(&call.body, mime, query, bare, &mut taken)?;
        let said = feedback.rest.source.take();
        feedback.rest.source = Some(who.source(said, DEFAULT_SOURCE));
        // Arrays are written into a file in memory.
        taken.grow(taken.bytes())?;
        record(app, feedback)
    })
    .await
}

/// Feedback to `name` that came another way than over HTTP: JSON as in the body there, but for the name.
#[cfg(feature = "mqtt")]
pub fn feedback_to(app: &App, name: &str, body: &Bytes) -> Result<(), Problem> {
    let mut said: Map<String, Value> = ask::object(body)?;
    if said.get("adapter").is_some_and(|other| other.as_str() != Some(name)) {
        return Err(Problem::invalid("adapter: the topic names another"));
    }
    said.insert("adapter".into(), name.into());
    said.entry("source").or_insert("mqtt".into());
    let body = Bytes::from(Value::Object(said).to_string());
    let mut taken = app.answerer.memory().take(0)?;
    let feedback = parse(&body, Mime::Json, FeedbackBody::default(), true, &mut taken)?;
    // As much again while it is checked and stored.
    taken.grow(taken.bytes())?;
    record(app, feedback).map(drop)
}

/// What is answered to feedback that was kept.
#[derive(Serialize)]
struct Told<'a> {
    stored: bool,
    #[serde(flatten)]
    recorded: &'a Recorded,
}

fn record(app: &App, feedback: Feedback) -> Answer {
    match keep(app, feedback)? {
        Some(recorded) => with(StatusCode::CREATED, &Told { stored: true, recorded: &recorded }),
        None => ok(&json!({"stored": false, "outcome": "no_consent"})),
    }
}

/// Keeps a sample, or what is said of an answer alone where the input may not be kept.
fn keep(app: &App, feedback: Feedback) -> Result<Option<Recorded>, Problem> {
    let Feedback { input, judged, rest } = feedback;
    let Judged { label, right, predicted, completes } = judged;
    let name = match (&rest.adapter, app.roster.default_selection()) {
        (Some(name), _) => ask::name(name)?.to_string(),
        (None, Selection::Named(reference)) => reference.name().to_string(),
        (None, _) => {
            return Err(Problem::invalid(
                "adapter: missing, and no default is set (serve.adapter)",
            ));
        }
    };
    in_range("generation", rest.generation)?;
    in_range("time", rest.time)?;
    // What the base can't take is no sample: found now, not at night.
    app.answerer.check(&input, completes)?;
    let time = rest.time.unwrap_or_else(now);
    let told = |right: Option<bool>| {
        if let (Some(learning), true) = (app.learning(), right.is_some()) {
            learning.outcome(&name);
        }
    };
    if rest.consent == Some(false) {
        // What is said of the answer counts; the input is not kept.
        // Where nothing is active the base has answered.
        let base = || app.store.name(&name).is_ok_and(|entry| entry.active.is_none()).then_some(0);
        if let (Some(right), Some(generation)) = (right, rest.generation.or_else(base)) {
            app.store.record_outcome(&name, generation, right, time)?;
            told(Some(right));
        }
        return Ok(None);
    }
    let sample = NewSample {
        name: name.clone(),
        input: input.into_stored()?,
        label,
        predicted,
        generation: rest.generation,
        source: rest.source.unwrap_or_else(|| DEFAULT_SOURCE.into()),
        time,
        consent: true,
    };
    let recorded = app.store.add_sample(&sample)?;
    // The first sample of a name makes it known.
    if !app.roster.knows(&name) {
        app.roster.refresh(&name)?;
    }
    if let Some(instants) = app.instants() {
        instants.learn(&name, recorded.id);
    }
    told(right);
    if let Some(learning) = app.learning() {
        learning.wake();
    }
    Ok(Some(recorded))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    adapter: Option<String>,
    label: Option<String>,
    source: Option<String>,
    since: Option<u64>,
    until: Option<u64>,
    part: Option<Part>,
    state: Option<SampleState>,
    limit: Option<u32>,
    after: Option<i64>,
}

/// `GET /v1/samples`: without their inputs.
pub async fn list(State(app): State<Arc<App>>, call: Call) -> Answer {
    let q: ListQuery = call.query()?;
    let limit = q.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Problem::invalid(format!("limit: expected 1 to {MAX_PAGE}, found {limit}")));
    }
    in_range("since", q.since)?;
    in_range("until", q.until)?;
    let after = q.after.unwrap_or(0);
    let name = q.adapter.as_deref().map(ask::name).transpose()?.map(String::from);
    let filter = Filter {
        name,
        label: q.label,
        source: q.source,
        since: q.since,
        until: q.until,
        part: q.part,
        state: q.state,
        limit,
        after,
    };
    let samples = app.blocking(move |app| Ok(app.store.samples(&filter)?)).await?;
    let next = if samples.len() == limit as usize { samples.last().map(|s| s.id) } else { None };
    ok(&json!({"samples": samples, "next": next}))
}

fn in_range(key: &str, value: Option<u64>) -> Result<(), Problem> {
    match value {
        Some(v) if v > i64::MAX as u64 => Err(Problem::invalid(format!("{key}: out of range"))),
        _ => Ok(()),
    }
}

/// `GET /v1/samples/{id}`: with its input.
pub async fn show(State(app): State<Arc<App>>, call: Call) -> Answer {
    let id = call.number("id")? as i64;
    let sample = app.blocking(move |app| Ok(app.store.sample(id)?)).await?;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let mut input = match &sample.input {
        Input::Text(text) => json!({"text": text}),
        Input::File { bytes, mime } => {
            let field = if mime.starts_with("audio/") { "audio" } else { "image" };
            json!({field: encode(bytes), "mime": mime})
        }
        Input::Tensors(bytes) => json!({"npz": encode(bytes)}),
    };
    let values = match &sample.label {
        Some(Label::Values(values)) => Some(values),
        _ => None,
    };
    let mut answer: Option<Value> = match &sample.label {
        Some(Label::Answer(text)) => serde_json::from_str(text).ok(),
        _ => None,
    };
    if let (Input::Text(text), Some(Value::Object(stored))) = (&sample.input, &answer)
        && let Some([asked, said]) = Task::shown(text, stored)
    {
        (input, answer) = (asked, Some(said));
    }
    ok(&json!({"sample": sample.info, "input": input, "values": values, "answer": answer}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetBody {
    state: SampleState,
    reason: Option<String>,
}

/// `POST /v1/samples/{id}`: into quarantine or out of it.
pub async fn set(State(app): State<Arc<App>>, call: Call) -> Answer {
    let id = call.number("id")? as i64;
    let body: SetBody = call.json()?;
    if body.reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON) {
        return Err(Problem::invalid(format!("reason: expected at most {MAX_REASON} bytes")));
    }
    app.blocking(move |app| {
        match body.state {
            SampleState::Kept => app.store.release(id)?,
            SampleState::Quarantined => {
                app.store.quarantine(id, body.reason.as_deref().unwrap_or("by hand"))?;
            }
        }
        if let Some(instants) = app.instants() {
            instants.forgotten();
        }
        Ok(())
    })
    .await?;
    if let Some(learning) = app.learning() {
        learning.wake();
    }
    ok(&json!({"id": id, "state": body.state}))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ForgetQuery {
    dry_run: bool,
}

/// `POST /v1/forget`; with `dry_run=true` it says what would go.
pub async fn forget(State(app): State<Arc<App>>, call: Call) -> Answer {
    let ForgetQuery { dry_run } = call.query()?;
    let selector: Selector = call.json()?;
    in_range("since", selector.since)?;
    in_range("until", selector.until)?;
    let report = app
        .blocking(move |app| match dry_run {
            true => Ok(app.store.would_forget(&selector)?),
            false => forget_now(app, &selector),
        })
        .await?;
    let text = format!("{} samples", report.samples);
    ok(&report).map(|answer| if dry_run { only_asked(answer) } else { did(answer, &text) })
}

/// Forgets, here and in what the page shows.
pub(super) fn forget_now(app: &App, selector: &Selector) -> Result<ForgetReport, Problem> {
    let report = app.store.forget(selector)?;
    // The same input may have been asked too.
    app.recent.forget(selector.name.as_deref());
    // Before what may fail.
    if let Some(instants) = app.instants() {
        instants.forgotten();
    }
    // Whatever fell back, and what was kept of retired generations.
    app.roster.refresh_all()?;
    tracing::info!(
        "forgot {} samples; {} generations retired",
        report.samples,
        report.generations.len()
    );
    if let Some(learning) = app.learning() {
        learning.forgotten();
    }
    Ok(report)
}

/// What a person says of an answer on the page.
pub(super) struct Said {
    /// The adapter's name.
    pub name: String,
    /// What was asked.
    pub input: Asked,
    /// The field of the label, and the right one.
    pub label: (&'static str, Value),
    /// What was answered, in the label's form.
    pub predicted: Option<Value>,
    /// The generation that answered.
    pub generation: Option<u64>,
    /// When.
    pub time: u64,
    /// Who says so.
    pub source: String,
}

/// Records feedback that came through the page: the sample's number.
pub(super) fn judged(app: &App, said: Said) -> Result<Option<i64>, Problem> {
    let mut fields = Map::from_iter([(said.label.0.to_string(), said.label.1)]);
    if let Asked::Talk(messages) = &said.input {
        fields.insert(TALK.into(), json!(messages));
    }
    let judged = judge(&fields, Row::typed(&fields), said.predicted)?;
    let rest = FeedbackBody {
        adapter: Some(said.name),
        generation: said.generation,
        source: Some(said.source),
        time: Some(said.time),
        ..FeedbackBody::default()
    };
    let feedback = Feedback { input: said.input, judged, rest };
    Ok(keep(app, feedback)?.map(|recorded| recorded.id))
}
