//! The f32 products: a stretch of the weights is decoded into a small scratch in the order in which
//! the tiles read it, and used for every row of x.
//!
//! Both directions run through one driver. With the weights as (outputs, inner) the tiles want, for
//! 16 outputs at a time, `[inner][16]`. Forward, outputs are the rows of W and that is a decoded
//! panel as it lies (f32 weights are read in place, and f16 for a single row); transposed, outputs are columns, and each block
//! of a panel is transposed while it is decoded.
//!
//! Every output is one chain of additions in the order of the inner index, starting from bias (or
//! zero, or y), with the same instruction in every tile shape: a row's result has the same bits
//! whatever other rows the batch has.

use super::super::layout::{BLOCK, PANEL, SCALES, block_bytes, block_len};
use super::super::{PackedRef, Scheme};
use super::lanes::Lanes;
use std::mem::MaybeUninit;

/// Where a product's sums start.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// From 0.
    Zero,
    /// From one value an output, the same for all rows.
    Bias(&'a [f32]),
    /// From what y holds.
    Keep,
}

/// One product: y\[M, outputs\] from x\[M, inner\].
pub(crate) struct Job<'a> {
    pub(crate) w: PackedRef<'a>,
    pub(crate) x: &'a [f32],
    pub(crate) start: Start<'a>,
    pub(crate) y: &'a mut [f32],
}

/// The arguments of a tile: y\[rows, 16·panels\] = start + x\[rows, len\] · w\[panels\]\[len\]\[16\].
pub(super) struct Tile {
    pub(super) len: usize,
    pub(super) x: *const f32,
    pub(super) x_stride: usize,
    pub(super) w: [*const f32; MAX_PANELS],
    pub(super) start: *const f32,
    pub(super) start_stride: usize,
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
}

