//! Whether the base's bytes are still those that were packed. Its weights are not checked when they are
//! used, so all of the file is read beside the serving, after the start and once a day, at the lowest
//! priority.

use super::app::App;
use crate::daemon::Serving;
use rustix::process::nice;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// From one check to the next.
const EVERY: Duration = Duration::from_secs(24 * 3600);
/// After each MiB, so that a slow card can be read by others meanwhile.
const PAUSE: Duration = Duration::from_millis(5);

/// What the last check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum State {
    /// None has ended yet.
    #[default]
    Unchecked,
    Whole,
    /// What differs, in words.
    Damaged(String),
}

/// The state of the base's file.
#[derive(Debug, Default)]
pub struct Integrity(Mutex<State>);

impl Integrity {
    /// What is wrong with it, in words.
    pub fn damage(&self) -> Option<String> {
        match self.state() {
            State::Damaged(what) => Some(what),
            _ => None,
        }
    }

    /// For a status: `unchecked`, `whole` or `damaged`.
    pub fn shown(&self) -> Value {
        json!(match self.state() {
            State::Unchecked => "unchecked",
            State::Whole => "whole",
            State::Damaged(_) => "damaged",
        })
    }

    fn state(&self) -> State {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, state: State) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// Checks again and again, until it is aborted or the daemon stops.
pub async fn watch(app: Arc<App>) {
    loop {
        let (done, ended) = tokio::sync::oneshot::channel();
        let checked = app.clone();
        let thread = std::thread::Builder::new().name("integrity".into()).spawn(move || {
            check(&checked);
            let _ = done.send(());
        });
        match thread {
            Ok(_) => drop(ended.await),
            Err(e) => tracing::warn!("the base's file can't be checked: no thread: {e}"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn check(app: &App) {
    // Of this thread alone, on Linux. Without it the pauses are what others have.
    let _ = nice(19);
    let mut go_on = || {
        std::thread::sleep(PAUSE);
        !*app.stop.borrow()
    };
    match app.engine().base().verify_while(&mut go_on) {
        Ok(true) => app.integrity.set(State::Whole),
        Ok(false) => {}
        Err(e) => {
            tracing::error!(
                "the base is damaged, answers may be wrong and nothing is learned: {e}"
            );
            app.integrity.set(State::Damaged(e.to_string()));
        }
    }
}
