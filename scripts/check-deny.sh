#!/usr/bin/env bash
# Checks the dependencies against deny.toml: licences, bans and sources always, advisories where their database is to
# be had. Says which part it skipped and why.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A download that hangs must not hang the check.
FETCH_LIMIT_SECONDS=60

PATH=$PWD/.tools/bin:$PATH
if ! command -v cargo-deny >/dev/null && ! scripts/setup.sh deny; then
    echo "check-deny: skipped, cargo-deny is not here and could not be installed"
    exit 0
fi

deny() { cargo-deny --all-features --locked "$@"; }

# Downloads what is missing of the crates themselves, from the registry that cargo is set to; nothing else.
deny check --hide-inclusion-graph bans licenses sources

if output=$(timeout "$FETCH_LIMIT_SECONDS" cargo-deny fetch db 2>&1); then
    deny --offline check --hide-inclusion-graph advisories
elif output=$(deny --offline check --hide-inclusion-graph advisories 2>&1); then
    echo "check-deny: the advisory database could not be refreshed; checked against the copy that was here"
elif printf '%s' "$output" | grep -q 'advisories FAILED'; then
    printf '%s\n' "$output" >&2
    exit 1
else
    echo "check-deny: advisories skipped, their database could be neither fetched nor found here"
fi
