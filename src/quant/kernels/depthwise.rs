//! The depthwise kernel: for a line of output pixels, the sum over taps, 16 channels at a time.
//!
//! Forward and input gradient are the same sum over other taps, so the caller says which taps each
//! position has. A sum starts from the bias and takes its taps in the order (row, column) whatever
//! the tile.

use super::lanes::{FewLanes, Lanes};

/// One tap along an axis: which kernel position, and which source position it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tap {
    pub(crate) kernel: usize,
    pub(crate) source: usize,
}

/// Positions of a line that have the same kernel taps: `first`, `first + step`, … (`count` of them).
/// The sources of each are those of the one before plus `source_step`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) step: usize,
    pub(crate) source_step: usize,
    pub(crate) taps: Vec<Tap>,
}

/// One line of outputs: `to` is \[width, C\], `from` an image \[H', W', C\], `w` \[kh·kw, C\]; only
/// channels `channels` are computed.
pub(crate) struct Line<'a> {
    pub(crate) to: &'a mut [f32],
    pub(crate) from: &'a [f32],
    pub(crate) from_width: usize,
    pub(crate) w: &'a [f32],
    pub(crate) kernel_width: usize,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) all_channels: usize,
    pub(crate) channels: std::ops::Range<usize>,
    pub(crate) rows: &'a [Tap],
    pub(crate) runs: &'a [Run],
}

/// The line with the lanes `V`.
///
/// # Safety
/// The processor has `V`. Every position of `runs`, every source, every tap and `channels` lie inside
/// `to`, `from` and `w`; a bias has C values.
#[inline(always)]
pub(super) unsafe fn line<V: Lanes>(l: &mut Line<'_>) {
    for run in l.runs {
        let mut i = 0;
        while i < run.count {
            let pixels = match run.count - i {
                8.. if run.source_step == 1 => 8,
                4.. => 4,
                _ => 1,
            };
            // SAFETY: positions i .. i + pixels of the run and all channels are inside.
            unsafe {
                let c = match pixels {
                    1 => l.channels.start,
                    _ => sliding::<V::Few>(l, run, i, pixels),
                };
                for at in (i..i + pixels).step_by(4) {
                    rest::<V>(l, run, at, pixels.min(4), c);
                }
            }
            i += pixels;
        }
    }
}

/// Channels `c` on of 1 or 4 pixels, whatever their taps.
///
/// # Safety
/// As for [`line`]; positions i .. i + pixels are the run's.
#[inline(always)]
unsafe fn rest<V: Lanes>(l: &mut Line<'_>, run: &Run, i: usize, pixels: usize, mut c: usize) {
    while c < l.channels.end {
        let left = l.channels.end - c;
        // SAFETY: the caller's promise; a part tile has fewer than 16 channels.
        c += unsafe {
            match (pixels, left) {
                (4, 32..) if V::ONE_REGISTER => tile::<V, 4, 2>(l, run, i, c, 16),
                (4, 16..) => tile::<V, 4, 1>(l, run, i, c, 16),
                (4, part) => tile::<V, 4, 1>(l, run, i, c, part),
                (_, 64..) => tile::<V, 1, 4>(l, run, i, c, 16),
                (_, 16..) => tile::<V, 1, 1>(l, run, i, c, 16),
                (_, part) => tile::<V, 1, 1>(l, run, i, c, part),
            }
        };
    }
}

/// The channels of 4 or 8 pixels whose taps overlap, as far as they are whole lanes; returns where the
/// rest begins.
///
/// # Safety
/// As for [`rest`].
#[inline(always)]
unsafe fn sliding<V: FewLanes>(l: &mut Line<'_>, run: &Run, i: usize, pixels: usize) -> usize {
    let mut c = l.channels.start;
    let next = |t: &[Tap]| t[0].source + 1 == t[1].source && t[0].kernel + 1 == t[1].kernel;
    if !run.taps.windows(2).all(next) {
        return c;
    }
    macro_rules! tiles {
        ($($pixels:literal $taps:literal $step:literal,)*) => {
            match (pixels, run.taps.len(), run.source_step) {
                $(($pixels, $taps, $step) => while l.channels.end - c >= V::COUNT {
                    // SAFETY: the caller's promise.
                    unsafe { slide::<V, $pixels, $taps, $step>(l, run, i, c) };
                    c += V::COUNT;
                })*
                _ => {}
            }
        };
    }
    tiles!(4 3 1, 8 3 1, 4 5 1, 8 5 1, 4 3 2, 4 5 2,);
    c
}

