//! One peer and its state machine. Pure: `now` and every due time are arguments.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::EventKind;
use crate::fault::{Fault, Refusal};
use crate::peers::journal::News;
use crate::peers::pulse::Pulse;
use crate::peers::stall::Round;
use crate::rules::Due;
use crate::url::PeerUrl;

/// The least time between the starts of two probes of one peer, however many links it loses.
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
pub(crate) enum ProbeKind {
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
    pub(crate) service: Service,
    /// Whether it had no connection to give when it was last asked for one. Those that it has given go
    /// on being used.
    pub(crate) is_full: bool,
    pub(crate) next_check: Instant,
    /// When it is checked next while every peer is down.
    check_soon: Instant,
    /// When the attempt began whose outcome decided `health`; an older one decides nothing.
    decided_by: Option<Instant>,
    /// When a link to this peer was last lost, until a probe that began later has succeeded.
    suspected: Option<Instant>,
    /// When an operator has asked for a check that has not begun yet.
    asked_for: Option<Instant>,
    /// When it was last marked down because it refused a query.
    accused: Option<Instant>,
    /// When the last probe began, and whether it is still running.
    probe_began: Option<Instant>,
    probing: bool,
    /// Whether a check is running because of a stall, and the round of those.
    probing_stall: bool,
    pub(crate) round: Option<Round>,
    /// When the newest attempt began that was answered, by a refusal at least.
    answered: Option<Instant>,
    /// When it was last asked because of a stall.
    asked: Option<Instant>,
    /// How long a login takes.
    usual_login: Option<Duration>,
    pub(crate) counts: Counts,
    /// Kept by the links themselves, without the lock of the set.
    pub(crate) pulse: Arc<Pulse>,
}

/// Whether a peer is given new work.
#[derive(Debug, Clone)]
pub(crate) enum Health {
    Up { since: Instant },
    Down { since: Instant, refusal: Refusal },
}

/// What is counted about a peer.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    /// Logins in flight.
    pub(crate) dialing: usize,
    /// Logins that were left behind at their deadline and have not ended yet.
    pub(crate) stuck: usize,
    pub(crate) links: usize,
    pub(crate) connects: u64,
    pub(crate) failures: u64,
}

impl Counts {
    /// What picking compares: links that are there and links that are being made.
    pub(crate) fn load(&self) -> usize {
        self.links + self.dialing
    }
}

