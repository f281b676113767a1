//! Which peers take work, in which proportion, and so where the next connection goes and which one
//! is too many: pure functions of the peers.

use std::sync::Arc;

use rand::{Rng, RngExt};

use crate::peers::activity::Activity;
use crate::peers::peer::Peer;
use crate::policy::{AllDown, Strategy};

/// How a peer stands, as far as its links are concerned.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    /// The peer's: another peer may have taken the place of one that is gone.
    pub(crate) activity: Arc<Activity>,
    /// Whether its links may be used.
    pub(crate) usable: bool,
    /// Its share of the work.
    pub(crate) share: u32,
    /// Which it is when none has a share: the lowest first.
    pub(crate) tier: u32,
}

/// The proportion of the work that each peer is to have now: its weight, or nothing while it is
/// down or a better tier serves.
pub(crate) fn shares(peers: &[Peer], strategy: Strategy) -> impl Fn(&Peer) -> u32 + use<> {
    let serving = serving_tier(peers.iter(), strategy);
    move |peer| if takes_work(peer, serving) { peer.weight } else { 0 }
}

/// The only tier that takes work at the moment, if tiers matter.
fn serving_tier<'a>(peers: impl Iterator<Item = &'a Peer>, strategy: Strategy) -> Option<u32> {
    match strategy {
        Strategy::Ordered => {
            peers.filter(|peer| takes_work(peer, None)).map(|peer| peer.tier).min()
        }
        Strategy::LeastConnections | Strategy::Random | Strategy::RoundRobin => None,
    }
}

fn takes_work(peer: &Peer, serving: Option<u32>) -> bool {
    peer.serves() && peer.weight > 0 && serving.is_none_or(|tier| peer.tier == tier)
}

/// Whether no peer takes work at all.
pub(crate) fn nobody_takes_work(peers: &[Peer]) -> bool {
    !peers.iter().any(|peer| takes_work(peer, None))
}

/// How many peers would take work.
#[cfg(feature = "metrics")]
pub(crate) fn how_many_take_work(peers: &[Peer]) -> usize {
    peers.iter().filter(|peer| takes_work(peer, None)).count()
}

/// Where the next connection goes: among the peers that take work and were not tried yet, a random
/// one of those with the fewest links for their share (dials in flight counted); one that is full only
/// when no other is left. When none is left at all, under [`AllDown::Try`], the peer that is down and
/// due soonest.
pub(crate) fn pick(
    peers: &[Peer],
    tried: impl Fn(&Peer) -> bool,
    strategy: Strategy,
    all_down: AllDown,
    rng: &mut impl Rng,
) -> Option<usize> {
    let untried = || peers.iter().enumerate().filter(|(_, peer)| !tried(peer));
    let serving = serving_tier(untried().map(|(_, peer)| peer), strategy);
    let candidates = |is_full| {
        untried()
            .filter(move |(_, peer)| takes_work(peer, serving) && peer.is_full == is_full)
            // What it would have then: the same measure as in `surplus`, or links would go in circles.
            .map(|(index, peer)| Candidate {
                index,
                load: peer.counts.load() + 1,
                weight: peer.weight,
            })
    };
    if let Some(index) = least(candidates(false), rng).or_else(|| least(candidates(true), rng)) {
        return Some(index);
    }
    match all_down {
        AllDown::Try => untried()
            // One that keeps a login hanging is the checker's to try.
            .filter(|(_, peer)| peer.is_in_service() && !peer.is_up())
            .filter(|(_, peer)| peer.weight > 0 && peer.counts.stuck_logins == 0)
            .min_by_key(|(_, peer)| peer.next_check)
            .map(|(index, _)| index),
        AllDown::Fail => None,
    }
}

/// The peer that has a link too many: taking one from it and giving one to the peer that lacks it
/// most leaves the two more even than they were. With less of a difference nothing moves, so that
/// nothing oscillates.
pub(crate) fn surplus(peers: &[Peer], strategy: Strategy) -> Option<usize> {
    let share = shares(peers, strategy);
    let lacking = peers
        .iter()
        .filter(|peer| share(peer) > 0 && !peer.is_full)
        .min_by(|one, other| {
            let with_one_more = |peer: &Peer| (peer.counts.load() + 1, share(peer));
            ratio_cmp(with_one_more(one), with_one_more(other))
        })
        // What is on its way to it arrives first: a peer may have begun to hang.
        .filter(|peer| peer.counts.connecting == 0)
        .map(|peer| (peer.counts.load() + 1, share(peer)))?;
    let (index, fullest) = peers
        .iter()
        .enumerate()
        .filter(|(_, peer)| peer.serves() && peer.counts.links > 0)
        .map(|(index, peer)| (index, (peer.counts.links, share(peer))))
        .max_by(|(_, one), (_, other)| ratio_cmp(*one, *other))?;
    ratio_cmp(fullest, lacking).is_gt().then_some(index)
}

