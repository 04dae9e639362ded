#!/usr/bin/env python3
"""How many inputs of a class that was never taught pass at `--reject 0.01`, from outside the program.

    python3 scripts/never_taught.py target/release/offshoot ../shared/data [SEEDS]

For each set and number of samples a class, each class is left out in turn: `train --instant` learns the others, and
`run --reject 0.01` is asked about all samples of the one left out and those of the others that were not taught. The sets
are models/commands.jsonl (ten classes) and rooms.jsonl (five) on MiniLM's features, 120 pictures a class of Fashion-MNIST on
EfficientNet-Lite0's, and scikit-learn's digits as they are. Features are computed once, by `run`; what learns of them is a
base that gives its inputs back.

Prints a line of JSON for each: the share of inputs never taught that passed by seed and on average, the most of a single
class, the share of known ones that were called unknown. Needs numpy, onnx, tokenizers, pillow.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benches"))
TRIED = [("commands", 6), ("commands", 12), ("commands", 24), ("rooms", 10), ("rooms", 24)]
TRIED += [("digits", 10), ("digits", 20), ("digits", 50), ("fashion", 20), ("fashion", 60)]


def identity(path, width):
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])
    out = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", width])
    one = helper.make_tensor("one", TensorProto.FLOAT, [width, width], np.eye(width, dtype=np.float32).flatten())
    node = helper.make_node("MatMul", ["x", "one"], ["features"], name="same")
    model = helper.make_model(helper.make_graph([node], "identity", [given], [out], [one]), opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)


def sets(program, folder, data, wanted):
    """Name, features and classes of each."""
    from knowledge import Program

    run = Program(program, folder)
    if {"commands", "rooms"} & wanted:
        from tokenizers import Tokenizer

        base, tokens = folder / "minilm.base", ROOT / "models/minilm-l6.tokenizer.json"
        run.json("pack", ROOT / "models/minilm-l6.onnx", "-o", base, "--tokenizer", tokens)
        run.inputs = json.dumps(run.json("inspect", base))
        tokenizer = Tokenizer.from_file(str(tokens))
        tokenizer.no_padding()
        for name in ("commands", "rooms"):
            rows = [json.loads(line) for line in (ROOT / f"models/{name}.jsonl").read_text().splitlines()]
            names = sorted({row["label"] for row in rows})
            found = run.sentences(base, None, tokenizer, [row["text"] for row in rows])
            yield name, found.astype(np.float32), np.array([names.index(row["label"]) for row in rows])
    if "digits" in wanted:
        digits = np.load(data / "digits.npz")
        yield "digits", digits["x"].astype(np.float32), digits["y"]
    if "fashion" in wanted:
        from PIL import Image

        base = folder / "pictures.base"
        run.json("pack", ROOT / "models/efficientnet-lite0.onnx", "-o", base, "--image", "224")
        arrays, rng = np.load(data / "fashion_mnist_5k.npz"), np.random.default_rng(0)
        labels = arrays["y_train"]
        which = np.concatenate([rng.permutation(np.where(labels == c)[0])[:120] for c in range(10)])
        mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        drawn = [Image.fromarray(255 - arrays["x_train"][i]).convert("RGB").resize((224, 224), Image.BICUBIC) for i in which]
        pixels = np.stack([((np.asarray(p) / 255 - mean) / deviation).transpose(2, 0, 1) for p in drawn]).astype(np.float32)
        each = [run.outputs(base, None, {"image": pixels[at : at + 24]}, "features") for at in range(0, len(which), 24)]
        yield "fashion", np.concatenate(each), labels[which]


def measured(program, folder, base, x, y, count, seeds):
    def offshoot(*words):
        done = subprocess.run([program, "--json", *map(str, words)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, words))}: {done.stderr}")
        return json.loads(done.stdout)

    passed, lost, most = [], [], 0.0
    for seed in seeds:
        rng, each = np.random.default_rng(seed), []
        for out in np.unique(y):
            taught = np.concatenate([rng.permutation(np.where(y == c)[0])[:count] for c in np.unique(y) if c != out])
            labels = np.unique(y[taught], return_inverse=True)[1]
            np.savez(folder / "taught.npz", x=x[taught], labels=labels.astype(np.int64))
            offshoot("train", base, "--data", folder / "taught.npz", "-o", folder / "a.adapter", "--instant")
            others = np.setdiff1d(np.where(y != out)[0], taught)
            asked = np.concatenate([np.where(y == out)[0], others])
            np.save(folder / "asked.npy", x[asked])
            said = offshoot("run", base, "--adapter", folder / "a.adapter", "--input", f"x={folder}/asked.npy", "--reject", 0.01)
            known = np.array([answer["known"] for answer in said["predictions"]])
            strangers = int((y == out).sum())
            each.append(known[:strangers].mean())
            lost.append(1 - known[strangers:].mean())
            most = max(most, each[-1])
        passed.append(100 * float(np.mean(each)))
    means = {"passed": round(float(np.mean(passed)), 2), "by seed": [round(p, 2) for p in passed]}
    return means | {"most of a class": round(100 * float(most), 1), "known lost": round(100 * float(np.mean(lost)), 1)}


def main(program, data, seeds="3"):
    program, wanted = str(Path(program).resolve()), {name for name, _ in TRIED}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, x, y in sets(program, folder, Path(data), wanted):
            identity(folder / "identity.onnx", x.shape[1])
            base = folder / f"{name}-features.base"
            subprocess.run([program, "--json", "pack", folder / "identity.onnx", "-o", base, "--weights", "f32"], check=True, stdout=subprocess.DEVNULL)
            for _, count in (tried for tried in TRIED if tried[0] == name):
                found = measured(program, folder, base, x, y, count, range(int(seeds)))
                print(json.dumps({"set": name, "a class": count} | found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
