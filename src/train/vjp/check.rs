//! Central differences against the rules: every rule of the table has its cases in the module `tests`.

use tract_core::internal::*;
use tract_core::ops::math;
use tract_core::ops::nn::{Reduce, Reducer};

use crate::error::Result;
use crate::train::gradient::{backward, ones};

/// Gradients of `loss`, one value.
pub(crate) fn gradients(
    model: &mut TypedModel,
    loss: OutletId,
    wanted: &[OutletId],
) -> Result<Vec<OutletId>> {
    let one = ones(model, loss)?;
    backward(model, &[(loss, one)], wanted)
}

/// Deterministic values in (-1, 1), none near 0.
pub(crate) fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let value = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            value.signum() * (0.1 + 0.9 * value.abs())
        })
        .collect();
    Tensor::from_shape(shape, &values).unwrap()
}

/// Values at least 0.07 apart from each other, in a scrambled order.
pub(crate) fn spread(shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let values: Vec<f32> = (0..len).map(|i| ((i * 7919 + 3) % len) as f32 * 0.07 - 1.0).collect();
    Tensor::from_shape(shape, &values).unwrap()
}

/// Outputs of the model as it stands, and optimized; both must agree.
pub(crate) fn run(model: &TypedModel, inputs: &[Tensor]) -> Vec<Arc<Tensor>> {
    let values = || inputs.iter().map(|t| t.clone().into_tvalue()).collect::<TVec<_>>();
    let plain = model.clone().into_runnable().unwrap().run(values()).unwrap();
    let fast = model.clone().into_optimized().unwrap().into_runnable().unwrap();
    let fast = fast.run(values()).unwrap();
    for (plain, fast) in plain.iter().zip(&fast) {
        plain.close_enough(fast, Approximation::Approximate).unwrap();
    }
    fast.into_iter().map(|t| t.into_arc_tensor()).collect()
}

/// One case: the values of the sources, and the graph from them to one tensor.
pub(crate) struct Case<'a> {
    inputs: Vec<Tensor>,
    /// Sources whose gradient is checked; the others only run.
    trained: Vec<usize>,
    symbolic: bool,
    step: f32,
    #[allow(clippy::type_complexity)]
    build: Box<dyn Fn(&mut TypedModel, &[OutletId]) -> OutletId + 'a>,
}

impl<'a> Case<'a> {
    pub(crate) fn new(
        inputs: impl Into<Vec<Tensor>>,
        build: impl Fn(&mut TypedModel, &[OutletId]) -> OutletId + 'a,
    ) -> Case<'a> {
        let inputs = inputs.into();
        let trained = (0..inputs.len()).filter(|&i| inputs[i].datum_type().is::<f32>()).collect();
        Case { inputs, trained, symbolic: false, step: 1e-2, build: Box::new(build) }
    }

    /// The graph is `op` over all sources.
    pub(crate) fn op(inputs: impl Into<Vec<Tensor>>, op: impl Into<Box<dyn TypedOp>>) -> Case<'a> {
        let op = op.into();
        Case::new(inputs, move |model, sources| {
            model.wire_node("op", op.clone(), sources).unwrap()[0]
        })
    }

    /// Only these sources are trained.
    pub(crate) fn trained(mut self, trained: &[usize]) -> Case<'a> {
        self.trained = trained.to_vec();
        self
    }

    /// The first axis is the symbol B wherever it is as long as the first one over 1.
    pub(crate) fn symbolic(mut self) -> Case<'a> {
        self.symbolic = true;
        self
    }

    /// Whether a node of the graph has an op of this kind.
    pub(crate) fn contains(&self, matches: fn(&dyn TypedOp) -> bool) -> bool {
        self.model().0.nodes().iter().any(|n| matches(n.op.as_ref()))
    }

    fn model(&self) -> (TypedModel, Vec<OutletId>, OutletId) {
        let mut model = TypedModel::default();
        let batch = model.symbols.sym("B");
        let lengths = self.inputs.iter().filter_map(|t| t.shape().first().copied());
        let length = lengths.filter(|&d| d > 1).map(|d| d.to_dim()).next().unwrap_or_default();
        let sources: Vec<OutletId> = self
            .inputs
            .iter()
            .enumerate()
            .map(|(i, t)| {
                let mut dims: TVec<TDim> = t.shape().iter().map(|d| d.to_dim()).collect();
                if self.symbolic && dims.first() == Some(&length) {
                    dims[0] = batch.to_dim();
                }
                model.add_source(format!("x{i}"), t.datum_type().fact(dims)).unwrap()
            })
            .collect();
        let y = (self.build)(&mut model, &sources);
        (model, sources, y)
    }

    /// Checks each trained source's gradient of Σ weight·output against central differences of
    /// fourth order.
    pub(crate) fn check(self) {
        let (mut forward, _, y) = self.model();
        forward.select_output_outlets(&[y]).unwrap();
        let plan = forward.into_runnable().unwrap();
        let eval = |inputs: &[Tensor]| -> Arc<Tensor> {
            let values = inputs.iter().map(|t| t.clone().into_tvalue()).collect();
            plan.run(values).unwrap().remove(0).into_arc_tensor()
        };
        let weights = random(eval(&self.inputs).shape(), 77);

        let (mut model, sources, y) = self.model();
        let mut dims = model.outlet_fact(y).unwrap().shape.to_tvec();
        let w = model.add_source("weights", f32::fact(&dims)).unwrap();
        let product = model.wire_node("weighted", math::mul(), &[y, w]).unwrap()[0];
        let axes = (0..dims.len()).collect();
        dims.clear();
        let loss = model.wire_node("loss", Reduce::new(axes, Reducer::Sum), &[product]).unwrap()[0];
        let trained: Vec<OutletId> = self.trained.iter().map(|&i| sources[i]).collect();
        let gradients = gradients(&mut model, loss, &trained).unwrap();
        model.select_output_outlets(&gradients).unwrap();
        let mut inputs = self.inputs.clone();
        inputs.push(weights.clone());
        let gradients = run(&model, &inputs);

        for (&slot, gradient) in self.trained.iter().zip(&gradients) {
            assert_eq!(gradient.shape(), self.inputs[slot].shape());
            let at = |index: usize, step: f32| -> f64 {
                let mut inputs = self.inputs.clone();
                let mut plain = inputs[slot].try_as_plain_ram_mut().unwrap();
                plain.as_slice_mut::<f32>().unwrap()[index] += step;
                let y = eval(&inputs);
                let (y, w) = (y.cast_to::<f32>().unwrap(), &weights);
                slice(&y).iter().zip(slice(w)).map(|(&y, &w)| y as f64 * w as f64).sum()
            };
            let h = self.step;
            for (index, &got) in slice(gradient).iter().enumerate() {
                let near = at(index, h) - at(index, -h);
                let far = at(index, 2.0 * h) - at(index, -2.0 * h);
                let want = (8.0 * near - far) / (12.0 * h as f64);
                assert!(
                    (got as f64 - want).abs() <= 2e-3 * (1.0 + want.abs()),
                    "d x{slot}[{index}] = {got}, by differences {want}"
                );
            }
        }
    }
}

pub(crate) fn slice(t: &Tensor) -> &[f32] {
    t.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap()
}
