//! What tract's own importer refuses over free dimensions: a Slice in steps or of an old operator set,
//! a Flatten of two, a product with one.

use tract_core::ops::array::{StridedSlice, Topk, strided_slice::Dim};
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::cast::cast;
use tract_core::ops::change_axes::to_axis_ops_with_tf_rules;
use tract_core::ops::math::Mul;
use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::expandable::{Expansion, expand};

/// Puts the readers of this file in the place of tract's.
pub(super) fn register(register: &mut OnnxOpRegister) {
    register.insert("Slice", read_slice);
    register.insert("Flatten", read_flatten);
}

/// Begin, end, axes and steps of a slice: constants of the node, or some of its inputs.
#[derive(Clone, Debug)]
struct Slice {
    /// Of operator sets before 10: begin, end, axes.
    stated: Option<[Arc<Tensor>; 3]>,
    op: StridedSlice,
}

fn read_slice(
    ctx: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let op = |axes, steps| StridedSlice {
        optional_axes_input: axes,
        optional_steps_input: steps,
        begin_mask: 0,
        end_mask: 0,
        shrink_axis_mask: 0,
    };
    if ctx.onnx_operator_set_version >= 10 {
        // Inputs left out are not counted.
        let given = |at: usize| node.input.get(at).is_some_and(|i| !i.is_empty());
        let axes = given(3).then_some(3);
        let steps = given(4).then_some(if given(3) { 4 } else { 3 });
        return Ok((expand(Slice { stated: None, op: op(axes, steps) }), vec![]));
    }
    let ints = |name: &str| {
        node.attribute.iter().find(|a| a.name == name).map(|a| a.ints.clone()).unwrap_or_default()
    };
    let (starts, ends, axes) = (ints("starts"), ints("ends"), ints("axes"));
    let count = starts.len() as i64;
    let axes = if axes.is_empty() { (0..count).collect() } else { axes };
    ensure!(
        starts.len() == ends.len() && starts.len() == axes.len(),
        "{} starts, {} ends and {} axes",
        starts.len(),
        ends.len(),
        axes.len()
    );
    let stated = [starts, ends, axes].map(|v| tensor1(&v).into_arc_tensor());
    Ok((expand(Slice { stated: Some(stated), op: op(Some(3), None) }), vec![]))
}

/// The number of elements that a slice takes, steps over free dimensions included.
fn length(dim: &Dim) -> TDim {
    let span = match dim.stride > 0 {
        true => dim.end.clone() - &dim.begin,
        false => dim.begin.clone() - &dim.end,
    };
    let length = span.div_ceil(dim.stride.unsigned_abs() as u64);
    if length.to_i64().is_ok_and(|n| n < 0) { 0.to_dim() } else { length }
}

impl Slice {
    /// The output's shape; `params` are begin, end, and what optional inputs there are.
    fn output_shape(&self, shape: &[TDim], params: &[Arc<Tensor>]) -> TractResult<TVec<TDim>> {
        let param = |input: Option<usize>| -> TractResult<Option<Vec<i64>>> {
            let Some(tensor) = input.and_then(|i| params.get(i - 1)) else { return Ok(None) };
            let cast = tensor.cast_to::<i64>()?;
            Ok(Some(cast.try_as_plain_ram()?.as_slice::<i64>()?.to_vec()))
        };
        let (begin, end) = match params {
            [begin, end, ..] => (begin, end),
            _ => bail!("a slice without begin and end"),
        };
        let axes = param(self.op.optional_axes_input)?;
        let axes = axes.unwrap_or_else(|| (0..begin.len() as i64).collect());
        let steps = param(self.op.optional_steps_input)?.unwrap_or_else(|| vec![1; axes.len()]);
        let steps: Vec<i32> =
            steps.iter().map(|&s| s.clamp(-i32::MAX as i64, i32::MAX as i64) as i32).collect();
        ensure!(!steps.contains(&0), "a slice in steps of 0");
        let mut out: TVec<TDim> = shape.into();
        for (at, axis) in axes.into_iter().enumerate() {
            let axis = if axis < 0 { axis + shape.len() as i64 } else { axis } as usize;
            ensure!(axis < shape.len(), "axis {axis} of {}", shape.len());
            let dim = self.op.prepare_one_dim(at, &shape[axis], begin, end, &steps)?;
            out[axis] = length(&dim);
        }
        Ok(out)
    }
}

