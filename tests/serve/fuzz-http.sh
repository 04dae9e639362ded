#!/usr/bin/env bash
# Fuzzes a running daemon's HTTP from its own OpenAPI document with schemathesis (`pip install
# schemathesis`), and watches its memory: no 5xx that is not stated, no growth.
#   tests/serve/fuzz-http.sh PROGRAM [EXAMPLES_PER_OPERATION]
set -euo pipefail

program=$(realpath "${1:?the offshoot program}")
examples=${2:-100}
root=$(cd "$(dirname "$0")/../.." && pwd)
command -v schemathesis >/dev/null || {
    echo "fuzz-http: schemathesis is missing: pip install schemathesis" >&2
    exit 2
}
folder=$(mktemp -d)
cd "$folder"
export OFFSHOOT_STORE=$folder/store
daemon=
trap '[ -z "$daemon" ] || kill "$daemon" 2>/dev/null; rm -r "$folder"' EXIT

"$program" pack "$root/models/tiny/mlp.onnx" -o mlp.base
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
token=$(head -c 24 /dev/urandom | base64 | tr -d '/+=')
echo "$token" >token
cat >o.toml <<CONFIG
base = "mlp.base"
state = "store"
[serve]
socket = "s"
tcp = "127.0.0.1:$port"
token_file = "token"
[limits]
body_bytes = 1000000
CONFIG
"$program" serve --config o.toml 2>log &
daemon=$!
url=http://127.0.0.1:$port
for _ in $(seq 100); do
    curl -sf -H "Authorization: Bearer $token" "$url/health" >/dev/null && break
    sleep 0.1
done
resident() { awk '/^VmRSS/ {print $2}' "/proc/$daemon/status"; }

fuzz() {
    schemathesis run "$url/openapi.json" -H "Authorization: Bearer $token" --max-examples "$1" \
        --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance \
        --exclude-path-regex '^/v1/train/.*/events$' --request-timeout 30 --suppress-health-check all \
        --generation-allow-x00 true --seed "$2"
}
# The first round fills caches and the state; the second must not add to it.
fuzz "$examples" 1
before=$(resident)
fuzz "$examples" 2
after=$(resident)
echo "fuzz-http: resident $before kB after one round, $after kB after two"
kill -0 "$daemon" || { cat log >&2; exit 1; }
if grep -n -e panicked -e 'internal error' log; then exit 1; fi
[ "$after" -lt $((before + 8192)) ] || { echo "fuzz-http: memory grew" >&2; exit 1; }
