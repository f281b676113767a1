use super::*;

const INTERVAL: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_millis(250);

fn due(now: Instant) -> Due {
    Due { next: now + INTERVAL, soon: now + SOON }
}

fn refused(reason: &str) -> LoginOutcome {
    let fault = match reason {
        "full" => Fault::PeerFull,
        "wrong password" => Fault::Misconfigured,
        _ => Fault::PeerDown,
    };
    LoginOutcome::Refused(Refusal::new(fault, reason))
}

/// A peer and a clock that only moves when it is told to.
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
        peer.next_check = start + INTERVAL;
        Self { start, peer }
    }

    /// The instant `millis` after the start.
    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    fn connect_fails(&mut self, began: u64, now: u64, reason: &str) -> bool {
        let (began, now) = (self.at(began), self.at(now));
        self.peer.connect_failed((began, now), refused(reason), due(now)).is_some()
    }

    fn connects(&mut self, began: u64, now: u64) -> bool {
        let (began, now) = (self.at(began), self.at(now));
        self.peer.connected(began, now).is_some()
    }

    fn check_begins(&mut self, now: u64) {
        assert!(self.peer.begin_check(CheckKind::Regular, self.at(now)), "one at a time");
    }

    fn check_ends(&mut self, began: u64, now: u64, outcome: Result<(), &str>) -> bool {
        let (began, now) = (self.at(began), self.at(now));
        let answer = outcome.map_or_else(refused, |()| LoginOutcome::Succeeded);
        self.peer.check_ended(CheckKind::Regular, (began, now), answer, due(now)).is_some()
    }

    fn reason(&self) -> Option<&str> {
        match &self.peer.health {
            Health::Up { .. } => None,
            Health::Down { refusal, .. } => Some(&refusal.reason),
        }
    }
}

#[test]
fn a_failed_connect_marks_it_down_for_one_interval_and_says_so_once() {
    let mut scenario = Scenario::new();
    assert!(scenario.connect_fails(1, 2, "refused"), "the first failure is a transition");
    assert!(!scenario.connect_fails(3, 4, "timed out"), "the second is none");
    assert_eq!(scenario.reason(), Some("timed out"), "the newest reason is shown");
    assert_eq!(
        scenario.peer.next_check,
        scenario.at(2) + INTERVAL,
        "a failed try on a peer that is down already does not move its due time"
    );
    assert_eq!(scenario.peer.activity.counters.connect_failures.get(), 2, "both are counted");
}

#[test]
fn only_a_check_that_fails_renews_the_mark_and_one_that_succeeds_clears_it() {
    let mut scenario = Scenario::new();
    scenario.connect_fails(1, 2, "refused");
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(30_002)),
        "it is checked when due"
    );
    scenario.check_begins(30_002);
    assert_eq!(scenario.peer.earliest_check(false), None, "one check at a time");
    assert!(!scenario.check_ends(30_002, 30_010, Err("still refused")), "still down");
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(60_010)),
        "the mark is renewed"
    );
    scenario.check_begins(60_010);
    assert!(scenario.check_ends(60_010, 60_011, Ok(())), "it is up again");
    assert_eq!(scenario.reason(), None, "and has no reason to be down");
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(90_011)),
        "an up peer is checked too"
    );
}

#[test]
fn a_check_notices_a_peer_that_refuses_while_no_connection_is_needed() {
    let mut scenario = Scenario::new();
    scenario.check_begins(30_000);
    assert!(scenario.check_ends(30_000, 30_001, Err("refused")), "it is down");
    assert_eq!(scenario.reason(), Some("refused"), "for the reason that the check met");
}

#[test]
fn a_lost_link_is_no_mark_but_a_check_at_once_and_one_for_all_of_them() {
    let mut scenario = Scenario::new();
    for millis in [1_000, 1_001, 1_002] {
        scenario.peer.suspect(scenario.at(millis));
    }
    assert!(scenario.peer.is_up(), "a lost link proves nothing");
    assert_eq!(scenario.peer.earliest_check(false), Some(scenario.at(1_002)), "it is checked now");
    scenario.check_begins(1_002);
    assert_eq!(scenario.peer.earliest_check(false), None, "once");
    scenario.check_ends(1_002, 1_010, Ok(()));
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(31_010)),
        "the suspicion is cleared"
    );
}

