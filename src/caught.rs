//! Panics of libraries over bytes from strangers, as errors.

use crate::error::{Cause, Error, Result};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};

/// The error that a panic's text means.
type Meaning = fn(&str) -> Error;

thread_local! {
    /// What a panic in this thread means now.
    static MEANING: Cell<Option<Meaning>> = const { Cell::new(None) };
}

/// Does `work`; a panic in it becomes the error that `meaning` makes of the panic's text, without a
/// word beside it. Where a panic ends the program (`--profile small`) the program's hook says that error.
pub(crate) fn caught<T>(meaning: Meaning, work: impl FnOnce() -> T) -> Result<T> {
    let before = MEANING.replace(Some(meaning));
    let done = catch_unwind(AssertUnwindSafe(work));
    MEANING.set(before);
    done.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        meaning(text.unwrap_or("no reason given"))
    })
}

/// For a panic hook: what the panic means, if somebody has thought of it.
pub(crate) fn meaning(info: &PanicHookInfo<'_>) -> Option<Error> {
    MEANING.get().map(|meaning| meaning(info.payload_as_str().unwrap_or("no reason given")))
}

/// What the system has refused where a panic says this, whoever asked: tract's tensors panic without memory,
/// the standard library's tables without random numbers.
pub(crate) fn refused_by_system(text: &str) -> Option<Error> {
    if text.starts_with("failed to allocate Layout") {
        let why = Error::failed("out of memory: the system gives no more, or a limit is reached");
        return Some(why.because(Cause::Short).hint("'ulimit -v' shows a limit of the shell's"));
    }
    text.starts_with("failed to generate random data").then(|| {
        Error::failed("the system gives no random numbers")
            .hint("/dev/urandom must be there, and getrandom allowed")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_the_next_one_is_none() {
        let wrong = |text: &str| Error::bad_input(format!("damaged: {text}"));
        assert_eq!(caught(wrong, || 3).unwrap(), 3);
        let error = caught::<u8>(wrong, || panic!("at {}", 7)).unwrap_err();
        assert_eq!(error.message(), "damaged: at 7");
        let inner = caught(wrong, || caught(|_| Error::failed("inner"), || ()).unwrap());
        inner.unwrap();
        assert!(MEANING.get().is_none());
    }

    /// The words are of tract-data 0.23.9 (blob.rs) and of Rust's `hashmap_random_keys`.
    #[test]
    fn what_the_system_refuses_is_no_fault_of_the_program() {
        let layout = std::alloc::Layout::new::<u64>();
        let memory = refused_by_system(&format!("failed to allocate {layout:?}")).unwrap();
        assert_eq!(memory.cause(), Some(Cause::Short));
        assert!(refused_by_system("failed to generate random data: Os { code: 38 }").is_some());
        assert!(refused_by_system("index out of bounds").is_none());
    }
}
