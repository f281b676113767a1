//! The outcomes of logins and checks. Each passes [`Transaction::attribute`], which decides whether a failure
//! is the peer's or this host's.

use std::time::Instant;

use log::{info, warn};

use super::Transaction;
use super::peer_ref::PeerRef;
use crate::events::log::LOG_TARGET;
use crate::fault::LoginFailure;
use crate::fault::host::HostFailure;
use crate::panics::catch_panic;
use crate::peers::evidence::{Origin, Undecided, judge};
use crate::peers::peer::{Attempt, CheckKind, Peer};

/// The time from which on this host cannot make connections, and the reason.
#[derive(Debug, Clone)]
pub(super) struct CurrentHostFailure {
    since: Instant,
    pub(super) failure: HostFailure,
}

/// A change of whether this host can make connections.
#[derive(Debug)]
pub(super) enum HostChange {
    Failed(HostFailure),
    Works,
}

impl PeerRef {
    /// Records a successful login for the pool.
    pub(crate) fn login_succeeded(&self, attempt: Attempt) {
        self.change(attempt, |transaction| {
            transaction.reached(self.index, attempt);
            transaction.update(self.index, |peer, _| peer.connected(attempt));
        });
    }

    /// Records a failed login for the pool. Returns the failure as it concerns the peer.
    pub(crate) fn login_failed(&self, attempt: Attempt, failure: LoginFailure) -> LoginFailure {
        self.change(attempt, |transaction| {
            let failure = transaction.attribute(self.index, attempt, failure);
            transaction.update(self.index, |peer, check_times| {
                peer.connect_failed(attempt, failure.clone(), check_times);
            });
            failure
        })
    }

    /// Records the outcome of a check.
    pub(crate) fn check_ended(
        &self,
        kind: CheckKind,
        attempt: Attempt,
        outcome: Result<(), LoginFailure>,
    ) {
        self.change(attempt, |transaction| {
            let outcome = match outcome {
                Ok(()) => {
                    transaction.reached(self.index, attempt);
                    Ok(())
                }
                Err(failure) => Err(transaction.attribute(self.index, attempt, failure)),
            };
            transaction.update(self.index, |peer, check_times| {
                peer.check_ended(kind, attempt, outcome, check_times);
            });
        });
    }

    fn change<T>(&self, attempt: Attempt, change: impl FnOnce(&mut Transaction<'_>) -> T) -> T {
        let (outcome, change) = self.set.change(attempt.ended, |transaction| {
            let outcome = change(transaction);
            (outcome, transaction.host_change.take())
        });
        // A logger is user code, which may panic.
        let _ = catch_panic(|| {
            change.map(|change| log_change(&self.set.settings().pool_name, &change))
        });
        outcome
    }
}

fn log_change(pool: &str, change: &HostChange) {
    match change {
        HostChange::Failed(failure) => {
            let reason = failure.to_string();
            warn!(
                target: LOG_TARGET, pool = pool, event = "host_failed", reason = reason.as_str();
                "no connection can be opened: {reason}; the peers' states stay unchanged"
            );
        }
        HostChange::Works => info!(
            target: LOG_TARGET, pool = pool, event = "host_works"; "this host can open connections again"
        ),
    }
}

impl Transaction<'_> {
    /// Records that this host lacked nothing for a login.
    fn reached(&mut self, index: usize, attempt: Attempt) {
        self.inner.peers[index].evidence.reached(attempt.began);
        self.host_works_since(attempt.began);
        self.decide_all();
    }

    /// Decides whether the failure of a login is its peer's or this host's. Returns the failure as it concerns
    /// the peer: a failure of this host is not the peer's.
    fn attribute(&mut self, index: usize, attempt: Attempt, failure: LoginFailure) -> LoginFailure {
        self.inner.peers[index].activity.login_failed(&failure);
        let failure = match failure {
            LoginFailure::OfHost(failure) => failure,
            LoginFailure::NotAttempted(_) => return failure,
            LoginFailure::Held(reason) => {
                self.reached(index, attempt);
                return self.inner.peers[index].judge_held(attempt, reason);
            }
            LoginFailure::Refused(_) | LoginFailure::Unanswered(_) | LoginFailure::Unreached(_) => {
                self.reached(index, attempt);
                return failure;
            }
        };
        if failure.lack.concerns_all_peers() {
            self.host_failed(failure.clone());
            return LoginFailure::NotAttempted(failure.to_string().into());
        }
        self.inner.peers[index].evidence.failed(attempt, failure.clone());
        match self.judge(index, attempt.began, &failure) {
            Origin::Peer => {
                self.inner.peers[index].evidence.undecided = None;
                self.decide_all();
                unreached(failure)
            }
            Origin::Host => {
                self.inner.peers.iter_mut().for_each(|peer| peer.evidence.undecided = None);
                self.host_failed(failure.clone());
                LoginFailure::NotAttempted(failure.to_string().into())
            }
            Origin::Undecided => {
                let now = self.now;
                for other in 0..self.inner.peers.len() {
                    let peer = &self.inner.peers[other];
                    if other != index && peer.is_member() && !peer.evidence.may_be_of_host() {
                        self.update(other, |peer, _| peer.check_now(now));
                    }
                }
                LoginFailure::NotAttempted(failure.reason)
            }
        }
    }

