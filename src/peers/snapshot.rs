//! A copy of the state of all peers at one moment, for programs and for people.

pub(crate) mod table;
mod transaction_counts;

use std::fmt;
use std::time::{Duration, Instant};

use crate::events::Event;
use crate::fault::Fault;
use crate::peers::admin_state::AdminState;
use crate::peers::counters::PeerCounters;
use crate::peers::peer::{Counts, HealthState, Peer};
use crate::peers::retry_budget::RetryBudget;
use crate::peers::set::PeerSet;

pub use transaction_counts::TransactionCounts;

/// A copy of the state of all peers at one moment. `Display` prints a table for a terminal.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Whether the pool has been dropped. All other fields are then the last known ones.
    pub closed: bool,
    /// The name of the pool ([`pool_name`](crate::PeerManagerBuilder::pool_name)).
    pub pool_name: String,
    /// Why this host cannot open connections, whichever the peer: it lacks file descriptors or a network, for
    /// example. The states of the peers stay unchanged meanwhile.
    pub host_failure: Option<String>,
    /// All peers, in the order in which they were added.
    pub peers: Vec<PeerStatus>,
    /// The last 100 changes of state, the newest last.
    pub events: Vec<Event>,
    /// How many events the [event handler](crate::PeerManagerBuilder::event_handler) missed, because its
    /// queue was full.
    pub events_dropped: u64,
    /// How many interrupted transactions and reads may be run again at the moment: the retry budget of the pool.
    pub retry_budget: usize,
    /// The most that `retry_budget` can be.
    pub retry_budget_max: usize,
}

impl Snapshot {
    pub(crate) fn new(set: &PeerSet, now: Instant) -> Self {
        let cannot_connect = set.cannot_connect();
        let mut peers: Vec<PeerStatus> = set.read(|peers| {
            let listed = peers.iter().filter(|peer| !peer.is_removed());
            listed.map(|peer| PeerStatus::new(peer, cannot_connect)).collect()
        });
        peers.sort_unstable_by_key(|peer| peer.id);
        Self {
            closed: set.is_closed(),
            pool_name: set.settings().pool_name.clone(),
            host_failure: set.host_failure().map(|failure| failure.to_string()),
            peers,
            events: set.event_log.history(),
            events_dropped: set.event_log.dropped(),
            retry_budget: set.retry_budget.available(now),
            retry_budget_max: RetryBudget::MAX,
        }
    }

    /// Returns the peer of this name.
    #[must_use]
    pub fn peer(&self, name: &str) -> Option<&PeerStatus> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    /// The peers on which a transaction was interrupted or in doubt.
    pub(crate) fn peers_with_transactions(&self) -> impl Iterator<Item = &PeerStatus> {
        self.peers.iter().filter(|peer| !peer.transactions.is_zero())
    }
}

/// The health of a peer, or how far its draining has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PeerState {
    /// The peer is up and in service. It gets new work unless its weight is 0 or another tier serves. A peer
    /// that has not been checked yet counts as up.
    Up,
    /// The peer failed and is marked down. It gets no new work until its mark is cleared (by default, by a
    /// successful check).
    Down,
    /// The peer is marked down because logins fail, and its open connections work: since then, at least one
    /// query has ended on one of them. They are used as the last choice until connections to other peers
    /// replace them.
    Degraded,
    /// The peer is being drained; the pool still has sessions with it.
    Draining,
    /// The peer is drained; the pool has no session with it, except for the short one of each health check.
    Drained,
}

impl PeerState {
    /// Whether the peer is marked down, whatever is known of its sessions: `Down` or `Degraded`.
    #[must_use]
    pub fn is_marked_down(self) -> bool {
        matches!(self, Self::Down | Self::Degraded)
    }

