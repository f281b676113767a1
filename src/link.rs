//! One physical connection of the pool.

use std::time::Instant;

use diesel::connection::{DynInstrumentation, TransactionManager};
use diesel::r2d2::R2D2Connection;

use crate::caught::{Panicked, caught};
use crate::exchange::Shelved;
use crate::lease::Lease;
use crate::observer::{Observer, Watch};

/// A diesel connection, and what is known about it.
#[derive(Debug)]
pub(crate) struct Link<C> {
    // Closed before the lease gives its place back.
    pub(crate) conn: C,
    watch: Watch,
    pub(crate) lease: Lease,
    born: Instant,
    /// When it is too old.
    expires: Instant,
}

impl<C: R2D2Connection> Link<C> {
    /// Puts the observer in front of the instrumentation that diesel sets by default. The one that
    /// `establish` made cannot be taken out of the connection again, so this is a second one.
    pub(crate) fn new(mut conn: C, lease: Lease, born: Instant, expires: Instant) -> Self {
        let watch = Watch::new(lease.set().clone(), lease.peer());
        let user = DynInstrumentation::default_instrumentation();
        conn.set_instrumentation(Observer::new(watch.clone(), user));
        Self { conn, watch, lease, born, expires }
    }

    pub(crate) fn set_user_instrumentation(&mut self, user: DynInstrumentation) {
        self.conn.set_instrumentation(Observer::new(self.watch.clone(), user));
    }

    /// Whether it must not be used again, as far as is known without asking its server.
    pub(crate) fn is_broken(&mut self) -> bool {
        self.watch.is_lost() || caught(|| self.conn.is_broken()).unwrap_or(true)
    }

    /// Whether it holds a transaction that is to stay open (diesel's `begin_test_transaction`): it
    /// is not broken, and yet inside one.
    pub(crate) fn holds_test_transaction(&mut self) -> bool {
        let depth = || {
            C::TransactionManager::transaction_manager_status_mut(&mut self.conn)
                .transaction_depth()
        };
        matches!(caught(depth), Ok(Ok(Some(_)))) && !self.is_broken()
    }

    pub(crate) fn is_too_old(&self, now: Instant) -> bool {
        self.expires <= now
    }

    /// Asks the server.
    pub(crate) fn ping(&mut self) -> Result<diesel::QueryResult<()>, Panicked> {
        caught(|| self.conn.ping())
    }
}

impl<C> Shelved for Box<Link<C>> {
    fn peer(&self) -> usize {
        self.lease.peer()
    }

    fn born(&self) -> Instant {
        self.born
    }

    fn set_in_use(&mut self, in_use: bool) {
        self.lease.set_in_use(in_use);
    }
}
