//! A home for fused steps: named rules over a bound graph, each of which takes a few of tract's ops
//! for one of ours. Only [`crate::runtime::Engine`]'s plans are fused; gradient graphs are built from
//! the graph as it is.
//!
//! A rule is a file here. It looks at one node (the last of its pattern) and gives a patch, or nothing.

mod attention;
mod convolution;
mod following;
mod gelu;
mod hard_swish;
mod kept;
mod labels;
mod layer_norm;
mod narrowing;
mod pictures;
mod rotary;
mod siblings;
mod strips;
#[cfg(test)]
mod tests;

pub use kept::{GivenState, KeptLayer, keep};

use tract_core::internal::*;
use tract_core::ops::binary::TypedBinOp;

/// A named rewriting.
pub struct Rule {
    /// What errors and listings call it.
    pub name: &'static str,
    /// The patch for a pattern that ends at `node`, if there is one. It must remove what it matched:
    /// rules run until none matches.
    pub apply: fn(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>>,
}

/// All rules, in the order in which they are tried.
pub const RULES: &[Rule] = &[
    Rule { name: "gelu-of-erf", apply: gelu::of_erf },
    Rule { name: "layer-norm", apply: layer_norm::layer_norm },
    Rule { name: "layer-norm-scale", apply: layer_norm::scale },
    Rule { name: "layer-norm-shift", apply: layer_norm::shift },
    Rule { name: "max-pool", apply: pictures::max_pool },
    Rule { name: "hard-swish", apply: hard_swish::hard_swish },
    Rule { name: "residual", apply: following::residual },
    Rule { name: "activation", apply: following::activation },
    // After the activation of one of its layers.
    Rule { name: "gate", apply: following::gate },
    // After those that it takes over: it ends with the depthwise convolution's activation.
    Rule { name: "conv-depthwise", apply: strips::conv_depthwise },
    // After the sum and the activation of the layer that it ends with.
    Rule { name: "narrowing", apply: narrowing::narrowing },
    Rule { name: "linear-siblings", apply: siblings::siblings },
    Rule { name: "attention", apply: attention::attention },
    Rule { name: "rotary", apply: rotary::rotary },
    // Last: rules above follow moves of axes.
    Rule { name: "channels-last", apply: pictures::channels_last },
];

/// How often each rule matched, by its name, in the order of the rules; those that did not are left
/// out.
pub type Matches = Vec<(&'static str, usize)>;

/// Applies all rules until none matches.
///
/// # Errors
/// tract's, naming rule and node.
pub fn fuse(model: TypedModel) -> TractResult<(TypedModel, Matches)> {
    fuse_with(RULES, model)
}

/// A pattern that rules make over and over would loop for ever; each pass shrinks a sound graph.
const MAX_PASSES: usize = 100;

fn fuse_with(rules: &[Rule], mut model: TypedModel) -> TractResult<(TypedModel, Matches)> {
    let mut counts = vec![0; rules.len()];
    model.compact()?;
    for _ in 0..MAX_PASSES {
        let mut found = 0;
        for (rule, count) in rules.iter().zip(&mut counts) {
            let mut matched = 0;
            // Compact graphs lie in the order in which they run; patches add at the end.
            for id in 0..model.nodes.len() {
                let node = model.node(id);
                // A patch before this one may have left it without readers.
                let read = node.outputs.iter().any(|o| !o.successors.is_empty())
                    || model.outputs.iter().any(|o| o.node == id);
                if !read {
                    continue;
                }
                let name = node.name.clone();
                let place = || format!("rule '{}' at node '{name}'", rule.name);
                if let Some(patch) = (rule.apply)(&model, node).with_context(place)? {
                    patch.apply(&mut model).with_context(place)?;
                    matched += 1;
                }
            }
            if matched > 0 {
                model.compact()?;
            }
            *count += matched;
            found += matched;
        }
        if found == 0 {
            let named = rules.iter().map(|r| r.name).zip(counts);
            return Ok((model, named.filter(|(_, count)| *count > 0).collect()));
        }
    }
    bail!("the rules of fusing found no end after {MAX_PASSES} passes")
}

/// The value that all elements of an outlet have, if it is a float constant.
fn uniform(model: &TypedModel, outlet: OutletId) -> Option<f32> {
    let fact = model.outlet_fact(outlet).ok()?;
    let konst = fact.konst.as_ref()?;
    let values = konst.try_as_plain_ram().ok()?.as_slice::<f32>().ok()?;
    let (first, rest) = values.split_first()?;
    rest.iter().all(|v| v == first).then_some(*first)
}

/// The other input and the constant of a binary `O` with one constant value.
fn with_constant<O: tract_core::ops::binary::BinMiniOp>(
    model: &TypedModel,
    node: &TypedNode,
) -> Option<(OutletId, f32)> {
    if !node.op_as::<TypedBinOp>()?.0.is::<O>() {
        return None;
    }
    let (a, b) = (*node.inputs.first()?, *node.inputs.get(1)?);
    let shape = |o: OutletId| model.outlet_fact(o).ok().map(|f| f.shape.clone());
    let (other, value) = match (uniform(model, a), uniform(model, b)) {
        (None, Some(v)) => (a, v),
        (Some(v), None) => (b, v),
        _ => return None,
    };
    // Not one that also broadcasts.
    (shape(other)? == node.outputs.first()?.fact.shape).then_some((other, value))
}

/// The node that is the only reader of `outlet`, where the graph's outputs aren't.
fn only_reader(model: &TypedModel, outlet: OutletId) -> Option<&TypedNode> {
    if model.outputs.contains(&outlet) {
        return None;
    }
    match model.node(outlet.node).outputs.get(outlet.slot)?.successors.as_slice() {
        [one] => Some(model.node(one.node)),
        _ => None,
    }
}

/// `op` in the place of `before` and of `node`, of which it is the first input: with the inputs of both.
fn joined(
    model: &TypedModel,
    before: &TypedNode,
    node: &TypedNode,
    op: impl TypedOp + Clone,
) -> TractResult<TypedModelPatch> {
    let from: TVec<OutletId> = before.inputs.iter().chain(&node.inputs[1..]).copied().collect();
    TypedModelPatch::rewire(model, &from, &[node.id.into()], &|patch, inputs| {
        patch.wire_node(&node.name, op.clone(), inputs)
    })
}

#[cfg(test)]
mod looping {
    use super::*;
    use tract_core::ops::math::{abs, exp, square};

    fn chain() -> TypedModel {
        let mut model = TypedModel::default();
        let mut wire = model.add_source("x", f32::fact([3])).unwrap();
        for (i, op) in [exp(), square(), exp(), square(), abs()].into_iter().enumerate() {
            wire = model.wire_node(format!("n{i}"), op, &[wire]).unwrap()[0];
        }
        model.select_output_outlets(&[wire]).unwrap();
        model
    }

    fn unary(node: &TypedNode) -> Option<String> {
        Some(node.op_as::<tract_core::ops::element_wise::ElementWiseOp>()?.0.name())
    }

    fn exp_for_exp_square(
        model: &TypedModel,
        node: &TypedNode,
    ) -> TractResult<Option<TypedModelPatch>> {
        if unary(node).as_deref() != Some("Square") {
            return Ok(None);
        }
        let before = model.node(node.inputs[0].node);
        if unary(before).as_deref() != Some("Exp") {
            return Ok(None);
        }
        TypedModelPatch::rewire(model, &before.inputs, &[node.id.into()], &|patch, x| {
            patch.wire_node(&node.name, exp(), x)
        })
        .map(Some)
    }

    fn names(model: &TypedModel) -> Vec<String> {
        let order = model.eval_order().unwrap();
        order.into_iter().filter_map(|id| unary(model.node(id))).collect()
    }

    #[test]
    fn rules_run_until_none_matches_and_are_counted() {
        let rules = [Rule { name: "exp-square", apply: exp_for_exp_square }];
        let (model, matches) = fuse_with(&rules, chain()).unwrap();
        assert_eq!(names(&model), ["Exp", "Exp", "Abs"]);
        assert_eq!(matches, [("exp-square", 2)]);
        let none = [Rule { name: "none", apply: |_, _| Ok(None) }];
        let (model, matches) = fuse_with(&none, chain()).unwrap();
        assert!(names(&model).len() == 5 && matches.is_empty());
    }

    #[test]
    fn errors_name_rule_and_node() {
        let rules = [Rule {
            name: "broken",
            apply: |_, n| {
                ensure!(unary(n).as_deref() != Some("Abs"), "no");
                Ok(None)
            },
        }];
        let text = format!("{:#}", fuse_with(&rules, chain()).unwrap_err());
        assert_eq!(text, "rule 'broken' at node 'n4': no");
        let endless = [Rule {
            name: "endless",
            apply: |model, node| {
                let Some("Abs") = unary(node).as_deref() else { return Ok(None) };
                TypedModelPatch::replace_single_op(model, node, &node.inputs, abs()).map(Some)
            },
        }];
        assert!(fuse_with(&endless, chain()).is_err());
    }
}
