//! A broker that demands a certificate, and users with the least rights: as docs/setup/broker-access.md says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lapin::options::BasicGetOptions;

use crate::security::tls::{authority, certificate_for, certificate_of};
use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, wait_log};
use crate::support::contracts::REVERTS_ON_FF;
use crate::support::{Amqp, AnvilConfig, RabbitConfig, WorkerConfig, WorkerHome, free_port, wait_until, with_id};

/// The files of an authority, of the broker, and of those who connect.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["ours", "another"] {
            authority(folder.path(), name);
        }
        certificate_of(folder.path(), "broker", "localhost", "ours", 1);
        Self(folder)
    }

    fn folder(&self) -> &Path {
        self.0.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Options of a listener in Erlang: it shows this certificate.
    fn listener(&self, shown: &str, more: &str) -> String {
        let [authority, certificate, key] =
            ["ours.pem".to_owned(), format!("{shown}.pem"), format!("{shown}.key")].map(|name| self.path(&name));
        format!("[{{cacertfile, {authority:?}}}, {{certfile, {certificate:?}}}, {{keyfile, {key:?}}} {more}]")
    }

    /// Lines of `[broker]` with which a client trusts this authority, and shows this certificate.
    fn lines(&self, trusted: &str, shown: Option<&str>) -> String {
        let mut lines = format!("ca_file = {:?}", self.path(&format!("{trusted}.pem")));
        if let Some(name) = shown {
            let [certificate, key] = ["pem", "key"].map(|suffix| self.path(&format!("{name}.{suffix}")));
            lines += &format!("\ncertificate_file = {certificate:?}\ncertificate_key_file = {key:?}");
        }
        lines
    }
}

const DEMANDS: &str = ", {verify, verify_peer}, {fail_if_no_peer_cert, true}";

/// Makes the users of these kinds, with exactly the rights that `topology permissions` prints.
async fn make_users(stage: &Stage, home: &WorkerHome, roles: &[&str], password: Option<&str>) {
    for role in roles {
        let arguments = ["topology", "permissions", "--vhost", &stage.vhost, "--role", role];
        let (code, text) = home.command(BINARY, &arguments).await;
        assert_eq!(code, 0, "{text}");
        let line = text.lines().find(|line| line.starts_with("rabbitmqctl set_permissions -p ")).expect("a command");
        let words: Vec<_> = line.split('\'').skip(1).step_by(2).collect();
        let user = format!("acme-{role}");
        assert_eq!(words[..2], [stage.vhost.as_str(), &user], "{line}");
        stage.rabbit.add_user(&user, password).await.unwrap();
        stage.rabbit.ctl(&[["set_permissions", "-p"].as_slice(), words.as_slice()].concat()).await.unwrap();
    }
}

fn blocks() -> AnvilConfig {
    AnvilConfig { block_time: Some(Duration::from_secs(1)), ..AnvilConfig::default() }
}

