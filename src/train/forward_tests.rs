//! Every kind on every layer: what is wired is what is bound, and its gradients.

use super::*;
use crate::adapter::{Adapter, Kind, NamedTensor, Target, TargetAdapter, TargetKind, bind};
use crate::fingerprint::BaseFingerprint;
use crate::graph::{ActiveAdapter, FrozenWeights, Padding, Window};
use crate::quant::{Packed, Scheme, WeightSource};
use crate::train::kind::{Start, Wiring, wiring};
use crate::train::vjp::check::{Case, random, slice};
use tract_core::ops::math;

const RANK: usize = 2;
const BASE: BaseFingerprint = BaseFingerprint([7; 32]);

fn window() -> Window {
    Window {
        kernel: [3, 2],
        stride: [2, 1],
        dilation: [1, 1],
        padding: Padding::Explicit([1, 0, 1, 1]),
    }
}

/// A layer, its input, its bias, and what the target table says of it.
struct Sample {
    op: Box<dyn TypedOp>,
    x: Tensor,
    bias: Option<Tensor>,
    target: Target,
}

fn weights() -> Vec<Packed> {
    let shapes = [(6, 4), (6, 24), (7, 6)];
    let packed = |(i, (rows, cols)): (usize, (usize, usize))| {
        let values = random(&[rows, cols], i as u64 + 1);
        Packed::pack(Scheme::F32, rows, cols, slice(&values)).unwrap()
    };
    shapes.into_iter().enumerate().map(packed).collect()
}

fn samples() -> Vec<Sample> {
    let table = FrozenWeights::new(weights());
    let target = |kind, weight, in_features, out_features| Target {
        module_path: format!("layer.{weight}"),
        node: "layer".into(),
        kind,
        weight,
        in_features,
        out_features,
    };
    let bias = || Some(random(&[6], 9));
    let linear = |bias| -> Box<dyn TypedOp> {
        Box::new(FrozenLinear::new(&table, 0, Some(0), bias).unwrap())
    };
    let conv = FrozenConv::new(&table, 1, Some(0), true, window()).unwrap();
    let embedding = FrozenEmbedding::new(&table, 2, Some(0)).unwrap();
    let kernel = TargetKind::Conv { kernel: [3, 2], one_axis: false };
    vec![
        Sample {
            op: linear(true),
            x: random(&[5, 3, 4], 4),
            bias: bias(),
            target: target(TargetKind::Linear, 0, 4, 6),
        },
        Sample {
            op: linear(false),
            x: random(&[5, 4], 4),
            bias: None,
            target: target(TargetKind::Linear, 0, 4, 6),
        },
        Sample {
            op: Box::new(conv),
            x: random(&[5, 5, 4, 4], 5),
            bias: bias(),
            target: target(kernel, 1, 24, 6),
        },
        Sample {
            op: Box::new(embedding),
            x: tensor2(&[[3i64, 0], [6, -1], [2, 3], [3, 5], [1, 1]]),
            bias: None,
            target: target(TargetKind::Embedding, 2, 7, 6),
        },
    ]
}

impl Sample {
    fn wire(&self, model: &mut TypedModel, x: OutletId) -> OutletId {
        let mut inputs = tvec![x];
        if let Some(bias) = &self.bias {
            inputs.push(model.add_const("bias", bias.clone()).unwrap());
        }
        model.wire_node("layer", self.op.clone(), &inputs).unwrap()[0]
    }

    fn model(&self) -> (TypedModel, usize) {
        let mut model = TypedModel::default();
        let x = model.add_source("x", TypedFact::shape_and_dt_of(&self.x)).unwrap();
        let layer = self.wire(&mut model, x);
        let y = model.wire_node("exp", math::tanh(), &[layer]).unwrap()[0];
        model.select_output_outlets(&[y]).unwrap();
        (model, layer.node)
    }

