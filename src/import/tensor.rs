//! ONNX tensors: sizes checked against the bytes that are there, external data read in, values
//! converted.

#![warn(clippy::arithmetic_side_effects)]

use crate::error::{Error, Result};
use crate::fs::{Opened, open_regular_no_link};
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use tract_onnx::pb::TensorProto;
use tract_onnx::pb::tensor_proto::DataType;

/// More elements than this in one tensor are refused: 16 GiB as f32, which no board holds, and where
/// addresses have 32 bits what their bytes can be counted in.
const MAX_ELEMENTS: u64 = if usize::BITS > 32 { 1 << 32 } else { (isize::MAX / 16) as u64 };

/// Tensors of more dimensions than this don't occur.
pub(super) const MAX_RANK: usize = 12;

/// Bytes of one element of an ONNX data type in `raw_data`; `None` for strings and 4-bit types.
pub(super) fn element_size(data_type: i32) -> Option<usize> {
    Some(match DataType::try_from(data_type).ok()? {
        DataType::Uint8 | DataType::Int8 | DataType::Bool => 1,
        DataType::Float8e4m3fn
        | DataType::Float8e4m3fnuz
        | DataType::Float8e5m2
        | DataType::Float8e5m2fnuz => 1,
        DataType::Uint16 | DataType::Int16 | DataType::Float16 | DataType::Bfloat16 => 2,
        DataType::Float | DataType::Int32 | DataType::Uint32 => 4,
        DataType::Double | DataType::Int64 | DataType::Uint64 | DataType::Complex64 => 8,
        DataType::Complex128 => 16,
        DataType::Undefined | DataType::String => return None,
        _ => return None,
    })
}

/// Number of elements of a tensor, with every dimension non-negative and the product bounded.
pub(super) fn element_count(tensor: &TensorProto) -> Result<usize> {
    if tensor.dims.len() > MAX_RANK {
        return Err(Error::bad_input(format!(
            "tensor '{}' has {} dimensions, at most {MAX_RANK} are read",
            tensor.name,
            tensor.dims.len()
        )));
    }
    let mut count = 1u64;
    for &dim in &tensor.dims {
        let dim = u64::try_from(dim).map_err(|_| {
            Error::bad_input(format!(
                "tensor '{}' has a negative dimension in {:?}",
                tensor.name, tensor.dims
            ))
        })?;
        count = match count.checked_mul(dim) {
            Some(c) if c <= MAX_ELEMENTS => c,
            _ => {
                return Err(Error::bad_input(format!(
                    "tensor '{}' of shape {:?} is too large",
                    tensor.name, tensor.dims
                )));
            }
        };
    }
    Ok(count as usize)
}

/// Checks that a tensor's values are all there: as many as its shape asks for, no more.
pub(super) fn check_tensor(tensor: &TensorProto) -> Result<()> {
    let count = element_count(tensor)?;
    let found = match DataType::try_from(tensor.data_type) {
        Ok(DataType::Undefined) | Err(_) => {
            return Err(Error::bad_input(format!(
                "tensor '{}' has an unknown data type {}",
                tensor.name, tensor.data_type
            )));
        }
        Ok(DataType::String) => {
            if !tensor.raw_data.is_empty() {
                return Err(Error::bad_input(format!(
                    "tensor '{}' holds strings as raw bytes",
                    tensor.name
                )));
            }
            tensor.string_data.len()
        }
        Ok(_) if !tensor.raw_data.is_empty() => {
            let size = element_size(tensor.data_type).ok_or_else(|| {
                Error::unsupported(format!(
                    "tensor '{}' has the data type {}, which can't be read",
                    tensor.name, tensor.data_type
                ))
            })?;
            if !tensor.raw_data.len().is_multiple_of(size) {
                return Err(short(
                    tensor,
                    count,
                    tensor.raw_data.len().checked_div(size).unwrap_or(0),
                ));
            }
            tensor.raw_data.len().checked_div(size).unwrap_or(0)
        }
        Ok(_) => [
            tensor.float_data.len(),
            tensor.int32_data.len(),
            tensor.int64_data.len(),
            tensor.double_data.len(),
        ]
        .into_iter()
        .fold(0, usize::saturating_add),
    };
    // uint64_data is dropped by tract's reader; without raw data such a tensor reads as empty.
    if found != count { Err(short(tensor, count, found)) } else { Ok(()) }
}

