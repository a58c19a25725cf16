//! Computes what a rollup asks beside a transaction's gas, for posting it to L1 and for its operator: estimated before anything is
//! signed, from the chain's own oracle or from the last receipts.

use crate::model::{Address, Gas, Wei};

/// A contract of the chain that estimates it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Oracle {
    pub contract: Address,
    selector: [u8; 4],
    argument: Argument,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Argument {
    /// The length of the unsigned transaction.
    Length,
    /// The transaction itself, as bytes.
    Bytes,
}

/// The predeploys that know it; the first that answers is asked from then on.
pub const ORACLES: [Oracle; 3] = [
    // OP stack since Fjord: GasPriceOracle.getL1FeeUpperBound(uint256)
    Oracle { contract: OP_ORACLE, selector: [0xf1, 0xc7, 0xa5, 0x8b], argument: Argument::Length },
    // OP stack before that: GasPriceOracle.getL1Fee(bytes)
    Oracle { contract: OP_ORACLE, selector: GET_L1_FEE, argument: Argument::Bytes },
    // Scroll: L1GasPriceOracle.getL1Fee(bytes)
    Oracle { contract: SCROLL_ORACLE, selector: GET_L1_FEE, argument: Argument::Bytes },
];

const OP_ORACLE: Address = predeploy(0x42, 0x0f);
const SCROLL_ORACLE: Address = predeploy(0x53, 0x02);
const GET_L1_FEE: [u8; 4] = [0x49, 0x94, 0x8e, 0x0e];
const GET_OPERATOR_FEE: [u8; 4] = [0x27, 0x5a, 0xed, 0xd2];

const fn predeploy(first: u8, last: u8) -> Address {
    let mut address = [0; 20];
    (address[0], address[19]) = (first, last);
    Address(address)
}

/// The lengths of transactions for which an oracle is asked; between them and beyond, its answers are a line.
pub const PROBES: [usize; 2] = [200, 20_200];

impl Oracle {
    /// Returns the calldata that asks for a transaction of so many bytes, which no compression shortens.
    pub fn question(&self, bytes: usize) -> Vec<u8> {
        let word = |number: usize| {
            let mut word = [0; 32];
            word[24..].copy_from_slice(&(number as u64).to_be_bytes());
            word.to_vec()
        };
        let arguments = match self.argument {
            Argument::Length => word(bytes),
            Argument::Bytes => {
                let padding = vec![0; bytes.next_multiple_of(32) - bytes];
                [word(32), word(bytes), incompressible(bytes), padding].concat()
            }
        };
        [self.selector.to_vec(), arguments].concat()
    }

    /// Reads the answer: one word. An address without the contract answers nothing.
    pub fn answer(data: &[u8]) -> Option<Wei> {
        let (high, low) = <&[u8; 32]>::try_from(data).ok()?.split_first_chunk::<16>()?;
        let low = u128::from_be_bytes(low.try_into().ok()?);
        Some(Wei(if *high == [0; 16] { low } else { u128::MAX }))
    }
}

/// The gas for which the oracle is asked for its operator's fee; beyond, its answers are a line.
pub const OPERATOR_PROBES: [Gas; 2] = [Gas(0), Gas(1_000_000)];

impl Oracle {
    /// Returns the calldata that asks for the operator's fee for so much gas: GasPriceOracle.getOperatorFee(uint256), OP stack since
    /// Isthmus. `None` where there is no such fee.
    pub fn operator_question(&self, gas: Gas) -> Option<Vec<u8>> {
        let mut word = [0; 32];
        word[24..].copy_from_slice(&gas.0.to_be_bytes());
        (self.contract == OP_ORACLE).then(|| [&GET_OPERATOR_FEE[..], &word].concat())
    }
}

/// The fee of a chain's operator, by a transaction's gas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OperatorFees {
    least: Wei,
    /// For a million units of gas.
    per_million: Wei,
}

impl OperatorFees {
    /// Returns the line through an oracle's answers for [`OPERATOR_PROBES`].
    pub fn through([none, million]: [Wei; 2]) -> Self {
        Self { least: none, per_million: Wei(million.0.saturating_sub(none.0)) }
    }

    pub fn of(&self, gas: Gas) -> Wei {
        self.least.plus(self.per_million.scaled_up(gas.0.into(), OPERATOR_PROBES[1].0.into()))
    }
}

