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

/// Checks that a batch would be signed with what it was signed with first.
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
    use crate::model::RawTransaction;
    use crate::stages::lane::fixtures;

    fn batch(data: &'static [u8], purposes: &[Purpose]) -> LiveTransaction {
        let bytes = Bytes::from_static(b"head, calldata, tail");
        let raw = RawTransaction { hash: fixtures::hash(0, 0), bytes };
        let signed =
            |purpose: &Purpose| SignedTransaction { purpose: *purpose, raw: raw.clone(), ..fixtures::signed(0, 0) };
        let signed = purposes.iter().map(signed).collect();
        LiveTransaction { data: Some(Bytes::from_static(data)), signed, ..fixtures::live(0, 0) }
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
