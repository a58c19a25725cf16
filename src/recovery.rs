//! What a lane starts from: everything of its account that may still land, read from the journal and checked.

use crate::chain::transaction_hash;
use crate::journal::{AccountId, JournalError, LiveTransaction, Transactions};

/// Live transactions by nonce, without holes among them that the journal should not have.
///
/// # Errors
/// When the journal fails, or holds bytes that do not have their hash: to send those could write something else.
pub async fn live_transactions<J>(journal: &J, account: AccountId) -> Result<Vec<LiveTransaction>, JournalError>
where
    J: Transactions + ?Sized,
{
    let live = journal.live_transactions(account).await?;
    let attempts = live.iter().flat_map(|transaction| &transaction.attempts);
    for attempt in attempts {
        if transaction_hash(&attempt.signed.raw) != attempt.signed.hash {
            let detail = format!("the bytes of attempt {} do not have its hash", attempt.signed.hash);
            return Err(JournalError::Corrupt { what: "attempt", detail });
        }
    }
    Ok(live)
}
