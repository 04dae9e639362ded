#!/usr/bin/env python3
"""Offshoot beside its rivals on one machine, in one run: prints ratios and a Markdown table.

Every engine runs pinned to one processor with one thread, in processes of its own that take turns
round by round, so that the machine's other work meets all of them alike. A latency is the least over
the rounds of a process's median; a ratio above 1 says that Offshoot is faster (or smaller).

    benches/rivals.sh                     (makes the environment and builds, then runs this)
    benches/rivals.py --rivals DIR --offshoot target/dist/offshoot [--cpu 1] [--rounds 5] [WORD]...

DIR holds `venv` (onnxruntime, numpy; torch, transformers and peft if they are to be measured),
`venv19` (onnxruntime-training 1.19.2, if it is to be measured), `models/NAME/model.onnx` with the
int8 files beside it and the scripts of ../shared/peers. What is missing is left out and said so.
WORDs keep the rows that contain one of them; `q4`, `threads` and `training` are tables of their own.
The table of threads depends on whether the processors lie on one die.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

# (row, model folder, tokens or 0, base options)
MODELS = [
    ("MiniLM, 16 tokens", "minilm", 16, []),
    ("MiniLM, 64 tokens", "minilm", 64, []),
    ("MiniLM, 128 tokens", "minilm", 128, []),
    ("EfficientNet-Lite0", "efficientnet_lite0", 0, ["--image", "224"]),
    ("ResNet-50", "resnet50_random", 0, ["--image", "224"]),
    ("ViT-S/16", "vit_s16_random", 0, ["--image", "224"]),
]
# (row, model folder, tokens or 0, base options) that q4 weights are measured on beside q8.
NARROW = [("MiniLM, one token", "minilm", 1, []), MODELS[0], MODELS[1], MODELS[5]]
ORT = {"fp32": "model.onnx", "dynamic int8": "model_dynint8.onnx", "static int8": "model_qdqint8.onnx"}

# The interpreter and its packages are up before `loaded`; ONNX Runtime's start and memory as a program
# that links its C library sees them come from benches/ort_start.
ORT_CHILD = """
import json, sys, time
import numpy as np, onnxruntime as ort
path, tokens, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 3
session = ort.InferenceSession(path, options, providers=['CPUExecutionProvider'])
rng, feed = np.random.default_rng(0), {}
for i in session.get_inputs():
    shape = [d if isinstance(d, int) else (1 if n == 0 else tokens) for n, d in enumerate(i.shape)]
    if 'float' in i.type: feed[i.name] = rng.standard_normal(shape).astype(np.float32)
    elif 'mask' in i.name: feed[i.name] = np.ones(shape, np.int64)
    elif 'type' in i.name: feed[i.name] = np.zeros(shape, np.int64)
    else: feed[i.name] = rng.integers(1000, 30000, shape)
for _ in range(3): session.run(None, feed)
times, began = [], time.perf_counter()
while time.perf_counter() - began < seconds or len(times) < 5:
    a = time.perf_counter(); session.run(None, feed); times.append(time.perf_counter() - a)
