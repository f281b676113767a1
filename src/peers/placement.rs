//! Placement of connections: which peers are available, in which proportion they get connections,
//! which peer gets the next connection, and which peer has one too many. Pure functions of the
//! peers.
//!
//! `pool/strategy.rs` chooses the peer of a checkout, among the connections that are open already.

use std::sync::Arc;

use rand::{Rng, RngExt};

use crate::peers::activity::Activity;
use crate::peers::peer::Peer;
use crate::settings::policy::{AllDown, Strategy};

/// The view of a peer that the exchange of links needs: whether its links may be used, and its share.
#[derive(Debug, Clone)]
pub(crate) struct PeerView {
    pub(crate) activity: Arc<Activity>,
    /// Whether the links of the peer may be used.
    pub(crate) is_usable: bool,
    /// The peer's share of the work; 0 while it gets none.
    pub(crate) share: u32,
    /// The tier. When no peer has a share, the lowest tier comes first.
    pub(crate) tier: u32,
}

/// Returns a function for a peer's current share of the work: its weight, or 0 while the peer is
/// down or out of service or a better tier serves.
pub(crate) fn shares(peers: &[Peer], strategy: Strategy) -> impl Fn(&Peer) -> u32 + use<> {
    let serving_tier = serving_tier(peers.iter(), strategy);
    let weight = weights(peers);
    move |peer| if is_available(peer, serving_tier) { weight(peer) } else { 0 }
}

/// Returns a function for a peer's weight in comparison with the other peers: less than its own during its slow
/// start.
fn weights(peers: &[Peer]) -> impl Fn(&Peer) -> u32 + Copy + use<> {
    let is_any_starting = peers.iter().any(|peer| peer.slow_start.is_running());
    move |peer| {
        let step = if is_any_starting { peer.slow_start.step() } else { 1 };
        peer.weight.saturating_mul(step)
    }
}

/// Returns the only tier that gets new work at the moment. `None` if the strategy ignores tiers.
fn serving_tier<'a>(peers: impl Iterator<Item = &'a Peer>, strategy: Strategy) -> Option<u32> {
    match strategy {
        Strategy::Ordered => peers.filter(|peer| peer.is_available()).map(|peer| peer.tier).min(),
        Strategy::LeastConnections | Strategy::Random | Strategy::RoundRobin => None,
    }
}

/// Whether a peer gets new work, within the serving tier if there is one.
fn is_available(peer: &Peer, serving_tier: Option<u32>) -> bool {
    peer.is_available() && serving_tier.is_none_or(|tier| peer.tier == tier)
}

/// Returns how many peers are available for new work.
pub(crate) fn count_available(peers: &[Peer]) -> usize {
    peers.iter().filter(|peer| peer.is_available()).count()
}

/// Picks the peer for the next connection.
///
/// Among the available peers that were not tried yet, this is a random one of those with the lowest
/// load for their weight; logins in progress count. A full peer is picked only when no other is
/// left. When no peer is left at all, [`AllDown::Try`] picks the peer that is down and has the
/// earliest scheduled check. No peer is picked that has reached its limit of connections. A tier whose peers
/// have reached theirs still serves, so no other tier gets the connection.
pub(crate) fn pick(
    peers: &[Peer],
    tried: impl Fn(&Peer) -> bool,
    strategy: Strategy,
    all_down: AllDown,
    rng: &mut impl Rng,
) -> Option<usize> {
    // Whether a peer was tried is a search, so it is asked last.
    let available =
        || peers.iter().enumerate().filter(|(_, peer)| peer.is_available() && !tried(peer));
    let serving_tier = serving_tier(available().map(|(_, peer)| peer), strategy);
    let weight = weights(peers);
    let candidates = |is_full| {
        available()
            .filter(move |(_, peer)| {
                is_available(peer, serving_tier) && has_enough(peer) == is_full
            })
            .filter(|(_, peer)| peer.has_room())
            .map(move |(index, peer)| Candidate {
                index,
                load: load_with_one_more(peer),
                weight: weight(peer),
            })
    };
    if let Some(index) = pick_least_loaded(candidates(false), rng)
        .or_else(|| pick_least_loaded(candidates(true), rng))
    {
        return Some(index);
    }
    // A peer at its limit is up, so peers that are down are left alone.
    if available().next().is_some() {
        return None;
    }
    match all_down {
        AllDown::Try => peers
            .iter()
            .enumerate()
            // Only the checker logs in to a peer with a stuck login.
            .filter(|(_, peer)| peer.is_in_service() && !peer.is_up())
            .filter(|(_, peer)| peer.weight > 0 && peer.counts.stuck_logins == 0)
            .filter(|(_, peer)| peer.has_room() && !tried(peer))
            .min_by_key(|(_, peer)| peer.checks.next)
            .map(|(index, _)| index),
        AllDown::Fail => None,
    }
}

