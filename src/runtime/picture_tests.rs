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
        (0..8).fold(crc ^ u32::from(b), |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg()))
    })
}

#[test]
fn values_are_normalised_in_either_layout() {
    let picture = RgbImage::from_fn(3, 2, |x, y| Rgb([x as u8 * 51, y as u8 * 255, 102]));
    let bytes = encode(picture, ImageFormat::Png);
    let last = from_bytes(&bytes, &PLAIN).unwrap();
    assert_eq!(last.shape(), [1, 2, 3, 3]);
    assert_eq!(last.as_f32().unwrap()[15..], [0.4, 1.0, 0.4]);
    let spec =
        ImageSpec { mean: [0.5, 0.25, 0.0], std: [0.5, 0.25, 2.0], channels_first: true, ..PLAIN };
    let first = from_bytes(&bytes, &spec).unwrap();
    assert_eq!(first.shape(), [1, 3, 2, 3]);
    let red = first.as_f32().unwrap()[..3].to_vec();
    assert!((red[1] - (0.2 - 0.5) / 0.5).abs() < 1e-6);
    assert_eq!(first.as_f32().unwrap()[6], -1.0);
    assert_eq!(first.as_f32().unwrap()[17], 0.2);
}

/// Four wide and two high in eight by two: its own half, then zeros; one that is too long is stretched.
#[test]
fn a_line_of_text_keeps_its_proportions() {
    for channels_first in [true, false] {
        let spec = ImageSpec { size: [2, 8], fit: Fit::Line, channels_first, ..PLAIN };
        let white = |width, height| RgbImage::from_pixel(width, height, Rgb([255; 3]));
        let found = tensor(&white(4, 2), &spec).unwrap();
        let values = found.as_f32().unwrap();
        let row = if channels_first { 8 } else { 24 };
        for line in values.chunks(row) {
            assert!(line[..row / 2].iter().all(|v| *v != 0.0), "{line:?}");
            assert!(line[row / 2..].iter().all(|v| *v == 0.0), "{line:?}");
        }
        let found = tensor(&white(400, 2), &spec).unwrap();
        assert!(found.as_f32().unwrap().iter().all(|v| *v != 0.0));
        assert_eq!(tensor(&white(1, 400), &spec).unwrap().as_f32().unwrap().len(), 48);
    }
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
    let board = RgbImage::from_fn(16, 16, |x, y| Rgb([if (x + y) % 2 == 0 { 255 } else { 0 }; 3]));
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
    for bad in [&b""[..], b"hello, this is text", &[0u8; 64], &png[..20], &png[..png.len() / 2]] {
        let e = from_bytes(bad, &PLAIN).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::BadInput, "{e}");
    }
    for (bytes, named) in [
        (&b"BM\x1a\0\0\0\0\0\0\0"[..], "image/bmp"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF"),
    ] {
        let e = from_bytes(bytes, &PLAIN).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unsupported);
        assert!(e.message().contains(named) && e.message().contains("PNG, JPEG"), "{e}");
    }
}

#[test]
fn bombs_are_refused_before_they_are_unpacked() {
    for (width, height) in [(60_000, 60_000), (16_385, 1), (16_384, 8192), (u32::MAX >> 1, 1)] {
        let e = from_bytes(&png_claiming(width, height), &PLAIN).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::BadInput);
        assert!(e.message().contains("limit"), "{width}x{height}: {e}");
    }
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

#[test]
fn flipped_bytes_never_panic() {
    let picture = RgbImage::from_fn(9, 7, |x, y| Rgb([x as u8 * 20, y as u8 * 30, 77]));
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif] {
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

/// Written by Pillow: the left half is (200, 30, 40), the right half (20, 60, 210).
#[test]
fn what_phones_cameras_and_the_web_give_is_read() {
    for (name, bytes) in [
        ("CMYK", &include_bytes!("testing/cmyk.jpg")[..]),
        ("palette", include_bytes!("testing/palette.png")),
        ("progressive", include_bytes!("testing/progressive.jpg")),
        ("WebP", include_bytes!("testing/lossy.webp")),
        // Its second frame is green.
        ("GIF", include_bytes!("testing/film.gif")),
    ] {
        let picture = decode(bytes).unwrap();
        assert_eq!(picture.dimensions(), (16, 8), "{name}");
        for (x, colour) in [(3, [200, 30, 40]), (12, [20, 60, 210])] {
            let found = picture.get_pixel(x, 4).0;
            let near = found.iter().zip(colour).all(|(&a, b)| a.abs_diff(b) <= 12);
            assert!(near, "{name}: {found:?} where {colour:?} was painted");
        }
    }
    let deep = image::ImageBuffer::from_pixel(3, 2, Rgb([0x8040u16, 0, 0xffff]));
    let deep = encode(DynamicImage::ImageRgb16(deep), ImageFormat::Png);
    assert_eq!(decode(&deep).unwrap().get_pixel(1, 1).0, [128, 0, 255]);
}

#[test]
fn large_pictures_are_halved_by_the_means_of_four_pixels() {
    let (width, height) = (5664, 4248);
    let at = |x: u32, y: u32| Rgb([if x < width / 2 { 200 } else { 20 }, (y % 2 * 100) as u8, 7]);
    let small = bounded(RgbImage::from_fn(width, height, at));
    assert_eq!(small.dimensions(), (width / 2, height / 2));
    for (x, y) in [(0, 0), (1415, 2123), (1416, 0), (2831, 2123)] {
        let red = if x < width / 4 { 200 } else { 20 };
        assert_eq!(small.get_pixel(x, y).0, [red, 50, 7], "{x} {y}");
    }
    // Odd sides lose their last line.
    let odd = bounded(RgbImage::from_fn(16_001, 1_201, |x, _| Rgb([(x / 64) as u8; 3])));
    assert_eq!((odd.dimensions(), odd.get_pixel(7999, 599).0), ((8000, 600), [249; 3]));
    let thin = bounded(RgbImage::new(1, 64));
    assert_eq!(thin.dimensions(), (1, 64));
}

/// A phone's picture: 24 megapixels, turned.
#[test]
fn a_phones_picture_is_read_upright() {
    let colour = |x, _| Rgb(if x < 2832 { [200, 0, 0] } else { [0, 0, 200] });
    let jpeg = encode(RgbImage::from_fn(5664, 4248, colour), ImageFormat::Jpeg);
    let exif =
        b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let upright = decode(&[&jpeg[..2], exif, &jpeg[2..]].concat()).unwrap();
    assert_eq!(upright.dimensions(), (2124, 2832));
    assert!(upright.get_pixel(5, 5).0[0] > 150 && upright.get_pixel(5, 2800).0[2] > 150);
}

#[test]
fn what_a_progressive_jpeg_takes_is_counted() {
    let bytes = include_bytes!("testing/progressive.jpg");
    // Three components at full size, two bytes each.
    assert_eq!(jpeg_coefficients(bytes), Some(16 * 8 * 6));
    assert_eq!(jpeg_coefficients(include_bytes!("testing/cmyk.jpg")), Some(0));
    assert_eq!(jpeg_coefficients(&bytes[..bytes.len() - 2]), None);
}
