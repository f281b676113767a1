//! Holds the links that no slot is using at the moment.
//!
//! r2d2 hands out the slot that was returned last. If each slot kept its link, one busy thread would
//! send all its work to one peer. Here slots exchange links: a slot that is returned *parks* its
//! link, and a slot that is checked out *takes* a link of the peer that the strategy chooses.
//!
//! A slot that holds no link is an *empty* slot.
//!
//! **The invariant: the number of links in the exchange equals the number of existing empty slots.**
//! So an empty slot that is dereferenced always finds a link here, wherever r2d2 hands the slot out.
//! Every method keeps the invariant. Each method takes the one lock once, and never holds the lock
//! across a server call or a destructor:
//!
//! | method      | links here     | empty slots    |                                                  |
//! |-------------|----------------|----------------|--------------------------------------------------|
//! | `add_slot`  | + 1            | + 1            | a new slot, with its link reserved for it        |
//! | `take`      | - 1            | - 1            | an empty slot is dereferenced                    |
//! | `check_out` | (+ 1) - 1      | (+ 1) - 1      | the slot parks its link, if any, and takes one   |
//! | `swap_dead` | - 1 + 1        | - 1 + 1        | a dead link is exchanged for a live one          |
//! | `check_in`  | (+ 1) (- 1)    | (+ 1) (- 1)    | the slot parks its link; it may get one to close |
//! | `drop_slot` | - 1            | - 1            | an empty slot is dropped, and a link with it     |
//! | `offer`     | - 1 + 1        |                | a new link takes the place of one to be replaced |
//! | `shut_down_marked` |         |                | the sessions of marked links are ended           |
//! | `borrow`    |                |                | a parked link is used to ask its server          |
//! | `give_back` |                |                | that link is parked again, or evicted            |
//!
//! A borrowed link still counts as a link here. A slot that finds no other link waits until it is given back,
//! or until another link is here. That is soon: a question takes no longer than a ping.
//!
//! Links leave the exchange in no other way. A link is *marked for replacement* if it is evicted, too old, or one
//! too many for its peer. It is *to be replaced* if it is marked, or if its peer is down or out of service: it is
//! closed when a new link is there (`replacement.rs`). A *spare* is not counted: it is a new link that waits until
//! a slot returns with a link that is to be replaced.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;

use crate::events::CloseReason;
use crate::panics::lock;
use crate::peers::placement::{Candidate, PeerView};
use crate::pool::customizer::Customizer;
use crate::pool::strategy::Chooser;
use crate::settings::policy::Strategy;

/// The time for which the newest link of a thread stays reserved for its slot, once a slot has shown
/// that the pool's customizer does not use its connection. r2d2 runs the customizer right after
/// `connect()` has returned, so a customizer that does use the connection does so far sooner. This
/// time is for a customizer that uses some connections and not others.
const RESERVATION_TIME: Duration = Duration::from_millis(1);

/// A link, as the exchange sees it.
pub(crate) trait Parkable {
    /// The index of the peer that the link leads to.
    fn peer(&self) -> usize;
    /// The time at which the link was created.
    fn created_at(&self) -> Instant;
    /// Whether the link is used before others of its peer that became idle later, so that it does not rest until
    /// it has to be pinged.
    fn is_due(&self, now: Instant) -> bool;
    /// Counts the link as in use, or as idle.
    fn set_in_use(&mut self, in_use: bool);
    /// Whether the link is to be replaced, whatever the state of its peer.
    fn is_marked_for_replacement(&self) -> bool;
    /// Marks the link for replacement. The first reason is kept.
    fn mark_for_replacement(&mut self, reason: CloseReason);
    /// Takes the mark back.
    fn cancel_replacement(&mut self);
    /// Ends the session with the server at once, without waiting for anything. Returns whether that
    /// was possible: it is not if the link's socket is unknown.
    fn shut_down(&mut self) -> bool;
}

/// A new slot's claim to the link that was created for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reservation(u64);

