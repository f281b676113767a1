//! Keeps the links of each peer within its limit (`max_connections`). A login is only begun where there is room
//! (`peers/placement.rs`). Here links above a limit that was lowered are marked for replacement, and links are
//! closed before their replacements are opened, where limits leave no room to open them first.

use std::time::{Duration, Instant};

use crate::events::CloseReason;
use crate::peers::set::LinksOverLimit;
use crate::pool::connection::PoolState;

/// The interval at which links above a limit are looked for, while there are any in use.
const INTERVAL: Duration = Duration::from_millis(100);

/// Marks the idle links above the limits of their peers for replacement. Returns when to look again.
pub(super) fn mark_links_over_limit<C>(pool: &PoolState<C>, now: Instant) -> Option<Instant> {
    let over = pool.set.links_over_limit();
    for LinksOverLimit { peer, unmarked, .. } in &over {
        pool.exchange.mark_for_replacement(*peer, *unmarked, CloseReason::OverLimit);
    }
    (!over.is_empty()).then(|| now + INTERVAL)
}

/// Ends sessions for which no replacement can be opened before, because no peer has room: those above a limit,
/// otherwise that of one marked link that is opened again. Returns whether there were any.
pub(super) fn make_room<C>(pool: &PoolState<C>) -> bool {
    let over = pool.set.links_over_limit();
    let ended = over.iter().map(|over| pool.exchange.shut_down_marked(over.peer, over.links));
    if ended.sum::<usize>() > 0 {
        return true;
    }
    // The login that follows may fail. So it is one link at a time.
    let to_reopen = pool.set.peers_to_reopen_links();
    if to_reopen.iter().any(|peer| pool.exchange.shut_down_marked(*peer, 1) > 0) {
        pool.set.wake();
        return true;
    }
    !to_reopen.is_empty() && pool.exchange.close_one_with_slot()
}
