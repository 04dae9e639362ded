#!/usr/bin/env bash
# Makes a container image for amd64, arm64 and armv7 of the static programs and nothing else, and tries it; and a
# Home Assistant app of those for amd64 and arm64.
#
#   cross/image.sh [--no-build] [amd64|arm64|armv7]…    all three; into target/packages
#
# On a Debian 12 machine, as root; installs what is missing. There is no base image: each holds the program,
# a configuration and an empty folder. Each is run by podman, under emulation where it is for another
# processor (docs/CONTAINER.md). The same programs give the same bytes.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/tools.sh

# Mounts of this script are seen by nobody else and go when it ends.
[ -n "${OFFSHOOT_OWN_MOUNTS:-}" ] ||
    exec unshare --mount --propagation private env OFFSHOOT_OWN_MOUNTS=1 "$PWD/cross/image.sh" "$@"

build=yes
if [ "${1:-}" = --no-build ]; then build='' && shift; fi
[ $# -gt 0 ] || set -- amd64 arm64 armv7
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
out=$PWD/target/packages
mkdir -p "$out"
packages buildah buildah
packages crun podman crun
packages curl curl
# crun takes no machine that has both versions of control groups.
[ ! -d /sys/fs/cgroup/cpuset ] || ! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified

most_bytes=30000000
name=localhost/offshoot
app=cross/container/homeassistant
user=10001
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

image() { # ARCHITECTURE PROGRAM
    local arch=$1 variant=() container tree
    case $arch in
        arm64) variant=(--variant v8) ;;
        armv7) arch=arm variant=(--variant v7) ;;
    esac
    container=$(buildah from scratch)
    tree=$(buildah mount "$container")
    install -D -m 755 "$2" "$tree/offshoot"
    install -D -m 644 cross/container/offshoot.toml "$tree/etc/offshoot/offshoot.toml"
    install -D -m 644 -t "$tree/licences" LICENSE-APACHE LICENSE-MIT
    # A volume begins as this folder is. Its user has no name, and is nobody's on usual hosts.
    install -d -m 750 -o $user -g $user "$tree/data"
    find "$tree" -exec touch -d "@$made" {} +
    buildah umount "$container" >/dev/null
    buildah config --arch "$arch" "${variant[@]}" --os linux --user $user:$user --workingdir /data \
        --env OFFSHOOT_HOST=unix:///data/offshoot.sock --volume /data --port 8733/tcp \
        --entrypoint '["/offshoot"]' --cmd 'serve --config /etc/offshoot/offshoot.toml' --stop-signal SIGTERM \
        --label org.opencontainers.image.title=offshoot \
        --label "org.opencontainers.image.version=$version" \
        --label 'org.opencontainers.image.licenses=MIT OR Apache-2.0' "$container"
    buildah commit --quiet --rm --format oci --timestamp "$made" "$container" "$name:$1" >/dev/null
}

# podman with a container that may write to nothing but the volume, and has no rights. Without control groups and
# with limits that are below any host's: it may itself run in a container.
run() { # ARGS…
    podman run --network host --read-only --read-only-tmpfs=false --cap-drop all \
        --security-opt no-new-privileges --cgroups disabled --ulimit nofile=1024:1024 --ulimit nproc=4096:4096 "$@"
}

# Waits until the daemon of a container answers, or says why it does not.
await() { # CONTAINER
    for _ in $(seq 120); do
        ! podman exec "$1" /offshoot status >/dev/null 2>&1 || return 0
        sleep 0.5
    done
    podman logs "$1" >&2
    echo "the daemon in $1 does not answer" >&2
    return 1
}

expect() { # WHAT EXPECTED FOUND
    [ "$2" = "$3" ] || { echo "$1: expected '$2', found '$3'" >&2 && return 1; }
}

http() { # PATH ARGS…
    curl -sS -o /dev/null -w '%{http_code}' "${@:2}" "http://127.0.0.1:8733$1"
}

