//! Pictures (PNG, JPEG) to the float tensors that a base takes.

use crate::error::{Error, Result};
use crate::fs::read_limited;
use crate::pack::{Filter, Fit, ImageSpec};
use crate::shape::Array;
use image::imageops::{FilterType, resize};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};
use std::borrow::Cow;
use std::io::Cursor;
use std::path::Path;

/// Largest picture file that is read, in bytes.
pub const MAX_PICTURE_BYTES: u64 = 64 << 20;

/// Largest width and height that are decoded, in pixels.
pub const MAX_SIDE: u32 = 8192;

/// Most memory that decoding one picture may take, in bytes.
pub const MAX_DECODE_BYTES: u64 = 128 << 20;

/// An error if the size is none that [`MAX_SIDE`] allows or a number is no usable divisor.
fn check(spec: &ImageSpec) -> Result<()> {
    let sides = match spec.fit {
        Fit::Stretch => spec.size,
        Fit::Exact(sides) => sides,
        Fit::Shortest(side) => [side; 2],
    };
    if spec.size.iter().chain(&sides).any(|&side| side == 0 || side > MAX_SIDE) {
        return Err(Error::bad_input(format!(
            "picture size {}x{} is not within 1 to {MAX_SIDE}",
            spec.size[0], spec.size[1]
        )));
    }
    let usable = spec.mean.iter().all(|v| v.is_finite())
        && spec.std.iter().all(|v| v.is_finite() && *v != 0.0);
    if !usable {
        return Err(Error::bad_input("picture mean and deviation must be finite, deviation not 0"));
    }
    Ok(())
}

/// Reads a picture file and turns it into a base's input: see [`from_bytes`].
pub fn from_file(path: &Path, spec: &ImageSpec) -> Result<Array> {
    let bytes = read_limited(path, MAX_PICTURE_BYTES)?;
    from_bytes(&bytes, spec).map_err(|e| e.at(path.display()))
}

/// Turns an encoded picture into a base's input, f32 [1, 3, H, W] or [1, H, W, 3]: decoded to RGB
/// (grey repeated, transparency laid over white), resized as the base's `fit` and `filter` say
/// (filters are widened when shrinking, as PIL's are), the middle cut out, then
/// (value * scale - mean)/std. Where the middle reaches past a resized picture it is black.
///
/// Bytes that are no PNG or JPEG, are damaged, or decode to more than the limits are an error.
pub fn from_bytes(bytes: &[u8], spec: &ImageSpec) -> Result<Array> {
    check(spec)?;
    tensor(&decode(bytes)?, spec)
}

/// Decodes a PNG or JPEG to RGB, upright by its EXIF orientation; see [`from_bytes`] for grey,
/// transparency and errors.
pub fn decode(bytes: &[u8]) -> Result<RgbImage> {
    if bytes.len() as u64 > MAX_PICTURE_BYTES {
        return Err(Error::bad_input(format!(
            "picture file is larger than the limit of {MAX_PICTURE_BYTES} bytes"
        )));
    }
    let format = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => format,
        Ok(other) => {
            return Err(Error::unsupported(format!(
                "expected a PNG or JPEG picture, found {}",
                other.to_mime_type()
            )));
        }
        Err(_) if bytes.is_empty() => return Err(Error::bad_input("picture file is empty")),
        Err(_) => return Err(Error::bad_input("not a picture: expected PNG or JPEG")),
    };
    // The JPEG decoder fills what is missing with grey and says nothing.
    if format == ImageFormat::Jpeg && !jpeg_is_whole(bytes) {
        return Err(Error::bad_input("picture is truncated: no end of the JPEG data"));
    }
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODE_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    // Decoders of hostile bytes: a panic in one is an error about the picture.
    let decoded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut decoder = reader.into_decoder().map_err(|e| refusal(&e))?;
        let (width, height) = decoder.dimensions();
        if width == 0 || height == 0 {
            return Err(Error::bad_input("picture has no pixels"));
        }
        // The 8-bit RGB or RGBA copy made below counts too.
        let total = decoder.total_bytes().saturating_add(u64::from(width) * u64::from(height) * 4);
        if total > MAX_DECODE_BYTES {
            return Err(Error::bad_input(format!(
                "picture of {width}x{height} needs more than the limit of {MAX_DECODE_BYTES} bytes"
            )));
        }
        // As every viewer and labelling tool shows it; a damaged tag says nothing.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| refusal(&e))?;
        picture.apply_orientation(orientation);
        Ok(picture)
    }));
    let picture = decoded.unwrap_or_else(|_| Err(Error::bad_input("picture is damaged")))?;
    Ok(flatten(picture))
}

