//! Peers at their limits of connections (`max_connections`): when the pool lacks a connection because of them,
//! and the wait of a connecting thread for room.
//!
//! After a failed connect, r2d2 puts the slot to sleep for up to half of the pool's `connection_timeout`, so it
//! would notice room that late. Therefore its workers wait here, all that have nothing else to do: none of them
//! could open a connection. The first call returns its error at once, so that the pool can report the cause.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Inner, PeerSet};
use crate::peers::peer::{Counts, Peer};
use crate::peers::placement::{at_limit, lacks_room};
use crate::settings::policy::Strategy;

/// The time at the beginning of each round of waiting in which nobody waits. A waiting thread keeps its pool
/// alive, so a pool that the application has dropped ends here.
const PAUSE_BETWEEN_ROUNDS: Duration = Duration::from_millis(100);

/// The longest time for which a connecting thread waits for a connection that is being closed.
const CLOSING_TIME: Duration = Duration::from_millis(200);

/// The connecting threads that wait for room.
#[derive(Debug, Default)]
pub(super) struct RoomWait {
    /// When the first connect failed for lack of room. The rounds of waiting are counted from here.
    since: Option<Instant>,
    /// The number of threads that wait.
    pub(super) waiting: usize,
}

/// The links of a peer above its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinksOverLimit {
    pub(crate) peer: usize,
    /// The number of links to close.
    pub(crate) links: usize,
    /// How many more of them have to be marked for replacement.
    pub(crate) unmarked: usize,
}

impl PeerSet {
    /// Whether limits alone keep the pool from opening a connection.
    pub(crate) fn lacks_room(&self) -> bool {
        self.lock().lacks_room(self.settings.strategy)
    }

    /// Whether the pool lacks a connection that would be opened if there were room: a slot has no session, or
    /// connections to a peer that is down or out of service are to be replaced.
    pub(crate) fn lacks_connections(&self) -> bool {
        self.read(|peers| {
            let is_logging_in = peers.iter().any(|peer| peer.counts.connecting > 0);
            !is_logging_in && peers.iter().any(is_short)
        })
    }

    /// Records that a connection was wanted and not opened because of limits. Returns whether that is the
    /// reason.
    pub(crate) fn refuse_for_limit(self: &Arc<Self>, now: Instant) -> bool {
        let (is_refused, is_new) = self.transaction(now, |transaction| {
            let strategy = transaction.settings().strategy;
            let is_refused = transaction.inner.lacks_room(strategy);
            let is_new = is_refused && !transaction.peers().iter().any(Peer::is_at_limit);
            if is_refused {
                if is_new {
                    transaction.inner.room_wait.since = None;
                }
                let peers: Vec<usize> = at_limit(transaction.peers(), strategy).collect();
                for peer in peers {
                    transaction.update(peer, |peer, _| peer.refused_for_limit(now));
                }
            }
            (is_refused, is_new)
        });
        self.event_log.write_log();
        // Otherwise the checker looks again by itself.
        if is_new {
            self.wake();
        }
        is_refused
    }

    /// Waits for a moment for room, unless the pool is known to lack connections. r2d2 asks for a new connection
    /// before it closes the one that is to be replaced. Returns whether there is room.
    pub(crate) fn await_closing(&self, now: Instant) -> bool {
        let inner = self.lock();
        let is_known = |inner: &Inner| inner.peers.iter().any(Peer::is_at_limit);
        self.await_room(inner, now + CLOSING_TIME, is_known)
    }

    /// Waits until a peer has room, at most until `end`. The first caller returns at once, to report the error.
    /// The others wait until the end of the current round, which takes `connect_deadline`. Returns whether there is
    /// room.
    pub(crate) fn wait_for_room(&self, now: Instant, end: Instant) -> bool {
        let mut inner = self.lock();
        let Some(since) = inner.room_wait.since else {
            inner.room_wait.since = Some(now);
            return false;
        };
        let round_end = round_end(since, self.settings.connect_deadline, now);
        round_end.is_some_and(|round_end| self.await_room(inner, end.min(round_end), |_| false))
    }

