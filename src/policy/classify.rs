//! The meaning of a node's answer. Texts decide, never codes: Besu's collide with those of EIP-1474.

use crate::model::words::words;
use crate::policy::node_texts::{TOO_MANY_REQUESTS, contains_any, is_failed_run, is_outage_status, is_outage_text};

words!(
    /// The meaning of an answer to a broadcast for the transaction and its lane. The words are the keys of `[chain.errors]`,
    /// except that of what is unknown.
    SendMeaning {
        /// The node has these very bytes, or had them.
        AlreadyKnown = "already_known",
        /// The account's nonce is past this one: some attempt, ours or foreign, is in a block.
        NonceTooLow = "nonce_too_low",
        /// The node wants the earlier nonces first.
        NonceTooHigh = "nonce_too_high",
        /// Another transaction holds the nonce in the pool and pays too much to be replaced.
        ReplacementUnderpriced = "replacement_underpriced",
        /// The transaction offers less than the node takes.
        Underpriced = "underpriced",
        /// The account cannot pay.
        InsufficientFunds = "insufficient_funds",
        /// The chain does not let this account send.
        NotPermitted = "not_permitted",
        /// The pool has no room, for anyone or for this account.
        PoolFull = "pool_full",
        /// The node is still catching up.
        Syncing = "syncing",
        /// The endpoint serves another chain.
        WrongChain = "wrong_chain",
        RateLimited = "rate_limited",
        /// The node will not take this transaction, for a reason of its own.
        Refused = "refused",
        /// Not known: treated as maybe sent.
        Unknown = "unknown",
    }
);

impl SendMeaning {
    /// Returns those that are keys of `[chain.errors]`.
    pub fn configurable() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|meaning| *meaning != Self::Unknown)
    }
}

