//! LSTM, GRU and RNN as graphs: the product with the input over all steps at once, then a loop whose
//! body holds the product with the state and the gates. The batch is the first axis throughout.

mod body;
mod functions;
mod step;
mod wiring;

use super::{FrozenLinear, FrozenWeights};
use crate::import::{Cell, Product, Recurrent};
use body::Body;
use step::{Matrix, Step};
use tract_core::ops::array::{Slice, TypedConcat};
use tract_core::ops::math;
use tract_core::ops::scan::{InputMapping, ScanInfo};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::expandable::{Expansion, expand};
use wiring::Wiring;

/// A recurrent node between its reading and its wiring.
#[derive(Clone, Debug)]
pub(super) struct RecurrentLayer {
    layer: Recurrent,
    /// Set after parsing: builders are plain functions and can't carry it.
    pub weights: Option<FrozenWeights>,
}

pub(super) fn read_recurrent(
    _: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let layer = Recurrent::of(node).map_err(|e| format_err!("{e}"))?;
    let layer = layer.context("no recurrent layer")?;
    Ok((expand(RecurrentLayer { layer, weights: None }), vec![]))
}

/// Places of a node's inputs.
const X: usize = 0;
const W: usize = 1;
const R: usize = 2;
const B: usize = 3;
const LENGTHS: usize = 4;
const H0: usize = 5;
const C0: usize = 6;
const PEEPHOLES: usize = 7;

impl Expansion for RecurrentLayer {
    fn name(&self) -> StaticName {
        "Recurrent".into()
    }