/// Whether limits alone keep the pool from opening a connection: of the peers that serve, each has reached its
/// limit or is full, and at least one has reached its limit.
pub(crate) fn lacks_room(peers: &[Peer], strategy: Strategy) -> bool {
    at_limit(peers, strategy).next().is_some() && {
        let serving_tier = serving_tier(peers.iter(), strategy);
        let mut serving = peers.iter().filter(|peer| is_available(peer, serving_tier));
        serving.all(|peer| !peer.has_room() || peer.is_full())
    }
}

/// Returns the indexes of the peers that serve and have reached their limits.
pub(crate) fn at_limit(peers: &[Peer], strategy: Strategy) -> impl Iterator<Item = usize> {
    let serving_tier = serving_tier(peers.iter(), strategy);
    let indexed = peers.iter().enumerate();
    let at_limit =
        indexed.filter(move |(_, peer)| is_available(peer, serving_tier) && !peer.has_room());
    at_limit.map(|(index, _)| index)
}

/// Whether a peer gets another connection only if no other peer can have it: it is full, or slow. A slow peer
/// has one connection at most, for its trials.
fn has_enough(peer: &Peer) -> bool {
    peer.is_full() || peer.most_links_while_slow().is_some_and(|most| peer.counts.load() >= most)
}

/// Returns the load that the peer would have with one more link. [`pick`] and [`rebalance_from`] compare the same
/// measure; otherwise links would move in circles. A slow peer that has no link for its trials comes first: in a pool
/// with fewer links than peers, it would never be the one that lacks a link most.
fn load_with_one_more(peer: &Peer) -> usize {
    let is_first = peer.most_links_while_slow().is_some_and(|most| most > 0);
    match peer.counts.load() {
        0 if is_first => 0,
        load => load + 1,
    }
}

/// Returns the peer that has one link too many: moving one link from it to the peer that lacks one
/// most makes the two more even. With a smaller difference no link moves, so that links do not
/// oscillate.
pub(crate) fn rebalance_from(peers: &[Peer], strategy: Strategy) -> Option<usize> {
    let share = shares(peers, strategy);
    let lacking = peers
        .iter()
        .filter(|peer| share(peer) > 0 && !has_enough(peer) && peer.has_room())
        .min_by(|one, other| {
            let with_one_more = |peer: &Peer| (load_with_one_more(peer), share(peer));
            ratio_cmp(with_one_more(one), with_one_more(other))
        })
        // Logins in progress to that peer must end first, because the peer may have begun to hang.
        .filter(|peer| peer.counts.connecting == 0)
        .map(|peer| (load_with_one_more(peer), share(peer)))?;
    let (index, fullest) = peers
        .iter()
        .enumerate()
        .filter(|(_, peer)| peer.is_up_and_in_service() && peer.counts.staying() > 0)
        .filter(|(_, peer)| {
            peer.most_links_while_slow().is_none_or(|most| peer.counts.staying() > most)
        })
        .map(|(index, peer)| {
            (index, (peer.counts.staying(), if peer.is_relieved() { 0 } else { share(peer) }))
        })
        .max_by(|(_, one), (_, other)| ratio_cmp(*one, *other))?;
    ratio_cmp(fullest, lacking).is_gt().then_some(index)
}

/// A candidate of a choice, with its load and its weight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) index: usize,
    pub(crate) load: usize,
    pub(crate) weight: u32,
}

/// Returns the candidate with the lowest load for its weight. Among equals, the choice is random,
/// in proportion to the weights.
fn pick_least_loaded(
    candidates: impl Iterator<Item = Candidate> + Clone,
    rng: &mut impl Rng,
) -> Option<usize> {
    let ratio = |candidate: &Candidate| (candidate.load, candidate.weight);
    let least = candidates.clone().min_by(|one, other| ratio_cmp(ratio(one), ratio(other)))?;
    pick_weighted(candidates.filter(move |one| ratio_cmp(ratio(one), ratio(&least)).is_eq()), rng)
}

