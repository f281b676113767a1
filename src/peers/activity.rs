//! Passive health signals of a peer, gathered without a request to its server: queries that run, queries
//! that have ended, and data that has come.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::fault::{Fault, LoginFailure};
use crate::panics::lock;
use crate::peers::checkout_times::{Checkout, CheckoutTimes};
use crate::peers::counters::PeerCounters;
use crate::peers::link_state::{AtomicInstant, LinkState};

/// The time after which a peer counts as unresponsive: a query has been running for this long and
/// the peer has answered nothing since it began. This is many times what most queries take, and a
/// short wait for the thread that runs the query.
const UNRESPONSIVE_AFTER: Duration = Duration::from_millis(100);

/// The number of successful queries in a row after which a peer no longer counts as short of resources.
const SUCCESSES_AFTER_SHORTAGE: usize = 16;

/// A query has been running for a while and the peer has answered nothing since it began.
const UNRESPONSIVE: u8 = 1;
/// The peer is slow, and other peers are preferred.
const SLOW: u8 = 2;
/// One checkout is to go to the slow peer all the same, to find out whether it is still slow.
const TRIAL_DUE: u8 = 4;

/// The activity of one peer. Threads that run queries write the values without a lock; the checker
/// and the choice of a peer read them. Nothing else depends on when a new value becomes visible, so
/// relaxed ordering is enough.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Links that are checked out.
    in_use: AtomicUsize,
    /// When the last query ended.
    last_query_end: AtomicInstant,
    /// When the last query found its connection lost.
    last_loss: AtomicInstant,
    /// When data last came from the server on any link. Only known while a query waits for long.
    last_received: AtomicInstant,
    /// Why other peers are preferred, in one value that each choice of a peer reads.
    avoidance: AtomicU8,
    /// How many queries have to succeed until the peer no longer counts as short of resources.
    shortage: AtomicUsize,
    /// Whether the peer is marked down, for those who do not hold the lock of the set.
    down: AtomicBool,
    /// Whether the peer is out of service, for the same.
    out_of_service: AtomicBool,
    /// How many logins have failed that were to go on with the next address of the name.
    address_turn: AtomicUsize,
    pub(crate) counters: PeerCounters,
    pub(crate) checkout_times: CheckoutTimes,
    /// Every link of the peer, in use or idle.
    links: Mutex<Vec<Arc<LinkState>>>,
}

