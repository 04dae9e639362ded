//! The protocol of Home Assistant's voice, as far as it asks what a sentence means and what is heard:
//! `describe` is answered with `info`, `recognize` and `transcript` with `intent` or `not-recognized`, `detect`
//! and a stream of sound with `detection`s or `not-detected`.
//!
//! Whoever reaches the port may ask, and nothing else.

mod event;
mod sound;

use super::app::App;
use super::ask::{AskQuery, Mime, Raw};
use super::problem::Problem;
use super::roster::Selection;
use crate::daemon::wyoming::WyomingConfig;
use crate::error::{Error, Result};
use event::{Event, Read};
use serde_json::{Map, Value, json};
use sound::Hearing;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Connections at once; more are closed.
const CONNECTIONS: usize = 16;
/// Longest that an event may take to come whole, counted from the one before.
const IDLE: Duration = Duration::from_secs(60);
/// Longest that a client may take to read what it is sent.
const SENDING: Duration = Duration::from_secs(10);

/// What an event is answered with.
type Said = std::result::Result<Vec<Event>, Problem>;

/// How many events bytes hold, up to what can't be understood; for tests.
pub fn events(bytes: &[u8]) -> usize {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else { return 0 };
    let mut reader = bytes;
    runtime.block_on(async {
        let mut count = 0;
        while let Ok(Read::Event(_)) = event::read(&mut reader).await {
            count += 1;
        }
        count
    })
}

/// Pause after a connection could not be taken: the process has no more files.
const PAUSE: Duration = Duration::from_millis(100);

/// The configured port; `None`: nobody is listened to. Errors: it is taken (failed).
pub async fn bind(app: &App) -> Result<Option<TcpListener>> {
    let Some(address) = app.config().wyoming.listen else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    bound.map(Some).map_err(|e| Error::failed(format!("wyoming.listen: port {address}: {e}")))
}

/// Serves until the daemon stops.
pub async fn serve(app: Arc<App>, listener: TcpListener) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let mut stop = app.stop.subscribe();
    loop {
        let stream = tokio::select! {
            _ = stop.changed() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::warn!("wyoming.listen: {e}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            },
        };
        let Ok(place) = free.clone().try_acquire_owned() else { continue };
        let (app, mut stop) = (app.clone(), app.stop.subscribe());
        tokio::spawn(async move {
            tokio::select! {
                _ = stop.changed() => {}
                () = talk(&app, stream) => {}
            }
            drop(place);
        });
    }
}

/// One client, until it goes or says what can't be understood.
async fn talk(app: &App, stream: TcpStream) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut hearing = Hearing::new();
    loop {
        let (answers, last) = match timeout(IDLE, event::read(&mut reader)).await {
            Ok(Ok(Read::Event(event))) => heed(app, &mut hearing, event).await,
            Ok(Ok(Read::End)) | Err(_) => return,
            Ok(Err(why)) => (vec![error(&why, "invalid_request")], true),
        };
        for answer in &answers {
            let sent = timeout(SENDING, event::write(&mut writer, answer)).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
        if last {
            return;
        }
    }
}

/// The answers to an event, and whether they are the last. Events that want none are dropped, as the protocol
/// has it.
async fn heed(app: &App, hearing: &mut Hearing, event: Event) -> (Vec<Event>, bool) {
    let failed = |problem: Problem| vec![error(&problem.message, problem.kind)];
    match event.kind.as_str() {
        "describe" => (vec![info(app)], false),
        "ping" => (vec![Event::new("pong", event.data)], false),
        "recognize" | "transcript" => match recognize(app, &event.data).await {
            Ok(answer) => (vec![answer], false),
            Err(problem) => (failed(problem), false),
        },
        // Who goes on sending sound that nobody hears would wait for ever.
        "detect" | "audio-start" | event::SOUND | "audio-stop" => {
            match hearing.heed(app, &event).await {
                Ok(answers) => (answers, false),
                Err(problem) => (failed(problem), true),
            }
        }
        _ => (vec![], false),
    }
}

fn error(message: &str, code: &str) -> Event {
    let data = [("text", message), ("code", code)];
    Event::new(
        "error",
        data.map(|(key, value)| (key.to_string(), value.into())).into_iter().collect(),
    )
}

/// The name that answers; `None`: the base.
fn name(app: &App, config: &WyomingConfig) -> Option<String> {
    let default = || match app.roster.default_selection() {
        Selection::Named(reference) => Some(reference.name().to_string()),
        _ => None,
    };
    config.adapter.clone().or_else(default)
}

