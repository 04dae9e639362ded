//! The rewritten ONNX graph becomes a decluttered tract graph with our ops in it.

use super::recurrent::{RecurrentLayer, read_recurrent};
use super::{
    FrozenConv, FrozenDepthwise, FrozenEmbedding, FrozenLinear, FrozenWeights, Window, tract_error,
};
use crate::error::{Error, ErrorKind, Result};
use crate::import::{ConvAttributes, caught, op};
use std::collections::HashMap;
use tract_core::ops::cast::cast;
use tract_core::ops::math;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto};
use tract_onnx::tract_core;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::expandable::{Expansion, expand};

/// Builds the typed, decluttered graph of a rewritten ONNX file; the ops read `weights`.
///
/// # Errors
/// An operation that tract does not know (named with its node), a graph that can't be typed.
pub fn lower(model: &ModelProto, weights: &FrozenWeights) -> Result<TypedModel> {
    let mut onnx = tract_onnx::onnx().with_ignore_value_info(true);
    super::onnx::register(&mut onnx.op_register, opset(model));
    onnx.op_register.insert(op::LINEAR, read_layer);
    onnx.op_register.insert(op::CONV, read_layer);
    onnx.op_register.insert(op::DEPTHWISE, read_layer);
    onnx.op_register.insert(op::EMBEDDING, read_layer);
    super::shapes::register(&mut onnx.op_register);
    super::divided::register(&mut onnx.op_register);
    for kind in [op::RECURRENT, "LSTM", "GRU", "RNN"] {
        onnx.op_register.insert(kind, read_recurrent);
    }
    if let Some(graph) = &model.graph {
        check_operations(graph, &onnx.op_register.0)?;
    }
    let parsed = onnx.parse(model, None).map_err(|e| tract_error(ErrorKind::Unsupported, &e))?;
    let mut graph = parsed.model;
    for node in graph.nodes_mut() {
        let Some(op) = node.op_as_mut::<Box<dyn Expansion>>() else { continue };
        if let Some(layer) = op.as_any_mut().downcast_mut::<Layer>() {
            layer.weights = Some(weights.clone());
        } else if let Some(layer) = op.as_any_mut().downcast_mut::<RecurrentLayer>() {
            layer.weights = Some(weights.clone());
        }
    }
    let mut typed = graph.into_typed().map_err(|e| tract_error(ErrorKind::Unsupported, &e))?;
    check_axes(&typed)?;
    super::shapes::free_factors_as_integers(&mut typed)
        .and_then(|()| super::shapes::ordered_as_integers(&mut typed))
        .and_then(|()| super::rounding::rounded_as_floats(&mut typed))
        .map_err(|e| tract_error(ErrorKind::Unsupported, &e))?;
    super::channels_last(typed).map_err(|e| tract_error(ErrorKind::Unsupported, &e))
}

/// What the first output of such a file is, where it is one truth whatever the inputs hold.
pub fn decided(model: &ModelProto) -> Option<bool> {
    let graph = caught(|| lower(model, &FrozenWeights::new(vec![]))).ok()?;
    let value = graph.outlet_fact(*graph.outputs.first()?).ok()?.konst.clone()?;
    (value.len() == 1).then(|| value.cast_to_scalar::<bool>().ok())?
}

/// The version of the default operator set.
fn opset(model: &ModelProto) -> i64 {
    let default = model.opset_import.iter().find(|o| matches!(o.domain.as_str(), "" | "ai.onnx"));
    default.map_or(0, |o| o.version)
}

/// Refuses, by name, the first node whose operation isn't known.
fn check_operations<T>(graph: &GraphProto, known: &HashMap<String, T>) -> Result<()> {
    for node in &graph.node {
        if !known.contains_key(&node.op_type) {
            let domain = if node.domain.is_empty() { "ai.onnx" } else { &node.domain };
            return Err(Error::unsupported(format!(
                "node '{}' uses the operation '{}' of '{domain}', which can't be run",
                node.name, node.op_type
            )));
        }
        for inner in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
            check_operations(inner, known)?;
        }
    }
    Ok(())
}

