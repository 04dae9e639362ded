#!/usr/bin/env bash
# The library's tests of parsers, views and kernels under Miri, which only nightly compilers have:
#   rustup toolchain install nightly --profile minimal --component miri,rust-src
#   scripts/miri.sh [TEST]…        without a word: those below
# It interprets, so tests of all of something take a share of it there (cfg!(miri)).
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- quant:: npy:: adapter:: pack::hostile pack::tests pack::record graph::nnef::parse \
    graph::nnef::guard runtime::generate::chat runtime::generate::settings runtime::generate::stream \
    runtime::audio::wav runtime::audio::stream runtime::tokenizer_limits store::log store::names store::rules \
    host::elf host::mounts daemon::serve::mqtt::topics daemon::serve::ask import::names import::stage \
    import::tensor
# What it can't do: map files, take leases, start processes, call C.
skipped=()
export MIRIFLAGS="-Zmiri-disable-isolation ${MIRIFLAGS:-}"
cargo +nightly miri test --locked --lib -- "${skipped[@]}" "$@"
