#!/usr/bin/env python3
"""Writes hostile ONNX files and hostile.md, the table of what is wrong with each.

All files are plain and tiny. Links, FIFOs and device links that some of them name
as external data are made by the test at run time, in a copy of the file's folder.

usage: make_hostile.py
needs: onnx, numpy
"""

import shutil
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
F32, I64 = TensorProto.FLOAT, TensorProto.INT64
CASES = []


def case(what, expected="3", runtime=""):
    """Registers a function that returns a model or bytes; its name is the file's name."""

    def register(make):
        CASES.append((make.__name__, what, expected, runtime, make))
        return make

    return register


def tensor(name, values, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def node(kind, inputs, outputs="y", **attributes):
    outputs = [outputs] if isinstance(outputs, str) else outputs
    return helper.make_node(kind, inputs, outputs, name=f"/{kind}", **attributes)


def model(nodes, weights=(), inputs=(("x", F32, [1, 4]),), outputs=(("y", F32, None),), opset=17, **more):
    values = [[helper.make_tensor_value_info(*v) for v in part] for part in (inputs, outputs)]
    graph = helper.make_graph(list(nodes), "hostile", *values, list(weights), **more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def weight():
    return tensor("w", np.eye(4))


def added(nodes, weights):
    """A model that adds value `c` to an input of one element, which fits any shape."""
    return model([*nodes, node("Add", ["x", "c"])], weights, inputs=(("x", F32, [1]),))


def valid():
    return model([node("MatMul", ["x", "w"])], [weight()])


def raw(dims, data_type=F32, data=b"", name="w"):
    """An initializer exactly as stated, however wrong."""
    return TensorProto(name=name, dims=dims, data_type=data_type, raw_data=data)


def matmul_with(initializer):
    return model([node("MatMul", ["x", "w"])], [initializer])


def added_weight(dims, data=b""):
    return added([], [raw(dims, data=data, name="c")])


# What is made from constants and grows at import.


@case("ConstantOfShape of 2^38 elements")
def constant_of_shape_bomb():
    return added([node("ConstantOfShape", ["s"], "c")], [tensor("s", [1 << 38], np.int64)])


@case("ConstantOfShape of a negative size")
def constant_of_shape_negative():
    return added([node("ConstantOfShape", ["s"], "c")], [tensor("s", [-5], np.int64)])


@case("ConstantOfShape [2^32, 2^32]: the count wraps to 0")
def constant_of_shape_wrap():
    sizes = tensor("s", [1 << 32, 1 << 32], np.int64)
    return added([node("ConstantOfShape", ["s"], "c")], [sizes])


@case("Tile of a constant 2^36 times")
def tile_bomb():
    times = tensor("r", [1, 1 << 36], np.int64)
    return added([node("Tile", ["w", "r"], "c")], [weight(), times])


@case("Expand of a constant to 2^40 elements")
def expand_bomb():
    sizes = tensor("s", [1 << 20, 1 << 18, 4], np.int64)
    return added([node("Expand", ["v", "s"], "c")], [tensor("v", [[[1.0]]]), sizes])


@case("Pad of a constant by 2^40")
def pad_bomb():
    pads = tensor("p", [0, 0, 0, 1 << 40], np.int64)
    return added([node("Pad", ["w", "p"], "c")], [weight(), pads])


@case("OneHot of depth 2^40")
def one_hot_bomb():
    weights = [tensor("i", [1, 2], np.int64), tensor("d", 1 << 40, np.int64), tensor("v", [0, 1])]
    return added([node("OneHot", ["i", "d", "v"], "c")], weights)


@case("Resize of a constant by 10^9 each way")
def resize_bomb():
    weights = [tensor("w", np.ones((1, 1, 2, 2))), tensor("r", [1, 1, 1e9, 1e9])]
    return added([node("Resize", ["w", "", "r"], "c")], weights)


@case("RandomNormal of 2^40 elements")
def random_bomb():
    return added([node("RandomNormal", [], "c", shape=[1 << 20, 1 << 20])], [])


def ranges(start, limit, delta):
    weights = [tensor(n, v, np.int64) for n, v in (("start", start), ("limit", limit), ("delta", delta))]
    nodes = [node("Range", ["start", "limit", "delta"], "r"), node("Cast", ["r"], "c", to=F32)]
    return added(nodes, weights)


@case("Range of 2^40 numbers")
def range_bomb():
    return ranges(0, 1 << 40, 1)


@case("Range with step 0")
def range_delta_zero():
    return ranges(0, 10, 0)


@case("Range whose length overflows 64 bits")
def range_overflow():
    return ranges(-(1 << 63), (1 << 63) - 1, 1)


@case("Concat of a value with itself, 40 times over: an answer of 16 TiB", expected="5")
def concat_doubling():
    nodes = [node("Concat", [f"v{i}"] * 2, f"v{i + 1}", axis=1) for i in range(40)]
    for i, n in enumerate(nodes):
        n.name = f"/Concat_{i}"
    nodes[0].input[:] = ["x", "x"]
    nodes[-1].output[:] = ["y"]
    return model(nodes)


@case("Loop of 2^62 turns")
def loop_forever():
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["a", "a"], ["b"])],
        "body",
        [helper.make_tensor_value_info(*v) for v in (("i", I64, []), ("go", TensorProto.BOOL, []), ("a", F32, [1, 4]))],
        [helper.make_tensor_value_info(*v) for v in (("on", TensorProto.BOOL, []), ("b", F32, [1, 4]))],
    )
    weights = [tensor("n", 1 << 62, np.int64), tensor("c", True, bool)]
    return model([node("Loop", ["n", "c", "x"], body=body)], weights)


