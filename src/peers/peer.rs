//! One peer and its state machine. Pure: `now` and all scheduled times are arguments.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::events::EventKind;
use crate::events::log::NewEvent;
use crate::fault::{FailureCause, Fault, LoginFailure};
use crate::peers::activity::Activity;
use crate::peers::admin_state::AdminState;
use crate::peers::stall::StallSeries;
use crate::settings::CheckTimes;
use crate::url::PeerUrl;

/// The minimum time between the starts of two checks of one peer, however many links are lost.
const SUSPICION_GAP: Duration = Duration::from_millis(100);

/// The time after a mark for a refused query in which another refused query only causes a check and
/// does not mark the peer down again. The peer has been marked for the first one already, and a
/// check has found it fine since.
const REFUSED_QUERY_COOLDOWN: Duration = Duration::from_secs(10);

/// The delay until the next check of a peer that is full. Short, because connections come and go.
const FULL_RECHECK_DELAY: Duration = Duration::from_secs(1);

/// The minimum delay between checks of a peer that rejects our login, while all peers are down. No
/// operator corrects that within moments, and servers count failed logins.
const MISCONFIGURED_RECHECK_DELAY: Duration = Duration::from_secs(5);

/// The reason of a peer that is marked down because it has stalled.
const STALLED_REASON: &str = "queries hang, and health checks get no answer";

/// The reason of a peer that is marked down because of a refused query alone.
const REFUSED_QUERY_REASON: &str = "a query was refused: the server takes no work at the moment";

/// A login is slow when it takes more than this many times the usual login time.
const EXPECTED_LOGIN_FACTOR: u32 = 2;

/// The newest login contributes one part in this many to the usual login time, a moving average.
const LOGIN_SMOOTHING: u32 = 4;

/// The kind of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckKind {
    /// A scheduled check, or one after a link was lost. The outcome decides the state of the peer.
    Regular,
    /// A check whether the peer answers at all, because queries hang on this peer or on another
    /// one. A missing answer alone does not mark the peer down.
    Stall,
}

/// A peer: its state, its schedule and its counts.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Unique in the set, and ascending in the order in which peers were added. Distinguishes peers
    /// of the same name.
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    pub(crate) url: Arc<PeerUrl>,
    /// The peer's proportion of the work; 0 means no new work.
    pub(crate) weight: u32,
    /// The tier. Under `Strategy::Ordered` only the lowest tier with an available peer serves.
    pub(crate) tier: u32,
    pub(crate) health: Health,
    pub(crate) admin_state: AdminState,
    /// Whether the peer had no free connection at the last login or check. Existing connections
    /// stay in use.
    pub(crate) is_full: bool,
    pub(crate) next_check: Instant,
    /// When the peer is checked next if all peers are down.
    next_check_all_down: Instant,
    /// When the login or check began that decided `health`. The outcome of an older one is ignored.
    decided_by: Option<Instant>,
    /// When a link was last lost. Cleared by the outcome of a check that began later.
    link_lost_at: Option<Instant>,
    /// When the peer was last marked down because of a refused query alone.
    marked_for_refused_query: Option<Instant>,
    /// When the newest login or check began that was answered, with a refusal at least.
    last_answered: Option<Instant>,
    checks: Checks,
    /// The series of checks that finds out whether the peer has stalled.
    pub(crate) stall_series: Option<StallSeries>,
    /// The moving average of the login time.
    usual_login: Option<Duration>,
    pub(crate) counts: Counts,
    /// Updated by the links themselves, without the lock of the set.
    pub(crate) activity: Arc<Activity>,
}

/// The running checks of a peer, and when the newest ones began.
#[derive(Debug, Default)]
struct Checks {
    /// When the newest regular check began.
    began: Option<Instant>,
    is_running: bool,
    /// When the newest stall check began. It may run beside a regular one.
    stall_began: Option<Instant>,
    stall_is_running: bool,
    /// When an operator requested a check that has not begun yet.
    requested: Option<Instant>,
}

