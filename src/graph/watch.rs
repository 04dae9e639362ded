//! What a run is held to between the steps of its plan.

use std::fmt;
use std::sync::Arc;

use tract_core::internal::*;
use tract_core::ops::array::Range;
use tract_core::plan::eval;

use super::trace::Trace;

/// Whether a run shall stop: asked before each step, so it must be quick.
pub type Stop = Arc<dyn Fn() -> bool + Send + Sync>;

/// Takes that many bytes for values whose sizes nobody knew before the run, or says why not.
pub type More = Arc<dyn Fn(u64) -> Result<(), Halt> + Send + Sync>;

/// The limits of the current run. In the run's shared resources, for its loops too.
#[derive(Clone, Default)]
pub struct Watch {
    /// Ends the run.
    pub stop: Option<Stop>,
    /// Asked for memory that was not planned.
    pub more: Option<More>,
    /// [`open_sizes`] of the plan: the largest is asked for before the first step.
    pub open: Arc<[TDim]>,
    /// Told what each step has made.
    pub trace: Option<Arc<Trace>>,
}

/// Why a run was ended by its [`Watch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// [`Watch::stop`] said so.
    Stopped,
    /// A value of a size that only the run tells is more than there may ever be.
    TooLarge {
        /// Its bytes.
        bytes: u64,
    },
    /// The same, where others have the memory at this moment.
    Short {
        /// Its bytes.
        bytes: u64,
    },
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Halt::Stopped => f.write_str("the run was stopped"),
            Halt::TooLarge { bytes } => write!(f, "a value of {bytes} bytes is too large"),
            Halt::Short { bytes } => write!(f, "there is no memory now for {bytes} bytes"),
        }
    }
}

impl std::error::Error for Halt {}

impl Halt {
    /// Why this error came, if a watch made it.
    pub fn of(error: &TractError) -> Option<Halt> {
        error.chain().find_map(|cause| cause.downcast_ref::<Halt>()).copied()
    }
}

/// Runs a plan under the watch in its shared resources.
pub fn run_watched(
    state: &mut TypedSimpleState,
    inputs: TVec<TValue>,
) -> TractResult<TVec<TValue>> {
    let Some(watch) = state.turn_state.shared.get::<Watch>().cloned() else {
        return state.run(inputs);
    };
    // Bytes that were asked for already.
    let mut ahead = None;
    state.run_plan_with_eval(inputs, |ctx, op_state, node, inputs| -> TractResult<_> {
        if watch.stop.as_ref().is_some_and(|stop| stop()) {
            return Err(Halt::Stopped.into());
        }
        let more = watch.more.as_ref().filter(|_| is_open(node));
        let foreseen = more.map_or(0, |_| foreseen(ctx, node, &inputs));
        if let Some(more) = more {
            let ahead = match &mut ahead {
                Some(ahead) => ahead,
                none => {
                    let sizes = watch.open.iter().filter_map(|size| known(size, ctx.symbols));
                    let largest = sizes.max().unwrap_or(0);
                    more(largest)?;
                    none.insert(largest)
                }
            };
            let there = foreseen.min(*ahead);
            *ahead -= there;
            more(foreseen - there)?;
        }
        let outputs = eval(ctx, op_state, node, inputs)?;
        if let Some(more) = more {
            let bytes = |value: &TValue| value.len() * value.datum_type().size_of();
            let bytes = outputs.iter().map(bytes).sum::<usize>() as u64;
            more(bytes.saturating_sub(foreseen))?;
        }
        if let Some(trace) = &watch.trace {
            trace.note(node.id, &outputs);
        }
        Ok(outputs)
    })
}

/// Whether the sizes of what it makes are told by the run alone.
fn is_open(node: &TypedNode) -> bool {
    node.outputs.iter().any(|o| o.fact.shape.as_concrete().is_none())
}

/// The sizes, in bytes, of what the nodes make whose sizes the run tells.
pub fn open_sizes(model: &TypedModel) -> TractResult<Arc<[TDim]>> {
    let mut sizes: Vec<TDim> = vec![];
    for outlet in model.nodes().iter().flat_map(|node| &node.outputs) {
        let fact = &outlet.fact;
        if fact.shape.as_concrete().is_none() {
            let size = fact.shape.volume() * fact.datum_type.size_of();
            if !sizes.contains(&size) {
                sizes.push(size);
            }
        }
    }
    Ok(sizes.into())
}

/// A size, where symbols tell it.
fn known(size: &TDim, symbols: &SymbolValues) -> Option<u64> {
    u64::try_from(size.eval_to_i64(symbols).ok()?).ok()
}

/// Bytes of what an open node will make, as far as can be told before it runs.
fn foreseen(ctx: &EvalContext, node: &TypedNode, inputs: &[TValue]) -> u64 {
    if node.op_is::<Range>() {
        return range_len(inputs).unwrap_or(0).saturating_mul(8);
    }
    let bytes = |o: &Outlet<TypedFact>| -> Option<u64> {
        let mut bytes = o.fact.datum_type.size_of() as u64;
        for dim in o.fact.shape.iter() {
            let dim = dim.eval(ctx.symbols).to_i64().ok()?;
            bytes = bytes.saturating_mul(u64::try_from(dim).ok()?);
        }
        Some(bytes)
    };
    node.outputs.iter().filter_map(bytes).fold(0, u64::saturating_add)
}

