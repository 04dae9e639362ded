//! Every kind against PEFT and PyTorch: answers, gradients, and PEFT's directories read and written.
//! `tests/kinds/make_kinds.py` makes the references.

use crate::support::{max_difference, named, packed};
use offshoot::adapters::peft::{ImportOptions, export, import};
use offshoot::adapters::{Kind, TensorType};
use offshoot::packing::PackOptions;
use offshoot::testing::npy::read_npz;
use offshoot::training::{MicroBatch, TargetChoice, TrainOptions, Trainer};
use offshoot::{Adapter, Engine, Named, Scheme};
use std::path::{Path, PathBuf};

/// Forms that are read and served, but that training does not make.
const NOT_TRAINED: &[&str] =
    &["lora_ranks", "ia3_in", "lokr_both", "lokr_factor", "picture/lokr_product"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kinds")
}

fn numbers(folder: &Path) -> Named {
    read_npz(folder.join("numbers.npz"), 1 << 20).unwrap()
}

fn floats<'a>(numbers: &'a Named, name: &str) -> &'a [f32] {
    named(numbers, name).as_f32().unwrap()
}

/// |a - b| / |b|.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |v: f32| f64::from(v).powi(2);
    let apart: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (apart / b.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

fn batch(numbers: &Named) -> [MicroBatch; 1] {
    let labels = named(numbers, "labels").as_i64().unwrap();
    let one_hot = |label: &i64| (0..3).map(|at| f32::from(u8::from(at == *label))).collect();
    let answers = labels.iter().map(|l| Some(one_hot(l))).collect();
    [MicroBatch { inputs: vec![("x".into(), named(numbers, "in").clone())], answers }]
}

fn trainer(engine: &Engine, adapter: Kind, like: Option<&Adapter>, paths: &str) -> Trainer {
    let first = like.and_then(|a| a.targets.first());
    let options = TrainOptions {
        kind: adapter,
        rank: first.map_or(2, |t| t.rank.max(1)),
        alpha: first.map_or(1.0, |t| t.alpha),
        rslora: first.is_some_and(|t| t.rslora),
        targets: TargetChoice::Regex(paths.into()),
        ..TrainOptions::default()
    };
    let labels = ["a", "b", "c"].map(String::from).to_vec();
    Trainer::new(engine, &options, labels).unwrap()
}

/// Loss and gradients, those of the head too; the largest distance.
fn check_gradients(trainer: &mut Trainer, numbers: &Named, of: &dyn Fn(&str) -> Vec<f32>) -> f64 {
    for name in ["head.weight", "head.bias"] {
        trainer.set_parameter(name, floats(numbers, name)).unwrap();
    }
    let found = trainer.gradients(&batch(numbers)).unwrap();
    assert!((found.loss - floats(numbers, "loss")[0]).abs() < 1e-5, "loss {}", found.loss);
    let mut worst = 0f64;
    for ((name, _), gradient) in trainer.parameters().zip(&found.values) {
        let expected = match name.starts_with("head.") {
            true => floats(numbers, &format!("grad.{name}")).to_vec(),
            false => of(name),
        };
        let apart = distance(gradient, &expected);
        assert!(apart < 1e-4, "gradient of {name}: {apart:.1e}");
        worst = worst.max(apart);
    }
    worst
}

fn answer(engine: &Engine, adapter: &Adapter, numbers: &Named) -> f32 {
    let bound = engine.bind(&[(adapter, 1.0)]).unwrap();
    let found = engine.run(&[("x".into(), named(numbers, "in").clone())], Some(&bound)).unwrap();
    let found = named(&found, "features").as_f32().unwrap();
    max_difference(found, floats(numbers, "out"))
}

fn of_peft(engine: &Engine, dir: &Path, what: &str) {
    let (numbers, base) = (numbers(dir), engine.base());
    let options = ImportOptions { base: Some(base.fingerprint()), ..ImportOptions::default() };
    let read = |dir: &Path| import(dir, base.targets(), &options).unwrap();
    let imported = read(dir);
    assert_eq!(imported.warnings, [""; 0], "{what}");
    let adapter = imported.adapter;
    let apart = answer(engine, &adapter, &numbers);
    assert!(apart < 1e-4, "{what}: answers differ by {apart}");
    let bytes = adapter.to_bytes(TensorType::F32).unwrap();
    assert_eq!(Adapter::from_bytes(&bytes).unwrap(), adapter, "{what}");

    let place = tempfile::tempdir().unwrap();
    let out = place.path().join(&adapter.name);
    export(&adapter, base.targets(), &out).unwrap();
    assert_eq!(read(&out).adapter, adapter, "{what}");
    assert_eq!(tensors(&out), tensors(dir), "{what}: another file than PEFT's");

    if NOT_TRAINED.iter().any(|n| what.ends_with(n)) {
        println!("{what}: answers within {apart:.1e}");
        return;
    }
    let paths: Vec<&str> = adapter.targets.iter().map(|t| t.module_path.as_str()).collect();
    let kind = adapter.targets[0].kind;
    let mut trainer = trainer(engine, kind, Some(&adapter), &paths.join("|"));
    trainer.start_from(&adapter).unwrap();
    assert_eq!(trainer.adapter().unwrap().targets, adapter.targets, "{what}");
    // Gradients have the names and shapes of the tensors.
    let there = place.path().join("gradients");
    std::fs::create_dir(&there).unwrap();
    let copy = |from: &str, to: &str| std::fs::copy(dir.join(from), there.join(to)).unwrap();
    copy("adapter_config.json", "adapter_config.json");
    copy("grad.safetensors", "adapter_model.safetensors");
    let gradients = read(&there).adapter;
    let worst = check_gradients(&mut trainer, &numbers, &|name| {
        let (path, tensor) = name.rsplit_once('.').unwrap();
        let target = gradients.targets.iter().find(|t| t.module_path == path).unwrap();
        target.values(tensor).unwrap().to_vec()
    });
    println!("{what}: answers within {apart:.1e}, gradients within {worst:.1e}");
}

/// Name, shape and bytes of each tensor.
fn tensors(dir: &Path) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, view): (&str, safetensors::tensor::TensorView)| {
        (name.to_string(), view.shape().to_vec(), view.data().to_vec())
    };
    let mut all: Vec<_> = file.iter().map(tensor).collect();
    all.sort();
    all
}

