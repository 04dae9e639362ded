#!/usr/bin/env python3
"""Every dependency comes from crates.io, and its licence expression is satisfiable by what `deny.toml` allows."""
import json
import re
import subprocess
import sys
import tomllib

with open("deny.toml", "rb") as policy:
    ACCEPTED = set(tomllib.load(policy)["licenses"]["allow"])
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"


def accepted(expression):
    """Evaluates an SPDX expression (older ones write '/' for OR)."""
    text = expression.replace("/", " OR ")
    tokens = re.findall(r"\(|\)|[A-Za-z0-9.\-+]+(?: WITH [A-Za-z0-9.\-]+)?", text)
    code = []
    for token in tokens:
        if token in ("(", ")"):
            code.append(token)
        elif token in ("AND", "OR"):
            code.append(token.lower())
        else:
            code.append(str(token in ACCEPTED))
    return eval(" ".join(code), {"__builtins__": {}})  # only True, False, and, or, brackets


command = ["cargo", "metadata", "--format-version", "1", "--locked"]
packages = json.loads(subprocess.check_output(command))["packages"]
bad = [
    f"{p['name']} {p['version']}: {p['license']}"
    for p in packages
    if not p["license"] or not accepted(p["license"])
]
# Without a source: this crate.
bad += [f"{p['name']}: from {p['source']}" for p in packages if p["source"] not in (None, REGISTRY)]
print(f"{len(packages)} packages, {len(bad)} with a licence or source that is not accepted")
print("\n".join(bad))
sys.exit(bool(bad))
