//! Adapters that are kept ready for a while.

use super::roster::Served;
use std::sync::Arc;

/// What is ready beside the active generations, the latest used last.
#[derive(Default)]
pub struct Kept {
    /// Each by what it is asked for.
    pub list: Vec<(String, Arc<Served>)>,
    /// Counts removals: what was loaded before one may be of a generation that is gone.
    pub removals: u64,
    /// Most that are kept.
    pub capacity: usize,
}

impl Kept {
    /// Takes it out.
    pub fn take(&mut self, key: &str) -> Option<Arc<Served>> {
        let at = self.list.iter().position(|(k, _)| k == key)?;
        Some(self.list.remove(at).1)
    }

    /// Keeps what was loaded after so many removals, unless there was another one since.
    pub fn put(&mut self, key: String, served: Arc<Served>, removals: u64) {
        if self.removals != removals {
            return;
        }
        drop(self.take(&key));
        let excess = (self.list.len() + 1).saturating_sub(self.capacity);
        self.list.drain(..excess);
        self.list.push((key, served));
    }

    /// Keeps these only, as after a removal.
    pub fn retain(&mut self, still: impl Fn(&Served) -> bool) {
        self.list.retain(|(_, served)| still(served));
        self.removals += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_used_are_kept_but_nothing_from_before_a_removal() {
        let mut kept = Kept { capacity: 2, ..Kept::default() };
        let served = Arc::<Served>::default();
        for key in ["a@1", "b@1", "b@1", "c@1"] {
            kept.put(key.into(), served.clone(), 0);
        }
        let keys: Vec<&str> = kept.list.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["b@1", "c@1"]);
        // Its generation may be forgotten between being read and being kept.
        kept.retain(|_| true);
        kept.put("d@1".into(), served.clone(), 0);
        assert!(kept.take("d@1").is_none());
        kept.put("d@1".into(), served, 1);
        assert!(kept.take("d@1").is_some() && kept.take("c@1").is_some());
    }
}
