//! One peer and its state machine. Pure: `now` and every due time are arguments.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::EventKind;
use crate::fault::{Fault, Refusal};
use crate::peers::activity::Activity;
use crate::peers::admin_state::AdminState;
use crate::peers::journal::News;
use crate::peers::stall::Round;
use crate::settings::Due;
use crate::url::PeerUrl;

/// The least time between the starts of two checks of one peer, however many links it loses.
const SUSPICION_GAP: Duration = Duration::from_millis(100);

/// For how long a query's word that a peer takes no work has it checked, and no longer marked: it was
/// marked for one already, and a check has found it fine since.
const CONTRADICTED: Duration = Duration::from_secs(10);

/// When a peer is asked again that had no connection to give: soon, as connections come and go.
const FULL_AGAIN: Duration = Duration::from_secs(1);

/// How often a peer is asked while all are down that does not let us in: nobody mends that within
/// moments, and servers count failed logins.
const MISTAKE_AGAIN: Duration = Duration::from_secs(5);

/// Why a peer is down that has stopped.
const STOPPED: &str = "it has stopped: queries hang, and checks are not answered";

/// And one that is there, and refuses.
const NO_WORK: &str = "it takes no work at the moment: it has refused a query";

/// A login is expected to take up to so many times what it usually takes, and what the newest one
/// adds to what is usual.
const SLOW: u32 = 2;
const NEWEST: u32 = 4;

/// Why a peer is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckKind {
    /// It is due, or a link was lost. The outcome decides about the peer.
    Regular,
    /// Queries hang, there or elsewhere: does it answer at all? No answer decides nothing by itself.
    Stall,
}

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Works,
    Refused(Refusal),
    /// None in time.
    None(Arc<str>),
    /// Nobody was asked.
    NotAsked,
}

/// A peer's state, its schedule, and what is counted about it.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Peers are numbered in the order in which they came.
    pub(crate) number: u64,
    pub(crate) name: Arc<str>,
    pub(crate) url: Arc<PeerUrl>,
    /// Its proportion of the work; 0 is no new work.
    pub(crate) weight: u32,
    /// Under `Strategy::Ordered` the first tier with a live peer serves.
    pub(crate) tier: u32,
    pub(crate) health: Health,
    pub(crate) admin_state: AdminState,
    /// Whether it had no connection to give when it was last asked for one. Those that it has given go
    /// on being used.
    pub(crate) is_full: bool,
    pub(crate) next_check: Instant,
    /// When it is checked next while every peer is down.
    check_soon: Instant,
    /// When the attempt began whose outcome decided `health`; an older one decides nothing.
    decided_by: Option<Instant>,
    /// When a link was last lost, until a check that began later has settled what that means.
    link_lost: Option<Instant>,
    /// When it was last marked down on a query's word alone.
    refused_query: Option<Instant>,
    /// When the newest attempt began that was answered, by a refusal at least.
    answered: Option<Instant>,
    checks: Checks,
    /// The round of checks that is to show whether it has stopped.
    pub(crate) round: Option<Round>,
    /// How long a login takes.
    usual_login: Option<Duration>,
    pub(crate) counts: Counts,
    /// Kept by the links themselves, without the lock of the set.
    pub(crate) activity: Arc<Activity>,
}

/// Which checks of a peer are under way, and when the newest began.
#[derive(Debug, Default)]
struct Checks {
    began: Option<Instant>,
    is_running: bool,
    /// Because of a stall, beside the regular one.
    stall_began: Option<Instant>,
    stall_is_running: bool,
    /// When an operator has asked for one that has not begun yet.
    wanted: Option<Instant>,
}

/// What is known of a peer: what the newest login or check has found out.
#[derive(Debug, Clone)]
pub(crate) enum Health {
    Up { since: Instant },
    Down { since: Instant, refusal: Refusal },
}

/// What leads to a peer at the moment.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    /// Logins in flight.
    pub(crate) connecting: usize,
    /// Logins that were left behind at their deadline and have not ended yet.
    pub(crate) stuck_logins: usize,
    pub(crate) links: usize,
}

impl Counts {
    /// What picking compares: links that are there and links that are being made.
    pub(crate) fn load(&self) -> usize {
        self.links + self.connecting
    }
}

