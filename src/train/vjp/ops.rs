//! Wires ops that tract lacks. All take and give f32; f16 is converted on the way.

use tract_core::internal::*;
use tract_core::ops::cnn::{KernelFormat, PoolSpec, SumPool};

use super::window::Window;

/// Inputs (y, dy) of one shape: dy where y is strictly between the bounds, else 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// Exclusive lower bound.
    pub low: Option<f32>,
    /// Exclusive upper bound.
    pub high: Option<f32>,
}

impl Eq for Gate {}

impl Op for Gate {
    fn name(&self) -> StaticName {
        "OffshootGate".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{:?}..{:?}", self.low, self.high)])
    }

    op_as_typed_op!();
}

impl EvalOp for Gate {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (y, dy) = args_2!(inputs);
        ensure!(y.shape() == dy.shape(), "shapes {:?} and {:?}", y.shape(), dy.shape());
        let low = self.low.unwrap_or(f32::NEG_INFINITY);
        let high = self.high.unwrap_or(f32::INFINITY);
        let dt = dy.datum_type();
        let y = y.cast_to::<f32>()?;
        let mut dy = into_f32(dy)?;
        let values = y.try_as_plain_ram()?.as_slice::<f32>()?;
        let mut plain = dy.try_as_plain_ram_mut()?;
        for (dy, &y) in plain.as_slice_mut::<f32>()?.iter_mut().zip(values) {
            *dy = if y > low && y < high { *dy } else { 0.0 };
        }
        Ok(tvec![dy.cast_to_dt(dt)?.into_owned().into_tvalue()])
    }
}

impl TypedOp for Gate {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 2 && inputs[0].rank() == inputs[1].rank());
        Ok(tvec![inputs[1].without_value()])
    }

    as_op!();
}

/// Zeros like its input. Unlike a constant it may be the state of a loop.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Blank;

impl Op for Blank {
    fn name(&self) -> StaticName {
        "OffshootBlank".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Blank {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = args_1!(inputs);
        Ok(tvec![Tensor::zero_dt(x.datum_type(), x.shape())?.into_tvalue()])
    }
}

impl TypedOp for Blank {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec![inputs[0].without_value()])
    }

    as_op!();
}

/// dx of a slice from (dy, start), where `start` is known when it runs; `shape` is x's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SliceGradient {
    /// The axis that was sliced.
    pub axis: usize,
    /// Shape of dx.
    pub shape: ShapeFact,
}

impl Op for SliceGradient {
    fn name(&self) -> StaticName {
        "OffshootSliceGradient".into()
    }

    op_as_typed_op!();
}

impl EvalOp for SliceGradient {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (dy, start) = args_2!(inputs);
        let start = start.cast_to::<TDim>()?;
        let start = start.try_as_plain_ram()?.to_scalar::<TDim>()?.eval(ctx.symbols).to_usize()?;
        let shape = self.shape.eval_to_usize(ctx.symbols)?;
        let mut dx = Tensor::zero_dt(dy.datum_type(), &shape)?;
        let end = start + dy.shape()[self.axis];
        dx.assign_slice(start..end, &dy, .., self.axis)?;
        Ok(tvec![dx.into_tvalue()])
    }
}

impl TypedOp for SliceGradient {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 2 && self.axis < self.shape.rank());
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
        again(node, target, mapping, SliceGradient { axis: self.axis, shape })
    }

    as_op!();
}

/// The tensor itself where nothing else holds it.
pub(super) fn into_f32(value: TValue) -> TractResult<Tensor> {
    match value.datum_type() {
        DatumType::F32 => Ok(value.into_tensor()),
        _ => Ok(value.cast_to::<f32>()?.into_owned()),
    }
}

fn channels(spec: &PoolSpec, shape: &[usize]) -> usize {
    let axis = if spec.data_format.c_is_last() {
        shape.len() - 1
    } else {
        spec.data_format.has_n() as usize
    };
    shape.get(axis).copied().unwrap_or(0)
}

