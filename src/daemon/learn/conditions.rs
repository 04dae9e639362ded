//! When to train: each condition with its value, its threshold and a sentence. Pure.

use super::readings::Readings;
use super::settings::Settings;
use crate::host::NEAR;
use serde::Serialize;
use serde_json::{Value, json};
use std::time::Duration;

/// One condition.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Condition {
    /// Its name.
    pub name: &'static str,
    /// What is found.
    pub value: Value,
    /// What it is held against.
    pub threshold: Value,
    /// Whether training may start or go on.
    pub met: bool,
    /// The same in words.
    pub sentence: String,
}

/// What is known of a name that could be trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Labelled samples that no training has seen.
    pub new: u64,
    /// Those, and others that the active generation has not learned from, but for held-out ones.
    pub unlearned: u64,
    /// Candidates that were not promoted since the last one that was.
    pub refused: u32,
    /// Held-out samples.
    pub held: u64,
    /// Since the last training ended; `None`: there was none.
    pub since_last: Option<Duration>,
    /// Jobs that were given up one after the other, the last ones.
    pub failed: u32,
    /// A generation whose trial was cut short is to be tried again first: it is what a candidate must
    /// surpass.
    pub trial_due: bool,
    /// The retention set of the configuration is not there.
    pub set_missing: bool,
    /// Somebody asked for it: samples, interval, hours and idleness don't count.
    pub asked: bool,
    /// A job is open, begun or queued by what was forgotten: samples and interval are settled.
    pub open: bool,
}

/// Seconds to the next job after one was given up, doubled with each, and at most.
const REST: [u64; 2] = [2 * 3600, 7 * 86_400];
/// Longest time after which samples that were refused are tried again.
const LONGEST_REFUSED: u64 = 28 * 86_400;

impl Need {
    /// Seconds that jobs which were given up put the next one off: what broke them, the supply perhaps,
    /// would break it too.
    pub(super) fn rest(&self) -> u64 {
        let [first, longest] = REST;
        match self.failed {
            0 => 0,
            n => first.saturating_mul(1 << (n - 1).min(20)).min(longest),
        }
    }

    /// Seconds since the last training after which any sample will do that is not learned yet.
    pub(super) fn patience(&self, settings: &Settings) -> u64 {
        let first = settings.conditions.any_after_seconds;
        first.saturating_mul(1 << self.refused.min(20)).min(LONGEST_REFUSED.max(first))
    }

    /// Whether what was refused, or is too little, is tried all the same.
    fn due(&self, settings: &Settings) -> bool {
        let waited = self.since_last.is_some_and(|s| s.as_secs() >= self.patience(settings));
        self.unlearned > 0 && waited
    }

    /// Whether samples and interval don't count.
    fn settled(&self) -> bool {
        self.asked || self.open
    }

    fn why_settled(&self) -> &'static str {
        match (self.asked, self.open) {
            (true, _) => " (asked for: any will do)",
            (false, true) => " (a job is open: any will do)",
            (false, false) => "",
        }
    }
}

/// Whether training runs: what may stop it differs from what may start it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It waits to start. After it was stopped by heat it waits for the lower temperature too.
    Waiting,
    /// It runs.
    Training,
}

/// Whether all are met.
pub fn all_met(conditions: &[Condition]) -> bool {
    conditions.iter().all(|c| c.met)
}

/// The sentences of those that are not met.
pub fn unmet(conditions: &[Condition]) -> String {
    let unmet: Vec<&str> =
        conditions.iter().filter(|c| !c.met).map(|c| c.sentence.as_str()).collect();
    unmet.join("; ")
}

/// Judges all conditions, in the order in which they are shown.
pub fn conditions(
    need: &Need,
    readings: &Readings,
    settings: &Settings,
    phase: Phase,
) -> Vec<Condition> {
    let mut all = vec![];
    if phase == Phase::Waiting {
        all.push(enabled(need, settings));
        all.push(samples(need, settings));
        all.push(held_out(need, settings));
        all.push(interval(need, settings));
        all.extend(trial(need));
        all.extend(retention_set(need, settings));
    }
    all.extend(base(readings));
    all.push(idle(need, readings, settings, phase));
    all.push(memory(readings, settings, phase));
    all.push(heat(readings, settings, phase));
    all.push(power(readings, settings));
    all.push(load(need, readings, settings));
    all.push(hours(need, readings, settings));
    all
}

fn enabled(need: &Need, settings: &Settings) -> Condition {
    let on = settings.train.enabled || need.asked;
    Condition {
        name: "enabled",
        value: json!(settings.train.enabled),
        threshold: json!(true),
        met: on,
        sentence: if on { "training is on".into() } else { "training is switched off".into() },
    }
}

