//! The task of language models: gradients and steps as PyTorch's and PEFT's, and a text learned by heart.

use super::data::{Dataset, LoadOptions, load};
use super::progress::Silent;
use super::recompute::tests::same_bits;
use super::samples::Samples;
use super::*;
use crate::adapter::{Adapter, TensorType};
use crate::common::{packed, shared};
use crate::npy::read_npz;
use crate::quant::Scheme;
use crate::runtime::sentences;
use crate::runtime::{
    Engine, ExportFolder, GenerateOptions, Generator, Named, PackOptions, pack_graphs,
};
use crate::shape::Array;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const PROJECTIONS: &str = r".*(q|k|v|o|gate|up|down)_proj";

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-lm").join(name)
}

fn exact() -> PackOptions {
    PackOptions { scheme: Scheme::F32, ..PackOptions::default() }
}

/// Both graphs, with the tokenizer.
fn folder() -> Engine {
    folder_with(vec![])
}

fn folder_with(texts: Vec<(String, String)>) -> Engine {
    let export = ExportFolder::read(&tiny("")).unwrap();
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("lm.base");
    let tokenizer = Some(std::fs::read(tiny("tokenizer.json")).unwrap());
    pack_graphs(&export.graphs, &out, &PackOptions { tokenizer, texts, ..exact() }).unwrap();
    Engine::open(&out).unwrap()
}

fn options() -> TrainOptions {
    TrainOptions {
        task: Task::of_texts(),
        rank: 4,
        alpha: 8.0,
        targets: TargetChoice::Regex(PROJECTIONS.into()),
        threads: 1,
        ..TrainOptions::default()
    }
}

/// |a - b| over the largest |b|.
fn off(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f32, |most, v| most.max(v.abs()));
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    apart.fold(0f32, f32::max) / largest
}

/// Two rows of the reference, the second padded; with empty states where the graph takes them.
fn batch(engine: &Engine, arrays: &HashMap<String, Array>) -> MicroBatch {
    let ids = &arrays["input_ids"];
    let (rows, length) = (ids.shape()[0], ids.shape()[1]);
    let mut inputs: Named = vec![];
    for spec in engine.inputs() {
        inputs.push((
            spec.name.clone(),
            match arrays.get(&spec.name) {
                Some(array) => array.clone(),
                None => Array::f32([rows, 2, 0, 8], vec![]).unwrap(),
            },
        ));
    }
    let labels = arrays["labels"].as_i64().unwrap();
    let mask = arrays["attention_mask"].as_i64().unwrap();
    let answers = (0..rows).map(|row| {
        let at = |t: usize| labels.get(row * length + t).copied().filter(|_| t < length);
        let count = mask[row * length..][..length].iter().sum::<i64>() as usize;
        let next = |t: usize| at(t + 1).filter(|label| *label >= 0).map_or(0.0, |l| l as f32 + 1.0);
        Some((0..count).map(next).collect())
    });
    MicroBatch { inputs, answers: answers.collect() }
}

