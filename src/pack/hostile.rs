//! Hostile `.base` files: cut, flipped, lying, of other kinds, open elsewhere.

use super::header::*;
use super::testing::*;
use super::*;
use crate::error::{Error, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;

#[track_caller]
fn refused(result: Result<Base, Error>, words: &str) {
    let Err(e) = result else { panic!("was opened") };
    assert!(matches!(e.kind(), ErrorKind::BadInput | ErrorKind::Unsupported), "{e}");
    assert!(e.message().contains(words), "expected '{words}', found: {e}");
    assert!(e.message().contains("net.base"), "{e}");
}

#[test]
fn every_truncation_is_refused_at_open() {
    let file = File::new();
    let len = file.bytes.len();
    let header = Header::parse(&file.bytes).unwrap();
    let mut cuts: Vec<usize> = (0..=header_end(&file.bytes)).collect();
    for section in &header.sections {
        let (start, end) = (section.offset as usize, (section.offset + section.len) as usize);
        cuts.extend([start - 1, start, start + 1, end - 1, end, end + 1]);
    }
    let mut random = Random(1);
    cuts.extend((0..200).map(|_| random.below(len)));
    for cut in cuts.into_iter().filter(|&cut| cut < len) {
        refused(file.open(&file.bytes[..cut]), "");
    }
    let mut longer = file.bytes.clone();
    longer.push(0);
    refused(file.open(&longer), "longer than it should be");
}

#[test]
fn every_bit_flip_before_the_first_section_is_refused_at_open() {
    let file = File::new();
    let mut bytes = file.bytes.clone();
    let end = header_end(&bytes);
    let padding = [end, end + 1, SECTION_ALIGN as usize - 1];
    for at in (0..end).chain(padding) {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(Header::parse(&bytes).is_err(), "byte {at} bit {bit}");
            bytes[at] ^= 1 << bit;
        }
    }
    bytes[end - 1] ^= 1;
    refused(file.open(&bytes), "header is damaged");
}

#[test]
fn bit_flips_behind_it_are_found_by_open_use_or_verify() {
    let file = File::new();
    let header = Header::parse(&file.bytes).unwrap();
    let mut random = Random(2);
    let mut places: Vec<usize> = (0..60)
        .map(|_| SECTION_ALIGN as usize + random.below(file.bytes.len() - SECTION_ALIGN as usize))
        .collect();
    for section in &header.sections {
        places.extend([section.offset as usize, (section.offset + section.len) as usize - 1]);
    }
    let mut bytes = file.bytes.clone();
    for at in places {
        bytes[at] ^= 1 << random.below(8);
        if let Ok(base) = file.open(&bytes) {
            let e = base.verify().unwrap_err();
            assert_eq!(e.kind(), ErrorKind::BadInput, "byte {at}: {e}");
            let within = |kind: Kind| {
                let s = &header.sections[kind.index()];
                (s.offset..s.offset + s.len).contains(&(at as u64))
            };
            assert_eq!(base.graph(0).is_err(), within(Kind::Graphs));
            assert_eq!(base.constants(0).is_err(), within(Kind::Constants));
            assert_eq!(base.tokenizer().is_err(), within(Kind::Tokenizer));
            assert!(!within(Kind::Targets) && !within(Kind::Record) && !within(Kind::Preprocess));
        }
        bytes[at] = file.bytes[at];
    }
    let weights = header.sections[Kind::Weights.index()].offset as usize;
    bytes[weights + 5] ^= 4;
    let e = file.open(&bytes).unwrap().verify().unwrap_err();
    assert!(e.message().contains("section 'weights' is damaged"), "{e}");
}

