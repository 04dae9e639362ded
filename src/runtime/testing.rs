//! Bases for tests that no shipped model is.

use super::{Engine, PackOptions, pack};
use prost::Message;

/// `conv1d` with a kernel of `width` in place of its 5.
pub fn conv1d_of(width: usize) -> (tempfile::TempDir, Engine) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny/conv1d.onnx");
    let bytes = std::fs::read(source).unwrap();
    let mut model = tract_onnx::pb::ModelProto::decode(bytes.as_slice()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let weight = graph.initializer.iter_mut().find(|t| t.dims == [10, 4, 5]).unwrap();
    weight.dims[2] = width as i64;
    weight.float_data.clear();
    weight.raw_data = [0, 0, 0, 0x3c].repeat(10 * 4 * width);
    let conv = graph.node.iter_mut().find(|n| n.op_type == "Conv").unwrap();
    for attribute in &mut conv.attribute {
        if attribute.name == "kernel_shape" {
            attribute.ints = vec![width as i64];
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let (onnx, base) = (dir.path().join("wide.onnx"), dir.path().join("wide.base"));
    std::fs::write(&onnx, model.encode_to_vec()).unwrap();
    // The widest runs on none of the inputs that packing makes up.
    let options = PackOptions { untried: true, ..PackOptions::default() };
    pack(&onnx, &base, &options).unwrap();
    let engine = Engine::open(&base).unwrap();
    (dir, engine)
}
