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
    /// The values, borrowed.
    pub fn values(&self) -> Values<'_> {
        match self {
            Data::F32(v) => Values::F32(v),
            Data::I64(v) => Values::I64(v),
            Data::I32(v) => Values::I32(v),
            Data::U8(v) => Values::U8(v),
            Data::Bool(v) => Values::Bool(v),
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.values().len()
    }

    /// Bytes that the values take.
    pub fn byte_len(&self) -> usize {
        match self {
            Data::F32(v) => size_of_val(&v[..]),
            Data::I64(v) => size_of_val(&v[..]),
            Data::I32(v) => size_of_val(&v[..]),
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

impl Default for Array {
    /// No values.
    fn default() -> Array {
        Array { shape: vec![0], data: Data::F32(vec![]) }
    }
}

impl Array {
    /// A tensor of `shape`; an error if the number of values is another.
    pub fn new(shape: impl Into<Vec<usize>>, data: Data) -> Result<Array> {
        let shape = shape.into();
        match volume(&shape) {
            Some(n) if n == data.len() => Ok(Array { shape, data }),
            _ => Err(not_of(&shape, data.len())),
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

    /// The tensor, borrowed.
    pub fn view(&self) -> View<'_> {
        View { shape: &self.shape, values: self.data.values() }
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.data.values().dtype()
    }

    /// The values.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Whether no value is NaN or infinite.
    pub(crate) fn is_finite(&self) -> bool {
        match &self.data {
            Data::F32(values) => values.iter().all(|v| v.is_finite()),
            _ => true,
        }
    }

    /// Takes the values out.
    pub fn into_data(self) -> Data {
        self.data
    }

    /// Takes shape and values out.
    pub(crate) fn into_parts(self) -> (Vec<usize>, Data) {
        (self.shape, self.data)
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

/// Values of a [`View`], row-major.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Values<'a> {
    F32(&'a [f32]),
    I64(&'a [i64]),
    I32(&'a [i32]),
    U8(&'a [u8]),
    Bool(&'a [bool]),
}

impl Values<'_> {
    /// Number of values.
    pub fn len(self) -> usize {
        match self {
            Values::F32(v) => v.len(),
            Values::I64(v) => v.len(),
            Values::I32(v) => v.len(),
            Values::U8(v) => v.len(),
            Values::Bool(v) => v.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(self) -> DType {
        match self {
            Values::F32(_) => DType::F32,
            Values::I64(_) => DType::I64,
            Values::I32(_) => DType::I32,
            Values::U8(_) => DType::U8,
            Values::Bool(_) => DType::Bool,
        }
    }
}

/// A dense row-major tensor that lies in someone else's memory. Holding one proves what an [`Array`]
/// proves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View<'a> {
    shape: &'a [usize],
    values: Values<'a>,
}

impl<'a> View<'a> {
    /// A tensor of `shape`; an error if the number of values is another.
    pub fn new(shape: &'a [usize], values: Values<'a>) -> Result<View<'a>> {
        match volume(shape) {
            Some(n) if n == values.len() => Ok(View { shape, values }),
            _ => Err(not_of(shape, values.len())),
        }
    }

    /// A float tensor.
    pub fn f32(shape: &'a [usize], values: &'a [f32]) -> Result<View<'a>> {
        View::new(shape, Values::F32(values))
    }

    /// A 64-bit integer tensor.
    pub fn i64(shape: &'a [usize], values: &'a [i64]) -> Result<View<'a>> {
        View::new(shape, Values::I64(values))
    }

    /// The dimensions.
    pub fn shape(self) -> &'a [usize] {
        self.shape
    }

    /// The values.
    pub fn values(self) -> Values<'a> {
        self.values
    }
}

/// A named tensor that goes into a run: owned, as `(String, Array)`, or borrowed, as `(&str, View)`.
pub trait Input {
    /// The name.
    fn name(&self) -> &str;
    /// The tensor.
    fn view(&self) -> View<'_>;
}

impl Input for (String, Array) {
    fn name(&self) -> &str {
        &self.0
    }

    fn view(&self) -> View<'_> {
        self.1.view()
    }
}

impl Input for (&str, View<'_>) {
    fn name(&self) -> &str {
        self.0
    }

    fn view(&self) -> View<'_> {
        self.1
    }
}

fn not_of(shape: &[usize], values: usize) -> Error {
    Error::bad_input(format!("shape {shape:?} does not hold {values} values"))
}

/// Product of the dimensions, `None` where it overflows.
pub fn volume(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}
