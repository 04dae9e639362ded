//! EinSum: the gradient of an operand is the same formula with the operand's subscripts and the
//! output's swapped.

use tract_core::internal::*;
use tract_core::ops::array::MultiBroadcastTo;
use tract_core::ops::einsum::EinSum;

use super::{InputGradients, Site, Wires};
use crate::error::Result;

pub(super) fn einsum(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let op = site.op::<EinSum>()?;
    if op.q_params.is_some() {
        return Err(site.unsupported("it is quantized"));
    }
    let (inputs, outputs) = op.axes.to_strs();
    let subscripts: Vec<Vec<char>> =
        inputs.iter().chain(&outputs).map(|s| s.chars().collect()).collect();
    if subscripts.iter().any(|s| (1..s.len()).any(|i| s[..i].contains(&s[i]))) {
        return Err(site.unsupported("a subscript occurs twice in one operand"));
    }
    (0..site.node.inputs.len())
        .map(|slot| match site.wants(slot) {
            true => operand(b, site, op, &subscripts, slot).map(Some),
            false => Ok(None),
        })
        .collect()
}

/// A tensor and one letter for each of its axes.
struct Operand {
    tensor: OutletId,
    letters: Vec<char>,
}

/// Gradient of operand `slot`; `subscripts` holds each input's letters, then the output's.
fn operand(
    b: &mut Wires,
    site: &Site,
    op: &EinSum,
    subscripts: &[Vec<char>],
    slot: usize,
) -> Result<OutletId> {
    let inputs = &site.node.inputs;
    let mut lengths: HashMap<char, TDim> = HashMap::new();
    for (input, letters) in inputs.iter().zip(subscripts) {
        for (letter, length) in letters.iter().zip(b.fact(*input)?.shape.iter()) {
            let known = lengths.entry(*letter).or_insert_with(|| length.clone());
            if known.is_one() {
                *known = length.clone();
            }
        }
    }
    let is_broadcast = |letter: &char, length: &TDim| length.is_one() && !lengths[letter].is_one();

    let mut operands =
        vec![Operand { tensor: site.gradient()?, letters: subscripts[inputs.len()].clone() }];
    for (other, input) in inputs.iter().enumerate().filter(|(other, _)| *other != slot) {
        operands.push(Operand { tensor: *input, letters: subscripts[other].clone() });
    }
    // Axes of length 1 that stand for more are dropped, so that equal letters have equal lengths.
    for operand in &mut operands {
        let shape = b.fact(operand.tensor)?.shape.clone();
        for axis in (0..operand.letters.len()).rev() {
            let letter = operand.letters[axis];
            if shape[axis].is_one() && lengths.get(&letter).is_none_or(|l| !l.is_one()) {
                operand.tensor = b.wire(AxisOp::Rm(axis), &[operand.tensor])?;
                operand.letters.remove(axis);
            }
        }
    }
    let shape = b.fact(inputs[slot])?.shape.clone();
    let full = &subscripts[slot];
    let result: Vec<char> = full
        .iter()
        .zip(shape.iter())
        .filter(|(letter, length)| {
            !is_broadcast(letter, length) && operands.iter().any(|o| o.letters.contains(letter))
        })
        .map(|(letter, _)| *letter)
        .collect();
    sum_lonely_axes(b, &mut operands, &result)?;
    let mut gradient = contract(b, site, op, &operands, &result)?;
    // Letters of this operand alone were summed over it: each element gets the same gradient.
    for (axis, letter) in full.iter().enumerate() {
        if !result.contains(letter) {
            gradient = b.wire(AxisOp::Add(axis), &[gradient])?;
        }
    }
    if b.fact(gradient)?.shape != shape {
        gradient = b.wire(MultiBroadcastTo { shape }, &[gradient])?;
    }
    let dt = b.fact(inputs[slot])?.datum_type;
    b.cast(gradient, dt)
}

/// Sums away the axes that only one operand has and the result lacks: tract takes a product only
/// without them.
fn sum_lonely_axes(b: &mut Wires, operands: &mut [Operand], result: &[char]) -> Result<()> {
    for i in 0..operands.len() {
        for axis in (0..operands[i].letters.len()).rev() {
            let letter = operands[i].letters[axis];
            let shared =
                operands.iter().enumerate().any(|(j, o)| j != i && o.letters.contains(&letter));
            if !shared && !result.contains(&letter) {
                let sum = b.sum(operands[i].tensor, &[axis])?;
                operands[i].tensor = b.wire(AxisOp::Rm(axis), &[sum])?;
                operands[i].letters.remove(axis);
            }
        }
    }
    Ok(())
}

fn contract(
    b: &mut Wires,
    site: &Site,
    op: &EinSum,
    operands: &[Operand],
    result: &[char],
) -> Result<OutletId> {
    let letters: Vec<String> = operands.iter().map(|o| o.letters.iter().collect()).collect();
    let tensors: Vec<OutletId> = operands.iter().map(|o| o.tensor).collect();
    let result: String = result.iter().collect();
    let axes = AxesMapping::from_strs(&letters, &[result])
        .map_err(|e| site.unsupported(&format!("{e:#}")))?;
    if let [only] = tensors[..] {
        let moves =
            axes.translate_to_axis_ops().map_err(|e| site.unsupported(&format!("{e:#}")))?;
        return moves.into_iter().try_fold(only, |t, op| b.wire(op, &[t]));
    }
    b.wire(EinSum::new(axes, op.operating_dt), &tensors)
}
