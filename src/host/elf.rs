//! What an ELF program needs of a system: architecture, loader, version of glibc.
//!
//! Read by offsets of the System V ABI (gABI 4.1) and the GNU version sections (LSB 3.1, 10.7), for
//! little-endian files of 32 and 64 bits.

#![warn(clippy::arithmetic_side_effects)]

use crate::error::{Error, Result};
use crate::fs::open_regular;
use serde::{Serialize, Serializer};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Most program headers, dynamic entries and version entries that are read.
const MAX_ENTRIES: usize = 4096;
/// Longest path of a loader.
const MAX_INTERP: u64 = 4096;
const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const DT_STRTAB: u64 = 5;
const DT_VERNEED: u64 = 0x6fff_fffe;
/// The first version that knows packed relocations.
const DT_RELR_SINCE: Glibc = Glibc(2, 36);

/// A program file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Elf {
    /// Its processor, as `uname -m` names it, or `machine N`.
    pub machine: String,
    /// 32 or 64.
    pub bits: u8,
    /// The loader it asks for; `None` if it needs none (static).
    pub interpreter: Option<PathBuf>,
    /// The highest version of glibc that its symbols ask for.
    pub glibc: Option<Glibc>,
}

/// A version of glibc.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Glibc(pub u32, pub u32);

