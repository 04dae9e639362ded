//! Whole runs on tiny models.

use super::data::{Dataset, SampleInput};
use super::progress::{Event, Progress, Silent};
use super::samples::Samples;
use super::testing::{
    bytes, check_gradients, engine, numbers, options, pictures, points, sequences,
};
use super::*;
use crate::adapter::Adapter;
use crate::error::ErrorKind;
use crate::quant::Scheme;
use crate::runtime::{Engine, PackOptions};
use crate::shape::Array;

fn exact() -> PackOptions {
    PackOptions { scheme: Scheme::F32, ..PackOptions::default() }
}

fn run(engine: &Engine, data: &Dataset, options: &TrainOptions) -> Trained {
    train(engine, data, None, options, &mut Silent).unwrap()
}

fn metric(metrics: &[(String, f32)], name: &str) -> f32 {
    metrics.iter().find(|(n, _)| n == name).unwrap().1
}

#[test]
fn each_kind_of_network_learns_on_a_quantized_base() {
    let q8 = PackOptions::default();
    let cases = [
        ("mlp", points(60, 1), 1, "y"),
        ("attention", sequences(60, 1), 6, "last_hidden_state"),
        ("convnet", pictures(40, 1), 5, "features"),
    ];
    for (name, data, targets, output) in cases {
        let (_dir, engine) = engine(name, &q8);
        let Trained { adapter, report } = run(&engine, &data, &options());
        assert!(report.targets >= targets, "{name}: {report:?}");
        assert_eq!(report.output, output);
        assert!(report.loss_last < 0.5 * report.loss_first, "{name}: {report:?}");
        let (before, after) = (metric(&report.before, "loss"), metric(&report.after, "loss"));
        assert!(after < before, "{name}: {report:?}");
        assert!(metric(&report.after, "accuracy") >= 0.9, "{name}: {report:?}");
        assert!(report.effect.unwrap() > 0.0);
        let any = |t: &crate::adapter::TargetAdapter| {
            t.values("lora_b").unwrap().iter().any(|v| *v != 0.0)
        };
        assert!(adapter.targets.iter().any(any));
        assert_eq!(adapter.head().unwrap().labels[..], data.labels[..]);
        // What is stored is what was measured.
        let read = Adapter::from_bytes(&adapter.to_bytes(crate::adapter::TensorType::F32).unwrap());
        let bound = engine.bind(&[(&read.unwrap(), 1.0)]).unwrap();
        let all = evaluate(&engine, Some(&bound), &data, 4).unwrap();
        assert!(all.metric("accuracy").unwrap() >= 0.9, "{name}: {all:?}");
    }
}

#[test]
fn the_classifier_beside_the_head_is_left_out_and_said_so() {
    let (_dir, engine) = engine("convnet", &exact());
    let trainer = Trainer::new(&engine, &options(), vec!["a".into(), "b".into()]).unwrap();
    assert_eq!(trainer.skipped(), ["fc"]);
    let all = TargetChoice::Regex(".*".into());
    let e = Trainer::new(&engine, &TrainOptions { targets: all, ..options() }, vec!["a".into()]);
    assert!(e.err().unwrap().message().contains("'fc'"));
    let none = TargetChoice::Regex("bloc".into());
    let e = Trainer::new(&engine, &TrainOptions { targets: none, ..options() }, vec!["a".into()]);
    assert_eq!(e.err().unwrap().kind(), ErrorKind::Usage);
}

