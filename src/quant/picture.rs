//! Pictures, channels last: from channels first, and the largest of a window.

use super::ConvGeometry;

/// y \[N, P, C\] from x \[N, C, P\], P being all pixels.
///
/// # Panics
/// If the lengths are not those of (n, c, p).
pub fn channels_last([n, c, p]: [usize; 3], x: &[f32], y: &mut [f32]) {
    assert!(x.len() == n * c * p && y.len() == x.len(), "x and y have N·C·P values");
    if x.is_empty() {
        return;
    }
    for (x, y) in x.chunks_exact(c * p).zip(y.chunks_exact_mut(c * p)) {
        for (channel, x) in x.chunks_exact(p).enumerate() {
            for (y, x) in y[channel..].iter_mut().step_by(c).zip(x) {
                *y = *x;
            }
        }
    }
}

/// y \[N, OH, OW, C\]: the largest values that the windows over x \[N, H, W, C\] see, NaN where they see
/// one; padding is not seen. At least [`f32::MIN`].
///
/// # Panics
/// If a length does not fit the geometry.
pub fn max_pool(g: &ConvGeometry, x: &[f32], y: &mut [f32]) {
    let (c, oh, ow) = (g.channels, g.out_height(), g.out_width());
    assert_eq!(x.len(), g.batch * g.height * g.width * c, "x has N·H·W·C values");
    assert_eq!(y.len(), g.pixels() * c, "y has N·OH·OW·C values");
    if y.is_empty() {
        return;
    }
    for (i, y) in y.chunks_exact_mut(c).enumerate() {
        let (n, oy, ox) = (i / (oh * ow), i / ow % oh, i % ow);
        y.fill(f32::MIN);
        for ky in 0..g.kernel[0] {
            let Some(iy) = g.source(0, oy, ky) else { continue };
            for kx in 0..g.kernel[1] {
                let Some(ix) = g.source(1, ox, kx) else { continue };
                let x = &x[((n * g.height + iy) * g.width + ix) * c..][..c];
                for (y, x) in y.iter_mut().zip(x) {
                    *y = if *x > *y || x.is_nan() { *x } else { *y };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::conv::tests::{geometries, integers};
    use crate::quant::im2col;
    use crate::quant::testing::some;

    #[test]
    fn channels_are_moved_to_the_end() {
        for (n, c, p) in [(2, 3, 5), (1, 1, 4), (3, 17, 1), (0, 3, 2), (2, 0, 2)] {
            let x = integers(n * c * p, 1);
            let mut y = vec![f32::NAN; x.len()];
            channels_last([n, c, p], &x, &mut y);
            for (i, y) in y.iter().enumerate() {
                let (image, pixel, channel) = (i / (c * p), i / c % p, i % c);
                assert_eq!(*y, x[(image * c + channel) * p + pixel]);
            }
        }
    }

    #[test]
    fn a_window_gives_the_largest_of_its_patch() {
        for g in some(geometries(), 5) {
            // All above zero, so that padding never wins.
            let x = integers(g.batch * g.height * g.width * g.channels, 1);
            let x: Vec<f32> = x.iter().map(|v| v + 100.0).collect();
            let mut patches = vec![0.0; g.pixels() * g.patch_len()];
            im2col(&g, &x, 0, g.pixels(), &mut patches);
            let mut y = vec![f32::NAN; g.pixels() * g.channels];
            max_pool(&g, &x, &mut y);
            for (i, y) in y.iter().enumerate() {
                let (pixel, c) = (i / g.channels, i % g.channels);
                let patch = &patches[pixel * g.patch_len()..][..g.patch_len()];
                let largest = patch[c..].iter().step_by(g.channels).fold(0f32, |a, b| a.max(*b));
                // A window over padding alone sees nothing.
                let want = if largest == 0.0 { f32::MIN } else { largest };
                assert_eq!(*y, want, "{g:?}");
            }
        }
    }

    #[test]
    fn a_window_that_sees_nan_gives_nan() {
        let (mut seen, mut all) = (0, 0);
        for g in some(geometries(), 5) {
            let mut x = vec![1.0; g.batch * g.height * g.width * g.channels];
            x[0] = f32::NAN;
            let mut patches = vec![0.0; g.pixels() * g.patch_len()];
            im2col(&g, &x, 0, g.pixels(), &mut patches);
            let mut y = vec![0.0; g.pixels() * g.channels];
            max_pool(&g, &x, &mut y);
            for (y, patch) in y.chunks(g.channels).zip(patches.chunks(g.patch_len())) {
                let nan = patch.iter().any(|v| v.is_nan());
                assert_eq!(y[0].is_nan(), nan, "{g:?}");
                assert!(y[1..].iter().all(|v| !v.is_nan()), "{g:?}");
                (seen, all) = (seen + usize::from(nan), all + 1);
            }
        }
        assert!(0 < seen && seen < all);
    }
}
