//! Channels-last convolution geometry and the matrix form (im2col) with its adjoint.

use crate::error::{Error, Result};

/// The geometry of a 2-D convolution over NHWC data, shared by the helpers of this layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvGeometry {
    /// N.
    pub batch: usize,
    /// H of the input.
    pub height: usize,
    /// W of the input.
    pub width: usize,
    /// C of the input.
    pub channels: usize,
    /// kh, kw.
    pub kernel: [usize; 2],
    /// Along H, along W.
    pub stride: [usize; 2],
    /// Along H, along W.
    pub dilation: [usize; 2],
    /// Zeros around the input: top, left, bottom, right.
    pub pads: [usize; 4],
}

impl ConvGeometry {
    /// OH; 0 if the kernel does not fit.
    pub fn out_height(&self) -> usize {
        self.out(0, self.height)
    }

    /// OW; 0 if the kernel does not fit.
    pub fn out_width(&self) -> usize {
        self.out(1, self.width)
    }

    /// Values of one patch: kh · kw · C.
    pub fn patch_len(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.channels
    }

    /// Output pixels: N · OH · OW.
    pub fn pixels(&self) -> usize {
        self.batch * self.out_height() * self.out_width()
    }

    /// That every stride, dilation and kernel side is at least 1, that the kernel fits, and that all
    /// sizes are small enough to be multiplied.
    ///
    /// # Errors
    /// The first of these that does not hold.
    pub fn check(&self) -> Result<()> {
        let positive = [self.kernel, self.stride, self.dilation].concat();
        if positive.contains(&0) {
            return Err(Error::bad_input(format!(
                "convolution with kernel {:?}, stride {:?}, dilation {:?}: all must be at least 1",
                self.kernel, self.stride, self.dilation
            )));
        }
        let sides = [self.height, self.width, self.batch, self.channels];
        let spans = [self.kernel, self.stride, self.dilation].concat();
        let small = |v: &usize| *v <= u32::MAX as usize / 8;
        let product = |values: &[usize]| {
            let mut product = 1usize;
            for v in values {
                product = product.checked_mul(*v)?;
            }
            (product <= isize::MAX as usize / 4).then_some(())
        };
        let fits = sides.iter().chain(&spans).chain(&self.pads).all(small)
            && product(&sides).is_some()
            && product(&[self.kernel[0], self.kernel[1], self.channels]).is_some()
            && product(&[self.kernel[0], self.dilation[0], 4]).is_some()
            && product(&[self.kernel[1], self.dilation[1], 4]).is_some();
        if !fits {
            return Err(Error::bad_input("convolution sizes are too large"));
        }
        let (oh, ow) = (self.out_height(), self.out_width());
        if oh == 0 || ow == 0 {
            return Err(Error::bad_input(format!(
                "kernel {:?} with dilation {:?} does not fit an input of ({}, {}) with pads {:?}",
                self.kernel, self.dilation, self.height, self.width, self.pads
            )));
        }
        if product(&[self.batch, oh, ow, self.channels]).is_none() {
            return Err(Error::bad_input("convolution sizes are too large"));
        }
        Ok(())
    }

    fn out(&self, axis: usize, side: usize) -> usize {
        if self.kernel[axis] == 0 || self.stride[axis] == 0 {
            return 0;
        }
        let padded = side + self.pads[axis] + self.pads[axis + 2];
        let span = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
        if padded < span { 0 } else { (padded - span) / self.stride[axis] + 1 }
    }

    /// Where tap `k` of output position `o` lies along `axis`, if inside the input.
    pub(super) fn source(&self, axis: usize, o: usize, k: usize) -> Option<usize> {
        let side = if axis == 0 { self.height } else { self.width };
        let at = (o * self.stride[axis] + k * self.dilation[axis]).checked_sub(self.pads[axis])?;
        (at < side).then_some(at)
    }

    fn assert_window(&self, x: usize, first: usize, count: usize, patches: usize) {
        let len = self.batch * self.height * self.width * self.channels;
        assert_eq!(x, len, "the input has N·H·W·C values");
        assert!(first + count <= self.pixels(), "the window lies inside the output");
        assert_eq!(patches, count * self.patch_len(), "a patch has kh·kw·C values");
    }
}

/// Calls `run(patch offset, Some(input offset) or None for padding, values)` for every stretch of
/// one window of output pixels; stretches side by side in the input come as one.
pub(super) fn stretches(
    g: &ConvGeometry,
    first: usize,
    count: usize,
    mut run: impl FnMut(usize, Option<usize>, usize),
) {
    let (oh, ow) = (g.out_height(), g.out_width());
    let (c, [kh, kw]) = (g.channels, g.kernel);
    let row = kw * c;
    for i in 0..count {
        let pixel = first + i;
        let (n, oy, ox) = (pixel / (oh * ow), pixel / ow % oh, pixel % ow);
        let whole_row = g.dilation[1] == 1
            && ox * g.stride[1] >= g.pads[1]
            && ox * g.stride[1] + kw <= g.pads[1] + g.width;
        for ky in 0..kh {
            let out = (i * kh + ky) * row;
            let Some(iy) = g.source(0, oy, ky) else {
                run(out, None, row);
                continue;
            };
            let line = (n * g.height + iy) * g.width;
            if whole_row {
                run(out, Some((line + ox * g.stride[1] - g.pads[1]) * c), row);
                continue;
            }
            for kx in 0..kw {
                let from = g.source(1, ox, kx).map(|ix| (line + ix) * c);
                run(out + kx * c, from, c);
            }
        }
    }
}

