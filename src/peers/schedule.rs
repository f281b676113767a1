//! The scheduled work of the checker: expired marks, health checks, stalled peers and draining
//! peers. Pure functions of the peers and the time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::events::log::NewEvent;
use crate::peers::activity::LinkState;
use crate::peers::admin_state::AdminState;
use crate::peers::peer::{CheckKind, Peer};
use crate::peers::placement::no_peer_available;
use crate::peers::stall::{Observations, StallSeries, Verdict, detect_stall};
use crate::settings::policy::Recovery;
use crate::settings::{CheckTimes, Settings};

/// A health check that has begun and that the checker must run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HealthCheck {
    pub(crate) peer: usize,
    pub(crate) kind: CheckKind,
    pub(crate) began: Instant,
    /// How long the checker waits for an answer.
    pub(crate) timeout: Duration,
}

/// The results of a pass over the peers: events to publish, and work to do without the lock of the
/// peers.
#[derive(Debug, Default)]
pub(crate) struct PassResults {
    pub(crate) checks: Vec<HealthCheck>,
    /// Events to publish.
    pub(crate) events: Vec<NewEvent>,
    pub(crate) stalled: Vec<StalledPeer>,
}

/// A stalled peer and its links with hung queries, which are to be aborted.
#[derive(Debug)]
pub(crate) struct StalledPeer {
    pub(crate) peer: usize,
    pub(crate) links: Vec<Arc<LinkState>>,
    /// Whether the peer was up until now.
    pub(crate) was_up: bool,
}

impl PassResults {
    /// Begins a check, unless one of this kind is running or would get stuck.
    fn begin_check(
        &mut self,
        index: usize,
        peer: &mut Peer,
        kind: CheckKind,
        timeout: Duration,
        now: Instant,
    ) {
        // A stuck login has got no answer and could not be aborted; another login would get stuck as
        // well.
        let is_stuck = kind == CheckKind::Stall && peer.counts.stuck_logins > 0;
        if !is_stuck && peer.begin_check(kind, now) {
            self.checks.push(HealthCheck { peer: index, kind, began: now, timeout });
        }
    }
}

/// Clears expired marks under [`Recovery::AfterInterval`] and begins the scheduled checks. Returns
/// when to run again.
pub(crate) fn begin_checks(
    peers: &mut [Peer],
    settings: &Settings,
    mut check_times: impl FnMut() -> CheckTimes,
    now: Instant,
    results: &mut PassResults,
) -> Option<Instant> {
    let all_down = no_peer_available(peers);
    let mut next: Option<Instant> = None;
    for (index, peer) in peers.iter_mut().enumerate() {
        // A peer with a stuck login recovers by a check only, so only the checker logs in to it.
        let may_clear = settings.recovery == Recovery::AfterInterval
            && peer.counts.stuck_logins == 0
            && !peer.is_removed();
        if may_clear && peer.next_check <= now {
            let up = peer.clear_mark(now, check_times());
            results.events.extend(up.map(|up| peer.new_event(up)));
        }
        if peer.earliest_check(all_down).is_some_and(|at| at <= now) {
            let timeout =
                if all_down { short_timeout(peer, settings) } else { settings.connect_timeout };
            results.begin_check(index, peer, CheckKind::Regular, timeout, now);
        }
        // A mark that expires without a check is cleared even while a check is running.
        let is_marked = may_clear && !peer.is_up();
        let mark = is_marked.then_some(peer.next_check);
        next = [next, mark, peer.earliest_check(all_down)].into_iter().flatten().min();
    }
    next
}

