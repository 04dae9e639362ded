use super::super::testing::{base, small, values};
use super::*;
use crate::error::ErrorKind;

/// `small` with the tensors cut down, so that every bit of the file can be tried.
fn tiny() -> Adapter {
    let mut adapter = small();
    adapter.targets.truncate(1);
    adapter.targets[0].rank = 1;
    adapter.targets[0].lora_a = values(2, 1);
    adapter.targets[0].lora_b = values(3, 2);
    adapter
}

/// A file whose hash holds, from a header changed by `change` and the tensors of `adapter`.
fn forged(adapter: &Adapter, change: impl FnOnce(&mut Header, &mut Vec<u8>)) -> Vec<u8> {
    let bytes = adapter.to_bytes(TensorType::F32).unwrap();
    let (header, data) = open(&bytes).unwrap();
    let mut header: Header = postcard::from_bytes(header).unwrap();
    let mut data = data.to_vec();
    change(&mut header, &mut data);
    assemble(&postcard::to_allocvec(&header).unwrap(), &data).unwrap()
}

fn message(bytes: &[u8]) -> String {
    Adapter::from_bytes(bytes).unwrap_err().to_string()
}

#[test]
fn comes_back_as_it_was() {
    let adapter = small();
    for dtype in [TensorType::F32, TensorType::F16] {
        let bytes = adapter.to_bytes(dtype).unwrap();
        assert_eq!(Adapter::from_bytes(&bytes).unwrap(), adapter);
        assert_eq!(adapter.to_bytes(dtype).unwrap(), bytes);
    }
    let empty = Adapter::default();
    assert_eq!(Adapter::from_bytes(&empty.to_bytes(TensorType::F32).unwrap()).unwrap(), empty);
}

#[test]
fn a_file_is_written_whole_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.adapter");
    small().write(&path, TensorType::F32).unwrap();
    assert_eq!(Adapter::read(&path).unwrap(), small());
    let mut bad = small();
    bad.targets[0].lora_a[0] = f32::NAN;
    assert_eq!(bad.write(&path, TensorType::F32).unwrap_err().kind(), ErrorKind::BadInput);
    assert_eq!(Adapter::read(&path).unwrap(), small());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let error = Adapter::read(folder.path().join("none.adapter")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    assert_eq!(Adapter::read(folder.path()).unwrap_err().kind(), ErrorKind::BadInput);
}

#[test]
fn every_truncation_and_extension_is_an_error() {
    let mut bytes = tiny().to_bytes(TensorType::F16).unwrap();
    for len in 0..bytes.len() {
        assert!(Adapter::from_bytes(&bytes[..len]).is_err(), "cut at {len}");
    }
    bytes.push(0);
    assert!(Adapter::from_bytes(&bytes).is_err());
}

#[test]
fn every_flipped_bit_is_an_error() {
    let bytes = tiny().to_bytes(TensorType::F16).unwrap();
    assert!(bytes.len() < 2048);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Adapter::from_bytes(&flipped).is_err(), "bit {bit}");
    }
}

/// The hash is no signature: a hostile file has one that holds. Nothing in it may panic.
#[test]
fn flipped_bits_under_a_true_hash_never_panic() {
    let bytes = tiny().to_bytes(TensorType::F32).unwrap();
    for bit in HEADER_AT * 8..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let (prefix, body) = flipped.split_at_mut(HEADER_AT);
        let (prefix, slot) = prefix.split_at_mut(HASH_AT);
        slot.copy_from_slice(&hash(prefix, body));
        if let Ok(adapter) = Adapter::from_bytes(&flipped) {
            adapter.check().unwrap();
        }
    }
}

