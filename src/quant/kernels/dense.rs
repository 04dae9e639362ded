//! Products of plain f32 matrices where they lie, with any strides: what the gradient graph's
//! contractions are made of. Nothing is packed where w's columns lie side by side.
//!
//! As in `float.rs` every output is one chain of additions in the order of the inner index, with the
//! same instruction in every tile shape.

use super::super::layout::PANEL;
use super::lanes::Lanes;
use std::mem::MaybeUninit;

/// y\[M, N\] = (y or 0) + x\[M, K\] · w\[K, N\].
pub(crate) struct Dense<'a> {
    /// M, K, N.
    pub(crate) sizes: [usize; 3],
    pub(crate) x: &'a [f32],
    /// From one m and from one k to the next, in elements.
    pub(crate) x_strides: [usize; 2],
    pub(crate) w: &'a [f32],
    /// From one k and from one n to the next.
    pub(crate) w_strides: [usize; 2],
    pub(crate) y: &'a mut [f32],
    /// From one m and from one n to the next.
    pub(crate) y_strides: [usize; 2],
    /// Whether the sums start from what y holds.
    pub(crate) keep: bool,
}

impl Dense<'_> {
    /// Whether every element lies inside its slice.
    pub(super) fn fits(&self) -> bool {
        let [m, k, n] = self.sizes;
        let inside = |len: usize, [rows, cols]: [usize; 2], strides: [usize; 2]| {
            if rows == 0 || cols == 0 {
                return true;
            }
            let row = (rows - 1).checked_mul(strides[0]);
            let col = (cols - 1).checked_mul(strides[1]);
            row.zip(col).and_then(|(r, c)| r.checked_add(c)).is_some_and(|last| last < len)
        };
        inside(self.x.len(), [m, k], self.x_strides)
            && inside(self.w.len(), [k, n], self.w_strides)
            && inside(self.y.len(), [m, n], self.y_strides)
    }
}

/// Rows of the largest tile.
const MAX_ROWS: usize = 8;
/// Panels of the widest tile.
const MAX_PANELS: usize = 2;
/// Values of k that are gone through at a time: two panels of them are 32 KiB, an L1 cache's worth.
const CHUNK: usize = 256;

#[repr(align(64))]
struct Scratch([MaybeUninit<f32>; CHUNK * MAX_PANELS * PANEL]);

/// The arguments of a tile.
struct Tile {
    len: usize,
    x: *const f32,
    x_strides: [usize; 2],
    w: [*const f32; MAX_PANELS],
    w_stride: usize,
    y: *mut f32,
    y_stride: usize,
    keep: bool,
}

/// Runs `job`, at most `R` rows and `P` panels at a time.
///
/// # Safety
/// The processor has `V`; `job` fits.
#[inline(always)]
pub(super) unsafe fn run<V: Lanes, const R: usize, const P: usize>(job: &mut Dense<'_>) {
    let [m, k, n] = job.sizes;
    if m == 0 || n == 0 {
        return;
    }
    let mut scratch = Scratch([MaybeUninit::uninit(); CHUNK * MAX_PANELS * PANEL]);
    let scratch = scratch.0.as_mut_ptr().cast::<f32>();
    let step = m.div_ceil(m.div_ceil(R));
    let y = job.y.as_mut_ptr();
    let mut first = 0;
    // Once even if there is no k: the sums have a start.
    loop {
        let len = CHUNK.min(k - first);
        let mut column = 0;
        while column < n {
            let width = (P * PANEL).min(n - column);
            let whole = width % PANEL == 0;
            let panels = width.div_ceil(PANEL);
            let in_place = job.w_strides[1] == 1 && whole;
            let mut tile = Tile {
                len,
                x: job.x.as_ptr(),
                x_strides: job.x_strides,
                w: [scratch.cast_const(); MAX_PANELS],
                w_stride: PANEL,
                y,
                y_stride: job.y_strides[0],
                keep: job.keep || first > 0,
            };
            // SAFETY: the job fits, so that k `first .. first + len` of columns `column .. column +
            // width` are inside w; the scratch holds two panels of `CHUNK`.
            unsafe {
                if in_place && len > 0 {
                    let at = job.w.as_ptr().add(first * job.w_strides[0] + column);
                    tile.w = [at, if panels > 1 { at.add(PANEL) } else { at }];
                    tile.w_stride = job.w_strides[0];
                } else if len > 0 {
                    for p in 0..panels {
                        let out = scratch.add(p * CHUNK * PANEL);
                        gather::<V>(job, first, len, column + p * PANEL, out);
                        tile.w[p] = out;
                    }
                }
            }
            let direct = job.y_strides[1] == 1 && whole;
            let mut row = 0;
            while row < m {
                let rows = step.min(m - row);
                // SAFETY: rows `row .. row + rows` of x from `first` on and of y are inside. What
                // does not lie as whole panels in y goes through a buffer of that shape.
                unsafe {
                    if len > 0 {
                        let at = row * job.x_strides[0] + first * job.x_strides[1];
                        tile.x = job.x.as_ptr().add(at);
                    }
                    let to = y.add(row * job.y_strides[0] + column * job.y_strides[1]);
                    if direct {
                        tile.y = to;
                        tiles::<V, R, P>(rows, panels, &tile);
                    } else {
                        let mut buffer = [0f32; MAX_ROWS * MAX_PANELS * PANEL];
                        let line = panels * PANEL;
                        let [down, across] = job.y_strides;
                        if tile.keep {
                            for i in 0..rows {
                                for j in 0..width {
                                    buffer[i * line + j] = *to.add(i * down + j * across);
                                }
                            }
                        }
                        let through = Tile { y: buffer.as_mut_ptr(), y_stride: line, ..tile };
                        tiles::<V, R, P>(rows, panels, &through);
                        for j in 0..width {
                            for i in 0..rows {
                                *to.add(i * down + j * across) = buffer[i * line + j];
                            }
                        }
                    }
                }
                row += rows;
            }
            column += width;
        }
        first += len;
        if first >= k {
            break;
        }
    }
}

