#!/usr/bin/env python3
"""Makes the demo's two picture tasks, pictures/wardrobe and pictures/laundry, from Fashion-MNIST.

Each is a folder of class folders under train/ (24 pictures a class) and test/ (12).
Pictures are 28 x 28 greyscale, inverted to dark on white as photographs of clothes are.
`wardrobe` tells kinds of things apart; `laundry` tells where a thing goes, so each of
its classes holds two kinds, and it shares kinds but no picture with `wardrobe`.

usage: make_pictures.py [--data FILE]
needs: numpy, pillow
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
TRAIN, TEST = 24, 12
KINDS = "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle-boot".split()
TASKS = {
    "wardrobe": {kind: [kind] for kind in ("t-shirt", "trouser", "dress", "sneaker", "bag")},
    "laundry": {
        "wash-cold": ["pullover", "dress"],
        "wash-warm": ["shirt", "t-shirt"],
        "dry-clean": ["coat", "trouser"],
        "wipe": ["bag", "ankle-boot"],
        "brush": ["sandal", "sneaker"],
    },
}


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--data", type=Path, default=Path("/work/shared/data/fashion_mnist_5k.npz"))
    arrays = np.load(arguments.parse_args().data)
    # calibrate.py fits the model's rounding to the last 32 of x_train and checks it on the last 40 of x_test.
    sources = {"train": ("x_train", "y_train", TRAIN, 32), "test": ("x_test", "y_test", TEST, 40)}
    shutil.rmtree(HERE / "pictures", ignore_errors=True)
    seen = set()
    for split, (images, labels, count, reserved) in sources.items():
        images, labels = arrays[images][:-reserved], arrays[labels][:-reserved]
        queues = {kind: iter(np.flatnonzero(labels == i)) for i, kind in enumerate(KINDS)}
        for task, classes in TASKS.items():
            for name, kinds in classes.items():
                folder = HERE / "pictures" / task / split / name
                folder.mkdir(parents=True)
                for number in range(count):
                    kind = kinds[number % len(kinds)]
                    pixels = 255 - images[next(queues[kind])]
                    assert pixels.tobytes() not in seen, f"a {kind} occurs twice in the data"
                    seen.add(pixels.tobytes())
                    file = folder / f"{kind}-{number + 1:03}.png"
                    Image.fromarray(pixels).save(file, optimize=True)
    print(f"{len(seen)} pictures")


if __name__ == "__main__":
    main()
