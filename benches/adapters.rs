//! What adapters cost: a base alone, with one adapter of rank 8 on every linear layer, and a batch
//! whose rows carry different ones. Runs interleave; each figure is the fastest of them.
//!
//! `cargo bench --bench adapters -- BASE [TOKENS]`: BASE takes token numbers (batch, tokens).

use offshoot::adapter::{Adapter, Bound, TargetAdapter, TargetKind};
use offshoot::error::{Error, Result};
use offshoot::runtime::{Engine, Named};
use offshoot::shape::Array;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rows of the mixed batch.
const ROWS: usize = 8;
/// Adapters in it.
const ADAPTERS: usize = 4;

fn main() {
    if let Err(error) = run() {
        eprintln!("{error}");
        std::process::exit(error.kind().exit_code().into());
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let Some(base) = arguments.first() else {
        println!("skipped: no BASE given");
        return Ok(());
    };
    let usage = || Error::usage("adapters BASE [TOKENS]");
    let tokens = arguments.get(1).map_or(Ok(64), |t| t.parse()).map_err(|_| usage())?;
    let engine = Engine::open(base)?;
    let bound: Vec<Arc<Bound>> =
        (0..ADAPTERS).map(|seed| bound(&engine, seed)).collect::<Result<_>>()?;
    let (one, batch) = (sentences(&engine, 1, tokens)?, sentences(&engine, ROWS, tokens)?);
    let mixed: Vec<_> = (0..ROWS).map(|r| Some(bound[r * ADAPTERS / ROWS].clone())).collect();
    let mut best = [Duration::MAX; 4];
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(6) {
        let mut time = |slot: usize, run: &dyn Fn() -> Result<Named>| -> Result<()> {
            let start = Instant::now();
            run()?;
            best[slot] = best[slot].min(start.elapsed());
            Ok(())
        };
        for _ in 0..5 {
            time(0, &|| engine.run(&one, None))?;
            time(1, &|| engine.run(&one, Some(&bound[0])))?;
        }
        time(2, &|| engine.run(&batch, Some(&bound[0])))?;
        time(3, &|| engine.run_rows(&batch, &mixed))?;
    }
    let more = |a: Duration, b: Duration| 100.0 * (b.as_secs_f64() / a.as_secs_f64() - 1.0);
    println!(
        "{tokens} tokens: base {:?}, adapted {:?}: {:+.1} %",
        best[0],
        best[1],
        more(best[0], best[1])
    );
    println!(
        "{ROWS} rows: one adapter {:?}, {ADAPTERS} adapters {:?}: {:+.1} %",
        best[2],
        best[3],
        more(best[2], best[3])
    );
    Ok(())
}

fn bound(engine: &Engine, seed: usize) -> Result<Arc<Bound>> {
    let values = |n: u32, salt: usize| -> Vec<f32> {
        (0..n as usize).map(|i| ((i * 37 + salt * 53) % 101) as f32 / 2500.0 - 0.02).collect()
    };
    let base = engine.base();
    let pairs = base.targets().iter().filter(|t| t.kind == TargetKind::Linear);
    let adapter = Adapter {
        name: format!("adapter {seed}"),
        base: Some(base.fingerprint()),
        targets: pairs
            .map(|t| TargetAdapter {
                module_path: t.module_path.clone(),
                rank: 8,
                alpha: 16.0,
                lora_a: values(8 * t.in_features, seed),
                lora_b: values(8 * t.out_features, seed + 7),
            })
            .collect(),
        ..Adapter::default()
    };
    engine.bind(&[(&adapter, 1.0)])
}

fn sentences(engine: &Engine, rows: usize, tokens: usize) -> Result<Named> {
    let values = |name: &str| -> Vec<i64> {
        let value = |i: usize| match name {
            n if n.contains("mask") => 1,
            n if n.contains("type") => 0,
            _ => (i % 100) as i64,
        };
        (0..rows * tokens).map(value).collect()
    };
    let array = |name: &String| Ok((name.clone(), Array::i64([rows, tokens], values(name))?));
    engine.inputs().iter().map(|spec| array(&spec.name)).collect()
}
