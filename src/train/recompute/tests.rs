//! The same bits whatever is computed twice, and less memory for it.

use super::*;
use crate::adapter::Kind;
use crate::runtime::{Engine, PackOptions, pack};
use crate::shape::Array;
use crate::train::init;
use crate::train::testing::{engine, options, pictures, points, sequences};
use crate::train::{Answers, MicroBatch, TrainOptions, Trainer};
use std::path::Path;
use tract_core::ops::einsum::EinSum;
use tract_core::ops::math;
use tract_core::ops::nn::{Reduce, Reducer, Softmax};

/// Gradients of `batch` while nothing, what is cheap, and every stretch is computed twice: the same bits. The
/// planned bytes of the three, and what the last one repeats.
pub(in crate::train) fn same_bits(
    trainer: &mut Trainer,
    batch: &[MicroBatch],
    what: &str,
) -> ([u64; 3], Repeated) {
    let names: Vec<(String, usize)> =
        trainer.parameters().map(|(name, v)| (name.to_string(), v.len())).collect();
    for (at, (name, len)) in names.iter().enumerate() {
        // Those that are zero at first would leave gradients of others zero.
        trainer.set_parameter(name, &init::uniform(at as u64, name, *len, 0.1)).unwrap();
    }
    let mut found = [Repeat::Nothing, Repeat::Cheap, Repeat::Within(0)].into_iter().map(|repeat| {
        trainer.repeat(repeat);
        let gradients = trainer.gradients(batch).unwrap();
        let bits = |v: &Vec<f32>| v.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        let bits: Vec<Vec<u32>> = gradients.values.iter().map(bits).collect();
        assert!(gradients.values.iter().flatten().any(|v| *v != 0.0), "{what}");
        let inputs = &batch[0].inputs;
        let planned = trainer.plan(inputs).unwrap();
        ((gradients.loss.to_bits(), bits), planned, trainer.again(inputs).unwrap())
    });
    let (plain, cheap, all) = (found.next().unwrap(), found.next().unwrap(), found.next().unwrap());
    assert!(plain.0 == cheap.0, "{what}: cheap steps that run twice change a gradient");
    assert!(plain.0 == all.0, "{what}: stretches that run twice change a gradient");
    let planned = [plain.1, cheap.1, all.1];
    println!("{what}: {planned:?} bytes, {:?}", all.2);
    assert_eq!(plain.2, Repeated::default(), "{what}");
    (planned, all.2)
}

fn batch(engine: &Engine, trainer: &Trainer, data: &crate::train::data::Dataset) -> MicroBatch {
    let samples =
        crate::train::samples::Samples::new(engine, data, trainer.labels(), None).unwrap();
    let rows = data.samples.len();
    let labels: Vec<_> = data.samples.iter().map(|s| s.label.clone()).collect();
    let inputs = samples.inputs(&(0..rows).collect::<Vec<_>>(), rows).unwrap();
    MicroBatch { inputs, answers: trainer.answers(&labels).unwrap() }
}

#[test]
fn no_bit_of_any_kind_of_adapter_changes() {
    for kind in Kind::all() {
        let cases =
            [("attention", sequences(3, 1)), ("convnet", pictures(2, 1)), ("mlp", points(4, 1))];
        for (name, data) in cases {
            let (_dir, engine) = engine(name, &PackOptions::default());
            let options = TrainOptions { kind, ..options() };
            let mut trainer = Trainer::new(&engine, &options, data.labels.clone()).unwrap();
            let batch = batch(&engine, &trainer, &data);
            let what = format!("{} of {name}", kind.name());
            let (planned, _) = same_bits(&mut trainer, &[batch], &what);
            assert!(planned[1] <= planned[0] && planned[2] <= planned[1], "{what}: {planned:?}");
        }
    }
}

fn shipped(name: &str) -> (tempfile::TempDir, Engine) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model.base");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name);
    pack(&model, &out, &PackOptions::default()).unwrap();
    (dir, Engine::open(&out).unwrap())
}

