//! Balancing a pool whose customizer touches its connections.

use diesel::r2d2::{Pool, R2D2Connection};

use crate::manager::PeerManager;

/// Checks every idle connection of a pool out and gives it back.
///
/// A pool with a `connection_customizer` that uses the connection in `on_acquire` is not balanced
/// before each of its connections has been checked out once: until then each stays where r2d2 put
/// it, and r2d2 hands out the one that came back last. Call this once after building such a pool.
/// A pool without a customizer does not need it, nor does one that is prepared with
/// [`on_connect`](crate::PeerManagerBuilder::on_connect) instead.
pub fn prime<C>(pool: &Pool<PeerManager<C>>)
where
    C: R2D2Connection + Send + 'static,
{
    let all: Vec<_> = std::iter::from_fn(|| pool.try_get()).collect();
    drop(all);
}
