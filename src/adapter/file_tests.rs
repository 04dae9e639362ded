use super::super::blocks::ALIGN;
use super::super::tensor::Stored;
use super::super::testing::{base, small, values};
use super::*;
use crate::error::ErrorKind;

/// `small` with the tensors cut down, so that every bit of the file can be tried.
fn tiny() -> Adapter {
    let mut adapter = small();
    adapter.targets.truncate(1);
    adapter.targets[0] = TargetAdapter::lora("a.b", 1, 4.0, values(2, 1), values(3, 2));
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
    bad.targets[0].tensors[0].values[0] = f32::NAN;
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
        (patched(VERSION_AT, &[1]), "format version 1, expected 2"),
        (patched(VERSION_AT, &[3]), "format version 3, expected 2"),
        (patched(HEADER_LEN_AT, &[0; 4]), "header of 0 bytes"),
        (patched(HEADER_LEN_AT, &[0xff; 4]), "header of 4294967295 bytes, expected 1 to 1048576"),
        (patched(HEADER_LEN_AT, &[0, 0, 1, 0]), "cut short"),
        (patched(HEADER_AT, &[0xff]), "damaged"),
        (message(&assemble(&[0xff; 9], &[]).unwrap()), "header can't be decoded"),
        (with(|h, _| h.targets[0].kind = "hydra".into()), "kind 'hydra' is unknown"),
        (with(|h, _| h.targets[0].flags = vec!["x".into()]), "'a.b': flag 'x' is unknown"),
        (with(|h, _| h.name = "a\u{7}".into()), "adapter name 'a ' has a control character"),
        (with(|h, _| h.name = "n".repeat(1025)), "has 1025 bytes, at most 1024"),
        (with(|h, _| h.targets[0].rank = 0), "rank 0 is not in 1 to 4096"),
        (with(|h, _| h.targets[0].rank = 3), "'lora_a' has shape [2, 6], expected [3, inputs]"),
        (with(|h, _| h.targets[0].alpha = f32::NAN), "alpha has a value that is not finite"),
        (with(|h, _| h.targets[1].module_path.clear()), "empty module path"),
        (with(|h, _| h.targets[0].tensors[0].name = "up".into()), "'up' where 'lora_a'"),
        (with(|h, _| drop(h.probes[0].inputs.pop())), "bytes after the adapter's last block"),
        (with(|h, _| h.targets[0].tensors[0].shape = vec![1 << 40, 1 << 40]), "is too large"),
        (with(|h, _| h.targets[0].tensors[0].shape = vec![1; 9]), "9 dimensions, at most 8"),
        (with(|h, _| h.targets[0].tensors[0].shape[1] = 1 << 30), "are not within"),
        (with(|h, _| h.targets[0].tensors[0].dtype = Stored::I32), "expected float values"),
        (with(|h, _| h.targets[0].tensors[1].dtype = Stored::Bf16), "Bf16 is not allowed here"),
        (with(|h, _| h.heads[0].tensors[0].shape = vec![3, 2]), "are no linear layer"),
        (with(|h, _| h.heads[0].tensors[1].name = "b".into()), "not 'weight' and 'bias'"),
        (with(|h, _| drop(h.heads[0].labels.pop())), "1 labels for 2 classes"),
        (with(|h, _| h.heads[0].labels[0] = "yes".into()), "'yes' appears twice"),
        (with(|h, _| h.heads[0].task.clear()), "its task has no name"),
        (with(|h, _| h.heads[0].thresholds = vec![0.5]), "1 thresholds for 2 labels"),
        (with(|h, _| h.heads[0].temperature = 0.0), "temperature 0 is not positive"),
        (with(|h, _| h.ranges[0].low = f32::NAN), "activation range"),
        (with(|_, d| d.truncate(d.len() - 1)), "input 'x'"),
        (with(|_, d| d.push(0)), "1 bytes after the adapter's last block"),
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
                .map(|i| TargetHeader {
                    module_path: name(i),
                    kind: String::new(),
                    rank: 1,
                    alpha: 1.0,
                    flags: vec![],
                    tensors: vec![],
                })
                .collect();
        })
    };
    let found = message(&many(65_537, |_| String::new()));
    assert!(found.contains("65537 targets, at most 65536"), "{found}");
    let mut twice = small();
    twice.targets[1] = twice.targets[0].clone();
    let found = twice.to_bytes(TensorType::F32).unwrap_err().to_string();
    assert!(found.contains("target 'a.b' appears twice"), "{found}");
    let mut half = small();
    half.targets[1].tensors.pop();
    let found = half.to_bytes(TensorType::F32).unwrap_err().to_string();
    assert!(found.contains("target 'c': tensor 'lora_b' is missing"), "{found}");
    let mut ranked = small();
    ranked.targets[0].rank = 4097;
    let found = ranked.to_bytes(TensorType::F32).unwrap_err().to_string();
    assert!(found.contains("rank 4097 is not in 1 to 4096"), "{found}");
}

