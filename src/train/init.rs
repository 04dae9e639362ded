//! First values of trained tensors, as PyTorch and PEFT choose them, drawn from a seed.

use crate::train::random::{stream, unit};

/// `len` values uniform in [-bound, bound), fixed by `seed` and the tensor's `name` alone: the
/// order in which tensors are made does not matter.
pub fn uniform(seed: u64, name: &str, len: usize, bound: f32) -> Vec<f32> {
    let mut rng = stream(seed, name, 0);
    (0..len).map(|_| (2.0 * unit(&mut rng) - 1.0) * bound).collect()
}

/// lora_a, (rank, in_features): U(±1/sqrt(in_features)). PEFT calls
/// `kaiming_uniform_(a=sqrt(5))`, whose bound sqrt(6 / ((1 + 5) · in)) is that.
pub fn lora_a(seed: u64, name: &str, rank: usize, in_features: usize) -> Vec<f32> {
    uniform(seed, name, rank.saturating_mul(in_features), linear_bound(in_features))
}

/// lora_b, (out_features, rank): zeros, so that training starts at the base.
pub fn lora_b(out_features: usize, rank: usize) -> Vec<f32> {
    vec![0.0; out_features.saturating_mul(rank)]
}

/// A head's weight (classes, features) and bias (classes), both U(±1/sqrt(features)) as
/// `torch.nn.Linear`'s.
pub fn head(seed: u64, name: &str, classes: usize, features: usize) -> (Vec<f32>, Vec<f32>) {
    let bound = linear_bound(features);
    let weight = uniform(seed, &format!("{name}.weight"), classes.saturating_mul(features), bound);
    (weight, uniform(seed, &format!("{name}.bias"), classes, bound))
}

fn linear_bound(in_features: usize) -> f32 {
    1.0 / (in_features.max(1) as f32).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lora_a_fills_its_bound_and_lora_b_is_zero() {
        let a = lora_a(42, "encoder.layer.0.query", 8, 384);
        let bound = 1.0 / 384f32.sqrt();
        assert_eq!(a.len(), 8 * 384);
        assert!(a.iter().all(|v| v.abs() <= bound));
        let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(largest > 0.99 * bound);
        // Variance of U(±b) is b²/3.
        let variance = a.iter().map(|v| f64::from(v * v)).sum::<f64>() / a.len() as f64;
        assert!((variance / f64::from(bound * bound / 3.0) - 1.0).abs() < 0.06);
        assert!(lora_b(4, 8).iter().all(|&v| v == 0.0));
    }

    #[test]
    fn seed_and_name_decide() {
        let a = lora_a(1, "x", 2, 4);
        assert_eq!(a, lora_a(1, "x", 2, 4));
        assert_ne!(a, lora_a(2, "x", 2, 4));
        assert_ne!(a, lora_a(1, "y", 2, 4));
        let (weight, bias) = head(1, "classifier", 3, 16);
        assert_eq!((weight.len(), bias.len()), (48, 3));
        assert!(weight.iter().chain(&bias).all(|v| v.abs() <= 0.25));
        assert_ne!(weight[..3], bias[..]);
    }
}
