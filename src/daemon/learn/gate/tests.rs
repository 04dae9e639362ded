//! Every threshold on its own: a candidate that passes all but one is refused for that one.

use super::*;
use crate::daemon::learn::settings::Evidence;

fn share(right: bool) -> f64 {
    f64::from(u8::from(right))
}

/// Judged with each sample's group as its one label.
fn judged(measured: &Measured, settings: &GateSettings, seed: u64) -> Verdict {
    let mut measured = measured.clone();
    for row in &mut measured.held {
        let rights = row.candidate_right.zip(row.reference_right);
        row.labels = rights.map(|(c, r)| (row.group, c, r)).into_iter().collect();
    }
    let gain = allowance(settings.false_promotions, 0) / 2.0;
    judge(&measured, settings, Look { gain, no_worse: None }, seed)
}

/// `right` of `count` answers are right, in three classes, the first ones wrong.
fn rows(count: usize, candidate: usize, reference: usize) -> Vec<HeldRow> {
    let loss = |right: bool| if right { 0.2 } else { 1.8 };
    (0..count)
        .map(|i| {
            let (c, r) = (i >= count - candidate, i >= count - reference);
            HeldRow {
                group: i % 3,
                candidate_right: Some(share(c)),
                candidate_loss: loss(c),
                reference_right: Some(share(r)),
                labels: vec![],
                reference_loss: loss(r),
                old: false,
            }
        })
        .collect()
}

/// Where what is sure is not the subject.
fn lenient() -> GateSettings {
    GateSettings { false_promotions: 1.9, ..GateSettings::default() }
}

fn good() -> Measured {
    Measured {
        reference: Reference::Generation(3),
        labels: ["a", "b", "c"].map(String::from).to_vec(),
        metric: "accuracy".into(),
        held: rows(30, 27, 18),
        kept: Kept {
            samples: 16,
            output: "y".into(),
            cosine_mean: 0.97,
            cosine_min: 0.9,
            agreement: Some(0.9),
            sentence: String::new(),
        },
        labelled: Some(Labelled { samples: 20, candidate: 0.8, reference: 0.8 }),
        effect: Some(0.01),
        lessons: None,
        finite: true,
        candidate_ms: 10.0,
        reference_ms: 9.0,
        latency_ratio: 1.1,
    }
}

fn failed(measured: &Measured, settings: &GateSettings) -> Vec<String> {
    let verdict = judged(measured, settings, 1);
    let failed: Vec<String> =
        verdict.checks.iter().filter(|c| !c.passed).map(|c| c.name.clone()).collect();
    assert_eq!(verdict.passed, failed.is_empty());
    assert_eq!(verdict.sentence.starts_with("proven"), verdict.passed, "{}", verdict.sentence);
    // Stored as JSON and read back with every number, but for the last bit.
    let text = serde_json::to_string(&verdict).unwrap();
    let read: Verdict = serde_json::from_str(&text).unwrap();
    assert_eq!((read.passed, &read.settings), (verdict.passed, &verdict.settings));
    for (a, b) in read.checks.iter().zip(&verdict.checks) {
        assert!((a.value - b.value).abs() <= 1e-12 * b.value.abs(), "{a:?} {b:?}");
        assert_eq!((&a.name, a.passed, &a.sentence), (&b.name, b.passed, &b.sentence));
    }
    failed
}

#[test]
fn a_better_candidate_passes_and_its_numbers_are_right() {
    let settings = GateSettings::default();
    assert_eq!(failed(&good(), &settings), Vec::<String>::new());
    let v = judged(&good(), &settings, 1);
    assert_eq!((v.samples, v.accuracy, v.reference_accuracy), (30, Some(0.9), Some(0.6)));
    assert_eq!(v.discordant, (9, 0));
    assert!((v.p - 1.0 / 512.0).abs() < 1e-12);
    assert!((v.loss - (0.9 * 0.2 + 0.1 * 1.8)).abs() < 1e-9);
    assert_eq!((v.alpha, v.accuracy_gain_low, v.loss_gain_low), (Some(0.0025), None, None));
    // Where nothing answered before, each look stands alone and the bootstrap speaks.
    let first = Measured { reference: Reference::MostFrequent, ..good() };
    let v = judged(&first, &settings, 1);
    let (accuracy, loss) = (v.accuracy_gain_low.unwrap(), v.loss_gain_low.unwrap());
    assert!(v.alpha.is_none() && accuracy > 0.1 && accuracy < 0.3);
    assert!(loss > 0.2 && loss < 0.48, "{loss}");
}

