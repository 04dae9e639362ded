//! SQLite's write-ahead log as bytes: where it is damaged, and what it says all the same.
//!
//! SQLite reads it up to the first frame whose checksum does not hold. A cut of power can tear the
//! frames of the last change only, since each is synced before the next begins; where syncs failed,
//! behind the last change there are the ends of others that were longer and stood there before, each
//! with a bad frame first. So where two changes end after a bad frame without another one between them, the
//! log was damaged later. Most flipped bits can be found by the checksum, and everything is as it was.
//!
//! Format: <https://www.sqlite.org/fileformat2.html#the_write_ahead_log>.

#![warn(clippy::arithmetic_side_effects)]

use super::db::PAGE;
use std::collections::{BTreeMap, BTreeSet};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
const PAGE_BYTES: usize = PAGE as usize;
const FRAME: usize = FRAME_HEADER + PAGE_BYTES;
/// The magic numbers of logs whose checksums read words little- and big-endian.
const MAGIC: [u32; 2] = [0x377f_0682, 0x377f_0683];

/// Bad frames that are mended at most: each is tried with every bit.
const MENDED: usize = 4;

type Sum = [u32; 2];

/// What a log holds.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    /// The newest version of each page that a finished change wrote.
    pub pages: BTreeMap<u32, Vec<u8>>,
    /// Pages of the database after the last change.
    pub size: u32,
    /// Frames whose checksum did not hold.
    pub bad: usize,
    /// Those of them that were mended: one bit was another.
    pub mended: usize,
    /// Most changes that end in or after a bad frame and before the next one.
    pub changes_after: usize,
    /// Where the first bad frame begins, in bytes.
    pub at: usize,
    /// What is in a page, or which page it was, is not sure: bad frames that could not be mended,
    /// whose page was not written again.
    pub unsure: bool,
}

impl Replayed {
    /// Whether no cut of power can have left this.
    pub(super) fn is_damaged(&self) -> bool {
        self.bad > 0 && self.changes_after > 1
    }
}

/// Whether the log is damaged, and where. `None`: it is whole, or torn as a cut leaves it.
pub(super) fn damage(bytes: &[u8]) -> Option<usize> {
    let log = replay(bytes, false);
    log.is_damaged().then_some(log.at)
}

/// How many pages the finished changes of a log wrote, for tests.
pub fn pages(bytes: &[u8]) -> usize {
    replay(bytes, false).pages.len()
}

/// Reads a log to its end, past frames that are bad, which are mended with `mend` where one bit of
/// them has changed.
pub(super) fn replay(bytes: &[u8], mend: bool) -> Replayed {
    let mut found = Replayed::default();
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else { return found };
    let frames: Vec<&[u8]> = rest.chunks_exact(FRAME).collect();
    let Some(start) = Start::of(header, frames.first().copied()) else { return found };
    found.bad = usize::from(start.bent);
    found.mended = usize::from(start.bent);
    // What is behind the last frame of this log is an older one's.
    let ours = |frame: &&[u8]| salts(frame) == Some(start.salts);
    let count = frames.iter().rposition(ours).map_or(0, |at| at.saturating_add(1));
    let mut sum = start.sum;
    let mut pending: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut doubtful = BTreeSet::new();
    let mut changes: usize = 0;
    for (index, frame) in frames.iter().take(count).enumerate() {
        let after = index.saturating_add(1);
        let next = frames.get(after).copied().filter(|_| after < count);
        let read = read_frame(frame, next, sum, &start, mend && found.bad < MENDED);
        if read.bad {
            if found.bad == 0 {
                found.at = index.saturating_mul(FRAME).saturating_add(HEADER);
            }
            found.bad = found.bad.saturating_add(1);
            changes = 0;
            found.mended = found.mended.saturating_add(usize::from(read.mended));
            found.unsure |= !read.mended && !read.placed;
        }
        if read.bad && !read.mended {
            doubtful.insert(read.page);
        } else {
            doubtful.remove(&read.page);
        }
        sum = read.sum;
        if read.page > 0 {
            pending.insert(read.page, read.content);
        }
        if read.size > 0 {
            changes = changes.saturating_add(1);
            if found.bad > 0 {
                found.changes_after = found.changes_after.max(changes);
            }
            found.size = read.size;
            found.pages.append(&mut pending);
        }
    }
    found.unsure |= !doubtful.is_empty();
    found
}

