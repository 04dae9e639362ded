#!/usr/bin/env python3
"""Makes the tiny random models that the tests use, and ONNX Runtime's answers to fixed inputs.

Each NAME.onnx comes with NAME.npz: arrays in.INPUT and out.OUTPUT. Seeds are fixed,
so that a second run writes the same bytes.

usage: make_tiny.py
needs: onnx, onnxruntime, numpy
"""

import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
TYPES = {"f32": TensorProto.FLOAT, "i64": TensorProto.INT64, "bool": TensorProto.BOOL}


class Model:
    """Collects nodes, weights, inputs and outputs; methods return the value's name."""

    def __init__(self, name, opset=17):
        self.name, self.opset = name, opset
        self.nodes, self.weights, self.inputs, self.outputs = [], [], [], []
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))

    def input(self, name, kind, shape):
        self.inputs.append(helper.make_tensor_value_info(name, TYPES[kind], shape))
        return name

    def output(self, name, kind, shape):
        self.outputs.append(helper.make_tensor_value_info(name, TYPES[kind], shape))

    def const(self, name, values):
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def random(self, name, *shape, spread=None):
        """Normal values; the deviation keeps the size of what passes through."""
        spread = spread or 1 / np.sqrt(max(np.prod(shape[1:]), 1))
        return self.const(name, (self.rng.standard_normal(shape) * spread).astype(np.float32))

    def near(self, name, middle, *shape):
        return self.const(name, (middle + 0.1 * self.rng.standard_normal(shape)).astype(np.float32))

    def op(self, kind, *inputs, name=None, out=None, **attributes):
        name = name or f"/{kind}_{len(self.nodes)}"
        out = out or f"{name}_output_0"
        outs = out if isinstance(out, list) else [out]
        self.nodes.append(helper.make_node(kind, list(inputs), outs, name=name, **attributes))
        return outs[0]

    def linear(self, scope, x, inside, outside):
        """MatMul + Add under a scope, as the legacy PyTorch exporter writes it."""
        path = scope.strip("/").replace("/", ".")
        weight = self.random(f"onnx::MatMul_{len(self.weights)}", inside, outside, spread=inside**-0.5)
        y = self.op("MatMul", x, weight, name=f"{scope}/MatMul")
        return self.op("Add", self.random(f"{path}.bias", outside, spread=0.1), y, name=f"{scope}/Add")

    def conv(self, name, x, outside, inside, kernel, group=1, bias=True, **attributes):
        shape = (outside, inside // group, *kernel)
        inputs = [x, self.random(f"{name}.weight", *shape)]
        if bias:
            inputs.append(self.random(f"{name}.bias", outside, spread=0.1))
        return self.op("Conv", *inputs, name=f"/{name}/Conv", kernel_shape=kernel, group=group, **attributes)

    def save(self, **feeds):
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.weights)
        opset = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="offshoot")
        onnx.checker.check_model(model, full_check=True)
        path = HERE / f"{self.name}.onnx"
        onnx.save(model, path)
        options = ort.SessionOptions()
        # Keeps integer weights exact: above it DequantizeLinear + MatMul rounds the activations.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        answers = session.run(names, feeds)
        arrays = {f"in.{k}": v for k, v in feeds.items()}
        arrays |= {f"out.{k}": v for k, v in zip(names, answers)}
        assert all(np.isfinite(a).all() for a in answers), self.name
        assert all(a.std() > 1e-3 for a in answers if a.size > 1), f"{self.name}: a constant output tests nothing"
        np.savez(HERE / f"{self.name}.npz", **arrays)
        shapes = {n: a.shape for n, a in zip(names, answers)}
        print(f"{self.name}: {path.stat().st_size} bytes, {len(self.nodes)} nodes, {shapes}")

    def sample(self, *shape):
        return self.rng.standard_normal(shape).astype(np.float32)


def mlp():
    m = Model("mlp")
    x = m.input("x", "f32", ["batch", 12])
    weight, bias = m.random("fc1.weight", 20, 12), m.random("fc1.bias", 20, spread=0.1)
    h = m.op("Relu", m.op("Gemm", x, weight, bias, name="/fc1/Gemm", transB=1), name="/act/Relu")
    weight, bias = m.random("fc2.weight", 20, 5), m.random("fc2.bias", 5, spread=0.1)
    m.op("Gemm", h, weight, bias, name="/fc2/Gemm", transB=0, out="y")
    m.output("y", "f32", ["batch", 5])
    m.save(x=m.sample(3, 12))


