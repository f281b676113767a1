//! What the checker does to the peers, when its time has come: marks that run out, checks that are
//! due, and peers that have stopped. Pure functions of the peers and the time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::peers::activity::{Activity, LinkState};
use crate::peers::admin_state::AdminState;
use crate::peers::journal::News;
use crate::peers::peer::{CheckKind, Peer};
use crate::peers::placement::nobody_takes_work;
use crate::peers::stall::{Round, Signs, Verdict, judge};
use crate::policy::Recovery;
use crate::settings::{Due, Settings};
use crate::url::PeerUrl;

/// A check that the checker is to make.
#[derive(Debug)]
pub(crate) struct HealthCheck {
    pub(crate) peer: usize,
    pub(crate) url: Arc<PeerUrl>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) kind: CheckKind,
    pub(crate) began: Instant,
    pub(crate) patience: Duration,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) checks: Vec<HealthCheck>,
    /// To be told.
    pub(crate) news: Vec<News>,
    pub(crate) stalled: Vec<Stalled>,
}

/// A peer that has stopped, and the links to it that are to be cut off.
#[derive(Debug)]
pub(crate) struct Stalled {
    pub(crate) peer: usize,
    pub(crate) links: Vec<Arc<LinkState>>,
    /// Whether it was up until now.
    pub(crate) is_news: bool,
}

impl Work {
    fn check(
        &mut self,
        index: usize,
        peer: &mut Peer,
        kind: CheckKind,
        patience: Duration,
        now: Instant,
    ) {
        // A login that cannot be ended, and goes unanswered: another one would not end either.
        let is_stuck = kind == CheckKind::Stall && peer.counts.stuck_logins > 0;
        if !is_stuck && peer.check_begins(kind, now) {
            let (url, activity) = (peer.url.clone(), peer.activity.clone());
            self.checks.push(HealthCheck {
                peer: index,
                url,
                activity,
                kind,
                began: now,
                patience,
            });
        }
    }
}

/// Clears marks under [`Recovery::AfterInterval`], and begins the checks that are due. Also says when to look
/// again.
pub(crate) fn regular(
    peers: &mut [Peer],
    settings: &Settings,
    mut due: impl FnMut() -> Due,
    now: Instant,
    work: &mut Work,
) -> Option<Instant> {
    let all_down = nobody_takes_work(peers);
    let mut next: Option<Instant> = None;
    for (index, peer) in peers.iter_mut().enumerate() {
        // A peer that keeps a login hanging is the checker's to try, and so comes back by a check.
        let is_cleared = settings.recovery == Recovery::AfterInterval
            && peer.counts.stuck_logins == 0
            && !peer.is_gone();
        if is_cleared && peer.next_check <= now {
            let up = peer.clear(now, due());
            work.news.extend(up.map(|up| peer.news(up)));
        }
        if peer.check_due(all_down).is_some_and(|due| due <= now) {
            let patience = if all_down { brief(peer, settings) } else { settings.connect_timeout };
            work.check(index, peer, CheckKind::Regular, patience, now);
        }
        // A mark that is cleared unasked is due whether a check is running or not.
        let is_mark = is_cleared && !peer.is_up();
        let mark = is_mark.then_some(peer.next_check);
        next = [next, mark, peer.check_due(all_down)].into_iter().flatten().min();
    }
    next
}

