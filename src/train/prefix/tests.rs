//! Runs that keep what lies below, held against runs that don't.

use super::cut::{find, keep_above, keep_below};
use super::*;
use crate::error::ErrorKind;
use crate::fs::fault::{self, Op};
use crate::runtime::{Engine, PackOptions};
use crate::train::data::Dataset;
use crate::train::progress::{Event, Progress, Silent};
use crate::train::testing::{bytes, engine, options, pictures, points, sequences};
use crate::train::{TargetChoice, Task, TrainOptions, Trained, train};
use std::cell::Cell;
use std::io;
use std::path::Path;
use tract_core::internal::*;
use tract_core::ops::einsum::EinSum;
use tract_core::ops::math;
use tract_core::ops::nn::{Reduce, Reducer};

/// The user's `mlp` whose hidden values are rounded by the range of the whole batch, as a dynamically
/// quantized model does it.
#[cfg(feature = "import")]
#[test]
fn what_hangs_on_other_samples_is_not_kept_and_said_so() {
    use prost::Message;
    use tract_onnx::pb::{ModelProto, NodeProto};
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny/mlp.onnx");
    let mut model = ModelProto::decode(std::fs::read(source).unwrap().as_slice()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let at = graph.node.iter().position(|n| n.op_type == "Relu").unwrap();
    let hidden = graph.node[at].output[0].clone();
    for reader in &mut graph.node {
        reader.input.iter_mut().filter(|i| **i == hidden).for_each(|i| *i = "rounded".into());
    }
    let node = |op_type: &str, input: &[&str], output: &[&str]| NodeProto {
        op_type: op_type.into(),
        name: output[0].into(),
        input: input.iter().map(|i| i.to_string()).collect(),
        output: output.iter().map(|o| o.to_string()).collect(),
        ..NodeProto::default()
    };
    let range = node("DynamicQuantizeLinear", &[&hidden], &["codes", "scale", "zero"]);
    let floats = node("DequantizeLinear", &["codes", "scale", "zero"], &["rounded"]);
    graph.node.splice(at + 1..at + 1, [range, floats]);
    let dir = tempfile::tempdir().unwrap();
    let (onnx, base) = (dir.path().join("mixed.onnx"), dir.path().join("mixed.base"));
    std::fs::write(&onnx, model.encode_to_vec()).unwrap();
    crate::runtime::pack(&onnx, &base, &PackOptions::default()).unwrap();
    let engine = Engine::open(&base).unwrap();
    let options = TrainOptions { targets: TargetChoice::None, ..options() };
    let prefix = run(&engine, &points(30, 5), &options).report.prefix.unwrap();
    assert_eq!((prefix.rows_run, prefix.rows_kept), (0, 0));
    assert!(prefix.why_not.unwrap().contains("other samples"));
}

thread_local! {
    static OFF: Cell<bool> = const { Cell::new(false) };
}

/// Whether this test's runs keep nothing.
pub(in crate::train) fn is_off() -> bool {
    OFF.get()
}

fn run(engine: &Engine, data: &Dataset, options: &TrainOptions) -> Trained {
    train(engine, data, None, options, &mut Silent).unwrap()
}

/// As [`run`], with nothing kept.
pub(in crate::train) fn plain(engine: &Engine, data: &Dataset, options: &TrainOptions) -> Trained {
    OFF.set(true);
    let trained = run(engine, data, options);
    OFF.set(false);
    assert_eq!(trained.report.prefix, None);
    trained
}

/// The last `count` layers before the head, by their names.
fn last(engine: &Engine, count: usize) -> TargetChoice {
    let all = Trainer::new(engine, &options(), vec!["a".into(), "b".into()]).unwrap();
    let mut paths: Vec<String> = vec![];
    for (name, _) in all.parameters() {
        let path = name.strip_suffix(".lora_a").map(regex::escape);
        paths.extend(path);
    }
    TargetChoice::Regex(paths[paths.len() - count..].join("|"))
}

#[test]
fn what_is_kept_changes_no_bit_of_the_result() {
    let cases = [
        ("mlp", points(41, 1), 1),
        ("attention", sequences(41, 1), 2),
        ("convnet", pictures(22, 1), 2),
    ];
    for (name, data, count) in cases {
        let (_dir, engine) = engine(name, &PackOptions::default());
        let targets = match name {
            "mlp" => TargetChoice::None,
            _ => last(&engine, count),
        };
        for threads in [1, 3] {
            let options = TrainOptions { targets: targets.clone(), threads, ..options() };
            let (kept, plain) = (run(&engine, &data, &options), plain(&engine, &data, &options));
            assert_eq!(bytes(&kept), bytes(&plain), "{name}");
            assert_eq!(kept.report.loss_last, plain.report.loss_last, "{name}");
            let (prefix, report) = (kept.report.prefix.as_ref().unwrap(), &kept.report);
            // Once a sample, for steps and for what is measured; where no layer is trained features are made of
            // no kept row.
            let (trained, held) = (report.samples_train as u64, report.samples_holdout as u64);
            let all = if name == "mlp" { trained } else { trained + held };
            assert_eq!(prefix.rows_run, all, "{name}: {prefix:?}");
            assert!(prefix.rows_kept >= 5 * trained, "{name}: {prefix:?}");
            assert!(prefix.layers > 0 && prefix.memory_bytes > 0, "{name}: {prefix:?}");
            assert_eq!((prefix.file_bytes, &prefix.why_not), (0, &None), "{name}");
            assert!(
                kept.report.planned_peak_bytes < plain.report.planned_peak_bytes + (1 << 20),
                "{name}"
            );
        }
    }
}

/// Features made of kept rows are those that serve: of the hold-out before, and with what was trained; of the
/// samples, for the instant head; of what is kept of the base's knowledge.
#[test]
fn what_is_measured_of_kept_rows_is_what_serves() {
    use crate::train::{InstantHead, evaluate, retention};
    let (_dir, engine) = engine("attention", &PackOptions::default());
    let (data, held) = (sequences(60, 1), sequences(40, 2));
    let options = TrainOptions {
        targets: last(&engine, 2),
        instant: InstantHead::Start,
        keep_knowledge: 0.5,
        even_if_worse: true,
        ..options()
    };
    let with =
        |options: &TrainOptions| train(&engine, &data, Some(&held), options, &mut Silent).unwrap();
    let trained = with(&options);
    let report = &trained.report;
    assert!(report.prefix.as_ref().unwrap().rows_kept > 0);
    let near = |found: &[(String, f32)], bound: &std::sync::Arc<crate::adapter::Bound>| {
        let served = evaluate(&engine, Some(bound), &held, 3).unwrap();
        for (name, value) in found {
            let other = served.metric(name).unwrap();
            // What serves rounds the inputs of an adapter's products, training doesn't.
            assert!((value - other).abs() < 1e-3, "{name}: {value} {other}");
        }
    };
    let bound = engine.bind(&[(&trained.adapter, 1.0)]).unwrap();
    near(&report.after, &bound);
    let alone = TrainOptions { instant: InstantHead::Only, ..options.clone() };
    let alone = with(&alone).adapter;
    near(&report.before, &engine.bind(&[(&alone, 1.0)]).unwrap());

    let encoded = Samples::new(&engine, &held, &held.labels, None).unwrap();
    let inputs = (0..held.samples.len()).map(|s| encoded.inputs(&[s], 1));
    let found = retention(&engine, &bound, inputs, &mut || true).unwrap().unwrap();
    let kept = &report.knowledge.as_ref().unwrap().retention;
    assert!((found.cosine_mean - kept.cosine_mean).abs() < 1e-3, "{found:?} {kept:?}");
    assert!(kept.cosine_mean < 0.9999 && found.samples == kept.samples);
}

#[test]
fn nothing_is_kept_of_one_epoch_or_where_the_first_layer_is_trained() {
    let (_dir, engine) = engine("convnet", &PackOptions::default());
    let data = pictures(20, 2);
    assert_eq!(run(&engine, &data, &options()).report.prefix, None);
    let once = TrainOptions { targets: last(&engine, 1), epochs: Some(1), ..options() };
    assert_eq!(run(&engine, &data, &once).report.prefix, None);
}

/// `convnet`, whose last layers read as many bytes a sample as what is kept.
fn limited() -> (tempfile::TempDir, Engine, Dataset, TrainOptions, Trained) {
    let (dir, engine) = engine("convnet", &PackOptions::default());
    let data = pictures(20, 3);
    let options = TrainOptions { targets: last(&engine, 1), ..options() };
    let whole = run(&engine, &data, &options);
    let kept = whole.report.prefix.as_ref().unwrap().memory_bytes;
    let spare = crate::train::samples::PICTURE_CACHE;
    // Arrays: the cache of pictures isn't planned.
    assert!(kept < spare);
    // An eighth is left free.
    let ram = Some((whole.report.planned_peak_bytes - kept / 2) * 8 / 7);
    (dir, engine, data, TrainOptions { ram, ..options }, whole)
}

#[test]
fn what_memory_has_no_room_for_goes_into_a_file_without_a_name() {
    let (dir, engine, data, options, whole) = limited();
    let checkpoint = Some(dir.path().join("run.checkpoint"));
    let trained = run(&engine, &data, &TrainOptions { checkpoint, ..options });
    let (all, prefix) = (whole.report.prefix.unwrap(), trained.report.prefix.unwrap());
    assert_eq!(prefix.memory_bytes + prefix.file_bytes, all.memory_bytes);
    assert!(prefix.memory_bytes > 0 && prefix.file_bytes > 0, "{prefix:?}");
    assert_eq!((prefix.rows_run, prefix.rows_kept), (all.rows_run, all.rows_kept));
    assert!(trained.report.planned_peak_bytes < whole.report.planned_peak_bytes);
    assert_eq!(trained.adapter.targets, whole.adapter.targets);
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(["model.base", "run.checkpoint"].contains(&name.to_str().unwrap()), "{name:?}");
    }
}

