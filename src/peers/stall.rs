//! When a running query may be cut off, because its peer has stopped: one pure function.
//!
//! A query that takes long proves nothing, and a check that is not answered in time proves little: a
//! busy server keeps a login waiting for long. So a link is given up only when four things come
//! together: its query has been running for long; two checks of its peer, one after the other, were
//! not answered; nothing else has been heard from the peer since the first of them began; and
//! something was heard from another peer meanwhile, or it is this process, or its network, that has
//! stopped. (A fifth is the checker's: by how much it was late itself, an answer may be late as well.)

use std::time::{Duration, Instant};

/// How many checks have to go unanswered.
const CHECKS: u32 = 2;

/// The checks of a peer on which queries hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Round {
    /// When the first of them began.
    pub(crate) began: Instant,
    pub(crate) unanswered: u32,
}

/// What was heard of a peer and of the others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signs {
    /// Since when the query has been running that has been running longest.
    pub(crate) oldest: Option<Instant>,
    /// When it last answered anything: a query ended there, or a login began that succeeded, or that
    /// was refused.
    pub(crate) answered: Option<Instant>,
    /// When another peer last answered anything, a refusal included.
    pub(crate) others_answered: Option<Instant>,
}

/// What to do about a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing: it works, as far as is known.
    Works,
    /// Check it, if no check is under way.
    Doubtful,
    /// It has stopped: cut off what has been running for long.
    Stopped,
    /// Every peer has stopped, so nothing is known: begin anew.
    Unknown,
}

/// Judges a peer at `now`.
pub(crate) fn judge(
    round: Option<Round>,
    signs: Signs,
    stall_after: Duration,
    now: Instant,
) -> Verdict {
    let is_since = |at: Option<Instant>, begin: Instant| at.is_some_and(|at| at >= begin);
    let is_long = |since: Instant| now.saturating_duration_since(since) >= stall_after;
    if !signs.oldest.is_some_and(is_long) {
        return Verdict::Works;
    }
    match round {
        // Others' queries end there: that one takes its time.
        None if signs.answered.is_some_and(|at| !is_long(at)) => Verdict::Works,
        None => Verdict::Doubtful,
        Some(round) if is_since(signs.answered, round.began) => Verdict::Works,
        Some(round) if round.unanswered < CHECKS => Verdict::Doubtful,
        Some(round) if is_since(signs.others_answered, round.began) => Verdict::Stopped,
        Some(_) => Verdict::Unknown,
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
mod tests {
    use super::*;

    /// Times are in seconds; a stall is two.
    #[test]
    fn only_when_all_conditions_meet_is_a_query_cut_off() {
        use Verdict::{Doubtful, Stopped, Unknown, Works};
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let cases = [
            // (what, oldest, answered, others, round (began, unanswered), verdict at 10)
            ("nothing runs", None, None, None, None, Works),
            ("a short query", Some(9), None, None, None, Works),
            ("a long one", Some(8), None, None, None, Doubtful),
            ("a long one, others end", Some(1), Some(9), None, None, Works),
            ("a long one, none ends any more", Some(1), Some(8), None, None, Doubtful),
            ("no answer yet", Some(1), None, Some(9), Some((8, 0)), Doubtful),
            ("one check unanswered", Some(1), None, Some(9), Some((8, 1)), Doubtful),
            ("two checks unanswered", Some(1), None, Some(9), Some((8, 2)), Stopped),
            ("but nobody else answers", Some(1), None, None, Some((8, 2)), Unknown),
            ("but others did only before", Some(1), None, Some(7), Some((8, 2)), Unknown),
            ("but a query ended", Some(1), Some(8), Some(9), Some((8, 2)), Works),
            ("one ended before", Some(1), Some(7), Some(9), Some((8, 2)), Stopped),
            ("but that query has ended", None, None, Some(9), Some((8, 2)), Works),
        ];
        for (what, oldest, answered, others, round, expected) in cases {
            let signs = Signs {
                oldest: oldest.map(at),
                answered: answered.map(at),
                others_answered: others.map(at),
            };
            let round = round.map(|(began, unanswered)| Round { began: at(began), unanswered });
            let verdict = judge(round, signs, Duration::from_secs(2), at(10));
            assert_eq!(verdict, expected, "{what}");
        }
    }
}
