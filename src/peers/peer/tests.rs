use super::checks::SUSPICION_GAP;
use super::*;
use crate::events::EventKind;
use crate::peers::transition::events_between;

const INTERVAL: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_millis(250);

fn check_times_after(now: Instant) -> CheckTimes {
    CheckTimes { regular: now + INTERVAL, all_down: now + SOON }
}

fn refused(reason: &str) -> LoginFailure {
    let fault = match reason {
        "full" => Fault::PeerFull,
        "wrong password" => Fault::Misconfigured,
        _ => Fault::PeerDown,
    };
    LoginFailure::refused(fault, reason)
}

/// A peer and a clock that only the test moves.
struct Scenario {
    start: Instant,
    peer: Peer,
}

impl Scenario {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn new() -> Self {
        let start = Instant::now();
        let url = PeerUrl::new("url".to_owned());
        let mut peer = Peer::new("db0".into(), url, 1, 0, start);
        peer.checks.next = start + INTERVAL;
        Self { start, peer }
    }

    /// Returns the instant `millis` milliseconds after the start.
    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    /// Changes the peer, and returns what has happened to it.
    fn change(&mut self, now: Instant, change: impl FnOnce(&mut Peer)) -> Vec<EventKind> {
        let before = self.peer.clone();
        change(&mut self.peer);
        events_between(&before, &self.peer, false, now)
    }

    fn attempt(&self, began: u64, ended: u64) -> Attempt {
        Attempt { began: self.at(began), ended: self.at(ended) }
    }

    /// Returns whether the failure causes an event.
    fn connect_fails(&mut self, began: u64, now: u64, reason: &str) -> bool {
        let (attempt, now) = (self.attempt(began, now), self.at(now));
        let check_times = check_times_after(now);
        let fails = |peer: &mut Peer| peer.connect_failed(attempt, refused(reason), check_times);
        !self.change(now, fails).is_empty()
    }

    /// Returns whether the success causes an event.
    fn connects(&mut self, began: u64, now: u64) -> bool {
        let attempt = self.attempt(began, now);
        !self.change(attempt.ended, |peer| peer.connected(attempt)).is_empty()
    }

    /// Returns whether the refused query causes an event.
    fn query_is_refused(&mut self, now: u64, check_times: CheckTimes) -> bool {
        let now = self.at(now);
        !self.change(now, |peer| peer.query_refused(now, check_times)).is_empty()
    }

    fn check_begins(&mut self, now: u64) {
        let begins = self.peer.checks.begin(CheckKind::Regular, self.at(now));
        assert!(begins, "no other check is running");
    }

    /// Returns whether the outcome causes an event.
    fn check_ends(&mut self, began: u64, now: u64, outcome: Result<(), &str>) -> bool {
        let attempt = self.attempt(began, now);
        let outcome = outcome.map_err(refused);
        let ends = |peer: &mut Peer| {
            let check_times = check_times_after(attempt.ended);
            peer.check_ended(CheckKind::Regular, attempt, outcome, check_times);
        };
        !self.change(attempt.ended, ends).is_empty()
    }

    /// Ends a check that could not be made, and returns the times of the next check.
    fn check_is_skipped(&mut self, began: u64, now: u64) -> CheckTimes {
        let attempt = self.attempt(began, now);
        let check_times = check_times_after(attempt.ended);
        let outcome = Err(LoginFailure::NotAttempted("no thread".into()));
        let ends =
            |peer: &mut Peer| peer.check_ended(CheckKind::Regular, attempt, outcome, check_times);
        assert_eq!(self.change(attempt.ended, ends), [], "the health of the peer does not change");
        check_times
    }

    fn drains(&mut self, now: u64) -> Vec<EventKind> {
        let now = self.at(now);
        self.change(now, |peer| peer.admin_state.drain(now))
    }

    fn is_removed(&mut self, now: u64) -> Vec<EventKind> {
        let now = self.at(now);
        self.change(now, |peer| peer.admin_state.remove(now))
    }

    fn draining_ends(&mut self, now: u64) -> Vec<EventKind> {
        let now = self.at(now);
        self.change(now, |peer| peer.end_draining(now))
    }

