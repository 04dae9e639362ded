use std::io::Read;
use std::time::Instant;

use tract_core::internal::*;
use tract_core::ops::logic::IfThenElse;
use tract_core::ops::scan::{InputMapping, OutputMapping, Scan, ScanInfo};
use tract_onnx::prelude::{Framework, InferenceModelExt};

use super::*;
use crate::common::shared;
use crate::graph::testing::{bound, matrix, run_model, tensor, values, windows};
use crate::graph::weights::FrozenWeights;
use crate::graph::{
    Col2im, DepthwiseInputGradient, FrozenConv, FrozenDepthwise, FrozenEmbedding, FrozenLinear,
    GruCell, Im2col, LstmCell, bind_dims,
};

fn no_weights() -> FrozenWeights {
    FrozenWeights::new(Vec::new())
}

fn read(text: &GraphText, weights: &FrozenWeights) -> crate::error::Result<TypedModel> {
    read_graph(&text.text, text.constants.clone(), weights)
}

/// Binds the dimensions that the inputs' shapes fix, as a plan does.
fn bind_to(model: &TypedModel, inputs: &[Tensor]) -> TypedModel {
    let mut dims = vec![];
    for (outlet, tensor) in model.input_outlets().unwrap().iter().zip(inputs) {
        let fact = model.outlet_fact(*outlet).unwrap();
        for (dim, size) in fact.shape.iter().zip(tensor.shape()) {
            if let TDim::Sym(s) = dim {
                dims.push((s.to_string(), *size as i64));
            }
        }
    }
    bind_dims(model, &dims).unwrap()
}

/// Writes, reads, and compares the outputs for `inputs` within `tolerance`.
fn round_trip(
    model: &TypedModel,
    weights: &FrozenWeights,
    inputs: &[Tensor],
    tolerance: f32,
) -> GraphText {
    let text = write_graph(model).unwrap();
    assert_eq!(write_graph(model).unwrap().text, text.text, "the same graph gives the same text");
    let tracts = tract_nnef::ast::parse::parse_document(&text.text).unwrap();
    assert_eq!(parse::parse(&text.text).unwrap(), tracts);
    let back = read(&text, weights).unwrap_or_else(|e| panic!("{e}\n{}", text.text));
    let again = write_graph(&back).unwrap();
    assert_eq!(again.symbols.len(), text.symbols.len());
    let values = || inputs.iter().map(|t| t.clone().into_tvalue()).collect();
    let run = |model: &TypedModel| {
        run_model(bind_to(model, inputs).into_optimized().unwrap(), values(), None).unwrap()
    };
    let (want, found) = (run(model), run(&back));
    assert_eq!(want.len(), found.len());
    for (want, found) in want.iter().zip(&found) {
        assert_eq!(want.shape(), found.shape());
        assert_eq!(want.datum_type(), found.datum_type());
        let (w, f) = (want.cast_to::<f32>().unwrap(), found.cast_to::<f32>().unwrap());
        let (w, f) = (w.try_as_plain_ram().unwrap(), f.try_as_plain_ram().unwrap());
        let pairs = w.as_slice::<f32>().unwrap().iter().zip(f.as_slice::<f32>().unwrap());
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance, "outputs differ by {worst}");
    }
    text
}

fn conv_graph(batch: &TDim, model: &mut TypedModel, weights: &FrozenWeights) {
    let window = windows()[0];
    let ids = model.add_source("the ids", i64::fact([batch.clone(), 4.to_dim()])).unwrap();
    let x = model
        .add_source("in.image", f32::fact([batch.clone(), 9.to_dim(), 8.to_dim(), 3.to_dim()]))
        .unwrap();
    let bias = model.add_const("bias", tensor(&[5], &values(5, 8))).unwrap();
    let small_bias = model.add_const("b2", tensor(&[6], &values(6, 8))).unwrap();
    let filters = model.add_const("filters", tensor(&[9, 5], &values(45, 9))).unwrap();
    let table = FrozenEmbedding::new(weights, 0, Some(0)).unwrap();
    let embedded = model.wire_node("a/b/Gather", table, &[ids]).unwrap();
    let linear = FrozenLinear::new(weights, 1, Some(1), true).unwrap();
    let back = linear.transposed();
    let y = model.wire_node("a/b/MatMul", linear, &[embedded[0], small_bias]).unwrap();
    let dx = model.wire_node("a.b back", back, &y).unwrap();
    let conv = FrozenConv::new(weights, 2, Some(2), true, window).unwrap();
    let z = model.wire_node("Conv:0", conv.clone(), &[x, bias]).unwrap();
    let z = model.wire_node("dw", FrozenDepthwise { window }, &[z[0], filters, bias]).unwrap();
    let (height, width) = (9.to_dim(), 8.to_dim());
    let back = DepthwiseInputGradient { window, height: height.clone(), width: width.clone() };
    let dz = model.wire_node("dw'", back, &[z[0], filters]).unwrap();
    let dz = model.wire_node("Conv'", conv.input_gradient(height.clone(), width.clone()), &dz);
    let patches = model.wire_node("im2col", Im2col { window }, &dz.unwrap()).unwrap();
    let sum = Col2im { window, height, width, channels: 3 };
    let sum = model.wire_node("col2im", sum, &patches).unwrap();
    model.select_output_outlets(&[y[0], dx[0], z[0], sum[0], y[0]]).unwrap();
    model.set_outlet_label(z[0], "logits: \"x\"; }".into()).unwrap();
}

