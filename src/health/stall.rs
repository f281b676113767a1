//! Stall detection: decides when running queries may be aborted because their peer has stalled.
//!
//! A slow query proves nothing, and a check without a timely answer proves little: a busy server
//! keeps a login waiting for a long time. A link is therefore given up only when five conditions
//! hold together:
//!
//! - its query has been waiting for `stall_after`;
//! - two successive checks of its peer were not answered, or a login that the peer holds waits for its answer;
//! - a resting session of the peer, if there is one, was asked beside the second check, and did not answer
//!   either: new logins may be queued or dropped on their way while sessions go on;
//! - nothing else has come from the peer, over any link, since the first of these checks began;
//! - another peer has answered something since then. Otherwise this process or its network may have
//!   stalled.
//!
//! The checker adds a sixth condition: when the checker itself is late, it postpones all deadlines
//! by that delay, because the answers may be late as well.
//!
//! A peer that begins to answer a login and does not complete it is alive, and holds the login's queries: it is a
//! pooler that is paused, whose connections to the server are all in use, or whose server is gone. In all three
//! cases its words follow, or its answers do. Such a peer gets no new work. Its queries are given up only after
//! `pooler_wait`, if that is set: whoever pauses a pooler wants them to wait. The same applies to a peer that refuses
//! logins because it takes no work: a pooler whose server is gone holds the queries that wait already, and a
//! Galera node that is a blocked donor goes on with its queries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::schedule::{begin_check, short_timeout};
use crate::events::EventKind;
use crate::login::dial::HealthCheck;
use crate::peers::link_state::LinkState;
use crate::peers::peer::{CheckKind, Peer, QuestionState, StallSeries};
use crate::peers::set::Transaction;
use crate::peers::set::peer_ref::PeerRef;
use crate::pool::question::Question;
use crate::settings::Settings;

/// The number of successive unanswered checks after which a peer counts as stalled.
const UNANSWERED_CHECKS: u32 = 2;

/// The time from the deadline of a question until its end is known.
const ANSWER_DELAY: Duration = Duration::from_millis(200);

/// When queries began on a peer, and when the peer and the others last answered.
#[derive(Debug, Clone, Copy)]
struct Observations {
    /// When the oldest running query of the peer began.
    oldest_query: Option<Instant>,
    /// When the peer last answered: the end of a query, or the beginning of a login that succeeded or was
    /// refused, unless because the peer takes no work.
    answered: Option<Instant>,
    /// When any other peer last answered, with a refusal at least.
    others_answered: Option<Instant>,
}

/// How long queries may wait.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// On a peer that does not answer.
    stall_after: Duration,
    /// On a peer that holds them, which is a pooler. `None` for as long as it takes.
    pooler_wait: Option<Duration>,
}

/// The result of [`detect_stall`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The peer works, as far as is known.
    Works,
    /// The peer needs a check, unless one is running.
    Suspect,
    /// The peer needs a check, and a resting session has to be asked.
    Ask,
    /// The answer of a resting session may still come, or the words of a pooler that holds queries.
    Wait,
    /// The peer holds queries: it gets no new work, and they go on waiting.
    Holds,
    /// The peer has stalled: its hung queries are aborted.
    Stalled,
    /// No other peer has answered either, so nothing is proved: the series of checks starts over.
    Inconclusive,
}

/// Decides at `now` whether a peer has stalled.
fn detect_stall(
    series: Option<StallSeries>,
    observations: Observations,
    Patience { stall_after, pooler_wait }: Patience,
    now: Instant,
) -> Verdict {
    let is_since = |at: Option<Instant>, begin: Instant| at.is_some_and(|at| at >= begin);
    let is_long = |since: Instant| now.saturating_duration_since(since) >= stall_after;
    let Some(oldest_query) = observations.oldest_query.filter(|at| is_long(*at)) else {
        return Verdict::Works;
    };
    let waited = now.saturating_duration_since(oldest_query);
    match series {
        // Other queries end on this peer, so this one is only slow.
        None if observations.answered.is_some_and(|at| !is_long(at)) => Verdict::Works,
        None => Verdict::Suspect,
        Some(series) if is_since(observations.answered, series.began) => Verdict::Works,
        Some(StallSeries { unanswered: 1.., question: QuestionState::NotAsked, .. }) => {
            Verdict::Ask
        }
        Some(series) if series.unanswered < UNANSWERED_CHECKS => Verdict::Suspect,
        Some(StallSeries { question: QuestionState::Asked { until, .. }, .. }) if now < until => {
            Verdict::Wait
        }
        Some(StallSeries { began, is_held, .. }) => {
            let others_answer = is_since(observations.others_answered, began);
            let is_patient = is_held && pooler_wait.is_none_or(|longest| waited < longest);
            match (others_answer, is_held) {
                (true, _) if is_patient => Verdict::Holds,
                (true, _) => Verdict::Stalled,
                // More checks would use up the clients of the pooler.
                (false, true) => Verdict::Wait,
                (false, false) => Verdict::Inconclusive,
            }
        }
    }
}

