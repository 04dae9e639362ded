//! Packing in a child process with limits: files from strangers make parsers panic, hang and overflow
//! their stacks.
//!
//! The child is a program whose `main` begins with [`sandbox_main`]: `offshoot` itself, or any other.

use super::alphabet::Alphabet;
use super::export::ExportFolder;
use super::packing::{GraphSource, PackOptions, pack_graphs};
use super::summary::{self, OnnxSummary};
use crate::error::{Error, Result};
use crate::fs::{Staged, open_regular, read_limited, read_text, remove_stale_temps};
use crate::host::Root;
use crate::import::{ImportOptions, InputSpec, Limits, Stage};
use crate::import::{confine, enter_worker, run_limited, run_worker};
use crate::limits;
use crate::pack::{AudioSpec, Base, ImageSpec, Role};
use crate::quant::Scheme;
use crate::shape::DType;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The hidden first argument.
const VERB: &str = "import-worker";
/// Words of a worker's command line, the program's name included, without further graphs.
const WORDS: usize = 8;

/// What the worker is to do, paths apart (they need not be UTF-8).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Scheme of the weights.
    pub scheme: Scheme,
    dims: Vec<(String, i64)>,
    inputs: Vec<(String, Vec<Dim>, Option<DType>)>,
    consts: Vec<(String, String)>,
    /// How pictures are prepared, before what an export folder says.
    pub image: Option<ImageSpec>,
    /// How sound is prepared, before what an export folder says.
    pub audio: Option<AudioSpec>,
    /// Longest token sequence, before what an export folder says.
    pub max_tokens: Option<u32>,
    /// Whether [`Files::labels`] are the symbols of an output that spells texts.
    pub spells: bool,
    /// The blank among them: as `PackOptions` has it.
    pub blank: Option<String>,
    /// What inputs and outputs stand for, by name.
    pub roles: Vec<(String, Role)>,
    /// Whether to pack what runs on no made-up input.
    pub untried: bool,
    /// Names of the further graphs, in the order of [`Files::graphs`].
    pub graphs: Vec<String>,
}

/// One dimension of an input.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Dim {
    /// A fixed size.
    Size(i64),
    /// A free one.
    Name(String),
}

impl Request {
    /// Of the import options and defaults. Options are for the main graph; those whose name begins
    /// with another graph's and a colon (`step:batch`) are for that one.
    pub fn of(scheme: Scheme, import: &ImportOptions) -> Request {
        let inputs = import.inputs.iter().map(|spec| {
            let dims = spec.dims.iter().map(|d| match d {
                Ok(size) => Dim::Size(*size),
                Err(name) => Dim::Name(name.clone()),
            });
            (spec.name.clone(), dims.collect(), spec.dtype)
        });
        Request {
            scheme,
            dims: import.dims.clone(),
            inputs: inputs.collect(),
            consts: import.consts.clone(),
            image: None,
            audio: None,
            max_tokens: None,
            spells: false,
            blank: None,
            roles: vec![],
            untried: false,
            graphs: vec![],
        }
    }

    fn import(&self) -> ImportOptions {
        let inputs = self.inputs.iter().map(|(name, dims, dtype)| InputSpec {
            name: name.clone(),
            dims: dims
                .iter()
                .map(|d| match d {
                    Dim::Size(size) => Ok(*size),
                    Dim::Name(name) => Err(name.clone()),
                })
                .collect(),
            dtype: *dtype,
        });
        ImportOptions {
            dims: self.dims.clone(),
            inputs: inputs.collect(),
            consts: self.consts.clone(),
        }
    }

    /// Gives every graph its own of the options.
    fn share(&self, graphs: &mut [GraphSource]) {
        let names: Vec<String> = graphs.iter().map(|g| format!("{}:", g.name)).collect();
        let own = |name: &str| -> (usize, String) {
            let found = names
                .iter()
                .enumerate()
                .find_map(|(i, prefix)| Some((i, name.strip_prefix(prefix.as_str())?.to_string())));
            found.unwrap_or((0, name.to_string()))
        };
        let ImportOptions { dims, inputs, consts } = self.import();
        for (name, value) in dims {
            let (at, name) = own(&name);
            graphs[at].import.dims.push((name, value));
        }
        for spec in inputs {
            let (at, name) = own(&spec.name);
            graphs[at].import.inputs.push(InputSpec { name, ..spec });
        }
        for (name, value) in consts {
            let (at, name) = own(&name);
            graphs[at].import.consts.push((name, value));
        }
    }
}

/// The files that a worker reads.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// The ONNX file, or an export folder.
    pub source: &'a Path,
    /// Further graphs of the base; [`Request::graphs`] names them.
    pub graphs: &'a [PathBuf],
    /// tokenizer.json, before an export folder's.
    pub tokenizer: Option<&'a Path>,
    /// Labels, one a line, before an export folder's; or an alphabet ([`Request::spells`]).
    pub labels: Option<&'a Path>,
}

