//! `pack`: an ONNX file becomes a base.

use super::calibrate;
use crate::adapter::{Target, TargetKind};
use crate::error::{Error, ErrorKind, Result};
use crate::fingerprint::BaseFingerprint;
use crate::graph::{FrozenWeights, lower, tract_error, write_graph};
use crate::import::{ImportOptions, InputInfo, Prepared, Quantized, prepare, quantize};
use crate::pack::{
    BaseWriter, ConstType, ImageSpec, ImportRecord, IoSpec, Preprocess, TargetError,
};
use crate::quant::{Packed, Scheme};
use crate::shape::DType;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use tract_core::internal::{DatumType, Tensor, TypedModel};

/// How an ONNX file is packed.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Scheme of the weights.
    pub scheme: Scheme,
    /// What is fixed of the graph.
    pub import: ImportOptions,
    /// Bytes of tokenizer.json, for bases that take text.
    pub tokenizer: Option<Vec<u8>>,
    /// How pictures are prepared, for bases that take pictures.
    pub image: Option<ImageSpec>,
    /// Names of the base's own classes.
    pub labels: Vec<String>,
    /// Longest token sequence; found from the position table if not given.
    pub max_tokens: Option<u32>,
}

impl Default for PackOptions {
    fn default() -> PackOptions {
        PackOptions {
            scheme: Scheme::Q8,
            import: ImportOptions::default(),
            tokenizer: None,
            image: None,
            labels: vec![],
            max_tokens: None,
        }
    }
}

/// Packs `source` into the base file `out`, atomically. Runs in the calling process: hostile files
/// can make it slow, large or abort, so what comes from strangers is packed in a worker process.
///
/// # Errors
/// Bad or unsupported input, naming node and operation; I/O on writing.
pub fn pack(source: &Path, out: &Path, options: &PackOptions) -> Result<BaseFingerprint> {
    let prepared = prepare(source, &options.import)?;
    let place = source.display();
    write(source, prepared, out, options).map_err(|e| match e.kind() {
        ErrorKind::Failed => e,
        _ => e.at(place),
    })
}

fn write(
    source: &Path,
    mut prepared: Prepared,
    out: &Path,
    options: &PackOptions,
) -> Result<BaseFingerprint> {
    let (weights, errors) = quantize_all(&mut prepared, options.scheme)?;
    let weights = Arc::new(weights);
    let table = FrozenWeights(weights.clone());
    let model = lower(&prepared.model, &table).map_err(|e| add_hint(e, &prepared))?;
    let text = write_graph(&model)?;
    let inputs = io_specs(&model, &prepared.inputs, &text.inputs, true)?;
    let outputs = io_specs(&model, &prepared.outputs, &text.outputs, false)?;
    drop(model);
    drop(table);

    let mut writer = BaseWriter::new();
    for (name, tensor) in &text.constants {
        let (dtype, bytes) = const_bytes(name, tensor)?;
        let shape: Vec<u64> = tensor.shape().iter().map(|&d| d as u64).collect();
        writer.constant(name, dtype, &shape, &bytes)?;
    }
    let weights = Arc::try_unwrap(weights)
        .map_err(|_| Error::failed("the weights are still in use after the graph was written"))?;
    for packed in weights {
        writer.weight(packed)?;
    }
    let max_tokens = match (&options.tokenizer, options.max_tokens) {
        (None, _) => None,
        (_, Some(n)) => Some(n),
        (Some(_), None) => position_rows(&prepared.targets),
    };
    writer.graph(text.text);
    writer.targets(prepared.targets);
    writer.preprocess(Preprocess {
        image: options.image.clone(),
        labels: options.labels.clone(),
        max_tokens,
    });
    writer.tokenizer(options.tokenizer.clone().unwrap_or_default());
    writer.record(ImportRecord {
        tool: concat!("offshoot ", env!("CARGO_PKG_VERSION")).into(),
        source_name: source.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        source_hash: prepared.source_hash,
        source_bytes: prepared.source_bytes,
        opset: prepared.opset.max(0) as u64,
        dims: options.import.dims.clone(),
        fixed_inputs: options
            .import
            .inputs
            .iter()
            .map(|spec| (spec.name.clone(), spec.to_string()))
            .collect(),
        fixed_values: options.import.consts.clone(),
        node_names: text.node_names,
        symbols: text.symbols,
        inputs,
        outputs,
        errors,
        properties: prepared.properties,
    });
    writer.write(out)
}

