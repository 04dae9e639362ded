#!/usr/bin/env python3
"""Five tasks learned one after the other, from outside the program: on one name of a daemon, whose labels join in one
head, and each on an adapter of its own.

    python3 scripts/sequence.py target/release/offshoot ../shared/data [SEEDS] [ROWS]

The tasks: what a mail is, the first five and the last five of the commands, the room that is meant, what a tweet
feels; ROWS sentences of each (100) are taught, in an order that the seed shuffles, and up to 100 others judged. The
daemon has its defaults but for what says when it trains: after each task it is told to, and what answers then is asked
about all tasks so far. An adapter of its own is what `train` makes of the task's rows without any option.

Prints a line of JSON for each task learned and one for each seed: accuracies by task at the end, right after the task was
learned, and of adapters of their own; `gap`: how much less the mean is than theirs. An adapter of its own knows what it is
asked; so the name is asked twice: among the labels of the task (`among`), and with the labels of all tasks in question
("all labels").
"""

import gzip
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from daemon import Daemon

ROOT = Path(__file__).resolve().parent.parent
JUDGED, TOKENS = 100, 64
CONFIG = f"""
base = "minilm.base"
state = "state"
[serve]
socket = "s"
adapter = "all"
[train]
max_tokens = {TOKENS}
"""


def zipped(path):
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


def lines(name):
    return [json.loads(line) for line in (ROOT / "models" / name).read_text().splitlines()]


def tasks(data, seed, rows):
    """Name, rows to teach, rows to judge by; in an order that the seed gives."""
    commands = [(r["text"], r["label"]) for r in lines("commands.jsonl")]
    names = sorted({label for _, label in commands})
    mails = zipped(data / "spam_assassin.jsonl.gz")
    tweets = [t for t in zipped(data / "tweets.jsonl.gz") if t["confidence"] < 0 or t["confidence"] >= 0.6]
    feels = {0: "negative", 1: "neutral", 2: "positive"}
    all_tasks = {
        "mails": [(m["subject"] + " . " + m["text"], ["wanted", "spam"][m["label"]]) for m in mails],
        "commands 1": [r for r in commands if r[1] in names[:5]],
        "commands 2": [r for r in commands if r[1] in names[5:]],
        "rooms": [(r["text"], r["label"]) for r in lines("rooms.jsonl")],
        "tweets": [(t["text"], feels.get(t["label"], str(t["label"]))) for t in tweets],
    }
    rng, found = random.Random(seed), []
    for name, of in all_tasks.items():
        of = list(dict(of).items())
        rng.shuffle(of)
        found.append((name, of[:rows], of[rows:][:JUDGED]))
    rng.shuffle(found)
    return found


class All(Daemon):
    def teach(self, rows):
        for text, label in rows:
            self.ask("POST", "/v1/feedback", {"text": text, "label": label})
        return self.train("all")

    def accuracy(self, rows, among=None):
        more = {"among": among} if among else {}
        asked = lambda text: self.ask("POST", "/v1/predict", {"text": text, "adapter": "all", **more})["predictions"][0]
        return sum(asked(text)["label"] == label for text, label in rows) / len(rows)


def write(path, rows):
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))


def one_seed(program, folder, data, seed, rows):
    def offshoot(*words):
        done = subprocess.run([program, "--json", *map(str, words)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, words))}: {done.stderr}")
        return json.loads(done.stdout)

    found = tasks(data, seed, rows)
    base, own, learned = folder / "minilm.base", {}, {}
    if not base.exists():
        offshoot("pack", ROOT / "models/minilm-l6.onnx", "-o", base, "--tokenizer", ROOT / "models/minilm-l6.tokenizer.json")
    for name, taught, judged in found:
        for part, of in (("taught", taught), ("judged", judged)):
            write(folder / f"{part}.jsonl", of)
        at, more = folder / "own.adapter", ["--threads", 1, "--max-tokens", TOKENS, "--seed", seed]
        offshoot("train", base, "--data", folder / "taught.jsonl", "-o", at, *more)
        own[name] = offshoot("eval", base, "--data", folder / "judged.jsonl", "--adapter", at)["evaluation"]["accuracy"]
    daemon = All(program, folder, CONFIG)
    try:
        for at, (name, taught, judged) in enumerate(found):
            began = time.time()
            job = daemon.teach(taught)
            progress = job["progress"] or {}
            said = {"seed": seed, "learned": name, "seconds": round(time.time() - began), "state": job["state"]}
            said |= {word: progress.get(word) for word in ("promoted", "instant", "steps", "verdict")}
            known = [(n, judged, sorted({label for _, label in taught})) for n, taught, judged in found[: at + 1]]
            now = {n: daemon.accuracy(judged, labels) for n, judged, labels in known}
            every = {n: daemon.accuracy(judged) for n, judged, _ in known}
            learned[name] = now[name]
            print(json.dumps(said | {"answers": now, "all labels": every}), flush=True)
    finally:
        daemon.stop()
    mean = lambda of: sum(of.values()) / len(of)
    gaps = [round(mean(own) - mean(of), 4) for of in (now, every)]
    print(json.dumps({
        "seed": seed, "at the end": now, "when learned": learned, "own": own, "gap": gaps[0],
        "all labels": every, "gap of all labels": gaps[1],
    }), flush=True)
    return gaps


def main(program, data, seeds="3", rows="100"):
    program, gaps = str(Path(program).resolve()), []
    for seed in range(int(seeds)) if seeds.isdigit() else map(int, seeds.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            gaps.append(one_seed(program, Path(folder), Path(data), seed, int(rows)))
    among, every = (100 * sum(of) / len(of) for of in zip(*gaps))
    print(f"points less than adapters of their own, mean of {len(gaps)} orders: {among:.1f} asked among a task's labels, {every:.1f} among all")


if __name__ == "__main__":
    main(*sys.argv[1:])
