//! What rules make of small graphs gives what the graphs give.

use super::fuse;
use crate::graph::testing::{matrix, run_model, tensor, values};
use crate::graph::weights::floats;
use crate::graph::{FrozenLinear, FrozenWeights, FusedLinear};
use crate::quant::Activation;
use tract_core::internal::*;
use tract_core::ops::element_wise::ElementWiseOp;
use tract_core::ops::math::{add, erf, max, min, mul};
use tract_core::ops::nn::gelu_approximate::GeluApproximate;
use tract_core::ops::nn::hard_swish;
use tract_core::ops::nn::silu::silu;

struct Net(TypedModel);

impl Net {
    fn op(&mut self, op: impl Into<Box<dyn TypedOp>>, inputs: &[OutletId]) -> OutletId {
        let name = format!("n{}", self.0.nodes.len());
        self.0.wire_node(name, op, inputs).unwrap()[0]
    }

    fn with(&mut self, op: impl Into<Box<dyn TypedOp>>, x: OutletId, value: f32) -> OutletId {
        let name = format!("c{}", self.0.nodes.len());
        let constant = self.0.add_const(name, tensor(&[1, 1, 1], &[value])).unwrap();
        self.op(op, &[x, constant])
    }
}

/// A linear layer over x\[2, 3, 5\], then what `after` wires (given x and the product).
fn check(after: impl Fn(&mut Net, OutletId, OutletId) -> OutletId) -> Vec<FusedLinear> {
    let weights = FrozenWeights::new(vec![matrix(5, 5, &values(25, 1))]);
    let mut net = Net(TypedModel::default());
    let x = net.0.add_source("x", f32::fact([2, 3, 5])).unwrap();
    let bias = net.0.add_const("bias", tensor(&[5], &values(5, 2))).unwrap();
    let op = FrozenLinear::new(&weights, 0, None, true).unwrap();
    let y = net.op(op, &[x, bias]);
    let out = after(&mut net, x, y);
    net.0.select_output_outlets(&[out]).unwrap();
    let input = tensor(&[2, 3, 5], &values(30, 3));
    let run = |model: TypedModel| {
        run_model(model, tvec![input.clone().into_tvalue()], None).unwrap().remove(0)
    };
    let (fused, _) = fuse(net.0.clone()).unwrap();
    let (want, got) = (run(net.0), run(fused.clone()));
    // tract's erf and ours are each within a few 1e-7.
    for (want, got) in floats(&want).unwrap().iter().zip(floats(&got).unwrap()) {
        assert!((want - got).abs() <= 2e-6 * want.abs().max(1.0), "{got} for {want}");
    }
    fused.nodes.iter().filter_map(|n| n.op_as::<FusedLinear>().cloned()).collect()
}

fn activation(after: impl Fn(&mut Net, OutletId) -> OutletId) -> Activation {
    let fused = check(|net, _, y| after(net, y));
    assert_eq!(fused.len(), 1);
    fused[0].activation
}

#[test]
fn gelu_is_found_in_every_form() {
    let scaled = std::f32::consts::FRAC_1_SQRT_2;
    let one_and_erf = |net: &mut Net, y: OutletId| {
        let inner = net.with(mul(), y, scaled);
        let inner = net.op(erf(), &[inner]);
        net.with(add(), inner, 1.0)
    };
    let forms: [fn(&mut Net, OutletId, OutletId) -> OutletId; 3] = [
        |net, y, e| {
            let half = net.with(mul(), e, 0.5);
            net.op(mul(), &[y, half])
        },
        |net, y, e| {
            let half = net.with(mul(), y, 0.5);
            net.op(mul(), &[half, e])
        },
        |net, y, e| {
            let product = net.op(mul(), &[e, y]);
            net.with(mul(), product, 0.5)
        },
    ];
    for form in forms {
        let found = activation(|net, y| {
            let e = one_and_erf(net, y);
            form(net, y, e)
        });
        assert_eq!(found, Activation::Gelu);
    }
    let tanh = activation(|net, y| {
        let op = GeluApproximate { fast_impl: false };
        net.op(ElementWiseOp(Box::new(op), None), &[y])
    });
    assert_eq!(tanh, Activation::GeluTanh);
    // Not GELU: another factor.
    let other = check(|net, _, y| {
        let e = one_and_erf(net, y);
        let product = net.op(mul(), &[e, y]);
        net.with(mul(), product, 0.4)
    });
    assert!(other.is_empty());
}

