//! Pictures (PNG, JPEG, WebP, GIF) to the float tensors that a base takes.

use crate::caught::caught;
use crate::error::{Error, Result};
use crate::fs::read_limited;
use crate::pack::{Filter, Fit, ImageSpec};
use crate::shape::Array;
use image::imageops::{FilterType, resize};
use image::metadata::Orientation;
use image::{
    ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage,
};
use std::borrow::Cow;
use std::io::Cursor;
use std::path::Path;

/// Largest picture file that is read, in bytes.
pub const MAX_PICTURE_BYTES: u64 = 64 << 20;

/// Largest width and height that a base takes, in pixels.
pub const MAX_SIDE: u32 = 8192;

/// Largest width and height that are decoded, in pixels: a phone's panorama.
pub const MAX_DECODED_SIDE: u32 = 16384;

/// Most memory that decoding one picture may take, in bytes: a JPEG of 67 megapixels.
pub const MAX_DECODE_BYTES: u64 = 192 << 20;

/// Most pixels of a decoded picture; larger ones are halved until they have no more.
const MAX_PIXELS: u32 = 19_173_961;

/// The formats that are read, in words.
pub const FORMATS: &str = "PNG, JPEG, WebP or GIF";

/// The media type of a picture that can be read, by its first bytes.
pub fn media_type(bytes: &[u8]) -> Option<&'static str> {
    Some(format_of(bytes).ok()?.to_mime_type())
}

/// The smaller side of an encoded picture in pixels; 0 where it can't be told.
#[cfg(feature = "daemon")]
pub(crate) fn smaller_side(bytes: &[u8]) -> u32 {
    let Ok(format) = format_of(bytes) else { return 0 };
    let size = ImageReader::with_format(Cursor::new(bytes), format).into_dimensions();
    size.map_or(0, |(width, height)| width.min(height))
}

fn format_of(bytes: &[u8]) -> Result<ImageFormat> {
    // ISO 14496-12: the length of the first box, "ftyp", the main brand.
    if bytes.get(4..8) == Some(b"ftyp") {
        let found = match bytes.get(8..12) {
            Some(b"avif" | b"avis") => "AVIF",
            Some(b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1") => {
                "HEIF (HEIC)"
            }
            _ => "a film or sound",
        };
        return Err(Error::unsupported(format!("expected a {FORMATS} picture, found {found}"))
            .hint("save it as JPEG (an iPhone: Settings, Camera, Formats, Most Compatible)"));
    }
    match image::guess_format(bytes) {
        Ok(
            format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP | ImageFormat::Gif),
        ) => Ok(format),
        Ok(other) => Err(Error::unsupported(format!(
            "expected a {FORMATS} picture, found {}",
            other.to_mime_type()
        ))),
        Err(_) if bytes.is_empty() => Err(Error::bad_input("picture file is empty")),
        Err(_) => Err(Error::bad_input(format!("not a picture: expected {FORMATS}"))),
    }
}

