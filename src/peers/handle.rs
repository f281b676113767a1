//! What an operator holds: a handle that tells of the peers, and changes them.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::error::ChangeError;
use crate::peers::admission::PeerConfig;
use crate::peers::set::{Drain, PeerSet};
use crate::peers::snapshot::Snapshot;

/// A cheap handle to the peers of one manager, from [`PeerManager::peers`].
///
/// It keeps neither a connection nor a thread alive: once the pool is gone it says
/// [`closed`](Snapshot::closed), and shows what was last known.
///
/// Its methods change the peers of this one pool, in this one process, for as long as that lives. What
/// was set here is not undone by any check or timer. An unknown name is an error, and a call that
/// changes nothing (a drained peer is drained again) is none. None of them waits for a server.
///
/// ```no_run
/// # use std::time::Duration;
/// # fn maintain(peers: &diesel_peers::Peers) -> Result<(), diesel_peers::ChangeError> {
/// let drain = peers.drain("db1")?;
/// if drain.wait(Duration::from_secs(60)) {
///     println!("db1 may be stopped");
/// }
/// // ... and when it runs again:
/// peers.resume("db1")?;
/// # Ok(())
/// # }
/// ```
///
/// [`PeerManager::peers`]: crate::PeerManager::peers
#[derive(Clone)]
pub struct Peers {
    set: Arc<PeerSet>,
}

impl Peers {
    pub(crate) fn new(set: Arc<PeerSet>) -> Self {
        Self { set }
    }

    /// The state of every peer, in the order in which they were given, and what has happened last.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.set)
    }

    /// Takes a peer out of service: it gets no new work, its idle connections end at once, and those in
    /// use when they come back, so that nothing fails. The pool opens others to the other peers in their
    /// place. It stays a peer, and is checked as before, until [`resume`](Self::resume).
    ///
    /// Its state is [`Draining`](crate::PeerState::Draining) until the pool has no session there any
    /// more, then [`Drained`](crate::PeerState::Drained); [`Drain::wait`] waits for that. A connection
    /// that is never given back keeps it draining.
    ///
    /// When no other peer is up nobody serves: `pool.get()` fails after its timeout.
    ///
    /// # Errors
    ///
    /// When there is no such peer.
    pub fn drain(&self, name: &str) -> Result<Drain, ChangeError> {
        Ok(self.set.drain(name, now())?)
    }

    /// Puts a peer into service again that is drained or being drained. It serves at once if the last
    /// check found it up, is checked anew, and gets its share of the connections at the pace of
    /// [`rebalance_interval`](crate::PeerManagerBuilder::rebalance_interval).
    ///
    /// # Errors
    ///
    /// When there is no such peer, or it is being removed.
    pub fn resume(&self, name: &str) -> Result<(), ChangeError> {
        Ok(self.set.resume(name, now())?)
    }

    /// Adds a peer. It is assumed to be up, is checked at once, and gets its share of the connections at the
    /// pace of [`rebalance_interval`](crate::PeerManagerBuilder::rebalance_interval). The name of its host is left to
    /// the client library, also with [`resolve_interval`](crate::PeerManagerBuilder::resolve_interval).
    ///
    /// # Errors
    ///
    /// When there is a peer of this name; when the name or the URL is none, as in
    /// [`build`](crate::PeerManagerBuilder::build); or when the URL names another user or password than the
    /// settings [`user`](crate::PeerManagerBuilder::user) and
    /// [`password`](crate::PeerManagerBuilder::password), which take the place of what URLs say.
    pub fn add(&self, peer: PeerConfig) -> Result<(), ChangeError> {
        Ok(self.set.add(peer, now())?)
    }

    /// Removes a peer. It is drained first, and shown as [`Draining`](crate::PeerState::Draining) until
    /// it is gone. Another one may have its name at once.
    ///
    /// # Errors
    ///
    /// When there is no such peer, or no other one with a weight.
    pub fn remove(&self, name: &str) -> Result<Drain, ChangeError> {
        Ok(self.set.remove(name, now())?)
    }

    /// Makes these the peers, for settings that were read anew. One that was there by the same name, and
    /// whose URL leads to the same place, stays with its state and its connections, drained if it was;
    /// another user or password in its URL counts from its next login. All others are removed, as
    /// [`remove`](Self::remove) does, and added. With
    /// [`resolve_interval`](crate::PeerManagerBuilder::resolve_interval) names of hosts are resolved: what
    /// was known of one stays, and only those of its peers that were removed by hand are added again.
    ///
    /// # Errors
    ///
    /// When there is none, no weight is more than 0, a name is given twice, a name or a URL is none, or a
    /// URL names another user or password than the settings, as in [`add`](Self::add). Then nothing is
    /// changed.
    pub fn replace(&self, peers: impl IntoIterator<Item = PeerConfig>) -> Result<(), ChangeError> {
        let peers: Vec<_> = peers.into_iter().collect();
        Ok(self.set.replace(&peers, now())?)
    }

    /// Changes a peer's proportion of the work, as
    /// [`weight`](crate::PeerManagerBuilder::weight) sets it at the start. Connections follow at the pace
    /// of [`rebalance_interval`](crate::PeerManagerBuilder::rebalance_interval).
    ///
    /// # Errors
    ///
    /// When there is no such peer, or every weight would be 0.
    pub fn set_weight(&self, name: &str, weight: u32) -> Result<(), ChangeError> {
        Ok(self.set.set_weight(name, weight)?)
    }

    /// Has a peer checked now, in service or not, and not when it is due. What comes of it is shown by
    /// the next snapshots.
    ///
    /// # Errors
    ///
    /// When there is no such peer.
    pub fn check_now(&self, name: &str) -> Result<(), ChangeError> {
        Ok(self.set.check_now(name, now())?)
    }
}

#[expect(clippy::disallowed_methods, reason = "an operator's word counts from when it is given")]
fn now() -> Instant {
    Instant::now()
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.snapshot(), f)
    }
}
