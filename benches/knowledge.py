#!/usr/bin/env python3
"""What an adapter gains and what it leaves of the base's knowledge, measured from outside the program.

Trains on 200 tweets, 200 mails, 200 of models/commands.jsonl or 20 pictures a class of Fashion-MNIST, once
for each share to keep and seed, and prints a JSON line each: accuracy and macro-F1 on the test rows (`eval`), what the program
says it keeps, and what this script finds from the outputs of `run`, on inputs that neither the training
nor the program has seen: of sentences (mail subjects for tweets and commands, tweets for mails) the share of the
nearest neighbour (top1) and of the five nearest (top5) that stay, of photographs (scikit-image's, whole
and in crops) the share of the base's own answers. The data are described in the README beside them.

Of the commands those that are not trained on are judged, 120.

usage: knowledge.py OFFSHOOT [--data DIR] [--models DIR] [--sets tweets,spam,commands,fashion] [--keep 0,0.9]
                    [--seeds 3] [--more "--epochs 4"]
needs: numpy, pillow, scikit-image, tokenizers
"""

import argparse
import gzip
import json
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SENTENCES = 500
PICTURES = ["--image", "224"]
PHOTOS = "astronaut chelsea coffee rocket camera coins horse grass gravel brick hubble_deep_field page clock_motion".split()


def rows_of(path):
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


def unrelated(found):
    found = sorted(set(found))
    order = np.random.default_rng(0).permutation(len(found))
    return [found[i] for i in order[:SENTENCES]]


def text_set(name, data, seed, rows, tests):
    """Training and test rows, and sentences of another sort."""
    tweets, mails = rows_of(data / "tweets.jsonl.gz"), rows_of(data / "spam_assassin.jsonl.gz")
    if name != "spam":
        sure = [t for t in tweets if t["confidence"] < 0 or t["confidence"] >= 0.6]
        if name == "commands":
            with open(ROOT / "models/commands.jsonl") as lines:
                sure = [json.loads(line) for line in lines]
        labelled = [(t["text"], t["label"], t["split"]) for t in sure]
        subjects = [m["subject"] for m in mails]
        other = [s for s in subjects if len(s.split()) >= 4 and not s.lower().startswith("re:")]
    else:
        labelled = [(m["subject"] + " . " + m["text"], m["label"], m["split"]) for m in mails]
        other = [t["text"] for t in tweets]
    train = [r for r in labelled if r[2] == "train" or name == "commands"][:4000]
    test = [r for r in labelled if r[2] == "test"][:tests]
    order = np.random.default_rng(seed).permutation(len(train))
    if name == "commands":  # few: judged by all others
        test = [train[i] for i in order[rows:]]
    return [train[i] for i in order[:rows]], test, unrelated(other)


def write_rows(path, rows):
    with open(path, "w") as out:
        for text, label, _ in rows:
            out.write(json.dumps({"text": text, "label": f"class {label}"}) + "\n")


def pictures(data, folder, seed, per_class, tests):
    from PIL import Image

    arrays = np.load(data / "fashion_mnist_5k.npz")
    rng = np.random.default_rng(seed)
    labels = arrays["y_train"]
    chosen = [i for c in range(10) for i in rng.choice(np.where(labels == c)[0], per_class, replace=False)]
    parts = [("train", "x_train", "y_train", chosen), ("test", "x_test", "y_test", range(tests))]
    for part, x, y, which in parts:
        for i in which:
            to = folder / part / f"class-{int(arrays[y][i])}"
            to.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 - arrays[x][i].reshape(28, 28)).convert("RGB").save(to / f"{i}.png")


def photos():
    import skimage
    from PIL import Image

    folder, rng, found = Path(skimage.__file__).parent / "data", np.random.default_rng(0), []
    for name in PHOTOS:
        path = next((p for end in ("png", "jpg") if (p := folder / f"{name}.{end}").exists()), None)
        if path is None:
            continue
        photo = Image.open(path).convert("RGB")
        width, height = photo.size
        cuts = [photo]
        for _ in range(13):
            side = int(min(width, height) * rng.uniform(0.4, 0.95))
            x, y = rng.integers(0, width - side + 1), rng.integers(0, height - side + 1)
            cuts.append(photo.crop((x, y, x + side, y + side)))
        found += [cut.resize((224, 224), Image.BICUBIC) for cut in cuts]
    pixels = np.stack([np.asarray(cut, np.float32).transpose(2, 0, 1) / 255 for cut in found])
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((pixels - mean[:, None, None]) / deviation[:, None, None]).astype(np.float32)


