//! Samples: what is taken in, held out, quarantined, evicted.

use super::tests::{adapter, store};
use super::*;
use crate::error::{Cause, ErrorKind};
use std::collections::BTreeMap;

pub(super) fn sample(text: &str, label: &str, source: &str) -> NewSample {
    NewSample {
        name: "home".into(),
        input: Input::Text(text.into()),
        label: Some(Label::Class(label.into())),
        predicted: None,
        generation: None,
        source: source.into(),
        time: 1_700_000_000,
        consent: true,
    }
}

fn rules(change: impl FnOnce(&mut Rules)) -> Rules {
    let mut rules = Rules::default();
    change(&mut rules);
    rules
}

#[test]
fn what_is_taken_in_comes_out_again() {
    let (_dir, store) = store();
    let picture = Input::File { bytes: vec![7; 100_000], mime: "image/png".into() };
    let tensors = NewSample {
        input: Input::Tensors(vec![1, 2, 3]),
        label: Some(Label::Values(vec![0.5, -1.0])),
        ..sample("", "", "app")
    };
    let picture = NewSample { input: picture, label: None, ..sample("", "", "app") };
    for new in [sample("light on", "lamp", "app"), picture, tensors] {
        let recorded = store.add_sample(&new).unwrap();
        assert_eq!(recorded.outcome, Taken::New);
        let found = Store::open(store.root()).unwrap().sample(recorded.id).unwrap();
        assert_eq!((found.input, found.label), (new.input, new.label));
        assert_eq!((found.info.hash, found.info.part), (recorded.hash, recorded.part));
    }
    let set = store.training_set("home").unwrap();
    assert_eq!((set.train.len() + set.held.len(), set.unlabelled.len()), (2, 1));
    assert_eq!(store.sample(99).unwrap_err().cause(), Some(Cause::NotFound));
}

#[test]
fn what_makes_no_sense_or_has_no_consent_is_not_stored() {
    let (_dir, store) = store();
    let error = store.add_sample(&NewSample { consent: false, ..sample("a", "b", "c") });
    assert_eq!(error.unwrap_err().cause(), Some(Cause::NoConsent));
    let long = "x".repeat(257);
    let values = |v: Vec<f32>| NewSample { label: Some(Label::Values(v)), ..sample("a", "b", "c") };
    for wrong in [
        sample("", "b", "c"),
        sample("a", "", "c"),
        sample("a", "b", ""),
        sample("a", "b\n", "c"),
        sample("a", "b", &long),
        values(vec![]),
        values(vec![f32::NAN]),
        NewSample { name: "../x".into(), ..sample("a", "b", "c") },
    ] {
        assert_eq!(store.add_sample(&wrong).unwrap_err().kind(), ErrorKind::Usage, "{wrong:?}");
    }
    assert!(store.names().unwrap().is_empty());
}

#[test]
fn duplicates_merge_and_corrections_relabel_in_their_part() {
    let (_dir, store) = store();
    let first = store.add_sample(&sample("light on", "lamp", "app")).unwrap();
    let again = store.add_sample(&sample("light on", "lamp", "web")).unwrap();
    assert_eq!((again.id, again.outcome), (first.id, Taken::Merged));
    let asked = NewSample { label: None, ..sample("light on", "", "app") };
    assert_eq!(store.add_sample(&asked).unwrap().outcome, Taken::Merged);
    let round = store.training_set("home").unwrap().round;
    store.trained("home", round).unwrap();
    assert_eq!(store.counts("home").unwrap().new, 0);
    let corrected = store.add_sample(&sample("light on", "music", "app")).unwrap();
    let expected = Recorded { outcome: Taken::Relabelled, ..first.clone() };
    assert_eq!(corrected, expected);
    let info = store.sample(first.id).unwrap().info;
    assert_eq!((info.label.as_deref(), info.seen), (Some("music"), 4));
    assert_eq!(store.counts("home").unwrap().new, 1);
}