#[test]
fn other_kinds_of_files_are_told_apart() {
    let file = File::new();
    refused(file.open(b""), "is empty");
    refused(file.open(b"offb"), "too short");
    refused(file.open(&[0x55; 20]), "not a base file");
    refused(file.open(b"offadpt\n\x01"), "an adapter file");
    refused(file.open(b"\x08\x07\x12\x07pytorch"), "not a base file");
    refused(file.open(&[0x55; 5000]), "not a base file");
    let mut bytes = file.bytes.clone();
    for version in [1, 7] {
        bytes[VERSION_AT] = version;
        let e = file.open(&bytes).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unsupported);
        let words = format!("format version {version}, this program reads 2 to 3");
        assert!(e.message().contains(&words), "{e}");
        assert!(e.hint_text().unwrap().contains("pack the ONNX file again"), "{e}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(Base::open(dir.path()).unwrap_err().message().contains("not a regular file"));
    let fifo = dir.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(Base::open(&fifo).unwrap_err().message().contains("not a regular file"));
    assert!(Base::open(dir.path().join("none")).unwrap_err().message().contains("no such file"));
}

#[test]
fn prefix_fields_are_capped() {
    let file = File::new();
    for len in [crate::limits::HEADER as u32 + 1, u32::MAX, file.bytes.len() as u32] {
        let mut bytes = file.bytes.clone();
        bytes[HEADER_LEN_AT..][..4].copy_from_slice(&len.to_le_bytes());
        refused(file.open(&bytes), "header length");
    }
    for len in [0, u64::MAX, file.bytes.len() as u64 - 1] {
        let mut bytes = file.bytes.clone();
        bytes[FILE_LEN_AT..][..8].copy_from_slice(&len.to_le_bytes());
        seal(&mut bytes);
        refused(file.open(&bytes), "found");
    }
    let mut bytes = file.bytes.clone();
    bytes[RESERVED_AT + 3] = 1;
    seal(&mut bytes);
    refused(file.open(&bytes), "reserved");
    // A shorter header leaves a table cut in the middle, a longer one leaves bytes over.
    for change in [-1i32, 1] {
        let mut bytes = file.bytes.clone();
        let len = (header_end(&bytes) - PREFIX_LEN) as i32 + change;
        bytes[HEADER_LEN_AT..][..4].copy_from_slice(&len.to_le_bytes());
        seal(&mut bytes);
        refused(file.open(&bytes), "header");
    }
}

#[test]
fn section_tables_that_lie_are_refused() {
    let file = File::new();
    file.resealed(|_| {}).unwrap();
    let weights = Kind::Weights.index();
    refused(file.resealed(|h| h.sections.swap(0, 1)), "expected kind 1");
    refused(file.resealed(|h| h.sections[2].kind = 9), "found 9");
    refused(file.resealed(|h| h.sections[1].offset = h.sections[0].offset), "expected");
    refused(file.resealed(|h| h.sections[1].offset += 64), "expected");
    refused(file.resealed(|h| h.sections[0].offset = 0), "expected");
    refused(file.resealed(|h| h.sections[weights].offset = u64::MAX), "expected");
    refused(file.resealed(|h| h.sections[weights].len = u64::MAX), "past the file's end");
    refused(file.resealed(|h| h.sections[weights].len += 64), "past the file's end");
    refused(file.resealed(|h| h.sections[weights].len -= 64), "sections end at");
    refused(file.resealed(|h| h.sections[0].len = u64::MAX - 65536), "at most");
    refused(file.resealed(|h| h.sections[0].len = (64 << 20) + 1), "at most");
    refused(file.resealed(|h| h.sections[0].hash[0] ^= 1).and_then(graph), "'graphs' is damaged");
    refused(file.resealed(|h| h.sections[5].hash[0] ^= 1), "'record' is damaged");
}

fn graph(base: Base) -> Result<Base, Error> {
    base.graph(0)?;
    Ok(base)
}

#[test]
fn further_sections_are_skipped_or_understood() {
    let file = File::new();
    let mut longer = file.bytes.clone();
    longer.resize(longer.len().next_multiple_of(SECTION_ALIGN as usize), 0);
    let offset = longer.len() as u64;
    longer.extend([7; 5]);
    let section = |kind, flags| {
        let hash = *blake3::hash(&[7; 5]).as_bytes();
        Section { kind, flags, offset, len: 5, hash }
    };
    let with = |section: Section| {
        let mut more = File::new();
        more.bytes = longer.clone();
        more.resealed_to(longer.len() as u64, |h| h.sections.push(section))
    };
    let base = with(section(77, 0)).unwrap();
    base.verify().unwrap();
    assert_eq!(base.sections()[7].name, "kind 77");
    assert!(!base.sections()[7].required);
    refused(with(section(77, MUST)), "kind 77, which must be understood");
    refused(with(section(77, 2)), "flags 2");
    refused(with(section(6, MUST)), "stands behind kind 7");
    refused(with(Section { len: 6, ..section(77, 0) }), "past the file's end");
    refused(with(Section { offset: offset + 1, ..section(77, 0) }), "expected");
    let mut damaged = section(77, 0);
    damaged.hash[3] ^= 1;
    refused(with(damaged).and_then(|b| b.verify().map(|()| b)), "kind 77 is damaged");
    // What is there stays required, and what may be passed over doesn't become so.
    refused(file.resealed(|h| h.sections[2].flags = 0), "flags 0");
    let full = File::of(&full_sample());
    refused(full.resealed(|h| h.sections[7].flags = 0), "flags 0");
    refused(full.resealed(|h| h.sections[9].flags = MUST), "flags 1");
    refused(full.resealed(|h| h.sections[7].hash[0] ^= 1), "'activations' is damaged");
    let e = full.resealed(|h| h.sections[8].hash[0] ^= 1).unwrap().subspaces().unwrap_err();
    assert!(e.message().contains("'subspaces' is damaged"), "{e}");
    refused(file.resealed(|h| h.sections.truncate(6)), "expected kind 7");
    refused(file.resealed(|h| h.sections.clear()), "expected kind 1");
    refused(
        file.resealed(|h| h.sections.extend((0..60).map(|_| Section::default()))),
        "67 sections",
    );
}

#[test]
fn graph_tables_that_lie_are_refused() {
    let file = File::new();
    let graph = |alter: fn(&mut GraphEntry)| file.resealed(|h| alter(&mut h.graphs[1]));
    refused(graph(|g| g.name = "main".into()), "stands twice");
    refused(graph(|g| g.name = "a\u{1b}b".into()), "no plain word");
    refused(graph(|g| g.text += 1), "covers");
    refused(graph(|g| g.text = u64::MAX), "");
    refused(graph(|g| g.constants[0].1 = 3), "number 3 of 3");
    refused(graph(|g| g.constants[0].0.clear()), "is empty");
    refused(graph(|g| g.constants.push(g.constants[0].clone())), "stands twice");
    refused(file.resealed(|h| h.graphs.clear()), "0 graphs");
    refused(file.resealed(|h| drop(h.graphs.pop())), "covers");
}

#[test]
fn weight_and_constant_tables_that_lie_are_refused() {
    let file = File::new();
    let weight = |alter: fn(&mut WeightEntry)| file.resealed(|h| alter(&mut h.weights[1]));
    refused(weight(|w| w.offset = 0), "not where it belongs");
    refused(weight(|w| w.offset += 64), "not where it belongs");
    refused(weight(|w| w.offset = u64::MAX - 63), "not where it belongs");
    refused(weight(|w| w.spec.rows = 0), "empty");
    refused(weight(|w| w.spec.cols = 0), "empty");
    refused(weight(|w| w.spec.rows = 1 << 20), "covers");
    refused(weight(|w| (w.spec.rows, w.spec.cols) = (u32::MAX, u32::MAX)), "");
    refused(weight(|w| w.spec.cols = 6), "covers");
    // Shapes that take the same bytes but not the target's shape.
    refused(weight(|w| w.spec.rows = 6), "target 'words' expects a weight of 5 x 7");
    refused(file.resealed(|h| h.weights.clear()), "covers 0 bytes");
    refused(file.resealed(|h| h.weights.swap(0, 1)), "not where it belongs");
    refused(
        file.resealed(|h| {
            let more = h.weights[1].clone();
            h.weights.push(more);
        }),
        "not where it belongs",
    );
    let constant = |alter: fn(&mut ConstEntry)| file.resealed(|h| alter(&mut h.constants[1]));
    refused(constant(|c| c.offset = 0), "not where it belongs");
    refused(constant(|c| c.offset = u64::MAX), "not where it belongs");
    refused(constant(|c| c.shape = vec![1 << 32, 1 << 32]), "too large");
    refused(constant(|c| c.shape = vec![1 << 32, 1 << 32, 0]), "too large");
    refused(constant(|c| c.shape = vec![1; 17]), "too large");
    refused(constant(|c| c.shape = vec![65]), "not where it belongs");
    refused(file.resealed(|h| h.constants.clear()), "covers 0 bytes");
}

#[test]
fn counts_past_the_end_allocate_nothing() {
    let file = File::new();
    // Lengths of the section and of the graph table: 2^32, 2^63, and a varint that never ends.
    for varint in [&[0x80, 0x80, 0x80, 0x80, 0x10][..], &[0xff; 9], &[0xff; 32]] {
        for at in [PREFIX_LEN, PREFIX_LEN + 1 + 7 * (2 + 8 + 8 + 32)] {
            let mut bytes = file.bytes.clone();
            bytes[at..at + varint.len()].copy_from_slice(varint);
            seal(&mut bytes);
            refused(file.open(&bytes), "header");
        }
    }
}

/// Random bytes behind a right hash: whatever comes, opening and verifying answers.
#[test]
fn random_headers_never_panic() {
    let file = File::new();
    let end = header_end(&file.bytes);
    let mut random = Random(3);
    let mut bytes = file.bytes.clone();
    for round in 0..if cfg!(miri) { 30 } else { 20_000 } {
        for _ in 0..=random.below(4) {
            let at = PREFIX_LEN + random.below(end - PREFIX_LEN);
            bytes[at] = [0, 1, 0x7f, 0x80, 0xff, round as u8][random.below(6)];
        }
        seal(&mut bytes);
        if let Ok(header) = Header::parse(&bytes) {
            header.fingerprint().unwrap();
        }
        bytes[..end].copy_from_slice(&file.bytes[..end]);
    }
}

#[test]
fn bases_open_for_writing_elsewhere_are_refused() {
    let file = File::new();
    let base = Base::open(&file.path).unwrap();
    if !base.leased() {
        println!("skipped: no leases on this file system");
        return;
    }
    drop(base);
    let writer = std::fs::OpenOptions::new().append(true).open(&file.path).unwrap();
    let e = Base::open(&file.path).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Refused);
    drop(writer);
    let base = Base::open(&file.path).unwrap();
    // NONBLOCK: else this waits for the lease-break time.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let open = std::fs::OpenOptions::new().write(true).custom_flags(flags).open(&file.path);
    assert!(open.is_err());
    assert_eq!(base.check_unchanged().unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(base.verify().unwrap_err().kind(), ErrorKind::Refused);
}
