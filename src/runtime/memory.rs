//! A limit on the memory of runs, shared by all that are at work at once.

use super::engine::Engine;
use crate::error::{Cause, Error, Result};
use crate::fs::available_bytes;
use crate::graph::{Halt, More};
use crate::shape::Input;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// From this size on the machine is asked too whether it has so much.
const ASK_SYSTEM: u64 = 16 << 20;

/// How much all runs may take at once, and how much they have. Cheap to clone; clones are one limit.
#[derive(Clone, Debug)]
pub struct MemoryLimit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: AtomicU64,
    taken: Mutex<u64>,
}

/// Bytes taken of a [`MemoryLimit`]; given back when it is dropped.
#[derive(Debug)]
pub struct Taken {
    from: MemoryLimit,
    bytes: u64,
}

impl MemoryLimit {
    /// A limit of `bytes`.
    pub fn new(bytes: u64) -> MemoryLimit {
        MemoryLimit(Arc::new(Inner { limit: AtomicU64::new(bytes), taken: Mutex::new(0) }))
    }

    /// The limit in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.limit.load(Ordering::Relaxed)
    }

    /// Changes the limit; what is taken stays so.
    pub fn set(&self, bytes: u64) {
        self.0.limit.store(bytes, Ordering::Relaxed);
    }

    /// Bytes taken now.
    pub fn taken(&self) -> u64 {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `bytes`.
    ///
    /// # Errors
    /// More than the limit alone ([`Cause::TooLarge`]), or than what others leave of it or the
    /// machine has at this moment ([`Cause::Short`]); both of kind refused.
    pub fn take(&self, bytes: u64) -> Result<Taken> {
        let mut taken = Taken { from: self.clone(), bytes: 0 };
        taken.grow(bytes)?;
        Ok(taken)
    }
}

impl Taken {
    /// Takes `more` bytes.
    ///
    /// # Errors
    /// As [`MemoryLimit::take`]: what it had it keeps.
    pub fn grow(&mut self, more: u64) -> Result<()> {
        let limit = self.from.bytes();
        let wanted = self.bytes.saturating_add(more);
        if wanted > limit {
            return Err(Error::refused(format!(
                "this takes {} of memory, the limit is {}",
                shown(wanted),
                shown(limit)
            ))
            .because(Cause::TooLarge)
            .hint("ask for less at once: fewer rows, a shorter text, a smaller picture"));
        }
        let short = |free: u64| {
            let needed = shown(more);
            Error::refused(format!("this takes {needed} more of memory, {} are free", shown(free)))
                .because(Cause::Short)
                .hint("ask again in a while")
        };
        if more >= ASK_SYSTEM
            && let Some(free) = available_bytes().filter(|free| *free < more)
        {
            return Err(short(free));
        }
        let mut taken = self.from.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let after = taken.saturating_add(more);
        if after > limit {
            return Err(short(limit.saturating_sub(*taken)));
        }
        *taken = after;
        self.bytes = wanted;
        Ok(())
    }

    /// Gives back all but `bytes`.
    pub fn shrink(&mut self, bytes: u64) {
        let surplus = self.bytes.saturating_sub(bytes);
        self.bytes -= surplus;
        let mut taken = self.from.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = taken.saturating_sub(surplus);
    }

    /// How much it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

impl Engine {
    /// Bytes that a run with inputs of these shapes takes, beside the base and the inputs themselves:
    /// its values, its outputs twice. 0 for values whose sizes only a run tells.
    ///
    /// # Errors
    /// As [`Engine::run`], but for memory.
    pub fn planned_bytes<I: Input>(&self, inputs: &[I]) -> Result<u64> {
        let ordered = self.ordered(inputs)?;
        Ok(self.plan(&self.binding(&ordered)?)?.bytes)
    }
}

/// Takes what a run needs beyond its plan to what it has taken.
pub(super) fn more(taken: Arc<Mutex<Taken>>) -> More {
    Arc::new(move |bytes| {
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.grow(bytes).map_err(|e| match e.cause() {
            Some(Cause::Short) => Halt::Short { bytes },
            _ => Halt::TooLarge { bytes },
        })
    })
}

/// Bytes as people read them.
fn shown(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1000)),
        1_000_000..10_000_000_000 => format!("{} MB", bytes.div_ceil(1_000_000)),
        _ => format!("{} GB", bytes.div_ceil(1_000_000_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_take_stays_below_the_limit() {
        let limit = MemoryLimit::new(100);
        let cause = |e: Error| e.cause();
        assert_eq!(limit.take(101).map_err(cause).unwrap_err(), Some(Cause::TooLarge));
        let mut first = limit.take(60).unwrap();
        assert_eq!(limit.take(41).map_err(cause).unwrap_err(), Some(Cause::Short));
        let second = limit.take(40).unwrap();
        assert_eq!(limit.taken(), 100);
        assert_eq!(first.grow(1).map_err(cause).unwrap_err(), Some(Cause::Short));
        drop(second);
        first.grow(40).unwrap();
        first.shrink(10);
        assert_eq!((first.bytes(), limit.taken()), (10, 10));
        limit.set(5);
        assert_eq!(first.grow(1).map_err(cause).unwrap_err(), Some(Cause::TooLarge));
        drop(first);
        assert_eq!(limit.taken(), 0);
    }

    #[test]
    fn the_machine_is_asked_about_what_is_large() {
        let limit = MemoryLimit::new(u64::MAX);
        assert_eq!(limit.take(1 << 60).unwrap_err().cause(), Some(Cause::Short));
    }
}