    fn resumes(&mut self, now: u64) -> Vec<EventKind> {
        let now = self.at(now);
        self.change(now, |peer| peer.resume(now))
    }

    fn mark_is_cleared(&mut self, now: u64, check_times: CheckTimes) -> bool {
        let now = self.at(now);
        !self.change(now, |peer| peer.clear_mark(now, check_times)).is_empty()
    }

    fn reason(&self) -> Option<&str> {
        match &self.peer.health.state {
            HealthState::Up { .. } => None,
            HealthState::Down { cause, .. } => Some(&cause.reason),
        }
    }
}

#[test]
fn failed_connect_marks_the_peer_down_for_one_interval_with_one_event() {
    let mut scenario = Scenario::new();
    assert!(scenario.connect_fails(1, 2, "refused"), "the first failure causes an event");
    assert!(!scenario.connect_fails(3, 4, "timed out"), "the second failure causes no event");
    assert_eq!(scenario.reason(), Some("timed out"), "the newest reason is kept");
    assert_eq!(
        scenario.peer.checks.next,
        scenario.at(2) + INTERVAL,
        "a failed connect does not move the scheduled check of a peer that is already down"
    );
    assert_eq!(
        scenario.peer.activity.counters.connect_failures.get(),
        2,
        "both failures are counted"
    );
}

#[test]
fn failed_check_renews_the_mark_and_successful_check_clears_it() {
    let mut scenario = Scenario::new();
    scenario.connect_fails(1, 2, "refused");
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(30_002)),
        "a check is scheduled for the end of the interval"
    );
    scenario.check_begins(30_002);
    assert_eq!(
        scenario.peer.earliest_check(false),
        None,
        "no check is scheduled while one is running"
    );
    assert!(
        !scenario.check_ends(30_002, 30_010, Err("still refused")),
        "a failed check of a peer that is down causes no event"
    );
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(60_010)),
        "a failed check renews the mark"
    );
    scenario.check_begins(60_010);
    assert!(scenario.check_ends(60_010, 60_011, Ok(())), "a successful check marks the peer up");
    assert_eq!(scenario.reason(), None, "a peer that is up has no reason to be down");
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(90_011)),
        "a peer that is up is checked after each interval"
    );
}

#[test]
fn failed_check_marks_a_peer_down_without_any_connect() {
    let mut scenario = Scenario::new();
    scenario.check_begins(30_000);
    assert!(scenario.check_ends(30_000, 30_001, Err("refused")), "a failed check causes an event");
    assert_eq!(scenario.reason(), Some("refused"), "the peer is down with the reason of the check");
}

#[test]
fn lost_links_cause_one_check_at_once_and_no_mark() {
    let mut scenario = Scenario::new();
    for millis in [1_000, 1_001, 1_002] {
        scenario.peer.suspect(scenario.at(millis));
    }
    assert!(scenario.peer.is_up(), "a lost link does not mark the peer down");
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(1_002)),
        "a lost link causes a check at once"
    );
    scenario.check_begins(1_002);
    assert_eq!(scenario.peer.earliest_check(false), None, "several lost links cause one check");
    scenario.check_ends(1_002, 1_010, Ok(()));
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(31_010)),
        "a successful check clears the suspicion"
    );
}

#[test]
fn link_lost_after_a_check_began_causes_another_check() {
    let mut scenario = Scenario::new();
    scenario.peer.suspect(scenario.at(1_000));
    scenario.check_begins(1_000);
    scenario.peer.suspect(scenario.at(1_005));
    scenario.check_ends(1_000, 1_010, Ok(()));
    assert!(scenario.peer.is_up(), "a peer whose check succeeded stays up");
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(1_000) + SUSPICION_GAP),
        "a check that began before the loss does not clear the suspicion, and checks keep a minimum distance"
    );
}

#[test]
fn lost_link_does_not_advance_the_check_of_a_peer_that_is_down() {
    let mut scenario = Scenario::new();
    scenario.connect_fails(1, 2, "refused");
    scenario.peer.suspect(scenario.at(10));
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(2) + INTERVAL),
        "a lost link does not move the scheduled check"
    );
}

