//! Core ops that tract-nnef has no text form for.

use std::collections::HashMap;

use tract_core::ops::logic::IfThenElse;
use tract_core::ops::math::Rem;
use tract_core::ops::nn::GeluExact;
use tract_nnef::ast::TypeSpec;
use tract_nnef::internal::*;
use tract_nnef::ser::{array, tdim, to_fragment_def, tuple_2};

use crate::graph::{NonMaxSuppression, NonZero};

pub fn register(registry: &mut Registry) {
    registry.register_unit_element_wise("offshoot_gelu", &GeluExact {});
    registry.register_binary("offshoot_remainder", &Rem {});
    let tensor = |name: &str| TypeName::Scalar.tensor().named(name);
    registry.register_dumper(write_suppression);
    registry.register_primitive(
        "offshoot_non_max_suppression",
        &[
            tensor("boxes"),
            tensor("scores"),
            tensor("most"),
            tensor("overlap"),
            tensor("least"),
            TypeName::Integer.named("count"),
            TypeName::Logical.named("center"),
        ],
        &[("y", TypeName::Integer.tensor())],
        read_suppression,
    );
    registry.register_dumper(write_non_zero);
    registry.register_primitive(
        "offshoot_non_zero",
        &[tensor("x"), TypeName::Integer.named("count")],
        &[("y", TypeName::Integer.tensor())],
        read_non_zero,
    );
    let wires = || {
        // Pairs of a body's parameter and the outer value it stands for.
        TypeSpec::Tuple(vec![TypeName::String.spec(), TypeName::Scalar.tensor()]).array()
    };
    registry.register_dumper(write_if);
    registry.register_primitive(
        "offshoot_if",
        &[
            TypeName::Logical.tensor().named("condition"),
            TypeName::String.named("body"),
            wires().named("wires"),
            TypeName::String.named("other_body"),
            wires().named("other_wires"),
        ],
        &[("outputs", TypeName::Any.tensor().array())],
        read_if,
    );
}

fn write_suppression(
    ast: &mut IntoAst,
    node: &TypedNode,
    op: &NonMaxSuppression,
) -> TractResult<Option<Arc<RValue>>> {
    let inputs: TVec<Arc<RValue>> = node.inputs.iter().map(|i| ast.mapping[i].clone()).collect();
    let arguments = [("count", tdim(&op.count)), ("center", logical(op.center))];
    Ok(Some(invocation("offshoot_non_max_suppression", &inputs, &arguments)))
}

