#!/usr/bin/env python3
"""Drives the daemon's page in a real browser, as a person would: label, correct, train the next
generation, go back, forget; then reads it without JavaScript, and on a phone's screen.

    python3 -m venv v && v/bin/pip install playwright && apt-get install chromium
    v/bin/python scripts/page.py target/debug/offshoot docs

Takes screenshots into the second argument. Fails where a step fails, where the page asks another host for
anything, or where it breaks its own Content-Security-Policy.
"""
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PROGRAM, SHOTS = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
TOKEN = "0123456789abcdef-page"
PICTURES = ROOT / "models/pictures/wardrobe"

CONFIG = """
base = "lite.base"
state = "state"
[serve]
socket = "s"
tcp = "127.0.0.1:{port}"
token_file = "token"
adapter = "wardrobe"
[recent]
text = true
[train]
targets = "none"
epochs = 20
[conditions]
min_new = 10
max_load = 1.0
free_mib = 100
[trial]
seconds = 0
[gate]
max_latency_ratio = 50.0
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Daemon:
    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        (folder / "token").write_text(TOKEN)
        os.chmod(folder / "token", 0o600)
        (folder / "o.toml").write_text(CONFIG.format(port=self.port))
        pack = "--image 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225".split()
        self.run("pack", ROOT / "models/efficientnet-lite0.onnx", "-o", "lite.base", *pack)
        log = open(folder / "log", "w")
        self.child = subprocess.Popen([PROGRAM, "serve", "--config", "o.toml"], cwd=folder, stderr=log)
        for _ in range(600):
            try:
                self.ask("GET", "/health")
                return
            except OSError:
                time.sleep(0.1)
        sys.exit((folder / "log").read_text())

    def run(self, *args):
        subprocess.run([PROGRAM, *map(str, args)], cwd=self.folder, check=True)

    def ask(self, method, path, body=None, mime="application/json"):
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, data=body, method=method)
        request.add_header("Authorization", f"Bearer {TOKEN}")
        if body is not None:
            request.add_header("Content-Type", mime)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def teach(self, split, classes, each):
        for label in classes:
            for file in sorted((PICTURES / split / label).iterdir())[:each]:
                path = f"/v1/feedback?adapter=wardrobe&label={label}&source=drawer"
                self.ask("POST", path, file.read_bytes(), "image/png")

    def wait_trained(self):
        deadline = time.time() + 600
        while time.time() < deadline:
            jobs = self.ask("GET", "/v1/train")["jobs"]
            if jobs and all(j["state"] in ("done", "failed") for j in jobs):
                return jobs
            time.sleep(0.5)
        sys.exit("training did not end")


def watch(page, own, faults):
    """Notes requests to other hosts, and what the page's policy or scripts complain of."""
    page.on("request", lambda r: r.url.startswith((own, "data:")) or faults.append(f"asked {r.url}"))
    page.on("console", lambda m: m.type == "error" and faults.append(f"console: {m.text}"))
    page.on("pageerror", lambda e: faults.append(f"script: {e}"))


def log_in(page, own):
    page.goto(own)
    assert page.url.endswith("/login"), page.url
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(own + "**")


def shot(page, name, **more):
    page.screenshot(path=SHOTS / f"page-{name}.png", **more)


def drive(daemon, browser):
    own, faults = f"http://localhost:{daemon.port}/", []
    page = browser.new_page(viewport={"width": 960, "height": 900})
    watch(page, own, faults)
    log_in(page, own)
    daemon.teach("train", ["bag", "dress", "sneaker"], 20)
    page.goto(own)
    page.get_by_role("button", name="Train now").click()
    jobs = daemon.wait_trained()
    print("first job:", jobs[-1]["progress"])
    files = [(d.name, f) for d in sorted((PICTURES / "test").iterdir()) for f in sorted(d.iterdir())[:4]]
    random.Random(3).shuffle(files)
    for _, file in files[:14]:
        daemon.ask("POST", "/v1/predict?adapter=wardrobe", file.read_bytes(), "image/png")
    time.sleep(1)
    page.goto(own)
    cards = page.locator(".card")
    print("cards:", cards.count())
    assert cards.count() >= 6
    shot(page, "check")

    # One tap confirms; by key the next one is corrected; a new label is typed into a third.
    cards.first.get_by_role("button", name="Right").click()
    page.keyboard.press("j")
    page.keyboard.press("1")
    page.wait_for_load_state()
    before = cards.count()
    cards.first.get_by_label("Another label").fill("trouser")
    cards.first.get_by_role("button", name="Save").click()
    page.wait_for_load_state()
    assert cards.count() == before - 1
    # A slip of the finger is asked back.
    cards.first.get_by_label("Another label").fill("Trousr")
    cards.first.get_by_role("button", name="Save").click()
    page.get_by_role("button", name="I mean trouser").click()
    page.wait_for_load_state()
    told = daemon.ask("GET", "/v1/samples?adapter=wardrobe&source=page")["samples"]
    assert [s["label"] for s in told].count("trouser") == 2 and len(told) == 4, told

    # The next generation, with two more classes.
    daemon.teach("train", ["t-shirt", "trouser"], 20)
    page.goto(own)
    page.get_by_role("button", name="Train now").click()
    page.wait_for_load_state()
    page.get_by_role("heading", name="Next training").scroll_into_view_if_needed()
    jobs = daemon.wait_trained()
    print("second job:", jobs[-1]["progress"])
    page.goto(own)
    active = daemon.ask("GET", "/v1/adapters/wardrobe")["active"]
    assert page.get_by_text(f"Generation {active} answers").count() == 1
    page.get_by_role("heading", name="What it learned").scroll_into_view_if_needed()
    shot(page, "learned")

    # Going back and forgetting say what they do before they do it.
    page.get_by_role("link", name="Go back a generation").click()
    assert page.get_by_text(f"Generation {active} of").count() == 1
    shot(page, "rollback", clip={"x": 240, "y": 90, "width": 480, "height": 400})
    page.get_by_role("button", name="Go back").click()
    page.wait_for_load_state()
    assert daemon.ask("GET", "/v1/adapters/wardrobe")["active"] != active
    page.get_by_role("link", name="Forget all called sneaker").click()
    assert page.get_by_text("samples are deleted").count() == 1
    shot(page, "forget", clip={"x": 240, "y": 90, "width": 480, "height": 480})
    page.get_by_role("button", name="Forget", exact=True).click()
    page.wait_for_load_state()
    left = daemon.ask("GET", "/v1/samples?adapter=wardrobe&label=sneaker")["samples"]
    assert left == [], left

    # Without JavaScript, on a phone.
    context = browser.new_context(
        java_script_enabled=False, viewport={"width": 390, "height": 844}, device_scale_factor=1
    )
    phone = context.new_page()
    watch(phone, own, faults)
    for _, file in files[:6]:
        daemon.ask("POST", "/v1/predict?adapter=wardrobe", file.read_bytes(), "image/png")
    log_in(phone, own)
    assert phone.get_by_role("heading", name="What it learned").count() == 1
    width = phone.locator("body").bounding_box()["width"]
    assert width <= 390, f"{width} pixels wide"
    shot(phone, "phone")
    phone.get_by_role("button", name="Log out").click()
    assert phone.url.endswith("/login")
    assert not faults, faults


def main():
    SHOTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        daemon = Daemon(Path(folder))
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        try:
            drive(daemon, browser)
        finally:
            print((Path(folder) / "log").read_text()[-2000:])
            browser.close()
            daemon.child.terminate()
            daemon.child.wait()
    print("the page does what it should")


main()
