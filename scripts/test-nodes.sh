#!/usr/bin/env bash
# Runs tests/nodes/ on every node program that can be brought here, and says loudly which one cannot.
#
#   NODES="geth anvil-osaka" ONLY="replaced" SECONDS_AT_MOST=720 scripts/test-nodes.sh
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

for part in geth clef hardhat ganache; do
    case " ${NODES:-$part} clef " in
    *" $part "*) scripts/setup.sh "$part" || echo "SKIPPED: there is no $part here (see above)" >&2 ;;
    esac
done
export CHAINWRITER_NODES="${NODES:-}" CHAINWRITER_ONLY="${ONLY:-}" RUST_MIN_STACK=536870912
if [ -n "${SECONDS_AT_MOST:-}" ]; then
    export CHAINWRITER_NODES_SECONDS="$SECONDS_AT_MOST"
fi
exec cargo test --workspace --all-features --locked --test nodes -- --ignored --nocapture each_node_has_each_property
