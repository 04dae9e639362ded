//! `pack`: ONNX files become a base.

use super::alphabet::Alphabet;
#[cfg(feature = "text")]
use super::inputs::DEFAULT_MAX_TOKENS;
use super::passages::Passages;
use super::pool::{Pool, Table};
use super::roles::Roles;
#[cfg(feature = "text")]
use super::text::TextEncoder;
use crate::adapter::{Target, TargetKind};
use crate::error::{Error, ErrorKind, Result};
use crate::fingerprint::BaseFingerprint;
use crate::graph::{FrozenWeights, decided, lower, tract_error, write_graph};
use crate::import::{ImportOptions, InputInfo, Prepared, prepare};
use crate::pack::{
    AudioSpec, BaseWriter, Bound, ConstType, Front, GraphRecord, ImageSpec, ImportRecord, IoSpec,
    Preprocess, Problem, Role,
};
use crate::quant::Scheme;
use crate::shape::DType;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
#[cfg(feature = "text")]
use std::time::{Duration, Instant};
use tract_core::internal::{DatumType, Tensor, TypedModel};
use tract_onnx::pb::{GraphProto, ModelProto};

/// How ONNX files are packed.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Scheme of the weights.
    pub scheme: Scheme,
    /// What is fixed of the main graph.
    pub import: ImportOptions,
    /// Bytes of tokenizer.json, for bases that take text.
    pub tokenizer: Option<Vec<u8>>,
    /// How pictures are prepared, for bases that take pictures.
    pub image: Option<ImageSpec>,
    /// How sound is prepared, for bases that take sound.
    pub audio: Option<AudioSpec>,
    /// Names of the base's own classes.
    pub labels: Vec<String>,
    /// The symbols of an output that spells texts.
    pub alphabet: Option<Alphabet>,
    /// Its blank, before what the alphabet or the model's metadata say: as [`Alphabet::blank`].
    pub blank: Option<String>,
    /// What the base's own scores say, where it is known.
    pub problem: Option<Problem>,
    /// Longest token sequence; found from the position table if not given.
    pub max_tokens: Option<u32>,
    /// What inputs and outputs stand for, by name, where it is not to be guessed.
    pub roles: Vec<(String, Role)>,
    /// Files that the base keeps as they are: name and contents.
    pub texts: Vec<(String, String)>,
    /// Whether to pack what runs on no made-up input.
    pub untried: bool,
}

impl Default for PackOptions {
    fn default() -> PackOptions {
        PackOptions {
            scheme: Scheme::Q8,
            import: ImportOptions::default(),
            tokenizer: None,
            image: None,
            audio: None,
            labels: vec![],
            alphabet: None,
            blank: None,
            problem: None,
            max_tokens: None,
            roles: vec![],
            texts: vec![],
            untried: false,
        }
    }
}

/// One graph of a base to be packed.
#[derive(Clone, Debug)]
pub struct GraphSource {
    /// Its name in the base: `main`, `step`, `encoder`, `decoder`.
    pub name: String,
    /// The ONNX file.
    pub path: PathBuf,
    /// What is fixed of it.
    pub import: ImportOptions,
}

/// Packs `source` into the base file `out`, atomically. Runs in the calling process: hostile files
/// can make it slow, large or abort; what comes from strangers is packed by a
/// [`Sandbox`](super::Sandbox).
///
/// # Errors
/// Bad or unsupported input, naming node and operation; I/O on writing.
pub fn pack(source: &Path, out: &Path, options: &PackOptions) -> Result<BaseFingerprint> {
    let (name, path) = ("main".to_string(), source.to_path_buf());
    pack_graphs(&[GraphSource { name, path, import: options.import.clone() }], out, options)
}

/// Packs several graphs into one base, their equal weights and constants once. The first is the
/// main graph; `options.import` is not used. See [`pack`].
pub fn pack_graphs(
    sources: &[GraphSource],
    out: &Path,
    options: &PackOptions,
) -> Result<BaseFingerprint> {
    let mut making = Making::default();
    for source in sources {
        let prepared = prepare(&source.path, &source.import, &decided)?;
        making.add(source, prepared, options).map_err(|e| match e.kind() {
            ErrorKind::Failed => e,
            _ => e.at(source.path.display()),
        })?;
    }
    making.write(out, options)
}

/// A base in the making.
#[derive(Default)]
struct Making {
    writer: BaseWriter,
    pool: Pool,
    roles: Roles,
    record: ImportRecord,
}

