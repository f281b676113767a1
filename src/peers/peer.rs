//! One peer and its state machine. Pure: `now` and all scheduled times are arguments.
//!
//! No method reports what has happened: an event is the difference between two states of a peer
//! (`transition.rs`).

mod checks;
mod health;
mod slow_start;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fault::{FailureCause, Fault, LoginFailure};
use crate::peers::activity::Activity;
use crate::peers::admin_state::AdminState;
use crate::peers::evidence::Evidence;
use crate::settings::CheckTimes;
use crate::settings::policy::Recovery;
use crate::url::PeerUrl;

pub(crate) use checks::{CheckKind, Checks};
pub(crate) use health::{Health, HealthState};
pub(crate) use slow_start::SlowStart;

/// The delay until the next check of a peer that is full. Short, because connections come and go.
const FULL_RECHECK_DELAY: Duration = Duration::from_secs(1);

/// The interval at which a peer at its limit of connections is examined for room.
const LIMIT_RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The time without another refused connection after which nothing waits for room any more. r2d2 tries again at
/// least every half of its `connection_timeout`, which is 30 seconds by default.
const LIMIT_HOLD: Duration = Duration::from_secs(60);

/// The minimum delay between checks of a peer that rejects our login, while all peers are down. No
/// operator corrects that within moments, and servers count failed logins.
const MISCONFIGURED_RECHECK_DELAY: Duration = Duration::from_secs(5);

/// The reason of a peer that is marked down because it has stalled.
const STALLED_REASON: &str = "queries hang, and health checks get no answer";

/// The reason of a peer that is marked down because it holds queries.
const HELD_REASON: &str = "queries and logins are held: a pooler may be paused, or its server gone";

/// A login is slow when it takes more than this many times the usual login time.
const EXPECTED_LOGIN_FACTOR: u32 = 2;

/// The newest login contributes one part in this many to the usual login time, a moving average.
const LOGIN_SMOOTHING: u32 = 4;

/// A peer: its configuration, its state, its checks and its counts.
#[derive(Debug, Clone)]
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
    /// The most connections that the pool may have with the peer, logins in progress included.
    pub(crate) max_connections: Option<u32>,
    /// Set while the pool lacks a connection because of `max_connections`.
    limit_episode: Option<LimitEpisode>,
    pub(crate) health: Health,
    pub(crate) admin_state: AdminState,
    pub(crate) checks: Checks,
    /// The series of checks that finds out whether the peer has stalled.
    pub(crate) stall_series: Option<StallSeries>,
    logins: LoginStats,
    pub(crate) evidence: Evidence,
    pub(crate) slow_start: SlowStart,
    /// Since when and by how much the peer is slow, if it is.
    pub(crate) slow: Option<Slow>,
    pub(crate) counts: Counts,
    /// Updated by the links themselves, without the lock of the set.
    pub(crate) activity: Arc<Activity>,
}

/// A time in which the pool lacks a connection because of a peer's limit.
#[derive(Debug, Clone, Copy)]
struct LimitEpisode {
    /// When a connection was last wanted and not opened.
    refused_at: Instant,
    next_look: Instant,
}

/// A peer that is alive and much slower than the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slow {
    pub(crate) since: Instant,
    /// The middle of the query times of its checkouts, and that of the other peers.
    pub(crate) time: Duration,
    pub(crate) others: Duration,
    /// Whether other peers get its work.
    pub(crate) is_relieved: bool,
    /// How many connections it keeps, if it is relieved: one beside those that workers hold. In a pool whose
    /// connections are all in use, that one would be used all the time, so the peer has it for its trials only.
    pub(crate) links: usize,
}

/// When a login or check began, and when it ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
}

/// A series of checks of a peer with hung queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StallSeries {
    /// When the first check of the series began.
    pub(crate) began: Instant,
    /// The number of checks so far that got no answer.
    pub(crate) unanswered: u32,
    /// Whether the peer had begun to answer the last of these: it holds logins, as a pooler does, or refuses
    /// them because its server is gone.
    pub(crate) is_held: bool,
    pub(crate) question: QuestionState,
}

/// How far the question to a resting session has come, of a peer that does not answer checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuestionState {
    NotAsked,
    Asked {
        at: Instant,
        until: Instant,
    },
    /// No answer came, or no session is at rest. (An answer counts as an answer of the peer.)
    Over,
}

