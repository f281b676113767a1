//! Which peer the next connection goes to: one pure function.

use rand::Rng;
use rand::seq::IteratorRandom;

use crate::builder::AllDown;
use crate::peer::Peer;

/// Among the peers that are up and were not tried yet, a random one of those with the fewest links
/// (dials in flight counted). When none is left, under [`AllDown::Try`], the peer that is down and
/// due soonest.
pub(crate) fn pick(
    peers: &[Peer],
    tried: impl Fn(usize) -> bool,
    all_down: AllDown,
    rng: &mut impl Rng,
) -> Option<usize> {
    let untried = || peers.iter().enumerate().filter(|(index, _)| !tried(*index));
    let up = || untried().filter(|(_, peer)| peer.is_up());
    if let Some(fewest) = up().map(|(_, peer)| peer.counts.load()).min() {
        return up()
            .filter(|(_, peer)| peer.counts.load() == fewest)
            .map(|(index, _)| index)
            .choose(rng);
    }
    match all_down {
        AllDown::Try => untried().min_by_key(|(_, peer)| peer.next_check).map(|(index, _)| index),
        AllDown::Fail => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::url::PeerUrl;

    enum State {
        Up { links: usize, dialing: usize },
        Down { due_in: u64 },
    }
    use State::{Down, Up};

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of the story")]
    fn peers(states: &[State]) -> Vec<Peer> {
        let now = Instant::now();
        let peer = |(index, state): (usize, &State)| {
            let url = PeerUrl::new(format!("url{index}"));
            let mut peer = Peer::new(format!("peer{index}").into(), url, now, now);
            match *state {
                Up { links, dialing } => {
                    peer.counts.links = links;
                    peer.counts.dialing = dialing;
                }
                Down { due_in } => {
                    let due = now + Duration::from_secs(due_in);
                    peer.connect_failed(now, now, Arc::from("refused"), due);
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
                pick(&peers, |index| tried.contains(&index), all_down, &mut rng)
            })
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, expected, "the peers that 64 seeds pick");
    }

    #[test]
    fn among_the_live_a_random_one_with_the_fewest_links() {
        let idle = || Up { links: 0, dialing: 0 };
        picks(&[idle(), idle(), idle()], &[], AllDown::Try, &[0, 1, 2]);
        picks(&[Up { links: 1, dialing: 0 }, idle(), idle()], &[], AllDown::Try, &[1, 2]);
        picks(&[Up { links: 0, dialing: 1 }, idle()], &[], AllDown::Try, &[1]);
        picks(
            &[Up { links: 1, dialing: 1 }, Up { links: 2, dialing: 0 }],
            &[],
            AllDown::Try,
            &[0, 1],
        );
        picks(&[idle(), Down { due_in: 1 }], &[], AllDown::Try, &[0]);
        picks(&[idle(), Up { links: 9, dialing: 0 }], &[0], AllDown::Try, &[1]);
    }

    #[test]
    fn when_all_are_down_the_one_due_soonest_or_none() {
        let down = || [Down { due_in: 3 }, Down { due_in: 1 }, Down { due_in: 2 }];
        picks(&down(), &[], AllDown::Try, &[1]);
        picks(&down(), &[1], AllDown::Try, &[2]);
        picks(&down(), &[0, 1, 2], AllDown::Try, &[]);
        picks(&down(), &[], AllDown::Fail, &[]);
        picks(&[Up { links: 0, dialing: 0 }, Down { due_in: 1 }], &[0], AllDown::Try, &[1]);
        picks(&[Up { links: 0, dialing: 0 }, Down { due_in: 1 }], &[0], AllDown::Fail, &[]);
    }
}