/// The client, a part of its text in lower case, and what that means. The first match counts, so what is more special
/// stands before what is less.
const TEXTS: &[(&str, &str, SendMeaning)] = {
    use SendMeaning as M;
    &[
        ("geth, erigon, nethermind", "already known", M::AlreadyKnown),
        ("anvil", "transaction already imported", M::AlreadyKnown),
        ("besu, zksync, hardhat", "known transaction", M::AlreadyKnown),
        ("nethermind", "alreadyknown", M::AlreadyKnown),
        ("openethereum", "same hash was already imported", M::AlreadyKnown),
        ("erigon", "existing tx with same hash", M::AlreadyKnown),
        ("ethermint", "tx already exists in cache", M::AlreadyKnown),
        ("ethermint", "tx already in mempool", M::AlreadyKnown),
        // They run it in a block, and then answer with how it went.
        ("ganache, hardhat", "vm exception while processing transaction", M::AlreadyKnown),
        ("openethereum", "transaction with same nonce in the queue", M::ReplacementUnderpriced),
        ("geth, besu, nethermind, anvil, hardhat", "replacement transaction underpriced", M::ReplacementUnderpriced),
        ("erigon", "could not replace an existing tx", M::ReplacementUnderpriced),
        ("geth", "authority nonce too low", M::Refused),
        ("all", "nonce too low", M::NonceTooLow),
        ("openethereum", "nonce is too low", M::NonceTooLow),
        ("nethermind", "oldnonce", M::NonceTooLow),
        ("nethermind", "ownnoncealreadyused", M::NonceTooLow),
        ("ganache", "mining has already started", M::NonceTooLow),
        ("geth, besu, nethermind, arbitrum, hardhat", "nonce too high", M::NonceTooHigh),
        ("besu", "nonce is too distant", M::NonceTooHigh),
        ("besu", "invalid transaction with a lower nonce exists", M::NonceTooHigh),
        ("nethermind", "nonce too far in future", M::NonceTooHigh),
        ("nethermind", "noncegap", M::NonceTooHigh),
        ("nethermind", "delegation nonce gap", M::NonceTooHigh),
        ("geth", "gapped-nonce tx from delegated accounts", M::NonceTooHigh),
        // The text does not say whether the nonce is too high or too low. It is sent again either way, and a block decides.
        // Ganache's says so by two numbers: see `is_past`.
        ("arbitrum", "invalid transaction nonce", M::NonceTooHigh),
        ("ganache", "doesn't have the correct nonce", M::NonceTooHigh),
        ("ethermint", "invalid nonce", M::NonceTooHigh),
        ("ethermint", "account sequence mismatch", M::NonceTooHigh),
        ("geth, nethermind, anvil, openethereum, hedera", "insufficient funds", M::InsufficientFunds),
        ("besu", "upfront cost exceeds account balance", M::InsufficientFunds),
        ("nethermind", "insufficientfunds", M::InsufficientFunds),
        ("arbitrum", "not enough funds", M::InsufficientFunds),
        ("zksync", "not enough balance", M::InsufficientFunds),
        ("ganache, hardhat", "doesn't have enough funds", M::InsufficientFunds),
        ("monad", "insufficient balance", M::InsufficientFunds),
        ("hedera", "insufficient_payer_balance", M::InsufficientFunds),
        ("besu", "not authorized to send transactions", M::NotPermitted),
        ("avalanche", "from non-allow listed address", M::NotPermitted),
        ("arbitrum", "forbidden sender address", M::NotPermitted),
        ("openethereum", "sender is banned", M::NotPermitted),
        ("goquorum", "account does not have permission", M::NotPermitted),
        ("goquorum", "account not authorized for this operation", M::NotPermitted),
        // EIP-3607: a fault of the account, whatever it sends.
        ("geth, reth", "sender is not an eoa", M::NotPermitted),
        ("geth, nethermind", "sender not an eoa", M::NotPermitted),
        ("old nethermind", "senderiscontract", M::NotPermitted),
        ("geth", "txpool is full", M::PoolFull),
        ("arbitrum", "queue full", M::PoolFull),
        ("arbitrum", "pending tx pool full", M::PoolFull),
        ("erigon", "sub-pool is full", M::PoolFull),
        ("ethermint", "mempool is full", M::PoolFull),
        ("openethereum", "too many transactions in the queue", M::PoolFull),
        ("geth", "account limit exceeded", M::PoolFull),
        ("geth", "in-flight transaction limit reached", M::PoolFull),
        // Only a full pool weighs a transaction with a gap below it against others: more money would not help.
        ("geth", "future transaction tries to replace pending", M::PoolFull),
        // Another kind of transaction of the account is in the pool; it has to land first.
        ("geth", "address already reserved", M::PoolFull),
        ("geth", "authority already reserved", M::PoolFull),
        ("nethermind", "pending transaction type conflict", M::PoolFull),
        ("nethermind", "feetoolowtocompete", M::PoolFull),
        ("besu", "sync is still in progress", M::Syncing),
        ("nethermind", "node is syncing", M::Syncing),
        ("besu", "world state unavailable", M::Syncing),
        ("besu", "transaction pool not enabled", M::Syncing),
        ("besu", "wrong chainid", M::WrongChain),
        ("besu", "chainid not supported", M::WrongChain),
        ("hardhat", "invalid chainid", M::WrongChain),
        ("geth, anvil", "invalid chain id", M::WrongChain),
        ("anvil", "max fee per gas less than block base fee", M::Underpriced),
        ("geth, nethermind", "transaction underpriced", M::Underpriced),
        ("besu, polygon", "gas price below", M::Underpriced),
        ("hedera", "below configured minimum gas price", M::Underpriced),
        ("reth", "priority fee below minimum", M::Underpriced),
        ("arbitrum", "gas price too low", M::Underpriced),
        ("openethereum", "gas price is too low", M::Underpriced),
        ("ganache", "less than the block's basefeepergas", M::Underpriced),
        ("hardhat", "is too low for the next block", M::Underpriced),
        ("hardhat", "which is below the minimum", M::Underpriced),
        ("nethermind", "feetoolow", M::Underpriced),
        ("erigon", "fee too low", M::Underpriced),
        ("ethermint", "insufficient fee", M::Underpriced),
        ("ethermint", "fee is insufficient", M::Underpriced),
        ("erigon", "underpriced", M::Underpriced),
        ("geth, besu", "exceeds the configured cap", M::Refused),
        ("besu", "transaction fee cap exceeded", M::Refused),
        ("any", "rate limit", M::RateLimited),
        ("any", "ratelimit", M::RateLimited),
        ("any", "too many requests", M::RateLimited),
        ("any", "request limit reached", M::RateLimited),
        ("any", "request count exceeded", M::RateLimited),
        ("any", "request rate exceeded", M::RateLimited),
        ("any", "compute units per second", M::RateLimited),
        ("any", "throughput limit", M::RateLimited),
        ("any", "capacity exceeded", M::RateLimited),
        ("geth, besu, hardhat, ganache", "exceeds block gas limit", M::Refused),
        ("openethereum", "exceeds current gas limit", M::Refused),
        ("geth", "gas limit too high", M::Refused),
        ("reth", "exceeds max transaction gas limit", M::Refused),
        ("besu", "transaction gas limit cap exceeded", M::Refused),
        ("anvil, hardhat", "is greater than the cap", M::Refused),
        ("nethermind", "gaslimitexceeded", M::Refused),
        ("nethermind", "gas limit reached", M::Refused),
        ("geth, erigon, nethermind, anvil", "intrinsic gas too", M::Refused),
        ("besu", "intrinsic gas exceeds gas limit", M::Refused),
        ("hardhat", "transaction requires at least", M::Refused),
        ("openethereum", "transaction gas is too low", M::Refused),
        ("monad", "gas limit too low", M::Refused),
        ("geth", "floor data gas", M::Refused),
        ("reth, anvil", "gas floor", M::Refused),
        ("reth", "call gas cost", M::Refused),
        ("anvil", "gas too low", M::Refused),
        ("geth, anvil", "max priority fee per gas higher than max fee per gas", M::Refused),
        ("besu", "max priority fee per gas exceeds max fee per gas", M::Refused),
        ("geth", "oversized data", M::Refused),
        ("nethermind", "transaction too large", M::Refused),
        ("any server", "http status 413", M::Refused),
        ("erigon", "rlp too long", M::Refused),
        ("geth, anvil", "max initcode size exceeded", M::Refused),
        ("erigon", "initcode too large", M::Refused),
        ("geth", "transaction type not supported", M::Refused),
        ("besu", "invalid transaction type", M::Refused),
        ("nethermind", "unsupported transaction type", M::Refused),
        ("anvil", "not supported by the current hardfork", M::Refused),
        ("geth", "only replay-protected", M::Refused),
        ("besu", "chainid is required", M::Refused),
        ("anvil", "failed to decode transaction", M::Refused),
        ("reth", "failed to decode signed transaction", M::Refused),
        ("reth", "invalid transaction signature", M::Refused),
        ("reth", "nonce has max value", M::Refused),
        ("anvil", "empty transaction data", M::Refused),
        ("geth, erigon", "invalid sender", M::Refused),
        ("nethermind", "failed to recover sender", M::Refused),
        ("besu, ganache", "invalid signature", M::Refused),
        ("geth, nethermind, erigon", "negative value", M::Refused),
        ("nethermind", "transaction cost overflow", M::Refused),
        ("geth", "gas uint64 overflow", M::Refused),
        ("nethermind", "transaction invalid", M::Refused),
        ("besu", "execution reverted", M::Refused),
        ("besu", "plugin has marked the transaction as", M::Refused),
        ("linea", "line count", M::Refused),
    ]
};

