#!/usr/bin/env python3
"""`train` with no option but data, beside the instant head and a grid search, on ten small data sets.

Sentences on MiniLM: tweets, commands, subjects of mails (spam or not); digits and clothes (28 x 28 pixels) and numbers on small
networks that this script trains on something else. Two sets have 95 of 100 samples in one class, two a fifth of wrong labels,
two every row one to five times. For each set and seed it runs `train` as it is, `train --instant`, and `train` at each rate and
length of the grid; all are judged by `eval` on rows that none of them saw, with their right labels, as often as they come in the
world. As a grid search does, the setting that is best on the run's own hold-out is taken; the best on the test rows is printed
beside it, which nobody can know beforehand.

Prints a line of JSON for each set and seed, then a table: accuracy (of numbers R²) and macro-F1, the mean over the seeds, in
points; `se` is one standard error of a difference between two such figures if they were of different rows, so too large.

usage: defaults.py OFFSHOOT [--data DIR] [--sets tweets,digits] [--seeds 0,1,2] [--work DIR] [--more "--threads 1"]
needs: numpy, onnx
"""

import argparse
import gzip
import json
import math
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parent.parent
RATES, EPOCHS = ["3e-4", "1e-3", "3e-3"], ["4", "16"]
TESTS = 400


# What is learned: (rows to learn, rows to judge by), each (input, label).


def labelled(path):
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else open(path)
    with opened as lines:
        return [json.loads(line) for line in lines]


def tweets(data, of=(0, 1, 2)):
    rows = [t for t in labelled(data / "tweets.jsonl.gz") if t["confidence"] < 0 or t["confidence"] >= 0.6]
    return [(t["text"], f"class {t['label']}") for t in rows if t["label"] in of]


def subjects(data):
    rows = [m for m in labelled(data / "spam_assassin.jsonl.gz") if len(m["subject"].split()) >= 2]
    # A subject comes once, so that none is on both sides.
    found = {m["subject"].lower().removeprefix("re: "): (m["subject"], f"class {m['label']}") for m in rows}
    return [found[subject] for subject in sorted(found)]


def commands(_):
    return [(row["text"], row["label"]) for row in labelled(ROOT / "models/commands.jsonl")]


def digits(data):
    found = np.load(data / "digits.npz")
    pixels, labels = (found[k] for k in sorted(found.files, key=lambda k: -found[k].ndim)[:2])
    small = pixels.reshape(-1, 8, 8).astype(np.float32) / pixels.max()
    large = np.pad(np.kron(small, np.ones((3, 3), np.float32)), ((0, 0), (2, 2), (2, 2)))
    return [(x, f"class {int(y)}") for x, y in zip(large.reshape(len(small), -1), labels)]


def clothes(data):
    found = np.load(data / "fashion_mnist_5k.npz")
    pixels = found["x_train"].reshape(-1, 784).astype(np.float32) / 255
    return [(x, f"class {int(y)}") for x, y in zip(pixels, found["y_train"])]


def friedman(x, order):
    """Friedman's first function of the columns in that order."""
    a, b, c, d, e = (x[:, i] for i in order[:5])
    return 10 * np.sin(np.pi * a * b) + 20 * (c - 0.5) ** 2 + 10 * d + 5 * e


def numbers(_):
    rng = np.random.default_rng(5)
    x = rng.uniform(size=(2000, 10)).astype(np.float32)
    y = friedman(x, [3, 4, 0, 1, 2]) + rng.normal(0, 1, len(x))
    return list(zip(x, y.astype(np.float32)))


def parted(rows, count, rng, tests=TESTS):
    order = rng.permutation(len(rows))
    return [rows[i] for i in order[:count]], [rows[i] for i in order[count : count + tests]]


def uneven(rows, rare, count, rng):
    """Two classes, one of which has 5 of 100 rows."""
    rows = [(x, "rare" if label == rare else "usual") for x, label in rows]
    sides = [[r for r in rows if r[1] == name] for name in ("rare", "usual")]
    few = count // 20
    (learned, judged), (more, others) = parted(sides[0], few, rng, 60), parted(sides[1], count - few, rng, 1140)
    return learned + more, judged + others[: 19 * len(judged)]


