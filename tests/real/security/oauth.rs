//! OAuth 2 at a real broker: tokens from a file and from a server, replaced before they expire.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::io::BufReader;
use tokio::net::TcpListener;

use crate::security::tls::openssl;
use crate::stage::{BINARY, LONG, QUEUE, Stage, wait_log, wait_log_times};
use crate::support::http::{read_whole, write};
use crate::support::{AnvilConfig, RabbitConfig, WorkerHome, wait_until, with_id};

/// Long enough for a busy machine, and short enough to expire within a test.
const LIFE: Duration = Duration::from_secs(9);

/// Signs tokens with the key that the broker knows.
#[derive(Clone)]
struct Issuer(Arc<tempfile::TempDir>);

impl Issuer {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        openssl(folder.path(), "genrsa -out token.key 2048");
        openssl(folder.path(), "rsa -in token.key -pubout -out token.pem");
        Self(Arc::new(folder))
    }

    fn folder(&self) -> &Path {
        self.0.path()
    }

    fn token(&self, audience: &str, life: Duration) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let claims = json!({
            "aud": [audience], "sub": "acme-worker", "client_id": "acme-worker", "iat": now.as_secs(),
            "exp": (now + life).as_secs(), "jti": now.as_nanos().to_string(),
            // As docs/setup/broker-access.md says,
            "scope": [
                "rabbitmq.read:own/acme.writes", "rabbitmq.read:own/acme.writes.journal",
                "rabbitmq.write:own/acme.writes.*", "rabbitmq.write:own/acme.writes.*/*",
            ],
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({"alg": "RS256", "typ": "JWT", "kid": "k1"})), part(&claims));
        // Tests run side by side, and each token has a file of its own.
        let name = format!("{}", now.as_nanos());
        std::fs::write(self.folder().join(&name), &signed).unwrap();
        openssl(self.folder(), &format!("dgst -sha256 -sign token.key -out {name}.sig {name}"));
        let signature = std::fs::read(self.folder().join(format!("{name}.sig"))).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn private(&self, name: &str, text: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        let (path, new) = (self.folder().join(name), self.folder().join(format!("{name}.new")));
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(new, &path).unwrap();
        path.display().to_string()
    }

    async fn stage(&self) -> Option<Stage> {
        let extra_conf = vec![
            "auth_backends.1 = internal".to_owned(),
            "auth_backends.2 = rabbit_auth_backend_oauth2".to_owned(),
            "auth_oauth2.resource_server_id = rabbitmq".to_owned(),
            "auth_oauth2.default_key = k1".to_owned(),
            format!("auth_oauth2.signing_keys.k1 = {}", self.folder().join("token.pem").display()),
            "auth_oauth2.algorithms.1 = RS256".to_owned(),
        ];
        let broker =
            RabbitConfig { extra_conf, plugins: vec!["rabbitmq_auth_backend_oauth2"], ..RabbitConfig::default() };
        let blocks = AnvilConfig { block_time: Some(Duration::from_secs(1)), ..AnvilConfig::default() };
        Stage::with_broker(broker, blocks).await
    }
}

/// Requests, each as its first line with the headers, and its form.
type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// A token server: its URL, whether it is well, and what it was asked for.
async fn server(issuer: Issuer) -> (String, Arc<Mutex<bool>>, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/oauth/token", listener.local_addr().unwrap());
    let (is_well, asked) = (Arc::new(Mutex::new(true)), Asked::default());
    let (well, seen) = (Arc::clone(&is_well), Arc::clone(&asked));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (issuer, well, seen) = (issuer.clone(), Arc::clone(&well), Arc::clone(&seen));
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                while let Some((head, form)) = read_whole(&mut stream).await {
                    seen.lock().unwrap().push((head, String::from_utf8(form).unwrap()));
                    let is_well = *well.lock().unwrap();
                    let (status, body) = if is_well {
                        let life = LIFE.as_secs();
                        ("200 OK", json!({"access_token": issuer.token("rabbitmq", LIFE), "expires_in": life}))
                    } else {
                        ("401 Unauthorized", json!({"error": "invalid_client", "error_description": "unknown here"}))
                    };
                    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\n");
                    if write(&mut stream, &head, body.to_string().as_bytes()).await.is_none() {
                        return;
                    }
                }
            });
        }
    });
    (url, is_well, asked)
}