#[test]
fn a_full_disk_or_no_file_costs_time_and_is_said() {
    let (dir, engine, data, options, whole) = limited();
    let checkpoint = Some(dir.path().join("run.checkpoint"));
    let kept = TrainOptions { checkpoint, checkpoint_every: 1000, ..options.clone() };
    let full = |op, _: &Path| match op {
        Op::Append => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    };
    let on_full = fault::with(full, || run(&engine, &data, &kept));
    for (trained, why) in
        [(on_full, "no space left on device"), (run(&engine, &data, &options), "memory")]
    {
        let prefix = trained.report.prefix.unwrap();
        assert!(prefix.why_not.as_ref().unwrap().contains(why), "{prefix:?}");
        assert!(prefix.rows_run > trained.report.samples_train as u64 && prefix.rows_kept > 0);
        assert_eq!(prefix.file_bytes, 0);
        assert_eq!(trained.adapter.targets, whole.adapter.targets);
    }
}

struct StopAt(u64);

impl Progress for StopAt {
    fn event(&mut self, event: &Event) {
        if let Event::Step { step, .. } = event {
            self.0 = self.0.saturating_sub(u64::from(*step > 0));
        }
    }

    fn stop(&mut self) -> bool {
        self.0 == 0
    }
}

#[test]
fn a_run_that_was_stopped_goes_on_to_the_same_bytes() {
    let (dir, engine) = engine("attention", &PackOptions::default());
    let data = sequences(40, 4);
    // With features that should stay, which are looked at once more.
    let options = TrainOptions { targets: last(&engine, 2), keep_knowledge: 0.9, ..options() };
    let want = bytes(&plain(&engine, &data, &options));
    let path = dir.path().join("run.checkpoint");
    let kept = TrainOptions { checkpoint: Some(path), resume: true, ..options };
    let e = train(&engine, &data, None, &kept, &mut StopAt(9)).unwrap_err();
    assert!(e.message().contains("step 9"), "{e}");
    let resumed = run(&engine, &data, &kept);
    assert_eq!(bytes(&resumed), want);
    assert!(resumed.report.prefix.unwrap().rows_kept > 0);
}