impl StallSeries {
    pub(crate) fn new(began: Instant) -> Self {
        Self { began, unanswered: 0, is_held: false, question: QuestionState::NotAsked }
    }

    /// Records that this number of checks got no answer.
    pub(crate) fn add_unanswered(&mut self, checks: u32, is_held: bool) {
        self.unanswered += checks;
        self.is_held = is_held;
    }
}

/// The logins and checks of a peer that were answered.
#[derive(Debug, Default, Clone, Copy)]
struct LoginStats {
    /// When the newest one began that was answered, with a refusal at least.
    last_answered: Option<Instant>,
    /// When the newest one began that was refused because the peer takes no work.
    last_not_ready: Option<Instant>,
    /// The moving average of the login time.
    usual_time: Option<Duration>,
}

/// The current number of logins and links of a peer.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    /// Logins in progress.
    pub(crate) connecting: usize,
    /// Logins that have passed their deadline and have not ended yet.
    pub(crate) stuck_logins: usize,
    /// Those of the stuck logins that were left to wait. The others were aborted.
    pub(crate) waiting_logins: usize,
    /// Those of the waiting logins that the peer has begun to answer.
    pub(crate) held_logins: usize,
    /// Established links, in use or idle.
    pub(crate) links: usize,
    /// Those of the links that are marked for replacement: because of their age, to balance the pool, because of a
    /// limit, or because they are evicted.
    pub(crate) marked_for_replacement: usize,
    /// Those of the marked links whose sessions have been ended. They only keep their slots.
    pub(crate) ended: usize,
}

impl Attempt {
    /// An attempt that takes no time.
    #[cfg(test)]
    pub(crate) fn at(now: Instant) -> Self {
        Self { began: now, ended: now }
    }

    pub(crate) fn took(self) -> Duration {
        self.ended.saturating_duration_since(self.began)
    }
}

impl LoginStats {
    fn record_answer(&mut self, attempt: Attempt) {
        self.last_answered = self.last_answered.max(Some(attempt.began));
    }

    fn record_success(&mut self, attempt: Attempt) {
        self.record_answer(attempt);
        let usual = self.usual_time.unwrap_or(attempt.took());
        self.usual_time = Some((usual * (LOGIN_SMOOTHING - 1) + attempt.took()) / LOGIN_SMOOTHING);
    }
}

impl Counts {
    /// The links that are to stay: those that are not marked for replacement.
    pub(crate) fn staying(&self) -> usize {
        self.links - self.marked_for_replacement
    }

    /// The links with a session.
    pub(crate) fn open(&self) -> usize {
        self.links - self.ended
    }

    /// The sessions that count for the limit of the peer: open links, logins in progress, and logins that were
    /// aborted and have not ended, because the server may have a session for each of them.
    pub(crate) fn sessions(&self) -> usize {
        self.open() + self.connecting + self.stuck_logins.saturating_sub(self.waiting_logins)
    }

    /// Counts the end of the wait of a login: it has ended or was aborted.
    pub(crate) fn end_waiting(&mut self, is_held: bool) {
        self.waiting_logins -= 1;
        self.held_logins -= usize::from(is_held);
    }

