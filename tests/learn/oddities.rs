//! What devices meet in the long run: settings that changed, samples that can't be used, trials that
//! are cut short or set by hand, a base that answers well already.

use crate::device::{Device, PATIENCE, POINTS, Points, npz_file, repo, willing};
use offshoot::Array;
use offshoot::packing::PackOptions;
use offshoot::store::{
    Filter, GenerationState, Input, JobState, Label, NewSample, Part, SampleState, Selector,
};
use offshoot::testing::daemon::{Reference, Settings, Verdict};
use std::time::Duration;

fn settings() -> Settings {
    let mut settings = willing();
    settings.train.learning_rate = 3e-3;
    settings.train.rank = 4;
    settings.train.min_steps = 300;
    settings.gate.retention_cosine = 0.0;
    settings
}

fn teach(device: &Device, points: &mut Points, count: usize) {
    device.store.create_name("home").unwrap();
    for i in 0..count {
        device.feedback("home", &points.around(i % 3), POINTS[i % 3], "anna");
    }
}

fn add(device: &Device, input: Input, label: Label) -> i64 {
    let sample = NewSample {
        name: "home".into(),
        input,
        label: Some(label),
        predicted: None,
        generation: None,
        source: "anna".into(),
        time: 1_800_000_000,
        consent: true,
    };
    device.store.add_sample(&sample).unwrap().id
}

fn confirmed(device: &Device, generation: usize) -> bool {
    let found = device.store.generations("home").unwrap();
    found.get(generation - 1).is_some_and(|g| g.state == GenerationState::Promoted)
}

/// A generation of another rank can't be gone on from: the next one starts afresh, on everything,
/// and is still compared with it.
#[test]
fn another_rank_starts_afresh() {
    let mut device = Device::tiny("mlp", settings());
    let mut points = Points::new(1);
    teach(&device, &mut points, 60);
    device.start();
    let first = device.ended(0, PATIENCE);
    device.until("its trial ends", PATIENCE, || confirmed(&device, 1));
    {
        let mut settings = device.settings.write().unwrap();
        settings.train.rank = 8;
        settings.gate.min_gain = -1.0;
        settings.gate.confidence = 0.5;
    }
    teach(&device, &mut points, 60);
    device.learner().wake();
    let job = device.ended(first.id, PATIENCE);
    assert_eq!((job.state, job.attempts), (JobState::Done, 0), "{:?}", job.error);
    let told = device.events("train");
    assert!(told.iter().any(|t| t.contains("starts afresh") && t.contains("rank 4")), "{told:?}");
    let reference = offshoot::store::Reference::parse("home@2").unwrap();
    assert_eq!(device.store.load(&reference).unwrap().adapter.targets[0].rank, 8);
}

/// A number among classes, an input of another shape, a damaged one: they go into quarantine, and
/// training goes on without them.
#[test]
fn samples_that_cannot_be_used_are_set_aside() {
    let mut device = Device::tiny("mlp", settings());
    let mut points = Points::new(2);
    teach(&device, &mut points, 75);
    let number = add(&device, points.around(0), Label::Values(vec![0.5]));
    let short = add(&device, Points::of(11), Label::Class("a".into()));
    let text = add(&device, Input::Text("a sentence".into()), Label::Class("a".into()));
    let damaged = add(&device, points.around(0), Label::Class("a".into()));
    let database = device.store.root().join("state.db");
    let database = rusqlite::Connection::open(database).unwrap();
    let changed = database
        .execute("UPDATE inputs SET content = zeroblob(9) WHERE sample = ?1", [damaged])
        .unwrap();
    assert_eq!(changed, 1);
    device.start();
    let job = device.ended(0, PATIENCE);
    assert_eq!((job.state, job.attempts), (JobState::Done, 0), "{:?}", job.error);
    let aside = Filter { state: Some(SampleState::Quarantined), ..Filter::default() };
    let aside = device.store.samples(&aside).unwrap();
    let ids: Vec<i64> = aside.iter().map(|s| s.id).collect();
    assert_eq!(ids, [number, short, text, damaged], "{aside:?}");
    assert!(aside.iter().all(|s| s.reason.is_some()));
    assert!(device.events("train").iter().any(|t| t.contains("begins anew without")));
    assert_eq!(device.active("home"), Some(1));
}

/// A restart takes a generation on trial back; it is tried again once the device has run as long.
#[test]
fn a_trial_that_was_cut_short_is_tried_once_more() {
    let mut settings = settings();
    settings.trial.seconds = 2;
    let mut device = Device::tiny("mlp", settings);
    teach(&device, &mut Points::new(3), 60);
    device.start();
    assert_eq!(device.ended(0, PATIENCE).state, JobState::Done);
    device.learner.take().unwrap().stop();
    if confirmed(&device, 1) {
        return println!("skipped: the machine was too slow to cut the trial");
    }
    device.start();
    assert_eq!(device.active("home"), None);
    device.until("it is tried again", PATIENCE, || device.active("home") == Some(1));
    device.until("it is confirmed", PATIENCE, || confirmed(&device, 1));
    assert!(device.events("trial")[0].contains("tried again"), "{:?}", device.events("trial"));
}

