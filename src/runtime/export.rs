//! An export folder as optimum writes it: which graphs it holds, and what its configuration files say
//! about inputs, labels and pictures.

use super::alphabet::Alphabet;
use super::packing::GraphSource;
use super::sound;
use crate::error::{Error, Result};
use crate::fs::{read_limited, read_text};
use crate::import::ImportOptions;
use crate::limits;
use crate::pack::{AudioSpec, Filter, Fit, ImageSpec, Problem};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// What an export folder holds, and in words what of it is used.
#[derive(Clone, Debug, Default)]
pub struct ExportFolder {
    /// The graphs, the main one first.
    pub graphs: Vec<GraphSource>,
    /// tokenizer.json.
    pub tokenizer: Option<PathBuf>,
    /// Names of the classes.
    pub labels: Vec<String>,
    /// What the scores say.
    pub problem: Option<Problem>,
    /// The symbols of an output that spells texts.
    pub alphabet: Option<Alphabet>,
    /// How pictures are prepared.
    pub image: Option<ImageSpec>,
    /// How sound is prepared.
    pub audio: Option<AudioSpec>,
    /// Longest token sequence.
    pub max_tokens: Option<u32>,
    /// Files to be kept as they are: name and contents.
    pub texts: Vec<(String, String)>,
    /// One line for each thing found: what it is and where it is from.
    pub found: Vec<String>,
}

/// Longest token sequence that is believed: tokenizers without one state 10^30.
const MOST_TOKENS: u64 = 1 << 20;

type Json = Map<String, Value>;

/// Scalar inputs of a graph that are fixed: names and values.
type Consts = Vec<(String, String)>;

impl ExportFolder {
    /// Reads what stands in `folder` or its subfolder `onnx`; graphs themselves are not read.
    ///
    /// # Errors
    /// No ONNX file (bad input), or several that don't belong together (usage, which names them); a
    /// configuration file that is damaged or contradicts itself (bad input).
    pub fn read(folder: &Path) -> Result<ExportFolder> {
        Self::read_all(folder).map_err(|e| e.at(format_args!("'{}'", folder.display())))
    }

    fn read_all(folder: &Path) -> Result<ExportFolder> {
        let mut export = ExportFolder::default();
        export.find_graphs(folder)?;
        let file = |name: &str| Some(folder.join(name)).filter(|p| p.is_file());
        if let Some(path) = file("tokenizer.json") {
            export.say("sentences", "tokenizer.json");
            export.tokenizer = Some(path);
        }
        let json = |name: &str| file(name).map(|path| read_json(&path)).transpose();
        if let Some(config) = json("config.json")? {
            export.labels_of(&config).map_err(|e| e.at("config.json"))?;
            export.alphabet_of(&config, file("vocab.json"))?;
            export.keep("config.json", &config);
        }
        if let Some(config) = json("tokenizer_config.json")? {
            export.tokenizer_of(config);
        }
        if let Some(path) = file("chat_template.jinja") {
            let bytes = read_limited(&path, limits::CONFIG)?;
            let text = String::from_utf8(bytes)
                .map_err(|_| Error::bad_input(format!("{}: not UTF-8", path.display())))?;
            export.keep_text("chat_template.jinja", text);
        }
        if let Some(config) = json("generation_config.json")? {
            export.keep("generation_config.json", &config);
        }
        if let Some(config) = json("preprocessor_config.json")? {
            export.image_of(&config).map_err(|e| e.at("preprocessor_config.json"))?;
            export.audio_of(&config).map_err(|e| e.at("preprocessor_config.json"))?;
            export.keep("preprocessor_config.json", &config);
        }
        Ok(export)
    }

    fn say(&mut self, what: &str, from: &str) {
        self.found.push(format!("{what}: {from}"));
    }

    fn keep(&mut self, name: &str, config: &Json) {
        self.keep_text(name, Value::Object(config.clone()).to_string());
    }

    fn keep_text(&mut self, name: &str, contents: String) {
        self.texts.retain(|(n, _)| n != name);
        self.say("kept", name);
        self.texts.push((name.to_string(), contents));
    }

