//! `offshoot pack`.

use super::audio;
use super::inspect::alphabet;
use super::output::{Out, bytes, count, table};
use super::stages::Stages;
use crate::error::{Error, Result};
use crate::import::{ImportOptions, InputSpec};
use crate::pack::{AudioSpec, Base, Bound, Fit, ImageSpec, Role, TargetError};
use crate::quant::Scheme;
use crate::runtime::{Files, Request, Sandbox};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Targets whose error is printed.
const WORST: usize = 5;

/// `offshoot pack`'s arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The ONNX file, or an export folder as optimum writes it
    model: PathBuf,
    /// A further graph of the same base: step=model_with_past.onnx
    #[arg(long = "graph", value_name = "NAME=FILE", value_parser = graph)]
    graphs: Vec<(String, PathBuf)>,
    /// What an input or output stands for: x=ids, y=logits
    #[arg(long = "role", value_name = "NAME=ROLE", value_parser = role)]
    roles: Vec<(String, Role)>,
    /// Pack what runs on no made-up input
    #[arg(long)]
    untried: bool,
    /// The base file to write
    #[arg(short, long, value_name = "BASE")]
    out: PathBuf,
    /// How weights are stored: q8, q4, f16 or f32
    #[arg(long, value_name = "SCHEME", default_value = "q8", value_parser = scheme)]
    weights: Scheme,
    #[command(flatten)]
    import: ImportArgs,
    /// tokenizer.json, for models that take sentences
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Longest token sequence (default: the rows of the position table)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// Picture size, for models that take pictures: SIZE or HEIGHTxWIDTH
    #[arg(long, value_name = "SIZE", value_parser = size)]
    image: Option<[u32; 2]>,
    /// Mean of red, green and blue (of 0 to 1) [default: ImageNet's]
    #[arg(long, value_name = "R,G,B", value_parser = triple, requires = "image")]
    mean: Option<[f32; 3]>,
    /// Standard deviation of red, green and blue [default: ImageNet's]
    #[arg(long, value_name = "R,G,B", value_parser = triple, requires = "image")]
    std: Option<[f32; 3]>,
    /// Pictures are lines of text: to their height in their proportions, zeros at the right
    #[arg(long, requires = "image")]
    line: bool,
    /// Pictures are given as height x width x 3, not 3 x height x width
    #[arg(long, requires = "image")]
    channels_last: bool,
    /// What a model that takes sound hears: whisper, kaldi, ast, librosa, resemblyzer, wav2vec2 or
    /// samples, and what differs from it: kaldi,mels=40,seconds=2 (docs/AUDIO.md has all)
    #[arg(long, value_name = "FRONT[,KEY=VALUE]", value_parser = audio::parse, conflicts_with = "image")]
    audio: Option<AudioSpec>,
    /// Names of the model's own classes, one a line
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Symbols of a model that spells texts (CTC), in the order of its output's columns: one a line,
    /// tokens.txt or vocab.json [default: the model's metadata 'character', an export folder's vocab.json]
    #[arg(long, value_name = "FILE", conflicts_with = "labels")]
    alphabet: Option<PathBuf>,
    /// Which of its columns is the blank: first, last or a symbol's name [default: the one so named]
    #[arg(long, value_name = "WHICH", conflicts_with = "labels")]
    blank: Option<String>,
}

/// What is fixed of an ONNX file.
#[derive(clap::Args)]
pub struct ImportArgs {
    /// Bind a free dimension: batch=1, of a further graph: step:batch=1
    #[arg(long = "dim", value_name = "NAME=N", value_parser = dim)]
    dims: Vec<(String, i64)>,
    /// An input's shape and type: x=1x3x48x320,f32; names in it stay free
    #[arg(long = "input", value_name = "NAME=SHAPE", value_parser = input)]
    inputs: Vec<InputSpec>,
    /// Make an input constant: sr=16000, or with several values size=64,64
    #[arg(long = "const", value_name = "NAME=VALUE", value_parser = constant)]
    consts: Vec<(String, String)>,
}

impl ImportArgs {
    /// As the importer takes them.
    pub fn options(&self) -> ImportOptions {
        ImportOptions {
            dims: self.dims.clone(),
            inputs: self.inputs.clone(),
            consts: self.consts.clone(),
        }
    }
}

