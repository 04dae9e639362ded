#!/usr/bin/env python3
"""Makes the references of the shipped models that `tests/engine/shipped.rs` holds: outputs by ONNX Runtime,
gradients and a training curve by PyTorch, an adapter and its outputs by PEFT. Everything in f32 from the
weights as they ship (int8 with a scale, dequantized).

    minilm.npz        in.*, out.*: two sentences of tokens, ONNX Runtime's answers
                      peft.*: PEFT's answers with the adapter `minilm_peft`
                      train.*: a batch, its loss and the gradient of every trained tensor at `minilm_peft`'s
                      values, the losses of ten AdamW steps (lr 1e-3, weight decay 0.01)
    minilm_peft/      a PEFT directory: LoRA of rank 2 on 36 layers, and a classifier of three classes
    efficientnet.npz  out.*: ONNX Runtime's answers to one picture (PICTURE below)
                      train.*: loss and gradients of LoRA of rank 2 on all 1x1 convolutions and the last layer

    usage: make_references.py      needs: numpy, onnx, onnxruntime, peft, torch, transformers
"""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent.parent / "models"
RANK, ALPHA, CLASSES, STEPS = 2, 4.0, 3, 10
MASK = (1 << 64) - 1


def values(n, seed, spread):
    """As `values` in tests/engine/support.rs: xorshift, 24 bits."""
    state = (seed * 0x9E3779B97F4A7C15) & MASK | 1
    out = np.empty(n, np.float32)
    for i in range(n):
        state ^= state << 13 & MASK
        state ^= state >> 7
        state ^= state << 17 & MASK
        out[i] = (np.float32(state >> 40) / np.float32(1 << 23) - np.float32(1)) * np.float32(spread)
    return out


def weights(model):
    """Every initializer, and what each DequantizeLinear makes of one."""
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        quantized, scale = found[node.input[0]], found[node.input[1]]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [1] * quantized.ndim
        if scale.ndim:
            shape[axis] = -1
        found[node.output[0]] = quantized.astype(np.float32) * scale.reshape(shape).astype(np.float32)
    return found


def session(path):
    options = ort.SessionOptions()
    # At its default level it would quantize the activations too.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def tokens(rng, rows, length):
    lengths = rng.integers(length // 2, length + 1, rows)
    lengths[0] = length
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    return rng.integers(1000, 30000, (rows, length)) * mask, mask


def bert(w, model):
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
                        attn_implementation="eager", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    net = BertModel(config, add_pooling_layer=False).eval()
    state = net.state_dict()
    # The name of a linear layer's weight tells nothing; that of the bias that is added to its product does.
    product = {n.output[0]: n.input[1] for n in model.graph.node if n.op_type == "MatMul"}
    for node in model.graph.node:
        if node.op_type == "Add":
            names = list(node.input)
            bias = next((n for n in names if n.endswith(".bias")), None)
            out = next((n for n in names if n in product), None)
            if bias and out:
                w[bias.removesuffix("bias") + "weight"] = w[product[out]].T
    for name in state:
        source = "bert." + name
        if source in w:
            state[name] = torch.from_numpy(np.array(w[source], dtype=np.float32))
        else:
            assert name.endswith(("position_ids", "token_type_ids")), name
    net.load_state_dict(state)
    return net


class Classifier(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.bert = net
        self.classifier = torch.nn.Linear(384, CLASSES)

    def forward(self, input_ids, attention_mask):
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].float()
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        return hidden, self.classifier(pooled)


def minilm():
    from peft import LoraConfig, get_peft_model

    path = MODELS / "minilm-l6.onnx"
    model = onnx.load(path)
    rng = np.random.default_rng(1)
    ids, mask = tokens(rng, 2, 12)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    s = session(path)
    names = [o.name for o in s.get_outputs()]
    arrays = {f"in.{k}": v for k, v in inputs.items()}
    arrays |= {f"out.{k}": v for k, v in zip(names, s.run(None, inputs))}

    torch.manual_seed(3)
    net = Classifier(bert(weights(model), model))
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["query", "key", "value", "dense"],
                        modules_to_save=["classifier"], lora_dropout=0.0)
    net = get_peft_model(net, config)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.05)
    net.eval()
    folder = HERE / "minilm_peft"
    net.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    state = {k: v.half().float() for k, v in load_file(folder / "adapter_model.safetensors").items()}
    save_file({k: v.half() for k, v in state.items()}, folder / "adapter_model.safetensors")
    # What was saved, rounded to f16, is what everything below starts from.
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.requires_grad:
                p.copy_(p.half().float())
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "models/minilm-l6.onnx"
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")

    t = torch.from_numpy
    with torch.no_grad():
        hidden, logits = net(t(ids), t(mask))
    arrays |= {"peft.last_hidden_state": hidden.numpy(), "peft.logits": logits.numpy()}

    ids, mask = tokens(rng, 4, 16)
    labels = rng.integers(0, CLASSES, 4)
    trained = {n: p for n, p in net.named_parameters() if p.requires_grad}
    assert len(trained) == 74, len(trained)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0.01)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(t(ids), t(mask))[1], t(labels))
        loss.backward()
        if step == 0:
            for name, p in trained.items():
                name = name.removeprefix("base_model.model.").replace(".default", "").replace("modules_to_save.", "")
                arrays[f"train.gradient.{name}"] = p.grad.numpy().copy()
        losses.append(loss.item())
        optimizer.step()
    arrays |= {"train.input_ids": ids, "train.attention_mask": mask, "train.labels": labels,
               "train.losses": np.array(losses, np.float32)}
    np.savez_compressed(HERE / "minilm.npz", **arrays)


