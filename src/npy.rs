//! NumPy's `.npy` and `.npz` files. Untrusted: sizes are checked before anything is allocated.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>

#![warn(clippy::arithmetic_side_effects)]

use crate::error::{Error, Result};
use crate::fs::{Access, Opened, open_regular, read_limited, write_atomic_bytes};
use crate::shape::{Array, DType, Data, volume};
use std::io::{BufReader, Read, Seek};
use std::path::Path;

const MAGIC: &[u8] = b"\x93NUMPY";
/// Longest header that is parsed.
const MAX_HEADER: usize = 64 << 10;
/// Most dimensions.
const MAX_RANK: usize = 32;
/// Most arrays in one `.npz`.
const MAX_ENTRIES: usize = 4096;
/// Deflate's best is about 1032 : 1.
const MAX_RATIO: u64 = 1100;

/// Reads the bytes of a `.npy` file (format versions 1 to 3). Takes f32, f64 and f16 (both become
/// f32), i64 (which u32 becomes), i32 (which i16, u16 and i8 become), u8 and bool, of either byte order,
/// in C order.
///
/// Errors: damaged, truncated or with bytes left over (bad input); another element type, a string
/// or object array, Fortran order of more than one dimension (unsupported).
pub fn read_bytes(bytes: &[u8]) -> Result<Array> {
    let (header, data) = split(bytes)?;
    let header = Header::parse(header)?;
    let shape = &header.shape;
    let count = volume(shape)
        .and_then(|n| Some((n, n.checked_mul(header.element.size())?)))
        // A zero must not hide the overflow of the other dimensions.
        .filter(|_| volume(&nonzero(shape)).is_some());
    let Some((count, len)) = count else {
        return Err(Error::bad_input(format!("npy: shape {shape:?} is too large")));
    };
    if data.len() != len {
        return Err(Error::bad_input(format!(
            "npy: shape {shape:?} takes {len} bytes, found {}",
            data.len()
        )));
    }
    // One dimension that is not 1 lies in the same order both ways.
    if header.fortran && shape.iter().filter(|&&d| d != 1).count() > 1 && count > 0 {
        return Err(Error::unsupported(format!("npy: shape {shape:?} is in Fortran order"))
            .hint("save it with numpy.ascontiguousarray"));
    }
    Array::new(header.shape, header.element.decode(data, header.big_endian)?)
        .map_err(|e| e.at("npy"))
}

/// Reads a `.npy` file of at most `max_len` bytes. Errors as `read_bytes`, and those of
/// `open_regular`.
pub fn read(path: impl AsRef<Path>, max_len: u64) -> Result<Array> {
    let path = path.as_ref();
    let bytes = read_limited(path, max_len)?;
    read_bytes(&bytes).map_err(|e| e.at(format_args!("'{}'", path.display())))
}

/// The bytes of a `.npy` file, version 1.0, as NumPy itself writes them.
pub fn to_bytes(array: &Array) -> Vec<u8> {
    let code = match array.dtype() {
        DType::F32 => "<f4",
        DType::I64 => "<i8",
        DType::I32 => "<i4",
        DType::U8 => "|u1",
        DType::Bool => "|b1",
    };
    let dims: Vec<String> = array.shape().iter().map(usize::to_string).collect();
    let comma = if dims.len() == 1 { "," } else { "" };
    let shape = dims.join(", ");
    let mut header =
        format!("{{'descr': '{code}', 'fortran_order': False, 'shape': ({shape}{comma}), }}");
    // Magic, version and length take 10 bytes; the data starts at a multiple of 64.
    let used = header.len().saturating_add(11);
    let total = used.next_multiple_of(64);
    header.extend(std::iter::repeat_n(' ', total.saturating_sub(used)));
    header.push('\n');
    let mut bytes = Vec::with_capacity(total.saturating_add(array.data().byte_len()));
    bytes.extend(MAGIC);
    bytes.extend([1, 0]);
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    match array.data() {
        Data::F32(v) => v.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
        Data::I64(v) => v.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
        Data::I32(v) => v.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
        Data::U8(v) => bytes.extend(v),
        Data::Bool(v) => bytes.extend(v.iter().map(|&b| u8::from(b))),
    }
    bytes
}

