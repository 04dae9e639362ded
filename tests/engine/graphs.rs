//! Several graphs in one base: what they share is there once, one adapter reaches all, states go from
//! run to run and from graph to graph.

use crate::support::*;
use offshoot::packing::{ExportFolder, GraphSource, ImportOptions, PackOptions, pack_graphs};
use offshoot::{Array, Base, Engine, Named, Role, Scheme};
use std::path::{Path, PathBuf};

fn source(name: &str, path: PathBuf) -> GraphSource {
    GraphSource { name: name.into(), path, import: ImportOptions::default() }
}

fn exact() -> PackOptions {
    PackOptions { scheme: Scheme::F32, ..PackOptions::default() }
}

fn base_of(graphs: &[GraphSource], options: &PackOptions) -> (tempfile::TempDir, Base) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.base");
    pack_graphs(graphs, &path, options).unwrap_or_else(|e| panic!("{e}"));
    (dir, Base::open(&path).unwrap())
}

/// Every output of every reference within 1e-4.
fn equals(engine: &Engine, folder: &Path, name: &str) {
    for i in 0..3 {
        let path = folder.join(format!("{name}_{i}.npz"));
        for (output, found, expected) in answers(engine, &reference(&path)) {
            let apart = max_difference(found.as_f32().unwrap(), expected.as_f32().unwrap());
            println!("{name}_{i} '{output}': {apart:.1e}");
            assert!(apart <= 1e-4, "{name}_{i} '{output}': {apart}");
        }
    }
}

fn tiny(shared: &Path) -> Vec<GraphSource> {
    let models = shared.join("models/tiny-sequence");
    let step = models.join("lm_with_past.onnx");
    vec![source("main", models.join("lm.onnx")), source("step", step)]
}

#[test]
fn a_language_model_and_its_continuation() {
    let Some(shared) = shared() else { return };
    let (_dir, base) = base_of(&tiny(&shared), &exact());
    let (_alone, alone) = base_of(&tiny(&shared)[..1], &exact());
    println!("{} bytes, one graph alone {}", base.file_len(), alone.file_len());
    assert_eq!(base.weight_count(), alone.weight_count());
    assert_eq!(base.targets(), alone.targets());
    let main = Engine::new(base).unwrap();
    let step = main.graph_named("step").unwrap();
    assert_eq!((main.graph_name(), step.graph_name()), ("main", "step"));
    let references = shared.join("reference/tiny-sequence");
    equals(&step, &references, "lm_with_past");
    let e = main.graph_named("past").err().unwrap();
    assert!(e.hint_text().unwrap().contains("main, step"), "{e}");

    // An adapter bound to the main graph changes the other: the targets are the same.
    let adapter = adapter(&main, 1, |_| true);
    let bound = main.bind(&[(&adapter, 1.0)]).unwrap();
    let inputs = reference(&references.join("lm_with_past_0.npz")).inputs;
    let changed = step.run(&inputs, Some(&bound)).unwrap();
    assert_ne!(changed, step.run(&inputs, None).unwrap());
}

#[test]
fn states_carry_their_numbers_over_the_graphs() {
    let Some(shared) = shared() else { return };
    let (_dir, base) = base_of(&tiny(&shared), &exact());
    let step = &base.graph_record(1).unwrap();
    let states = |specs: &[offshoot::IoSpec]| -> Vec<u32> {
        let number = |s: &offshoot::IoSpec| match s.role {
            Role::State(n) => Some(n),
            _ => None,
        };
        specs.iter().filter_map(number).collect()
    };
    let (given, made) = (states(&step.inputs), states(&step.outputs));
    assert!(!given.is_empty());
    assert_eq!(given, made);
    assert!(step.inputs.iter().any(|s| s.role == Role::Ids));
    assert!(step.outputs.iter().any(|s| s.role == Role::Logits));
}