/// Over several lives of a token there is one session. While the server gives none the worker says so, and goes on once it does.
#[tokio::test]
async fn a_token_of_a_server_is_replaced_before_it_expires_without_another_session() {
    if !crate::support::services_are_here() {
        return;
    }
    let issuer = Issuer::new();
    let Some(stage) = issuer.stage().await else { return };
    let (url, is_well, asked) = server(issuer.clone()).await;
    let secret = issuer.private("secret", "s3cret/+ \n");
    stage.topology(&WorkerHome::new(&stage.config())).await;
    let lines = format!(
        "topology = \"verify\"\nauth = \"oauth2\"\ntoken_url = {url:?}\ntoken_client_id = \"acme worker\"\n\
         token_client_secret_file = {secret:?}\ntoken_scope = \"a b\"\ntoken_audience = \"rabbitmq\""
    );
    let mut config = stage.config().with("broker", lines);
    config.broker_uri = stage.rabbit.uri(&stage.vhost).replace("guest:guest@", "");
    let home = WorkerHome::new(&config);
    let (code, text) = home.command(BINARY, &["doctor"]).await;
    assert!(code == 0 && text.contains("the user may read the work queue"), "{code} {text}");
    let (head, form) = asked.lock().unwrap().first().cloned().unwrap();
    let basic = STANDARD.encode("acme+worker:s3cret%2F%2B+").to_lowercase();
    assert!(head.contains(&format!("authorization: basic {basic}")), "{head}");
    assert_eq!(form, "grant_type=client_credentials&scope=a+b&audience=rabbitmq");

    let mut worker = home.start(BINARY);
    for renewed in 1..=3 {
        wait_log_times(&worker, "the broker has a new token", renewed).await;
        let id = format!("order-{renewed}");
        stage.amqp.publish(QUEUE, with_id(&id), id.as_bytes()).await;
        stage.wait_state(&home, &id, "final").await;
    }
    assert_eq!(worker.log().matches("connected to the broker").count(), 1, "{}", worker.log());
    assert!(!worker.log().contains("session with the broker ended"), "{}", worker.log());

    *is_well.lock().unwrap() = false;
    wait_log(&worker, "the broker's token is not replaced yet").await;
    assert!(worker.log().contains("unknown here; check broker.token_client_id"), "{}", worker.log());
    tokio::time::sleep(LIFE).await;
    let (code, text) = home.command(BINARY, &["doctor"]).await;
    assert!(
        code == 69 && text.contains("broker.token_url 127.0.0.1") && text.contains("unknown here"),
        "{code} {text}"
    );
    *is_well.lock().unwrap() = true;
    stage.amqp.publish(QUEUE, with_id("order-4"), b"order-4").await;
    stage.wait_state(&home, "order-4", "final").await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 4);
    for secret in ["s3cret", "eyJ"] {
        assert!(!worker.log().contains(secret), "{secret} is in the log");
    }
}

/// A file is read again before its token expires; a token that the broker does not take is named with what it must hold.
#[tokio::test]
async fn a_token_file_that_is_renewed_is_taken_over_and_a_wrong_token_is_named() {
    if !crate::support::services_are_here() {
        return;
    }
    let issuer = Issuer::new();
    let Some(stage) = issuer.stage().await else { return };
    let file = issuer.private("token", &issuer.token("another-server", LIFE));
    stage.topology(&WorkerHome::new(&stage.config())).await;
    let lines = format!("topology = \"verify\"\nauth = \"oauth2\"\ntoken_file = {file:?}");
    let mut config = stage.config().with("broker", lines);
    config.broker_uri = stage.rabbit.uri(&stage.vhost).replace("guest:guest@", "");
    let home = WorkerHome::new(&config);
    let (code, text) = home.command(BINARY, &["doctor"]).await;
    assert!(code == 69 && text.contains("ACCESS_REFUSED") && text.contains("auth_oauth2.resource_server_id"), "{text}");

    issuer.private("token", &issuer.token("rabbitmq", LIFE));
    let mut worker = home.start(BINARY);
    wait_log(&worker, "connected to the broker").await;
    for renewed in 1..=2 {
        issuer.private("token", &issuer.token("rabbitmq", LIFE));
        wait_log_times(&worker, "the broker has a new token", renewed).await;
    }
    stage.amqp.publish(QUEUE, with_id("order-1"), b"order-1").await;
    stage.wait_state(&home, "order-1", "final").await;
    wait_until("it says that the file is not renewed", LONG, async || worker.log().contains("has no newer one")).await;
    issuer.private("token", &issuer.token("rabbitmq", LIFE));
    wait_log_times(&worker, "the broker has a new token", 3).await;
    assert_eq!(worker.log().matches("connected to the broker").count(), 1, "{}", worker.log());
    assert_eq!(worker.stop().await.code(), Some(0));
}