def mistaken(parts, rng):
    """A fifth of the labels are wrong."""
    rows, tests = parts
    names = sorted({label for _, label in rows})
    wrong = set(rng.permutation(len(rows))[: len(rows) // 5])
    other = lambda label: rng.choice([name for name in names if name != label])
    return [(x, str(other(label)) if i in wrong else label) for i, (x, label) in enumerate(rows)], tests


def repeated(parts, rng):
    """Each row comes one to five times."""
    rows, tests = parts
    return [row for row in rows for _ in range(rng.integers(1, 6))], tests


SETS = {
    "tweets": ("minilm", lambda d, r: parted(tweets(d), 150, r)),
    "commands": ("minilm", lambda d, r: parted(commands(d), 160, r)),
    "subjects": ("minilm", lambda d, r: parted(subjects(d), 120, r)),
    "tweets, 95:5": ("minilm", lambda d, r: uneven(tweets(d, (0, 2)), "class 2", 200, r)),
    "commands, a fifth wrong": ("minilm", lambda d, r: mistaken(parted(commands(d), 160, r), r)),
    "subjects, repeated": ("minilm", lambda d, r: repeated(parted(subjects(d), 60, r), r)),
    "digits": ("of clothes", lambda d, r: parted(digits(d), 100, r, 1000)),
    "digits, 95:5": ("of clothes", lambda d, r: uneven(digits(d), "class 3", 200, r)),
    "clothes, a fifth wrong": ("of digits", lambda d, r: mistaken(parted(clothes(d), 300, r, 1000), r)),
    "numbers, repeated": ("of numbers", lambda d, r: repeated(parted(numbers(d), 80, r, 1000), r)),
}


# What they are learned on.


def network(path, x, y, classes, seed=0, steps=1000):
    """A network of two hidden layers, trained here by Adam; its output `features` has 64 columns."""
    rng = np.random.default_rng(seed)
    sizes = [x.shape[1], 128, 64, classes]
    weights = [rng.normal(0, math.sqrt(2 / a), (a, b)).astype(np.float32) for a, b in zip(sizes, sizes[1:])]
    values = weights + [np.zeros(b, np.float32) for b in sizes[1:]]
    moments = [[np.zeros_like(v), np.zeros_like(v)] for v in values]
    for step in range(1, steps + 1):
        at = rng.integers(0, len(x), 64)
        layers = [x[at]]
        for i in range(3):
            z = layers[-1] @ values[i] + values[3 + i]
            layers.append(np.maximum(z, 0) if i < 2 else z)
        if y.dtype.kind == "f":
            back = (layers[-1] - y[at]) / len(at)
        else:
            e = np.exp(layers[-1] - layers[-1].max(1, keepdims=True))
            back = (e / e.sum(1, keepdims=True) - np.eye(classes, dtype=np.float32)[y[at]]) / len(at)
        gradients = [None] * 6
        for i in (2, 1, 0):
            gradients[i], gradients[3 + i] = layers[i].T @ back, back.sum(0)
            back = (back @ values[i].T) * (layers[i] > 0)
        for value, moment, g in zip(values, moments, gradients):
            moment[0] += 0.1 * (g - moment[0])
            moment[1] += 0.001 * (g * g - moment[1])
            to = moment[0] / (1 - 0.9**step), moment[1] / (1 - 0.999**step)
            value -= 1e-3 * to[0] / (np.sqrt(to[1]) + 1e-8)
    nodes, tensors, last = [], [], "x"
    for i, out in enumerate(("a", "b", "logits")):
        tensors += [helper.make_tensor(f"{n}{i}", TensorProto.FLOAT, v.shape, v.flatten()) for n, v in (("w", values[i]), ("v", values[3 + i]))]
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"v{i}"], [out], name=f"fc{i + 1}"))
        if i < 2:
            last = ("hidden", "features")[i]
            nodes.append(helper.make_node("Relu", [out], [last]))
    info = lambda name, width: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
    graph = helper.make_graph(nodes, "small", [info("x", sizes[0])], [info("features", 64), info("logits", classes)], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)


def arrays(rows):
    x = np.stack([x for x, _ in rows])
    return x, np.array([int(label.split()[1]) if isinstance(label, str) else label for _, label in rows])


def base(name, run, data, work):
    path = work / f"{name.replace(' ', '-')}.base"
    if path.exists():
        return path
    if name == "minilm":
        models = ROOT / "models"
        run("pack", models / "minilm-l6.onnx", "-o", path, "--tokenizer", models / "minilm-l6.tokenizer.json")
        return path
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "small.onnx"
        if name == "of numbers":
            x = np.random.default_rng(6).uniform(size=(5000, 10)).astype(np.float32)
            y = np.stack([friedman(x, np.random.default_rng(i).permutation(10)) for i in range(6)], 1)
            network(source, x, ((y - y.mean(0)) / y.std(0)).astype(np.float32), 6)
        else:
            network(source, *arrays({"of clothes": clothes, "of digits": digits}[name](data)), 10)
        run("pack", source, "-o", path, "--weights", "f32")
    return path


