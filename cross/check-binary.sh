#!/usr/bin/env bash
# Holds what a program file promises: its processor, the oldest glibc that it runs on, its kernels.
#
#   cross/check-binary.sh --arch aarch64|armv7|x86_64 [--glibc 2.31 | --static] FILE
#   cross/check-binary.sh --self-test
#
# Fails on the first fault. Needs readelf (any architecture's) and Python 3.
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

# How often instructions that only those kernels have occur in the file's code.
instructions() {
    python3 - "$1" <<'P'
import array, struct, sys
data = open(sys.argv[1], "rb").read()
shoff, = struct.unpack_from("<Q", data, 0x28)
entry, count = struct.unpack_from("<HH", data, 0x3A)
words = array.array("I")
for i in range(count):
    flags, _, offset, size = struct.unpack_from("<QQQQ", data, shoff + i * entry + 8)
    if flags & 4:  # SHF_EXECINSTR
        words.frombytes(data[offset : offset + size // 4 * 4])
# From the Arm Architecture Reference Manual, DDI 0487, C7.2: SDOT (by element, vector), SMMLA.
kinds = {
    "sdot": [(0xFFC0F400, 0x4F80E000), (0xFFE0FC00, 0x4E809400)],
    "smmla": [(0xFFE0FC00, 0x4E80A400)],
}
for name, forms in kinds.items():
    print(name, sum(1 for w in words if any(w & mask == value for mask, value in forms)))
P
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
        readelf -lW "$file" | grep -q INTERP && fail "'$file' asks for a loader: it is not static"
        readelf -dW "$file" | grep NEEDED && fail "'$file' needs libraries: it is not static"
        needed=none
    elif [ -n "$floor" ]; then
        [ -n "$needed" ] || fail "'$file' needs no glibc: is it static?"
        [ "$(printf '%s\n%s\n' "$needed" "$floor" | sort -V | tail -1)" = "$floor" ] ||
            fail "'$file' needs glibc $needed, and may need $floor at most"
    fi
    local names='portable' name seen=''
    [ "$arch" != aarch64 ] || names='neon neon-dotprod neon-i8mm portable'
    [ "$arch" != x86_64 ] || names='avx512vnni avx512 avx2 portable'
    for name in $names; do
        grep -qaF "$name" "$file" || fail "'$file' lacks the kernels '$name'"
    done
    if [ "$arch" = aarch64 ]; then
        # tract's 8x8 and 64x1 kernels alone have more than twenty; its build drops them in silence
        # where the assembler is older than binutils 2.30.
        seen=$(instructions "$file")
        local sdot smmla
        sdot=$(sed -n 's/sdot //p' <<<"$seen") smmla=$(sed -n 's/smmla //p' <<<"$seen")
        [ "$sdot" -ge 20 ] || fail "'$file' has $sdot dot product instructions: kernels are missing"
        [ "$smmla" -ge 1 ] || fail "'$file' has no matrix product instruction (i8mm)"
        seen=", $sdot sdot, $smmla smmla"
    fi
    echo "$file: $machine, glibc ${needed:-none}, kernels $names$seen, $(stat -c %s "$file") bytes"
}

# Every check must be able to fail.
self_test() {
    local here
    here=$(realpath "$0")
    dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
    cat >"$dir/good.c" <<'C'
const char names[] __attribute__((used)) = "neon neon-dotprod neon-i8mm portable";
void _start(void) { for (;;) KERNELS; }
C
    local gcc=aarch64-linux-gnu-gcc
    local kernels='__asm__(".rept 24; .inst 0x4e809400; .endr; .inst 0x4e80a400")'
    $gcc -nostdlib -static -DKERNELS="$kernels" -o "$dir/good" "$dir/good.c"
    $gcc -nostdlib -static -DKERNELS=';' -o "$dir/slow" "$dir/good.c"
    sed 's/neon-i8mm/neon-xxxx/' "$dir/good" >"$dir/nameless"
    printf 'int main(void) { return 0; }' >"$dir/main.c"
    # Debian 12's own start code needs 2.34.
    $gcc -o "$dir/new" "$dir/main.c"
    "$here" --arch aarch64 --static "$dir/good"
    must_fail() {
        local words=$1 output
        shift
        if output=$("$here" "$@" 2>&1); then fail "self-test: '$*' passed: $output"; fi
        grep -qF "$words" <<<"$output" || fail "self-test: '$*' said '$output', not '$words'"
        echo "as it must, fails: $output"
    }
    must_fail "not for x86_64" --arch x86_64 --static "$dir/good"
    must_fail "dot product instructions" --arch aarch64 --static "$dir/slow"
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
