//! Constant weights of an ONNX graph, followed back through the nodes that only reshape or
//! dequantize them.

use super::tensor::{float_values, int_values};
use super::validate::{attribute, label};
use crate::error::{Error, Result};
use std::collections::HashMap;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};

/// Longest chain of Identity, Cast, Transpose and DequantizeLinear nodes that is followed.
const MAX_CHAIN: usize = 8;

/// The constants of a graph by name: initializers and Constant nodes, and who writes what.
pub(super) struct Constants<'a> {
    tensors: HashMap<&'a str, &'a TensorProto>,
    writers: HashMap<&'a str, &'a NodeProto>,
}

/// A constant matrix or kernel, found at the end of a chain.
pub(super) struct Weight<'a> {
    /// The constant's name in the graph (a Constant node's tensor has none of its own).
    pub name: &'a str,
    /// The tensor that holds the numbers.
    pub root: &'a TensorProto,
    /// Axes as seen by the reader: axis i of the value is axis `perm[i]` of the root.
    pub perm: Vec<usize>,
    /// Scales and zero points where the root holds integers.
    pub dequantize: Option<Dequantize>,
}

/// DequantizeLinear's parameters: one value for the tensor or one for each index of `axis`.
pub(super) struct Dequantize {
    pub scales: Vec<f32>,
    pub zero_points: Vec<i64>,
    /// Axis of the root that the scales follow; meaningless with one scale.
    pub axis: usize,
}

impl<'a> Constants<'a> {
    pub(super) fn new(graph: &'a GraphProto) -> Constants<'a> {
        let mut tensors: HashMap<&str, &TensorProto> =
            graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
        let mut writers = HashMap::new();
        for node in &graph.node {
            for output in &node.output {
                writers.insert(output.as_str(), node);
            }
            let value = attribute(node, "value").and_then(|a| a.t.as_ref());
            if let ("Constant", Some(t), Some(o)) =
                (node.op_type.as_str(), value, node.output.first())
            {
                tensors.insert(o, t);
            }
        }
        // An initializer that is also a graph input is a default a caller may override.
        for input in &graph.input {
            tensors.remove(input.name.as_str());
        }
        Constants { tensors, writers }
    }

    /// The constant tensor of this name, if it is one.
    pub(super) fn tensor(&self, name: &str) -> Option<&'a TensorProto> {
        self.tensors.get(name).copied()
    }

    /// Follows `name` back to a float or dequantized constant; `None` if it isn't one.
    pub(super) fn weight(&self, name: &str) -> Result<Option<Weight<'a>>> {
        let mut name = name;
        // Transposes met on the way back, outermost first.
        let mut perms: Vec<Vec<usize>> = vec![];
        let mut dequantize: Option<(&NodeProto, usize)> = None;
        for _ in 0..MAX_CHAIN {
            if let Some((&name, &root)) = self.tensors.get_key_value(name) {
                return self.finish(name, root, perms, dequantize);
            }
            let Some(&node) = self.writers.get(name) else { return Ok(None) };
            match node.op_type.as_str() {
                "Identity" => {}
                "Cast" => {
                    let to = attribute(node, "to").map(|a| a.i as i32).unwrap_or(0);
                    let float = [DataType::Float, DataType::Float16, DataType::Bfloat16]
                        .iter()
                        .any(|&t| t as i32 == to);
                    if !float {
                        return Ok(None);
                    }
                }
                "Transpose" => {
                    let perm = attribute(node, "perm").map(|a| a.ints.as_slice()).unwrap_or(&[]);
                    perms.push(perm.iter().map(|&p| p as usize).collect());
                }
                "DequantizeLinear" if dequantize.is_none() => {
                    dequantize = Some((node, perms.len()));
                }
                _ => return Ok(None),
            }
            let Some(input) = node.input.first() else { return Ok(None) };
            name = input;
        }
        Ok(None)
    }

    fn finish(
        &self,
        name: &'a str,
        root: &'a TensorProto,
        perms: Vec<Vec<usize>>,
        dequantize: Option<(&NodeProto, usize)>,
    ) -> Result<Option<Weight<'a>>> {
        let rank = root.dims.len();
        // Composes transposes: the innermost (last met) applies first to the root.
        let compose = |perms: &[Vec<usize>]| -> Option<Vec<usize>> {
            let mut axes: Vec<usize> = (0..rank).collect();
            for perm in perms.iter().rev() {
                let reversed: Vec<usize> = (0..rank).rev().collect();
                let perm = if perm.is_empty() { &reversed } else { perm };
                axes = perm.iter().map(|&p| axes.get(p).copied()).collect::<Option<_>>()?;
            }
            (axes.len() == rank).then_some(axes)
        };
        let Some(perm) = compose(&perms) else { return Ok(None) };
        let dequantize = match dequantize {
            None => {
                let float = matches!(
                    DataType::try_from(root.data_type),
                    Ok(DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double)
                );
                if !float {
                    return Ok(None);
                }
                None
            }
            Some((node, transposes_after)) => {
                // Only the transposes between the root and the DequantizeLinear move its axis.
                let Some(inner) = compose(perms.get(transposes_after..).unwrap_or(&[])) else {
                    return Ok(None);
                };
                match self.dequantize(node, root, &inner)? {
                    Some(d) => Some(d),
                    None => return Ok(None),
                }
            }
        };
        Ok(Some(Weight { name, root, perm, dequantize }))
    }

    fn dequantize(
        &self,
        node: &NodeProto,
        root: &TensorProto,
        inner_perm: &[usize],
    ) -> Result<Option<Dequantize>> {
        let int8 =
            matches!(DataType::try_from(root.data_type), Ok(DataType::Int8 | DataType::Uint8));
        let blocked = attribute(node, "block_size").is_some_and(|a| a.i > 0);
        let scales = node.input.get(1).and_then(|n| self.tensor(n)).and_then(float_values);
        let (true, false, Some(scales)) = (int8, blocked, scales) else { return Ok(None) };
        let zero_points = match node.input.get(2).filter(|n| !n.is_empty()) {
            None => vec![0; scales.len()],
            Some(name) => match self.tensor(name).and_then(int_values) {
                Some(values) => values,
                None => return Ok(None),
            },
        };
        let axis = attribute(node, "axis").map(|a| a.i).unwrap_or(1);
        let rank = root.dims.len() as i64;
        let axis = if axis < 0 { axis + rank } else { axis };
        let axis = usize::try_from(axis).ok().and_then(|a| inner_perm.get(a).copied());
        let expected = axis.and_then(|a| root.dims.get(a)).copied().unwrap_or(-1);
        if zero_points.len() != scales.len()
            || (scales.len() != 1 && scales.len() as i64 != expected)
        {
            return Err(Error::bad_input(format!(
                "{} scales and {} zero points for a tensor of shape {:?}",
                scales.len(),
                zero_points.len(),
                root.dims
            ))
            .at(label(node)));
        }
        Ok(Some(Dequantize { scales, zero_points, axis: axis.unwrap_or(0) }))
    }
}

