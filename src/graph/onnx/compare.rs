//! Whether sizes are equal.

use super::{Wire, Wiring};
use crate::graph::divided::least;
use tract_onnx::tract_core::broadcast::multi_broadcast;
use tract_onnx::tract_core::ops::logic::{comp_eq, comp_gte, comp_lte};
use tract_onnx::tract_hir::internal::*;

super::readers! {
    "Equal" => equal;
}

/// tract compares sizes as they are written, so that a free one is unlike every number for good: what is not decided
/// for all sizes is neither less nor greater, which it leaves open until the size is known.
fn equal(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (a, b) = (w.input(0)?, w.input(1)?);
    let size = TDim::datum_type();
    if w.dtype(a)? != size && w.dtype(b)? != size {
        return Ok(tvec!(w.binary(comp_eq(), a, b)?));
    }
    if let (Some(a), Some(b)) = (w.constant(a)?, w.constant(b)?)
        && let Some(known) = equal_sizes(&a, &b)?
    {
        return Ok(tvec!(w.tensor(known)?));
    }
    let at_most = w.binary(comp_lte(), a, b)?;
    let at_least = w.binary(comp_gte(), a, b)?;
    Ok(tvec!(w.both(at_most, at_least)?))
}

/// Which are equal whatever the sizes are; `None` if that is open for one.
fn equal_sizes(a: &Tensor, b: &Tensor) -> TractResult<Option<Tensor>> {
    let shape = multi_broadcast(&[a.shape(), b.shape()])?;
    let (a, b) = (a.cast_to::<TDim>()?, b.cast_to::<TDim>()?);
    let (a, b) = (a.to_plain_array_view::<TDim>()?, b.to_plain_array_view::<TDim>()?);
    let (Some(a), Some(b)) = (a.broadcast(&*shape), b.broadcast(&*shape)) else {
        return Ok(None);
    };
    let equal = |(a, b): (&TDim, &TDim)| match ((a.clone() - b).to_i64(), a.to_i64(), b.to_i64()) {
        (Ok(difference), ..) => Some(difference == 0),
        // As exports do that look for a size left to be found.
        (_, Ok(number), _) if least(b, 0).is_some_and(|b| b > number) => Some(false),
        (_, _, Ok(number)) if least(a, 0).is_some_and(|a| a > number) => Some(false),
        _ => None,
    };
    let found: Option<Vec<bool>> = a.iter().zip(b.iter()).map(equal).collect();
    found.map(|found| tensor1(&found).into_shape(&shape)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_equal_where_no_size_makes_them_differ() {
        let scope = SymbolScope::default();
        let (n, m) = (scope.sym("n").to_dim(), scope.sym("m").to_dim());
        let known = |a: TDim, b: TDim| {
            let found = equal_sizes(&tensor0(a), &tensor0(b)).unwrap();
            found.map(|t| t.cast_to_scalar::<bool>().unwrap())
        };
        for (a, b, equal) in [
            (n.clone(), n.clone(), Some(true)),
            (n.clone() * 2 + 1, n.clone() * 2, Some(false)),
            (n.clone(), 3.to_dim(), None),
            (n.clone(), m.clone(), None),
            (n.clone() * m.clone() / 4, (-1).to_dim(), Some(false)),
            (n.clone() - 4, (-1).to_dim(), None),
            (n.clone() + 4, 3.to_dim(), Some(false)),
        ] {
            assert_eq!(known(a.clone(), b.clone()), equal, "{a} and {b}");
            assert_eq!(known(b.clone(), a.clone()), equal, "{b} and {a}");
        }
        let both = equal_sizes(&tensor1(&[n.clone(), 8.to_dim()]), &tensor1(&[-1i64])).unwrap();
        assert_eq!(both.unwrap(), tensor1(&[false, false]));
        assert!(equal_sizes(&tensor1(&[n, 8.to_dim()]), &tensor1(&[3i64, 8])).unwrap().is_none());
    }
}
