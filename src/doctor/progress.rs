//! What the examination of one peer has found so far. A peer that stops answering is reported with the
//! facts that it returned before, and with the step that it did not complete.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Mutex;
use std::time::Duration;

use super::fact::{Aspect, FactValue};
use super::finding::{Condition, Finding};
use crate::fault::{FailureCause, Fault, LoginFailure};
use crate::panics::lock;

/// The progress of one peer's examination.
#[derive(Debug, Default)]
pub(super) struct PeerProgress(Mutex<Collected>);

#[derive(Debug, Default)]
struct Collected {
    login: Option<Duration>,
    round_trip: Option<Duration>,
    /// Why the pool would not use the peer although the login succeeded.
    not_ready: Option<LoginFailure>,
    ledger_flaw: Option<String>,
    facts: BTreeMap<Aspect, FactValue>,
    /// The step that has begun last. `None` before the first and after the last step.
    step: Option<&'static str>,
}

impl PeerProgress {
    /// Records a successful login: how long it took, and why the pool would not use the peer, if so.
    pub(super) fn record_login(&self, login: Duration, not_ready: Option<LoginFailure>) {
        let collected = &mut *lock(&self.0);
        collected.login = Some(login);
        collected.not_ready = not_ready;
    }

    pub(super) fn record_round_trip(&self, round_trip: Duration) {
        lock(&self.0).round_trip = Some(round_trip);
    }

    /// Records what the peer is expected to do next, as in "the peer did not ...".
    pub(super) fn begin_step(&self, step: &'static str) {
        lock(&self.0).step = Some(step);
    }

    /// Records that the peer has completed all steps.
    pub(super) fn finish_steps(&self) {
        lock(&self.0).step = None;
    }

    pub(super) fn record_fact(&self, aspect: Aspect, value: FactValue) {
        lock(&self.0).facts.insert(aspect, value);
    }

    /// Records why the ledger cannot be used.
    pub(super) fn record_ledger_flaw(&self, flaw: String) {
        lock(&self.0).ledger_flaw = Some(flaw);
    }

    /// Takes what was recorded and makes a finding of it. `outcome` is the result of the whole
    /// examination.
    pub(super) fn take_finding(&self, name: String, outcome: Result<(), LoginFailure>) -> Finding {
        let Collected { login, round_trip, not_ready, ledger_flaw, facts, step } =
            mem::take(&mut *lock(&self.0));
        let is_logged_in = login.is_some();
        let failure = match (not_ready, outcome) {
            // That failure came first, so a later timeout does not matter.
            (Some(not_ready), _) => Some(not_ready),
            // All steps are complete: closing the connection has timed out.
            (None, Err(failure)) if failure.is_timeout() && is_logged_in && step.is_none() => None,
            (None, Err(failure)) if failure.is_timeout() && is_logged_in => {
                let step = step.unwrap_or_default();
                let reason = format!(
                    "the login succeeded, but the peer did not {step} within `connect_timeout`"
                );
                Some(LoginFailure::Unanswered(reason.into()))
            }
            (None, outcome) => outcome.err(),
        };
        let (condition, fault) = match &failure {
            None => (Condition::Ready, None),
            Some(LoginFailure::Refused(FailureCause { fault, .. })) => {
                (Condition::from_fault(*fault, is_logged_in), Some(*fault))
            }
            Some(LoginFailure::Unanswered(_) | LoginFailure::Held(_)) => {
                (Condition::TimedOut, None)
            }
            Some(LoginFailure::Unreached(_)) => {
                (Condition::from_fault(Fault::PeerDown, is_logged_in), Some(Fault::PeerDown))
            }
            Some(failure @ LoginFailure::OfHost(_)) => match failure.fault() {
                Some(fault) => (Condition::from_fault(fault, is_logged_in), Some(fault)),
                None => (Condition::NotExamined, None),
            },
            Some(LoginFailure::NotAttempted(_)) => (Condition::NotExamined, None),
        };
        let reason = failure.map(|failure| failure.to_string());
        // The caller sets the limit, which does not depend on the login.
        let max_connections = None;
        Finding {
            name,
            condition,
            fault,
            reason,
            login,
            round_trip,
            max_connections,
            ledger_flaw,
            facts,
        }
    }
}
