//! Systems without leases, or whose constants are not known.

use std::fs::File;

pub(super) struct OpenWriter;

pub(super) fn take(_: &File) -> Result<bool, OpenWriter> {
    Ok(false)
}

pub(super) fn held(_: &File) -> bool {
    false
}

#[cfg(test)]
pub(super) fn give_up(_: &File) {}