impl Making {
    fn add(
        &mut self,
        source: &GraphSource,
        mut prepared: Prepared,
        options: &PackOptions,
    ) -> Result<()> {
        let passages = Passages::new(options.tokenizer.as_deref(), &options.roles);
        let (scheme, untried) = (options.scheme, options.untried);
        let bound = self.pool.take(&mut prepared, &source.name, scheme, untried, &passages)?;
        let table = FrozenWeights::new(Table(self.pool.weights.clone()));
        let model = lower(&prepared.model, &table)?;
        let text = write_graph(&model)?;
        let mut inputs = io_specs(&model, &prepared.inputs, &text.inputs, true)?;
        let mut outputs = io_specs(&model, &prepared.outputs, &text.outputs, false)?;
        drop(model);
        self.roles.decide(&mut inputs, &mut outputs, &options.roles);
        if let (Some(audio), true) = (&options.audio, self.record.graphs.is_empty()) {
            hears(&mut inputs, audio)?;
        }
        let mut constants = vec![];
        for (name, tensor) in &text.constants {
            let (dtype, bytes) = const_bytes(name, tensor)?;
            let shape: Vec<u64> = tensor.shape().iter().map(|&d| d as u64).collect();
            constants.push((name.clone(), self.writer.constant(dtype, &shape, &bytes)?));
        }
        self.writer.graph(&source.name, &text.text, constants);
        let import = &source.import;
        self.record.graphs.push(GraphRecord {
            source_name: source.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            source_hash: prepared.source_hash,
            source_bytes: prepared.source_bytes,
            opset: prepared.opset.max(0) as u64,
            dims: import.dims.clone(),
            fixed_inputs: import
                .inputs
                .iter()
                .map(|spec| (spec.name.clone(), spec.to_string()))
                .collect(),
            fixed_values: import.consts.clone(),
            bound: bound
                .into_iter()
                .map(|b| Bound { name: b.name, to: b.to, why: b.why })
                .collect(),
            node_names: steady_names(text.node_names, &names_in(&prepared.model)),
            symbols: text.symbols,
            inputs,
            outputs,
            properties: prepared.properties,
        });
        Ok(())
    }

    fn write(self, out: &Path, options: &PackOptions) -> Result<BaseFingerprint> {
        let Making { mut writer, pool, roles, mut record } = self;
        roles.check(&options.roles)?;
        let Pool { weights, targets, errors, .. } = pool;
        for packed in weights {
            writer.weight(packed)?;
        }
        let max_tokens = match (&options.tokenizer, options.max_tokens) {
            (None, _) => None,
            (_, Some(n)) => Some(n),
            (Some(_), None) => position_rows(&targets),
        };
        #[cfg(feature = "text")]
        if let Some(tokenizer) = &options.tokenizer {
            try_tokenizer(tokenizer, max_tokens, largest_table(&targets))?;
        }
        writer.targets(targets);
        let (labels, problem) = match spelled(&record, options)? {
            Some(symbols) => (symbols, Some(Problem::Text)),
            None => {
                (options.labels.clone(), options.problem.or_else(|| per_token(&record, options)))
            }
        };
        let image = options.image.clone().map(|image| laid_out(image, &record));
        writer.preprocess(Preprocess { image, labels, problem, max_tokens });
        writer.audio(options.audio.clone().map(|audio| heard(audio, &record)));
        writer.tokenizer(options.tokenizer.clone().unwrap_or_default());
        for (name, contents) in &options.texts {
            writer.text(name, contents);
        }
        record.tool = concat!("offshoot ", env!("CARGO_PKG_VERSION")).into();
        record.errors = errors;
        writer.record(record);
        writer.write(out)
    }
}

/// [`Problem::Tokens`], where only an output (batch, tokens, classes) has as many columns as there are labels.
fn per_token(record: &ImportRecord, options: &PackOptions) -> Option<Problem> {
    let columns = options.labels.len().to_string();
    let main = record.graphs.first().filter(|_| columns != "0")?;
    let has = |axes: usize| {
        main.outputs.iter().any(|o| o.dims.len() == axes && o.dims.last() == Some(&columns))
    };
    (has(3) && !has(2)).then_some(Problem::Tokens)
}

/// The names of the columns of the output that spells texts, the blank's empty, where there is an alphabet:
/// the one given, else that of the model's metadata, where it has as many symbols as an output columns.
fn spelled(record: &ImportRecord, options: &PackOptions) -> Result<Option<Vec<String>>> {
    let Some(main) = record.graphs.first() else { return Ok(None) };
    let blank = |alphabet: Alphabet| match &options.blank {
        Some(blank) => Alphabet { blank: Some(blank.clone()), ..alphabet },
        None => alphabet,
    };
    if let Some(alphabet) = &options.alphabet {
        return blank(alphabet.clone()).columns(&main.outputs).map(Some);
    }
    let listed = main.properties.iter().find(|(key, _)| key == PADDLES);
    match listed.filter(|_| options.labels.is_empty()) {
        None if options.blank.is_some() => Err(Error::usage(format!(
            "--blank: there is no alphabet, neither in the model's metadata ('{PADDLES}') nor given"
        ))),
        None => Ok(None),
        Some((_, text)) => match blank(Alphabet::of_paddle(text)).columns(&main.outputs) {
            Err(e) if options.blank.is_none() && e.kind() != ErrorKind::Failed => Ok(None),
            found => found.map(Some),
        },
    }
}

