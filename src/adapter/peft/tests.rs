use super::super::testing::{base, linear};
use super::super::{TargetKind, bind};
use super::*;
use crate::error::ErrorKind;
use crate::quant::{Change, LowRank, Packed};
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::path::PathBuf;

const LAYERS: [&str; 6] = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
];

/// MiniLM's 36 targets, with `prefix` before their names.
fn minilm(prefix: &str) -> Vec<Target> {
    let mut targets = Vec::new();
    for layer in 0..6 {
        for name in LAYERS {
            let (i, o) = match name {
                "intermediate.dense" => (384, 1536),
                "output.dense" => (1536, 384),
                _ => (384, 384),
            };
            targets.push(linear(&format!("{prefix}encoder.layer.{layer}.{name}"), i, o));
        }
    }
    targets
}

fn reference(name: &str) -> Option<PathBuf> {
    Some(crate::common::shared()?.join("reference/minilm").join(name))
}

#[test]
fn pefts_own_directories_import_whole() {
    for (name, rank, alpha, classes) in
        [("peft_adapter", 8, 16.0, 3), ("peft_adapter_spam_r4", 4, 8.0, 2)]
    {
        let Some(dir) = reference(name) else { return };
        for prefix in ["bert.", "", "model.bert."] {
            let targets = minilm(prefix);
            let options = ImportOptions { base: Some(base(1)), ..ImportOptions::default() };
            let imported = import(&dir, &targets, &options).unwrap();
            assert_eq!(imported.rows.len(), 36);
            for (row, target) in imported.rows.iter().zip(&targets) {
                assert_eq!(row.module_path, target.module_path);
                assert_eq!((row.rank, row.alpha), (rank, alpha));
                assert!(row.peft.starts_with("bert.encoder.layer."));
            }
            assert_eq!(imported.warnings.len(), 1, "{:?}", imported.warnings);
            let adapter = imported.adapter;
            assert_eq!(adapter.name, name);
            let head = adapter.head().unwrap();
            assert_eq!((head.name.as_str(), head.features), ("classifier", 384));
            assert_eq!((head.classes(), head.output.as_str()), (classes, ""));
            assert_eq!(head.labels[1], "1");
            let bound =
                bind(&[(&adapter, 1.0)], &targets, &base(1), &Vec::<Packed>::new()).unwrap();
            let of = |t: &Option<Change>| t.as_ref()?.low_rank.as_ref().map(LowRank::rank);
            assert!(bound.targets.iter().all(|t| of(t) == Some(rank as usize)));
        }
    }
}

