//! Low-rank updates of products: what an adapter adds to a layer.

use super::kernels::{Job, Kernels, Piece, Quantized, RANKS, Start};
use super::layout::PANEL;
use super::{Packed, PackedRef, Scheme};
use crate::error::Result;
use std::ops::Range;

/// The low part is held this many times its size, in the range that an f16 scale covers well.
const FINER: f32 = 256.0;

/// y += (x · aᵀ) · bᵀ beside a frozen matrix, ready for the kernels.
///
/// Where the frozen product quantizes x, x · aᵀ takes the same integers. `a` is then held as q8 (or q8-64) twice,
/// rounded and what the rounding left, side by side in a panel whose other half would be empty at rank
/// 8: within 2⁻¹⁶ of a row's largest value, so that only x is rounded noticeably, as it is for the
/// frozen weights. Elsewhere both products are in f32.
#[derive(Clone)]
pub struct LowRank {
    a: Packed,
    b: Packed,
    /// A panel has the high parts of [`RANKS`] ranks in its first lanes and [`FINER`] times their low parts
    /// in the others; every row of `a` divided by its largest magnitude.
    parts: Packed,
    /// These magnitudes, padded with zeros to whole panels.
    sizes: Vec<f32>,
    /// The sum of each row of `a`, padded likewise.
    sums: Vec<f32>,
}

impl LowRank {
    /// Beside a matrix of the scheme `frozen`: `a` is row-major (rank, inputs), `b` (outputs, rank) with
    /// every factor folded in.
    ///
    /// # Errors
    /// Bad input: lengths that don't fit, or values that are not finite.
    pub fn new(
        frozen: Scheme,
        rank: usize,
        [inputs, outputs]: [usize; 2],
        a: &[f32],
        b: &[f32],
    ) -> Result<LowRank> {
        let whole = Packed::pack(Scheme::F32, rank, inputs, a)?;
        let scheme = match frozen {
            Scheme::Q8Wide => Scheme::Q8Wide,
            Scheme::Q8 | Scheme::Q4 | Scheme::F16 | Scheme::F32 => Scheme::Q8,
        };
        let (parts, sizes) = parts(scheme, rank, inputs, a)?;
        let b = Packed::pack(Scheme::F32, outputs, rank, b)?;
        let sums = sizes.iter().enumerate().map(|(r, _)| {
            let row = a.get(r * inputs..(r + 1) * inputs).unwrap_or_default();
            row.iter().map(|v| f64::from(*v)).sum::<f64>() as f32
        });
        Ok(LowRank { a: whole, b, parts, sums: sums.collect(), sizes })
    }

    /// R.
    pub fn rank(&self) -> usize {
        self.a.rows()
    }

    /// (R, inputs), f32.
    pub fn a(&self) -> PackedRef<'_> {
        self.a.view()
    }

    /// (outputs, R), f32.
    pub fn b(&self) -> PackedRef<'_> {
        self.b.view()
    }

    /// y\[M, outputs\] += (x\[M, inputs\] · aᵀ) · bᵀ in f32.
    fn add(&self, k: &Kernels, x: &[f32], room: &mut Room, y: &mut [f32]) {
        let rows = y.len().checked_div(self.b.rows()).unwrap_or(0);
        room.inner.resize(rows * self.rank(), 0.0);
        k.product(&mut Job { w: self.a(), x, start: Start::Zero, y: &mut room.inner });
        k.product(&mut Job { w: self.b(), x: &room.inner, start: Start::Keep, y });
    }

    /// x · aᵀ of some rows, as [`Piece::update`] wants it, appended to `room.inner`.
    pub(super) fn inner(&self, k: &Kernels, x: &Quantized, rows: Range<usize>, room: &mut Room) {
        let (width, own) = (self.parts.rows(), rows.clone());
        room.parts.resize(rows.end * width, 0.0);
        k.product_of(self.parts.view(), x, Start::Zero, &[Piece::plain(rows)], &mut room.parts);
        let sums = self.sums.as_chunks::<RANKS>().0;
        for (panel, (size, sum)) in self.sizes.as_chunks::<RANKS>().0.iter().zip(sums).enumerate() {
            let middle = sum.map(|sum| sum * x.middle());
            for row in own.clone() {
                let parts = &room.parts[row * width + panel * PANEL..][..PANEL];
                let (high, low) = parts.split_at(RANKS);
                let u: [f32; RANKS] = std::array::from_fn(|i| {
                    size[i] * (high[i] + low[i] * (1.0 / FINER)) + middle[i]
                });
                room.inner.extend_from_slice(&u);
            }
        }
    }

    /// Values of u that a row has.
    fn padded(&self) -> usize {
        self.sizes.len()
    }
}

