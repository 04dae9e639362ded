//! Operators that move, make or measure: shapes, pads, crops, grids, places.

use super::{Wire, Wiring};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::tract_core::ops::array::{GatherElements, Pad, PadMode};
use tract_onnx::tract_core::ops::cnn::{Deconv, KernelFormat, PaddingSpec, PoolSpec};
use tract_onnx::tract_core::ops::nn::{DataFormat, Reducer};
use tract_onnx::tract_hir::internal::*;

super::readers! {
    "AffineGrid" => affine_grid;
    "CenterCropPad" => center;
    "Col2Im" => columns_to_image;
    "ConstantOfShape" => constant_of_shape;
    "EyeLike" => eye;
    "OffshootSwapLast" => swap_last;
    "OffshootUnsqueeze" => unsqueeze;
    "Pad" => pad;
    "ReverseSequence" => reverse;
    "ReduceMax" => greatest;
    "ReduceMin" => least;
    "Shape" => shape;
    "SpaceToDepth" => space_to_depth;
    "TensorScatter" => tensor_scatter;
}

/// Larger pads than this don't occur, and would take the memory of the machine.
const MAX_PAD: i64 = 1 << 16;
/// Elements of a tensor that is made of its shape alone.
const MAX_MADE: usize = 1 << 28;

fn shape(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let shape = w.shape(x)?;
    let rank = shape.len() as i64;
    let place = |at: i64| if at < 0 { at + rank } else { at }.clamp(0, rank) as usize;
    let (start, end) = (place(w.int("start", 0)), place(w.int("end", rank)));
    let part = shape.get(start..end).unwrap_or(&[]);
    // Dimensions, whose arithmetic tract follows.
    let tensor = if part.is_empty() { tensor1::<i64>(&[]) } else { tensor1(part) };
    Ok(tvec!(w.tensor(tensor)?))
}

fn greatest(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    extreme(w, Reducer::Max, f64::NEG_INFINITY)
}

fn least(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    extreme(w, Reducer::Min, f64::INFINITY)
}

/// The greatest or least element over axes; of none, the number that any other would replace.
fn extreme(w: &mut Wiring<'_>, reducer: Reducer, of_none: f64) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let (rank, dtype) = (w.rank(x)?, w.dtype(x)?);
    let stated = if w.opset < 18 { w.int_list("axes") } else { w.constant_ints(1, "axes")? };
    let stated = stated.unwrap_or_default();
    if stated.is_empty() && w.int("noop_with_empty_axes", 0) != 0 {
        return Ok(tvec!(x));
    }
    let axes: Vec<usize> = match stated.as_slice() {
        [] => (0..rank).collect(),
        axes => axes.iter().map(|a| w.axis(*a, rank)).collect::<TractResult<_>>()?,
    };
    let keep = w.int("keepdims", 1) != 0;
    let shape = w.shape(x)?;
    if axes.iter().any(|a| shape[*a] == 0.to_dim()) {
        ensure!(dtype.is_float(), "the greatest or least of no integers");
        let kept = shape.iter().enumerate().map(|(i, d)| match axes.contains(&i) {
            true => keep.then(|| 1.to_dim()),
            false => Some(d.clone()),
        });
        let shape: Vec<TDim> = kept.flatten().collect();
        let value = w.number(of_none, x)?;
        return Ok(tvec!(w.broadcast(value, &shape)?));
    }
    if dtype == bool::datum_type() {
        let small = w.cast(x, u8::datum_type())?;
        let y = w.reduce(reducer, small, &axes, keep)?;
        return Ok(tvec!(w.cast(y, dtype)?));
    }
    Ok(tvec!(w.reduce(reducer, x, &axes, keep)?))
}

/// The last two axes exchanged.
fn swap_last(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let rank = w.rank(x)?;
    ensure!(rank >= 2, "{rank} axes, at least 2 are needed");
    Ok(tvec!(w.op(AxisOp::Move(rank - 2, rank - 1), &[x])?))
}

fn unsqueeze(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (x, axis) = (w.input(0)?, w.int("axis", 0) as usize);
    Ok(tvec!(w.add_axis(x, axis)?))
}

fn constant_of_shape(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let shape = w.input(0)?;
    let shape = w.constant(shape)?.context("the shape must not depend on values")?;
    let shape = shape.cast_to::<TDim>()?;
    let shape: Vec<TDim> = shape.try_as_plain_ram()?.as_slice::<TDim>()?.to_vec();
    let known: usize = shape.iter().filter_map(|d| d.to_usize().ok()).product();
    ensure!(known <= MAX_MADE, "makes a tensor of the shape {shape:?}");
    let value = match w.tensor_attribute("value")? {
        Some(value) => {
            ensure!(value.len() == 1, "the value has {} elements, expected 1", value.len());
            value.into_shape(&[])?
        }
        None => tensor0(0f32),
    };
    let value = w.tensor(value)?;
    Ok(tvec!(w.broadcast(value, &shape)?))
}