/// The page's example: nobody comes in without a certificate, its common name is the user, and the worker may do what it needs
/// and nothing else.
#[tokio::test]
async fn a_worker_with_a_certificate_and_the_least_rights_works_at_a_broker_that_demands_both() {
    if !crate::support::services_are_here() {
        return;
    }
    let files = Certificates::new();
    for name in ["acme-worker", "acme-topology", "stranger"] {
        certificate_of(files.folder(), name, name, "ours", 1);
    }
    let port = free_port();
    let path = |name: &str| files.path(name).display().to_string();
    let extra_conf = vec![
        format!("listeners.ssl.1 = 127.0.0.1:{port}"),
        format!("ssl_options.cacertfile = {}", path("ours.pem")),
        format!("ssl_options.certfile = {}", path("broker.pem")),
        format!("ssl_options.keyfile = {}", path("broker.key")),
        "ssl_options.verify = verify_peer".to_owned(),
        "ssl_options.fail_if_no_peer_cert = true".to_owned(),
        "auth_mechanisms.1 = PLAIN".to_owned(),
        "auth_mechanisms.2 = EXTERNAL".to_owned(),
        "ssl_cert_login_from = common_name".to_owned(),
    ];
    let broker = RabbitConfig { extra_conf, plugins: vec!["rabbitmq_auth_mechanism_ssl"], ..RabbitConfig::default() };
    let Some(stage) = Stage::with_broker(broker, blocks()).await else { return };
    std::fs::write(files.path("broker-uri"), format!("amqps://localhost:{port}/own\n")).unwrap();
    let as_user = |user: &str| {
        let lines = files.lines("ours", Some(user));
        let uri_file = files.path("broker-uri");
        let lines = format!("uri_file = {uri_file:?}\n{lines}\nauth = \"external\"\ntopology = \"verify\"");
        stage.config().with("broker", lines)
    };
    let home = WorkerHome::new(&as_user("acme-topology"));
    make_users(&stage, &home, &["topology", "worker"], None).await;
    stage.topology(&home).await;
    home.configure(&as_user("stranger"));
    let (code, text) = home.command(BINARY, &["doctor"]).await;
    assert!(code == 69 && text.contains("ACCESS_REFUSED") && text.contains("add a user whose name"), "{code} {text}");

    home.configure(&as_user("acme-worker"));
    let (code, text) = home.command(BINARY, &["doctor"]).await;
    assert!(code == 0 && text.contains("the user may read the work queue"), "{code} {text}");
    let mut worker = home.start(BINARY);
    wait_log(&worker, "connected to the broker").await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"good").await;
    stage.wait_state(&home, "order-1", "final").await;
    let users = stage.rabbit.ctl(&["list_connections", "user", "auth_mechanism"]).await.unwrap();
    assert_eq!(users.lines().filter(|line| line.starts_with("acme-worker\tEXTERNAL")).count(), 2, "{users}");
    // A certificate that was renewed counts from the next connect on: the file is read again.
    certificate_of(files.folder(), "acme-worker", "acme-worker", "ours", 2);
    stage.rabbit.close_all_connections("a test").await.unwrap();
    wait_until("it is connected again", LONG, async || worker.log().matches("connected to the broker").count() == 2)
        .await;
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// B28: whatever stands in the way is named, with the place and the remedy, and nothing goes on without encryption.
#[tokio::test]
async fn what_stands_in_the_way_of_tls_is_named_with_its_remedy() {
    let Some(stage) = Stage::with_own_broker(AnvilConfig::default()).await else { return };
    let files = Certificates::new();
    certificate_for(files.folder(), "over", "ours", -1);
    for (name, authority, days) in [("worker", "ours", 1), ("stranger", "another", 1), ("late", "ours", -1)] {
        certificate_of(files.folder(), name, name, authority, days);
    }
    let listen = async |shown: &str, more: &str| stage.rabbit.listen_tls(&files.listener(shown, more)).await.unwrap();
    let open = listen("broker", "").await;
    let over = listen("over", "").await;
    let demanding = listen("broker", DEMANDS).await;
    let demanding_12 = listen("broker", &format!("{DEMANDS}, {{versions, ['tlsv1.2']}}")).await;
    let old = listen("broker", ", {versions, ['tlsv1.1']}").await;
    let plain = stage.rabbit.address().port();
    let (ours, with_worker) = (files.lines("ours", None), files.lines("ours", Some("worker")));
    let external = format!("{with_worker}\nauth = \"external\"");
    let cases = [
        ("amqps://guest:guest@localhost", open, files.lines("another", None), "UnknownIssuer", "broker.ca_file"),
        ("amqps://guest:guest@127.0.0.1", open, ours.clone(), "not valid for name", "for another host"),
        ("amqps://guest:guest@localhost", over, ours.clone(), "xpired", "ssl_options.certfile"),
        ("amqps://guest:guest@localhost", demanding, ours.clone(), "alert", "set broker.certificate_file"),
        ("amqps://guest:guest@localhost", demanding_12, ours.clone(), "alert", "set broker.certificate_file"),
        (
            "amqps://guest:guest@localhost",
            demanding,
            files.lines("ours", Some("stranger")),
            "alert",
            "ssl_options.cacertfile",
        ),
        (
            "amqps://guest:guest@localhost",
            demanding_12,
            files.lines("ours", Some("stranger")),
            "alert",
            "ssl_options.cacertfile",
        ),
        (
            "amqps://guest:guest@localhost",
            demanding,
            files.lines("ours", Some("late")),
            "xpired",
            "broker.certificate_file",
        ),
        ("amqps://guest:guest@localhost", old, ours.clone(), "alert", "1.2 or 1.3"),
        ("amqps://guest:guest@localhost", plain, ours.clone(), "", "does not answer in TLS"),
        ("amqp://guest:guest@localhost", open, String::new(), "", "write amqps://"),
        ("amqps://localhost", demanding, external, "", "rabbitmq_auth_mechanism_ssl"),
    ];
    for (address, port, lines, what, remedy) in cases {
        let config =
            WorkerConfig { broker_uri: format!("{address}:{port}/own"), ..stage.config().with("broker", &*lines) };
        let home = WorkerHome::new(&config);
        let (code, text) = home.command(BINARY, &["doctor"]).await;
        let host = address.rsplit(['@', '/']).next().unwrap();
        assert_eq!(code, 69, "{address} {lines}: {text}");
        for words in [what, remedy, &format!("{host}:{port} (virtual host own)")] {
            assert!(text.contains(words), "{address}:{port} {lines}: no {words:?} in\n{text}");
        }
        assert!(!text.contains("guest:guest"), "{text}");
    }
    for port in [demanding, demanding_12] {
        let uri = format!("amqps://guest:guest@localhost:{port}/own");
        let config = WorkerConfig { broker_uri: uri, ..stage.config().with("broker", &*with_worker) };
        let home = WorkerHome::new(&config);
        let (code, text) = home.command(BINARY, &["topology", "apply"]).await;
        assert_eq!(code, 0, "with everything right it connects: {text}");
    }
}

