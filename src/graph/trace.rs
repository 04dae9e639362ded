//! Where a value comes from that is no finite number.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use tract_core::internal::*;
use tract_core::ops::konst::Const;
use tract_core::ops::source::TypedSource;

/// What of a run's values is not finite, by the node that made them.
#[derive(Debug, Default)]
pub struct Trace(Mutex<HashMap<usize, Odd>>);

/// What a value holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Odd {
    nan: bool,
    infinite: bool,
}

/// The node whose values are the first that are not finite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its name in the plan.
    pub node: String,
    /// Its operation.
    pub op: String,
    /// NaN, else infinity.
    pub nan: bool,
    /// It is an input of the graph.
    pub given: bool,
}

impl Trace {
    /// Notes what a node made.
    pub(super) fn note(&self, node: usize, values: &[TValue]) {
        let found = values.iter().map(|value| odd(value)).fold(Odd::default(), Odd::or);
        if found != Odd::default() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, found);
        }
    }

    /// Where what is not finite in the outputs of `model` comes from: NaN where there is any, else
    /// infinity, followed back for as long as inputs of its node hold the same. `None`: all outputs are
    /// finite.
    pub fn origin(&self, model: &TypedModel) -> Option<Origin> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |id: usize| -> Odd {
            let known = found.get(&id).copied();
            // Constants are made by no step.
            known.unwrap_or_else(|| match model.node(id).op_as::<Const>() {
                Some(constant) => odd(constant.val()),
                None => Odd::default(),
            })
        };
        let outputs: Vec<usize> = model.output_outlets().ok()?.iter().map(|o| o.node).collect();
        let first = |holds: fn(Odd) -> bool| outputs.iter().copied().find(|id| holds(of(*id)));
        let (nan, mut at) = match (first(|o| o.nan), first(|o| o.infinite)) {
            (Some(id), _) => (true, id),
            (None, Some(id)) => (false, id),
            (None, None) => return None,
        };
        let mut seen = HashSet::new();
        while seen.insert(at) {
            let same = |id: &usize| if nan { of(*id).nan } else { of(*id).infinite };
            match model.node(at).inputs.iter().map(|i| i.node).find(same) {
                Some(before) => at = before,
                None => break,
            }
        }
        let node = model.node(at);
        let (given, op) = (node.op_is::<TypedSource>(), node.op().name().to_string());
        Some(Origin { node: node.name.clone(), op, nan, given })
    }
}

impl Odd {
    fn or(self, other: Odd) -> Odd {
        Odd { nan: self.nan | other.nan, infinite: self.infinite | other.infinite }
    }
}

fn odd(value: &Tensor) -> Odd {
    let Ok(plain) = value.try_as_plain_ram() else { return Odd::default() };
    fn of<T: Copy>(values: &[T], as_f64: impl Fn(T) -> f64) -> Odd {
        values.iter().map(|v| as_f64(*v)).fold(Odd::default(), |odd, v| {
            odd.or(Odd { nan: v.is_nan(), infinite: v.is_infinite() })
        })
    }
    match value.datum_type() {
        DatumType::F32 => plain.as_slice::<f32>().map(|v| of(v, f64::from)),
        DatumType::F16 => plain.as_slice::<f16>().map(|v| of(v, f64::from)),
        DatumType::F64 => plain.as_slice::<f64>().map(|v| of(v, |x| x)),
        _ => return Odd::default(),
    }
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::{Watch, run_watched};
    use super::*;
    use std::sync::Arc;
    use tract_core::ops::math::{add, div, mul};

    /// y = (x · 2) / x + c.
    fn origin_of(x: f32, c: f32) -> Option<Origin> {
        let mut model = TypedModel::default();
        let source = model.add_source("x", f32::fact([1])).unwrap();
        let two = model.add_const("two", tensor1(&[2f32])).unwrap();
        let c = model.add_const("c", tensor1(&[c])).unwrap();
        let double = model.wire_node("double", mul(), &[source, two]).unwrap()[0];
        let ratio = model.wire_node("ratio", div(), &[double, source]).unwrap()[0];
        let y = model.wire_node("y", add(), &[ratio, c]).unwrap()[0];
        model.select_output_outlets(&[y]).unwrap();
        let mut state = TypedSimplePlan::new(model).unwrap().spawn().unwrap();
        let trace = Arc::new(Trace::default());
        state.turn_state.shared.insert(Watch { trace: Some(trace.clone()), ..Watch::default() });
        run_watched(&mut state, tvec!(tensor1(&[x]).into_tvalue())).unwrap();
        trace.origin(state.model())
    }

    #[test]
    fn what_is_not_finite_is_followed_back_to_its_first_node() {
        let found = |x, c| origin_of(x, c).map(|o| (o.node, o.nan, o.given));
        assert_eq!(found(1.0, 1.0), None);
        assert_eq!(found(0.0, 1.0), Some(("ratio".into(), true, false)));
        assert_eq!(found(3e38, 1.0), Some(("double".into(), false, false)));
        assert_eq!(found(f32::NAN, 1.0), Some(("x".into(), true, true)));
        assert_eq!(found(1.0, f32::INFINITY), Some(("c".into(), false, false)));
    }
}
