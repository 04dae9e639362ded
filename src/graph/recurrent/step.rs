//! One step of a recurrent layer.

use super::functions::wire_function;
use super::wiring::Wiring;
use crate::graph::{FrozenLinear, GruCell, LstmCell};
use crate::import::{Cell, Function, Recurrent};
use tract_core::ops::math;
use tract_onnx::tract_core;
use tract_onnx::tract_hir::internal::*;

pub(super) enum Matrix {
    Frozen(FrozenLinear),
    Free(OutletId),
}

/// One step.
pub(super) struct Step<'a> {
    pub(super) layer: &'a Recurrent,
    pub(super) functions: &'a [Function],
    pub(super) matrices: TVec<Matrix>,
    /// Of the gates i, o and f.
    pub(super) peepholes: TVec<OutletId>,
    pub(super) bias: Option<OutletId>,
}

impl Step<'_> {
    /// h and perhaps c after the step, from x · W_ihᵀ and the states before.
    pub(super) fn wire(
        &self,
        b: &mut Wiring,
        x: OutletId,
        h: OutletId,
        c: Option<OutletId>,
    ) -> TractResult<(OutletId, Option<OutletId>)> {
        let plain = self.layer.clip.is_none()
            && self.peepholes.is_empty()
            && !self.layer.input_forget
            && self.is(&[Function::Sigmoid, Function::Tanh]);
        let from_h = match self.layer.cell {
            Cell::Gru { reset_after: false } => None,
            _ => Some(self.product(b, 0, h)?),
        };
        match (self.layer.cell, from_h, c) {
            (Cell::Lstm, Some(from_h), Some(c)) if plain && self.functions[2] == Function::Tanh => {
                let name = format!("{}.cell", b.prefix);
                let found = b.model.wire_node(name, LstmCell, &[x, from_h, c])?;
                Ok((found[0], Some(found[1])))
            }
            (Cell::Lstm, Some(from_h), Some(c)) => self.lstm(b, x, from_h, c),
            (Cell::Gru { reset_after: true }, Some(from_h), _) if plain => {
                Ok((b.op("cell", GruCell, &[x, from_h, h])?, None))
            }
            (Cell::Gru { .. }, from_h, _) => self.gru(b, x, from_h, h),
            (_, Some(from_h), _) => {
                let sum = b.op("sum", math::add(), &[x, from_h])?;
                Ok((self.function(b, "h", 0, sum)?, None))
            }
            _ => bail!("a recurrent layer without a state"),
        }
    }

    fn is(&self, functions: &[Function]) -> bool {
        self.functions.get(..functions.len()) == Some(functions)
    }

    fn product(&self, b: &mut Wiring, part: usize, h: OutletId) -> TractResult<OutletId> {
        let name = format!("hh{part}");
        let h = if self.layer.round_state { b.rounded(&format!("{name}.h"), h)? } else { h };
        match &self.matrices[part] {
            Matrix::Frozen(op) => {
                let inputs: TVec<OutletId> = [h].into_iter().chain(self.bias).collect();
                b.op(&name, op.clone(), &inputs)
            }
            Matrix::Free(matrix) => b.product(&name, h, *matrix, self.bias),
        }
    }

    /// Gate `gate` of a tensor with several, in PyTorch's order.
    fn gate(
        &self,
        b: &mut Wiring,
        name: &str,
        from: OutletId,
        gate: usize,
    ) -> TractResult<OutletId> {
        b.gate(name, from, 2, gate, self.layer.hidden)
    }

    fn lstm(
        &self,
        b: &mut Wiring,
        x: OutletId,
        from_h: OutletId,
        c: OutletId,
    ) -> TractResult<(OutletId, Option<OutletId>)> {
        let sum = b.op("sum", math::add(), &[x, from_h])?;
        let peep = |b: &mut Wiring, name: &str, gate, at: usize, c| -> TractResult<OutletId> {
            let Some(weight) = self.peepholes.get(at) else { return Ok(gate) };
            let part = b.op(&format!("{name}.seen"), math::mul(), &[*weight, c])?;
            b.op(&format!("{name}.with_seen"), math::add(), &[gate, part])
        };
        let i = self.gate(b, "i.gate", sum, 0)?;
        let i = peep(b, "i", i, 0, c)?;
        let i = self.function(b, "i", 0, i)?;
        let f = if self.layer.input_forget {
            let one = b.model.add_const(format!("{}.one", b.prefix), tensor3(&[[[1f32]]]))?;
            b.op("f", math::sub(), &[one, i])?
        } else {
            let f = self.gate(b, "f.gate", sum, 1)?;
            let f = peep(b, "f", f, 2, c)?;
            self.function(b, "f", 0, f)?
        };
        let g = self.gate(b, "g.gate", sum, 2)?;
        let g = self.function(b, "g", 1, g)?;
        let kept = b.op("kept", math::mul(), &[f, c])?;
        let added = b.op("added", math::mul(), &[i, g])?;
        let c = b.op("c", math::add(), &[kept, added])?;
        let o = self.gate(b, "o.gate", sum, 3)?;
        let o = peep(b, "o", o, 1, c)?;
        let o = self.function(b, "o", 0, o)?;
        let shown = wire_function(b, "shown", self.functions[2], c)?;
        Ok((b.op("h", math::mul(), &[o, shown])?, Some(c)))
    }

    /// h = (1 - z)·n + z·h.
    fn gru(
        &self,
        b: &mut Wiring,
        x: OutletId,
        from_h: Option<OutletId>,
        h: OutletId,
    ) -> TractResult<(OutletId, Option<OutletId>)> {
        let gates = match from_h {
            Some(all) => all,
            None => self.product(b, 0, h)?,
        };
        let gate = |b: &mut Wiring, name: &str, at: usize| -> TractResult<OutletId> {
            let parts = [
                self.gate(b, &format!("{name}.x"), x, at)?,
                self.gate(b, &format!("{name}.h"), gates, at)?,
            ];
            let sum = b.op(&format!("{name}.sum"), math::add(), &parts)?;
            self.function(b, name, 0, sum)
        };
        let (r, z) = (gate(b, "r", 0)?, gate(b, "z", 1)?);
        let part = match from_h {
            Some(all) => {
                let part = self.gate(b, "n.h", all, 2)?;
                b.op("n.reset", math::mul(), &[r, part])?
            }
            None => {
                let reset = b.op("h.reset", math::mul(), &[r, h])?;
                self.product(b, 1, reset)?
            }
        };
        let n = self.gate(b, "n.x", x, 2)?;
        let n = b.op("n.sum", math::add(), &[n, part])?;
        let n = self.function(b, "n", 1, n)?;
        let change = b.op("change", math::sub(), &[h, n])?;
        let kept = b.op("kept", math::mul(), &[z, change])?;
        Ok((b.op("h", math::add(), &[n, kept])?, None))
    }

    /// Function `at` of a gate, which is clipped before.
    fn function(
        &self,
        b: &mut Wiring,
        name: &str,
        at: usize,
        mut x: OutletId,
    ) -> TractResult<OutletId> {
        if let Some(clip) = self.layer.clip {
            let low = b.scalar(&format!("{name}.low"), -clip)?;
            let high = b.scalar(&format!("{name}.high"), clip)?;
            x = b.op(&format!("{name}.above"), math::max(), &[x, low])?;
            x = b.op(&format!("{name}.below"), math::min(), &[x, high])?;
        }
        wire_function(b, name, self.functions[at], x)
    }
}
