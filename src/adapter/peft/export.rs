//! An adapter as a PEFT directory. What is written is read back as an import would, and refused
//! where it is not the same adapter.

use super::super::config::{Adapter, TargetAdapter};
use super::super::names::shown;
use super::super::target::{Target, TargetKind};
use super::config::Config;
use super::tensors::{PREFIX, channels_last};
use super::{CONFIG, HeadSpec, ImportOptions, WEIGHTS, assemble};
use crate::error::{Error, Result};
use crate::fs::{Access, sync_folder, write_atomic_bytes};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

/// Writes `adapter` for a base with these `targets` as the PEFT directory `dir`, which must not
/// exist: every value of its pairs and its head, in f32. Gives back what PEFT has no place for, a
/// line each.
///
/// # Errors
/// Usage: `dir` exists. Mismatch: a pair without a target. Unsupported: what PEFT's form can't hold
/// without change, with the reason. Else what the file system says (failed).
pub fn export(adapter: &Adapter, targets: &[Target], dir: &Path) -> Result<Vec<String>> {
    adapter.check()?;
    let text = configuration(adapter);
    let bytes = weights(adapter, targets)?;
    read_back(adapter, targets, &text, &bytes)?;
    std::fs::create_dir(dir).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::usage(format!("'{}' exists already", dir.display()))
        }
        _ => Error::io(dir, e),
    })?;
    // The configuration comes last: without it the directory is none of PEFT's.
    write_atomic_bytes(&dir.join(WEIGHTS), Access::Private, &bytes)?;
    write_atomic_bytes(&dir.join(CONFIG), Access::Private, text.as_bytes())?;
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_folder(parent).map_err(|e| Error::io(parent, e))?;
    let mut left = vec![];
    if let Some(head) = &adapter.head {
        left.push(format!(
            "PEFT does not say that head '{}' reads '{}' ({} pooling), nor its labels: {}",
            shown(&head.name),
            shown(&head.output),
            head.pool.name(),
            shown(&head.labels.join(","))
        ));
    }
    if !adapter.probes.is_empty() || adapter.training.is_some() {
        left.push("PEFT has no place for probes and the training record".into());
    }
    Ok(left)
}

/// Exact paths as patterns: PEFT matches `(.*\.)?(KEY)$` from the start.
fn pattern(path: &str) -> String {
    format!("^{}", regex::escape(path))
}

fn configuration(adapter: &Adapter) -> String {
    let first = adapter.targets.first();
    let (rank, alpha) = first.map_or((1, 1.0), |t| (t.rank, t.alpha));
    let differing = |value: &dyn Fn(&TargetAdapter) -> Option<Value>| -> Map<String, Value> {
        let entry = |t: &TargetAdapter| Some((pattern(&t.module_path), value(t)?));
        adapter.targets.iter().filter_map(entry).collect()
    };
    let ranks = differing(&|t| (t.rank != rank).then(|| json!(t.rank)));
    // f64 holds an f32 exactly, and so does its shortest text.
    let alphas = differing(&|t| (t.alpha != alpha).then(|| json!(f64::from(t.alpha))));
    let paths: Vec<&str> = adapter.targets.iter().map(|t| t.module_path.as_str()).collect();
    let saved: Vec<&str> = adapter.head.iter().map(|h| h.name.as_str()).collect();
    let config = json!({
        "peft_type": "LORA",
        "task_type": null,
        "base_model_name_or_path": null,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": f64::from(alpha),
        "use_rslora": adapter.rslora,
        "use_dora": false,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "lora_dropout": 0.0,
        "target_modules": paths,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "modules_to_save": if saved.is_empty() { Value::Null } else { json!(saved) },
    });
    format!("{config:#}\n")
}

fn weights(adapter: &Adapter, targets: &[Target]) -> Result<Vec<u8>> {
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = vec![];
    let mut put = |name: String, shape: Vec<usize>, values: &[f32]| {
        tensors.push((name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect()));
    };
    for pair in &adapter.targets {
        let path = pair.module_path.as_str();
        let Some(target) = targets.iter().find(|t| t.module_path == path) else {
            return Err(Error::mismatch(format!("the base has no target '{}'", shown(path))));
        };
        let (r, inputs, outputs) = (pair.rank as usize, pair.in_features(), pair.out_features());
        let (window, ones): (Vec<usize>, usize) = match target.kind {
            TargetKind::Linear => (vec![], 0),
            TargetKind::Conv { kernel: [_, w], one_axis: true } => (vec![w as usize], 1),
            TargetKind::Conv { kernel: [h, w], one_axis: false } => {
                (vec![h as usize, w as usize], 2)
            }
            TargetKind::Embedding => {
                return Err(Error::unsupported(format!(
                    "target '{}' is an embedding, which is not supported",
                    shown(path)
                )));
            }
        };
        // 1 for a linear layer: the product of nothing.
        let area = window.iter().product::<usize>();
        let channels = inputs.checked_div(area).unwrap_or(0);
        let a = match ones {
            0 => pair.lora_a.clone(),
            // (R, window, channels) to (R, channels, window): the same turn, the other way about.
            _ => channels_last(pair.lora_a.clone(), area, channels),
        };
        put(format!("{PREFIX}{path}.lora_A.weight"), [vec![r, channels], window].concat(), &a);
        let shape = [vec![outputs, r], vec![1; ones]].concat();
        put(format!("{PREFIX}{path}.lora_B.weight"), shape, &pair.lora_b);
    }
    if let Some(head) = &adapter.head {
        let (name, classes) = (&head.name, head.classes());
        let shape = vec![classes, head.features as usize];
        put(format!("{PREFIX}{name}.weight"), shape, &head.weight);
        put(format!("{PREFIX}{name}.bias"), vec![classes], &head.bias);
    }
    let failed = |e: &dyn std::fmt::Display| Error::failed(format!("it can't be encoded: {e}"));
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| {
            Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|e| failed(&e))?))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    serialize(views, Some(metadata)).map_err(|e| failed(&e))
}

/// An error unless an import gives the same pairs and the same head.
fn read_back(adapter: &Adapter, targets: &[Target], text: &str, bytes: &[u8]) -> Result<()> {
    let refused = |why: &str| {
        Error::unsupported(format!(
            "PEFT's form can't hold adapter '{}': {why}",
            shown(&adapter.name)
        ))
    };
    let options = ImportOptions {
        base: adapter.base,
        head: adapter.head.as_ref().map(|h| HeadSpec {
            output: h.output.clone(),
            pool: h.pool,
            labels: Some(h.labels.clone()),
        }),
        ..ImportOptions::default()
    };
    let imported = Config::parse(text)
        .and_then(|config| assemble(bytes, config, targets, &options, adapter.name.clone()))
        .map_err(|e| refused(e.message()))?;
    let sorted = |adapter: &Adapter| {
        let mut pairs = adapter.targets.clone();
        pairs.sort_by(|a, b| a.module_path.cmp(&b.module_path));
        Adapter { targets: pairs, probes: vec![], training: None, ..adapter.clone() }
    };
    match sorted(&imported.adapter) == sorted(adapter) {
        true => Ok(()),
        false => Err(refused("read back, it is another one")),
    }
}
