#!/usr/bin/env python3
"""Makes the int8 models of this folder from full-precision ONNX files.

Weights become int8 initializers followed by a per-channel DequantizeLinear
(symmetric, no zero point); everything else stays as the source has it: node
names, node metadata, inputs, outputs, dynamic dims, opset.

The DequantizeLinear output carries the name of the initializer it replaces,
so no other node changes and tools that name layers after initializers still do.
The integers are called NAME_quantized, the scales NAME_scale. Scales are exact
in float16. Which way a weight is rounded follows GPTQ (Frantar et al. 2022):
the error of each column is made good in the columns not yet rounded, weighed by
the second moments of the layer's inputs on the samples of calibrate.py.

usage: make_models.py [--source DIR] [--reference DIR] [--data FILE] [--check-only]
needs: onnx, onnxruntime, numpy, pillow, tokenizers
"""

import argparse
import copy
import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

import calibrate

HERE = Path(__file__).resolve().parent

# Tables smaller than this stay float: token_type has two rows.
MIN_EMBEDDING_ROWS = 16

# Share of a layer's mean second moment that is added to its diagonal before the inverse.
DAMPING = 0.01

MODELS = {
    "efficientnet-lite0": {
        "references": "efficientnet_lite0/ref_*.npz",
        "top1": "logits",
        "extra": [],
        # 4 % of the weights, which cause more than half of the error on real pictures.
        "keep_float": lambda node: "_depthwise_conv" in node.name or "_conv_stem" in node.name,
    },
    "minilm-l6": {
        "references": "minilm/ref_dynamo_*.npz",
        "top1": None,
        "extra": ["minilm-l6.tokenizer.json"],
        "keep_float": lambda node: False,
    },
}


def half_up(scale):
    """The smallest float16 values that are not below `scale`, as float32."""
    half = scale.astype(np.float16)
    low = half.astype(np.float32) < scale
    half[low] = np.nextafter(half[low], np.float16(np.inf))
    return half.astype(np.float32)


def row_scales(rows):
    peak = np.abs(rows).max(axis=1)
    return half_up(np.where(peak > 0, peak / np.float32(127), 1).astype(np.float32))


def round_nearest(rows, scale):
    return np.clip(np.rint(rows / scale[:, None]), -127, 127)


def round_by_moments(rows, moments, scale):
    """Integers of `rows` [out, in] that keep rows·x for inputs of second moments [in, in]."""
    size = rows.shape[1]
    mean = np.diag(moments).mean()
    if mean <= 0:
        return round_nearest(rows, scale)
    moments = moments + np.eye(size) * DAMPING * mean
    order = np.argsort(-np.diag(moments), kind="stable")
    rest = rows[:, order].astype(np.float64)
    upper = np.linalg.cholesky(np.linalg.inv(moments[order][:, order])).T
    scale = scale.astype(np.float64)
    ints = np.zeros_like(rest)
    for i in range(size):
        ints[:, i] = np.clip(np.rint(rest[:, i] / scale), -127, 127)
        error = (rest[:, i] - ints[:, i] * scale) / upper[i, i]
        rest[:, i + 1 :] -= error[:, None] * upper[i, i + 1 :]
    return ints[:, np.argsort(order)]


def attributes(node):
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def channel_axis(node, slot, shape):
    """The axis of output channels if input `slot` of `node` is a weight to quantize."""
    if node.op_type == "Conv" and slot == 1:
        return 0
    if node.op_type == "MatMul" and slot == 1 and len(shape) == 2:
        return 1
    if node.op_type == "Gemm" and slot == 1 and len(shape) == 2:
        return 0 if attributes(node).get("transB", 0) else 1
    if node.op_type == "Gather" and slot == 0 and len(shape) == 2:
        by_row = attributes(node).get("axis", 0) == 0
        return 0 if by_row and shape[0] >= MIN_EMBEDDING_ROWS else None
    return None