#[test]
fn each_check_alone_refuses() {
    let settings = GateSettings { retention_agreement: Some(0.8), ..GateSettings::default() };
    type Spoil = fn(&mut Measured);
    let cases: [(&str, Spoil); 11] = [
        ("finite", |m| m.finite = false),
        ("finite", |m| m.kept.cosine_mean = f64::NAN),
        ("holdout", |m| m.held.truncate(7)),
        ("gain", |m| m.held = rows(30, 18, 18)),
        ("sure", |m| m.held = rows(30, 18, 18)),
        ("retention", |m| m.kept.cosine_mean = 0.2),
        ("base classes", |m| m.kept.agreement = Some(0.5)),
        ("base classes", |m| m.kept.agreement = None),
        ("retention set", |m| {
            m.labelled = Some(Labelled { samples: 20, candidate: 0.6, reference: 0.8 })
        }),
        ("effect", |m| m.effect = Some(0.0)),
        ("latency", |m| m.latency_ratio = 2.01),
    ];
    assert_eq!(failed(&good(), &settings), Vec::<String>::new());
    for (name, spoil) in cases {
        let mut measured = good();
        spoil(&mut measured);
        let failed = failed(&measured, &settings);
        assert!(failed.iter().any(|f| f == name), "{name}: {failed:?}");
    }
}

#[test]
fn a_small_gain_needs_evidence() {
    // One more right of thirty, by chance as likely as not; its loss is hardly better.
    let mut measured = good();
    measured.held = rows(30, 19, 18);
    for (i, row) in measured.held.iter_mut().enumerate() {
        row.candidate_loss = 1.0 + if i % 2 == 0 { 0.3 } else { -0.31 };
        row.reference_loss = 1.0;
    }
    assert_eq!(failed(&measured, &GateSettings::default()), ["sure"]);
    measured.reference = Reference::MostFrequent;
    for evidence in [Evidence::Loss, Evidence::Answers, Evidence::Accuracy] {
        let settings = GateSettings { evidence, ..GateSettings::default() };
        assert_eq!(failed(&measured, &settings), ["evidence"], "{evidence:?}");
    }
}

#[test]
fn a_class_that_falls_is_refused_though_the_whole_gains() {
    let mut measured = good();
    // Class 0 had 6 of 10 and gets 1 of 10; the others gain.
    for (i, row) in measured.held.iter_mut().enumerate() {
        let in_class = i / 3;
        row.candidate_right = Some(share(i % 3 != 0 || in_class == 9));
        row.candidate_loss = if row.candidate_right == Some(1.0) { 0.1 } else { 1.0 };
    }
    assert_eq!(failed(&measured, &lenient()), ["class floor"]);
    let verdict = judged(&measured, &lenient(), 1);
    assert!(verdict.sentence.contains("'a'"), "{}", verdict.sentence);
    // A class that the reference never got right may stay at nothing.
    for row in measured.held.iter_mut().filter(|r| r.group == 0) {
        row.reference_right = Some(0.0);
        row.candidate_right = Some(0.0);
    }
    assert_eq!(failed(&measured, &lenient()), Vec::<String>::new());
    // Too few to judge a class by.
    let settings = GateSettings { class_min: 11, ..lenient() };
    assert_eq!(failed(&measured, &settings), Vec::<String>::new());
}

/// Ten classes of five held-out samples, which both sides answer as well: by chance one class of
/// them falls often. That refuses few; a class that collapses is refused.
#[test]
fn what_may_be_chance_refuses_no_class() {
    let settings = lenient();
    let (mut refused, mut fallen, runs) = (0, 0, 300);
    for run in 0..runs {
        let mut rng = crate::train::random::stream(run, "classes", 0);
        let mut right = || Some(share(crate::train::random::unit(&mut rng) < 0.65));
        let mut measured = good();
        measured.held = rows(50, 50, 50);
        for (i, row) in measured.held.iter_mut().enumerate() {
            (row.group, row.candidate_right, row.reference_right) = (i % 10, right(), right());
        }
        let verdict = judged(&measured, &settings, 1);
        let check = verdict.checks.iter().find(|c| c.name == "class floor").unwrap();
        refused += usize::from(!check.passed);
        fallen += usize::from(check.value < check.threshold);
        assert_eq!(check.value < check.threshold, check.sentence.contains("chance"), "{check:?}");
    }
    // Those that fall by more than is allowed are many, those that are shown to are few: five of
    // five, or four and none the other way (p 0.03 and 0.06).
    assert!(fallen > runs as usize / 3, "{fallen}");
    assert!(refused < runs as usize / 6, "{refused}");
    let mut measured = good();
    measured.held = rows(50, 50, 35);
    for (i, row) in measured.held.iter_mut().enumerate() {
        row.group = i % 10;
        if row.group == 4 {
            (row.candidate_right, row.reference_right) = (Some(0.0), Some(share(i > 4)));
        }
    }
    assert_eq!(failed(&measured, &settings), ["class floor"]);
    // Nothing answered before; the base did.
    measured.reference = Reference::Base;
    assert_eq!(failed(&measured, &settings), ["class floor"]);
    measured.reference = Reference::MostFrequent;
    assert_eq!(failed(&measured, &settings), Vec::<String>::new());
}