/// What a log's header says.
struct Start {
    big: bool,
    salts: [u8; 8],
    sum: Sum,
    /// One bit of it was another.
    bent: bool,
}

impl Start {
    /// `None`: no header, or one that more than a bit has changed in.
    fn of(header: &[u8; HEADER], first: Option<&[u8]>) -> Option<Start> {
        let (body, stored) = header.split_first_chunk::<24>()?;
        let stored = words(stored.first_chunk()?);
        let fits = |body: &[u8; 24], bent: bool| {
            let word = |at: usize| Some(u32::from_be_bytes(*body.get(at..)?.first_chunk::<4>()?));
            let big = word(0)? == MAGIC[1];
            let known = MAGIC.contains(&word(0)?) && word(8)? == PAGE;
            let sum = checksum(big, [0, 0], body);
            let salts = *body.get(16..)?.first_chunk::<8>()?;
            known.then_some(Start { big, salts, sum, bent })
        };
        if let Some(start) = fits(body, false) {
            if start.sum == stored {
                return Some(start);
            }
            // The bit is in the stored checksum where the first frame goes on from the true one.
            let holds = first.is_some_and(|frame| {
                sum_of(start.big, start.sum, frame) == Some(stored_sum(frame))
            });
            if holds {
                return Some(Start { bent: true, ..start });
            }
        }
        let mut bent = *body;
        (0..bent.len().saturating_mul(8)).find_map(|bit| {
            flip(&mut bent, bit);
            let start = fits(&bent, true).filter(|start| {
                // The salts stand in every frame.
                start.sum == stored && first.is_none_or(|f| salts(f) == Some(start.salts))
            });
            flip(&mut bent, bit);
            start
        })
    }
}

struct Frame {
    page: u32,
    /// Pages of the database, where a change ends here.
    size: u32,
    content: Vec<u8>,
    /// What the next one's checksum goes on from.
    sum: Sum,
    bad: bool,
    mended: bool,
    /// Whether the page's number is sure.
    placed: bool,
}

fn read_frame(frame: &[u8], next: Option<&[u8]>, sum: Sum, start: &Start, mend: bool) -> Frame {
    let stored = stored_sum(frame);
    let made = sum_of(start.big, sum, frame).unwrap_or_default();
    let read = |frame: &[u8], sum: Sum, bad: bool, mended: bool| {
        let word = |at: usize| {
            let word = frame.get(at..).and_then(|rest| rest.first_chunk::<4>());
            word.map_or(0, |word| u32::from_be_bytes(*word))
        };
        let content = frame.get(FRAME_HEADER..).unwrap_or_default().to_vec();
        Frame { page: word(0), size: word(4), content, sum, bad, mended, placed: true }
    };
    let salted = salts(frame) == Some(start.salts);
    if made == stored && salted {
        return read(frame, stored, false, false);
    }
    if !mend {
        return read(frame, stored, true, false);
    }
    if made == stored {
        return read(frame, stored, true, true);
    }
    let goes_on = |from: Sum| next.and_then(|n| Some(sum_of(start.big, from, n)? == stored_sum(n)));
    // The bit is in the stored checksum.
    let bits =
        |a: Sum, b: Sum| (a[0] ^ b[0]).count_ones().saturating_add((a[1] ^ b[1]).count_ones());
    if salted && bits(made, stored) == 1 && goes_on(made) != Some(false) {
        return read(frame, made, true, true);
    }
    let mut bent = frame.to_vec();
    let mut fits = vec![];
    for bit in (0..64).chain(8 * FRAME_HEADER..8 * FRAME).filter(|_| salted) {
        flip(&mut bent, bit);
        if sum_of(start.big, sum, &bent) == Some(stored) {
            fits.push(bit);
        }
        flip(&mut bent, bit);
    }
    // The checksum can't tell the upper bits of some words from those of others.
    match fits.as_slice() {
        [bit] => {
            flip(&mut bent, *bit);
            read(&bent, stored, true, true)
        }
        _ => {
            let placed = !fits.is_empty() && fits.iter().all(|bit| *bit >= 64);
            Frame { placed, ..read(frame, stored, true, false) }
        }
    }
}

fn flip(bytes: &mut [u8], bit: usize) {
    if let Some(byte) = bytes.get_mut(bit / 8) {
        *byte ^= 1 << (bit % 8);
    }
}

