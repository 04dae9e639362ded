//! The daemon as a client of a home's MQTT broker: questions and corrections come in, answers and what is
//! learned go out, and Home Assistant is told what there is.
//!
//! A message is acknowledged when it was done: what the connection or the daemon loses before comes
//! again, in order, from the broker's session for this board.

mod backlog;
mod state;
mod topics;

use super::api::{feedback_to, now};
use super::app::App;
use super::ask::{AskQuery, Mime, Raw};
use super::metrics::count;
use super::problem::Problem;
use crate::daemon::Serving;
use crate::daemon::mqtt::{Accept, MqttConfig};
use crate::error::Result;
use crate::runtime::audio::media_type;
use axum::body::Bytes;
use axum::http::StatusCode;
use backlog::Backlog;
use rumqttc::{AsyncClient, Event, EventLoop, LastWill, MqttOptions, Packet, Publish, QoS};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
pub use topics::Topics;
use topics::Wish;

/// Answers that wait to be told; more are not told.
const WAITING: usize = 256;
/// Packets that wait to be sent.
const PACKETS: usize = 64;
/// Longest that a packet waits for that.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked what is learned.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// First and longest pause before a lost broker is tried again.
const PAUSE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// Seconds that a message waits where the daemon is busy.
const BUSY: u32 = 10;
/// Longest answer that is told in bytes.
const LONGEST: usize = 64 << 10;

/// Where answers are told, from any thread.
pub type Teller = mpsc::Sender<Bytes>;

/// What the broker's messages do, ready to run.
pub struct MqttClient {
    app: Arc<App>,
    config: MqttConfig,
    topics: Topics,
    options: MqttOptions,
    answers: mpsc::Receiver<Bytes>,
}

impl MqttClient {
    /// For the configured broker, with where answers are told; `None`: there is no broker. Nothing is
    /// connected yet.
    ///
    /// # Errors
    /// The password can't be read.
    pub fn new(app: &Arc<App>) -> Result<Option<(MqttClient, Teller)>> {
        let config = app.config().mqtt.clone();
        let Some((host, port)) = config.address()? else { return Ok(None) };
        let board = config.board();
        let topics = Topics::new(&config.topic, &board, &config.discovery);
        let mut options = MqttOptions::new(format!("offshoot-{board}"), host, port);
        if let Some((user, password)) = config.credentials()? {
            options.set_credentials(user, password);
        }
        let largest = app.config().limits.body_bytes;
        options
            .set_keep_alive(KEEP_ALIVE)
            .set_clean_session(false)
            .set_manual_acks(true)
            .set_max_packet_size(largest, LONGEST + 1024)
            .set_last_will(LastWill::new(topics.availability(), "offline", QoS::AtLeastOnce, true));
        let (teller, answers) = mpsc::channel(WAITING);
        Ok(Some((MqttClient { app: app.clone(), config, topics, options, answers }, teller)))
    }

    /// Serves until the daemon stops.
    pub async fn run(mut self) {
        let (client, events) = AsyncClient::new(self.options.clone(), PACKETS);
        let (sender, mut messages) = mpsc::unbounded_channel();
        let connected = Arc::new(AtomicBool::new(false));
        let backlog = Arc::new(Backlog::new(self.app.config().limits.body_bytes));
        let reader = tokio::spawn(read(events, sender, connected.clone(), backlog.clone()));
        let mut stop = self.app.stop.subscribe();
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut outbox = Outbox { client, connected, told: BTreeMap::new() };
        loop {
            tokio::select! {
                _ = stop.changed() => break,
                message = messages.recv() => match message {
                    Some(Message::Connected) => self.announce(&mut outbox).await,
                    Some(Message::Came(message, connection)) => {
                        let bytes = message.payload.len();
                        // What an earlier connection brought comes again, by another number perhaps.
                        if backlog.is_of(connection) {
                            let done = self.heed(&mut outbox, &message).await;
                            if done && backlog.is_of(connection) {
                                outbox.acknowledge(&message).await;
                            }
                        }
                        if backlog.leave(bytes) {
                            // What was turned away comes again with the next connection, in order.
                            let _ = outbox.client.try_disconnect();
                        }
                    }
                    None => break,
                },
                answer = self.answers.recv() => {
                    if let Some(answer) = answer {
                        self.tell(&outbox, &answer, None).await;
                    }
                }
                _ = look.tick() => self.states(&mut outbox).await,
            }
        }
        // Without a goodbye the broker tells the last will: offline.
        reader.abort();
    }

    /// After a connection was made: the broker may know nothing of this board.
    async fn announce(&self, outbox: &mut Outbox) {
        tracing::info!("connected to the broker '{}'", self.config.broker.as_deref().unwrap_or(""));
        for topic in self.topics.wanted() {
            if outbox.client.subscribe(topic, QoS::AtLeastOnce).await.is_err() {
                return;
            }
        }
        outbox.told.clear();
        outbox.say(self.topics.availability(), true, "online").await;
        self.states(outbox).await;
    }

