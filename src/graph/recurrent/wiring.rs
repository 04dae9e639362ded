//! Names and wires the nodes of a recurrent layer.

use crate::graph::Quotient;
use crate::graph::rounding::{ByteRange, RoundThrough};
use tract_core::ops::array::{MultiBroadcastTo, Range, Slice};
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::cast::cast;
use tract_core::ops::einsum::EinSum;
use tract_core::ops::logic::comp_lt;
use tract_core::ops::math;
use tract_onnx::tract_core;
use tract_onnx::tract_hir::internal::*;

/// Names and wires nodes.
pub(super) struct Wiring<'a> {
    pub(super) model: &'a mut TypedModel,
    pub(super) prefix: String,
}

impl Wiring<'_> {
    pub(super) fn fact(&self, outlet: OutletId) -> TractResult<&TypedFact> {
        self.model.outlet_fact(outlet)
    }

    pub(super) fn op(
        &mut self,
        name: &str,
        op: impl Into<Box<dyn TypedOp>>,
        inputs: &[OutletId],
    ) -> TractResult<OutletId> {
        Ok(self.model.wire_node(format!("{}.{name}", self.prefix), op, inputs)?[0])
    }

    pub(super) fn cast(&mut self, outlet: OutletId, to: DatumType) -> TractResult<OutletId> {
        if self.fact(outlet)?.datum_type == to {
            return Ok(outlet);
        }
        let name = format!("cast.{}.{}", outlet.node, outlet.slot);
        self.op(&name, cast(to), &[outlet])
    }

    /// Entry `direction` of the first axis.
    pub(super) fn part(&mut self, outlet: OutletId, direction: usize) -> TractResult<OutletId> {
        let name = format!("part.{}.{}", outlet.node, outlet.slot);
        let one = Slice::new(0, direction, direction + 1);
        let one = self.op(&name, one, &[outlet])?;
        self.op(&format!("{name}.only"), AxisOp::Rm(0), &[one])
    }

    pub(super) fn gate(
        &mut self,
        name: &str,
        from: OutletId,
        axis: usize,
        place: usize,
        hidden: usize,
    ) -> TractResult<OutletId> {
        self.op(name, Slice::new(axis, place * hidden, (place + 1) * hidden), &[from])
    }

    pub(super) fn zeros(&mut self, name: &str, shape: &[TDim]) -> TractResult<OutletId> {
        let zero = self.model.add_const(format!("{}.{name}.0", self.prefix), tensor0(0f32))?;
        self.op(name, MultiBroadcastTo { shape: ShapeFact::from_dims(shape) }, &[zero])
    }

    /// x \[.., K\] · matrix \[N, K\]ᵀ + bias \[N\].
    pub(super) fn product(
        &mut self,
        name: &str,
        x: OutletId,
        matrix: OutletId,
        bias: Option<OutletId>,
    ) -> TractResult<OutletId> {
        let op = EinSum::new("abk,nk->abn".parse()?, f32::datum_type());
        let y = self.op(name, op, &[x, matrix])?;
        let Some(bias) = bias else { return Ok(y) };
        let bias = self.op(&format!("{name}.bias.0"), AxisOp::Add(0), &[bias])?;
        let bias = self.op(&format!("{name}.bias.1"), AxisOp::Add(0), &[bias])?;
        self.op(&format!("{name}.sum"), math::add(), &[y, bias])
    }

    /// Whether each of `steps` steps is one of its row's, as bools \[B, T, 1\]; `None` where all are.
    pub(super) fn steps_within(
        &mut self,
        lengths: OutletId,
        steps: &TDim,
    ) -> TractResult<Option<OutletId>> {
        if let Some(lengths) = self.fact(lengths)?.konst.as_ref().and_then(|k| k.as_uniform())
            && lengths.cast_to::<TDim>()?.try_as_plain_ram()?.to_scalar::<TDim>()? == steps
        {
            return Ok(None);
        }
        let mut bounds = tvec!();
        for (name, bound) in [("from", 0.to_dim()), ("to", steps.clone()), ("by", 1.to_dim())] {
            let name = format!("{}.steps.{name}", self.prefix);
            bounds.push(self.model.add_const(name, tensor0(bound))?);
        }
        let steps = self.op("steps", Range::new(steps.clone()), &bounds)?;
        let mut steps = self.cast(steps, i64::datum_type())?;
        let mut lengths = self.cast(lengths, i64::datum_type())?;
        for (at, axis) in [0, 2].into_iter().enumerate() {
            steps = self.op(&format!("steps.axis{at}"), AxisOp::Add(axis), &[steps])?;
            lengths = self.op(&format!("lengths.axis{at}"), AxisOp::Add(at + 1), &[lengths])?;
        }
        Ok(Some(self.op("within", TypedBinOp(comp_lt(), None), &[steps, lengths])?))
    }

    /// x \[B, 1, K\] as eight bits say it that span its least and greatest value and 0: DequantizeLinear of
    /// DynamicQuantizeLinear.
    pub(super) fn rounded(&mut self, name: &str, x: OutletId) -> TractResult<OutletId> {
        let range = self.model.wire_node(format!("{}.{name}", self.prefix), ByteRange, &[x])?;
        let mut spread = |part: &str, at: usize| -> TractResult<OutletId> {
            let mut outlet = range[at];
            for axis in 0..3 {
                outlet = self.op(&format!("{name}.{part}.{axis}"), AxisOp::Add(0), &[outlet])?;
            }
            Ok(outlet)
        };
        let (scale, point) = (spread("scale", 0)?, spread("point", 1)?);
        let low = self.scalar(&format!("{name}.low"), 0.0)?;
        let high = self.scalar(&format!("{name}.high"), 255.0)?;
        let y =
            self.op(&format!("{name}.steps"), TypedBinOp(Box::new(Quotient), None), &[x, scale])?;
        let y = self.op(&format!("{name}.whole"), RoundThrough, &[y])?;
        let y = self.op(&format!("{name}.moved"), math::add(), &[y, point])?;
        let y = self.op(&format!("{name}.above"), math::max(), &[y, low])?;
        let y = self.op(&format!("{name}.below"), math::min(), &[y, high])?;
        let y = self.op(&format!("{name}.centred"), math::sub(), &[y, point])?;
        self.op(&format!("{name}.rounded"), math::mul(), &[y, scale])
    }

    /// One value for tensors of three axes.
    pub(super) fn scalar(&mut self, name: &str, value: f32) -> TractResult<OutletId> {
        self.model.add_const(format!("{}.{name}", self.prefix), tensor3(&[[[value]]]))
    }
}
