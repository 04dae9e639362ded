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
    /// infinity, followed back for as long as inputs of its node hold the same. Infinity that NaN is made of
    /// comes second. Empty: all outputs are finite.
    pub fn origins(&self, model: &TypedModel) -> Vec<Origin> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |id: usize| -> Odd {
            let known = found.get(&id).copied();
            // Constants are made by no step.
            known.unwrap_or_else(|| match model.node(id).op_as::<Const>() {
                Some(constant) => odd(constant.val()),
                None => Odd::default(),
            })
        };
        let nan = |id: &usize| of(*id).nan;
        let infinite = |id: &usize| of(*id).infinite;
        let inputs = |id: usize| model.node(id).inputs.iter().map(|i| i.node);
        let back = |mut at: usize, holds: &dyn Fn(&usize) -> bool| {
            let mut seen = HashSet::new();
            while seen.insert(at)
                && let Some(before) = inputs(at).find(|id| holds(id))
            {
                at = before;
            }
            at
        };
        let Ok(outlets) = model.output_outlets() else { return vec![] };
        let first = |holds: &dyn Fn(&usize) -> bool| outlets.iter().map(|o| o.node).find(holds);
        let mut origins = vec![];
        let made_of = match first(&nan).map(|id| back(id, &nan)) {
            Some(id) => {
                origins.push(Origin::new(model, id, true));
                inputs(id).find(infinite)
            }
            None => first(&infinite),
        };
        let infinity = made_of.map(|id| Origin::new(model, back(id, &infinite), false));
        origins.extend(infinity);
        origins
    }
}

impl Origin {
    fn new(model: &TypedModel, id: usize, nan: bool) -> Origin {
        let node = model.node(id);
        let (given, op) = (node.op_is::<TypedSource>(), node.op().name().to_string());
        Origin { node: node.name.clone(), op, nan, given }
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
    fn origins_of(x: f32, c: f32) -> Vec<Origin> {
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
        trace.origins(state.model())
    }

    #[test]
    fn what_is_not_finite_is_followed_back_to_its_first_node() {
        let found = |x, c| {
            let origins = origins_of(x, c).into_iter();
            origins.map(|o| (o.node, o.nan, o.given)).collect::<Vec<_>>()
        };
        let one = |node: &str, nan, given| vec![(node.to_string(), nan, given)];
        assert_eq!(found(1.0, 1.0), []);
        assert_eq!(found(0.0, 1.0), one("ratio", true, false));
        assert_eq!(found(3e38, 1.0), one("double", false, false));
        assert_eq!(found(f32::NAN, 1.0), one("x", true, true));
        assert_eq!(found(1.0, f32::INFINITY), one("c", false, false));
        // Infinity through infinity.
        let both = [one("ratio", true, false), one("x", false, true)].concat();
        assert_eq!(found(f32::INFINITY, 1.0), both);
    }
}
