//! A step of a recurrent layer behind its two products, gates in PyTorch's order: steps of a loop's
//! body.

use tract_core::internal::*;
use tract_core::tract_linalg::routines::Func;

use super::weights::{expect_dim, expect_f32, floats};

/// (h, c)\[.., H\] of an LSTM from x·W_ihᵀ + bias and h·W_hhᵀ (+ bias), \[.., 4·H\] each, gates i, f, g, o,
/// and the c before.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LstmCell;

/// h\[.., H\] of a GRU from x·W_ihᵀ + bias and h·W_hhᵀ + bias, \[.., 3·H\] each, gates r, z, n, and the h
/// before; the reset gate is applied behind the product (`linear_before_reset` in ONNX).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GruCell;

/// σ(v) and tanh(v) in place, as tract's own steps compute them.
pub struct Functions {
    sigmoid: Box<dyn tract_linalg::element_wise::ElementWise<f32>>,
    tanh: Box<dyn tract_linalg::element_wise::ElementWise<f32>>,
}

impl Functions {
    /// Those of this processor.
    pub fn new() -> TractResult<Functions> {
        Ok(Functions { sigmoid: Func::Sigmoid.ew_f32()?, tanh: Func::Tanh.ew_f32()? })
    }

    /// σ of each value.
    pub fn sigmoid(&self, values: &mut [f32]) -> TractResult<()> {
        self.sigmoid.run(values)
    }

    /// tanh of each value.
    pub fn tanh(&self, values: &mut [f32]) -> TractResult<()> {
        self.tanh.run(values)
    }
}

/// H, once the shapes of a cell's inputs fit.
fn width(inputs: &[TValue], gates: usize) -> TractResult<usize> {
    ensure!(inputs.len() == 3, "expected 3 inputs, found {}", inputs.len());
    let width = inputs[2].shape().last().copied().unwrap_or(0);
    let rows = inputs[2].len() / width.max(1);
    for input in &inputs[..2] {
        let fits =
            input.shape().last() == Some(&(gates * width)) && input.len() == rows * gates * width;
        ensure!(fits, "gates {:?} for a state {:?}", input.shape(), inputs[2].shape());
    }
    Ok(width)
}

fn facts(inputs: &[&TypedFact], gates: usize) -> TractResult<TypedFact> {
    ensure!(inputs.len() == 3, "expected 3 inputs, found {}", inputs.len());
    let width = inputs[2].shape.last().context("a state is no scalar")?.to_usize()?;
    for input in inputs {
        expect_f32("a cell's input", input)?;
    }
    for input in &inputs[..2] {
        expect_dim("gates", input.shape.last(), gates * width)?;
    }
    Ok(inputs[2].without_value())
}

impl Op for LstmCell {
    fn name(&self) -> StaticName {
        "LstmCell".into()
    }

    op_as_typed_op!();
}

impl EvalOp for LstmCell {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let n = width(&inputs, 4)?;
        let functions = Functions::new()?;
        let (x, from_h, before) = args_3!(inputs);
        let x = floats(&x)?;
        let mut gates = from_h.into_tensor();
        let mut plain = gates.try_as_plain_ram_mut()?;
        let gates = plain.as_slice_mut::<f32>()?;
        gates.iter_mut().zip(x).for_each(|(g, x)| *g += x);
        let mut h = Tensor::zero::<f32>(before.shape())?;
        let mut c = before.into_tensor();
        let (mut h_plain, mut c_plain) = (h.try_as_plain_ram_mut()?, c.try_as_plain_ram_mut()?);
        let h_rows = h_plain.as_slice_mut::<f32>()?.chunks_exact_mut(n.max(1));
        let c_rows = c_plain.as_slice_mut::<f32>()?.chunks_exact_mut(n.max(1));
        for ((row, h), c) in gates.chunks_exact_mut(4 * n.max(1)).zip(h_rows).zip(c_rows) {
            functions.sigmoid(&mut row[..2 * n])?;
            functions.tanh(&mut row[2 * n..3 * n])?;
            functions.sigmoid(&mut row[3 * n..])?;
            let (input, rest) = row.split_at(n);
            let (forget, rest) = rest.split_at(n);
            let (new, output) = rest.split_at(n);
            for (j, c) in c.iter_mut().enumerate() {
                *c = forget[j] * *c + input[j] * new[j];
            }
            h.copy_from_slice(c);
            functions.tanh(h)?;
            h.iter_mut().zip(output).for_each(|(h, o)| *h *= o);
        }
        Ok(tvec!(h.into_tvalue(), c.into_tvalue()))
    }
}

