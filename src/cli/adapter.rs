//! `offshoot adapter …`: the store.

use super::chosen::{self, Choice};
use super::inspect;
use super::open_engine;
use super::output::{Out, count, table};
use crate::adapter::peft::{self, HeadSpec, ImportOptions};
use crate::adapter::{Adapter, Bound, Pool, ProbeEffect, TensorType};
use crate::error::{Error, Result};
use crate::pack::Base;
use crate::shape::Array;
use crate::store::{
    NameEntry, Options, Origin, Reference, Removed, Serve, Store, Switched, check_name,
};
use clap::Subcommand;
use serde_json::json;
use std::path::{Path, PathBuf};

/// How far a measured effect may be from the recorded one: kernels of other processors round
/// otherwise.
const EFFECT_TOLERANCE: f32 = 0.05;

/// `offshoot adapter`'s arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The folder of the store, as the daemon's `state` (default: $OFFSHOOT_STORE, else the user's own). A
    /// daemon that runs on it sees what changes at its next question
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Names, generations, and which one is active
    List,
    /// What an adapter of the store is
    Show {
        /// NAME or NAME@GENERATION
        #[arg(value_parser = Reference::parse)]
        name: Reference,
    },
    /// Put an adapter file into the store as a new generation
    Add {
        /// The .adapter file
        file: PathBuf,
        /// Its name in the store (default: the name in the file)
        #[arg(long)]
        name: Option<String>,
        /// Check that it fits this base
        #[arg(long)]
        base: Option<PathBuf>,
        /// Make it the active generation
        #[arg(long = "use")]
        activate: bool,
    },
    /// Make a generation the active one (the newest, if none is named)
    Use {
        /// NAME or NAME@GENERATION
        #[arg(value_parser = Reference::parse)]
        name: Reference,
    },
    /// Go back to the generation that served before, and mark the active one as bad
    Rollback {
        /// The adapter's name
        name: String,
        /// Why, for the history
        #[arg(long, default_value = "by hand")]
        why: String,
    },
    /// Remove a generation, or all of a name
    Remove {
        /// NAME or NAME@GENERATION
        #[arg(value_parser = Reference::parse)]
        name: Reference,
        /// Remove the active generation too
        #[arg(long)]
        force: bool,
    },
    /// Check an adapter's bytes, and with a base that it fits and has its recorded effect
    Verify {
        /// NAME, NAME@GENERATION or a file
        adapter: String,
        /// The base it was made for
        #[arg(long)]
        base: Option<PathBuf>,
    },
    /// Turn a PEFT directory into an adapter file
    Import(ImportArgs),
    /// Turn an adapter into a PEFT directory
    Export {
        /// NAME, NAME@GENERATION or a file
        adapter: String,
        /// The base that it belongs to
        #[arg(long)]
        base: PathBuf,
        /// The directory to make
        #[arg(short, long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Make one adapter of the weighted sum of several
    Merge {
        /// NAME, NAME@GENERATION or a file, and perhaps :WEIGHT; two or more
        #[arg(required = true, num_args = 2.., value_parser = Choice::parse)]
        adapters: Vec<Choice>,
        /// The adapter file to write
        #[arg(short, long, value_name = "FILE")]
        out: PathBuf,
        /// The adapter's name
        #[arg(long, default_value = "merged")]
        name: String,
    },
}

#[derive(clap::Args)]
struct ImportArgs {
    /// The directory with adapter_config.json and adapter_model.safetensors
    directory: PathBuf,
    /// The base that it belongs to
    #[arg(long)]
    base: PathBuf,
    /// The adapter file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// The adapter's name (default: the directory's)
    #[arg(long)]
    name: Option<String>,
    /// The output that its head reads
    #[arg(long, value_name = "OUTPUT")]
    head_output: Option<String>,
    /// How tokens are pooled for its head: mean, cls, max or none
    #[arg(long, value_parser = pool, default_value = "mean", requires = "head_output")]
    pool: Pool,
    /// The classes' names: A,B,C
    #[arg(long, value_delimiter = ',', requires = "head_output")]
    labels: Option<Vec<String>>,
}

/// Reads `mean`, `cls`, `max` or `none`.
pub fn pool(text: &str) -> Result<Pool> {
    Pool::parse(text).ok_or_else(|| Error::usage("expected mean, cls, max or none"))
}