print(json.dumps({'ms': float(np.median(times)) * 1e3}))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rivals", type=Path, required=True)
    parser.add_argument("--offshoot", type=Path, required=True)
    parser.add_argument("--tract", type=Path, help="the example plain_tract, built")
    parser.add_argument("--ort-start", type=Path, help="the program of benches/ort_start, built")
    parser.add_argument("--cpu", default="1")
    parser.add_argument("--threads", default="2", help="numbers of threads beside one: 2,4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    run = Runner(args)
    rows = [m for m in MODELS if not args.words or any(w in m[0] for w in args.words)]
    table = [run.inference(*row) for row in rows]
    if rows:
        print_inference([row for row in table if row])
    if not args.words or "q4" in args.words:
        print_narrow([(row, run.narrow(*model)) for row, *model in NARROW])
    threads = [t for t in args.threads.split(",") if t]
    if threads and (not args.words or "threads" in args.words):
        print_threads([(row, run.threads(threads, *model)) for row, *model in MODELS], threads)
    if not args.no_training and (not args.words or "training" in args.words):
        print_training(run.training())


class Runner:
    def __init__(self, args):
        self.args = args
        self.python = args.rivals / "venv/bin/python"
        self.work = args.rivals / "bases"
        self.work.mkdir(exist_ok=True)
        # Threads of libraries that don't ask the session's options.
        self.env = dict(os.environ, OMP_NUM_THREADS="1", RUST_BACKTRACE="0")

    def pinned(self, words, cwd=None, pin=True):
        """Standard output of a command, on one processor if `pin`, or None and a remark."""
        words = list(map(str, words))
        what = " ".join(words[:3])
        if pin:
            words = ["taskset", "-c", self.args.cpu, *words]
        done = subprocess.run(words, capture_output=True, text=True, env=self.env, cwd=cwd)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"left out: {what} ...: {last[:200]}", file=sys.stderr)
            return None
        return done.stdout

    def base(self, name, options, weights="q8"):
        path = self.work / f"{name}-{weights}.base"
        source = self.args.rivals / f"models/{name}/model.onnx"
        if not source.exists():
            print(f"left out: {source} is missing", file=sys.stderr)
            return None
        if not path.exists() or path.stat().st_mtime < source.stat().st_mtime:
            words = ["pack", source, "-o", path, "--weights", weights, *options]
            if self.pinned([self.args.offshoot, *words]) is None:
                return None
        return path

    def ours(self, base, tokens, threads=1):
        words = ["bench", base, "--json", "--steps", 0, "--seconds", self.args.seconds]
        words += ["--tokens", max(tokens, 1), "--threads", threads]
        text = self.pinned([self.args.offshoot, *words], pin=int(threads) == 1)
        if text is None:
            return None
        found = json.loads(text)
        return {
            "ms": found["latency_ms"]["median"],
            "start_ms": found["start_ms"],
            "peak": found["peak_rss_bytes"],
            "cost": found["adapter_cost"],
        }

    def ort(self, path, tokens):
        words = [self.python, "-c", ORT_CHILD, path, tokens, self.args.seconds]
        text = self.pinned(words)
        return json.loads(text.splitlines()[-1]) if text else None

    def ort_start(self, path, tokens):
        library = next(self.args.rivals.glob("venv/lib/*/site-packages/onnxruntime/capi/libonnxruntime.so.*"))
        text = self.pinned([self.args.ort_start, library, path, max(tokens, 1)])
        return json.loads(text) if text else None

    def tract(self, path, tokens):
        text = self.pinned([self.args.tract, path, max(tokens, 1), self.args.seconds])
        return json.loads(text) if text else None

    def torch(self, name, tokens):
        words = [self.python, "bench_inf.py", "torch", name, 1, tokens, 1, self.args.seconds]
        text = self.pinned(words, cwd=self.args.rivals)
        if text is None:
            return None
        found = json.loads(text.strip().splitlines()[-1])
        return {"ms": found["lat"]["med"], "peak": found["rss_end"] * 2**20}

    def inference(self, row, name, tokens, options):
        base = self.base(name, options)
        if base is None:
            return None
        engines = {"ours": lambda: self.ours(base, tokens)}
        folder = self.args.rivals / "models" / name
        for kind, file in ORT.items():
            if (folder / file).exists():
                engines[f"ORT {kind}"] = lambda file=file: self.ort(folder / file, tokens)
        if self.args.ort_start:
            engines["ORT C library"] = lambda: self.ort_start(folder / "model.onnx", tokens)
        if self.args.tract:
            engines["tract"] = lambda: self.tract(folder / "model.onnx", tokens)
        if name == "minilm":
            engines["PyTorch"] = lambda: self.torch(name, tokens)
        return row, take_turns(engines, self.args.rounds)

    def narrow(self, name, tokens, options):
        """q8 and q4 in turn."""
        bases = {weights: self.base(name, options, weights) for weights in ("q8", "q4")}
        engines = {w: lambda b=b: self.ours(b, tokens) for w, b in bases.items() if b}
        return take_turns(engines, self.args.rounds)

    def threads(self, counts, name, tokens, options):
        """One thread and several in turn."""
        base = self.base(name, options)
        if base is None:
            return {}
        engines = {t: lambda t=t: self.ours(base, tokens, t) for t in ["1", *counts]}
        return take_turns(engines, self.args.rounds)

    def training(self):
        """MiniLM, rank 8 on 36 layers, batch 8 of 64 tokens."""
        base = self.base("minilm", [])
        figures = {}

        def ours(micro):
            words = ["bench", base, "--part", "train", "--batch", 8, "--micro-batch", micro]
            text = self.pinned([self.args.offshoot, *words, "--tokens", 64, "--steps", 12])
            if text is None:
                return None
            found = json.loads(text)
            return {"ms": found["step_ms"], "peak": found["peak_rss_bytes"]}

        def script(python, words):
            text = self.pinned([self.args.rivals / python, *words], cwd=self.args.rivals)
            if text is None:
                return None
            found = json.loads(text.strip().splitlines()[-1])
            return {"ms": found["med"], "peak": found["rss_peak"] * 2**20}

        if base:
            figures["ours, micro-batch 2"] = lambda: ours(2)
            figures["ours, micro-batch 8"] = lambda: ours(8)
        ortt = ["ortt_bench.py", "lora", 8, 64, 3]
        if (self.args.rivals / "venv19").exists():
            figures["ORT Training 1.19.2"] = lambda: script("venv19/bin/python", ortt)
        torch = ["bench_train.py", "minilm", "lora", 8, 64, 1, 3]
        figures["PyTorch + PEFT"] = lambda: script("venv/bin/python", torch)
        return take_turns(figures, min(self.args.rounds, 3))


