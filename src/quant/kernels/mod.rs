//! Everything in `quant` that needs `unsafe`: aligned bytes and the vector kernels. [`Kernels`] is the
//! table that the layer calls through.

// Loops over lanes and tiles run through several arrays by the same index.
#![allow(clippy::needless_range_loop)]

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod buffer;
mod dense;
mod depthwise;
mod disturbed;
mod finish;
mod float;
mod integer;
#[cfg(target_arch = "aarch64")]
mod integer_neon;
#[cfg(target_arch = "x86_64")]
mod integer_x86;
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod normalize;
mod portable;
mod quantize;

use super::threads::{piece, share, threads_for};
use super::{Activation, Attention, LayerNorm, PackedRef, Scheme};
pub(crate) use attention::Operands;
use attention::Scratch;
pub(crate) use buffer::AlignedBytes;
pub(crate) use dense::Dense;
pub(crate) use depthwise::{Line, Run, Tap};
use float::{Isa, Tile};
pub(crate) use float::{Job, Start};
use integer::Integers;
pub(crate) use integer::{Piece, RANKS};
pub(crate) use quantize::Quantized;

type Product = unsafe fn(&mut Job<'_>);

/// The kernels of one instruction set. A reference to one proves that this processor can run them:
/// only [`Kernels::available`] gives any.
pub(crate) struct Kernels {
    /// What `doctor` and the environment variable call it.
    pub(crate) name: &'static str,
    detected: fn() -> bool,
    products: Product,
    /// For q8, q8-64 and q4: quantizes x block by block, sums in integers.
    pub(super) integers: Option<Integers>,
    transposed: Product,
    line: unsafe fn(&mut Line<'_>),
    finish: unsafe fn(&mut [f32], Option<&[f32]>, Activation),
    attention: unsafe fn(&Attention, &Operands<'_>, &mut Scratch, usize),
    layer_norm: unsafe fn(&LayerNorm<'_>, &[f32], &mut [f32]),
    dense: unsafe fn(&mut Dense<'_>),
}

impl Kernels {
    /// Those that were compiled in, fastest first.
    pub(crate) fn compiled() -> impl Iterator<Item = &'static Kernels> {
        SETS.iter().copied()
    }

    /// Those that this processor can run, fastest first; the portable ones are always there.
    pub(crate) fn available() -> impl Iterator<Item = &'static Kernels> {
        SETS.iter().copied().filter(|k| (k.detected)())
    }

    /// The first of them.
    pub(crate) fn fastest() -> &'static Kernels {
        Kernels::available().next().unwrap_or(&PORTABLE)
    }

    /// y\[M, rows\] = start + x\[M, cols\] · Wᵀ.
    ///
    /// # Panics
    /// If lengths don't belong to one M.
    pub(crate) fn product(&self, job: &mut Job<'_>) {
        check(job, job.w.rows(), job.w.cols());
        if let Some((w, x)) = disturbed::disturbed(job.w, job.x) {
            return self.product(&mut Job { w, x: &x, start: job.start, y: &mut *job.y });
        }
        let run = match &self.integers {
            Some(integers) if self.quantizes(job.w) => integers.product,
            _ => self.products,
        };
        // SAFETY: the processor has the instructions (`self` exists); lengths are checked.
        unsafe { run(job) }
    }

    /// Whether products with `w` quantize their inputs.
    pub(crate) fn quantizes(&self, w: PackedRef<'_>) -> bool {
        self.integers.is_some() && !w.keeps_inputs()
    }

    /// Rows of x, `cols` values each, to the first rows of `to`, which grows if it has fewer.
    ///
    /// # Panics
    /// If these kernels have none for integers, or the blocks of `to` are not those of `cols`.
    pub(crate) fn quantize(&self, x: &[f32], cols: usize, to: &mut Quantized) {
        let rows = x.len().checked_div(cols).unwrap_or(0);
        assert_eq!(to.blocks, cols.div_ceil(to.block), "a row has blocks");
        to.reserve(rows);
        let Some(integers) = &self.integers else {
            unreachable!("'{}' has no integer kernels", self.name)
        };
        // A value takes about as long as sixteen multiply-adds.
        let threads = threads_for(x.len().saturating_mul(16));
        let step = piece(threads, rows);
        let pieces = to.pieces(step).zip(x.chunks((step * cols).max(1)));
        share(
            threads,
            pieces,
            || (),
            |(), (to, x)| {
                // SAFETY: the processor has the instructions.
                unsafe { (integers.quantize)(x, cols, to) }
            },
        );
    }

    /// As [`Kernels::quantize`], of values that are held between 0 and `bound`.
    ///
    /// # Panics
    /// As there.
    pub(crate) fn quantize_bounded(&self, x: &[f32], cols: usize, bound: f32, to: &mut Quantized) {
        assert_eq!(to.blocks, cols.div_ceil(to.block), "a row has blocks");
        to.bound = Some(bound);
        to.reserve(x.len().checked_div(cols).unwrap_or(0));
        match &self.integers {
            // SAFETY: the processor has the instructions.
            Some(integers) if cols > 0 => unsafe { (integers.bounded)(x, cols, bound, to) },
            _ => assert_eq!(cols, 0, "'{}' has no integer kernels", self.name),
        }
    }

    /// y\[M, rows\] = start + the first M rows of x · Wᵀ, plus what is added to the pieces. Rows in no
    /// piece are left as they are.
    ///
    /// # Panics
    /// If these kernels have none for W in integers, or if lengths or blocks don't fit.
    pub(crate) fn product_of(
        &self,
        w: PackedRef<'_>,
        x: &Quantized,
        start: Start<'_>,
        pieces: &[Piece<'_>],
        y: &mut [f32],
    ) {
        let m = y.len().checked_div(w.rows()).unwrap_or(0);
        assert_eq!(y.len(), m * w.rows(), "y has M rows");
        assert!(self.quantizes(w) && x.fits(w), "x has the blocks of W");
        assert!(x.rows() >= m, "x has M rows");
        for piece in pieces {
            assert!(piece.rows.end <= m, "a piece lies inside the rows");
            if let Some((u, b)) = piece.update {
                let ranks = b.cols().next_multiple_of(RANKS);
                assert_eq!(u.len(), piece.rows.len() * ranks, "u has R values a row");
                assert!(b.scheme() == Scheme::F32 && b.rows() == w.rows(), "b is (outputs, R)");
            }
        }
        if let Start::Bias(bias) = start {
            assert_eq!(bias.len(), w.rows(), "a bias has one value an output");
        }
        match &self.integers {
            // SAFETY: the processor has the instructions; lengths are checked.
            Some(integers) => unsafe { (integers.panels)(w, x, start, pieces, y) },
            None => unreachable!("'{}' has no integer kernels", self.name),
        }
    }

    /// y = activation(y + add), value by value.
    ///
    /// # Panics
    /// If `add` has not as many values as y.
    pub(crate) fn finish(&self, y: &mut [f32], add: Option<&[f32]>, activation: Activation) {
        assert!(add.is_none_or(|add| add.len() == y.len()), "as many values to add as there are");
        // SAFETY: the processor has the instructions.
        unsafe { (self.finish)(y, add, activation) }
    }

    /// softmax(scale · q · kᵀ + mask) · v, head by head.
    ///
    /// # Panics
    /// If lengths don't fit the shape, or a mask's strides leave it.
    pub(crate) fn attention(&self, a: &Attention, o: &mut Operands<'_>) {
        let width = a.heads * a.head_dim;
        assert_eq!(o.q.len(), a.batch * a.queries * width, "q is [B, T, H·D]");
        assert!(o.fits(a), "k and v are [B, S, H·D]");
        assert_eq!(o.y_len(), a.batch * a.queries * width, "y is [B, T, H·D]");
        if o.y_len() == 0 {
            return;
        }
        let o = &*o;
        let macs = o.y_len().saturating_mul(a.keys);
        let threads = threads_for(macs.saturating_mul(2));
        let heads = 0..a.batch * a.heads;
        share(
            threads,
            heads,
            || Scratch::new(a, o),
            |scratch, head| {
                // SAFETY: the processor has the instructions; lengths are checked; no other thread has
                // this head, and `o` is borrowed for writing here.
                unsafe { (self.attention)(a, o, scratch, head) }
            },
        );
    }

    /// Each row of x, `norm.width` values, to mean 0 and variance 1, scaled and shifted.
    ///
    /// # Panics
    /// If lengths don't fit.
    pub(crate) fn layer_norm(&self, norm: &LayerNorm<'_>, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "as many values in as out");
        assert!(norm.width > 0 && x.len().is_multiple_of(norm.width), "whole rows");
        assert!([norm.scale, norm.shift].iter().flatten().all(|s| s.len() == norm.width));
        // A value takes about as long as sixteen multiply-adds.
        let threads = threads_for(x.len().saturating_mul(16));
        let step = piece(threads, x.len() / norm.width) * norm.width;
        share(
            threads,
            x.chunks(step).zip(y.chunks_mut(step)),
            || (),
            |(), (x, y)| {
                // SAFETY: the processor has the instructions.
                unsafe { (self.layer_norm)(norm, x, y) }
            },
        );
    }

    /// y\[M, cols\] = start + x\[M, rows\] · W.
    ///
    /// # Panics
    /// If lengths don't belong to one M.
    pub(crate) fn product_transposed(&self, job: &mut Job<'_>) {
        check(job, job.w.cols(), job.w.rows());
        // SAFETY: as in `product`.
        unsafe { (self.transposed)(job) }
    }

    /// y\[M, N\] = start + x\[M, K\] · w\[K, N\] of plain matrices.
    ///
    /// # Panics
    /// If an element lies outside its slice.
    pub(crate) fn dense(&self, job: &mut Dense<'_>) {
        assert!(job.fits(), "the matrices of a product lie inside their slices");
        // SAFETY: the processor has the instructions (`self` exists); the job fits.
        unsafe { (self.dense)(job) }
    }

    /// One line of a depthwise convolution.
    ///
    /// # Panics
    /// If a position, source or tap lies outside.
    pub(crate) fn line(&self, l: &mut Line<'_>) {
        let all = l.all_channels;
        let top = |taps: &[Tap]| {
            let kernel = taps.iter().map(|t| t.kernel).max()?;
            Some((kernel, taps.iter().map(|t| t.source).max()?))
        };
        assert!(l.channels.end <= all && l.bias.is_none_or(|b| b.len() == all));
        for run in l.runs.iter().filter(|r| r.count > 0) {
            let last = run.first + (run.count - 1) * run.step;
            assert!((last + 1) * all <= l.to.len());
            if let (Some(row), Some(col)) = (top(l.rows), top(&run.taps)) {
                let source = col.1 + (run.count - 1) * run.source_step;
                assert!(source < l.from_width && col.0 < l.kernel_width);
                assert!((row.1 * l.from_width + source + 1) * all <= l.from.len());
                assert!((row.0 * l.kernel_width + col.0 + 1) * all <= l.w.len());
            }
        }
        // SAFETY: the processor has the instructions; the largest position, source and tap of every
        // run are inside, and so are the others.
        unsafe { (self.line)(l) }
    }
}

fn check(job: &Job<'_>, outputs: usize, inner: usize) {
    let m = job.y.len().checked_div(outputs).unwrap_or(0);
    assert_eq!(job.y.len(), m * outputs, "y has M rows");
    assert!(outputs == 0 || job.x.len() == m * inner, "x has as many rows as y");
    if let Start::Bias(bias) = job.start {
        assert_eq!(bias.len(), outputs, "a bias has one value an output");
    }
}

/// Defines an instruction set: its [`Isa`] and its [`Kernels`].
macro_rules! kernels {
    (@integers) => { None };
    (@integers $integers:ty) => { Some(Integers::new::<$integers>()) };
    (
        $name:ident, $isa:ident, $label:literal, $lanes:ty, $(features = $features:literal,)?
        $(integers = $integers:ty,)?
        detected = $detected:expr, rows = $rows:literal, panels = $panels:literal,
        tiles = [$($m:literal x $p:literal),*]
    ) => {
        struct $isa;

        impl Isa for $isa {
            const ROWS: usize = $rows;
            const PANELS: usize = $panels;

            unsafe fn tile(rows: usize, panels: usize, t: &Tile) {
                $(#[target_feature(enable = $features)])?
                unsafe fn inner(rows: usize, panels: usize, t: &Tile) {
                    // SAFETY: passed on from the trait's contract, with the features enabled here.
                    unsafe {
                        match (rows, panels) {
                            $(($m, $p) => float::tile::<$lanes, $m, $p, false>(t),)*
                            _ => unreachable!("a tile of {rows} rows and {panels} panels"),
                        }
                    }
                }
                // SAFETY: the trait's contract.
                unsafe { inner(rows, panels, t) }
            }

            unsafe fn tile_of_half(panels: usize, t: &Tile) {
                $(#[target_feature(enable = $features)])?
                unsafe fn inner(panels: usize, t: &Tile) {
                    // SAFETY: passed on from the trait's contract, with the features enabled here.
                    unsafe {
                        match panels {
                            1 => float::tile::<$lanes, 1, 1, true>(t),
                            2 => float::tile::<$lanes, 1, 2, true>(t),
                            _ => float::tile::<$lanes, 1, 4, true>(t),
                        }
                    }
                }
                // SAFETY: the trait's contract.
                unsafe { inner(panels, t) }
            }

            unsafe fn decode(w: PackedRef<'_>, panel: usize, first: usize, len: usize, out: *mut f32) {
                $(#[target_feature(enable = $features)])?
                unsafe fn inner(w: PackedRef<'_>, panel: usize, first: usize, len: usize, out: *mut f32) {
                    // SAFETY: passed on from the trait's contract.
                    unsafe { float::decode::<$lanes>(w, panel, first, len, out) }
                }
                // SAFETY: the trait's contract.
                unsafe { inner(w, panel, first, len, out) }
            }

            unsafe fn decode_transposed(
                w: PackedRef<'_>,
                panel: usize,
                block: usize,
                out: [*mut f32; 2],
            ) {
                $(#[target_feature(enable = $features)])?
                unsafe fn inner(w: PackedRef<'_>, panel: usize, block: usize, out: [*mut f32; 2]) {
                    // SAFETY: passed on from the trait's contract.
                    unsafe { float::decode_transposed::<$lanes>(w, panel, block, out) }
                }
                // SAFETY: the trait's contract.
                unsafe { inner(w, panel, block, out) }
            }
        }

        static $name: Kernels = {
            $(#[target_feature(enable = $features)])?
            unsafe fn line(l: &mut Line<'_>) {
                // SAFETY: passed on from `depthwise::line`'s contract.
                unsafe { depthwise::line::<$lanes>(l) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn finish(y: &mut [f32], add: Option<&[f32]>, activation: Activation) {
                finish::finish(y, add, activation);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn attention(a: &Attention, o: &Operands<'_>, scratch: &mut Scratch, head: usize) {
                // SAFETY: passed on from `attention::head`'s contract.
                unsafe { attention::head::<$isa, $lanes>(a, o, scratch, head) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn layer_norm(norm: &LayerNorm<'_>, x: &[f32], y: &mut [f32]) {
                normalize::layer_norm(norm, x, y);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn dense(job: &mut Dense<'_>) {
                // SAFETY: passed on from `dense::run`'s contract.
                unsafe { dense::run::<$lanes, $rows, $panels>(job) }
            }
            Kernels {
                name: $label,
                detected: $detected,
                products: float::run::<$isa, false>,
                integers: kernels!(@integers $($integers)?),
                transposed: float::run::<$isa, true>,
                line,
                finish,
                attention,
                layer_norm,
                dense,
            }
        };
    };
}

#[cfg(target_arch = "x86_64")]
kernels! {
    AVX512, Avx512Isa, "avx512", avx512::Avx512,
    features = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c",
    integers = integer_x86::Avx2,
    detected = || {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    },
    rows = 8, panels = 2,
    tiles = [
        1 x 1, 2 x 1, 3 x 1, 4 x 1, 5 x 1, 6 x 1, 7 x 1, 8 x 1,
        1 x 2, 2 x 2, 3 x 2, 4 x 2, 5 x 2, 6 x 2, 7 x 2, 8 x 2, 1 x 4
    ]
}

#[cfg(target_arch = "x86_64")]
static AVX512_VNNI: Kernels = Kernels {
    name: "avx512vnni",
    detected: || (AVX512.detected)() && is_x86_feature_detected!("avx512vnni"),
    products: AVX512.products,
    integers: Some(Integers::new::<integer_x86::Avx512Vnni>()),
    transposed: AVX512.transposed,
    line: AVX512.line,
    finish: AVX512.finish,
    attention: AVX512.attention,
    layer_norm: AVX512.layer_norm,
    dense: AVX512.dense,
};

#[cfg(target_arch = "x86_64")]
kernels! {
    AVX2, Avx2Isa, "avx2", avx2::Avx2,
    features = "avx2,fma,f16c",
    integers = integer_x86::Avx2,
    detected = || {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    },
    rows = 6, panels = 1,
    tiles = [1 x 1, 2 x 1, 3 x 1, 4 x 1, 5 x 1, 6 x 1, 1 x 4]
}

#[cfg(target_arch = "aarch64")]
kernels! {
    NEON, NeonIsa, "neon", neon::Neon,
    features = "neon",
    integers = integer_neon::Baseline,
    detected = || std::arch::is_aarch64_feature_detected!("neon"),
    rows = 5, panels = 1,
    tiles = [1 x 1, 2 x 1, 3 x 1, 4 x 1, 5 x 1, 1 x 4]
}

#[cfg(target_arch = "aarch64")]
static NEON_DOTPROD: Kernels = Kernels {
    name: "neon-dotprod",
    detected: || (NEON.detected)() && std::arch::is_aarch64_feature_detected!("dotprod"),
    products: NEON.products,
    integers: Some(Integers::new::<integer_neon::DotProd>()),
    transposed: NEON.transposed,
    line: NEON.line,
    finish: NEON.finish,
    attention: NEON.attention,
    layer_norm: NEON.layer_norm,
    dense: NEON.dense,
};

kernels! {
    PORTABLE, PortableIsa, "portable", portable::Portable,
    detected = || true,
    rows = 2, panels = 1,
    tiles = [1 x 1, 2 x 1, 1 x 4]
}

static SETS: &[&Kernels] = &[
    #[cfg(target_arch = "x86_64")]
    &AVX512_VNNI,
    #[cfg(target_arch = "x86_64")]
    &AVX512,
    #[cfg(target_arch = "x86_64")]
    &AVX2,
    #[cfg(target_arch = "aarch64")]
    &NEON_DOTPROD,
    #[cfg(target_arch = "aarch64")]
    &NEON,
    &PORTABLE,
];
