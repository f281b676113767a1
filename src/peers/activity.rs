//! Passive health signals of a peer, gathered without a request to its server: queries that run and
//! queries that have ended.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::fault::{Fault, LoginFailure};
use crate::panics::lock;
use crate::peers::counters::PeerCounters;
use crate::socket::Socket;

/// The time after which a peer counts as unresponsive: a query has been running for this long and
/// the peer has answered nothing since it began. This is many times what most queries take, and a
/// short wait for the thread that runs the query.
const UNRESPONSIVE_AFTER: Duration = Duration::from_millis(100);

/// The activity of one peer. Threads that run queries write the values without a lock; the checker
/// and the choice of a peer read them. Nothing else depends on when a new value becomes visible, so
/// relaxed ordering is enough.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Links that are checked out.
    in_use: AtomicUsize,
    /// When the last query ended.
    last_query_end: AtomicInstant,
    unresponsive: AtomicBool,
    /// Whether the peer is marked down, for those who do not hold the lock of the set.
    down: AtomicBool,
    /// How many logins have failed that were to go on with the next address of the name.
    address_turn: AtomicUsize,
    pub(crate) counters: PeerCounters,
    /// Every link of the peer, in use or idle.
    links: Mutex<Vec<Arc<LinkState>>>,
}

/// The state of one link, known without a request to its server.
#[derive(Debug, Default)]
pub(crate) struct LinkState {
    /// When the query began that is running now.
    running_since: AtomicInstant,
    /// Whether the running query is a ping of this crate.
    pinging: AtomicBool,
    /// Whether an error has shown that the connection is lost.
    lost: AtomicBool,
    socket: OnceLock<Arc<Socket>>,
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

    /// Sets whether the peer is marked down.
    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    /// Whether the peer is marked down.
    pub(crate) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// Returns the turn of the next login among the addresses of the peer's name.
    pub(crate) fn address_turn(&self) -> usize {
        self.address_turn.load(Ordering::Relaxed)
    }

    /// Records a failed login. The next address has its turn if this one did not answer. Once the turns have
    /// begun, it also does if the peer is down: the client library tries no other address then.
    pub(crate) fn login_failed(&self, failure: &LoginFailure) {
        let is_over = match failure {
            LoginFailure::Unanswered(_) => true,
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
            self.unresponsive.store(false, Ordering::Relaxed);
        }
    }

    /// Returns when the last query ended.
    pub(crate) fn last_query_end(&self) -> Option<Instant> {
        self.last_query_end.get()
    }

    /// Returns when the oldest running query began. With `abortable_only`, only links count whose
    /// socket is known, because only these can be aborted.
    pub(crate) fn oldest_query(&self, abortable_only: bool) -> Option<Instant> {
        let links = lock(&self.links);
        let links = links.iter().filter(|link| !abortable_only || link.socket().is_some());
        links.filter_map(|link| link.running_since.get()).min()
    }

    /// Returns the links whose current query began at `at` or earlier.
    pub(crate) fn running_since(&self, at: Instant) -> Vec<Arc<LinkState>> {
        let links = lock(&self.links);
        let is_old =
            |link: &&Arc<LinkState>| link.running_since.get().is_some_and(|since| since <= at);
        links.iter().filter(is_old).cloned().collect()
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

    /// Updates whether the peer is unresponsive: a query has been running for longer than
    /// [`UNRESPONSIVE_AFTER`], and began after the peer last `answered`. Returns whether any query
    /// is running.
    pub(crate) fn update_unresponsive(&self, answered: Option<Instant>, now: Instant) -> bool {
        let links = lock(&self.links);
        let running = || links.iter().filter_map(|link| link.running_since.get());
        let hangs = |since: Instant| {
            now.saturating_duration_since(since) > UNRESPONSIVE_AFTER
                && answered.is_none_or(|answered| answered < since)
        };
        self.unresponsive.store(running().any(hangs), Ordering::Relaxed);
        running().next().is_some()
    }

    /// Whether a query has been running for a while and the peer has answered nothing since it
    /// began.
    pub(crate) fn is_unresponsive(&self) -> bool {
        self.unresponsive.load(Ordering::Relaxed)
    }
}

impl LinkState {
    /// Records that a query begins.
    pub(crate) fn query_begins(&self, now: Instant) {
        self.running_since.set(now);
    }

    /// Records that no query is running.
    pub(crate) fn clear_running(&self) {
        self.running_since.clear();
    }

    /// Records that the running query has ended, and returns how long it took.
    pub(crate) fn query_ends(&self, now: Instant) -> Duration {
        let began = self.running_since.get();
        self.clear_running();
        began.map_or(Duration::ZERO, |began| now.saturating_duration_since(began))
    }

    /// Sets whether the next queries are pings of this crate or queries of the application.
    pub(crate) fn set_pinging(&self, pinging: bool) {
        // Only the thread that runs the query reads this, and it is the current one.
        self.pinging.store(pinging, Ordering::Relaxed);
    }

    pub(crate) fn is_pinging(&self) -> bool {
        self.pinging.load(Ordering::Relaxed)
    }

    /// Whether an error on this link has shown that the connection is lost.
    pub(crate) fn is_lost(&self) -> bool {
        // The reader holds the connection. The query that set the flag ran in this thread, or the
        // flag was handed over together with the connection. So no stronger ordering is needed.
        self.lost.load(Ordering::Relaxed)
    }

    /// Marks the connection as lost.
    pub(crate) fn mark_lost(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// Sets the socket of the link.
    pub(crate) fn set_socket(&self, socket: Arc<Socket>) {
        let _ = self.socket.set(socket);
    }

    pub(crate) fn socket(&self) -> Option<&Arc<Socket>> {
        self.socket.get()
    }

    /// Shuts the link's socket down, so that a thread that waits for an answer gets an error.
    /// Returns `false` without an effect if the socket is not known.
    pub(crate) fn shut_down(&self) -> bool {
        let Some(socket) = self.socket() else { return false };
        self.mark_lost();
        socket.shut_down();
        true
    }
}

/// An optional instant that is read and written without a lock.
#[derive(Debug, Default)]
struct AtomicInstant(AtomicU64);

/// The instant from which an [`AtomicInstant`] counts.
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