fn eye(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let dims = w.dims(x)?;
    let &[rows, columns] = dims.as_slice() else { bail!("an input of {} axes", dims.len()) };
    ensure!(rows * columns <= MAX_MADE, "makes a tensor of {rows} x {columns}");
    let dtype = match w.int("dtype", 0) {
        0 => w.dtype(x)?,
        stated => DataType::try_from(stated as i32)
            .map_err(|_| format_err!("element type {stated} is not known"))?
            .try_into()?,
    };
    let k = w.int("k", 0);
    let values: Vec<f32> = (0..rows as i64)
        .flat_map(|r| (0..columns as i64).map(move |c| f32::from(u8::from(c == r + k))))
        .collect();
    let tensor = tensor1(&values).into_shape(&[rows, columns])?.cast_to_dt(dtype)?.into_owned();
    Ok(tvec!(w.tensor(tensor)?))
}

fn pad(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let rank = w.rank(x)?;
    let stated = if w.opset < 11 {
        // Named paddings before operator set 2.
        let name = if w.has("pads") { "pads" } else { "paddings" };
        w.int_list(name)
    } else {
        w.constant_ints(1, "pads")?
    };
    let stated = stated.context("the pads are missing")?;
    let axes: Vec<usize> = match w.constant_ints(3, "axes")? {
        Some(axes) => axes.iter().map(|a| w.axis(*a, rank)).collect::<TractResult<_>>()?,
        None => (0..rank).collect(),
    };
    ensure!(stated.len() == 2 * axes.len(), "{} pads for {} axes", stated.len(), axes.len());
    ensure!(stated.iter().all(|p| p.abs() <= MAX_PAD), "pads by {stated:?}");
    let mut pads = vec![(0i64, 0i64); rank];
    for (i, &axis) in axes.iter().enumerate() {
        pads[axis] = (stated[i], stated[i + axes.len()]);
    }
    let mut y = x;
    // Negative pads cut.
    for (axis, (before, after)) in pads.iter_mut().enumerate() {
        if *before < 0 || *after < 0 {
            let (start, less) = ((-*before).max(0), (-*after).max(0));
            let end = w.shape(y)?[axis].clone() - less;
            let left = end.clone() - start;
            ensure!(
                left.to_i64().map_or(true, |n| n >= 0),
                "pads by {stated:?}, more than there is"
            );
            y = w.slice(y, axis, start, end)?;
            (*before, *after) = ((*before).max(0), (*after).max(0));
        }
    }
    let pads: Vec<(usize, usize)> = pads.iter().map(|p| (p.0 as usize, p.1 as usize)).collect();
    if pads.iter().all(|p| *p == (0, 0)) {
        return Ok(tvec!(y));
    }
    let mode = match w.text("mode", "constant") {
        "constant" => {
            let dtype = w.dtype(y)?;
            let value = if w.opset < 11 {
                tensor0(w.float("value", 0.0))
            } else {
                match w.optional(2) {
                    Some(value) => {
                        let value = w.constant(value)?;
                        let value = value.context("the value to pad with must be constant")?;
                        ensure!(value.len() == 1, "{} values to pad with", value.len());
                        value.into_tensor().into_shape(&[])?
                    }
                    None => Tensor::zero_scalar_dt(dtype)?,
                }
            };
            PadMode::Constant(value.cast_to_dt(dtype)?.into_owned().into_arc_tensor())
        }
        "reflect" => {
            let shape = w.shape(y)?;
            for (&(before, after), length) in pads.iter().zip(&shape) {
                let fits = length.to_usize().map_or(true, |n| before.max(after) < n.max(1));
                ensure!(fits, "reflects {before} and {after} of {length}");
            }
            PadMode::Reflect
        }
        "edge" => PadMode::Edge,
        "wrap" => {
            for (axis, &(before, after)) in pads.iter().enumerate() {
                y = wrapped(w, y, axis, before, after)?;
            }
            return Ok(tvec!(y));
        }
        other => bail!("mode is '{other}'"),
    };
    Ok(tvec!(w.op(Pad { pads, mode }, &[y])?))
}

fn wrapped(
    w: &mut Wiring<'_>,
    x: Wire,
    axis: usize,
    before: usize,
    after: usize,
) -> TractResult<Wire> {
    if (before, after) == (0, 0) {
        return Ok(x);
    }
    let length = w.shape(x)?[axis].to_usize().context("mode wrap takes a fixed length")?;
    ensure!(length > 0, "axis {axis} is empty");
    let places: Vec<i64> =
        (-(before as i64)..(length + after) as i64).map(|i| i.rem_euclid(length as i64)).collect();
    let places = w.tensor(tensor1(&places))?;
    w.gather(x, axis, places)
}