/// To be surer of a gain is no reason to overlook a fall; nor can four samples hide a lost class.
#[test]
fn more_confidence_is_no_laxer_and_a_lost_class_is_no_chance() {
    let mut measured = good();
    measured.held = rows(60, 60, 30);
    for (i, row) in measured.held.iter_mut().enumerate() {
        row.group = i % 15;
        if row.group == 4 {
            // Three of four before, none now: p 0.125.
            (row.candidate_right, row.reference_right) = (Some(0.0), Some(share(i > 4)));
        }
    }
    for confidence in [0.8, 0.9, 0.99] {
        let settings = GateSettings { confidence, ..GateSettings::default() };
        assert_eq!(failed(&measured, &settings), ["class floor"], "{confidence}");
    }
    let verdict = judged(&measured, &GateSettings::default(), 1);
    assert!(verdict.sentence.contains("nothing is left"), "{}", verdict.sentence);
    // One of four left may be chance.
    measured.held[4].candidate_right = Some(1.0);
    assert_eq!(failed(&measured, &GateSettings::default()), Vec::<String>::new());
    let strict = GateSettings { fall_alpha: 0.5, ..GateSettings::default() };
    assert_eq!(failed(&measured, &strict), ["class floor"]);
}

/// Two labels are turned round in bulk, in more samples than there were good ones: the candidate
/// gains on the new samples of each class more than it loses on the older ones.
#[test]
fn many_wrong_samples_do_not_outvote_the_older_ones() {
    let mut measured = good();
    measured.held = rows(48, 24, 24);
    for (i, row) in measured.held.iter_mut().enumerate() {
        row.old = i % 3 == 0;
        let right = !row.old;
        (row.candidate_right, row.reference_right) = (Some(share(right)), Some(share(!right)));
        (row.candidate_loss, row.reference_loss) = if right { (0.2, 1.8) } else { (1.8, 0.2) };
        row.group = i / 3 % 2;
    }
    assert_eq!(failed(&measured, &lenient()), ["older samples"]);
    // One of sixteen may be lost, and more than is allowed only where that may be chance.
    for row in measured.held.iter_mut().filter(|r| r.old) {
        row.candidate_right = Some(1.0);
    }
    for lost in 1..=3 {
        let mut olds = measured.held.iter_mut().filter(|r| r.old);
        olds.by_ref().take(lost).for_each(|row| row.candidate_right = Some(0.0));
        assert_eq!(failed(&measured, &lenient()), Vec::<String>::new(), "{lost}");
    }
    let mut olds = measured.held.iter_mut().filter(|r| r.old);
    olds.by_ref().take(4).for_each(|row| row.candidate_right = Some(0.0));
    assert_eq!(failed(&measured, &lenient()), ["older samples"]);
}

#[test]
fn numbers_are_judged_by_their_loss() {
    let mut measured = good();
    for (i, row) in measured.held.iter_mut().enumerate() {
        (row.candidate_right, row.reference_right) = (None, None);
        row.reference_loss = 1.0 + 0.01 * (i % 5) as f64;
        row.candidate_loss = 0.5;
    }
    let verdict = judged(&measured, &GateSettings::default(), 1);
    assert!(verdict.passed && verdict.accuracy.is_none(), "{}", verdict.sentence);
    measured.held.iter_mut().for_each(|r| r.candidate_loss = 1.2);
    assert_eq!(failed(&measured, &GateSettings::default()), ["gain", "sure"]);
}

#[test]
fn nothing_held_out_proves_nothing() {
    let mut measured = good();
    measured.held.clear();
    let failed = failed(&measured, &GateSettings::default());
    assert!(failed.contains(&"holdout".into()) && failed.contains(&"sure".into()));
}

/// All held-out answers are right on both sides: no gain can be. What has learned the new samples is taken
/// where enough samples say that it makes nothing worse, and only then.
#[test]
fn a_correction_that_makes_nothing_worse_is_taken() {
    let settings = GateSettings::default();
    let gain = allowance(settings.false_promotions, 0) / 2.0;
    let mut measured = good();
    measured.held = rows(60, 60, 60);
    measured.lessons = Some(Lessons { samples: 1, candidate: 1.0, reference: 0.0 });
    let passes = |measured: &Measured| {
        let verdict = judge(measured, &settings, Look { gain, no_worse: Some(gain) }, 1);
        assert_eq!(verdict.passed, verdict.checks.iter().all(|c| c.passed));
        verdict.passed
    };
    assert!(passes(&measured));
    // Who must surpass what answers is not excused.
    assert_eq!(failed(&measured, &settings), ["gain", "sure"]);
    // Too few to say so: 0.9 to the power of 56 is above what is allowed.
    assert!(!passes(&Measured { held: rows(56, 56, 56), ..measured.clone() }));
    // One got worse.
    assert!(!passes(&Measured { held: rows(60, 59, 60), ..measured.clone() }));
    // It has learned nothing, or nothing is new.
    let lessons = Lessons { samples: 1, candidate: 0.0, reference: 0.0 };
    assert!(!passes(&Measured { lessons: Some(lessons), ..measured.clone() }));
    assert!(!passes(&Measured { lessons: None, ..measured.clone() }));
    // A gain that is sure is enough.
    assert!(passes(&Measured { held: rows(30, 27, 18), ..measured.clone() }));
    // A look that comes later may take less.
    assert!((allowance(0.01, 0) - 0.005).abs() < 1e-12);
    let sum: f64 = (0..10_000).map(|earlier| allowance(0.01, earlier)).sum();
    assert!(sum < 0.01);
}
