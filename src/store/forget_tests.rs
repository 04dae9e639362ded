//! Forgetting and encryption: nothing of what is gone stays, in rows, files or raw bytes.

use super::sample_tests::sample;
use super::tests::{adapter, store};
use super::*;
use crate::error::{Cause, ErrorKind};
use std::path::Path;

/// Whether any file below `folder` holds `needle`.
pub(super) fn holds(folder: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => holds(&path, needle),
            false => std::fs::read(&path).unwrap().windows(needle.len()).any(|w| w == needle),
        }
    })
}

fn learn(store: &Store, value: f32, parent: Option<u64>, manifest: Vec<SampleHash>) -> u64 {
    let origin = Origin { parent, manifest, ..Origin::default() };
    let number = store.add("home", &adapter(value), &origin).unwrap().generation;
    store.activate("home", number, None, None).unwrap();
    number
}

#[test]
fn every_generation_that_learned_from_it_goes() {
    let (_dir, store) = store();
    let mine = store.add_sample(&sample("the marked sentence", "secretlabel", "me")).unwrap();
    let other = store.add_sample(&sample("another", "lamp", "you")).unwrap();
    learn(&store, 1.0, None, vec![other.hash]);
    let two = learn(&store, 2.0, Some(1), vec![mine.hash, other.hash]);
    let file = store.load(&Reference::parse("home@2").unwrap()).unwrap().path;
    // It saw only the other one itself, but grew from one that had learned more.
    learn(&store, 3.0, Some(two), vec![other.hash]);
    assert_eq!(store.manifest("home", 3).unwrap().len(), 2);
    let job = store.queue_job("home", "new samples").unwrap();
    store.set_job_manifest(job, &[mine.hash]).unwrap();
    let folder = store.make_job_folder(job).unwrap();
    std::fs::write(folder.join("checkpoint"), "learned").unwrap();
    assert!(holds(store.root(), b"the marked sentence") && holds(store.root(), b"secretlabel"));

    let me = Selector { source: Some("me".into()), ..Selector::default() };
    let report = store.forget(&me).unwrap();
    let retired: Vec<u64> = report.generations.iter().map(|r| r.generation).collect();
    assert_eq!((report.samples, retired), (1, vec![2, 3]));
    let fallback = Fallback { name: "home".into(), from: Some(3), to: Some(1) };
    assert_eq!(report.fallbacks, [fallback]);
    assert_eq!(
        (report.jobs_ended, report.jobs_queued.len(), report.finished),
        (vec![job], 1, true)
    );
    assert_eq!(store.active("home").unwrap(), Some(1));
    assert!(!file.exists() && !folder.exists());
    assert!(!holds(store.root(), b"the marked sentence") && !holds(store.root(), b"secretlabel"));
    let error = store.activate("home", 2, None, None).unwrap_err();
    assert!(error.message().contains("forgotten"), "{error}");
    let error = store.update_job(job, JobState::Done, None).unwrap_err();
    assert_eq!(error.cause(), Some(Cause::Forgotten));
    // What a running trainer made of it does not come in any more, in no way.
    for origin in [
        Origin { manifest: vec![mine.hash], ..Origin::default() },
        Origin { parent: Some(2), ..Origin::default() },
    ] {
        let error = store.add("home", &adapter(4.0), &origin).unwrap_err();
        assert_eq!(error.cause(), Some(Cause::Forgotten));
    }
    assert!(store.events(10, 0).unwrap().iter().any(|e| e.kind == "forget" && e.data.is_some()));
    store.verify().unwrap();
}

/// Verdicts and errors name classes; copies of an adapter hold what it learned.
#[test]
fn neither_what_was_said_of_it_nor_a_copy_outlives_it() {
    let (_dir, store) = store();
    let mine = store.add_sample(&sample("the marked sentence", "secretlabel", "me")).unwrap();
    store.add_sample(&sample("another", "lamp", "you")).unwrap();
    let job = store.queue_job("home", "new samples").unwrap();
    let said = serde_json::json!({ "passed": false, "checks": [
        { "name": "class floor", "value": 0.25, "sentence": "the worst class, 'secretlabel'" }] });
    let progress = serde_json::json!({ "steps": 60, "verdict": "worst is 'secretlabel'" });
    let mut numbers = vec![];
    for (value, manifest) in [(1.0, vec![mine.hash]), (2.0, vec![])] {
        let origin = Origin { manifest, verdict: Some(said.clone()), ..Origin::default() };
        numbers.push(store.add("home", &adapter(value), &origin).unwrap().generation);
    }
    store.update_job(job, JobState::Done, Some(&progress)).unwrap();
    let text = "generation 1 is not promoted: worst is 'secretlabel'";
    store.event("gate", Some("home"), text, Some(&said)).unwrap();
    store.forget(&Selector { source: Some("me".into()), ..Selector::default() }).unwrap();
    assert!(!holds(store.root(), b"secretlabel"));
    let events = store.events(10, 0).unwrap();
    assert!(events.iter().any(|e| e.text == "generation 1 is not promoted"), "{events:?}");
    let verdict = store.generations("home").unwrap().remove(1).verdict.unwrap();
    assert_eq!(verdict["checks"][0]["value"], 0.25);
    assert_eq!(store.job(job).unwrap().unwrap().progress.unwrap()["steps"], 60);
    let copy = store.add("home", &adapter(1.0), &Origin::default()).unwrap_err();
    assert_eq!(copy.cause(), Some(Cause::Forgotten));
}

