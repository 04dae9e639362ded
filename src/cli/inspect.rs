//! `offshoot inspect`.

use super::output::{Out, bytes, count, dims, table};
#[cfg(feature = "import")]
use super::pack::ImportArgs;
use crate::adapter::{Adapter, TargetKind};
use crate::error::{Error, Result};
use crate::fs::open_regular;
use crate::pack::{Base, Fit, IoSpec, Problem, Role, SectionInfo};
#[cfg(feature = "import")]
use crate::runtime::{OnnxSummary, Sandbox, TargetLine};
use serde_json::json;
use std::io::Read;
use std::path::{Path, PathBuf};

/// `offshoot inspect`'s arguments.
#[derive(clap::Args)]
pub struct Args {
    /// A .onnx, .base or .adapter file
    file: PathBuf,
    /// Read the whole of a base file and check every hash
    #[arg(long)]
    verify: bool,
    #[cfg(feature = "import")]
    #[command(flatten)]
    import: ImportArgs,
}

/// Says what is in a file.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    let path = &args.file;
    let mut opened = open_regular(path, u64::MAX)?;
    let mut magic = [0; 8];
    let known = opened.file.read_exact(&mut magic).is_ok();
    drop(opened);
    if known && magic == crate::pack::MAGIC {
        return base(&Base::open(path)?, args.verify, out);
    }
    if known && magic == crate::adapter::MAGIC {
        return adapter(&Adapter::read(path)?, path, out);
    }
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    match ending.as_str() {
        #[cfg(not(feature = "import"))]
        "onnx" => Err(Error::unsupported("this build reads no ONNX files")
            .hint("pack them with a build that has the feature 'import'")),
        #[cfg(feature = "import")]
        "onnx" => {
            let summary =
                Sandbox::this_program()?.summary(path, &args.import.options(), &mut |_| ())?;
            onnx(&summary, path, out)
        }
        // Their readers say what is wrong.
        "base" => base(&Base::open(path)?, args.verify, out),
        "adapter" => adapter(&Adapter::read(path)?, path, out),
        _ => Err(Error::bad_input(format!(
            "'{}' is neither a base nor an adapter, nor does its name end in .onnx",
            path.display()
        ))),
    }
}

/// `linear`, `conv 3x3` or `embedding`.
pub fn kind_text(kind: TargetKind) -> String {
    match kind {
        TargetKind::Linear => "linear".into(),
        TargetKind::Conv { kernel: [_, w], one_axis: true } => format!("conv {w}"),
        TargetKind::Conv { kernel: [h, w], .. } => format!("conv {h}x{w}"),
        TargetKind::Embedding => "embedding".into(),
    }
}

/// The symbols that the base spells texts with, and which is the blank.
pub fn alphabet(base: &Base) -> Option<String> {
    let symbols = &base.preprocess().labels;
    let spells = base.preprocess().problem == Some(Problem::Text);
    let blank = symbols.iter().position(String::is_empty).filter(|_| spells)?;
    let last = symbols.len().saturating_sub(1);
    let place = match blank {
        0 => "the first".into(),
        at if at == last => "the last".into(),
        at => format!("number {at}"),
    };
    Some(format!("spells texts with {} symbols, the blank is {place}", count(last as u64)))
}

