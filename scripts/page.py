#!/usr/bin/env python3
"""Drives the daemon's page in a real browser, as a person would: label, correct, train the next
generation, go back, forget; sentences and sounds; by keyboard; without JavaScript on a phone's screen; and
from foreign pages, which must neither read nor post.

    python3 -m venv v && v/bin/pip install playwright && apt-get install chromium
    v/bin/python scripts/page.py target/release/offshoot docs/page [resemblyzer.onnx]

Takes screenshots into the second argument. The third is a speaker encoder: without it no sound is heard. Fails where a step fails, where the page asks another host for
anything, or where it breaks its own Content-Security-Policy.
"""
import http.server
import io
import json
import math
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import wave
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PROGRAM, SHOTS, *ENCODER = [Path(path).resolve() for path in sys.argv[1:]]
TOKEN = "0123456789abcdef-page"
PICTURES = ROOT / "models/pictures/wardrobe"
PHONE = {"width": 390, "height": 844}
# In milliseconds: a machine may be busy.
PATIENCE = 180_000
expect.set_options(timeout=PATIENCE)

CONFIG = """
base = "a.base"
state = "state"
[serve]
socket = "s"
tcp = "127.0.0.1:{port}"
token_file = "token"
adapter = "{name}"
instant = {instant}
[recent]
text = true
[train]
targets = "none"
epochs = 10
[conditions]
min_new = 500
max_load = 1.0
free_mib = 100
[trial]
seconds = 0
[gate]
max_latency_ratio = 50.0
# Two dozen held-out pictures prove little.
false_promotions = 1.0
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Daemon:
    def __init__(self, folder, name, pack, instant):
        self.folder, self.name, self.port = folder, name, free_port()
        (folder / "token").write_text(TOKEN)
        os.chmod(folder / "token", 0o600)
        (folder / "o.toml").write_text(CONFIG.format(port=self.port, name=name, instant=instant))
        pack = [PROGRAM, "pack", *map(str, pack), "-o", "a.base"]
        subprocess.run(pack, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        # Without `chrt` in its path the trainer is no idle process: a busy machine would starve it.
        with open(folder / "log", "w") as log:
            self.child = subprocess.Popen(
                [PROGRAM, "serve", "--config", "o.toml"], cwd=folder, stderr=log, env={"PATH": ""}
            )
        for _ in range(600):
            try:
                self.ask("GET", "/health")
                return
            except OSError:
                time.sleep(0.1)
        sys.exit((folder / "log").read_text())

    @property
    def own(self):
        return f"http://localhost:{self.port}/"

    def ask(self, method, path, body=None, mime="application/json"):
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, data=body, method=method)
        request.add_header("Authorization", f"Bearer {TOKEN}")
        if body is not None:
            request.add_header("Content-Type", mime)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def active(self):
        return self.ask("GET", f"/v1/adapters/{self.name}")["active"]

    def samples(self, **query):
        query = "".join(f"&{key}={value}" for key, value in query.items())
        return self.ask("GET", f"/v1/samples?adapter={self.name}{query}")["samples"]

    def teach(self, split, classes, each):
        for label in classes:
            for file in sorted((PICTURES / split / label).iterdir())[:each]:
                path = f"/v1/feedback?adapter={self.name}&label={label}&source=drawer"
                self.ask("POST", path, file.read_bytes(), "image/png")

    def wait_trained(self, count):
        """The last of so many jobs, once all are done."""
        deadline = time.time() + 600
        while time.time() < deadline:
            answer = self.ask("GET", "/v1/train")
            if len(answer["jobs"]) >= count and all(j["state"] in ("done", "failed") for j in answer["jobs"]):
                return answer["jobs"][-1]
            self.hurry((answer["learner"]["job"] or {}).get("pid"))
            time.sleep(0.2)
        sys.exit("training did not end")

    def hurry(self, pid):
        """The trainer is as nice as can be; root may say otherwise."""
        try:
            if pid:
                os.setpriority(os.PRIO_PROCESS, pid, 0)
        except OSError:
            pass


@contextmanager
def running(name, pack, instant="true"):
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(Path(folder), name, pack, instant)
        try:
            yield daemon
        except BaseException:
            print((daemon.folder / "log").read_text()[-2000:])
            raise
        finally:
            daemon.child.terminate()
            daemon.child.wait()


def watch(page, own, faults):
    """Notes requests to other hosts, and what the page's policy or scripts complain of."""
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda r: r.url.startswith((own, "data:")) or faults.append(f"asked {r.url}"))
    page.on("console", lambda m: m.type == "error" and faults.append(f"console: {m.text}"))
    page.on("pageerror", lambda e: faults.append(f"script: {e}"))


