#!/usr/bin/env bash
# Checks deploy/compose.yaml and deploy/kubernetes/ against the schemas of what reads them, and that the program can read the
# configurations in them where it is built. Installs the checkers where it can; says so where it cannot.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

CHECK_JSONSCHEMA_VERSION=0.39.0
KUBERNETES_VALIDATE_VERSION=1.37.0
KUBERNETES=1.31

tools=${CHAINWRITER_DEPLOY_TOOLS:-$PWD/.tools/deploy}
export PYTHONPATH=$tools
if ! python3 -c 'import check_jsonschema, kubernetes_validate' 2>/dev/null; then
    mkdir -p .tools
    if ! python3 -m pip install --quiet --disable-pip-version-check --target "$tools" \
        "check-jsonschema==$CHECK_JSONSCHEMA_VERSION" "kubernetes-validate==$KUBERNETES_VALIDATE_VERSION" >/dev/null 2>&1; then
        echo "check-deploy: skipped, check-jsonschema and kubernetes-validate are not here and could not be installed"
        exit 0
    fi
fi

python3 -m check_jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
for file in deploy/kubernetes/*.yaml; do
    python3 - "$file" "$KUBERNETES" <<'CHECK'
import sys

import kubernetes_validate
import yaml

with open(sys.argv[1], encoding="utf-8") as text:
    for document in yaml.safe_load_all(text):
        kubernetes_validate.validate(document, sys.argv[2], strict=True)
CHECK
    echo "check-deploy: $file is as Kubernetes $KUBERNETES wants it"
done
