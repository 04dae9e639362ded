//! Frozen linear layers over one input, each with what follows it: a step of plans, made by fusing.

use tract_core::internal::*;

use super::changes::{spans, updates};
use super::conv::After;
use super::linear::{FrozenLinear, product_fact, rows};
use super::weights::{FrozenWeights, expect_bias, expect_f32, floats};
use crate::quant::{Activation, Inputs, threads_for, try_share};

/// One layer of a [`FusedLinear`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// Index of W (N, K) in the weight table.
    pub weight: usize,
    /// Index in the target table, if an adapter may change this layer.
    pub target: Option<usize>,
    /// N.
    pub out_features: usize,
    /// Whether it has a bias\[N\].
    pub has_bias: bool,
}

/// For each part y\[.., N\] = activation(x\[.., K\] · Wᵀ (+ bias\[N\]) (+ what the active adapter adds)
/// (+ residual\[.., N\])). Inputs: x, the biases of the parts that have one, the residual. A stretch of
/// rows at a time is quantized once for all parts, multiplied and finished, while it is in the cache. Where it is
/// gated, the one output is the first part's, with the activation, times the second's, without.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FusedLinear {
    /// The weight table.
    pub weights: FrozenWeights,
    /// K.
    pub in_features: usize,
    /// The layers, one output each, or two of one output.
    pub parts: Vec<Part>,
    /// Whether the last input is added to the (only) part's product.
    pub has_residual: bool,
    /// What follows at the end.
    pub activation: Activation,
    /// Whether the output is the product of both parts.
    pub gated: bool,
}

impl FusedLinear {
    /// The same step as `op`.
    pub fn of(op: &FrozenLinear) -> FusedLinear {
        let part = Part {
            weight: op.weight,
            target: op.target,
            out_features: op.out_features,
            has_bias: op.has_bias,
        };
        FusedLinear {
            weights: op.weights.clone(),
            in_features: op.in_features,
            parts: vec![part],
            has_residual: false,
            activation: Activation::Identity,
            gated: false,
        }
    }

    fn inputs(&self) -> usize {
        let biases = self.parts.iter().filter(|p| p.has_bias).count();
        1 + biases + usize::from(self.has_residual)
    }
}

impl Op for FusedLinear {
    fn name(&self) -> StaticName {
        "FusedLinear".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let part =
            |p: &Part| format!("{} -> {}, weight {}", self.in_features, p.out_features, p.weight);
        let mut info: Vec<String> = self.parts.iter().map(part).collect();
        let (activation, residual) = (self.activation, self.has_residual);
        info.push(format!("{activation:?}, residual {residual}, gated {}", self.gated));
        Ok(info)
    }

    op_as_typed_op!();
}

impl EvalOp for FusedLinear {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        ensure!(inputs.len() == self.inputs(), "expected {} inputs", self.inputs());
        let x = floats(&inputs[0])?;
        let residual = match inputs.last() {
            Some(residual) if self.has_residual => Some(floats(residual)?),
            _ => None,
        };
        let after = After { add: residual, activation: self.activation };
        let leading = inputs[0].shape().split_last().map_or(&[][..], |(_, leading)| leading);
        let (m, batch) = (leading.iter().product::<usize>(), leading.first().copied().unwrap_or(1));
        let mut biases = inputs[1..].iter();
        let (mut layers, mut outputs) = (tvec!(), tvec!());
        for part in &self.parts {
            let w = self.weights.weight(part.weight)?;
            let (shape, _) = rows(inputs[0].shape(), w.cols(), w.rows())?;
            ensure!(
                w.cols() == self.in_features,
                "weight {} has {} columns",
                part.weight,
                w.cols()
            );
            let bias = match part.has_bias {
                true => biases.next().map(|b| floats(b)).transpose()?,
                false => None,
            };
            layers.push((w, bias, spans(ctx, part.target, batch)?));
            if self.gated && !outputs.is_empty() {
                continue;
            }
            let y = Tensor::zero::<f32>(&shape)?;
            ensure!(
                residual.is_none_or(|r| r.len() == y.len()),
                "the residual has another shape than the product"
            );
            outputs.push(y);
        }
        let all: usize = layers.iter().map(|(w, ..)| w.rows()).sum();
        let threads = threads_for(m.saturating_mul(self.in_features).saturating_mul(all));
        let step = Inputs::stretch(threads, m);
        let views = outputs.iter_mut().map(|y| y.try_as_plain_ram_mut());
        let (mut views, mut stretches) = (views.collect::<TractResult<TVec<_>>>()?, tvec!());
        for ((w, ..), y) in layers.iter().zip(&mut views) {
            stretches.push(y.as_slice_mut::<f32>()?.chunks_mut((step * w.rows()).max(1)));
        }
        let stretches = (0..m).step_by(step).map(move |first| {
            let y: TVec<_> = stretches.iter_mut().map(|y| y.next().unwrap_or_default()).collect();
            (first, y)
        });
        try_share(
            threads,
            stretches,
            Vec::new,
            |factor: &mut Vec<f32>, (first, mut outputs)| -> TractResult<()> {
                let rows = first..m.min(first + step);
                let x = &x[rows.start * self.in_features..rows.end * self.in_features];
                let mut shared = Inputs::new(x, self.in_features);
                let mut product = |of: usize, y: &mut [f32]| -> TractResult<usize> {
                    let (w, bias, spans) = &layers[of];
                    let updates = updates(spans, *w, m / batch.max(1), rows.clone())?;
                    shared.product(*w, *bias, &updates, y);
                    Ok(first * w.rows())
                };
                for (of, y) in outputs.iter_mut().enumerate() {
                    after.apply(product(of, y)?, y);
                }
                if let (true, [y]) = (self.gated, outputs.as_mut_slice()) {
                    factor.resize(y.len(), 0.0);
                    product(1, factor)?;
                    y.iter_mut().zip(factor).for_each(|(y, factor)| *y *= *factor);
                }
                Ok(())
            },
        )?;
        drop(views);
        Ok(outputs.into_iter().map(IntoTValue::into_tvalue).collect())
    }
}

impl TypedOp for FusedLinear {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let expected = self.inputs();
        ensure!(inputs.len() == expected, "expected {expected} inputs, found {}", inputs.len());
        ensure!(
            self.parts.len() == 1 || !self.has_residual,
            "a residual goes with one part, not with {}",
            self.parts.len()
        );
        ensure!(
            !self.gated || self.parts.len() == 2 && !self.has_residual,
            "{} parts gate nothing",
            self.parts.len()
        );
        let mut facts = tvec!();
        let mut bias = 1;
        for part in &self.parts {
            if part.has_bias {
                expect_bias(inputs, bias, part.out_features)?;
                bias += 1;
            }
            facts.push(product_fact(inputs[0], self.in_features, part.out_features)?);
        }
        if self.gated {
            ensure!(facts[0] == facts[1], "{:?} is no gate of {:?}", facts[0], facts[1]);
            facts.pop();
        }
        if let (true, Some(residual)) = (self.has_residual, inputs.last()) {
            expect_f32("residual", residual)?;
            ensure!(
                residual.shape == facts[0].shape,
                "residual: expected shape {:?}, found {:?}",
                facts[0].shape,
                residual.shape
            );
        }
        Ok(facts)
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        let outputs: usize = self.parts.iter().map(|p| p.out_features).sum();
        let work = inputs[0].shape.volume() * outputs;
        let params = (self.in_features * outputs).to_dim();
        Ok(tvec!((Cost::FMA(f32::datum_type()), work), (Cost::Params(f32::datum_type()), params)))
    }
}
