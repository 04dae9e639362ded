//! Made-up pictures: skies, grounds, bodies, stripes and windows in many colours and sizes. They are
//! about nothing in particular, but a network of pictures answers them with many of its classes.

use crate::error::{Error, Result};
use crate::train::random::{below, stream, unit};
use image::codecs::png::PngEncoder;
use image::{Rgb, RgbImage};
use rand_chacha::ChaCha8Rng;

/// Height and width in pixels.
const SIDE: u32 = 160;

type Colour = [f32; 3];

/// The `n`th scene as a PNG file.
///
/// # Errors
/// The encoder's.
pub(super) fn scene(n: u64) -> Result<Vec<u8>> {
    let picture = draw(n);
    let mut bytes = vec![];
    picture
        .write_with_encoder(PngEncoder::new(&mut bytes))
        .map_err(|e| Error::failed(format!("a probe picture can't be made: {e}")))?;
    Ok(bytes)
}

/// One thing in a scene, in shares of its sides.
struct Thing {
    form: u64,
    texture: u64,
    middle: [f32; 2],
    size: [f32; 2],
    colours: [Colour; 2],
    /// Stripes, dots or windows across it.
    count: f32,
}

fn draw(n: u64) -> RgbImage {
    let mut rng = stream(n, "probe scene", 0);
    let sky = [colour(&mut rng), colour(&mut rng)];
    let ground = [colour(&mut rng), colour(&mut rng)];
    let horizon = 0.3 + 0.5 * unit(&mut rng);
    let things: Vec<Thing> = (0..1 + below(&mut rng, 5)).map(|_| thing(&mut rng)).collect();
    let grain = 0.12 * unit(&mut rng);
    let mut picture = RgbImage::new(SIDE, SIDE);
    for (x, y, pixel) in picture.enumerate_pixels_mut() {
        let (u, v) = (x as f32 / SIDE as f32, y as f32 / SIDE as f32);
        let mut colour = match v < horizon {
            true => mixed(sky, v / horizon),
            false => mixed(ground, (v - horizon) / (1.0 - horizon)),
        };
        for thing in &things {
            if let Some(found) = thing.at(u, v) {
                colour = found;
            }
        }
        let noise = grain * (unit(&mut rng) - 0.5);
        *pixel = Rgb(colour.map(|c| ((c + noise).clamp(0.0, 1.0) * 255.0) as u8));
    }
    picture
}

fn colour(rng: &mut ChaCha8Rng) -> Colour {
    [unit(rng), unit(rng), unit(rng)]
}

fn mixed([a, b]: [Colour; 2], share: f32) -> Colour {
    [0, 1, 2].map(|c| a[c] + (b[c] - a[c]) * share)
}

fn thing(rng: &mut ChaCha8Rng) -> Thing {
    Thing {
        form: below(rng, 4),
        texture: below(rng, 5),
        middle: [unit(rng), 0.2 + 0.7 * unit(rng)],
        size: [0.08 + 0.4 * unit(rng), 0.08 + 0.4 * unit(rng)],
        colours: [colour(rng), colour(rng)],
        count: 3.0 + 8.0 * unit(rng),
    }
}

impl Thing {
    /// Its colour where it stands.
    fn at(&self, u: f32, v: f32) -> Option<Colour> {
        // -1 to 1 across it.
        let x = (u - self.middle[0]) / self.size[0];
        let y = (v - self.middle[1]) / self.size[1];
        let inside = match self.form {
            0 => x * x + y * y < 1.0,
            1 => x.abs() < 1.0 && y.abs() < 1.0,
            2 => y.abs() < 1.0 && x.abs() < (y + 1.0) / 2.0,
            _ => (0.5..1.0).contains(&(x * x + y * y)),
        };
        let step = |t: f32| (t * self.count).rem_euclid(2.0) < 1.0;
        let share = match self.texture {
            // A body lit from above and the left.
            0 => (0.5 + 0.35 * (x + y)).clamp(0.0, 1.0),
            1 => f32::from(u8::from(step(x))),
            2 => f32::from(u8::from(step(y))),
            3 => f32::from(u8::from(step(x) && step(y))),
            _ => (x * x + y * y).min(1.0),
        };
        inside.then(|| mixed(self.colours, share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenes_are_pictures_that_differ_and_stay_the_same() {
        let first = scene(0).unwrap();
        assert_eq!(first, scene(0).unwrap());
        assert_ne!(first, scene(1).unwrap());
        let picture = crate::runtime::picture::decode(&first).unwrap();
        assert_eq!(picture.dimensions(), (SIDE, SIDE));
    }
}
