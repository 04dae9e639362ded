//! Going on from a generation before: first values, replay, answers that are kept, stopping.

use super::data::Dataset;
use super::lesson::Teacher;
use super::progress::{Event, Progress, Silent};
use super::samples::Samples;
use super::testing::{bytes, check_gradients, engine, numbers, options, points};
use super::*;
use crate::error::ErrorKind;
use crate::runtime::PackOptions;

/// Only the samples of these classes, under all labels.
fn of_classes(data: &Dataset, classes: &[usize]) -> Dataset {
    let all = data.groups();
    let kept = data.samples.iter().zip(all).filter(|(_, c)| classes.contains(c));
    Dataset { samples: kept.map(|(s, _)| s.clone()).collect(), ..data.clone() }
}

#[test]
fn a_warm_start_begins_at_the_generation_before_and_knows_new_labels() {
    let (_dir, engine) = engine("mlp", &PackOptions::default());
    let mut two = of_classes(&points(60, 1), &[0, 1]);
    two.labels.truncate(2);
    let first = train(&engine, &two, None, &options(), &mut Silent).unwrap();
    let three = points(60, 2);
    let lesson = Lesson { previous: Some(&first.adapter), ..Lesson::new(&three, None) };
    assert_eq!(lesson.labels(Task::default()).unwrap(), ["a", "b", "c"]);
    let mut trainer = Trainer::new(&engine, &options(), three.labels.clone()).unwrap();
    let fresh: Vec<Vec<f32>> = trainer.parameters().map(|(_, v)| v.to_vec()).collect();
    trainer.start_from(&first.adapter).unwrap();
    let head = first.adapter.head().unwrap();
    for ((name, values), fresh) in trainer.parameters().zip(&fresh) {
        let known = match name {
            "head.weight" => &head.weight,
            "head.bias" => &head.bias,
            _ => {
                let (path, part) = name.rsplit_once('.').unwrap();
                let pair = first.adapter.targets.iter().find(|t| t.module_path == path).unwrap();
                &pair.tensor(part).unwrap().values
            }
        };
        // Two of the head's three rows; all else as it was.
        assert_eq!(values[..known.len()], known[..], "{name}");
        assert_eq!(values[known.len()..], fresh[known.len()..], "{name}");
    }
    let rank = TrainOptions { rank: 2, ..options() };
    let e = learn(&engine, &lesson, &rank, &mut Silent).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Mismatch, "{e}");
    let fewer = TrainOptions { targets: TargetChoice::None, ..options() };
    let e = learn(&engine, &lesson, &fewer, &mut Silent).unwrap_err();
    assert!(e.message().contains("not trained"), "{e}");
}

