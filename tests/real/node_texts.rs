//! What the real node answers to each kind of bad transaction, and what that is taken for.

use chainwriter::testing::{ErrorTable, SendMeaning};
use serde_json::{Value, json};

use crate::support::{ACCOUNTS, Anvil, AnvilConfig, RpcClient, rpc, services_are_here};

const GWEI: u64 = 1_000_000_000;

/// Signed by the node itself, with these fields in place of the usual ones; null takes one away.
async fn signed(node: &RpcClient, fields: Value) -> String {
    let mut transaction = json!({
        "from": ACCOUNTS[0].0, "to": ACCOUNTS[1].0, "value": "0x1", "gas": rpc::hex(21_000), "nonce": "0x0",
        "maxFeePerGas": rpc::hex(3 * GWEI), "maxPriorityFeePerGas": rpc::hex(GWEI),
    });
    for (name, value) in fields.as_object().unwrap() {
        transaction[name] = value.clone();
    }
    transaction.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    node.call("eth_signTransaction", json!([transaction])).await.unwrap().as_str().unwrap().to_owned()
}

async fn meaning(node: &RpcClient, raw: &str) -> (SendMeaning, String) {
    match node.call("eth_sendRawTransaction", json!([raw])).await {
        Ok(hash) => panic!("{raw} was taken: {hash}"),
        Err(text) => (ErrorTable::default().meaning_of(&text), text),
    }
}

#[tokio::test]
async fn what_the_node_answers_to_bad_transactions_is_understood() {
    use SendMeaning as M;
    if !services_are_here() {
        return;
    }
    let anvil = Anvil::start(AnvilConfig::default()).await;
    let other = Anvil::start(AnvilConfig { chain_id: 5, ..AnvilConfig::default() }).await;
    let old = AnvilConfig { extra_args: vec!["--hardfork".into(), "berlin".into()], ..AnvilConfig::default() };
    let old = Anvil::start(old).await;
    anvil.set_auto_mine(false).await.unwrap();
    let first = signed(&anvil, json!({})).await;
    anvil.call("eth_sendRawTransaction", json!([first])).await.unwrap();
    let mut cases = vec![
        ("the same again", first.clone(), M::AlreadyKnown),
        ("another at its nonce", signed(&anvil, json!({ "value": "0x2" })).await, M::ReplacementUnderpriced),
        ("from another chain", signed(&other, json!({ "nonce": "0x1" })).await, M::WrongChain),
        ("no transaction", "0x1234".to_owned(), M::Refused),
        ("nothing", "0x".to_owned(), M::Refused),
        ("half of one", first[..first.len() - 10].to_owned(), M::Refused),
    ];
    let ten_million = rpc::hex(10_000_000);
    let next = [
        ("no funds", json!({ "value": rpc::hex(10_u128.pow(24)) }), M::InsufficientFunds),
        ("too little gas", json!({ "gas": rpc::hex(20_000) }), M::Refused),
        ("more gas than a block has", json!({ "gas": rpc::hex(GWEI) }), M::Refused),
        ("below the base fee", json!({ "maxFeePerGas": "0x1", "maxPriorityFeePerGas": "0x1" }), M::Underpriced),
        ("a tip above the cap", json!({ "maxPriorityFeePerGas": rpc::hex(4 * GWEI) }), M::Refused),
        (
            "below the base fee, legacy",
            json!({ "maxFeePerGas": null, "maxPriorityFeePerGas": null, "gasPrice": "0x1" }),
            M::Underpriced,
        ),
        (
            "too much code (EIP-3860)",
            json!({ "to": null, "data": format!("0x{}", "00".repeat(49_153)), "gas": ten_million }),
            M::Refused,
        ),
    ];
    for (what, mut fields, expected) in next {
        fields["nonce"] = json!("0x1");
        cases.push((what, signed(&anvil, fields).await, expected));
    }
    for (what, raw, expected) in cases {
        let (found, text) = meaning(&anvil, &raw).await;
        assert_eq!(found, expected, "{what}: {text}");
    }
    anvil.mine(1).await.unwrap();
    for raw in [first.clone(), signed(&anvil, json!({ "value": "0x3" })).await] {
        let (found, text) = meaning(&anvil, &raw).await;
        assert_eq!(found, M::NonceTooLow, "{text}");
    }
    let (found, text) = meaning(&old, &first).await;
    assert_eq!(found, M::Refused, "fees of a later hard fork: {text}");
}
