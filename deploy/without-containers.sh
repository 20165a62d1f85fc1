#!/usr/bin/env bash
# What compose.yaml starts, without containers: schema, ingest, query and collect of the program given, on a Kafka and a Scylla (or
# Cassandra) that run already. Ends all of it when it is told to end.
#   deploy/without-containers.sh target/release/backstamp 127.0.0.1:9092 127.0.0.1:9042
# What else a service is to be told comes from the environment, as always. `cargo test --test production` runs it.
set -euo pipefail

if [[ $# -ne 3 ]]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
program=$1
export BACKSTAMP_KAFKA_BROKERS=$2 BACKSTAMP_SCYLLA_NODES=$3

services=()
end() {
    trap - EXIT INT TERM
    if ((${#services[@]})); then
        kill -TERM "${services[@]}" 2>/dev/null || true
        wait "${services[@]}" 2>/dev/null || true
    fi
}
trap end EXIT
trap 'end; exit 0' INT TERM

"$program" schema apply --replication-factor "${REPLICATION_FACTOR:-1}"
"$program" ingest --ops-listen "${INGEST_OPS:-127.0.0.1:9466}" &
services+=($!)
"$program" query --listen "${QUERY_LISTEN:-127.0.0.1:8080}" --ops-listen "${QUERY_OPS:-127.0.0.1:9464}" &
services+=($!)
"$program" collect --listen "${COLLECT_LISTEN:-127.0.0.1:8081}" --ops-listen "${COLLECT_OPS:-127.0.0.1:9465}" &
services+=($!)

# As long as all of them run.
wait -n "${services[@]}"
echo 'one of the services has ended: so does the rest' >&2
exit 1
