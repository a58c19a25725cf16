//! The driver of a run: producer, miner, operator, and everything that goes wrong.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use tokio::time::Instant;

use crate::journal::Leases;
use crate::model::headers::header;
use crate::model::{Address, Generation, Headers, Message, Order, Origin, Properties, RequestId, Timestamp};
use crate::policy::marker::newest;
use crate::simulation::Outcome;
use crate::simulation::checker::is_conflict;
use crate::simulation::episodes::{Blow, Spell, Swarm};
use crate::simulation::hosts::Process;
use crate::simulation::journal::{MemoryJournal, NoFaults};
use crate::simulation::ledger::CHAIN_ID;
use crate::simulation::letters::{DeliveryLimit, READ_MS, read_letters};
use crate::simulation::orders::Operator;
use crate::simulation::queues::{Queued, REPLIES, replayed};
use crate::simulation::restored::{Copies, REACTION_MS, recover};
use crate::simulation::scopes::Scopes;
use crate::simulation::settings::{KEY, RunSettings};
use crate::simulation::store::{AccountRow, Store};
use crate::simulation::workload::{Behaviour, Body};
use crate::simulation::world::{Odds, Shared, Weather, World};

/// The driver looks this often whether something is due.
const TICK: Duration = Duration::from_millis(100);
/// Things go wrong for so long.
const STORM_MS: u64 = 90_000;
/// Then everything must come to its end within this.
const CALM_MS: u64 = 4 * 3_600_000;
/// What only needs its turn must be written within this.
const PATIENCE_MS: u64 = 10 * 60_000;
/// It is quiet when nothing has been to do for so many ticks.
const QUIET_TICKS: u32 = 100;

/// Shorter than what a passage leaves for it.
const LONGEST_FREEZE_WITH_LITTLE_KEPT_MS: u16 = 4000;

const RIVAL: Address = Address([0xee; 20]);

pub(super) struct Storm {
    world: Shared,
    rng: Rng,
    settings: RunSettings,
    swarm: Swarm,
    processes: Vec<Slot>,
    spells: Vec<(u64, Spell, Odds)>,
    next_trouble: u64,
    next_block: u64,
    to_publish: Vec<(u64, Body)>,
    /// Ordering keys of the requests, if they have any.
    keys: Option<u64>,
    /// Another worker that records the same, from messages of its own.
    rival: Option<Rival>,
    /// An operator who holds and releases.
    operator: Option<Operator>,
    /// An operator loses patience with what waits, and cancels it all.
    cancels_at: Option<u64>,
    /// An operator reads the broker's own dead letters then.
    reads_letters_at: u64,
    /// A process with a journal that is not the queue's, and when it goes.
    stranger: Option<(Process, u64)>,
    /// The journal as it was before each start.
    earlier: Vec<Store>,
    calm: bool,
    is_patience_checked: bool,
    copies: Copies,
}

/// An instance's place: its process, or the time at which it starts again.
struct Slot {
    process: Option<Process>,
    starts_at: u64,
    thaws_at: u64,
    runs: u32,
}

/// In runs with records.
struct Rival {
    rng: Rng,
    next: u64,
}