#[test]
fn new_is_what_came_after_the_training_set_was_taken() {
    let (_dir, store) = store();
    store.add_sample(&sample("a", "x", "app")).unwrap();
    let round = store.training_set("home").unwrap().round;
    store.add_sample(&sample("b", "x", "app")).unwrap();
    assert_eq!(store.counts("home").unwrap().new, 2, "nothing was trained yet");
    store.trained("home", round).unwrap();
    let counts = store.counts("home").unwrap();
    assert_eq!((counts.new, counts.kept), (1, 2));
    assert_eq!(counts.classes.len(), 1);
    assert_eq!(counts.classes[0].label.as_deref(), Some("x"));
}

#[test]
fn the_hold_out_is_a_share_of_each_class_and_stays() {
    let (_dir, store) = store();
    let mut parts = BTreeMap::new();
    for i in 0..120 {
        let class = ["a", "b", "c"][if i < 60 { 0 } else { 1 + i % 2 }];
        let text = format!("sentence {i}");
        let recorded = store.add_sample(&sample(&text, class, "app")).unwrap();
        parts.insert(text, recorded.part);
    }
    for class in store.counts("home").unwrap().classes {
        let all = (class.train + class.held) as f64;
        assert!((class.held as f64 - 0.2 * all).abs() <= 1.0, "{class:?}");
    }
    let set = store.training_set("home").unwrap();
    assert!(set.held.iter().all(|h| set.train.iter().all(|t| t.hash != h.hash)));
    // A second store has another key and so another choice.
    let (_dir, other) = super::tests::store();
    let differs = (0..120).any(|i| {
        let text = format!("sentence {i}");
        other.add_sample(&sample(&text, "a", "app")).unwrap().part != parts[&text]
    });
    assert!(differs);
}

#[test]
fn samples_that_are_not_trusted_wait_in_quarantine() {
    let (_dir, store) = store();
    store.set_rules(rules(|r| r.labels = vec!["lamp".into(), "music".into()])).unwrap();
    let unknown = store.add_sample(&sample("boo", "ghost", "app")).unwrap();
    assert!(matches!(unknown.outcome, Taken::Quarantined(_)));
    // The same source corrects itself.
    let mended = store.add_sample(&sample("boo", "music", "app")).unwrap();
    assert_eq!((mended.id, mended.outcome), (unknown.id, Taken::Relabelled));

    let sure = store.add_sample(&sample("light on", "lamp", "app")).unwrap();
    let other = store.add_sample(&sample("light on", "music", "web")).unwrap();
    assert!(matches!(other.outcome, Taken::Quarantined(_)) && other.id == sure.id);
    let waiting = Filter { state: Some(SampleState::Quarantined), ..Filter::default() };
    let found = store.samples(&waiting).unwrap();
    assert_eq!((found.len(), found[0].label.as_deref()), (1, Some("lamp")));
    assert_eq!(
        store.training_set("home").unwrap().train.len()
            + store.training_set("home").unwrap().held.len(),
        1
    );
    store.release(sure.id).unwrap();
    assert!(store.samples(&waiting).unwrap().is_empty());
    store.quarantine(sure.id, "far from all others").unwrap();
    assert_eq!(store.counts("home").unwrap().quarantined, 1);
    assert!(store.release(99).is_err());
    let kinds: Vec<String> = store.events(100, 0).unwrap().into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds, ["quarantine", "release", "quarantine"]);
}

#[test]
fn a_source_beyond_its_rate_or_share_is_not_trusted() {
    let (_dir, store) = store();
    store.set_rules(rules(|r| r.source_per_hour = 3)).unwrap();
    let quarantined = |i: usize, source: &str| {
        let recorded = store.add_sample(&sample(&format!("{i}"), "x", source)).unwrap();
        matches!(recorded.outcome, Taken::Quarantined(_))
    };
    let outcomes: Vec<bool> = (0..5).map(|i| quarantined(i, "bot")).collect();
    assert_eq!(outcomes, [false, false, false, true, true]);
    assert!(!quarantined(9, "app"));

    store.set_rules(rules(|r| r.source_share = 0.5)).unwrap();
    let mut caught = 0;
    for i in 10..400 {
        caught += usize::from(quarantined(i, if i % 4 == 0 { "app" } else { "bot" }));
    }
    // Beyond the first window the bot's three of four are cut to half.
    assert!((60..160).contains(&caught), "{caught}");
    let app = Filter { source: Some("app".into()), ..Filter::default() };
    assert!(store.samples(&app).unwrap().iter().all(|s| s.state == SampleState::Kept));
}

