//! Latency, what an adapter adds to it, and what a switch takes.

use crate::adapter::Bound;
use crate::error::Result;
use crate::runtime::{Engine, Named, Session};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Runs before those that count: buffers grow, caches and clocks settle.
const WARM_UP: usize = 3;
/// Runs that count, at least.
const LEAST: usize = 5;
/// Switches that one reading of the clock is shared by: a switch is shorter than the clock's step.
const SWITCHES: u32 = 1000;
/// Such groups.
const GROUPS: usize = 101;

/// Times of single requests in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Half of them took no longer.
    pub median: f64,
    /// 95 of 100 took no longer (nearest rank).
    pub p95: f64,
}

/// A base with and without an adapter, request by request in turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Without.
    pub base: Latency,
    /// Share that the adapter adds: the median over pairs of `adapted / base - 1`. Neighbours share
    /// the machine's mood, so that its other work cancels.
    pub added: f64,
}

/// The median: of an even number of values the mean of the two in the middle; NaN of none.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => at(n / 2),
        n => (at(n / 2 - 1) + at(n / 2)) / 2.0,
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

impl Latency {
    fn of(times: &[f64]) -> Latency {
        let rank = (times.len() * 95).div_ceil(100).max(1);
        let p95 = sorted(times).get(rank - 1).copied().unwrap_or(f64::NAN);
        Latency { median: median(times), p95 }
    }
}

/// Requests for about `spend`, one after the other.
///
/// # Errors
/// Those of [`Engine::run`].
pub fn latency(
    engine: &Engine,
    inputs: &Named,
    adapter: Option<&Arc<Bound>>,
    spend: Duration,
) -> Result<Latency> {
    let mut times = vec![];
    repeat(spend, |counts| {
        let ms = timed(engine, inputs, adapter)?;
        if counts {
            times.push(ms);
        }
        Ok(())
    })?;
    Ok(Latency::of(&times))
}

/// As [`latency`], every second request with `adapter`.
///
/// # Errors
/// Those of [`Engine::run`].
pub fn adapter_cost(
    engine: &Engine,
    inputs: &Named,
    adapter: &Arc<Bound>,
    spend: Duration,
) -> Result<Cost> {
    let (mut base, mut ratios) = (vec![], vec![]);
    repeat(spend, |counts| {
        let alone = timed(engine, inputs, None)?;
        let adapted = timed(engine, inputs, Some(adapter))?;
        if counts {
            base.push(alone);
            ratios.push(adapted / alone);
        }
        Ok(())
    })?;
    Ok(Cost { base: Latency::of(&base), added: median(&ratios) - 1.0 })
}

fn repeat(spend: Duration, mut one: impl FnMut(bool) -> Result<()>) -> Result<()> {
    for _ in 0..WARM_UP {
        one(false)?;
    }
    let start = Instant::now();
    let mut done = 0;
    while done < LEAST || start.elapsed() < spend {
        one(true)?;
        done += 1;
    }
    Ok(())
}

/// Milliseconds of one request.
fn timed(engine: &Engine, inputs: &Named, adapter: Option<&Arc<Bound>>) -> Result<f64> {
    let start = Instant::now();
    std::hint::black_box(engine.run(inputs, adapter)?);
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Nanoseconds of one [`Session::switch`] between two adapters: the median over groups of the mean
/// within a group.
pub fn switching(engine: &Engine, adapters: &[Arc<Bound>; 2]) -> f64 {
    let session = Session::new(engine.clone());
    let groups: Vec<f64> = (0..GROUPS)
        .map(|_| {
            let start = Instant::now();
            for i in 0..SWITCHES {
                let next = &adapters[usize::from(i % 2 == 1)];
                std::hint::black_box(session.switch(Some(next.clone())));
            }
            start.elapsed().as_nanos() as f64 / f64::from(SWITCHES)
        })
        .collect();
    median(&groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_what_they_are_called() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(Latency::of(&hundred), Latency { median: 50.5, p95: 95.0 });
        assert_eq!(Latency::of(&[7.0]), Latency { median: 7.0, p95: 7.0 });
    }

    #[test]
    fn warm_up_does_not_count_and_there_are_enough_runs() {
        let (mut all, mut counted) = (0, 0);
        repeat(Duration::ZERO, |counts| {
            all += 1;
            counted += usize::from(counts);
            Ok(())
        })
        .unwrap();
        assert_eq!((all, counted), (WARM_UP + LEAST, LEAST));
    }
}