def take_turns(engines, rounds):
    """The least of every figure over the rounds; of an adapter's cost, which is a share already, the
    median. An engine that fails is not asked again."""
    best, costs = {}, {}
    alive = dict(engines)
    for _ in range(rounds):
        for name, measure in list(alive.items()):
            found = measure()
            if found is None:
                del alive[name]
                best.pop(name, None)
                continue
            if found.get("cost") is not None:
                costs.setdefault(name, []).append(found["cost"])
            known = best.setdefault(name, found)
            for key, value in found.items():
                if value is not None and (known.get(key) is None or value < known[key]):
                    known[key] = value
    for name, values in costs.items():
        if name in best:
            best[name]["cost"] = statistics.median(values)
    return best


def print_inference(table):
    print(f"\n{time.strftime('%Y-%m-%d')}, {cpu_name()}, one thread\n")
    names = ["ORT fp32", "ORT dynamic int8", "ORT static int8", "tract", "PyTorch"]
    names = [n for n in names if any(n in found for _, found in table)]
    print("| one thread, batch 1 | ours (q8) | " + " | ".join(names) + " | an adapter adds |")
    print("|---|---|" + "---|" * len(names) + "---|")
    for row, found in table:
        ours = found.get("ours")
        if ours is None:
            continue
        cells = [f"{ours['ms']:.2f} ms"]
        for name in names:
            other = found.get(name)
            cells.append(f"{other['ms']:.2f} ms ({other['ms'] / ours['ms']:.2f}x)" if other else "")
        cost = ours["cost"]
        cells.append("" if cost is None else f"{100 * cost:.1f} %")
        print(f"| {row} | " + " | ".join(cells) + " |")
    # Ours is the whole process. Theirs without the process, with the loading of its library and
    # without.
    print("\n| start to first answer; peak memory | ours (q8) | ORT fp32, C library | ratio |")
    print("|---|---|---|---|")
    for row, found in table:
        ours, other = found.get("ours"), found.get("ORT C library")
        if ours is None or other is None:
            continue
        loaded, loading = other["start_ms"], other["library_ms"]
        print(
            f"| {row} | {ours['start_ms']:.1f} ms; {ours['peak'] / 1e6:.0f} MB "
            f"| {loading:.1f} + {loaded:.1f} ms; {other['peak'] / 1e6:.0f} MB "
            f"| {(loading + loaded) / ours['start_ms']:.1f}x ({loaded / ours['start_ms']:.1f}x once "
            f"loaded); {other['peak'] / ours['peak']:.1f}x |"
        )


def print_narrow(table):
    print("\n| one thread | q8 | q4 | q4 takes |")
    print("|---|---|---|---|")
    for row, found in table:
        if "q8" in found and "q4" in found:
            wide, narrow = found["q8"]["ms"], found["q4"]["ms"]
            print(f"| {row} | {wide:.2f} ms | {narrow:.2f} ms | {narrow / wide:.2f}x |")


def print_threads(table, counts):
    print("\n| threads (q8) | 1 | " + " | ".join(counts) + " |")
    print("|---|---|" + "---|" * len(counts))
    for row, found in table:
        if "1" in found:
            one = found["1"]["ms"]
            others = [found[t]["ms"] for t in counts if t in found]
            cells = "".join(f" {ms:.2f} ms ({one / ms:.2f}x) |" for ms in others)
            print(f"| {row} | {one:.2f} ms |{cells}")


def print_training(found):
    best = min((v["ms"] for k, v in found.items() if k.startswith("ours")), default=None)
    if best is None:
        return
    print("\n| MiniLM, LoRA rank 8 on 36 layers, a step of 8 x 64 tokens | step | ratio | peak |")
    print("|---|---|---|---|")
    for name, figures in found.items():
        ratio = "" if name.startswith("ours") else f"{figures['ms'] / best:.2f}x"
        print(f"| {name} | {figures['ms']:.0f} ms | {ratio} | {figures['peak'] / 1e6:.0f} MB |")


def cpu_name():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


if __name__ == "__main__":
    main()