/// Does what the verb says.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    let state = args.state.as_deref();
    match &args.verb {
        Verb::List => list_all(state, out),
        Verb::Show { name } => show(state, name, out),
        Verb::Add { file, name, base, activate } => {
            add(state, file, name.as_deref(), base.as_deref(), *activate, out)
        }
        Verb::Use { name } => {
            let store = Store::open(&chosen::folder(state)?)?;
            let generation = match name.generation() {
                Some(generation) => generation,
                None => store.newest(name.name())?,
            };
            switched(&store.activate(name.name(), generation, None, None)?, out)
        }
        Verb::Rollback { name, why } => {
            switched(&Store::open(&chosen::folder(state)?)?.rollback(name, None, why)?, out)
        }
        Verb::Remove { name, force } => {
            let Removed { generations, known } =
                chosen::store_with(state, name)?.remove(name, *force)?;
            let name = name.name();
            match generations.is_empty() {
                true => out.line(format!("removed '{name}'")),
                false => out.line(format!("removed generation {} of '{name}'", list(&generations))),
            }
            out.document(&json!({"name": name, "removed": generations, "known": known}))
        }
        Verb::Verify { adapter, base } => verify(state, adapter, base.as_deref(), out),
        Verb::Import(args) => import(args, out),
        Verb::Export { adapter, base, out: dir } => export(state, adapter, base, dir, out),
        Verb::Merge { adapters, out: file, name } => merge(state, adapters, file, name, out),
    }
}

fn switched(switched: &Switched, out: &Out) -> Result<()> {
    let Switched { name, active, before } = switched;
    let words = |g: &Option<u64>| g.map_or("the base".into(), |g| format!("generation {g}"));
    out.line(format!("'{name}' serves {} (before: {})", words(active), words(before)));
    out.document(&json!(switched))
}

fn list_all(state: Option<&Path>, out: &Out) -> Result<()> {
    let root = chosen::folder(state)?;
    let entries = match Store::open_existing(&root, Options::default())? {
        Some(store) => {
            store.problems().iter().for_each(|problem| out.remark(format!("warning: {problem}")));
            store.names()?
        }
        None => vec![],
    };
    if entries.is_empty() {
        out.line(format!("no adapters in '{}'", root.display()));
    }
    let rows: Vec<Vec<String>> = entries.iter().map(row).collect();
    table(&rows).iter().for_each(|line| out.line(line));
    out.document(&json!({"store": root, "adapters": entries}))
}

/// A name, what it serves, what there is.
fn row(entry: &NameEntry) -> Vec<String> {
    let trial = if entry.trial.is_some() { " on trial" } else { "" };
    let serves = entry.active.map_or("the base".into(), |a| format!("generation {a}{trial}"));
    let generations = match entry.generations.as_slice() {
        [] => "no generations".into(),
        some => format!("generations {}", list(some)),
    };
    vec![entry.name.clone(), format!("serves {serves}"), generations]
}

