//! Depthwise convolution, channels last, one filter a channel.

use super::dispatch::kernels;
use super::kernels::{Kernels, Line, Run, Tap};
use super::threads::{piece, share, threads_for};
use super::{Activation, ConvGeometry};

/// Weights of the channels that go through all pixels together stay in the L1 cache.
const WEIGHTS: usize = 4096;

/// y \[N, OH, OW, C\] = `activation` of what x \[N, H, W, C\], `w` \[kh·kw, C\] and `bias` \[C\] give.
///
/// # Panics
/// If a length does not fit the geometry.
pub fn depthwise(
    g: &ConvGeometry,
    w: &[f32],
    bias: Option<&[f32]>,
    activation: Activation,
    x: &[f32],
    y: &mut [f32],
) {
    depthwise_with(kernels(), g, w, bias, activation, x, y);
}

/// dx \[N, H, W, C\] from dy \[N, OH, OW, C\] and `w` \[kh·kw, C\]: the adjoint of [`depthwise`].
///
/// # Panics
/// If a length does not fit the geometry.
pub fn depthwise_input_gradient(g: &ConvGeometry, w: &[f32], dy: &[f32], dx: &mut [f32]) {
    gradient_with(kernels(), g, w, dy, dx);
}

fn depthwise_with(
    k: &Kernels,
    g: &ConvGeometry,
    w: &[f32],
    bias: Option<&[f32]>,
    activation: Activation,
    x: &[f32],
    y: &mut [f32],
) {
    assert_lengths(g, w, x, y);
    let taps = |axis: usize, o: usize| {
        let tap = |kernel| g.source(axis, o, kernel).map(|source| Tap { kernel, source });
        (0..g.kernel[axis]).filter_map(tap).collect()
    };
    let (rows, runs) = plan([g.out_height(), g.out_width()], 1, taps);
    images(k, g, &rows, &runs, w, bias, activation, x, [g.height, g.width], y);
}

fn gradient_with(k: &Kernels, g: &ConvGeometry, w: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert_lengths(g, w, dx, dy);
    let out = [g.out_height(), g.out_width()];
    // Input position i is met by tap k of output (i + pad - k · dilation) / stride, if that divides.
    let taps = |axis: usize, i: usize| {
        let tap = |kernel: usize| {
            let scaled = (i + g.pads[axis]).checked_sub(kernel * g.dilation[axis])?;
            let source = scaled / g.stride[axis];
            let hit = scaled.is_multiple_of(g.stride[axis]) && source < out[axis];
            hit.then_some(Tap { kernel, source })
        };
        (0..g.kernel[axis]).filter_map(tap).collect()
    };
    let (rows, runs) = plan([g.height, g.width], g.stride[1], taps);
    images(k, g, &rows, &runs, w, None, Activation::Identity, dy, out, dx);
}

/// The taps of every row, and the columns gathered into runs of the same taps; neighbours in a run
/// are `step` apart.
fn plan(
    [height, width]: [usize; 2],
    step: usize,
    taps: impl Fn(usize, usize) -> Vec<Tap>,
) -> (Vec<Vec<Tap>>, Vec<Run>) {
    let rows = (0..height).map(|y| taps(0, y)).collect();
    let mut runs: Vec<Run> = Vec::new();
    for phase in 0..step.min(width) {
        let mut open: Option<Run> = None;
        for x in (phase..width).step_by(step) {
            let taps = taps(1, x);
            if let Some(run) = &mut open {
                let moved = taps
                    .first()
                    .zip(run.taps.first())
                    .map_or(0, |(a, b)| a.source.saturating_sub(b.source));
                let source_step = if run.count == 1 { moved } else { run.source_step };
                let off = source_step * run.count;
                let same =
                    |(a, b): (&Tap, &Tap)| a.kernel == b.kernel && a.source == b.source + off;
                if taps.len() == run.taps.len() && taps.iter().zip(&run.taps).all(same) {
                    (run.source_step, run.count) = (source_step, run.count + 1);
                    continue;
                }
            }
            runs.extend(open.replace(Run { first: x, count: 1, step, source_step: 0, taps }));
        }
        runs.extend(open);
    }
    (rows, runs)
}

