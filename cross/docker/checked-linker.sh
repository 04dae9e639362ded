#!/usr/bin/env bash
# Links with $OFFSHOOT_LINKER; a release program is then held to what it promises, by
# check-binary.sh with $OFFSHOOT_CHECK. cross runs nothing after a build, but every build links.
set -euo pipefail

"$OFFSHOOT_LINKER" "$@"

output=''
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then output=${2:-}; fi
    shift
done
case $output in
    */dist/deps/offshoot-* | */release/deps/offshoot-* | */small/deps/offshoot-*) ;;
    *) exit 0 ;;
esac
case $output in *.so | *.rlib) exit 0 ;; esac
# Test programs have the same name, and hold only what their tests reach.
if grep -qaF 'test result: ' "$output"; then exit 0; fi
read -ra promises <<<"$OFFSHOOT_CHECK"
if ! "$(dirname "$0")/check-binary.sh" "${promises[@]}" "$output" >&2; then
    # Cargo must not find a faulty program there.
    rm -f "$output"
    exit 1
fi