/// Values of `Range(start, end, step)`.
fn range_len(inputs: &[TValue]) -> Option<u64> {
    let number = |i: usize| -> Option<f64> {
        let value = inputs.get(i)?.cast_to::<f64>().ok()?;
        value.try_as_plain_ram().ok()?.as_slice::<f64>().ok()?.first().copied()
    };
    let len = (number(1)? - number(0)?) / number(2)?;
    // NaN and what is negative become 0.
    Some(len.ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tract_core::ops::math::add;

    fn chain(steps: usize) -> TypedSimpleState {
        let mut model = TypedModel::default();
        let mut x = model.add_source("x", f32::fact([4])).unwrap();
        for step in 0..steps {
            x = model.wire_node(format!("y{step}"), add(), &[x, x]).unwrap()[0];
        }
        model.select_output_outlets(&[x]).unwrap();
        TypedSimplePlan::new(model).unwrap().spawn().unwrap()
    }

    fn ones() -> TVec<TValue> {
        tvec!(tensor1(&[1f32; 4]).into_tvalue())
    }

    #[test]
    fn a_run_ends_between_two_steps() {
        let mut state = chain(10);
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let stop: Stop = Arc::new(move || counter.fetch_add(1, Ordering::Relaxed) == 5);
        state.turn_state.shared.insert(Watch { stop: Some(stop), ..Watch::default() });
        let e = run_watched(&mut state, ones()).unwrap_err();
        assert_eq!((Halt::of(&e), asked.load(Ordering::Relaxed)), (Some(Halt::Stopped), 6));
    }

    /// `Range` to a number that the request gives asked for as much memory as it said.
    #[test]
    fn sizes_that_a_value_tells_are_looked_at_before_they_are_taken() {
        let mut model = TypedModel::default();
        let n = model.symbols.new_with_prefix("n");
        let end = model.add_source("end", i64::fact([0usize; 0])).unwrap();
        let zero = model.add_const("zero", tensor0(0i64)).unwrap();
        let one = model.add_const("one", tensor0(1i64)).unwrap();
        let y = model.wire_node("y", Range::new(n.to_dim()), &[zero, end, one]).unwrap();
        model.select_output_outlets(&y).unwrap();
        let plan = TypedSimplePlan::new(model).unwrap();
        let run = |end: i64| {
            let mut state = plan.spawn().unwrap();
            let more: More = Arc::new(|bytes| match bytes > 1 << 20 {
                true => Err(Halt::TooLarge { bytes }),
                false => Ok(()),
            });
            state.turn_state.shared.insert(Watch { more: Some(more), ..Watch::default() });
            run_watched(&mut state, tvec!(tensor0(end).into_tvalue()))
        };
        assert_eq!(run(5).unwrap()[0].len(), 5);
        let e = run(1 << 40).unwrap_err();
        assert_eq!(Halt::of(&e), Some(Halt::TooLarge { bytes: 8 << 40 }));
    }

    #[test]
    fn the_largest_value_is_asked_for_before_the_first_step_and_once() {
        let mut model = TypedModel::default();
        let n = model.symbols.sym("n").to_dim();
        let x = model.add_source("x", f32::fact([n])).unwrap();
        let doubled = model.wire_node("doubled", add(), &[x, x]).unwrap()[0];
        let row = model.wire_node("row", AxisOp::Add(0), &[doubled]).unwrap()[0];
        let column = model.wire_node("column", AxisOp::Add(1), &[doubled]).unwrap()[0];
        let y = model.wire_node("y", add(), &[row, column]).unwrap();
        model.select_output_outlets(&y).unwrap();
        let open = open_sizes(&model).unwrap();
        let plan = TypedSimplePlan::new(model).unwrap();
        let run = |n: usize, limit: u64| {
            let mut state = plan.spawn().unwrap();
            let (steps, taken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let (counter, sum) = (steps.clone(), taken.clone());
            let stop: Stop = Arc::new(move || counter.fetch_add(1, Ordering::Relaxed) > 100);
            let more: More = Arc::new(move |bytes| match bytes > limit {
                true => Err(Halt::TooLarge { bytes }),
                false => {
                    sum.fetch_add(bytes as usize, Ordering::Relaxed);
                    Ok(())
                }
            });
            let watch =
                Watch { stop: Some(stop), more: Some(more), open: open.clone(), trace: None };
            state.turn_state.shared.insert(watch);
            let found = run_watched(&mut state, tvec!(Tensor::zero::<f32>(&[n]).unwrap().into()));
            let counted = |n: Arc<AtomicUsize>| n.load(Ordering::Relaxed);
            (found.map_err(|e| Halt::of(&e)), counted(steps), counted(taken))
        };
        let (found, steps, _) = run(1000, 1 << 20);
        assert_eq!((found.unwrap_err(), steps), (Some(Halt::TooLarge { bytes: 4_000_000 }), 1));
        let (found, _, taken) = run(100, 1 << 20);
        found.unwrap();
        // The square, and no more than each of the others beside it.
        assert!((40_000..=40_000 + 4 * 400).contains(&taken), "{taken}");
    }
}
