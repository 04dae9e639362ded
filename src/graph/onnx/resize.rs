//! Resize and Upsample. What tract's own operation covers goes to it; the rest becomes one product with
//! a matrix of weights for each axis.

use super::{Wire, Wiring};
use tract_onnx::tract_core::ops::nn::resize::{
    AxisPlan, CoordTransformer, Interpolator, Nearest, Resize, cubic_weights, linear_weights,
    plan_axis, window_size,
};
use tract_onnx::tract_hir::internal::*;

super::readers! {
    "Resize" => resize;
    "Upsample" => upsample;
}

/// One axis that changes: how far (as the file states it), and its length afterwards.
#[derive(Clone, Debug)]
struct Change {
    axis: usize,
    scale: f32,
    length: Option<usize>,
}

fn upsample(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let scales = match w.constant_floats(1, "scales")? {
        Some(scales) => scales,
        None => w.float_list("scales").context("the scales are missing")?,
    };
    let changes = by_scales(w, x, &scales, &(0..w.rank(x)?).collect::<Vec<_>>())?;
    let mode = interpolator(w.text("mode", "nearest"))?;
    let y = plain(w, x, &changes, CoordTransformer::Asymmetric, mode, Nearest::Floor)?;
    Ok(tvec!(y))
}

fn interpolator(mode: &str) -> TractResult<Interpolator> {
    Ok(match mode {
        "nearest" => Interpolator::Nearest,
        // Upsample 7 and Resize 10 say "linear" where older files say "bilinear".
        "linear" | "bilinear" => Interpolator::Linear,
        "cubic" => Interpolator::Cubic,
        other => bail!("mode is '{other}'"),
    })
}

fn by_scales(w: &Wiring<'_>, x: Wire, scales: &[f32], axes: &[usize]) -> TractResult<Vec<Change>> {
    ensure!(scales.len() == axes.len(), "{} scales for {} axes", scales.len(), axes.len());
    let shape = w.shape(x)?;
    let changes = axes.iter().zip(scales).filter(|(_, s)| **s != 1.0);
    changes
        .map(|(&axis, &scale)| {
            ensure!(scale.is_finite() && scale > 0.0, "a scale is {scale}");
            let length = shape[axis].to_usize().ok();
            let length = length.map(|n| (n as f32 * scale).floor() as usize);
            Ok(Change { axis, scale, length })
        })
        .collect()
}

fn resize(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let rank = w.rank(x)?;
    let old = w.opset < 11;
    let mut axes: Vec<usize> = (0..rank).collect();
    if let Some(stated) = w.int_list("axes").filter(|a| !a.is_empty()) {
        axes = stated.iter().map(|a| w.axis(*a, rank)).collect::<TractResult<_>>()?;
    }
    let scales = w.constant_floats(if old { 1 } else { 2 }, "scales")?.filter(|s| !s.is_empty());
    let sizes = if old { None } else { w.constant_ints(3, "sizes")? };
    let changes = match (&scales, sizes.filter(|s| !s.is_empty())) {
        (Some(scales), _) => by_scales(w, x, scales, &axes)?,
        (None, Some(sizes)) => by_sizes(w, x, &sizes, &axes)?,
        (None, None) => bail!("neither scales nor sizes are given"),
    };
    let mode = interpolator(w.text("mode", "nearest"))?;
    let coordinates =
        if old { "asymmetric" } else { w.text("coordinate_transformation_mode", "half_pixel") };
    let rounding = if old { "floor" } else { w.text("nearest_mode", "round_prefer_floor") };
    let whole = changes.iter().all(|c| c.scale.round() == c.scale && c.scale >= 1.0);
    // Two ways to round differ where a place lies halfway; with whole scales and half pixels none does.
    let nearest = match (&mode, rounding) {
        (Interpolator::Linear | Interpolator::Cubic, _) | (_, "floor") => Some(Nearest::Floor),
        (_, "round_prefer_ceil") => Some(Nearest::RoundPreferCeil),
        _ if whole && rounding == "round_prefer_floor" && coordinates.ends_with("half_pixel") => {
            Some(Nearest::RoundPreferCeil)
        }
        (_, "round_prefer_floor" | "ceil") => None,
        (_, other) => bail!("nearest_mode is '{other}'"),
    };
    let special = w.int("exclude_outside", 0) != 0
        || w.int("antialias", 0) != 0
        || (w.float("cubic_coeff_a", -0.75) != -0.75 && matches!(mode, Interpolator::Cubic))
        || coordinates == "tf_crop_and_resize";
    if let (false, Some(nearest)) = (special, nearest) {
        let coordinates = CoordTransformer::parse(coordinates)?;
        return Ok(tvec!(plain(w, x, &changes, coordinates, mode, nearest)?));
    }
    let mut y = x;
    for change in changes {
        y = by_matrix(w, y, &change, coordinates, &mode, rounding, (&axes, rank))?;
    }
    Ok(tvec!(y))
}

