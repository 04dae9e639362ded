//! Attention, a head at a time: k and v are laid out as the f32 tiles read weights (16 keys, or 16
//! features, side by side), then a tile of queries at a time passes through scores, softmax and the
//! sum of values.

use super::super::layout::PANEL;
use super::super::{Attention, Kept, Mask};
use super::finish::{exp, halved};
use super::float::{Isa, MAX_PANELS, MAX_ROWS, Tile};
use super::lanes::Lanes;
use std::marker::PhantomData;

/// What an attention reads and writes.
pub(crate) struct Operands<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    /// In the place of k and v. Rows of q and y are then one head's after the other's.
    kept: Option<&'a Kept>,
    mask: Option<(&'a [f32], [usize; 4])>,
    /// Rows of the mask: what a head has more are the same tokens again.
    tokens: usize,
    y: Heads<'a>,
}

/// y, each head's columns written by one thread. Its pointer is good for `len` values as long as 'a.
struct Heads<'a> {
    values: *mut f32,
    len: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: only [`head`] writes through it, whose callers promise that no two threads have one head.
unsafe impl Sync for Heads<'_> {}

/// What one thread needs for one head after the other.
pub(super) struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(a: &Attention, o: &Operands<'_>) -> Scratch {
        let padded = a.keys.next_multiple_of(PANEL);
        let features = a.head_dim.next_multiple_of(PANEL);
        let laid = usize::from(o.kept.is_none());
        Scratch {
            keys: vec![0.0; laid * padded * a.head_dim],
            values: vec![0.0; laid * features * a.keys],
            scores: vec![0.0; MAX_ROWS * padded],
            sums: vec![0.0; MAX_ROWS * features],
        }
    }
}

impl<'a> Operands<'a> {
    /// # Panics
    /// If the mask's shape doesn't broadcast to the scores', or its values don't fill it.
    pub(crate) fn new(
        a: &Attention,
        q: &'a [f32],
        k: &'a [f32],
        v: &'a [f32],
        mask: Option<Mask<'a>>,
        y: &'a mut [f32],
    ) -> Operands<'a> {
        Operands { k, v, ..Operands::of(a, q, mask, a.queries, y) }
    }

    /// What attends to what is kept: `tokens` queries of each of a group's heads.
    ///
    /// # Panics
    /// As [`Operands::new`]; if the mask is not one for all heads.
    pub(crate) fn kept(
        a: &Attention,
        kept: &'a Kept,
        q: &'a [f32],
        mask: Option<Mask<'a>>,
        tokens: usize,
        y: &'a mut [f32],
    ) -> Operands<'a> {
        assert!(mask.is_none_or(|m| m.shape[1] == 1), "a mask of one head's");
        Operands { kept: Some(kept), ..Operands::of(a, q, mask, tokens, y) }
    }

    fn of(
        a: &Attention,
        q: &'a [f32],
        mask: Option<Mask<'a>>,
        tokens: usize,
        y: &'a mut [f32],
    ) -> Operands<'a> {
        let mask = mask.map(|m| {
            let full = [a.batch, a.heads, tokens, a.keys];
            let fits = m.shape.iter().zip(full).all(|(&m, full)| m == 1 || m == full);
            let count: usize = m.shape.iter().product();
            assert!(fits && m.values.len() == count, "a mask of {:?} for {full:?}", m.shape);
            let mut strides = [0; 4];
            let mut stride = 1;
            for i in (0..4).rev() {
                if m.shape[i] != 1 {
                    strides[i] = stride;
                }
                stride *= m.shape[i];
            }
            (m.values, strides)
        });
        let y = Heads { values: y.as_mut_ptr(), len: y.len(), borrowed: PhantomData };
        Operands { q, k: &[], v: &[], kept: None, mask, tokens, y }
    }

    /// Whether keys and values are as many as `a` says.
    pub(super) fn fits(&self, a: &Attention) -> bool {
        let all = a.batch * a.keys * a.heads * a.head_dim;
        match self.kept {
            Some(kept) => kept.fits(a),
            None => self.k.len() == all && self.v.len() == all,
        }
    }

    /// Values of y.
    pub(super) fn y_len(&self) -> usize {
        self.y.len
    }
}

