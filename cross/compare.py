"""Compares two folders of .npy outputs: python3 compare.py TITLE portable|fastest HERE THERE.

Portable kernels on both sides: values within 1e-3 of the largest one. The fastest ones may be f32
here and integer there: cosine at least 0.999.
"""

import array
import ast
import math
import pathlib
import struct
import sys

title, kernels, here, there = sys.argv[1:]


def read(path):
    data = path.read_bytes()
    length, = struct.unpack_from("<H", data, 8)
    header = ast.literal_eval(data[10 : 10 + length].decode())
    assert header["descr"] == "<f4", header
    return array.array("f", data[10 + length :])


files = sorted(p.name for p in pathlib.Path(here).glob("*.npy"))
assert files, f"no outputs in {here}"
assert files == sorted(p.name for p in pathlib.Path(there).glob("*.npy"))
for name in files:
    a, b = read(pathlib.Path(here) / name), read(pathlib.Path(there) / name)
    assert len(a) == len(b) > 0
    worst = max(abs(x - y) for x, y in zip(a, b)) / max(map(abs, a))
    norm = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    turned = 1 - sum(x * y for x, y in zip(a, b)) / norm
    print(f"{title}: {name} differs by {worst:.1e} of the largest, 1 - cosine {turned:.1e}")
    assert turned <= 0.001, name
    assert kernels != "portable" or worst <= 1e-3, name
