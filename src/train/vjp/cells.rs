//! Rules of the recurrent cells.

use tract_core::internal::*;

use super::{InputGradients, Site, Wires};
use crate::error::Result;
use crate::graph::Functions;

/// (dgates\[.., 4·H\], dc\[.., H\]) of an LSTM's cell from (x, from_h, c, dh, dc): both gates' gradients
/// are the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LstmCellGradient;

/// (dx\[.., 3·H\], dfrom_h\[.., 3·H\], dh\[.., H\]) of a GRU's cell from (x, from_h, h, dh).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GruCellGradient;

pub(super) fn lstm(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let mut gradients = tvec![];
    for slot in 0..2 {
        gradients.push(match site.gradients.get(slot).copied().flatten() {
            Some(gradient) => gradient,
            None => {
                let fact = b.fact(OutletId::new(site.node.id, slot))?.clone();
                b.zeros(fact.datum_type, &fact.shape)?
            }
        });
    }
    let inputs = [site.input(0)?, site.input(1)?, site.input(2)?, gradients[0], gradients[1]];
    let found = b.wire_all(LstmCellGradient, &inputs)?;
    Ok(tvec![Some(found[0]), Some(found[0]), Some(found[1])])
}

pub(super) fn gru(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let inputs = [site.input(0)?, site.input(1)?, site.input(2)?, site.gradient()?];
    Ok(b.wire_all(GruCellGradient, &inputs)?.into_iter().map(Some).collect())
}

impl Op for LstmCellGradient {
    fn name(&self) -> StaticName {
        "OffshootLstmCellGradient".into()
    }

    op_as_typed_op!();
}

fn floats(tensor: &Tensor) -> TractResult<&[f32]> {
    tensor.try_as_plain_ram()?.as_slice::<f32>()
}

impl EvalOp for LstmCellGradient {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let functions = Functions::new()?;
        ensure!(inputs.len() == 5, "expected 5 inputs, found {}", inputs.len());
        let n = inputs[2].shape().last().copied().unwrap_or(0).max(1);
        let dc = inputs.remove(4);
        let mut gates = inputs.remove(1).into_tensor();
        let [x, c, dh] = [floats(&inputs[0])?, floats(&inputs[1])?, floats(&inputs[2])?];
        let mut dc = dc.into_tensor();
        let mut plain = gates.try_as_plain_ram_mut()?;
        let values = plain.as_slice_mut::<f32>()?;
        let mut dc_plain = dc.try_as_plain_ram_mut()?;
        let dc_values = dc_plain.as_slice_mut::<f32>()?;
        let fits = c.len() == dh.len() && c.len() == dc_values.len();
        ensure!(fits && values.len() == 4 * c.len() && x.len() == values.len(), "shapes");
        values.iter_mut().zip(x).for_each(|(g, x)| *g += x);
        let mut tanh = vec![0f32; n];
        let rows = values.chunks_exact_mut(4 * n).zip(dc_values.chunks_exact_mut(n));
        for ((row, dc), (c, dh)) in rows.zip(c.chunks_exact(n).zip(dh.chunks_exact(n))) {
            functions.sigmoid(&mut row[..2 * n])?;
            functions.tanh(&mut row[2 * n..3 * n])?;
            functions.sigmoid(&mut row[3 * n..])?;
            let (input, rest) = row.split_at_mut(n);
            let (forget, rest) = rest.split_at_mut(n);
            let (new, output) = rest.split_at_mut(n);
            for (j, tanh) in tanh.iter_mut().enumerate() {
                *tanh = forget[j] * c[j] + input[j] * new[j];
            }
            functions.tanh(&mut tanh)?;
            for (j, dc) in dc.iter_mut().enumerate() {
                let (i, f, g, o, t) = (input[j], forget[j], new[j], output[j], tanh[j]);
                let d = *dc + dh[j] * o * (1.0 - t * t);
                input[j] = d * g * i * (1.0 - i);
                forget[j] = d * c[j] * f * (1.0 - f);
                new[j] = d * i * (1.0 - g * g);
                output[j] = dh[j] * t * o * (1.0 - o);
                *dc = d * f;
            }
        }
        Ok(tvec![gates.into_tvalue(), dc.into_tvalue()])
    }
}

impl TypedOp for LstmCellGradient {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 5 && inputs.iter().all(|f| f.datum_type.is::<f32>()));
        Ok(tvec![inputs[1].without_value(), inputs[2].without_value()])
    }

    as_op!();
}

impl Op for GruCellGradient {
    fn name(&self) -> StaticName {
        "OffshootGruCellGradient".into()
    }

    op_as_typed_op!();
}

impl EvalOp for GruCellGradient {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let functions = Functions::new()?;
        let (x, from_h, h, dh) = args_4!(inputs);
        let n = h.shape().last().copied().unwrap_or(0).max(1);
        let (mut dx, mut from_h) = (x.into_tensor(), from_h.into_tensor());
        let mut dh = dh.into_tensor();
        let h = floats(&h)?;
        let mut plain = (
            dx.try_as_plain_ram_mut()?,
            from_h.try_as_plain_ram_mut()?,
            dh.try_as_plain_ram_mut()?,
        );
        let dx_values = plain.0.as_slice_mut::<f32>()?;
        let h_values = plain.1.as_slice_mut::<f32>()?;
        let dh_values = plain.2.as_slice_mut::<f32>()?;
        let fits = dx_values.len() == 3 * h.len() && h_values.len() == 3 * h.len();
        ensure!(fits && dh_values.len() == h.len(), "shapes");
        let rows = dx_values.chunks_exact_mut(3 * n).zip(h_values.chunks_exact_mut(3 * n));
        for ((x, from), (h, dh)) in rows.zip(h.chunks_exact(n).zip(dh_values.chunks_exact_mut(n))) {
            x.iter_mut().zip(&from[..2 * n]).for_each(|(x, h)| *x += h);
            functions.sigmoid(&mut x[..2 * n])?;
            let (gates, new) = x.split_at_mut(2 * n);
            let (reset, update) = gates.split_at_mut(n);
            for (j, new) in new.iter_mut().enumerate() {
                *new += reset[j] * from[2 * n + j];
            }
            functions.tanh(new)?;
            for (j, dh) in dh.iter_mut().enumerate() {
                let (r, z, t, d) = (reset[j], update[j], new[j], *dh);
                let dnew = d * (1.0 - z) * (1.0 - t * t);
                reset[j] = dnew * from[2 * n + j] * r * (1.0 - r);
                update[j] = d * (h[j] - t) * z * (1.0 - z);
                new[j] = dnew;
                from[j] = reset[j];
                from[n + j] = update[j];
                from[2 * n + j] = dnew * r;
                *dh = d * z;
            }
        }
        Ok(tvec![dx.into_tvalue(), from_h.into_tvalue(), dh.into_tvalue()])
    }
}

impl TypedOp for GruCellGradient {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 4 && inputs.iter().all(|f| f.datum_type.is::<f32>()));
        Ok(inputs[..3].iter().map(|f| f.without_value()).collect())
    }

    as_op!();
}
