//! Layer 0: files. Atomic writes, guarded opening, locks, and what the kernel says about memory.

mod atomic;
pub(crate) mod fault;
mod lock;
mod memory;
mod open;
mod scratch;
mod staged;

pub use atomic::{
    Access, copy_all, remove_stale_temps, remove_stale_temps_of, sync_folder, write_atomic,
    write_atomic_bytes,
};
pub use lock::FileLock;
pub use memory::{available_bytes, peak_rss_bytes, unshared_bytes};
pub use open::{Opened, open_regular, open_regular_no_link, read_limited, read_text};
pub use scratch::Scratch;
pub use staged::Staged;