fn two_classes(rows: usize) -> Answers {
    (0..rows).map(|row| Some(vec![(row % 2) as f32, 1.0 - (row % 2) as f32])).collect()
}

#[test]
fn sentences_take_less_and_learn_the_same() {
    let (_dir, engine) = shipped("minilm-l6.onnx");
    let labels = vec!["a".into(), "b".into()];
    let mut trainer = Trainer::new(&engine, &TrainOptions::default(), labels).unwrap();
    let (rows, tokens) = (2, 32);
    let ids = (0..rows * tokens).map(|i| 1000 + (i * 7919 % 20_000) as i64).collect();
    let array = |values| Array::i64(vec![rows, tokens], values).unwrap();
    let mask = (0..rows * tokens).map(|i| i64::from(i < rows * tokens - 5)).collect();
    let inputs = vec![
        ("input_ids".into(), array(ids)),
        ("attention_mask".into(), array(mask)),
        ("token_type_ids".into(), array(vec![0; rows * tokens])),
    ];
    let batch = [MicroBatch { inputs, answers: two_classes(rows) }];
    let (planned, again) = same_bits(&mut trainer, &batch, "MiniLM");
    assert!(planned[1] < planned[0] && planned[2] < planned[0] / 2, "{planned:?}");
    assert!(again.stretches >= 5, "{again:?}");
}

#[test]
fn pictures_take_less_and_learn_the_same() {
    let (_dir, engine) = shipped("efficientnet-lite0.onnx");
    let labels = vec!["a".into(), "b".into()];
    let mut trainer = Trainer::new(&engine, &TrainOptions::default(), labels).unwrap();
    let values = init::uniform(3, "picture", 3 * 224 * 224, 2.0);
    let inputs = vec![("image".into(), Array::f32(vec![1, 3, 224, 224], values).unwrap())];
    let batch = [MicroBatch { inputs, answers: two_classes(1) }];
    let (planned, again) = same_bits(&mut trainer, &batch, "EfficientNet-Lite0");
    assert!(planned[2] < planned[0] / 2 && again.stretches >= 5, "{planned:?} {again:?}");
}

/// `layers` products with a square matrix each, and tanh; the gradients of all matrices.
fn deep(layers: usize, rows: usize, width: usize) -> TypedModel {
    let mut model = TypedModel::default();
    let mut x = model.add_source("x", f32::fact([rows, width])).unwrap();
    let mut wanted = vec![];
    for layer in 0..layers {
        let w = model.add_source(format!("w{layer}"), f32::fact([width, width])).unwrap();
        wanted.push(w);
        let op = EinSum::new("mk,nk->mn".parse().unwrap(), f32::datum_type());
        x = model.wire_node(format!("y{layer}"), op, &[x, w]).unwrap()[0];
        x = model.wire_node(format!("z{layer}"), math::tanh(), &[x]).unwrap()[0];
        // Wider for a moment, as the inner layer of a block is.
        let wide = model.wire_node(format!("s{layer}"), math::square(), &[x]).unwrap()[0];
        x = model.wire_node(format!("a{layer}"), math::add(), &[x, wide]).unwrap()[0];
    }
    let sum = Reduce::new(tvec![0, 1], Reducer::Sum);
    let loss = model.wire_node("loss", sum, &[x]).unwrap()[0];
    let gradients = crate::train::vjp::check::gradients(&mut model, loss, &wanted).unwrap();
    let outputs: Vec<OutletId> = [loss].into_iter().chain(gradients).collect();
    model.select_output_outlets(&outputs).unwrap();
    model.into_optimized().unwrap()
}

