//! `adapter_config.json`: which modules carry a pair, with which rank and alpha; every option that
//! this crate can't honour is refused by its key.

#![warn(clippy::arithmetic_side_effects)]

use super::super::kind::{Kind, PeftForm};
use super::super::names::shown;
use super::json::Json;
use crate::error::{Error, Result};
use regex::{Regex, RegexBuilder};

/// Options that don't bear on what the tensors mean, whatever the kind.
const WITHOUT_EFFECT: &[&str] =
    &["auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"];

/// Options that change the computation, or that are unknown to leave it alone, when set.
const REFUSED: &[(&str, &str)] = &[
    ("lora_bias", "biases on lora_B are not supported"),
    ("use_qalora", "QALoRA is not supported"),
    ("use_bdlora", "block-diagonal LoRA is not supported"),
    ("trainable_token_indices", "trained token embeddings are not supported"),
    ("target_parameters", "adapters on bare parameters are not supported"),
    ("layer_replication", "replicated layers change the base"),
    ("alora_invocation_tokens", "activated LoRA is not supported"),
    ("megatron_config", "tensors split by Megatron are not supported"),
    ("velora_config", "VeLoRA is not supported"),
    ("monteclora_config", "MonteCLoRA is not supported"),
    ("arrow_config", "Arrow routing is not supported"),
    ("kasa_config", "KaSA is not supported"),
    ("ensure_weight_tying", "tied modules are not supported"),
];

/// Longest pattern that is compiled, in bytes.
const MAX_PATTERN: usize = 64 << 10;

/// Which modules, as `target_modules` and `exclude_modules` say it.
#[derive(Debug)]
enum Modules {
    Any,
    Names(Vec<String>),
    Pattern(Regex),
}

impl Modules {
    fn matches(&self, path: &str) -> bool {
        match self {
            Modules::Any => true,
            Modules::Names(names) => names.iter().any(|n| path == n || is_suffix(path, n)),
            Modules::Pattern(regex) => regex.is_match(path),
        }
    }
}

/// Whether `path` ends with `.suffix`.
pub(super) fn is_suffix(path: &str, suffix: &str) -> bool {
    path.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'))
}

/// What of a configuration bears on its tensors.
#[derive(Debug)]
pub(super) struct Config {
    pub kind: Kind,
    rank: u32,
    alpha: f32,
    pub rslora: bool,
    /// `None` where a pattern can't be evaluated here: then the tensors alone say what is adapted.
    targets: Option<Modules>,
    exclude: Option<Modules>,
    layers: Option<Vec<u64>>,
    layers_patterns: Vec<Regex>,
    ranks: Vec<(Regex, u32)>,
    alphas: Vec<(Regex, f32)>,
    /// IA3's modules whose inputs are scaled.
    feedforward: Option<Modules>,
    /// Module names (or last parts of them) that are saved in full.
    pub saved: Vec<String>,
    /// Whether the task is `SEQ_CLS`.
    pub is_sequence_classifier: bool,
    pub warnings: Vec<String>,
}

impl Config {
    /// Errors: bad input (no JSON, a key of another type); unsupported (another `peft_type`, an
    /// option that can't be honoured), naming the key.
    pub(super) fn parse(text: &str) -> Result<Config> {
        let Json::Object(entries) = Json::parse(text)? else {
            return Err(Error::bad_input("not a JSON object"));
        };
        let find = |key: &str| entries.iter().find(|(k, _)| k == key).map(|(_, v)| v);
        let mut config = Config {
            kind: kind(&find)?,
            rank: 8,
            alpha: 8.0,
            rslora: false,
            targets: Some(Modules::Any),
            exclude: None,
            layers: None,
            layers_patterns: Vec::new(),
            ranks: Vec::new(),
            alphas: Vec::new(),
            feedforward: None,
            saved: Vec::new(),
            is_sequence_classifier: false,
            warnings: Vec::new(),
        };
        if let Some(Json::Text(task)) = find("task_type")
            && matches!(task.as_str(), "SEQ_CLS" | "TOKEN_CLS")
        {
            // PEFT saves these for such tasks whether the file lists them or not.
            config.saved.extend(["classifier".to_string(), "score".to_string()]);
            config.is_sequence_classifier = task == "SEQ_CLS";
        }
        for (key, value) in &entries {
            config.entry(key, value)?;
        }
        if let Some(Modules::Pattern(_)) = config.targets {
            // PEFT refuses the combination; the pattern alone decides.
            config.layers = None;
        }
        Ok(config)
    }

