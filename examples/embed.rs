//! Embeds the crate: packs a tiny network, runs it, gives it two adapters, saves and loads them,
//! switches between them, runs both together, and trains a third one with a head of its own.
//!
//! `cargo run --example embed` prints what each step gave.

use offshoot::adapters::{Target, TargetAdapter, TargetKind, TensorType};
use offshoot::data::Label;
use offshoot::packing::PackOptions;
use offshoot::training::{MicroBatch, TrainOptions, Trainer};
use offshoot::{Adapter, Array, Engine, Error, Named, Result, Scheme, Session, pack};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Optimizer steps after the first.
const STEPS: usize = 30;

fn main() {
    if let Err(error) = run() {
        eprintln!("{error}");
        std::process::exit(error.kind().exit_code().into());
    }
}

fn run() -> Result<()> {
    let folder = Folder::new()?;

    // 1. Pack: once, anywhere. The device needs only the base afterwards.
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny/attention.onnx");
    let path = folder.0.join("attention.base");
    let options = PackOptions { scheme: Scheme::Q8, ..PackOptions::default() };
    let fingerprint = pack(&source, &path, &options)?;
    println!("packed {} as base {}", source.display(), fingerprint.short());

    // 2. Open: the base is mapped, not read. A session serves it from any number of threads.
    let session = Session::new(Engine::open(&path)?);
    let base = session.engine().base();
    println!("{} bytes, {} targets", base.file_len(), base.targets().len());

    // 3. Run the base alone.
    let inputs = sentence()?;
    let plain = session.run(&inputs)?;
    for (name, output) in &plain {
        println!("output '{name}' of shape {:?}", output.shape());
    }

    // 4. Two adapters: saved, loaded, and bound to the base, which checks each of them in full.
    let mut loaded = vec![];
    for (name, seed) in [("kitchen", 1), ("garage", 2)] {
        let file = folder.0.join(format!("{name}.adapter"));
        adapter(name, seed, base).write(&file, TensorType::F16)?;
        loaded.push(Adapter::read(&file)?);
    }
    let mut bound = vec![];
    for adapter in &loaded {
        bound.push(session.engine().bind(&[(adapter, 1.0)])?);
    }

    // 5. Switch: requests in flight keep theirs, the next ones have the new one.
    for (adapter, bound) in loaded.iter().zip(&bound) {
        let start = Instant::now();
        session.switch(Some(bound.clone()));
        let took = start.elapsed();
        let moved = distance(&plain, &session.run(&inputs)?)?;
        println!("'{}' active after {took:?}; it moves the output by {moved:.4}", adapter.name);
    }

    // 6. Several at once, each with a weight.
    if let [first, second] = loaded.as_slice() {
        session.switch(Some(session.engine().bind(&[(first, 0.5), (second, 0.5)])?));
        println!("half of each moves it by {:.4}", distance(&plain, &session.run(&inputs)?)?);
    }

    // 7. Without an adapter the base answers as before, bit for bit.
    session.switch(None);
    if session.run(&inputs)? != plain {
        return Err(Error::failed("the base's answer changed"));
    }
    println!("switched off: the base answers as before");

    // 8. Train a few steps through the same mapped weights, save, and serve what came of it.
    let options = TrainOptions { name: "lamps".into(), rank: 4, ..TrainOptions::default() };
    let labels = vec!["on".to_string(), "off".to_string()];
    let mut trainer = Trainer::new(session.engine(), &options, labels)?;
    let answers = trainer.answers(&[Label::Class(0), Label::Class(1)])?;
    let batch = [MicroBatch { inputs: inputs.clone(), answers }];
    let (first, mut last) = (trainer.step(&batch, 0.01)?, f32::NAN);
    for _ in 0..STEPS {
        last = trainer.step(&batch, 0.01)?;
    }
    println!("trained {} values: loss {first:.3}, then {last:.3}", trainer.parameter_count());
    let file = folder.0.join("lamps.adapter");
    trainer.adapter()?.write(&file, TensorType::F16)?;
    let trained = Adapter::read(&file)?;
    session.switch(Some(session.engine().bind(&[(&trained, 1.0)])?));
    let found: Vec<String> =
        session.predict(&inputs)?.iter().flat_map(|p| p.top(1)).map(|(label, _)| label).collect();
    println!("the two sentences are now: {}", found.join(", "));
    if found != ["on", "off"] {
        return Err(Error::failed("training did not learn two sentences"));
    }
    Ok(())
}

/// Two sentences of token numbers, the second one shorter.
fn sentence() -> Result<Named> {
    Ok(vec![
        ("input_ids".into(), Array::i64([2, 4], vec![3, 14, 15, 9, 2, 6, 0, 0])?),
        ("attention_mask".into(), Array::i64([2, 4], vec![1, 1, 1, 1, 1, 1, 0, 0])?),
    ])
}

/// A LoRA of rank 2 with made-up values on the attention's projections.
fn adapter(name: &str, seed: u32, base: &offshoot::Base) -> Adapter {
    let chosen =
        |t: &&Target| t.kind == TargetKind::Linear && t.module_path.contains("attention.self");
    let values = |n: u32, salt: u32| -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + salt * 53) % 101) as f32 / 250.0 - 0.2).collect()
    };
    let pair = |t: &Target| {
        let (a, b) = (values(2 * t.in_features, seed), values(2 * t.out_features, seed + 7));
        TargetAdapter::lora(&t.module_path, 2, 4.0, a, b)
    };
    Adapter {
        name: name.into(),
        base: Some(base.fingerprint()),
        targets: base.targets().iter().filter(chosen).map(pair).collect(),
        ..Adapter::default()
    }
}

/// Mean absolute difference of the first outputs.
fn distance(a: &Named, b: &Named) -> Result<f32> {
    let ([(_, a), ..], [(_, b), ..]) = (a.as_slice(), b.as_slice()) else {
        return Err(Error::failed("no outputs"));
    };
    let (a, b) = (a.as_f32()?, b.as_f32()?);
    Ok(a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() / a.len() as f32)
}

/// A folder that goes with the program.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder> {
        let path = std::env::temp_dir().join(format!("offshoot-embed-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