    fn may(&self, what: Accept) -> Result<(), Problem> {
        match self.config.forbids(what) {
            None => Ok(()),
            Some(why) => Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", why)),
        }
    }

    /// Does what a message asks for; whether it is to be acknowledged.
    async fn heed(&self, outbox: &mut Outbox, message: &Publish) -> bool {
        let mut done = self.act(outbox, message).await;
        for _ in 0..BUSY {
            let busy = matches!(&done, Err(p) if p.status == StatusCode::SERVICE_UNAVAILABLE);
            if !busy {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            done = self.act(outbox, message).await;
        }
        match done {
            Ok(Done::Told) => {}
            // It comes again with the connection.
            Ok(Done::Untold) => return false,
            Err(problem) => {
                tracing::warn!("a message on '{}': {}", message.topic, problem.message);
                let said = json!({"topic": message.topic, "message": problem.message}).to_string();
                outbox.say(self.topics.problem(), false, said).await;
            }
        }
        true
    }

    /// Does what a message asks for and tells nobody, for tests.
    ///
    /// # Errors
    /// What would be told as a problem.
    pub async fn done(&self, topic: &str, payload: &[u8]) -> Result<(), Problem> {
        let (client, _unconnected) = AsyncClient::new(self.options.clone(), PACKETS);
        let mut outbox = Outbox { client, connected: Arc::default(), told: BTreeMap::new() };
        let message = Publish::new(topic, QoS::AtLeastOnce, payload);
        self.act(&mut outbox, &message).await.map(drop)
    }

    async fn act(&self, outbox: &mut Outbox, message: &Publish) -> Result<Done, Problem> {
        let Some(wish) = self.topics.wish(&message.topic) else {
            return Err(Problem::invalid(
                "the topic names no adapter, or nothing that can be asked",
            ));
        };
        if wish == Wish::Born {
            outbox.told.clear();
            self.states(outbox).await;
            return Ok(Done::Told);
        }
        if message.retain {
            return Err(Problem::invalid(
                "it is retained, and would be done anew at each connection",
            ));
        }
        match wish {
            Wish::Born => Ok(Done::Told),
            Wish::Text(name, tag) => {
                let text = std::str::from_utf8(&message.payload)
                    .map_err(|_| Problem::invalid("the sentence is not UTF-8"))?;
                let body = json!({"text": text, "adapter": name, "outputs": false}).to_string();
                let raw = Raw::new(body.into(), Mime::Json, AskQuery::default());
                self.ask(outbox, raw, tag).await
            }
            Wish::File(name, tag) => {
                if media_type(&message.payload).is_none() {
                    return Err(Problem::invalid(
                        "expected a picture (PNG, JPEG, WebP, GIF) or a clip (WAV)",
                    ));
                }
                let (body, query) = (message.payload.clone(), AskQuery::of(name));
                self.ask(outbox, Raw::new(body, Mime::File, query), tag).await
            }
            Wish::Feedback(name) => self.feedback(name, message.payload.clone()).await,
            Wish::Command(name) => self.command(name, &message.payload).await,
        }
    }

    async fn ask(&self, outbox: &Outbox, raw: Raw, tag: Option<&str>) -> Result<Done, Problem> {
        self.may(Accept::Ask)?;
        let answer = self.app.pool.ask(raw)?;
        let patience = self.app.config().limits.request();
        let answer = match tokio::time::timeout(patience, answer).await {
            Ok(Ok(outcome)) => outcome?,
            Ok(Err(_)) => return Err(Problem::failed("a worker has gone")),
            Err(_) => return Err(Problem::failed("it took longer than limits.request_seconds")),
        };
        self.app.tell_hooks(&answer);
        Ok(if self.tell(outbox, &answer, tag).await { Done::Told } else { Done::Untold })
    }

    async fn feedback(&self, name: &str, body: Bytes) -> Result<Done, Problem> {
        self.may(Accept::Feedback)?;
        let name = name.to_string();
        self.app.blocking(move |app| feedback_to(app, &name, &body)).await?;
        Ok(Done::Told)
    }

    async fn command(&self, name: &str, command: &[u8]) -> Result<Done, Problem> {
        let name = name.to_string();
        match command {
            b"train" => {
                self.may(Accept::Train)?;
                let work = move |app: &App| match app.learning() {
                    Some(learning) => Ok(learning.train_now(&name).map(drop)?),
                    None => {
                        Err(Problem::invalid("nothing is learned: the state can't be written to"))
                    }
                };
                self.app.blocking(work).await?;
            }
            b"rollback" => {
                self.may(Accept::Rollback)?;
                let work = move |app: &App| {
                    app.store.rollback(&name, None, "by MQTT")?;
                    app.refresh(&name)?;
                    if let Some(learning) = app.learning() {
                        learning.wake();
                    }
                    Ok(())
                };
                self.app.blocking(work).await?;
            }
            _ => return Err(Problem::invalid("expected 'train' or 'rollback'")),
        }
        Ok(Done::Told)
    }

    /// Tells an answer of a name. `false`: it could not be sent.
    async fn tell(&self, outbox: &Outbox, answer: &[u8], tag: Option<&str>) -> bool {
        let Ok(answer) = serde_json::from_slice::<Value>(answer) else { return true };
        let Some(name) = answer["adapter"].as_str() else { return true };
        let mut said = match &answer["predictions"][0] {
            Value::Object(said) => said.clone(),
            _ => Default::default(),
        };
        for key in ["generation", "instant", "no_answer"] {
            if let Some(value) = answer.get(key) {
                said.insert(key.into(), value.clone());
            }
        }
        said.insert("time".into(), now().into());
        if let Some(tag) = tag {
            said.insert("tag".into(), tag.into());
        }
        let text = Value::Object(said.clone()).to_string();
        if text.len() > LONGEST {
            tracing::warn!("an answer of '{name}' is too long to be told: {} bytes", text.len());
            return true;
        }
        said.insert("event_type".into(), "answer".into());
        let event = Value::Object(said).to_string();
        let told = outbox.say(self.topics.of(name, "event"), false, event).await
            && outbox.say(self.topics.of(name, "answer"), true, text).await;
        if !told {
            count(&self.app.metrics.untold);
        }
        told
    }

    /// Tells what changed of names, and which there are.
    async fn states(&self, outbox: &mut Outbox) {
        if !outbox.connected.load(Ordering::Relaxed) {
            return;
        }
        let states = match self.app.blocking(|app| Ok(state::states(app)?)).await {
            Ok(states) => states,
            Err(problem) => return tracing::warn!("the state can't be told: {}", problem.message),
        };
        let buttons: Vec<&str> = [(Accept::Train, "train"), (Accept::Rollback, "rollback")]
            .iter()
            .filter(|(what, _)| self.config.forbids(*what).is_none())
            .map(|(_, word)| *word)
            .collect();
        let gone: Vec<String> =
            outbox.told.keys().filter(|name| !states.contains_key(*name)).cloned().collect();
        for name in gone {
            for (topic, _) in self.topics.entities(&name, &buttons) {
                outbox.say(topic, true, "").await;
            }
            for what in ["answer", "state"] {
                outbox.say(self.topics.of(&name, what), true, "").await;
            }
            outbox.told.remove(&name);
        }
        for (name, state) in states {
            let state = state.to_string();
            let told = outbox.told.get(&name);
            if told == Some(&state) {
                continue;
            }
            let mut whole = true;
            if told.is_none() {
                for (topic, entity) in self.topics.entities(&name, &buttons) {
                    whole &= outbox.say(topic, true, entity.to_string()).await;
                }
            }
            if whole && outbox.say(self.topics.of(&name, "state"), true, state.clone()).await {
                outbox.told.insert(name, state);
            }
        }
    }
}

/// What is sent, while there is a connection.
struct Outbox {
    client: AsyncClient,
    connected: Arc<AtomicBool>,
    /// The last state of each name that the broker was told.
    told: BTreeMap<String, String>,
}

impl Outbox {
    /// Whether it was taken: then it reaches the broker, after another connection too.
    async fn say(&self, topic: String, retain: bool, payload: impl Into<Vec<u8>>) -> bool {
        if !self.connected.load(Ordering::Relaxed) {
            return false;
        }
        let sent = self.client.publish(topic, QoS::AtLeastOnce, retain, payload);
        matches!(tokio::time::timeout(PATIENCE, sent).await, Ok(Ok(())))
    }