/// `a` as [`LowRank::parts`], and the largest magnitude of each row.
fn parts(scheme: Scheme, rank: usize, inputs: usize, a: &[f32]) -> Result<(Packed, Vec<f32>)> {
    let row = |r: usize| &a[r * inputs..(r + 1) * inputs];
    let largest = |r: usize| row(r).iter().fold(0f32, |m, v| m.max(v.abs()));
    let mut sizes: Vec<f32> = (0..rank).map(largest).collect();
    let mut unit = a.to_vec();
    for (row, size) in unit.chunks_exact_mut(inputs.max(1)).zip(&sizes) {
        row.iter_mut().for_each(|v| *v = if *size > 0.0 { *v / size } else { 0.0 });
    }
    let high = Packed::pack(scheme, rank, inputs, &unit)?.view().dequantize();
    let mut both = vec![0.0; rank.div_ceil(RANKS) * PANEL * inputs];
    for r in 0..rank {
        let (from, to) = (r * inputs, (r / RANKS * PANEL + r % RANKS) * inputs);
        let (unit, high) = (&unit[from..from + inputs], &high[from..from + inputs]);
        both[to..to + inputs].copy_from_slice(unit);
        let low = &mut both[to + RANKS * inputs..][..inputs];
        for ((low, unit), high) in low.iter_mut().zip(unit).zip(high) {
            *low = (unit - high) * FINER;
        }
    }
    let packed = Packed::pack(scheme, rank.div_ceil(RANKS) * PANEL, inputs, &both)?;
    sizes.resize(rank.next_multiple_of(RANKS), 0.0);
    Ok((packed, sizes))
}

/// Scratch of updates, kept from one product to the next.
#[derive(Default)]
pub(super) struct Room {
    parts: Vec<f32>,
    pub(super) inner: Vec<f32>,
}

/// Rows of a product and what is added to them.
pub(super) type Pair<'a> = (Range<usize>, &'a LowRank);