/// Head `at % H` of batch row `at / H`.
///
/// # Safety
/// The processor has the instructions of `I` and `V`; q, k, v and y have the lengths that `a` says and
/// are not empty; `at` is below B·H, and nobody else reads or writes that head's columns of y; `scratch`
/// was made for `a`.
#[inline(always)]
pub(super) unsafe fn head<I: Isa, V: Lanes>(
    a: &Attention,
    o: &Operands<'_>,
    scratch: &mut Scratch,
    at: usize,
) {
    let (d, width) = (a.head_dim, a.heads * a.head_dim);
    let key_panels = a.keys.div_ceil(PANEL);
    let value_panels = d.div_ceil(PANEL);
    let padded = key_panels * PANEL;
    let Scratch { keys, values, scores, sums } = scratch;
    let step = a.queries.div_ceil(a.queries.div_ceil(I::ROWS));
    let (n, head) = (at / a.heads, at % a.heads);
    // Where its rows begin in q and y, how far apart they are; keys, values and how far apart their panels are.
    let (start, apart, keys, values, room): (_, _, &[f32], &[f32], _) = match o.kept {
        Some(kept) => (at * a.queries * d, d, kept.keys(head), kept.values(head), kept.room()),
        None => {
            let at = n * a.keys * width + head * d;
            // SAFETY: passed on; the buffers have the sizes that these want.
            unsafe { lay_out::<V>(&o.k[at..], width, d, a.keys, keys) }
            for (p, panel) in values.chunks_exact_mut(a.keys * PANEL).enumerate() {
                let lanes = PANEL.min(d - p * PANEL);
                for (s, row) in panel.chunks_exact_mut(PANEL).enumerate() {
                    let from = at + s * width + p * PANEL;
                    row[..lanes].copy_from_slice(&o.v[from..from + lanes]);
                }
            }
            (n * a.queries * width + head * d, width, keys, values, a.keys)
        }
    };
    for first in (0..a.queries).step_by(step) {
        let rows = step.min(a.queries - first);
        let at = start + first * apart;
        // SAFETY: q holds `rows` rows from here on, `scores` rows of padded keys.
        unsafe {
            let x = (o.q[at..].as_ptr(), apart, d);
            tiles::<I>(rows, x, (keys, d), key_panels, (scores.as_mut_ptr(), padded));
        }
        let mut factors = [0f32; MAX_ROWS];
        for (i, row) in scores.chunks_exact_mut(padded).enumerate().take(rows) {
            scale_and_mask(&mut row[..a.keys], a.scale, o.mask, [n, head, (first + i) % o.tokens]);
            row[a.keys..].fill(f32::NEG_INFINITY);
            factors[i] = 1.0 / exponents(row);
        }
        let stride = value_panels * PANEL;
        // SAFETY: as above; `sums` holds rows of padded features.
        unsafe {
            let x = (scores.as_ptr(), padded, a.keys);
            tiles::<I>(rows, x, (values, room), value_panels, (sums.as_mut_ptr(), stride));
        }
        for (i, sums) in sums.chunks_exact(stride).enumerate().take(rows) {
            // SAFETY: d values of row `first + i` and this head, which are inside y and nobody else's.
            let y = unsafe { std::slice::from_raw_parts_mut(o.y.values.add(at + i * apart), d) };
            y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum * factors[i]);
        }
    }
}

