//! LSTM, GRU and RNN: what their nodes state, and their matrices as targets under PyTorch's names, gates
//! in PyTorch's order.
//!
//! Every attribute of the three operations is read here or refused by name: tract's own reader knows
//! few of them and says nothing of the others.

use super::rewritten::ints_attribute;
use super::validate::attribute;
use super::weights::MatrixValues;
use crate::error::{Error, Result};
use tract_onnx::pb::NodeProto;

/// What a step computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Gates i, f, g, o.
    Lstm,
    /// Gates r, z, n. Whether the reset gate is applied behind the product with h, as PyTorch does it.
    Gru {
        /// `linear_before_reset`.
        reset_after: bool,
    },
    /// One gate.
    Rnn,
}

/// A gate's function, with its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Function {
    Relu,
    Tanh,
    Sigmoid,
    Softsign,
    Softplus,
    Affine { alpha: f32, beta: f32 },
    LeakyRelu { alpha: f32 },
    ThresholdedRelu { alpha: f32 },
    ScaledTanh { alpha: f32, beta: f32 },
    HardSigmoid { alpha: f32, beta: f32 },
    Elu { alpha: f32 },
}

/// A frozen matrix of a recurrent layer: its places in the weight table and in the target table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Product {
    pub weight: usize,
    pub target: usize,
}

/// A recurrent layer as its node states it.
#[derive(Clone, Debug, PartialEq)]
pub struct Recurrent {
    /// What a step computes.
    pub cell: Cell,
    /// H.
    pub hidden: usize,
    /// One entry for each direction: whether it runs from the end.
    pub reversed: Vec<bool>,
    /// Whether the batch is the first axis (`layout` 1).
    pub batch_first: bool,
    /// Bound of what the gates' functions get.
    pub clip: Option<f32>,
    /// Whether an LSTM's forget gate is one less the input gate.
    pub input_forget: bool,
    /// Whether the state is rounded to 256 steps from its least to its greatest value before a product.
    pub round_state: bool,
    /// The functions of each direction, in ONNX's order.
    pub functions: Vec<Vec<Function>>,
    /// Places of X, W, R, B, sequence_lens, initial_h, initial_c and P among the inputs that are there.
    pub inputs: [Option<usize>; 8],
    /// Places of Y, Y_h and Y_c among the outputs that are there.
    pub outputs: [Option<usize>; 3],
    /// For each direction the frozen matrices, that of the input first; empty where W and R are inputs.
    pub products: Vec<Vec<Product>>,
}

impl Cell {
    /// Number of gates.
    pub fn gates(&self) -> usize {
        match self {
            Cell::Lstm => 4,
            Cell::Gru { .. } => 3,
            Cell::Rnn => 1,
        }
    }

    /// ONNX's places of the gates in PyTorch's order.
    pub fn order(&self) -> &'static [usize] {
        match self {
            Cell::Lstm => &[0, 2, 3, 1],
            Cell::Gru { .. } => &[1, 0, 2],
            Cell::Rnn => &[0],
        }
    }

    /// The gates of each product with a state: all at once, except where the reset gate comes between.
    pub fn state_parts(&self) -> &'static [&'static [usize]] {
        match self {
            Cell::Lstm => &[&[0, 1, 2, 3]],
            Cell::Gru { reset_after: true } => &[&[0, 1, 2]],
            Cell::Gru { reset_after: false } => &[&[0, 1], &[2]],
            Cell::Rnn => &[&[0]],
        }
    }

    fn functions(&self) -> &'static [Function] {
        match self {
            Cell::Lstm => &[Function::Sigmoid, Function::Tanh, Function::Tanh],
            Cell::Gru { .. } => &[Function::Sigmoid, Function::Tanh],
            Cell::Rnn => &[Function::Tanh],
        }
    }
}

const ATTRIBUTES: [&str; 13] = [
    "hidden_size",
    "direction",
    "activations",
    "activation_alpha",
    "activation_beta",
    "clip",
    "input_forget",
    "layout",
    "linear_before_reset",
    // Of DynamicQuantizeLSTM.
    "round_state",
    // What a rewritten node has besides.
    "kind",
    "weights",
    "targets",
];