# What a person does first, with nothing writable but the volume.
try() { # ARCHITECTURE
    local at=offshoot-$1 answer token process
    run --rm --volume "$at:/data" "$name:$1" --version
    run --rm --volume "$at:/data" --volume "$PWD/models:/models:ro" "$name:$1" \
        pack /models/minilm-l6.onnx --tokenizer /models/minilm-l6.tokenizer.json -o /data/model.base
    run --detach --name "$at" --volume "$at:/data" "$name:$1" >/dev/null
    await "$at"
    process=/proc/$(podman inspect --format '{{.State.Pid}}' "$at")
    expect 'its user' "$user $user $user $user" "$(sed -n 's/^Uid:\t//p' "$process/status" | tr '\t' ' ')"
    expect 'its rights' 0000000000000000 "$(sed -n 's/^CapEff:\t//p' "$process/status")"
    expect 'its root' ro "$(awk '$5 == "/" {print $6}' "$process/mountinfo" | cut -d, -f1)"
    podman exec "$at" /offshoot feedback --adapter home --label on --text 'lamp on' >/dev/null
    podman exec "$at" /offshoot feedback --adapter home --label open --text 'door open' >/dev/null
    token=$(podman exec "$at" /offshoot token add trial --role answer 2>/dev/null)
    expect 'without a token' 401 "$(http /v1/status)"
    expect 'with a token' 200 "$(http /v1/status -H "Authorization: Bearer $token")"
    grep -q '<form' <<<"$(curl -sS http://127.0.0.1:8733/login)"
    expect 'the login' 303 "$(http /login --data-urlencode "token=$token" -c "$storage/cookies" -H "Origin: http://127.0.0.1:8733")"
    expect 'the page' 200 "$(http / -b "$storage/cookies")"
    podman stop --time 30 "$at" >/dev/null
    expect 'its end' 0 "$(podman inspect --format '{{.State.ExitCode}}' "$at")"
    # What was taught is there after a restart.
    podman start "$at" >/dev/null
    await "$at"
    for _ in $(seq 20); do
        answer=$(podman exec "$at" /offshoot predict --adapter home --text 'door open')
        if grep -q open <<<"$answer"; then break; fi
        sleep 0.5
    done
    grep -q open <<<"$answer" || { echo "after a restart it says: $answer" >&2 && return 1; }
    podman rm --force --time 30 "$at" >/dev/null
    echo "$name:$1 packs a model, learns, answers with a token alone, shows the page, writes to /data alone, ends by itself"
}

# The app as Home Assistant makes and starts it: root of the container, /config read-only.
app() { # PROGRAMS' ARCHITECTURES…
    local tree=$storage/offshoot arch
    mkdir "$tree"
    sed "s/@VERSION@/$version/" $app/config.yaml >"$tree/config.yaml"
    cp $app/Dockerfile $app/offshoot.toml "$tree"
    sed -n '/^## As an app/,/^## /p' docs/CONTAINER.md | sed '1s/.*/# Offshoot/; $d' >"$tree/DOCS.md"
    for arch in "$@"; do
        case $arch in
            amd64) cp "$CARGO_TARGET_DIR/x86_64-unknown-linux-musl/dist/offshoot" "$tree/offshoot-amd64" ;;
            arm64) cp "$CARGO_TARGET_DIR/aarch64-unknown-linux-musl/dist/offshoot" "$tree/offshoot-aarch64" ;;
        esac
    done
    if [ -e "$tree/offshoot-amd64" ]; then
        buildah bud --quiet --isolation chroot --build-arg BUILD_ARCH=amd64 --tag "$name:app" "$tree" >/dev/null
        mkdir "$storage/config" "$storage/data"
        "$tree/offshoot-amd64" pack models/tiny/mlp.onnx -o "$storage/config/model.base"
        cp $app/offshoot.toml "$storage/config"
        (umask 077 && echo 'a token of the trial' | tr ' ' - >"$storage/config/token")
        run --detach --name offshoot-app --volume "$storage/config:/config:ro" --volume "$storage/data:/data" \
            "$name:app" >/dev/null
        await offshoot-app
        expect 'a foreign name' 403 "$(http /login)"
        expect 'the app' 200 "$(http /v1/status -H 'Host: homeassistant.local:8733' -H 'Authorization: Bearer a-token-of-the-trial')"
        podman rm --force --time 30 offshoot-app >/dev/null
    fi
    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$made" -C "$storage" -c offshoot |
        gzip -9n >"$out/offshoot-$version-homeassistant.tar.gz"
}

images=()
for arch in "$@"; do
    case $arch in
        amd64) target=x86_64-unknown-linux-musl ;;
        arm64) target=aarch64-unknown-linux-musl && emulate aarch64 ;;
        armv7) target=armv7-unknown-linux-musleabihf && emulate arm ;;
        *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    esac
    [ -z "$build" ] || release_build "$target" --profile dist
    program=$CARGO_TARGET_DIR/$target/dist/offshoot
    check_release "$target" "$program"
    image "$arch" "$program"
    try "$arch"
    images+=("$name:$arch")
done

# The same layout gives the same bytes: archive FILE, of the folder "$storage/layout".
archive() {
    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$made" --mode=go-w -C "$storage/layout" -cf "$1" .
    rm -rf "$storage/layout"
}

# One name for all processors; whoever pulls it gets his own.
buildah manifest create "$name:$version" "${images[@]}" >/dev/null
buildah manifest push --quiet --all "$name:$version" "oci:$storage/layout:$version" >/dev/null
archive "$out/offshoot-$version.oci.tar"
for image in "${images[@]}"; do
    buildah push --quiet "$image" "oci:$storage/layout:$name:latest"
    file=$out/offshoot-$version-${image##*:}.oci.tar
    archive "$file"
    size=$(stat -c %s "$file")
    echo "$file: $size bytes (at most $most_bytes)"
    [ "$size" -le $most_bytes ]
done
app "$@"
ls -l "$out"
