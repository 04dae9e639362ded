//! Panics are caught where libraries read strangers' bytes. One in this crate's own files is a finding all the
//! same.

use std::panic::PanicHookInfo;

/// Whether a panic is in this crate's sources.
pub fn is_ours(panic: &PanicHookInfo<'_>) -> bool {
    let others = ["/registry/", "/rustc/", "/rustlib/", "tests/", "fuzz.rs"];
    panic.location().is_some_and(|at| !others.iter().any(|part| at.file().contains(part)))
}