    /// The form of its kind.
    pub(super) fn form(&self) -> Option<&'static dyn PeftForm> {
        self.kind.rules().peft()
    }

    fn entry(&mut self, key: &str, value: &Json) -> Result<()> {
        let form = self.form();
        match key {
            "peft_type" | "task_type" => {}
            // They have chosen the kind.
            key if forms().any(|f| f.selected_by().1 == Some(key)) => {}
            key if form.is_some_and(|f| f.without_effect().contains(&key)) => {}
            "r" => self.rank = rank(key, value)?,
            key if form.is_some_and(|f| f.alpha_key() == key) => self.alpha = alpha(key, value)?,
            "feedforward_modules" if value.truthy() => {
                self.feedforward = self.modules(key, value)?;
                if self.feedforward.is_none() {
                    return Err(refused(key, value, "the pattern can't be evaluated here"));
                }
            }
            "feedforward_modules" => {}
            "use_rslora" => self.rslora = boolean(key, value)?,
            "target_modules" => self.targets = self.modules(key, value)?,
            "exclude_modules" if value.truthy() => {
                self.exclude = self.modules(key, value)?;
                // Unknown exclusions: what is selected can't be told.
                if self.exclude.is_none() {
                    self.targets = None;
                }
            }
            "exclude_modules" => {}
            "layers_to_transform" => self.layers = layers(key, value)?,
            "layers_pattern" if value.truthy() => {
                for name in names(key, value)? {
                    let pattern = format!(r"\A.*?\.(?:{name})\.(\d+)\.");
                    match compile(&pattern) {
                        Some(regex) => self.layers_patterns.push(regex),
                        None => return Err(bad_pattern(key, &name)),
                    }
                }
            }
            "layers_pattern" => {}
            "rank_pattern" => self.ranks = patterns(key, value, rank)?,
            "alpha_pattern" => self.alphas = patterns(key, value, alpha)?,
            "modules_to_save" if value.truthy() => self.saved.extend(names(key, value)?),
            "modules_to_save" => {}
            "bias" => match value {
                Json::Null => {}
                Json::Text(t) if t == "none" => {}
                other => return Err(refused(key, other, "trained biases are not supported")),
            },
            "init_lora_weights" => self.init(key, value)?,
            _ => {
                if let Some((_, reason)) = REFUSED.iter().find(|(k, _)| *k == key) {
                    if value.truthy()
                        || matches!((key, value), ("alora_invocation_tokens", Json::List(_)))
                    {
                        return Err(refused(key, value, reason));
                    }
                } else if !WITHOUT_EFFECT.contains(&key) {
                    self.warnings.push(format!("key '{}' is unknown and ignored", shown(key)));
                }
            }
        }
        Ok(())
    }

    /// Initialisations that leave the base as it is are of no interest once trained.
    fn init(&self, key: &str, value: &Json) -> Result<()> {
        match value {
            Json::Null | Json::Bool(_) => Ok(()),
            Json::Text(t) if matches!(t.as_str(), "gaussian" | "eva" | "orthogonal") => Ok(()),
            Json::Text(t)
                if ["pissa", "olora", "corda", "lora_ga", "loftq"].iter().any(|p| t.starts_with(p)) =>
            {
                Err(refused(key, value, "it was trained on a changed base")
                    .hint("convert it in PEFT: save_pretrained with path_initial_model_for_weight_conversion"))
            }
            _ => Err(refused(key, value, "it is not known to leave the base as it is")),
        }
    }

    fn modules(&mut self, key: &str, value: &Json) -> Result<Option<Modules>> {
        match value {
            Json::Null => Ok(Some(Modules::Any)),
            Json::Text(t) if t.eq_ignore_ascii_case("all-linear") && key == "target_modules" => {
                Ok(Some(Modules::Any))
            }
            Json::Text(pattern) => {
                let regex = compile(&format!(r"\A(?:{pattern})\z"));
                if regex.is_none() {
                    self.warnings.push(format!(
                        "the pattern of '{key}' can't be evaluated here: the tensors alone say which modules are adapted"
                    ));
                }
                Ok(regex.map(Modules::Pattern))
            }
            _ => Ok(Some(Modules::Names(names(key, value)?))),
        }
    }

    /// Whether PEFT would put a pair on module `path`; `None` where that can't be told here.
    pub(super) fn selects(&self, path: &str) -> Option<bool> {
        let targets = self.targets.as_ref()?;
        let saved = |s: &String| path == s || is_suffix(path, s);
        if self.exclude.as_ref().is_some_and(|e| e.matches(path)) || self.saved.iter().any(saved) {
            return Some(false);
        }
        // Names listed in full are not filtered by layer.
        if matches!(targets, Modules::Names(n) if n.iter().any(|n| n == path)) {
            return Some(true);
        }
        Some(targets.matches(path) && self.in_layers(path))
    }

    /// Whether `target_modules` is a list or a pattern, so that what it selects is meant by name.
    pub(super) fn names_modules(&self) -> bool {
        !matches!(self.targets, None | Some(Modules::Any))
    }

    fn in_layers(&self, path: &str) -> bool {
        let Some(layers) = &self.layers else { return true };
        let number = if self.layers_patterns.is_empty() {
            first_numbered(path)
        } else {
            self.layers_patterns
                .iter()
                .find_map(|p| p.captures(path))
                .and_then(|c| c.get(1)?.as_str().parse().ok())
        };
        number.is_some_and(|n| layers.contains(&n))
    }

    /// Whether IA3 scales the module's inputs.
    pub(super) fn is_feedforward(&self, path: &str) -> bool {
        self.feedforward.as_ref().is_some_and(|modules| modules.matches(path))
    }

    /// Rank and alpha of module `path`: of the first pattern that matches, else the file's own.
    pub(super) fn rank_alpha(&self, path: &str) -> (u32, f32) {
        let rank = self.ranks.iter().find(|(p, _)| p.is_match(path)).map_or(self.rank, |r| r.1);
        let alpha = self.alphas.iter().find(|(p, _)| p.is_match(path)).map_or(self.alpha, |a| a.1);
        (rank, alpha)
    }
}

