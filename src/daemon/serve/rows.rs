//! Arrays of a run, row by row.

use crate::error::{Error, Result};
use crate::runtime::Engine;
use crate::shape::{Array, DType, Data};

/// Zeros, unless they are too many.
pub(super) fn zero(shape: Vec<usize>, dtype: DType) -> Result<Array> {
    let n = crate::shape::volume(&shape).filter(|n| *n <= 1 << 26);
    let n =
        n.ok_or_else(|| Error::unsupported(format!("an input of shape {shape:?} is not probed")))?;
    let data = match dtype {
        DType::F32 => Data::F32(vec![0.0; n]),
        DType::I64 => Data::I64(vec![0; n]),
        DType::I32 => Data::I32(vec![0; n]),
        DType::U8 => Data::U8(vec![0; n]),
        DType::Bool => Data::Bool(vec![false; n]),
    };
    Array::new(shape, data)
}

/// Whether all inputs and outputs have one free first dimension: the batch.
pub(super) fn rows_are_free(engine: &Engine) -> bool {
    let mut first = engine.inputs().iter().chain(engine.outputs()).map(|s| s.dims.first());
    let Some(Some(batch)) = first.next() else { return false };
    batch.parse::<u64>().is_err() && first.all(|dim| dim == Some(batch))
}

/// Row `row` of the first axis, which stays, with one row.
pub(super) fn one_row(array: &Array, row: usize) -> Result<Array> {
    fn part<T: Clone>(values: &[T], rows: usize, row: usize) -> Vec<T> {
        let width = values.len() / rows.max(1);
        values.get(row * width..(row + 1) * width).unwrap_or_default().to_vec()
    }
    let mut shape = array.shape().to_vec();
    let rows = shape.first().copied().unwrap_or(1);
    if let Some(first) = shape.first_mut() {
        *first = 1;
    }
    let data = match array.data() {
        Data::F32(v) => Data::F32(part(v, rows, row)),
        Data::I64(v) => Data::I64(part(v, rows, row)),
        Data::I32(v) => Data::I32(part(v, rows, row)),
        Data::U8(v) => Data::U8(part(v, rows, row)),
        Data::Bool(v) => Data::Bool(part(v, rows, row)),
    };
    Array::new(shape, data)
}