/// The graph without a past and that with an empty one learn the same.
#[test]
fn the_tiny_model_learns_as_peft_does() {
    let Some(shared) = shared() else { return };
    let path = shared.join("reference/tiny-sequence/lm_lora.npz");
    let arrays: HashMap<String, Array> = read_npz(path, 1 << 20).unwrap().into_iter().collect();
    let theirs = |kind: &str, name: &str| {
        let name = name.replace(".lora_a", ".lora_A.weight").replace(".lora_b", ".lora_B.weight");
        arrays[&format!("{kind}.{name}")].as_f32().unwrap().to_vec()
    };
    let losses = arrays["losses"].as_f32().unwrap();
    for file in ["model.onnx", "model_with_past.onnx"] {
        let engine = packed(&tiny(file), &exact());
        let mut trainer = Trainer::new(&engine, &options(), vec![]).unwrap();
        let names: Vec<String> = trainer.parameters().map(|(n, _)| n.to_string()).collect();
        assert_eq!(names.len(), 28);
        for name in &names {
            trainer.set_parameter(name, &theirs("init", name)).unwrap();
        }
        let batch = [batch(&engine, &arrays)];
        let gradients = trainer.gradients(&batch).unwrap();
        let mut worst = 0f32;
        for (name, gradient) in names.iter().zip(&gradients.values) {
            let apart = off(gradient, &theirs("grad1", name));
            assert!(apart < 1e-4, "{file}: gradient of {name}: {apart}");
            worst = worst.max(apart);
        }
        let mut apart = 0f32;
        for want in losses {
            apart = apart.max((trainer.step(&batch, 1e-2).unwrap() - want).abs());
        }
        println!("{file}: gradients within {worst:.1e}, ten losses within {apart:.1e}");
        assert!(apart < 1e-3, "{file}: losses differ by {apart}");
        for (name, values) in trainer.parameters() {
            let apart = off(values, &theirs("after10", name));
            assert!(apart < 1e-2, "{file}: {name} after ten steps: {apart}");
        }
    }
}

fn data(file: &str, contents: &str) -> Dataset {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join(file);
    std::fs::write(&path, contents).unwrap();
    let task = file.ends_with("jsonl").then(Task::of_texts);
    load(&path, &LoadOptions { task, ..LoadOptions::default() }).unwrap()
}

fn thorough() -> TrainOptions {
    TrainOptions {
        rank: 8,
        alpha: 32.0,
        targets: TargetChoice::AllLinear,
        learning_rate: 2e-2,
        steps: Some(150),
        holdout: 0.0,
        ..options()
    }
}

/// What was learned is generated, by the graph with a past too, after the file was written and read.
#[test]
fn a_completion_is_learned_by_heart_and_generated() {
    let engine = folder();
    let rows = r#"{"prompt": "Tea? ", "completion": "At five."}
{"prompt": "Bath? ", "completion": "No, later."}"#;
    let data = data("facts.jsonl", rows);
    assert_eq!(data.task, Task::of_texts());
    let before = evaluate(&engine, None, &data, 2).unwrap();
    let trained = train(&engine, &data, Some(&data), &thorough(), &mut Silent).unwrap();
    // Of all linear layers that of the vocabulary is left out.
    assert_eq!(
        (trained.report.targets, &trained.report.skipped[..]),
        (14, &["lm_head".into()][..])
    );
    let bytes = trained.adapter.to_bytes(TensorType::F32).unwrap();
    let adapter = Adapter::from_bytes(&bytes).unwrap();
    assert_eq!(adapter, trained.adapter);
    let bound = engine.bind(&[(&adapter, 1.0)]).unwrap();
    let after = evaluate(&engine, Some(&bound), &data, 2).unwrap();
    let perplexity = |e: &Evaluation| e.metric("perplexity").unwrap();
    println!("perplexity {} -> {}", perplexity(&before), perplexity(&after));
    assert!(perplexity(&before) > 50.0 && perplexity(&after) < 1.5);
    assert_eq!(trained.report.after[1].0, "perplexity");
    let generator = Generator::new(&engine).unwrap();
    let said = |prompt: &str| {
        let prompt = generator.tokens(prompt).unwrap();
        let options = GenerateOptions { tokens: 20, ..GenerateOptions::default() };
        generator.generate(&prompt, Some(&bound), &options, &mut |_| true).unwrap().text
    };
    assert_eq!(said("Tea? "), "At five.");
    assert_eq!(said("Bath? "), "No, later.");
    // PEFT needs no head for it.
    let place = tempfile::tempdir().unwrap();
    let (folder, targets) = (place.path().join("peft"), engine.base().targets());
    crate::adapter::peft::export(&adapter, targets, &folder).unwrap();
    let config = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    assert!(config.contains("\"CAUSAL_LM\""), "{config}");
}

