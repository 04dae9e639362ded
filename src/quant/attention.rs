//! Attention over heads that lie side by side.

use super::dispatch::kernels;
use super::kernels::Operands;

/// Shapes: q and y are \[B, T, H·D\], k and v \[B, S, H·D\].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// B.
    pub batch: usize,
    /// H.
    pub heads: usize,
    /// T.
    pub queries: usize,
    /// S.
    pub keys: usize,
    /// D.
    pub head_dim: usize,
    /// What q · kᵀ is multiplied by.
    pub scale: f32,
}

/// Summands of the scores before softmax, broadcast along axes of size 1.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// Row-major.
    pub values: &'a [f32],
    /// Of B, H, T, S, each that or 1.
    pub shape: [usize; 4],
}

/// y = softmax(scale · q · kᵀ + mask) · v for each batch row and head. Scores are held for a few
/// queries at a time. A batch row's result doesn't depend on the others.
///
/// # Panics
/// If lengths don't fit the shape, or the mask's shape doesn't.
pub fn attention(
    a: &Attention,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    mask: Option<Mask<'_>>,
    y: &mut [f32],
) {
    kernels().attention(a, &mut Operands::new(a, q, k, v, mask, y));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::kernels::Kernels;
    use crate::quant::testing::{noise, some};

    /// By the definition, in f64.
    fn slow(a: &Attention, q: &[f32], k: &[f32], v: &[f32], mask: Option<Mask>) -> Vec<f64> {
        let (h, d) = (a.heads, a.head_dim);
        let at = |n: usize, len: usize, t: usize, head: usize| ((n * len + t) * h + head) * d;
        let mut y = vec![0.0; q.len()];
        for n in 0..a.batch {
            for head in 0..h {
                for t in 0..a.queries {
                    let from = at(n, a.queries, t, head);
                    let mut weights: Vec<f64> = (0..a.keys)
                        .map(|s| {
                            let to = at(n, a.keys, s, head);
                            let terms =
                                (0..d).map(|i| f64::from(q[from + i]) * f64::from(k[to + i]));
                            let add = mask.map_or(0.0, |m| {
                                let place = [n, head, t, s];
                                let index = (0..4).fold(0, |index, i| {
                                    index * m.shape[i] + if m.shape[i] == 1 { 0 } else { place[i] }
                                });
                                f64::from(m.values[index])
                            });
                            terms.sum::<f64>() * f64::from(a.scale) + add
                        })
                        .collect();
                    let top = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    weights.iter_mut().for_each(|w| *w = (*w - top).exp());
                    let sum: f64 = weights.iter().sum();
                    for (s, w) in weights.iter().enumerate() {
                        let to = at(n, a.keys, s, head);
                        for i in 0..d {
                            y[from + i] += w / sum * f64::from(v[to + i]);
                        }
                    }
                }
            }
        }
        y
    }

    #[test]
    fn every_kernel_agrees_with_the_definition() {
        let sizes = [
            (1, 1, 1, 1, 1),
            (2, 3, 5, 7, 8),
            (1, 2, 9, 17, 16),
            (2, 2, 16, 16, 33),
            (1, 12, 13, 64, 32),
            (1, 2, 8, 31, 64),
            (3, 1, 1, 40, 17),
        ];
        for (batch, heads, queries, keys, head_dim) in some(sizes, 6) {
            let a = Attention { batch, heads, queries, keys, head_dim, scale: 0.7 };
            let width = heads * head_dim;
            let q: Vec<f32> = noise(batch * queries * width, 1).iter().map(|v| v * 2.0).collect();
            let (k, v) = (noise(batch * keys * width, 2), noise(batch * keys * width, 3));
            for shape in [
                None,
                Some([batch, 1, 1, keys]),
                Some([1, 1, queries, keys]),
                Some([batch, heads, queries, keys]),
                Some([1, heads, queries, 1]),
            ] {
                let mut values = noise(shape.map_or(0, |s| s.iter().product()), 4);
                // Some keys masked as exporters do it.
                values.iter_mut().skip(1).step_by(3).for_each(|v| *v = f32::MIN);
                let mask = shape.map(|shape| Mask { values: &values, shape });
                let want = slow(&a, &q, &k, &v, mask);
                for kernels in Kernels::available() {
                    let mut y = vec![f32::NAN; q.len()];
                    kernels.attention(&a, &mut Operands::new(&a, &q, &k, &v, mask, &mut y));
                    for (y, want) in y.iter().zip(&want) {
                        let off = (f64::from(*y) - want).abs();
                        assert!(off <= 3e-6, "{} {a:?} {shape:?}: {y} for {want}", kernels.name);
                    }
                    // A batch row alone gives the same bits.
                    if batch > 1 && shape.is_none() {
                        let one = Attention { batch: 1, ..a };
                        let mut row = vec![f32::NAN; queries * width];
                        let (q, k) = (&q[queries * width..][..queries * width], &k[keys * width..]);
                        let (k, v) = (&k[..keys * width], &v[keys * width..][..keys * width]);
                        kernels.attention(&one, &mut Operands::new(&one, q, k, v, None, &mut row));
                        assert_eq!(row, y[queries * width..][..queries * width]);
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "a mask of")]
    fn a_mask_of_another_shape_is_a_fault() {
        let a = Attention { batch: 1, heads: 2, queries: 3, keys: 4, head_dim: 5, scale: 1.0 };
        let mask = Mask { values: &[0.0; 6], shape: [1, 1, 2, 3] };
        let (q, k) = ([0.0; 30], [0.0; 40]);
        attention(&a, &q, &k, &k, Some(mask), &mut [0.0; 30]);
    }
}