/// Updates which peers are unresponsive, begins stall checks, and marks stalled peers down. Returns
/// whether any query is running.
pub(crate) fn find_stalls(
    peers: &mut [Peer],
    settings: &Settings,
    mut check_times: impl FnMut() -> CheckTimes,
    now: Instant,
    results: &mut PassResults,
) -> bool {
    let mut is_any_running = false;
    for peer in &*peers {
        is_any_running |= peer.activity.update_unresponsive(peer.last_answer(), now);
    }
    let Some(stall_after) = settings.stall_after else { return is_any_running };

    // The peer that answered last, and the last answer of any other peer.
    let answers =
        || peers.iter().enumerate().filter_map(|(index, peer)| Some((peer.last_answer()?, index)));
    let newest = answers().max();
    let second_newest =
        newest.and_then(|(_, newest)| answers().filter(|(_, index)| *index != newest).max());
    let others_answered = |index: usize| {
        newest
            .filter(|(_, newest)| *newest != index)
            .or(second_newest)
            .map(|(answered, _)| answered)
    };
    let all_observations: Vec<Observations> = peers
        .iter()
        .enumerate()
        .map(|(index, peer)| Observations {
            oldest_query: peer.oldest_query(),
            answered: peer.last_answer(),
            others_answered: others_answered(index),
        })
        .collect();
    let mut others_are_needed = false;
    for (index, (peer, observations)) in peers.iter_mut().zip(&all_observations).enumerate() {
        match detect_stall(peer.stall_series, *observations, stall_after, now) {
            Verdict::Works | Verdict::Inconclusive => peer.stall_series = None,
            Verdict::Suspect => {
                let series =
                    *peer.stall_series.get_or_insert(StallSeries { began: now, unanswered: 0 });
                results.begin_check(
                    index,
                    peer,
                    CheckKind::Stall,
                    short_timeout(peer, settings),
                    now,
                );
                // Usually the peer itself answers the first check. Then no other peer has to be
                // checked.
                let no_other_answered =
                    observations.others_answered.is_none_or(|at| at < series.began);
                others_are_needed |= no_other_answered && series.unanswered > 0;
            }
            Verdict::Stalled => {
                let began = peer.stall_series.take().map_or(now, |series| series.began);
                let was_up = peer.is_up();
                let down = peer.mark_stalled(began, now, check_times());
                results.events.extend(down.map(|down| peer.new_event(down)));
                let long_ago = now.checked_sub(stall_after).unwrap_or(now);
                let links = peer.activity.running_since(long_ago);
                results.stalled.push(StalledPeer { peer: index, links, was_up });
            }
        }
    }
    if others_are_needed {
        // Checks the peer that answered last and, as that peer may have stalled as well, the others
        // in turn.
        let is_usable = |peer: &Peer| peer.stall_series.is_none() && !peer.is_removed();
        let others = || peers.iter().enumerate().filter(|(_, peer)| is_usable(peer));
        let most_recent =
            others().max_by_key(|(_, peer)| peer.last_answer()).map(|(index, _)| index);
        let next = others()
            .filter(|(index, _)| Some(*index) != most_recent)
            .min_by_key(|(_, peer)| peer.stall_check_began())
            .map(|(index, _)| index);
        for index in [most_recent, next].into_iter().flatten() {
            let peer = &mut peers[index];
            results.begin_check(index, peer, CheckKind::Stall, short_timeout(peer, settings), now);
        }
    }
    is_any_running
}

/// Ends the draining of peers without sessions. Returns whether any peer is still draining.
pub(crate) fn finish_draining(peers: &mut [Peer], now: Instant, results: &mut PassResults) -> bool {
    let mut is_any_draining = false;
    for peer in peers {
        let happened = peer.end_draining(now).into_iter().flatten().flatten();
        results.events.extend(happened.map(|kind| peer.new_event(kind)));
        is_any_draining |= matches!(peer.admin_state, AdminState::Draining { .. });
    }
    is_any_draining
}