# Attributes out of range.


def convolution(dims=(1, 4, 8, 8), filters=(4, 4, 3, 3), **attributes):
    return model(
        [node("Conv", ["x", "w"], **attributes)], [tensor("w", np.ones(filters))], inputs=(("x", F32, list(dims)),)
    )


@case("Conv with stride 0")
def conv_stride_zero():
    return convolution(strides=[0, 0])


@case("Conv with a negative stride")
def conv_stride_negative():
    return convolution(strides=[-1, -1])


@case("Conv with dilation 0")
def conv_dilation_zero():
    return convolution(dilations=[0, 0])


@case("Conv with pads of 2^40")
def conv_pads_huge():
    return convolution(pads=[1 << 40] * 4)


@case("Conv with pads below zero, more than the picture")
def conv_pads_negative():
    return convolution(pads=[-100] * 4)


@case("Conv in 0 groups")
def conv_group_zero():
    return convolution(group=0)


@case("Conv in 3 groups of 4 channels")
def conv_group_uneven():
    return convolution(group=3)


@case("Conv whose kernel_shape is not that of its weight")
def conv_kernel_mismatch():
    return convolution(kernel_shape=[5, 5])


@case("Conv whose weight has no dimensions")
def conv_weight_scalar():
    return model([node("Conv", ["x", "w"])], [tensor("w", 1)], inputs=(("x", F32, [1, 4, 8, 8]),))


@case("MaxPool with a kernel of 0")
def pool_kernel_zero():
    return model([node("MaxPool", ["x"], kernel_shape=[0, 0])], inputs=(("x", F32, [1, 4, 8, 8]),))


@case("Transpose by a list that is no permutation")
def transpose_bad_perm():
    return model([node("Transpose", ["x"], perm=[0, 7])])


@case("Transpose that names one axis twice")
def transpose_repeated_perm():
    return model([node("Transpose", ["x"], perm=[0, 0])])


@case("Gather of row 99 of 4, both constant")
def gather_out_of_range():
    nodes = [node("Gather", ["w", "i"], "g"), node("Add", ["x", "g"])]
    return model(nodes, [weight(), tensor("i", 99, np.int64)])


@case("Gather along axis 7 of a matrix")
def gather_axis():
    return model([node("Gather", ["w", "i"], "g", axis=7), node("Add", ["x", "g"])], [weight(), tensor("i", 0, np.int64)])


@case("Softmax along axis 99")
def softmax_axis():
    return model([node("Softmax", ["x"], axis=99)])


@case("Softmax along axis 2^32: 0 when cut to 32 bits")
def axis_overflow_32():
    return model([node("Softmax", ["x"], axis=1 << 32)])


@case("Softmax along axis -2^63")
def axis_lowest():
    return model([node("Softmax", ["x"], axis=-(1 << 63))])


@case("Concat along axis 99")
def concat_axis():
    return model([node("Concat", ["x", "x"], axis=99)])


@case("Split in parts that do not add up")
def split_bad():
    return model([node("Split", ["x", "s"], ["y", "z"], axis=1)], [tensor("s", [3, 7], np.int64)])


@case("Reshape to a size that does not hold the elements")
def reshape_bad():
    return model([node("Reshape", ["x", "s"])], [tensor("s", [3, 5], np.int64)])


@case("Reshape with two unknown sizes")
def reshape_two_unknown():
    return model([node("Reshape", ["x", "s"])], [tensor("s", [-1, -1], np.int64)])


