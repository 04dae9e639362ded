//! Time on a device whose clock may jump: boards without a battery start in the past and are set
//! by the network minutes later; people set clocks too.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// 2024-01-01: a clock before it was never set.
const EARLIEST: u64 = 1_704_067_200;
/// A difference between the two clocks that is worth an event, in seconds.
const JUMP: u64 = 60;

/// One moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Seconds since 1970-01-01 UTC, as the system says.
    pub wall: u64,
    /// Since this process began; never jumps.
    pub steady: Duration,
}

/// A moment that is remembered: on the wall clock across restarts, on the steady one within this
/// process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Then {
    /// Seconds since 1970-01-01 UTC.
    pub wall: u64,
    /// `None`: before this process began.
    pub steady: Option<Duration>,
}

impl Now {
    /// Time since `then`. Within this process the steady clock says it; else the wall clock, but
    /// never less than this process has run, so that a clock set back can't hold things up for
    /// ever.
    pub fn since(&self, then: Then) -> Duration {
        match then.steady {
            Some(steady) => self.steady.saturating_sub(steady),
            None => Duration::from_secs(self.wall.saturating_sub(then.wall)).max(self.steady),
        }
    }

    /// Whether the wall clock was ever set.
    pub fn is_set(&self) -> bool {
        self.wall >= EARLIEST
    }
}

/// Reads both clocks and notices jumps.
#[derive(Debug)]
pub struct Clock {
    started: Instant,
    /// Wall clock less steady clock, in seconds.
    offset: i128,
}

impl Clock {
    /// Starts now.
    pub fn new() -> Clock {
        let clock = Clock { started: Instant::now(), offset: 0 };
        let now = clock.now();
        Clock { offset: offset(now), ..clock }
    }

    /// Now.
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Now { wall, steady: self.started.elapsed() }
    }

    /// Seconds that the wall clock has jumped by since the last call, if it has.
    pub fn jumped(&mut self, now: Now) -> Option<i128> {
        let jump = offset(now) - self.offset;
        if jump.unsigned_abs() < u128::from(JUMP) {
            return None;
        }
        self.offset = offset(now);
        Some(jump)
    }
}

fn offset(now: Now) -> i128 {
    i128::from(now.wall) - i128::from(now.steady.as_secs())
}

/// The minute of the day in local time; `None` where it can't be told.
pub fn local_minute(wall: u64) -> Option<u16> {
    let seconds = i64::try_from(wall).ok()?;
    let at = jiff::Timestamp::from_second(seconds).ok()?;
    let local = jiff::tz::TimeZone::system().to_datetime(at).time();
    u16::try_from(i32::from(local.hour()) * 60 + i32::from(local.minute())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall: u64, steady: u64) -> Now {
        Now { wall, steady: Duration::from_secs(steady) }
    }

    #[test]
    fn jumps_neither_hold_up_nor_hurry() {
        let hour = Duration::from_secs(3600);
        let here = |steady| Then { wall: 1_800_000_000, steady: Some(Duration::from_secs(steady)) };
        // Within this process the wall clock may say what it likes.
        for wall in [0, 1_700_000_000, 1_800_000_000, 1_900_000_000] {
            assert_eq!(at(wall, 4600).since(here(1000)), hour);
        }
        let before = Then { wall: 1_800_000_000, steady: None };
        assert_eq!(at(1_800_003_600, 60).since(before), hour);
        // Set back: at least the time that this process has run.
        assert_eq!(at(1_700_000_000, 3600).since(before), hour);
        assert!(!at(5, 60).is_set() && at(1_800_000_000, 0).is_set());
    }

    #[test]
    fn jumps_are_noticed_once() {
        let mut clock = Clock { started: Instant::now(), offset: 1_000_000 };
        assert_eq!(clock.jumped(at(1_000_110, 100)), None);
        assert_eq!(clock.jumped(at(2_000_000, 100)), Some(999_900));
        assert_eq!(clock.jumped(at(2_000_050, 150)), None);
        assert_eq!(clock.jumped(at(1_000_000, 200)), Some(-1_000_100));
        let mut clock = Clock::new();
        let now = clock.now();
        assert_eq!(clock.jumped(now), None);
        assert!(local_minute(now.wall).unwrap() < 1440);
    }
}
