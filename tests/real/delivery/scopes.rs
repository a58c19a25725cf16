//! Producers that choose equal ids: `request.scope` keeps them apart on every way that a message can take.

use lapin::options::ExchangeDeclareOptions;
use lapin::types::FieldTable;
use lapin::{BasicProperties, ExchangeKind};

use crate::chain::records::with_contract;
use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, kinds_of, wait_log};
use crate::support::{WorkerHome, headers, wait_until, with_id};

/// Browses after which a letter has been published anew.
const BROWSES: usize = 10;

/// A producer: where it publishes, and what it says of itself.
struct Producer {
    scope: &'static str,
    exchange: &'static str,
    user_id: Option<&'static str>,
    tenant: Option<&'static str>,
}

impl Producer {
    fn properties(&self, id: &str) -> BasicProperties {
        let mut properties = with_id(id);
        if let Some(user_id) = self.user_id {
            properties = properties.with_user_id(user_id.into());
        }
        match self.tenant {
            Some(tenant) => properties.with_headers(headers(&[("tenant", tenant)])),
            None => properties,
        }
    }

    async fn publish(&self, stage: &Stage, properties: BasicProperties, body: &str) {
        let key = if self.exchange.is_empty() { QUEUE } else { "any" };
        stage.amqp.publish_to(self.exchange, key, properties, body.as_bytes()).await;
    }
}

const ANONYMOUS: Producer = Producer { scope: "", exchange: "", user_id: None, tenant: None };

/// Writes, a letter that the broker made and that was read often, its replay, a message that is refused, and the chain's own words.
async fn assert_apart(scope: &str, [one, other]: [Producer; 2]) {
    let Some(stage) = Stage::with_blocks().await else { return };
    let (config, _) = with_contract(&stage, "").await;
    let bind = |exchange: &str| format!("exchange = \"{exchange}\"\nrouting_keys = [\"#\"]");
    let mut config = config.with("request", format!("scope = \"{scope}\""));
    for exchange in [one.exchange, other.exchange].into_iter().filter(|exchange| !exchange.is_empty()) {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let arguments = FieldTable::default();
        let declared = stage.amqp.channel.exchange_declare(exchange.into(), ExchangeKind::Topic, durable, arguments);
        declared.await.unwrap();
        config = config.with("bind", bind(exchange));
    }
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.keep_events().await;
    let id = |producer: &Producer, id: &str| format!("{}/{id}", producer.scope);

    // No worker is there in time, and operators read the letter often.
    one.publish(&stage, one.properties("late").with_expiration("1".into()), "late").await;
    wait_until("it has expired", LONG, async || stage.depth(DEAD).await.0 == 1).await;
    for _ in 0..BROWSES {
        let (code, letters) = home.command(BINARY, &["dead", "list", "--items"]).await;
        assert!(code == 0 && letters.contains(&id(&one, "late")), "{code} {letters}");
    }

    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    one.publish(&stage, one.properties("a"), "one").await;
    other.publish(&stage, other.properties("a"), "two").await;
    other.publish(&stage, other.properties("late"), "another").await;
    let (code, text) = home.command(BINARY, &["dead", "replay", &id(&one, "late"), "--wait", "--yes"]).await;
    assert!(code == 0 && text.contains("final"), "{code} {text}");
    for id in [id(&one, "a"), id(&other, "a"), id(&one, "late"), id(&other, "late")] {
        stage.wait_state(&home, &id, "final").await;
        let (code, text) = home.command(BINARY, &["verify", &id]).await;
        assert_eq!(code, 0, "{id}: {text}");
    }
    let (code, text) = home.command(BINARY, &["verify", "a"]).await;
    assert_ne!(code, 0, "an id without its scope is another one: {text}");
    let (code, text) = home.command(BINARY, &["cancel", &id(&other, "a")]).await;
    assert!(code != 0 && text.contains(&id(&other, "a")), "it is final: {code} {text}");

    // Another body under a known id is refused, and says nothing about the request.
    one.publish(&stage, one.properties("a"), "three").await;
    let letter = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!(letter.routing_key, "invalid.id_conflict");
    let refused = letter.header("cw-request-id").unwrap();
    assert!(refused.starts_with("refused-"), "{refused}");
    assert_eq!(stage.status(&home, &id(&one, "a")).await["state"], "final");
    let status = stage.status(&home, &refused).await;
    assert!(status["refused"] == true && status["refused_id"] == id(&one, "a"), "{status}");
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let events = stage.kept_events().await;
    assert_eq!(kinds_of(&events, &id(&other, "a")), ["final"]);
    assert_eq!(kinds_of(&events, &id(&one, "a")), ["final", "dead"]);
    let dead = events.iter().find(|(_, kind, _)| kind == "dead").unwrap();
    assert_eq!(dead.2["data"]["refused"], true);
}

#[tokio::test]
async fn users_of_the_broker_have_ids_of_their_own() {
    let guest = Producer { scope: "guest", user_id: Some("guest"), ..ANONYMOUS };
    assert_apart("user_id", [guest, ANONYMOUS]).await;
}

#[tokio::test]
async fn exchanges_have_ids_of_their_own() {
    let to = |exchange| Producer { scope: exchange, exchange, ..ANONYMOUS };
    assert_apart("exchange", [to("orders"), to("bills")]).await;
}

#[tokio::test]
async fn texts_in_a_header_have_ids_of_their_own() {
    let of = |tenant| Producer { scope: tenant, tenant: Some(tenant), ..ANONYMOUS };
    assert_apart("header:tenant", [of("north"), of("south")]).await;
}