/// The forms of all kinds that PEFT has.
fn forms() -> impl Iterator<Item = &'static dyn PeftForm> {
    Kind::all().filter_map(|kind| kind.rules().peft())
}

/// The kind that a configuration is of.
fn kind<'a>(find: &dyn Fn(&str) -> Option<&'a Json>) -> Result<Kind> {
    let Some(stated) = find("peft_type") else {
        return Err(Error::bad_input("key 'peft_type' is missing"));
    };
    let of = |kind: &Kind| Some((kind.rules().peft()?.selected_by(), *kind));
    let known: Vec<_> = Kind::all().filter_map(|kind| of(&kind)).collect();
    let is_set = |key: &str| find(key).is_some_and(Json::truthy);
    let fits = |((method, key), _): &&((&str, Option<&str>), Kind)| {
        matches!(stated, Json::Text(t) if t == method) && key.is_none_or(is_set)
    };
    // A kind with a key of its own goes before the one without.
    let found = known.iter().filter(fits).max_by_key(|((_, key), _)| key.is_some());
    found.map(|(_, kind)| *kind).ok_or_else(|| {
        let mut methods: Vec<String> =
            known.iter().map(|((method, _), _)| format!("'{method}'")).collect();
        methods.dedup();
        Error::unsupported(format!(
            "peft_type is {}, only {} are supported",
            stated.describe(),
            methods.join(", ")
        ))
    })
}

