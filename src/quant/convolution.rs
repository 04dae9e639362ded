//! A k×k convolution as a product over patches of which only a stretch is ever there.

use super::conv::stretches;
use super::dispatch::kernels;
use super::kernels::{Job, Kernels, Quantized, Start};
use super::layout::BLOCK;
use super::threads::piece;
use super::{ConvGeometry, PackedRef, im2col};

/// Bytes of the patches of one stretch: they stay in the L2 cache while all panels pass.
const STRETCH: usize = 1 << 18;

/// y \[N·OH·OW, rows\] from x \[N, H, W, C\] by filters (rows, kh·kw·C), channels innermost.
///
/// Where integer kernels run and a block lies in one input pixel (C is a multiple of 32), every pixel
/// is quantized once and patches are gathered from its integers; else patches are gathered as floats.
/// The bits are the same.
pub struct Convolution<'a> {
    kernels: &'static Kernels,
    geometry: ConvGeometry,
    w: PackedRef<'a>,
    x: &'a [f32],
    pixels: Option<Quantized>,
}

/// The patches of one stretch of a convolution, kept from stretch to stretch by who computes them.
#[derive(Default)]
pub struct Patches {
    rows: Quantized,
    floats: Vec<f32>,
}

impl<'a> Convolution<'a> {
    /// Quantizes x if that serves.
    ///
    /// # Panics
    /// If x or the columns of `w` don't fit the geometry.
    pub fn new(geometry: &ConvGeometry, w: PackedRef<'a>, x: &'a [f32]) -> Convolution<'a> {
        Convolution::with(kernels(), geometry, w, x)
    }

    fn with(
        kernels: &'static Kernels,
        g: &ConvGeometry,
        w: PackedRef<'a>,
        x: &'a [f32],
    ) -> Convolution<'a> {
        assert_eq!(x.len(), g.batch * g.height * g.width * g.channels, "x has N·H·W·C values");
        assert_eq!(w.cols(), g.patch_len(), "W has kh·kw·C columns");
        // With strides beyond the kernel some pixels are in no patch.
        let reused = g.kernel[0] * g.kernel[1] > g.stride[0] * g.stride[1];
        let whole = g.channels > 0 && g.channels.is_multiple_of(BLOCK);
        let pixels = if reused && whole { kernels.quantized(w, x, g.channels) } else { None };
        Convolution { kernels, geometry: *g, w, x, pixels }
    }

    /// Output pixels that are best computed together where `threads` share all of them.
    pub(crate) fn stretch(&self, threads: usize) -> usize {
        let value = if self.pixels.is_some() { 1 } else { 4 };
        let patch = (self.geometry.patch_len() * value).max(1);
        let all = self.geometry.pixels().max(1);
        let most = (STRETCH / patch).clamp(48, 256).min(all);
        match threads {
            1 => most,
            _ => piece(threads, all).min(most),
        }
    }

    /// Output pixels from `first` on, as many as y holds.
    ///
    /// # Panics
    /// If y holds no whole number of pixels, or more than there are from `first` on.
    pub fn product(
        &self,
        patches: &mut Patches,
        first: usize,
        bias: Option<&[f32]>,
        y: &mut [f32],
    ) {
        let g = &self.geometry;
        let count = y.len().checked_div(self.w.rows()).unwrap_or(0);
        assert!(first + count <= g.pixels(), "the pixels lie inside the output");
        let start = bias.map_or(Start::Zero, Start::Bias);
        let Some(pixels) = &self.pixels else {
            patches.floats.resize(count * g.patch_len(), 0.0);
            im2col(g, self.x, first, count, &mut patches.floats);
            return self.kernels.product(&mut Job { w: self.w, x: &patches.floats, start, y });
        };
        let (rows, blocks) = (&mut patches.rows, g.patch_len() / BLOCK);
        if rows.blocks != blocks || rows.x.len() < count * g.patch_len() {
            *rows = Quantized::zeroed(count, blocks);
        }
        stretches(g, first, count, |to, from, len| {
            let (block, blocks) = (to / BLOCK, len / BLOCK);
            let Some(from) = from else {
                rows.x[to..to + len].fill(0);
                rows.scales[block..block + blocks].fill(0.0);
                rows.starts[block..block + blocks].fill(0);
                return;
            };
            rows.x[to..to + len].copy_from_slice(&pixels.x[from..from + len]);
            let from = from / BLOCK;
            rows.scales[block..block + blocks].copy_from_slice(&pixels.scales[from..from + blocks]);
            rows.starts[block..block + blocks].copy_from_slice(&pixels.starts[from..from + blocks]);
        });
        self.kernels.product_of(self.w, rows, start, y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::conv::tests::geometries;
    use crate::quant::testing::noise;
    use crate::quant::{Packed, Scheme};

    /// The geometries of the other tests with channels that make whole blocks, and as they are.
    #[test]
    fn it_is_the_product_over_all_patches_bit_by_bit() {
        for plain in geometries() {
            for channels in [plain.channels, 32, 64] {
                let g = ConvGeometry { channels, ..plain };
                let x = noise(g.batch * g.height * g.width * channels, 1);
                let mut patches = vec![0.0; g.pixels() * g.patch_len()];
                im2col(&g, &x, 0, g.pixels(), &mut patches);
                for (scheme, rows) in Scheme::ALL.into_iter().zip([33, 17, 16, 5]) {
                    let values = noise(rows * g.patch_len(), 2);
                    let w = Packed::pack(scheme, rows, g.patch_len(), &values).unwrap();
                    let bias = noise(rows, 3);
                    for k in Kernels::available() {
                        let mut want = vec![f32::NAN; g.pixels() * rows];
                        let start = Start::Bias(&bias);
                        k.product(&mut Job { w: w.view(), x: &patches, start, y: &mut want });
                        let conv = Convolution::with(k, &g, w.view(), &x);
                        let mut patches = Patches::default();
                        let mut y = vec![f32::NAN; want.len()];
                        for (i, y) in y.chunks_mut(7 * rows).enumerate() {
                            conv.product(&mut patches, 7 * i, Some(&bias), y);
                        }
                        assert_eq!(y, want, "{} {} {g:?}", k.name, scheme.name());
                    }
                }
            }
        }
    }
}
