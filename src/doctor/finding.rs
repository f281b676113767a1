//! What was found out about one peer.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::fact::{Aspect, Value};
use crate::fault::Fault;

/// What was found out about one peer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Finding {
    /// Its name.
    pub name: String,
    /// Whether the pool would use it.
    pub condition: Condition,
    /// What kind of failure it is. `None` where the peer is ready, or has said nothing.
    pub fault: Option<Fault>,
    /// Why it is not ready: client libraries' messages, without URL or password.
    pub reason: Option<String>,
    /// How long the login took, with all that a new connection of the pool is put to. `None` where it
    /// did not let us in.
    pub login: Option<Duration>,
    /// How long a `SELECT 1` takes there and back, the shortest of three. `None` where it was not
    /// answered.
    pub round_trip: Option<Duration>,
    /// What it says of itself. What a server has nothing to say of is not there.
    pub facts: BTreeMap<Aspect, Value>,
}

impl Finding {
    /// In a sentence, if it is not ready.
    pub(super) fn problem(&self) -> Option<String> {
        let Self { name, condition, reason, .. } = self;
        let reason = reason.as_ref()?;
        let verdict = match condition {
            Condition::WrongRole => "has the wrong role",
            Condition::Misconfigured => "does not let us in",
            Condition::NotAsked => "was not asked",
            _ => return Some(format!("{name} is {condition}: {reason}")),
        };
        Some(format!("{name} {verdict}: {reason}"))
    }
}

/// Whether the pool would use a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Condition {
    /// It would: the peer was logged in to and has passed the pool's tests.
    Ready,
    /// It is there, and takes no work ([`Fault::PeerNotReady`]), or has failed a test.
    NotReady,
    /// It cannot do what [`require`](crate::PeerManagerBuilder::require) asks for.
    WrongRole,
    /// It has as many connections as it takes.
    Full,
    /// It does not let us in: user, password, database or TLS are wrong, here or there.
    Misconfigured,
    /// It cannot be reached, or does not say why it refuses.
    Unreachable,
    /// It did not answer within `connect_timeout`, the login or what it was asked after that.
    Silent,
    /// It was not asked, because of this process: there were no credentials, or no thread.
    NotAsked,
}

impl Condition {
    /// What a refusal says, of a peer that did or did not let us in before.
    pub(super) fn of(fault: Fault, let_in: bool) -> Self {
        match fault {
            Fault::PeerNotReady => Self::NotReady,
            Fault::WrongRole => Self::WrongRole,
            Fault::PeerFull => Self::Full,
            Fault::Misconfigured => Self::Misconfigured,
            Fault::PeerDown | Fault::Retryable | Fault::Query if let_in => Self::NotReady,
            Fault::PeerDown | Fault::Retryable | Fault::Query | Fault::ConnectionLost => {
                Self::Unreachable
            }
        }
    }

    /// What it is called in [`Report::to_json`](super::Report::to_json).
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::NotReady => "not_ready",
            Self::WrongRole => "wrong_role",
            Self::Full => "full",
            Self::Misconfigured => "misconfigured",
            Self::Unreachable => "unreachable",
            Self::Silent => "silent",
            Self::NotAsked => "not_asked",
        }
    }
}

/// The key, in words.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.key().replace('_', " "))
    }
}
