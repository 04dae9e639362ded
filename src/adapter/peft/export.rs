//! An adapter as a PEFT directory. What is written is read back as an import would, and refused
//! where it is not the same adapter.

use super::super::config::{Adapter, Head, NamedTensor, TargetAdapter};
use super::super::kind::{Kind, PeftForm};
use super::super::names::shown;
use super::super::target::Target;
use super::config::Config;
use super::tensors::PREFIX;
use super::{CONFIG, HeadSpec, ImportOptions, WEIGHTS, assemble};
use crate::error::{Error, Result};
use crate::fs::{Access, Staged, write_atomic_bytes};
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
    // One without labels stands for the base's own output, for which PEFT needs no head.
    let own: Vec<&Head> = adapter.heads.iter().filter(|head| head.labels.is_empty()).collect();
    let of_own = |task: &str| own.iter().any(|head| head.task == task);
    let task = match (of_own("language"), of_own("translate")) {
        (true, _) => json!("CAUSAL_LM"),
        (_, true) => json!("SEQ_2_SEQ_LM"),
        _ => Value::Null,
    };
    let mut rest = adapter.clone();
    rest.heads.retain(|head| !head.labels.is_empty());
    let adapter = &rest;
    let layers = layers(adapter, targets)?;
    let text = configuration(adapter, task, &layers)?;
    let bytes = weights(adapter, &layers)?;
    read_back(adapter, targets, &text, &bytes)?;
    if dir.exists() {
        return Err(Error::usage(format!("'{}' exists already", dir.display())));
    }
    let staged = Staged::beside(dir)?;
    std::fs::create_dir(staged.path()).map_err(|e| Error::io(dir, e))?;
    write_atomic_bytes(&staged.path().join(WEIGHTS), Access::Private, &bytes)?;
    write_atomic_bytes(&staged.path().join(CONFIG), Access::Private, text.as_bytes())?;
    staged.put(dir)?;
    let mut left = vec![];
    if let Some(head) = adapter.head() {
        left.push(format!(
            "PEFT does not say that head '{}' reads '{}' ({} pooling), nor its task, thresholds and labels: {}",
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

/// Each target with its layer.
fn layers<'a>(
    adapter: &'a Adapter,
    targets: &'a [Target],
) -> Result<Vec<(&'a TargetAdapter, &'a Target)>> {
    let layer = |target: &'a TargetAdapter| {
        let path = target.module_path.as_str();
        let found = targets.iter().find(|t| t.module_path == path);
        let missing = || Error::mismatch(format!("the base has no target '{}'", shown(path)));
        Ok((target, found.ok_or_else(missing)?))
    };
    adapter.targets.iter().map(layer).collect()
}

/// The kind of all targets and its form.
fn form(adapter: &Adapter) -> Result<(Kind, &'static dyn PeftForm)> {
    let kind = adapter.targets.first().map_or(Kind::default(), |t| t.kind);
    if adapter.targets.iter().any(|t| t.kind != kind) {
        return Err(Error::unsupported(format!(
            "its targets are of kinds {}: a PEFT directory holds one",
            adapter.kinds().join(", ")
        )));
    }
    let form = kind.rules().peft();
    Ok((
        kind,
        form.ok_or_else(|| {
            Error::unsupported(format!("PEFT has no form for kind '{}'", kind.name()))
        })?,
    ))
}

fn configuration(
    adapter: &Adapter,
    task: Value,
    layers: &[(&TargetAdapter, &Target)],
) -> Result<String> {
    let (kind, form) = form(adapter)?;
    let first = adapter.targets.first();
    let paths: Vec<&str> = adapter.targets.iter().map(|t| t.module_path.as_str()).collect();
    let saved: Vec<&str> = adapter.heads.iter().map(|h| h.name.as_str()).collect();
    let mut config = json!({
        "peft_type": form.selected_by().0,
        "task_type": task,
        "base_model_name_or_path": null,
        "inference_mode": true,
        "target_modules": paths,
        "modules_to_save": if saved.is_empty() { Value::Null } else { json!(saved) },
    });
    let mut more = vec![form.settings(layers)?];
    if kind.is_ranked() {
        let (rank, alpha) = first.map_or((1, 1.0), |t| (t.rank, t.alpha));
        let differing = |value: &dyn Fn(&TargetAdapter) -> Option<Value>| -> Map<String, Value> {
            let entry = |t: &TargetAdapter| Some((pattern(&t.module_path), value(t)?));
            adapter.targets.iter().filter_map(entry).collect()
        };
        let ranks = differing(&|t| (t.rank != rank).then(|| json!(t.rank)));
        // f64 holds an f32 exactly, and so does its shortest text.
        let alphas = differing(&|t| (t.alpha != alpha).then(|| json!(f64::from(t.alpha))));
        more.push(json!({
            "r": rank,
            form.alpha_key(): f64::from(alpha),
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
        }));
    }
    if let Value::Object(config) = &mut config {
        for value in more {
            if let Value::Object(entries) = value {
                config.extend(entries);
            }
        }
    }
    Ok(format!("{config:#}\n"))
}

fn weights(adapter: &Adapter, layers: &[(&TargetAdapter, &Target)]) -> Result<Vec<u8>> {
    let (_, form) = form(adapter)?;
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = vec![];
    let mut put = |name: String, shape: &[usize], values: &[f32]| {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        tensors.push((name, shape.to_vec(), bytes));
    };
    for (target, layer) in layers {
        let path = target.module_path.as_str();
        let written = form
            .write(target, layer)
            .map_err(|e| e.at(format_args!("target '{}'", shown(path))))?;
        for NamedTensor { name, shape, values } in written {
            put(format!("{PREFIX}{path}{name}"), &shape, &values);
        }
    }
    if let Some(head) = adapter.head() {
        let (name, classes) = (&head.name, head.classes());
        put(format!("{PREFIX}{name}.weight"), &[classes, head.features as usize], &head.weight);
        put(format!("{PREFIX}{name}.bias"), &[classes], &head.bias);
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
        head: adapter.head().map(|h| HeadSpec {
            output: h.output.clone(),
            pool: h.pool,
            labels: Some(h.labels.to_vec()),
        }),
        ..ImportOptions::default()
    };
    let imported = Config::parse(text)
        .and_then(|config| assemble(bytes, config, targets, &options, adapter.name.clone()))
        .map_err(|e| refused(e.message()))?;
    let sorted = |adapter: &Adapter| {
        let mut pairs = adapter.targets.clone();
        pairs.sort_by(|a, b| a.module_path.cmp(&b.module_path));
        let heads = adapter.heads.iter().map(|h| Head {
            task: "classes".into(),
            thresholds: vec![],
            temperature: 1.0,
            known: None,
            ..h.clone()
        });
        Adapter {
            name: adapter.name.clone(),
            base: adapter.base,
            targets: pairs,
            heads: heads.collect(),
            ..Adapter::default()
        }
    };
    match sorted(&imported.adapter) == sorted(adapter) {
        true => Ok(()),
        false => Err(refused("read back, it is another one")),
    }
}
