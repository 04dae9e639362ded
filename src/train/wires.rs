//! Wiring of small ops under unique names: what gradient rules, losses and heads are written with.

use tract_core::internal::*;
use tract_core::ops::array::MultiBroadcastTo;
use tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_core::ops::cast::cast;
use tract_core::ops::element_wise::ElementWiseOp;
use tract_core::ops::logic::Iff;
use tract_core::ops::math;
use tract_core::ops::nn::{Reduce, Reducer};

use crate::error::{Error, Result};

/// Wires nodes into a model, named after the place they belong to.
pub struct Wires<'m> {
    model: &'m mut TypedModel,
    place: String,
}

impl<'m> Wires<'m> {
    /// Wires into `model`, at `place`.
    pub fn new(model: &'m mut TypedModel, place: &str) -> Wires<'m> {
        Wires { model, place: place.to_string() }
    }

    /// From here on nodes are named after `place`.
    pub fn enter(&mut self, place: &str) {
        self.place = place.to_string();
    }

    /// The model as it stands.
    pub fn model(&self) -> &TypedModel {
        self.model
    }

    /// Element type, shape and constant value of a tensor.
    pub fn fact(&self, outlet: OutletId) -> Result<&TypedFact> {
        self.model.outlet_fact(outlet).map_err(|e| wiring_error(&self.place, "its fact", e))
    }

    /// Number of axes of a tensor.
    pub fn rank(&self, outlet: OutletId) -> Result<usize> {
        Ok(self.fact(outlet)?.rank())
    }

    /// One node; its first output.
    pub fn wire(
        &mut self,
        op: impl Into<Box<dyn TypedOp>>,
        inputs: &[OutletId],
    ) -> Result<OutletId> {
        Ok(self.wire_all(op, inputs)?[0])
    }

    /// One node; all its outputs.
    pub fn wire_all(
        &mut self,
        op: impl Into<Box<dyn TypedOp>>,
        inputs: &[OutletId],
    ) -> Result<TVec<OutletId>> {
        let op = op.into();
        let kind = op.name();
        let name = format!("{}.{}.{}", self.place, kind, self.model.nodes().len());
        let wires = self.model.wire_node(name, op, inputs);
        wires.map_err(|e| wiring_error(&self.place, &kind, e))
    }

    /// Puts `op` in the place of a node's: one that gives the same outputs, and more behind them.
    pub fn extend(&mut self, node: usize, op: impl Into<Box<dyn TypedOp>>) -> Result<()> {
        let op = op.into();
        let wiring = |e| wiring_error(&self.place, &op.name(), e);
        let inputs = self.model.node_input_facts(node).map_err(wiring)?;
        let facts = op.output_facts(&inputs).map_err(wiring)?;
        drop(inputs);
        let node = self.model.node_mut(node);
        for fact in facts.into_iter().skip(node.outputs.len()) {
            node.outputs.push(Outlet { fact, successors: tvec![] });
        }
        node.op = op;
        Ok(())
    }

    /// An input of the model like `fact`.
    pub fn state(&mut self, name: &str, fact: TypedFact) -> Result<OutletId> {
        self.model.add_source(name, fact).map_err(|e| wiring_error(&self.place, name, e))
    }

    /// An input of the model, of f32.
    pub fn source(&mut self, name: &str, shape: &[TDim]) -> Result<OutletId> {
        if self.model.nodes().iter().any(|n| n.name == name) {
            return Err(Error::usage(format!("the graph has a node '{name}' already")));
        }
        let fact = f32::fact(shape);
        self.model.add_source(name, fact).map_err(|e| wiring_error(&self.place, name, e))
    }

    /// Moves, adds or removes an axis.
    pub fn axis(&mut self, op: AxisOp, a: OutletId) -> Result<OutletId> {
        self.wire(op, &[a])
    }

    /// A constant.
    pub fn constant(&mut self, tensor: Tensor) -> Result<OutletId> {
        let name = format!("{}.const.{}", self.place, self.model.nodes().len());
        self.model.add_const(name, tensor).map_err(|e| wiring_error(&self.place, "a constant", e))
    }

    /// A constant of one value with the rank and element type of `like`.
    pub fn scalar(&mut self, value: f32, like: OutletId) -> Result<OutletId> {
        let fact = self.fact(like)?;
        let (dt, rank) = (fact.datum_type, fact.rank());
        let tensor = tensor0(value)
            .cast_to_dt(dt)
            .and_then(|t| t.into_owned().broadcast_into_rank(rank))
            .map_err(|e| wiring_error(&self.place, "a constant", e))?;
        self.constant(tensor)
    }

    /// Zeros of `shape`, held as one value until it runs.
    pub fn zeros(&mut self, dt: DatumType, shape: &ShapeFact) -> Result<OutletId> {
        let zero = Tensor::zero_scalar_dt(dt).map_err(|e| wiring_error(&self.place, "zeros", e))?;
        let zero = self.constant(zero)?;
        self.broadcast_to(zero, shape)
    }

    /// `op(a)`.
    pub fn unary(&mut self, op: ElementWiseOp, a: OutletId) -> Result<OutletId> {
        self.wire(op, &[a])
    }

    /// `op(a, b)`; the ranks are equal.
    pub fn binary(
        &mut self,
        op: impl Into<Box<dyn TypedOp>>,
        a: OutletId,
        b: OutletId,
    ) -> Result<OutletId> {
        self.wire(op, &[a, b])
    }

    /// `a + b`.
    pub fn add(&mut self, a: OutletId, b: OutletId) -> Result<OutletId> {
        self.binary(math::add(), a, b)
    }

    /// `a - b`.
    pub fn sub(&mut self, a: OutletId, b: OutletId) -> Result<OutletId> {
        self.binary(math::sub(), a, b)
    }

    /// `a · b`, element by element.
    pub fn mul(&mut self, a: OutletId, b: OutletId) -> Result<OutletId> {
        self.binary(math::mul(), a, b)
    }

    /// `a / b`.
    pub fn div(&mut self, a: OutletId, b: OutletId) -> Result<OutletId> {
        self.binary(math::div(), a, b)
    }

    /// `-a`.
    pub fn neg(&mut self, a: OutletId) -> Result<OutletId> {
        self.unary(math::neg(), a)
    }

    /// `a · factor`.
    pub fn scale(&mut self, a: OutletId, factor: f32) -> Result<OutletId> {
        let factor = self.scalar(factor, a)?;
        self.mul(a, factor)
    }

    /// `a + term`.
    pub fn shift(&mut self, a: OutletId, term: f32) -> Result<OutletId> {
        let term = self.scalar(term, a)?;
        self.add(a, term)
    }

    /// `term - a`.
    pub fn subtract_from(&mut self, term: f32, a: OutletId) -> Result<OutletId> {
        let term = self.scalar(term, a)?;
        self.sub(term, a)
    }

    /// A comparison of tract's (`comp_gt()` and the like): a mask of bools.
    pub fn compare(
        &mut self,
        op: Box<dyn BinMiniOp>,
        a: OutletId,
        b: OutletId,
    ) -> Result<OutletId> {
        self.binary(TypedBinOp(op, None), a, b)
    }

    /// `a` where `mask`, else `b`.
    pub fn select(&mut self, mask: OutletId, a: OutletId, b: OutletId) -> Result<OutletId> {
        self.wire(Iff, &[mask, a, b])
    }

    /// Another element type; nothing is wired where it is that type already.
    pub fn cast(&mut self, a: OutletId, to: DatumType) -> Result<OutletId> {
        if self.fact(a)?.datum_type == to { Ok(a) } else { self.wire(cast(to), &[a]) }
    }

    /// Sum over `axes`, which stay with length 1.
    pub fn sum(&mut self, a: OutletId, axes: &[usize]) -> Result<OutletId> {
        if axes.is_empty() {
            return Ok(a);
        }
        self.wire(Reduce::new(axes.into(), Reducer::Sum), &[a])
    }

    /// Without `axes`, each of length 1.
    pub fn squeeze(&mut self, mut a: OutletId, axes: &[usize]) -> Result<OutletId> {
        for &axis in axes.iter().rev() {
            a = self.axis(AxisOp::Rm(axis), a)?;
        }
        Ok(a)
    }

    /// Mean over `axes`, which stay with length 1.
    pub fn mean(&mut self, a: OutletId, axes: &[usize]) -> Result<OutletId> {
        let count = self.count(a, axes)?;
        let sum = self.sum(a, axes)?;
        self.div(sum, count)
    }

    /// How many elements `axes` of `a` span, with the rank and element type of `a`. May be known
    /// only when it runs.
    pub fn count(&mut self, a: OutletId, axes: &[usize]) -> Result<OutletId> {
        let fact = self.fact(a)?;
        let (dt, rank) = (fact.datum_type, fact.rank());
        let count: TDim = axes.iter().map(|&axis| &fact.shape[axis]).product();
        let tensor = tensor0(count)
            .broadcast_into_rank(rank)
            .map_err(|e| wiring_error(&self.place, "a constant", e))?;
        let count = self.constant(tensor)?;
        self.cast(count, dt)
    }

    /// Repeats `a` up to `shape`; nothing is wired where it has that shape.
    pub fn broadcast_to(&mut self, a: OutletId, shape: &ShapeFact) -> Result<OutletId> {
        if &self.fact(a)?.shape == shape {
            return Ok(a);
        }
        self.wire(MultiBroadcastTo { shape: shape.clone() }, &[a])
    }

    /// The adjoint of broadcasting a tensor of `shape` (aligned at the right): sums the gradient
    /// over every axis that was repeated.
    pub fn unbroadcast(&mut self, gradient: OutletId, shape: &ShapeFact) -> Result<OutletId> {
        let from = self.fact(gradient)?.shape.clone();
        let leading = from.rank().saturating_sub(shape.rank());
        let axes: TVec<usize> = (0..from.rank())
            .filter(|&axis| axis < leading || shape[axis - leading] != from[axis])
            .collect();
        let mut gradient = self.sum(gradient, &axes)?;
        for _ in 0..leading {
            gradient = self.wire(AxisOp::Rm(0), &[gradient])?;
        }
        Ok(gradient)
    }

    /// [`unbroadcast`](Wires::unbroadcast) to the shape of `input`.
    pub fn unbroadcast_like(&mut self, gradient: OutletId, input: OutletId) -> Result<OutletId> {
        let shape = self.fact(input)?.shape.clone();
        self.unbroadcast(gradient, &shape)
    }

    /// A gradient has the shape and type of what it belongs to; anything else is a wrong rule.
    pub(super) fn check_like(
        &self,
        gradient: OutletId,
        input: OutletId,
        node: &TypedNode,
    ) -> Result<()> {
        let (gradient, input) = (self.fact(gradient)?, self.fact(input)?);
        let same = match (gradient.shape.as_concrete(), input.shape.as_concrete()) {
            (Some(a), Some(b)) => a == b,
            _ => gradient.rank() == input.rank(),
        };
        if same && gradient.datum_type == input.datum_type {
            return Ok(());
        }
        Err(Error::failed(format!(
            "the gradient rule of {} gives {gradient:?} for an input {input:?} of node '{}'",
            node.op.name(),
            node.name
        )))
    }
}

fn wiring_error(place: &str, what: &str, e: TractError) -> Error {
    Error::unsupported(format!("'{place}' can't be built ({what}): {e:#}"))
}
