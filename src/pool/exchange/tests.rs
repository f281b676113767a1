use std::sync::Arc;
use std::thread;

use rand::SeedableRng;

use super::*;

const PEERS: usize = 2;

/// A stand-in for a link: a number.
#[derive(Debug, PartialEq, Eq)]
struct TestLink {
    number: usize,
    peer: usize,
    created_at: Instant,
    /// Whether its session can be ended without closing it.
    has_socket: bool,
    is_marked: bool,
    due_at: Option<Instant>,
}

impl Parkable for TestLink {
    fn peer(&self) -> usize {
        self.peer
    }

    fn created_at(&self) -> Instant {
        self.created_at
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due_at.is_some_and(|due_at| due_at <= now)
    }

    fn set_in_use(&mut self, _: bool) {}

    fn is_marked_for_replacement(&self) -> bool {
        self.is_marked
    }

    fn mark_for_replacement(&mut self, _: CloseReason) {
        self.is_marked = true;
    }

    fn cancel_replacement(&mut self) {
        self.is_marked = false;
    }

    fn shut_down(&mut self) -> bool {
        self.has_socket
    }
}

#[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
fn start() -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// Creates the link with this number. Even links lead to peer 0, and lower numbers are older.
fn link(number: usize) -> TestLink {
    let created_at = start() + Duration::from_secs(number as u64);
    let peer = number % PEERS;
    TestLink { number, peer, created_at, has_socket: false, is_marked: false, due_at: None }
}

fn exchange() -> Exchange<TestLink> {
    let exchange = Exchange::new(Strategy::Random, Customizer::Unknown, SmallRng::seed_from_u64(3));
    set_usable(&exchange, 1, [true; PEERS]);
    exchange
}

fn add_slot(exchange: &Exchange<TestLink>, number: usize) -> Reservation {
    exchange.add_slot(link(number), thread::current().id())
}

fn take(exchange: &Exchange<TestLink>, reservation: Option<Reservation>) -> TestLink {
    exchange.take(reservation, thread::current().id())
}

/// Returns a time long after the creation of every link.
fn later() -> Instant {
    start() + Duration::from_secs(3600)
}

fn set_usable(exchange: &Exchange<TestLink>, epoch: u64, usable: [bool; PEERS]) {
    exchange.update_peers(epoch, || {
        let view = |is_usable| PeerView {
            activity: Arc::default(),
            is_usable,
            share: u32::from(is_usable),
            tier: 0,
        };
        usable.map(view).to_vec()
    });
}

#[test]
fn new_slot_gets_its_own_link_until_its_customizer_has_run() {
    let exchange = exchange();
    let one = add_slot(&exchange, 0);
    assert_eq!(take(&exchange, Some(one)).number, 0, "a customizer gets the link of its own slot");
    let two = add_slot(&exchange, 1);
    let three = add_slot(&exchange, 2);
    // The thread has created another link, so it is done with link 1, which is available now.
    assert_eq!(
        take(&exchange, None).number,
        1,
        "a slot without a reservation gets an available link"
    );
    assert_eq!(
        take(&exchange, Some(three)).number,
        2,
        "the newest link is still reserved for its slot"
    );
    exchange.check_in(Some(link(2)), None, |_| None);
    assert_eq!(
        take(&exchange, Some(two)).number,
        2,
        "a slot whose reservation has ended gets any other link"
    );
}

#[test]
fn reservations_expire_once_the_customizer_has_not_used_a_link() {
    let exchange = exchange();
    thread::scope(|scope| {
        scope.spawn(|| add_slot(&exchange, 1));
    });
    let reservation = add_slot(&exchange, 0);
    let early = link(0).created_at + RESERVATION_TIME / 2;
    let taken = exchange
        .check_out(None, Some(reservation), early)
        .expect("the slot's own link is available at least");
    assert_eq!(taken.number, 0, "the other link is too young and still reserved");
    let numbers: Vec<_> = [Some(taken), None]
        .into_iter()
        .map(|held| exchange.check_out(held, None, later()).map(|link| link.number))
        .collect();
    assert!(
        numbers.contains(&Some(1)),
        "a link that is old enough is available to every slot: {numbers:?}"
    );
}

