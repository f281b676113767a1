//! Chooses the peer that serves a checkout, by the strategy. Randomness is an argument, and a choice
//! allocates nothing. Only peers with a parked link are candidates, so there are never more candidates
//! than idle connections. (`peers/placement.rs` chooses the peer of a new connection.)

use rand::{Rng, RngExt};

use crate::peers::placement::{Candidate, pick_weighted};
use crate::settings::policy::Strategy;

/// A strategy, and the state that it keeps between two choices.
#[derive(Debug)]
pub(crate) struct Chooser {
    strategy: Strategy,
    fair_share: FairShare,
}

/// The state of the strategies that make up for earlier choices.
#[derive(Debug)]
struct FairShare {
    /// How many choices less than its share each peer got, by at most one more or less. A choice changes
    /// the deficits of its candidates only, so a peer that was absent returns with the deficit that it had.
    deficits: Vec<f64>,
    /// The candidates of the current choice. The vector is kept so that a choice allocates nothing.
    candidates: Vec<Candidate>,
}

/// The largest deficit. If weights differ, as much is lost by rounding: with three connections in use, the
/// fair shares of the weights 1, 2 and 3 are 0.5, 1 and 1.5 connections.
const MAX_DEFICIT: f64 = 1.0;

/// The largest deficit that `LeastConnections` counts if all weights are equal. It counts less than one
/// connection in use, so that it only decides among the peers with the fewest connections in use.
const MAX_DEFICIT_OF_EQUALS: f64 = 0.49;

/// Numbers that differ by less than this are equal, because they are sums of fractions.
const EPSILON: f64 = 1e-9;

impl Chooser {
    /// Creates a chooser without any peers yet.
    pub(crate) fn new(strategy: Strategy) -> Self {
        let fair_share = FairShare { deficits: Vec::new(), candidates: Vec::new() };
        Self { strategy, fair_share }
    }

    /// Sets the number of peers.
    pub(crate) fn set_peer_count(&mut self, peers: usize) {
        let FairShare { deficits, candidates } = &mut self.fair_share;
        deficits.resize(peers, 0.0);
        candidates.reserve(peers);
    }

