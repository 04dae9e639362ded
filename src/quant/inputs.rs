//! Rows that several products read: quantized once.

use super::PackedRef;
use super::change::{Operand, Update};
use super::dispatch::kernels;
use super::kernels::{Kernels, Quantized};
use super::low_rank::Room;
use super::threads::piece;

/// x\[M, cols\] for products with several matrices. The results have the bits that
/// [`product`](super::product) gives.
pub struct Inputs<'a> {
    kernels: &'static Kernels,
    x: &'a [f32],
    cols: usize,
    /// For each size of block that was asked for.
    quantized: Vec<Quantized>,
    room: Room,
}

impl<'a> Inputs<'a> {
    /// More rows than this don't stay in the cache between products.
    pub const MAX_ROWS: usize = 256;

    /// Rows of `cols` values.
    ///
    /// # Panics
    /// If x is not whole rows.
    pub fn new(x: &'a [f32], cols: usize) -> Inputs<'a> {
        Inputs::with(kernels(), x, cols)
    }

    pub(super) fn with(kernels: &'static Kernels, x: &'a [f32], cols: usize) -> Inputs<'a> {
        assert!(x.is_empty() || x.len().is_multiple_of(cols.max(1)), "x is whole rows");
        Inputs { kernels, x, cols, quantized: vec![], room: Room::default() }
    }

    /// Rows that are best computed together where `threads` share `rows` of them; at most
    /// [`Inputs::MAX_ROWS`].
    pub(crate) fn stretch(threads: usize, rows: usize) -> usize {
        match threads {
            1 => Inputs::MAX_ROWS,
            _ => piece(threads, rows).min(Inputs::MAX_ROWS),
        }
    }

    /// As [`product`](super::product) of x, plus the updates of rows, which follow each other.
    ///
    /// # Panics
    /// If the lengths don't belong to one M, or an update doesn't fit.
    pub fn product(
        &mut self,
        w: PackedRef<'_>,
        bias: Option<&[f32]>,
        updates: &[Update<'_>],
        y: &mut [f32],
    ) {
        if !self.kernels.quantizes(w) {
            let x = Operand { quantized: None, floats: self.x };
            return self.room.changed(self.kernels, (w, bias), x, updates, y);
        }
        let known = self.quantized.iter().position(|q| q.fits(w));
        let at = known.unwrap_or_else(|| {
            let mut fresh = Quantized::empty(w.scheme(), self.cols);
            self.kernels.quantize(self.x, self.cols, &mut fresh);
            self.quantized.push(fresh);
            self.quantized.len() - 1
        });
        let x = Operand { quantized: self.quantized.get(at), floats: self.x };
        self.room.changed(self.kernels, (w, bias), x, updates, y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::testing::noise;
    use crate::quant::{Packed, Scheme, product};

    #[test]
    fn products_of_shared_inputs_have_the_same_bits() {
        for m in [1, 3, 17, 300] {
            let x = noise(m * 70, 1);
            let mut inputs = Inputs::new(&x, 70);
            for (scheme, rows) in
                [(Scheme::Q8, 33), (Scheme::Q4, 20), (Scheme::Q8Wide, 17), (Scheme::F32, 5)]
            {
                let w = Packed::pack(scheme, rows, 70, &noise(rows * 70, 2)).unwrap();
                let bias = noise(rows, 3);
                let (mut want, mut got) = (vec![0.0; m * rows], vec![0.0; m * rows]);
                product(w.view(), &x, Some(&bias), &mut want);
                inputs.product(w.view(), Some(&bias), &[], &mut got);
                assert_eq!(want, got);
            }
        }
    }
}
