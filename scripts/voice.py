#!/usr/bin/env python3
"""Asks the daemon what sentences mean, with the client of the Wyoming protocol that Home Assistant uses.

    python3 -m venv v && v/bin/pip install wyoming
    v/bin/python scripts/voice.py target/release/offshoot

Teaches twelve sentences on MiniLM, then asks for three intents and for one that was never taught.
"""
import asyncio
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from wyoming.asr import Transcript
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info
from wyoming.intent import Intent, NotRecognized, Recognize

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
probability = 0.0
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


def main():
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        (Path(folder) / "o.toml").write_text(CONFIG.format(port=port))
        models = ROOT / "models"
        pack = [models / "minilm-l6.onnx", "--tokenizer", models / "minilm-l6.tokenizer.json", "-o", "a.base"]
        subprocess.run([PROGRAM, "pack", *pack], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with open(Path(folder) / "log", "w") as log:
            daemon = subprocess.Popen([PROGRAM, "serve", "--config", "o.toml"], cwd=folder, stderr=log)
        try:
            asyncio.run(talk(folder, port))
        except BaseException:
            print((Path(folder) / "log").read_text()[-2000:])
            raise
        finally:
            daemon.terminate()
            daemon.wait()
    print("the client of the protocol is understood")


main()