/// What a pack made.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The base file.
    pub out: PathBuf,
    /// Its fingerprint.
    pub fingerprint: String,
    /// Length of the ONNX file.
    pub source_bytes: u64,
    /// Length of the base file.
    pub base_bytes: u64,
    /// What was found in an export folder.
    pub found: Vec<String>,
    /// The graphs, the main one first.
    pub graphs: Vec<String>,
    /// Number of layers that can carry an adapter.
    pub targets: usize,
    /// What the importer fixed without being asked.
    pub bound: Vec<Bound>,
    /// What texts are spelled with, in words, where the base spells some.
    pub alphabet: Option<String>,
    /// Weights per scheme.
    pub schemes: BTreeMap<&'static str, usize>,
    /// Mean of the targets' relative errors.
    pub mean_error: f32,
    /// The targets with the greatest relative errors, greatest first.
    pub worst: Vec<ErrorLine>,
    /// Seconds it took.
    pub seconds: f64,
}

/// Quantization error of one target.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorLine {
    /// The target.
    pub module_path: String,
    /// Its weight's scheme.
    pub scheme: &'static str,
    /// Norm of the difference over that of the original.
    pub relative: f32,
    /// Largest absolute difference.
    pub max_abs: f32,
}

/// Packs and prints the report.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    let mut request = Request::of(args.weights, &args.import.options());
    request.max_tokens = args.max_tokens;
    request.image = args.image.map(|size| ImageSpec {
        size,
        mean: args.mean.unwrap_or(ImageSpec::default().mean),
        std: args.std.unwrap_or(ImageSpec::default().std),
        fit: if args.line { Fit::Line } else { Fit::Stretch },
        channels_first: !args.channels_last,
        ..ImageSpec::default()
    });
    request.audio = args.audio.clone();
    request.roles = args.roles.clone();
    request.untried = args.untried;
    (request.spells, request.blank) = (args.alphabet.is_some(), args.blank.clone());
    let (names, graphs): (Vec<String>, Vec<PathBuf>) = args.graphs.iter().cloned().unzip();
    request.graphs = names;
    let files = Files {
        source: &args.model,
        graphs: &graphs,
        tokenizer: args.tokenizer.as_deref(),
        labels: args.labels.as_deref().or(args.alphabet.as_deref()),
    };
    let report = pack(&request, files, &args.out, out.json())?;
    report.found.iter().for_each(|line| out.line(line));
    out.line(format!(
        "{}: {}, {} targets, from {} of ONNX in {:.1} s",
        args.out.display(),
        bytes(report.base_bytes),
        report.targets,
        bytes(report.source_bytes),
        report.seconds
    ));
    for bound in &report.bound {
        let (name, to, why) = (&bound.name, &bound.to, &bound.why);
        out.line(format!("bound {name}={to}: {why} (--dim, --input or --const chooses)"));
    }
    if let Some(alphabet) = &report.alphabet {
        out.line(alphabet);
    }
    out.line(format!("fingerprint {}", report.fingerprint));
    let schemes: Vec<String> =
        report.schemes.iter().map(|(name, n)| format!("{} {name}", count(*n as u64))).collect();
    out.line(format!("weights: {}", schemes.join(", ")));
    if report.worst.iter().all(|e| e.max_abs == 0.0) {
        out.line("quantization error: none, every weight is kept as it was");
    } else {
        out.line(format!(
            "quantization error: mean {:.3} %, greatest in",
            report.mean_error * 100.0
        ));
        error_table(&report.worst).iter().for_each(|line| out.line(line));
    }
    out.document(&report)
}

/// Has a child process pack. On a terminal it shows how far it has come, but not if `quiet`.
pub fn pack(request: &Request, files: Files<'_>, out: &Path, quiet: bool) -> Result<Report> {
    let start = Instant::now();
    let bar = Stages::new(files.source, quiet);
    let packed = Sandbox::this_program()?.pack(request, files, out, &mut |s| bar.show(&s));
    drop(bar);
    let packed = packed?;
    Ok(Report { found: packed.found, ..report(&packed.base, out, start) })
}

fn report(base: &Base, out: &Path, start: Instant) -> Report {
    let errors = &base.record().errors;
    let mut schemes = BTreeMap::new();
    for i in 0..base.weight_count() {
        if let Some(spec) = base.weight_spec(i) {
            *schemes.entry(spec.scheme.name()).or_insert(0) += 1;
        }
    }
    let mean = errors.iter().map(|e| e.relative).sum::<f32>() / errors.len().max(1) as f32;
    Report {
        out: out.to_path_buf(),
        fingerprint: base.fingerprint().to_string(),
        source_bytes: base.record().graphs.iter().map(|g| g.source_bytes).sum(),
        base_bytes: base.file_len(),
        found: vec![],
        graphs: base.graphs().map(str::to_string).collect(),
        targets: base.targets().len(),
        bound: base.record().graphs.iter().flat_map(|g| g.bound.clone()).collect(),
        alphabet: alphabet(base),
        schemes,
        mean_error: mean,
        worst: worst_errors(base, WORST),
        seconds: start.elapsed().as_secs_f64(),
    }
}

