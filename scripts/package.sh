#!/usr/bin/env bash
# Builds what is handed out, into dist/: the same commit in the same place gives the same bytes.
#
#   scripts/package.sh [deb] [rpm] [tarball] [image]                                           (nothing given: deb tarball)
#
# The program is built in a tree of the oldest supported Debian, unless this is one, so that its C library is old enough for
# every supported system. CHAINWRITER_PACKAGE_VERSION names another version than Cargo.toml (upgrades are tried with it),
# CHAINWRITER_IN_TREE=yes builds in the tree in any case. Cargo works in target/package, apart from other builds. With
# CHAINWRITER_PROFILE=dev the program is the one that tests run, built in no time where they ran: for tries of the package alone.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

OLDEST_DEBIAN=bookworm
OLDEST_DEBIAN_ID=debian-12
TREE=$PWD/.tools/build-tree
WORK=$PWD/target/package
ROOT=$WORK/root
DIST=${CHAINWRITER_DIST:-$PWD/dist}
PATH=$PWD/.tools/bin:$PATH

say() { printf 'package: %s\n' "$*"; }
fail() {
    printf 'package: %s\n' "$*" >&2
    exit 1
}

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
version=${CHAINWRITER_PACKAGE_VERSION:-$version}
commit=$(git rev-parse --short=12 HEAD)
git diff --quiet HEAD -- || commit=$commit-dirty
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
export CHAINWRITER_COMMIT=$commit
CHAINWRITER_COMMIT_DATE=$(TZ=UTC git log -1 --date=format-local:%Y-%m-%d --format=%cd)
export CHAINWRITER_COMMIT_DATE

# No path of this machine in the program; nothing that is not the same again.
flags="--remap-path-prefix=$PWD=/chainwriter --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"

machine() { uname -m; }

is_oldest() {
    [ "${CHAINWRITER_IN_TREE:-no}" = no ] || return 1
    # shellcheck disable=SC1091
    [ "$(. /etc/os-release && echo "$ID-${VERSION_ID:-}")" = "$OLDEST_DEBIAN_ID" ]
}

build() {
    if [ "${CHAINWRITER_PROFILE:-release}" = dev ]; then
        say "building for tries alone, without optimisation"
        cargo build --quiet --locked --workspace --all-features --bin chainwriter
        install -D -m 0755 "${CARGO_TARGET_DIR:-target}/debug/chainwriter" "$ROOT/usr/bin/chainwriter"
        strip --strip-unneeded "$ROOT/usr/bin/chainwriter"
        return
    fi
    local cargo=(cargo auditable build --release --locked --features otlp --bin chainwriter)
    say "building commit $commit of $CHAINWRITER_COMMIT_DATE"
    if is_oldest; then
        RUSTFLAGS=$flags CARGO_TARGET_DIR=$WORK/build "${cargo[@]}"
    else
        build_in_tree "${cargo[@]}"
    fi
    install -D -m 0755 "$WORK/build/release/chainwriter" "$ROOT/usr/bin/chainwriter"
    strip --strip-unneeded --remove-section=.comment "$ROOT/usr/bin/chainwriter"
}

# build_in_tree <command...>: in a mount namespace, so that nothing stays mounted.
build_in_tree() {
    [ "$(id -u)" = 0 ] || fail "this is no Debian $OLDEST_DEBIAN: building in a tree of it needs root"
    if [ ! -e "$TREE/complete" ]; then
        command -v debootstrap >/dev/null || fail "debootstrap is missing: run scripts/setup.sh packaging"
        say "making a tree of Debian $OLDEST_DEBIAN in ${TREE#"$PWD"/}"
        rm -rf "$TREE"
        debootstrap --variant=minbase --include=gcc,libc6-dev,ca-certificates "$OLDEST_DEBIAN" "$TREE" >"$TREE.log" 2>&1 ||
            fail "debootstrap failed: see $TREE.log"
        touch "$TREE/complete"
    fi
    local cargo_home=${CARGO_HOME:-$HOME/.cargo} rustup_home=${RUSTUP_HOME:-$HOME/.rustup} tools
    tools=$(dirname "$(command -v cargo-auditable)")
    mkdir -p "$TREE/$PWD" "$TREE/$cargo_home" "$TREE/$rustup_home" "$TREE/$tools"
    TREE=$TREE HERE=$PWD CARGO_HOME=$cargo_home RUSTUP_HOME=$rustup_home TOOLS=$tools RUSTFLAGS=$flags CARGO_TARGET_DIR=$WORK/build \
        unshare --mount bash -c '
            for folder in /proc /dev "$HERE" "$CARGO_HOME" "$RUSTUP_HOME" "$TOOLS"; do mount --rbind "$folder" "$TREE$folder"; done
            cp /etc/resolv.conf "$TREE/etc/resolv.conf"
            export PATH=$TOOLS:$CARGO_HOME/bin:/usr/bin:/bin
            exec chroot "$TREE" /bin/sh -c "cd \"\$0\" && exec \"\$@\"" "$HERE" "$@"' build "$@"
}

