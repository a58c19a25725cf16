//! Compares requests with what the account has written and the journal has no row for: before they are signed, before they
//! are cancelled without a nonce, and where a foreign transaction took a nonce of theirs.

use tracing::warn;

use crate::chain::follow::nonce_taker::Taker;
use crate::journal::{Cancellation, JournalError, QueuedRequest};
use crate::model::{BodyHash, Cause, Nonce, PauseReason, Reason, RecoveredWrite, RequestId, RequestState, TxHash};
use crate::stages::lane::conclude;
use crate::stages::lane::term::Term;

const SENT_BACK: &str = "it was sent back, and by no operator since the recovery began: check whether the chain has an earlier \
                         body of it, then send it back with `chainwriter dead replay` or `edit`";

impl Term<'_> {
    /// Compares all that waits for a nonce with what is remembered.
    pub(super) async fn compare_again(&mut self) -> Result<(), JournalError> {
        self.foreign.known.has_writes = true;
        self.queue.unready(&self.routes.batching);
        self.compare_with_foreign().await?;
        self.compare_aside().await
    }

    /// Compares what is aside with what is remembered, in its place: it keeps its tries, however often that is done.
    async fn compare_aside(&mut self) -> Result<(), JournalError> {
        let aside: Vec<_> = self.queue.aside().requests().cloned().collect();
        if aside.is_empty() || self.foreign.is_behind() {
            return Ok(());
        }
        let hashes = aside.iter().map(|request| BodyHash::of(request.calldata())).collect();
        let found = self.context.journal.recovered_writes(hashes).await?;
        if !self.foreign.is_recovering() {
            let equal = aside.iter().find_map(|request| Some((&request.id, equal_call(request, &found)?)));
            return match equal {
                Some((request, write)) => self.stop_behind(request, &write).await,
                None => Ok(()),
            };
        }
        let decided = self.context.journal.decided(aside.iter().map(|request| request.id.clone()).collect()).await?;
        let mut rulings = Vec::new();
        for request in aside.into_iter().filter(|request| !decided.contains(&request.id)) {
            if let Some(cause) = doubt_of(&request, &found) {
                self.queue.aside_mut().take(request.seq);
                rulings.push(conclude::failed(&self.lease, request, cause));
            }
        }
        self.rule(rulings).await;
        Ok(())
    }

    /// Returns whether something that is ready to be signed asks for what an unknown transaction has done: it was compared
    /// when it was fetched, and its simulation may have taken long.
    pub(super) async fn has_written_among_ready(&mut self) -> Result<bool, JournalError> {
        if !self.foreign.known.has_writes {
            return Ok(false);
        }
        let requests = || self.queue.ready().iter().flat_map(|payload| payload.requests.iter());
        let hashes = requests().map(|request| BodyHash::of(request.calldata())).collect();
        let found = self.context.journal.recovered_writes(hashes).await?;
        if found.is_empty() {
            return Ok(false);
        }
        if !self.foreign.is_recovering() {
            return Ok(requests().any(|request| equal_call(request, &found).is_some()));
        }
        let decided = self.context.journal.decided(requests().map(|request| request.id.clone()).collect()).await?;
        let is_written = |request: &QueuedRequest| {
            let hash = BodyHash::of(request.calldata());
            !decided.contains(&request.id) && found.iter().any(|write| write.data_hash == hash)
        };
        Ok(requests().any(is_written))
    }

    /// Compares what was fetched with the calls of transactions that the journal has no row for.
    pub(super) async fn compare_with_foreign(&mut self) -> Result<(), JournalError> {
        if !self.foreign.known.has_writes || self.queue.fetched().is_empty() {
            return Ok(());
        }
        let hashes = self.queue.fetched().iter().map(|fetched| BodyHash::of(fetched.request.calldata())).collect();
        let found = self.context.journal.recovered_writes(hashes).await?;
        if self.foreign.is_recovering() {
            return self.set_written_aside(&found).await;
        }
        if found.is_empty() {
            return Ok(());
        }
        let requests = self.queue.fetched().iter().map(|fetched| &fetched.request);
        let equal = requests.filter_map(|request| Some((request.id.clone(), equal_call(request, &found)?))).next();
        match equal {
            Some((request, write)) => self.stop_behind(&request, &write).await,
            None => Ok(()),
        }
    }

    /// Compares what is signed and in no block: its nonce may be free while the account has written the same at another one.
    /// The nonce of such a request is cancelled, unless it lands first. Outside a recovery it also stops all lanes.
    pub(super) async fn compare_signed(&mut self) -> Result<(), JournalError> {
        if !self.foreign.known.has_writes {
            return Ok(());
        }
        let signed = || {
            let open = self.flight.not_included().filter(|live| !live.is_cancelling() && live.wanted_cause().is_none());
            open.flat_map(|live| live.payload.requests.iter().map(|request| (live.nonce, request)))
        };
        let hashes = signed().map(|(_, request)| BodyHash::of(request.calldata())).collect();
        let found = self.context.journal.recovered_writes(hashes).await?;
        if found.is_empty() {
            return Ok(());
        }
        let is_recovering = self.foreign.is_recovering();
        let decided = match is_recovering {
            true => self.context.journal.decided(signed().map(|(_, request)| request.id.clone()).collect()).await?,
            false => Vec::new(),
        };
        let equal = |request: &QueuedRequest| match is_recovering {
            true => equal_calldata(request, &found).filter(|_| !decided.contains(&request.id)),
            false => equal_call(request, &found),
        };
        let matches = signed().filter_map(|(nonce, request)| Some((nonce, request.id.clone(), equal(request)?)));
        let matches: Vec<_> = matches.collect();
        for (nonce, request, write) in matches {
            if !is_recovering {
                self.stop_behind(&request, &write).await?;
            }
            if let Some(live) = self.flight.get_mut(nonce) {
                warn!(request.id = %request, tx.nonce = %nonce, tx.hash = %write.tx_hash, "a transaction that the journal does not know may be this write; its nonce is cancelled unless it lands first");
                live.cancel_cause = Some(maybe_written(&write));
            }
        }
        Ok(())
    }

    /// Rules on what was fetched and has its calldata in the chain, and on every replay: a body that was edited is in no chain,
    /// and its request may be. What an operator has sent back since the recovery began is decided; a header alone, which any
    /// producer may set, decides nothing.
    async fn set_written_aside(&mut self, found: &[RecoveredWrite]) -> Result<(), JournalError> {
        let requests = self.queue.fetched().iter().map(|fetched| fetched.request.id.clone());
        let decided = self.context.journal.decided(requests.collect()).await?;
        let mut rulings = Vec::new();
        for fetched in self.queue.take_fetched() {
            let is_open = !decided.contains(&fetched.request.id);
            match doubt_of(&fetched.request, found).filter(|_| is_open) {
                Some(cause) => rulings.push(conclude::failed(&self.lease, fetched.request, cause)),
                None => self.queue.add_fetched([fetched]),
            }
        }
        self.rule(rulings).await;
        Ok(())
    }

    /// Returns which of these requests may be written already, of those that have no nonce, with the cause. `None` where
    /// nothing may be ruled on now: a dead letter says that nothing of the request has landed.
    pub(super) async fn cancelled_and_written(
        &mut self,
        cancellations: &[Cancellation],
    ) -> Result<Option<Vec<(RequestId, Cause)>>, JournalError> {
        let waiting = cancellations.iter().filter(|one| one.state == RequestState::Accepted).map(|one| &one.request);
        let waiting: Vec<_> = waiting.collect();
        if waiting.is_empty() {
            return Ok(Some(Vec::new()));
        }
        if !self.foreign.allows_signing() {
            return Ok(None);
        }
        if !self.foreign.known.has_writes {
            return Ok(Some(Vec::new()));
        }
        let hashes = waiting.iter().map(|request| BodyHash::of(request.calldata())).collect();
        let found = self.context.journal.recovered_writes(hashes).await?;
        let is_recovering = self.foreign.is_recovering();
        let mut written = Vec::new();
        for request in waiting {
            let hash = BodyHash::of(request.calldata());
            if is_recovering {
                let write = found.iter().find(|write| write.data_hash == hash);
                written.extend(write.map(|write| (request.id.clone(), maybe_written(write))));
            } else if let Some(write) = equal_call(request, &found) {
                self.stop_behind(&request.id, &write).await?;
                return Ok(None);
            }
        }
        Ok(Some(written))
    }

    /// Invariant 14: stops all lanes before anything is signed. Only an operator can know what was written.
    async fn stop_behind(&mut self, request: &RequestId, write: &RecoveredWrite) -> Result<(), JournalError> {
        let RecoveredWrite { tx_hash, nonce, block_number, .. } = write;
        let detail = format!(
            "transaction {tx_hash} of {}, nonce {nonce} in block {block_number}, asks for what request {request} asks for, and \
             the journal does not know it. The journal is older than the chain, or not the only one. Stop the workers and run \
             `chainwriter recover`",
            self.account()
        );
        self.context.journal.record_behind(&self.lease, detail.clone()).await?;
        self.gate.pause(PauseReason::JournalIsBehind, detail.clone());
        self.foreign.known.behind = Some(detail);
        Ok(())
    }

    /// Remembers what foreign transactions called that took nonces of ours, and returns those whose nonces are to be given
    /// up. Crash before the nonces are closed: the same is found again. A transaction that asks for what the nonce's own
    /// request asks for is that request's, written with a newer journal: it gets no other nonce.
    pub(super) async fn remember_takers(
        &mut self,
        takers: Vec<(Nonce, Taker)>,
    ) -> Result<Vec<(Nonce, TxHash)>, JournalError> {
        let (mut known, mut given_up) = (Vec::new(), Vec::new());
        for (nonce, taker) in takers {
            let writes = self.writes_of(&taker);
            let live = self.flight.get(nonce).filter(|_| !self.foreign.is_recovering());
            let requests = live.into_iter().flat_map(|live| live.payload.requests.iter());
            let equal = requests.filter_map(|request| Some((request.id.clone(), equal_call(request, &writes)?))).next();
            if let Some((request, write)) = equal {
                self.stop_behind(&request, &write).await?;
                break;
            }
            given_up.push((nonce, taker.inclusion.tx_hash));
            known.push((nonce, taker));
        }
        if known.iter().any(|(_, taker)| taker.sent.is_some()) {
            self.remember(known.iter().map(|(nonce, taker)| (*nonce, taker)), Nonce(0)).await?;
            self.compare_again().await?;
        }
        Ok(given_up)
    }
}

