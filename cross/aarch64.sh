#!/usr/bin/env bash
# Builds, tests and runs for aarch64 on a Debian 12 machine without Docker, under qemu-user.
#
#   cross/aarch64.sh build [ARGS…]       release binary for glibc 2.31, checked (check_release in tools.sh)
#   cross/aarch64.sh small [ARGS…]       the same of the small one, which runs, switches and trains
#   cross/aarch64.sh tools               installs what the others need
#   cross/aarch64.sh test [--all] [CPU…] the tests on emulated processors: cortex-a53, cortex-a76, max;
#                                        the first named runs the library and its engine, the others
#                                        the kernels and whole networks. --all: the first runs
#                                        what knows no processor too, and the program. --no-run (in
#                                        the place of processors): they are only built
#   cross/aarch64.sh kernels [CPU…]      of them those of the kernels alone, built in a minute
#   cross/aarch64.sh run [CPU] ARGS…     the binary on an emulated processor, cortex-a76 if none is named
#
# Installs what is missing (as root). Emulation proves answers, never speed.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/tools.sh
. cross/suites.sh

verb=${1:-build}
shift || true
target=aarch64-unknown-linux-gnu
# Without dot products, with them, with all that qemu has.
cpus='cortex-a53 cortex-a76 max'
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
built=$CARGO_TARGET_DIR/$target
binary=$built/dist/offshoot

build() {
    release_build $target --profile dist "$@"
    check_release $target "$binary" --max-bytes 28786688
}

small() {
    release_build $target --profile small --no-default-features --features cli "$@"
    check_release $target "$built/small/offshoot" --max-bytes 12000000
}

# Without `-L`: Debian's libc6:arm64 has its loader where programs look for it, and the loader of
# libc6-arm64-cross is another version, with which that libc never returns from pthread_create.
emulator=qemu-aarch64-static

# A crate of `quant` and `error`, which is all that `quant` imports: its tests build without tract.
kernels_crate() { # FOLDER
    mkdir -p "$1/src"
    cat >"$1/Cargo.toml" <<MANIFEST
[package]
name = "kernels"
edition = "2024"
[workspace]
[dependencies]
$(sed -n '/^\[dependencies\]/,/^$/p' Cargo.toml | grep -E '^(half|rayon-core|serde) = ')
$(sed -n '/^\[profile.dev\]/,/^$/p' Cargo.toml)
MANIFEST
    # Cargo takes from it the versions that this crate needs.
    cp Cargo.lock "$1/Cargo.lock"
    cat >"$1/src/lib.rs" <<LIBRARY
#![allow(dead_code, missing_docs)]
#[path = "$PWD/src/error.rs"]
pub mod error;
#[path = "$PWD/src/quant/mod.rs"]
pub mod quant;
LIBRARY
}

case $verb in
    tools)
        tools_for_arm64
        tools_zig
        emulate aarch64
        ;;
    build) build "$@" ;;
    small) small "$@" ;;
    test)
        tools_for_arm64
        link_with_gcc_for_arm64
        # Many tests start the program, or themselves.
        emulate aarch64
        skipped=("${not_emulated[@]}")
        if [ "${1:-}" = --all ]; then
            shift
        else
            # The same code runs natively on another 64-bit Linux, and need not be built here.
            suites=('--lib' '--test engine')
            parts=(--no-default-features --features 'import text')
            skipped+=("${of_no_processor[@]}" "${of_data[@]}")
        fi
        build_tests
        if [ "${1:-}" = --no-run ]; then exit; fi
        pack_here
        for cpu in ${*:-$cpus}; do
            all_tests "$cpu" "${skipped[@]}"
            skipped=("${not_emulated[@]}" "${slow[@]}" "${of_no_processor[@]}")
            suites=("${of_each_processor[@]}")
        done
        printf '%s' "$hung"
        ;;
    kernels)
        tools_for_arm64
        link_with_gcc_for_arm64
        export CARGO_TARGET_DIR=$CARGO_TARGET_DIR/kernels
        kernels_crate "$CARGO_TARGET_DIR/crate"
        (cd "$CARGO_TARGET_DIR/crate" && cargo test --target $target --lib --no-run)
        for cpu in ${*:-$cpus}; do tests "$CARGO_TARGET_DIR/crate" "$cpu" --lib; done
        ;;
    run)
        cpu=cortex-a76
        case ${1:-} in cortex-* | max | neoverse-*) cpu=$1 && shift ;; esac
        tools_for_arm64
        [ -x "$binary" ] || build
        emulate aarch64 ||
            echo "'pack' and 'demo' will not find their worker" >&2
        QEMU_CPU=$(qemu_cpu "$cpu")
        export QEMU_CPU
        exec $emulator "$binary" "$@"
        ;;
    *)
        sed -n '2,15s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