/// The health of a peer, as decided by the newest login or check.
#[derive(Debug, Clone)]
pub(crate) enum Health {
    Up { since: Instant },
    Down { since: Instant, cause: FailureCause },
}

/// The current number of logins and links of a peer.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    /// Logins in progress.
    pub(crate) connecting: usize,
    /// Logins that were aborted at their deadline and have not ended yet.
    pub(crate) stuck_logins: usize,
    /// Established links, in use or idle.
    pub(crate) links: usize,
}

impl Counts {
    /// The load that the choice of a peer compares: links and logins in progress.
    pub(crate) fn load(&self) -> usize {
        self.links + self.connecting
    }
}

impl Peer {
    /// Creates a peer that has not been checked yet: assumed to be up, and scheduled for a check
    /// now.
    pub(crate) fn new(name: Arc<str>, url: PeerUrl, weight: u32, tier: u32, now: Instant) -> Self {
        Self {
            id: 0,
            name,
            url: Arc::new(url),
            weight,
            tier,
            health: Health::Up { since: now },
            admin_state: AdminState::Ready,
            is_full: false,
            next_check: now,
            next_check_all_down: now,
            decided_by: None,
            link_lost_at: None,
            marked_for_refused_query: None,
            last_answered: None,
            checks: Checks::default(),
            stall_series: None,
            usual_login: None,
            counts: Counts::default(),
            activity: Arc::default(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.health, Health::Up { .. })
    }

    /// Whether the peer is in service: neither draining nor drained nor removed.
    pub(crate) fn is_in_service(&self) -> bool {
        self.admin_state == AdminState::Ready
    }

    pub(crate) fn is_up_and_in_service(&self) -> bool {
        self.is_up() && self.is_in_service()
    }

    /// Whether the peer belongs to the set, and is neither removed nor being removed.
    pub(crate) fn is_member(&self) -> bool {
        !matches!(
            self.admin_state,
            AdminState::Removed | AdminState::Draining { remove_when_drained: true, .. }
        )
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.admin_state == AdminState::Removed
    }

    /// Whether the peer has been removed and no login, link or check refers to its index any more,
    /// so that a new peer may get the index.
    pub(crate) fn is_vacant(&self) -> bool {
        let Counts { connecting, stuck_logins, links, .. } = self.counts;
        let is_being_checked = self.checks.is_running || self.checks.stall_is_running;
        self.is_removed() && !is_being_checked && connecting + stuck_logins + links == 0
    }

    /// Creates an event of this peer, to be published.
    pub(crate) fn new_event(&self, kind: EventKind) -> NewEvent {
        NewEvent { peer: self.name.clone(), in_service: self.is_in_service(), kind }
    }

    /// Starts draining: the peer gets no new work from now on. With `remove_when_drained` the peer
    /// is removed as soon as it is drained.
    pub(crate) fn drain(&mut self, remove_when_drained: bool, now: Instant) -> Option<EventKind> {
        self.admin_state.drain(remove_when_drained, now)
    }

    /// Puts the peer back into service and requests a check now. Until that check ends, the health
    /// that was found while the peer was out of service applies.
    pub(crate) fn resume(&mut self, now: Instant) -> Option<EventKind> {
        let resumed = self.admin_state.resume()?;
        self.check_now(now);
        Some(resumed)
    }

    pub(crate) fn set_weight(&mut self, weight: u32) -> Option<EventKind> {
        let from = mem::replace(&mut self.weight, weight);
        (from != weight).then_some(EventKind::WeightChanged { from, to: weight })
    }

    /// Ends the draining if the pool has no session with the peer any more, and returns the
    /// resulting events.
    pub(crate) fn end_draining(&mut self, now: Instant) -> Option<[Option<EventKind>; 2]> {
        let is_empty = self.counts.connecting == 0 && self.activity.open_sessions() == 0;
        is_empty.then(|| self.admin_state.finish_draining(now)).flatten()
    }

    /// Requests a check now, whatever the health of the peer.
    pub(crate) fn check_now(&mut self, now: Instant) {
        self.checks.requested = Some(now);
    }

    /// Records a successful login for the pool that began at `began`. The connection has passed the
    /// tests of a check.
    pub(crate) fn connected(&mut self, began: Instant, now: Instant) -> Option<EventKind> {
        self.activity.counters.logins.add(now.saturating_duration_since(began));
        let has_room = self.record_success(began, now);
        self.mark_up(began, now).or(has_room)
    }

    /// Records a failed login for the pool that began at `began`.
    ///
    /// A peer that is up is marked down, and its next check is scheduled by `check_times`. A peer
    /// that is already down keeps its scheduled check, because frequent failures would otherwise
    /// postpone the check indefinitely.
    pub(crate) fn connect_failed(
        &mut self,
        (began, now): (Instant, Instant),
        failure: LoginFailure,
        check_times: CheckTimes,
    ) -> Option<EventKind> {
        match failure {
            LoginFailure::Refused(cause) => self.record_refused((began, now), cause, check_times),
            LoginFailure::Unanswered(reason) => {
                self.record_unanswered((began, now), reason, check_times)
            }
            LoginFailure::NotAttempted(_) => None,
        }
    }

    /// Records that a login or check that began at `began` was refused. A full peer stays up if it
    /// was up.
    fn record_refused(
        &mut self,
        (began, now): (Instant, Instant),
        cause: FailureCause,
        check_times: CheckTimes,
    ) -> Option<EventKind> {
        self.activity.counters.connect_failures.add_one();
        self.last_answered = self.last_answered.max(Some(began));
        match cause.fault {
            Fault::PeerFull if self.is_up() => {
                self.next_check = self.next_check.min(now + FULL_RECHECK_DELAY);
                let was_full = mem::replace(&mut self.is_full, true);
                (!was_full).then(|| EventKind::Full { reason: cause.reason.to_string() })
            }
            Fault::PeerFull => {
                let down = self.mark_down(began, now, cause, check_times);
                self.next_check = self.next_check.min(now + FULL_RECHECK_DELAY);
                down
            }
            Fault::Misconfigured => {
                let down = self.mark_down(began, now, cause, check_times);
                self.next_check_all_down =
                    self.next_check_all_down.max(now + MISCONFIGURED_RECHECK_DELAY);
                down
            }
            _ => self.mark_down(began, now, cause, check_times),
        }
    }

    /// Records that a login or check that began at `began` was not answered.
    fn record_unanswered(
        &mut self,
        (began, now): (Instant, Instant),
        reason: Arc<str>,
        check_times: CheckTimes,
    ) -> Option<EventKind> {
        self.activity.counters.connect_failures.add_one();
        self.mark_down(began, now, FailureCause::new(Fault::PeerDown, reason), check_times)
    }

    /// Records that a login or check that began at `began` succeeded.
    fn record_success(&mut self, began: Instant, now: Instant) -> Option<EventKind> {
        let was_full = mem::replace(&mut self.is_full, false);
        self.last_answered = self.last_answered.max(Some(began));
        let took = now.saturating_duration_since(began);
        let usual = self.usual_login.unwrap_or(took);
        self.usual_login = Some((usual * (LOGIN_SMOOTHING - 1) + took) / LOGIN_SMOOTHING);
        was_full.then_some(EventKind::HasRoom)
    }

    /// Returns how long a login may take before it counts as slow. `None` before the first
    /// successful login.
    pub(crate) fn expected_login(&self) -> Option<Duration> {
        self.usual_login.map(|usual| usual * EXPECTED_LOGIN_FACTOR)
    }

    /// Returns when the peer last answered a query, a login or a check.
    pub(crate) fn last_answer(&self) -> Option<Instant> {
        self.last_answered.max(self.activity.last_query_end())
    }

    /// Returns when the last stall check of this peer began.
    pub(crate) fn stall_check_began(&self) -> Option<Instant> {
        self.checks.stall_began
    }

    /// Returns when the oldest running query began. If the peer is down, only queries count that
    /// can be aborted; if the peer is up, any query may show that it has stalled.
    pub(crate) fn oldest_query(&self) -> Option<Instant> {
        self.activity.oldest_query(!self.is_up())
    }

    /// Records that a link to this peer was lost, so that the peer is checked soon. A lost link
    /// alone does not mark the peer down.
    pub(crate) fn suspect(&mut self, now: Instant) {
        self.link_lost_at = Some(now);
    }

    /// Returns when this peer is checked next, suspicion included. `None` while a regular check is
    /// running, and for a removed peer.
    pub(crate) fn earliest_check(&self, all_down: bool) -> Option<Instant> {
        if self.checks.is_running || self.is_removed() {
            return None;
        }
        let next = self.scheduled_check(all_down);
        let suspicion = self.suspicion_check().filter(|_| self.is_up());
        Some(suspicion.map_or(next, |at| at.min(next)))
    }

    /// Returns when the peer is checked because of a lost link or a refused query.
    fn suspicion_check(&self) -> Option<Instant> {
        let after_gap =
            |at: Instant| self.checks.began.map_or(at, |began| at.max(began + SUSPICION_GAP));
        self.link_lost_at.map(after_gap)
    }

    /// Returns when the peer is checked next if nothing happens before.
    pub(crate) fn scheduled_check(&self, all_down: bool) -> Instant {
        // A peer with a stuck login is left alone for the whole interval, and no caller waits for a
        // peer that is not in service.
        let next = if all_down && self.counts.stuck_logins == 0 && self.is_in_service() {
            self.next_check.min(self.next_check_all_down)
        } else {
            self.next_check
        };
        let suspicion = self.suspicion_check().filter(|_| self.is_down_for_refused_query());
        [suspicion, self.checks.requested].into_iter().flatten().fold(next, Instant::min)
    }

    /// Whether the peer is down because of a refused query alone.
    fn is_down_for_refused_query(&self) -> bool {
        matches!(&self.health, Health::Down { cause, .. } if &*cause.reason == REFUSED_QUERY_REASON)
    }

    /// Begins a check of this peer. Returns `false` if a check of this kind is already running.
    pub(crate) fn begin_check(&mut self, kind: CheckKind, now: Instant) -> bool {
        match kind {
            CheckKind::Regular => {
                self.checks.began = Some(now);
                self.checks.requested = None;
                !mem::replace(&mut self.checks.is_running, true)
            }
            CheckKind::Stall => {
                let begins = !mem::replace(&mut self.checks.stall_is_running, true);
                if begins {
                    self.checks.stall_began = Some(now);
                }
                begins
            }
        }
    }

    /// Records that the check that began at `began` has ended. Only a failed check renews a mark; a
    /// failed login for the pool does not.
    pub(crate) fn check_ended(
        &mut self,
        kind: CheckKind,
        (began, now): (Instant, Instant),
        outcome: Result<(), LoginFailure>,
        check_times: CheckTimes,
    ) -> Option<EventKind> {
        match kind {
            CheckKind::Regular => {
                self.checks.is_running = false;
                // A check that began before the mark was set does not move the scheduled check.
                let was_attempted = !matches!(outcome, Err(LoginFailure::NotAttempted(_)));
                if !was_attempted || self.is_up() || !self.is_outdated(began) {
                    (self.next_check, self.next_check_all_down) =
                        (check_times.regular, check_times.all_down);
                }
            }
            CheckKind::Stall => self.checks.stall_is_running = false,
        }
        match outcome {
            Ok(()) => {
                let has_room = self.record_success(began, now);
                self.clear_suspicion(began);
                self.mark_up(began, now).or(has_room)
            }
            Err(LoginFailure::Refused(cause)) => {
                self.clear_suspicion(began);
                self.record_refused((began, now), cause, check_times)
            }
            Err(LoginFailure::Unanswered(reason)) if kind == CheckKind::Regular => {
                self.clear_suspicion(began);
                self.record_unanswered((began, now), reason, check_times)
            }
            Err(LoginFailure::Unanswered(_)) => {
                if let Some(series) =
                    self.stall_series.as_mut().filter(|series| series.began <= began)
                {
                    series.unanswered += 1;
                }
                None
            }
            Err(LoginFailure::NotAttempted(_)) => {
                // Whatever prevents this process from checking is not over within moments, so the
                // suspicion must not cause another check at once.
                if kind == CheckKind::Regular {
                    self.link_lost_at = None;
                }
                None
            }
        }
    }

    /// Clears a suspicion that is not newer than `began`, when a check began that has now been
    /// answered or has timed out.
    fn clear_suspicion(&mut self, began: Instant) {
        self.link_lost_at = self.link_lost_at.filter(|at| *at > began);
    }

    /// Marks the peer down because it has stalled, as a series of checks has shown that began at
    /// `began`.
    pub(crate) fn mark_stalled(
        &mut self,
        began: Instant,
        now: Instant,
        check_times: CheckTimes,
    ) -> Option<EventKind> {
        self.stall_series = None;
        self.mark_down(began, now, FailureCause::new(Fault::PeerDown, STALLED_REASON), check_times)
    }

    /// Marks the peer down because it refused a query: it accepts no work at the moment.
    ///
    /// One refusal is enough: refusing costs the server next to nothing, so the peer would soon
    /// attract all the work. A check follows at once and decides. If the peer is already down,
    /// nothing changes, so that the running check is not outdated.
    pub(crate) fn query_refused(
        &mut self,
        now: Instant,
        check_times: CheckTimes,
    ) -> Option<EventKind> {
        if !self.is_up() {
            return None;
        }
        self.suspect(now);
        if self.marked_for_refused_query.is_some_and(|at| now < at + REFUSED_QUERY_COOLDOWN) {
            return None;
        }
        let down = self.mark_down(
            now,
            now,
            FailureCause::new(Fault::PeerNotReady, REFUSED_QUERY_REASON),
            check_times,
        )?;
        self.marked_for_refused_query = Some(now);
        Some(down)
    }

    /// Clears an expired mark without a check (`Recovery::AfterInterval`). Has no effect on a peer
    /// that is up.
    pub(crate) fn clear_mark(
        &mut self,
        now: Instant,
        check_times: CheckTimes,
    ) -> Option<EventKind> {
        if self.is_up() {
            return None;
        }
        self.next_check = check_times.regular;
        self.link_lost_at = None;
        self.mark_up(now, now)
    }

    /// Marks the peer up, unless a newer login or check has decided. Returns the event if the peer
    /// was down.
    fn mark_up(&mut self, began: Instant, now: Instant) -> Option<EventKind> {
        if self.is_outdated(began) {
            return None;
        }
        self.decided_by = Some(began);
        let Health::Down { since, .. } = self.health else {
            return None;
        };
        self.health = Health::Up { since: now };
        Some(EventKind::Up { was_down: now.saturating_duration_since(since) })
    }

    /// Marks the peer down, unless a newer login or check has decided. Returns an event if the peer
    /// was up, or if the peer now rejects our login and did not before.
    fn mark_down(
        &mut self,
        began: Instant,
        now: Instant,
        cause: FailureCause,
        check_times: CheckTimes,
    ) -> Option<EventKind> {
        if self.is_outdated(began) {
            return None;
        }
        self.decided_by = Some(began);
        self.is_full = false;
        let (fault, reason) = (cause.fault, cause.reason.to_string());
        let is_misconfigured = fault == Fault::Misconfigured;
        if let Health::Down { cause: last, .. } = &mut self.health {
            let was_misconfigured = mem::replace(last, cause).fault == Fault::Misconfigured;
            return (is_misconfigured && !was_misconfigured)
                .then_some(EventKind::Misconfigured { reason });
        }
        self.health = Health::Down { since: now, cause };
        self.activity.counters.downs.add_one();
        self.next_check = check_times.regular;
        let next_check = check_times.regular.saturating_duration_since(now);
        Some(EventKind::Down { reason, fault, next_check })
    }

    /// Whether a login or check that began at `began` is older than the one that decided the
    /// health.
    fn is_outdated(&self, began: Instant) -> bool {
        self.decided_by.is_some_and(|decided| began < decided)
    }
}

#[cfg(test)]
mod tests;
