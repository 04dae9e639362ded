//! How a head reads outputs whose axes are not batch, tokens and features.

use super::engine::Engine;
use crate::error::Result;
use crate::shape::Array;
use std::borrow::Cow;
use tract_core::internal::{AxisOp, TDim, TVec, ToDim, tvec};

/// What makes (B, F), (B, T, F) or a map of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// It is one of them.
    Plain,
    /// (T, B, F): recurrent networks often leave steps first.
    StepsFirst,
    /// (B): one number a row.
    Number,
    /// (T), of a batch of one: one number a step.
    NumberOfSteps,
    /// (B, T), of an open number of steps: one number a step.
    NumbersOfSteps,
}

impl Reading {
    /// That of output `at`, by the names of its dimensions.
    pub(crate) fn of(engine: &Engine, at: usize) -> Reading {
        let batch = engine.inputs().first().and_then(|input| input.dims.first());
        let (Some(batch), Some(output)) = (batch, engine.outputs().get(at)) else {
            return Reading::Plain;
        };
        let one = batch == "1";
        let open = |dim: &String| dim.parse::<u64>().is_err();
        match output.dims.as_slice() {
            [rows] if rows == batch && !one => Reading::Number,
            [steps] if one && open(steps) => Reading::NumberOfSteps,
            [rows, steps] if rows == batch && open(steps) => Reading::NumbersOfSteps,
            [steps, rows, _] if rows == batch && steps != batch => Reading::StepsFirst,
            _ => Reading::Plain,
        }
    }

    /// What is done to the output's axes, in order.
    pub(crate) fn axes(self) -> TVec<AxisOp> {
        match self {
            Reading::Plain => tvec![],
            Reading::StepsFirst => tvec![AxisOp::Move(1, 0)],
            Reading::Number => tvec![AxisOp::Add(1)],
            Reading::NumberOfSteps => tvec![AxisOp::Add(0), AxisOp::Add(2)],
            Reading::NumbersOfSteps => tvec![AxisOp::Add(2)],
        }
    }

    /// The dimensions of what is read.
    pub(crate) fn dims(self, dims: &[TDim]) -> TVec<TDim> {
        let mut dims: TVec<TDim> = dims.into();
        for op in self.axes() {
            match op {
                AxisOp::Add(axis) => dims.insert(axis, 1.to_dim()),
                AxisOp::Move(from, to) => {
                    let dim = dims.remove(from);
                    dims.insert(to, dim);
                }
                _ => {}
            }
        }
        dims
    }

    /// The output as a head reads it. Training does the same in its graph.
    ///
    /// # Errors
    /// It holds no floats.
    pub(crate) fn array(self, output: &Array) -> Result<Cow<'_, Array>> {
        let shape = output.shape();
        let shape: Vec<usize> = match (self, shape) {
            (Reading::Number, [rows]) => vec![*rows, 1],
            (Reading::NumberOfSteps, [steps]) => vec![1, *steps, 1],
            (Reading::NumbersOfSteps, [rows, steps]) => vec![*rows, *steps, 1],
            (Reading::StepsFirst, &[steps, rows, width]) => {
                let values = output.as_f32()?;
                let mut turned = Vec::with_capacity(values.len());
                for row in 0..rows {
                    for step in 0..steps {
                        turned.extend_from_slice(&values[(step * rows + row) * width..][..width]);
                    }
                }
                return Ok(Cow::Owned(Array::f32([rows, steps, width], turned)?));
            }
            _ => return Ok(Cow::Borrowed(output)),
        };
        Ok(Cow::Owned(Array::f32(shape, output.as_f32()?.to_vec())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_core::internal::*;
    use tract_core::plan::SimplePlan;

    #[test]
    fn arrays_and_graphs_are_read_the_same() {
        let readings = [
            (Reading::Plain, vec![2, 3]),
            (Reading::StepsFirst, vec![4, 2, 3]),
            (Reading::Number, vec![5]),
            (Reading::NumberOfSteps, vec![5]),
            (Reading::NumbersOfSteps, vec![2, 5]),
        ];
        for (reading, shape) in readings {
            let count = shape.iter().product::<usize>();
            let values: Vec<f32> = (0..count).map(|v| v as f32).collect();
            let tensor = Tensor::from_shape(&shape, &values).unwrap();
            let mut model = TypedModel::default();
            let mut y = model.add_source("y", TypedFact::shape_and_dt_of(&tensor)).unwrap();
            let dims = model.outlet_fact(y).unwrap().shape.to_tvec();
            for (at, op) in reading.axes().into_iter().enumerate() {
                y = model.wire_node(format!("axis{at}"), op, &[y]).unwrap()[0];
            }
            let read = model.outlet_fact(y).unwrap().shape.to_tvec();
            assert_eq!(read, reading.dims(&dims));
            model.select_output_outlets(&[y]).unwrap();
            let plan = SimplePlan::new(model).unwrap();
            let expected = plan.run(tvec![tensor.into()]).unwrap();
            let array = Array::f32(shape, values).unwrap();
            let found = reading.array(&array).unwrap();
            assert_eq!(found.shape(), expected[0].shape());
            let plain = expected[0].try_as_plain_ram().unwrap();
            assert_eq!(found.as_f32().unwrap(), plain.as_slice::<f32>().unwrap());
        }
    }
}
