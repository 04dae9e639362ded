//! Instant heads among what is served: in the place of a name's generation, or where none can be served.

use super::{Roster, Served};
use crate::daemon::serve::problem::Problem;
use crate::error::{Error, Result};
use std::sync::{Arc, PoisonError};

impl Roster {
    /// What answers for a name: its instant head, where there is one for the active generation, or
    /// for the base where no generation can be served.
    pub(super) fn answering(&self, name: &str) -> Result<Arc<Served>, Problem> {
        let own = self.active(name)?;
        let instants = self.instants.read().unwrap_or_else(PoisonError::into_inner);
        let fits = |i: &&Arc<Served>| i.generation == own.generation && !own.stands_in();
        Ok(match instants.get(name).filter(fits) {
            Some(instant) if own.instead.is_some() => {
                Arc::new(Served { instead: own.instead.clone(), ..(**instant).clone() })
            }
            Some(instant) => instant.clone(),
            None => own,
        })
    }

    /// What the store has for a name; the base, where none of its generations can be served.
    ///
    /// # Errors
    /// There is no such name (usage), or an older generation stands in for its active one (failed).
    pub fn own(&self, name: &str) -> Result<Arc<Served>> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let entry = names.get(name).ok_or_else(|| Error::usage(format!("no adapter '{name}'")))?;
        match &entry.served.instead {
            Some(instead) if entry.served.stands_in() => Err(Error::failed(instead.why.clone())),
            _ => Ok(entry.served.clone()),
        }
    }

    /// Has `served` answer for a name while its generation is the active one; `None`: the generation
    /// itself.
    pub fn set_instant(&self, name: &str, served: Option<Arc<Served>>) {
        let mut instants = self.instants.write().unwrap_or_else(PoisonError::into_inner);
        match served {
            Some(served) => drop(instants.insert(name.into(), served)),
            None => drop(instants.remove(name)),
        }
    }

    /// Has every generation answer for itself.
    pub fn drop_instants(&self) {
        self.instants.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