/// `N` pixels, `S` sources apart, of `K` taps side by side, by a few channels: each source is loaded
/// once for all pixels that it meets, and each weight for all pixels.
///
/// # Safety
/// As for [`line`].
#[inline(always)]
unsafe fn slide<V: FewLanes, const N: usize, const K: usize, const S: usize>(
    l: &mut Line<'_>,
    run: &Run,
    i: usize,
    c: usize,
) {
    let all = l.all_channels;
    // SAFETY: the caller's places are inside.
    unsafe {
        let start = match l.bias {
            Some(bias) => V::load(bias.as_ptr().add(c)),
            None => V::splat(0.0),
        };
        let mut sums = [start; N];
        for row in l.rows {
            let first = row.source * l.from_width + i * S + run.taps[0].source;
            let from = l.from.as_ptr().add(first * all + c);
            let kernel = row.kernel * l.kernel_width + run.taps[0].kernel;
            let w = l.w.as_ptr().add(kernel * all + c);
            let mut weights = [start; K];
            for k in 0..K {
                weights[k] = V::load(w.add(k * all));
            }
            // Written out: the compiler would keep a loop over so many sources, with a branch a tap.
            macro_rules! sources {
                ($($at:literal)*) => {$(
                    if $at < (N - 1) * S + K {
                        let x = V::load(from.add($at * all));
                        for n in 0..N {
                            if n * S <= $at && $at < n * S + K {
                                sums[n] = sums[n].add_product(x, weights[$at - n * S]);
                            }
                        }
                    }
                )*};
            }
            sources!(0 1 2 3 4 5 6 7 8 9 10 11);
        }
        for n in 0..N {
            sums[n].store(l.to.as_mut_ptr().add((run.first + (i + n) * run.step) * all + c));
        }
    }
}

/// `N` pixels by `B` blocks of 16 channels (of `part` channels where that is less); returns the
/// number of channels done.
///
/// # Safety
/// As for [`line`].
#[inline(always)]
unsafe fn tile<V: Lanes, const N: usize, const B: usize>(
    l: &mut Line<'_>,
    run: &Run,
    i: usize,
    c: usize,
    part: usize,
) -> usize {
    let all = l.all_channels;
    // SAFETY: the caller's places are inside.
    unsafe {
        let mut sums = [[V::splat(0.0); B]; N];
        if let Some(bias) = l.bias {
            for b in 0..B {
                let bias = load::<V>(bias.as_ptr().add(c + 16 * b), part);
                for sums in &mut sums {
                    sums[b] = bias;
                }
            }
        }
        for row in l.rows {
            let from =
                l.from.as_ptr().add((row.source * l.from_width + i * run.source_step) * all + c);
            let w = l.w.as_ptr().add(row.kernel * l.kernel_width * all + c);
            for tap in &run.taps {
                let from = from.add(tap.source * all);
                let mut weights = [V::splat(0.0); B];
                for b in 0..B {
                    weights[b] = load::<V>(w.add(tap.kernel * all + 16 * b), part);
                }
                for n in 0..N {
                    for b in 0..B {
                        let x = load::<V>(from.add(n * run.source_step * all + 16 * b), part);
                        sums[n][b] = sums[n][b].add_product(x, weights[b]);
                    }
                }
            }
        }
        for n in 0..N {
            let to = l.to.as_mut_ptr().add((run.first + (i + n) * run.step) * all + c);
            for b in 0..B {
                if part == 16 {
                    sums[n][b].store(to.add(16 * b));
                } else {
                    sums[n][b].store_part(to, part);
                }
            }
        }
    }
    if part == 16 { 16 * B } else { part }
}

/// 16 floats, or the first `part` where that is less.
///
/// # Safety
/// The processor has `V`; `p` is readable for `part` floats.
#[inline(always)]
unsafe fn load<V: Lanes>(p: *const f32, part: usize) -> V {
    // SAFETY: as the caller says.
    unsafe { if part == 16 { V::load(p) } else { V::load_part(p, part) } }
}