impl Expansion for Slice {
    fn name(&self) -> StaticName {
        "Slice".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        s.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        s.equals(&inputs[0].rank, &outputs[0].rank)?;
        if let Some(stated) = &self.stated {
            return s.given(&inputs[0].shape, move |s, shape| {
                s.equals(&outputs[0].shape, self.output_shape(&shape, stated)?)
            });
        }
        check_input_arity(
            inputs,
            3 + usize::from(self.op.optional_axes_input.is_some())
                + usize::from(self.op.optional_steps_input.is_some()),
        )?;
        for params in &inputs[1..] {
            s.equals(&params.rank, 1)?;
            s.equals(&inputs[1].shape[0], &params.shape[0])?;
        }
        if let Some(axes) = self.op.optional_axes_input {
            // Begin and end may be computed; what is not sliced is known all the same.
            s.given_2(&inputs[axes].value, &outputs[0].rank, move |s, axes, rank| {
                let axes = axes.cast_to::<i64>()?;
                let axes = axes.try_as_plain_ram()?.as_slice::<i64>()?.to_vec();
                for axis in 0..rank {
                    if !axes.contains(&axis) && !axes.contains(&(axis - rank)) {
                        let axis = axis as usize;
                        s.equals(&inputs[0].shape[axis], &outputs[0].shape[axis])?;
                    }
                }
                Ok(())
            })?;
        }
        s.given(&inputs[0].shape, move |s, shape| {
            s.given_all(inputs[1..].iter().map(|i| &i.value), move |s, params| {
                s.equals(&outputs[0].shape, self.output_shape(&shape, &params)?)
            })
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let mut inputs: TVec<OutletId> = inputs.into();
        for (name, tensor) in ["begin", "end", "axes"].iter().zip(self.stated.iter().flatten()) {
            inputs.push(model.add_const(format!("{prefix}.{name}"), tensor.clone())?);
        }
        model.wire_node(prefix, self.op.clone(), &inputs)
    }
}

/// Computes products of sizes with a free dimension as integers, since tract's declutter asks each
/// constant factor for a number.
///
/// # Errors
/// tract's, where a patch does not fit.
pub(super) fn free_factors_as_integers(model: &mut TypedModel) -> TractResult<()> {
    for id in model.eval_order()? {
        let node = model.node(id);
        let facts = model.node_input_facts(id)?;
        let free = |fact: &&TypedFact| {
            let value = fact.uniform.as_ref().filter(|u| u.datum_type() == TDim::datum_type());
            value.is_some_and(|u| u.cast_to_scalar::<i64>().is_err())
        };
        let product = node.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<Mul>());
        let constant = facts.iter().all(|f| f.konst.is_some());
        let open = facts.iter().any(free);
        drop(facts);
        if !product || constant || !open {
            continue;
        }
        let (name, factors, op) = (node.name.clone(), node.inputs.clone(), node.op.clone());
        let mut patch = TypedModelPatch::default();
        let mut wires = tvec![];
        for (at, factor) in factors.into_iter().enumerate() {
            let wire = patch.tap_model(model, factor)?;
            let integer = cast(i64::datum_type());
            wires.push(patch.wire_node(format!("{name}.i64_{at}"), integer, &[wire])?[0]);
        }
        let wire = patch.wire_node(format!("{name}.product"), op, &wires)?;
        let wire = patch.wire_node(&name, cast(TDim::datum_type()), &wire)?;
        patch.shunt_outside(model, id.into(), wire[0])?;
        patch.apply(model)?;
    }
    Ok(())
}

/// Gives integers to what orders values: tract casts 64-bit integers to dimensions, which it can't order
/// in a run.
///
/// # Errors
/// tract's, where a patch does not fit.
pub(super) fn ordered_as_integers(model: &mut TypedModel) -> TractResult<()> {
    for id in model.eval_order()? {
        let node = model.node(id);
        let Some(values) = node.inputs.first().filter(|_| node.op_is::<Topk>()) else { continue };
        if model.outlet_fact(*values)?.datum_type != TDim::datum_type() {
            continue;
        }
        let (name, inputs, op) = (node.name.clone(), node.inputs.clone(), node.op.clone());
        let mut patch = TypedModelPatch::default();
        let mut wires = tvec![];
        for input in inputs {
            wires.push(patch.tap_model(model, input)?);
        }
        let integer = cast(i64::datum_type());
        wires[0] = patch.wire_node(format!("{name}.i64"), integer, &wires[..1])?[0];
        let found = patch.wire_node(format!("{name}.ordered"), op, &wires)?;
        let values = patch.wire_node(&name, cast(TDim::datum_type()), &found[..1])?[0];
        patch.shunt_outside(model, id.into(), values)?;
        patch.shunt_outside(model, OutletId::new(id, 1), found[1])?;
        patch.apply(model)?;
    }
    Ok(())
}

#[derive(Clone, Debug)]
struct Flatten {
    axis: i64,
}

fn read_flatten(
    _: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let axis = node.attribute.iter().find(|a| a.name == "axis").map_or(1, |a| a.i);
    Ok((expand(Flatten { axis }), vec![]))
}

impl Flatten {
    fn output_shape(&self, shape: &[TDim]) -> TractResult<TVec<TDim>> {
        let rank = shape.len() as i64;
        ensure!((-rank..=rank).contains(&self.axis), "axis {} of {rank}", self.axis);
        let axis = if self.axis < 0 { self.axis + rank } else { self.axis } as usize;
        Ok(tvec![shape[..axis].iter().product(), shape[axis..].iter().product()])
    }
}

impl Expansion for Flatten {
    fn name(&self) -> StaticName {
        "Flatten".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        s.equals(&outputs[0].datum_type, &inputs[0].datum_type)?;
        s.given(&inputs[0].shape, move |s, shape| {
            s.equals(&outputs[0].shape, self.output_shape(&shape)?)
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let shape = model.outlet_fact(inputs[0])?.shape.to_tvec();
        let mut wire = tvec!(inputs[0]);
        let steps = to_axis_ops_with_tf_rules(&shape, &self.output_shape(&shape)?)?;
        for (at, op) in steps.into_iter().enumerate() {
            wire = model.wire_node(format!("{prefix}.{at}"), op, &wire)?;
        }
        Ok(wire)
    }
}
