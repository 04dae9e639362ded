//! Where a node stands: in the graph, or in the body of a loop.

use tract_core::internal::*;
use tract_core::ops::scan::{InputMapping, Scan};

use super::tract_error;
use crate::error::{Error, ErrorKind, Result};

/// A node of a graph or of the body of one of its loops.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The loops that it stands in, the outermost first.
    pub loops: TVec<usize>,
    /// The node in the innermost body.
    pub node: usize,
}

impl Place {
    /// The node of the graph itself that is it, or holds it.
    pub fn outermost(&self) -> usize {
        self.loops.first().copied().unwrap_or(self.node)
    }

    /// The graph or body it is a node of.
    pub fn graph<'a>(&self, model: &'a TypedModel) -> Result<&'a TypedModel> {
        let mut graph = model;
        for id in &self.loops {
            let body = graph.nodes().get(*id).and_then(|node| node.op_as::<Scan>());
            graph = &body.ok_or_else(no_loop)?.body;
        }
        match graph.nodes().get(self.node) {
            Some(_) => Ok(graph),
            None => Err(Error::usage(format!("the graph has no node {}", self.node))),
        }
    }
}

fn no_loop() -> Error {
    Error::usage("a place names a loop that the graph lacks")
}

/// All nodes of a graph and of the bodies of its loops.
pub fn places(model: &TypedModel) -> Vec<Place> {
    let mut found = vec![];
    collect(model, tvec!(), &mut found);
    found
}

fn collect(model: &TypedModel, loops: TVec<usize>, found: &mut Vec<Place>) {
    for node in model.nodes() {
        found.push(Place { loops: loops.clone(), node: node.id });
        if let Some(scan) = node.op_as::<Scan>() {
            let mut inner = loops.clone();
            inner.push(node.id);
            collect(&scan.body, inner, found);
        }
    }
}

/// Lets `change` rewire the graph or body around a node. Inputs that it adds become inputs of the whole
/// graph of the same names, after its others; the outlets that it gives, which are among them, are given
/// as the whole graph's.
///
/// # Errors
/// A place that isn't in the graph, a name that the graph has already, and what `change` refuses.
pub fn within(
    model: &mut TypedModel,
    place: &Place,
    change: &mut dyn FnMut(&mut TypedModel, usize) -> Result<Vec<OutletId>>,
) -> Result<Vec<OutletId>> {
    let Some((&id, inner)) = place.loops.split_first() else {
        return change(model, place.node);
    };
    let failed = |e: TractError| tract_error(ErrorKind::Failed, &e);
    let scan = model.nodes().get(id).and_then(|node| node.op_as::<Scan>());
    let mut op = scan.ok_or_else(no_loop)?.clone();
    let inner = Place { loops: inner.into(), node: place.node };
    let found = within(&mut op.body, &inner, change)?;
    let mut outer = HashMap::new();
    for slot in op.input_mapping.len()..op.body.inputs.len() {
        let source = op.body.inputs[slot];
        let name = op.body.node(source.node).name.clone();
        if model.nodes().iter().any(|node| node.name == name) {
            return Err(Error::usage(format!("the graph has a node '{name}' already")));
        }
        let fact = op.body.outlet_fact(source).map_err(failed)?.clone();
        let outlet = model.add_source(name, fact).map_err(failed)?;
        model.add_edge(outlet, InletId::new(id, slot)).map_err(failed)?;
        op.input_mapping.push(InputMapping::Full);
        outer.insert(source, outlet);
    }
    op.decluttered = false;
    model.node_mut(id).op = Box::new(op);
    let outlet = |inner: &OutletId| {
        let found = outer.get(inner).copied();
        found.ok_or_else(|| Error::failed("what was added to a loop is no input of its body"))
    };
    found.iter().map(outlet).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_core::ops::math;
    use tract_core::ops::scan::{OutputMapping, ScanInfo};

    /// y_t = exp(x_t) in a loop of one pass within a loop.
    fn nested() -> TypedModel {
        let looped = |body: TypedModel| {
            let info = ScanInfo { axis: 0, chunk: 1 };
            let output = OutputMapping {
                scan: Some((0, info)),
                full_dim_hint: None,
                last_value_slot: None,
                state: false,
            };
            Scan::new(body, vec![InputMapping::Scan(info)], vec![output], 0).unwrap()
        };
        let mut innermost = TypedModel::default();
        let x = innermost.add_source("inner x", f32::fact([1, 2])).unwrap();
        let y = innermost.wire_node("exp", math::exp(), &[x]).unwrap();
        innermost.select_output_outlets(&y).unwrap();
        let mut middle = TypedModel::default();
        let x = middle.add_source("middle x", f32::fact([1, 2])).unwrap();
        let y = middle.wire_node("inner", looped(innermost), &[x]).unwrap();
        middle.select_output_outlets(&y).unwrap();
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([3, 2])).unwrap();
        let y = model.wire_node("outer", looped(middle), &[x]).unwrap();
        model.select_output_outlets(&y).unwrap();
        model
    }

    #[test]
    fn inputs_added_in_a_body_are_inputs_of_the_graph() {
        let mut model = nested();
        let all = places(&model);
        let found = |p: &&Place| p.graph(&model).unwrap().node(p.node).name == "exp";
        let place = all.iter().find(found).unwrap().clone();
        assert_eq!((place.loops.len(), place.outermost()), (2, 1));
        let mut change = |body: &mut TypedModel, node: usize| {
            let factor = body.add_source("factor", f32::fact([1, 2])).unwrap();
            let inputs = [OutletId::new(node, 0), factor];
            let y = body.wire_node("scaled", math::mul(), &inputs).unwrap();
            body.select_output_outlets(&y).unwrap();
            Ok(vec![factor])
        };
        let inputs = within(&mut model, &place, &mut change).unwrap();
        assert_eq!(inputs, model.inputs[1..]);
        let x = Tensor::from_shape(&[3, 2], &[0f32, 1., 2., 3., 4., 5.]).unwrap();
        let factor = Tensor::from_shape(&[1, 2], &[2f32, 3.]).unwrap();
        let values = tvec!(x.clone().into_tvalue(), factor.into_tvalue());
        let y = model.clone().into_optimized().unwrap().into_runnable().unwrap().run(values);
        let want: Vec<f32> =
            (0..6).map(|i| (i as f32).exp() * if i % 2 == 0 { 2.0 } else { 3.0 }).collect();
        let want = Tensor::from_shape(&[3, 2], &want).unwrap();
        y.unwrap()[0].close_enough(&want, Approximation::Close).unwrap();
        let mut again = |body: &mut TypedModel, _| {
            Ok(vec![body.add_source("factor", f32::fact([1, 2])).unwrap()])
        };
        let e = within(&mut model, &place, &mut again).unwrap_err();
        assert!(e.message().contains("'factor'"), "{e}");
        let gone = Place { loops: tvec!(0), node: 0 };
        assert!(gone.graph(&model).is_err() && within(&mut model, &gone, &mut again).is_err());
    }
}
