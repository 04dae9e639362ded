//! Operations whose output is as long as the values say: boxes that survive, places that aren't zero.

use tract_core::internal::*;

/// How many there are is a dimension of its own, which the run finds.
fn counted(count: &TDim, before: Option<usize>, after: Option<usize>) -> TVec<TypedFact> {
    let dims = before.map(|d| d.to_dim()).into_iter().chain([count.clone()]);
    let dims: TVec<TDim> = dims.chain(after.map(|d| d.to_dim())).collect();
    tvec!(i64::fact(&*dims))
}

/// ONNX's NonMaxSuppression. Inputs: boxes (N, S, 4), scores (N, C, S), then as scalars or vectors of
/// one the most boxes of a class, the overlap (intersection over union) above which a box is dropped,
/// and the score that a box must exceed. Output: (count, 3) of image, class and box.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NonMaxSuppression {
    /// Boxes are centre and size, not two corners.
    pub center: bool,
    /// The length of the output.
    pub count: TDim,
}

impl Op for NonMaxSuppression {
    fn name(&self) -> StaticName {
        "NonMaxSuppression".into()
    }

    fn mints_runtime_symbols(&self) -> bool {
        true
    }

    op_as_typed_op!();
}

impl NonMaxSuppression {
    /// Two corners of a box, the lower first.
    fn corners(&self, b: &[f32]) -> [f32; 4] {
        if self.center {
            let (x, y, w, h) = (b[0], b[1], b[2] / 2.0, b[3] / 2.0);
            [x - w, y - h, x + w, y + h]
        } else {
            [b[0].min(b[2]), b[1].min(b[3]), b[0].max(b[2]), b[1].max(b[3])]
        }
    }
}

/// Intersection over union.
fn overlap(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let side = |axis: usize| a[axis + 2].min(b[axis + 2]) - a[axis].max(b[axis]);
    let common = side(0).max(0.0) * side(1).max(0.0);
    let area = |c: &[f32; 4]| (c[2] - c[0]) * (c[3] - c[1]);
    let (of_a, of_b) = (area(a), area(b));
    if common <= 0.0 || of_a <= 0.0 || of_b <= 0.0 {
        return 0.0;
    }
    common / (of_a + of_b - common)
}

impl EvalOp for NonMaxSuppression {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (boxes, scores, most, limit, least) = args_5!(inputs);
        ensure!(
            boxes.rank() == 3 && scores.rank() == 3 && boxes.shape()[2] == 4,
            "boxes of the shape {:?}, scores of {:?}",
            boxes.shape(),
            scores.shape()
        );
        let (images, count) = (boxes.shape()[0], boxes.shape()[1]);
        let classes = scores.shape()[1];
        ensure!(
            scores.shape()[0] == images && scores.shape()[2] == count,
            "boxes of the shape {:?}, scores of {:?}",
            boxes.shape(),
            scores.shape()
        );
        fn one<T: Datum + Copy>(tensor: &Tensor) -> TractResult<T> {
            let cast = tensor.cast_to::<T>()?;
            let values = cast.try_as_plain_ram()?;
            values.as_slice::<T>()?.first().copied().context("an empty tensor, expected one value")
        }
        let most = usize::try_from(one::<i64>(&most)?).unwrap_or(0);
        let (limit, least) = (one::<f32>(&limit)?, one::<f32>(&least)?);
        let (boxes, scores) = (boxes.cast_to::<f32>()?, scores.cast_to::<f32>()?);
        let (boxes, scores) = (boxes.try_as_plain_ram()?, scores.try_as_plain_ram()?);
        let (boxes, scores) = (boxes.as_slice::<f32>()?, scores.as_slice::<f32>()?);
        let mut found: Vec<i64> = vec![];
        for image in 0..images {
            let corners: Vec<[f32; 4]> = boxes[image * count * 4..(image + 1) * count * 4]
                .chunks(4)
                .map(|b| self.corners(b))
                .collect();
            for class in 0..classes {
                let row = (image * classes + class) * count;
                let scores = &scores[row..row + count];
                let mut order: Vec<usize> = (0..count).filter(|&i| scores[i] > least).collect();
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
                let mut kept: Vec<usize> = vec![];
                for i in order {
                    if kept.len() == most {
                        break;
                    }
                    if kept.iter().all(|&k| overlap(&corners[i], &corners[k]) <= limit) {
                        kept.push(i);
                        found.extend([image as i64, class as i64, i as i64]);
                    }
                }
            }
        }
        let rows = found.len() / 3;
        Ok(tvec!(Tensor::from_shape(&[rows, 3], &found)?.into_tvalue()))
    }
}