fn center(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let rank = w.rank(x)?;
    let sizes = w.constant_ints(1, "shape")?.context("the shape is missing")?;
    let axes: Vec<usize> = match w.int_list("axes") {
        Some(axes) => axes.iter().map(|a| w.axis(*a, rank)).collect::<TractResult<_>>()?,
        None => (0..rank).collect(),
    };
    ensure!(sizes.len() == axes.len(), "{} sizes for {} axes", sizes.len(), axes.len());
    let mut y = x;
    let mut pads = vec![(0, 0); rank];
    for (&axis, &size) in axes.iter().zip(&sizes) {
        let length = w.shape(y)?[axis].to_i64().context("the axis must have a fixed length")?;
        ensure!((0..=length + MAX_PAD).contains(&size), "a size is {size}");
        let less = (length - size).abs() / 2;
        if size < length {
            y = w.slice(y, axis, less, less + size)?;
        } else {
            pads[axis] = (less as usize, (size - length - less) as usize);
        }
    }
    let value = Tensor::zero_scalar_dt(w.dtype(x)?)?;
    Ok(tvec!(w.pad(y, &pads, value)?))
}

/// Points of a regular grid, moved by matrices theta (N, d, d + 1).
fn affine_grid(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let theta = w.input(0)?;
    let size = w.constant_ints(1, "size")?.context("the size is missing")?;
    let lengths: Vec<usize> = size.iter().skip(2).map(|d| *d as usize).collect();
    let count = lengths.len();
    ensure!(matches!(count, 2 | 3), "{count} spatial axes, 2 and 3 are known");
    let points = lengths.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let points = points.filter(|n| *n <= MAX_MADE / 4).context("the grid is too large")?;
    let corners = w.int("align_corners", 0) != 0;
    let place = |axis: usize, i: usize| -> f32 {
        let length = lengths[axis] as f32;
        if corners {
            -1.0 + 2.0 * i as f32 / (length - 1.0).max(1.0)
        } else {
            (2.0 * i as f32 + 1.0) / length - 1.0
        }
    };
    let mut values = Vec::with_capacity(points * (count + 1));
    for point in 0..points {
        // x first: the last axis.
        let mut rest = point;
        for axis in (0..count).rev() {
            values.push(place(axis, rest % lengths[axis]));
            rest /= lengths[axis];
        }
        values.push(1.0);
    }
    let grid = w.tensor(tensor1(&values).into_shape(&[points, count + 1])?)?;
    let dtype = w.dtype(theta)?;
    let grid = w.cast(grid, dtype)?;
    let y = w.einsum("ndh,ph->npd", &[theta, grid])?;
    let to: Vec<TDim> = lengths.iter().map(|d| d.to_dim()).collect();
    Ok(tvec!(w.split_axis(y, 1, &to)?))
}

/// The transposed convolution whose filters hold a single 1 each.
fn columns_to_image(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let image = w.constant_ints(1, "image_shape")?.context("image_shape is missing")?;
    let block = w.constant_ints(2, "block_shape")?.context("block_shape is missing")?;
    let count = image.len();
    ensure!(count > 0 && block.len() == count, "blocks {block:?} of an image {image:?}");
    ensure!(
        image.iter().chain(&block).all(|v| (1..=MAX_PAD).contains(v)),
        "blocks {block:?} of an image {image:?}"
    );
    let strides = w.sizes("strides", count, 1)?;
    let dilations = w.sizes("dilations", count, 1)?;
    let pads = w.sizes("pads", 2 * count, 0)?;
    let taps: usize = block.iter().map(|b| *b as usize).product();
    let columns = w.shape(x)?[1].to_usize().context("the number of channels must be fixed")?;
    ensure!(taps > 0 && columns % taps == 0 && taps <= 4096, "{columns} rows of {taps} taps");
    let channels = columns / taps;
    let mut lengths: Vec<TDim> = vec![];
    let mut extra = tvec!();
    for i in 0..count {
        let field = (block[i] as usize - 1) * dilations[i] + 1;
        let room = image[i] as usize + pads[i] + pads[i + count];
        ensure!(room >= field && strides[i] > 0, "a block of {field} in {room}");
        lengths.push(((room - field) / strides[i] + 1).to_dim());
        extra.push((room - field) % strides[i]);
    }
    let x = w.split_axis(x, 2, &lengths)?;
    // (channels, taps, …block) with a 1 for each tap.
    let mut filters = vec![0f32; channels * taps * taps];
    for filter in 0..channels * taps {
        filters[filter * taps + filter % taps] = 1.0;
    }
    let mut shape = vec![channels, taps];
    shape.extend(block.iter().map(|b| *b as usize));
    let filters = tensor1(&filters).into_shape(&shape)?.cast_to_dt(w.dtype(x)?)?.into_owned();
    let filters = w.tensor(filters)?;
    let zero = w.number(0.0, x)?;
    let pool_spec = PoolSpec::new(
        DataFormat::NCHW,
        block.iter().map(|b| *b as usize).collect(),
        PaddingSpec::Explicit(pads[..count].into(), pads[count..].into()),
        Some(TVec::from_vec(dilations)),
        Some(TVec::from_vec(strides)),
        columns,
        channels,
    );
    let op = Deconv::new(pool_spec, KernelFormat::OIHW, extra, channels);
    Ok(tvec!(w.op(op, &[x, filters, zero])?))
}

