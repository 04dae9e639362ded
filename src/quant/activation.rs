//! Steps that follow a product value by value.

use super::dispatch::kernels;
use std::hash::{Hash, Hasher};

/// A function of one value.
#[derive(Clone, Copy, Debug)]
pub enum Activation {
    /// v.
    Identity,
    /// v, but at least `low` and at most `high`, NaN where v is: ReLU and ReLU6.
    Clamp {
        /// May be -∞.
        low: f32,
        /// May be ∞.
        high: f32,
    },
    /// v · min(max(v/6 + 1/2, 0), 1).
    HardSwish,
    /// v / (1 + e⁻ᵛ), within 4e-7 of itself.
    Silu,
    /// v/2 · (1 + erf(v/√2)), within 2e-7 · max(1, |v|).
    Gelu,
    /// v/2 · (1 + tanh(√(2/π) · (v + 0.044715·v³))), within 2e-7 · max(1, |v|).
    GeluTanh,
}

impl Activation {
    fn bits(&self) -> (u8, u32, u32) {
        match self {
            Activation::Identity => (0, 0, 0),
            Activation::Clamp { low, high } => (1, low.to_bits(), high.to_bits()),
            Activation::HardSwish => (2, 0, 0),
            Activation::Silu => (3, 0, 0),
            Activation::Gelu => (4, 0, 0),
            Activation::GeluTanh => (5, 0, 0),
        }
    }
}

impl PartialEq for Activation {
    fn eq(&self, other: &Activation) -> bool {
        self.bits() == other.bits()
    }
}

impl Eq for Activation {}

impl Hash for Activation {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bits().hash(state);
    }
}

/// y = activation(y + add), value by value.
///
/// # Panics
/// If `add` has not as many values as y.
pub fn finish(y: &mut [f32], add: Option<&[f32]>, activation: Activation) {
    if add.is_some() || activation != Activation::Identity {
        kernels().finish(y, add, activation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::kernels::Kernels;
    use crate::quant::testing::{noise, slow_erf};

    #[test]
    fn every_kernel_gives_the_definitions_and_the_same_bits() {
        let all = [
            Activation::Identity,
            Activation::Clamp { low: -0.25, high: 0.5 },
            Activation::Clamp { low: 0.0, high: f32::INFINITY },
            Activation::HardSwish,
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
        ];
        let definition = |activation, v: f64| match activation {
            Activation::Identity => v,
            Activation::Clamp { low, high } => v.max(f64::from(low)).min(f64::from(high)),
            Activation::HardSwish => v * (v / 6.0 + 0.5).clamp(0.0, 1.0),
            Activation::Silu => v / (1.0 + (-v).exp()),
            Activation::Gelu => v / 2.0 * (1.0 + slow_erf(v / 2f64.sqrt())),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v);
                v / 2.0 * (1.0 + inner.tanh())
            }
        };
        for n in [0, 1, 7, 8, 15, 16, 17, 31, 33, 100] {
            let (x, other) = (noise(n, 1), noise(n, 2));
            let x: Vec<f32> = x.iter().map(|v| v * 8.0).collect();
            for activation in all {
                for add in [None, Some(&other[..])] {
                    let mut first: Option<Vec<f32>> = None;
                    for k in Kernels::available() {
                        let mut y = x.clone();
                        k.finish(&mut y, add, activation);
                        for (i, y) in y.iter().enumerate() {
                            let v = x[i] + add.map_or(0.0, |a| a[i]);
                            let want = definition(activation, f64::from(v));
                            let off = (f64::from(*y) - want).abs();
                            assert!(
                                off <= 4e-7 * f64::from(v).abs().max(1.0),
                                "{} {activation:?}",
                                k.name
                            );
                        }
                        assert_eq!(first.get_or_insert(y.clone()), &y, "{}", k.name);
                    }
                }
            }
        }
    }

    /// A layer whose answer is no number must not end as a bound.
    #[test]
    fn nan_stays_nan_in_every_kernel() {
        for activation in [
            Activation::Clamp { low: 0.0, high: 6.0 },
            Activation::HardSwish,
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
        ] {
            for k in Kernels::available() {
                let mut y = [1.0, f32::NAN, 2.0].repeat(11);
                k.finish(&mut y, None, activation);
                let shown = y.iter().enumerate().all(|(i, v)| v.is_nan() == (i % 3 == 1));
                assert!(shown, "{} {activation:?}: {y:?}", k.name);
            }
        }
    }

    #[test]
    fn activations_are_equal_by_their_bounds() {
        let relu = |high| Activation::Clamp { low: 0.0, high };
        assert_eq!(relu(6.0), relu(6.0));
        assert_ne!(relu(6.0), relu(f32::INFINITY));
        assert_ne!(Activation::HardSwish, Activation::Silu);
    }
}