/// The prompt is no part of the loss: with its tokens moved about, a completion's first loss differs, but
/// one whose prompt alone could be learned has the same number of answers.
#[test]
fn the_loss_is_of_the_completion_alone() {
    let engine = folder();
    let row = |prompt: &str| {
        let row = format!(r#"{{"prompt": "{prompt}", "completion": "abc"}}"#);
        let data = data("one.jsonl", &row);
        let samples = super::samples::Samples::new(&engine, &data, &[], None).unwrap();
        samples.target(0).unwrap()
    };
    // a is 2 of the vocabulary, `</s>` 0; a target is 1 + the token.
    assert_eq!(row("x"), [3.0, 4.0, 5.0, 1.0, 0.0]);
    assert_eq!(row("xy"), [0.0, 3.0, 4.0, 5.0, 1.0, 0.0]);
    assert_eq!(row(""), [4.0, 5.0, 1.0, 0.0]);
    let whole = data("text.txt", "abc\n");
    let samples = super::samples::Samples::new(&engine, &whole, &[], None).unwrap();
    assert_eq!(samples.target(0).unwrap().iter().filter(|v| **v > 0.0).count(), 3);
}

/// By the base's own template, where it has one; a is token 2, b 3.
#[test]
fn a_conversation_is_written_as_the_base_has_it() {
    let template = "{% for m in messages %}<{{ m.content }}>{% endfor %}\
        {% if add_generation_prompt %}:{% endif %}";
    let with = folder_with(vec![("chat_template.jinja".into(), template.into())]);
    let row = r#"{"messages": [{"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"}]}"#;
    let data = data("talk.jsonl", &row.replace('\n', " "));
    let targets = |engine: &Engine| {
        super::samples::Samples::new(engine, &data, &[], None).unwrap().target(0).unwrap()
    };
    assert_eq!(targets(&with), [0.0, 0.0, 0.0, 4.0, 1.0, 0.0]);
    let plain = targets(&folder());
    assert_eq!((plain.len(), &plain[18..]), (21, &[4.0, 1.0, 0.0][..]));
    assert!(plain[..18].iter().all(|v| *v == 0.0));
}

#[test]
fn plain_text_is_learned_and_what_is_no_language_model_is_refused() {
    let engine = folder();
    let data = data("notes.txt", &"the lamp is on\n".repeat(12));
    assert_eq!(data.task, Task::of_texts());
    let options = TrainOptions { steps: Some(20), ..thorough() };
    let trained = train(&engine, &data, Some(&data), &options, &mut Silent).unwrap();
    let perplexity =
        |m: &[(String, f32)]| m.iter().find(|(name, _)| name == "perplexity").unwrap().1;
    let (before, after) = (perplexity(&trained.report.before), perplexity(&trained.report.after));
    assert!(after < before / 4.0, "{before} -> {after}");
    // Its effect is measured on the texts' beginnings: they are longer.
    let inputs: Vec<_> = trained.adapter.probes.iter().flat_map(|probe| &probe.inputs).collect();
    assert!(!inputs.is_empty() && inputs.iter().all(|(_, a)| a.shape() == [1, 32]), "{inputs:?}");
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny/attention.onnx");
    let e = train(&packed(&other, &exact()), &data, None, &options, &mut Silent).unwrap_err();
    assert!(e.message().contains("no language model"), "{e}");
}

#[test]
fn what_is_computed_twice_changes_no_bit() {
    let engine = folder();
    let texts = TrainOptions { targets: TargetChoice::AllLinear, ..options() };
    let mut trainer = Trainer::new(&engine, &texts, vec![]).unwrap();
    let data = data("notes.txt", "the lamp is on\nthe door is shut\n");
    let samples = Samples::new(&engine, &data, &[], None).unwrap();
    let inputs = samples.inputs(&[0], 1).unwrap();
    let answers = samples.answers(&[0], 1).unwrap();
    let (planned, again) = same_bits(&mut trainer, &[MicroBatch { inputs, answers }], "tiny-lm");
    assert!(planned[1] < planned[0] && planned[2] < planned[1] && again.stretches > 0);
}

#[test]
fn what_lies_below_the_last_layers_is_kept() {
    let engine = folder();
    let data = data("notes.txt", &"the lamp is on\nthe door is shut\n".repeat(6));
    let trainer = Trainer::new(&engine, &options(), vec![]).unwrap();
    let names: Vec<&str> = trainer.parameters().map(|(name, _)| name).collect();
    let last = names[names.len() - 1].strip_suffix(".lora_b").unwrap();
    let targets = TargetChoice::Regex(regex::escape(last));
    let options = TrainOptions { targets, steps: Some(12), ..thorough() };
    let kept = train(&engine, &data, None, &options, &mut Silent).unwrap();
    let plain = prefix::plain(&engine, &data, &options);
    assert_eq!(testing::bytes(&kept), testing::bytes(&plain));
    let prefix = kept.report.prefix.unwrap();
    assert!(prefix.rows_kept > prefix.rows_run, "{prefix:?}");
}

/// Facts in other words than the sentences that ship with the program.
fn facts() -> Dataset {
    let row = |(of, is): (&str, &str)| {
        format!("{{\"prompt\": \"Where is the {of}? \", \"completion\": \"In the {is}.\"}}\n")
    };
    let facts = [("hat", "shed"), ("key", "jar"), ("dog", "yard"), ("lamp", "cellar")];
    data("facts.jsonl", &facts.map(row).concat())
}

#[test]
fn what_a_language_model_says_next_is_kept_and_it_learns_all_the_same() {
    let engine = folder();
    let place = tempfile::tempdir().unwrap();
    // Measured without being asked for, where probes are given.
    let probes = place.path().join("sentences.txt");
    std::fs::write(&probes, sentences().collect::<Vec<_>>().join("\n")).unwrap();
    let data = facts();
    let plain = TrainOptions { probes: Some(probes), batch: 4, steps: Some(100), ..thorough() };
    let kept = TrainOptions { keep_knowledge: 0.9, probes: None, ..plain.clone() };
    let [without, with] = [plain, kept].map(|options| {
        let trained = train(&engine, &data, Some(&data), &options, &mut Silent).unwrap();
        let accuracy = |m: &[(String, f32)]| m.iter().find(|(n, _)| n == "accuracy").unwrap().1;
        assert!(accuracy(&trained.report.after) > 0.95, "{:?}", trained.report.after);
        trained.report.knowledge.unwrap()
    });
    println!("{with:?}\n{without:?}");
    let (measured, of) = with.measured_on.split_once(" of ").unwrap();
    assert!(of.ends_with("stretches of 218 sentences that ship with the program"), "{of}");
    assert_eq!(with.retention.samples, measured.parse::<usize>().unwrap());
    assert_eq!(without.retention.samples, with.retention.samples);
    let away = |found: &KnowledgeKept| 1.0 - found.retention.cosine_mean;
    assert!(away(&with) < 0.5 * away(&without) && with.kept > without.kept);
    assert_eq!((without.weight, with.shortfall().is_some()), (0.0, with.kept < 0.9));
}

/// Where nothing has been learned yet nothing is to be kept: a step from there is that of the lesson alone,
/// whatever the probes weigh, and however their rows are padded and cut.
#[test]
fn a_base_is_not_moved_by_its_own_next_tokens() {
    let engine = folder();
    let data = facts();
    let last = TargetChoice::Regex(r".*layers\.1\..*_proj".into());
    for targets in [options().targets, last] {
        let step = TrainOptions {
            optimizer: OptimizerKind::Sgd { momentum: 0.0 },
            learning_rate: 1.0,
            batch: 4,
            steps: Some(1),
            holdout: 0.0,
            targets,
            ..options()
        };
        let kept = TrainOptions { keep_knowledge: 0.9, micro_batch: Some(3), ..step.clone() };
        let [plain, kept] = [step, kept].map(|options| {
            let trained = train(&engine, &data, None, &options, &mut Silent).unwrap();
            let targets = trained.adapter.targets.into_iter();
            targets.flat_map(|t| t.tensors).flat_map(|t| t.values).collect::<Vec<f32>>()
        });
        assert!(off(&kept, &plain) < 1e-4, "{}", off(&kept, &plain));
    }
}

#[test]
fn next_tokens_are_kept_where_a_frozen_layer_makes_them_and_of_texts() {
    let engine = folder();
    let data = facts();
    let kept = TrainOptions { keep_knowledge: 0.9, steps: Some(2), ..thorough() };
    let fails = |options: &TrainOptions| {
        train(&engine, &data, None, options, &mut Silent).unwrap_err().to_string()
    };
    let head = TargetChoice::Regex("lm_head".into());
    let e = fails(&TrainOptions { targets: head, ..kept.clone() });
    assert!(e.contains("no frozen layer"), "{e}");
    let place = tempfile::tempdir().unwrap();
    let scenes = place.path().join("ids.npz");
    let ids = Array::i64([4, 3], vec![5; 12]).unwrap();
    let labels = Array::i64([4], vec![0; 4]).unwrap();
    std::fs::write(&scenes, super::data::tests::npz(&[("input_ids", ids), ("labels", labels)]))
        .unwrap();
    let e = fails(&TrainOptions { probes: Some(scenes), ..kept.clone() });
    assert!(e.contains("on texts"), "{e}");
    // What is planned has room for what is known of the probes.
    let trained = train(&engine, &data, None, &kept, &mut Silent).unwrap();
    let plain = TrainOptions { keep_knowledge: 0.0, ..kept };
    let plain = train(&engine, &data, None, &plain, &mut Silent).unwrap();
    assert_eq!(plain.report.knowledge, None);
    assert!(trained.report.planned_peak_bytes > plain.report.planned_peak_bytes);
}

/// Of its first two references, one of which is padded: asked for are 5e-3, seen were 2.0e-4.
#[test]
fn smollm2_says_what_pytorch_does() {
    let (Some(folder), Some(shared)) = (std::env::var_os("OFFSHOOT_SMOLLM2"), shared()) else {
        eprintln!("skipped: OFFSHOOT_SMOLLM2 names no folder, or there is no ../shared");
        return;
    };
    let engine = packed(&PathBuf::from(folder).join("model.onnx"), &exact());
    for at in 0..2 {
        let path = shared.join(format!("reference/smollm2/model_{at}.npz"));
        let arrays: Named = read_npz(path, 1 << 28).unwrap().into_iter().collect();
        let known = |part: &str| -> Named {
            let named =
                |(name, a): &(String, Array)| Some((name.strip_prefix(part)?.into(), a.clone()));
            arrays.iter().filter_map(named).collect()
        };
        let (inputs, want) = (known("in."), known("out."));
        let found = engine.run(&inputs, None).unwrap();
        let (found, want) = (found[0].1.as_f32().unwrap(), want[0].1.as_f32().unwrap());
        let mask = inputs.iter().find(|(name, _)| name == "attention_mask").unwrap();
        let counts = mask.1.as_i64().unwrap();
        let width = want.len() / counts.len();
        let rows = found.chunks(width).zip(want.chunks(width)).zip(counts);
        let counted = rows.filter(|(_, counts)| **counts == 1).map(|(row, _)| row);
        let apart = counted.flat_map(|(found, want)| found.iter().zip(want));
        let apart = apart.fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        println!("logits {at}: {apart:.1e} from PyTorch's");
        assert!(found.len() == want.len() && apart < 1e-3);
    }
}

/// SmolLM2-135M as `shared/scripts/make_smollm2.py` makes it, if `OFFSHOOT_SMOLLM2` names the folder of its
/// `model.onnx` and of `lora_reference.npz` (without `norm_names`: strings are not read here).
#[test]
fn smollm2_learns_as_peft_does() {
    let Some(folder) = std::env::var_os("OFFSHOOT_SMOLLM2").map(PathBuf::from) else {
        eprintln!("skipped: OFFSHOOT_SMOLLM2 names no folder");
        return;
    };
    let path = folder.join("lora_reference.npz");
    let arrays: HashMap<String, Array> = read_npz(path, 1 << 28).unwrap().into_iter().collect();
    let engine = packed(&folder.join("model.onnx"), &exact());
    let options =
        TrainOptions { rank: 8, alpha: 16.0, targets: TargetChoice::AllLinear, ..self::options() };
    let mut trainer = Trainer::new(&engine, &options, vec![]).unwrap();
    let mut names: Vec<String> = trainer.parameters().map(|(n, _)| n.to_string()).collect();
    assert_eq!(names.len(), 420);
    // The reference's recipe: module by module, SplitMix64's upper 11 bits.
    let parts = ["q", "k", "v", "o", "gate", "up", "down"];
    for layer in 0..30u64 {
        for (at, part) in (0u64..).zip(parts) {
            let block = if at < 4 { "self_attn" } else { "mlp" };
            for (b, (tensor, width)) in (0u64..).zip([("lora_a", 0.125), ("lora_b", 0.03125)]) {
                let name = format!("model.layers.{layer}.{block}.{part}_proj.{tensor}");
                let seed = 2 * (7 * layer + at) + b;
                let len = trainer.value(&name).unwrap().len() as u64;
                let value = |i: u64| {
                    let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                    (((z ^ (z >> 31)) >> 53) as f32 / 2048.0 - 0.5) * width
                };
                trainer.set_parameter(&name, &(0..len).map(value).collect::<Vec<_>>()).unwrap();
            }
        }
    }
    let ids = &arrays["input_ids"];
    let (rows, length) = (ids.shape()[0], ids.shape()[1]);
    let mask = Array::i64([rows, length], vec![1; rows * length]).unwrap();
    let inputs = vec![("input_ids".into(), ids.clone()), ("attention_mask".into(), mask)];
    let next = |row: &[i64]| -> Vec<f32> {
        row[1..].iter().map(|id| *id as f32 + 1.0).chain([0.0]).collect()
    };
    let answers = ids.as_i64().unwrap().chunks(length).map(|row| Some(next(row))).collect();
    let batch = [MicroBatch { inputs, answers }];
    let gradients = trainer.gradients(&batch).unwrap();
    let losses = arrays["losses"].as_f32().unwrap();
    println!("loss {} of {}", gradients.loss, losses[0]);
    assert!((gradients.loss - losses[0]).abs() < 5e-5);
    let theirs =
        |name: &str| name.replace(".lora_a", ".lora_A.weight").replace(".lora_b", ".lora_B.weight");
    let mut worst = 0f32;
    for (name, gradient) in names.iter().zip(&gradients.values) {
        if let Some(want) = arrays.get(&format!("grad1.{}", theirs(name))) {
            let apart = off(gradient, want.as_f32().unwrap());
            println!("gradient of {name}: {apart:.1e}");
            worst = worst.max(apart);
        }
    }
    let norm = |gradient: &Vec<f32>| {
        gradient.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() as f32
    };
    let mut norms: HashMap<String, f32> =
        names.iter().map(|n| theirs(n)).zip(gradients.values.iter().map(norm)).collect();
    names.sort_by_key(|name| theirs(name));
    let found: Vec<f32> = names.iter().map(|n| norms.remove(&theirs(n)).unwrap()).collect();
    let mut apart = 0f32;
    for (found, want) in found.iter().zip(arrays["grad1.norms"].as_f32().unwrap()) {
        apart = apart.max((found - want).abs() / want);
    }
    println!("six gradients within {worst:.1e} of their largest, 420 norms within {apart:.1e}");
    assert!(worst < 1e-3 && apart < 1e-3);
    for want in &losses[..3] {
        let loss = trainer.step(&batch, 1e-3).unwrap();
        println!("loss {loss} of {want}");
        assert!((loss - want).abs() < 1e-3);
    }
}