impl Storm {
    pub(super) async fn prepare(seed: u64, begin: Instant) -> Self {
        let mut rng = Rng::with_seed(seed);
        let world = World::new(rng.fork(), begin);
        let (store, depth) = (world.store(), world.ledger.depth);
        let world = Shared::new(world);
        let journal = MemoryJournal::new(store, std::sync::Arc::new(NoFaults));
        let mut accounts = Vec::new();
        for number in 0..rng.u8(1..=3) {
            let address = Address([number + 1; 20]);
            accounts.push((address, journal.account(CHAIN_ID, address).await.expect("nothing fails yet")));
        }
        let mut settings = RunSettings::draw(&mut rng, accounts, depth);
        // Drawn apart, so that all else in a run is as it is without them.
        let mut apart = Rng::with_seed(!seed);
        settings.draw_limits(&mut apart);
        if world.lock().ledger.pool_rules.is_some() {
            settings.resend_late();
        }
        let keys = settings.draw_ordering(&mut apart);
        settings.draw_batches(&mut Rng::with_seed(seed.rotate_left(32)));
        let mut apart = Rng::with_seed(seed.rotate_left(16));
        let rival = settings.draw_records(&mut apart).then_some(Rival { rng: apart, next: 0 });
        world.lock().checker.has_rival = rival.is_some();
        world.lock().checker.limits = settings.lane.tuning.borrow().limits;
        world.lock().checker.in_flight = settings.lane.rules.in_flight * settings.accounts.len();
        let mut apart = Rng::with_seed(seed.rotate_left(48));
        {
            let mut world = world.lock();
            world.forgets = settings.draw_upkeep(&mut apart);
            world.queues.delivery_limit = DeliveryLimit::draw(&mut Rng::with_seed(seed.rotate_left(8)));
            world.store().lock().expect("nobody panics with it").has_clock = apart.bool();
        }
        let instances = rng.usize(1..=3);
        let slot = |_| Slot { process: None, starts_at: 0, thaws_at: 0, runs: 0 };
        let mut to_publish: Vec<_> = (0..rng.u32(3..40)).map(|number| draw_request(&mut rng, number)).collect();
        if let Some(scopes) = Scopes::draw(&mut Rng::with_seed(seed.rotate_left(40))) {
            scopes.share_ids(to_publish.iter_mut().map(|(_, body)| body));
            settings.admission.scope = scopes.rule.clone();
            settings.settle.read_headers = tokio::sync::watch::channel(settings.admission.headers()).1;
            world.lock().checker.scopes = Some(scopes);
        }
        to_publish.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        let mut apart = Rng::with_seed(seed.rotate_left(48));
        if apart.bool() {
            poison(&mut apart, &mut to_publish);
            // Every request but the costly ones can still be paid, at the highest price too.
            world.lock().ledger.funds = apart.u128(100_000_000..500_000_000);
        }
        let swarm = Swarm::draw(&mut rng);
        let operator = Operator::draw(Rng::with_seed(seed.rotate_left(8)));
        world.lock().checker.has_operator = operator.is_some();
        Self {
            world,
            rng,
            settings,
            swarm,
            processes: (0..instances).map(slot).collect(),
            spells: Vec::new(),
            next_trouble: 2000,
            next_block: 1000,
            to_publish,
            keys,
            rival,
            operator,
            cancels_at: None,
            reads_letters_at: 0,
            stranger: None,
            earlier: Vec::new(),
            calm: false,
            is_patience_checked: false,
            copies: Copies::default(),
        }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.world.lock());
    }

    pub(super) async fn blow(&mut self) {
        let mut quiet = 0;
        loop {
            self.tick().await;
            let now = self.world.lock().now_ms();
            if !self.calm && now >= STORM_MS {
                self.clear_up();
            }
            if self.calm {
                self.world.lock().check_known();
            }
            if self.calm && now >= STORM_MS + PATIENCE_MS && !self.is_patience_checked {
                self.is_patience_checked = true;
                self.world.lock().check_patience();
            }
            quiet = if self.calm && self.is_quiet() { quiet + 1 } else { 0 };
            if quiet > QUIET_TICKS || !self.world.lock().checker.violations.is_empty() {
                return;
            }
            if now > STORM_MS + CALM_MS {
                let left = self.what_is_left();
                self.world.lock().violated(format!("it does not come to an end: {left}"));
                return;
            }
        }
    }

    async fn tick(&mut self) {
        tokio::time::sleep(TICK).await;
        let now = self.world.lock().now_ms();
        self.publish(now);
        self.compete(now);
        self.mine(now);
        self.world.lock().queues.expire(now);
        if !self.calm && now >= self.next_trouble {
            self.next_trouble = now + self.rng.u64(100..4000);
            self.trouble(now);
        }
        if self.calm {
            // Also what a restored copy of the journal holds.
            Operator::end(&mut self.world.lock());
            self.world.lock().cancel_lost_retries();
        } else if let Some(operator) = &mut self.operator {
            let accounts: Vec<_> = self.settings.accounts.iter().map(|(_, account)| *account).collect();
            operator.act(now, &accounts, &mut self.world.lock());
        }
        if self.cancels_at.take_if(|at| now >= *at).is_some() {
            self.cancel(true);
        }
        self.weather(now);
        self.operate(now).await;
        if now >= self.reads_letters_at {
            self.reads_letters_at = now + READ_MS;
            read_letters(&mut self.world.lock(), &self.settings.admission, self.settings.upkeep.kept);
        }
        self.look_after_processes(now).await;
    }

    fn publish(&mut self, now: u64) {
        while self.to_publish.last().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, body)) = self.to_publish.pop() {
                let mut world = self.world.lock();
                world.note(format!("published {}", body.text()));
                world.checker.published.entry(body.id.clone()).or_default().push(body.text());
                let scopes = world.checker.scopes.clone();
                let message = message(&body, self.keys, scopes.as_ref(), world.now_ms());
                world.queues.publish(message);
                world.queues.publish(no_request(&body, scopes.as_ref()));
            }
        }
    }

    /// The rival records something that is not in the chain, or something else under its id.
    fn compete(&mut self, now: u64) {
        let Some(Rival { rng, next }) = self.rival.as_mut().filter(|rival| !self.calm && now >= rival.next) else {
            return;
        };
        *next = now + rng.u64(300..6000);
        let mut world = self.world.lock();
        let written = world.ledger.effects();
        let published = world.checker.published.values().flatten().filter_map(|text| Body::read(text.as_bytes()));
        let coming = self.to_publish.iter().map(|(_, body)| body.clone());
        let open: Vec<_> = published.chain(coming).filter(|body| !written.contains_key(&body.id)).collect();
        let Some(mut body) = rng.choice(open) else { return };
        if rng.u8(0..8) == 0 {
            body.version += 2000;
        }
        world.note(format!("a rival records {}", body.text()));
        world.ledger.foreign(RIVAL, body.record_call());
    }

    fn mine(&mut self, now: u64) {
        if now < self.next_block || self.spells.iter().any(|(_, spell, _)| *spell == Spell::NoBlocks) {
            return;
        }
        self.next_block = now + self.rng.u64(300..1800);
        let most = self.rng.usize(0..8);
        let mut world = self.world.lock();
        world.ledger.mine(now, most);
        let height = world.ledger.height();
        let held = world.ledger.head().transactions.len();
        world.note(format!("block {height} with {held}"));
        world.check_chain();
    }

    fn weather(&mut self, now: u64) {
        self.spells.retain(|(end, ..)| *end > now);
        let mut weather = Weather { slowness_ms: 5, ..Weather::default() };
        for (_, spell, strength) in &self.spells {
            spell.apply(&mut weather, *strength);
        }
        let is_on = |wanted: fn(&Spell) -> bool| self.spells.iter().any(|(_, spell, _)| wanted(spell));
        let mut world = self.world.lock();
        world.weather = weather;
        world.queues.is_blocked = is_on(|spell| *spell == Spell::BrokerBlocked);
        world.queues.is_down = is_on(|spell| *spell == Spell::BrokerDown);
        if world.queues.is_down {
            world.queues.end_all_sessions();
        }
        let spike = self.spells.iter().find_map(|(_, spell, _)| match spell {
            Spell::FeeSpike(price) => Some(u128::from(*price)),
            _ => None,
        });
        world.ledger.base_fee = spike.unwrap_or(100);
        world.ledger.broke.clear();
        if is_on(|spell| *spell == Spell::NoFunds) {
            world.ledger.broke.extend(self.settings.accounts.iter().map(|(address, _)| *address));
        }
        let is_unseen = world.is_behind_unseen();
        if is_unseen {
            world.weather.count_lies = 0;
        }
        if is_unseen || !is_on(|spell| *spell == Spell::StaleReads) {
            world.stale_view = None;
        }
    }

    fn trouble(&mut self, now: u64) {
        if self.rng.bool() {
            if let Some(spell) = self.swarm.spell(&mut self.rng) {
                self.cast(spell, now);
            }
        } else if let Some(blow) = self.swarm.blow(&mut self.rng) {
            self.world.lock().note(format!("{blow:?}"));
            self.strike(blow, now);
        }
    }

    fn cast(&mut self, spell: Spell, now: u64) {
        let (end, strength) = (now + self.rng.u64(500..15_000), self.rng.u16(20..900));
        {
            let mut world = self.world.lock();
            world.note(format!("{spell:?} at {strength} until {end}"));
            if spell == Spell::StaleReads {
                world.stale_view = Some(world.ledger.chain.clone());
            }
        }
        // What stays behind may be on a fork.
        if spell == Spell::StaleReads && self.rng.bool() {
            let blocks = self.rng.u8(1..=4);
            self.reorganise(blocks, 0, now);
        }
        if matches!(spell, Spell::SignerAway | Spell::NoFunds) && self.rng.bool() {
            self.cancels_at = Some(now + self.rng.u64(500..6000));
        }
        self.spells.push((end, spell, strength));
    }

    fn strike(&mut self, blow: Blow, now: u64) {
        match blow {
            Blow::Kill { .. } | Blow::Freeze { .. } | Blow::Stop | Blow::ClockJump { .. } => {
                self.strike_process(blow, now)
            }
            Blow::Reorg { blocks, kept } => self.reorganise(blocks, kept, now),
            Blow::Evict | Blow::ForgetPool => {
                let odds = if blow == Blow::Evict { 300 } else { 1000 };
                let mut world = self.world.lock();
                let pool = world.ledger.pool.clone();
                let gone: BTreeSet<_> = pool.into_values().filter(|_| world.happens(odds)).collect();
                world.ledger.pool.retain(|_, hash| !gone.contains(hash));
                world.note_drops(gone);
            }
            Blow::Foreign => {
                let (account, _) = self.settings.accounts[self.rng.usize(..self.settings.accounts.len())];
                let number = self.rng.u8(..);
                let data: &'static [u8] = [&b"a"[..], b"b", b"c", b"d"][usize::from(number % 4)];
                self.world.lock().ledger.foreign(account, Bytes::from_static(data));
            }
            Blow::Copy => self.copies.take(&self.world.lock()),
            Blow::Restore => self.copies.is_due |= self.copies.is_there(),
            Blow::ForeignWaits { price, ms } => {
                let (account, _) = self.settings.accounts[self.rng.usize(..self.settings.accounts.len())];
                self.world.lock().ledger.foreign_until(account, price.into(), now + u64::from(ms));
            }
            Blow::CutSessions => self.world.lock().queues.end_all_sessions(),
            Blow::Stranger { is_copy, is_alone, ms } => self.let_stranger_come(is_copy, is_alone, now + u64::from(ms)),
            Blow::LoseMarker => {
                // Not while another could find none, and take the queue.
                if self.stranger.is_none() {
                    self.world.lock().queues.markers.clear();
                }
            }
            Blow::Duplicate | Blow::Conflict => self.publish_again(blow == Blow::Conflict),
            Blow::Replay { edited } => self.replay(edited),
            Blow::Cancel { all } => self.cancel(all),
        }
    }

    fn strike_process(&mut self, blow: Blow, now: u64) {
        let slot = self.rng.usize(..self.processes.len());
        let slot = &mut self.processes[slot];
        let Some(process) = &mut slot.process else { return };
        match blow {
            Blow::Kill { polls } => process.life.kill_after(polls.into()),
            Blow::Freeze { ms } => {
                process.life.freeze();
                let ms = if self.world.lock().forgets { ms % LONGEST_FREEZE_WITH_LITTLE_KEPT_MS } else { ms };
                slot.thaws_at = now + u64::from(ms);
            }
            Blow::ClockJump { seconds } => {
                // By weeks where a clock's error of hours would be longer than what is kept.
                let seconds = i64::from(seconds) * if self.world.lock().forgets { 1000 } else { 1 };
                process.life.jump(seconds * 1000);
                self.world.lock().checker.clocks_were_set = true;
            }
            _ => process.stop(),
        }
    }

    /// Never below what is final: the blocks that go away are those above it.
    fn reorganise(&mut self, blocks: u8, kept: Odds, now: u64) {
        let steals = self.rng.u8(0..4) == 0;
        let (account, _) = self.settings.accounts[0];
        let mut world = self.world.lock();
        let blocks = u64::from(blocks).min(world.ledger.depth);
        let mut rng = world.rng.fork();
        let gone = world.ledger.unwind(blocks, || rng.u16(0..1000) < kept);
        world.note_drops(gone);
        if steals {
            world.ledger.foreign(account, Bytes::from_static(b"stolen"));
        }
        for _ in 0..=blocks {
            let most = rng.usize(0..6);
            world.ledger.mine(now, most);
        }
        world.check_chain();
    }

    fn publish_again(&mut self, with_another_body: bool) {
        let mut world = self.world.lock();
        // One that comes after its request was forgotten is a new request.
        let store = world.store();
        // Nothing shows that another body is for a request that a restored journal lacks: the chain has no ids.
        let must_be_known = with_another_body && world.checker.was_restored;
        let is_protected = |id: &&String| {
            let store = store.lock().expect("nobody panics with it");
            RequestId::new(id).is_ok_and(|id| store.protects(&id) && (!must_be_known || store.request(&id).is_some()))
        };
        let ids: Vec<_> = world.checker.published.keys().filter(is_protected).cloned().collect();
        if ids.is_empty() {
            return;
        }
        let id = ids[world.rng.usize(..ids.len())].clone();
        let first = world.checker.published[&id][0].clone();
        let Some(mut body) = Body::read(first.as_bytes()) else { return };
        if with_another_body {
            body.version = 1000;
            world.checker.published.entry(id).or_default().push(body.text());
        }
        let scopes = world.checker.scopes.clone();
        let mut message = message(&body, self.keys, scopes.as_ref(), world.now_ms());
        // A header that any producer may set. Where the exchange is part of the id, it would be another request's.
        if world.checker.was_restored && world.rng.u8(0..3) == 0 && scopes.is_none() {
            message.origin = Origin::default();
            Generation { replay: world.rng.u32(1..4), retry: 0 }.write_to(&mut message.headers);
        }
        world.queues.publish(message);
    }

    fn replay(&mut self, edited: bool) {
        let mut world = self.world.lock();
        let store = world.store();
        let is_protected = |dead: &&Queued| {
            let store = store.lock().expect("nobody panics with it");
            RequestId::new(dead.id()).is_ok_and(|id| store.protects(&id))
        };
        let dead = world.queues.dead.iter().filter(|dead| !is_conflict(dead));
        let candidates: Vec<_> = dead.filter(is_protected).cloned().collect();
        if candidates.is_empty() {
            return;
        }
        let chosen = candidates[world.rng.usize(..candidates.len())].clone();
        let body = Body::read(&chosen.message.body)
            .filter(|_| edited)
            .map(|body| Body { behaviour: Behaviour::Runs, version: body.version + 1, ..body }.text());
        if let Some(body) = &body {
            world.checker.published.entry(chosen.id().to_owned()).or_default().push(body.clone());
        }
        world.note(format!("replayed {} {} edited {edited}", chosen.id(), chosen.generation()));
        world
            .queues
            .dead
            .retain(|dead| dead.id() != chosen.id() || dead.generation() > chosen.generation() || is_conflict(dead));
        *world.checker.replays.entry(chosen.id().to_owned()).or_default() += 1;
        world.queues.publish(replayed(&chosen, body));
    }

    fn cancel(&mut self, all: bool) {
        let mut world = self.world.lock();
        let ids: Vec<_> = world.checker.published.keys().cloned().collect();
        if ids.is_empty() {
            return;
        }
        let chosen = ids[world.rng.usize(..ids.len())].clone();
        let store = world.store();
        for id in ids.into_iter().filter(|id| all || *id == chosen) {
            let order = Order::new("operator", "");
            let request = RequestId::new(&id).expect("it was published as one");
            let answer = store.lock().expect("nobody panics with it").cancel(Timestamp::now(), &request, order);
            world.note(format!("cancel {id}: {answer:?}"));
            world.checker.cancelled.insert(id);
        }
    }

    /// Puts an older copy of the journal in its place while no process runs, and reads from the chain what it lacks once a
    /// lane has paused for that. Producers that heard nothing meanwhile send again.
    async fn operate(&mut self, now: u64) {
        // One that finds no marker meanwhile would take the queue.
        if self.stranger.is_some() {
            return;
        }
        if self.copies.acts_at.is_none() && !self.copies.is_due && self.world.lock().is_paused_as_behind() {
            self.copies.acts_at = Some(now + REACTION_MS);
        }
        let acts = self.copies.acts_at.is_some_and(|at| now >= at) && self.world.lock().is_all_final(&self.settings);
        if !acts && !self.copies.is_due {
            return;
        }
        for slot in &mut self.processes {
            slot.starts_at = slot.starts_at.max(now + 1000);
            if let Some(process) = &slot.process {
                process.life.kill();
            }
        }
        if self.processes.iter().any(|slot| slot.process.is_some()) {
            return;
        }
        if self.copies.is_due {
            self.copies.is_due = false;
            self.copies.restore(&mut self.world.lock());
            let again = self.rng.usize(0..10);
            (0..again).for_each(|_| self.publish_again(false));
        } else if let Err(error) = recover(&self.world, &self.settings).await {
            // The node did not answer, or was on another fork: the operator tries again.
            self.world.lock().note(format!("recover fails: {error}"));
            self.copies.acts_at = Some(now + REACTION_MS);
        } else {
            self.world.lock().note("recovered");
            self.copies.acts_at = None;
        }
    }

    /// A journal that does not know the marker at the broker: a new one, or a copy from before the last start.
    fn let_stranger_come(&mut self, is_copy: bool, is_alone: bool, until: u64) {
        let copy = {
            let world = self.world.lock();
            let Some(marker) = newest(&world.queues.markers).cloned() else { return };
            let found = (marker.start, marker.token);
            // A copy that an operator lets take the queue over does so: that is no stranger.
            let is_behind = |copy: &&Store| {
                let standing = copy.claim_standing(Some(&found));
                !standing.knows_start && standing.adoption.is_none()
            };
            let copy = self.earlier.iter().rev().find(is_behind).cloned();
            copy.filter(|_| is_copy).unwrap_or_else(|| self.earlier.first().map(Store::emptied).unwrap_or_default())
        };
        if self.stranger.is_some() {
            return;
        }
        if is_alone {
            for slot in &mut self.processes {
                slot.starts_at = slot.starts_at.max(until);
                if let Some(process) = &slot.process {
                    process.life.kill();
                }
            }
        }
        self.world.lock().note(format!("a stranger comes until {until}"));
        let store = std::sync::Arc::new(std::sync::Mutex::new(copy));
        self.stranger = Some((Process::start_on(store, &self.world, &self.settings, "stranger"), until));
    }

    async fn look_after_processes(&mut self, now: u64) {
        if let Some((process, until)) = &mut self.stranger {
            if now >= *until || self.calm {
                process.life.kill();
            }
            if !process.look().await {
                self.stranger = None;
            }
        }
        for number in 0..self.processes.len() {
            let slot = &mut self.processes[number];
            if let Some(process) = &mut slot.process {
                if process.life.is_frozen() && now >= slot.thaws_at {
                    process.life.thaw();
                }
                if !process.look().await {
                    slot.process = None;
                    slot.starts_at = slot.starts_at.max(now + self.rng.u64(0..6000));
                    self.world.lock().note(format!("process {number} has ended"));
                }
            } else if now >= slot.starts_at {
                slot.runs += 1;
                let name = format!("{number}.{}", slot.runs);
                self.world.lock().note(format!("process {name} starts"));
                let store = self.world.lock().store();
                let copy = store.lock().expect("nobody panics with it").clone();
                self.earlier.push(copy);
                slot.process = Some(Process::start(&self.world, &self.settings, &name));
            }
        }
    }

    /// Nothing goes wrong any more; what was broken stays broken until somebody heals it.
    fn clear_up(&mut self) {
        self.calm = true;
        self.spells.clear();
        // Otherwise what is for later waits for as long as the clocks are behind, and that is an hour and more.
        let somebody_waits = self.world.lock().queues.holds(header::NOT_BEFORE);
        for slot in &mut self.processes {
            slot.thaws_at = 0;
            if let Some(process) = slot.process.as_ref().filter(|_| somebody_waits) {
                process.life.set_right();
            }
        }
        self.world.lock().note("calm");
    }

    fn is_quiet(&self) -> bool {
        let world = self.world.lock();
        let store = world.store();
        let store = store.lock().expect("nobody panics with it");
        let settled = store.requests().values().all(|request| request.state.is_settled() && request.state.is_over());
        // One that is named is given up soon.
        let is_lost = !store.lost_retries().is_empty();
        // A gap may still have to be filled.
        let has_gap = |row: &AccountRow| world.ledger.nonce(row.address) < row.next_nonce.unwrap_or_default();
        let is_whole = !store.accounts().values().any(has_gap);
        let is_told = store.outbox().next().is_none() && !self.copies.is_due && store.foreign_use().behind.is_none();
        let is_spread = uneven(&store, self.processes.len()).is_none();
        self.to_publish.is_empty()
            && world.queues.given_up.is_read()
            && !world.queues.has(|queued| !queued.is_passage())
            && settled
            && !is_lost
            && is_whole
            && is_told
            && is_spread
    }

    fn what_is_left(&self) -> String {
        let world = self.world.lock();
        let store = world.store();
        let store = store.lock().expect("nobody panics with it");
        let open = store.requests().values().filter(|request| !request.state.is_settled());
        let open: Vec<_> = open.map(|request| format!("{} {}", request.id, request.state)).collect();
        let queues = &world.queues;
        let nonces: Vec<_> =
            store.accounts().values().map(|row| (world.ledger.nonce(row.address), row.next_nonce)).collect();
        format!(
            "open {open:?}, unpublished {}, work {}, wait {}, held {}, outbox {}, nonces {nonces:?}, copy due {}, behind {:?}, \
             lanes {:?}",
            self.to_publish.len(),
            queues.work.len(),
            queues.wait.len(),
            queues.held(),
            store.outbox().count(),
            self.copies.is_due,
            store.foreign_use().behind,
            uneven(&store, self.processes.len())
        )
    }

    /// Stops every process as a signal does, and looks at everything once more.
    pub(super) async fn end(mut self) -> Outcome {
        if self.world.lock().checker.violations.is_empty() {
            for process in self.processes.iter_mut().filter_map(|slot| slot.process.as_mut()) {
                process.stop();
            }
            for _ in 0..300 {
                tokio::time::sleep(TICK).await;
                for slot in &mut self.processes {
                    if let Some(process) = &mut slot.process
                        && !process.look().await
                    {
                        slot.process = None;
                    }
                }
            }
            let running = self.processes.iter().filter(|slot| slot.process.is_some()).count();
            let mut world = self.world.lock();
            if running > 0 {
                world.violated(format!("{running} processes do not stop"));
            }
            world.check_end();
        }
        let mut world = self.world.lock();
        Outcome { violations: std::mem::take(&mut world.checker.violations), story: world.story().to_vec() }
    }
}

