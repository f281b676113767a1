//! What shows, without asking, whether a peer lives: queries that run there, and queries that end.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::login::socket::Socket;
use crate::panics::lock;
use crate::peers::counters::PeerCounters;

/// A peer is hesitant when a query has been running there for this long and it has not answered
/// anything since: many times what most queries take, and little for a thread to lose.
const UNRESPONSIVE_AFTER: Duration = Duration::from_millis(100);

/// The pulse of one peer. The figures are written by whoever runs queries, without a lock, and read
/// by the checker and by who chooses a peer: nothing else depends on when they are seen.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Links that are checked out.
    in_use: AtomicUsize,
    /// When a query ended last.
    ended: AtomicInstant,
    unresponsive: AtomicBool,
    pub(crate) counters: PeerCounters,
    links: Mutex<Vec<Arc<LinkState>>>,
}

/// What is known about one link without asking its server.
#[derive(Debug, Default)]
pub(crate) struct LinkState {
    /// Since when the query has been running that is running now.
    running: AtomicInstant,
    /// Whether that is a ping of ours.
    pinging: AtomicBool,
    lost: AtomicBool,
    socket: OnceLock<Arc<Socket>>,
}

impl Activity {
    /// How many links are checked out.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    /// One link more is checked out, or one less.
    pub(crate) fn count_in_use(&self, in_use: bool) {
        if in_use {
            self.in_use.fetch_add(1, Ordering::Relaxed);
        } else {
            self.in_use.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A link to this peer is there, and one is there no more.
    pub(crate) fn add(&self, link: Arc<LinkState>) {
        lock(&self.links).push(link);
    }

    pub(crate) fn remove(&self, link: &Arc<LinkState>) {
        let mut links = lock(&self.links);
        links.retain(|other| !Arc::ptr_eq(other, link));
    }

    /// How many links have a session with the server, as far as is known.
    pub(crate) fn open(&self) -> usize {
        lock(&self.links).iter().filter(|link| !link.is_lost()).count()
    }

    /// A query has ended with the server's answer.
    pub(crate) fn query_ended(&self, now: Instant) {
        self.ended.set(now);
        if self.is_unresponsive() {
            self.unresponsive.store(false, Ordering::Relaxed);
        }
    }

    /// When a query ended last.
    pub(crate) fn ended(&self) -> Option<Instant> {
        self.ended.get()
    }

    /// Since when the query has been running that has been running longest; of those only that could be
    /// cut off, if so wanted.
    pub(crate) fn oldest(&self, can_be_cut: bool) -> Option<Instant> {
        let links = lock(&self.links);
        let links = links.iter().filter(|link| !can_be_cut || link.socket().is_some());
        links.filter_map(|link| link.running.get()).min()
    }

    /// Links whose query has been running since before `begun`.
    pub(crate) fn running_since(&self, begun: Instant) -> Vec<Arc<LinkState>> {
        let links = lock(&self.links);
        let is_old =
            |link: &&Arc<LinkState>| link.running.get().is_some_and(|since| since <= begun);
        links.iter().filter(is_old).cloned().collect()
    }

    /// Looks whether it is hesitant: whether a query has been running for a while that began after the
    /// peer has last answered anything. Says whether any query is running there.
    pub(crate) fn look(&self, answered: Option<Instant>, now: Instant) -> bool {
        let links = lock(&self.links);
        let running = || links.iter().filter_map(|link| link.running.get());
        let hangs = |since: Instant| {
            now.saturating_duration_since(since) > UNRESPONSIVE_AFTER
                && answered.is_none_or(|answered| answered < since)
        };
        self.unresponsive.store(running().any(hangs), Ordering::Relaxed);
        running().next().is_some()
    }

    /// Whether a query has been running there for a while, and none has ended since.
    pub(crate) fn is_unresponsive(&self) -> bool {
        self.unresponsive.load(Ordering::Relaxed)
    }
}

impl LinkState {
    /// A query begins.
    pub(crate) fn query_begins(&self, now: Instant) {
        self.running.set(now);
    }

    /// No query is running.
    pub(crate) fn rest(&self) {
        self.running.clear();
    }

    /// The query that was running has ended: how long it took.
    pub(crate) fn query_ends(&self, now: Instant) -> Duration {
        let began = self.running.get();
        self.rest();
        began.map_or(Duration::ZERO, |began| now.saturating_duration_since(began))
    }

    /// What is run next is a ping of ours, or the application's queries again.
    pub(crate) fn set_pinging(&self, pinging: bool) {
        // Only read by who runs it, in this thread.
        self.pinging.store(pinging, Ordering::Relaxed);
    }

    pub(crate) fn is_pinging(&self) -> bool {
        self.pinging.load(Ordering::Relaxed)
    }

    /// Whether an error on this link said that it is gone.
    pub(crate) fn is_lost(&self) -> bool {
        // Whoever asks holds the connection, so the query that set it was in this thread or
        // was handed over with the connection: no ordering beyond that is needed.
        self.lost.load(Ordering::Relaxed)
    }

    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// The link's socket was found.
    pub(crate) fn set_socket(&self, socket: Arc<Socket>) {
        let _ = self.socket.set(socket);
    }

    pub(crate) fn socket(&self) -> Option<&Arc<Socket>> {
        self.socket.get()
    }

    /// Ends the link where it is: whoever waits on it gets an error. Not without its socket.
    pub(crate) fn shut_down(&self) -> bool {
        let Some(socket) = self.socket() else { return false };
        self.lose();
        socket.shut_down();
        true
    }
}

/// An instant that is read and written without a lock, or none.
#[derive(Debug, Default)]
struct AtomicInstant(AtomicU64);

/// What moments are counted from.
#[expect(clippy::disallowed_methods, reason = "any instant will do as the origin")]
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

impl AtomicInstant {
    fn get(&self) -> Option<Instant> {
        let nanos = self.0.load(Ordering::Relaxed);
        (nanos != 0).then(|| *ORIGIN + Duration::from_nanos(nanos))
    }

    fn set(&self, at: Instant) {
        let nanos = at.saturating_duration_since(*ORIGIN).as_nanos();
        self.0.store(u64::try_from(nanos).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    }

    fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}