    fn find_graphs(&mut self, folder: &Path) -> Result<()> {
        let mut files: Vec<(String, PathBuf)> = vec![];
        for place in [folder.to_path_buf(), folder.join("onnx")] {
            let entries = match std::fs::read_dir(&place) {
                Ok(entries) => entries,
                Err(_) if place != folder => continue,
                Err(e) => return Err(Error::io(&place, e)),
            };
            for entry in entries {
                let path = entry.map_err(|e| Error::io(&place, e))?.path();
                let stem = path.file_stem().and_then(|s| s.to_str()).map(str::to_string);
                let onnx = path.extension().is_some_and(|e| e == "onnx") && path.is_file();
                if let (true, Some(stem)) = (onnx, stem)
                    && !files.iter().any(|(s, _)| *s == stem)
                {
                    files.push((stem, path));
                }
            }
        }
        files.sort();
        let named = |names: &[&str]| {
            names.iter().find_map(|n| files.iter().find(|(stem, _)| stem == n)).cloned()
        };
        let encoder = named(&["encoder_model", "encoder"]);
        let decoder = named(&["decoder_model", "decoder"]);
        let step = named(&["decoder_with_past_model", "decoder_with_past"]);
        let merged = named(&["decoder_model_merged"]);
        let mut graphs: Vec<(&str, PathBuf, Consts)> = vec![];
        let first = if encoder.is_some() { "decoder" } else { "main" };
        if let Some((_, path)) = encoder {
            graphs.push(("encoder", path, vec![]));
        }
        match (decoder, step, merged) {
            (Some((_, path)), step, _) => {
                graphs.push((first, path, vec![]));
                graphs.extend(step.map(|(_, path)| ("step", path, vec![])));
            }
            (None, _, Some((_, path))) => {
                let branch = |on: bool| vec![("use_cache_branch".to_string(), on.to_string())];
                graphs.push((first, path.clone(), branch(false)));
                graphs.push(("step", path, branch(true)));
            }
            _ => {}
        }
        if graphs.is_empty() {
            let main = named(&["model"]).or_else(|| match files.as_slice() {
                [only] => Some(only.clone()),
                [a, b] if b.0 == format!("{}_with_past", a.0) => Some(a.clone()),
                _ => None,
            });
            if let Some((stem, path)) = main {
                graphs.push(("main", path, vec![]));
                let past = named(&[&format!("{stem}_with_past")]);
                graphs.extend(past.map(|(_, path)| ("step", path, vec![])));
            }
        }
        let name =
            |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if graphs.is_empty() {
            let found: Vec<String> = files.iter().map(|(_, path)| name(path)).collect();
            return Err(match found.as_slice() {
                [] => Error::bad_input("the folder holds no ONNX file"),
                _ => Error::usage(format!(
                    "the folder holds {}: which is meant can't be told",
                    found.join(", ")
                ))
                .hint("give the file itself, and further graphs with --graph NAME=FILE"),
            });
        }
        for (graph, path, consts) in graphs {
            self.say(&format!("graph '{graph}'"), &name(&path));
            let import = ImportOptions { consts, ..ImportOptions::default() };
            self.graphs.push(GraphSource { name: graph.into(), path, import });
        }
        let used: Vec<&PathBuf> = self.graphs.iter().map(|g| &g.path).collect();
        let unused: Vec<String> =
            files.iter().filter(|(_, p)| !used.contains(&p)).map(|(_, p)| name(p)).collect();
        if !unused.is_empty() {
            self.say("not used", &unused.join(", "));
        }
        Ok(())
    }

    /// Class names in the order of their numbers, and what the scores say.
    fn labels_of(&mut self, config: &Json) -> Result<()> {
        let classifies = config.get("architectures").and_then(Value::as_array).is_none_or(|a| {
            a.iter().filter_map(Value::as_str).any(|n| n.ends_with("Classification"))
        });
        let Some(names) = config.get("id2label").and_then(Value::as_object) else { return Ok(()) };
        if !classifies || names.is_empty() {
            return Ok(());
        }
        let mut labels: Vec<Option<String>> = vec![None; names.len()];
        for (number, name) in names {
            let place = number.parse::<usize>().ok().and_then(|n| labels.get_mut(n));
            match (place, name.as_str()) {
                (Some(place @ None), Some(name)) => *place = Some(name.to_string()),
                _ => {
                    return Err(Error::bad_input(format!(
                        "id2label has '{number}' among {} classes",
                        names.len()
                    )));
                }
            }
        }
        self.labels = labels.into_iter().flatten().collect();
        let tokens = config.get("architectures").and_then(Value::as_array).is_some_and(|names| {
            names.iter().filter_map(Value::as_str).any(|n| n.ends_with("ForTokenClassification"))
        });
        self.problem = match config.get("problem_type").and_then(Value::as_str) {
            _ if tokens => Some(Problem::Tokens),
            Some("single_label_classification") => Some(Problem::Classes),
            Some("multi_label_classification") => Some(Problem::Tags),
            Some("regression") => Some(Problem::Numbers),
            _ if self.labels.len() == 1 => Some(Problem::Numbers),
            _ => None,
        };
        let what = match self.problem {
            Some(Problem::Tags) => "tags",
            Some(Problem::Numbers) => "numbers",
            Some(Problem::Tokens) => "classes of tokens",
            _ => "classes",
        };
        self.say(&format!("{} {what}", self.labels.len()), "config.json");
        Ok(())
    }

