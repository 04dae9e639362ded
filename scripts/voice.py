#!/usr/bin/env python3
"""Asks the daemon what sentences mean, with the client of the Wyoming protocol that Home Assistant uses.

    python3 -m venv v && v/bin/pip install wyoming
    v/bin/python scripts/voice.py target/release/offshoot
    v/bin/python scripts/voice.py target/release/offshoot MODEL.onnx FRONT FOLDER wake|speakers [CLIPS|STRANGER|KEY=VALUE]…

Teaches twelve sentences on MiniLM, then asks for three intents and for one that was never taught. With a model that
hears: FOLDER has a folder of WAV files for each word or speaker (and `other`, which is told to nobody); CLIPS (5) of each
but the strangers are taught, the others are asked as streams. KEY=VALUE is of [wyoming]: reject=0.01.
"""
import asyncio
import collections
import socket
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

from wyoming.asr import Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info
from wyoming.intent import Intent, NotRecognized, Recognize
from wyoming.wake import Detect, Detection, NotDetected

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = Path(sys.argv[1]).resolve()
TAUGHT = {
    "lamp_on": ["switch the lamp on", "turn on the light", "light please", "make it bright in here"],
    "open_garage": ["open the garage", "garage door up", "let the car out", "I want to drive in"],
    "play_music": ["play some music", "turn the radio on", "put a song on", "I want to hear a record"],
}
ASKED = {
    "please turn the lights on": "lamp_on",
    "open the garage door": "open_garage",
    "play me a song": "play_music",
    "how many moons has jupiter": None,
}
CONFIG = """
base = "a.base"
state = "state"
[serve]
socket = "s"
adapter = "commands"
[wyoming]
listen = "127.0.0.1:{port}"
probability = {probability}
{more}
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


async def connected(port):
    for _ in range(300):
        client = AsyncTcpClient("127.0.0.1", port)
        try:
            await client.connect()
            return client
        except OSError:
            await asyncio.sleep(0.1)
    sys.exit("nobody listens")


async def ask(client, event):
    await client.write_event(event)
    return await asyncio.wait_for(client.read_event(), 60)


async def talk(folder, port):
    client = await connected(port)
    info = Info.from_event(await ask(client, Describe().event()))
    program = info.intent[0]
    print(f"{program.name} {program.version}: {program.models[0].name} {program.models[0].languages}")
    assert program.installed and program.models[0].name == "commands"
    for label, texts in TAUGHT.items():
        for text in texts:
            command = ["feedback", "--host", f"unix://{folder}/s", "--adapter", "commands", "--label", label, "--text", text]
            subprocess.run([PROGRAM, *command], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for make in (Recognize, Transcript):
        for text, expected in ASKED.items():
            answer = await ask(client, make(text=text, context={"of": text}).event())
            if Intent.is_type(answer.type):
                intent = Intent.from_event(answer)
                said, context = intent.name, intent.context
            else:
                assert NotRecognized.is_type(answer.type), answer
                refused = NotRecognized.from_event(answer)
                said, context = None, refused.context
            print(f"{make.__name__:10} {text!r}: {said or refused.text!r}")
            assert said == expected and context == {"of": text}, answer
    await client.disconnect()


def chunks(clip):
    """A clip as a satellite sends it, with half a second of silence behind it."""
    with wave.open(str(clip)) as file:
        form = {"rate": file.getframerate(), "width": file.getsampwidth(), "channels": file.getnchannels()}
        sound = file.readframes(file.getnframes()) + bytes(form["rate"] // 2 * form["width"] * form["channels"])
    step = form["rate"] // 50 * form["width"] * form["channels"]
    yield AudioStart(**form).event()
    for at in range(0, len(sound), step):
        yield AudioChunk(audio=sound[at:at + step], timestamp=20 * at // step, **form).event()
    yield AudioStop().event()


async def hear(folder, port, clips, what, more):
    # Who says nothing for a minute is let go: for the questions there is another connection.
    await (await connected(port)).disconnect()
    asked = {}
    taught_of_each = next((int(word) for word in more if word.isdigit()), 5)
    for label in sorted(p.name for p in clips.iterdir() if p.is_dir()):
        files = sorted((clips / label).glob("*.wav"))
        taught = files[:: max(1, len(files) // taught_of_each)][:0 if label in more else taught_of_each]
        for file in taught:
            command = ["feedback", "--host", f"unix://{folder}/s", "--adapter", "commands", "--label", label, "--audio", file]
            subprocess.run([PROGRAM, *command], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        asked[label] = [file for file in files if file not in taught]
    # The head is made of all that was taught a moment after it.
    await asyncio.sleep(5)
    client = await connected(port)
    info = Info.from_event(await ask(client, Describe().event()))
    models = [model.name for model in info.wake[0].models]
    print(f"{info.wake[0].name} hears {models}")
    assert models == (["commands"] if what == "speakers" else [label for label in asked if label != "other"])
    counts, took = collections.Counter(), []
    for label, files in asked.items():
        for file in files:
            began = time.monotonic()
            await client.write_event(Detect(names=models).event())
            for event in chunks(file):
                await client.write_event(event)
            answer = await asyncio.wait_for(client.read_event(), 60)
            took.append(time.monotonic() - began)
            said = "other"
            if Detection.is_type(answer.type):
                detection = Detection.from_event(answer)
                said = detection.speaker if what == "speakers" else detection.name
            else:
                assert NotDetected.is_type(answer.type), answer
            counts[label, said] += 1
    for (label, said), count in sorted(counts.items()):
        print(f"{label}: {count} times {'nobody' if said == 'other' else said}")
    right = sum(count for (label, said), count in counts.items() if said == ("other" if label in more else label))
    print(f"{right} of {sum(counts.values())} right; {1000 * sum(took) / len(took):.0f} ms a clip, all sent at once")
    await client.disconnect()


def main():
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        sound = sys.argv[2:]
        more = ["speakers = true"] if sound[3:4] == ["speakers"] else []
        more += [word for word in sound[4:] if "=" in word]
        config = CONFIG.format(port=port, probability=0.5 if sound else 0.0, more="\n".join(more))
        (Path(folder) / "o.toml").write_text(config)
        models = ROOT / "models"
        pack = [models / "minilm-l6.onnx", "--tokenizer", models / "minilm-l6.tokenizer.json", "-o", "a.base"]
        if sound:
            pack = [Path(sound[0]).resolve(), "--audio", sound[1], "-o", "a.base"]
        subprocess.run([PROGRAM, "pack", *pack], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with open(Path(folder) / "log", "w") as log:
            daemon = subprocess.Popen([PROGRAM, "serve", "--config", "o.toml"], cwd=folder, stderr=log)
        try:
            if sound:
                asyncio.run(hear(folder, port, Path(sound[2]).resolve(), sound[3], sound[4:]))
            else:
                asyncio.run(talk(folder, port))
        except BaseException:
            print((Path(folder) / "log").read_text()[-2000:])
            raise
        finally:
            daemon.terminate()
            daemon.wait()
    print("the client of the protocol is understood")


main()