/// Returns bytes as a hash has them, always the same.
fn incompressible(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Never zero: zero bytes were cheaper before Ecotone.
        (state >> 32) as u8 | 1
    };
    (0..bytes).map(next).collect()
}

/// The fee of a transaction by its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L1Fees {
    from: u64,
    least: Wei,
    /// For each further byte.
    per_byte: Wei,
}

impl L1Fees {
    /// Returns the line through an oracle's answers for [`PROBES`].
    pub fn through([short, long]: [Wei; 2]) -> Self {
        let [from, to] = PROBES.map(|bytes| bytes as u64);
        let more = Wei(long.0.saturating_sub(short.0));
        Self { from, least: short, per_byte: more.scaled_up(1, u128::from(to - from)) }
    }

    /// Returns the line through the fee that a receipt shows for this size in bytes, and a quarter more: prices on L1 change.
    pub fn of_receipt(bytes: u64, fee: Wei) -> Self {
        let least = fee.scaled_up(5, 4);
        Self { from: bytes, least, per_byte: least.scaled_up(1, u128::from(bytes.max(1))) }
    }

    /// Returns the estimate for a transaction with so many bytes of calldata.
    pub fn of(&self, calldata: usize) -> Wei {
        /// Bytes of an unsigned transaction beside its calldata.
        const AROUND: u64 = 120;
        let more = (calldata as u64).saturating_add(AROUND).saturating_sub(self.from);
        self.least.plus(self.per_byte.scaled_up(more.into(), 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::abi::function;

    #[test]
    fn oracles_are_asked_as_their_signatures_say() {
        for (oracle, signature) in
            ORACLES.iter().zip(["getL1FeeUpperBound(uint256)", "getL1Fee(bytes)", "getL1Fee(bytes)"])
        {
            assert_eq!(oracle.selector, function(signature).unwrap().selector().0, "{signature}");
        }
        assert_eq!(GET_OPERATOR_FEE, function("getOperatorFee(uint256)").unwrap().selector().0);
        let of_operator = ORACLES.map(|oracle| oracle.operator_question(Gas(7)).map(|data| (data.len(), data[35])));
        assert_eq!(of_operator, [Some((36, 7)), Some((36, 7)), None]);
        assert_eq!(OP_ORACLE.to_string().to_lowercase(), "0x420000000000000000000000000000000000000f");
        let by_length = ORACLES[0].question(200);
        assert_eq!((by_length.len(), by_length[35]), (36, 200));
        let by_bytes = ORACLES[1].question(33);
        assert_eq!((by_bytes.len(), by_bytes[35], by_bytes[67]), (4 + 32 + 32 + 64, 32, 33));
    }

    #[test]
    fn an_answer_is_one_word_and_nothing_else() {
        let mut word = [0; 32];
        word[31] = 7;
        assert_eq!(Oracle::answer(&word), Some(Wei(7)));
        word[0] = 1;
        assert_eq!(Oracle::answer(&word), Some(Wei(u128::MAX)));
        for data in [&[][..], &[0; 31], &[0; 64]] {
            assert_eq!(Oracle::answer(data), None);
        }
    }

    #[test]
    fn a_fee_grows_with_the_length_and_a_receipt_stands_in_for_an_oracle() {
        let fees = L1Fees::through([Wei(1_000), Wei(21_000)]);
        assert_eq!([0, 80, 1_080].map(|bytes| fees.of(bytes)), [Wei(1_000), Wei(1_000), Wei(2_000)]);
        let operator = OperatorFees::through([Wei(5), Wei(2_000_005)]);
        assert_eq!([0, 21_000].map(|gas| operator.of(Gas(gas))), [Wei(5), Wei(42_005)]);
        let seen = L1Fees::of_receipt(200, Wei(800));
        assert_eq!([0, 80, 280].map(|bytes| seen.of(bytes)), [Wei(1_000), Wei(1_000), Wei(2_000)]);
    }

    proptest! {
        #[test]
        fn no_answer_overflows(short: u128, long: u128, calldata: usize, bytes: u64) {
            let fees = [L1Fees::through([Wei(short), Wei(long)]), L1Fees::of_receipt(bytes, Wei(short))];
            for fees in fees {
                prop_assert!(fees.of(calldata) >= fees.least);
            }
        }
    }
}
