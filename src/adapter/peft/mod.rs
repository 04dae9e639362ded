//! PEFT adapter directories (`adapter_config.json` and `adapter_model.safetensors`).
//! Import and export are whole or refused with the reason.

mod config;
mod export;
mod head;
mod json;
mod matching;
mod tensors;

use super::config::{Adapter, Head, Pool, TargetAdapter};
use super::kind::Site;
use super::names::shown;
use super::target::Target;
use crate::error::{Error, Result};
use crate::fingerprint::BaseFingerprint;
use crate::fs::{read_limited, read_text};
use config::Config;
use serde::Serialize;
use std::path::Path;
use tensors::Saved;

pub use export::export;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";
/// Longest configuration in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// What a head reads, which a PEFT directory does not say.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadSpec {
    /// The graph output.
    pub output: String,
    /// How its tokens are pooled.
    pub pool: Pool,
    /// The classes' names; `0`, `1`, … if `None`.
    pub labels: Option<Vec<String>>,
}

/// What an import may be told.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The adapter's name; the directory's if `None`.
    pub name: Option<String>,
    /// The base whose targets it is matched with; without it the result can't be bound.
    pub base: Option<BaseFingerprint>,
    /// What its head reads.
    pub head: Option<HeadSpec>,
    /// The base's outputs, each with its number of axes. Without them a head that nothing is said of
    /// reads the output '' through a mean, which no base can bind.
    pub outputs: Vec<(String, usize)>,
}

/// One line of the match table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MatchRow {
    /// The module's name in the PEFT file, without `base_model.model.`.
    pub peft: String,
    /// The target that it was matched with.
    pub module_path: String,
    /// R; 0 where the kind has none.
    pub rank: u32,
    /// Numerator of the scaling.
    pub alpha: f32,
    /// The layer's in_features.
    pub in_features: u32,
    /// The layer's out_features.
    pub out_features: u32,
}

/// An imported adapter and what there is to say about it.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The adapter, its targets in the base's order.
    pub adapter: Adapter,
    /// One row per target.
    pub rows: Vec<MatchRow>,
    /// What was ignored or assumed, a line each.
    pub warnings: Vec<String>,
}

/// Imports the PEFT directory `dir` for a base with these `targets`. Every tensor is consumed.
/// Module names must equal the targets' or all differ from them by one prefix.
///
/// # Errors
/// Bad input: files missing, damaged or at odds with each other. Mismatch: modules without a
/// target, other shapes, more or fewer labels than classes. Unsupported: pickle files and methods
/// that are none of the kinds, naming the key or the tensor.
pub fn import(dir: &Path, targets: &[Target], options: &ImportOptions) -> Result<Imported> {
    let file = |name: &str| dir.join(name);
    if !file(CONFIG).is_file() {
        return Err(no_config(dir));
    }
    let at_file = |name: &str, e: Error| e.at(format_args!("'{}'", file(name).display()));
    let text = read_text(&file(CONFIG), MAX_CONFIG)?;
    let config = Config::parse(&text).map_err(|e| at_file(CONFIG, e))?;
    if !file(WEIGHTS).exists() && file(PICKLE).exists() {
        return Err(Error::unsupported(format!(
            "'{}' is a Python pickle, which can run any code and is not read",
            file(PICKLE).display()
        ))
        .hint(format!("save it in PEFT with safe_serialization=True as {WEIGHTS}")));
    }
    let bytes = read_limited(&file(WEIGHTS), super::MAX_FILE)?;
    let name = match &options.name {
        Some(name) => name.clone(),
        None => folder_name(dir),
    };
    assemble(&bytes, config, targets, options, name).map_err(|e| at_file(WEIGHTS, e))
}

fn no_config(dir: &Path) -> Error {
    if !dir.is_dir() {
        return Error::bad_input(format!("'{}' is not a folder", dir.display()));
    }
    let error = Error::bad_input(format!("no '{CONFIG}' in '{}'", dir.display()));
    // PEFT saves adapters other than 'default' in folders of their names.
    let inner = std::fs::read_dir(dir).ok().and_then(|entries| {
        entries.flatten().map(|e| e.path()).find(|path| path.join(CONFIG).is_file())
    });
    match inner {
        Some(inner) => error.hint(format!("there is one in '{}'", inner.display())),
        None => error,
    }
}

fn folder_name(dir: &Path) -> String {
    let full = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    full.file_name().map_or("adapter".into(), |name| name.to_string_lossy().into_owned())
}