# Everything that is installed, at its place below $ROOT.
stage() {
    local program=$ROOT/usr/bin/chainwriter share=$ROOT/usr/share file
    rm -rf "$ROOT"
    build
    install -D -m 0644 "systemd/chainwriter@.service" "$ROOT/usr/lib/systemd/system/chainwriter@.service"
    "$program" generate man "$WORK/man"
    for file in "$WORK"/man/*.[15]; do
        install -D -m 0644 "$file" "$share/man/man${file##*.}/${file##*/}"
    done
    gzip -9 -n -f "$share"/man/man1/* "$share"/man/man5/*
    completions bash "$share/bash-completion/completions/chainwriter"
    completions zsh "$share/zsh/vendor-completions/_chainwriter"
    completions fish "$share/fish/vendor_completions.d/chainwriter.fish"
    install -D -m 0644 -t "$share/chainwriter/schemas" schemas/*.json
    install -D -m 0644 -t "$share/chainwriter/prometheus" deploy/prometheus/chainwriter.rules.yml
    install -D -m 0644 -t "$share/chainwriter/grafana" deploy/grafana/chainwriter.json
    install -D -m 0644 -t "$share/doc/chainwriter/examples" worker.toml
    scripts/sbom.py >"$WORK/sbom.cdx.json"
    install -D -m 0644 "$WORK/sbom.cdx.json" "$share/doc/chainwriter/sbom.cdx.json"
    install -D -m 0644 -t "$share/doc/chainwriter" LICENSE-MIT LICENSE-APACHE
    gzip -9 -n -c CHANGELOG.md >"$share/doc/chainwriter/CHANGELOG.md.gz"
    find "$ROOT" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
}

completions() {
    install -d "$(dirname "$2")"
    "$ROOT/usr/bin/chainwriter" generate completions "$1" >"$2"
    chmod 0644 "$2"
}

deb() {
    local file
    {
        printf 'chainwriter (%s-1) unstable; urgency=medium\n\n' "$version"
        printf '  * Built from commit %s. What changed: CHANGELOG.md.gz.\n\n' "$commit"
        printf ' -- %s  %s\n' "$(sed -n 's/^maintainer = "\(.*\)"$/\1/p' Cargo.toml)" "$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")"
    } >"$WORK/changelog"
    file=$DIST/chainwriter_$version-1_$(dpkg --print-architecture).deb
    cargo deb --quiet --no-build --no-strip --deb-version "$version-1" --output "$file"
    if command -v lintian >/dev/null; then
        lintian --fail-on error --no-tag-display-limit "$file" || fail "lintian finds errors in $file"
    else
        say "lintian is not here: $file is unchecked (scripts/setup.sh packaging)"
    fi
    say "$file"
}

rpm() {
    local file
    file=$DIST/chainwriter-$version-1.$(machine).rpm
    cargo generate-rpm --auto-req disabled --set-metadata "version = \"${version//[~+-]/_}\"" --output "$file" \
        --source-date "$SOURCE_DATE_EPOCH"
    say "$file"
}

tarball() {
    local name file
    name=chainwriter-$version-linux-$(machine)
    file=$DIST/$name.tar.gz
    tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --transform "s|^\.|$name|" \
        --directory "$ROOT" . | gzip -9 -n >"$file"
    say "$file"
}

# The program with the C library that it was built against, which looks names up by itself, and the authorities.
image() {
    command -v buildah >/dev/null || fail "buildah is missing: run scripts/setup.sh image"
    local file library folder=$WORK/image
    rm -rf "$folder"
    install -D -m 0755 "$ROOT/usr/bin/chainwriter" "$folder/root/usr/bin/chainwriter"
    for library in $(ldd "$folder/root/usr/bin/chainwriter" | grep -o '/[^ ]*'); do
        install -D -m 0755 "$library" "$folder/root$library"
    done
    install -D -m 0644 /etc/ssl/certs/ca-certificates.crt "$folder/root/etc/ssl/certs/ca-certificates.crt"
    echo 'chainwriter:x:65532:65532::/var/lib/chainwriter:/nonexistent' >"$folder/root/etc/passwd"
    echo 'chainwriter:x:65532:' >"$folder/root/etc/group"
    echo 'hosts: files dns' >"$folder/root/etc/nsswitch.conf"
    mkdir -p "$folder/root/etc/chainwriter" "$folder/root/run/secrets" "$folder/root/tmp" "$folder/state"
    find "$folder" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    file=$DIST/chainwriter-$version-$(machine).oci.tar
    rm -f "$file"
    buildah bud --quiet --isolation chroot --timestamp "$SOURCE_DATE_EPOCH" --tag "chainwriter:$version" \
        --build-arg "VERSION=$version" --build-arg "COMMIT=$commit" --file packaging/Containerfile . >"$WORK/image.id"
    buildah push --quiet "chainwriter:$version" "oci-archive:$file:chainwriter:$version"
    say "$file"
}

if [ $# = 0 ]; then set -- deb tarball; fi
for part in "$@"; do
    case $part in
    deb) tools="cargo-deb" ;;
    rpm) tools="cargo-generate-rpm" ;;
    tarball | image) tools="" ;;
    *) fail "unknown part '$part'; known are: deb rpm tarball image" ;;
    esac
    [ "${CHAINWRITER_PROFILE:-release}" = dev ] || tools="$tools cargo-auditable"
    for tool in $tools; do
        command -v "$tool" >/dev/null || fail "$tool is missing: run scripts/setup.sh packaging"
    done
done
mkdir -p "$DIST" "$WORK"
stage
for part in "$@"; do "$part"; done
cp "$WORK/sbom.cdx.json" "$DIST/chainwriter-$version.cdx.json"
(cd "$DIST" && find . -maxdepth 1 -type f ! -name SHA256SUMS -printf '%P\0' | sort -z | xargs -0 sha256sum >SHA256SUMS)
