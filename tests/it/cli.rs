//! The verbs, used as a person or a program uses them.

use crate::support::{Place, done, learnable, repo};
use offshoot::testing::npy;
use std::process::Stdio;

#[test]
fn pack_inspect_and_run_answer_as_onnx_runtime_does() {
    let place = Place::new();
    let packed = place.json("pack {models}/mlp.onnx -o mlp.base --weights f32");
    assert_eq!(packed["targets"], 2);
    assert_eq!(packed["mean_error"], 0.0);
    let fingerprint = packed["fingerprint"].as_str().unwrap().to_string();
    assert!(place.ok("inspect mlp.base").contains(&fingerprint));
    let inspected = place.json("inspect mlp.base --verify");
    assert_eq!(inspected["fingerprint"], fingerprint.as_str());
    assert_eq!(inspected["targets"][0]["module_path"], "fc1");
    assert_eq!(inspected["bytes"], place.read("mlp.base").len());
    let onnx = place.json("inspect {models}/mlp.onnx");
    assert_eq!(onnx["onnx"]["free_dims"][0], "batch");

    let known = npy::read_npz(repo("models/tiny/mlp.npz"), 1 << 20).unwrap();
    let array = |name: &str| &known.iter().find(|(n, _)| n == name).unwrap().1;
    npy::write(place.path("x.npy"), array("in.x")).unwrap();
    let run = place.json("run mlp.base --input x=x.npy --output answers");
    assert!(run["total_ms"].as_f64().unwrap() > 0.0);
    assert!(run["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
    let found = npy::read(place.path("answers/y.npy"), 1 << 20).unwrap();
    let expected = array("out.y");
    assert_eq!(found.shape(), expected.shape());
    for (a, b) in found.as_f32().unwrap().iter().zip(expected.as_f32().unwrap()) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    assert!(place.ok("run mlp.base --input x=x.npy").starts_with("y: f32 "));
}

/// NaN and infinity were answers like others.
#[test]
fn an_answer_that_is_not_finite_is_an_error_that_names_where_it_comes_from() {
    let place = Place::new();
    place.ok("pack {models}/mlp.onnx -o mlp.base --weights f32");
    let x = |value: f32| {
        let array = offshoot::Array::f32(vec![1, 12], vec![value; 12]).unwrap();
        npy::write(place.path("x.npy"), &array).unwrap();
    };
    x(f32::NAN);
    let error = place.fails("run mlp.base --input x=x.npy", 1);
    assert!(error.contains("NaN, which the input 'x' holds"), "{error}");
    x(f32::MAX);
    let error = place.fails("run mlp.base --input x=x.npy", 1);
    // The first layer with the activation that is fused to it.
    assert!(error.contains("comes first out of '/act/Relu' (FusedLinear)"), "{error}");
    let any = place.ok("run mlp.base --input x=x.npy --any-value");
    assert!(any.contains("inf") || any.contains("NaN"), "{any}");
}

#[test]
fn pack_binds_dimensions_and_constants_and_says_what_is_wrong_with_them() {
    let place = Place::new();
    place.ok("pack {models}/mlp.onnx -o one.base --dim batch=1");
    assert_eq!(place.json("inspect one.base")["inputs"][0]["dims"][0], "1");
    place.ok("pack {models}/scalar_if.onnx -o if.base --const sr=8000");
    let error = place.fails("pack {models}/mlp.onnx -o x.base --dim btch=1", 2);
    assert!(error.contains("free dimensions are batch"), "{error}");
    place.fails("pack {models}/mlp.onnx -o x.base --input z=1x3", 2);
    place.fails("pack {models}/mlp.onnx -o x.base --weights q5", 2);
    place.fails("pack {models}/mlp.onnx", 2);
    place.fails("pack {models}/mlp.onnx -o missing/x.base", 1);
    place.fails("pack {models}/mlp.onnx -o .", 2);
    assert_eq!(place.names("."), ["if.base", "one.base"]);
}

#[test]
fn a_base_with_labels_and_pictures_says_its_own_classes() {
    let place = Place::new();
    place.write("labels.txt", "cat\ndog\nowl\nemu\n");
    place.ok("pack {models}/convnet.onnx -o c.base --image 32 --labels labels.txt");
    let picture = repo("models/pictures/wardrobe/test/bag");
    let picture = std::fs::read_dir(picture).unwrap().next().unwrap().unwrap().path();
    let line = format!("run c.base --top 2 --image {}", picture.display());
    assert_eq!(place.ok(&line).lines().filter(|l| l.contains(" %  ")).count(), 2);
    let top = &place.json(&line)["predictions"][0]["top"];
    assert!(["cat", "dog", "owl", "emu"].contains(&top[0]["label"].as_str().unwrap()));
    assert!(top[0]["probability"].as_f64().unwrap() >= top[1]["probability"].as_f64().unwrap());
}

/// Tasks that are learned on adapters of their own: what is learned later leaves the answers of those before as they
/// are, bit for bit.
#[test]
fn adapters_of_their_own_forget_nothing() {
    let place = Place::new();
    learnable(&place);
    let row = npy_row(&place);
    let answers = |task: u64| {
        let run = format!("run mlp.base --input x={row} --adapter {task}.adapter --output out");
        let said = place.json(&run)["predictions"].to_string();
        let outputs = place.names("out");
        assert!(!outputs.is_empty());
        (said, outputs.iter().map(|name| place.read(&format!("out/{name}"))).collect::<Vec<_>>())
    };
    let mut learned = vec![];
    for task in 0..3 {
        let train = format!("train mlp.base --data two.npz --lr 0.02 --steps 10 --seed {task}");
        place.ok(&format!("{train} --keep-knowledge 0 --out {task}.adapter"));
        learned.push(answers(task));
        assert!((0..).zip(&learned).all(|(earlier, before)| answers(earlier) == *before));
    }
    assert!(learned[0] != learned[1] && learned[1] != learned[2]);
}

#[test]
fn an_adapter_from_training_to_removal() {
    let place = Place::new();
    learnable(&place);
    let train = "train mlp.base --data two.npz --lr 0.02 --epochs 20 --rank 2 --threads 1";
    let trained = place.json(&format!("{train} --out one.adapter"));
    assert!(trained["report"]["loss_last"].as_f64() < trained["report"]["loss_first"].as_f64());
    assert_eq!(place.names("."), ["mlp.base", "one.adapter", "two.npz"]);

    let eval = place.json("eval mlp.base --data two.npz --adapter one.adapter --retention two.npz");
    assert!(eval["evaluation"]["accuracy"].as_f64().unwrap() > 0.9, "{eval}");
    assert_eq!(eval["retention"]["samples"], 60);
    let cosine = eval["retention"]["cosine_mean"].as_f64().unwrap();
    assert!(cosine < 0.999_999 && cosine > -1.0, "the adapter changes what the head reads");
    assert!(place.ok("eval mlp.base --data two.npz --adapter one.adapter").contains("accuracy"));

    // The same seed gives the same bytes.
    place.ok(&format!("{train} --out again.adapter --name one"));
    assert_eq!(
        place.json("inspect one.adapter")["adapter"]["targets"],
        place.json("inspect again.adapter")["adapter"]["targets"]
    );
    place.ok(&format!("{train} --out two.adapter --seed 2"));

    let added = place.json("adapter add one.adapter --name home --base mlp.base");
    assert_eq!((&added["generation"], &added["active"]), (&1.into(), &true.into()));
    let added = place.json("adapter add two.adapter --name home");
    assert_eq!((&added["generation"], &added["active"]), (&2.into(), &false.into()));
    let row = npy_row(&place);
    let logits = |adapter: &str| {
        let run = format!("run mlp.base --input x={row} --adapter {adapter}");
        place.json(&run)["predictions"][0]["logits"].to_string()
    };
    assert_eq!(logits("home"), logits("one.adapter"));
    assert_eq!(logits("home@2"), logits("two.adapter"));
    assert_ne!(logits("home@1:0.5"), logits("home@1"));
    place.ok("adapter use home@2");
    assert_eq!(logits("home"), logits("two.adapter"));
    // Two heads have no sum; two weights of one adapter have.
    place.fails("adapter merge home@1 two.adapter -o sum.adapter", 4);
    let merged = place.json("adapter merge home@1:0.25 one.adapter:0.5 -o sum.adapter");
    assert_eq!(merged["rank"], 4);
    let both =
        format!("run mlp.base --input x={row} --adapter home@1:0.25 --adapter one.adapter:0.5");
    assert_eq!(logits("sum.adapter"), place.json(&both)["predictions"][0]["logits"].to_string());
    place.fails("adapter merge home@1 -o lone.adapter", 2);
    let exported = place.json("adapter export home@1 --base mlp.base -o peft");
    assert_eq!(exported["warnings"].as_array().unwrap().len(), 2, "{exported}");
    place.fails("adapter export home@1 --base mlp.base -o peft", 2);
    let head = &place.json("inspect one.adapter")["adapter"]["heads"][0];
    let (output, pool) = (head["output"].as_str().unwrap(), head["pool"].as_str().unwrap());
    place.ok(&format!(
        "adapter import peft --base mlp.base -o back.adapter --head-output {output} --pool {pool}"
    ));
    assert_eq!(logits("back.adapter"), logits("one.adapter"));
    assert_eq!(place.json("adapter list")["adapters"][0]["active"], 2);
    let back = place.json("adapter rollback home --why worse");
    assert_eq!((&back["active"], &back["before"]), (&1.into(), &2.into()));
    assert_eq!(logits("home"), logits("one.adapter"));
    assert!(place.ok("adapter rollback home").contains("serves the base"));
    place.fails("adapter rollback home", 2);
    assert!(place.ok("adapter list").contains("serves the base"));
    assert_eq!(place.json("adapter show home")["active"], serde_json::Value::Null);
    let error = place.fails(&format!("run mlp.base --input x={row} --adapter home"), 2);
    assert!(error.contains("serves the base"), "{error}");
    place.ok("adapter use home@1");
    place.ok("adapter use home@2");
    assert!(place.ok("adapter show home").contains("head "));
    let verified = place.json("adapter verify home --base mlp.base");
    assert_eq!(verified["fits"], true);
    assert!(!verified["probes"].as_array().unwrap().is_empty());

    place.fails("adapter remove home@2", 5);
    place.ok("adapter remove home@1");
    let removed = place.json("adapter remove home --force");
    assert_eq!((&removed["removed"][0], &removed["known"]), (&2.into(), &false.into()));
    assert!(place.ok("adapter list").contains("no adapters"));
    place.fails("adapter show home", 2);
    place.fails("adapter remove home", 2);
    place.fails("run mlp.base --input x=row.npy --adapter home", 2);
}

/// One input row of the data that was learned.
fn npy_row(place: &Place) -> &'static str {
    let arrays = npy::read_npz(place.path("two.npz"), 1 << 20).unwrap();
    let x = arrays.iter().find(|(name, _)| name == "x").unwrap().1.as_f32().unwrap();
    let row = offshoot::Array::f32(vec![1, 12], x[..12].to_vec()).unwrap();
    npy::write(place.path("row.npy"), &row).unwrap();
    "row.npy"
}

/// No steps: the head is made of the samples at once, calibrated, and knows what it doesn't know.
#[test]
fn an_instant_head_is_an_adapter_like_others() {
    let place = Place::new();
    learnable(&place);
    let train = "train mlp.base --data two.npz --instant --out now.adapter";
    let report = place.json(train)["report"].clone();
    assert_eq!((&report["steps"], &report["targets"]), (&0.into(), &0.into()));
    assert_eq!((&report["samples_train"], &report["samples_holdout"]), (&60.into(), &0.into()));
    let left_out = report["instant"]["left_out"].as_array().unwrap();
    let accuracy = left_out.iter().find(|m| m[0] == "accuracy").unwrap()[1].as_f64().unwrap();
    assert!(accuracy > 0.9, "{report}");
    assert!(place.ok(train).contains("instant head of 60 samples"));
    let eval = place.json("eval mlp.base --data two.npz --adapter now.adapter");
    assert!(eval["evaluation"]["accuracy"].as_f64().unwrap() > 0.9, "{eval}");
    place.ok("adapter add now.adapter --name home --base mlp.base");
    let row = npy_row(&place);
    let said = place.json(&format!("run mlp.base --input x={row} --adapter home"));
    let said = &said["predictions"][0];
    assert_eq!((&said["label"], &said["known"]), (&"0".into(), &true.into()), "{said}");
    assert!(said["probability"].as_f64().unwrap() > 0.5, "{said}");
    let one = place.json(&format!("run mlp.base --input x={row} --adapter home --among 1"));
    assert_eq!(one["predictions"][0]["label"], "1");
    place.fails(&format!("run mlp.base --input x={row} --adapter home --among 1,7"), 2);
    // Two classes: nothing could be left out to measure what passes.
    place.fails(&format!("run mlp.base --input x={row} --adapter home --reject 0.01"), 2);
    let flat = offshoot::Array::f32([1, 12], vec![-3.0; 12]).unwrap();
    npy::write(place.path("flat.npy"), &flat).unwrap();
    let line = "run mlp.base --input x=flat.npy --adapter home";
    assert_eq!(place.json(line)["predictions"][0]["known"], false);
    assert!(place.ok(line).contains("unknown"));
    place.fails("train mlp.base --data two.npz --instant --steps 3 --out x.adapter", 2);
}

#[test]
fn every_kind_trains_serves_and_is_told() {
    let place = Place::new();
    learnable(&place);
    let row = npy_row(&place);
    for kind in ["lora", "rslora", "dora", "ia3", "lokr", "bias", "bottleneck", "full"] {
        let train = format!("train mlp.base --data two.npz --lr 0.02 --epochs 10 --kind {kind}");
        let trained = place.json(&format!("{train} --threads 1 --out {kind}.adapter"));
        let after = trained["report"]["after"].as_array().unwrap();
        let accuracy = after.iter().find(|m| m[0] == "accuracy").unwrap()[1].as_f64().unwrap();
        assert!(accuracy > 0.8, "{kind}: {after:?}");
        let run = place.json(&format!("run mlp.base --input x={row} --adapter {kind}.adapter"));
        assert!(run["predictions"][0]["logits"][0].is_number(), "{kind}: {run}");
        let told = place.ok(&format!("inspect {kind}.adapter"));
        assert!(told.contains(kind), "{told}");
        // Its effect on stored inputs is the one that was measured.
        let verified = place.json(&format!("adapter verify {kind}.adapter --base mlp.base"));
        assert!(verified["probes"][0]["measured"].as_f64().unwrap() > 0.0, "{verified}");
    }
    place.fails("train mlp.base --data two.npz --out x.adapter --kind ia3 --rank 4", 2);
    let none = place.fails("train mlp.base --data two.npz --out x.adapter --kind hydra", 2);
    assert!(none.contains("lokr"), "{none}");
}

/// A run that is killed goes on from its checkpoint and ends as one that was never stopped.
#[test]
fn a_stopped_run_resumes_to_the_same_adapter() {
    let place = Place::new();
    learnable(&place);
    let train = "train mlp.base --data two.npz --threads 1 --checkpoint-every 20 --name a";
    place.ok(&format!("{train} --steps 3000 --out whole.adapter"));
    let line = format!("{train} --steps 3000 --out part.adapter");
    let words: Vec<&str> = line.split(' ').collect();
    let mut child = place.command(&words).stdout(Stdio::null()).spawn().unwrap();
    let checkpoint = place.path("part.adapter.checkpoint");
    while !checkpoint.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!place.path("part.adapter").exists(), "it was stopped in time");
    place.ok(&format!("{line} --resume"));
    let targets = |file: &str| place.json(&format!("inspect {file}"))["adapter"]["targets"].clone();
    assert_eq!(targets("part.adapter"), targets("whole.adapter"));
    assert!(!checkpoint.exists());
}