/// The meanings of nodes' texts: the operator's own first, then those that are built in.
#[derive(Debug, Clone, Default)]
pub struct ErrorTable {
    /// In lower case; the longest first, since it is the most special.
    own: Vec<(String, SendMeaning)>,
}

/// Returns whether Ganache's text, in lower case, says by its two numbers that the account is past the transaction's nonce.
fn is_past(text: &str) -> bool {
    let number_after = |word: &str| {
        let behind = text.split_once(word)?.1;
        behind.split(|letter: char| !letter.is_ascii_digit()).next()?.parse::<u64>().ok()
    };
    let of_account = number_after("account has nonce of: ");
    of_account.is_some_and(|next| number_after("tx has nonce of: ").is_some_and(|nonce| nonce < next))
}

impl ErrorTable {
    /// Adds texts before the built-in ones. They match anywhere in an answer, in capitals or not.
    pub fn with(own: impl IntoIterator<Item = (String, SendMeaning)>) -> Self {
        let mut own: Vec<_> = own.into_iter().map(|(text, meaning)| (text.to_lowercase(), meaning)).collect();
        own.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        Self { own }
    }

    /// Returns what this error text of a node means as the answer to a broadcast.
    pub fn meaning_of(&self, text: &str) -> SendMeaning {
        let text = text.to_lowercase();
        let own = self.own.iter().find(|(part, _)| text.contains(part)).map(|(_, meaning)| *meaning);
        let past = || is_past(&text).then_some(SendMeaning::NonceTooLow);
        let built_in = || TEXTS.iter().find(|(_, part, _)| text.contains(part)).map(|(_, _, meaning)| *meaning);
        own.or_else(past).or_else(built_in).unwrap_or(SendMeaning::Unknown)
    }

    /// Returns what this error of a simulated call means.
    pub fn meaning_of_simulation(&self, text: &str) -> SimulationMeaning {
        // What a contract says is not the node's word, whatever it says.
        if is_failed_run(text) {
            return SimulationMeaning::Failed;
        }
        match self.meaning_of(text) {
            SendMeaning::InsufficientFunds => SimulationMeaning::InsufficientFunds,
            // About the account, and not about this call.
            SendMeaning::NotPermitted => SimulationMeaning::Unavailable,
            SendMeaning::Syncing | SendMeaning::RateLimited | SendMeaning::WrongChain | SendMeaning::Unknown => {
                SimulationMeaning::Unavailable
            }
            SendMeaning::AlreadyKnown
            | SendMeaning::NonceTooLow
            | SendMeaning::NonceTooHigh
            | SendMeaning::ReplacementUnderpriced
            | SendMeaning::Underpriced
            | SendMeaning::PoolFull
            | SendMeaning::Refused => SimulationMeaning::Failed,
        }
    }

    /// Returns whether the node asks for fewer calls.
    pub fn is_rate_limit(&self, text: &str) -> bool {
        !is_revert(text) && self.meaning_of(text) == SendMeaning::RateLimited
    }

