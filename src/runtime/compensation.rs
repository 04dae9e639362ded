//! Makes 4-bit weights for the inputs that layers have while texts are read. All texts go through the graph side by
//! side, step by step, so that the inputs of one layer alone are there at a time.

use super::calibrate::Trial;
use super::passages::Reading;
use super::trial::{Runs, SIZES};
use super::walk::Walk;
use crate::error::{ErrorKind, Result};
use crate::graph::{FrozenLinear, tract_error};
use crate::import::{Prepared, tell};
use crate::quant::{InputMoments, Packed};
use std::collections::HashMap;
use tract_core::internal::*;

/// The matrices for which `wanted` says so and which a linear layer reads, packed as q4 for its inputs.
pub(super) fn compensated(
    graph: &TypedModel,
    prepared: &Prepared,
    runs: &Runs,
    reading: &Reading,
    wanted: impl Fn(usize) -> bool,
) -> Result<Vec<(usize, Packed)>> {
    let stretches = reading.of_stretches();
    let with = |dims: &[(String, i64)]| -> Result<Trial> {
        let dims = stretches.without_past(graph, dims)?;
        Trial::of(graph, prepared, &Runs { dims, ..runs.clone() }, &stretches, stretches.count())
    };
    match with(&longer(&runs.dims)).and_then(|trial| made_for(&trial, prepared, &wanted)) {
        Ok(made) => Ok(made),
        Err(_) => made_for(&with(&runs.dims)?, prepared, &wanted),
    }
}

/// The sizes of a longer text: those that a graph is tried with first are short.
fn longer(dims: &[(String, i64)]) -> Vec<(String, i64)> {
    let [(short, _), (long, _), ..] = SIZES;
    let longer = |size: i64| if size == short { long } else { size };
    dims.iter().map(|(name, size)| (name.clone(), longer(*size))).collect()
}

fn made_for(
    trial: &Trial,
    prepared: &Prepared,
    wanted: &impl Fn(usize) -> bool,
) -> Result<Vec<(usize, Packed)>> {
    let failed = |e: TractError| tract_error(ErrorKind::Unsupported, &e);
    let model = trial.plan.model();
    let linear = |node: &usize| model.node(*node).op_as::<FrozenLinear>();
    let order = trial.plan.order_without_consts();
    let layers = order.iter().filter(|n| linear(n).is_some_and(|op| wanted(op.weight))).count();
    let walk = |probe: &TVec<TValue>| Walk::new(&trial.plan, probe.clone()).map_err(failed);
    let mut walks = trial.probes.iter().map(walk).collect::<Result<Vec<Walk>>>()?;
    let mut made: HashMap<usize, Packed> = HashMap::new();
    // Several layers may read the same.
    let mut read: Option<(OutletId, Option<InputMoments>)> = None;
    for (step, node) in order.iter().enumerate() {
        let Some(op) = linear(node).filter(|op| wanted(op.weight)) else { continue };
        if made.contains_key(&op.weight) {
            continue;
        }
        let Some(&input) = model.node(*node).inputs.first() else { continue };
        if read.as_ref().is_none_or(|(outlet, _)| *outlet != input) {
            tell("fitting 4-bit weights to texts", made.len(), layers);
            let mut x = vec![];
            for walk in &mut walks {
                walk.run_to(step).map_err(failed)?;
                if let Some(value) = walk.value(input) {
                    let value = value.try_as_plain_ram().map_err(failed)?;
                    x.extend_from_slice(value.as_slice::<f32>().map_err(failed)?);
                }
            }
            read = Some((input, InputMoments::of(&x, op.in_features)));
        }
        let Some((_, Some(moments))) = &read else { continue };
        let matrix = &prepared.matrices[op.weight];
        let packed = Packed::pack_q4_for(matrix.rows, matrix.cols, &matrix.floats(), moments)?;
        made.insert(op.weight, packed);
    }
    Ok(made.into_iter().collect())
}