#[test]
fn outcome_of_an_older_attempt_is_ignored() {
    let mut scenario = Scenario::new();
    scenario.check_begins(1_000);
    assert!(
        scenario.connect_fails(1_010, 1_020, "refused"),
        "a login that fails during a check marks the peer down"
    );
    assert!(!scenario.check_ends(1_000, 1_030, Ok(())), "the success of an older check is ignored");
    assert_eq!(scenario.reason(), Some("refused"), "the peer stays down");
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(1_020) + INTERVAL),
        "the scheduled check is not moved"
    );
    assert!(
        !scenario.connects(1_005, 1_040),
        "the success of a login that began before the failure is ignored"
    );
    assert!(
        scenario.connects(2_000, 2_001),
        "the success of a login that began after the failure marks the peer up"
    );
    assert!(
        !scenario.connect_fails(1_999, 2_002, "slow"),
        "the failure of an older login is ignored"
    );
}

#[test]
fn refused_query_marks_the_peer_down_and_causes_a_check_at_once() {
    let mut scenario = Scenario::new();
    scenario.check_begins(1_000);
    let check_times = check_times_after(scenario.at(1_010));
    assert!(scenario.query_is_refused(1_010, check_times), "a refused query causes an event");
    assert!(
        !scenario.query_is_refused(1_011, check_times),
        "a second refused query causes no event"
    );
    assert!(
        !scenario.check_ends(1_000, 1_020, Ok(())),
        "a check that began before the refused query is ignored"
    );
    let again = scenario.at(1_000) + SUSPICION_GAP;
    assert_eq!(scenario.peer.earliest_check(false), Some(again), "the next check follows soon");
    scenario.check_begins(1_100);
    assert!(scenario.check_ends(1_100, 1_101, Ok(())), "a successful check marks the peer up");
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(1_101) + INTERVAL),
        "the next regular check follows after an interval"
    );
}

#[test]
fn repeated_refused_queries_cause_checks_but_no_new_mark() {
    let mut scenario = Scenario::new();
    let check_times = check_times_after(scenario.at(1_000));
    assert!(scenario.query_is_refused(1_000, check_times));
    scenario.check_begins(1_000);
    assert!(
        !scenario.query_is_refused(1_005, check_times),
        "a refused query does not change a peer that is down"
    );
    assert!(scenario.check_ends(1_000, 1_010, Ok(())), "the check that is running decides");
    let interval = Some(scenario.at(1_010) + INTERVAL);
    assert_eq!(scenario.peer.earliest_check(false), interval, "the check clears the suspicion");
    assert!(
        !scenario.query_is_refused(1_020, check_times),
        "a refused query soon after a successful check does not mark the peer down"
    );
    let again = scenario.at(1_000) + SUSPICION_GAP;
    assert_eq!(
        (scenario.reason(), scenario.peer.earliest_check(false)),
        (None, Some(again)),
        "the refused query causes another check"
    );
    scenario.check_begins(1_100);
    scenario.check_ends(1_100, 1_101, Err("refused"));
    assert_eq!(scenario.reason(), Some("refused"), "that check decides");
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(1_101) + INTERVAL),
        "the next regular check follows after an interval"
    );
    scenario.check_begins(40_000);
    scenario.check_ends(40_000, 40_001, Ok(()));
    assert!(
        scenario.query_is_refused(40_002, check_times),
        "a refused query after the cooldown marks the peer down"
    );
}

#[test]
fn suspicion_waits_for_the_next_interval_when_no_check_can_be_made() {
    let mut scenario = Scenario::new();
    scenario.peer.suspect(scenario.at(1_000));
    scenario.check_begins(1_000);
    let check_times = scenario.check_is_skipped(1_000, 1_001);
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(check_times.regular),
        "a check that cannot be made is not repeated at once"
    );
}