/// tract accepts a Softmax over an axis that isn't there.
fn check_axes(model: &TypedModel) -> Result<()> {
    for node in model.nodes() {
        if let Some(softmax) = node.op_as::<tract_core::ops::nn::Softmax>() {
            let rank = node.outputs.first().map_or(0, |o| o.fact.rank());
            if let Some(axis) = softmax.axes.iter().find(|a| **a >= rank) {
                return Err(Error::bad_input(format!(
                    "node '{}': Softmax over axis {axis} of {rank}",
                    node.name
                )));
            }
        }
    }
    Ok(())
}

/// What a rewritten node stands for.
#[derive(Clone, Debug)]
enum LayerKind {
    Linear,
    Conv(ConvAttributes),
    Depthwise(ConvAttributes),
    Embedding,
}

/// A rewritten node between its reading and its wiring.
#[derive(Clone, Debug)]
struct Layer {
    kind: LayerKind,
    weight: usize,
    target: usize,
    in_features: usize,
    out_features: usize,
    /// Set after parsing: builders are plain functions and can't carry it.
    weights: Option<FrozenWeights>,
}

fn read_layer(
    _: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let attribute = |name: &str| node.attribute.iter().find(|a| a.name == name);
    let size = |name: &str| attribute(name).map_or(0, |a| a.i as usize);
    let geometry = || {
        attribute("geometry")
            .and_then(|a| ConvAttributes::decode(&a.ints))
            .context("a rewritten convolution without geometry")
    };
    let kind = match node.op_type.as_str() {
        op::LINEAR => LayerKind::Linear,
        op::EMBEDDING => LayerKind::Embedding,
        op::CONV => LayerKind::Conv(geometry()?),
        _ => LayerKind::Depthwise(geometry()?),
    };
    let layer = Layer {
        kind,
        weight: size("weight"),
        target: size("target"),
        in_features: size("in_features"),
        out_features: size("out_features"),
        weights: None,
    };
    Ok((expand(layer), vec![]))
}

fn window(c: &ConvAttributes) -> Window {
    use crate::import::Padding as Stated;
    let padding = match c.padding {
        Stated::Explicit(pads) => super::Padding::Explicit(pads),
        Stated::SameUpper => super::Padding::SameUpper,
        Stated::SameLower => super::Padding::SameLower,
    };
    Window { kernel: c.kernel, stride: c.stride, dilation: c.dilation, padding }
}

impl Layer {
    /// The output's shape for an input of `shape`, both as the ONNX file sees them.
    fn output_shape(&self, shape: &[TDim]) -> TractResult<TVec<TDim>> {
        let mut out: TVec<TDim> = shape.iter().cloned().collect();
        match &self.kind {
            LayerKind::Embedding => out.push(self.out_features.to_dim()),
            LayerKind::Linear => {
                let last = out.last_mut().context("a scalar has no features")?;
                ensure!(
                    last.to_i64().is_err() || *last == self.in_features.to_dim(),
                    "expected {} input features, found {last}",
                    self.in_features
                );
                *last = self.out_features.to_dim();
            }
            LayerKind::Conv(c) | LayerKind::Depthwise(c) => {
                let window = window(c);
                let rank = if c.one_axis { 3 } else { 4 };
                ensure!(out.len() == rank, "expected an input of rank {rank}, found {}", out.len());
                let channels = match self.kind {
                    LayerKind::Conv(_) => self.in_features / window.area().max(1),
                    _ => 0,
                };
                ensure!(
                    channels == 0 || out[1].to_i64().is_err() || out[1] == channels.to_dim(),
                    "expected {channels} input channels, found {}",
                    out[1]
                );
                if channels != 0 {
                    out[1] = self.out_features.to_dim();
                }
                for axis in 2..rank {
                    let along = if c.one_axis { 1 } else { axis - 2 };
                    out[axis] = window.output_side(along, &out[axis])?;
                }
            }
        }
        Ok(out)
    }

