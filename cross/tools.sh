# shellcheck shell=bash
# What the scripts of this folder share: installing what they need on a Debian 12 machine, as root,
# and building. Sourced in the project's root.

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)

# The oldest glibc that our programs run on: Raspberry Pi OS 11, JetPack 5.
glibc_floor=2.31

# Installs Debian packages unless PROGRAM is there: packages PROGRAM PACKAGE…
packages() {
    command -v "$1" >/dev/null && return
    shift
    apt-get update -q
    apt-get install -yq --no-install-recommends "$@"
}

# The arm64 package that a script was given, as a whole path, else the one that cross/package.sh makes.
arm64_package() { # [WHOLE PATH]
    local package=${1-$PWD/target/packages/offshoot_$version-1_arm64.deb}
    if [ ! -e "$package" ]; then
        echo "there is no '$package': cross/package.sh arm64 makes one" >&2
        return 1
    fi
    echo "$package"
}

# rustup's library for a target, unless told to stay away from it. Asks the network only where nothing
# is there, nor Debian's FOLDER: rustup_library TARGET FOLDER
rustup_library() {
    [ -z "${OFFSHOOT_BUILD_STD:-}" ] || return 1
    ! rustup target list --installed 2>/dev/null | grep -xF "$1" >/dev/null || return 0
    [ -d "$2" ] || ! timeout 60 rustup target add "$1" || return 0
    echo "rustup has no library for $1 here: Debian's is taken"
    return 1
}

# All that turns Rust into programs for arm64 with glibc, and runs them: rustup's library, else
# Debian's with Debian's compiler.
tools_for_arm64() {
    unset RUSTC
    packages aarch64-linux-gnu-g++ gcc-aarch64-linux-gnu g++-aarch64-linux-gnu
    packages qemu-aarch64-static qemu-user-static
    local library=/usr/lib/rustlib/aarch64-unknown-linux-gnu
    ! rustup_library aarch64-unknown-linux-gnu $library || return 0
    if ! { [ -x /usr/bin/rustc ] && [ -d $library ]; }; then
        dpkg --add-architecture arm64
        apt-get update -q
        apt-get install -yq --no-install-recommends rustc-web libstd-rust-web-dev:arm64
    fi
    export RUSTC=/usr/bin/rustc
}

# Debian's C compiler as linker: quicker than Zig, but what it links needs this machine's glibc.
# Not before `cargo zigbuild`, which leaves a linker alone that it finds named.
link_with_gcc_for_arm64() {
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
    export CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++
}

# Zig as a linker that knows glibc's older versions and musl.
# In an environment of its own: Debian's Python takes no packages beside its own.
tools_zig() {
    command -v cargo-zigbuild >/dev/null && return
    if [ ! -e target/tools/made ]; then
        python3 -c 'import ensurepip' 2>/dev/null || {
            apt-get update -q
            apt-get install -yq --no-install-recommends python3-venv
        }
        python3 -m venv --clear target/tools
        target/tools/bin/pip install --quiet ziglang==0.17.1 cargo-zigbuild==0.24.0
        touch target/tools/made
    fi
    PATH=$PWD/target/tools/bin:$PATH
}

tools_cargo_deb() {
    command -v cargo-deb >/dev/null || cargo install --locked --quiet cargo-deb@3.8.0
}

# Rust's library for TARGET: compiled, from rustup, or else from Debian's source. Sets RUSTC and
# `std_arguments`, what cargo needs in addition.
library_for() {
    std_arguments=()
    unset RUSTC RUSTC_BOOTSTRAP
    local source=/usr/lib/rustlib/src/rust/library
    ! rustup_library "$1" $source || return 0
    if ! { [ -x /usr/bin/rustc ] && [ -d $source ]; }; then
        apt-get update -q
        apt-get install -yq --no-install-recommends rustc-web rust-web-src
    fi
    export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
    std_arguments=("-Zbuild-std=std,panic_unwind")
    # Zig brings musl's start files.
    case $1 in *-musl) export RUSTFLAGS="-C link-self-contained=no" ;; esac
}

# A program for TARGET, in $CARGO_TARGET_DIR, unchecked: release_build TARGET ARGS…, of which one
# names the profile.
release_build() (
    target=$1 suffix=.$glibc_floor
    shift
    tools_zig
    std_arguments=()
    case $target in
        aarch64-unknown-linux-gnu) tools_for_arm64 ;;
        *-musl) suffix='' && library_for "$target" ;;
        *) library_for "$target" ;;
    esac
    cargo zigbuild --locked --target "$target$suffix" --bin offshoot "${std_arguments[@]}" "$@"
)

# Holds a release program to what its target promises: check_release TARGET FILE ARGS…, with the
# ARGS of check-binary.sh. It is also started, under emulation where it is for another processor.
check_release() {
    local target=$1 file=$2 arch=${1%%-*} compiled start=() seen
    shift 2
    case $target in
        *-musl) cross/check-binary.sh --arch "$arch" --static "$@" "$file" ;;
        *) cross/check-binary.sh --arch "$arch" --glibc $glibc_floor "$@" "$file" ;;
    esac
    case $arch in
        aarch64)
            compiled='neon-dotprod neon portable'
            [ "$(uname -m)" = aarch64 ] || { emulate aarch64 && start=(qemu-aarch64-static -cpu max); }
            ;;
        armv7)
            compiled='portable'
            emulate arm && start=(qemu-arm-static)
            ;;
        x86_64) compiled='avx512vnni avx512 avx2 portable' ;;
    esac
    # Exit code 1 is a fault that doctor found in this machine.
    seen=$("${start[@]}" "$file" --json doctor --state / || [ $? = 1 ])
    seen=$(python3 -c 'import json, sys; print(*json.load(sys.stdin)["kernels"]["compiled"])' <<<"$seen")
    [ "$seen" = "$compiled" ] || {
        echo "'$file' has the kernels '$seen', not '$compiled'" >&2
        return 1
    }
    echo "$file starts; kernels: $seen"
}

# Has the kernel start programs of MACHINE (aarch64, arm) through qemu, so that a program under
# test can start itself again, also in a chroot; says so and fails where the kernel does not let us.
emulate() {
    packages "qemu-$1-static" qemu-user-static
    # The C library that dynamic programs ask for.
    local loader=/lib/ld-linux-aarch64.so.1 debian=arm64
    if [ "$1" = arm ]; then loader=/lib/ld-linux-armhf.so.3 debian=armhf; fi
    [ -e $loader ] || {
        dpkg --add-architecture $debian
        apt-get update -q
        apt-get install -yq --no-install-recommends libc6:$debian libgcc-s1:$debian
    }
    local at=/proc/sys/fs/binfmt_misc
    [ -e $at/register ] || mount -t binfmt_misc none $at 2>/dev/null || true
    [ -e "$at/qemu-$1" ] && return 0
    local class='\x02' machine='\xb7'
    if [ "$1" = arm ]; then class='\x01' machine='\x28'; fi
    local magic="\\x7fELF$class\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00$machine\\x00"
    local mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    # F: the emulator is opened now, so it also works inside a chroot.
    printf '%s' ":qemu-$1:M::$magic:$mask:/usr/bin/qemu-$1-static:F" 2>/dev/null >$at/register || {
        echo "the kernel does not let us start programs for $1 through qemu (binfmt_misc)" >&2
        return 1
    }
}
