#!/usr/bin/env bash
# Runs the targets of fuzz/ with libFuzzer: fuzz.sh SECONDS [TARGET...]. What it finds new goes to .tools/fuzz.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# No input may take longer than this; the largest is as long as a body may be unless configured.
LIMIT_SECONDS=10
LONGEST=262144

seconds=$1
shift
if [ $# = 0 ]; then
    mapfile -t targets < <(sed -n 's/^name = "\([a-z]*\)"$/\1/p' fuzz/Cargo.toml)
    set -- "${targets[@]}"
fi

PATH=$PWD/.tools/bin:$PATH
if ! rustc +nightly --version >/dev/null 2>&1; then
    echo "fuzz: SKIPPED, there is no nightly Rust: \`rustup toolchain install nightly\`. \`cargo test\` runs each target for a moment" >&2
    exit 77
fi
# The versions that the daemon is built with.
cp Cargo.lock fuzz/Cargo.lock
# Without AddressSanitizer: the daemon has no unsafe code, and builds and runs are much faster.
options=(--sanitizer none --codegen-units 16)
cargo +nightly fuzz build "${options[@]}"
for target in "$@"; do
    new=.tools/fuzz/$target
    mkdir -p "$new"
    echo "fuzz: $target for $seconds s"
    cargo +nightly fuzz run "${options[@]}" "$target" "$new" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -timeout="$LIMIT_SECONDS" -max_len="$LONGEST" -rss_limit_mb=4096 -verbosity=0 -print_final_stats=1
done