class Program:
    def __init__(self, program, folder):
        self.program, self.folder = program, folder

    def json(self, *words):
        done = subprocess.run([self.program, "--json", *map(str, words)], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{words}: {done.stderr}")
        return json.loads(done.stdout)

    def outputs(self, base, adapter, inputs, name):
        """The output `name` for arrays by name."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            words = []
            for key, array in inputs.items():
                np.save(Path(folder) / f"{key}.npy", array)
                words += ["--input", f"{key}={folder}/{key}.npy"]
            adapters = ["--adapter", adapter] if adapter else []
            self.json("run", base, *adapters, *words, "--output", f"{folder}/out")
            return np.load(Path(folder) / "out" / f"{name}.npy")

    def sentences(self, base, adapter, tokenizer, sentences):
        """Mean of the tokens of each, of length 1."""
        encoded, found = [tokenizer.encode(s).ids[:64] for s in sentences], {}
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        for first in range(0, len(order), 50):
            group = order[first : first + 50]
            longest = max(len(encoded[i]) for i in group)
            ids = np.array([encoded[i] + [0] * (longest - len(encoded[i])) for i in group], np.int64)
            mask = np.array([[1] * len(encoded[i]) + [0] * (longest - len(encoded[i])) for i in group])
            inputs = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": 0 * ids}
            inputs = {k: v for k, v in inputs.items() if k in self.inputs}
            hidden = self.outputs(base, adapter, inputs, "last_hidden_state")
            mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
            for i, row in zip(group, mean / np.linalg.norm(mean, axis=1)[:, None]):
                found[i] = row
        return np.stack([found[i] for i in range(len(encoded))])


def neighbours(base, adapted):
    near = [e @ e.T for e in (base, adapted)]
    for n in near:
        np.fill_diagonal(n, -9)
    ranks = [np.argsort(-n, 1)[:, :5] for n in near]
    above = np.triu_indices(len(base), 1)
    return {
        "cosine": float((base * adapted).sum(1).mean()),
        "top1": float((ranks[0][:, 0] == ranks[1][:, 0]).mean()),
        "top5": float(np.mean([len(set(a) & set(b)) / 5 for a, b in zip(*ranks)])),
        "correlation": float(np.corrcoef(near[0][above], near[1][above])[0, 1]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--sets", default="tweets,spam,commands,fashion")
    parser.add_argument("--keep", default="0,0.9", help="shares; auto: without the option")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--tests", type=int, default=1000)
    parser.add_argument("--more", default="", help="more options of train")
    parser.add_argument("--work", type=Path, help="where bases are packed and kept")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        work = args.work or folder
        program = Program(args.program, folder)
        for name in args.sets.split(","):
            is_text = name != "fashion"
            model = "minilm-l6" if is_text else "efficientnet-lite0"
            base = work / f"{model}.base"
            if not base.exists():
                own = ["--tokenizer", args.models / "minilm-l6.tokenizer.json"] if is_text else PICTURES
                program.json("pack", args.models / f"{model}.onnx", "-o", base, *own)
            described = program.json("inspect", base)
            program.inputs = json.dumps(described)
            for seed in map(int, args.seeds.split(",")):
                where = folder / f"{name}-{seed}"
                where.mkdir()
                if is_text:
                    from tokenizers import Tokenizer

                    tokenizer = Tokenizer.from_file(str(args.models / "minilm-l6.tokenizer.json"))
                    tokenizer.no_padding()
                    train, test, other = text_set(name, args.data, seed, args.rows, args.tests)
                    write_rows(where / "train.jsonl", train)
                    write_rows(where / "test.jsonl", test)
                    data = (where / "train.jsonl", where / "test.jsonl")
                    see = lambda adapter: program.sentences(base, adapter, tokenizer, other)
                    tokens = ["--max-tokens", 96 if name == "spam" else 64]
                else:
                    pictures(args.data, where, seed, args.rows // 10, args.tests)
                    data, other = (where / "train", where / "test"), photos()
                    see = lambda adapter: np.concatenate(
                        [program.outputs(base, adapter, {"image": other[i : i + 13]}, "logits") for i in range(0, len(other), 13)]
                    )
                    tokens = []
                before = see(None)
                for keep in args.keep.split(","):
                    adapter = where / f"{keep}.adapter"
                    share = [] if keep == "auto" else ["--keep-knowledge", keep]
                    began = time.time()
                    words = ["--data", data[0], "-o", adapter, "--holdout", 0, "--seed", seed, *tokens, *share]
                    trained = program.json("train", base, *words, *shlex.split(args.more))
                    seconds = time.time() - began
                    found = program.json("eval", base, "--data", data[1], "--adapter", adapter)["evaluation"]
                    after, report = see(adapter), trained["report"]
                    if is_text:
                        outside = neighbours(before, after)
                    else:
                        outside = {"answers": float((before.argmax(1) == after.argmax(1)).mean())}
                    said = report.get("knowledge") or {}
                    print(
                        json.dumps(
                            {
                                "set": name,
                                "seed": seed,
                                "keep": keep,
                                "more": args.more,
                                "accuracy": found.get("accuracy"),
                                "macro_f1": found.get("macro_f1"),
                                "outside": outside,
                                "said": said.get("kept"),
                                "weight": said.get("weight"),
                                "seconds": round(seconds, 1),
                                "step_ms": report["step_ms_median"],
                                "peak_mib": round((trained.get("peak_rss_bytes") or 0) / 2**20),
                            }
                        ),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