def layer_norm(m, scope, x, size):
    path = scope.strip("/").replace("/", ".")
    gain, shift = m.near(f"{path}.weight", 1, size), m.near(f"{path}.bias", 0, size)
    return m.op("LayerNormalization", x, gain, shift, name=f"{scope}/LayerNormalization", axis=-1, epsilon=1e-12)


def attention():
    vocab, size, heads = 50, 32, 2
    m = Model("attention")
    ids = m.input("input_ids", "i64", ["batch", "seq"])
    mask = m.input("attention_mask", "i64", ["batch", "seq"])
    scope = "/embeddings"
    words = m.random("embeddings.word_embeddings.weight", vocab, size, spread=0.5)
    words = m.op("Gather", words, ids, name=f"{scope}/word_embeddings/Gather")
    one = m.const("one", np.int64(1))
    length = m.op("Gather", m.op("Shape", ids, name=f"{scope}/Shape"), one, name=f"{scope}/Gather")
    numbers = m.op("Range", m.const("zero", np.int64(0)), length, one, name=f"{scope}/Range")
    places = m.random("embeddings.position_embeddings.weight", 40, size, spread=0.5)
    places = m.op("Gather", places, numbers, name=f"{scope}/position_embeddings/Gather")
    x = m.op("Add", words, places, name=f"{scope}/Add")
    x = layer_norm(m, f"{scope}/LayerNorm", x, size)

    wide = m.op("Unsqueeze", mask, m.const("mask_axes", np.array([1, 2])), name="/Unsqueeze")
    wide = m.op("Cast", wide, name="/Cast", to=TensorProto.FLOAT)
    wide = m.op("Sub", m.const("whole", np.float32(1)), wide, name="/Sub")
    wide = m.op("Mul", wide, m.const("masked", np.float32(-1e4)), name="/Mul")

    scope = "/encoder/layer.0/attention/self"
    split = m.const("split", np.array([0, 0, heads, size // heads]))
    parts = {}
    for part, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        y = m.op("Reshape", m.linear(f"{scope}/{part}", x, size, size), split, name=f"{scope}/{part}/Reshape")
        parts[part] = m.op("Transpose", y, name=f"{scope}/{part}/Transpose", perm=order)
    scores = m.op("MatMul", parts["query"], parts["key"], name=f"{scope}/MatMul")
    root = m.const("root", np.float32((size // heads) ** 0.5))
    scores = m.op("Add", m.op("Div", scores, root, name=f"{scope}/Div"), wide, name=f"{scope}/Add")
    scores = m.op("Softmax", scores, name=f"{scope}/Softmax", axis=-1)
    y = m.op("MatMul", scores, parts["value"], name=f"{scope}/MatMul_1")
    y = m.op("Transpose", y, name=f"{scope}/Transpose_3", perm=[0, 2, 1, 3])
    y = m.op("Reshape", y, m.const("join", np.array([0, 0, size])), name=f"{scope}/Reshape_3")

    scope = "/encoder/layer.0/attention/output"
    y = m.op("Add", m.linear(f"{scope}/dense", y, size, size), x, name=f"{scope}/Add")
    x = layer_norm(m, f"{scope}/LayerNorm", y, size)
    scope = "/encoder/layer.0/intermediate"
    y = m.linear(f"{scope}/dense", x, size, 2 * size)
    act = f"{scope}/intermediate_act_fn"
    erf = m.op("Erf", m.op("Div", y, m.const("sqrt2", np.float32(2**0.5)), name=f"{act}/Div"), name=f"{act}/Erf")
    erf = m.op("Add", erf, "whole", name=f"{act}/Add")
    y = m.op("Mul", m.op("Mul", y, erf, name=f"{act}/Mul"), m.const("half", np.float32(0.5)), name=f"{act}/Mul_1")
    scope = "/encoder/layer.0/output"
    y = m.op("Add", m.linear(f"{scope}/dense", y, 2 * size, size), x, name=f"{scope}/Add")
    x = layer_norm(m, f"{scope}/LayerNorm", y, size)
    m.op("Identity", x, name="/Identity", out="last_hidden_state")
    m.output("last_hidden_state", "f32", ["batch", "seq", size])
    lengths = np.array([7, 4])
    m.save(
        input_ids=m.rng.integers(0, vocab, (2, 7)),
        attention_mask=(np.arange(7) < lengths[:, None]).astype(np.int64),
    )


def convnet():
    m = Model("convnet")
    x = m.input("image", "f32", ["batch", 3, 32, 32])

    def clip(x):
        return m.op("Clip", x, "lowest", "highest")

    m.const("lowest", np.float32(0))
    m.const("highest", np.float32(6))
    x = clip(m.conv("stem", x, 8, 3, [3, 3], strides=[2, 2], pads=[0, 0, 1, 1]))
    skip = x
    x = clip(m.conv("block.0.depthwise", x, 8, 8, [3, 3], group=8, pads=[1, 1, 1, 1]))
    x = m.op("Add", m.conv("block.0.project", x, 8, 8, [1, 1]), skip, name="/block.0/Add")
    x = clip(m.conv("block.1.expand", x, 24, 8, [1, 1]))
    x = clip(m.conv("block.1.depthwise", x, 24, 24, [5, 5], group=24, strides=[2, 2], pads=[2, 2, 2, 2]))
    x = m.conv("block.1.project", x, 12, 24, [1, 1], bias=False)
    x = clip(m.conv("block.2.dilated", x, 12, 12, [3, 3], dilations=[2, 2], pads=[2, 2, 2, 2]))
    x = m.op("GlobalAveragePool", x, name="/pool/GlobalAveragePool")
    x = m.op("Flatten", x, name="/Flatten", axis=1, out="features")
    weight, bias = m.random("fc.weight", 4, 12), m.random("fc.bias", 4, spread=0.1)
    m.op("Gemm", x, weight, bias, name="/fc/Gemm", transB=1, out="logits")
    m.output("features", "f32", ["batch", 12])
    m.output("logits", "f32", ["batch", 4])
    m.save(image=m.sample(2, 3, 32, 32))


def conv1d():
    m = Model("conv1d")
    x = m.input("signal", "f32", ["batch", 4, "time"])
    x = m.op("Relu", m.conv("conv", x, 10, 4, [5], strides=[2], pads=[2, 1]), name="/Relu")
    x = m.op("ReduceMean", x, name="/ReduceMean", axes=[2], keepdims=0)
    m.op("MatMul", x, m.random("onnx::MatMul_0", 10, 6, spread=0.3), name="/fc/MatMul", out="y")
    m.output("y", "f32", ["batch", 6])
    m.save(signal=m.sample(2, 4, 21))


def dequantized(m, name, shape, axis=None, zero=None):
    """A DequantizeLinear of random integers: int8 without, uint8 with a zero point."""
    low, high, kind = (-127, 128, np.int8) if zero is None else (0, 256, np.uint8)
    ints = m.rng.integers(low, high, shape).astype(kind)
    inputs = [m.const(f"{name}_quantized", ints)]
    size = () if axis is None else (shape[axis],)
    # float16-exact, as offshoot keeps scales.
    scale = (m.rng.uniform(0.5, 1, size) / 127 / 3).astype(np.float16).astype(np.float32)
    inputs.append(m.const(f"{name}_scale", scale))
    if zero is not None:
        inputs.append(m.const(f"{name}_zero_point", np.uint8(zero)))
    attributes = {} if axis is None else {"axis": axis}
    return m.op("DequantizeLinear", *inputs, name=f"{name}_dequantize", out=name, **attributes)


def qdq():
    m = Model("qdq")
    x = m.input("image", "f32", ["batch", 3, 8, 8])
    weight = dequantized(m, "conv.weight", (16, 3, 3, 3), axis=0)
    x = m.op("Conv", x, weight, name="/conv/Conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])
    x = m.op("Flatten", m.op("Relu", x, name="/Relu"), name="/Flatten")
    x = m.op("MatMul", x, dequantized(m, "fc1.weight", (256, 24), axis=1), name="/fc1/MatMul")
    x = m.op("Tanh", x, name="/Tanh")
    x = m.op("MatMul", x, dequantized(m, "fc2.weight", (24, 6), zero=121), name="/fc2/MatMul")
    weight = dequantized(m, "fc3.weight", (5, 6), axis=0)
    m.op("Gemm", x, weight, m.random("fc3.bias", 5), name="/fc3/Gemm", transB=1, out="y")
    m.output("y", "f32", ["batch", 5])
    m.save(image=m.sample(2, 3, 8, 8))


def tied():
    m = Model("tied")
    ids = m.input("input_ids", "i64", ["batch", "seq"])
    table = m.random("embed.weight", 40, 16, spread=0.5)
    x = m.op("Gather", table, ids, name="/embed/Gather")
    x = m.op("Tanh", m.linear("/mix", x, 16, 16), name="/Tanh")
    turned = m.op("Transpose", table, name="/lm_head/Transpose", perm=[1, 0])
    m.op("MatMul", x, turned, name="/lm_head/MatMul", out="logits")
    m.output("logits", "f32", ["batch", "seq", 40])
    m.save(input_ids=m.rng.integers(0, 40, (2, 5)))


def bn():
    m = Model("bn")
    x = m.input("image", "f32", ["batch", 3, 16, 16])
    x = m.conv("conv", x, 8, 3, [3, 3], pads=[1, 1, 1, 1], bias=False)
    stats = [m.near("bn.weight", 1, 8), m.near("bn.bias", 0, 8), m.near("bn.mean", 0, 8)]
    stats.append(m.const("bn.var", m.rng.uniform(0.5, 1.5, 8).astype(np.float32)))
    x = m.op("BatchNormalization", x, *stats, name="/bn/BatchNormalization", epsilon=1e-3)
    x = m.op("HardSwish", x, name="/HardSwish")
    gate = m.op("GlobalAveragePool", x, name="/gate/GlobalAveragePool")
    gate = m.op("Relu", m.conv("gate.fc1", gate, 4, 8, [1, 1]), name="/gate/Relu")
    gate = m.op("HardSigmoid", m.conv("gate.fc2", gate, 8, 4, [1, 1]), name="/gate/HardSigmoid", alpha=0.2, beta=0.5)
    x = m.op("Mul", x, gate, name="/gate/Mul")
    x = m.op("AveragePool", x, name="/AveragePool", kernel_shape=[2, 2], strides=[2, 2])
    side = m.op("Sigmoid", m.conv("side", x, 8, 8, [1, 1]), name="/side/Sigmoid")
    x = m.op("Mul", x, side, name="/side/Mul")
    x = m.op("MaxPool", x, name="/MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inputs = [x, m.random("up.weight", 8, 5, 2, 2), m.random("up.bias", 5)]
    m.op("ConvTranspose", *inputs, name="/up/ConvTranspose", kernel_shape=[2, 2], strides=[2, 2], out="y")
    m.output("y", "f32", ["batch", 5, 8, 8])
    m.save(image=m.sample(2, 3, 16, 16))


def branch(name, weight, bias):
    """One arm of the If: a graph with its own weights."""
    nodes = [
        helper.make_node("MatMul", ["x", f"{name}.weight"], [f"{name}.product"], name=f"/{name}/MatMul"),
        helper.make_node("Add", [f"{name}.product", f"{name}.bias"], [f"{name}.y"], name=f"/{name}/Add"),
    ]
    weights = [numpy_helper.from_array(weight, f"{name}.weight"), numpy_helper.from_array(bias, f"{name}.bias")]
    result = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, ["batch", 3])
    return helper.make_graph(nodes, name, [], [result], weights)


def scalar_if():
    m = Model("scalar_if")
    x = m.input("x", "f32", ["batch", 6])
    rate = m.input("sr", "i64", [])
    fast = m.op("Equal", rate, m.const("fast_rate", np.int64(16000)), name="/Equal")
    arms = {
        f"{arm}_branch": branch(name, m.sample(6, 3) / 2, m.sample(3))
        for arm, name in (("then", "fast"), ("else", "slow"))
    }
    m.op("If", fast, name="/If", out="y", **arms)
    m.output("y", "f32", ["batch", 3])
    m.save(x=m.sample(2, 6), sr=np.array(16000))


def group():
    m = Model("group")
    x = m.input("image", "f32", ["batch", 4, 10, 10])
    x = m.op("Relu", m.conv("conv1", x, 8, 4, [3, 3], group=2, pads=[1, 1, 1, 1]), name="/Relu")
    x = m.conv("conv2", x, 6, 8, [1, 1], group=2)
    m.op("ReduceMean", x, name="/ReduceMean", axes=[2, 3], keepdims=0, out="y")
    m.output("y", "f32", ["batch", 6])
    m.save(image=m.sample(2, 4, 10, 10))


def lstm():
    size, hidden = 6, 8
    m = Model("lstm")
    x = m.input("mels", "f32", ["batch", "frames", size])
    x = m.op("Transpose", x, name="/Transpose", perm=[1, 0, 2])
    weights = [m.random("lstm.W", 1, 4 * hidden, size, spread=0.4), m.random("lstm.R", 1, 4 * hidden, hidden, spread=0.4)]
    weights.append(m.random("lstm.B", 1, 8 * hidden, spread=0.1))
    m.op("LSTM", x, *weights, name="/lstm/LSTM", hidden_size=hidden, out=["/lstm/all", "/lstm/last", "/lstm/cell"])
    last = m.op("Squeeze", "/lstm/last", m.const("squeezed", np.array([0])), name="/Squeeze")
    m.op("Gemm", last, m.random("fc.weight", 4, hidden), m.random("fc.bias", 4), name="/fc/Gemm", transB=1, out="y")
    m.output("y", "f32", ["batch", 4])
    m.save(mels=m.sample(2, 9, size))


def primitives():
    size = 12
    m = Model("primitives", opset=13)
    x = m.input("x", "f32", ["batch", "seq", size])
    half, three = m.const("half", np.float32(0.5)), m.const("three", np.float32(3))
    whole, two = m.const("whole", np.float32(1)), m.const("two", np.float32(2))
    # LayerNorm as PyTorch wrote it before opset 17
    mean = m.op("ReduceMean", x, name="/norm/ReduceMean", axes=[-1], keepdims=1)
    apart = m.op("Sub", x, mean, name="/norm/Sub")
    spread = m.op("ReduceMean", m.op("Pow", apart, two, name="/norm/Pow"), name="/norm/ReduceMean_1", axes=[-1])
    spread = m.op("Sqrt", m.op("Add", spread, m.const("eps", np.float32(1e-5)), name="/norm/Add"), name="/norm/Sqrt")
    y = m.op("Div", apart, spread, name="/norm/Div")
    y = m.op("Mul", y, m.near("norm.weight", 1, size), name="/norm/Mul")
    y = m.op("Add", y, m.near("norm.bias", 0, size), name="/norm/Add_1")
    # GELU by tanh
    y = m.linear("/up", y, size, 2 * size)
    cube = m.op("Pow", y, three, name="/act/Pow")
    cube = m.op("Mul", cube, m.const("cubic", np.float32(0.044715)), name="/act/Mul")
    bent = m.op("Add", y, cube, name="/act/Add")
    bent = m.op("Tanh", m.op("Mul", bent, m.const("slope", np.float32((2 / np.pi) ** 0.5))), name="/act/Tanh")
    y = m.op("Mul", m.op("Mul", y, half), m.op("Add", bent, whole), name="/act/Mul_3")
    # halves: one through SiLU, one as a gate
    axis = m.const("last", np.array([-1]))
    parts = []
    for name, start, end in (("left", 0, size), ("right", size, 2 * size)):
        ends = [m.const(f"{name}.start", np.array([start])), m.const(f"{name}.end", np.array([end]))]
        parts.append(m.op("Slice", y, *ends, axis, name=f"/{name}/Slice"))
    left = m.op("Mul", parts[0], m.op("Sigmoid", parts[0], name="/silu/Sigmoid"), name="/silu/Mul")
    y = m.op("Concat", left, parts[1], x, name="/Concat", axis=2)
    y = m.linear("/down", y, 3 * size, size)
    y = m.op("Softmax", y, name="/Softmax", axis=-1)
    first = m.op("Gather", y, m.const("first", np.int64(0)), name="/Gather", axis=1)
    m.op("MatMul", first, m.random("onnx::MatMul_out", size, 5, spread=2), name="/head/MatMul", out="y")
    m.output("y", "f32", ["batch", 5])
    m.save(x=m.sample(2, 4, size))


def main():
    for make in (mlp, attention, convnet, conv1d, qdq, tied, bn, scalar_if, group, lstm, primitives):
        make()


if __name__ == "__main__":
    main()
