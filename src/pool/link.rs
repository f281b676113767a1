//! One physical connection of the pool.

use std::time::{Duration, Instant};

use diesel::connection::{DynInstrumentation, TransactionManager};
use diesel::r2d2::R2D2Connection;

use crate::deadlines::Ticket;
use crate::login::dial::Opened;
use crate::login::observer::{LinkMonitor, Observer};
use crate::login::session::Session;
use crate::panics::catch_panic;
use crate::peers::link_guard::LinkGuard;
use crate::pool::exchange::Parkable;

/// A diesel connection with its guard and its state.
#[derive(Debug)]
pub(crate) struct Link<C> {
    // Dropped before `guard`, so that the connection is closed before it is no longer counted.
    pub(crate) conn: C,
    monitor: LinkMonitor,
    pub(crate) guard: LinkGuard,
    created_at: Instant,
    /// The time from which the link is too old.
    expires_at: Instant,
    /// The time at which the link became idle, and was last known to be alive.
    idle_since: Instant,
    /// Whether the link's queries are observed. The application may have replaced the observer.
    is_observed: bool,
}

impl<C: R2D2Connection> Link<C> {
    /// Creates a link from a new session, and counts it as a link of its peer.
    pub(crate) fn new(opened: Opened<C>) -> Self {
        // The guard is declared first, so that it is dropped last.
        let Opened { mut guard, session: Session { conn, monitor }, ended_at: created_at } = opened;
        guard.promote_to_link(monitor.link_state().clone(), created_at);
        let expires_at = guard.peer.set.expiry(created_at);
        let (idle_since, is_observed) = (created_at, true);
        Self { conn, monitor, guard, created_at, expires_at, idle_since, is_observed }
    }

    pub(crate) fn set_user_instrumentation(&mut self, user: DynInstrumentation) {
        self.monitor.install_before(user, &mut self.conn);
    }

    /// Marks the link as idle from `now` on.
    pub(crate) fn set_idle(&mut self, now: Instant) {
        self.idle_since = now;
        // A query whose end was not observed has ended by now.
        self.monitor.link_state().clear_running();
        self.is_observed = catch_panic(|| Observer::is_installed(&mut self.conn)).unwrap_or(false);
    }

    /// Whether the link must not be used again, as far as is known without a query to its
    /// server.
    pub(crate) fn is_broken(&mut self) -> bool {
        self.monitor.link_state().is_lost() || catch_panic(|| self.conn.is_broken()).unwrap_or(true)
    }

    /// Whether the link holds a transaction that is to stay open (diesel's
    /// `begin_test_transaction`): the link is inside a transaction and yet not broken.
    pub(crate) fn holds_test_transaction(&mut self) -> bool {
        let depth = || {
            C::TransactionManager::transaction_manager_status_mut(&mut self.conn)
                .transaction_depth()
        };
        matches!(catch_panic(depth), Ok(Ok(Some(_)))) && !self.is_broken()
    }

    /// Whether the link has reached its maximum age.
    pub(crate) fn is_too_old(&self, now: Instant) -> bool {
        self.expires_at <= now
    }

    /// Whether the link is alive without a query to its server: its socket is open and quiet,
    /// and the link has been idle for no longer than `max_idle`. A socket with unread data may hold no
    /// more than a notice, which the client library reads with the next query. So `false` does not prove
    /// that the link is dead.
    pub(crate) fn is_alive(&self, max_idle: Duration, now: Instant) -> bool {
        let idle_time = now.saturating_duration_since(self.idle_since);
        self.is_observed && idle_time <= max_idle && self.is_quiet()
    }

    /// Whether the link's socket is open and has nothing to read.
    pub(crate) fn is_quiet(&self) -> bool {
        self.monitor.link_state().socket().is_some_and(|socket| socket.is_quiet())
    }

    /// Pings the server, and waits for the answer until `end`. If the link's socket is not known, the
    /// wait has no limit.
    ///
    /// # Errors
    ///
    /// Returns the server's error, or that the server did not answer, or that the ping panicked.
    pub(crate) fn ping(&mut self, end: Instant) -> Result<(), PingError> {
        let deadline = self.set_deadline(end);
        self.ping_until(deadline)
    }

    /// Has the checker shut the link's socket down at `end`, if the socket is known.
    pub(crate) fn set_deadline(&self, end: Instant) -> Option<Ticket> {
        self.can_be_aborted().then(|| {
            let link_state = self.monitor.link_state().clone();
            self.guard.peer.set.add_deadline(end, move |_| {
                link_state.shut_down();
            })
        })
    }

    /// Pings the server, as [`ping`](Self::ping) does, until a deadline that is set already.
    pub(crate) fn ping_until(&mut self, deadline: Option<Ticket>) -> Result<(), PingError> {
        self.monitor.link_state().set_pinging(true);
        let answer = catch_panic(|| self.conn.ping());
        self.monitor.link_state().set_pinging(false);
        let deadlines = &self.guard.peer.set.deadlines;
        if deadline.is_some_and(|ticket| !deadlines.unregister(ticket)) {
            return Err(PingError::TimedOut);
        }
        match answer {
            Ok(answer) => answer.map_err(PingError::Query),
            Err(panicked) => Err(PingError::Panicked(panicked)),
        }
    }

    /// Whether a ping can be aborted at its deadline: only if the link's socket is known.
    pub(crate) fn can_be_aborted(&self) -> bool {
        self.monitor.link_state().socket().is_some()
    }
}

/// The reason why a ping failed.
#[derive(Debug)]
pub(crate) enum PingError {
    Query(diesel::result::Error),
    TimedOut,
    Panicked(crate::panics::Panicked),
}

impl<C> Parkable for Box<Link<C>> {
    fn peer(&self) -> usize {
        self.guard.peer.index
    }

    fn created_at(&self) -> Instant {
        self.created_at
    }

    fn set_in_use(&mut self, in_use: bool) {
        self.guard.set_in_use(in_use);
    }

    fn shut_down(&mut self) -> bool {
        self.monitor.link_state().shut_down()
    }
}