fn base(base: &Base, verify: bool, out: &Out) -> Result<()> {
    if verify {
        base.verify()?;
    }
    let record = base.record();
    let main = base.graph_record(0)?;
    let preprocess = base.preprocess();
    let error_of = |i: usize| record.errors.iter().find(|e| e.target as usize == i);
    if out.json() {
        let io = |specs: &[IoSpec]| -> Vec<_> {
            specs
                .iter()
                .map(|s| json!({"name": s.name, "dtype": s.dtype, "dims": s.dims, "role": s.role}))
                .collect()
        };
        let targets: Vec<_> = base
            .targets()
            .iter()
            .enumerate()
            .map(|(i, t)| {
                json!({
                    "module_path": t.module_path,
                    "node": t.node,
                    "kind": kind_text(t.kind),
                    "in_features": t.in_features,
                    "out_features": t.out_features,
                    "scheme": base.weight_spec(t.weight as usize).map(|s| s.scheme),
                    "relative_error": error_of(i).map(|e| e.relative),
                    "max_abs_error": error_of(i).map(|e| e.max_abs),
                })
            })
            .collect();
        let sections: Vec<_> = base
            .sections()
            .iter()
            .map(|s| json!({"name": s.name, "offset": s.offset, "bytes": s.len, "hash": s.hash}))
            .collect();
        let graphs: Vec<_> = base
            .graphs()
            .zip(&record.graphs)
            .map(|(name, g)| {
                json!({
                    "name": name,
                    "inputs": io(&g.inputs),
                    "outputs": io(&g.outputs),
                    "source_name": g.source_name,
                    "source_hash": g.source_hash,
                    "source_bytes": g.source_bytes,
                    "opset": g.opset,
                    "dims": g.dims,
                    "fixed_inputs": g.fixed_inputs,
                    "fixed_values": g.fixed_values,
                    "bound": g.bound,
                    "properties": g.properties,
                })
            })
            .collect();
        let texts: Vec<_> = base
            .texts()?
            .iter()
            .map(|(name, text)| json!({"name": name, "bytes": text.len()}))
            .collect();
        return out.document(&json!({
            "kind": "base",
            "file": base.path(),
            "bytes": base.file_len(),
            "fingerprint": base.fingerprint().to_string(),
            "verified": verify,
            "inputs": io(&main.inputs),
            "outputs": io(&main.outputs),
            "graphs": graphs,
            "targets": targets,
            "weights": base.weight_count(),
            "sections": sections,
            "preprocess": preprocess,
            "audio": base.audio()?,
            "tokenizer": base.tokenizer()?.is_some(),
            "texts": texts,
            "record": {
                "tool": record.tool,
                "source_name": main.source_name,
                "source_hash": main.source_hash,
                "source_bytes": main.source_bytes,
                "opset": main.opset,
                "dims": main.dims,
                "fixed_inputs": main.fixed_inputs,
                "fixed_values": main.fixed_values,
                "bound": main.bound,
                "properties": main.properties,
            },
        }));
    }
    out.line(format!("{}: a base of {}", base.path().display(), bytes(base.file_len())));
    out.line(format!("fingerprint {}", base.fingerprint()));
    if verify {
        out.line("every section equals its hash");
    }
    out.line(format!("packed by {}", record.tool));
    for (name, graph) in base.graphs().zip(&record.graphs) {
        out.line(format!(
            "graph '{name}' from {} ({}, opset {}, blake3 {})",
            graph.source_name,
            bytes(graph.source_bytes),
            graph.opset,
            graph.source_hash.get(..12).unwrap_or(&graph.source_hash)
        ));
        for (title, specs) in [("inputs", &graph.inputs), ("outputs", &graph.outputs)] {
            let rows: Vec<Vec<String>> = specs.iter().map(io_row).collect();
            block(out, title, &rows);
        }
        for bound in &graph.bound {
            out.line(format!("  bound {}={}: {}", bound.name, bound.to, bound.why));
        }
    }
    if let Some(image) = &preprocess.image {
        let [h, w] = image.size;
        let fit = match image.fit {
            Fit::Stretch => String::new(),
            Fit::Line => "lines of text in their proportions within ".into(),
            Fit::Exact([h, w]) => format!("the middle of {h} x {w}, "),
            Fit::Shortest(side) => format!("the middle of those with a shorter side of {side}, "),
        };
        out.line(format!("pictures {h} x {w}, {fit}mean {:?}, std {:?}", image.mean, image.std));
    }
    if let Some(audio) = base.audio()? {
        out.line(super::audio::describe(&audio));
    }
    if base.tokenizer()?.is_some() {
        let most = preprocess.max_tokens.map_or(String::new(), |n| format!(", at most {n} tokens"));
        out.line(format!("sentences by its own tokenizer{most}"));
    }
    for (name, text) in base.texts()? {
        out.line(format!("keeps {name}, {}", bytes(text.len() as u64)));
    }
    if let Some(alphabet) = alphabet(base) {
        out.line(alphabet);
    } else if !preprocess.labels.is_empty() {
        let of_tokens = if preprocess.problem == Some(Problem::Tokens) { " of tokens" } else { "" };
        out.line(format!("{} labels{of_tokens}", preprocess.labels.len()));
    }
    let rows: Vec<Vec<String>> = base
        .targets()
        .iter()
        .enumerate()
        .map(|(i, t)| {
            let scheme = base.weight_spec(t.weight as usize).map_or("", |s| s.scheme.name());
            let error =
                error_of(i).map_or(String::new(), |e| format!("{:.3} %", e.relative * 100.));
            let shape = format!("{} -> {}", t.in_features, t.out_features);
            vec![t.module_path.clone(), kind_text(t.kind), shape, scheme.into(), error]
        })
        .collect();
    block(out, &format!("{} targets (scheme, quantization error)", rows.len()), &rows);
    let row = |s: &SectionInfo| vec![s.name.clone(), bytes(s.len), format!("at {}", s.offset)];
    block(out, "sections", &base.sections().iter().map(row).collect::<Vec<_>>());
    Ok(())
}

