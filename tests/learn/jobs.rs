//! Jobs: stopped and resumed to the same bits, killed, too small a memory, forgotten under way;
//! trials that a restart ends; what the child is allowed.

use crate::device::{Device, PATIENCE, POINTS, Points, willing};
use offshoot::adapters::TensorType;
use offshoot::store::{GenerationState, Input, JobState, Reference, Selector};
use offshoot::testing::daemon::Settings;
use std::time::Duration;

const ZONE: &str = "/sys/class/thermal/thermal_zone0";

/// A training of some seconds.
fn long(steps: u32) -> Settings {
    let mut settings = willing();
    settings.train.learning_rate = 3e-3;
    settings.train.rank = 4;
    settings.train.min_steps = steps;
    settings.train.checkpoint_every = 100;
    // Life of a job is the subject here. So many steps move a network of 12 inputs far from its base;
    // `week` holds what is learnt to the default floor.
    settings.gate.retention_cosine = 0.0;
    settings
}

fn samples(count: usize) -> Vec<(Input, &'static str)> {
    let mut points = Points::new(1);
    (0..count).map(|i| (points.around(i % 3), POINTS[i % 3])).collect()
}

fn teach(device: &Device, samples: &[(Input, &str)]) {
    device.store.create_name("home").unwrap();
    for (input, label) in samples {
        device.feedback("home", input, label, "anna");
    }
}

/// The first generation's bytes without the date.
fn generation(device: &Device) -> Vec<u8> {
    let loaded = device.store.load(&Reference::parse("home@1").unwrap()).unwrap();
    let mut adapter = loaded.adapter;
    adapter.training.as_mut().unwrap().date = 0;
    adapter.to_bytes(TensorType::F32).unwrap()
}

fn running(device: &Device) -> Option<offshoot::testing::daemon::JobStatus> {
    device.learner().status().unwrap().job.filter(|j| j.step > 0)
}

/// Heat stops a training within a second; when it is cool again it goes on, and ends as one that
/// was never stopped.
#[test]
fn a_job_that_heat_stopped_ends_bit_equal() {
    let samples = samples(60);
    let mut undisturbed = Device::tiny("mlp", long(30_000));
    teach(&undisturbed, &samples);
    let mut device = undisturbed.twin("mlp");
    undisturbed.start();
    assert_eq!(undisturbed.ended(0, PATIENCE).state, JobState::Done);

    device.shows(&format!("{ZONE}/type"), "soc\n");
    device.shows(&format!("{ZONE}/temp"), "80000\n");
    device.start();
    std::thread::sleep(Duration::from_millis(300));
    let status = device.learner().status().unwrap();
    assert!(status.job.is_none() && status.waiting.contains("80 °C"), "{status:?}");
    device.shows(&format!("{ZONE}/temp"), "50000\n");
    let mut stops = 0;
    while stops < 2 {
        device.until("it trains", PATIENCE, || running(&device).is_some());
        let pid = running(&device).map(|j| j.pid);
        device.shows(&format!("{ZONE}/temp"), "90000\n");
        device.until("it stops", PATIENCE, || {
            device.store.jobs().unwrap()[0].state == JobState::Paused
        });
        if let Some(pid) = pid {
            assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        }
        // Between the two thresholds it waits.
        device.shows(&format!("{ZONE}/temp"), "70000\n");
        device.learner().wake();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(device.store.jobs().unwrap()[0].state, JobState::Paused);
        device.shows(&format!("{ZONE}/temp"), "50000\n");
        device.learner().wake();
        stops += 1;
    }
    assert_eq!(device.ended(0, PATIENCE).state, JobState::Done);
    let told = device.events("train");
    assert!(told.iter().any(|e| e.contains("90 °C")), "{told:?}");
    assert_eq!(generation(&undisturbed), generation(&device));
}

/// The child lowers itself, and has a memory limit that the kernel knows.
#[test]
fn the_child_is_idle_limited_and_dies_with_its_parent() {
    let mut device = Device::tiny("mlp", long(200_000));
    teach(&device, &samples(60));
    device.start();
    device.until("it trains", PATIENCE, || running(&device).is_some());
    let job = running(&device).unwrap();
    let proc = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", job.pid)).unwrap();
    let stat = proc("stat");
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Fields 19 (nice) and 41 (policy) of proc(5), counted behind the name.
    assert_eq!(fields[16], "19");
    let chrt = std::process::Command::new("chrt").args(["--idle", "0", "true"]).status();
    if chrt.is_ok_and(|s| s.success()) {
        assert_eq!(fields[38], "5", "not SCHED_IDLE");
    } else {
        println!("skipped: no chrt, so no SCHED_IDLE");
    }
    assert!(job.limit.contains("RLIMIT_DATA of 128 MiB"), "{}", job.limit);
    let limits = proc("limits");
    let data = limits.lines().find(|l| l.starts_with("Max data size")).unwrap();
    assert!(data.contains(&(128u64 << 20).to_string()), "{data}");
    device.learner().stop();
    assert!(!std::path::Path::new(&format!("/proc/{}", job.pid)).exists());
    assert_eq!(device.store.jobs().unwrap()[0].state, JobState::Paused);
}

