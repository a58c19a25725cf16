//! What messages ask for: routes, and calls of contracts with arguments from JSON. The documented example is one of them.

use lapin::BasicProperties;
use serde_json::json;

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage};
use crate::support::contracts::{COUNTS_EFFECTS, REVERTS_CUSTOM, REVERTS_UNLESS_FLAG, TOKEN};
use crate::support::{WorkerConfig, WorkerHome, with_id};

const TOKEN_AT: &str = "0x00000000000000000000000000000000000000d0";
const REGISTRY_AT: &str = "0x00000000000000000000000000000000000000d1";
/// Has the low address of a transfer's receiver in the example.
const RECEIVER: u64 = 0xaa;
const TRANSFER_SELECTOR: &str = "0xa9059cbb";

/// The documented routes, as a worker gets them: of each its lines.
fn documented_routes() -> Vec<String> {
    let page = include_str!("../../../docs/guides/routes.md");
    let begin = page.find("```toml\n[[route]]").expect("the page has the example") + "```toml\n".len();
    let example = &page[begin..];
    let example = &example[..example.find("```").unwrap()];
    example.split("[[route]]\n").map(str::trim).filter(|lines| !lines.is_empty()).map(str::to_owned).collect()
}

/// The documented message bodies.
fn documented_body(kind: &str) -> String {
    let page = include_str!("../../../docs/guides/routes.md");
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("{kind}: `")));
    line.expect("the page has the body").trim_end_matches('`').to_owned()
}

fn of_kind(id: &str, kind: &str) -> BasicProperties {
    with_id(id).with_type(kind.into())
}

async fn with_routes(stage: &Stage, routes: Vec<String>) -> WorkerConfig {
    stage.anvil.set_code(TOKEN_AT, TOKEN).await.unwrap();
    stage.anvil.set_code(REGISTRY_AT, COUNTS_EFFECTS).await.unwrap();
    routes.into_iter().fold(stage.config(), |config, route| config.with("route", route))
}

#[tokio::test]
async fn a_transfer_and_a_document_hash_are_written_as_documented() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&with_routes(&stage, documented_routes()).await);
    stage.topology(&home).await;
    let transfer = documented_body("transfer");
    let file = home.folder().join("transfer.json");
    std::fs::write(&file, &transfer).unwrap();
    let (code, text) = home.command(BINARY, &["route", file.to_str().unwrap(), "--type", "transfer"]).await;
    let call = "call       transfer(to: 0x00000000000000000000000000000000000000aa, amount: 2500000000000000000)";
    assert!(code == 0 && text.contains("route      transfers\n") && text.contains(call), "{code} {text}");
    let (code, text) = home.command(BINARY, &["route", file.to_str().unwrap(), "--type", "other"]).await;
    assert!(code == 2 && text.contains("refused    invalid.no_route"), "{code} {text}");
    stage.amqp.publish(QUEUE, of_kind("pay", "transfer"), transfer.as_bytes()).await;
    stage.amqp.publish(QUEUE, of_kind("note", "document"), documented_body("document").as_bytes()).await;
    stage.amqp.publish(QUEUE, of_kind("lost", "other"), b"{}").await;
    let misfit = transfer.replace("\"2500000000000000000\"", "-1");
    stage.amqp.publish(QUEUE, of_kind("wrong", "transfer"), misfit.as_bytes()).await;
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));

    assert_eq!(stage.anvil.storage(TOKEN_AT, RECEIVER).await, Ok(2_500_000_000_000_000_000), "the token was sent");
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    let transfer_data = format!("{TRANSFER_SELECTOR}{RECEIVER:064x}{:064x}", 2_500_000_000_000_000_000_u64);
    let (document, first) = (written[1].clone(), written[0].clone());
    assert_eq!((written.len(), first), (2, transfer_data));
    assert!(document.ends_with("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"), "{document}");

    let mut dead = stage.amqp.take_all(DEAD).await;
    dead.sort_by_key(|letter| letter.id());
    let told: Vec<_> =
        dead.iter().map(|letter| (letter.id(), letter.routing_key.clone(), letter.header("cw-error-detail"))).collect();
    let no_route = "no route is for type \"other\" with routing key \"acme.writes\"";
    let bad =
        "transfers: argument 2 (amount) at /amount: expected uint256 as a whole number or a text with one, found -1";
    assert_eq!(
        told,
        [
            ("lost".to_owned(), "invalid.no_route".to_owned(), Some(no_route.to_owned())),
            ("wrong".to_owned(), "invalid.bad_argument".to_owned(), Some(bad.to_owned())),
        ]
    );
}

