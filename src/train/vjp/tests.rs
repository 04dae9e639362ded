//! Every rule against central differences, and what rules refuse.

use tract_core::internal::*;
use tract_core::ops::array as a;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, SumPool};
use tract_core::ops::einsum::EinSum;
use tract_core::ops::math as m;
use tract_core::ops::nn::{DataFormat, Reduce, Reducer};

use crate::graph as g;

use super::TABLE;
use super::cases::build::{pool_spec, pools, weights, windows};
use super::cases::cases;
use super::check::{gradients, random, slice};

#[test]
fn every_rule_agrees_with_central_differences() {
    // Its gradient is not that of the steps, see below.
    for entry in TABLE.iter().filter(|e| e.name != "RoundThrough") {
        let rule = entry.name;
        let cases = cases(rule);
        assert!(!cases.is_empty(), "the rule for {rule} has no test");
        for (i, case) in cases.into_iter().enumerate() {
            println!("{rule} {i}");
            assert!(case.contains(entry.matches), "case {i} of {rule} doesn't hold the op");
            case.check();
        }
    }
}

#[test]
fn gradients_go_through_the_rounding_of_quantized_models() {
    let mut model = TypedModel::default();
    let x = model.add_source("x", f32::fact([3])).unwrap();
    let y = model.wire_node("round", g::RoundThrough, &[x]).unwrap()[0];
    let y = model.wire_node("square", m::square(), &[y]).unwrap()[0];
    let loss = model.wire_node("loss", Reduce::new(tvec![0], Reducer::Sum), &[y]).unwrap()[0];
    let found = gradients(&mut model, loss, &[x]).unwrap();
    model.select_output_outlets(&found).unwrap();
    let got = super::check::run(&model, &[tensor1(&[0.6f32, -2.4, 3.0])]);
    assert_eq!(slice(&got[0]), [2.0, -4.0, 6.0]);
}

#[test]
fn names_are_unique_and_each_op_has_one_rule() {
    let names: Vec<_> = TABLE.iter().map(|e| e.name).collect();
    for (i, name) in names.iter().enumerate() {
        assert!(!names[..i].contains(name), "{name} twice");
    }
}

fn refused(inputs: Vec<Tensor>, op: impl Into<Box<dyn TypedOp>>) -> String {
    let mut model = TypedModel::default();
    let sources: Vec<OutletId> = inputs
        .iter()
        .enumerate()
        .map(|(i, t)| model.add_source(format!("x{i}"), TypedFact::shape_and_dt_of(t)).unwrap())
        .collect();
    let y = model.wire_node("the node", op, &sources).unwrap()[0];
    let axes = (0..model.outlet_fact(y).unwrap().rank()).collect();
    let loss = model.wire_node("loss", Reduce::new(axes, Reducer::Sum), &[y]).unwrap()[0];
    let floats = |s: &OutletId| model.outlet_fact(*s).unwrap().datum_type.is_float();
    let wanted: Vec<OutletId> = sources.into_iter().filter(floats).collect();
    let e = gradients(&mut model, loss, &wanted).unwrap_err();
    assert_eq!(e.kind(), crate::error::ErrorKind::Unsupported);
    e.message().to_string()
}

#[test]
fn what_a_rule_does_not_cover_is_refused_by_name() {
    let x = || random(&[3, 4], 1);
    let times = a::ScatterElements { axis: 0, reduction: a::ScatterReduction::Mul };
    let diagonal = EinSum::new("ii->i".parse().unwrap(), f32::datum_type());
    let spec = pool_spec(DataFormat::NCHW, &[2, 2], PaddingSpec::Valid);
    let conv = Conv { pool_spec: spec, kernel_fmt: KernelFormat::OIHW, group: 1, q_params: None };
    let conv_inputs = vec![random(&[1, 2, 3, 3], 1), random(&[2, 2, 2, 2], 2), random(&[2], 3)];
    for (message, op, why) in [
        (refused(vec![x(), tensor2(&[[0i64]]), random(&[1, 1], 1)], times), "Scatter", "mul"),
        (refused(vec![random(&[3, 3], 1)], diagonal), "EinSum", "twice"),
        (refused(conv_inputs, conv), "Conv", "kernel"),
    ] {
        assert!(
            message.contains(op) && message.contains("'the node'") && message.contains(why),
            "{message}"
        );
    }
}

/// Gradient of x of Σ op(x, y): at ties, where differences say nothing.
fn at_ties(op: TypedBinOp, x: Tensor, y: Tensor, y_constant: bool) -> Vec<Vec<f32>> {
    let mut model = TypedModel::default();
    let xs = model.add_source("x", TypedFact::shape_and_dt_of(&x)).unwrap();
    let (ys, trained, inputs) = if y_constant {
        (model.add_const("y", y).unwrap(), vec![xs], vec![x])
    } else {
        let ys = model.add_source("y", TypedFact::shape_and_dt_of(&y)).unwrap();
        (ys, vec![xs, ys], vec![x, y])
    };
    let z = model.wire_node("z", op, &[xs, ys]).unwrap()[0];
    let loss = model.wire_node("loss", Reduce::new(tvec![0], Reducer::Sum), &[z]).unwrap()[0];
    let gradients = gradients(&mut model, loss, &trained).unwrap();
    model.select_output_outlets(&gradients).unwrap();
    super::check::run(&model, &inputs).iter().map(|t| slice(t).to_vec()).collect()
}

