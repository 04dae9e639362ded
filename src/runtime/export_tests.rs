//! Folders as optimum and transformers.js write them.

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn of(files: &[(&str, &str)]) -> Folder {
        let dir = tempfile::tempdir().unwrap();
        for (name, contents) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, contents).unwrap();
        }
        Folder(dir)
    }

    fn read(&self) -> Result<ExportFolder> {
        ExportFolder::read(self.0.path())
    }
}

/// Name, file, fixed inputs.
type Found = (String, String, Vec<(String, String)>);

fn graphs(files: &[&str]) -> Vec<Found> {
    let files: Vec<(&str, &str)> = files.iter().map(|f| (*f, "")).collect();
    let export = Folder::of(&files).read().unwrap();
    let file = |p: &Path| p.file_name().unwrap().to_str().unwrap().to_string();
    export.graphs.iter().map(|g| (g.name.clone(), file(&g.path), g.import.consts.clone())).collect()
}

#[test]
fn graphs_are_known_by_their_files() {
    let plain = |files: &[&str]| -> Vec<String> {
        let found = graphs(files);
        assert!(found.iter().all(|(_, _, consts)| consts.is_empty()));
        found.into_iter().map(|(name, file, _)| format!("{name}={file}")).collect()
    };
    assert_eq!(plain(&["model.onnx", "onnx/model_quantized.onnx"]), ["main=model.onnx"]);
    assert_eq!(plain(&["onnx/model.onnx", "onnx/model_fp16.onnx"]), ["main=model.onnx"]);
    assert_eq!(plain(&["network.onnx"]), ["main=network.onnx"]);
    assert_eq!(
        plain(&["lm_with_past.onnx", "lm.onnx"]),
        ["main=lm.onnx", "step=lm_with_past.onnx"]
    );
    let whisper = ["encoder.onnx", "decoder.onnx", "decoder_with_past.onnx"];
    let expected = ["encoder=encoder.onnx", "decoder=decoder.onnx", "step=decoder_with_past.onnx"];
    assert_eq!(plain(&whisper), expected);
    let optimum =
        ["onnx/encoder_model.onnx", "onnx/decoder_model.onnx", "onnx/decoder_model_merged.onnx"];
    assert_eq!(plain(&optimum), ["encoder=encoder_model.onnx", "decoder=decoder_model.onnx"]);
    let merged = graphs(&["encoder_model.onnx", "decoder_model_merged.onnx"]);
    let branch = |on: &str| vec![("use_cache_branch".to_string(), on.to_string())];
    assert_eq!(merged[1], ("decoder".into(), "decoder_model_merged.onnx".into(), branch("false")));
    assert_eq!(merged[2], ("step".into(), "decoder_model_merged.onnx".into(), branch("true")));
}

#[test]
fn folders_that_leave_a_choice_are_refused() {
    let e = Folder::of(&[("readme.md", "")]).read().unwrap_err();
    assert!(e.message().contains("holds no ONNX file"), "{e}");
    let e = Folder::of(&[("a.onnx", ""), ("b.onnx", "")]).read().unwrap_err();
    assert!(e.message().contains("holds a.onnx, b.onnx"), "{e}");
    let broken = Folder::of(&[("model.onnx", ""), ("config.json", "{\"id2label\": ")]);
    assert_eq!(broken.read().unwrap_err().kind(), crate::error::ErrorKind::BadInput);
}

#[test]
fn labels_come_in_the_order_of_their_numbers() {
    let export = |config: &str| Folder::of(&[("model.onnx", ""), ("config.json", config)]).read();
    let ten = r#"{"id2label": {"10": "k", "0": "a", "1": "b", "2": "c", "3": "d", "4": "e", "5": "f",
        "6": "g", "7": "h", "8": "i", "9": "j"}, "problem_type": "multi_label_classification"}"#;
    let found = export(ten).unwrap();
    assert_eq!(found.labels.concat(), "abcdefghijk");
    assert_eq!(found.problem, Some(Problem::Tags));
    let one = export(r#"{"id2label": {"0": "score"}, "architectures": ["XForClassification"]}"#);
    assert_eq!(one.unwrap().problem, Some(Problem::Numbers));
    let none = r#"{"id2label": {"0": "a", "1": "b"}, "architectures": ["BertModel"]}"#;
    assert!(export(none).unwrap().labels.is_empty());
    for gap in [r#"{"id2label": {"0": "a", "2": "c"}}"#, r#"{"id2label": {"0": "a", "x": "c"}}"#] {
        assert!(export(gap).unwrap_err().message().contains("id2label has"));
    }
}

