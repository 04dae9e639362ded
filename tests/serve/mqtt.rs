//! The daemon at a home's broker: mosquitto's, of Debian. Where that is not installed a test says so.
#![cfg(feature = "mqtt")]

use crate::place::Place;
use crate::support::{Daemon, PATIENCE};
use crate::tasks::base;
use rumqttc::{Client, Event, Incoming, MqttOptions, QoS};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A broker with sessions that outlive it.
struct Broker {
    place: Place,
    port: u16,
    child: Child,
}

impl Broker {
    /// `None`: mosquitto is not there, which is an error where everything must be.
    fn start() -> Option<Broker> {
        let program = ["mosquitto", "/usr/sbin/mosquitto"].into_iter().find(|program| {
            Command::new(program)
                .arg("-h")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok()
        });
        let Some(program) = program else {
            assert!(
                std::env::var_os("OFFSHOOT_NEEDS_SHARED").is_none(),
                "mosquitto is not installed"
            );
            eprintln!("skipped: mosquitto is not installed");
            return None;
        };
        let place = Place::new();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        place.write(
            "broker.conf",
            format!(
                "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\nmax_queued_messages 0\n\
                 persistence true\n\
                 persistence_location {}/\nautosave_interval 1\nautosave_on_changes true\n",
                place.path(".").display()
            ),
        );
        let child = Broker::spawn(program, &place);
        Some(Broker { place, port, child })
    }

