//! `[mqtt]`: the broker of a home, and what may come from there.

use super::config::read_secret;
use super::roles::Role;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A broker's port where none is said.
const PORT: u16 = 1883;

/// `[mqtt]`. Without `broker` there is none.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MqttConfig {
    /// `host` or `host:port`.
    pub broker: Option<String>,
    /// The user's name there.
    pub user: Option<String>,
    /// The file with the user's password.
    pub password_file: Option<PathBuf>,
    /// What all topics begin with.
    pub topic: String,
    /// This board's name among others: second part of all topics. Default: the machine's name.
    pub id: Option<String>,
    /// What Home Assistant's discovery topics begin with; empty: none are sent.
    pub discovery: String,
    /// What clients of the broker may do, as far as their role goes.
    pub accept: Vec<Accept>,
    /// The role of all clients of the broker.
    pub role: Role,
}

/// What a client of the broker may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Accept {
    /// Ask.
    Ask,
    /// Say what was right.
    Feedback,
    /// Have a name trained.
    Train,
    /// Go back to the generation before.
    Rollback,
}

impl Accept {
    /// The role that it needs.
    pub fn role(self) -> Role {
        match self {
            Accept::Ask => Role::Answer,
            Accept::Feedback => Role::Teach,
            Accept::Train | Accept::Rollback => Role::Administer,
        }
    }
}

impl Default for MqttConfig {
    fn default() -> MqttConfig {
        MqttConfig {
            broker: None,
            user: None,
            password_file: None,
            topic: "offshoot".into(),
            id: None,
            discovery: "homeassistant".into(),
            accept: vec![Accept::Ask, Accept::Feedback, Accept::Train, Accept::Rollback],
            role: Role::Administer,
        }
    }
}

impl MqttConfig {
    /// An error that names the first value that can't be (bad input).
    pub fn check(&self) -> Result<()> {
        let wrong = |key: &str, why: &str| Err(Error::bad_input(format!("mqtt.{key}: {why}")));
        if self.broker.is_some() && cfg!(not(feature = "mqtt")) {
            return wrong("broker", "this program was built without MQTT (feature 'mqtt')");
        }
        self.address()?;
        if self.password_file.is_some() && self.user.is_none() {
            return wrong("password_file", "expected 'user' beside it");
        }
        let level = |text: &str| !text.is_empty() && !text.contains(['+', '#', '\0', '$', ' ']);
        if !level(&self.topic) || self.topic.len() > 100 {
            return wrong(
                "topic",
                "expected a topic of at most 100 bytes without '+', '#', '$' and spaces",
            );
        }
        if !self.discovery.is_empty() && !level(&self.discovery) {
            return wrong("discovery", "expected a topic without '+', '#', '$' and spaces");
        }
        if let Some(id) = &self.id
            && (id.is_empty() || id.len() > 64 || *id != as_id(id))
        {
            return wrong("id", "expected 1 to 64 of a-z, A-Z, 0-9, '_' and '-'");
        }
        Ok(())
    }

    /// Why clients of the broker may not do that, if so.
    pub fn forbids(&self, what: Accept) -> Option<String> {
        if !self.accept.contains(&what) {
            return Some("mqtt.accept doesn't name what this asks for".into());
        }
        let (need, role) = (what.role(), self.role);
        (role < need).then(|| {
            format!("this needs the role '{need}': clients of the broker have '{role}' (mqtt.role)")
        })
    }

    /// Host and port of the broker; `None`: there is none.
    pub fn address(&self) -> Result<Option<(String, u16)>> {
        let Some(text) = &self.broker else { return Ok(None) };
        let wrong =
            || Error::bad_input(format!("mqtt.broker: expected host or host:port, found '{text}'"));
        if text.contains("://") || text.is_empty() || text.contains(char::is_whitespace) {
            return Err(wrong().hint(
                "there is no TLS to brokers: use a port without it, in a network that you trust",
            ));
        }
        // An address of IPv6 has colons of its own, and stands in brackets where a port follows.
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, port.parse().map_err(|_| wrong())?)
            }
            _ => (text.as_str(), PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || port == 0 { Err(wrong()) } else { Ok(Some((host.into(), port))) }
    }

    /// Name and password, where there is a user.
    ///
    /// # Errors
    /// The password's file can't be read, or others can read it.
    pub fn credentials(&self) -> Result<Option<(String, String)>> {
        let Some(user) = &self.user else { return Ok(None) };
        let password = self.password_file.as_deref().map(read_secret).transpose()?;
        Ok(Some((user.clone(), password.unwrap_or_default())))
    }

    /// This board's name in topics.
    pub fn board(&self) -> String {
        let machine = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let id = self.id.clone().unwrap_or_else(|| as_id(machine().trim()));
        if id.is_empty() { "board".into() } else { id }
    }
}

/// Letters, digits, `_` and `-` alone, which topics and Home Assistant's ids allow.
fn as_id(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    text.chars().map(|c| if plain(c) { c } else { '-' }).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(broker: &str) -> MqttConfig {
        MqttConfig { broker: Some(broker.into()), ..MqttConfig::default() }
    }

    #[test]
    fn a_broker_is_a_host_and_perhaps_a_port() {
        for (text, host, port) in [
            ("box", "box", 1883),
            ("192.168.1.2:1884", "192.168.1.2", 1884),
            ("[fe80::1]:1883", "fe80::1", 1883),
            ("fe80::1", "fe80::1", 1883),
        ] {
            assert_eq!(with(text).address().unwrap(), Some((host.into(), port)));
        }
        for text in ["", ":1883", "box:", "box:x", "box:0", "mqtts://box", "two words"] {
            assert!(with(text).address().is_err(), "{text}");
        }
        assert_eq!(MqttConfig::default().address().unwrap(), None);
    }

    #[test]
    fn a_role_takes_away_what_it_may_not() {
        use Accept::{Ask, Feedback, Rollback, Train};
        let all = [Ask, Feedback, Train, Rollback];
        let may = |config: &MqttConfig| all.map(|what| config.forbids(what).is_none());
        let mut config = MqttConfig::default();
        assert_eq!(may(&config), [true; 4], "as before there were roles");
        config.role = Role::Teach;
        assert_eq!(may(&config), [true, true, false, false]);
        assert!(config.forbids(Train).unwrap().contains("needs the role 'administer'"));
        config.role = Role::Answer;
        assert_eq!(may(&config), [true, false, false, false]);
        config.role = Role::Administer;
        config.accept = vec![Ask];
        assert_eq!(may(&config), [true, false, false, false]);
        assert!(config.forbids(Train).unwrap().contains("mqtt.accept"));
    }

    #[test]
    fn what_no_topic_can_be_is_refused() {
        let check = |change: fn(&mut MqttConfig)| {
            let mut config = MqttConfig::default();
            change(&mut config);
            config.check()
        };
        assert!(check(|_| {}).is_ok());
        assert!(check(|c| c.topic = "a/b".into()).is_ok());
        assert!(check(|c| c.discovery = String::new()).is_ok());
        assert!(check(|c| c.topic = "a/+".into()).is_err());
        assert!(check(|c| c.topic = String::new()).is_err());
        assert!(check(|c| c.id = Some("a/b".into())).is_err());
        assert!(check(|c| c.password_file = Some("p".into())).is_err());
        assert_eq!(as_id("pi 5.local"), "pi-5-local");
    }
}
