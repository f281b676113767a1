use super::*;

const INTERVAL: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_millis(250);

fn due(now: Instant) -> Due {
    Due { next: now + INTERVAL, soon: now + SOON }
}

fn refused(reason: &str) -> Answer {
    let fault = match reason {
        "full" => Fault::PeerFull,
        "wrong password" => Fault::Misconfigured,
        _ => Fault::PeerDown,
    };
    Answer::Refused(Refusal::new(fault, reason))
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

    fn connect_fails(&mut self, began: u64, now: u64, reason: &str) -> bool {
        let (began, now) = (self.at(began), self.at(now));
        self.peer.connect_failed((began, now), refused(reason), due(now)).is_some()
    }

    fn connects(&mut self, began: u64, now: u64) -> bool {
        let (began, now) = (self.at(began), self.at(now));
        self.peer.connected(began, now).is_some()
    }

    fn check_begins(&mut self, now: u64) {
        assert!(self.peer.check_begins(CheckKind::Regular, self.at(now)), "one at a time");
    }

    fn check_ends(&mut self, began: u64, now: u64, outcome: Result<(), &str>) -> bool {
        let (began, now) = (self.at(began), self.at(now));
        let answer = outcome.map_or_else(refused, |()| Answer::Works);
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
    let mut story = Story::begin();
    assert!(story.connect_fails(1, 2, "refused"), "the first failure is a transition");
    assert!(!story.connect_fails(3, 4, "timed out"), "the second is none");
    assert_eq!(story.reason(), Some("timed out"), "the newest reason is shown");
    assert_eq!(
        story.peer.next_check,
        story.at(2) + INTERVAL,
        "a failed try on a peer that is down already does not move its due time"
    );
    assert_eq!(story.peer.activity.counters.connect_failures.get(), 2, "both are counted");
}

#[test]
fn only_a_check_that_fails_renews_the_mark_and_one_that_succeeds_clears_it() {
    let mut story = Story::begin();
    story.connect_fails(1, 2, "refused");
    assert_eq!(story.peer.check_due(false), Some(story.at(30_002)), "it is checked when due");
    story.check_begins(30_002);
    assert_eq!(story.peer.check_due(false), None, "one check at a time");
    assert!(!story.check_ends(30_002, 30_010, Err("still refused")), "still down");
    assert_eq!(story.peer.check_due(false), Some(story.at(60_010)), "the mark is renewed");
    story.check_begins(60_010);
    assert!(story.check_ends(60_010, 60_011, Ok(())), "it is up again");
    assert_eq!(story.reason(), None, "and has no reason to be down");
    assert_eq!(story.peer.check_due(false), Some(story.at(90_011)), "an up peer is checked too");
}

#[test]
fn a_check_notices_a_peer_that_refuses_while_no_connection_is_needed() {
    let mut story = Story::begin();
    story.check_begins(30_000);
    assert!(story.check_ends(30_000, 30_001, Err("refused")), "it is down");
    assert_eq!(story.reason(), Some("refused"), "for the reason that the check met");
}

#[test]
fn a_lost_link_is_no_mark_but_a_check_at_once_and_one_for_all_of_them() {
    let mut story = Story::begin();
    for millis in [1_000, 1_001, 1_002] {
        story.peer.suspect(story.at(millis));
    }
    assert!(story.peer.is_up(), "a lost link proves nothing");
    assert_eq!(story.peer.check_due(false), Some(story.at(1_002)), "it is checked now");
    story.check_begins(1_002);
    assert_eq!(story.peer.check_due(false), None, "once");
    story.check_ends(1_002, 1_010, Ok(()));
    assert_eq!(story.peer.check_due(false), Some(story.at(31_010)), "the suspicion is cleared");
}

#[test]
fn a_link_lost_after_the_check_began_causes_one_more() {
    let mut story = Story::begin();
    story.peer.suspect(story.at(1_000));
    story.check_begins(1_000);
    story.peer.suspect(story.at(1_005));
    story.check_ends(1_000, 1_010, Ok(()));
    assert!(story.peer.is_up(), "the check succeeded");
    assert_eq!(
        story.peer.check_due(false),
        Some(story.at(1_000) + SUSPICION_GAP),
        "an answer from before the loss does not settle it, but checks keep their distance"
    );
}

#[test]
fn a_lost_link_does_not_hurry_the_check_of_a_peer_that_is_down() {
    let mut story = Story::begin();
    story.connect_fails(1, 2, "refused");
    story.peer.suspect(story.at(10));
    assert_eq!(story.peer.check_due(false), Some(story.at(2) + INTERVAL), "it keeps its due time");
}

#[test]
fn newer_observations_win() {
    let mut story = Story::begin();
    story.check_begins(1_000);
    assert!(story.connect_fails(1_010, 1_020, "refused"), "a login fails meanwhile");
    assert!(!story.check_ends(1_000, 1_030, Ok(())), "the older check's success is stale");
    assert_eq!(story.reason(), Some("refused"), "so it stays down");
    assert_eq!(
        story.peer.check_due(false),
        Some(story.at(1_020) + INTERVAL),
        "and its mark's due time is not moved"
    );
    assert!(!story.connects(1_005, 1_040), "nor does a login that began before the failure count");
    assert!(story.connects(2_000, 2_001), "one that began after it does");
    assert!(!story.connect_fails(1_999, 2_002, "slow"), "and an older failure does not");
}

#[test]
fn one_that_refuses_work_is_down_at_once_and_checked_at_once() {
    let mut story = Story::begin();
    story.check_begins(1_000);
    let (now, due) = (story.at(1_010), due(story.at(1_010)));
    assert!(story.peer.takes_no_work(now, due).is_some(), "that is said");
    assert!(story.peer.takes_no_work(story.at(1_011), due).is_none(), "once");
    assert!(!story.check_ends(1_000, 1_020, Ok(())), "a check that began before does not count");
    let again = story.at(1_000) + SUSPICION_GAP;
    assert_eq!(story.peer.check_due(false), Some(again), "the next one begins soon");
    story.check_begins(1_100);
    assert!(story.check_ends(1_100, 1_101, Ok(())), "and brings it back");
    assert_eq!(story.peer.check_due(false), Some(story.at(1_101) + INTERVAL), "as ever");
}

#[test]
fn what_is_down_is_not_accused_again_and_again() {
    let mut story = Story::begin();
    let due = due(story.at(1_000));
    assert!(story.peer.takes_no_work(story.at(1_000), due).is_some());
    story.check_begins(1_000);
    assert!(story.peer.takes_no_work(story.at(1_005), due).is_none(), "that is known");
    assert!(story.check_ends(1_000, 1_010, Ok(())), "the check that was under way counts");
    let interval = Some(story.at(1_010) + INTERVAL);
    assert_eq!(story.peer.check_due(false), interval, "and settles it");
    assert!(story.peer.takes_no_work(story.at(1_020), due).is_none(), "a check knows better");
    let again = story.at(1_000) + SUSPICION_GAP;
    assert_eq!((story.reason(), story.peer.check_due(false)), (None, Some(again)), "ask again");
    story.check_begins(1_100);
    story.check_ends(1_100, 1_101, Err("refused"));
    assert_eq!(story.reason(), Some("refused"), "which decides");
    assert_eq!(story.peer.check_due(false), Some(story.at(1_101) + INTERVAL), "as ever");
    story.check_begins(40_000);
    story.check_ends(40_000, 40_001, Ok(()));
    assert!(story.peer.takes_no_work(story.at(40_002), due).is_some(), "later it is news");
}

#[test]
fn a_suspicion_that_nobody_can_be_asked_about_waits() {
    let mut story = Story::begin();
    story.peer.suspect(story.at(1_000));
    story.check_begins(1_000);
    let times = (story.at(1_000), story.at(1_001));
    let due = due(times.1);
    story.peer.check_ended(CheckKind::Regular, times, Answer::NotAsked, due);
    assert_eq!(story.peer.check_due(false), Some(due.next), "not ten times a second");
}

#[test]
fn one_that_is_full_is_not_down_and_asked_again_soon() {
    let mut story = Story::begin();
    assert!(story.connect_fails(1, 2, "full"), "that is said");
    assert!(!story.connect_fails(3, 4, "full"), "once");
    assert_eq!((story.reason(), story.peer.is_full), (None, true), "it is up, and full");
    let again = story.at(2) + FULL_AGAIN;
    let due = story.peer.check_due(false);
    assert!(due <= Some(again), "it is asked again after a second: {due:?}");
    story.check_begins(1_002);
    assert!(!story.check_ends(1_002, 1_003, Err("full")), "it still is");
    assert_eq!(story.peer.check_due(false), Some(story.at(1_003) + FULL_AGAIN), "and again");
    story.check_begins(2_003);
    assert!(story.check_ends(2_003, 2_004, Ok(())), "it has room again, which is said");
    assert!(!story.peer.is_full);
    assert_eq!(story.peer.check_due(false), Some(story.at(2_004) + INTERVAL), "as ever");
}

#[test]
fn one_that_is_down_does_not_come_back_by_being_full() {
    let mut story = Story::begin();
    story.connect_fails(1, 2, "refused");
    story.check_begins(30_002);
    assert!(!story.check_ends(30_002, 30_003, Err("full")), "it has shown nothing");
    assert_eq!(story.reason(), Some("full"), "it is down for another reason");
    let again = story.at(30_003) + FULL_AGAIN;
    assert_eq!(story.peer.check_due(false), Some(again), "but not for a whole interval");
}

#[test]
fn an_operator_s_mistake_is_said_once_and_not_asked_about_four_times_a_second() {
    let mut story = Story::begin();
    assert!(story.connect_fails(1, 2, "refused"));
    assert!(story.connect_fails(3, 4, "wrong password"), "although it is down already");
    assert!(!story.connect_fails(5, 6, "wrong password"), "once");
    assert_eq!(story.peer.due(true), story.at(6) + MISTAKE_AGAIN, "while all are down");
    story.check_begins(6_000);
    story.check_ends(6_000, 6_001, Ok(()));
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
    story.peer.counts.connecting = 1;
    assert_eq!(story.peer.end_draining(story.at(4)), None, "a login is under way");
    story.peer.counts.connecting = 0;
    let drained = EventKind::Drained { took: Duration::from_millis(4) };
    assert_eq!(story.peer.end_draining(story.at(5)), Some([Some(drained), None]));
    assert_eq!(story.peer.end_draining(story.at(6)), None, "once");
    story.check_begins(30_003);
    assert!(story.check_ends(30_003, 30_004, Ok(())), "a check brings it up");
    assert!(!story.peer.serves(), "and not back");
    let resumed = story.at(30_010);
    assert_eq!(story.peer.resume(resumed), Some(EventKind::Resumed));
    assert!(story.peer.serves(), "an operator does");
    assert_eq!(story.peer.check_due(false), Some(resumed), "and it is checked at once");
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
    story.check_begins(2);
    assert_eq!(story.peer.end_draining(at[2]), both);
    assert!(story.peer.is_gone() && !story.peer.is_vacant(), "a check is under way");
    story.check_ends(2, 4, Ok(()));
    assert!(story.peer.is_vacant());
    story.peer.counts.stuck_logins = 1;
    assert!(!story.peer.is_vacant(), "a login that cannot be ended leads there");
    story.peer.counts.stuck_logins = 0;
    assert!(story.peer.check_begins(CheckKind::Stall, at[3]));
    assert!(!story.peer.is_vacant(), "a check because of a stall does as well");
    assert_eq!(story.peer.check_due(false), None, "nobody checks it any more");

    let mut story = Story::begin();
    story.peer.drain(false, at[0]);
    story.peer.end_draining(at[1]);
    assert_eq!(story.peer.drain(true, at[2]), Some(EventKind::Removed), "it was drained");
}

#[test]
fn a_check_that_is_asked_for_is_made_once() {
    let mut story = Story::begin();
    story.connect_fails(1, 2, "refused");
    story.peer.check_now(story.at(10));
    assert_eq!(story.peer.check_due(false), Some(story.at(10)), "also while it is down");
    story.check_begins(10);
    story.check_ends(10, 11, Err("refused"));
    assert_eq!(story.peer.check_due(false), Some(story.at(11) + INTERVAL), "as ever");
}

/// Or what comes back there would be taken for the newcomer's.
#[test]
fn a_place_is_kept_as_long_as_anything_leads_there() {
    let mut peer = Story::begin().peer;
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
    let mut story = Story::begin();
    let due = due(story.at(30_002));
    assert!(story.peer.clear(story.at(1), due).is_none(), "nothing to clear");
    story.connect_fails(1, 2, "refused");
    assert!(story.peer.clear(story.at(30_002), due).is_some(), "it is up");
    assert_eq!(story.peer.check_due(false), Some(due.next), "and checked after another interval");
}

#[test]
fn a_check_that_could_not_be_made_is_made_later() {
    let mut story = Story::begin();
    story.check_begins(30_000);
    let times = (story.at(30_000), story.at(30_001));
    let due = due(times.1);
    let transition = story.peer.check_ended(CheckKind::Regular, times, Answer::NotAsked, due);
    assert_eq!(transition, None, "its state stays");
    assert_eq!(story.peer.check_due(false), Some(due.next), "but not for ever");
}