/// Resizes and normalises a decoded picture: see [`from_bytes`].
pub fn tensor(picture: &RgbImage, spec: &ImageSpec) -> Result<Array> {
    check(spec)?;
    let [height, width] = spec.size;
    let pixels = middle(resized(picture, spec)?, width, height);
    // 1/255 is what nearly all are divided by: that exactly, not its reciprocal's product.
    let unit = spec.scale == 1.0 / 255.0;
    let normal = |c: usize, v: u8| {
        let value = if unit { f32::from(v) / 255.0 } else { f32::from(v) * spec.scale };
        (value - spec.mean[c]) / spec.std[c]
    };
    let order = if spec.bgr { [2, 1, 0] } else { [0, 1, 2] };
    let (height, width) = (height as usize, width as usize);
    let mut values = Vec::with_capacity(3 * height * width);
    if spec.channels_first {
        for c in order {
            values.extend(pixels.pixels().map(|p| normal(c, p.0[c])));
        }
        Array::f32([1, 3, height, width], values)
    } else {
        values.extend(pixels.pixels().flat_map(|p| order.map(|c| normal(c, p.0[c]))));
        Array::f32([1, height, width, 3], values)
    }
}

fn resized<'a>(picture: &'a RgbImage, spec: &ImageSpec) -> Result<Cow<'a, RgbImage>> {
    let (width, height) = picture.dimensions();
    let [to_height, to_width] = match spec.fit {
        Fit::Stretch => spec.size,
        Fit::Exact(sides) => sides,
        // As transformers has it: the other side is rounded down.
        Fit::Shortest(side) => {
            let other =
                |long: u32, short: u32| u64::from(side) * u64::from(long) / u64::from(short);
            let other = if width < height { other(height, width) } else { other(width, height) };
            let other = u32::try_from(other).ok().filter(|&o| o <= MAX_SIDE).ok_or_else(|| {
                Error::bad_input(format!(
                    "picture of {width}x{height} would be larger than {MAX_SIDE} on one side"
                ))
            })?;
            if width < height { [other, side] } else { [side, other] }
        }
    };
    if (width, height) == (to_width, to_height) {
        return Ok(Cow::Borrowed(picture));
    }
    let filter = match spec.filter {
        Filter::Nearest => FilterType::Nearest,
        Filter::Bilinear => FilterType::Triangle,
        Filter::Bicubic => FilterType::CatmullRom,
        Filter::Lanczos => FilterType::Lanczos3,
    };
    Ok(Cow::Owned(resize(picture, to_width, to_height, filter)))
}

