//! The health of a peer: up or down, as the newest login or check has decided. Pure.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fault::{FailureCause, Fault};

/// The time in which a refused query only causes a check, after a check has contradicted an earlier one:
/// the peer was marked down for a refused query alone, and the next check found it fine.
const REFUSED_QUERY_COOLDOWN: Duration = Duration::from_secs(10);

/// The reason of a peer that is marked down because of a refused query alone.
const REFUSED_QUERY_REASON: &str = "a query was refused: the server takes no work at the moment";

/// The health of a peer.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    pub(crate) state: HealthState,
    /// Whether the peer is down for a reason that concerns its sessions as well: its queries hang, or the
    /// server says itself that it takes no work or has the wrong role. Any other failed login says
    /// nothing about sessions.
    pub(crate) sessions_fail: bool,
    /// The error with which the peer said at the last login or check that it has no free connection.
    /// Existing connections stay in use. `None` for a peer that is down.
    pub(crate) full: Option<Arc<str>>,
    /// When the login or check began that decided `state`. The outcome of an older one is ignored.
    decided_by: Option<Instant>,
    /// Whether the peer is down because of a refused query alone.
    pub(super) is_down_for_refused_query: bool,
    /// When the peer was last found fine although it was down because of a refused query alone.
    refused_query_contradicted: Option<Instant>,
}

/// Whether a peer is up or down.
#[derive(Debug, Clone)]
pub(crate) enum HealthState {
    Up { since: Instant },
    Down { since: Instant, cause: FailureCause },
}

impl Health {
    /// Creates the health of a peer that has not been checked yet: it is assumed to be up.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: HealthState::Up { since: now },
            sessions_fail: false,
            full: None,
            decided_by: None,
            is_down_for_refused_query: false,
            refused_query_contradicted: None,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, HealthState::Up { .. })
    }

    /// Marks the peer up, unless a login or check has decided that began after `began`.
    pub(super) fn mark_up(&mut self, began: Instant, now: Instant) {
        if self.is_outdated(began) {
            return;
        }
        self.decided_by = Some(began);
        if mem::take(&mut self.is_down_for_refused_query) {
            self.refused_query_contradicted = Some(now);
        }
        self.sessions_fail = false;
        if !self.is_up() {
            self.state = HealthState::Up { since: now };
        }
    }

    /// Marks the peer down, unless a login or check has decided that began after `began`. For a peer
    /// that is down already, only the cause changes. Returns whether the peer was up.
    pub(super) fn mark_down(&mut self, began: Instant, now: Instant, cause: FailureCause) -> bool {
        if self.is_outdated(began) {
            return false;
        }
        self.decided_by = Some(began);
        self.is_down_for_refused_query = false;
        self.sessions_fail |=
            cause.of_session && matches!(cause.fault, Fault::PeerNotReady | Fault::WrongRole);
        self.full = None;
        match &mut self.state {
            HealthState::Down { cause: last, .. } => {
                *last = cause;
                false
            }
            HealthState::Up { .. } => {
                self.state = HealthState::Down { since: now, cause };
                true
            }
        }
    }

    /// Whether a check has found the peer fine a short time ago although it had refused a query.
    pub(super) fn is_refused_query_contradicted(&self, now: Instant) -> bool {
        self.refused_query_contradicted.is_some_and(|at| now < at + REFUSED_QUERY_COOLDOWN)
    }

    /// Marks the peer down because it has refused a query at `now`. Returns `false` without an effect
    /// if a check has contradicted that a short time ago.
    pub(super) fn mark_for_refused_query(&mut self, now: Instant) -> bool {
        if self.is_refused_query_contradicted(now) {
            return false;
        }
        let cause = FailureCause {
            of_session: true,
            ..FailureCause::new(Fault::PeerNotReady, REFUSED_QUERY_REASON)
        };
        let was_up = self.mark_down(now, now, cause);
        self.is_down_for_refused_query = was_up;
        was_up
    }

    /// Whether a login or check that began at `began` is older than the one that decided.
    pub(super) fn is_outdated(&self, began: Instant) -> bool {
        self.decided_by.is_some_and(|decided| began < decided)
    }
}