impl Recurrent {
    /// Reads an LSTM, GRU or RNN node, or one that was rewritten; `None` for another.
    ///
    /// # Errors
    /// What is stated and isn't known, by name.
    pub fn of(node: &NodeProto) -> Result<Option<Recurrent>> {
        let text =
            |name: &str| attribute(node, name).map(|a| String::from_utf8_lossy(&a.s).into_owned());
        let kind = text("kind").unwrap_or_else(|| node.op_type.clone());
        let flag = |name: &str| attribute(node, name).is_some_and(|a| a.i != 0);
        let cell = match kind.as_str() {
            "LSTM" => Cell::Lstm,
            "GRU" => Cell::Gru { reset_after: flag("linear_before_reset") },
            "RNN" => Cell::Rnn,
            _ => return Ok(None),
        };
        let refuse = |what: String| Err(Error::unsupported(format!("{kind}: {what}")));
        if let Some(a) = node.attribute.iter().find(|a| !ATTRIBUTES.contains(&a.name.as_str())) {
            return refuse(format!("the attribute {} is not known", a.name));
        }
        let reversed = match text("direction").unwrap_or_default().to_lowercase().as_str() {
            "" | "forward" => vec![false],
            "reverse" => vec![true],
            "bidirectional" => vec![false, true],
            other => return refuse(format!("the direction '{other}' is not known")),
        };
        let hidden = attribute(node, "hidden_size").map_or(0, |a| a.i);
        let Some(hidden) = usize::try_from(hidden).ok().filter(|h| (1..1 << 24).contains(h)) else {
            return refuse(format!("hidden_size is {hidden}"));
        };
        let layout = attribute(node, "layout").map_or(0, |a| a.i);
        if !(0..=1).contains(&layout) {
            return refuse(format!("the layout {layout} is not known"));
        }
        let clip = attribute(node, "clip").map(|a| a.f);
        if let Some(clip) = clip.filter(|c| c.is_nan() || *c <= 0.0) {
            return refuse(format!("clip is {clip}"));
        }
        let functions = match functions(node, &cell, reversed.len()) {
            Ok(functions) => functions,
            Err(why) => return refuse(why),
        };
        let ints = |name: &str| attribute(node, name).map(|a| a.ints.as_slice()).unwrap_or(&[]);
        let pairs = ints("weights").iter().zip(ints("targets"));
        let all: Vec<Product> =
            pairs.map(|(w, t)| Product { weight: *w as usize, target: *t as usize }).collect();
        let each = 1 + cell.state_parts().len();
        if node.input.len() > 8 || node.output.len() > 3 {
            return refuse(format!("{} inputs, {} outputs", node.input.len(), node.output.len()));
        }
        Ok(Some(Recurrent {
            cell,
            hidden,
            reversed,
            batch_first: layout == 1,
            clip,
            input_forget: flag("input_forget"),
            round_state: flag("round_state"),
            functions,
            inputs: places(&node.input),
            outputs: places(&node.output),
            products: all.chunks_exact(each).map(<[Product]>::to_vec).collect(),
        }))
    }

    /// The rows of ONNX's matrices that make up each frozen matrix of direction `direction`, in
    /// PyTorch's order of gates, and PyTorch's name of each: that of the input, then those of the state.
    pub(super) fn frozen(&self, direction: usize, layer: usize) -> Vec<(String, Vec<usize>)> {
        let (gates, hidden) = (self.cell.gates(), self.hidden);
        let rows = |parts: &[usize]| -> Vec<usize> {
            let gate = |part: &usize| direction * gates + self.cell.order()[*part];
            parts.iter().map(gate).flat_map(|g| g * hidden..(g + 1) * hidden).collect()
        };
        let suffix = if self.reversed[direction] { "_reverse" } else { "" };
        let all: Vec<usize> = (0..gates).collect();
        let mut found = vec![(format!("weight_ih_l{layer}{suffix}"), rows(&all))];
        let parts = self.cell.state_parts();
        for (i, part) in parts.iter().enumerate() {
            // PyTorch has no layer that is taken apart.
            let name = match (parts.len(), i) {
                (1, _) => format!("weight_hh_l{layer}{suffix}"),
                (_, 0) => format!("weight_hh_l{layer}{suffix}_gates"),
                _ => format!("weight_hh_l{layer}{suffix}_new"),
            };
            found.push((name, rows(part)));
        }
        found
    }