/// The middle of `width` x `height`, black where the picture has none.
fn middle(picture: Cow<'_, RgbImage>, width: u32, height: u32) -> Cow<'_, RgbImage> {
    let (w, h) = picture.dimensions();
    if (w, h) == (width, height) {
        return picture;
    }
    // In 64 bits; below 0 where the picture is the smaller one. Rounded down, as transformers does.
    let left = (i64::from(w) - i64::from(width)).div_euclid(2);
    let top = (i64::from(h) - i64::from(height)).div_euclid(2);
    Cow::Owned(RgbImage::from_fn(width, height, |x, y| {
        let from = (u32::try_from(left + i64::from(x)), u32::try_from(top + i64::from(y)));
        let pixel = match from {
            (Ok(x), Ok(y)) => picture.get_pixel_checked(x, y).copied(),
            _ => None,
        };
        pixel.unwrap_or(image::Rgb([0; 3]))
    }))
}

/// To RGB; what is transparent shows white.
fn flatten(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let rgba = picture.into_rgba8();
    let (width, height) = rgba.dimensions();
    RgbImage::from_fn(width, height, |x, y| {
        let [r, g, b, a] = rgba.get_pixel(x, y).0;
        let a = u32::from(a);
        // value*a + 255*(1-a), rounded; fits u8 because both weights sum to 255.
        let over = |v: u8| ((u32::from(v) * a + 255 * (255 - a) + 127) / 255) as u8;
        image::Rgb([over(r), over(g), over(b)])
    })
}

/// Whether the picture's own end-of-image marker is there, found from marker to marker: what follows
/// it (a phone's video) and what its segments hold (a thumbnail) has markers of its own.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // Within a scan FF is followed by 00 or a restart marker; between segments it may be repeated.
        while bytes.get(at).is_some_and(|&b| b != 0xff) {
            at += 1;
        }
        match bytes.get(at + 1) {
            None => return false,
            Some(0xd9) => return true,
            Some(0xff) => at += 1,
            Some(0x00 | 0x01 | 0xd0..=0xd8) => at += 2,
            Some(_) => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
            }
        }
    }
}

