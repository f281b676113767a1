//! One physical connection of the pool.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::{DynInstrumentation, TransactionManager};
use diesel::r2d2::R2D2Connection;

use crate::deadlines::Ticket;
use crate::events::CloseReason;
use crate::login::dial::Opened;
use crate::login::observer::{LinkMonitor, Observer};
use crate::login::readiness::{self, NotReady};
use crate::login::session::Session;
use crate::panics::catch_panic;
use crate::peers::link_guard::LinkGuard;
use crate::peers::link_state::LinkState;
use crate::pool::exchange::Parkable;
use crate::url::dialect::Dialect;

/// The minimum time between two examinations of the server of one link. A READ ONLY transaction of the
/// application is refused as a read-only server would refuse it, and may be repeated at any rate.
const EXAMINATION_INTERVAL: Duration = Duration::from_secs(1);

/// The query of a ping that is sent as text.
const PING: &str = "SELECT 1";

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
    /// When the server last showed, after a doubt, that it takes the work that it is to get.
    examined_at: Option<Instant>,
}

impl<C> Link<C> {
    pub(crate) fn state(&self) -> &Arc<LinkState> {
        self.monitor.link_state()
    }

    /// Whether the link has reached its maximum age.
    pub(crate) fn is_too_old(&self, now: Instant) -> bool {
        self.expires_at <= now
    }
}

impl<C: R2D2Connection> Link<C> {
    pub(crate) fn set_user_instrumentation(&mut self, user: DynInstrumentation) {
        self.monitor.install_before(user, &mut self.conn);
    }
}

impl<C: R2D2Connection + 'static> Link<C> {
    /// Creates a link from a new session, and counts it as a link of its peer.
    pub(crate) fn new(opened: Opened<C>) -> Self {
        // The guard is declared first, so that it is dropped last.
        let Opened { mut guard, session: Session { conn, monitor }, ended_at: created_at } = opened;
        guard.promote_to_link(monitor.link_state().clone(), created_at);
        let expires_at = guard.peer.set.expiry(created_at);
        Self {
            conn,
            monitor,
            guard,
            created_at,
            expires_at,
            idle_since: created_at,
            is_observed: true,
            examined_at: None,
        }
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

    /// Whether the server has to answer before the link serves another checkout, because of what its queries
    /// have ended with.
    pub(crate) fn is_in_doubt(&self, now: Instant) -> bool {
        self.monitor.link_state().is_session_in_doubt() || self.must_examine_server(now)
    }

    fn must_examine_server(&self, now: Instant) -> bool {
        let is_recent = |at| now.saturating_duration_since(at) < EXAMINATION_INTERVAL;
        self.monitor.link_state().is_server_in_doubt() && !self.examined_at.is_some_and(is_recent)
    }

    /// Whether the link is alive without a query to its server: its socket is open and quiet,
    /// and the link has been idle for no longer than `max_idle`. A socket with unread data may hold no
    /// more than a notice, which the client library reads with the next query. So `false` does not prove
    /// that the link is dead.
    pub(crate) fn is_alive(&self, max_idle: Duration, now: Instant) -> bool {
        let idle_time = now.saturating_duration_since(self.idle_since);
        self.is_observed && idle_time <= max_idle && !self.is_in_doubt(now) && self.is_quiet()
    }

    /// Whether the link's socket is open and has nothing to read.
    pub(crate) fn is_quiet(&self) -> bool {
        self.monitor.link_state().socket().is_some_and(|socket| socket.is_quiet())
    }

    /// Pings the server, and waits for the answer until `end`. If the link's socket is not known, the
    /// wait has no limit. A server in doubt is examined as at a login.
    ///
    /// # Errors
    ///
    /// Returns the server's error, or that the server did not answer, or that the ping panicked.
    pub(crate) fn ping(&mut self, now: Instant, end: Instant) -> Result<(), PingError> {
        let deadline = self.set_deadline(end);
        self.ping_until(now, deadline)
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

    /// Pings the server in another thread than the application's, until a deadline that is set already. The
    /// application's instrumentation does not see it: it may block.
    pub(crate) fn ping_unseen(&mut self, now: Instant, deadline: Option<Ticket>) -> bool {
        self.monitor.set_muted(true);
        self.ping_until(now, deadline).is_ok()
    }

    /// Pings the server, as [`ping`](Self::ping) does, until a deadline that is set already.
    fn ping_until(&mut self, now: Instant, deadline: Option<Ticket>) -> Result<(), PingError> {
        let examines = self.must_examine_server(now);
        let answer = catch_panic(|| self.ping_or_examine(examines));
        self.monitor.set_muted(false);
        self.monitor.link_state().set_pinging(false);
        let deadlines = &self.guard.peer.set.deadlines;
        if deadline.is_some_and(|ticket| !deadlines.unregister(ticket)) {
            return Err(PingError::TimedOut);
        }
        match answer {
            Ok(Ok(())) => {
                self.monitor.link_state().clear_doubts(examines);
                if examines {
                    self.examined_at = Some(now);
                }
                Ok(())
            }
            Ok(Err(NotReady::Query(error))) => Err(PingError::Query(error)),
            Ok(Err(NotReady::State(_, text))) => {
                // The address of the peer may lead to another server by now.
                self.guard.peer.activity.doubt_servers();
                Err(PingError::NotReady(text))
            }
            Err(panicked) => Err(PingError::Panicked(panicked)),
        }
    }

    fn ping_or_examine(&mut self, examines: bool) -> Result<(), NotReady> {
        let is_in_doubt = self.monitor.link_state().is_session_in_doubt();
        let settings = self.guard.peer.settings();
        self.monitor.link_state().set_pinging(true);
        // diesel's own ping never returns from a COPY that was left open. A text that is not prepared ends it.
        if is_in_doubt || Dialect::for_connection::<C>() == Dialect::Postgres {
            self.conn.batch_execute(PING)?;
        } else if !examines {
            self.conn.ping()?;
        }
        if examines {
            // The application's instrumentation sees pings, and none of these queries.
            self.monitor.set_muted(true);
            readiness::test(&mut self.conn, settings.requirements)?;
        }
        Ok(())
    }

    /// Asks the server whether a link in doubt may be used again, and has the peer checked if not.
    pub(crate) fn dispel_doubts(&mut self, now: Instant) -> bool {
        let timeout = self.guard.peer.settings().ping_timeout;
        let may_be_used = self.ping(now, now + timeout).is_ok() && !self.is_broken();
        if !may_be_used {
            self.guard.peer.suspect(now);
        }
        may_be_used
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
    /// The server cannot be used for the work that it is to get.
    NotReady(String),
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

    fn is_due(&self, now: Instant) -> bool {
        let idle_time = now.saturating_duration_since(self.idle_since);
        idle_time > self.guard.peer.settings().ping_idle / 2 || self.is_too_old(now)
    }

    fn set_in_use(&mut self, in_use: bool) {
        self.guard.set_in_use(in_use);
    }

    fn is_marked_for_replacement(&self) -> bool {
        self.guard.is_marked_for_replacement()
    }

    fn mark_for_replacement(&mut self, reason: CloseReason) {
        self.guard.mark_for_replacement(reason);
    }

    fn cancel_replacement(&mut self) {
        self.guard.cancel_replacement();
    }

    fn shut_down(&mut self) -> bool {
        let has_ended = self.monitor.link_state().shut_down();
        if has_ended || self.monitor.link_state().is_lost() {
            self.guard.end_session();
        }
        has_ended
    }
}
