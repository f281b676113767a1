//! Dials peers: for a new connection of the pool, and for a health check.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, unbounded};
use diesel::r2d2::R2D2Connection;
use log::warn;

use crate::events::log::LOG_TARGET;
use crate::events::{EventKind, next_check_phrase};
use crate::fault::LoginFailure;
use crate::login::bounded::{self, LoginTimeout, OnOutcome};
use crate::login::session::{Hooks, Login, Session};
use crate::panics::catch_panic;
use crate::peers::link_guard::LinkGuard;
use crate::peers::outage::NextStep;
use crate::peers::peer::{Attempt, CheckKind, HealthState, Peer};
use crate::peers::set::PeerSet;
use crate::peers::set::peer_ref::PeerRef;
use crate::settings::policy::AllDown;

/// A new session for the pool. `guard` still counts it as a login.
pub(crate) struct Opened<C> {
    // Dropped before `guard`, so that the connection is closed before it is no longer counted.
    pub(crate) session: Session<C>,
    pub(crate) guard: LinkGuard,
    pub(crate) ended_at: Instant,
}

/// Logs in to one of the peers. While no connection can be opened, the first caller gets the error at once,
/// and after that one of r2d2's workers at a time waits until one can be opened. While limits alone are the reason,
/// all of them wait, since connections that are missing are then opened as soon as there is room.
///
/// # Errors
///
/// Returns a summary of what happened at each peer, without any URL or password.
#[expect(clippy::disallowed_methods, reason = "the wait is bounded as a whole")]
pub(crate) fn connect<C: R2D2Connection + Send + 'static>(
    set: &Arc<PeerSet>,
    hooks: &Arc<Hooks<C>>,
) -> Result<Opened<C>, String> {
    let (mut end, mut room_end, mut may_be_closing) = (None, None, true);
    loop {
        let summary = match dial_peers(set, hooks, &[]) {
            Ok(opened) => return Ok(opened),
            Err(summary) => summary,
        };
        let now = Instant::now();
        if set.lacks_room() {
            if mem::replace(&mut may_be_closing, false) && set.await_closing(now) {
                continue;
            }
            let end = *room_end.get_or_insert(now + set.settings().connect_deadline);
            let has_room =
                || !set.refuse_for_limit(now) || may_wait() && set.wait_for_room(now, end);
            if now < end && has_room() {
                continue;
            }
            return Err(summary);
        }
        if set.settings().all_down == AllDown::Fail || !set.cannot_connect() || !may_wait() {
            return Err(summary);
        }
        let end = *end.get_or_insert(now + set.settings().all_down_wait);
        let left = end.saturating_duration_since(now);
        if set.outage.wait(now, left, || !set.cannot_connect()) == NextStep::Fail {
            return Err(summary);
        }
    }
}

/// Whether this thread serves no other pool, so that it may wait. r2d2 gives workers of these names to a pool
/// that was not given a `thread_pool` of its own. Several pools can share a given one, and a worker that waits
/// for the peers of one pool would be missing for another, whose peers work.
fn may_wait() -> bool {
    thread::current().name().is_some_and(|name| name.starts_with("r2d2-worker-"))
}

/// The outcome of the login to the peer with this id.
struct DialOutcome<C> {
    peer_id: u64,
    result: Result<Opened<C>, LoginFailure>,
}

