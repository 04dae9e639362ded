//! Hashes and lengths made right again, so that what lies behind them is reached. `docs/FORMAT.md` has the
//! places.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What separates the files of an input that is several.
pub const PART: &[u8] = b"\n--8<--\n";

/// The files of an input.
pub fn parts(bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = vec![];
    let mut rest = bytes;
    while let Some(at) = rest.windows(PART.len()).position(|w| w == PART) {
        found.push(&rest[..at]);
        rest = &rest[at + PART.len()..];
    }
    found.push(rest);
    found
}

/// An input of these files.
pub fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(PART)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(8)?)?;
    usize::try_from(u64::from_le_bytes(field.try_into().ok()?)).ok()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(field.try_into().ok()?) as usize)
}

/// Of a `.base` file: magic 8, version 4, length of the header 4, length of the file 8, reserved 8, hash 32.
const PREFIX: usize = 64;
const HASH: usize = 32;
/// In the header, behind the number of sections: kind 1, flags 1, offset 8, length 8, hash 32 each.
const SECTION: usize = 50;
const ALIGN: usize = 64 << 10;

/// A `.base` file in pieces, as [`base`] takes them: a letter, the prefix and header, each section.
pub fn pieces(file: &[u8]) -> Vec<u8> {
    let end = PREFIX + u32_at(file, 12).unwrap();
    let mut pieces = vec![&b"L"[..], &file[..end]];
    for section in 0..usize::from(file[PREFIX]) {
        let entry = PREFIX + 1 + SECTION * section;
        let (offset, len) = (u64_at(file, entry + 2).unwrap(), u64_at(file, entry + 10).unwrap());
        pieces.push(&file[offset..offset + len]);
    }
    joined(&pieces)
}

/// Writes such pieces as a base with right hashes; with the letter L its section table says where they are,
/// else what stands in it is left.
pub fn base(pieces: &[u8], path: &Path) -> Option<()> {
    let pieces = parts(pieces);
    let (lay_out, header, sections) = (pieces[0] == b"L", pieces.get(1)?, pieces.get(2..)?);
    let mut header = header.to_vec();
    let file = File::create(path).unwrap();
    let mut end = header.len();
    for (number, section) in sections.iter().enumerate() {
        let offset = end.next_multiple_of(ALIGN);
        file.write_all_at(section, offset as u64).unwrap();
        end = offset + section.len();
        let at = PREFIX + 1 + SECTION * number;
        let Some(entry) = header.get_mut(at..at + SECTION) else { continue };
        if lay_out {
            entry[2..10].copy_from_slice(&(offset as u64).to_le_bytes());
            entry[10..18].copy_from_slice(&(section.len() as u64).to_le_bytes());
        }
        entry[18..].copy_from_slice(blake3::hash(section).as_bytes());
    }
    let body = u32::try_from(header.len().checked_sub(PREFIX)?).ok()?;
    header[12..16].copy_from_slice(&body.to_le_bytes());
    header[16..24].copy_from_slice(&(end as u64).to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header[..HASH]).update(&header[PREFIX..]);
    header[HASH..PREFIX].copy_from_slice(hasher.finalize().as_bytes());
    file.write_all_at(&header, 0).unwrap();
    file.set_len(end as u64).unwrap();
    Some(())
}

/// A `.adapter` file: the hash of all but itself stands at 16.
pub fn adapter(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let mut hasher = blake3::Hasher::new();
    hasher.update(bytes.get(..16)?).update(bytes.get(48..)?);
    let hash = *hasher.finalize().as_bytes();
    bytes[16..48].copy_from_slice(&hash);
    Some(bytes)
}

/// A file that ends with the hash of what is before it.
pub fn at_the_end(bytes: &[u8]) -> Option<Vec<u8>> {
    let (content, _) = bytes.split_last_chunk::<32>()?;
    Some([content, blake3::hash(content).as_bytes()].concat())
}

/// The second record of what was acknowledged: two slots, each with its hash at its end.
pub fn acknowledged(bytes: &[u8]) -> Vec<u8> {
    let (apart, used) = (4096, 144);
    let mut bytes = bytes.to_vec();
    for at in [0, apart] {
        if let Some(slot) = bytes.get_mut(at..at + used)
            && let Some(mended) = at_the_end(slot)
        {
            slot.copy_from_slice(&mended);
        }
    }
    bytes
}

/// The manifest of a backup with this database: it names its hash.
pub fn manifest(text: &[u8], database: &[u8]) -> Option<Vec<u8>> {
    let mut manifest: serde_json::Value = serde_json::from_slice(text).ok()?;
    *manifest.get_mut("database")? = blake3::hash(database).to_hex().as_str().into();
    serde_json::to_vec(&manifest).ok()
}

/// SQLite's log of pages of 1024 bytes, with sums over little-endian words: each frame's, on from the one
/// before, stands in it, and the head's in its last 8 bytes.
pub fn log(bytes: &[u8]) -> Vec<u8> {
    fn sum(from: [u32; 2], bytes: &[u8]) -> [u32; 2] {
        bytes.chunks_exact(8).fold(from, |[a, b], pair| {
            let word = |at: usize| {
                u32::from_le_bytes([pair[at], pair[at + 1], pair[at + 2], pair[at + 3]])
            };
            let a = a.wrapping_add(word(0)).wrapping_add(b);
            [a, b.wrapping_add(word(4)).wrapping_add(a)]
        })
    }
    let put = |to: &mut [u8], sum: [u32; 2]| {
        to[..4].copy_from_slice(&sum[0].to_be_bytes());
        to[4..8].copy_from_slice(&sum[1].to_be_bytes());
    };
    let mut bytes = bytes.to_vec();
    let Some((head, frames)) = bytes.split_at_mut_checked(32) else { return bytes };
    let mut last = sum([0, 0], &head[..24]);
    put(&mut head[24..], last);
    for frame in frames.chunks_exact_mut(24 + 1024) {
        last = sum(sum(last, &frame[..8]), &frame[24..]);
        put(&mut frame[16..24], last);
    }
    bytes
}
