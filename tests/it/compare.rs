//! `offshoot compare`: ways to learn side by side.

use crate::support::{Place, learnable, repo};
use serde_json::Value;

fn rows(found: &Value) -> &Vec<Value> {
    found["rows"].as_array().unwrap()
}

/// The figures of a way at a share.
fn of<'a>(found: &'a Value, name: &str, share: f64) -> &'a Value {
    let is = |row: &&Value| {
        let near = (row["share"].as_f64().unwrap() - share).abs() < 1e-6;
        row["method"]["name"] == name && near
    };
    let row = rows(found).iter().find(is);
    &row.unwrap_or_else(|| panic!("no {name} at {share}: {found}"))["figures"]
}

#[test]
fn ways_are_compared_on_the_same_samples() {
    let place = Place::new();
    learnable(&place);
    let line = "compare mlp.base --data two.npz --steps 6 --batch 8 --seeds 2 --shares 1,0.25 \
                --only instant,lora-2,full --svg gain.svg";
    let found = place.json(line);
    let names: Vec<String> = rows(&found)
        .iter()
        .map(|r| format!("{} {}", r["share"], r["method"]["name"].as_str().unwrap()))
        .collect();
    let expected =
        ["0.25 instant", "0.25 lora-2", "0.25 full", "1.0 instant", "1.0 lora-2", "1.0 full"];
    assert_eq!(names, expected);
    for row in rows(&found) {
        let figures = &row["figures"];
        assert_eq!(
            (&figures["seeds"], &row["failed"]),
            (&serde_json::json!([0, 1]), &Value::Array(vec![]))
        );
        // A fifth of 60 samples is held out, of both classes alike.
        let samples = if row["share"] == 1.0 { 48 } else { 12 };
        assert_eq!(figures["samples"], serde_json::json!([samples, 12]));
        assert!(figures["peak_rss_bytes"].as_f64().unwrap() > 1e6);
        let accuracy = &figures["metrics"][0];
        assert_eq!(
            (accuracy["name"].as_str(), accuracy["values"].as_array().unwrap().len()),
            (Some("accuracy"), 2)
        );
    }
    let (instant, lora) = (of(&found, "instant", 1.0), of(&found, "lora-2", 1.0));
    assert_eq!((&instant["steps"], &instant["step_ms"]), (&0.into(), &Value::Null));
    assert_eq!(instant["kept"]["mean"], 1.0);
    assert_eq!(lora["steps"], 6);
    // The size that train writes.
    place.ok(
        "train mlp.base --data two.npz --out two.adapter --rank 2 --alpha 4 --steps 6 --batch 8",
    );
    let written = place.read("two.adapter").len() as f64;
    let size = lora["file_bytes"].as_f64().unwrap();
    assert!((size - written).abs() < 200.0, "{size} for {written}");
    let values = |name| of(&found, name, 1.0)["parameters"].as_u64().unwrap();
    assert!(values("instant") < values("lora-2") && values("lora-2") < values("full"));
    assert!(found["verdict"].as_str().unwrap().contains("With 25 % of the data "), "{found}");
    let plot = String::from_utf8(place.read("gain.svg")).unwrap();
    assert!(plot.starts_with("<svg ") && plot.contains("<title>lora-2: "), "{plot}");
    assert_eq!(plot.matches("Gain against what is kept").count(), 2);
    // The same again, but for what is timed.
    let again = place.json(&line.replace(" --svg gain.svg", ""));
    for (a, b) in rows(&found).iter().zip(rows(&again)) {
        assert_eq!(a["figures"]["metrics"], b["figures"]["metrics"]);
        assert_eq!(a["figures"]["kept"], b["figures"]["kept"]);
    }
}

#[test]
fn every_way_has_a_row_for_people() {
    let place = Place::new();
    learnable(&place);
    let told =
        place.ok("compare mlp.base --data two.npz --steps 2 --seeds 1 --shares 1 --threads 1");
    for kind in offshoot::adapters::Kind::all().skip(1) {
        let row = told.lines().find(|l| l.contains(&format!(" {} ", kind.name())));
        assert!(row.is_some_and(|row| row.contains("100 %")), "{}: {told}", kind.name());
    }
    for text in
        ["instant", "probe", "lora-2", "lora-8", "lora-32", "lora-kept", "macro_f1", "One seed"]
    {
        assert!(told.contains(text), "{text}: {told}");
    }
    assert!(!told.contains("failed") && !told.contains("left out"), "{told}");
}

#[test]
fn a_run_that_fails_is_a_row_and_the_others_go_on() {
    let place = Place::new();
    learnable(&place);
    let line = "compare mlp.base --data two.npz --steps 3 --seeds 1 --shares 1 --lr 1e30 --only";
    let told = place.ok(&format!("{line} lora-8,instant"));
    assert!(told.contains("failed: ") && told.contains("nothing can be said of LoRA"), "{told}");
    let done = place.run(&format!("{line} lora-8"));
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stdout.contains("failed: ") && done.stderr.contains("no run ended well"));
}

