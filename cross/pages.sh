#!/usr/bin/env bash
# Opens a base with pages of 4, 16 and 64 KiB forced, as the emulator tells them to the program.
#
#   cross/pages.sh AARCH64_BINARY
#
# The emulator does not enforce alignment, so its record of system calls is read: what is mapped of
# a base starts at a multiple of the page, and answers are the same.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/tools.sh

binary=${1:?usage: cross/pages.sh AARCH64_BINARY}
emulate aarch64
export QEMU_CPU=cortex-a72
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export OFFSHOOT_STORE=$dir/store

picture=models/pictures/wardrobe/test/sneaker/sneaker-001.png
"$binary" pack models/tiny/convnet.onnx -o "$dir/net.base" --image 32 >/dev/null
python3 - "$dir/net.base" <<'P'
# The offsets of docs/FORMAT.md: at byte 64 a count, then entries of 50 bytes: kind, flags, offset, length, hash.
import struct, sys
data = open(sys.argv[1], "rb").read()
count = data[64]
assert 7 <= count <= 64, count
for i in range(count):
    kind, flags, offset, length = struct.unpack_from("<BBQQ", data, 65 + 50 * i)
    assert i >= 7 or kind == i + 1, (i, kind)
    assert offset > 0 and offset % 65536 == 0 and flags <= 1, (kind, flags, offset)
print("every section starts at a multiple of 65536")
P
for page in 4096 16384 65536; do
    seen=$(qemu-aarch64-static -p $page "$binary" --json doctor --state "$dir" |
        sed -n 's/^ *"page_bytes": \([0-9]*\),$/\1/p')
    [ "$seen" = $page ] || { echo "pages: forced $page, doctor sees $seen" >&2; exit 1; }
    qemu-aarch64-static -p $page -strace -D "$dir/calls" "$binary" run "$dir/net.base" \
        --image "$picture" --output "$dir/$page" >/dev/null
    python3 - "$dir/calls" $page <<'P'
import re, sys
calls, page = open(sys.argv[1], errors="replace").read(), int(sys.argv[2])
descriptor = re.search(r'openat\([^\n]*net\.base"[^\n]* = (\d+)', calls).group(1)
after = calls[calls.index('net.base"') :]
call = rf"mmap\((?:NULL|0x[0-9a-f]+),(\d+),PROT_READ,MAP_SHARED,{descriptor},(0x[0-9a-f]+|\d+)\) = (0x[0-9a-f]+)"
maps = [(int(at, 16), int(size), int(offset, 0)) for size, offset, at in re.findall(call, after)]
assert maps, "the base was not mapped"
for at, size, offset in maps:
    assert at % page == 0 and offset % page == 0, (hex(at), offset)
advised = [int(at, 16) for at in re.findall(r"madvise\((0x[0-9a-f]+),", after)]
inside = [a for a in advised if any(at <= a < at + size for at, size, _ in maps)]
assert all(a % page == 0 for a in inside), list(map(hex, inside))
print(f"pages of {page}: {len(maps)} mapping, {len(inside)} pieces of advice, all aligned")
P
    [ $page = 4096 ] || diff -r "$dir/4096" "$dir/$page"
done
echo "the answers are the same"