/// The first values of two tensors, read from the file by another path than the import's.
#[test]
fn values_are_those_of_the_file() {
    let Some(dir) = reference("peft_adapter") else { return };
    let imported = import(&dir, &minilm("bert."), &ImportOptions::default()).unwrap();
    let bytes = std::fs::read(dir.join(WEIGHTS)).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let floats = |from: usize, n: usize| -> Vec<f32> {
        let bytes = &bytes[data + from..data + from + 4 * n];
        bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    // PEFT wrote layer 0's attention.output.dense and attention.self.key first.
    let pairs = &imported.adapter.targets;
    assert_eq!(pairs[3].tensors[0].values, floats(0, 8 * 384));
    assert_eq!(pairs[3].tensors[1].values, floats(12288, 8 * 384));
    assert_eq!(pairs[1].tensors[0].values, floats(24576, 8 * 384));
}

#[test]
fn a_base_that_lacks_modules_is_a_mismatch() {
    let Some(dir) = reference("peft_adapter") else { return };
    let mut targets = minilm("bert.");
    targets[7].module_path = "bert.encoder.layer.1.attention.self.keys".into();
    let error = import(&dir, &targets, &ImportOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(error.message().contains("'bert.encoder.layer.1.attention.self.key'"), "{error}");
    assert!(error.hint_text().unwrap().contains("attention.self.keys"), "{error}");

    let mut more = minilm("bert.");
    more.push(linear("bert.encoder.layer.6.output.dense", 2, 2));
    let imported = import(&dir, &more, &ImportOptions::default()).unwrap();
    assert!(imported.warnings[0].contains("1 targets of the base"), "{:?}", imported.warnings);
}

/// Every tensor of PEFT's own file comes out again, shape and bits.
#[test]
fn pefts_own_directories_export_as_they_came() {
    for name in ["peft_adapter", "peft_adapter_spam_r4"] {
        let Some(dir) = reference(name) else { return };
        let targets = minilm("bert.");
        let options = ImportOptions { base: Some(base(1)), ..ImportOptions::default() };
        let adapter = import(&dir, &targets, &options).unwrap().adapter;
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        let left = export(&adapter, &targets, &out).unwrap();
        assert_eq!(left.len(), 1, "{left:?}");
        let tensors = |dir: &Path| {
            let bytes = std::fs::read(dir.join(WEIGHTS)).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut all: Vec<_> = file
                .iter()
                .map(|(n, v)| (n.to_string(), v.dtype(), v.shape().to_vec(), v.data().to_vec()))
                .collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        assert!(tensors(&out) == tensors(&dir));
        let again = import(&out, &targets, &options).unwrap();
        assert_eq!(Adapter { name: name.into(), ..again.adapter }, adapter);
        let error = export(&adapter, &targets, &out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
    }
}

/// Ranks and alphas that differ, rsLoRA, kernels, and one path that ends as another.
#[test]
fn all_that_a_directory_can_hold_comes_back() {
    use super::super::testing::{head, pair};
    let mut wide = linear("m.conv", 2 * 6, 5);
    wide.kind = TargetKind::Conv { kernel: [2, 3], one_axis: false };
    let mut line = linear("m.line", 2 * 3, 5);
    line.kind = TargetKind::Conv { kernel: [1, 3], one_axis: true };
    let targets = [linear("a.q", 6, 4), wide, line, linear("q", 6, 4), linear("m.a.q", 6, 4)];
    let mut adapter = Adapter {
        name: "out".into(),
        base: Some(base(1)),
        targets: vec![
            pair("q", 2, 0.1, 6, 4),
            pair("m.conv", 3, 3.0, 12, 5),
            pair("a.q", 1, 16.0, 6, 4),
            pair("m.line", 2, 0.1, 6, 5),
            pair("m.a.q", 4, 1e-7, 6, 4),
        ],
        heads: vec![untold(head("score"))],
        ..Adapter::default()
    };
    adapter.targets.iter_mut().for_each(|t| t.rslora = true);
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    export(&adapter, &targets, &out).unwrap();
    let bytes = std::fs::read(out.join(WEIGHTS)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let a = file.tensor("base_model.model.m.conv.lora_A.weight").unwrap();
    assert_eq!(a.shape(), [3, 2, 2, 3]);
    // Channel 0, row 0, column 1: channels are innermost in ours.
    assert_eq!(a.data()[4..8], adapter.targets[1].tensors[0].values[2].to_le_bytes());
    assert_eq!(file.tensor("base_model.model.m.line.lora_B.weight").unwrap().shape(), [5, 2, 1]);
    let spec = HeadSpec {
        output: "logits".into(),
        pool: Pool::Cls,
        labels: Some(vec!["no".into(), "yes".into()]),
    };
    let options =
        ImportOptions { base: Some(base(1)), head: Some(spec), ..ImportOptions::default() };
    let mut again = import(&out, &targets, &options).unwrap().adapter;
    again
        .targets
        .sort_by_key(|t| adapter.targets.iter().position(|o| o.module_path == t.module_path));
    assert_eq!(again, adapter);
}

#[test]
fn what_a_directory_can_not_hold_is_not_exported() {
    use super::super::testing::{head, pair};
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    let adapter = |path: &str, name: &str| Adapter {
        targets: vec![pair(path, 2, 4.0, 3, 4)],
        heads: vec![untold(head(name))],
        ..Adapter::default()
    };
    // A head that has a layer's name would take the layer's place.
    let error = export(&adapter("m.q", "q"), &targets(), &out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let error = export(&adapter("m.x", "score"), &targets(), &out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    assert!(!out.exists());
}

/// Without what PEFT has no place for.
fn untold(head: Head) -> Head {
    Head { thresholds: vec![], temperature: 1.0, ..head }
}

type Named<'a> = (&'a str, Dtype, Vec<usize>, Vec<u8>);

fn f32s(name: &str, shape: impl Into<Vec<usize>>) -> Named<'_> {
    let shape = shape.into();
    let n: usize = shape.iter().product();
    (name, Dtype::F32, shape, (0..n).flat_map(|i| (i as f32 + 1.0).to_le_bytes()).collect())
}

fn folder(config: &str, tensors: &[Named]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(CONFIG), config).unwrap();
    let views: Vec<(&str, TensorView)> = tensors
        .iter()
        .map(|(name, t, shape, bytes)| (*name, TensorView::new(*t, shape.clone(), bytes).unwrap()))
        .collect();
    std::fs::write(dir.path().join(WEIGHTS), serialize(views, None).unwrap()).unwrap();
    dir
}

const PLAIN: &str = r#"{"peft_type": "LORA", "r": 2, "modules_to_save": ["score"]}"#;

fn targets() -> Vec<Target> {
    vec![linear("m.q", 3, 4), linear("m.k", 3, 4)]
}

fn pair() -> Vec<Named<'static>> {
    vec![
        f32s("base_model.model.m.q.lora_A.weight", [2, 3]),
        f32s("base_model.model.m.q.lora_B.weight", [4, 2]),
    ]
}

fn imported(config: &str, tensors: &[Named]) -> Result<Imported> {
    import(folder(config, tensors).path(), &targets(), &ImportOptions::default())
}

#[test]
fn half_floats_and_names_without_prefix() {
    let halves = |v: &[f32]| v.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
    let bf16s = |v: &[f32]| v.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect();
    let a = [1.0, 2.0, -3.0, 0.5, 0.25, 6.0];
    let b = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
    let tensors = [
        ("m.q.lora_A.weight", Dtype::F16, vec![2, 3], halves(&a)),
        ("m.q.lora_B.weight", Dtype::BF16, vec![4, 2], bf16s(&b)),
    ];
    let got = imported(PLAIN, &tensors).unwrap().adapter;
    assert_eq!(got.targets[0].tensors[0].values, a);
    assert_eq!(got.targets[0].tensors[1].values, b);
    assert_eq!(got.targets[0].alpha, 8.0);
}

#[test]
fn convolutions_become_channels_last() {
    let mut conv = linear("conv", 2 * 4, 5);
    conv.kind = TargetKind::Conv { kernel: [2, 2], one_axis: false };
    let tensors =
        [f32s("conv.lora_A.weight", [2, 2, 2, 2]), f32s("conv.lora_B.weight", [5, 2, 1, 1])];
    let dir = folder(PLAIN, &tensors);
    let got = import(dir.path(), &[conv], &ImportOptions::default()).unwrap().adapter;
    assert_eq!(got.targets[0].tensors[0].values[..8], [1., 5., 2., 6., 3., 7., 4., 8.]);
}

#[test]
fn a_head_takes_what_the_file_does_not_say_from_the_caller() {
    let mut tensors = pair();
    tensors.push(f32s("base_model.model.score.weight", [2, 3]));
    let head = imported(PLAIN, &tensors).unwrap().adapter.heads.remove(0);
    assert_eq!((head.bias, head.pool), (vec![0.0, 0.0], Pool::Mean));
    let dir = folder(PLAIN, &tensors);
    let spec = |labels: &[&str]| ImportOptions {
        head: Some(HeadSpec {
            output: "hidden".into(),
            pool: Pool::Cls,
            labels: Some(labels.iter().map(|l| l.to_string()).collect()),
        }),
        ..ImportOptions::default()
    };
    let mut got = import(dir.path(), &targets(), &spec(&["off", "on"])).unwrap();
    assert!(got.warnings.is_empty());
    let head = got.adapter.heads.remove(0);
    assert_eq!(
        (head.output.as_str(), head.pool, head.labels[1].as_str()),
        ("hidden", Pool::Cls, "on")
    );
    let error = import(dir.path(), &targets(), &spec(&["one"])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
}

/// PEFT's tutorial: BERT, `task_type` SEQ_CLS. Its classifier was trained behind the pooler.
#[test]
fn a_classifier_behind_a_pooler_wants_the_pooler() {
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"],
        "task_type": "SEQ_CLS"}"#;
    let with = |model: &str| {
        let [a, b] = ["A", "B"].map(|ab| format!("base_model.model.{model}m.q.lora_{ab}.weight"));
        let head = f32s("base_model.model.classifier.weight", [2, 3]);
        folder(config, &[f32s(&a, [2, 3]), f32s(&b, [4, 2]), head])
    };
    let tokens = ("last_hidden_state".to_string(), 3);
    let pooled = ("pooler_output".to_string(), 2);
    let told = |model: &str, outputs: &[(String, usize)], head: Option<(&str, Pool)>| {
        let head =
            head.map(|(output, pool)| HeadSpec { output: output.into(), pool, labels: None });
        let options = ImportOptions { outputs: outputs.to_vec(), head, ..ImportOptions::default() };
        import(with(model).path(), &targets(), &options)
    };
    let both = [tokens.clone(), pooled];
    let got = told("bert.", &both, None).unwrap();
    let head = &got.adapter.heads[0];
    assert_eq!((head.output.as_str(), head.pool), ("pooler_output", Pool::None));
    assert!(got.warnings[0].contains("reads 'pooler_output'"), "{:?}", got.warnings);
    for head in [None, Some(("last_hidden_state", Pool::Cls))] {
        let e = told("bert.", &both[..1], head).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Mismatch);
        assert!(e.message().contains("behind the model's pooler"), "{e}");
        assert!(e.hint_text().unwrap().contains("pooler_output"), "{e}");
    }
    // Another model: nobody knows, unless the caller does.
    let e = told("", &both, None).unwrap_err();
    assert!(e.message().contains("does not say which output"), "{e}");
    assert!(e.hint_text().unwrap().contains("last_hidden_state, pooler_output"), "{e}");
    assert!(told("", &[tokens], Some(("last_hidden_state", Pool::Mean))).is_ok());
}

#[test]
fn patterns_and_rslora_reach_the_adapter() {
    let config = r#"{"peft_type": "LORA", "r": 7, "lora_alpha": 3, "use_rslora": true,
        "rank_pattern": {"q": 2}, "alpha_pattern": {"m.q": 5}, "target_modules": ["q"]}"#;
    let got = imported(config, &pair()).unwrap().adapter;
    assert!(got.targets[0].rslora);
    assert_eq!(got.targets[0].scaling(), (5.0 / 2f64.sqrt()) as f32);
}

#[test]
fn each_fault_is_refused_by_name() {
    let with = |extra: Named<'static>| {
        let mut tensors = pair();
        tensors.push(extra);
        imported(PLAIN, &tensors).unwrap_err()
    };
    let nan = ("m.k.lora_A.weight", Dtype::F32, vec![1], f32::NAN.to_le_bytes().to_vec());
    let ints = ("m.k.lora_A.weight", Dtype::I32, vec![1], vec![0; 4]);
    let narrow = r#"{"peft_type": "LORA", "r": 2, "target_modules": ["k"]}"#;
    let cases = [
        (with(f32s("base_model.model.m.e.lora_embedding_A", [2, 9])), "'m.e'", ErrorKind::Mismatch),
        (with(f32s("m.q.lora_magnitude_vector", [4])), "kind 'dora'", ErrorKind::Unsupported),
        (with(f32s("m.q.lora_B.bias", [4])), "biases on lora_B", ErrorKind::Unsupported),
        (with(f32s("m.q.base_layer.bias", [4])), "trained biases", ErrorKind::Unsupported),
        (with(f32s("m.q.hada_w1_a", [4, 1])), "LoHa", ErrorKind::Unsupported),
        (with(f32s("m.q.lora_C.weight", [4])), "'m.q.lora_C.weight'", ErrorKind::Unsupported),
        (with(f32s("m.k.lora_A.weight", [2, 3])), "'m.k': lora_B is missing", ErrorKind::BadInput),
        (with(f32s("m.k.lora_B.weight", [2, 3])), "'m.k': lora_A is missing", ErrorKind::BadInput),
        (with(f32s("m.q.lora_A.weight", [2, 3])), "with and without", ErrorKind::BadInput),
        (with(f32s("score.bias", [2])), "'score': weight is missing", ErrorKind::BadInput),
        (with(f32s("score.weight", [2, 3, 1])), "one linear layer", ErrorKind::Unsupported),
        (with(nan), "not finite", ErrorKind::BadInput),
        (with(ints), "type I32", ErrorKind::Unsupported),
        (imported(narrow, &pair()).unwrap_err(), "does not select", ErrorKind::BadInput),
        (imported(PLAIN, &[]).unwrap_err(), "no tensors", ErrorKind::BadInput),
        (
            imported(r#"{"peft_type": "LORA"}"#, &pair()).unwrap_err(),
            "expected rank 8",
            ErrorKind::BadInput,
        ),
        (
            imported(r#"{"peft_type": "LORA", "r": 2, "use_dora": true}"#, &pair()).unwrap_err(),
            "lora_magnitude_vector is missing",
            ErrorKind::BadInput,
        ),
    ];
    for (error, expected, kind) in &cases {
        assert!(error.message().contains(expected), "'{error}' should contain '{expected}'");
        assert_eq!(error.kind(), *kind, "{error}");
    }
    let mut two = pair();
    two.extend([f32s("a.score.weight", [2, 3]), f32s("b.score.weight", [2, 3])]);
    assert!(imported(PLAIN, &two).unwrap_err().message().contains("two modules"));
    let replaced = r#"{"peft_type": "LORA", "r": 2, "modules_to_save": ["k"]}"#;
    let mut tensors = pair();
    tensors.push(f32s("m.k.weight", [4, 3]));
    let error = imported(replaced, &tensors).unwrap_err();
    assert!(error.message().contains("replace a layer"), "{error}");
}

#[test]
fn missing_and_damaged_files_are_bad_input() {
    let options = ImportOptions::default();
    let dir = folder(PLAIN, &pair());
    let bytes = std::fs::read(dir.path().join(WEIGHTS)).unwrap();
    for len in 0..bytes.len() {
        std::fs::write(dir.path().join(WEIGHTS), &bytes[..len]).unwrap();
        let error = import(dir.path(), &targets(), &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput, "cut at {len}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        // No hash here: some flips only change a value. None may panic.
        if let Ok(got) =
            assemble(&flipped, Config::parse(PLAIN).unwrap(), &targets(), &options, "x".into())
        {
            got.adapter.check().unwrap();
        }
    }
    std::fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
    assert_eq!(import(dir.path(), &targets(), &options).unwrap_err().kind(), ErrorKind::BadInput);
    std::fs::write(dir.path().join(PICKLE), b"\x80\x02").unwrap();
    let error = import(dir.path(), &targets(), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("pickle"), "{error}");

    let outer = tempfile::tempdir().unwrap();
    let error = import(outer.path(), &targets(), &options).unwrap_err();
    assert!(error.message().contains("no 'adapter_config.json'"), "{error}");
    std::fs::create_dir(outer.path().join("other")).unwrap();
    std::fs::write(outer.path().join("other").join(CONFIG), PLAIN).unwrap();
    let error = import(outer.path(), &targets(), &options).unwrap_err();
    assert!(error.hint_text().unwrap().contains("other"), "{error}");
    let error = import(&outer.path().join("none"), &targets(), &options).unwrap_err();
    assert!(error.message().contains("is not a folder"), "{error}");
}
