#!/usr/bin/env bash
# Runs as root in a Debian that systemd-nspawn has booted: what an operator does with the package, step by step. /given has the
# package, a later version of it, and Anvil. scripts/test-install.sh starts it. CHAINWRITER_ONLY="STEP…" runs these alone, after
# those that set the stage.
set -euo pipefail

# shellcheck source=tests/install/lib.sh
. /given/lib.sh

stage_is_set() {
    start_node
    wait_for "the broker" rabbitmqctl --quiet await_startup
    new_organisation acme
}

the_package_installs_what_it_should() {
    dpkg --install /given/chainwriter.deb
    equal "$(stat -c '%a %U' /etc/chainwriter/credentials /etc/chainwriter/encrypted /etc/chainwriter)" \
        $'700 root\n700 root\n755 root'
    for file in /usr/bin/chainwriter /usr/lib/systemd/system/chainwriter@.service /usr/share/man/man1/chainwriter.1.gz \
        /usr/share/man/man5/chainwriter.toml.5.gz /usr/share/bash-completion/completions/chainwriter \
        /usr/share/zsh/vendor-completions/_chainwriter /usr/share/fish/vendor_completions.d/chainwriter.fish \
        /usr/share/chainwriter/prometheus/chainwriter.rules.yml /usr/share/chainwriter/grafana/chainwriter.json \
        /usr/share/chainwriter/schemas/event.v1.json /usr/share/doc/chainwriter/examples/worker.toml \
        /usr/share/doc/chainwriter/sbom.cdx.json /usr/share/doc/chainwriter/copyright; do
        [ -s "$file" ] || fail "$file is not in the package"
    done
    has "$(chainwriter --version)" "features: otlp"
    lacks "$(chainwriter --version)" "unknown"
    has "$(man --pager=cat chainwriter 2>&1)" "EXIT STATUS"
    has "$(man --pager=cat chainwriter.toml 2>&1)" "max_open"
    equal "$(systemctl list-units --all --no-legend 'chainwriter@*')" ""
}

the_unit_is_without_complaint() {
    equal "$(systemd-analyze verify --man=yes chainwriter@acme.service 2>&1 | grep chainwriter || true)" ""
    local level
    level=$(systemd-analyze security --no-pager --threshold=11 chainwriter@acme.service) || fail "exposed: $(tail -n 1 <<<"$level")"
}

three_commands_lead_to_a_written_message() {
    systemctl start chainwriter@acme
    # Right after the start the status is true, whatever it is.
    lacks "$(status_text acme)" "starting"
    start acme
    publish acme first-1
    wait_final acme first-1
    has "$(status_text acme)" "consuming"
    equal "$(systemctl show -P NRestarts chainwriter@acme)" 0
}

lines_in_the_journal_have_one_time_and_their_priority() {
    local line
    line=$(journalctl -o cat -u chainwriter@acme | grep -m 1 "runs worker=")
    grep -q '^ INFO chainwriter' <<<"$line" || fail "a line begins with: $line"
    equal "$(journalctl -o cat -p err -u chainwriter@acme | grep -c 'chainwriter 0' || true)" 0
}

commands_find_the_unit() {
    has "$(cd / && chainwriter --unit acme status first-1 2>&1)" "final"
    has "$(cd /tmp && chainwriter --unit acme doctor 2>&1)" "/var/lib/chainwriter/acme/chainwriter.db"
    has "$(chainwriter --unit acme dead list 2>&1 || true)" "unit acme: /etc/chainwriter/acme.toml, credentials of the running unit"
    # Beside the running worker, another folder's journal is not said to be well.
    has "$(cd /tmp && CREDENTIALS_DIRECTORY=/run/credentials/chainwriter@acme.service \
        chainwriter doctor --config /etc/chainwriter/acme.toml 2>&1 || true)" "warn  journal: there is no /tmp/chainwriter.db"
    has "$(fails_with 78 chainwriter --unit acne status)" "those that have: acme"
    has "$(fails_with 78 setpriv --reuid nobody --clear-groups chainwriter --unit acme status)" "run this as root"
    # What root made or touched is still the worker's.
    equal "$(find /var/lib/private/chainwriter/acme ! -user "$(stat -c %u /var/lib/private/chainwriter/acme)" | wc -l)" 0
}