@case("Slice with step 0")
def slice_step_zero():
    weights = [tensor(n, [v], np.int64) for n, v in (("a", 0), ("b", 4), ("c", 1), ("d", 0))]
    return model([node("Slice", ["x", "a", "b", "c", "d"])], weights)


@case("Einsum with a formula that is none")
def einsum_garbage():
    return model([node("Einsum", ["x", "w"], equation="ij,->->((k")], [weight()])


@case("Cast to data type 9999")
def cast_unknown():
    return model([node("Cast", ["x"], to=9999)])


@case("Conv whose strides are a text")
def attribute_wrong_kind():
    return convolution(strides="one")


@case("MatMul of sizes that do not fit")
def matmul_mismatch():
    return matmul_with(tensor("w", np.ones((5, 3))))


# Weights.


@case("MatMul weight with NaN")
def weight_nan():
    return matmul_with(tensor("w", np.where(np.eye(4) > 0, np.nan, 1)))


@case("MatMul weight with an infinite value")
def weight_infinite():
    return matmul_with(tensor("w", np.where(np.eye(4) > 0, np.inf, 1)))


@case("weight of dims 2^31 x 2^31 without data")
def weight_dims_huge():
    return added_weight([1 << 31, 1 << 31])


@case("weight of dims 2^32 x 2^32: the count wraps to 0")
def weight_dims_overflow():
    return added_weight([1 << 32, 1 << 32])


@case("weight of dims (2^62 + 4) x 4: the count wraps to 16, for which there are bytes")
def weight_dims_wrap_small():
    return added_weight([(1 << 62) + 4, 4], data=bytes(64))


@case("weight with a negative dim")
def weight_dims_negative():
    return added_weight([-4, -4], data=bytes(64))


@case("weight with fewer bytes than its dims say")
def weight_short():
    return added_weight([4, 4], data=bytes(60))


@case("weight with more bytes than its dims say")
def weight_long():
    return added_weight([4, 4], data=bytes(68))


@case("weight with 70,000 dims")
def weight_rank_huge():
    return added_weight([1] * 70_000, data=bytes(4))


@case("STRING weight with raw data")
def weight_string_raw():
    return matmul_with(raw([4, 4], TensorProto.STRING, b"abcd" * 4))


@case("weight of data type 9999")
def weight_dtype_unknown():
    return matmul_with(raw([4, 4], 9999, bytes(64)))


@case("weight of data type 0 (undefined)")
def weight_dtype_undefined():
    return matmul_with(raw([4, 4], 0, bytes(64)))


@case("weight that is never given")
def weight_missing():
    return model([node("MatMul", ["x", "w"])])


@case("two weights of one name")
def weight_twice():
    return model([node("MatMul", ["x", "w"])], [weight(), weight()])


def dequantize(scales, zeros=None, axis=1, quantized=None):
    weights = [tensor("q", np.ones((4, 4)) if quantized is None else quantized, np.int8), tensor("s", scales)]
    inputs = ["q", "s"]
    if zeros is not None:
        weights.append(tensor("z", zeros, np.int8))
        inputs.append("z")
    return model([node("DequantizeLinear", inputs, "w", axis=axis), node("MatMul", ["x", "w"])], weights)


@case("DequantizeLinear with 3 scales for 4 channels")
def dequantize_scales_short():
    return dequantize([1, 1, 1])


@case("DequantizeLinear with 5 scales for 4 channels")
def dequantize_scales_long():
    return dequantize([1] * 5)


@case("DequantizeLinear with 4 scales and 3 zero points")
def dequantize_zero_points():
    return dequantize([1] * 4, [0] * 3)


@case("DequantizeLinear with a NaN scale")
def dequantize_scale_nan():
    return dequantize([1, np.nan, 1, 1])


@case("DequantizeLinear along axis 9")
def dequantize_axis():
    return dequantize([1] * 4, axis=9)


# The graph.


@case("two nodes that write one value")
def output_twice():
    return model([node("Relu", ["x"]), node("Tanh", ["x"])])


@case("a node that writes over the graph's input")
def output_is_input():
    return model([node("Relu", ["x"], "x"), node("Tanh", ["x"])])


@case("a node that writes over a weight")
def output_is_weight():
    return model([node("Relu", ["x"], "w"), node("MatMul", ["x", "w"])], [weight()])


@case("two nodes that need each other")
def cycle():
    return model([node("Add", ["x", "b"], "a"), node("Mul", ["x", "a"], "b"), node("Sub", ["a", "b"])])