/// Returns why a request may be written already, in a recovery, unless an operator has decided about it.
fn doubt_of(request: &QueuedRequest, found: &[RecoveredWrite]) -> Option<Cause> {
    let hash = BodyHash::of(request.calldata());
    match found.iter().find(|write| write.data_hash == hash) {
        Some(write) => Some(maybe_written(write)),
        None => (request.generation.replay > 0).then(|| Cause::new(Reason::MaybeWritten, SENT_BACK)),
    }
}

fn maybe_written(write: &RecoveredWrite) -> Cause {
    let RecoveredWrite { tx_hash, block_number, .. } = write;
    let detail = format!(
        "transaction {tx_hash} in block {block_number} has the same calldata, and the journal has no row for it"
    );
    Cause::new(Reason::MaybeWritten, detail)
}

fn equal_calldata(request: &QueuedRequest, writes: &[RecoveredWrite]) -> Option<RecoveredWrite> {
    let hash = BodyHash::of(request.calldata());
    writes.iter().find(|write| write.data_hash == hash).cloned()
}

/// Returns the call that is just what the request asks for.
fn equal_call(request: &QueuedRequest, writes: &[RecoveredWrite]) -> Option<RecoveredWrite> {
    let hash = BodyHash::of(request.calldata());
    let is_equal = |write: &&RecoveredWrite| {
        write.data_hash == hash && write.to == request.write.to && write.value == request.write.value
    };
    writes.iter().find(is_equal).cloned()
}
