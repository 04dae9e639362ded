//! The part of a training graph below its first trained layer, ready to run for one row.

use super::cut::{Crossing, Cut, find, keep_above, keep_below};
use super::keep::Row;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::tract_error;
use crate::runtime::{Binding, Engine, Named};
use crate::train::plan::{Setup, floats, forward};
use crate::train::runnable::{Runnable, tensors};
use std::borrow::Borrow;
use tract_core::internal::*;

/// What gives a row's tensors that cross the cut.
pub(in crate::train) struct Below {
    runnable: Runnable,
    pub crossing: Vec<Crossing>,
    /// Frozen layers in it.
    pub layers: usize,
}

fn failed(e: TractError) -> Error {
    tract_error(ErrorKind::Failed, &e)
}

/// The name that the graph has for the number of rows; `None` where that is fixed.
fn rows_symbol(engine: &Engine) -> Result<Option<String>> {
    let graph = engine.graph();
    for input in &graph.inputs {
        match graph.outlet_fact(*input).map_err(failed)?.shape.first() {
            Some(TDim::Sym(symbol)) => return Ok(Some(symbol.to_string())),
            Some(_) => return Ok(None),
            None => {}
        }
    }
    Ok(None)
}

/// `binding` for one row, and how many it is for; the same and 1 where the graph fixes that.
fn one_row(engine: &Engine, binding: &Binding) -> Result<(Binding, usize)> {
    let mut one = binding.clone();
    let symbol = rows_symbol(engine)?;
    let rows = symbol.and_then(|symbol| one.get_mut(&symbol));
    let rows = rows.map(|rows| usize::try_from(std::mem::replace(rows, 1)).unwrap_or(1));
    Ok((one, rows.unwrap_or(1)))
}

impl Below {
    /// Cuts `model`, wired for `binding`, whose loss is made of `outputs`: what crosses becomes its first
    /// inputs. `None`, and the graph stays as it is, where no work lies below or rows can't be told apart.
    ///
    /// # Errors
    /// What building says.
    pub fn split(
        engine: &Engine,
        binding: &Binding,
        setup: &Setup,
        model: &mut TypedModel,
        outputs: &[OutletId],
    ) -> Result<Option<Below>> {
        let inputs = engine.inputs().len();
        let (one, rows) = one_row(engine, binding)?;
        let (alone, _) = forward(engine, &one, setup)?;
        let cut = match find(model, inputs, outputs, &alone, rows) {
            // Of these sizes alone: the run has found where to cut others.
            Err(e) if e.kind() == ErrorKind::Unsupported => None,
            found => found?,
        };
        let Some(cut) = cut else { return Ok(None) };
        keep_above(model, &cut, inputs)?;
        Below::of(engine, alone, cut).map(Some)
    }

    fn of(engine: &Engine, mut model: TypedModel, cut: Cut) -> Result<Below> {
        keep_below(&mut model, &cut, engine.inputs().len())?;
        let runnable = Runnable::of(engine, "graph below the trained layers", model)?;
        Ok(Below { runnable, crossing: cut.crossing, layers: cut.layers })
    }

    /// Bytes of tensors that are alive at once while it runs, at most.
    pub fn peak(&self) -> u64 {
        self.runnable.peak()
    }

    /// Bytes of what is kept of a row.
    pub fn row_bytes(&self) -> u64 {
        let size = |c: &Crossing| (c.shape.iter().product::<usize>() * c.dt.size_of()) as u64;
        self.crossing.iter().map(size).sum()
    }

    /// What crosses of the row that `inputs` give.
    pub fn run(&self, engine: &Engine, inputs: &Named) -> Result<Vec<Tensor>> {
        let outputs = self.runnable.run(engine, tensors(engine, inputs)?)?;
        Ok(outputs.into_iter().map(TValue::into_tensor).collect())
    }

    /// What crosses of several rows, each as [`Below::run`] gave it.
    pub fn gather(&self, rows: &[Row]) -> Result<TVec<TValue>> {
        let gather = |(at, crossing): (usize, &Crossing)| {
            let of_rows = rows.iter().map(|row| row.get(at));
            let of_rows: Option<Vec<&Tensor>> = of_rows.collect();
            let of_rows = of_rows.ok_or_else(|| Error::failed("a row was kept in part"))?;
            let tensor = match of_rows.as_slice() {
                [one] => (*one).clone(),
                several => stack(crossing.axis, several)?,
            };
            Ok(tensor.into_tvalue())
        };
        self.crossing.iter().enumerate().map(gather).collect()
    }

    /// Whether each row of `inputs` gives alone, and twice, what it gives beside the others, but for rounding
    /// (a product of another size may add in another order): `alone` has the inputs of each (without any,
    /// nothing runs and that is so). `None` where no work lies below or it takes more than `memory` bytes,
    /// else that and how many frozen layers do.
    ///
    /// # Errors
    /// As of [`find`]; what building and running say.
    pub fn try_rows(
        engine: &Engine,
        setup: &Setup,
        inputs: &Named,
        alone: &[Named],
        memory: Option<u64>,
    ) -> Result<Option<(bool, usize)>> {
        let binding = engine.binding(&engine.ordered(inputs)?)?;
        let (one, rows) = one_row(engine, &binding)?;
        let (mut many, outputs) = forward(engine, &binding, setup)?;
        let (single, _) = forward(engine, &one, setup)?;
        let count = engine.inputs().len();
        let Some(cut) = find(&many, count, &outputs, &single, rows)? else { return Ok(None) };
        if alone.is_empty() {
            return Ok(Some((true, cut.layers)));
        }
        keep_below(&mut many, &cut, count)?;
        let many = Runnable::of(engine, "graph below the trained layers", many)?;
        if memory.is_some_and(|bytes| many.peak() > bytes) {
            return Ok(None);
        }
        let together = many.run(engine, tensors(engine, inputs)?)?;
        let single = Below::of(engine, single, cut)?;
        let mut found = vec![];
        for inputs in alone {
            let (first, again) = (single.run(engine, inputs)?, single.run(engine, inputs)?);
            if !first.iter().zip(&again).all(|(a, b)| a.as_bytes() == b.as_bytes()) {
                return Ok(Some((false, single.layers)));
            }
            found.push(Row::new(first));
        }
        let apart = single.gather(&found)?;
        let same = together.iter().zip(&apart).all(|(a, b)| alike(a, b));
        Ok(Some((same, single.layers)))
    }
}

/// Greatest |a - b| / |a| of what differs by rounding alone. Rows that share a scale of 8 bits differ by ten
/// times as much.
const ROUNDING: f64 = 3e-4;

fn alike(a: &Tensor, b: &Tensor) -> bool {
    if a.as_bytes() == b.as_bytes() {
        return true;
    }
    let (Ok(a), Ok(b)) = (floats(a), floats(b)) else { return false };
    let square = |(a, b): (&f32, &f32)| (f64::from(a - b).powi(2), f64::from(*a).powi(2));
    let add = |(x, y): (f64, f64), (a, b): (f64, f64)| (x + a, y + b);
    let (apart, whole) = a.iter().zip(b).map(square).fold((0.0, 0.0), add);
    a.len() == b.len() && apart.sqrt() <= ROUNDING * whole.sqrt()
}

fn stack(axis: usize, rows: &[impl Borrow<Tensor>]) -> Result<Tensor> {
    Tensor::stack_tensors(axis, rows).map_err(failed)
}
