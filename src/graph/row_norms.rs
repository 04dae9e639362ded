//! The lengths of the rows of a changed weight.

use tract_core::internal::*;

use super::weights::{FrozenWeights, expect_dim, expect_f32, filled, floats};
use crate::quant::row_norms;

/// ‖W + b·a‖\[N\] of each row of W (N, K), from a\[R, K\], b\[N, R\] and ‖W‖²\[N\]. A constant to gradients:
/// DoRA (arXiv:2402.09353, section 4.3) lets none pass through its norm.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RowNorms {
    /// The weight table.
    pub weights: FrozenWeights,
    /// Index of W in the weight table.
    pub weight: usize,
}

impl Op for RowNorms {
    fn name(&self) -> StaticName {
        "RowNorms".into()
    }

    op_as_typed_op!();
}

impl EvalOp for RowNorms {
    not_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let w = self.weights.weight(self.weight)?;
        let (a, b) = (floats(&inputs[0])?, floats(&inputs[1])?);
        let squares = floats(&inputs[2])?;
        ensure!(
            a.len() * w.rows() == b.len() * w.cols()
                && inputs[0].shape()[1] == w.cols()
                && squares.len() == w.rows(),
            "a pair of {:?} and {:?} for a weight of ({}, {})",
            inputs[0].shape(),
            inputs[1].shape(),
            w.rows(),
            w.cols()
        );
        let norms = row_norms(w, squares, a, b);
        Ok(tvec!(filled(&[w.rows()], |y| {
            y.copy_from_slice(&norms);
            Ok(())
        })?))
    }
}

impl TypedOp for RowNorms {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 3, "expected 3 inputs, found {}", inputs.len());
        let w = self.weights.weight(self.weight)?;
        expect_f32("a", inputs[0])?;
        expect_f32("b", inputs[1])?;
        ensure!(inputs[..2].iter().all(|i| i.rank() == 2), "a pair is two matrices");
        expect_f32("squares", inputs[2])?;
        expect_dim("squares", inputs[2].shape.first(), w.rows())?;
        expect_dim("a's columns", inputs[0].shape.last(), w.cols())?;
        expect_dim("b's rows", inputs[1].shape.first(), w.rows())?;
        Ok(tvec!(f32::fact([w.rows()])))
    }
}
