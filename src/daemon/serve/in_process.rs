//! The serving side without sockets and without learning, for tests: a request in, its status out.

use super::app::{App, DISK_THREADS};
use super::connection::{Conn, Transport};
use super::guard;
use super::recent::Recent;
use crate::daemon::Config;
use crate::daemon::config::RecentConfig;
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

/// All that a request passes but the reading of its head.
pub struct InProcess {
    app: Arc<App>,
    runtime: Runtime,
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
        Ok(InProcess { app: App::new(Config::parse(config)?, engine, store)?, runtime })
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
}