/// The mask that says which tokens are answered for comes from the inputs themselves; probes are kept apart
/// from samples.
#[test]
fn labels_of_tokens_and_probes_are_learned_from_what_is_kept() {
    use crate::shape::Array;
    use crate::train::data::{Label, Mark, SampleInput, tests::npz};
    use crate::train::{Task, random};
    let (_dir, attention) = engine("attention", &PackOptions::default());
    let mut data = sequences(24, 2);
    data.task = Task::parse("tokens").unwrap();
    for s in &mut data.samples {
        let SampleInput::Arrays(arrays) = &s.input else { unreachable!() };
        let ids = arrays[0].1.as_i64().unwrap().iter().enumerate();
        let mark = |(at, id): (usize, &i64)| {
            let start = at as u32;
            let label = usize::from(*id > 23);
            (*id > 0).then_some(Mark { start, end: start + 1, label })
        };
        s.label = Label::Marks(ids.filter_map(mark).collect());
    }
    let of_tokens = TrainOptions { task: data.task, targets: last(&attention, 2), ..options() };
    let kept = run(&attention, &data, &of_tokens);
    assert_eq!(bytes(&kept), bytes(&plain(&attention, &data, &of_tokens)));
    assert!(kept.report.prefix.unwrap().rows_kept > 0);

    let (dir, mlp) = engine("mlp", &PackOptions::default());
    let path = dir.path().join("probes.npz");
    let mut rng = random::stream(3, "probes", 0);
    let values = (0..80 * 12).map(|_| random::unit(&mut rng) - 0.5).collect();
    let x = Array::f32([80, 12], values).unwrap();
    let labels = Array::i64([80], vec![0; 80]).unwrap();
    std::fs::write(&path, npz(&[("x", x), ("labels", labels)])).unwrap();
    let probes = Some(path);
    let keeping = TrainOptions { targets: last(&mlp, 1), keep_knowledge: 0.9, probes, ..options() };
    let data = points(40, 4);
    let kept = run(&mlp, &data, &keeping);
    assert_eq!(bytes(&kept), bytes(&plain(&mlp, &data, &keeping)));
    // Each sample and each probe once.
    let report = &kept.report;
    let all = (report.samples_train + report.samples_holdout) as u64;
    // The others of the probes are measured on.
    assert_eq!(report.prefix.as_ref().unwrap().rows_run, all + 80);
}

