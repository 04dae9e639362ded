"""CTC: values of PyTorch's loss, and a small model that spells texts.

    python make_ctc.py                            # ctc.npz, ctc.onnx beside this file

ctc.npz: for case N `N.logits` (B, T, C), `N.labels` (B, L) filled up with -1, `N.blank`, `N.losses` (B) of
each row and `N.gradient`, that of the "mean": each row's loss over its number of labels, then the mean of rows.
ctc.onnx: features (batch, frames, 6) through two layers to logits (batch, frames, 6), whose last column is the
blank; random weights. Needs torch (CPU) and onnx.
"""
import pathlib

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).parent


def values():
    rng = np.random.default_rng(7)
    arrays = {}
    # Steps, symbols with the blank, blank, labels; random ones are of two symbols half the time, for repeats.
    shapes = [(2, 6, 4, 0, 3), (3, 12, 5, 4, 5), (1, 20, 30, 0, 9), (4, 9, 3, 1, 4), (2, 15, 8, 7, 7), (2, 7, 4, 0, 3), (3, 10, 6, 2, 0), (2, 40, 12, 0, 18)]
    for case, (rows, steps, width, blank, longest) in enumerate(shapes):
        logits = torch.tensor(rng.normal(0, 2, (rows, steps, width)).astype(np.float32), requires_grad=True)
        known = [s for s in range(width) if s != blank]
        labels = np.full((rows, max(longest, 1)), -1)
        lengths = []
        for row in range(rows):
            length = longest if row == 0 else int(rng.integers(0, longest + 1))
            some = known[:2] if case % 2 else known
            labels[row, :length] = rng.choice(some, length)
            while length + sum(labels[row, i] == labels[row, i + 1] for i in range(length - 1)) > steps:
                labels[row, :length] = rng.choice(known, length)
            lengths.append(length)
        targets = torch.tensor(np.where(labels < 0, known[0], labels))
        log = logits.log_softmax(-1).transpose(0, 1)
        sizes = [steps] * rows, lengths
        each = torch.nn.functional.ctc_loss(log, targets, *map(torch.tensor, sizes), blank=blank, reduction="none")
        loss = torch.nn.functional.ctc_loss(log, targets, *map(torch.tensor, sizes), blank=blank)
        loss.backward()
        arrays |= {
            f"{case}.logits": logits.detach().numpy(),
            f"{case}.labels": labels.astype(np.int64),
            f"{case}.blank": np.array([blank], np.int64),
            f"{case}.losses": each.detach().numpy(),
            f"{case}.gradient": logits.grad.numpy(),
        }
    np.savez_compressed(HERE / "ctc.npz", **arrays)


def model():
    rng = np.random.default_rng(8)
    normal = lambda *shape: (rng.normal(0, 1, shape) / np.sqrt(shape[0])).astype(np.float32)
    weights = {"first.weight": normal(6, 24), "first.bias": np.zeros(24, np.float32), "second.weight": normal(24, 6), "second.bias": np.zeros(6, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["features", "first.weight"], ["a"], "/first/MatMul"),
        helper.make_node("Add", ["a", "first.bias"], ["b"], "/first/Add"),
        helper.make_node("Relu", ["b"], ["c"], "/relu/Relu"),
        helper.make_node("MatMul", ["c", "second.weight"], ["d"], "/second/MatMul"),
        helper.make_node("Add", ["d", "second.bias"], ["logits"], "/second/Add"),
    ]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "frames", 6])
    tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "ctc", [value("features")], [value("logits")], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    onnx.save(made, HERE / "ctc.onnx")


torch.manual_seed(0)
values()
model()