/// Where PaddleOCR's models list their characters.
const PADDLES: &str = "character";

/// The order of axes that the main graph's input of pictures has, where its dimensions tell.
fn laid_out(image: ImageSpec, record: &ImportRecord) -> ImageSpec {
    let main = record.graphs.first().map_or(&[][..], |g| &g.inputs);
    let dims = main.iter().find(|s| s.role == Role::Pixels).map(|s| s.dims.as_slice());
    let three = |d: Option<&String>| d.is_some_and(|d| d == "3");
    match dims.map(|d| (three(d.get(1)), three(d.get(3)))) {
        Some((true, false)) => ImageSpec { channels_first: true, ..image },
        Some((false, true)) => ImageSpec { channels_first: false, ..image },
        _ => image,
    }
}

/// Texts that a tokenizer is tried with, to its limit: letters, words, spaces, numbers, signs, others.
#[cfg(feature = "text")]
const TRIED: [&str; 6] = ["a", "room ", " ", "17", "-+", "\u{623f}\u{fdfa}\u{1f9ed}"];
/// Longest that a tokenizer may take for one of them.
#[cfg(feature = "text")]
const TRIED_IN: Duration = Duration::from_secs(5);

/// Its tokens must have rows.
#[cfg(feature = "text")]
const SENTENCE: &str = "Please turn on the light in the kitchen, and play 17 songs!";

/// Rows of the largest table of embeddings.
#[cfg(feature = "text")]
fn largest_table(targets: &[Target]) -> Option<u32> {
    targets.iter().filter(|t| t.kind == TargetKind::Embedding).map(|t| t.in_features).max()
}

/// An error for what is no tokenizer, or one that is past the limits, or slow, or whose tokens have no row
/// among `rows`.
#[cfg(feature = "text")]
fn try_tokenizer(json: &[u8], max_tokens: Option<u32>, rows: Option<u32>) -> Result<()> {
    let max_tokens = max_tokens.map_or(DEFAULT_MAX_TOKENS, |n| n as usize);
    let encoder = TextEncoder::from_bytes(json, max_tokens)?;
    for part in TRIED {
        let text = part.repeat(TRIED_BYTES.min(encoder.max_bytes()) / part.len());
        let start = Instant::now();
        encoder.tokens(&text)?;
        let took = start.elapsed();
        if took > TRIED_IN {
            return Err(Error::bad_input(format!(
                "the tokenizer takes {:.0} s for a text of {} bytes",
                took.as_secs_f64(),
                text.len()
            )));
        }
    }
    let largest = encoder.ids(SENTENCE, true)?.into_iter().max().unwrap_or(0);
    if let Some(rows) = rows.filter(|rows| largest >= *rows) {
        return Err(Error::mismatch(format!(
            "the tokenizer gives the token {largest}, the largest table of embeddings has {rows} rows"
        ))
        .hint("is it the tokenizer of another model?"));
    }
    Ok(())
}

/// Bytes of each text.
#[cfg(feature = "text")]
const TRIED_BYTES: usize = 16 << 10;

/// Gives the one input that sound becomes its role.
fn hears(inputs: &mut [IoSpec], audio: &AudioSpec) -> Result<()> {
    let (role, ranks) = match audio.front {
        Front::Samples { .. } => (Role::Samples, 2..=3),
        Front::Mel(_) => (Role::Mel, 3..=4),
    };
    match inputs {
        [spec] if spec.dtype == DType::F32 && ranks.contains(&spec.dims.len()) => {
            spec.role = role;
            Ok(())
        }
        _ => {
            let found: Vec<String> =
                inputs.iter().map(|s| format!("'{}' [{}]", s.name, s.dims.join(", "))).collect();
            Err(Error::usage(format!(
                "--audio: expected one float input of {} or {} axes, found {}",
                ranks.start(),
                ranks.end(),
                found.join(", ")
            )))
        }
    }
}

/// The order of axes and the length that the main graph's input of sound has.
fn heard(audio: AudioSpec, record: &ImportRecord) -> AudioSpec {
    match record.graphs.first().and_then(|g| g.inputs.first()) {
        Some(spec) => audio.laid_out(&spec.dims),
        None => audio,
    }
}

