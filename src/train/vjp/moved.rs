//! Rules of ops that carry elements to other places, and of those that resample: dx by what the op does
//! to places.

use tract_core::internal::*;
use tract_core::ops::array::{
    GatherElements, GatherNd, ScatterElements, ScatterNd, ScatterReduction, Topk,
};
use tract_core::ops::logic::comp_eq;
use tract_core::ops::nn::resize::{AxisPlan, Resize};

use super::ops::again;
use super::{InputGradients, Site, Wires};
use crate::error::Result;

/// dx of an op that only moves and repeats elements of x, from (dy, the op's other inputs): the op
/// itself, run over the places of x, tells where each element of dy came from. Of `shape`, x's.
#[derive(Clone, Debug)]
pub struct MovedGradient {
    /// The forward op.
    pub op: Box<dyn TypedOp>,
    /// Shape of dx.
    pub shape: ShapeFact,
}

impl PartialEq for MovedGradient {
    fn eq(&self, _: &MovedGradient) -> bool {
        false
    }
}

impl Eq for MovedGradient {}

/// dx of a resize from (dy, its scales or sizes); `shape` is x's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ResizeGradient {
    /// The forward op.
    pub resize: Resize,
    /// Shape of dx.
    pub shape: ShapeFact,
}

/// Gradient of the first input of an op that moves its elements.
pub(super) fn moved(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let shape = b.fact(site.input(0)?)?.shape.clone();
    first(b, site, MovedGradient { op: site.node.op.clone(), shape })
}

pub(super) fn resize(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let resize = site.op::<Resize>()?.clone();
    let shape = b.fact(site.input(0)?)?.shape.clone();
    first(b, site, ResizeGradient { resize, shape })
}

/// The gradient of the first input alone, by `op` from dy and the other inputs.
fn first(b: &mut Wires, site: &Site, op: impl Into<Box<dyn TypedOp>>) -> Result<InputGradients> {
    let mut inputs = tvec![site.gradient()?];
    inputs.extend(site.node.inputs.iter().skip(1).copied());
    let mut gradients = tvec![None; site.node.inputs.len()];
    gradients[0] = Some(b.wire(op, &inputs)?);
    Ok(gradients)
}

/// The greatest or least were taken from the places that the second output names.
pub(super) fn top_k(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let axis = site.op::<Topk>()?.axis;
    let fact = b.fact(site.input(0)?)?.clone();
    let zeros = b.zeros(fact.datum_type, &fact.shape)?;
    let places = OutletId::new(site.node.id, 1);
    let op = ScatterElements { axis, reduction: ScatterReduction::Add };
    Ok(tvec![Some(b.wire(op, &[zeros, places, site.gradient()?])?), None])
}

/// What was put at the named places, and what stayed elsewhere. Where places are named twice, each of
/// them gets the gradient, as in PyTorch.
pub(super) fn scatter_elements(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let op = site.op::<ScatterElements>()?.clone();
    let gather = GatherElements::new(op.axis);
    if matches!(op.reduction, ScatterReduction::Max | ScatterReduction::Min) {
        return scatter_extreme(b, site, op.axis);
    }
    scatter(b, site, op.reduction, Box::new(op), Box::new(gather))
}

/// The greatest (or least) of what comes to a place gets its gradient; equal ones share it, as PyTorch
/// has it.
fn scatter_extreme(b: &mut Wires, site: &Site, axis: usize) -> Result<InputGradients> {
    let (g, y) = (site.gradient()?, site.output());
    let (data, at, updates) = (site.input(0)?, site.input(1)?, site.input(2)?);
    let gather = GatherElements::new(axis);
    let add = ScatterElements { axis, reduction: ScatterReduction::Add };
    let dt = b.fact(g)?.datum_type;
    let reached = b.wire(gather.clone(), &[y, at])?;
    let is_data = b.compare(comp_eq(), data, y)?;
    let is_data = b.cast(is_data, dt)?;
    let is_update = b.compare(comp_eq(), updates, reached)?;
    let is_update = b.cast(is_update, dt)?;
    let count = b.wire(add, &[is_data, at, is_update])?;
    let part = b.div(g, count)?;
    let of_data = b.mul(part, is_data)?;
    let of_updates = b.wire(gather, &[part, at])?;
    let of_updates = b.mul(of_updates, is_update)?;
    Ok(tvec![Some(of_data), None, Some(of_updates)])
}

pub(super) fn scatter_nd(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let op = site.op::<ScatterNd>()?.clone();
    let gather = GatherNd { batch_dims: 0 };
    scatter(b, site, op.reduction, Box::new(op), Box::new(gather))
}

fn scatter(
    b: &mut Wires,
    site: &Site,
    reduction: ScatterReduction,
    op: Box<dyn TypedOp>,
    gather: Box<dyn TypedOp>,
) -> Result<InputGradients> {
    let (g, at) = (site.gradient()?, site.input(1)?);
    let mut gradients = tvec![None, None, None];
    match reduction {
        ScatterReduction::Add => gradients[0] = Some(g),
        ScatterReduction::None if site.wants(0) => {
            let fact = b.fact(site.input(2)?)?.clone();
            let zeros = b.zeros(fact.datum_type, &fact.shape)?;
            gradients[0] = Some(b.wire(op, &[g, at, zeros])?);
        }
        ScatterReduction::None => {}
        other => return Err(site.unsupported(&format!("no rule for {}", other.as_str()))),
    }
    if site.wants(2) {
        gradients[2] = Some(b.wire(gather, &[g, at])?);
    }
    Ok(gradients)
}

