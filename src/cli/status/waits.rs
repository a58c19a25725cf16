//! Says what a request still waits for. The journal says how far it is; the chain and the running worker say why it goes no further.

use std::time::Duration;

use tokio::time::timeout;

use crate::chain::{BlockTag, Chain, ChainError, Header, NodeClient, Receipt};
use crate::config::Settings;
use crate::daemon::status::{self, LaneReport, PauseReport, WorkerReport};
use crate::journal::{History, TransactionHistory};
use crate::model::text::counted;
use crate::model::{BlockNumber, RequestState, TransactionState, TxHash, Wei};
use crate::policy::finality::{FinalityRule, highest_final};

/// For all questions to nodes.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// Holds what the chain shows of a transaction that is not final.
#[derive(Debug)]
struct Seen {
    head: BlockNumber,
    rule: FinalityRule,
    /// The block that the rule's tag names, where it has one and the node names one.
    tagged: Option<BlockNumber>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Block {
        number: BlockNumber,
        /// The answer of `chain.confirm_with`, once the rule calls it final; `None`: none is configured.
        confirmed: Option<Result<(), String>>,
    },
    Nowhere {
        /// Transactions of the account before it that are in no block.
        before: u64,
        /// A node has it; `None`: none says so.
        is_pooled: Option<bool>,
        /// The next block's base fee, and what it offers at most.
        price: Option<(Wei, Wei)>,
    },
}

/// Returns what the request waits for, in sentences; nothing where it waits for nothing.
pub(super) async fn waits(history: &History, settings: &Settings) -> Vec<String> {
    let state = RequestState::from_word(&history.request.state);
    let is_live = |transaction: &&TransactionHistory| {
        transaction.state == TransactionState::Live.as_str() || transaction.reorged_at.is_some()
    };
    let live = history.transactions.iter().find(is_live);
    let is_open = matches!(state, Some(RequestState::Accepted | RequestState::Writing));
    let waits_for_retry = matches!(state, Some(RequestState::RetryPending | RequestState::RetryWaiting));
    if !is_open && !waits_for_retry && live.is_none() {
        return Vec::new();
    }
    let mut waits = Vec::new();
    if let Some(transaction) = live {
        waits.push(match NodeClient::new(&settings.chain) {
            Ok(chain) => match timeout(ASK_LIMIT, ask_chain(&chain, history, transaction, settings)).await {
                Ok(Ok(seen)) => in_words(&seen),
                Ok(Err(error)) => format!("the chain could not be asked: {error}"),
                Err(_) => "the chain could not be asked: no answer in time".to_owned(),
            },
            Err(error) => format!("the chain could not be asked: {error}"),
        });
    }
    if let Some(listen) = settings.http_listen {
        match status::ask(listen).await {
            Ok(report) if waits_for_retry => waits.extend(of_retry(history, &report)),
            Ok(report) => waits.extend(of_worker(history, &report, live.is_some())),
            Err(error) => waits.push(error.to_string()),
        }
    }
    waits
}

async fn ask_chain(
    chain: &dyn Chain,
    history: &History,
    transaction: &TransactionHistory,
    settings: &Settings,
) -> Result<Seen, ChainError> {
    let nothing = || ChainError::Nonsense { endpoint: "the node".to_owned(), detail: "no newest block".to_owned() };
    let head = chain.header(BlockTag::Latest).await?.ok_or_else(nothing)?;
    let rule = settings.lane.finality;
    let tagged = match BlockTag::of(rule) {
        Some(tag) => chain.header(tag).await?.map(|tagged| tagged.number),
        None => None,
    };
    let hashes: Vec<TxHash> = transaction.signed.iter().map(|signed| signed.hash).collect();
    let receipts = chain.receipts(&hashes).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let place = match receipts.into_iter().flatten().next() {
        Some(receipt) => {
            let number = receipt.transaction.block_number;
            let is_final = highest_final(rule, head.number, tagged) >= Some(number);
            let asks = is_final && !settings.chain.confirmation.endpoints.is_empty();
            Place::Block { number, confirmed: if asks { Some(confirm(chain, receipt).await) } else { None } }
        }
        None => nowhere(chain, history, transaction, &head).await?,
    };
    Ok(Seen { head: head.number, rule, tagged, place })
}