/// dx of a sum or average pool from dy; `shape` is the pool's input's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SumPoolGradient {
    /// The forward op.
    pub pool: SumPool,
    /// Shape of dx.
    pub shape: ShapeFact,
}

impl Op for SumPoolGradient {
    fn name(&self) -> StaticName {
        "OffshootSumPoolGradient".into()
    }

    op_as_typed_op!();
}

impl EvalOp for SumPoolGradient {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let dy = args_1!(inputs);
        let shape = self.shape.eval_to_usize(ctx.symbols)?;
        let spec = &self.pool.pool_spec;
        let window = Window::new(spec, &shape)?;
        let channels = channels(spec, &shape);
        let factors: Vec<f32> = match self.pool.normalize {
            true => {
                window.divisors(self.pool.count_include_pad).iter().map(|d| d.recip()).collect()
            }
            false => vec![1.0; window.places[1]],
        };
        let dt = dy.datum_type();
        let dy = into_f32(dy)?;
        let dy = dy.try_as_plain_ram()?.as_slice::<f32>()?;
        ensure!(dy.len() == window.batch * channels * window.places[1], "length of dy");
        let mut dx = Tensor::zero::<f32>(&shape)?;
        let mut plain = dx.try_as_plain_ram_mut()?;
        let values = plain.as_slice_mut::<f32>()?;
        for n in 0..window.batch {
            for c in 0..channels {
                let (to, to_step) = window.plane(n, c, channels, window.places[0]);
                let (from, from_step) = window.plane(n, c, channels, window.places[1]);
                window.taps(|o, i, _| {
                    values[to + i * to_step] += dy[from + o * from_step] * factors[o];
                });
            }
        }
        Ok(tvec![dx.cast_to_dt(dt)?.into_owned().into_tvalue()])
    }
}

impl TypedOp for SumPoolGradient {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(self.pool.pool_spec.rank() <= 3, "at most three spatial axes");
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
        again(node, target, mapping, SumPoolGradient { shape, ..self.clone() })
    }

    as_op!();
}

/// dx of a max pool from (x, dy): to the first greatest tap of each window, as PyTorch does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MaxPoolGradient {
    /// The forward op's geometry.
    pub spec: PoolSpec,
}

impl Op for MaxPoolGradient {
    fn name(&self) -> StaticName {
        "OffshootMaxPoolGradient".into()
    }

    op_as_typed_op!();
}

impl EvalOp for MaxPoolGradient {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (x, dy) = args_2!(inputs);
        let window = Window::new(&self.spec, x.shape())?;
        let channels = channels(&self.spec, x.shape());
        let dt = dy.datum_type();
        let (x, dy) = (into_f32(x)?, into_f32(dy)?);
        let mut dx = Tensor::zero::<f32>(x.shape())?;
        let x = x.try_as_plain_ram()?.as_slice::<f32>()?;
        let dy = dy.try_as_plain_ram()?.as_slice::<f32>()?;
        ensure!(dy.len() == window.batch * channels * window.places[1], "length of dy");
        let mut plain = dx.try_as_plain_ram_mut()?;
        let values = plain.as_slice_mut::<f32>()?;
        let mut best: Vec<Option<(f32, usize)>> = vec![None; window.places[1]];
        for n in 0..window.batch {
            for c in 0..channels {
                let (to, to_step) = window.plane(n, c, channels, window.places[0]);
                let (from, from_step) = window.plane(n, c, channels, window.places[1]);
                best.fill(None);
                window.taps(|o, i, _| {
                    let value = x[to + i * to_step];
                    if best[o].is_none_or(|(greatest, _)| value > greatest) {
                        best[o] = Some((value, i));
                    }
                });
                for (o, best) in best.iter().enumerate() {
                    if let Some((_, i)) = best {
                        values[to + i * to_step] += dy[from + o * from_step];
                    }
                }
            }
        }
        Ok(tvec![dx.cast_to_dt(dt)?.into_owned().into_tvalue()])
    }
}