fn samples(need: &Need, settings: &Settings) -> Condition {
    let least = settings.conditions.min_new;
    Condition {
        name: "new samples",
        value: json!(need.new),
        threshold: json!(least),
        met: need.new >= least || need.due(settings) || need.settled(),
        sentence: format!(
            "{} new samples, {least} are needed{}{}",
            need.new,
            unlearned(need, settings),
            need.why_settled()
        ),
    }
}

/// What of the samples waits though it is no longer new, and for how long.
fn unlearned(need: &Need, settings: &Settings) -> String {
    if need.unlearned == 0 {
        return String::new();
    }
    let refused = match need.refused {
        0 => String::new(),
        n => format!(", {n} candidates were refused"),
    };
    let patience = need.patience(settings);
    let left = need.since_last.map(|s| patience.saturating_sub(s.as_secs()));
    let when = match left {
        None => return String::new(),
        Some(0) => "are due".into(),
        Some(left) => format!("are tried in {}", span(left)),
    };
    format!(" ({} that nothing promoted has learned{refused} {when})", need.unlearned)
}

/// With fewer the gate would refuse whatever was trained.
fn held_out(need: &Need, settings: &Settings) -> Condition {
    let least = settings.gate.min_holdout;
    Condition {
        name: "held-out samples",
        value: json!(need.held),
        threshold: json!(least),
        met: need.held >= least as u64 || need.settled(),
        sentence: format!(
            "{} held-out samples, {least} are needed{}",
            need.held,
            need.why_settled()
        ),
    }
}

fn interval(need: &Need, settings: &Settings) -> Condition {
    let least = settings.conditions.min_interval_seconds.max(need.rest());
    let since = need.since_last.map(|d| d.as_secs());
    let sentence = match since {
        Some(seconds) => {
            let failed = match need.failed {
                0 => String::new(),
                n => format!(" after {n} that failed"),
            };
            let (since, least) = (span(seconds), span(least));
            let settled = need.why_settled();
            format!("{since} since the last training, {least} are needed{failed}{settled}")
        }
        None => "nothing was trained yet".into(),
    };
    Condition {
        name: "interval",
        value: json!(since),
        threshold: json!(least),
        met: need.settled() || since.is_none_or(|s| s >= least),
        sentence,
    }
}

/// Shown only where it is in the way.
fn trial(need: &Need) -> Option<Condition> {
    need.trial_due.then(|| Condition {
        name: "trial",
        value: json!(true),
        threshold: json!(false),
        met: false,
        sentence: "a generation whose trial was cut short is tried again first".into(),
    })
}

/// Shown only where it is in the way: what is trained through wrong weights fits no others.
fn base(readings: &Readings) -> Option<Condition> {
    let damage = readings.damage.as_ref()?;
    Some(Condition {
        name: "base",
        value: json!("damaged"),
        threshold: json!("whole"),
        met: false,
        sentence: format!("the base is damaged: {damage}"),
    })
}

/// Shown only where one is configured: without it no candidate can be judged.
fn retention_set(need: &Need, settings: &Settings) -> Option<Condition> {
    let set = settings.gate.retention_data.as_ref()?.display();
    let verb = if need.set_missing { "is missing" } else { "is there" };
    Some(Condition {
        name: "retention set",
        value: json!(!need.set_missing),
        threshold: json!(true),
        met: !need.set_missing,
        sentence: format!("the retention set '{set}' {verb}"),
    })
}

/// Idle is what is seldom asked: a camera that asks every 15 s leaves a board idle.
fn idle(need: &Need, readings: &Readings, settings: &Settings, phase: Phase) -> Condition {
    let c = &settings.conditions;
    let least = c.idle_seconds;
    let seconds = if readings.in_flight > 0 { 0 } else { readings.idle.as_secs() };
    let tolerated = phase == Phase::Training && !c.stop_on_request;
    let busy = readings.busy.clamp(0.0, 1.0);
    let seldom = !c.stop_on_request && busy <= c.max_busy;
    let percent = |share: f32| format!("{:.1} %", 100.0 * share);
    let shown = format!("answers took {} of the last minute", percent(busy));
    let or = match c.stop_on_request {
        true => String::new(),
        false => format!(", or answers that take {} of a minute at most", percent(c.max_busy)),
    };
    let sentence = match (readings.in_flight, tolerated) {
        (0, true) => format!("no request for {}", span(seconds)),
        (n, true) => format!("{n} requests run: they go before training"),
        _ if seldom => format!("{shown}, {} are allowed", percent(c.max_busy)),
        (0, false) => {
            let now = if c.stop_on_request { String::new() } else { format!("; {shown}") };
            format!("no request for {}, {} are needed{or}{now}", span(seconds), span(least))
        }
        (n, false) => format!("{n} requests run"),
    };
    Condition {
        name: "idle",
        value: json!({ "seconds": seconds, "busy": (1000.0 * f64::from(busy)).round() / 1000.0 }),
        threshold: json!({ "seconds": least, "busy": (1000.0 * f64::from(c.max_busy)).round() / 1000.0 }),
        met: seconds >= least || seldom || tolerated || need.asked,
        sentence,
    }
}