fn list(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

fn show(state: Option<&Path>, reference: &Reference, out: &Out) -> Result<()> {
    let store = chosen::store_with(state, reference)?;
    if reference.generation().is_none() {
        let entry = store.name(reference.name())?;
        if entry.active.is_none() {
            table(&[row(&entry)]).iter().for_each(|line| out.line(line));
            return out.document(&entry);
        }
    }
    let loaded = store.load(reference)?;
    inspect::adapter(&loaded.adapter, &loaded.path, out)
}

fn add(
    state: Option<&Path>,
    file: &Path,
    name: Option<&str>,
    base: Option<&Path>,
    activate: bool,
    out: &Out,
) -> Result<()> {
    let adapter = Adapter::read(file)?;
    let name = name.unwrap_or(&adapter.name);
    check_name(name).map_err(|e| match e.hint_text() {
        Some(_) => e,
        None => e.hint("choose one with --name"),
    })?;
    if let Some(base) = base {
        let bound = open_engine(base)?.bind(&[(&adapter, 1.0)])?;
        let unmoved = without_effect(&bound, &adapter);
        unmoved.iter().for_each(|w| out.remark(format!("warning: {w}")));
    }
    // The first of a name serves at once.
    let serve = if activate { Serve::Now } else { Serve::First };
    let store = Store::open(&chosen::folder(state)?)?;
    let added = store.add_and_serve(name, &adapter, &Origin::default(), serve)?;
    let generation = added.generation;
    let what = if added.new { "added" } else { "was there already" };
    let active = if added.active {
        "active".to_string()
    } else {
        format!("not active: switch with 'adapter use {name}@{generation}'")
    };
    out.line(format!("'{name}' generation {generation} {what}, {active}"));
    out.document(&json!({
        "name": name, "generation": generation, "new": added.new, "active": added.active,
    }))
}

fn verify(state: Option<&Path>, text: &str, base: Option<&Path>, out: &Out) -> Result<()> {
    let choice = Choice { source: text.into(), weight: 1.0 };
    let adapter = choice.load_from(state)?;
    adapter.check()?;
    out.line(format!(
        "'{text}': the hash holds, {} values are finite",
        count(adapter.parameters())
    ));
    let mut measured = vec![];
    let mut unmoved = None;
    if let Some(base) = base {
        let engine = open_engine(base)?;
        let bound = engine.bind(&[(&adapter, 1.0)])?;
        out.line("it fits the base");
        unmoved = without_effect(&bound, &adapter);
        unmoved.iter().for_each(|w| out.remark(format!("warning: {w}")));
        for (i, probe) in adapter.probes.iter().enumerate() {
            let plain = output(&engine.run(&probe.inputs, None)?, probe)?;
            let adapted = output(&engine.run(&probe.inputs, Some(&bound))?, probe)?;
            let found = mean_difference(&plain, &adapted)?;
            check_effect(i, probe, found)?;
            out.line(format!(
                "probe {}: '{}' moves by {found:.4}, recorded {:.4}",
                i + 1,
                probe.output,
                probe.effect
            ));
            measured.push(json!({
                "output": probe.output, "recorded": probe.effect, "measured": found,
            }));
        }
        if adapter.probes.is_empty() {
            out.line("no probe is stored with it: its effect is not checked");
        }
    }
    out.document(&json!({
        "adapter": text, "intact": true, "fits": base.is_some(), "probes": measured,
        "warnings": Vec::from_iter(unmoved),
    }))
}

fn export(state: Option<&Path>, text: &str, base: &Path, dir: &Path, out: &Out) -> Result<()> {
    let adapter = Choice { source: text.into(), weight: 1.0 }.load_from(state)?;
    let base = Base::open(base)?;
    crate::adapter::bind(&[(&adapter, 1.0)], base.targets(), &base.fingerprint(), &base)?;
    let warnings = peft::export(&adapter, base.targets(), dir)?;
    warnings.iter().for_each(|w| out.remark(format!("warning: {w}")));
    out.line(format!("{}: {} targets", dir.display(), adapter.targets.len()));
    out.document(&json!({
        "out": dir, "targets": adapter.targets.len(), "head": adapter.head().map(|h| &h.name),
        "warnings": warnings,
    }))
}

fn merge(
    state: Option<&Path>,
    choices: &[Choice],
    file: &Path,
    name: &str,
    out: &Out,
) -> Result<()> {
    let adapters = choices.iter().map(|c| c.load_from(state)).collect::<Result<Vec<Adapter>>>()?;
    let weighted: Vec<(&Adapter, f32)> =
        adapters.iter().zip(choices).map(|(a, c)| (a, c.weight)).collect();
    let merged = crate::adapter::merge(name, &weighted)?;
    merged.write(file, TensorType::F32)?;
    let rank = merged.targets.iter().map(|t| t.rank).max().unwrap_or(0);
    out.line(format!(
        "{}: {} adapters as one, {} targets, rank up to {rank}",
        file.display(),
        choices.len(),
        merged.targets.len()
    ));
    if adapters.iter().any(|a| !a.probes.is_empty()) {
        out.line("their probes are not taken over: the sum's effect is not measured");
    }
    out.document(&json!({
        "out": file, "name": name, "adapters": choices.len(),
        "targets": merged.targets.len(), "rank": rank, "head": merged.head().map(|h| &h.name),
    }))
}

fn output(outputs: &[(String, Array)], probe: &ProbeEffect) -> Result<Vec<f32>> {
    match outputs.iter().find(|(name, _)| *name == probe.output) {
        Some((_, array)) => Ok(array.as_f32()?.to_vec()),
        None => Err(Error::mismatch(format!("the base has no output '{}'", probe.output))),
    }
}

fn mean_difference(a: &[f32], b: &[f32]) -> Result<f32> {
    if a.len() != b.len() || a.is_empty() {
        return Err(Error::mismatch("the adapter changes the shape of the base's output"));
    }
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).sum();
    Ok((sum / a.len() as f64) as f32)
}

