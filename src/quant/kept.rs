//! Keys and values that stay from one run to the next, laid out as attention reads them: what is new is
//! written behind them, and nothing is moved until there is no more room.

use super::dispatch::kernels;
use super::kernels::Operands;
use super::layout::PANEL;
use super::{Attention, Mask};

/// Keys and values \[H, S, D\] of one layer, with room for more.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    heads: usize,
    head_dim: usize,
    len: usize,
    /// How many there may be before all are moved: a multiple of [`PANEL`].
    room: usize,
    /// For each head panels of 16 keys, \[D\]\[16\].
    keys: Vec<f32>,
    /// For each head panels of 16 features, \[room\]\[16\].
    values: Vec<f32>,
}

impl Kept {
    /// Without any.
    pub fn new(heads: usize, head_dim: usize) -> Kept {
        Kept { heads, head_dim, ..Kept::default() }
    }

    /// S.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Forgets all but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Adds keys and values \[H, T, D\]. Where there is no room it doubles.
    ///
    /// # Panics
    /// If the lengths belong to no T.
    pub fn append(&mut self, keys: &[f32], values: &[f32]) {
        let (d, each) = (self.head_dim, self.heads * self.head_dim);
        assert!(keys.len() == values.len() && keys.len().is_multiple_of(each.max(1)), "[H, T, D]");
        let count = keys.len().checked_div(each).unwrap_or(0);
        self.reserve(self.len + count);
        let room = self.room;
        for at in 0..self.heads * count {
            let (head, place) = (at / count, self.len + at % count);
            let (panel, lane) = (place / PANEL, place % PANEL);
            let to = &mut self.keys[(head * room + panel * PANEL) * d..][..PANEL * d];
            let lanes = to[lane..].iter_mut().step_by(PANEL);
            lanes.zip(&keys[at * d..][..d]).for_each(|(to, key)| *to = *key);
            for (p, part) in values[at * d..][..d].chunks(PANEL).enumerate() {
                let panel = head * d.div_ceil(PANEL) + p;
                self.values[(panel * room + place) * PANEL..][..part.len()].copy_from_slice(part);
            }
        }
        self.len += count;
    }

    fn reserve(&mut self, needed: usize) {
        if needed <= self.room {
            return;
        }
        let (before, room) = (self.room, needed.max(2 * self.room).next_multiple_of(PANEL));
        // Of `count` stretches of `size` values for each place.
        let moved = |old: &mut Vec<f32>, count: usize, size: usize| {
            let mut new = vec![0.0; count * room * size];
            for (to, from) in new.chunks_mut(room * size).zip(old.chunks(before.max(1) * size)) {
                to[..from.len()].copy_from_slice(from);
            }
            *old = new;
        };
        moved(&mut self.keys, self.heads, self.head_dim.max(1));
        moved(&mut self.values, self.heads * self.head_dim.div_ceil(PANEL), PANEL);
        self.room = room;
    }

    pub(super) fn fits(&self, a: &Attention) -> bool {
        (a.batch, a.heads, a.head_dim, a.keys) == (1, self.heads, self.head_dim, self.len)
    }

    /// A head's panels of keys.
    pub(super) fn keys(&self, head: usize) -> &[f32] {
        let all = self.room * self.head_dim;
        &self.keys[head * all..][..all]
    }

    /// A head's panels of values, each with [`Kept::room`] of them.
    pub(super) fn values(&self, head: usize) -> &[f32] {
        let all = self.room * self.head_dim.next_multiple_of(PANEL);
        &self.values[head * all..][..all]
    }

    pub(super) fn room(&self) -> usize {
        self.room
    }
}