/// The `n` targets with the greatest relative errors.
pub fn worst_errors(base: &Base, n: usize) -> Vec<ErrorLine> {
    let mut errors: Vec<&TargetError> = base.record().errors.iter().collect();
    errors.sort_by(|a, b| b.relative.total_cmp(&a.relative).then(a.target.cmp(&b.target)));
    let name = |e: &TargetError| base.targets().get(e.target as usize).map(|t| &t.module_path);
    errors
        .into_iter()
        .take(n)
        .map(|e| ErrorLine {
            module_path: name(e).cloned().unwrap_or_default(),
            scheme: e.scheme.name(),
            relative: e.relative,
            max_abs: e.max_abs,
        })
        .collect()
}

/// Errors in columns.
fn error_table(errors: &[ErrorLine]) -> Vec<String> {
    let rows: Vec<Vec<String>> = errors
        .iter()
        .map(|e| {
            let relative = format!("{:.3} %", e.relative * 100.0);
            vec![e.module_path.clone(), e.scheme.into(), relative, format!("max {:.2e}", e.max_abs)]
        })
        .collect();
    table(&rows)
}

fn scheme(text: &str) -> Result<Scheme> {
    // q8 takes q8-64 where it does as well.
    let asked = Scheme::parse(text).filter(|s| *s != Scheme::Q8Wide);
    asked.ok_or_else(|| Error::usage("expected q8, q4, f16 or f32"))
}

fn graph(text: &str) -> Result<(String, PathBuf)> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.into(), file.into()))
        }
        _ => Err(Error::usage("expected NAME=FILE")),
    }
}

fn role(text: &str) -> Result<(String, Role)> {
    let pair = text.rsplit_once('=').and_then(|(name, role)| Some((name, Role::parse(role)?)));
    match pair {
        Some((name, role)) if !name.is_empty() => Ok((name.into(), role)),
        _ => Err(Error::usage(format!(
            "expected NAME=ROLE, of {}",
            Role::names().collect::<Vec<_>>().join(", ")
        ))),
    }
}

fn dim(text: &str) -> Result<(String, i64)> {
    let pair = text.rsplit_once('=').and_then(|(name, n)| Some((name, n.parse().ok()?)));
    match pair {
        Some((name, n)) if !name.is_empty() => Ok((name.to_string(), n)),
        _ => Err(Error::usage("expected NAME=NUMBER")),
    }
}

fn input(text: &str) -> Result<InputSpec> {
    InputSpec::parse(text)
}

fn constant(text: &str) -> Result<(String, String)> {
    match text.rsplit_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err(Error::usage("expected NAME=VALUE")),
    }
}

fn size(text: &str) -> Result<[u32; 2]> {
    let number = |t: &str| t.parse::<u32>().ok().filter(|n| (1..=16384).contains(n));
    let found = match text.split_once('x') {
        Some((h, w)) => number(h).zip(number(w)).map(|(h, w)| [h, w]),
        None => number(text).map(|n| [n, n]),
    };
    found.ok_or_else(|| Error::usage("expected SIZE or HEIGHTxWIDTH, 1 to 16384"))
}

fn triple(text: &str) -> Result<[f32; 3]> {
    let numbers: Option<Vec<f32>> =
        text.split(',').map(|t| t.trim().parse().ok().filter(|v: &f32| v.is_finite())).collect();
    let triple = numbers.and_then(|n| <[f32; 3]>::try_from(n).ok());
    triple.ok_or_else(|| Error::usage("expected three numbers: R,G,B"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_values() {
        assert_eq!(size("224").unwrap(), [224, 224]);
        assert_eq!(size("48x320").unwrap(), [48, 320]);
        assert!(["0", "x", "1x", "99999"].iter().all(|t| size(t).is_err()));
        assert_eq!(triple("0.5, 0.4,0.1").unwrap(), [0.5, 0.4, 0.1]);
        assert!(["1,2", "1,2,3,4", "a,b,c", "NaN,1,1"].iter().all(|t| triple(t).is_err()));
        assert_eq!(dim("batch=1").unwrap(), ("batch".into(), 1));
        assert!(["batch", "batch=", "=1"].iter().all(|t| dim(t).is_err()));
    }
}
