//! Topics, and what Home Assistant is told of them (its MQTT discovery). Pure.

#![warn(clippy::arithmetic_side_effects)]

use crate::store::check_name;
use serde_json::{Value, json};

/// The topics of this board.
#[derive(Clone, Debug)]
pub struct Topics {
    /// What all begin with: topic and board.
    root: String,
    board: String,
    discovery: String,
}

/// What a message asks for. Names borrow from the topic.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish<'a> {
    /// A sentence, its tag.
    Text(&'a str, Option<&'a str>),
    /// A picture or clip, its tag.
    File(&'a str, Option<&'a str>),
    /// What was right, as the body of `POST /v1/feedback`.
    Feedback(&'a str),
    /// `train` or `rollback`.
    Command(&'a str),
    /// Home Assistant has started.
    Born,
}

impl Topics {
    /// Of a board.
    pub fn new(topic: &str, board: &str, discovery: &str) -> Topics {
        Topics {
            root: format!("{topic}/{board}"),
            board: board.into(),
            discovery: discovery.into(),
        }
    }

    /// `online` or `offline`, retained.
    pub fn availability(&self) -> String {
        format!("{}/availability", self.root)
    }

    /// What went wrong with a message, in words.
    pub fn problem(&self) -> String {
        format!("{}/problem", self.root)
    }

    /// Of a name: `answer` and `state`, retained, and `event`, not.
    pub fn of(&self, name: &str, what: &str) -> String {
        format!("{}/{name}/{what}", self.root)
    }

    /// What is subscribed to.
    pub fn wanted(&self) -> Vec<String> {
        let mut all: Vec<_> = ["ask/#", "feedback", "command"]
            .iter()
            .map(|what| format!("{}/+/{what}", self.root))
            .collect();
        if !self.discovery.is_empty() {
            all.push(format!("{}/status", self.discovery));
        }
        all
    }

    /// What a message on `topic` asks for; `None`: nothing that is known.
    pub fn wish<'a>(&self, topic: &'a str) -> Option<Wish<'a>> {
        if !self.discovery.is_empty() && topic == format!("{}/status", self.discovery) {
            return Some(Wish::Born);
        }
        let mut levels = topic.strip_prefix(self.root.as_str())?.strip_prefix('/')?.splitn(4, '/');
        let name = levels.next().filter(|name| check_name(name).is_ok())?;
        match (levels.next()?, levels.next(), levels.next()) {
            ("ask", Some("text"), tag) => Some(Wish::Text(name, tag)),
            ("ask", Some("picture" | "sound"), tag) => Some(Wish::File(name, tag)),
            ("feedback", None, None) => Some(Wish::Feedback(name)),
            ("command", None, None) => Some(Wish::Command(name)),
            _ => None,
        }
    }

    /// What Home Assistant is to know of a name: topic and document each, to be retained. `buttons`: of
    /// these commands.
    pub fn entities(&self, name: &str, buttons: &[&str]) -> Vec<(String, Value)> {
        if self.discovery.is_empty() {
            return vec![];
        }
        let (answer, state) = (self.of(name, "answer"), self.of(name, "state"));
        let mut all = vec![
            self.entity("sensor", name, "answer", json!({
                "name": name, "state_topic": answer, "json_attributes_topic": answer,
                "value_template": "{{ value_json.label | default('', true) | string | truncate(250) }}",
                "icon": "mdi:tag-text-outline",
            })),
            self.entity("sensor", name, "score", json!({
                "name": format!("{name} score"), "state_topic": answer, "unit_of_measurement": "%",
                "value_template": "{{ (value_json.probability * 100) | round(1) if value_json.probability is number else None }}",
                "state_class": "measurement",
            })),
            self.entity("sensor", name, "generation", json!({
                "name": format!("{name} generation"), "state_topic": state,
                "value_template": "{{ value_json.generation }}", "entity_category": "diagnostic",
            })),
            self.entity("sensor", name, "accuracy", json!({
                "name": format!("{name} accuracy"), "state_topic": state, "unit_of_measurement": "%",
                "value_template": "{{ (value_json.accuracy * 100) | round(1) if value_json.accuracy is number else None }}",
                "json_attributes_topic": state, "entity_category": "diagnostic",
                "state_class": "measurement",
            })),
            self.entity("sensor", name, "training", json!({
                "name": format!("{name} training"), "state_topic": state, "device_class": "enum",
                "options": TRAINING, "value_template": "{{ value_json.training }}",
                "entity_category": "diagnostic",
            })),
            self.entity("event", name, "event", json!({
                "name": format!("{name} answers"), "state_topic": self.of(name, "event"),
                "event_types": ["answer"],
            })),
        ];
        for command in buttons {
            all.push(self.entity(
                "button",
                name,
                command,
                json!({
                    "name": format!("{name}: {command}"), "command_topic": self.of(name, "command"),
                    "payload_press": command, "entity_category": "config",
                }),
            ));
        }
        all
    }

    fn entity(&self, component: &str, name: &str, what: &str, mut is: Value) -> (String, Value) {
        // A name may hold dots, which Home Assistant's ids don't; it holds no capitals.
        let id = format!("{}-{}-{what}", self.board, name.replace('.', "D"));
        is["unique_id"] = json!(id);
        is["availability_topic"] = json!(self.availability());
        is["qos"] = json!(1);
        is["device"] = json!({
            "identifiers": [format!("offshoot-{}", self.board)],
            "name": format!("Offshoot {}", self.board), "manufacturer": "Offshoot",
            "model": "adapters on the device", "sw_version": env!("CARGO_PKG_VERSION"),
        });
        is["origin"] = json!({"name": "Offshoot", "sw_version": env!("CARGO_PKG_VERSION")});
        (format!("{}/{component}/{id}/config", self.discovery), is)
    }
}

