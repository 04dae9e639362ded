//! Tasks on tiny models, from labels to what is measured of the stored adapter.

use super::data::{Dataset, Label, Mark, SampleInput};
use super::progress::Silent;
use super::samples::Samples;
use super::testing::{engine, options, points, sequences};
use super::*;
use crate::adapter::{Adapter, TensorType};
use crate::import::{ImportOptions, InputSpec};
use crate::quant::Scheme;
use crate::runtime::{Engine, PackOptions};
use crate::shape::{Array, Data};

fn exact() -> PackOptions {
    PackOptions { scheme: Scheme::F32, ..PackOptions::default() }
}

/// Trains, stores, reads and measures.
fn learned(engine: &Engine, data: &Dataset, task: &str) -> (Adapter, Evaluation) {
    let options = TrainOptions { task: Task::parse(task).unwrap(), epochs: Some(25), ..options() };
    let trained = train(engine, data, None, &options, &mut Silent).unwrap();
    let bytes = trained.adapter.to_bytes(TensorType::F32).unwrap();
    let adapter = Adapter::from_bytes(&bytes).unwrap();
    let bound = engine.bind(&[(&adapter, 1.0)]).unwrap();
    let found = evaluate(engine, Some(&bound), data, 3).unwrap();
    (adapter, found)
}

/// Of what is trained and of what serves the loss is the same, before any step.
fn loss_is_served(engine: &Engine, data: &Dataset, task: &str) {
    let options = TrainOptions { task: Task::parse(task).unwrap(), ..options() };
    let labels = options.task.rules().outputs(data, &[]);
    let trainer = Trainer::new(engine, &options, labels).unwrap();
    let samples = Samples::new(engine, data, trainer.labels(), None).unwrap();
    let all: Vec<usize> = (0..samples.len()).collect();
    let micro = |group: &Vec<usize>| MicroBatch {
        inputs: samples.inputs(group, 4).unwrap(),
        answers: samples.answers(group, 4).unwrap(),
    };
    let batch: Vec<MicroBatch> = samples.groups(&all, 4).iter().map(micro).collect();
    let trained = trainer.gradients(&batch).unwrap().loss;
    let bound = engine.bind(&[(&trainer.adapter().unwrap(), 1.0)]).unwrap();
    let served = evaluate(engine, Some(&bound), data, 3).unwrap().metric("loss").unwrap();
    assert!((trained - served).abs() < 1e-4, "{task}: {trained} {served}");
}

#[test]
fn several_labels_at_once_are_learned_with_their_thresholds() {
    let (_dir, engine) = engine("mlp", &exact());
    let mut data = points(60, 1);
    data.task = Task::parse("tags").unwrap();
    for (i, s) in data.samples.iter_mut().enumerate() {
        // The third kind of point has both labels of the others, and none of its own.
        s.label = Label::Names([vec![0], vec![1], vec![0, 1]][i % 3].clone());
    }
    loss_is_served(&engine, &data, "tags");
    let (adapter, found) = learned(&engine, &data, "tags");
    let head = adapter.head().unwrap();
    assert_eq!((head.task.as_str(), head.thresholds.len()), ("tags", 3));
    assert!(found.metric("micro_f1").unwrap() > 0.95, "{found:?}");
    assert!(found.metric("exact").unwrap() > 0.9, "{found:?}");
    // Two of three labels: the third neither occurs nor is said.
    assert!(found.metric("macro_f1").unwrap() < 0.7, "{found:?}");
}

/// Of each id whether it is high, but for masked places and some that have no label.
#[test]
fn a_label_a_token_is_learned_and_places_without_one_count_for_nothing() {
    let (_dir, engine) = engine("attention", &exact());
    let mut data = sequences(40, 2);
    data.task = Task::parse("tokens").unwrap();
    for s in &mut data.samples {
        let SampleInput::Arrays(arrays) = &s.input else { unreachable!() };
        let ids = arrays[0].1.as_i64().unwrap();
        let mark = |(at, id): (usize, &i64)| {
            let start = at as u32;
            (*id > 0 && at != 2).then(|| Mark {
                start,
                end: start + 1,
                label: usize::from(*id > 23),
            })
        };
        s.label = Label::Marks(ids.iter().enumerate().filter_map(mark).collect());
    }
    loss_is_served(&engine, &data, "tokens");
    let (adapter, found) = learned(&engine, &data, "tokens");
    assert_eq!(adapter.head().unwrap().task, "tokens");
    assert!(found.metric("accuracy").unwrap() > 0.9, "{found:?}");
    assert!(found.metric("macro_f1").unwrap() > 0.9, "{found:?}");
    let counted = found.confusion.unwrap().total() as usize;
    let marks = |s: &data::Sample| match &s.label {
        Label::Marks(marks) => marks.len(),
        _ => 0,
    };
    assert_eq!(counted, data.samples.iter().map(marks).sum::<usize>());
    // A pooled head doesn't fit the task.
    let pooled =
        TrainOptions { task: data.task, pool: Some(crate::adapter::Pool::Mean), ..options() };
    assert!(train(&engine, &data, None, &pooled, &mut Silent).is_err());
}

/// A base whose mask is i32, bool or f32 was trained, and then failed where it was evaluated.
#[test]
fn a_mask_of_any_type_trains_and_is_served() {
    let data = sequences(24, 3);
    for dtype in ["i64", "i32", "bool", "f32", "u8"] {
        let spec = InputSpec::parse(&format!("attention_mask=batchxseq,{dtype}")).unwrap();
        let import = ImportOptions { inputs: vec![spec], ..ImportOptions::default() };
        let (_dir, engine) = engine("attention", &PackOptions { import, ..exact() });
        let mut data = data.clone();
        for s in &mut data.samples {
            let SampleInput::Arrays(arrays) = &mut s.input else { unreachable!() };
            let mask = &mut arrays[1].1;
            let values = mask.as_i64().unwrap().to_vec();
            let values = match dtype {
                "i32" => Data::I32(values.iter().map(|v| *v as i32).collect()),
                "bool" => Data::Bool(values.iter().map(|v| *v > 0).collect()),
                "f32" => Data::F32(values.iter().map(|v| *v as f32).collect()),
                "u8" => Data::U8(values.iter().map(|v| *v as u8).collect()),
                _ => Data::I64(values),
            };
            *mask = Array::new([8], values).unwrap();
        }
        loss_is_served(&engine, &data, "classes");
        let (_, found) = learned(&engine, &data, "classes");
        assert!(found.metric("accuracy").unwrap() > 0.9, "{dtype}: {found:?}");
    }
}