fn memory(readings: &Readings, settings: &Settings, phase: Phase) -> Condition {
    let reserve = settings.conditions.free_mib;
    let (least, what) = match phase {
        Phase::Waiting => (reserve.saturating_add(settings.train.memory_mib), "needed"),
        // What the trainer took is gone from what is free.
        Phase::Training => (reserve / 2, "kept free"),
    };
    let mib = readings.available.map(|b| b >> 20);
    let sentence = match mib {
        Some(mib) => format!("{mib} MiB of memory are free, {least} MiB are {what}"),
        None => "nothing says how much memory is free".into(),
    };
    let met = mib.is_none_or(|m| m >= least);
    Condition { name: "memory", value: json!(mib), threshold: json!(least), met, sentence }
}

fn heat(readings: &Readings, settings: &Settings, phase: Phase) -> Condition {
    let c = &settings.conditions;
    let configured = match phase {
        Phase::Waiting => c.start_celsius,
        Phase::Training => c.stop_celsius,
    };
    let Some(sensor) = &readings.hottest else {
        let sentence = "no sensor says how hot it is".into();
        let threshold = json!(configured);
        return Condition {
            name: "temperature",
            value: Value::Null,
            threshold,
            met: true,
            sentence,
        };
    };
    let most = sensor.limit().map_or(configured, |limit| configured.min(limit - NEAR));
    let found = (f64::from(sensor.celsius) * 10.0).round() / 10.0;
    let verb = if phase == Phase::Waiting { "training starts" } else { "it goes on" };
    Condition {
        name: "temperature",
        value: json!(found),
        threshold: json!(most),
        met: sensor.celsius < most,
        sentence: format!("'{}' is at {found} °C, {verb} below {most} °C", sensor.name),
    }
}

fn power(readings: &Readings, settings: &Settings) -> Condition {
    let power = &readings.power;
    let charge = power.supplies.iter().filter_map(|s| s.capacity).min();
    let c = &settings.conditions;
    let (value, met, sentence) = match (power.under_voltage, power.on_battery()) {
        (Some(true), _) => ("under-voltage", false, "the supply's voltage is too low".to_string()),
        (_, Some(true)) if c.mains_only => ("battery", false, "it runs on its battery".into()),
        (_, Some(true)) => match charge {
            Some(found) => (
                "battery",
                found >= c.min_charge,
                format!("its battery has {found} %, {} % are needed", c.min_charge),
            ),
            None => ("battery", false, "it runs on a battery that doesn't say its charge".into()),
        },
        (_, Some(false)) => ("mains", true, "it has mains power".into()),
        (_, None) => ("unknown", true, "nothing says where power comes from".into()),
    };
    let threshold = if c.mains_only { json!("mains") } else { json!(c.min_charge) };
    Condition { name: "power", value: json!(value), threshold, met, sentence }
}

fn load(need: &Need, readings: &Readings, settings: &Settings) -> Condition {
    let most = settings.conditions.max_load;
    let found = readings.load;
    let percent = |share: f32| (100.0 * share).round();
    let sentence = match found {
        Some(found) => format!(
            "others keep {} % of the processors busy, {} % are allowed",
            percent(found),
            percent(most)
        ),
        None => "nothing says how busy the processors are".into(),
    };
    Condition {
        name: "load",
        value: json!(found.map(|f| f64::from(percent(f)) / 100.0)),
        threshold: json!(f64::from(percent(most)) / 100.0),
        met: need.asked || found.is_none_or(|f| f <= most),
        sentence,
    }
}

fn hours(need: &Need, readings: &Readings, settings: &Settings) -> Condition {
    let wanted = &settings.conditions.hours;
    let names: Vec<String> = wanted.iter().map(|h| h.to_string()).collect();
    let clock = readings.minute.map(|m| format!("{:02}:{:02}", m / 60, m % 60));
    let within = readings.minute.is_some_and(|m| wanted.iter().any(|h| h.hold(m)));
    let sentence = match (&clock, wanted.is_empty()) {
        (_, true) => "any hour will do".into(),
        (Some(clock), _) => format!("it is {clock}, hours are {}", names.join(", ")),
        (None, _) => "the clock isn't set, so the hour is unknown".into(),
    };
    Condition {
        name: "hours",
        value: json!(clock),
        threshold: json!(names),
        met: wanted.is_empty() || within || need.asked,
        sentence,
    }
}

/// `90 s`, `15 min`, `2.5 h`.
fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}

#[cfg(test)]
#[path = "conditions_tests.rs"]
mod tests;
