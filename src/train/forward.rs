//! The forward part of training: a frozen layer becomes `frozen(x) + scaling·(x·lora_aᵀ)·lora_bᵀ`
//! with lora_a and lora_b as inputs of the graph.

use tract_core::internal::*;
use tract_core::ops::array::Gather;
use tract_core::ops::einsum::EinSum;

use super::wires::Wires;
use crate::error::{Error, Result};
use crate::graph::{FrozenConv, FrozenEmbedding, FrozenLinear, Im2col};

/// The new inputs of one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoraInputs {
    /// f32 (rank, in_features); for a convolution in_features is kh·kw·C, channels innermost; for
    /// an embedding it is the vocabulary.
    pub lora_a: OutletId,
    /// f32 (out_features, rank).
    pub lora_b: OutletId,
}

/// Adds a low-rank product to the output of `node`, a [`FrozenLinear`], [`FrozenConv`] or
/// [`FrozenEmbedding`]: every reader of the output and the graph's outputs see the sum. With
/// lora_b = 0 the sum is bit-equal to the frozen layer's output.
///
/// The new inputs are named `NODE.lora_a` and `NODE.lora_b` and come after the graph's others. Run
/// the graph without an active adapter: the frozen op would add it once more.
///
/// # Errors
/// A node of another op, a rank of 0, a node that has its low-rank product already.
pub fn add_lora(
    model: &mut TypedModel,
    node: usize,
    rank: usize,
    scaling: f32,
) -> Result<LoraInputs> {
    let Some(found) = model.nodes().get(node).cloned() else {
        return Err(Error::usage(format!("the graph has no node {node}")));
    };
    if rank == 0 {
        return Err(Error::usage(format!("the rank at '{}' is 0, expected 1 or more", found.name)));
    }
    let layer = Layer::of(&found)?;
    let (inputs, outputs) = layer.features();
    let frozen = OutletId::new(node, 0);
    let readers = found.outputs[0].successors.clone();

    let mut w = Wires::new(model, &format!("{}.lora", found.name));
    let lora_a = w.source(&format!("{}.lora_a", found.name), &[rank.to_dim(), inputs.to_dim()])?;
    let lora_b = w.source(&format!("{}.lora_b", found.name), &[outputs.to_dim(), rank.to_dim()])?;
    let inner = layer.inner(&mut w, found.inputs[0], lora_a)?;
    let inner = if scaling == 1.0 { inner } else { w.scale(inner, scaling)? };
    let delta = einsum(&mut w, "{rows}k", "nk", "{rows}n", &[inner, lora_b])?;
    let sum = w.add(frozen, delta)?;

    let wiring = |e: TractError| Error::failed(format!("'{}': {e:#}", found.name));
    for reader in readers {
        model.add_edge(sum, reader).map_err(wiring)?;
    }
    let outputs: Vec<OutletId> = model
        .output_outlets()
        .map_err(wiring)?
        .iter()
        .map(|&outlet| if outlet == frozen { sum } else { outlet })
        .collect();
    model.select_output_outlets(&outputs).map_err(wiring)?;
    if let Some(label) = model.outlet_label(frozen).map(str::to_string) {
        model.set_outlet_label(sum, label).map_err(wiring)?;
    }
    Ok(LoraInputs { lora_a, lora_b })
}

