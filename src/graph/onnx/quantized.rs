//! From numbers to integers and back. The operators over integers (QLinearConv, MatMulInteger, …) are
//! made of these at import.

use super::{Wire, Wiring};
use crate::graph::Quotient;
use crate::graph::rounding::{ByteRange, RoundThrough};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::tract_hir::internal::*;

super::readers! {
    "DequantizeLinear" => dequantize;
    "DynamicQuantizeLinear" => dynamic;
    "OffshootQuotient" => quotient;
    "OffshootRound" => round;
    "QuantizeLinear" => quantize;
}

fn range(dtype: DatumType) -> TractResult<(f64, f64)> {
    Ok(match dtype {
        DatumType::U8 => (0.0, u8::MAX as f64),
        DatumType::I8 => (i8::MIN as f64, i8::MAX as f64),
        DatumType::U16 => (0.0, u16::MAX as f64),
        DatumType::I16 => (i16::MIN as f64, i16::MAX as f64),
        other => bail!("integers of the type {other:?} are not known"),
    })
}

/// A scale or zero point, shaped to go with x: one value, one for each slice of `axis`, or one for
/// each block of slices.
fn spread(w: &mut Wiring<'_>, x: Wire, values: Wire) -> TractResult<Wire> {
    let (rank, own) = (w.rank(x)?, w.rank(values)?);
    let single = w.shape(values)?.iter().all(|d| d.is_one());
    if single && own <= 1 {
        return if own == 1 { w.remove_axis(values, 0) } else { Ok(values) };
    }
    let axis = w.axis(w.int("axis", 1), rank)?;
    let block = w.int("block_size", 0);
    if own == 1 {
        ensure!(block == 0, "blocks take scales of {rank} axes, found 1");
        let mut values = values;
        for _ in axis + 1..rank {
            let last = w.rank(values)?;
            values = w.add_axis(values, last)?;
        }
        return Ok(values);
    }
    ensure!(own == rank, "scales of {own} axes for a tensor of {rank}");
    let length = w.shape(x)?[axis].to_usize().context("the axis must have a fixed length")?;
    let blocks = w.shape(values)?[axis].to_usize().context("the number of scales is open")?;
    if blocks == length {
        return Ok(values);
    }
    let size = if block > 0 { block as usize } else { length.div_ceil(blocks.max(1)) };
    ensure!(
        blocks > 0 && length.div_ceil(size) == blocks,
        "{blocks} scales for {length} in blocks of {size}"
    );
    let places: Vec<i64> = (0..length).map(|i| (i / size) as i64).collect();
    let places = w.tensor(tensor1(&places))?;
    w.gather(values, axis, places)
}

fn onnx_type(value: i64) -> TractResult<DatumType> {
    let known = i32::try_from(value).ok().and_then(|v| DataType::try_from(v).ok());
    Ok(match known {
        Some(DataType::Float) => DatumType::F32,
        Some(DataType::Float16) => DatumType::F16,
        Some(DataType::Double) => DatumType::F64,
        Some(DataType::Uint8) => DatumType::U8,
        Some(DataType::Int8) => DatumType::I8,
        Some(DataType::Uint16) => DatumType::U16,
        Some(DataType::Int16) => DatumType::I16,
        Some(other) => bail!("the element type {} is not known", other.as_str_name()),
        None => bail!("element type {value} is not known"),
    })
}

fn quantize(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (x, scale) = (w.input(0)?, w.input(1)?);
    let zero = w.optional(2);
    let dtype = match (zero, w.int("output_dtype", 0)) {
        (Some(zero), _) => w.dtype(zero)?,
        (None, 0) => DatumType::U8,
        (None, stated) => onnx_type(stated)?,
    };
    let (low, high) = range(dtype)?;
    let scale = spread(w, x, scale)?;
    let scale = w.cast(scale, f32::datum_type())?;
    let x = w.cast(x, f32::datum_type())?;
    let y = w.binary(Box::new(Quotient), x, scale)?;
    let mut y = w.op(RoundThrough, &[y])?;
    if let Some(zero) = zero {
        let zero = spread(w, x, zero)?;
        let zero = w.cast(zero, f32::datum_type())?;
        y = w.add(y, zero)?;
    }
    let y = w.clamp(y, low, high)?;
    Ok(tvec!(w.cast(y, dtype)?))
}

fn dequantize(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (x, scale) = (w.input(0)?, w.input(1)?);
    ensure!(
        matches!(w.dtype(x)?, DatumType::I32) || range(w.dtype(x)?).is_ok(),
        "integers of the type {:?} are not known",
        w.dtype(x)?
    );
    let dtype = match w.int("output_dtype", 0) {
        0 => w.dtype(scale)?,
        stated => onnx_type(stated)?,
    };
    let mut y = x;
    if let Some(zero) = w.optional(2) {
        // Exact in f32 for all but 32 bits.
        let between = match w.dtype(x)? {
            DatumType::I32 => DatumType::I32,
            _ => DatumType::F32,
        };
        let zero = spread(w, x, zero)?;
        let zero = w.cast(zero, between)?;
        y = w.cast(y, between)?;
        y = w.sub(y, zero)?;
    }
    let y = w.cast(y, f32::datum_type())?;
    let scale = spread(w, x, scale)?;
    let scale = w.cast(scale, f32::datum_type())?;
    let y = w.mul(y, scale)?;
    Ok(tvec!(w.cast(y, dtype)?))
}

/// A quotient that is rounded afterwards.
fn quotient(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (a, b) = (w.input(0)?, w.input(1)?);
    let exact = [w.dtype(a)?, w.dtype(b)?] == [f32::datum_type(); 2];
    Ok(tvec!(if exact { w.binary(Box::new(Quotient), a, b)? } else { w.div(a, b)? }))
}

/// To u8, by the least and greatest value there is: the integers, the scale, the zero point.
fn dynamic(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let x = w.cast(x, f32::datum_type())?;
    let range = w.ops(ByteRange, &[x])?;
    let (scale, point) = (range[0], range[1]);
    let y = w.binary(Box::new(Quotient), x, scale)?;
    let y = w.op(RoundThrough, &[y])?;
    let y = w.add(y, point)?;
    let y = w.clamp(y, 0.0, 255.0)?;
    Ok(tvec!(w.cast(y, u8::datum_type())?, scale, w.cast(point, u8::datum_type())?))
}

fn round(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    Ok(tvec!(w.op(RoundThrough, &[x])?))
}
