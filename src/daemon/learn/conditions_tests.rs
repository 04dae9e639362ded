//! Each condition at its threshold, on fake machines.

use super::*;
use crate::daemon::learn::clock::Now;
use crate::daemon::learn::readings::Reader;
use crate::daemon::learn::testing::Quiet;
use crate::host::testing::Fake;
use crate::host::{Power, Sensor, Supply};

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.conditions.hours = vec!["22:00-06:00".to_string().try_into().unwrap()];
    settings
}

fn need() -> Need {
    Need { new: 40, held: 8, since_last: Some(Duration::from_secs(90_000)), ..Need::default() }
}

fn good() -> Readings {
    Readings {
        in_flight: 0,
        idle: Duration::from_secs(600),
        busy: 1.0,
        available: Some(1 << 30),
        hottest: Some(Sensor { name: "cpu-thermal".into(), celsius: 50.0, ..Sensor::default() }),
        power: Power::default(),
        load: Some(0.1),
        minute: Some(23 * 60),
        damage: None,
    }
}

fn unmet_names(need: &Need, readings: &Readings, phase: Phase) -> Vec<&'static str> {
    let all = conditions(need, readings, &settings(), phase);
    assert!(all.iter().all(|c| !c.sentence.is_empty()));
    assert_eq!(all_met(&all), unmet(&all).is_empty());
    all.iter().filter(|c| !c.met).map(|c| c.name).collect()
}

#[test]
fn each_condition_alone_keeps_training_from_starting() {
    let none: [&str; 0] = [];
    assert_eq!(unmet_names(&need(), &good(), Phase::Waiting), none);
    type Spoil = fn(&mut Need, &mut Readings);
    let battery = |r: &mut Readings, status: &str| {
        r.power.supplies = vec![Supply {
            name: "BAT0".into(),
            kind: "Battery".into(),
            online: None,
            status: Some(status.into()),
            capacity: Some(90),
        }];
    };
    let cases: [(&str, Spoil); 10] = [
        ("new samples", |n, _| n.new = 19),
        ("held-out samples", |n, _| n.held = 7),
        ("interval", |n, _| n.since_last = Some(Duration::from_secs(3599))),
        ("idle", |_, r| r.idle = Duration::from_secs(59)),
        ("memory", |_, r| r.available = Some((191 << 20) + 5)),
        ("temperature", |_, r| r.hottest.as_mut().unwrap().celsius = 65.0),
        ("power", |_, r| r.power.under_voltage = Some(true)),
        ("load", |_, r| r.load = Some(0.51)),
        ("hours", |_, r| r.minute = Some(6 * 60)),
        ("base", |_, r| r.damage = Some("section weights is damaged".into())),
    ];
    for (name, spoil) in cases {
        let (mut n, mut r) = (need(), good());
        spoil(&mut n, &mut r);
        assert_eq!(unmet_names(&n, &r, Phase::Waiting), [name]);
    }
    let mut r = good();
    battery(&mut r, "Discharging");
    assert_eq!(unmet_names(&need(), &r, Phase::Waiting), ["power"]);
    battery(&mut r, "Charging");
    assert_eq!(unmet_names(&need(), &r, Phase::Waiting), none);
    // What nothing tells doesn't stand in the way, but for the clock.
    let dumb = Readings { idle: Duration::from_secs(600), busy: 1.0, ..Readings::default() };
    assert_eq!(unmet_names(&need(), &dumb, Phase::Waiting), ["hours"]);
}

#[test]
fn heat_has_two_thresholds_and_respects_the_boards_own() {
    let at = |celsius: f32, slows_down_at: Option<f32>, phase| {
        let mut r = good();
        let sensor = Sensor { name: "soc".into(), celsius, ..Sensor::default() };
        r.hottest = Some(Sensor { slows_down_at, ..sensor });
        unmet_names(&need(), &r, phase).is_empty()
    };
    // Between them what runs goes on and what waits waits.
    assert!(!at(70.0, None, Phase::Waiting) && at(70.0, None, Phase::Training));
    assert!(!at(75.0, None, Phase::Training) && at(64.9, None, Phase::Waiting));
    // Five degrees below where the firmware slows down.
    assert!(!at(70.0, Some(75.0), Phase::Training) && at(69.9, Some(75.0), Phase::Training));
}

#[test]
fn while_it_trains_only_what_matters_then_stops_it() {
    let mut r = good();
    (r.in_flight, r.idle) = (3, Duration::ZERO);
    // Neither requests nor the memory that the trainer took.
    r.available = Some(70 << 20);
    let none: [&str; 0] = [];
    assert_eq!(unmet_names(&Need::default(), &r, Phase::Training), none);
    let mut settings = settings();
    settings.conditions.stop_on_request = true;
    let all = conditions(&need(), &r, &settings, Phase::Training);
    assert_eq!(unmet(&all), "3 requests run");
    r.available = Some(31 << 20);
    assert_eq!(unmet_names(&need(), &r, Phase::Training), ["memory"]);
}