impl Room {
    /// y = bias + x · Wᵀ + updates, of integers.
    pub(super) fn product_of(
        &mut self,
        k: &Kernels,
        (w, bias): (PackedRef<'_>, Option<&[f32]>),
        x: &Quantized,
        updates: &[Pair<'_>],
        y: &mut [f32],
    ) {
        let start = bias.map_or(Start::Zero, Start::Bias);
        let all = y.len().checked_div(w.rows()).unwrap_or(0);
        if updates.is_empty() {
            return k.product_of(w, x, start, &[Piece::plain(0..all)], y);
        }
        self.inner.clear();
        for (rows, low_rank) in updates {
            low_rank.inner(k, x, rows.clone(), self);
        }
        let (mut pieces, mut done, mut inner) = (vec![], 0, &self.inner[..]);
        for (rows, low_rank) in updates {
            assert!(done <= rows.start, "updates follow each other");
            pieces.push(Piece::plain(done..rows.start));
            let (own, rest) = inner.split_at(rows.len() * low_rank.padded());
            pieces.push(Piece { rows: rows.clone(), update: Some((own, low_rank.b())) });
            (done, inner) = (rows.end, rest);
        }
        pieces.push(Piece::plain(done..all));
        k.product_of(w, x, start, &pieces, y);
    }

    /// y = bias + x · Wᵀ + updates, of floats.
    pub(super) fn product(
        &mut self,
        k: &Kernels,
        (w, bias): (PackedRef<'_>, Option<&[f32]>),
        x: &[f32],
        updates: &[Pair<'_>],
        y: &mut [f32],
    ) {
        k.product(&mut Job { w, x, start: bias.map_or(Start::Zero, Start::Bias), y });
        for (rows, low_rank) in updates {
            let x = &x[rows.start * w.cols()..rows.end * w.cols()];
            low_rank.add(k, x, self, &mut y[rows.start * w.rows()..rows.end * w.rows()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::layout::{BLOCK, WIDE, block_len};
    use crate::quant::testing::{noise, on_the_grid, some};
    use crate::quant::{Change, Inputs, Update};

    fn low_rank(frozen: Scheme, rank: usize, [inputs, outputs]: [usize; 2], seed: u64) -> LowRank {
        let (a, b) = (noise(rank * inputs, seed), noise(outputs * rank, seed + 1));
        LowRank::new(frozen, rank, [inputs, outputs], &a, &b).unwrap()
    }

    fn run(
        k: &'static Kernels,
        (w, bias): (PackedRef<'_>, &[f32]),
        x: &[f32],
        updates: &[Pair<'_>],
    ) -> Vec<f32> {
        let changes: Vec<Change> =
            updates.iter().map(|(_, low_rank)| Change::from((*low_rank).clone())).collect();
        let updates: Vec<Update> = updates
            .iter()
            .zip(&changes)
            .map(|((rows, _), change)| Update { rows: rows.clone(), change })
            .collect();
        let mut y = vec![f32::NAN; x.len() / w.cols() * w.rows()];
        Inputs::with(k, x, w.cols()).product(w, Some(bias), &updates, &mut y);
        y
    }

    /// In f64: the update of one row, and the bound of what the kernels may be off. Where x is taken
    /// as integers, `a` is held within 2⁻¹⁶ of its row's largest value (and half an f16 step of the
    /// low part's scale); sums of n terms are off by n · 2⁻²⁴ of their magnitudes.
    fn slow(low: &LowRank, x: &[f32], integers: bool) -> Vec<(f64, f64)> {
        let (a, b) = (low.a().dequantize(), low.b().dequantize());
        let rounding = (x.len() + low.rank() + 4) as f64 * 6e-8;
        let inner: Vec<(f64, f64)> = a
            .chunks(x.len())
            .map(|a| {
                let terms = a.iter().zip(x).map(|(a, x)| f64::from(*a) * f64::from(*x));
                let (sum, size) = terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()));
                let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
                let all: f64 = x.iter().map(|x| f64::from(x.abs())).sum();
                let held = if integers { 1.6e-5 * f64::from(largest) * all } else { 0.0 };
                (sum, held + rounding * (size + f64::from(largest) * all))
            })
            .collect();
        let row = |b: &[f32]| {
            let terms = inner.iter().zip(b);
            terms.fold((0.0, 0.0), |(sum, off), ((u, bound), b)| {
                let b = f64::from(*b);
                (sum + u * b, off + bound * b.abs() + rounding * (u * b).abs())
            })
        };
        b.chunks(low.rank()).map(row).collect()
    }

    #[test]
    fn every_kernel_adds_the_update_to_its_rows_alone() {
        let sizes =
            [(1, 31, 5), (4, 64, 16), (8, 70, 33), (9, 33, 17), (16, 100, 40), (21, 32, 48)];
        for (rank, cols, outputs) in some(sizes, 3) {
            for (scheme, m) in
                some(Scheme::ALL.into_iter().flat_map(|s| [1, 5, 40].map(|m| (s, m))), 5)
            {
                let shape = [cols, outputs];
                let one = low_rank(scheme, rank, shape, 3);
                let two = low_rank(scheme, 3, shape, 9);
                let w = Packed::pack(scheme, outputs, cols, &noise(outputs * cols, 1)).unwrap();
                let (x, bias) = (noise(m * cols, 2), noise(outputs, 7));
                // Rows of one, rows of none, rows of the other, rows of none.
                let (first, second) = (0..m.div_ceil(3), m / 2 + 1..(m * 4 / 5).max(m / 2 + 1));
                let updates = [(first, &one), (second, &two)];
                let updates = &updates[..if m == 1 { 1 } else { 2 }];
                for k in Kernels::available() {
                    let what = format!("{} {} rank {rank} {m}x{cols}", k.name, scheme.name());
                    let layer = (w.view(), &bias[..]);
                    let (plain, y) = (run(k, layer, &x, &[]), run(k, layer, &x, updates));
                    let integers = k.quantizes(w.view());
                    for row in 0..m {
                        let at = row * outputs..(row + 1) * outputs;
                        let (plain, y) = (&plain[at.clone()], &y[at]);
                        let Some(update) = updates.iter().find(|u| u.0.contains(&row)) else {
                            assert_eq!(plain, y, "{what}: row {row} has no update");
                            continue;
                        };
                        let mut x = x[row * cols..(row + 1) * cols].to_vec();
                        if integers {
                            x = on_the_grid(&x, cols, block_len(scheme));
                        }
                        let want = slow(update.1, &x, integers);
                        for ((y, plain), (add, bound)) in y.iter().zip(plain).zip(want) {
                            let off = (f64::from(*y) - f64::from(*plain) - add).abs();
                            // y and plain are sums in two orders.
                            let order = (cols + rank) as f64 * 1.2e-7 * (cols as f64 + add.abs());
                            assert!(off <= bound + order, "{what}: off by {off}, {bound} {order}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_whatever_the_others_carry() {
        let (cols, outputs, m) = (70, 40, 30);
        for scheme in [Scheme::Q8, Scheme::Q8Wide] {
            let w = Packed::pack(scheme, outputs, cols, &noise(outputs * cols, 1)).unwrap();
            let (x, bias) = (noise(m * cols, 2), noise(outputs, 7));
            let shape = [cols, outputs];
            let (one, two) = (low_rank(scheme, 8, shape, 3), low_rank(scheme, 2, shape, 9));
            for k in Kernels::available() {
                let layer = (w.view(), &bias[..]);
                let all = run(k, layer, &x, &[(0..m, &one)]);
                let updates = [(0..7, &two), (7..20, &one), (25..29, &two)];
                let mixed = run(k, layer, &x, &updates);
                assert_eq!(all[7 * outputs..20 * outputs], mixed[7 * outputs..20 * outputs]);
                let alone = run(k, layer, &x[9 * cols..10 * cols], &[(0..1, &one)]);
                assert_eq!(all[9 * outputs..10 * outputs], alone, "{}", k.name);
            }
        }
    }

    #[test]
    fn both_parts_together_are_a_to_fifteen_bits_whatever_its_size() {
        let schemes = [(Scheme::Q8, BLOCK), (Scheme::Q8Wide, WIDE)];
        let scales = [1e-40, 1e-30, 1e-6, 1.0, 1e30];
        for ((scheme, block), scale) in schemes.iter().flat_map(|s| scales.map(|f| (*s, f))) {
            let (rank, cols) = (11, 70);
            let mut a: Vec<f32> = noise(rank * cols, 3).iter().map(|v| v * scale).collect();
            // A row of zeros, and one whose second block is far smaller than the first.
            a[..cols].fill(0.0);
            a[cols + block..2 * cols].iter_mut().for_each(|v| *v *= 1e-4);
            let low = LowRank::new(scheme, rank, [cols, 1], &a, &noise(rank, 1)).unwrap();
            let held = low.parts.view().dequantize();
            for r in 0..rank {
                let at = r / RANKS * PANEL + r % RANKS;
                let (high, lower) = (&held[at * cols..], &held[(at + RANKS) * cols..]);
                for i in 0..cols {
                    let a = f64::from(a[r * cols + i]);
                    let back = f64::from(low.sizes[r])
                        * (f64::from(high[i]) + f64::from(lower[i]) / f64::from(FINER));
                    let bound = 1.6e-5 * f64::from(low.sizes[r]);
                    assert!((a - back).abs() <= bound, "{scale:e} {r} {i}: {a:e} {back:e}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let new = |a: &[f32], b: &[f32]| LowRank::new(Scheme::Q8, 2, [3, 2], a, b);
        assert!(new(&[1.0; 6], &[1.0; 4]).is_ok());
        assert!(new(&[1.0; 5], &[1.0; 4]).is_err());
        assert!(new(&[1.0; 6], &[1.0; 5]).is_err());
        assert!(new(&[1.0, 1.0, 1.0, f32::NAN, 1.0, 1.0], &[1.0; 4]).is_err());
        assert!(new(&[1.0; 6], &[1.0, f32::INFINITY, 1.0, 1.0]).is_err());
    }
}
