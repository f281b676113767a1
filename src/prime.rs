//! Balances a pool whose customizer uses its connections.

use diesel::r2d2::{Pool, R2D2Connection};

use crate::manager::PeerManager;

/// Balances a new pool whose customizer uses its connections, by checking every connection out and in once.
///
/// A pool with a `connection_customizer` that uses the connection in `on_acquire` is not balanced
/// until each of its connections has been checked out once. Until then each connection stays in the
/// slot where r2d2 put it, and r2d2 hands out the slot that was returned last. Call this function once
/// after you have built such a pool. A pool without a customizer does not need it. A pool whose
/// connections are prepared with [`on_connect`](crate::PeerManagerBuilder::on_connect) does not need
/// it either.
pub fn prime<C>(pool: &Pool<PeerManager<C>>)
where
    C: R2D2Connection + Send + 'static,
{
    let all: Vec<_> = std::iter::from_fn(|| pool.try_get()).collect();
    drop(all);
}