/// The compiled pieces of one instruction set.
///
/// # Safety
/// The functions may only be called on a processor that has the instructions.
pub(super) trait Isa {
    /// Rows of the largest tile.
    const ROWS: usize;
    /// Panels of the tiles that have several rows: 1 or 2.
    const PANELS: usize;
    /// A tile of 1..=ROWS rows and 1 or PANELS panels, or of one row and MAX_PANELS panels.
    ///
    /// # Safety
    /// Every pointer is good for what [`Tile`] says.
    unsafe fn tile(rows: usize, panels: usize, tile: &Tile);
    /// A tile of one row and 1, 2 or MAX_PANELS panels whose weights are f16.
    ///
    /// # Safety
    /// Every pointer is good for what [`Tile`] says, those of weights for as many f16 values.
    unsafe fn tile_of_half(panels: usize, tile: &Tile);
    /// [`decode`].
    ///
    /// # Safety
    /// As for [`decode`].
    unsafe fn decode(w: PackedRef<'_>, panel: usize, first: usize, len: usize, out: *mut f32);
    /// [`decode_transposed`].
    ///
    /// # Safety
    /// As for [`decode_transposed`].
    unsafe fn decode_transposed(w: PackedRef<'_>, panel: usize, block: usize, out: [*mut f32; 2]);
}

/// Panels of the tile for a single row.
pub(super) const MAX_PANELS: usize = 4;
/// Rows of the largest tile of any instruction set.
pub(super) const MAX_ROWS: usize = 8;
/// Floats of the scratch: 32 KiB, an L1 cache's worth.
const SCRATCH: usize = 8192;
/// Rows of x that stay in the L2 cache while all panels pass.
const ROW_BLOCK: usize = 256;

#[repr(align(64))]
struct Scratch([MaybeUninit<f32>; SCRATCH]);

/// Runs `job` forward (inner = columns) or, with `T`, transposed (inner = rows).
///
/// # Safety
/// The processor has the instructions of `I`; x and y have M · inner and M · outputs values, and a
/// bias has outputs values.
pub(super) unsafe fn run<I: Isa, const T: bool>(job: &mut Job<'_>) {
    let w = job.w;
    let (outputs, inner) = if T { (w.cols(), w.rows()) } else { (w.rows(), w.cols()) };
    if outputs == 0 || job.y.is_empty() {
        return;
    }
    let m = job.y.len() / outputs;
    // A single row meets each weight once: decoding it to memory would cost more than the product.
    let half = !T && m == 1 && w.scheme() == Scheme::F16;
    debug_assert_eq!(job.x.len(), m * inner);
    let per_pass = if m == 1 { MAX_PANELS } else { 2 };
    let chunk = SCRATCH / (per_pass * PANEL);
    let mut scratch = Scratch([MaybeUninit::uninit(); SCRATCH]);
    let scratch = scratch.0.as_mut_ptr().cast::<f32>();
    let panels = outputs.div_ceil(PANEL);
    for row in (0..m).step_by(ROW_BLOCK) {
        let rows = ROW_BLOCK.min(m - row);
        let mut first = 0;
        // Once even if inner is 0: the sums have a start.
        loop {
            let len = chunk.min(inner - first);
            for panel in (0..panels).step_by(per_pass) {
                let pass = Pass {
                    panel,
                    panels: per_pass.min(panels - panel),
                    first,
                    len,
                    chunk,
                    row,
                    rows,
                    inner,
                    outputs,
                    half,
                };
                // SAFETY: the scratch holds per_pass panels of `chunk` times 16 floats; the pass lies
                // inside the matrix, x and y.
                unsafe {
                    let decoded = fill::<I, T>(w, &pass, scratch);
                    tiles::<I>(job, &pass, decoded);
                }
            }
            first += len;
            if first >= inner {
                break;
            }
        }
    }
}

/// One stretch of weights and the rows of x that it meets.
struct Pass {
    panel: usize,
    panels: usize,
    first: usize,
    len: usize,
    chunk: usize,
    row: usize,
    rows: usize,
    inner: usize,
    outputs: usize,
    /// Whether the tiles read f16 weights in place.
    half: bool,
}

/// Where the pass's weights lie as `[len][16]` for each panel of outputs, decoding what the tiles don't
/// read in place.
///
/// # Safety
/// `scratch` is writable for 2 · ceil(panels / 2) · chunk · 16 floats, and the processor has `I`.
unsafe fn fill<I: Isa, const T: bool>(
    w: PackedRef<'_>,
    pass: &Pass,
    scratch: *mut f32,
) -> [*const f32; MAX_PANELS] {
    let mut decoded = [scratch.cast_const(); MAX_PANELS];
    for (i, decoded) in decoded.iter_mut().enumerate().take(pass.panels) {
        // SAFETY: panel i of the scratch starts there, inside it.
        let out = unsafe { scratch.add(i * pass.chunk * PANEL) };
        *decoded = out;
        if T {
            if i % 2 == 0 {
                // SAFETY: as above, for the panel after it, which the scratch has even if the pass
                // has not.
                let next = unsafe { out.add(pass.chunk * PANEL) };
                for row in (0..pass.len).step_by(PANEL) {
                    // SAFETY: rows first .. first + len lie in panels of W (first and chunk are
                    // multiples of 16), and the block, one for two panels of outputs, in its columns;
                    // 16 · 16 floats fit from `row` on since chunk is a multiple of 16.
                    unsafe {
                        let to = [out.add(row * PANEL), next.add(row * PANEL)];
                        let panel = (pass.first + row) / PANEL;
                        I::decode_transposed(w, panel, (pass.panel + i) / 2, to);
                    }
                }
            }
            continue;
        }
        match w.scheme() {
            Scheme::F32 => {
                *decoded = w.panel(pass.panel + i)[pass.first * PANEL * 4..].as_ptr().cast();
            }
            Scheme::F16 if pass.half => {
                *decoded = w.panel(pass.panel + i)[pass.first * PANEL * 2..].as_ptr().cast();
            }
            Scheme::Q8 | Scheme::Q8Wide | Scheme::Q4 | Scheme::F16 if pass.len > 0 => {
                // SAFETY: first is a multiple of 32 inside the columns, and chunk · 16 floats fit.
                unsafe { I::decode(w, pass.panel + i, pass.first, pass.len, out) }
            }
            Scheme::Q8 | Scheme::Q8Wide | Scheme::Q4 | Scheme::F16 => {}
        }
    }
    decoded
}

/// Runs the pass's tiles.
///
/// # Safety
/// `decoded` comes from [`fill`] for this pass; the processor has `I`.
unsafe fn tiles<I: Isa>(job: &mut Job<'_>, pass: &Pass, decoded: [*const f32; MAX_PANELS]) {
    let step = if pass.rows == 1 { 1 } else { pass.rows.div_ceil(pass.rows.div_ceil(I::ROWS)) };
    let mut done = 0;
    while done < pass.panels {
        let left = pass.panels - done;
        let panels = match left {
            MAX_PANELS.. if pass.rows == 1 => MAX_PANELS,
            _ => left.min(I::PANELS),
        };
        let mut w = decoded;
        w.rotate_left(done);
        let output = (pass.panel + done) * PANEL;
        let lanes = (panels * PANEL).min(pass.outputs - output);
        done += panels;
        for row in (0..pass.rows).step_by(step) {
            let rows = step.min(pass.rows - row);
            let at = (pass.row + row) * pass.outputs + output;
            let x = &job.x[(pass.row + row) * pass.inner + pass.first..];
            let start = match job.start {
                _ if pass.first > 0 => Start::Keep,
                start => start,
            };
            let mut tile = Tile {
                len: pass.len,
                x: x.as_ptr(),
                x_stride: pass.inner,
                w,
                start: ZEROS.0.as_ptr(),
                start_stride: 0,
                y: job.y[at..].as_mut_ptr(),
                y_stride: pass.outputs,
            };
            if lanes == panels * PANEL {
                match start {
                    Start::Zero => {}
                    Start::Bias(bias) => tile.start = bias[output..output + lanes].as_ptr(),
                    Start::Keep => (tile.start, tile.start_stride) = (tile.y, tile.y_stride),
                }
                // SAFETY: x, w and y hold a tile of rows by `lanes` outputs from here on; of half
                // weights there is one row.
                unsafe {
                    if pass.half {
                        I::tile_of_half(panels, &tile)
                    } else {
                        I::tile(rows, panels, &tile)
                    }
                }
                continue;
            }
            // The last outputs fill part of a panel only: through a whole tile on the stack.
            let width = panels * PANEL;
            let mut whole = [0f32; MAX_ROWS * 2 * PANEL];
            for (i, whole) in whole.chunks_exact_mut(width).enumerate().take(rows) {
                let y = at + i * pass.outputs;
                match start {
                    Start::Zero => {}
                    Start::Bias(bias) => whole[..lanes].copy_from_slice(&bias[output..]),
                    Start::Keep => whole[..lanes].copy_from_slice(&job.y[y..y + lanes]),
                }
            }
            (tile.y, tile.y_stride) = (whole.as_mut_ptr(), width);
            (tile.start, tile.start_stride) = (tile.y, width);
            // SAFETY: `whole` holds rows · width values: at most ROWS · 2 panels, or 1 · 4.
            unsafe {
                if pass.half {
                    I::tile_of_half(panels, &tile)
                } else {
                    I::tile(rows, panels, &tile)
                }
            }
            for (i, whole) in whole.chunks_exact(width).enumerate().take(rows) {
                let y = at + i * pass.outputs;
                job.y[y..y + lanes].copy_from_slice(&whole[..lanes]);
            }
        }
    }
}

#[repr(align(64))]
struct Zeros([f32; MAX_PANELS * PANEL]);
static ZEROS: Zeros = Zeros([0.0; MAX_PANELS * PANEL]);

/// A tile of `M` rows and `P` panels; with `HALF` the weights are f16.
///
/// # Safety
/// The processor has `V`; every pointer is good for what [`Tile`] says.
#[inline(always)]
pub(super) unsafe fn tile<V: Lanes, const M: usize, const P: usize, const HALF: bool>(t: &Tile) {
    // SAFETY: the caller's pointers hold M rows of x and y, P panels of `len` times 16 weights, and a
    // start for every output.
    unsafe {
        let mut sums = [[V::splat(0.0); P]; M];
        let mut x = [t.x; M];
        for i in 0..M {
            x[i] = t.x.add(i * t.x_stride);
            for p in 0..P {
                sums[i][p] = V::load(t.start.add(i * t.start_stride + p * PANEL));
            }
        }
        let fours = if V::BY_LANE && !HALF { t.len / 4 * 4 } else { 0 };
        for k in (0..fours).step_by(4) {
            let w = std::array::from_fn(|p| t.w[p].add(k * PANEL));
            V::add_four(&mut sums, x.map(|x| x.add(k)), w);
        }
        for k in fours..t.len {
            let mut w = [V::splat(0.0); P];
            for p in 0..P {
                w[p] = match HALF {
                    true => V::load_f16(t.w[p].cast::<u8>().add(k * PANEL * 2)),
                    false => V::load(t.w[p].add(k * PANEL)),
                };
            }
            for i in 0..M {
                let x = V::splat(*x[i].add(k));
                for p in 0..P {
                    sums[i][p] = sums[i][p].add_product(x, w[p]);
                }
            }
        }
        for i in 0..M {
            for p in 0..P {
                sums[i][p].store(t.y.add(i * t.y_stride + p * PANEL));
            }
        }
    }
}

/// Decodes columns `first .. first + len` of a panel to `[len][16]`; of q8 and q4 whole blocks.
///
/// # Safety
/// The processor has `V`; `first` is a multiple of 32, the columns lie inside the matrix, and `out`
/// is writable for `len` rounded up to 32, times 16 floats.
#[inline(always)]
pub(super) unsafe fn decode<V: Lanes>(
    w: PackedRef<'_>,
    panel: usize,
    first: usize,
    len: usize,
    out: *mut f32,
) {
    let panel = w.panel(panel).as_ptr();
    match w.scheme() {
        Scheme::Q8 | Scheme::Q8Wide => {
            for i in 0..len.div_ceil(BLOCK) {
                // SAFETY: the block and 32 · 16 floats of `out` are there.
                unsafe {
                    let (quants, scale) = quantized::<V>(w, panel, first / BLOCK + i);
                    let out = out.add(i * BLOCK * PANEL);
                    for g in 0..8 {
                        group(V::words(quants.add(64 * g)), scale, out.add(64 * g));
                    }
                }
            }
        }
        Scheme::Q4 => {
            for i in 0..len.div_ceil(BLOCK) {
                // SAFETY: as above.
                unsafe {
                    let (quants, scale) = quantized::<V>(w, panel, first / BLOCK + i);
                    let out = out.add(i * BLOCK * PANEL);
                    for g in 0..4 {
                        let words = V::words(quants.add(64 * g));
                        group(V::nibbles(words, false), scale, out.add(64 * g));
                        group(V::nibbles(words, true), scale, out.add(64 * (g + 4)));
                    }
                }
            }
        }
        Scheme::F16 => {
            for i in 0..len {
                // SAFETY: column first + i has 32 bytes.
                unsafe { V::load_f16(panel.add((first + i) * 32)).store(out.add(i * PANEL)) }
            }
        }
        Scheme::F32 => {
            for i in 0..len {
                // SAFETY: column first + i has 64 bytes.
                unsafe { V::load(panel.add((first + i) * 64).cast()).store(out.add(i * PANEL)) }
            }
        }
    }
}

/// The quants of 32 columns of q8 or q4 in a panel, and the scales of its rows there.
///
/// # Safety
/// The processor has `V`; the columns lie inside the matrix.
#[inline(always)]
unsafe fn quantized<V: Lanes>(w: PackedRef<'_>, panel: *const u8, step: usize) -> (*const u8, V) {
    let (len, size) = (block_len(w.scheme()), block_bytes(w.scheme()));
    let (blocks, steps) = (w.cols().div_ceil(len), len / BLOCK);
    // SAFETY: as the caller says; scales stand behind all quants.
    unsafe {
        let scales = panel.add(blocks * size + step / steps * SCALES);
        (panel.add(step * (size / steps)), V::load_f16(scales))
    }
}

/// Four columns to `[4][16]`.
///
/// # Safety
/// The processor has `V`; `out` is writable for 64 floats.
#[inline(always)]
unsafe fn group<V: Lanes>(words: V::Words, scale: V, out: *mut f32) {
    // SAFETY: as the caller says.
    unsafe {
        let [a, b, c, d]: [V; 4] = scaled(words, scale);
        a.store(out);
        b.store(out.add(PANEL));
        c.store(out.add(2 * PANEL));
        d.store(out.add(3 * PANEL));
    }
}

/// Four columns.
///
/// # Safety
/// The processor has `V`.
#[inline(always)]
unsafe fn scaled<V: Lanes>(words: V::Words, scale: V) -> [V; 4] {
    // SAFETY: as the caller says.
    unsafe {
        [
            V::byte::<0>(words).mul(scale),
            V::byte::<1>(words).mul(scale),
            V::byte::<2>(words).mul(scale),
            V::byte::<3>(words).mul(scale),
        ]
    }
}

/// Decodes one block of 32 columns of a panel, transposed: `out[h]` gets columns 16·h .. 16·h + 16 of
/// the block as `[16 rows][16 columns]`; columns past the matrix are zero.
///
/// # Safety
/// The processor has `V`; panel and block lie inside the matrix; each of `out` is writable for
/// 16 · 16 floats.
#[inline(always)]
pub(super) unsafe fn decode_transposed<V: Lanes>(
    w: PackedRef<'_>,
    panel: usize,
    block: usize,
    out: [*mut f32; 2],
) {
    let panel = w.panel(panel).as_ptr();
    for (half, out) in out.into_iter().enumerate() {
        // SAFETY: the block and its scales are there, and `out` has room for 16 · 16 floats; columns
        // of f16 and f32 are read only inside the matrix.
        unsafe {
            let mut v = [V::splat(0.0); 16];
            let column = block * BLOCK + half * PANEL;
            match w.scheme() {
                Scheme::Q8 | Scheme::Q8Wide => {
                    let (quants, scale) = quantized::<V>(w, panel, block);
                    for g in 0..4 {
                        let words = V::words(quants.add(64 * (4 * half + g)));
                        [v[4 * g], v[4 * g + 1], v[4 * g + 2], v[4 * g + 3]] = scaled(words, scale);
                    }
                }
                Scheme::Q4 => {
                    let (quants, scale) = quantized::<V>(w, panel, block);
                    for g in 0..4 {
                        let words = V::nibbles(V::words(quants.add(64 * g)), half == 1);
                        [v[4 * g], v[4 * g + 1], v[4 * g + 2], v[4 * g + 3]] = scaled(words, scale);
                    }
                }
                Scheme::F16 => {
                    for (i, v) in v.iter_mut().enumerate() {
                        if column + i < w.cols() {
                            *v = V::load_f16(panel.add((column + i) * 32));
                        }
                    }
                }
                Scheme::F32 => {
                    for (i, v) in v.iter_mut().enumerate() {
                        if column + i < w.cols() {
                            *v = V::load(panel.add((column + i) * 64).cast());
                        }
                    }
                }
            }
            V::store_transposed(v, out);
        }
    }
}
