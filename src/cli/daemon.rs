//! The verbs that talk to the daemon: `status`, `predict`, `feedback`, `train-now`.

use super::asked::{Input, Wording, put};
use super::output::{Out, bytes, count, shown, table};
use super::train::share;
use crate::daemon::{Client, Host};
use crate::error::{Error, Result};
use crate::train::Task;
use crate::train::tasks::UNKNOWN;
use hyper::Method;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

/// Where the daemon is.
#[derive(clap::Args)]
pub struct Where {
    /// The daemon: unix:///PATH or http://127.0.0.1:PORT (default: $OFFSHOOT_HOST, the user's
    /// socket, the service's)
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
}

impl Where {
    /// Speaks to it.
    pub(super) fn client(&self) -> Result<Client> {
        let host = match &self.host {
            Some(text) => Host::parse(text)?,
            None => Host::default_host()?,
        };
        Client::new(host)
    }
}

/// `offshoot status`'s arguments.
#[derive(clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    daemon: Where,
}

/// `offshoot predict`'s arguments.
#[derive(clap::Args)]
pub struct PredictArgs {
    #[command(flatten)]
    input: Input,
    /// The adapter: NAME or NAME@GENERATION (default: the daemon's)
    #[arg(long, conflicts_with = "no_adapter")]
    adapter: Option<String>,
    /// Ask the base alone
    #[arg(long)]
    no_adapter: bool,
    /// What is like nothing that was learned gets no label: so much at most of what was never taught
    /// passes (0.01: one in a hundred)
    #[arg(long, value_name = "SHARE", value_parser = share)]
    reject: Option<f32>,
    /// Choose the answer among these labels alone, separated by commas
    #[arg(long, value_name = "LABELS", value_delimiter = ',')]
    among: Vec<String>,
    /// How many labels to print
    #[arg(long, value_name = "K", default_value_t = 5)]
    top: usize,
    #[command(flatten)]
    wording: Wording,
    #[command(flatten)]
    daemon: Where,
}

/// `offshoot feedback`'s arguments.
#[derive(clap::Args)]
pub struct FeedbackArgs {
    #[command(flatten)]
    input: Input,
    /// The right label
    #[arg(long, required_unless_present_any = ["label_json", "completion"])]
    label: Option<String>,
    /// What a language model should have written behind --text or --chat
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["label", "label_json"])]
    completion: Option<String>,
    /// The right answer of another task than classes: {"labels": ["a", "b"]}, {"values": [1.5]}, ...
    #[arg(long, value_name = "JSON", conflicts_with = "label", value_parser = fields)]
    label_json: Option<Fields>,
    /// What was answered, in the form of the label: a name, or a JSON list
    #[arg(long)]
    predicted: Option<String>,
    /// The generation that answered
    #[arg(long)]
    generation: Option<u64>,
    /// The adapter that is to learn it (default: the daemon's)
    #[arg(long)]
    adapter: Option<String>,
    /// Who says so
    #[arg(long, default_value = "cli")]
    source: String,
    #[command(flatten)]
    daemon: Where,
}

/// `offshoot train-now`'s arguments.
#[derive(clap::Args)]
pub struct TrainNowArgs {
    /// The adapter's name
    adapter: String,
    /// Wait until the job has ended; the exit code is 5 where the gate refuses what it trained
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    daemon: Where,
}

/// Fields of a request.
type Fields = serde_json::Map<String, Value>;

fn fields(text: &str) -> Result<Fields> {
    serde_json::from_str(text).map_err(|e| Error::usage(format!("expected a JSON object: {e}")))
}

