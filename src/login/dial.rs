//! Which peers are logged in to: for the pool, and for a check.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{RecvTimeoutError, Sender, unbounded};
use diesel::r2d2::R2D2Connection;
use log::warn;

use crate::event::{EventKind, in_words};
use crate::fault::Fault;
use crate::login::bounded::{self, LoginFailure, Patience};
use crate::login::session::{Hooks, Login};
use crate::panics::catch_panic;
use crate::peers::link_guard::LinkGuard;
use crate::peers::outage::NextStep;
use crate::peers::peer::{CheckKind, Health, LoginOutcome, Peer};
use crate::peers::placement::no_peer_available;
use crate::peers::schedule::HealthCheck;
use crate::peers::set::{PeerSet, Picked};
use crate::policy::AllDown;
use crate::pool::link::Link;

/// Makes a connection to one of the peers. While all are down, who asks first is told the story at
/// once; after that, one waits for the end of it.
///
/// # Errors
///
/// The whole story, peer by peer, without any URL or password.
#[expect(clippy::disallowed_methods, reason = "the wait is bounded as a whole")]
pub(crate) fn connect<C: R2D2Connection + Send + 'static>(
    set: &Arc<PeerSet>,
    hooks: &Arc<Hooks<C>>,
) -> Result<Link<C>, String> {
    let mut end = None;
    loop {
        let story = match dial_around(set, hooks) {
            Ok(link) => return Ok(link),
            Err(story) => story,
        };
        if set.settings().all_down == AllDown::Fail || !set.no_peer_available() {
            return Err(story);
        }
        let now = Instant::now();
        let end = *end.get_or_insert(now + set.settings().all_down_wait);
        let left = end.saturating_duration_since(now);
        if set.outage().wait(now, left, || !set.no_peer_available()) == NextStep::Fail {
            return Err(story);
        }
    }
}

/// What became of one login.
struct Outcome<C> {
    number: u64,
    result: Result<Link<C>, Attempt>,
}

/// Logs in to one peer after the other, each at most once, until one takes the connection. When one
/// does not answer for longer than it should take, the next is tried beside it.
#[expect(clippy::disallowed_methods, reason = "an attempt is stamped when it is made")]
fn dial_around<C: R2D2Connection + Send + 'static>(
    set: &Arc<PeerSet>,
    hooks: &Arc<Hooks<C>>,
) -> Result<Link<C>, String> {
    let (done, outcomes) = unbounded();
    let mut attempts = Attempts::new();
    let mut under_way = 0;
    let mut now = Instant::now();
    let end = now + set.settings().connect_deadline;
    let mut next = now;
    loop {
        if next <= now {
            next = end;
            if let Some(picked) = set.pick(|peer| attempts.contains_key(&peer.id)) {
                attempts.insert(picked.id, Attempt::UnderWay);
                under_way += 1;
                next = now + set.hedge_delay(picked.peer);
                dial(set, picked, now, hooks.clone(), done.clone());
            }
        }
        if under_way == 0 {
            break;
        }
        match outcomes.recv_deadline(next.min(end)) {
            // Those that are still under way close what comes of them.
            Ok(Outcome { result: Ok(mut link), .. }) => {
                link.is_used();
                return Ok(link);
            }
            Ok(Outcome { number, result: Err(attempt) }) => {
                under_way -= 1;
                attempts.insert(number, attempt);
                next = Instant::now();
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        now = Instant::now();
        if now >= end {
            break;
        }
    }
    Err(set.read(|peers| story(peers, &attempts, now)))
}

/// Logs in to one peer. What comes of it decides about the peer, also when nobody waits any more.
fn dial<C: R2D2Connection + Send + 'static>(
    set: &Arc<PeerSet>,
    picked: Picked,
    began: Instant,
    hooks: Arc<Hooks<C>>,
    done: Sender<Outcome<C>>,
) {
    let guard = LinkGuard::for_login(set.clone(), &picked);
    let Picked { peer, id: number, url, activity, .. } = picked;
    let rng = set.rng();
    let login = Login { set: set.clone(), peer, activity, url, hooks, rng };
    let patience = set.settings().connect_timeout.min(set.settings().connect_deadline);
    let judged = set.clone();
    bounded::start(
        set,
        peer,
        (began, Patience::of(patience)),
        move |progress| login.make(progress),
        move |outcome| {
            let result = match outcome {
                Ok(session) => {
                    let now = stamp();
                    judged.update(peer, now, |peer, _| peer.connected(began, now));
                    Ok(Link::new(session, guard, now, judged.expiry(now)))
                }
                Err(failure) => {
                    let reason: Arc<str> = failure.to_string().into();
                    let (answer, now) = (LoginOutcome::of(failure), stamp());
                    let failed = answer.fault().map(|fault| EventKind::ConnectFailed {
                        reason: reason.to_string(),
                        fault,
                        took: now.saturating_duration_since(began),
                    });
                    let attempt = if answer == LoginOutcome::NotAttempted {
                        Attempt::NotMade(reason)
                    } else {
                        Attempt::Failed(reason)
                    };
                    judged.update(peer, now, |peer, due| {
                        peer.connect_failed((began, now), answer, due)
                    });
                    if let Some(failed) = failed {
                        judged.record(peer, failed);
                    }
                    // Until now it keeps the peer's place.
                    drop(guard);
                    Err(attempt)
                }
            };
            // When nobody waits for it any more a connection is closed here.
            drop(done.send(Outcome { number, result }));
        },
    );
}

/// Logs in to see whether the peer takes work.
pub(crate) fn check<C: R2D2Connection + Send + 'static>(
    set: &Arc<PeerSet>,
    hooks: &Arc<Hooks<C>>,
    health_check: HealthCheck,
) {
    let HealthCheck { peer, url, activity, began, timeout: patience, kind } = health_check;
    let login =
        Login { set: set.clone(), peer, activity, url, hooks: hooks.clone(), rng: set.rng() };
    let patience = match kind {
        CheckKind::Regular => Patience::of(patience),
        // Queries may be cut off when it is not answered: who has begun to answer is heard out.
        CheckKind::Stall => {
            Patience { with_silence: patience, at_most: set.settings().connect_timeout }
        }
    };
    let judged = set.clone();
    bounded::start(
        set,
        peer,
        (began, patience),
        move |progress| login.check(progress),
        move |outcome| {
            let is_regular = kind == CheckKind::Regular;
            if let (true, Err(LoginFailure::NotAttempted(error))) = (is_regular, &outcome) {
                // A logger is user code.
                let _ = catch_panic(|| warn!("a peer could not be checked: {error}"));
            }
            let answer = outcome.map_or_else(LoginOutcome::of, |()| LoginOutcome::Succeeded);
            let now = stamp();
            judged.update(peer, now, |peer, due| peer.check_ended(kind, (began, now), answer, due));
        },
    );
}

