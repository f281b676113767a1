use std::sync::Arc;
use std::thread;

use rand::SeedableRng;

use super::*;

const PEERS: usize = 2;

/// A link that is only a number.
#[derive(Debug, PartialEq, Eq)]
struct Number {
    is: usize,
    peer: usize,
    created_at: Instant,
    /// Whether its session can be ended where it is.
    has_socket: bool,
}

impl Parkable for Number {
    fn peer(&self) -> usize {
        self.peer
    }

    fn created_at(&self) -> Instant {
        self.created_at
    }

    fn set_in_use(&mut self, _: bool) {}

    fn shut_down(&mut self) -> bool {
        self.has_socket
    }
}

#[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
fn start() -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// The link of this number: even ones lead to peer 0, and lower ones are older.
fn link(number: usize) -> Number {
    let created_at = start() + Duration::from_secs(number as u64);
    Number { is: number, peer: number % PEERS, created_at, has_socket: false }
}

fn exchange() -> Exchange<Number> {
    let exchange = Exchange::new(Strategy::Random, SmallRng::seed_from_u64(3));
    tell(&exchange, 1, [true; PEERS]);
    exchange
}

fn add_slot(exchange: &Exchange<Number>, number: usize) -> Reservation {
    exchange.add_slot(link(number), thread::current().id())
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
        let standing = |usable| Standing {
            activity: Arc::default(),
            usable,
            share: u32::from(usable),
            tier: 0,
        };
        usable.map(standing).to_vec()
    });
}

#[test]
fn a_new_slot_finds_its_own_link_until_its_customizer_has_had_its_turn() {
    let exchange = exchange();
    let one = add_slot(&exchange, 0);
    assert_eq!(take(&exchange, Some(one)).is, 0, "its customizer touches its own link");
    let two = add_slot(&exchange, 1);
    let three = add_slot(&exchange, 2);
    // The thread went on to the next link, so it is done with link 1, which is anybody's now.
    assert_eq!(take(&exchange, None).is, 1, "an unreserved one");
    assert_eq!(take(&exchange, Some(three)).is, 2, "the newest is still its slot's own");
    exchange.check_in(Some(link(2)), None, |_| None);
    assert_eq!(take(&exchange, Some(two)).is, 2, "a reservation may have ended: any other");
}

#[test]
fn reservations_end_once_the_customizer_is_seen_to_leave_links_alone() {
    let exchange = exchange();
    thread::scope(|scope| {
        scope.spawn(|| add_slot(&exchange, 1));
    });
    let own = add_slot(&exchange, 0);
    let early = link(0).created_at + RESERVATION / 2;
    let taken = exchange.check_out(None, Some(own), || early).expect("its own, at least");
    assert_eq!(taken.is, 0, "the other one is reserved, and too young");
    let numbers: Vec<_> = [Some(taken), None]
        .into_iter()
        .map(|in_hand| exchange.check_out(in_hand, None, later).map(|link| link.is))
        .collect();
    assert!(numbers.contains(&Some(1)), "it is old enough to be anybody's: {numbers:?}");
}

/// So many slots, whose links are all anybody's.
fn available(links: usize) -> Exchange<Number> {
    let exchange = exchange();
    let last = (0..links).map(|number| add_slot(&exchange, number)).last();
    // The last slot comes back untouched.
    assert_eq!(exchange.check_in(None, last, |_| None), None, "nothing waits to be carried out");
    exchange
}

#[test]
fn links_of_a_peer_that_is_down_are_met_by_nobody() {
    let exchange = available(4);
    tell(&exchange, 2, [false, true]);
    for _ in 0..2 {
        let taken = exchange.check_out(None, None, later).expect("two links live");
        assert_eq!(taken.peer, 1, "of the other peer");
    }
    assert_eq!(exchange.check_out(None, None, later), None, "rather none than a dead one");
    assert_eq!(take(&exchange, None).peer, 0, "but who must have one gets it");
}

#[test]
fn links_of_a_peer_that_is_usable_again_are_taken_again_but_not_dead_ones() {
    let exchange = available(4);
    tell(&exchange, 2, [false, true]);
    let dead = exchange.check_out(None, None, later).expect("two links live");
    exchange.swap_dead(dead).expect("one other is there");
    tell(&exchange, 3, [true, true]);
    let taken = || exchange.check_out(None, None, later).map(|link| link.peer);
    assert_eq!([taken(), taken(), taken()], [Some(0), Some(0), None], "all but the dead one");
}

#[test]
fn each_link_gets_its_turn() {
    let exchange = available(6);
    let mut turns = Vec::new();
    for _ in 0..60 {
        let link = exchange.check_out(None, None, later).expect("six are there");
        turns.push(link.is);
        exchange.check_in(Some(link), None, |_| None);
    }
    let of_peer_0: Vec<_> = turns.into_iter().filter(|is| is % PEERS == 0).collect();
    let rounds = of_peer_0.chunks_exact(3).all(|round| {
        let mut round = round.to_vec();
        round.sort_unstable();
        round == [0, 2, 4]
    });
    assert!(rounds, "the one that has rested longest: {of_peer_0:?}");
}