    fn judge(&self, index: usize, began: Instant, failure: &HostFailure) -> Origin {
        let members = || self.inner.peers.iter().enumerate().filter(|(_, peer)| peer.is_member());
        let others = members().filter(|(other, _)| *other != index);
        let others = others.map(|(_, peer)| &peer.evidence);
        let has_links = members().any(|(_, peer)| peer.counts.links > 0);
        judge(failure.lack, began, others, has_links)
    }

    /// Marks the peers down whose failures turn out to be their own.
    fn decide_all(&mut self) {
        for index in 0..self.inner.peers.len() {
            let Some(undecided) = &self.inner.peers[index].evidence.undecided else { continue };
            let Undecided { attempt, failure } = undecided.clone();
            if self.judge(index, attempt.began, &failure) == Origin::Peer {
                self.inner.peers[index].evidence.undecided = None;
                self.update(index, |peer, check_times| {
                    peer.connect_failed(attempt, unreached(failure), check_times);
                });
            }
        }
    }

    /// Records that this host cannot make connections. The next tries are the checks, not before
    /// `all_down_interval` is over.
    fn host_failed(&mut self, failure: HostFailure) {
        if self.inner.host_failure.is_none() {
            let all_down = self.set.settings.check_times(self.now, &mut self.inner.rng).all_down;
            let delay = |peer: &mut Peer| peer.checks.delay_while_all_down(all_down);
            self.inner.peers.iter_mut().for_each(delay);
            let current = CurrentHostFailure { since: self.now, failure: failure.clone() };
            self.inner.host_failure = Some(current);
            self.host_changed(HostChange::Failed(failure));
        }
    }

    /// Records that a login or check that began at `began` did not fail because of this host.
    fn host_works_since(&mut self, began: Instant) {
        if self.inner.host_failure.take_if(|current| current.since <= began).is_some() {
            self.host_changed(HostChange::Works);
        }
    }
}

fn unreached(failure: HostFailure) -> LoginFailure {
    LoginFailure::Unreached(failure.reason)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::fault::Fault;
    use crate::fault::host::Lack;
    use crate::peers::set::PeerSet;
    use crate::peers::set::tests::{is_up, set_of};
    use crate::settings::policy::Recovery;

    fn peer(set: &Arc<PeerSet>, index: usize, now: Instant) -> PeerRef {
        set.transaction(now, |transaction| transaction.peer_ref(index))
    }

    fn fails(set: &Arc<PeerSet>, index: usize, now: Instant, lack: Lack) {
        let failure = HostFailure { lack, reason: "failed".into() };
        let failure = LoginFailure::OfHost(failure);
        peer(set, index, now).login_failed(Attempt::at(now), failure);
    }

    fn succeeds(set: &Arc<PeerSet>, index: usize, now: Instant) {
        peer(set, index, now).login_succeeded(Attempt::at(now));
    }

    #[test]
    fn names_that_cannot_be_resolved_for_a_while_mark_only_the_one_that_stays_so() {
        let (set, _woken, start) = set_of(2, Recovery::AfterCheck);
        let at = |millis| start + Duration::from_millis(millis);
        set.update_counts(0, |counts| counts.links = 1);
        fails(&set, 0, at(0), Lack::Name);
        assert!(set.host_failure().is_none() && is_up(&set, 0), "the other peer is tried first");
        fails(&set, 1, at(1), Lack::Name);
        assert!(set.host_failure().is_some() && set.cannot_connect(), "both fail alike");
        assert!(set.pick(|_| false).is_none(), "only checks are made");
        succeeds(&set, 0, at(2));
        assert!(set.host_failure().is_none() && !set.cannot_connect(), "one name is resolved");
        assert!(is_up(&set, 1), "the last failure of the other peer was this host's");
        fails(&set, 1, at(3), Lack::Name);
        assert!(is_up(&set, 1), "the first peer is tried again");
        succeeds(&set, 0, at(4));
        assert!(!is_up(&set, 1), "only the name of the second peer cannot be resolved");
        assert!(is_up(&set, 0) && !set.cannot_connect());
    }

    #[test]
    fn lack_of_descriptors_lasts_until_a_later_login_is_answered() {
        let (set, _woken, start) = set_of(2, Recovery::AfterCheck);
        let at = |millis| start + Duration::from_millis(millis);
        fails(&set, 0, at(5), Lack::Descriptors);
        assert!(set.cannot_connect() && is_up(&set, 0), "one failure is enough");
        succeeds(&set, 1, at(4));
        assert!(set.cannot_connect(), "a login that began before proves nothing");
        let refused = LoginFailure::refused(Fault::PeerDown, "refused");
        peer(&set, 1, at(6)).login_failed(Attempt::at(at(6)), refused);
        assert!(!set.cannot_connect() && !is_up(&set, 1), "a refusal is an answer");
    }
}