impl<'a> Files<'a> {
    /// A file or folder alone.
    pub fn of(source: &'a Path) -> Files<'a> {
        Files { source, graphs: &[], tokenizer: None, labels: None }
    }

    /// The graphs, and what the export folder holds besides.
    fn sources(&self, names: &[String]) -> Result<(Vec<GraphSource>, ExportFolder)> {
        let mut export = ExportFolder::default();
        let source = |name: &str, path: &Path| GraphSource {
            name: name.into(),
            path: path.into(),
            import: ImportOptions::default(),
        };
        let mut graphs = match self.source.is_dir() {
            false => vec![source("main", self.source)],
            true => {
                export = ExportFolder::read(self.source)?;
                std::mem::take(&mut export.graphs)
            }
        };
        for (name, path) in names.iter().zip(self.graphs) {
            if graphs.iter().any(|g| g.name == *name) {
                return Err(Error::usage(format!("--graph: there are two graphs '{name}'")));
            }
            graphs.push(source(name, path));
        }
        Ok((graphs, export))
    }
}

/// A base that was packed and looked over.
pub struct PackedBase {
    /// The base, open.
    pub base: Base,
    /// What was found in an export folder, a line each.
    pub found: Vec<String>,
}

/// Reads ONNX files in a child process.
#[derive(Clone, Debug)]
pub struct Sandbox {
    program: PathBuf,
}

impl Sandbox {
    /// The child is this very program. Its `main` must begin with [`sandbox_main`].
    ///
    /// # Errors
    /// The program's own file can't be found (failed).
    pub fn this_program() -> Result<Sandbox> {
        let program = std::env::current_exe()
            .map_err(|e| Error::failed(format!("this program's own file can't be found: {e}")))?;
        Ok(Sandbox { program })
    }

    /// The child is this program: an installed `offshoot` of the same version, for example.
    pub fn of(program: impl Into<PathBuf>) -> Sandbox {
        Sandbox { program: program.into() }
    }

    /// Packs into a hidden file beside `out`, looks it over and puts it in its place. On any error
    /// `out` stays as it was. `heard` gets how far the work has come.
    ///
    /// # Errors
    /// Those of [`pack`](super::pack); unsupported if the child died, hung or grew past its limits.
    pub fn pack(
        &self,
        request: &Request,
        files: Files<'_>,
        out: &Path,
        heard: &mut dyn FnMut(Stage),
    ) -> Result<PackedBase> {
        let (graphs, export) = files.sources(&request.graphs)?;
        let mut bytes = 0;
        for (at, graph) in graphs.iter().enumerate() {
            // Before a process is made; a FIFO must not be waited for.
            let len = open_regular(&graph.path, limits::ONNX)?.len;
            if !graphs.iter().take(at).any(|g| g.path == graph.path) {
                bytes += len;
            }
        }
        let staged = Staged::beside(out)?;
        let result = self.call(request, files, Some(staged.path()), bytes, heard);
        if result.is_err() {
            // What a killed worker was writing; its own error matters more than this one's.
            let _ = remove_stale_temps(staged.folder());
        }
        result?;
        // The worker reads files from strangers: what it made is checked like any other file.
        Base::open(staged.path())?.verify()?;
        staged.put(out)?;
        Ok(PackedBase { base: Base::open(out)?, found: export.found })
    }

    /// What is in an ONNX file.
    ///
    /// # Errors
    /// As [`Sandbox::pack`].
    pub fn summary(
        &self,
        source: &Path,
        import: &ImportOptions,
        heard: &mut dyn FnMut(Stage),
    ) -> Result<OnnxSummary> {
        let len = open_regular(source, limits::ONNX)?.len;
        let request = Request::of(Scheme::Q8, import);
        let stdout = self.call(&request, Files::of(source), None, len, heard)?;
        serde_json::from_slice(&stdout)
            .map_err(|e| Error::failed(format!("the import worker's answer can't be read: {e}")))
    }