/// Sequences of four lengths: each is kept as long as its batch is.
#[test]
fn arrays_of_several_lengths_are_kept_apart() {
    let (_dir, engine) = engine("attention", &PackOptions::default());
    let mut data = sequences(40, 12);
    for (i, s) in data.samples.iter_mut().enumerate() {
        let crate::train::data::SampleInput::Arrays(arrays) = &mut s.input else { unreachable!() };
        for (_, array) in arrays {
            let ids = array.as_i64().unwrap()[..5 + i % 4].to_vec();
            *array = crate::shape::Array::i64(vec![ids.len()], ids).unwrap();
        }
    }
    let options = TrainOptions { targets: last(&engine, 2), ..options() };
    let (kept, plain) = (run(&engine, &data, &options), plain(&engine, &data, &options));
    // Products of odd sizes add in another order for one row than for four.
    let (a, b) = (kept.report.loss_last, plain.report.loss_last);
    assert!((a - b).abs() < 1e-2 * b, "{a} {b}");
    let report = &kept.report;
    let all = (report.samples_train + report.samples_holdout) as u64;
    assert_eq!(report.prefix.as_ref().unwrap().rows_run, all);
}

/// Sentences are padded to the longest beside them: each is kept for every length that it was met with.
#[cfg(all(feature = "import", feature = "text"))]
#[test]
fn sentences_are_kept_for_each_padded_length() {
    use crate::train::data::{LoadOptions, load};
    if crate::common::emulated() {
        return; // minutes
    }
    let models = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models"));
    let tokenizer = Some(std::fs::read(models.join("minilm-l6.tokenizer.json")).unwrap());
    let packing = PackOptions { tokenizer, ..PackOptions::default() };
    let engine = crate::common::packed(&models.join("minilm-l6.onnx"), &packing);
    let mut data = load(&models.join("commands.jsonl"), &LoadOptions::default()).unwrap();
    data.samples.truncate(16);
    let options = TrainOptions {
        targets: TargetChoice::Regex(r".*layer\.5\..*".into()),
        epochs: Some(3),
        holdout: 0.0,
        micro_batch: Some(2),
        ..options()
    };
    let (kept, plain) = (run(&engine, &data, &options), plain(&engine, &data, &options));
    assert_eq!(bytes(&kept), bytes(&plain));
    assert_eq!(kept.report.loss_last, plain.report.loss_last);
    let prefix = kept.report.prefix.unwrap();
    assert_eq!(prefix.layers, 30);
    assert!(prefix.rows_run >= 16 && prefix.rows_kept >= 16, "{prefix:?}");
}