impl Op for MovedGradient {
    fn name(&self) -> StaticName {
        "OffshootMovedGradient".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![self.op.name().to_string()])
    }

    op_as_typed_op!();
}

impl EvalOp for MovedGradient {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let shape = self.shape.eval_to_usize(ctx.symbols)?;
        let volume: usize = shape.iter().product();
        let places: Vec<i64> = (0..volume as i64).collect();
        let places = Tensor::from_shape(&shape, &places)?;
        let dy = std::mem::replace(&mut inputs[0], places.into_tvalue());
        let from = self.op.eval(ctx, inputs)?.remove(0);
        ensure!(from.shape() == dy.shape(), "shapes {:?} and {:?}", from.shape(), dy.shape());
        let dt = dy.datum_type();
        let dy = dy.cast_to::<f32>()?;
        let dy = dy.try_as_plain_ram()?.as_slice::<f32>()?;
        let mut dx = Tensor::zero::<f32>(&shape)?;
        let mut plain = dx.try_as_plain_ram_mut()?;
        let values = plain.as_slice_mut::<f32>()?;
        for (from, dy) in from.try_as_plain_ram()?.as_slice::<i64>()?.iter().zip(dy) {
            let from = usize::try_from(*from).ok().and_then(|at| values.get_mut(at));
            *from.context("a place outside")? += dy;
        }
        Ok(tvec![dx.cast_to_dt(dt)?.into_owned().into_tvalue()])
    }
}

impl TypedOp for MovedGradient {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec![inputs[0].datum_type.fact(self.shape.clone())])
    }

    fn set_symbols(
        &self,
        _source: &TypedModel,
        node: &TypedNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
        subs: &HashMap<Symbol, TDim>,
    ) -> TractResult<TVec<OutletId>> {
        let shape = self.shape.substitute(subs)?.into_owned();
        again(node, target, mapping, MovedGradient { op: self.op.clone(), shape })
    }

    as_op!();
}

impl Op for ResizeGradient {
    fn name(&self) -> StaticName {
        "OffshootResizeGradient".into()
    }

    op_as_typed_op!();
}

impl EvalOp for ResizeGradient {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let shape = self.shape.eval_to_usize(ctx.symbols)?;
        let dt = inputs[0].datum_type();
        let dy = inputs[0].cast_to::<f32>()?;
        let scales = self.resize.optional_scales_input.and_then(|slot| inputs.get(slot));
        let scales: TVec<f32> = match scales.filter(|s| s.len() == shape.len()) {
            Some(scales) => scales.cast_to::<f32>()?.try_as_plain_ram()?.as_slice::<f32>()?.into(),
            None => dy.shape().iter().zip(&*shape).map(|(o, i)| *o as f32 / *i as f32).collect(),
        };
        let mut found: TVec<usize> = dy.shape().into();
        let mut data = dy.try_as_plain_ram()?.as_slice::<f32>()?.to_vec();
        for (axis, scale) in scales.into_iter().enumerate() {
            let (len_in, len_out) = (shape[axis], found[axis]);
            if len_in != len_out || scale != 1.0 {
                let plan = self.resize.plan_axis(scale, len_in, len_out);
                data = spread_axis(&data, &found, axis, &plan, len_in);
                found[axis] = len_in;
            }
        }
        let dx = Tensor::from_shape(&found, &data)?;
        Ok(tvec![dx.cast_to_dt(dt)?.into_owned().into_tvalue()])
    }
}

/// The adjoint of resampling along `axis`: dy of `shape` to a length of `len_in`.
fn spread_axis(
    dy: &[f32],
    shape: &[usize],
    axis: usize,
    plan: &AxisPlan,
    len_in: usize,
) -> Vec<f32> {
    let inner: usize = shape[axis + 1..].iter().product();
    let outer: usize = shape[..axis].iter().product();
    let len_out = shape[axis];
    let mut dx = vec![0f32; outer * len_in * inner];
    if dx.is_empty() || len_out == 0 {
        return dx;
    }
    for (dy, dx) in dy.chunks_exact(len_out * inner).zip(dx.chunks_exact_mut(len_in * inner)) {
        for (x, dy) in dy.chunks_exact(inner).enumerate().filter(|(x, _)| !plan.extrapolated[*x]) {
            let taps = x * plan.window..(x + 1) * plan.window;
            for (&i, &w) in plan.indices[taps.clone()].iter().zip(&plan.weights[taps]) {
                dx[i * inner..][..inner].iter_mut().zip(dy).for_each(|(dx, dy)| *dx += w * dy);
            }
        }
    }
    dx
}

impl TypedOp for ResizeGradient {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec![inputs[0].datum_type.fact(self.shape.clone())])
    }

    fn set_symbols(
        &self,
        _source: &TypedModel,
        node: &TypedNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
        subs: &HashMap<Symbol, TDim>,
    ) -> TractResult<TVec<OutletId>> {
        let shape = self.shape.substitute(subs)?.into_owned();
        again(node, target, mapping, ResizeGradient { resize: self.resize.clone(), shape })
    }

    as_op!();
}
