"""Recurrent models with PyTorch's answers and the gradients of LoRA on all their matrices.

    python make_recurrent.py                      # recurrent.*, recurrent_kinds.* beside this file
    python make_recurrent.py ENCODER.onnx         # and speaker.npz, for resemblyzer's speaker encoder

recurrent.onnx: bidirectional LSTM of two layers, GRU, RNN with ReLU, Linear; random weights.
The gradients are those of the mean cross-entropy of a head of three classes over the last output.
recurrent_kinds.onnx: a node for each attribute and input that LSTM, GRU and RNN may have, with the answers of
ONNX Runtime (which has no layout 1: those are its answers in layout 0, turned).
Needs torch, onnx, onnxruntime and numpy.
"""
import pathlib, sys

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.func import functional_call

HERE = pathlib.Path(__file__).parent
RANK, ALPHA, CLASSES = 2, 4.0, 3


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(10, 7, batch_first=True)
        self.rnn = nn.RNN(7, 4, nonlinearity="relu")
        self.fc = nn.Linear(4, 8)

    def forward(self, x):
        y = self.gru(self.lstm(x)[0])[0]
        y = self.rnn(y.transpose(0, 1))[1][0]
        return self.fc(y)


class Encoder(nn.Module):
    """resemblyzer's VoiceEncoder: the last state of the last layer, through a layer with ReLU, of length 1."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(40, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, x):
        y = torch.relu(self.linear(self.lstm(x)[1][0][-1]))
        return y / y.norm(dim=1, keepdim=True)


def load(model, path):
    """Takes the weights of an ONNX file's LSTMs: gates i, o, f, c there, i, f, g, o here."""
    graph = onnx.load(str(path)).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    reordered = lambda w: torch.from_numpy(np.concatenate([np.split(w, 4)[i] for i in (0, 2, 3, 1)]))
    values = {"linear.weight": torch.from_numpy(tensors["linear.weight"]), "linear.bias": torch.from_numpy(tensors["linear.bias"])}
    for layer, node in enumerate(n for n in graph.node if n.op_type == "LSTM"):
        w, r, b = (tensors[name][0] for name in node.input[1:4])
        values |= {f"lstm.weight_ih_l{layer}": reordered(w), f"lstm.weight_hh_l{layer}": reordered(r)}
        values |= {f"lstm.bias_ih_l{layer}": reordered(b[: len(b) // 2]), f"lstm.bias_hh_l{layer}": reordered(b[len(b) // 2 :])}
    model.load_state_dict(values)


def reference(model, x, out):
    generator = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    frozen = {n: p.detach() for n, p in model.named_parameters()}
    targets = [n for n, p in frozen.items() if p.ndim == 2]
    with torch.no_grad():
        y = model(x)
    trained = {}
    for name in targets:
        rows, cols = frozen[name].shape
        path = name.removesuffix(".weight")
        trained[f"{path}.lora_a"] = normal(RANK, cols) / cols**0.5
        trained[f"{path}.lora_b"] = normal(rows, RANK) * 0.1
    trained |= {"head.weight": normal(CLASSES, y.shape[1]) / y.shape[1] ** 0.5, "head.bias": normal(CLASSES) * 0.1}
    labels = torch.arange(len(x)) % CLASSES

    def loss_of(dtype):
        values = {n: p.detach().clone().to(dtype).requires_grad_() for n, p in trained.items()}
        weights = {n: p.to(dtype) for n, p in frozen.items()}
        for name in targets:
            path = name.removesuffix(".weight")
            weights[name] = weights[name] + ALPHA / RANK * values[f"{path}.lora_b"] @ values[f"{path}.lora_a"]
        logits = functional_call(model.to(dtype), weights, (x.to(dtype),)) @ values["head.weight"].T + values["head.bias"]
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        return loss.item(), {n: v.grad for n, v in values.items()}

    with torch.no_grad():
        weights = {n: p.clone() for n, p in frozen.items()}
        for name in targets:
            path = name.removesuffix(".weight")
            weights[name] += ALPHA / RANK * trained[f"{path}.lora_b"] @ trained[f"{path}.lora_a"]
        adapted = functional_call(model, weights, (x,))
    loss, gradients = loss_of(torch.float64)
    off = loss_of(torch.float32)[1]
    worst = max(((off[n] - g).norm() / g.norm()).item() for n, g in gradients.items())
    print(f"{out.name}: loss {loss:.6f}, PyTorch's own f32 gradients within {worst:.1e} of its f64 ones")
    arrays = {"in.x": x.numpy(), "out.y": y.numpy().copy(), "labels": labels.numpy(), "loss": np.array([loss], np.float32)}
    arrays["adapted.y"] = adapted.numpy()
    arrays |= {f"init.{n}": v.numpy() for n, v in trained.items()}
    arrays |= {f"grad.{n}": g.float().numpy() for n, g in gradients.items()}
    np.savez_compressed(out, **arrays)


HIDDEN, WIDTH, STEPS, BATCH = 3, 4, 7, 2
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
# name: operation, attributes, optional inputs beside the biases
KINDS = {
    "reverse": ("LSTM", {"direction": "reverse"}, ""),
    "both": ("LSTM", {"direction": "bidirectional"}, "hc"),
    "peepholes": ("LSTM", {"direction": "bidirectional"}, "p"),
    "clip": ("LSTM", {"clip": 0.4}, ""),
    "input_forget": ("LSTM", {"input_forget": 1}, ""),
    "lstm_lengths": ("LSTM", {"direction": "bidirectional"}, "l"),
    "functions": ("LSTM", {"activations": ["HardSigmoid", "Elu", "ScaledTanh"], "activation_alpha": [0.3, 0.8, 1.2], "activation_beta": [0.4, 0.7]}, ""),
    "gru": ("GRU", {"linear_before_reset": 1, "direction": "bidirectional"}, "h"),
    "gru_lengths": ("GRU", {"linear_before_reset": 1, "direction": "reverse"}, "l"),
    "reset_before": ("GRU", {"direction": "bidirectional"}, "h"),
    "hard": ("GRU", {"activations": ["HardSigmoid", "Softsign"]}, ""),
    "no_biases": ("GRU", {"linear_before_reset": 1}, "-"),
    "rnn": ("RNN", {"direction": "bidirectional", "activations": ["Relu", "LeakyRelu"], "activation_alpha": [0.2]}, "h"),
    "thresholded": ("RNN", {"activations": ["ThresholdedRelu"], "activation_alpha": [0.2]}, ""),
    "affine": ("RNN", {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.1], "clip": 1.5}, "l"),
    "softplus": ("RNN", {"activations": ["Softplus"]}, ""),
    "batch_first": ("LSTM", {"layout": 1, "direction": "bidirectional"}, "hc"),
}


def kinds(batch_first):
    """The graph; with batch_first False what has layout 1 is laid out as 0."""
    random, nodes, tensors, outputs = np.random.default_rng(9), [], [], []

    def tensor(name, *shape):
        tensors.append(numpy_helper.from_array((random.standard_normal(shape) * 0.5).astype(np.float32), name))
        return name

    for kind, (op, attributes, extra) in KINDS.items():
        attributes = dict(attributes)
        layout = attributes.pop("layout", 0)
        directions, gates = 1 + (attributes.get("direction") == "bidirectional"), GATES[op]
        inputs = ["x", tensor(f"{kind}.w", directions, gates * HIDDEN, WIDTH), tensor(f"{kind}.r", directions, gates * HIDDEN, HIDDEN)]
        inputs += ["" if "-" in extra else tensor(f"{kind}.b", directions, 2 * gates * HIDDEN), "lengths" if "l" in extra else ""]
        for letter in "hc":
            inputs.append(tensor(f"{kind}.{letter}0", directions, BATCH, HIDDEN) if letter in extra else "")
        inputs.append(tensor(f"{kind}.p", directions, 3 * HIDDEN) if "p" in extra else "")
        if layout and batch_first:
            inputs[0], attributes["layout"] = "x_batch_first", 1
            for slot in (5, 6):
                nodes.append(helper.make_node("Transpose", [inputs[slot]], [f"{inputs[slot]}.turned"], perm=[1, 0, 2]))
                inputs[slot] += ".turned"
        while not inputs[-1]:
            inputs.pop()
        names = [f"{kind}.{o}" for o in ("y", "h", "c")[: 3 if op == "LSTM" else 2]]
        nodes.append(helper.make_node(op, inputs, names, name=kind, hidden_size=HIDDEN, **attributes))
        if layout and not batch_first:
            turned = [f"{name}.turned" for name in names]
            for name, new in zip(names, turned):
                perm = [2, 0, 1, 3] if name.endswith(".y") else [1, 0, 2]
                nodes.append(helper.make_node("Transpose", [name], [new], perm=perm))
            names = turned
        outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    nodes.insert(0, helper.make_node("Transpose", ["x"], ["x_batch_first"], perm=[1, 0, 2]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["steps", BATCH, WIDTH]),
              helper.make_tensor_value_info("lengths", TensorProto.INT32, [BATCH])]
    graph = helper.make_graph(nodes, "kinds", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model


def kinds_reference():
    onnx.save(kinds(True), str(HERE / "recurrent_kinds.onnx"))
    session = onnxruntime.InferenceSession(kinds(False).SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(10).standard_normal((STEPS, BATCH, WIDTH)).astype(np.float32)
    feeds = {"x": x, "lengths": np.array([STEPS, 4], np.int32)}
    names = [o.name for o in session.get_outputs()]
    arrays = {f"in.{n}": v for n, v in feeds.items()}
    arrays |= {f"ort.{n.removesuffix('.turned')}": v for n, v in zip(names, session.run(names, feeds))}
    np.savez_compressed(HERE / "recurrent_kinds.npz", **arrays)


def main(encoder=None):
    kinds_reference()
    torch.manual_seed(7)
    model = Recurrent().eval()
    x = torch.randn(3, 9, 6)
    torch.onnx.export(model, (x,), str(HERE / "recurrent.onnx"), input_names=["x"], output_names=["y"],
                      dynamic_axes={"x": {0: "batch", 1: "frames"}, "y": {0: "batch"}}, opset_version=17, dynamo=False)
    reference(model, x, HERE / "recurrent.npz")
    if encoder:
        model = Encoder().eval()
        load(model, encoder)
        reference(model, torch.rand(3, 24, 40) * 0.1, HERE / "speaker.npz")


if __name__ == "__main__":
    main(*sys.argv[1:2])