/// Creates an exchange with this many slots, all links of which are parked.
fn with_parked_links(links: usize) -> Exchange<TestLink> {
    let exchange = exchange();
    let last = (0..links).map(|number| add_slot(&exchange, number)).last();
    // The last slot is returned without having taken its link.
    let to_close = exchange.check_in(None, last, |_| None);
    assert_eq!(to_close, ToClose::Nothing, "no link has to be closed");
    exchange
}

#[test]
fn links_of_a_peer_that_is_down_are_not_handed_out() {
    let exchange = with_parked_links(4);
    set_usable(&exchange, 2, [false, true]);
    for _ in 0..2 {
        let taken = exchange.check_out(None, None, later()).expect("two live links are here");
        assert_eq!(taken.peer, 1, "only links of the other peer are handed out");
    }
    assert_eq!(exchange.check_out(None, None, later()), None, "a checkout never gets a dead link");
    assert_eq!(take(&exchange, None).peer, 0, "a slot that is dereferenced gets even a dead link");
}

#[test]
fn links_of_a_peer_that_recovers_are_handed_out_again_except_dead_ones() {
    let exchange = with_parked_links(4);
    set_usable(&exchange, 2, [false, true]);
    let dead = exchange.check_out(None, None, later()).expect("two live links are here");
    exchange.swap_dead(dead, later()).expect("another live link is here");
    set_usable(&exchange, 3, [true, true]);
    let taken = || exchange.check_out(None, None, later()).map(|link| link.peer);
    assert_eq!(
        [taken(), taken(), taken()],
        [Some(0), Some(0), None],
        "every link but the dead one returns"
    );
}

/// Returns the numbers of the links to peer 0 that so many checkouts, one after the other, get.
fn turns_of_peer_0(exchange: &Exchange<TestLink>, checkouts: usize, now: Instant) -> Vec<usize> {
    let mut turns = Vec::new();
    for _ in 0..checkouts {
        let mut link = exchange.check_out(None, None, now).expect("six links are here");
        link.due_at = link.due_at.map(|_| now + Duration::from_secs(15));
        turns.push(link.number);
        exchange.check_in(Some(link), None, |_| None);
    }
    turns.retain(|number| number % PEERS == 0);
    turns
}

#[test]
fn link_of_a_peer_that_was_used_last_is_handed_out_first() {
    let turns = turns_of_peer_0(&with_parked_links(6), 60, later());
    assert!(turns.len() > 10, "the peer gets its share: {turns:?}");
    assert!(turns.iter().all(|number| *number == 4), "one busy thread uses one link: {turns:?}");
}

#[test]
fn links_that_are_due_have_their_turn_first() {
    let exchange = exchange();
    let now = later();
    for number in 0..6 {
        let due_at = Some(now + Duration::from_secs(number as u64));
        let reservation =
            exchange.add_slot(TestLink { due_at, ..link(number) }, thread::current().id());
        exchange.check_in(None, Some(reservation), |_| None);
    }
    assert_eq!(turns_of_peer_0(&exchange, 20, now)[..2], [0, 0], "one link is due");
    let turns = turns_of_peer_0(&exchange, 20, now + Duration::from_secs(8));
    assert_eq!(turns[..4], [2, 4, 4, 4], "two links are due, and then the last one is warm");
}

#[test]
fn link_that_nothing_validates_is_the_one_that_was_idle_for_the_longest() {
    let exchange = with_parked_links(6);
    let numbers: Vec<_> = (0..6).map(|_| take(&exchange, None).number).collect();
    let of_peer_0: Vec<_> = numbers.into_iter().filter(|number| number % PEERS == 0).collect();
    assert_eq!(of_peer_0, [0, 2, 4], "none rests until its server ends it");
}

#[test]
fn dereferenced_slot_gets_a_live_link_if_there_is_one() {
    let exchange = with_parked_links(4);
    set_usable(&exchange, 2, [false, true]);
    let peers: Vec<_> = (0..4).map(|_| take(&exchange, None).peer).collect();
    assert_eq!(peers, [1, 1, 0, 0], "evicted links come last");
}

