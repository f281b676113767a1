//! The state of one link, known without a request to its server: the query that runs, what its errors have
//! shown, its socket.
//!
//! diesel's events say when a query begins and ends, and are not brackets. A query with a custom type of
//! PostgreSQL begins another one, which looks the type up. A query whose values cannot be converted begins
//! and never ends. `COPY TO` ends before its data has come. So an event only says that something *may* be
//! running. What matters is whether the thread waits for the server: the kernel shows for what a thread
//! waits, and the checker asks it about each query that is not short
//! ([`Activity::inspect`](super::activity::Activity::inspect)).

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::peers::checkout_times::{Checkout, micros};
use crate::peers::session_sign::SessionSign;
use crate::peers::transaction_record::TransactionRecord;
use crate::socket::{Socket, Thread};

/// The state of one link, known without a request to its server.
#[derive(Debug, Default)]
pub(crate) struct LinkState {
    /// When the query began that is running now, as far as diesel's events tell.
    pub(super) running_since: AtomicInstant,
    /// The number of queries that have begun and not ended: one inside the other.
    depth: AtomicU32,
    /// Whether the link is checked out. Other queries are those of the login and of the pool's customizer.
    is_checked_out: AtomicBool,
    /// When the first query of this checkout began.
    checkout_began: AtomicInstant,
    /// Whether a query of this checkout has failed.
    checkout_failed: AtomicBool,
    /// The total duration in nanoseconds of the queries of this checkout that have ended.
    query_nanos: AtomicU64,
    /// The thread of the last query. Zero if it is not known, or if the query may be run by another one.
    thread: AtomicU32,
    /// The value of `running_since` for which the last inspection has found that the thread does not wait for
    /// the server.
    not_waiting: AtomicInstant,
    /// Whether the last query is PostgreSQL's `COPY`.
    copying: AtomicBool,
    /// Whether the running query is a ping of this crate.
    pinging: AtomicBool,
    /// Whether an error has shown that the connection is lost.
    lost: AtomicBool,
    /// Whether the session has to answer a ping before it serves another checkout: a query has left its
    /// protocol in an unknown state, or has claimed a loss that the socket does not show.
    session_in_doubt: AtomicBool,
    /// Whether the server has to show before another checkout that it still takes the work that it is to
    /// get: it has refused a query of this link, or of another link of its peer.
    server_in_doubt: AtomicBool,
    pub(crate) record: TransactionRecord,
    /// The table that this link has used last as a ledger.
    pub(crate) ledger_table: Mutex<Option<LinkLedgerTable>>,
    /// The system identifier of the PostgreSQL server, once its transaction ids were found suitable as a ledger.
    pub(crate) system_identifier: OnceLock<Arc<str>>,
    /// Read before the first transaction with a ledger.
    pub(crate) session_sign: OnceLock<SessionSign>,
    socket: OnceLock<Arc<Socket>>,
}

/// A table that was found suitable as a ledger on this link.
#[derive(Debug)]
pub(crate) struct LinkLedgerTable {
    /// The name of the table, as it was given.
    pub(crate) name: String,
    /// The same with its schema.
    pub(crate) qualified: String,
    /// The name of the table's history.
    pub(crate) history: Arc<str>,
}

