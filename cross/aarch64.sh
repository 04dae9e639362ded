#!/usr/bin/env bash
# Builds, tests and runs for aarch64 on a Debian 12 machine without Docker, under qemu-user.
#
#   cross/aarch64.sh build [ARGS…]       release binary for glibc 2.31, checked (cross/check-binary.sh)
#   cross/aarch64.sh test [CPU…]         the tests on emulated processors: cortex-a53, cortex-a76, max
#   cross/aarch64.sh kernels [CPU…]      of them those of kernels and graphs only
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

# On `max` all tests run. On the others those listed here don't: what they prove has no arithmetic that differs
# between processors, and each takes half a minute or more under emulation.
slow=(
)

build() {
    release_build $target "$@"
    check_release $target "$binary"
}

# Without `-L`: Debian's libc6:arm64 has its loader where programs look for it, and the loader of
# libc6-arm64-cross is another version, with which that libc never returns from pthread_create.
emulator() { echo "qemu-aarch64-static -cpu $1"; }

tests() { # CPU…
    local cpu
    [ $# -gt 0 ] || set -- cortex-a53 cortex-a76 max
    cargo test --locked --target $target "${programs[@]}" --no-run
    for cpu in "$@"; do
        local skip=()
        if [ "$cpu" != max ]; then
            for name in "${slow[@]}"; do skip+=(--skip "$name"); done
        fi
        printf '\n== %s\n' "$cpu"
        [ ${#skip[@]} -eq 0 ] || printf 'only on max: %s\n' "${slow[@]}"
        QEMU_CPU=$cpu OFFSHOOT_EMULATED_CPU=$cpu \
            CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$(emulator "$cpu") \
            cargo test --locked --target $target "${programs[@]}" -- "${only[@]}" "${skip[@]}"
    done
}

case $verb in
    build) build "$@" ;;
    test | kernels)
        programs=(--lib) only=()
        if [ "$verb" = kernels ]; then
            only=(quant:: graph::)
        else
            programs+=(--test engine)
        fi
        tools_for_arm64
        link_with_gcc_for_arm64
        # Some tests start this program again.
        if emulate aarch64; then
            [ "$verb" = kernels ] || programs+=(--test it)
        else
            echo "not run: tests/it, which starts the program (binfmt_misc can't be used here)"
        fi
        tests "$@"
        ;;
    run)
        cpu=cortex-a76
        case ${1:-} in cortex-* | max | neoverse-*) cpu=$1 && shift ;; esac
        tools_for_arm64
        [ -x "$binary" ] || build
        emulate aarch64 ||
            echo "binfmt_misc can't be used here: 'pack' and 'demo' will not find their worker" >&2
        export QEMU_CPU=$cpu
        exec $(emulator "$cpu") "$binary" "$@"
        ;;
    *)
        sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
