//! From raw outputs to probabilities and ranks: the one place that says how.

/// Probabilities from logits, by exp(x - max) / sum.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> = logits.iter().map(|&v| f64::from(v - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|e| (e / sum) as f32).collect()
}

/// 1 / (1 + exp(-x)).
pub fn sigmoid(x: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(x)).exp())) as f32
}

/// The place of the largest value, the first of equals; `None` if there are no values. NaN is
/// smaller than every number.
pub fn argmax(values: &[f32]) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (at, value) in
        values.iter().map(|v| if v.is_nan() { f32::NEG_INFINITY } else { *v }).enumerate()
    {
        if best.is_none_or(|(_, most)| value > most) {
            best = Some((at, value));
        }
    }
    best.map(|(at, _)| at)
}

/// The `k` largest values with their places, largest first, the first of equals first.
pub fn top_k(values: &[f32], k: usize) -> Vec<(usize, f32)> {
    // Adding 0 makes -0 equal to 0 under total_cmp.
    let key = |v: f32| if v.is_nan() { f32::NEG_INFINITY } else { v + 0.0 };
    let mut order: Vec<(usize, f32)> = values.iter().copied().enumerate().collect();
    order.sort_by(|a, b| key(b.1).total_cmp(&key(a.1)).then(a.0.cmp(&b.0)));
    order.truncate(k);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_survive_large_logits() {
        let p = softmax(&[1000.0, 1000.0, -1000.0]);
        assert_eq!(p, [0.5, 0.5, 0.0]);
        let p = softmax(&[0.0, 1.0, 2.0]);
        assert!((p[2] - 0.665_241).abs() < 1e-6);
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(softmax(&[]).is_empty());
    }

    #[test]
    fn the_largest_come_first_and_equals_keep_their_order() {
        let v = [0.1, 0.7, f32::NAN, 0.7, 0.2];
        assert_eq!(top_k(&v, 3), [(1, 0.7), (3, 0.7), (4, 0.2)]);
        assert_eq!(argmax(&v), Some(1));
        assert_eq!(argmax(&[]), None);
        assert_eq!(top_k(&v, 9).len(), 5);
        assert_eq!(argmax(&[-0.0, 0.0]), Some(0));
    }
}