/// A frozen layer that can be a target.
enum Layer<'a> {
    Linear(&'a FrozenLinear),
    Conv(&'a FrozenConv),
    Embedding(&'a FrozenEmbedding),
}

impl Layer<'_> {
    fn of(node: &TypedNode) -> Result<Layer<'_>> {
        let linear = node.op_as::<FrozenLinear>().map(Layer::Linear);
        let conv = || node.op_as::<FrozenConv>().map(Layer::Conv);
        let embedding = || node.op_as::<FrozenEmbedding>().map(Layer::Embedding);
        linear.or_else(conv).or_else(embedding).ok_or_else(|| {
            let op = node.op.name();
            Error::usage(format!("node '{}' is a {op}, which is no target", node.name))
        })
    }

    /// in_features, out_features.
    fn features(&self) -> (usize, usize) {
        match self {
            Layer::Linear(op) => (op.in_features, op.out_features),
            Layer::Conv(op) => (op.in_features, op.out_features),
            Layer::Embedding(op) => (op.rows, op.features),
        }
    }

    /// x·lora_aᵀ: (.., rank).
    fn inner(&self, w: &mut Wires, x: OutletId, lora_a: OutletId) -> Result<OutletId> {
        let product = |w: &mut Wires, x| einsum(w, "{rows}k", "nk", "{rows}n", &[x, lora_a]);
        match self {
            Layer::Linear(_) => product(w, x),
            Layer::Conv(op) => {
                let patches = w.wire(Im2col { window: op.window }, &[x])?;
                product(w, patches)
            }
            Layer::Embedding(_) => {
                // Columns of lora_a, (rank, ..); the rank goes last.
                let columns = w.cast(x, i64::datum_type())?;
                let columns = w.wire(Gather::new(1), &[lora_a, columns])?;
                let last = w.rank(columns)? - 1;
                w.axis(AxisOp::Move(0, last), columns)
            }
        }
    }
}