fn space_to_depth(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let block = w.int("blocksize", 0);
    ensure!((1..=MAX_PAD).contains(&block), "blocksize is {block}");
    let shape = w.shape(x)?;
    ensure!(shape.len() == 4, "an input of {} axes, expected 4", shape.len());
    let b = block.to_dim();
    // (N, C, H, b, W, b)
    let x = w.split_axis(x, 3, &[shape[3].clone() / block, b.clone()])?;
    let x = w.split_axis(x, 2, &[shape[2].clone() / block, b])?;
    let order: [usize; 6] = match w.text("mode", "DCR") {
        "DCR" => [0, 3, 5, 1, 2, 4],
        "CRD" => [0, 1, 3, 5, 2, 4],
        other => bail!("mode is '{other}'"),
    };
    let x = w.transpose(x, &order)?;
    Ok(tvec!(w.merge_axes(x, 1, 3)?))
}

/// Values of x taken along `axis` at the places (broadcast to x's shape).
fn taken(
    w: &mut Wiring<'_>,
    x: Wire,
    axis: usize,
    places: Wire,
    shape: &[TDim],
) -> TractResult<Wire> {
    let places = w.broadcast(places, shape)?;
    w.op(GatherElements::new(axis), &[x, places])
}

/// `values` (one for each slice of `axis`) with axes of 1 around, for `rank` axes.
fn along(w: &mut Wiring<'_>, values: Wire, axis: usize, rank: usize) -> TractResult<Wire> {
    let mut values = values;
    for _ in 0..axis {
        values = w.add_axis(values, 0)?;
    }
    for at in axis + 1..rank {
        values = w.add_axis(values, at)?;
    }
    Ok(values)
}

fn reverse(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (x, lengths) = (w.input(0)?, w.input(1)?);
    let shape = w.shape(x)?;
    let rank = shape.len();
    let time = w.axis(w.int("time_axis", 0), rank)?;
    let batch = w.axis(w.int("batch_axis", 1), rank)?;
    ensure!(time != batch, "time and batch are the same axis");
    let lengths = w.cast(lengths, i64::datum_type())?;
    let lengths = along(w, lengths, batch, rank)?;
    let steps = w.counting(&shape[time])?;
    let steps = along(w, steps, time, rank)?;
    let back = w.sub(lengths, steps)?;
    let back = w.shifted(back, -1.0)?;
    let inside = w.less(steps, lengths)?;
    let places = w.select(inside, back, steps)?;
    Ok(tvec!(taken(w, x, time, places, &shape)?))
}

/// `update` written over the cache from each row's place on.
fn tensor_scatter(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (cache, update) = (w.input(0)?, w.input(1)?);
    let shape = w.shape(cache)?;
    let rank = shape.len();
    let axis = w.axis(w.int("axis", -2), rank)?;
    ensure!(axis > 0, "the axis is that of the rows");
    let written = w.shape(update)?[axis].clone();
    let places = w.counting(&shape[axis])?;
    let mut places = along(w, places, axis, rank)?;
    if let Some(starts) = w.optional(2) {
        let starts = w.cast(starts, i64::datum_type())?;
        let starts = along(w, starts, 0, rank)?;
        places = w.sub(places, starts)?;
    }
    let zero = w.number_of(0.0, i64::datum_type())?;
    let length = |w: &mut Wiring<'_>, dim: &TDim| -> TractResult<Wire> {
        let length = w.tensor(tensor0(dim.clone()))?;
        w.cast(length, i64::datum_type())
    };
    match w.text("mode", "linear") {
        "linear" => {}
        "circular" => {
            let around = length(w, &shape[axis])?;
            let around = w.add(places, around)?;
            let early = w.less(places, zero)?;
            places = w.select(early, around, places)?;
        }
        other => bail!("mode is '{other}'"),
    }
    let count = length(w, &written)?;
    let (after, before) = (w.at_least(places, zero)?, w.less(places, count)?);
    let inside = w.both(after, before)?;
    let places = w.select(inside, places, zero)?;
    let taken = taken(w, update, axis, places, &shape)?;
    let inside = w.broadcast(inside, &shape)?;
    Ok(tvec!(w.select(inside, taken, cache)?))
}