#[test]
fn whisper_from_its_folder() {
    let Some(shared) = shared() else { return };
    let export = ExportFolder::read(&shared.join("models/whisper-tiny-en")).unwrap();
    let names: Vec<&str> = export.graphs.iter().map(|g| g.name.as_str()).collect();
    assert_eq!(names, ["encoder", "decoder", "step"]);
    let (_dir, base) = base_of(&export.graphs, &exact());
    let bytes =
        |range: std::ops::Range<usize>| base_of(&export.graphs[range], &exact()).1.file_len();
    let (encoder, decoder) = (bytes(0..1), bytes(1..2));
    println!("{} bytes, encoder {encoder}, decoder {decoder}", base.file_len());
    // The continuation brings its text and no weights.
    assert!(base.file_len() < encoder + decoder + (1 << 20));
    let engine = Engine::new(base).unwrap();
    let references = shared.join("reference/whisper");
    equals(&engine, &references, "encoder");
    equals(&engine.graph_named("decoder").unwrap(), &references, "decoder");
    equals(&engine.graph_named("step").unwrap(), &references, "decoder_with_past");
}

/// Token by token with states, the answer is that of the whole at once.
#[test]
fn steps_with_states_equal_whole_runs() {
    let Some(shared) = shared() else { return };
    let (_dir, base) = base_of(&tiny(&shared), &exact());
    let main = Engine::new(base).unwrap();
    let step = main.graph_named("step").unwrap();
    let whole = reference(&shared.join("reference/tiny-sequence/lm_0.npz"));
    let ids = named(&whole.inputs, "input_ids").as_i64().unwrap().to_vec();
    let expected = named(&whole.outputs, "logits").as_f32().unwrap();
    let width = expected.len() / ids.len();
    // Nothing yet: states of no length.
    let mut states: Vec<(Role, Array)> = vec![];
    for (at, &id) in ids.iter().enumerate() {
        let mut inputs: Named = vec![];
        for spec in step.inputs() {
            let kept = states.iter().find(|(role, _)| *role == spec.role).map(|(_, a)| a.clone());
            let value = match spec.role {
                Role::Ids => Array::i64([1, 1], vec![id]).unwrap(),
                Role::Mask => Array::i64([1, at + 1], vec![1; at + 1]).unwrap(),
                _ => kept.unwrap_or_else(|| Array::f32([1, 2, 0, 8], vec![]).unwrap()),
            };
            inputs.push((spec.name.clone(), value));
        }
        let outputs = step.run(&inputs, None).unwrap();
        let apart = max_difference(
            named(&outputs, "logits").as_f32().unwrap(),
            &expected[at * width..][..width],
        );
        assert!(apart <= 1e-4, "token {at}: {apart}");
        let specs = step.outputs().iter().zip(outputs);
        states = specs.map(|(spec, (_, array))| (spec.role, array)).collect();
    }
}

/// Silero's differed by 69 bytes from run to run: maps of tract's are walked in another order each time.
#[test]
fn packing_again_gives_the_same_bytes() {
    let Some(shared) = shared() else { return };
    for name in ["tiny-sequence/ctc_lstm.onnx", "tiny-sequence/lm_with_past.onnx", "ppocr-cls.onnx"]
    {
        let path = shared.join("models").join(name);
        let mut import = ImportOptions::default();
        if name.starts_with("ppocr") {
            let shape = "x=1x3x48x192,f32";
            import.inputs = vec![offshoot::packing::InputSpec::parse(shape).unwrap()];
        }
        let graph = GraphSource { name: "main".into(), path, import };
        let bytes = || {
            let (_dir, base) = base_of(std::slice::from_ref(&graph), &PackOptions::default());
            std::fs::read(base.path()).unwrap()
        };
        let first = bytes();
        for _ in 0..3 {
            let again = bytes();
            let differ = first.iter().zip(&again).filter(|(a, b)| a != b).count();
            assert!(first == again, "{name}: {differ} of {} bytes differ", first.len());
        }
    }
}
