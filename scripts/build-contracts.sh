#!/usr/bin/env bash
# Builds contracts/Records.json from its source, or with --check says whether it is what the source makes.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh solc
built=$(mktemp)
trap 'rm -f "$built"' EXIT
node contracts/build.js "$PWD/.tools/solc/node_modules/solc" >"$built"
if [ "${1:-}" = --check ]; then
    if ! cmp -s "$built" contracts/Records.json; then
        echo "contracts/Records.json is not what contracts/Records.sol makes: run scripts/build-contracts.sh" >&2
        exit 1
    fi
else
    cat "$built" >contracts/Records.json
fi