a_killed_worker_comes_back_and_writes_nothing_twice() {
    local before main id
    before=$(nonce acme)
    main=$(systemctl show -P MainPID chainwriter@acme)
    for id in $(seq 20); do publish acme "killed-$id"; done
    kill -KILL "$main"
    for id in $(seq 21 40); do publish acme "killed-$id"; done
    for id in $(seq 40); do wait_final acme "killed-$id"; done
    [ "$(systemctl show -P MainPID chainwriter@acme)" != "$main" ] || fail "it was not started again"
    equal "$(($(nonce acme) - before))" 40
}

a_reload_takes_over_what_it_can_and_fails_visibly() {
    local config=/etc/chainwriter/acme.toml
    cp $config /tmp/acme.toml
    printf '\n[log]\nlevel = "debug"\n' >>$config
    systemctl reload chainwriter@acme || fail "a good file is refused"
    wait_for "the level" grep_journal acme "taken over: log.level"
    printf '\n[fees]\nmax_fee = "a lot"\n' >>$config
    if systemctl reload chainwriter@acme 2>/dev/null; then fail "a broken file is taken"; fi
    wait_for "the fault" sh -c "journalctl -o cat -p err -u chainwriter@acme | grep -q 'fees.max_fee'"
    equal "$(systemctl is-active chainwriter@acme)" active
    cp /tmp/acme.toml $config
    systemctl reload chainwriter@acme
    publish acme reloaded-1
    wait_final acme reloaded-1
}

a_rotated_secret_counts_after_a_restart() {
    rabbitmqctl --quiet change_password acme another-password
    printf 'amqp://acme:another-password@127.0.0.1/acme' >/etc/chainwriter/credentials/acme/broker-uri
    systemctl restart chainwriter@acme
    publish acme rotated-1
    wait_final acme rotated-1
}

encrypted_credentials_work_and_two_of_one_name_are_refused() {
    local plain=/etc/chainwriter/credentials/acme encrypted=/etc/chainwriter/encrypted/acme
    install -d -m 0700 $encrypted
    systemd-creds encrypt --name=encrypted_signer.key $plain/signer.key $encrypted/signer.key
    systemctl restart chainwriter@acme 2>/dev/null || true
    ended acme 78 "signer.key is there twice"
    rm $plain/signer.key
    systemctl start chainwriter@acme
    publish acme encrypted-1
    wait_final acme encrypted-1
    # A stopped unit's are decrypted for the command alone.
    systemctl stop chainwriter@acme
    has "$(chainwriter --unit acme status encrypted-1 2>&1 || true)" "encrypted-1: final"
    # One that this host cannot decrypt: no restart corrects that.
    echo nonsense >$encrypted/other
    systemctl start chainwriter@acme 2>/dev/null || true
    ended acme 243 ""
    rm $encrypted/other
    systemctl reset-failed chainwriter@acme
    systemctl start chainwriter@acme
}

