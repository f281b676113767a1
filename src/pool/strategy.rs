//! Chooses the peer that serves a checkout, by the strategy. Randomness is
//! an argument, and a choice allocates nothing. Only peers with a parked link are candidates, so there
//! are never more candidates than idle connections. (`peers/placement.rs` chooses the peer of a new
//! connection.)

use rand::{Rng, RngExt};

use crate::peers::placement::{Candidate, pick_weighted};
use crate::settings::policy::Strategy;

/// A strategy, and the state that it keeps between two choices.
#[derive(Debug)]
pub(crate) struct Chooser {
    strategy: Strategy,
    round_robin: RoundRobin,
    fair_share: FairShare,
}

/// The state of the round robin: the peer that was chosen last, and how many turns it has left.
#[derive(Debug, Default)]
struct RoundRobin {
    last: Option<usize>,
    turns_left: u32,
}

/// The state of the strategies that compare connections in use.
#[derive(Debug)]
struct FairShare {
    /// How many connections less than its share each peer got in earlier choices.
    deficits: Vec<f64>,
    /// The candidates of the current choice. The vector is kept so that a choice allocates nothing.
    candidates: Vec<Candidate>,
}

/// The largest deficit that counts if weights differ: as much as is lost by rounding. With three
/// connections in use, the fair shares of the weights 1, 2 and 3 are 0.5, 1 and 1.5 connections.
const MAX_DEFICIT: f64 = 1.0;

/// The largest deficit that counts if all weights are equal. It counts less than one connection in use,
/// so that it only decides among the peers with the fewest connections in use.
const MAX_DEFICIT_OF_EQUALS: f64 = 0.49;

/// Numbers that differ by less than this are equal, because they are sums of fractions.
const EPSILON: f64 = 1e-9;

impl Chooser {
    /// Creates a chooser without any peers yet.
    pub(crate) fn new(strategy: Strategy) -> Self {
        let fair_share = FairShare { deficits: Vec::new(), candidates: Vec::new() };
        Self { strategy, round_robin: RoundRobin::default(), fair_share }
    }

    /// Sets the number of peers.
    pub(crate) fn set_peer_count(&mut self, peers: usize) {
        let FairShare { deficits, candidates } = &mut self.fair_share;
        deficits.resize(peers, 0.0);
        candidates.reserve(peers);
    }

    /// Chooses a candidate, and returns its index.
    pub(crate) fn choose(
        &mut self,
        candidates: impl Iterator<Item = Candidate> + Clone,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        match self.strategy {
            // A tier that does not serve has no share of the work, so its peers are not candidates.
            Strategy::LeastConnections | Strategy::Ordered => {
                self.fair_share.choose(candidates, rng)
            }
            Strategy::Random => pick_weighted(without_overloaded(candidates), rng),
            Strategy::RoundRobin => self.round_robin.choose(without_overloaded(candidates)),
        }
    }
}

/// Filters out the candidates that have more connections in use than one and a half times their fair
/// share plus one. A strategy that ignores the connections in use would otherwise send one thread after
/// the other to a peer that has stalled, until all threads wait there. At least one candidate is
/// always left.
fn without_overloaded(
    candidates: impl Iterator<Item = Candidate> + Clone,
) -> impl Iterator<Item = Candidate> + Clone {
    let (load, weight) = candidates.clone().fold((1, 0), |(load, weight), candidate| {
        (load + candidate.load as u128, weight + u128::from(candidate.weight))
    });
    candidates.filter(move |candidate| {
        let load_less_one = (candidate.load as u128).saturating_sub(1);
        2 * load_less_one * weight <= 3 * load * u128::from(candidate.weight)
    })
}

impl FairShare {
    /// Chooses the candidate that lacks most of its fair share of the connections in use (the new one
    /// included), with its deficit from earlier choices added. Chooses by chance among equals.
    #[expect(clippy::cast_precision_loss, reason = "no pool has that many connections")]
    fn choose(
        &mut self,
        candidates: impl Iterator<Item = Candidate>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let Self { deficits, candidates: all } = self;
        all.clear();
        all.extend(candidates);
        let first = *all.first()?;
        let load = 1 + all.iter().map(|candidate| candidate.load).sum::<usize>();
        let weight: u64 = all.iter().map(|candidate| u64::from(candidate.weight)).sum();
        let is_even = all.iter().all(|candidate| candidate.weight == first.weight);
        let max_deficit = if is_even { MAX_DEFICIT_OF_EQUALS } else { MAX_DEFICIT };
        let (load, share_per_weight) = (load as f64, 1.0 / weight as f64);

        let (mut most, mut chosen, mut weight_of_equals) = (f64::MIN, first.index, 0);
        for &Candidate { index, load: own_load, weight } in &*all {
            let share = f64::from(weight) * share_per_weight;
            let deficit = deficits[index].clamp(-max_deficit, max_deficit);
            let lack = load * share - own_load as f64 + deficit;
            if lack > most + EPSILON {
                (most, chosen, weight_of_equals) = (lack, index, u64::from(weight));
            } else if lack > most - EPSILON {
                // Each of the equals so far has a chance in proportion to its weight.
                weight_of_equals += u64::from(weight);
                if rng.random_range(0..weight_of_equals) < u64::from(weight) {
                    chosen = index;
                }
            }
        }
        for &Candidate { index, weight, .. } in &*all {
            let given = if index == chosen { 1.0 } else { 0.0 };
            let deficit = deficits[index] + f64::from(weight) * share_per_weight - given;
            deficits[index] = deficit.clamp(-MAX_DEFICIT, MAX_DEFICIT);
        }
        Some(chosen)
    }
}

