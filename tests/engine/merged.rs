//! An adapter gives what the network gives with the adapter's products added to its weights, for
//! each kind of layer: checked against the ONNX file itself, written anew.

use crate::support::*;
use offshoot::Scheme;
use offshoot::adapters::{Target, TargetAdapter, TargetKind};
use offshoot::packing::PackOptions;
use prost::Message;
use tract_onnx::pb::{ModelProto, TensorProto};

/// scaling · lora_b · lora_a, (out, in) row-major.
fn product(pair: &TargetAdapter) -> Vec<f32> {
    let (lora_a, lora_b) = (&pair.tensors[0], &pair.tensors[1]);
    let (rank, width) = (pair.rank as usize, lora_a.shape[1]);
    let scaling = pair.scaling();
    let mut sum = vec![0.0; lora_b.shape[0] * width];
    for (row, b) in sum.chunks_mut(width).zip(lora_b.values.chunks(rank)) {
        for (b, a) in b.iter().zip(lora_a.values.chunks(width)) {
            row.iter_mut().zip(a).for_each(|(y, a)| *y += scaling * b * a);
        }
    }
    sum
}

/// Adds a target's product to the initializer that its node reads.
fn add(weight: &mut TensorProto, target: &Target, product: &[f32], transposed: bool) {
    let chunks = weight.raw_data.as_chunks::<4>().0;
    let mut values: Vec<f32> = chunks.iter().map(|c| f32::from_le_bytes(*c)).collect();
    assert_eq!(values.len(), product.len(), "{}", target.module_path);
    let (rows, cols) = (target.out_features as usize, target.in_features as usize);
    // Ours are (out, kh·kw·C); ONNX has (out, C, kh, kw) for a convolution and (in, out) for a MatMul.
    let area = match target.kind {
        TargetKind::Conv { kernel, .. } => (kernel[0] * kernel[1]) as usize,
        _ => 1,
    };
    let channels = cols / area;
    for row in 0..rows {
        for col in 0..cols {
            let (place, channel) = (col / channels, col % channels);
            let at = match transposed {
                true => col * rows + row,
                false => row * cols + channel * area + place,
            };
            values[at] += product[row * cols + col];
        }
    }
    weight.raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
}

fn check(name: &str, expected_kinds: &[TargetKind]) {
    let source = model(&format!("tiny/{name}.onnx"));
    let options = PackOptions { scheme: Scheme::F32, ..PackOptions::default() };
    let engine = packed(&source, &options);
    for kind in expected_kinds {
        let found = engine.base().targets().iter().any(|t| t.kind == *kind);
        assert!(found, "{name} has no target {kind:?}: {:?}", engine.base().targets());
    }
    let adapter = adapter(&engine, 5, |t| t.kind != TargetKind::Embedding);

    let mut proto = ModelProto::decode(std::fs::read(&source).unwrap().as_slice()).unwrap();
    let graph = proto.graph.as_mut().unwrap();
    for pair in &adapter.targets {
        let targets = engine.base().targets();
        let target = targets.iter().find(|t| t.module_path == pair.module_path).unwrap();
        let node = graph.node.iter().find(|n| n.name == target.node).unwrap();
        let transposed = match node.op_type.as_str() {
            "MatMul" => true,
            "Gemm" => !node.attribute.iter().any(|a| a.name == "transB" && a.i == 1),
            _ => false,
        };
        let weight = graph.initializer.iter_mut().find(|t| t.name == node.input[1]).unwrap();
        add(weight, target, &product(pair), transposed);
    }
    let folder = tempfile::tempdir().unwrap();
    let merged = folder.path().join("merged.onnx");
    std::fs::write(&merged, proto.encode_to_vec()).unwrap();
    let merged = packed(&merged, &options);

    let inputs = reference(&model(&format!("tiny/{name}.npz"))).inputs;
    let bound = engine.bind(&[(&adapter, 1.0)]).unwrap();
    let adapted = engine.run(&inputs, Some(&bound)).unwrap();
    let base = engine.run(&inputs, None).unwrap();
    let merged = merged.run(&inputs, None).unwrap();
    for (((output, adapted), (_, merged)), (_, base)) in adapted.iter().zip(&merged).zip(&base) {
        let (adapted, merged) = (adapted.as_f32().unwrap(), merged.as_f32().unwrap());
        let effect = max_difference(merged, base.as_f32().unwrap());
        let apart = max_difference(adapted, merged);
        println!("{name} '{output}': apart {apart:.1e}, effect {effect:.1e}");
        assert!(effect > 1e-2, "{name} '{output}': the adapter moves nothing");
        let size = merged.iter().fold(1f32, |m, v| m.max(v.abs()));
        assert!(apart <= 1e-4 * size, "{name} '{output}': {apart} of {size}");
    }
}

#[test]
fn products() {
    check("mlp", &[TargetKind::Linear]);
    check("attention", &[TargetKind::Linear]);
    check("primitives", &[TargetKind::Linear]);
}

#[test]
fn convolutions() {
    let conv = |side| TargetKind::Conv { kernel: [side; 2], one_axis: false };
    check("convnet", &[conv(1), conv(3), TargetKind::Linear]);
    check("bn", &[conv(1), conv(3)]);
    check("conv1d", &[TargetKind::Conv { kernel: [1, 5], one_axis: true }]);
}
