#!/usr/bin/env bash
# Builds the packages twice from one commit, the second time from nothing, and compares their bytes.
#
#   scripts/check-reproducible.sh [deb] [rpm] [tarball] [image]                                    (nothing given: deb tarball)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# = 0 ]; then set -- deb tarball; fi
folder=$PWD/target/reproduced
rm -rf "$folder"
for time in first second; do
    rm -rf target/package
    CHAINWRITER_DIST=$folder/$time scripts/package.sh "$@"
done
if ! diff "$folder/first/SHA256SUMS" "$folder/second/SHA256SUMS"; then
    echo "check-reproducible: the two builds differ; compare target/reproduced/first with second" >&2
    exit 1
fi
echo "check-reproducible: the same bytes twice"
cat "$folder/second/SHA256SUMS"
