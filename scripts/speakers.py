#!/usr/bin/env python3
"""Who is speaking, from a few clips: error rate among known speakers, and unknown ones refused.

    python scripts/speakers.py OFFSHOOT ENCODER.onnx FOLDER [CLIPS [FRONT]]

FOLDER has a folder of WAV files for each speaker; CLIPS (5) of each, spread over the sorted names, are
learned, the others asked. Then each speaker in turn is left out and must be answered "unknown" (--reject 0.01).
Docs: docs/AUDIO.md. Needs nothing but Python.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def main():
    program, encoder, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    wanted = int(sys.argv[4]) if len(sys.argv) > 4 else 5
    work = Path(tempfile.mkdtemp())
    offshoot = Path(program).resolve()

    def run(*words):
        done = subprocess.run([offshoot, *map(str, words), "--json"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{words}: {done.stderr}")
        return json.loads(done.stdout)

    base = work / "voices.base"
    front = sys.argv[5] if len(sys.argv) > 5 else "resemblyzer"
    run("pack", Path(encoder).resolve(), "-o", base, "--audio", front)
    speakers = sorted(p.name for p in folder.iterdir() if p.is_dir())
    learned, asked = {}, {}
    for name in speakers:
        clips = sorted((folder / name).glob("*.wav"))
        places = {round((i + 0.5) * len(clips) / wanted - 0.5) for i in range(wanted)}
        learned[name] = [clip for i, clip in enumerate(clips) if i in places]
        asked[name] = [clip for i, clip in enumerate(clips) if i not in places]

    def train(names, adapter):
        adapter.unlink(missing_ok=True)
        data = Path(tempfile.mkdtemp(dir=work))
        for name in names:
            (data / name).mkdir()
            for clip in learned[name]:
                shutil.copy(clip, data / name)
        return run("train", base, "--data", data, "--out", adapter, "--instant")

    def ask(adapter, clip, *reject):
        return run("run", base, "--adapter", adapter, "--audio", clip, *reject)["predictions"][0]

    everyone = work / "all.adapter"
    train(speakers, everyone)
    wrong = unknown = count = 0
    for name in speakers:
        for clip in asked[name]:
            count += 1
            wrong += ask(everyone, clip)["label"] != name
            unknown += ask(everyone, clip, "--reject", "0.01")["label"] is None
    print(f"{len(speakers)} speakers, {wanted} clips each: {wrong} of {count} others wrong,")
    print(f"with --reject 0.01 {unknown} of {count} of the known called unknown")
    passed = strangers = 0
    for name in speakers:
        others = work / "others.adapter"
        train([s for s in speakers if s != name], others)
        clips = learned[name] + asked[name]
        own = sum(ask(others, clip, "--reject", "0.01")["label"] is not None for clip in clips)
        print(f"{name} never learned: {own} of {len(clips)} clips passed")
        passed, strangers = passed + own, strangers + len(clips)
    print(f"unknown speakers: {passed} of {strangers} clips passed")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