#[test]
fn replay_keeps_what_was_learned_before() {
    let (_dir, engine) = engine("mlp", &PackOptions::default());
    let data = points(90, 3);
    let (old, new) = (of_classes(&data, &[0, 1]), of_classes(&data, &[2]));
    let long = TrainOptions { epochs: Some(60), learning_rate: 5e-2, ..options() };
    let first = train(&engine, &old, None, &long, &mut Silent).unwrap();
    let test = points(45, 4);
    let accuracy = |trained: &Trained| {
        let bound = engine.bind(&[(&trained.adapter, 1.0)]).unwrap();
        evaluate(&engine, Some(&bound), &test, 8).unwrap().metric("accuracy").unwrap()
    };
    let joined =
        Dataset { samples: [new.samples.clone(), old.samples.clone()].concat(), ..data.clone() };
    let previous = Some(&first.adapter);
    let with = Lesson { data: &joined, replayed: old.samples.len(), holdout: None, previous };
    let with = accuracy(&learn(&engine, &with, &long, &mut Silent).unwrap());
    let without = Lesson { data: &new, replayed: 0, holdout: None, previous };
    let alone = TrainOptions { holdout: 0.0, ..long.clone() };
    let without = accuracy(&learn(&engine, &without, &alone, &mut Silent).unwrap());
    // Measured: 45 and 31 of 45.
    assert!(with >= 0.95 && without < 0.75, "{with} {without}");
    let all_old = Lesson { data: &old, replayed: old.samples.len(), holdout: None, previous };
    assert_eq!(learn(&engine, &all_old, &alone, &mut Silent).unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn gradients_of_mixed_answers_agree_with_central_differences() {
    let exact = PackOptions { scheme: crate::quant::Scheme::F32, ..PackOptions::default() };
    let (_dir, engine) = engine("mlp", &exact);
    let data = points(8, 5);
    let mut trainer = Trainer::new(&engine, &options(), data.labels.clone()).unwrap();
    let samples = Samples::new(&engine, &data, trainer.labels(), None).unwrap();
    let all: Vec<usize> = (0..8).collect();
    // Probabilities of no one's: rows of three that sum to 1, one row left out.
    let soft = (0..8).map(|i| {
        let raw = init::uniform(7, &format!("row {i}"), 3, 0.5);
        let raw: Vec<f32> = raw.iter().map(|v| v + 0.6).collect();
        let sum: f32 = raw.iter().sum();
        (i != 3).then(|| raw.iter().map(|v| v / sum).collect())
    });
    let answers: Answers = soft.collect();
    assert_eq!(trainer.counted(&answers), 7);
    let batch = [MicroBatch { inputs: samples.inputs(&all, 8).unwrap(), answers }];
    // lora_b is zero, and with it the gradient of lora_a.
    let others = trainer.parameters().filter(|(name, _)| !name.ends_with("lora_a")).count();
    assert_eq!(check_gradients(&mut trainer, &batch, "soft"), others);
    let values = TrainOptions { task: Task::parse("numbers").unwrap(), ..options() };
    let other = Trainer::new(&engine, &values, vec!["v".into()]).unwrap();
    assert_eq!(other.gradients(&batch).unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn the_teacher_answers_where_it_is_right() {
    let (_dir, engine) = engine("mlp", &PackOptions::default());
    let first = train(&engine, &points(60, 1), None, &options(), &mut Silent).unwrap().adapter;
    let mut data = points(30, 6);
    data.labels.insert(0, "new".into());
    for s in &mut data.samples {
        if let data::Label::Class(c) = &mut s.label {
            *c += 1;
        }
    }
    // Corrections that contradict it.
    data.samples[0].label = data::Label::Class(0);
    let labels = Lesson { previous: Some(&first), ..Lesson::new(&data, None) };
    let labels = labels.labels(Task::default()).unwrap();
    assert_eq!(labels, ["a", "b", "c", "new"]);
    let samples = Samples::new(&engine, &data, &labels, None).unwrap();
    let ask = |go_on: &mut dyn FnMut() -> bool| {
        Teacher::ask(&engine, &first, &samples, &labels, 4, go_on).unwrap()
    };
    let teacher = ask(&mut || true).unwrap();
    assert!(teacher.row(0).is_none());
    let rows: Vec<&[f32]> = (1..30).filter_map(|s| teacher.row(s)).collect();
    assert!(rows.len() > 20);
    for row in rows {
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5 && row[3] == 0.0);
    }
    assert!(ask(&mut || false).is_none());
}

#[test]
fn numbers_are_learned_from_their_labels_alone() {
    let (_dir, engine) = engine("mlp", &PackOptions::default());
    let values = TrainOptions { task: Task::parse("numbers").unwrap(), ..options() };
    let first = train(&engine, &numbers(40, 1), None, &values, &mut Silent).unwrap().adapter;
    let data = numbers(40, 2);
    let lesson = Lesson { previous: Some(&first), ..Lesson::new(&data, None) };
    let learned = |keep: f32| {
        let kept = TrainOptions { keep, ..values.clone() };
        bytes(&learn(&engine, &lesson, &kept, &mut Silent).unwrap())
    };
    assert_eq!(learned(0.9), learned(0.0));
}

/// Asks to stop at the nth question, and goes on afterwards.
struct StopAtQuestion(u64);

impl Progress for StopAtQuestion {
    fn event(&mut self, _: &Event) {}

    fn stop(&mut self) -> bool {
        self.0 = self.0.saturating_sub(1);
        self.0 == 0
    }
}

#[test]
fn a_continued_run_that_is_stopped_anywhere_ends_bit_equal() {
    let (dir, engine) = engine("mlp", &PackOptions::default());
    let first = train(&engine, &points(40, 1), None, &options(), &mut Silent).unwrap().adapter;
    let (data, held) = (points(40, 7), points(20, 8));
    let path = dir.path().join("run.checkpoint");
    for threads in [1, 2] {
        let kept = TrainOptions {
            keep: 0.3,
            keep_knowledge: 0.9,
            threads,
            epochs: Some(3),
            checkpoint: Some(path.clone()),
            checkpoint_every: 4,
            resume: true,
            ..options()
        };
        let previous = Some(&first);
        let lesson = Lesson { data: &data, replayed: 25, holdout: Some(&held), previous };
        let want = bytes(&learn(&engine, &lesson, &kept, &mut Silent).unwrap());
        let mut stops = 0;
        // Every question up to the end: in the first evaluation, the teacher's, within steps.
        for question in 1.. {
            _ = std::fs::remove_file(&path);
            match learn(&engine, &lesson, &kept, &mut StopAtQuestion(question)) {
                Ok(whole) => {
                    assert_eq!(bytes(&whole), want);
                    break;
                }
                Err(e) => assert!(e.message().contains("stopped"), "{e}"),
            }
            stops += 1;
            let resumed = learn(&engine, &lesson, &kept, &mut Silent).unwrap();
            assert_eq!(bytes(&resumed), want, "stopped at question {question}");
        }
        assert!(stops > 30, "{stops}");
        // Another generation before is another run.
        let plain = Lesson { previous: None, ..lesson };
        _ = std::fs::remove_file(&path);
        _ = learn(&engine, &lesson, &kept, &mut StopAtQuestion(50)).unwrap_err();
        let e = learn(&engine, &plain, &kept, &mut Silent).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Mismatch, "{e}");
        _ = std::fs::remove_file(&path);
    }
}