fn read_suppression(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Value> {
    let mut inputs: TVec<OutletId> = tvec!();
    for name in ["boxes", "scores", "most", "overlap", "least"] {
        inputs.push(i.named_arg_as(b, name)?);
    }
    let (count, center) = (i.named_arg_as(b, "count")?, i.named_arg_as(b, "center")?);
    b.wire(NonMaxSuppression { count, center }, &inputs)
}

fn write_non_zero(
    ast: &mut IntoAst,
    node: &TypedNode,
    op: &NonZero,
) -> TractResult<Option<Arc<RValue>>> {
    let x = ast.mapping[&node.inputs[0]].clone();
    Ok(Some(invocation("offshoot_non_zero", &[x], &[("count", tdim(&op.count))])))
}

fn read_non_zero(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Value> {
    let (x, count): (OutletId, TDim) = (i.named_arg_as(b, "x")?, i.named_arg_as(b, "count")?);
    b.wire(NonZero { count }, &[x])
}

fn write_if(
    ast: &mut IntoAst,
    node: &TypedNode,
    op: &IfThenElse,
) -> TractResult<Option<Arc<RValue>>> {
    let mut branch = |body: &TypedModel, mapping: &[usize]| -> TractResult<(RValue, RValue)> {
        let (mut fragment, tensors) = to_fragment_def(ast, body)?;
        fragment.decl.id = Identifier(format!("if_body_{}", ast.fragments.len()));
        let mut wires = vec![];
        for (parameter, input) in fragment.decl.parameters.iter().zip(mapping) {
            let input = node.inputs.get(*input).context("branch input out of range")?;
            wires.push(tuple_2(string(&parameter.id.0), ast.mapping[input].as_ref().clone()));
        }
        let mut tensors: Vec<_> = tensors.iter().collect();
        tensors.sort_by_key(|t| &t.label);
        for tensor in tensors {
            let value = ast.konst_variable(&tensor.label, &tensor.value)?;
            wires.push(tuple_2(string(&tensor.parameter_id), value.as_ref().clone()));
        }
        let id = string(&fragment.decl.id);
        ast.fragments.insert(fragment.decl.id.clone(), fragment);
        Ok((id, array(wires)))
    };
    let (body, wires) = branch(&op.then_body, &op.then_input_mapping)?;
    let (other_body, other_wires) = branch(&op.else_body, &op.else_input_mapping)?;
    let condition = ast.mapping[&node.inputs[0]].as_ref().clone();
    Ok(Some(invocation(
        "offshoot_if",
        &[],
        &[
            ("condition", condition),
            ("body", body),
            ("wires", wires),
            ("other_body", other_body),
            ("other_wires", other_wires),
        ],
    )))
}

fn read_if(builder: &mut ModelBuilder, invocation: &ResolvedInvocation) -> TractResult<Value> {
    let condition: OutletId = invocation.named_arg_as(builder, "condition")?;
    let mut inputs = tvec!(condition);
    let (then_body, then_input_mapping) =
        read_branch(builder, invocation, ["body", "wires"], &mut inputs)?;
    let (else_body, else_input_mapping) =
        read_branch(builder, invocation, ["other_body", "other_wires"], &mut inputs)?;
    ensure!(
        then_body.outputs.len() == else_body.outputs.len(),
        "branches give {} and {} outputs",
        then_body.outputs.len(),
        else_body.outputs.len()
    );
    let op = IfThenElse { then_body, then_input_mapping, else_body, else_input_mapping };
    builder.wire(op, &inputs)
}

/// Builds one branch; outer values it needs are added to `inputs`, constants go into its body.
fn read_branch(
    builder: &mut ModelBuilder,
    invocation: &ResolvedInvocation,
    [body, wires]: [&str; 2],
    inputs: &mut TVec<OutletId>,
) -> TractResult<(TypedModel, Vec<usize>)> {
    let name: String = invocation.named_arg_as(builder, body)?;
    let wires: TVec<(String, OutletId)> = invocation.named_arg_as(builder, wires)?;
    let fragment = builder
        .proto_model
        .doc
        .fragments
        .iter()
        .find(|f| f.decl.id.0 == name)
        .with_context(|| format!("no fragment '{name}'"))?;
    let template = TypedModel { symbols: builder.model.symbols.clone(), ..TypedModel::default() };
    let mut inner = ModelBuilder::new(builder.framework, builder.proto_model, template);
    inner.naming_scopes.clone_from(&builder.naming_scopes);
    inner.registries.clone_from(&builder.registries);
    let mut scope = HashMap::new();
    let mut mapping = vec![];
    for parameter in &fragment.decl.parameters {
        let (_, wire) = wires
            .iter()
            .find(|(id, _)| *id == parameter.id.0)
            .with_context(|| format!("unbound parameter '{}' of '{name}'", parameter.id.0))?;
        let fact = builder.model.outlet_fact(*wire)?;
        let outlet = if let Some(konst) = &fact.konst {
            inner.model.add_const(&parameter.id.0, Arc::clone(konst))?
        } else {
            mapping.push(inputs.iter().position(|i| i == wire).unwrap_or_else(|| {
                inputs.push(*wire);
                inputs.len() - 1
            }));
            inner.model.add_source(&parameter.id.0, fact.datum_type.fact(fact.shape.clone()))?
        };
        scope.insert(parameter.id.clone(), Value::Wire(outlet));
    }
    inner.scopes.push(scope);
    inner.wire_body(fragment.body.as_deref().unwrap_or(&[]))?;
    let scope = inner.scopes.pop().context("scopes out of step")?;
    let mut outputs = vec![];
    for result in &fragment.decl.results {
        let value =
            scope.get(&result.id).with_context(|| format!("no value for '{}'", result.id.0))?;
        outputs.push(value.to::<OutletId>(&mut inner)?);
    }
    inner.model.select_output_outlets(&outputs)?;
    Ok((inner.model, mapping))
}
