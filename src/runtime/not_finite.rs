//! Where NaN and infinity in an answer come from.

use super::engine::{Carried, Engine};
use crate::adapter::Bound;
use crate::error::{Cause, Error, Result};
use crate::graph::{Stop, Trace, Watch};
use crate::shape::Input;
use std::sync::Arc;

impl Engine {
    /// The error of a run whose answer holds NaN or infinity: the run is made once more, to name the
    /// input or the first layer that they come from.
    pub fn not_finite<I: Input>(
        &self,
        inputs: &[I],
        adapter: Option<&Arc<Bound>>,
        stop: Option<Stop>,
    ) -> Error {
        self.first_not_finite(inputs, adapter, stop).unwrap_or_else(|e| e)
    }

    fn first_not_finite<I: Input>(
        &self,
        inputs: &[I],
        adapter: Option<&Arc<Bound>>,
        stop: Option<Stop>,
    ) -> Result<Error> {
        let ordered = self.ordered(inputs)?;
        let trace = Arc::new(Trace::default());
        let watch = Watch { stop, trace: Some(trace.clone()), ..Watch::default() };
        let carried = adapter.map_or(Carried::Nothing, Carried::One);
        self.run_with(&ordered, carried, watch, &mut vec![])?;
        let plan = self.plan(&self.binding(&ordered)?)?;
        let text = match trace.origin(plan.model()) {
            None => "the outputs are finite, what the head makes of them is not".into(),
            Some(origin) => {
                let what = if origin.nan { "NaN" } else { "infinity" };
                let given = self.inputs().iter().find(|input| input.safe_name == origin.node);
                let from = match given.filter(|_| origin.given) {
                    Some(input) => format!("which the input '{}' holds", input.name),
                    None => {
                        let name = self.original_names(&origin.node);
                        format!("which comes first out of '{name}' ({})", origin.op)
                    }
                };
                format!("the answer holds {what}, {from}")
            }
        };
        Ok(Error::failed(text).because(Cause::NotFinite))
    }
}
