#!/usr/bin/env python3
"""Offshoot's generation beside ONNX Runtime's and llama.cpp's on one machine, in one run, one thread each.

    benches/sequences.py --offshoot PROGRAM --base lm.base [--ort FILE.onnx]... [--gguf FILE]... [--rounds 5]
        [--processor] [--node FOLDER]

The base and the ONNX files are of one model (../shared/scripts/make_smollm2.py: model_kv.onnx; its int8 by
onnxruntime.quantization.quantize_dynamic), the GGUF its own. All get the same 64 tokens and then take the likeliest
32 times. Each engine is a process of its own; they take turns round by round, so that the machine's other work
meets all alike. Printed: the least of the rounds for the prompt and for a token, and the most resident memory, of
which for ours, as for a mapped GGUF, the file's pages are a part. Needs onnxruntime, numpy, llama-cpp-python
in the interpreter that runs it, as far as they are asked for. With --node llama.cpp is the prebuilt one of
`npm install --ignore-scripts node-llama-cpp`, run in that folder; node itself is a part of its memory then (about 95 MB).

--processor counts processor time in the place of the clock's, for machines that do other work too. Ours is then the
difference between runs of whole processes, the least of the rounds of each: a prompt of 64 tokens beside one of a single
token, 33 tokens beside one.
"""

import argparse
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time

PROMPT = [3 + (i * 7919) % 48000 for i in range(64)]
TOKENS = 32


clock = time.perf_counter


def resident():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def onnxruntime(path):
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs, outputs = session.get_inputs(), [o.name for o in session.get_outputs()]

    def run(ids, known, past):
        feed = {}
        for i in inputs:
            if i.name in past:
                feed[i.name] = past[i.name]
            elif "mask" in i.name:
                feed[i.name] = np.ones((1, known + len(ids)), np.int64)
            elif "position" in i.name:
                feed[i.name] = np.arange(known, known + len(ids), dtype=np.int64)[None]
            elif "ids" in i.name:
                feed[i.name] = np.array([ids], np.int64)
            else:
                sizes = [d if isinstance(d, int) else (1 if at == 0 else 0) for at, d in enumerate(i.shape)]
                feed[i.name] = np.zeros(sizes, np.float32)
        found = dict(zip(outputs, session.run(None, feed)))
        kept = {i.name: found[n] for i in inputs for n in outputs if n.replace("present", "past_key_values") == i.name}
        return int(found["logits"][0, -1].argmax()), kept

    def text():
        began = clock()
        token, past = run(PROMPT, 0, {})
        prompt = clock() - began
        ids, began = [token], clock()
        for at in range(TOKENS - 1):
            token, past = run([token], len(PROMPT) + at, past)
            ids.append(token)
        return prompt, (clock() - began) / (TOKENS - 1), ids

    return text


def llama(path):
    from llama_cpp import Llama

    model = Llama(path, n_ctx=256, n_threads=1, n_threads_batch=1, n_batch=64, verbose=False, logits_all=False)

    def text():
        model.reset()
        began = clock()
        model.eval(PROMPT)
        token = model.sample(temp=0.0, top_k=1)
        prompt = clock() - began
        ids, began = [token], clock()
        for _ in range(TOKENS - 1):
            model.eval([token])
            token = model.sample(temp=0.0, top_k=1)
            ids.append(token)
        return prompt, (clock() - began) / (TOKENS - 1), ids

    return text


def child(kind, path, processor):
    global clock
    if processor == "True":
        clock = time.process_time
    text = {"ort": onnxruntime, "llama": llama}[kind](path)
    text()
    found = [text() for _ in range(2)]
    print(json.dumps([min(f[0] for f in found), min(f[1] for f in found), resident(), found[0][2]]))


def ours(program, base):
    words = [program, "generate", base, "--ids", ",".join(map(str, PROMPT)), "--tokens", str(TOKENS), "--json"]
    running = subprocess.run(words, capture_output=True, text=True, check=True)
    said = json.loads(running.stdout)
    if len(said["ids"]) < 2:
        sys.exit("the text ended at once: another base or prompt is needed")
    # The first of the tokens comes with the prompt.
    each = said["tokens_ms"] / (len(said["ids"]) - 1)
    return [said["prompt_ms"] / 1e3, each / 1e3, said["peak_rss_bytes"] / 2**20, said["ids"]]


def node(folder, path):
    script = pathlib.Path(folder) / "llama.mjs"
    # Where its import finds the package.
    shutil.copyfile(pathlib.Path(__file__).with_name("llama.mjs"), script)
    asked = json.dumps({"prompt": PROMPT, "tokens": TOKENS})
    running = subprocess.run(["node", "llama.mjs", path, asked], cwd=folder, capture_output=True, text=True, check=True)
    said = json.loads(running.stdout)
    return [said["prompt"], said["token"], said["resident"] / 2**20, said["ids"]]


def ours_by_processor(program, base, least):
    def run(ids, tokens):
        words = [program, "generate", base, "--ids", ",".join(map(str, ids)), "--tokens", str(tokens), "--json"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        key = (len(ids), tokens)
        least[key] = min(taken, least.get(key, taken))
        return least[key], said

    (opened, _), (prompt, _), (whole, said) = run(PROMPT[:1], 1), run(PROMPT, 1), run(PROMPT, TOKENS + 1)
    each = (whole - prompt) / max(1, len(said["ids"]) - 1)
    return [prompt - opened, each, said["peak_rss_bytes"] / 2**20, said["ids"]]


def main():
    if sys.argv[1] == "--child":
        return child(*sys.argv[2:])
    parser = argparse.ArgumentParser()
    parser.add_argument("--offshoot", required=True)
    parser.add_argument("--base", action="append", required=True)
    parser.add_argument("--ort", action="append", default=[])
    parser.add_argument("--gguf", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processor", action="store_true")
    parser.add_argument("--node", metavar="FOLDER")
    args = parser.parse_args()
    mine = (lambda base, runs: ours_by_processor(args.offshoot, base, runs)) if args.processor else None
    mine = mine or (lambda base, _: ours(args.offshoot, base))
    turns = {f"offshoot {b}": (lambda b=b, runs={}: mine(b, runs)) for b in args.base}

    def other(kind, path):
        if kind == "llama" and args.node:
            return node(args.node, path)
        words = [sys.executable, __file__, "--child", kind, path, str(args.processor)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        return json.loads(done.stdout.splitlines()[-1])

    for kind, paths in {"ort": args.ort, "llama": args.gguf}.items():
        turns |= {f"{kind} {path}": (lambda k=kind, p=path: other(k, p)) for path in paths}
    found = {name: [] for name in turns}
    for _ in range(args.rounds):
        for name, turn in turns.items():
            # Differences of the least runs get better from round to round.
            row = turn()
            found[name] = [row] if args.processor and name.startswith("offshoot ") else [*found[name], row]
            print(name, [round(v, 4) for v in found[name][-1][:3]], file=sys.stderr, flush=True)
    print("| engine | 64 tokens of prompt | a token | resident |\n|---|---|---|---|")
    for name, rows in found.items():
        prompt, token, memory = (min(r[0] for r in rows), min(r[1] for r in rows), max(r[2] for r in rows))
        print(f"| {name} | {prompt * 1e3:.0f} ms | {token * 1e3:.1f} ms | {memory:.0f} MB |")
    for name, rows in found.items():
        print(name, rows[0][3][:12])


if __name__ == "__main__":
    main()