/// `layers` attentions, keys of each its values too; the gradients of all keys.
fn attentions(layers: usize, heads: usize, tokens: usize, width: usize) -> TypedModel {
    let mut model = TypedModel::default();
    let fact = || f32::fact([heads, tokens, width]);
    let mut x = model.add_source("x", fact()).unwrap();
    let mut wanted = vec![];
    let product = |model: &mut TypedModel, name: String, formula: &str, inputs: [OutletId; 2]| {
        let op = EinSum::new(formula.parse().unwrap(), f32::datum_type());
        model.wire_node(name, op, &inputs).unwrap()[0]
    };
    for layer in 0..layers {
        let keys = model.add_source(format!("keys{layer}"), fact()).unwrap();
        wanted.push(keys);
        let scores = product(&mut model, format!("scores{layer}"), "hqk,htk->hqt", [x, keys]);
        let softmax = Softmax { axes: tvec![2], ..Softmax::default() };
        let shares = model.wire_node(format!("shares{layer}"), softmax, &[scores]).unwrap()[0];
        x = product(&mut model, format!("mixed{layer}"), "hqt,htk->hqk", [shares, keys]);
    }
    let sum = Reduce::new(tvec![0, 1, 2], Reducer::Sum);
    let square = model.wire_node("square", math::square(), &[x]).unwrap()[0];
    let loss = model.wire_node("loss", sum, &[square]).unwrap()[0];
    let gradients = crate::train::vjp::check::gradients(&mut model, loss, &wanted).unwrap();
    let outputs: Vec<OutletId> = [loss].into_iter().chain(gradients).collect();
    model.select_output_outlets(&outputs).unwrap();
    model.into_optimized().unwrap()
}

#[test]
fn scores_of_attention_are_not_kept() {
    let (layers, heads, tokens, width) = (6, 2, 96, 8);
    let model = attentions(layers, heads, tokens, width);
    let found = [Repeat::Nothing, Repeat::Cheap].map(|repeat| {
        let (plan, _) = repeating(model.clone(), repeat).unwrap();
        let values = |at: usize| {
            let values = init::uniform(at as u64, "value", heads * tokens * width, 1.0);
            Tensor::from_shape(&[heads, tokens, width], &values).unwrap().into_tvalue()
        };
        let outputs = plan.run((0..=layers).map(values).collect()).unwrap();
        (memory::peak(&plan).unwrap(), outputs)
    });
    let scores = (4 * heads * tokens * tokens) as u64;
    let [(plain, want), (cheap, got)] = found;
    assert!(cheap + (layers as u64 - 1) * scores < plain, "{cheap} of {plain}, {scores} a layer");
    assert_eq!(want, got);
}

#[test]
fn as_few_stretches_as_are_needed_run_twice() {
    let model = deep(24, 64, 8);
    let planned = |repeat: Repeat| {
        let (plan, again) = repeating(model.clone(), repeat).unwrap();
        (memory::peak(&plan).unwrap(), again)
    };
    let (most, none) = planned(Repeat::Cheap);
    assert_eq!(none.stretches, 0);
    let (least, all) = planned(Repeat::Within(0));
    assert!(least < most / 3 * 2 && all.stretches == all.of, "{least} of {most}, {all:?}");
    assert_eq!(planned(Repeat::Within(most)), (most, none));
    let mut before = all.stretches;
    for part in 1..8 {
        let allowed = least + (most - least) * part / 8;
        let (peak, again) = planned(Repeat::Within(allowed));
        assert!(peak <= allowed, "{peak} of {allowed}");
        assert!(again.stretches <= before && again.stretches > 0, "{again:?} after {before}");
        before = again.stretches;
    }
    assert!(before < all.stretches / 2, "{before} of {all:?}");
}

#[test]
fn a_graph_whose_sizes_are_open_repeats_nothing() {
    let mut model = TypedModel::default();
    let n = model.sym("n");
    let x = model.add_source("x", f32::fact([n.to_dim()])).unwrap();
    let y = model.wire_node("y", math::exp(), &[x]).unwrap()[0];
    let loss = model.wire_node("loss", Reduce::new(tvec![0], Reducer::Sum), &[y]).unwrap();
    model.select_output_outlets(&loss).unwrap();
    assert_eq!(repeating(model, Repeat::Within(0)).unwrap().1, Repeated::default());
}