#[test]
fn a_head_alone_and_numbers_are_learned_too() {
    let (_dir, engine) = engine("mlp", &exact());
    let head = TrainOptions { targets: TargetChoice::None, epochs: Some(20), ..options() };
    let trained = run(&engine, &points(60, 2), &head);
    assert!(trained.adapter.targets.is_empty() && trained.report.effect.is_none());
    assert!(trained.report.loss_last < 0.7 * trained.report.loss_first);
    let values =
        TrainOptions { task: Task::parse("numbers").unwrap(), epochs: Some(20), ..options() };
    let report = run(&engine, &numbers(60, 3), &values).report;
    let (before, after) = (metric(&report.before, "mse"), metric(&report.after, "mse"));
    assert!(after < 0.3 * before, "{report:?}");
    let e = train(&engine, &points(9, 1), None, &values, &mut Silent).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Usage);
    let e = train(&engine, &numbers(9, 1), None, &options(), &mut Silent).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Usage);
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let (_dir, engine) = engine("attention", &PackOptions::default());
    let data = sequences(30, 4);
    let short = TrainOptions { epochs: Some(2), micro_batch: Some(2), ..options() };
    let first = bytes(&run(&engine, &data, &short));
    assert_eq!(first, bytes(&run(&engine, &data, &short)));
    assert_eq!(first, bytes(&run(&engine, &data, &TrainOptions { threads: 3, ..short.clone() })));
    assert_ne!(first, bytes(&run(&engine, &data, &TrainOptions { seed: 1, ..short })));
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    for (name, data) in
        [("attention", sequences(7, 5)), ("convnet", pictures(7, 5)), ("mlp", points(7, 5))]
    {
        let (_dir, engine) = engine(name, &exact());
        let mut trainer = Trainer::new(&engine, &options(), data.labels.clone()).unwrap();
        nudge(&mut trainer);
        let samples = Samples::new(&engine, &data, trainer.labels(), None).unwrap();
        let all: Vec<usize> = (0..7).collect();
        let batches = |rows: usize| -> Vec<MicroBatch> {
            let micro = |group: &Vec<usize>| MicroBatch {
                inputs: samples.inputs(group, rows).unwrap(),
                answers: samples.answers(group, rows).unwrap(),
            };
            samples.groups(&all, rows).iter().map(micro).collect()
        };
        let whole = trainer.gradients(&batches(7)).unwrap();
        // The last of three is filled up with rows that must not count.
        let parts = trainer.gradients(&batches(3)).unwrap();
        assert!((whole.loss - parts.loss).abs() < 1e-5);
        for ((name, _), (a, b)) in trainer.parameters().zip(whole.values.iter().zip(&parts.values))
        {
            assert!(distance(a, b) < 1e-4, "{name}: {}", distance(a, b));
        }
        // The path that serves measures the loss that is trained.
        let bound = engine.bind(&[(&trainer.adapter().unwrap(), 1.0)]).unwrap();
        let served = evaluate(&engine, Some(&bound), &data, 3).unwrap().metric("loss").unwrap();
        assert!((served - whole.loss).abs() < 1e-4, "{served} {}", whole.loss);
    }
}

/// Moves lora_b away from zero, where the gradients of lora_a vanish.
fn nudge(trainer: &mut Trainer) {
    let tensors: Vec<(String, usize)> =
        trainer.parameters().map(|(n, v)| (n.to_string(), v.len())).collect();
    for (name, len) in tensors.iter().filter(|(n, _)| n.ends_with("lora_b")) {
        trainer.set_parameter(name, &init::uniform(9, name, *len, 0.1)).unwrap();
    }
}

/// |a - b| / |b|.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    difference / norm(&mut b.iter().map(|&b| f64::from(b))).max(1e-12)
}

#[test]
fn gradients_of_whole_networks_agree_with_central_differences() {
    for (name, data) in
        [("attention", sequences(4, 6)), ("convnet", pictures(4, 6)), ("mlp", points(4, 6))]
    {
        let (_dir, engine) = engine(name, &exact());
        let mut trainer = Trainer::new(&engine, &options(), data.labels.clone()).unwrap();
        nudge(&mut trainer);
        let samples = Samples::new(&engine, &data, trainer.labels(), None).unwrap();
        let all = [0, 1, 2, 3];
        let batch = [MicroBatch {
            inputs: samples.inputs(&all, 4).unwrap(),
            answers: samples.answers(&all, 4).unwrap(),
        }];
        let checked = check_gradients(&mut trainer, &batch, name);
        assert_eq!(checked, trainer.parameters().count(), "{name}: a gradient is zero");
    }
}

/// AdamW's first step moves a value by the rate, whatever its gradient.
#[test]
fn the_head_moves_at_a_rate_of_its_own() {
    let (_dir, engine) = engine("mlp", &exact());
    let data = points(8, 4);
    let options = TrainOptions { head_rate: 10.0, weight_decay: 0.0, ..options() };
    let mut trainer = Trainer::new(&engine, &options, data.labels.clone()).unwrap();
    nudge(&mut trainer);
    let samples = Samples::new(&engine, &data, trainer.labels(), None).unwrap();
    let all: Vec<usize> = (0..8).collect();
    let answers = samples.answers(&all, 8).unwrap();
    let batch = MicroBatch { inputs: samples.inputs(&all, 8).unwrap(), answers };
    let before = trainer.values().to_vec();
    trainer.step(&[batch], 1e-3).unwrap();
    for ((name, after), before) in trainer.parameters().zip(&before) {
        let most = after.iter().zip(before).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let want = if name.starts_with("head.") { 1e-2 } else { 1e-3 };
        assert!((most / want - 1.0).abs() < 0.01, "{name}: {most}, not {want}");
    }
}

/// Asks to stop after a step.
struct StopAt(u64);

impl Progress for StopAt {
    fn event(&mut self, event: &Event) {
        if let Event::Step { step, .. } = event
            && *step >= self.0
        {
            self.0 = 0;
        }
    }

    fn stop(&mut self) -> bool {
        self.0 == 0
    }
}

