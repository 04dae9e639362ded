//! Inputs that no adapter is trained on, to see how far it still answers as the base does.

use crate::error::{ErrorKind, Result};
use crate::pack::IoSpec;
use crate::runtime::{Engine, Named, Preprocessor, is_mask};
use crate::shape::{Array, DType, Data};
use crate::train::random::{below, stream, unit};

/// Plain sentences about nothing in particular.
const SENTENCES: [&str; 16] = [
    "The train to the coast leaves at half past nine.",
    "She has been learning the violin for three years.",
    "Rain is expected in the north tomorrow.",
    "The committee will publish its report in spring.",
    "He bought two tickets for the evening show.",
    "Most plants need light to grow.",
    "The bridge was closed for repairs last week.",
    "How far is it from here to the station?",
    "Prices rose slightly during the summer.",
    "A small dog was sleeping under the table.",
    "The museum shows paintings of the last century.",
    "Please send me the documents by Friday.",
    "Scientists found water below the surface of the moon.",
    "Our neighbours are building a new fence.",
    "The match ended without a goal.",
    "I can't remember where I put my glasses.",
];
/// Made-up inputs where there are no sentences.
const MADE_UP: u64 = 8;
/// Token ids where the base has no embedding that says how many there are.
const FEW_IDS: usize = 40;
/// Value of a free dimension other than the batch.
const FREE_DIM: usize = 24;

/// Inputs of one row each: sentences where the base takes them, else smooth noise that a seed
/// fixes.
pub fn probes(engine: &Engine, max_tokens: Option<usize>) -> Result<Vec<Named>> {
    let preprocessor = Preprocessor::new(engine).with_max_tokens(max_tokens);
    match SENTENCES.iter().map(|s| preprocessor.text(&[s])).collect() {
        // It takes no sentences.
        Err(e) if e.kind() == ErrorKind::Unsupported => {}
        found => return found,
    }
    let ids = engine.base().vocabulary().unwrap_or(FEW_IDS).max(1) as u64;
    let one = |n| engine.inputs().iter().map(|spec| made_up(spec, ids, n)).collect();
    (0..MADE_UP).map(one).collect()
}

/// One row for `spec`, the `n`th. Token ids are below `ids`.
fn made_up(spec: &IoSpec, ids: u64, n: u64) -> Result<(String, Array)> {
    let mut rng = stream(n, &format!("probe {}", spec.name), 0);
    let shape: Vec<usize> = spec
        .dims
        .iter()
        .enumerate()
        .map(|(axis, dim)| dim.parse().unwrap_or(if axis == 0 { 1 } else { FREE_DIM }))
        .collect();
    let len: usize = shape.iter().product();
    let width = shape.last().copied().unwrap_or(1).max(1);
    let data = match spec.dtype {
        DType::F32 => {
            // Waves and some noise: like a picture or a signal, neither flat nor white.
            let (a, b) = (1.0 + 7.0 * unit(&mut rng), 1.0 + 7.0 * unit(&mut rng));
            let value = |i: usize| {
                let (x, y) = ((i % width) as f32 / width as f32, (i / width) as f32 / len as f32);
                let wave = (std::f32::consts::TAU * (a * x + b * width as f32 * y)).sin();
                wave + 0.5 * (unit(&mut rng) - 0.5)
            };
            Data::F32((0..len).map(value).collect())
        }
        DType::I64 => {
            let mask = is_mask(&spec.name);
            let types = spec.name.ends_with("token_type_ids");
            let value = |_| match (mask, types) {
                (true, _) => 1,
                (_, true) => 0,
                _ => below(&mut rng, ids) as i64,
            };
            Data::I64((0..len).map(value).collect())
        }
        DType::I32 => Data::I32((0..len).map(|_| below(&mut rng, ids) as i32).collect()),
        DType::U8 => Data::U8((0..len).map(|_| below(&mut rng, 256) as u8).collect()),
        DType::Bool => Data::Bool((0..len).map(|_| below(&mut rng, 2) == 1).collect()),
    };
    Ok((spec.name.clone(), Array::new(shape, data)?))
}
