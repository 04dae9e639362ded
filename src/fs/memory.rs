//! What the kernel says about memory (Linux `/proc`). `None` where it says nothing.

use std::path::Path;

/// Most bytes that this process had resident at once (`VmHWM`), file-backed pages included.
pub fn peak_rss_bytes() -> Option<u64> {
    kilobytes(Path::new("/proc/self/status"), &["VmHWM:"])
}

/// Bytes of process `pid` that no other process can share (`Anonymous` of smaps_rollup): memory that
/// no file backs, pages copied on write among it. Pages of mapped files are left out, for a second
/// process that maps the same file shares them. `Private_Dirty` would not do: it also counts pages of
/// a file that was just written and is not yet on disk.
pub fn unshared_bytes(pid: u32) -> Option<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    kilobytes(Path::new(&path), &["Anonymous:"])
}

/// Bytes that the machine can still give without swapping (`MemAvailable`).
pub fn available_bytes() -> Option<u64> {
    kilobytes(Path::new("/proc/meminfo"), &["MemAvailable:"])
}

/// Sum of the lines of `path` that start with one of `keys`, given in kB; `None` if any is missing.
fn kilobytes(path: &Path, keys: &[&str]) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    keys.iter().try_fold(0u64, |sum, key| {
        let line = text.lines().find_map(|l| l.strip_prefix(key))?;
        let kb: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        sum.checked_add(kb.checked_mul(1024)?)
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn touched_memory_shows() {
        let block = vec![1u8; 32 << 20];
        let unshared = unshared_bytes(std::process::id()).unwrap();
        assert!(std::hint::black_box(&block).len() == 32 << 20);
        assert!(unshared >= 32 << 20, "{unshared}");
        assert!(peak_rss_bytes().unwrap() >= 32 << 20);
        assert!(available_bytes().unwrap() > 0);
        assert_eq!(unshared_bytes(u32::MAX), None);
    }
}