#[test]
fn a_link_lost_after_the_check_began_causes_one_more() {
    let mut scenario = Scenario::new();
    scenario.peer.suspect(scenario.at(1_000));
    scenario.check_begins(1_000);
    scenario.peer.suspect(scenario.at(1_005));
    scenario.check_ends(1_000, 1_010, Ok(()));
    assert!(scenario.peer.is_up(), "the check succeeded");
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(1_000) + SUSPICION_GAP),
        "an answer from before the loss does not settle it, but checks keep their distance"
    );
}

#[test]
fn a_lost_link_does_not_hurry_the_check_of_a_peer_that_is_down() {
    let mut scenario = Scenario::new();
    scenario.connect_fails(1, 2, "refused");
    scenario.peer.suspect(scenario.at(10));
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(2) + INTERVAL),
        "it keeps its due time"
    );
}

#[test]
fn newer_observations_win() {
    let mut scenario = Scenario::new();
    scenario.check_begins(1_000);
    assert!(scenario.connect_fails(1_010, 1_020, "refused"), "a login fails meanwhile");
    assert!(!scenario.check_ends(1_000, 1_030, Ok(())), "the older check's success is stale");
    assert_eq!(scenario.reason(), Some("refused"), "so it stays down");
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(1_020) + INTERVAL),
        "and its mark's due time is not moved"
    );
    assert!(
        !scenario.connects(1_005, 1_040),
        "nor does a login that began before the failure count"
    );
    assert!(scenario.connects(2_000, 2_001), "one that began after it does");
    assert!(!scenario.connect_fails(1_999, 2_002, "slow"), "and an older failure does not");
}

#[test]
fn one_that_refuses_work_is_down_at_once_and_checked_at_once() {
    let mut scenario = Scenario::new();
    scenario.check_begins(1_000);
    let (now, due) = (scenario.at(1_010), due(scenario.at(1_010)));
    assert!(scenario.peer.query_refused(now, due).is_some(), "that is said");
    assert!(scenario.peer.query_refused(scenario.at(1_011), due).is_none(), "once");
    assert!(!scenario.check_ends(1_000, 1_020, Ok(())), "a check that began before does not count");
    let again = scenario.at(1_000) + SUSPICION_GAP;
    assert_eq!(scenario.peer.earliest_check(false), Some(again), "the next one begins soon");
    scenario.check_begins(1_100);
    assert!(scenario.check_ends(1_100, 1_101, Ok(())), "and brings it back");
    assert_eq!(scenario.peer.earliest_check(false), Some(scenario.at(1_101) + INTERVAL), "as ever");
}

#[test]
fn what_is_down_is_not_accused_again_and_again() {
    let mut scenario = Scenario::new();
    let due = due(scenario.at(1_000));
    assert!(scenario.peer.query_refused(scenario.at(1_000), due).is_some());
    scenario.check_begins(1_000);
    assert!(scenario.peer.query_refused(scenario.at(1_005), due).is_none(), "that is known");
    assert!(scenario.check_ends(1_000, 1_010, Ok(())), "the check that was under way counts");
    let interval = Some(scenario.at(1_010) + INTERVAL);
    assert_eq!(scenario.peer.earliest_check(false), interval, "and settles it");
    assert!(scenario.peer.query_refused(scenario.at(1_020), due).is_none(), "a check knows better");
    let again = scenario.at(1_000) + SUSPICION_GAP;
    assert_eq!(
        (scenario.reason(), scenario.peer.earliest_check(false)),
        (None, Some(again)),
        "ask again"
    );
    scenario.check_begins(1_100);
    scenario.check_ends(1_100, 1_101, Err("refused"));
    assert_eq!(scenario.reason(), Some("refused"), "which decides");
    assert_eq!(scenario.peer.earliest_check(false), Some(scenario.at(1_101) + INTERVAL), "as ever");
    scenario.check_begins(40_000);
    scenario.check_ends(40_000, 40_001, Ok(()));
    assert!(scenario.peer.query_refused(scenario.at(40_002), due).is_some(), "later it is news");
}