/// An EinSum whose first operand's rank decides how many letters `{rows}` stands for.
fn einsum(
    w: &mut Wires,
    left: &str,
    right: &str,
    output: &str,
    operands: &[OutletId; 2],
) -> Result<OutletId> {
    let rank = w.rank(operands[0])?;
    let letters = "abcdefgh".get(..rank.saturating_sub(1)).filter(|_| rank > 0);
    let Some(rows) = letters else {
        return Err(Error::unsupported(format!("a target's input has {rank} axes")));
    };
    let formula = format!("{left},{right}->{output}").replace("{rows}", rows);
    let axes = formula.parse().map_err(|e| Error::failed(format!("{formula}: {e:#}")))?;
    w.wire(EinSum::new(axes, f32::datum_type()), operands)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Bound;
    use crate::graph::{ActiveAdapter, FrozenWeights, Padding, Window};
    use crate::quant::{LowRank, Packed, Scheme};
    use crate::train::vjp::check::{Case, random, slice};
    use tract_core::ops::math;

    fn packed(rows: usize, cols: usize, seed: u64) -> Packed {
        Packed::pack(Scheme::F32, rows, cols, slice(&random(&[rows, cols], seed))).unwrap()
    }

    fn window() -> Window {
        Window {
            kernel: [3, 2],
            stride: [2, 1],
            dilation: [1, 1],
            padding: Padding::Explicit([1, 0, 1, 1]),
        }
    }

    /// Each kind of layer: the op, its input, its features.
    fn layers() -> Vec<(Box<dyn TypedOp>, Tensor, [usize; 2])> {
        let table = FrozenWeights::new(vec![packed(5, 4, 1), packed(5, 18, 2), packed(7, 5, 3)]);
        let ids = tensor2(&[[3i64, 0, 3], [6, -1, 2]]);
        vec![
            (
                Box::new(FrozenLinear::new(&table, 0, Some(0), false).unwrap()),
                random(&[2, 3, 4], 4),
                [4, 5],
            ),
            (
                Box::new(FrozenConv::new(&table, 1, Some(0), false, window()).unwrap()),
                random(&[2, 5, 4, 3], 5),
                [18, 5],
            ),
            (Box::new(FrozenEmbedding::new(&table, 2, Some(0)).unwrap()), ids, [7, 5]),
        ]
    }

    fn run(model: TypedModel, inputs: &[&Tensor], active: Option<ActiveAdapter>) -> Tensor {
        let plan = model.into_optimized().unwrap().into_runnable().unwrap();
        let mut state = plan.spawn().unwrap();
        if let Some(active) = active {
            state.turn_state.shared.insert(active);
        }
        let inputs = inputs.iter().map(|&t| t.clone().into_tvalue()).collect();
        state.run(inputs).unwrap().remove(0).into_tensor()
    }

    fn model(op: &dyn TypedOp, x: &Tensor) -> (TypedModel, usize) {
        let mut model = TypedModel::default();
        let source = model.add_source("x", TypedFact::shape_and_dt_of(x)).unwrap();
        let op = tract_core::dyn_clone::clone_box(op);
        let y = model.wire_node("layer", op, &[source]).unwrap()[0];
        let y = model.wire_node("exp", math::exp(), &[y]).unwrap()[0];
        model.select_output_outlets(&[y]).unwrap();
        (model, 1)
    }

    #[test]
    fn the_wired_product_equals_the_active_adapter() {
        for (op, x, [inputs, outputs]) in layers() {
            let (a, b) = (random(&[2, inputs], 7), random(&[outputs, 2], 8));
            let (base, _) = model(op.as_ref(), &x);
            let scaled: Vec<f32> = slice(&b).iter().map(|v| 0.5 * v).collect();
            let lora = LowRank::new(2, [inputs, outputs], slice(&a), &scaled).unwrap();
            let bound = Bound { targets: vec![Some(lora)], head: None, names: vec![] };
            let want = run(base, &[&x], Some(ActiveAdapter(Arc::new(bound))));
            let (mut wired, node) = model(op.as_ref(), &x);
            add_lora(&mut wired, node, 2, 0.5).unwrap();
            let got = run(wired, &[&x, &a, &b], None);
            got.close_enough(&want, Approximation::Approximate).unwrap();
        }
    }

    #[test]
    fn zeros_in_lora_b_leave_the_output_bit_equal() {
        for (op, x, [inputs, outputs]) in layers() {
            let (base, _) = model(op.as_ref(), &x);
            let (mut wired, node) = model(op.as_ref(), &x);
            add_lora(&mut wired, node, 3, 2.0).unwrap();
            let b = Tensor::zero::<f32>(&[outputs, 3]).unwrap();
            let got = run(wired, &[&x, &random(&[3, inputs], 7), &b], None);
            assert_eq!(slice(&got), slice(&run(base, &[&x], None)));
        }
    }

    #[test]
    fn gradients_of_both_factors_and_the_input_agree_with_central_differences() {
        for (op, x, [inputs, outputs]) in layers() {
            for symbolic in [false, true] {
                let op = op.clone();
                let values = [x.clone(), random(&[3, inputs], 7), random(&[outputs, 3], 8)];
                let case = Case::new(values, move |model, sources| {
                    let y = model.wire_node("layer", op.clone(), &sources[..1]).unwrap()[0];
                    model.select_output_outlets(&[y]).unwrap();
                    let lora = add_lora(model, y.node, 3, 0.7).unwrap();
                    // The case's own sources stand in for the new inputs.
                    for (from, to) in [(lora.lora_a, sources[1]), (lora.lora_b, sources[2])] {
                        for reader in model.node(from.node).outputs[0].successors.clone() {
                            model.add_edge(to, reader).unwrap();
                        }
                    }
                    model.set_input_outlets(sources).unwrap();
                    model.output_outlets().unwrap()[0]
                });
                if symbolic { case.symbolic().check() } else { case.check() }
            }
        }
    }

    #[test]
    fn the_graph_reads_and_gives_the_sum() {
        let (op, x, _) = layers().remove(0);
        let (mut wired, node) = model(op.as_ref(), &x);
        wired.select_output_outlets(&[OutletId::new(node, 0), OutletId::new(2, 0)]).unwrap();
        wired.set_outlet_label(OutletId::new(node, 0), "features".into()).unwrap();
        let lora = add_lora(&mut wired, node, 2, 1.0).unwrap();
        let outputs = wired.output_outlets().unwrap();
        assert_ne!(outputs[0].node, node);
        assert_eq!(wired.node(2).inputs[0], outputs[0]);
        assert_eq!(wired.outlet_label(outputs[0]), Some("features"));
        assert_eq!(wired.input_outlets().unwrap()[1..], [lora.lora_a, lora.lora_b]);
    }

    #[test]
    fn other_nodes_and_a_second_product_are_refused() {
        let (op, x, _) = layers().remove(0);
        let (mut wired, node) = model(op.as_ref(), &x);
        assert!(add_lora(&mut wired, 2, 2, 1.0).unwrap_err().message().contains("'exp'"));
        assert!(add_lora(&mut wired, 99, 2, 1.0).is_err());
        assert!(add_lora(&mut wired, node, 0, 1.0).is_err());
        add_lora(&mut wired, node, 2, 1.0).unwrap();
        assert!(add_lora(&mut wired, node, 2, 1.0).unwrap_err().message().contains("lora_a"));
    }
}
