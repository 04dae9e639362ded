use super::*;
use crate::npy::read_npz;
use std::path::Path;

/// Values of -2 to 2 that a seed decides.
fn made_up(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 * 4.0 - 2.0
    };
    (0..count).map(|_| next()).collect()
}

/// What an alignment says: repeats are one, blanks nothing.
fn said(alignment: &[usize], blank: usize) -> Vec<usize> {
    let mut found = alignment.to_vec();
    found.dedup();
    found.retain(|symbol| *symbol != blank);
    found
}

/// The sum over all alignments, one by one.
fn slow(logits: &[f32], width: usize, symbols: &[usize], blank: usize) -> f64 {
    let steps = logits.len() / width;
    let rows: Vec<Vec<f64>> = logits
        .chunks(width)
        .map(|row| {
            let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
            row.iter().map(|v| f64::from(*v).exp() / sum).collect()
        })
        .collect();
    let mut total = 0.0;
    for number in 0..width.pow(steps as u32) {
        let alignment: Vec<usize> =
            (0..steps).map(|step| number / width.pow(step as u32) % width).collect();
        if said(&alignment, blank) == symbols {
            total += rows.iter().zip(&alignment).map(|(row, at)| row[*at]).product::<f64>();
        }
    }
    -total.ln()
}

/// Labels with repeats, none, and one that fills all steps; a blank at either end and in the middle.
#[test]
fn the_loss_is_the_sum_over_all_alignments() {
    for (steps, width, blank, symbols) in [
        (4, 3, 0, vec![1, 2]),
        (5, 3, 2, vec![0, 0]),
        (5, 4, 1, vec![3, 0, 3]),
        (3, 3, 0, vec![]),
        (3, 4, 3, vec![0, 1, 2]),
        (5, 2, 0, vec![1, 1, 1]),
        (1, 3, 0, vec![2]),
    ] {
        let logits = made_up(steps * width, (steps * width) as u64);
        let mut gradient = vec![9f32; logits.len()];
        let loss = ctc_loss(&logits, width, &symbols, blank, Some(&mut gradient));
        let want = slow(&logits, width, &symbols, blank);
        assert!((loss - want).abs() < 1e-9, "{symbols:?}: {loss}, not {want}");
        for at in 0..logits.len() {
            let moved = |by: f32| {
                let mut logits = logits.clone();
                logits[at] += by;
                slow(&logits, width, &symbols, blank)
            };
            let want = (moved(0.01) - moved(-0.01)) / 0.02;
            let got = f64::from(gradient[at]);
            assert!((got - want).abs() < 1e-4, "{symbols:?} at {at}: {got}, not {want}");
        }
    }
}

#[test]
fn a_text_of_more_symbols_than_steps_is_impossible() {
    let logits = made_up(6, 1);
    for symbols in [vec![1, 1], vec![1, 2, 1], vec![7]] {
        let mut gradient = vec![9f32; 6];
        assert_eq!(ctc_loss(&logits, 3, &symbols, 0, Some(&mut gradient)), f64::INFINITY);
        assert_eq!(gradient, [0.0; 6]);
    }
    assert_eq!((ctc_steps(&[1, 1, 2]), ctc_steps(&[])), (4, 0));
    assert_eq!(ctc_loss(&[], 3, &[], 0, None), 0.0);
    let mut model = TypedModel::default();
    let x = model.add_source("x", f32::fact([1, 2, 3])).unwrap();
    let targets = model.add_source("targets", f32::fact([1, 2, 1])).unwrap();
    let weights = model.add_source("weights", f32::fact([1])).unwrap();
    let y = model.wire_node("loss", CtcLoss { blank: 0 }, &[x, targets, weights]).unwrap();
    model.select_output_outlets(&y).unwrap();
    let tensor =
        |shape: &[usize], values: &[f32]| Tensor::from_shape(shape, values).unwrap().into_tvalue();
    let inputs =
        tvec![tensor(&[1, 2, 3], &logits), tensor(&[1, 2, 1], &[2., 2.]), tensor(&[1], &[1.])];
    let e = model.into_runnable().unwrap().run(inputs).unwrap_err();
    assert!(format!("{e:#}").contains("2 symbols take 3 steps, there are 2"), "{e:#}");
}

/// Values of PyTorch 2.15's `ctc_loss` on the CPU, made by models/tiny/make_ctc.py: random shapes, repeats,
/// rows of different lengths, empty texts.
#[test]
fn loss_and_gradients_are_those_of_pytorch() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny/ctc.npz");
    let arrays: std::collections::HashMap<_, _> =
        read_npz(&file, 1 << 20).unwrap().into_iter().collect();
    let mut cases = 0;
    while let Some(logits) = arrays.get(&format!("{cases}.logits")) {
        let of = |name: &str| &arrays[&format!("{cases}.{name}")];
        let &[rows, steps, width] = logits.shape() else { panic!() };
        let (labels, blank) = (of("labels").as_i64().unwrap(), of("blank").as_i64().unwrap()[0]);
        let longest = of("labels").shape()[1];
        let (losses, want) = (of("losses").as_f32().unwrap(), of("gradient").as_f32().unwrap());
        let mut gradient = vec![0f32; rows * steps * width];
        for row in 0..rows {
            let part = row * steps * width..(row + 1) * steps * width;
            let symbols = labels[row * longest..][..longest].iter().filter(|v| **v >= 0);
            let symbols: Vec<usize> = symbols.map(|v| *v as usize).collect();
            let logits = &logits.as_f32().unwrap()[part.clone()];
            let to = &mut gradient[part];
            let loss = ctc_loss(logits, width, &symbols, blank as usize, Some(&mut *to)) as f32;
            assert!((loss - losses[row]).abs() < 1e-4 * losses[row].max(1.0), "{cases} {row}");
            // PyTorch's "mean": over a row's symbols, then over rows.
            let scale = 1.0 / (symbols.len().max(1) * rows) as f32;
            to.iter_mut().for_each(|v| *v *= scale);
        }
        let apart = gradient.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        // Its own in f32 are 4e-6 from those in f64.
        assert!(apart < 1e-5, "case {cases}: gradients differ by {apart}");
        cases += 1;
    }
    assert_eq!(cases, 8);
}
