//! Rows that several products read: quantized once.

use super::dispatch::kernels;
use super::kernels::{Quantized, Start};
use super::product::product;
use super::threads::piece;
use super::{PackedRef, Scheme};

/// x\[M, cols\] for products with several matrices. The results have the bits that
/// [`product`] gives.
pub struct Inputs<'a> {
    x: &'a [f32],
    cols: usize,
    quantized: Option<(Scheme, Quantized)>,
}

impl<'a> Inputs<'a> {
    /// More rows than this don't stay in the cache between products: each quantizes them anew.
    pub const MAX_ROWS: usize = 256;

    /// Rows of `cols` values.
    ///
    /// # Panics
    /// If x is not whole rows.
    pub fn new(x: &'a [f32], cols: usize) -> Inputs<'a> {
        assert!(x.is_empty() || x.len().is_multiple_of(cols.max(1)), "x is whole rows");
        Inputs { x, cols, quantized: None }
    }

    /// Rows that are best computed together where `threads` share `rows` of them; at most
    /// [`Inputs::MAX_ROWS`].
    pub(crate) fn stretch(threads: usize, rows: usize) -> usize {
        match threads {
            1 => Inputs::MAX_ROWS,
            _ => piece(threads, rows).min(Inputs::MAX_ROWS),
        }
    }

    /// As [`product`] of x.
    ///
    /// # Panics
    /// If the lengths don't belong to one M.
    pub fn product(&mut self, w: PackedRef<'_>, bias: Option<&[f32]>, y: &mut [f32]) {
        let x = self.x;
        match self.quantized(w) {
            Some(q) => kernels().product_of(w, q, bias.map_or(Start::Zero, Start::Bias), y),
            None => product(w, x, bias, y),
        }
    }

    fn quantized(&mut self, w: PackedRef<'_>) -> Option<&Quantized> {
        let rows = self.x.len().checked_div(self.cols)?;
        if rows == 0 || rows > Inputs::MAX_ROWS || w.keeps_inputs() || w.cols() != self.cols {
            return None;
        }
        if self.quantized.as_ref().is_none_or(|(scheme, _)| *scheme != w.scheme()) {
            let fresh = kernels().quantized(w, self.x, self.cols)?;
            self.quantized = Some((w.scheme(), fresh));
        }
        self.quantized.as_ref().map(|(_, q)| q)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Packed;
    use crate::quant::testing::noise;

    #[test]
    fn products_of_shared_inputs_have_the_same_bits() {
        for m in [1, 3, 17, 300] {
            let x = noise(m * 70, 1);
            let mut inputs = Inputs::new(&x, 70);
            for (scheme, rows) in
                [(Scheme::Q8, 33), (Scheme::Q4, 20), (Scheme::F32, 5), (Scheme::Q4, 16)]
            {
                let w = Packed::pack(scheme, rows, 70, &noise(rows * 70, 2)).unwrap();
                let bias = noise(rows, 3);
                let (mut want, mut got) = (vec![0.0; m * rows], vec![0.0; m * rows]);
                product(w.view(), &x, Some(&bias), &mut want);
                inputs.product(w.view(), Some(&bias), &mut got);
                assert_eq!(want, got);
            }
        }
    }
}
