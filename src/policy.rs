//! The choices that an application can make.

/// Which peer serves a checkout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Strategy {
    /// The peer with the fewest connections in use for its weight; among several the one that was
    /// given less before. (Where weights differ, fair shares are fractions of connections; what a
    /// peer was given less before counts for up to one.)
    #[default]
    LeastConnections,
    /// A peer by chance, in proportion to the weights.
    Random,
    /// One peer after the other, each for as many turns as its weight. A peer that is down is
    /// passed over, and its turns are nobody's.
    RoundRobin,
    /// Only the peers of the first [tier](crate::PeerManagerBuilder::tier) in which one is up,
    /// and among those the one with the fewest connections in use for its weight.
    Ordered,
}

/// What is balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Balance {
    /// The work: each checkout gets a connection to the peer that should serve it.
    #[default]
    PerCheckout,
    /// The connections: each stays with the pool's slot that it was made for, and a checkout gets
    /// the one that came back last, as with diesel's own manager.
    PerConnection,
}

/// What a peer has to be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Role {
    /// Nothing in particular.
    #[default]
    Any,
    /// Writing as well: one that only reads is down.
    ReadWrite,
    /// Only reading: one that writes is down.
    ReadOnly,
}

/// Whether a Galera node takes work while it hands its state over to another one, or was taken out of
/// step by hand (`wsrep_desync`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Donors {
    /// It does where that does not block it: out of step by hand, or with a `wsrep_sst_method` of
    /// `mariabackup`, `xtrabackup`, `xtrabackup-v2` or `clone`.
    #[default]
    ServeUnlessBlocked,
    /// It does.
    Serve,
    /// It does not: it is down until it is synced.
    Wait,
}

/// What a peer is asked for.
#[derive(Debug, Clone, Copy, Default)]
#[cfg_attr(not(feature = "mysql"), allow(dead_code, reason = "each database reads its own"))]
pub(crate) struct Requirements {
    pub(crate) role: Role,
    pub(crate) donors: Donors,
    /// Whether the connection has to be encrypted, which MariaDB's client library does not see to.
    pub(crate) encrypted: bool,
}

/// How a peer that is down comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Recovery {
    /// The manager logs in by itself and runs `BEGIN; ROLLBACK`. When that succeeds the mark is
    /// cleared, else it is renewed, so that no user's request is spent on finding out.
    #[default]
    AfterCheck,
    /// The mark is cleared without asking, as django-proxysql does, and the next connection that
    /// goes there finds out. Peers that are up are checked all the same.
    AfterInterval,
}

/// What a new connection does while every peer is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AllDown {
    /// Try them, the one that is due soonest first.
    #[default]
    Try,
    /// Fail at once, until a check has found a peer up.
    Fail,
}
