//! A broker behind TLS: the right authority, a wrong one, another host's certificate, no encryption at all.

use std::path::Path;

use crate::stage::{BINARY, QUEUE, Stage, wait_log, wait_log_times};
use crate::support::{
    AnvilConfig, NOBODY, Postgres, PostgresConfig, RabbitConfig, WorkerHome, free_port, postgres_is_here, with_id,
};

pub fn openssl(folder: &Path, arguments: &str) {
    let output = std::process::Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An authority of this name, as `<name>.pem`.
pub fn authority(folder: &Path, name: &str) {
    openssl(
        folder,
        &format!("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"),
    );
}

/// A certificate for `localhost` from the authority, valid for a day.
pub fn certificate(folder: &Path, name: &str, authority: &str) {
    certificate_for(folder, name, authority, 1);
}

/// The same for so many days; with fewer than none it is over.
pub fn certificate_for(folder: &Path, name: &str, authority: &str, days: i32) {
    certificate_of(folder, name, "localhost", authority, days);
}

/// A certificate of this subject, with a key that only its owner may read.
pub fn certificate_of(folder: &Path, name: &str, subject: &str, authority: &str, days: i32) {
    openssl(folder, &format!("req -newkey rsa:2048 -nodes -subj /CN={subject} -keyout {name}.key -out {name}.csr"));
    std::fs::write(folder.join("extensions"), "subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n")
        .unwrap();
    openssl(
        folder,
        &format!(
            "x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -days {days} \
             -extfile extensions -out {name}.pem"
        ),
    );
    use std::os::unix::fs::PermissionsExt;
    let owner_only = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(folder.join(format!("{name}.key")), owner_only).unwrap();
}

/// B28: with the authority among the system's it connects; otherwise it says why not, never goes on without encryption, and
/// tries again.
#[tokio::test]
async fn a_broker_whose_certificate_does_not_hold_gets_no_password() {
    if !crate::support::services_are_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["ours", "another"] {
        authority(folder.path(), name);
    }
    certificate(folder.path(), "broker", "ours");
    let port = free_port();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let extra_conf = vec![
        format!("listeners.ssl.1 = 127.0.0.1:{port}"),
        format!("ssl_options.cacertfile = {}", path("ours.pem")),
        format!("ssl_options.certfile = {}", path("broker.pem")),
        format!("ssl_options.keyfile = {}", path("broker.key")),
    ];
    let blocks = AnvilConfig { block_time: Some(std::time::Duration::from_secs(1)), ..AnvilConfig::default() };
    let Some(stage) = Stage::with_broker(RabbitConfig { extra_conf, ..RabbitConfig::default() }, blocks).await else {
        return;
    };
    stage.topology(&WorkerHome::new(&stage.config())).await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"good").await;
    let attempts = [
        // The authority of somebody else; the name of another host; a plain client at the port for TLS.
        ("another.pem", format!("amqps://guest:guest@localhost:{port}/own"), "UnknownIssuer"),
        ("ours.pem", format!("amqps://guest:guest@127.0.0.1:{port}/own"), "not valid for name"),
        ("ours.pem", format!("amqp://guest:guest@localhost:{port}/own"), "cannot connect"),
    ];
    for (trusted, uri, reason) in attempts {
        let mut config = stage.config();
        config.broker_uri = uri;
        let home = WorkerHome::new(&config);
        let mut worker = home.start_with(BINARY, &[("SSL_CERT_FILE", &path(trusted))]);
        wait_log_times(&worker, "the broker cannot be used", 2).await;
        assert!(worker.log().contains(reason), "{reason}: {}", worker.log());
        assert!(!worker.log().contains("connected to the broker"));
        assert_eq!(worker.stop().await.code(), Some(0));
    }
    assert_eq!(stage.depth(QUEUE).await, (1, 0));
    let mut config = stage.config();
    config.broker_uri = format!("amqps://guest:guest@localhost:{port}/own");
    let home = WorkerHome::new(&config);
    let mut worker = home.start_with(BINARY, &[("SSL_CERT_FILE", &path("ours.pem"))]);
    wait_log(&worker, "connected to the broker").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 1);
}

/// The same for the journal's database: encrypted with the right authority and name, and not at all without.
#[tokio::test]
async fn a_database_whose_certificate_does_not_hold_gets_no_password() {
    if !postgres_is_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["ours", "another"] {
        authority(folder.path(), name);
    }
    certificate(folder.path(), "database", "ours");
    for_anybody(folder.path(), "database.key");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let extra = vec![
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", path("database.pem")),
        format!("ssl_key_file={}", path("database.key")),
    ];
    let server = Postgres::start(PostgresConfig { extra, ..PostgresConfig::default() }).await;
    let schema = server.new_schema().await;
    let (_, options) = schema.split_once('?').unwrap();
    let port = server.address().port();
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = |host: &str, authority: &str, mode: &str| {
        let url = format!(
            "postgres://tester@{host}:{port}/postgres?{options}&sslmode={mode}&sslrootcert={}",
            path(authority)
        );
        stage.config().with("journal", format!("url = {url:?}"))
    };
    let home = WorkerHome::new(&config("localhost", "ours.pem", "verify-full"));
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "the lane owns its account").await;
    let sessions = "SELECT DISTINCT s.ssl::text FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) \
                    WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()";
    assert_eq!(server.run(sessions).await, ["true"], "every session of the worker is encrypted");
    stage.amqp.publish(QUEUE, with_id("order-1"), b"good").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    for (host, authority, says) in
        [("localhost", "another.pem", "UnknownIssuer"), ("127.0.0.1", "ours.pem", "not valid for name")]
    {
        for mode in ["require", "verify-full"] {
            let home = WorkerHome::new(&config(host, authority, mode));
            let (code, text) = home.command(BINARY, &["status", "order-1"]).await;
            assert!(code == 74 && text.contains(says), "{host} {authority} {mode}: {code} {text}");
        }
    }
}

/// A key that a server may read which gave up root's rights; it insists that nobody else may.
fn for_anybody(folder: &Path, key: &str) {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let key = folder.join(key);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    if std::fs::metadata(&key).unwrap().uid() == 0 {
        let (_, user, group) = NOBODY;
        chown(&key, Some(user), Some(group)).unwrap();
    }
}
