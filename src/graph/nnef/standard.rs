//! The standard operators of NNEF that graphs mostly consist of.
//!
//! tract's own registry of them parses NNEF's standard library each time it is made, which takes
//! longer than reading a base. This one knows less: what fails with it is read with tract's.

use tract_core::internal::{AxisOp, DimLike, OutletId, TDim, TVec, ensure, format_err};
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::{logic, math, nn};
use tract_nnef::ast::TypeName::{Any, Integer, Logical, Scalar, String as Text};
use tract_nnef::ast::parse::parse_fragments;
use tract_nnef::ast::{Argument, Literal, Parameter, RValue, TypeSpec};
use tract_nnef::deser::{ModelBuilder, ResolvedInvocation, Value};
use tract_nnef::internal::{Registry, ToTract, TractResult};
use tract_nnef::ops::nnef::deser;

/// Name, builder, parameters and what they make.
type Primitive =
    (&'static str, ToTract, fn() -> Vec<Parameter>, fn() -> Vec<(&'static str, TypeSpec)>);

/// As tract's `stdlib.nnef` declares them: its parser takes as long for one of these as ours for ten lines
/// of a graph.
const PRIMITIVES: [Primitive; 17] = [
    ("external", deser::external, || vec![Integer.array().named("shape")], any),
    (
        "variable",
        deser::variable,
        || vec![Integer.array().named("shape"), Text.named("label")],
        any,
    ),
    (
        "reshape",
        reshape,
        || {
            vec![
                Any.tensor().named("input"),
                Integer.array().named("shape"),
                Integer.named("axis_start").default(0),
                Integer.named("axis_count").default(-1),
            ]
        },
        any,
    ),
    ("transpose", deser::transpose, of_axes, any),
    (
        "concat",
        deser::concat,
        || vec![Any.tensor().array().named("values"), Integer.named("axis")],
        || vec![("value", Any.tensor())],
    ),
    (
        "slice",
        deser::slice,
        || [of_axes(), vec![Integer.array().named("begin"), Integer.array().named("end")]].concat(),
        any,
    ),
    ("squeeze", deser::squeeze, of_axes, any),
    ("unsqueeze", deser::unsqueeze, of_axes, any),
    (
        "pad",
        deser::pad,
        || {
            vec![
                Scalar.tensor().named("input"),
                pairs().named("padding"),
                Text.named("border").default("constant"),
                Scalar.named("value").default(0.0),
            ]
        },
        scalar,
    ),
    (
        "select",
        deser::select,
        || {
            vec![
                Logical.tensor().named("condition"),
                Any.tensor().named("true_value"),
                Any.tensor().named("false_value"),
            ]
        },
        any,
    ),
    (
        "matmul",
        deser::matmul,
        || {
            vec![
                Scalar.tensor().named("A"),
                Scalar.tensor().named("B"),
                Logical.named("transposeA").default(false),
                Logical.named("transposeB").default(false),
            ]
        },
        || vec![("C", Scalar.tensor())],
    ),
    (
        "conv",
        deser::conv,
        || {
            let tensors = vec![
                Scalar.tensor().named("input"),
                Scalar.tensor().named("filter"),
                Scalar.tensor().named("bias").default(0.0),
            ];
            [tensors, window(), vec![Integer.named("groups").default(1)]].concat()
        },
        scalar,
    ),
    (
        "sum_reduce",
        deser::reduce,
        || [reduced(), vec![Logical.named("normalize").default(false)]].concat(),
        scalar,
    ),
    ("max_reduce", deser::reduce, reduced, scalar),
    (
        "softmax",
        deser::softmax,
        || {
            let axes = Integer.array().named("axes");
            vec![Scalar.tensor().named("x"), axes.default(Literal::Array(vec![1.into()]))]
        },
        || vec![("y", Scalar.tensor())],
    ),
    (
        "box",
        deser::sum_pool,
        || [pooled(), window(), vec![Logical.named("normalize").default(false)]].concat(),
        scalar,
    ),
    (
        "max_pool_with_index",
        deser::max_pool_with_index,
        || [pooled(), window()].concat(),
        || vec![("output", Scalar.tensor()), ("index", Integer.tensor())],
    ),
];

fn any() -> Vec<(&'static str, TypeSpec)> {
    vec![("output", Any.tensor())]
}

fn scalar() -> Vec<(&'static str, TypeSpec)> {
    vec![("output", Scalar.tensor())]
}

fn of_axes() -> Vec<Parameter> {
    vec![Any.tensor().named("input"), Integer.array().named("axes")]
}

fn reduced() -> Vec<Parameter> {
    vec![Scalar.tensor().named("input"), Integer.array().named("axes")]
}

fn pooled() -> Vec<Parameter> {
    vec![Scalar.tensor().named("input"), Integer.array().named("size")]
}

