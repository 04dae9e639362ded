//! Inputs that no adapter is trained on, to see how far it still answers as the base does.

use crate::error::{Error, ErrorKind, Result};
use crate::pack::{IoSpec, Role};
use crate::runtime::{Engine, Named, Preprocessor, sentences};
use crate::shape::{Array, DType, Data, volume};
use crate::train::random::{below, stream, unit};

/// One of so many of the sentences that ship with the program: each costs two runs.
const EVERY: usize = 3;
/// Made-up inputs where there are no sentences.
const MADE_UP: u64 = 8;
/// Token ids where the base has no embedding that says how many there are.
const FEW_IDS: usize = 40;
/// Values of the free dimensions other than the batch, tried in turn: a base of sound may look at
/// hundreds of values at once and can't run fewer.
const FREE_DIMS: [usize; 4] = [24, 256, 4096, 16384];
/// Most values of an input where the free dimensions are larger than the first.
const MOST_VALUES: usize = 1 << 20;

/// Inputs of one row each: sentences where the base takes them, else smooth noise that a seed
/// fixes.
///
/// # Errors
/// The base runs no made-up inputs, whatever their size (unsupported).
pub fn probes(engine: &Engine, max_tokens: Option<usize>) -> Result<Vec<Named>> {
    let preprocessor = Preprocessor::new(engine).with_max_tokens(max_tokens);
    match sentences().step_by(EVERY).map(|s| preprocessor.text(&[s])).collect() {
        // It takes no sentences.
        Err(e) if e.kind() == ErrorKind::Unsupported => {}
        found => return found,
    }
    let ids = engine.base().vocabulary().unwrap_or(FEW_IDS).max(1) as u64;
    let specs = engine.inputs();
    let any_free = specs.iter().any(|spec| shape(spec, 1) != shape(spec, 2));
    let mut refused = None;
    for free in FREE_DIMS.into_iter().take(if any_free { FREE_DIMS.len() } else { 1 }) {
        let shapes: Vec<Vec<usize>> = specs.iter().map(|spec| shape(spec, free)).collect();
        let large = |shape: &Vec<usize>| volume(shape).is_none_or(|n| n > MOST_VALUES);
        if refused.is_some() && shapes.iter().any(large) {
            break;
        }
        let row = |n| specs.iter().zip(&shapes).map(|(spec, s)| made_up(spec, s, ids, n)).collect();
        let rows: Vec<Named> = (0..MADE_UP).map(row).collect::<Result<_>>()?;
        match rows.first().map(|first| engine.run(first, None)) {
            Some(Err(e)) => refused = refused.or(Some(e)),
            _ => return Ok(rows),
        }
    }
    let why = refused.map_or(String::new(), |e| format!(": {}", e.message()));
    Err(Error::unsupported(format!("the base runs no made-up inputs, small or large{why}")))
}

/// The shape of one row for `spec`, its free dimensions `free`.
fn shape(spec: &IoSpec, free: usize) -> Vec<usize> {
    let dim =
        |(axis, dim): (usize, &String)| dim.parse().unwrap_or(if axis == 0 { 1 } else { free });
    spec.dims.iter().enumerate().map(dim).collect()
}

/// One row for `spec`, the `n`th. Token ids are below `ids`.
fn made_up(spec: &IoSpec, shape: &[usize], ids: u64, n: u64) -> Result<(String, Array)> {
    let mut rng = stream(n, &format!("probe {}", spec.name), 0);
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
        DType::I64 | DType::I32 => {
            let value = |_| match spec.role {
                Role::Mask | Role::EncodedMask => 1,
                Role::Types => 0,
                _ => below(&mut rng, ids) as i64,
            };
            let values = (0..len).map(value);
            match spec.dtype {
                DType::I32 => Data::I32(values.map(|v| v as i32).collect()),
                _ => Data::I64(values.collect()),
            }
        }
        DType::U8 => Data::U8((0..len).map(|_| below(&mut rng, 256) as u8).collect()),
        DType::Bool => Data::Bool((0..len).map(|_| below(&mut rng, 2) == 1).collect()),
    };
    Ok((spec.name.clone(), Array::new(shape, data)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_types_are_no_ids_whatever_their_width() {
        for dtype in [DType::I64, DType::I32] {
            let values = |role: Role| {
                let spec = IoSpec {
                    name: role.name().into(),
                    safe_name: "x0".into(),
                    dtype,
                    dims: vec!["batch".into(), "seq".into()],
                    role,
                };
                let array = made_up(&spec, &shape(&spec, 24), 1000, 0).unwrap().1;
                assert_eq!((array.shape(), array.dtype()), (&[1, 24][..], dtype));
                match array.into_data() {
                    Data::I64(v) => v,
                    Data::I32(v) => v.into_iter().map(i64::from).collect(),
                    other => panic!("{other:?}"),
                }
            };
            assert_eq!(values(Role::Mask), [1; 24]);
            assert_eq!(values(Role::Types), [0; 24]);
            assert!(values(Role::Ids).iter().any(|&id| id > 1));
        }
    }

    /// A base of sound with a kernel of 400 samples was trained for hours, and then not measured.
    #[cfg(feature = "import")]
    #[test]
    fn free_dimensions_grow_until_the_base_runs() {
        use crate::runtime::testing::conv1d_of;
        for (kernel, size) in [(5, 24), (400, 4096)] {
            let (_dir, engine) = conv1d_of(kernel);
            let found = probes(&engine, None).unwrap();
            assert_eq!(found.len(), MADE_UP as usize);
            assert_eq!(found[0][0].1.shape(), [1, 4, size]);
        }
        let (_dir, engine) = conv1d_of(20_000);
        let e = probes(&engine, None).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unsupported);
        assert!(e.message().starts_with("the base runs no made-up inputs"), "{e}");
    }
}
