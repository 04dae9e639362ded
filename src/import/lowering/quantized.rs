//! Operators over integers, written as the operator over floats between DequantizeLinear and
//! QuantizeLinear: their own definition, up to the order in which f32 rounds. Constant weights stay
//! integers, and become layers like any other.

use super::{Emit, float_attribute};
use crate::import::rewritten::{int_attribute, ints_attribute};
use tract_onnx::pb::AttributeProto;
use tract_onnx::pb::tensor_proto::DataType;

const CONV: [&str; 6] = ["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];
const POOL: [&str; 6] =
    ["auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides"];

/// Whether the node was one of these and is written out.
pub(super) fn lower(e: &mut Emit<'_>) -> bool {
    match (e.node.domain.as_str(), e.node.op_type.as_str()) {
        ("" | "ai.onnx", "QLinearConv") | ("com.microsoft", "QLinearConv") => conv(e),
        ("" | "ai.onnx", "QLinearMatMul") => matmul(e),
        ("" | "ai.onnx", "MatMulInteger") => {
            integers(e, "MatMul", vec![]);
            e.end_as_integers();
        }
        ("" | "ai.onnx", "ConvInteger") => {
            let attributes = e.attributes(&CONV);
            integers(e, "Conv", attributes);
            e.end_as_integers();
        }
        ("com.microsoft", "MatMulIntegerToFloat") => {
            let a = dequantized(e, [0, 2, 4], vec![]);
            let b = dequantized(e, [1, 3, 5], vec![int_attribute("axis", -1)]);
            product(e, &a, &b, 6);
        }
        ("com.microsoft", "DynamicQuantizeMatMul") => {
            let a = rounded(e, e.input(0));
            let b = dequantized(e, [1, 2, 3], vec![int_attribute("axis", -1)]);
            product(e, &a, &b, 4);
        }
        ("com.microsoft", "QGemm") => gemm(e),
        ("com.microsoft", "QLinearAdd") => pair(e, "Add"),
        ("com.microsoft", "QLinearMul") => pair(e, "Mul"),
        ("com.microsoft", "QLinearSigmoid") => single(e, "Sigmoid", vec![], [3, 4]),
        ("com.microsoft", "QLinearLeakyRelu") => {
            let alpha = float_attribute("alpha", e.float("alpha", 0.01));
            single(e, "LeakyRelu", vec![alpha], [3, 4]);
        }
        ("com.microsoft", "QLinearSoftmax") => {
            let axis = int_attribute("axis", e.int("axis", -1));
            // Files of old operator sets flatten around the axis; they are not written out.
            if e.int("opset", 13) < 13 {
                return false;
            }
            single(e, "Softmax", vec![axis], [3, 4]);
        }
        ("com.microsoft", "QLinearGlobalAveragePool") if e.int("channels_last", 0) == 0 => {
            single(e, "GlobalAveragePool", vec![], [3, 4]);
        }
        ("com.microsoft", "QLinearAveragePool") if e.int("channels_last", 0) == 0 => {
            let attributes = e.attributes(&POOL);
            single(e, "AveragePool", attributes, [3, 4]);
        }
        ("com.microsoft", "QLinearConcat") => concat(e),
        ("com.microsoft", "DynamicQuantizeLSTM") => lstm(e),
        _ => return false,
    }
    true
}

/// DequantizeLinear of the inputs in these slots: integers, scale, zero point.
fn dequantized(e: &mut Emit<'_>, slots: [usize; 3], attributes: Vec<AttributeProto>) -> String {
    let [x, scale, zero] = slots.map(|s| e.input(s));
    e.op("DequantizeLinear", &[x, scale, zero], attributes)
}

/// QuantizeLinear of `y` to the node's own output, by the scale and zero point in these slots.
fn quantized(e: &mut Emit<'_>, y: &str, [scale, zero]: [usize; 2]) {
    let (scale, zero) = (e.input(scale), e.input(zero));
    e.end("QuantizeLinear", &[y, scale, zero], vec![]);
}

fn conv(e: &mut Emit<'_>) {
    let x = dequantized(e, [0, 1, 2], vec![]);
    let w = dequantized(e, [3, 4, 5], vec![int_attribute("axis", 0)]);
    let bias = match e.input(8) {
        "" => String::new(),
        // Whole numbers of the product of both scales.
        bias => {
            let (a, b) = (e.input(1), e.input(4));
            let scale = e.op("Mul", &[a, b], vec![]);
            let floats = e.op("Cast", &[bias], vec![int_attribute("to", DataType::Float as i64)]);
            e.op("Mul", &[&floats, &scale], vec![])
        }
    };
    let attributes = e.attributes(&CONV);
    let y = e.op("Conv", &[&x, &w, &bias], attributes);
    quantized(e, &y, [6, 7]);
}

fn matmul(e: &mut Emit<'_>) {
    let a = dequantized(e, [0, 1, 2], vec![int_attribute("axis", -2)]);
    let b = dequantized(e, [3, 4, 5], vec![int_attribute("axis", -1)]);
    let y = e.op("MatMul", &[&a, &b], vec![]);
    quantized(e, &y, [6, 7]);
}

/// The product of (x - zero point) and (w - zero point), in f32.
fn integers(e: &mut Emit<'_>, op_type: &str, attributes: Vec<AttributeProto>) {
    let product = op_type == "MatMul";
    let one = e.number(1.0);
    let (x, zero) = (e.input(0), e.input(2));
    let x = e.op("DequantizeLinear", &[x, &one, zero], vec![int_attribute("axis", -2)]);
    let (w, zero) = (e.input(1), e.input(3));
    let scale = if zero.is_empty() { one } else { e.ones_like(zero) };
    let axis = int_attribute("axis", if product { -1 } else { 0 });
    let w = e.op("DequantizeLinear", &[w, &scale, zero], vec![axis]);
    e.op(op_type, &[&x, &w], attributes);
}

impl Emit<'_> {
    /// What the last node wrote, rounded to i32, is the node's own output.
    fn end_as_integers(&mut self) {
        let last = self.made.last().and_then(|n| n.output.first().cloned()).unwrap_or_default();
        let whole = self.op("OffshootRound", &[&last], vec![]);
        self.end("Cast", &[&whole], vec![int_attribute("to", DataType::Int32 as i64)]);
    }
}

