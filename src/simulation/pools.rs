//! What node programs keep of an account's transactions, and what they say of those that they do not keep.

/// What a pool does with a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judged {
    Yes,
    /// It answers with the hash and forgets it.
    Dropped,
    Refused(&'static str),
}

/// The rules of a node's pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolRules {
    /// Transactions of one account; its next one is taken in any case.
    pub(crate) of_account: usize,
    /// Those of one account that come before their turn.
    pub(crate) early: usize,
    /// How far a nonce may be ahead of the account's.
    pub(crate) ahead: u64,
    /// Transactions of all accounts whose turn it is; each account may have some in any case.
    pub(crate) in_all: usize,
    pub(crate) guaranteed: usize,
    /// What has no room is dropped after an answer with its hash.
    pub(crate) drops: bool,
    /// The calls of a batch run beside each other.
    pub(crate) shuffles: bool,
}

impl Default for PoolRules {
    /// Keeps everything.
    fn default() -> Self {
        let all = usize::MAX;
        Self { of_account: all, early: all, ahead: u64::MAX, in_all: all, guaranteed: 0, drops: false, shuffles: false }
    }
}

impl PoolRules {
    /// go-ethereum 1.17.10: `txpool.accountqueue`, `txpool.globalslots`, `txpool.accountslots`; measured.
    pub(crate) fn geth() -> Self {
        Self { early: 64, in_all: 5120, guaranteed: 16, drops: true, ..Self::default() }
    }

    /// Besu: `--tx-pool-max-future-by-sender`.
    pub(crate) fn besu() -> Self {
        Self { ahead: 200, ..Self::default() }
    }

    /// reth: `--txpool.max-account-slots`.
    pub(crate) fn reth() -> Self {
        Self { of_account: 16, ..Self::default() }
    }

    /// In half of the runs a pool like one of these, of the size of a run.
    pub(crate) fn draw(rng: &mut fastrand::Rng) -> Option<Self> {
        let mut rules = match rng.u8(0..6) {
            0 => Self { early: rng.usize(1..4), in_all: rng.usize(6..20), ..Self::geth() },
            1 => Self { ahead: rng.u64(2..9), ..Self::besu() },
            2 => Self { of_account: rng.usize(1..4), ..Self::reth() },
            _ => return None,
        };
        rules.guaranteed = rules.guaranteed.min(2);
        rules.shuffles = rng.u8(0..3) == 0;
        Some(rules)
    }

    /// Returns what becomes of a transaction that replaces none, in a pool that has these of its account, and so many whose
    /// turn it is in all.
    pub(crate) fn judge(&self, nonce: u64, count: u64, own: impl Iterator<Item = u64>, executable: usize) -> Judged {
        let own: std::collections::BTreeSet<u64> = own.collect();
        let next = (count..).find(|nonce| !own.contains(nonce)).unwrap_or(count);
        let early = own.range(next..).count();
        let refused = |text| if self.drops { Judged::Dropped } else { Judged::Refused(text) };
        if nonce > count.saturating_add(self.ahead) {
            Judged::Refused("Transaction nonce is too distant from current sender nonce")
        } else if own.len() >= self.of_account && nonce > count {
            refused("txpool is full")
        } else if nonce > next && early >= self.early {
            refused("nonce too high")
        } else if nonce <= next && executable >= self.in_all && next - count >= self.guaranteed as u64 {
            refused("txpool is full")
        } else {
            Judged::Yes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_keeps_what_it_keeps() {
        let geth = PoolRules::geth();
        let reth = PoolRules::reth();
        // the rules, the nonce, the account's count, what the pool has of it, what has its turn in all, what becomes of it
        let table = [
            (geth, 1000, 0, 0..1000, 1000, Judged::Yes),
            (geth, 5120, 0, 0..5120, 5120, Judged::Dropped),
            (geth, 15, 0, 0..15, 5120, Judged::Yes),
            (geth, 16, 0, 0..16, 5120, Judged::Dropped),
            (geth, 65, 0, 1..65, 0, Judged::Dropped),
            (geth, 64, 0, 1..64, 0, Judged::Yes),
            (geth, 0, 0, 1..65, 0, Judged::Yes),
            (reth, 15, 0, 0..15, 15, Judged::Yes),
            (reth, 16, 0, 0..16, 16, Judged::Refused("txpool is full")),
            (reth, 0, 0, 1..17, 0, Judged::Yes),
            (PoolRules::besu(), 205, 5, 5..205, 9, Judged::Yes),
            (
                PoolRules::besu(),
                206,
                5,
                5..206,
                9,
                Judged::Refused("Transaction nonce is too distant from current sender nonce"),
            ),
        ];
        for (rules, nonce, count, own, executable, kept) in table {
            assert_eq!(rules.judge(nonce, count, own, executable), kept, "{nonce} of {count}, {rules:?}");
        }
    }
}
