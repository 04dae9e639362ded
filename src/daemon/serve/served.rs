//! What answers, and what is asked to.

use super::problem::Problem;
use crate::adapter::Bound;
use crate::store::Reference;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// What answers a request. It stays what it is while requests hold it.
#[derive(Clone, Default)]
pub struct Served {
    /// The adapter's name; `None`: the base alone, or several adapters.
    pub name: Option<String>,
    /// Its generation; `None`: the base alone.
    pub generation: Option<u64>,
    /// Ready to run.
    pub bound: Option<Arc<Bound>>,
    /// What it answers in the place of.
    pub instead: Option<Arc<Instead>>,
    /// Why no generation of the name answers, in words.
    pub silence: Option<Arc<str>>,
    /// Of how many samples its head was made at once, where that answers and not the generation's own.
    pub instant: Option<usize>,
}

impl Served {
    /// Whether it is an older generation in the place of the active one.
    pub fn stands_in(&self) -> bool {
        self.instead.is_some() && self.generation.is_some()
    }
}

/// A generation that should answer and can't.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instead {
    /// The generation.
    pub generation: u64,
    /// Why it can't.
    pub why: String,
}

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Selection {
    /// What the daemon is set to.
    #[default]
    Default,
    /// The base alone.
    Base,
    /// The active generation of a name, or a generation.
    Named(Reference),
    /// Active generations with their weights, summed.
    Mix(Vec<(String, f32)>),
}

/// A name as it is listed.
pub struct Row {
    /// Its number, which stays while others come and go; from 0.
    pub id: usize,
    /// The name.
    pub name: String,
    /// The generation that is served; `None`: the base.
    pub generation: Option<u64>,
    /// The active generation, where that can't be served.
    pub instead: Option<Arc<Instead>>,
}

/// Changes with every commit of any process: time and length of the database and its log.
pub type Stamp = [Option<(SystemTime, u64)>; 2];

/// Time and length of a file, where it is there.
pub fn stamp(path: PathBuf) -> Option<(SystemTime, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// 404 for an adapter that is not there.
pub fn unknown(name: &str) -> Problem {
    Problem::not_found(format!("there is no adapter '{name}'")).hint("see GET /v1/adapters")
}