/// Whether an operator lets a peer serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    On,
    /// It gets no new work, and its links end as they come back. One that `leaves` is removed then.
    Draining {
        since: Instant,
        leaves: bool,
    },
    /// The pool has no session there.
    Drained {
        since: Instant,
    },
    /// It is no peer any more. Its place is kept until nothing leads there, and then may be another's.
    Gone,
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
            service: Service::On,
            is_full: false,
            next_check: now,
            check_soon: now,
            decided_by: None,
            suspected: None,
            asked_for: None,
            accused: None,
            probe_began: None,
            probing: false,
            probing_stall: false,
            round: None,
            answered: None,
            asked: None,
            usual_login: None,
            counts: Counts::default(),
            pulse: Arc::default(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.health, Health::Up { .. })
    }

    /// Whether an operator lets it serve.
    pub(crate) fn is_in_service(&self) -> bool {
        self.service == Service::On
    }

    /// Whether it may be given new work.
    pub(crate) fn serves(&self) -> bool {
        self.is_up() && self.is_in_service()
    }

    /// Whether it is one of the peers, and not about to leave.
    pub(crate) fn is_member(&self) -> bool {
        !matches!(self.service, Service::Gone | Service::Draining { leaves: true, .. })
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.service == Service::Gone
    }

    /// Whether it is gone, and nothing leads to its place any more.
    pub(crate) fn is_vacant(&self) -> bool {
        let Counts { dialing, stuck, links, .. } = self.counts;
        let is_probed = self.probing || self.probing_stall;
        self.is_gone() && !is_probed && dialing + stuck + links == 0
    }

    /// What has happened to it, to be told outside the lock.
    pub(crate) fn news(&self, kind: EventKind) -> News {
        News { peer: self.name.clone(), in_service: self.is_in_service(), kind }
    }

    /// It gets no new work from now on, and is removed once it is drained if it `leaves`.
    pub(crate) fn drain(&mut self, leaves: bool, now: Instant) -> Option<EventKind> {
        match self.service {
            Service::On => {
                self.service = Service::Draining { since: now, leaves };
                Some(EventKind::Draining)
            }
            Service::Draining { since, leaves: false } => {
                self.service = Service::Draining { since, leaves };
                None
            }
            Service::Drained { .. } if leaves => {
                self.service = Service::Gone;
                Some(EventKind::Removed)
            }
            Service::Draining { .. } | Service::Drained { .. } | Service::Gone => None,
        }
    }

    /// It serves again. What has been found out about it meanwhile holds, until it is checked now.
    pub(crate) fn resume(&mut self, now: Instant) -> Option<EventKind> {
        let was_on = mem::replace(&mut self.service, Service::On) == Service::On;
        (!was_on).then(|| {
            self.probe_now(now);
            EventKind::Resumed
        })
    }

    pub(crate) fn set_weight(&mut self, weight: u32) -> Option<EventKind> {
        let from = mem::replace(&mut self.weight, weight);
        (from != weight).then_some(EventKind::Weighted { from, to: weight })
    }

    /// Whether it is being drained and the pool has no session there any more: what follows.
    pub(crate) fn end_draining(&mut self, now: Instant) -> Option<[Option<EventKind>; 2]> {
        let Service::Draining { since, leaves } = self.service else { return None };
        if self.counts.dialing > 0 || self.pulse.open() > 0 {
            return None;
        }
        self.service = if leaves { Service::Gone } else { Service::Drained { since: now } };
        let took = now.saturating_duration_since(since);
        Some([Some(EventKind::Drained { took }), leaves.then_some(EventKind::Removed)])
    }

    /// It is to be checked now, whatever is known.
    pub(crate) fn probe_now(&mut self, now: Instant) {
        self.asked_for = Some(now);
    }

    /// A connection for the pool was made by a login that began at `began`, and was put to a check's
    /// test.
    pub(crate) fn connected(&mut self, began: Instant, now: Instant) -> Option<EventKind> {
        self.pulse.tally.logins.add(now.saturating_duration_since(began));
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
            Answer::None(why) => self.silent((began, now), why, due),
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
        self.counts.failures += 1;
        self.answered = self.answered.max(Some(began));
        match refusal.fault {
            Fault::PeerFull if self.is_up() => {
                self.next_check = self.next_check.min(now + FULL_AGAIN);
                let was_full = mem::replace(&mut self.is_full, true);
                (!was_full).then(|| EventKind::Full { why: refusal.why.to_string() })
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
        why: Arc<str>,
        due: Due,
    ) -> Option<EventKind> {
        self.counts.failures += 1;
        self.set_down(began, now, Refusal::new(Fault::PeerDown, why), due)
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
        self.answered.max(self.pulse.ended())
    }

    /// When it was last asked because of a stall.
    pub(crate) fn asked(&self) -> Option<Instant> {
        self.asked
    }

    /// Since when the query has been running that has been running longest, and might be cut off if it
    /// hangs. Of a peer that is up any may show that it has stopped.
    pub(crate) fn oldest_query(&self) -> Option<Instant> {
        self.pulse.oldest(!self.is_up())
    }

    /// A link to this peer was lost: a reason to look at the peer, not a proof against it.
    pub(crate) fn suspect(&mut self, now: Instant) {
        self.suspected = Some(now);
    }

    /// When this peer wants to be probed next; `None` while a probe is running.
    pub(crate) fn probe_due(&self, all_down: bool) -> Option<Instant> {
        if self.probing || self.is_gone() {
            return None;
        }
        let next = self.due(all_down);
        let suspicion = self.suspicion_due().filter(|_| self.is_up());
        Some(suspicion.map_or(next, |at| at.min(next)))
    }

    /// When it is checked because of a suspicion.
    fn suspicion_due(&self) -> Option<Instant> {
        let gap = |at: Instant| self.probe_began.map_or(at, |began| at.max(began + SUSPICION_GAP));
        self.suspected.map(gap)
    }

    /// When it is checked next if nothing happens.
    pub(crate) fn due(&self, all_down: bool) -> Instant {
        // One that keeps a login hanging is left alone for the whole interval, and of one that is not in
        // service nobody waits to hear.
        let next = if all_down && self.counts.stuck == 0 && self.is_in_service() {
            self.next_check.min(self.check_soon)
        } else {
            self.next_check
        };
        let trial = self.suspicion_due().filter(|_| self.is_only_accused());
        [trial, self.asked_for].into_iter().flatten().fold(next, Instant::min)
    }

    /// Whether it is down, and a refused query is all that there is against it.
    fn is_only_accused(&self) -> bool {
        matches!(&self.health, Health::Down { refusal, .. } if &*refusal.why == NO_WORK)
    }

    /// A probe of this peer begins. Not if one of its kind is running.
    pub(crate) fn probe_begins(&mut self, kind: ProbeKind, now: Instant) -> bool {
        match kind {
            ProbeKind::Regular => {
                self.probe_began = Some(now);
                self.asked_for = None;
                !mem::replace(&mut self.probing, true)
            }
            ProbeKind::Stall => {
                let begins = !mem::replace(&mut self.probing_stall, true);
                if begins {
                    self.asked = Some(now);
                }
                begins
            }
        }
    }

    /// The probe that began at `began` ended. Only the checker's own failed probe renews a mark.
    pub(crate) fn probe_ended(
        &mut self,
        kind: ProbeKind,
        (began, now): (Instant, Instant),
        answer: Answer,
        due: Due,
    ) -> Option<EventKind> {
        match kind {
            ProbeKind::Regular => {
                self.probing = false;
                // Word about a mark that was set after this probe began does not move its due time.
                if answer == Answer::NotAsked || self.is_up() || !self.is_older(began) {
                    (self.next_check, self.check_soon) = (due.next, due.soon);
                }
            }
            ProbeKind::Stall => self.probing_stall = false,
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
            Answer::None(why) if kind == ProbeKind::Regular => {
                self.settle(began);
                self.silent((began, now), why, due)
            }
            Answer::None(_) => {
                if let Some(round) = self.round.as_mut().filter(|round| round.began <= began) {
                    round.unanswered += 1;
                }
                None
            }
            Answer::NotAsked => {
                // What keeps us from asking is not over in a moment.
                if kind == ProbeKind::Regular {
                    self.suspected = None;
                }
                None
            }
        }
    }

    /// A check that began at `began` has settled what was suspected before.
    fn settle(&mut self, began: Instant) {
        self.suspected = self.suspected.filter(|at| *at > began);
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
        if self.accused.is_some_and(|at| now < at + CONTRADICTED) {
            return None;
        }
        let down = self.set_down(now, now, Refusal::new(Fault::PeerNotReady, NO_WORK), due)?;
        self.accused = Some(now);
        Some(down)
    }

    /// The mark has run out and is cleared unasked (`Recheck::Clear`); a peer that is up is not
    /// touched.
    pub(crate) fn clear(&mut self, now: Instant, due: Due) -> Option<EventKind> {
        if self.is_up() {
            return None;
        }
        self.next_check = due.next;
        self.suspected = None;
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
        let (fault, why) = (refusal.fault, refusal.why.to_string());
        let is_mistake = fault == Fault::Misconfigured;
        if let Health::Down { refusal: last, .. } = &mut self.health {
            let was_mistake = mem::replace(last, refusal).fault == Fault::Misconfigured;
            return (is_mistake && !was_mistake).then_some(EventKind::Misconfigured { why });
        }
        self.health = Health::Down { since: now, refusal };
        self.pulse.tally.downs.add_one();
        self.next_check = due.next;
        let next_check = due.next.saturating_duration_since(now);
        Some(EventKind::Down { why, fault, next_check })
    }

    /// Whether an attempt that began at `began` is older than the one that decided the state.
    fn is_older(&self, began: Instant) -> bool {
        self.decided_by.is_some_and(|decided| began < decided)
    }
}

#[cfg(test)]
mod tests;
