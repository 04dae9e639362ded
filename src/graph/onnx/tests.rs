//! Each reader, from a node to the graph section and back, on numbers that can be checked by hand.

use crate::error::Result;
use crate::graph::{FrozenWeights, lower, read_graph, write_graph};
use std::sync::Arc;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension::Value as Dim};
use tract_onnx::pb::type_proto::{self, Value as TypeValue};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
};
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::plan::SimplePlan;

fn int(name: &str, i: i64) -> AttributeProto {
    let r#type = AttributeType::Int as i32;
    AttributeProto { name: name.into(), r#type, i, ..AttributeProto::default() }
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    let (r#type, ints) = (AttributeType::Ints as i32, ints.to_vec());
    AttributeProto { name: name.into(), r#type, ints, ..AttributeProto::default() }
}

fn float(name: &str, f: f32) -> AttributeProto {
    let r#type = AttributeType::Float as i32;
    AttributeProto { name: name.into(), r#type, f, ..AttributeProto::default() }
}

fn text(name: &str, s: &str) -> AttributeProto {
    let (r#type, s) = (AttributeType::String as i32, s.as_bytes().to_vec());
    AttributeProto { name: name.into(), r#type, s, ..AttributeProto::default() }
}

fn onnx_type(dtype: DatumType) -> i32 {
    let known = match dtype {
        DatumType::F32 => DataType::Float,
        DatumType::F64 => DataType::Double,
        DatumType::F16 => DataType::Float16,
        DatumType::I64 => DataType::Int64,
        DatumType::I32 => DataType::Int32,
        DatumType::U8 => DataType::Uint8,
        DatumType::Bool => DataType::Bool,
        other => panic!("{other:?}"),
    };
    known as i32
}

/// What a node is given: while the graph runs, as a constant, or nothing in this slot.
#[derive(Clone)]
enum Given {
    Run(Tensor),
    Constant(Tensor),
    Nothing,
}

use Given::{Constant, Nothing, Run};

/// The first output of a graph of one node, written as text and read again.
fn answer(op: &str, opset: i64, attributes: &[AttributeProto], given: &[Given]) -> Result<Tensor> {
    let mut graph = GraphProto { name: "g".into(), ..GraphProto::default() };
    let mut node = NodeProto {
        name: "node".into(),
        op_type: op.into(),
        output: vec!["y".into()],
        attribute: attributes.to_vec(),
        ..NodeProto::default()
    };
    let mut inputs = tvec!();
    for (i, given) in given.iter().enumerate() {
        let name = format!("in{i}");
        match given {
            Run(tensor) => {
                let dim = |d: &usize| Dimension {
                    value: Some(Dim::DimValue(*d as i64)),
                    ..Dimension::default()
                };
                let shape = TensorShapeProto { dim: tensor.shape().iter().map(dim).collect() };
                let value = TypeValue::TensorType(type_proto::Tensor {
                    elem_type: onnx_type(tensor.datum_type()),
                    shape: Some(shape),
                });
                graph.input.push(ValueInfoProto {
                    name: name.clone(),
                    r#type: Some(TypeProto { value: Some(value), ..TypeProto::default() }),
                    ..ValueInfoProto::default()
                });
                inputs.push(tensor.clone().into_tvalue());
            }
            Constant(tensor) => graph.initializer.push(TensorProto {
                name: name.clone(),
                dims: tensor.shape().iter().map(|d| *d as i64).collect(),
                data_type: onnx_type(tensor.datum_type()),
                raw_data: tensor.try_as_plain_ram().unwrap().as_bytes().to_vec(),
                ..TensorProto::default()
            }),
            Nothing => {}
        }
        node.input.push(if matches!(given, Nothing) { String::new() } else { name });
    }
    graph.node = vec![node];
    graph.output = vec![ValueInfoProto { name: "y".into(), ..ValueInfoProto::default() }];
    let model = ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { version: opset, ..OperatorSetIdProto::default() }],
        graph: Some(graph),
        ..ModelProto::default()
    };
    let weights = FrozenWeights(Arc::new(Vec::<crate::quant::Packed>::new()));
    let written = write_graph(&lower(&model, &weights)?)?;
    let read = read_graph(&written.text, written.constants, &weights)?;
    let mut outputs = SimplePlan::new(read).unwrap().run(inputs).unwrap();
    Ok(outputs.remove(0).into_tensor())
}

fn close(found: Result<Tensor>, expected: Tensor) {
    let found = found.unwrap();
    found.close_enough(&expected, true).unwrap_or_else(|e| panic!("{found:?}: {e}"));
}

fn refused(found: Result<Tensor>, why: &str) {
    let message = found.unwrap_err().to_string();
    assert!(message.contains(why) && message.contains("node"), "{message}");
}

/// 1, 2, … in a picture of one channel.
fn picture(side: usize) -> Tensor {
    let values: Vec<f32> = (1..=side * side).map(|v| v as f32).collect();
    tensor1(&values).into_shape(&[1, 1, side, side]).unwrap()
}

#[test]
fn activations_with_their_parameters() {
    let x = || Run(tensor1(&[-1f32, 0.0, 3.0]));
    let below = 2.0 * ((-0.5f32).exp() - 1.0);
    close(answer("Celu", 12, &[float("alpha", 2.0)], &[x()]), tensor1(&[below, 0.0, 3.0]));
    let swish = |x: f32| x / (1.0 + (-2.0 * x).exp());
    let expected = tensor1(&[swish(-1.0), 0.0, swish(3.0)]);
    close(answer("Swish", 24, &[float("alpha", 2.0)], &[x()]), expected);
}

#[test]
fn remainders_and_shifts() {
    let a = || Run(tensor1(&[-4i32, 7, 5, 4, -7, 8]));
    let b = || Run(tensor1(&[2i32, -3, 8, -2, 3, 5]));
    close(answer("Mod", 13, &[], &[a(), b()]), tensor1(&[0i32, -2, 5, 0, 2, 3]));
    let truncated = answer("Mod", 13, &[int("fmod", 1)], &[a(), b()]);
    close(truncated, tensor1(&[0i32, 1, 5, 0, -1, 3]));
    let (x, by) = (Run(tensor1(&[-8i32, 4, 1])), Run(tensor1(&[1i32, 33, -1])));
    let right = answer("BitShift", 28, &[text("direction", "RIGHT")], &[x.clone(), by.clone()]);
    close(right, tensor1(&[-4i32, 0, 0]));
    let left = answer("BitShift", 28, &[text("direction", "LEFT")], &[x, by]);
    close(left, tensor1(&[-16i32, 0, 0]));
}

#[test]
fn the_old_way_to_broadcast() {
    let a = Run(tensor3(&[[[0f32, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]));
    let b = Run(tensor1(&[1f32, 2.0]));
    let axis = [int("broadcast", 1), int("axis", 1)];
    let expected = tensor3(&[[[1f32, 1.0], [2.0, 2.0]], [[1.0, 1.0], [2.0, 2.0]]]);
    close(answer("Add", 6, &axis, &[a.clone(), b.clone()]), expected);
    let expected = tensor3(&[[[1f32, 2.0], [1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]]]);
    close(answer("Add", 6, &[int("broadcast", 1)], &[a.clone(), b.clone()]), expected);
    refused(answer("Add", 6, &[], &[a, b]), "broadcast is not set");
}

#[test]
fn pools_whose_windows_reach_past_the_end() {
    let geometry = [ints("kernel_shape", &[3, 3]), ints("strides", &[2, 2]), int("ceil_mode", 1)];
    let square = |v: [f32; 4]| tensor1(&v).into_shape(&[1, 1, 2, 2]).unwrap();
    let largest = answer("MaxPool", 12, &geometry, &[Run(picture(4))]);
    close(largest, square([11.0, 12.0, 15.0, 16.0]));
    let mean = answer("AveragePool", 19, &geometry, &[Run(picture(4))]);
    close(mean, square([6.0, 7.5, 12.0, 13.5]));
    // What lies beyond stated pads doesn't count, pads do.
    let padded = [&geometry[..], &[ints("pads", &[0, 0, 1, 1]), int("count_include_pad", 1)]];
    let mean = answer("AveragePool", 19, &padded.concat(), &[Run(picture(3))]);
    close(mean, square([5.0, 18.0 / 6.0, 24.0 / 6.0, 9.0 / 4.0]));
    let lower = [ints("kernel_shape", &[2, 2]), text("auto_pad", "SAME_LOWER")];
    let largest = answer("MaxPool", 12, &lower, &[Run(picture(2))]);
    close(largest, square([1.0, 2.0, 3.0, 4.0]));
    let power = [ints("kernel_shape", &[2, 2]), int("p", 1)];
    let sums = answer("LpPool", 18, &power, &[Run(picture(3))]);
    close(sums, square([12.0, 16.0, 24.0, 28.0]));
}

#[test]
fn transposed_convolutions_by_the_output_they_are_to_have() {
    let x = Run(tensor3(&[[[1f32, 2.0, 3.0]]]));
    let w = Constant(tensor3(&[[[1f32, 1.0, 1.0]]]));
    let stride = ints("strides", &[2]);
    let all = answer("ConvTranspose", 11, std::slice::from_ref(&stride), &[x.clone(), w.clone()]);
    close(all, tensor3(&[[[1f32, 1.0, 3.0, 2.0, 5.0, 3.0, 3.0]]]));
    let shape = ints("output_shape", &[6]);
    let cut = answer("ConvTranspose", 11, &[stride.clone(), shape], &[x.clone(), w.clone()]);
    close(cut, tensor3(&[[[1f32, 3.0, 2.0, 5.0, 3.0, 3.0]]]));
    let same = [stride, text("auto_pad", "SAME_UPPER")];
    let same = answer("ConvTranspose", 11, &same, &[x, w]);
    close(same, tensor3(&[[[1f32, 1.0, 3.0, 2.0, 5.0, 3.0]]]));
}

#[test]
fn responses_normalized_over_neighbouring_channels() {
    let x: Vec<f32> = (1..=4).map(|v| v as f32).collect();
    let (alpha, beta, bias, size) = (0.5f32, 0.75, 2.0, 3);
    let expected: Vec<f32> = (0..4usize)
        .map(|c| {
            let near = (c.saturating_sub(1)..=(c + 1).min(3)).map(|i| x[i] * x[i]).sum::<f32>();
            x[c] / (bias + alpha / size as f32 * near).powf(beta)
        })
        .collect();
    let attributes =
        [float("alpha", alpha), float("beta", beta), float("bias", bias), int("size", size)];
    let x = tensor1(&x).into_shape(&[1, 4, 1, 1]).unwrap();
    let expected = tensor1(&expected).into_shape(&[1, 4, 1, 1]).unwrap();
    close(answer("LRN", 13, &attributes, &[Run(x)]), expected);
}

#[test]
fn resizing_by_every_way_to_round() {
    let x = || Run(tensor3(&[[[1f32, 2.0, 3.0]]]));
    let scales = || Constant(tensor1(&[1f32, 1.0, 2.0]));
    let by = |mode: &str, rounding: &str, coordinates: &str| {
        let attributes = [
            text("mode", mode),
            text("nearest_mode", rounding),
            text("coordinate_transformation_mode", coordinates),
        ];
        answer("Resize", 13, &attributes, &[x(), Nothing, scales()])
    };
    let twice = tensor3(&[[[1f32, 1.0, 2.0, 2.0, 3.0, 3.0]]]);
    close(by("nearest", "floor", "asymmetric"), twice.clone());
    close(by("nearest", "round_prefer_floor", "asymmetric"), twice.clone());
    close(by("nearest", "round_prefer_floor", "half_pixel"), twice);
    close(by("nearest", "ceil", "asymmetric"), tensor3(&[[[1f32, 2.0, 2.0, 3.0, 3.0, 3.0]]]));
    let linear = tensor3(&[[[1f32, 1.25, 1.75, 2.25, 2.75, 3.0]]]);
    close(by("linear", "floor", "half_pixel"), linear);
    refused(by("nearest", "up", "asymmetric"), "nearest_mode is 'up'");
    let open = answer("Resize", 13, &[], &[x(), Nothing, Run(tensor1(&[1f32, 1.0, 2.0]))]);
    refused(open, "'scales' is computed while the graph runs");
    let old = [text("mode", "nearest")];
    let old = answer("Upsample", 9, &old, &[x(), scales()]);
    close(old, tensor3(&[[[1f32, 1.0, 2.0, 2.0, 3.0, 3.0]]]));
}

#[test]
fn pads_that_cut_and_pads_that_go_around() {
    let x = || Run(tensor1(&[1f32, 2.0, 3.0, 4.0]));
    let by = |pads: &[i64], mode: &str| {
        answer("Pad", 19, &[text("mode", mode)], &[x(), Constant(tensor1(pads))])
    };
    close(by(&[-1, 1], "constant"), tensor1(&[2f32, 3.0, 4.0, 0.0]));
    close(by(&[1, -2], "edge"), tensor1(&[1f32, 1.0, 2.0]));
    close(by(&[1, 2], "wrap"), tensor1(&[4f32, 1.0, 2.0, 3.0, 4.0, 1.0, 2.0]));
    refused(by(&[-3, -2], "constant"), "more than there is");
    refused(by(&[0, 1 << 40], "constant"), "pads by");
}

#[test]
fn to_integers_and_back() {
    let x = Run(tensor1(&[0f32, 2.0, 3.0, 1000.0, -254.0, -1000.0]));
    let (scale, zero) = (Constant(tensor0(2f32)), Constant(tensor0(128u8)));
    let q = answer("QuantizeLinear", 13, &[], &[x, scale.clone(), zero.clone()]).unwrap();
    assert_eq!(q, tensor1(&[128u8, 129, 130, 255, 1, 0]));
    let back = answer("DequantizeLinear", 13, &[], &[Run(q), scale, zero]);
    close(back, tensor1(&[0f32, 2.0, 4.0, 254.0, -254.0, -256.0]));
    // Halves of a step, each of which a product with the reciprocal puts on the other side.
    let halves: Vec<f32> = (0..64).map(|i| (i as f32 + 0.5) * 0.3).collect();
    let expected: Vec<u8> = halves.iter().map(|x| (x / 0.3).round_ties_even() as u8).collect();
    let x = Run(tensor1(&halves));
    let (tenths, none) = (Constant(tensor0(0.3f32)), Constant(tensor0(0u8)));
    let q = answer("QuantizeLinear", 13, &[], &[x, tenths, none]).unwrap();
    assert_eq!(q, tensor1(&expected));
    let columns = Constant(tensor1(&[1f32, 10.0]));
    let by_column = answer(
        "DequantizeLinear",
        13,
        &[int("axis", 1)],
        &[Run(tensor2(&[[1u8, 2], [3, 4]])), columns],
    );
    close(by_column, tensor2(&[[1f32, 20.0], [3.0, 40.0]]));
}

#[test]
fn quotients_that_are_rounded_are_exact() {
    let whole: Vec<f32> = (1..200).map(|i| i as f32).collect();
    let x = || Run(tensor1(&whole));
    assert_eq!(answer("OffshootQuotient", 13, &[], &[x(), x()]).unwrap(), tensor1(&[1f32; 199]));
    let (a, b) = (Run(tensor1(&[7i64, -7])), Run(tensor1(&[2i64, 2])));
    assert_eq!(answer("OffshootQuotient", 13, &[], &[a, b]).unwrap(), tensor1(&[3i64, -3]));
}

#[test]
fn losses_leave_out_what_is_to_be_ignored() {
    let x = || Run(tensor2(&[[0f32, 0.0], [2.0, 0.0], [5.0, 1.0]]));
    let labels = || Run(tensor1(&[0i64, 1, -1]));
    let second = 2.0 + (1.0 + (-2f32).exp()).ln();
    let ignored = int("ignore_index", -1);
    let each = [ignored.clone(), text("reduction", "none")];
    let expected = tensor1(&[2f32.ln(), second, 0.0]);
    close(answer("SoftmaxCrossEntropyLoss", 13, &each, &[x(), labels()]), expected);
    let mean = answer("SoftmaxCrossEntropyLoss", 13, &[ignored], &[x(), labels()]);
    close(mean, tensor0((2f32.ln() + second) / 2.0));
}

#[test]
fn attention_with_masks() {
    let q = || Run(tensor4(&[[[[1f32, 0.0], [0.0, 1.0]]]]));
    let v = || Run(tensor4(&[[[[1f32, 2.0], [3.0, 4.0]]]]));
    // The second query may see nothing: its answer is 0.
    let mask = Run(tensor2(&[[true, false], [false, false]]));
    let masked = answer("Attention", 23, &[], &[q(), q(), v(), mask]);
    close(masked, tensor4(&[[[[1f32, 2.0], [0.0, 0.0]]]]));
    let causal =
        answer("Attention", 23, &[int("is_causal", 1), float("scale", 0.0)], &[q(), q(), v()]);
    close(causal, tensor4(&[[[[1f32, 2.0], [2.0, 3.0]]]]));
}

#[test]
fn sequences_reversed_as_far_as_they_go() {
    let x = Run(tensor2(&[[1f32, 2.0, 3.0], [4.0, 5.0, 6.0]]));
    let axes = [int("batch_axis", 0), int("time_axis", 1)];
    let reversed = answer("ReverseSequence", 10, &axes, &[x, Run(tensor1(&[2i64, 3]))]);
    close(reversed, tensor2(&[[2f32, 1.0, 3.0], [6.0, 5.0, 4.0]]));
}

#[test]
fn what_is_chosen_by_its_values() {
    let x = tensor2(&[[0f32, 2.0], [-1.0, 0.0]]);
    assert_eq!(
        answer("NonZero", 13, &[], &[Run(x.clone())]).unwrap(),
        tensor2(&[[0i64, 1], [1, 0]])
    );
    let rows = answer("Compress", 11, &[int("axis", 0)], &[Run(x), Run(tensor1(&[false, true]))]);
    close(rows, tensor2(&[[-1f32, 0.0]]));
    let boxes = tensor3(&[[[0f32, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9], [2.0, 2.0, 3.0, 3.0]]]);
    let scores = tensor3(&[[[0.9f32, 0.8, 0.7]]]);
    let limits = [Constant(tensor1(&[3i64])), Constant(tensor1(&[0.5f32]))];
    let given = [&[Run(boxes), Run(scores)], limits.as_slice()].concat();
    let kept = answer("NonMaxSuppression", 11, &[], &given).unwrap();
    assert_eq!(kept, tensor2(&[[0i64, 0, 0], [0, 0, 2]]));
}

#[test]
fn tensors_made_of_a_shape_alone() {
    let shape = Constant(tensor1(&[2i64, 1]));
    let zeros = answer("ConstantOfShape", 9, &[], &[shape]).unwrap();
    assert_eq!(zeros, tensor2(&[[0f32], [0.0]]));
    let x = Run(tensor2(&[[0f32, 0.0, 0.0], [0.0, 0.0, 0.0]]));
    let eye = answer("EyeLike", 9, &[int("k", 1), int("dtype", DataType::Double as i64)], &[x]);
    assert_eq!(eye.unwrap(), tensor2(&[[0f64, 1.0, 0.0], [0.0, 0.0, 1.0]]));
}

/// x as 256 steps from its least to its greatest value say it, 0 among them.
fn in_bytes(x: &[f32]) -> Vec<f32> {
    let (low, high) = x.iter().fold((0f32, 0f32), |(l, h), v| (l.min(*v), h.max(*v)));
    let scale = if high == low { 1.0 } else { (high - low) / 255.0 };
    let zero = (-low / scale).round_ties_even();
    let step = |v: &f32| ((v / scale).round_ties_even() + zero).clamp(0.0, 255.0);
    x.iter().map(|v| (step(v) - zero) * scale).collect()
}

/// A step at a time, the state rounded over the whole batch before its product: ONNX Runtime's
/// DynamicQuantizeLSTM, which the first steps of a real file agreed with to 5e-7.
#[test]
fn a_state_is_rounded_before_its_product_where_the_file_says_so() {
    let (steps, batch, width, hidden) = (3, 2, 2, 2);
    let value = |seed: usize| move |i: usize| ((i * 7 + seed * 5) % 11) as f32 / 5.0 - 1.0;
    let make = |count: usize, seed: usize| (0..count).map(value(seed)).collect::<Vec<f32>>();
    let (x, w) = (make(steps * batch * width, 1), make(4 * hidden * width, 2));
    let r: Vec<f32> = make(4 * hidden * hidden, 3).iter().map(|v| 3.0 * v).collect();
    let sigmoid = |v: f32| 1.0 / (1.0 + (-v).exp());
    let (mut h, mut c) = (vec![0f32; batch * hidden], vec![0f32; batch * hidden]);
    let mut expected = vec![];
    for step in 0..steps {
        let state = in_bytes(&h);
        for b in 0..batch {
            let gate = |g: usize, j: usize| -> f32 {
                let row = g * hidden + j;
                let input = &x[(step * batch + b) * width..][..width];
                let of_input: f32 = (0..width).map(|k| w[row * width + k] * input[k]).sum();
                let old = &state[b * hidden..][..hidden];
                of_input + (0..hidden).map(|k| r[row * hidden + k] * old[k]).sum::<f32>()
            };
            for j in 0..hidden {
                // ONNX's order: i, o, f, c.
                let at = b * hidden + j;
                c[at] = sigmoid(gate(2, j)) * c[at] + sigmoid(gate(0, j)) * gate(3, j).tanh();
                h[at] = sigmoid(gate(1, j)) * c[at].tanh();
            }
        }
        expected.extend_from_slice(&h);
    }
    let tensor = |shape: &[usize], values: &[f32]| Tensor::from_shape(shape, values).unwrap();
    let given = [
        Run(tensor(&[steps, batch, width], &x)),
        Constant(tensor(&[1, 4 * hidden, width], &w)),
        Constant(tensor(&[1, 4 * hidden, hidden], &r)),
    ];
    let attributes = [int("hidden_size", hidden as i64), int("round_state", 1)];
    let found = answer("LSTM", 17, &attributes, &given).unwrap();
    let found = found.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap().to_vec();
    assert_eq!(found.len(), expected.len());
    assert!(
        found.iter().zip(&expected).all(|(f, e)| (f - e).abs() < 1e-5),
        "{found:?} {expected:?}"
    );
    let plain = answer("LSTM", 17, &attributes[..1], &given).unwrap();
    let plain = plain.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap().to_vec();
    assert!(plain.iter().zip(&expected).any(|(f, e)| (f - e).abs() > 1e-4));
}

/// In half precision a closed row was NaN: −f32::MAX is −∞ there.
#[test]
fn closed_rows_of_half_precision_are_zeros() {
    let half = |values: &[f32]| {
        let x = Tensor::from_shape(&[1, 1, 2, 2], values).unwrap();
        x.cast_to::<f16>().unwrap().into_owned()
    };
    let q = half(&[0.5, -0.5, 0.25, 1.0]);
    let mask = tensor2(&[[false, false], [true, true]]);
    let given = [Constant(q.clone()), Constant(q.clone()), Constant(q), Run(mask)];
    let y = answer("Attention", 24, &[], &given).unwrap();
    let y = y.cast_to::<f32>().unwrap();
    let y = y.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap().to_vec();
    assert_eq!(y[..2], [0.0, 0.0]);
    assert!(y.iter().all(|v| v.is_finite()) && y[2] != 0.0, "{y:?}");
}