impl LinkState {
    /// Records that a query begins. With `in_this_thread`, it is this thread that waits for the server.
    pub(crate) fn query_begins(&self, now: Instant, in_this_thread: bool) {
        self.running_since.set(now);
        // Only the thread of the query writes these.
        let is_checked_out = self.is_checked_out.load(Ordering::Relaxed);
        if is_checked_out && !self.checkout_began.is_set() && !self.is_pinging() {
            self.checkout_began.set(now);
        }
        self.depth.store(self.depth.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.thread.store(if in_this_thread { current_thread() } else { 0 }, Ordering::Relaxed);
    }

    /// Records that no query is running.
    pub(crate) fn clear_running(&self) {
        self.running_since.clear();
        self.depth.store(0, Ordering::Relaxed);
    }

    /// Records that the last query that began has ended, and returns how long it took. If another one
    /// began before it, that one may be running now. Where that cannot be inspected, it is not.
    pub(crate) fn query_ends(&self, now: Instant) -> Duration {
        let began = self.running_since.get();
        let depth = self.depth.load(Ordering::Relaxed).saturating_sub(1);
        let can_be_inspected = self.thread.load(Ordering::Relaxed) != 0 && self.socket().is_some();
        if depth > 0 && can_be_inspected {
            self.depth.store(depth, Ordering::Relaxed);
            self.running_since.set(now);
        } else {
            self.clear_running();
        }
        let took = began.map_or(Duration::ZERO, |began| now.saturating_duration_since(began));
        if self.checkout_began.is_set() && !self.is_pinging() {
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            let total = self.query_nanos.load(Ordering::Relaxed).saturating_add(nanos);
            self.query_nanos.store(total, Ordering::Relaxed);
        }
        took
    }

    /// Records that a query of this checkout has failed.
    pub(crate) fn fail_checkout(&self) {
        if self.checkout_began.is_set() {
            self.checkout_failed.store(true, Ordering::Relaxed);
        }
    }

    /// Records that a checkout begins.
    pub(crate) fn begin_checkout(&self) {
        self.is_checked_out.store(true, Ordering::Relaxed);
    }

    /// Records that a checkout has ended, and returns it, if it made any query.
    pub(crate) fn end_checkout(&self) -> Option<Checkout> {
        self.is_checked_out.store(false, Ordering::Relaxed);
        if !self.checkout_began.is_set() {
            return None;
        }
        let began = self.checkout_began.get()?;
        self.checkout_began.clear();
        let query_time = Duration::from_nanos(self.query_nanos.swap(0, Ordering::Relaxed));
        let has_failed = self.has_checkout_failed();
        self.checkout_failed.store(false, Ordering::Relaxed);
        Some(Checkout { began, query_micros: micros(query_time), has_failed })
    }

    /// Returns the checkout that is running, with its query time until `now`, if it has made any query.
    pub(crate) fn checkout_so_far(&self, now: Instant) -> Option<Checkout> {
        let began = self.checkout_began.get()?;
        let ended = Duration::from_nanos(self.query_nanos.load(Ordering::Relaxed));
        let waiting = self.waiting_since().map(|since| now.saturating_duration_since(since));
        let query_micros = micros(ended + waiting.unwrap_or_default());
        Some(Checkout { began, query_micros, has_failed: self.has_checkout_failed() })
    }

    fn has_checkout_failed(&self) -> bool {
        self.checkout_failed.load(Ordering::Relaxed) || self.is_lost()
    }

    /// Records that the query that has ended goes on sending its data (`COPY TO`). No event will say that
    /// this has ended, so it only counts if it can be inspected.
    pub(crate) fn data_follows(&self, now: Instant) {
        if self.thread.load(Ordering::Relaxed) != 0 && self.socket().is_some() {
            self.running_since.set(now);
        }
    }

    /// Returns when the query began that waits for the server now, as far as is known.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        let since = self.running_since.get();
        since.filter(|_| since != self.not_waiting.get())
    }

    /// Asks the kernel whether the query waits for the server, if the kernel can tell. Returns the answer.
    pub(super) fn inspect(&self) -> bool {
        let Some(since) = self.running_since.get() else { return false };
        let thread = Thread::from_number(self.thread.load(Ordering::Relaxed));
        let is_waiting = thread.zip(self.socket());
        let is_waiting = is_waiting.and_then(|(thread, socket)| socket.is_awaited_by(thread));
        if is_waiting == Some(false) {
            self.not_waiting.set(since);
        } else {
            self.not_waiting.clear();
        }
        is_waiting != Some(false)
    }

    /// Sets whether the query that begins is PostgreSQL's `COPY`, whose data follow after the end of the query.
    pub(crate) fn set_copy(&self, copying: bool) {
        // Only the thread that runs the query reads this.
        self.copying.store(copying, Ordering::Relaxed);
    }