fn table() -> FrozenWeights {
    FrozenWeights::new(vec![
        matrix(11, 5, &values(55, 1)),
        matrix(6, 5, &values(30, 2)),
        matrix(5, 27, &values(135, 3)),
    ])
}

fn all_ops() -> (TypedModel, FrozenWeights) {
    let weights = table();
    let mut model = TypedModel::default();
    let batch = model.sym("batch.size; }\"").to_dim();
    conv_graph(&batch, &mut model, &weights);
    let odd = tensor0("a'\"\\;}\nb".to_string()).into_arc_tensor();
    model.properties.insert("odd.key; }".into(), odd);
    (model, weights)
}

fn all_ops_inputs() -> [Tensor; 2] {
    let ids = Tensor::from_shape(&[2, 4], &[0i64, 3, 10, -1, 5, 5, 2, 1]).unwrap();
    [ids, tensor(&[2, 9, 8, 3], &values(2 * 9 * 8 * 3, 4))]
}

#[test]
fn each_of_our_ops_comes_back_the_same() {
    let (model, weights) = all_ops();
    let text = round_trip(&model, &weights, &all_ops_inputs(), 0.0);
    let pairs = |list: &[(String, String)]| list.iter().map(|(_, o)| o.clone()).collect::<Vec<_>>();
    assert_eq!(pairs(&text.inputs), ["the ids", "in.image"]);
    assert_eq!(pairs(&text.outputs)[2], "logits: \"x\"; }");
    assert_eq!(pairs(&text.symbols), ["batch.size; }\""]);
    assert!(!text.text.contains("odd.key"));
    assert!(text.node_names.iter().any(|(_, o)| o == "a/b/MatMul"));
    let back = read(&text, &weights).unwrap();
    let one = bind_dims(&back, &[(text.symbols[0].0.clone(), 2)]).unwrap();
    assert_eq!(one.output_fact(2).unwrap().shape.as_concrete().unwrap(), &[2, 9, 8, 5]);
    // Targets come back too: an adapter changes both graphs alike.
    let (a0, b0) = (values(2 * 11, 5), values(5 * 2, 6));
    let (a1, b1) = (values(2 * 5, 5), values(6 * 2, 6));
    let (a2, b2) = (values(2 * 27, 5), values(5 * 2, 6));
    let adapter = bound(vec![Some((2, &a0, &b0)), Some((2, &a1, &b1)), Some((2, &a2, &b2))]);
    let inputs = || all_ops_inputs().into_iter().map(|t| t.into_tvalue()).collect();
    let base = run_model(model.clone(), inputs(), None).unwrap();
    let want = run_model(model, inputs(), Some(&adapter)).unwrap();
    let found = run_model(back, inputs(), Some(&adapter)).unwrap();
    assert_eq!(want, found);
    for (want, base) in want.iter().zip(&base) {
        assert_ne!(want, base, "the adapter has an effect");
    }
}

#[test]
fn recurrent_cells_come_back_the_same() {
    let mut model = TypedModel::default();
    let inputs = [[2, 1, 8], [2, 1, 6], [2, 1, 2]]
        .map(|shape| tensor(&shape, &values(shape.iter().product(), shape[2] as u64)));
    let sources: Vec<OutletId> = inputs
        .iter()
        .enumerate()
        .map(|(i, t)| model.add_source(format!("in{i}"), f32::fact(t.shape())).unwrap())
        .collect();
    let [four, three, state] = sources[..] else { unreachable!() };
    let lstm = model.wire_node("lstm", LstmCell, &[four, four, state]).unwrap();
    let gru = model.wire_node("gru", GruCell, &[three, three, lstm[0]]).unwrap();
    model.select_output_outlets(&[lstm[1], gru[0]]).unwrap();
    round_trip(&model, &no_weights(), &inputs, 0.0);
}

