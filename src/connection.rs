//! The connection that r2d2 hands out.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Instant;

use diesel::connection::DynInstrumentation;
use diesel::r2d2::R2D2Connection;

use crate::caught::caught;
use crate::lease::{Lease, Phase};
use crate::observer::{Observer, Watch};

/// A connection to one of the peers.
///
/// It dereferences to the diesel connection `C`, and implements the diesel traits that a pooled
/// connection of diesel's own manager implements, so that code written for
/// `&mut MysqlConnection`, for `impl Connection<Backend = Mysql>` or for
/// `&mut PooledConnection<_>` takes it as it is.
///
/// PostgreSQL's `COPY` is the exception: diesel ties it to the type of its own manager, so that
/// it needs the connection itself, `&mut **conn`.
pub struct PeerConnection<C> {
    // Closed before the lease gives its place back.
    conn: C,
    watch: Watch,
    lease: Lease,
}

impl<C> PeerConnection<C> {
    /// The name of the peer that this connection leads to.
    #[must_use]
    pub fn peer(&self) -> &str {
        self.lease.name()
    }
}

impl<C: R2D2Connection> PeerConnection<C> {
    /// Puts the observer in front of the instrumentation that diesel sets by default. The one that
    /// `establish` made cannot be taken out of the connection again, so this is a second one.
    pub(crate) fn new(mut conn: C, lease: Lease) -> Self {
        let watch = Watch::new(lease.set().clone(), lease.peer());
        let user = DynInstrumentation::default_instrumentation();
        conn.set_instrumentation(Observer::new(watch.clone(), user));
        Self { conn, watch, lease }
    }

    pub(crate) fn set_user_instrumentation(&mut self, user: DynInstrumentation) {
        self.conn.set_instrumentation(Observer::new(self.watch.clone(), user));
    }

    /// At check-out: whether this link is not to be used because its peer is down.
    pub(crate) fn is_retired(&self) -> bool {
        self.lease.set().is_retired(self.lease.peer())
    }

    pub(crate) fn check_out(&mut self) {
        self.lease.enter(Phase::InUse);
    }

    /// At check-in: whether this link must not go back into the pool.
    pub(crate) fn check_in(&mut self, now: Instant) -> bool {
        self.lease.enter(Phase::Idle);
        self.watch.is_lost()
            || caught(|| self.conn.is_broken()).unwrap_or(true)
            || self.is_retired()
            || self.lease.set().is_surplus(self.lease.peer(), now)
    }
}

impl<C> Deref for PeerConnection<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.conn
    }
}

impl<C> DerefMut for PeerConnection<C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.conn
    }
}

/// Not derived: `C` need not be `Debug`, and may show its URL where it is.
impl<C> fmt::Debug for PeerConnection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerConnection").field("peer", &self.peer()).finish_non_exhaustive()
    }
}