#[test]
fn what_is_asked_for_waits_for_safety_alone() {
    let asked = Need { since_last: Some(Duration::ZERO), asked: true, ..Need::default() };
    let mut r = good();
    (r.idle, r.minute, r.load) = (Duration::ZERO, Some(12 * 60), Some(1.0));
    let none: [&str; 0] = [];
    assert_eq!(unmet_names(&asked, &r, Phase::Waiting), none);
    let broken = Need { failed: 3, since_last: Some(Duration::from_secs(7 * 3600)), ..need() };
    assert_eq!(unmet_names(&broken, &good(), Phase::Waiting), ["interval"]);
    let due = Need { trial_due: true, ..asked };
    assert_eq!(unmet_names(&due, &r, Phase::Waiting), ["trial"]);
    let mut kept = settings();
    kept.gate.retention_data = Some("/keep.jsonl".into());
    let missing = Need { set_missing: true, ..need() };
    let all = conditions(&missing, &good(), &kept, Phase::Waiting);
    assert_eq!(unmet(&all), "the retention set '/keep.jsonl' is missing");
    assert!(all_met(&conditions(&need(), &good(), &kept, Phase::Waiting)));
    // A job that was begun waits for no samples, but for idleness and hours.
    let open = Need { asked: false, open: true, ..asked };
    assert_eq!(unmet_names(&open, &r, Phase::Waiting), ["idle", "load", "hours"]);
    r.hottest.as_mut().unwrap().celsius = 90.0;
    r.power.under_voltage = Some(true);
    assert_eq!(unmet_names(&asked, &r, Phase::Waiting), ["temperature", "power"]);
}

/// From files of a board to sentences.
#[test]
fn a_hot_board_says_so() {
    let fake = Fake::new(&[
        ("/proc/meminfo", "MemTotal: 1000000 kB\nMemAvailable: 800000 kB\n"),
        ("/proc/stat", "cpu  10 0 10 980 0 0 0 0\ncpu0 1\n"),
        ("/proc/loadavg", "0.25 0.1 0.1 1/100 9\n"),
        ("/sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
        ("/sys/class/thermal/thermal_zone0/temp", "71500\n"),
    ]);
    let mut reader = Reader::new(fake.root.clone());
    let now = Now { wall: 1_800_000_000, steady: Duration::from_secs(9) };
    let readings = reader.read(&Quiet::default(), now);
    assert_eq!((readings.available, readings.load), (Some(800_000 << 10), Some(0.25)));
    let mut settings = Settings::default();
    settings.conditions.idle_seconds = 0;
    let all = conditions(&need(), &readings, &settings, Phase::Waiting);
    assert_eq!(unmet(&all), "'cpu-thermal' is at 71.5 °C, training starts below 65 °C");
    fake.put("/sys/class/thermal/thermal_zone0/temp", "40000\n");
    let readings = reader.read(&Quiet::default(), now);
    assert!(all_met(&conditions(&need(), &readings, &settings, Phase::Waiting)));
    let json = serde_json::to_value(&all).unwrap();
    assert!(json.as_array().unwrap().iter().all(|c| c["sentence"].is_string()));
}

/// A camera that asks every 15 s never lets 60 s pass without a request, and leaves the board idle.
#[test]
fn who_asks_seldom_leaves_a_board_idle() {
    let mut r = good();
    (r.idle, r.busy) = (Duration::from_secs(14), 0.02);
    let none: [&str; 0] = [];
    assert_eq!(unmet_names(&need(), &r, Phase::Waiting), none);
    (r.in_flight, r.idle) = (1, Duration::ZERO);
    assert_eq!(unmet_names(&need(), &r, Phase::Waiting), none);
    r.busy = 0.21;
    assert_eq!(unmet_names(&need(), &r, Phase::Waiting), ["idle"]);
    // Who wants no request beside training gets what was asked for.
    (r.in_flight, r.idle, r.busy) = (0, Duration::from_secs(14), 0.02);
    let mut settings = settings();
    settings.conditions.stop_on_request = true;
    let all = conditions(&need(), &r, &settings, Phase::Waiting);
    assert_eq!(unmet(&all), "no request for 14 s, 60 s are needed");
}

/// What a refused candidate has learned from is tried again, each time after twice as long; one correction
/// alone is learned after a day.
#[test]
fn what_is_not_learned_is_tried_again() {
    let hours = |hours: u64| Some(Duration::from_secs(3600 * hours));
    let few = |since: u64, refused: u32| {
        let need = Need { new: 0, unlearned: 1, refused, since_last: hours(since), ..need() };
        let all = conditions(&need, &good(), &settings(), Phase::Waiting);
        (all_met(&all), unmet(&all))
    };
    let (met, why) = few(23, 0);
    let said =
        "0 new samples, 20 are needed (1 that nothing promoted has learned are tried in 60 min)";
    assert!(!met && why == said, "{why}");
    assert!(few(24, 0).0);
    assert!(!few(47, 1).0 && few(48, 1).0);
    assert!(!few(27 * 24, 9).0 && few(28 * 24, 9).0);
    let (_, why) = few(25, 3);
    assert!(why.contains("3 candidates were refused"), "{why}");
    // All is learned.
    let learned = Need { new: 0, since_last: hours(9000), ..need() };
    assert_eq!(unmet_names(&learned, &good(), Phase::Waiting), ["new samples"]);
}