fn of_torch(engine: &Engine, dir: &Path, what: &str) {
    let numbers = numbers(dir);
    let kind = Kind::parse(dir.file_name().unwrap().to_str().unwrap()).unwrap();
    let paths = if what.starts_with("text") { "up|down" } else { "first|second" };
    let mut trainer = trainer(engine, kind, None, paths);
    let names: Vec<String> = trainer.parameters().map(|(n, _)| n.to_string()).collect();
    for name in names.iter().filter(|n| !n.starts_with("head.")) {
        trainer.set_parameter(name, floats(&numbers, name)).unwrap();
    }
    let apart = answer(engine, &trainer.adapter().unwrap(), &numbers);
    assert!(apart < 1e-4, "{what}: answers differ by {apart}");
    let gradient = |name: &str| floats(&numbers, &format!("grad.{name}")).to_vec();
    let worst = check_gradients(&mut trainer, &numbers, &gradient);
    println!("{what}: answers within {apart:.1e}, gradients within {worst:.1e}");
}

/// Each folder of `tests/kinds`; none of the kinds may lack one.
#[test]
fn every_kind_is_as_peft_and_pytorch_have_it() {
    let mut seen = vec![];
    for network in ["text", "picture"] {
        let place = folder().join(network);
        let options = PackOptions { scheme: Scheme::F32, ..PackOptions::default() };
        let engine = packed(&place.join("base.onnx"), &options);
        let mut kinds: Vec<PathBuf> = std::fs::read_dir(&place)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_dir())
            .collect();
        kinds.sort();
        for dir in kinds {
            let name = dir.file_name().unwrap().to_str().unwrap();
            let what = format!("{network}/{name}");
            match dir.join("adapter_config.json").exists() {
                true => of_peft(&engine, &dir, &what),
                false => of_torch(&engine, &dir, &what),
            }
            seen.push(what);
        }
    }
    for kind in Kind::all() {
        for network in ["text", "picture"] {
            let what = format!("{network}/{}", kind.name());
            assert!(seen.contains(&what), "{what} has no reference");
        }
    }
}
