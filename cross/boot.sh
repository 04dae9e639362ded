#!/usr/bin/env bash
# Boots a Debian for arm64 on an emulated board with its own kernel and systemd, installs the package
# there and uses it (cross/package/boot-check.sh): the daemon as the units run it, learning, watchdog,
# a power cut, removal.
#
#   cross/boot.sh [--suite SUITE] [PACKAGE]    bullseye and target/packages/offshoot_*_arm64.deb by default
#
# bullseye has systemd 247; trixie has 257, which knows every key of the units. As root on Debian 12;
# debootstrap makes the system once, in target/boot. A whole machine is emulated: eleven minutes, after
# as many for debootstrap.
set -euo pipefail
suite=bullseye
if [ "${1:-}" = --suite ]; then suite=$2 && shift 2; fi
[ $# -eq 0 ] || set -- "$(realpath -m "$1")"
cd "$(dirname "$0")/.."
. cross/tools.sh

package=$(arm64_package "$@")
root=$PWD/target/boot/$suite
cpu=${QEMU_CPU:-cortex-a76}
# Memory of a Raspberry Pi 3.
memory=1024

emulate aarch64
packages debootstrap debootstrap
packages mke2fs e2fsprogs
packages qemu-system-aarch64 qemu-system-arm
if [ ! -e "$root/made" ]; then
    rm -rf "$root"
    # What starts here starts for this machine's emulator of programs, not for the board's.
    env -u QEMU_CPU debootstrap --arch=arm64 --variant=minbase \
        --include=systemd-sysv,udev,dbus,kmod,initramfs-tools,linux-image-arm64 \
        "$suite" "$root" http://deb.debian.org/debian
    touch "$root/made"
fi

# What the board is given beside Debian.
given=$root/root/check
rm -rf "$given"
mkdir -p "$given"
cp "$package" "$given/offshoot.deb"
cp cross/package/boot-check.sh models/minilm-l6.onnx models/minilm-l6.tokenizer.json "$given/"
# Three labels of the commands, one sample a line.
python3 - models/commands.jsonl >"$given/samples" <<'P'
import json, sys
for line in open(sys.argv[1]):
    row = json.loads(line)
    if row["label"] in ("music_play", "timer", "door_lock"):
        print(row["label"], row["text"], sep="\t")
P
echo '/dev/vda / ext4 defaults 0 1' >"$root/etc/fstab"
cat >"$root/etc/systemd/system/boot-check.service" <<'U'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/bash /root/check/boot-check.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
U
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -sf ../boot-check.service "$root/etc/systemd/system/multi-user.target.wants/"

disk=$PWD/target/boot/$suite.img log=$PWD/target/boot/$suite.log
rm -f "$disk"
mke2fs -q -t ext4 -d "$root" "$disk" 3G
: >"$log"

machine=''
tail -n +1 -F "$log" 2>/dev/null &
shown=$!
trap 'kill -9 $machine $shown 2>/dev/null || true' EXIT

# Seconds that a boot may take.
longest=2400

# Until the console says WORDS (true), the machine is off or takes too long: boot WORDS ARGUMENT
boot() {
    local end=$((SECONDS + longest))
    qemu-system-aarch64 -M virt -cpu "$cpu" -smp 2 -m $memory -nographic -no-reboot -nic none \
        -kernel "$root"/boot/vmlinuz-* -initrd "$root"/boot/initrd.img-* \
        -append "root=/dev/vda rw console=ttyAMA0 quiet panic=-1 $2" \
        -drive "file=$disk,format=raw,if=virtio" -device virtio-rng-pci \
        </dev/null >>"$log" 2>&1 &
    machine=$!
    until grep -qE "$1" "$log"; do
        local why=''
        if ! kill -0 $machine 2>/dev/null; then
            # The last it said may have come since.
            ! grep -qE "$1" "$log" || return 0
            why='the machine went off'
        elif [ $SECONDS -ge $end ]; then
            why="$longest s passed"
        fi
        if [ -n "$why" ]; then
            echo "boot.sh: $why before '$1' was said, see $log" >&2
            return 1
        fi
        sleep 0.2
    done
}

boot 'acknowledged 10\b' ''
# The power is cut at any moment of the next one. What the board held in memory alone is lost; what it
# gave to its disk is kept, so a disk that loses its own cache is not shown.
sleep "0.$((RANDOM % 10))"
kill -9 $machine
wait $machine 2>/dev/null || true
acknowledged=$(grep -oE 'acknowledged [0-9]+.$' "$log" | grep -oE '[0-9]+' | tail -1)
boot 'boot-check: (all shown|failed)' "acknowledged=$acknowledged"
# It goes off by itself.
timeout 120 tail -f --pid=$machine /dev/null
grep -q 'boot-check: all shown' "$log"
