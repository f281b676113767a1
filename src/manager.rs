//! The connection manager that r2d2 calls.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::Sender;
use diesel::ConnectionError;
use diesel::r2d2::{Error, ManageConnection, R2D2Connection};

use crate::builder::PeerManagerBuilder;
use crate::login::dial;
#[cfg(feature = "doctor")]
use crate::login::session::Hooks;
use crate::panics::catch_panic;
use crate::peers::handle::Peers;
#[cfg(feature = "doctor")]
use crate::peers::set::PeerSet;
use crate::pool::connection::{AfterCheckIn, PeerConnection, PoolState};
use crate::pool::link::Link;

/// Opens and validates the connections of one `r2d2::Pool` over several equivalent peers.
///
/// A `PeerManager` takes the place of diesel's `ConnectionManager`. It is not `Clone`, because each
/// manager serves one pool. Its background threads end when it is dropped.
pub struct PeerManager<C> {
    pool: Arc<PoolState<C>>,
    /// Dropping this sender stops all background threads of the manager. No thread is joined, because
    /// the last owner of a pool may be one of r2d2's own workers.
    _stop: Sender<Infallible>,
}

impl<C> PeerManager<C> {
    /// Starts building a manager.
    #[must_use]
    pub fn builder() -> PeerManagerBuilder<C> {
        PeerManagerBuilder::new()
    }

    pub(crate) fn new(pool: Arc<PoolState<C>>, stop: Sender<Infallible>) -> Self {
        Self { pool, _stop: stop }
    }

    /// Returns the set of peers and the closures, which a login needs.
    #[cfg(feature = "doctor")]
    pub(crate) fn parts(&self) -> (&Arc<PeerSet>, &Arc<Hooks<C>>) {
        (&self.pool.set, &self.pool.hooks)
    }

    /// Returns a handle to the state of the peers. Get the handle before you pass the manager to a pool.
    #[must_use]
    pub fn peers(&self) -> Peers {
        Peers::new(self.pool.set.clone())
    }
}

impl<C: R2D2Connection + Send + 'static> ManageConnection for PeerManager<C> {
    type Connection = PeerConnection<C>;
    type Error = Error;

    /// Logs in to the peer with the fewest connections for its weight, by chance among equals. Tries
    /// the next peer if the login fails or is not answered.
    fn connect(&self) -> Result<PeerConnection<C>, Error> {
        let opened = dial::connect(&self.pool.set, &self.pool.hooks)
            .map_err(|error| Error::ConnectionError(ConnectionError::BadConnection(error)))?;
        Ok(PeerConnection::new(self.pool.clone(), Box::new(Link::new(opened))))
    }

    /// Attaches the connection that the strategy chooses, and validates it.
    #[expect(clippy::disallowed_methods, reason = "the time of a checkout is taken here")]
    fn is_valid(&self, conn: &mut PeerConnection<C>) -> Result<(), Error> {
        conn.check_out(Instant::now)
    }

    /// Checks in the connection, and returns whether r2d2 has to close it. Pings the server only if the last
    /// queries leave a doubt about the connection, within `ping_timeout`.
    #[expect(clippy::disallowed_methods, reason = "the time of a checkin is taken here")]
    fn has_broken(&self, conn: &mut PeerConnection<C>) -> bool {
        thread::panicking() || conn.check_in(Instant::now()) == AfterCheckIn::CloseSlot
    }
}

impl<C> Drop for PeerManager<C> {
    fn drop(&mut self) {
        self.pool.set.close();
        let spares = self.pool.exchange.end_replacements();
        let _ = catch_panic(|| drop(spares));
    }
}

/// Shows the names and states of the peers. Their URLs are secrets.
impl<C> fmt::Debug for PeerManager<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerManager")
            .field("connection", &std::any::type_name::<C>())
            .field("peers", &self.peers())
            .finish_non_exhaustive()
    }
}
