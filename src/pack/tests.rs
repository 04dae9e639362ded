//! Round trips, determinism, fingerprints, and the golden bytes that docs/FORMAT.md describes.

use super::header::*;
use super::testing::*;
use super::*;
use crate::adapter::TargetKind;
use crate::error::ErrorKind;
use crate::quant::{Packed, Scheme};
use std::path::Path;

#[test]
fn what_was_written_reads_back() {
    let file = File::new();
    let base = Base::open(&file.path).unwrap();
    base.verify().unwrap();
    base.check_unchanged().unwrap();
    base.will_need();
    let w = sample();
    assert_eq!(base.fingerprint(), w.fingerprint().unwrap());
    assert!(base.graph(0).unwrap().contains("offshoot_linear"));
    assert_eq!(base.graph(1).unwrap(), "version 1.0;\n");
    assert_eq!(base.graphs().collect::<Vec<_>>(), ["main", "step"]);
    assert_eq!(base.graph_index("step"), Some(1));
    assert!(base.graph(2).is_err() && base.constants(2).is_err() && base.graph_record(2).is_err());
    let again: Vec<ConstantRef> = base.constants(1).unwrap().collect();
    assert_eq!((again.len(), again[0].name, again[0].bytes.len()), (1, "again", 12));
    let constants: Vec<ConstantRef> = base.constants(0).unwrap().collect();
    assert_eq!(constants.len(), 3);
    assert_eq!((constants[0].name, constants[0].dtype), ("bias", ConstType::F32));
    assert_eq!((constants[0].shape, constants[0].bytes.len()), (&[3u64][..], 12));
    assert_eq!((constants[1].bytes, constants[1].shape), (&[1u8][..], &[][..]));
    assert_eq!(constants[2].shape, [0, 4]);
    assert_eq!(base.weight_count(), 2);
    assert_eq!(base.weight(0).unwrap().bytes(), matrix().bytes());
    assert_eq!(base.weight(1).unwrap().dequantize(), values(35));
    assert_eq!(base.weight_spec(1).unwrap().rows, 5);
    assert_eq!(base.weight(2).unwrap_err().kind(), ErrorKind::BadInput);
    assert_eq!(base.targets().len(), 3);
    assert_eq!(base.targets()[2].kind, TargetKind::Conv { kernel: [2, 5], one_axis: false });
    assert_eq!(base.preprocess().labels, ["no", "yes"]);
    assert_eq!(base.tokenizer().unwrap(), Some(&b"{\"model\":{}}"[..]));
    assert_eq!(base.record().graphs[0].properties[0].1, "a\nb\"");
    assert_eq!(base.graph_record(0).unwrap().inputs[0].role, Role::State(3));
    assert_eq!(base.file_len(), file.bytes.len() as u64);
    assert_eq!(base.sections().len(), 7);
    assert_eq!(base.path(), file.path);
}

#[test]
fn the_same_parts_give_the_same_bytes() {
    let (a, b) = (File::new(), File::new());
    assert!(a.bytes == b.bytes);
}

#[test]
fn an_empty_base_is_a_base() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty.base");
    assert!(BaseWriter::default().write(&path).unwrap_err().message().contains("0 graphs"));
    one_graph().write(&path).unwrap();
    let base = Base::open(&path).unwrap();
    base.verify().unwrap();
    assert_eq!(base.graph(0).unwrap(), "");
    assert_eq!(base.tokenizer().unwrap(), None);
    assert_eq!(base.constants(0).unwrap().count(), 0);
    assert_eq!(base.activation(0), Activation::Block);
    assert!(base.subspaces().unwrap().is_empty() && base.texts().unwrap().is_empty());
}

/// A writer with an empty graph.
fn one_graph() -> BaseWriter {
    let mut w = BaseWriter::default();
    w.graph("main", "", vec![]);
    w.record(ImportRecord { graphs: vec![GraphRecord::default()], ..ImportRecord::default() });
    w
}

#[test]
fn what_only_some_bases_have_reads_back() {
    let file = File::of(&full_sample());
    let base = Base::open(&file.path).unwrap();
    base.verify().unwrap();
    assert_eq!(base.sections().len(), 10);
    assert_eq!(base.activation(0), Activation::Row);
    assert_eq!(base.activation(2), Activation::Static { low: -1.0, high: 2.5 });
    let subspaces = base.subspaces().unwrap();
    assert_eq!((subspaces.len(), subspaces[0].rank, subspaces[0].basis[3]), (1, 2, 3));
    assert_eq!(base.text("generation_config.json").unwrap().unwrap().len(), 19);
    assert_eq!(base.text("config.json").unwrap(), None);
}

