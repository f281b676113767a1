//! The retry budget of a pool: how many transactions may be run again, in proportion to those that are run.
//! Retries of a set of peers that is overloaded would add to its load.

use std::sync::Mutex;
use std::time::Instant;

use crate::panics::lock;

/// One retry, in the unit of the balance.
const RETRY: u64 = 1_000_000;

/// What a transaction pays in: for 20 retries in 100 transactions. It is the default of Envoy and of Linkerd.
const PER_TRANSACTION: u64 = RETRY / 5;

/// What is paid in each microsecond: for 10 retries a second, which a pool with little work may need. It is the
/// default of Linkerd.
const PER_MICROSECOND: u64 = RETRY * 10 / 1_000_000;

/// The largest balance.
const LARGEST_BALANCE: u64 = RetryBudget::MAX as u64 * RETRY;

/// The retry budget of a pool: a balance that grows with time and with each transaction.
#[derive(Debug)]
pub(crate) struct RetryBudget(Mutex<Balance>);

#[derive(Debug)]
struct Balance {
    amount: u64,
    updated_at: Option<Instant>,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self(Mutex::new(Balance { amount: LARGEST_BALANCE, updated_at: None }))
    }
}

impl RetryBudget {
    /// The largest number of retries that are allowed at once: those of ten seconds without any transaction. All
    /// workers of a large pool may lose their transactions at the same moment.
    pub(crate) const MAX: usize = 100;

    /// Records that a transaction is run for the first time.
    pub(crate) fn deposit(&self) {
        let balance = &mut *lock(&self.0);
        balance.amount = (balance.amount + PER_TRANSACTION).min(LARGEST_BALANCE);
    }

    /// Returns how many retries are allowed at the moment.
    pub(crate) fn available(&self, now: Instant) -> usize {
        let balance = &mut *lock(&self.0);
        balance.grow(now);
        usize::try_from(balance.amount / RETRY).unwrap_or(usize::MAX)
    }

    /// Takes one retry out of the budget, and returns whether there was one.
    pub(crate) fn withdraw(&self, now: Instant) -> bool {
        let balance = &mut *lock(&self.0);
        balance.grow(now);
        let is_allowed = balance.amount >= RETRY;
        if is_allowed {
            balance.amount -= RETRY;
        }
        is_allowed
    }
}

impl Balance {
    /// Adds what was paid in since the last time.
    fn grow(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.updated_at.unwrap_or(now));
        self.updated_at = Some(now);
        let elapsed = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let grown = self.amount.saturating_add(elapsed.saturating_mul(PER_MICROSECOND));
        self.amount = grown.min(LARGEST_BALANCE);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn budget_allows_a_share_of_the_transactions_and_some_a_second() {
        let (budget, start) = (RetryBudget::default(), Instant::now());
        let allowed = |now, tries| (0..tries).filter(|_| budget.withdraw(now)).count();
        assert_eq!(allowed(start, 200), 100, "a burst");
        (0..50).for_each(|_| budget.deposit());
        assert_eq!(allowed(start, 200), 10, "a fifth of the transactions");
        assert_eq!(allowed(start + Duration::from_secs(2), 200), 20, "ten a second");
        assert_eq!(allowed(start + Duration::from_secs(3600), 200), 100, "no more than a burst");
        assert_eq!(allowed(start, 200), 0, "a clock that goes back adds nothing");
    }
}