/// `offshoot predict`.
pub fn predict(args: &PredictArgs, out: &Out) -> Result<()> {
    let mut body = args.input.fields()?;
    put(&mut body, "top", args.top);
    args.wording.put(&mut body);
    if let Some(reject) = args.reject {
        put(&mut body, "reject", reject);
    }
    if !args.among.is_empty() {
        put(&mut body, "among", args.among.as_slice());
    }
    if let Some(adapter) = &args.adapter {
        put(&mut body, "adapter", adapter.as_str());
    } else if args.no_adapter {
        put(&mut body, "adapter", Value::Null);
    }
    let answer = args.daemon.client()?.json(Method::POST, "/v1/predict", Some(&body))?;
    for prediction in list(&answer["predictions"]) {
        said(prediction).into_iter().for_each(|line| out.line(line));
    }
    if let Some(why) = answer["no_answer"].as_str() {
        out.line(format!("no answer: {why}"));
    }
    if let Some(outputs) = answer["outputs"].as_object() {
        for (name, array) in outputs {
            let first: Vec<String> =
                list(&array["data"]).iter().take(6).map(Value::to_string).collect();
            out.line(format!("{name}: {} {} ...", array["shape"], first.join(" ")));
        }
    }
    out.document(&answer)
}

/// A prediction of any task for people: a line for each entry of its lists, a chance before the rest.
fn said(prediction: &Value) -> Vec<String> {
    let entry = |entry: &Value| {
        let Some(fields) = entry.as_object() else { return text(entry) };
        let chance = entry["probability"].as_f64().map(|p| format!("{:5.1} %", 100.0 * p));
        let words = fields.values().filter_map(Value::as_str).map(String::from);
        chance.into_iter().chain(words).collect::<Vec<_>>().join("  ")
    };
    let lists = prediction.as_object().into_iter().flatten().filter_map(|(_, v)| v.as_array());
    let unknown = (prediction["known"] == false).then(|| UNKNOWN.to_string());
    let lines: Vec<String> = unknown.into_iter().chain(lists.flatten().map(entry)).collect();
    // A text has no list.
    match lines.is_empty() {
        true => Task::said(prediction).map(|text| shown(&text)).into_iter().collect(),
        false => lines,
    }
}

/// `offshoot feedback`.
pub fn feedback(args: &FeedbackArgs, out: &Out) -> Result<()> {
    let mut body = args.input.fields()?;
    if let Some(label) = &args.label {
        put(&mut body, "label", label.as_str());
    }
    if let Some(completion) = &args.completion {
        put(&mut body, "completion", completion.as_str());
    }
    for (field, value) in args.label_json.iter().flatten() {
        put(&mut body, field, value.clone());
    }
    put(&mut body, "source", args.source.as_str());
    if let Some(predicted) = &args.predicted {
        let list = serde_json::from_str(predicted).ok().filter(Value::is_array);
        put(&mut body, "predicted", list.unwrap_or_else(|| predicted.as_str().into()));
    }
    if let Some(generation) = args.generation {
        put(&mut body, "generation", generation);
    }
    if let Some(adapter) = &args.adapter {
        put(&mut body, "adapter", adapter.as_str());
    }
    let answer = args.daemon.client()?.json(Method::POST, "/v1/feedback", Some(&body))?;
    let outcome = &answer["outcome"];
    let words = match (outcome.as_str(), outcome["quarantined"].as_str()) {
        (Some("new"), _) => "kept".into(),
        (Some("merged"), _) => "was there already".into(),
        (Some("relabelled"), _) => "was there with another label: corrected".into(),
        (_, Some(why)) => format!("in quarantine: {why}"),
        _ => outcome.to_string(),
    };
    out.line(format!("sample {}: {words}", answer["id"]));
    out.document(&answer)
}

