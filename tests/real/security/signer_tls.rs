//! A signer behind TLS: Anvil has the keys, and what stands in front of it shows a certificate and asks for one.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::security::tls::{authority, certificate, certificate_for};
use crate::stage::{BINARY, LONG, QUEUE, Stage};
use crate::support::{
    ACCOUNTS, Anvil, AnvilConfig, Reply, ScriptedNode, TlsFront, WorkerConfig, WorkerHome, wait_until, with_id,
};

/// Two authorities, and certificates of the first: the server's, the worker's, and one that is over.
fn certificates(folder: &Path) {
    for name in ["ours", "another"] {
        authority(folder, name);
    }
    for (name, authority) in [("server", "ours"), ("worker", "ours"), ("stranger", "another")] {
        certificate(folder, name, authority);
    }
    certificate_for(folder, "over", "ours", -1);
    for name in ["worker", "stranger"] {
        std::fs::set_permissions(folder.join(format!("{name}.key")), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

fn signed_by(stage: &Stage, folder: &Path, url: &str, trusted: &str, shown: Option<&str>) -> WorkerConfig {
    let path = |name: String| folder.join(name).display().to_string();
    let mut lines = format!("url = {url:?}\naddress = {:?}\ntimeout = \"2s\"", ACCOUNTS[0].0);
    lines += &format!("\nca_file = {:?}", path(format!("{trusted}.pem")));
    if let Some(name) = shown {
        let [certificate, key] = ["pem", "key"].map(|suffix| path(format!("{name}.{suffix}")));
        lines += &format!("\ncertificate_file = {certificate:?}\ncertificate_key_file = {key:?}");
    }
    stage.config().with("signer", lines).with("chain", "finality = 1")
}

/// C54: with the right authority, name and certificates it signs; otherwise it says why not, nothing is asked for, and no nonce
/// is used up.
#[tokio::test]
async fn a_signer_is_asked_over_certificates_that_hold_alone() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    certificates(folder);
    let front = TlsFront::start(stage.anvil.address(), folder, "server", Some("ours")).await;
    let over = TlsFront::start(stage.anvil.address(), folder, "over", Some("ours")).await;
    let url = |host: &str, front: &TlsFront| format!("https://{host}:{}", front.port());
    let home = WorkerHome::new(&signed_by(&stage, folder, &url("localhost", &front), "ours", Some("worker")));
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"good").await;
    let attempts = [
        (url("localhost", &front), "another", Some("worker"), "UnknownIssuer"),
        (url("127.0.0.1", &front), "ours", Some("worker"), "not valid for name"),
        (url("localhost", &over), "ours", Some("worker"), "xpired"),
        (url("localhost", &front), "ours", None, "ertificateRequired"),
        (url("localhost", &front), "ours", Some("stranger"), "alert"),
    ];
    for (url, trusted, shown, reason) in attempts {
        home.configure(&signed_by(&stage, folder, &url, trusted, shown));
        let mut worker = home.start(BINARY);
        let told = || worker.log().lines().any(|line| line.contains("the signer for") && line.contains(reason));
        wait_until(reason, LONG, async || told()).await;
        assert_eq!(stage.status(&home, "order-1").await["state"], "accepted", "{reason}: nothing is journalled");
        assert_eq!(worker.stop().await.code(), Some(0));
        let (code, text) = home.command(BINARY, &["doctor"]).await;
        assert!(code == 69 && text.contains(reason), "{reason}: {code} {text}");
    }
    assert_eq!(stage.anvil.nonce(ACCOUNTS[0].0, "pending").await, Ok(0));
    home.configure(&signed_by(&stage, folder, &url("localhost", &front), "ours", Some("worker")));
    let (code, text) = home.command(BINARY, &["doctor"]).await;
    assert!(code == 0 && text.contains("has the key of 0xf39"), "{code} {text}");
    let mut worker = home.start(BINARY);
    // A message that was delivered so often waits at the broker for a while: an empty queue would prove nothing.
    stage.wait_state(&home, "order-1", "final").await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 1);
}