#[test]
fn an_op_of_ours_that_stands_in_a_loop_alone_comes_back() {
    let mut body = TypedModel::default();
    let gates = body.add_source("gates", f32::fact([1, 6])).unwrap();
    let before = body.add_source("before", f32::fact([1, 2])).unwrap();
    let after = body.wire_node("cell", GruCell, &[gates, gates, before]).unwrap();
    body.select_output_outlets(&after).unwrap();
    let info = ScanInfo { axis: 0, chunk: 1 };
    let output = OutputMapping {
        scan: Some((0, info)),
        full_dim_hint: None,
        last_value_slot: None,
        state: true,
    };
    let inputs = vec![InputMapping::Scan(info), InputMapping::State];
    let scan = Scan::new(body, inputs, vec![output], 0).unwrap();
    let mut model = TypedModel::default();
    let gates = model.add_source("all gates", f32::fact([3, 6])).unwrap();
    let before = model.add_source("first", f32::fact([1, 2])).unwrap();
    let y = model.wire_node("loop", scan, &[gates, before]).unwrap();
    model.select_output_outlets(&y).unwrap();
    let inputs = [tensor(&[3, 6], &values(18, 1)), tensor(&[1, 2], &values(2, 2))];
    round_trip(&model, &no_weights(), &inputs, 0.0);
}

#[test]
fn conditions_have_a_text_form_and_their_bodies_are_bound() {
    let mut model = TypedModel::default();
    let n = model.sym("n").to_dim();
    let condition = model.add_source("c", bool::fact([0usize; 0])).unwrap();
    let a = model.add_source("a", f32::fact([n.clone(), 3.to_dim()])).unwrap();
    let b = model.add_source("b", f32::fact([n.clone(), 3.to_dim()])).unwrap();
    let body = |scale: f32| {
        let mut body = TypedModel { symbols: model.symbols.clone(), ..TypedModel::default() };
        let x = body.add_source("x", f32::fact([n.clone(), 3.to_dim()])).unwrap();
        let k = body.add_const("k", tensor(&[1, 3], &[scale, -scale, 1.0])).unwrap();
        let y = body.wire_node("mul", tract_core::ops::math::mul(), &[x, k]).unwrap();
        body.select_output_outlets(&y).unwrap();
        body
    };
    let op = IfThenElse {
        then_body: body(2.0),
        then_input_mapping: vec![1],
        else_body: body(3.0),
        else_input_mapping: vec![2],
    };
    let y = model.wire_node("if", op, &[condition, a, b]).unwrap();
    model.select_output_outlets(&y).unwrap();
    for c in [true, false] {
        let inputs = [tensor0(c), tensor(&[2, 3], &values(6, 1)), tensor(&[2, 3], &values(6, 2))];
        let text = write_graph(&model).unwrap();
        let back = read(&text, &no_weights()).unwrap_or_else(|e| panic!("{e}\n{}", text.text));
        let bound = bind_dims(&back, &[(text.symbols[0].0.clone(), 2)]).unwrap();
        assert_eq!(bound.output_fact(0).unwrap().shape.as_concrete().unwrap(), &[2, 3]);
        let run = |m: TypedModel| {
            run_model(m, inputs.iter().map(|t| t.clone().into_tvalue()).collect(), None).unwrap()
        };
        assert_eq!(run(model.clone()), run(bound));
        let k = if c { 2.0 } else { 3.0 };
        let first = values(6, if c { 1 } else { 2 })[0] * k;
        assert_eq!(run(back)[0].try_as_plain_ram().unwrap().as_slice::<f32>().unwrap()[0], first);
    }
}

#[test]
fn damaged_texts_are_errors() {
    let (model, weights) = all_ops();
    let good = write_graph(&model).unwrap();
    let try_text = |text: &str| read_graph(text, good.constants.clone(), &weights);
    assert!(try_text(&good.text).is_ok());
    let end = good.text.trim_end().len();
    for at in 0..end {
        assert!(try_text(&good.text[..at]).is_err(), "cut at {at}: {}", &good.text[..at]);
    }
    // Every byte replaced: never a panic; some are valid texts of other graphs.
    let strange = [b'(', b'0', b'x', b' ', b'-', b'"', b';', 0];
    for at in 0..good.text.len() {
        let mut bytes = good.text.clone().into_bytes();
        bytes[at] = strange[at % strange.len()];
        let _ = try_text(&String::from_utf8(bytes).unwrap());
    }
}