fn by_sizes(w: &Wiring<'_>, x: Wire, sizes: &[i64], axes: &[usize]) -> TractResult<Vec<Change>> {
    ensure!(sizes.len() == axes.len(), "{} sizes for {} axes", sizes.len(), axes.len());
    let shape = w.shape(x)?;
    let mut changes = vec![];
    for (&axis, &size) in axes.iter().zip(sizes) {
        ensure!((1..=1 << 24).contains(&size), "a size is {size}");
        if shape[axis] == size.to_dim() {
            continue;
        }
        let length = shape[axis].to_usize().with_context(|| {
            format!("sizes are given for axis {axis}, whose length {} is open", shape[axis])
        })?;
        ensure!(length > 0, "axis {axis} is empty");
        changes.push(Change {
            axis,
            scale: size as f32 / length as f32,
            length: Some(size as usize),
        });
    }
    let scales = changes.iter().map(|c| c.scale);
    let unchanged = changes.len() < axes.len();
    let scale = match w.text("keep_aspect_ratio_policy", "stretch") {
        "stretch" => return Ok(changes),
        "not_larger" => scales.fold(if unchanged { 1.0 } else { f32::INFINITY }, f32::min),
        "not_smaller" => scales.fold(if unchanged { 1.0 } else { 0.0 }, f32::max),
        other => bail!("keep_aspect_ratio_policy is '{other}'"),
    };
    let fixed = |axis: usize| shape[axis].to_usize().context("an axis has no fixed length");
    axes.iter()
        .map(|&axis| {
            let length = (fixed(axis)? as f32 * scale).round() as usize;
            Ok(Change { axis, scale, length: Some(length) })
        })
        .collect()
}

/// tract's own operation.
fn plain(
    w: &mut Wiring<'_>,
    x: Wire,
    changes: &[Change],
    coord_transformer: CoordTransformer,
    interpolator: Interpolator,
    nearest: Nearest,
) -> TractResult<Wire> {
    if changes.is_empty() {
        return Ok(x);
    }
    let shape = w.shape(x)?;
    // Its lengths are those of whole scales or of fixed sizes; a scale decides more than the length.
    for change in changes {
        let whole = change.scale.round() == change.scale;
        ensure!(
            whole || change.length.is_some(),
            "a scale of {} takes a fixed length, found {}",
            change.scale,
            shape[change.axis]
        );
    }
    let mut scales = vec![1f32; shape.len()];
    for change in changes {
        scales[change.axis] = change.scale;
    }
    let agrees = changes.iter().all(|c| {
        let length = shape[c.axis].to_usize().ok().map(|n| {
            let whole = c.scale.round() == c.scale;
            if whole { n * c.scale as usize } else { (n as f32 * c.scale) as usize }
        });
        c.length == length
    });
    let op = Resize {
        coord_transformer,
        interpolator,
        nearest,
        optional_scales_input: agrees.then_some(1),
        optional_sizes_input: (!agrees).then_some(1),
    };
    let second = if agrees {
        w.tensor(tensor1(&scales))?
    } else {
        let mut sizes: Vec<TDim> = shape.to_vec();
        for change in changes {
            sizes[change.axis] = change.length.context("a length is open")?.to_dim();
        }
        let fixed: Option<Vec<i64>> = sizes.iter().map(|d| d.to_i64().ok()).collect();
        w.tensor(fixed.map_or_else(|| tensor1(&sizes), |v| tensor1(&v)))?
    };
    w.op(op, &[x, second])
}