#[test]
fn a_run_that_was_stopped_goes_on_to_the_same_bytes() {
    let (dir, engine) = engine("mlp", &PackOptions::default());
    let data = points(50, 7);
    let path = dir.path().join("run.checkpoint");
    for patience in [None, Some(3)] {
        let whole = TrainOptions { patience, ..options() };
        let want = bytes(&run(&engine, &data, &whole));
        let kept = TrainOptions { checkpoint: Some(path.clone()), resume: true, ..whole };
        let e = train(&engine, &data, None, &kept, &mut StopAt(13)).unwrap_err();
        assert!(e.message().contains("step 13"), "{e}");
        let resumed = run(&engine, &data, &kept);
        assert_eq!(bytes(&resumed), want);
        assert!(resumed.report.steps > 13);
        let other = TrainOptions { seed: 5, ..kept };
        let e = train(&engine, &data, None, &other, &mut Silent).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Mismatch);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn steps_are_epochs_but_not_too_few_or_those_that_are_asked_for() {
    let steps = |epochs, min_steps, steps| {
        TrainOptions { epochs, min_steps, steps, ..TrainOptions::default() }.steps_of(5)
    };
    assert_eq!(steps(Some(3), 0, None), 15);
    assert_eq!(steps(Some(3), 60, None), 60);
    assert_eq!(steps(None, 0, None), 40);
    assert_eq!(steps(Some(3), 60, Some(7)), 7);
}

#[test]
fn early_stopping_keeps_the_best_and_ends_the_run() {
    let (_dir, engine) = engine("mlp", &exact());
    // Labels without sense: the hold-out gets worse from some step on.
    let mut data = points(40, 8);
    let mut classes: Vec<_> = data.samples.iter().map(|s| s.label.clone()).collect();
    random::shuffle(&mut classes, &mut random::stream(1, "labels", 0));
    for (s, label) in data.samples.iter_mut().zip(classes) {
        s.label = label;
    }
    let stopping = TrainOptions {
        patience: Some(2),
        epochs: Some(200),
        schedule: schedule::Schedule::Constant,
        ..options()
    };
    let mut looks = vec![];
    let mut listen = |event: &Event| {
        if let Event::HoldOut { loss, .. } = event {
            looks.push(*loss);
        }
    };
    let trained = train(&engine, &data, None, &stopping, &mut listen).unwrap();
    assert!(trained.report.steps < 200 * 4, "{:?}", trained.report);
    let best = looks.iter().copied().fold(f64::INFINITY, f64::min);
    assert!((f64::from(metric(&trained.report.after, "loss")) - best).abs() < 1e-6);
}

#[test]
fn a_memory_limit_picks_the_micro_batch_or_refuses() {
    let (_dir, engine) = engine("convnet", &PackOptions::default());
    let data = pictures(64, 9);
    let free = TrainOptions { batch: 32, micro_batch: None, epochs: Some(1), ..options() };
    let peak = |micro: usize| {
        let options = TrainOptions { micro_batch: Some(micro), ..free.clone() };
        run(&engine, &data, &options).report.planned_peak_bytes
    };
    let (one, eight) = (peak(1), peak(8));
    assert!(one < eight);
    let limited = |ram: u64| {
        let options = TrainOptions { ram: Some(ram), ..free.clone() };
        train(&engine, &data, None, &options, &mut Silent)
    };
    let roomy = limited(eight).unwrap().report;
    assert_eq!(roomy.micro_batch, 8);
    let tight = limited(eight - 1).unwrap().report;
    assert!(tight.micro_batch < 8 && tight.planned_peak_bytes < eight, "{tight:?}");
    // One row at a time fits into less where a part of the network is computed twice: the same bits.
    let again = limited(one - 1).unwrap();
    assert!(again.report.again.stretches > 0, "{:?}", again.report);
    let single = TrainOptions { micro_batch: Some(1), ..free.clone() };
    assert_eq!(bytes(&again), bytes(&run(&engine, &data, &single)));
    let e = limited(1).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Refused);
    let hint = e.hint_text().unwrap();
    assert!(hint.contains("--ram"), "{e}");
    let mib: u64 = hint.split("--ram ").nth(1).unwrap().split('M').next().unwrap().parse().unwrap();
    assert!(limited(mib << 20).unwrap().report.planned_peak_bytes <= mib << 20);
}