#[test]
fn extrema_split_ties_and_stop_at_a_constant_bound() {
    let (x, y) = (tensor1(&[0f32, 1., 2.]), tensor1(&[1f32, 1., 1.]));
    let split = at_ties(m::max(), x.clone(), y.clone(), false);
    assert_eq!(split, [[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]]);
    let split = at_ties(m::min(), x.clone(), y, false);
    assert_eq!(split, [[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]]);
    let bound = tensor1(&[1f32]);
    assert_eq!(at_ties(m::max(), x.clone(), bound.clone(), true), [[0.0, 0.0, 1.0]]);
    assert_eq!(at_ties(m::min(), x, bound, true), [[1.0, 0.0, 0.0]]);
}

#[test]
fn pow_has_no_slope_in_the_base_where_the_exponent_is_zero() {
    let got = at_ties(m::pow(), tensor1(&[0f32, 2.]), tensor1(&[0f32, 3.]), true);
    assert_eq!(got, [[0.0, 12.0]]);
}

/// The gradient graph of Σ op(x, constants) for a batch B, bound to 2 afterwards.
fn bound_afterwards(op: impl Into<Box<dyn TypedOp>>, x: Tensor, constants: &[Tensor]) {
    let op = op.into();
    let gradient = |free: bool| {
        let mut model = TypedModel::default();
        let batch = model.symbols.sym("B");
        let mut dims: TVec<TDim> = x.shape().iter().map(|d| d.to_dim()).collect();
        if free {
            dims[0] = batch.to_dim();
        }
        let mut inputs = tvec![model.add_source("x", f32::fact(dims)).unwrap()];
        for (i, constant) in constants.iter().enumerate() {
            inputs.push(model.add_const(format!("c{i}"), constant.clone()).unwrap());
        }
        let y = model.wire_node("op", op.clone(), &inputs).unwrap()[0];
        let y = model.wire_node("exp", m::exp(), &[y]).unwrap()[0];
        let axes = (0..x.rank()).collect();
        let mut loss = model.wire_node("loss", Reduce::new(axes, Reducer::Sum), &[y]).unwrap();
        for axis in (0..x.rank()).rev() {
            loss = model.wire_node(format!("rm{axis}"), AxisOp::Rm(axis), &loss).unwrap();
        }
        let trained = [inputs[0]];
        let gradients = gradients(&mut model, loss[0], &trained).unwrap();
        model.select_output_outlets(&gradients).unwrap();
        if free {
            let subs = HashMap::from([(batch, 2.to_dim())]);
            model = g::substitute(&model, &subs).unwrap();
            assert!(model.output_fact(0).unwrap().shape.is_concrete());
        }
        super::check::run(&model, std::slice::from_ref(&x)).remove(0)
    };
    gradient(true).close_enough(&gradient(false), Approximation::Close).unwrap();
}

#[test]
fn a_gradient_graph_may_be_bound_after_it_is_built() {
    let (pool_spec, shape) = pools().remove(0);
    let pool = SumPool { pool_spec: pool_spec.clone(), count_include_pad: false, normalize: true };
    bound_afterwards(pool, random(&shape, 1), &[]);
    let conv = Conv { pool_spec, kernel_fmt: KernelFormat::OIHW, group: 1, q_params: None };
    bound_afterwards(conv, random(&shape, 1), &[random(&[2, 2, 2, 2], 2), random(&[2], 3)]);
    bound_afterwards(a::Slice::new(1, 1, 2), random(&shape, 1), &[]);
    let conv = g::FrozenConv::new(&weights(), 1, None, false, windows()[1]).unwrap();
    bound_afterwards(conv, random(&[2, 5, 6, 3], 1), &[]);
}

#[test]
fn of_relu6_only_the_output_is_kept_for_the_gradient() {
    let mut model = TypedModel::default();
    let x = model.add_source("x", f32::fact([4])).unwrap();
    let zero = model.add_const("zero", tensor1(&[0f32])).unwrap();
    let six = model.add_const("six", tensor1(&[6f32])).unwrap();
    let relu = model.wire_node("relu", m::max(), &[x, zero]).unwrap()[0];
    let relu6 = model.wire_node("relu6", m::min(), &[relu, six]).unwrap()[0];
    let loss = model.wire_node("loss", Reduce::new(tvec![0], Reducer::Sum), &[relu6]).unwrap()[0];
    let gradients = gradients(&mut model, loss, &[x]).unwrap();
    assert_eq!(model.outlet_successors(relu).len(), 1);
    assert_eq!(model.outlet_successors(x).len(), 1);
    model.select_output_outlets(&gradients).unwrap();
    let got = super::check::run(&model, &[tensor1(&[-1f32, 1., 5., 7.])]);
    assert_eq!(slice(&got[0]), [0.0, 1.0, 1.0, 0.0]);
}
