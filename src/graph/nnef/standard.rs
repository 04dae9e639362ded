//! The standard operators of NNEF that graphs mostly consist of.
//!
//! tract's own registry of them parses NNEF's standard library each time it is made, which takes
//! longer than reading a base. This one knows less: what fails with it is read with tract's.

use tract_core::ops::{logic, math, nn};
use tract_nnef::ast::FragmentDef;
use tract_nnef::ast::parse::parse_fragments;
use tract_nnef::internal::{Registry, ToTract, TractResult};
use tract_nnef::ops::nnef::deser;

/// Name, builder and declaration, as it stands in tract's `stdlib.nnef`.
const PRIMITIVES: [(&str, ToTract, &str); 17] = [
    (
        "external",
        deser::external,
        "fragment external<? = scalar>( shape: integer[] ) -> ( output: tensor<?> );",
    ),
    (
        "variable",
        deser::variable,
        "fragment variable<? = scalar>( shape: integer[], label: string ) -> ( output: tensor<?> );",
    ),
    (
        "reshape",
        deser::reshape,
        "fragment reshape<?>( input: tensor<?>, shape: integer[], axis_start: integer = 0, axis_count: integer = -1 ) -> ( output: tensor<?> );",
    ),
    (
        "transpose",
        deser::transpose,
        "fragment transpose<?>( input: tensor<?>, axes: integer[] ) -> ( output: tensor<?> );",
    ),
    (
        "concat",
        deser::concat,
        "fragment concat<?>( values: tensor<?>[], axis: integer ) -> ( value: tensor<?> );",
    ),
    (
        "slice",
        deser::slice,
        "fragment slice<?>( input: tensor<?>, axes: integer[], begin: integer[], end: integer[] ) -> ( output: tensor<?> );",
    ),
    (
        "squeeze",
        deser::squeeze,
        "fragment squeeze<?>( input: tensor<?>, axes: integer[] ) -> ( output: tensor<?> );",
    ),
    (
        "unsqueeze",
        deser::unsqueeze,
        "fragment unsqueeze<?>( input: tensor<?>, axes: integer[] ) -> ( output: tensor<?> );",
    ),
    (
        "pad",
        deser::pad,
        "fragment pad( input: tensor<scalar>, padding: (integer, integer)[], border: string = 'constant', value: scalar = 0.0 ) -> ( output: tensor<scalar> );",
    ),
    (
        "select",
        deser::select,
        "fragment select<?>( condition: tensor<logical>, true_value: tensor<?>, false_value: tensor<?> ) -> ( output: tensor<?> );",
    ),
    (
        "matmul",
        deser::matmul,
        "fragment matmul( A: tensor<scalar>, B: tensor<scalar>, transposeA: logical = false, transposeB: logical = false ) -> ( C: tensor<scalar> );",
    ),
    (
        "conv",
        deser::conv,
        "fragment conv( input: tensor<scalar>, filter: tensor<scalar>, bias: tensor<scalar> = 0.0, border: string = 'constant', padding: (integer,integer)[] = [], stride: integer[] = [], dilation: integer[] = [], groups: integer = 1 ) -> ( output: tensor<scalar> );",
    ),
    (
        "sum_reduce",
        deser::reduce,
        "fragment sum_reduce( input: tensor<scalar>, axes: integer[], normalize: logical = false ) -> ( output: tensor<scalar> );",
    ),
    (
        "max_reduce",
        deser::reduce,
        "fragment max_reduce( input: tensor<scalar>, axes: integer[] ) -> ( output: tensor<scalar> );",
    ),
    (
        "softmax",
        deser::softmax,
        "fragment softmax( x: tensor<scalar>, axes: integer[] = [1] ) -> ( y: tensor<scalar> );",
    ),
    (
        "box",
        deser::sum_pool,
        "fragment box( input: tensor<scalar>, size: integer[], border: string = 'constant', padding: (integer,integer)[] = [], stride: integer[] = [], dilation: integer[] = [], normalize: logical = false ) -> ( output: tensor<scalar> );",
    ),
    (
        "max_pool_with_index",
        deser::max_pool_with_index,
        "fragment max_pool_with_index( input: tensor<scalar>, size: integer[], border: string = 'constant', padding: (integer,integer)[] = [], stride: integer[] = [], dilation: integer[] = [] ) -> ( output: tensor<scalar>, index: tensor<integer> );",
    ),
];

/// The one operator of several that graphs name.
const MAX_POOL: &str = "
fragment max_pool( input: tensor<scalar>, size: integer[], border: string = 'constant', padding: (integer,integer)[] = [], stride: integer[] = [], dilation: integer[] = [] ) -> ( output: tensor<scalar> )
{
    output, index = max_pool_with_index(input, size = size, border = border, padding = padding, stride = stride, dilation = dilation);
}
";