/// What a slot has to close when it is checked in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ToClose<L> {
    Nothing,
    /// A link that a new one has replaced. The slot stays.
    Replaced(L),
    /// A link together with the slot, in place of which r2d2 opens another.
    WithSlot(L),
}

/// The links that no slot is using at the moment.
#[derive(Debug)]
pub(crate) struct Exchange<L> {
    inner: Mutex<Inner<L>>,
    /// Notified when a borrowed link is given back, and when links may have come back to the queues meanwhile.
    given_back: Condvar,
    /// The epoch of the stored views of the peers.
    epoch: AtomicU64,
}

#[derive(Debug)]
struct Inner<L> {
    queues: Vec<Queue<L>>,
    /// The candidates of a choice: the peers with a share of the work and at least one parked link.
    candidates: Vec<usize>,
    /// Whether some peer has few connections in use because its queries fail fast.
    load_misleads: bool,
    /// The number of slow peers, which get single checkouts.
    slow_peers: usize,
    /// The newest link of each thread that creates links. It stays reserved for its slot until the
    /// pool's customizer, which runs in the same thread, has had the chance to use it.
    reserved: Vec<ReservedLink<L>>,
    /// Links that must not be used again. Each stays here until a new link takes its place, or until it is
    /// closed together with a slot.
    evicted: Vec<Evicted<L>>,
    /// The number of parked links that are borrowed at the moment.
    borrowed: usize,
    /// New links that wait for a slot whose link is to be replaced.
    spares: Vec<L>,
    /// How many of the links to be replaced are to be closed with their slots, because a peer accepts logins.
    pending_closings: usize,
    customizer: Customizer,
    /// The number of reservations made so far.
    reservations: u64,
    /// The number of existing slots without a link: the other side of the invariant.
    empty_slots: usize,
    chooser: Chooser,
    rng: SmallRng,
}

#[derive(Debug)]
struct ReservedLink<L> {
    reservation: Reservation,
    creator: ThreadId,
    link: L,
}

#[derive(Debug)]
struct Evicted<L> {
    link: L,
    /// Whether the link was found dead, or was shut down. Otherwise only its peer is not usable,
    /// which may change before a slot takes the link away.
    is_dead: bool,
}

impl<L: Parkable> Evicted<L> {
    /// Evicts a link of a peer that is not usable. The session is ended at once, so that it does not
    /// stay open on the peer while no caller uses the pool.
    fn from_unusable_peer(mut link: L) -> Self {
        link.mark_for_replacement(CloseReason::Broken);
        let is_dead = link.shut_down();
        Self { link, is_dead }
    }
}

/// The parked links of one peer, the longest idle link first. The last one is used first.
#[derive(Debug)]
struct Queue<L> {
    links: VecDeque<L>,
    view: PeerView,
    /// The peer's position in `Inner::candidates`, if it is there.
    candidate_position: Option<usize>,
}

impl<L: Parkable> Exchange<L> {
    /// Creates an empty exchange, without any peers yet.
    pub(crate) fn new(strategy: Strategy, customizer: Customizer, rng: SmallRng) -> Self {
        Self {
            inner: Mutex::new(Inner {
                queues: Vec::new(),
                candidates: Vec::new(),
                load_misleads: false,
                slow_peers: 0,
                reserved: Vec::new(),
                evicted: Vec::new(),
                borrowed: 0,
                spares: Vec::new(),
                pending_closings: 0,
                customizer,
                reservations: 0,
                empty_slots: 0,
                chooser: Chooser::new(strategy),
                rng,
            }),
            given_back: Condvar::new(),
            epoch: AtomicU64::new(0),
        }
    }

    /// Wakes the slots that wait for a borrowed link: another link may be here.
    fn wake_waiting(&self, inner: &Inner<L>) {
        if inner.borrowed > 0 {
            self.given_back.notify_all();
        }
    }

