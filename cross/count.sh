#!/usr/bin/env bash
# Counts what the shipped models cost a release program for aarch64: the instructions of a process that opens a base, plans,
# and answers eight times without an adapter and eight times with one of rank 8 on all layers (`bench --seconds 0`),
# on emulated processors. Fails where they grow by more than 2 % over cross/counts.tsv.
#
#   cross/count.sh HOST_PROGRAM AARCH64_PROGRAM          MiniLM on two processors; the host's program packs
#   cross/count.sh --all HOST_PROGRAM AARCH64_PROGRAM    EfficientNet-Lite0 and `max` too, in five minutes
#   cross/count.sh --write HOST_PROGRAM AARCH64_PROGRAM  writes what all of it takes to cross/counts.tsv
#
# Counts are exact but for a thousandth that hangs on addresses. cross/instructions.sh compares families of kernels.
set -euo pipefail
bases=(minilm-l6-q8) processors=(cortex-a53 cortex-a76) write=''
case ${1:-} in
    --write | --all)
        bases+=(efficientnet-lite0-q8) processors+=(max)
        [ "$1" = --all ] || write=yes
        shift
        ;;
esac
[ $# -eq 2 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
here=$(realpath "$1") there=$(realpath "$2")
cd "$(dirname "$0")/.."
. cross/tools.sh

tools_for_arm64
# The static qemu takes no plugins. `bench` starts the program, for which the system calls an emulator.
packages qemu-aarch64 qemu-user
emulate aarch64
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cc -O2 -shared -fPIC -o "$dir/count.so" cross/qemu/count.c

"$here" pack models/minilm-l6.onnx -o "$dir/minilm-l6-q8" --tokenizer models/minilm-l6.tokenizer.json >/dev/null
[[ ${bases[*]} != *efficientnet* ]] || "$here" pack models/efficientnet-lite0.onnx -o "$dir/efficientnet-lite0-q8" >/dev/null

count() { # BASE PROCESSOR
    local log=$dir/$1-$2 cpu=$2
    # As in suites.sh; the usual way to sign pointers takes an emulator ten times as long.
    [ "$cpu" != max ] || cpu=max,sve128=on,sme=off,pauth-impdef=on
    qemu-aarch64 -cpu "$cpu" -d plugin -D "$log" -plugin file="$dir/count.so" \
        "$there" bench "$dir/$1" --tokens 16 --seconds 0 --steps 0 >"$log.said" 2>&1 || { cat "$log.said" >&2 && return 1; }
    sed -n 's/^instructions //p' "$log"
}

# Two at a time.
for base in "${bases[@]}"; do
    for processor in "${processors[@]}"; do
        while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n; done
        count "$base" "$processor" >"$dir/$base-$processor.count" &
    done
done
wait
for base in "${bases[@]}"; do
    for processor in "${processors[@]}"; do
        printf '%s\t%s\t%s\n' "$base" "$processor" "$(cat "$dir/$base-$processor.count")"
    done
done >"$dir/counts.tsv"
[ -z "$write" ] || { ! grep -vP '\t[0-9]+$' "$dir/counts.tsv" && cp "$dir/counts.tsv" cross/counts.tsv; }
awk -F '\t' '
    NR == FNR { before[$1, $2] = $3; next }
    $3 !~ /^[0-9]+$/ || !before[$1, $2] { print "not counted, or not in cross/counts.tsv: " $0; bad = 1; next }
    {
        share = $3 / before[$1, $2]
        printf "%-22s %-11s %12.0f instructions, %.3f of what is written down\n", $1, $2, $3, share
        if (share > 1.02) bad = 1
        if (share < 0.98) print "    less than before: write it down (cross/count.sh --write)"
    }
    END { exit bad }' cross/counts.tsv "$dir/counts.tsv"
