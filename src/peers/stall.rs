//! Stall detection: decides when a running query may be aborted because its peer has stalled. One
//! pure function.
//!
//! A slow query proves nothing, and a check without a timely answer proves little: a busy server
//! keeps a login waiting for a long time. A link is therefore given up only when four conditions
//! hold together:
//!
//! - its query has been running for `stall_after`;
//! - two successive checks of its peer were not answered;
//! - the peer has answered nothing else since the first of these checks began;
//! - another peer has answered something since then. Otherwise this process or its network may have
//!   stalled.
//!
//! The checker adds a fifth condition: when the checker itself is late, it postpones all deadlines
//! by that delay, because the answers may be late as well.

use std::time::{Duration, Instant};

/// The number of successive unanswered checks after which a peer counts as stalled.
const UNANSWERED_CHECKS: u32 = 2;

/// A series of checks of a peer with hung queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StallSeries {
    /// When the first check of the series began.
    pub(crate) began: Instant,
    /// The number of checks so far that got no answer.
    pub(crate) unanswered: u32,
}

/// When queries began on a peer, and when the peer and the others last answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observations {
    /// When the oldest running query of the peer began.
    pub(crate) oldest_query: Option<Instant>,
    /// When the peer last answered: the end of a query, or the beginning of a login that succeeded
    /// or was refused.
    pub(crate) answered: Option<Instant>,
    /// When any other peer last answered, with a refusal at least.
    pub(crate) others_answered: Option<Instant>,
}

/// The result of [`detect_stall`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The peer works, as far as is known.
    Works,
    /// The peer needs a check, unless one is running.
    Suspect,
    /// The peer has stalled: its hung queries are aborted.
    Stalled,
    /// No other peer has answered either, so nothing is proved: the series of checks starts over.
    Inconclusive,
}

/// Decides at `now` whether a peer has stalled.
pub(crate) fn detect_stall(
    series: Option<StallSeries>,
    observations: Observations,
    stall_after: Duration,
    now: Instant,
) -> Verdict {
    let is_since = |at: Option<Instant>, begin: Instant| at.is_some_and(|at| at >= begin);
    let is_long = |since: Instant| now.saturating_duration_since(since) >= stall_after;
    if !observations.oldest_query.is_some_and(is_long) {
        return Verdict::Works;
    }
    match series {
        // Other queries end on this peer, so this one is only slow.
        None if observations.answered.is_some_and(|at| !is_long(at)) => Verdict::Works,
        None => Verdict::Suspect,
        Some(series) if is_since(observations.answered, series.began) => Verdict::Works,
        Some(series) if series.unanswered < UNANSWERED_CHECKS => Verdict::Suspect,
        Some(series) if is_since(observations.others_answered, series.began) => Verdict::Stalled,
        Some(_) => Verdict::Inconclusive,
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
mod tests {
    use super::*;

    /// Times are in seconds; `stall_after` is two seconds.
    #[test]
    fn peer_is_stalled_only_when_all_conditions_hold() {
        use Verdict::{Inconclusive, Stalled, Suspect, Works};
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let cases = [
            // (case, oldest query, answered, others answered, series (began, unanswered), verdict at
            // 10)
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
            ("the first check is running", Some(1), None, Some(9), Some((8, 0)), Suspect),
            ("one check is unanswered", Some(1), None, Some(9), Some((8, 1)), Suspect),
            ("two checks are unanswered", Some(1), None, Some(9), Some((8, 2)), Stalled),
            (
                "two checks are unanswered, no other peer answers",
                Some(1),
                None,
                None,
                Some((8, 2)),
                Inconclusive,
            ),
            (
                "two checks are unanswered, others answered only before",
                Some(1),
                None,
                Some(7),
                Some((8, 2)),
                Inconclusive,
            ),
            (
                "two checks are unanswered, another query ended since",
                Some(1),
                Some(8),
                Some(9),
                Some((8, 2)),
                Works,
            ),
            (
                "two checks are unanswered, another query ended before",
                Some(1),
                Some(7),
                Some(9),
                Some((8, 2)),
                Stalled,
            ),
            (
                "two checks are unanswered, the hung query has ended",
                None,
                None,
                Some(9),
                Some((8, 2)),
                Works,
            ),
        ];
        for (case, oldest_query, answered, others, series, expected) in cases {
            let observations = Observations {
                oldest_query: oldest_query.map(at),
                answered: answered.map(at),
                others_answered: others.map(at),
            };
            let series =
                series.map(|(began, unanswered)| StallSeries { began: at(began), unanswered });
            let verdict = detect_stall(series, observations, Duration::from_secs(2), at(10));
            assert_eq!(verdict, expected, "{case}");
        }
    }
}