#[test]
fn a_suspicion_that_nobody_can_be_asked_about_waits() {
    let mut scenario = Scenario::new();
    scenario.peer.suspect(scenario.at(1_000));
    scenario.check_begins(1_000);
    let times = (scenario.at(1_000), scenario.at(1_001));
    let due = due(times.1);
    scenario.peer.check_ended(CheckKind::Regular, times, LoginOutcome::NotAttempted, due);
    assert_eq!(scenario.peer.earliest_check(false), Some(due.next), "not ten times a second");
}

#[test]
fn one_that_is_full_is_not_down_and_asked_again_soon() {
    let mut scenario = Scenario::new();
    assert!(scenario.connect_fails(1, 2, "full"), "that is said");
    assert!(!scenario.connect_fails(3, 4, "full"), "once");
    assert_eq!((scenario.reason(), scenario.peer.is_full), (None, true), "it is up, and full");
    let again = scenario.at(2) + FULL_RECHECK_DELAY;
    let due = scenario.peer.earliest_check(false);
    assert!(due <= Some(again), "it is asked again after a second: {due:?}");
    scenario.check_begins(1_002);
    assert!(!scenario.check_ends(1_002, 1_003, Err("full")), "it still is");
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(scenario.at(1_003) + FULL_RECHECK_DELAY),
        "and again"
    );
    scenario.check_begins(2_003);
    assert!(scenario.check_ends(2_003, 2_004, Ok(())), "it has room again, which is said");
    assert!(!scenario.peer.is_full);
    assert_eq!(scenario.peer.earliest_check(false), Some(scenario.at(2_004) + INTERVAL), "as ever");
}

#[test]
fn one_that_is_down_does_not_come_back_by_being_full() {
    let mut scenario = Scenario::new();
    scenario.connect_fails(1, 2, "refused");
    scenario.check_begins(30_002);
    assert!(!scenario.check_ends(30_002, 30_003, Err("full")), "it has shown nothing");
    assert_eq!(scenario.reason(), Some("full"), "it is down for another reason");
    let again = scenario.at(30_003) + FULL_RECHECK_DELAY;
    assert_eq!(scenario.peer.earliest_check(false), Some(again), "but not for a whole interval");
}

#[test]
fn an_operator_s_mistake_is_said_once_and_not_asked_about_four_times_a_second() {
    let mut scenario = Scenario::new();
    assert!(scenario.connect_fails(1, 2, "refused"));
    assert!(scenario.connect_fails(3, 4, "wrong password"), "although it is down already");
    assert!(!scenario.connect_fails(5, 6, "wrong password"), "once");
    assert_eq!(
        scenario.peer.scheduled_check(true),
        scenario.at(6) + MISCONFIGURED_RECHECK_DELAY,
        "while all are down"
    );
    scenario.check_begins(6_000);
    scenario.check_ends(6_000, 6_001, Ok(()));
    assert!(scenario.connect_fails(7_000, 7_001, "wrong password"), "and again after it was up");
}

#[test]
fn an_operator_s_word_is_a_state_of_its_own() {
    let mut scenario = Scenario::new();
    let now = scenario.at(1);
    assert_eq!(scenario.peer.drain(false, now), Some(EventKind::Draining));
    assert_eq!(scenario.peer.drain(false, now), None, "that is known");
    assert!(scenario.peer.is_up() && !scenario.peer.serves(), "it is fine, and gets no work");
    assert!(scenario.connect_fails(2, 3, "refused"), "it is checked all the same");
    assert_eq!(
        scenario.peer.scheduled_check(true),
        scenario.at(3) + INTERVAL,
        "but nobody waits for it"
    );
    scenario.peer.counts.connecting = 1;
    assert_eq!(scenario.peer.end_draining(scenario.at(4)), None, "a login is under way");
    scenario.peer.counts.connecting = 0;
    let drained = EventKind::Drained { took: Duration::from_millis(4) };
    assert_eq!(scenario.peer.end_draining(scenario.at(5)), Some([Some(drained), None]));
    assert_eq!(scenario.peer.end_draining(scenario.at(6)), None, "once");
    scenario.check_begins(30_003);
    assert!(scenario.check_ends(30_003, 30_004, Ok(())), "a check brings it up");
    assert!(!scenario.peer.serves(), "and not back");
    let resumed = scenario.at(30_010);
    assert_eq!(scenario.peer.resume(resumed), Some(EventKind::Resumed));
    assert!(scenario.peer.serves(), "an operator does");
    assert_eq!(scenario.peer.earliest_check(false), Some(resumed), "and it is checked at once");
    assert_eq!(scenario.peer.resume(resumed), None, "that is known");
}

