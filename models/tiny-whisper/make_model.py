"""A small Whisper with random weights, and what PyTorch learns with it.

    python make_model.py        # encoder.onnx, decoder.onnx, decoder_with_past.onnx, lora.npz beside this file

Names of nodes, inputs and outputs are those of exported Whispers; 200 tokens as in ../tiny-lm/tokenizer.json, clips
of one second. lora.npz: LoRA (rank 2, alpha 4) on q_proj and v_proj of all attention. `input_features` f16 (2, 80,
100), `input_ids`, `labels` (2, tokens), -1 counts for nothing; `init.`, `grad1.`, `after10.` + module + `.lora_a`,
`.lora_b`; `losses` of ten AdamW steps (rate 0.01, weight decay 0.01), each before the update: the mean cross-entropy over
the labels. Needs torch (CPU) and onnx.
"""
import pathlib

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F

HERE = pathlib.Path(__file__).parent
WIDTH, HEADS, HIDDEN, TOKENS, PLACES, FRAMES = 16, 2, 32, 200, 64, 100
HEAD = WIDTH // HEADS
RANK, ALPHA = 2, 4


def split_heads(x):
    return x.reshape(x.shape[0], x.shape[1], HEADS, HEAD).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.k_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.v_proj, self.q_proj, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x, source=None, past=None, mask=None):
        query = split_heads(self.q_proj(x) * HEAD**-0.5)
        if source is None:
            keys, values = past
        else:
            keys, values = split_heads(self.k_proj(source)), split_heads(self.v_proj(source))
            if past is not None:
                keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        scores = query @ keys.transpose(2, 3)
        if mask is not None:
            scores = scores + mask
        mixed = (F.softmax(scores, -1) @ values).transpose(1, 2)
        return self.out_proj(mixed.reshape(x.shape[0], x.shape[1], WIDTH)), (keys, values)


