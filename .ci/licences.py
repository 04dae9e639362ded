#!/usr/bin/env python3
"""Every dependency's licence expression must be satisfiable by licences that we accept."""
import json
import re
import subprocess
import sys

ACCEPTED = {
    "MIT", "MIT-0", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause",
    "ISC", "Zlib", "0BSD", "CC0-1.0", "Unlicense", "BSL-1.0", "Unicode-3.0", "MPL-2.0",
}


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
print(f"{len(packages)} packages, {len(bad)} with a licence that is not accepted")
print("\n".join(bad))
sys.exit(bool(bad))
