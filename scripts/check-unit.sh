#!/usr/bin/env bash
# Checks the systemd unit without a running systemd: no complaint, and an exposure score of 1.1 at most.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

UNIT='chainwriter@.service'
# systemd-analyze counts in tenths.
THRESHOLD=11

if ! command -v systemd-analyze >/dev/null; then
    echo "check-unit: skipped, there is no systemd-analyze here (package systemd)"
    exit 0
fi

# The program need not be installed where this runs, and the instance needs a name, since `%i` stands in paths.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
copy=$folder/${UNIT/@/@check}
sed -E "s|^(Exec[A-Z][a-z]+)=/usr/bin/chainwriter |\1=$(command -v true) |" "systemd/$UNIT" >"$copy"

complaints=$(systemd-analyze verify --man=no "$copy" 2>&1) || true
if [ -n "$complaints" ]; then
    printf 'check-unit: systemd-analyze verify complains:\n%s\n' "$complaints" >&2
    exit 1
fi

if ! report=$(systemd-analyze security --no-pager --offline=yes --threshold="$THRESHOLD" "$copy" 2>&1); then
    printf '%s\n' "$report" >&2
    echo "check-unit: the exposure score is above the threshold of $THRESHOLD tenths" >&2
    exit 1
fi
printf 'check-unit: %s\n' "$(printf '%s\n' "$report" | grep -o 'Overall exposure level.*' || echo 'the score is within the threshold')"
