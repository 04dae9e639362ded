//! Threads within a run: the answers have the same bits whatever their number.

use crate::support::*;
use offshoot::adapters::TargetKind;
use offshoot::packing::{ImportOptions, InputSpec, PackOptions};
use offshoot::testing::Threads;
use offshoot::{Array, Bound, Engine, Named, Scheme};
use std::sync::Arc;

fn bits(outputs: Named) -> Vec<u32> {
    outputs.iter().flat_map(|(_, a)| a.as_f32().unwrap()).map(|v| v.to_bits()).collect()
}

/// With one thread, and with several; with an adapter and without; and, where `rows` can be told apart,
/// with one for every other row.
fn same_bits(engine: &Engine, request: &Named, rows: Option<usize>) {
    let adapter = adapter(engine, 3, |t| t.kind != TargetKind::Embedding);
    let bound = engine.bind(&[(&adapter, 1.0)]).unwrap();
    let mixed = rows.map(|rows| -> Vec<Option<Arc<Bound>>> {
        (0..rows).map(|row| (row % 2 == 1).then(|| bound.clone())).collect()
    });
    let run = |engine: &Engine| {
        let mut all = bits(engine.run(request, None).unwrap());
        all.extend(bits(engine.run(request, Some(&bound)).unwrap()));
        if let Some(mixed) = &mixed {
            all.extend(bits(engine.run_rows(request, mixed).unwrap()));
        }
        all
    };
    let alone = run(engine);
    let (threads, times) = if emulated() { (&[2][..], 1) } else { (&[2, 3][..], 3) };
    for &threads in threads {
        let shared = engine.clone().with_threads(threads).unwrap();
        for _ in 0..times {
            assert!(run(&shared) == alone, "{threads} threads");
        }
    }
}

#[test]
fn sentences_have_the_same_bits_on_any_number_of_threads() {
    let schemes = [Scheme::Q8, Scheme::Q4, Scheme::F32];
    for scheme in schemes.into_iter().take(if emulated() { 1 } else { 3 }) {
        let options = PackOptions { scheme, ..PackOptions::default() };
        let engine = packed(&model("minilm-l6.onnx"), &options);
        let (rows, tokens) = (3, 70);
        let ids = (0..rows * tokens).map(|i| (i * 977 % 30_000 + 5) as i64).collect();
        let mask = (0..rows * tokens).map(|i| i64::from(i % tokens < 50)).collect();
        let request = vec![
            ("input_ids".into(), Array::i64([rows, tokens], ids).unwrap()),
            ("attention_mask".into(), Array::i64([rows, tokens], mask).unwrap()),
            ("token_type_ids".into(), Array::i64([rows, tokens], vec![0; rows * tokens]).unwrap()),
        ];
        same_bits(&engine, &request, Some(rows));
    }
}

#[test]
fn pictures_have_the_same_bits_on_any_number_of_threads() {
    let side = 224;
    let inputs = vec![InputSpec::parse(&format!("image=2x3x{side}x{side},f32")).unwrap()];
    let import = ImportOptions { inputs, ..ImportOptions::default() };
    let options = PackOptions { scheme: Scheme::Q8, import, ..PackOptions::default() };
    let engine = packed(&model("efficientnet-lite0.onnx"), &options);
    let name = engine.inputs()[0].name.clone();
    let picture = Array::f32([2, 3, side, side], values(2 * 3 * side * side, 5, 1.0)).unwrap();
    same_bits(&engine, &vec![(name, picture)], None);
}

#[test]
fn a_run_beside_one_that_has_the_threads_goes_on_alone() {
    let engine = packed(&model("minilm-l6.onnx"), &PackOptions::default()).with_threads(2).unwrap();
    let ids = Array::i64([1, 64], (0..64).map(|i| i * 131 + 5).collect()).unwrap();
    let ones = Array::i64([1, 64], vec![1; 64]).unwrap();
    let zeros = Array::i64([1, 64], vec![0; 64]).unwrap();
    let request: Named = vec![
        ("input_ids".into(), ids),
        ("attention_mask".into(), ones),
        ("token_type_ids".into(), zeros),
    ];
    let want = bits(engine.run(&request, None).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..if emulated() { 3 } else { 20 } {
                    assert_eq!(bits(engine.run(&request, None).unwrap()), want);
                }
            });
        }
    });
}

#[test]
fn no_threads_and_too_many_are_refused() {
    let engine = packed(&model("tiny/mlp.onnx"), &PackOptions::default());
    for threads in [0, Threads::MOST + 1] {
        let e = engine.clone().with_threads(threads).err().unwrap();
        assert!(e.message().contains("threads: expected 1 to 256"), "{e}");
    }
}