/// Later versions may add sections: one that may be skipped is kept as it was, the others are refused.
#[test]
fn sections_are_skipped_or_must_be_understood() {
    let section = |must| {
        forged(&small(), |h, d| {
            d.resize(d.len().next_multiple_of(ALIGN), 0);
            d.extend(b"later");
            h.sections.push(SectionHeader {
                name: "calibration".into(),
                must_be_understood: must,
                len: 5,
            });
        })
    };
    let read = Adapter::from_bytes(&section(false)).unwrap();
    let extra = Extra { name: "calibration".into(), bytes: b"later".to_vec() };
    assert_eq!(read, Adapter { extras: vec![extra], ..small() });
    assert_eq!(read.to_bytes(TensorType::F32).unwrap(), section(false));
    let error = Adapter::from_bytes(&section(true)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("'calibration' is unknown"), "{error}");
    let longer = forged(&small(), |h, _| {
        h.sections.push(SectionHeader { name: "x".into(), must_be_understood: false, len: 1 << 60 })
    });
    assert!(message(&longer).contains("section 'x'"), "{}", message(&longer));
}

/// A count of 2^64 − 1 targets in a header of a few bytes must not allocate.
#[test]
fn huge_counts_in_a_small_header_are_refused() {
    let header = [&[0, 0][..], &[0xff; 9], &[1]].concat();
    assert!(message(&assemble(&header, &[]).unwrap()).contains("can't be decoded"));
}

#[test]
fn golden_bytes() {
    let mut target = TargetAdapter::lora("fc", 1, 2.0, vec![1.0, -0.5], vec![0.25]);
    target.rslora = true;
    let adapter = Adapter {
        name: "g".into(),
        base: Some(base(0)),
        targets: vec![target],
        heads: vec![Head {
            name: "h".into(),
            task: "t".into(),
            output: "y".into(),
            pool: Pool::Cls,
            labels: ["a".to_string()].into(),
            features: 1,
            weight: vec![2.0],
            bias: vec![-1.0],
            thresholds: vec![0.5],
            temperature: 1.0,
            known: None,
        }],
        ranges: vec![ActivationRange { module_path: "fc".into(), low: -1.0, high: 2.0 }],
        extras: vec![Extra { name: "e".into(), bytes: vec![7] }],
        ..Adapter::default()
    };
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let f16 = |name: &str, shape: &[u8]| [&text(name)[..], &[0, shape.len() as u8], shape].concat();
    let header = [
        text("g"),
        vec![1],
        base(0).0.to_vec(),
        vec![1],
        text("fc"),
        text("lora"),
        vec![1],
        2f32.to_le_bytes().to_vec(),
        vec![1],
        text("rslora"),
        vec![2],
        f16("lora_a", &[1, 2]),
        f16("lora_b", &[1, 1]),
        vec![1],
        text("h"),
        text("t"),
        text("y"),
        vec![1, 1],
        text("a"),
        vec![1],
        0.5f32.to_le_bytes().to_vec(),
        1f32.to_le_bytes().to_vec(),
        vec![2],
        f16("weight", &[1, 1]),
        f16("bias", &[1]),
        vec![0, 0, 1],
        text("fc"),
        (-1f32).to_le_bytes().to_vec(),
        2f32.to_le_bytes().to_vec(),
        vec![1],
        text("e"),
        vec![0, 1],
    ]
    .concat();
    let mut bytes = b"offadpt\n".to_vec();
    bytes.extend([2, 0, 0, 0, header.len() as u8, 0, 0, 0]);
    let mut body = header;
    for block in [&[0x00, 0x3c, 0x00, 0xb8][..], &[0x00, 0x34], &[0x00, 0x40], &[0x00, 0xbc], &[7]]
    {
        body.resize((48 + body.len()).next_multiple_of(64) - 48, 0);
        body.extend(block);
    }
    let digest = blake3::Hasher::new().update(&bytes).update(&body).finalize();
    bytes.extend(digest.as_bytes());
    bytes.extend(body);
    assert_eq!(adapter.to_bytes(TensorType::F16).unwrap(), bytes);
    assert_eq!(Adapter::from_bytes(&bytes).unwrap(), adapter);
}