#[test]
fn what_a_base_hears_reads_back() {
    let mut w = one_graph();
    let spec = AudioSpec::named("whisper").unwrap();
    w.audio(Some(spec.clone()));
    let file = File::of(&w);
    let base = Base::open(&file.path).unwrap();
    base.verify().unwrap();
    assert_eq!(base.audio().unwrap(), Some(spec.clone()));
    let section = base.sections().into_iter().find(|s| s.name == "audio").unwrap();
    assert!(!section.required);
    assert_eq!(base.fingerprint(), one_graph().fingerprint().unwrap());
    assert_eq!(Base::open(&File::of(&one_graph()).path).unwrap().audio().unwrap(), None);
    w.audio(Some(AudioSpec { rate: 1, ..spec }));
    assert!(w.fingerprint().unwrap_err().message().contains("rate 1"));
}

#[test]
fn the_fingerprint_follows_the_function_and_nothing_else() {
    let name = sample().fingerprint().unwrap();
    let differs = |alter: &dyn Fn(&mut BaseWriter)| {
        let mut w = sample();
        alter(&mut w);
        w.fingerprint().unwrap() != name
    };
    assert!(!differs(&|w| {
        let graphs = vec![GraphRecord::default(); 2];
        w.record(ImportRecord { graphs, ..ImportRecord::default() });
    }));
    assert!(!differs(&|w| w.text("config.json", "{}")));
    assert!(!differs(&|w| {
        let basis = [0; 80];
        w.subspace(&Subspace { target: 0, rank: 1, energy: 0.5, basis: &basis }).unwrap();
    }));
    assert!(differs(&|w| w.activations(vec![Activation::Row; 3])));
    assert!(!differs(&|w| w.activations(vec![Activation::Block; 3])));
    assert!(!differs(&|w| w.tokenizer(vec![])));
    assert!(!differs(&|w| w.preprocess(Preprocess::default())));
    assert!(differs(&|w| {
        w.graph("other", "", vec![]);
        let graphs = vec![GraphRecord::default(); 3];
        w.record(ImportRecord { graphs, ..ImportRecord::default() });
    }));
    assert!(differs(&|w| {
        let names = ["renamed", "b", "c"];
        w.targets(names.map(|n| target(n, TargetKind::Linear, 0, 40, 20)).to_vec());
    }));
    assert!(differs(&|w| assert_eq!(w.constant(ConstType::U8, &[], &[0]).unwrap(), 3)));
    assert!(differs(&|w| {
        w.weight(Packed::pack(Scheme::F16, 5, 7, &values(35)).unwrap()).unwrap();
    }));
    // The same bytes under another type or name.
    let named = |name: &str, dtype| {
        let mut w = BaseWriter::default();
        let index = w.constant(dtype, &[1], &[0; 4]).unwrap();
        w.graph("main", "", vec![(name.to_string(), index)]);
        w.record(ImportRecord { graphs: vec![GraphRecord::default()], ..Default::default() });
        w.fingerprint().unwrap()
    };
    assert_ne!(named("a", ConstType::F32), named("b", ConstType::F32));
    assert_ne!(named("a", ConstType::F32), named("a", ConstType::I32));
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.base");
    let mut w = sample();
    assert!(w.constant(ConstType::F32, &[2], &[0; 7]).is_err());
    for (name, constants, words) in [
        ("main", vec![], "is no plain word or stands twice"),
        ("Main 2", vec![], "is no plain word or stands twice"),
        ("", vec![], "is no plain word or stands twice"),
        ("third", vec![("a", 0), ("a", 1)], "'a' is empty or stands twice"),
        ("third", vec![("", 0)], "'' is empty or stands twice"),
        ("third", vec![("a", 3)], "is number 3 of 3"),
    ] {
        let mut w = sample();
        let graphs = vec![GraphRecord::default(); 3];
        w.record(ImportRecord { graphs, ..ImportRecord::default() });
        w.graph(name, "", constants.into_iter().map(|(n, i)| (n.to_string(), i)).collect());
        let e = w.write(&path).unwrap_err();
        assert!(e.message().contains(words), "{e}");
    }
    w.graph("third", "", vec![]);
    assert!(w.write(&path).unwrap_err().message().contains("describes 2 graphs, the base has 3"));
    for activations in [vec![Activation::Row], vec![Activation::Static { low: 1.0, high: 1.0 }; 3]]
    {
        let mut w = sample();
        w.activations(activations);
        assert_eq!(w.write(&path).unwrap_err().kind(), ErrorKind::BadInput);
    }
    for bad in [
        target("q", TargetKind::Linear, 9, 40, 20),
        target("q", TargetKind::Linear, 0, 20, 40),
        target("", TargetKind::Linear, 0, 40, 20),
    ] {
        let mut w = sample();
        w.targets(vec![bad]);
        assert_eq!(w.write(&path).unwrap_err().kind(), ErrorKind::BadInput);
    }
    let mut w = sample();
    w.targets(vec![]);
    assert!(w.write(&path).unwrap_err().message().contains("names target 2 of 0"));
    let mut w = sample();
    w.preprocess(Preprocess { max_tokens: Some(0), ..Default::default() });
    assert!(w.write(&path).is_err());
    let mut w = BaseWriter::default();
    let index = w.constant(ConstType::U8, &[1], &[0]).unwrap();
    let many = (0..40_000).map(|i| (format!("a constant with a long name {i}"), index)).collect();
    w.graph("main", "", many);
    w.record(ImportRecord { graphs: vec![GraphRecord::default()], ..Default::default() });
    assert_eq!(w.write(&path).unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(!path.exists());
}

/// A base in use is packed again to the same path: the old mapping keeps its bytes.
#[test]
fn saving_again_under_a_live_mapping_keeps_the_old_base_whole() {
    let file = File::new();
    let old = Base::open(&file.path).unwrap();
    let mut w = one_graph();
    w.weight(matrix()).unwrap();
    let new = w.write(&file.path).unwrap();
    assert_ne!(old.fingerprint(), new);
    old.verify().unwrap();
    assert!(old.graph(0).unwrap().contains("offshoot_linear"));
    assert_eq!(Base::open(&file.path).unwrap().fingerprint(), new);
    std::fs::remove_file(&file.path).unwrap();
    old.verify().unwrap();
}

#[test]
fn a_base_serves_several_threads() {
    let file = File::new();
    let base = Base::open(&file.path).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let base = base.clone();
            scope.spawn(move || {
                for _ in 0..50 {
                    assert_eq!(base.constants(0).unwrap().count(), 3);
                    assert_eq!(base.weight(1).unwrap().dequantize(), values(35));
                }
            });
        }
    });
}

