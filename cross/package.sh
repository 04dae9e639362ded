#!/usr/bin/env bash
# Builds release programs and packs them: Debian packages and a static tarball, with checksums.
#
#   cross/package.sh [--no-build] [amd64|arm64|armhf|musl]…    all four; into target/packages
#
# On a Debian 12 machine, as root; installs what is missing. Each program is checked
# (cross/check-binary.sh) and started once, under emulation where it is for another processor; the one
# for amd64 runs the demo and is held to the README's figures.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/tools.sh

build=yes
if [ "${1:-}" = --no-build ]; then build='' && shift; fi
[ $# -gt 0 ] || set -- amd64 arm64 armhf musl
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
out=$PWD/target/packages
mkdir -p "$out"

# Manual pages and completions, written by the program itself.
papers() { # PROGRAM
    rm -rf target/package
    mkdir -p target/package
    "$1" man --out target/package/man >/dev/null
    "$1" completions bash >target/package/offshoot.bash
    "$1" completions zsh >target/package/_offshoot
    "$1" completions fish >target/package/offshoot.fish
}

debian() { # TARGET PROGRAM
    papers "$2"
    tools_cargo_deb
    cargo deb --no-build --no-strip --locked --profile dist --target "$1" --output "$out"
}

tarball() { # TARGET PROGRAM
    papers "$2"
    local name=offshoot-$version-$1
    local dir=target/package/$name
    mkdir -p "$dir/completions" "$dir/systemd"
    install -m 755 "$2" "$dir/offshoot"
    cp -r target/package/man "$dir/"
    cp target/package/{offshoot.bash,_offshoot,offshoot.fish} "$dir/completions/"
    cp cross/package/offshoot.{service,socket,sysusers,tmpfiles,toml} "$dir/systemd/"
    cp README.md CHANGELOG.md LICENSE-* "$dir/"
    # The same files give the same bytes.
    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" \
        -C target/package -c "$name" | gzip -9n >"$out/$name.tar.gz"
}

for kind in "$@"; do
    case $kind in
        amd64) target=x86_64-unknown-linux-gnu ;;
        arm64) target=aarch64-unknown-linux-gnu ;;
        armhf) target=armv7-unknown-linux-gnueabihf ;;
        musl) target=aarch64-unknown-linux-musl ;;
        *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    esac
    case $kind in
        arm64 | musl) emulate aarch64 ;;
        armhf) emulate arm ;;
    esac
    [ -z "$build" ] || release_build "$target" --profile dist
    program=$CARGO_TARGET_DIR/$target/dist/offshoot
    check_release "$target" "$program"
    if [ "$kind" = amd64 ]; then
        .ci/figures "$program"
        "$program" demo --steps 8
        "$program" demo --text --steps 8
    fi
    if [ "$kind" = musl ]; then tarball "$target" "$program"; else debian "$target" "$program"; fi
done
cd "$out"
find . -maxdepth 1 \( -name '*.deb' -o -name '*.tar.gz' \) -printf '%f\n' | sort |
    xargs sha256sum >SHA256SUMS
cat SHA256SUMS
