//! One physical connection of the pool.

use std::time::{Duration, Instant};

use diesel::connection::{DynInstrumentation, TransactionManager};
use diesel::r2d2::R2D2Connection;

use crate::login::observer::{Observer, Watch};
use crate::login::session::Session;
use crate::panics::catch_panic;
use crate::peers::link_guard::LinkGuard;
use crate::pool::exchange::Parkable;

/// A diesel connection, and what is known about it.
#[derive(Debug)]
pub(crate) struct Link<C> {
    // Closed before the lease gives its place back.
    pub(crate) conn: C,
    watch: Watch,
    pub(crate) guard: LinkGuard,
    created_at: Instant,
    /// When it is too old.
    expires: Instant,
    /// When it was known to be fine, and since when it rests.
    rests: Instant,
    /// Whether its queries are observed. A user may have replaced the observer.
    observed: bool,
}

impl<C: R2D2Connection> Link<C> {
    pub(crate) fn new(
        session: Session<C>,
        guard: LinkGuard,
        created_at: Instant,
        expires: Instant,
    ) -> Self {
        let Session { conn, watch } = session;
        Self { conn, watch, guard, created_at, expires, rests: created_at, observed: true }
    }

    /// The one who asked for it has it.
    pub(crate) fn is_used(&mut self) {
        self.guard.promote_to_link(self.watch.link_state().clone(), self.created_at);
    }

    pub(crate) fn set_user_instrumentation(&mut self, user: DynInstrumentation) {
        self.watch.install_before(user, &mut self.conn);
    }

    /// Nobody uses it from now on.
    pub(crate) fn comes_to_rest(&mut self, now: Instant) {
        self.rests = now;
        // A query that never ended, as far as could be seen, has ended.
        self.watch.link_state().clear_running();
        self.observed = catch_panic(|| Observer::is_on(&mut self.conn)).unwrap_or(false);
    }

    /// Whether it must not be used again, as far as is known without asking its server.
    pub(crate) fn is_broken(&mut self) -> bool {
        self.watch.link_state().is_lost() || catch_panic(|| self.conn.is_broken()).unwrap_or(true)
    }

    /// Whether it holds a transaction that is to stay open (diesel's `begin_test_transaction`): it
    /// is not broken, and yet inside one.
    pub(crate) fn holds_test_transaction(&mut self) -> bool {
        let depth = || {
            C::TransactionManager::transaction_manager_status_mut(&mut self.conn)
                .transaction_depth()
        };
        matches!(catch_panic(depth), Ok(Ok(Some(_)))) && !self.is_broken()
    }

    pub(crate) fn is_too_old(&self, now: Instant) -> bool {
        self.expires <= now
    }

    /// Whether it is fine, as far as can be seen without asking its server: its socket is open and
    /// quiet, and it has not rested for longer than `at_most`. A socket that has something to read may
    /// hold no more than a notice, and the client library reads that away with the next query.
    pub(crate) fn is_alive(&self, at_most: Duration, now: Instant) -> bool {
        self.observed && now.saturating_duration_since(self.rests) <= at_most && self.is_quiet()
    }

    /// Whether its socket is open and has nothing to read.
    pub(crate) fn is_quiet(&self) -> bool {
        self.watch.link_state().socket().is_some_and(|socket| socket.is_quiet())
    }

    /// Asks the server, and waits for the answer until `end`, if the socket is known; else for ever.
    ///
    /// # Errors
    ///
    /// What the server said, or that it said nothing.
    pub(crate) fn ping(&mut self, end: Instant) -> Result<(), Unanswered> {
        let set = self.guard.set().clone();
        let ticket = self.can_be_cut().then(|| {
            let link_state = self.watch.link_state().clone();
            set.add_deadline(end, move |_| {
                link_state.shut_down();
            })
        });
        self.watch.link_state().set_pinging(true);
        let answer = catch_panic(|| self.conn.ping());
        self.watch.link_state().set_pinging(false);
        if ticket.is_some_and(|ticket| !set.deadlines().end(ticket)) {
            return Err(Unanswered::Late);
        }
        match answer {
            Ok(answer) => answer.map_err(Unanswered::Query),
            Err(panicked) => Err(Unanswered::Panicked(panicked)),
        }
    }

    /// Whether a ping of it is bounded.
    pub(crate) fn can_be_cut(&self) -> bool {
        self.watch.link_state().socket().is_some()
    }
}

/// Why a ping has failed.
#[derive(Debug)]
pub(crate) enum Unanswered {
    Query(diesel::result::Error),
    Late,
    Panicked(crate::panics::Panicked),
}

impl<C> Parkable for Box<Link<C>> {
    fn peer(&self) -> usize {
        self.guard.peer()
    }

    fn created_at(&self) -> Instant {
        self.created_at
    }

    fn set_in_use(&mut self, in_use: bool) {
        self.guard.set_in_use(in_use);
    }

    fn shut_down(&mut self) -> bool {
        self.watch.link_state().shut_down()
    }
}