/// Writes a `.npy` file atomically. Errors: those of `write_atomic`.
pub fn write(path: impl AsRef<Path>, array: &Array) -> Result<()> {
    write_atomic_bytes(path.as_ref(), Access::Shared, &to_bytes(array))
}

/// Reads all arrays of a `.npz` file (stored or deflated), names without `.npy`, in the file's
/// order. `max_len` bounds the file and, against bombs, the sum of what its arrays unpack to.
///
/// Of two arrays of one name the last counts, as in NumPy.
///
/// Errors as `read_bytes`, and: no zip file, encrypted or otherwise
/// packed entries, sums past the limit (bad input).
pub fn read_npz(path: impl AsRef<Path>, max_len: u64) -> Result<Vec<(String, Array)>> {
    read_npz_counted(path.as_ref(), max_len, &mut |_| Ok(()))
}

/// As [`read_npz`]; `room` is asked for each piece of memory, in bytes, before it is taken.
///
/// Errors: those of `room` too.
pub fn read_npz_counted(
    path: &Path,
    max_len: u64,
    room: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Vec<(String, Array)>> {
    let Opened { file, len } = open_regular(path, max_len)?;
    read_npz_from(BufReader::new(file), len, max_len, room)
        .map_err(|e| e.at(format_args!("'{}'", path.display())))
}

/// As [`read_npz`], from the bytes of such a file; `max_len` bounds what they unpack to.
pub fn read_npz_bytes(bytes: &[u8], max_len: u64) -> Result<Vec<(String, Array)>> {
    read_npz_within(bytes, max_len, &mut |_| Ok(()))
}

/// As [`read_npz_bytes`]; `room` is asked for each piece of memory, in bytes, before it is taken.
///
/// Errors: those of `room` too.
pub fn read_npz_within(
    bytes: &[u8],
    max_len: u64,
    room: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Vec<(String, Array)>> {
    read_npz_from(std::io::Cursor::new(bytes), bytes.len() as u64, max_len, room)
}

/// The bytes of a `.npz` file of these arrays, stored, without times: equal arrays in equal order
/// give equal bytes.
pub fn to_npz(arrays: &[(String, Array)]) -> Result<Vec<u8>> {
    use std::io::Write;
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .last_modified_time(zip::DateTime::default());
    let wrong = |e: &dyn std::fmt::Display| Error::failed(format!("npz can't be written: {e}"));
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
    for (name, array) in arrays {
        archive.start_file(format!("{name}.npy"), options).map_err(|e| wrong(&e))?;
        archive.write_all(&to_bytes(array)).map_err(|e| wrong(&e))?;
    }
    Ok(archive.finish().map_err(|e| wrong(&e))?.into_inner())
}

fn read_npz_from(
    reader: impl Read + Seek,
    file_len: u64,
    max_len: u64,
    room: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Vec<(String, Array)>> {
    let mut archive = zip::ZipArchive::new(reader)
        .map_err(|e| Error::bad_input(format!("not an npz (zip) file: {e}")))?;
    if archive.len() > MAX_ENTRIES {
        return Err(Error::bad_input(format!(
            "{} arrays in an npz file, at most {MAX_ENTRIES} are read",
            archive.len()
        )));
    }
    let mut arrays = Vec::new();
    let mut budget = max_len;
    for index in 0..archive.len() {
        let mut entry = archive
            .by_index(index)
            .map_err(|e| Error::bad_input(format!("npz entry {index} can't be read: {e}")))?;
        let name = match entry.name() {
            Ok(name) => name.into_owned(),
            Err(e) => {
                return Err(Error::bad_input(format!("npz entry {index} has a bad name: {e}")));
            }
        };
        let Some(name) = name.strip_suffix(".npy") else {
            return Err(Error::bad_input(format!("npz entry '{name}' is no .npy file")));
        };
        let size = entry.size();
        if size > budget || size / MAX_RATIO > file_len {
            return Err(Error::bad_input(format!(
                "npz array '{name}' states {size} bytes, more than the limit of {max_len} for all arrays"
            )));
        }
        budget = budget.saturating_sub(size);
        room(size)?;
        // The stated size is a claim: neither trusted for the allocation nor for the end.
        let mut bytes = Vec::new();
        let read = (&mut entry).take(size.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|e| Error::bad_input(format!("npz array '{name}' can't be unpacked: {e}")))?;
        if bytes.len() as u64 != size {
            return Err(Error::bad_input(format!(
                "npz array '{name}' states {size} bytes and has others"
            )));
        }
        let at = |e: Error| e.at(format_args!("array '{name}'"));
        room(values_len(&bytes).map_err(at)?)?;
        let array = read_bytes(&bytes).map_err(at)?;
        arrays.push((name.to_string(), array));
    }
    Ok(arrays)
}

/// Bytes of the values that [`read_bytes`] makes of this.
fn values_len(bytes: &[u8]) -> Result<u64> {
    let (header, data) = split(bytes)?;
    let Header { element, .. } = Header::parse(header)?;
    let count = (data.len() as u64).checked_div(element.size() as u64).unwrap_or(0);
    Ok(count.saturating_mul(element.decoded_size()))
}

/// The header's text and the data behind it.
fn split(bytes: &[u8]) -> Result<(&str, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| Error::bad_input("not a .npy file"))?;
    let short = || Error::bad_input("npy: truncated header");
    let (&[major, _minor], rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
    let (len, rest) = match major {
        1 => {
            let (len, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
            (usize::from(u16::from_le_bytes(*len)), rest)
        }
        2 | 3 => {
            let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
            (u32::from_le_bytes(*len) as usize, rest)
        }
        _ => {
            return Err(Error::unsupported(format!(
                "npy: format version {major}, 1 to 3 are read"
            )));
        }
    };
    if len > MAX_HEADER {
        return Err(Error::bad_input(format!(
            "npy: header of {len} bytes, at most {MAX_HEADER} are read"
        )));
    }
    let (header, data) = rest.split_at_checked(len).ok_or_else(short)?;
    let header =
        std::str::from_utf8(header).map_err(|_| Error::bad_input("npy: header is not text"))?;
    Ok((header, data))
}

fn nonzero(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|&d| d != 0).collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Element {
    F16,
    F32,
    F64,
    I64,
    I32,
    I16,
    I8,
    U32,
    U16,
    U8,
    Bool,
}

impl Element {
    fn size(self) -> usize {
        match self {
            Element::U8 | Element::I8 | Element::Bool => 1,
            Element::F16 | Element::I16 | Element::U16 => 2,
            Element::F32 | Element::I32 | Element::U32 => 4,
            Element::F64 | Element::I64 => 8,
        }
    }

    fn decoded_size(self) -> u64 {
        match self {
            Element::U8 | Element::Bool => 1,
            Element::F16 | Element::F32 | Element::F64 | Element::I32 => 4,
            Element::I16 | Element::I8 | Element::U16 => 4,
            Element::I64 | Element::U32 => 8,
        }
    }

    fn decode(self, data: &[u8], big: bool) -> Result<Data> {
        Ok(match self {
            Element::F16 => Data::F32(map(data, big, |b| half::f16::from_le_bytes(b).to_f32())),
            Element::F32 => Data::F32(map(data, big, f32::from_le_bytes)),
            Element::F64 => Data::F32(map(data, big, |b| f64::from_le_bytes(b) as f32)),
            Element::I64 => Data::I64(map(data, big, i64::from_le_bytes)),
            Element::I32 => Data::I32(map(data, big, i32::from_le_bytes)),
            Element::I16 => Data::I32(map(data, big, |b| i32::from(i16::from_le_bytes(b)))),
            Element::U16 => Data::I32(map(data, big, |b| i32::from(u16::from_le_bytes(b)))),
            Element::I8 => Data::I32(map(data, big, |b| i32::from(i8::from_le_bytes(b)))),
            Element::U32 => Data::I64(map(data, big, |b| i64::from(u32::from_le_bytes(b)))),
            Element::U8 => Data::U8(data.to_vec()),
            Element::Bool => match data.iter().find(|&&b| b > 1) {
                None => Data::Bool(data.iter().map(|&b| b == 1).collect()),
                Some(b) => return Err(Error::bad_input(format!("npy: boolean of value {b}"))),
            },
        })
    }
}

/// `data` in pieces of N bytes, brought to little-endian; a rest is left out.
fn map<const N: usize, T>(data: &[u8], big: bool, f: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = data.as_chunks::<N>();
    chunks
        .iter()
        .map(|chunk| {
            let mut chunk = *chunk;
            if big {
                chunk.reverse();
            }
            f(chunk)
        })
        .collect()
}

struct Header {
    element: Element,
    big_endian: bool,
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Reads the header, a Python literal: a dict of exactly `descr`, `fortran_order` and `shape`.
    fn parse(text: &str) -> Result<Header> {
        let mut p = Parser { rest: text };
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        p.expect("{")?;
        while !p.take("}") {
            let key = p.string()?;
            p.expect(":")?;
            let twice = match key {
                "descr" => descr.replace(p.string()?).is_some(),
                "fortran_order" => fortran.replace(p.boolean()?).is_some(),
                "shape" => shape.replace(p.tuple()?).is_some(),
                _ => return Err(p.fault(&format!("unknown key '{key}'"))),
            };
            if twice {
                return Err(p.fault(&format!("key '{key}' twice")));
            }
            if !p.take(",") {
                p.expect("}")?;
                break;
            }
        }
        if !p.rest.trim().is_empty() {
            return Err(p.fault("text behind the dict"));
        }
        let (Some(descr), Some(fortran), Some(shape)) = (descr, fortran, shape) else {
            return Err(Error::bad_input("npy: header without descr, fortran_order or shape"));
        };
        let (order, code) = match descr.split_at_checked(1) {
            Some((order @ ("<" | ">" | "|" | "="), code)) => (order, code),
            _ => ("<", descr),
        };
        let element = match code {
            "f2" => Element::F16,
            "f4" => Element::F32,
            "f8" => Element::F64,
            "i8" => Element::I64,
            "i4" => Element::I32,
            "i2" => Element::I16,
            "i1" => Element::I8,
            "u4" => Element::U32,
            "u2" => Element::U16,
            "u1" => Element::U8,
            "b1" => Element::Bool,
            _ => {
                return Err(Error::unsupported(format!(
                    "npy: element type '{descr}', expected f2, f4, f8, i1, i2, i4, i8, u1, u2, u4 or b1"
                ))
                .hint("convert it with numpy's astype"));
            }
        };
        Ok(Header { element, big_endian: order == ">", fortran, shape })
    }
}

/// A cursor over the Python literal.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn fault(&self, what: &str) -> Error {
        let near: String = self.rest.chars().take(20).collect();
        Error::bad_input(format!("npy: malformed header: {what} near '{near}'"))
    }

    fn take(&mut self, token: &str) -> bool {
        match self.rest.trim_start().strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Result<()> {
        if self.take(token) { Ok(()) } else { Err(self.fault(&format!("expected '{token}'"))) }
    }

    fn string(&mut self) -> Result<&'a str> {
        let rest = self.rest.trim_start();
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let found = quote.and_then(|q| rest.get(1..)?.split_once(q));
        match found {
            Some((text, rest)) if !text.contains('\\') => {
                self.rest = rest;
                Ok(text)
            }
            // A structured type is a list of tuples.
            _ if rest.starts_with('[') => {
                Err(Error::unsupported("npy: structured arrays are not read"))
            }
            _ => Err(self.fault("expected a string")),
        }
    }

    fn boolean(&mut self) -> Result<bool> {
        if self.take("True") {
            return Ok(true);
        }
        if self.take("False") { Ok(false) } else { Err(self.fault("expected True or False")) }
    }

    fn tuple(&mut self) -> Result<Vec<usize>> {
        self.expect("(")?;
        let mut dims = Vec::new();
        while !self.take(")") {
            let rest = self.rest.trim_start();
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (digits, rest) = rest.split_at(end);
            let dim = digits.parse().map_err(|_| self.fault("expected a dimension"))?;
            // Python 2 wrote long integers with an L.
            self.rest = rest.strip_prefix('L').unwrap_or(rest);
            dims.push(dim);
            if dims.len() > MAX_RANK {
                return Err(self.fault("too many dimensions"));
            }
            if !self.take(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(dims)
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests;
