#!/usr/bin/env bash
# The library's tests of parsers and portable kernels under Miri, which only nightly compilers have:
#   rustup toolchain install nightly --profile minimal --component miri,rust-src
#   scripts/miri.sh [TEST]…        without a word: those below
# It interprets: tests of all of something take a share there (cfg!(miri)), and it knows the portable kernels
# only, which it chooses by itself.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- quant:: npy:: adapter:: graph::nnef::parse graph::nnef::guard pack::record \
    runtime::generate::chat runtime::generate::settings runtime::generate::stream runtime::audio::wav \
    runtime::audio::stream runtime::tokenizer_limits store::log store::names store::rules host::elf::tests::versions \
    host::mounts daemon::serve::mqtt::topics daemon::serve::ask import::names import::stage import::tensor
skipped=(
    # Files are opened with flags that it doesn't know. Mapped files and SQLite it can't have at all: nothing
    # of pack::base, pack::mapping and the store's database is tried here.
    archives_stored_and_deflated a_file_is_written_whole adapter::file::tests::each_way_to_be_wrong adapter::peft::tests
    # Hours of it: hundreds of rows, searches, megabytes, threads over more than is worth sharing.
    a_row_has_the_same_bits_in_every_batch the_q4_search quant::threads small_templates bombs_and_odd_archives
)
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-deterministic-floats ${MIRIFLAGS:-}"
cargo +nightly miri test --locked --lib -- "${skipped[@]/#/--skip=}" "$@"