/// The result of a scan of the running queries.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    /// Whether any query is running.
    pub(super) is_any_running: bool,
    /// The checks that have begun, because queries hang.
    pub(super) checks: Vec<HealthCheck>,
    /// The questions to resting sessions.
    pub(super) questions: Vec<Question>,
    peers: Vec<StalledPeer>,
}

/// A stalled peer and its links with hung queries, which are to be aborted.
#[derive(Debug)]
struct StalledPeer {
    peer: PeerRef,
    links: Vec<Arc<LinkState>>,
    /// Whether the peer was up until now.
    was_up: bool,
}

impl Stalls {
    /// Aborts the hung queries of the stalled peers, before anything is logged: while a logger takes its
    /// time, a hung query may end and another begin.
    pub(super) fn abort_queries(self) {
        let abort =
            |stalled: &StalledPeer| stalled.links.iter().filter(|link| link.shut_down()).count();
        let aborted: Vec<usize> = self.peers.iter().map(abort).collect();
        for (StalledPeer { peer, links, was_up }, aborted) in self.peers.into_iter().zip(aborted) {
            let hung = links.len();
            peer.activity.counters.queries_aborted.add(aborted as u64);
            // A query that cannot be aborted goes on hanging, and is reported only once.
            if was_up || aborted > 0 {
                peer.record(EventKind::QueriesAborted { hung, aborted });
            }
        }
    }
}

/// Updates which peers are unresponsive, begins stall checks, and marks stalled peers down.
pub(super) fn scan(transaction: &mut Transaction<'_>) -> Stalls {
    let (now, settings) = (transaction.now, transaction.settings());
    let mut stalls = Stalls::default();
    for peer in transaction.peers() {
        stalls.is_any_running |= peer.activity.update_unresponsive(peer.last_answer(), now);
    }
    let Some(stall_after) = settings.stall_after else { return stalls };
    let patience = Patience { stall_after, pooler_wait: settings.pooler_wait };
    let mut others_are_needed = false;
    for (index, observations) in observe(transaction.peers()).into_iter().enumerate() {
        let peer = &transaction.peers()[index];
        let (series, was_up) = (peer.stall_series, peer.is_up());
        match detect_stall(series, observations, patience, now) {
            Verdict::Works | Verdict::Inconclusive => {
                if series.is_some() {
                    transaction.update(index, |peer, _| peer.stall_series = None);
                }
            }
            Verdict::Wait => {}
            Verdict::Holds => {
                if was_up {
                    transaction.update(index, |peer, times| peer.mark_held(now, times));
                }
            }
            verdict @ (Verdict::Suspect | Verdict::Ask) => {
                let mut series = series.unwrap_or(StallSeries::new(now));
                let timeout = short_timeout(peer, settings);
                let holds_login = peer.counts.held_logins > 0;
                if holds_login && series.unanswered < UNANSWERED_CHECKS {
                    series.add_unanswered(UNANSWERED_CHECKS, true);
                }
                if verdict == Verdict::Ask {
                    // A checkout may wait for the link.
                    let timeout = timeout.min(longest_question(settings));
                    let until = now + timeout + ANSWER_DELAY;
                    series.question = QuestionState::Asked { at: now, until };
                    let peer = transaction.peer_ref(index);
                    stalls.questions.push(Question { peer, asked_at: now, timeout });
                }
                transaction.update(index, |peer, _| peer.stall_series = Some(series));
                if !holds_login {
                    let check = begin_check(transaction, index, CheckKind::Stall, timeout);
                    stalls.checks.extend(check);
                }
                // Usually the peer itself answers the first check. Then no other peer has to be
                // checked.
                let no_other_answered =
                    observations.others_answered.is_none_or(|at| at < series.began);
                others_are_needed |= no_other_answered && series.unanswered > 0;
            }
            Verdict::Stalled => {
                let is_held = series.is_some_and(|series| series.is_held);
                let patience = patience.pooler_wait.filter(|_| is_held).unwrap_or(stall_after);
                transaction.update(index, |peer, times| peer.mark_stalled(now, times));
                let long_ago = now.checked_sub(patience).unwrap_or(now);
                let links = transaction.peers()[index].activity.waiting_since(long_ago);
                stalls.peers.push(StalledPeer { peer: transaction.peer_ref(index), links, was_up });
            }
        }
    }
    if others_are_needed {
        for index in peers_to_compare(transaction.peers()) {
            let timeout = short_timeout(&transaction.peers()[index], settings);
            stalls.checks.extend(begin_check(transaction, index, CheckKind::Stall, timeout));
        }
    }
    stalls
}

