//! Two graphs, one of which reads what the other gives, as one.

use super::bind::Substitution;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::tract_error;
use std::collections::{HashMap, HashSet};
use tract_core::internal::*;
use tract_core::model::translator::Translate;

/// `second` with its input number `input` fed by output number `output` of `first`. Inputs are those of `first`,
/// then the others of `second`; outputs are those of `second`. Its nodes are called `PREFIX.NAME`, and so are
/// those of its free dimensions that `first` has another of by this name.
///
/// # Errors
/// Unsupported: an input that doesn't take what the output gives.
pub fn join(
    first: &TypedModel,
    output: usize,
    second: &TypedModel,
    input: usize,
    prefix: &str,
) -> Result<TypedModel> {
    let mut model = first.clone();
    let (given, taken) = (outlet(&first.outputs, output)?, outlet(&second.inputs, input)?);
    let dims = dims(first, given, second, taken, prefix)?;
    let mut moved = HashMap::from([(taken, given)]);
    for id in second.eval_order().map_err(failed)? {
        if id == taken.node {
            continue;
        }
        let mut node = second.node(id).clone();
        node.name = format!("{prefix}.{}", node.name);
        let outlets = Substitution(&dims).translate_node(second, &node, &mut model, &moved);
        for (slot, outlet) in outlets.map_err(failed)?.into_iter().enumerate() {
            moved.insert(OutletId::new(id, slot), outlet);
        }
    }
    let to = |outlet: &OutletId| {
        let found = moved.get(outlet).copied();
        found.ok_or_else(|| Error::unsupported(format!("an input that nothing reads: {outlet:?}")))
    };
    let others = second.inputs.iter().filter(|other| **other != taken).map(to);
    let inputs: Vec<OutletId> =
        first.inputs.iter().map(|input| Ok(*input)).chain(others).collect::<Result<_>>()?;
    let outputs: Vec<OutletId> = second.outputs.iter().map(to).collect::<Result<_>>()?;
    model.set_input_outlets(&inputs).map_err(failed)?;
    model.select_output_outlets(&outputs).map_err(failed)?;
    Ok(model)
}

fn outlet(outlets: &[OutletId], at: usize) -> Result<OutletId> {
    outlets.get(at).copied().ok_or_else(|| Error::failed("no such input or output"))
}

fn failed(e: TractError) -> Error {
    tract_error(ErrorKind::Unsupported, &e)
}

/// What each free dimension of `second` is in the joined graph.
fn dims(
    first: &TypedModel,
    given: OutletId,
    second: &TypedModel,
    taken: OutletId,
    prefix: &str,
) -> Result<HashMap<Symbol, TDim>> {
    let gives = first.outlet_fact(given).map_err(failed)?;
    let takes = second.outlet_fact(taken).map_err(failed)?;
    let misfit = || Error::unsupported(format!("it takes {takes:?}, what it reads is {gives:?}"));
    if gives.rank() != takes.rank() || gives.datum_type != takes.datum_type {
        return Err(misfit());
    }
    let mut dims: HashMap<Symbol, TDim> = HashMap::new();
    for (gives, takes) in gives.shape.iter().zip(takes.shape.iter()) {
        let known = match takes {
            TDim::Sym(symbol) => dims.entry(symbol.clone()).or_insert(gives.clone()),
            other => other,
        };
        if known != gives {
            return Err(misfit());
        }
    }
    let used = symbols(first);
    let names: HashSet<String> = used.iter().map(Symbol::to_string).collect();
    for symbol in symbols(second) {
        let name = symbol.to_string();
        let name = if names.contains(&name) { format!("{prefix}_{name}") } else { name };
        dims.entry(symbol).or_insert_with(|| first.symbols.sym(&name).to_dim());
    }
    Ok(dims)
}

/// The symbols that the graph's tensors have in their dimensions.
fn symbols(model: &TypedModel) -> HashSet<Symbol> {
    let facts = model.nodes().iter().flat_map(|node| &node.outputs);
    facts.flat_map(|output| output.fact.shape.iter().flat_map(TDim::symbols)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_core::ops::math;

    /// y = 2 x (batch, frames); z = y + t, where t has one row of `frames` values.
    fn halves(dims: [&str; 2]) -> (TypedModel, TypedModel) {
        let mut first = TypedModel::default();
        let (b, f) = (first.sym("batch"), first.sym("frames"));
        let x = first.add_source("x", f32::fact([b.to_dim(), f.to_dim()])).unwrap();
        let two = first.add_const("two", tensor2(&[[2f32]])).unwrap();
        let y = first.wire_node("same", math::mul(), &[x, two]).unwrap()[0];
        first.select_output_outlets(&[y]).unwrap();
        let mut second = TypedModel::default();
        let (b, f) = (second.sym(dims[0]), second.sym(dims[1]));
        let t = second.add_source("t", f32::fact([1.to_dim(), f.to_dim()])).unwrap();
        let y = second.add_source("y", f32::fact([b.to_dim(), f.to_dim()])).unwrap();
        let z = second.wire_node("same", math::add(), &[y, t]).unwrap()[0];
        second.select_output_outlets(&[z]).unwrap();
        (first, second)
    }

    #[test]
    fn what_one_gives_the_other_reads() {
        for dims in [["batch", "frames"], ["rows", "batch"]] {
            let (first, second) = halves(dims);
            let joined = join(&first, 0, &second, 1, "second").unwrap();
            let names: Vec<&str> =
                joined.inputs.iter().map(|i| joined.node(i.node).name.as_str()).collect();
            assert_eq!(names, ["x", "second.t"]);
            let shape = joined.output_fact(0).unwrap().shape.to_tvec();
            assert_eq!(shape, first.output_fact(0).unwrap().shape.to_tvec());
            let plan = TypedSimplePlan::new(joined).unwrap();
            let inputs =
                tvec![tensor2(&[[1f32, 2.], [3., 4.]]).into(), tensor2(&[[10f32, 20.]]).into()];
            let found = plan.run(inputs).unwrap();
            assert_eq!(&*found[0], &tensor2(&[[12f32, 24.], [16., 28.]]));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (first, mut second) = halves(["batch", "frames"]);
        let wide = second.add_source("wide", f32::fact([2, 3, 4])).unwrap();
        second.select_output_outlets(&[wide]).unwrap();
        let e = join(&first, 0, &second, 2, "second").unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unsupported);
        assert!(e.message().contains("it takes 2,3,4"), "{e}");
    }

    /// A dimension of the second's own that has a name of the first's.
    #[test]
    fn dimensions_of_one_name_stay_apart() {
        let (first, mut second) = halves(["batch", "frames"]);
        let own = second.sym("own");
        let t = second.add_source("own", f32::fact([own.to_dim()])).unwrap();
        second.select_output_outlets(&[second.outputs[0], t]).unwrap();
        let mut other = first.clone();
        let x = other.add_source("z", f32::fact([other.sym("own").to_dim()])).unwrap();
        let outputs = [other.outputs[0], x];
        other.select_output_outlets(&outputs).unwrap();
        let joined = join(&other, 0, &second, 1, "second").unwrap();
        let found: Vec<String> = joined
            .inputs
            .iter()
            .map(|i| format!("{:?}", joined.outlet_fact(*i).unwrap().shape))
            .collect();
        assert!(found[1].contains("own") && !found[1].contains("second"), "{found:?}");
        assert!(found[3].contains("second_own"), "{found:?}");
    }
}
