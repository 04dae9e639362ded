#!/usr/bin/env bash
# Zig as C compiler and linker for aarch64 with musl. cargo-zigbuild's wrapper drops the arguments
# that rustc gives and Zig does not know.
exec cargo-zigbuild zig cc -- -target aarch64-linux-musl "$@"