/// a · b and a bias, if there is one in this slot.
fn product(e: &mut Emit<'_>, a: &str, b: &str, bias: usize) {
    match e.input(bias) {
        "" => e.end("MatMul", &[a, b], vec![]),
        bias => {
            let y = e.op("MatMul", &[a, b], vec![]);
            e.end("Add", &[&y, bias], vec![]);
        }
    }
}

/// x as its own least and greatest value allow eight bits to say it.
fn rounded(e: &mut Emit<'_>, x: &str) -> String {
    let outputs = [e.fresh(), e.fresh(), e.fresh()];
    e.write("DynamicQuantizeLinear", &[x], vec![], &outputs[0]);
    if let Some(node) = e.made.last_mut() {
        node.output = outputs.to_vec();
    }
    let [x, scale, zero] = outputs;
    e.op("DequantizeLinear", &[&x, &scale, &zero], vec![])
}

fn gemm(e: &mut Emit<'_>) {
    let a = dequantized(e, [0, 1, 2], vec![]);
    // One scale for each column of B as the product sees it.
    let axis = int_attribute("axis", i64::from(e.int("transB", 0) == 0));
    let b = dequantized(e, [3, 4, 5], vec![axis]);
    let bias = match e.input(6) {
        "" => String::new(),
        bias => {
            let (p, q) = (e.input(1), e.input(4));
            let scale = e.op("Mul", &[p, q], vec![]);
            let floats = e.op("Cast", &[bias], vec![int_attribute("to", DataType::Float as i64)]);
            let floats = e.op("Mul", &[&floats, &scale], vec![]);
            let alpha = e.number(e.float("alpha", 1.0));
            e.op("Mul", &[&floats, &alpha], vec![])
        }
    };
    let attributes = e.attributes(&["transA", "transB", "alpha"]);
    let y = e.op("Gemm", &[&a, &b, &bias], attributes);
    if e.has(7) {
        quantized(e, &y, [7, 8]);
    } else {
        e.end("Identity", &[&y], vec![]);
    }
}

fn pair(e: &mut Emit<'_>, op_type: &str) {
    let a = dequantized(e, [0, 1, 2], vec![]);
    let b = dequantized(e, [3, 4, 5], vec![]);
    let y = e.op(op_type, &[&a, &b], vec![]);
    quantized(e, &y, [6, 7]);
}

fn single(e: &mut Emit<'_>, op_type: &str, attributes: Vec<AttributeProto>, out: [usize; 2]) {
    let x = dequantized(e, [0, 1, 2], vec![]);
    let y = e.op(op_type, &[&x], attributes);
    quantized(e, &y, out);
}

/// Inputs: the output's scale and zero point, then three for each part.
fn concat(e: &mut Emit<'_>) {
    let mut parts = vec![];
    for slot in (2..e.node.input.len()).step_by(3) {
        parts.push(dequantized(e, [slot, slot + 1, slot + 2], vec![]));
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let axis = int_attribute("axis", e.int("axis", 0));
    let y = e.op("Concat", &parts, vec![axis]);
    quantized(e, &y, [0, 1]);
}

/// Inputs as LSTM's, then scale and zero point of W and of R, which lie transposed:
/// (directions, inputs, 4 · hidden). ONNX Runtime rounds the state before each step's product as it
/// rounds the input, over the whole batch (on one thread; on several some of the rows).
fn lstm(e: &mut Emit<'_>) {
    let x = rounded(e, e.input(0));
    let mut weights = vec![];
    for [slot, scale, zero] in [[1, 8, 9], [2, 10, 11]] {
        let (w, scale, zero) = (e.input(slot), e.input(scale), e.input(zero));
        let per_column = e.shapes.get(scale).is_some_and(|s| s.len() == 2);
        let w = if per_column {
            // Scales (directions, 4 · hidden).
            let to = int_attribute("to", DataType::Float as i64);
            let floats = e.op("Cast", &[w], vec![to.clone()]);
            let zeros = e.op("Cast", &[zero], vec![to]);
            let moved = e.op("OffshootUnsqueeze", &[&zeros], vec![int_attribute("axis", 1)]);
            let centred = e.op("Sub", &[&floats, &moved], vec![]);
            let scale = e.op("OffshootUnsqueeze", &[scale], vec![int_attribute("axis", 1)]);
            e.op("Mul", &[&centred, &scale], vec![])
        } else {
            e.op("DequantizeLinear", &[w, scale, zero], vec![int_attribute("axis", 0)])
        };
        weights.push(e.op("Transpose", &[&w], vec![ints_attribute("perm", vec![0, 2, 1])]));
    }
    let names = [
        "activation_alpha",
        "activation_beta",
        "activations",
        "clip",
        "direction",
        "hidden_size",
        "input_forget",
    ];
    let mut attributes = e.attributes(&names);
    attributes.push(int_attribute("round_state", 1));
    let inputs: Vec<&str> = (3..8).map(|slot| e.input(slot)).collect();
    let inputs = [&[x.as_str(), &weights[0], &weights[1]], inputs.as_slice()].concat();
    e.end("LSTM", &inputs, attributes);
    if let Some(node) = e.made.last_mut() {
        node.output = e.node.output.clone();
    }
}
