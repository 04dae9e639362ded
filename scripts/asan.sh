#!/usr/bin/env bash
# The library's tests of kernels, views of mapped files and parsers under AddressSanitizer.
#   scripts/asan.sh [TEST]…        without a word: those below
# Only this crate is built with it (asan-rustc): what is `unsafe` is here.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- quant:: pack:: npy:: adapter:: graph::nnef::parse runtime::picture runtime::audio \
    runtime::generate::chat runtime::tokenizer_limits store::log store::witness host::elf import::names \
    import::validate import::tensor train::checkpoint
# What the sanitizer does itself: SIGBUS, the heap, and mlock, which does nothing under it.
skipped=(--skip pack::mapping::cut --skip what_was_freed_goes_back --skip a_locked_file_is_locked_whole)
# Test programs end with threads and statics that hold memory: no leaks are looked for.
export ASAN_OPTIONS=detect_leaks=0:${ASAN_OPTIONS:-}
RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/asan-rustc cargo test --locked --lib -- "${skipped[@]}" "$@"
