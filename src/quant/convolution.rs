//! A k×k convolution as a product over patches of which only a stretch is ever there.

use super::change::{Operand, Update};
use super::conv::stretches;
use super::dispatch::kernels;
use super::kernels::{Kernels, Quantized};
use super::layout::block_len;
use super::low_rank::Room;
use super::threads::piece;
use super::{ConvGeometry, PackedRef, im2col};

/// Bytes of the patches of one stretch: they stay in the L2 cache while all panels pass.
const STRETCH: usize = 1 << 18;

/// y \[N·OH·OW, rows\] from x \[N, H, W, C\] by filters (rows, kh·kw·C), channels innermost.
///
/// Where integer kernels run and a block lies in one input pixel (C is a multiple of its columns), every pixel
/// is quantized once and patches are gathered from its integers; else patches are gathered as floats.
/// The bits are the same.
pub struct Convolution<'a> {
    kernels: &'static Kernels,
    geometry: ConvGeometry,
    w: PackedRef<'a>,
    x: &'a [f32],
    pixels: Option<Quantized>,
}

/// The patches of one stretch of a convolution, as integers if the kernels take them so, kept from
/// stretch to stretch by who computes them.
#[derive(Default)]
pub struct Patches {
    rows: Quantized,
    floats: Vec<f32>,
    room: Room,
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
        let whole = g.channels > 0 && g.channels.is_multiple_of(block_len(w.scheme()));
        let pixels = (reused && whole && kernels.quantizes(w)).then(|| {
            let mut pixels = Quantized::empty(w.scheme(), g.channels);
            kernels.quantize(x, g.channels, &mut pixels);
            pixels
        });
        Convolution { kernels, geometry: *g, w, x, pixels }
    }

    /// Output pixels that are best computed together where `threads` share `pixels` of them.
    pub(crate) fn stretch(&self, threads: usize, pixels: usize) -> usize {
        let value = if self.pixels.is_some() { 1 } else { 4 };
        let patch = (self.geometry.patch_len() * value).max(1);
        let most = (STRETCH / patch).clamp(48, 256).min(pixels.max(1));
        match threads {
            1 => most,
            _ => piece(threads, pixels).min(most),
        }
    }

    /// Output pixels from `first` on, as many as y holds, plus the updates of pixels, which are counted
    /// from `first` on and follow each other.
    ///
    /// # Panics
    /// If y holds no whole number of pixels, or more than there are from `first` on, or an update
    /// doesn't fit.
    pub fn product(
        &self,
        patches: &mut Patches,
        first: usize,
        bias: Option<&[f32]>,
        updates: &[Update<'_>],
        y: &mut [f32],
    ) {
        let g = &self.geometry;
        let count = y.len().checked_div(self.w.rows()).unwrap_or(0);
        assert!(first + count <= g.pixels(), "the pixels lie inside the output");
        let layer = (self.w, bias);
        let Patches { rows, floats, room } = patches;
        if !rows.fits(self.w) {
            *rows = Quantized::empty(self.w.scheme(), g.patch_len());
        }
        let floats_too = updates.iter().any(|u| u.change.needs_floats());
        if let (Some(pixels), false) = (&self.pixels, floats_too) {
            gather(g, first, count, pixels, rows);
            let x = Operand { quantized: Some(rows), floats: &[] };
            return room.changed(self.kernels, layer, x, updates, y);
        }
        let patches = if g.kernel == [1, 1] && g.stride == [1, 1] && g.pads == [0; 4] {
            // A patch is a pixel.
            &self.x[first * g.channels..(first + count) * g.channels]
        } else {
            floats.resize(count * g.patch_len(), 0.0);
            im2col(g, self.x, first, count, floats);
            floats
        };
        if self.kernels.quantizes(self.w) {
            self.kernels.quantize(patches, g.patch_len(), rows);
            let x = Operand { quantized: Some(rows), floats: patches };
            room.changed(self.kernels, layer, x, updates, y);
        } else {
            let x = Operand { quantized: None, floats: patches };
            room.changed(self.kernels, layer, x, updates, y);
        }
    }
}

/// The patches of output pixels `first .. first + count` from quantized input pixels.
fn gather(g: &ConvGeometry, first: usize, count: usize, pixels: &Quantized, rows: &mut Quantized) {
    rows.reserve(count);
    stretches(g, first, count, |to, from, len| {
        let (block, blocks) = (to / pixels.block, len / pixels.block);
        let Some(from) = from else {
            rows.x[to..to + len].fill(0);
            rows.scales[block..block + blocks].fill(0.0);
            rows.starts[block..block + blocks].fill(0);
            return;
        };
        rows.x[to..to + len].copy_from_slice(&pixels.x[from..from + len]);
        let from = from / pixels.block;
        rows.scales[block..block + blocks].copy_from_slice(&pixels.scales[from..from + blocks]);
        rows.starts[block..block + blocks].copy_from_slice(&pixels.starts[from..from + blocks]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::conv::tests::geometries;
    use crate::quant::testing::{noise, some};
    use crate::quant::{Change, Inputs, LowRank, Packed, Scheme};

    /// The geometries of the other tests with channels that make whole blocks, and as they are.
    #[test]
    fn it_is_the_product_over_all_patches_bit_by_bit() {
        for plain in some(geometries(), 9) {
            for channels in [plain.channels, 32, 64] {
                let g = ConvGeometry { channels, ..plain };
                let x = noise(g.batch * g.height * g.width * channels, 1);
                let mut patches = vec![0.0; g.pixels() * g.patch_len()];
                im2col(&g, &x, 0, g.pixels(), &mut patches);
                for (scheme, rows) in Scheme::ALL.into_iter().zip([33, 17, 19, 16, 5]) {
                    let values = noise(rows * g.patch_len(), 2);
                    let w = Packed::pack(scheme, rows, g.patch_len(), &values).unwrap();
                    let bias = noise(rows, 3);
                    let cols = g.patch_len();
                    let (one, two): (Change, Change) = [(2, 5), (9, 6)]
                        .map(|(rank, seed)| {
                            let (a, b) = (noise(rank * cols, seed), noise(rows * rank, seed));
                            LowRank::new(scheme, rank, [cols, rows], &a, &b).unwrap().into()
                        })
                        .into();
                    let half = g.pixels() / 2;
                    let updates = [
                        Update { rows: 0..half, change: &one },
                        Update { rows: half + 1..g.pixels(), change: &two },
                    ];
                    for k in Kernels::available() {
                        let mut want = vec![f32::NAN; g.pixels() * rows];
                        let mut inputs = Inputs::with(k, &patches, cols);
                        inputs.product(w.view(), Some(&bias), &updates, &mut want);
                        let conv = Convolution::with(k, &g, w.view(), &x);
                        let mut scratch = Patches::default();
                        let mut y = vec![f32::NAN; want.len()];
                        for (i, y) in y.chunks_mut(7 * rows).enumerate() {
                            let (first, end) = (7 * i, 7 * i + y.len() / rows);
                            let mut here = updates.to_vec();
                            for update in &mut here {
                                let rows = &update.rows;
                                update.rows = rows.start.clamp(first, end) - first
                                    ..rows.end.clamp(first, end) - first;
                            }
                            conv.product(&mut scratch, first, Some(&bias), &here, y);
                        }
                        assert_eq!(y, want, "{} {} {g:?}", k.name, scheme.name());
                    }
                }
            }
        }
    }
}
