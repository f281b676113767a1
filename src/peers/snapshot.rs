//! The state of the peers at one moment, for programs and for people.

pub(crate) mod table;

use std::fmt;
use std::time::{Duration, Instant};

use crate::event::Event;
use crate::fault::Fault;
use crate::peers::admin_state::AdminState;
use crate::peers::counters::PeerCounters;
use crate::peers::peer::{Counts, Health, Peer};
use crate::peers::placement::no_peer_available;
use crate::peers::set::PeerSet;

/// The state of the peers at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Snapshot {
    /// Whether the pool is gone.
    pub closed: bool,
    /// What the pool is called ([`pool_name`](crate::PeerManagerBuilder::pool_name)).
    pub pool_name: String,
    /// Every peer, in the order in which they were given.
    pub peers: Vec<PeerStatus>,
    /// The last changes of state, up to 100 of them, the newest last.
    pub events: Vec<Event>,
    /// How many events the [event handler](crate::PeerManagerBuilder::event_handler) missed, because its
    /// queue was full.
    pub events_dropped: u64,
}

impl Snapshot {
    pub(crate) fn of(set: &PeerSet) -> Self {
        let mut peers: Vec<PeerStatus> = set.read(|peers| {
            let all_down = no_peer_available(peers);
            let there = peers.iter().filter(|peer| !peer.is_removed());
            there.map(|peer| PeerStatus::of(peer, all_down)).collect()
        });
        peers.sort_unstable_by_key(|peer| peer.id);
        Self {
            closed: set.is_closed(),
            pool_name: set.settings().pool_name.clone(),
            peers,
            events: set.journal().history(),
            events_dropped: set.journal().dropped(),
        }
    }

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
    /// It is not, by an operator's word, and the pool still has sessions there.
    Draining,
    /// It is not, by an operator's word, and the pool has no session there, but for a check now and then.
    Drained,
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Draining => "draining",
            Self::Drained => "drained",
        })
    }
}

/// The state of one peer at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PeerStatus {
    /// Tells it from another peer of its name, which there may be while it is removed.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its weight.
    pub weight: u32,
    /// Its tier, which matters under [`Strategy::Ordered`](crate::Strategy::Ordered).
    pub tier: u32,
    /// Whether it is given new work.
    pub state: PeerState,
    /// Since when it has been in this state.
    pub since: Instant,
    /// Why it is down, or was found to be so by the last check if it is not in service; else `None`.
    /// Client libraries' messages, without URL or password.
    pub reason: Option<String>,
    /// What that says of the peer.
    pub fault: Option<Fault>,
    /// Whether it had no connection to give when it was last asked for one. It is up all the same:
    /// those that it has given go on being used, and other peers get the new ones.
    pub is_full: bool,
    /// Whether a query has been running there for 100 milliseconds and nothing was heard from it since:
    /// other peers are given the work meanwhile.
    pub is_unresponsive: bool,
    /// Whether it is being removed: `Draining`, and cannot be resumed. Another peer may have its name.
    pub is_being_removed: bool,
    /// When it is checked next.
    pub next_check: Instant,
    /// Connections of the pool that are open, in use or idle. (The idle ones of a peer that is down or
    /// drained are counted until the pool has closed them, although their sessions have ended.)
    pub connections: usize,
    /// Connections of the pool that are in use. In a pool built with `test_on_check_out(false)` one
    /// counts from the first time that it is used in its checkout; with `Balance::PerConnection` as
    /// well, not at all.
    pub in_use: usize,
    /// Logins for the pool that are under way.
    pub connecting: usize,
    /// Logins that were given up at their deadline, and could not be ended.
    pub stuck_logins: usize,
    /// Connections that were made for the pool since it became a peer.
    pub connects: u64,
    /// Failed logins, for the pool and of checks, since it became a peer.
    pub connect_failures: u64,
    /// Checkouts that it has served since it became a peer.
    pub checkouts: u64,
    /// Queries that have ended there since it became a peer, well or not: the application's, `BEGIN` and
    /// `COMMIT` among them, and not the pings of this crate.
    pub queries: u64,
    /// How long those took, all together.
    pub query_time: Duration,
    /// Queries that ended with a lost connection since it became a peer.
    pub queries_lost: u64,
}

impl fmt::Display for Snapshot {
    /// A table for a terminal.
    #[expect(clippy::disallowed_methods, reason = "times are shown as how long ago they were")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        table::write(self, Instant::now(), f)
    }
}

impl PeerStatus {
    /// Whether it takes new work: it is up, nobody has drained it, and its weight is not 0.
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.state == PeerState::Up && self.weight > 0
    }

    fn of(peer: &Peer, all_down: bool) -> Self {
        let (health, health_since, refusal) = match &peer.health {
            Health::Up { since } => (PeerState::Up, *since, None),
            Health::Down { since, refusal } => (PeerState::Down, *since, Some(refusal)),
        };
        let (state, since) = match peer.admin_state {
            AdminState::Ready => (health, health_since),
            AdminState::Draining { since, .. } => (PeerState::Draining, since),
            AdminState::Drained { since } => (PeerState::Drained, since),
            AdminState::Removed => (PeerState::Drained, health_since),
        };
        let Counts { connecting, stuck_logins, links } = peer.counts;
        let PeerCounters { checkouts, queries, queries_lost, connects, connect_failures, .. } =
            &peer.activity.counters;
        Self {
            id: peer.id,
            name: peer.name.to_string(),
            weight: peer.weight,
            tier: peer.tier,
            state,
            since,
            reason: refusal.map(|refusal| refusal.reason.to_string()),
            fault: refusal.map(|refusal| refusal.fault),
            is_full: peer.is_full,
            is_unresponsive: peer.activity.is_unresponsive(),
            is_being_removed: !peer.is_member(),
            next_check: peer.scheduled_check(all_down),
            connections: links,
            in_use: peer.activity.in_use(),
            connecting,
            stuck_logins,
            connects: connects.get(),
            connect_failures: connect_failures.get(),
            checkouts: checkouts.get(),
            queries: queries.count(),
            query_time: queries.total(),
            queries_lost: queries_lost.get(),
        }
    }
}