/// tract's parser of assertions recurses at each bracket and sign: no panic, the process ended.
#[test]
fn deep_assertions_are_refused_without_overflowing_the_stack() {
    let read = |assertion: String| {
        let text = format!(
            "version 1.0;\nextension tract_symbol s0;\nextension tract_assert {assertion};\n\n\
             graph g() -> () {{\n}}\n"
        );
        read_graph(&text, vec![], &no_weights())
    };
    for (open, close) in [("(", ")"), ("-", ""), ("min(s0, ", ")"), ("s0 - (", ")")] {
        let nested = |n| read(format!("{}s0{} >= 0", open.repeat(n), close.repeat(n)));
        nested(30).unwrap();
        let e = nested(100_000).unwrap_err();
        assert!(e.message().contains("brackets and signs"), "{e}");
    }
}

#[test]
fn what_does_not_fit_the_text_is_named() {
    let (model, weights) = all_ops();
    let good = write_graph(&model).unwrap();
    let message = |text: &str, weights: &FrozenWeights| {
        read_graph(text, good.constants.clone(), weights).unwrap_err().message().to_string()
    };
    let linear = good.text.lines().find(|l| l.contains("offshoot_linear(")).unwrap();
    let node = linear.trim().split(' ').next().unwrap();
    for (from, to, expect) in [
        ("weight = 1", "weight = 9", "weight 9 is outside"),
        ("weight = 1", "weight = -1", "weight is -1"),
        ("in_features = 5", "in_features = 4", "expected of shape (6, 4), found (6, 5)"),
        ("out_features = 6", "out_features = 7", "expected of shape (7, 5), found (6, 5)"),
    ] {
        let damaged = good.text.replace(linear, &linear.replace(from, to));
        let e = message(&damaged, &weights);
        assert!(e.contains(expect) && e.contains(&format!("'{node}'")), "{e}");
    }
    let e = message(&good.text, &no_weights());
    assert!(e.contains("outside the weight table of 0 entries"), "{e}");
    let e = read_graph(&good.text, vec![], &weights).unwrap_err();
    assert!(e.message().contains("No data for tensor"), "{e}");
    let e = message(&good.text.replace("offshoot_linear(", "offshoot_nonlinear("), &weights);
    assert!(e.contains("offshoot_nonlinear"), "{e}");
    let e = message(
        &good.text.replace("same", "x").replace("kernel = [3, 3]", "kernel = [0, 3]"),
        &weights,
    );
    assert!(e.contains("kernel [0, 3]"), "{e}");
}

// The shared models.

/// The arrays of an .npz file whose names start with `in.`, in the file's order.
fn npz_inputs(path: &std::path::Path) -> Vec<(String, Tensor)> {
    let mut zip = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut found = vec![];
    for i in 0..zip.len() {
        let mut file = zip.by_index(i).unwrap();
        let name = file.name().unwrap().trim_end_matches(".npy").to_string();
        let Some(name) = name.strip_prefix("in.") else { continue };
        let mut bytes = vec![];
        file.read_to_end(&mut bytes).unwrap();
        let head = u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
        let header = String::from_utf8_lossy(&bytes[10..10 + head]).to_string();
        let data = &bytes[10 + head..];
        let shape = header.split("'shape': (").nth(1).unwrap().split(')').next().unwrap();
        let shape: Vec<usize> = shape.split(',').filter_map(|d| d.trim().parse().ok()).collect();
        let tensor = if header.contains("<f4") {
            let v: Vec<f32> =
                data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            Tensor::from_shape(&shape, &v).unwrap()
        } else if header.contains("<i8") {
            let v: Vec<i64> =
                data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
            Tensor::from_shape(&shape, &v).unwrap()
        } else {
            panic!("{header}")
        };
        found.push((name.to_string(), tensor));
    }
    found
}

/// A plain import and its inputs from a reference file, in the model's order.
fn import(
    name: &str,
    reference: &str,
    fact: Option<&[usize]>,
) -> Option<(TypedModel, Vec<Tensor>)> {
    let shared = shared()?;
    let path = shared.join("models").join(name);
    let mut model = tract_onnx::onnx().model_for_path(path).unwrap();
    if let Some(shape) = fact {
        model.set_input_fact(0, f32::fact(shape).into()).unwrap();
    }
    let model = model.into_typed().unwrap().into_decluttered().unwrap();
    let arrays = npz_inputs(&shared.join("reference").join(reference));
    let inputs = model
        .input_outlets()
        .unwrap()
        .iter()
        .map(|i| {
            let name = &model.node(i.node).name;
            let found = arrays.iter().find(|(n, _)| n == name);
            found.unwrap_or_else(|| panic!("no array for input '{name}'")).1.clone()
        })
        .collect();
    Some((model, inputs))
}