/// Something to choose from: what it has already, and the share that it should have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) index: usize,
    pub(crate) load: usize,
    pub(crate) weight: u32,
}

/// The one that has the least for its weight; by chance, in proportion to the weights, among
/// several.
fn least(candidates: impl Iterator<Item = Candidate> + Clone, rng: &mut impl Rng) -> Option<usize> {
    let ratio = |candidate: &Candidate| (candidate.load, candidate.weight);
    let least = candidates.clone().min_by(|one, other| ratio_cmp(ratio(one), ratio(other)))?;
    by_chance(candidates.filter(move |one| ratio_cmp(ratio(one), ratio(&least)).is_eq()), rng)
}

/// One by chance, in proportion to the weights.
pub(crate) fn by_chance(
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

/// Compares `count / weight`; anything over no weight at all is more than everything else.
fn ratio_cmp(one: (usize, u32), other: (usize, u32)) -> std::cmp::Ordering {
    let cross = |count: usize, weight: u32| count as u128 * u128::from(weight);
    cross(one.0, other.1).cmp(&cross(other.0, one.1))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::fault::{Fault, Refusal};
    use crate::peers::peer::Answer;
    use crate::settings::Due;
    use crate::url::PeerUrl;

    enum State {
        Up { links: usize, connecting: usize },
        Full { links: usize },
        Down { due_in: u64 },
    }
    use State::{Down, Full, Up};

    fn at(due: Instant) -> Due {
        Due { next: due, soon: due }
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of the story")]
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
                    peer.is_full = true;
                }
                Down { due_in } => {
                    let due = now + Duration::from_secs(due_in);
                    let refused = Refusal::new(Fault::PeerDown, "refused");
                    peer.connect_failed((now, now), Answer::Refused(refused), at(due));
                }
            }
            peer
        };
        states.iter().enumerate().map(peer).collect()
    }

    #[track_caller]
    fn picks(states: &[State], tried: &[usize], all_down: AllDown, expected: &[usize]) {
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
        assert_eq!(seen, expected, "the peers that 64 seeds pick");
    }

    #[test]
    fn among_the_live_a_random_one_with_the_fewest_links() {
        let idle = || Up { links: 0, connecting: 0 };
        picks(&[idle(), idle(), idle()], &[], AllDown::Try, &[0, 1, 2]);
        picks(&[Up { links: 1, connecting: 0 }, idle(), idle()], &[], AllDown::Try, &[1, 2]);
        picks(&[Up { links: 0, connecting: 1 }, idle()], &[], AllDown::Try, &[1]);
        picks(
            &[Up { links: 1, connecting: 1 }, Up { links: 2, connecting: 0 }],
            &[],
            AllDown::Try,
            &[0, 1],
        );
        picks(&[idle(), Down { due_in: 1 }], &[], AllDown::Try, &[0]);
        picks(&[idle(), Up { links: 9, connecting: 0 }], &[0], AllDown::Try, &[1]);
        let full = || Full { links: 0 };
        picks(&[full(), Up { links: 9, connecting: 0 }], &[], AllDown::Try, &[1]);
        picks(&[full(), full(), Down { due_in: 1 }], &[], AllDown::Try, &[0, 1]);
        picks(&[full(), Up { links: 9, connecting: 0 }], &[1], AllDown::Fail, &[0]);
    }

    #[test]
    fn nothing_moves_to_a_peer_that_is_full() {
        let crowded = || Up { links: 6, connecting: 0 };
        let idle = Up { links: 0, connecting: 0 };
        assert_eq!(surplus(&peers(&[crowded(), idle]), Strategy::Random), Some(0));
        let full = Full { links: 0 };
        assert_eq!(surplus(&peers(&[crowded(), full]), Strategy::Random), None);
    }

    #[test]
    fn an_operator_s_word_counts_whatever_there_is_else() {
        let mut rng = SmallRng::seed_from_u64(5);
        let mut peers =
            peers(&[Down { due_in: 1 }, Up { links: 9, connecting: 0 }, Down { due_in: 2 }]);
        for peer in &mut peers[..2] {
            peer.drain(false, peer.next_check);
        }
        for (all_down, expected) in [(AllDown::Try, Some(2)), (AllDown::Fail, None)] {
            let picked = pick(&peers, |_| false, Strategy::Random, all_down, &mut rng);
            assert_eq!(picked, expected, "{all_down:?}: no one that is drained, up or down");
        }
        assert!(nobody_takes_work(&peers));
        assert_eq!(surplus(&peers, Strategy::Random), None, "what is drained is not moved");
    }

    /// Peers that are up, each with so many links, this weight and this tier.
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
    fn in_proportion_to_the_weights() {
        let mut peers = up(&[(0, 1, 0), (0, 2, 0), (0, 3, 0), (0, 0, 0)]);
        let mut rng = SmallRng::seed_from_u64(5);
        for _ in 0..12 {
            let all_down = AllDown::Try;
            let picked = pick(&peers, |_| false, Strategy::LeastConnections, all_down, &mut rng);
            peers[picked.expect("three take work")].counts.links += 1;
        }
        let links: Vec<_> = peers.iter().map(|peer| peer.counts.links).collect();
        assert_eq!(links, [2, 4, 6, 0], "twelve links over the weights 1, 2, 3 and 0");
    }

    #[test]
    fn the_first_tier_that_lives_serves() {
        let mut peers = up(&[(9, 1, 1), (0, 1, 2), (5, 1, 1)]);
        let mut rng = SmallRng::seed_from_u64(5);
        let mut picked = |peers: &[Peer], tried: &[usize]| {
            let tried =
                |peer: &Peer| tried.iter().any(|index| *peer.name == format!("peer{index}"));
            pick(peers, tried, Strategy::Ordered, AllDown::Try, &mut rng)
        };
        assert_eq!(picked(&peers, &[]), Some(2), "of the first tier, the one with fewer links");
        assert_eq!(picked(&peers, &[2]), Some(0), "then the other one of that tier");
        assert_eq!(picked(&peers, &[0, 2]), Some(1), "then the next tier");
        let served = |peers: &[Peer]| -> Vec<u32> {
            let share = shares(peers, Strategy::Ordered);
            peers.iter().map(share).collect()
        };
        assert_eq!(served(&peers), [1, 0, 1], "only the first tier has a share");
        for index in [0, 2] {
            let now = peers[index].next_check;
            let refused = Refusal::new(Fault::PeerDown, "refused");
            peers[index].connect_failed((now, now), Answer::Refused(refused), at(now));
        }
        assert_eq!(served(&peers), [0, 1, 0], "until none of it lives");
    }

    #[test]
    fn a_link_is_too_many_when_moving_it_makes_things_more_even() {
        let cases = [
            (vec![(3, 1, 0), (3, 1, 0), (3, 1, 0)], None),
            (vec![(4, 1, 0), (4, 1, 0), (3, 1, 0)], None),
            (vec![(5, 1, 0), (4, 1, 0), (3, 1, 0)], Some(0)),
            (vec![(0, 1, 0), (3, 1, 0)], Some(1)),
            (vec![(2, 1, 0), (4, 2, 0), (6, 3, 0)], None),
            (vec![(4, 1, 0), (4, 2, 0), (4, 3, 0)], Some(0)),
            // No weight, no links.
            (vec![(1, 0, 0), (9, 1, 0)], Some(0)),
            (vec![(9, 0, 0)], None),
        ];
        for (states, expected) in cases {
            assert_eq!(surplus(&up(&states), Strategy::LeastConnections), expected, "{states:?}");
        }
        let tiers = [(1, 1, 1), (2, 1, 2)];
        assert_eq!(
            surplus(&up(&tiers), Strategy::Ordered),
            Some(1),
            "a tier that waits needs none"
        );
    }

    /// They end by themselves, as they come back.
    #[test]
    fn links_to_a_peer_that_is_drained_are_not_moved() {
        let mut peers = up(&[(2, 1, 0), (4, 1, 0), (2, 1, 0)]);
        let strategy = Strategy::LeastConnections;
        assert_eq!(surplus(&peers, strategy), Some(1), "it has too many");
        let now = peers[1].next_check;
        peers[1].drain(false, now);
        assert_eq!(surplus(&peers, strategy), None, "none is to be made up for");
    }

    #[test]
    fn moving_what_is_too_many_ends() {
        for seed in 0..200 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let states: Vec<_> = (0..rng.random_range(1..6))
                .map(|_| (rng.random_range(0..20), rng.random_range(0..4), 0))
                .collect();
            let mut peers = up(&states);
            let mut moves = 0;
            while let Some(from) = surplus(&peers, Strategy::LeastConnections) {
                peers[from].counts.links -= 1;
                let to =
                    pick(&peers, |_| false, Strategy::LeastConnections, AllDown::Try, &mut rng);
                peers[to.expect("some peer takes work")].counts.links += 1;
                moves += 1;
                assert!(moves <= 100, "seed {seed}: it oscillates: {states:?}");
            }
        }
    }

    #[test]
    fn when_all_are_down_the_one_due_soonest_or_none() {
        let down = || [Down { due_in: 3 }, Down { due_in: 1 }, Down { due_in: 2 }];
        picks(&down(), &[], AllDown::Try, &[1]);
        picks(&down(), &[1], AllDown::Try, &[2]);
        picks(&down(), &[0, 1, 2], AllDown::Try, &[]);
        picks(&down(), &[], AllDown::Fail, &[]);
        picks(&[Up { links: 0, connecting: 0 }, Down { due_in: 1 }], &[0], AllDown::Try, &[1]);
        picks(&[Up { links: 0, connecting: 0 }, Down { due_in: 1 }], &[0], AllDown::Fail, &[]);
    }
}