    /// Where that fails it comes again.
    async fn acknowledge(&self, message: &Publish) {
        let _ = tokio::time::timeout(PATIENCE, self.client.ack(message)).await;
    }
}

/// What became of a message.
enum Done {
    /// It is done, and what is to be told of it has left.
    Told,
    /// It is done, and there is no connection to tell of it.
    Untold,
}

enum Message {
    Connected,
    /// With the number of its connection.
    Came(Publish, usize),
}

/// Keeps the connection; never waits for a message to be done, since acknowledgements leave through it.
/// Ends when nobody takes its messages.
async fn read(
    mut events: EventLoop,
    sender: mpsc::UnboundedSender<Message>,
    connected: Arc<AtomicBool>,
    backlog: Arc<Backlog>,
) {
    let mut pause = PAUSE[0];
    loop {
        let message = match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                connected.store(true, Ordering::Relaxed);
                backlog.open();
                pause = PAUSE[0];
                Message::Connected
            }
            Ok(Event::Incoming(Packet::Publish(message))) => {
                if !backlog.enter(message.payload.len()) {
                    continue;
                }
                Message::Came(message, backlog.connection())
            }
            Ok(_) => continue,
            Err(e) => {
                connected.store(false, Ordering::Relaxed);
                backlog.close();
                // What was read of this connection would be given out as the next one's, and acknowledged
                // there by numbers that may mean others.
                events.state.events.clear();
                if sender.is_closed() {
                    return;
                }
                // After a goodbye of its own there is nothing to say.
                if !backlog.is_full() {
                    let seconds = pause.as_secs();
                    tracing::warn!("the broker: {e}; trying again in {seconds} s");
                }
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(PAUSE[1]);
                continue;
            }
        };
        if sender.send(message).is_err() {
            return;
        }
    }
}