    pub(crate) fn is_copy(&self) -> bool {
        self.copying.load(Ordering::Relaxed)
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

    /// Records that the session has to answer a ping before another checkout.
    pub(crate) fn doubt_session(&self) {
        self.session_in_doubt.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_session_in_doubt(&self) -> bool {
        self.session_in_doubt.load(Ordering::Relaxed)
    }

    /// Records that the server has to be examined before another checkout.
    pub(crate) fn doubt_server(&self) {
        self.server_in_doubt.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_server_in_doubt(&self) -> bool {
        self.server_in_doubt.load(Ordering::Relaxed)
    }

    /// Records that the session works, and, if `examined`, that the server takes its work.
    pub(crate) fn clear_doubts(&self, examined: bool) {
        self.session_in_doubt.store(false, Ordering::Relaxed);
        if examined {
            self.server_in_doubt.store(false, Ordering::Relaxed);
        }
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

/// Returns the number of the calling thread, or zero if it is not known.
fn current_thread() -> u32 {
    thread_local! {
        static NUMBER: Cell<Option<u32>> = const { Cell::new(None) };
    }
    NUMBER.get().unwrap_or_else(|| {
        let number = Thread::current().map_or(0, Thread::number);
        NUMBER.set(Some(number));
        number
    })
}

/// An optional instant that is read and written without a lock.
#[derive(Debug, Default)]
pub(super) struct AtomicInstant(AtomicU64);

/// The instant from which an [`AtomicInstant`] counts.
#[expect(clippy::disallowed_methods, reason = "any instant will do as the origin")]
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

impl AtomicInstant {
    pub(super) fn get(&self) -> Option<Instant> {
        let nanos = self.0.load(Ordering::Relaxed);
        (nanos != 0).then(|| *ORIGIN + Duration::from_nanos(nanos))
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    pub(super) fn set(&self, at: Instant) {
        let nanos = at.saturating_duration_since(*ORIGIN).as_nanos();
        self.0.store(u64::try_from(nanos).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    }

    pub(super) fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn query_time_of_a_checkout_is_that_of_its_queries_without_pings() {
        // After the origin of the stored instants, which is that of their first use.
        let start = Instant::now() + Duration::from_secs(1);
        let at = |millis| start + Duration::from_millis(millis);
        let millis = |millis| u32::try_from(1000 * millis).expect("a short time");
        let link_state = LinkState::default();
        link_state.query_begins(at(1), false);
        link_state.fail_checkout();
        link_state.query_ends(at(2));
        assert_eq!(link_state.checkout_so_far(at(2)), None, "a query of no checkout");
        link_state.begin_checkout();
        assert_eq!(link_state.end_checkout(), None, "a checkout without a query");
        link_state.begin_checkout();
        link_state.set_pinging(true);
        link_state.query_begins(at(1), false);
        link_state.query_ends(at(5));
        link_state.set_pinging(false);
        assert_eq!(link_state.checkout_so_far(at(6)), None, "a ping is no query");
        for (begin, end) in [(10, 13), (20, 21)] {
            link_state.query_begins(at(begin), false);
            link_state.query_ends(at(end));
        }
        link_state.query_begins(at(30), false);
        let checkout = |began, query_micros| Checkout { began, query_micros, has_failed: false };
        let so_far = checkout(at(10), millis(3 + 1 + 2));
        assert_eq!(link_state.checkout_so_far(at(32)), Some(so_far));
        link_state.query_ends(at(40));
        let whole = checkout(at(10), millis(3 + 1 + 10));
        assert_eq!(link_state.end_checkout(), Some(whole));
        assert_eq!(link_state.end_checkout(), None, "it has ended");
        for fails in [true, false] {
            link_state.begin_checkout();
            link_state.query_begins(at(50), false);
            if fails {
                link_state.fail_checkout();
            }
            link_state.query_ends(at(51));
            let expected = Checkout { has_failed: fails, ..checkout(at(50), millis(1)) };
            assert_eq!(link_state.checkout_so_far(at(52)), Some(expected));
            assert_eq!(link_state.end_checkout(), Some(expected));
        }
    }
}
