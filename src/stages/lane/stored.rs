//! What a lane starts from: everything of its account that may still land, read from the journal and checked.

use crate::chain::transaction_hash;
use crate::journal::{AccountId, JournalError, LiveTransaction, StoredNonce, Transactions, Which};
use crate::model::{Nonce, Purpose, SignedTransaction};

/// Live transactions by nonce, without holes among them that the journal should not have.
///
/// # Errors
/// When the journal fails, or holds bytes that do not have their hash: to send those could write something else.
pub async fn live_transactions<J>(journal: &J, account: AccountId) -> Result<Vec<LiveTransaction>, JournalError>
where
    J: Transactions + ?Sized,
{
    let live = journal.live_transactions(account).await?;
    check(live.iter().flat_map(|transaction| &transaction.signed))?;
    live.iter().try_for_each(check_calldata)?;
    Ok(live)
}

/// Transactions by their nonces, whatever their state.
///
/// # Errors
/// As [`live_transactions`].
pub async fn nonces<J>(journal: &J, account: AccountId, which: Which) -> Result<Vec<StoredNonce>, JournalError>
where
    J: Transactions + ?Sized,
{
    let stored = journal.nonces(account, which).await?;
    check(stored.iter().flat_map(|stored| &stored.signed))?;
    Ok(stored)
}

/// What was signed to fill nonces from `first` to below the other, oldest first.
///
/// # Errors
/// As [`live_transactions`].
pub async fn fillers<J>(
    journal: &J,
    account: AccountId,
    first: Nonce,
    below: Nonce,
) -> Result<Vec<(Nonce, SignedTransaction)>, JournalError>
where
    J: Transactions + ?Sized,
{
    let fillers = journal.fillers(account, first, below).await?;
    check(fillers.iter().map(|(_, attempt)| attempt))?;
    Ok(fillers)
}

/// What a batch would be signed with again must be what it was signed with first.
fn check_calldata(live: &LiveTransaction) -> Result<(), JournalError> {
    let Some(data) = &live.data else { return Ok(()) };
    let holds = |attempt: &SignedTransaction| {
        let raw = &attempt.raw.bytes;
        attempt.purpose == Purpose::Write && raw.windows(data.len().max(1)).any(|bytes| bytes == data)
    };
    if live.signed.iter().any(holds) {
        return Ok(());
    }
    let detail = format!("the calldata of nonce {} is not that of its attempts", live.nonce);
    Err(JournalError::Corrupt { what: "transaction", detail })
}

fn check<'a>(signed: impl Iterator<Item = &'a SignedTransaction>) -> Result<(), JournalError> {
    for attempt in signed {
        if transaction_hash(&attempt.raw.bytes) != attempt.raw.hash {
            let detail = format!("the bytes of attempt {} do not have its hash", attempt.raw.hash);
            return Err(JournalError::Corrupt { what: "attempt", detail });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::journal::{QueuedRequest, ReplyAddress, RequestSeq};
    use crate::model::{
        Address, Fee, Gas, GasRule, Generation, RawTransaction, RequestId, Timestamp, TxHash, Wei, Write,
    };

    fn batch(data: &'static [u8], kinds: &[Purpose]) -> LiveTransaction {
        let attempt = |kind: &Purpose| SignedTransaction {
            purpose: *kind,
            raw: RawTransaction { hash: TxHash([1; 32]), bytes: Bytes::from_static(b"head, calldata, tail") },
            fee: Fee::Legacy { gas_price: Wei(1) },
            signed_at: Timestamp(0),
        };
        let request = QueuedRequest {
            seq: RequestSeq(1),
            id: RequestId::new("a").unwrap(),
            generation: Generation::default(),
            turn: 1,
            received_at: Timestamp(0),
            accepted_at: Timestamp(0),
            body: Bytes::new(),
            write: Write { to: Address([1; 20]), value: Wei(0), gas: GasRule::Fixed(Gas(21_000)), data: None },
            is_alone: false,
            reply: ReplyAddress::default(),
            trace: None,
        };
        LiveTransaction {
            requests: crate::model::Members::one(request),
            nonce: Nonce(0),
            to: Address([1; 20]),
            value: Wei(0),
            data: Some(Bytes::from_static(data)),
            gas: Gas(21_000),
            signed: kinds.iter().map(attempt).collect(),
        }
    }

    #[test]
    fn calldata_of_a_batch_that_changed_on_disk_is_noticed() {
        use Purpose::{Cancel, Write};
        assert!(check_calldata(&batch(b"calldata", &[Write, Cancel])).is_ok());
        assert!(check_calldata(&batch(b"caldata", &[Write, Cancel])).is_err());
        assert!(check_calldata(&batch(b"calldata", &[Cancel])).is_err(), "a cancellation has none");
        assert!(check_calldata(&LiveTransaction { data: None, ..batch(b"", &[Cancel]) }).is_ok());
    }
}