#[test]
fn quotas_keep_the_newest_in_balance() {
    let (_dir, store) = store();
    store.set_rules(rules(|r| r.quota.max_samples = 30)).unwrap();
    for i in 0..10 {
        store.add_sample(&sample(&format!("rare {i}"), "rare", "app")).unwrap();
    }
    for i in 0..100 {
        store.add_sample(&sample(&format!("common {i}"), "common", "app")).unwrap();
    }
    let counts = store.counts("home").unwrap();
    assert_eq!(counts.kept, 30);
    let rare = counts.classes.iter().find(|c| c.label.as_deref() == Some("rare")).unwrap();
    assert_eq!(rare.train + rare.held, 10, "the largest class makes room");
    let held = counts.classes.iter().map(|c| c.held).sum::<u64>();
    assert!((5..=7).contains(&held), "{counts:?}");
    let set = store.training_set("home").unwrap();
    let newest = set.train.iter().chain(&set.held).map(|s| s.id).max().unwrap();
    assert_eq!(newest, 110);
    assert!(store.events(10, 0).unwrap().iter().any(|e| e.kind == "eviction" && e.count == 80));

    store.set_rules(rules(|r| r.quota.max_bytes = 1000)).unwrap();
    let large = NewSample { input: Input::Tensors(vec![1; 900]), ..sample("", "common", "app") };
    store.add_sample(&large).unwrap();
    assert!(store.counts("home").unwrap().bytes <= 1000);
    let huge = NewSample { input: Input::Tensors(vec![1; 1001]), ..large };
    assert_eq!(store.add_sample(&huge).unwrap_err().kind(), ErrorKind::Refused);
}

/// The quota must not hide from `forget` who learned from what is gone.
#[test]
fn an_evicted_sample_keeps_its_part_and_is_still_forgotten() {
    let (_dir, store) = store();
    let first = store.add_sample(&sample("mine", "x", "me")).unwrap();
    let origin = Origin { manifest: vec![first.hash], ..Origin::default() };
    store.add("home", &adapter(1.0), &origin).unwrap();
    store.set_rules(rules(|r| r.quota.max_samples = 1)).unwrap();
    store.add_sample(&sample("yours", "x", "you")).unwrap();
    assert!(store.sample(first.id).is_err());
    let back = store.add_sample(&sample("mine", "x", "me")).unwrap();
    assert_eq!((back.id, back.part, back.outcome), (first.id, first.part, Taken::New));
    store.add_sample(&sample("yours", "x", "you")).unwrap();
    let me = Selector { source: Some("me".into()), ..Selector::default() };
    let report = store.forget(&me).unwrap();
    assert_eq!((report.samples, report.generations.len()), (1, 1));
}

/// A label's text goes with the last row that has it, also where that was an evicted sample's.
#[test]
fn a_label_goes_with_its_last_sample() {
    let (_dir, store) = store();
    let mine = store.add_sample(&sample("mine", "secretlabel", "me")).unwrap();
    let origin = Origin { manifest: vec![mine.hash], ..Origin::default() };
    store.add("home", &adapter(1.0), &origin).unwrap();
    store.set_rules(rules(|r| r.quota.max_samples = 1)).unwrap();
    let you = store.add_sample(&sample("yours", "x", "you")).unwrap();
    let labels = || {
        let texts = store.read(|c| super::samples::labels(c, &store.unlocked(c)?, None)).unwrap();
        let mut texts: Vec<String> = texts.into_values().collect();
        texts.sort();
        texts
    };
    assert_eq!(labels(), ["secretlabel", "x"]);
    // Nothing that learned from it is left, and the sweep is what remembers that it was there.
    store.remove(&Reference::parse("home@1").unwrap(), false).unwrap();
    assert_eq!(labels(), ["x"]);
    store.forget(&Selector { ids: vec![you.id], ..Selector::default() }).unwrap();
    assert_eq!(labels(), [""; 0]);
}

