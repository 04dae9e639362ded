//! Normalizations.

use super::{Wire, Wiring};
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_hir::internal::*;

super::readers! {
    "BatchNormalization" => batch;
    "LRN" => local_response;
    "LayerNormalization" => layer;
    "com.microsoft.EmbedLayerNormalization" => embeddings;
    "com.microsoft.SkipLayerNormalization" => skip_layer;
}

/// One value for each channel, shaped to go with x (N, C, …).
fn by_channel(w: &mut Wiring<'_>, values: Wire, rank: usize) -> TractResult<Wire> {
    let mut values = values;
    for _ in 2..rank {
        let last = w.rank(values)?;
        values = w.add_axis(values, last)?;
    }
    Ok(values)
}

fn batch(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let rank = w.rank(x)?;
    ensure!(w.int("spatial", 1) == 1, "spatial is {}, known is 1", w.int("spatial", 1));
    let epsilon = w.float("epsilon", 1e-5) as f64;
    let (scale, shift) = (w.input(1)?, w.input(2)?);
    let (old_mean, old_var) = (w.input(3)?, w.input(4)?);
    let mut outputs = tvec!();
    let (mean, var) = if w.int("training_mode", 0) == 1 {
        let momentum = w.float("momentum", 0.9) as f64;
        let axes: Vec<usize> = (0..rank).filter(|a| *a != 1).collect();
        let mean = w.mean(x, &axes)?;
        let centred = w.sub(x, mean)?;
        let squares = w.square(centred)?;
        let var = w.mean(squares, &axes)?;
        let channels = w.shape(x)?[1].clone();
        for (new, old) in [(mean, old_mean), (var, old_var)] {
            let new = w.reshape(new, std::slice::from_ref(&channels))?;
            let new = w.scaled(new, 1.0 - momentum)?;
            let old = w.scaled(old, momentum)?;
            outputs.push(w.add(new, old)?);
        }
        (mean, var)
    } else {
        (by_channel(w, old_mean, rank)?, by_channel(w, old_var, rank)?)
    };
    if outputs.is_empty()
        && let Some((slope, start)) = folded(w, [scale, shift, old_mean, old_var], rank, epsilon)?
    {
        let y = w.mul(slope, x)?;
        return Ok(tvec!(w.add(start, y)?));
    }
    let (scale, shift) = (by_channel(w, scale, rank)?, by_channel(w, shift, rank)?);
    let var = w.shifted(var, epsilon)?;
    let deviation = w.sqrt(var)?;
    let slope = w.div(scale, deviation)?;
    let moved = w.mul(mean, slope)?;
    let start = w.sub(shift, moved)?;
    let y = w.mul(slope, x)?;
    let y = w.add(start, y)?;
    outputs.insert(0, y);
    Ok(outputs)
}

/// One factor and one summand for each channel, where scale, shift, mean and variance are constant.
fn folded(
    w: &mut Wiring<'_>,
    parameters: [Wire; 4],
    rank: usize,
    epsilon: f64,
) -> TractResult<Option<(Wire, Wire)>> {
    let mut values: Vec<Vec<f32>> = vec![];
    for wire in parameters {
        let Some(tensor) = w.constant(wire)? else { return Ok(None) };
        let tensor = tensor.cast_to::<f32>()?;
        values.push(tensor.try_as_plain_ram()?.as_slice::<f32>()?.to_vec());
    }
    let channels = values[0].len();
    ensure!(values.iter().all(|v| v.len() == channels), "parameters of different lengths");
    let slope: Vec<f32> =
        values[0].iter().zip(&values[3]).map(|(s, v)| s / (v + epsilon as f32).sqrt()).collect();
    let start: Vec<f32> = (0..channels).map(|c| values[1][c] - values[2][c] * slope[c]).collect();
    let mut shape = vec![1; rank];
    *shape.get_mut(1).context("an input without channels")? = channels;
    let dtype = w.dtype(parameters[0])?;
    let mut constant = |values: &[f32]| -> TractResult<Wire> {
        let tensor = tensor1(values).into_shape(&shape)?.cast_to_dt(dtype)?.into_owned();
        w.tensor(tensor)
    };
    Ok(Some((constant(&slope)?, constant(&start)?)))
}

