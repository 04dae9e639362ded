"""Input samples for make_models.py: what the rounding of weights is fitted to, and what it is checked on.

Both lists are made of (a) what the model meets in the demo and (b) random inputs,
so that the rounding suits more than the demo. Fitted and checked samples are disjoint.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
SEED = 20261


def image_input(picture):
    """A PIL picture as float32[1, 3, 224, 224], ImageNet mean and deviation."""
    pixels = picture.convert("RGB").resize((224, 224), Image.BICUBIC)
    return ((np.asarray(pixels, np.float32).transpose(2, 0, 1) / 255 - MEAN) / STD)[None]


def images(data):
    """(fit, check) lists of feeds for EfficientNet-Lite0; `data` is Fashion-MNIST's .npz."""
    arrays = np.load(data)
    rng = np.random.default_rng(SEED)
    noise = [{"image": rng.standard_normal((1, 3, 224, 224)).astype(np.float32)} for _ in range(20)]
    fit, check = (
        [{"image": image_input(Image.fromarray(255 - pixels))} for pixels in chosen]
        for chosen in (arrays["x_train"][-32:], arrays["x_test"][-40:])
    )
    return noise[:16] + fit, noise[16:] + check


def text_feed(ids):
    ids = np.array(ids, np.int64)[None]
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def sentences(tokenizer):
    """(fit, check) lists of feeds for MiniLM from the sentences of this folder and random tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    split = {"train": [], "test": []}
    for name in ("commands.jsonl", "rooms.jsonl"):
        for line in (HERE / name).read_text().splitlines():
            row = json.loads(line)
            split[row["split"]].append(row["text"])
    rng = np.random.default_rng(SEED)
    # BERT: 101 is [CLS], 102 is [SEP], words start at 1000.
    random = [[101, *rng.integers(1000, 30522, n - 2), 102] for n in (16, 32, 64, 128) * 10]
    feeds = {}
    for part, texts in split.items():
        texts = [texts[i] for i in rng.permutation(len(texts))]
        joined = [". ".join(texts[i : i + 8]) for i in range(0, len(texts), 8)]
        feeds[part] = [text_feed(tokenizer.encode(t).ids) for t in texts + joined]
    random = [text_feed(ids) for ids in random]
    return feeds["train"] + random[:32], feeds["test"] + random[32:]