@case("a node that needs itself")
def cycle_self():
    return model([node("Add", ["x", "y"])])


@case("a node whose input nobody makes")
def input_missing():
    return model([node("Add", ["x", "nowhere"])])


@case("a graph output that nobody makes")
def output_missing():
    return model([node("Relu", ["x"], "z")])


@case("an op that there is not")
def op_unknown():
    return model([node("Frobnicate", ["x"])])


@case("an op of an unknown domain")
def domain_unknown():
    found = model([helper.make_node("Relu", ["x"], ["y"], domain="com.example.nowhere")])
    found.opset_import.append(helper.make_opsetid("com.example.nowhere", 1))
    return found


@case("MatMul with one input")
def inputs_too_few():
    return model([node("MatMul", ["x"])])


@case("Relu with no output")
def outputs_none():
    return model([node("Relu", ["x"], [])])


@case("If whose arms give different counts of values")
def if_arms_differ():
    def arm(name, outs):
        made = [helper.make_node("Relu", ["x"], [o]) for o in outs]
        return helper.make_graph(made, name, [], [helper.make_tensor_value_info(o, F32, None) for o in outs])

    nodes = [node("If", ["c"], then_branch=arm("then", ["p"]), else_branch=arm("else", ["q", "r"]))]
    return model(nodes, inputs=(("x", F32, [1, 4]), ("c", TensorProto.BOOL, [])))


@case("no opset")
def opset_none():
    found = valid()
    del found.opset_import[:]
    return found


@case("opset 10^9")
def opset_huge():
    found = valid()
    found.opset_import[0].version = 10**9
    return found


@case("no graph")
def graph_none():
    found = valid()
    found.ClearField("graph")
    return found


@case("a graph of no nodes and no outputs")
def graph_empty():
    return model([], inputs=(), outputs=())


@case("input dims of 2^62")
def input_dims_huge():
    return model([node("Relu", ["x"])], inputs=(("x", F32, [1 << 62, 1 << 62]),))


@case("input with a negative dim")
def input_dims_negative():
    return model([node("Relu", ["x"])], inputs=(("x", F32, [-3, 4]),))


@case("dim_param of 20,000 nested parentheses")
def dim_param_nested():
    text = "(" * 20_000 + "n" + ")" * 20_000
    return model([node("Relu", ["x"])], inputs=(("x", F32, [text, 4]),))


@case("dim_param of 20,000 minus signs", expected="0 or 3")
def dim_param_signs():
    return model([node("Relu", ["x"])], inputs=(("x", F32, ["-" * 20_000 + "n", 4]),))


@case("dim_param that divides by zero")
def dim_param_division():
    return model([node("Relu", ["x"])], inputs=(("x", F32, ["n/0", 4]),), outputs=(("y", F32, ["n/0", 4]),))


@case("a node name of 70 kB with line ends and terminal escapes, none of which may be printed", expected="0 or 3")
def name_control_bytes():
    found = valid()
    found.graph.node[0].name = "\x1b[2J\n\r\x07" * 10_000
    return found


# External data: the location of weight `w`, 64 bytes.