async fn confirm(chain: &dyn Chain, receipt: Receipt) -> Result<(), String> {
    let (number, block) = (receipt.transaction.block_number, receipt.transaction.block_hash);
    chain.confirm(number, block, &[receipt]).await.map_err(|error| error.to_string())
}

async fn nowhere(
    chain: &dyn Chain,
    history: &History,
    transaction: &TransactionHistory,
    head: &Header,
) -> Result<Place, ChainError> {
    let count = chain.transaction_count(history.request.account, BlockTag::Latest).await?;
    let newest = transaction.signed.last();
    let is_pooled = match newest {
        Some(newest) => chain.has_transaction(newest.hash).await.ok(),
        None => None,
    };
    let base_fee = chain.market(head).await.ok().and_then(|market| market.base_fee);
    let price = base_fee.zip(newest.and_then(|newest| newest.max_fee.parse().ok()));
    Ok(Place::Nowhere { before: transaction.nonce.0.saturating_sub(count.0), is_pooled, price })
}

fn in_words(Seen { head, rule, tagged, place }: &Seen) -> String {
    match place {
        Place::Nowhere { before, is_pooled, price } => {
            let pool = match is_pooled {
                Some(true) => "a node has it in its pool",
                Some(false) => "no node has it: the worker sends it again",
                None => "no node says whether its pool has it",
            };
            let mut parts = vec![format!("a block: it is in none up to {head}, and {pool}")];
            if *before > 0 {
                parts.push(format!("{} of the account before it must come first", counted(*before, "transaction")));
            }
            if let Some((base_fee, offered)) = price.filter(|(base_fee, offered)| base_fee > offered) {
                parts.push(format!("the next block asks for {base_fee} for a unit of gas, it offers {offered}"));
            }
            parts.join("; ")
        }
        Place::Block { number, confirmed } => match final_in_words(*number, *head, *rule, *tagged) {
            Some(missing) => missing,
            None => match confirmed {
                Some(Err(why)) => format!("chain.confirm_with: block {number} is final here, and {why}"),
                Some(Ok(())) | None => format!("the worker: block {number} is final, and it has yet to store that"),
            },
        },
    }
}

/// Returns what a block waits for until it is final; `None` where it is.
fn final_in_words(
    number: BlockNumber,
    head: BlockNumber,
    rule: FinalityRule,
    tagged: Option<BlockNumber>,
) -> Option<String> {
    if highest_final(rule, head, tagged) >= Some(number) {
        return None;
    }
    let word = match rule {
        FinalityRule::Depth(depth) => {
            let on_top = head.0.saturating_sub(number.0);
            return Some(format!("confirmations: it is in block {number}; blocks on top of it: {on_top} of {depth}"));
        }
        FinalityRule::Safe => "safe",
        FinalityRule::Finalized => "finalized",
    };
    Some(match tagged {
        Some(tagged) => {
            let behind = counted(number.0.saturating_sub(tagged.0), "block");
            format!("finality: it is in block {number}, the newest {word} block is {tagged}, {behind} before that")
        }
        None => format!("finality: it is in block {number}, and the node names no {word} block"),
    })
}