/// Sequences cut to 5 to 8 ids each could not share a micro-batch, so they were never trained on.
#[test]
fn arrays_of_different_shapes_are_learned_together() {
    let (_dir, engine) = engine("attention", &exact());
    let mut data = sequences(40, 12);
    for (i, s) in data.samples.iter_mut().enumerate() {
        let SampleInput::Arrays(arrays) = &mut s.input else { unreachable!() };
        for (_, array) in arrays {
            let ids = array.as_i64().unwrap()[..5 + i % 4].to_vec();
            *array = Array::i64(vec![ids.len()], ids).unwrap();
        }
    }
    let samples = Samples::new(&engine, &data, &data.labels, None).unwrap();
    assert_eq!(samples.length(samples.longest()), 2 * 8);
    for group in samples.groups(&[0, 1, 2, 3, 4, 8], 2) {
        assert!(group.len() <= 2 && group.iter().all(|s| s % 4 == group[0] % 4), "{group:?}");
    }
    let Trained { adapter, report } = run(&engine, &data, &options());
    assert!(report.loss_last < 0.5 * report.loss_first, "{report:?}");
    let bound = engine.bind(&[(&adapter, 1.0)]).unwrap();
    assert!(evaluate(&engine, Some(&bound), &data, 3).unwrap().metric("accuracy").unwrap() >= 0.9);
}

#[test]
fn arrays_count_in_the_planned_memory() {
    let (_dir, engine) = engine("mlp", &exact());
    let planned = |count: usize, held: usize| {
        let (data, held) = (points(count, 1), points(held, 2));
        let short = TrainOptions { steps: Some(1), ..options() };
        train(&engine, &data, Some(&held), &short, &mut Silent).unwrap().report.planned_peak_bytes
    };
    let bytes = |count: usize| points(count, 1).bytes();
    assert_eq!(planned(110, 30) - planned(10, 10), bytes(110) + bytes(30) - 2 * bytes(10));
    // 12 floats a sample, and what holds them.
    assert!((120 * 48 * 2..120 * 600).contains(&(bytes(120))), "{}", bytes(120));
}

#[test]
fn labels_of_the_hold_out_are_found_by_name() {
    let (_dir, engine) = engine("mlp", &exact());
    let (data, mut other) = (points(30, 10), points(15, 11));
    // The same classes, listed in another order.
    other.labels.reverse();
    for s in &mut other.samples {
        if let data::Label::Class(c) = &mut s.label {
            *c = 2 - *c;
        }
    }
    let long = TrainOptions { epochs: Some(20), ..options() };
    let trained = train(&engine, &data, Some(&other), &long, &mut Silent).unwrap();
    assert_eq!((trained.report.samples_train, trained.report.samples_holdout), (30, 15));
    assert!(metric(&trained.report.after, "accuracy") >= 0.9, "{:?}", trained.report);
    other.labels[0] = "unheard".into();
    let e = train(&engine, &data, Some(&other), &long, &mut Silent).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Mismatch);
}

/// `attention`, and that with the steps of its output before the batch.
#[cfg(feature = "import")]
#[test]
fn an_instant_head_reads_outputs_whose_steps_come_first() {
    use prost::Message;
    use tract_onnx::pb::{
        AttributeProto, ModelProto, NodeProto, attribute_proto, tensor_shape_proto,
    };
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny/attention.onnx");
    let mut model = ModelProto::decode(std::fs::read(source).unwrap().as_slice()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let name = "last_hidden_state";
    for output in graph.node.iter_mut().flat_map(|n| &mut n.output).filter(|o| *o == name) {
        *output = "rows_first".into();
    }
    let perm = AttributeProto {
        name: "perm".into(),
        r#type: attribute_proto::AttributeType::Ints as i32,
        ints: vec![1, 0, 2],
        ..AttributeProto::default()
    };
    graph.node.push(NodeProto {
        op_type: "Transpose".into(),
        name: "steps_first".into(),
        input: vec!["rows_first".into()],
        output: vec![name.into()],
        attribute: vec![perm],
        ..NodeProto::default()
    });
    let output = graph.output.iter_mut().find(|o| o.name == name).unwrap();
    let Some(tract_onnx::pb::type_proto::Value::TensorType(fact)) =
        &mut output.r#type.as_mut().unwrap().value
    else {
        panic!("no tensor");
    };
    let dims: &mut Vec<tensor_shape_proto::Dimension> = &mut fact.shape.as_mut().unwrap().dim;
    dims.swap(0, 1);
    let dir = tempfile::tempdir().unwrap();
    let (onnx, base) = (dir.path().join("turned.onnx"), dir.path().join("turned.base"));
    std::fs::write(&onnx, model.encode_to_vec()).unwrap();
    crate::runtime::pack(&onnx, &base, &PackOptions::default()).unwrap();
    let turned = Engine::open(&base).unwrap();
    let (_dir, plain) = engine("attention", &PackOptions::default());
    let data = sequences(24, 3);
    let options = TrainOptions { instant: InstantHead::Only, ..options() };
    let heads = [&plain, &turned].map(|engine| {
        let trained = train(engine, &data, None, &options, &mut Silent).unwrap();
        trained.adapter.heads[0].clone()
    });
    assert_eq!(heads[0].weight, heads[1].weight);
    assert_eq!(heads[0].bias, heads[1].bias);
}
