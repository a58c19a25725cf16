#!/usr/bin/env bash
# Runs tests on the RabbitMQ of another Debian release, 4.0 beside 3.10 or the other way round: test-rabbitmq.sh [FILTER...].
# Without a filter those of what differs between the two: deliveries, dead letters, topology, crashes.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! scripts/setup.sh other-rabbitmq; then
    echo "=======================================================================================================" >&2
    echo "test-rabbitmq: SKIPPED, there is no second RabbitMQ here (see above); nothing was tested on another version" >&2
    echo "=======================================================================================================" >&2
    exit 0
fi
scripts/setup.sh clock postgres producers
[ $# -gt 0 ] || set -- delivery:: operators::dead_letters journal::marker
export CHAINWRITER_RABBITMQ=$PWD/.tools/other-rabbitmq/bin CHAINWRITER_REQUIRE_SERVICES=1 RUST_MIN_STACK=536870912
echo "test-rabbitmq: on RabbitMQ $("$CHAINWRITER_RABBITMQ/rabbitmqctl" version)"
cargo test --workspace --all-features --locked --test real -- "$@"