def external(location, offset=None, length=None):
    found = TensorProto(name="w", dims=[4, 4], data_type=F32, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            found.external_data.add(key=key, value=str(value))
    return matmul_with(found)


@case("external data at '../../etc/passwd'")
def external_parent():
    return external("../" * 12 + "etc/passwd", 0, 64)


@case("external data at 'folder/../../x': '..' after a real folder")
def external_parent_nested():
    return external("folder/../../make_hostile.py", 0, 64)


@case("external data at '/etc/passwd'")
def external_absolute():
    return external("/etc/passwd", 0, 64)


@case("external data at an offset that overflows with its length")
def external_offset_overflow():
    return external("weights.bin", (1 << 64) - 8, 64)


@case("external data at a negative offset")
def external_offset_negative():
    return external("weights.bin", -8, 64)


@case("external data past the end of its file")
def external_past_end():
    return external("weights.bin", 32, 64)


@case("external data whose length is not that of its dims")
def external_length():
    return external("weights.bin", 0, 60)


@case("external data whose offset is no number")
def external_offset_text():
    return external("weights.bin", "many", 64)


@case("external data in a file that is not there")
def external_absent():
    return external("absent.bin", 0, 64)


@case("external data without a location")
def external_no_location():
    return external(None, 0, 64)


@case("external data whose location holds a NUL byte")
def external_nul():
    return external("weights.bin\0.txt", 0, 64)


@case("external data that is a folder")
def external_folder():
    return external("folder", 0, 64)


@case("external data that is a symbolic link to a file elsewhere", runtime="link.bin: symbolic link to /etc/passwd")
def external_symlink():
    return external("link.bin", 0, 64)


@case("external data in a folder that is a link", runtime="linked: symbolic link to a folder elsewhere with weights.bin")
def external_symlink_folder():
    return external("linked/weights.bin", 0, 64)


@case("external data that links to /dev/zero", runtime="zero.bin: symbolic link to /dev/zero")
def external_device():
    return external("zero.bin")


@case("external data that is a FIFO: opening it waits for ever", runtime="fifo.bin: FIFO with no writer")
def external_fifo():
    return external("fifo.bin", 0, 64)


@case("external data that is a hard link", expected="0 or 3", runtime="hard.bin: hard link to weights.bin")
def external_hard_link():
    return external("hard.bin", 0, 64)


# Bytes.


@case("an empty file")
def empty():
    return b""


@case("4 KiB of noise")
def garbage():
    return np.random.default_rng(4).bytes(4096)


@case("text")
def text():
    return b"This is not a model.\n" * 20


@case("a valid file, cut off in the middle")
def truncated():
    whole = valid().SerializeToString()
    return whole[: len(whole) // 2]


@case("a graph that claims 2^63 bytes")
def length_huge():
    return bytes([0x3A]) + b"\xff" * 8 + b"\x7f"


@case("a varint that never ends")
def varint_endless():
    return bytes([0x08]) + b"\xff" * 200


def field(number, body):
    """A length-delimited protobuf field."""
    length, head = len(body), bytes([number << 3 | 2])
    while True:
        head += bytes([length & 127 | (128 if length > 127 else 0)])
        length >>= 7
        if not length:
            return head + body


def open_model():
    """A model without its graph, to append field 7 to."""
    found = valid()
    found.ClearField("graph")
    return found.SerializeToString()


@case("If in If, 3,400 deep: over 10,000 nested messages")
def nested_graphs():
    body = b""
    for _ in range(3_400):
        # Graph.node(1) > Node.attribute(5) > Attribute.g(6), its type(20) = GRAPH(5)
        attribute = field(1, b"then_branch") + field(6, body) + b"\xa0\x01\x05"
        body = field(1, field(4, b"If") + field(5, attribute))
    return open_model() + field(7, body)


@case("an input that is a sequence of sequences, 10,000 deep")
def nested_types():
    body = b""
    for _ in range(10_000):
        # TypeProto.sequence_type(4) > Sequence.elem_type(1)
        body = field(4, field(1, body))
    return open_model() + field(7, field(11, field(1, b"x") + field(2, body)))


def main():
    for old in HERE.glob("*.onnx"):
        old.unlink()
    shutil.rmtree(HERE / "folder", ignore_errors=True)
    (HERE / "folder").mkdir()
    (HERE / "folder" / "weights.bin").write_bytes(bytes(64))
    (HERE / "weights.bin").write_bytes(np.eye(4, dtype=np.float32).tobytes())
    (HERE / "control").mkdir(exist_ok=True)
    (HERE / "control" / "valid.onnx").write_bytes(valid().SerializeToString())
    (HERE / "control" / "external.onnx").write_bytes(external("weights.bin", 0, 64).SerializeToString())
    shutil.copyfile(HERE / "weights.bin", HERE / "control" / "weights.bin")
    total = 0
    rows = []
    for name, what, expected, runtime, make in CASES:
        made = make()
        data = made if isinstance(made, bytes) else made.SerializeToString()
        (HERE / f"{name}.onnx").write_bytes(data)
        total += len(data)
        rows.append(f"| `{name}.onnx` | {what} | {expected} | {runtime} |")
    (HERE / "hostile.md").write_text(
        "# Hostile ONNX files\n\n"
        "`offshoot pack FILE -o OUT.base` must end within 10 s with the exit code of the table and one line on\n"
        "stderr, never by a signal or a panic, and must leave no OUT.base behind unless it ends with 0. Resident\n"
        "memory stays under 2 GiB. The test makes what the last column names, in a copy of this folder.\n"
        "`control/valid.onnx` is the file that most of these were spoiled from, `control/external.onnx` the same\n"
        "with its weight as external data: both must pack with exit code 0.\n"
        "Made by `make_hostile.py`, this table too.\n\n"
        "| file | what is wrong | exit code | made at run time beside it |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )
    print(f"{len(CASES)} files, {total} bytes")


if __name__ == "__main__":
    main()
