//! Convolutions with what follows them: a residual addition, then an activation. The values are
//! changed while a stretch of them is in the cache, after the adapter's part has been added.

use tract_core::internal::*;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::element_wise::ElementWiseOp;
use tract_core::ops::math::{Add, Max, Min};
use tract_core::ops::nn::{HardSwish, Silu};

use super::Rule;
use crate::graph::conv::After;
use crate::graph::weights::{active_lora, check_lora, filled, floats};
use crate::graph::{FrozenConv, FrozenDepthwise, FrozenLinear};
use crate::quant::{Activation, product, product_add};

pub const CONVOLUTION_RESIDUAL: Rule = Rule { name: "convolution-residual", apply: residual };
pub const CONVOLUTION_ACTIVATION: Rule = Rule { name: "convolution-activation", apply: activation };

/// Rows of a 1×1 convolution that are finished at a time.
const ROWS: usize = 256;

/// The convolution that a fused step starts with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Layer {
    Conv(FrozenConv),
    Pointwise(FrozenLinear),
    Depthwise(FrozenDepthwise),
}

/// y = activation(layer(x) + other). Inputs: those of the layer, then `other`, of y's shape, if there
/// is one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FusedConvolution {
    layer: Layer,
    adds: bool,
    activation: Activation,
}

impl FusedConvolution {
    /// The layer at `node` with nothing after it, or what is fused there so far.
    fn at(model: &TypedModel, node: &TypedNode) -> TractResult<Option<FusedConvolution>> {
        if let Some(fused) = node.op_as::<FusedConvolution>() {
            return Ok(Some(fused.clone()));
        }
        let layer = if let Some(op) = node.op_as::<FrozenConv>() {
            Layer::Conv(op.clone())
        } else if let Some(op) = node.op_as::<FrozenDepthwise>() {
            Layer::Depthwise(op.clone())
        } else if let Some(op) = node.op_as::<FrozenLinear>()
            && model.outlet_fact(node.inputs[0])?.rank() == 4
        {
            Layer::Pointwise(op.clone())
        } else {
            return Ok(None);
        };
        Ok(Some(FusedConvolution { layer, adds: false, activation: Activation::Identity }))
    }

    fn layer(&self) -> &dyn TypedOp {
        match &self.layer {
            Layer::Conv(op) => op,
            Layer::Pointwise(op) => op,
            Layer::Depthwise(op) => op,
        }
    }

    /// The layer's part of `inputs`, and what is added.
    fn split<'a, T>(&self, inputs: &'a [T]) -> TractResult<(&'a [T], Option<&'a T>)> {
        if !self.adds {
            return Ok((inputs, None));
        }
        let (last, layer) = inputs.split_last().context("no input to add")?;
        Ok((layer, Some(last)))
    }
}

impl Op for FusedConvolution {
    fn name(&self) -> StaticName {
        "FusedConvolution".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let mut info = vec![self.layer().name().to_string()];
        info.extend(self.layer().info()?);
        info.push(format!("adds {}, {:?}", self.adds, self.activation));
        Ok(info)
    }

    op_as_typed_op!();
}

impl EvalOp for FusedConvolution {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (layer, add) = self.split(&inputs)?;
        let add = add.map(|add| floats(add)).transpose()?;
        let after = After { add, activation: self.activation };
        match &self.layer {
            Layer::Conv(op) => op.compute(ctx, layer, &after),
            Layer::Depthwise(op) => op.compute(layer, self.activation),
            Layer::Pointwise(op) => pointwise(op, ctx, layer, &after),
        }
    }
}

/// A linear layer over pixels, a stretch of them at a time.
fn pointwise(
    op: &FrozenLinear,
    ctx: &EvalContext,
    inputs: &[TValue],
    after: &After<'_>,
) -> TractResult<TVec<TValue>> {
    let w = op.weights.weight(op.weight)?;
    let (cols, rows) = (w.cols(), w.rows());
    let mut shape: TVec<usize> = inputs[0].shape().into();
    let last = shape.last_mut().context("x is a scalar")?;
    ensure!(*last == cols && rows > 0, "x's last axis: expected {cols}, found {last}");
    *last = rows;
    let x = floats(&inputs[0])?;
    let bias = inputs.get(1).map(|b| floats(b)).transpose()?;
    let lora = active_lora(ctx, op.target);
    if let Some(lora) = lora {
        check_lora(lora, cols, rows)?;
    }
    let y = filled(&shape, |y| {
        for (i, y) in y.chunks_mut(ROWS * rows).enumerate() {
            let count = y.len() / rows;
            let x = &x[i * ROWS * cols..][..count * cols];
            product(w, x, bias, y);
            if let Some(lora) = lora {
                let mut inner = vec![0.0; count * lora.a.view().rows()];
                product(lora.a.view(), x, None, &mut inner);
                product_add(lora.b.view(), &inner, y);
            }
            after.apply(i * ROWS * rows, y);
        }
        Ok(())
    })?;
    Ok(tvec!(y))
}

