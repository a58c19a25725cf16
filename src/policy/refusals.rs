//! What a refusal names: a limit that no waiting changes, or what a price lacks. Nodes write limits into their texts; where
//! one is named it is read.

use crate::model::{Gas, Wei};

/// Why a node will never take these bytes, whatever changes around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// More bytes than the node takes in one transaction; the most, where it names that.
    TooLarge(Option<u64>),
    /// More gas than one transaction may have; the most, where it is named.
    TooMuchGas(Option<Gas>),
    /// Less gas than its calldata costs; the least, where it is named.
    TooLittleGas(Option<Gas>),
    /// Gas times price is above the node's own cap; the most, where it is named. A lower price cures it.
    TooExpensive(Option<Wei>),
    /// Its type, its encoding or its signature.
    Malformed,
}

/// Says what the price of a transaction lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// The tip is below what the node takes; the least, where it names that.
    Tip(Option<Wei>),
    /// The price is; the least, where it is named.
    Price(Option<Wei>),
}

/// A kind of lasting refusal, without its number.
#[derive(Clone, Copy)]
enum Kind {
    Size,
    GasCap,
    LeastGas,
    FeeCap,
    Form,
}

/// Which client says it, a part of it in lower case, its kind, and the words behind which the number stands.
const TEXTS: &[(&str, &str, Kind, &[&str])] = &[
    ("geth", "oversized data", Kind::Size, &["limit"]),
    ("nethermind", "transaction too large", Kind::Size, &["limit", "max"]),
    ("reth", "transaction size", Kind::Size, &["limit", "max"]),
    ("erigon", "rlp too long", Kind::Size, &[]),
    ("any server", "http status 413", Kind::Size, &[]),
    ("geth", "transaction gas limit too high", Kind::GasCap, &["cap"]),
    ("reth", "exceeds max transaction gas limit", Kind::GasCap, &["max transaction gas limit"]),
    ("besu", "transaction gas limit cap exceeded", Kind::GasCap, &["cap"]),
    ("anvil, hardhat", "is greater than the cap", Kind::GasCap, &["cap"]),
    ("anvil", "tx_gas_limit_cap", Kind::GasCap, &["tx_gas_limit_cap"]),
    ("geth", "floor data gas", Kind::LeastGas, &["minimum needed", "want"]),
    ("reth, anvil", "gas floor", Kind::LeastGas, &["gas floor"]),
    ("geth, erigon, nethermind, anvil", "intrinsic gas too low", Kind::LeastGas, &["minimum needed", "want"]),
    ("besu", "intrinsic gas exceeds gas limit", Kind::LeastGas, &[]),
    ("hardhat", "transaction requires at least", Kind::LeastGas, &["at least"]),
    ("openethereum", "transaction gas is too low", Kind::LeastGas, &[]),
    ("monad", "gas limit too low", Kind::LeastGas, &[]),
    ("arbitrum, anvil", "gas too low", Kind::LeastGas, &["minimum needed"]),
    ("reth", "call gas cost", Kind::LeastGas, &["call gas cost"]),
    ("geth, besu", "exceeds the configured cap", Kind::FeeCap, &["configured cap"]),
    ("besu", "transaction fee cap exceeded", Kind::FeeCap, &[]),
    ("geth", "transaction type not supported", Kind::Form, &[]),
    ("besu", "invalid transaction type", Kind::Form, &[]),
    ("nethermind", "unsupported transaction type", Kind::Form, &[]),
    ("anvil", "not supported by the current hardfork", Kind::Form, &[]),
    ("geth", "only replay-protected", Kind::Form, &[]),
    ("besu", "chainid is required", Kind::Form, &[]),
    ("anvil", "failed to decode transaction", Kind::Form, &[]),
    ("reth", "failed to decode signed transaction", Kind::Form, &[]),
    ("anvil", "empty transaction data", Kind::Form, &[]),
    ("geth, erigon", "invalid sender", Kind::Form, &[]),
    ("nethermind", "failed to recover sender", Kind::Form, &[]),
    ("besu, ganache", "invalid signature", Kind::Form, &[]),
    ("reth", "invalid transaction signature", Kind::Form, &[]),
    ("geth, anvil", "max initcode size exceeded", Kind::Form, &[]),
    ("erigon", "initcode too large", Kind::Form, &[]),
];