/// Who sets a trial by hand gets its end too.
#[test]
fn a_trial_set_by_hand_ends() {
    let mut device = Device::tiny("mlp", settings());
    teach(&device, &mut Points::new(4), 60);
    device.start();
    device.ended(0, PATIENCE);
    device.until("its trial ends", PATIENCE, || confirmed(&device, 1));
    device.store.deactivate("home", None).unwrap();
    device.store.activate("home", 1, None, Some(Duration::from_secs(1))).unwrap();
    device.learner().wake();
    device.until("it ends", PATIENCE, || {
        device.store.name("home").unwrap().trial.is_none() && confirmed(&device, 1)
    });
}

/// What the gate would refuse for want of held-out samples is not trained at all.
#[test]
fn training_waits_for_held_out_samples() {
    let mut device = Device::tiny("mlp", settings());
    teach(&device, &mut Points::new(5), 24);
    device.start();
    device.until("it says so", PATIENCE, || {
        device.learner().status().unwrap().waiting.contains("held-out samples, 8 are needed")
    });
    let status = device.learner().status().unwrap();
    let new = status.names[0].conditions.iter().find(|c| c.name == "new samples").unwrap();
    assert!(new.met && !status.names[0].met, "{status:?}");
    assert!(device.store.jobs().unwrap().is_empty());
}

/// A base that is right already is what the first candidate is compared with.
#[test]
fn a_first_candidate_must_surpass_the_base() {
    let labels: Vec<String> = ["a", "b", "c", "d", "e"].map(String::from).to_vec();
    let options = PackOptions { labels: labels.clone(), ..PackOptions::default() };
    let mut device = Device::new(&repo("models/tiny/mlp.onnx"), &options, settings());
    device.store.create_name("home").unwrap();
    let mut points = Points::new(6);
    let engine = offshoot::testing::daemon::Serving::engine(&*device.desk).clone();
    for i in 0..90 {
        let input = points.around(i % 3);
        let outputs = engine.run(&device.inputs(&input), None).unwrap();
        let row = outputs[0].1.as_f32().unwrap().to_vec();
        let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        device.bring("home", &input, &labels[best], "anna");
    }
    device.start();
    assert_eq!(device.ended(0, PATIENCE).state, JobState::Done);
    let verdict = device.store.generations("home").unwrap().remove(0).verdict.unwrap();
    let verdict: Verdict = serde_json::from_value(verdict).unwrap();
    assert_eq!(verdict.reference, Reference::Base, "{}", verdict.sentence);
    assert_eq!(verdict.reference_accuracy, Some(1.0));
    assert_eq!(device.active("home"), None);
}

/// Who brings more samples of another sort than there are changes no name's task.
#[test]
fn a_majority_of_another_sort_changes_no_task() {
    let mut device = Device::tiny("mlp", settings());
    let mut points = Points::new(7);
    teach(&device, &mut points, 60);
    device.start();
    let first = device.ended(0, PATIENCE);
    device.until("its trial ends", PATIENCE, || confirmed(&device, 1));
    for i in 0..80 {
        add(&device, points.around(i % 3), Label::Values(vec![i as f32]));
    }
    device.learner().wake();
    let job = device.ended(first.id, PATIENCE);
    assert_eq!(job.progress.unwrap()["trained"], false);
    let counts = device.store.counts("home").unwrap();
    assert_eq!((counts.kept, counts.quarantined, counts.new), (60, 80, 0));
    assert_eq!(device.active("home"), Some(1));
}

/// Numbers are learned; one label of another width is set aside.
#[test]
fn a_label_of_another_width_is_set_aside() {
    let mut device = Device::tiny("mlp", settings());
    let mut points = Points::new(8);
    for i in 0..60 {
        add(&device, points.around(i % 3), Label::Values(vec![(i % 3) as f32]));
    }
    let wide = add(&device, points.around(0), Label::Values(vec![0.0, 1.0]));
    device.start();
    let job = device.ended(0, PATIENCE);
    assert_eq!((job.state, job.attempts), (JobState::Done, 0), "{:?}", job.error);
    let aside = Filter { state: Some(SampleState::Quarantined), ..Filter::default() };
    let aside = device.store.samples(&aside).unwrap();
    assert_eq!(aside.iter().map(|s| s.id).collect::<Vec<_>>(), [wide]);
    assert_eq!(device.active("home"), Some(1));
}

