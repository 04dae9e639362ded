//! The functions of gates, in elementary ops.

use super::wiring::Wiring;
use crate::import::Function;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::logic::{Iff, comp_gt};
use tract_core::ops::math;
use tract_core::ops::nn::sigmoid;
use tract_onnx::tract_core;
use tract_onnx::tract_hir::internal::*;

/// Wires a gate's function.
pub(super) fn wire_function(
    b: &mut Wiring,
    name: &str,
    function: Function,
    x: OutletId,
) -> TractResult<OutletId> {
    let affine = |b: &mut Wiring, part: &str, x, factor: f32, term: f32| {
        let factor = b.scalar(&format!("{name}.{part}.factor"), factor)?;
        let x = b.op(&format!("{name}.{part}.scaled"), math::mul(), &[x, factor])?;
        let term = b.scalar(&format!("{name}.{part}.term"), term)?;
        b.op(&format!("{name}.{part}"), math::add(), &[x, term])
    };
    let zero = |b: &mut Wiring| b.scalar(&format!("{name}.zero"), 0.0);
    match function {
        Function::Tanh => b.op(name, math::tanh(), &[x]),
        Function::Sigmoid => b.op(name, sigmoid(), &[x]),
        Function::Relu => {
            let zero = zero(b)?;
            b.op(name, math::max(), &[x, zero])
        }
        Function::Affine { alpha, beta } => affine(b, "affine", x, alpha, beta),
        Function::LeakyRelu { alpha } => {
            let zero = zero(b)?;
            let high = b.op(&format!("{name}.high"), math::max(), &[x, zero])?;
            let low = b.op(&format!("{name}.low"), math::min(), &[x, zero])?;
            let low = affine(b, "slope", low, alpha, 0.0)?;
            b.op(name, math::add(), &[high, low])
        }
        Function::ThresholdedRelu { alpha } => {
            let (zero, bound) = (zero(b)?, b.scalar(&format!("{name}.bound"), alpha)?);
            let above = TypedBinOp(comp_gt(), None);
            let above = b.op(&format!("{name}.above"), above, &[x, bound])?;
            b.op(name, Iff, &[above, x, zero])
        }
        Function::ScaledTanh { alpha, beta } => {
            let x = affine(b, "inner", x, beta, 0.0)?;
            let x = b.op(&format!("{name}.tanh"), math::tanh(), &[x])?;
            affine(b, "outer", x, alpha, 0.0)
        }
        Function::HardSigmoid { alpha, beta } => {
            let x = affine(b, "line", x, alpha, beta)?;
            let (zero, one) = (zero(b)?, b.scalar(&format!("{name}.one"), 1.0)?);
            let x = b.op(&format!("{name}.low"), math::max(), &[x, zero])?;
            b.op(name, math::min(), &[x, one])
        }
        Function::Elu { alpha } => {
            let zero = zero(b)?;
            let high = b.op(&format!("{name}.high"), math::max(), &[x, zero])?;
            let low = b.op(&format!("{name}.low"), math::min(), &[x, zero])?;
            let low = b.op(&format!("{name}.exp"), math::exp(), &[low])?;
            let low = affine(b, "below", low, alpha, -alpha)?;
            b.op(name, math::add(), &[high, low])
        }
        Function::Softsign => {
            let size = b.op(&format!("{name}.size"), math::abs(), &[x])?;
            let size = affine(b, "more", size, 1.0, 1.0)?;
            b.op(name, math::div(), &[x, size])
        }
        Function::Softplus => {
            let zero = zero(b)?;
            let high = b.op(&format!("{name}.high"), math::max(), &[x, zero])?;
            let size = b.op(&format!("{name}.size"), math::abs(), &[x])?;
            let size = affine(b, "minus", size, -1.0, 0.0)?;
            let low = b.op(&format!("{name}.exp"), math::exp(), &[size])?;
            let low = affine(b, "more", low, 1.0, 1.0)?;
            let low = b.op(&format!("{name}.ln"), math::ln(), &[low])?;
            b.op(name, math::add(), &[high, low])
        }
    }
}