/// A registry with tract's name for its own, of the operators that `graph`, a text, may name: tract's
/// parser takes as long for one declaration as ours for ten lines of a graph.
pub(super) fn common(graph: &str) -> TractResult<Registry> {
    let mut registry = Registry::new("tract_nnef");
    let pools = graph.contains("max_pool");
    if pools {
        for fragment in parse_fragments(MAX_POOL)? {
            registry.register_fragment(fragment);
        }
    }
    for (name, build, text) in PRIMITIVES {
        if graph.contains(name) || (pools && name == "max_pool_with_index") {
            for FragmentDef { decl, .. } in parse_fragments(text)? {
                registry.register_primitive(name, &decl.parameters, &decl.results, build);
            }
        }
    }
    registry.register_binary("add", &math::Add {});
    registry.register_binary("sub", &math::Sub {});
    registry.register_binary("mul", &math::Mul {});
    registry.register_binary("div", &math::Div {});
    registry.register_binary("pow", &math::Pow {});
    registry.register_binary("min", &math::Min {});
    registry.register_binary("max", &math::Max {});
    registry.register_binary("eq", &logic::CompEq);
    registry.register_binary("ne", &logic::CompNE);
    registry.register_binary("lt", &logic::CompLT);
    registry.register_binary("gt", &logic::CompGT);
    registry.register_binary("le", &logic::CompLTE);
    registry.register_binary("ge", &logic::CompGTE);
    registry.register_binary("and", &logic::And {});
    registry.register_binary("or", &logic::Or {});
    registry.register_unit_element_wise("exp", &math::Exp {});
    registry.register_unit_element_wise("log", &math::Ln {});
    registry.register_unit_element_wise("sin", &math::Sin {});
    registry.register_unit_element_wise("cos", &math::Cos {});
    registry.register_unit_element_wise("tan", &math::Tan {});
    registry.register_unit_element_wise("acos", &math::Acos {});
    registry.register_unit_element_wise("asin", &math::Asin {});
    registry.register_unit_element_wise("atan", &math::Atan {});
    registry.register_unit_element_wise("cosh", &math::Cosh {});
    registry.register_unit_element_wise("sinh", &math::Sinh {});
    registry.register_unit_element_wise("tanh", &math::Tanh {});
    registry.register_unit_element_wise("acosh", &math::Acosh {});
    registry.register_unit_element_wise("asinh", &math::Asinh {});
    registry.register_unit_element_wise("atanh", &math::Atanh {});
    registry.register_unit_element_wise("abs", &math::Abs {});
    registry.register_unit_element_wise("neg", &math::Neg {});
    registry.register_unit_element_wise("sign", &math::Sign {});
    registry.register_unit_element_wise("recip", &math::Recip {});
    registry.register_unit_element_wise("square", &math::Square {});
    registry.register_unit_element_wise("sqrt", &math::Sqrt {});
    registry.register_unit_element_wise("rsqrt", &math::Rsqrt {});
    registry.register_unit_element_wise("floor", &math::Floor {});
    registry.register_unit_element_wise("ceil", &math::Ceil {});
    registry.register_unit_element_wise("round", &math::Round {});
    registry.register_unit_element_wise("sigmoid", &nn::Sigmoid {});
    registry.register_unit_element_wise("not", &logic::Not {});
    Ok(registry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_nnef::ast::Identifier;

    #[test]
    fn what_is_here_is_tracts_own() {
        let all = PRIMITIVES.map(|(name, ..)| name).join(" ");
        let (ours, theirs) = (common(&all).unwrap(), tract_nnef::ops::tract_nnef());
        assert_eq!(ours.id, theirs.id);
        assert_eq!(ours.primitives.len(), PRIMITIVES.len());
        for (name, primitive) in &ours.primitives {
            let decl = &theirs.primitives[name].decl;
            assert_eq!(primitive.decl.parameters, decl.parameters, "{}", name.0);
            assert_eq!(primitive.decl.results, decl.results, "{}", name.0);
        }
        for (name, fragment) in &ours.fragments {
            assert_eq!(fragment, &theirs.fragments[name], "{}", name.0);
        }
        // One that is missing here costs each start a second reading, with the whole library parsed.
        for (name, op) in &theirs.binary_ops {
            let known = ours.binary_ops.iter().any(|(n, _)| n == name);
            assert!(known || name.0 == "select", "{} {}", name.0, op.name());
        }
        for (name, _) in &theirs.unit_element_wise_ops {
            assert!(ours.unit_element_wise_ops.iter().any(|(n, _)| n == name), "{}", name.0);
        }
        for (name, op) in &ours.binary_ops {
            let found = theirs.binary_ops.iter().find(|(n, _)| n == name).unwrap();
            assert_eq!(op.name(), found.1.name());
        }
        for (name, op) in &ours.unit_element_wise_ops {
            let found = theirs.unit_element_wise_ops.iter().find(|(n, _)| n == name).unwrap();
            assert_eq!(op.name(), found.1.name());
        }
        assert!(!theirs.element_wise_ops.iter().any(|(n, ..)| ours.primitives.contains_key(n)));
        assert!(!ours.primitives.contains_key(&Identifier("tile".into())));
        let one = common("y = softmax(x);").unwrap();
        assert_eq!(one.primitives.len(), 1);
        assert_eq!(one.binary_ops.len(), ours.binary_ops.len());
    }
}