fn io_row(spec: &IoSpec) -> Vec<String> {
    let role = match spec.role {
        Role::Other => String::new(),
        Role::State(n) => format!("state {n}"),
        role => role.name().into(),
    };
    vec![spec.name.clone(), spec.dtype.name().into(), dims(&spec.dims), role]
}

/// Says what an adapter is.
pub fn adapter(adapter: &Adapter, path: &Path, out: &Out) -> Result<()> {
    let size = open_regular(path, u64::MAX)?.len;
    let d = adapter.describe();
    if out.json() {
        return out
            .document(&json!({"kind": "adapter", "file": path, "bytes": size, "adapter": d}));
    }
    let ranks: Vec<String> = d.ranks.iter().map(u32::to_string).collect();
    out.line(format!("{}: adapter '{}', {}", path.display(), d.name, bytes(size)));
    out.line(format!(
        "{}{} on {} targets, {} trained values",
        if d.kinds.is_empty() { "no change".into() } else { d.kinds.join(", ") },
        if ranks.is_empty() { String::new() } else { format!(" of rank {}", ranks.join(", ")) },
        d.targets.len(),
        count(d.parameters)
    ));
    out.line(format!("base {}", d.base.as_deref().unwrap_or("not stated")));
    for head in &d.heads {
        out.line(format!(
            "head '{}' for {} on '{}' (pool {}): {}",
            head.name,
            head.task,
            head.output,
            head.pool.name(),
            head.labels.join(", ")
        ));
    }
    if let Some(t) = &d.training {
        out.line(format!(
            "trained by {}: {} samples, {} steps, rate {}, seed {}, loss {:.4}",
            t.tool, t.samples, t.steps, t.learning_rate, t.seed, t.final_loss
        ));
        for (name, after) in &t.after {
            let before = t.before.iter().find(|(n, _)| n == name).map(|(_, v)| format!("{v:.4}"));
            let before = before.unwrap_or_else(|| "unknown".into());
            // Not of the hold-out, and all of it before.
            match name.as_str() {
                "kept" => out.line(format!("  knowledge kept: {:.1} %", after * 100.0)),
                _ => out.line(format!("  hold-out {name}: {before} before, {after:.4} after")),
            }
        }
    }
    for probe in &d.probes {
        out.line(format!(
            "moves output '{}' by {:.4} on a stored probe",
            probe.output, probe.effect
        ));
    }
    let rows: Vec<Vec<String>> = d
        .targets
        .iter()
        .map(|t| {
            let side = |n: Option<usize>| n.map_or("any".into(), |n| n.to_string());
            let (ranked, norm) = (t.kind.is_ranked(), t.norm);
            vec![
                t.module_path.clone(),
                t.kind.name().into(),
                if ranked { format!("rank {}", t.rank) } else { String::new() },
                if ranked { format!("scaling {}", t.scaling) } else { String::new() },
                format!("{} -> {}", side(t.in_features), side(t.out_features)),
                norm.map_or(String::new(), |norm| format!("norm {norm:.4}")),
            ]
        })
        .collect();
    block(out, "targets", &rows);
    Ok(())
}

#[cfg(feature = "import")]
fn onnx(summary: &OnnxSummary, path: &Path, out: &Out) -> Result<()> {
    if out.json() {
        return out.document(&json!({"kind": "onnx", "file": path, "onnx": summary}));
    }
    out.line(format!(
        "{}: ONNX, {}, opset {}, blake3 {}",
        path.display(),
        bytes(summary.bytes),
        summary.opset,
        summary.hash.get(..12).unwrap_or(&summary.hash)
    ));
    for (title, ios) in [("inputs", &summary.inputs), ("outputs", &summary.outputs)] {
        let rows: Vec<Vec<String>> =
            ios.iter().map(|io| vec![io.name.clone(), dims(&io.dims)]).collect();
        block(out, title, &rows);
    }
    if !summary.free_dims.is_empty() {
        out.line(format!("free dimensions (--dim NAME=N): {}", summary.free_dims.join(", ")));
    }
    let row = |t: &TargetLine| {
        let shape = format!("{} -> {}", t.in_features, t.out_features);
        vec![t.module_path.clone(), t.kind.clone(), shape]
    };
    let rows: Vec<Vec<String>> = summary.targets.iter().map(row).collect();
    block(out, &format!("{} targets", summary.target_count), &rows);
    let others: Vec<String> =
        summary.operations.iter().map(|(name, n)| format!("{n} {name}")).collect();
    out.line(format!("other operations: {}", others.join(", ")));
    Ok(())
}

fn block(out: &Out, title: &str, rows: &[Vec<String>]) {
    if !rows.is_empty() {
        out.line(format!("{title}:"));
        table(rows).iter().for_each(|line| out.line(line));
    }
}