#[test]
fn a_killed_child_is_recorded_and_backed_off() {
    let mut device = Device::tiny("mlp", long(200_000));
    teach(&device, &samples(60));
    device.start();
    device.until("it trains", PATIENCE, || running(&device).is_some());
    let pid = running(&device).unwrap().pid.to_string();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    device.until("it is recorded", PATIENCE, || device.store.jobs().unwrap()[0].attempts == 1);
    let job = device.store.jobs().unwrap().remove(0);
    assert_eq!(job.state, JobState::Queued);
    assert!(job.error.unwrap().contains("signal 9"));
    assert!(job.not_before > job.updated + 30);
    std::thread::sleep(Duration::from_millis(300));
    let waiting = device.learner().status().unwrap().waiting;
    assert!(waiting.contains("after a failure"), "{waiting}");
    assert_eq!(device.active("home"), None);
}

#[test]
fn too_little_memory_is_said_and_given_up_in_the_end() {
    let mut settings = long(50);
    settings.train.memory_mib = 16;
    settings.train.max_attempts = 1;
    let mut device = Device::tiny("mlp", settings);
    teach(&device, &samples(60));
    device.start();
    let job = device.ended(0, PATIENCE);
    assert_eq!(job.state, JobState::Failed);
    let error = job.error.unwrap();
    assert!(error.contains("MiB") || error.contains("memory"), "{error}");
    // The event follows the job's state.
    device.until("it is told", PATIENCE, || {
        device.events("train").iter().any(|text| text.contains("given up"))
    });
}

#[test]
fn what_is_forgotten_under_way_is_not_learned() {
    let mut device = Device::tiny("mlp", long(200_000));
    teach(&device, &samples(60));
    device.start();
    device.until("it trains", PATIENCE, || running(&device).is_some());
    let pid = running(&device).unwrap().pid;
    let all = Selector { source: Some("anna".into()), ..Selector::default() };
    device.store.forget(&all).unwrap();
    device.until("the child is gone", PATIENCE, || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    });
    device.until("nothing runs", PATIENCE, || device.learner().status().unwrap().job.is_none());
    assert!(device.store.generations("home").unwrap().is_empty());
}

/// What was measured for one gate says nothing of another: a retention set that came into the
/// configuration meanwhile was not looked at.
#[test]
fn a_job_is_judged_by_the_gate_that_it_began_with() {
    let mut settings = long(3000);
    settings.gate.min_gain = 1.0;
    let mut device = Device::tiny("mlp", settings);
    teach(&device, &samples(60));
    device.start();
    device.until("it trains", PATIENCE, || running(&device).is_some());
    device.settings.write().unwrap().gate.min_gain = 0.01;
    let job = device.ended(0, PATIENCE);
    assert_eq!(device.active("home"), None);
    let verdict = job.progress.unwrap()["verdict"].to_string();
    assert!(verdict.contains("a gain of 100.0 % is needed"), "{verdict}");
}

#[test]
fn a_restart_during_the_trial_goes_back() {
    let mut settings = long(300);
    settings.trial.seconds = 3600;
    let mut device = Device::tiny("mlp", settings);
    teach(&device, &samples(60));
    device.start();
    assert_eq!(device.ended(0, PATIENCE).state, JobState::Done);
    assert_eq!(device.active("home"), Some(1));
    let status = device.learner().status().unwrap();
    assert!(status.names[0].trial_left.is_some_and(|s| s > 3000), "{status:?}");
    // Asked twice within the trial: nothing is new, so nothing is proven better.
    device.learner.take().unwrap().stop();
    device.start();
    assert_eq!(device.active("home"), None);
    let states = device.store.generations("home").unwrap();
    assert_eq!(states[0].state, GenerationState::Candidate);
}

#[test]
fn training_that_is_asked_for_needs_no_new_samples() {
    let mut device = Device::tiny("mlp", long(300));
    device.settings.write().unwrap().conditions.min_new = 1000;
    teach(&device, &samples(45));
    device.start();
    std::thread::sleep(Duration::from_millis(200));
    assert!(device.store.jobs().unwrap().is_empty());
    let status = device.learner().status().unwrap();
    assert!(status.waiting.contains("45 new samples, 1000 are needed"), "{status:?}");
    assert!(device.learner().train_now("nobody").is_err());
    let job = device.learner().train_now("home").unwrap();
    assert_eq!(device.ended(job - 1, PATIENCE).state, JobState::Done);
    device.until("it is confirmed", PATIENCE, || {
        device.store.generations("home").unwrap()[0].state == GenerationState::Promoted
    });
    assert_eq!(device.active("home"), Some(1));
    assert!(device.events("promotion")[0].contains("proven"), "{:?}", device.events("promotion"));
}
