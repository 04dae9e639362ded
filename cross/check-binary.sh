#!/usr/bin/env bash
# Holds what a program file promises: its processor, the oldest glibc that it runs on, the libraries
# that it needs, its size, that it is stripped, and of its kernels those that have a name of their own.
# (Which are compiled in says `offshoot doctor`: see check_release in tools.sh.)
#
#   cross/check-binary.sh --arch aarch64|armv7|x86_64 [--glibc 2.31 | --static] [--max-bytes N] FILE
#   cross/check-binary.sh --self-test
#
# Fails on the first fault. Needs readelf (any architecture's).
set -euo pipefail

fail() { echo "check-binary: $*" >&2; exit 1; }

# The highest GLIBC_ version that the file's dynamic symbols need; nothing for a static one.
needed_glibc() {
    local versions
    versions=$(readelf --version-info --wide "$1" 2>/dev/null) || fail "'$1' can't be read"
    # Packed relative relocations: the loader of glibc 2.36 is the first that knows them.
    versions=${versions//GLIBC_ABI_DT_RELR/GLIBC_2.36}
    grep -o 'GLIBC_[0-9.]*' <<<"$versions" | sed 's/GLIBC_//' | sort -uV | tail -1 || true
}

check() {
    local arch='' floor='' static='' file='' most=''
    while [ $# -gt 0 ]; do
        case $1 in
            --arch) arch=$2 && shift 2 ;;
            --glibc) floor=$2 && shift 2 ;;
            --static) static=yes && shift ;;
            --max-bytes) most=$2 && shift 2 ;;
            *) file=$1 && shift ;;
        esac
    done
    [ -f "$file" ] || fail "no such file: '$file'"
    local machine
    machine=$(readelf -h "$file" | sed -n 's/ *Machine: *//p')
    case $arch:$machine in
        aarch64:AArch64 | armv7:ARM | x86_64:*X86-64*) ;;
        *) fail "'$file' is for '$machine', not for $arch" ;;
    esac
    local needed
    needed=$(needed_glibc "$file")
    if [ -n "$static" ]; then
        # No pipes here and below: one that grep closes early would count as a failure, and pass the file.
        grep -q INTERP <<<"$(readelf -lW "$file")" &&
            fail "'$file' asks for a loader: it is not static"
        grep NEEDED <<<"$(readelf -dW "$file")" && fail "'$file' needs libraries: it is not static"
        needed=none
    elif [ -n "$floor" ]; then
        [ -n "$needed" ] || fail "'$file' needs no glibc: is it static?"
        [ "$(printf '%s\n%s\n' "$needed" "$floor" | sort -V | tail -1)" = "$floor" ] ||
            fail "'$file' needs glibc $needed, and may need $floor at most"
        local library
        for library in $(readelf -dW "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
            # What the package libc6 brings, and libgcc-s1, on which that depends.
            case $library in
                libc.so.6 | libm.so.6 | libdl.so.2 | libpthread.so.0 | librt.so.1) ;;
                libgcc_s.so.1 | ld-linux-*) ;;
                *) fail "'$file' needs the library '$library'" ;;
            esac
        done
    fi
    # The last is tract's, whose build drops it in silence where the assembler is older than binutils
    # 2.30.
    local names='' name
    [ "$arch" != aarch64 ] || names='neon-dotprod arm64simd_mmm_i32_8x8_dot'
    for name in $names; do
        grep -qaF "$name" "$file" || fail "'$file' lacks the kernels '$name'"
    done
    grep -qF .symtab <<<"$(readelf -SW "$file")" && fail "'$file' is not stripped"
    local size
    size=$(stat -c %s "$file")
    [ "$size" -le "${most:-$size}" ] || fail "'$file' has $size bytes, may have $most"
    echo "$file: $machine, glibc ${needed:-none}${names:+, kernels $names}, $size bytes"
}

# Every check must be able to fail.
self_test() {
    local here
    here=$(realpath "$0")
    dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
    cat >"$dir/good.c" <<'C'
const char names[] __attribute__((used)) =
    "neon-dotprod arm64simd_mmm_i32_8x8_dot";
void _start(void) { for (;;); }
C
    local gcc=aarch64-linux-gnu-gcc
    $gcc -nostdlib -static -s -o "$dir/good" "$dir/good.c"
    $gcc -nostdlib -static -o "$dir/unstripped" "$dir/good.c"
    sed 's/neon-dotprod/neon-xxxxxxx/' "$dir/good" >"$dir/dotless"
    sed 's/8x8_dot/8x8_xxx/' "$dir/good" >"$dir/slow"
    printf 'int main(void) { return 0; }' >"$dir/main.c"
    # Debian 12's own start code needs 2.34.
    $gcc -o "$dir/new" "$dir/main.c"
    printf 'int other(void) { return 0; }' >"$dir/other.c"
    $gcc -shared -nostdlib -Wl,-soname,libother.so.1 -o "$dir/libother.so" "$dir/other.c"
    printf 'int other(void); int main(void) { return other(); }' >"$dir/main.c"
    $gcc -o "$dir/needy" "$dir/main.c" -L"$dir" -lother
    must_fail() {
        local words=$1 output
        shift
        if output=$("$here" "$@" 2>&1); then fail "self-test: '$*' passed: $output"; fi
        grep -qF "$words" <<<"$output" || fail "self-test: '$*' said '$output', not '$words'"
        echo "as it must, fails: $output"
    }
    "$here" --arch aarch64 --static "$dir/good"
    must_fail "not for x86_64" --arch x86_64 --static "$dir/good"
    must_fail "lacks the kernels 'arm64simd_mmm_i32_8x8_dot'" --arch aarch64 --static "$dir/slow"
    must_fail "lacks the kernels 'neon-dotprod'" --arch aarch64 --static "$dir/dotless"
    must_fail "is not stripped" --arch aarch64 --static "$dir/unstripped"
    must_fail "may have 100" --arch aarch64 --static --max-bytes 100 "$dir/good"
    must_fail "needs the library 'libother.so.1'" --arch aarch64 --glibc 2.99 "$dir/needy"
    must_fail "needs glibc 2.34" --arch aarch64 --glibc 2.31 "$dir/new"
    must_fail "it is not static" --arch aarch64 --static "$dir/new"
    must_fail "is it static" --arch aarch64 --glibc 2.31 "$dir/good"
}

case ${1:-} in
    --self-test) self_test ;;
    --*) check "$@" ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
