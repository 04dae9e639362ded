#!/usr/bin/env bash
# Holds what a program file promises: its processor, the oldest glibc that it runs on, its kernels.
#
#   cross/check-binary.sh --arch aarch64|armv7|x86_64 [--glibc 2.31 | --static] FILE
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
    local arch='' floor='' static='' file=''
    while [ $# -gt 0 ]; do
        case $1 in
            --arch) arch=$2 && shift 2 ;;
            --glibc) floor=$2 && shift 2 ;;
            --static) static=yes && shift ;;
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
        # No pipe: one that grep closes early would count as a failure, and pass the file.
        grep -q INTERP <<<"$(readelf -lW "$file")" &&
            fail "'$file' asks for a loader: it is not static"
        grep NEEDED <<<"$(readelf -dW "$file")" && fail "'$file' needs libraries: it is not static"
        needed=none
    elif [ -n "$floor" ]; then
        [ -n "$needed" ] || fail "'$file' needs no glibc: is it static?"
        [ "$(printf '%s\n%s\n' "$needed" "$floor" | sort -V | tail -1)" = "$floor" ] ||
            fail "'$file' needs glibc $needed, and may need $floor at most"
    fi
    # A kernel's name lies in the table that points to its code. The last of aarch64 is tract's, whose
    # build drops it in silence where the assembler is older than binutils 2.30.
    local names='portable' name
    [ "$arch" != aarch64 ] || names='neon neon-dotprod neon-i8mm portable arm64simd_mmm_i32_8x8_dot'
    [ "$arch" != x86_64 ] || names='avx512vnni avx512 avx2 portable'
    for name in $names; do
        grep -qaF "$name" "$file" || fail "'$file' lacks the kernels '$name'"
    done
    echo "$file: $machine, glibc ${needed:-none}, kernels $names, $(stat -c %s "$file") bytes"
}

# Every check must be able to fail.
self_test() {
    local here
    here=$(realpath "$0")
    dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
    cat >"$dir/good.c" <<'C'
const char names[] __attribute__((used)) =
    "neon neon-dotprod neon-i8mm portable arm64simd_mmm_i32_8x8_dot";
void _start(void) { for (;;); }
C
    local gcc=aarch64-linux-gnu-gcc
    $gcc -nostdlib -static -o "$dir/good" "$dir/good.c"
    sed 's/neon-i8mm/neon-xxxx/' "$dir/good" >"$dir/nameless"
    sed 's/8x8_dot/8x8_xxx/' "$dir/good" >"$dir/slow"
    printf 'int main(void) { return 0; }' >"$dir/main.c"
    # Debian 12's own start code needs 2.34.
    $gcc -o "$dir/new" "$dir/main.c"
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
    must_fail "lacks the kernels 'neon-i8mm'" --arch aarch64 --static "$dir/nameless"
    must_fail "needs glibc 2.34" --arch aarch64 --glibc 2.31 "$dir/new"
    must_fail "it is not static" --arch aarch64 --static "$dir/new"
    must_fail "is it static" --arch aarch64 --glibc 2.31 "$dir/good"
}

case ${1:-} in
    --self-test) self_test ;;
    --*) check "$@" ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
