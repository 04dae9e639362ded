use super::*;
use crate::error::ErrorKind;

/// A file with these fields in its format.
fn file(tag: u16, channels: u16, rate: u32, bits: u16, data: &[u8]) -> Vec<u8> {
    let block = channels * (bits / 8);
    let mut format = vec![];
    format.extend(tag.to_le_bytes());
    format.extend(channels.to_le_bytes());
    format.extend(rate.to_le_bytes());
    format.extend((rate * u32::from(block)).to_le_bytes());
    format.extend(block.to_le_bytes());
    format.extend(bits.to_le_bytes());
    chunks(&[(b"fmt ", &format), (b"data", data)])
}

fn chunks(parts: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let mut body = b"WAVE".to_vec();
    for (name, bytes) in parts {
        body.extend(*name);
        body.extend((bytes.len() as u32).to_le_bytes());
        body.extend(*bytes);
        body.resize(body.len().next_multiple_of(2), 0);
    }
    let mut file = b"RIFF".to_vec();
    file.extend((body.len() as u32).to_le_bytes());
    file.extend(body);
    file
}

fn values(bytes: &[u8]) -> Vec<f32> {
    decode(bytes, None).unwrap().samples
}

#[test]
fn every_coding_has_its_values() {
    let int16 = [i16::MIN, 0, 16_384].map(i16::to_le_bytes).concat();
    assert_eq!(values(&file(1, 1, 16_000, 16, &int16)), [-1.0, 0.0, 0.5]);
    let int24 = [0x80_0000u32, 0, 0x40_0000].map(|v| v.to_le_bytes()[..3].to_vec()).concat();
    assert_eq!(values(&file(1, 1, 8_000, 24, &int24)), [-1.0, 0.0, 0.5]);
    let int32 = [i32::MIN, 0, 1 << 30].map(i32::to_le_bytes).concat();
    assert_eq!(values(&file(1, 1, 48_000, 32, &int32)), [-1.0, 0.0, 0.5]);
    let float = [-1.5f32, 0.25].map(f32::to_le_bytes).concat();
    assert_eq!(values(&file(3, 1, 44_100, 32, &float)), [-1.5, 0.25]);
    // Two channels: their mean.
    let stereo = [16_384i16, 0, -16_384, -16_384].map(i16::to_le_bytes).concat();
    assert_eq!(values(&file(1, 2, 16_000, 16, &stereo)), [0.25, -0.5]);
}

#[test]
fn extensible_files_and_strange_chunks_are_read() {
    let mut format = file(0xfffe, 1, 16_000, 32, &[])[20..36].to_vec();
    format.extend([22, 0, 24, 0, 4, 0, 0, 0]);
    format.extend([1, 0, 0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71]);
    let data = [1i32 << 30].map(i32::to_le_bytes).concat();
    let parts: [(&[u8; 4], &[u8]); 4] =
        [(b"LIST", b"odd"), (b"fmt ", &format), (b"fact", &[0; 4]), (b"data", &data)];
    assert_eq!(values(&chunks(&parts)), [0.5]);
    format[30] = 9;
    let e = decode(&chunks(&[(b"fmt ", &format), (b"data", &data)]), None).unwrap_err();
    assert!(e.message().contains("not known"), "{e}");
}

/// `arecord` writing to a pipe can't know the length.
#[test]
fn a_file_from_a_pipe_goes_to_its_end() {
    for size in [0u32, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let mut bytes = file(1, 1, 16_000, 16, &[0, 0x40, 0, 0x40, 7]);
        let at = bytes.len() - 6 - 4;
        bytes[at..at + 4].copy_from_slice(&size.to_le_bytes());
        bytes.pop();
        assert_eq!(values(&bytes), [0.5, 0.5], "{size:x}");
    }
}

#[test]
fn no_more_is_decoded_than_is_asked_for() {
    let bytes = file(1, 1, 8_000, 16, &[0; 2 * 8_000]);
    assert_eq!(decode(&bytes, Some(0.5)).unwrap().samples.len(), 4_800);
    assert_eq!(decode(&bytes, Some(5.0)).unwrap().samples.len(), 8_000);
}

#[test]
fn what_is_wrong_is_named() {
    let good = file(1, 1, 16_000, 16, &[0; 8]);
    let cases: [(Vec<u8>, ErrorKind, &str); 14] = [
        (vec![], ErrorKind::BadInput, "empty"),
        (b"hello there, sound".to_vec(), ErrorKind::BadInput, "not a WAV"),
        (b"fLaC....".to_vec(), ErrorKind::Unsupported, "FLAC"),
        (b"ID3\x04".to_vec(), ErrorKind::Unsupported, "MP3"),
        (good[..30].to_vec(), ErrorKind::BadInput, "truncated"),
        (good[..50].to_vec(), ErrorKind::BadInput, "8 bytes of samples stated, 6 there"),
        (good[..36].to_vec(), ErrorKind::BadInput, "no samples in it"),
        (file(1, 1, 16_000, 8, &[0; 8]), ErrorKind::Unsupported, "integers of 8 bits"),
        (file(6, 1, 16_000, 8, &[0; 8]), ErrorKind::Unsupported, "A-law"),
        (file(1, 6, 16_000, 16, &[0; 12]), ErrorKind::Unsupported, "6 channels"),
        (file(1, 1, 96_000, 16, &[0; 8]), ErrorKind::Unsupported, "96000 samples"),
        (file(1, 1, 16_000, 16, &[]), ErrorKind::BadInput, "no samples"),
        (file(1, 1, 16_000, 16, &[0; 3]), ErrorKind::BadInput, "no multiple of 2"),
        (
            file(3, 1, 16_000, 32, &f32::NAN.to_le_bytes()),
            ErrorKind::BadInput,
            "sample 0 is not finite",
        ),
    ];
    for (bytes, kind, part) in cases {
        let e = decode(&bytes, None).unwrap_err();
        assert!(e.kind() == kind && e.message().contains(part), "{part}: {e}");
    }
    let long = file(1, 1, 8_000, 16, &vec![0; 2 * MAX_SAMPLES + 2]);
    assert!(decode(&long, None).unwrap_err().message().contains("2097 seconds"));
    assert!(decode(&long, Some(1.0)).is_ok());
}

/// Bytes changed and cut anywhere: an answer or an error, no panic.
#[test]
fn damaged_files_are_survived() {
    let good = file(1, 2, 16_000, 16, &[3; 64]);
    let mut state = 7u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state >> 33
    };
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..1 + random() % 4 {
            let at = random() as usize % bytes.len();
            bytes[at] = random() as u8;
        }
        bytes.truncate(1 + random() as usize % good.len());
        if let Ok(clip) = decode(&bytes, None) {
            assert!(!clip.samples.is_empty() && clip.samples.iter().all(|v| v.is_finite()));
        }
    }
}
