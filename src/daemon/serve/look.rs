//! How a picture looks: what near duplicates have alike, and whether it is worth a person's time.

use crate::shape::Array;

/// Least width and height of a picture that is kept, in pixels.
const LEAST_SIDE: u32 = 16;
/// Least difference of neighbours at the steepest edges, as a share of the spread: below that everything
/// is blurred, as by a lens that is some thirtieth of the width out of focus.
const LEAST_EDGES: f32 = 0.12;
/// The share of neighbours that are the steepest edges: one in so many.
const STEEPEST: usize = 200;
/// Least spread of the values, in the units that the base takes.
const LEAST_SPREAD: f32 = 0.02;

/// A picture's look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// One bit for each of 8 x 8 fields: whether the next one to the right is brighter. Neighbours in
    /// time differ in few of them.
    pub bits: u64,
    /// The standard deviation of the values.
    pub spread: f32,
    /// The difference of neighbours at the steepest edges, as a share of the spread.
    pub edges: f32,
    /// The smaller side of the picture as it came, in pixels.
    pub side: u32,
}

impl Look {
    /// Of a base's input [1, 3, H, W], or [1, H, W, 3], made of a picture whose smaller side is `side`.
    pub fn of(input: &Array, side: u32) -> Option<Look> {
        let values = input.as_f32().ok()?;
        let (height, width, grey): (usize, usize, Vec<f32>) = match *input.shape() {
            [_, 3, h, w] => {
                let plane = h * w;
                let (r, rest) = values.split_at_checked(plane)?;
                let (g, b) = rest.split_at_checked(plane)?;
                (h, w, r.iter().zip(g).zip(b).map(|((r, g), b)| r + g + b).collect())
            }
            [_, h, w, 3] => (h, w, values.chunks_exact(3).map(|p| p.iter().sum()).collect()),
            _ => return None,
        };
        if height < 9 || width < 9 || grey.len() < height * width {
            return None;
        }
        let field = |x: usize, y: usize| {
            let (from, to) = (x * width / 9, (x + 1) * width / 9);
            let rows = y * height / 8..(y + 1) * height / 8;
            let count = (rows.len() * (to - from)).max(1) as f32;
            rows.flat_map(|row| &grey[row * width + from..row * width + to]).sum::<f32>() / count
        };
        let mut bits = 0;
        for y in 0..8 {
            let row: Vec<f32> = (0..9).map(|x| field(x, y)).collect();
            bits = row.windows(2).fold(bits, |bits, two| (bits << 1) | u64::from(two[1] > two[0]));
        }
        let count = (height * width) as f32;
        let mean = grey.iter().take(height * width).sum::<f32>() / count;
        let square = |v: &f32| (v - mean) * (v - mean);
        let spread = (grey.iter().take(height * width).map(square).sum::<f32>() / count).sqrt();
        let steps = grey.chunks(width).take(height).flat_map(|row| row.windows(2));
        let mut steps: Vec<f32> = steps.map(|two| (two[1] - two[0]).abs()).collect();
        let place = steps.len() / STEEPEST;
        let (_, steepest, _) = steps.select_nth_unstable_by(place, |a, b| b.total_cmp(a));
        Some(Look { bits, spread, edges: *steepest / spread.max(f32::MIN_POSITIVE), side })
    }

    /// The bits, of a picture that a person can judge; else why not.
    pub fn usable(&self) -> Result<u64, &'static str> {
        if self.side < LEAST_SIDE {
            return Err("were smaller than 16 pixels");
        }
        if self.spread < LEAST_SPREAD {
            return Err("were of one colour");
        }
        if self.edges < LEAST_EDGES {
            return Err("were blurred");
        }
        Ok(self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(value: impl Fn(usize, usize) -> f32) -> Array {
        let plane: Vec<f32> = (0..64 * 64).map(|i| value(i % 64, i / 64)).collect();
        Array::f32([1, 3, 64, 64], plane.repeat(3)).unwrap()
    }

    #[test]
    fn near_duplicates_look_alike_and_what_cant_be_judged_is_named() {
        let noise = |x: usize, y: usize| ((x * 7919 + y * 104_729) % 97) as f32 / 97.0;
        let wave = |x: usize, y: usize| {
            let (x, y) = (x as f32, y as f32);
            ((x / 5.0).sin() * (y / 6.0).cos() + ((x + 2.0 * y) / 13.0).sin()) / 2.0
        };
        let scene = |x: usize, y: usize| wave(x, y) + 0.2 * noise(x, y);
        let look = Look::of(&picture(scene), 224).unwrap();
        let brighter = Look::of(&picture(|x, y| 0.9 * scene(x + 1, y) + 0.1), 224).unwrap();
        let other = Look::of(&picture(|x, y| scene(y + 30, 63 - x)), 224).unwrap();
        assert!((look.bits ^ brighter.bits).count_ones() <= 6);
        assert!((look.bits ^ other.bits).count_ones() > 12);
        assert!(look.usable().is_ok());
        let why = |picture: &Array, side| Look::of(picture, side).unwrap().usable().unwrap_err();
        assert!(why(&picture(scene), 12).contains("smaller"));
        assert!(why(&picture(|_, _| 0.5), 224).contains("one colour"));
        assert!(why(&picture(|x, _| x as f32 / 64.0 * 0.1), 224).contains("blurred"));
        // Channels last tells the same.
        let planes = picture(scene).as_f32().unwrap().to_vec();
        let last: Vec<f32> = planes[..64 * 64].iter().flat_map(|v| [*v; 3]).collect();
        let last = Look::of(&Array::f32([1, 64, 64, 3], last).unwrap(), 224).unwrap();
        assert_eq!(last.bits, look.bits);
        assert!(Look::of(&Array::f32([1, 3], vec![0.0; 3]).unwrap(), 9).is_none());
    }
}