#[test]
fn texts_and_lengths_are_kept() {
    let export = Folder::of(&[
        ("model.onnx", ""),
        ("tokenizer.json", "{}"),
        ("generation_config.json", r#"{"eos_token_id": 2}"#),
        (
            "tokenizer_config.json",
            r#"{"model_max_length": 512, "chat_template": "{{ x }}", "added_tokens_decoder": {}}"#,
        ),
    ])
    .read()
    .unwrap();
    assert_eq!(export.max_tokens, Some(512));
    assert!(export.tokenizer.is_some());
    let text = |name: &str| export.texts.iter().find(|(n, _)| n == name).unwrap().1.as_str();
    assert_eq!(text("chat_template.jinja"), "{{ x }}");
    assert_eq!(text("generation_config.json"), r#"{"eos_token_id":2}"#);
    assert_eq!(text("tokenizer_config.json"), r#"{"model_max_length":512}"#);
    let endless = r#"{"model_max_length": 1000000000000000019884624838656}"#;
    let export = Folder::of(&[("model.onnx", ""), ("tokenizer_config.json", endless)]).read();
    assert_eq!(export.unwrap().max_tokens, None);
}

#[test]
fn pictures_as_their_processors_make_them() {
    let spec = |config: &str| {
        let files = [("model.onnx", ""), ("preprocessor_config.json", config)];
        Folder::of(&files).read().unwrap().image
    };
    let vit = spec(
        r#"{"do_normalize": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5], "resample": 2, "size": 224}"#,
    )
    .unwrap();
    assert_eq!((vit.size, vit.fit, vit.filter), ([224, 224], Fit::Stretch, Filter::Bilinear));
    assert_eq!((vit.mean, vit.std, vit.scale), ([0.5; 3], [0.5; 3], 1.0 / 255.0));
    let clip = spec(
        r#"{"crop_size": {"height": 224, "width": 224}, "do_center_crop": true, "resample": 3,
        "size": {"shortest_edge": 256}, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1],
        "rescale_factor": 0.00392156862745098}"#,
    )
    .unwrap();
    assert_eq!((clip.size, clip.fit), ([224, 224], Fit::Shortest(256)));
    assert_eq!((clip.filter, clip.scale), (Filter::Bicubic, 1.0 / 255.0));
    let convnext = r#"{"image_processor_type": "ConvNextImageProcessor", "size": 224}"#;
    assert_eq!(spec(convnext).unwrap().fit, Fit::Shortest(256));
    let mobilevit = spec(
        r#"{"do_center_crop": true, "crop_size": 256, "size": {"shortest_edge": 288},
        "do_flip_channel_order": true, "do_normalize": false, "image_processor_type": "MobileViT"}"#,
    )
    .unwrap();
    assert!(mobilevit.bgr && mobilevit.mean == [0.0; 3] && mobilevit.std == [1.0; 3]);
    assert_eq!((mobilevit.size, mobilevit.fit), ([256, 256], Fit::Shortest(288)));
    for (way, known) in
        [("2", true), ("null", true), ("5", false), ("\"lanczos\"", false), ("9", false)]
    {
        let config = format!(r#"{{"size": 224, "do_resize": true, "resample": {way}}}"#);
        let files = [("model.onnx", ""), ("preprocessor_config.json", &config[..])];
        let found = Folder::of(&files).read().unwrap().found;
        assert_eq!(!found.iter().any(|f| f.contains("is not known here")), known, "{way}");
    }
    // Whisper's is no picture, DETR's has no one size.
    assert_eq!(spec(r#"{"feature_size": 80, "sampling_rate": 16000}"#), None);
    let detr = r#"{"do_resize": true, "size": {"shortest_edge": 800, "longest_edge": 1333}}"#;
    assert_eq!(spec(detr), None);
}
