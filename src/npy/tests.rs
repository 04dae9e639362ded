use super::*;
use crate::error::ErrorKind;
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;

fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let fortran = if fortran { "True" } else { "False" };
    raw(
        1,
        &format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n"),
        data,
    )
}

fn raw(major: u8, header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend([major, 0]);
    match major {
        1 => bytes.extend((header.len() as u16).to_le_bytes()),
        _ => bytes.extend((header.len() as u32).to_le_bytes()),
    }
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn fails(bytes: &[u8], kind: ErrorKind, words: &str) {
    let e = read_bytes(bytes).unwrap_err();
    assert_eq!(e.kind(), kind, "{e}");
    assert!(e.message().contains(words), "expected '{words}', found: {e}");
}

#[test]
fn every_type_reads_back() {
    for data in [
        Data::F32(vec![1.5, f32::NEG_INFINITY, -0.0, 3.0, 4.0, 1e-40]),
        Data::I64(vec![i64::MIN, -1, 0, 1, 2, i64::MAX]),
        Data::I32(vec![i32::MIN, -1, 0, 1, 2, i32::MAX]),
        Data::U8(vec![0, 1, 2, 3, 4, 255]),
        Data::Bool(vec![true, false, true, true, false, false]),
    ] {
        for shape in [vec![6], vec![2, 3], vec![1, 6, 1]] {
            let array = Array::new(shape, data.clone()).unwrap();
            let bytes = to_bytes(&array);
            assert_eq!(read_bytes(&bytes).unwrap(), array);
            assert_eq!((bytes.len() - data.len() * byte_size(&data)) % 64, 0);
        }
    }
    let scalar = Array::f32(vec![], vec![2.0]).unwrap();
    assert_eq!(read_bytes(&to_bytes(&scalar)).unwrap(), scalar);
    let empty = Array::f32(vec![0, 3], vec![]).unwrap();
    assert_eq!(read_bytes(&to_bytes(&empty)).unwrap(), empty);
}

fn byte_size(data: &Data) -> usize {
    match data {
        Data::I64(_) => 8,
        Data::F32(_) | Data::I32(_) => 4,
        Data::U8(_) | Data::Bool(_) => 1,
    }
}

/// `np.save(f, np.arange(3, dtype=np.float32).reshape(1, 3))` of NumPy 2.
#[test]
fn the_bytes_are_those_of_numpy() {
    let array = Array::f32(vec![1, 3], vec![0.0, 1.0, 2.0]).unwrap();
    let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }";
    let mut expected = b"\x93NUMPY\x01\x00v\x00".to_vec();
    expected.extend(format!("{text:<117}\n").into_bytes());
    expected.extend([0, 0, 0, 0, 0, 0, 0x80, 0x3f, 0, 0, 0, 0x40]);
    assert_eq!(to_bytes(&array), expected);
}

