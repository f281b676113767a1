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
//! | `born`    | + 1        | + 1               | a new slot, its link reserved for it             |
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

use crate::caught::lock;
use crate::peers::share::{Candidate, Standing};
use crate::policy::Strategy;
use crate::pool::strategy::Chooser;

/// How long the newest link of a thread stays reserved for its slot once it is known that the pool's
/// customizer leaves links alone. r2d2 runs the customizer right after `connect()` has returned, so
/// one that does touch its link does so far sooner; this is for one that touches some and not others.
const RESERVATION: Duration = Duration::from_millis(1);

/// What is exchanged.
pub(crate) trait Shelved {
    /// The index of its peer.
    fn peer(&self) -> usize;
    /// When it was made.
    fn born(&self) -> Instant;
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
    shelves: Vec<Shelf<L>>,
    /// The shelves to choose from: those with a share of the work and at least one link.
    stocked: Vec<usize>,
    /// The newest link of each thread that makes links, reserved for its slot until the pool's
    /// customizer has had its turn with it, in that thread.
    newborn: Vec<Newborn<L>>,
    /// Links that must not be used again, until a slot carries them out.
    corpses: Vec<Corpse<L>>,
    /// Whether a slot was seen checked out untouched: the customizer leaves links alone.
    untouched: bool,
    born: u64,
    /// The other side of the law.
    empty_slots: usize,
    chooser: Chooser,
    rng: SmallRng,
}

#[derive(Debug)]
struct Newborn<L> {
    reservation: Reservation,
    maker: ThreadId,
    link: L,
}

#[derive(Debug)]
struct Corpse<L> {
    link: L,
    /// Whether it was found dead, or shut down; else it is its peer that is not usable, which may
    /// change before a slot has come by.
    is_dead: bool,
}

impl<L: Shelved> Corpse<L> {
    /// Of a peer that is not usable. Its session ends where it is, so that the peer is rid of it also
    /// when nobody uses the pool.
    fn of_unusable(mut link: L) -> Self {
        let is_dead = link.shut_down();
        Self { link, is_dead }
    }
}

/// The parked links of one peer, the one that has rested longest in front.
#[derive(Debug)]
struct Shelf<L> {
    links: VecDeque<L>,
    standing: Standing,
    /// Where it is in `stocked`.
    stocked: Option<usize>,
}

