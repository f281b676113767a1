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
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;

use crate::policy::Strategy;
use crate::share::Candidate;
use crate::strategy::Chooser;

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
}

/// How a peer stands, as far as its links are concerned.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    /// Whether its links may be used.
    pub(crate) usable: bool,
    /// Its share of the work.
    pub(crate) share: u32,
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
    corpses: Vec<L>,
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

/// The parked links of one peer, the one that has rested longest in front.
#[derive(Debug)]
struct Shelf<L> {
    links: VecDeque<L>,
    standing: Standing,
    in_use: Arc<AtomicUsize>,
    /// Where it is in `stocked`.
    stocked: Option<usize>,
}

impl<L: Shelved> Exchange<L> {
    /// An empty exchange over peers whose links in use are counted by these.
    pub(crate) fn new(
        strategy: Strategy,
        in_use: impl IntoIterator<Item = Arc<AtomicUsize>>,
        rng: SmallRng,
    ) -> Self {
        let standing = Standing { usable: true, share: 1 };
        let shelves = in_use
            .into_iter()
            .map(|in_use| Shelf {
                links: VecDeque::new(),
                standing: standing.clone(),
                in_use,
                stocked: None,
            })
            .collect();
        Self {
            inner: Mutex::new(Inner {
                shelves,
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

    /// Nothing under the lock can panic half-way through a move, so a poisoned lock is whole.
    fn lock(&self) -> MutexGuard<'_, Inner<L>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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
        if let Some(link) = in_hand {
            inner.park(link);
        }
        if let Some(own) = own {
            inner.release(own);
        }
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
    /// has a link too many, the slot is given that to carry out.
    pub(crate) fn check_in(
        &self,
        in_hand: Option<L>,
        own: Option<Reservation>,
        surplus: Option<usize>,
    ) -> Option<L> {
        let mut inner = self.lock();
        if let Some(link) = in_hand {
            inner.park(link);
        }
        if let Some(own) = own {
            inner.release(own);
        }
        let carried = inner.corpses.pop().or_else(|| inner.take_from(surplus?));
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
    fn born(&mut self, link: L, maker: ThreadId) -> Reservation {
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
        let link = link.or_else(|| self.corpses.pop());
        let mut link = link.expect("a slot without a link in hand has one in the exchange");
        link.set_in_use(!is_customizer);
        self.empty_slots -= 1;
        self.check_law();
        link
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
        self.corpses.push(dead);
        self.check_law();
    }

    fn drop_slot(&mut self, own: Option<Reservation>) -> Option<L> {
        let own = own.and_then(|own| self.reserved(own)).map(|own| own.link);
        let link = own.or_else(|| self.corpses.pop()).or_else(|| self.oldest());
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

    /// A link of the peer that the strategy chooses; of one without a share of the work only if
    /// there is no other. All these may be used.
    fn choose(&mut self, avoid: Option<usize>) -> Option<L> {
        let Self { shelves, stocked, chooser, rng, .. } = self;
        let candidates = stocked.iter().filter(|peer| Some(**peer) != avoid).map(|peer| {
            let shelf = &shelves[*peer];
            Candidate {
                index: *peer,
                load: shelf.in_use.load(Ordering::Relaxed),
                weight: shelf.standing.share,
            }
        });
        match chooser
            .choose(candidates, rng)
            .or_else(|| avoid.filter(|peer| stocked.contains(peer)))
        {
            Some(peer) => self.take_from(peer),
            None => self.any_usable(),
        }
    }

    fn any_usable(&mut self) -> Option<L> {
        let usable = |shelf: &Shelf<L>| shelf.standing.usable && !shelf.links.is_empty();
        let peer = self.shelves.iter().position(usable)?;
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
            self.corpses.push(link);
        }
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
        for (peer, standing) in standings.into_iter().enumerate() {
            self.shelves[peer].standing = standing;
            if !self.shelves[peer].standing.usable {
                let unusable = std::mem::take(&mut self.shelves[peer].links);
                self.corpses.extend(unusable);
            }
            self.restock(peer);
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
mod tests {
    use std::thread;

    use rand::SeedableRng;

    use super::*;

    const PEERS: usize = 2;

    /// A link that is only a number.
    #[derive(Debug, PartialEq, Eq)]
    struct Number {
        is: usize,
        peer: usize,
        born: Instant,
    }

    impl Shelved for Number {
        fn peer(&self) -> usize {
            self.peer
        }

        fn born(&self) -> Instant {
            self.born
        }

        fn set_in_use(&mut self, _: bool) {}
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn start() -> Instant {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(Instant::now)
    }

    /// The link of this number: even ones lead to peer 0, and lower ones are older.
    fn link(number: usize) -> Number {
        let born = start() + Duration::from_secs(number as u64);
        Number { is: number, peer: number % PEERS, born }
    }

    fn exchange() -> Exchange<Number> {
        let in_use = (0..PEERS).map(|_| Arc::default());
        Exchange::new(Strategy::Random, in_use, SmallRng::seed_from_u64(3))
    }

    fn born(exchange: &Exchange<Number>, number: usize) -> Reservation {
        exchange.born(link(number), thread::current().id())
    }

    fn take(exchange: &Exchange<Number>, own: Option<Reservation>) -> Number {
        exchange.take(own, thread::current().id())
    }

    /// Long after every link was born.
    fn later() -> Instant {
        start() + Duration::from_secs(3600)
    }

    fn tell(exchange: &Exchange<Number>, epoch: u64, usable: [bool; PEERS]) {
        exchange.learn(epoch, || {
            usable.map(|usable| Standing { usable, share: u32::from(usable) }).to_vec()
        });
    }

    #[test]
    fn a_new_slot_finds_its_own_link_until_its_customizer_has_had_its_turn() {
        let exchange = exchange();
        let one = born(&exchange, 0);
        assert_eq!(take(&exchange, Some(one)).is, 0, "its customizer touches its own link");
        let two = born(&exchange, 1);
        let three = born(&exchange, 2);
        // The thread went on to the next link, so it is done with link 1, which is anybody's now.
        assert_eq!(take(&exchange, None).is, 1, "an unreserved one");
        assert_eq!(take(&exchange, Some(three)).is, 2, "the newest is still its slot's own");
        exchange.check_in(Some(link(2)), None, None);
        assert_eq!(take(&exchange, Some(two)).is, 2, "a reservation may have ended: any other");
    }

    #[test]
    fn reservations_end_once_the_customizer_is_seen_to_leave_links_alone() {
        let exchange = exchange();
        thread::scope(|scope| {
            scope.spawn(|| born(&exchange, 1));
        });
        let own = born(&exchange, 0);
        let early = link(0).born + RESERVATION / 2;
        let taken = exchange.check_out(None, Some(own), || early).expect("its own, at least");
        assert_eq!(taken.is, 0, "the other one is reserved, and too young");
        let numbers: Vec<_> = [Some(taken), None]
            .into_iter()
            .map(|in_hand| exchange.check_out(in_hand, None, later).map(|link| link.is))
            .collect();
        assert!(numbers.contains(&Some(1)), "it is old enough to be anybody's: {numbers:?}");
    }

    /// So many slots, whose links are all anybody's.
    fn stocked(links: usize) -> Exchange<Number> {
        let exchange = exchange();
        let last = (0..links).map(|number| born(&exchange, number)).last();
        // The last slot comes back untouched.
        assert_eq!(exchange.check_in(None, last, None), None, "nothing waits to be carried out");
        exchange
    }

    #[test]
    fn links_of_a_peer_that_is_down_are_met_by_nobody() {
        let exchange = stocked(4);
        tell(&exchange, 1, [false, true]);
        for _ in 0..2 {
            let taken = exchange.check_out(None, None, later).expect("two links live");
            assert_eq!(taken.peer, 1, "of the other peer");
        }
        assert_eq!(exchange.check_out(None, None, later), None, "rather none than a dead one");
        assert_eq!(take(&exchange, None).peer, 0, "but who must have one gets it");
    }

    #[test]
    fn a_slot_that_comes_back_carries_a_corpse_out_else_what_is_too_many() {
        let exchange = stocked(4);
        let taken = exchange.check_out(None, None, later).expect("four are there");
        let carried = exchange.check_in(Some(taken), None, Some(1)).expect("peer 1 has too many");
        assert_eq!(carried.peer, 1, "one of its links");
        tell(&exchange, 1, [false, true]);
        let taken = exchange.check_out(None, None, later).expect("one is left");
        let carried = exchange.check_in(Some(taken), None, Some(1)).expect("two corpses wait");
        assert_eq!(carried.peer, 0, "a corpse goes first");
    }

    #[test]
    fn a_slot_that_ends_takes_a_corpse_else_the_oldest() {
        let exchange = stocked(5);
        assert_eq!(exchange.drop_slot(None).map(|link| link.is), Some(0), "the oldest");
        tell(&exchange, 1, [true, false]);
        assert_eq!(exchange.drop_slot(None).map(|link| link.peer), Some(1), "a corpse");
    }

    #[test]
    fn a_dead_link_is_exchanged_for_another_peers_if_there_is_one() {
        let exchange = stocked(5);
        let mut dead = exchange.check_out(None, None, later).expect("five are there");
        let first = dead.peer;
        dead = exchange.swap_dead(dead).expect("others are there");
        assert_ne!(dead.peer, first, "the other peer's first");
        for _ in 0..3 {
            dead = exchange.swap_dead(dead).expect("others are there");
        }
        exchange.swap_dead(dead).expect_err("all others are dead");
    }

    /// What one slot goes through, step by step.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Born,
        CheckOut,
        Deref,
        FindDead,
        CheckIn,
        Drop,
        PeerDown,
        PeerUp,
    }

    /// A slot as r2d2 treats it.
    struct Slot {
        own: Option<Reservation>,
        hand: Option<Number>,
    }

    impl Slot {
        /// Whether r2d2 keeps the slot.
        fn goes_through(&mut self, step: Step, exchange: &Exchange<Number>) -> bool {
            let (hand, own) = (self.hand.take(), self.own.take());
            let (hand, kept) = match step {
                Step::CheckOut => {
                    let taken = exchange.check_out(hand, own, later);
                    let is_valid = taken.is_some();
                    (taken, is_valid)
                }
                Step::Deref => {
                    (Some(hand.unwrap_or_else(|| exchange.take(own, thread::current().id()))), true)
                }
                Step::FindDead => match exchange.swap_dead(hand.expect("it is checked out")) {
                    Ok(live) => (Some(live), true),
                    Err(dead) => (Some(dead), false),
                },
                Step::CheckIn => {
                    let carried = exchange.check_in(hand, own, None);
                    let is_broken = carried.is_some();
                    (carried, !is_broken)
                }
                Step::Drop => {
                    self.own = own;
                    (hand, false)
                }
                Step::Born | Step::PeerDown | Step::PeerUp => unreachable!("no step of a slot"),
            };
            self.hand = hand;
            kept
        }

        /// The link that is closed with it.
        fn ends(self, exchange: &Exchange<Number>) -> usize {
            let link = self.hand.or_else(|| exchange.drop_slot(self.own));
            link.expect("each slot has a link, in hand or in the exchange").is
        }
    }

    /// Every order in which the steps of these slots can follow each other. Each step is one move
    /// under the exchange's lock, so these are all the interleavings that threads can bring about.
    fn in_every_order(scripts: &[&[Step]], visit: &mut impl FnMut(&[(usize, Step)])) {
        fn go(
            scripts: &[&[Step]],
            at: &mut Vec<usize>,
            order: &mut Vec<(usize, Step)>,
            visit: &mut impl FnMut(&[(usize, Step)]),
        ) {
            let mut is_end = true;
            for actor in 0..scripts.len() {
                if let Some(step) = scripts[actor].get(at[actor]) {
                    is_end = false;
                    at[actor] += 1;
                    order.push((actor, *step));
                    go(scripts, at, order, visit);
                    order.pop();
                    at[actor] -= 1;
                }
            }
            if is_end {
                visit(order);
            }
        }
        go(scripts, &mut vec![0; scripts.len()], &mut Vec::new(), visit);
    }

    #[test]
    fn the_law_holds_in_every_order_of_events() {
        use Step::{Born, CheckIn, CheckOut, Deref, Drop, FindDead, PeerDown, PeerUp};
        let scripts: [&[Step]; 4] = [
            &[Born, CheckOut, CheckIn, Drop],
            &[Born, CheckOut, FindDead, CheckIn],
            &[Born, Deref, Drop],
            &[PeerDown, PeerUp],
        ];
        let mut orders = 0_u32;
        in_every_order(&scripts, &mut |order| {
            orders += 1;
            let exchange = exchange();
            let mut slots: [Option<Slot>; 3] = [const { None }; 3];
            let (mut epoch, mut made, mut closed) = (0, 0, Vec::new());
            for &(actor, step) in order {
                match step {
                    PeerDown | PeerUp => {
                        epoch += 1;
                        tell(&exchange, epoch, [matches!(step, PeerUp), true]);
                    }
                    Born => {
                        let own = Some(born(&exchange, made));
                        slots[actor] = Some(Slot { own, hand: None });
                        made += 1;
                    }
                    step => {
                        // r2d2 drops a slot that is not valid or comes back broken, and then its
                        // later steps do not happen.
                        let slot = slots[actor].as_mut();
                        if slot.is_some_and(|slot| !slot.goes_through(step, &exchange)) {
                            closed.extend(slots[actor].take().map(|slot| slot.ends(&exchange)));
                        }
                    }
                }
            }
            closed.extend(slots.into_iter().flatten().map(|slot| slot.ends(&exchange)));
            assert_eq!(exchange.count(), 0, "every slot ended, so every link did: {order:?}");
            closed.sort_unstable();
            assert_eq!(closed, [0, 1, 2], "each link was closed once: {order:?}");
        });
        assert!(orders > 100_000, "{orders} orders");
    }
}