#[test]
fn each_way_to_be_wrong_has_its_own_message() {
    let adapter = small();
    let good = adapter.to_bytes(TensorType::F32).unwrap();
    let patched = |at: usize, new: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        message(&bytes)
    };
    let with = |change: fn(&mut Header, &mut Vec<u8>)| message(&forged(&adapter, change));
    let cases = [
        (message(b""), "is empty"),
        (message(b"PK\x03\x04 and more"), "not an adapter file"),
        (message(b"offad"), "cut short at 5 bytes"),
        (patched(VERSION_AT, &[2]), "format version 2, expected 1"),
        (patched(HEADER_LEN_AT, &[0; 4]), "header of 0 bytes"),
        (patched(HEADER_LEN_AT, &[0xff; 4]), "header of 4294967295 bytes, expected 1 to 1048576"),
        (patched(HEADER_LEN_AT, &[0, 0, 1, 0]), "cut short"),
        (patched(HEADER_AT, &[0xff]), "damaged"),
        (message(&assemble(&[0xff; 9], &[]).unwrap()), "header can't be decoded"),
        (with(|h, _| h.kind = "dora".into()), "kind 'dora' is unknown"),
        (with(|h, _| h.name = "a\u{7}".into()), "adapter name 'a ' has a control character"),
        (with(|h, _| h.name = "n".repeat(1025)), "has 1025 bytes, at most 1024"),
        (with(|h, _| h.targets[0].rank = 0), "shape [2, 6], expected [0, any]"),
        (with(|h, _| h.targets[0].alpha = f32::NAN), "alpha has a value that is not finite"),
        (with(|h, _| h.targets[1].module_path.clear()), "'c.lora_a' where '.lora_a' is expected"),
        (
            with(|h, _| {
                h.targets.push(TargetHeader { module_path: "d".into(), rank: 1, alpha: 1.0 })
            }),
            "'head.weight' where 'd.lora_a' is expected",
        ),
        (with(|h, _| drop(h.targets.pop())), "'c.lora_a' where 'head.weight' is expected"),
        (with(|h, _| h.head = None), "'head.weight' where 'probe.0.input_ids' is expected"),
        (with(|h, _| h.probes.clear()), "tensor 'probe.0.input_ids' belongs to nothing"),
        (with(|h, _| drop(h.tensors.pop())), "'probe.0.x' is missing"),
        (with(|h, _| h.tensors[0].offset = 64), "starts at 64, expected 0"),
        (with(|h, _| h.tensors[1].offset = 48), "starts at 48, expected 64"),
        (with(|h, _| h.tensors[0].len = 47), "47 bytes for shape [2, 6], expected 48"),
        (with(|h, _| h.tensors[0].shape = vec![1 << 40, 1 << 40]), "is too large"),
        (with(|h, _| h.tensors[0].shape = vec![1; 9]), "9 dimensions, at most 8"),
        (with(|h, _| h.tensors[0].dtype = Stored::I32), "expected float values, found I32"),
        (with(|h, _| h.tensors[1].dtype = Stored::Bf16), "type Bf16 is not allowed here"),
        (with(|h, _| h.head.as_mut().unwrap().features = 2), "shape [2, 3], expected [2, 2]"),
        (with(|h, _| drop(h.head.as_mut().unwrap().labels.pop())), "expected [1, 3]"),
        (with(|h, _| h.head.as_mut().unwrap().labels[0] = "yes".into()), "'yes' appears twice"),
        (with(|_, d| d.truncate(d.len() - 1)), "tensor 'probe.0.x': ends at"),
        (with(|_, d| d.push(0)), "1 bytes after the adapter's last tensor"),
        (with(|_, d| d[63] = 1), "the gap before it is not zero"),
        (with(|_, d| d[0..4].copy_from_slice(&f32::NAN.to_le_bytes())), "not finite at 0"),
        (with(|h, _| h.training.as_mut().unwrap().final_loss = f32::NAN), "training record"),
        (with(|h, _| h.probes[0].effect = f32::INFINITY), "probe effect"),
    ];
    for (i, (found, expected)) in cases.iter().enumerate() {
        assert!(found.contains(expected), "case {i}: '{found}' should contain '{expected}'");
    }
    let many = |n: usize, name: fn(usize) -> String| {
        forged(&Adapter::default(), |h, _| {
            h.targets = (0..n)
                .map(|i| TargetHeader { module_path: name(i), rank: 1, alpha: 1.0 })
                .collect();
        })
    };
    let found = message(&many(65_537, |_| "x".into()));
    assert!(found.contains("65537 targets, at most 65536"), "{found}");
    let mut twice = small();
    twice.targets[1] = twice.targets[0].clone();
    let found = twice.to_bytes(TensorType::F32).unwrap_err().to_string();
    assert!(found.contains("target 'a.b' appears twice"), "{found}");
    let mut ranked = small();
    ranked.targets[0].rank = 4097;
    let found = ranked.to_bytes(TensorType::F32).unwrap_err().to_string();
    assert!(found.contains("rank 4097 is not in 1 to 4096"), "{found}");
}

/// A count of 2^64 − 1 targets in a header of a few bytes must not allocate.
#[test]
fn huge_counts_in_a_small_header_are_refused() {
    let header = [&[0, 4][..], b"lora", &[0, 0], &[0xff; 9], &[1]].concat();
    assert!(message(&assemble(&header, &[]).unwrap()).contains("can't be decoded"));
}

#[test]
fn golden_bytes() {
    let adapter = Adapter {
        name: "g".into(),
        base: Some(base(0)),
        rslora: true,
        targets: vec![TargetAdapter {
            module_path: "fc".into(),
            rank: 1,
            alpha: 2.0,
            lora_a: vec![1.0, -0.5],
            lora_b: vec![0.25],
        }],
        ..Adapter::default()
    };
    let mut header = vec![1, b'g', 4];
    header.extend(b"lora");
    header.push(1);
    header.extend(base(0).0);
    header.extend([1, 1, 2, b'f', b'c', 1]);
    header.extend(2f32.to_le_bytes());
    header.extend([0, 0, 0, 2]);
    header.push(9);
    header.extend(b"fc.lora_a");
    header.extend([0, 2, 1, 2, 0, 4]);
    header.push(9);
    header.extend(b"fc.lora_b");
    header.extend([0, 2, 1, 1, 64, 2]);
    assert_eq!(header.len(), 86);

    let mut bytes = b"offadpt\n".to_vec();
    bytes.extend([1, 0, 0, 0, 86, 0, 0, 0]);
    let mut body = header;
    body.resize(192 - 48, 0);
    body.extend([0x00, 0x3c, 0x00, 0xb8]);
    body.resize(256 - 48, 0);
    body.extend([0x00, 0x34]);
    let digest = blake3::Hasher::new().update(&bytes).update(&body).finalize();
    bytes.extend(digest.as_bytes());
    bytes.extend(body);
    assert_eq!(adapter.to_bytes(TensorType::F16).unwrap(), bytes);
    assert_eq!(Adapter::from_bytes(&bytes).unwrap(), adapter);
}
