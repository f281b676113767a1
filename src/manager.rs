//! What r2d2 calls.

use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::Sender;
use diesel::ConnectionError;
use diesel::r2d2::{Error, ManageConnection, R2D2Connection};

use crate::builder::PeerManagerBuilder;
use crate::caught::caught;
use crate::connection::PeerConnection;
use crate::dial;
use crate::peers::Peers;
use crate::set::PeerSet;

/// Makes and checks the connections of one `r2d2::Pool` over several equivalent peers.
///
/// It takes the place of diesel's `ConnectionManager`. It is not `Clone`: one manager, one pool.
/// Its checker thread ends with it.
pub struct PeerManager<C> {
    set: Arc<PeerSet>,
    /// Dropping it ends the checker. Nothing is joined: the last owner of a pool may be one of
    /// r2d2's own workers.
    _checker: Sender<Infallible>,
    connection: PhantomData<fn() -> C>,
}

impl<C> PeerManager<C> {
    /// Starts building a manager.
    #[must_use]
    pub fn builder() -> PeerManagerBuilder<C> {
        PeerManagerBuilder::new()
    }

    pub(crate) fn new(set: Arc<PeerSet>, checker: Sender<Infallible>) -> Self {
        Self { set, _checker: checker, connection: PhantomData }
    }

    /// A handle to the state of the peers. Take it before the manager goes into its pool.
    #[must_use]
    pub fn peers(&self) -> Peers {
        Peers::new(self.set.clone())
    }
}

impl<C: R2D2Connection + Send + 'static> ManageConnection for PeerManager<C> {
    type Connection = PeerConnection<C>;
    type Error = Error;

    /// Logs in to a random one of the live peers that have the fewest connections, and to the next
    /// when that fails.
    fn connect(&self) -> Result<PeerConnection<C>, Error> {
        let (conn, lease) = dial::connect::<C>(&self.set).map_err(refused)?;
        caught(|| PeerConnection::new(conn, lease))
            .map_err(|panicked| refused(panicked.to_string()))
    }

    /// Asks the server, unless the connection's peer is known to be down.
    fn is_valid(&self, conn: &mut PeerConnection<C>) -> Result<(), Error> {
        if conn.is_retired() {
            return Err(refused(format!(
                "peer {} is down, its connection is retired",
                conn.peer()
            )));
        }
        caught(|| conn.ping()).map_err(|panicked| refused(panicked.to_string()))??;
        conn.check_out();
        Ok(())
    }

    /// Looks at what is known about the connection, without asking the server.
    fn has_broken(&self, conn: &mut PeerConnection<C>) -> bool {
        #[expect(clippy::disallowed_methods, reason = "a check-in is stamped when it is made")]
        let now = Instant::now();
        thread::panicking() || conn.check_in(now)
    }
}

fn refused(story: String) -> Error {
    Error::ConnectionError(ConnectionError::BadConnection(story))
}

impl<C> Drop for PeerManager<C> {
    fn drop(&mut self) {
        self.set.close();
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