    /// Tries again whenever a borrowed link is given back or another link may be here, while any is borrowed.
    fn retry_while_borrowed<T>(
        &self,
        mut inner: MutexGuard<'_, Inner<L>>,
        mut attempt: impl FnMut(&mut Inner<L>) -> Option<T>,
    ) -> Option<T> {
        loop {
            let outcome = attempt(&mut inner);
            if outcome.is_some() || inner.borrowed == 0 {
                return outcome;
            }
            inner = self.given_back.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<L>> {
        lock(&self.inner)
    }

    /// Stores the views of the peers, if `epoch` is newer than the stored epoch. The parked links of a
    /// peer that is not usable are evicted.
    pub(crate) fn update_peers(&self, epoch: u64, views: impl FnOnce() -> Vec<PeerView>) {
        // Usually nothing is new, and no lock is taken.
        if epoch > self.epoch.load(Ordering::Acquire) {
            let mut inner = self.lock();
            inner.update_peers(views());
            self.wake_waiting(&inner);
            self.epoch.fetch_max(epoch, Ordering::Release);
        }
    }

    /// Adds a new slot. Its link, which the thread `creator` has created, is parked here and reserved
    /// for the slot.
    pub(crate) fn add_slot(&self, link: L, creator: ThreadId) -> Reservation {
        let mut inner = self.lock();
        let reservation = inner.add_slot(link, creator);
        self.wake_waiting(&inner);
        reservation
    }

    /// Takes a link for an empty slot that the thread `caller` dereferences. That is the link reserved
    /// for the slot, if there is one, or a link of the peer that the strategy chooses, or an evicted
    /// link if no other is left.
    pub(crate) fn take(&self, reservation: Option<Reservation>, caller: ThreadId) -> L {
        let link = self.retry_while_borrowed(self.lock(), |inner| inner.take(reservation, caller));
        link.expect("the exchange has a link for each empty slot")
    }

    /// Checks out a slot: parks the link that the slot may hold, ends its reservation, and takes a
    /// link of the peer that the strategy chooses. Returns `None` if no live link is here.
    pub(crate) fn check_out(
        &self,
        held: Option<L>,
        reservation: Option<Reservation>,
        now: Instant,
    ) -> Option<L> {
        let mut inner = self.lock();
        inner.park_and_release(held, reservation);
        inner.expire_reservations(now);
        self.wake_waiting(&inner);
        self.retry_while_borrowed(inner, |inner| inner.take_live(None, now))
    }

    /// Evicts a dead link and returns a live one for it, of another peer if possible. Returns the dead
    /// link as the error if no live link is here.
    pub(crate) fn swap_dead(&self, dead: L, now: Instant) -> Result<L, L> {
        let mut inner = self.lock();
        match inner.take_live(Some(dead.peer()), now) {
            Some(live) => {
                inner.empty_slots += 1;
                inner.evict(dead);
                inner.check_invariant();
                self.wake_waiting(&inner);
                Ok(live)
            }
            None => Err(dead),
        }
    }

    /// Checks in a slot: parks its link, and returns what to close. `claim_rebalance` names a peer that has one
    /// link too many, if there is one. It receives a function that returns whether a peer has a parked link, and
    /// is called under the lock, so the peer that it names still has that link.
    pub(crate) fn check_in(
        &self,
        held: Option<L>,
        reservation: Option<Reservation>,
        claim_rebalance: impl FnOnce(&dyn Fn(usize) -> bool) -> Option<usize>,
    ) -> ToClose<L> {
        let mut inner = self.lock();
        let to_close = inner.check_in(held, reservation, claim_rebalance);
        self.wake_waiting(&inner);
        to_close
    }

    /// Offers a new link in place of one that is to be replaced. Returns the link to close: that one, or the new
    /// one if the pool's customizer would have to see it, or none if the new one becomes a spare.
    pub(crate) fn offer(&self, new: L) -> Option<L> {
        let mut inner = self.lock();
        let to_close = inner.offer(new);
        self.wake_waiting(&inner);
        to_close
    }

    /// Marks up to `count` more parked links of this peer for replacement, the longest idle first.
    pub(crate) fn mark_for_replacement(&self, peer: usize, count: usize, reason: CloseReason) {
        let inner = &mut *self.lock();
        let links = inner.queues.get_mut(peer).map(|queue| queue.links.iter_mut());
        let staying = links.into_iter().flatten().filter(|link| !link.is_marked_for_replacement());
        staying.take(count).for_each(|link| link.mark_for_replacement(reason));
    }

    /// Ends the sessions of up to `count` parked links of this peer that are marked for replacement, and evicts these
    /// links. Returns their number.
    pub(crate) fn shut_down_marked(&self, peer: usize, count: usize) -> usize {
        let inner = &mut *self.lock();
        let Some(queue) = inner.queues.get_mut(peer) else { return 0 };
        let mut ended = 0;
        for mut link in mem::take(&mut queue.links) {
            if ended < count && link.is_marked_for_replacement() && link.shut_down() {
                inner.evicted.push(Evicted { link, is_dead: true });
                ended += 1;
            } else {
                queue.links.push_back(link);
            }
        }
        inner.update_candidate(peer);
        inner.check_invariant();
        ended
    }

    /// Has one link that is to be replaced closed with its slot, in a pool whose customizer has to see each new
    /// link. Returns whether it is such a pool.
    pub(crate) fn close_one_with_slot(&self) -> bool {
        let inner = &mut *self.lock();
        let must_see_new_links = inner.customizer.must_see_new_links();
        if must_see_new_links {
            inner.pending_closings = inner.pending_closings.max(1);
        }
        must_see_new_links
    }

    /// Takes note that a slot is closed with its link, if one more such link is to be closed. This is for a
    /// slot that keeps its link outside the exchange.
    pub(crate) fn take_pending_closing(&self) -> bool {
        let inner = &mut *self.lock();
        let is_pending = inner.pending_closings > 0;
        inner.pending_closings -= usize::from(is_pending);
        is_pending
    }

    /// Returns how many of the links to be replaced are provided for: they are replaced, or closed with their slots,
    /// when slots are checked in.
    pub(crate) fn pending_replacements(&self) -> usize {
        let inner = self.lock();
        let must_see_new_links = inner.customizer.must_see_new_links();
        let evicted = if must_see_new_links { inner.evicted.len() } else { 0 };
        inner.spares.len() + inner.pending_closings + evicted
    }

    /// Offers the spares again, after the states of the peers have changed. Returns the links to close.
    pub(crate) fn offer_spares(&self) -> Vec<L> {
        let inner = &mut *self.lock();
        let spares = mem::take(&mut inner.spares).into_iter();
        let to_close = spares.filter_map(|spare| inner.offer(spare)).collect();
        self.wake_waiting(inner);
        to_close
    }

    /// Takes the spares, because no link has to be replaced any more. The caller closes them.
    pub(crate) fn end_replacements(&self) -> Vec<L> {
        let mut inner = self.lock();
        inner.pending_closings = 0;
        mem::take(&mut inner.spares)
    }

    /// Removes an empty slot, and returns the link to close with it: the link reserved for the slot if the
    /// slot never took it, or else an evicted link, or else one that is to be replaced, or else the oldest link.
    pub(crate) fn drop_slot(&self, reservation: Option<Reservation>) -> Option<L> {
        self.retry_while_borrowed(self.lock(), |inner| inner.drop_slot(reservation))
    }

    /// Borrows a parked link of this peer that is `suitable`, to ask its server a question. Until the link
    /// is given back, it is not lent.
    pub(crate) fn borrow(&self, peer: usize, suitable: impl Fn(&L) -> bool) -> Option<L> {
        let inner = &mut *self.lock();
        let links = &mut inner.queues.get_mut(peer)?.links;
        let at = links.iter().position(suitable)?;
        let link = links.remove(at);
        inner.update_candidate(peer);
        inner.borrowed += 1;
        inner.check_invariant();
        link
    }

    /// Gives a borrowed link back. If it `is_dead`, it is evicted.
    pub(crate) fn give_back(&self, link: L, is_dead: bool) {
        let inner = &mut *self.lock();
        inner.borrowed -= 1;
        if is_dead {
            inner.evict(link);
        } else {
            inner.enqueue(link);
        }
        inner.check_invariant();
        self.given_back.notify_all();
    }

    /// Returns the number of links in the exchange.
    #[cfg(test)]
    fn count(&self) -> usize {
        self.lock().link_count()
    }
}

impl<L: Parkable> Inner<L> {
    fn add_slot(&mut self, mut link: L, creator: ThreadId) -> Reservation {
        if !self.queues[link.peer()].view.is_usable {
            // The peer became unusable after the login had begun. The link stays reserved for its slot
            // all the same, and the slot finds it dead.
            link.shut_down();
        }
        // The customizer has finished with the previous link of this thread, and has not taken it.
        self.park_reserved(|reserved| reserved.creator == creator);
        self.reservations += 1;
        let reservation = Reservation(self.reservations);
        self.reserved.push(ReservedLink { reservation, creator, link });
        self.empty_slots += 1;
        self.check_invariant();
        reservation
    }

    fn take(&mut self, reservation: Option<Reservation>, caller: ThreadId) -> Option<L> {
        let reserved = reservation.and_then(|reservation| self.take_reserved(reservation));
        // In the thread that created the link only the customizer uses it: the slot is not checked out
        // yet.
        let is_customizer = reserved.as_ref().is_some_and(|reserved| reserved.creator == caller);
        let link = reserved.map(|reserved| reserved.link).or_else(|| self.take_chosen(None, None));
        // By the invariant there is a link for each empty slot, unless it is borrowed. As `release` and
        // `take_reserved` end reservations, there is an unreserved link for each empty slot without a
        // reservation.
        let mut link = link.or_else(|| self.take_evicted())?;
        link.set_in_use(!is_customizer);
        if is_customizer {
            self.customizer.record_used_connection();
        }
        self.empty_slots -= 1;
        self.check_invariant();
        Some(link)
    }

    fn check_in(
        &mut self,
        held: Option<L>,
        reservation: Option<Reservation>,
        claim_rebalance: impl FnOnce(&dyn Fn(usize) -> bool) -> Option<usize>,
    ) -> ToClose<L> {
        let returned = held.as_ref().map(L::peer);
        self.park_and_release(held, reservation);
        let is_parked = |peer: usize| {
            // The peer may have been added a moment ago and have no queue yet.
            self.queues.get(peer).is_some_and(|queue| !queue.links.is_empty())
        };
        let rebalance_from = claim_rebalance(&is_parked);
        if let Some(link) = rebalance_from.and_then(|peer| self.queues[peer].links.front_mut()) {
            link.mark_for_replacement(CloseReason::Rebalanced);
        }
        let to_close = if let Some(spare) = self.spares.pop() {
            match self.replace(spare, returned) {
                Ok(old) => ToClose::Replaced(old),
                Err(spare) => {
                    self.spares.push(spare);
                    ToClose::Nothing
                }
            }
        } else if self.customizer.must_see_new_links() {
            let link = self.take_evicted().or_else(|| self.take_pending(returned));
            self.empty_slots -= usize::from(link.is_some());
            link.map_or(ToClose::Nothing, ToClose::WithSlot)
        } else {
            ToClose::Nothing
        };
        self.check_invariant();
        to_close
    }

    fn offer(&mut self, new: L) -> Option<L> {
        if self.is_to_be_replaced(&new) || !self.queues[new.peer()].view.is_usable {
            return Some(new);
        }
        let to_close = if self.customizer.must_see_new_links() {
            self.pending_closings += 1;
            if let Some(link) = self.take_pending(None) {
                self.evict(link);
            }
            Some(new)
        } else {
            match self.replace(new, None) {
                Ok(old) => Some(old),
                Err(new) => {
                    self.spares.push(new);
                    None
                }
            }
        };
        self.check_invariant();
        to_close
    }

    /// Puts a new link in the place of one that is to be replaced, which is returned. Returns the new one as the
    /// error if no such link is here. A slot has just brought back a link of the peer `returned`.
    fn replace(&mut self, new: L, returned: Option<usize>) -> Result<L, L> {
        // A customizer that has used a reserved link would have taken it.
        let reserved =
            self.reserved.iter().position(|reserved| self.is_to_be_replaced(&reserved.link));
        if let Some(at) = reserved {
            return Ok(mem::replace(&mut self.reserved[at].link, new));
        }
        match self.take_evicted().or_else(|| self.take_link_to_replace(returned)) {
            Some(old) => {
                self.enqueue(new);
                Ok(old)
            }
            None => Err(new),
        }
    }

    /// Takes a parked link that is to be replaced, if one is to be closed with its slot.
    fn take_pending(&mut self, returned: Option<usize>) -> Option<L> {
        let link =
            if self.pending_closings > 0 { self.take_link_to_replace(returned) } else { None };
        self.pending_closings -= usize::from(link.is_some());
        link
    }

    /// Takes a parked link that is to be replaced. As long as others of its peer are in use, the last one that rests
    /// stays: it is asked whether the peer answers before a query of the others is aborted. A link that a slot has
    /// just brought back does not rest: where all slots are busy, it would be lent again.
    fn take_link_to_replace(&mut self, returned: Option<usize>) -> Option<L> {
        let at = |(peer, queue): (usize, &Queue<L>)| {
            let Queue { links, view: PeerView { activity, .. }, .. } = queue;
            let stays = links.len() == 1
                && activity.in_use() > 0
                && activity.is_down()
                && !activity.is_out_of_service()
                && returned != Some(peer);
            let is_to_be_taken = |link: &L| {
                self.is_to_be_replaced(link) && (link.is_marked_for_replacement() || !stays)
            };
            Some((peer, links.iter().position(is_to_be_taken)?))
        };
        let (peer, at) = self.queues.iter().enumerate().find_map(at)?;
        let link = self.queues[peer].links.remove(at);
        self.update_candidate(peer);
        link
    }

    /// Whether the link is to be replaced, because it is marked, or because of the state of its peer.
    fn is_to_be_replaced(&self, link: &L) -> bool {
        link.is_marked_for_replacement()
            || self.queues[link.peer()].view.activity.must_replace_links()
    }

    /// Parks the link of a slot and ends its reservation, if it has them.
    fn park_and_release(&mut self, held: Option<L>, reservation: Option<Reservation>) {
        if let Some(link) = held {
            self.park(link);
        }
        if let Some(reservation) = reservation {
            self.release(reservation);
        }
    }

    fn park(&mut self, mut link: L) {
        link.set_in_use(false);
        self.empty_slots += 1;
        self.enqueue(link);
        self.check_invariant();
    }

    fn take_live(&mut self, avoid: Option<usize>, now: Instant) -> Option<L> {
        let mut link = self.take_chosen(avoid, Some(now))?;
        link.set_in_use(true);
        self.empty_slots -= 1;
        self.check_invariant();
        Some(link)
    }

    fn evict(&mut self, mut dead: L) {
        dead.set_in_use(false);
        dead.mark_for_replacement(CloseReason::Broken);
        dead.shut_down();
        self.evicted.push(Evicted { link: dead, is_dead: true });
    }

    fn drop_slot(&mut self, reservation: Option<Reservation>) -> Option<L> {
        let reserved = reservation.and_then(|reservation| self.take_reserved(reservation));
        let link = reserved.map(|reserved| reserved.link);
        let link = link.or_else(|| self.take_evicted()).or_else(|| self.take_link_to_replace(None));
        let link = link.or_else(|| self.take_oldest());
        self.empty_slots -= usize::from(link.is_some());
        self.check_invariant();
        link
    }

    /// Takes the parked link that was created first.
    fn take_oldest(&mut self) -> Option<L> {
        let oldest_of_queue = |(peer, queue): (usize, &Queue<L>)| {
            let links = queue.links.iter().enumerate();
            let creation_times = links.map(|(at, link)| (link.created_at(), at));
            creation_times.min().map(|(created_at, at)| (created_at, peer, at))
        };
        let (_, peer, at) = self.queues.iter().enumerate().filter_map(oldest_of_queue).min()?;
        let link = self.queues[peer].links.remove(at);
        self.update_candidate(peer);
        link
    }

    /// Takes a link of the peer that the strategy chooses, always of a usable peer. A slow peer whose trial is due
    /// comes first, then responsive peers, then slow ones, then unresponsive ones, then the peer to `avoid`,
    /// and last the peers without a share of the work. `now` is the time of a checkout that validates the link.
    fn take_chosen(&mut self, avoid: Option<usize>, now: Option<Instant>) -> Option<L> {
        let Self { queues, candidates, load_misleads, slow_peers, chooser, rng, .. } = self;
        let others = candidates.iter().filter(|peer| Some(**peer) != avoid);
        let activity = |peer: usize| &queues[peer].view.activity;
        let preferred = others.clone().filter(|peer| activity(**peer).is_preferred());
        let responsive = others.clone().filter(|peer| !activity(**peer).is_unresponsive());
        let candidate = |peer: &usize| {
            let PeerView { activity, share, .. } = &queues[*peer].view;
            Candidate { index: *peer, load: activity.in_use(), weight: *share }
        };
        let trial = || others.clone().copied().find(|peer| activity(*peer).take_trial());
        match (*slow_peers > 0)
            .then(trial)
            .flatten()
            .or_else(|| chooser.choose(preferred.map(candidate), *load_misleads, rng))
            .or_else(|| chooser.choose(responsive.map(candidate), *load_misleads, rng))
            .or_else(|| chooser.choose(others.map(candidate), *load_misleads, rng))
            .or_else(|| avoid.filter(|peer| candidates.contains(peer)))
        {
            Some(peer) => self.take_from(peer, now),
            None => self.take_usable(now),
        }
    }

    /// Takes a link of any usable peer. Peers in service come first, then those that are up, then the lowest
    /// tier.
    fn take_usable(&mut self, now: Option<Instant>) -> Option<L> {
        let queues = self.queues.iter().enumerate();
        let usable = queues.filter(|(_, queue)| queue.view.is_usable && !queue.links.is_empty());
        let (peer, _) = usable.min_by_key(|(_, Queue { view, .. })| {
            (view.activity.is_out_of_service(), view.activity.is_down(), view.tier)
        })?;
        self.take_from(peer, now)
    }

    /// Takes the link of the peer that became idle last, whose server thread is still warm, unless another one
    /// is due. A link that nothing validates is the one that has been idle for the longest, so that none rests
    /// until its server ends it.
    fn take_from(&mut self, peer: usize, now: Option<Instant>) -> Option<L> {
        let links = &mut self.queues[peer].links;
        let is_warm_best =
            now.is_some_and(|now| !links.front().is_some_and(|link| link.is_due(now)));
        let link = if is_warm_best { links.pop_back() } else { links.pop_front() };
        self.update_candidate(peer);
        link
    }

    /// Adds the link to the queue of its peer, or evicts it if the peer is not usable.
    fn enqueue(&mut self, link: L) {
        let peer = link.peer();
        if self.queues[peer].view.is_usable {
            self.queues[peer].links.push_back(link);
            self.update_candidate(peer);
        } else {
            self.evicted.push(Evicted::from_unusable_peer(link));
        }
    }

    fn take_evicted(&mut self) -> Option<L> {
        self.evicted.pop().map(|evicted| evicted.link)
    }

    /// Adds a peer to the candidates, or removes it from them.
    fn update_candidate(&mut self, peer: usize) {
        let queue = &mut self.queues[peer];
        let is_candidate = queue.view.share > 0 && !queue.links.is_empty();
        match (queue.candidate_position, is_candidate) {
            (None, true) => {
                queue.candidate_position = Some(self.candidates.len());
                self.candidates.push(peer);
            }
            (Some(at), false) => {
                queue.candidate_position = None;
                self.candidates.swap_remove(at);
                if let Some(moved) = self.candidates.get(at) {
                    self.queues[*moved].candidate_position = Some(at);
                }
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    fn update_peers(&mut self, views: Vec<PeerView>) {
        self.chooser.set_peer_count(views.len());
        for (peer, view) in views.into_iter().enumerate() {
            if let Some(queue) = self.queues.get_mut(peer) {
                queue.view = view;
            } else {
                self.queues.push(Queue { links: VecDeque::new(), view, candidate_position: None });
            }
            if !self.queues[peer].view.is_usable {
                let unusable = mem::take(&mut self.queues[peer].links);
                self.evicted.extend(unusable.into_iter().map(Evicted::from_unusable_peer));
            }
            self.update_candidate(peer);
        }
        let activities = self.queues.iter().map(|queue| &queue.view.activity);
        self.load_misleads = activities.clone().any(|activity| activity.is_short_of_resources());
        self.slow_peers = activities.filter(|activity| activity.is_slow()).count();
        // New links stay reserved for their slots, which may find them dead, but their sessions end as
        // well.
        for reserved in &mut self.reserved {
            if !self.queues[reserved.link.peer()].view.is_usable {
                reserved.link.shut_down();
            }
        }
        // When a peer becomes usable again, or no other peer is left, links that could not be shut down
        // go back to its queue.
        for evicted in mem::take(&mut self.evicted) {
            if evicted.is_dead {
                self.evicted.push(evicted);
            } else {
                let mut link = evicted.link;
                link.cancel_replacement();
                self.enqueue(link);
            }
        }
        self.check_invariant();
    }

    /// Takes the link that is reserved for a slot, and so ends the reservation.
    fn take_reserved(&mut self, reservation: Reservation) -> Option<ReservedLink<L>> {
        let at = self.reserved.iter().position(|reserved| reserved.reservation == reservation)?;
        Some(self.reserved.swap_remove(at))
    }

    /// Ends the reservation of a slot that has not taken its link. Such a slot shows that the pool's
    /// customizer does not use its connection.
    fn release(&mut self, reservation: Reservation) {
        self.customizer.record_ignored_connection();
        self.park_reserved(|reserved| reserved.reservation == reservation);
    }

    /// Makes reserved links available to all slots, if the customizer may ignore its connections and must
    /// have run for these links already.
    fn expire_reservations(&mut self, now: Instant) {
        if self.customizer.may_ignore_connections() && !self.reserved.is_empty() {
            self.park_reserved(|reserved| {
                now.saturating_duration_since(reserved.link.created_at()) >= RESERVATION_TIME
            });
        }
    }

    fn park_reserved(&mut self, is_over: impl Fn(&ReservedLink<L>) -> bool) {
        while let Some(at) = self.reserved.iter().position(&is_over) {
            let reserved = self.reserved.swap_remove(at);
            self.enqueue(reserved.link);
        }
    }

    fn link_count(&self) -> usize {
        let parked: usize = self.queues.iter().map(|queue| queue.links.len()).sum();
        parked + self.reserved.len() + self.evicted.len() + self.borrowed
    }

    fn check_invariant(&self) {
        debug_assert_eq!(
            self.link_count(),
            self.empty_slots,
            "the exchange holds as many links as there are empty slots"
        );
    }
}

#[cfg(test)]
mod tests;
