//! What a person fixes of an ONNX file: dimensions, input shapes, scalar inputs.

use crate::error::{Error, Result};
use crate::shape::DType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension::Value as Dim};
use tract_onnx::pb::type_proto::{self, Value as TypeValue};
use tract_onnx::pb::{GraphProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto};

/// `--dim`, `--input` and `--const`.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Values of named dimensions.
    pub dims: Vec<(String, i64)>,
    /// Shapes and types of inputs.
    pub inputs: Vec<InputSpec>,
    /// Inputs made constant: name and values as text, with commas between them.
    pub consts: Vec<(String, String)>,
}

/// An input's shape and type: `NAME=1x3x48xW,f32`; a dimension is a number or a free name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputSpec {
    /// The input's name.
    pub name: String,
    /// A number or the name of a dimension that stays free.
    pub dims: Vec<Result<i64, String>>,
    /// The element type, if it is to be another than the file's.
    pub dtype: Option<DType>,
}

impl InputSpec {
    /// Reads `NAME=1x3x48x320,f32`; the type may be left out.
    pub fn parse(text: &str) -> Result<InputSpec> {
        let bad = || {
            Error::usage(format!("'{text}' is not NAME=DIMxDIMx…,TYPE"))
                .hint("for example x=1x3x48x320,f32")
        };
        // Input names may hold '=' signs; shapes never do.
        let (name, rest) = text.rsplit_once('=').ok_or_else(bad)?;
        let (dims, dtype) = match rest.split_once(',') {
            Some((dims, dtype)) => (dims, Some(DType::parse(dtype).ok_or_else(bad)?)),
            None => (rest, None),
        };
        let dims = split_dims(dims).ok_or_else(bad)?;
        Ok(InputSpec { name: name.into(), dims, dtype })
    }
}

impl std::fmt::Display for InputSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dims: Vec<String> = self
            .dims
            .iter()
            .map(|d| match d {
                Ok(v) => v.to_string(),
                Err(name) => name.clone(),
            })
            .collect();
        f.write_str(&dims.join("x"))?;
        match self.dtype {
            Some(dtype) => write!(f, ",{}", dtype.name()),
            None => Ok(()),
        }
    }
}

/// `1x3x48xW` → numbers and names. A name starts with a letter other than a lone `x`.
fn split_dims(text: &str) -> Option<Vec<Result<i64, String>>> {
    if text.is_empty() {
        return Some(vec![]);
    }
    text.split('x')
        .map(|part| match part.parse::<i64>() {
            Ok(v) if v > 0 => Some(Ok(v)),
            Ok(_) => None,
            Err(_) => {
                let mut chars = part.chars();
                let named = chars.next().is_some_and(|c| c.is_ascii_alphabetic())
                    && chars.all(|c| c.is_ascii_alphanumeric() || c == '_');
                named.then(|| Err(part.to_string()))
            }
        })
        .collect()
}

/// Applies the options to the graph's inputs; names the inputs and dimensions there are where one
/// isn't found.
pub(super) fn apply(graph: &mut GraphProto, options: &ImportOptions) -> Result<()> {
    let names = |graph: &GraphProto| -> String {
        let names: Vec<&str> = graph.input.iter().map(|i| i.name.as_str()).collect();
        format!("inputs are {}", names.join(", "))
    };
    for (name, text) in &options.consts {
        if !graph.input.iter().any(|i| &i.name == name) {
            return Err(Error::usage(format!("--const: no input '{name}'")).hint(names(graph)));
        }
        make_constant(graph, name, text)?;
    }
    for spec in &options.inputs {
        let hint = names(graph);
        let Some(info) = graph.input.iter_mut().find(|i| i.name == spec.name) else {
            return Err(Error::usage(format!("--input: no input '{}'", spec.name)).hint(hint));
        };
        let elem_type = match spec.dtype {
            Some(dtype) => onnx_type(dtype) as i32,
            None => elem_type(info),
        };
        let dim = spec
            .dims
            .iter()
            .map(|d| Dimension {
                value: Some(match d {
                    Ok(v) => Dim::DimValue(*v),
                    Err(name) => Dim::DimParam(name.clone()),
                }),
                ..Dimension::default()
            })
            .collect();
        let shape = Some(TensorShapeProto { dim });
        info.r#type = Some(TypeProto {
            value: Some(TypeValue::TensorType(type_proto::Tensor { elem_type, shape })),
            ..TypeProto::default()
        });
    }
    for (name, value) in &options.dims {
        if *value < 1 {
            return Err(Error::usage(format!("--dim {name}={value}: must be 1 or more")));
        }
        let mut known = vec![];
        let mut bound = false;
        for dim in graph.input.iter_mut().filter_map(shape_of).flatten() {
            if let Some(Dim::DimParam(param)) = &dim.value {
                if param == name {
                    dim.value = Some(Dim::DimValue(*value));
                    bound = true;
                } else if !known.contains(param) {
                    known.push(param.clone());
                }
            }
        }
        if !bound {
            return Err(Error::usage(format!("--dim: no dimension '{name}'"))
                .hint(format!("free dimensions are {}", known.join(", "))));
        }
    }
    Ok(())
}

