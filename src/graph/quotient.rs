//! Quotients as IEEE 754 has them.

use tract_core::internal::*;
use tract_core::ndarray::Zip;
use tract_core::ops::binary::BinMiniOp;

/// a / b of f32, for what is rounded afterwards: 49 / 49 is 1. tract makes products with reciprocals of
/// its own quotients, by which it is 0.99999994, and a whole step less after a floor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Quotient;

impl BinMiniOp for Quotient {
    fn name(&self) -> &'static str {
        "Quotient"
    }

    fn is_commutative(&self) -> bool {
        false
    }

    fn result_datum_type(&self, a: DatumType, b: DatumType) -> TractResult<DatumType> {
        let f32s = f32::datum_type();
        ensure!(a == f32s && b == f32s, "expected two of {f32s:?}, found {a:?} and {b:?}");
        Ok(f32s)
    }

    fn eval_in_a(&self, a: &mut Tensor, b: &Tensor) -> TractResult<()> {
        let b = b.try_as_plain_ram()?;
        let mut a = a.try_as_plain_ram_mut()?;
        // The quick way for a scale of the whole tensor.
        if let [b] = b.as_slice::<f32>()? {
            a.as_slice_mut::<f32>()?.iter_mut().for_each(|a| *a /= *b);
            return Ok(());
        }
        let b = b.to_array_view::<f32>()?;
        Zip::from(&mut a.to_array_view_mut::<f32>()?).and_broadcast(b).for_each(|a, b| *a /= *b);
        Ok(())
    }

    fn eval_out_of_place(&self, c: &mut Tensor, a: &Tensor, b: &Tensor) -> TractResult<()> {
        let (a, b) = (a.to_plain_array_view::<f32>()?, b.to_plain_array_view::<f32>()?);
        let mut c = c.try_as_plain_ram_mut()?;
        let mut c = c.to_array_view_mut::<f32>()?;
        Zip::from(&mut c).and_broadcast(a).and_broadcast(b).for_each(|c, a, b| *c = a / b);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_core::ops::binary::TypedBinOp;

    fn run(a: Tensor, b: Tensor) -> Vec<f32> {
        let mut model = TypedModel::default();
        let a = model.add_source("a", TypedFact::shape_and_dt_of(&a)).map(|o| (o, a)).unwrap();
        let b = model.add_const("b", b).unwrap();
        let y = model.wire_node("y", TypedBinOp(Box::new(Quotient), None), &[a.0, b]).unwrap();
        model.select_output_outlets(&y).unwrap();
        let plan = model.into_optimized().unwrap().into_runnable().unwrap();
        let y = plan.run(tvec!(a.1.into_tvalue())).unwrap();
        y[0].to_plain_array_view::<f32>().unwrap().iter().copied().collect()
    }

    #[test]
    fn quotients_are_exact_in_optimized_plans() {
        let whole: Vec<f32> = (1..1000).map(|i| i as f32).collect();
        for by in [3f32, 41.0, 49.0, 0.1] {
            let expected: Vec<f32> = whole.iter().map(|v| v / by).collect();
            assert_eq!(run(tensor1(&whole), tensor1(&[by])), expected);
        }
        let rows = run(tensor2(&[[49f32, 41.0], [98.0, 82.0]]), tensor2(&[[49f32, 41.0]]));
        assert_eq!(rows, [1.0, 1.0, 2.0, 2.0]);
        let columns = run(tensor2(&[[49f32], [98.0]]), tensor2(&[[49f32, 98.0]]));
        assert_eq!(columns, [1.0, 0.5, 2.0, 1.0]);
    }
}
