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
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);
    const SOON: Duration = Duration::from_millis(250);

    fn due(now: Instant) -> Due {
        Due { next: now + INTERVAL, soon: now + SOON }
    }

    fn refused(why: &str) -> Answer {
        let fault = match why {
            "full" => Fault::PeerFull,
            "wrong password" => Fault::Misconfigured,
            _ => Fault::PeerDown,
        };
        Answer::Refused(Refusal::new(fault, why))
    }

    /// A peer and a clock that only moves when it is told to.
    struct Story {
        start: Instant,
        peer: Peer,
    }

    impl Story {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
        fn begin() -> Self {
            let start = Instant::now();
            let url = PeerUrl::new("url".to_owned());
            let mut peer = Peer::new("db0".into(), url, 1, 0, start);
            peer.next_check = start + INTERVAL;
            Self { start, peer }
        }

        /// The instant `millis` after the start.
        fn at(&self, millis: u64) -> Instant {
            self.start + Duration::from_millis(millis)
        }

        fn connect_fails(&mut self, began: u64, now: u64, why: &str) -> bool {
            let (began, now) = (self.at(began), self.at(now));
            self.peer.connect_failed((began, now), refused(why), due(now)).is_some()
        }

        fn connects(&mut self, began: u64, now: u64) -> bool {
            let (began, now) = (self.at(began), self.at(now));
            self.peer.connected(began, now).is_some()
        }

        fn probe_begins(&mut self, now: u64) {
            assert!(self.peer.probe_begins(ProbeKind::Regular, self.at(now)), "one at a time");
        }

        fn probe_ends(&mut self, began: u64, now: u64, outcome: Result<(), &str>) -> bool {
            let (began, now) = (self.at(began), self.at(now));
            let answer = outcome.map_or_else(refused, |()| Answer::Works);
            self.peer.probe_ended(ProbeKind::Regular, (began, now), answer, due(now)).is_some()
        }

        fn why(&self) -> Option<&str> {
            match &self.peer.health {
                Health::Up { .. } => None,
                Health::Down { refusal, .. } => Some(&refusal.why),
            }
        }
    }

    #[test]
    fn a_failed_connect_marks_it_down_for_one_interval_and_says_so_once() {
        let mut story = Story::begin();
        assert!(story.connect_fails(1, 2, "refused"), "the first failure is a transition");
        assert!(!story.connect_fails(3, 4, "timed out"), "the second is none");
        assert_eq!(story.why(), Some("timed out"), "the newest reason is shown");
        assert_eq!(
            story.peer.next_check,
            story.at(2) + INTERVAL,
            "a failed try on a peer that is down already does not move its due time"
        );
        assert_eq!(story.peer.counts.failures, 2, "both are counted");
    }

    #[test]
    fn only_a_probe_that_fails_renews_the_mark_and_one_that_succeeds_clears_it() {
        let mut story = Story::begin();
        story.connect_fails(1, 2, "refused");
        assert_eq!(story.peer.probe_due(false), Some(story.at(30_002)), "it is checked when due");
        story.probe_begins(30_002);
        assert_eq!(story.peer.probe_due(false), None, "one probe at a time");
        assert!(!story.probe_ends(30_002, 30_010, Err("still refused")), "still down");
        assert_eq!(story.peer.probe_due(false), Some(story.at(60_010)), "the mark is renewed");
        story.probe_begins(60_010);
        assert!(story.probe_ends(60_010, 60_011, Ok(())), "it is up again");
        assert_eq!(story.why(), None, "and has no reason to be down");
        assert_eq!(story.peer.probe_due(false), Some(story.at(90_011)), "an up peer is probed too");
    }

    #[test]
    fn a_probe_notices_a_peer_that_refuses_while_no_connection_is_needed() {
        let mut story = Story::begin();
        story.probe_begins(30_000);
        assert!(story.probe_ends(30_000, 30_001, Err("refused")), "it is down");
        assert_eq!(story.why(), Some("refused"), "for the reason that the probe met");
    }

    #[test]
    fn a_lost_link_is_no_mark_but_a_probe_at_once_and_one_for_all_of_them() {
        let mut story = Story::begin();
        for millis in [1_000, 1_001, 1_002] {
            story.peer.suspect(story.at(millis));
        }
        assert!(story.peer.is_up(), "a lost link proves nothing");
        assert_eq!(story.peer.probe_due(false), Some(story.at(1_002)), "it is probed now");
        story.probe_begins(1_002);
        assert_eq!(story.peer.probe_due(false), None, "once");
        story.probe_ends(1_002, 1_010, Ok(()));
        assert_eq!(story.peer.probe_due(false), Some(story.at(31_010)), "the suspicion is cleared");
    }

    #[test]
    fn a_link_lost_after_the_probe_began_causes_one_more() {
        let mut story = Story::begin();
        story.peer.suspect(story.at(1_000));
        story.probe_begins(1_000);
        story.peer.suspect(story.at(1_005));
        story.probe_ends(1_000, 1_010, Ok(()));
        assert!(story.peer.is_up(), "the probe succeeded");
        assert_eq!(
            story.peer.probe_due(false),
            Some(story.at(1_000) + SUSPICION_GAP),
            "an answer from before the loss does not settle it, but probes keep their distance"
        );
    }

    #[test]
    fn a_lost_link_does_not_hurry_the_check_of_a_peer_that_is_down() {
        let mut story = Story::begin();
        story.connect_fails(1, 2, "refused");
        story.peer.suspect(story.at(10));
        assert_eq!(
            story.peer.probe_due(false),
            Some(story.at(2) + INTERVAL),
            "it keeps its due time"
        );
    }

    #[test]
    fn newer_observations_win() {
        let mut story = Story::begin();
        story.probe_begins(1_000);
        assert!(story.connect_fails(1_010, 1_020, "refused"), "a login fails meanwhile");
        assert!(!story.probe_ends(1_000, 1_030, Ok(())), "the older probe's success is stale");
        assert_eq!(story.why(), Some("refused"), "so it stays down");
        assert_eq!(
            story.peer.probe_due(false),
            Some(story.at(1_020) + INTERVAL),
            "and its mark's due time is not moved"
        );
        assert!(
            !story.connects(1_005, 1_040),
            "nor does a login that began before the failure count"
        );
        assert!(story.connects(2_000, 2_001), "one that began after it does");
        assert!(!story.connect_fails(1_999, 2_002, "slow"), "and an older failure does not");
    }

    #[test]
    fn one_that_refuses_work_is_down_at_once_and_checked_at_once() {
        let mut story = Story::begin();
        story.probe_begins(1_000);
        let (now, due) = (story.at(1_010), due(story.at(1_010)));
        assert!(story.peer.takes_no_work(now, due).is_some(), "that is said");
        assert!(story.peer.takes_no_work(story.at(1_011), due).is_none(), "once");
        assert!(
            !story.probe_ends(1_000, 1_020, Ok(())),
            "a check that began before does not count"
        );
        let again = story.at(1_000) + SUSPICION_GAP;
        assert_eq!(story.peer.probe_due(false), Some(again), "the next one begins soon");
        story.probe_begins(1_100);
        assert!(story.probe_ends(1_100, 1_101, Ok(())), "and brings it back");
        assert_eq!(story.peer.probe_due(false), Some(story.at(1_101) + INTERVAL), "as ever");
    }

    #[test]
    fn what_is_down_is_not_accused_again_and_again() {
        let mut story = Story::begin();
        let due = due(story.at(1_000));
        assert!(story.peer.takes_no_work(story.at(1_000), due).is_some());
        story.probe_begins(1_000);
        assert!(story.peer.takes_no_work(story.at(1_005), due).is_none(), "that is known");
        assert!(story.probe_ends(1_000, 1_010, Ok(())), "the check that was under way counts");
        let interval = Some(story.at(1_010) + INTERVAL);
        assert_eq!(story.peer.probe_due(false), interval, "and settles it");
        assert!(story.peer.takes_no_work(story.at(1_020), due).is_none(), "a check knows better");
        let again = story.at(1_000) + SUSPICION_GAP;
        assert_eq!((story.why(), story.peer.probe_due(false)), (None, Some(again)), "ask again");
        story.probe_begins(1_100);
        story.probe_ends(1_100, 1_101, Err("refused"));
        assert_eq!(story.why(), Some("refused"), "which decides");
        assert_eq!(story.peer.probe_due(false), Some(story.at(1_101) + INTERVAL), "as ever");
        story.probe_begins(40_000);
        story.probe_ends(40_000, 40_001, Ok(()));
        assert!(story.peer.takes_no_work(story.at(40_002), due).is_some(), "later it is news");
    }

    #[test]
    fn a_suspicion_that_nobody_can_be_asked_about_waits() {
        let mut story = Story::begin();
        story.peer.suspect(story.at(1_000));
        story.probe_begins(1_000);
        let times = (story.at(1_000), story.at(1_001));
        let due = due(times.1);
        story.peer.probe_ended(ProbeKind::Regular, times, Answer::NotAsked, due);
        assert_eq!(story.peer.probe_due(false), Some(due.next), "not ten times a second");
    }

    #[test]
    fn one_that_is_full_is_not_down_and_asked_again_soon() {
        let mut story = Story::begin();
        assert!(story.connect_fails(1, 2, "full"), "that is said");
        assert!(!story.connect_fails(3, 4, "full"), "once");
        assert_eq!((story.why(), story.peer.is_full), (None, true), "it is up, and full");
        let again = story.at(2) + FULL_AGAIN;
        let due = story.peer.probe_due(false);
        assert!(due <= Some(again), "it is asked again after a second: {due:?}");
        story.probe_begins(1_002);
        assert!(!story.probe_ends(1_002, 1_003, Err("full")), "it still is");
        assert_eq!(story.peer.probe_due(false), Some(story.at(1_003) + FULL_AGAIN), "and again");
        story.probe_begins(2_003);
        assert!(story.probe_ends(2_003, 2_004, Ok(())), "it has room again, which is said");
        assert!(!story.peer.is_full);
        assert_eq!(story.peer.probe_due(false), Some(story.at(2_004) + INTERVAL), "as ever");
    }

    #[test]
    fn one_that_is_down_does_not_come_back_by_being_full() {
        let mut story = Story::begin();
        story.connect_fails(1, 2, "refused");
        story.probe_begins(30_002);
        assert!(!story.probe_ends(30_002, 30_003, Err("full")), "it has shown nothing");
        assert_eq!(story.why(), Some("full"), "it is down for another reason");
        let again = story.at(30_003) + FULL_AGAIN;
        assert_eq!(story.peer.probe_due(false), Some(again), "but not for a whole interval");
    }

    #[test]
    fn an_operator_s_mistake_is_said_once_and_not_asked_about_four_times_a_second() {
        let mut story = Story::begin();
        assert!(story.connect_fails(1, 2, "refused"));
        assert!(story.connect_fails(3, 4, "wrong password"), "although it is down already");
        assert!(!story.connect_fails(5, 6, "wrong password"), "once");
        assert_eq!(story.peer.due(true), story.at(6) + MISTAKE_AGAIN, "while all are down");
        story.probe_begins(6_000);
        story.probe_ends(6_000, 6_001, Ok(()));
        assert!(story.connect_fails(7_000, 7_001, "wrong password"), "and again after it was up");
    }

    #[test]
    fn an_operator_s_word_is_a_state_of_its_own() {
        let mut story = Story::begin();
        let now = story.at(1);
        assert_eq!(story.peer.drain(false, now), Some(EventKind::Draining));
        assert_eq!(story.peer.drain(false, now), None, "that is known");
        assert!(story.peer.is_up() && !story.peer.serves(), "it is fine, and gets no work");
        assert!(story.connect_fails(2, 3, "refused"), "it is checked all the same");
        assert_eq!(story.peer.due(true), story.at(3) + INTERVAL, "but nobody waits for it");
        story.peer.counts.dialing = 1;
        assert_eq!(story.peer.end_draining(story.at(4)), None, "a login is under way");
        story.peer.counts.dialing = 0;
        let drained = EventKind::Drained { took: Duration::from_millis(4) };
        assert_eq!(story.peer.end_draining(story.at(5)), Some([Some(drained), None]));
        assert_eq!(story.peer.end_draining(story.at(6)), None, "once");
        story.probe_begins(30_003);
        assert!(story.probe_ends(30_003, 30_004, Ok(())), "a check brings it up");
        assert!(!story.peer.serves(), "and not back");
        let resumed = story.at(30_010);
        assert_eq!(story.peer.resume(resumed), Some(EventKind::Resumed));
        assert!(story.peer.serves(), "an operator does");
        assert_eq!(story.peer.probe_due(false), Some(resumed), "and it is checked at once");
        assert_eq!(story.peer.resume(resumed), None, "that is known");
    }

    #[test]
    fn one_that_leaves_is_gone_when_it_is_drained_and_vacant_when_nothing_leads_there() {
        let mut story = Story::begin();
        let at = [1, 2, 3, 4].map(|millis| story.at(millis));
        assert_eq!(story.peer.drain(false, at[0]), Some(EventKind::Draining));
        assert_eq!(story.peer.drain(true, at[1]), None, "it is being drained already");
        assert!(!story.peer.is_member());
        let drained = EventKind::Drained { took: Duration::from_millis(2) };
        let both = Some([Some(drained), Some(EventKind::Removed)]);
        story.probe_begins(2);
        assert_eq!(story.peer.end_draining(at[2]), both);
        assert!(story.peer.is_gone() && !story.peer.is_vacant(), "a check is under way");
        story.probe_ends(2, 4, Ok(()));
        assert!(story.peer.is_vacant());
        assert_eq!(story.peer.probe_due(false), None, "nobody checks it any more");

        let mut story = Story::begin();
        story.peer.drain(false, at[0]);
        story.peer.end_draining(at[1]);
        assert_eq!(story.peer.drain(true, at[2]), Some(EventKind::Removed), "it was drained");
    }

    #[test]
    fn a_check_that_is_asked_for_is_made_once() {
        let mut story = Story::begin();
        story.connect_fails(1, 2, "refused");
        story.peer.probe_now(story.at(10));
        assert_eq!(story.peer.probe_due(false), Some(story.at(10)), "also while it is down");
        story.probe_begins(10);
        story.probe_ends(10, 11, Err("refused"));
        assert_eq!(story.peer.probe_due(false), Some(story.at(11) + INTERVAL), "as ever");
    }

    #[test]
    fn a_mark_can_be_cleared_unasked() {
        let mut story = Story::begin();
        let due = due(story.at(30_002));
        assert!(story.peer.clear(story.at(1), due).is_none(), "nothing to clear");
        story.connect_fails(1, 2, "refused");
        assert!(story.peer.clear(story.at(30_002), due).is_some(), "it is up");
        assert_eq!(
            story.peer.probe_due(false),
            Some(due.next),
            "and checked after another interval"
        );
    }

    #[test]
    fn a_probe_that_could_not_be_made_is_made_later() {
        let mut story = Story::begin();
        story.probe_begins(30_000);
        let times = (story.at(30_000), story.at(30_001));
        let due = due(times.1);
        let transition = story.peer.probe_ended(ProbeKind::Regular, times, Answer::NotAsked, due);
        assert_eq!(transition, None, "its state stays");
        assert_eq!(story.peer.probe_due(false), Some(due.next), "but not for ever");
    }
}
