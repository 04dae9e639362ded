//! Layer normalization, in plain loops over sixteen lanes that vectorise.

use super::super::LayerNorm;
use super::finish::halved;

/// Sum of f(v), in sixteen lanes, then their halves upon each other.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; 16];
    let chunks = x.chunks_exact(16);
    for (lane, v) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = f(*v);
    }
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] += f(chunk[i]);
        }
    }
    halved(lanes, |a, b| a + b)
}

#[inline(always)]
pub(super) fn layer_norm(norm: &LayerNorm<'_>, x: &[f32], y: &mut [f32]) {
    let count = norm.width as f32;
    for (x, y) in x.chunks_exact(norm.width).zip(y.chunks_exact_mut(norm.width)) {
        let mean = sum(x, |v| v) / count;
        let variance = sum(x, |v| (v - mean) * (v - mean)) / count;
        let factor = 1.0 / (variance + norm.epsilon).sqrt();
        match norm.scale {
            Some(scale) => {
                for ((y, x), scale) in y.iter_mut().zip(x).zip(scale) {
                    *y = (x - mean) * factor * scale;
                }
            }
            None => y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mean) * factor),
        }
        if let Some(shift) = norm.shift {
            y.iter_mut().zip(shift).for_each(|(y, shift)| *y += shift);
        }
    }
}
