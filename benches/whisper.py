#!/usr/bin/env python3
"""Offshoot's Whisper beside ONNX Runtime's on one machine, in one run, one thread each: word error rate, time, memory.

    benches/whisper.py --offshoot PROGRAM --base whisper.base --models ../shared/models/whisper-tiny-en [--clips 60] [--work DIR]

espeak-ng speaks the sentences of scripts/names.py in several voices. ONNX Runtime runs the folder's three files in floats, and
their dynamic int8 (made in DIR), with the log-mel front end and greedy loop of ../shared/scripts/whisper_speech.py, the same
forbidden tokens as ours and no process started anew for each clip; ours is one process a clip, whose start counts. Seconds are
a processor's, since other programs may work beside. Engines take turns clip by clip. Needs onnxruntime, onnx, numpy, tokenizers.
"""

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT.parent / "shared/scripts")]
PROMPT, END, MOST = [50257, 50362], 50256, 64
VOICES = ["en-us", "en-gb", "en-us+f3", "en-gb+m3", "en-us+m7", "en-gb-scotland"]


def speak(folder, count):
    from names import OTHER

    for at in range(count):
        made, path = folder / "made.wav", folder / f"{at}.wav"
        text, voice = OTHER[at % len(OTHER)], VOICES[(at + at // len(OTHER)) % len(VOICES)]
        subprocess.run(["espeak-ng", "-v", voice, "-s", str(140 + at % 5 * 10), "-w", made, text], check=True)
        resample(made, path)
        yield path, text


def resample(made, path):
    """To 16 kHz, so that both sides hear the same samples."""
    import numpy as np
    from scipy.signal import resample_poly

    with wave.open(str(made)) as f:
        rate, samples = f.getframerate(), np.frombuffer(f.readframes(f.getnframes()), "<i2").astype(np.float64)
    samples = np.clip(np.round(resample_poly(samples, 16_000, rate)), -32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as f:
        f.setparams((1, 2, 16_000, len(samples), "NONE", ""))
        f.writeframes(samples.tobytes())


def forbidden():
    source = (ROOT / "src/runtime/generate/settings.rs").read_text()
    return [int(n) for n in re.findall(r"\d+", re.search(r"ENGLISH_SUPPRESSED: \[u32; 90\] = \[(.*?)\]", source, re.S)[1])]


def child(folder):
    """Answers each path on stdin with a line of JSON."""
    import onnxruntime as ort
    from tokenizers import Tokenizer
    from whisper_speech import OnnxWhisper, greedy, log_mel, read_wav

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    whisper = OnnxWhisper(folder, lambda path: ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
    tokenizer, never = Tokenizer.from_file(f"{folder}/tokenizer.json"), forbidden()
    for line in sys.stdin:
        began = time.process_time()
        ids, _ = greedy(whisper, log_mel(read_wav(line.strip())), PROMPT, END, never, (220, END), MOST)
        took = time.process_time() - began
        text = tokenizer.decode(ids, skip_special_tokens=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"text": text, "seconds": took, "peak": peak}), flush=True)


def int8(models, folder):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder.mkdir(exist_ok=True)
    for path in models.glob("*.onnx"):
        if not (folder / path.name).exists():
            quantize_dynamic(path, folder / path.name, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm", "Gather"])
    (folder / "tokenizer.json").write_bytes((models / "tokenizer.json").read_bytes())
    return folder


def ours(program, base, path):
    words = [program, "generate", base, "--audio", path, "--tokens", str(MOST), "--json"]
    before = used()
    said = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return {"text": said["text"], "seconds": used() - before, "peak": said["peak_rss_bytes"] / 2**20, "own": said["unshared_bytes"] / 2**20}


def used():
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def wrong_words(truth, heard):
    words = [re.sub(r"[^\w' ]", "", text.lower()).split() for text in (truth, heard)]
    row = list(range(len(words[1]) + 1))
    for i, a in enumerate(words[0], 1):
        last, row[0] = row[0], i
        for j, b in enumerate(words[1], 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1], len(words[0])


def main():
    if sys.argv[1] == "--child":
        return child(sys.argv[2])
    parser = argparse.ArgumentParser()
    parser.add_argument("--offshoot", required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp())
    work.mkdir(exist_ok=True)
    running = {}
    for name, folder in {"ONNX Runtime, floats": args.models, "ONNX Runtime, int8": int8(args.models, work / "int8")}.items():
        words = [sys.executable, __file__, "--child", str(folder)]
        running[name] = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def asked(process, path):
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    turns = {"offshoot": lambda path: ours(args.offshoot, args.base, path)}
    turns |= {name: (lambda path, p=process: asked(p, path)) for name, process in running.items()}
    found = {name: [] for name in turns}
    for path, truth in speak(work, args.clips):
        with wave.open(str(path)) as f:
            length = f.getnframes() / 16_000
        for name, turn in turns.items():
            said = turn(path)
            found[name].append({**said, "wrong": wrong_words(truth, said["text"]), "each": said["seconds"] / length})
    print("| engine | word error rate | processor seconds a clip, median | a second of sound, median | peak MB |\n|---|---|---|---|---|")
    for name, rows in found.items():
        rate = sum(r["wrong"][0] for r in rows) / sum(r["wrong"][1] for r in rows)
        seconds, each = (statistics.median(r[key] for r in rows) for key in ("seconds", "each"))
        print(f"| {name} | {rate:.3f} | {seconds:.2f} | {each:.3f} | {max(r['peak'] for r in rows):.0f} |")
    own = max(r["own"] for r in found["offshoot"])
    first = found["ONNX Runtime, floats"]
    same = sum(a["text"].strip() == b["text"].strip() for a, b in zip(found["offshoot"], first))
    print(f"of offshoot's memory no file backs {own:.0f} MB; {same} of {len(first)} texts are those of ONNX Runtime in floats")


if __name__ == "__main__":
    main()