fn assemble(
    bytes: &[u8],
    mut config: Config,
    targets: &[Target],
    options: &ImportOptions,
    name: String,
) -> Result<Imported> {
    let tensors = tensors::read(bytes, &config)?;
    if tensors.changed.is_empty() && tensors.saved.is_empty() {
        return Err(Error::bad_input("there are no tensors in it"));
    }
    if let Some(path) = tensors.changed.keys().find(|path| config.selects(path) == Some(false)) {
        return Err(Error::bad_input(format!(
            "module '{}' has tensors but the configuration does not select it",
            shown(path)
        ))
        .hint("see 'target_modules', 'exclude_modules' and 'layers_to_transform'"));
    }
    let mut warnings = std::mem::take(&mut config.warnings);
    let paths: Vec<&str> = tensors.changed.keys().map(String::as_str).collect();
    let (prefix, matched) = matching::match_all(&paths, targets)?;
    if let Some(warning) = unadapted(&config, &prefix, targets, &matched) {
        warnings.push(warning);
    }
    for path in tensors.saved.keys() {
        if targets.iter().any(|t| prefix.invert(&t.module_path).as_deref() == Some(path)) {
            return Err(Error::unsupported(format!(
                "module '{}' is saved in full and would replace a layer of the base",
                shown(path)
            ))
            .hint("export the base without that layer: then it becomes the adapter's head"));
        }
    }
    let mut found = Vec::with_capacity(matched.len());
    let form = config.form().ok_or_else(|| Error::failed("the kind has no form in PEFT"))?;
    for ((path, saved), index) in tensors.changed.into_iter().zip(matched) {
        let Some(layer) = targets.get(index) else { continue };
        let (rank, alpha) = match config.kind.is_ranked() {
            true => config.rank_alpha(&path),
            false => (0, 0.0),
        };
        let at = Site { layer, rank, feedforward: config.is_feedforward(&path) };
        let tensors =
            form.read(&saved, &at).map_err(|e| e.at(format_args!("module '{}'", shown(&path))))?;
        let module_path = layer.module_path.clone();
        let row = MatchRow {
            peft: path,
            module_path: module_path.clone(),
            rank,
            alpha,
            in_features: layer.in_features,
            out_features: layer.out_features,
        };
        let (kind, rslora) = (config.kind, config.rslora);
        let target = TargetAdapter { module_path, kind, rank, alpha, rslora, tensors };
        found.push((index, row, target));
    }
    found.sort_by_key(|(index, ..)| *index);
    let (rows, pairs): (Vec<MatchRow>, Vec<TargetAdapter>) =
        found.into_iter().map(|(_, row, pair)| (row, pair)).unzip();
    let mut saved = tensors.saved.into_iter();
    let pooler = config.is_sequence_classifier && head::behind_a_pooler(rows.as_slice());
    let head = match (saved.next(), saved.next()) {
        (Some((first, _)), Some((second, _))) => {
            return Err(Error::unsupported(format!(
                "two modules saved in full, '{}' and '{}': a head is one linear layer",
                shown(&first),
                shown(&second)
            )));
        }
        (Some((path, saved)), None) => {
            let spec = head::spec(&path, options, pooler, &mut warnings)?;
            Some(to_head(path, saved, spec.as_ref(), &mut warnings)?)
        }
        (None, _) => None,
    };
    let adapter = Adapter {
        name,
        base: options.base,
        targets: pairs,
        heads: head.into_iter().collect(),
        ..Adapter::default()
    };
    adapter.check()?;
    Ok(Imported { adapter, rows, warnings })
}

/// Targets that the configuration names and the file leaves out: perhaps another base.
fn unadapted(
    config: &Config,
    prefix: &matching::Prefix,
    targets: &[Target],
    matched: &[usize],
) -> Option<String> {
    if !config.names_modules() {
        return None;
    }
    let adapted: std::collections::HashSet<usize> = matched.iter().copied().collect();
    let left: Vec<&str> = targets
        .iter()
        .enumerate()
        .filter(|(i, _)| !adapted.contains(i))
        .filter(|(_, t)| {
            prefix.invert(&t.module_path).is_some_and(|path| config.selects(&path) == Some(true))
        })
        .map(|(_, t)| t.module_path.as_str())
        .collect();
    left.first().map(|first| {
        format!(
            "{} targets of the base that 'target_modules' selects have no tensors, '{}' first",
            left.len(),
            shown(first)
        )
    })
}

fn to_head(
    path: String,
    saved: Saved,
    spec: Option<&HeadSpec>,
    warnings: &mut Vec<String>,
) -> Result<Head> {
    let place = |e: Error| e.at(format_args!("module '{}'", shown(&path)));
    let Saved { weight, bias } = saved;
    let &[classes, features] = weight.shape.as_slice() else {
        return Err(place(Error::unsupported(format!(
            "weight has shape {:?}, a head is one linear layer [classes, features]",
            weight.shape
        ))));
    };
    if classes > super::MAX_LABELS {
        return Err(place(Error::unsupported(format!("{classes} classes are too many"))));
    }
    let bias = match bias {
        Some(bias) if bias.shape == [classes] => bias.values,
        Some(bias) => {
            return Err(place(Error::bad_input(format!(
                "bias has shape {:?}, expected [{classes}]",
                bias.shape
            ))));
        }
        None => vec![0.0; classes],
    };
    let features = u32::try_from(features)
        .map_err(|_| place(Error::unsupported(format!("{features} features are too many"))))?;
    if spec.is_none() {
        warnings.push(format!(
            "the file does not say which output head '{}' reads nor how tokens are pooled: mean is assumed",
            shown(&path)
        ));
    }
    let labels = match spec.and_then(|s| s.labels.clone()) {
        Some(labels) if labels.len() != classes => {
            return Err(place(Error::mismatch(format!(
                "{} labels given for {classes} classes",
                labels.len()
            ))));
        }
        Some(labels) => labels,
        None => (0..classes).map(|i| i.to_string()).collect(),
    };
    let (output, pool) = spec.map_or((String::new(), Pool::Mean), |s| (s.output.clone(), s.pool));
    let weight = weight.values;
    let labels = labels.into();
    Ok(Head { name: path, output, pool, labels, features, weight, bias, ..Head::default() })
}

#[cfg(test)]
mod tests;