fn by_matrix(
    w: &mut Wiring<'_>,
    x: Wire,
    change: &Change,
    coordinates: &str,
    mode: &Interpolator,
    rounding: &str,
    (axes, rank): (&[usize], usize),
) -> TractResult<Wire> {
    let axis = change.axis;
    let from = w.shape(x)?[axis].to_usize().context("the resized axis must have a fixed length")?;
    let to = change.length.context("the resized axis must have a fixed length")?;
    ensure!(from > 0 && to > 0 && from * to <= 1 << 26, "an axis of {from} made {to}");
    let scale = change.scale;
    let crop = coordinates == "tf_crop_and_resize";
    let (start, end) = if crop {
        let roi = w.constant_floats(1, "roi")?.context("the region (roi) is missing")?;
        let count = axes.len();
        let at = axes.iter().position(|a| *a == axis).context("no region for this axis")?;
        ensure!(roi.len() == 2 * count, "a region of {} numbers for {rank} axes", roi.len());
        (roi[at], roi[at + count])
    } else {
        (0.0, 1.0)
    };
    let place = |x_out: usize| -> Option<f32> {
        if crop {
            let last = (from - 1) as f32;
            let width = scale * from as f32;
            let at = if width != 1.0 {
                start * last + x_out as f32 * (end - start) * last / (width - 1.0)
            } else {
                0.5 * (start + end) * last
            };
            return (0.0..=last).contains(&at).then_some(at);
        }
        let transformer = CoordTransformer::parse(coordinates).ok()?;
        Some(transformer.transform(x_out, scale, from, to))
    };
    let antialias = w.int("antialias", 0) != 0 && scale < 1.0;
    let outside = w.int("exclude_outside", 0) != 0;
    let window = window_size(mode, antialias, scale);
    let a = w.float("cubic_coeff_a", -0.75);
    let plan = match mode {
        Interpolator::Linear => plan_axis(from, to, window, outside, place, |r, t| {
            linear_weights(r, scale, antialias, t)
        }),
        Interpolator::Cubic => plan_axis(from, to, window, outside, place, |r, t| {
            cubic_weights(r, scale, a, antialias, t)
        }),
        // r is how far a place lies behind the element before it: above 0, at most 1.
        Interpolator::Nearest => plan_axis(from, to, window, false, place, |r, t| {
            let right = match rounding {
                "floor" => r == 1.0,
                "ceil" => true,
                "round_prefer_ceil" => r >= 0.5,
                _ => r > 0.5,
            };
            t[0] = f32::from(u8::from(!right));
            t[1] = f32::from(u8::from(right));
        }),
    };
    let filling = w.float("extrapolation_value", 0.0);
    let (matrix, added) = dense(&plan, from, to, filling);
    let dtype = w.dtype(x)?;
    let matrix =
        w.tensor(tensor1(&matrix).into_shape(&[to, from])?.cast_to_dt(dtype)?.into_owned())?;
    let moved = w.op(AxisOp::Move(axis, rank - 1), &[x])?;
    let letters: String = ('a'..='z').take(rank - 1).collect();
    let y = w.einsum(&format!("{letters}x,yx->{letters}y"), &[moved, matrix])?;
    let y = w.op(AxisOp::Move(rank - 1, axis), &[y])?;
    if added.iter().all(|v| *v == 0.0) {
        return Ok(y);
    }
    let mut shape = vec![1; rank];
    shape[axis] = to;
    let added = w.tensor(tensor1(&added).into_shape(&shape)?.cast_to_dt(dtype)?.into_owned())?;
    w.add(y, added)
}

/// A plan as a matrix (to, from), and what is added where it reads nothing.
fn dense(plan: &AxisPlan, from: usize, to: usize, filling: f32) -> (Vec<f32>, Vec<f32>) {
    let mut matrix = vec![0f32; to * from];
    let mut added = vec![0f32; to];
    for x in 0..to {
        if plan.extrapolated[x] {
            added[x] = filling;
            continue;
        }
        let taps = x * plan.window..(x + 1) * plan.window;
        for (&i, &weight) in plan.indices[taps.clone()].iter().zip(&plan.weights[taps]) {
            matrix[x * from + i] += weight;
        }
    }
    (matrix, added)
}