/// Looks where queries hang, and what follows. Says whether any query is running at all.
pub(crate) fn stalls(
    peers: &mut [Peer],
    settings: &Settings,
    mut due: impl FnMut() -> Due,
    now: Instant,
    work: &mut Work,
) -> bool {
    let mut is_any_running = false;
    for peer in &*peers {
        is_any_running |= peer.activity.look(peer.answered(), now);
    }
    let Some(stall_after) = settings.stall_after else { return is_any_running };

    // Who has answered last, and when the last one of the others did.
    let answers = || peers.iter().enumerate().filter_map(|(at, peer)| Some((peer.answered()?, at)));
    let newest = answers().max();
    let others = newest.and_then(|(_, at)| answers().filter(|other| other.1 != at).max());
    let others_answered = |index: usize| {
        newest.filter(|(_, at)| *at != index).or(others).map(|(answered, _)| answered)
    };
    let signs: Vec<Signs> = peers
        .iter()
        .enumerate()
        .map(|(index, peer)| Signs {
            oldest: peer.oldest_query(),
            answered: peer.answered(),
            others_answered: others_answered(index),
        })
        .collect();
    let mut witnesses_are_needed = false;
    for (index, (peer, signs)) in peers.iter_mut().zip(&signs).enumerate() {
        match judge(peer.round, *signs, stall_after, now) {
            Verdict::Works | Verdict::Unknown => peer.round = None,
            Verdict::Doubtful => {
                let round = *peer.round.get_or_insert(Round { began: now, unanswered: 0 });
                work.check(index, peer, CheckKind::Stall, brief(peer, settings), now);
                // Most often the peer itself answers, and nobody else need be asked.
                let is_alone = signs.others_answered.is_none_or(|at| at < round.began);
                witnesses_are_needed |= is_alone && round.unanswered > 0;
            }
            Verdict::Stopped => {
                let began = peer.round.take().map_or(now, |round| round.began);
                let is_news = peer.is_up();
                let down = peer.stopped(began, now, due());
                work.news.extend(down.map(|down| peer.news(down)));
                let long_ago = now.checked_sub(stall_after).unwrap_or(now);
                let links = peer.activity.running_since(long_ago);
                work.stalled.push(Stalled { peer: index, links, is_news });
            }
        }
    }
    if witnesses_are_needed {
        // The one that answered last, and, as that may have stopped as well, the others by turns.
        let is_there = |peer: &Peer| peer.round.is_none() && !peer.is_gone();
        let others = || peers.iter().enumerate().filter(|(_, peer)| is_there(peer));
        let liveliest = others().max_by_key(|(_, peer)| peer.answered()).map(|(index, _)| index);
        let next = others()
            .filter(|(index, _)| Some(*index) != liveliest)
            .min_by_key(|(_, peer)| peer.stall_check_began())
            .map(|(index, _)| index);
        for index in [liveliest, next].into_iter().flatten() {
            let peer = &mut peers[index];
            work.check(index, peer, CheckKind::Stall, brief(peer, settings), now);
        }
    }
    is_any_running
}

/// Looks whether peers that are being drained are empty. Says whether to look again.
pub(crate) fn drained(peers: &mut [Peer], now: Instant, work: &mut Work) -> bool {
    let mut is_any_draining = false;
    for peer in peers {
        let happened = peer.end_draining(now).into_iter().flatten().flatten();
        work.news.extend(happened.map(|kind| peer.news(kind)));
        is_any_draining |= matches!(peer.admin_state, AdminState::Draining { .. });
    }
    is_any_draining
}

