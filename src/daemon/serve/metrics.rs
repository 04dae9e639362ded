//! Counters, and their text for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the time buckets in seconds.
const BOUNDS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What is counted.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<(String, String, u16), u64>>,
    times: [AtomicU64; BOUNDS.len()],
    time_count: AtomicU64,
    time_micros: AtomicU64,
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections open now.
    pub connections: AtomicU64,
    /// Connections closed because their client was slow and others waited.
    pub evicted: AtomicU64,
    /// Runs that answered several requests.
    pub batches: AtomicU64,
    /// Requests answered by them.
    pub batched: AtomicU64,
    /// Switches of an active generation.
    pub switches: AtomicU64,
    /// Self-checks that failed.
    pub failed_checks: AtomicU64,
    /// Answers that no broker was told.
    pub untold: AtomicU64,
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Values of one name, told apart by labels.
pub struct Family {
    name: &'static str,
    help: &'static str,
    rows: Vec<(String, f64)>,
}

impl Family {
    /// Without a value yet, which is not shown.
    pub fn new(name: &'static str, help: &'static str) -> Family {
        Family { name, help, rows: vec![] }
    }

    /// Adds a value; `labels` as they stand between the braces.
    pub fn add(&mut self, labels: String, value: f64) {
        self.rows.push((labels, value));
    }
}

/// A value read when the metrics are asked for.
pub struct Gauge {
    /// Its name without the prefix.
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// Its value.
    pub value: f64,
}

impl Metrics {
    /// Counts an answered request.
    pub fn request(&self, route: &str, method: &str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        // Methods and routes come from tables; a cap all the same.
        if requests.len() < 1000 {
            *requests.entry((route.into(), method.into(), status)).or_default() += 1;
        }
    }

    /// Counts an answer of the base.
    pub fn answered(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (bound, bucket) in BOUNDS.iter().zip(&self.times) {
            if seconds <= *bound {
                count(bucket);
            }
        }
        count(&self.time_count);
        self.time_micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    /// The text exposition format, version 0.0.4.
    pub fn text(&self, gauges: &[Gauge], families: &[Family]) -> String {
        let mut out = String::new();
        self.write(&mut out, gauges, families).unwrap_or_default();
        out
    }

    fn write(&self, out: &mut String, gauges: &[Gauge], families: &[Family]) -> std::fmt::Result {
        let (version, target) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
        writeln!(
            out,
            "# HELP offshoot_build_info This program.\n# TYPE offshoot_build_info gauge"
        )?;
        writeln!(out, "offshoot_build_info{{version=\"{version}\",target=\"{target}\"}} 1")?;
        writeln!(out, "# HELP offshoot_requests_total Requests by route, method and status.")?;
        writeln!(out, "# TYPE offshoot_requests_total counter")?;
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        for ((route, method, status), n) in requests.iter() {
            writeln!(
                out,
                "offshoot_requests_total{{route=\"{route}\",method=\"{method}\",status=\"{status}\"}} {n}"
            )?;
        }
        drop(requests);
        let name = "offshoot_predict_seconds";
        writeln!(out, "# HELP {name} Time from a predict request's body to its answer.")?;
        writeln!(out, "# TYPE {name} histogram")?;
        for (bound, bucket) in BOUNDS.iter().zip(&self.times) {
            writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {}", bucket.load(Ordering::Relaxed))?;
        }
        let total = self.time_count.load(Ordering::Relaxed);
        writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {total}")?;
        let sum = self.time_micros.load(Ordering::Relaxed) as f64 / 1e6;
        writeln!(out, "{name}_sum {sum}\n{name}_count {total}")?;
        for (name, help, counter) in [
            ("connections_total", "Connections accepted.", &self.accepted),
            ("slow_clients_total", "Connections closed for slowness.", &self.evicted),
            ("batches_total", "Runs that answered several requests.", &self.batches),
            ("batched_requests_total", "Requests answered by them.", &self.batched),
            ("switches_total", "Switches of an active generation.", &self.switches),
            ("failed_checks_total", "Self-checks that failed.", &self.failed_checks),
            ("mqtt_untold_total", "Answers that the broker was not told.", &self.untold),
        ] {
            writeln!(out, "# HELP offshoot_{name} {help}\n# TYPE offshoot_{name} counter")?;
            writeln!(out, "offshoot_{name} {}", counter.load(Ordering::Relaxed))?;
        }
        for Gauge { name, help, value } in gauges {
            writeln!(out, "# HELP offshoot_{name} {help}\n# TYPE offshoot_{name} gauge")?;
            writeln!(out, "offshoot_{name} {value}")?;
        }
        for Family { name, help, rows } in families.iter().filter(|family| !family.rows.is_empty())
        {
            writeln!(out, "# HELP offshoot_{name} {help}\n# TYPE offshoot_{name} gauge")?;
            for (labels, value) in rows {
                match labels.is_empty() {
                    true => writeln!(out, "offshoot_{name} {value}")?,
                    false => writeln!(out, "offshoot_{name}{{{labels}}} {value}")?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_lines_are_whole() {
        let metrics = Metrics::default();
        metrics.answered(Duration::from_millis(2));
        metrics.answered(Duration::from_secs(60));
        metrics.request("/health", "GET", 200);
        metrics.request("/health", "GET", 200);
        let mut named = Family::new("adapter_generation", "Active.");
        named.add("adapter=\"home\"".into(), 2.0);
        let gauge = Gauge { name: "ready", help: "Ready.", value: 1.0 };
        let text = metrics.text(&[gauge], &[named, Family::new("none", "Nothing.")]);
        assert!(!text.contains("offshoot_none"), "{text}");
        for line in [
            "offshoot_requests_total{route=\"/health\",method=\"GET\",status=\"200\"} 2",
            "offshoot_predict_seconds_bucket{le=\"0.001\"} 0",
            "offshoot_predict_seconds_bucket{le=\"0.0025\"} 1",
            "offshoot_predict_seconds_bucket{le=\"10\"} 1",
            "offshoot_predict_seconds_bucket{le=\"+Inf\"} 2",
            "offshoot_ready 1",
            "offshoot_adapter_generation{adapter=\"home\"} 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing: {text}");
        }
    }
}