/// Returns the timeout of a check whose answer is needed soon: `check_timeout`, or the expected
/// login time if that is longer, but at most `connect_timeout`. Before the first successful login
/// it is `connect_timeout`.
fn short_timeout(peer: &Peer, settings: &Settings) -> Duration {
    let expected = peer.expected_login().unwrap_or(Duration::MAX);
    expected.max(settings.check_timeout).min(settings.connect_timeout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Fault, LoginFailure};
    use crate::peers::activity::Activity;
    use crate::settings::tests::settings;
    #[cfg(all(feature = "socket", target_os = "linux"))]
    use crate::socket::Socket;
    use crate::url::PeerUrl;

    /// Peers with running queries, and a clock that only the test moves.
    struct Scenario {
        start: Instant,
        now: Instant,
        peers: Vec<Peer>,
        queries: Vec<Arc<LinkState>>,
    }

    impl Scenario {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
        fn new(peers: usize) -> Self {
            // An `AtomicInstant` counts from the first instant that is ever recorded.
            Activity::default().query_ended(Instant::now());
            let start = Instant::now();
            let peer = |index| {
                let url = PeerUrl::new(format!("url{index}"));
                Peer::new(format!("peer{index}").into(), url, 1, 0, start)
            };
            let peers: Vec<Peer> = (0..peers).map(peer).collect();
            let link = |peer: &Peer| {
                let link_state = Arc::<LinkState>::default();
                peer.activity.add_link(link_state.clone());
                link_state
            };
            let queries = peers.iter().map(link).collect();
            Self { start, now: start, peers, queries }
        }

        fn advance_to(&mut self, millis: u64) {
            self.now = self.start + Duration::from_millis(millis);
        }

        fn query_begins(&self, peer: usize) {
            self.queries[peer].query_begins(self.now);
        }

        fn query_ends(&self, peer: usize) {
            self.queries[peer].clear_running();
            self.peers[peer].activity.query_ended(self.now);
        }

        /// Runs the checker's scan. Returns the checked peers, the number of peers that go down,
        /// and the number of aborted links.
        fn scan(&mut self) -> (Vec<usize>, usize, usize) {
            let mut results = PassResults::default();
            let check_times = CheckTimes { regular: self.now, all_down: self.now };
            find_stalls(&mut self.peers, &settings(), || check_times, self.now, &mut results);
            let mut checked: Vec<usize> = results.checks.iter().map(|check| check.peer).collect();
            checked.sort_unstable();
            let stalled = results.stalled.iter().map(|stalled| stalled.links.len()).sum();
            (checked, results.events.len(), stalled)
        }

        /// Ends a check. A check without an answer has used its whole timeout.
        fn check_ends(&mut self, peer: usize, outcome: Result<(), LoginFailure>) {
            let check_times = CheckTimes { regular: self.now, all_down: self.now };
            let is_unanswered = matches!(outcome, Err(LoginFailure::Unanswered(_)));
            let took = Duration::from_secs(u64::from(is_unanswered));
            let began = self.now.checked_sub(took).expect("the clock is older");
            self.peers[peer].check_ended(CheckKind::Stall, (began, self.now), outcome, check_times);
        }
    }

    fn unanswered() -> Result<(), LoginFailure> {
        Err(LoginFailure::Unanswered("no answer".into()))
    }

    #[test]
    fn stalled_peer_is_marked_down_and_its_queries_are_aborted() {
        let mut scenario = Scenario::new(4);
        scenario.query_begins(0);
        scenario.advance_to(1_900);
        assert_eq!(
            scenario.scan(),
            (vec![], 0, 0),
            "a query that is not old enough causes no check"
        );
        scenario.advance_to(2_000);
        assert_eq!(scenario.scan(), (vec![0], 0, 0), "an old query causes a check of its peer");
        scenario.advance_to(2_100);
        assert_eq!(scenario.scan(), (vec![], 0, 0), "no second check begins while one is running");
        scenario.advance_to(3_000);
        scenario.check_ends(0, unanswered());
        assert_eq!(
            scenario.scan(),
            (vec![0, 1, 3], 0, 0),
            "after an unanswered check, other peers are checked as well"
        );
        scenario.advance_to(3_100);
        scenario.check_ends(3, Ok(()));
        assert_eq!(
            scenario.scan(),
            (vec![], 0, 0),
            "an answer of another peer does not shorten the second check"
        );
        scenario.advance_to(4_000);
        scenario.check_ends(0, unanswered());
        scenario.check_ends(1, unanswered());
        assert_eq!(
            scenario.scan(),
            (vec![], 1, 1),
            "the peer is marked down and its query is aborted"
        );
        assert!(
            !scenario.peers[0].is_up() && scenario.peers[1].is_up(),
            "only the stalled peer is marked down"
        );
    }

    /// A removed peer would not answer, and its URL must not be used any more.
    #[test]
    fn removed_peer_is_not_checked_for_comparison() {
        let mut scenario = Scenario::new(3);
        scenario.peers[2].admin_state = AdminState::Removed;
        scenario.query_begins(0);
        scenario.advance_to(2_000);
        assert_eq!(scenario.scan(), (vec![0], 0, 0));
        scenario.advance_to(3_000);
        scenario.check_ends(0, unanswered());
        assert_eq!(scenario.scan(), (vec![0, 1], 0, 0), "the only other member must be checked");
    }

    #[cfg(all(feature = "socket", target_os = "linux"))]
    #[test]
    fn later_query_on_a_stalled_peer_gets_the_full_stall_time() {
        let mut scenario = Scenario::new(2);
        scenario.query_begins(0);
        // On a peer that is down, only queries count that can be aborted.
        let late = Arc::<LinkState>::default();
        late.set_socket(Arc::new(Socket::from_listener()));
        scenario.peers[0].activity.add_link(late.clone());
        for (now, expected) in [(2_000, 0), (3_000, 0), (4_000, 1)] {
            scenario.advance_to(now);
            if now > 2_000 {
                scenario.check_ends(0, unanswered());
                scenario.query_ends(1);
            }
            if now == 3_000 {
                late.query_begins(scenario.now);
            }
            assert_eq!(scenario.scan().2, expected, "the number of queries aborted after {now} ms");
        }
        scenario.queries[0].clear_running();
        scenario.advance_to(4_900);
        assert_eq!(scenario.scan(), (vec![], 0, 0), "the later query is not old enough");
        scenario.advance_to(5_000);
        assert_eq!(scenario.scan().0[0], 0, "the later query is old enough for a check");
    }

    #[test]
    fn peer_whose_query_cannot_be_aborted_is_not_checked_repeatedly() {
        let mut scenario = Scenario::new(2);
        scenario.query_begins(0);
        scenario.query_ends(1);
        for now in [2_000, 3_000, 4_000] {
            scenario.advance_to(now);
            if now > 2_000 {
                scenario.check_ends(0, unanswered());
                scenario.query_ends(1);
            }
            scenario.scan();
        }
        assert!(!scenario.peers[0].is_up(), "the stalled peer is marked down");
        scenario.advance_to(60_000);
        assert_eq!(
            scenario.scan(),
            (vec![], 0, 0),
            "a query that cannot be aborted causes no more checks of a peer that is down"
        );
    }

    #[test]
    fn refusal_counts_as_an_answer() {
        let mut scenario = Scenario::new(2);
        scenario.query_begins(0);
        scenario.advance_to(2_000);
        assert_eq!(scenario.scan().0, [0], "an old query causes a check of its peer");
        scenario.advance_to(2_050);
        scenario.check_ends(0, Err(LoginFailure::refused(Fault::PeerDown, "refused")));
        for millis in [2_100, 2_150, 3_000, 4_000] {
            scenario.advance_to(millis);
            assert!(
                scenario.scan().0.is_empty(),
                "no check follows an answer until `stall_after` has passed"
            );
        }
    }

    #[test]
    fn other_peers_are_checked_in_turn() {
        let mut scenario = Scenario::new(5);
        scenario.query_begins(0);
        let mut checks = vec![0; 5];
        for round in 0..6 {
            for scan in 0..3 {
                scenario.advance_to(2_000 + 2_000 * round + 1_000 * scan);
                let checked = scenario.scan().0;
                scenario.advance_to(2_999 + 2_000 * round + 1_000 * scan);
                for peer in checked {
                    checks[peer] += 1;
                    scenario.check_ends(peer, unanswered());
                }
            }
        }
        assert!(checks.iter().all(|times| *times > 0), "each peer must be checked: {checks:?}");
    }

    #[test]
    fn peer_is_unresponsive_while_a_query_hangs_that_began_after_its_last_answer() {
        let mut scenario = Scenario::new(2);
        scenario.query_begins(0);
        let is_unresponsive = |scenario: &mut Scenario, millis| {
            scenario.advance_to(millis);
            scenario.scan();
            scenario.peers[0].activity.is_unresponsive()
        };
        assert!(
            !is_unresponsive(&mut scenario, 100),
            "a query of 100 ms does not make the peer unresponsive"
        );
        assert!(
            is_unresponsive(&mut scenario, 150),
            "a longer query without any answer makes the peer unresponsive"
        );
        scenario.query_ends(0);
        assert!(
            !scenario.peers[0].activity.is_unresponsive(),
            "the end of the query makes the peer responsive at once"
        );
        scenario.advance_to(200);
        scenario.query_begins(0);
        assert!(
            is_unresponsive(&mut scenario, 2_200),
            "another hung query makes the peer unresponsive again"
        );
        scenario.check_ends(0, Ok(()));
        assert!(
            !is_unresponsive(&mut scenario, 2_250),
            "after an answered check, the query is only slow"
        );
        let other = Arc::<LinkState>::default();
        scenario.peers[0].activity.add_link(other.clone());
        other.query_begins(scenario.now);
        assert!(
            is_unresponsive(&mut scenario, 2_400),
            "a query that began after the answer and hangs makes the peer unresponsive"
        );
    }

    #[test]
    fn answered_check_ends_the_suspicion_for_a_while() {
        let mut scenario = Scenario::new(2);
        scenario.query_begins(0);
        scenario.advance_to(2_000);
        scenario.scan();
        scenario.advance_to(3_000);
        scenario.check_ends(0, Ok(()));
        scenario.advance_to(4_900);
        assert_eq!(scenario.scan(), (vec![], 0, 0), "no check follows soon after an answer");
        scenario.advance_to(5_000);
        assert_eq!(scenario.scan().0[0], 0, "after `stall_after` the peer is checked again");
        scenario.advance_to(5_500);
        scenario.check_ends(0, Err(LoginFailure::refused(Fault::PeerDown, "paused")));
        assert!(!scenario.peers[0].is_up(), "a peer that refuses is marked down");
        assert_eq!(scenario.scan().2, 0, "the sessions of a peer that refuses are not aborted");
    }

    #[test]
    fn no_query_is_aborted_while_no_peer_answers() {
        let mut scenario = Scenario::new(2);
        scenario.query_begins(0);
        scenario.query_begins(1);
        for round in 0..3 {
            scenario.advance_to(round * 2_000 + 2_000);
            assert_eq!(scenario.scan(), (vec![0, 1], 0, 0), "both peers are checked");
            for again in [1_000, 2_000] {
                scenario.advance_to(round * 2_000 + 2_000 + again);
                scenario.check_ends(0, unanswered());
                scenario.check_ends(1, unanswered());
                if again == 1_000 {
                    assert_eq!(scenario.scan(), (vec![0, 1], 0, 0), "both peers are checked again");
                }
            }
            assert_eq!(
                scenario.scan(),
                (vec![], 0, 0),
                "when no peer answers, none is marked down: this process may have stalled"
            );
        }
    }

    #[test]
    fn long_query_causes_no_check_while_other_queries_on_its_peer_end() {
        let mut scenario = Scenario::new(2);
        let long = Arc::<LinkState>::default();
        scenario.peers[0].activity.add_link(long.clone());
        long.query_begins(scenario.now);
        for second in 1..60 {
            scenario.advance_to(second * 1_000);
            scenario.query_ends(0);
            assert_eq!(scenario.scan(), (vec![], 0, 0), "a peer whose queries end is not checked");
        }
    }
}
