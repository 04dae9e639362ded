//! Whether a graph runs: on made-up inputs, at two sizes of each free dimension.

use super::made_up::{Filling, FreeSymbol, free_symbols, made_up, too_large};
use crate::adapter::TargetKind;
use crate::error::{Cause, Error, ErrorKind, Result};
use crate::graph::{
    Halt, More, Watch, bind_dims, memory, optimized, run_watched, symbol_values, tract_error,
};
use crate::import::{Prepared, caught};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tract_core::internal::*;

/// Sizes of free dimensions other than the batch, small ones first; the second is for the second run.
pub(super) const SIZES: [(i64, i64); 4] = [(24, 40), (96, 160), (320, 256), (16000, 24000)];
/// From here on only inputs of floats are tried: tokens are never so many, and memory is not endless.
const LONG: i64 = 1000;
/// Graphs of more nodes run once only: tract's making of a plan takes time by their square.
const MAX_NODES: usize = 6000;
/// Ways that are tried: so many nodes in all, within these limits. What fails does so early. No clock decides, so
/// that a file gives the same base on a slow or busy machine.
const MAX_TRIED_NODES: usize = 60_000;
const WAYS: (usize, usize) = (8, 32);
/// Bytes that a run may take, or so many times those of the weights, if that is more.
const MAX_BYTES: u64 = 256 << 20;
const TIMES_WEIGHTS: u64 = 4;
/// Of the layers' numbers of features, so many are tried as sizes.
const MAX_WIDTHS: usize = 4;
/// The batch of the second run.
const BATCH: i64 = 3;

/// Sizes and values with which a graph runs.
#[derive(Clone)]
pub(super) struct Runs {
    pub(super) dims: Vec<(String, i64)>,
    pub(super) filling: Filling,
}

/// What came of trying a graph out.
pub(super) enum Tried {
    /// It runs.
    Runs(Runs),
    /// It runs on no inputs that are made up here; what the first of them ended with.
    Never(Error),
}

/// Runs `graph`.
///
/// # Errors
/// It runs, but not with another batch, or not with another size of a free dimension.
pub(super) fn try_out(graph: &TypedModel, prepared: &Prepared) -> Result<Tried> {
    if let Some(e) = too_large(graph, prepared).map_err(failed)? {
        return Ok(Tried::Never(e));
    }
    let free = free_symbols(graph).map_err(failed)?;
    let floats = |o: &OutletId| graph.outlet_fact(*o).is_ok_and(|fact| fact.datum_type.is_float());
    let long = graph.inputs.iter().all(floats) && free.iter().any(|s| !s.leads);
    let sizes: Vec<(i64, i64)> = match free.iter().any(|s| !s.leads) {
        true => {
            let usual = SIZES.into_iter().filter(|(size, _)| long || *size < LONG);
            usual.chain(widths(prepared).into_iter().map(|width| (width, SIZES[0].1))).collect()
        }
        false => vec![SIZES[0]],
    };
    // A mask over the past and the new tokens is as long as both.
    let named = |slot: &usize, part: &str| {
        prepared.inputs.get(*slot).is_some_and(|input| input.name.contains(part))
    };
    let has_past = (0..prepared.inputs.len()).any(|slot| named(&slot, "past"));
    let total = |s: &FreeSymbol| has_past && s.inputs.iter().all(|slot| named(slot, "mask"));
    let dims = |batch: i64, size: i64, multiple: i64| -> Vec<(String, i64)> {
        let value = |s: &FreeSymbol| match (s.leads, s.plain) {
            (true, _) => batch,
            (_, true) if total(s) => 2 * size,
            (_, true) => size,
            (_, false) => multiple,
        };
        free.iter().map(|s| (s.name.clone(), value(s))).collect()
    };
    // What stands first need not be a batch: steps of time, of which a window takes several.
    let leading = |size: i64| match free.iter().any(|s| s.leads) {
        true => vec![(1, BATCH), (size, size + BATCH)],
        false => vec![(1, 1)],
    };
    let ways = Filling::ALL.into_iter().flat_map(|filling| {
        let of_size = move |(size, second): (i64, i64)| {
            leading(size).into_iter().map(move |lead| (filling, size, second, lead))
        };
        sizes.iter().copied().flat_map(of_size).collect::<Vec<_>>()
    });
    let mut first = None;
    let works = |(filling, size, _, (lead, _)): &(Filling, i64, i64, (i64, i64))| match run(
        graph,
        prepared,
        &dims(*lead, *size, 1),
        *filling,
    ) {
        Ok(()) => true,
        Err(e) => {
            first.get_or_insert(e);
            false
        }
    };
    let most = (MAX_TRIED_NODES / graph.nodes.len().max(1)).clamp(WAYS.0, WAYS.1);
    let mut ways = ways.into_iter().take(most);
    let Some((filling, size, second, (lead, more))) = ways.find(works) else {
        let none = || Error::unsupported("no made-up inputs");
        return Ok(Tried::Never(first.unwrap_or_else(none)));
    };
    let runs = Runs { dims: dims(lead, size, 1), filling };
    if graph.nodes.len() > MAX_NODES {
        return Ok(Tried::Runs(runs));
    }
    if more != lead {
        let other = run(graph, prepared, &dims(more, size, 1), filling);
        or_too_large(other).map_err(|e| e.at(format!("with a batch of {more}")))?;
    }
    // As the file calls it.
    let mut others = free.iter().filter(|s| !s.leads && s.plain);
    let named = others
        .next()
        .filter(|_| others.next().is_none())
        .and_then(|s| prepared.inputs.get(s.place.0).and_then(|input| input.dims.get(s.place.1)));
    let mut last = Ok(());
    if free.iter().any(|s| !s.leads) {
        let others = sizes.iter().flat_map(|(a, b)| [*b, *a]).filter(|s| *s != size);
        for other in std::iter::once(second).chain(others.filter(|s| *s != second)) {
            let run = run(graph, prepared, &dims(lead, other, 2), filling);
            last = or_too_large(run).map_err(|e| match named {
                Some(name) => e.with_only(name, size),
                None => e.at(format!("with sizes of {other}")),
            });
            if last.is_ok() {
                break;
            }
        }
    }
    last.map(|()| Tried::Runs(runs))
}