    /// Returns what an answer without a result is about, from its HTTP status and the text of its JSON-RPC error. An outage
    /// is no verdict, in whatever shape it comes; but a text that is known as an answer to a call stays one, since some
    /// gateways put it into a 400 or a 500.
    pub fn fault_of(&self, status: u16, code: Option<i64>, text: &str) -> Fault {
        if status == TOO_MANY_REQUESTS || self.is_rate_limit(text) {
            return Fault::RateLimit;
        }
        let Some(code) = code else {
            // No endpoint would take what is too large, now or later.
            return if status == PAYLOAD_TOO_LARGE { Fault::Call } else { Fault::Outage };
        };
        if is_outage_status(status) {
            return Fault::Outage;
        }
        if is_failed_run(text) || is_missing_method(code, text) || self.meaning_of(text) != SendMeaning::Unknown {
            return Fault::Call;
        }
        if status >= 500 || is_outage_text(text) { Fault::Outage } else { Fault::Call }
    }
}

/// Says what an answer without a result is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call: another endpoint may well say the same.
    Call,
    /// The endpoint asks for fewer calls.
    RateLimit,
    /// The endpoint did not get to the call.
    Outage,
}

const PAYLOAD_TOO_LARGE: u16 = 413;

/// The meaning of an error of a simulated call (`eth_estimateGas`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SimulationMeaning {
    /// The contract reverts, or the call cannot be run: the request's own fault.
    Failed,
    /// The account cannot pay.
    InsufficientFunds,
    /// The node did not get to the call, or says so in words that no table knows: by itself no word about the request.
    Unavailable,
}

/// Texts with which nodes say that a batch is too long for them, or that they know none.
const BATCH_REFUSALS: &[&str] = &[
    "number of requests exceeds",
    "batch too large",
    "batch size",
    "batch limit",
    "batch request",
    "batching",
    "response too large",
    "response size",
];

/// With one of [`METHODS`] beside them: the node does not have it, or not for us.
const LACKS: &[&str] = &[
    "not found",
    "not exist",
    "not available",
    "unavailable",
    "not supported",
    "unsupported",
    "not allowed",
    "not permitted",
    "not enabled",
    "not whitelisted",
    "not recognized",
    "not recognised",
    "not implemented",
    "unimplemented",
    "unknown",
    "unrecognized",
    "disabled",
    "restricted",
    "blocked",
    "no such",
    "invalid method",
];

/// Words for a method, and beginnings of the names of those that are called.
const METHODS: &[&str] = &["method", "procedure", "namespace", "eth_", "txpool_", "web3_", "net_"];

/// Returns whether the node refuses to answer a batch of this length.
pub fn is_batch_refusal(text: &str) -> bool {
    !is_revert(text) && contains_any(text, BATCH_REFUSALS)
}

/// Returns whether the node lacks the method that was called. The code is JSON-RPC's own, so clients agree on it.
pub fn is_missing_method(code: i64, text: &str) -> bool {
    const METHOD_NOT_FOUND: i64 = -32601;
    let says_so = || contains_any(text, METHODS) && contains_any(text, LACKS);
    let is_unwritten = || contains_any(text, &["not implemented", "not yet implemented", "unimplemented"]);
    code == METHOD_NOT_FOUND || (!is_revert(text) && (says_so() || is_unwritten()))
}

