//! The whole of an import up to the rewritten graph.

use super::branches::take_known_branches;
use super::lowering::{self, inline};
use super::names::Scopes;
use super::operators;
use super::options::{self, ImportOptions};
use super::targets::{FrozenMatrix, find_and_rewrite};
use super::validate::validate;
use crate::adapter::Target;
use crate::error::{Error, Result};
use crate::limits;
use prost::Message;
use std::path::Path;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::type_proto::Value as TypeValue;
use tract_onnx::pb::{GraphProto, ModelProto, ValueInfoProto};

/// An ONNX file, checked, with its target layers rewritten and their weights taken out.
pub struct Prepared {
    /// The rewritten file.
    pub model: ModelProto,
    /// Layers that can carry an adapter, in graph order.
    pub targets: Vec<Target>,
    /// Weights to be packed, by `Target::weight`.
    pub matrices: Vec<FrozenMatrix>,
    /// Inputs as the file and the options state them.
    pub inputs: Vec<InputInfo>,
    /// Outputs as the file states them.
    pub outputs: Vec<InputInfo>,
    /// blake3 of the file, as hex digits.
    pub source_hash: String,
    /// Length of the file.
    pub source_bytes: u64,
    /// Version of the default operator set.
    pub opset: i64,
    /// The file's own properties (`metadata_props`).
    pub properties: Vec<(String, String)>,
}

/// An input or output of the graph: name and dimensions (numbers, names, or `?`).
#[derive(Clone, Debug)]
pub struct InputInfo {
    /// Its name in the file.
    pub name: String,
    /// Dimensions as text.
    pub dims: Vec<String>,
}

/// What the first output of a file is, where it is one truth whatever the inputs hold.
pub type Decided<'a> = &'a dyn Fn(&ModelProto) -> Option<bool>;

/// Reads, checks and rewrites an ONNX file; `decided` finds which way it branches where sizes say so. Hostile
/// files may still make this slow or large: call it in a process with limits.
pub fn prepare(path: &Path, options: &ImportOptions, decided: Decided) -> Result<Prepared> {
    let place = path.display();
    let bytes = crate::fs::read_limited(path, limits::ONNX)?;
    if bytes.is_empty() {
        return Err(Error::bad_input(format!("{place}: the file is empty")));
    }
    prepare_bytes(&bytes, path, options, decided).map_err(|e| e.at(place))
}

fn prepare_bytes(
    bytes: &[u8],
    path: &Path,
    options: &ImportOptions,
    decided: Decided,
) -> Result<Prepared> {
    let mut model = ModelProto::decode(bytes)
        .map_err(|e| Error::bad_input(format!("not an ONNX file: {e}")))?;
    let scopes = Scopes::read(bytes)?;
    let opset = model
        .opset_import
        .iter()
        .find(|o| o.domain.is_empty() || o.domain == "ai.onnx")
        .map_or(0, |o| o.version);
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    inline(&mut model, bytes)?;
    validate(&mut model, dir)?;
    let source_hash = blake3::hash(bytes).to_hex().to_string();
    let properties: Vec<(String, String)> =
        model.metadata_props.drain(..).map(|e| (e.key, e.value)).collect();
    let graph = model.graph.as_mut().ok_or_else(|| Error::bad_input("the file holds no graph"))?;
    name_unknown_dims(graph);
    options::apply(graph, options)?;
    let imports = &model.opset_import;
    take_known_branches(graph, |mut part| {
        operators::check(&part, opset).and_then(|()| lowering::lower(&mut part)).ok()?;
        decided(&ModelProto {
            graph: Some(part),
            opset_import: imports.clone(),
            ..ModelProto::default()
        })
    })?;
    operators::check(graph, opset)?;
    lowering::lower(graph)?;
    let inputs = described_inputs(graph);
    let outputs = graph.output.iter().map(describe).collect();
    let found = find_and_rewrite(graph, &scopes)?;
    Ok(Prepared {
        targets: found.targets,
        matrices: found.matrices,
        inputs,
        outputs,
        source_hash,
        source_bytes: bytes.len() as u64,
        opset,
        properties,
        model,
    })
}

/// The inputs a caller gives: those without a default value among the initializers.
pub(super) fn described_inputs(graph: &GraphProto) -> Vec<InputInfo> {
    graph
        .input
        .iter()
        .filter(|i| !graph.initializer.iter().any(|t| t.name == i.name))
        .map(describe)
        .collect()
}

fn describe(info: &ValueInfoProto) -> InputInfo {
    let mut dims = vec![];
    if let Some(TypeValue::TensorType(t)) = info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        for dim in t.shape.iter().flat_map(|s| &s.dim) {
            dims.push(match &dim.value {
                Some(Dim::DimValue(v)) if *v >= 0 => v.to_string(),
                Some(Dim::DimParam(p)) if !p.is_empty() => p.clone(),
                _ => "?".into(),
            });
        }
    }
    InputInfo { name: info.name.clone(), dims }
}

/// Dimensions that the file leaves open without a name (-1, `?`, nothing) get one of their own,
/// so that they can be bound and reported.
fn name_unknown_dims(graph: &mut GraphProto) {
    for info in &mut graph.input {
        let name: String =
            info.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let Some(TypeValue::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut())
        else {
            continue;
        };
        for (axis, dim) in t.shape.iter_mut().flat_map(|s| &mut s.dim).enumerate() {
            let open = match &dim.value {
                None => true,
                Some(Dim::DimValue(v)) => *v < 0,
                Some(Dim::DimParam(p)) => p.is_empty() || p == "?",
            };
            if open {
                dim.value = Some(Dim::DimParam(format!("{name}_{axis}")));
            }
        }
    }
}
