//! The sliding window of a convolution: kernel, stride, dilation, padding.

use tract_core::internal::*;

use crate::quant::ConvGeometry;

/// How the input of a convolution is padded with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Padding {
    /// Top, left, bottom, right.
    Explicit([usize; 4]),
    /// As many outputs as ceil(input / stride); the odd zero comes after.
    SameUpper,
    /// As many outputs as ceil(input / stride); the odd zero comes before.
    SameLower,
    /// None.
    Valid,
}

/// Kernel, stride, dilation and padding over H and W.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// kh, kw.
    pub kernel: [usize; 2],
    /// Along H, along W.
    pub stride: [usize; 2],
    /// Along H, along W.
    pub dilation: [usize; 2],
    /// Zeros around the input.
    pub padding: Padding,
}

/// Most that a kernel side, stride, dilation or pad may be.
const MAX: usize = 1 << 16;

impl Window {
    /// kh · kw.
    pub fn area(&self) -> usize {
        self.kernel[0].saturating_mul(self.kernel[1])
    }

    /// Whether each output pixel sees one input pixel, the one in its place.
    pub(super) fn is_pointwise(&self) -> bool {
        let unpadded = self.padding != Padding::SameLower && self.padding != Padding::SameUpper;
        let unpadded = unpadded && !matches!(self.padding, Padding::Explicit(p) if p != [0; 4]);
        unpadded && self.kernel == [1, 1] && self.stride == [1, 1]
    }

    /// Fails on sizes of zero and on sizes beyond any real convolution.
    pub fn check(&self) -> TractResult<()> {
        let sides = [self.kernel, self.stride, self.dilation].concat();
        ensure!(
            sides.iter().all(|s| (1..=MAX).contains(s)),
            "kernel {:?}, stride {:?}, dilation {:?}: all must be from 1 to {MAX}",
            self.kernel,
            self.stride,
            self.dilation
        );
        if let Padding::Explicit(pads) = self.padding {
            ensure!(pads.iter().all(|p| *p <= MAX), "pads {pads:?}: all must be at most {MAX}");
        }
        Ok(())
    }

    /// Inputs along `axis` from the first to the last that one output reads.
    pub(crate) fn span(&self, axis: usize) -> usize {
        (self.kernel[axis] - 1) * self.dilation[axis] + 1
    }

    /// Zeros before and after along `axis` for an input of `side`.
    fn pads(&self, axis: usize, side: usize) -> (usize, usize) {
        let same = || {
            let out = side.div_ceil(self.stride[axis]);
            let reach = out.saturating_sub(1) * self.stride[axis] + self.span(axis);
            reach.saturating_sub(side)
        };
        match self.padding {
            Padding::Explicit(p) => (p[axis], p[axis + 2]),
            Padding::Valid => (0, 0),
            Padding::SameUpper => (same() / 2, same().div_ceil(2)),
            Padding::SameLower => (same().div_ceil(2), same() / 2),
        }
    }

    /// The geometry for an input of (batch, height, width, channels).
    pub fn geometry(&self, shape: [usize; 4]) -> TractResult<ConvGeometry> {
        self.check()?;
        let [batch, height, width, channels] = shape;
        let ((top, bottom), (left, right)) = (self.pads(0, height), self.pads(1, width));
        let g = ConvGeometry {
            batch,
            height,
            width,
            channels,
            kernel: self.kernel,
            stride: self.stride,
            dilation: self.dilation,
            pads: [top, left, bottom, right],
        };
        g.check().map_err(|e| format_err!("{e}"))?;
        Ok(g)
    }

    /// Outputs along `axis` (0: H, 1: W) for an input of `side`; fails if the kernel doesn't fit.
    pub fn output_side(&self, axis: usize, side: &TDim) -> TractResult<TDim> {
        self.check()?;
        let stride = self.stride[axis];
        let padding = match self.padding {
            Padding::SameUpper | Padding::SameLower => return Ok(side.clone().divceil(stride)),
            Padding::Valid => 0,
            Padding::Explicit(p) => p[axis] + p[axis + 2],
        };
        let room = side.clone() + padding.to_dim() - self.span(axis).to_dim();
        if let TDim::Val(room) = room {
            ensure!(
                room >= 0,
                "kernel {:?} with dilation {:?} does not fit an input of {side} with padding {:?}",
                self.kernel,
                self.dilation,
                self.padding
            );
        }
        Ok(room / stride + 1)
    }

