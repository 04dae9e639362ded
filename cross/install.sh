#!/usr/bin/env bash
# Installs the arm64 package into a Debian 11 (glibc 2.31, the oldest that it is for) for arm64, in a
# folder, and uses it there under emulation: doctor, manual page, demo, daemon, removal.
#
#   cross/install.sh [PACKAGE]    target/packages/offshoot_*_arm64.deb by default
#
# As root on Debian 12; debootstrap makes the system once, in target/arm64-root.
set -euo pipefail
[ $# -eq 0 ] || set -- "$(realpath -m "$1")"
cd "$(dirname "$0")/.."
. cross/tools.sh

# Mounts of this script are seen by nobody else and go when it ends.
[ -n "${OFFSHOOT_OWN_MOUNTS:-}" ] ||
    exec unshare --mount --propagation private env OFFSHOOT_OWN_MOUNTS=1 "$PWD/cross/install.sh" "$@"

suite=bullseye
root=$PWD/target/arm64-root
package=$(arm64_package "$@")
export QEMU_CPU=${QEMU_CPU:-cortex-a72} LC_ALL=C

emulate aarch64
if [ ! -e "$root/made" ]; then
    packages debootstrap debootstrap
    rm -rf "$root"
    debootstrap --arch=arm64 --variant=minbase "$suite" "$root" http://deb.debian.org/debian
    touch "$root/made"
fi
there=(chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin "QEMU_CPU=$QEMU_CPU")
inside() { "${there[@]}" "$@"; }
for at in proc dev; do
    mountpoint -q "$root/$at" || mount --bind "/$at" "$root/$at"
done

inside dpkg --purge offshoot 2>/dev/null
cp "$package" "$root/root/offshoot.deb"
inside dpkg --install /root/offshoot.deb
inside dpkg --verify offshoot
inside sh -c 'ldd --version | head -1'

# The user, the state folder, what the package brings.
inside getent passwd offshoot | grep -q ':/var/lib/offshoot:/usr/sbin/nologin$'
[ "$(inside stat -c '%a %U' /var/lib/offshoot)" = "750 offshoot" ]
for file in usr/share/man/man1/offshoot.1.gz usr/share/man/man1/offshoot-pack.1.gz \
    usr/share/bash-completion/completions/offshoot usr/lib/systemd/system/offshoot.service \
    usr/lib/sysusers.d/offshoot.conf usr/lib/tmpfiles.d/offshoot.conf etc/offshoot/offshoot.toml; do
    [ -s "$root/$file" ] || { echo "install: '$file' is missing" >&2; exit 1; }
done
zcat "$root/usr/share/man/man1/offshoot.1.gz" | grep -q 'EXIT STATUS'
inside offshoot doctor
echo "installed: $(inside offshoot --version)"

# The demo, and a base for the daemon.
mkdir -p "$root/srv/models"
cp -r models/efficientnet-lite0.onnx models/pictures models/tiny "$root/srv/models/"
inside sh -c 'cd /srv && offshoot demo --steps 5'
inside sh -c 'cd /srv && offshoot pack models/tiny/mlp.onnx -o /var/lib/offshoot/model.base'

# Not `inside`: the process to be ended would be a shell.
"${there[@]}" setpriv --reuid offshoot --regid offshoot --clear-groups \
    offshoot serve --config /etc/offshoot/offshoot.toml >"$root/root/serve.log" 2>&1 &
daemon=$!
for _ in $(seq 60); do
    if inside offshoot status >/dev/null 2>&1; then break; fi
    sleep 1
done
inside offshoot status || { cat "$root/root/serve.log" >&2; exit 1; }
kill -TERM "$daemon"
wait "$daemon"
echo "the daemon answered and ended"

inside dpkg --purge offshoot
for gone in usr/bin/offshoot var/lib/offshoot etc/offshoot; do
    [ ! -e "$root/$gone" ] || { echo "install: '/$gone' is still there after purge" >&2; exit 1; }
done
echo "purged: nothing is left"