/// Rows of evicted samples are swept while a sample with a new label is taken in.
#[test]
fn a_new_label_outlives_the_sweep() {
    let (_dir, store) = store();
    store.set_rules(rules(|r| r.quota.max_samples = 1)).unwrap();
    for i in 0..300 {
        store.add_sample(&sample(&format!("{i}"), &format!("label{i}"), "me")).unwrap();
        let kept = store.samples(&Filter::default()).unwrap();
        assert_eq!(kept[0].label, Some(format!("label{i}")), "{i}");
    }
}

#[test]
fn outcomes_are_counted_with_the_feedback() {
    let (_dir, store) = store();
    for number in 1..=3 {
        store.add("home", &adapter(number as f32), &Origin::default()).unwrap();
    }
    let now = super::db::now();
    let answer = |text: &str, label: &str, predicted: &str| NewSample {
        predicted: Some(predicted.into()),
        generation: Some(3),
        time: now - 7200,
        ..sample(text, label, "app")
    };
    store.add_sample(&answer("a", "x", "x")).unwrap();
    store.add_sample(&answer("b", "x", "y")).unwrap();
    assert_eq!(store.outcomes("home", 3).unwrap(), Outcomes { right: 1, total: 2 });
    // A clock that runs ahead counts as now.
    store.record_outcome("home", 3, true, u64::MAX).unwrap();
    assert_eq!(store.outcomes("home", 3).unwrap(), Outcomes { right: 2, total: 3 });
    let later = store.outcomes_since("home", 3, now - 3600).unwrap();
    assert_eq!(later, Outcomes { right: 1, total: 1 });
    // A contradiction is no evidence against a generation, nor is what nobody answered.
    let other = NewSample { source: "web".into(), ..answer("a", "y", "x") };
    store.add_sample(&other).unwrap();
    store.record_outcome("home", 3, true, 0).unwrap();
    store.record_outcome("home", 99, true, now).unwrap();
    assert_eq!(store.outcomes("home", 3).unwrap().total, 3);
    assert_eq!(store.outcomes("home", 99).unwrap(), Outcomes::default());
    store.record_outcome("home", 0, true, now).unwrap();
    assert_eq!(store.outcomes("home", 0).unwrap(), Outcomes { right: 1, total: 1 });
}

#[test]
fn filters_meet_all_that_is_given() {
    let (_dir, store) = store();
    for i in 0..10u64 {
        let label = ["a", "b"][i as usize % 2];
        let new = NewSample { time: 100 + i, ..sample(&format!("{i}"), label, "app") };
        store.add_sample(&new).unwrap();
    }
    store.add_sample(&NewSample { name: "away".into(), ..sample("z", "a", "app") }).unwrap();
    let ids = |filter: Filter| -> Vec<i64> {
        store.samples(&filter).unwrap().iter().map(|s| s.id).collect()
    };
    let none = Filter::default;
    assert_eq!(ids(none()).len(), 11);
    assert_eq!(ids(Filter { label: Some("a".into()), ..none() }), [1, 3, 5, 7, 9, 11]);
    assert_eq!(ids(Filter { since: Some(103), until: Some(105), ..none() }), [4, 5]);
    assert_eq!(ids(Filter { limit: 2, after: 5, ..none() }), [6, 7]);
    assert_eq!(ids(Filter { name: Some("away".into()), ..none() }), [11]);
    assert!(ids(Filter { name: Some("nobody".into()), ..none() }).is_empty());
    assert!(ids(Filter { label: Some("nothing".into()), ..none() }).is_empty());
}

