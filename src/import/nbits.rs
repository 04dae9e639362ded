//! MatMulNBits (com.microsoft): 4-bit block-quantized weights as ONNX Runtime writes them.
//!
//! Layout, from ONNX Runtime's contrib-operator documentation: B is (N, k_blocks, block·bits/8)
//! bytes, the low nibble first; scales (N·k_blocks); zero points packed like B or, absent, 8.

use super::tensor::{float_values, int_values};
use super::validate::attribute;
use super::weights::{Constants, MatrixValues};
use crate::error::{Error, Result};
use tract_onnx::pb::NodeProto;

/// The weight as (N, K) floats; `None` if it is not constant or not 4-bit.
pub(super) fn dequantize(
    node: &NodeProto,
    constants: &Constants,
) -> Result<Option<(usize, usize, MatrixValues)>> {
    let int = |name: &str| attribute(node, name).map_or(0, |a| a.i);
    let size = |name: &str| usize::try_from(int(name)).ok().filter(|&v| v > 0 && v < 1 << 24);
    let (Some(k), Some(n), Some(block)) = (size("K"), size("N"), size("block_size")) else {
        return Ok(None);
    };
    let constant = |slot: usize| {
        node.input.get(slot).filter(|n| !n.is_empty()).and_then(|n| constants.tensor(n))
    };
    // Input 4 (g_idx) reorders columns; input 5 is a bias.
    let plain = node.input.iter().skip(4).all(String::is_empty);
    if int("bits") != 4 || block % 2 != 0 || !plain {
        return Ok(None);
    }
    let (Some(bytes), Some(scales)) =
        (constant(1).and_then(int_values), constant(2).and_then(float_values))
    else {
        return Ok(None);
    };
    let blocks = k.div_ceil(block);
    let zero_bytes = blocks.div_ceil(2);
    let zeros = match node.input.get(3).filter(|n| !n.is_empty()) {
        None => None,
        Some(_) => match constant(3).and_then(int_values) {
            Some(zeros) if zeros.len() == n * zero_bytes => Some(zeros),
            _ => return Ok(None),
        },
    };
    if bytes.len() != n * blocks * block / 2 || scales.len() != n * blocks {
        return Err(Error::bad_input(format!(
            "{} weight bytes and {} scales for {n} rows of {k} columns in blocks of {block}",
            bytes.len(),
            scales.len()
        )));
    }
    let nibble = |byte: i64, odd: usize| if odd == 1 { byte >> 4 & 15 } else { byte & 15 };
    let mut values = Vec::with_capacity(n * k);
    for row in 0..n {
        for col in 0..k {
            let b = col / block;
            let zero = zeros.as_ref().map_or(8, |z| nibble(z[row * zero_bytes + b / 2], b % 2));
            let at = (row * blocks + b) * block / 2 + col % block / 2;
            values.push((nibble(bytes[at], col % 2) - zero) as f32 * scales[row * blocks + b]);
        }
    }
    Ok(Some((n, k, MatrixValues::F32(values))))
}