/// The first number among the segments after the first two and before the last, which is
/// Python's `re.match(r".*?\.[^.]*\.(\d+)\.", path)`.
fn first_numbered(path: &str) -> Option<u64> {
    let segments: Vec<&str> = path.split('.').collect();
    let last = segments.len().checked_sub(1)?;
    segments.get(2..last)?.iter().find_map(|s| s.parse().ok())
}

/// `None` for what the `regex` crate can't evaluate (look-around, back-references) or won't.
fn compile(pattern: &str) -> Option<Regex> {
    if pattern.len() > MAX_PATTERN {
        return None;
    }
    RegexBuilder::new(pattern).size_limit(1 << 20).build().ok()
}

fn refused(key: &str, value: &Json, reason: &str) -> Error {
    Error::unsupported(format!("key '{key}' is {}: {reason}", value.describe()))
}

fn bad_pattern(key: &str, pattern: &str) -> Error {
    Error::unsupported(format!("key '{key}': pattern '{}' can't be evaluated", shown(pattern)))
}

fn wrong_type(key: &str, value: &Json, expected: &str) -> Error {
    Error::bad_input(format!("key '{key}': expected {expected}, found {}", value.describe()))
}

fn boolean(key: &str, value: &Json) -> Result<bool> {
    match value {
        Json::Null => Ok(false),
        Json::Bool(b) => Ok(*b),
        other => Err(wrong_type(key, other, "true or false")),
    }
}

fn whole(value: &Json) -> Option<u64> {
    match value {
        Json::Number(n) if n.fract() == 0.0 && (0.0..=1e9).contains(n) => Some(*n as u64),
        _ => None,
    }
}

fn rank(key: &str, value: &Json) -> Result<u32> {
    match whole(value) {
        Some(rank) if (1..=u64::from(super::super::MAX_RANK)).contains(&rank) => Ok(rank as u32),
        _ => Err(wrong_type(key, value, "a rank of 1 to 4096")),
    }
}

fn alpha(key: &str, value: &Json) -> Result<f32> {
    match value {
        Json::Number(n) if (*n as f32).is_finite() => Ok(*n as f32),
        other => Err(wrong_type(key, other, "a number")),
    }
}

fn names(key: &str, value: &Json) -> Result<Vec<String>> {
    match value {
        Json::Text(name) => Ok(vec![name.clone()]),
        Json::List(list) => list
            .iter()
            .map(|item| match item {
                Json::Text(name) => Ok(name.clone()),
                other => Err(wrong_type(key, other, "a list of names")),
            })
            .collect(),
        other => Err(wrong_type(key, other, "a list of names")),
    }
}

fn layers(key: &str, value: &Json) -> Result<Option<Vec<u64>>> {
    let layer = |v: &Json| whole(v).ok_or_else(|| wrong_type(key, v, "layer numbers"));
    match value {
        Json::Null => Ok(None),
        Json::List(list) if list.is_empty() => Ok(None),
        Json::List(list) => list.iter().map(layer).collect::<Result<_>>().map(Some),
        one => Ok(Some(vec![layer(one)?])),
    }
}

/// Python's `re.match(r"(.*\.)?(KEY)$", path)` for each key, in the file's order.
fn patterns<T>(
    key: &str,
    value: &Json,
    read: impl Fn(&str, &Json) -> Result<T>,
) -> Result<Vec<(Regex, T)>> {
    match value {
        Json::Null => Ok(Vec::new()),
        Json::Object(entries) => entries
            .iter()
            .map(|(pattern, value)| {
                let regex = compile(&format!(r"\A(?:.*\.)?(?:{pattern})\z"))
                    .ok_or_else(|| bad_pattern(key, pattern))?;
                Ok((regex, read(key, value)?))
            })
            .collect(),
        other => Err(wrong_type(key, other, "an object")),
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
#[path = "config_tests.rs"]
mod tests;
