//! Sums of products of two tensors where they lie: tract packs both sides of every matrix product
//! anew, which costs more than the product where one side is as thin as an adapter.

use tract_core::internal::*;
use tract_core::ops::einsum::EinSum;
use tract_core::ops::scan::Scan;

use super::weights::{expect_f32, filled, floats};
use crate::quant::{ContractedAxis, contract};

/// An [`EinSum`] of two f32 tensors, every subscript of which is in two tensors at least and in none
/// twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Contraction {
    axes: AxesMapping,
}

impl Contraction {
    /// The same as `op` on inputs of these facts, if it can be one.
    fn of(op: &EinSum, inputs: &[&TypedFact]) -> Option<Contraction> {
        let plain = op.q_params.is_none()
            && op.operating_dt == f32::datum_type()
            && inputs.len() == 2
            && op.axes.output_count() == 1
            && inputs.iter().all(|f| f.is_plain() && f.datum_type == f32::datum_type());
        let axis_fits = |axis: &Axis| {
            let places = [&axis.inputs[0], &axis.inputs[1], &axis.outputs[0]];
            let lengths = axis
                .inputs
                .iter()
                .zip(inputs)
                .filter_map(|(places, fact)| places.first().and_then(|&at| fact.shape.get(at)));
            let known: Vec<&TDim> = lengths.collect();
            places.iter().all(|p| p.len() <= 1)
                && places.iter().filter(|p| p.len() == 1).count() >= 2
                && known.windows(2).all(|pair| pair[0] == pair[1])
        };
        let fits = plain && op.axes.iter_all_axes().all(axis_fits);
        fits.then(|| Contraction { axes: op.axes.clone() })
    }

    /// Length and strides of every subscript, and the output's shape.
    fn layout(&self, shapes: [&[usize]; 2]) -> TractResult<(Vec<ContractedAxis>, TVec<usize>)> {
        let length = |axis: &Axis| -> TractResult<usize> {
            let found =
                |i: usize| axis.inputs[i].first().and_then(|&at| shapes[i].get(at)).copied();
            let (x, w) = (found(0), found(1));
            ensure!(x.is_none() || w.is_none() || x == w, "'{}' is {x:?} and {w:?}", axis.repr);
            x.or(w).with_context(|| format!("'{}' is in no input", axis.repr))
        };
        let mut out: TVec<usize> = tvec![0; self.axes.rank(InOut::Out(0))];
        let all: Vec<&Axis> = self.axes.iter_all_axes().collect();
        for axis in &all {
            if let Some(&at) = axis.outputs[0].first() {
                out[at] = length(axis)?;
            }
        }
        let strides = |places: &[usize], shape: &[usize]| match places.first() {
            // Not 0 for an axis that is there: that says that it is not.
            Some(&at) => shape[at + 1..].iter().product::<usize>().max(1),
            None => 0,
        };
        let axes = all.iter().map(|axis| {
            let x = strides(&axis.inputs[0], shapes[0]);
            let w = strides(&axis.inputs[1], shapes[1]);
            let y = strides(&axis.outputs[0], &out);
            Ok(ContractedAxis { len: length(axis)?, strides: [x, w, y] })
        });
        Ok((axes.collect::<TractResult<_>>()?, out))
    }
}

impl Op for Contraction {
    fn name(&self) -> StaticName {
        "Contraction".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![self.axes.to_string()])
    }

    op_as_typed_op!();
}

impl EvalOp for Contraction {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (x, w) = args_2!(inputs);
        let (axes, shape) = self.layout([x.shape(), w.shape()])?;
        let y = filled(&shape, |y| {
            contract(&axes, floats(&x)?, floats(&w)?, y);
            Ok(())
        })?;
        Ok(tvec!(y))
    }
}

impl TypedOp for Contraction {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 2, "expected 2 inputs, found {}", inputs.len());
        inputs.iter().try_for_each(|fact| expect_f32("operand", fact))?;
        let mut shape: TVec<TDim> = tvec![0.to_dim(); self.axes.rank(InOut::Out(0))];
        for axis in self.axes.iter_all_axes() {
            let Some(&to) = axis.outputs[0].first() else { continue };
            let from = (0..2).find_map(|i| Some((i, *axis.inputs[i].first()?)));
            let (input, at) = from.with_context(|| format!("'{}' is in no input", axis.repr))?;
            shape[to] = inputs[input].shape[at].clone();
        }
        Ok(tvec!(f32::fact(shape)))
    }
}

