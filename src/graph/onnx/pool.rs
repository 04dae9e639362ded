//! Pools: windows that reach past the end (`ceil_mode`), pads that depend on the size, powers.

use super::{Wire, Wiring};
use tract_onnx::tract_core::ops::cnn::{MaxPool, PaddingSpec, PoolSpec, SumPool};
use tract_onnx::tract_core::ops::math::Pow;
use tract_onnx::tract_core::ops::nn::DataFormat;
use tract_onnx::tract_hir::internal::*;

super::readers! {
    "AveragePool" => average;
    "LpPool" => power;
    "MaxPool" => max;
}

/// One spatial axis of a pool.
#[derive(Clone, Copy, Debug)]
struct Axis {
    kernel: usize,
    stride: usize,
    dilation: usize,
    /// Pads as the file states them.
    before: usize,
    after: usize,
    /// How far the last window reaches past `before + length + after`, or falls short of it.
    beyond: isize,
    /// Padded as SAME_UPPER says, for a length that is open.
    same_upper: bool,
    /// Input and output lengths where they are known.
    lengths: Option<(usize, usize)>,
}

impl Axis {
    fn field(&self) -> usize {
        (self.kernel - 1) * self.dilation + 1
    }

    /// Pads that give each window room.
    fn pads(&self) -> (usize, usize) {
        let after = (self.after as isize + self.beyond).max(0);
        (self.before, after as usize)
    }
}

fn axes(w: &Wiring<'_>, x: Wire) -> TractResult<Vec<Axis>> {
    let shape = w.shape(x)?;
    ensure!(shape.len() >= 3, "an input of {} axes, at least 3 are pooled", shape.len());
    let count = shape.len() - 2;
    let kernel = w.sizes("kernel_shape", count, 0)?;
    let strides = w.sizes("strides", count, 1)?;
    let dilations = w.sizes("dilations", count, 1)?;
    let pads = w.sizes("pads", 2 * count, 0)?;
    ensure!(
        kernel.iter().chain(&strides).chain(&dilations).all(|v| *v > 0),
        "a kernel, stride or dilation is 0"
    );
    let ceil = w.int("ceil_mode", 0) != 0;
    let auto = w.text("auto_pad", "NOTSET");
    (0..count)
        .map(|i| {
            let mut axis = Axis {
                kernel: kernel[i],
                stride: strides[i],
                dilation: dilations[i],
                before: pads[i],
                after: pads[i + count],
                beyond: 0,
                same_upper: auto == "SAME_UPPER" && shape[i + 2].to_usize().is_err(),
                lengths: None,
            };
            let length = shape[i + 2].to_usize().ok();
            match auto {
                "NOTSET" | "" => {}
                "VALID" => (axis.before, axis.after) = (0, 0),
                "SAME_UPPER" if axis.same_upper => {}
                "SAME_UPPER" | "SAME_LOWER" => {
                    let length = length.with_context(|| {
                        format!("auto_pad {auto} takes a fixed size, found {}", shape[i + 2])
                    })?;
                    let out = length.div_ceil(axis.stride);
                    let needed =
                        ((out.max(1) - 1) * axis.stride + axis.field()).saturating_sub(length);
                    let less = needed / 2;
                    (axis.before, axis.after) = if auto == "SAME_UPPER" {
                        (less, needed - less)
                    } else {
                        (needed - less, less)
                    };
                }
                other => bail!("auto_pad is '{other}'"),
            }
            let room = axis.before + axis.after;
            match length {
                Some(length) => {
                    ensure!(
                        length + room >= axis.field(),
                        "a window of {} does not fit into {length} and pads of {room}",
                        axis.field()
                    );
                    let span = length + room - axis.field();
                    let mut out = span / axis.stride + 1;
                    if ceil && auto != "VALID" {
                        out = span.div_ceil(axis.stride) + 1;
                        // A window must not begin behind the input and the pads before it.
                        if (out - 1) * axis.stride >= length + axis.before {
                            out -= 1;
                        }
                    }
                    let reach = (out - 1) * axis.stride + axis.field();
                    axis.beyond = (reach as isize) - (length + room) as isize;
                    axis.lengths = Some((length, out));
                }
                None if ceil && axis.stride > 1 && !axis.same_upper => {
                    ensure!(
                        axis.after + axis.stride <= axis.field(),
                        "ceil_mode with these pads and strides takes a fixed size, found {}",
                        shape[i + 2]
                    );
                    axis.beyond = axis.stride as isize - 1;
                }
                None => {}
            }
            Ok(axis)
        })
        .collect()
}