#[test]
fn lowest_tier_serves_if_no_peer_has_a_share() {
    let exchange = with_parked_links(2);
    exchange.update_peers(2, || {
        let view =
            |(share, tier)| PeerView { activity: Arc::default(), is_usable: true, share, tier };
        [(0, 2), (0, 1)].map(view).to_vec()
    });
    assert_eq!(exchange.check_out(None, None, later()).map(|link| link.peer), Some(1));
}

#[test]
fn evicted_and_marked_links_are_replaced_and_no_slot_is_closed_for_them() {
    let exchange = with_parked_links(4);
    let taken = exchange.check_out(None, None, later()).expect("four links are here");
    let to_close = exchange.check_in(Some(taken), None, |_| Some(1));
    assert_eq!(to_close, ToClose::Nothing, "the marked link stays until a new one is there");
    let replaced = |number| exchange.offer(link(number)).map(|old| old.peer);
    assert_eq!(replaced(10), Some(1), "the marked link is one of peer 1");
    set_usable(&exchange, 2, [false, true]);
    let taken = exchange.check_out(None, None, later()).expect("one live link is left");
    let to_close = exchange.check_in(Some(taken), None, |_| Some(1));
    assert_eq!(to_close, ToClose::Nothing, "the slot that has brought a live link stays");
    let replaced = [11, 13, 15, 17, 19].map(replaced);
    let expected = [Some(0), Some(0), Some(0), Some(1), None];
    assert_eq!(replaced, expected, "evicted links are replaced before marked links");
}

#[test]
fn dropped_slot_closes_an_evicted_link_or_else_the_oldest_link() {
    let exchange = with_parked_links(5);
    assert_eq!(
        exchange.drop_slot(None).map(|link| link.number),
        Some(0),
        "the oldest link is closed"
    );
    set_usable(&exchange, 2, [true, false]);
    assert_eq!(
        exchange.drop_slot(None).map(|link| link.peer),
        Some(1),
        "an evicted link is closed"
    );
    let exchange = with_parked_links(4);
    exchange.check_in(Some(link(5)), None, |_| Some(1));
    let closed = exchange.drop_slot(None).map(|link| link.number);
    assert_eq!(closed, Some(1), "a link that is to be replaced is closed before the oldest one");
}

#[test]
fn dead_link_is_exchanged_for_a_link_of_another_peer_if_there_is_one() {
    let exchange = with_parked_links(5);
    let mut dead = exchange.check_out(None, None, later()).expect("five links are here");
    let first = dead.peer;
    dead = exchange.swap_dead(dead, later()).expect("other links are here");
    assert_ne!(dead.peer, first, "a link of the other peer comes first");
    for _ in 0..3 {
        dead = exchange.swap_dead(dead, later()).expect("other links are here");
    }
    exchange.swap_dead(dead, later()).expect_err("all other links are dead");
}

/// One step in the life of a slot, or a change of a peer.
#[derive(Debug, Clone, Copy)]
enum Step {
    AddSlot,
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
    reservation: Option<Reservation>,
    held: Option<TestLink>,
}

impl Slot {
    /// Runs one step. Returns whether r2d2 keeps the slot.
    fn run(&mut self, step: Step, exchange: &Exchange<TestLink>) -> bool {
        let (held, reservation) = (self.held.take(), self.reservation.take());
        let (held, kept) = match step {
            Step::CheckOut => {
                let taken = exchange.check_out(held, reservation, later());
                let is_valid = taken.is_some();
                (taken, is_valid)
            }
            Step::Deref => (Some(held.unwrap_or_else(|| take(exchange, reservation))), true),
            Step::FindDead => {
                match exchange.swap_dead(held.expect("the slot is checked out"), later()) {
                    Ok(live) => (Some(live), true),
                    Err(dead) => (Some(dead), false),
                }
            }
            Step::CheckIn => match exchange.check_in(held, reservation, |_| None) {
                ToClose::Nothing => (None, true),
                ToClose::WithSlot(link) => (Some(link), false),
                ToClose::Replaced(link) => panic!("no link is new: {link:?}"),
            },
            Step::Drop => {
                self.reservation = reservation;
                (held, false)
            }
            Step::AddSlot | Step::PeerDown | Step::PeerUp => {
                unreachable!("this is not a step of an existing slot")
            }
        };
        self.held = held;
        kept
    }