/// For how long an answer is waited for that is needed soon: `check_timeout`, or what logging in there
/// takes if that is more. What is not known yet is given all the time.
fn brief(peer: &Peer, settings: &Settings) -> Duration {
    let usual = peer.expected_login().unwrap_or(Duration::MAX);
    usual.max(settings.check_timeout).min(settings.connect_timeout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Fault, Refusal};
    #[cfg(all(feature = "socket", target_os = "linux"))]
    use crate::login::socket::Socket;
    use crate::peers::peer::Answer;
    use crate::settings::tests::settings;

    /// Peers on which queries run, and a clock that only moves when it is told to.
    struct Story {
        start: Instant,
        now: Instant,
        peers: Vec<Peer>,
        queries: Vec<Arc<LinkState>>,
    }

    impl Story {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
        fn begin(peers: usize) -> Self {
            // Moments are counted from the first that is ever looked at.
            Activity::default().query_ended(Instant::now());
            let start = Instant::now();
            let peer = |index| {
                let url = PeerUrl::new(format!("url{index}"));
                Peer::new(format!("peer{index}").into(), url, 1, 0, start)
            };
            let peers: Vec<Peer> = (0..peers).map(peer).collect();
            let link = |peer: &Peer| {
                let link_state = Arc::<LinkState>::default();
                peer.activity.add(link_state.clone());
                link_state
            };
            let queries = peers.iter().map(link).collect();
            Self { start, now: start, peers, queries }
        }

        fn at(&mut self, millis: u64) {
            self.now = self.start + Duration::from_millis(millis);
        }

        fn query_begins(&self, peer: usize) {
            self.queries[peer].query_begins(self.now);
        }

        fn query_ends(&self, peer: usize) {
            self.queries[peer].rest();
            self.peers[peer].activity.query_ended(self.now);
        }

        /// What the checker does now: the peers that it checks, those that go down, and the links that
        /// are cut off.
        fn look(&mut self) -> (Vec<usize>, usize, usize) {
            let mut work = Work::default();
            let due = Due { next: self.now, soon: self.now };
            stalls(&mut self.peers, &settings(), || due, self.now, &mut work);
            let mut checked: Vec<usize> = work.checks.iter().map(|check| check.peer).collect();
            checked.sort_unstable();
            let stalled = work.stalled.iter().map(|stalled| stalled.links.len()).sum();
            (checked, work.news.len(), stalled)
        }

        /// A check ends: one without an answer has taken as long as it may.
        fn answers(&mut self, peer: usize, answer: Answer) {
            let due = Due { next: self.now, soon: self.now };
            let is_late = matches!(answer, Answer::None(_));
            let took = Duration::from_secs(u64::from(is_late));
            let began = self.now.checked_sub(took).expect("the clock is older");
            self.peers[peer].check_ended(CheckKind::Stall, (began, self.now), answer, due);
        }
    }

    fn none() -> Answer {
        Answer::None("no answer".into())
    }

    #[test]
    fn a_peer_that_has_stopped_goes_down_and_its_queries_are_cut_off() {
        let mut story = Story::begin(4);
        story.query_begins(0);
        story.at(1_900);
        assert_eq!(story.look(), (vec![], 0, 0), "it has not been running for long");
        story.at(2_000);
        assert_eq!(story.look(), (vec![0], 0, 0), "does it answer?");
        story.at(2_100);
        assert_eq!(story.look(), (vec![], 0, 0), "one check at a time");
        story.at(3_000);
        story.answers(0, none());
        assert_eq!(story.look(), (vec![0, 1, 3], 0, 0), "is it the peer, or is it us?");
        story.at(3_100);
        story.answers(3, Answer::Works);
        assert_eq!(story.look(), (vec![], 0, 0), "it has as long as before");
        story.at(4_000);
        story.answers(0, none());
        story.answers(1, none());
        assert_eq!(story.look(), (vec![], 1, 1), "it is down, and its query is cut off");
        assert!(!story.peers[0].is_up() && story.peers[1].is_up(), "the others are not");
    }

    /// Nobody answers there, and its URL may not be used any more.
    #[test]
    fn one_that_is_gone_is_no_witness() {
        let mut story = Story::begin(3);
        story.peers[2].admin_state = AdminState::Removed;
        story.query_begins(0);
        story.at(2_000);
        assert_eq!(story.look(), (vec![0], 0, 0));
        story.at(3_000);
        story.answers(0, none());
        assert_eq!(story.look(), (vec![0, 1], 0, 0), "the one that is left");
    }

    #[cfg(all(feature = "socket", target_os = "linux"))]
    #[test]
    fn a_query_that_begins_later_has_as_long_as_any() {
        let mut story = Story::begin(2);
        story.query_begins(0);
        // Of a peer that is down only what can be cut off is of interest.
        let late = Arc::<LinkState>::default();
        late.set_socket(Arc::new(Socket::of_listener()));
        story.peers[0].activity.add(late.clone());
        for (now, expected) in [(2_000, 0), (3_000, 0), (4_000, 1)] {
            story.at(now);
            if now > 2_000 {
                story.answers(0, none());
                story.query_ends(1);
            }
            if now == 3_000 {
                late.query_begins(story.now);
            }
            assert_eq!(story.look().2, expected, "cut off after {now} ms");
        }
        story.queries[0].rest();
        story.at(4_900);
        assert_eq!(story.look(), (vec![], 0, 0), "the later one is left alone");
        story.at(5_000);
        assert_eq!(story.look().0[0], 0, "until it has been running for as long");
    }

    #[test]
    fn what_cannot_be_cut_off_is_not_asked_after_again_and_again() {
        let mut story = Story::begin(2);
        story.query_begins(0);
        story.query_ends(1);
        for now in [2_000, 3_000, 4_000] {
            story.at(now);
            if now > 2_000 {
                story.answers(0, none());
                story.query_ends(1);
            }
            story.look();
        }
        assert!(!story.peers[0].is_up(), "it has stopped");
        story.at(60_000);
        assert_eq!(story.look(), (vec![], 0, 0), "and that is known");
    }

    #[test]
    fn one_that_refuses_has_answered() {
        let mut story = Story::begin(2);
        story.query_begins(0);
        story.at(2_000);
        assert_eq!(story.look().0, [0], "does it answer?");
        story.at(2_050);
        story.answers(0, Answer::Refused(Refusal::new(Fault::PeerDown, "refused")));
        for millis in [2_100, 2_150, 3_000, 4_000] {
            story.at(millis);
            assert!(story.look().0.is_empty(), "that will do for a while");
        }
    }

    #[test]
    fn witnesses_take_turns() {
        let mut story = Story::begin(5);
        story.query_begins(0);
        let mut asked = vec![0; 5];
        for round in 0..6 {
            for look in 0..3 {
                story.at(2_000 + 2_000 * round + 1_000 * look);
                let checked = story.look().0;
                story.at(2_999 + 2_000 * round + 1_000 * look);
                for peer in checked {
                    asked[peer] += 1;
                    story.answers(peer, none());
                }
            }
        }
        assert!(asked.iter().all(|times| *times > 0), "each is asked sooner or later: {asked:?}");
    }

    #[test]
    fn a_peer_hesitates_while_a_query_hangs_that_began_after_its_last_answer() {
        let mut story = Story::begin(2);
        story.query_begins(0);
        let is_unresponsive = |story: &mut Story, millis| {
            story.at(millis);
            story.look();
            story.peers[0].activity.is_unresponsive()
        };
        assert!(!is_unresponsive(&mut story, 100), "a query may take a moment");
        assert!(is_unresponsive(&mut story, 150), "it takes longer, and nothing is heard");
        story.query_ends(0);
        assert!(!story.peers[0].activity.is_unresponsive(), "it ends, which is seen at once");
        story.at(200);
        story.query_begins(0);
        assert!(is_unresponsive(&mut story, 2_200), "another one");
        story.answers(0, Answer::Works);
        assert!(
            !is_unresponsive(&mut story, 2_250),
            "a check was answered: it only takes its time"
        );
        let other = Arc::<LinkState>::default();
        story.peers[0].activity.add(other.clone());
        other.query_begins(story.now);
        assert!(is_unresponsive(&mut story, 2_400), "until another one hangs");
    }

    #[test]
    fn an_answer_ends_the_doubt_for_a_while() {
        let mut story = Story::begin(2);
        story.query_begins(0);
        story.at(2_000);
        story.look();
        story.at(3_000);
        story.answers(0, Answer::Works);
        story.at(4_900);
        assert_eq!(story.look(), (vec![], 0, 0), "a long query is left alone");
        story.at(5_000);
        assert_eq!(story.look().0[0], 0, "and its peer is asked again");
        story.at(5_500);
        story.answers(0, Answer::Refused(Refusal::new(Fault::PeerDown, "paused")));
        assert!(!story.peers[0].is_up(), "one that refuses is down");
        assert_eq!(story.look().2, 0, "but its sessions go on");
    }

    #[test]
    fn when_nobody_answers_nothing_is_known() {
        let mut story = Story::begin(2);
        story.query_begins(0);
        story.query_begins(1);
        for round in 0..3 {
            story.at(round * 2_000 + 2_000);
            assert_eq!(story.look(), (vec![0, 1], 0, 0), "both are asked");
            for again in [1_000, 2_000] {
                story.at(round * 2_000 + 2_000 + again);
                story.answers(0, none());
                story.answers(1, none());
                if again == 1_000 {
                    assert_eq!(story.look(), (vec![0, 1], 0, 0), "both are asked again");
                }
            }
            assert_eq!(story.look(), (vec![], 0, 0), "it is us, or our network");
        }
    }

    #[test]
    fn a_query_that_runs_with_others_ending_beside_it_asks_for_no_check() {
        let mut story = Story::begin(2);
        let long = Arc::<LinkState>::default();
        story.peers[0].activity.add(long.clone());
        long.query_begins(story.now);
        for second in 1..60 {
            story.at(second * 1_000);
            story.query_ends(0);
            assert_eq!(story.look(), (vec![], 0, 0), "its peer works");
        }
    }
}