impl RoundRobin {
    fn choose(&mut self, candidates: impl Iterator<Item = Candidate> + Clone) -> Option<usize> {
        let last = candidates.clone().find(|candidate| Some(candidate.index) == self.last);
        if let Some(last) = last.filter(|_| self.turns_left > 0) {
            self.turns_left -= 1;
            return Some(last.index);
        }
        // The candidates follow each other in the order of their indexes, and the first follows the last.
        // The order continues from the peer that was chosen, so that the turns of a peer that is down do
        // not all go to its neighbor.
        let place = |candidate: &Candidate| {
            (self.last.is_some_and(|last| candidate.index <= last), candidate.index)
        };
        let next = candidates.min_by_key(place)?;
        *self = Self { last: Some(next.index), turns_left: next.weight - 1 };
        Some(next.index)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    /// Returns how often each peer is chosen in this many choices. `peers` are loads and weights.
    fn chosen(strategy: Strategy, peers: &[(usize, u32)], times: usize) -> Vec<usize> {
        let mut chooser = Chooser::new(strategy);
        chooser.set_peer_count(peers.len());
        let mut rng = SmallRng::seed_from_u64(11);
        let mut counts = vec![0; peers.len()];
        for _ in 0..times {
            let candidates = peers.iter().enumerate().filter(|(_, (_, weight))| *weight > 0);
            let candidates = candidates.map(|(index, (load, weight))| Candidate {
                index,
                load: *load,
                weight: *weight,
            });
            let index = chooser.choose(candidates, &mut rng).expect("there are candidates");
            counts[index] += 1;
        }
        counts
    }

    #[test]
    fn least_connections_chooses_the_lowest_load_per_weight_and_by_weight_among_equals() {
        let least = |peers: &[(usize, u32)]| chosen(Strategy::LeastConnections, peers, 600);
        assert_eq!(least(&[(2, 1), (1, 1), (2, 1)]), [0, 600, 0], "the lowest load is chosen");
        assert_eq!(
            least(&[(2, 8), (3, 1)]),
            [600, 0],
            "the load counts in proportion to the weight"
        );
        assert_eq!(
            least(&[(0, 1), (0, 2), (0, 3)]),
            [100, 200, 300],
            "equals are chosen by their weights"
        );
        let two = least(&[(1, 1), (1, 1), (2, 1)]);
        assert!(
            two[0].abs_diff(two[1]) < 20 && two[2] == 0,
            "equal peers are chosen equally often: {two:?}"
        );
    }

    #[test]
    fn random_chooses_in_proportion_to_the_weights() {
        let counts = chosen(Strategy::Random, &[(2, 1), (0, 2), (5, 3)], 6000);
        for (count, fair) in counts.iter().zip([1000, 2000, 3000]) {
            assert!(
                count.abs_diff(fair) < 120,
                "each peer is chosen by its weight, whatever its load: {counts:?}"
            );
        }
    }

    #[test]
    fn peer_with_far_more_than_its_share_in_use_is_skipped() {
        for strategy in [Strategy::Random, Strategy::RoundRobin] {
            let mut chooser = Chooser::new(strategy);
            chooser.set_peer_count(3);
            let mut rng = SmallRng::seed_from_u64(11);
            // Peer 0 never returns a connection. The others return theirs at once.
            let mut stuck = 0;
            for _ in 0..1000 {
                let candidates = [(0, stuck), (1, 1), (2, 1)];
                let candidates =
                    candidates.map(|(index, load)| Candidate { index, load, weight: 1 });
                stuck += usize::from(chooser.choose(candidates.into_iter(), &mut rng) == Some(0));
            }
            assert!(stuck <= 6, "{strategy:?}: {stuck} threads are stuck on the peer");
        }
    }

    #[test]
    fn round_robin_chooses_each_peer_as_often_as_its_weight() {
        assert_eq!(chosen(Strategy::RoundRobin, &[(2, 1), (0, 2), (5, 3)], 600), [100, 200, 300]);
        assert_eq!(
            chosen(Strategy::RoundRobin, &[(0, 1), (0, 0), (0, 1), (0, 1)], 300),
            [100, 0, 100, 100],
            "the turns of a skipped peer do not go to its neighbor"
        );
    }
}