class Layer(nn.Module):
    def __init__(self, cross):
        super().__init__()
        self.self_attn, self.self_attn_layer_norm = Attention(), nn.LayerNorm(WIDTH)
        if cross:
            self.encoder_attn, self.encoder_attn_layer_norm = Attention(), nn.LayerNorm(WIDTH)
        self.fc1, self.fc2, self.final_layer_norm = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x, encoded=None, past=None, mask=None):
        y = self.self_attn_layer_norm(x)
        y, kept = self.self_attn(y, y, past[:2] if past else None, mask)
        x = x + y
        if hasattr(self, "encoder_attn"):
            y, cross = self.encoder_attn(self.encoder_attn_layer_norm(x), encoded, past[2:] if past else None)
            x, kept = x + y, kept + cross
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x)))), kept


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(80, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(FRAMES // 2, WIDTH)
        self.layers = nn.ModuleList([Layer(False)])
        self.layer_norm = nn.LayerNorm(WIDTH)

    def forward(self, input_features):
        x = F.gelu(self.conv2(F.gelu(self.conv1(input_features)))).permute(0, 2, 1) + self.embed_positions.weight
        return self.layer_norm(self.layers[0](x)[0])


class DecoderStack(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens, self.embed_positions = nn.Embedding(TOKENS, WIDTH), nn.Embedding(PLACES, WIDTH)
        self.layers = nn.ModuleList([Layer(True)])
        self.layer_norm = nn.LayerNorm(WIDTH)

    def forward(self, input_ids, encoded, past):
        start = past[0].shape[2] if past else 0
        query_at = torch.arange(input_ids.shape[1]) + start
        key_at = torch.arange(input_ids.shape[1] + start) if past else query_at
        lowest = torch.tensor(torch.finfo(torch.float32).min)
        mask = torch.where(key_at[None] > query_at[:, None], lowest, torch.tensor(0.0))
        x, kept = self.layers[0](self.embed_tokens(input_ids) + self.embed_positions(query_at), encoded, past, mask)
        return self.layer_norm(x), kept


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = DecoderStack()

    def forward(self, input_ids, encoded, past):
        return self.decoder(input_ids, encoded, past)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Model()
        self.proj_out = nn.Linear(WIDTH, TOKENS, bias=False)
        self.proj_out.weight = self.model.decoder.embed_tokens.weight

    def forward(self, input_ids, encoder_hidden_states):
        x, kept = self.model(input_ids, encoder_hidden_states, None)
        return (self.proj_out(x), *kept)


class Cached(Decoder):
    def forward(self, input_ids, *past):
        x, kept = self.model(input_ids, None, past)
        return (self.proj_out(x), *kept[:2])


def export(module, args, name, inputs, outputs, axes):
    path = str(HERE / name)
    torch.onnx.export(module, args, path, input_names=inputs, output_names=outputs, dynamic_axes=axes, opset_version=17, dynamo=False)
    made = onnx.load(path)
    made.graph.name = name.split(".")[0]
    onnx.checker.check_model(made)
    onnx.save(made, path)


def graphs(encoder, decoder, cached):
    def states(prefix, sides=("decoder", "encoder")):
        return [f"{prefix}.0.{side}.{kind}" for side in sides for kind in ("key", "value")]

    def axes(names, length):
        return {n: {0: "batch", 2: length if ".decoder." in n else "frames"} for n in names}

    tokens = {0: "batch", 1: "tokens"}
    features, hidden, ids = torch.randn(1, 80, FRAMES), torch.randn(2, 20, WIDTH), torch.randint(2, TOKENS, (2, 4))
    export(encoder, (features,), "encoder.onnx", ["input_features"], ["last_hidden_state"], {"input_features": {0: "batch"}, "last_hidden_state": {0: "batch"}})
    present = states("present")
    free = {"input_ids": tokens, "encoder_hidden_states": {0: "batch", 1: "frames"}, "logits": tokens}
    export(decoder, (ids, hidden), "decoder.onnx", ["input_ids", "encoder_hidden_states"], ["logits"] + present, free | axes(present, "tokens"))
    past, present = states("past_key_values"), states("present", ("decoder",))
    example = [torch.randn(2, HEADS, 5 if ".decoder." in n else 20, HEAD) for n in past]
    free = {"input_ids": tokens, "logits": tokens} | axes(past, "past") | axes(present, "past_and_tokens")
    export(cached, (ids[:, :2], *example), "decoder_with_past.onnx", ["input_ids"] + past, ["logits"] + present, free)


class Lora(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.a = nn.Parameter(torch.randn(RANK, layer.in_features) * 0.3)
        self.b = nn.Parameter(torch.randn(layer.out_features, RANK) * 0.3)

    def forward(self, x):
        return self.layer(x) + ALPHA / RANK * (x @ self.a.T @ self.b.T)


def learn(encoder, decoder):
    trained = {}
    for p in [*encoder.parameters(), *decoder.parameters()]:
        p.requires_grad_(False)
    for half in (encoder, decoder):
        for name, module in list(half.named_modules()):
            for side in ("q_proj", "v_proj"):
                if isinstance(module, Attention):
                    lora = Lora(getattr(module, side))
                    setattr(module, side, lora)
                    trained |= {f"{name}.{side}.lora_a": lora.a, f"{name}.{side}.lora_b": lora.b}
    features = torch.randn(2, 80, FRAMES).half()
    ids = torch.tensor([[1, 199, 5, 9, 30, 7, 11], [1, 199, 40, 8, 0, 0, 0]])
    labels = torch.tensor([[-1, 5, 9, 30, 7, 11, 0], [-1, 40, 8, 0, -1, -1, -1]])
    arrays = {"input_features": features.numpy(), "input_ids": ids.numpy(), "labels": labels.numpy()}
    arrays |= {f"init.{n}": p.detach().numpy().copy() for n, p in trained.items()}
    optimizer, losses = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.01), []
    for step in range(10):
        optimizer.zero_grad()
        logits = decoder(ids, encoder(features.float()))[0]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1)
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            arrays |= {f"grad1.{n}": p.grad.numpy().copy() for n, p in trained.items()}
        optimizer.step()
    arrays |= {f"after10.{n}": p.detach().numpy().copy() for n, p in trained.items()}
    np.savez_compressed(HERE / "lora.npz", **arrays, losses=np.array(losses, np.float32))
    print("losses", losses[0], losses[-1])


torch.manual_seed(3)
encoder, decoder, cached = Encoder().eval(), Decoder().eval(), Cached().eval()
for name, p in [*encoder.named_parameters(), *decoder.named_parameters()]:
    mean = 1.0 if name.endswith("norm.weight") else 0.0
    torch.nn.init.normal_(p, mean, 0.2 if p.dim() == 1 else WIDTH**-0.5)
with torch.no_grad():
    # Of one length, so that none is always less likely than another, and far enough apart.
    table = decoder.model.decoder.embed_tokens.weight
    table *= 4 / table.norm(dim=1, keepdim=True)
cached.load_state_dict(decoder.state_dict())
graphs(encoder, decoder, cached)
learn(encoder, decoder)
