//! The instant head in the learner's jobs, and corrections: none is lost.

use crate::device::{Device, PATIENCE, POINTS, Points, willing};
use offshoot::store::{Filter, GenerationState, Part, Reference};
use offshoot::testing::daemon::{Reference as Against, Settings, Verdict};

fn settings() -> Settings {
    let mut settings = willing();
    settings.train.instant = true;
    settings.train.min_steps = 20;
    settings.train.epochs = 1;
    settings.gate.false_promotions = 0.01;
    settings.gate.retention_cosine = 0.0;
    settings
}

fn teach(device: &Device, points: &mut Points, count: usize, classes: usize) {
    device.store.create_name("home").unwrap();
    for i in 0..count {
        device.feedback("home", &points.around(i % classes), POINTS[i % classes], "anna");
    }
}

fn verdict(device: &Device, generation: usize) -> Verdict {
    let found = device.store.generations("home").unwrap();
    serde_json::from_value(found[generation - 1].verdict.clone().unwrap()).unwrap()
}

fn confirmed(device: &Device, generation: usize) -> bool {
    let found = device.store.generations("home").unwrap();
    found.get(generation - 1).is_some_and(|g| g.state == GenerationState::Promoted)
}

/// Twenty steps do not surpass the head in closed form: that becomes the generation, and says so. Six
/// samples of a new class that come later are learned too, though the hold-out was all right before.
#[test]
fn what_does_not_surpass_the_instant_head_is_not_promoted_and_a_new_class_is_learned() {
    let mut settings = settings();
    // What 48 held-out samples can say, one of them made wrong.
    (settings.gate.false_promotions, settings.gate.margin) = (0.05, 0.2);
    let mut device = Device::tiny("mlp", settings);
    let mut points = Points::new(21);
    teach(&device, &mut points, 240, 2);
    device.start();
    let first = device.ended(0, PATIENCE);
    let progress = first.progress.unwrap();
    assert_eq!((&progress["promoted"], &progress["instant"]), (&true.into(), &true.into()));
    let found = verdict(&device, 1);
    assert_eq!(found.reference, Against::MostFrequent);
    let adapter = device.store.load(&Reference::parse("home@1").unwrap()).unwrap().adapter;
    assert!(adapter.targets.is_empty() && adapter.head().is_some());
    let told = device.events("promotion");
    assert!(told[0].contains("what was trained did not surpass it"), "{told:?}");
    device.until("its trial ends", PATIENCE, || confirmed(&device, 1));

    let before = verdict(&device, 1).accuracy;
    assert!(before.is_some_and(|share| share > 0.97), "{before:?}");
    for _ in 0..6 {
        device.feedback("home", &points.around(2), POINTS[2], "anna");
    }
    // Six are fewer than 20: they are asked for, as they would be learned a day later.
    device.until("it says what is missing", PATIENCE, || {
        let missing = &device.learner().status().unwrap().names[0].missing;
        missing.contains("6 new samples, 20 are needed")
    });
    device.learner().train_now("home").unwrap();
    let second = device.ended(first.id, PATIENCE);
    let progress = second.progress.unwrap();
    assert_eq!(progress["promoted"], true, "{progress:?}");
    assert_eq!(device.active("home"), Some(2));
    let right = (0..20)
        .filter(|_| {
            let inputs = device.inputs(&points.around(2));
            device.desk.predict("home", &inputs).0 == POINTS[2]
        })
        .count();
    assert!(right >= 15, "{right} of 20 of the new class");
    // Nothing that was learned is tried again.
    assert_eq!(device.store.counts("home").unwrap().unlearned, 0);
}

/// A refused candidate's samples are not forgotten: they wait, and say how long. What has judged often
/// enough is learned from.
#[test]
fn what_was_refused_waits_and_what_has_judged_is_learned() {
    let mut settings = settings();
    settings.gate.min_gain = 1.0;
    settings.gate.judged = 2;
    settings.conditions.min_new = 500;
    let mut device = Device::tiny("mlp", settings);
    let mut points = Points::new(22);
    teach(&device, &mut points, 100, 3);
    device.start();
    let held = || {
        let held = Filter { part: Some(Part::HoldOut), ..Filter::default() };
        device.store.samples(&held).unwrap().len()
    };
    let before = held();
    let mut last = 0;
    for refused in 1..=3 {
        std::thread::sleep(std::time::Duration::from_millis(1100));
        device.learner().train_now("home").unwrap();
        let job = device.ended(last, PATIENCE);
        assert_eq!(job.progress.unwrap()["promoted"], false);
        last = job.id;
        // Written after the job's end.
        device.until("a training has seen them", PATIENCE, || {
            device.store.counts("home").unwrap().new == 0
        });
        let counts = device.store.counts("home").unwrap();
        assert!(counts.unlearned as usize >= 100 - before, "{counts:?}");
        let said = format!("{refused} candidates were refused are tried in");
        device.until("it says what waits", PATIENCE, || {
            device.learner().status().unwrap().names[0].missing.contains(&said)
        });
    }
    // The third job: two candidates were judged by what came in before.
    assert_eq!(held(), before - before / 4);
    let told = device.events("train");
    assert!(told.iter().any(|t| t.contains("held out long enough")), "{told:?}");
}
