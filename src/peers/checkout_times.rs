//! The query times of a peer's checkouts: a small random sample of those that have ended since the last look, and
//! another one of those that have failed. Each checkout adds its own without a lock, and the checker takes them all.
//!
//! The *query time* of a checkout is the time that it spends in its queries. Whichever queries it makes, its
//! peer was chosen before, so checkouts of different peers can be compared. Single queries cannot: a worker
//! that keeps its connection makes any number of them on one peer.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::peers::link_state::AtomicInstant;

/// The number of query times that are kept between two looks. The checker looks twenty times a second, and
/// judges a peer by eight and more.
const SLOTS: usize = 16;

/// The query times of the checkouts that have ended since the last look. Nothing else depends on when a value
/// becomes visible, so relaxed ordering is enough. A checkout that is added during a look counts at this look or
/// the next.
#[derive(Debug, Default)]
pub(crate) struct CheckoutTimes {
    succeeded: Reservoir,
    /// Apart, because failures may be so many that no other checkout would be kept.
    failed: Reservoir,
}

/// A sample of checkouts that have all succeeded or all failed.
#[derive(Debug, Default)]
struct Reservoir {
    /// The number of checkouts since the last look.
    ended: AtomicUsize,
    slots: [Slot; SLOTS],
}

/// A checkout that has ended. Two threads that write the same slot may mix two checkouts, which does no harm.
#[derive(Debug, Default)]
struct Slot {
    /// When its first query began. Unset in an empty slot.
    began: AtomicInstant,
    query_micros: AtomicU32,
}

/// A checkout that has made a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checkout {
    /// When its first query began.
    pub(crate) began: Instant,
    /// The time that it has spent in queries, in whole microseconds. 32 bits hold more than an hour.
    pub(crate) query_micros: u32,
    /// Whether a query has failed, or the connection is lost. How long it took says nothing then: a peer that fails
    /// fast would make the others seem slow.
    pub(crate) has_failed: bool,
}

impl Checkout {
    pub(crate) fn query_time(&self) -> Duration {
        Duration::from_micros(self.query_micros.into())
    }
}

impl CheckoutTimes {
    /// Adds a checkout that has ended.
    pub(crate) fn add(&self, checkout: Checkout) {
        let reservoir = if checkout.has_failed { &self.failed } else { &self.succeeded };
        reservoir.add(checkout);
    }

    /// Takes the checkouts that were kept, first those that have succeeded.
    pub(crate) fn take(&self) -> Vec<Checkout> {
        let mut checkouts = self.succeeded.take(false);
        checkouts.append(&mut self.failed.take(true));
        checkouts
    }
}

impl Reservoir {
    /// Adds a checkout. If there are more than [`SLOTS`], each has the same chance to be kept (reservoir sampling).
    fn add(&self, checkout: Checkout) {
        let before = self.ended.fetch_add(1, Ordering::Relaxed);
        let slot = if before < SLOTS { before } else { scrambled(before) % (before + 1) };
        if let Some(slot) = self.slots.get(slot) {
            slot.query_micros.store(checkout.query_micros, Ordering::Relaxed);
            slot.began.set(checkout.began);
        }
    }

    fn take(&self, has_failed: bool) -> Vec<Checkout> {
        if self.ended.swap(0, Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        let take = |slot: &Slot| {
            let began = slot.began.get()?;
            slot.began.clear();
            let query_micros = slot.query_micros.load(Ordering::Relaxed);
            Some(Checkout { began, query_micros, has_failed })
        };
        self.slots.iter().filter_map(take).collect()
    }
}

/// Returns a duration in whole microseconds.
pub(crate) fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// Scrambles a number, so that consecutive numbers seem random (the finalizer of `SplitMix64`).
fn scrambled(number: usize) -> usize {
    let mut z = (number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    usize::try_from((z ^ (z >> 31)) >> 32).unwrap_or(usize::MAX)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
mod tests {
    use super::*;

    fn checkouts(query_micros: impl IntoIterator<Item = u32>) -> Vec<Checkout> {
        // After the origin of the stored instants, which is that of their first use.
        let began = Instant::now() + Duration::from_secs(1);
        let checkout = |query_micros| Checkout { began, query_micros, has_failed: false };
        query_micros.into_iter().map(checkout).collect()
    }

    #[test]
    fn few_checkouts_are_all_kept_and_taken_once() {
        let times = CheckoutTimes::default();
        let added = checkouts([0, 7, u32::MAX]);
        for checkout in &added {
            times.add(*checkout);
        }
        assert_eq!(times.take(), added);
        assert_eq!(times.take(), []);
    }

    #[test]
    fn of_many_checkouts_a_random_sample_is_kept() {
        let times = CheckoutTimes::default();
        for checkout in checkouts(0..100_000) {
            times.add(checkout);
            times.add(Checkout { has_failed: true, ..checkout });
        }
        let (failed, kept): (Vec<_>, Vec<_>) =
            times.take().into_iter().partition(|checkout| checkout.has_failed);
        assert_eq!(failed.len(), SLOTS, "failures take no place of the others");
        assert_eq!(kept.len(), SLOTS);
        let early = kept.iter().filter(|checkout| checkout.query_micros < 50_000).count();
        assert!((3..14).contains(&early), "early and late ones are kept alike: {kept:?}");
    }
}
