//! The stages between the four seams, in the order of the data.
//!
//! # One request
//!
//! 1. The broker passes a delivery and its ack token to `intake`. Intake reads the message by the rules of `policy`, and admits
//!    a batch of them to the journal in one commit. The body goes into the journal, the token to `settle`, and the lane of the
//!    request's account is woken. A message that is no request goes to settle too, which publishes it as a dead letter.
//! 2. `lane` owns one account while it holds the account's lease. It reads its queue from the journal, simulates, prices, signs,
//!    stores the signed bytes together with their nonces, and only then broadcasts. It follows the chain with the parts in
//!    `chain/follow`, sends again, replaces and cancels, and when a nonce is final it sends a ruling to settle.
//! 3. `settle` turns the ruling into a decision. It stores the outcome and the event in one commit. A request that is final is
//!    acked then. For one that failed, settle publishes the retry or the dead letter, stores its confirm, and acks after that.
//! 4. `outbox` publishes the event, and deletes it when it has its publisher confirm.
//!
//! # What a crash leaves
//!
//! | crash after | the broker has | the journal has | at the next start |
//! |---|---|---|---|
//! | the delivery came | the delivery | nothing | it comes again, and is accepted |
//! | intake's commit | the delivery | the request | it comes again and joins; the lane finds the request in its queue |
//! | the commit of signed bytes | the delivery | the bytes | the lane broadcasts the same bytes |
//! | the nonce is final | the delivery | the live transaction | the lane reads the receipt again, and rules the same |
//! | settle's commit | the delivery | the outcome and the event | it comes again and is acked as known |
//! | the copy's confirm | the delivery and the copy | the unconfirmed copy | the copy is published again, and its repeat is recognised |
//! | the event's confirm | the event | the event | the event is published again under the same id |
//!
//! A lost broker session is the same for deliveries: their tokens have no effect any more, and the broker delivers again. A
//! failed write of the journal ends the process (invariant 9). A lost lease drops a lane's unsaved work: the next owner finds
//! it again from the journal and the chain.
//!
//! # Beside the path
//!
//! `assignment` spreads accounts over instances, and decides which lanes ask for their leases. `dead_letters` sends dead
//! letters back by the operator's rules. `claim` makes sure that this journal is the one that serves the queue; before
//! that nothing is taken in or signed. `holds` reads what operators hold. `upkeep` forgets what ended long ago, and
//! `lost_retries` names what waits in vain. `pipeline` builds all stages and connects them.
//!
//! Each stage has `run`, which loops until it is cancelled, and `step`, which does one unit of work and says what it did. A test
//! at the end of a stage's file drives single steps over the fakes in `simulation/fakes`.

pub mod assignment;
pub mod claim;
pub mod dead_letters;
pub mod holds;
pub mod intake;
pub mod lane;
pub mod lost_retries;
pub mod outbox;
pub mod pipeline;
pub mod settle;
pub mod upkeep;