/// The longest sequence that a learned position table allows.
fn position_rows(targets: &[Target]) -> Option<u32> {
    targets
        .iter()
        .filter(|t| t.kind == TargetKind::Embedding)
        .find(|t| t.module_path.contains("position"))
        .map(|t| t.in_features)
}

/// The names that the file gives to its nodes and values, those within others included.
fn names_in(model: &ModelProto) -> HashSet<String> {
    let mut names = HashSet::new();
    let mut graphs: Vec<&GraphProto> = model.graph.iter().collect();
    while let Some(graph) = graphs.pop() {
        names.extend(graph.initializer.iter().map(|t| t.name.clone()));
        for node in &graph.node {
            names.insert(node.name.clone());
            names.extend(node.output.iter().cloned());
            graphs.extend(node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)));
        }
    }
    names
}

/// Numbers anew what tract has told apart by a number, in the order of evaluation: it goes through
/// new nodes in an order that differs from run to run.
fn steady_names(names: Vec<(String, String)>, known: &HashSet<String>) -> Vec<(String, String)> {
    let mut counts: HashMap<String, usize> = HashMap::new();
    let stem = |name: &str| -> Option<String> {
        let (stem, number) = name.rsplit_once(['.', '#'])?;
        let numbered = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        (numbered && !known.contains(name)).then(|| stem.to_string())
    };
    let mut steady = |name: String| -> String {
        let mut short = name.clone();
        while let Some(stem) = stem(&short) {
            short = stem;
        }
        if short == name && known.contains(&name) {
            return name;
        }
        let count = counts.entry(short.clone()).or_insert(0);
        *count += 1;
        if *count == 1 { short } else { format!("{short}#{count}") }
    };
    names.into_iter().map(|(safe, name)| (safe, steady(name))).collect()
}

fn io_specs(
    model: &TypedModel,
    infos: &[InputInfo],
    safe_names: &[(String, String)],
    inputs: bool,
) -> Result<Vec<IoSpec>> {
    let outlets = if inputs { model.input_outlets() } else { model.output_outlets() };
    let outlets = outlets.map_err(|e| tract_error(ErrorKind::Unsupported, &e))?;
    if outlets.len() != infos.len() || outlets.len() != safe_names.len() {
        return Err(Error::unsupported(format!(
            "the graph has {} {}, the file names {}",
            outlets.len(),
            if inputs { "inputs" } else { "outputs" },
            infos.len()
        )));
    }
    let mut specs = vec![];
    for ((outlet, info), (safe, _)) in outlets.iter().zip(infos).zip(safe_names) {
        let fact =
            model.outlet_fact(*outlet).map_err(|e| tract_error(ErrorKind::Unsupported, &e))?;
        specs.push(IoSpec {
            name: info.name.clone(),
            safe_name: safe.clone(),
            dtype: public_type(&info.name, fact.datum_type)?,
            dims: fact.shape.iter().map(|d| d.to_string()).collect(),
            role: Role::Other,
        });
    }
    Ok(specs)
}

fn public_type(name: &str, dtype: DatumType) -> Result<DType> {
    Ok(match dtype {
        DatumType::F32 | DatumType::F16 | DatumType::F64 => DType::F32,
        DatumType::I64 | DatumType::TDim | DatumType::U32 | DatumType::U64 => DType::I64,
        DatumType::I32 | DatumType::I16 | DatumType::I8 | DatumType::U16 => DType::I32,
        DatumType::U8 => DType::U8,
        DatumType::Bool => DType::Bool,
        other => {
            return Err(Error::unsupported(format!(
                "'{name}' has the element type {other:?}, which can't be given or read"
            )));
        }
    })
}

fn const_bytes(name: &str, tensor: &Tensor) -> Result<(ConstType, Vec<u8>)> {
    let dtype = match tensor.datum_type() {
        DatumType::F32 => ConstType::F32,
        DatumType::F16 => ConstType::F16,
        DatumType::F64 => ConstType::F64,
        DatumType::I8 => ConstType::I8,
        DatumType::I16 => ConstType::I16,
        DatumType::I32 => ConstType::I32,
        DatumType::I64 => ConstType::I64,
        DatumType::U8 => ConstType::U8,
        DatumType::U16 => ConstType::U16,
        DatumType::U32 => ConstType::U32,
        DatumType::U64 => ConstType::U64,
        DatumType::Bool => ConstType::Bool,
        other => {
            return Err(Error::unsupported(format!(
                "constant '{name}' has the element type {other:?}"
            )));
        }
    };
    let bytes = tensor
        .try_as_plain_ram()
        .map(|t| t.as_bytes().to_vec())
        .map_err(|e| tract_error(ErrorKind::Unsupported, &e))?;
    Ok((dtype, bytes))
}
