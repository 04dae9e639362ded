//! What rounded inputs cost a product, on every processor alike.

use super::super::PackedRef;
use super::super::layout::block_len;

/// x with errors as large as integer kernels' rounding makes them, and `w` for products in f32, where `w` asks for
/// that. The place gives the error: which way a value is rounded hangs on its last bits, in which processors differ.
pub(super) fn disturbed<'w>(w: PackedRef<'w>, x: &[f32]) -> Option<(PackedRef<'w>, Vec<f32>)> {
    if !w.disturbs_inputs() || w.cols() == 0 {
        return None;
    }
    let mut places = 0u32..;
    let mut disturbed = Vec::with_capacity(x.len());
    for row in x.chunks_exact(w.cols()) {
        for block in row.chunks(block_len(w.scheme())) {
            let step = block.iter().fold(0f32, |a, v| a.max(v.abs())) / 127.0;
            disturbed
                .extend(block.iter().zip(&mut places).map(|(v, place)| v + step * error(place)));
        }
    }
    Some((w.keeping_inputs(), disturbed))
}

/// Evenly spread from -½ to ½, without order (the finalizer of MurmurHash3).
fn error(place: u32) -> f32 {
    let mut h = place.wrapping_add(0x9e37_79b9);
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    // 24 bits, which f32 holds.
    ((h ^ (h >> 16)) >> 8) as f32 / 16_777_216.0 - 0.5
}

#[cfg(test)]
mod tests {
    use super::super::{Job, Kernels, Start};
    use super::*;
    use crate::quant::testing::{noise, on_the_grid};
    use crate::quant::{Packed, Scheme};

    #[test]
    fn inputs_are_disturbed_as_much_as_rounding_would() {
        let (m, rows, cols) = (9, 16, 200);
        let x = noise(m * cols, 2);
        for scheme in [Scheme::Q8, Scheme::Q8Wide, Scheme::Q4] {
            let packed = Packed::pack(scheme, rows, cols, &noise(rows * cols, 1)).unwrap();
            let view = packed.view();
            assert!(
                disturbed(view, &x).is_none() && disturbed(view.keeping_inputs(), &x).is_none()
            );
            let (_, found) = disturbed(view.disturbing_inputs(), &x).unwrap();
            let rounded = on_the_grid(&x, cols, block_len(scheme));
            let square =
                |y: &[f32]| -> f32 { y.iter().zip(&x).map(|(y, x)| (y - x).powi(2)).sum() };
            let ratio = square(&found) / square(&rounded);
            assert!((0.9..1.1).contains(&ratio), "{}: {ratio}", scheme.name());
            for k in Kernels::available() {
                let product = |w, x| {
                    let mut y = vec![0.0; m * rows];
                    k.product(&mut Job { w, x, start: Start::Zero, y: &mut y });
                    y
                };
                let want = product(view.keeping_inputs(), &found);
                assert_eq!(product(view.disturbing_inputs(), &x), want, "{}", k.name);
            }
        }
        let f16 = Packed::pack(Scheme::F16, rows, cols, &noise(rows * cols, 1)).unwrap();
        assert!(disturbed(f16.view().disturbing_inputs(), &x).is_none());
    }
}