/// x / (bias + α / size · Σ x² over neighbouring channels)^β
fn local_response(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let size = w.int("size", 0);
    ensure!((1..=1024).contains(&size), "size is {size}");
    let rank = w.rank(x)?;
    let channels = w.shape(x)?[1].clone();
    let size = size as usize;
    let squares = w.square(x)?;
    let mut pads = vec![(0, 0); rank];
    pads[1] = ((size - 1) / 2, size - 1 - (size - 1) / 2);
    let padded = w.pad(squares, &pads, tensor0(0f32))?;
    let mut sum = w.slice(padded, 1, 0, channels.clone())?;
    for i in 1..size {
        let next = w.slice(padded, 1, i, channels.clone() + i)?;
        sum = w.add(sum, next)?;
    }
    let sum = w.scaled(sum, w.float("alpha", 1e-4) as f64 / size as f64)?;
    let sum = w.shifted(sum, w.float("bias", 1.0) as f64)?;
    let beta = w.number(w.float("beta", 0.75) as f64, x)?;
    let power = w.binary(Box::new(math::Pow), sum, beta)?;
    Ok(tvec!(w.div(x, power)?))
}

/// (x − mean) / deviation over the axes from `axis` on: that, the mean and 1 / deviation, in f32.
fn normalized(
    w: &mut Wiring<'_>,
    x: Wire,
    axis: usize,
    epsilon: f64,
) -> TractResult<(Wire, Wire, Wire)> {
    let axes: Vec<usize> = (axis..w.rank(x)?).collect();
    let mean = w.mean(x, &axes)?;
    let centred = w.sub(x, mean)?;
    let squares = w.square(centred)?;
    let var = w.mean(squares, &axes)?;
    let var = w.shifted(var, epsilon)?;
    let inverse = w.rsqrt(var)?;
    Ok((w.mul(centred, inverse)?, mean, inverse))
}

fn scaled_and_shifted(
    w: &mut Wiring<'_>,
    x: Wire,
    scale: Option<Wire>,
    shift: Option<Wire>,
) -> TractResult<Wire> {
    let dtype = w.dtype(x)?;
    let mut y = x;
    if let Some(scale) = scale {
        let scale = w.cast(scale, dtype)?;
        y = w.mul(y, scale)?;
    }
    if let Some(shift) = shift {
        let shift = w.cast(shift, dtype)?;
        y = w.add(y, shift)?;
    }
    Ok(y)
}

fn layer(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let input = w.input(0)?;
    let axis = w.axis(w.int("axis", -1), w.rank(input)?)?;
    let dtype = w.dtype(input)?;
    let wide = if dtype == f16::datum_type() && w.int("stash_type", 1) == 1 {
        f32::datum_type()
    } else {
        dtype
    };
    let x = w.cast(input, wide)?;
    let (y, mean, inverse) = normalized(w, x, axis, w.float("epsilon", 1e-5) as f64)?;
    let (scale, shift) = (w.optional(1), w.optional(2));
    let y = scaled_and_shifted(w, y, scale, shift)?;
    Ok(tvec!(w.cast(y, dtype)?, mean, inverse))
}

/// The layer normalization of the sum of the inputs; outputs 0 and 3 are that and the sum.
fn skip_layer(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (x, skip) = (w.input(0)?, w.input(1)?);
    let mut sum = w.add(x, skip)?;
    if let Some(bias) = w.optional(4) {
        sum = w.add(sum, bias)?;
    }
    let axis = w.axis(-1, w.rank(sum)?)?;
    let (y, mean, inverse) = normalized(w, sum, axis, w.float("epsilon", 1e-12) as f64)?;
    let (scale, shift) = (w.optional(2), w.optional(3));
    let y = scaled_and_shifted(w, y, scale, shift)?;
    Ok(tvec!(y, mean, inverse, sum))
}

/// BERT's first layer: the rows of three tables, their sum normalized; and each row's length.
fn embeddings(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let ids = w.input(0)?;
    let length = w.shape(ids)?[1].clone();
    let table = w.input(2)?;
    let mut sum = w.gather(table, 0, ids)?;
    let positions = match w.optional(8) {
        Some(positions) => positions,
        None => w.counting(&length)?,
    };
    let table = w.input(3)?;
    let rows = w.gather(table, 0, positions)?;
    sum = w.add(sum, rows)?;
    if let (Some(segments), Some(table)) = (w.optional(1), w.optional(4)) {
        let rows = w.gather(table, 0, segments)?;
        sum = w.add(sum, rows)?;
    }
    let (y, ..) = normalized(w, sum, 2, w.float("epsilon", 1e-12) as f64)?;
    let (scale, shift) = (w.input(5)?, w.input(6)?);
    let y = scaled_and_shifted(w, y, Some(scale), Some(shift))?;
    let counts = match w.optional(7) {
        Some(mask) => {
            let mask = w.cast(mask, i32::datum_type())?;
            w.sum(mask, &[1], false)?
        }
        None => {
            let batch = w.shape(ids)?[0].clone();
            let zero = w.number_of(0.0, i32::datum_type())?;
            w.broadcast(zero, &[batch])?
        }
    };
    Ok(tvec!(y, counts, sum))
}