#[test]
fn who_must_have_a_link_gets_a_live_one_if_there_is_one() {
    let exchange = available(4);
    tell(&exchange, 2, [false, true]);
    let peers: Vec<_> = (0..4).map(|_| take(&exchange, None).peer).collect();
    assert_eq!(peers, [1, 1, 0, 0], "corpses last");
}

#[test]
fn of_peers_without_a_share_the_lowest_tier_serves() {
    let exchange = available(2);
    exchange.learn(2, || {
        let standing =
            |(share, tier)| Standing { activity: Arc::default(), usable: true, share, tier };
        [(0, 2), (0, 1)].map(standing).to_vec()
    });
    assert_eq!(exchange.check_out(None, None, later).map(|link| link.peer), Some(1));
}

#[test]
fn a_slot_that_comes_back_carries_a_corpse_out_else_what_is_too_many() {
    let exchange = available(4);
    let taken = exchange.check_out(None, None, later).expect("four are there");
    let carried = exchange.check_in(Some(taken), None, |_| Some(1)).expect("peer 1 has too many");
    assert_eq!(carried.peer, 1, "one of its links");
    tell(&exchange, 2, [false, true]);
    let taken = exchange.check_out(None, None, later).expect("one is left");
    let carried = exchange.check_in(Some(taken), None, |_| Some(1)).expect("two corpses wait");
    assert_eq!(carried.peer, 0, "a corpse goes first");
}

#[test]
fn a_slot_that_ends_takes_a_corpse_else_the_oldest() {
    let exchange = available(5);
    assert_eq!(exchange.drop_slot(None).map(|link| link.is), Some(0), "the oldest");
    tell(&exchange, 2, [true, false]);
    assert_eq!(exchange.drop_slot(None).map(|link| link.peer), Some(1), "a corpse");
}

#[test]
fn a_dead_link_is_exchanged_for_another_peers_if_there_is_one() {
    let exchange = available(5);
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
                let carried = exchange.check_in(hand, own, |_| None);
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
        let (mut epoch, mut made, mut closed) = (1, 0, Vec::new());
        for &(actor, step) in order {
            match step {
                PeerDown | PeerUp => {
                    epoch += 1;
                    tell(&exchange, epoch, [matches!(step, PeerUp), true]);
                }
                Born => {
                    let own = Some(add_slot(&exchange, made));
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

#[test]
fn what_is_too_many_is_only_asked_of_what_is_here() {
    let exchange = available(2);
    let one = exchange.check_out(None, None, later).expect("two are there");
    let other = exchange.check_out(None, None, later).expect("one is there");
    let (mine, theirs) = (one.peer, other.peer);
    let carried = exchange.check_in(Some(one), None, |is_parked| {
        assert!(is_parked(mine), "what the slot has just parked is here");
        assert!(!is_parked(theirs), "what another slot has in hand is not");
        None
    });
    assert_eq!(carried, None, "nobody has too many");
}

#[test]
fn links_that_were_shut_down_with_their_peer_do_not_come_back() {
    let exchange = exchange();
    let slots = [0, 2, 4].map(|number| {
        let link = Number { has_socket: number != 0, ..link(number) };
        exchange.add_slot(link, thread::current().id())
    });
    // Two are on the shelf, and the newest is still reserved.
    tell(&exchange, 2, [false, true]);
    tell(&exchange, 3, [true, true]);
    let mut served = Vec::new();
    while let Some(link) = exchange.check_out(None, None, start) {
        served.push(link.is);
    }
    assert_eq!(served, [0], "the one whose session could not be ended");
    let reserved = take(&exchange, Some(slots[2]));
    assert_eq!(reserved.is, 4, "a new link stays its slot's, which finds it dead");
    let carried = exchange.drop_slot(None).expect("one is left");
    assert_eq!(carried.is, 2, "and the other one is carried out");
}

/// An operator may have had its peer drained while its login was under way.
#[test]
fn a_link_that_is_born_to_a_peer_that_is_not_usable_ends_where_it_is() {
    thread_local! {
        static ENDED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    }
    struct Told(Number);
    impl Parkable for Told {
        fn peer(&self) -> usize {
            self.0.peer()
        }

        fn created_at(&self) -> Instant {
            self.0.created_at()
        }

        fn set_in_use(&mut self, _: bool) {}

        fn shut_down(&mut self) -> bool {
            ENDED.set(ENDED.get() + 1);
            true
        }
    }

    let exchange = Exchange::new(Strategy::Random, SmallRng::seed_from_u64(3));
    let standing = |usable| Standing { activity: Arc::default(), usable, share: 1, tier: 0 };
    exchange.learn(1, || vec![standing(true), standing(false)]);
    let maker = thread::current().id();
    exchange.add_slot(Told(link(0)), maker);
    assert_eq!(ENDED.get(), 0, "its peer is fine");
    let own = exchange.add_slot(Told(link(1)), maker);
    assert_eq!(ENDED.get(), 1, "its session is not wanted");
    assert_eq!(exchange.take(Some(own), maker).0.is, 1, "but its slot has it");
}