/// Logs in to one peer after the other, to each at most once and to none of those to `avoid`, by their ids, until a
/// login succeeds. When a login takes longer than it should, the next peer is dialed in parallel.
///
/// # Errors
///
/// Returns a summary of what happened at each peer, without any URL or password.
#[expect(clippy::disallowed_methods, reason = "the time of an attempt is taken here")]
pub(crate) fn dial_peers<C: R2D2Connection + Send + 'static>(
    set: &Arc<PeerSet>,
    hooks: &Arc<Hooks<C>>,
    avoid: &[u64],
) -> Result<Opened<C>, String> {
    let (done, outcomes) = unbounded();
    let mut attempts = DialedPeers::new();
    let mut in_progress = 0;
    let mut now = Instant::now();
    let end = now + set.settings().connect_deadline;
    let mut next = now;
    loop {
        if next <= now {
            next = end;
            let is_tried =
                |peer: &Peer| attempts.contains_key(&peer.id) || avoid.contains(&peer.id);
            if let Some(peer) = set.pick(is_tried) {
                attempts.insert(peer.id, None);
                in_progress += 1;
                next = now + peer.hedge_delay();
                let (peer_id, done) = (peer.id, done.clone());
                // If the caller has stopped waiting, the connection is closed here.
                open(peer, now, hooks.clone(), move |result| {
                    drop(done.send(DialOutcome { peer_id, result }));
                });
            }
        }
        if in_progress == 0 {
            break;
        }
        match outcomes.recv_deadline(next.min(end)) {
            // Logins that are still in progress close the connections that they open.
            Ok(DialOutcome { result: Ok(opened), .. }) => return Ok(opened),
            Ok(DialOutcome { peer_id, result: Err(failure) }) => {
                in_progress -= 1;
                attempts.insert(peer_id, Some(failure));
                next = Instant::now();
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        now = Instant::now();
        if now >= end {
            break;
        }
    }
    if let Some(failure) = set.host_failure() {
        return Err(format!("no connection can be opened, whichever the peer: {failure}"));
    }
    let (cannot_connect, lacks_room) = (set.cannot_connect(), set.lacks_room());
    Err(set.read(|peers| summary(peers, cannot_connect, lacks_room, &attempts, now)))
}

/// Logs in to one peer that [`PeerSet::pick`] has picked. The outcome decides about the peer, even if the
/// caller has stopped waiting.
pub(crate) fn open<C: R2D2Connection + Send + 'static>(
    peer: PeerRef,
    began: Instant,
    hooks: Arc<Hooks<C>>,
    on_result: impl FnOnce(Result<Opened<C>, LoginFailure>) + Send + 'static,
) {
    let guard = LinkGuard::for_login(peer.clone());
    let login = Login::new(peer.clone(), hooks);
    let settings = peer.settings();
    let timeout = settings.connect_timeout.min(settings.connect_deadline);
    bounded::start(
        peer.clone(),
        began,
        LoginTimeout::uniform(timeout),
        move |progress| login.open(progress),
        move |outcome| {
            let now = now();
            let attempt = Attempt { began, ended: now };
            let result = match outcome {
                Ok(session) => {
                    peer.login_succeeded(attempt);
                    Ok(Opened { session, guard, ended_at: now })
                }
                Err(failure) => {
                    let failure = peer.login_failed(attempt, failure);
                    let failed = failure.fault().map(|fault| EventKind::ConnectFailed {
                        reason: failure.to_string(),
                        fault,
                        took: attempt.took(),
                    });
                    if let Some(failed) = failed {
                        peer.record(failed);
                    }
                    // Until now the login is counted as connecting.
                    drop(guard);
                    Err(failure)
                }
            };
            on_result(result);
        },
        None,
    );
}

/// A health check that has begun.
#[derive(Debug)]
pub(crate) struct HealthCheck {
    pub(crate) peer: PeerRef,
    pub(crate) kind: CheckKind,
    pub(crate) began: Instant,
    /// How long the checker waits for an answer.
    pub(crate) timeout: Duration,
}

/// Performs a health check: logs in to the peer, and tests whether it accepts work.
pub(crate) fn check<C: R2D2Connection + Send + 'static>(
    hooks: &Arc<Hooks<C>>,
    HealthCheck { peer, kind, began, timeout }: HealthCheck,
) {
    let login = Login::new(peer.clone(), hooks.clone());
    let timeout = match kind {
        CheckKind::Regular => LoginTimeout::uniform(timeout),
        // An unanswered check may get running queries aborted. So a peer that has begun to answer is given
        // the time to finish.
        CheckKind::Stall => {
            LoginTimeout { silent: timeout, total: peer.settings().connect_timeout }
        }
    };
    let late_peer = peer.clone();
    let on_late = move |outcome| {
        let now = now();
        late_peer.update(now, |peer, check_times| peer.late_check_ended(now, outcome, check_times));
    };
    // A stall check has to end, because its outcome decides about queries.
    let on_late = (kind == CheckKind::Regular).then(|| Box::new(on_late) as OnOutcome<()>);
    bounded::start(
        peer.clone(),
        began,
        timeout,
        move |progress| login.check(progress),
        move |outcome| {
            let is_regular = kind == CheckKind::Regular;
            if let (true, Err(LoginFailure::NotAttempted(error))) = (is_regular, &outcome) {
                let (pool, name) = (&*peer.settings().pool_name, &*peer.name);
                // A logger is user code, which may panic.
                let _ = catch_panic(|| {
                    warn!(
                        target: LOG_TARGET, pool = pool, peer = name, event = "check_skipped",
                        reason = &**error;
                        "cannot check peer {name}: {error}; its state stays unchanged"
                    );
                });
            }
            let now = now();
            let attempt = Attempt { began, ended: now };
            peer.check_ended(kind, attempt, outcome);
        },
        on_late,
    );
}

#[expect(clippy::disallowed_methods, reason = "the time at which a login ends is taken here")]
fn now() -> Instant {
    Instant::now()
}

/// The logins of one call by the id of the peer, and how they failed; `None` while one is in progress.
/// Names do not identify peers here, because a peer may be replaced meanwhile by another one of the same
/// name.
type DialedPeers = BTreeMap<u64, Option<LoginFailure>>;

/// Describes for each peer what happened in this call, or why the peer was skipped, and when the peer is
/// checked next.
fn summary(
    peers: &[Peer],
    cannot_connect: bool,
    lacks_room: bool,
    attempts: &DialedPeers,
    now: Instant,
) -> String {
    let describe = |peer: &Peer| {
        let next =
            next_check_phrase(peer.scheduled_check(cannot_connect).saturating_duration_since(now));
        let name = &peer.name;
        match (attempts.get(&peer.id), &peer.health.state) {
            (Some(None), _) => format!("{name}: no answer yet"),
            (Some(Some(failure @ LoginFailure::NotAttempted(_))), _) => {
                format!("{name}: {failure}")
            }
            (Some(Some(failure)), HealthState::Up { .. }) if !peer.is_full() => {
                format!("{name}: {failure}, up again by now")
            }
            (Some(Some(failure)), _) => format!("{name}: {failure}, {next}"),
            (None, _) if !peer.is_in_service() => {
                format!("{name}: skipped, not in service (draining or drained)")
            }
            (None, _) if peer.is_available() && !peer.has_room() => {
                let max = peer.max_connections.unwrap_or_default();
                format!("{name}: skipped, it has reached max_connections ({max})")
            }
            (None, HealthState::Down { cause, .. }) => {
                format!("{name}: skipped, marked down ({}), {next}", cause.reason)
            }
            (None, HealthState::Up { .. }) if peer.weight == 0 => {
                format!("{name}: skipped, its weight is 0")
            }
            (None, HealthState::Up { .. }) => format!("{name}: not dialed, but up by now"),
        }
    };
    let members = peers.iter().filter(|peer| peer.is_member());
    let summaries: Vec<String> = members.map(describe).collect();
    let what = if lacks_room {
        "every peer that is up has reached max_connections"
    } else {
        "no peer accepted a connection"
    };
    format!("{what}: {}", summaries.join("; "))
}
