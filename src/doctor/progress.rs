//! What is known of a peer so far, while it is examined: of one that falls silent it is told how far it
//! got.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Mutex;
use std::time::Duration;

use super::fact::{Aspect, Value};
use super::finding::{Condition, Finding};
use crate::fault::Refusal;
use crate::login::bounded::LoginFailure;
use crate::panics::lock;

/// What is known of a peer so far.
#[derive(Debug, Default)]
pub(super) struct PeerProgress(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    login: Option<Duration>,
    round_trip: Option<Duration>,
    /// Why the pool would not use it.
    unfit: Option<LoginFailure>,
    facts: BTreeMap<Aspect, Value>,
    /// What it is being asked to do.
    asked: Option<&'static str>,
}

impl PeerProgress {
    /// It has let us in.
    pub(super) fn logged_in(&self, login: Duration, unfit: Option<LoginFailure>) {
        let known = &mut *lock(&self.0);
        known.login = Some(login);
        known.unfit = unfit;
    }

    pub(super) fn answers_within(&self, round_trip: Duration) {
        lock(&self.0).round_trip = Some(round_trip);
    }

    /// It is asked to do this next; nothing, once it has told all.
    pub(super) fn asks(&self, asked: Option<&'static str>) {
        lock(&self.0).asked = asked;
    }

    pub(super) fn put(&self, aspect: Aspect, value: Value) {
        lock(&self.0).facts.insert(aspect, value);
    }

    /// What becomes of it: `outcome` is the whole examination's.
    pub(super) fn finding(&self, name: String, outcome: Result<(), LoginFailure>) -> Finding {
        let Known { login, round_trip, unfit, facts, asked } = mem::take(&mut *lock(&self.0));
        let let_in = login.is_some();
        // It was refused before it fell silent. And closing a connection may hang, too.
        let failure = match (unfit, outcome) {
            (Some(unfit), _) => Some(unfit),
            (None, Err(LoginFailure::Unanswered(_))) if let_in && asked.is_none() => None,
            (None, Err(LoginFailure::Unanswered(_))) if let_in => {
                let asked = asked.unwrap_or_default();
                let reason = format!("it let us in, and did not {asked} within `connect_timeout`");
                Some(LoginFailure::Unanswered(reason.into()))
            }
            (None, outcome) => outcome.err(),
        };
        let (condition, fault) = match &failure {
            None => (Condition::Ready, None),
            Some(LoginFailure::Refused(Refusal { fault, .. })) => {
                (Condition::of(*fault, let_in), Some(*fault))
            }
            Some(LoginFailure::Unanswered(_)) => (Condition::Silent, None),
            Some(LoginFailure::NotAttempted(_)) => (Condition::NotAsked, None),
        };
        let reason = failure.map(|failure| failure.to_string());
        Finding { name, condition, fault, reason, login, round_trip, facts }
    }
}