    /// Gives a rewritten node its matrices.
    pub(super) fn mark(node: &mut NodeProto, kind: &str, products: &[(u32, usize)]) {
        let weights = products.iter().map(|(weight, _)| i64::from(*weight)).collect();
        let targets = products.iter().map(|(_, target)| *target as i64).collect();
        node.attribute.push(ints_attribute("weights", weights));
        node.attribute.push(ints_attribute("targets", targets));
        node.attribute.push(tract_onnx::pb::AttributeProto {
            name: "kind".into(),
            r#type: tract_onnx::pb::attribute_proto::AttributeType::String as i32,
            s: kind.as_bytes().to_vec(),
            ..Default::default()
        });
    }
}

/// Where each of the names that are there stands among them.
fn places<const N: usize>(names: &[String]) -> [Option<usize>; N] {
    let mut found = [None; N];
    let there = names.iter().enumerate().filter(|(_, name)| !name.is_empty());
    for (place, (at, _)) in there.enumerate() {
        if let Some(slot) = found.get_mut(at) {
            *slot = Some(place);
        }
    }
    found
}

fn functions(
    node: &NodeProto,
    cell: &Cell,
    directions: usize,
) -> Result<Vec<Vec<Function>>, String> {
    let each = cell.functions().len();
    let names: Vec<String> = attribute(node, "activations").map_or(vec![], |a| {
        a.strings.iter().map(|s| String::from_utf8_lossy(s).to_lowercase()).collect()
    });
    let floats = |name: &str| attribute(node, name).map_or(vec![], |a| a.floats.clone());
    let (alphas, betas) = (floats("activation_alpha"), floats("activation_beta"));
    if names.is_empty() {
        return Ok(vec![cell.functions().to_vec(); directions]);
    }
    if names.len() != each * directions {
        return Err(format!(
            "{} activations for {directions} directions of {each} each",
            names.len()
        ));
    }
    let (mut alphas, mut betas) = (alphas.into_iter(), betas.into_iter());
    let mut all = vec![];
    for name in &names {
        let mut alpha = |default| alphas.next().unwrap_or(default);
        let mut beta = |default| betas.next().unwrap_or(default);
        all.push(match name.as_str() {
            "relu" => Function::Relu,
            "tanh" => Function::Tanh,
            "sigmoid" => Function::Sigmoid,
            "softsign" => Function::Softsign,
            "softplus" => Function::Softplus,
            "affine" => Function::Affine { alpha: alpha(1.0), beta: beta(0.0) },
            "leakyrelu" => Function::LeakyRelu { alpha: alpha(0.01) },
            "thresholdedrelu" => Function::ThresholdedRelu { alpha: alpha(1.0) },
            "scaledtanh" => Function::ScaledTanh { alpha: alpha(1.0), beta: beta(1.0) },
            "hardsigmoid" => Function::HardSigmoid { alpha: alpha(0.2), beta: beta(0.5) },
            "elu" => Function::Elu { alpha: alpha(1.0) },
            other => return Err(format!("activations holds '{other}', which is not known")),
        });
    }
    Ok(all.chunks_exact(each).map(<[Function]>::to_vec).collect())
}

/// These rows of a matrix of `cols` columns.
pub(super) fn pick(values: &MatrixValues, cols: usize, rows: &[usize]) -> MatrixValues {
    fn of<T: Copy>(values: &[T], cols: usize, rows: &[usize]) -> Vec<T> {
        rows.iter().flat_map(|r| values[r * cols..(r + 1) * cols].iter().copied()).collect()
    }
    match values {
        MatrixValues::F32(values) => MatrixValues::F32(of(values, cols, rows)),
        MatrixValues::Int8 { ints, scales } => MatrixValues::Int8 {
            ints: of(ints, cols, rows),
            scales: rows.iter().map(|r| scales[*r]).collect(),
        },
    }
}
