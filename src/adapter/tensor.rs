//! Tensor values to and from little-endian bytes.

#![warn(clippy::arithmetic_side_effects)]

use crate::error::{Error, Result};
use crate::shape::{Array, Data};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// How an adapter's floats are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TensorType {
    /// 16-bit floats: half the size, rounded to 11 bits.
    F16,
    /// 32-bit floats, exact.
    #[default]
    F32,
}

impl TensorType {
    /// The name used on the command line: `f16`, `f32`.
    pub fn name(self) -> &'static str {
        match self {
            TensorType::F16 => "f16",
            TensorType::F32 => "f32",
        }
    }

    /// The type of this name.
    pub fn parse(name: &str) -> Option<TensorType> {
        [TensorType::F16, TensorType::F32].into_iter().find(|t| t.name() == name)
    }

    pub(super) fn stored(self) -> Stored {
        match self {
            TensorType::F16 => Stored::F16,
            TensorType::F32 => Stored::F32,
        }
    }
}

/// Element types in files. The order is the native format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stored {
    F16,
    F32,
    I64,
    I32,
    U8,
    Bool,
    /// Only in safetensors.
    Bf16,
}

impl Stored {
    /// Bytes of one value.
    pub(super) fn size(self) -> usize {
        match self {
            Stored::I64 => 8,
            Stored::F32 | Stored::I32 => 4,
            Stored::F16 | Stored::Bf16 => 2,
            Stored::U8 | Stored::Bool => 1,
        }
    }
}

/// The bytes of `values` as `dtype`. Errors: a value that f16 can't hold, or values that f16 would
/// turn to zero all of them.
pub(super) fn encode_f32(values: &[f32], dtype: TensorType) -> Result<Vec<u8>> {
    if dtype == TensorType::F32 {
        return Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect());
    }
    let mut bytes = Vec::with_capacity(values.len().saturating_mul(2));
    let (mut any, mut kept) = (false, false);
    for &value in values {
        let half = f16::from_f32(value);
        if !half.is_finite() {
            return Err(Error::bad_input(format!("value {value:e} is too large for f16"))
                .hint("write it as f32"));
        }
        any |= value != 0.0;
        kept |= half != f16::ZERO;
        bytes.extend(half.to_le_bytes());
    }
    if any && !kept {
        return Err(
            Error::bad_input("all its values are too small for f16").hint("write it as f32")
        );
    }
    Ok(bytes)
}

/// Type and bytes of `data`.
pub(super) fn encode(data: &Data) -> (Stored, Vec<u8>) {
    match data {
        Data::F32(v) => (Stored::F32, v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Data::I64(v) => (Stored::I64, v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Data::I32(v) => (Stored::I32, v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Data::U8(v) => (Stored::U8, v.clone()),
        Data::Bool(v) => (Stored::Bool, v.iter().map(|&v| u8::from(v)).collect()),
    }
}

/// Floats from f32, f16 or bf16 bytes, widened without loss. Errors: another type, a value that is
/// not finite, no memory.
pub(super) fn decode_f32(dtype: Stored, bytes: &[u8]) -> Result<Vec<f32>> {
    let values = match dtype {
        Stored::F32 => read(bytes, f32::from_le_bytes)?,
        Stored::F16 => read(bytes, |b| f16::from_le_bytes(b).to_f32())?,
        Stored::Bf16 => read(bytes, |b| bf16::from_le_bytes(b).to_f32())?,
        other => {
            return Err(Error::bad_input(format!("expected float values, found {other:?}")));
        }
    };
    super::check::finite("it", &values)?;
    Ok(values)
}

/// A tensor of the native file's types but f16. Errors: another type, a boolean that is neither 0
/// nor 1, a shape that does not hold the values, no memory.
pub(super) fn decode(dtype: Stored, shape: Vec<usize>, bytes: &[u8]) -> Result<Array> {
    let data = match dtype {
        Stored::F32 => Data::F32(decode_f32(dtype, bytes)?),
        Stored::I64 => Data::I64(read(bytes, i64::from_le_bytes)?),
        Stored::I32 => Data::I32(read(bytes, i32::from_le_bytes)?),
        Stored::U8 => Data::U8(read(bytes, u8::from_le_bytes)?),
        Stored::Bool => {
            if let Some(byte) = bytes.iter().find(|&&b| b > 1) {
                return Err(Error::bad_input(format!("boolean {byte} is neither 0 nor 1")));
            }
            Data::Bool(read(bytes, |[b]| b == 1)?)
        }
        Stored::F16 | Stored::Bf16 => {
            return Err(Error::bad_input(format!("type {dtype:?} is not allowed here")));
        }
    };
    Array::new(shape, data)
}

fn read<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
    let (chunks, rest) = bytes.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(Error::bad_input(format!("{} bytes are no multiple of {N}", bytes.len())));
    }
    let mut values = Vec::new();
    if values.try_reserve_exact(chunks.len()).is_err() {
        return Err(Error::failed(format!("no memory for {} values", chunks.len())));
    }
    values.extend(chunks.iter().map(|chunk| value(*chunk)));
    Ok(values)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn floats_come_back() {
        let v = [0.0, -1.5, 0.1, 65504.0];
        assert_eq!(decode_f32(Stored::F32, &encode_f32(&v, TensorType::F32).unwrap()).unwrap(), v);
        let half = decode_f32(Stored::F16, &encode_f32(&v, TensorType::F16).unwrap()).unwrap();
        assert!(half.iter().zip(v).all(|(h, v)| (h - v).abs() <= v.abs() / 2048.0));
        assert_eq!(decode_f32(Stored::Bf16, &[0x80, 0x3f, 0, 0xc0]).unwrap(), [1.0, -2.0]);
    }

    #[test]
    fn what_f16_cannot_hold_is_refused() {
        assert!(encode_f32(&[1e6], TensorType::F16).is_err());
        assert!(encode_f32(&[1e-9, 0.0], TensorType::F16).is_err());
        assert!(encode_f32(&[0.0, 0.0], TensorType::F16).is_ok());
        assert!(decode_f32(Stored::F16, &[0, 0x7c]).is_err());
        assert!(decode_f32(Stored::I64, &[0; 8]).is_err());
        assert!(decode_f32(Stored::F32, &[0; 3]).is_err());
        assert!(decode(Stored::Bool, vec![1], &[2]).is_err());
    }
}