    /// That of a model of transformers that is made for CTC: its blank is what fills texts up.
    fn alphabet_of(&mut self, config: &Json, vocabulary: Option<PathBuf>) -> Result<()> {
        let spells = config.get("architectures").and_then(Value::as_array).is_some_and(|names| {
            names.iter().filter_map(Value::as_str).any(|name| name.ends_with("ForCTC"))
        });
        let Some(path) = vocabulary.filter(|_| spells) else { return Ok(()) };
        let text = read_text(&path, limits::LABELS)?;
        let mut alphabet = Alphabet::parse(&text).map_err(|e| e.at("vocab.json"))?;
        let pad = config.get("pad_token_id").and_then(Value::as_u64);
        alphabet.blank = pad.and_then(|at| alphabet.symbols.get(at as usize)).cloned();
        self.say(&format!("{} symbols", alphabet.symbols.len()), "vocab.json");
        self.alphabet = Some(alphabet);
        Ok(())
    }

    fn tokenizer_of(&mut self, mut config: Json) {
        let longest = config.get("model_max_length").and_then(Value::as_f64).unwrap_or(0.0);
        if longest >= 1.0 && longest <= MOST_TOKENS as f64 {
            self.max_tokens = Some(longest as u32);
            self.say(&format!("at most {} tokens", longest as u32), "tokenizer_config.json");
        }
        if let Some(Value::String(template)) = config.remove("chat_template") {
            self.keep_text("chat_template.jinja", template);
        }
        // Long, and in tokenizer.json too.
        config.remove("added_tokens_decoder");
        self.keep("tokenizer_config.json", &config);
    }

    fn image_of(&mut self, config: &Json) -> Result<()> {
        let pictures = ["image_mean", "do_resize", "image_processor_type", "do_center_crop"];
        if !pictures.iter().any(|key| config.contains_key(*key)) {
            return Ok(());
        }
        match image(config)? {
            Some(spec) => {
                let [h, w] = spec.size;
                self.say(&format!("pictures of {h} x {w}"), "preprocessor_config.json");
                self.image = Some(spec);
            }
            None => self.say(
                "not used",
                "picture sizes of preprocessor_config.json (give --image SIZE where you know it)",
            ),
        }
        if let Some(way) = config.get("resample").filter(|way| !way.is_null())
            && !matches!(way.as_u64(), Some(0..=3))
        {
            self.say(&format!("resampling {way} is not known here"), "bilinear is used");
        }
        Ok(())
    }
}

impl ExportFolder {
    fn audio_of(&mut self, config: &Json) -> Result<()> {
        let kind = config.get("feature_extractor_type").and_then(Value::as_str).unwrap_or("");
        if !config.contains_key("sampling_rate") {
            return Ok(());
        }
        match sound::audio(kind, config)? {
            Some(spec) => {
                self.say(&format!("sound of {} Hz", spec.rate), "preprocessor_config.json");
                self.audio = Some(spec);
            }
            None => self.say(
                "not used",
                "what preprocessor_config.json says of sound (give --audio where you know it)",
            ),
        }
        Ok(())
    }
}

fn read_json(path: &Path) -> Result<Json> {
    let bytes = read_limited(path, limits::CONFIG)?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::bad_input(format!("{}: no JSON object", path.display()))),
        Err(e) => Err(Error::bad_input(format!("{}: {e}", path.display()))),
    }
}