/// `keys` rows of `d` values, `stride` apart, to panels of \[d\]\[16 keys\]; keys past the last are
/// left as they are.
///
/// # Safety
/// The processor has `V`; `x` holds the rows.
#[inline(always)]
unsafe fn lay_out<V: Lanes>(x: &[f32], stride: usize, d: usize, keys: usize, out: &mut [f32]) {
    for (p, panel) in out.chunks_exact_mut(PANEL * d).enumerate() {
        let count = PANEL.min(keys - p * PANEL);
        for column in (0..d).step_by(PANEL) {
            let lanes = PANEL.min(d - column);
            // SAFETY: each row has `lanes` values from `column` on; a whole square fits into the panel
            // where lanes is 16, and goes through the stack where not.
            unsafe {
                let mut square = [V::splat(0.0); PANEL];
                for (key, row) in square.iter_mut().enumerate().take(count) {
                    let from = x[(p * PANEL + key) * stride + column..][..lanes].as_ptr();
                    *row = match lanes {
                        PANEL => V::load(from),
                        _ => V::load_part(from, lanes),
                    };
                }
                let to = &mut panel[column * PANEL..][..lanes * PANEL];
                if lanes == PANEL {
                    V::store_transposed(square, to.as_mut_ptr());
                } else {
                    let mut whole = [0f32; PANEL * PANEL];
                    V::store_transposed(square, whole.as_mut_ptr());
                    to.copy_from_slice(&whole[..lanes * PANEL]);
                }
            }
        }
    }
}

/// y\[rows, 16·panels\] = x\[rows, len\] · w\[panels\]\[room, of which len count\]\[16\]; x is (pointer, stride,
/// len), w (values, room), y (pointer, stride).
///
/// # Safety
/// The processor has `I`; the pointers hold as much; `rows` is at most `I::ROWS`.
#[inline(always)]
unsafe fn tiles<I: Isa>(
    rows: usize,
    (x, x_stride, len): (*const f32, usize, usize),
    (w, room): (&[f32], usize),
    panels: usize,
    (y, y_stride): (*mut f32, usize),
) {
    let mut done = 0;
    while done < panels {
        let count = I::PANELS.min(panels - done);
        let mut from = [w.as_ptr(); MAX_PANELS];
        for (i, from) in from.iter_mut().enumerate().take(count) {
            *from = w[(done + i) * room * PANEL..][..len * PANEL].as_ptr();
        }
        // SAFETY: the panels are there, and y has room for them.
        unsafe {
            let tile = Tile {
                len,
                x,
                x_stride,
                w: from,
                start: ZEROS.as_ptr(),
                start_stride: 0,
                y: y.add(done * PANEL),
                y_stride,
            };
            I::tile(rows, count, &tile);
        }
        done += count;
    }
}

static ZEROS: [f32; MAX_PANELS * PANEL] = [0.0; MAX_PANELS * PANEL];

/// row = scale · row + the mask's values at batch row, head and query.
#[inline(always)]
fn scale_and_mask(
    row: &mut [f32],
    scale: f32,
    mask: Option<(&[f32], [usize; 4])>,
    place: [usize; 3],
) {
    let Some((values, strides)) = mask else {
        row.iter_mut().for_each(|v| *v *= scale);
        return;
    };
    let at = place.iter().zip(strides).map(|(i, stride)| i * stride).sum::<usize>();
    if strides[3] == 0 {
        let add = values[at];
        row.iter_mut().for_each(|v| *v = *v * scale + add);
    } else {
        let values = &values[at..][..row.len()];
        row.iter_mut().zip(values).for_each(|(v, add)| *v = *v * scale + add);
    }
}

/// row = e^(row - its largest), for a row of whole panels; gives the sum. Sixteen lanes, then their
/// halves upon each other. -∞ adds less than the sum's last bit.
#[inline(always)]
fn exponents(row: &mut [f32]) -> f32 {
    let mut tops = [f32::NEG_INFINITY; PANEL];
    for chunk in row.chunks_exact(PANEL) {
        for i in 0..PANEL {
            tops[i] = larger(tops[i], chunk[i]);
        }
    }
    let top = halved(tops, larger);
    let mut sums = [0f32; PANEL];
    for chunk in row.chunks_exact_mut(PANEL) {
        for i in 0..PANEL {
            chunk[i] = exp(chunk[i] - top);
            sums[i] += chunk[i];
        }
    }
    halved(sums, |a, b| a + b)
}

/// The larger one; b if either is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}