impl Peer {
    /// A peer nothing is known about yet: assumed to be up, and due to be checked.
    pub(crate) fn new(name: Arc<str>, url: PeerUrl, weight: u32, tier: u32, now: Instant) -> Self {
        Self {
            number: 0,
            name,
            url: Arc::new(url),
            weight,
            tier,
            health: Health::Up { since: now },
            admin_state: AdminState::Ready,
            is_full: false,
            next_check: now,
            check_soon: now,
            decided_by: None,
            link_lost: None,
            refused_query: None,
            answered: None,
            checks: Checks::default(),
            round: None,
            usual_login: None,
            counts: Counts::default(),
            activity: Arc::default(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.health, Health::Up { .. })
    }

    /// Whether an operator lets it serve.
    pub(crate) fn is_in_service(&self) -> bool {
        self.admin_state == AdminState::Ready
    }

    /// Whether it may be given new work.
    pub(crate) fn serves(&self) -> bool {
        self.is_up() && self.is_in_service()
    }

    /// Whether it is one of the peers, and not about to leave.
    pub(crate) fn is_member(&self) -> bool {
        !matches!(
            self.admin_state,
            AdminState::Removed | AdminState::Draining { then_remove: true, .. }
        )
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.admin_state == AdminState::Removed
    }

    /// Whether it is gone, and nothing leads to its place any more.
    pub(crate) fn is_vacant(&self) -> bool {
        let Counts { connecting, stuck_logins, links, .. } = self.counts;
        let is_being_checked = self.checks.is_running || self.checks.stall_is_running;
        self.is_gone() && !is_being_checked && connecting + stuck_logins + links == 0
    }

    /// What has happened to it, to be told outside the lock.
    pub(crate) fn news(&self, kind: EventKind) -> News {
        News { peer: self.name.clone(), in_service: self.is_in_service(), kind }
    }

    /// It gets no new work from now on, and is removed once it is drained if it `then_remove`.
    pub(crate) fn drain(&mut self, then_remove: bool, now: Instant) -> Option<EventKind> {
        self.admin_state.drain(then_remove, now)
    }

    /// It serves again. What has been found out about it meanwhile holds, until it is checked now.
    pub(crate) fn resume(&mut self, now: Instant) -> Option<EventKind> {
        let resumed = self.admin_state.resume()?;
        self.check_now(now);
        Some(resumed)
    }

    pub(crate) fn set_weight(&mut self, weight: u32) -> Option<EventKind> {
        let from = mem::replace(&mut self.weight, weight);
        (from != weight).then_some(EventKind::WeightChanged { from, to: weight })
    }

    /// What follows if the pool has no session there any more.
    pub(crate) fn end_draining(&mut self, now: Instant) -> Option<[Option<EventKind>; 2]> {
        let is_empty = self.counts.connecting == 0 && self.activity.open() == 0;
        is_empty.then(|| self.admin_state.has_emptied(now)).flatten()
    }

    /// It is to be checked now, whatever is known.
    pub(crate) fn check_now(&mut self, now: Instant) {
        self.checks.wanted = Some(now);
    }

    /// A connection for the pool was made by a login that began at `began`, and was put to a check's
    /// test.
    pub(crate) fn connected(&mut self, began: Instant, now: Instant) -> Option<EventKind> {
        self.activity.counters.logins.add(now.saturating_duration_since(began));
        let room = self.succeeded(began, now);
        self.set_up(began, now).or(room)
    }

    /// A login for the pool that began at `began` failed, by the peer's answer or for want of one. A
    /// peer that is up is marked down until `due`; one that is down already keeps its due time, or
    /// the checker would never get to it.
    pub(crate) fn connect_failed(
        &mut self,
        (began, now): (Instant, Instant),
        answer: Answer,
        due: Due,
    ) -> Option<EventKind> {
        match answer {
            Answer::Refused(refusal) => self.refused((began, now), refusal, due),
            Answer::None(reason) => self.silent((began, now), reason, due),
            Answer::Works | Answer::NotAsked => None,
        }
    }

    /// An attempt that began at `began` was refused. One that is full is up, if it was.
    fn refused(
        &mut self,
        (began, now): (Instant, Instant),
        refusal: Refusal,
        due: Due,
    ) -> Option<EventKind> {
        self.activity.counters.connect_failures.add_one();
        self.answered = self.answered.max(Some(began));
        match refusal.fault {
            Fault::PeerFull if self.is_up() => {
                self.next_check = self.next_check.min(now + FULL_AGAIN);
                let was_full = mem::replace(&mut self.is_full, true);
                (!was_full).then(|| EventKind::Full { reason: refusal.reason.to_string() })
            }
            Fault::PeerFull => {
                let down = self.set_down(began, now, refusal, due);
                self.next_check = self.next_check.min(now + FULL_AGAIN);
                down
            }
            Fault::Misconfigured => {
                let down = self.set_down(began, now, refusal, due);
                self.check_soon = self.check_soon.max(now + MISTAKE_AGAIN);
                down
            }
            _ => self.set_down(began, now, refusal, due),
        }
    }

    /// An attempt that began at `began` was not answered.
    fn silent(
        &mut self,
        (began, now): (Instant, Instant),
        reason: Arc<str>,
        due: Due,
    ) -> Option<EventKind> {
        self.activity.counters.connect_failures.add_one();
        self.set_down(began, now, Refusal::new(Fault::PeerDown, reason), due)
    }

    fn succeeded(&mut self, began: Instant, now: Instant) -> Option<EventKind> {
        let was_full = mem::replace(&mut self.is_full, false);
        self.answered = self.answered.max(Some(began));
        let took = now.saturating_duration_since(began);
        let usual = self.usual_login.unwrap_or(took);
        self.usual_login = Some((usual * (NEWEST - 1) + took) / NEWEST);
        was_full.then_some(EventKind::HasRoom)
    }

    /// How long a login may take without being slow. `None` before there was one.
    pub(crate) fn expected_login(&self) -> Option<Duration> {
        self.usual_login.map(|usual| usual * SLOW)
    }

    /// When it last answered anything.
    pub(crate) fn answered(&self) -> Option<Instant> {
        self.answered.max(self.activity.ended())
    }

    /// When it was last checked because of a stall.
    pub(crate) fn stall_check_began(&self) -> Option<Instant> {
        self.checks.stall_began
    }

    /// Since when the query has been running that has been running longest, and might be cut off if it
    /// hangs. Of a peer that is up any may show that it has stopped.
    pub(crate) fn oldest_query(&self) -> Option<Instant> {
        self.activity.oldest(!self.is_up())
    }

    /// A link to this peer was lost: a reason to look at the peer, not a proof against it.
    pub(crate) fn suspect(&mut self, now: Instant) {
        self.link_lost = Some(now);
    }

    /// When this peer wants to be checked next; `None` while a check is running.
    pub(crate) fn check_due(&self, all_down: bool) -> Option<Instant> {
        if self.checks.is_running || self.is_gone() {
            return None;
        }
        let next = self.due(all_down);
        let suspicion = self.suspicion_due().filter(|_| self.is_up());
        Some(suspicion.map_or(next, |at| at.min(next)))
    }

    /// When it is checked because of a suspicion.
    fn suspicion_due(&self) -> Option<Instant> {
        let gap = |at: Instant| self.checks.began.map_or(at, |began| at.max(began + SUSPICION_GAP));
        self.link_lost.map(gap)
    }

    /// When it is checked next if nothing happens.
    pub(crate) fn due(&self, all_down: bool) -> Instant {
        // One that keeps a login hanging is left alone for the whole interval, and of one that is not in
        // service nobody waits to hear.
        let next = if all_down && self.counts.stuck_logins == 0 && self.is_in_service() {
            self.next_check.min(self.check_soon)
        } else {
            self.next_check
        };
        let trial = self.suspicion_due().filter(|_| self.is_on_trial());
        [trial, self.checks.wanted].into_iter().flatten().fold(next, Instant::min)
    }

    /// Whether it is down, and a refused query is all that there is against it.
    fn is_on_trial(&self) -> bool {
        matches!(&self.health, Health::Down { refusal, .. } if &*refusal.reason == NO_WORK)
    }

    /// A check of this peer begins. Not if one of its kind is running.
    pub(crate) fn check_begins(&mut self, kind: CheckKind, now: Instant) -> bool {
        match kind {
            CheckKind::Regular => {
                self.checks.began = Some(now);
                self.checks.wanted = None;
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

    /// The check that began at `began` ended. Only the checker's own failed check renews a mark.
    pub(crate) fn check_ended(
        &mut self,
        kind: CheckKind,
        (began, now): (Instant, Instant),
        answer: Answer,
        due: Due,
    ) -> Option<EventKind> {
        match kind {
            CheckKind::Regular => {
                self.checks.is_running = false;
                // Word about a mark that was set after this check began does not move its due time.
                if answer == Answer::NotAsked || self.is_up() || !self.is_older(began) {
                    (self.next_check, self.check_soon) = (due.next, due.soon);
                }
            }
            CheckKind::Stall => self.checks.stall_is_running = false,
        }
        match answer {
            Answer::Works => {
                let room = self.succeeded(began, now);
                self.settle(began);
                self.set_up(began, now).or(room)
            }
            Answer::Refused(refusal) => {
                self.settle(began);
                self.refused((began, now), refusal, due)
            }
            Answer::None(reason) if kind == CheckKind::Regular => {
                self.settle(began);
                self.silent((began, now), reason, due)
            }
            Answer::None(_) => {
                if let Some(round) = self.round.as_mut().filter(|round| round.began <= began) {
                    round.unanswered += 1;
                }
                None
            }
            Answer::NotAsked => {
                // What keeps us from asking is not over in a moment.
                if kind == CheckKind::Regular {
                    self.link_lost = None;
                }
                None
            }
        }
    }

    /// A check that began at `began` has settled what was suspected before.
    fn settle(&mut self, began: Instant) {
        self.link_lost = self.link_lost.filter(|at| *at > began);
    }

    /// It has stopped, as a round of checks has shown that began at `began`.
    pub(crate) fn stopped(&mut self, began: Instant, now: Instant, due: Due) -> Option<EventKind> {
        self.round = None;
        self.set_down(began, now, Refusal::new(Fault::PeerDown, STOPPED), due)
    }

    /// It has refused a query because it takes no work, which is word enough: refusing costs it next to
    /// nothing, so that it would soon get all the work. A check follows at once, and decides. Of one
    /// that is down it is no news, and must not outdate the check that is under way.
    pub(crate) fn takes_no_work(&mut self, now: Instant, due: Due) -> Option<EventKind> {
        if !self.is_up() {
            return None;
        }
        self.suspect(now);
        if self.refused_query.is_some_and(|at| now < at + CONTRADICTED) {
            return None;
        }
        let down = self.set_down(now, now, Refusal::new(Fault::PeerNotReady, NO_WORK), due)?;
        self.refused_query = Some(now);
        Some(down)
    }

    /// The mark has run out and is cleared unasked (`Recovery::AfterInterval`); a peer that is up is not
    /// touched.
    pub(crate) fn clear(&mut self, now: Instant, due: Due) -> Option<EventKind> {
        if self.is_up() {
            return None;
        }
        self.next_check = due.next;
        self.link_lost = None;
        self.set_up(now, now)
    }

    fn set_up(&mut self, began: Instant, now: Instant) -> Option<EventKind> {
        if self.is_older(began) {
            return None;
        }
        self.decided_by = Some(began);
        let Health::Down { since, .. } = self.health else {
            return None;
        };
        self.health = Health::Up { since: now };
        Some(EventKind::Up { was_down: now.saturating_duration_since(since) })
    }

    fn set_down(
        &mut self,
        began: Instant,
        now: Instant,
        refusal: Refusal,
        due: Due,
    ) -> Option<EventKind> {
        if self.is_older(began) {
            return None;
        }
        self.decided_by = Some(began);
        self.is_full = false;
        let (fault, reason) = (refusal.fault, refusal.reason.to_string());
        let is_mistake = fault == Fault::Misconfigured;
        if let Health::Down { refusal: last, .. } = &mut self.health {
            let was_mistake = mem::replace(last, refusal).fault == Fault::Misconfigured;
            return (is_mistake && !was_mistake).then_some(EventKind::Misconfigured { reason });
        }
        self.health = Health::Down { since: now, refusal };
        self.activity.counters.downs.add_one();
        self.next_check = due.next;
        let next_check = due.next.saturating_duration_since(now);
        Some(EventKind::Down { reason, fault, next_check })
    }

    /// Whether an attempt that began at `began` is older than the one that decided the state.
    fn is_older(&self, began: Instant) -> bool {
        self.decided_by.is_some_and(|decided| began < decided)
    }
}

#[cfg(test)]
mod tests;