impl TypedOp for NonMaxSuppression {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(counted(&self.count, None, Some(3)))
    }

    fn set_symbols(
        &self,
        _: &TypedModel,
        node: &TypedNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
        subs: &HashMap<Symbol, TDim>,
    ) -> TractResult<TVec<OutletId>> {
        let op = NonMaxSuppression { center: self.center, count: self.count.substitute_all(subs)? };
        let inputs: TVec<OutletId> = node.inputs.iter().map(|i| mapping[i]).collect();
        target.wire_node(&node.name, op, &inputs)
    }

    as_op!();
}

/// ONNX's NonZero: (rank, count), the places of all elements that aren't zero, in their order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NonZero {
    /// The length of the output's second axis.
    pub count: TDim,
}

impl Op for NonZero {
    fn name(&self) -> StaticName {
        "NonZero".into()
    }

    fn mints_runtime_symbols(&self) -> bool {
        true
    }

    op_as_typed_op!();
}

impl EvalOp for NonZero {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = args_1!(inputs);
        let shape = x.shape().to_vec();
        let set: Vec<usize> = if x.datum_type() == bool::datum_type() {
            let values = x.try_as_plain_ram()?;
            let values = values.as_slice::<bool>()?;
            (0..values.len()).filter(|&i| values[i]).collect()
        } else {
            // Every number that isn't zero is none in f64 either.
            let cast = x.cast_to::<f64>()?;
            let values = cast.try_as_plain_ram()?;
            let values = values.as_slice::<f64>()?;
            (0..values.len()).filter(|&i| values[i] != 0.0).collect()
        };
        let mut places = vec![];
        for axis in 0..shape.len() {
            let after: usize = shape[axis + 1..].iter().product();
            places.extend(set.iter().map(|i| (i / after % shape[axis]) as i64));
        }
        Ok(tvec!(Tensor::from_shape(&[shape.len(), set.len()], &places)?.into_tvalue()))
    }
}

impl TypedOp for NonZero {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(counted(&self.count, Some(inputs[0].rank()), None))
    }

    fn set_symbols(
        &self,
        _: &TypedModel,
        node: &TypedNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
        subs: &HashMap<Symbol, TDim>,
    ) -> TractResult<TVec<OutletId>> {
        let op = NonZero { count: self.count.substitute_all(subs)? };
        let inputs: TVec<OutletId> = node.inputs.iter().map(|i| mapping[i]).collect();
        target.wire_node(&node.name, op, &inputs)
    }

    as_op!();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(op: impl EvalOp, inputs: &[Tensor]) -> Tensor {
        let inputs = inputs.iter().map(|t| t.clone().into_tvalue()).collect();
        op.eval_out_of_plan(inputs).unwrap().unwrap().remove(0).into_tensor()
    }

    #[test]
    fn boxes_that_overlap_a_better_one_are_dropped() {
        let boxes =
            tensor3(&[[[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.1, 0.0], [2.0, 2.0, 3.0, 3.0f32]]]);
        let scores = tensor3(&[[[0.6, 0.9, 0.3f32]]]);
        let op = NonMaxSuppression { center: false, count: 1.to_dim() };
        let with = |most: i64, least: f32| {
            let limits = [tensor1(&[most]), tensor0(0.5f32), tensor0(least)];
            run(op.clone(), &[&[boxes.clone(), scores.clone()], limits.as_slice()].concat())
        };
        assert_eq!(with(3, f32::MIN), tensor2(&[[0i64, 0, 1], [0, 0, 2]]));
        assert_eq!(with(1, f32::MIN), tensor2(&[[0i64, 0, 1]]));
        assert_eq!(with(3, 0.5), tensor2(&[[0i64, 0, 1]]));
        assert_eq!(with(0, 0.5).shape(), [0, 3]);
        let middle = NonMaxSuppression { center: true, count: 1.to_dim() };
        let boxes =
            tensor3(&[[[0.5, 0.5, 1.0, 1.0], [0.5, 0.6, 1.0, 1.0], [2.5, 2.5, 1.0, 1.0f32]]]);
        let limits = [tensor0(3i64), tensor0(0.5f32), tensor0(0f32)];
        let kept = run(middle, &[&[boxes, scores], limits.as_slice()].concat());
        assert_eq!(kept, tensor2(&[[0i64, 0, 1], [0, 0, 2]]));
    }

    #[test]
    fn places_of_what_is_not_zero() {
        let op = NonZero { count: 1.to_dim() };
        let found = run(op.clone(), &[tensor2(&[[0f32, 2.0], [-1.0, 0.0]])]);
        assert_eq!(found, tensor2(&[[0i64, 1], [1, 0]]));
        assert_eq!(run(op.clone(), &[tensor1(&[true, false, true])]), tensor2(&[[0i64, 2]]));
        assert_eq!(run(op, &[tensor1(&[0i64])]).shape(), [1, 0]);
    }
}