/// Of MiniLM's six blocks the last two; of what takes no sentences all that can be trained. What goes on
/// from a generation before has that one's layers.
#[cfg(all(feature = "import", feature = "text"))]
#[test]
fn auto_trains_the_last_third_where_sentences_are_learned() {
    use crate::train::start::untaught;
    use crate::train::{Lesson, Trainer};
    let auto = TrainOptions { targets: TargetChoice::Auto, ..options() };
    let trained = |trainer: &Trainer| -> Vec<String> {
        trainer.parameters().map(|(name, _)| name.to_string()).collect()
    };
    let labels = || vec!["a".to_string(), "b".to_string()];
    let models = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models"));
    let tokenizer = Some(std::fs::read(models.join("minilm-l6.tokenizer.json")).unwrap());
    let packing = PackOptions { tokenizer, ..PackOptions::default() };
    let minilm = crate::common::packed(&models.join("minilm-l6.onnx"), &packing);
    let two = TargetChoice::Regex(r".*layer\.[45]\..*".into());
    let blocks = TrainOptions { targets: two, ..options() };
    let chosen = trained(&Trainer::new(&minilm, &auto, labels()).unwrap());
    assert_eq!(chosen, trained(&Trainer::new(&minilm, &blocks, labels()).unwrap()));
    let values = TrainOptions { task: Task::parse("numbers").unwrap(), ..auto.clone() };
    let all = trained(&Trainer::new(&minilm, &options(), labels()).unwrap());
    assert_eq!(trained(&Trainer::new(&minilm, &values, labels()).unwrap()), all);

    let (_dir, mlp) = engine("mlp", &PackOptions::default());
    let all = trained(&Trainer::new(&mlp, &options(), labels()).unwrap());
    assert_eq!(trained(&Trainer::new(&mlp, &auto, labels()).unwrap()), all);
    let before = TrainOptions { targets: last(&mlp, 1), ..options() };
    let data = points(30, 1);
    let first = run(&mlp, &data, &before).adapter;
    let lesson = Lesson { previous: Some(&first), ..Lesson::new(&data, None) };
    let chosen = trained(&untaught(&mlp, &lesson, &auto).unwrap());
    assert_eq!(chosen, trained(&Trainer::new(&mlp, &before, data.labels.clone()).unwrap()));
    let anew = TrainOptions { warm_start: false, ..auto };
    assert_eq!(trained(&untaught(&mlp, &lesson, &anew).unwrap()), all);
}

/// x·W over the last axis, with W constant.
fn layer(model: &mut TypedModel, name: &str, x: OutletId, width: usize) -> OutletId {
    let from = model.outlet_fact(x).unwrap().shape[2].to_usize().unwrap();
    let w = crate::train::vjp::check::random(&[from, width], 7);
    let w = model.add_const(format!("{name}.w"), w).unwrap();
    let op = EinSum::new("btk,kn->btn".parse().unwrap(), f32::datum_type());
    model.wire_node(name, op, &[x, w]).unwrap()[0]
}

