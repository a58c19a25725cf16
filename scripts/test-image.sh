#!/usr/bin/env bash
# Starts the image from its archive in dist/ (or CHAINWRITER_DIST), without any container engine: its layers in a folder, as the
# image's own user, with a root that nothing can write to, secrets as files, and one volume. Needs root.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

DIST=${CHAINWRITER_DIST:-$PWD/dist}
PORT=19747

fail() {
    printf 'test-image: %s\n' "$*" >&2
    [ ! -e "${log:-}" ] || tail -n 20 "$log" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail "a changed root needs root"
# shellcheck disable=SC2012
archive=$(ls -t "$DIST"/chainwriter-*.oci.tar 2>/dev/null | head -n 1)
[ -n "$archive" ] || fail "there is no image in $DIST: run scripts/package.sh image"
work=$(mktemp -d)
log=$work/log
trap 'rm -rf "$work"' EXIT
mkdir "$work/archive" "$work/root"
tar --extract --file "$archive" --directory "$work/archive"

# The layers' files in their order, and the image's own configuration as lines KEY=VALUE.
python3 - "$work/archive" "$work" <<'READ'
import json
import sys

archive, work = sys.argv[1:]


def blob(digest):
    return f"{archive}/blobs/{digest.replace(':', '/')}"


index = json.load(open(f"{archive}/index.json"))
manifest = json.load(open(blob(index["manifests"][0]["digest"])))
config = json.load(open(blob(manifest["config"]["digest"])))["config"]
with open(f"{work}/layers", "w") as out:
    out.writelines(blob(layer["digest"]) + "\n" for layer in manifest["layers"])
with open(f"{work}/environment", "w") as out:
    out.writelines(entry + "\n" for entry in config["Env"])
print(f"test-image: user {config['User']}, runs {config['Entrypoint']} {config['Cmd']}")
assert config["User"] == "65532:65532" and config["Entrypoint"] == ["/usr/bin/chainwriter"] and config["Cmd"] == ["run"], config
READ
while read -r layer; do tar --extract --file "$layer" --directory "$work/root"; done <"$work/layers"
mapfile -t environment <"$work/environment"
for tool in sh bash busybox apt ls; do
    [ -z "$(find "$work/root" -name "$tool" -type f)" ] || fail "the image has $tool in it"
done

cat >"$work/root/etc/chainwriter/worker.toml" <<TOML
[worker]
organisation = "acme"
[broker]
uri_file = "broker-uri"
queue = "acme.writes"
[chain]
id = 31337
endpoints = ["http://localhost:9"]
[[signer]]
key_file = "signer.key"
[write]
to = "0x00000000000000000000000000000000000000aa"
[journal]
url = "sqlite:/var/lib/chainwriter/chainwriter.db"
[http]
listen = "127.0.0.1:$PORT"
TOML
printf 'amqp://guest:guest@localhost:9/%%2f' >"$work/root/run/secrets/broker-uri"
printf '%064d' 7 >"$work/root/run/secrets/signer.key"
echo "127.0.0.1 localhost" >"$work/root/etc/hosts"
chown 65532:65532 "$work/root/run/secrets"/*
chmod 0400 "$work/root/run/secrets"/*
mkdir "$work/volume"
chown --reference="$work/root/var/lib/chainwriter" "$work/volume"

# in_image <command...>: in a process of its own, which becomes the command.
in_image() (
    export ROOT=$work/root VOLUME=$work/volume
    exec unshare --mount bash -c '
        mount --bind "$ROOT" "$ROOT"
        mount --bind "$VOLUME" "$ROOT/var/lib/chainwriter"
        mount -o remount,ro,bind "$ROOT"
        exec env -i "$@"' in_image "${environment[@]}" \
        chroot --userspec=65532:65532 "$work/root" "$@"
)

in_image /usr/bin/chainwriter --version | grep -q '^commit: ' || fail "the program does not start"
in_image /usr/bin/chainwriter check >"$log" 2>&1 || fail "the configuration or its secrets are refused"
in_image /usr/bin/chainwriter run >"$log" 2>&1 &
started=$!
for _ in $(seq 100); do
    sleep 0.2
    if in_image /usr/bin/chainwriter health >/dev/null 2>&1; then break; fi
done
in_image /usr/bin/chainwriter health >/dev/null || fail "the worker is not well"
if in_image /usr/bin/chainwriter health --ready >/dev/null 2>&1; then fail "it is ready without a broker"; fi
grep -q 'localhost:9\|127.0.0.1:9' "$log" || fail "it does not find localhost"
[ -s "$work/volume/chainwriter.db" ] || fail "its journal is not on the volume"
# The function's own process waits for the one that has become the worker.
kill -TERM "$(pgrep --parent "$started" || echo "$started")"
wait "$started" || fail "it ended with $?"
echo "test-image: it starts, is well, keeps its journal on the volume, and stops: 1 passed, 0 failed"
