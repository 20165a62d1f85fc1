#!/usr/bin/env bash
# Drives every operation of schemas/openapi.yaml with schemathesis against a running `backstamp dev --demo`: no 5xx, every
# answer as documented. Exit status 0 if so. Which checks are left out where, and why, stands in schemathesis.toml.
#
#   tests/hostile/openapi.sh [EXAMPLES]     examples an operation and pass, 1000; BACKSTAMP_TEST_SEED is the seed, 1
#
# Needs cargo, and python3 with venv and pip, which fetch schemathesis once, to target/schemathesis.
set -euo pipefail
cd "$(dirname "$0")/../.."

examples="${1:-1000}"
seed="${BACKSTAMP_TEST_SEED:-1}"
venv=target/schemathesis
version=4.32.5
if [[ "$("$venv/bin/schemathesis" --version 2>/dev/null)" != *"$version"* ]]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$version"
fi
cargo build --quiet --package backstamp

data="$(mktemp -d)"
unset "${!BACKSTAMP_@}"
target/debug/backstamp dev --demo --data "$data" --listen 127.0.0.1:0 --ops-listen 127.0.0.1:0 --rate-limit off \
    >"$data/stdout" 2>"$data/stderr" &
dev=$!
stop() {
    status=$?
    kill "$dev" 2>/dev/null && wait "$dev" || true
    if [[ $status != 0 ]]; then tail -n 20 "$data/stderr" >&2; fi
    rm -rf "$data"
}
trap stop EXIT
until ready="$(grep -m1 '^backstamp dev is ready: ' "$data/stdout")"; do
    kill -0 "$dev" || { echo 'the dev has ended' >&2; exit 1; }
    sleep 0.1
done
[[ "$ready" =~ (http://[^ ]+)\ \(ops\ http://([^ \)]+)\) ]]
url="${BASH_REMATCH[1]}"
key="$(BACKSTAMP_DATA="$data" BACKSTAMP_OPS_LISTEN="${BASH_REMATCH[2]}" target/debug/backstamp keys create \
    --account acme-books --permission campaigns:read contacts:read events:write references:write 2>/dev/null)"

drive() {
    "$venv/bin/schemathesis" --config-file "$1" run schemas/openapi.yaml --url "$url" \
        --header "Authorization: Bearer $key" --max-examples "$examples" --seed "$seed" \
        --continue-on-failure --no-color "${@:2}"
}
# Ids as the document allows them, which nobody has; beside it those of the demo, whose pages have rows.
config=tests/hostile/schemathesis.toml
contact="$(curl -fsS -H "Authorization: Bearer $key" "$url/v1/campaigns/cmp_spring_sale/events?per_page=1" |
    grep -o '"contact_id":"[^"]*"' | cut -d'"' -f4)"
{
    printf '[parameters]\n"path.id" = "cmp_spring_sale"\n"path.uuid" = "%s"\n\n' "$contact"
    sed "s|^hooks = .*||" "$config"
} >"$data/known.toml"
drive "$data/known.toml" --include-tag 'campaign event stream' --include-tag 'contact timeline' \
    >"$data/known" 2>&1 &
known=$!
echo '==> any ids'
failed=0
drive "$config" || failed=$?
echo '==> ids of the demo'
wait "$known" || failed=$?
cat "$data/known"

kill -0 "$dev" || { echo 'the dev has ended' >&2; exit 1; }
if grep -E ' (ERROR|panicked)' "$data/stderr" >&2; then exit 1; fi
if [[ $failed != 0 ]]; then exit "$failed"; fi
echo '==> all is as documented'