/// Returns what the running worker says of the request and of its account.
fn of_worker(history: &History, report: &WorkerReport, is_signed: bool) -> Vec<String> {
    let Some(lane) = report.lanes.iter().find(|lane| lane.account == history.request.account) else {
        return vec![format!("the account: {} does not have it", report.worker)];
    };
    let held = lane.held.iter().filter(|held| held.request == history.request.id);
    let mut waits: Vec<_> = held.map(|held| format!("its own turn: {}", held.why)).collect();
    waits.extend(lane.paused.as_ref().map(|PauseReport { reason, detail }| {
        let which = if is_signed { "nothing new is signed" } else { "the account" };
        format!("{which}: it pauses ({reason}): {detail}")
    }));
    if !is_signed {
        waits.extend(of_queue(lane, report));
    }
    waits
}

/// Returns what keeps a retry from being taken in once its time has come.
fn of_retry(history: &History, report: &WorkerReport) -> Vec<String> {
    let broker = report.broker.detail.iter().map(|why| format!("the broker, which is {}: {why}", report.broker.state));
    let lane = report.lanes.iter().find(|lane| lane.account == history.request.account);
    let pause = lane.and_then(|lane| lane.paused.as_ref()).map(|PauseReport { reason, detail }| {
        format!("the account, once its retry is due: it pauses ({reason}): {detail}")
    });
    broker.chain(pause).collect()
}

fn of_queue(lane: &LaneReport, report: &WorkerReport) -> Option<String> {
    if lane.paused.is_some() {
        return None;
    }
    if !lane.owner {
        return Some(format!("another instance than {}, which does not own its account", report.worker));
    }
    if let Some(throttled) = &lane.throttled {
        return Some(format!("room below {throttled}"));
    }
    (lane.in_flight >= lane.window)
        .then(|| format!("room: {} of the account are not final, its window is {}", lane.in_flight, lane.window))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(rule: FinalityRule, tagged: Option<u64>, place: Place) -> String {
        in_words(&Seen { head: BlockNumber(100), rule, tagged: tagged.map(BlockNumber), place })
    }

    #[test]
    fn a_block_waits_for_others_on_top_or_for_the_nodes_word_or_for_another_endpoint() {
        let block = |confirmed| Place::Block { number: BlockNumber(99), confirmed };
        let refused = || Some(Err("block 99 is not final there yet".to_owned()));
        let table = [
            (FinalityRule::Depth(3), None, block(None), "it is in block 99; blocks on top of it: 1 of 3"),
            (FinalityRule::Depth(1), None, block(None), "the worker: block 99 is final"),
            (FinalityRule::Depth(0), None, block(Some(Ok(()))), "the worker: block 99 is final"),
            (
                FinalityRule::Depth(1),
                None,
                block(refused()),
                "chain.confirm_with: block 99 is final here, and block 99 is not",
            ),
            (FinalityRule::Safe, Some(98), block(None), "the newest safe block is 98, 1 block before that"),
            (FinalityRule::Finalized, Some(35), block(None), "the newest finalized block is 35, 64 blocks before that"),
            (FinalityRule::Finalized, Some(99), block(None), "the worker: block 99 is final"),
            (FinalityRule::Safe, None, block(None), "the node names no safe block"),
        ];
        for (rule, tagged, place, words) in table {
            let text = seen(rule, tagged, place);
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn what_is_in_no_block_waits_for_a_pool_for_those_before_it_or_for_its_price() {
        let nowhere = |before, is_pooled, price: Option<(u128, u128)>| {
            let price = price.map(|(base_fee, offered)| (Wei(base_fee), Wei(offered)));
            seen(FinalityRule::Depth(2), None, Place::Nowhere { before, is_pooled, price })
        };
        assert_eq!(
            nowhere(0, Some(true), Some((5, 5))),
            "a block: it is in none up to 100, and a node has it in its pool"
        );
        let text = nowhere(2, Some(false), Some((7, 5)));
        assert!(text.contains("the worker sends it again; 2 transactions of the account before it"), "{text}");
        assert!(text.ends_with("the next block asks for 7 wei for a unit of gas, it offers 5 wei"), "{text}");
        assert!(nowhere(0, None, None).ends_with("no node says whether its pool has it"));
    }
}