/// Takes the input `name` out of the graph's inputs and puts a constant in its place, the last of the
/// initializers.
pub(super) fn make_constant(graph: &mut GraphProto, name: &str, text: &str) -> Result<()> {
    let at = graph.input.iter().position(|i| i.name == name);
    let at = at.ok_or_else(|| Error::usage(format!("no input '{name}'")))?;
    let tensor = constant(&graph.input[at], text)?;
    graph.input.remove(at);
    graph.initializer.push(tensor);
    Ok(())
}

fn shape_of(info: &mut ValueInfoProto) -> Option<&mut Vec<Dimension>> {
    match info.r#type.as_mut()?.value.as_mut()? {
        TypeValue::TensorType(t) => Some(&mut t.shape.as_mut()?.dim),
    }
}

fn elem_type(info: &ValueInfoProto) -> i32 {
    match info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(TypeValue::TensorType(t)) => t.elem_type,
        None => DataType::Float as i32,
    }
}

fn onnx_type(dtype: DType) -> DataType {
    match dtype {
        DType::F32 => DataType::Float,
        DType::I64 => DataType::Int64,
        DType::I32 => DataType::Int32,
        DType::U8 => DataType::Uint8,
        DType::Bool => DataType::Bool,
    }
}

/// A constant of an input's type: one value, or several with commas between them, in the shape that
/// the file states.
fn constant(info: &ValueInfoProto, text: &str) -> Result<TensorProto> {
    let name = &info.name;
    let bad = || Error::usage(format!("--const {name}={text}: no values of the input's type"));
    let texts: Vec<&str> =
        if text.trim().is_empty() { vec![] } else { text.split(',').map(str::trim).collect() };
    fn bytes<T: std::str::FromStr, const N: usize>(
        texts: &[&str],
        to: impl Fn(T) -> [u8; N],
    ) -> Option<Vec<u8>> {
        let values = texts.iter().map(|t| t.parse().ok().map(&to));
        Some(values.collect::<Option<Vec<_>>>()?.concat())
    }
    let data_type = elem_type(info);
    let raw_data = match DataType::try_from(data_type) {
        Ok(DataType::Float) => bytes(&texts, f32::to_le_bytes),
        Ok(DataType::Double) => bytes(&texts, f64::to_le_bytes),
        Ok(DataType::Int64) => bytes(&texts, i64::to_le_bytes),
        Ok(DataType::Int32) => bytes(&texts, i32::to_le_bytes),
        Ok(DataType::Int16) => bytes(&texts, i16::to_le_bytes),
        Ok(DataType::Int8) => bytes(&texts, i8::to_le_bytes),
        Ok(DataType::Uint8) => bytes(&texts, u8::to_le_bytes),
        Ok(DataType::Bool) => bytes(&texts, |b: bool| [u8::from(b)]),
        _ => {
            return Err(Error::unsupported(format!(
                "--const {name}: inputs of this type can't be made constant"
            )));
        }
    };
    let raw_data = raw_data.ok_or_else(bad)?;
    // A vector of one value stays one.
    let stated = dims_of(info).unwrap_or_default();
    let count = texts.len() as i64;
    let open = stated.iter().filter(|d| d.is_none()).count();
    let known: i64 = stated.iter().flatten().product();
    let dims: Vec<i64> = match open {
        0 => stated.iter().flatten().copied().collect(),
        _ if count == 1 && known == 1 => vec![1; stated.len()],
        1 if known > 0 && count % known == 0 => {
            stated.iter().map(|d| d.unwrap_or(count / known)).collect()
        }
        _ => return Err(bad()),
    };
    if dims.iter().product::<i64>() != count {
        return Err(Error::usage(format!(
            "--const {name}={text}: {count} values for the shape {dims:?}"
        )));
    }
    Ok(TensorProto { name: name.clone(), data_type, raw_data, dims, ..TensorProto::default() })
}

/// An input's dimensions, none where one is open.
fn dims_of(info: &ValueInfoProto) -> Option<Vec<Option<i64>>> {
    let TypeValue::TensorType(tensor) = info.r#type.as_ref()?.value.as_ref()?;
    let known = |d: &Dimension| match d.value {
        Some(Dim::DimValue(v)) if v >= 0 => Some(v),
        _ => None,
    };
    Some(tensor.shape.as_ref()?.dim.iter().map(known).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_shapes() {
        let spec = InputSpec::parse("x=1x3x48xW,f32").unwrap();
        assert_eq!(spec.dims, [Ok(1), Ok(3), Ok(48), Err("W".to_string())]);
        assert_eq!(spec.dtype, Some(DType::F32));
        assert_eq!(InputSpec::parse("sr=").unwrap().dims, []);
        for bad in ["x", "x=1x", "x=0x2", "x=1x2,f99", "x=-1"] {
            assert!(InputSpec::parse(bad).is_err(), "{bad}");
        }
    }
}
