//! `[[bind]]`: the work queue gets messages from exchanges of producers.

use lapin::options::{BasicPublishOptions, ExchangeDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, ExchangeKind};

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, calldata};
use crate::support::{WorkerHome, with_id};

async fn declare(stage: &Stage, exchange: &str, kind: ExchangeKind) {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    stage.amqp.channel.exchange_declare(exchange.into(), kind, durable, FieldTable::default()).await.unwrap();
}

async fn publish(stage: &Stage, exchange: &str, key: &str, properties: BasicProperties, body: &[u8]) {
    let options = BasicPublishOptions::default();
    stage
        .amqp
        .channel
        .basic_publish(exchange.into(), key.into(), options, body, properties)
        .await
        .unwrap()
        .await
        .unwrap();
}

fn with_header(id: &str, name: &str, value: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
    with_id(id).with_headers(headers)
}

/// The documented bindings.
fn documented_binds() -> Vec<String> {
    let page = include_str!("../../../docs/setup/broker.md");
    let begin = page.find("```toml\n[[bind]]").expect("the page has the example") + "```toml\n".len();
    let example = page[begin..].split("```").next().unwrap();
    example.split("[[bind]]\n").map(str::trim).filter(|lines| !lines.is_empty()).map(str::to_owned).collect()
}

#[tokio::test]
async fn messages_come_from_exchanges_by_their_keys_and_headers() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = documented_binds().into_iter().fold(stage.config(), |config, bind| config.with("bind", bind));
    let home = WorkerHome::new(&config);
    declare(&stage, "payments", ExchangeKind::Topic).await;
    declare(&stage, "by-header", ExchangeKind::Headers).await;
    stage.topology(&home).await;
    let (code, text) = home.command(BINARY, &["doctor"]).await;
    assert!(code == 0 && text.contains("delete binding source=EXCHANGE"), "{code} {text}");
    publish(&stage, "payments", "payments.eu.1", with_id("a"), b"a").await;
    publish(&stage, "payments", "payments.us.1", with_id("b"), b"b").await;
    publish(&stage, "by-header", "", with_header("c", "tenant", "north"), b"c").await;
    publish(&stage, "by-header", "", with_header("d", "tenant", "south"), b"d").await;
    let mut worker = home.start(BINARY);
    stage.wait_state(&home, "a", "final").await;
    stage.wait_state(&home, "c", "final").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let mut written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    written.sort();
    assert_eq!(written, [calldata(b"a"), calldata(b"c")], "what is bound, and nothing else");
}

#[tokio::test]
async fn an_exchange_that_is_missing_is_named_and_never_made() {
    let Some(stage) = Stage::set().await else { return };
    let config = stage.config().with("bind", "exchange = \"payments\"\nrouting_keys = [\"#\"]");
    let home = WorkerHome::new(&config);
    for command in [&["topology", "apply"][..], &["doctor"]] {
        let (code, text) = home.command(BINARY, command).await;
        let says = "rabbitmqadmin declare exchange name=payments";
        assert!(code == 69 && text.contains("exchange payments of [[bind]]") && text.contains(says), "{code} {text}");
    }
    declare(&stage, "payments", ExchangeKind::Fanout).await;
    stage.topology(&home).await;
}

/// Who may publish to an exchange alone cannot take a route that is for another key.
#[tokio::test]
async fn a_routing_key_in_a_header_does_not_choose_the_route() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let route = "routing_key = \"treasury.#\"";
    let bind = "exchange = \"orders\"\nrouting_keys = [\"#\"]";
    let home = WorkerHome::new(&stage.config().with("route", route).with("bind", bind));
    declare(&stage, "orders", ExchangeKind::Topic).await;
    stage.topology(&home).await;
    publish(&stage, "orders", "web.1", with_header("forged", "cw-original-routing-key", "treasury.pay"), b"x").await;
    publish(&stage, "orders", "treasury.pay", with_id("true"), b"y").await;
    let _worker = home.start(BINARY);
    stage.wait_state(&home, "true", "final").await;
    let letter = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((letter.id().as_str(), letter.routing_key.as_str()), ("forged", "invalid.no_route"));
}