fn info(app: &App) -> Event {
    let config = app.config();
    let of = |name: &str, description: &str| {
        json!({
            "name": name, "description": description, "version": env!("CARGO_PKG_VERSION"),
            "installed": true,
            "attribution": {"name": "Offshoot", "url": env!("CARGO_PKG_REPOSITORY")},
        })
    };
    let model = |name: &str, description: &str| {
        let mut model = of(name, description);
        model["languages"] = json!(config.wyoming.languages);
        model
    };
    let program = |description: &str, models: Vec<Value>| {
        let mut program = of("offshoot", description);
        program["models"] = json!(models);
        json!([program])
    };
    let name = name(app, &config.wyoming).unwrap_or_else(|| "base".into());
    let (service, program) = match sound::window(app) {
        None => {
            let models = vec![model(&name, "Sentences that were taught")];
            ("intent", program("What a sentence means, learned on this device", models))
        }
        Some(_) if config.wyoming.speakers => {
            let mut model = model(&name, "People whose voices were taught");
            model["phrase"] = Value::Null;
            ("wake", program("Who is speaking, learned on this device", vec![model]))
        }
        Some(_) => {
            let labels = sound::labels(app);
            let models = labels.iter().map(|label| {
                // Home Assistant lists words by their description.
                let phrase = label.replace(['_', '-'], " ");
                let mut model = model(label, &phrase);
                model["phrase"] = phrase.into();
                model
            });
            ("wake", program("Words that wake, learned on this device", models.collect()))
        }
    };
    let services = ["asr", "tts", "handle", "intent", "wake", "mic", "snd"];
    let mut data: Map<String, Value> =
        services.into_iter().map(|service| (service.into(), json!([]))).collect();
    data.insert(service.into(), program);
    Event::new("info", data)
}

/// What a sentence means.
async fn recognize(app: &App, data: &Map<String, Value>) -> Result<Event, Problem> {
    let config = app.config();
    let text = data.get("text").and_then(Value::as_str);
    let text = text.ok_or_else(|| Problem::invalid("text: expected a string"))?;
    let mut body = json!({"text": text, "outputs": false});
    if let Some(name) = &config.wyoming.adapter {
        body["adapter"] = name.as_str().into();
    }
    let body = body.to_string().into();
    let raw = Raw::new(body, Mime::Json, AskQuery::default());
    let answer = ask(app, raw, true).await?;
    let (kind, mut said) = match intent(&answer, config.wyoming.probability) {
        Ok(intent) => ("intent", json!({"name": intent})),
        Err(why) => ("not-recognized", json!({"text": why})),
    };
    // Who asks knows by it what was asked.
    if let Some(context) = data.get("context").filter(|c| c.is_object()) {
        said["context"] = context.clone();
    }
    let Value::Object(said) = said else { return Err(Problem::failed("no object was made")) };
    Ok(Event::new(kind, said))
}

/// A worker's answer; the home is told of it as of others.
async fn ask(app: &App, raw: Raw, tell: bool) -> Result<Value, Problem> {
    let asked = app.pool.ask(raw)?;
    let answer = match timeout(app.config().limits.request(), asked).await {
        Ok(Ok(answer)) => answer?,
        Ok(Err(_)) => return Err(Problem::failed("a worker has gone")),
        Err(_) => return Err(Problem::failed("it took longer than limits.request_seconds")),
    };
    if tell {
        app.tell(&answer);
    }
    serde_json::from_slice(&answer)
        .map_err(|e| Problem::failed(format!("the answer can't be read: {e}")))
}

/// The label of a sure answer, or why there is none.
fn intent(answer: &Value, least: f32) -> Result<&str, String> {
    let said = &answer["predictions"][0];
    if let Some(why) = answer["no_answer"].as_str() {
        return Err(why.into());
    }
    if said["known"] == Value::Bool(false) {
        return Err("This is like nothing that was learned.".into());
    }
    let Some(label) = said["label"].as_str() else {
        return Err("What answers here tells no intents.".into());
    };
    match said["probability"].as_f64() {
        Some(p) if p < f64::from(least) => Err("I am not sure what that means.".into()),
        _ => Ok(label),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sure_and_known_labels_are_intents() {
        let answer = |said: Value| json!({"predictions": [said]});
        let sure = answer(json!({"label": "on", "probability": 0.75, "known": true}));
        assert_eq!(intent(&sure, 0.5), Ok("on"));
        assert!(intent(&sure, 0.8).unwrap_err().contains("not sure"));
        let unknown = answer(json!({"label": "on", "probability": 0.99, "known": false}));
        assert!(intent(&unknown, 0.0).unwrap_err().contains("nothing that was learned"));
        assert!(intent(&answer(json!({"values": [1]})), 0.0).unwrap_err().contains("no intents"));
        let silent = json!({"predictions": [], "no_answer": "nothing was taught"});
        assert_eq!(intent(&silent, 0.0), Err("nothing was taught".into()));
    }
}
