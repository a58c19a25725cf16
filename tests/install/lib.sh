# shellcheck shell=bash
# What the steps of inside.sh are made of.

# Anvil's own accounts, one for each organisation in the order in which they are made.
KEYS=(
    ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80
    59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d
    5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a
    7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6
    47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a
)
ACCOUNTS=(
    0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266
    0x70997970c51812dc3a010c7d01b50e0d17dc79c8
    0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc
    0x90f79bf6eb2c4f870365e785982e1f101e93b906
    0x15d34aaf54267db7d7c367839aaf71a00a2c6a65
)
TO=0x00000000000000000000000000000000000000aa
PATIENCE_SECONDS=60
declare -A NUMBER=()

fail() {
    printf '  failed: %s\n' "$*" >&2
    exit 1
}

equal() { [ "$1" = "$2" ] || fail "expected '$2', found '$1'"; }
has() { grep -qF -- "$2" <<<"$1" || fail "'$2' is missing in: $1"; }
lacks() { if grep -qF -- "$2" <<<"$1"; then fail "'$2' is in: $1"; fi; }

# fails_with <code> <command...>: prints what it says.
fails_with() {
    local expected=$1 said code=0
    shift
    said=$("$@" 2>&1) || code=$?
    [ "$code" = "$expected" ] || fail "$* ended with $code, not $expected: $said"
    printf '%s' "$said"
}

# wait_for <what> <command...>
wait_for() {
    local what=$1
    shift
    for _ in $(seq $((PATIENCE_SECONDS * 5))); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.2
    done
    fail "waited for $what in vain"
}

# A chain with a block each second.
start_node() {
    install -m 0755 /given/anvil /usr/local/bin/anvil
    systemd-run --quiet --unit=node --property=Type=exec \
        /usr/local/bin/anvil --quiet --block-time 1 --chain-id 31337
    wait_for "the node" rpc eth_chainId
}

# rpc <method> [parameter...]
rpc() {
    local method=$1 parameters=''
    shift
    for parameter in "$@"; do parameters="$parameters${parameters:+,}\"$parameter\""; done
    curl --silent --fail --max-time 5 -H 'content-type: application/json' \
        -d "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"$method\",\"params\":[$parameters]}" http://127.0.0.1:8545
}

account_of() { printf '%s' "${ACCOUNTS[${NUMBER[$1]}]}"; }

# How many transactions its account has in the chain.
nonce() {
    local answer
    answer=$(rpc eth_getTransactionCount "$(account_of "$1")" latest | sed 's/.*"result":"\(0x[0-9a-f]*\)".*/\1/')
    printf '%d' "$answer"
}

# new_organisation <name>: a virtual host and a user of its own, and what `init` writes.
new_organisation() {
    local name=$1
    NUMBER[$name]=${#NUMBER[@]}
    rabbitmqctl --quiet add_vhost "$name"
    rabbitmqctl --quiet add_user "$name" password
    rabbitmqctl --quiet set_permissions -p "$name" "$name" '.*' '.*' '.*'
    printf '%s' "${KEYS[${NUMBER[$name]}]}" >/tmp/key
    chmod 0600 /tmp/key
    printf 'amqp://%s:password@127.0.0.1/%s' "$name" "$name" |
        chainwriter init "$name" --broker-uri-file - --chain-id 31337 --endpoint http://127.0.0.1:8545 --to "$TO" --key-file /tmp/key
    equal "$(stat -c '%a %U' "/etc/chainwriter/$name.toml" "/etc/chainwriter/credentials/$name/signer.key")" $'644 root\n600 root'
}

# start <name>: and waits until it has made its queue.
start() {
    systemctl start "chainwriter@$1"
    wait_for "$1 to consume" sh -c "systemctl show -P StatusText chainwriter@$1 | grep -q consuming"
}

status_text() { systemctl show -P StatusText "chainwriter@$1"; }

publish() {
    printf '{"id":"%s"}\n' "$2" | chainwriter --unit "$1" publish --id /id - >/tmp/publish.log 2>&1 ||
        fail "cannot publish $2: $(cat /tmp/publish.log)"
}

is_final() { chainwriter --unit "$1" status "$2" 2>/dev/null | grep -q "^$2: final"; }
wait_final() { wait_for "$2 to be final" is_final "$1" "$2"; }
grep_journal() { journalctl -o cat -u "chainwriter@$1" | grep -qF -- "$2"; }

# ended <name> <exit code> <reason>: it has ended with this code, is not started again, and both places say why.
ended() {
    local name=$1 code=$2 reason=$3 restarts
    wait_for "the end of $name" sh -c "[ \"\$(systemctl is-failed chainwriter@$name)\" = failed ]"
    equal "$(systemctl show -P ExecMainStatus "chainwriter@$name")" "$code"
    restarts=$(systemctl show -P NRestarts "chainwriter@$name")
    sleep 7
    equal "$(systemctl is-failed "chainwriter@$name")" failed
    equal "$(systemctl show -P NRestarts "chainwriter@$name")" "$restarts"
    [ -n "$reason" ] || return 0
    has "$(journalctl -o cat -p err -u "chainwriter@$name" -n 20)" "$reason"
    has "$(systemctl status --no-pager "chainwriter@$name" || true)" "$reason"
}

# make_authority <folder>: an authority, a server's and a client's certificate.
make_authority() {
    local folder=$1 name
    mkdir -p "$folder"
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout "$folder/ca.key" -out "$folder/ca.pem" 2>/dev/null
    for name in server client; do
        openssl req -newkey rsa:2048 -nodes -subj "/CN=$name" -keyout "$folder/$name.key" -out "$folder/$name.csr" 2>/dev/null
        openssl x509 -req -days 2 -in "$folder/$name.csr" -CA "$folder/ca.pem" -CAkey "$folder/ca.key" -CAcreateserial \
            -extfile <(printf 'subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n') -out "$folder/$name.pem" 2>/dev/null
    done
    cat "$folder/server.key" >>"$folder/server.pem"
}

# What the units said last, where a step has ended the script.
show_log() {
    journalctl --no-pager -o short-precise -n 80 -u 'chainwriter@*' >&2 || true
    printf '%s\n' "0 passed, 1 failed"
}

# run_steps <steps that set the stage> -- <steps>
run_steps() {
    local is_stage=yes step started passed=0
    trap show_log EXIT
    for step in "$@"; do
        if [ "$step" = -- ]; then
            is_stage=no
            continue
        fi
        if [ "$is_stage" = no ] && [ -n "${CHAINWRITER_ONLY:-}" ] && ! grep -qw "$step" <<<"$CHAINWRITER_ONLY"; then continue; fi
        started=$SECONDS
        printf '%s\n' "- ${step//_/ }"
        "$step"
        passed=$((passed + 1))
        printf '  passed, %s s\n' $((SECONDS - started))
    done
    trap - EXIT
    printf '%s passed, 0 failed\n' "$passed"
}
