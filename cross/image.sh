#!/usr/bin/env bash
# Makes a container image for amd64, arm64 and armv7 of the static programs and nothing else, and tries it.
#
#   cross/image.sh [--no-build] [amd64|arm64|armv7]…    all three; into target/packages
#
# On a Debian 12 machine, as root; installs what is missing. There is no base image: each holds the program,
# a configuration and two empty folders. Each is run by podman, under emulation where it is for another
# processor: a model is packed, the page answers, nothing but /data is written. The same programs give the
# same bytes.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/tools.sh

build=yes
if [ "${1:-}" = --no-build ]; then build='' && shift; fi
[ $# -gt 0 ] || set -- amd64 arm64 armv7
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
out=$PWD/target/packages
mkdir -p "$out"
packages buildah buildah
# netavark and aardvark-dns: podman's networks.
packages podman podman crun netavark aardvark-dns
most_bytes=30000000
name=localhost/offshoot
made=$(git log -1 --format=%ct)
# In a folder of its own, of the kind of storage that every kernel and file system has.
storage=$(mktemp -d)
export STORAGE_DRIVER=vfs CONTAINERS_STORAGE_CONF=$storage/storage.conf
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' "$storage" "$storage" \
    >"$CONTAINERS_STORAGE_CONF"
finish() {
    podman rm --all --force --time 0 >/dev/null 2>&1 || true
    rm -rf "$storage"
}
trap finish EXIT

image() { # ARCHITECTURE TARGET PROGRAM
    local arch=$1 variant=() container tree
    case $arch in
        arm64) variant=(--variant v8) ;;
        armv7) arch=arm variant=(--variant v7) ;;
    esac
    tree=$(mktemp -d -p "$storage")
    install -D -m 755 "$3" "$tree/offshoot"
    install -D -m 644 cross/container/offshoot.toml "$tree/etc/offshoot/offshoot.toml"
    install -D -m 644 -t "$tree/licences" LICENSE-APACHE LICENSE-MIT
    install -d -m 1777 "$tree/tmp"
    # The user has no name: 10001 is nobody's on usual hosts.
    install -d -m 750 -o 10001 -g 10001 "$tree/data"
    container=$(buildah from scratch)
    buildah copy --quiet "$container" "$tree" / >/dev/null
    buildah copy --quiet --chown 10001:10001 --chmod 750 "$container" "$tree/data" /data >/dev/null
    buildah config --arch "$arch" "${variant[@]}" --os linux --user 10001:10001 --workingdir /data \
        --env OFFSHOOT_HOST=unix:///data/offshoot.sock --env MALLOC_ARENA_MAX=1 \
        --volume /data --port 8733/tcp --entrypoint '["/offshoot"]' \
        --cmd 'serve --config /etc/offshoot/offshoot.toml' --stop-signal SIGTERM \
        --label org.opencontainers.image.title=offshoot \
        --label "org.opencontainers.image.version=$version" \
        --label 'org.opencontainers.image.licenses=MIT OR Apache-2.0' "$container"
    buildah commit --quiet --rm --format oci --timestamp "$made" "$container" "$name:$1" >/dev/null
}

# What a person does first, with nothing writable but the volume.
try() { # ARCHITECTURE
    local run=(podman run --network host --read-only --cap-drop all --security-opt no-new-privileges
        --cgroups disabled --volume "offshoot-$1:/data")
    local answer token page
    "${run[@]}" --rm --volume "$PWD/models:/models:ro" "$name:$1" pack /models/tiny/mlp.onnx -o /data/model.base
    "${run[@]}" --detach --name "offshoot-$1" "$name:$1" >/dev/null
    for _ in $(seq 60); do
        podman exec "offshoot-$1" /offshoot status >/dev/null 2>&1 && break
        sleep 1
    done
    podman exec "offshoot-$1" /offshoot status >/dev/null || { podman logs "offshoot-$1" >&2 && return 1; }
    token=$(podman exec "offshoot-$1" /offshoot token add trial --role answer 2>/dev/null)
    answer=$(curl -sS -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $token" http://127.0.0.1:8733/v1/status)
    page=$(curl -sS http://127.0.0.1:8733/login)
    grep -q '<form' <<<"$page" || { echo "the page says: $page" >&2 && return 1; }
    [ "$answer" = 200 ] && [ "$(curl -sS -o /dev/null -w '%{http_code}' http://127.0.0.1:8733/v1/status)" = 401 ]
    podman stop --time 30 "offshoot-$1" >/dev/null
    [ "$(podman inspect --format '{{.State.ExitCode}}' "offshoot-$1")" = 0 ]
    podman rm "offshoot-$1" >/dev/null
    echo "$name:$1: packs a model, answers with a token alone, shows the page, ends by itself"
}

images=()
for arch in "$@"; do
    case $arch in
        amd64) target=x86_64-unknown-linux-musl ;;
        arm64) target=aarch64-unknown-linux-musl && emulate aarch64 ;;
        armv7) target=armv7-unknown-linux-musleabihf && emulate arm ;;
        *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    esac
    [ -z "$build" ] || release_build "$target" --profile dist
    program=$CARGO_TARGET_DIR/$target/dist/offshoot
    check_release "$target" "$program"
    image "$arch" "$target" "$program"
    try "$arch"
    images+=("$name:$arch")
done

# One name for all processors; whoever pulls or loads it gets his own.
buildah manifest create "$name:$version" "${images[@]}" >/dev/null
rm -rf "$out/offshoot-$version.oci"
buildah manifest push --quiet --all "$name:$version" "oci:$out/offshoot-$version.oci:$version"
for image in "${images[@]}"; do
    file=$out/offshoot-$version-${image##*:}.oci.tar
    rm -f "$file"
    buildah push --quiet "$image" "oci-archive:$file:$name:$version"
    size=$(stat -c %s "$file")
    echo "$file: $size bytes (at most $most_bytes)"
    [ "$size" -le $most_bytes ]
done
