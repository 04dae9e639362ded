//! Panics of libraries over bytes from strangers, as errors.

use crate::error::{Error, Result};
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
}