/// Numbers of features that layers take: what a free dimension may have to be.
fn widths(prepared: &Prepared) -> Vec<i64> {
    let linear = prepared.targets.iter().filter(|t| t.kind == TargetKind::Linear);
    let mut widths: Vec<i64> = linear.map(|t| i64::from(t.in_features)).collect();
    widths.dedup();
    widths.truncate(MAX_WIDTHS);
    widths
}

fn run(
    graph: &TypedModel,
    prepared: &Prepared,
    dims: &[(String, i64)],
    filling: Filling,
) -> Result<()> {
    caught(|| {
        let weights: u64 = prepared.matrices.iter().map(|m| 4 * (m.rows * m.cols) as u64).sum();
        let most = MAX_BYTES.max(TIMES_WEIGHTS * weights);
        let within = |bytes: u64| if bytes > most { Err(too_much(bytes, most)) } else { Ok(()) };
        within(memory::folded(graph, &symbol_values(graph, dims)).map_err(failed)?)?;
        let bound = bind_dims(graph, dims)?;
        within(memory::inputs(&bound))?;
        let inputs = made_up(&bound, prepared, 1, filling)?;
        let plan = optimized(bound).and_then(TypedSimplePlan::new).map_err(failed)?;
        let planned = memory::peak(&plan).map_err(failed)?;
        within(planned)?;
        let mut state = plan.spawn().map_err(failed)?;
        let taken = AtomicU64::new(planned);
        let more: More = Arc::new(move |bytes| {
            let all = taken.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
            if all > most { Err(Halt::TooLarge { bytes: all }) } else { Ok(()) }
        });
        state.turn_state.shared.insert(Watch { more: Some(more), ..Watch::default() });
        run_watched(&mut state, inputs).map(drop).map_err(|e| match Halt::of(&e) {
            Some(Halt::TooLarge { bytes }) => too_much(bytes, most),
            _ => failed(e),
        })
    })
}

fn too_much(bytes: u64, most: u64) -> Error {
    let (bytes, most) = (bytes.div_ceil(1 << 20), most >> 20);
    Error::refused(format!("a run takes {bytes} MiB, at most {most} are taken to try it"))
        .because(Cause::TooLarge)
        .hint("--untried packs it as it is; --dim and --input make its inputs smaller")
}

/// What runs at one size need not be tried at another that takes too much memory.
fn or_too_large(tried: Result<()>) -> Result<()> {
    tried.or_else(|e| if e.cause() == Some(Cause::TooLarge) { Ok(()) } else { Err(e) })
}

fn failed(e: TractError) -> Error {
    tract_error(ErrorKind::Unsupported, &e)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes inputs of some sizes only, as a reshape to numbers does.
    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    struct Picky {
        axis: usize,
        sizes: Vec<usize>,
    }

    impl Op for Picky {
        fn name(&self) -> StaticName {
            "Picky".into()
        }

        op_as_typed_op!();
    }

    impl EvalOp for Picky {
        op_out_of_plan!();

        fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
            let found = inputs[0].shape()[self.axis];
            ensure!(self.sizes.contains(&found), "{found} is not among {:?}", self.sizes);
            Ok(inputs)
        }
    }

    impl TypedOp for Picky {
        fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
            Ok(tvec![inputs[0].without_value()])
        }

        as_op!();
    }

    fn tried(axis: usize, sizes: &[usize]) -> Result<Option<Vec<(String, i64)>>> {
        let mut graph = TypedModel::default();
        let dims = [graph.sym("n").to_dim(), graph.sym("t").to_dim()];
        let x = graph.add_source("x", f32::fact(dims)).unwrap();
        let op = Picky { axis, sizes: sizes.to_vec() };
        let y = graph.wire_node("y", op, &[x]).unwrap();
        graph.select_output_outlets(&y).unwrap();
        let prepared = Prepared {
            model: Default::default(),
            targets: vec![],
            matrices: vec![],
            inputs: vec![],
            outputs: vec![],
            source_hash: String::new(),
            source_bytes: 0,
            opset: 17,
            properties: vec![],
        };
        Ok(match try_out(&graph, &prepared)? {
            Tried::Runs(runs) => Some(runs.dims),
            Tried::Never(_) => None,
        })
    }

    #[test]
    fn each_free_dimension_is_tried_at_two_sizes() {
        let sizes = |n: i64, t: i64| Some(vec![("n".to_string(), n), ("t".to_string(), t)]);
        assert_eq!(tried(0, &[1, 3]).unwrap(), sizes(1, 24));
        assert_eq!(tried(1, &[160, 96]).unwrap(), sizes(1, 96));
        // Steps of time, of which one is too few.
        assert_eq!(tried(0, &[24, 27]).unwrap(), sizes(24, 24));
        assert_eq!(tried(0, &[]).unwrap(), None);
        let e = tried(0, &[1]).err().unwrap();
        assert!(e.message().starts_with("with a batch of 3: "), "{e}");
        let e = tried(1, &[96]).err().unwrap();
        assert!(e.message().contains("is not among [96]"), "{e}");
    }
}