/// As transformers' image processors read it. `None` where pictures have no one size.
fn image(config: &Json) -> Result<Option<ImageSpec>> {
    let flag = |key: &str, default| config.get(key).and_then(Value::as_bool).unwrap_or(default);
    let kind = ["image_processor_type", "feature_extractor_type"]
        .iter()
        .find_map(|key| config.get(*key).and_then(Value::as_str))
        .unwrap_or("");
    let is = |names: &[&str]| names.iter().any(|n| kind.starts_with(n));
    let by_shorter =
        is(&["CLIP", "ConvNext", "Levit", "MobileNet", "MobileViT", "Poolformer", "Bit"]);
    let fit = match config.get("size") {
        Some(size) => fit(size, by_shorter),
        None => None,
    };
    let crop = match config.get("crop_size").and_then(fit_exact) {
        Some(crop) if flag("do_center_crop", true) => Some(crop),
        _ => None,
    };
    let (fit, size) = match (fit, crop) {
        (Some(Fit::Shortest(side)), None) if is(&["ConvNext"]) => {
            // Its own way: a margin is cut off below 384, else the picture is stretched.
            let part = config.get("crop_pct").and_then(Value::as_f64).unwrap_or(0.875);
            match side {
                384.. => (Fit::Stretch, [side; 2]),
                _ => (Fit::Shortest((f64::from(side) / part) as u32), [side; 2]),
            }
        }
        (Some(Fit::Shortest(side)), None) if flag("do_center_crop", false) => {
            (Fit::Shortest(side), [side; 2])
        }
        (Some(Fit::Shortest(_)), None) | (None, None) => return Ok(None),
        (Some(Fit::Exact(size)), None) => (Fit::Stretch, size),
        (Some(Fit::Exact(size)), Some(crop)) if size == crop => (Fit::Stretch, size),
        (Some(fit), Some(crop)) => (fit, crop),
        (Some(Fit::Stretch | Fit::Line), None) => return Ok(None),
        (None, Some(crop)) => (Fit::Stretch, crop),
    };
    let default = ImageSpec::default();
    let triple = |key: &str, default: [f32; 3]| -> Result<[f32; 3]> {
        match config.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Number(n)) => Ok([n.as_f64().unwrap_or(0.0) as f32; 3]),
            Some(Value::Array(values)) => {
                let values: Vec<f32> =
                    values.iter().filter_map(Value::as_f64).map(|v| v as f32).collect();
                <[f32; 3]>::try_from(values)
                    .map_err(|_| Error::bad_input(format!("{key} has not three numbers")))
            }
            Some(_) => Err(Error::bad_input(format!("{key} is no list of numbers"))),
        }
    };
    let (mut mean, std) = match flag("do_normalize", true) {
        true => (triple("image_mean", default.mean)?, triple("image_std", default.std)?),
        false => ([0.0; 3], [1.0; 3]),
    };
    if flag("rescale_offset", false) {
        mean = mean.map(|m| m + 1.0);
    }
    let factor = config.get("rescale_factor").and_then(Value::as_f64);
    let scale = match flag("do_rescale", true) {
        true => factor.map_or(default.scale, |f| f as f32),
        false => 1.0,
    };
    let filter = match config.get("resample").and_then(Value::as_u64) {
        Some(0) => Filter::Nearest,
        Some(1) => Filter::Lanczos,
        Some(3) => Filter::Bicubic,
        _ => Filter::Bilinear,
    };
    let bgr = flag("do_flip_channel_order", false);
    Ok(Some(ImageSpec { size, fit, filter, scale, mean, std, channels_first: true, bgr }))
}

/// `224`, `{"height": 224, "width": 224}` or `{"shortest_edge": 224}`.
fn fit(size: &Value, by_shorter: bool) -> Option<Fit> {
    let side = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    if let Some(side) = size.get("shortest_edge").and_then(side) {
        return size.get("longest_edge").is_none_or(Value::is_null).then_some(Fit::Shortest(side));
    }
    match side(size) {
        Some(side) if by_shorter => Some(Fit::Shortest(side)),
        _ => fit_exact(size).map(Fit::Exact),
    }
}

fn fit_exact(size: &Value) -> Option<[u32; 2]> {
    let side = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match size {
        Value::Number(_) => side(size).map(|n| [n; 2]),
        Value::Array(sides) => match sides.as_slice() {
            [h, w] => Some([side(h)?, side(w)?]),
            _ => None,
        },
        Value::Object(object) => {
            let get = |key: &str| object.get(key).and_then(side);
            match (get("height"), get("width"), get("shortest_edge")) {
                (Some(h), Some(w), _) => Some([h, w]),
                (_, _, Some(n)) => Some([n; 2]),
                _ => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
