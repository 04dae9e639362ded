#!/usr/bin/env bash
# Counts the instructions of one answer of a base (batch 1, 16 tokens, one core) by family of
# kernels, on an emulated aarch64. Emulation gives no times, but counts are exact.
#
#   cross/instructions.sh [BASE] [KERNELS…]    a packed MiniLM; neon, neon-dotprod
#
# The count is the difference between 3 answers and 1, halved, so that opening and planning drop out.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/tools.sh

tools_for_arm64
link_with_gcc_for_arm64
# The static qemu takes no plugins.
command -v qemu-aarch64 >/dev/null || apt-get install -yq --no-install-recommends qemu-user
target=aarch64-unknown-linux-gnu
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

base=${1:-}
shift || true
[ $# -gt 0 ] || set -- neon neon-dotprod
cargo build --locked --profile measured --target $target --example inferences
program=$CARGO_TARGET_DIR/$target/measured/examples/inferences
if [ -z "$base" ]; then
    cargo build --locked --profile measured --target $target --bin offshoot
    emulate aarch64
    base=$dir/minilm.base
    QEMU_CPU=cortex-a76 "$CARGO_TARGET_DIR/$target/measured/offshoot" pack models/minilm-l6.onnx \
        -o "$base" --tokenizer models/minilm-l6.tokenizer.json >/dev/null
fi
cc -O2 -shared -fPIC -o "$dir/count.so" cross/qemu/count.c

count() {
    OFFSHOOT_KERNELS=$1 taskset -c 0 qemu-aarch64 -cpu max,pauth-impdef=on -d plugin -D "$dir/log" \
        -plugin file="$dir/count.so" "$program" "$base" "$2" >&2
    sed -n 's/^instructions //p' "$dir/log"
}

first=''
for kernels in "$@"; do
    one=$(count "$kernels" 1)
    three=$(count "$kernels" 3)
    each=$(((three - one) / 2))
    first=${first:-$each}
    awk -v k="$kernels" -v n="$each" -v f="$first" \
        'BEGIN { printf "%-13s %12d instructions an answer, %.3f of the first\n", k, n, n / f }'
done