/// Makes a [`Contraction`] of every EinSum that can be one, in the bodies of loops too; how many there
/// were.
pub fn contract_einsums(model: &mut TypedModel) -> TractResult<usize> {
    let mut found = 0;
    for id in 0..model.nodes().len() {
        if let Some(scan) = model.nodes_mut()[id].op_as_mut::<Scan>() {
            found += contract_einsums(&mut scan.body)?;
        }
        let node = model.node(id);
        let Some(op) = node.op_as::<EinSum>() else { continue };
        let Some(op) = Contraction::of(op, &model.node_input_facts(id)?) else { continue };
        model.nodes_mut()[id].op = Box::new(op);
        found += 1;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::testing::{run, tensor, values};

    fn einsum(formula: &str) -> EinSum {
        EinSum::new(formula.parse().unwrap(), f32::datum_type())
    }

    #[test]
    fn the_answer_is_the_einsums() {
        let cases: [(&str, &[usize], &[usize]); 5] = [
            ("btk,rk->btr", &[2, 5, 33], &[8, 33]),
            ("btk,btr->rk", &[2, 5, 33], &[2, 5, 8]),
            ("bqhd,bkhd->bhqk", &[2, 5, 3, 4], &[2, 7, 3, 4]),
            ("bhqk,bkhd->bqhd", &[2, 3, 5, 7], &[2, 7, 3, 4]),
            ("bhqk,bqhd->bkhd", &[2, 3, 5, 7], &[2, 5, 3, 4]),
        ];
        for (formula, x, w) in cases {
            let op = einsum(formula);
            let inputs =
                [(x, 1), (w, 2)].map(|(s, seed)| tensor(s, &values(s.iter().product(), seed)));
            let facts = [f32::fact(x), f32::fact(w)];
            let ours = Contraction::of(&op, &[&facts[0], &facts[1]]).unwrap();
            let want = run(op, &inputs).unwrap();
            let got = run(ours, &inputs).unwrap();
            got.close_enough(&want, Approximation::Close).unwrap();
        }
    }

    #[test]
    fn what_it_cannot_do_stays_an_einsum() {
        let facts = |x: &[usize], w: &[usize]| [f32::fact(x), f32::fact(w)];
        let of = |op: &EinSum, f: &[TypedFact; 2]| Contraction::of(op, &[&f[0], &f[1]]);
        assert!(of(&einsum("mk,nk->mn"), &facts(&[2, 3], &[4, 3])).is_some());
        // An axis that is only summed, one twice in a tensor, one that is broadcast.
        assert!(of(&einsum("mkj,nk->mn"), &facts(&[2, 3, 5], &[4, 3])).is_none());
        assert!(of(&einsum("mm,mn->mn"), &facts(&[3, 3], &[3, 4])).is_none());
        assert!(of(&einsum("mk,nk->mn"), &facts(&[2, 3], &[4, 1])).is_none());
        let ints = [i32::fact([2, 3]), i32::fact([4, 3])];
        assert!(of(&einsum("mk,nk->mn"), &ints).is_none());
    }

    #[test]
    fn einsums_of_a_graph_are_replaced() {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([2, 3])).unwrap();
        let w = model.add_source("w", f32::fact([4, 3])).unwrap();
        let y = model.wire_node("y", einsum("mk,nk->mn"), &[x, w]).unwrap();
        model.select_output_outlets(&y).unwrap();
        let inputs = || tvec![tensor(&[2, 3], &values(6, 1)), tensor(&[4, 3], &values(12, 2))];
        let run = |model: TypedModel| {
            let inputs = inputs().into_iter().map(|t| t.into_tvalue()).collect();
            model.into_runnable().unwrap().run(inputs).unwrap().remove(0)
        };
        let want = run(model.clone());
        assert_eq!(contract_einsums(&mut model).unwrap(), 1);
        assert!(model.node(y[0].node).op_is::<Contraction>());
        run(model).close_enough(&want, Approximation::Close).unwrap();
    }
}
