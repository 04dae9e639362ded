//! The forward part of training: what a kind adds to a frozen layer, with its tensors as inputs of
//! the graph.

use tract_core::internal::*;
use tract_core::ops::array::Gather;
use tract_core::ops::einsum::EinSum;

use super::wires::Wires;
use crate::error::{Error, Result};
use crate::graph::{FrozenConv, FrozenEmbedding, FrozenLinear, Im2col, RowNorms};
use crate::quant::row_squares;

/// A tensor that is trained: its name within its target, and its dimensions.
pub type Trained = (String, Vec<usize>);

/// A frozen layer of a training graph, and what there is to wire a change with.
pub struct Layer<'m> {
    /// Wires into the graph.
    pub w: Wires<'m>,
    /// The layer's output.
    pub y: OutletId,
    x: OutletId,
    bias: Option<OutletId>,
    op: LayerOp,
    tensors: Vec<(String, OutletId)>,
}

/// A frozen layer that can be a target.
enum LayerOp {
    Linear(FrozenLinear),
    Conv(FrozenConv),
    Embedding,
}

/// Lets `wire` change the output of `node`, a [`FrozenLinear`], [`FrozenConv`] or
/// [`FrozenEmbedding`]: every reader of the output and the graph's outputs see what it gives.
///
/// Each of `trained` becomes an input `NODE.NAME`, after the graph's others. Gives them back in
/// their order. Run the graph without an active adapter: the frozen op would change its output once
/// more.
///
/// # Errors
/// A node of another op, a node that has such inputs already, and what `wire` refuses.
pub fn change_layer(
    model: &mut TypedModel,
    node: usize,
    trained: &[Trained],
    wire: &dyn Fn(&mut Layer<'_>) -> Result<OutletId>,
) -> Result<Vec<OutletId>> {
    let Some(found) = model.nodes().get(node).cloned() else {
        return Err(Error::usage(format!("the graph has no node {node}")));
    };
    let op = LayerOp::of(&found)?;
    let frozen = OutletId::new(node, 0);
    let readers = found.outputs[0].successors.clone();
    let mut w = Wires::new(model, &format!("{}.adapter", found.name));
    let mut tensors = Vec::with_capacity(trained.len());
    for (name, shape) in trained {
        let shape: TVec<TDim> = shape.iter().map(|d| d.to_dim()).collect();
        tensors.push((name.clone(), w.source(&format!("{}.{name}", found.name), &shape)?));
    }
    let sources = tensors.iter().map(|(_, outlet)| *outlet).collect();
    let (x, bias) = (found.inputs[0], found.inputs.get(1).copied());
    let changed = wire(&mut Layer { w, y: frozen, x, bias, op, tensors })?;

    let wiring = |e: TractError| Error::failed(format!("'{}': {e:#}", found.name));
    for reader in readers {
        model.add_edge(changed, reader).map_err(wiring)?;
    }
    let outputs: Vec<OutletId> = model
        .output_outlets()
        .map_err(wiring)?
        .iter()
        .map(|&outlet| if outlet == frozen { changed } else { outlet })
        .collect();
    model.select_output_outlets(&outputs).map_err(wiring)?;
    if let Some(label) = model.outlet_label(frozen).map(str::to_string) {
        model.set_outlet_label(changed, label).map_err(wiring)?;
    }
    Ok(sources)
}

impl LayerOp {
    fn of(node: &TypedNode) -> Result<LayerOp> {
        let linear = node.op_as::<FrozenLinear>().cloned().map(LayerOp::Linear);
        let conv = || node.op_as::<FrozenConv>().cloned().map(LayerOp::Conv);
        let embedding = || node.op_as::<FrozenEmbedding>().map(|_| LayerOp::Embedding);
        linear.or_else(conv).or_else(embedding).ok_or_else(|| {
            let op = node.op.name();
            Error::usage(format!("node '{}' is a {op}, which is no target", node.name))
        })
    }
}

impl Layer<'_> {
    /// The input of a trained tensor.
    pub fn tensor(&self, name: &str) -> Result<OutletId> {
        let found = self.tensors.iter().find(|(other, _)| other == name);
        found
            .map(|(_, outlet)| *outlet)
            .ok_or_else(|| Error::failed(format!("the tensor '{name}' is not wired")))
    }

    /// Whether a tensor of this name is trained.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.iter().any(|(other, _)| other == name)
    }

    /// Places of a convolution's kernel; 1 for the others.
    pub fn area(&self) -> usize {
        match &self.op {
            LayerOp::Conv(op) => op.window.area(),
            _ => 1,
        }
    }

    /// The layer's bias (outputs).
    pub fn bias(&self) -> Option<OutletId> {
        self.bias
    }

    /// x·mᵀ (.., R) of a trained matrix m (R, in_features); of an embedding the columns of m that x
    /// names. A convolution's in_features are kh·kw·C, channels innermost.
    pub fn product_of_input(&mut self, m: OutletId) -> Result<OutletId> {
        if let LayerOp::Embedding = self.op {
            // Columns of m, (R, ..); R goes last.
            let ids = self.w.cast(self.x, i64::datum_type())?;
            let columns = self.w.wire(Gather::new(1), &[m, ids])?;
            let last = self.w.rank(columns)? - 1;
            return self.w.axis(AxisOp::Move(0, last), columns);
        }
        let x = self.rows()?;
        self.product(x, m)
    }

    /// The rows that the layer's weight is multiplied with: x, or a convolution's patches.
    pub fn rows(&mut self) -> Result<OutletId> {
        match &self.op {
            LayerOp::Linear(_) => Ok(self.x),
            LayerOp::Conv(op) => {
                let op = Im2col { window: op.window };
                self.w.wire(op, &[self.x])
            }
            LayerOp::Embedding => Err(self.no_form()),
        }
    }

    /// `left` (.., K) · `right`ᵀ (N, K): (.., N).
    pub fn product(&mut self, left: OutletId, right: OutletId) -> Result<OutletId> {
        self.einsum("{rows}k", "nk", "{rows}n", &[left, right])
    }

    /// The layer's output without its bias.
    pub fn without_bias(&mut self) -> Result<OutletId> {
        match (self.bias, &self.op) {
            (None, _) | (_, LayerOp::Embedding) => Ok(self.y),
            (Some(_), LayerOp::Linear(op)) => {
                let op = FrozenLinear { has_bias: false, target: None, ..op.clone() };
                self.w.wire(op, &[self.x])
            }
            (Some(_), LayerOp::Conv(op)) => {
                let op = FrozenConv { has_bias: false, target: None, ..op.clone() };
                self.w.wire(op, &[self.x])
            }
        }
    }

    /// ‖W + b·a‖ (outputs) of the rows of its weight; a constant to gradients.
    pub fn norms(&mut self, a: OutletId, b: OutletId) -> Result<OutletId> {
        let (weights, weight) = match &self.op {
            LayerOp::Linear(op) => (op.weights.clone(), op.weight),
            LayerOp::Conv(op) => (op.weights.clone(), op.weight),
            LayerOp::Embedding => return Err(self.no_form()),
        };
        let w = weights.0.weight(weight)?;
        let squares = self.w.constant(tensor1(&row_squares(w)))?;
        self.w.wire(RowNorms { weights, weight }, &[a, b, squares])
    }

    /// Rows of a trained table (V, N) that the ids of an embedding name; of the other layers x·mᵀ.
    pub fn replaced(&mut self, m: OutletId) -> Result<OutletId> {
        if let LayerOp::Embedding = self.op {
            let ids = self.w.cast(self.x, i64::datum_type())?;
            return self.w.wire(Gather::new(0), &[m, ids]);
        }
        self.product_of_input(m)
    }

    /// A vector (N) with as many axes as `like` has, N last.
    pub fn along(&mut self, vector: OutletId, like: OutletId) -> Result<OutletId> {
        let mut wide = vector;
        for _ in 1..self.w.rank(like)? {
            wide = self.w.axis(AxisOp::Add(0), wide)?;
        }
        Ok(wide)
    }

    /// An EinSum whose first operand's rank decides how many letters `{rows}` stands for; the last
    /// axes are those that `left` names beside them.
    pub fn einsum(
        &mut self,
        left: &str,
        right: &str,
        output: &str,
        operands: &[OutletId; 2],
    ) -> Result<OutletId> {
        let rank = self.w.rank(operands[0])?;
        let own = left.replace("{rows}", "").len();
        let free = if left.contains("{rows}") { rank.checked_sub(own) } else { Some(0) };
        let Some(rows) = free.and_then(|n| "abcdefgh".get(..n)) else {
            return Err(Error::unsupported(format!("a target's input has {rank} axes")));
        };
        let formula = format!("{left},{right}->{output}").replace("{rows}", rows);
        let axes = formula.parse().map_err(|e| Error::failed(format!("{formula}: {e:#}")))?;
        self.w.wire(EinSum::new(axes, f32::datum_type()), operands)
    }

    fn no_form(&self) -> Error {
        Error::unsupported("this kind has no form for an embedding")
    }
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