/// A run that was killed while it wrote left a file of the adapter's size, or the checkpoint's, each time.
#[test]
fn what_a_killed_run_was_writing_is_removed_by_the_next() {
    let place = Place::new();
    learnable(&place);
    let left = [".a.adapter.4000000.0.tmp", ".a.adapter.checkpoint.4000000.3.tmp"];
    let others = [".b.adapter.4000000.0.tmp", ".a.adapter.tmp", "a.adapter.1.2.tmp"];
    for name in left.iter().chain(&others) {
        place.write(name, b"half");
    }
    place.ok("train mlp.base --data two.npz --out a.adapter --steps 2 --threads 1");
    let names = place.names(".");
    assert!(!left.iter().any(|name| names.iter().any(|n| n == name)), "{names:?}");
    assert!(others.iter().all(|name| names.iter().any(|n| n == name)), "{names:?}");
}

#[test]
fn errors_for_programs_are_one_json_line() {
    let place = Place::new();
    for (line, kind, code) in [
        ("inspect none.base --json", "bad_input", 3),
        ("--json frobnicate", "usage", 2),
        ("run --json x.base", "usage", 2),
    ] {
        let done = place.run(line);
        assert_eq!(done.code, code, "{done:?}");
        assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
        let value: serde_json::Value = serde_json::from_str(&done.stderr).unwrap();
        assert_eq!(value["error"]["kind"], kind);
        assert!(done.stdout.is_empty());
    }
}