faults_that_no_restart_corrects_stop_it_with_the_reason() {
    local config=/etc/chainwriter/acme.toml
    cp $config /tmp/acme.toml
    sed -i 's/^id = .*/id = "none"/' $config
    systemctl restart chainwriter@acme 2>/dev/null || true
    ended acme 78 "chain.id"
    chmod 0600 $config
    systemctl restart chainwriter@acme 2>/dev/null || true
    ended acme 78 "acme.toml cannot be read: Permission denied"
    cp /tmp/acme.toml $config
    chmod 0644 $config
    systemctl start chainwriter@acme
    # The journal of a later version: a downgrade names both.
    systemctl stop chainwriter@acme
    sqlite3 /var/lib/private/chainwriter/acme/chainwriter.db '.backup /tmp/before.db'
    local known
    known=$(sqlite3 /var/lib/private/chainwriter/acme/chainwriter.db 'PRAGMA user_version')
    sqlite3 /var/lib/private/chainwriter/acme/chainwriter.db \
        "PRAGMA user_version = 99; UPDATE counters SET value = 99 WHERE name = 'oldest_schema'"
    systemctl start chainwriter@acme 2>/dev/null || true
    ended acme 76 "version 99, this program knows $known"
    sqlite3 -cmd "ATTACH '/tmp/before.db' AS before" /var/lib/private/chainwriter/acme/chainwriter.db "PRAGMA user_version = $known;
        UPDATE counters SET value = (SELECT value FROM before.counters WHERE name = 'oldest_schema') WHERE name = 'oldest_schema'"
    chown --reference=/var/lib/private/chainwriter/acme /var/lib/private/chainwriter/acme/*
    systemctl start chainwriter@acme
    publish acme after-faults-1
    wait_final acme after-faults-1
}

an_outage_at_the_start_is_no_failure() {
    systemctl stop chainwriter@acme
    rabbitmqctl --quiet stop_app
    systemctl kill --signal=STOP node
    systemctl start chainwriter@acme || fail "it is not ready without a broker and a node"
    wait_for "the status" sh -c "systemctl show -P StatusText chainwriter@acme | grep -q 'broker away: cannot connect'"
    systemctl kill --signal=CONT node
    rabbitmqctl --quiet start_app
    publish acme outage-1
    wait_final acme outage-1
    equal "$(systemctl show -P NRestarts chainwriter@acme)" 0
}

two_organisations_share_a_host_and_no_secret() {
    new_organisation other
    start other
    publish other other-1
    wait_final other other-1
    local acme other
    acme=$(stat -c %u /var/lib/private/chainwriter/acme)
    other=$(stat -c %u /var/lib/private/chainwriter/other)
    [ "$acme" != "$other" ] || fail "both have the user $acme"
    has "$(chainwriter --unit other status 2>&1)" "other.writes"
    has "$(chainwriter --unit acme status 2>&1)" "acme.writes"
}

a_keystore_works_as_shipped() {
    new_organisation keys
    local folder=/etc/chainwriter/credentials/keys
    printf 'a good password' >$folder/signer.password
    chmod 0600 $folder/signer.password
    chainwriter key import $folder/signer.json --password-file $folder/signer.password <$folder/signer.key
    rm $folder/signer.key
    sed -i 's/^key_file = .*/keystore = "signer.json"\npassword_file = "signer.password"/' /etc/chainwriter/keys.toml
    start keys
    publish keys keys-1
    wait_final keys keys-1
    systemctl stop chainwriter@keys
}

a_remote_signer_over_tls_works_as_shipped() {
    new_organisation remote
    local folder=/etc/chainwriter/credentials/remote account
    account=$(account_of remote)
    make_authority /tmp/ca
    systemd-run --quiet --unit=signer --property=Type=exec \
        /usr/bin/socat "OPENSSL-LISTEN:9000,reuseaddr,fork,cert=/tmp/ca/server.pem,cafile=/tmp/ca/ca.pem,verify=1" TCP:127.0.0.1:8545
    install -m 0600 /tmp/ca/ca.pem /tmp/ca/client.pem /tmp/ca/client.key $folder/
    rm $folder/signer.key
    sed -i "s|^key_file = .*|url = \"https://localhost:9000\"\naddress = \"$account\"\nca_file = \"ca.pem\"\ncertificate_file = \"client.pem\"\ncertificate_key_file = \"client.key\"|" \
        /etc/chainwriter/remote.toml
    start remote
    publish remote remote-1
    wait_final remote remote-1
    systemctl stop chainwriter@remote
}

a_journal_in_postgresql_works_as_shipped() {
    new_organisation base
    wait_for "PostgreSQL" su postgres -c 'psql -qc "SELECT 1"'
    su postgres -c "psql -q -c \"CREATE ROLE chainwriter LOGIN PASSWORD 'secret'\" -c \"CREATE DATABASE journal OWNER chainwriter ENCODING 'UTF8' TEMPLATE template0\""
    printf 'postgres://chainwriter:secret@127.0.0.1/journal?sslmode=disable' >/etc/chainwriter/credentials/base/journal-url
    chmod 0600 /etc/chainwriter/credentials/base/journal-url
    sed -i 's|^url = "sqlite.*|url_file = "journal-url"|' /etc/chainwriter/base.toml
    # A database that is away at the start is waited for, longer than the time for a start.
    install -d /run/systemd/system/chainwriter@base.service.d
    printf '[Service]\nTimeoutStartSec=8\n' >/run/systemd/system/chainwriter@base.service.d/short.conf
    systemctl daemon-reload
    systemctl stop postgresql
    systemctl start --no-block chainwriter@base
    sleep 12
    has "$(status_text base)" "opening the journal"
    systemctl start postgresql
    start base
    equal "$(systemctl show -P NRestarts chainwriter@base)" 0
    publish base base-1
    wait_final base base-1
    has "$(chainwriter --unit base status base-1 2>&1)" "final"
    systemctl stop chainwriter@base
}