#[test]
fn opening_does_not_read_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.base");
    let mut w = one_graph();
    w.weight(Packed::pack(Scheme::F32, 1024, 4096, &values(4 << 20)).unwrap()).unwrap();
    w.write(&path).unwrap();
    let base = Base::open(&path).unwrap();
    assert!(base.weight(0).unwrap().bytes().len() == 16 << 20);
    let resident = mapped_resident(&path);
    assert!(resident < 1 << 20, "{resident} bytes resident after open");
    base.verify().unwrap();
    assert!(mapped_resident(&path) >= 16 << 20);
}

/// Resident bytes of this process's mapping of `path`.
fn mapped_resident(path: &Path) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let from = smaps.find(path.to_str().unwrap()).unwrap();
    let rss = smaps[from..].lines().find_map(|l| l.strip_prefix("Rss:")).unwrap();
    rss.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// Programs that know no scales for 64 columns refuse a base that has some, by its version.
#[test]
fn a_base_with_wide_blocks_is_of_version_3() {
    let mut w = one_graph();
    let wide = Packed::pack(Scheme::Q8Wide, 5, 70, &values(350)).unwrap();
    w.weight(wide.clone()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wide.base");
    w.write(&path).unwrap();
    let base = Base::open(&path).unwrap();
    assert_eq!(base.weight(0).unwrap().dequantize(), wide.view().dequantize());
    assert_eq!(base.weight_spec(0).unwrap().scheme.name(), "q8-64");
    assert_eq!(std::fs::read(&path).unwrap()[VERSION_AT], 3);
    let file = File::new();
    assert_eq!(file.bytes[VERSION_AT], 2);
    let mut bytes = file.bytes.clone();
    bytes[VERSION_AT] = 3;
    seal(&mut bytes);
    let e = file.open(&bytes).unwrap_err();
    assert!(e.message().contains("of another format version"), "{e}");
}

/// The bytes themselves: a change here is a change of the format and needs a new version.
#[test]
fn golden_bytes() {
    let file = File::new();
    let bytes = &file.bytes;
    assert_eq!(bytes[..24], *b"offbase\n\x02\0\0\0\x9f\x01\0\0\x40\x0a\x07\0\0\0\0\0");
    // Section table: count, then kind, flags, offset, length, hash.
    let first = &bytes[PREFIX_LEN..];
    assert_eq!(first[..11], [7, 1, MUST, 0, 0, 1, 0, 0, 0, 0, 0]);
    assert_eq!(first[11..19], 75u64.to_le_bytes());
    assert_eq!(first[19..51], *blake3::hash(&bytes[65536..65536 + 75]).as_bytes());
    // Behind seven entries: the graphs (name, bytes of text, constants), the weight table (scheme,
    // rows, cols, offset), then the constants.
    let tables = &bytes[PREFIX_LEN + 1 + 7 * 50..PREFIX_LEN + 0x19f];
    assert_eq!(tables[..26], *b"\x02\x04main\x3e\x03\x04bias\0\x04flag\x01\x04none\x02");
    assert_eq!(tables[26..40], *b"\x04step\x0d\x01\x05again\0");
    assert_eq!(tables[40..50], [2, 0, 20, 40, 0, 3, 5, 7, 0x80, 0x11]);
    assert_eq!(tables[50..], [3, 0, 1, 3, 0, 11, 0, 64, 6, 2, 0, 4, 0x80, 1]);
    assert_eq!(blake3::hash(bytes).to_hex().as_str(), GOLDEN_FILE);
    assert_eq!(sample().fingerprint().unwrap().to_string(), GOLDEN_FINGERPRINT);
}

/// A kernel maps and drops whole pages: of 4, 16 or 64 KiB, as the board's has them.
#[test]
fn sections_start_on_a_page_of_every_board() {
    let file = File::new();
    let base = Base::open(&file.path).unwrap();
    for page in [4 << 10, 16 << 10, 64 << 10] {
        assert_eq!(SECTION_ALIGN % page, 0);
        for section in base.sections() {
            assert_eq!(section.offset % page, 0, "{section:?} and pages of {page}");
        }
        for (end, start) in
            [(0, 0), (1, page), (page - 1, page), (page, page), (page + 1, 2 * page)]
        {
            assert_eq!(align_up(end, page), Some(start));
        }
        assert_eq!(align_up(u64::MAX - 1, page), None);
    }
}

/// docs/FORMAT.md's prefix table and the constants.
#[test]
fn the_format_page_has_the_codes_offsets() {
    let page = include_str!("../../docs/FORMAT.md");
    for (at, len, name) in [
        (0, MAGIC.len(), "magic"),
        (VERSION_AT, 4, "version"),
        (HEADER_LEN_AT, 4, "header length"),
        (FILE_LEN_AT, 8, "file length"),
        (RESERVED_AT, 8, "reserved"),
        (HASH_AT, 32, "header hash"),
    ] {
        assert!(page.contains(&format!("| {at} | {len} | {name} |")), "{name} at {at}");
    }
    assert!(page.contains(&format!("| {PREFIX_LEN} | header length | header |")));
    for kind in ALWAYS.into_iter().chain(FURTHER) {
        assert!(page.contains(&format!("| {} | `{}` |", kind as u8, kind.name())), "{kind:?}");
    }
    assert!(page.contains(&format!("Format version {VERSION}")));
    for (name, value) in [("section alignment", SECTION_ALIGN), ("weight alignment", WEIGHT_ALIGN)]
    {
        assert!(page.contains(&format!("{name}: {value} bytes")), "{name}");
    }
}

const GOLDEN_FILE: &str = "07bc47e3a04ba5c2ded658c05db26838b0bac1ec9e789485e7bb6387966c3d8a";
const GOLDEN_FINGERPRINT: &str =
    "blake3:6b0b39bf3c342ef5f614ee28660dd4143a010c81c17ecc38bbfd6f8beff29ee3";
