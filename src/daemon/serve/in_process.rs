//! The serving side without sockets and without learning, for tests: a request in, its status out.

use super::api::socket_form;
use super::app::{App, DISK_THREADS};
use super::connection::{Conn, Transport};
use super::guard;
use super::hooks::Queue;
#[cfg(feature = "mqtt")]
use super::mqtt::MqttClient;
use super::recent::Recent;
use crate::daemon::Config;
use crate::daemon::config::RecentConfig;
use crate::daemon::tokens::Tokens;
use crate::error::{Error, Result};
use crate::runtime::Engine;
use crate::store::Store;
use axum::body::Body;
use axum::extract::Request;
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::Runtime;

/// How many recent answers to questions of `home` a daemon's start finds in a folder. What it can't read
/// it deletes.
pub fn recent_answers(folder: &Path) -> usize {
    let none = RecentConfig { pictures: false, text: false, ..RecentConfig::default() };
    let recent = Recent::open(folder.to_path_buf(), none);
    recent.of("home").iter().filter(|item| recent.get(item.id).is_some()).count()
}

/// Whether a daemon's start can use the tokens of the state in a folder.
pub fn tokens(folder: &Path) -> bool {
    Tokens::open(folder).damage().is_none()
}

/// Whether a daemon's start can use the file of what waits for a webhook.
pub fn hook_queue(path: &Path) -> bool {
    Queue::read(path).is_ok()
}

/// All that a request passes but the reading of its head.
pub struct InProcess {
    app: Arc<App>,
    runtime: Runtime,
    #[cfg(feature = "mqtt")]
    mqtt: Option<MqttClient>,
}

impl InProcess {
    /// With the text of a configuration; its sockets are not made.
    ///
    /// # Errors
    /// What keeps a daemon from starting.
    pub fn new(config: &str, engine: Engine, store: Store) -> Result<InProcess> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(DISK_THREADS)
            .build()
            .map_err(|e| Error::failed(format!("the runtime can't be started: {e}")))?;
        let app = App::new(Config::parse(config)?, engine, store)?;
        app.guesses.answer_at_once();
        #[cfg(feature = "mqtt")]
        let mqtt = MqttClient::new(&app)?.map(|(client, _)| client);
        Ok(InProcess {
            app,
            runtime,
            #[cfg(feature = "mqtt")]
            mqtt,
        })
    }

    /// The status of the answer, as to a client of the socket. `None`: what hyper would not take as a
    /// request.
    pub fn ask(
        &self,
        method: &str,
        uri: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Option<u16> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_vec())).ok()?;
        let conn = Arc::new(Conn::new(Transport::Unix(None)));
        let response = self.runtime.block_on(guard::handle(self.app.clone(), conn, request));
        Some(response.status().as_u16())
    }

    /// The status of what a broker's message asks for, 200 where it was done; `None` without a broker in
    /// the configuration, which is not connected to.
    #[cfg(feature = "mqtt")]
    pub fn message(&self, topic: &str, payload: &[u8]) -> Option<u16> {
        let done = self.runtime.block_on(self.mqtt.as_ref()?.done(topic, payload));
        Some(done.map_or_else(|problem| problem.status.as_u16(), |()| 200))
    }

    /// What the page's forms carry for users of the socket; `None` without random numbers.
    pub fn form_token(&self) -> Option<String> {
        socket_form()
    }
}
