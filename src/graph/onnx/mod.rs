//! ONNX operators that tract reads in part, wrongly or not at all, read by us.
//!
//! A reader is a function that gets a node's attributes and the shapes, types and constants of its
//! inputs, and makes tract's operations of them. What it can't do it refuses, naming the cause.
//! `docs/OPERATORS.md` says which operators are read here.

mod activation;
mod attention;
mod compare;
mod loss;
mod normalization;
mod pool;
mod quantized;
mod resize;
mod select;
mod shapes;
#[cfg(test)]
mod tests;
mod transposed;
mod wiring;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::plan::SimplePlan;
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::*;
use wiring::{Wire, Wiring};

/// Puts our readers in the place of tract's, for a file of this operator set.
pub(super) fn register(operators: &mut OnnxOpRegister, opset: i64) {
    activation::register(operators);
    if opset < 7 {
        activation::register_old(operators);
    }
    attention::register(operators);
    compare::register(operators);
    loss::register(operators);
    normalization::register(operators);
    pool::register(operators);
    quantized::register(operators);
    resize::register(operators);
    select::register(operators);
    shapes::register(operators);
    transposed::register(operators);
}

/// Registers readers: the operator's name, and the function that makes it.
macro_rules! readers {
    ($($name:literal => $make:path;)*) => {
        pub(super) fn register(operators: &mut tract_onnx::model::OnnxOpRegister) {
            $(operators.insert($name, |context, node| super::composed(context, node, $make));)*
        }
    };
}
use readers;

/// The same for operators whose output's length depends on values.
macro_rules! counting_readers {
    ($($name:literal => $make:path;)*) => {
        pub(super) fn register(operators: &mut tract_onnx::model::OnnxOpRegister) {
            $(operators.insert($name, |context, node| super::counting(context, node, $make));)*
        }
    };
}
use counting_readers;

/// Makes an operator's outputs, in its order; those at the end that no node asks for may be left out.
type Make = fn(&mut Wiring<'_>) -> TractResult<TVec<Wire>>;

fn composed(
    context: &ParsingContext,
    node: &NodeProto,
    make: Make,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let opset = context.onnx_operator_set_version;
    Ok((Box::new(Composed { node: node.clone(), opset, count: None, make }), vec![]))
}

fn counting(
    context: &ParsingContext,
    node: &NodeProto,
    make: Make,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let opset = context.onnx_operator_set_version;
    let count = Some(context.template.symbols.new_with_prefix("count"));
    Ok((Box::new(Composed { node: node.clone(), opset, count, make }), vec![]))
}

/// An operator that becomes others once its inputs' shapes and types are known.
#[derive(Clone, Debug)]
struct Composed {
    node: NodeProto,
    opset: i64,
    /// The length that only the values tell.
    count: Option<Symbol>,
    make: Make,
}

impl PartialEq for Composed {
    fn eq(&self, _: &Composed) -> bool {
        false
    }
}

impl Eq for Composed {}

impl Composed {
    /// Makes the outputs that the node names.
    fn wire(
        &self,
        model: &mut TypedModel,
        prefix: &str,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let mut wiring = Wiring::new(&self.node, self.opset, model, prefix, inputs);
        wiring.count = self.count.as_ref().map(|c| c.to_dim());
        let made = (self.make)(&mut wiring)?;
        let mut outputs = tvec!();
        for (slot, _) in self.node.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            let output = made.get(slot).with_context(|| format!("output {slot} is not known"))?;
            outputs.push(*output);
        }
        Ok(outputs)
    }

    /// What is known of the outputs; nothing while an input is not known.
    fn facts(&self, inputs: &[&InferenceFact]) -> Option<TVec<InferenceFact>> {
        let mut scratch = TypedModel::default();
        let mut wires = tvec!();
        for (i, fact) in inputs.iter().enumerate() {
            let name = format!("input{i}");
            let wire = match fact.value.concretize() {
                Some(value) => scratch.add_const(name, value).ok()?,
                None => scratch.add_source(name, TypedFact::try_from(*fact).ok()?).ok()?,
            };
            wires.push(wire);
        }
        let outputs = self.wire(&mut scratch, "made", &wires).ok()?;
        outputs.iter().map(|o| Some(InferenceFact::from(scratch.outlet_fact(*o).ok()?))).collect()
    }
}

impl Op for Composed {
    fn name(&self) -> StaticName {
        self.node.op_type.clone().into()
    }

    not_a_typed_op!();
}

impl EvalOp for Composed {
    fn eval_out_of_plan(&self, inputs: TVec<TValue>) -> TractResult<Option<TVec<TValue>>> {
        let mut scratch = TypedModel::default();
        let mut wires = tvec!();
        for (i, input) in inputs.iter().enumerate() {
            let value = input.clone().into_arc_tensor();
            wires.push(scratch.add_const(format!("input{i}"), value)?);
        }
        // What can't be made of constants can't be made in the graph either, which names the node.
        let Ok(outputs) = self.wire(&mut scratch, "made", &wires) else { return Ok(None) };
        scratch.select_output_outlets(&outputs)?;
        Ok(Some(SimplePlan::new(scratch)?.run(tvec!())?))
    }
}

impl InferenceOp for Composed {
    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<(TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>)> {
        let owned = |facts: &[&InferenceFact]| facts.iter().map(|f| (*f).clone()).collect();
        let mut found: TVec<InferenceFact> = owned(&outputs);
        if let Some(facts) = self.facts(&inputs) {
            for (found, fact) in found.iter_mut().zip(facts) {
                *found = found.unify(&fact)?;
            }
        }
        Ok((owned(&inputs), found, owned(&observed)))
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.node.output.iter().filter(|name| !name.is_empty()).count())
    }

    fn to_typed(
        &self,
        _: &InferenceModel,
        node: &InferenceNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        let inputs: TVec<OutletId> = node.inputs.iter().map(|i| mapping[i]).collect();
        self.wire(target, &node.name, &inputs)
    }

    as_op!();
}
