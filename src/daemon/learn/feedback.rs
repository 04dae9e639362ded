//! What live feedback says of the active generation, and going back where it is worse.

use super::gate::allowance;
use super::learner::{MONTH, Shared};
use super::watch::{Tally, is_look, reached, watch};
use crate::error::Result;
use crate::store::{How, Switch};

impl Shared {
    /// Compares live feedback, and goes back where it is worse.
    pub(super) fn look_after(&self, name: &str) -> Result<()> {
        let Some(generation) = self.store.name(name)?.active else { return Ok(()) };
        let history = self.store.history(name)?;
        let at = history.iter().rposition(|s| s.generation == Some(generation));
        let Some((switch, past)) = at.and_then(|at| Some((history.get(at)?, history.get(..at)?)))
        else {
            return Ok(());
        };
        // One that was gone back to has proven itself before.
        if switch.how != How::Activated {
            return Ok(());
        }
        let tally = |of: Option<u64>| -> Result<Tally> {
            // 0: the base.
            let found = self.store.outcomes(name, of.unwrap_or(0))?;
            Ok(Tally { right: found.right, total: found.total })
        };
        let settings = self.settings().watch;
        let recent = |s: &&Switch| s.time.saturating_add(MONTH) > switch.time;
        let earlier = past.iter().filter(|s| s.how == How::Activated).filter(recent);
        let alpha = allowance(settings.false_rollbacks, earlier.count() as u64);
        let now = tally(Some(generation))?;
        let look = reached(now.total, &settings);
        let due = {
            let last = self.board().looks.insert(name.into(), (generation, look));
            match last.filter(|(of, _)| *of == generation) {
                Some((_, last)) => look > last,
                // After a restart it isn't known whether this look was taken.
                None => is_look(now.total, &settings),
            }
        };
        let watched = watch(now, tally(switch.before)?, &settings, alpha, due);
        if watched.worse {
            let why = format!("live feedback is worse: {}", watched.sentence);
            let switched = self.store.rollback(name, Some(Some(generation)), &why)?;
            self.board().trials.remove(name);
            self.refresh(name);
            let to = switched.active.map_or("the base".into(), |g| format!("generation {g}"));
            let text = format!("generation {generation} was taken back for {to}: {why}");
            self.tell("watch", Some(name), &text, serde_json::to_value(&watched).ok());
        }
        self.board().watched.insert(name.into(), watched);
        Ok(())
    }
}
