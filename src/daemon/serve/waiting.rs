//! Who waits for an answer, and the other end: a run for nobody is stopped.

use super::pool::Outcome;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::sync::oneshot;

/// An answer to come. Dropping it, as the time limit and a lost connection do, ends the run.
pub struct Waiting {
    answer: oneshot::Receiver<Outcome>,
    gone: Arc<AtomicBool>,
}

/// Where the answer goes.
pub struct Reply {
    answer: oneshot::Sender<Outcome>,
    gone: Arc<AtomicBool>,
}

/// The two ends.
pub fn pair() -> (Reply, Waiting) {
    let (sender, receiver) = oneshot::channel();
    let gone = Arc::new(AtomicBool::new(false));
    (Reply { answer: sender, gone: gone.clone() }, Waiting { answer: receiver, gone })
}

impl Reply {
    /// Whether nobody waits any more.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Sends the answer; who has gone gets none.
    pub fn send(self, outcome: Outcome) {
        let _ = self.answer.send(outcome);
    }
}

/// Tells whether none of these is waited for any more.
pub fn nobody_waits(replies: &[&Reply]) -> impl Fn() -> bool + use<> {
    let flags: Vec<_> = replies.iter().map(|reply| reply.gone.clone()).collect();
    move || flags.iter().all(|gone| gone.load(Ordering::Relaxed))
}

impl Future for Waiting {
    type Output = Result<Outcome, oneshot::error::RecvError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(cx)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_goes_on_while_one_of_several_waits() {
        let (first, waits) = pair();
        let (second, also) = pair();
        let over = nobody_waits(&[&first, &second]);
        assert!(!over());
        drop(waits);
        assert!(first.is_gone() && !over());
        drop(also);
        assert!(over());
    }
}
