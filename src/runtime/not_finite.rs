//! Where NaN and infinity in an answer come from.

use super::engine::{Carried, Engine};
use crate::adapter::Bound;
use crate::error::{Cause, Error, Result};
use crate::graph::{Origin, Stop, Trace, Watch};
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
        let origins = trace.origins(plan.model());
        let text = match origins.first() {
            None => "the outputs are finite, what the head makes of them is not".into(),
            Some(first) => {
                let all: Vec<String> = origins.iter().map(|origin| self.place_of(origin)).collect();
                let what = if first.nan { "NaN" } else { "infinity" };
                format!("the answer holds {what}, which {}", all.join(", of infinity that "))
            }
        };
        Ok(Error::failed(text).because(Cause::NotFinite))
    }

    fn place_of(&self, origin: &Origin) -> String {
        let given = self.inputs().iter().find(|input| input.safe_name == origin.node);
        if let Some(input) = given.filter(|_| origin.given) {
            return format!("the input '{}' holds", input.name);
        }
        // What is fused is called after the node that it begins with.
        let mut safe = origin.node.as_str();
        let name = loop {
            let name = self.original_names(safe);
            match safe.rsplit_once('_') {
                Some((begin, _)) if name == safe => safe = begin,
                _ => break name,
            }
        };
        // The first half of tract's clamp.
        let name = name.strip_suffix(".low").unwrap_or(&name);
        format!("comes first out of '{name}' ({})", origin.op)
    }
}
