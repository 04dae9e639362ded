//! The daemon's configuration: a TOML file, every value checked before any is used.

use super::allowed::LEAST_MEMORY;
pub use super::allowed::Limits;
use super::hooks::HookConfig;
use super::learn::{
    ConditionSettings, GateSettings, Settings, TrainSettings, TrialSettings, WatchSettings,
};
use super::mqtt::MqttConfig;
use super::roles::PeersConfig;
use super::wyoming::WyomingConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::fs::read_text;
use crate::quant::Threads;
use crate::store::{Quota, Rules};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the service's configuration lies.
pub const SYSTEM_CONFIG: &str = "/etc/offshoot/offshoot.toml";
/// Where the service's socket lies.
pub const SYSTEM_SOCKET: &str = "/run/offshoot/offshoot.sock";

/// Longest configuration file in bytes.
const MAX_CONFIG: u64 = 1 << 20;
/// Longest token file in bytes.
const MAX_TOKEN_FILE: u64 = 512;
/// Fewest and most characters of a token.
const TOKEN_LENGTH: std::ops::RangeInclusive<usize> = 16..=256;

/// What the daemon is told. Holding one that [`Config::read`] gave proves that its values are
/// within their ranges; whether the base is there and fits is seen when it is opened.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The packed model.
    pub base: PathBuf,
    /// The state's folder.
    #[serde(default = "system_state")]
    pub state: PathBuf,
    /// Sockets, the default adapter, threads.
    #[serde(default)]
    pub serve: ServeConfig,
    /// What users of the socket may do.
    #[serde(default)]
    pub peers: PeersConfig,
    /// What clients may ask for at once.
    #[serde(default)]
    pub limits: Limits,
    /// What is kept of samples.
    #[serde(default)]
    pub samples: SampleConfig,
    /// Which answers are kept for people to look at.
    #[serde(default)]
    pub recent: RecentConfig,
    /// The broker of a home.
    #[serde(default)]
    pub mqtt: MqttConfig,
    /// Where Home Assistant's voice asks.
    #[serde(default)]
    pub wyoming: WyomingConfig,
    /// Servers that are told what happens.
    #[serde(default, rename = "webhook", skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<HookConfig>,
    /// What is logged.
    #[serde(default)]
    pub log: LogConfig,
    /// How it trains.
    #[serde(default)]
    pub train: TrainSettings,
    /// When it trains.
    #[serde(default)]
    pub conditions: ConditionSettings,
    /// What a candidate must show.
    #[serde(default)]
    pub gate: GateSettings,
    /// How long a new generation is on trial.
    #[serde(default)]
    pub trial: TrialSettings,
    /// When live feedback takes a generation back.
    #[serde(default)]
    pub watch: WatchSettings,
}

/// `[serve]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeConfig {
    /// The Unix socket.
    pub socket: PathBuf,
    /// The socket's group, where the daemon makes it.
    pub socket_group: Option<String>,
    /// A loopback address for HTTP over TCP.
    pub tcp: Option<SocketAddr>,
    /// A file with one more token of the TCP port, which may do everything.
    pub token_file: Option<PathBuf>,
    /// What a `Host` header may name on the TCP port, without the port.
    pub hosts: Vec<String>,
    /// Whether `tcp` may be an address that other machines reach. There is no TLS: the token and what
    /// is asked pass the network in plain, unless a proxy stands before it.
    pub network: bool,
    /// The adapter for requests that name none.
    pub adapter: Option<String>,
    /// Whether feedback to classes changes answers at once, by an instant head.
    pub instant: bool,
    /// Threads that run the base; 0: one for each core.
    pub workers: usize,
    /// Threads that a request's run shares its work between, where no other run has them.
    pub threads: usize,
}

