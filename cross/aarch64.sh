#!/usr/bin/env bash
# Builds, tests or runs the aarch64 binary on a Debian machine without Docker, under qemu-user.
#
#   cross/aarch64.sh build                 release binary for aarch64-unknown-linux-gnu
#   cross/aarch64.sh test [CPU] [ARGS…]    library tests on an emulated CPU (cortex-a53, cortex-a76, max)
#   cross/aarch64.sh run [ARGS…]           the binary on an emulated cortex-a76
#
# Uses Debian's rustc-web with its arm64 standard library; emulation proves answers, never speed.
set -euo pipefail
cd "$(dirname "$0")/.."

verb=${1:-build}
shift || true

if ! [ -x /usr/bin/rustc ] || ! command -v qemu-aarch64-static aarch64-linux-gnu-gcc >/dev/null; then
    dpkg --add-architecture arm64
    apt-get update -q
    apt-get install -yq --no-install-recommends rustc-web libstd-rust-web-dev:arm64 \
        gcc-aarch64-linux-gnu g++-aarch64-linux-gnu qemu-user-static
fi

export RUSTC=/usr/bin/rustc
export CARGO_TARGET_DIR=target/cross
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
export CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++
target=aarch64-unknown-linux-gnu
emulator() { echo "qemu-aarch64-static -cpu $1"; }

case $verb in
    build) cargo build --locked --release --target $target "$@" ;;
    test)
        cpu=${1:-cortex-a76}
        shift || true
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$(emulator "$cpu") \
            cargo test --locked --target $target --lib "$@"
        ;;
    run)
        cargo build --locked --release --target $target
        exec $(emulator cortex-a76) "target/cross/$target/release/offshoot" "$@"
        ;;
    *) echo "cross/aarch64.sh build|test|run" >&2; exit 2 ;;
esac
