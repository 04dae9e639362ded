//! What switching costs, and what an adapter costs a request, on the MiniLM that ships here.
//!
//! `cargo bench --bench switch`. Switch time is the median over batches of the mean within a batch
//! (one switch is shorter than the clock's step); latencies are medians of single requests.

use offshoot::adapters::{TargetAdapter, TargetKind};
use offshoot::packing::PackOptions;
use offshoot::{Adapter, Array, Engine, Named, Result, Session, pack};
use std::path::Path;
use std::time::Instant;

const BATCHES: usize = 201;
const SWITCHES: usize = 1000;
const REQUESTS: usize = 31;
const RANK: u32 = 8;

fn main() -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/minilm-l6.onnx");
    let path = std::env::temp_dir().join(format!("offshoot-switch-{}.base", std::process::id()));
    pack(&source, &path, &PackOptions::default())?;
    let opened = Engine::open(&path);
    // The mapping keeps the pages; the file need not outlive this program.
    let _ = std::fs::remove_file(&path);
    let session = Session::new(opened?);

    let adapters = [adapter(&session, 1), adapter(&session, 2)];
    let [one, two] = &adapters;
    let bound = [session.engine().bind(&[(one, 1.0)])?, session.engine().bind(&[(two, 1.0)])?];
    let switch = median((0..BATCHES).map(|_| {
        let start = Instant::now();
        for i in 0..SWITCHES {
            std::hint::black_box(session.switch(Some(bound[i % 2].clone())));
        }
        start.elapsed().as_nanos() as f64 / SWITCHES as f64
    }));
    println!("switch between two loaded adapters   {switch:8.0} ns (median of {BATCHES})");

    println!(
        "tokens      base ms   adapter ms   (medians of {REQUESTS}, rank {RANK} on 36 targets)"
    );
    for tokens in [16, 64] {
        let inputs = inputs(tokens)?;
        session.engine().prepare(&inputs)?;
        let base = latency(&session, &inputs, false, &bound[0])?;
        let adapted = latency(&session, &inputs, true, &bound[0])?;
        println!("{tokens:6} {base:12.2} {adapted:12.2}");
    }
    Ok(())
}

/// Median time of a request in milliseconds.
fn latency(
    session: &Session,
    inputs: &Named,
    adapted: bool,
    bound: &std::sync::Arc<offshoot::Bound>,
) -> Result<f64> {
    session.switch(adapted.then(|| bound.clone()));
    session.run(inputs)?;
    let mut times = vec![];
    for _ in 0..REQUESTS {
        let start = Instant::now();
        std::hint::black_box(session.run(inputs)?);
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(times.into_iter()))
}

fn median(times: impl Iterator<Item = f64>) -> f64 {
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A pair of [`RANK`] on every linear target.
fn adapter(session: &Session, seed: usize) -> Adapter {
    let base = session.engine().base();
    let targets = base.targets().iter().filter(|t| t.kind == TargetKind::Linear);
    let pair = |t: &offshoot::adapters::Target| {
        let a = values((RANK * t.in_features) as usize, seed);
        let b = values((RANK * t.out_features) as usize, seed + 1);
        TargetAdapter::lora(&t.module_path, RANK, 16.0, a, b)
    };
    Adapter {
        name: format!("adapter {seed}"),
        base: Some(base.fingerprint()),
        targets: targets.map(pair).collect(),
        ..Adapter::default()
    }
}

/// Values in -0.02..0.02.
fn values(n: usize, seed: usize) -> Vec<f32> {
    let value = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7 & 1023) as f32 / 512.0 - 1.0;
    (0..n).map(|i| 0.02 * value(i + seed * 977)).collect()
}

fn inputs(tokens: usize) -> Result<Named> {
    let ids = (0..tokens as i64).map(|i| 1000 + 37 * i).collect();
    Ok(vec![
        ("input_ids".into(), Array::i64([1, tokens], ids)?),
        ("attention_mask".into(), Array::i64([1, tokens], vec![1; tokens])?),
        ("token_type_ids".into(), Array::i64([1, tokens], vec![0; tokens])?),
    ])
}
