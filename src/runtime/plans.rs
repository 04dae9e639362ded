//! Plans of one graph, for the dimensions that it has been run with.

use crate::error::Result;
use crate::graph::{fuse, memory, open_sizes, optimized, shared_macs};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tract_core::internal::*;

/// Plans kept for different bindings of the free dimensions; the least recently used goes first.
const MAX_PLANS: usize = 16;

/// Bytes of constants beside the graph's own from which on only the newest plan is kept.
const MAX_CONSTANTS: u64 = 32 << 20;

/// Idle states kept for one plan: as many runs at once reuse their buffers.
const MAX_IDLE_STATES: usize = 8;

/// Multiply-adds in steps that several threads can share, below which a run is not worth moving to
/// them: about as many as MiniLM does for 12 tokens, where two threads begin to be faster than one.
const LEAST_SHARED: usize = 1 << 27;

/// Values of the free dimensions of a run, by the graph's safe symbol names.
pub(crate) type Binding = BTreeMap<String, i64>;

/// A plan and what is known of its runs.
pub(super) struct Plan {
    runnable: Arc<TypedSimplePlan>,
    /// Rules of fusing that matched, and how often.
    pub fused: Vec<(&'static str, usize)>,
    /// Whether it has enough work for several threads.
    pub shares: bool,
    /// Bytes that a run takes.
    pub bytes: u64,
    /// Of values whose sizes a run tells.
    pub open: Arc<[TDim]>,
    /// Bytes of constants that the graph has not.
    constants: u64,
    idle: Mutex<Vec<TypedSimpleState>>,
}

impl Plan {
    /// The plan of `graph` as `bound` has its dimensions.
    pub fn build(graph: &TypedModel, bound: TypedModel) -> TractResult<Plan> {
        let (model, fused) = fuse(bound)?;
        let model = optimized(model)?;
        let shares = shared_macs(&model)? >= LEAST_SHARED;
        let runnable = TypedSimplePlan::new(model)?;
        // The constants of the graph are there anyway.
        let own = memory::constants(graph);
        let constants = memory::constants(runnable.model()).saturating_sub(own);
        let outputs = memory::outputs(runnable.model())?;
        let values = memory::peak(&runnable)?.saturating_sub(own);
        let bytes = values.saturating_add(outputs).saturating_add(memory::SCRATCH);
        let open = open_sizes(runnable.model())?;
        Ok(Plan { runnable, fused, shares, bytes, open, constants, idle: Mutex::default() })
    }

    /// Bytes that the building of such a plan takes for what it computes ahead.
    pub fn bytes_to_build(graph: &TypedModel, binding: &Binding) -> TractResult<u64> {
        let mut dims = SymbolValues::default();
        for (name, value) in binding {
            if let Some(symbol) = graph.symbols.get(name) {
                dims.set(&symbol, *value);
            }
        }
        memory::folded(graph, &dims)
    }

    /// Its graph.
    pub fn model(&self) -> &TypedModel {
        self.runnable.model()
    }

    /// A state to run it with; a run that failed does not give it back.
    pub fn state(&self) -> TractResult<TypedSimpleState> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(|| self.runnable.spawn(), Ok)
    }

    /// Keeps a state for the next run.
    pub fn keep(&self, state: TypedSimpleState) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE_STATES {
            idle.push(state);
        }
    }
}

/// The plans that were asked for last.
#[derive(Default)]
pub(super) struct Plans(Mutex<Vec<(Binding, Arc<Plan>)>>);

impl Plans {
    /// The plan for these dimensions, built where there is none. Runs at other dimensions go on
    /// meanwhile.
    pub fn get(&self, binding: &Binding, build: impl Fn() -> Result<Plan>) -> Result<Arc<Plan>> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut plans = lock();
            if let Some(at) = plans.iter().position(|(b, _)| b == binding) {
                let entry = plans.remove(at);
                let plan = entry.1.clone();
                plans.push(entry);
                return Ok(plan);
            }
        }
        let plan = Arc::new(build()?);
        let mut plans = lock();
        if let Some((_, other)) = plans.iter().find(|(b, _)| b == binding) {
            return Ok(other.clone());
        }
        plans.push((binding.clone(), plan.clone()));
        let heavy = |plans: &[(Binding, Arc<Plan>)]| {
            let constants = plans.iter().map(|(_, plan)| plan.constants);
            constants.fold(0, u64::saturating_add) > MAX_CONSTANTS
        };
        while plans.len() > MAX_PLANS || (plans.len() > 1 && heavy(&plans)) {
            plans.remove(0);
        }
        Ok(plan)
    }
}