#[test]
fn full_peer_stays_up_and_is_checked_again_soon() {
    let mut scenario = Scenario::new();
    assert!(scenario.connect_fails(1, 2, "full"), "a full peer causes an event");
    assert!(!scenario.connect_fails(3, 4, "full"), "a peer that is still full causes no event");
    assert_eq!((scenario.reason(), scenario.peer.is_full()), (None, true), "a full peer is up");
    let again = scenario.at(2) + FULL_RECHECK_DELAY;
    let next = scenario.peer.earliest_check(false);
    assert!(next <= Some(again), "a full peer is checked again after a second: {next:?}");
    scenario.check_begins(1_002);
    assert!(
        !scenario.check_ends(1_002, 1_003, Err("full")),
        "a check of a peer that is still full causes no event"
    );
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(1_003) + FULL_RECHECK_DELAY),
        "a peer that is still full is checked again after a second"
    );
    scenario.check_begins(2_003);
    assert!(
        scenario.check_ends(2_003, 2_004, Ok(())),
        "a peer that is not full any more causes an event"
    );
    assert!(!scenario.peer.is_full());
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(2_004) + INTERVAL),
        "the next regular check follows after an interval"
    );
}

#[test]
fn peer_that_is_down_stays_down_when_it_is_full() {
    let mut scenario = Scenario::new();
    scenario.connect_fails(1, 2, "refused");
    scenario.check_begins(30_002);
    assert!(
        !scenario.check_ends(30_002, 30_003, Err("full")),
        "a check of a full peer does not mark it up"
    );
    assert_eq!(scenario.reason(), Some("full"), "the newest reason is kept");
    let again = scenario.at(30_003) + FULL_RECHECK_DELAY;
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(again),
        "a full peer is checked again before the interval ends"
    );
}

#[test]
fn misconfigured_peer_causes_one_event_and_is_checked_less_often_while_all_are_down() {
    let mut scenario = Scenario::new();
    assert!(scenario.connect_fails(1, 2, "refused"));
    assert!(
        scenario.connect_fails(3, 4, "wrong password"),
        "a misconfiguration causes an event although the peer is down already"
    );
    assert!(
        !scenario.connect_fails(5, 6, "wrong password"),
        "a repeated misconfiguration causes no event"
    );
    assert_eq!(
        scenario.peer.scheduled_check(true),
        scenario.at(6) + MISCONFIGURED_RECHECK_DELAY,
        "while all peers are down, a misconfigured peer is checked every five seconds"
    );
    scenario.check_begins(6_000);
    scenario.check_ends(6_000, 6_001, Ok(()));
    assert!(
        scenario.connect_fails(7_000, 7_001, "wrong password"),
        "a misconfiguration causes an event again after the peer was up"
    );
}

#[test]
fn administrative_state_is_independent_of_health() {
    let mut scenario = Scenario::new();
    assert_eq!(scenario.drains(1), [EventKind::Draining]);
    assert_eq!(scenario.drains(1), [], "a second drain changes nothing");
    assert!(
        scenario.peer.is_up() && !scenario.peer.is_up_and_in_service(),
        "a draining peer is up but gets no work"
    );
    assert!(
        scenario.connect_fails(2, 3, "refused"),
        "a draining peer changes its health as any other"
    );
    assert_eq!(
        scenario.peer.scheduled_check(true),
        scenario.at(3) + INTERVAL,
        "a draining peer is not checked more often while all peers are down"
    );
    scenario.peer.counts.connecting = 1;
    assert_eq!(scenario.draining_ends(4), [], "a peer with a login in progress is not drained");
    scenario.peer.counts.connecting = 0;
    let drained = EventKind::Drained { took: Duration::from_millis(4) };
    assert_eq!(scenario.draining_ends(5), [drained]);
    assert_eq!(scenario.draining_ends(6), [], "the end of draining is reported once");
    scenario.check_begins(30_003);
    assert!(scenario.check_ends(30_003, 30_004, Ok(())), "a check marks a drained peer up");
    assert!(!scenario.peer.is_up_and_in_service(), "a check does not put a peer back into service");
    let resumed = scenario.at(30_010);
    assert_eq!(scenario.resumes(30_010), [EventKind::Resumed]);
    assert!(scenario.peer.is_up_and_in_service(), "an operator puts a peer back into service");
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(resumed),
        "a resumed peer is checked at once"
    );
    assert_eq!(scenario.resumes(30_010), [], "a second resume changes nothing");
}

