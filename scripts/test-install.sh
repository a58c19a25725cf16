#!/usr/bin/env bash
# Installs the Debian package on a real systemd and tries what an operator does: tests/install/inside.sh in a tree of Debian
# that systemd-nspawn boots, without any network but its own loopback.
#
#   scripts/test-install.sh [bookworm] [trixie]                                            (nothing given: both, one by one)
#
# It ends with 77 where it can try nothing: no tree of Debian can be had, or none boots here. It needs root, and dist/ (or CHAINWRITER_DIST) with the package (scripts/package.sh deb makes it if it is missing). The trees stay in
# .tools/install (or CHAINWRITER_TREES) for the next time; each run works on a copy that is thrown away. CHAINWRITER_ONLY names single steps.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

TREES=${CHAINWRITER_TREES:-$PWD/.tools/install}
# With each release's own broker, database and shell for SQLite; socat stands before the signer with TLS.
PACKAGES=systemd,systemd-sysv,dbus,ca-certificates,rabbitmq-server,postgresql,sqlite3,openssl,socat,procps,curl,man-db
BOOT_SECONDS=90
DIST=${CHAINWRITER_DIST:-$PWD/dist}

say() { printf 'test-install: %s\n' "$*"; }
fail() {
    printf 'test-install: %s\n' "$*" >&2
    exit 1
}
cannot() {
    printf 'test-install: %s\n' "$*" >&2
    exit 77
}

[ "$(id -u)" = 0 ] || cannot "booting a tree needs root"
scripts/setup.sh nspawn anvil

# make_tree <release>
make_tree() {
    local tree=$TREES/$1
    [ -e "$tree/complete" ] && return
    say "making a tree of Debian $1 in ${tree#"$PWD"/} (500 MB, some minutes)"
    rm -rf "$tree"
    mkdir -p "$tree"
    debootstrap --variant=minbase --include="$PACKAGES" "$1" "$tree/root" >"$tree/debootstrap.log" 2>&1 ||
        cannot "debootstrap could not make a tree of Debian $1: see ${tree#"$PWD"/}/debootstrap.log"
    rm -rf "$tree/root/var/cache/apt" "$tree/root/var/lib/apt/lists"
    # Services of packages start at boot, as they do on a host.
    rm -f "$tree/root/usr/sbin/policy-rc.d"
    echo "127.0.0.1 localhost install" >"$tree/root/etc/hosts"
    echo install >"$tree/root/etc/hostname"
    : >"$tree/root/etc/machine-id"
    touch "$tree/complete"
}

newest_package() {
    # shellcheck disable=SC2012
    ls -t "$DIST"/chainwriter_*_"$(dpkg --print-architecture)".deb 2>/dev/null | grep -v later | head -n 1 || true
}

# The same program under a later version, for upgrades.
make_later_package() {
    local from=$1 to=$2 folder
    folder=$(mktemp -d)
    dpkg-deb --raw-extract "$from" "$folder/package"
    sed -i 's/^Version: \(.*\)-1$/Version: \1+later-1/' "$folder/package/DEBIAN/control"
    dpkg-deb --root-owner-group --build "$folder/package" "$to" >/dev/null
    rm -rf "$folder"
}

# run_in <release>: the mount namespace and its mounts end with the container.
run_in() {
    local release=$1 work status=0
    work=$(mktemp -d "/var/tmp/chainwriter-install-$release.XXXXXX")
    mkdir -p "$work"/{upper,work,merged,given}
    cp "$package" "$work/given/chainwriter.deb"
    make_later_package "$package" "$work/given/later.deb"
    cp tests/install/*.sh deploy/prometheus/chainwriter.rules.yml "$work/given/"
    cp "$(readlink -f .tools/bin/anvil)" "$work/given/anvil"
    chmod 0755 "$work/given" "$work/given/anvil"
    boot "$release" "$work" || status=$?
    [ -n "${CHAINWRITER_KEEP:-}" ] || rm -rf "$work"
    return "$status"
}

boot() {
    local release=$1 work=$2 nspawn status=0
    # systemd wants the unified hierarchy alone; the host's may be another.
    TREE=$TREES/$release/root WORK=$work unshare --mount --propagation slave bash -c '
        mount -t overlay overlay -o "lowerdir=$TREE,upperdir=$WORK/upper,workdir=$WORK/work" "$WORK/merged"
        if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
            umount -R /sys/fs/cgroup
            mount -t cgroup2 cgroup2 /sys/fs/cgroup
        fi
        mkdir -p "/sys/fs/cgroup/$(basename "$WORK")"
        echo $$ >"/sys/fs/cgroup/$(basename "$WORK")/cgroup.procs"
        exec systemd-nspawn --quiet --directory="$WORK/merged" --machine="${WORK##*.}" --boot --register=no --keep-unit \
            --private-network --link-journal=no --resolv-conf=off --timezone=off --console=read-only --bind-ro="$WORK/given:/given"' \
        </dev/null >"$work/console.log" 2>&1 &
    nspawn=$!
    for _ in $(seq $((BOOT_SECONDS * 5))); do
        leader=$(pgrep --parent "$nspawn" --exact systemd || true)
        if [ -n "$leader" ] && inside "$leader" systemctl is-system-running 2>/dev/null | grep -q 'running\|degraded'; then break; fi
        kill -0 "$nspawn" 2>/dev/null || break
        sleep 0.2
    done
    if [ -z "$leader" ] || ! kill -0 "$nspawn" 2>/dev/null; then
        cat "$work/console.log" >&2
        cannot "Debian $release did not boot"
    fi
    inside "$leader" env CHAINWRITER_ONLY="${CHAINWRITER_ONLY:-}" bash /given/inside.sh || status=$?
    kill -KILL "$leader" 2>/dev/null || true
    wait "$nspawn" 2>/dev/null || true
    leader=''
    remove_groups "$(basename "$work")"
    return "$status"
}

# remove_groups <name>: the control groups that the container leaves, in whichever place the unified hierarchy has here.
remove_groups() {
    local group
    for group in "/sys/fs/cgroup/$1" "/sys/fs/cgroup/unified/$1"; do
        [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
}

# Whatever ends this, the container ends with it.
leader=''
trap '[ -z "$leader" ] || kill -KILL "$leader" 2>/dev/null || true' EXIT

# inside <leader> <command...>
inside() {
    local leader=$1
    shift
    nsenter --target "$leader" --mount --uts --ipc --net --pid --cgroup \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "$@"
}

package=$(newest_package)
if [ -z "$package" ]; then
    scripts/package.sh deb
    package=$(newest_package)
fi
say "package: $package"
if [ $# = 0 ]; then set -- bookworm trixie; fi
failed=''
for release in "$@"; do
    make_tree "$release"
    say "Debian $release: begins"
    if run_in "$release"; then say "Debian $release: passed"; else failed="$failed $release"; fi
done
[ -z "$failed" ] || fail "failed on:$failed"
