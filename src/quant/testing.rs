//! What the tests of this layer share.

/// All of them; under Miri, which takes a thousand times as long, one in `share`.
pub(crate) fn some<T>(all: impl IntoIterator<Item = T>, share: usize) -> impl Iterator<Item = T> {
    all.into_iter().step_by(if cfg!(miri) { share } else { 1 })
}

/// Values in -1..1, reproducible.
pub(crate) fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// erf in f64, by the series without cancellation: 2/√π · e^(-x²) · Σ 2ⁿ x²ⁿ⁺¹ / (1·3·…·(2n+1)).
pub fn slow_erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..300 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    sum * (-x * x).exp() * 2.0 / std::f64::consts::PI.sqrt()
}

/// x as the integer products see it: each block of columns on a grid of its largest / 127.
pub fn on_the_grid(x: &[f32], cols: usize, len: usize) -> Vec<f32> {
    let block = |x: &[f32]| {
        let largest = x.iter().fold(0f32, |a, v| a.max(v.abs()));
        let (inverse, scale) = (127.0 / largest, largest / 127.0);
        x.iter().map(|v| (v * inverse).round_ties_even() * scale).collect::<Vec<_>>()
    };
    x.chunks(cols).flat_map(|row| row.chunks(len).flat_map(block)).collect()
}