#[test]
fn jobs_are_resumed_backed_off_and_closed() {
    let (_dir, store) = store();
    let id = store.queue_job("home", "enough new samples").unwrap();
    assert_eq!(store.queue_job("home", "again").unwrap(), id, "one is open");
    let progress = serde_json::json!({"step": 3});
    store.update_job(id, JobState::Running, Some(&progress)).unwrap();
    assert_eq!(
        Store::open(store.root()).unwrap().end_interrupted_jobs(5).unwrap(),
        [(id, JobState::Paused)]
    );
    let job = store.job(id).unwrap().unwrap();
    assert_eq!((job.progress, job.state), (Some(progress), JobState::Paused));
    assert_eq!(job.not_before, job.updated, "the first time it goes on at once");
    store.job_got_further(id).unwrap();
    assert_eq!(store.fail_job(id, "out of memory", 2).unwrap(), JobState::Queued);
    let failed = store.job(id).unwrap().unwrap();
    let wait = failed.not_before - failed.updated;
    assert!((59..=61).contains(&wait), "{wait}");
    assert_eq!(store.fail_job(id, "out of memory", 2).unwrap(), JobState::Failed);
    let error = store.update_job(id, JobState::Done, None).unwrap_err();
    assert_eq!(error.cause(), Some(Cause::Moved));
    for _ in 0..30 {
        let id = store.queue_job("home", "more").unwrap();
        store.update_job(id, JobState::Done, None).unwrap();
    }
    assert_eq!(store.jobs().unwrap().len(), 20);
}

#[test]
fn a_job_that_breaks_the_device_is_given_up_and_one_that_had_ended_is_done() {
    let (_dir, store) = store();
    let id = store.queue_job("home", "enough new samples").unwrap();
    let interrupt = |store: &Store| {
        store.update_job(id, JobState::Running, None).unwrap();
        store.end_interrupted_jobs(3).unwrap()
    };
    for wait in [0, 60] {
        assert_eq!(interrupt(&store), [(id, JobState::Paused)]);
        let job = store.job(id).unwrap().unwrap();
        assert_eq!(job.not_before - job.updated, wait);
    }
    assert_eq!(interrupt(&store), [(id, JobState::Failed)]);
    let id = store.queue_job("home", "enough new samples").unwrap();
    store.update_job(id, JobState::Running, None).unwrap();
    let origin = Origin { job: Some(id), ..Origin::default() };
    store.add("home", &super::tests::adapter(1.0), &origin).unwrap();
    assert_eq!(store.end_interrupted_jobs(3).unwrap(), [(id, JobState::Done)]);
}

#[test]
fn one_input_is_one_witness_of_a_generation() {
    let (_dir, store) = store();
    let answered = |text: &str, generation: Option<u64>| {
        let predicted = Some("off".into());
        let time = super::db::now();
        let sample = sample(text, "on", "me");
        store.add_sample(&NewSample { predicted, generation, time, ..sample }).unwrap();
    };
    let of = |generation: u64| store.outcomes("home", generation).unwrap();
    // The base answers while nothing is active.
    answered("a", None);
    answered("a", None);
    answered("b", None);
    assert_eq!(of(0), Outcomes { right: 0, total: 2 });
    let added = store.add("home", &super::tests::adapter(1.0), &Origin::default()).unwrap();
    store.activate("home", added.generation, None, None).unwrap();
    for _ in 0..3 {
        answered("a", Some(added.generation));
    }
    assert_eq!(of(added.generation), Outcomes { right: 0, total: 1 });
    // The base's again, and this one's: they don't take turns.
    answered("a", Some(0));
    answered("a", Some(added.generation));
    assert_eq!((of(0).total, of(added.generation).total), (2, 1));
    // Of a generation that there is not nothing is counted, and nothing remembered.
    answered("b", Some(1 << 40));
    answered("b", Some(added.generation));
    assert_eq!(of(added.generation), Outcomes { right: 0, total: 2 });
    // Who says no generation means none in particular.
    answered("c", None);
    assert_eq!((of(0).total, of(added.generation).total), (2, 2));
}