/// Several labels at once: feedback, training, the gate by their own measure, promotion.
#[test]
fn tags_are_learned_and_judged_by_their_f1() {
    let mut device = Device::tiny("mlp", settings());
    let mut points = Points::new(9);
    for i in 0..60 {
        let labels = [r#"{"labels":["a"]}"#, r#"{"labels":["b"]}"#, r#"{"labels":["a","b"]}"#];
        add(&device, points.around(i % 3), Label::Answer(labels[i % 3].into()));
    }
    device.start();
    let job = device.ended(0, PATIENCE);
    assert_eq!((job.state, job.attempts), (JobState::Done, 0), "{:?}", job.error);
    assert_eq!(device.active("home"), Some(1));
    let generations = device.store.generations("home").unwrap();
    let verdict: Verdict = serde_json::from_value(generations[0].verdict.clone().unwrap()).unwrap();
    assert!(verdict.sentence.contains("F1"), "{}", verdict.sentence);
    let reference = offshoot::store::Reference::parse("home@1").unwrap();
    let adapter = device.store.load(&reference).unwrap().adapter;
    let head = adapter.head().unwrap();
    assert_eq!((head.task.as_str(), head.labels.len()), ("tags", 2));
}

/// One sentence of 400 words among 60 stopped learning for good: its steps need more memory than there is.
#[test]
fn a_very_long_sentence_does_not_stop_learning() {
    let tokenizer = std::fs::read(repo("models/minilm-l6.tokenizer.json")).unwrap();
    let options = PackOptions { tokenizer: Some(tokenizer), ..PackOptions::default() };
    let mut settings = willing();
    (settings.train.epochs, settings.train.min_steps) = (1, 1);
    let mut device = Device::new(&repo("models/minilm-l6.onnx"), &options, settings);
    device.store.create_name("home").unwrap();
    let texts = ["turn on the lamp", "play some music", "set a timer"];
    for i in 0..60 {
        let text = format!("{} number {i}", texts[i % 3]);
        device.bring("home", &Input::Text(text), POINTS[i % 3], "anna");
    }
    // Some of them may be held out.
    for i in 0..4 {
        let text = format!("{i} {}", "turn on the lamp ".repeat(100));
        device.bring("home", &Input::Text(text), "a", "anna");
    }
    device.start();
    // Cut, or where stretches of the network that run twice make room for it, whole.
    let job = device.ended(0, 5 * PATIENCE);
    assert_eq!(job.state, JobState::Done, "{:?}", job.error);
    assert_eq!(device.store.counts("home").unwrap().quarantined, 0);
}

/// A clip of so many frames.
fn mels(frames: usize, value: f32) -> Input {
    let array = Array::f32(vec![1, frames, 6], vec![value; 6 * frames]).unwrap();
    Input::Tensors(npz_file("mels", &array))
}

/// A device that was taught short sequences.
fn sequences() -> Device {
    let mut settings = settings();
    (settings.train.epochs, settings.train.min_steps) = (1, 1);
    let device = Device::tiny("lstm", settings);
    device.store.create_name("home").unwrap();
    for i in 0..60 {
        let value = (i % 3) as f32 + 0.001 * i as f32;
        add(&device, mels(8, value), Label::Class(POINTS[i % 3].into()));
    }
    device
}

fn long(device: &Device, i: u16) -> i64 {
    let input = mels(300_000, 0.5 + 0.01 * f32::from(i));
    add(device, input, Label::Class("a".into()))
}

/// A job ends well without these.
fn set_aside(device: &mut Device, long: &[i64]) {
    device.start();
    let job = device.ended(0, PATIENCE);
    assert_eq!((job.state, job.attempts), (JobState::Done, 0), "{:?}", job.error);
    let aside = Filter { state: Some(SampleState::Quarantined), ..Filter::default() };
    let aside = device.store.samples(&aside).unwrap();
    assert_eq!(aside.iter().map(|s| s.id).collect::<Vec<_>>(), long, "{aside:?}");
    let why = aside[0].reason.as_ref().unwrap();
    assert!(why.contains("train.memory_mib"), "{why}");
}

/// The same of a sequence, which can't be cut.
#[test]
fn a_sequence_that_is_too_long_to_train_on_is_set_aside() {
    let mut device = sequences();
    let long: Vec<i64> = (0..4).map(|i| long(&device, i)).collect();
    set_aside(&mut device, &long);
}

/// And of one that is held out, and never trained on: there is no room to answer it.
#[test]
fn a_sequence_that_is_too_long_to_measure_on_is_set_aside() {
    let mut device = sequences();
    // The store decides which it holds out.
    let held = (0..100).find_map(|i| {
        let id = long(&device, i);
        if device.store.sample(id).unwrap().info.part == Part::HoldOut {
            return Some(id);
        }
        device.store.forget(&Selector { ids: vec![id], ..Selector::default() }).unwrap();
        None
    });
    set_aside(&mut device, &[held.unwrap()]);
}