/// `offshoot train-now`.
pub fn train_now(args: &TrainNowArgs, out: &Out) -> Result<()> {
    let client = args.daemon.client()?;
    let body = json!({"adapter": args.adapter});
    let answer = client.json(Method::POST, "/v1/train", Some(&body))?;
    let job = answer["job"].as_i64().unwrap_or_default();
    out.line(format!("job {job} is queued"));
    if !args.wait {
        return out.document(&answer);
    }
    let mut told = String::new();
    loop {
        let state = client.json(Method::GET, &format!("/v1/train/{job}"), None)?;
        let name = text(&state["state"]);
        if !["queued", "running", "paused"].contains(&name.as_str()) {
            out.line(format!("job {job}: {name}"));
            if let Some(error) = state["error"].as_str() {
                out.line(error);
            }
            out.document(&state)?;
            return outcome(job, &state);
        }
        let now = far(&state);
        if now != told {
            out.remark(now.as_str());
            told = now;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// How far a job is, in words.
fn far(job: &Value) -> String {
    let running = &job["running"];
    match (running["measuring"].as_bool(), running["steps"].as_u64()) {
        (Some(true), _) => "what it learned is measured".into(),
        (_, Some(steps)) if steps > 0 => {
            let loss = running["loss"].as_f64().map_or(String::new(), |l| format!(", loss {l:.3}"));
            format!("step {} of {steps}{loss}", running["step"])
        }
        (Some(_), _) => "samples are read".into(),
        _ => format!("it is {}", text(&job["state"])),
    }
}

/// What the end of a job means to who waited for it.
fn outcome(job: i64, state: &Value) -> Result<()> {
    let name = text(&state["state"]);
    let progress = &state["progress"];
    match name.as_str() {
        // Neither where there was nothing to train on.
        "done" if progress["promoted"] != true && progress["trained"] != false => {
            let generation = &progress["generation"];
            let why = progress["verdict"].as_str().unwrap_or("the gate refused it");
            Err(Error::refused(format!("generation {generation} is not promoted: {why}")))
        }
        "done" => Ok(()),
        _ => Err(Error::failed(format!("job {job} ended as '{name}'"))),
    }
}

/// `offshoot status`.
pub fn status(args: &StatusArgs, out: &Out) -> Result<()> {
    let status = args.daemon.client()?.json(Method::GET, "/v1/status", None)?;
    let base = &status["base"];
    out.line(format!(
        "{}, up {}, {} resident",
        if status["ready"] == true { "ready" } else { "not ready" },
        span(status["uptime_seconds"].as_u64().unwrap_or_default()),
        bytes(status["resident_bytes"].as_u64().unwrap_or_default()),
    ));
    out.line(format!("base {} ({})", text(&base["path"]), text(&base["fingerprint"])));
    if base["changed"] == true {
        out.line("the base's file was written to: restart the daemon with a whole one");
    }
    for problem in list(&status["problems"]) {
        out.line(format!("PROBLEM: {}", text(problem)));
    }
    if status["state"]["doubt"].is_string() {
        out.line(crate::store::DECIDE);
    }
    for lost in list(&status["state"]["lost"]) {
        let name = lost["name"].as_str().map_or(String::new(), |n| format!(" (adapter '{n}')"));
        out.line(format!("  lost: {}{name}", text(&lost["path"])));
    }
    let rows: Vec<Vec<String>> = list(&status["adapters"]).iter().map(adapter_row).collect();
    if rows.is_empty() {
        out.line("no adapters");
    }
    table(&rows).iter().for_each(|line| out.line(line));
    learner(&status["learner"], out);
    for job in list(&status["jobs"]) {
        let [id, name, state, reason] = ["id", "name", "state", "reason"].map(|k| text(&job[k]));
        out.line(format!("job {id} for '{name}': {state} ({reason})"));
    }
    list(&status["webhooks"]).iter().for_each(|hook| out.line(webhook(hook)));
    for event in list(&status["events"]) {
        out.line(format!("  {} ago: {}", age(&event["time"]), text(&event["text"])));
    }
    out.document(&status)
}

/// How long ago that was.
fn age(time: &Value) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    span(now.map_or(0, |d| d.as_secs()).saturating_sub(time.as_u64().unwrap_or_default()))
}

/// What became of a webhook's messages.
fn webhook(hook: &Value) -> String {
    let [waiting, delivered] = ["waiting", "delivered"].map(|key| text(&hook[key]));
    let mut said = format!("webhook '{}': {delivered} told", text(&hook["name"]));
    if hook["last_success"].is_u64() {
        said.push_str(&format!(", the last {} ago", age(&hook["last_success"])));
    }
    said.push_str(&format!(", {waiting} wait"));
    for key in ["dropped", "refused"] {
        if hook[key].as_u64().unwrap_or_default() > 0 {
            said.push_str(&format!(", {} {key}", text(&hook[key])));
        }
    }
    let failing = &hook["failing"];
    if failing.is_object() {
        let [since, why] = [age(&failing["since"]), text(&failing["why"])];
        said.push_str(&format!("; FAILING for {since}: {why}"));
    }
    said
}

fn adapter_row(adapter: &Value) -> Vec<String> {
    let samples = &adapter["samples"];
    let number = |v: &Value| count(v.as_u64().unwrap_or_default());
    let active = match (adapter["active"].as_u64(), adapter["fault"].as_str()) {
        (_, Some(_)) => match adapter["served"].as_u64() {
            Some(served) => format!("generation {served}, NOT {}", adapter["active"]),
            None => format!("the base, NOT generation {}", adapter["active"]),
        },
        (Some(generation), _) if !adapter["trial"].is_null() => {
            format!("generation {generation}, on trial")
        }
        (Some(generation), _) => format!("generation {generation}"),
        (None, _) => "the base".into(),
    };
    let mut kept = format!("{} samples, {} new", number(&samples["kept"]), number(&samples["new"]));
    if samples["quarantined"].as_u64().unwrap_or_default() > 0 {
        kept.push_str(&format!(", {} in quarantine", number(&samples["quarantined"])));
    }
    let outcomes = &adapter["outcomes"];
    let right = match outcomes["total"].as_u64() {
        Some(total) if total > 0 => {
            format!("{} of {} answers right", number(&outcomes["right"]), count(total))
        }
        _ => String::new(),
    };
    vec![text(&adapter["name"]), active, kept, right]
}

/// What the learner does and waits for: each condition that is not met as a sentence.
fn learner(learner: &Value, out: &Out) {
    if let Some(job) = learner["job"].as_object() {
        let [id, name, step, steps] = ["job", "name", "step", "steps"].map(|k| text(&job[k]));
        out.line(format!("training '{name}' (job {id}): step {step} of {steps}"));
    } else if let Some(waiting) = learner["waiting"].as_str().filter(|w| !w.is_empty()) {
        out.line(format!("training: {waiting}"));
    }
    for name in list(&learner["names"]) {
        for condition in list(&name["conditions"]) {
            let met = if condition["met"] == true { "met    " } else { "not met" };
            let [own, words] = [text(&name["name"]), text(&condition["sentence"])];
            out.line(format!("  {own}: {met}  {words}"));
        }
        if let Some(left) = name["trial_left"].as_u64() {
            out.line(format!("  {}: on trial for another {}", text(&name["name"]), span(left)));
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A string without its quotes; other values as JSON.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// `3 d`, `2 h`, `5 min`, `12 s`.
fn span(seconds: u64) -> String {
    match seconds {
        s if s >= 2 * 86400 => format!("{} d", s / 86400),
        s if s >= 2 * 3600 => format!("{} h", s / 3600),
        s if s >= 120 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_are_lines() {
        let classes = json!({"label": "on", "top": [{"label": "on", "probability": 0.5}]});
        assert_eq!(said(&classes), [" 50.0 %  on"]);
        assert_eq!(said(&json!({"transcript": "Tea"})), ["Tea"]);
        let text = json!({"completion": "Ada,\n\u{1b}at six.", "ended": "end", "tokens": 3});
        assert_eq!(said(&text), ["Ada,\n\u{fffd}at six."]);
    }

    #[test]
    fn times_for_people() {
        assert_eq!(
            [span(5), span(600), span(7200), span(200_000)],
            ["5 s", "10 min", "2 h", "2 d"]
        );
        assert_eq!([text(&json!("a")), text(&json!(3))], ["a", "3"]);
    }

    /// A script that waited took a refused adapter for a promoted one.
    #[test]
    fn what_the_gate_refuses_has_an_exit_code() {
        let code = |state: Value| outcome(7, &state).map_err(|e| e.kind().exit_code());
        let done = |progress: Value| json!({"state": "done", "progress": progress});
        assert_eq!(code(done(json!({"generation": 2, "promoted": true}))), Ok(()));
        assert_eq!(code(done(json!({"trained": false}))), Ok(()));
        assert_eq!(code(json!({"state": "failed", "error": "no memory"})), Err(1));
        let refused = done(json!({"generation": 2, "promoted": false, "verdict": "not proven"}));
        assert_eq!(code(refused.clone()), Err(5));
        let e = outcome(7, &refused).unwrap_err();
        assert_eq!(e.message(), "generation 2 is not promoted: not proven");
    }
}