/// y = softmax(scale · q · kᵀ + mask) · v with what is kept of k and v: q and y are \[H, G, T, D\], for a group of G
/// heads that read the same keys; the mask broadcasts to \[1, 1, T, S\]. A row has the bits that
/// [`attention`](super::attention()) gives it, whatever else is asked.
///
/// # Panics
/// If lengths don't fit, or the mask's shape doesn't.
pub fn attention_to_kept(
    kept: &Kept,
    scale: f32,
    tokens: usize,
    q: &[f32],
    mask: Option<Mask<'_>>,
    y: &mut [f32],
) {
    let (heads, head_dim, keys) = (kept.heads, kept.head_dim, kept.len);
    let queries = q.len().checked_div(heads * head_dim).unwrap_or(0);
    let a = Attention { batch: 1, heads, queries, keys, head_dim, scale };
    kernels().attention(&a, &mut Operands::kept(&a, kept, q, mask, tokens.max(1), y));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::attention;
    use crate::quant::testing::noise;

    /// \[H, T, D\] to \[T, H·D\].
    fn beside(x: &[f32], heads: usize, d: usize) -> Vec<f32> {
        let tokens = x.len() / (heads * d);
        let at = |i: usize| (i / d % heads * tokens + i / d / heads) * d + i % d;
        (0..x.len()).map(|i| x[at(i)]).collect()
    }

    #[test]
    fn what_was_appended_piece_by_piece_has_the_bits_of_all_at_once() {
        for (heads, group, d, pieces) in [
            (3, 3, 64, &[64, 1, 1, 1, 30, 1, 7][..]),
            (2, 1, 20, &[1, 1, 15, 1, 1]),
            (1, 2, 16, &[5, 40]),
        ] {
            let all: usize = pieces.iter().sum();
            let (k, v) = (noise(heads * all * d, 1), noise(heads * all * d, 2));
            let mut kept = Kept::new(heads, d);
            for count in pieces {
                let from = kept.len();
                let cut = |x: &[f32]| -> Vec<f32> {
                    let heads = x.chunks(all * d);
                    heads.flat_map(|head| head[from * d..][..count * d].to_vec()).collect()
                };
                kept.append(&cut(&k), &cut(&v));
                let (keys, seen) = (kept.len(), |x: &[f32]| -> Vec<f32> {
                    x.chunks(all * d).flat_map(|head| head[..(from + count) * d].to_vec()).collect()
                });
                // The same keys for each head of a group.
                let wide = |x: &[f32]| -> Vec<f32> {
                    x.chunks(keys * d).flat_map(|head| head.repeat(group)).collect()
                };
                let q = noise(heads * group * count * d, 3);
                let mask: Vec<f32> = (0..count * keys)
                    .map(|i| if i % keys > from + i / keys { f32::MIN } else { 0.0 })
                    .collect();
                let mask = Some(Mask { values: &mask, shape: [1, 1, *count, keys] });
                let mut y = vec![f32::NAN; q.len()];
                attention_to_kept(&kept, 0.3, *count, &q, mask, &mut y);
                let h = heads * group;
                let a = Attention {
                    batch: 1,
                    heads: h,
                    queries: *count,
                    keys,
                    head_dim: d,
                    scale: 0.3,
                };
                let mut want = vec![f32::NAN; q.len()];
                let (k, v) = (beside(&wide(&seen(&k)), h, d), beside(&wide(&seen(&v)), h, d));
                attention(&a, &beside(&q, h, d), &k, &v, mask, &mut want);
                assert_eq!(beside(&y, h, d), want, "{heads} {group} {d} {keys}");
            }
            // What comes in the place of what was forgotten is read.
            let before = kept.clone();
            kept.truncate(all - 1);
            let last = |x: &[f32]| -> Vec<f32> {
                x.chunks(all * d).flat_map(|head| head[(all - 1) * d..].to_vec()).collect()
            };
            kept.append(&last(&k), &last(&v));
            assert_eq!((kept.keys, kept.values, kept.len), (before.keys, before.values, all));
        }
    }

    #[test]
    fn the_room_doubles() {
        let mut kept = Kept::new(1, 4);
        let mut moved = 0;
        for _ in 0..1000 {
            let room = kept.room();
            kept.append(&[1.0; 4], &[2.0; 4]);
            moved += usize::from(kept.room() != room);
        }
        assert_eq!((kept.len(), kept.room(), moved), (1000, 1024, 7));
    }
}
