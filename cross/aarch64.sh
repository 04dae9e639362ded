#!/usr/bin/env bash
# Builds, tests and runs for aarch64 on a Debian 12 machine without Docker, under qemu-user.
#
#   cross/aarch64.sh build [ARGS…]       release binary for glibc 2.31, checked (cross/check-binary.sh)
#   cross/aarch64.sh test [CPU…]         the tests on emulated processors: cortex-a53, cortex-a76, max
#   cross/aarch64.sh kernels [CPU…]      of them those of the kernels alone, built in a minute
#   cross/aarch64.sh run [CPU] ARGS…     the binary on an emulated processor, cortex-a76 if none is named
#
# Installs what is missing (as root). Emulation proves answers, never speed.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/tools.sh

verb=${1:-build}
shift || true
target=aarch64-unknown-linux-gnu
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/cross}
binary=$CARGO_TARGET_DIR/$target/release/offshoot

build() {
    release_build $target "$@"
    check_release $target "$binary"
}

# Without `-L`: Debian's libc6:arm64 has its loader where programs look for it, and the loader of
# libc6-arm64-cross is another version, with which that libc never returns from pthread_create.
emulator() { echo "qemu-aarch64-static -cpu $1"; }

# cargo's test on each of the emulated processors, in the folder of a crate.
tests() { # FOLDER CPUS ARGS…
    local folder=$1 cpus=$2 cpu
    shift 2
    for cpu in ${cpus:-cortex-a53 cortex-a76 max}; do
        printf '\n== %s\n' "$cpu"
        (
            cd "$folder"
            QEMU_CPU=$cpu OFFSHOOT_EMULATED_CPU=$cpu \
                CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$(emulator "$cpu") \
                cargo test --target $target "$@"
        )
    done
}

# A crate of `quant` and `error`, which is all that `quant` imports: its tests build without tract.
kernels_crate() { # FOLDER
    mkdir -p "$1/src"
    cat >"$1/Cargo.toml" <<MANIFEST
[package]
name = "kernels"
edition = "2024"
[workspace]
[dependencies]
$(sed -n '/^\[dependencies\]/,/^$/p' Cargo.toml | grep -E '^(half|serde) = ')
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
    build) build "$@" ;;
    test)
        tools_for_arm64
        link_with_gcc_for_arm64
        programs=(--lib --test engine)
        # Some tests start the program.
        if emulate aarch64; then
            programs+=(--test it)
        else
            echo "not run: tests/it, which starts the program"
        fi
        tests . "$*" --locked "${programs[@]}"
        ;;
    kernels)
        tools_for_arm64
        link_with_gcc_for_arm64
        export CARGO_TARGET_DIR=$CARGO_TARGET_DIR/kernels
        kernels_crate "$CARGO_TARGET_DIR/crate"
        tests "$CARGO_TARGET_DIR/crate" "$*" --lib
        ;;
    run)
        cpu=cortex-a76
        case ${1:-} in cortex-* | max | neoverse-*) cpu=$1 && shift ;; esac
        tools_for_arm64
        [ -x "$binary" ] || build
        emulate aarch64 ||
            echo "'pack' and 'demo' will not find their worker" >&2
        export QEMU_CPU=$cpu
        exec $(emulator "$cpu") "$binary" "$@"
        ;;
    *)
        sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