/// Each user does its work with the rights that are printed for it, and not that of others.
#[tokio::test]
async fn each_user_does_its_work_with_the_rights_that_are_printed_and_no_others() {
    let Some(stage) = Stage::with_own_broker(blocks()).await else { return };
    let config = stage.config_for(REVERTS_ON_FF).await.with("broker", "topology = \"verify\"");
    let config = config.with("retry", "max_attempts = 1");
    let home = WorkerHome::new(&config);
    make_users(&stage, &home, &["worker", "operator", "topology", "producer"], Some("pw")).await;
    let uri_of = |role: &str| stage.rabbit.uri(&stage.vhost).replace("guest:guest@", &format!("acme-{role}:pw@"));
    let as_user = |role: &str| home.configure(&WorkerConfig { broker_uri: uri_of(role), ..config.clone() });

    for role in ["worker", "operator", "producer"] {
        as_user(role);
        let (code, text) = home.command(BINARY, &["topology", "apply"]).await;
        assert!(code == 69 && text.contains("ACCESS_REFUSED"), "{role}: {code} {text}");
    }
    as_user("topology");
    stage.topology(&home).await;

    let producer = Amqp::connect(&uri_of("producer")).await;
    stage.amqp.declare("outcomes").await;
    producer.publish(QUEUE, with_id("order-1").with_reply_to("outcomes".into()), b"good").await;
    producer.publish(QUEUE, with_id("order-2"), &[0xff]).await;
    let taken = producer.channel.basic_get(QUEUE.into(), BasicGetOptions { no_ack: true }).await;
    assert!(taken.is_err_and(|error| error.to_string().contains("ACCESS_REFUSED")), "it takes no messages");

    as_user("worker");
    let (code, text) = home.command(BINARY, &["doctor"]).await;
    assert!(code == 0 && text.contains("the user may read the work queue"), "{code} {text}");
    let mut worker = home.start(BINARY);
    stage.wait_state(&home, "order-1", "final").await;
    assert_eq!(stage.amqp.wait_for("outcomes", LONG).await.json()["subject"], "order-1");
    wait_until("the letter is there", LONG, async || stage.depth(DEAD).await == (1, 0)).await;
    assert!(!worker.log().contains("ACCESS_REFUSED"), "{}", worker.log());
    let (code, text) = home.command(BINARY, &["dead", "list"]).await;
    assert!(code != 0 && text.contains("ACCESS_REFUSED"), "the worker reads no dead letters: {code} {text}");

    as_user("operator");
    for (arguments, said) in [
        (["status"].as_slice(), "final"),
        (&["dead", "list", "--items"], "order-2"),
        (&["dead", "replay", "order-2", "--yes"], "order-2"),
        (&["dead", "discard", "order-2", "--reason", "a test", "--yes"], "1 "),
    ] {
        wait_until("the letter is there", LONG, async || stage.depth(DEAD).await == (1, 0)).await;
        let (code, text) = home.command(BINARY, arguments).await;
        assert!(code == 0 && text.contains(said), "{arguments:?}: {code} {text}");
    }
    let (code, text) = home.command_with_input(BINARY, &["publish", "-"], b"{\"n\": 2}\n").await;
    assert!(code == 0 && text.contains("1 published"), "{code} {text}");
    stage.wait_nonce(0, 2).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    // A new journal takes the queue over only when an operator says so.
    let new = WorkerHome::new(&WorkerConfig { broker_uri: uri_of("worker"), ..config.clone() });
    let mut worker = new.start(BINARY);
    wait_log(&worker, "is not the one that serves this queue").await;
    assert_eq!(worker.stop().await.code(), Some(0));
    new.configure(&WorkerConfig { broker_uri: uri_of("operator"), ..config.clone() });
    let (code, text) = new.command(BINARY, &["recover", "--adopt"]).await;
    assert!(code == 0 && text.contains("takes the queue over from journal"), "{code} {text}");
}
