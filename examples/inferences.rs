//! Answers the same made-up request several times: something to count instructions of.
//!
//! `cargo run --release --example inferences -- BASE TIMES [TOKENS]`: free dimensions but the batch
//! get TOKENS (16), the batch gets 1.

use offshoot::{Array, DType, Engine, Error, IoSpec, Named, Result};
use std::time::{Duration, Instant};

fn main() {
    if let Err(error) = run() {
        eprintln!("{error}");
        std::process::exit(error.kind().exit_code().into());
    }
}

fn run() -> Result<()> {
    let usage = || Error::usage("inferences BASE TIMES [TOKENS]");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (base, times) = match arguments.as_slice() {
        [base, times, ..] => (base, times.parse().map_err(|_| usage())?),
        _ => return Err(usage()),
    };
    let tokens = match arguments.get(2) {
        Some(tokens) => tokens.parse().map_err(|_| usage())?,
        None => 16,
    };
    offshoot::prepare_heap();
    let engine = Engine::open(base)?;
    let inputs: Named = engine
        .inputs()
        .iter()
        .map(|spec| Ok((spec.name.clone(), made_up(spec, tokens)?)))
        .collect::<Result<_>>()?;
    engine.prepare(&inputs)?;
    let start = Instant::now();
    let (mut sum, mut fastest) = (0.0, Duration::MAX);
    for _ in 0..times {
        let one = Instant::now();
        let outputs = engine.run(&inputs, None)?;
        fastest = fastest.min(one.elapsed());
        sum += outputs.iter().filter_map(|(_, a)| a.as_f32().ok()?.first()).sum::<f32>();
    }
    let took = start.elapsed();
    println!("{times} answers in {took:?}, the fastest {fastest:?}, first values sum to {sum}");
    Ok(())
}

/// Ones for masks, zeros for types, else a few different values.
fn made_up(spec: &IoSpec, tokens: usize) -> Result<Array> {
    let dim = |(axis, text): (usize, &String)| match text.parse() {
        Ok(size) => size,
        Err(_) if axis == 0 => 1,
        Err(_) => tokens,
    };
    let shape: Vec<usize> = spec.dims.iter().enumerate().map(dim).collect();
    let count = shape.iter().product();
    match spec.dtype {
        DType::F32 => Array::f32(shape, (0..count).map(|i| (i % 13) as f32 / 13.0).collect()),
        DType::I64 => {
            let value = |i: usize| match spec.name.as_str() {
                n if n.contains("mask") => 1,
                n if n.contains("type") => 0,
                _ => (i % 100) as i64,
            };
            Array::i64(shape, (0..count).map(value).collect())
        }
        other => Err(Error::unsupported(format!("an input of type {}", other.name()))),
    }
}
