#!/usr/bin/env python3
"""Makes the references of `tests/engine/kinds.rs`: two tiny networks, for each kind an adapter as
PEFT saves it, what the adapted network answers, and PyTorch's gradients.

    pip install torch==2.15.0 peft==0.21.2 onnx onnxscript numpy
    python3 tests/kinds/make_kinds.py

A gradient has the name and the shape of its tensor in PEFT's file (`grad.safetensors`), so that one
reading serves both. What PEFT has no form for (bias, full, bottleneck) is written in ours, as
`PATH.TENSOR` of an .npz file.
"""

import os
import shutil
import warnings

import numpy as np
import torch
from peft import IA3Config, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

warnings.filterwarnings("ignore")
HERE = os.path.dirname(os.path.abspath(__file__))
CLASSES = 3


class Text(nn.Module):
    """Ids (B, T) to features (B, T, 12)."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 12)
        self.up = nn.Linear(12, 16)
        self.down = nn.Linear(16, 12, bias=False)

    def forward(self, ids):
        x = self.words(ids)
        return x + self.down(torch.tanh(self.up(x)))


class Picture(nn.Module):
    """Pixels (B, 4, H, W) to features (B, 6)."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(1, 0))
        self.second = nn.Conv2d(8, 6, 1)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return torch.tanh(self.second(x)).mean((2, 3))


class Headed(nn.Module):
    """A mean over tokens where there are any, then one linear layer: what training adds."""

    def __init__(self, body, width):
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        y = self.body(x)
        return self.head(y.mean(1) if y.dim() == 3 else y)


def network(name):
    torch.manual_seed(1)
    if name == "text":
        return Text(), torch.randint(0, 20, (4, 5)), 12
    return Picture(), torch.randn(4, 4, 7, 6), 6


LINEAR, CONV = ["up", "down"], ["first", "second"]
PEFT = {
    "text": {
        "lora": LoraConfig(r=2, lora_alpha=3, target_modules=["words", *LINEAR]),
        "lora_ranks": LoraConfig(r=2, lora_alpha=3, target_modules=LINEAR, rank_pattern={"up": 3}),
        "rslora": LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=LINEAR),
        "dora": LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=LINEAR),
        "ia3": IA3Config(target_modules=LINEAR, feedforward_modules=[]),
        "ia3_in": IA3Config(target_modules=LINEAR, feedforward_modules=["down"]),
        "lokr": LoKrConfig(r=1, alpha=2, target_modules=LINEAR),
        "lokr_both": LoKrConfig(r=1, alpha=2, target_modules=LINEAR, decompose_both=True),
        "lokr_whole": LoKrConfig(r=8, alpha=4, target_modules=LINEAR),
        "lokr_factor": LoKrConfig(r=8, alpha=4, target_modules=LINEAR, decompose_factor=4),
    },
    "picture": {
        "lora": LoraConfig(r=2, lora_alpha=3, target_modules=CONV),
        "dora": LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=CONV),
        "ia3": IA3Config(target_modules=CONV, feedforward_modules=[]),
        "ia3_in": IA3Config(target_modules=CONV, feedforward_modules=["first"]),
        "lokr": LoKrConfig(r=1, alpha=2, target_modules=CONV, use_effective_conv2d=True),
        "lokr_product": LoKrConfig(r=1, alpha=2, target_modules=CONV),
        "lokr_whole": LoKrConfig(r=8, alpha=4, target_modules=CONV),
    },
}