#[test]
fn removed_peer_is_vacant_when_it_is_drained_and_nothing_refers_to_it() {
    let mut scenario = Scenario::new();
    assert_eq!(scenario.drains(1), [EventKind::Draining]);
    assert_eq!(scenario.is_removed(2), [], "a removal of a draining peer causes no event");
    assert!(!scenario.peer.is_member());
    let drained = EventKind::Drained { took: Duration::from_millis(2) };
    let both = [drained, EventKind::Removed];
    scenario.check_begins(2);
    assert_eq!(scenario.draining_ends(3), both);
    assert!(
        scenario.peer.is_removed() && !scenario.peer.is_vacant(),
        "a running check refers to the peer"
    );
    scenario.check_ends(2, 4, Ok(()));
    assert!(scenario.peer.is_vacant());
    scenario.peer.counts.stuck_logins = 1;
    assert!(!scenario.peer.is_vacant(), "a stuck login refers to the peer");
    scenario.peer.counts.stuck_logins = 0;
    assert!(scenario.peer.checks.begin(CheckKind::Stall, scenario.at(4)));
    assert!(!scenario.peer.is_vacant(), "a running stall check refers to the peer");
    assert_eq!(scenario.peer.earliest_check(false), None, "a removed peer is not checked any more");

    let mut scenario = Scenario::new();
    scenario.drains(1);
    scenario.draining_ends(2);
    assert_eq!(scenario.is_removed(3), [EventKind::Removed], "a drained peer is removed at once");
}

#[test]
fn requested_check_is_made_once() {
    let mut scenario = Scenario::new();
    scenario.connect_fails(1, 2, "refused");
    scenario.peer.check_now(scenario.at(10));
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(10)),
        "a requested check is made at once, even while the peer is down"
    );
    scenario.check_begins(10);
    scenario.check_ends(10, 11, Err("refused"));
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(11) + INTERVAL),
        "the next regular check follows after an interval"
    );
}

/// Otherwise late results of the removed peer would be attributed to the new one.
#[test]
fn index_is_kept_as_long_as_anything_refers_to_it() {
    let mut peer = Scenario::new().peer;
    assert!(!peer.is_vacant(), "a member keeps its index");
    peer.admin_state = AdminState::Removed;
    assert!(peer.is_vacant());
    for refer in [
        |counts: &mut Counts| counts.connecting = 1,
        |counts: &mut Counts| counts.stuck_logins = 1,
        |counts: &mut Counts| counts.links = 1,
    ] {
        peer.counts = Counts::default();
        refer(&mut peer.counts);
        assert!(!peer.is_vacant(), "{:?}", peer.counts);
    }
}

#[test]
fn mark_can_be_cleared_without_a_check() {
    let mut scenario = Scenario::new();
    let check_times = check_times_after(scenario.at(30_002));
    assert!(!scenario.mark_is_cleared(1, check_times), "a peer that is up has no mark to clear");
    scenario.connect_fails(1, 2, "refused");
    assert!(scenario.mark_is_cleared(30_002, check_times), "clearing the mark causes an event");
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(check_times.regular),
        "the peer is checked after another interval"
    );
}

#[test]
fn check_that_could_not_be_made_is_repeated_after_an_interval() {
    let mut scenario = Scenario::new();
    scenario.check_begins(30_000);
    let check_times = scenario.check_is_skipped(30_000, 30_001);
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(check_times.regular),
        "the next check is scheduled after an interval"
    );
}

/// The evidence of a failed login, and what it says about the sessions with its peer.
#[test]
fn peer_is_degraded_if_logins_fail_and_queries_end_on_its_links() {
    let mut scenario = Scenario::new();
    let start = scenario.start;
    let at = |millis| start + Duration::from_millis(millis);
    scenario.peer.counts.links = 1;
    scenario.peer.activity.query_ended(at(1));
    assert!(!scenario.peer.is_degraded(), "the peer is up");
    scenario.connect_fails(1, 2, "refused");
    assert!(!scenario.peer.is_degraded(), "no query has ended since then");
    scenario.peer.activity.query_ended(at(3));
    assert!(scenario.peer.is_degraded());
    scenario.peer.activity.link_lost(at(4));
    assert!(!scenario.peer.is_degraded(), "a link was lost since then");
    scenario.peer.activity.query_ended(at(5));
    assert!(scenario.peer.is_degraded(), "another link works");
    scenario.peer.counts.links = 0;
    assert!(!scenario.peer.is_degraded(), "no link is left");
    scenario.peer.counts.links = 1;
    scenario.peer.query_refused(at(6), check_times_after(at(6)));
    assert!(!scenario.peer.is_degraded(), "its sessions fail as well");
}

