//! Runs that keep what their base knows.

use super::progress::{Event, Silent};
use super::testing::{engine, options, points, sequences};
use super::*;
use crate::error::ErrorKind;
use crate::runtime::PackOptions;

fn run(
    engine: &crate::runtime::Engine,
    data: &data::Dataset,
    options: &TrainOptions,
) -> (KnowledgeKept, f32) {
    let report = train(engine, data, None, options, &mut Silent).unwrap().report;
    let accuracy = report.after.iter().find(|(name, _)| name == "accuracy").unwrap().1;
    (report.knowledge.unwrap(), accuracy)
}

#[test]
fn more_is_kept_and_the_task_is_learned_all_the_same() {
    for (name, data) in [("attention", sequences(80, 1)), ("mlp", points(80, 1))] {
        let (_dir, engine) = engine(name, &PackOptions::default());
        let head = TrainOptions { head_rate: 5.0, epochs: Some(15), ..options() };
        let plain = TrainOptions { keep_knowledge: 0.0, ..head.clone() };
        let (without, _) = run(&engine, &data, &plain);
        let (with, accuracy) = run(&engine, &data, &TrainOptions { keep_knowledge: 0.95, ..head });
        let away = |kept: &KnowledgeKept| 1.0 - kept.retention.cosine_mean;
        assert!(away(&with) < 0.5 * away(&without), "{name}: {with:?} {without:?}");
        assert!(accuracy >= 0.9, "{name}: {accuracy}");
        assert_eq!((without.wanted, without.weight), (0.0, 0.0));
        assert!(with.weight > 0.0 && with.measured_on.contains("held-out samples"), "{with:?}");
        assert!(with.sentence().starts_with("knowledge kept: "));
        assert_eq!(with.shortfall().is_some(), with.kept < 0.95);
    }
}

#[test]
fn a_run_looks_at_what_it_keeps_and_says_so() {
    let (_dir, engine) = engine("mlp", &PackOptions::default());
    let mut looks = vec![];
    let mut listen = |event: &Event| {
        if let Event::Knowledge { step, kept, wanted, weight } = event {
            looks.push((*step, *kept, *wanted, *weight));
        }
    };
    let asked = TrainOptions { keep_knowledge: 1.0, steps: Some(10), ..options() };
    let trained = train(&engine, &points(40, 2), None, &asked, &mut listen).unwrap();
    assert_eq!(looks.iter().map(|l| l.0).collect::<Vec<_>>(), [2, 4, 6, 8]);
    assert!(looks.iter().all(|l| l.2 == 1.0 && (0.0..=1.0).contains(&l.1)));
    let knowledge = trained.report.knowledge.unwrap();
    assert_eq!(f64::from(knowledge.weight), looks[3].3);
    let record = trained.adapter.training.unwrap();
    assert!(record.after.contains(&("kept".into(), knowledge.kept)));
}

#[test]
fn a_head_alone_keeps_all_and_probes_must_be_there() {
    let (_dir, engine) = engine("mlp", &PackOptions::default());
    let data = points(40, 2);
    let head = TrainOptions { targets: TargetChoice::None, ..options() };
    assert_eq!(train(&engine, &data, None, &head, &mut Silent).unwrap().report.knowledge, None);
    let probes = Some("/not/there.txt".into());
    let missing = TrainOptions { probes, ..options() };
    let e = train(&engine, &data, None, &missing, &mut Silent).unwrap_err();
    assert!(e.to_string().contains("/not/there.txt"), "{e}");
    for keep_knowledge in [-0.1, 1.1, f32::NAN] {
        let wrong = TrainOptions { keep_knowledge, ..options() };
        let e = train(&engine, &data, None, &wrong, &mut Silent).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Usage);
    }
}

/// Every second row of the user's own is taught of: those keep more than without.
#[test]
fn a_users_probes_are_kept_too() {
    let (dir, engine) = engine("mlp", &PackOptions::default());
    let path = dir.path().join("probes.npz");
    let mut rng = random::stream(3, "probes", 0);
    let values = (0..80 * 12).map(|_| random::unit(&mut rng) - 0.5).collect();
    let x = crate::shape::Array::f32([80, 12], values).unwrap();
    let labels = crate::shape::Array::i64([80], vec![0; 80]).unwrap();
    std::fs::write(&path, data::tests::npz(&[("x", x), ("labels", labels)])).unwrap();
    let data = points(40, 4);
    let plain = TrainOptions { keep_knowledge: 0.0, probes: Some(path), ..options() };
    let (without, _) = run(&engine, &data, &plain);
    assert_eq!(without.retention.samples, 40);
    let (with, _) = run(&engine, &data, &TrainOptions { keep_knowledge: 0.95, ..plain });
    let away = |kept: &KnowledgeKept| 1.0 - kept.retention.cosine_mean;
    assert!(away(&with) < 0.5 * away(&without), "{with:?} {without:?}");
}