    /// Chooses a candidate, and returns its index. `load_misleads` is whether some candidate has few
    /// connections in use because its queries fail fast. Then the turns are counted instead, so that it
    /// gets no more than its share.
    pub(crate) fn choose(
        &mut self,
        candidates: impl Iterator<Item = Candidate> + Clone,
        load_misleads: bool,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        match self.strategy {
            Strategy::LeastConnections | Strategy::Ordered if load_misleads => {
                self.fair_share.choose(without_overloaded(candidates), FairShare::next_in_turn)
            }
            // A tier that does not serve has no share of the work, so its peers are not candidates.
            Strategy::LeastConnections | Strategy::Ordered => {
                self.fair_share.choose(candidates, |fair| fair.least_connections(rng))
            }
            Strategy::RoundRobin => {
                self.fair_share.choose(without_overloaded(candidates), FairShare::next_in_turn)
            }
            Strategy::Random => pick_weighted(without_overloaded(candidates), rng),
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
    /// Chooses a candidate by `choose_one`, and updates the deficits.
    fn choose(
        &mut self,
        candidates: impl Iterator<Item = Candidate>,
        choose_one: impl FnOnce(&Self) -> Option<usize>,
    ) -> Option<usize> {
        self.candidates.clear();
        self.candidates.extend(candidates);
        let chosen = choose_one(self)?;
        let share_per_weight = self.share_per_weight();
        for &Candidate { index, weight, .. } in &self.candidates {
            let given = if index == chosen { 1.0 } else { 0.0 };
            let deficit = self.deficits[index] + f64::from(weight) * share_per_weight - given;
            self.deficits[index] = deficit.clamp(-MAX_DEFICIT, MAX_DEFICIT);
        }
        Some(chosen)
    }

    /// Returns the share of a candidate of weight 1 in one choice.
    #[expect(clippy::cast_precision_loss, reason = "no sum of weights is that large")]
    fn share_per_weight(&self) -> f64 {
        let weight: u64 = self.candidates.iter().map(|one| u64::from(one.weight)).sum();
        1.0 / weight as f64
    }

    /// Returns the candidate that lacks most of its fair share of the connections in use (the new one
    /// included), with its deficit from earlier choices added. Chooses by chance among equals.
    #[expect(clippy::cast_precision_loss, reason = "no pool has that many connections")]
    fn least_connections(&self, rng: &mut impl Rng) -> Option<usize> {
        let all = &self.candidates;
        let first = *all.first()?;
        let load = 1 + all.iter().map(|candidate| candidate.load).sum::<usize>();
        let is_even = all.iter().all(|candidate| candidate.weight == first.weight);
        let max_deficit = if is_even { MAX_DEFICIT_OF_EQUALS } else { MAX_DEFICIT };
        let (load, share_per_weight) = (load as f64, self.share_per_weight());

        let (mut most, mut chosen, mut weight_of_equals) = (f64::MIN, first.index, 0);
        for &Candidate { index, load: own_load, weight } in all {
            let share = f64::from(weight) * share_per_weight;
            let deficit = self.deficits[index].clamp(-max_deficit, max_deficit);
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
        Some(chosen)
    }

    /// Returns the candidate that lacks most of its share of the choices, this one included; of equals,
    /// the first one by index. This is the smooth weighted round robin of nginx: the turns of the peers
    /// are interleaved.
    fn next_in_turn(&self) -> Option<usize> {
        let share_per_weight = self.share_per_weight();
        let mut next: Option<(f64, usize)> = None;
        for &Candidate { index, weight, .. } in &self.candidates {
            let lack = self.deficits[index] + f64::from(weight) * share_per_weight;
            let is_next = next.is_none_or(|(most, first)| {
                lack > most + EPSILON || lack > most - EPSILON && index < first
            });
            if is_next {
                next = Some((lack, index));
            }
        }
        next.map(|(_, index)| index)
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
            let index = chooser.choose(candidates, false, &mut rng).expect("there are candidates");
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
    fn peer_whose_queries_fail_fast_gets_its_share_by_turns() {
        for strategy in [Strategy::LeastConnections, Strategy::Ordered] {
            let mut chooser = Chooser::new(strategy);
            chooser.set_peer_count(3);
            let mut rng = SmallRng::seed_from_u64(11);
            let mut counts = [0; 3];
            for _ in 0..400 {
                // Peer 0 has never a connection in use.
                let candidates = [(0, 0, 1), (1, 2, 1), (2, 2, 2)];
                let candidates =
                    candidates.map(|(index, load, weight)| Candidate { index, load, weight });
                let chosen = chooser.choose(candidates.into_iter(), true, &mut rng);
                counts[chosen.expect("there are candidates")] += 1;
            }
            assert_eq!(
                counts,
                [100, 100, 200],
                "{strategy:?}: the shares of the weights 1, 1 and 2"
            );
        }
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
                stuck +=
                    usize::from(chooser.choose(candidates.into_iter(), false, &mut rng) == Some(0));
            }
            assert!(stuck <= 6, "{strategy:?}: {stuck} threads are stuck on the peer");
        }
    }

    /// Chooses once for each list of candidates, given by their indexes and weights, and returns the
    /// chosen indexes.
    fn round_robin<'a>(choices: impl IntoIterator<Item = &'a [(usize, u32)]>) -> Vec<usize> {
        let mut chooser = Chooser::new(Strategy::RoundRobin);
        chooser.set_peer_count(4);
        let mut rng = SmallRng::seed_from_u64(11);
        let choose = |candidates: &[(usize, u32)]| {
            let candidates = candidates.iter();
            let candidates =
                candidates.map(|&(index, weight)| Candidate { index, load: 0, weight });
            chooser.choose(candidates, false, &mut rng).expect("there are candidates")
        };
        choices.into_iter().map(choose).collect()
    }

    #[test]
    fn round_robin_interleaves_the_turns_of_the_peers() {
        let sequence = |peers: &[(usize, u32)], times| round_robin(vec![peers; times]);
        assert_eq!(
            sequence(&[(0, 5), (1, 1), (2, 1)], 14),
            [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0],
            "the sequence that nginx documents"
        );
        for weight in [1, 100, u32::MAX] {
            let peers = [(0, weight), (1, weight), (2, weight)];
            assert_eq!(sequence(&peers, 7), [0, 1, 2, 0, 1, 2, 0], "equal weights of {weight}");
        }
        assert_eq!(
            sequence(&[(2, 1), (0, 2), (1, 3)], 12),
            [1, 0, 1, 2, 0, 1, 1, 0, 1, 2, 0, 1],
            "the order of the candidates does not matter"
        );
    }

    #[test]
    fn round_robin_gives_no_burst_to_a_peer_that_returns() {
        let (all, two) = ([(0, 1), (1, 1), (2, 1)], [(0, 1), (2, 1)]);
        let choices = [&all[..]; 4].into_iter().chain([&two[..]; 6]).chain([&all[..]; 6]);
        assert_eq!(
            round_robin(choices),
            [0, 1, 2, 0, 2, 0, 2, 0, 2, 0, 1, 2, 0, 1, 2, 0],
            "equal weights"
        );
        let (all, two) = ([(0, 5), (1, 1), (2, 1)], [(1, 1), (2, 1)]);
        let choices = [&all[..]; 3].into_iter().chain([&two[..]; 100]).chain([&all[..]; 14]);
        assert_eq!(
            round_robin(choices)[103..],
            [0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 1],
            "the peer with most of the weight was absent"
        );
        let choices = [&all[..]; 3].into_iter().chain([&all[..1]; 100]).chain([&all[..]; 8]);
        assert_eq!(round_robin(choices)[103..], [0, 2, 0, 0, 0, 0, 1, 0], "two peers were absent");
    }

    #[test]
    fn round_robin_gives_no_burst_after_weights_change() {
        let (before, after) = ([(0, 1_000_000), (1, 1), (2, 999_999)], [(0, 1), (1, 1), (2, 1)]);
        let choices = [&before[..]; 2].into_iter().chain([&after[..]; 9]);
        assert_eq!(
            round_robin(choices),
            [0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2],
            "weights of a million become 1"
        );
        let choices = [&after[..]; 2].into_iter().chain([&before[..]; 6]);
        assert_eq!(round_robin(choices), [0, 1, 2, 0, 2, 0, 2, 0], "weights of 1 become a million");
        let (with, without) = ([(0, 2), (1, 1), (2, 1)], [(1, 1), (2, 1)]);
        let choices = [&with[..]; 3].into_iter().chain([&without[..]; 4]).chain([&with[..]; 8]);
        assert_eq!(
            round_robin(choices),
            [0, 1, 2, 1, 2, 1, 2, 0, 0, 1, 2, 0, 0, 1, 2],
            "the weight of a peer is 0 for a while"
        );
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
