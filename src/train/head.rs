//! Pooling over tokens and a linear head as graph parts, appended to a model.

use tract_core::internal::*;
use tract_core::ops::array::Slice;
use tract_core::ops::einsum::EinSum;
use tract_core::ops::logic::comp_gt;
use tract_core::ops::math;
use tract_core::ops::nn::{Reduce, Reducer};

use super::wires::Wires;
use crate::adapter::Pool;
use crate::error::{Error, Result};
use crate::runtime::{LEAST_COUNT, MASKED, feature_axis};

/// A linear head wired into a model.
#[derive(Clone, Copy, Debug)]
pub struct HeadPart {
    /// features·Wᵀ + b: (.., classes).
    pub logits: OutletId,
    /// New input W, f32 (classes, features).
    pub weight: OutletId,
    /// New input b, f32 (classes).
    pub bias: OutletId,
}

/// Name of [`HeadPart::weight`].
pub const WEIGHT: &str = "head.weight";
/// Name of [`HeadPart::bias`].
pub const BIAS: &str = "head.bias";

/// A map of features (B, F, H, W) or (B, H, W, F) as (B, H·W, F); other outputs as they are. All as
/// f32.
///
/// # Errors
/// Mismatch: which axis holds the `width` features can't be told.
pub fn as_tokens(model: &mut TypedModel, output: OutletId, width: usize) -> Result<OutletId> {
    let mut w = Wires::new(model, "tokens");
    let mut output = w.cast(output, f32::datum_type())?;
    if w.rank(output)? != 4 {
        return Ok(output);
    }
    let shape = w.fact(output)?.shape.to_tvec();
    if feature_axis([1, 3].map(|axis| shape[axis].to_usize().ok()), width)? == 1 {
        output = w.axis(AxisOp::Move(1, 3), output)?;
    }
    let shape = w.fact(output)?.shape.to_tvec();
    let area = tvec![shape[1].clone() * &shape[2]];
    w.axis(AxisOp::Reshape(1, tvec![shape[1].clone(), shape[2].clone()], area), output)
}

/// Pools `tokens` (B, T, F) to (B, F). `mask` (B, T), of any integer, float or bool type, tells
/// the tokens that count by values above 0; without one all count. [`Pool::None`] gives `tokens`
/// back as they are, of any rank.
pub fn pool(
    model: &mut TypedModel,
    pool: Pool,
    tokens: OutletId,
    mask: Option<OutletId>,
) -> Result<OutletId> {
    let mut w = Wires::new(model, "pool");
    if pool == Pool::None {
        return Ok(tokens);
    }
    let fact = w.fact(tokens)?;
    if fact.rank() != 3 || !fact.datum_type.is::<f32>() {
        let message = format!("pooling over tokens takes an f32 output (B, T, F), found {fact:?}");
        return Err(Error::usage(message).hint("pool 'none' takes (B, F)"));
    }
    let mask = match (pool, mask) {
        (Pool::Mean | Pool::Max, Some(mask)) => Some(column(&mut w, mask)?),
        _ => None,
    };
    let pooled = match (pool, mask) {
        (Pool::Cls, _) => w.wire(Slice::new(1, 0, 1), &[tokens])?,
        (Pool::Max, None) => w.wire(Reduce::new(tvec![1], Reducer::Max), &[tokens])?,
        (Pool::Max, Some(mask)) => {
            let masked = w.scalar(MASKED, tokens)?;
            let tokens = w.select(mask, tokens, masked)?;
            w.wire(Reduce::new(tvec![1], Reducer::Max), &[tokens])?
        }
        (_, None) => w.mean(tokens, &[1])?,
        (_, Some(mask)) => {
            let mask = w.cast(mask, f32::datum_type())?;
            let kept = w.mul(tokens, mask)?;
            let sum = w.sum(kept, &[1])?;
            let count = w.sum(mask, &[1])?;
            let least = w.scalar(LEAST_COUNT, count)?;
            let count = w.binary(math::max(), count, least)?;
            w.div(sum, count)?
        }
    };
    w.axis(AxisOp::Rm(1), pooled)
}