/// An error if the size is none that [`MAX_SIDE`] allows or a number is no usable divisor.
fn check(spec: &ImageSpec) -> Result<()> {
    let sides = match spec.fit {
        Fit::Stretch | Fit::Line => spec.size,
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
/// (filters are widened when shrinking, as PIL's are), the middle cut out (lines of text are whole, with zeros
/// at the right), then (value * scale - mean)/std. Where the middle reaches past a resized picture it is black.
///
/// Bytes in another format, damaged ones, or such as decode to more than the limits are an error.
pub fn from_bytes(bytes: &[u8], spec: &ImageSpec) -> Result<Array> {
    check(spec)?;
    tensor(&decode(bytes)?, spec)
}

/// Bytes that decoding a picture takes, as its head tells; 0 for what is no picture.
pub fn decoding_bytes(bytes: &[u8]) -> Result<u64> {
    let sizes = || {
        let format = format_of(bytes).ok()?;
        let held = match format {
            ImageFormat::Jpeg => jpeg_coefficients(bytes).unwrap_or_default(),
            _ => 0,
        };
        let decoder = ImageReader::with_format(Cursor::new(bytes), format).into_decoder().ok()?;
        let (width, height) = decoder.dimensions();
        let copies = (u64::from(width) * u64::from(height)).saturating_mul(7);
        Some(decoder.total_bytes().saturating_add(copies).saturating_add(held))
    };
    let sizes = caught(damaged, sizes)?;
    Ok(sizes.unwrap_or(0).min(MAX_DECODE_BYTES))
}

fn damaged(_: &str) -> Error {
    Error::bad_input("picture is damaged")
}

/// Decodes a picture, of an animation the first frame, to RGB, upright by its EXIF orientation; see
/// [`from_bytes`] for grey, transparency and errors. One of more than 19 megapixels is halved on both
/// sides until it has no more.
pub fn decode(bytes: &[u8]) -> Result<RgbImage> {
    if bytes.len() as u64 > MAX_PICTURE_BYTES {
        return Err(Error::bad_input(format!(
            "picture file is larger than the limit of {MAX_PICTURE_BYTES} bytes"
        )));
    }
    let format = format_of(bytes)?;
    let mut held = 0;
    if format == ImageFormat::Jpeg {
        // The JPEG decoder fills what is missing with grey and says nothing.
        let Some(coefficients) = jpeg_coefficients(bytes) else {
            return Err(Error::bad_input("picture is truncated: no end of the JPEG data"));
        };
        held = coefficients;
    }
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(MAX_DECODED_SIDE);
    limits.max_image_height = Some(MAX_DECODED_SIDE);
    limits.max_alloc = Some(MAX_DECODE_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    // Decoders of hostile bytes: a panic in one is an error about the picture.
    let decoded = caught(damaged, || -> Result<RgbImage> {
        let mut decoder = reader.into_decoder().map_err(|e| refusal(&e))?;
        let (width, height) = decoder.dimensions();
        if width == 0 || height == 0 {
            return Err(Error::bad_input("picture has no pixels"));
        }
        // The 8-bit copies that `flatten` makes count too.
        let copies = match decoder.color_type() {
            ColorType::Rgb8 => 0,
            color if color.has_alpha() => 7,
            _ => 3,
        };
        let pixels = u64::from(width) * u64::from(height);
        let total = decoder.total_bytes().saturating_add(pixels * copies).saturating_add(held);
        if total > MAX_DECODE_BYTES {
            return Err(Error::bad_input(format!(
                "picture of {width}x{height} needs more than the limit of {MAX_DECODE_BYTES} bytes"
            )));
        }
        // As every viewer and labelling tool shows it; a damaged tag says nothing.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let picture = DynamicImage::from_decoder(decoder).map_err(|e| refusal(&e))?;
        let mut picture = DynamicImage::ImageRgb8(bounded(flatten(picture)));
        picture.apply_orientation(orientation);
        Ok(picture.into_rgb8())
    });
    decoded?
}

/// Halved on both sides, by the means of four pixels, until it has [`MAX_PIXELS`] at most.
fn bounded(picture: RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    if u64::from(width) * u64::from(height) <= u64::from(MAX_PIXELS) || width < 2 || height < 2 {
        return picture;
    }
    let (to_width, to_height) = (width / 2, height / 2);
    let mut bytes = picture.into_raw();
    let row = width as usize * 3;
    // In place: what is written lies before all that is still to be read.
    let mut to = 0;
    for y in 0..to_height as usize {
        for x in 0..to_width as usize {
            let from = 2 * y * row + 6 * x;
            for c in from..from + 3 {
                let four = [c, c + 3, c + row, c + row + 3];
                let sum: u32 =
                    four.iter().filter_map(|&i| bytes.get(i)).map(|&v| u32::from(v)).sum();
                if let Some(pixel) = bytes.get_mut(to) {
                    *pixel = ((sum + 2) / 4) as u8;
                }
                to += 1;
            }
        }
    }
    bytes.truncate(to);
    bytes.shrink_to_fit();
    // The length is that of the size; an empty picture is refused by whoever takes it.
    bounded(RgbImage::from_raw(to_width, to_height, bytes).unwrap_or_default())
}

/// Resizes and normalises a decoded picture: see [`from_bytes`].
pub fn tensor(picture: &RgbImage, spec: &ImageSpec) -> Result<Array> {
    check(spec)?;
    let [height, width] = spec.size;
    let pixels = match spec.fit {
        Fit::Line => resized(picture, spec)?,
        _ => middle(resized(picture, spec)?, width, height),
    };
    // 1/255 is what nearly all are divided by: that exactly, not its reciprocal's product.
    let unit = spec.scale == 1.0 / 255.0;
    let normal = |c: usize, v: u8| {
        let value = if unit { f32::from(v) / 255.0 } else { f32::from(v) * spec.scale };
        (value - spec.mean[c]) / spec.std[c]
    };
    let order = if spec.bgr { [2, 1, 0] } else { [0, 1, 2] };
    let (height, width) = (height as usize, width as usize);
    let mut values = Vec::with_capacity(3 * height * width);
    let rest = width - pixels.width() as usize;
    if spec.channels_first {
        for c in order {
            for row in pixels.rows() {
                values.extend(row.map(|p| normal(c, p.0[c])));
                values.resize(values.len() + rest, 0.0);
            }
        }
        Array::f32([1, 3, height, width], values)
    } else {
        for row in pixels.rows() {
            values.extend(row.flat_map(|p| order.map(|c| normal(c, p.0[c]))));
            values.resize(values.len() + 3 * rest, 0.0);
        }
        Array::f32([1, height, width, 3], values)
    }
}

fn resized<'a>(picture: &'a RgbImage, spec: &ImageSpec) -> Result<Cow<'a, RgbImage>> {
    let (width, height) = picture.dimensions();
    let [to_height, to_width] = match spec.fit {
        Fit::Stretch => spec.size,
        Fit::Exact(sides) => sides,
        // As PaddleOCR has it: rounded up.
        Fit::Line => {
            let [to_height, most] = spec.size;
            let wide = (u64::from(width) * u64::from(to_height)).div_ceil(u64::from(height.max(1)));
            [to_height, u32::try_from(wide).map_or(most, |wide| wide.clamp(1, most))]
        }
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

/// Bytes of coefficients that the decoder holds: of a progressive JPEG all, else none. `None` where the
/// picture's own end-of-image marker is missing, which is found from marker to marker: what follows it
/// (a phone's video) and what its segments hold (a thumbnail) has markers of its own.
fn jpeg_coefficients(bytes: &[u8]) -> Option<u64> {
    let (mut at, mut held) = (2, 0);
    loop {
        // Within a scan FF is followed by 00 or a restart marker; between segments it may be repeated.
        while bytes.get(at).is_some_and(|&b| b != 0xff) {
            at += 1;
        }
        match *bytes.get(at + 1)? {
            0xd9 => return Some(held),
            0xff => at += 1,
            0x00 | 0x01 | 0xd0..=0xd8 => at += 2,
            marker => {
                let segment = bytes.get(at + 2..)?;
                let &[high, low] = segment.first_chunk()?;
                if marker == 0xc2 {
                    held = progressive_bytes(segment).unwrap_or(0);
                }
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
            }
        }
    }
}

/// Two bytes for each coefficient, by a frame's header (ITU T.81, B.2.2): length 2, precision 1,
/// height 2, width 2, components 1, then for each its id, its sampling factors and its table.
fn progressive_bytes(header: &[u8]) -> Option<u64> {
    let side =
        |at: usize| Some(u64::from(u16::from_be_bytes([*header.get(at)?, *header.get(at + 1)?])));
    let pixels = side(3)? * side(5)?;
    let factors = header.get(8..)?.chunks_exact(3).take(usize::from(*header.get(7)?));
    let areas: Vec<u64> = factors.map(|c| u64::from(c[1] >> 4) * u64::from(c[1] & 15)).collect();
    let largest = *areas.iter().max().filter(|&&m| m > 0)?;
    Some(pixels * 2 * areas.iter().sum::<u64>() / largest)
}

fn refusal(e: &ImageError) -> Error {
    match e {
        ImageError::Limits(_) => Error::bad_input(format!(
            "picture is larger than the limit of {MAX_DECODED_SIDE}x{MAX_DECODED_SIDE} pixels or {MAX_DECODE_BYTES} bytes"
        )),
        ImageError::Unsupported(e) => Error::unsupported(format!("picture can't be read: {e}")),
        other => Error::bad_input(format!("picture is damaged: {other}")),
    }
}

#[cfg(test)]
#[path = "picture_tests.rs"]
mod tests;