/// Every line of every image, a stretch of channels at a time.
#[expect(clippy::too_many_arguments, reason = "two small plans and their operands")]
fn images(
    k: &Kernels,
    g: &ConvGeometry,
    rows: &[Vec<Tap>],
    runs: &[Run],
    w: &[f32],
    bias: Option<&[f32]>,
    activation: Activation,
    from: &[f32],
    [from_height, from_width]: [usize; 2],
    to: &mut [f32],
) {
    let c = g.channels;
    if to.is_empty() {
        return;
    }
    let source = from_height * from_width * c;
    let line = to.len() / (g.batch * rows.len());
    let stretch = (WEIGHTS / (g.kernel[0] * g.kernel[1])).max(1).next_multiple_of(64);
    // In f32, and with two loads each, a multiply-add takes about as long as four of the products'.
    let macs = to.len().saturating_mul(g.kernel[0] * g.kernel[1]);
    let threads = threads_for(macs.saturating_mul(4));
    let step = match threads {
        1 => g.batch * rows.len(),
        _ => piece(threads, g.batch * rows.len()),
    };
    share(
        threads,
        to.chunks_mut(step * line).enumerate(),
        || (),
        |(), (i, to)| {
            for first in (0..c).step_by(stretch) {
                for (i, to) in (i * step..).zip(to.chunks_exact_mut(line)) {
                    let (n, row) = (i / rows.len(), i % rows.len());
                    k.line(&mut Line {
                        to,
                        from: &from[n * source..][..source],
                        from_width,
                        w,
                        kernel_width: g.kernel[1],
                        bias,
                        all_channels: c,
                        channels: first..c.min(first + stretch),
                        rows: &rows[row],
                        runs,
                    });
                    if activation == Activation::Identity {
                        continue;
                    }
                    if stretch >= c {
                        k.finish(to, None, activation);
                        continue;
                    }
                    for pixel in to.chunks_exact_mut(c) {
                        k.finish(&mut pixel[first..c.min(first + stretch)], None, activation);
                    }
                }
            }
        },
    );
}

fn assert_lengths(g: &ConvGeometry, w: &[f32], x: &[f32], y: &[f32]) {
    assert_eq!(x.len(), g.batch * g.height * g.width * g.channels, "N·H·W·C input values");
    assert_eq!(y.len(), g.pixels() * g.channels, "N·OH·OW·C output values");
    assert_eq!(w.len(), g.patch_len(), "kh·kw·C weights");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::conv::tests::{dot, geometries, integers};
    use crate::quant::im2col;
    use crate::quant::testing::some;

    #[test]
    fn depthwise_is_the_sum_over_patches() {
        // With 300 channels the filters of 5 × 5 take more than one stretch of channels.
        let wide = |g: ConvGeometry| ConvGeometry { channels: 300, ..g };
        // Its filters have more taps than one stretch has weights.
        let large = ConvGeometry {
            batch: 1,
            height: 3,
            width: 2,
            channels: 70,
            kernel: [65, 65],
            stride: [1, 1],
            dilation: [1, 1],
            pads: [32; 4],
        };
        for g in some(geometries().into_iter().flat_map(|g| [g, wide(g)]).chain([large]), 5) {
            let c = g.channels;
            let x = integers(g.batch * g.height * g.width * c, 1);
            let (w, bias) = (integers(g.patch_len(), 2), integers(c, 3));
            let mut patches = vec![0.0; g.pixels() * g.patch_len()];
            im2col(&g, &x, 0, g.pixels(), &mut patches);
            let mut want = Vec::new();
            for patch in patches.chunks(g.patch_len()) {
                for k in 0..c {
                    let taps = patch.chunks(c).zip(w.chunks(c));
                    want.push(bias[k] + taps.map(|(x, w)| x[k] * w[k]).sum::<f32>());
                }
            }
            for k in Kernels::available() {
                let mut y = vec![f32::NAN; want.len()];
                depthwise_with(k, &g, &w, Some(&bias), Activation::Identity, &x, &mut y);
                assert_eq!(y, want, "{} {g:?}", k.name);
                let clamp = Activation::Clamp { low: -3.0, high: 2.0 };
                depthwise_with(k, &g, &w, Some(&bias), clamp, &x, &mut y);
                let want: Vec<f32> = want.iter().map(|v| v.clamp(-3.0, 2.0)).collect();
                assert_eq!(y, want, "{} {g:?}", k.name);
            }
        }
    }

    #[test]
    fn the_input_gradient_is_the_adjoint() {
        for g in some(geometries(), 5) {
            let x = integers(g.batch * g.height * g.width * g.channels, 1);
            let w = integers(g.patch_len(), 2);
            let dy = integers(g.pixels() * g.channels, 3);
            for k in Kernels::available() {
                let (mut y, mut dx) = (vec![f32::NAN; dy.len()], vec![f32::NAN; x.len()]);
                depthwise_with(k, &g, &w, None, Activation::Identity, &x, &mut y);
                gradient_with(k, &g, &w, &dy, &mut dx);
                assert_eq!(dot(&y, &dy), dot(&x, &dx), "{} {g:?}", k.name);
                // Bit by bit against the scatter that the sum means; integers make it exact.
                let mut want = vec![0.0; x.len()];
                let c = g.channels;
                let (oh, ow) = (g.out_height(), g.out_width());
                for (pixel, dy) in dy.chunks(c).enumerate() {
                    let (n, oy, ox) = (pixel / (oh * ow), pixel / ow % oh, pixel % ow);
                    for (tap, w) in w.chunks(c).enumerate() {
                        let (ky, kx) = (tap / g.kernel[1], tap % g.kernel[1]);
                        if let (Some(iy), Some(ix)) = (g.source(0, oy, ky), g.source(1, ox, kx)) {
                            let at = ((n * g.height + iy) * g.width + ix) * c;
                            for i in 0..c {
                                want[at + i] += dy[i] * w[i];
                            }
                        }
                    }
                }
                assert_eq!(dx, want, "{} {g:?}", k.name);
            }
        }
    }
}
