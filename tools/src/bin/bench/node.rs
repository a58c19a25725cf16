//! The node that is measured, and what it is measured on.

use std::ops::Deref;
use std::sync::OnceLock;
use std::time::Duration;

use clap::ValueEnum;

use crate::support::{Anvil, AnvilConfig, Geth, GethConfig, RpcClient, geth};

/// Room for more than anybody can send in a block's time.
const BLOCK_GAS: u64 = 300_000_000;

/// A node program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Program {
    Geth,
    Anvil,
}

static CHOSEN: OnceLock<Program> = OnceLock::new();

/// Chooses the program for this run: the one that is asked for, else Geth where it is, else Anvil.
pub(crate) fn choose(asked: Option<Program>) {
    let has_geth = geth::program().is_some();
    let chosen = asked.unwrap_or(if has_geth { Program::Geth } else { Program::Anvil });
    if asked.is_none() && !has_geth {
        eprintln!("there is no Geth here (scripts/setup.sh geth builds it): the figures are Anvil's");
    }
    CHOSEN.set(chosen).unwrap();
}

/// The program of this run.
pub(crate) fn program() -> Program {
    *CHOSEN.get().unwrap()
}

impl Program {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Geth => "geth",
            Self::Anvil => "anvil",
        }
    }

    pub(crate) fn chain_id(self) -> u64 {
        match self {
            Self::Geth => geth::CHAIN_ID,
            Self::Anvil => 31337,
        }
    }

    /// The gas of each byte of calldata, none of them zero, and of the transaction: EIP-7623 on Anvil; Geth in developer mode
    /// has the rules of EIP-7976.
    pub(crate) fn gas(self, bytes: usize) -> u64 {
        match self {
            Self::Geth => 21_000 + 64 * bytes as u64,
            Self::Anvil => 21_000 + 40 * bytes as u64,
        }
    }

    /// Transactions that its pool keeps, of all accounts.
    pub(crate) fn pool(self) -> usize {
        match self {
            Self::Geth => 5_000,
            Self::Anvil => usize::MAX,
        }
    }
}

/// A private node, gone when dropped.
pub(crate) enum Node {
    Geth(Geth),
    Anvil(Anvil),
}

impl Node {
    pub(crate) async fn start(block_time: Duration) -> Self {
        match program() {
            Program::Geth => {
                assert!(block_time.subsec_nanos() == 0, "Geth makes blocks of whole seconds; see --block-ms");
                let gas = BLOCK_GAS.to_string();
                let extra_args = ["--dev.gaslimit", &gas, "--miner.gaslimit", &gas].map(str::to_owned).to_vec();
                Self::Geth(Geth::start(GethConfig { period: block_time.as_secs(), extra_args }).await)
            }
            Program::Anvil => {
                // Old states only fill the memory.
                let extra_args = ["--prune-history", "8", "--silent", "--accounts", "10"].map(str::to_owned).to_vec();
                let block_time = Some(block_time);
                Self::Anvil(
                    Anvil::start(AnvilConfig {
                        block_time,
                        gas_limit: BLOCK_GAS,
                        extra_args,
                        ..AnvilConfig::default()
                    })
                    .await,
                )
            }
        }
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        match self {
            Self::Geth(geth) => geth.pids(),
            Self::Anvil(anvil) => anvil.pids(),
        }
    }
}

impl Deref for Node {
    type Target = RpcClient;

    fn deref(&self) -> &RpcClient {
        match self {
            Self::Geth(geth) => geth,
            Self::Anvil(anvil) => anvil,
        }
    }
}
