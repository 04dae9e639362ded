//! What a reader of ours has to work with: a node's attributes, its inputs as far as they are known,
//! and shorthands for tract's operations.

use tract_core::ops::array::{Gather, MultiBroadcastTo, Pad, PadMode, Slice, TypedConcat};
use tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_core::ops::cast::Cast;
use tract_core::ops::einsum::EinSum;
use tract_core::ops::logic::{Iff, comp_eq, comp_gt, comp_gte, comp_lt, comp_lte};
use tract_core::ops::math;
use tract_core::ops::nn::{Reduce, Reducer, Softmax, SoftmaxKind};
use tract_onnx::pb::{AttributeProto, NodeProto};
use tract_onnx::tract_core;
use tract_onnx::tract_hir::internal::*;

/// A value of the graph being made.
pub(super) type Wire = OutletId;

/// A node of the file on its way to being a few of tract's.
pub(super) struct Wiring<'a> {
    pub node: &'a NodeProto,
    /// Version of the default operator set.
    pub opset: i64,
    pub model: &'a mut TypedModel,
    prefix: &'a str,
    inputs: &'a [OutletId],
    made: usize,
    /// The length that only the values tell, for operators that have one.
    pub count: Option<TDim>,
}

impl<'a> Wiring<'a> {
    pub fn new(
        node: &'a NodeProto,
        opset: i64,
        model: &'a mut TypedModel,
        prefix: &'a str,
        inputs: &'a [OutletId],
    ) -> Wiring<'a> {
        Wiring { node, opset, model, prefix, inputs, made: 0, count: None }
    }

    // Attributes.

    fn attribute(&self, name: &str) -> Option<&'a AttributeProto> {
        self.node.attribute.iter().find(|a| a.name == name)
    }

    pub fn has(&self, name: &str) -> bool {
        self.attribute(name).is_some()
    }

    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |a| a.i)
    }

    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.attribute(name).map_or(default, |a| a.f)
    }

    pub fn int_list(&self, name: &str) -> Option<Vec<i64>> {
        self.attribute(name).map(|a| a.ints.clone())
    }

    pub fn float_list(&self, name: &str) -> Option<Vec<f32>> {
        self.attribute(name).map(|a| a.floats.clone())
    }

    pub fn text(&self, name: &str, default: &'a str) -> &'a str {
        self.attribute(name).map_or(default, |a| std::str::from_utf8(&a.s).unwrap_or("?"))
    }

    /// A tensor among the attributes.
    pub fn tensor_attribute(&self, name: &str) -> TractResult<Option<Tensor>> {
        let Some(tensor) = self.attribute(name).and_then(|a| a.t.as_ref()) else {
            return Ok(None);
        };
        Ok(Some(tract_onnx::tensor::load_tensor(
            &tract_onnx::data_resolver::MmapDataResolver,
            tensor,
            None,
        )?))
    }

    /// A list of sizes with one for each of `count` axes, all 1 (or 0 for `pads`) if left out.
    pub fn sizes(&self, name: &str, count: usize, default: usize) -> TractResult<Vec<usize>> {
        let Some(values) = self.int_list(name).filter(|v| !v.is_empty()) else {
            return Ok(vec![default; count]);
        };
        ensure!(values.len() == count, "{name} is {values:?}, expected {count} numbers");
        let sizes: Option<Vec<usize>> = values.iter().map(|v| usize::try_from(*v).ok()).collect();
        sizes.with_context(|| format!("{name} is {values:?}, which holds a negative number"))
    }

    /// An axis counted from the end if it is negative.
    pub fn axis(&self, axis: i64, rank: usize) -> TractResult<usize> {
        let counted = if axis < 0 { axis + rank as i64 } else { axis };
        ensure!((0..rank as i64).contains(&counted), "axis {axis} of {rank} axes");
        Ok(counted as usize)
    }

    // Inputs.

    /// The input in this slot, if the node has one.
    pub fn optional(&self, slot: usize) -> Option<Wire> {
        self.node.input.get(slot).filter(|name| !name.is_empty())?;
        let before = self.node.input[..slot].iter().filter(|name| !name.is_empty()).count();
        self.inputs.get(before).copied()
    }

    pub fn input(&self, slot: usize) -> TractResult<Wire> {
        self.optional(slot).with_context(|| format!("input {slot} is missing"))
    }

    /// The length of what is chosen, which the run finds.
    pub fn count(&self) -> TractResult<TDim> {
        self.count.clone().context("no dimension to count in")
    }

    pub fn has_output(&self, slot: usize) -> bool {
        self.node.output.get(slot).is_some_and(|name| !name.is_empty())
    }

    pub fn fact(&self, wire: Wire) -> TractResult<&TypedFact> {
        self.model.outlet_fact(wire)
    }

    pub fn dtype(&self, wire: Wire) -> TractResult<DatumType> {
        Ok(self.fact(wire)?.datum_type)
    }

    pub fn rank(&self, wire: Wire) -> TractResult<usize> {
        Ok(self.fact(wire)?.rank())
    }

    pub fn shape(&self, wire: Wire) -> TractResult<TVec<TDim>> {
        Ok(self.fact(wire)?.shape.to_tvec())
    }

    /// Dimensions that must be numbers here.
    pub fn dims(&self, wire: Wire) -> TractResult<Vec<usize>> {
        let shape = self.shape(wire)?;
        let dims: Option<Vec<usize>> = shape.iter().map(|d| d.to_usize().ok()).collect();
        dims.with_context(|| format!("the shape {shape:?} must be fixed for this"))
    }

    pub fn constant(&self, wire: Wire) -> TractResult<Option<Arc<Tensor>>> {
        Ok(self.fact(wire)?.konst.clone())
    }

    /// The whole numbers of a constant input; none if the node has no such input.
    pub fn constant_ints(&self, slot: usize, name: &str) -> TractResult<Option<Vec<i64>>> {
        let Some(wire) = self.optional(slot) else { return Ok(None) };
        let tensor = self.constant(wire)?.with_context(|| not_constant(name))?;
        let tensor = tensor.cast_to::<i64>()?;
        Ok(Some(tensor.try_as_plain_ram()?.as_slice::<i64>()?.to_vec()))
    }

    /// The numbers of a constant input; none if the node has no such input.
    pub fn constant_floats(&self, slot: usize, name: &str) -> TractResult<Option<Vec<f32>>> {
        let Some(wire) = self.optional(slot) else { return Ok(None) };
        let tensor = self.constant(wire)?.with_context(|| not_constant(name))?;
        let tensor = tensor.cast_to::<f32>()?;
        Ok(Some(tensor.try_as_plain_ram()?.as_slice::<f32>()?.to_vec()))
    }

    // Operations.

    fn name(&mut self) -> String {
        self.made += 1;
        format!("{}.{}", self.prefix, self.made)
    }

    pub fn op(&mut self, op: impl Into<Box<dyn TypedOp>>, inputs: &[Wire]) -> TractResult<Wire> {
        Ok(self.ops(op, inputs)?[0])
    }

    pub fn ops(
        &mut self,
        op: impl Into<Box<dyn TypedOp>>,
        inputs: &[Wire],
    ) -> TractResult<TVec<Wire>> {
        let name = self.name();
        self.model.wire_node(name, op, inputs)
    }

    pub fn tensor(&mut self, tensor: impl IntoArcTensor) -> TractResult<Wire> {
        let name = self.name();
        self.model.add_const(name, tensor.into_arc_tensor())
    }

    /// A number as a scalar of the type that `like` has.
    pub fn number(&mut self, value: f64, like: Wire) -> TractResult<Wire> {
        let dtype = self.dtype(like)?;
        self.number_of(value, dtype)
    }

    pub fn number_of(&mut self, value: f64, dtype: DatumType) -> TractResult<Wire> {
        let tensor = match dtype {
            DatumType::F32 => tensor0(value as f32),
            DatumType::F16 => tensor0(f16::from_f64(value)),
            DatumType::F64 => tensor0(value),
            _ => tensor0(value as i64).cast_to_dt(dtype)?.into_owned(),
        };
        self.tensor(tensor)
    }

    pub fn cast(&mut self, x: Wire, to: DatumType) -> TractResult<Wire> {
        if self.dtype(x)? == to { Ok(x) } else { self.op(Cast { to }, &[x]) }
    }

    fn equal_ranks(&mut self, inputs: &[Wire]) -> TractResult<TVec<Wire>> {
        let ranks: TVec<usize> =
            inputs.iter().map(|i| self.rank(*i)).collect::<TractResult<_>>()?;
        let most = ranks.iter().copied().max().unwrap_or(0);
        let mut wires = tvec!();
        for (&input, rank) in inputs.iter().zip(ranks) {
            let mut wire = input;
            for _ in rank..most {
                wire = self.op(AxisOp::Add(0), &[wire])?;
            }
            wires.push(wire);
        }
        Ok(wires)
    }

    /// A binary operation, with broadcasting and the wider of the two types.
    pub fn binary(&mut self, op: Box<dyn BinMiniOp>, a: Wire, b: Wire) -> TractResult<Wire> {
        let dtype = op.operating_datum_type(self.dtype(a)?, self.dtype(b)?)?;
        let (a, b) = (self.cast(a, dtype)?, self.cast(b, dtype)?);
        let inputs = self.equal_ranks(&[a, b])?;
        self.op(TypedBinOp(op, None), &inputs)
    }

    pub fn add(&mut self, a: Wire, b: Wire) -> TractResult<Wire> {
        self.binary(Box::new(math::Add), a, b)
    }

    pub fn sub(&mut self, a: Wire, b: Wire) -> TractResult<Wire> {
        self.binary(Box::new(math::Sub), a, b)
    }

    pub fn mul(&mut self, a: Wire, b: Wire) -> TractResult<Wire> {
        self.binary(Box::new(math::Mul), a, b)
    }

    pub fn div(&mut self, a: Wire, b: Wire) -> TractResult<Wire> {
        self.binary(Box::new(math::Div), a, b)
    }

    pub fn min(&mut self, a: Wire, b: Wire) -> TractResult<Wire> {
        self.binary(Box::new(math::Min), a, b)
    }

    pub fn max(&mut self, a: Wire, b: Wire) -> TractResult<Wire> {
        self.binary(Box::new(math::Max), a, b)
    }

    pub fn scaled(&mut self, x: Wire, by: f64) -> TractResult<Wire> {
        let by = self.number(by, x)?;
        self.mul(x, by)
    }

    pub fn shifted(&mut self, x: Wire, by: f64) -> TractResult<Wire> {
        let by = self.number(by, x)?;
        self.add(x, by)
    }

    pub fn equal(&mut self, a: Wire, b: Wire) -> TractResult<Wire> {
        self.binary(comp_eq(), a, b)
    }

    pub fn less(&mut self, a: Wire, b: Wire) -> TractResult<Wire> {
        self.binary(comp_lt(), a, b)
    }

    pub fn at_most(&mut self, a: Wire, b: Wire) -> TractResult<Wire> {
        self.binary(comp_lte(), a, b)
    }

    pub fn greater(&mut self, a: Wire, b: Wire) -> TractResult<Wire> {
        self.binary(comp_gt(), a, b)
    }

    pub fn at_least(&mut self, a: Wire, b: Wire) -> TractResult<Wire> {
        self.binary(comp_gte(), a, b)
    }

    pub fn both(&mut self, a: Wire, b: Wire) -> TractResult<Wire> {
        self.binary(Box::new(tract_core::ops::logic::And), a, b)
    }

    pub fn select(&mut self, condition: Wire, yes: Wire, no: Wire) -> TractResult<Wire> {
        let inputs = self.equal_ranks(&[condition, yes, no])?;
        self.op(Iff, &inputs)
    }

    /// Values limited to low..=high.
    pub fn clamp(&mut self, x: Wire, low: f64, high: f64) -> TractResult<Wire> {
        let (low, high) = (self.number(low, x)?, self.number(high, x)?);
        let x = self.max(x, low)?;
        self.min(x, high)
    }

    pub fn reduce(
        &mut self,
        reducer: Reducer,
        x: Wire,
        axes: &[usize],
        keep: bool,
    ) -> TractResult<Wire> {
        let mut axes: TVec<usize> = axes.into();
        axes.sort_unstable();
        axes.dedup();
        let mut y = self.op(Reduce::new(axes.clone(), reducer), &[x])?;
        if !keep {
            for axis in axes.into_iter().rev() {
                y = self.op(AxisOp::Rm(axis), &[y])?;
            }
        }
        Ok(y)
    }

    pub fn sum(&mut self, x: Wire, axes: &[usize], keep: bool) -> TractResult<Wire> {
        self.reduce(Reducer::Sum, x, axes, keep)
    }

    /// The mean over `axes`, which are kept with length 1.
    pub fn mean(&mut self, x: Wire, axes: &[usize]) -> TractResult<Wire> {
        let shape = self.shape(x)?;
        let count: TDim = axes.iter().map(|a| shape[*a].clone()).product();
        let dtype = self.dtype(x)?;
        let sum = self.sum(x, axes, true)?;
        let count = match count.to_i64() {
            Ok(n) => self.number_of(n as f64, dtype)?,
            Err(_) => {
                let count = self.tensor(tensor0(count))?;
                self.cast(count, dtype)?
            }
        };
        self.div(sum, count)
    }

    pub fn softmax(&mut self, x: Wire, axis: usize) -> TractResult<Wire> {
        let kind = SoftmaxKind::Softmax;
        self.op(Softmax { axes: tvec!(axis), quant_output_dt: None, kind }, &[x])
    }

    pub fn einsum(&mut self, formula: &str, inputs: &[Wire]) -> TractResult<Wire> {
        let dtype = self.dtype(inputs[0])?;
        self.op(EinSum::new(formula.parse()?, dtype), inputs)
    }

    pub fn reshape(&mut self, x: Wire, to: &[TDim]) -> TractResult<Wire> {
        let from = self.shape(x)?;
        if *from == *to {
            return Ok(x);
        }
        self.op(AxisOp::Reshape(0, from, to.into()), &[x])
    }

    /// Axes `at..at + count` made `to`.
    pub fn split_axis(&mut self, x: Wire, at: usize, to: &[TDim]) -> TractResult<Wire> {
        let from = self.shape(x)?[at].clone();
        self.op(AxisOp::Reshape(at, tvec!(from), to.into()), &[x])
    }

    pub fn merge_axes(&mut self, x: Wire, at: usize, count: usize) -> TractResult<Wire> {
        let from: TVec<TDim> = self.shape(x)?[at..at + count].into();
        let to: TDim = from.iter().cloned().product();
        self.op(AxisOp::Reshape(at, from, tvec!(to)), &[x])
    }

    pub fn transpose(&mut self, x: Wire, order: &[usize]) -> TractResult<Wire> {
        let mut y = x;
        for op in tract_core::ops::change_axes::perm_to_ops(order) {
            y = self.op(op, &[y])?;
        }
        Ok(y)
    }

    pub fn add_axis(&mut self, x: Wire, axis: usize) -> TractResult<Wire> {
        self.op(AxisOp::Add(axis), &[x])
    }

    pub fn remove_axis(&mut self, x: Wire, axis: usize) -> TractResult<Wire> {
        self.op(AxisOp::Rm(axis), &[x])
    }

    pub fn slice(
        &mut self,
        x: Wire,
        axis: usize,
        start: impl ToDim,
        end: impl ToDim,
    ) -> TractResult<Wire> {
        self.op(Slice::new(axis, start, end), &[x])
    }

    pub fn concat(&mut self, axis: usize, inputs: &[Wire]) -> TractResult<Wire> {
        self.op(TypedConcat { axis }, inputs)
    }

    pub fn broadcast(&mut self, x: Wire, shape: &[TDim]) -> TractResult<Wire> {
        let mut wire = x;
        for _ in self.rank(x)?..shape.len() {
            wire = self.op(AxisOp::Add(0), &[wire])?;
        }
        if *self.shape(wire)? == *shape {
            return Ok(wire);
        }
        self.op(MultiBroadcastTo::new(ShapeFact::from_dims(shape.iter().cloned())), &[wire])
    }

    pub fn gather(&mut self, x: Wire, axis: usize, indices: Wire) -> TractResult<Wire> {
        let indices = self.cast(indices, i64::datum_type())?;
        self.op(Gather::new(axis), &[x, indices])
    }

    /// Pads with one value; (before, after) for each axis.
    pub fn pad(&mut self, x: Wire, pads: &[(usize, usize)], value: Tensor) -> TractResult<Wire> {
        if pads.iter().all(|p| *p == (0, 0)) {
            return Ok(x);
        }
        self.op(Pad { pads: pads.to_vec(), mode: PadMode::Constant(value.into_arc_tensor()) }, &[x])
    }

    /// 0, 1, … as 64-bit integers.
    pub fn counting(&mut self, count: &TDim) -> TractResult<Wire> {
        if let Ok(n) = count.to_i64() {
            return self.tensor(tensor1(&(0..n).collect::<Vec<i64>>()));
        }
        let (start, step) =
            (self.tensor(tensor0(0i64.to_dim()))?, self.tensor(tensor0(1i64.to_dim()))?);
        let end = self.tensor(tensor0(count.clone()))?;
        let range = tract_core::ops::array::Range::new(count.clone());
        let counted = self.op(range, &[start, end, step])?;
        self.cast(counted, i64::datum_type())
    }
}

fn not_constant(name: &str) -> String {
    format!("'{name}' is computed while the graph runs, it must be constant (--const gives inputs)")
}

/// Shorthands for operations of one input.
macro_rules! unary {
    ($($name:ident: $make:expr;)*) => {
        impl Wiring<'_> {
            $(pub fn $name(&mut self, x: Wire) -> TractResult<Wire> {
                self.op($make, &[x])
            })*
        }
    };
}

unary! {
    exp: math::exp();
    sqrt: math::sqrt();
    rsqrt: math::rsqrt();
    square: math::square();
    tanh: math::tanh();
    abs: math::abs();
    neg: math::neg();
    sigmoid: tract_core::ops::nn::sigmoid();
}