#[test]
fn other_activations_and_residuals_are_found() {
    assert_eq!(activation(|net, y| net.op(silu(), &[y])), Activation::Silu);
    assert_eq!(activation(|net, y| net.op(hard_swish(), &[y])), Activation::HardSwish);
    let relu6 = activation(|net, y| {
        let low = net.with(max(), y, 0.0);
        net.with(min(), low, 6.0)
    });
    assert_eq!(relu6, Activation::Clamp { low: 0.0, high: 6.0 });
    let fused = check(|net, x, y| {
        let sum = net.op(add(), &[x, y]);
        net.with(max(), sum, 0.0)
    });
    assert_eq!(fused.len(), 1);
    assert!(fused[0].has_residual);
    assert_eq!(fused[0].activation, Activation::Clamp { low: 0.0, high: f32::INFINITY });
    // The product is read twice, so it stays.
    assert!(
        check(|net, _, y| {
            let active = net.op(silu(), &[y]);
            net.op(add(), &[active, y])
        })
        .is_empty()
    );
}

#[test]
fn a_layer_that_gates_another_takes_its_product() {
    let weights = FrozenWeights::new(vec![matrix(5, 5, &values(25, 1))]);
    let second = |net: &mut Net, x: OutletId| {
        let bias = net.0.add_const("second", tensor(&[5], &values(5, 7))).unwrap();
        net.op(FrozenLinear::new(&weights, 0, None, true).unwrap(), &[x, bias])
    };
    let linear = FrozenLinear::new(&weights, 0, None, false).unwrap();
    for first in [true, false] {
        let mut net = Net(TypedModel::default());
        let x = net.0.add_source("x", f32::fact([2, 3, 5])).unwrap();
        let y = net.op(linear.clone(), &[x]);
        let active = net.op(silu(), &[y]);
        let factor = second(&mut net, x);
        let out = net.op(mul(), &if first { [active, factor] } else { [factor, active] });
        net.0.select_output_outlets(&[out]).unwrap();
        let (fused, _) = fuse(net.0.clone()).unwrap();
        let ops: Vec<_> = fused.nodes.iter().filter_map(|n| n.op_as::<FusedLinear>()).collect();
        assert!(ops.len() == 1 && ops[0].gated && fused.nodes.len() == 3, "{ops:?}");
        let input = tensor(&[2, 3, 5], &values(30, 3));
        let run = |model: TypedModel| {
            run_model(model, tvec![input.clone().into_tvalue()], None).unwrap().remove(0)
        };
        let (want, got) = (run(net.0), run(fused));
        for (want, got) in floats(&want).unwrap().iter().zip(floats(&got).unwrap()) {
            assert!((want - got).abs() <= 2e-6 * want.abs().max(1.0), "{got} for {want}");
        }
    }
    // The gate is read elsewhere too, so it stays.
    let mut net = Net(TypedModel::default());
    let x = net.0.add_source("x", f32::fact([2, 3, 5])).unwrap();
    let y = net.op(linear, &[x]);
    let active = net.op(silu(), &[y]);
    let factor = second(&mut net, x);
    let out = net.op(mul(), &[active, factor]);
    net.0.select_output_outlets(&[out, active]).unwrap();
    let (fused, _) = fuse(net.0).unwrap();
    assert!(fused.nodes.iter().filter_map(|n| n.op_as::<FusedLinear>()).all(|op| !op.gated));
}