impl Default for ServeConfig {
    fn default() -> ServeConfig {
        ServeConfig {
            socket: PathBuf::from(SYSTEM_SOCKET),
            socket_group: None,
            tcp: None,
            token_file: None,
            hosts: ["localhost", "127.0.0.1", "[::1]"].map(String::from).to_vec(),
            network: false,
            adapter: None,
            instant: true,
            workers: 0,
            threads: 1,
        }
    }
}

/// `[samples]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SampleConfig {
    /// Most samples in use of one adapter.
    pub max_samples: u64,
    /// Most bytes of their inputs.
    pub max_bytes: u64,
    /// Most generations kept of one adapter.
    pub max_generations: u64,
    /// Most adapters, those without a generation too.
    pub max_names: u64,
    /// Most bytes of the inputs of all adapters' samples.
    pub max_total_bytes: u64,
    /// Share of each class that training never sees.
    pub hold_out: f64,
    /// The labels that there are; others go to quarantine. Empty: any.
    pub labels: Vec<String>,
    /// New samples that one source may bring in an hour. 0: any number.
    pub source_per_hour: u32,
    /// Greatest share of the newest samples that one of several sources may have.
    pub source_share: f64,
    /// The key that encrypts them.
    pub key_file: Option<PathBuf>,
}

impl Default for SampleConfig {
    fn default() -> SampleConfig {
        let Rules { quota, hold_out, labels, source_per_hour, source_share } = Rules::default();
        SampleConfig {
            max_samples: quota.max_samples,
            max_bytes: quota.max_bytes,
            max_generations: quota.max_generations,
            max_names: quota.max_names,
            max_total_bytes: quota.max_total_bytes,
            hold_out,
            labels,
            source_per_hour,
            source_share,
            key_file: None,
        }
    }
}

impl SampleConfig {
    /// As the store takes them.
    pub fn rules(&self) -> Rules {
        Rules {
            quota: Quota {
                max_samples: self.max_samples,
                max_bytes: self.max_bytes,
                max_generations: self.max_generations,
                max_names: self.max_names,
                max_total_bytes: self.max_total_bytes,
            },
            hold_out: self.hold_out,
            labels: self.labels.clone(),
            source_per_hour: self.source_per_hour,
            source_share: self.source_share,
        }
    }
}

/// `[recent]`: answers that the page shows, to be confirmed or corrected. Nothing is kept without the
/// TCP port, which serves the page, nor where samples are encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecentConfig {
    /// Whether those to pictures are kept.
    pub pictures: bool,
    /// Whether those to sentences are kept.
    pub text: bool,
    /// Most bytes of their inputs.
    pub max_bytes: u64,
}

impl Default for RecentConfig {
    fn default() -> RecentConfig {
        RecentConfig { pictures: true, text: false, max_bytes: 64 << 20 }
    }
}

/// `[log]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// The least severe level that is written.
    pub level: Level,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// What needs a person.
    Error,
    /// What may need one.
    Warn,
    /// Starts, switches, decisions.
    #[default]
    Info,
    /// Every request.
    Debug,
}

impl Level {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }
}

fn system_state() -> PathBuf {
    PathBuf::from("/var/lib/offshoot")
}

impl Config {
    /// A configuration of defaults for this base, state and socket.
    pub fn new(base: PathBuf, state: PathBuf, socket: PathBuf) -> Config {
        Config {
            base,
            state,
            serve: ServeConfig { socket, ..ServeConfig::default() },
            peers: PeersConfig::default(),
            limits: Limits::default(),
            recent: RecentConfig::default(),
            samples: SampleConfig::default(),
            mqtt: MqttConfig::default(),
            wyoming: WyomingConfig::default(),
            webhooks: vec![],
            log: LogConfig::default(),
            train: TrainSettings::default(),
            conditions: ConditionSettings::default(),
            gate: GateSettings::default(),
            trial: TrialSettings::default(),
            watch: WatchSettings::default(),
        }
    }