fn shared_model(name: &str, reference: &str, fact: Option<&[usize]>) {
    let Some((model, inputs)) = import(name, reference, fact) else { return };
    let text = round_trip(&model, &no_weights(), &inputs, 1e-5);
    assert!(text.text.len() < 400_000, "constants stay out of the text: {}", text.text.len());
}

#[test]
fn minilm_comes_back() {
    shared_model("minilm-l6.onnx", "minilm/ref_dynamo_0.npz", None);
}

/// tract's whole registry of standard operators takes longer to make than a base to open.
#[test]
fn the_usual_graphs_need_the_common_operators_only() {
    for (name, reference) in [
        ("minilm-l6.onnx", "minilm/ref_dynamo_0.npz"),
        ("efficientnet-lite0.onnx", "efficientnet_lite0/ref_0.npz"),
    ] {
        let Some((model, _)) = import(name, reference, None) else { return };
        let text = write_graph(&model).unwrap();
        let common = standard::common(&text.text).unwrap();
        let proto = read::proto_model(&text.text, text.constants, &no_weights()).unwrap();
        read::translated(&proto, common).unwrap();
    }
}

#[test]
fn efficientnet_comes_back() {
    shared_model("efficientnet-lite0.onnx", "efficientnet_lite0/ref_0.npz", None);
}

#[test]
fn ppocr_recogniser_comes_back() {
    shared_model("ppocr-rec.onnx", "ppocr_rec/ref_rec_0.npz", Some(&[1, 3, 48, 320]));
}

#[test]
fn ppocr_classifier_comes_back() {
    shared_model("ppocr-cls.onnx", "ppocr_cls/ref_cls_0.npz", Some(&[1, 3, 48, 192]));
}

#[test]
fn resemblyzer_comes_back() {
    shared_model("resemblyzer.onnx", "resemblyzer/ref_0.npz", None);
}

#[test]
fn a_loop_over_two_streams_is_each_stream_alone() {
    // tract's declutter leaves the initial cell state of the LSTMs in the wrong shape.
    let Some((model, inputs)) = import("resemblyzer.onnx", "resemblyzer/ref_0.npz", None) else {
        return;
    };
    let back = read(&write_graph(&model).unwrap(), &no_weights()).unwrap();
    let frames = inputs[0].shape()[1].min(20);
    let streams = tensor(&[2, frames, 40], &values(2 * frames * 40, 1));
    let run = |x: &Tensor| {
        let plan = bind_to(&back, std::slice::from_ref(x)).into_optimized().unwrap();
        run_model(plan, tvec![x.clone().into_tvalue()], None).unwrap().remove(0)
    };
    let both = run(&streams);
    for i in 0..2 {
        let alone = run(&streams.slice(0, i, i + 1).unwrap());
        both.slice(0, i, i + 1).unwrap().close_enough(&alone, true).unwrap();
    }
}

#[test]
fn reading_is_quick() {
    let Some((model, _)) = import("minilm-l6.onnx", "minilm/ref_dynamo_0.npz", None) else {
        return;
    };
    let text = write_graph(&model).unwrap();
    let start = Instant::now();
    let nnef = framework(standard::common(&text.text).unwrap(), vec![]);
    let registry = start.elapsed();
    let start = Instant::now();
    drop((parse::parse(&text.text).unwrap(), nnef));
    let parse = start.elapsed();
    let start = Instant::now();
    let back = read(&text, &no_weights()).unwrap();
    let read = start.elapsed();
    let original = |name: &str| text.symbols.iter().find(|(_, o)| o == name).unwrap().0.clone();
    let start = Instant::now();
    let names: Vec<String> = text.symbols.iter().map(|(_, o)| o.clone()).collect();
    let dims: Vec<(String, i64)> =
        names.iter().zip([1, 16]).map(|(n, v)| (original(n), v)).collect();
    let bound = bind_dims(&back, &dims).unwrap();
    let bind = start.elapsed();
    let start = Instant::now();
    let optimized = bound.into_optimized().unwrap();
    println!(
        "MiniLM, {} bytes of text, symbols {names:?}: registry {registry:?}, parse {parse:?}, read {read:?}, bind {bind:?}, optimize {:?}, {} nodes",
        text.text.len(),
        start.elapsed(),
        optimized.nodes().len()
    );
    assert!(read.as_millis() < 2000, "{read:?}");
}