a_backup_comes_back_only_by_a_recovery() {
    local folder=/var/lib/private/chainwriter/acme before
    start acme
    chainwriter --unit acme journal backup /var/tmp/acme.db
    equal "$(stat -c '%a %U' /var/tmp/acme.db)" "600 root"
    publish acme backup-1
    wait_final acme backup-1
    systemctl stop chainwriter@acme
    install -m 0600 /var/tmp/acme.db $folder/chainwriter.db
    rm -f $folder/chainwriter.db-wal $folder/chainwriter.db-shm
    chown --reference=$folder $folder/chainwriter.db
    systemctl start chainwriter@acme
    publish acme backup-1
    wait_for "the pause" sh -c "systemctl show -P StatusText chainwriter@acme | grep -q journal_is_behind"
    systemctl stop chainwriter@acme
    chainwriter --unit acme recover --from-block 0
    equal "$(find $folder ! -user "$(stat -c %u $folder)" | wc -l)" 0
    before=$(nonce acme)
    start acme
    # What the copy does not know, and the chain has, is not written again.
    publish acme backup-2
    wait_final acme backup-2
    wait_for "backup-1 to be a dead letter" sh -c "chainwriter --unit acme status backup-1 2>/dev/null | grep -q 'maybe_written'"
    equal "$(($(nonce acme) - before))" 1
    chainwriter --unit acme recover --end
}

an_upgrade_with_messages_in_flight_loses_none() {
    local before id main
    before=$(nonce acme)
    main=$(systemctl show -P MainPID chainwriter@acme)
    for id in $(seq 20); do publish acme "upgrade-$id"; done
    dpkg --install /given/later.deb >/dev/null
    [ "$(systemctl show -P MainPID chainwriter@acme)" != "$main" ] || fail "the upgrade did not restart it"
    for id in $(seq 21 30); do publish acme "upgrade-$id"; done
    for id in $(seq 30); do wait_final acme "upgrade-$id"; done
    equal "$(($(nonce acme) - before))" 30
    # And back: the tables are the same.
    dpkg --install /given/chainwriter.deb 2>/dev/null >/dev/null
    publish acme downgrade-1
    wait_final acme downgrade-1
}

a_removed_package_leaves_keys_and_journals() {
    local said
    dpkg --remove chainwriter >/dev/null
    equal "$(systemctl is-active chainwriter@acme)" inactive
    [ -e /var/lib/private/chainwriter/acme/chainwriter.db ] || fail "the journal is gone"
    ln -sf /usr/lib/systemd/system/chainwriter@.service /etc/systemd/system/multi-user.target.wants/chainwriter@acme.service
    said=$(dpkg --purge chainwriter 2>&1)
    has "$said" "/var/lib/private/chainwriter stays"
    has "$said" "/etc/chainwriter stays"
    [ -e /var/lib/private/chainwriter/acme/chainwriter.db ] || fail "purge took the journal"
    [ ! -e /etc/systemd/system/multi-user.target.wants/chainwriter@acme.service ] || fail "the unit is still enabled"
    dpkg --install /given/chainwriter.deb >/dev/null
    CHAINWRITER_PURGE=all dpkg --purge chainwriter >/dev/null 2>&1
    [ ! -e /etc/chainwriter ] && [ ! -e /var/lib/private/chainwriter ] || fail "purge was asked to remove all, and did not"
}

run_steps the_package_installs_what_it_should stage_is_set -- \
    the_unit_is_without_complaint \
    three_commands_lead_to_a_written_message \
    lines_in_the_journal_have_one_time_and_their_priority \
    commands_find_the_unit \
    a_killed_worker_comes_back_and_writes_nothing_twice \
    a_reload_takes_over_what_it_can_and_fails_visibly \
    a_rotated_secret_counts_after_a_restart \
    encrypted_credentials_work_and_two_of_one_name_are_refused \
    faults_that_no_restart_corrects_stop_it_with_the_reason \
    an_outage_at_the_start_is_no_failure \
    two_organisations_share_a_host_and_no_secret \
    a_keystore_works_as_shipped \
    a_remote_signer_over_tls_works_as_shipped \
    a_journal_in_postgresql_works_as_shipped \
    a_backup_comes_back_only_by_a_recovery \
    an_upgrade_with_messages_in_flight_loses_none \
    a_removed_package_leaves_keys_and_journals