/// A frozen matrix (rows = out_features) ready to be packed.
pub enum MatrixValues {
    /// Floats, row-major.
    F32(Vec<f32>),
    /// Symmetric 8-bit integers with one scale for each row.
    Int8 {
        /// Row-major.
        ints: Vec<i8>,
        /// One for each row.
        scales: Vec<f32>,
    },
}

impl Weight<'_> {
    /// The shape as seen by the reader.
    pub(super) fn shape(&self) -> Vec<usize> {
        self.perm.iter().map(|&p| self.root.dims.get(p).map_or(0, |&d| d as usize)).collect()
    }

    /// The values with the reader's axes in the order `order`, flattened to `rows` rows.
    /// Integers are kept if they are symmetric and have one scale for each row.
    pub(super) fn matrix(&self, order: &[usize], rows: usize) -> Result<MatrixValues> {
        let axes: Vec<usize> =
            order.iter().map(|&o| self.perm.get(o).copied().unwrap_or(0)).collect();
        let dims: Vec<usize> = self.root.dims.iter().map(|&d| d as usize).collect();
        let gone = || Error::bad_input(format!("weight '{}' can't be read", self.name));
        let Some(d) = &self.dequantize else {
            let values = float_values(self.root).ok_or_else(gone)?;
            return Ok(MatrixValues::F32(permute(&values, &dims, &axes)));
        };
        let ints = int_values(self.root).ok_or_else(gone)?;
        let by_row = d.scales.len() == 1 || (axes.first() == Some(&d.axis) && dims[d.axis] == rows);
        let in_range = ints.iter().all(|v| (-128..=127).contains(v));
        if by_row && in_range && d.zero_points.iter().all(|&z| z == 0) {
            let ints: Vec<i8> = ints.iter().map(|&v| v as i8).collect();
            let ints = permute(&ints, &dims, &axes);
            let scales =
                if d.scales.len() == 1 { vec![d.scales[0]; rows] } else { d.scales.clone() };
            return Ok(MatrixValues::Int8 { ints, scales });
        }
        let stride: usize = dims.iter().skip(d.axis + 1).product();
        let values: Vec<f32> = ints
            .iter()
            .enumerate()
            .map(|(i, &v)| {
                let c = if d.scales.len() == 1 { 0 } else { i / stride.max(1) % dims[d.axis] };
                (v - d.zero_points[c]) as f32 * d.scales[c]
            })
            .collect();
        Ok(MatrixValues::F32(permute(&values, &dims, &axes)))
    }
}

/// Reorders a row-major tensor so that its axes come in the order `axes`.
fn permute<T: Copy>(values: &[T], dims: &[usize], axes: &[usize]) -> Vec<T> {
    if axes.iter().enumerate().all(|(i, &a)| i == a) {
        return values.to_vec();
    }
    let mut strides = vec![1usize; dims.len()];
    for i in (0..dims.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * dims[i + 1];
    }
    let shape: Vec<usize> = axes.iter().map(|&a| dims[a]).collect();
    let steps: Vec<usize> = axes.iter().map(|&a| strides[a]).collect();
    let mut out = Vec::with_capacity(values.len());
    let mut index = vec![0usize; shape.len()];
    let mut from = 0usize;
    for _ in 0..values.len() {
        out.push(values[from]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            from += steps[axis];
            if index[axis] < shape[axis] {
                break;
            }
            from -= steps[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permuted_axes() {
        let values: Vec<i32> = (0..24).collect();
        let out = permute(&values, &[2, 3, 4], &[2, 0, 1]);
        for (a, b, c) in
            (0..4).flat_map(|a| (0..2).flat_map(move |b| (0..3).map(move |c| (a, b, c))))
        {
            assert_eq!(out[a * 6 + b * 3 + c], values[b * 12 + c * 4 + a]);
        }
    }
}