    /// A kind's tensors at their first values; `None` for a layer that it has no form for.
    fn tensors(&self, kind: &dyn Wiring) -> Option<Vec<NamedTensor>> {
        let weights = weights();
        let start = Start {
            target: &self.target,
            frozen: weights.weight(self.target.weight as usize).unwrap(),
            bias: self.bias.as_ref().map(slice),
            rank: RANK,
            seed: 5,
        };
        match kind.tensors(&start) {
            Ok(tensors) => Some(tensors),
            Err(e) => {
                assert_eq!(e.kind(), crate::error::ErrorKind::Unsupported);
                assert!(e.message().contains("embedding"), "{e}");
                assert_eq!(self.target.kind, TargetKind::Embedding);
                None
            }
        }
    }
}

fn kinds() -> Vec<(Kind, &'static dyn Wiring)> {
    Kind::all().filter_map(|kind| Some((kind, wiring(kind).ok()?))).collect()
}

fn trained(tensors: &[NamedTensor]) -> Vec<Trained> {
    tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect()
}

fn as_tensors(tensors: &[NamedTensor]) -> Vec<Tensor> {
    tensors.iter().map(|t| Tensor::from_shape(&t.shape, &t.values).unwrap()).collect()
}

/// The values moved, so that none is where training starts.
fn moved(tensors: &[NamedTensor]) -> Vec<NamedTensor> {
    let moved = |(i, t): (usize, &NamedTensor)| {
        let noise = random(&[t.values.len()], 20 + i as u64);
        // What comes before a relu keeps off its corner.
        let off = |at: usize| match t.name.as_str() {
            "down_bias" => [8.0, -8.0][at % 2],
            _ => 0.0,
        };
        let values = t.values.iter().zip(slice(&noise)).enumerate();
        let values = values.map(|(at, (v, n))| v + 0.5 * n + off(at)).collect();
        NamedTensor::new(&t.name, &t.shape, values)
    };
    tensors.iter().enumerate().map(moved).collect()
}

fn run(model: TypedModel, inputs: &[Tensor], active: Option<ActiveAdapter>) -> Tensor {
    let plan = model.into_optimized().unwrap().into_runnable().unwrap();
    let mut state = plan.spawn().unwrap();
    if let Some(active) = active {
        state.turn_state.shared.insert(active);
    }
    let inputs = inputs.iter().map(|t| t.clone().into_tvalue()).collect();
    state.run(inputs).unwrap().remove(0).into_tensor()
}

/// The scaling of rank 2 and alpha 1.
fn scaling(kind: Kind) -> f32 {
    if kind.is_ranked() { 0.5 } else { 0.0 }
}

#[test]
fn what_is_wired_is_what_is_bound() {
    let mut forms = 0;
    for (kind, wiring) in kinds() {
        for sample in samples() {
            let Some(tensors) = sample.tensors(wiring) else { continue };
            for tensors in [tensors.clone(), moved(&tensors)] {
                let (mut wired, node) = sample.model();
                let wire = |layer: &mut Layer<'_>| wiring.wire(layer, scaling(kind));
                change_layer(&mut wired, node, &trained(&tensors), &wire).unwrap();
                let inputs = [vec![sample.x.clone()], as_tensors(&tensors)].concat();
                let got = run(wired, &inputs, None);
                let target = TargetAdapter {
                    module_path: sample.target.module_path.clone(),
                    kind,
                    rank: if kind.is_ranked() { RANK as u32 } else { 0 },
                    alpha: if kind.is_ranked() { 1.0 } else { 0.0 },
                    rslora: false,
                    tensors,
                };
                let adapter =
                    Adapter { base: Some(BASE), targets: vec![target], ..Adapter::default() };
                // Through its file, as it is used.
                let bytes = adapter.to_bytes(crate::adapter::TensorType::F32).unwrap();
                let adapter = Adapter::from_bytes(&bytes).unwrap();
                let targets = [sample.target.clone()];
                let bound = bind(&[(&adapter, 1.0)], &targets, &BASE, &weights()).unwrap();
                let active = ActiveAdapter(Arc::new(bound));
                let want = run(sample.model().0, &inputs[..1], Some(active));
                got.close_enough(&want, Approximation::Approximate)
                    .unwrap_or_else(|e| panic!("{kind:?} {:?}: {e:#}", sample.target.kind));
                forms += 1;
            }
        }
    }
    assert!(forms > 20, "{forms}");
}

