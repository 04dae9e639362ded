#!/usr/bin/env bash
# One base, one adapter, one answer on every board: packs, trains and runs on this machine (x86-64)
# and on an emulated aarch64, and compares.
#
#   cross/identity.sh [--tiny] [HOST_BINARY AARCH64_BINARY]    development builds of both by default
#
# --tiny does it with small networks alone, in a minute.
#
# Bases must be equal byte by byte. An adapter trained there must load here and the other way
# round. Answers may differ by rounding: kernels of one arithmetic (f32 or integer) by 1e-3 of the
# largest value, different arithmetics by 0.001 in cosine.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/tools.sh

tiny_only=''
if [ "${1:-}" = --tiny ]; then tiny_only=yes && shift; fi
if [ $# -eq 2 ]; then
    here=$1 there=$2
    tools_for_arm64
else
    cargo build --locked
    here=${CARGO_TARGET_DIR:-$PWD/target}/debug/offshoot
    tools_for_arm64
    link_with_gcc_for_arm64
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
    cargo build --locked --target aarch64-unknown-linux-gnu
    there=$CARGO_TARGET_DIR/aarch64-unknown-linux-gnu/debug/offshoot
fi
emulate aarch64
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export OFFSHOOT_STORE=$dir/store
export QEMU_CPU=cortex-a53

pack() { # NAME ONNX ARGS…
    local name=$1 onnx=$2
    shift 2
    "$here" pack "$onnx" -o "$dir/$name.here" "$@" >/dev/null
    "$there" pack "$onnx" -o "$dir/$name.there" "$@" >/dev/null
    cmp "$dir/$name.here" "$dir/$name.there"
    echo "packed alike: $name, $(stat -c %s "$dir/$name.here") bytes"
}

for tiny in attention bn conv1d convnet group lstm mlp primitives qdq scalar_if tied; do
    # tract's LSTM takes no free batch.
    dims=()
    [ $tiny != lstm ] || dims=(--dim batch=2)
    for scheme in q8 q4; do
        pack "$tiny.$scheme" "models/tiny/$tiny.onnx" --weights $scheme "${dims[@]}"
    done
done
if [ -n "$tiny_only" ]; then
    pack picture models/tiny/convnet.onnx --image 32
    base=$dir/picture.here
    data=models/pictures/wardrobe/train
    asked=(--image models/pictures/wardrobe/test/sneaker/sneaker-001.png)
else
    for scheme in q8 q4; do
        pack "minilm.$scheme" models/minilm-l6.onnx --weights $scheme \
            --tokenizer models/minilm-l6.tokenizer.json
        pack "lite0.$scheme" models/efficientnet-lite0.onnx --weights $scheme
    done
    base=$dir/minilm.q8.here
    data=$dir/few.jsonl
    head -24 models/commands.jsonl >"$data"
    asked=(--text "please turn on the light in the kitchen")
fi

train() { "$1" train "$base" --data "$data" --out "$2" --steps 2 --batch 4 \
    --max-tokens 16 --threads 1 --seed 7 >/dev/null; }
train "$here" "$dir/here.adapter"
train "$there" "$dir/there.adapter"

answer() { # PROGRAM CPU KERNELS ADAPTER TO
    QEMU_CPU=$2 OFFSHOOT_KERNELS=$3 "$1" --json run "$base" "${asked[@]}" --adapter "$4" \
        --output "$5" >"$5.json"
}
for adapter in here there; do
    for kernels in portable ''; do
        to=$dir/$adapter.x86.$kernels
        answer "$here" '' "$kernels" "$dir/$adapter.adapter" "$to"
        for cpu in cortex-a53 cortex-a76 max; do
            to=$dir/$adapter.$cpu.$kernels
            answer "$there" $cpu "$kernels" "$dir/$adapter.adapter" "$to"
            python3 cross/compare.py "$adapter.adapter, ${kernels:-fastest} kernels, $cpu" \
                "${kernels:-fastest}" "$dir/$adapter.x86.$kernels" "$to"
        done
    done
done