def log_in(page, own):
    page.goto(own)
    assert page.url.endswith("/login"), page.url
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(own)


def until(page, condition):
    """Playwright's own waiting evaluates strings in the page, which the page's policy forbids."""
    for _ in range(1800):
        if page.evaluate(condition):
            return
        time.sleep(0.1)
    sys.exit(f"not so: {condition}")


def train_now(page, own):
    """The button is there once the job before has left the page."""
    button = page.get_by_role("button", name="Train now")
    for _ in range(1800):
        page.goto(own)
        if button.count():
            return button.click()
        time.sleep(0.1)
    sys.exit("no button to train")


def open_when_kept(page, own, asked):
    """The page once each of so many answers is kept or left out; they are written after they were given."""
    for _ in range(1800):
        page.goto(own)
        left_out = " ".join(page.get_by_text("Not kept since the start").all_inner_texts())
        kept = page.locator(".card").count()
        if kept + sum(map(int, re.findall("[0-9]+", left_out))) >= asked:
            return kept
        time.sleep(0.1)
    sys.exit(f"{kept} of {asked} answers are kept; {left_out}")


def shot(page, name, **more):
    page.screenshot(path=SHOTS / f"{name}.png", **more)


def box_of(page, name):
    """A part of the page, from a heading to the end of what is below it."""
    heading = page.get_by_role("heading", name=name)
    page.evaluate("h => scrollTo(0, h.getBoundingClientRect().top + scrollY - 16)", heading.element_handle())


def pictures(daemon, browser, faults):
    own = daemon.own
    page = browser.new_page(viewport={"width": 960, "height": 860})
    watch(page, own, faults)
    log_in(page, own)

    daemon.teach("train", ["bag", "sneaker"], 24)
    train_now(page, own)
    print("first job:", daemon.wait_trained(1)["progress"]["verdict"])
    files = [f for d in sorted((PICTURES / "test").iterdir()) for f in sorted(d.iterdir())[:4]]
    random.Random(3).shuffle(files)
    for file in files[:14]:
        daemon.ask("POST", "/v1/predict", file.read_bytes(), "image/png")
    cards = page.locator(".card")
    count = open_when_kept(page, own, 14)
    assert count >= 8, count
    until(page, "[...document.images].filter(i => i.complete && i.naturalWidth).length >= 6")
    shot(page, "label")

    # One tap confirms.
    sure = cards.filter(has=page.get_by_role("button", name="Right")).first
    said = sure.locator("strong").inner_text()
    sure.get_by_role("button", name="Right").click()
    page.get_by_text(f"“{said}”: kept to").wait_for()
    assert daemon.samples(source="page")[-1]["label"] == said
    # Another label is one tap too.
    cards.first.locator("button[name=other]").first.click()
    page.get_by_role("status").wait_for()
    assert cards.count() == count - 2
    # By keyboard: the next one, its first other label, the field of the one that follows, and away with one.
    page.keyboard.press("j")
    other = page.locator(".card:focus-within button[name=other]").first.inner_text()
    page.keyboard.press("1")
    page.get_by_text(f"“{other}”: kept to").wait_for()
    page.locator(".card:focus-within").wait_for()
    page.keyboard.press("n")
    page.keyboard.type("trouser")
    shot(page, "correct")
    page.keyboard.press("Enter")
    page.get_by_text("“trouser”: kept to").wait_for()
    page.keyboard.press("j")
    page.keyboard.press("s")
    expect(cards).to_have_count(count - 5)
    # A slip of the finger is asked back.
    cards.first.get_by_label("Other label").fill("Trousr")
    cards.first.get_by_role("button", name="Save").click()
    page.get_by_role("button", name="I mean trouser").wait_for()
    page.get_by_role("button", name="I mean trouser").click()
    page.get_by_text("“trouser”: kept to").wait_for()
    told = [s["label"] for s in daemon.samples(source="page")]
    assert told.count("trouser") == 2 and len(told) == 5, told

    # The next generation, with three more classes.
    daemon.teach("train", ["dress", "t-shirt", "trouser"], 24)
    train_now(page, own)
    print("second job:", daemon.wait_trained(2)["progress"]["verdict"])
    # Nothing new: what is trained once more is no better, and is refused with the reason.
    train_now(page, own)
    print("third job:", daemon.wait_trained(3)["progress"]["verdict"])
    page.goto(own)
    active = daemon.active()
    assert active == 2, active
    page.get_by_text(f"Generation {active} answers").wait_for()
    box_of(page, "What it learned")
    shot(page, "learned")

    # Without JavaScript, on a phone.
    context = browser.new_context(java_script_enabled=False, viewport=PHONE, has_touch=True, is_mobile=True)
    phone = context.new_page()
    watch(phone, own, faults)
    for file in files[14:20]:
        daemon.ask("POST", "/v1/predict", file.read_bytes(), "image/png")
    time.sleep(1)
    log_in(phone, own)
    for heading in ["Answers to check", "Next training", "What it learned", "What it was taught"]:
        assert phone.get_by_role("heading", name=heading).count() == 1, heading
    phone.locator(".card").first.locator("button[name=other], button.yes").first.tap()
    phone.get_by_role("status").wait_for()
    width = phone.locator("body").bounding_box()["width"]
    assert width <= 390, f"{width} pixels wide"
    shot(phone, "phone")
    phone.get_by_role("button", name="Log out").click()
    phone.wait_for_url("**/login")
    context.close()
    page.close()


