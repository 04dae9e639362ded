//! Bytes aligned to 64, as the kernels read them.

/// A zeroed buffer whose length is a multiple of 64 and that starts at a multiple of 64.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct AlignedBytes(Vec<Line>);

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl AlignedBytes {
    /// `len` zero bytes, rounded up to a multiple of 64.
    pub(crate) fn zeroed(len: usize) -> AlignedBytes {
        AlignedBytes(vec![Line([0; 64]); len.div_ceil(64)])
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: as in `bytes_mut`, for a shared borrow.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 64) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.0.len() * 64;
        // SAFETY: a `Line` is 64 plain bytes without padding, so the vector's storage is `len`
        // initialised bytes, borrowed mutably for as long as the result lives.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) }
    }
}