/// Whether each token counts, (B, T, 1): those with a mask above 0, whatever its type.
fn column(w: &mut Wires, mask: OutletId) -> Result<OutletId> {
    if w.rank(mask)? != 2 {
        return Err(Error::usage(format!("a mask is (B, T), found {:?}", w.fact(mask)?)));
    }
    let mut mask = w.axis(AxisOp::Add(2), mask)?;
    if !w.fact(mask)?.datum_type.is::<bool>() {
        mask = w.cast(mask, f32::datum_type())?;
        let zero = w.scalar(0.0, mask)?;
        mask = w.compare(comp_gt(), mask, zero)?;
    }
    Ok(mask)
}

/// A linear layer over the last axis of `features` (.., F), its weights new inputs.
pub fn head(model: &mut TypedModel, features: OutletId, classes: usize) -> Result<HeadPart> {
    let mut w = Wires::new(model, "head");
    let fact = w.fact(features)?;
    let (dims, rank) = (fact.shape.to_tvec(), fact.rank());
    if !fact.datum_type.is::<f32>() || !(1..=8).contains(&rank) {
        return Err(Error::usage(format!("a head takes f32 features (.., F), found {fact:?}")));
    }
    let weight = w.source(WEIGHT, &[classes.to_dim(), dims[rank - 1].clone()])?;
    let bias = w.source(BIAS, &[classes.to_dim()])?;
    let rows = &"abcdefgh"[..rank - 1];
    let formula = format!("{rows}x,yx->{rows}y");
    let axes = formula.parse().map_err(|e| Error::failed(format!("{formula}: {e:#}")))?;
    let product = w.wire(EinSum::new(axes, f32::datum_type()), &[features, weight])?;
    let mut term = bias;
    for _ in 1..rank {
        term = w.axis(AxisOp::Add(0), term)?;
    }
    Ok(HeadPart { logits: w.add(product, term)?, weight, bias })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::vjp::check::{Case, random, run, slice, spread};

    fn pooled(kind: Pool, tokens: Tensor, mask: Option<Tensor>) -> Vec<f32> {
        let mut model = TypedModel::default();
        let x = model.add_source("x", TypedFact::shape_and_dt_of(&tokens)).unwrap();
        let m =
            mask.as_ref().map(|m| model.add_source("mask", TypedFact::shape_and_dt_of(m)).unwrap());
        let y = pool(&mut model, kind, x, m).unwrap();
        model.select_output_outlets(&[y]).unwrap();
        let inputs: Vec<Tensor> = [tokens].into_iter().chain(mask).collect();
        slice(&run(&model, &inputs)[0]).to_vec()
    }

    #[test]
    fn pooling_equals_the_formula() {
        let x = || tensor3(&[[[1f32, -2.], [3., -4.], [8., 9.]]]);
        let mask = || Some(tensor2(&[[1i64, 1, 0]]));
        assert_eq!(pooled(Pool::Mean, x(), mask()), [2.0, -3.0]);
        assert_eq!(pooled(Pool::Mean, x(), None), [4.0, 1.0]);
        assert_eq!(pooled(Pool::Max, x(), mask()), [3.0, -2.0]);
        assert_eq!(pooled(Pool::Max, x(), None), [8.0, 9.0]);
        assert_eq!(pooled(Pool::Cls, x(), mask()), [1.0, -2.0]);
        assert_eq!(pooled(Pool::None, x(), mask()), slice(&x()));
        assert_eq!(pooled(Pool::Mean, x(), Some(tensor2(&[[0i64, 0, 0]]))), [0.0, 0.0]);
    }

    /// A mask that trained was refused where it was served: what counts is the same in both, for
    /// masks of every type and rows without any token.
    #[test]
    fn serving_pools_as_training_does_whatever_the_mask_is() {
        use crate::shape::{Array, Data};
        let tokens = random(&[3, 4, 2], 8);
        let counts = [1, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0];
        let masks = [
            Data::I64(counts.map(i64::from).to_vec()),
            Data::I32(counts.to_vec()),
            Data::U8(counts.map(|c| c as u8).to_vec()),
            Data::Bool(counts.map(|c| c > 0).to_vec()),
            Data::F32(counts.map(|c| if c > 0 { 0.5 } else { -1.0 }).to_vec()),
        ];
        let x = Array::f32([3, 4, 2], slice(&tokens).to_vec()).unwrap();
        for data in masks {
            let mask = Array::new([3, 4], data).unwrap();
            let tensor = match mask.data() {
                Data::I64(v) => Tensor::from_shape(&[3, 4], v),
                Data::I32(v) => Tensor::from_shape(&[3, 4], v),
                Data::U8(v) => Tensor::from_shape(&[3, 4], v),
                Data::Bool(v) => Tensor::from_shape(&[3, 4], v),
                Data::F32(v) => Tensor::from_shape(&[3, 4], v),
            };
            for kind in [Pool::Mean, Pool::Cls, Pool::Max] {
                let trained = pooled(kind, tokens.clone(), Some(tensor.as_ref().unwrap().clone()));
                let served = crate::runtime::pool(kind, &x, Some(mask.view())).unwrap().concat();
                for (t, s) in trained.iter().zip(&served) {
                    assert!(
                        (t - s).abs() < 1e-5 * (1.0 + t.abs()),
                        "{kind:?}: {trained:?} {served:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn maps_of_features_are_tokens_in_training_and_in_serving() {
        for (shape, width) in [([2, 3, 4, 5], 3), ([2, 4, 5, 3], 3)] {
            let map = spread(&shape);
            let mut model = TypedModel::default();
            let x = model.add_source("x", TypedFact::shape_and_dt_of(&map)).unwrap();
            let y = as_tokens(&mut model, x, width).unwrap();
            model.select_output_outlets(&[y]).unwrap();
            let trained = run(&model, std::slice::from_ref(&map));
            assert_eq!(trained[0].shape(), [2, 20, 3]);
            let map = crate::shape::Array::f32(shape, slice(&map).to_vec()).unwrap();
            let served = crate::runtime::as_tokens(&map, width).unwrap();
            assert_eq!(served.as_f32().unwrap(), slice(&trained[0]));
        }
        let square = crate::shape::Array::f32([1, 2, 1, 2], vec![0.0; 4]).unwrap();
        assert!(crate::runtime::as_tokens(&square, 2).is_err());
        assert!(crate::runtime::as_tokens(&square, 7).is_err());
        let case = Case::new([spread(&[2, 3, 2, 2])], |model, sources| {
            let tokens = as_tokens(model, sources[0], 3).unwrap();
            pool(model, Pool::Mean, tokens, None).unwrap()
        });
        case.check();
    }

    #[test]
    fn gradients_of_pooling_agree_with_central_differences() {
        let mask = tensor2(&[[1i64, 1, 0], [1, 0, 0]]);
        for kind in Pool::ALL {
            for symbolic in [false, true] {
                let inputs = [spread(&[2, 3, 4]), mask.clone()];
                let case = Case::new(inputs, move |model, sources| {
                    pool(model, kind, sources[0], Some(sources[1])).unwrap()
                });
                if symbolic { case.symbolic().check() } else { case.check() }
            }
        }
    }

    #[test]
    fn a_head_is_a_linear_layer_over_the_last_axis() {
        for shape in [&[3, 4][..], &[2, 3, 4]] {
            let x = random(shape, 1);
            let (weight, bias) = (random(&[5, 4], 2), random(&[5], 3));
            let mut model = TypedModel::default();
            let features = model.add_source("x", f32::fact(shape)).unwrap();
            let part = head(&mut model, features, 5).unwrap();
            model.select_output_outlets(&[part.logits]).unwrap();
            let got = run(&model, &[x.clone(), weight.clone(), bias.clone()]);
            let (x, weight, bias) = (slice(&x), slice(&weight), slice(&bias));
            for (i, got) in slice(&got[0]).iter().enumerate() {
                let (row, class) = (i / 5, i % 5);
                let want: f32 = (0..4).map(|f| x[row * 4 + f] * weight[class * 4 + f]).sum();
                assert!((got - want - bias[class]).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn pooling_takes_tokens_and_says_so() {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([2, 3])).unwrap();
        let e = pool(&mut model, Pool::Mean, x, None).unwrap_err();
        assert!(e.message().contains("(B, T, F)"), "{e}");
    }
}
