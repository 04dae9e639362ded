# Installs what the scripts of this folder need, on a Debian 12 machine, as root. Sourced.

# All that turns Rust into programs for arm64, and runs them.
tools_for_arm64() {
    if ! { [ -x /usr/bin/rustc ] && command -v qemu-aarch64-static aarch64-linux-gnu-g++ &&
        [ -d /usr/lib/rustlib/aarch64-unknown-linux-gnu ]; } >/dev/null; then
        dpkg --add-architecture arm64
        apt-get update -q
        apt-get install -yq --no-install-recommends rustc-web libstd-rust-web-dev:arm64 \
            gcc-aarch64-linux-gnu g++-aarch64-linux-gnu qemu-user-static
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
tools_zig() {
    command -v cargo-zigbuild >/dev/null ||
        pip install --quiet --root-user-action=ignore ziglang==0.17.1 cargo-zigbuild==0.24.0
}

# Rust's library as source, for targets that Debian has no compiled one for.
tools_std_source() {
    [ -d /usr/lib/rustlib/src/rust/library ] || {
        apt-get update -q
        apt-get install -yq --no-install-recommends rust-web-src
    }
}

# The C side of armv7, and its emulator.
tools_for_armv7() {
    command -v arm-linux-gnueabihf-gcc qemu-arm-static >/dev/null || {
        apt-get update -q
        apt-get install -yq --no-install-recommends gcc-arm-linux-gnueabihf \
            g++-arm-linux-gnueabihf qemu-user-static
    }
}

# Has the kernel start programs for arm64 through qemu, so that a program under test can start
# itself again; fails where the kernel does not let us.
register_qemu() {
    local at=/proc/sys/fs/binfmt_misc
    [ -e $at/register ] || mount -t binfmt_misc none $at 2>/dev/null || return 1
    local name=$1 machine=$2
    [ -e "$at/qemu-$name" ] && return 0
    local class='\x02'
    [ "$name" = arm ] && class='\x01'
    local magic="\\x7fELF$class\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00$machine\\x00"
    local mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    # F: the emulator is opened now, so it also works inside a chroot.
    printf '%s' ":qemu-$name:M::$magic:$mask:/usr/bin/qemu-$name-static:F" >$at/register 2>/dev/null
}
