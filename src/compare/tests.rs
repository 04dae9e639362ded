//! What a comparison makes of its runs.

use super::*;

fn outcome(accuracy: f64, kept: f64, parameters: u64) -> Outcome {
    Outcome {
        samples: 80,
        held_out: 20,
        steps: 10,
        parameters,
        file_bytes: 4 * parameters,
        step_ms: Some(parameters as f64 / 100.0),
        seconds: 1.0,
        peak_rss_bytes: Some(1000 + parameters),
        metrics: vec![Value { name: "accuracy".into(), value: accuracy, higher_is_better: true }],
        kept: Some(kept),
        ..Outcome::default()
    }
}

/// Of each name the accuracies of its seeds.
fn made(of: &[(&str, &[f64])]) -> Comparison {
    let mut found = Comparison::default();
    for (place, (name, accuracies)) in of.iter().enumerate() {
        let method = Method::of_names(&[name.to_string()]).unwrap().remove(0);
        for (seed, accuracy) in accuracies.iter().enumerate() {
            let run = Run { method: method.clone(), share: 1.0, seed: seed as u64 };
            let came = Came::Done(Box::new(outcome(*accuracy, 0.5, 100 * (place as u64 + 1))));
            found.runs.push((run, came));
        }
    }
    found
}

#[test]
fn names_choose_and_wrong_ones_are_told() {
    let names = |of: &[&str]| -> Vec<String> {
        let of: Vec<String> = of.iter().map(|n| n.to_string()).collect();
        Method::of_names(&of).unwrap().into_iter().map(|m| m.name).collect()
    };
    assert_eq!(names(&["full", "instant"]), ["instant", "full"]);
    assert_eq!(names(&["lora"]), ["lora-2", "lora-8", "lora-32", "lora-kept"]);
    let e = Method::of_names(&["hydra".into()]).unwrap_err();
    assert!(e.message().contains("'hydra'") && e.message().contains("lora-8"), "{e}");
    let mut all: Vec<String> = Method::all().into_iter().map(|m| m.name).collect();
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!((all.len(), count), (count, 5 + crate::adapter::Kind::all().count()));
}

#[test]
fn seeds_become_a_mean_and_a_spread_and_failures_a_reason() {
    let mut found = made(&[("instant", &[0.5, 0.6, 0.7]), ("lora-8", &[0.8])]);
    let full = Method::of_names(&["full".into()]).unwrap().remove(0);
    let run = |share| Run { method: full.clone(), share, seed: 0 };
    found.runs.push((run(1.0), Came::Failed("out of memory".into())));
    found.runs.push((run(1.0), Came::Failed("out of memory".into())));
    found.runs.push((run(0.5), Came::LeftOut("no such layer".into())));
    let rows = found.rows();
    let names: Vec<&str> = rows.iter().map(|r| r.method.name.as_str()).collect();
    assert_eq!(names, ["full", "instant", "lora-8", "full"]);
    assert_eq!(rows[0].left_out.as_deref(), Some("no such layer"));
    assert_eq!((rows[3].failed.len(), &rows[3].figures), (1, &None));
    let instant = &rows[1].figures.as_ref().unwrap().metrics[0].figure;
    assert!((instant.mean - 0.6).abs() < 1e-9 && (instant.spread - 0.1).abs() < 1e-9);
}

#[test]
fn the_verdict_says_what_is_enough() {
    let head = made(&[("instant", &[0.90, 0.91]), ("lora-8", &[0.905, 0.91])]).verdict();
    assert!(head.contains("a head alone is enough"), "{head}");
    let lora = [("instant", &[0.70, 0.72][..]), ("lora-8", &[0.9, 0.91]), ("full", &[0.90, 0.91])];
    let lora = made(&lora).verdict();
    assert!(lora.starts_with("LoRA is enough") && lora.contains("step time"), "{lora}");
    let full = [("instant", &[0.70, 0.72][..]), ("lora-8", &[0.8, 0.81]), ("full", &[0.90, 0.91])];
    let full = made(&full).verdict();
    assert!(
        full.starts_with("LoRA is not all that can be had: 'full' has accuracy 0.905"),
        "{full}"
    );
    assert!(full.contains("1.5 times the trained values"), "{full}");
    // Seeds that differ more than the ways do.
    let noise = made(&[("instant", &[0.5, 0.9, 0.7]), ("lora-8", &[0.9, 0.5, 0.8])]).verdict();
    assert!(noise.contains("a head alone is enough"), "{noise}");
    let one = made(&[("instant", &[0.5]), ("lora-8", &[0.9])]).verdict();
    assert!(one.contains("One seed says little"), "{one}");
    assert!(made(&[("instant", &[0.5])]).verdict().contains("nothing can be said of LoRA"));
    assert!(Comparison::default().verdict().contains("nothing can be said"));
}

#[test]
fn less_is_better_of_an_error() {
    let mut found = made(&[("instant", &[0.5, 0.52]), ("lora-8", &[0.2, 0.21])]);
    for (_, came) in &mut found.runs {
        if let Came::Done(outcome) = came {
            outcome.metrics[0] =
                Value { name: "mse".into(), higher_is_better: false, ..outcome.metrics[0].clone() };
        }
    }
    let said = found.verdict();
    assert!(said.contains("'lora-8' has mse 0.205") && !said.contains("alone is enough"), "{said}");
}