def write(path, rows):
    if isinstance(rows[0][0], str):
        path = path.with_suffix(".jsonl")
        path.write_text("".join(json.dumps({"text": x, "label": label}) + "\n" for x, label in rows))
        return path
    path = path.with_suffix(".npz")
    place = {"usual": 0, "rare": 1} | {f"class {i}": i for i in range(10)}
    labels = [place[label] if isinstance(label, str) else label for _, label in rows]
    np.savez(path, x=np.stack([x for x, _ in rows]), labels=np.array(labels))
    return path


def runner(program):
    def run(*words):
        done = subprocess.run([program, "--json", *map(str, words)], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr}")
        return json.loads(done.stdout)

    return run


def judged(found):
    """What counts first, and macro-F1; of numbers R² alone."""
    first = found.get("accuracy", found.get("r2"))
    return [first, found.get("macro_f1", first)]


def one(run, packed, train, test, folder, seed, more):
    """Each way's figures on the test rows, its place on the hold-out and its seconds."""
    ways = {"defaults": [], "instant": ["--instant", "--holdout", "0.2"]}
    ways |= {f"{rate} x {epochs}": ["--lr", rate, "--epochs", epochs] for rate in RATES for epochs in EPOCHS}
    found = {}
    for way, words in ways.items():
        adapter, began = folder / "a.adapter", time.time()
        trained = run("train", packed, "--data", train, "-o", adapter, "--seed", seed, *more, *words)
        report, seconds = trained["report"], time.time() - began
        if way == "instant":  # of all samples, as a person would
            run("train", packed, "--data", train, "-o", adapter, "--seed", seed, *more, "--instant")
        evaluation = run("eval", packed, "--data", test, "--adapter", adapter)["evaluation"]
        held = dict(report["after"])
        place = held["accuracy"] if "accuracy" in held else held.get("r2", 0)
        found[way] = {"test": judged(evaluation), "held": [place, -held.get("loss", 0)], "seconds": round(seconds, 1)}
        found[way]["given_up"] = report.get("given_up") is not None
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--sets", help="those whose names begin so")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--work", type=Path, help="where bases are packed and kept")
    parser.add_argument("--more", default="--threads 1", help="more options of each run")
    args = parser.parse_args()
    run, seeds, table = runner(args.program), list(map(int, args.seeds.split(","))), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        work = args.work or folder
        for name, (on, make) in SETS.items():
            if args.sets and not name.startswith(tuple(args.sets.split(","))):
                continue
            packed, runs, tests = base(on, run, args.data, work), [], 0
            for seed in seeds:
                train, test = make(args.data, np.random.default_rng(seed))
                tests += len(test)
                found = one(run, packed, write(folder / "train", train), write(folder / "test", test), folder, seed, shlex.split(args.more))
                print(json.dumps({"set": name, "seed": seed, "rows": len(train), "tests": len(test), **found}), flush=True)
                runs.append(found)
            grid = [way for way in runs[0] if way not in ("defaults", "instant")]
            chosen = [max(grid, key=lambda way: found[way]["held"]) for found in runs]
            mean = lambda figures: 100 * np.mean(list(figures), 0)
            ours, tier0 = (mean(found[way]["test"] for found in runs) for way in ("defaults", "instant"))
            picked = mean(found[way]["test"] for found, way in zip(runs, chosen))
            best = max((mean(found[way]["test"] for found in runs) for way in grid), key=lambda m: m[0])
            share = ours[0] / 100
            table.append((name, ours, tier0, picked, best, 100 * math.sqrt(2 * max(share * (1 - share), 0) / tests)))
    pair = lambda m: f"{m[0]:.1f} / {m[1]:.1f}"
    print("\n| set | defaults | instant | grid, by its hold-out | grid, by the test rows | se |\n|---|---|---|---|---|---|", file=sys.stderr)
    for name, *figures, se in table:
        print(f"| {name} | {' | '.join(map(pair, figures))} | {se:.1f} |", file=sys.stderr)


if __name__ == "__main__":
    main()
