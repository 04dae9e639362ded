//! Messages of the broker that wait to be done.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Messages that wait to be done. Further ones are left to the broker, as are those that together are
/// larger than a body may be.
const MESSAGES: usize = 1000;

/// Messages that wait, counted by who lets them in and by who does them.
pub struct Backlog {
    most_bytes: usize,
    messages: AtomicUsize,
    bytes: AtomicUsize,
    /// Some were turned away: all are until the next connection, so that none is done before them.
    full: AtomicBool,
    /// Connections that were lost. Brokers may number messages anew with the next.
    connections: AtomicUsize,
}

impl Backlog {
    pub fn new(most_bytes: usize) -> Backlog {
        let none = || AtomicUsize::new(0);
        let full = AtomicBool::new(false);
        Backlog { most_bytes, messages: none(), bytes: none(), full, connections: none() }
    }

    /// A connection was made: all may enter.
    pub fn open(&self) {
        self.full.store(false, Ordering::Release);
    }

    /// The connection is lost: from now on nothing of it is acknowledged.
    pub fn close(&self) {
        self.connections.fetch_add(1, Ordering::AcqRel);
    }

    /// The number of the last connection.
    pub fn connection(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }

    /// Whether `connection` is the last one.
    pub fn is_of(&self, connection: usize) -> bool {
        self.connection() == connection
    }

    /// Whether some were turned away since the last connection was made.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Whether a message may wait. One alone may always.
    pub fn enter(&self, bytes: usize) -> bool {
        let others = self.messages.load(Ordering::Acquire);
        let fits = self.bytes.load(Ordering::Acquire) + bytes <= self.most_bytes;
        let room = others == 0 || (others < MESSAGES && fits);
        if self.is_full() || !room {
            self.full.store(true, Ordering::Release);
            return false;
        }
        self.messages.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        true
    }

    /// After a message was done. `true`: it was the last, and others were turned away.
    pub fn leave(&self, bytes: usize) -> bool {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.messages.fetch_sub(1, Ordering::AcqRel) == 1 && self.is_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_turned_away_is_not_overtaken() {
        let backlog = Backlog::new(10);
        assert!(backlog.enter(100), "one alone");
        assert!(!backlog.enter(1));
        assert!(backlog.leave(100), "it was the last, and another was turned away");
        assert!(!backlog.enter(1), "until the next connection");
        backlog.close();
        backlog.open();
        assert!(backlog.is_of(1) && !backlog.is_of(0));
        assert!(backlog.enter(5) && backlog.enter(5));
        assert!(!backlog.leave(5));
        assert!(!backlog.leave(5), "nobody was turned away");
    }
}
