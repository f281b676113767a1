//! The public handle to the peers: it shows them and changes them.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::error::ChangeError;
use crate::peers::peer_config::PeerConfig;
use crate::peers::set::{Drain, PeerSet};
use crate::peers::snapshot::Snapshot;

/// A cheap handle to the peers of one manager, from [`PeerManager::peers`].
///
/// The handle shows the peers ([`snapshot`](Self::snapshot)) and changes them while the pool works. The handle
/// keeps neither a connection nor a thread alive: after the pool is gone, the snapshot is
/// [`closed`](Snapshot::closed) and shows the last known state.
///
/// A change applies to one pool in one process, for the lifetime of the pool. No check and no timer undoes
/// it. An unknown name is an error; a call that changes nothing (to drain a drained peer) is not. No method
/// waits for a server. The guide describes the steps of a maintenance
/// ([operating](crate::guide::operating)).
///
/// ```no_run
/// use std::time::Duration;
/// use diesel_peers::{ChangeError, Peers};
///
/// /// Returns whether the pool has closed its last session on the peer.
/// fn before_maintenance(peers: &Peers) -> Result<bool, ChangeError> {
///     Ok(peers.drain("db1")?.wait(Duration::from_secs(300)))
/// }
///
/// fn after_maintenance(peers: &Peers) -> Result<(), ChangeError> {
///     peers.resume("db1")
/// }
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

    /// Returns the name of the pool ([`pool_name`](crate::PeerManagerBuilder::pool_name)).
    #[must_use]
    pub fn pool_name(&self) -> &str {
        &self.set.settings().pool_name
    }

    /// Returns a copy of the state of every peer, and the last events.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the copy is of the present moment")]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(&self.set, Instant::now())
    }

    /// Takes a peer out of service: it gets no new work. The pool opens connections to other peers, and
    /// closes one to this peer for each of them: idle ones at once, and those in use when they come back,
    /// so that no query fails. If no other peer accepts a login, its connections stay in use until one does.
    /// The peer stays in the list and is checked as before, until [`resume`](Self::resume).
    ///
    /// The state of the peer is [`Draining`](crate::PeerState::Draining) while the pool has sessions
    /// with it, then [`Drained`](crate::PeerState::Drained); [`Drain::wait`] waits for that. A
    /// connection that is never given back keeps the peer draining.
    ///
    /// If no other peer is in service, its connections are closed at once, and `pool.get()` fails after its
    /// timeout.
    ///
    /// # Errors
    ///
    /// Fails if no peer has this name
    /// ([`ChangeErrorKind::UnknownPeer`](crate::ChangeErrorKind::UnknownPeer)).
    pub fn drain(&self, name: &str) -> Result<Drain, ChangeError> {
        Ok(self.set.drain(name, now())?)
    }

    /// Puts a drained or draining peer back into service. If the last check found the peer up, it serves
    /// at once. The peer is checked again, and gets its share of the connections at the pace of
    /// [`rebalance_interval`](crate::PeerManagerBuilder::rebalance_interval).
    ///
    /// # Errors
    ///
    /// Fails if no peer has this name, or if the peer is being removed.
    pub fn resume(&self, name: &str) -> Result<(), ChangeError> {
        Ok(self.set.resume(name, now())?)
    }

    /// Adds a peer. The peer counts as up, is checked at once, and gets its share of the connections at
    /// the pace of [`rebalance_interval`](crate::PeerManagerBuilder::rebalance_interval). The client
    /// library resolves its host name, even with
    /// [`resolve_interval`](crate::PeerManagerBuilder::resolve_interval).
    ///
    /// # Errors
    ///
    /// Fails if another peer has the name; if the name or the URL is not valid, as in
    /// [`build`](crate::PeerManagerBuilder::build); or if the URL contains another user or password than
    /// the settings [`user`](crate::PeerManagerBuilder::user) and
    /// [`password`](crate::PeerManagerBuilder::password), which would overrule it.
    pub fn add(&self, peer: PeerConfig) -> Result<(), ChangeError> {
        Ok(self.set.add(peer, now())?)
    }

    /// Removes a peer. The peer is drained first, and shown as [`Draining`](crate::PeerState::Draining)
    /// until it is gone. Its name is free for another peer at once.
    ///
    /// # Errors
    ///
    /// Fails if no peer has this name, or if no other peer has a weight above 0.
    pub fn remove(&self, name: &str) -> Result<Drain, ChangeError> {
        Ok(self.set.remove(name, now())?)
    }

    /// Replaces the list of peers, for example after the configuration was read again. A peer that is in
    /// both lists by name, with a URL that leads to the same server, keeps its state and its connections,
    /// and stays drained if it was; another user or password in its URL applies from its next login. Peers
    /// that are only in the new list are added; peers that are only in the old one are removed, as by
    /// [`remove`](Self::remove). With [`resolve_interval`](crate::PeerManagerBuilder::resolve_interval)
    /// host names are resolved: the addresses of a name that stays are kept, and peers at its addresses
    /// that were removed by hand are added again.
    ///
    /// # Errors
    ///
    /// Fails if the list is empty, if no peer has a weight above 0, if two peers have the same name, or
    /// if a peer is not valid, as in [`add`](Self::add). Then nothing changes.
    pub fn replace(&self, peers: impl IntoIterator<Item = PeerConfig>) -> Result<(), ChangeError> {
        let peers: Vec<_> = peers.into_iter().collect();
        Ok(self.set.replace(&peers, now())?)
    }

    /// Changes the weight of a peer, which is initially set by
    /// [`weight`](crate::PeerManagerBuilder::weight). Connections follow at the pace of
    /// [`rebalance_interval`](crate::PeerManagerBuilder::rebalance_interval).
    ///
    /// # Errors
    ///
    /// Fails if no peer has this name, or if every weight would be 0.
    pub fn set_weight(&self, name: &str, weight: u32) -> Result<(), ChangeError> {
        Ok(self.set.set_weight(name, weight, now())?)
    }

    /// Changes the most connections that the pool may have with a peer, which is initially set by
    /// [`max_connections`](crate::PeerManagerBuilder::max_connections) or
    /// [`peer_max_connections`](crate::PeerManagerBuilder::peer_max_connections). `None` removes the limit.
    ///
    /// Connections above a lower limit move to peers that have room. If none has, those that are idle are
    /// closed at once, and those in use when they come back; with
    /// [`Balance::PerConnection`](crate::Balance::PerConnection) all are closed when they come back.
    ///
    /// # Errors
    ///
    /// Fails if no peer has this name, or if the limit is 0.
    pub fn set_max_connections(
        &self,
        name: &str,
        max_connections: Option<u32>,
    ) -> Result<(), ChangeError> {
        Ok(self.set.set_max_connections(name, max_connections, now())?)
    }

    /// Checks a peer now instead of at its next check, whether it is in service or not. Later snapshots
    /// show the result.
    ///
    /// # Errors
    ///
    /// Fails if no peer has this name.
    pub fn check_now(&self, name: &str) -> Result<(), ChangeError> {
        Ok(self.set.check_now(name, now())?)
    }
}

#[expect(clippy::disallowed_methods, reason = "a change takes effect when it is made")]
fn now() -> Instant {
    Instant::now()
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.snapshot(), f)
    }
}
