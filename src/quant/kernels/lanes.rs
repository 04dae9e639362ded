//! What a set of vector instructions must offer: sixteen f32 lanes, a panel's rows.

/// Sixteen f32 lanes.
///
/// Every method is unsafe for two reasons: the processor must have the instructions of the
/// implementing type, and a pointer must be readable (writable) for what the method says. None asks
/// for alignment. All are `#[inline(always)]` so that they become single instructions inside a
/// function with the right `target_feature`.
pub(super) trait Lanes: Copy {
    /// Whether the lanes are one register, of 32.
    const ONE_REGISTER: bool = false;

    /// Whether instructions multiply by one lane of a register, so that factors need no load each.
    const BY_LANE: bool = false;

    /// Lanes in one or two registers.
    type Few: FewLanes;

    /// Sixteen 32-bit words, each the four bytes of one row in a group.
    type Words: Copy;

    /// `v` in every lane.
    unsafe fn splat(v: f32) -> Self;
    /// 16 floats from `p`.
    unsafe fn load(p: *const f32) -> Self;
    /// 16 floats to `p`.
    unsafe fn store(self, p: *mut f32);
    /// `n` < 16 floats from `p`, zeros above.
    unsafe fn load_part(p: *const f32, n: usize) -> Self;
    /// The lowest `n` < 16 lanes to `p`.
    unsafe fn store_part(self, p: *mut f32, n: usize);
    /// self + a · b: one rounding where the instructions have it, two in the portable kernels.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// Four times [`Lanes::add_product`] to each of M × P sums, of four floats from each of `x` and four
    /// times 16 floats from each of `w`. Only where [`Lanes::BY_LANE`] says so.
    unsafe fn add_four<const M: usize, const P: usize>(
        _sums: &mut [[Self; P]; M],
        _x: [*const f32; M],
        _w: [*const f32; P],
    ) {
        unreachable!("no products by one lane of a register")
    }
    /// self · b.
    unsafe fn mul(self, b: Self) -> Self;
    /// 16 little-endian f16 from the 32 bytes at `p`.
    unsafe fn load_f16(p: *const u8) -> Self;
    /// 64 bytes from `p`.
    unsafe fn words(p: *const u8) -> Self::Words;
    /// The low (or high) nibbles of every byte, less 8, as signed bytes.
    unsafe fn nibbles(words: Self::Words, high: bool) -> Self::Words;
    /// Signed byte `K` of each word.
    unsafe fn byte<const K: u32>(words: Self::Words) -> Self;
    /// Lane i of vector j to float 16 · i + j of the 256 at `out`.
    unsafe fn store_transposed(v: [Self; 16], out: *mut f32);
}

/// A few f32 lanes, so that the sums of many pixels fit into registers. Unsafe as [`Lanes`] is.
pub(super) trait FewLanes: Copy {
    /// How many.
    const COUNT: usize;

    /// `v` in every lane.
    unsafe fn splat(v: f32) -> Self;
    /// COUNT floats from `p`.
    unsafe fn load(p: *const f32) -> Self;
    /// COUNT floats to `p`.
    unsafe fn store(self, p: *mut f32);
    /// As [`Lanes::add_product`].
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
}

/// The f32 of f16 bits, exact for every value, by integer steps that vectorise.
#[inline(always)]
pub(super) fn f16_bits(bits: u16) -> f32 {
    let bits = u32::from(bits);
    // As a f32 of the same exponent field, then moved from bias 15 to 127; subnormals come out right
    // because the product is exact.
    let value = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(value.to_bits() | special | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use crate::quant::testing::some;

    #[test]
    fn every_f16_widens_exactly() {
        for bits in some(0..=u16::MAX, 97) {
            let (want, got) = (half::f16::from_bits(bits).to_f32(), super::f16_bits(bits));
            assert!(want == got || want.is_nan() && got.is_nan(), "{bits:#x}: {got} for {want}");
        }
    }
}