#[test]
fn one_that_leaves_is_gone_when_it_is_drained_and_vacant_when_nothing_leads_there() {
    let mut scenario = Scenario::new();
    let at = [1, 2, 3, 4].map(|millis| scenario.at(millis));
    assert_eq!(scenario.peer.drain(false, at[0]), Some(EventKind::Draining));
    assert_eq!(scenario.peer.drain(true, at[1]), None, "it is being drained already");
    assert!(!scenario.peer.is_member());
    let drained = EventKind::Drained { took: Duration::from_millis(2) };
    let both = Some([Some(drained), Some(EventKind::Removed)]);
    scenario.check_begins(2);
    assert_eq!(scenario.peer.end_draining(at[2]), both);
    assert!(scenario.peer.is_removed() && !scenario.peer.is_vacant(), "a check is under way");
    scenario.check_ends(2, 4, Ok(()));
    assert!(scenario.peer.is_vacant());
    scenario.peer.counts.stuck_logins = 1;
    assert!(!scenario.peer.is_vacant(), "a login that cannot be ended leads there");
    scenario.peer.counts.stuck_logins = 0;
    assert!(scenario.peer.begin_check(CheckKind::Stall, at[3]));
    assert!(!scenario.peer.is_vacant(), "a check because of a stall does as well");
    assert_eq!(scenario.peer.earliest_check(false), None, "nobody checks it any more");

    let mut scenario = Scenario::new();
    scenario.peer.drain(false, at[0]);
    scenario.peer.end_draining(at[1]);
    assert_eq!(scenario.peer.drain(true, at[2]), Some(EventKind::Removed), "it was drained");
}

#[test]
fn a_check_that_is_asked_for_is_made_once() {
    let mut scenario = Scenario::new();
    scenario.connect_fails(1, 2, "refused");
    scenario.peer.check_now(scenario.at(10));
    assert_eq!(scenario.peer.earliest_check(false), Some(scenario.at(10)), "also while it is down");
    scenario.check_begins(10);
    scenario.check_ends(10, 11, Err("refused"));
    assert_eq!(scenario.peer.earliest_check(false), Some(scenario.at(11) + INTERVAL), "as ever");
}

/// Or what comes back there would be taken for the newcomer's.
#[test]
fn a_place_is_kept_as_long_as_anything_leads_there() {
    let mut peer = Scenario::new().peer;
    assert!(!peer.is_vacant(), "it is a peer");
    peer.admin_state = AdminState::Removed;
    assert!(peer.is_vacant());
    for lead in [
        |counts: &mut Counts| counts.connecting = 1,
        |counts: &mut Counts| counts.stuck_logins = 1,
        |counts: &mut Counts| counts.links = 1,
    ] {
        peer.counts = Counts::default();
        lead(&mut peer.counts);
        assert!(!peer.is_vacant(), "{:?}", peer.counts);
    }
}

#[test]
fn a_mark_can_be_cleared_unasked() {
    let mut scenario = Scenario::new();
    let due = due(scenario.at(30_002));
    assert!(scenario.peer.clear_mark(scenario.at(1), due).is_none(), "nothing to clear");
    scenario.connect_fails(1, 2, "refused");
    assert!(scenario.peer.clear_mark(scenario.at(30_002), due).is_some(), "it is up");
    assert_eq!(
        scenario.peer.earliest_check(false),
        Some(due.next),
        "and checked after another interval"
    );
}

#[test]
fn a_check_that_could_not_be_made_is_made_later() {
    let mut scenario = Scenario::new();
    scenario.check_begins(30_000);
    let times = (scenario.at(30_000), scenario.at(30_001));
    let due = due(times.1);
    let transition =
        scenario.peer.check_ended(CheckKind::Regular, times, LoginOutcome::NotAttempted, due);
    assert_eq!(transition, None, "its state stays");
    assert_eq!(scenario.peer.earliest_check(false), Some(due.next), "but not for ever");
}
