//! Many messages: each is written once and in order, whatever happens to the worker or the key.

use serde_json::json;

use crate::case::{Case, PATIENCE, body};
use crate::node::{Kind, Wanted};
use crate::properties::Outcome;
use crate::stage::{BINARY, DEAD, QUEUE, calldata};
use crate::support::contracts::TOKEN;
use crate::support::rpc::hex;
use crate::support::{ACCOUNTS, Anvil, AnvilConfig, Clef, WorkerConfig, clef as clef_program, wait_until, with_id};

pub async fn thousand(kind: Kind) -> Outcome {
    const MESSAGES: usize = 1_000;
    let case = Case::start(kind, Wanted::each(1)).await;
    let config = case.config();
    case.publish(0..MESSAGES).await;
    let (home, _worker) = case.worker(&config);
    case.wait_nonce(MESSAGES as u64).await;
    case.wait_done().await;
    case.assert_written_once_in_order(MESSAGES).await;
    for number in [0, MESSAGES / 2, MESSAGES - 1] {
        assert_eq!(case.status(&home, &format!("m-{number}")).await["state"], "final");
    }
    Outcome::Pass
}

/// A window that stayed as it begins would take ten blocks.
pub async fn window(kind: Kind) -> Outcome {
    const MESSAGES: usize = 600;
    let case = Case::start(kind, Wanted::each(3)).await;
    case.publish(0..MESSAGES).await;
    let (_home, _worker) = case.worker(&case.config());
    case.wait_done().await;
    case.assert_written_once_in_order(MESSAGES).await;
    let written = case.written().await;
    let blocks = written[MESSAGES - 1].3 - written[0].3 + 1;
    assert!(blocks <= 8, "{blocks} blocks");
    Outcome::Pass
}

pub async fn killed(kind: Kind) -> Outcome {
    const MESSAGES: usize = 120;
    let case = Case::start(kind, Wanted::each(1)).await;
    let (home, mut worker) = case.worker(&case.config());
    for round in 0..3 {
        let begin = round * MESSAGES / 3;
        case.publish(begin..begin + MESSAGES / 3).await;
        case.wait_nonce(begin as u64 + 1).await;
        worker.kill().await;
        worker = home.start(BINARY);
    }
    case.wait_done().await;
    case.assert_written_once_in_order(MESSAGES).await;
    Outcome::Pass
}

/// Somebody else writes with the key while the worker does: both land, each message once.
pub async fn foreign(kind: Kind) -> Outcome {
    const MESSAGES: usize = 6;
    let case = Case::start(kind, Wanted::each(1)).await;
    // The foreign price is above it, so that the worker cannot take the nonce back.
    let (home, _worker) = case.worker(&case.config().with("fees", "max_fee = \"10 gwei\""));
    case.publish(0..MESSAGES / 2).await;
    case.wait_nonce(MESSAGES as u64 / 2).await;
    // Any program with the key can sign; Anvil has it.
    let chain_id = case.node.kind.chain_id();
    let signer = Anvil::start(AnvilConfig { chain_id, ..AnvilConfig::default() }).await;
    let price = hex(20_000_000_000_u64);
    let transaction = json!([{ "from": ACCOUNTS[0].0, "to": ACCOUNTS[1].0, "value": "0x1", "gas": hex(100_000),
        "nonce": hex(MESSAGES / 2), "maxFeePerGas": price, "maxPriorityFeePerGas": price, "chainId": hex(chain_id) }]);
    let raw = signer.call("eth_signTransaction", transaction).await.unwrap();
    case.node.call("eth_sendRawTransaction", json!([raw])).await.unwrap();
    case.publish(MESSAGES / 2..MESSAGES).await;
    case.wait_done().await;
    let written = case.written().await;
    let of_worker = written.iter().filter(|(_, data, ..)| data != "0x").map(|(_, data, ..)| data.clone());
    let mut of_worker: Vec<_> = of_worker.collect();
    of_worker.sort();
    let expected: Vec<_> = (0..MESSAGES).map(|number| calldata(body(number).as_bytes())).collect();
    assert_eq!(of_worker, expected, "each message once beside the foreign transaction");
    assert_eq!((written.len(), case.stage.depth(DEAD).await), (MESSAGES + 1, (0, 0)));
    assert_eq!(case.status(&home, "m-5").await["state"], "final");
    Outcome::Pass
}

pub async fn abi(kind: Kind) -> Outcome {
    const MESSAGES: u64 = 5;
    let case = Case::start(kind, Wanted::each(1)).await;
    let token = case.node.deploy(TOKEN).await;
    let call = "mode = \"call\"\nfunction = \"transfer(address to, uint256 amount)\"\narguments = [\"json:/to\", \"json:/amount\"]";
    let config = WorkerConfig { to: token.clone(), ..case.config() }.with("write", call);
    let (_home, _worker) = case.worker(&config);
    for number in 0..MESSAGES {
        let body = json!({ "to": ACCOUNTS[5].0, "amount": 10 + number }).to_string();
        case.stage.amqp.publish(QUEUE, with_id(&format!("t-{number}")), body.as_bytes()).await;
    }
    case.wait_nonce(MESSAGES).await;
    case.wait_done().await;
    let word = case.node.call("eth_getStorageAt", json!([token, ACCOUNTS[5].0, "latest"])).await.unwrap();
    let digits = word.as_str().unwrap().trim_start_matches("0x").trim_start_matches('0').to_owned();
    assert_eq!(u64::from_str_radix(&digits, 16), Ok((0..MESSAGES).map(|number| 10 + number).sum()));
    assert_eq!(case.stage.depth(DEAD).await, (0, 0));
    Outcome::Pass
}

pub async fn clef(kind: Kind) -> Outcome {
    const MESSAGES: usize = 50;
    if clef_program::program().is_none() {
        eprintln!("SKIPPED: Clef is missing here; run scripts/setup.sh clef");
        return Outcome::NotApplicable("Clef was missing");
    }
    let case = Case::start(kind, Wanted::each(1)).await;
    let signer = Clef::start(kind.chain_id(), ACCOUNTS[0]).await;
    let lines = format!("url = {:?}\naddress = {:?}\ntimeout = \"30s\"", signer.url(), ACCOUNTS[0].0);
    case.publish(0..MESSAGES).await;
    let (_home, worker) = case.worker(&case.config().with("signer", lines));
    case.wait_nonce(MESSAGES as u64).await;
    case.wait_done().await;
    case.assert_written_once_in_order(MESSAGES).await;
    wait_until("no pause", PATIENCE, async || !worker.log().contains("signer_unavailable")).await;
    Outcome::Pass
}
