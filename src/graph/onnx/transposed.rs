//! Transposed convolution: pads found from the wanted output, as the operator's definition says.

use super::{Wire, Wiring};
use tract_onnx::tract_core::ops::cnn::{Deconv, KernelFormat, PaddingSpec, PoolSpec};
use tract_onnx::tract_core::ops::nn::DataFormat;
use tract_onnx::tract_hir::internal::*;

super::readers! {
    "ConvTranspose" => transposed;
}

fn transposed(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (x, kernel) = (w.input(0)?, w.input(1)?);
    let dims = w.dims(kernel)?;
    ensure!(dims.len() >= 3, "a kernel of {} axes, at least 3 are known", dims.len());
    let count = dims.len() - 2;
    let stated = w.sizes("kernel_shape", count, 0)?;
    ensure!(
        !w.has("kernel_shape") || stated == dims[2..],
        "kernel_shape is {stated:?}, the weight's is {:?}",
        &dims[2..]
    );
    let group = w.int("group", 1).max(1) as usize;
    ensure!(dims[0] % group == 0, "{} input channels in {group} groups", dims[0]);
    let strides = w.sizes("strides", count, 1)?;
    let dilations = w.sizes("dilations", count, 1)?;
    let mut extra = w.sizes("output_padding", count, 0)?;
    let pads = w.sizes("pads", 2 * count, 0)?;
    let (mut before, mut after) = (pads[..count].to_vec(), pads[count..].to_vec());
    let auto = w.text("auto_pad", "NOTSET");
    let wanted = match w.int_list("output_shape") {
        // Some exporters state the batch and the channels too.
        Some(all) if all.len() == count + 2 => Some(all[2..].to_vec()),
        other => other.filter(|v| !v.is_empty()),
    };
    if wanted.is_some() || auto.starts_with("SAME") {
        let shape = w.shape(x)?;
        for i in 0..count {
            let field = (dims[i + 2] - 1) * dilations[i] + 1;
            let needed = match &wanted {
                Some(wanted) => {
                    let wanted = wanted.get(i).context("output_shape is too short")?;
                    let length = shape[i + 2].to_i64().with_context(|| {
                        format!("output_shape takes an input of fixed size, found {}", shape[i + 2])
                    })?;
                    strides[i] as i64 * (length - 1) + extra[i] as i64 + field as i64 - wanted
                }
                // out = in · stride
                None => field as i64 + extra[i] as i64 - strides[i] as i64,
            };
            // A larger output than the windows reach is filled at its end.
            if needed < 0 {
                extra[i] += needed.unsigned_abs() as usize;
                (before[i], after[i]) = (0, 0);
                continue;
            }
            let needed = needed as usize;
            let less = needed / 2;
            (before[i], after[i]) = match (auto, wanted.is_some()) {
                ("SAME_UPPER", _) => (less, needed - less),
                _ => (needed - less, less),
            };
        }
    } else if auto == "VALID" {
        (before, after) = (vec![0; count], vec![0; count]);
    }
    // (group · in, out, …) → (group · out, in, …)
    let (inputs, outputs) = (dims[0] / group, dims[1]);
    let grouped = w.split_axis(kernel, 0, &[group.to_dim(), inputs.to_dim()])?;
    let grouped = w.op(AxisOp::Move(1, 2), &[grouped])?;
    let kernel = w.merge_axes(grouped, 0, 2)?;
    let bias = match w.optional(2) {
        Some(bias) => bias,
        None => w.number(0.0, x)?,
    };
    let pool_spec = PoolSpec::new(
        DataFormat::NCHW,
        dims[2..].into(),
        PaddingSpec::Explicit(TVec::from_vec(before), TVec::from_vec(after)),
        Some(TVec::from_vec(dilations)),
        Some(TVec::from_vec(strides)),
        inputs * group,
        outputs * group,
    );
    let op = Deconv::new(pool_spec, KernelFormat::OIHW, TVec::from_vec(extra), group);
    Ok(tvec!(w.op(op, &[x, kernel, bias])?))
}