impl TypedOp for LstmCell {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let fact = facts(inputs, 4)?;
        Ok(tvec!(fact.clone(), fact))
    }
}

impl Op for GruCell {
    fn name(&self) -> StaticName {
        "GruCell".into()
    }

    op_as_typed_op!();
}

impl EvalOp for GruCell {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let n = width(&inputs, 3)?;
        let functions = Functions::new()?;
        let (x, from_h, before) = args_3!(inputs);
        let x = floats(&x)?.chunks_exact(3 * n.max(1));
        let mut gates = from_h.into_tensor();
        let mut h = before.into_tensor();
        let (mut plain, mut h_plain) = (gates.try_as_plain_ram_mut()?, h.try_as_plain_ram_mut()?);
        let rows = plain.as_slice_mut::<f32>()?.chunks_exact_mut(3 * n.max(1));
        let h_rows = h_plain.as_slice_mut::<f32>()?.chunks_exact_mut(n.max(1));
        for ((row, x), h) in rows.zip(x).zip(h_rows) {
            let (gates, new) = row.split_at_mut(2 * n);
            gates.iter_mut().zip(x).for_each(|(g, x)| *g += x);
            functions.sigmoid(gates)?;
            let (reset, update) = gates.split_at(n);
            for (j, new) in new.iter_mut().enumerate() {
                *new = reset[j] * *new + x[2 * n + j];
            }
            functions.tanh(new)?;
            for (j, h) in h.iter_mut().enumerate() {
                *h = (1.0 - update[j]) * new[j] + update[j] * *h;
            }
        }
        Ok(tvec!(h.into_tvalue()))
    }
}

impl TypedOp for GruCell {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(facts(inputs, 3)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::testing::{tensor, values};

    fn sigmoid(v: f32) -> f32 {
        1.0 / (1.0 + (-v).exp())
    }

    fn eval(op: impl EvalOp, inputs: [&Tensor; 3]) -> TVec<TValue> {
        let inputs = inputs.into_iter().map(|t| t.clone().into_tvalue()).collect();
        op.eval(&EvalContext::out_of_plan(), inputs).unwrap()
    }

    #[test]
    fn cells_are_pytorchs() {
        let (rows, n) = (3, 5);
        let x = values(rows * 4 * n, 1);
        let from_h = values(rows * 4 * n, 2);
        let state = values(rows * n, 3);
        let before = tensor(&[rows, 1, n], &state);
        let found = eval(
            LstmCell,
            [&tensor(&[rows, 1, 4 * n], &x), &tensor(&[rows, 1, 4 * n], &from_h), &before],
        );
        for (at, old) in state.iter().enumerate() {
            let gate = |k: usize| {
                let place = at / n * 4 * n + k * n + at % n;
                x[place] + from_h[place]
            };
            let c = sigmoid(gate(1)) * old + sigmoid(gate(0)) * gate(2).tanh();
            let h = sigmoid(gate(3)) * c.tanh();
            assert!((floats(&found[0]).unwrap()[at] - h).abs() < 2e-6);
            assert!((floats(&found[1]).unwrap()[at] - c).abs() < 2e-6);
        }
        let (x, from_h) = (&x[..rows * 3 * n], &from_h[..rows * 3 * n]);
        let found = eval(
            GruCell,
            [&tensor(&[rows, 1, 3 * n], x), &tensor(&[rows, 1, 3 * n], from_h), &before],
        );
        for (at, old) in state.iter().enumerate() {
            let place = |k: usize| at / n * 3 * n + k * n + at % n;
            let gate = |k: usize| sigmoid(x[place(k)] + from_h[place(k)]);
            let new = (x[place(2)] + gate(0) * from_h[place(2)]).tanh();
            let h = (1.0 - gate(1)) * new + gate(1) * old;
            assert!((floats(&found[0]).unwrap()[at] - h).abs() < 2e-6);
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let fact = |dims: [usize; 2]| f32::fact(dims);
        let (gates, state) = (fact([2, 12]), fact([2, 3]));
        assert!(LstmCell.output_facts(&[&gates, &gates, &state]).is_ok());
        assert!(GruCell.output_facts(&[&gates, &gates, &state]).is_err());
        assert!(LstmCell.output_facts(&[&gates, &state, &state]).is_err());
        assert!(LstmCell.output_facts(&[&gates, &gates]).is_err());
    }
}
