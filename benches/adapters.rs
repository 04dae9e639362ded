//! What adapters cost: a base alone, with one adapter of rank 8 on every linear layer and convolution,
//! and a batch whose rows carry different ones. Runs interleave; each figure is the fastest of them.
//!
//! `cargo bench --bench adapters -- BASE [TOKENS]`: BASE has a free batch.

use offshoot::testing::bench::{Sizes, adapter, inputs};
use offshoot::{Engine, Error, Named, Result};
use std::time::{Duration, Instant};

/// Rows of the mixed batch.
const ROWS: usize = 8;
/// Adapters in it.
const ADAPTERS: usize = 4;
/// Of each.
const RANK: u32 = 8;

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
    offshoot::prepare_heap();
    let engine = Engine::open(base)?;
    let none = || Error::unsupported("no layer of the base can carry an adapter");
    let bound = (0..ADAPTERS)
        .map(|seed| engine.bind(&[(&adapter(&engine, RANK, seed).ok_or_else(none)?, 1.0)]))
        .collect::<Result<Vec<_>>>()?;
    let sized = |rows| inputs(&engine, Sizes { rows, length: tokens });
    let (one, batch) = (sized(1)?, sized(ROWS)?);
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
