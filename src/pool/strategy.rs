//! Which peer serves a checkout: one small function for each strategy. Randomness is an argument,
//! nothing is allocated, and only peers with a link to give are looked at, of which there are no
//! more than there are idle connections.

use rand::{Rng, RngExt};

use crate::peers::placement::{Candidate, pick_weighted};
use crate::policy::Strategy;

/// A strategy, and what it remembers between two choices.
#[derive(Debug)]
pub(crate) struct Chooser {
    strategy: Strategy,
    turn: Turn,
    account: Account,
}

/// Whose turn it is: the peer that had the last turn, and how many it has left.
#[derive(Debug, Default)]
struct Turn {
    last: Option<usize>,
    left: u32,
}

/// What each peer was given less than its share in the choices before, in connections.
#[derive(Debug)]
struct Account {
    owed: Vec<f64>,
    /// The candidates of the choice at hand: kept so that a choice allocates nothing.
    candidates: Vec<Candidate>,
}

/// What counts of that where weights differ: as much as rounding takes. At three connections in use
/// the weights 1, 2 and 3 are due 0.5, 1 and 1.5.
const ROUNDING: f64 = 1.0;

/// What counts of it where all weights are equal: less than one connection more in use does, so that
/// it only decides among those that have the fewest.
const TIE: f64 = 0.49;

/// Figures that differ by less than this are equal: they are sums of fractions.
const ALIKE: f64 = 1e-9;

impl Chooser {
    /// A chooser that knows no peers yet.
    pub(crate) fn new(strategy: Strategy) -> Self {
        let account = Account { owed: Vec::new(), candidates: Vec::new() };
        Self { strategy, turn: Turn::default(), account }
    }

    /// There are so many peers, from now on.
    pub(crate) fn learn(&mut self, peers: usize) {
        let Account { owed, candidates } = &mut self.account;
        owed.resize(peers, 0.0);
        candidates.reserve(peers);
    }

    /// The index of the candidate that serves.
    pub(crate) fn choose(
        &mut self,
        candidates: impl Iterator<Item = Candidate> + Clone,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        match self.strategy {
            // A tier that does not serve has no share of the work, and so is no candidate.
            Strategy::LeastConnections | Strategy::Ordered => self.account.next(candidates, rng),
            Strategy::Random => pick_weighted(not_crowded(candidates), rng),
            Strategy::RoundRobin => self.turn.next(not_crowded(candidates)),
        }
    }
}

/// Those that have no more than half as much again as their share of what is in use, and one more. A
/// strategy that does not look at what is in use would give a peer that has stopped one thread after
/// the other, until it has them all. There is always one.
fn not_crowded(
    candidates: impl Iterator<Item = Candidate> + Clone,
) -> impl Iterator<Item = Candidate> + Clone {
    let (load, weight) = candidates.clone().fold((1, 0), |(load, weight), one| {
        (load + one.load as u128, weight + u128::from(one.weight))
    });
    candidates.filter(move |one| {
        2 * (one.load as u128).saturating_sub(1) * weight <= 3 * load * u128::from(one.weight)
    })
}

impl Account {
    /// The one that lacks most of its fair share of the connections in use, this one included, and
    /// of what it was owed before; by chance among equals.
    #[expect(clippy::cast_precision_loss, reason = "so many connections no pool has")]
    fn next(
        &mut self,
        candidates: impl Iterator<Item = Candidate>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let Self { owed, candidates: all } = self;
        all.clear();
        all.extend(candidates);
        let first = *all.first()?;
        let load = 1 + all.iter().map(|one| one.load).sum::<usize>();
        let weight: u64 = all.iter().map(|one| u64::from(one.weight)).sum();
        let is_even = all.iter().all(|one| one.weight == first.weight);
        let most_owed = if is_even { TIE } else { ROUNDING };
        let (load, each) = (load as f64, 1.0 / weight as f64);

        let (mut most, mut chosen, mut equals) = (f64::MIN, first.index, 0);
        for one in &*all {
            let share = f64::from(one.weight) * each;
            let lack =
                load * share - one.load as f64 + owed[one.index].clamp(-most_owed, most_owed);
            if lack > most + ALIKE {
                (most, chosen, equals) = (lack, one.index, u64::from(one.weight));
            } else if lack > most - ALIKE {
                // Among those so far each has its chance by its weight.
                equals += u64::from(one.weight);
                if rng.random_range(0..equals) < u64::from(one.weight) {
                    chosen = one.index;
                }
            }
        }
        for one in &*all {
            let given = if one.index == chosen { 1.0 } else { 0.0 };
            let owed = &mut owed[one.index];
            *owed = (*owed + f64::from(one.weight) * each - given).clamp(-ROUNDING, ROUNDING);
        }
        Some(chosen)
    }
}

