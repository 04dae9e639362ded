//! What follows a product value by value. Plain loops that vectorise; every instruction set gives the
//! same bits, for none of them contracts a product and a sum.

use super::super::Activation;

/// y = activation(y + add).
#[inline(always)]
pub(super) fn finish(y: &mut [f32], add: Option<&[f32]>, activation: Activation) {
    match activation {
        Activation::Identity => each(y, add, |v| v),
        Activation::Clamp { low, high } => clamp_each(y, add, low, high),
        Activation::HardSwish => each(y, add, hard_swish),
        Activation::Silu => each(y, add, silu),
        Activation::Gelu => each(y, add, gelu),
        Activation::GeluTanh => each(y, add, gelu_tanh),
    }
}

#[inline(always)]
fn each(y: &mut [f32], add: Option<&[f32]>, f: impl Fn(f32) -> f32) {
    match add {
        Some(add) => y.iter_mut().zip(add).for_each(|(y, a)| *y = f(*y + a)),
        None => y.iter_mut().for_each(|y| *y = f(*y)),
    }
}

/// As `f32::clamp`, but without its panic on bounds that are no range. NaN stays NaN.
#[inline(always)]
fn clamp(v: f32, low: f32, high: f32) -> f32 {
    let v = if v < low { low } else { v };
    if v > high { high } else { v }
}

#[inline(always)]
fn clamp_each(y: &mut [f32], add: Option<&[f32]>, low: f32, high: f32) {
    // NEON's least of two zeros hangs on their signs, [`clamp`]'s does not.
    #[cfg(target_arch = "aarch64")]
    if add.is_none() && high != 0.0 {
        let (many, rest) = y.as_chunks_mut::<32>();
        // SAFETY: every processor of ours has NEON.
        many.iter_mut().for_each(|y| unsafe { super::neon::clamp(y, low, high) });
        return rest.iter_mut().for_each(|y| *y = clamp(*y, low, high));
    }
    each(y, add, |v| clamp(v, low, high));
}

#[inline(always)]
fn hard_swish(v: f32) -> f32 {
    v * (v * (1.0 / 6.0) + 0.5).clamp(0.0, 1.0)
}

#[inline(always)]
fn silu(v: f32) -> f32 {
    v / (1.0 + exp(-v))
}

/// Sixteen lanes to one value: their halves upon each other, four times.
#[inline(always)]
pub(super) fn halved(mut lanes: [f32; 16], f: impl Fn(f32, f32) -> f32) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
    }
    lanes[0]
}

/// The error function within 6.5e-7: Abramowitz and Stegun, 7.1.26, for |x|, with x's sign. The formula
/// has 1.5e-7 of it, [`exp`] up to 2e-7, roundings of values near 1 the rest. GELU multiplies by v/2,
/// which is small where that is most.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * size);
    let t2 = t * t;
    let high = t2 * 1.061_405_4 + (t * -1.453_152 + 1.421_413_7);
    let p = t2 * high + (t * -0.284_496_74 + 0.254_829_6);
    (1.0 - p * t * exp(-size * size)).copysign(x)
}

#[inline(always)]
fn gelu(v: f32) -> f32 {
    0.5 * v * (1.0 + erf(v * std::f32::consts::FRAC_1_SQRT_2))
}

/// 1 + tanh(z) is 2 - 2 / (e²ᶻ + 1).
#[inline(always)]
fn gelu_tanh(v: f32) -> f32 {
    let z = 0.797_884_6 * (v + 0.044_715 * v * v * v);
    v * (1.0 - 1.0 / (exp(z + z) + 1.0))
}

/// eˣ within 2e-7 of itself for |x| ≤ 87, held there beyond: 2ⁿ · eʳ with |r| ≤ ln 2 / 2, eʳ by the
/// polynomial of Cephes' expf.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer, which stands in the last bits then.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > 87.0 { 87.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, so that n · the first is exact.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let r2 = r * r;
    let high = r2 * (r * 1.987_569_1e-4 + 1.398_199_9e-3) + (r * 8.333_452e-3 + 4.166_579_5e-2);
    let p = r2 * high + (r * 1.666_666_5e-1 + 0.5);
    let power = (shifted.to_bits() as i32).wrapping_add(127 - 0x4b40_0000) as u32;
    f32::from_bits(power << 23) * (r2 * p + r + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::testing::{slow_erf, some};

    #[test]
    fn functions_are_within_their_bounds() {
        for i in some(-100_000..=100_000, 997) {
            let x = i as f32 * 8.7e-4;
            let want = f64::from(x).exp();
            let off = (f64::from(exp(x)) / want - 1.0).abs();
            assert!(off < 2e-7, "exp({x}) is off by {off}");
            let want = f64::from(x) / (1.0 + (-f64::from(x)).exp());
            let off = (f64::from(silu(x)) - want).abs();
            assert!(off <= 4e-7 * want.abs() + 1e-36, "silu({x}) is off by {off}");
        }
        for i in some(-60_000..=60_000, 997) {
            let x = i as f32 * 1e-4;
            let want = slow_erf(f64::from(x));
            let off = (f64::from(erf(x)) - want).abs();
            assert!(off <= 6.5e-7, "erf({x}) is off by {off}");
            let v = f64::from(x) * 2.0;
            let bound = 2e-7 * v.abs().max(1.0);
            let want = v / 2.0 * (1.0 + slow_erf(v / 2f64.sqrt()));
            let off = (f64::from(gelu(v as f32)) - want).abs();
            assert!(off <= bound, "gelu({v}) is off by {off}");
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v);
            let want = v / 2.0 * (1.0 + inner.tanh());
            let off = (f64::from(gelu_tanh(v as f32)) - want).abs();
            assert!(off <= bound, "gelu_tanh({v}) is off by {off}");
        }
        assert!(gelu(f32::NAN).is_nan() && gelu_tanh(f32::NAN).is_nan());
        assert_eq!((gelu(40.0), gelu_tanh(40.0), gelu(-40.0)), (40.0, 40.0, 0.0));
        assert!(silu(f32::NAN).is_nan() && hard_swish(f32::NAN).is_nan());
        assert!(clamp(f32::NAN, 0.0, 6.0).is_nan());
    }

    /// Whole registers of a kernel are clamped as single values are.
    #[test]
    fn clamped_values_have_the_bits_of_the_definition() {
        let values = [-0.0, 0.0, 1e-42, -1e-42, 2.5, 6.0, 6.5, -3.0, f32::NAN, f32::INFINITY];
        for (low, high) in [(0.0, 6.0), (-0.0, 6.0), (0.0, f32::INFINITY), (-1.0, 0.0), (-1.0, 1.0)]
        {
            for n in [31, 32, 33, 70] {
                let x: Vec<f32> = (0..n).map(|i| values[i * 7 % values.len()]).collect();
                let want = x.iter().map(|v| clamp(*v, low, high).to_bits()).collect::<Vec<u32>>();
                for k in super::super::Kernels::available() {
                    let mut y = x.clone();
                    k.finish(&mut y, None, Activation::Clamp { low, high });
                    let got = y.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
                    assert_eq!(got, want, "{} {low} {high}", k.name);
                }
            }
        }
    }
}
