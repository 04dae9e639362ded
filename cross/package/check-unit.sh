#!/usr/bin/env bash
# The service's exposure, as systemd judges it from the unit file alone, is at most 1.5, and
# /proc/cpuinfo stays readable. Needs systemd's `systemd-analyze` (250 or newer).
set -euo pipefail
cd "$(dirname "$0")"

unit=offshoot.service
limit=15 # tenths

command -v systemd-analyze >/dev/null || {
    echo "check-unit: systemd-analyze is missing: apt-get install systemd" >&2
    exit 2
}
report=$(systemd-analyze security --offline=yes --threshold=$limit "$unit" 2>/dev/null) || {
    echo "$report" | tail -n 1
    echo "check-unit: exposure above $limit tenths" >&2
    exit 1
}
grep -q '^ProcSubset=pid' "$unit" && {
    echo "check-unit: ProcSubset=pid hides /proc/cpuinfo" >&2
    exit 1
}
echo "$report" | tail -n 1

# Every key of both units is known (systemd before 254 does not know DelegateSubgroup), and the
# users and folders can be made. The program itself need not be installed.
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
cp offshoot.service offshoot.socket "$folder"
sed -i 's|/usr/bin/offshoot|/bin/true|' "$folder/offshoot.service"
wrong=$(systemd-analyze verify --man=no "$folder"/offshoot.{service,socket} 2>&1 |
    grep "$folder" | grep -v "'DelegateSubgroup'" || true)
[ -z "$wrong" ] || {
    echo "$wrong" >&2
    exit 1
}
mkdir -p "$folder/root/etc"
systemd-sysusers --root="$folder/root" "$PWD/offshoot.sysusers" 2>/dev/null
systemd-tmpfiles --root="$folder/root" --create "$PWD/offshoot.tmpfiles"
[ "$(stat -c %a "$folder/root/var/lib/offshoot")" = 750 ]
grep -q '^offshoot:.*:/usr/sbin/nologin$' "$folder/root/etc/passwd"
echo "check-unit: sound"