fn short(tensor: &TensorProto, expected: usize, found: usize) -> Error {
    Error::bad_input(format!(
        "tensor '{}' of shape {:?} needs {expected} values, found {found}",
        tensor.name, tensor.dims
    ))
}

/// Where a tensor's external data lies: below the model's folder, by no links. Links are followed in
/// one case: within a download cache of Hugging Face, `snapshots/REVISION/NAME` to a file in `blobs`.
fn external_path(location: &str, model_dir: &Path) -> Result<PathBuf> {
    let unreadable = |e: std::io::Error| Error::bad_input(format!("can't be read: {e}"));
    let parts: Vec<Component<'_>> = Path::new(location).components().collect();
    if parts.is_empty() || !parts.iter().all(|p| matches!(p, Component::Normal(_))) {
        return Err(Error::bad_input("is not a plain name beside the model"));
    }
    let mut path = model_dir.to_path_buf();
    let (name, folders) = parts.split_last().ok_or_else(|| Error::bad_input("has no name"))?;
    for folder in folders {
        path.push(folder);
        if !std::fs::symlink_metadata(&path).map_err(unreadable)?.file_type().is_dir() {
            return Err(Error::bad_input("lies in what is no folder"));
        }
    }
    path.push(name);
    let kind = std::fs::symlink_metadata(&path).map_err(unreadable)?.file_type();
    if kind.is_file() {
        return Ok(path);
    }
    if kind.is_symlink() {
        let blobs = model_dir.canonicalize().map_err(unreadable)?;
        let snapshots = blobs.ancestors().find(|a| a.file_name().is_some_and(|n| n == "snapshots"));
        let blobs = snapshots.and_then(Path::parent).map(|cache| cache.join("blobs"));
        let target = path.canonicalize().map_err(unreadable)?;
        if blobs.is_some_and(|blobs| target.parent() == Some(&blobs)) {
            return Ok(target);
        }
        return Err(Error::bad_input("is a link that leads out of the model's folder"));
    }
    Err(Error::bad_input("is not a regular file"))
}

/// Reads a tensor's external data, if it has any, into `raw_data`: a plain file below the model's
/// folder, the range wholly within the file.
pub(super) fn load_external(tensor: &mut TensorProto, model_dir: &Path) -> Result<()> {
    if tensor.external_data.is_empty() && tensor.data_location.unwrap_or(0) == 0 {
        return Ok(());
    }
    let fields: HashMap<&str, &str> =
        tensor.external_data.iter().map(|e| (e.key.as_str(), e.value.as_str())).collect();
    let location = *fields.get("location").ok_or_else(|| {
        Error::bad_input(format!("tensor '{}' is external but names no file", tensor.name))
    })?;
    let number = |key: &str| -> Result<Option<u64>> {
        let Some(text) = fields.get(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            Error::bad_input(format!(
                "tensor '{}': external {key} '{text}' is no number",
                tensor.name
            ))
        })
    };
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    let place = format!("external data '{location}' of tensor '{}'", tensor.name);
    let path = external_path(location, model_dir).map_err(|e| e.at(&place))?;
    let Opened { mut file, len: file_len } = open_regular_no_link(&path, u64::MAX)
        .map_err(|e| Error::bad_input(format!("{place} can't be read: {}", e.message())))?;
    let size = element_size(tensor.data_type).ok_or_else(|| {
        Error::unsupported(format!("{place} has a data type that can't be external"))
    })?;
    let expected = (element_count(tensor)? as u64).saturating_mul(size as u64);
    let length = length.unwrap_or(expected);
    if length != expected {
        return Err(Error::bad_input(format!(
            "{place} states {length} bytes, its shape {:?} needs {expected}",
            tensor.dims
        )));
    }
    if offset.checked_add(length).is_none_or(|end| end > file_len) {
        return Err(Error::bad_input(format!(
            "{place} reaches beyond the file's {file_len} bytes"
        )));
    }
    let mut bytes = vec![0u8; length as usize];
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.read_exact(&mut bytes))
        .map_err(|e| Error::bad_input(format!("{place} can't be read: {e}")))?;
    tensor.raw_data = bytes;
    tensor.external_data.clear();
    tensor.data_location = None;
    Ok(())
}