fn check_effect(index: usize, probe: &ProbeEffect, found: f32) -> Result<()> {
    let near = (found - probe.effect).abs() <= EFFECT_TOLERANCE * probe.effect.abs() + 1e-6;
    // NaN is near nothing.
    if near {
        return Ok(());
    }
    Err(Error::mismatch(format!(
        "probe {}: expected '{}' to move by {:.6}, found {found:.6}",
        index + 1,
        probe.output,
        probe.effect
    )))
}

fn import(args: &ImportArgs, out: &Out) -> Result<()> {
    let base = Base::open(&args.base)?;
    if let Some(output) = &args.head_output {
        let outputs = &base.graph_record(0)?.outputs;
        if !outputs.iter().any(|o| o.name == *output) {
            let names: Vec<&str> = outputs.iter().map(|o| o.name.as_str()).collect();
            return Err(Error::mismatch(format!("the base has no output '{output}'"))
                .hint(format!("its outputs are {}", names.join(", "))));
        }
    }
    let outputs = &base.graph_record(0)?.outputs;
    let options = ImportOptions {
        name: args.name.clone(),
        outputs: outputs.iter().map(|o| (o.name.clone(), o.dims.len())).collect(),
        base: Some(base.fingerprint()),
        head: args.head_output.as_ref().map(|output| HeadSpec {
            output: output.clone(),
            pool: args.pool,
            labels: args.labels.clone(),
        }),
    };
    let mut imported = peft::import(&args.directory, base.targets(), &options)?;
    // All or nothing: what can't be bound is not written.
    let one = [(&imported.adapter, 1.0)];
    let bound = crate::adapter::bind(&one, base.targets(), &base.fingerprint(), &base)?;
    imported.warnings.extend(without_effect(&bound, &imported.adapter));
    imported.adapter.write(&args.out, TensorType::F32)?;
    imported.warnings.iter().for_each(|w| out.remark(format!("warning: {w}")));
    let rows: Vec<Vec<String>> = imported
        .rows
        .iter()
        .map(|r| {
            let shape = format!("{} -> {}", r.in_features, r.out_features);
            let rank = if r.rank > 0 { format!("rank {}", r.rank) } else { String::new() };
            vec![r.peft.clone(), r.module_path.clone(), rank, shape]
        })
        .collect();
    table(&rows).iter().for_each(|line| out.line(line));
    let head = imported.adapter.head();
    out.line(format!(
        "{}: {} targets matched{}",
        args.out.display(),
        rows.len(),
        head.map_or(String::new(), |h| format!(", head '{}'", h.name))
    ));
    out.document(&json!({
        "out": args.out,
        "name": imported.adapter.name,
        "matched": imported.rows,
        "head": head.map(|h| &h.name),
        "warnings": imported.warnings,
    }))
}

/// What to say of an adapter that was bound alone and leaves layers as they are.
fn without_effect(bound: &Bound, adapter: &Adapter) -> Option<String> {
    let all = adapter.targets.len();
    match bound.targets.iter().flatten().count() {
        0 if all > 0 => Some(format!(
            "it has no effect: what it adds is zero in all of its {all} targets, as before the first \
             step of training or after a save that lost its values"
        )),
        some if some < all => Some(format!(
            "{} of its {all} targets change nothing: what they add is zero",
            all - some
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::TargetAdapter;

    #[test]
    fn adapters_that_change_nothing_are_told() {
        let target = |path: &str, b: f32| TargetAdapter::lora(path, 1, 1.0, vec![1.0], vec![b]);
        let said = |values: [f32; 2], bound: [bool; 2]| {
            let targets = vec![target("a", values[0]), target("b", values[1])];
            let adapter = Adapter { targets, ..Adapter::default() };
            let change = |on: bool| on.then(crate::quant::Change::default);
            let bound = Bound { targets: bound.map(change).to_vec(), ..Bound::default() };
            without_effect(&bound, &adapter).unwrap_or_default()
        };
        assert!(said([0.0, 0.0], [false, false]).starts_with("it has no effect"));
        assert!(said([1.0, 0.0], [true, false]).starts_with("1 of its 2 targets change nothing"));
        assert_eq!(said([1.0, 1.0], [true, true]), "");
    }
}