/// Pads are explicit even where another padding says the same: not all have a text form.
fn spec(w: &Wiring<'_>, x: Wire, axes: &[Axis]) -> TractResult<PoolSpec> {
    let channels = w.shape(x)?[1].to_usize().context("the number of channels must be fixed")?;
    let (before, after): (Vec<usize>, Vec<usize>) = axes.iter().map(Axis::pads).unzip();
    let padding = match axes.iter().any(|a| a.same_upper) {
        true => PaddingSpec::SameUpper,
        false => PaddingSpec::Explicit(TVec::from_vec(before), TVec::from_vec(after)),
    };
    Ok(PoolSpec::new(
        DataFormat::NCHW,
        axes.iter().map(|a| a.kernel).collect(),
        padding,
        Some(axes.iter().map(|a| a.dilation).collect()),
        Some(axes.iter().map(|a| a.stride).collect()),
        channels,
        channels,
    ))
}

fn max(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    ensure!(!w.has_output(1), "the positions of the largest values (output 1) are not known");
    let x = w.input(0)?;
    let axes = axes(w, x)?;
    let pool_spec = spec(w, x, &axes)?;
    Ok(tvec!(w.op(MaxPool { pool_spec, with_index_outputs: None }, &[x])?))
}

fn average(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let axes = axes(w, x)?;
    let pool_spec = spec(w, x, &axes)?;
    let count_pads = w.int("count_include_pad", 0) != 0;
    let reaches = axes.iter().any(|a| a.beyond > 0);
    if !count_pads || !reaches {
        let op = SumPool { pool_spec, count_include_pad: count_pads, normalize: true };
        return Ok(tvec!(w.op(op, &[x])?));
    }
    // Stated pads count, what lies behind them doesn't: sums over counts.
    let sum = SumPool { pool_spec, count_include_pad: true, normalize: false };
    let mut y = w.op(sum, &[x])?;
    let rank = axes.len() + 2;
    for (i, axis) in axes.iter().enumerate() {
        let (length, out) =
            axis.lengths.context("count_include_pad with ceil_mode takes a fixed size")?;
        let end = axis.before + length + axis.after;
        let counts: Vec<f32> = (0..out)
            .map(|o| {
                let taps = (0..axis.kernel).map(|k| o * axis.stride + k * axis.dilation);
                taps.filter(|at| *at < end).count() as f32
            })
            .collect();
        let mut shape = vec![1; rank];
        shape[i + 2] = out;
        let counts = tensor1(&counts).into_shape(&shape)?.cast_to_dt(w.dtype(x)?)?.into_owned();
        let counts = w.tensor(counts)?;
        y = w.div(y, counts)?;
    }
    Ok(tvec!(y))
}

/// (Σ |x|^p)^(1/p)
fn power(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let axes = axes(w, x)?;
    let pool_spec = spec(w, x, &axes)?;
    // p was a float before operator set 2.
    let p = if w.opset < 2 { w.float("p", 2.0) as f64 } else { w.int("p", 2) as f64 };
    ensure!(p > 0.0, "p is {p}");
    let mut y = w.abs(x)?;
    if p != 1.0 {
        let exponent = w.number(p, y)?;
        y = w.binary(Box::new(Pow), y, exponent)?;
    }
    y = w.op(SumPool { pool_spec, count_include_pad: true, normalize: false }, &[y])?;
    if p != 1.0 {
        let exponent = w.number(1.0 / p, y)?;
        y = w.binary(Box::new(Pow), y, exponent)?;
    }
    Ok(tvec!(y))
}