/// Returns the observations of each peer.
fn observe(peers: &[Peer]) -> Vec<Observations> {
    // The peer that answered last, and the last answer of any other peer.
    let answers =
        || peers.iter().enumerate().filter_map(|(index, peer)| Some((peer.last_word()?, index)));
    let newest = answers().max();
    let second_newest =
        newest.and_then(|(_, newest)| answers().filter(|(_, index)| *index != newest).max());
    let others_answered = |index: usize| {
        newest
            .filter(|(_, newest)| *newest != index)
            .or(second_newest)
            .map(|(answered, _)| answered)
    };
    let observations = |(index, peer): (usize, &Peer)| Observations {
        oldest_query: peer.oldest_query(),
        answered: peer.last_answer(),
        others_answered: others_answered(index),
    };
    peers.iter().enumerate().map(observations).collect()
}

/// Returns the peers whose answers show whether this process or a peer has stalled: the peer that
/// answered last and, as that peer may have stalled as well, the others in turn.
fn peers_to_compare(peers: &[Peer]) -> impl Iterator<Item = usize> + use<> {
    // A peer that holds a login would not answer another one either.
    let is_usable = |peer: &Peer| {
        peer.stall_series.is_none() && peer.counts.held_logins == 0 && !peer.is_removed()
    };
    let others = || peers.iter().enumerate().filter(|(_, peer)| is_usable(peer));
    let most_recent = others().max_by_key(|(_, peer)| peer.last_answer()).map(|(index, _)| index);
    let next = others()
        .filter(|(index, _)| Some(*index) != most_recent)
        .min_by_key(|(_, peer)| peer.checks.stall_began())
        .map(|(index, _)| index);
    [most_recent, next].into_iter().flatten()
}