fn draw_request(rng: &mut Rng, number: u32) -> (u64, Body) {
    let behaviour = Behaviour::draw(rng);
    (rng.u64(0..STORM_MS * 3 / 4), Body { id: format!("r{number}"), behaviour, version: 0 })
}

/// Makes some of the requests that would run into such as may stop all others.
fn poison(rng: &mut Rng, requests: &mut [(u64, Body)]) {
    for (_, body) in requests.iter_mut().filter(|(_, body)| body.behaviour == Behaviour::Runs) {
        if rng.u8(0..8) == 0 {
            body.behaviour = Behaviour::draw_poison(rng);
        }
    }
}

fn message(body: &Body, keys: Option<u64>, scopes: Option<&Scopes>, now: u64) -> Message {
    let reply_to = REPLIES.get(usize::try_from(body.number()).unwrap_or(0)).map(|queue| (*queue).to_owned());
    let properties = Properties { message_id: Some(body.id_in_scope().to_owned()), reply_to, ..Properties::default() };
    let mut headers = Headers::new();
    // One of them has none.
    if let Some(key) = keys.map(|keys| body.number() % (keys + 1)).filter(|key| *key > 0) {
        headers.insert(KEY.to_owned(), key.to_string().as_str().into());
    }
    let at = |ms| Timestamp::now().after(Duration::from_millis(ms)).before(Duration::from_millis(now)).to_string();
    match body.behaviour {
        Behaviour::Later(begin) => _ = headers.insert(header::NOT_BEFORE.to_owned(), at(begin).into()),
        Behaviour::Until(end) => _ = headers.insert(header::NOT_AFTER.to_owned(), at(end).into()),
        _ => {}
    }
    let mut message = Message { body: body.text().into_bytes().into(), properties, headers, ..Message::default() };
    let may_forge = body.number() % 3 == 1;
    if may_forge {
        message.origin.exchange = "orders".to_owned();
    }
    if let Some(scopes) = scopes {
        scopes.mark(&mut message, body.scope().unwrap_or_default(), may_forge);
    }
    if may_forge && !message.origin.exchange.is_empty() {
        // One that may publish to an exchange alone, and makes up what it likes.
        Generation { replay: 9, retry: 2 }.write_to(&mut message.headers);
        message.headers.insert(header::REQUEST_ID.to_owned(), "r0".into());
    }
    message
}