/// Returns why the node will never take the bytes that it refuses with this text; `None` where the text does not say so.
pub fn lasting(text: &str) -> Option<Lasting> {
    let text = text.to_lowercase();
    // That limit is the block's, and moves with each of them.
    if text.contains("block") && text.contains("gas limit") {
        return None;
    }
    let (_, _, kind, words) = TEXTS.iter().find(|(_, part, _, _)| text.contains(part))?;
    let named = words.iter().find_map(|word| number_after(&text, word));
    let whole = named.and_then(|number| u64::try_from(number.whole).ok());
    Some(match kind {
        Kind::Size => Lasting::TooLarge(whole),
        Kind::GasCap => Lasting::TooMuchGas(whole.map(Gas)),
        Kind::LeastGas => Lasting::TooLittleGas(whole.map(Gas)),
        Kind::FeeCap => {
            let named = named.filter(|_| text.contains("ether")).and_then(Number::ether);
            Lasting::TooExpensive(named.map(below_cap).filter(|most| *most > Wei(0)))
        }
        Kind::Form => Lasting::Malformed,
    })
}

/// Geth compares with a number of floating point, so that a fee of exactly the cap may be refused.
fn below_cap(cap: Wei) -> Wei {
    Wei(cap.0 - cap.0 / 1000)
}

/// Returns what a price lacks that the node calls too low with this text.
pub fn lack(text: &str) -> Lack {
    let text = text.to_lowercase();
    let is_tip = [" tip", "priority fee"].iter().any(|word| text.contains(word));
    let words: &[&str] = if is_tip {
        &["minimum needed", "minimum required priority fee", "minimum"]
    } else {
        &["minimum needed", "minimum of", "at least", "minimum"]
    };
    let named = words.iter().find_map(|word| number_after(&text, word)).map(|number| Wei(number.whole));
    if is_tip { Lack::Tip(named) } else { Lack::Price(named) }
}

/// A decimal number of a text.
#[derive(Clone, Copy)]
struct Number {
    whole: u128,
    /// Digits behind the point, as a number of 10^-18.
    parts: u128,
}

impl Number {
    fn ether(self) -> Option<Wei> {
        const ETHER: u128 = 1_000_000_000_000_000_000;
        self.whole.checked_mul(ETHER)?.checked_add(self.parts).map(Wei)
    }
}