def efficientnet():
    path = MODELS / "efficientnet-lite0.onnx"
    model = onnx.load(path)
    w = {k: torch.from_numpy(np.array(v)) for k, v in weights(model).items()}
    s = session(path)
    names = [o.name for o in s.get_outputs()]
    picture = values(3 * 224 * 224, 1, 2.0).reshape(1, 3, 224, 224)
    arrays = {f"out.{k}": v for k, v in zip(names, s.run(None, {"image": picture}))}

    # One row of the batch, the head on `features` (1280), targets in the graph's order.
    torch.manual_seed(5)
    pairs, env = {}, {"image": torch.from_numpy(picture), **w}
    adapted = lambda name, a, b: pairs.setdefault(name, (
        torch.from_numpy(values(RANK * a, 2 * len(pairs) + 11, 0.2)).reshape(RANK, a).requires_grad_(),
        torch.from_numpy(values(b * RANK, 2 * len(pairs) + 12, 0.2)).reshape(b, RANK).requires_grad_()))
    scaling = ALPHA / RANK
    F = torch.nn.functional
    for node in model.graph.node:
        a = {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}
        x = [env[i] for i in node.input if i]
        if node.op_type == "DequantizeLinear":
            continue
        if node.op_type == "Conv":
            pads, stride, groups = a.get("pads", [0] * 4), a.get("strides", [1, 1]), a.get("group", 1)
            y = F.conv2d(F.pad(x[0], (pads[1], pads[3], pads[0], pads[2])), x[1], x[2], stride, groups=groups)
            if groups == 1 and x[1].shape[2:] == (1, 1):
                la, lb = adapted(node.name, x[1].shape[1], x[1].shape[0])
                y = y + scaling * F.conv2d(F.conv2d(x[0], la[:, :, None, None], stride=stride), lb[:, :, None, None])
        elif node.op_type == "Clip":
            y = x[0].clamp(x[1], x[2])
        elif node.op_type == "Add":
            y = x[0] + x[1]
        elif node.op_type == "GlobalAveragePool":
            y = x[0].mean((2, 3), keepdim=True)
        elif node.op_type == "Reshape":
            y = x[0].reshape([int(v) or x[0].shape[i] for i, v in enumerate(x[1])])
        elif node.op_type == "Gemm":
            y = None  # the logits of the base: the head reads the features before them
        else:
            raise SystemExit(node.op_type)
        env[node.output[0]] = y
    features = env[names[names.index("features")]]
    weight = torch.from_numpy(values(CLASSES * 1280, 7, 0.1)).reshape(CLASSES, 1280).requires_grad_()
    bias = torch.from_numpy(values(CLASSES, 8, 0.1)).requires_grad_()
    loss = F.cross_entropy(features @ weight.T + bias, torch.tensor([1]))
    loss.backward()
    arrays["train.loss"] = np.array([loss.item()], np.float32)
    for i, (la, lb) in enumerate(pairs.values()):
        arrays[f"train.gradient.{i}.lora_a"] = la.grad.numpy()
        arrays[f"train.gradient.{i}.lora_b"] = lb.grad.numpy()
    arrays["train.gradient.head.weight"] = weight.grad.numpy()
    arrays["train.gradient.head.bias"] = bias.grad.numpy()
    np.savez_compressed(HERE / "efficientnet.npz", **arrays)


if __name__ == "__main__":
    torch.set_num_threads(1)
    minilm()
    efficientnet()