/// Returns how long an idle connection may be asked for an answer at most. A checkout may wait for it, as for a ping.
fn longest_question(settings: &Settings) -> Duration {
    settings.ping_timeout.max(settings.check_timeout)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
mod tests {
    use super::*;
    use crate::fault::{Fault, LoginFailure};
    use crate::peers::activity::Activity;
    use crate::peers::admin_state::AdminState;
    use crate::peers::peer::Attempt;
    use crate::peers::set::PeerSet;
    use crate::peers::set::tests::set_of;
    use crate::settings::policy::Recovery;
    #[cfg(all(feature = "socket", target_os = "linux"))]
    use crate::socket::Socket;

    /// Times are in seconds; `stall_after` is two seconds.
    #[test]
    fn peer_is_stalled_only_when_all_conditions_hold() {
        use QuestionState::{Asked, NotAsked, Over};
        use Verdict::{Ask, Inconclusive, Stalled, Suspect, Wait, Works};
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let pending = Asked { at: at(9), until: at(11) };
        let overdue = Asked { at: at(9), until: at(10) };
        let cases = [
            // (case, oldest query, answered, others answered, series (began, unanswered, question), verdict
            // at 10)
            ("no query is running", None, None, None, None, Works),
            ("the query is short", Some(9), None, None, None, Works),
            ("the query is long", Some(8), None, None, None, Suspect),
            ("the query is long, and others end", Some(1), Some(9), None, None, Works),
            (
                "the query is long, and others ended too long ago",
                Some(1),
                Some(8),
                None,
                None,
                Suspect,
            ),
            ("the first check is running", Some(1), None, Some(9), Some((8, 0, NotAsked)), Suspect),
            ("one check is unanswered", Some(1), None, Some(9), Some((8, 1, NotAsked)), Ask),
            ("a resting session is asked", Some(1), None, Some(9), Some((8, 1, pending)), Suspect),
            ("no session is at rest", Some(1), None, Some(9), Some((8, 1, Over)), Suspect),
            ("a resting session may answer", Some(1), None, Some(9), Some((8, 2, pending)), Wait),
            ("the answer is overdue", Some(1), None, Some(9), Some((8, 2, overdue)), Stalled),
            (
                "a resting session has answered",
                Some(1),
                Some(9),
                Some(9),
                Some((8, 2, Over)),
                Works,
            ),
            ("data has come to a link", Some(1), Some(8), Some(9), Some((8, 2, pending)), Works),
            ("two checks are unanswered", Some(1), None, Some(9), Some((8, 2, Over)), Stalled),
            (
                "two checks are unanswered, no other peer answers",
                Some(1),
                None,
                None,
                Some((8, 2, Over)),
                Inconclusive,
            ),
            (
                "two checks are unanswered, others answered only before",
                Some(1),
                None,
                Some(7),
                Some((8, 2, Over)),
                Inconclusive,
            ),
            (
                "two checks are unanswered, another query ended since",
                Some(1),
                Some(8),
                Some(9),
                Some((8, 2, Over)),
                Works,
            ),
            (
                "two checks are unanswered, another query ended before",
                Some(1),
                Some(7),
                Some(9),
                Some((8, 2, Over)),
                Stalled,
            ),
            (
                "two checks are unanswered, the hung query has ended",
                None,
                None,
                Some(9),
                Some((8, 2, Over)),
                Works,
            ),
        ];
        for (case, oldest_query, answered, others, series, expected) in cases {
            let observations = Observations {
                oldest_query: oldest_query.map(at),
                answered: answered.map(at),
                others_answered: others.map(at),
            };
            let series = series.map(|(began, unanswered, question)| StallSeries {
                began: at(began),
                unanswered,
                is_held: false,
                question,
            });
            let patience = Patience { stall_after: Duration::from_secs(2), pooler_wait: None };
            let verdict = detect_stall(series, observations, patience, at(10));
            assert_eq!(verdict, expected, "{case}");
        }
    }

    /// Times are in seconds; `stall_after` is two seconds.
    #[test]
    fn queries_that_a_pooler_holds_wait_for_as_long_as_it_takes_or_for_pooler_wait() {
        use QuestionState::{Asked, NotAsked, Over};
        use Verdict::{Ask, Holds, Stalled, Suspect, Wait, Works};
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let pending = Asked { at: at(9), until: at(11) };
        let cases = [
            // (case, `pooler_wait`, answered, others answered, (unanswered, question), verdict at 10)
            ("one login is held", None, None, Some(9), (1, NotAsked), Ask),
            ("a resting session is asked", None, None, Some(9), (1, pending), Suspect),
            ("a resting session may answer", None, None, Some(9), (2, pending), Wait),
            ("two logins are held", None, None, Some(9), (2, Over), Holds),
            ("a query has ended", None, Some(9), Some(9), (2, Over), Works),
            ("no other peer answers", None, None, Some(3), (2, Over), Wait),
            ("the query has not waited long enough", Some(8), None, Some(9), (2, Over), Holds),
            ("the query has waited long enough", Some(7), None, Some(9), (2, Over), Stalled),
            ("it has, and no other peer answers", Some(7), None, None, (2, Over), Wait),
            ("it has, and a query has ended", Some(7), Some(9), Some(9), (2, Over), Works),
            ("it has, and a session may answer", Some(7), None, Some(9), (2, pending), Wait),
        ];
        for (case, pooler_wait, answered, others, (unanswered, question), expected) in cases {
            let observations = Observations {
                oldest_query: Some(at(3)),
                answered: answered.map(at),
                others_answered: others.map(at),
            };
            let series = StallSeries { began: at(5), unanswered, is_held: true, question };
            let pooler_wait = pooler_wait.map(Duration::from_secs);
            let patience = Patience { stall_after: Duration::from_secs(2), pooler_wait };
            let verdict = detect_stall(Some(series), observations, patience, at(10));
            assert_eq!(verdict, expected, "{case}");
        }
    }

    /// Peers with running queries, and a clock that only the test moves.
    struct Scenario {
        start: Instant,
        now: Instant,
        set: Arc<PeerSet>,
        queries: Vec<Arc<LinkState>>,
    }

    impl Scenario {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
        fn new(peers: usize) -> Self {
            // An `AtomicInstant` counts from the first instant that is ever recorded.
            Activity::default().query_ended(Instant::now());
            let (set, _woken, start) = set_of(peers, Recovery::AfterCheck);
            let link = |peer: &Peer| {
                let link_state = Arc::<LinkState>::default();
                peer.activity.add_link(link_state.clone());
                link_state
            };
            let queries = set.read(|peers| peers.iter().map(link).collect());
            Self { start, now: start, set, queries }
        }

        fn advance_to(&mut self, millis: u64) {
            self.now = self.start + Duration::from_millis(millis);
        }

        fn activity(&self, peer: usize) -> Arc<Activity> {
            self.set.read(|peers| peers[peer].activity.clone())
        }

        fn is_up(&self, peer: usize) -> bool {
            self.set.read(|peers| peers[peer].is_up())
        }

        fn query_begins(&self, peer: usize) {
            self.queries[peer].query_begins(self.now, false);
        }

        fn query_ends(&self, peer: usize) {
            self.queries[peer].clear_running();
            self.activity(peer).query_ended(self.now);
        }

        /// Runs the checker's scan. Returns the checked peers, the number of peers that go down,
        /// and the number of aborted links.
        fn scan(&mut self) -> (Vec<usize>, usize, usize) {
            let events = || self.set.event_log.history().len();
            let before = events();
            let stalls = self.set.transaction(self.now, scan);
            for Question { peer, asked_at, timeout } in &stalls.questions {
                let longest = longest_question(self.set.settings());
                assert!(*timeout <= longest, "a checkout may wait for the link");
                self.set.update(peer.index, self.now, |peer, _| peer.question_ended(*asked_at));
            }
            let mut checked: Vec<usize> =
                stalls.checks.iter().map(|check| check.peer.index).collect();
            checked.sort_unstable();
            let links = stalls.peers.iter().map(|stalled| stalled.links.len()).sum();
            (checked, events() - before, links)
        }

        /// Ends a check. A check without an answer has used its whole timeout.
        fn check_ends(&mut self, peer: usize, outcome: Result<(), LoginFailure>) {
            let is_unanswered = matches!(outcome, Err(LoginFailure::Unanswered(_)));
            let took = Duration::from_secs(u64::from(is_unanswered));
            let began = self.now.checked_sub(took).expect("the clock is older");
            let attempt = Attempt { began, ended: self.now };
            self.set.update(peer, self.now, |peer, check_times| {
                peer.check_ended(CheckKind::Stall, attempt, outcome, check_times);
            });
        }
    }

    fn unanswered() -> Result<(), LoginFailure> {
        Err(LoginFailure::Unanswered("no answer".into()))
    }

    fn held() -> Result<(), LoginFailure> {
        Err(LoginFailure::held(Duration::from_secs(1)))
    }

    #[test]
    fn pooler_that_holds_queries_gets_no_new_work_and_few_checks() {
        let mut scenario = Scenario::new(2);
        scenario.query_begins(0);
        for now in [2_000, 3_000, 4_000] {
            scenario.advance_to(now);
            if now > 2_000 {
                scenario.check_ends(0, held());
                scenario.query_ends(1);
            }
            scenario.scan();
        }
        assert!(!scenario.is_up(0), "it is marked down");
        assert!(scenario.set.read(|peers| !peers[0].health.sessions_fail), "its sessions wait");
        for now in [5_000, 60_000] {
            scenario.advance_to(now);
            scenario.query_ends(1);
            assert_eq!(scenario.scan(), (vec![], 0, 0), "no query is aborted, no check is made");
        }
        scenario.query_ends(0);
        scenario.scan();
        // A query that cannot be aborted does not count while the peer is down.
        scenario.set.update(0, scenario.now, |peer, times| peer.clear_mark(times.all_down, times));
        scenario.query_begins(0);
        scenario.advance_to(62_000);
        scenario.set.update_counts(0, |counts| counts.held_logins = 1);
        scenario.scan();
        scenario.scan();
        scenario.query_ends(1);
        assert_eq!(scenario.scan(), (vec![], 1, 0), "a login that waits is as good as two checks");
        assert!(!scenario.is_up(0), "it is marked down again");
    }

    #[cfg(all(feature = "socket", target_os = "linux"))]
    #[test]
    fn peer_that_takes_no_work_goes_on_with_its_queries_or_holds_them() {
        let mut scenario = Scenario::new(2);
        // On a peer that is down, only queries count that can be aborted.
        scenario.queries[0].set_socket(Arc::new(Socket::from_listener()));
        scenario.query_begins(0);
        let not_ready = || Err(LoginFailure::refused(Fault::PeerNotReady, "no server"));
        for (now, checks) in [(2_000, vec![0]), (2_100, vec![0, 1]), (2_200, vec![])] {
            scenario.advance_to(now);
            if now > 2_000 {
                scenario.check_ends(0, not_ready());
            }
            assert_eq!(scenario.scan().0, checks, "after {now} ms");
        }
        assert!(!scenario.is_up(0));
        scenario.advance_to(60_000);
        scenario.query_ends(1);
        assert_eq!(scenario.scan(), (vec![], 0, 0), "no query is aborted, no check is made");
    }

    #[test]
    fn pooler_that_freezes_while_it_holds_queries_stalls() {
        let mut scenario = Scenario::new(2);
        scenario.query_begins(0);
        let aborted = |scenario: &mut Scenario, now, outcome| {
            scenario.advance_to(now);
            scenario.query_ends(1);
            scenario.check_ends(0, outcome);
            scenario.scan().2
        };
        scenario.advance_to(2_000);
        scenario.scan();
        for now in [3_000, 4_000] {
            assert_eq!(aborted(&mut scenario, now, held()), 0);
        }
        scenario.advance_to(9_000);
        let attempt = Attempt::at(scenario.now);
        scenario.set.update(0, scenario.now, |peer, check_times| {
            peer.check_ended(CheckKind::Regular, attempt, unanswered(), check_times);
        });
        assert!(scenario.set.read(|peers| peers[0].stall_series.is_none()));
        // A query that cannot be aborted does not count once the peer is down.
        scenario.set.update(0, scenario.now, |peer, times| peer.clear_mark(times.all_down, times));
        assert_eq!(scenario.scan().0[0], 0, "it is checked again");
        assert_eq!(aborted(&mut scenario, 10_000, unanswered()), 0);
        assert_eq!(aborted(&mut scenario, 11_000, unanswered()), 1);
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
        assert!(!scenario.is_up(0) && scenario.is_up(1), "only the stalled peer is marked down");
    }

    /// A removed peer would not answer, and its URL must not be used any more.
    #[test]
    fn removed_peer_is_not_checked_for_comparison() {
        let mut scenario = Scenario::new(3);
        scenario.set.update(2, scenario.now, |peer, _| peer.admin_state = AdminState::Removed);
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
        scenario.activity(0).add_link(late.clone());
        for (now, expected) in [(2_000, 0), (3_000, 0), (4_000, 1)] {
            scenario.advance_to(now);
            if now > 2_000 {
                scenario.check_ends(0, unanswered());
                scenario.query_ends(1);
            }
            if now == 3_000 {
                late.query_begins(scenario.now, false);
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
        assert!(!scenario.is_up(0), "the stalled peer is marked down");
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
            scenario.activity(0).is_unresponsive()
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
            !scenario.activity(0).is_unresponsive(),
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
        scenario.activity(0).add_link(other.clone());
        other.query_begins(scenario.now, false);
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
        assert!(!scenario.is_up(0), "a peer that refuses is marked down");
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
        scenario.activity(0).add_link(long.clone());
        long.query_begins(scenario.now, false);
        for second in 1..60 {
            scenario.advance_to(second * 1_000);
            scenario.query_ends(0);
            assert_eq!(scenario.scan(), (vec![], 0, 0), "a peer whose queries end is not checked");
        }
    }
}