impl<L: Shelved> Exchange<L> {
    /// An empty exchange, which knows no peers yet.
    pub(crate) fn new(strategy: Strategy, rng: SmallRng) -> Self {
        Self {
            inner: Mutex::new(Inner {
                shelves: Vec::new(),
                stocked: Vec::new(),
                newborn: Vec::new(),
                corpses: Vec::new(),
                untouched: false,
                born: 0,
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
    pub(crate) fn born(&self, link: L, maker: ThreadId) -> Reservation {
        self.lock().born(link, maker)
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
                inner.bury(dead);
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
        let carried = inner.corpse().or_else(|| {
            let is_parked = |peer: usize| {
                // It may be one that was added a moment ago.
                inner.shelves.get(peer).is_some_and(|shelf| !shelf.links.is_empty())
            };
            surplus(&is_parked).and_then(|peer| inner.take_from(peer))
        });
        if carried.is_some() {
            inner.empty_slots -= 1;
        }
        inner.check_law();
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

impl<L: Shelved> Inner<L> {
    fn born(&mut self, mut link: L, maker: ThreadId) -> Reservation {
        if !self.shelves[link.peer()].standing.usable {
            // Since its login began. It is its slot's all the same, which finds it dead.
            link.shut_down();
        }
        // The customizer is done with the last one that this thread has made, and left it here.
        self.shelve_newborn(|newborn| newborn.maker == maker);
        self.born += 1;
        let reservation = Reservation(self.born);
        self.newborn.push(Newborn { reservation, maker, link });
        self.empty_slots += 1;
        self.check_law();
        reservation
    }

    fn take(&mut self, own: Option<Reservation>, by: ThreadId) -> L {
        let own = own.and_then(|own| self.reserved(own));
        // The thread that made it is the customizer's: the slot is not checked out yet.
        let is_customizer = own.as_ref().is_some_and(|own| own.maker == by);
        let link = own.map(|own| own.link).or_else(|| self.choose(None));
        // By the law there is one for each slot without; by `release` and `reserved`, one that is
        // not reserved for each slot without a reservation.
        let link = link.or_else(|| self.corpse());
        let mut link = link.expect("a slot without a link in hand has one in the exchange");
        link.set_in_use(!is_customizer);
        self.empty_slots -= 1;
        self.check_law();
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
        self.shelve(link);
        self.check_law();
    }

    fn take_live(&mut self, avoid: Option<usize>) -> Option<L> {
        let mut link = self.choose(avoid)?;
        link.set_in_use(true);
        self.empty_slots -= 1;
        self.check_law();
        Some(link)
    }

    fn bury(&mut self, mut dead: L) {
        dead.set_in_use(false);
        self.empty_slots += 1;
        dead.shut_down();
        self.corpses.push(Corpse { link: dead, is_dead: true });
        self.check_law();
    }

    fn drop_slot(&mut self, own: Option<Reservation>) -> Option<L> {
        let own = own.and_then(|own| self.reserved(own)).map(|own| own.link);
        let link = own.or_else(|| self.corpse()).or_else(|| self.oldest());
        self.empty_slots -= usize::from(link.is_some());
        self.check_law();
        link
    }

    /// Of the links on the shelves the one that was born first.
    fn oldest(&mut self) -> Option<L> {
        let on_shelf = |(peer, shelf): (usize, &Shelf<L>)| {
            let births = shelf.links.iter().enumerate().map(|(at, link)| (link.born(), at));
            births.min().map(|(born, at)| (born, peer, at))
        };
        let (_, peer, at) = self.shelves.iter().enumerate().filter_map(on_shelf).min()?;
        let link = self.shelves[peer].links.remove(at);
        self.restock(peer);
        link
    }

    /// A link of the peer that the strategy chooses: among those that do not hesitate, if there are
    /// any; of one without a share of the work only if there is no other. All these may be used.
    fn choose(&mut self, avoid: Option<usize>) -> Option<L> {
        let Self { shelves, stocked, chooser, rng, .. } = self;
        let others = stocked.iter().filter(|peer| Some(**peer) != avoid);
        let swift = others.clone().filter(|peer| !shelves[**peer].standing.pulse.is_hesitant());
        let candidate = |peer: &usize| {
            let Standing { pulse, share, .. } = &shelves[*peer].standing;
            Candidate { index: *peer, load: pulse.in_use(), weight: *share }
        };
        match chooser
            .choose(swift.map(candidate), rng)
            .or_else(|| chooser.choose(others.map(candidate), rng))
            .or_else(|| avoid.filter(|peer| stocked.contains(peer)))
        {
            Some(peer) => self.take_from(peer),
            None => self.any_usable(),
        }
    }

    fn any_usable(&mut self) -> Option<L> {
        let shelves = self.shelves.iter().enumerate();
        let usable = shelves.filter(|(_, shelf)| shelf.standing.usable && !shelf.links.is_empty());
        let (peer, _) = usable.min_by_key(|(_, shelf)| shelf.standing.tier)?;
        self.take_from(peer)
    }

    fn take_from(&mut self, peer: usize) -> Option<L> {
        let link = self.shelves[peer].links.pop_front();
        self.restock(peer);
        link
    }

    fn shelve(&mut self, link: L) {
        let peer = link.peer();
        if self.shelves[peer].standing.usable {
            self.shelves[peer].links.push_back(link);
            self.restock(peer);
        } else {
            self.corpses.push(Corpse::of_unusable(link));
        }
    }

    fn corpse(&mut self) -> Option<L> {
        self.corpses.pop().map(|corpse| corpse.link)
    }

    /// Puts a shelf on the list of those to choose from, or strikes it off.
    fn restock(&mut self, peer: usize) {
        let shelf = &mut self.shelves[peer];
        let is_stocked = shelf.standing.share > 0 && !shelf.links.is_empty();
        match (shelf.stocked, is_stocked) {
            (None, true) => {
                shelf.stocked = Some(self.stocked.len());
                self.stocked.push(peer);
            }
            (Some(at), false) => {
                shelf.stocked = None;
                self.stocked.swap_remove(at);
                if let Some(moved) = self.stocked.get(at) {
                    self.shelves[*moved].stocked = Some(at);
                }
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    fn learn(&mut self, standings: Vec<Standing>) {
        self.chooser.learn(standings.len());
        for (peer, standing) in standings.into_iter().enumerate() {
            if let Some(shelf) = self.shelves.get_mut(peer) {
                shelf.standing = standing;
            } else {
                self.shelves.push(Shelf { links: VecDeque::new(), standing, stocked: None });
            }
            if !self.shelves[peer].standing.usable {
                let unusable = std::mem::take(&mut self.shelves[peer].links);
                self.corpses.extend(unusable.into_iter().map(Corpse::of_unusable));
            }
            self.restock(peer);
        }
        // New links stay reserved, for slots that may find them dead, but their sessions end as well.
        for newborn in &mut self.newborn {
            if !self.shelves[newborn.link.peer()].standing.usable {
                newborn.link.shut_down();
            }
        }
        // A peer that is usable again, or must be for want of others, has those links back that
        // could not be shut down.
        for corpse in std::mem::take(&mut self.corpses) {
            if corpse.is_dead {
                self.corpses.push(corpse);
            } else {
                self.shelve(corpse.link);
            }
        }
        self.check_law();
    }

    /// The link that is reserved for this slot.
    fn reserved(&mut self, own: Reservation) -> Option<Newborn<L>> {
        let at = self.newborn.iter().position(|newborn| newborn.reservation == own)?;
        Some(self.newborn.swap_remove(at))
    }

    /// A slot is seen that never touched its link: it has no claim to it any more, and the pool's
    /// customizer leaves links alone.
    fn release(&mut self, own: Reservation) {
        self.untouched = true;
        self.shelve_newborn(|newborn| newborn.reservation == own);
    }

    /// New links whose slots' customizer must have run, and leaves links alone, are anybody's.
    fn end_reservations(&mut self, now: impl FnOnce() -> Instant) {
        if self.untouched && !self.newborn.is_empty() {
            let now = now();
            self.shelve_newborn(|newborn| {
                now.saturating_duration_since(newborn.link.born()) >= RESERVATION
            });
        }
    }

    fn shelve_newborn(&mut self, is_free: impl Fn(&Newborn<L>) -> bool) {
        while let Some(at) = self.newborn.iter().position(&is_free) {
            let newborn = self.newborn.swap_remove(at);
            self.shelve(newborn.link);
        }
    }

    fn links(&self) -> usize {
        let shelved: usize = self.shelves.iter().map(|shelf| shelf.links.len()).sum();
        shelved + self.newborn.len() + self.corpses.len()
    }

    fn check_law(&self) {
        debug_assert_eq!(self.links(), self.empty_slots, "links here = slots without one in hand");
    }
}

#[cfg(test)]
mod tests;
