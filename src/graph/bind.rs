//! Binding the free dimensions of a graph.

use tract_core::internal::*;
use tract_core::model::translator::Translate;
use tract_core::ops::array::DynSlice;
use tract_core::ops::cnn::{MaxPool, PaddingSpec, SumPool};
use tract_core::ops::logic::IfThenElse;

use super::tract_error;
use crate::error::{Error, ErrorKind, Result};

/// The graph with the named symbols bound to values. Symbols not named stay free.
///
/// # Errors
/// A name that is no symbol of the graph, a negative value, or values that the graph refuses.
pub fn bind_dims(model: &TypedModel, dims: &[(String, i64)]) -> Result<TypedModel> {
    let mut subs = HashMap::new();
    for (name, value) in dims {
        let Some(symbol) = model.symbols.get(name) else {
            let mut known: Vec<String> =
                model.symbols.all_symbols().iter().map(|s| format!("'{s}'")).collect();
            known.sort();
            return Err(Error::usage(format!(
                "no free dimension '{name}' (there are: {})",
                known.join(", ")
            )));
        };
        if *value < 0 {
            return Err(Error::usage(format!(
                "dimension '{name}' is {value}, expected at least 0"
            )));
        }
        subs.insert(symbol, TDim::Val(*value));
    }
    let bound = substitute(model, &subs).map_err(|e| tract_error(ErrorKind::BadInput, &e))?;
    check_pools(&bound)?;
    Ok(bound)
}

/// The values of a graph's symbols in `dims`; names that it lacks are passed over.
pub fn symbol_values(model: &TypedModel, dims: &[(String, i64)]) -> SymbolValues {
    let mut values = SymbolValues::default();
    for (name, value) in dims {
        if let Some(symbol) = model.symbols.get(name) {
            values.set(&symbol, *value);
        }
    }
    values
}

/// tract runs pools whose window is larger than what there is, to values without a meaning.
fn check_pools(model: &TypedModel) -> Result<()> {
    for node in model.nodes() {
        let max = node.op_as::<MaxPool>().map(|op| &op.pool_spec);
        let Some(spec) = max.or_else(|| node.op_as::<SumPool>().map(|op| &op.pool_spec)) else {
            continue;
        };
        let Some(fact) = node.inputs.first().and_then(|o| model.outlet_fact(*o).ok()) else {
            continue;
        };
        let first = if spec.data_format.has_n() { 1 } else { 0 };
        let first = first + usize::from(!spec.data_format.c_is_last());
        for (axis, &kernel) in spec.kernel_shape.iter().enumerate() {
            let around = match &spec.padding {
                PaddingSpec::Valid => 0,
                PaddingSpec::Explicit(before, after)
                | PaddingSpec::ExplicitOnnxPool(before, after, _) => before[axis] + after[axis],
                PaddingSpec::SameUpper | PaddingSpec::SameLower => continue,
            };
            let dilation = spec.dilations.as_ref().map_or(1, |d| d[axis]);
            let window = kernel.saturating_sub(1) * dilation + 1;
            let size = fact.shape.get(first + axis).and_then(|d| d.to_usize().ok());
            if size.is_some_and(|size| size + around < window) {
                return Err(Error::bad_input(format!(
                    "node '{}': its window of {window} does not fit an input of {:?}",
                    node.name, fact.shape
                )));
            }
        }
    }
    Ok(())
}

/// The one symbol of `dim` that `known` lacks, and the value that makes `dim` equal `size`, where
/// `dim` grows with it evenly (`32*h`); `None` for other expressions, or if no whole number fits.
pub fn solve(dim: &TDim, size: i64, known: &SymbolValues) -> Option<(Symbol, i64)> {
    let rest = dim.eval(known);
    let symbols = rest.symbols();
    let symbol = symbols.iter().next().filter(|_| symbols.len() == 1)?.clone();
    let at = |v: i64| rest.eval(&SymbolValues::default().with(&symbol, v)).to_i64().ok();
    let (zero, step) = (at(0)?, at(1)?.checked_sub(at(0)?)?);
    let value = size.checked_sub(zero)?.checked_div(step)?;
    (value >= 0 && at(value) == Some(size)).then_some((symbol, value))
}

/// The graph with symbols replaced, in the bodies of loops and conditions too.
pub fn substitute(model: &TypedModel, subs: &HashMap<Symbol, TDim>) -> TractResult<TypedModel> {
    if subs.is_empty() {
        return Ok(model.clone());
    }
    Substitution(subs).translate_model(model)
}

/// tract's own substitution leaves the bodies of `IfThenElse` as they are.
#[derive(Debug)]
pub(super) struct Substitution<'a>(pub(super) &'a HashMap<Symbol, TDim>);

impl Translate<TypedFact, Box<dyn TypedOp>, TypedFact, Box<dyn TypedOp>> for Substitution<'_> {
    fn translate_node(
        &self,
        source: &TypedModel,
        node: &TypedNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        if let Some(op) = node.op_as::<DynSlice>() {
            // tract leaves its length as it is.
            let op = DynSlice { axis: op.axis, len: op.len.substitute_all(self.0)? };
            let inputs: TVec<OutletId> = node.inputs.iter().map(|i| mapping[i]).collect();
            return target.wire_node(&node.name, op, &inputs);
        }
        let Some(op) = node.op_as::<IfThenElse>() else {
            return self.0.translate_node(source, node, target, mapping);
        };
        let op = IfThenElse {
            then_body: self.translate_model(&op.then_body)?,
            else_body: self.translate_model(&op.else_body)?,
            ..op.clone()
        };
        let inputs: TVec<OutletId> = node.inputs.iter().map(|i| mapping[i]).collect();
        target.wire_node(&node.name, op, &inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> TypedModel {
        let mut model = TypedModel::default();
        let dims = [model.sym("batch").to_dim(), model.sym("seq").to_dim() * 2];
        let x = model.add_source("x", f32::fact(dims)).unwrap();
        model.select_output_outlets(&[x]).unwrap();
        model
    }

    #[test]
    fn named_dimensions_are_bound_and_others_stay_free() {
        let bound = bind_dims(&model(), &[("seq".into(), 8)]).unwrap();
        let batch = bound.symbols.get("batch").unwrap().to_dim();
        assert_eq!(bound.output_fact(0).unwrap().shape.to_tvec(), tvec![batch, TDim::Val(16)]);
        let both = bind_dims(&bound, &[("batch".into(), 3)]).unwrap();
        assert_eq!(both.output_fact(0).unwrap().shape.as_concrete().unwrap(), &[3, 16]);
    }

    #[test]
    fn multiples_are_solved() {
        let scope = SymbolScope::default();
        let (h, w) = (scope.sym("h"), scope.sym("w"));
        let none = SymbolValues::default();
        assert_eq!(solve(&(h.to_dim() * 32), 96, &none), Some((h.clone(), 3)));
        assert_eq!(solve(&(h.to_dim() * 32), 100, &none), None);
        let sum = h.to_dim() * 2 + w.to_dim();
        assert_eq!(solve(&sum, 9, &none), None);
        assert_eq!(solve(&sum, 9, &none.with(&w, 1)), Some((h, 4)));
        assert_eq!(solve(&TDim::Val(4), 4, &SymbolValues::default()), None);
    }

    #[test]
    fn unknown_names_and_negative_values_are_refused() {
        let e = bind_dims(&model(), &[("length".into(), 8)]).unwrap_err();
        assert_eq!(e.message(), "no free dimension 'length' (there are: 'batch', 'seq')");
        assert!(bind_dims(&model(), &[("seq".into(), -1)]).is_err());
    }
}
