//! Between the public [`Array`] and tract's tensors.

use crate::error::{Error, ErrorKind, Result};
use crate::graph::tract_error;
use crate::pack::{ConstType, ConstantRef};
use crate::shape::{Array, Data, Values, View};
use std::sync::Arc;
use tract_core::internal::*;

/// A tensor of `expected` type; 64-bit integers are narrowed where every value fits.
pub(crate) fn to_tensor(name: &str, view: View<'_>, expected: DatumType) -> Result<Tensor> {
    let shape = view.shape();
    let mismatch = || {
        Error::bad_input(format!(
            "input '{name}': expected {expected:?} values, found {}",
            view.values().dtype().name()
        ))
    };
    let tensor = match (view.values(), expected) {
        (Values::F32(v), DatumType::F32) => Tensor::from_shape(shape, v),
        (Values::F32(v), DatumType::F16) => {
            let half: Vec<f16> = v.iter().map(|&x| f16::from_f32(x)).collect();
            Tensor::from_shape(shape, &half)
        }
        (Values::F32(v), DatumType::F64) => {
            let wide: Vec<f64> = v.iter().map(|&x| x as f64).collect();
            Tensor::from_shape(shape, &wide)
        }
        (Values::I64(v), DatumType::I64) => Tensor::from_shape(shape, v),
        (Values::I64(v), DatumType::I32) => narrowed::<_, i32>(name, shape, v)?,
        (Values::I32(v), DatumType::I32) => Tensor::from_shape(shape, v),
        (Values::I32(v), DatumType::I16) => narrowed::<_, i16>(name, shape, v)?,
        (Values::I32(v), DatumType::I8) => narrowed::<_, i8>(name, shape, v)?,
        (Values::I32(v), DatumType::U16) => narrowed::<_, u16>(name, shape, v)?,
        (Values::I64(v), DatumType::U32) => narrowed::<_, u32>(name, shape, v)?,
        (Values::I64(v), DatumType::U64) => narrowed::<_, u64>(name, shape, v)?,
        (Values::I64(v), DatumType::I16) => narrowed::<_, i16>(name, shape, v)?,
        (Values::I64(v), DatumType::I8) => narrowed::<_, i8>(name, shape, v)?,
        (Values::I64(v), DatumType::U8) => narrowed::<_, u8>(name, shape, v)?,
        (Values::I32(v), DatumType::I64) => {
            let wide: Vec<i64> = v.iter().map(|&x| x as i64).collect();
            Tensor::from_shape(shape, &wide)
        }
        (Values::U8(v), DatumType::U8) => Tensor::from_shape(shape, v),
        (Values::Bool(v), DatumType::Bool) => Tensor::from_shape(shape, v),
        _ => return Err(mismatch()),
    };
    tensor.map_err(|e| tract_error(ErrorKind::BadInput, &e))
}

/// The values in a smaller integer type, if all fit.
fn narrowed<T: Copy, U: Datum + Copy + TryFrom<T>>(
    name: &str,
    shape: &[usize],
    values: &[T],
) -> Result<TractResult<Tensor>> {
    let narrow: Option<Vec<U>> = values.iter().map(|&x| U::try_from(x).ok()).collect();
    let narrow = narrow.ok_or_else(|| {
        Error::bad_input(format!(
            "input '{name}': a value does not fit into {} bits",
            8 * size_of::<U>()
        ))
    })?;
    Ok(Tensor::from_shape(shape, &narrow))
}

/// The public form of an output, in `memory` where that is of its type; half and double precision come out
/// as f32, small integers as i32, unsigned ones of 32 and 64 bits as i64.
pub(crate) fn to_array(name: &str, tensor: &Tensor, memory: Array) -> Result<Array> {
    let (mut shape, memory) = memory.into_parts();
    let failed = |e: TractError| tract_error(ErrorKind::Failed, &e).at(format!("output '{name}'"));
    shape.clear();
    shape.extend_from_slice(tensor.shape());
    fn fill<T: Datum + Copy>(mut values: Vec<T>, tensor: &Tensor) -> TractResult<Vec<T>> {
        values.clear();
        values.extend_from_slice(tensor.cast_to::<T>()?.try_as_plain_ram()?.as_slice::<T>()?);
        Ok(values)
    }
    macro_rules! values {
        ($kind:ident) => {{
            let memory = match memory {
                Data::$kind(values) => values,
                _ => vec![],
            };
            Data::$kind(fill(memory, tensor).map_err(failed)?)
        }};
    }
    let data = match tensor.datum_type() {
        DatumType::F32 | DatumType::F16 | DatumType::F64 => values!(F32),
        DatumType::I64 | DatumType::TDim | DatumType::U32 | DatumType::U64 => values!(I64),
        DatumType::I32 | DatumType::I16 | DatumType::I8 | DatumType::U16 => values!(I32),
        DatumType::U8 => values!(U8),
        DatumType::Bool => values!(Bool),
        other => {
            return Err(Error::unsupported(format!("output '{name}' has the type {other:?}")));
        }
    };
    Array::new(shape, data)
}

/// A constant of the base as a tensor of its own (constants are small).
pub(crate) fn constant(c: &ConstantRef<'_>) -> Result<Arc<Tensor>> {
    let dtype = match c.dtype {
        ConstType::F32 => DatumType::F32,
        ConstType::F16 => DatumType::F16,
        ConstType::F64 => DatumType::F64,
        ConstType::I8 => DatumType::I8,
        ConstType::I16 => DatumType::I16,
        ConstType::I32 => DatumType::I32,
        ConstType::I64 => DatumType::I64,
        ConstType::U8 => DatumType::U8,
        ConstType::U16 => DatumType::U16,
        ConstType::U32 => DatumType::U32,
        ConstType::U64 => DatumType::U64,
        ConstType::Bool => DatumType::Bool,
    };
    let shape: Vec<usize> = c.shape.iter().map(|&d| d as usize).collect();
    if dtype == DatumType::Bool && c.bytes.iter().any(|&b| b > 1) {
        return Err(Error::bad_input(format!("constant '{}' holds no booleans", c.name)));
    }
    let mut tensor = Tensor::zero_dt(dtype, &shape)
        .map_err(|e| tract_error(ErrorKind::BadInput, &e).at(format!("constant '{}'", c.name)))?;
    let mut plain =
        tensor.try_as_plain_ram_mut().map_err(|e| tract_error(ErrorKind::Failed, &e))?;
    plain.as_bytes_mut().copy_from_slice(c.bytes);
    Ok(tensor.into_arc_tensor())
}