#[test]
fn every_verb_has_a_manual_page() {
    let place = Place::new();
    let pages = place.ok("man --out pages");
    let names = place.names("pages");
    assert_eq!(pages.lines().count(), names.len());
    let help = place.ok("--help");
    let verbs = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let verbs: Vec<&str> = verbs
        .lines()
        .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
        .map(|l| l.split_whitespace().next().unwrap())
        .collect();
    assert!(verbs.contains(&"run") && verbs.contains(&"man"), "{help}");
    for verb in verbs {
        let name = format!("offshoot-{verb}.1");
        assert!(names.contains(&name), "{name} is missing: {names:?}");
        let text = String::from_utf8(place.read(&format!("pages/{name}"))).unwrap();
        assert_eq!(text, place.ok(&format!("man {verb}")));
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{text}");
    }
    assert!(names.contains(&"offshoot-adapter-list.1".to_string()), "{names:?}");
    let main = place.ok("man");
    for word in ["EXIT STATUS", "_STORE", "_KERNELS", "_HOST", "_TOKEN_FILE"] {
        assert!(main.contains(word), "{word} is missing: {main}");
    }
    assert_eq!(main.as_bytes(), place.read("pages/offshoot.1"));
    assert!(place.fails("man adapter lst", 2).contains("has no verb 'lst'"));
    place.write("file", "");
    place.fails("man --out file", 1);
}

#[test]
fn help_version_and_completions() {
    let place = Place::new();
    assert!(place.ok("--help").contains("demo"));
    assert!(place.ok("train --help").contains("--rank"));
    assert!(!place.ok("--help").contains("import-worker"));
    assert!(place.ok("--version").starts_with("offshoot "));
    for shell in ["bash", "zsh", "fish"] {
        assert!(place.ok(&format!("completions {shell}")).contains("offshoot"));
    }
    place.fails("completions tcsh", 2);
    place.fails("import-worker", 2);
}

/// `offshoot … | head -1` ends without a word.
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    place.ok("pack {models}/attention.onnx -o a.base");
    let mut command = place.command(&["inspect", "a.base", "--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn output_that_can_not_be_written_is_an_error() {
    let place = Place::new();
    place.ok("pack {models}/mlp.onnx -o a.base");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = place.command(&["inspect", "a.base"]);
    let output = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let output = output.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("standard output"));
    let done = done(place.command(&["inspect", "a.base"]));
    assert_eq!(done.code, 0);
}
