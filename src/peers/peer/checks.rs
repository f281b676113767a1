//! The health checks of a peer: which are running, and when the next one begins. Pure.

use std::mem;
use std::time::{Duration, Instant};

use crate::settings::CheckTimes;

/// The minimum time from the start of a check to one because of a suspicion, however many links are lost.
pub(super) const SUSPICION_GAP: Duration = Duration::from_millis(100);

/// The longest pause after a check that was left to wait, in intervals.
const MAX_SILENT_INTERVALS: u32 = 10;

/// The kind of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckKind {
    /// A scheduled check, or one after a link was lost. The outcome decides the state of the peer.
    Regular,
    /// A check whether the peer answers at all, because queries hang on this peer or on another
    /// one. A missing answer alone does not mark the peer down.
    Stall,
}

/// The schedule of a peer's checks, and the checks that are running.
#[derive(Debug, Clone)]
pub(crate) struct Checks {
    /// When the peer is checked next. For a peer that is down this is also the expiry of its mark.
    pub(crate) next: Instant,
    /// When the peer is checked next if all peers are down.
    pub(super) next_all_down: Instant,
    /// Until when the peer is checked as often as if all peers were down, because all were. The fault that
    /// took all of them away has probably ended for this peer too, or is about to.
    pub(super) often_until: Option<Instant>,
    /// The number of checks in a row that were left to wait.
    silences: u32,
    /// When something last spoke against the peer: a lost link, an unanswered ping, a refused query.
    /// Cleared by the outcome of a check that began later.
    pub(super) suspected_at: Option<Instant>,
    /// When an operator requested a check that has not begun yet.
    pub(super) requested: Option<Instant>,
    pub(super) regular: Check,
    /// A stall check may run beside a regular one.
    stall: Check,
}

/// The checks of one kind: when the newest one began, and whether it is running.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Check {
    began: Option<Instant>,
    pub(super) is_running: bool,
}

impl Checks {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            next: now,
            next_all_down: now,
            often_until: None,
            silences: 0,
            suspected_at: None,
            requested: None,
            regular: Check::default(),
            stall: Check::default(),
        }
    }

    fn of_kind(&mut self, kind: CheckKind) -> &mut Check {
        match kind {
            CheckKind::Regular => &mut self.regular,
            CheckKind::Stall => &mut self.stall,
        }
    }

    /// Begins a check. Returns `false` without an effect if a check of this kind is already running.
    pub(crate) fn begin(&mut self, kind: CheckKind, now: Instant) -> bool {
        let check = self.of_kind(kind);
        if mem::replace(&mut check.is_running, true) {
            return false;
        }
        check.began = Some(now);
        if kind == CheckKind::Regular {
            self.requested = None;
        }
        true
    }

    pub(super) fn end(&mut self, kind: CheckKind) {
        self.of_kind(kind).is_running = false;
    }

    pub(super) fn is_any_running(&self) -> bool {
        self.regular.is_running || self.stall.is_running
    }

    /// Returns when the last stall check began.
    pub(crate) fn stall_began(&self) -> Option<Instant> {
        self.stall.began
    }

    /// Records that another peer is up again after all peers were down.
    pub(crate) fn outage_ended(&mut self, often_until: Instant) {
        self.often_until = Some(often_until);
    }

    pub(super) fn schedule(&mut self, CheckTimes { regular, all_down }: CheckTimes) {
        (self.next, self.next_all_down) = (regular, all_down);
        self.silences = 0;
    }

    /// Schedules the next check after one that a peer has accepted and not completed. The pause doubles each
    /// time, so that the peer finds few aborted logins in its queue when it goes on. Until the next check, the
    /// login waits for that moment.
    pub(super) fn schedule_after_silence(&mut self, now: Instant, times: CheckTimes) {
        let CheckTimes { regular, all_down } = times;
        let longest = regular.saturating_duration_since(now).saturating_mul(MAX_SILENT_INTERVALS);
        let factor = 2_u32.saturating_pow(self.silences);
        let [regular, all_down] = [regular, all_down].map(|at| {
            let pause = at.saturating_duration_since(now);
            now + pause.saturating_mul(factor).min(longest).max(pause)
        });
        (self.next, self.next_all_down) = (regular, all_down);
        self.silences += 1;
    }

    /// Schedules the next check no later than at these times.
    pub(super) fn schedule_earlier(&mut self, CheckTimes { regular, all_down }: CheckTimes) {
        self.next = self.next.min(regular);
        self.next_all_down = self.next_all_down.min(all_down);
    }

    /// Delays the next check that is made because no connection can be opened.
    pub(crate) fn delay_while_all_down(&mut self, until: Instant) {
        self.next_all_down = self.next_all_down.max(until);
    }

    /// Clears a suspicion that is not newer than `began`, when a check began that has now been
    /// answered or has timed out.
    pub(super) fn clear_suspicion(&mut self, began: Instant) {
        self.suspected_at = self.suspected_at.filter(|at| *at > began);
    }

    /// Returns when the peer is checked because of a suspicion.
    pub(super) fn suspicion(&self) -> Option<Instant> {
        let after_gap =
            |at: Instant| self.regular.began.map_or(at, |began| at.max(began + SUSPICION_GAP));
        self.suspected_at.map(after_gap)
    }
}
