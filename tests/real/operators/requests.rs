//! Requests over HTTP: for callers with the token, and for nobody without a token file.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::stage::{BINARY, LONG, QUEUE, Stage, wait_log};
use crate::support::http::exchange;
use crate::support::{WorkerHome, free_port, wait_until, with_id};

fn write_token(file: &Path, token: &str) {
    std::fs::write(file, token).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

async fn ask(address: SocketAddr, path: &str, authorization: &str) -> (u16, String, String) {
    let header = if authorization.is_empty() { String::new() } else { format!("authorization: {authorization}\r\n") };
    let request = format!("GET {path} HTTP/1.1\r\nhost: worker\r\n{header}connection: close\r\n\r\n");
    exchange(address, request.as_bytes()).await.expect("it answers")
}

#[tokio::test]
async fn requests_are_shown_to_callers_with_the_token_alone() {
    const TOKEN: &str = "Bearer 0123456789abcdef0123456789abcdef";
    let Some(stage) = Stage::with_blocks().await else { return };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    write_token(&file, "0123456789abcdef0123456789abcdef\n");
    let listening = stage.config().with("http", format!("listen = \"{address}\""));
    let home = WorkerHome::new(&listening.clone().with("http", format!("token_file = {file:?}")));
    stage.topology(&home).await;
    for id in ["order-1", "a/b+c d"] {
        stage.amqp.publish(QUEUE, with_id(id), id.as_bytes()).await;
    }
    let mut worker = home.start(BINARY);
    for id in ["order-1", "a/b+c d"] {
        stage.wait_state(&home, id, "final").await;
    }
    for (path, authorization, expected) in [
        ("/requests/order-1", TOKEN, 200),
        ("/requests/order-1", "bearer 0123456789abcdef0123456789abcdef", 200),
        ("/requests/a%2Fb+c%20d", TOKEN, 200),
        ("/requests/order-2", TOKEN, 404),
        ("/requests?state=final", TOKEN, 200),
        ("/requests?state=final&limit=0", TOKEN, 400),
        ("/requests", TOKEN, 400),
        ("/requests/order-1", "", 401),
        ("/requests?state=final", "", 401),
        ("/requests/order-1", "Bearer 0123456789abcdef0123456789abcdeX", 401),
        ("/requests/order-1", "Bearer ", 401),
        ("/requests/order-1", "Basic 0123456789abcdef0123456789abcdef", 401),
        ("/requestsorder-1", TOKEN, 404),
        ("/livez", "", 200),
        ("/readyz", "", 200),
    ] {
        let (status, head, body) = ask(address, path, authorization).await;
        assert_eq!(status, expected, "{path} {authorization}: {body}");
        assert_eq!(head.contains("www-authenticate: bearer"), status == 401, "{head}");
        assert!(status != 401 || !body.contains("order-1"), "{body}");
    }
    let (_, _, body) = ask(address, "/requests/order-1", TOKEN).await;
    let shown: Value = serde_json::from_str(&body).unwrap();
    // The command asks node and worker, too.
    let mut said = stage.status(&home, "order-1").await;
    said.as_object_mut().unwrap().remove("waits_for");
    assert_eq!(shown, said, "what the command says");
    let (_, _, body) = ask(address, "/requests?state=final&limit=1", TOKEN).await;
    let listed: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((listed["requests"].as_array().unwrap().len(), &listed["state"]), (1, &Value::from("final")));
    // A new token counts at once; one that anybody could guess opens nothing.
    write_token(&file, "another-token-of-32-characters--");
    assert_eq!(ask(address, "/requests/order-1", TOKEN).await.0, 401);
    assert_eq!(ask(address, "/requests/order-1", "Bearer another-token-of-32-characters--").await.0, 200);
    write_token(&file, "short");
    assert_eq!(ask(address, "/requests/order-1", "Bearer short").await.0, 503);
    assert!(!worker.log().contains("another-token"), "{}", worker.log());
    assert_eq!(worker.stop().await.code(), Some(0));

    home.configure(&listening);
    let mut worker = home.start(BINARY);
    wait_log(&worker, "connected to the broker").await;
    wait_until("it serves", LONG, async || worker.log().contains("health, metrics and status are served")).await;
    assert_eq!(ask(address, "/requests/order-1", "Bearer ").await.0, 404, "off unless it is set");
    assert_eq!(worker.stop().await.code(), Some(0));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    home.configure(&listening.with("http", format!("token_file = {file:?}")));
    let (code, text) = home.command(BINARY, &["check"]).await;
    assert!(code == 78 && text.contains("http.token_file") && text.contains("chmod 600"), "{code} {text}");
}
