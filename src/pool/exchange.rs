//! Where the links are that no slot has in hand.
//!
//! r2d2 hands out the slot that came back last, so for as long as a slot keeps its link, one busy
//! thread sends all its work to one peer. Here slots swap links: a slot that comes back *parks* its
//! link, and a slot that is checked out *takes* the link of the peer that should serve.
//!
//! **The law: the number of links in the exchange equals the number of living slots without a link
//! in hand.** So whoever dereferences a slot without one finds one here, wherever r2d2 hands the
//! slot out. Every move keeps the law, each under the one lock, which is never held across a server
//! call or a destructor:
//!
//! | move      | links here | slots without one |                                                 |
//! |-----------|------------|-------------------|-------------------------------------------------|
//! | `add_slot`    | + 1        | + 1               | a new slot, its link reserved for it             |
//! | `take`    | - 1        | - 1               | a slot is dereferenced                           |
//! | `park`    | + 1        | + 1               | a slot comes back                                |
//! | `swap`    | + 1 - 1    | - 1 + 1           | a dead or surplus link against another           |
//! | `drop`    | - 1        | - 1               | a slot without one in hand ends, and a link with it |
//!
//! No link leaves by another door: none is lent out, none is kept in reserve.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;

use crate::panics::lock;
use crate::peers::placement::{Candidate, Standing};
use crate::policy::Strategy;
use crate::pool::strategy::Chooser;

/// How long the newest link of a thread stays reserved for its slot once it is known that the pool's
/// customizer leaves links alone. r2d2 runs the customizer right after `connect()` has returned, so
/// one that does touch its link does so far sooner; this is for one that touches some and not others.
const RESERVATION: Duration = Duration::from_millis(1);

/// What is exchanged.
pub(crate) trait Parkable {
    /// The index of its peer.
    fn peer(&self) -> usize;
    /// When it was made.
    fn created_at(&self) -> Instant;
    /// Counts it as checked out, or no more.
    fn set_in_use(&mut self, in_use: bool);
    /// Ends its session with the server at once, without waiting for anything. Says whether it could:
    /// not if its socket is not known.
    fn shut_down(&mut self) -> bool;
}

/// A new slot's claim to the link that was made for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reservation(u64);

/// The links that no slot has in hand.
#[derive(Debug)]
pub(crate) struct Exchange<L> {
    inner: Mutex<Inner<L>>,
    /// The age of what is known about the peers.
    epoch: AtomicU64,
}

#[derive(Debug)]
struct Inner<L> {
    queues: Vec<Queue<L>>,
    /// The shelves to choose from: those with a share of the work and at least one link.
    available: Vec<usize>,
    /// The newest link of each thread that makes links, reserved for its slot until the pool's
    /// customizer has had its turn with it, in that thread.
    reserved: Vec<ReservedLink<L>>,
    /// Links that must not be used again, until a slot carries them out.
    evicted: Vec<Evicted<L>>,
    /// Whether a slot was seen checked out untouched: the customizer leaves links alone.
    untouched: bool,
    reservations: u64,
    /// The other side of the law.
    empty_slots: usize,
    chooser: Chooser,
    rng: SmallRng,
}

#[derive(Debug)]
struct ReservedLink<L> {
    reservation: Reservation,
    maker: ThreadId,
    link: L,
}

#[derive(Debug)]
struct Evicted<L> {
    link: L,
    /// Whether it was found dead, or shut down; else it is its peer that is not usable, which may
    /// change before a slot has come by.
    is_dead: bool,
}

impl<L: Parkable> Evicted<L> {
    /// Of a peer that is not usable. Its session ends where it is, so that the peer is rid of it also
    /// when nobody uses the pool.
    fn of_unusable(mut link: L) -> Self {
        let is_dead = link.shut_down();
        Self { link, is_dead }
    }
}

/// The parked links of one peer, the one that has rested longest in front.
#[derive(Debug)]
struct Queue<L> {
    links: VecDeque<L>,
    standing: Standing,
    /// Where it is in `available`.
    available: Option<usize>,
}