impl Turn {
    fn next(&mut self, candidates: impl Iterator<Item = Candidate> + Clone) -> Option<usize> {
        let last = candidates.clone().find(|candidate| Some(candidate.index) == self.last);
        if let Some(last) = last.filter(|_| self.left > 0) {
            self.left -= 1;
            return Some(last.index);
        }
        // The next in order, and after the last one the first. The turn passes to whoever takes
        // it, so that the turns of a peer that is down do not all fall to its neighbor.
        let place = |candidate: &Candidate| {
            (self.last.is_some_and(|last| candidate.index <= last), candidate.index)
        };
        let next = candidates.min_by_key(place)?;
        *self = Self { last: Some(next.index), left: next.weight - 1 };
        Some(next.index)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    /// How often each peer is chosen, of so many times, from peers with these loads and weights.
    fn chosen(strategy: Strategy, given: &[(usize, u32)], times: usize) -> Vec<usize> {
        let mut chooser = Chooser::new(strategy);
        chooser.learn(given.len());
        let mut rng = SmallRng::seed_from_u64(11);
        let mut counts = vec![0; given.len()];
        for _ in 0..times {
            let candidates = given.iter().enumerate().filter(|(_, (_, weight))| *weight > 0);
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
    fn fewest_in_use_for_the_weight_and_by_weight_among_several() {
        let least = |given: &[(usize, u32)]| chosen(Strategy::LeastConnections, given, 600);
        assert_eq!(least(&[(2, 1), (1, 1), (2, 1)]), [0, 600, 0], "the one with the fewest");
        assert_eq!(least(&[(2, 8), (3, 1)]), [600, 0], "for its weight");
        assert_eq!(least(&[(0, 1), (0, 2), (0, 3)]), [100, 200, 300], "several by their weights");
        let two = least(&[(1, 1), (1, 1), (2, 1)]);
        assert!(two[0].abs_diff(two[1]) < 20 && two[2] == 0, "one as often as the other: {two:?}");
    }

    #[test]
    fn by_chance_in_proportion_to_the_weights() {
        let counts = chosen(Strategy::Random, &[(2, 1), (0, 2), (5, 3)], 6000);
        for (count, fair) in counts.iter().zip([1000, 2000, 3000]) {
            assert!(count.abs_diff(fair) < 120, "whatever is in use: {counts:?}");
        }
    }

    #[test]
    fn one_that_has_far_more_than_its_share_in_use_is_passed_over() {
        for strategy in [Strategy::Random, Strategy::RoundRobin] {
            let mut chooser = Chooser::new(strategy);
            chooser.learn(3);
            let mut rng = SmallRng::seed_from_u64(11);
            // Peer 0 never gives one back; the others do at once.
            let mut stuck_logins = 0;
            for _ in 0..1000 {
                let candidates = [(0, stuck_logins), (1, 1), (2, 1)];
                let candidates =
                    candidates.map(|(index, load)| Candidate { index, load, weight: 1 });
                stuck_logins +=
                    usize::from(chooser.choose(candidates.into_iter(), &mut rng) == Some(0));
            }
            assert!(stuck_logins <= 6, "{strategy:?}: {stuck_logins} threads are stuck on it");
        }
    }

    #[test]
    fn in_turn_as_often_as_the_weight_says() {
        assert_eq!(chosen(Strategy::RoundRobin, &[(2, 1), (0, 2), (5, 3)], 600), [100, 200, 300]);
        assert_eq!(
            chosen(Strategy::RoundRobin, &[(0, 1), (0, 0), (0, 1), (0, 1)], 300),
            [100, 0, 100, 100],
            "the turns of a peer that is passed over do not fall to its neighbor"
        );
    }
}
