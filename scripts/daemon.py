"""A daemon that a script starts, teaches and asks; it trains when it is told to."""

import http.client
import json
import shutil
import socket
import subprocess
import sys
import time

CONDITIONS = """
[conditions]
min_new = 100000
min_interval_seconds = 0
idle_seconds = 0
max_load = 1.0
max_busy = 1.0
free_mib = 1
mains_only = false
[samples]
source_per_hour = 0
[trial]
seconds = 0
"""


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=600)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(600)
        self.sock.connect(str(self.path))


class Daemon:
    """With a new state, of a configuration whose base, `state` and socket `s` are in the folder."""

    def __init__(self, program, folder, config):
        self.folder = folder
        shutil.rmtree(folder / "state", ignore_errors=True)
        (folder / "o.toml").write_text(config + CONDITIONS)
        with open(folder / "log", "w") as log:
            words = [program, "serve", "--config", "o.toml"]
            self.running = subprocess.Popen(words, cwd=folder, stderr=log, env={"PATH": ""})
        for _ in range(600):
            try:
                # 503 until the base has answered a probe.
                if self.answer("GET", "/health")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        sys.exit((folder / "log").read_text())

    def answer(self, method, path, body=None):
        connection = Connection(self.folder / "s")
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def ask(self, *words):
        status, text = self.answer(*words)
        if status >= 400:
            sys.exit(f"{words[1]}: {status} {text[:300]!r}")
        return json.loads(text)

    def train(self, adapter):
        """The job, when it has ended."""
        job = self.ask("POST", "/v1/train", {"adapter": adapter})["job"]
        while True:
            found = self.ask("GET", f"/v1/train/{job}")
            if found["state"] in ("done", "failed", "cancelled", "forgotten"):
                return found
            time.sleep(0.5)

    def stop(self):
        self.running.terminate()
        self.running.wait()