/// Returns a random candidate, in proportion to the weights.
pub(crate) fn pick_weighted(
    candidates: impl Iterator<Item = Candidate> + Clone,
    rng: &mut impl Rng,
) -> Option<usize> {
    let total: u64 = candidates.clone().map(|one| u64::from(one.weight)).sum();
    if total == 0 {
        return None;
    }
    let mut at = rng.random_range(0..total);
    for Candidate { index, weight, .. } in candidates {
        if at < u64::from(weight) {
            return Some(index);
        }
        at -= u64::from(weight);
    }
    None
}

/// Compares `load / weight`. A weight of 0 counts as infinitely loaded.
fn ratio_cmp(one: (usize, u32), other: (usize, u32)) -> std::cmp::Ordering {
    let cross = |load: usize, weight: u32| load as u128 * u128::from(weight);
    cross(one.0, other.1).cmp(&cross(other.0, one.1))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::fault::{Fault, LoginFailure};
    use crate::peers::peer::{Attempt, Slow};
    use crate::settings::CheckTimes;
    use crate::url::PeerUrl;

    enum State {
        Up { links: usize, connecting: usize },
        Full { links: usize },
        Down { check_in: u64 },
    }
    use State::{Down, Full, Up};

    fn next_check_at(time: Instant) -> CheckTimes {
        CheckTimes { regular: time, all_down: time }
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn peers(states: &[State]) -> Vec<Peer> {
        let now = Instant::now();
        let peer = |(index, state): (usize, &State)| {
            let url = PeerUrl::new(format!("url{index}"));
            let mut peer = Peer::new(format!("peer{index}").into(), url, 1, 0, now);
            match *state {
                Up { links, connecting } => {
                    peer.counts.links = links;
                    peer.counts.connecting = connecting;
                }
                Full { links } => {
                    peer.counts.links = links;
                    peer.health.full = Some("full".into());
                }
                Down { check_in } => {
                    let next_check = now + Duration::from_secs(check_in);
                    let failure = LoginFailure::refused(Fault::PeerDown, "refused");
                    peer.connect_failed(Attempt::at(now), failure, next_check_at(next_check));
                }
            }
            peer
        };
        states.iter().enumerate().map(peer).collect()
    }

    #[track_caller]
    fn assert_picks(states: &[State], tried: &[usize], all_down: AllDown, expected: &[usize]) {
        let peers = peers(states);
        let mut seen: Vec<usize> = (0..64)
            .filter_map(|seed| {
                let mut rng = SmallRng::seed_from_u64(seed);
                pick(
                    &peers,
                    |peer| tried.iter().any(|index| *peer.name == format!("peer{index}")),
                    Strategy::LeastConnections,
                    all_down,
                    &mut rng,
                )
            })
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, expected, "the set of peers picked with 64 seeds");
    }

    #[test]
    fn random_peer_among_the_least_loaded_is_picked() {
        let idle = || Up { links: 0, connecting: 0 };
        assert_picks(&[idle(), idle(), idle()], &[], AllDown::Try, &[0, 1, 2]);
        assert_picks(&[Up { links: 1, connecting: 0 }, idle(), idle()], &[], AllDown::Try, &[1, 2]);
        assert_picks(&[Up { links: 0, connecting: 1 }, idle()], &[], AllDown::Try, &[1]);
        assert_picks(
            &[Up { links: 1, connecting: 1 }, Up { links: 2, connecting: 0 }],
            &[],
            AllDown::Try,
            &[0, 1],
        );
        assert_picks(&[idle(), Down { check_in: 1 }], &[], AllDown::Try, &[0]);
        assert_picks(&[idle(), Up { links: 9, connecting: 0 }], &[0], AllDown::Try, &[1]);
        let full = || Full { links: 0 };
        assert_picks(&[full(), Up { links: 9, connecting: 0 }], &[], AllDown::Try, &[1]);
        assert_picks(&[full(), full(), Down { check_in: 1 }], &[], AllDown::Try, &[0, 1]);
        assert_picks(&[full(), Up { links: 9, connecting: 0 }], &[1], AllDown::Fail, &[0]);
    }

    #[test]
    fn no_link_moves_to_a_full_peer() {
        let crowded = || Up { links: 6, connecting: 0 };
        let idle = Up { links: 0, connecting: 0 };
        assert_eq!(rebalance_from(&peers(&[crowded(), idle]), Strategy::Random), Some(0));
        let full = Full { links: 0 };
        assert_eq!(rebalance_from(&peers(&[crowded(), full]), Strategy::Random), None);
    }

    #[test]
    fn drained_peer_is_never_picked_nor_rebalanced() {
        let mut rng = SmallRng::seed_from_u64(5);
        let mut peers =
            peers(&[Down { check_in: 1 }, Up { links: 9, connecting: 0 }, Down { check_in: 2 }]);
        for peer in &mut peers[..2] {
            peer.admin_state.drain(peer.checks.next);
        }
        for (all_down, expected) in [(AllDown::Try, Some(2)), (AllDown::Fail, None)] {
            let picked = pick(&peers, |_| false, Strategy::Random, all_down, &mut rng);
            assert_eq!(
                picked, expected,
                "{all_down:?}: a drained peer must not be picked, up or down"
            );
        }
        assert_eq!(count_available(&peers), 0);
        assert_eq!(
            rebalance_from(&peers, Strategy::Random),
            None,
            "links of a drained peer must not be moved"
        );
    }

    /// A peer with this limit.
    fn limited(mut peer: Peer, max_connections: u32) -> Peer {
        peer.max_connections = Some(max_connections);
        peer
    }

    #[test]
    fn peer_at_its_limit_is_not_picked_and_lacks_nothing() {
        let crowded = || Up { links: 6, connecting: 0 };
        // The states of the peers, each with its limit; the peer that is picked; and whether only the limits keep a
        // connection from being opened.
        for (case, states, expected, lacks) in [
            ("a link", vec![(Up { links: 1, connecting: 0 }, 1), (crowded(), 7)], vec![1], false),
            ("a login", vec![(Up { links: 0, connecting: 1 }, 1), (crowded(), 7)], vec![1], false),
            ("all", vec![(Up { links: 0, connecting: 1 }, 1), (crowded(), 6)], vec![], true),
            ("above", vec![(crowded(), 2)], vec![], true),
            ("the other is down", vec![(Down { check_in: 1 }, 9), (crowded(), 6)], vec![], true),
            ("a full one", vec![(Full { links: 1 }, 9), (crowded(), 6)], vec![0], true),
            ("only a full one", vec![(Full { links: 1 }, 9)], vec![0], false),
            ("down", vec![(Down { check_in: 1 }, 1), (Down { check_in: 2 }, 1)], vec![0], false),
        ] {
            let (states, limits): (Vec<State>, Vec<u32>) = states.into_iter().unzip();
            let peers: Vec<Peer> = peers(&states)
                .into_iter()
                .zip(limits)
                .map(|(peer, max)| limited(peer, max))
                .collect();
            let (mut rng, random) = (SmallRng::seed_from_u64(5), Strategy::Random);
            let picked = pick(&peers, |_| false, random, AllDown::Try, &mut rng);
            assert_eq!(Vec::from_iter(picked), expected, "{case}");
            assert_eq!(lacks_room(&peers, random), lacks, "{case}");
        }
        let mut down: Vec<Peer> = peers(&[Down { check_in: 1 }, Down { check_in: 2 }]);
        for peer in &mut down {
            (peer.counts.connecting, peer.max_connections) = (2, Some(2));
        }
        let mut rng = SmallRng::seed_from_u64(5);
        let picked = |peers: &[Peer], rng: &mut SmallRng| {
            pick(peers, |_| false, Strategy::Random, AllDown::Try, rng)
        };
        assert_eq!(picked(&down, &mut rng), None, "logins to peers that are down count");
        (down[1].counts.links, down[1].counts.ended, down[1].counts.marked_for_replacement) =
            (2, 2, 2);
        down[1].counts.connecting = 1;
        assert_eq!(picked(&down, &mut rng), Some(1), "links without a session do not count");
        (down[1].counts.stuck_logins, down[1].counts.waiting_logins) = (1, 1);
        assert!(down[1].has_room(), "a check that was left to wait does not count");
        down[1].counts.waiting_logins = 0;
        assert!(!down[1].has_room(), "an aborted login counts until it has ended");

        let idle = Up { links: 0, connecting: 0 };
        let mut peers = peers(&[crowded(), idle, Up { links: 1, connecting: 0 }]);
        peers[1].max_connections = Some(1);
        assert_eq!(rebalance_from(&peers, Strategy::Random), Some(0));
        peers[1].counts.links = 1;
        peers[2].max_connections = Some(1);
        assert_eq!(rebalance_from(&peers, Strategy::Random), None, "no peer lacks a link");
    }

    /// Peers that are up, each given by its number of links, weight and tier.
    fn up(given: &[(usize, u32, u32)]) -> Vec<Peer> {
        let states: Vec<_> =
            given.iter().map(|(links, ..)| Up { links: *links, connecting: 0 }).collect();
        let mut peers = peers(&states);
        for (peer, (_, weight, tier)) in peers.iter_mut().zip(given) {
            (peer.weight, peer.tier) = (*weight, *tier);
        }
        peers
    }

    #[test]
    fn links_are_placed_in_proportion_to_the_weights() {
        let mut peers = up(&[(0, 1, 0), (0, 2, 0), (0, 3, 0), (0, 0, 0)]);
        let mut rng = SmallRng::seed_from_u64(5);
        for _ in 0..12 {
            let all_down = AllDown::Try;
            let picked = pick(&peers, |_| false, Strategy::LeastConnections, all_down, &mut rng);
            peers[picked.expect("three peers are available")].counts.links += 1;
        }
        let links: Vec<_> = peers.iter().map(|peer| peer.counts.links).collect();
        assert_eq!(links, [2, 4, 6, 0], "twelve links over the weights 1, 2, 3 and 0");
    }

    #[test]
    fn tier_at_its_limits_serves() {
        let mut peers = up(&[(2, 1, 0), (0, 1, 1)]);
        let mut rng = SmallRng::seed_from_u64(5);
        peers[0].max_connections = Some(2);
        let picked = pick(&peers, |_| false, Strategy::Ordered, AllDown::Try, &mut rng);
        assert_eq!(picked, None, "the next tier does not get the connection");
        assert!(lacks_room(&peers, Strategy::Ordered));
        assert!(!lacks_room(&peers, Strategy::Random), "without tiers the other peer has room");
    }

    #[test]
    fn lowest_tier_with_an_available_peer_serves() {
        let mut peers = up(&[(9, 1, 1), (0, 1, 2), (5, 1, 1)]);
        let mut rng = SmallRng::seed_from_u64(5);
        let mut picked = |peers: &[Peer], tried: &[usize]| {
            let tried =
                |peer: &Peer| tried.iter().any(|index| *peer.name == format!("peer{index}"));
            pick(peers, tried, Strategy::Ordered, AllDown::Try, &mut rng)
        };
        assert_eq!(
            picked(&peers, &[]),
            Some(2),
            "the least loaded peer of the lowest tier is picked first"
        );
        assert_eq!(picked(&peers, &[2]), Some(0), "the other peer of that tier is picked next");
        assert_eq!(
            picked(&peers, &[0, 2]),
            Some(1),
            "the next tier follows when the lowest one has been tried"
        );
        let shares_of = |peers: &[Peer]| -> Vec<u32> {
            let share = shares(peers, Strategy::Ordered);
            peers.iter().map(share).collect()
        };
        assert_eq!(shares_of(&peers), [1, 0, 1], "only the lowest tier has a share");
        for index in [0, 2] {
            let now = peers[index].checks.next;
            let failure = LoginFailure::refused(Fault::PeerDown, "refused");
            peers[index].connect_failed(Attempt::at(now), failure, next_check_at(now));
        }
        assert_eq!(
            shares_of(&peers),
            [0, 1, 0],
            "the next tier has a share when the lowest one is down"
        );
    }

    #[test]
    fn pool_is_rebalanced_when_moving_a_link_makes_peers_more_even() {
        let cases = [
            (vec![(3, 1, 0), (3, 1, 0), (3, 1, 0)], None),
            (vec![(4, 1, 0), (4, 1, 0), (3, 1, 0)], None),
            (vec![(5, 1, 0), (4, 1, 0), (3, 1, 0)], Some(0)),
            (vec![(0, 1, 0), (3, 1, 0)], Some(1)),
            (vec![(2, 1, 0), (4, 2, 0), (6, 3, 0)], None),
            (vec![(4, 1, 0), (4, 2, 0), (4, 3, 0)], Some(0)),
            // A peer without weight should have no links.
            (vec![(1, 0, 0), (9, 1, 0)], Some(0)),
            (vec![(9, 0, 0)], None),
        ];
        for (states, expected) in cases {
            assert_eq!(
                rebalance_from(&up(&states), Strategy::LeastConnections),
                expected,
                "{states:?}"
            );
        }
        let tiers = [(1, 1, 1), (2, 1, 2)];
        assert_eq!(
            rebalance_from(&up(&tiers), Strategy::Ordered),
            Some(1),
            "a tier that does not serve should have no links"
        );
    }

    /// Each link of a drained peer is closed at its checkin anyway.
    #[test]
    fn links_of_a_drained_peer_are_not_moved() {
        let mut peers = up(&[(2, 1, 0), (4, 1, 0), (2, 1, 0)]);
        let strategy = Strategy::LeastConnections;
        assert_eq!(
            rebalance_from(&peers, strategy),
            Some(1),
            "the peer with the most links has one too many"
        );
        let now = peers[1].checks.next;
        peers[1].admin_state.drain(now);
        assert_eq!(rebalance_from(&peers, strategy), None, "no link moves from a drained peer");
    }

    #[test]
    fn slow_peer_keeps_one_link() {
        let slow = |peers: &mut [Peer], index: usize| {
            let (since, time) = (peers[index].checks.next, Duration::ZERO);
            peers[index].slow =
                Some(Slow { since, time, others: time, is_relieved: true, links: 1 });
        };
        let strategy = Strategy::LeastConnections;
        for (links, from, picked) in [
            ([3, 3, 3], Some(1), [0, 2].as_slice()),
            ([4, 2, 3], Some(1), &[2]),
            ([4, 1, 4], None, &[0, 2]),
            ([4, 0, 5], Some(2), &[1]),
            ([0, 1, 0], None, &[0, 2]),
            // Fewer links than peers.
            ([1, 0, 1], Some(2), &[1]),
            ([0, 0, 1], Some(2), &[1]),
        ] {
            let mut peers = up(&links.map(|links| (links, 1, 0)));
            slow(&mut peers, 1);
            assert_eq!(rebalance_from(&peers, strategy), from, "{links:?}");
            for seed in 0..16 {
                let mut rng = SmallRng::seed_from_u64(seed);
                let index = pick(&peers, |_| false, strategy, AllDown::Try, &mut rng);
                assert!(index.is_some_and(|index| picked.contains(&index)), "{links:?}: {index:?}");
            }
        }
        let mut alone = up(&[(2, 1, 0)]);
        slow(&mut alone, 0);
        let mut rng = SmallRng::seed_from_u64(5);
        let picked = pick(&alone, |_| false, strategy, AllDown::Try, &mut rng);
        assert_eq!(picked, Some(0), "when no other peer is left, a slow one gets more");
        assert_eq!(rebalance_from(&alone, strategy), None, "and keeps them");
    }

    #[test]
    fn rebalancing_terminates() {
        for seed in 0..200 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let most_links = if seed % 2 == 0 { 20 } else { 3 };
            let states: Vec<_> = (0..rng.random_range(1..6))
                .map(|_| (rng.random_range(0..most_links), rng.random_range(0..4), 0))
                .collect();
            let mut peers = up(&states);
            if seed % 4 < 2 {
                let (since, time) = (peers[0].checks.next, Duration::ZERO);
                let links = rng.random_range(0..3);
                let slow = Slow { since, time, others: time, is_relieved: true, links };
                peers[0].slow = Some(slow);
            }
            let mut moves = 0;
            while let Some(from) = rebalance_from(&peers, Strategy::LeastConnections) {
                peers[from].counts.links -= 1;
                let to =
                    pick(&peers, |_| false, Strategy::LeastConnections, AllDown::Try, &mut rng);
                peers[to.expect("some peer is available")].counts.links += 1;
                moves += 1;
                assert!(moves <= 100, "seed {seed}: links oscillate between peers: {states:?}");
            }
        }
    }

    #[test]
    fn with_all_peers_down_the_earliest_scheduled_peer_or_none_is_picked() {
        let down = || [Down { check_in: 3 }, Down { check_in: 1 }, Down { check_in: 2 }];
        assert_picks(&down(), &[], AllDown::Try, &[1]);
        assert_picks(&down(), &[1], AllDown::Try, &[2]);
        assert_picks(&down(), &[0, 1, 2], AllDown::Try, &[]);
        assert_picks(&down(), &[], AllDown::Fail, &[]);
        assert_picks(
            &[Up { links: 0, connecting: 0 }, Down { check_in: 1 }],
            &[0],
            AllDown::Try,
            &[1],
        );
        assert_picks(
            &[Up { links: 0, connecting: 0 }, Down { check_in: 1 }],
            &[0],
            AllDown::Fail,
            &[],
        );
    }
}