fn pairs() -> TypeSpec {
    TypeSpec::Tuple(vec![Integer.spec(), Integer.spec()]).array()
}

fn window() -> Vec<Parameter> {
    let none = || Literal::Array(vec![]);
    vec![
        Text.named("border").default("constant"),
        pairs().named("padding").default(none()),
        Integer.array().named("stride").default(none()),
        Integer.array().named("dilation").default(none()),
    ]
}

/// The one operator of several that graphs name.
const MAX_POOL: &str = "
fragment max_pool( input: tensor<scalar>, size: integer[], border: string = 'constant', padding: (integer,integer)[] = [], stride: integer[] = [], dilation: integer[] = [] ) -> ( output: tensor<scalar> )
{
    output, index = max_pool_with_index(input, size = size, border = border, padding = padding, stride = stride, dilation = dilation);
}
";

/// As tract's of a shape that is written out. tract makes a node of each size where one is a symbol, and
/// looks through the names of all nodes for the name of each: an eighth of the time of a start.
fn reshape(builder: &mut ModelBuilder, invocation: &ResolvedInvocation) -> TractResult<Value> {
    let written = match invocation.named_arg_as(builder, "shape")? {
        Value::Array(sizes) => sizes.iter().map(|size| size.to(builder).ok()).collect(),
        _ => None,
    };
    let Some(mut shape): Option<TVec<TDim>> = written else {
        return deser::reshape(builder, invocation);
    };
    let input = invocation.named_arg_as(builder, "input")?;
    let all = builder.model.outlet_fact(input)?.shape.to_tvec();
    let start: usize = invocation.named_arg_as(builder, "axis_start")?;
    let count: i64 = invocation.named_arg_as(builder, "axis_count")?;
    let out_of_range = || format_err!("reshape: axes {start} and {count} on of {}", all.len());
    let rest = all.get(start..).ok_or_else(out_of_range)?;
    let count = if count == -1 { rest.len() } else { usize::try_from(count)? };
    let replaced = rest.get(..count).ok_or_else(out_of_range)?;
    for (axis, size) in shape.iter_mut().enumerate() {
        if *size == TDim::Val(0) {
            *size = rest.get(axis).ok_or_else(out_of_range)?.clone();
        }
    }
    if let Some(left) = shape.iter().position(|size| *size == TDim::Val(-1)) {
        let given: TDim = shape.iter().filter(|size| **size != TDim::Val(-1)).product();
        let whole: TDim = replaced.iter().product();
        shape[left] = whole.maybe_div(&given)?.0;
    }
    builder.wire(AxisOp::Reshape(start, replaced.into(), shape), &[input])
}

/// As tract's, which looks for ever, and takes memory for it, where an axis is named twice.
fn transpose(builder: &mut ModelBuilder, invocation: &ResolvedInvocation) -> TractResult<Value> {
    let axes: TVec<usize> = invocation.named_arg_as(builder, "axes")?;
    let input: OutletId = invocation.named_arg_as(builder, "input")?;
    let rank = builder.model.outlet_fact(input)?.rank();
    let mut sorted = axes.clone();
    sorted.sort_unstable();
    ensure!(sorted.iter().copied().eq(0..rank), "transpose: axes {axes:?} of a tensor of {rank}");
    deser::transpose(builder, invocation)
}