/// Returns whether the text says that a contract reverted.
pub fn is_revert(text: &str) -> bool {
    contains_any(text, &["revert"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use SendMeaning as M;

    /// C13, C17, C36, and what else nodes say. Those of Anvil are what it answers to each kind of bad transaction.
    #[test]
    fn texts_of_each_client_have_their_meaning() {
        let cases = [
            ("Anvil", "transaction already imported", M::AlreadyKnown),
            ("Anvil", "replacement transaction underpriced", M::ReplacementUnderpriced),
            ("Anvil", "nonce too low", M::NonceTooLow),
            ("Anvil", "Insufficient funds for gas * price + value", M::InsufficientFunds),
            ("Anvil", "intrinsic gas too low", M::Refused),
            ("Anvil", "intrinsic gas too high -- tx.gas_limit > env.block.gas_limit", M::Refused),
            ("Anvil", "max fee per gas less than block base fee", M::Underpriced),
            ("Anvil", "max priority fee per gas higher than max fee per gas", M::Refused),
            ("Anvil", "max initcode size exceeded", M::Refused),
            ("Anvil", "Failed to decode transaction", M::Refused),
            ("Anvil", "Empty transaction data", M::Refused),
            ("Anvil", "invalid chain id for signer", M::WrongChain),
            (
                "Anvil",
                "EIP-1559 style fee params (maxFeePerGas or maxPriorityFeePerGas) received but they are not supported by the current hardfork.\n\nYou can use them by running anvil with '--hardfork london' or later.",
                M::Refused,
            ),
            ("Besu", "Known transaction", M::AlreadyKnown),
            ("Besu", "Replacement transaction underpriced", M::ReplacementUnderpriced),
            ("Besu", "Nonce too low", M::NonceTooLow),
            ("Besu", "Nonce too high", M::NonceTooHigh),
            ("Besu", "Transaction nonce is too distant from current sender nonce", M::NonceTooHigh),
            ("Besu", "An invalid transaction with a lower nonce exists", M::NonceTooHigh),
            ("Besu", "Invalid signature", M::Refused),
            (
                "Besu",
                "Transaction pool not enabled. (Either txpool explicitly disabled, or node not yet in sync).",
                M::Syncing,
            ),
            ("Besu", "Intrinsic gas exceeds gas limit", M::Refused),
            ("Besu", "Upfront cost exceeds account balance", M::InsufficientFunds),
            ("Besu", "Transaction gas limit exceeds block gas limit", M::Refused),
            ("Besu", "Sender account not authorized to send transactions", M::NotPermitted),
            ("Besu", "Initial sync is still in progress", M::Syncing),
            ("Besu", "Gas price below configured minimum gas price", M::Underpriced),
            ("Besu", "Gas price below current base fee", M::Underpriced),
            ("Besu", "Wrong chainId", M::WrongChain),
            ("Besu", "ChainId not supported", M::WrongChain),
            ("Besu", "ChainId is required", M::Refused),
            ("Besu", "Transaction fee cap exceeded", M::Refused),
            ("Besu", "Execution reverted", M::Refused),
            ("Besu", "Max priority fee per gas exceeds max fee per gas", M::Refused),
            ("Besu", "Plugin has marked the transaction as invalid", M::Refused),
            ("Besu", "World state unavailable", M::Syncing),
            ("Besu", "Invalid transaction type", M::Refused),
            ("Besu", "Internal error", M::Unknown),
            ("Besu", "Timeout expired", M::Unknown),
            ("Geth", "already known", M::AlreadyKnown),
            ("Geth", "invalid sender", M::Refused),
            ("Geth", "transaction underpriced", M::Underpriced),
            ("Geth", "transaction underpriced: gas tip cap 0, minimum needed 1", M::Underpriced),
            ("Geth", "replacement transaction underpriced", M::ReplacementUnderpriced),
            ("Geth", "account limit exceeded", M::PoolFull),
            ("Geth", "exceeds block gas limit", M::Refused),
            ("Geth", "negative value", M::Refused),
            ("Geth", "oversized data: transaction size 131080, limit 131072", M::Refused),
            ("Geth", "future transaction tries to replace pending", M::PoolFull),
            ("Geth", "address already reserved", M::PoolFull),
            ("Geth", "authority already reserved", M::PoolFull),
            ("Geth", "authority nonce too low", M::Refused),
            ("Geth", "nonce too low: next nonce 5, tx nonce 3", M::NonceTooLow),
            ("Geth", "nonce too high", M::NonceTooHigh),
            ("Geth", "gapped-nonce tx from delegated accounts", M::NonceTooHigh),
            ("Geth", "in-flight transaction limit reached for delegated accounts", M::PoolFull),
            (
                "Geth",
                "insufficient funds for gas * price + value: balance 0, tx cost 21000, overshot 21000",
                M::InsufficientFunds,
            ),
            ("Geth", "intrinsic gas too low: gas 20000, minimum needed 21000", M::Refused),
            ("Geth", "tx fee (2.10 ether) exceeds the configured cap (1.00 ether)", M::Refused),
            ("Geth", "txpool is full", M::PoolFull),
            (
                "Geth",
                "max fee per gas less than block base fee: address 0x00, maxFeePerGas: 1, baseFee: 7",
                M::Underpriced,
            ),
            ("Geth", "transaction type not supported", M::Refused),
            ("Geth", "only replay-protected (EIP-155) transactions allowed over RPC", M::Refused),
            ("Geth", "invalid chain id for signer: have 5 want 1", M::WrongChain),
            ("Nethermind", "nonce too far in future", M::NonceTooHigh),
            ("Nethermind", "delegation nonce gap", M::NonceTooHigh),
            ("Nethermind", "gas limit reached", M::Refused),
            ("Nethermind", "sender not an eoa", M::NotPermitted),
            ("Nethermind", "failed to recover sender", M::Refused),
            ("Nethermind", "transaction cost overflow", M::Refused),
            ("Nethermind", "transaction invalid", M::Refused),
            ("Nethermind", "pending transaction type conflict", M::PoolFull),
            ("Nethermind", "unsupported transaction type", M::Refused),
            ("Nethermind", "transaction too large", M::Refused),
            ("a server before the node", "HTTP status 413: the request is too large", M::Refused),
            ("Nethermind", "node is syncing", M::Syncing),
            ("old Nethermind", "AlreadyKnown", M::AlreadyKnown),
            ("old Nethermind", "OldNonce", M::NonceTooLow),
            ("old Nethermind", "OwnNonceAlreadyUsed", M::NonceTooLow),
            ("old Nethermind", "NonceGap, Future nonce. Expected nonce: 3", M::NonceTooHigh),
            ("old Nethermind", "FeeTooLow", M::Underpriced),
            ("old Nethermind", "FeeTooLowToCompete", M::PoolFull),
            ("old Nethermind", "InsufficientFunds, Account balance: 0", M::InsufficientFunds),
            ("old Nethermind", "GasLimitExceeded", M::Refused),
            ("old Nethermind", "SenderIsContract", M::NotPermitted),
            ("Erigon", "block already known", M::AlreadyKnown),
            ("Erigon", "INTERNAL_ERROR: existing tx with same hash", M::AlreadyKnown),
            ("Erigon", "fee too low", M::Underpriced),
            ("Erigon", "underpriced", M::Underpriced),
            ("Erigon", "pending sub-pool is full", M::PoolFull),
            ("OpenEthereum", "Transaction nonce is too low. Try incrementing the nonce.", M::NonceTooLow),
            ("OpenEthereum", "Transaction with the same hash was already imported.", M::AlreadyKnown),
            (
                "OpenEthereum",
                "Transaction gas price 1wei is too low. There is another transaction with same nonce in the queue. Try increasing the gas price or incrementing the nonce.",
                M::ReplacementUnderpriced,
            ),
            (
                "OpenEthereum",
                "There are too many transactions in the queue. Your transaction was dropped due to limit. Try increasing the fee.",
                M::PoolFull,
            ),
            (
                "OpenEthereum",
                "Insufficient funds. The account you tried to send transaction from does not have enough funds.",
                M::InsufficientFunds,
            ),
            (
                "OpenEthereum",
                "Transaction gas is too low. There is not enough gas to cover minimal cost of the transaction.",
                M::Refused,
            ),
            ("OpenEthereum", "Transaction cost exceeds current gas limit. Limit: 8000000, got: 9000000.", M::Refused),
            ("Arbitrum", "nonce too high", M::NonceTooHigh),
            ("Arbitrum", "invalid transaction nonce", M::NonceTooHigh),
            ("Arbitrum", "gas price too low", M::Underpriced),
            ("Arbitrum", "not enough funds for gas", M::InsufficientFunds),
            ("Arbitrum", "queue full", M::PoolFull),
            ("Arbitrum", "sequencer pending tx pool full, please try again", M::PoolFull),
            ("Arbitrum", "forbidden sender address", M::NotPermitted),
            ("zkSync", "nonce too low. allowed nonce range: 4 - 54, actual: 3", M::NonceTooLow),
            ("zkSync", "known transaction. transaction with hash 0x00 is already in the system", M::AlreadyKnown),
            ("Sei", "tx already exists in cache", M::AlreadyKnown),
            ("Sei", "insufficient fee", M::Underpriced),
            ("Sei", "gas wanted -1, gas fee is insufficient", M::Underpriced),
            ("Ethermint", "invalid nonce; got 5, expected 3: invalid sequence", M::NonceTooHigh),
            ("Polygon", "transaction gas price below minimum", M::Underpriced),
            ("reth", "transaction priority fee below minimum required priority fee", M::Underpriced),
            ("reth", "exceeds max transaction gas limit", M::Refused),
            ("reth", "sender is not an EOA", M::NotPermitted),
            ("reth", "nonce has max value", M::Refused),
            ("reth", "invalid transaction signature", M::Refused),
            ("reth", "failed to decode signed transaction", M::Refused),
            ("Besu", "Transaction gas limit cap exceeded", M::Refused),
            ("Besu", "Plugin has marked the transaction as not acceptable by the transaction pool", M::Refused),
            ("revm", "transaction gas limit (18000000) is greater than the cap (16777216)", M::Refused),
            ("Avalanche", "cannot issue transaction from non-allow listed address", M::NotPermitted),
            ("GoQuorum", "account does not have permission for the transaction", M::NotPermitted),
            ("GoQuorum", "Account not authorized for this operation", M::NotPermitted),
            ("Linea", "Transaction line count for module ADD=402237 is above the limit 70000", M::Refused),
            ("Monad", "Signer had insufficient balance", M::InsufficientFunds),
            ("Monad", "Gas limit too low", M::Refused),
            ("Hedera", "Nonce too low", M::NonceTooLow),
            ("Hedera", "INSUFFICIENT_PAYER_BALANCE", M::InsufficientFunds),
            ("Hardhat", "Nonce too low. Expected nonce to be 1 but got 0.", M::NonceTooLow),
            (
                "Hardhat",
                "Nonce too high. Expected nonce to be 0 but got 3. Note that transactions can't be queued when automining.",
                M::NonceTooHigh,
            ),
            ("Hardhat", "Known transaction: 0x00", M::AlreadyKnown),
            (
                "Hardhat",
                "Sender doesn't have enough funds to send tx. The max upfront cost is: 2 and the sender's balance is: 1.",
                M::InsufficientFunds,
            ),
            (
                "Hardhat",
                "Replacement transaction underpriced. A gasPrice/maxFeePerGas of at least 2 is necessary to replace the existing transaction with nonce 0.",
                M::ReplacementUnderpriced,
            ),
            (
                "Hardhat",
                "Transaction maxFeePerGas (1) is too low for the next block, which has a baseFeePerGas of 875000000",
                M::Underpriced,
            ),
            ("Hardhat", "Transaction gas price is 0, which is below the minimum of 1", M::Underpriced),
            ("Hardhat", "Transaction gas limit is 40000000 and exceeds block gas limit of 30000000", M::Refused),
            ("Hardhat", "Transaction requires at least 21000 gas but got 100", M::Refused),
            (
                "Hardhat",
                "Trying to send a raw transaction with an invalid chainId. The expected chainId is 31337",
                M::WrongChain,
            ),
            (
                "Hardhat",
                "Error: VM Exception while processing transaction: reverted with reason string 'no'",
                M::AlreadyKnown,
            ),
            (
                "Ganache",
                "the tx doesn't have the correct nonce. account has nonce of: 1 tx has nonce of: 0",
                M::NonceTooLow,
            ),
            (
                "Ganache",
                "the tx doesn't have the correct nonce. account has nonce of: 1 tx has nonce of: 12",
                M::NonceTooHigh,
            ),
            (
                "Ganache",
                "sender doesn't have enough funds to send tx. The upfront cost is: 2 and the senders account only has: 1",
                M::InsufficientFunds,
            ),
            ("Ganache", "transaction can't be replaced, mining has already started.", M::NonceTooLow),
            (
                "Ganache",
                "Transaction's maxFeePerGas (1) is less than the block's baseFeePerGas (875000000) (vm hf=london -> block -> tx)",
                M::Underpriced,
            ),
            ("Ganache", "VM Exception while processing transaction: revert", M::AlreadyKnown),
            ("providers", "429 Too Many Requests", M::RateLimited),
            ("providers", "daily request count exceeded, request rate limited", M::RateLimited),
            ("providers", "project ID request rate exceeded", M::RateLimited),
            ("providers", "Your app has exceeded its compute units per second capacity.", M::RateLimited),
            (
                "providers",
                "50/second request limit reached - reduce calls per second or upgrade your account",
                M::RateLimited,
            ),
            ("gateways", "502 Bad Gateway", M::Unknown),
            ("gateways", "503 Service Temporarily Unavailable", M::Unknown),
            ("gateways", "i/o timeout", M::Unknown),
            ("gateways", "network is unreachable", M::Unknown),
            ("gateways", "408 Request Timeout", M::Unknown),
            ("gateways", "context deadline exceeded", M::Unknown),
            ("nobody", "something nobody ever saw", M::Unknown),
            ("nobody", "", M::Unknown),
        ];
        for (client, text, meaning) in cases {
            assert_eq!(ErrorTable::default().meaning_of(text), meaning, "{client}: {text}");
        }
    }

    #[test]
    fn simulations_that_fail_are_told_from_nodes_that_did_not_look() {
        use SimulationMeaning as S;
        let cases = [
            ("execution reverted: not today", S::Failed),
            ("Execution reverted", S::Failed),
            ("execution reverted: timeout", S::Failed),
            ("execution reverted: rate limit", S::Failed),
            ("gas required exceeds allowance (30000000)", S::Failed),
            ("invalid opcode: INVALID", S::Failed),
            ("EVM error InvalidFEOpcode", S::Failed),
            ("insufficient funds for gas * price + value", S::InsufficientFunds),
            ("EVM error: OutOfGas", S::Failed),
            ("VM execution error.", S::Failed),
            ("stack underflow (0 <=> 1)", S::Failed),
            ("max initcode size exceeded", S::Failed),
            ("cannot issue transaction from non-allow listed address", S::Unavailable),
            ("sender is not an eoa", S::Unavailable),
            ("header not found", S::Unavailable),
            ("Internal error", S::Unavailable),
            ("execution aborted (timeout = 5s)", S::Unavailable),
            ("out of counters", S::Unavailable),
            ("the moon is full", S::Unavailable),
            ("Initial sync is still in progress", S::Unavailable),
            ("World state unavailable", S::Unavailable),
            ("Too Many Requests", S::Unavailable),
        ];
        for (text, meaning) in cases {
            assert_eq!(ErrorTable::default().meaning_of_simulation(text), meaning, "{text}");
        }
    }

    #[test]
    fn an_outage_in_any_shape_is_told_from_an_answer_to_the_call() {
        use Fault as F;
        let table = ErrorTable::default();
        let outages = [
            (-32011, "no backend is currently healthy to serve traffic"),
            (-32010, "backend offline"),
            (-32002, "No available upstream"),
            (-32603, "all upstream attempts failed"),
            (-32000, "Service unavailable"),
            (-32000, "502 Bad Gateway"),
            (-32603, "upstream connect error or disconnect/reset before headers"),
            (-32000, "temporarily unavailable, try again later"),
            (402, "Payment Required"),
            (-32000, "Your quota is used up, upgrade to the next plan"),
            (-32000, "Must be authenticated!"),
            (-32000, "invalid project id"),
            (-32603, "dial tcp 10.0.0.1:8545: connect: connection refused"),
            (19, "Temporary internal error. Please retry, trace-id: 1"),
            (-32046, "Cannot fulfill request"),
        ];
        for (code, text) in outages {
            assert_eq!(table.fault_of(200, Some(code), text), F::Outage, "{text}");
        }
        let of_calls = [
            (3, "execution reverted: backend unavailable, try again later"),
            (-32000, "VM Exception while processing transaction: reverted with reason string 'upstream'"),
            (-32000, "nonce too low"),
            (-32000, "sequencer pending tx pool full, please try again"),
            (-32000, "forbidden sender address"),
            (-32601, "the method eth_getBlockReceipts does not exist"),
            (-32000, "intrinsic gas too low"),
        ];
        for (code, text) in of_calls {
            for status in [200, 400, 404, 500] {
                assert_eq!(table.fault_of(status, Some(code), text), F::Call, "{status} {text}");
            }
            for status in [401, 402, 403, 408, 502, 503, 504, 520, 599] {
                assert_eq!(table.fault_of(status, Some(code), text), F::Outage, "{status} {text}");
            }
            assert_eq!(table.fault_of(429, Some(code), text), F::RateLimit);
        }
        assert_eq!(table.fault_of(200, Some(-32000), "the moon is full"), F::Call, "no table knows it");
        assert_eq!(table.fault_of(500, Some(-32000), "the moon is full"), F::Outage);
        assert_eq!(table.fault_of(503, None, "daily request count exceeded"), F::RateLimit);
        assert_eq!((table.fault_of(503, None, ""), table.fault_of(404, None, "")), (F::Outage, F::Outage));
        assert_eq!(table.fault_of(413, None, ""), F::Call);
        let own = ErrorTable::with([("no backend for you".to_owned(), M::Refused)]);
        assert_eq!(own.fault_of(200, Some(1), "No backend for you"), F::Call, "the operator knows it");
    }

    #[test]
    fn the_operators_texts_come_first_and_the_longest_of_them_before_the_others() {
        let own = [("Pool", M::PoolFull), ("THE POOL SAYS NO TO", M::NotPermitted), ("already known", M::Refused)];
        let table = ErrorTable::with(own.map(|(text, meaning)| (text.to_owned(), meaning)));
        assert_eq!(table.meaning_of("no room in the pool"), M::PoolFull);
        assert_eq!(table.meaning_of("The pool says no to you"), M::NotPermitted);
        assert_eq!(table.meaning_of("Already known"), M::Refused);
        assert_eq!(table.meaning_of("nonce too low"), M::NonceTooLow);
        let table = ErrorTable::with([("not in the mood".to_owned(), M::Syncing)]);
        assert_eq!(table.meaning_of_simulation("Not in the mood"), SimulationMeaning::Unavailable);
        assert_eq!(table.meaning_of_simulation("execution reverted: not in the mood"), SimulationMeaning::Failed);
    }

    #[test]
    fn refused_batches_missing_methods_and_rate_limits_are_told_from_what_contracts_say() {
        for text in ["Number of requests exceeds max batch size", "batch too large", "response too large"] {
            assert!(is_batch_refusal(text), "{text}");
        }
        assert!(!is_batch_refusal("execution reverted: batch too large"));
        let missing = [
            (-32601, "whatever"),
            (-32604, "The method eth_feeHistory is not supported"),
            (-32000, "the method eth_feeHistory does not exist/is not available"),
            (0, "Unsupported method: eth_feeHistory"),
            (0, "eth_getBlockReceipts is not available on your plan"),
            (-32000, "rpc method is not whitelisted"),
            (-32004, "Method not implemented"),
            (12, "not yet implemented"),
            (-32600, "This method is restricted"),
            (-32000, "the txpool namespace is disabled"),
            (-32000, "Unrecognized method 'eth_feeHistory'"),
        ];
        for (code, text) in missing {
            assert!(is_missing_method(code, text), "{text}");
        }
        for (code, text) in [
            (-32000, "header not found"),
            (-32603, "Internal error"),
            (-32602, "invalid argument 0"),
            (-32000, "execution reverted: method not found"),
            (-32000, "block not found"),
            (-32000, "nonce too low"),
        ] {
            assert!(!is_missing_method(code, text), "{text}");
        }
        assert!(ErrorTable::default().is_rate_limit("request rate limited"));
        assert!(!ErrorTable::default().is_rate_limit("execution reverted: rate limit"));
    }

    #[test]
    fn no_text_is_hidden_behind_an_earlier_one() {
        for (index, (_, part, meaning)) in TEXTS.iter().enumerate() {
            let first = TEXTS.iter().position(|(_, earlier, _)| part.contains(earlier)).unwrap();
            assert!(first == index || TEXTS[first].2 == *meaning, "{part} is hidden behind {}", TEXTS[first].1);
            assert_eq!(*part, part.to_lowercase(), "texts are compared in lower case");
        }
    }

    #[test]
    fn every_meaning_but_the_unknown_has_a_word() {
        let with_texts: std::collections::HashSet<_> = TEXTS.iter().map(|(_, _, meaning)| *meaning).collect();
        let with_words: std::collections::HashSet<_> = M::configurable().collect();
        assert_eq!(with_texts, with_words);
    }
}
