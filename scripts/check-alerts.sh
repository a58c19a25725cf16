#!/usr/bin/env bash
# Checks deploy/prometheus with promtool: the alerts and their tests, and that the dashboard's queries can be read. Installs
# promtool where it can; says so where it cannot.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v promtool >/dev/null && ! scripts/setup.sh prometheus; then
    echo "check-alerts: skipped, promtool is not here and could not be installed"
    exit 0
fi

promtool check rules deploy/prometheus/chainwriter.rules.yml
promtool test rules deploy/prometheus/chainwriter.rules.test.yml

# Each query as a rule of its own, with a span in place of Grafana's.
queries=$(mktemp)
trap 'rm -f "$queries"' EXIT
{
    printf 'groups:\n  - name: dashboard\n    rules:\n'
    grep -o '"expr": ".*"' deploy/grafana/chainwriter.json |
        sed -e 's/^"expr": "//' -e 's/"$//' -e 's/\\"/"/g' -e 's/\$__rate_interval/5m/g' |
        awk '{ gsub(/'\''/, "'\'''\''"); printf "      - record: dashboard:query:%d\n        expr: '\''%s'\''\n", NR, $0 }'
} >"$queries"
promtool check rules "$queries"