/// The values of a float tensor (f32, f16, bf16, f64) as f32; `None` for other types.
pub(super) fn float_values(tensor: &TensorProto) -> Option<Vec<f32>> {
    let raw = &tensor.raw_data;
    match DataType::try_from(tensor.data_type).ok()? {
        DataType::Float if raw.is_empty() => Some(tensor.float_data.clone()),
        DataType::Float => Some(words(raw, f32::from_le_bytes)),
        DataType::Double if raw.is_empty() => {
            Some(tensor.double_data.iter().map(|&v| v as f32).collect())
        }
        DataType::Double => Some(words(raw, |b| f64::from_le_bytes(b) as f32)),
        DataType::Float16 if raw.is_empty() => Some(
            tensor.int32_data.iter().map(|&v| half::f16::from_bits(v as u16).to_f32()).collect(),
        ),
        DataType::Float16 => Some(words(raw, |b| half::f16::from_le_bytes(b).to_f32())),
        DataType::Bfloat16 => Some(words(raw, |b| half::bf16::from_le_bytes(b).to_f32())),
        _ => None,
    }
}

/// The values of an integer tensor; `None` for other types.
pub(super) fn int_values(tensor: &TensorProto) -> Option<Vec<i64>> {
    let raw = &tensor.raw_data;
    match DataType::try_from(tensor.data_type).ok()? {
        DataType::Int64 if raw.is_empty() => Some(tensor.int64_data.clone()),
        DataType::Int64 => Some(words(raw, i64::from_le_bytes)),
        DataType::Int8 if !raw.is_empty() => Some(raw.iter().map(|&b| b as i8 as i64).collect()),
        DataType::Uint8 | DataType::Bool if !raw.is_empty() => {
            Some(raw.iter().map(|&b| b as i64).collect())
        }
        DataType::Int32 if !raw.is_empty() => Some(words(raw, |b| i32::from_le_bytes(b) as i64)),
        DataType::Int16 if !raw.is_empty() => Some(words(raw, |b| i16::from_le_bytes(b) as i64)),
        DataType::Uint16 if !raw.is_empty() => Some(words(raw, |b| u16::from_le_bytes(b) as i64)),
        DataType::Int8
        | DataType::Uint8
        | DataType::Bool
        | DataType::Int32
        | DataType::Int16
        | DataType::Uint16 => Some(tensor.int32_data.iter().map(|&v| v as i64).collect()),
        _ => None,
    }
}

fn words<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&chunk| read(chunk)).collect()
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn shaped(dims: &[i64]) -> TensorProto {
        TensorProto { name: "w".into(), dims: dims.to_vec(), ..TensorProto::default() }
    }

    #[test]
    fn elements_are_counted_in_what_addresses_have() {
        assert_eq!(element_count(&shaped(&[])).unwrap(), 1);
        assert_eq!(element_count(&shaped(&[3, 0, 5])).unwrap(), 0);
        assert!(element_count(&shaped(&[2, -1])).is_err());
        // 2^32: one more than 32 bits hold.
        let at_the_edge = element_count(&shaped(&[1 << 16, 1 << 16]));
        if usize::BITS == 32 {
            assert!(
                at_the_edge
                    .unwrap_err()
                    .to_string()
                    .contains("'w' of shape [65536, 65536] is too large")
            );
        } else {
            assert_eq!(at_the_edge.unwrap() as u64, 1 << 32);
        }
        assert!(element_count(&shaped(&[i64::MAX, 2])).is_err());
    }
}