/// A registry with tract's name for its own, of the operators that `graph`, a text, may name.
pub(super) fn common(graph: &str) -> TractResult<Registry> {
    let mut registry = Registry::new("tract_nnef");
    let pools = graph.contains("max_pool");
    if pools {
        for fragment in parse_fragments(MAX_POOL)? {
            registry.register_fragment(fragment);
        }
    }
    for (name, build, parameters, results) in PRIMITIVES {
        if graph.contains(name) || (pools && name == "max_pool_with_index") {
            registry.register_primitive(name, &parameters(), &results(), build);
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

/// What stands before `standard`: the binary operators again, for two values of the type and rank that the
/// operator takes (tract's reader casts both sides of each, and looks through the names of all nodes for each
/// cast's), and [`transpose`].
pub(super) fn before(standard: &Registry) -> Registry {
    let mut registry = Registry::new(standard.id.0.as_str());
    registry.register_primitive("transpose", &of_axes(), &any(), transpose);
    for (name, _) in &standard.binary_ops {
        registry.register_primitive(&name.0, &[], &any(), binary);
    }
    registry
}

fn binary(builder: &mut ModelBuilder, called: &ResolvedInvocation) -> TractResult<Value> {
    let name = &called.invocation.id;
    let named = |registry: &&Registry| registry.binary_ops.iter().any(|(op, _)| op == name);
    let unknown = || format_err!("{}: no such operator", name.0);
    let standard = builder.framework.registries.iter().find(named).ok_or_else(unknown)?;
    if let Some(inputs) = two_wires(builder, called) {
        let (a, b) = (builder.model.outlet_fact(inputs[0])?, builder.model.outlet_fact(inputs[1])?);
        let (of, alike) = (a.datum_type, a.datum_type == b.datum_type && a.rank() == b.rank());
        if let Some((_, op)) = standard.binary_ops.iter().find(|(op, _)| op == name)
            && alike
            && !of.is_quantized()
            && op.operating_datum_type(of, of).is_ok_and(|taken| taken == of)
        {
            return builder.wire(TypedBinOp(op.clone(), None), &inputs);
        }
    }
    standard.deserialize(builder, called.invocation, called.dt_from_quant_file)?.ok_or_else(unknown)
}

/// What the arguments name, where both are values of the graph.
fn two_wires(builder: &ModelBuilder, called: &ResolvedInvocation) -> Option<[OutletId; 2]> {
    let wire = |argument: &Argument| match &argument.rvalue {
        RValue::Identifier(id) => match builder.scopes.last()?.get(id)? {
            Value::Wire(outlet) => Some(*outlet),
            _ => None,
        },
        _ => None,
    };
    match &called.invocation.arguments[..] {
        [a, b] if called.dt_from_quant_file.iter().all(Option::is_none) => {
            Some([wire(a)?, wire(b)?])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_nnef::ast::Identifier;

    /// The same operator, in a graph of no more than its nodes.
    #[test]
    fn shapes_are_read_as_tract_reads_them() {
        let weights = crate::graph::weights::FrozenWeights::new(vec![]);
        for (shape, axes, expected) in [
            ("[12, 2]", "axis_start = 2, axis_count = 1", "B,6,12,2"),
            ("[(6 * B)]", "axis_start = 0, axis_count = 2", "6*B,24"),
            ("[0, 4, -1]", "axis_start = 1, axis_count = -1", "B,6,4,6"),
            ("[-1, 12]", "axis_start = 1", "B,12,12"),
            ("[B, 144]", "axis_start = 0", "B,144"),
            ("144", "axis_start = 1", "B,144"),
            ("[5]", "axis_start = 3, axis_count = 1", ""),
            ("[5]", "axis_start = 4, axis_count = 1", ""),
            ("[5]", "axis_start = 1, axis_count = -2", ""),
            ("[144.5]", "axis_start = 1", "B,144"),
        ] {
            let text = format!(
                "version 1.0;\n\nextension tract_symbol B;\nextension tract_registry tract_core;\n\n\
                 graph network(x) -> (y) {{\n  x = external(shape = [B, 6, 24]);\n  \
                 y = reshape(x, shape = {shape}, {axes});\n}}\n",
            );
            let read = |standard| {
                let proto = super::super::read::proto_model(&text, vec![], &weights).unwrap();
                super::super::read::translated(&proto, standard).ok()
            };
            let said = format!("{shape} {axes}");
            let ours = read(common(&text).unwrap());
            if let Some(theirs) = read(tract_nnef::ops::tract_nnef()) {
                let ours = ours.unwrap_or_else(|| panic!("{said}"));
                let op = |model: &tract_core::internal::TypedModel| {
                    let node = model.output_outlets().unwrap()[0].node;
                    let op = model.node(node).op_as::<AxisOp>().unwrap().clone();
                    (op, model.outlet_fact(node.into()).unwrap().shape.clone())
                };
                assert_eq!(op(&ours), op(&theirs), "{said}");
                let dims: Vec<_> = op(&ours).1.iter().map(|dim| dim.to_string()).collect();
                assert_eq!(dims.join(","), expected, "{said}");
            } else {
                assert_eq!("", expected, "{said}");
                assert!(ours.is_none(), "{said}");
            }
        }
    }

    #[test]
    fn axes_that_are_no_order_are_refused() {
        let weights = crate::graph::weights::FrozenWeights::new(vec![]);
        for (axes, right) in [
            ("[1, 0, 2]", true),
            ("[0, 0, 1]", false),
            ("[0, 1]", false),
            ("[0, 2, 3]", false),
            ("[0, 1, 2, 3]", false),
        ] {
            let text = format!(
                "version 1.0;\n\ngraph network(x) -> (y) {{\n  x = external(shape = [5, 6, 24]);\n  \
                 y = transpose(x, axes = {axes});\n}}\n",
            );
            let proto = super::super::read::proto_model(&text, vec![], &weights).unwrap();
            for standard in [common(&text).unwrap(), tract_nnef::ops::tract_nnef()] {
                let read = super::super::read::translated(&proto, standard);
                assert_eq!(read.is_ok(), right, "{axes}");
            }
        }
    }

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