    /// The axis of an input of this rank whose size the weight states, and that size.
    fn given_size(&self, rank: usize) -> Option<(usize, usize)> {
        match &self.kind {
            LayerKind::Linear => Some((rank.checked_sub(1)?, self.in_features)),
            LayerKind::Conv(c) => {
                (rank > 1).then(|| (1, self.in_features / window(c).area().max(1)))
            }
            LayerKind::Depthwise(_) | LayerKind::Embedding => None,
        }
    }

    fn weights(&self) -> TractResult<&FrozenWeights> {
        self.weights.as_ref().context("a layer without its weights")
    }

    /// Wires the op on its natural layout (features last); `bias` only if it is one value for
    /// each output feature.
    fn wire_op(
        &self,
        name: &str,
        model: &mut TypedModel,
        x: OutletId,
        constants: &[OutletId],
    ) -> TractResult<OutletId> {
        let inputs: TVec<OutletId> = [x].into_iter().chain(constants.iter().copied()).collect();
        let has_bias = !constants.is_empty();
        let target = Some(self.target);
        let linear = || FrozenLinear::new(self.weights()?, self.weight, target, has_bias);
        let wired = match &self.kind {
            LayerKind::Linear => model.wire_node(name, linear()?, &inputs)?,
            LayerKind::Conv(c) if c.is_pointwise() => model.wire_node(name, linear()?, &inputs)?,
            LayerKind::Conv(c) => {
                let op =
                    FrozenConv::new(self.weights()?, self.weight, target, has_bias, window(c))?;
                model.wire_node(name, op, &inputs)?
            }
            LayerKind::Depthwise(c) => {
                model.wire_node(name, FrozenDepthwise { window: window(c) }, &inputs)?
            }
            LayerKind::Embedding => {
                let op = FrozenEmbedding::new(self.weights()?, self.weight, target)?;
                model.wire_node(name, op, &inputs)?
            }
        };
        Ok(wired[0])
    }
}

impl Expansion for Layer {
    fn name(&self) -> StaticName {
        "FrozenLayer".into()
    }

