//! What a lane starts from: everything of its account that may still land, read from the journal and checked.

use crate::chain::transaction_hash;
use crate::journal::{AccountId, JournalError, LiveTransaction, StoredNonce, Transactions, Which};
use crate::model::{Attempt, Nonce};

/// Live transactions by nonce, without holes among them that the journal should not have.
///
/// # Errors
/// When the journal fails, or holds bytes that do not have their hash: to send those could write something else.
pub async fn live_transactions<J>(journal: &J, account: AccountId) -> Result<Vec<LiveTransaction>, JournalError>
where
    J: Transactions + ?Sized,
{
    let live = journal.live_transactions(account).await?;
    check(live.iter().flat_map(|transaction| &transaction.attempts))?;
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
    check(stored.iter().flat_map(|stored| &stored.attempts))?;
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
) -> Result<Vec<(Nonce, Attempt)>, JournalError>
where
    J: Transactions + ?Sized,
{
    let fillers = journal.fillers(account, first, below).await?;
    check(fillers.iter().map(|(_, attempt)| attempt))?;
    Ok(fillers)
}

fn check<'a>(attempts: impl Iterator<Item = &'a Attempt>) -> Result<(), JournalError> {
    for attempt in attempts {
        if transaction_hash(&attempt.signed.raw) != attempt.signed.hash {
            let detail = format!("the bytes of attempt {} do not have its hash", attempt.signed.hash);
            return Err(JournalError::Corrupt { what: "attempt", detail });
        }
    }
    Ok(())
}