fn op(
    model: &mut TypedModel,
    name: &str,
    op: impl Into<Box<dyn TypedOp>>,
    of: &[OutletId],
) -> OutletId {
    model.wire_node(name, op, of).unwrap()[0]
}

/// x (B, 4, 16) -> a product, where `mixed` less its sum over rows -> a product, with something trained
/// added to both inputs and output of it.
fn graph(rows: usize, mixed: bool) -> (TypedModel, OutletId) {
    let mut model = TypedModel::default();
    let x = model.add_source("x", f32::fact([rows, 4, 16])).unwrap();
    let first = layer(&mut model, "first", x, 16);
    let sum = op(&mut model, "sum", Reduce::new(tvec![0], Reducer::Sum), &[first]);
    let h = if mixed { op(&mut model, "less", math::sub(), &[first, sum]) } else { first };
    let y = layer(&mut model, "second", h, 24);
    let a = model.add_source("a", f32::fact([1, 1, 16])).unwrap();
    let b = model.add_source("b", f32::fact([1, 1, 24])).unwrap();
    let mut changed = op(&mut model, "h.a", math::mul(), &[h, a]);
    if mixed {
        let sum = op(&mut model, "sum.a", math::mul(), &[sum, a]);
        changed = op(&mut model, "both", math::add(), &[changed, sum]);
    }
    let changed = layer(&mut model, "third", changed, 24);
    let y = op(&mut model, "y.b", math::add(), &[y, b]);
    let y = op(&mut model, "y", math::add(), &[y, changed]);
    let loss = op(&mut model, "loss", Reduce::new(tvec![0, 1, 2], Reducer::Sum), &[y]);
    model.select_output_outlets(&[loss]).unwrap();
    (model, loss)
}

#[test]
fn the_cut_keeps_what_trained_layers_read_and_not_what_they_make_of_it() {
    let ((mut model, loss), (mut alone, _)) = (graph(3, false), graph(1, false));
    let cut = find(&model, 1, &[loss], &alone, 3).unwrap().unwrap();
    // h, and not the second product, which h gives.
    assert_eq!(cut.crossing.len(), 1);
    let crossing = &cut.crossing[0];
    assert_eq!((crossing.axis, &crossing.shape[..]), (0, &[1, 4, 16][..]));
    let whole = model.clone();
    keep_above(&mut model, &cut, 1).unwrap();
    keep_below(&mut alone, &cut, 1).unwrap();
    let random = |shape: &[usize], seed| crate::train::vjp::check::random(shape, seed);
    let run = crate::train::vjp::check::run;
    let (x, a, b) = (random(&[3, 4, 16], 1), random(&[1, 1, 16], 2), random(&[1, 1, 24], 3));
    let rows: Vec<Tensor> = (0..3)
        .map(|row| run(&alone, &[x.slice(0, row, row + 1).unwrap()])[0].as_ref().clone())
        .collect();
    let h = Tensor::stack_tensors(0, &rows).unwrap();
    let (want, got) = (run(&whole, &[x, a.clone(), b.clone()]), run(&model, &[h, a, b]));
    want[0].close_enough(&got[0], Approximation::Close).unwrap();
}

/// The sum over rows is read by what is trained too: what it is made of crosses in its place.
#[test]
fn a_tensor_without_rows_does_not_cross() {
    let ((model, loss), (mut alone, _)) = (graph(3, true), graph(1, true));
    let cut = find(&model, 1, &[loss], &alone, 3).unwrap().unwrap();
    assert_eq!(cut.crossing.len(), 1);
    keep_below(&mut alone, &cut, 1).unwrap();
    assert_eq!(alone.node(alone.output_outlets().unwrap()[0].node).name, "first");
}

#[test]
fn an_input_without_rows_is_refused() {
    let mut model = TypedModel::default();
    let x = model.add_source("x", f32::fact([5])).unwrap();
    let a = model.add_source("a", f32::fact([5])).unwrap();
    let loss = op(&mut model, "y", math::mul(), &[x, a]);
    model.select_output_outlets(&[loss]).unwrap();
    let e = find(&model, 1, &[loss], &model, 3).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
}
