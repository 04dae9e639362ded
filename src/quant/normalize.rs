//! Layer normalization.

use super::dispatch::kernels;

/// What [`layer_norm`] does to a row: (x - mean) / √(variance + epsilon) · scale + shift.
pub struct LayerNorm<'a> {
    /// Values of a row.
    pub width: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// `width` factors.
    pub scale: Option<&'a [f32]>,
    /// `width` summands.
    pub shift: Option<&'a [f32]>,
}

/// y\[M, width\] from x\[M, width\], row by row; a row's result doesn't depend on the others.
///
/// # Panics
/// If lengths don't fit, or width is 0.
pub fn layer_norm(norm: &LayerNorm<'_>, x: &[f32], y: &mut [f32]) {
    kernels().layer_norm(norm, x, y);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::kernels::Kernels;
    use crate::quant::testing::noise;

    #[test]
    fn every_kernel_agrees_with_the_definition() {
        for width in [1, 2, 15, 16, 17, 48, 100, 384] {
            let (x, scale, shift) = (noise(3 * width, 1), noise(width, 2), noise(width, 3));
            let norm = LayerNorm { width, epsilon: 1e-5, scale: Some(&scale), shift: Some(&shift) };
            let mut want = vec![];
            for x in x.chunks(width) {
                let n = width as f64;
                let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
                let var = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
                let factor = 1.0 / (var + 1e-5).sqrt();
                let value = |(i, v): (usize, &f32)| {
                    (f64::from(*v) - mean) * factor * f64::from(scale[i]) + f64::from(shift[i])
                };
                want.extend(x.iter().enumerate().map(value));
            }
            for k in Kernels::available() {
                let mut y = vec![f32::NAN; x.len()];
                k.layer_norm(&norm, &x, &mut y);
                for (y, want) in y.iter().zip(&want) {
                    let off = (f64::from(*y) - want).abs();
                    // One value alone is its own mean; a difference of rounding is scaled by 1/√eps.
                    assert!(off <= 1e-5 * (1.0 + want.abs()), "{} {width}: {off}", k.name);
                }
                let plain = LayerNorm { scale: None, shift: None, ..norm };
                let mut bare = vec![f32::NAN; x.len()];
                k.layer_norm(&plain, &x, &mut bare);
                for (i, (bare, y)) in bare.iter().zip(&y).enumerate() {
                    let want = bare * scale[i % width] + shift[i % width];
                    assert!((y - want).abs() <= 1e-6 * (1.0 + want.abs()));
                }
            }
        }
    }
}
