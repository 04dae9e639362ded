"""PP-OCR's text recogniser learns a meter's digits that it reads badly: its character error rate on pictures it
has never seen, before and after, with the built program.

    python meters.py ppocr-rec.onnx [OFFSHOOT] [FOLDER]

The digits are drawn here, of seven segments that don't touch (slant, weight, gaps, colours, noise, and
segments that are off and yet seen differ), so that no font is needed. FOLDER (a temporary one if none is
given) gets train.jsonl, test.jsonl and their pictures. Needs pillow and numpy.
"""
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT, SCALE = 320, 48, 4
# Which of the segments a to g (top, upper right, lower right, bottom, lower left, upper left, middle) are on.
SEGMENTS = ["abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg"]


def digit(draw, number, x, y, w, h, weight, gap, slant, on, off):
    """One digit with its upper left corner at (x, y)."""
    half = h / 2
    ends = {
        "a": ((0, 0), (w, 0)), "b": ((w, 0), (w, half)), "c": ((w, half), (w, h)), "d": ((0, h), (w, h)),
        "e": ((0, half), (0, h)), "f": ((0, 0), (0, half)), "g": ((0, half), (w, half)),
    }
    for name, ((x0, y0), (x1, y1)) in ends.items():
        colour = on if name in SEGMENTS[number] else off
        if colour is None:
            continue
        dx, dy = (gap, 0) if y0 == y1 else (0, gap)
        bar = weight / 2
        (x0, y0), (x1, y1) = (x0 + dx, y0 + dy), (x1 - dx, y1 - dy)
        if y0 == y1:
            shape = [(x0, y0), (x0 + bar, y0 - bar), (x1 - bar, y0 - bar), (x1, y0), (x1 - bar, y0 + bar), (x0 + bar, y0 + bar)]
        else:
            shape = [(x0, y0), (x0 + bar, y0 + bar), (x0 + bar, y1 - bar), (x0, y1), (x0 - bar, y1 - bar), (x0 - bar, y0 + bar)]
        draw.polygon([(x + px + slant * (h - py), y + py) for px, py in shape], fill=colour)


def picture(rng, text):
    """A meter's window that shows the text, as high and wide as the recogniser takes it."""
    ground = rng.choice([(20, 24, 20), (40, 36, 30), (168, 178, 150), (190, 196, 180), (10, 10, 14)])
    dark = sum(ground) < 200
    on = rng.choice([(240, 60, 40), (90, 240, 110), (250, 190, 60), (230, 235, 240)]) if dark else rng.choice([(30, 34, 30), (20, 20, 40)])
    share = rng.uniform(0.04, 0.16)
    off = tuple(int(g + share * (o - g)) for g, o in zip(ground, on)) if rng.random() < 0.6 else None
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), ground)
    draw = ImageDraw.Draw(image)
    h = rng.uniform(0.55, 0.78) * HEIGHT * SCALE
    w = h * rng.uniform(0.42, 0.55)
    weight = h * rng.uniform(0.10, 0.17)
    gap = weight * rng.uniform(0.35, 0.75)
    pitch = w + weight * 2 + h * rng.uniform(0.05, 0.25)
    pitch = min(pitch, (WIDTH * SCALE - 2 * weight) / (len(text) + 0.3))
    w = min(w, pitch - 1.6 * weight)
    slant = rng.uniform(0, 0.14)
    x, y = weight * rng.uniform(1.2, 3), (HEIGHT * SCALE - h) / 2 + rng.uniform(-6, 6)
    for number in text:
        digit(draw, int(number), x, y, w, h, weight, gap, slant, on, off)
        x += pitch
    image = image.resize((WIDTH, HEIGHT), Image.LANCZOS)
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    noise = np.random.default_rng(rng.randrange(1 << 30)).normal(0, rng.uniform(1, 9), (HEIGHT, WIDTH, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def make(folder, split, count, seed):
    rng = random.Random(seed)
    (folder / split).mkdir(parents=True, exist_ok=True)
    with open(folder / f"{split}.jsonl", "w") as out:
        for at in range(count):
            text = "".join(rng.choice("0123456789") for _ in range(rng.randint(4, 8)))
            name = f"{split}/{at:04}.png"
            picture(rng, text).save(folder / name)
            out.write(json.dumps({"image": name, "transcript": text}) + "\n")


def main(model, program, folder, train=240, test=120, epochs="6"):
    make(folder, "train", train, 1)
    make(folder, "test", test, 2)

    def offshoot(*words):
        began = time.time()
        done = subprocess.run([program, *map(str, words), "--json"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, words))}: {done.stderr}")
        return json.loads(done.stdout), time.time() - began

    base, adapter = folder / "reader.base", folder / "meter.adapter"
    half = "0.5,0.5,0.5"
    offshoot("pack", model, "-o", base, "--input", f"x=1x3x{HEIGHT}x{WIDTH},f32", "--image", f"{HEIGHT}x{WIDTH}", "--line", "--mean", half, "--std", half)

    def measure(*more):
        found, seconds = offshoot("eval", base, "--data", folder / "test.jsonl", *more)
        found = found["evaluation"]
        print(f"{found['samples']} pictures: CER {found['cer']:.4f}, exact {found['exact']:.3f}, loss {found['loss']:.3f} ({seconds:.0f} s)", flush=True)
        return found["cer"]

    before = measure()
    report, seconds = offshoot("train", base, "--data", folder / "train.jsonl", "--out", adapter, "--epochs", epochs, "--batch", 8, "--lr", "1e-3", "--holdout", "0.1")
    report, peak = report["report"], report["peak_rss_bytes"]
    print(f"{report['steps']} steps, {report['step_ms_median']:.0f} ms each, {seconds:.0f} s, peak {peak >> 20} MiB", flush=True)
    after = measure("--adapter", adapter)
    print(f"CER {before:.4f} -> {after:.4f}: {'halved or better' if after <= before / 2 else 'not halved'}")


if __name__ == "__main__":
    given = dict(enumerate(sys.argv[1:]))
    place = pathlib.Path(given.get(2) or tempfile.mkdtemp())
    main(given[0], given.get(1, "offshoot"), place)