    fn runs_out_of_plan(&self) -> bool {
        false
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.layer.outputs.iter().flatten().count())
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let layer = &self.layer;
        let Some(x) = layer.inputs[X].and_then(|slot| inputs.get(slot)) else {
            bail!("its input is missing");
        };
        for output in outputs {
            s.equals(&output.datum_type, &x.datum_type)?;
        }
        s.given(&x.shape, move |s, shape| {
            ensure!(shape.len() == 3, "expected an input of 3 axes, found {}", shape.len());
            let (directions, hidden) = (layer.reversed.len().to_dim(), layer.hidden.to_dim());
            let [first, second] = [shape[0].clone(), shape[1].clone()];
            let (all, last) = if layer.batch_first {
                let last: TVec<TDim> = tvec!(first.clone(), directions.clone(), hidden.clone());
                (tvec!(first, second, directions, hidden), last)
            } else {
                let last: TVec<TDim> = tvec!(directions.clone(), second.clone(), hidden.clone());
                (tvec!(first, directions, second, hidden), last)
            };
            for (at, slot) in layer.outputs.iter().enumerate() {
                if let Some(slot) = slot {
                    let shape = if at == 0 { &all } else { &last };
                    s.equals(&outputs[*slot].shape, shape.clone())?;
                }
            }
            Ok(())
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let mut w = Wiring { model, prefix: prefix.to_string() };
        let dt = w.fact(inputs[0])?.datum_type;
        let mut found = [None; 8];
        for (input, slot) in found.iter_mut().zip(self.layer.inputs) {
            if let Some(slot) = slot {
                let outlet = *inputs.get(slot).context("an input is missing")?;
                // The ops compute in f32; a half-precision graph keeps its types around them.
                let float = w.fact(outlet)?.datum_type.is_float();
                *input = Some(if float { w.cast(outlet, f32::datum_type())? } else { outlet });
            }
        }
        let mut parts: [TVec<OutletId>; 3] = Default::default();
        for direction in 0..self.layer.reversed.len() {
            w.prefix = match direction {
                0 => prefix.to_string(),
                _ => format!("{prefix}.back"),
            };
            for (part, outlet) in parts.iter_mut().zip(self.direction(&mut w, &found, direction)?) {
                part.push(outlet);
            }
        }
        w.prefix = prefix.to_string();
        let mut outputs: TVec<OutletId> = tvec!();
        for (at, part) in
            parts.iter().enumerate().filter(|(at, _)| self.layer.outputs[*at].is_some())
        {
            let axis = match (at, self.layer.batch_first) {
                (0, true) => 2,
                (0, false) | (_, true) => 1,
                (_, false) => 0,
            };
            let joined = match part.as_slice() {
                [one] => *one,
                several => w.op(&format!("joined.{at}"), TypedConcat::new(axis), several)?,
            };
            outputs.push(w.cast(joined, dt)?);
        }
        Ok(outputs)
    }
}

impl RecurrentLayer {
    /// Y, Y_h and Y_c of one direction, as the file lays them out.
    fn direction(
        &self,
        w: &mut Wiring,
        inputs: &[Option<OutletId>; 8],
        direction: usize,
    ) -> TractResult<TVec<OutletId>> {
        let layer = &self.layer;
        let mut x = inputs[X].context("its input is missing")?;
        if !layer.batch_first {
            x = w.op("batch_first", AxisOp::Move(1, 0), &[x])?;
        }
        let shape = w.fact(x)?.shape.clone();
        let lengths = match inputs[LENGTHS] {
            Some(lengths) => w.steps_within(lengths, &shape[1])?,
            None => None,
        };
        let [from_x, from_h] = self.biases(w, inputs[B], direction)?;
        let product = layer.products.get(direction);
        let rows = match product {
            Some(products) => self.frozen(w, "ih", &products[0], x, from_x)?,
            None => {
                let matrix = w.part(inputs[W].context("W is missing")?, direction)?;
                let all: Vec<usize> = (0..layer.cell.gates()).collect();
                let matrix = self.gates(w, "w", matrix, 0, &all)?;
                w.product("ih", x, matrix, from_x)?
            }
        };
        let mut body = Body::new(w);
        let info = ScanInfo { axis: 1, chunk: if layer.reversed[direction] { -1 } else { 1 } };
        let x = body.scanned(w, "x", rows, info)?;
        let mask = lengths.map(|mask| body.scanned(w, "mask", mask, info)).transpose()?;
        let state = |w: &mut Wiring, slot: usize, name: &str| -> TractResult<OutletId> {
            let Some(first) = inputs[slot] else {
                let shape = [shape[0].clone(), 1.to_dim(), layer.hidden.to_dim()];
                return w.zeros(&format!("{name}.zeros"), &shape);
            };
            let axis = usize::from(layer.batch_first);
            let one = Slice::new(axis, direction, direction + 1);
            let first = w.op(&format!("{name}.direction"), one, &[first])?;
            if layer.batch_first {
                return Ok(first);
            }
            w.op(&format!("{name}.batch_first"), AxisOp::Move(1, 0), &[first])
        };
        let h = state(w, H0, "h0")?;
        let h = body.given(w, "h", h, InputMapping::State)?;
        let c = match layer.cell {
            Cell::Lstm => {
                let c = state(w, C0, "c0")?;
                Some(body.given(w, "c", c, InputMapping::State)?)
            }
            _ => None,
        };
        let bias = from_h.map(|b| body.value(w, "bias_hh", b)).transpose()?;
        let mut matrices = tvec!();
        let free = match product {
            Some(_) => None,
            None => Some(w.part(inputs[R].context("R is missing")?, direction)?),
        };
        for (part, gates) in layer.cell.state_parts().iter().enumerate() {
            matrices.push(match (product, free) {
                (None, Some(matrix)) => {
                    let matrix = self.gates(w, &format!("r{part}"), matrix, 0, gates)?;
                    Matrix::Free(body.value(w, &format!("r{part}"), matrix)?)
                }
                (product, _) => {
                    let frozen = product.and_then(|all| all.get(1 + part));
                    let frozen = frozen.context("a matrix is missing")?;
                    Matrix::Frozen(self.linear(frozen, bias.is_some())?)
                }
            });
        }
        let mut peepholes = tvec!();
        if let Some(all) = inputs[PEEPHOLES] {
            let all = w.part(all, direction)?;
            for gate in 0..3 {
                let name = format!("p{gate}");
                let one = w.gate(&name, all, 0, gate, layer.hidden)?;
                let one = w.op(&format!("{name}.0"), AxisOp::Add(0), &[one])?;
                let one = w.op(&format!("{name}.1"), AxisOp::Add(0), &[one])?;
                peepholes.push(body.value(w, &name, one)?);
            }
        }
        let step =
            Step { layer, functions: &layer.functions[direction], matrices, peepholes, bias };
        let (new_h, new_c) = step.wire(&mut body.wiring(), x, h, c)?;
        let outputs = body.finish(w, [Some((new_h, h)), new_c.zip(c)], mask, info)?;
        let mut found = tvec!();
        for (at, outlet) in outputs.into_iter().enumerate() {
            let name = ["y", "y_h", "y_c"][at];
            found.push(match (at, layer.batch_first) {
                (0, true) => w.op(&format!("{name}.directions"), AxisOp::Add(2), &[outlet])?,
                (0, false) => {
                    let y = w.op(&format!("{name}.time_first"), AxisOp::Move(1, 0), &[outlet])?;
                    w.op(&format!("{name}.directions"), AxisOp::Add(1), &[y])?
                }
                (_, true) => outlet,
                (_, false) => w.op(&format!("{name}.directions"), AxisOp::Move(1, 0), &[outlet])?,
            });
        }
        Ok(found)
    }

