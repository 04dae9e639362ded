//! The import worker: this program called by itself, with limits, to read an ONNX file. Files from
//! strangers make parsers panic, hang and overflow their stacks.

use super::onnx::{self, OnnxSummary};
use crate::error::{Error, Result};
use crate::fs::{open_regular, read_limited, read_text};
use crate::import::{ImportOptions, InputSpec, Stage};
use crate::import::{Limits, enter_worker, run_limited, run_worker};
use crate::limits;
use crate::pack::ImageSpec;
use crate::quant::Scheme;
use crate::runtime::PackOptions;
use crate::shape::DType;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The hidden first argument.
const VERB: &str = "import-worker";
/// Words of a worker's command line, the program's name included.
const WORDS: usize = 8;

/// What the worker is to do, paths apart (they need not be UTF-8).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Scheme of the weights.
    pub scheme: Scheme,
    /// `--dim`.
    pub dims: Vec<(String, i64)>,
    /// `--input`: name, dimensions (a number or a free name), element type.
    pub inputs: Vec<(String, Vec<Dim>, Option<DType>)>,
    /// `--const`.
    pub consts: Vec<(String, String)>,
    /// `--image` and what belongs to it.
    pub image: Option<ImageSpec>,
    /// `--max-tokens`.
    pub max_tokens: Option<u32>,
}

/// One dimension of an input.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// A fixed size.
    Size(i64),
    /// A free one.
    Name(String),
}

impl Request {
    /// Of the import options and defaults.
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
            max_tokens: None,
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
}

/// The files that a worker reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// The ONNX file.
    pub source: &'a Path,
    /// Where the base goes; `None`: nothing is packed, only looked at.
    pub out: Option<&'a Path>,
    /// tokenizer.json.
    pub tokenizer: Option<&'a Path>,
    /// Labels, one a line.
    pub labels: Option<&'a Path>,
}

/// Has a worker do `request`: packs, or gives back what is in the ONNX file. `heard` gets how far it
/// has come.
///
/// # Errors
/// The worker's own; unsupported if it died, hung or grew past its limits.
pub fn call(
    request: &Request,
    files: Files<'_>,
    heard: &mut dyn FnMut(Stage),
) -> Result<Option<OnnxSummary>> {
    // Before a process is made; a FIFO must not be waited for.
    let len = open_regular(files.source, limits::ONNX)?.len;
    let limits = limits(len, files.out.is_some());
    let program = std::env::current_exe()
        .map_err(|e| Error::failed(format!("this program's own file can't be found: {e}")))?;
    let request = serde_json::to_string(request)
        .map_err(|e| Error::failed(format!("the request to the import worker: {e}")))?;
    let path = |p: Option<&Path>| p.map_or(OsString::new(), |p| p.as_os_str().to_owned());
    let mut command = Command::new(program);
    command.arg(VERB).arg(limits.to_argument()).arg(request).arg(files.source);
    command.args([path(files.out), path(files.tokenizer), path(files.labels)]);
    // Else tract's errors come with a stack trace in their text.
    command.env_remove("RUST_BACKTRACE").env("RUST_LIB_BACKTRACE", "0");
    let output = run_limited(command, &limits, files.source, heard)?;
    if files.out.is_some() {
        return Ok(None);
    }
    serde_json::from_slice(&output.stdout)
        .map(Some)
        .map_err(|e| Error::failed(format!("the import worker's answer can't be read: {e}")))
}

/// 2 GiB of address space or twelve times the file, 64 MiB of stack; two minutes of CPU time to
/// look at a file, twenty to pack it (it runs the network some dozens of times: EfficientNet-Lite0
/// takes a minute on an emulated Cortex-A76), and more for large files: one second for each 100 KiB.
fn limits(file: u64, packing: bool) -> Limits {
    let minutes = if packing { 20 } else { 2 };
    let seconds = minutes * 60 + file / (100 << 10);
    Limits {
        memory_bytes: (2u64 << 30).max(file.saturating_mul(12)),
        stack_bytes: 64 << 20,
        cpu_seconds: seconds,
        // More than the CPU time: other work may be going on.
        deadline: Duration::from_secs(seconds + seconds / 2),
    }
}

/// Whether this process is a worker.
pub fn is_call(arguments: &[OsString]) -> bool {
    arguments.len() == WORDS && arguments.get(1).is_some_and(|a| a == VERB)
}

/// The worker's own side: `arguments` are those of the process. Returns the exit code.
pub fn main(arguments: &[OsString]) -> u8 {
    run_worker(|| {
        let [_, _, limits, request, source, out, tokenizer, labels] = arguments else {
            return Err(Error::usage(format!("'{VERB}' is for the program's own use")));
        };
        enter_worker(&text(limits)?)?;
        let request: Request = serde_json::from_str(&text(request)?)
            .map_err(|e| Error::usage(format!("the request to the import worker: {e}")))?;
        let path = |p: &OsStr| (!p.is_empty()).then(|| PathBuf::from(p));
        let source = Path::new(source);
        let Some(out) = path(out) else {
            let summary = onnx::summary(source, &request.import())?;
            return serde_json::to_string(&summary)
                .map_err(|e| Error::failed(format!("the summary can't be written: {e}")));
        };
        let tokenizer = path(tokenizer).map(|p| read_limited(&p, limits::TOKENIZER)).transpose()?;
        let options = PackOptions {
            scheme: request.scheme,
            import: request.import(),
            tokenizer,
            image: request.image.clone(),
            labels: path(labels).map(|p| read_labels(&p)).transpose()?.unwrap_or_default(),
            max_tokens: request.max_tokens,
            ..PackOptions::default()
        };
        crate::runtime::pack(source, &out, &options)?;
        Ok(String::new())
    })
}

fn text(word: &OsStr) -> Result<String> {
    let text = word.to_str().ok_or_else(|| Error::usage("an argument is not UTF-8"))?;
    Ok(text.to_string())
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