#[test]
fn wider_and_narrower_floats_and_byte_orders() {
    let f64s: Vec<u8> = [0.1f64, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let array = read_bytes(&npy("<f8", false, "(2,)", &f64s)).unwrap();
    assert_eq!(array.as_f32().unwrap(), [0.1f32, -2.0]);
    let array = read_bytes(&npy("<f2", false, "(2,)", &[0, 0x3c, 0, 0xc0])).unwrap();
    assert_eq!(array.as_f32().unwrap(), [1.0, -2.0]);
    let array = read_bytes(&npy(">i4", false, "(1,)", &[0, 0, 1, 2])).unwrap();
    assert_eq!(array.data(), &Data::I32(vec![258]));
    let array = read_bytes(&npy(">i2", false, "(2,)", &[0xff, 0xfe, 1, 0])).unwrap();
    assert_eq!(array.data(), &Data::I32(vec![-2, 256]));
    let array = read_bytes(&npy("|i1", false, "(1,)", &[0xff])).unwrap();
    assert_eq!(array.data(), &Data::I32(vec![-1]));
    let array = read_bytes(&npy("<u4", false, "(1,)", &[0xff; 4])).unwrap();
    assert_eq!(array.data(), &Data::I64(vec![u32::MAX as i64]));
    let array = read_bytes(&npy("=f4", false, "()", &[0, 0, 0x80, 0x3f])).unwrap();
    assert_eq!(array.shape(), [0usize; 0]);
}

#[test]
fn fortran_order_is_taken_only_where_it_is_the_same() {
    for shape in ["(4,)", "(1, 4)", "(4, 1, 1)", "(2L, 2L, 0)"] {
        let data: &[u8] = if shape.ends_with("0)") { &[] } else { &[1, 2, 3, 4] };
        read_bytes(&npy("|u1", true, shape, data)).unwrap();
    }
    fails(&npy("|u1", true, "(2, 2)", &[1, 2, 3, 4]), ErrorKind::Unsupported, "Fortran order");
}

#[test]
fn versions_and_spellings() {
    for major in [1, 2, 3] {
        let header = "{\"shape\":(1,),\"fortran_order\":False,\"descr\":\"|b1\"}   \n";
        let array = read_bytes(&raw(major, header, &[1])).unwrap();
        assert_eq!(array.data(), &Data::Bool(vec![true]));
    }
    fails(&raw(4, "{}", &[]), ErrorKind::Unsupported, "format version 4");
}

#[test]
fn hostile_headers() {
    use ErrorKind::{BadInput, Unsupported};
    fails(b"", BadInput, "not a .npy file");
    fails(b"PK\x03\x04", BadInput, "not a .npy file");
    fails(b"\x93NUMPY\x01", BadInput, "truncated");
    fails(b"\x93NUMPY\x02\x00\xff\xff\xff\xff", BadInput, "header of 4294967295 bytes");
    fails(b"\x93NUMPY\x01\x00\x10\x00{}", BadInput, "truncated");
    for shape in [
        "(4294967296, 4294967296)",
        "(4294967296, 4294967296, 0)",
        "(18446744073709551615, 2)",
        "(4611686018427387905, 4)",
    ] {
        fails(&npy("<f4", false, shape, &[]), BadInput, "too large");
    }
    fails(&npy("<f4", false, "(99999999999999999999,)", &[]), BadInput, "expected a dimension");
    fails(&npy("<f4", false, "(-1,)", &[]), BadInput, "expected a dimension");
    fails(&npy("<f4", false, "(2,)", &[0; 7]), BadInput, "takes 8 bytes, found 7");
    fails(&npy("<f4", false, "(2,)", &[0; 9]), BadInput, "takes 8 bytes, found 9");
    let many = format!("({})", "1,".repeat(33));
    fails(&npy("<f4", false, &many, &[0; 4]), BadInput, "too many dimensions");
    fails(&npy("|b1", false, "(1,)", &[2]), BadInput, "boolean of value 2");
    for descr in ["|O", "<U5", "<c8", "<u8", "", "é"] {
        fails(&npy(descr, false, "(1,)", &[0; 8]), Unsupported, "element type");
    }
    let structured = "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}";
    fails(&raw(1, structured, &[0; 4]), Unsupported, "structured");
    for header in [
        "",
        "{",
        "{'descr'",
        "{'descr': '<f4'",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'descr': '<f4'}",
        "{'descr': '<f4', 'fortran_order': None, 'shape': ()}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': ()} x",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (,)}",
        "{'other': '<f4'}",
        "{'a\\'b': 1}",
        "__import__('os')",
    ] {
        fails(&raw(1, header, &[0; 4]), BadInput, "npy: ");
    }
    fails(&raw(2, &" ".repeat(MAX_HEADER), &[]), BadInput, "expected '{'");
}

