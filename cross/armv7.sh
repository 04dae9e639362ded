#!/usr/bin/env bash
# The tests on an emulated 32-bit processor, on a Debian 12 machine without Docker, under qemu-user.
#
#   cross/armv7.sh test
#
# Installs what is missing (as root). Takes a quarter of an hour; not part of .ci/run.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/tools.sh
. cross/suites.sh

target=armv7-unknown-linux-gnueabihf
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}

emulator=qemu-arm-static

[ "${1:-}" = test ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
pack_here
library_for $target
packages arm-linux-gnueabihf-g++ gcc-arm-linux-gnueabihf g++-arm-linux-gnueabihf
emulate arm
export CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_LINKER=arm-linux-gnueabihf-gcc
export CC_armv7_unknown_linux_gnueabihf=arm-linux-gnueabihf-gcc
export CXX_armv7_unknown_linux_gnueabihf=arm-linux-gnueabihf-g++
build_tests
# Portable kernels take longer than aarch64's: engine six minutes and more.
longest=1800
# The slow tests are left to aarch64.
all_tests cortex-a7 "${not_emulated[@]}" "${slow[@]}"
printf '%s' "$hung"