    /// The load that the choice of a peer compares: links that are to stay, and logins in progress.
    pub(crate) fn load(&self) -> usize {
        self.staying() + self.connecting
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
            max_connections: None,
            limit_episode: None,
            health: Health::new(now),
            admin_state: AdminState::InService,
            checks: Checks::new(now),
            stall_series: None,
            logins: LoginStats::default(),
            evidence: Evidence::default(),
            slow_start: SlowStart::default(),
            slow: None,
            counts: Counts::default(),
            activity: Arc::default(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.health.is_up()
    }

    /// Whether other peers get the work of this one because it is slow.
    pub(crate) fn is_relieved(&self) -> bool {
        self.slow.is_some_and(|slow| slow.is_relieved)
    }

    /// Returns how many connections the peer is to have at most, because other peers get its work.
    pub(crate) fn most_links_while_slow(&self) -> Option<usize> {
        self.slow.filter(|slow| slow.is_relieved).map(|slow| slow.links)
    }

    /// Whether the peer had no free connection at the last login or check.
    pub(crate) fn is_full(&self) -> bool {
        self.health.full.is_some()
    }

    /// Whether the peer may get another connection, as far as its limit is concerned.
    pub(crate) fn has_room(&self) -> bool {
        self.max_connections.is_none_or(|max| self.counts.sessions() < max as usize)
    }

    /// Returns how many open links the peer has above its limit.
    pub(crate) fn links_over_limit(&self) -> usize {
        self.max_connections.map_or(0, |max| self.counts.open().saturating_sub(max as usize))
    }

    /// Whether the pool lacks a connection because of the limit of this peer.
    pub(crate) fn is_at_limit(&self) -> bool {
        self.limit_episode.is_some()
    }

    /// Records that the pool wanted a connection and did not open it because of the limit of this peer.
    pub(crate) fn refused_for_limit(&mut self, now: Instant) {
        let next_look = now + LIMIT_RECHECK_INTERVAL;
        self.limit_episode.get_or_insert(LimitEpisode { refused_at: now, next_look }).refused_at =
            now;
    }

    /// Returns when a peer at its limit is examined for room.
    pub(crate) fn next_limit_look(&self) -> Option<Instant> {
        self.limit_episode.map(|episode| episode.next_look)
    }

    /// Ends the time at the limit if the peer has room, or if nothing has wanted a connection for long.
    pub(crate) fn look_for_room(&mut self, now: Instant) {
        let has_ended = self.has_room() || !self.is_available();
        self.limit_episode = self.limit_episode.take().filter(|episode| {
            !has_ended && now.saturating_duration_since(episode.refused_at) < LIMIT_HOLD
        });
        if let Some(episode) = &mut self.limit_episode {
            episode.next_look = now + LIMIT_RECHECK_INTERVAL;
        }
    }

    /// Whether the peer is marked down because of its logins, and its sessions work: a query has ended since
    /// then on a link that is still there, and after the last link was lost.
    pub(crate) fn is_degraded(&self) -> bool {
        let HealthState::Down { since, .. } = &self.health.state else { return false };
        let answered = self.activity.last_query_end();
        let is_proof =
            answered.is_some_and(|at| at >= *since) && answered > self.activity.last_loss();
        is_proof && !self.health.sessions_fail && self.counts.links > 0
    }

    /// Whether the peer is in service: neither draining nor drained nor removed.
    pub(crate) fn is_in_service(&self) -> bool {
        self.admin_state == AdminState::InService
    }

    pub(crate) fn is_up_and_in_service(&self) -> bool {
        self.is_up() && self.is_in_service()
    }

    /// Whether the peer is available for new work, whatever its tier.
    pub(crate) fn is_available(&self) -> bool {
        self.is_up_and_in_service() && self.weight > 0
    }

    /// Whether the peer belongs to the set, and is neither removed nor being removed.
    pub(crate) fn is_member(&self) -> bool {
        !matches!(
            self.admin_state,
            AdminState::Removed | AdminState::Draining { remove_when_drained: true, .. }
        )
    }

    pub(crate) fn is_draining(&self) -> bool {
        matches!(self.admin_state, AdminState::Draining { .. })
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.admin_state == AdminState::Removed
    }

    /// Whether the peer has been removed and no login, link or check refers to its index any more,
    /// so that a new peer may get the index.
    pub(crate) fn is_vacant(&self) -> bool {
        let Counts { connecting, stuck_logins, links, .. } = self.counts;
        self.is_removed() && !self.checks.is_any_running() && connecting + stuck_logins + links == 0
    }

    /// Puts the peer back into service and requests a check now. Until that check ends, the health
    /// that was found while the peer was out of service applies.
    pub(crate) fn resume(&mut self, now: Instant) {
        if !self.is_in_service() {
            self.admin_state = AdminState::InService;
            self.check_now(now);
        }
    }

    /// Ends the draining if the pool has no session with the peer any more.
    pub(crate) fn end_draining(&mut self, now: Instant) {
        if self.counts.connecting == 0 && self.activity.open_sessions() == 0 {
            self.admin_state.end_draining(now);
        }
    }

    /// Requests a check now, whatever the health of the peer.
    pub(crate) fn check_now(&mut self, now: Instant) {
        self.checks.requested = Some(now);
    }

    /// Records a successful login for the pool. The connection has passed the tests of a check.
    pub(crate) fn connected(&mut self, attempt: Attempt) {
        self.activity.counters.logins.add(attempt.took());
        self.record_success(attempt);
    }

    /// Records a failed login for the pool.
    ///
    /// A peer that is up is marked down, and its next check is scheduled by `check_times`. A peer
    /// that is already down keeps its scheduled check, because frequent failures would otherwise
    /// postpone the check indefinitely.
    pub(crate) fn connect_failed(
        &mut self,
        attempt: Attempt,
        failure: LoginFailure,
        check_times: CheckTimes,
    ) {
        match failure {
            LoginFailure::Refused(cause) => self.record_refused(attempt, cause, check_times),
            LoginFailure::Unanswered(reason)
            | LoginFailure::Held(reason)
            | LoginFailure::Unreached(reason) => {
                self.record_unanswered(attempt, reason, check_times);
            }
            // A failure of this host is attributed to a peer before it is recorded.
            LoginFailure::NotAttempted(_) | LoginFailure::OfHost(_) => {}
        }
    }

    /// Records that a login or check succeeded.
    fn record_success(&mut self, attempt: Attempt) {
        self.logins.record_success(attempt);
        self.is_found_up(attempt);
    }

    fn is_found_up(&mut self, attempt: Attempt) {
        self.health.full = None;
        self.health.mark_up(attempt.began, attempt.ended);
        if self.is_up() {
            self.checks.often_until = None;
        }
    }

    /// Records that a login or check was refused. A full peer stays up if it was up.
    fn record_refused(&mut self, attempt: Attempt, cause: FailureCause, check_times: CheckTimes) {
        self.activity.counters.connect_failures.add_one();
        if cause.fault == Fault::PeerNotReady {
            self.logins.last_not_ready = self.logins.last_not_ready.max(Some(attempt.began));
        } else {
            self.logins.record_answer(attempt);
        }
        let now = attempt.ended;
        let fault = cause.fault;
        if fault == Fault::PeerFull && self.is_up() {
            self.health.full.get_or_insert(cause.reason);
        } else {
            self.mark_down(attempt, cause, check_times);
        }
        match fault {
            // A login that waits for a free connection is the first to get one.
            Fault::PeerFull if self.counts.waiting_logins > 0 => {}
            Fault::PeerFull => self.checks.next = self.checks.next.min(now + FULL_RECHECK_DELAY),
            Fault::Misconfigured => {
                let earliest = now + MISCONFIGURED_RECHECK_DELAY;
                self.checks.next_all_down = self.checks.next_all_down.max(earliest);
            }
            _ => {}
        }
    }

    /// Records that a login or check was not answered, or did not reach the peer.
    fn record_unanswered(&mut self, attempt: Attempt, reason: Arc<str>, check_times: CheckTimes) {
        self.activity.counters.connect_failures.add_one();
        self.mark_down(attempt, FailureCause::new(Fault::PeerDown, reason), check_times);
    }

    /// Marks the peer down, unless a newer login or check has decided.
    fn mark_down(&mut self, attempt: Attempt, cause: FailureCause, check_times: CheckTimes) {
        if self.health.mark_down(attempt.began, attempt.ended, cause) {
            self.went_down(check_times);
        }
    }

    /// Counts a mark, and schedules the check with which it expires.
    fn went_down(&mut self, check_times: CheckTimes) {
        self.activity.counters.downs.add_one();
        self.checks.next = check_times.regular;
    }

    /// Decides what a login says that the peer has begun to answer and did not complete. While queries of the
    /// pool end there, the peer is a pooler whose connections to its server are all in use: it is full.
    pub(crate) fn judge_held(&self, attempt: Attempt, reason: Arc<str>) -> LoginFailure {
        let is_served = self.activity.last_query_end().is_some_and(|at| at >= attempt.began);
        if is_served {
            let reason = format!("{reason}, while queries were served");
            LoginFailure::refused(Fault::PeerFull, reason)
        } else {
            LoginFailure::Held(reason)
        }
    }

    /// Returns how long a login may take before it counts as slow. `None` before the first
    /// successful login.
    pub(crate) fn slow_login_after(&self) -> Option<Duration> {
        self.logins.usual_time.map(|usual| usual * EXPECTED_LOGIN_FACTOR)
    }

    /// Returns when the peer last answered a query, a login or a check, or sent anything to a query that
    /// takes long. That it takes no work is no answer: the queries that a pooler holds wait for an answer of
    /// its server.
    pub(crate) fn last_answer(&self) -> Option<Instant> {
        self.logins.last_answered.max(self.activity.last_answer())
    }

    /// Returns when the peer last said anything.
    pub(crate) fn last_word(&self) -> Option<Instant> {
        self.last_answer().max(self.logins.last_not_ready)
    }

    /// Returns when the oldest query began that waits for the peer. If the peer is down, only queries count that
    /// can be aborted; if the peer is up, any query may show that it has stalled.
    pub(crate) fn oldest_query(&self) -> Option<Instant> {
        self.activity.oldest_query(!self.is_up())
    }

    /// Records that something speaks against the peer (a lost link, an unanswered ping, a refused query),
    /// so that it is checked soon. A suspicion alone does not mark the peer down.
    pub(crate) fn suspect(&mut self, now: Instant) {
        self.checks.suspected_at = Some(now);
    }

    /// Returns when the checker has something to do for this peer: to check it, to clear its mark, or to see
    /// whether it has room.
    pub(crate) fn next_due(&self, cannot_connect: bool, recovery: Recovery) -> Option<Instant> {
        [self.mark_expiry(recovery), self.earliest_check(cannot_connect), self.next_limit_look()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns when the mark of this peer is cleared without a check, if it is. That is even while a
    /// check is running. A peer with a stuck login recovers by a check only, so only the checker logs in
    /// to it.
    pub(crate) fn mark_expiry(&self, recovery: Recovery) -> Option<Instant> {
        let is_cleared = recovery == Recovery::AfterInterval
            && self.counts.stuck_logins == 0
            && !self.is_removed()
            && !self.is_up();
        is_cleared.then_some(self.checks.next)
    }

    /// Returns when this peer is checked next, suspicion included. `None` while a regular check is
    /// running, and for a removed peer.
    pub(crate) fn earliest_check(&self, cannot_connect: bool) -> Option<Instant> {
        if self.checks.regular.is_running || self.is_removed() {
            return None;
        }
        let next = self.scheduled_check(cannot_connect);
        let suspicion = self.checks.suspicion().filter(|_| self.is_up());
        Some(suspicion.map_or(next, |at| at.min(next)))
    }

    /// Returns when the peer is checked next if nothing happens before.
    pub(crate) fn scheduled_check(&self, cannot_connect: bool) -> Instant {
        let Checks { next, next_all_down, requested, .. } = self.checks;
        let next =
            if self.is_checked_often(cannot_connect) { next.min(next_all_down) } else { next };
        let is_unproved = self.health.is_down_for_refused_query;
        let suspicion = self.checks.suspicion().filter(|_| is_unproved);
        [suspicion, requested].into_iter().flatten().fold(next, Instant::min)
    }

    /// Whether the peer is checked as while all peers are down: they are, or were a while ago and this one
    /// still is. A peer with a login that could not be aborted is left alone for the whole interval, and no
    /// caller waits for a peer that is not in service.
    pub(crate) fn is_checked_often(&self, cannot_connect: bool) -> bool {
        let was_outage = || {
            !self.is_up()
                && self.checks.often_until.is_some_and(|at| self.checks.next_all_down < at)
        };
        let is_any_stuck = self.counts.stuck_logins > self.counts.waiting_logins;
        !is_any_stuck && self.is_in_service() && (cannot_connect || was_outage())
    }

    /// Records that a check has ended. Only a failed check renews a mark; a failed login for the pool
    /// does not.
    pub(crate) fn check_ended(
        &mut self,
        kind: CheckKind,
        attempt: Attempt,
        outcome: Result<(), LoginFailure>,
        check_times: CheckTimes,
    ) {
        let is_regular = kind == CheckKind::Regular;
        self.checks.end(kind);
        let was_attempted = !matches!(outcome, Err(LoginFailure::NotAttempted(_)));
        // A check that began before the mark was set does not move the scheduled check.
        if is_regular && (!was_attempted || self.is_up() || !self.health.is_outdated(attempt.began))
        {
            // The peer is frozen, or holds logins, and this one waits.
            let waits = |failure: &LoginFailure| {
                let is_full = failure.fault() == Some(Fault::PeerFull);
                self.counts.waiting_logins > 0 && (failure.is_timeout() || is_full)
            };
            if outcome.as_ref().is_err_and(waits) {
                self.checks.schedule_after_silence(attempt.ended, check_times);
            } else {
                self.checks.schedule(check_times);
            }
        }
        // A stall check that leaves open whether the queries are served, and whether a pooler may hold them.
        let is_held = match &outcome {
            Err(LoginFailure::Unanswered(_)) => Some(false),
            Err(LoginFailure::Held(_)) => Some(true),
            Err(LoginFailure::Refused(cause)) if cause.fault == Fault::PeerNotReady => Some(true),
            _ => None,
        };
        let series =
            self.stall_series.as_mut().filter(|it| !is_regular && it.began <= attempt.began);
        if let (Some(series), Some(is_held)) = (series, is_held) {
            series.add_unanswered(1, is_held);
        }
        let is_timeout = outcome.as_ref().is_err_and(LoginFailure::is_timeout);
        if was_attempted && (is_regular || !is_timeout) {
            self.checks.clear_suspicion(attempt.began);
        }
        // A peer that held logins may have frozen since then, which another series of checks will show.
        if matches!(outcome, Err(LoginFailure::Unanswered(_))) && is_regular {
            self.stall_series.take_if(|series| series.is_held);
        }
        match outcome {
            Ok(()) => self.record_success(attempt),
            // An unanswered stall check marks nothing by itself.
            Err(failure) if failure.is_timeout() && !is_regular => {}
            // Whatever prevents this process from checking is not over within moments, so the
            // suspicion must not cause another check at once.
            Err(LoginFailure::NotAttempted(_)) if is_regular => self.checks.suspected_at = None,
            Err(failure) => self.connect_failed(attempt, failure, check_times),
        }
    }

    /// Records the outcome of a check that was left to wait after its timeout. The peer had not completed the
    /// login until then, so the whole login is as new as its end.
    pub(crate) fn late_check_ended(
        &mut self,
        now: Instant,
        outcome: Result<(), LoginFailure>,
        check_times: CheckTimes,
    ) {
        let attempt = Attempt { began: now, ended: now };
        match outcome {
            Ok(()) => {
                self.checks.schedule(check_times);
                self.logins.record_answer(attempt);
                self.is_found_up(attempt);
            }
            Err(LoginFailure::Refused(cause)) => {
                self.checks.schedule(check_times);
                self.record_refused(attempt, cause, check_times);
            }
            // The client library has given up, as libpq does after its own timeout. The next login waits.
            Err(_) => self.checks.schedule_earlier(check_times),
        }
    }

    /// Records that the question that was asked at `asked_at` has been answered, or will not be.
    pub(crate) fn question_ended(&mut self, asked_at: Instant) {
        if let Some(StallSeries { question, .. }) = &mut self.stall_series {
            if matches!(question, QuestionState::Asked { at, .. } if *at == asked_at) {
                *question = QuestionState::Over;
            }
        }
    }

    /// Marks the peer down because it has stalled, as its series of checks has shown.
    pub(crate) fn mark_stalled(&mut self, now: Instant, check_times: CheckTimes) {
        let began = self.stall_series.take().map_or(now, |series| series.began);
        let cause = FailureCause::new(Fault::PeerDown, STALLED_REASON);
        self.mark_down(Attempt { began, ended: now }, cause, check_times);
        self.health.sessions_fail = !self.is_up();
    }

    /// Marks the peer down because it holds queries and logins. Its sessions are left to wait.
    pub(crate) fn mark_held(&mut self, now: Instant, check_times: CheckTimes) {
        let began = self.stall_series.map_or(now, |series| series.began);
        let cause = FailureCause::new(Fault::PeerDown, HELD_REASON);
        self.mark_down(Attempt { began, ended: now }, cause, check_times);
    }

    /// Marks the peer down because it refused a query: it accepts no work at the moment.
    ///
    /// One refusal is enough: refusing costs the server next to nothing, so the peer would soon
    /// attract all the work. A check follows at once and decides. If the peer is already down,
    /// only its sessions count as failing as well, so that the running check is not outdated.
    pub(crate) fn query_refused(&mut self, now: Instant, check_times: CheckTimes) {
        if self.is_up() {
            self.suspect(now);
            if self.health.mark_for_refused_query(now) {
                self.went_down(check_times);
            }
        } else if !self.health.is_refused_query_contradicted(now) {
            self.health.sessions_fail = true;
        }
    }

    /// Clears an expired mark without a check (`Recovery::AfterInterval`). Has no effect on a peer
    /// that is up.
    pub(crate) fn clear_mark(&mut self, now: Instant, check_times: CheckTimes) {
        if !self.is_up() {
            self.checks.next = check_times.regular;
            self.checks.suspected_at = None;
            self.checks.often_until = None;
            self.health.mark_up(now, now);
        }
    }
}

#[cfg(test)]
mod tests;