/// What waits, in the journal or at the broker, is written as it was asked for, whatever the configuration says by then.
#[tokio::test]
async fn a_change_of_the_routes_changes_nothing_that_was_taken_in() {
    let Some(stage) = Stage::with_blocks().await else { return };
    stage.anvil.set_code(TOKEN_AT, REVERTS_UNLESS_FLAG).await.unwrap();
    let route = |kind: &str, mode: &str| format!("type = \"{kind}\"\nto = \"{TOKEN_AT}\"\n{mode}");
    let call = "mode = \"call\"\nfunction = \"transfer(address to, uint256 amount)\"\narguments = [\"json:/to\", 5]";
    let slow = |config: WorkerConfig| config.with("retry", "initial_delay = \"2s\"\nmultiplier = 1.0");
    let home = WorkerHome::new(&slow(stage.config().with("route", route("a", call))));
    stage.topology(&home).await;
    let body = json!({ "to": format!("0x{RECEIVER:040x}") }).to_string();
    stage.amqp.publish(QUEUE, of_kind("a", "a"), body.as_bytes()).await;
    let mut worker = home.start(BINARY);
    stage.wait_state(&home, "a", "retry_waiting").await;
    assert_eq!(worker.stop().await.code(), Some(0));

    home.configure(&slow(stage.config().with("route", route("b", "mode = \"data\""))));
    stage.anvil.set_storage(TOKEN_AT, 0, 1).await.unwrap();
    let mut worker = home.start(BINARY);
    stage.wait_state(&home, "a", "final").await;
    stage.amqp.publish(QUEUE, of_kind("c", "a"), body.as_bytes()).await;
    assert_eq!(stage.amqp.wait_for(DEAD, LONG).await.routing_key, "invalid.no_route", "what is new is routed anew");
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(written, [format!("{TRANSFER_SELECTOR}{RECEIVER:064x}{:064x}", 5)]);
}

/// Files beside the configuration, wherever the worker is started.
#[tokio::test]
async fn bodies_keep_to_the_schema_of_their_route() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let schema = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "minimum": 1}}});
    let abi = json!([{"type": "function", "name": "f", "inputs": [{"name": "n", "type": "uint8"}], "outputs": [],
                      "stateMutability": "nonpayable"}]);
    let call =
        "mode = \"call\"\nabi = \"abi.json\"\nfunction = \"f\"\narguments = [\"json:/n\"]\nschema = \"schema.json\"";
    let home = WorkerHome::new(&stage.config().with("write", call));
    std::fs::write(home.folder().join("schema.json"), schema.to_string()).unwrap();
    std::fs::write(home.folder().join("abi.json"), abi.to_string()).unwrap();
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, of_kind("low", "a"), br#"{"n":0}"#).await;
    stage.amqp.publish(QUEUE, of_kind("good", "a"), br#"{"n":7}"#).await;
    let _worker = home.start(BINARY);
    stage.wait_state(&home, "good", "final").await;
    let letter = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((letter.id().as_str(), letter.routing_key.as_str()), ("low", "invalid.schema"));
    let detail = letter.header("cw-error-detail").unwrap();
    assert_eq!(detail, "write: /n: it is less than the minimum of 1, found 0");
}

#[tokio::test]
async fn an_error_of_the_contracts_own_is_told_by_its_name() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config_for(REVERTS_CUSTOM).await.with("write", "errors = [\"NotAllowed(uint256 level)\"]");
    let home = WorkerHome::new(&config.with("retry", "max_attempts = 1"));
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, of_kind("a", "a"), b"a").await;
    let _worker = home.start(BINARY);
    let letter = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!(letter.routing_key, "rejected.reverted_custom");
    assert_eq!(letter.header("cw-error-detail").unwrap(), "NotAllowed(level: 42)");
}
