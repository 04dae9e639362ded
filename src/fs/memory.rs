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

/// Prepares the heap for runs, which free and take the same buffers each time.
///
/// - The C library keeps what is freed, up to some tens of megabytes, instead of giving it back at
///   once: each page given back costs a page fault. A process that answers holds what its largest run
///   took: 12 MB unshared in all with EfficientNet-Lite0, 5 MB with MiniLM at 64 tokens. glibc's
///   threshold for giving back is twice the largest block that it has mapped and freed, up to 32 MiB
///   (mallopt(3), M_MMAP_THRESHOLD). Other C libraries keep or give back as they do.
/// - The kernel is asked for huge pages under the buffers of the first runs, where it has them
///   (`transparent_hugepage`): the first answer waits for one fault instead of 512 (5.9 ms became
///   3.7 ms with EfficientNet-Lite0). Memory that is never touched stays free.
pub fn prepare_heap() {
    const LARGEST: usize = (32 << 20) - (64 << 10);
    const ON_HUGE_PAGES: usize = 16 << 20;
    drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGEST)));
    // Below the threshold now, so from the heap, whose end the block becomes.
    let mut block = std::hint::black_box(Vec::<u8>::with_capacity(ON_HUGE_PAGES));
    ask_for_huge_pages(block.spare_capacity_mut());
}

#[cfg(target_os = "linux")]
fn ask_for_huge_pages(block: &mut [std::mem::MaybeUninit<u8>]) {
    use rustix::mm::{Advice, madvise};
    let start = block.as_mut_ptr();
    let skipped = start.align_offset(rustix::param::page_size());
    let Some(len) = block.len().checked_sub(skipped) else { return };
    // SAFETY: the range lies in the block, and the advice changes nothing that is stored there.
    // Kernels without huge pages refuse it.
    let _ = unsafe { madvise(start.wrapping_add(skipped).cast(), len, Advice::LinuxHugepage) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_: &mut [std::mem::MaybeUninit<u8>]) {}

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
