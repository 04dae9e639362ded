//! Where tests make what this crate writes fail, or look at what a cut of power would leave. In a
//! program it does nothing.

/// A step towards durability that is about to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A temporary file is made.
    Create,
    /// It has all its bytes; they may not be on the medium.
    Sync,
    /// It is synced and gets its name.
    Rename,
    /// A folder is synced.
    SyncFolder,
    /// A file without a name grows.
    Append,
    /// A transaction of the store is committed.
    Commit,
    /// It was.
    Committed,
    /// The store's second record of what was acknowledged is synced.
    Witnessed,
}

#[cfg(not(test))]
#[inline(always)]
pub(crate) fn point(_: Op, _: &std::path::Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(crate) use hook::{point, with};

#[cfg(test)]
mod hook {
    use super::Op;
    use std::cell::RefCell;
    use std::io;
    use std::path::Path;

    type Hook = Box<dyn FnMut(Op, &Path) -> io::Result<()>>;

    thread_local! {
        static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    }

    /// Asks the hook of this thread. What the hook itself writes is not asked about.
    pub(crate) fn point(op: Op, path: &Path) -> io::Result<()> {
        let taken = HOOK.with_borrow_mut(Option::take);
        let Some(mut hook) = taken else { return Ok(()) };
        let answer = hook(op, path);
        HOOK.set(Some(hook));
        answer
    }

    /// Runs `work` with a hook.
    pub(crate) fn with<T>(
        hook: impl FnMut(Op, &Path) -> io::Result<()> + 'static,
        work: impl FnOnce() -> T,
    ) -> T {
        HOOK.set(Some(Box::new(hook)));
        let value = work();
        HOOK.set(None);
        value
    }
}
