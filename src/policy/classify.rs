//! What a node's answer to a broadcast means. Texts decide, never codes: Besu's collide with those of EIP-1474.

/// What an answer means for the transaction and its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SendMeaning {
    /// The node has these very bytes, or had them.
    AlreadyKnown,
    /// The account's nonce is past this one: some attempt, ours or foreign, is in a block.
    NonceTooLow,
    /// The node wants the earlier nonces first.
    NonceTooHigh,
    /// Another transaction holds the nonce in the pool and pays too much to be replaced.
    ReplacementUnderpriced,
    /// It offers less than the node takes.
    Underpriced,
    /// The account cannot pay.
    InsufficientFunds,
    /// The chain does not let this account send.
    NotPermitted,
    /// The pool has no room, for anyone or for this account.
    PoolFull,
    /// The node is still catching up.
    Syncing,
    /// The endpoint serves another chain.
    WrongChain,
    /// Fewer calls, please.
    RateLimited,
    /// The node will not take this transaction, for a reason of its own.
    Refused,
    /// Nobody can tell: treated as maybe sent.
    Unknown,
}

/// Which client says it, a part of what it says in lower case, and what that means. The first match counts, so what is
/// more special stands before what is less.
const TEXTS: &[(&str, &str, SendMeaning)] = {
    use SendMeaning as M;
    &[
        ("geth, erigon, anvil", "already known", M::AlreadyKnown),
        ("anvil", "transaction already imported", M::AlreadyKnown),
        ("besu, zksync", "known transaction", M::AlreadyKnown),
        ("nethermind", "alreadyknown", M::AlreadyKnown),
        ("openethereum", "same hash was already imported", M::AlreadyKnown),
        ("ethermint", "tx already exists in cache", M::AlreadyKnown),
        ("openethereum", "transaction with same nonce in the queue", M::ReplacementUnderpriced),
        ("geth, besu, nethermind, anvil", "replacement transaction underpriced", M::ReplacementUnderpriced),
        ("geth", "future transaction tries to replace pending", M::ReplacementUnderpriced),
        ("geth, besu, nethermind, anvil", "nonce too low", M::NonceTooLow),
        ("openethereum", "nonce is too low", M::NonceTooLow),
        ("nethermind", "oldnonce", M::NonceTooLow),
        ("nethermind", "ownnoncealreadyused", M::NonceTooLow),
        ("geth, besu, nethermind, arbitrum", "nonce too high", M::NonceTooHigh),
        ("besu", "nonce is too distant", M::NonceTooHigh),
        ("besu", "invalid transaction with a lower nonce exists", M::NonceTooHigh),
        ("nethermind", "nonce too far in future", M::NonceTooHigh),
        ("nethermind", "noncegap", M::NonceTooHigh),
        ("nethermind", "delegation nonce gap", M::NonceTooHigh),
        ("geth, nethermind, anvil", "insufficient funds", M::InsufficientFunds),
        ("besu", "upfront cost exceeds account balance", M::InsufficientFunds),
        ("nethermind", "insufficientfunds", M::InsufficientFunds),
        ("arbitrum", "not enough funds", M::InsufficientFunds),
        ("monad", "insufficient balance", M::InsufficientFunds),
        ("hedera", "insufficient_payer_balance", M::InsufficientFunds),
        ("besu", "not authorized to send transactions", M::NotPermitted),
        ("arbitrum", "forbidden sender address", M::NotPermitted),
        ("geth", "txpool is full", M::PoolFull),
        ("arbitrum", "queue full", M::PoolFull),
        ("arbitrum", "pending tx pool full", M::PoolFull),
        ("openethereum", "too many transactions in the queue", M::PoolFull),
        ("geth", "account limit exceeded", M::PoolFull),
        ("nethermind", "feetoolowtocompete", M::PoolFull),
        ("besu", "initial sync is still in progress", M::Syncing),
        ("nethermind", "node is syncing", M::Syncing),
        ("besu", "world state unavailable", M::Syncing),
        ("besu", "wrong chainid", M::WrongChain),
        ("besu", "chainid not supported", M::WrongChain),
        ("geth, anvil", "invalid chain id", M::WrongChain),
        ("geth", "transaction underpriced", M::Underpriced),
        ("geth, arbitrum, zksync, anvil", "max fee per gas less than block base fee", M::Underpriced),
        ("besu", "gas price below", M::Underpriced),
        ("arbitrum", "gas price too low", M::Underpriced),
        ("polygon", "gas price below minimum", M::Underpriced),
        ("nethermind", "feetoolow", M::Underpriced),
        ("ethermint", "insufficient fee", M::Underpriced),
        ("geth, besu", "exceeds the configured cap", M::Refused),
        ("besu", "transaction fee cap exceeded", M::Refused),
        ("any", "rate limit", M::RateLimited),
        ("any", "too many requests", M::RateLimited),
        ("geth", "exceeds block gas limit", M::Refused),
        ("besu", "gas limit exceeds block gas limit", M::Refused),
        ("nethermind", "gaslimitexceeded", M::Refused),
        ("nethermind", "gas limit reached", M::Refused),
        ("geth, nethermind, anvil", "intrinsic gas too", M::Refused),
        ("besu", "intrinsic gas exceeds gas limit", M::Refused),
        ("monad", "gas limit too low", M::Refused),
        ("geth", "floor data gas", M::Refused),
        ("geth", "oversized data", M::Refused),
        ("nethermind", "transaction too large", M::Refused),
        ("geth", "max initcode size exceeded", M::Refused),
        ("anvil", "gas too low", M::Refused),
        ("geth", "transaction type not supported", M::Refused),
        ("besu", "invalid transaction type", M::Refused),
        ("nethermind", "unsupported transaction type", M::Refused),
        ("geth", "invalid sender", M::Refused),
        ("besu", "invalid signature", M::Refused),
        ("geth, nethermind", "negative value", M::Refused),
        ("besu", "plugin has marked the transaction as invalid", M::Refused),
    ]
};

