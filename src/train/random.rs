//! Random numbers that a seed fixes for ever: ChaCha8 streams, one for each purpose.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// The stream of numbers for `purpose` (such as a tensor's name) and `index` (such as an epoch)
/// under `seed`. Streams are independent, so that drawing more from one leaves the others alone.
pub fn stream(seed: u64, purpose: &str, index: u64) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new_derive_key("offshoot training random stream v1");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&index.to_le_bytes());
    hasher.update(purpose.as_bytes());
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}

/// A number in 0..`n`, each equally likely; 0 where `n` is 0 or 1.
pub fn below(rng: &mut ChaCha8Rng, n: u64) -> u64 {
    if n < 2 {
        return 0;
    }
    // Values from the incomplete last run of 0..n are drawn again.
    let limit = u64::MAX - u64::MAX % n;
    loop {
        let value = rng.next_u64();
        if value < limit {
            return value % n;
        }
    }
}

/// A number in [0, 1) with 24 random bits: every value is exact in f32.
pub fn unit(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// Shuffles in place (Fisher-Yates from the end).
pub fn shuffle<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(rng, i as u64 + 1) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_pinned_and_apart() {
        let mut rng = stream(7, "shuffle", 0);
        let first: Vec<u64> = (0..3).map(|_| below(&mut rng, 1000)).collect();
        // Pinned: another order would silently make every seeded run another run.
        assert_eq!(first, [713, 799, 446]);
        let mut again = stream(7, "shuffle", 0);
        assert_eq!(below(&mut again, 1000), first[0]);
        for other in [stream(8, "shuffle", 0), stream(7, "shuffle", 1), stream(7, "shufflf", 0)] {
            let mut other = other;
            let drawn: Vec<u64> = (0..3).map(|_| below(&mut other, 1000)).collect();
            assert_ne!(drawn, first);
        }
    }

    #[test]
    fn shuffles_keep_every_item_and_favour_no_place() {
        let mut counts = [[0u32; 4]; 4];
        let mut rng = stream(1, "test", 0);
        for _ in 0..4000 {
            let mut items = [0usize, 1, 2, 3];
            shuffle(&mut items, &mut rng);
            let mut sorted = items;
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
            for (place, &item) in items.iter().enumerate() {
                counts[item][place] += 1;
            }
        }
        // 1000 expected, standard deviation 27.
        assert!(counts.iter().flatten().all(|&c| (850..1150).contains(&c)), "{counts:?}");
    }

    #[test]
    fn unit_numbers_fill_their_range() {
        let mut rng = stream(3, "unit", 0);
        let drawn: Vec<f32> = (0..10_000).map(|_| unit(&mut rng)).collect();
        assert!(drawn.iter().all(|v| (0.0..1.0).contains(v)));
        let mean = drawn.iter().sum::<f32>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        assert_eq!(below(&mut rng, 0), 0);
        assert_eq!(below(&mut rng, 1), 0);
    }
}