/// A message that intake refuses, under the id of another one, which may have come before or comes later.
fn no_request(other: &Body, scopes: Option<&Scopes>) -> Message {
    let own = format!("r{}", other.number().saturating_sub(1));
    let id = other.scope().map_or_else(|| own.clone(), |scope| format!("{scope}/{own}"));
    let body = Body { id, behaviour: Behaviour::Runs, version: 9000 };
    let properties = Properties { message_id: Some(own), ..Properties::default() };
    let mut message = Message { body: body.text().into_bytes().into(), properties, ..Message::default() };
    if let Some(scopes) = scopes {
        scopes.mark(&mut message, body.scope().unwrap_or_default(), false);
    }
    // What comes by an exchange has no count, and may say how long it is of use.
    let name = if message.origin.exchange.is_empty() { header::ATTEMPT } else { header::NOT_AFTER };
    message.headers.insert(name.to_owned(), "many".into());
    message
}

/// How lanes are spread, if not all instances are there and share them evenly.
fn uneven(store: &Store, instances: usize) -> Option<String> {
    let there = store.attendance(Timestamp::now());
    let owned = |owner: &str| there.lanes.iter().filter(|lane| lane.owner.as_deref() == Some(owner)).count();
    let loads: Vec<_> = there.instances.iter().map(|instance| owned(&instance.owner)).collect();
    let (least, most) = (loads.iter().min().unwrap_or(&0), loads.iter().max().unwrap_or(&0));
    let is_even = loads.len() == instances && loads.iter().sum::<usize>() == there.lanes.len() && most - least <= 1;
    let names = || there.instances.iter().map(|instance| &*instance.owner).collect::<Vec<_>>().join(", ");
    (!is_even).then(|| format!("{loads:?} of {} at {} (of {instances})", there.lanes.len(), names()))
}