#[test]
fn failed_login_says_nothing_about_sessions_unless_the_server_says_so() {
    for (fault, of_session, sessions_fail) in [
        (Fault::PeerDown, true, false),
        (Fault::Misconfigured, true, false),
        (Fault::PeerFull, true, false),
        (Fault::PeerNotReady, false, false),
        (Fault::PeerNotReady, true, true),
        (Fault::WrongRole, true, true),
    ] {
        let mut scenario = Scenario::new();
        scenario.connect_fails(1, 2, "refused");
        assert!(!scenario.peer.health.sessions_fail, "a refused connection");
        let failure = LoginFailure::refused(fault, "an error");
        let failure = if of_session { failure.of_session() } else { failure };
        let check_times = check_times_after(scenario.at(4));
        scenario.peer.connect_failed(scenario.attempt(3, 4), failure, check_times);
        assert_eq!(scenario.peer.health.sessions_fail, sessions_fail, "{fault:?}");
        scenario.connect_fails(5, 6, "refused");
        assert_eq!(scenario.peer.health.sessions_fail, sessions_fail, "{fault:?}, then refused");
        scenario.connects(7, 8);
        assert!(!scenario.peer.health.sessions_fail, "{fault:?}, then up");
    }
    let mut scenario = Scenario::new();
    let unanswered = LoginFailure::Unanswered("no answer".into());
    let check_times = check_times_after(scenario.at(2));
    scenario.peer.connect_failed(scenario.attempt(1, 2), unanswered, check_times);
    assert!(!scenario.peer.health.sessions_fail, "a login without an answer");
    scenario.connects(3, 4);
    scenario.peer.mark_stalled(scenario.at(5), check_times);
    assert!(scenario.peer.health.sessions_fail, "queries hang");
}

#[test]
fn peer_whose_refusal_a_check_confirmed_is_marked_again_for_the_next_refusal() {
    let mut scenario = Scenario::new();
    let check_times = check_times_after(scenario.at(1_000));
    assert!(scenario.query_is_refused(1_000, check_times));
    scenario.check_begins(1_000);
    assert!(!scenario.check_ends(1_000, 1_010, Err("takes no work")), "the check confirms it");
    scenario.check_begins(2_000);
    assert!(scenario.check_ends(2_000, 2_010, Ok(())), "the peer recovers");
    assert!(scenario.query_is_refused(2_020, check_times), "the next refusal counts at once");
}

#[test]
fn peer_that_is_down_after_an_outage_is_checked_often_for_a_while() {
    let mut scenario = Scenario::new();
    let next = |scenario: &Scenario| {
        scenario.peer.scheduled_check(false).saturating_duration_since(scenario.start)
    };
    let millis = Duration::from_millis;
    scenario.connect_fails(0, 0, "refused");
    scenario.check_begins(1_000);
    scenario.check_ends(1_000, 1_000, Err("refused"));
    assert_eq!(next(&scenario), millis(31_000), "another peer is up");
    scenario.peer.checks.outage_ended(scenario.at(11_000));
    assert_eq!(next(&scenario), millis(1_250), "another peer has just come back");
    scenario.check_begins(10_700);
    scenario.check_ends(10_700, 10_700, Err("refused"));
    assert_eq!(next(&scenario), millis(10_950));
    scenario.check_begins(10_950);
    scenario.check_ends(10_950, 10_950, Err("refused"));
    assert_eq!(next(&scenario), millis(40_950), "it has failed for long enough");

    scenario.peer.checks.outage_ended(scenario.at(99_000));
    scenario.check_begins(11_200);
    scenario.check_ends(11_200, 11_200, Ok(()));
    assert_eq!(next(&scenario), millis(41_200), "a peer that is up is checked as always");
    scenario.connect_fails(12_000, 12_000, "refused");
    assert_eq!(next(&scenario), millis(42_000), "the outage is over for this peer");
}