/// What a name's training may be at.
pub const TRAINING: [&str; 5] = ["off", "idle", "queued", "training", "measuring"];

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_read_as_they_are_written() {
        let topics = Topics::new("offshoot", "pi", "homeassistant");
        for (topic, wish) in [
            ("offshoot/pi/garage/ask/text", Some(Wish::Text("garage", None))),
            ("offshoot/pi/garage/ask/text/hall", Some(Wish::Text("garage", Some("hall")))),
            ("offshoot/pi/a.b/ask/picture/x/y", Some(Wish::File("a.b", Some("x/y")))),
            ("offshoot/pi/garage/ask/sound", Some(Wish::File("garage", None))),
            ("offshoot/pi/garage/ask/smell", None),
            ("offshoot/pi/garage/feedback", Some(Wish::Feedback("garage"))),
            ("offshoot/pi/garage/command", Some(Wish::Command("garage"))),
            ("homeassistant/status", Some(Wish::Born)),
            ("offshoot/pi/garage/command/x", None),
            ("offshoot/pi/../command", None),
            ("offshoot/pi2/garage/command", None),
            ("offshoot/pi/garage", None),
            ("offshoot/pi", None),
        ] {
            assert_eq!(topics.wish(topic), wish, "{topic}");
        }
    }

    /// What Home Assistant refuses or overwrites: ids that are not unique or hold other characters,
    /// an entity without its topic.
    #[test]
    fn entities_have_ids_of_their_own_and_their_topics() {
        let topics = Topics::new("offshoot", "pi", "homeassistant");
        let mut all = topics.entities("a.b", &["train", "rollback"]);
        all.extend(topics.entities("a_b", &["train"]));
        let mut seen = std::collections::HashSet::new();
        for (topic, entity) in &all {
            let levels: Vec<_> = topic.split('/').collect();
            assert_eq!((levels.len(), levels[0], levels[3]), (4, "homeassistant", "config"));
            let id = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            assert!(levels[2].chars().all(id), "{topic}");
            assert!(seen.insert(topic.clone()), "{topic}");
            let key = if levels[1] == "button" { "command_topic" } else { "state_topic" };
            assert!(entity[key].as_str().unwrap().starts_with("offshoot/pi/a"), "{entity}");
            assert_eq!(entity["availability_topic"], "offshoot/pi/availability");
            assert_eq!(entity["unique_id"], levels[2]);
        }
        assert_eq!(all.len(), 15);
        assert!(Topics::new("o", "pi", "").entities("a", &[]).is_empty());
    }
}
