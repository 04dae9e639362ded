//! The taps of pooling and convolution windows, for up to three spatial axes in either layout.

use tract_core::internal::*;
use tract_core::ops::cnn::{PaddingSpec, PoolSpec};

/// One spatial axis of a window that slides over it.
#[derive(Clone, Copy, Debug)]
struct WindowAxis {
    input: usize,
    output: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    before: usize,
    /// Length of the padded input that the ONNX divisor counts; `usize::MAX` without ceil mode.
    padded: usize,
}

impl WindowAxis {
    /// The place of kernel tap `k` of output `o`, in the padded input.
    fn at(&self, o: usize, k: usize) -> usize {
        o * self.stride + k * self.dilation
    }

    fn tap(&self, o: usize, k: usize) -> Option<usize> {
        self.at(o, k).checked_sub(self.before).filter(|&i| i < self.input)
    }
}

/// A window over an input of known shape.
#[derive(Clone, Debug)]
pub(super) struct Window {
    axes: [WindowAxis; 3],
    /// Samples.
    pub batch: usize,
    /// Spatial places of the input and of the output.
    pub places: [usize; 2],
    channels_last: bool,
}

impl Window {
    /// The window of `spec` over an input of `shape`.
    pub fn new(spec: &PoolSpec, shape: &[usize]) -> TractResult<Window> {
        ensure!(spec.rank() <= 3, "at most three spatial axes, found {}", spec.rank());
        let format = spec.data_format;
        ensure!(shape.len() == spec.rank() + 1 + format.has_n() as usize, "rank of {shape:?}");
        let spatial = &shape[format.h_axis()..][..spec.rank()];
        let unit = WindowAxis {
            input: 1,
            output: 1,
            kernel: 1,
            stride: 1,
            dilation: 1,
            before: 0,
            padded: usize::MAX,
        };
        let mut axes = [unit; 3];
        for (i, padding) in spec.computed_padding(spatial).iter().enumerate() {
            let padded = match &spec.padding {
                PaddingSpec::ExplicitOnnxPool(before, after, true) => {
                    before[i] + spatial[i] + after[i]
                }
                _ => usize::MAX,
            };
            axes[3 - spec.rank() + i] = WindowAxis {
                input: spatial[i],
                output: padding.convoluted,
                kernel: spec.kernel_shape[i],
                stride: spec.stride(i),
                dilation: spec.dilation(i),
                before: padding.pad_before,
                padded,
            };
        }
        let places =
            [axes.iter().map(|a| a.input).product(), axes.iter().map(|a| a.output).product()];
        let channels_last = format.c_is_last();
        Ok(Window { axes, batch: if format.has_n() { shape[0] } else { 1 }, places, channels_last })
    }

    /// Where channel `c` of sample `n` starts in a tensor of `channels` and `places`, and the
    /// elements from one place to the next.
    pub fn plane(&self, n: usize, c: usize, channels: usize, places: usize) -> (usize, usize) {
        let sample = n * channels * places;
        if self.channels_last { (sample + c, channels) } else { (sample + c * places, 1) }
    }

    /// Calls `f(output place, input place, kernel tap)` for every tap inside the input, all taps
    /// of an output place one after the other.
    pub fn taps(&self, mut f: impl FnMut(usize, usize, usize)) {
        let [a, b, c] = self.axes;
        for oa in 0..a.output {
            for ob in 0..b.output {
                for oc in 0..c.output {
                    let out = (oa * b.output + ob) * c.output + oc;
                    for ka in 0..a.kernel {
                        let Some(ia) = a.tap(oa, ka) else { continue };
                        for kb in 0..b.kernel {
                            let Some(ib) = b.tap(ob, kb) else { continue };
                            for kc in 0..c.kernel {
                                let Some(ic) = c.tap(oc, kc) else { continue };
                                let input = (ia * b.input + ib) * c.input + ic;
                                f(out, input, (ka * b.kernel + kb) * c.kernel + kc);
                            }
                        }
                    }
                }
            }
        }
    }

    /// What each output place of an average divides by: the taps inside the input, or, with
    /// `padding_counts`, those inside the padded input.
    pub fn divisors(&self, padding_counts: bool) -> Vec<f32> {
        let count = |axis: &WindowAxis, o: usize| {
            let inside = |&k: &usize| match padding_counts {
                true => axis.at(o, k) < axis.padded,
                false => axis.tap(o, k).is_some(),
            };
            (0..axis.kernel).filter(inside).count()
        };
        let [a, b, c] = &self.axes;
        let mut divisors = Vec::with_capacity(self.places[1]);
        for oa in 0..a.output {
            for ob in 0..b.output {
                for oc in 0..c.output {
                    divisors.push((count(a, oa) * count(b, ob) * count(c, oc)) as f32);
                }
            }
        }
        divisors
    }
}