#[test]
fn training_starts_at_the_base() {
    for (kind, wiring) in kinds() {
        for sample in samples() {
            let Some(tensors) = sample.tensors(wiring) else { continue };
            let (mut wired, node) = sample.model();
            let wire = |layer: &mut Layer<'_>| wiring.wire(layer, scaling(kind));
            change_layer(&mut wired, node, &trained(&tensors), &wire).unwrap();
            let inputs = [vec![sample.x.clone()], as_tensors(&tensors)].concat();
            let (got, want) =
                (run(wired, &inputs, None), run(sample.model().0, &inputs[..1], None));
            // What is added is 0 and what is multiplied with is 1, but for three: DoRA divides by norms that
            // are summed in another order than its magnitudes were, full fine-tuning has tract's product in
            // place of ours, and a trained bias is added to the product, not summed with it.
            match kind.name() {
                "bias" | "dora" | "full" => {
                    got.close_enough(&want, Approximation::Approximate).unwrap()
                }
                _ => assert_eq!(slice(&got), slice(&want), "{kind:?}"),
            }
        }
    }
}

/// Of all tensors and the input; where a norm is held constant, of those that it doesn't depend on
/// (PyTorch's gradients of the others are in tests/engine).
#[test]
fn gradients_agree_with_central_differences() {
    for (kind, wiring) in kinds() {
        for sample in samples() {
            let Some(tensors) = sample.tensors(wiring) else { continue };
            let tensors = moved(&tensors);
            let constant = |name: &str| wiring.held_constant().contains(&name);
            for symbolic in [false, true] {
                let values = [vec![sample.x.clone()], as_tensors(&tensors)].concat();
                let first = usize::from(sample.target.kind == TargetKind::Embedding);
                let free: Vec<usize> = (first..values.len())
                    .filter(|i| *i == 0 || !constant(&tensors[i - 1].name))
                    .collect();
                let (sample, tensors) = (&sample, &tensors);
                let case = Case::new(values, move |model, sources| {
                    let y = sample.wire(model, sources[0]);
                    model.select_output_outlets(&[y]).unwrap();
                    let wire = |layer: &mut Layer<'_>| wiring.wire(layer, scaling(kind));
                    let found = change_layer(model, y.node, &trained(tensors), &wire).unwrap();
                    // The case's own sources stand in for the new inputs.
                    for (from, to) in found.into_iter().zip(&sources[1..]) {
                        for reader in model.node(from.node).outputs[0].successors.clone() {
                            model.add_edge(*to, reader).unwrap();
                        }
                    }
                    model.set_input_outlets(sources).unwrap();
                    model.output_outlets().unwrap()[0]
                });
                println!("{kind:?} {:?}", sample.target.kind);
                let case = case.trained(&free);
                if symbolic { case.symbolic().check() } else { case.check() }
            }
        }
    }
}

#[test]
fn the_graph_reads_and_gives_what_is_wired() {
    let sample = samples().remove(0);
    let lora = wiring(Kind::default()).unwrap();
    let tensors = trained(&sample.tensors(lora).unwrap());
    let wire = |layer: &mut Layer<'_>| lora.wire(layer, 1.0);
    let (mut wired, node) = sample.model();
    let after = wired.output_outlets().unwrap()[0].node;
    wired.select_output_outlets(&[OutletId::new(node, 0), OutletId::new(after, 0)]).unwrap();
    wired.set_outlet_label(OutletId::new(node, 0), "features".into()).unwrap();
    let found = change_layer(&mut wired, node, &tensors, &wire).unwrap();
    let outputs = wired.output_outlets().unwrap();
    assert_ne!(outputs[0].node, node);
    assert_eq!(wired.node(after).inputs[0], outputs[0]);
    assert_eq!(wired.outlet_label(outputs[0]), Some("features"));
    assert_eq!(wired.input_outlets().unwrap()[1..], found);
    let again = change_layer(&mut wired, node, &tensors, &wire).unwrap_err();
    assert!(again.message().contains("lora_a"), "{again}");
    assert!(
        change_layer(&mut wired, after, &tensors, &wire).unwrap_err().message().contains("exp")
    );
    assert!(change_layer(&mut wired, 999, &tensors, &wire).is_err());
}