impl TypedOp for FusedConvolution {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let (layer, add) = self.split(inputs)?;
        let facts = self.layer().output_facts(layer)?;
        if let Some(add) = add {
            ensure!(
                add.shape == facts[0].shape && add.datum_type == facts[0].datum_type,
                "what is added: expected {:?}, found {:?}",
                facts[0],
                add
            );
        }
        Ok(facts)
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        self.layer().cost(self.split(inputs)?.0)
    }
}

/// The convolution that gives `outlet`, if nothing else reads it.
fn before<'a>(
    model: &'a TypedModel,
    outlet: OutletId,
) -> TractResult<Option<(&'a TypedNode, FusedConvolution)>> {
    let node = model.node(outlet.node);
    let read_once = node.outputs.len() == 1
        && node.outputs[0].successors.len() == 1
        && !model.outputs.contains(&outlet);
    if !read_once {
        return Ok(None);
    }
    Ok(FusedConvolution::at(model, node)?.map(|fused| (node, fused)))
}

/// `op` in the place of `layer` and of `last`, which read it.
fn replaced(
    model: &TypedModel,
    last: &TypedNode,
    layer: &TypedNode,
    add: Option<OutletId>,
    op: FusedConvolution,
) -> TractResult<TypedModelPatch> {
    let mut patch = TypedModelPatch::default();
    let mut inputs = tvec!();
    for input in layer.inputs.iter().chain(&add) {
        inputs.push(patch.tap_model(model, *input)?);
    }
    let wire = patch.wire_node(&last.name, op, &inputs)?;
    patch.shunt_outside(model, last.id.into(), wire[0])?;
    Ok(patch)
}

fn residual(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(TypedBinOp(op, None)) = node.op_as::<TypedBinOp>() else { return Ok(None) };
    if !op.is::<Add>() {
        return Ok(None);
    }
    // The later of two layers that could be is the one that finds the other's result there.
    let mut sides = [0, 1];
    sides.sort_by_key(|i| std::cmp::Reverse(node.inputs[*i].node));
    for i in sides {
        let (from, other) = (node.inputs[i], node.inputs[1 - i]);
        let Some((layer, fused)) = before(model, from)? else { continue };
        let (y, add) = (model.outlet_fact(from)?, model.outlet_fact(other)?);
        let fits = y.shape == add.shape && add.datum_type == y.datum_type;
        let free = !fused.adds && fused.activation == Activation::Identity;
        if fits && free && from != other && !matches!(fused.layer, Layer::Depthwise(_)) {
            let op = FusedConvolution { adds: true, ..fused };
            return replaced(model, node, layer, Some(other), op).map(Some);
        }
    }
    Ok(None)
}

/// The one value of a constant that is the same everywhere.
pub(super) fn uniform(model: &TypedModel, outlet: OutletId) -> TractResult<Option<f32>> {
    let fact = model.outlet_fact(outlet)?;
    let konst = fact.konst.as_ref().filter(|k| k.datum_type() == f32::datum_type());
    let Some(values) = konst.and_then(|k| floats(k).ok()) else { return Ok(None) };
    Ok(values.first().copied().filter(|v| values.iter().all(|w| w.to_bits() == v.to_bits())))
}

/// The activation that `node` is after `so_far`, and which of its inputs it is of.
fn activation_of(
    model: &TypedModel,
    node: &TypedNode,
    input: usize,
    so_far: Activation,
) -> TractResult<Option<Activation>> {
    if let Some(op) = node.op_as::<ElementWiseOp>() {
        let op = &op.0;
        let found = if op.is::<HardSwish>() {
            Activation::HardSwish
        } else if op.is::<Silu>() {
            Activation::Silu
        } else {
            return Ok(None);
        };
        return Ok((so_far == Activation::Identity).then_some(found));
    }
    let Some(TypedBinOp(op, None)) = node.op_as::<TypedBinOp>() else { return Ok(None) };
    if !op.is::<Max>() && !op.is::<Min>() {
        return Ok(None);
    }
    let Some(bound) = uniform(model, node.inputs[1 - input])? else { return Ok(None) };
    let (low, high) = match so_far {
        Activation::Identity => (f32::NEG_INFINITY, f32::INFINITY),
        Activation::Clamp { low, high } => (low, high),
        _ => return Ok(None),
    };
    Ok(match op.is::<Max>() {
        true if bound <= high => Some(Activation::Clamp { low: low.max(bound), high }),
        false if !bound.is_nan() => Some(Activation::Clamp { low, high: high.min(bound) }),
        _ => None,
    })
}

fn activation(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    for (i, from) in node.inputs.iter().enumerate().take(2) {
        // What the constant is spread over must be all of y, and no more.
        if model.outlet_fact(*from)?.shape != node.outputs[0].fact.shape {
            continue;
        }
        let Some((layer, fused)) = before(model, *from)? else { continue };
        if let Some(activation) = activation_of(model, node, i, fused.activation)? {
            let op = FusedConvolution { activation, ..fused };
            return replaced(model, node, layer, None, op).map(Some);
        }
    }
    Ok(None)
}
