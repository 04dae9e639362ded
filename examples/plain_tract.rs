//! The engine below, alone: an ONNX file in tract as it comes, for `benches/rivals.py`.
//!
//! `cargo run --release --example plain_tract -- MODEL.onnx TOKENS SECONDS`: free dimensions become 1
//! (the first) and TOKENS; prints `{"ms": .., "start_ms": .., "peak": ..}`.

use std::time::{Duration, Instant};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

fn main() -> TractResult<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, tokens, seconds] = arguments.as_slice() else {
        bail!("plain_tract MODEL.onnx TOKENS SECONDS");
    };
    let (tokens, seconds): (i64, f64) = (tokens.parse()?, seconds.parse()?);
    let began = Instant::now();
    let model = tract_onnx::onnx().model_for_path(path)?.into_typed()?;
    let mut values = std::collections::HashMap::new();
    for input in model.input_outlets()? {
        for (axis, dim) in model.outlet_fact(*input)?.shape.iter().enumerate() {
            for symbol in dim.symbols() {
                values.insert(symbol, TDim::Val(if axis == 0 { 1 } else { tokens }));
            }
        }
    }
    let plan = model.set_symbols(&values)?.into_optimized()?.into_runnable()?;
    let mut inputs = tvec![];
    for outlet in plan.model().input_outlets()? {
        let fact = plan.model().outlet_fact(*outlet)?;
        let shape = fact.shape.as_concrete().context("a dimension is open")?;
        let count: usize = shape.iter().product();
        let name = &plan.model().node(outlet.node).name;
        let id = |i: usize| match name {
            n if n.contains("mask") => 1,
            n if n.contains("type") => 0,
            _ => 1000 + 37 * (i as i64 % 500),
        };
        let tensor = match fact.datum_type {
            DatumType::I64 => Tensor::from_shape(shape, &(0..count).map(id).collect::<Vec<i64>>())?,
            _ => Tensor::from_shape(
                shape,
                &(0..count).map(|i| (i % 13) as f32 / 13.0).collect::<Vec<f32>>(),
            )?,
        };
        inputs.push(tensor.into_tvalue());
    }
    plan.run(inputs.clone())?;
    let start = began.elapsed();
    let (mut times, began) = (vec![], Instant::now());
    while began.elapsed() < Duration::from_secs_f64(seconds) || times.len() < 5 {
        let one = Instant::now();
        plan.run(inputs.clone())?;
        times.push(one.elapsed().as_secs_f64() * 1e3);
    }
    let ms = offshoot::testing::bench::median(&times);
    let peak = offshoot::testing::bench::peak_rss_bytes().unwrap_or(0);
    println!(r#"{{"ms": {ms}, "start_ms": {}, "peak": {peak}}}"#, start.as_secs_f64() * 1e3);
    Ok(())
}