impl TypedOp for MaxPoolGradient {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(self.spec.rank() <= 3, "at most three spatial axes");
        Ok(tvec![inputs[0].without_value()])
    }

    as_op!();
}

/// dx of a convolution, or of a transposed one, from (dy, kernel).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvInputGradient {
    /// The forward op's geometry.
    pub spec: PoolSpec,
    /// How its kernel lies.
    pub format: KernelFormat,
    /// Its groups.
    pub groups: usize,
    /// Whether it is transposed: then its gradient is the convolution itself, from dy's places to dx's.
    pub transposed: bool,
    /// Shape of dx.
    pub shape: ShapeFact,
}

impl Op for ConvInputGradient {
    fn name(&self) -> StaticName {
        "OffshootConvInputGradient".into()
    }

    op_as_typed_op!();
}

impl EvalOp for ConvInputGradient {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (dy, kernel) = args_2!(inputs);
        let shape = self.shape.eval_to_usize(ctx.symbols)?;
        let (spec, groups) = (&self.spec, self.groups);
        let window = Window::new(spec, if self.transposed { dy.shape() } else { &shape })?;
        let taps: usize = spec.kernel_shape.iter().product();
        let (ins, outs) = (spec.input_channels / groups, spec.output_channels / groups);
        // The places of dx and of dy.
        let [wide, narrow] = window.places;
        let [to_places, from_places] =
            if self.transposed { [narrow, wide] } else { [wide, narrow] };
        let dt = dy.datum_type();
        // (group, output channel, input channel · tap)
        let kernel = self.format.kernel_as_group_o_ihw(&into_f32(kernel)?, groups)?;
        let kernel = kernel.try_as_plain_ram()?.as_slice::<f32>()?;
        let dy = into_f32(dy)?;
        let dy = dy.try_as_plain_ram()?.as_slice::<f32>()?;
        let mut dx = Tensor::zero::<f32>(&shape)?;
        let mut plain = dx.try_as_plain_ram_mut()?;
        let values = plain.as_slice_mut::<f32>()?;
        ensure!(kernel.len() == groups * outs * ins * taps, "length of the kernel");
        ensure!(dy.len() == window.batch * groups * outs * from_places, "length of dy");
        ensure!(values.len() == window.batch * groups * ins * to_places, "shape of dx");
        for n in 0..window.batch {
            for g in 0..groups {
                for i in g * ins..(g + 1) * ins {
                    let (to, to_step) = window.plane(n, i, groups * ins, to_places);
                    for o in g * outs..(g + 1) * outs {
                        let (from, from_step) = window.plane(n, o, groups * outs, from_places);
                        let kernel = &kernel[(o * ins + i - g * ins) * taps..][..taps];
                        let mut add = |x: usize, y: usize, tap: usize| {
                            values[to + x * to_step] += dy[from + y * from_step] * kernel[tap];
                        };
                        match self.transposed {
                            true => window.taps(add),
                            false => window.taps(|y, x, tap| add(x, y, tap)),
                        }
                    }
                }
            }
        }
        Ok(tvec![dx.cast_to_dt(dt)?.into_owned().into_tvalue()])
    }
}

impl TypedOp for ConvInputGradient {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(self.spec.rank() <= 3, "at most three spatial axes");
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
        again(node, target, mapping, ConvInputGradient { shape, ..self.clone() })
    }

    as_op!();
}

/// `node` in `target` with another op: what `set_symbols` of an op that holds a shape ends with.
pub(super) fn again(
    node: &TypedNode,
    target: &mut TypedModel,
    mapping: &HashMap<OutletId, OutletId>,
    op: impl Into<Box<dyn TypedOp>>,
) -> TractResult<TVec<OutletId>> {
    let inputs: TVec<OutletId> = node.inputs.iter().map(|i| mapping[i]).collect();
    target.wire_node(&node.name, op, &inputs)
}
