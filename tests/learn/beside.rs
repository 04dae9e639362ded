//! Serving beside training: how long answers take while a child trains. Prints; asserts no times.

use crate::device::{Device, PATIENCE, repo, willing};
use offshoot::Named;
use offshoot::packing::PackOptions;
use offshoot::store::Input;
use std::time::{Duration, Instant};

/// 50th, 99th percentile and the longest, in milliseconds.
fn percentiles(times: &[f64]) -> [f64; 3] {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    [at(0.5), at(0.99), at(1.0)]
}

#[test]
#[ignore = "a minute: cargo test --release --test learn -- --ignored --nocapture beside"]
fn answers_beside_training() {
    let tokenizer = std::fs::read(repo("models/minilm-l6.tokenizer.json")).unwrap();
    let options = PackOptions { tokenizer: Some(tokenizer), ..PackOptions::default() };
    let mut settings = willing();
    settings.train.min_steps = 100_000;
    let mut device = Device::new(&repo("models/minilm-l6.onnx"), &options, settings);
    let text = std::fs::read_to_string(repo("models/commands.jsonl")).unwrap();
    let rows: Vec<(String, String)> = text
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .map(|r| (r["text"].as_str().unwrap().into(), r["label"].as_str().unwrap().into()))
        .collect();
    device.store.create_name("home").unwrap();
    for (text, label) in &rows {
        device.feedback("home", &Input::Text(text.clone()), label, "anna");
    }
    let inputs: Vec<Named> =
        rows.iter().take(40).map(|(t, _)| device.inputs(&Input::Text(t.clone()))).collect();
    let engine = offshoot::testing::daemon::Serving::engine(&*device.desk).clone();
    let measure = |count: usize| -> Vec<f64> {
        let one = |i: usize| {
            // Requests come apart, as a person's do.
            std::thread::sleep(Duration::from_millis(5));
            let began = Instant::now();
            engine.run(&inputs[i % inputs.len()], None).unwrap();
            began.elapsed().as_secs_f64() * 1e3
        };
        (0..count).map(one).collect()
    };
    measure(100);
    let before = measure(1500);
    device.start();
    device.until("it trains", PATIENCE, || {
        device.learner().status().unwrap().job.is_some_and(|j| j.step > 0)
    });
    let step = || device.learner().status().unwrap().job.map_or(0, |j| j.step);
    let (from, began) = (step(), Instant::now());
    let during = measure(1500);
    let (steps, seconds) = (step() - from, began.elapsed().as_secs_f64());
    device.learner().stop();
    let after = measure(1500);
    let alone = [before.as_slice(), after.as_slice()].concat();
    let runs = [("before", &before), ("after", &after), ("alone", &alone), ("training", &during)];
    for (what, times) in runs {
        let [p50, p99, most] = percentiles(times);
        println!("{what}: p50 {p50:.2} ms, p99 {p99:.2} ms, most {most:.2} ms");
    }
    let ratio = percentiles(&during)[1] / percentiles(&alone)[1];
    println!("p99 {ratio:.2} times that of both runs alone; {steps} steps in {seconds:.1} s");
    assert!(steps > 0);
}
