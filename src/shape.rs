//! Host tensors: shape, element type, values. What the public API takes and gives.

use crate::error::{Error, Result};

/// Element type of an [`Array`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 8-bit unsigned integer.
    U8,
    /// Boolean.
    Bool,
}

impl DType {
    /// The name used on the command line and in files: `f32`, `i64`, `i32`, `u8`, `bool`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::U8 => "u8",
            DType::Bool => "bool",
        }
    }

    /// The type of this name.
    pub fn parse(name: &str) -> Option<DType> {
        [DType::F32, DType::I64, DType::I32, DType::U8, DType::Bool]
            .into_iter()
            .find(|t| t.name() == name)
    }
}

/// Values of an [`Array`], row-major.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Data {
    F32(Vec<f32>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    U8(Vec<u8>),
    Bool(Vec<bool>),
}

impl Data {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Data::F32(v) => v.len(),
            Data::I64(v) => v.len(),
            Data::I32(v) => v.len(),
            Data::U8(v) => v.len(),
            Data::Bool(v) => v.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A dense row-major tensor. Holding one proves that the shape's product is the number of values.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    shape: Vec<usize>,
    data: Data,
}

impl Array {
    /// A tensor of `shape`; an error if the number of values is another.
    pub fn new(shape: impl Into<Vec<usize>>, data: Data) -> Result<Array> {
        let shape = shape.into();
        match volume(&shape) {
            Some(n) if n == data.len() => Ok(Array { shape, data }),
            _ => Err(Error::bad_input(format!(
                "shape {shape:?} does not hold {} values",
                data.len()
            ))),
        }
    }

    /// A float tensor.
    pub fn f32(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Result<Array> {
        Array::new(shape, Data::F32(values))
    }

    /// A 64-bit integer tensor.
    pub fn i64(shape: impl Into<Vec<usize>>, values: Vec<i64>) -> Result<Array> {
        Array::new(shape, Data::I64(values))
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self.data {
            Data::F32(_) => DType::F32,
            Data::I64(_) => DType::I64,
            Data::I32(_) => DType::I32,
            Data::U8(_) => DType::U8,
            Data::Bool(_) => DType::Bool,
        }
    }

    /// The values.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Takes the values out.
    pub fn into_data(self) -> Data {
        self.data
    }

    /// The values as floats, or an error naming the type found.
    pub fn as_f32(&self) -> Result<&[f32]> {
        match &self.data {
            Data::F32(v) => Ok(v),
            _ => {
                Err(Error::bad_input(format!("expected f32 values, found {}", self.dtype().name())))
            }
        }
    }

    /// The values as 64-bit integers, or an error naming the type found.
    pub fn as_i64(&self) -> Result<&[i64]> {
        match &self.data {
            Data::I64(v) => Ok(v),
            _ => {
                Err(Error::bad_input(format!("expected i64 values, found {}", self.dtype().name())))
            }
        }
    }
}

/// Product of the dimensions, `None` where it overflows.
pub fn volume(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}
