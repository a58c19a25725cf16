//! What the log may not hold, over a run with failures of many kinds: keys, passwords and bodies.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use base64::Engine;
use lapin::BasicProperties;

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, wait_log};
use crate::support::contracts::ALWAYS_REVERTS;
use crate::support::{ACCOUNTS, WorkerHome, wait_until, with_id};

const BROKER_PASSWORD: &str = "brokers0secret";
const NODE_PASSWORD: &str = "nodes0secret";
const KEYSTORE_PASSWORD: &str = "keystores0secret";
const BODIES: [&str; 4] = ["body of the reverted one", "body without an id", "body of the conflict", "body too late"];

/// A secret as it is, as hexadecimal digits (calldata is told so by nodes) and in base64.
fn shapes(secret: &str) -> [String; 3] {
    let base64 = base64::engine::general_purpose::STANDARD_NO_PAD.encode(secret);
    [secret.to_owned(), secret.bytes().map(|byte| format!("{byte:02x}")).collect(), base64]
}

/// At `debug`, where the program says most of what it does, with reverts, refused messages, a broker and a node that go away,
/// retries, dead letters, and operators' commands.
#[tokio::test]
async fn the_log_of_many_failures_holds_no_secret_and_no_body() {
    let Some(mut stage) = Stage::with_own_broker(Default::default()).await else { return };
    stage.anvil.set_interval_mining(1).await.unwrap();
    let user = "secretive";
    stage.rabbit.ctl(&["add_user", user, BROKER_PASSWORD]).await.unwrap();
    stage.rabbit.ctl(&["set_permissions", "-p", &stage.vhost, user, ".*", ".*", ".*"]).await.unwrap();
    let mut config = stage.config_for(ALWAYS_REVERTS).await;
    config.broker_uri = config.broker_uri.replace("guest:guest", &format!("{user}:{BROKER_PASSWORD}"));
    config.endpoint = config.endpoint.replace("http://", &format!("http://user:{NODE_PASSWORD}@"));
    let config = config
        .with("retry", "max_attempts = 2\ninitial_delay = \"1s\"\nmax_delay = \"1s\"")
        .with("broker", "max_body = \"64 B\"");
    let home = WorkerHome::new(&config);
    let (keystore, password) = (home.folder().join("signer.json"), home.folder().join("password"));
    std::fs::write(&password, KEYSTORE_PASSWORD).unwrap();
    std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (file, password) = (keystore.display().to_string(), password.display().to_string());
    let import = ["key", "import", &file, "--password-file", &password];
    let (code, text) = home.command_with_input(BINARY, &import, ACCOUNTS[0].1.as_bytes()).await;
    assert_eq!(code, 0, "{text}");
    home.configure(&config.with("signer", format!("keystore = {file:?}\npassword_file = {password:?}")));

    let mut told = String::new();
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    stage.amqp.publish(QUEUE, with_id("reverted"), BODIES[0].as_bytes()).await;
    stage.amqp.publish(QUEUE, BasicProperties::default(), BODIES[1].as_bytes()).await;
    stage.amqp.publish(QUEUE, with_id("reverted"), BODIES[2].as_bytes()).await;
    stage.amqp.publish(QUEUE, with_id("long"), BODIES[0].repeat(9).as_bytes()).await;
    wait_until("all are dead letters", LONG, async || stage.depth(DEAD).await.0 == 4).await;
    stage.anvil.stop().await;
    stage.amqp.publish(QUEUE, with_id("late"), BODIES[3].as_bytes()).await;
    wait_log(&worker, "the lane pauses").await;
    stage.anvil.start_again().await;
    stage.anvil.set_interval_mining(1).await.unwrap();
    stage.rabbit.close_all_connections("go away").await.unwrap();
    wait_log(&worker, "session with the broker ended").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    for arguments in [["doctor"].as_slice(), &["status"], &["status", "reverted"], &["dead", "list"]] {
        told += &home.command(BINARY, arguments).await.1;
    }
    assert_eq!(worker.stop().await.code(), Some(0));
    told += &worker.log();
    assert!(told.contains("DEBUG"), "it says what there is to say");
    let key = ACCOUNTS[0].1.trim_start_matches("0x").to_owned();
    let secrets = [key.as_str(), BROKER_PASSWORD, NODE_PASSWORD, KEYSTORE_PASSWORD];
    for secret in secrets.into_iter().chain(BODIES) {
        for shape in shapes(secret) {
            assert!(!told.to_lowercase().contains(&shape.to_lowercase()), "{secret:?} as {shape:?} in:\n{told}");
        }
    }
}