def moved(parameters, seed):
    """Away from where training starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def gradients(model, x, seed):
    """Loss and gradients with a head of fixed values."""
    torch.manual_seed(seed)
    width = model(x).shape[-1]
    headed = Headed(model, width)
    labels = torch.arange(x.shape[0]) % CLASSES
    loss = nn.functional.cross_entropy(headed(x), labels)
    loss.backward()
    return headed.head, loss, labels


def numbers(head, x, y, loss, labels):
    return {
        "in": x.numpy(),
        "out": y.detach().numpy(),
        "labels": labels.numpy(),
        "loss": np.array([loss.item()], np.float32),
        "head.weight": head.weight.detach().numpy(),
        "head.bias": head.bias.detach().numpy(),
        "grad.head.weight": head.weight.grad.numpy(),
        "grad.head.bias": head.bias.grad.numpy(),
    }


def of_peft(name, kind, config):
    body, x, _ = network(name)
    model = get_peft_model(body, config)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    moved(trained.values(), 3)
    head, loss, labels = gradients(model, x, 4)
    folder = os.path.join(HERE, name, kind)
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))
    saved = load_file(os.path.join(folder, "adapter_model.safetensors"))
    # The saved names lack the adapter's name; a magnitude also its `.weight`.
    found = {}
    for full, parameter in trained.items():
        short = full.replace(".default", "")
        short = short if short in saved else short.removesuffix(".weight")
        found[short] = parameter.grad.reshape(saved[short].shape).contiguous()
    assert found.keys() == saved.keys(), (found.keys(), saved.keys())
    save_file(found, os.path.join(folder, "grad.safetensors"))
    np.savez(os.path.join(folder, "numbers.npz"), **numbers(head, x, model(x), loss, labels))


def weight(w):
    """(out, in) as it is; (out, C, kh, kw) as (out, kh·kw·C)."""
    w = w.detach()
    return (w.permute(0, 2, 3, 1).flatten(1) if w.dim() == 4 else w).numpy()


class Bottleneck(nn.Module):
    """relu between two layers, added to what the layer gives."""

    def __init__(self, layer, outputs, channels):
        super().__init__()
        self.layer, self.channels = layer, channels
        self.down, self.up = nn.Linear(outputs, 2), nn.Linear(2, outputs)

    def forward(self, x):
        y = self.layer(x)
        y = y.movedim(1, -1) if self.channels else y
        y = y + self.up(torch.relu(self.down(y)))
        return y.movedim(-1, 1) if self.channels else y


def of_torch(name, kind):
    body, x, _ = network(name)
    paths = LINEAR if name == "text" else CONV
    for p in body.parameters():
        p.requires_grad_(False)
    tensors = {}
    for path in paths:
        layer = getattr(body, path)
        outputs = layer.weight.shape[0]
        if kind == "bottleneck":
            around = Bottleneck(layer, outputs, name == "picture")
            setattr(body, path, around)
            for part in ["down", "up"]:
                tensors[f"{path}.{part}"] = getattr(around, part).weight
                tensors[f"{path}.{part}_bias"] = getattr(around, part).bias
            continue
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(outputs))
        if kind == "full":
            tensors[f"{path}.weight"] = layer.weight
        tensors[f"{path}.bias"] = layer.bias
    for p in tensors.values():
        p.requires_grad_(True)
    moved(tensors.values(), 5)
    head, loss, labels = gradients(body, x, 4)
    found = numbers(head, x, body(x), loss, labels)
    for tensor, p in tensors.items():
        found[tensor] = weight(p)
        found[f"grad.{tensor}"] = weight(p.grad)
    folder = os.path.join(HERE, name, kind)
    os.makedirs(folder)
    np.savez(os.path.join(folder, "numbers.npz"), **found)


def main():
    for name in PEFT:
        shutil.rmtree(os.path.join(HERE, name), ignore_errors=True)
        os.makedirs(os.path.join(HERE, name))
        body, x, _ = network(name)
        torch.onnx.export(
            body.eval(),
            (x,),
            os.path.join(HERE, name, "base.onnx"),
            input_names=["x"],
            output_names=["features"],
            dynamic_axes={"x": {0: "batch"}, "features": {0: "batch"}},
            dynamo=False,
            keep_initializers_as_inputs=False,
        )
        for kind, config in PEFT[name].items():
            of_peft(name, kind, config)
        for kind in ["bias", "full", "bottleneck"]:
            of_torch(name, kind)


main()