/// k `first .. first + len` of columns `column ..` (16, or those that are left; zeros for the rest)
/// to `out` as `[len][16]`.
///
/// # Safety
/// The processor has `V`; those k are inside w, and `out` is writable for `len` times 16 floats.
#[inline(always)]
unsafe fn gather<V: Lanes>(
    job: &Dense<'_>,
    first: usize,
    len: usize,
    column: usize,
    out: *mut f32,
) {
    let width = PANEL.min(job.sizes[2] - column);
    let [down, across] = job.w_strides;
    // SAFETY: the elements read are inside w, as the caller says.
    unsafe {
        let w = job.w.as_ptr().add(first * down + column * across);
        let mut k = 0;
        if across == 1 {
            while k < len {
                let v = match width {
                    PANEL => V::load(w.add(k * down)),
                    _ => V::load_part(w.add(k * down), width),
                };
                v.store(out.add(k * PANEL));
                k += 1;
            }
        } else if down == 1 {
            // Lanes are k here: sixteen columns of sixteen k, transposed.
            while k + PANEL <= len {
                let mut v = [V::splat(0.0); PANEL];
                for (j, v) in v.iter_mut().enumerate().take(width) {
                    *v = V::load(w.add(j * across + k));
                }
                V::store_transposed(v, out.add(k * PANEL));
                k += PANEL;
            }
        }
        while k < len {
            for j in 0..PANEL {
                *out.add(k * PANEL + j) =
                    if j < width { *w.add(k * down + j * across) } else { 0.0 };
            }
            k += 1;
        }
    }
}

/// The tile of this shape.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn tiles<V: Lanes, const R: usize, const P: usize>(rows: usize, panels: usize, t: &Tile) {
    macro_rules! tiles {
        ($($m:literal)*) => {
            match (rows, panels) {
                $(
                    ($m, 1) if $m <= R => tile::<V, $m, 1>(t),
                    ($m, 2) if $m <= R && P == 2 => tile::<V, $m, 2>(t),
                )*
                _ => unreachable!("a tile of {rows} rows and {panels} panels"),
            }
        };
    }
    // SAFETY: passed on.
    unsafe { tiles!(1 2 3 4 5 6 7 8) }
}

/// A tile of `M` rows and `P` panels.
///
/// # Safety
/// The processor has `V`; x, w and y are good for M rows, `len` k and P panels at their strides.
#[inline(always)]
unsafe fn tile<V: Lanes, const M: usize, const P: usize>(t: &Tile) {
    // SAFETY: as the caller says.
    unsafe {
        let mut sums = [[V::splat(0.0); P]; M];
        let mut x = [t.x; M];
        for i in 0..M {
            x[i] = t.x.wrapping_add(i * t.x_strides[0]);
            if t.keep {
                for p in 0..P {
                    sums[i][p] = V::load(t.y.add(i * t.y_stride + p * PANEL));
                }
            }
        }
        let (mut at, mut from) = (0, 0);
        for _ in 0..t.len {
            let mut w = [V::splat(0.0); P];
            for p in 0..P {
                w[p] = V::load(t.w[p].add(from));
            }
            for i in 0..M {
                let x = V::splat(*x[i].add(at));
                for p in 0..P {
                    sums[i][p] = sums[i][p].add_product(x, w[p]);
                }
            }
            at += t.x_strides[1];
            from += t.w_stride;
        }
        for i in 0..M {
            for p in 0..P {
                sums[i][p].store(t.y.add(i * t.y_stride + p * PANEL));
            }
        }
    }
}