#[test]
fn numbers_of_forgotten_samples_are_not_given_again() {
    let (_dir, store) = store();
    let one = store.add_sample(&sample("a", "x", "me")).unwrap();
    let ids = Selector { ids: vec![one.id], ..Selector::default() };
    assert_eq!(store.forget(&ids).unwrap().samples, 1);
    assert_eq!(store.add_sample(&sample("a", "x", "me")).unwrap().id, one.id + 1);
    assert_eq!(store.forget(&ids).unwrap().samples, 0);
}

#[test]
fn selectors_select_and_an_empty_one_is_refused() {
    let (_dir, store) = store();
    let fill = || {
        for i in 0..8u64 {
            let label = ["a", "b"][i as usize % 2];
            let new = NewSample { time: 100 + i, ..sample(&format!("{i}"), label, "app") };
            store.add_sample(&new).unwrap();
        }
    };
    fill();
    let none = Selector::default;
    assert_eq!(store.forget(&none()).unwrap_err().kind(), ErrorKind::Usage);
    let gone = |selector: Selector| {
        fill();
        store.forget(&selector).unwrap().samples
    };
    assert_eq!(gone(Selector { label: Some("a".into()), ..none() }), 4);
    assert_eq!(gone(Selector { since: Some(102), until: Some(104), ..none() }), 2);
    assert_eq!(gone(Selector { name: Some("away".into()), ..none() }), 0);
    let hash = store.samples(&Filter::default()).unwrap()[0].hash;
    assert_eq!(gone(Selector { hashes: vec![hash], ..none() }), 1);
    assert_eq!(gone(Selector { name: Some("home".into()), ..none() }), 8);
    assert_eq!(gone(Selector { all: true, ..none() }), 8);
}

#[test]
fn a_reader_elsewhere_delays_only_the_cleaning() {
    let (_dir, store) = store();
    store.add_sample(&sample("the marked sentence", "x", "me")).unwrap();
    let reader = rusqlite::Connection::open(store.root().join("state.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM samples;").unwrap();
    let report = store.forget(&Selector { all: true, ..Selector::default() }).unwrap();
    assert!(!report.finished && store.samples(&Filter::default()).unwrap().is_empty());
    reader.execute_batch("COMMIT").unwrap();
    let again = Store::open(store.root()).unwrap();
    assert!(again.finish_forgetting().unwrap());
    assert!(!holds(store.root(), b"the marked sentence"));
}

#[test]
fn encrypted_samples_need_their_key() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let key = Key::create(&dir.path().join("key")).unwrap();
    let other = Key::create(&dir.path().join("other")).unwrap();
    let with = |key: &Key| {
        Store::open_with(&root, Options { key: Some(key.clone()), ..Options::default() })
    };
    // Plain at first, then encrypted by the first opening with a key.
    let plain = Store::open(&root).unwrap();
    let first = plain.add_sample(&sample("the marked sentence", "secretlabel", "me")).unwrap();
    assert!(holds(&root, b"the marked sentence"));
    let store = with(&key).unwrap();
    assert!(store.encrypted());
    assert!(!holds(&root, b"the marked sentence") && !holds(&root, b"secretlabel"));
    let info = store.sample(first.id).unwrap();
    assert_eq!(info.input, Input::Text("the marked sentence".into()));
    let again = store.add_sample(&sample("the marked sentence", "secretlabel", "me")).unwrap();
    assert_eq!((again.id, again.hash, again.outcome), (first.id, first.hash, Taken::Merged));
    store.add_sample(&sample("a second sentence", "secretlabel", "me")).unwrap();
    assert!(!holds(&root, b"a second sentence"));
    // The store that was opened before must not mix plain samples in.
    let late = plain.add_sample(&sample("late", "x", "me")).unwrap_err();
    assert_eq!(late.cause(), Some(Cause::Locked));

    let error = with(&other).unwrap_err();
    assert_eq!((error.kind(), error.cause()), (ErrorKind::Mismatch, Some(Cause::Locked)));
    let closed = Store::open(&root).unwrap();
    for error in [
        closed.samples(&Filter::default()).unwrap_err(),
        closed.add_sample(&sample("x", "y", "z")).unwrap_err(),
        closed.forget(&Selector { label: Some("x".into()), ..Selector::default() }).unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.cause()), (ErrorKind::Refused, Some(Cause::Locked)));
    }
    // All else works without it.
    closed.add("home", &adapter(1.0), &Origin::default()).unwrap();
    assert_eq!(closed.counts("home").unwrap().kept, 2);
    let me = Selector { source: Some("me".into()), ..Selector::default() };
    assert_eq!(closed.forget(&me).unwrap().samples, 2);
}