impl LoginOutcome {
    /// What it says of the peer, if it says anything against it.
    fn fault(&self) -> Option<Fault> {
        match self {
            Self::Refused(refusal) => Some(refusal.fault),
            Self::Unanswered(_) => Some(Fault::PeerDown),
            Self::Succeeded | Self::NotAttempted => None,
        }
    }

    fn of(failure: LoginFailure) -> Self {
        match failure {
            LoginFailure::Refused(refusal) => Self::Refused(refusal),
            LoginFailure::Unanswered(reason) => Self::Unanswered(reason),
            // That says something about this process, not about the peer.
            LoginFailure::NotAttempted(_) => Self::NotAttempted,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "an attempt is stamped when it ends")]
fn stamp() -> Instant {
    Instant::now()
}

/// What was done about each peer, by its number: another one may have its name meanwhile.
type Attempts = BTreeMap<u64, Attempt>;

/// What was done about one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Attempt {
    UnderWay,
    /// Because of this process.
    NotMade(Arc<str>),
    Failed(Arc<str>),
}

/// What happened at each peer in this call, or made it be left out, and when it is checked next.
fn story(peers: &[Peer], attempts: &Attempts, now: Instant) -> String {
    let all_down = no_peer_available(peers);
    let chapter = |peer: &Peer| {
        let next = in_words(peer.scheduled_check(all_down).saturating_duration_since(now));
        let name = &peer.name;
        match (attempts.get(&peer.id), &peer.health) {
            (Some(Attempt::Failed(reason)), Health::Up { .. }) if !peer.is_full => {
                format!("{name}: {reason} (up again since)")
            }
            (Some(Attempt::Failed(reason)), _) => format!("{name}: {reason} ({next})"),
            (Some(Attempt::NotMade(reason)), _) => format!("{name}: {reason}"),
            (Some(Attempt::UnderWay), _) => format!("{name}: no answer yet"),
            (None, _) if !peer.is_in_service() => format!("{name}: not tried, as it is drained"),
            (None, Health::Down { refusal, .. }) => {
                format!("{name}: not tried, down since: {} ({next})", refusal.reason)
            }
            (None, Health::Up { .. }) if peer.weight == 0 => {
                format!("{name}: not tried, as its weight is 0")
            }
            (None, Health::Up { .. }) => format!("{name}: up again since"),
        }
    };
    let chapters: Vec<String> = peers.iter().filter(|peer| peer.is_member()).map(chapter).collect();
    format!("no peer took the connection: {}", chapters.join("; "))
}