    /// Reads and checks a file. Relative paths in it start at the file's folder.
    ///
    /// # Errors
    /// Bad input: no TOML, an unknown key, a value out of its range; the message names it.
    pub fn read(path: &Path) -> Result<Config> {
        let place = |e: Error| e.at(path.display());
        let mut config = Config::parse(&read_text(path, MAX_CONFIG)?).map_err(place)?;
        config.below(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    /// Reads and checks the text of a file.
    pub fn parse(text: &str) -> Result<Config> {
        let config: Config = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|s| {
                let before = text.get(..s.start).unwrap_or_default();
                format!("line {}: ", before.matches('\n').count() + 1)
            });
            Error::bad_input(format!("{}{}", line.unwrap_or_default(), e.message()))
        })?;
        config.check()?;
        Ok(config)
    }

    /// Puts relative paths below `folder`.
    fn below(&mut self, folder: &Path) {
        let serve = &mut self.serve;
        let paths = [Some(&mut self.base), Some(&mut self.state), Some(&mut serve.socket)];
        let optional = [
            serve.token_file.as_mut(),
            self.samples.key_file.as_mut(),
            self.mqtt.password_file.as_mut(),
            self.gate.retention_data.as_mut(),
        ];
        let hooks = self.webhooks.iter_mut().map(|hook| hook.secret_file.as_mut());
        for path in paths.into_iter().chain(optional).chain(hooks).flatten() {
            *path = folder.join(&*path);
        }
    }

    /// An error that names the first value out of its range (bad input).
    pub fn check(&self) -> Result<()> {
        self.mqtt.check()?;
        self.wyoming.check()?;
        super::hooks::check(&self.webhooks)?;
        let l = &self.limits;
        number("limits.connections", l.connections as u64, 1, 4096)?;
        number("recent.max_bytes", self.recent.max_bytes, 0, 1 << 40)?;
        number("limits.queue", l.queue as u64, 1, 65_536)?;
        number("limits.tokens", l.tokens as u64, 1, 65_536)?;
        number("limits.batch", l.batch as u64, 1, 64)?;
        number("limits.body_bytes", l.body_bytes as u64, 1024, 1 << 30)?;
        number("limits.adapters", l.adapters as u64, 1, 1024)?;
        if l.memory_bytes > 0 {
            number("limits.memory_bytes", l.memory_bytes, LEAST_MEMORY, 1 << 44)?;
        }
        seconds("limits.header_seconds", l.header_seconds)?;
        seconds("limits.body_seconds", l.body_seconds)?;
        seconds("limits.request_seconds", l.request_seconds)?;
        seconds("limits.shutdown_seconds", l.shutdown_seconds)?;
        number("serve.workers", self.serve.workers as u64, 0, 256)?;
        number("serve.threads", self.serve.threads as u64, 1, Threads::MOST as u64)?;
        self.samples.rules().validate().map_err(|e| bad("samples", e.message().to_string()))?;
        self.settings()
            .validate()
            .map_err(|e| Error::new(ErrorKind::BadInput, e.message().to_string()))?;
        if self.base.as_os_str().is_empty() {
            return Err(Error::bad_input("base: expected a file, found nothing"));
        }
        if let Some(name) = &self.serve.adapter {
            crate::store::check_name(name)
                .map_err(|e| bad("serve.adapter", e.message().to_string()))?;
        }
        self.check_tcp()
    }

    fn check_tcp(&self) -> Result<()> {
        let serve = &self.serve;
        let Some(address) = serve.tcp else { return Ok(()) };
        if !address.ip().is_loopback() && !serve.network {
            let found = format!("expected a loopback address, found '{address}'");
            return Err(bad("serve.tcp", found).hint(
                "the daemon has no TLS: let a proxy serve other machines, or set serve.network = true \
                 in a network that you trust",
            ));
        }
        if serve.hosts.is_empty() {
            return Err(bad("serve.hosts", "expected at least one name".into()));
        }
        Ok(())
    }

    /// What the learner is told.
    pub fn settings(&self) -> Settings {
        Settings {
            train: self.train.clone(),
            conditions: self.conditions.clone(),
            gate: self.gate.clone(),
            trial: self.trial.clone(),
            watch: self.watch.clone(),
        }
    }

    /// The number of worker threads.
    pub fn worker_count(&self) -> usize {
        match self.serve.workers {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        }
    }

    /// The token of `serve.token_file`, if there is a TCP port.
    ///
    /// # Errors
    /// The file can't be read; too short, too long, or not one line of visible ASCII (bad input).
    pub fn token(&self) -> Result<Option<String>> {
        let (Some(_), Some(path)) = (self.serve.tcp, &self.serve.token_file) else {
            return Ok(None);
        };
        read_token(path).map(Some)
    }

    /// Puts what takes a restart back to what the `running` daemon has; gives the keys that
    /// differed.
    pub fn keep_fixed(&mut self, running: &Config) -> Vec<&'static str> {
        fn put_back<T: Clone + PartialEq>(new: &mut T, running: &T) -> bool {
            let differs = new != running;
            if differs {
                *new = running.clone();
            }
            differs
        }
        let (new, old) = (&mut self.serve, &running.serve);
        let keys = [
            ("base", put_back(&mut self.base, &running.base)),
            ("state", put_back(&mut self.state, &running.state)),
            ("serve.socket", put_back(&mut new.socket, &old.socket)),
            ("serve.socket_group", put_back(&mut new.socket_group, &old.socket_group)),
            ("serve.tcp", put_back(&mut new.tcp, &old.tcp)),
            ("serve.instant", put_back(&mut new.instant, &old.instant)),
            ("serve.workers", put_back(&mut new.workers, &old.workers)),
            ("serve.threads", put_back(&mut new.threads, &old.threads)),
            ("mqtt", put_back(&mut self.mqtt, &running.mqtt)),
            ("wyoming", put_back(&mut self.wyoming, &running.wyoming)),
            ("webhook", put_back(&mut self.webhooks, &running.webhooks)),
            ("recent", put_back(&mut self.recent, &running.recent)),
            ("samples.key_file", put_back(&mut self.samples.key_file, &running.samples.key_file)),
        ];
        keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