    /// Waits until a peer has room, until `end` at most, or until `is_over`. Returns whether there is room.
    #[expect(clippy::disallowed_methods, reason = "the wait is bounded")]
    fn await_room(
        &self,
        mut inner: MutexGuard<'_, Inner>,
        end: Instant,
        is_over: impl Fn(&Inner) -> bool,
    ) -> bool {
        inner.room_wait.waiting += 1;
        let has_room = loop {
            if !inner.lacks_room(self.settings.strategy) {
                break true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || is_over(&inner) || self.is_closed() {
                break false;
            }
            let waited = self.changes.wait_timeout(inner, left);
            (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        };
        inner.room_wait.waiting -= 1;
        has_room
    }

    /// Claims the closing of a returned link to this peer, if the peer has more links than its limit allows, and no
    /// other peer has room for a replacement. `closes_first` is whether no replacement is opened before anyway.
    /// Returns whether the caller has to close the link. Its session counts as ended from now on.
    pub(crate) fn claim_closing_over_limit(&self, peer: usize, closes_first: bool) -> bool {
        // Without a peer above its limit, no lock is taken.
        if !self.is_over_limit.load(Ordering::Relaxed) {
            return false;
        }
        let inner = &mut *self.lock();
        let is_claimed = inner.peers[peer].links_over_limit() > 0
            && (closes_first || inner.lacks_room(self.settings.strategy));
        if is_claimed {
            inner.peers[peer].counts.ended += 1;
            self.update_rebalance_from(&inner.peers);
        }
        is_claimed
    }

    /// Returns the peers that have more links than their limits allow.
    pub(crate) fn links_over_limit(&self) -> Vec<LinksOverLimit> {
        let over = |(index, peer): (usize, &Peer)| {
            let links = peer.links_over_limit();
            let Counts { marked_for_replacement, ended, .. } = peer.counts;
            let unmarked = links.saturating_sub(marked_for_replacement.saturating_sub(ended));
            (links > 0).then_some(LinksOverLimit { peer: index, links, unmarked })
        };
        self.read(|peers| peers.iter().enumerate().filter_map(over).collect())
    }

    /// Returns the peers at their limits that would accept a login in place of a link. None while some slot
    /// has no session anyway, and while links to a peer that is down or out of service are to be replaced.
    pub(crate) fn peers_to_reopen_links(&self) -> Vec<usize> {
        self.read(|peers| {
            if peers.iter().any(is_short) {
                return Vec::new();
            }
            let would_accept = |index: &usize| {
                let peer = &peers[*index];
                !peer.is_full() && peer.counts.marked_for_replacement > 0
            };
            at_limit(peers, self.settings.strategy).filter(would_accept).collect()
        })
    }
}

impl Inner {
    fn lacks_room(&self, strategy: Strategy) -> bool {
        self.host_failure.is_none() && lacks_room(&self.peers, strategy)
    }
}

/// Whether a slot of the peer's has no session, or a link to it is to be replaced because the peer is down or out of
/// service.
fn is_short(peer: &Peer) -> bool {
    peer.counts.ended > 0 || peer.counts.links > 0 && !peer.is_up_and_in_service()
}

/// Returns when the round of waiting ends that `now` belongs to, or `None` in the pause at its beginning.
fn round_end(since: Instant, round: Duration, now: Instant) -> Option<Instant> {
    let elapsed = now.saturating_duration_since(since).as_nanos() % round.as_nanos().max(1);
    let elapsed = Duration::from_nanos(u64::try_from(elapsed).unwrap_or(u64::MAX));
    (elapsed >= PAUSE_BETWEEN_ROUNDS).then(|| now + round.saturating_sub(elapsed))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::health::checker::tests::tick;
    use crate::peers::set::tests::{set_of, take_down};
    use crate::settings::policy::Recovery;

    const SECOND: Duration = Duration::from_secs(1);

    /// A set of two peers of the limit 1, each with one link.
    fn set_at_limits() -> (Arc<PeerSet>, Instant) {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        for (peer, name) in ["peer0", "peer1"].into_iter().enumerate() {
            set.set_max_connections(name, Some(1), now).expect("the peer exists");
            set.update_counts(peer, |counts| counts.links = 1);
        }
        (set, now)
    }

    fn events(set: &PeerSet) -> Vec<&'static str> {
        let events = set.event_log.history();
        let events = events.into_iter().filter(|event| event.peer == "peer1");
        events.map(|event| event.kind.as_str()).filter(|kind| kind.contains("limit")).collect()
    }

    #[test]
    fn time_at_the_limit_has_one_event_at_each_end() {
        let (set, now) = set_at_limits();
        let changed = events(&set);
        assert_eq!(changed, ["limit_changed"], "a peer at its limit is no event");
        for _ in 0..3 {
            assert!(set.refuse_for_limit(now));
        }
        // A link that is closed and opened again between two looks does not end it.
        set.update_counts(1, |counts| counts.links = 0);
        set.update_counts(1, |counts| counts.connecting = 1);
        tick(&set, now + SECOND);
        assert_eq!(events(&set), ["limit_changed", "at_limit"]);
        set.update_counts(1, |counts| counts.connecting = 0);
        assert!(!set.refuse_for_limit(now + SECOND), "there is room");
        tick(&set, now + SECOND * 2);
        assert_eq!(events(&set), ["limit_changed", "at_limit", "below_limit"]);
        assert!(set.read(|peers| peers[0].is_at_limit()), "the other one has no room");
        tick(&set, now + SECOND * 61);
        assert!(set.read(|peers| !peers[0].is_at_limit()), "nothing wants a connection any more");
    }

    #[test]
    fn peers_that_are_down_lack_no_room() {
        let (set, now) = set_at_limits();
        take_down(&set, 0, now);
        assert!(set.lacks_room(), "the other one is at its limit");
        take_down(&set, 1, now);
        assert!(!set.lacks_room() && !set.refuse_for_limit(now), "no peer is up");
    }

    /// The threads wait until the end of the round; the test does not wait for that.
    #[test]
    fn all_threads_wait_for_room_after_the_first_has_failed() {
        let (set, now) = set_at_limits();
        let long = now + SECOND * 600;
        assert!(set.refuse_for_limit(now));
        assert!(!set.wait_for_room(now, long), "the first call fails at once");
        assert!(!set.wait_for_room(now, long), "nobody waits in the pause between two rounds");
        assert!(!set.wait_for_room(now + SECOND, now), "the wait is over");
        thread::scope(|scope| {
            let waiting: Vec<_> =
                (0..3).map(|_| scope.spawn(|| set.wait_for_room(now + SECOND, long))).collect();
            while set.lock().room_wait.waiting < waiting.len() {
                thread::yield_now();
            }
            set.update_counts(0, |counts| counts.links = 0);
            for waiting in waiting {
                assert!(waiting.join().expect("no panic"), "room ends the wait");
            }
        });
    }

    #[test]
    fn rounds_of_waiting_end_at_the_same_moments() {
        let (_, now) = set_at_limits();
        let round = SECOND * 10;
        let end = |millis| round_end(now, round, now + Duration::from_millis(millis));
        assert_eq!(end(0), None);
        assert_eq!(end(99), None);
        assert_eq!(end(100), Some(now + round));
        assert_eq!(end(9_999), Some(now + round));
        assert_eq!(end(10_000), None);
        assert_eq!(end(10_100), Some(now + round * 2));
    }

    #[test]
    fn no_more_links_are_closed_than_a_peer_has_too_many() {
        let (set, now) = set_at_limits();
        set.update_counts(0, |counts| counts.links = 3);
        let over = LinksOverLimit { peer: 0, links: 2, unmarked: 2 };
        assert_eq!(set.links_over_limit(), [over]);
        set.update_counts(0, |counts| counts.marked_for_replacement = 1);
        assert_eq!(set.links_over_limit(), [LinksOverLimit { unmarked: 1, ..over }]);
        let claimed: Vec<bool> = (0..4).map(|_| set.claim_closing_over_limit(0, false)).collect();
        assert_eq!(claimed, [true, true, false, false]);
        assert!(!set.claim_closing_over_limit(1, true), "the other peer has none too many");

        set.update_counts(0, |counts| {
            (counts.links, counts.marked_for_replacement, counts.ended) = (2, 0, 0);
        });
        set.update_counts(1, |counts| counts.links = 0);
        assert!(!set.claim_closing_over_limit(0, false), "another peer has room for a replacement");
        assert!(set.claim_closing_over_limit(0, true));
        set.set_max_connections("peer0", None, now).expect("the peer exists");
        assert_eq!(set.links_over_limit(), []);
    }
}