/// C54: what it signs with the right key, and is not what was asked for, is neither journalled nor sent.
#[tokio::test]
async fn an_answer_over_tls_is_held_to_what_was_asked_for() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    certificates(folder);
    let wrong = Arc::new(Mutex::new(("", Value::Null)));
    // The same keys, on another chain: Anvil itself signs for its own alone.
    let other = Anvil::start(AnvilConfig { chain_id: 1, ..AnvilConfig::default() }).await;
    let (anvil, elsewhere, does) = (stage.anvil.rpc(), other.rpc(), Arc::clone(&wrong));
    let server = ScriptedNode::filtering(stage.anvil.address(), move |method, mut params| {
        let (field, value) = does.lock().unwrap().clone();
        async move {
            if method != "eth_signTransaction" || field.is_empty() {
                return Reply::Pass;
            }
            params[0][field] = value;
            let signing = if field == "chainId" { elsewhere } else { anvil };
            match signing.call(&method, params).await {
                Ok(raw) => Reply::Result(raw),
                Err(error) => Reply::refusal(error),
            }
        }
    })
    .await;
    let front = TlsFront::start(server.address(), folder, "server", Some("ours")).await;
    let url = format!("https://localhost:{}", front.port());
    let home = WorkerHome::new(&signed_by(&stage, folder, &url, "ours", Some("worker")));
    stage.topology(&home).await;
    let worker = home.start(BINARY);
    let answers = [
        ("to", json!(ACCOUNTS[2].0), "its receiver is not the one"),
        ("value", json!("0x1"), "its value is not the one"),
        ("maxFeePerGas", json!("0x2540be400"), "its highest fee is not the one"),
        ("chainId", json!("0x1"), "its chain id is not the one"),
        ("from", json!(ACCOUNTS[1].0), "is signed by"),
    ];
    for (count, (field, value, problem)) in answers.into_iter().enumerate() {
        *wrong.lock().unwrap() = (field, value);
        stage.amqp.publish(QUEUE, with_id(field), field.as_bytes()).await;
        let told = || worker.log().lines().any(|line| line.contains("signer") && line.contains(problem));
        wait_until(problem, LONG, async || told()).await;
        assert_eq!(stage.status(&home, field).await["state"], "accepted", "{field}: nothing is journalled");
        assert_eq!(stage.anvil.nonce(ACCOUNTS[0].0, "pending").await, Ok(count as u64), "{field}");
        *wrong.lock().unwrap() = ("", Value::Null);
        stage.wait_nonce(0, count as u64 + 1).await;
    }
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.anvil.nonce(ACCOUNTS[1].0, "latest").await, Ok(0), "the other account sent nothing");
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_faults_of_the_configuration() {
    let Some(stage) = Stage::set().await else { return };
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let base = format!("url = \"https://localhost:1\"\naddress = {:?}\n", ACCOUNTS[0].0);
    let home = WorkerHome::new(&stage.config());
    std::fs::set_permissions(path("server.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    for (lines, problem) in [
        (
            base.replace("https", "http") + &format!("ca_file = {:?}", path("ours.pem")),
            "ca_file: is set, and the signer's URL is not https",
        ),
        (base.clone() + "ca_file = \"/none\"", "ca_file: /none: /none cannot be read"),
        (base.clone() + &format!("ca_file = {:?}", path("ours.key")), "holds no certificate"),
        (base.clone() + &format!("certificate_file = {:?}", path("worker.pem")), "certificate_key_file: is not set"),
        (
            base.clone()
                + &format!(
                    "certificate_file = {:?}\ncertificate_key_file = {:?}",
                    path("worker.pem"),
                    path("server.key")
                ),
            "others may read",
        ),
        (
            base.clone()
                + &format!(
                    "certificate_file = {:?}\ncertificate_key_file = {:?}",
                    path("worker.pem"),
                    path("stranger.key")
                ),
            "KeyMismatch",
        ),
        (
            base + &format!(
                "certificate_file = {:?}\ncertificate_key_file = {:?}",
                path("worker.csr"),
                path("worker.key")
            ),
            "or its key:",
        ),
    ] {
        home.configure(&stage.config().with("signer", lines.clone()));
        let (code, text) = home.command(BINARY, &["check"]).await;
        assert!(code == 78 && text.contains(problem), "{lines}: {code} {text}");
    }
}