    /// Returns a stable `snake_case` name, as used in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
            Self::Drained => "drained",
        }
    }
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The state of one peer at one moment. Counters start at 0 when the peer is added.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct PeerStatus {
    /// A number that identifies the peer in this process. While a peer is being removed, another peer may
    /// have the same name.
    pub id: u64,
    /// The name of the peer.
    pub name: String,
    /// The weight of the peer.
    pub weight: u32,
    /// The tier of the peer, for [`Strategy::Ordered`](crate::Strategy::Ordered).
    pub tier: u32,
    /// The most connections that the pool may have with the peer
    /// ([`max_connections`](crate::PeerManagerBuilder::max_connections)). `None` without a limit.
    pub max_connections: Option<u32>,
    /// The state of the peer.
    pub state: PeerState,
    /// The moment at which the peer entered this state.
    pub since: Instant,
    /// Why the peer is down; for a peer out of service, why its last check failed. The text is the client
    /// library's, without URL or password. `None` for a peer that works.
    pub reason: Option<String>,
    /// The fault of `reason`.
    pub fault: Option<Fault>,
    /// Whether the peer refused the last new connection because it has too many. The peer stays up: its
    /// existing connections are used, and new connections go to other peers.
    pub is_full: bool,
    /// Whether the pool lacks connections because this peer, and every other that could take one, has reached
    /// its `max_connections`.
    pub is_at_limit: bool,
    /// Whether a query has been running for 100 milliseconds on the peer without any answer from it since.
    /// Other peers are preferred meanwhile.
    pub is_unresponsive: bool,
    /// Since when the peer is an outlier: alive, and much slower than the other peers
    /// ([`slow_peers`](crate::PeerManagerBuilder::slow_peers)).
    pub slow_since: Option<Instant>,
    /// Whether the peer is being removed: its state is `Draining`, and it cannot be resumed.
    pub is_being_removed: bool,
    /// The moment of the next health check.
    pub next_check: Instant,
    /// Open connections of the pool, in use or idle. (A connection counts until the pool has closed it; its
    /// session may have ended already.)
    pub connections: usize,
    /// Connections of the pool that are in use, which means checked out. In a pool with
    /// `test_on_check_out(false)` a connection counts from its first use after the checkout; with
    /// `Balance::PerConnection` in addition, connections do not count at all.
    pub in_use: usize,
    /// Logins for the pool that are in progress.
    pub connecting: usize,
    /// Logins that passed their deadline and have not ended yet.
    pub stuck_logins: usize,
    /// Connections opened for the pool so far.
    pub connects: u64,
    /// Failed logins so far, for the pool and for health checks.
    pub connect_failures: u64,
    /// Checkouts that the peer has served so far.
    pub checkouts: u64,
    /// Queries of the application that have ended so far, successfully or not. `BEGIN` and `COMMIT` count,
    /// pings do not.
    pub queries: u64,
    /// The total duration of `queries`.
    pub query_time: Duration,
    /// Queries that have ended so far with a lost connection.
    pub queries_lost: u64,
    /// What has become of the transactions that were interrupted on the peer.
    pub transactions: TransactionCounts,
}

impl fmt::Display for Snapshot {
    #[expect(
        clippy::disallowed_methods,
        reason = "the table shows how long ago something happened"
    )]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        table::write(self, Instant::now(), f)
    }
}

impl PeerStatus {
    /// Whether the peer gets new work: it is up, in service, and its weight is not 0.
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.state == PeerState::Up && self.weight > 0
    }

    fn new(peer: &Peer, cannot_connect: bool) -> Self {
        let (health, health_since, cause) = match &peer.health.state {
            HealthState::Up { since } => (PeerState::Up, *since, None),
            HealthState::Down { since, cause } if peer.is_degraded() => {
                (PeerState::Degraded, *since, Some(cause))
            }
            HealthState::Down { since, cause } => (PeerState::Down, *since, Some(cause)),
        };
        let (state, since) = match peer.admin_state {
            AdminState::InService => (health, health_since),
            AdminState::Draining { since, .. } => (PeerState::Draining, since),
            AdminState::Drained { since } => (PeerState::Drained, since),
            AdminState::Removed => (PeerState::Drained, health_since),
        };
        let Counts { connecting, stuck_logins, links, .. } = peer.counts;
        let PeerCounters { checkouts, queries, queries_lost, connects, connect_failures, .. } =
            &peer.activity.counters;
        Self {
            id: peer.id,
            name: peer.name.to_string(),
            weight: peer.weight,
            tier: peer.tier,
            max_connections: peer.max_connections,
            state,
            since,
            reason: cause.map(|cause| cause.reason.to_string()),
            fault: cause.map(|cause| cause.fault),
            is_full: peer.is_full(),
            is_at_limit: peer.is_at_limit(),
            is_unresponsive: peer.activity.is_unresponsive(),
            slow_since: peer.slow.map(|slow| slow.since),
            is_being_removed: !peer.is_member(),
            next_check: peer.scheduled_check(cannot_connect),
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
            transactions: TransactionCounts::new(&peer.activity.counters),
        }
    }
}