def layer_rows(node, x, weight):
    """What the layer multiplies its weight rows with: [groups, in, samples]."""
    if node.op_type != "Conv":
        return x.reshape(1, -1, x.shape[-1]).swapaxes(1, 2)
    about = attributes(node)
    pads = about.get("pads", [0] * 4)
    stride, dilation = about.get("strides", [1, 1]), about.get("dilations", [1, 1])
    kernel = weight.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    out = [(x.shape[2 + d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in (0, 1)]
    taps = []
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            rows = slice(top, top + (out[0] - 1) * stride[0] + 1, stride[0])
            columns = slice(left, left + (out[1] - 1) * stride[1] + 1, stride[1])
            taps.append(x[:, :, rows, columns])
    taps = np.stack(taps, 2).transpose(1, 2, 0, 3, 4)
    return taps.reshape(about.get("group", 1), -1, taps[0, 0].size)


def input_moments(model, feeds, layers):
    """Mean second moments [groups, in, in] of the inputs of each of `layers` (node, weight)."""
    model = copy.deepcopy(model)
    given = {i.name for i in model.graph.input}
    known = {o.name for o in model.graph.output} | given
    needed = sorted({node.input[0] for node, _ in layers})
    for name in needed:
        if name not in known:
            model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    run = session(model.SerializeToString())
    fetched = [name for name in needed if name not in given]
    moments = {}
    for feed in feeds:
        values = dict(zip(fetched, run.run(fetched, feed))) | feed
        for node, weight in layers:
            rows = layer_rows(node, values[node.input[0]], weight)
            found = np.matmul(rows, rows.swapaxes(1, 2)).astype(np.float64) / rows.shape[2] / len(feeds)
            moments[node.name] = moments[node.name] + found if node.name in moments else found
    return moments


def convert(model, feeds, keep_float):
    """Quantizes in place; returns (name, node, axis, shape, relative error) per weight."""
    graph = model.graph
    uses = {}
    for node in graph.node:
        for slot, name in enumerate(node.input):
            uses.setdefault(name, []).append((node, slot))
    chosen = {}
    for tensor in graph.initializer:
        shape, found = list(tensor.dims), uses.get(tensor.name, [])
        axes = {channel_axis(node, slot, shape) for node, slot in found}
        whole = tensor.data_type == onnx.TensorProto.FLOAT and len(axes) == 1 and None not in axes
        if whole and not any(keep_float(node) for node, _ in found):
            chosen[tensor.name] = (found[0][0], axes.pop(), numpy_helper.to_array(tensor))
    layers = [(node, weight) for node, _, weight in chosen.values() if node.op_type != "Gather"]
    moments = input_moments(model, feeds, layers)

    kept, nodes, report = [], [], []
    for tensor in graph.initializer:
        name = tensor.name
        if name not in chosen:
            kept.append(tensor)
            continue
        node, axis, weight = chosen[name]
        moved = np.moveaxis(weight, axis, 0)
        rows = moved.reshape(moved.shape[0], -1)
        scale = row_scales(rows)
        if node.op_type == "Gather":
            ints = round_nearest(rows, scale)
        else:
            groups = moments[node.name]
            parts = zip(np.split(rows, len(groups)), groups, np.split(scale, len(groups)))
            ints = np.concatenate([round_by_moments(*part) for part in parts])
        error = np.linalg.norm(ints * scale[:, None] - rows) / np.linalg.norm(rows)
        report.append((name, node.name, axis, weight.shape, float(error)))
        ints = np.ascontiguousarray(np.moveaxis(ints.astype(np.int8).reshape(moved.shape), 0, axis))
        kept.append(numpy_helper.from_array(ints, name + "_quantized"))
        kept.append(numpy_helper.from_array(scale, name + "_scale"))
        inputs = [name + "_quantized", name + "_scale"]
        nodes.append(
            helper.make_node("DequantizeLinear", inputs, [name], name=name + "_dequantize", axis=axis)
        )
    nodes.extend(graph.node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return report


def session(model):
    """A session on a path or on bytes that computes in float32.

    Above the basic level ONNX Runtime turns DequantizeLinear + MatMul into a product
    that quantizes the activations too, which costs accuracy that the file does not.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def cosines(got, want, mask):
    if mask is not None and got.ndim == 3:
        got, want = got[mask > 0], want[mask > 0]
    got, want = (a.reshape(-1, a.shape[-1]).astype(np.float64) for a in (got, want))
    return (got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)


def compare(run, pairs, top1):
    """Per output the least and the mean cosine over all rows of `pairs` (feeds, wanted outputs);
    and how many rows of output `top1` keep their largest class, of how many."""
    names = [o.name for o in run.get_outputs()]
    found, kept, rows = {name: [] for name in names}, 0, 0
    for feeds, wanted in pairs:
        for name, got in zip(names, run.run(names, feeds)):
            found[name].extend(cosines(got, wanted[name], feeds.get("attention_mask")))
            if name == top1:
                kept += int((got.argmax(-1) == wanted[name].argmax(-1)).sum())
                rows += got.shape[0]
    return {name: (min(all), sum(all) / len(all)) for name, all in found.items()}, (kept, rows)


def print_comparison(title, run, pairs, top1):
    found, (kept, rows) = compare(run, pairs, top1)
    for output, (least, mean) in found.items():
        print(f"  {title}: cosine of {output} at least {least:.6f}, mean {mean:.6f}")
    if rows:
        print(f"  {title}: top-1 kept {kept} of {rows}")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--source", type=Path, default=Path("/work/shared/models"))
    arguments.add_argument("--reference", type=Path, default=Path("/work/shared/reference"))
    arguments.add_argument("--data", type=Path, default=Path("/work/shared/data/fashion_mnist_5k.npz"))
    arguments.add_argument("--check-only", action="store_true", help="measure the files that are here")
    arguments = arguments.parse_args()
    for name, about in MODELS.items():
        path, result = arguments.source / f"{name}.onnx", HERE / f"{name}.onnx"
        print(f"{name}: source sha256 {sha256(path)}")
        source = onnx.load(path)
        if name == "minilm-l6":
            fit, check = calibrate.sentences(arguments.source / "minilm-l6.tokenizer.json")
        else:
            fit, check = calibrate.images(arguments.data)
        if not arguments.check_only:
            model = copy.deepcopy(source)
            report = convert(model, fit, about["keep_float"])
            onnx.checker.check_model(model)
            # Written beside and moved, so that a reader never sees half a file.
            onnx.save(model, result.with_suffix(".part"))
            result.with_suffix(".part").replace(result)
            for extra in about["extra"]:
                shutil.copyfile(arguments.source / extra, HERE / extra)
            print(f"  {len(report)} weights are int8 now")
        print(f"  result sha256 {sha256(result)}, {result.stat().st_size} bytes")
        references = sorted(arguments.reference.glob(about["references"]))
        if not references:
            sys.exit(f"no file '{about['references']}' under '{arguments.reference}'")
        pairs = []
        for reference in references:
            arrays = np.load(reference)
            feeds, wanted = ({k[len(p) :]: arrays[k] for k in arrays if k.startswith(p)} for p in ("in.", "out."))
            pairs.append((feeds, wanted))
        run, whole = session(str(result)), session(str(path))
        names = [o.name for o in whole.get_outputs()]
        print_comparison("references", run, pairs, about["top1"])
        pairs = [(feeds, dict(zip(names, whole.run(names, feeds)))) for feeds in check]
        print_comparison("held-out samples", run, pairs, about["top1"])


if __name__ == "__main__":
    main()
