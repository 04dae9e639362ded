//! How far an import has come: told by the worker on its standard error, one line at a time, and
//! heard by the parent.

use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

/// What a stage's line begins with.
const MARK: &[u8] = b"{\"stage\":";
/// Bytes of one line of other text; what is longer counts as several.
const MAX_LINE: u64 = 4096;

/// A part of the work, and how much of it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// What is being done, in a few words.
    pub stage: String,
    /// Steps done.
    pub done: usize,
    /// Steps in all; 0 where nobody knows.
    pub of: usize,
}

/// Whether this process is a worker whose parent listens.
static TELLING: AtomicBool = AtomicBool::new(false);

/// From now on [`tell`] speaks.
pub(super) fn begin() {
    TELLING.store(true, Ordering::Relaxed);
}

/// Says how far the work has come; nothing where this process is no import worker.
pub fn tell(stage: &str, done: usize, of: usize) {
    if TELLING.load(Ordering::Relaxed)
        && let Ok(line) = serde_json::to_string(&Stage { stage: stage.into(), done, of })
    {
        // Whether the parent still listens does not matter to the work.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// Reads a pipe to its end, gives the stages to `heard` and the first `cap` bytes of the rest back.
pub(super) fn listen(pipe: impl Read, cap: usize, heard: &Sender<Stage>) -> Vec<u8> {
    let (mut pipe, mut kept, mut line) = (BufReader::new(pipe), vec![], vec![]);
    loop {
        line.clear();
        match (&mut pipe).take(MAX_LINE).read_until(b'\n', &mut line) {
            // A broken pipe ends the output; what came before counts.
            Ok(0) | Err(_) => return kept,
            Ok(_) => {}
        }
        let stage = line.starts_with(MARK).then(|| serde_json::from_slice(&line).ok()).flatten();
        match stage {
            // Nobody need listen.
            Some(stage) => drop(heard.send(stage)),
            None => kept.extend(line.iter().take(cap - kept.len().min(cap))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_heard_and_the_rest_is_kept() {
        let text = b"one\n{\"stage\":\"judging\",\"done\":3,\"of\":9}\n{\"stage\":1}\ntwo";
        let (sender, heard) = std::sync::mpsc::channel();
        assert_eq!(listen(&text[..], 100, &sender), b"one\n{\"stage\":1}\ntwo");
        assert_eq!(listen(&text[..], 5, &sender), b"one\n{");
        let stage = Stage { stage: "judging".into(), done: 3, of: 9 };
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), [stage.clone(), stage]);
    }
}