impl Activity {
    /// Returns how many links are checked out.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Increments or decrements the number of links that are checked out.
    pub(crate) fn count_in_use(&self, in_use: bool) {
        if in_use {
            self.in_use.fetch_add(1, Ordering::Relaxed);
        } else {
            self.in_use.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Sets whether the peer is marked down, and whether it is out of service.
    pub(crate) fn set_state(&self, down: bool, out_of_service: bool) {
        self.down.store(down, Ordering::Relaxed);
        self.out_of_service.store(out_of_service, Ordering::Relaxed);
    }

    /// Whether the peer is marked down.
    pub(crate) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// Whether the peer is draining, drained or removed.
    pub(crate) fn is_out_of_service(&self) -> bool {
        self.out_of_service.load(Ordering::Relaxed)
    }

    /// Whether the links of the peer are to be replaced by links to other peers.
    pub(crate) fn must_replace_links(&self) -> bool {
        self.is_down() || self.is_out_of_service()
    }

    /// Returns the turn of the next login among the addresses of the peer's name.
    pub(crate) fn address_turn(&self) -> usize {
        self.address_turn.load(Ordering::Relaxed)
    }

    /// Records a failed login. The next address has its turn if this one did not answer. Once the turns have
    /// begun, it also does if the peer is down: the client library tries no other address then.
    pub(crate) fn login_failed(&self, failure: &LoginFailure) {
        let is_over = match failure {
            LoginFailure::Unanswered(_) | LoginFailure::Held(_) => true,
            failure => self.address_turn() > 0 && failure.fault() == Some(Fault::PeerDown),
        };
        if is_over {
            self.address_turn.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Registers a link to this peer.
    pub(crate) fn add_link(&self, link: Arc<LinkState>) {
        lock(&self.links).push(link);
    }

    /// Unregisters a link to this peer.
    pub(crate) fn remove_link(&self, link: &Arc<LinkState>) {
        let mut links = lock(&self.links);
        links.retain(|other| !Arc::ptr_eq(other, link));
    }

    /// Returns how many links have a session with the server, as far as is known.
    pub(crate) fn open_sessions(&self) -> usize {
        lock(&self.links).iter().filter(|link| !link.is_lost()).count()
    }

    /// Records that the server has answered a query.
    pub(crate) fn query_ended(&self, now: Instant) {
        self.last_query_end.set(now);
        if self.is_unresponsive() {
            self.set_avoidance(UNRESPONSIVE, false);
        }
    }

    /// Records that a query failed because the server is short of something. Returns whether that is news.
    pub(crate) fn shortage_begins(&self) -> bool {
        self.shortage.swap(SUCCESSES_AFTER_SHORTAGE, Ordering::Relaxed) == 0
    }

    /// Records that a query has succeeded. Returns whether that ends a shortage.
    pub(crate) fn query_succeeded(&self) -> bool {
        let left = self.shortage.load(Ordering::Relaxed);
        if left > 0 {
            // A concurrent update may be lost, which changes the number a little.
            self.shortage.store(left - 1, Ordering::Relaxed);
        }
        left == 1
    }

    /// Whether queries fail because the server is short of something. Such a failure is fast, so the peer
    /// seems to be idle.
    pub(crate) fn is_short_of_resources(&self) -> bool {
        self.shortage.load(Ordering::Relaxed) > 0
    }

    /// Returns when the last query ended.
    pub(crate) fn last_query_end(&self) -> Option<Instant> {
        self.last_query_end.get()
    }

    /// Records that a query has found its connection lost.
    pub(crate) fn link_lost(&self, now: Instant) {
        self.last_loss.set(now);
    }

    /// Returns when the last query found its connection lost.
    pub(crate) fn last_loss(&self) -> Option<Instant> {
        self.last_loss.get()
    }

    /// Returns when the server last ended a query or, while queries wait for long, sent anything.
    pub(crate) fn last_answer(&self) -> Option<Instant> {
        self.last_query_end.get().max(self.last_received.get())
    }

    /// Returns when the oldest query began that waits for the server. With `abortable_only`, only links
    /// count whose socket is known, because only these can be aborted.
    pub(crate) fn oldest_query(&self, abortable_only: bool) -> Option<Instant> {
        let links = lock(&self.links);
        let links = links.iter().filter(|link| !abortable_only || link.socket().is_some());
        links.filter_map(|link| link.waiting_since()).min()
    }

    /// Returns the links whose current query began at `at` or earlier, and waits for the server.
    pub(crate) fn waiting_since(&self, at: Instant) -> Vec<Arc<LinkState>> {
        let links = lock(&self.links);
        let is_old = |link: &&Arc<LinkState>| link.waiting_since().is_some_and(|since| since <= at);
        links.iter().filter(is_old).cloned().collect()
    }

    /// Has the server of every link examined before its next checkout, because one of them leads to a server
    /// that cannot be used.
    pub(crate) fn doubt_servers(&self) {
        lock(&self.links).iter().for_each(|link| link.doubt_server());
    }

    /// Asks the kernel which of the queries that are not short wait for the server, and when anything last
    /// came from it. Takes some microseconds for each query, so the caller holds no lock.
    pub(crate) fn inspect(&self, now: Instant) {
        let is_long = |link: &LinkState| {
            let since = link.running_since.get();
            since.is_some_and(|at| now.saturating_duration_since(at) > UNRESPONSIVE_AFTER)
        };
        let links = {
            let links = lock(&self.links);
            if !links.iter().any(|link| is_long(link)) {
                return;
            }
            links.clone()
        };
        let mut is_any_waiting = false;
        for link in links.iter().filter(|link| is_long(link)) {
            is_any_waiting |= link.inspect();
        }
        let ages = links.iter().filter_map(|link| link.socket()?.since_received());
        if let (true, Some(age)) = (is_any_waiting, ages.min()) {
            self.last_received.set(now.checked_sub(age).unwrap_or(now));
        }
    }

    /// Keeps the kernel from ending links whose query began at `at` or earlier and whose server does not read
    /// because it is busy. It reads later.
    pub(crate) fn spare_closed_windows(&self, at: Instant) {
        for link in lock(&self.links).iter() {
            let is_long = link.running_since.get().is_some_and(|since| since <= at);
            if let Some(socket) =
                link.socket().filter(|socket| is_long || socket.spares_closed_window())
            {
                socket.spare_closed_window();
            }
        }
    }

    /// Updates whether the peer is unresponsive: a query has been waiting for longer than
    /// [`UNRESPONSIVE_AFTER`], and began after the peer last `answered`. Returns whether any query
    /// may be running.
    pub(crate) fn update_unresponsive(&self, answered: Option<Instant>, now: Instant) -> bool {
        let links = lock(&self.links);
        let hangs = |since: Instant| {
            now.saturating_duration_since(since) > UNRESPONSIVE_AFTER
                && answered.is_none_or(|answered| answered < since)
        };
        let mut waiting = links.iter().filter_map(|link| link.waiting_since());
        self.set_avoidance(UNRESPONSIVE, waiting.any(hangs));
        links.iter().any(|link| link.running_since.get().is_some())
    }

    /// Whether a query has been running for a while and the peer has answered nothing since it
    /// began.
    pub(crate) fn is_unresponsive(&self) -> bool {
        self.avoidance.load(Ordering::Relaxed) & UNRESPONSIVE != 0
    }

    /// Whether no other peer is preferred to this one.
    pub(crate) fn is_preferred(&self) -> bool {
        // A trial that is due says nothing about it.
        self.avoidance.load(Ordering::Relaxed) & !TRIAL_DUE == 0
    }

    /// Sets whether other peers are preferred because this one is slow.
    pub(crate) fn set_slow(&self, slow: bool) {
        self.set_avoidance(SLOW, slow);
        if !slow {
            self.set_avoidance(TRIAL_DUE, false);
        }
    }

    /// Whether other peers are preferred because this one is slow.
    pub(crate) fn is_slow(&self) -> bool {
        self.avoidance.load(Ordering::Relaxed) & SLOW != 0
    }

    /// Has one checkout go to this slow peer.
    pub(crate) fn set_trial_due(&self) {
        self.set_avoidance(TRIAL_DUE, true);
    }

    /// Whether one checkout is to go to this slow peer. The first caller to get `true` sends it there.
    pub(crate) fn take_trial(&self) -> bool {
        let is_due = |value: u8| value & TRIAL_DUE != 0;
        is_due(self.avoidance.load(Ordering::Relaxed))
            && is_due(self.avoidance.fetch_and(!TRIAL_DUE, Ordering::Relaxed))
    }

    fn set_avoidance(&self, reason: u8, applies: bool) {
        let value = self.avoidance.load(Ordering::Relaxed);
        if applies && value & reason == 0 {
            self.avoidance.fetch_or(reason, Ordering::Relaxed);
        } else if !applies && value & reason != 0 {
            self.avoidance.fetch_and(!reason, Ordering::Relaxed);
        }
    }

    /// Returns the checkouts that are running and have made a query, with their query times until `now`.
    pub(crate) fn running_checkouts(&self, now: Instant) -> Vec<Checkout> {
        lock(&self.links).iter().filter_map(|link| link.checkout_so_far(now)).collect()
    }
}