/// Reads a token: one line of 16 to 256 visible ASCII characters, in a file that others can't read
/// and the group can't write.
pub fn read_token(path: &Path) -> Result<String> {
    let token = read_secret(path)?;
    let visible = token.bytes().all(|b| b.is_ascii_graphic());
    if !TOKEN_LENGTH.contains(&token.len()) || !visible {
        return Err(Error::bad_input(format!(
            "'{}': expected a token of {} to {} visible ASCII characters on one line",
            path.display(),
            TOKEN_LENGTH.start(),
            TOKEN_LENGTH.end()
        )));
    }
    Ok(token)
}

/// Reads a token or password from a file that others can't read and the group can't write, without the
/// space around it.
pub fn read_secret(path: &Path) -> Result<String> {
    let text = read_text(path, MAX_TOKEN_FILE)?;
    let mode = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.mode();
    if mode & 0o027 != 0 {
        let shown = path.display();
        return Err(Error::bad_input(format!(
            "token file '{shown}' has mode {:04o}: others can use it",
            mode & 0o7777
        ))
        .hint(format!("chmod 640 {shown}")));
    }
    Ok(text.trim().to_string())
}

fn bad(key: &str, what: String) -> Error {
    Error::new(ErrorKind::BadInput, format!("{key}: {what}"))
}

fn number(key: &str, found: u64, least: u64, most: u64) -> Result<()> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(bad(key, format!("expected {least} to {most}, found {found}")))
}

fn seconds(key: &str, found: f64) -> Result<()> {
    if (0.05..=3600.0).contains(&found) {
        return Ok(());
    }
    Err(bad(key, format!("expected 0.05 to 3600 seconds, found {found}")))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