#[test]
fn pauses_double_while_a_frozen_server_lets_a_login_wait() {
    let mut scenario = Scenario::new();
    let mut pauses = Vec::new();
    let mut now = 0;
    let mut check = |scenario: &mut Scenario, waiting_logins, outcome| {
        now += 1_000_000;
        scenario.check_begins(now);
        let attempt = scenario.attempt(now, now);
        scenario.peer.counts.waiting_logins = waiting_logins;
        scenario.peer.counts.stuck_logins = waiting_logins;
        let times = check_times_after(attempt.ended);
        scenario.peer.check_ended(CheckKind::Regular, attempt, outcome, times);
        let next =
            [true, false].map(|cannot_connect| scenario.peer.scheduled_check(cannot_connect));
        next.map(|at| at.saturating_duration_since(attempt.ended).as_millis())
    };
    let silence = || Err(LoginFailure::timed_out(SOON));
    for _ in 0..12 {
        pauses.push(check(&mut scenario, 1, silence())[0]);
    }
    let expected =
        [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000, 256_000, 300_000];
    assert_eq!(pauses, expected, "the pause is bounded");
    assert_eq!(check(&mut scenario, 1, silence()), [300_000, 300_000]);
    assert_eq!(
        check(&mut scenario, 0, silence()),
        [250, 30_000],
        "a server that cannot be reached gets no login into its queue, and is checked as often as ever"
    );
    assert_eq!(check(&mut scenario, 1, silence()), [250, 30_000], "the count starts over");
    assert_eq!(check(&mut scenario, 1, silence()), [500, 60_000]);
    assert_eq!(check(&mut scenario, 1, Err(refused("refused"))), [250, 30_000]);
    assert_eq!(check(&mut scenario, 1, silence()), [250, 30_000]);
    for _ in 0..9 {
        check(&mut scenario, 1, silence());
    }
    now += 10;
    let now = scenario.at(now);
    let gave_up = Err(LoginFailure::timed_out(SOON));
    scenario.peer.late_check_ended(now, gave_up, check_times_after(now));
    let next = [true, false].map(|cannot_connect| scenario.peer.scheduled_check(cannot_connect));
    assert_eq!(next, [now + SOON, now + INTERVAL], "no login waits any more, so another one does");
    scenario.peer.late_check_ended(now, Ok(()), check_times_after(now));
    assert!(scenario.peer.is_up(), "the login that waited has succeeded");
}

#[test]
fn peer_that_holds_a_login_is_full_while_queries_end_there_and_down_otherwise() {
    let mut scenario = Scenario::new();
    let reason = "a login was begun and not completed within 1s";
    let held = |scenario: &Scenario, began, ended| {
        scenario.peer.judge_held(scenario.attempt(began, ended), reason.into())
    };
    scenario.peer.activity.query_ended(scenario.at(10));
    assert_eq!(held(&scenario, 11, 20), LoginFailure::Held(reason.into()), "none has ended since");
    let full = held(&scenario, 10, 20);
    assert_eq!(full.fault(), Some(Fault::PeerFull));

    scenario.check_begins(10);
    scenario.peer.counts.waiting_logins = 1;
    scenario.peer.counts.stuck_logins = 1;
    let (attempt, times) = (scenario.attempt(10, 20), check_times_after(scenario.at(20)));
    scenario.peer.check_ended(CheckKind::Regular, attempt, Err(full), times);
    assert!(scenario.peer.is_up() && scenario.peer.is_full());
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(times.regular),
        "the login that waits is not aborted soon"
    );
    scenario.peer.late_check_ended(scenario.at(30), Ok(()), check_times_after(scenario.at(30)));
    assert!(!scenario.peer.is_full(), "it got a connection");

    scenario.check_begins(40);
    let (attempt, times) = (scenario.attempt(40, 50), check_times_after(scenario.at(50)));
    scenario.peer.check_ended(CheckKind::Regular, attempt, Err(held(&scenario, 40, 50)), times);
    assert_eq!((scenario.reason(), scenario.peer.is_full()), (Some(reason), false));
    assert!(!scenario.peer.health.sessions_fail, "a login says nothing about sessions");
}