    /// One line for dumps.
    pub fn describe(&self) -> String {
        let Window { kernel, stride, dilation, padding } = self;
        format!("kernel {kernel:?}, stride {stride:?}, dilation {dilation:?}, {padding:?}")
    }
}

/// The (N, H, W, C) of a tensor's shape.
pub(crate) fn nhwc(shape: &[usize]) -> TractResult<[usize; 4]> {
    shape.try_into().map_err(|_| format_err!("expected axes N, H, W, C, found {shape:?}"))
}

/// The axes of a fact that must be N, H, W, C.
pub(crate) fn nhwc_fact(fact: &TypedFact) -> TractResult<[TDim; 4]> {
    let shape = fact.shape.to_tvec();
    match shape.as_slice() {
        [n, h, w, c] => Ok([n.clone(), h.clone(), w.clone(), c.clone()]),
        _ => bail!("expected axes N, H, W, C, found {shape:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(kernel: usize, stride: usize, dilation: usize, padding: Padding) -> Window {
        Window { kernel: [kernel; 2], stride: [stride; 2], dilation: [dilation; 2], padding }
    }

    #[test]
    fn known_sides_agree_with_the_geometry() {
        let paddings = [
            Padding::Explicit([1, 2, 0, 3]),
            Padding::SameUpper,
            Padding::SameLower,
            Padding::Valid,
        ];
        for padding in paddings {
            for (kernel, stride, dilation) in
                [(1, 1, 1), (3, 1, 1), (3, 2, 1), (5, 3, 1), (3, 2, 2), (2, 4, 1)]
            {
                for side in 5..14 {
                    let w = window(kernel, stride, dilation, padding);
                    let g = w.geometry([1, side, side + 1, 2]).unwrap();
                    let h = w.output_side(0, &side.to_dim()).unwrap();
                    let wide = w.output_side(1, &(side + 1).to_dim()).unwrap();
                    assert_eq!(
                        (h, wide),
                        (g.out_height().to_dim(), g.out_width().to_dim()),
                        "{w:?} {side}"
                    );
                }
            }
        }
    }

    #[test]
    fn same_padding_puts_the_odd_zero_where_onnx_does() {
        let g = |p| window(3, 2, 1, p).geometry([1, 8, 8, 1]).unwrap().pads;
        assert_eq!(g(Padding::SameUpper), [0, 0, 1, 1]);
        assert_eq!(g(Padding::SameLower), [1, 1, 0, 0]);
    }

    #[test]
    fn a_free_side_stays_an_expression() {
        let scope = SymbolScope::default();
        let h = scope.sym("h").to_dim();
        let w = window(3, 2, 1, Padding::Explicit([1; 4]));
        let out = w.output_side(0, &h).unwrap();
        let values = SymbolValues::default().with(&scope.sym("h"), 9);
        assert_eq!(out.eval(&values).to_i64().unwrap(), 5);
    }

    #[test]
    fn kernels_that_do_not_fit_and_absurd_sizes_are_refused() {
        assert!(window(5, 1, 1, Padding::Valid).output_side(0, &4.to_dim()).is_err());
        assert!(window(5, 1, 1, Padding::Valid).geometry([1, 4, 4, 1]).is_err());
        assert!(window(0, 1, 1, Padding::Valid).check().is_err());
        assert!(window(3, 0, 1, Padding::Valid).check().is_err());
        assert!(window(3, 1, usize::MAX / 2, Padding::Valid).check().is_err());
        assert!(window(3, 1, 1, Padding::Explicit([usize::MAX, 0, 0, 0])).check().is_err());
    }
}