fn refusal(e: &ImageError) -> Error {
    match e {
        ImageError::Limits(_) => Error::bad_input(format!(
            "picture is larger than the limit of {MAX_SIDE}x{MAX_SIDE} pixels or {MAX_DECODE_BYTES} bytes"
        )),
        ImageError::Unsupported(e) => Error::unsupported(format!("picture can't be read: {e}")),
        other => Error::bad_input(format!("picture is damaged: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use image::{GrayImage, LumaA, Rgb, Rgba, RgbaImage};

    const PLAIN: ImageSpec = ImageSpec {
        size: [2, 3],
        fit: Fit::Stretch,
        filter: Filter::Bicubic,
        scale: 1.0 / 255.0,
        mean: [0.0; 3],
        std: [1.0; 3],
        channels_first: false,
        bgr: false,
    };

    fn encode(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// Rows of PNG chunks for a stated size without the pixels to fill it.
    fn png_claiming(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = encode(RgbImage::new(1, 1), ImageFormat::Png);
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, &b| {
            (0..8)
                .fold(crc ^ u32::from(b), |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg()))
        })
    }

    #[test]
    fn values_are_normalised_in_either_layout() {
        let picture = RgbImage::from_fn(3, 2, |x, y| Rgb([x as u8 * 51, y as u8 * 255, 102]));
        let bytes = encode(picture, ImageFormat::Png);
        let last = from_bytes(&bytes, &PLAIN).unwrap();
        assert_eq!(last.shape(), [1, 2, 3, 3]);
        assert_eq!(last.as_f32().unwrap()[15..], [0.4, 1.0, 0.4]);
        let spec = ImageSpec {
            mean: [0.5, 0.25, 0.0],
            std: [0.5, 0.25, 2.0],
            channels_first: true,
            ..PLAIN
        };
        let first = from_bytes(&bytes, &spec).unwrap();
        assert_eq!(first.shape(), [1, 3, 2, 3]);
        let red = first.as_f32().unwrap()[..3].to_vec();
        assert!((red[1] - (0.2 - 0.5) / 0.5).abs() < 1e-6);
        assert_eq!(first.as_f32().unwrap()[6], -1.0);
        assert_eq!(first.as_f32().unwrap()[17], 0.2);
    }

    #[test]
    fn grey_is_repeated_and_transparency_lies_over_white() {
        let grey = encode(GrayImage::from_pixel(3, 2, image::Luma([51])), ImageFormat::Png);
        assert!(from_bytes(&grey, &PLAIN).unwrap().as_f32().unwrap().iter().all(|&v| v == 0.2));
        let mut clear = RgbaImage::from_pixel(3, 2, Rgba([0, 0, 0, 0]));
        clear.put_pixel(0, 0, Rgba([255, 0, 0, 51]));
        let values = from_bytes(&encode(clear, ImageFormat::Png), &PLAIN).unwrap();
        let values = values.as_f32().unwrap();
        assert_eq!(values[..3], [1.0, 0.8, 0.8]);
        assert!(values[3..].iter().all(|&v| v == 1.0));
        let grey_alpha = image::ImageBuffer::from_pixel(3, 2, LumaA([0u8, 255]));
        let values =
            from_bytes(&encode(DynamicImage::ImageLumaA8(grey_alpha), ImageFormat::Png), &PLAIN);
        assert!(values.unwrap().as_f32().unwrap().iter().all(|&v| v == 0.0));
    }

    #[test]
    fn shrinking_averages_and_growing_follows_the_bicubic_kernel() {
        // A checkerboard shrunk by 8 is grey; without the widened kernel it would be 0 or 255.
        let board =
            RgbImage::from_fn(16, 16, |x, y| Rgb([if (x + y) % 2 == 0 { 255 } else { 0 }; 3]));
        let spec = ImageSpec { size: [2, 2], ..PLAIN };
        let small = tensor(&board, &spec).unwrap();
        assert!(small.as_f32().unwrap().iter().all(|v| (v - 0.5).abs() < 0.02));
        // Columns 0, 0, 255, 255 doubled: the weights of a = -0.5 at offsets 0.25 and 0.75 are
        // -0.0703125, 0.8671875, 0.2265625, -0.0234375 (and mirrored).
        let step = RgbImage::from_fn(4, 1, |x, _| Rgb([if x < 2 { 0 } else { 255 }; 3]));
        let wide = tensor(&step, &ImageSpec { size: [1, 8], ..PLAIN }).unwrap();
        let reds: Vec<f32> = wide.as_f32().unwrap().iter().step_by(3).copied().collect();
        for (x, expected) in [(3, 0.203_125), (4, 0.796_875), (0, 0.0), (7, 1.0)] {
            assert!((reds[x] - expected).abs() < 0.004, "{x}: {} {expected}", reds[x]);
        }
    }

    #[test]
    fn jpeg_is_read_and_a_cut_one_refused() {
        let picture = RgbImage::from_fn(40, 30, |x, _| Rgb([x as u8 * 6, 90, 200]));
        let bytes = encode(picture, ImageFormat::Jpeg);
        let values = from_bytes(&bytes, &PLAIN).unwrap();
        assert!((values.as_f32().unwrap()[1] - 90.0 / 255.0).abs() < 0.03);
        for cut in [3, 20, bytes.len() / 2, bytes.len() - 2] {
            let e = from_bytes(&bytes[..cut], &PLAIN).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::BadInput, "cut at {cut}: {e}");
        }
    }

    /// A phone's "motion photo": a whole JPEG, then a video with markers in its bytes.
    #[test]
    fn what_follows_a_jpeg_is_nobodys_business() {
        let bytes = encode(RgbImage::from_pixel(9, 9, Rgb([9, 90, 200])), ImageFormat::Jpeg);
        let want = from_bytes(&bytes, &PLAIN).unwrap();
        for tail in [&b"ftyp\xff\xda\0\x04mdat"[..], &bytes[..bytes.len() - 2], &[0xff; 9]] {
            let with = [&bytes[..], tail].concat();
            assert_eq!(from_bytes(&with, &PLAIN).unwrap(), want);
        }
        // The end of a thumbnail within a segment is not the picture's.
        let cut = &bytes[2..bytes.len() - 2];
        let thumbnail = [&b"\xff\xd8\xff\xe1\0\x04\xff\xd9"[..], cut].concat();
        assert!(from_bytes(&thumbnail, &PLAIN).unwrap_err().message().contains("truncated"));
    }

    #[test]
    fn pictures_stand_upright_by_their_orientation() {
        // Left half red, right half blue.
        let colour = |x, _| Rgb(if x < 16 { [200, 0, 0] } else { [0, 0, 200] });
        let jpeg = encode(RgbImage::from_fn(32, 16, colour), ImageFormat::Jpeg);
        let turned = |tag: u8| {
            let tiff = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0";
            let rest = [tag, 0, 0, 0, 0, 0, 0];
            let length = (2 + tiff.len() + rest.len()) as u16;
            let segment = [&b"\xff\xe1"[..], &length.to_be_bytes(), tiff, &rest].concat();
            decode(&[&jpeg[..2], &segment, &jpeg[2..]].concat()).unwrap()
        };
        let red = |p: &RgbImage, x: u32, y: u32| p.get_pixel(x, y).0[0] > 100;
        let plain = turned(1);
        assert!(plain.dimensions() == (32, 16) && red(&plain, 2, 8) && !red(&plain, 29, 8));
        let mirrored = turned(2);
        assert!(!red(&mirrored, 2, 8) && red(&mirrored, 29, 8));
        for (tag, top) in [(6, true), (8, false)] {
            let upright = turned(tag);
            assert_eq!(upright.dimensions(), (16, 32));
            assert_eq!((red(&upright, 8, 2), red(&upright, 8, 29)), (top, !top), "{tag}");
        }
        assert_eq!(turned(77), plain);
    }

    #[test]
    fn what_is_no_picture_is_refused_with_one_line() {
        let png = encode(RgbImage::new(20, 20), ImageFormat::Png);
        for bad in [&b""[..], b"hello, this is text", &[0u8; 64], &png[..20], &png[..png.len() / 2]]
        {
            let e = from_bytes(bad, &PLAIN).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::BadInput, "{e}");
        }
        let e = from_bytes(b"GIF89a\x01\x00\x01\x00\x00\x00\x00", &PLAIN).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unsupported);
        assert!(e.message().contains("image/gif"), "{e}");
    }

    #[test]
    fn bombs_are_refused_before_they_are_unpacked() {
        for (width, height) in [(60_000, 60_000), (8193, 1), (8192, 8192), (u32::MAX >> 1, 1)] {
            let e = from_bytes(&png_claiming(width, height), &PLAIN).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::BadInput);
            assert!(e.message().contains("limit"), "{width}x{height}: {e}");
        }
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn flipped_bytes_never_panic() {
        let picture = RgbImage::from_fn(9, 7, |x, y| Rgb([x as u8 * 20, y as u8 * 30, 77]));
        for format in [ImageFormat::Png, ImageFormat::Jpeg] {
            let good = encode(picture.clone(), format);
            for i in 0..good.len() {
                let mut bytes = good.clone();
                bytes[i] ^= 0x41;
                if let Ok(values) = from_bytes(&bytes, &PLAIN) {
                    assert_eq!(values.shape(), [1, 2, 3, 3]);
                }
            }
        }
    }

    #[test]
    fn files_are_named_in_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        std::fs::write(&path, b"nothing").unwrap();
        let e = from_file(&path, &PLAIN).unwrap_err();
        assert!(e.message().contains("a.png: not a picture"), "{e}");
        assert_eq!(from_file(dir.path(), &PLAIN).unwrap_err().kind(), ErrorKind::BadInput);
        assert!(from_file(&dir.path().join("none.png"), &PLAIN).is_err());
    }

    #[test]
    fn specs_are_checked() {
        for spec in [
            ImageSpec { size: [0, 3], ..PLAIN },
            ImageSpec { size: [3, MAX_SIDE + 1], ..PLAIN },
            ImageSpec { std: [1.0, 0.0, 1.0], ..PLAIN },
            ImageSpec { mean: [f32::NAN, 0.0, 0.0], ..PLAIN },
        ] {
            assert!(tensor(&RgbImage::new(1, 1), &spec).is_err());
        }
    }
}