#[test]
fn texts_that_differ_in_spelling_alone_share_a_part() {
    let rules = rules(|r| r.hold_out = 0.5);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), Options { rules, ..Options::default() }).unwrap();
    let mut parts = std::collections::HashSet::new();
    for i in 0..20 {
        let part = |text: String| store.add_sample(&sample(&text, "on", "me")).unwrap().part;
        let first = part(format!("turn lamp {i} on"));
        for other in [format!("Turn lamp {i} on!"), format!("  turn LAMP, {i}  on")] {
            assert_eq!(part(other), first);
        }
        let fourth = sample(&format!("turn... lamp {i} on"), "on", "me");
        let outcome = store.add_sample(&fourth).unwrap().outcome;
        assert!(matches!(outcome, Taken::Quarantined(why) if why.text().contains("3 spellings")));
        parts.insert(first);
    }
    assert_eq!(parts.len(), 2);
    // What only such signs tell apart is not alike.
    for text in ["3+4", "3-4", "3*4", "3/4", "ok 👍", "ok 👎", "ok 👌", "ok 🙂"] {
        let outcome = store.add_sample(&sample(text, "on", "me")).unwrap().outcome;
        assert_eq!(outcome, Taken::New, "{text}");
    }
}

#[test]
fn what_has_no_label_is_not_new_to_learn() {
    let (_dir, store) = store();
    store.add_sample(&NewSample { label: None, ..sample("a", "x", "me") }).unwrap();
    let counts = store.counts("home").unwrap();
    assert_eq!((counts.kept, counts.new, counts.held), (1, 0, 0));
    store.add_sample(&sample("a", "x", "me")).unwrap();
    assert_eq!(store.counts("home").unwrap().new, 1);
}

/// A clock that was once in the future put all later feedback into quarantine, until that date came.
#[test]
fn what_came_while_the_clock_was_ahead_counts_in_no_hour() {
    let (_dir, store) = store();
    let rules = Rules { source_per_hour: 5, ..Rules::default() };
    store.set_rules(rules).unwrap();
    for i in 0..5 {
        store.add_sample(&sample(&format!("ahead {i}"), "x", "app")).unwrap();
    }
    let ahead = "UPDATE samples SET received = received + 365 * 86400";
    store.write(|c| Ok(c.execute(ahead, [])?)).unwrap();
    for i in 0..5 {
        let recorded = store.add_sample(&sample(&format!("now {i}"), "x", "app")).unwrap();
        assert_eq!(recorded.outcome, Taken::New, "{i}");
    }
    let recorded = store.add_sample(&sample("one more", "x", "app")).unwrap();
    assert!(matches!(recorded.outcome, Taken::Quarantined(_)));
}

/// 21 requests left 324 MB of state, and nothing bounded the number of names.
#[test]
fn the_state_as_a_whole_is_bounded() {
    let (_dir, store) = store();
    store.set_rules(rules(|r| (r.quota.max_names, r.quota.max_total_bytes) = (2, 3000))).unwrap();
    let of = |name: &str, text: &str| NewSample { name: name.into(), ..sample(text, "l", "me") };
    let long = "x".repeat(1000);
    let first = store.add_sample(&of("a", &long)).unwrap();
    store.add_sample(&of("b", &format!("{long}y"))).unwrap();
    let refused = |new: NewSample| {
        let error = store.add_sample(&new).unwrap_err();
        assert_eq!((error.kind(), error.cause()), (ErrorKind::Refused, Some(Cause::Full)));
        error.message().to_string()
    };
    assert!(refused(of("c", "x")).contains("max_names"));
    assert!(store.create_name("c").is_err() && store.queue_job("c", "due").is_err());
    // Two names of 64 MiB each may be more than all may have.
    assert!(refused(of("a", &long.repeat(2))).contains("max_total_bytes"));
    let answer = Label::Answer(format!("{{\"target\": \"{}\"}}", long.repeat(2)));
    let labelled = NewSample { label: Some(answer), ..of("a", "short") };
    assert!(refused(labelled).contains("max_total_bytes"), "labels count");
    store.quarantine(first.id, "why ".repeat(1_000_000).as_str()).unwrap();
    let kept = store.sample(first.id).unwrap().info.reason.unwrap();
    assert!(kept.len() <= 300 && kept.starts_with("why"), "{}", kept.len());
}
