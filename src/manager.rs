//! What r2d2 calls.

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
use crate::login::session::Hooks;
use crate::peers::handle::Peers;
#[cfg(feature = "doctor")]
use crate::peers::set::PeerSet;
use crate::pool::connection::{Links, PeerConnection};

/// Makes and checks the connections of one `r2d2::Pool` over several equivalent peers.
///
/// It takes the place of diesel's `ConnectionManager`. It is not `Clone`: one manager, one pool.
/// Its checker thread ends with it.
pub struct PeerManager<C> {
    links: Arc<Links<C>>,
    hooks: Arc<Hooks<C>>,
    /// Dropping it ends the checker, and who tells of events. Nothing is joined: the last owner of a pool may be one of
    /// r2d2's own workers.
    _stop: Sender<Infallible>,
}

impl<C> PeerManager<C> {
    /// Starts building a manager.
    #[must_use]
    pub fn builder() -> PeerManagerBuilder<C> {
        PeerManagerBuilder::new()
    }

    pub(crate) fn new(
        links: Arc<Links<C>>,
        hooks: Arc<Hooks<C>>,
        stop: Sender<Infallible>,
    ) -> Self {
        Self { links, hooks, _stop: stop }
    }

    /// What a login is made with.
    #[cfg(feature = "doctor")]
    pub(crate) fn parts(&self) -> (&Arc<PeerSet>, &Arc<Hooks<C>>) {
        (&self.links.set, &self.hooks)
    }

    /// A handle to the state of the peers. Take it before the manager goes into its pool.
    #[must_use]
    pub fn peers(&self) -> Peers {
        Peers::new(self.links.set.clone())
    }
}

impl<C: R2D2Connection + Send + 'static> ManageConnection for PeerManager<C> {
    type Connection = PeerConnection<C>;
    type Error = Error;

    /// Logs in to a random one of the live peers that have the fewest connections for their weight,
    /// and to the next when that fails or does not answer.
    fn connect(&self) -> Result<PeerConnection<C>, Error> {
        let link = dial::connect(&self.links.set, &self.hooks)
            .map_err(|story| Error::ConnectionError(ConnectionError::BadConnection(story)))?;
        Ok(PeerConnection::new(self.links.clone(), Box::new(link)))
    }

    /// Gives the slot the connection that should serve, and sees that it is fine.
    #[expect(clippy::disallowed_methods, reason = "a checkout is stamped when it is made")]
    fn is_valid(&self, conn: &mut PeerConnection<C>) -> Result<(), Error> {
        conn.check_out(Instant::now)
    }

    /// Looks at what is known about the connection, without asking the server.
    #[expect(clippy::disallowed_methods, reason = "a checkin is stamped when it is made")]
    fn has_broken(&self, conn: &mut PeerConnection<C>) -> bool {
        thread::panicking() || conn.check_in(Instant::now())
    }
}

impl<C> Drop for PeerManager<C> {
    fn drop(&mut self) {
        self.links.set.close();
    }
}

/// The peers' names and states; their URLs are secrets.
impl<C> fmt::Debug for PeerManager<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerManager")
            .field("connection", &std::any::type_name::<C>())
            .field("peers", &self.peers())
            .finish_non_exhaustive()
    }
}
