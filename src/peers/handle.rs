//! What an operator sees: a handle, and the snapshot it takes.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::fault::Fault;
use crate::peers::peer::{Counts, Health, Peer};
use crate::peers::set::PeerSet;
use crate::peers::share::nobody_takes_work;

/// A cheap handle to the peers of one manager, from [`PeerManager::peers`].
///
/// It keeps neither a connection nor a thread alive: once the pool is gone it says
/// [`closed`](Snapshot::closed), and shows what was last known.
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

    /// The state of every peer, in the order in which they were given to the builder.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let peers = self.set.read(|peers| {
            let all_down = nobody_takes_work(peers);
            peers.iter().map(|peer| PeerStatus::of(peer, all_down)).collect()
        });
        Snapshot { closed: self.set.is_closed(), peers }
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.snapshot(), f)
    }
}

/// The state of the peers at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Snapshot {
    /// Whether the pool is gone.
    pub closed: bool,
    /// Every peer, in the order in which they were given to the builder.
    pub peers: Vec<PeerStatus>,
}

impl Snapshot {
    /// The peer of this name.
    #[must_use]
    pub fn peer(&self, name: &str) -> Option<&PeerStatus> {
        self.peers.iter().find(|peer| peer.name == name)
    }
}

/// Whether a peer is given new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerState {
    /// It is. A peer that nothing is known about yet counts as up.
    Up,
    /// It failed, and is left alone until a check succeeds.
    Down,
}

/// The state of one peer at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PeerStatus {
    /// The name that was given to the builder.
    pub name: String,
    /// Its weight.
    pub weight: u32,
    /// Whether it is given new work.
    pub state: PeerState,
    /// Since when it has been in this state.
    pub since: Instant,
    /// Why it is down; `None` while it is up. Client libraries' messages, without URL or password.
    pub why: Option<String>,
    /// What that says of the peer; `None` while it is up.
    pub fault: Option<Fault>,
    /// Whether it had no connection to give when it was last asked for one. It is up all the same:
    /// those that it has given go on being used, and other peers get the new ones.
    pub is_full: bool,
    /// When it is checked next.
    pub next_check: Instant,
    /// Connections of the pool that are open, in use or idle.
    pub links: usize,
    /// Connections of the pool that are in use. In a pool built with `test_on_check_out(false)` one
    /// counts from the first time that it is used in its check-out; with `Balance::PerConnection` as
    /// well, not at all.
    pub in_use: usize,
    /// Connections that were made for the pool since the manager was built.
    pub connects: u64,
    /// Failed logins, for the pool and of checks, since the manager was built.
    pub failures: u64,
}

impl PeerStatus {
    fn of(peer: &Peer, all_down: bool) -> Self {
        let (state, since, refusal) = match &peer.health {
            Health::Up { since } => (PeerState::Up, *since, None),
            Health::Down { since, refusal } => (PeerState::Down, *since, Some(refusal)),
        };
        let Counts { dialing: _, stuck: _, links, connects, failures } = peer.counts;
        Self {
            name: peer.name.to_string(),
            weight: peer.weight,
            state,
            since,
            why: refusal.map(|refusal| refusal.why.to_string()),
            fault: refusal.map(|refusal| refusal.fault),
            is_full: peer.is_full,
            next_check: peer.due(all_down),
            links,
            in_use: peer.pulse.in_use(),
            connects,
            failures,
        }
    }
}