def undo(daemon, browser, faults):
    """Going back and forgetting say what they do before they do it."""
    page = browser.new_page(viewport={"width": 960, "height": 860})
    watch(page, daemon.own, faults)
    log_in(page, daemon.own)
    active = daemon.active()
    page.get_by_role("link", name="Go back a generation").click()
    page.get_by_text(f"Generation {active} of").wait_for()
    shot(page, "rollback", clip={"x": 240, "y": 90, "width": 480, "height": 400})
    page.get_by_role("button", name="Go back").click()
    page.get_by_text(f"Generation {active - 1} answers").wait_for()
    assert daemon.active() != active
    page.get_by_role("link", name="Forget all called sneaker").click()
    page.get_by_text("samples are deleted").wait_for()
    shot(page, "forget", clip={"x": 240, "y": 90, "width": 480, "height": 480})
    page.get_by_role("button", name="Forget", exact=True).click()
    page.get_by_role("heading", name="What it was taught").wait_for()
    assert daemon.samples(label="sneaker") == []
    page.get_by_role("link", name="Forget all called bag").wait_for()
    assert page.get_by_role("link", name="Forget all called sneaker").count() == 0
    page.close()


def sentences(daemon, browser, faults):
    for text, label in [
        ("switch the lamp on", "lamp"), ("lamp off please", "lamp"), ("light in the hall", "lamp"),
        ("open the garage", "garage"), ("close the garage door", "garage"), ("is the garage shut", "garage"),
    ]:
        daemon.ask("POST", "/v1/feedback", {"text": text, "label": label})
    for text in ["<b>lamp</b> & garage", "garage up", "what is the weather"]:
        daemon.ask("POST", "/v1/predict", {"text": text})
    page = browser.new_context(viewport=PHONE, is_mobile=True, color_scheme="dark").new_page()
    watch(page, daemon.own, faults)
    log_in(page, daemon.own)
    open_when_kept(page, daemon.own, 3)
    page.get_by_text("<b>lamp</b> & garage").wait_for()
    assert page.locator("blockquote").count() == 3
    shot(page, "sentences")
    page.close()


def tone(hertz, seconds=1.0, rate=16000):
    """A WAV file."""
    noise = random.Random(hertz)
    values = [
        int(9000 * math.sin(2 * math.pi * hertz * n / rate) + noise.gauss(0, 900))
        for n in range(int(seconds * rate))
    ]
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", ""))
        out.writeframes(struct.pack(f"<{len(values)}h", *values))
    return file.getvalue()


