//! Sizes and offsets of the packed layout; the module page of `quant` describes it.

use super::Scheme;

/// Rows of a panel: the lanes of the kernels.
pub const PANEL: usize = 16;
/// Columns that share a scale, of q8 and q4; the kernels' step.
pub const BLOCK: usize = 32;
/// Columns that share a scale of q8-64: two steps.
pub const WIDE: usize = 2 * BLOCK;
/// Consecutive columns of one row that lie side by side.
pub const GROUP: usize = 4;
/// Every panel starts at a multiple of this many bytes, and a matrix must too.
pub(crate) const ALIGN: usize = 64;

/// Bytes of one block's scales: 16 × f16.
pub(crate) const SCALES: usize = PANEL * 2;

/// Columns of a block: those that share a scale. Of f16 and f32, which have none, the kernels' step.
pub(crate) const fn block_len(scheme: Scheme) -> usize {
    match scheme {
        Scheme::Q8Wide => WIDE,
        Scheme::Q8 | Scheme::Q4 | Scheme::F16 | Scheme::F32 => BLOCK,
    }
}

/// Bytes of one block's quants in a panel.
pub(crate) const fn block_bytes(scheme: Scheme) -> usize {
    match scheme {
        Scheme::Q8 => PANEL * BLOCK,
        Scheme::Q8Wide => PANEL * WIDE,
        Scheme::Q4 => PANEL * BLOCK / 2,
        Scheme::F16 => PANEL * BLOCK * 2,
        Scheme::F32 => PANEL * BLOCK * 4,
    }
}

/// Bytes of one panel of `cols` columns; `None` on overflow.
pub(crate) fn panel_len(scheme: Scheme, cols: usize) -> Option<usize> {
    let blocks = cols.div_ceil(block_len(scheme));
    match scheme {
        Scheme::Q8 | Scheme::Q4 | Scheme::Q8Wide => {
            let quants = blocks.checked_mul(block_bytes(scheme))?;
            quants.checked_add(pad(blocks.checked_mul(SCALES)?)?)
        }
        Scheme::F16 => pad(cols.checked_mul(PANEL * 2)?),
        Scheme::F32 => cols.checked_mul(PANEL * 4),
    }
}

/// Bytes of a packed (rows, cols) matrix, a multiple of 64; `None` when it overflows `usize`.
pub fn packed_len(scheme: Scheme, rows: usize, cols: usize) -> Option<usize> {
    let len = panel_len(scheme, cols)?.checked_mul(rows.div_ceil(PANEL))?;
    (len <= isize::MAX as usize).then_some(len)
}

/// Byte of (row, col) among the quants of a q8 or q8-64 panel.
pub(crate) fn q8_at(row: usize, col: usize) -> usize {
    (col / BLOCK) * block_bytes(Scheme::Q8)
        + (col % BLOCK) / GROUP * ALIGN
        + row * GROUP
        + col % GROUP
}

/// Byte of (row, col) among the quants of a q4 panel, and the nibble's shift.
pub(crate) fn q4_at(row: usize, col: usize) -> (usize, u32) {
    let group = (col % BLOCK) / GROUP;
    let at =
        (col / BLOCK) * block_bytes(Scheme::Q4) + group % 4 * ALIGN + row * GROUP + col % GROUP;
    (at, if group < 4 { 0 } else { 4 })
}

/// Byte of a block's scale of `row` in a panel of `blocks` blocks.
pub(crate) fn scale_at(scheme: Scheme, blocks: usize, block: usize, row: usize) -> usize {
    blocks * block_bytes(scheme) + block * SCALES + row * 2
}

fn pad(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_the_documented_layout() {
        assert_eq!(packed_len(Scheme::Q8, 16, 32), Some(512 + 64));
        assert_eq!(packed_len(Scheme::Q8, 17, 65), Some(2 * (3 * 512 + 128)));
        assert_eq!(packed_len(Scheme::Q8Wide, 17, 65), Some(2 * (2 * 1024 + 64)));
        assert_eq!(packed_len(Scheme::Q4, 1, 64), Some(2 * 256 + 64));
        assert_eq!(packed_len(Scheme::F16, 16, 3), Some(128));
        assert_eq!(packed_len(Scheme::F32, 16, 3), Some(192));
        assert_eq!(packed_len(Scheme::F32, 0, 3), Some(0));
        assert_eq!(packed_len(Scheme::F32, usize::MAX, 64), None);
        assert_eq!(packed_len(Scheme::Q8, 16, usize::MAX), None);
    }

    #[test]
    fn every_weight_has_its_own_place() {
        let cols = 70;
        let mut q8 = vec![false; 3 * 512];
        let mut q4 = vec![0u8; 3 * 256];
        for row in 0..PANEL {
            for col in 0..cols {
                assert!(!std::mem::replace(&mut q8[q8_at(row, col)], true));
                let (at, shift) = q4_at(row, col);
                assert_eq!(q4[at] & (1 << shift), 0);
                q4[at] |= 1 << shift;
            }
        }
    }
}
