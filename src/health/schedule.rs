//! The scheduled work of the checker: expired marks, health checks, draining peers and peers at their limits.

use std::time::{Duration, Instant};

use crate::login::dial::HealthCheck;
use crate::peers::peer::{CheckKind, Counts, Peer};
use crate::peers::set::{DRAIN_POLL_INTERVAL, Transaction};
use crate::settings::Settings;

/// Does the scheduled work, if any is due: clears expired marks under
/// [`Recovery::AfterInterval`](crate::Recovery::AfterInterval), begins checks, ends the draining of peers and
/// sees which of those at their limits have room.
/// Returns the checks.
pub(super) fn run_schedule(transaction: &mut Transaction<'_>) -> Vec<HealthCheck> {
    let (now, settings) = (transaction.now, transaction.settings());
    let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
    if !is_due(transaction.next_due()) {
        return Vec::new();
    }
    transaction.clear_next_due();
    let cannot_connect = transaction.cannot_connect();
    let mut checks = Vec::new();
    for index in 0..transaction.peers().len() {
        if is_due(transaction.peers()[index].mark_expiry(settings.recovery)) {
            transaction.update(index, |peer, check_times| peer.clear_mark(now, check_times));
        }
        let peer = &transaction.peers()[index];
        if is_due(peer.earliest_check(cannot_connect)) {
            let timeout = if peer.is_checked_often(cannot_connect) {
                short_timeout(peer, settings)
            } else {
                settings.connect_timeout
            };
            checks.extend(begin_check(transaction, index, CheckKind::Regular, timeout));
        }
        if transaction.peers()[index].is_draining() {
            transaction.update(index, |peer, _| peer.end_draining(now));
        }
        if is_due(transaction.peers()[index].next_limit_look()) {
            transaction.update(index, |peer, _| peer.look_for_room(now));
        }
        transaction.update_next_due(index);
        if transaction.peers()[index].is_draining() {
            transaction.due_at(now + DRAIN_POLL_INTERVAL);
        }
    }
    checks
}

/// Has the shares of the peers grow that have begun to serve. Returns when the next one grows.
pub(super) fn run_slow_starts(transaction: &mut Transaction<'_>) -> Option<Instant> {
    let (now, length) = (transaction.now, transaction.settings().slow_start);
    if length.is_zero() {
        return None;
    }
    let mut next = None;
    for index in 0..transaction.peers().len() {
        let before = transaction.peers()[index].slow_start;
        let mut after = before;
        next = [next, after.advance(now, length)].into_iter().flatten().min();
        if after != before {
            transaction.update(index, |peer, _| peer.slow_start = after);
        }
    }
    next
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
    // While this host cannot make connections, nothing can be learned of a peer.
    let Counts { stuck_logins, waiting_logins, .. } = transaction.peers()[index].counts;
    let is_useless = kind == CheckKind::Stall
        && (stuck_logins > waiting_logins || transaction.host_has_failed());
    let begins = !is_useless && transaction.update(index, |peer, _| peer.checks.begin(kind, now));
    begins.then(|| HealthCheck { peer: transaction.peer_ref(index), kind, began: now, timeout })
}

/// Returns the timeout of a check whose answer is needed soon: `check_timeout`, or the expected
/// login time if that is longer, but at most `connect_timeout`. Before the first successful login
/// it is `connect_timeout`.
pub(super) fn short_timeout(peer: &Peer, settings: &Settings) -> Duration {
    let expected = peer.slow_login_after().unwrap_or(Duration::MAX);
    expected.max(settings.check_timeout).min(settings.connect_timeout)
}
