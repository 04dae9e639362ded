//! A loop as plans run it. tract's keeps what a run carries from its body, and its states from one run
//! to the next.

use std::sync::Arc;

use tract_core::internal::*;
use tract_core::ops::scan::{InputMapping, OutputMapping, Scan, ScanInfo};

use super::changes::{ActiveAdapter, RowAdapters};
use super::watch::{Watch, run_watched};

/// A [`Scan`] whose body finds the run's adapters, and whose states begin anew in each run.
#[derive(Clone, Debug)]
pub struct Looped {
    plan: Arc<TypedSimplePlan>,
    inputs: Vec<InputMapping>,
    outputs: Vec<OutputMapping<TDim>>,
    facts: TVec<TypedFact>,
}

impl PartialEq for Looped {
    fn eq(&self, _: &Looped) -> bool {
        false
    }
}

impl Eq for Looped {}

impl Looped {
    /// The loop of `scan` over inputs of these facts, its body as `ready` makes it ready to run; `None`
    /// for one that goes by several values at a time.
    pub fn of(
        scan: &Scan,
        inputs: &[&TypedFact],
        ready: impl FnOnce(TypedModel) -> TractResult<TypedModel>,
    ) -> TractResult<Option<Looped>> {
        let one = |info: &ScanInfo| info.chunk.unsigned_abs() == 1;
        let read = scan.input_mapping.iter().filter_map(InputMapping::as_scan).all(one);
        let written = scan.output_mapping.iter().filter_map(|o| o.scan.as_ref());
        if scan.skip != 0 || !read || !written.map(|(_, info)| info).all(one) {
            return Ok(None);
        }
        Ok(Some(Looped {
            plan: TypedSimplePlan::new(ready(scan.body.clone())?)?,
            inputs: scan.input_mapping.clone(),
            outputs: scan.output_mapping.clone(),
            facts: scan.output_facts(inputs)?,
        }))
    }

    /// What runs at each step.
    pub fn body(&self) -> &TypedSimplePlan {
        &self.plan
    }
}

impl Op for Looped {
    fn name(&self) -> StaticName {
        "Looped".into()
    }

    fn mints_runtime_symbols(&self) -> bool {
        true
    }

    op_as_typed_op!();
}

impl EvalOp for Looped {
    not_out_of_plan!();

    fn state(&self, _ctx: &EvalContext) -> TractResult<Option<Box<dyn OpState>>> {
        Ok(Some(Box::new(State { op: self.clone(), body: self.plan.spawn()? })))
    }
}

#[derive(Clone, Debug)]
struct State {
    op: Looped,
    body: TypedSimpleState,
}

/// The place along the axis that step `step` of `steps` reads or writes.
fn at(info: &ScanInfo, step: usize, steps: usize) -> usize {
    if info.chunk < 0 { steps - 1 - step } else { step }
}

impl OpState for State {
    fn eval(
        &mut self,
        ctx: &EvalContext,
        _op: &dyn Op,
        inputs: TVec<TValue>,
    ) -> TractResult<TVec<TValue>> {
        let State { op, body } = self;
        let carried = &mut body.turn_state.shared;
        carried.remove::<ActiveAdapter>();
        carried.remove::<RowAdapters>();
        carried.remove::<Watch>();
        if let Some(shared) = ctx.shared {
            if let Some(active) = shared.get::<ActiveAdapter>() {
                carried.insert(active.clone());
            }
            if let Some(rows) = shared.get::<RowAdapters>() {
                carried.insert(rows.clone());
            }
            if let Some(watch) = shared.get::<Watch>() {
                // Its nodes have numbers of their own: the loop itself is what is named.
                carried.insert(Watch { trace: None, open: Arc::default(), ..watch.clone() });
            }
        }
        let read = |(slot, mapping): (usize, &InputMapping)| Some((slot, mapping.as_scan()?.axis));
        let (slot, axis) = op.inputs.iter().enumerate().find_map(read).context("no sequence")?;
        let steps = inputs[slot].shape()[axis];
        let is_state =
            |(mapping, value): (&InputMapping, &TValue)| mapping.is_state().then(|| value.clone());
        let mut states: TVec<TValue> = op.inputs.iter().zip(&inputs).filter_map(is_state).collect();
        let mut found: TVec<Option<TValue>> = tvec![None; op.facts.len()];
        let mut whole: TVec<Option<Tensor>> = tvec![None; op.facts.len()];
        for step in 0..steps {
            let mut before = std::mem::take(&mut states).into_iter();
            let mut values = tvec!();
            for (mapping, input) in op.inputs.iter().zip(&inputs) {
                values.push(match mapping {
                    InputMapping::Full => input.clone(),
                    InputMapping::State => before.next().context("a state is missing")?,
                    InputMapping::Scan(_) if steps == 1 => input.clone(),
                    InputMapping::Scan(info) => {
                        let at = at(info, step, steps);
                        input.slice(info.axis, at, at + 1)?.into_tvalue()
                    }
                });
            }
            for (mapping, value) in op.outputs.iter().zip(run_watched(body, values)?) {
                if let Some((slot, info)) = &mapping.scan {
                    if whole[*slot].is_none() {
                        let mut shape: TVec<usize> = value.shape().into();
                        shape[info.axis] = steps;
                        whole[*slot] = Some(Tensor::zero_dt(value.datum_type(), &shape)?);
                    }
                    let at = at(info, step, steps);
                    if let Some(whole) = &mut whole[*slot] {
                        whole.assign_slice(at..at + 1, &value, .., info.axis)?;
                    }
                }
                if let Some(slot) = mapping.last_value_slot.filter(|_| step + 1 == steps) {
                    found[slot] = Some(value.clone());
                }
                if mapping.state {
                    states.push(value);
                }
            }
        }
        // What it holds of the run ends with it.
        body.turn_state.shared.remove::<Watch>();
        let each = |(found, whole): (Option<TValue>, Option<Tensor>)| {
            found.or(whole.map(IntoTValue::into_tvalue)).context("a sequence without steps")
        };
        found.into_iter().zip(whole).map(each).collect()
    }

    fn reset_lanes(&mut self, _lanes: &[LaneId]) -> TractResult<()> {
        Ok(())
    }
}

impl TypedOp for Looped {
    as_op!();

    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(self.facts.clone())
    }
}
