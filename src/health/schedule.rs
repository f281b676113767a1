//! The scheduled work of the checker: expired marks, health checks and draining peers.

use std::time::{Duration, Instant};

use crate::login::dial::HealthCheck;
use crate::peers::admin_state::AdminState;
use crate::peers::peer::{CheckKind, Peer};
use crate::peers::placement::no_peer_available;
use crate::peers::set::Transaction;
use crate::settings::Settings;
use crate::settings::policy::Recovery;

/// Clears expired marks under [`Recovery::AfterInterval`] and begins the scheduled checks. Also returns
/// when to run again.
pub(super) fn begin_checks(
    transaction: &mut Transaction<'_>,
) -> (Vec<HealthCheck>, Option<Instant>) {
    let (now, settings) = (transaction.now, transaction.settings());
    let none_available = no_peer_available(transaction.peers());
    let mut checks = Vec::new();
    let mut next: Option<Instant> = None;
    for index in 0..transaction.peers().len() {
        // A peer with a stuck login recovers by a check only, so only the checker logs in to it. A mark
        // that expires without a check is cleared even while a check is running.
        let mark_expiry = |peer: &Peer| {
            let is_cleared = settings.recovery == Recovery::AfterInterval
                && peer.counts.stuck_logins == 0
                && !peer.is_removed()
                && !peer.is_up();
            is_cleared.then_some(peer.checks.next)
        };
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(mark_expiry(&transaction.peers()[index])) {
            transaction.update(index, |peer, check_times| peer.clear_mark(now, check_times));
        }
        let peer = &transaction.peers()[index];
        if is_due(peer.earliest_check(none_available)) {
            let timeout = if none_available {
                short_timeout(peer, settings)
            } else {
                settings.connect_timeout
            };
            checks.extend(begin_check(transaction, index, CheckKind::Regular, timeout));
        }
        let peer = &transaction.peers()[index];
        next = [next, mark_expiry(peer), peer.earliest_check(none_available)]
            .into_iter()
            .flatten()
            .min();
    }
    (checks, next)
}

/// Begins a check, unless one of this kind is running or would get stuck.
pub(super) fn begin_check(
    transaction: &mut Transaction<'_>,
    index: usize,
    kind: CheckKind,
    timeout: Duration,
) -> Option<HealthCheck> {
    let now = transaction.now;
    // A stuck login has got no answer and could not be aborted; another login would get stuck as well.
    let is_stuck = kind == CheckKind::Stall && transaction.peers()[index].counts.stuck_logins > 0;
    let begins = !is_stuck && transaction.update(index, |peer, _| peer.checks.begin(kind, now));
    begins.then(|| HealthCheck { peer: transaction.peer_ref(index), kind, began: now, timeout })
}

/// Ends the draining of peers without sessions. Returns whether any peer is still draining.
pub(super) fn end_draining(transaction: &mut Transaction<'_>) -> bool {
    let now = transaction.now;
    let is_draining = |peer: &Peer| matches!(peer.admin_state, AdminState::Draining { .. });
    for index in 0..transaction.peers().len() {
        if is_draining(&transaction.peers()[index]) {
            transaction.update(index, |peer, _| peer.end_draining(now));
        }
    }
    transaction.peers().iter().any(is_draining)
}

/// Returns the timeout of a check whose answer is needed soon: `check_timeout`, or the expected
/// login time if that is longer, but at most `connect_timeout`. Before the first successful login
/// it is `connect_timeout`.
pub(super) fn short_timeout(peer: &Peer, settings: &Settings) -> Duration {
    let expected = peer.slow_login_after().unwrap_or(Duration::MAX);
    expected.max(settings.check_timeout).min(settings.connect_timeout)
}
