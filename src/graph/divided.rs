//! Quotients and remainders of sizes. tract rounds those of free sizes down and those of numbers towards zero; ONNX
//! has quotients towards zero and remainders of the divisor's sign. What may be negative is computed as integers, once
//! it is known.

use std::sync::LazyLock;
use tract_core::ops::cast::cast;
use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::expandable::{Expansion, expand};

/// Puts the reader of this file in the place of tract's.
pub(super) fn register(register: &mut OnnxOpRegister) {
    register.insert("Div", read);
    register.insert("Mod", read);
}

/// tract's own readers.
static TRACT: LazyLock<OnnxOpRegister> = LazyLock::new(|| tract_onnx::onnx().op_register);

/// tract's own operator, kept from sizes that may be negative.
#[derive(Clone, Debug)]
struct OfSizes {
    op: Box<dyn Expansion>,
}

fn read(
    ctx: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let name = node.op_type.as_str();
    let (op, inputs) = TRACT.0.get(name).with_context(|| format!("no {name}"))?(ctx, node)?;
    match op.as_op().downcast_ref::<Box<dyn Expansion>>() {
        Some(op) => Ok((expand(OfSizes { op: op.clone() }), inputs)),
        None => Ok((op, inputs)),
    }
}

impl Expansion for OfSizes {
    fn name(&self) -> StaticName {
        self.op.name()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        self.op.rules(s, inputs, outputs)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let facts =
            inputs.iter().map(|i| model.outlet_fact(*i)).collect::<TractResult<Vec<_>>>()?;
        let of_sizes = facts.iter().any(|fact| fact.datum_type == TDim::datum_type());
        if !of_sizes || matches!(facts[..], [a, b] if rounded_alike(a, b)) {
            return self.op.wire(prefix, model, inputs);
        }
        let mut integers = tvec![];
        for (at, input) in inputs.iter().enumerate() {
            let name = format!("{prefix}.i64_{at}");
            integers.push(model.wire_node(name, cast(i64::datum_type()), &[*input])?[0]);
        }
        let found = self.op.wire(&format!("{prefix}.integer"), model, &integers)?;
        model.wire_node(prefix, cast(TDim::datum_type()), &found)
    }
}

/// Whether no value of the first is negative and each of the second is a positive number.
fn rounded_alike(a: &TypedFact, b: &TypedFact) -> bool {
    let all = |fact: &TypedFact, holds: fn(&TDim) -> bool| {
        let sizes = fact.konst.as_ref().and_then(|k| k.cast_to::<TDim>().ok());
        let sizes = sizes.as_ref().and_then(|s| s.try_as_plain_ram().ok());
        sizes.and_then(|s| Some(s.as_slice::<TDim>().ok()?.iter().all(holds))).unwrap_or(false)
    };
    all(a, |a| least(a, 1).is_some_and(|a| a >= 0)) && all(b, |b| b.to_i64().is_ok_and(|b| b > 0))
}

/// A bound from below where no free size is less than `free`, itself not negative; `None` where none is seen.
pub(super) fn least(size: &TDim, free: i64) -> Option<i64> {
    let least = |term: &TDim| least(term, free);
    let all = |terms: &[TDim]| terms.iter().map(least).collect::<Option<Vec<i64>>>();
    match size {
        TDim::Val(number) => Some(*number),
        TDim::Sym(_) => Some(free),
        TDim::Add(terms) => all(terms)?.into_iter().try_fold(0i64, i64::checked_add),
        TDim::Mul(terms) => {
            let terms = all(terms)?;
            let no_sign = terms.iter().all(|t| *t >= 0);
            no_sign.then(|| terms.into_iter().try_fold(1i64, i64::checked_mul))?
        }
        TDim::MulInt(factor, term) if *factor >= 0 => least(term)?.checked_mul(*factor),
        TDim::Div(term, by) => Some(least(term)?.div_euclid(i64::try_from(*by).ok()?)),
        TDim::Broadcast(terms) | TDim::Min(terms) => all(terms)?.into_iter().min(),
        TDim::Max(terms) => terms.iter().filter_map(least).max(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_onnx::pb::AttributeProto;

    /// What `name` makes of a size less 6 and a number, over sizes of 1 to 9.
    fn over_sizes(name: &str, attribute: Option<AttributeProto>, by: i64, free: bool) -> Vec<i64> {
        let node = NodeProto {
            op_type: name.into(),
            input: vec!["a".into(), "b".into()],
            attribute: attribute.into_iter().collect(),
            ..NodeProto::default()
        };
        let onnx = tract_onnx::onnx();
        let file = tract_onnx::pb::ModelProto::default();
        let context = ParsingContext {
            onnx_operator_set_version: 17,
            framework: &onnx,
            model: &file,
            parent_graphs: vec![],
            model_dir: None,
            template: InferenceModel::default(),
        };
        let (op, _) = read(&context, &node).unwrap();
        let op = op.as_op().downcast_ref::<Box<dyn Expansion>>().unwrap().clone();
        let run = |size: usize| {
            let mut model = TypedModel::default();
            let dim = if free { model.symbols.sym("n").to_dim() } else { size.to_dim() };
            let x = model.add_source("x", f32::datum_type().fact([dim.clone()])).unwrap();
            let a = model.add_const("a", tensor0(dim - 6)).unwrap();
            let b = model.add_const("b", tensor0(by)).unwrap();
            let y = op.wire("y", &mut model, &[a, b]).unwrap();
            let y = model.wire_node("i64", cast(i64::datum_type()), &y).unwrap();
            model.select_output_outlets(&[y[0], x]).unwrap();
            let plan = model.into_decluttered().unwrap().into_runnable().unwrap();
            let x = Tensor::zero::<f32>(&[size]).unwrap();
            plan.run(tvec!(x.into_tvalue())).unwrap()[0].cast_to_scalar::<i64>().unwrap()
        };
        (1..10).map(run).collect()
    }

    #[test]
    fn quotients_and_remainders_are_onnx_s() {
        let fmod = AttributeProto {
            name: "fmod".into(),
            r#type: tract_onnx::pb::attribute_proto::AttributeType::Int as i32,
            i: 1,
            ..AttributeProto::default()
        };
        for free in [false, true] {
            for by in [2i64, 3, -2] {
                let want =
                    |f: fn(i64, i64) -> i64| (1..10).map(|n| f(n - 6, by)).collect::<Vec<_>>();
                assert_eq!(over_sizes("Div", None, by, free), want(|a, b| a / b), "{by} {free}");
                let remainder = want(|a, b| ((a % b) + b) % b);
                assert_eq!(over_sizes("Mod", None, by, free), remainder, "{by} {free}");
                let c = over_sizes("Mod", Some(fmod.clone()), by, free);
                assert_eq!(c, want(|a, b| a % b), "{by} {free}");
            }
        }
    }

    #[test]
    fn bounds_of_sizes() {
        let n = SymbolScope::default().sym("n").to_dim();
        for (size, bound) in [
            (n.clone() - 1, Some(0)),
            (n.clone() * 3 - 4, Some(-1)),
            ((n.clone() + 1) / 2, Some(1)),
            (n.clone() * n.clone(), Some(1)),
            (-n.clone(), None),
        ] {
            assert_eq!(least(&size, 1), bound, "{size}");
        }
    }
}