    fn spawn(program: &str, place: &Place) -> Child {
        let log =
            std::fs::File::options().create(true).append(true).open(place.path("log")).unwrap();
        Command::new(program)
            .arg("-c")
            .arg(place.path("broker.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Ends it as a stop of its service does.
    fn stop(&mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        self.child.wait().unwrap();
    }

    fn again(&mut self) {
        let program = if std::path::Path::new("/usr/sbin/mosquitto").exists() {
            "/usr/sbin/mosquitto"
        } else {
            "mosquitto"
        };
        self.child = Broker::spawn(program, &self.place);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a client heard: the last message of each topic, and how many there were.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<BTreeMap<String, (usize, String)>>>);

impl Heard {
    fn last(&self, topic: &str) -> Option<String> {
        self.0.lock().unwrap().get(topic).map(|(_, text)| text.clone())
    }

    fn count(&self, topic: &str) -> usize {
        self.0.lock().unwrap().get(topic).map_or(0, |(n, _)| *n)
    }

    /// Waits until `wanted` holds of the last message on `topic`.
    fn wait(&self, topic: &str, wanted: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            if let Some(text) = self.last(topic).filter(|text| wanted(text)) {
                return text;
            }
            assert!(start.elapsed() < PATIENCE, "{topic}: {:?}", self.0.lock().unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn json(&self, topic: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let text =
            self.wait(topic, |text| serde_json::from_str(text).is_ok_and(|v: Value| wanted(&v)));
        serde_json::from_str(&text).unwrap()
    }
}

/// A client of the broker that hears everything.
fn client(port: u16, id: &str) -> (Client, Heard) {
    let mut options = MqttOptions::new(id, "127.0.0.1", port);
    options.set_clean_session(false).set_keep_alive(Duration::from_secs(5));
    options.set_max_packet_size(1 << 20, 1 << 20);
    let (client, mut connection) = Client::new(options, 100);
    let (heard, again) = (Heard::default(), client.clone());
    let kept = heard.0.clone();
    std::thread::spawn(move || {
        for event in connection.iter() {
            match event {
                Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                    let _ = again.try_subscribe("#", QoS::AtLeastOnce);
                }
                Ok(Event::Incoming(Incoming::Publish(message))) => {
                    let text = String::from_utf8_lossy(&message.payload).into_owned();
                    let mut kept = kept.lock().unwrap();
                    let entry = kept.entry(message.topic).or_default();
                    *entry = (entry.0 + 1, text);
                }
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    });
    (client, heard)
}

fn say(client: &Client, topic: &str, payload: impl Into<Vec<u8>>) {
    client.publish(topic, QoS::AtLeastOnce, false, payload).unwrap();
}

fn daemon_at(broker: &Broker, place: Place, serve: &str) -> Daemon {
    let port = broker.port;
    Daemon::start_in(
        place,
        &format!(
            "adapter = \"home\"\n{serve}---[train]\nenabled = false\n[samples]\nmax_samples = 20000\n\
             source_per_hour = 0\n[mqtt]\nbroker = \"127.0.0.1:{port}\"\nid = \"pi\"\n"
        ),
    )
}

const NAME: &str = "offshoot/pi/home";

#[test]
fn a_home_asks_corrects_and_sees_what_was_learned() {
    let Some(broker) = Broker::start() else { return };
    let (client, heard) = client(broker.port, "test");
    let mut daemon = daemon_at(&broker, base(), "");
    heard.wait("offshoot/pi/availability", |text| text == "online");

    // Nobody has said anything yet.
    say(&client, &format!("{NAME}/ask/text"), "lamp on");
    heard.wait("offshoot/pi/problem", |text| text.contains("no adapter 'home'"));

    for (text, label) in
        [("lamp on", "on"), ("lamp off", "off"), ("radio on", "on"), ("radio off", "off")]
    {
        say(
            &client,
            &format!("{NAME}/feedback"),
            json!({"text": text, "label": label}).to_string(),
        );
    }
    // Home Assistant is told what there is, and the state of it.
    let state = heard.json(&format!("{NAME}/state"), |state| state["samples"] == 4);
    assert_eq!(
        (&state["generation"], &state["training"]),
        (&Value::Null, &json!("idle")),
        "{state}"
    );
    let entity = heard.json("homeassistant/sensor/pi-home-answer/config", |_| true);
    assert_eq!(entity["state_topic"], format!("{NAME}/answer"));
    assert_eq!(
        heard.json("homeassistant/button/pi-home-train/config", |_| true)["payload_press"],
        "train"
    );

    say(&client, &format!("{NAME}/ask/text/hall"), "door on");
    let answer = heard.json(&format!("{NAME}/answer"), |answer| answer["instant"] == 4);
    assert_eq!((&answer["label"], &answer["tag"]), (&json!("on"), &json!("hall")), "{answer}");
    let event = heard.json(&format!("{NAME}/event"), |event| event["instant"] == 4);
    assert_eq!((&event["event_type"], &event["label"]), (&json!("answer"), &json!("on")));
    // What others ask is told too.
    daemon.ok("POST", "/v1/predict", Some(&json!({"text": "radio off"})));
    heard.json(&format!("{NAME}/answer"), |answer| {
        answer["label"] == "off" && answer.get("tag").is_none()
    });

    // What can't be done is said, and stops nothing.
    for (topic, payload) in [
        ("home/feedback", "{\"text\": 1}"),
        ("home/feedback", "{\"adapter\": \"other\", \"text\": \"x\", \"label\": \"on\"}"),
        ("home/ask/picture", "no picture"),
        ("home/command", "dance"),
        ("home/ask/smell", "x"),
        // A name that is no name.
        ("../feedback", "{\"text\": \"x\", \"label\": \"on\"}"),
    ] {
        let before = heard.count("offshoot/pi/problem");
        say(&client, &format!("offshoot/pi/{topic}"), payload);
        let start = Instant::now();
        while heard.count("offshoot/pi/problem") == before {
            assert!(start.elapsed() < PATIENCE, "{topic}: {payload}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    say(&client, &format!("{NAME}/command"), "train");
    let start = Instant::now();
    while daemon.ok("GET", "/v1/train", None)["jobs"].as_array().unwrap().is_empty() {
        assert!(start.elapsed() < PATIENCE, "nothing trains: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }

    // Home Assistant starts: it is told anew.
    let before = heard.count("homeassistant/sensor/pi-home-answer/config");
    say(&client, "homeassistant/status", "online");
    let start = Instant::now();
    while heard.count("homeassistant/sensor/pi-home-answer/config") == before {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
    // A board without power says goodbye through the broker.
    daemon.child.kill().unwrap();
    heard.wait("offshoot/pi/availability", |text| text == "offline");
}

/// Feedback through a broker that is stopped and started in the midst of it: all of it arrives, in order.
fn through_a_restart(messages: usize) {
    let Some(mut broker) = Broker::start() else { return };
    let (client, heard) = client(broker.port, "test");
    // Heads of so many samples, made anew with each, would be what is measured.
    let daemon = daemon_at(&broker, base(), "instant = false\n");
    heard.wait("offshoot/pi/availability", |text| text == "online");
    let sentence =
        |i: usize| format!("lamp {i} in the {}", if i.is_multiple_of(2) { "red" } else { "radio" });
    for i in 0..messages {
        if i == messages / 2 {
            broker.stop();
            broker.again();
        }
        let label = if i.is_multiple_of(2) { "on" } else { "off" };
        say(
            &client,
            &format!("{NAME}/feedback"),
            json!({"text": sentence(i), "label": label}).to_string(),
        );
    }
    let start = Instant::now();
    let patience = PATIENCE + Duration::from_millis(20 * messages as u64);
    loop {
        let samples = daemon.ok("GET", "/v1/status", None)["adapters"][0]["samples"].clone();
        let here =
            samples["kept"].as_u64().unwrap_or(0) + samples["quarantined"].as_u64().unwrap_or(0);
        if here == messages as u64 {
            break;
        }
        assert!(start.elapsed() < patience, "{here} of {messages}: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(heard.count("offshoot/pi/problem"), 0);
}

#[test]
fn a_broker_that_restarts_loses_nothing() {
    through_a_restart(60);
}

#[test]
#[ignore = "minutes"]
fn ten_thousand_messages_and_a_restart() {
    through_a_restart(10_000);
}