fn salts(frame: &[u8]) -> Option<[u8; 8]> {
    frame.get(8..16)?.first_chunk().copied()
}

fn words(bytes: &[u8; 8]) -> Sum {
    let (words, _) = bytes.as_chunks::<4>();
    [0, 1].map(|at| words.get(at).map_or(0, |word| u32::from_be_bytes(*word)))
}

fn stored_sum(frame: &[u8]) -> Sum {
    frame.get(16..24).and_then(|b| b.first_chunk()).map_or([0; 2], words)
}

/// The checksum of a frame: over its first 8 bytes and the page, on from the frame before.
fn sum_of(big: bool, from: Sum, frame: &[u8]) -> Option<Sum> {
    let sum = checksum(big, from, frame.get(..8)?);
    Some(checksum(big, sum, frame.get(FRAME_HEADER..)?))
}

fn checksum(big: bool, from: Sum, bytes: &[u8]) -> Sum {
    let (words, _) = bytes.as_chunks::<4>();
    let read = |word: &[u8; 4]| match big {
        true => u32::from_be_bytes(*word),
        false => u32::from_le_bytes(*word),
    };
    let (pairs, _) = words.as_chunks::<2>();
    pairs.iter().fold(from, |[a, b], [first, second]| {
        let a = a.wrapping_add(read(first)).wrapping_add(b);
        let b = b.wrapping_add(read(second)).wrapping_add(a);
        [a, b]
    })
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    /// A log of these frames: page, size where a change ends, what the page is filled with.
    fn log(frames: &[(u32, u32, u8)]) -> Vec<u8> {
        let put = |bytes: &mut Vec<u8>, sum: Sum| {
            sum.iter().for_each(|word| bytes.extend(word.to_be_bytes()));
        };
        let mut bytes = vec![];
        for word in [MAGIC[0], 3_007_000, PAGE, 0, 0x1234_5678, 0x9abc_def0] {
            bytes.extend(u32::to_be_bytes(word));
        }
        let mut sum = checksum(false, [0, 0], &bytes);
        put(&mut bytes, sum);
        for (page, size, fill) in frames {
            let mut frame = [page.to_be_bytes(), size.to_be_bytes()].concat();
            let content = vec![*fill; PAGE_BYTES];
            sum = checksum(false, checksum(false, sum, &frame), &content);
            frame.extend_from_slice(&bytes[16..24]);
            put(&mut frame, sum);
            bytes.extend(frame);
            bytes.extend(content);
        }
        bytes
    }

    #[test]
    fn frames_are_read_to_the_last_finished_change() {
        let bytes = log(&[(1, 0, 7), (2, 2, 8), (1, 2, 9), (3, 0, 1)]);
        let found = replay(&bytes, false);
        assert_eq!((found.size, found.bad, found.unsure), (2, 0, false));
        let pages: Vec<(u32, u8)> = found.pages.iter().map(|(n, p)| (*n, p[0])).collect();
        assert_eq!(pages, [(1, 9), (2, 8)]);
        assert!(replay(&[], false).pages.is_empty() && damage(&bytes[..HEADER - 1]).is_none());
    }

    #[test]
    fn torn_is_told_from_damaged() {
        let bytes = log(&[(1, 1, 7), (2, 2, 8), (1, 2, 9), (3, 3, 1)]);
        let bent = |frame: usize, at: usize| {
            let mut bytes = bytes.clone();
            bytes[HEADER + frame * FRAME + at] ^= 4;
            damage(&bytes)
        };
        for at in [0, 5, 9, 17, FRAME_HEADER, FRAME - 1] {
            assert_eq!(bent(1, at), Some(HEADER + FRAME), "byte {at}");
            assert_eq!(bent(3, at), None, "byte {at}");
        }
        // As a cut of power leaves it.
        for len in [bytes.len() - 1, bytes.len() - FRAME, HEADER + 5, 7] {
            assert_eq!(damage(&bytes[..len]), None, "{len} bytes");
        }
        // One bit of the head is found by the sum that goes on from it.
        for at in [0, 9, 17, 25] {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            let found = replay(&bytes, false);
            assert_eq!((found.bad, found.mended, found.size), (1, 1, 3), "byte {at}");
        }
    }
}
