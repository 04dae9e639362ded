#!/usr/bin/env bash
# Builds, tests and runs for aarch64 on a Debian 12 machine without Docker, under qemu-user.
#
#   cross/aarch64.sh build [ARGS…]       release binary for glibc 2.31, checked (cross/check-binary.sh)
#   cross/aarch64.sh test [CPU…]         the tests on emulated processors: cortex-a53, cortex-a76, max;
#                                        the first named runs all of them, the others all but the slow
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
# Without dot products, with them, with i8mm as well.
cpus='cortex-a53 cortex-a76 max'
native=${CARGO_TARGET_DIR:-$PWD/target}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/cross}
binary=$CARGO_TARGET_DIR/$target/release/offshoot

build() {
    release_build $target "$@"
    check_release $target "$binary"
}

# Without `-L`: Debian's libc6:arm64 has its loader where programs look for it, and the loader of
# libc6-arm64-cross is another version, with which that libc never returns from pthread_create.
emulator() { echo "qemu-aarch64-static -cpu $1"; }

# Seconds that a suite may take. QEMU forks while another of its threads may hold one of its own locks;
# then the child waits for that for ever, and a test for the child. Seen once in dozens of suites: such a
# suite is run once more.
longest=600

# A suite of cargo's on an emulated processor, in the folder of a crate, built before.
tests() { # FOLDER CPU SUITE ARGS…
    local folder=$1 cpu=$2 suite=$3 status
    shift 3
    printf '\n== %s: %s\n' "$cpu" "$suite"
    for _ in 1 2; do
        status=0
        (
            cd "$folder"
            # shellcheck disable=SC2086 # a suite is one word or two
            QEMU_CPU=$cpu OFFSHOOT_EMULATED_CPU=$cpu \
                CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$(emulator "$cpu") \
                timeout --kill-after=10 $longest cargo test --locked --target $target $suite -- "$@"
        ) || status=$?
        case $status in 124 | 137) ;; *) return $status ;; esac
        echo "$suite on $cpu hung for $longest s"
    done
    return $status
}

# Bases of real networks, which packing under emulation takes minutes for: this machine packs them,
# unless the caller has (see tests/common/mod.rs), and the emulated ones serve them.
pack_here() {
    [ -z "${OFFSHOOT_TEST_BASES:-}" ] || return 0
    OFFSHOOT_TEST_BASES=$(mktemp -d)
    export OFFSHOOT_TEST_BASES
    trap 'rm -r "$OFFSHOOT_TEST_BASES"' EXIT
    CARGO_TARGET_DIR=$native cargo test --locked --test engine
    CARGO_TARGET_DIR=$native cargo test --locked --lib train::reference_tests
}

# What qemu-user can't show: limits on memory (it takes them and sets none), the error of a program
# that can't be started (it forks where the program asks for vfork), signals that a program has its
# children ignore, and the program of another process (which is qemu).
not_emulated=(
    --skip import::child::tests::a_worker_out_of_memory_stack_or_time
    --skip import::child::tests::limits_reach_a_worker_that_sets_none
    --skip import::child::tests::exit_codes_without_a_message
    --skip bad_input::a_write_that_fails_in_the_middle_leaves_the_old_file
    --skip daemon::learn::child::tests::a_replaced_program_is_started_by_its_process
)

# The slowest tests, which run on the first processor only; what they use of the kernels is held on
# each by quant's tests and by real networks' answers. Whole models written as text and read back,
# files cut and flipped at every place, archives, a store cut from power, killed or counted at every
# step, statistics over thousands of draws, gradients against PyTorch's and against differences, other
# programs' adapters.
on_one_processor=(
    --skip graph::nnef::tests
    --skip npy::tests
    --skip store::cut_tests
    --skip store::kill_tests
    --skip store::wear_tests
    --skip daemon::learn::gate
    --skip bad_input::cut_and_flipped
    --skip hostile::
    --skip train::reference_tests
    --skip train::vjp::tests
    --skip train::lesson_tests
    --skip peft::
)

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
    build) build "$@" ;;
    test)
        pack_here
        tools_for_arm64
        link_with_gcc_for_arm64
        # Many tests start the program, or themselves.
        emulate aarch64
        skipped=("${not_emulated[@]}")
        cargo test --locked --target $target --lib --test engine --test it --no-run
        for cpu in ${*:-$cpus}; do
            for suite in --lib '--test engine' '--test it'; do
                tests . "$cpu" "$suite" "${skipped[@]}"
            done
            skipped=("${not_emulated[@]}" "${on_one_processor[@]}")
        done
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
        export QEMU_CPU=$cpu
        exec $(emulator "$cpu") "$binary" "$@"
        ;;
    *)
        sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
