# shellcheck shell=bash
# The test suites on emulated processors. Sourced by the scripts that name a `target`, what of cargo's
# arguments builds its library (`std_arguments`), and the `emulator`.

std_arguments=()

# Seconds that a suite may take. QEMU forks while another of its threads may hold one of its own locks;
# then the child waits for that for ever, and a test for the child. Seen once in dozens of suites: such a
# suite is run once more, and the end of the output tells of it.
longest=1500
hung=''

# What qemu calls the processor CPU. Its `max` has vectors of 512 bits for programs, and SME; boards with
# SVE2 have 128 bits, with which tract's f32 kernels are emulated in half the time.
qemu_cpu() { # CPU
    if [ "$1" = max ]; then echo max,sve128=on,sme=off; else echo "$1"; fi
}

# What the threads of the emulated programs wait for.
threads() {
    local process
    for process in $(pgrep -f "$CARGO_TARGET_DIR/$target" || true); do
        echo "process $process: $(tr '\0' ' ' <"/proc/$process/cmdline" | cut -c1-200)"
        grep -s . /proc/"$process"/task/*/{comm,wchan,syscall} || true
    done
}

# A suite of cargo's on an emulated processor, in the folder of a crate, built before.
tests() { # FOLDER CPU SUITE ARGS…
    local folder=$1 cpu=$2 suite=$3 status
    shift 3
    printf '\n== %s: %s\n' "$cpu" "$suite"
    for _ in 1 2; do
        status=0
        (
            cd "$folder"
            QEMU_CPU=$(qemu_cpu "$cpu")
            export QEMU_CPU OFFSHOOT_EMULATED_CPU=$cpu
            declare -x "CARGO_TARGET_$(tr a-z- A-Z_ <<<"$target")_RUNNER=$emulator"
            # Ten seconds before the end.
            (sleep $((longest - 10)) && threads) &
            watcher=$! ended=0
            # shellcheck disable=SC2086 # a suite is one word or two
            timeout --kill-after=10 $longest cargo test --locked --target "$target" \
                "${std_arguments[@]}" "${parts[@]}" $suite -- "$@" || ended=$?
            kill $watcher $(pgrep -P $watcher) 2>/dev/null || true
            exit $ended
        ) || status=$?
        case $status in 124 | 137) ;; *) return $status ;; esac
        hung+="$suite on $cpu took $longest s and was run once more"$'\n'
    done
    return $status
}

suites=(--lib '--test engine' '--test it')
# What is of the processor: the kernels, and whole networks' answers through them.
of_each_processor=('--lib quant::' '--test engine')

# What of cargo's arguments says how much of the crate is built.
parts=()

build_tests() {
    # shellcheck disable=SC2068 # a suite is one word or two
    cargo test --locked --target "$target" "${std_arguments[@]}" "${parts[@]}" ${suites[@]} --no-run
}

all_tests() { # CPU ARGS…
    local cpu=$1 suite
    shift
    for suite in "${suites[@]}"; do tests . "$cpu" "$suite" "$@"; done
}

# Bases of real networks, which packing under emulation takes minutes for: this machine packs them,
# unless the caller has (see tests/common/mod.rs), and the emulated ones serve them.
pack_here() {
    [ -z "${OFFSHOOT_TEST_BASES:-}" ] || return 0
    OFFSHOOT_TEST_BASES=$(mktemp -d)
    export OFFSHOOT_TEST_BASES
    trap 'rm -r "$OFFSHOOT_TEST_BASES"' EXIT
    cargo test --locked --test engine
    cargo test --locked --lib train::reference_tests
}

# What qemu-user can't show: limits on memory (it takes them and sets none), the error of a program
# that can't be started (it forks where the program asks for vfork), signals that a program has its
# children ignore, and the program of another process (which is qemu).
# Whole models packed, every kind of adapter against differences, what is computed twice, what a language model
# keeps, cuts of power at every step, and months and draws of the gate would take many minutes, and know no processor.
not_emulated=(
    --skip graphs::
    --skip train::recompute::
    --skip train::language_tests::what_a_language_model_says_next
    --skip train::language_tests::a_base_is_not_moved
    --skip train::language_tests::next_tokens_are_kept
    --skip store::cut_tests
    --skip daemon::learn::gate
    --skip train::forward::tests::gradients_agree
    --skip import::child::tests::a_worker_out_of_memory_stack_or_time
    --skip import::child::tests::limits_reach_a_worker_that_sets_none
    --skip import::child::tests::exit_codes_without_a_message
    --skip bad_input::a_write_that_fails_in_the_middle_leaves_the_old_file
    --skip daemon::learn::child::tests::a_replaced_program_is_started_by_its_process
    --skip daemon::learn::months
)

# The slowest tests, which run on the first processor of aarch64 only; what they use of the kernels is
# held on each by quant's tests and by real networks' answers. Files cut and flipped at every place, a store killed or
# counted at every step, gradients against PyTorch's and against differences, other programs' adapters, networks in
# floats (whose kernels are tract's), clips.
slow=(
    --skip store::damage_tests
    --skip store::kill_tests
    --skip store::wear_tests
    --skip bad_input::cut_and_flipped
    --skip hostile::
    --skip train::reference_tests
    --skip train::vjp::tests
    --skip train::lesson_tests
    --skip peft::
    --skip shipped::an_adapter
    --skip golden::minilm_f32
    --skip golden::efficientnet_f32
    --skip golden::recogniser_f32
    --skip golden::resemblyzer_f32
    --skip golden::classifier_f32
    --skip generate::
)

# Tests that know no processor: files and disks, the daemon's requests and sensors, refusals, our own sources, graphs
# written as text and read back, changed bytes.
of_no_processor=(
    --skip store::
    --skip daemon::
    --skip cli::
    --skip compare::
    --skip plot::
    --skip bad_input::
    --skip layers::
    --skip graph::nnef::
    --skip graph::divided
    --skip pack::hostile
    --skip npy::
    --skip host::elf
)

# Tests that take minutes under emulation and whose arithmetic shorter ones hold as well: runs that go on
# bit by bit where they were stopped, clips learned by heart, all networks in floats but one.
of_data=(
    --skip golden::efficientnet_f32
    --skip golden::recogniser_f32
    --skip golden::resemblyzer_f32
    --skip golden::classifier_f32
    --skip train::lesson_tests
    --skip train::translate_tests::clips_are_learned
)
