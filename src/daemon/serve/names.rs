//! What is told of each name, whichever way: by status, metrics and a home's broker.

use super::app::App;
use super::roster::Instead;
use crate::error::Result;
use crate::store::{Counts, NameEntry, Outcomes};
use std::collections::HashMap;
use std::sync::Arc;

/// A name with what is known of it.
pub struct Named {
    /// As the store has it.
    pub entry: NameEntry,
    /// The generation that answers; `None`: the base, or an instant head on it.
    pub served: Option<u64>,
    /// Why the active generation doesn't.
    pub fault: Option<Arc<Instead>>,
    /// Its samples.
    pub samples: Counts,
    /// What people said of the active generation's answers.
    pub outcomes: Outcomes,
}

/// All names, or the first `most`, sorted.
///
/// # Errors
/// The state can't be read.
pub fn names(app: &App, most: usize) -> Result<Vec<Named>> {
    let served: HashMap<_, _> =
        app.roster.list().into_iter().map(|row| (row.name.clone(), row)).collect();
    let one = |entry: NameEntry| {
        let row = served.get(&entry.name);
        Ok(Named {
            served: row.and_then(|row| row.generation),
            fault: row.and_then(|row| row.instead.clone()),
            samples: app.store.counts(&entry.name)?,
            outcomes: app.store.outcomes(&entry.name, entry.active.unwrap_or(0))?,
            entry,
        })
    };
    app.store.names()?.into_iter().take(most).map(one).collect()
}