def sounds(daemon, browser, faults):
    for n in range(3):
        daemon.ask("POST", "/v1/feedback?label=low", tone(200 + n), "audio/wav")
        daemon.ask("POST", "/v1/feedback?label=high", tone(2000 + n), "audio/wav")
    daemon.ask("POST", "/v1/predict", tone(220, 2.0), "audio/wav")
    page = browser.new_context(viewport=PHONE, is_mobile=True).new_page()
    watch(page, daemon.own, faults)
    log_in(page, daemon.own)
    open_when_kept(page, daemon.own, 1)
    audio = page.locator(".card audio")
    assert audio.count() == 1
    audio.evaluate("a => { a.muted = true; return a.play(); }")
    until(page, "document.querySelector('audio').currentTime > 0.2")
    assert abs(audio.evaluate("a => a.duration") - 2.0) < 0.01
    shot(page, "sound", clip={"x": 0, "y": 0, "width": 390, "height": 500})
    page.close()


EVIL = """<!doctype html><title>foreign</title>
<form id="form" method="post" action="{own}page/train">
<input name="adapter" value="wardrobe"><input name="form" value="{secret}"></form>
<iframe id="frame" src="{own}"></iframe><img id="picture" src="{own}page/input/{id}">"""


class Foreign(http.server.BaseHTTPRequestHandler):
    body = b""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *args):
        pass


READ = """async (url) => {
  const tried = {};
  for (const mode of ["cors", "no-cors"]) {
    try {
      const answer = await fetch(url, {mode, credentials: "include"});
      tried[mode] = answer.type + " " + (await answer.text()).length;
    } catch (e) { tried[mode] = "refused"; }
  }
  return tried;
}"""


def foreign(daemon, browser):
    """Pages of another site, of another port of this host, and of a name that was bound to this address."""
    daemon.ask("POST", "/v1/predict", next((PICTURES / "test/bag").iterdir()).read_bytes(), "image/png")
    time.sleep(1)
    server = http.server.HTTPServer(("127.0.0.1", 0), Foreign)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    log_in(page, daemon.own)
    source = page.locator(".card img").first.get_attribute("src")
    # As if it had the page's own secret.
    secret = page.locator("input[name=form]").first.get_attribute("value")
    Foreign.body = EVIL.format(own=daemon.own, secret=secret, id=source.rsplit("/", 1)[1]).encode()
    before = len(daemon.ask("GET", "/v1/train")["jobs"])
    # The cookie knows no port: what SameSite does not keep off, the page must.
    for host in ["localhost", "foreign.example"]:
        page.goto(f"http://{host}:{server.server_port}/", wait_until="load")
        read = page.evaluate(READ, daemon.own)
        assert read["cors"] == "refused" and read["no-cors"] in ("refused", "opaque 0"), read
        assert page.locator("#picture").evaluate("i => i.naturalWidth") == 0, host
        framed = page.frame_locator("#frame").locator("body").inner_text()
        assert "wardrobe" not in framed and "Log in" not in framed, framed
        page.evaluate("document.getElementById('form').submit()")
        page.wait_for_url(daemon.own + "**")
        text = page.locator("body").inner_text()
        assert "another page has sent this" in text or "Log in" in text, text
        print(f"a page of {host}: read {read}, post: {text.splitlines()[0]!r}")
    # A foreign name that leads to this address: nothing is shown to it, not even the login.
    for path in ["", "login", "v1/status"]:
        answer = page.goto(f"http://foreign.example:{daemon.port}/{path}")
        assert answer.status in (403, 421), (path, answer.status)
        assert "Token" not in page.locator("body").inner_text()
    print(f"by a foreign name: {answer.status} {page.locator('body').inner_text()[:80]!r}")
    assert len(daemon.ask("GET", "/v1/train")["jobs"]) == before
    server.shutdown()
    context.close()


def main():
    SHOTS.mkdir(exist_ok=True, parents=True)
    faults, models = [], ROOT / "models"
    wardrobe = [models / "efficientnet-lite0.onnx"]
    wardrobe += "--image 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225".split()
    text = [models / "minilm-l6.onnx", "--tokenizer", models / "minilm-l6.tokenizer.json"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--host-resolver-rules=MAP foreign.example 127.0.0.1"],
        )
        # Without the instant head it is a generation that learns the new classes.
        with running("wardrobe", wardrobe, "false") as daemon:
            pictures(daemon, browser, faults)
            foreign(daemon, browser)
            undo(daemon, browser, faults)
        with running("house", text) as daemon:
            sentences(daemon, browser, faults)
        if ENCODER:
            with running("sounds", [*ENCODER, "--audio", "resemblyzer"]) as daemon:
                sounds(daemon, browser, faults)
        browser.close()
    assert not faults, faults
    print("the page does what it should")


main()