/// Reads the number that stands next behind this word, within a few characters.
fn number_after(text: &str, word: &str) -> Option<Number> {
    const NEAR: usize = 16;
    const PARTS: usize = 18;
    let behind = text.split_once(word)?.1;
    let start = behind.char_indices().take(NEAR).find(|(_, letter)| letter.is_ascii_digit())?.0;
    let number = behind.get(start..)?;
    let end = number.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(number.len());
    let (whole, rest) = number.split_at(end);
    let parts: String = rest.strip_prefix('.').unwrap_or("").chars().take_while(char::is_ascii_digit).collect();
    let parts = format!("{:0<PARTS$}", parts.get(..PARTS).unwrap_or(&parts));
    Some(Number { whole: whole.parse().ok()?, parts: parts.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::classify::{ErrorTable, SendMeaning};

    #[test]
    fn each_lasting_refusal_is_read_with_its_limit() {
        use Lasting as L;
        let ether = |tenths: u128| Some(below_cap(Wei(tenths * 100_000_000_000_000_000)));
        let cases = [
            ("oversized data: transaction size 140113, limit 131072", L::TooLarge(Some(131_072))),
            ("oversized data", L::TooLarge(None)),
            ("transaction too large", L::TooLarge(None)),
            ("HTTP status 413: the request is too large", L::TooLarge(None)),
            ("transaction gas limit too high (cap: 16777216, tx: 18000000)", L::TooMuchGas(Some(Gas(1 << 24)))),
            ("transaction gas limit too high", L::TooMuchGas(None)),
            ("exceeds max transaction gas limit", L::TooMuchGas(None)),
            ("Transaction gas limit cap exceeded", L::TooMuchGas(None)),
            ("transaction gas limit (18000000) is greater than the cap (16777216)", L::TooMuchGas(Some(Gas(1 << 24)))),
            ("intrinsic gas too high -- tx.gas_limit > env.cfg.tx_gas_limit_cap", L::TooMuchGas(None)),
            ("intrinsic gas too low: gas 20000, minimum needed 21000", L::TooLittleGas(Some(Gas(21_000)))),
            (
                "insufficient gas for floor data gas cost: gas 25000, minimum needed 31000",
                L::TooLittleGas(Some(Gas(31_000))),
            ),
            ("Transaction requires at least 53000 gas but got 21000", L::TooLittleGas(Some(Gas(53_000)))),
            ("intrinsic gas too low", L::TooLittleGas(None)),
            ("tx fee (1.20 ether) exceeds the configured cap (1.00 ether)", L::TooExpensive(ether(10))),
            ("tx fee (2.10 ether) exceeds the configured cap (0.50 ether)", L::TooExpensive(ether(5))),
            // Geth rounds what it names to hundredths.
            ("tx fee (0.00 ether) exceeds the configured cap (0.00 ether)", L::TooExpensive(None)),
            ("Transaction fee cap exceeded", L::TooExpensive(None)),
            ("transaction type not supported", L::Malformed),
            ("Failed to decode transaction", L::Malformed),
            ("invalid sender", L::Malformed),
        ];
        for (text, expected) in cases {
            assert_eq!(lasting(text), Some(expected), "{text}");
            assert_eq!(ErrorTable::default().meaning_of(text), SendMeaning::Refused, "{text}");
        }
    }

    #[test]
    fn what_may_change_is_not_lasting() {
        let texts = [
            "exceeds block gas limit",
            "Transaction gas limit is 40000000 and exceeds block gas limit of 30000000",
            "intrinsic gas too high -- tx.gas_limit > env.block.gas_limit",
            "transaction cost overflow",
            "execution reverted",
            "Plugin has marked the transaction as invalid",
            "who knows",
        ];
        for text in texts {
            assert_eq!(lasting(text), None, "{text}");
        }
    }

    #[test]
    fn a_price_that_is_too_low_is_read_with_what_it_lacks() {
        let cases = [
            (
                "transaction gas price below minimum: gas tip cap 1, minimum needed 2000000000",
                Lack::Tip(Some(Wei(2_000_000_000))),
            ),
            ("transaction underpriced: gas tip cap 0, minimum needed 1", Lack::Tip(Some(Wei(1)))),
            (
                "transaction priority fee below minimum required priority fee 1000000000",
                Lack::Tip(Some(Wei(1_000_000_000))),
            ),
            ("transaction underpriced: tip too small", Lack::Tip(None)),
            ("transaction underpriced", Lack::Price(None)),
            ("Transaction gas price is 0, which is below the minimum of 7", Lack::Price(Some(Wei(7)))),
            ("max fee per gas less than block base fee: address 0x00, maxFeePerGas: 1, baseFee: 7", Lack::Price(None)),
            ("Gas price below configured minimum gas price", Lack::Price(None)),
        ];
        for (text, expected) in cases {
            assert_eq!(lack(text), expected, "{text}");
            assert_eq!(ErrorTable::default().meaning_of(text), SendMeaning::Underpriced, "{text}");
        }
    }

    #[test]
    fn numbers_from_outside_never_overflow() {
        let huge = "9".repeat(60);
        assert_eq!(lasting(&format!("oversized data, limit {huge}")), Some(Lasting::TooLarge(None)));
        assert_eq!(lack(&format!("gas tip cap 1, minimum needed {huge}")), Lack::Tip(None));
        assert_eq!(
            lasting(&format!("exceeds the configured cap ({} ether)", u128::MAX)),
            Some(Lasting::TooExpensive(None))
        );
    }
}