#[test]
fn what_does_not_fit_the_task_is_left_out_with_the_reason() {
    let place = Place::new();
    place.ok(&format!("pack {} -o lm.base --weights f32", repo("models/tiny-lm").display()));
    let row =
        |i: u32| format!("{{\"prompt\": \"{i} times 7 is \", \"completion\": \"{}\"}}\n", i * 7);
    place.write("said.jsonl", (0..12).map(row).collect::<String>());
    let line = "compare lm.base --data said.jsonl --steps 2 --batch 2 --seeds 2 --shares 1 \
                --only instant,lora-2,lora-kept";
    let found = place.json(line);
    assert_eq!(found["task"], "language");
    let row = rows(&found).iter().find(|r| r["method"]["name"] == "instant").unwrap();
    assert!(row["left_out"].as_str().unwrap().contains("the task language has no"), "{row}");
    assert!(of(&found, "lora-kept", 1.0)["kept"].is_object());
    let lora = of(&found, "lora-2", 1.0);
    assert_eq!(
        (&lora["seeds"], &lora["metrics"][0]["name"]),
        (&serde_json::json!([0, 1]), &"perplexity".into())
    );
    assert!(place.ok(line).contains("left out: instant: "));
}

#[test]
fn mistakes_are_told_before_the_first_run() {
    let place = Place::new();
    learnable(&place);
    let e = place.fails("compare mlp.base --data two.npz --only hydra", 2);
    assert!(e.contains("lora-kept"), "{e}");
    place.fails("compare mlp.base --data two.npz --shares 0", 2);
    place.fails("compare mlp.base --data two.npz --shares 1.5", 2);
    place.fails("compare mlp.base --data two.npz --holdout 0", 2);
    place.fails("compare mlp.base --data missing.npz", 3);
    place.fails("compare missing.base --data two.npz", 3);
    place.fails("compare mlp.base --data two.npz --svg no/such/folder.svg", 1);
    let told = place.ok("compare mlp.base --data two.npz --steps 2 --time 0.001");
    assert!(told.contains("runs were not begun: the time was over"), "{told}");
}

#[test]
fn a_run_is_plotted() {
    let place = Place::new();
    learnable(&place);
    let line = "train mlp.base --data two.npz --steps 10 --batch 8 --seed 3";
    place.ok(&format!("{line} --out plain.adapter"));
    let told = place.ok(&format!("{line} --out two.adapter --plot run.svg"));
    assert!(told.contains("run.svg: the run's plots"), "{told}");
    let plot = String::from_utf8(place.read("run.svg")).unwrap();
    for text in [">Loss<", ">Gain against what is kept", ">step 10<", "answered as"] {
        assert!(plot.contains(text), "{text}: {plot}");
    }
    // Four looks on the way, one before and one after.
    assert!((0..=10).step_by(2).all(|step| plot.contains(&format!(">step {step}<"))), "{plot}");
    // Looking changes nothing.
    let evaluated =
        |name: &str| place.json(&format!("eval mlp.base --data two.npz --adapter {name}"));
    assert_eq!(evaluated("plain.adapter")["evaluation"], evaluated("two.adapter")["evaluation"]);
    // All that is held out is in the table.
    let counted: u64 = plot
        .split(" answered as ")
        .skip(1)
        .filter_map(|rest| rest.split(": ").nth(1)?.split(' ').next()?.parse::<u64>().ok())
        .sum();
    assert_eq!(counted, 12);
    let instant = "train mlp.base --data two.npz --out i.adapter --instant --plot i.svg";
    assert!(place.fails(instant, 2).contains("nothing to plot"));
    place.ok(&format!("{instant} --holdout 0.2"));
    let plot = String::from_utf8(place.read("i.svg")).unwrap();
    assert!(plot.contains("answered as") && !plot.contains(">Loss<"));
    place.fails(&format!("{line} --out two.adapter --plot no/such/run.svg"), 1);
}

#[test]
fn knowledge_is_asked_for_without_a_number_by_the_recipe_that_was_measured() {
    let place = Place::new();
    learnable(&place);
    let line = "train mlp.base --data two.npz --out two.adapter --steps 4";
    let wanted = |more: &str| {
        let found = place.json(&format!("{line} {more}"));
        found["report"]["knowledge"]["wanted"].as_f64().unwrap()
    };
    assert_eq!(wanted(""), 0.0);
    for (more, share) in [("--keep-knowledge", 0.85), ("--keep-knowledge 0.9", 0.9)] {
        assert!((wanted(more) - share).abs() < 1e-6, "{more}");
    }
    place.fails(&format!("{line} --keep-knowledge 2"), 2);
}
