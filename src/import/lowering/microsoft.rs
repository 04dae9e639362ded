//! ONNX Runtime's fused operators, written as what they were fused of.

use super::{Emit, float_attribute, text_attribute};
use crate::import::rewritten::int_attribute;
use tract_onnx::pb::AttributeProto;

/// Operators of com.microsoft with a reader of their own (`graph/onnx`).
pub(super) const READ_BY_US: [&str; 4] =
    ["EmbedLayerNormalization", "MultiHeadAttention", "QuickGelu", "SkipLayerNormalization"];

const CONV: [&str; 6] = ["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];

/// Whether the node was one of these and is written out.
pub(super) fn lower(e: &mut Emit<'_>) -> bool {
    match e.node.op_type.as_str() {
        "FusedConv" => fused_conv(e),
        "FusedGemm" => fused_gemm(e),
        "FusedMatMul" => fused_matmul(e),
        "Gelu" => {
            e.end("Gelu", &[e.input(0)], vec![]);
            true
        }
        "BiasGelu" => {
            let sum = e.op("Add", &[e.input(0), e.input(1)], vec![]);
            e.end("Gelu", &[&sum], vec![]);
            true
        }
        "FastGelu" => {
            let x = match e.input(1) {
                "" => e.input(0).to_string(),
                bias => e.op("Add", &[e.input(0), bias], vec![]),
            };
            e.end("Gelu", &[&x], vec![text_attribute("approximate", "tanh")]);
            true
        }
        "Attention" => packed_attention(e),
        _ => false,
    }
}

/// The activation of a fused operator, on the value `y`; `false` if it isn't known.
fn activated(e: &mut Emit<'_>, y: &str, name: &str, parameters: &[f32]) -> bool {
    let parameter = |i: usize, default: f32| parameters.get(i).copied().unwrap_or(default);
    let one = |name: &str, value: f32| vec![float_attribute(name, value)];
    match name {
        "" | "Identity" => e.end("Identity", &[y], vec![]),
        "Relu" | "Tanh" | "Sigmoid" | "Softplus" | "Softsign" => e.end(name, &[y], vec![]),
        "LeakyRelu" => e.end(name, &[y], one("alpha", parameter(0, 0.01))),
        "Elu" => e.end(name, &[y], one("alpha", parameter(0, 1.0))),
        "HardSigmoid" => {
            let attributes: Vec<AttributeProto> =
                [one("alpha", parameter(0, 0.2)), one("beta", parameter(1, 0.5))].concat();
            e.end(name, &[y], attributes);
        }
        "Clip" => {
            let low = e.number(parameter(0, f32::MIN));
            let high = e.number(parameter(1, f32::MAX));
            let y = e.op("Max", &[y, &low], vec![]);
            e.end("Min", &[&y, &high], vec![]);
        }
        _ => return false,
    }
    true
}

fn parameters(e: &Emit<'_>) -> Vec<f32> {
    let stated = e.node.attribute.iter().find(|a| a.name == "activation_params");
    stated.map(|a| a.floats.clone()).unwrap_or_default()
}

/// activation(Conv(x, w, bias) + z)
fn fused_conv(e: &mut Emit<'_>) -> bool {
    let attributes = e.attributes(&CONV);
    let mut y = e.op("Conv", &[e.input(0), e.input(1), e.input(2)], attributes);
    if e.has(3) {
        y = e.op("Add", &[&y, e.input(3)], vec![]);
    }
    let parameters = parameters(e);
    activated(e, &y, e.text("activation"), &parameters)
}

fn fused_gemm(e: &mut Emit<'_>) -> bool {
    let attributes = e.attributes(&["transA", "transB", "alpha", "beta"]);
    let y = e.op("Gemm", &[e.input(0), e.input(1), e.input(2)], attributes);
    let named = ["activation_alpha", "activation_beta"].map(|n| e.float(n, f32::NAN));
    let stated: Vec<f32> = named.into_iter().take_while(|v| !v.is_nan()).collect();
    activated(e, &y, e.text("activation"), &stated)
}

/// alpha · A'·B' with the last two axes of either exchanged.
fn fused_matmul(e: &mut Emit<'_>) -> bool {
    if e.int("transBatchA", 0) != 0 || e.int("transBatchB", 0) != 0 {
        return false;
    }
    let mut sides = [e.input(0).to_string(), e.input(1).to_string()];
    for (side, flag) in sides.iter_mut().zip(["transA", "transB"]) {
        if e.int(flag, 0) == 0 {
            continue;
        }
        // Of constants the axes are known, so that the layer is found.
        *side = if e.shapes.get(side.as_str()).is_some_and(|s| s.len() == 2) {
            e.op("Transpose", &[side], vec![])
        } else {
            e.op("OffshootSwapLast", &[side], vec![])
        };
    }
    let alpha = e.float("alpha", 1.0);
    let [a, b] = &sides;
    if alpha == 1.0 {
        e.end("MatMul", &[a, b], vec![]);
    } else {
        let y = e.op("MatMul", &[a, b], vec![]);
        let alpha = e.number(alpha);
        e.end("Mul", &[&y, &alpha], vec![]);
    }
    true
}

/// The product becomes a layer of its own; the reader takes its result.
fn packed_attention(e: &mut Emit<'_>) -> bool {
    let mut y = e.op("MatMul", &[e.input(0), e.input(1)], vec![]);
    if e.has(2) {
        y = e.op("Add", &[&y, e.input(2)], vec![]);
    }
    let inputs = [y.as_str(), "", "", e.input(3), e.input(4), e.input(5)];
    let attributes = e.node.attribute.clone();
    e.end("com.microsoft.Attention", &inputs, attributes);
    if let Some(node) = e.made.last_mut() {
        node.output = e.node.output.clone();
        node.attribute.push(int_attribute("after_product", 1));
    }
    true
}