    /// Drops the slot. Returns the number of the link that is closed with it.
    fn close(self, exchange: &Exchange<TestLink>) -> usize {
        let link = self.held.or_else(|| exchange.drop_slot(self.reservation));
        link.expect("each slot has a link, in the slot or in the exchange").number
    }
}

/// Visits every order in which the steps of these scripts can follow each other. Each step is one call
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
fn invariant_holds_in_every_order_of_events() {
    use Step::{AddSlot, CheckIn, CheckOut, Deref, Drop, FindDead, PeerDown, PeerUp};
    let scripts: [&[Step]; 4] = [
        &[AddSlot, CheckOut, CheckIn, Drop],
        &[AddSlot, CheckOut, FindDead, CheckIn],
        &[AddSlot, Deref, Drop],
        &[PeerDown, PeerUp],
    ];
    let mut orders = 0_u32;
    in_every_order(&scripts, &mut |order| {
        orders += 1;
        let exchange = exchange();
        let mut slots: [Option<Slot>; 3] = [const { None }; 3];
        let (mut epoch, mut created, mut closed) = (1, 0, Vec::new());
        for &(actor, step) in order {
            match step {
                PeerDown | PeerUp => {
                    epoch += 1;
                    set_usable(&exchange, epoch, [matches!(step, PeerUp), true]);
                }
                AddSlot => {
                    let reservation = Some(add_slot(&exchange, created));
                    slots[actor] = Some(Slot { reservation, held: None });
                    created += 1;
                }
                step => {
                    // r2d2 drops a slot that is not valid or is returned broken. The later steps of the
                    // slot do not happen then.
                    let slot = slots[actor].as_mut();
                    if slot.is_some_and(|slot| !slot.run(step, &exchange)) {
                        closed.extend(slots[actor].take().map(|slot| slot.close(&exchange)));
                    }
                }
            }
        }
        closed.extend(slots.into_iter().flatten().map(|slot| slot.close(&exchange)));
        assert_eq!(exchange.count(), 0, "no link is left once every slot is dropped: {order:?}");
        closed.sort_unstable();
        assert_eq!(closed, [0, 1, 2], "each link is closed exactly once: {order:?}");
    });
    assert!(orders > 100_000, "only {orders} orders were tested");
}

#[test]
fn pool_is_only_rebalanced_by_parked_links() {
    let exchange = with_parked_links(2);
    let one = exchange.check_out(None, None, later()).expect("two links are here");
    let other = exchange.check_out(None, None, later()).expect("one link is here");
    let (mine, theirs) = (one.peer, other.peer);
    let to_close = exchange.check_in(Some(one), None, |is_parked| {
        assert!(is_parked(mine), "the link that the slot has just parked is here");
        assert!(!is_parked(theirs), "the link that another slot holds is not here");
        None
    });
    assert_eq!(to_close, ToClose::Nothing, "no peer has a link too many");
}

#[test]
fn links_that_were_shut_down_with_their_peer_are_not_handed_out_again() {
    let exchange = exchange();
    let slots = [0, 2, 4].map(|number| {
        let link = TestLink { has_socket: number != 0, ..link(number) };
        exchange.add_slot(link, thread::current().id())
    });
    // Two links are in the queue, and the newest is still reserved.
    set_usable(&exchange, 2, [false, true]);
    set_usable(&exchange, 3, [true, true]);
    let mut served = Vec::new();
    while let Some(link) = exchange.check_out(None, None, start()) {
        served.push(link.number);
    }
    assert_eq!(served, [0], "only the link whose session could not be ended returns");
    let reserved = take(&exchange, Some(slots[2]));
    assert_eq!(reserved.number, 4, "a new link stays reserved for its slot, which finds it dead");
    let closed = exchange.drop_slot(None).expect("one link is left");
    assert_eq!(closed.number, 2, "the evicted link is closed with the slot");
}