impl Glibc {
    /// Of `2.31` or `2.2.5`; what comes after the second number is dropped.
    pub fn parse(text: &str) -> Option<Glibc> {
        let mut parts = text.split('.');
        Some(Glibc(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

impl fmt::Display for Glibc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Serialize for Glibc {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The file and how wide its words are.
struct Reader<'a> {
    file: &'a File,
    wide: bool,
}

/// A piece of the file and where it is in memory.
struct Segment {
    kind: u64,
    offset: u64,
    address: u64,
    len: u64,
}

impl Elf {
    /// Reads the headers of `path`.
    ///
    /// # Errors
    /// Missing, not an ELF program or cut short (bad input).
    pub fn read(path: &Path) -> Result<Elf> {
        let opened = open_regular(path, u64::MAX)?;
        let none = || Error::bad_input(format!("'{}' is not a Linux program", path.display()));
        let mut ident = [0; 20];
        opened.file.read_exact_at(&mut ident, 0).map_err(|_| none())?;
        let [0x7f, b'E', b'L', b'F', class @ 1..=2, 1, ..] = ident else {
            return Err(none().hint("it has no ELF header for a little-endian processor"));
        };
        let reader = Reader { file: &opened.file, wide: class == 2 };
        let machine = machine_name(u16::from_le_bytes([ident[18], ident[19]]), reader.wide);
        reader.rest(machine).ok_or_else(|| {
            Error::bad_input(format!("'{}' is damaged: its headers lead nowhere", path.display()))
        })
    }
}

fn machine_name(number: u16, wide: bool) -> String {
    match (number, wide) {
        (0x3e, true) => "x86_64".into(),
        (0xb7, true) => "aarch64".into(),
        (0x28, false) => "armv7l".into(),
        (0x03, false) => "i686".into(),
        (0xf3, true) => "riscv64".into(),
        _ => format!("machine {number}"),
    }
}

impl Reader<'_> {
    /// The little-endian number of `N` bytes at `offset`.
    fn number<const N: usize>(&self, offset: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(bytes.get_mut(..N)?, offset).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    /// A word of the file's class.
    fn word(&self, offset: u64) -> Option<u64> {
        if self.wide { self.number::<8>(offset) } else { self.number::<4>(offset) }
    }

    /// The NUL-ended text at `offset`, of at most 64 bytes.
    fn name(&self, offset: u64) -> Option<String> {
        let mut bytes = [0; 64];
        let read = self.file.read_at(&mut bytes, offset).ok()?;
        let text = bytes.get(..read)?.split(|&b| b == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    fn segments(&self) -> Option<Vec<Segment>> {
        let (table, size, count) = if self.wide { (32, 54, 56) } else { (28, 42, 44) };
        let table = self.word(table)?;
        let (size, count) = (self.number::<2>(size)?, self.number::<2>(count)?);
        (0..count.min(MAX_ENTRIES as u64))
            .map(|i| {
                let at = table.checked_add(i.checked_mul(size)?)?;
                let (offset, address, len) = if self.wide { (8, 16, 32) } else { (4, 8, 16) };
                Some(Segment {
                    kind: self.number::<4>(at)?,
                    offset: self.word(at.checked_add(offset)?)?,
                    address: self.word(at.checked_add(address)?)?,
                    len: self.word(at.checked_add(len)?)?,
                })
            })
            .collect()
    }

    fn rest(&self, machine: String) -> Option<Elf> {
        let segments = self.segments()?;
        let find = |kind| segments.iter().find(|s| s.kind == kind);
        let interpreter = match find(PT_INTERP) {
            Some(s) => {
                let len = usize::try_from(s.len.min(MAX_INTERP)).ok()?;
                let mut bytes = vec![0; len];
                self.file.read_exact_at(&mut bytes, s.offset).ok()?;
                let text = bytes.split(|&b| b == 0).next()?;
                Some(PathBuf::from(String::from_utf8_lossy(text).into_owned()))
            }
            None => None,
        };
        let glibc = match find(PT_DYNAMIC) {
            Some(dynamic) => self.glibc(dynamic, &segments)?,
            None => None,
        };
        Some(Elf { machine, bits: if self.wide { 64 } else { 32 }, interpreter, glibc })
    }

    /// The highest `GLIBC_` version among those needed.
    fn glibc(&self, dynamic: &Segment, segments: &[Segment]) -> Option<Option<Glibc>> {
        let in_file = |address: u64| {
            let s = segments
                .iter()
                .find(|s| s.kind == PT_LOAD && address.wrapping_sub(s.address) < s.len)?;
            s.offset.checked_add(address.checked_sub(s.address)?)
        };
        let step: u64 = if self.wide { 16 } else { 8 };
        let (mut strings, mut needs) = (None, None);
        for i in 0..dynamic.len.checked_div(step)?.min(MAX_ENTRIES as u64) {
            let at = dynamic.offset.checked_add(i.checked_mul(step)?)?;
            let (tag, value) = (self.word(at)?, self.word(at.checked_add(step / 2)?)?);
            match tag {
                0 => break,
                DT_STRTAB => strings = Some(in_file(value)?),
                DT_VERNEED => needs = Some(in_file(value)?),
                _ => {}
            }
        }
        let (Some(strings), Some(mut need)) = (strings, needs) else { return Some(None) };
        let mut highest = None;
        let mut left = MAX_ENTRIES;
        loop {
            // Verneed: version, count, file, aux, next. Vernaux: hash, flags, other, name, next.
            let count = self.number::<2>(need.checked_add(2)?)?;
            let mut aux = need.checked_add(self.number::<4>(need.checked_add(8)?)?)?;
            for _ in 0..count {
                left = left.checked_sub(1)?;
                let name =
                    self.name(strings.checked_add(self.number::<4>(aux.checked_add(8)?)?)?)?;
                let version = match name.as_str() {
                    "GLIBC_ABI_DT_RELR" => Some(DT_RELR_SINCE),
                    name => name.strip_prefix("GLIBC_").and_then(Glibc::parse),
                };
                highest = highest.max(version);
                aux = aux.checked_add(self.number::<4>(aux.checked_add(12)?)?)?;
            }
            let next = self.number::<4>(need.checked_add(12)?)?;
            if next == 0 {
                return Some(highest);
            }
            left = left.checked_sub(1)?;
            need = need.checked_add(next)?;
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_read() {
        let elf = Elf::read(&std::env::current_exe().unwrap()).unwrap();
        assert!(elf.machine.starts_with(&std::env::consts::ARCH[..3]), "{elf:?}");
        assert_eq!(u32::from(elf.bits), usize::BITS);
        if cfg!(target_env = "gnu") {
            assert!(elf.interpreter.unwrap().is_absolute());
            assert!(elf.glibc.unwrap() >= Glibc(2, 17));
        }
    }

    #[test]
    fn damage_is_an_error_and_never_a_hang() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let whole = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let head = &whole[..whole.len().min(1 << 20)];
        for len in [0, 4, 19, 20, 63, 64, 100, 300, 1000] {
            std::fs::write(&path, &head[..len]).unwrap();
            assert!(Elf::read(&path).is_err(), "{len}");
        }
        std::fs::write(&path, "#!/bin/sh\nexit 0\n# a script of enough length").unwrap();
        assert!(Elf::read(&path).unwrap_err().message().contains("not a Linux program"));
        let mut state = 1u32;
        for _ in 0..300 {
            let mut bytes = head[..8192.min(head.len())].to_vec();
            for _ in 0..8 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = 6 + (state >> 8) as usize % 1000;
                bytes[at] = (state >> 3) as u8;
            }
            std::fs::write(&path, bytes).unwrap();
            // Right or wrong, it comes to an end.
            let _ = Elf::read(&path);
        }
    }

    #[test]
    fn versions_are_ordered_by_number() {
        let parse = |t| Glibc::parse(t).unwrap();
        assert!(parse("2.9") < parse("2.31") && parse("2.2.5") < parse("2.4"));
        assert_eq!((Glibc::parse("PRIVATE"), parse("2.31").to_string()), (None, "2.31".into()));
    }
}
