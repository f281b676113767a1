//! The result of the examination of one peer.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::fact::{Aspect, FactValue};
use crate::fault::Fault;

/// The result of the examination of one peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Finding {
    /// The name of the peer.
    pub name: String,
    /// Whether the pool would use the peer.
    pub condition: Condition,
    /// The kind of the failure. `None` if the peer is ready, timed out or was not examined.
    pub fault: Option<Fault>,
    /// The reason why the peer is not ready, without URL or password; often a message of the client
    /// library. `None` if the peer is ready.
    pub reason: Option<String>,
    /// The duration of the login, including all that the pool does to prepare and test a new connection.
    /// `None` if the login failed.
    pub login: Option<Duration>,
    /// The shortest of three measured round trips of `SELECT 1`. `None` if the peer answered none of
    /// them.
    pub round_trip: Option<Duration>,
    /// The most connections that the pool would have with the peer
    /// ([`max_connections`](crate::PeerManagerBuilder::max_connections)). `None` without a limit.
    pub max_connections: Option<u32>,
    /// Why the [ledger](crate::Ledger) of the pool cannot be used on the peer, and the correction.
    pub ledger_flaw: Option<String>,
    /// The values that the peer reported. Aspects that the peer does not have are left out.
    pub facts: BTreeMap<Aspect, FactValue>,
}

impl Finding {
    /// Returns a sentence if the peer is not ready, and one if the ledger cannot be used.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        let flaw = self.ledger_flaw.as_ref().map(|flaw| format!("{}: {flaw}", self.name));
        self.not_ready().into_iter().chain(flaw)
    }

    fn not_ready(&self) -> Option<String> {
        let Self { name, condition, reason, .. } = self;
        let reason = reason.as_ref()?;
        let verdict = match condition {
            Condition::WrongRole => "has the wrong role",
            Condition::TimedOut => "timed out",
            Condition::NotExamined => "was not examined",
            _ => return Some(format!("{name} is {condition}: {reason}")),
        };
        Some(format!("{name} {verdict}: {reason}"))
    }
}

/// Whether the pool would use a peer, and if not, what prevents that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Condition {
    /// The pool would use this peer: the login succeeded and the pool's tests passed.
    Ready,
    /// The peer is running, but accepts no work at the moment ([`Fault::PeerNotReady`]) or fails one of the
    /// pool's tests.
    NotReady,
    /// The peer does not have the role that [`require`](crate::PeerManagerBuilder::require) demands.
    WrongRole,
    /// The peer has reached its limit of connections.
    Full,
    /// The user, password, database or TLS does not match between our settings and the server's. For
    /// SQLite also: the file does not exist, and the pool would create it.
    Misconfigured,
    /// The peer cannot be reached, or refuses the login without a known reason.
    Unreachable,
    /// The peer did not complete the login or answer the queries after it within
    /// [`connect_timeout`](crate::PeerManagerBuilder::connect_timeout).
    TimedOut,
    /// The peer was not examined, or not completely, because of this process: for example, there were no
    /// credentials for the peer, or no thread could be started.
    NotExamined,
}

impl Condition {
    /// Converts the fault of a failure. After the login a peer counts as reachable.
    pub(super) fn from_fault(fault: Fault, is_logged_in: bool) -> Self {
        match fault {
            Fault::PeerNotReady | Fault::OutOfResources => Self::NotReady,
            Fault::WrongRole => Self::WrongRole,
            Fault::PeerFull => Self::Full,
            Fault::Misconfigured => Self::Misconfigured,
            Fault::PeerDown | Fault::Retryable | Fault::Query if is_logged_in => Self::NotReady,
            Fault::PeerDown | Fault::Retryable | Fault::Query | Fault::ConnectionLost => {
                Self::Unreachable
            }
        }
    }

    /// Returns a stable `snake_case` name, as used in [`Report::to_json`](super::Report::to_json).
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::NotReady => "not_ready",
            Self::WrongRole => "wrong_role",
            Self::Full => "full",
            Self::Misconfigured => "misconfigured",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::NotExamined => "not_examined",
        }
    }
}

/// Writes the name with spaces instead of underscores.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.as_str().replace('_', " "))
    }
}