/// An operator may drain a peer while a login to it is in progress.
#[test]
fn new_link_of_an_unusable_peer_is_shut_down() {
    thread_local! {
        static SHUT_DOWNS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    }
    struct CountingLink(TestLink);
    impl Parkable for CountingLink {
        fn peer(&self) -> usize {
            self.0.peer()
        }

        fn created_at(&self) -> Instant {
            self.0.created_at()
        }

        fn is_due(&self, _: Instant) -> bool {
            false
        }

        fn set_in_use(&mut self, _: bool) {}

        fn is_marked_for_replacement(&self) -> bool {
            false
        }

        fn mark_for_replacement(&mut self, _: CloseReason) {}

        fn cancel_replacement(&mut self) {}

        fn shut_down(&mut self) -> bool {
            SHUT_DOWNS.set(SHUT_DOWNS.get() + 1);
            true
        }
    }

    let exchange = Exchange::new(Strategy::Random, Customizer::Unknown, SmallRng::seed_from_u64(3));
    let view = |is_usable| PeerView { activity: Arc::default(), is_usable, share: 1, tier: 0 };
    exchange.update_peers(1, || vec![view(true), view(false)]);
    let creator = thread::current().id();
    exchange.add_slot(CountingLink(link(0)), creator);
    assert_eq!(SHUT_DOWNS.get(), 0, "a link of a usable peer stays open");
    let reservation = exchange.add_slot(CountingLink(link(1)), creator);
    assert_eq!(SHUT_DOWNS.get(), 1, "the session on an unusable peer is ended");
    assert_eq!(exchange.take(Some(reservation), creator).0.number, 1, "the slot keeps its link");
}

/// Marks the peer of the even links as down, without evicting its links.
fn mark_down(exchange: &Exchange<TestLink>, epoch: u64) {
    exchange.update_peers(epoch, || {
        let view = |peer| {
            let activity = Arc::<crate::peers::activity::Activity>::default();
            activity.set_state(peer == 0, false);
            PeerView { activity, is_usable: true, share: u32::from(peer != 0), tier: 0 }
        };
        (0..PEERS).map(view).collect()
    });
}

#[test]
fn new_links_take_the_places_of_links_to_a_peer_that_is_down() {
    let exchange = with_parked_links(4);
    let reservation = add_slot(&exchange, 4);
    mark_down(&exchange, 2);
    let replaced = |number| exchange.offer(link(number)).map(|old| old.number);
    assert_eq!(replaced(11), Some(4), "a reserved link");
    assert_eq!(replaced(13), Some(0), "a parked link");
    let other_thread = thread::scope(|scope| {
        scope.spawn(|| thread::current().id()).join().expect("the thread does not panic")
    });
    let taken = exchange.take(Some(reservation), other_thread);
    assert_eq!(taken.number, 11, "the reservation is for the new link");
    let held = exchange.check_out(None, None, later()).expect("links are here");
    assert_eq!(held.peer, 1, "links of peers that are up come first");
    assert_eq!(replaced(15), Some(2), "the other parked link");
    assert_eq!(replaced(17), None, "no link is left, so this is a spare");
    assert_eq!(exchange.pending_replacements(), 1);
    let check_in = |number| exchange.check_in(Some(link(number)), None, |_| None);
    assert_eq!(check_in(5), ToClose::Nothing, "a link of a peer that is up stays");
    assert_eq!(check_in(6), ToClose::Replaced(link(6)), "the spare takes its place");
    assert_eq!(check_in(8), ToClose::Nothing, "there is no other spare");
    assert_eq!(replaced(19), Some(8));
    assert_eq!(replaced(21), None);
    assert_eq!(exchange.end_replacements().len(), 1, "the spare is not needed any more");
    assert_eq!(exchange.pending_replacements(), 0);
}