    fn call(
        &self,
        request: &Request,
        files: Files<'_>,
        out: Option<&Path>,
        bytes: u64,
        heard: &mut dyn FnMut(Stage),
    ) -> Result<Vec<u8>> {
        let limits = limits_for(bytes, out.is_some());
        let request = serde_json::to_string(request)
            .map_err(|e| Error::failed(format!("the request to the import worker: {e}")))?;
        let path = |p: Option<&Path>| p.map_or(OsString::new(), |p| p.as_os_str().to_owned());
        let mut command = Command::new(&self.program);
        command.arg(VERB).arg(limits.argument()).arg(request).arg(files.source);
        command.args([path(out), path(files.tokenizer), path(files.labels)]);
        command.args(files.graphs);
        // Else tract's errors come with a stack trace in their text.
        command.env_remove("RUST_BACKTRACE").env("RUST_LIB_BACKTRACE", "0");
        Ok(run_limited(command, &limits, files.source, heard)?.stdout)
    }
}

/// 2 GiB of address space or twelve times the files, but no more than three quarters of what the board or
/// its control group has, and 64 MiB of stack; two minutes of CPU time, and one second for each 100 KiB of
/// the files to look at them, for each 10 KiB to pack them (it runs the network some dozens of times:
/// EfficientNet-Lite0, 18 MB, takes a minute on an emulated Cortex-A76). Of that eight seconds until the
/// graph is built, and one for each 32 KiB. `OFFSHOOT_IMPORT_SECONDS` says more for both.
fn limits_for(bytes: u64, packing: bool) -> Limits {
    let asked = asked_seconds();
    let size = if packing { 10 << 10 } else { 100 << 10 };
    let seconds = (120 + bytes / size).max(asked.unwrap_or(0));
    let wanted = (2u64 << 30).max(bytes.saturating_mul(12));
    let memory = crate::host::memory(&Root::system());
    let all = memory.total.map(|total| total.saturating_add(memory.swap.unwrap_or(0)));
    let most = all.into_iter().chain(memory.limit).min().map_or(u64::MAX, |all| all / 4 * 3);
    Limits {
        memory_bytes: wanted.min(most.max(LEAST_MEMORY)),
        stack_bytes: 64 << 20,
        cpu_seconds: seconds,
        building_seconds: asked.unwrap_or(8 + bytes / (32 << 10)),
        // More than the CPU time: other work may be going on.
        deadline: Duration::from_secs(seconds + seconds / 2),
    }
}

/// Of address space: the program itself and its stacks take a part of it.
const LEAST_MEMORY: u64 = 192 << 20;

/// What a slow machine may need.
fn asked_seconds() -> Option<u64> {
    std::env::var("OFFSHOOT_IMPORT_SECONDS").ok()?.parse().ok()
}

/// For the beginning of `main`: where this process is a [`Sandbox`]'s child, does its work and gives
/// the exit code to end with; else nothing.
pub fn sandbox_main() -> Option<u8> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let called = arguments.len() >= WORDS && arguments.get(1).is_some_and(|a| a == VERB);
    called.then(|| run_worker(|| work(&arguments)))
}

/// The worker's own side: `arguments` are those of the process.
fn work(arguments: &[OsString]) -> Result<String> {
    let [_, _, limits, request, source, out, tokenizer, labels, graphs @ ..] = arguments else {
        return Err(Error::usage(format!("'{VERB}' is for the program's own use")));
    };
    enter_worker(&text(limits)?)?;
    let request: Request = serde_json::from_str(&text(request)?)
        .map_err(|e| Error::usage(format!("the request to the import worker: {e}")))?;
    let path = |p: &OsStr| (!p.is_empty()).then(|| PathBuf::from(p));
    let source = Path::new(source);
    let named = [Some(source.to_path_buf()), path(tokenizer), path(labels)];
    let named = named.into_iter().flatten();
    let given: Vec<PathBuf> = named.chain(graphs.iter().map(PathBuf::from)).collect();
    // The limits hold without it; where a system has Landlock and denies it, nothing is gained by an end.
    let _ = confine(&given, path(out).as_deref());
    let Some(out) = path(out) else {
        let summary = summary::summary(source, &request.import())?;
        return serde_json::to_string(&summary)
            .map_err(|e| Error::failed(format!("the summary can't be written: {e}")));
    };
    let further: Vec<PathBuf> = graphs.iter().map(PathBuf::from).collect();
    let files = Files { graphs: &further, ..Files::of(source) };
    let (mut graphs, export) = files.sources(&request.graphs)?;
    request.share(&mut graphs);
    let tokenizer = path(tokenizer).or(export.tokenizer);
    let labels = path(labels);
    let alphabet = labels.as_deref().filter(|_| request.spells).map(read_alphabet).transpose()?;
    let labels = labels.filter(|_| !request.spells).map(|p| read_labels(&p)).transpose()?;
    let named = labels.is_some();
    let options = PackOptions {
        scheme: request.scheme,
        tokenizer: tokenizer.map(|p| read_limited(&p, limits::TOKENIZER)).transpose()?,
        image: request.image.clone().or(export.image),
        audio: request.audio.clone().or(export.audio),
        problem: export.problem.filter(|_| labels.is_none()),
        alphabet: alphabet.or(export.alphabet.filter(|_| !named)),
        blank: request.blank.clone(),
        labels: labels.unwrap_or(export.labels),
        max_tokens: request.max_tokens.or(export.max_tokens),
        roles: request.roles.clone(),
        texts: export.texts,
        untried: request.untried,
        ..PackOptions::default()
    };
    pack_graphs(&graphs, &out, &options)?;
    Ok(String::new())
}

fn text(word: &OsStr) -> Result<String> {
    let text = word.to_str().ok_or_else(|| Error::usage("an argument is not UTF-8"))?;
    Ok(text.to_string())
}

fn read_alphabet(path: &Path) -> Result<Alphabet> {
    let text = read_text(path, limits::LABELS)?;
    Alphabet::parse(&text).map_err(|e| e.at(format_args!("'{}'", path.display())))
}

/// One label a line; empty lines at the end are dropped.
fn read_labels(path: &Path) -> Result<Vec<String>> {
    let text = read_text(path, limits::LABELS)?;
    let labels: Vec<String> = text.trim_end().lines().map(|l| l.trim().to_string()).collect();
    match labels.iter().position(String::is_empty) {
        Some(at) => {
            Err(Error::bad_input(format!("'{}': line {} is empty", path.display(), at + 1)))
        }
        None => Ok(labels),
    }
}