/// The patches of output pixels `first .. first + count` of the flattened N·OH·OW: `out` is
/// \[count, kh·kw·C\], channels innermost, zeros where the kernel reaches over the edge. `x` is
/// \[N, H, W, C\].
///
/// # Panics
/// If a length does not fit the geometry.
pub fn im2col(g: &ConvGeometry, x: &[f32], first: usize, count: usize, out: &mut [f32]) {
    g.assert_window(x.len(), first, count, out.len());
    stretches(g, first, count, |to, from, len| match from {
        Some(from) => out[to..to + len].copy_from_slice(&x[from..from + len]),
        None => out[to..to + len].fill(0.0),
    });
}

/// Adds patches, \[count, kh·kw·C\] as [`im2col`] makes them, to where they came from in `dx`,
/// \[N, H, W, C\]: the adjoint of [`im2col`].
///
/// # Panics
/// If a length does not fit the geometry.
pub fn col2im_add(g: &ConvGeometry, patches: &[f32], first: usize, count: usize, dx: &mut [f32]) {
    g.assert_window(dx.len(), first, count, patches.len());
    stretches(g, first, count, |at, to, len| {
        if let Some(to) = to {
            for (dx, p) in dx[to..to + len].iter_mut().zip(&patches[at..at + len]) {
                *dx += p;
            }
        }
    });
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::quant::testing::some;

    /// Geometries with every stride, dilation and pad on its own edge.
    pub(crate) fn geometries() -> Vec<ConvGeometry> {
        let g = |height, width, channels, kernel, stride, dilation, pads| ConvGeometry {
            batch: 2,
            height,
            width,
            channels,
            kernel,
            stride,
            dilation,
            pads,
        };
        vec![
            g(5, 7, 3, [3, 3], [1, 1], [1, 1], [1, 1, 1, 1]),
            g(8, 9, 17, [3, 3], [2, 2], [1, 1], [0, 0, 1, 1]),
            g(9, 12, 16, [5, 5], [2, 2], [1, 1], [2, 2, 2, 2]),
            g(6, 17, 40, [5, 5], [1, 1], [1, 1], [2, 2, 2, 2]),
            g(7, 20, 35, [5, 3], [1, 2], [1, 2], [3, 0, 1, 2]),
            g(4, 4, 2, [1, 1], [1, 1], [1, 1], [0, 0, 0, 0]),
            g(6, 6, 4, [1, 1], [3, 2], [1, 1], [0, 1, 2, 0]),
            g(3, 2, 5, [3, 3], [1, 1], [2, 2], [4, 4, 4, 4]),
            g(11, 23, 33, [3, 3], [1, 1], [1, 1], [0, 0, 0, 0]),
            g(1, 30, 16, [1, 7], [1, 3], [1, 1], [0, 3, 0, 3]),
        ]
    }

    /// Small integers, so that sums are exact in any order.
    pub(crate) fn integers(n: usize, seed: usize) -> Vec<f32> {
        let of = |i: u64| ((i * 2_654_435_761 + seed as u64 * 97) >> 7 & 15) as f32 - 7.0;
        (0..n as u64).map(of).collect()
    }

    pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    fn value(g: &ConvGeometry, x: &[f32], n: usize, y: isize, x_at: isize, c: usize) -> f32 {
        if y < 0 || x_at < 0 || y >= g.height as isize || x_at >= g.width as isize {
            return 0.0;
        }
        x[((n * g.height + y as usize) * g.width + x_at as usize) * g.channels + c]
    }

    #[test]
    fn patches_are_what_the_kernel_sees() {
        for g in some(geometries(), 5) {
            g.check().unwrap();
            let x = integers(g.batch * g.height * g.width * g.channels, 1);
            let (first, count) = (1, g.pixels() - 2);
            let mut patches = vec![f32::NAN; count * g.patch_len()];
            im2col(&g, &x, first, count, &mut patches);
            let mut at = 0;
            for pixel in first..first + count {
                let (oh, ow) = (g.out_height(), g.out_width());
                let (n, oy, ox) = (pixel / (oh * ow), pixel / ow % oh, pixel % ow);
                for ky in 0..g.kernel[0] {
                    for kx in 0..g.kernel[1] {
                        for c in 0..g.channels {
                            let place = |o: usize, k: usize, axis: usize| {
                                (o * g.stride[axis] + k * g.dilation[axis]) as isize
                                    - g.pads[axis] as isize
                            };
                            let want = value(&g, &x, n, place(oy, ky, 0), place(ox, kx, 1), c);
                            assert_eq!(patches[at], want, "{g:?} pixel {pixel}");
                            at += 1;
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn adding_patches_back_is_the_adjoint() {
        for g in some(geometries(), 5) {
            let x = integers(g.batch * g.height * g.width * g.channels, 1);
            let (first, count) = (2, g.pixels() - 2);
            let mut patches = vec![0.0; count * g.patch_len()];
            im2col(&g, &x, first, count, &mut patches);
            let other = integers(patches.len(), 2);
            let mut dx = vec![1.0; x.len()];
            col2im_add(&g, &other, first, count, &mut dx);
            dx.iter_mut().for_each(|v| *v -= 1.0);
            assert_eq!(dot(&patches, &other), dot(&x, &dx), "{g:?}");
        }
    }

    #[test]
    fn impossible_geometries_are_refused() {
        let good = geometries()[0];
        for bad in [
            ConvGeometry { stride: [0, 1], ..good },
            ConvGeometry { kernel: [3, 0], ..good },
            ConvGeometry { kernel: [9, 9], ..good },
            ConvGeometry { dilation: [1, 1 << 30], ..good },
            ConvGeometry { pads: [usize::MAX / 2, 0, 0, 0], ..good },
            ConvGeometry { height: 1 << 28, width: 1 << 28, channels: 1 << 20, ..good },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
