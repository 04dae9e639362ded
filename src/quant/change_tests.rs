use super::*;
use crate::quant::Inputs;
use crate::quant::layout::block_len;
use crate::quant::testing::{noise, on_the_grid, some};

struct Plain {
    pair: Option<(usize, Vec<f32>, Vec<f32>)>,
    rows: Vec<(usize, Vec<f32>)>,
    bottleneck: Option<[Vec<f32>; 4]>,
}

/// The parts that `mask` names, for a layer of this scheme and these features, and their tensors.
fn made(frozen: Scheme, mask: u32, [cols, outputs]: [usize; 2]) -> (Change, Plain) {
    let on = |bit: u32| mask & 1 << bit != 0;
    let vector = |bit: u32, len: usize| on(bit).then(|| noise(len, 20 + u64::from(bit)));
    let pair = (on(0) && !on(1)).then(|| (3, noise(3 * cols, 3), noise(outputs * 3, 4)));
    let replaced: Vec<usize> = match (on(5), on(6)) {
        (true, true) => (0..outputs).collect(),
        (true, false) => (0..outputs).step_by(3).collect(),
        _ => vec![],
    };
    let values = noise(replaced.len() * cols, 9);
    let bottleneck = on(7).then(|| {
        [noise(4 * outputs, 11), noise(4, 12), noise(outputs * 4, 13), noise(outputs, 14)]
    });
    let change = Change {
        low_rank: pair
            .as_ref()
            .map(|(r, a, b)| LowRank::new(frozen, *r, [cols, outputs], a, b).unwrap()),
        input: vector(1, cols),
        scale: vector(2, outputs),
        keep: vector(3, outputs),
        shift: vector(4, outputs),
        rows: (!replaced.is_empty()).then(|| Rows::new(replaced.clone(), cols, &values).unwrap()),
        after: bottleneck
            .as_ref()
            .map(|[down, db, up, ub]| Bottleneck::new([4, outputs], [down, db, up, ub]).unwrap()),
    };
    change.check(cols, outputs).unwrap();
    let rows = replaced.into_iter().zip(values.chunks(cols).map(<[f32]>::to_vec)).collect();
    (change, Plain { pair, rows, bottleneck })
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// One row in f64, by the formula of [`Change`]; of x in integers where it has blocks.
fn slow(
    w: &[f32],
    bias: &[f32],
    x: &[f32],
    c: &Change,
    p: &Plain,
    block: Option<usize>,
) -> Vec<f64> {
    let cols = x.len();
    let grid = |x: Vec<f32>| match block {
        Some(len) => on_the_grid(&x, cols, len),
        None => x,
    };
    let scaled = match &c.input {
        Some(input) => x.iter().zip(input).map(|(x, s)| x * s).collect(),
        None => x.to_vec(),
    };
    let (scaled, whole) = (grid(scaled), grid(x.to_vec()));
    let at = |v: &Option<Vec<f32>>, o: usize| v.as_ref().map(|v| f64::from(v[o]));
    let y: Vec<f64> = (0..bias.len())
        .map(|o| {
            let replaced = p.rows.iter().find(|(row, _)| *row == o);
            let mut y = match replaced {
                Some((_, row)) => dot(row, x),
                None => dot(&w[o * cols..][..cols], &scaled),
            };
            if let (Some((r, a, b)), None) = (&p.pair, replaced) {
                y += (0..*r)
                    .map(|i| dot(&a[i * cols..][..cols], &whole) * f64::from(b[o * r + i]))
                    .sum::<f64>();
            }
            let bias = f64::from(bias[o]) * at(&c.keep, o).unwrap_or(1.0);
            y * at(&c.scale, o).unwrap_or(1.0) + bias + at(&c.shift, o).unwrap_or(0.0)
        })
        .collect();
    let Some([down, down_bias, up, up_bias]) = &p.bottleneck else { return y };
    let n = y.len();
    let inner: Vec<f64> = (0..4)
        .map(|i| {
            let sum: f64 = (0..n).map(|o| f64::from(down[i * n + o]) * y[o]).sum();
            (sum + f64::from(down_bias[i])).max(0.0)
        })
        .collect();
    let up = |o: usize| (0..4).map(|i| f64::from(up[o * 4 + i]) * inner[i]).sum::<f64>();
    (0..n).map(|o| y[o] + up(o) + f64::from(up_bias[o])).collect()
}

/// Every part alone and several together, on rows between rows of the base, whose bits stay.
#[test]
fn every_kernel_agrees_with_the_formula() {
    let masks = [1, 2, 4, 8, 16, 32, 96, 128, 0b1_1101, 0b1_1110, 0b10_1100, 0b1001_1101];
    for (cols, outputs) in some([(31, 5), (64, 16), (70, 33)], 3) {
        for mask in some(masks, 8) {
            for scheme in Scheme::ALL {
                let (change, plain) = made(scheme, mask, [cols, outputs]);
                let w = Packed::pack(scheme, outputs, cols, &noise(outputs * cols, 1)).unwrap();
                let held = w.view().dequantize();
                let (m, bias) = (9, noise(outputs, 7));
                let x = noise(m * cols, 2);
                for k in Kernels::available() {
                    let what = format!("{} {} {mask:b} {cols}x{outputs}", k.name, scheme.name());
                    let run = |x: &[f32], updates: &[Update<'_>]| {
                        let mut y = vec![f32::NAN; x.len() / cols * outputs];
                        Inputs::with(k, x, cols).product(w.view(), Some(&bias), updates, &mut y);
                        y
                    };
                    let base = run(&x, &[]);
                    let y = run(&x, &[Update { rows: 2..6, change: &change }]);
                    assert_eq!(y[..2 * outputs], base[..2 * outputs], "{what}");
                    assert_eq!(y[6 * outputs..], base[6 * outputs..], "{what}");
                    let alone = &x[3 * cols..4 * cols];
                    let alone = run(alone, &[Update { rows: 0..1, change: &change }]);
                    assert_eq!(alone, y[3 * outputs..4 * outputs], "{what}");
                    for row in 2..6 {
                        let x = &x[row * cols..(row + 1) * cols];
                        let block = k.quantizes(w.view()).then(|| block_len(scheme));
                        let want = slow(&held, &bias, x, &change, &plain, block);
                        for (y, want) in y[row * outputs..].iter().zip(&want) {
                            let off = (f64::from(*y) - want).abs();
                            assert!(off < 2e-4 * (want.abs() + cols as f64), "{what}: {y} {want}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (change, _) = made(Scheme::Q8, 0b1001_1101, [6, 4]);
    assert!(change.check(6, 4).is_ok());
    assert!(change.check(5, 4).is_err() && change.check(6, 5).is_err());
    assert!(Rows::new(vec![1, 1], 2, &[0.0; 4]).is_err());
    assert!(Rows::new(vec![1], 2, &[0.0; 4]).is_err());
    let (change, _) = made(Scheme::Q8, 32, [6, 4]);
    assert!(change.check(6, 3).is_err());
}