/// What this error text of a node means.
pub fn meaning_of(text: &str) -> SendMeaning {
    let text = text.to_lowercase();
    TEXTS.iter().find(|(_, part, _)| text.contains(part)).map_or(SendMeaning::Unknown, |(_, _, meaning)| *meaning)
}

/// What an error of a simulated call (`eth_estimateGas`) means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SimulationMeaning {
    /// The contract reverts, or the call cannot be run: the request's own fault.
    Failed,
    /// The account cannot pay.
    InsufficientFunds,
    /// The node could not look: says nothing about the request.
    Unavailable,
}

/// Texts with which nodes say that they could not look. Everything else is about the call: to take it for an outage would
/// let one bad request block its account.
const NOT_LOOKED: &[&str] = &[
    "internal error",
    "timeout",
    "timed out",
    "header not found",
    "block not found",
    "unknown block",
    "missing trie node",
    "world state unavailable",
    "state is not available",
    "sync is still in progress",
    "node is syncing",
    "rate limit",
    "too many requests",
    "limit exceeded",
    "capacity exceeded",
    "method not found",
    "service unavailable",
];

/// What this error of a simulated call means.
pub fn meaning_of_simulation(text: &str) -> SimulationMeaning {
    let text = text.to_lowercase();
    if text.contains("revert") {
        SimulationMeaning::Failed
    } else if meaning_of(&text) == SendMeaning::InsufficientFunds {
        SimulationMeaning::InsufficientFunds
    } else if NOT_LOOKED.iter().any(|part| text.contains(part)) {
        SimulationMeaning::Unavailable
    } else {
        SimulationMeaning::Failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SendMeaning as M;

    #[test]
    fn texts_of_each_client_have_their_meaning() {
        let cases = [
            ("Known transaction", M::AlreadyKnown),
            ("already known", M::AlreadyKnown),
            ("AlreadyKnown", M::AlreadyKnown),
            ("transaction already imported", M::AlreadyKnown),
            ("Nonce too low", M::NonceTooLow),
            ("OldNonce", M::NonceTooLow),
            ("Transaction nonce is too low. Try incrementing the nonce.", M::NonceTooLow),
            ("Transaction nonce is too distant from current sender nonce", M::NonceTooHigh),
            ("NonceGap, Future nonce. Expected nonce: 3", M::NonceTooHigh),
            ("Replacement transaction underpriced", M::ReplacementUnderpriced),
            ("transaction underpriced", M::Underpriced),
            ("FeeTooLow", M::Underpriced),
            ("FeeTooLowToCompete", M::PoolFull),
            ("Gas price below configured minimum gas price", M::Underpriced),
            ("insufficient funds for gas * price + value", M::InsufficientFunds),
            ("Insufficient funds for gas * price + value", M::InsufficientFunds),
            ("Upfront cost exceeds account balance", M::InsufficientFunds),
            ("Sender account not authorized to send transactions", M::NotPermitted),
            ("txpool is full", M::PoolFull),
            ("Initial sync is still in progress", M::Syncing),
            ("intrinsic gas too low", M::Refused),
            ("Intrinsic gas exceeds gas limit", M::Refused),
            ("tx fee (2.10 ether) exceeds the configured cap (1.00 ether)", M::Refused),
            ("429 Too Many Requests", M::RateLimited),
            ("something nobody ever saw", M::Unknown),
            ("", M::Unknown),
        ];
        for (text, meaning) in cases {
            assert_eq!(meaning_of(text), meaning, "{text}");
        }
    }

    #[test]
    fn simulations_that_fail_are_told_from_nodes_that_did_not_look() {
        use SimulationMeaning as S;
        let cases = [
            ("execution reverted: not today", S::Failed),
            ("Execution reverted", S::Failed),
            ("execution reverted: timeout", S::Failed),
            ("gas required exceeds allowance (30000000)", S::Failed),
            ("invalid opcode: INVALID", S::Failed),
            ("insufficient funds for gas * price + value", S::InsufficientFunds),
            ("header not found", S::Unavailable),
            ("Internal error", S::Unavailable),
            ("Initial sync is still in progress", S::Unavailable),
        ];
        for (text, meaning) in cases {
            assert_eq!(meaning_of_simulation(text), meaning, "{text}");
        }
    }

    #[test]
    fn no_text_is_hidden_behind_an_earlier_one() {
        for (index, (_, part, meaning)) in TEXTS.iter().enumerate() {
            let first = TEXTS.iter().position(|(_, earlier, _)| part.contains(earlier)).unwrap();
            assert!(first == index || TEXTS[first].2 == *meaning, "{part} is hidden behind {}", TEXTS[first].1);
            assert_eq!(*part, part.to_lowercase(), "texts are compared in lower case");
        }
    }
}
