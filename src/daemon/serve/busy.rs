//! How busy the workers were lately.

use std::time::Instant;

/// Seconds over which it is counted how busy the workers are, each with a place of its own.
const BUSY_SECONDS: usize = 60;

/// How much the workers did in each of the last seconds.
pub(super) struct Busy {
    start: Instant,
    /// Seconds of work begun in a second, by the second modulo [`BUSY_SECONDS`], with that second.
    worked: [(u64, f32); BUSY_SECONDS],
    workers: usize,
}

impl Busy {
    pub fn new(workers: usize) -> Busy {
        Busy { start: Instant::now(), worked: [(0, 0.0); BUSY_SECONDS], workers }
    }

    /// A worker worked from `began` to `ended`.
    pub fn add(&mut self, began: Instant, ended: Instant) {
        let second = ended.saturating_duration_since(self.start).as_secs();
        let took = ended.saturating_duration_since(began).as_secs_f32();
        if let Some(place) = self.worked.get_mut(second as usize % BUSY_SECONDS) {
            *place = if place.0 == second { (second, place.1 + took) } else { (second, took) };
        }
    }

    /// What was done in the last minute over what could have been.
    pub fn share(&self, now: Instant) -> f32 {
        let second = now.saturating_duration_since(self.start).as_secs();
        let recent = |at: u64| second.saturating_sub(at) < BUSY_SECONDS as u64;
        let sum: f32 = self.worked.iter().filter(|(at, _)| recent(*at)).map(|(_, s)| s).sum();
        (sum / (BUSY_SECONDS * self.workers) as f32).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A camera that asks every 15 s and is answered in 300 ms leaves two workers idle; what was asked
    /// without a break does not.
    #[test]
    fn the_share_of_the_last_minute_is_counted() {
        let mut busy = Busy::new(2);
        let at = |seconds: f32| busy.start + Duration::from_secs_f32(seconds);
        let [took, end, later] = [0.3, 90.0, 160.0].map(at);
        let took = took - busy.start;
        for i in 0..7 {
            let began = busy.start + Duration::from_secs(15 * i);
            busy.add(began, began + took);
        }
        let share = busy.share(end);
        assert!((share - 4.0 * 0.3 / 120.0).abs() < 1e-4, "{share}");
        assert_eq!(busy.share(later), 0.0);
        for second in 160..220 {
            let began = busy.start + Duration::from_secs(second);
            (0..2).for_each(|_| busy.add(began, began + Duration::from_millis(999)));
        }
        let share = busy.share(busy.start + Duration::from_secs(219));
        assert!(share > 0.99, "{share}");
    }
}
