//! A base for the tests, and its file in pieces.

use super::header::*;
use super::*;
use crate::adapter::{Target, TargetKind};
use crate::error::Error;
use crate::quant::{Packed, Scheme};
use crate::shape::DType;
use std::path::PathBuf;

pub(super) fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect()
}

/// Integers and a scale that f16 holds, so that its bytes depend on the layout alone.
pub(super) fn matrix() -> Packed {
    let ints: Vec<i8> = (0..800).map(|i| (i * 37 % 255 - 127) as i8).collect();
    Packed::pack_int8(Scheme::Q8, [20, 40], &ints, &[0.25]).unwrap()
}

pub(super) fn target(
    name: &str,
    kind: TargetKind,
    weight: u32,
    in_features: u32,
    out_features: u32,
) -> Target {
    let (module_path, node) = (name.to_string(), format!("/{name}/MatMul"));
    Target { module_path, node, kind, weight, in_features, out_features }
}

pub(super) fn sample() -> BaseWriter {
    let mut w = BaseWriter::default();
    let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    let bias = w.constant(ConstType::F32, &[3], &bytes).unwrap();
    let flag = w.constant(ConstType::Bool, &[], &[1]).unwrap();
    let none = w.constant(ConstType::I64, &[0, 4], &[]).unwrap();
    assert_eq!(w.constant(ConstType::F32, &[3], &bytes).unwrap(), bias);
    let named = |names: &[(&str, u32)]| names.iter().map(|(n, i)| (n.to_string(), *i)).collect();
    let all = named(&[("bias", bias), ("flag", flag), ("none", none)]);
    w.graph("main", "version 1.0;\n\ngraph net(x) -> (y) { y = offshoot_linear(x); }\n", all);
    w.graph("step", "version 1.0;\n", named(&[("again", bias)]));
    let a = w.weight(matrix()).unwrap();
    let b = w.weight(Packed::pack(Scheme::F32, 5, 7, &values(35)).unwrap()).unwrap();
    let again = w.weight(matrix()).unwrap();
    assert_eq!((a, b, again), (0, 1, 0));
    w.targets(vec![
        target("layer.0.query", TargetKind::Linear, 0, 40, 20),
        target("words", TargetKind::Embedding, 1, 5, 7),
        target("conv", TargetKind::Conv { kernel: [2, 5], one_axis: false }, 0, 40, 20),
    ]);
    w.preprocess(Preprocess {
        image: Some(ImageSpec {
            size: [24, 32],
            mean: [0.5; 3],
            std: [0.25; 3],
            ..ImageSpec::default()
        }),
        problem: Some(Problem::Classes),
        labels: vec!["no".into(), "yes".into()],
        max_tokens: Some(128),
    });
    w.tokenizer(b"{\"model\":{}}".to_vec());
    w.record(ImportRecord {
        tool: "offshoot test".into(),
        graphs: vec![main_record(), GraphRecord::default()],
        errors: vec![TargetError { target: 2, scheme: Scheme::Q8, relative: 0.01, max_abs: 0.5 }],
    });
    w
}

fn main_record() -> GraphRecord {
    GraphRecord {
        source_name: "net.onnx".into(),
        source_hash: blake3::hash(b"net").to_hex().to_string(),
        source_bytes: 1234,
        opset: 17,
        dims: vec![("batch".into(), 1)],
        fixed_inputs: vec![("x".into(), "1x40,f32".into())],
        fixed_values: vec![("sr".into(), "16000".into())],
        bound: vec![Bound { name: "n".into(), to: "1".into(), why: "left free".into() }],
        node_names: vec![("n0".into(), "/layer.0/query/MatMul".into())],
        symbols: vec![("s0".into(), "batch.size".into())],
        inputs: vec![IoSpec {
            name: "x:0".into(),
            safe_name: "x".into(),
            dtype: DType::F32,
            dims: vec!["1".into(), "s0".into()],
            role: Role::State(3),
        }],
        outputs: vec![],
        properties: vec![("character".into(), "a\nb\"".into())],
    }
}

/// The sample with everything that only some bases have.
pub(super) fn full_sample() -> BaseWriter {
    let mut w = sample();
    let ranged = Activation::Static { low: -1.0, high: 2.5 };
    w.activations(vec![Activation::Row, Activation::Block, ranged]);
    let basis: Vec<u8> = (0..160).map(|i| i as u8).collect();
    w.subspace(&Subspace { target: 0, rank: 2, energy: 0.9, basis: &basis }).unwrap();
    w.text("generation_config.json", "{\"eos_token_id\": 2}");
    w
}

pub(super) struct File {
    _dir: tempfile::TempDir,
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

impl File {
    pub(super) fn new() -> File {
        File::of(&sample())
    }

    pub(super) fn of(writer: &BaseWriter) -> File {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.base");
        writer.write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        File { _dir: dir, path, bytes }
    }

    /// The error of opening `bytes`.
    pub(super) fn open(&self, bytes: &[u8]) -> Result<Base, Error> {
        std::fs::write(&self.path, bytes).unwrap();
        Base::open(&self.path)
    }

    /// Opens the file with an altered header whose hash and lengths are right again.
    pub(super) fn resealed(&self, alter: impl FnOnce(&mut Header)) -> Result<Base, Error> {
        self.resealed_to(self.bytes.len() as u64, alter)
    }

    /// The same of a file that has grown to `len` bytes; its header still is as it was.
    pub(super) fn resealed_to(
        &self,
        len: u64,
        alter: impl FnOnce(&mut Header),
    ) -> Result<Base, Error> {
        let old = u64::from_le_bytes(self.bytes[FILE_LEN_AT..][..8].try_into().unwrap());
        let mut header = Header::parse(&self.bytes[..old as usize]).unwrap();
        alter(&mut header);
        let old = header_end(&self.bytes);
        let body = postcard::to_stdvec(&header).unwrap();
        let mut bytes = self.bytes.clone();
        bytes[PREFIX_LEN..old].fill(0);
        bytes[PREFIX_LEN..PREFIX_LEN + body.len()].copy_from_slice(&body);
        bytes[HEADER_LEN_AT..][..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
        bytes[FILE_LEN_AT..][..8].copy_from_slice(&len.to_le_bytes());
        seal(&mut bytes);
        self.open(&bytes)
    }
}

pub(super) fn header_end(bytes: &[u8]) -> usize {
    let len = u32::from_le_bytes(bytes[HEADER_LEN_AT..][..4].try_into().unwrap());
    PREFIX_LEN + len as usize
}

/// Makes the header's hash right again.
pub(super) fn seal(bytes: &mut [u8]) {
    let end = header_end(bytes);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..HASH_AT]).update(&bytes[PREFIX_LEN..end]);
    let hash = *hasher.finalize().as_bytes();
    bytes[HASH_AT..PREFIX_LEN].copy_from_slice(&hash);
}

/// Small deterministic random numbers (splitmix64).
pub(super) struct Random(pub u64);

impl Random {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}
