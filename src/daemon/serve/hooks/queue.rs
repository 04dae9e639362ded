//! The messages of a webhook that wait, in order: bounded, and kept over a restart.

use crate::error::{Error, Result};
use crate::fs::{Access, read_limited, write_atomic_bytes};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::Path;

const VERSION: u32 = 1;
/// Bytes of all messages that wait.
const MOST_BYTES: usize = 4 << 20;
/// Longest file in bytes: each byte of a message may take several as JSON.
const MAX_FILE: u64 = 64 << 20;

/// What is to be told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Message {
    /// Its own: who gets it twice knows it by that.
    pub id: String,
    /// The JSON that is sent.
    pub body: String,
    /// Whether it is an answer's: those go first where there are too many.
    pub answer: bool,
}

/// What waits, and what became of the rest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Queue {
    version: u32,
    /// The last of the state's events that was looked at.
    pub event: Option<i64>,
    /// Messages that a server took.
    pub delivered: u64,
    /// Messages that there was no room for.
    pub dropped: u64,
    /// Messages that a server refused for good.
    pub refused: u64,
    /// When the last was delivered, in seconds since 1970-01-01 UTC.
    pub last_success: Option<u64>,
    waiting: VecDeque<Message>,
}

impl Queue {
    /// An empty one.
    pub fn new() -> Queue {
        Queue {
            version: VERSION,
            event: None,
            delivered: 0,
            dropped: 0,
            refused: 0,
            last_success: None,
            waiting: VecDeque::new(),
        }
    }

    /// What a file holds; an empty one where there is no file.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn read(path: &Path) -> Result<Queue> {
        let missing = std::fs::symlink_metadata(path)
            .is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
        if missing {
            return Ok(Queue::new());
        }
        let queue: Queue = serde_json::from_slice(&read_limited(path, MAX_FILE)?)
            .map_err(|e| Error::bad_input(format!("'{}' is no queue: {e}", path.display())))?;
        match queue.version {
            VERSION => Ok(queue),
            other => Err(Error::bad_input(format!(
                "'{}': expected version {VERSION}, found {other}",
                path.display()
            ))),
        }
    }

    /// An empty one, beside which a file that can't be used stays under another name, where it can.
    pub fn put_aside(path: &Path) -> Queue {
        let aside = path.with_extension("damaged");
        match std::fs::rename(path, &aside) {
            Ok(()) => tracing::warn!("its file is '{}' now", aside.display()),
            Err(e) => tracing::error!("'{}' can't be put aside: {e}", path.display()),
        }
        Queue::new()
    }

    /// Writes it as a whole, for its owner alone.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec(self)
            .map_err(|e| Error::failed(format!("a queue can't be written: {e}")))?;
        write_atomic_bytes(path, Access::Private, &text)
    }

    /// Whether it would start again as `other`.
    pub fn waits_as(&self, other: &Queue) -> bool {
        let lost = |queue: &Queue| (queue.event, queue.dropped, queue.refused);
        lost(self) == lost(other) && self.waiting == other.waiting
    }

    /// Without the answers, which say what was asked about.
    pub fn without_answers(mut self) -> Queue {
        self.waiting.retain(|message| !message.answer);
        self
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes of what waits.
    pub fn bytes(&self) -> usize {
        self.waiting.iter().map(|message| message.body.len()).sum()
    }

    /// The next to be sent.
    pub fn front(&self) -> Option<&Message> {
        self.waiting.front()
    }

    /// One more, of `most` at most. What there is no room for is dropped: the oldest answer, else the oldest,
    /// but never the next, which is on its way.
    pub fn push(&mut self, message: Message, most: usize) {
        self.waiting.push_back(message);
        while self.waiting.len() > most.max(2)
            || (self.bytes() > MOST_BYTES && self.waiting.len() > 2)
        {
            let after = || self.waiting.iter().enumerate().skip(1);
            let at = after().find(|(_, m)| m.answer).map_or(1, |(at, _)| at);
            self.waiting.remove(at);
            self.dropped += 1;
        }
    }

    /// Takes the next away, if it is the one of this id.
    pub fn take(&mut self, id: &str) -> bool {
        let is = self.waiting.front().is_some_and(|message| message.id == id);
        if is {
            self.waiting.pop_front();
        }
        is
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str, answer: bool) -> Message {
        Message { id: id.into(), body: "{}".into(), answer }
    }

    fn ids(queue: &Queue) -> Vec<&str> {
        queue.waiting.iter().map(|m| m.id.as_str()).collect()
    }

    #[test]
    fn answers_go_before_what_happens_seldom_and_the_next_never() {
        let mut queue = Queue::new();
        for (id, answer) in [("a", true), ("b", false), ("c", true), ("d", true)] {
            queue.push(message(id, answer), 4);
        }
        assert_eq!((ids(&queue).join(""), queue.dropped), ("abcd".into(), 0));
        queue.push(message("e", false), 4);
        assert_eq!((ids(&queue).join(""), queue.dropped), ("abde".into(), 1));
        queue.push(message("f", false), 4);
        queue.push(message("g", false), 4);
        assert_eq!((ids(&queue).join(""), queue.dropped), ("aefg".into(), 3));
        assert!(!queue.take("e") && queue.take("a") && queue.take("e") && !queue.take("e"));
        assert_eq!(queue.front().map(|m| m.id.as_str()), Some("f"));
        // By their bytes.
        for i in 0..10 {
            let body = "x".repeat(1 << 20);
            queue.push(Message { id: i.to_string(), body, answer: false }, 1000);
        }
        assert!(queue.bytes() <= MOST_BYTES && queue.len() >= 4, "{}", queue.len());
        assert_eq!(queue.front().map(|m| m.id.as_str()), Some("f"));
    }

    #[test]
    fn what_waits_is_kept_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.json");
        let mut queue = Queue::read(&path).unwrap();
        for i in 0..5 {
            queue.push(message(&i.to_string(), i % 2 == 0), 10);
        }
        queue.event = Some(7);
        queue.write(&path).unwrap();
        assert_eq!(Queue::read(&path).unwrap(), queue);
        assert_eq!(ids(&queue.clone().without_answers()), ["1", "3"]);
        for bad in ["", "{}", "{\"version\": 9}", "[]"] {
            std::fs::write(&path, bad).unwrap();
            assert!(Queue::read(&path).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("home.hall.json");
        std::fs::write(&path, b"{\"version\":1,").unwrap();
        assert!(Queue::read(&path).is_err());
        assert_eq!(Queue::put_aside(&path), Queue::new());
        assert!(!path.exists());
        let aside = std::fs::read(folder.path().join("home.hall.damaged")).unwrap();
        assert_eq!(aside, b"{\"version\":1,");
    }
}
