//! Moves the pool away from peers that are down: logs in to another peer first, and closes a link to the
//! peer that is down only when the new one is there. If no peer lets us in, what works is kept.

use std::mem;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use diesel::r2d2::R2D2Connection;

use crate::login::dial;
use crate::login::session::Hooks;
use crate::panics::{catch_panic, lock};
use crate::peers::peer::Peer;
use crate::pool::connection::PoolState;
use crate::pool::link::Link;

/// The number of logins that are in progress at the same time, as many as r2d2 makes.
const MAX_LOGINS: usize = 3;

/// The state of the logins that open links in place of those to peers that are down.
#[derive(Debug, Default)]
pub(crate) struct Relocation {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    logins: usize,
    /// Whether the last login succeeded. The first one is made alone, to find out whether anybody lets us
    /// in: when all peers refuse for the same reason, they do not get many more logins to refuse.
    has_succeeded: bool,
    has_failed: bool,
    /// When the next login may begin after a failed one.
    not_before: Option<Instant>,
}

/// Begins the logins that are necessary now. Returns when to call this function again.
pub(crate) fn run<C: R2D2Connection + Send + 'static>(
    pool: &Arc<PoolState<C>>,
    hooks: &Arc<Hooks<C>>,
    now: Instant,
) -> Option<Instant> {
    let exchange = pool.updated_exchange();
    let unneeded = exchange.offer_spares();
    let _ = catch_panic(|| drop(unneeded));
    let links = pool.set.links_to_relocate();
    if links == 0 {
        let spares = exchange.end_replacements();
        let _ = catch_panic(|| drop(spares));
        let state = &mut *lock(&pool.relocation.state);
        *state = State { logins: state.logins, ..State::default() };
        return None;
    }
    let missing = {
        let state = &mut *lock(&pool.relocation.state);
        if mem::take(&mut state.has_failed) {
            state.not_before = Some(now + pool.set.settings().all_down_interval);
        }
        if let Some(at) = state.not_before.filter(|at| *at > now) {
            return Some(at);
        }
        let at_once = if state.has_succeeded { MAX_LOGINS } else { 1 };
        at_once.min(links).saturating_sub(state.logins + exchange.pending_replacements())
    };
    for _ in 0..missing {
        let cannot_take = |peer: &Peer| !peer.is_up_and_in_service() || peer.is_full();
        let Some(peer) = pool.set.pick(cannot_take) else {
            return Some(now + pool.set.settings().all_down_interval);
        };
        lock(&pool.relocation.state).logins += 1;
        let weak = Arc::downgrade(pool);
        dial::open(peer, now, hooks.clone(), move |result| {
            // Without the pool, the connection is closed here.
            let Some(pool) = weak.upgrade() else { return };
            let has_succeeded = result.is_ok();
            let mut to_close = Vec::new();
            if let Ok(opened) = result {
                let link = Box::new(Link::new(opened));
                to_close.extend(pool.updated_exchange().offer(link));
                if pool.set.is_closed() {
                    to_close.extend(pool.exchange.end_replacements());
                }
            }
            {
                let state = &mut *lock(&pool.relocation.state);
                state.logins -= 1;
                (state.has_succeeded, state.has_failed) = (has_succeeded, !has_succeeded);
            }
            pool.set.wake();
            // Closing a connection may hang, and the destructor of a user-defined type is user code.
            let _ = catch_panic(|| drop(to_close));
        });
    }
    None
}
