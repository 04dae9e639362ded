//! Lanes as plain arrays: for every processor, and what the compiler vectorises with the
//! instructions that the target always has.

use super::lanes::{FewLanes, Lanes, f16_bits};

#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Portable([f32; 16]);

impl Lanes for Portable {
    type Few = [f32; 4];
    type Words = [u32; 16];

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        Portable([v; 16])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's `p` is readable for 16 floats.
        Portable(unsafe { p.cast::<[f32; 16]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller's `p` is writable for 16 floats.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self {
        let mut v = [0.0; 16];
        for (i, v) in v.iter_mut().enumerate().take(n) {
            // SAFETY: the caller's `p` is readable for `n` floats.
            *v = unsafe { p.add(i).read_unaligned() };
        }
        Portable(v)
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        for (i, v) in self.0.iter().enumerate().take(n) {
            // SAFETY: the caller's `p` is writable for `n` floats.
            unsafe { p.add(i).write_unaligned(*v) }
        }
    }

    #[inline(always)]
    unsafe fn add_product(mut self, a: Self, b: Self) -> Self {
        for i in 0..16 {
            self.0[i] += a.0[i] * b.0[i];
        }
        self
    }

    #[inline(always)]
    unsafe fn mul(mut self, b: Self) -> Self {
        for i in 0..16 {
            self.0[i] *= b.0[i];
        }
        self
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        // SAFETY: the caller's `p` is readable for 32 bytes.
        let bits = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        let mut v = [0.0; 16];
        for i in 0..16 {
            v[i] = f16_bits(bits[i]);
        }
        Portable(v)
    }

    #[inline(always)]
    unsafe fn words(p: *const u8) -> Self::Words {
        // SAFETY: the caller's `p` is readable for 64 bytes.
        unsafe { p.cast::<[u32; 16]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn nibbles(mut words: Self::Words, high: bool) -> Self::Words {
        for w in &mut words {
            let n = if high { *w >> 4 } else { *w } & 0x0f0f_0f0f;
            // Four subtractions of 8 at once: the set top bits keep borrows in their own byte.
            *w = ((n | 0x8080_8080) - 0x0808_0808) ^ 0x8080_8080;
        }
        words
    }

    #[inline(always)]
    unsafe fn byte<const K: u32>(words: Self::Words) -> Self {
        let mut v = [0.0; 16];
        for i in 0..16 {
            v[i] = ((words[i] << (24 - 8 * K)) as i32 >> 24) as f32;
        }
        Portable(v)
    }

    #[inline(always)]
    unsafe fn store_transposed(v: [Self; 16], out: *mut f32) {
        // Squares of 4 × 4 go through registers; single lanes through memory would wait for stores.
        for i in (0..16).step_by(4) {
            let [a, b, c, d] = [&v[i].0, &v[i + 1].0, &v[i + 2].0, &v[i + 3].0];
            for j in 0..16 {
                // SAFETY: the caller's `out` is writable for 16 · 16 floats.
                unsafe {
                    let to = out.add(j * 16 + i).cast::<[f32; 4]>();
                    to.write_unaligned([a[j], b[j], c[j], d[j]]);
                }
            }
        }
    }
}

impl FewLanes for [f32; 4] {
    const COUNT: usize = 4;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        [v; 4]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's `p` is readable for 4 floats.
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller's `p` is writable for 4 floats.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(self) }
    }

    #[inline(always)]
    unsafe fn add_product(mut self, a: Self, b: Self) -> Self {
        for i in 0..4 {
            self[i] += a[i] * b[i];
        }
        self
    }
}