    fn linear(&self, product: &Product, has_bias: bool) -> TractResult<FrozenLinear> {
        let weights = self.weights.as_ref().context("a layer without its weights")?;
        FrozenLinear::new(weights, product.weight, Some(product.target), has_bias)
    }

    fn frozen(
        &self,
        w: &mut Wiring,
        name: &str,
        product: &Product,
        x: OutletId,
        bias: Option<OutletId>,
    ) -> TractResult<OutletId> {
        let op = self.linear(product, bias.is_some())?;
        let inputs: TVec<OutletId> = [x].into_iter().chain(bias).collect();
        w.op(name, op, &inputs)
    }

    /// Those gates of a tensor whose axis `axis` holds all, in PyTorch's order.
    fn gates(
        &self,
        w: &mut Wiring,
        name: &str,
        from: OutletId,
        axis: usize,
        gates: &[usize],
    ) -> TractResult<OutletId> {
        let mut parts = tvec!();
        for gate in gates {
            let place = self.layer.cell.order()[*gate];
            parts.push(w.gate(&format!("{name}.{gate}"), from, axis, place, self.layer.hidden)?);
        }
        match parts.as_slice() {
            [one] => Ok(*one),
            several => w.op(&format!("{name}.gates"), TypedConcat::new(axis), several),
        }
    }

    /// What is added to the product with the input, and to that with the state. Both are one where the
    /// reset gate comes before the product.
    fn biases(
        &self,
        w: &mut Wiring,
        biases: Option<OutletId>,
        direction: usize,
    ) -> TractResult<[Option<OutletId>; 2]> {
        let Some(biases) = biases else { return Ok([None; 2]) };
        let both = w.part(biases, direction)?;
        let gates = self.layer.cell.gates();
        let all: Vec<usize> = (0..gates).collect();
        let mut found = tvec!();
        for (part, name) in ["bias_ih", "bias_hh"].into_iter().enumerate() {
            let rows = gates * self.layer.hidden;
            let half = Slice::new(0, part * rows, (part + 1) * rows);
            let half = w.op(name, half, &[both])?;
            found.push(self.gates(w, name, half, 0, &all)?);
        }
        if let Cell::Gru { reset_after: false } = self.layer.cell {
            let sum = w.op("bias", math::add(), &found)?;
            return Ok([Some(sum), None]);
        }
        Ok([Some(found[0]), Some(found[1])])
    }
}