#[test]
fn cut_and_flipped_files_never_panic() {
    let array = Array::i64(vec![2, 3], vec![1, 2, 3, 4, 5, 6]).unwrap();
    let bytes = to_bytes(&array);
    for cut in 0..bytes.len() {
        assert!(read_bytes(&bytes[..cut]).is_err(), "{cut}");
    }
    let mut flipped = bytes.clone();
    for at in 0..bytes.len() {
        for bit in (0..8).step_by(if cfg!(miri) { 5 } else { 1 }) {
            flipped[at] ^= 1 << bit;
            let _ = read_bytes(&flipped);
            flipped[at] ^= 1 << bit;
        }
    }
}

fn archive(entries: &[(&str, &[u8])], options: SimpleFileOptions) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(vec![]));
    for (name, bytes) in entries {
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn npz(bytes: &[u8], max: u64) -> Result<Vec<(String, Array)>> {
    read_npz_bytes(bytes, max)
}

#[test]
fn archives_stored_and_deflated() {
    let a = Array::f32(vec![2], vec![1.0, 2.0]).unwrap();
    let b = Array::i64(vec![500], vec![7; 500]).unwrap();
    let (a_bytes, b_bytes) = (to_bytes(&a), to_bytes(&b));
    for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
        let options = SimpleFileOptions::default().compression_method(method);
        let bytes = archive(&[("b.npy", &b_bytes), ("in/a:0.npy", &a_bytes)], options);
        let arrays = npz(&bytes, 1 << 20).unwrap();
        assert_eq!(arrays, [("b".into(), b.clone()), ("in/a:0".into(), a.clone())]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.npz");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read_npz(&path, 1 << 20).unwrap().len(), 2);
        for cut in (0..bytes.len()).step_by(7) {
            assert!(npz(&bytes[..cut], 1 << 20).is_err(), "{cut}");
        }
        // One byte of data: the checksum or the array differs.
        let mut flipped = bytes.clone();
        for at in 0..bytes.len() {
            flipped[at] ^= 0x20;
            let _ = npz(&flipped, 1 << 20);
            flipped[at] ^= 0x20;
        }
    }
}

#[test]
fn bombs_and_odd_archives() {
    let zeros = vec![0u8; 8 << 20];
    let bomb = archive(&[("z.npy", &npy("|u1", false, "(8388608,)", &zeros))], Default::default());
    assert!(bomb.len() < 20_000);
    let e = npz(&bomb, 1 << 20).unwrap_err();
    assert!(e.message().contains("more than the limit of 1048576"), "{e}");
    // A size field that lies low does not let more through.
    let size = (8u32 << 20) + npy("|u1", false, "(8388608,)", &[]).len() as u32;
    let mut liar = bomb.clone();
    let mut replaced = 0;
    for at in 0..liar.len() - 4 {
        if liar[at..at + 4] == size.to_le_bytes() {
            liar[at..at + 4].copy_from_slice(&1000u32.to_le_bytes());
            replaced += 1;
        }
    }
    assert!(replaced > 0);
    assert!(npz(&liar, 1 << 20).is_err());
    let one = |value| Array::f32(vec![1], vec![value]).unwrap();
    let (first, last) = (to_bytes(&one(1.0)), to_bytes(&one(2.0)));
    let two = archive(&[("a.npy", &first), ("b.npy", &last)], Default::default());
    let twice = replace(&two, b"b.npy", b"a.npy");
    assert_eq!(npz(&twice, 1 << 20).unwrap(), [("a".into(), one(2.0))]);
    let e = npz(&archive(&[("a.txt", b"x")], Default::default()), 1 << 20).unwrap_err();
    assert!(e.message().contains("'a.txt' is no .npy file"), "{e}");
    let e = npz(&archive(&[("a.npy", b"x")], Default::default()), 1 << 20).unwrap_err();
    assert!(e.message().contains("array 'a': not a .npy file"), "{e}");
    assert_eq!(npz(&archive(&[], Default::default()), 1 << 20).unwrap(), []);
    assert!(npz(b"", 1 << 20).is_err() && npz(&first, 1 << 20).is_err());
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for at in 0..=bytes.len() - from.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
    }
    bytes
}