/// Packs every matrix; equal ones are stored once and the targets' indices follow. The rewritten
/// nodes carry indices too.
fn quantize_all(
    prepared: &mut Prepared,
    scheme: Scheme,
) -> Result<(Vec<Packed>, Vec<TargetError>)> {
    let embedding: Vec<bool> = (0..prepared.matrices.len())
        .map(|i| {
            prepared
                .targets
                .iter()
                .any(|t| t.weight as usize == i && t.kind == TargetKind::Embedding)
        })
        .collect();
    let mut coarse = vec![];
    let mut measured = vec![];
    for (matrix, &embedding) in prepared.matrices.iter().zip(&embedding) {
        let q: Quantized = quantize(matrix, scheme, embedding)?;
        measured.push((q.packed.scheme(), q.relative, q.max_abs));
        coarse.push(q.packed);
    }
    if matches!(scheme, Scheme::Q4 | Scheme::Q8) {
        let (promoted, kept) = calibrate::promote(prepared, coarse, scheme)?;
        coarse = kept;
        for i in promoted {
            let q = quantize(&prepared.matrices[i], calibrate::finer(scheme), embedding[i])?;
            measured[i] = (q.packed.scheme(), q.relative, q.max_abs);
            coarse[i] = q.packed;
        }
    }
    prepared.matrices.clear();
    let mut packed: Vec<Packed> = vec![];
    let mut known: HashMap<(blake3::Hash, Scheme, usize, usize), u32> = HashMap::new();
    let mut moved = vec![];
    for p in coarse {
        let key = (blake3::hash(p.bytes()), p.scheme(), p.rows(), p.cols());
        let index = *known.entry(key).or_insert(packed.len() as u32);
        if index as usize == packed.len() {
            packed.push(p);
        }
        moved.push(index);
    }
    let mut errors = vec![];
    for (i, target) in prepared.targets.iter_mut().enumerate() {
        let old = target.weight as usize;
        let (scheme, relative, max_abs) = measured[old];
        errors.push(TargetError { target: i as u32, scheme, relative, max_abs });
        target.weight = moved[old];
    }
    for node in prepared.model.graph.iter_mut().flat_map(|g| &mut g.node) {
        if node.op_type.starts_with("Offshoot") {
            for attribute in node.attribute.iter_mut().filter(|a| a.name == "weight") {
                attribute.i = moved[attribute.i as usize] as i64;
            }
        }
    }
    Ok((packed, errors))
}

/// The longest sequence that a learned position table allows.
fn position_rows(targets: &[Target]) -> Option<u32> {
    targets
        .iter()
        .filter(|t| t.kind == TargetKind::Embedding)
        .find(|t| t.module_path.contains("position"))
        .map(|t| t.in_features)
}

/// What to try when a graph can't be typed: its free dimensions and inputs.
fn add_hint(error: Error, prepared: &Prepared) -> Error {
    if error.hint_text().is_some() {
        return error;
    }
    let free: Vec<String> = prepared
        .inputs
        .iter()
        .filter(|i| i.dims.iter().any(|d| d.parse::<i64>().is_err()))
        .map(|i| format!("--input {}={}", i.name, i.dims.join("x")))
        .collect();
    let scalars: Vec<String> = prepared
        .inputs
        .iter()
        .filter(|i| i.dims.is_empty())
        .map(|i| format!("--const {}=VALUE", i.name))
        .collect();
    let tries: Vec<String> = free.into_iter().chain(scalars).collect();
    if tries.is_empty() {
        return error;
    }
    error.hint(format!(
        "fix what the file leaves open, names replaced by numbers: {}",
        tries.join(" ")
    ))
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
        });
    }
    Ok(specs)
}

fn public_type(name: &str, dtype: DatumType) -> Result<DType> {
    Ok(match dtype {
        DatumType::F32 | DatumType::F16 | DatumType::F64 => DType::F32,
        DatumType::I64 | DatumType::TDim => DType::I64,
        DatumType::I32 => DType::I32,
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