    fn runs_out_of_plan(&self) -> bool {
        false
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        if matches!(self.kind, LayerKind::Embedding) {
            s.equals(&outputs[0].datum_type, f32::datum_type())?;
        } else {
            s.equals(&outputs[0].datum_type, &inputs[0].datum_type)?;
        }
        s.given(&inputs[0].shape, move |s, shape| {
            // A free dimension that must have one size is told by its name.
            if let Some((axis, size)) = self.given_size(shape.len())
                && matches!(shape[axis], TDim::Sym(_))
            {
                s.equals(&inputs[0].shape[axis], size.to_dim())?;
            }
            s.equals(&outputs[0].shape, self.output_shape(&shape)?)
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        if matches!(self.kind, LayerKind::Embedding) {
            // Positions counted from a free dimension.
            let mut ids = inputs[0];
            if model.outlet_fact(ids)?.datum_type == TDim::datum_type() {
                let name = format!("{prefix}.ids");
                ids = model.wire_node(name, cast(i64::datum_type()), &[ids])?[0];
            }
            return Ok(tvec!(self.wire_op(prefix, model, ids, &[])?));
        }
        // The ops compute in f32; a half-precision graph keeps its types around them.
        let dtype = model.outlet_fact(inputs[0])?.datum_type;
        let mut inputs: TVec<OutletId> = inputs.into();
        if dtype != f32::datum_type() {
            for (i, input) in inputs.iter_mut().enumerate() {
                let name = format!("{prefix}.f32_{i}");
                *input = model.wire_node(name, cast(f32::datum_type()), &[*input])?[0];
            }
        }
        let (x, constants) = (inputs[0], &inputs[1..]);
        let mut y = match &self.kind {
            LayerKind::Linear | LayerKind::Embedding => {
                let fits = |b: &OutletId| -> TractResult<bool> {
                    let shape = &model.outlet_fact(*b)?.shape;
                    Ok(shape.rank() == 1 && shape[0] == self.out_features.to_dim())
                };
                match constants.first() {
                    Some(bias) if fits(bias)? => self.wire_op(prefix, model, x, &[*bias])?,
                    Some(bias) => {
                        let name = format!("{prefix}.product");
                        let y = self.wire_op(&name, model, x, &[])?;
                        let operands = wire_rank_broadcast(prefix, model, &[y, *bias])?;
                        model.wire_node(prefix, math::add(), &operands)?[0]
                    }
                    None => self.wire_op(prefix, model, x, &[])?,
                }
            }
            LayerKind::Conv(c) | LayerKind::Depthwise(c) => {
                let wire = |model: &mut TypedModel, name: &str, op: AxisOp, from| {
                    model.wire_node(format!("{prefix}.{name}"), op, &[from]).map(|o| o[0])
                };
                let mut x = x;
                if c.one_axis {
                    x = wire(model, "as_2d", AxisOp::Add(2), x)?;
                }
                x = wire(model, "channels_last", AxisOp::Move(1, 3), x)?;
                let y = self.wire_op(&format!("{prefix}.frozen"), model, x, constants)?;
                let y = wire(model, "channels_first", AxisOp::Move(3, 1), y)?;
                if c.one_axis { wire(model, "as_1d", AxisOp::Rm(2), y)? } else { y }
            }
        };
        if dtype != f32::datum_type() {
            y = model.wire_node(format!("{prefix}.half"), cast(dtype), &[y])?[0];
        }
        Ok(tvec!(y))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_onnx::pb::tensor_proto::DataType;
    use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension::Value as Dim};
    use tract_onnx::pb::type_proto::{self, Value as TypeValue};
    use tract_onnx::pb::{TensorProto, TensorShapeProto, TypeProto, ValueInfoProto};

    /// Whether a vector's length, and what its values, are equal to 3.
    fn equal(op: &str, length: Dim) -> ModelProto {
        let node = |op: &str, input: &[&str], output: &str| NodeProto {
            op_type: op.into(),
            name: output.into(),
            input: input.iter().map(|i| i.to_string()).collect(),
            output: vec![output.into()],
            ..NodeProto::default()
        };
        let dim = vec![Dimension { value: Some(length), ..Dimension::default() }];
        let tensor = type_proto::Tensor {
            elem_type: DataType::Int64 as i32,
            shape: Some(TensorShapeProto { dim }),
        };
        let r#type = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
        let info =
            |name: &str, r#type| ValueInfoProto { name: name.into(), r#type, ..Default::default() };
        let three = TensorProto {
            name: "three".into(),
            data_type: DataType::Int64 as i32,
            dims: vec![1],
            raw_data: 3i64.to_le_bytes().to_vec(),
            ..Default::default()
        };
        ModelProto {
            graph: Some(GraphProto {
                node: vec![node(op, &["x"], "what"), node("Equal", &["what", "three"], "same")],
                input: vec![info("x", Some(r#type))],
                output: vec![info("same", None)],
                initializer: vec![three],
                ..Default::default()
            }),
            opset_import: vec![tract_onnx::pb::OperatorSetIdProto {
                version: 17,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn sizes_decide_and_values_do_not() {
        assert_eq!(decided(&equal("Shape", Dim::DimValue(3))), Some(true));
        assert_eq!(decided(&equal("Shape", Dim::DimValue(4))), Some(false));
        assert_eq!(decided(&equal("Shape", Dim::DimParam("n".into()))), None);
        assert_eq!(decided(&equal("Size", Dim::DimParam("n".into()))), None);
        assert_eq!(decided(&equal("Identity", Dim::DimValue(1))), None);
        assert_eq!(decided(&equal("NoSuch", Dim::DimValue(1))), None);
    }

    #[test]
    fn a_free_size_is_compared_once_it_is_known() {
        let model = equal("Shape", Dim::DimParam("n".into()));
        let plan = lower(&model, &FrozenWeights::new(vec![])).unwrap().into_runnable().unwrap();
        for length in 1..5 {
            let x = Tensor::zero::<i64>(&[length]).unwrap();
            let answer = plan.run(tvec!(x.into_tvalue())).unwrap();
            assert_eq!(*answer[0], tensor1(&[length == 3]), "{length}");
        }
    }
}