#[test]
fn links_to_a_peer_that_is_down_are_closed_with_slots_if_the_customizer_uses_new_links() {
    let exchange = with_parked_links(2);
    let reservation = add_slot(&exchange, 2);
    assert_eq!(take(&exchange, Some(reservation)).number, 2, "the customizer uses this link");
    mark_down(&exchange, 2);
    let closed = |number| exchange.offer(link(number)).map(|link| link.number);
    assert_eq!(closed(11), Some(11), "the customizer has not seen the new link");
    mark_down(&exchange, 3);
    assert_eq!(exchange.pending_replacements(), 1, "the link stays evicted when a peer changes");
    let ToClose::WithSlot(old) = exchange.check_in(None, None, |_| None) else {
        panic!("a parked link is closed with a slot")
    };
    assert_eq!(old.number, 0);
    assert_eq!(closed(13), Some(13));
    assert_eq!(exchange.pending_replacements(), 1);
    let held = exchange.check_in(Some(link(2)), None, |_| None);
    assert_eq!(held, ToClose::WithSlot(link(2)), "one link is closed for each login");
    let held = exchange.check_in(Some(link(4)), None, |_| None);
    assert_eq!(held, ToClose::Nothing);
}

#[test]
fn spares_are_offered_again_when_the_states_of_peers_change() {
    let exchange = with_parked_links(4);
    mark_down(&exchange, 2);
    let held = [0, 2].map(|_| exchange.offer(link(11)).map(|old| old.number));
    assert_eq!(held, [Some(0), Some(2)]);
    assert_eq!(exchange.offer(link(13)), None, "a spare");
    assert_eq!(exchange.offer_spares(), [], "the spare stays");
    exchange.check_in(Some(link(4)), None, |_| None);
    let replaced: Vec<_> = exchange.offer_spares().iter().map(|link| link.number).collect();
    assert!(replaced.is_empty() || replaced == [4], "{replaced:?}");
    assert_eq!(exchange.offer(link(6)).map(|link| link.number), Some(6), "its peer is down");
}

#[test]
fn borrowed_link_is_not_lent_and_comes_back_alive_or_evicted() {
    let exchange = exchange();
    for number in 0..4 {
        let reservation = add_slot(&exchange, number);
        let link = take(&exchange, Some(reservation));
        assert_eq!(exchange.check_in(Some(link), None, |_| None), ToClose::Nothing);
    }
    assert!(exchange.borrow(0, |_| false).is_none(), "only a suitable link is borrowed");
    let borrowed = exchange.borrow(0, |link| link.number == 2).expect("the link is parked");
    assert_eq!(exchange.count(), 4, "a borrowed link still counts");
    let mut lent =
        [(); 3].map(|()| exchange.check_out(None, None, later()).expect("three are left"));
    lent.sort_by_key(|link| link.number);
    assert_eq!(lent.map(|link| link.number), [0, 1, 3]);

    // The last empty slot waits for the borrowed link.
    thread::scope(|scope| {
        let slot = scope.spawn(|| take(&exchange, None));
        let returned = borrowed;
        exchange.give_back(returned, true);
        let link = slot.join().expect("no panic");
        assert_eq!(link.number, 2, "an evicted link is better than none");
        assert_eq!(exchange.check_in(Some(link), None, |_| None), ToClose::Nothing);
    });
    let dead = exchange.borrow(0, |_| true).expect("the link is parked again");
    thread::scope(|scope| {
        let slot = scope.spawn(|| exchange.check_out(None, None, later()));
        exchange.give_back(dead, true);
        assert!(slot.join().expect("no panic").is_none(), "a dead link is not checked out");
    });
    assert_eq!(exchange.drop_slot(None).map(|link| link.number), Some(2));
    assert_eq!(exchange.count(), 0);
}

#[test]
fn slot_that_waits_for_a_borrowed_link_gets_another_one_that_comes() {
    type Comes = fn(&Exchange<TestLink>);
    let comes: [(&str, Comes); 2] = [
        ("a new link", |exchange| {
            assert!(exchange.offer(link(2)).is_some(), "the link of an unusable peer is replaced");
        }),
        ("a peer is usable again", |exchange| set_usable(exchange, 3, [true; PEERS])),
    ];
    for (case, comes) in comes {
        let exchange = exchange();
        for number in 0..2 {
            let reservation = add_slot(&exchange, number);
            assert_eq!(exchange.check_in(None, Some(reservation), |_| None), ToClose::Nothing);
        }
        let borrowed = exchange.borrow(0, |_| true).expect("the link is parked");
        set_usable(&exchange, 2, [true, false]);
        let (send, received) = crossbeam_channel::bounded(1);
        thread::scope(|scope| {
            let check_out = || send.send(exchange.check_out(None, None, later()));
            scope.spawn(check_out);
            let early = received.recv_timeout(Duration::from_millis(50));
            assert!(early.is_err(), "{case}: no live link is here");
            comes(&exchange);
            let woken = received.recv_timeout(Duration::from_secs(10));
            exchange.give_back(borrowed, true);
            let lent = woken.expect(case).expect("a live link");
            assert_ne!(lent.number, 0, "{case}");
        });
    }
}