impl<L: Parkable> Exchange<L> {
    /// An empty exchange, which knows no peers yet.
    pub(crate) fn new(strategy: Strategy, rng: SmallRng) -> Self {
        Self {
            inner: Mutex::new(Inner {
                queues: Vec::new(),
                available: Vec::new(),
                reserved: Vec::new(),
                evicted: Vec::new(),
                untouched: false,
                reservations: 0,
                empty_slots: 0,
                chooser: Chooser::new(strategy),
                rng,
            }),
            epoch: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<L>> {
        lock(&self.inner)
    }

    /// Learns how the peers stand, if `epoch` is newer than what is known. The parked links of a
    /// peer that is not usable become corpses where they are.
    pub(crate) fn learn(&self, epoch: u64, standings: impl FnOnce() -> Vec<Standing>) {
        // Most often there is nothing new, and no lock is taken.
        if epoch > self.epoch.load(Ordering::Acquire) {
            let mut inner = self.lock();
            inner.learn(standings());
            self.epoch.fetch_max(epoch, Ordering::Release);
        }
    }

    /// A new slot: its link, which this thread has made, waits here, reserved for it.
    pub(crate) fn add_slot(&self, link: L, maker: ThreadId) -> Reservation {
        self.lock().add_slot(link, maker)
    }

    /// A slot is dereferenced, by this thread: its own link, if it is reserved, else that of the peer
    /// that should serve; a corpse rather than none.
    pub(crate) fn take(&self, own: Option<Reservation>, by: ThreadId) -> L {
        self.lock().take(own, by)
    }

    /// A slot is checked out: it parks the link that it may have in hand, gives its reservation up,
    /// and takes the link of the peer that should serve. `None` when no live link is here.
    pub(crate) fn check_out(
        &self,
        in_hand: Option<L>,
        own: Option<Reservation>,
        now: impl FnOnce() -> Instant,
    ) -> Option<L> {
        let mut inner = self.lock();
        inner.let_go(in_hand, own);
        inner.end_reservations(now);
        inner.take_live(None)
    }

    /// The link in hand is dead: against a live one, of another peer if possible. Gives it back when
    /// there is none.
    pub(crate) fn swap_dead(&self, dead: L) -> Result<L, L> {
        let mut inner = self.lock();
        match inner.take_live(Some(dead.peer())) {
            Some(live) => {
                inner.evict(dead);
                Ok(live)
            }
            None => Err(dead),
        }
    }

    /// A slot comes back: it parks its link. If a corpse waits, or if `surplus` names a peer that
    /// has a link too many, the slot is given that to carry out. `surplus` is told which peers have
    /// a link here, and asked under the lock, so that what it names is there.
    pub(crate) fn check_in(
        &self,
        in_hand: Option<L>,
        own: Option<Reservation>,
        surplus: impl FnOnce(&dyn Fn(usize) -> bool) -> Option<usize>,
    ) -> Option<L> {
        let mut inner = self.lock();
        inner.let_go(in_hand, own);
        let carried = inner.evicted().or_else(|| {
            let is_parked = |peer: usize| {
                // It may be one that was added a moment ago.
                inner.queues.get(peer).is_some_and(|queue| !queue.links.is_empty())
            };
            surplus(&is_parked).and_then(|peer| inner.take_from(peer))
        });
        if carried.is_some() {
            inner.empty_slots -= 1;
        }
        inner.check_invariant();
        carried
    }

    /// A slot without a link in hand ends, and takes one along: its own if it never had it, else a
    /// corpse, else the one that was born first.
    pub(crate) fn drop_slot(&self, own: Option<Reservation>) -> Option<L> {
        self.lock().drop_slot(own)
    }

    /// How many links are here.
    #[cfg(test)]
    fn count(&self) -> usize {
        self.lock().links()
    }
}

impl<L: Parkable> Inner<L> {
    fn add_slot(&mut self, mut link: L, maker: ThreadId) -> Reservation {
        if !self.queues[link.peer()].standing.usable {
            // Since its login began. It is its slot's all the same, which finds it dead.
            link.shut_down();
        }
        // The customizer is done with the last one that this thread has made, and left it here.
        self.park_reserved(|reserved| reserved.maker == maker);
        self.reservations += 1;
        let reservation = Reservation(self.reservations);
        self.reserved.push(ReservedLink { reservation, maker, link });
        self.empty_slots += 1;
        self.check_invariant();
        reservation
    }

    fn take(&mut self, own: Option<Reservation>, by: ThreadId) -> L {
        let own = own.and_then(|own| self.reserved(own));
        // The thread that made it is the customizer's: the slot is not checked out yet.
        let is_customizer = own.as_ref().is_some_and(|own| own.maker == by);
        let link = own.map(|own| own.link).or_else(|| self.choose(None));
        // By the law there is one for each slot without; by `release` and `reserved`, one that is
        // not reserved for each slot without a reservation.
        let link = link.or_else(|| self.evicted());
        let mut link = link.expect("a slot without a link in hand has one in the exchange");
        link.set_in_use(!is_customizer);
        self.empty_slots -= 1;
        self.check_invariant();
        link
    }

    /// A slot has nothing in hand any more, and no claim to anything.
    fn let_go(&mut self, in_hand: Option<L>, own: Option<Reservation>) {
        if let Some(link) = in_hand {
            self.park(link);
        }
        if let Some(own) = own {
            self.release(own);
        }
    }

    fn park(&mut self, mut link: L) {
        link.set_in_use(false);
        self.empty_slots += 1;
        self.enqueue(link);
        self.check_invariant();
    }

    fn take_live(&mut self, avoid: Option<usize>) -> Option<L> {
        let mut link = self.choose(avoid)?;
        link.set_in_use(true);
        self.empty_slots -= 1;
        self.check_invariant();
        Some(link)
    }

    fn evict(&mut self, mut dead: L) {
        dead.set_in_use(false);
        self.empty_slots += 1;
        dead.shut_down();
        self.evicted.push(Evicted { link: dead, is_dead: true });
        self.check_invariant();
    }

    fn drop_slot(&mut self, own: Option<Reservation>) -> Option<L> {
        let own = own.and_then(|own| self.reserved(own)).map(|own| own.link);
        let link = own.or_else(|| self.evicted()).or_else(|| self.oldest());
        self.empty_slots -= usize::from(link.is_some());
        self.check_invariant();
        link
    }

    /// Of the links on the shelves the one that was born first.
    fn oldest(&mut self) -> Option<L> {
        let parked = |(peer, queue): (usize, &Queue<L>)| {
            let births = queue.links.iter().enumerate().map(|(at, link)| (link.created_at(), at));
            births.min().map(|(created_at, at)| (created_at, peer, at))
        };
        let (_, peer, at) = self.queues.iter().enumerate().filter_map(parked).min()?;
        let link = self.queues[peer].links.remove(at);
        self.update_available(peer);
        link
    }

    /// A link of the peer that the strategy chooses: among those that do not hesitate, if there are
    /// any; of one without a share of the work only if there is no other. All these may be used.
    fn choose(&mut self, avoid: Option<usize>) -> Option<L> {
        let Self { queues, available, chooser, rng, .. } = self;
        let others = available.iter().filter(|peer| Some(**peer) != avoid);
        let swift =
            others.clone().filter(|peer| !queues[**peer].standing.activity.is_unresponsive());
        let candidate = |peer: &usize| {
            let Standing { activity, share, .. } = &queues[*peer].standing;
            Candidate { index: *peer, load: activity.in_use(), weight: *share }
        };
        match chooser
            .choose(swift.map(candidate), rng)
            .or_else(|| chooser.choose(others.map(candidate), rng))
            .or_else(|| avoid.filter(|peer| available.contains(peer)))
        {
            Some(peer) => self.take_from(peer),
            None => self.any_usable(),
        }
    }

    fn any_usable(&mut self) -> Option<L> {
        let queues = self.queues.iter().enumerate();
        let usable = queues.filter(|(_, queue)| queue.standing.usable && !queue.links.is_empty());
        let (peer, _) = usable.min_by_key(|(_, queue)| queue.standing.tier)?;
        self.take_from(peer)
    }

    fn take_from(&mut self, peer: usize) -> Option<L> {
        let link = self.queues[peer].links.pop_front();
        self.update_available(peer);
        link
    }

    fn enqueue(&mut self, link: L) {
        let peer = link.peer();
        if self.queues[peer].standing.usable {
            self.queues[peer].links.push_back(link);
            self.update_available(peer);
        } else {
            self.evicted.push(Evicted::of_unusable(link));
        }
    }

    fn evicted(&mut self) -> Option<L> {
        self.evicted.pop().map(|evicted| evicted.link)
    }

    /// Puts a shelf on the list of those to choose from, or strikes it off.
    fn update_available(&mut self, peer: usize) {
        let queue = &mut self.queues[peer];
        let is_available = queue.standing.share > 0 && !queue.links.is_empty();
        match (queue.available, is_available) {
            (None, true) => {
                queue.available = Some(self.available.len());
                self.available.push(peer);
            }
            (Some(at), false) => {
                queue.available = None;
                self.available.swap_remove(at);
                if let Some(moved) = self.available.get(at) {
                    self.queues[*moved].available = Some(at);
                }
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    fn learn(&mut self, standings: Vec<Standing>) {
        self.chooser.learn(standings.len());
        for (peer, standing) in standings.into_iter().enumerate() {
            if let Some(queue) = self.queues.get_mut(peer) {
                queue.standing = standing;
            } else {
                self.queues.push(Queue { links: VecDeque::new(), standing, available: None });
            }
            if !self.queues[peer].standing.usable {
                let unusable = std::mem::take(&mut self.queues[peer].links);
                self.evicted.extend(unusable.into_iter().map(Evicted::of_unusable));
            }
            self.update_available(peer);
        }
        // New links stay reserved, for slots that may find them dead, but their sessions end as well.
        for reserved in &mut self.reserved {
            if !self.queues[reserved.link.peer()].standing.usable {
                reserved.link.shut_down();
            }
        }
        // A peer that is usable again, or must be for want of others, has those links back that
        // could not be shut down.
        for evicted in std::mem::take(&mut self.evicted) {
            if evicted.is_dead {
                self.evicted.push(evicted);
            } else {
                self.enqueue(evicted.link);
            }
        }
        self.check_invariant();
    }

    /// The link that is reserved for this slot.
    fn reserved(&mut self, own: Reservation) -> Option<ReservedLink<L>> {
        let at = self.reserved.iter().position(|reserved| reserved.reservation == own)?;
        Some(self.reserved.swap_remove(at))
    }

    /// A slot is seen that never touched its link: it has no claim to it any more, and the pool's
    /// customizer leaves links alone.
    fn release(&mut self, own: Reservation) {
        self.untouched = true;
        self.park_reserved(|reserved| reserved.reservation == own);
    }

    /// New links whose slots' customizer must have run, and leaves links alone, are anybody's.
    fn end_reservations(&mut self, now: impl FnOnce() -> Instant) {
        if self.untouched && !self.reserved.is_empty() {
            let now = now();
            self.park_reserved(|reserved| {
                now.saturating_duration_since(reserved.link.created_at()) >= RESERVATION
            });
        }
    }

    fn park_reserved(&mut self, is_free: impl Fn(&ReservedLink<L>) -> bool) {
        while let Some(at) = self.reserved.iter().position(&is_free) {
            let reserved = self.reserved.swap_remove(at);
            self.enqueue(reserved.link);
        }
    }

    fn links(&self) -> usize {
        let parked: usize = self.queues.iter().map(|queue| queue.links.len()).sum();
        parked + self.reserved.len() + self.evicted.len()
    }

    fn check_invariant(&self) {
        debug_assert_eq!(self.links(), self.empty_slots, "links here = slots without one in hand");
    }
}

#[cfg(test)]
mod tests;
