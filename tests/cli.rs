//! The command line without any service: exit codes, every fault at once, no secrets in what is printed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "the lint's own exception for tests misses their helpers"
)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Known to everyone: the first account of the mnemonic that development nodes use.
const KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
const ADDRESS: &str = "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266";
const PASSWORD: &str = "hunter2secret";
const API_KEY: &str = "apikey0123456789";

/// A folder with a configuration and a key file.
struct Home {
    folder: TempDir,
}

struct Ran {
    code: i32,
    /// What it printed, on both streams.
    text: String,
}

impl Home {
    fn new(toml: &str) -> Self {
        let home = Self { folder: tempfile::tempdir().unwrap() };
        home.write("worker.toml", &toml.replace("{folder}", &home.folder.path().display().to_string()));
        home.write("signer.key", KEY);
        home.protect("signer.key", 0o600);
        home
    }

    /// A configuration without fault that reaches nothing: port 9 (discard) is closed here.
    fn sound() -> Self {
        Self::new(&sound("amqp://guest:guest@127.0.0.1:9/%2f", "http://127.0.0.1:9"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn protect(&self, name: &str, mode: u32) {
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = bare(arguments);
        command.arg("--config").arg(self.path("worker.toml")).current_dir(self.folder.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        ran(self.command(arguments).output().unwrap())
    }
}

fn sound(broker_uri: &str, endpoint: &str) -> String {
    format!(
        "[worker]\norganisation = \"acme\"\n[broker]\nuri = {broker_uri:?}\nqueue = \"acme.writes\"\n\
         [chain]\nid = 31337\nendpoints = [{endpoint:?}]\n\
         [write]\nto = \"0x00000000000000000000000000000000000000aa\"\n\
         [journal]\nurl = \"sqlite:{{folder}}/journal.db\"\n[http]\nlisten = \"\"\n\
         [[signer]]\nkey_file = \"{{folder}}/signer.key\"\n"
    )
}

/// The program, with nothing of this process's environment that it would read.
fn bare(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chainwriter"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CHAINWRITER") || name == "CREDENTIALS_DIRECTORY" {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

fn ran(output: Output) -> Ran {
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Ran { code: output.status.code().unwrap_or(-1), text }
}

impl Ran {
    #[track_caller]
    fn is(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{}", self.text);
        for part in parts {
            assert!(self.text.contains(part), "{part:?} is missing in:\n{}", self.text);
        }
    }

    #[track_caller]
    fn lacks(&self, secrets: &[&str]) {
        for secret in secrets {
            assert!(!self.text.contains(secret), "{secret:?} is in:\n{}", self.text);
        }
    }
}

#[test]
fn a_sound_configuration_is_said_to_be_so_with_the_accounts() {
    let checked = Home::sound().run(&["check"]);
    checked.is(0, &["ok    configuration", ADDRESS]);
    checked.lacks(&[&KEY[2..]]);
}

/// Covers C48 for the configuration: one run shows every fault.
#[test]
fn all_faults_of_a_configuration_come_at_once_with_their_keys() {
    let home = Home::new(
        "[worker]\norganisation = \"not a name\"\nmax_open = 0\n\
         [broker]\nprefetch = 70000\ntopology = \"perhaps\"\nmax_hold = \"a while\"\nmax_body = \"17 MiB\"\nprefech = 5\n\
         reconnect_initial = \"20s\"\nreconnect_max = \"10s\"\n\
         [request]\nid = \"cookie:a\"\nscope = \"tenant\"\n\
         [retry]\nmax_attempts = 101\nmultiplier = 0.5\ninitial_delay = \"1h\"\nmax_delay = \"1m\"\n\
         [chain]\nendpoints = []\nfinality = \"soon\"\nmax_lag = 0\nmax_head_age = \"0s\"\n\
         [chain.errors]\nrefused = [\"no\"]\npool_full = [\"\"]\nsyncing = 3\nunderpriced = [\"NO\"]\nfull = [\"a\"]\n\
         [write]\ngas = 11999\nvalue = \"much\"\n\
         [fees]\nmode = \"cheap\"\n\
         [journal]\nurl = \"sqlite:\"\n\
         [lease]\nttl = \"1s\"\n\
         [log]\nlevel = \"loud\"\n\
         [telemetry]\nport = 9\n\
         [[signer]]\nkey_file = \"{folder}/nowhere.key\"\n",
    );
    let checked = home.run(&["check"]);
    let keys = [
        "worker.organisation",
        "worker.max_open",
        "broker.queue: is not set",
        "broker.prefetch",
        "broker.topology",
        "broker.max_hold",
        "broker.max_body",
        "broker.prefech: is not known",
        "broker.reconnect_initial",
        "request.id",
        "request.scope",
        "retry.max_attempts",
        "retry.multiplier",
        "retry.initial_delay",
        "chain.id: is not set",
        "chain.endpoints",
        "chain.finality",
        "chain.max_lag",
        "chain.max_head_age",
        "chain.errors.refused: \"no\" stands under another meaning too",
        "chain.errors.pool_full: holds an empty text",
        "chain.errors.syncing: expected a list of texts",
        "chain.errors.full: is not known; [chain.errors] has already_known, nonce_too_low",
        "write.to: is not set",
        "write.gas",
        "write.value",
        "fees.mode",
        "journal.url",
        "lease.ttl",
        "log.level",
        "telemetry: is not a section",
        "nowhere.key cannot be read",
        "32 faults",
    ];
    checked.is(78, &keys);
    for arguments in [["run"].as_slice(), &["topology", "print"], &["status", "a"], &["publish", "-"]] {
        home.run(arguments).is(78, &keys);
    }
}

#[test]
fn without_a_configuration_the_required_keys_are_named() {
    let missing = ["worker.organisation", "broker.queue", "chain.id", "write.to", "[[signer]]"];
    ran(bare(&["check"]).output().unwrap()).is(78, &missing);
}

#[test]
fn a_configuration_file_that_is_not_there_is_named() {
    let missing = ran(bare(&["check", "--config", "/nowhere/worker.toml"]).output().unwrap());
    missing.is(78, &["the configuration file /nowhere/worker.toml cannot be read: No such file"]);
}

#[test]
fn a_file_that_is_no_toml_is_refused_with_the_number_of_the_line() {
    Home::new("[worker]\norganisation = acme\n").run(&["check"]).is(78, &["line 2", "a text needs quotes"]);
}

#[test]
fn a_key_file_that_others_may_read_is_refused_with_the_way_to_mend_it() {
    let home = Home::sound();
    for mode in [0o640, 0o604, 0o644] {
        home.protect("signer.key", mode);
        let key = home.path("signer.key");
        home.run(&["check"]).is(78, &[&format!("chmod 600 {}", key.display())]);
        home.run(&["run"]).is(78, &["chmod 600"]);
    }
    home.protect("signer.key", 0o400);
    home.run(&["check"]).is(0, &[]);
}

#[test]
fn the_environment_wins_over_the_file() {
    let home = Home::sound();
    let printed = |command: &mut Command| ran(command.output().unwrap());
    let print = ["topology", "print"];
    printed(&mut home.command(&print)).is(0, &["\"acme.writes\""]);
    let other = printed(home.command(&print).env("CHAINWRITER__BROKER__QUEUE", "other.writes"));
    other.is(0, &["\"other.writes\"", "\"other.writes.dead\""]);
    other.lacks(&["acme.writes"]);
    printed(home.command(&["check"]).env("CHAINWRITER__CHAIN__ID", "none")).is(78, &["chain.id"]);
    printed(home.command(&["check"]).env("CHAINWRITER__CHAIN__IDD", "1")).is(78, &["chain.idd: is not known"]);
    let two = "http://127.0.0.1:9,ftp://127.0.0.1";
    printed(home.command(&["check"]).env("CHAINWRITER__CHAIN__ENDPOINTS", two)).is(78, &["number 2"]);
}

#[test]
fn the_configuration_file_may_be_named_in_the_environment() {
    let home = Home::sound();
    let checked = bare(&["check"]).env("CHAINWRITER_CONFIG", home.path("worker.toml")).output();
    ran(checked.unwrap()).is(0, &[ADDRESS]);
}

#[test]
fn a_relative_key_file_is_looked_for_among_the_credentials() {
    let home = Home::new(&sound("amqp://127.0.0.1:9", "http://127.0.0.1:9").replace("{folder}/signer.key", "acme.key"));
    home.run(&["check"]).is(78, &["acme.key cannot be read"]);
    std::fs::create_dir(home.path("credentials")).unwrap();
    home.write("credentials/acme.key", KEY);
    home.protect("credentials/acme.key", 0o600);
    let mut check = home.command(&["check"]);
    check.env("CREDENTIALS_DIRECTORY", home.path("credentials"));
    ran(check.output().unwrap()).is(0, &[ADDRESS]);
}

#[test]
fn a_wrong_command_line_ends_with_64_and_help_with_0() {
    for arguments in [["fly"].as_slice(), &[], &["check", "--fast"], &["publish"], &["topology"]] {
        let answer = ran(bare(arguments).output().unwrap());
        assert_eq!(answer.code, 64, "{arguments:?}: {}", answer.text);
        assert!(answer.text.contains("Usage"), "{}", answer.text);
    }
    ran(bare(&["--help"]).output().unwrap()).is(0, &["run", "check", "topology", "publish", "status"]);
    ran(bare(&["--version"]).output().unwrap()).is(0, &[env!("CARGO_PKG_VERSION")]);
}

/// Nothing is touched by a slip: neither all letters, nor any without a word why.
#[test]
fn commands_for_dead_letters_that_do_not_say_which_or_why_end_with_64() {
    let home = Home::sound();
    home.run(&["dead", "replay"]).is(64, &["say which", "--all"]);
    home.run(&["dead", "discard", "--reason", "why"]).is(64, &["say which", "--all"]);
    home.run(&["dead", "discard", "a"]).is(64, &["--reason"]);
    home.run(&["dead", "replay", "--all", "--rate", "0"]).is(64, &["--rate"]);
    home.run(&["dead", "export", "--all", "--remove", "--yes"]).is(64, &["--to FILE"]);
    home.run(&["dead", "list", "--limit", "0"]).is(64, &["--limit"]);
    home.run(&["dead", "list", "--older-than", "soon"]).is(64, &["--older-than"]);
    home.run(&["dead", "list", "--header", "tenant"]).is(64, &["NAME=VALUE"]);
    home.run(&["dead", "replay", "a", "--reason", &"x".repeat(600)]).is(64, &["512 bytes"]);
    home.run(&["dead", "list"]).is(69, &["127.0.0.1:9"]);
    home.run(&["dead", "show", "a"]).is(74, &["journal"]);
}

#[test]
fn the_topology_is_printed_as_definitions_of_all_objects() {
    let home = Home::sound();
    let printed = home.run(&["topology", "print", "--vhost", "acme"]);
    let definitions: Value = serde_json::from_str(&printed.text).unwrap();
    let names = |kind: &str| -> Vec<&str> {
        let objects = definitions[kind].as_array().unwrap();
        assert!(objects.iter().all(|object| object["vhost"] == "acme"), "{definitions}");
        objects.iter().map(|object| object["name"].as_str().unwrap_or_default()).collect()
    };
    assert_eq!(
        names("exchanges"),
        ["acme.writes.retry", "acme.writes.dead", "acme.writes.events.unrouted", "acme.writes.events"]
    );
    assert_eq!(
        names("queues"),
        [
            "acme.writes",
            "acme.writes.dead",
            "acme.writes.journal",
            "acme.writes.events.unrouted",
            "acme.writes.wait.5s",
            "acme.writes.wait.15s",
            "acme.writes.wait.30s",
            "acme.writes.wait.45s",
            "acme.writes.wait.135s",
            "acme.writes.wait.405s",
        ]
    );
    let bindings = definitions["bindings"].as_array().unwrap();
    for queue in names("queues").into_iter().skip(1) {
        assert!(bindings.iter().any(|binding| binding["destination"] == queue), "{queue} is bound");
    }
}

#[test]
fn the_state_of_a_request_needs_a_journal_that_knows_it() {
    let home = Home::sound();
    home.run(&["status", "order-1"]).is(74, &["journal.db", "journal.url"]);
    assert!(!home.path("journal.db").exists(), "a look makes no journal");
    let log = run_until(&home, |log| log.contains("chainwriter 0"));
    assert!(home.path("journal.db").exists(), "{log}");
    home.run(&["status", "order-1"]).is(1, &["order-1: the journal does not know it"]);
    home.run(&["status", "--json", "order-1"]).is(1, &["order-1: the journal does not know it"]);
}

/// A secret beside the fault must not be shown with it.
#[test]
fn faults_do_not_repeat_secrets() {
    let uri = format!("amqp://guest:{PASSWORD}@127.0.0.1:9/%2f");
    let endpoint = format!("http://127.0.0.1:9/v3/{API_KEY}");
    let good = sound(&uri, &endpoint);
    let secret_key = &KEY[2..40];
    let key_line = "key_file = \"{folder}/signer.key\"";
    let wrong = [
        // The address is none.
        good.replace("amqp://", "http://"),
        good.replace("amqp://", "amqp:/"),
        good.replace("127.0.0.1:9/%2f", "127.0.0.1:port/%2f"),
        good.replace(&format!("{uri:?}"), &format!("[{uri:?}]")),
        good.replace("[broker]\n", "[broker.uri]\n"),
        // It stands in another place.
        good.replace("[broker]\nuri = ", "broker = ").replace("queue = \"acme.writes\"\n", ""),
        good.replace("sqlite:{folder}/journal.db", &format!("postgres://guest:{PASSWORD}@127.0.0.1:port/journal")),
        good.replace("sqlite:{folder}/journal.db", &format!("postgres://guest:{PASSWORD}@db/journal?sslmode=no")),
        good.replace("sqlite:{folder}/journal.db", &format!("mysql://guest:{PASSWORD}@127.0.0.1/journal")),
        // The endpoint is none.
        good.replace("http://127.0.0.1:9/v3", "ftp://127.0.0.1"),
        good.replace("http://127.0.0.1:9/v3/", ""),
        good.replace("endpoints = [", "endpoint = ["),
        good.replace(&format!("[{endpoint:?}]"), &format!("{{ url = {endpoint:?} }}")),
        // The key is none.
        good.replace(key_line, &format!("key = \"{KEY}00\"")),
        good.replace(key_line, &format!("key = \"{}\"", &KEY[..60])),
        good.replace(key_line, &format!("key = \"{}zz\"", &KEY[..64])),
        good.replace(key_line, &format!("key = [\"{KEY}\"]")),
        good.replace(key_line, &format!("kee = \"{KEY}\"")),
        good.replace(&format!("[[signer]]\n{key_line}"), &format!("[signer]\nkey = \"{KEY}\"")),
        format!("signer = [\"{KEY}\"]\n{}", good.replace(&format!("[[signer]]\n{key_line}"), "")),
        format!("signer = \"{KEY}\"\n{}", good.replace(&format!("[[signer]]\n{key_line}"), "")),
        // No TOML: quotes are missing.
        good.replace(&format!("{uri:?}"), &uri),
        good.replace("%2f\"", "%2f"),
        good.replace(&format!("{endpoint:?}"), &endpoint),
        good.replace(key_line, &format!("key = {KEY}")),
        good.replace(key_line, &format!("key = \"{KEY}")),
        good.replace(key_line, &format!("key = \"{KEY}\"\nkey = \"{KEY}\"")),
    ];
    let mut problems = Vec::new();
    for toml in wrong {
        assert_ne!(toml, good);
        let home = Home::new(&toml);
        for command in [["check"].as_slice(), &["topology", "print"]] {
            let Ran { code, text } = home.run(command);
            let shown: Vec<_> = [PASSWORD, API_KEY, secret_key].into_iter().filter(|s| text.contains(s)).collect();
            if code != 78 || !shown.is_empty() {
                problems.push(format!("--- for\n{toml}\n--- it ends with {code}, shows {shown:?}, and says\n{text}"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn what_a_key_file_or_an_address_file_holds_is_not_shown() {
    let home =
        Home::new(&sound("amqp://127.0.0.1:9", "http://127.0.0.1:9").replace("uri =", "uri_file = \"uri\"\nuri ="));
    home.write("signer.key", &format!("{KEY} and more"));
    let answer = home.run(&["check"]);
    answer.is(78, &["signer[1].key_file"]);
    answer.lacks(&[&KEY[2..40]]);
    home.write("signer.key", KEY);
    home.write("uri", &format!("amqp//guest:{PASSWORD}@127.0.0.1"));
    let answer = home.run(&["check", "--connect"]);
    answer.is(69, &["broker.uri"]);
    answer.lacks(&[PASSWORD]);
}

/// Neither the log of a run that reaches nothing, nor one whose broker and node answer nonsense, nor `check --connect`.
#[test]
fn logs_and_connection_errors_do_not_repeat_secrets() {
    let nonsense = nonsense_port("HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{\"id\":false");
    let refusal = nonsense_port("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n");
    for port in [9, nonsense, refusal] {
        let uri = format!("amqp://guest:{PASSWORD}@127.0.0.1:{port}/%2f");
        let endpoint = format!("http://user:{PASSWORD}@127.0.0.1:{port}/v3/{API_KEY}?token={API_KEY}");
        let home = Home::new(&(sound(&uri, &endpoint) + "[log]\nlevel = \"trace\"\n"));
        let checked = home.run(&["check", "--connect"]);
        checked.is(69, &["fail  ", &format!("127.0.0.1:{port}")]);
        checked.lacks(&[PASSWORD, API_KEY]);
        let log = run_until(&home, |log| log.contains("the broker cannot be used") && log.contains("the lane pauses"));
        Ran { code: 0, text: log }.lacks(&[PASSWORD, API_KEY, &KEY[2..]]);
    }
}

/// Where systemd says that standard error is journald's; and only there, for children have the variable too.
#[test]
fn lines_for_journald_begin_with_their_priority() {
    use std::os::unix::fs::MetadataExt;
    // journald has a time for each line itself, so a line of text has none there.
    for (format, begins, in_journald) in [("text", "20", " "), ("json", "{", "{")] {
        let toml = sound("amqp://127.0.0.1:9", "http://127.0.0.1:9") + &format!("[log]\nformat = \"{format}\"\n");
        let home = Home::new(&toml);
        std::fs::write(home.path("run.log"), "").unwrap();
        let file = std::fs::metadata(home.path("run.log")).unwrap();
        let is_enough = |log: &str| log.contains("the lane pauses");
        let own = format!("{}:{}", file.dev(), file.ino());
        let log = run_until_with(&home, &[("JOURNAL_STREAM", &own)], is_enough);
        let priority = |part: &str| log.lines().find(|line| line.contains(part)).unwrap_or_default().get(..4);
        assert_eq!(priority("chainwriter 0."), Some(&*format!("<6>{in_journald}")), "{log}");
        assert_eq!(priority("the endpoint is not used"), Some(&*format!("<4>{in_journald}")), "{log}");
        assert_eq!(priority("the lane pauses"), Some(&*format!("<3>{}", in_journald.replace(' ', "E"))), "{log}");
        let log = run_until_with(&home, &[("JOURNAL_STREAM", "1:1")], is_enough);
        assert!(log.lines().all(|line| line.starts_with(begins)), "{log}");
    }
}

/// The configuration is whole, its secrets are the owner's alone, and nothing is left behind where it has a fault.
#[test]
fn a_new_unit_is_written_whole_or_not_at_all() {
    let home = Home::sound();
    let folder = home.path("etc");
    std::fs::create_dir(&folder).unwrap();
    home.write("uri", "amqps://user:hunter2secret@mq.example/acme\n");
    let init = |name: &str, more: &[&str]| {
        let mut command = bare(&["init", name, "--folder"]);
        command.arg(&folder).arg("--broker-uri-file").arg(home.path("uri"));
        ran(command.args(more).output().unwrap())
    };
    let to = "0x00000000000000000000000000000000000000aa";
    let rest = ["--endpoint", "http://127.0.0.1:9", "--to", to];
    let key = home.path("signer.key");
    let whole = [&["--chain-id", "31337", "--key-file", key.to_str().unwrap()], rest.as_slice()].concat();
    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        entries.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    for (name, wrong, code, says) in [
        ("acme", [&["--chain-id", "none"], rest.as_slice()].concat(), 78, "line"),
        ("acme", [&["--chain-id", "0"], rest.as_slice()].concat(), 78, "chain.id"),
        ("acme", rest.to_vec(), 64, "--chain-id"),
        ("../acme", whole.clone(), 64, "no name of a unit"),
        ("a-name-that-is-longer-than-a-user", whole.clone(), 64, "no name of a unit"),
    ] {
        init(name, &wrong).is(code, &[says]);
        assert!(names(&folder).is_empty(), "{:?}", names(&folder));
    }
    init("acme", &whole).is(0, &[ADDRESS, "doctor", "chainwriter@acme"]);
    assert_eq!(names(&folder), ["acme.toml", "credentials"]);
    let mode = |path: &str| std::fs::metadata(folder.join(path)).unwrap().permissions().mode() & 0o777;
    let modes =
        ["acme.toml", "credentials", "credentials/acme", "credentials/acme/broker-uri", "credentials/acme/signer.key"];
    assert_eq!(modes.map(mode), [0o644, 0o700, 0o700, 0o600, 0o600]);
    let mut check = bare(&["check", "--config"]);
    check.arg(folder.join("acme.toml")).env("CREDENTIALS_DIRECTORY", folder.join("credentials/acme"));
    ran(check.output().unwrap()).is(0, &[ADDRESS]);
    init("acme", &whole).is(64, &["is there already"]);
    // Another unit has another key, which is new, and another port.
    init("other", &[&["--chain-id", "1"], rest.as_slice()].concat()).is(0, &["has a new key"]);
    assert!(std::fs::read_to_string(folder.join("other.toml")).unwrap().contains("listen = \"127.0.0.1:197"));
}

/// Secrets are hidden, and each value says which layer it comes from.
#[test]
fn what_counts_is_shown_with_its_origin_and_without_secrets() {
    let toml = sound("amqp://user:hunter2secret@127.0.0.1:9/%2f", "http://127.0.0.1:9/apikey0123456789");
    let home = Home::new(&(toml.replace("key_file = \"{folder}/signer.key\"", &format!("key = {KEY:?}"))));
    let shown = ran(home.command(&["config", "show", "--origin"]).env("CHAINWRITER__CHAIN__ID", "5").output().unwrap());
    let of_file = format!("broker.queue = \"acme.writes\"  # {}", home.path("worker.toml").display());
    shown.is(0, &["chain.id = \"5\"  # CHAINWRITER__CHAIN__ID", "chain.max_lag = 10  # default", &of_file]);
    shown.lacks(&[PASSWORD, API_KEY, &KEY[2..]]);
    home.run(&["config", "show"]).is(0, &["chain.id = 31337\n"]);
    ran(bare(&["config", "defaults"]).output().unwrap()).is(0, &["# chainwriter: every key with its default"]);
    let underscore = ran(home.command(&["check"]).env("CHAINWRITER_CHAIN_ID", "5").output().unwrap());
    underscore.is(78, &["CHAINWRITER__CHAIN__ID"]);
}

/// A container's health check has its answer from the exit code alone.
#[test]
fn the_health_of_a_worker_that_does_not_run_is_bad() {
    let home = Home::sound();
    home.run(&["health"]).is(64, &["http.listen"]);
    let none = ran(home.command(&["health"]).env("CHAINWRITER__HTTP__LISTEN", "127.0.0.1:9").output().unwrap());
    none.is(69, &["no worker answers at 127.0.0.1:9"]);
}

/// A worker without systemd has no socket, and a wrong folder none that answers.
#[test]
fn a_reload_that_reaches_no_worker_fails() {
    ran(bare(&["reload"]).env_remove("RUNTIME_DIRECTORY").output().unwrap()).is(64, &["--unit", "SIGHUP"]);
    let home = Home::sound();
    let folder = home.folder.path().to_str().unwrap();
    ran(bare(&["reload", "--runtime", folder]).output().unwrap()).is(70, &["no worker answers"]);
}

/// For each shell, and a page for each command, with its subcommands; without any configuration.
#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        ran(bare(&["generate", "completions", shell]).output().unwrap())
            .is(0, &["chainwriter", "doctor", "even-forgotten"]);
    }
    ran(bare(&["generate", "completions", "tea"]).output().unwrap()).is(64, &["tea"]);
    let folder = tempfile::tempdir().unwrap();
    let man = folder.path().join("man1");
    ran(bare(&["generate", "man", man.to_str().unwrap()]).output().unwrap()).is(0, &[]);
    for page in ["chainwriter", "chainwriter-run", "chainwriter-doctor", "chainwriter-dead-replay"] {
        let text = std::fs::read_to_string(man.join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".SH NAME"), "{page}: {text}");
    }
    let occupied = folder.path().join("file");
    std::fs::write(&occupied, "").unwrap();
    ran(bare(&["generate", "man", occupied.to_str().unwrap()]).output().unwrap())
        .is(70, &["cannot write manual pages"]);
}

/// Answers whatever comes with this text, for as long as the test runs.
fn nonsense_port(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

/// Runs the daemon until its log says so, then stops it with SIGTERM, after which it must end with 0. Gives the log.
fn run_until(home: &Home, is_enough: impl Fn(&str) -> bool) -> String {
    run_until_with(home, &[], is_enough)
}

/// The same with these variables in its environment.
fn run_until_with(home: &Home, environment: &[(&str, &str)], is_enough: impl Fn(&str) -> bool) -> String {
    let file = home.path("run.log");
    let log = || std::fs::read_to_string(&file).unwrap_or_default();
    let mut command = home.command(&["run"]);
    command.envs(environment.iter().copied()).stderr(std::fs::File::create(&file).unwrap()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    wait(&mut child, "its log says enough", &file, |_| is_enough(&log()));
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    wait(&mut child, "it ends", &file, |child| child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(0), "{}", log());
    log()
}

fn wait(
    child: &mut std::process::Child,
    what: &str,
    log: &Path,
    mut condition: impl FnMut(&mut std::process::Child) -> bool,
) {
    let began = Instant::now();
    while !condition(child) {
        if began.elapsed() > Duration::from_secs(60) {
            let _ = child.kill();
            panic!("not in time: {what}; log:\n{}", std::fs::read_to_string(log).unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A key that was imported is the one that the daemon signs with; no output and no file contains it.
#[test]
fn a_key_is_imported_into_a_file_that_the_configuration_can_name() {
    let home = Home::sound();
    home.write("password", &format!("{PASSWORD}\n"));
    home.protect("password", 0o600);
    let import = |name: &str| {
        let mut command = home.command(&["key", "import", name, "--password-file", "password"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It may have ended already, over a file that is there.
        let _ = child.stdin.take().unwrap().write_all(KEY.as_bytes());
        ran(child.wait_with_output().unwrap())
    };
    let imported = import("signer.json");
    imported.is(0, &[ADDRESS]);
    let file = std::fs::read_to_string(home.path("signer.json")).unwrap();
    imported.lacks(&[&KEY[2..], PASSWORD]);
    assert!(!file.contains(&KEY[2..]) && !file.contains(PASSWORD));
    assert_eq!(std::fs::metadata(home.path("signer.json")).unwrap().permissions().mode() & 0o777, 0o600);
    import("signer.json").is(64, &["signer.json is there already"]);
    assert_eq!(std::fs::read_to_string(home.path("signer.json")).unwrap(), file);
    home.run(&["key", "address", "signer.json", "--password-file", "password"]).is(0, &[ADDRESS]);
    home.run(&["key", "address", "signer.key"]).is(0, &[ADDRESS]);

    let toml = std::fs::read_to_string(home.path("worker.toml")).unwrap();
    let key_file = format!("key_file = \"{}\"", home.path("signer.key").display());
    let named = |password: &str| {
        home.write("worker.toml", &toml.replace(&key_file, &format!("keystore = \"signer.json\"\n{password}")));
        home.run(&["check"])
    };
    named("password_file = \"password\"").is(0, &["ok    configuration", ADDRESS]);
    named("").is(78, &["signer[1].password_file", "is not set"]);
    home.write("password", "another one");
    let refused = named("password_file = \"password\"");
    refused.is(78, &["signer[1].keystore", "signer.json cannot be opened", "the password is not the one"]);
    refused.lacks(&["another one"]);
}

#[test]
fn a_new_key_is_another_each_time_and_wants_a_password() {
    let home = Home::sound();
    home.write("password", "short");
    home.protect("password", 0o600);
    home.run(&["key", "new", "a.json", "--password-file", "password"]).is(64, &["fewer than 8 bytes"]);
    home.run(&["key", "new", "a.json"]).is(64, &["name it with --password-file"]);
    assert!(!home.path("a.json").exists());
    home.write("password", PASSWORD);
    let made: Vec<_> =
        ["a.json", "b.json"].map(|name| home.run(&["key", "new", name, "--password-file", "password"])).into();
    for one in &made {
        one.is(0, &["0x"]);
    }
    assert_ne!(made[0].text, made[1].text);
    home.run(&["key", "address", "a.json", "--password-file", "password"]).is(0, &[&made[0].text]);
}