/// Links above the limit of their peer are marked for replacement, and their sessions end in place.
#[test]
fn links_over_a_limit_are_marked_and_their_sessions_end_in_place() {
    let exchange = exchange();
    // The customizer does not use its connection, so the reservation of the last one ends.
    let reservations = [0, 1, 2, 4, 6].map(|number| add_slot(&exchange, number));
    let first = exchange.check_out(None, Some(reservations[4]), later());
    exchange.check_in(first, None, |_| None);
    let lend = || std::iter::from_fn(|| exchange.check_out(None, None, later()));
    let mut lent: Vec<_> = lend().collect();
    lent.sort_unstable_by_key(|link| link.number);
    for link in lent {
        let link = TestLink { has_socket: link.number != 0, ..link };
        exchange.check_in(Some(link), None, |_| None);
    }
    assert_eq!(exchange.shut_down_marked(0, 2), 0, "no link is marked");
    exchange.mark_for_replacement(0, 3, CloseReason::OverLimit);
    exchange.mark_for_replacement(7, 1, CloseReason::OverLimit);
    assert_eq!(
        exchange.shut_down_marked(0, 5),
        2,
        "those that are marked, and whose sockets are known"
    );
    assert_eq!(exchange.shut_down_marked(7, 1), 0, "a peer without a queue has no link");
    assert_eq!(exchange.count(), 5, "a slot whose session has ended keeps its link");
    let mut lent: Vec<_> = lend().map(|link| link.number).collect();
    lent.sort_unstable();
    assert_eq!(lent, [0, 1, 6], "an ended session is not lent");
    assert!(
        exchange.offer(link(8)).is_some_and(|old| [2, 4].contains(&old.number)),
        "and is replaced"
    );
}

/// Sets which peers are slow, in the same order.
fn set_slow(exchange: &Exchange<TestLink>, epoch: u64, slow: [bool; PEERS]) -> Vec<PeerView> {
    let view = |is_slow| {
        let view = PeerView { activity: Arc::default(), is_usable: true, share: 1, tier: 0 };
        view.activity.set_slow(is_slow);
        view
    };
    let views = slow.map(view).to_vec();
    exchange.update_peers(epoch, || views.clone());
    views
}

#[test]
fn slow_peer_gets_its_trials_and_what_the_others_have_no_link_for() {
    let exchange = with_parked_links(4);
    let views = set_slow(&exchange, 2, [true, false]);
    let check_out = || exchange.check_out(None, None, later()).expect("links are parked");
    for _ in 0..16 {
        let link = check_out();
        assert_eq!(link.peer, 1, "the other peer is preferred");
        exchange.check_in(Some(link), None, |_| None);
    }
    views[0].activity.set_trial_due();
    let trial = check_out();
    assert_eq!(trial.peer, 0, "one checkout goes to the slow peer");
    let others = [check_out(), check_out()].map(|link| link.peer);
    assert_eq!(others, [1, 1], "and no more");
    assert_eq!(check_out().peer, 0, "when no other link is left, the slow peer is used");

    exchange.check_in(Some(trial), None, |_| None);
    views[0].activity.set_trial_due();
    views[0].activity.set_slow(false);
    assert!(!views[0].activity.take_trial(), "a peer that is not slow has no trials");
}

#[test]
fn slow_peer_is_preferred_to_an_unresponsive_one() {
    let exchange = with_parked_links(4);
    let views = set_slow(&exchange, 2, [true, false]);
    let link_state = Arc::default();
    views[1].activity.add_link(Arc::clone(&link_state));
    link_state.query_begins(start(), false);
    views[1].activity.update_unresponsive(None, later());
    let taken = exchange.check_out(None, None, later()).map(|link| link.peer);
    assert_eq!(taken, Some(0));
}
