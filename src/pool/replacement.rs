//! Replaces links: too old ones, one too many of a peer, those of a peer that is down or out of service, and
//! evicted ones. The pool logs in first, and closes the old link only when the new one is there.
//! If no peer lets us in, what works is kept.

use std::mem;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use diesel::r2d2::R2D2Connection;

use crate::login::dial;
use crate::login::session::Hooks;
use crate::panics::{catch_panic, lock};
use crate::peers::link_guard::LinkGuard;
use crate::peers::peer::Peer;
use crate::pool::connection::PoolState;
use crate::pool::limit;
use crate::pool::link::Link;

/// The name of the thread that closes links. Linux shows the first 15 characters of a thread's name.
const THREAD_NAME: &str = "peers-close";

/// The number of logins that are in progress at the same time, as many as r2d2 makes.
const MAX_LOGINS: usize = 3;

/// The state of the logins that open links in place of others.
#[derive(Debug, Default)]
pub(crate) struct Replacement {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// For each login in progress, when it has taken longer than it should. From then on another one may be
    /// made beside it.
    logins: Vec<Instant>,
    /// Whether the last login succeeded. The first one is made alone, to find out whether anybody lets us
    /// in: when all peers refuse for the same reason, they do not get many more logins to refuse.
    has_succeeded: bool,
    has_failed: bool,
    /// When the next login may begin after a failed one.
    not_before: Option<Instant>,
    /// Since when the pool lacks connections because no peer has room.
    short_since: Option<Instant>,
}

impl State {
    /// Returns how many logins to begin now, if `links` are to be replaced and `pending` new ones are there.
    /// Returns when to ask again as the error.
    fn missing(
        &mut self,
        links: usize,
        pending: usize,
        pause: Duration,
        now: Instant,
    ) -> Result<usize, Instant> {
        if mem::take(&mut self.has_failed) {
            self.not_before = Some(now + pause);
        }
        if let Some(at) = self.not_before.filter(|at| *at > now) {
            return Err(at);
        }
        let in_time = self.logins.iter().filter(|slow_at| **slow_at > now).count();
        let at_once = if self.has_succeeded { MAX_LOGINS } else { 1 };
        let missing = at_once.min(links).saturating_sub(in_time + pending);
        Ok(missing.min(MAX_LOGINS.saturating_sub(self.logins.len())))
    }

    /// Records whether the pool lacks connections, and returns whether it has for this time. A link that has just
    /// been replaced is counted until it is closed.
    fn is_short_for(&mut self, is_short: bool, time: Duration, now: Instant) -> bool {
        self.short_since = is_short.then(|| self.short_since.unwrap_or(now));
        self.short_since.is_some_and(|since| now.saturating_duration_since(since) >= time)
    }

    fn next_slow(&self, now: Instant) -> Option<Instant> {
        self.logins.iter().copied().filter(|slow_at| *slow_at > now).min()
    }
}

/// Begins the logins that are necessary now, after links above the limits of their peers have been marked for
/// replacement. Returns when to call this function again.
pub(crate) fn run<C: R2D2Connection + Send + 'static>(
    pool: &Arc<PoolState<C>>,
    hooks: &Arc<Hooks<C>>,
    now: Instant,
) -> Option<Instant> {
    let next_look = limit::mark_links_over_limit(pool, now);
    [next_look, replace(pool, hooks, now)].into_iter().flatten().min()
}

/// Begins the logins that are necessary now. Returns when to call this function again.
fn replace<C: R2D2Connection + Send + 'static>(
    pool: &Arc<PoolState<C>>,
    hooks: &Arc<Hooks<C>>,
    now: Instant,
) -> Option<Instant> {
    let exchange = pool.updated_exchange();
    close(exchange.offer_spares());
    // What is there already is kept until a connection can be opened again.
    let links = pool.set.links_to_replace()?;
    if links == 0 {
        close(exchange.end_replacements());
        let state = &mut *lock(&pool.replacement.state);
        *state = State { logins: mem::take(&mut state.logins), ..State::default() };
        return None;
    }
    let pause = pool.set.settings().all_down_interval;
    let pending = exchange.pending_replacements();
    let missing = match lock(&pool.replacement.state).missing(links, pending, pause, now) {
        Ok(missing) => missing,
        Err(again_at) => return Some(again_at),
    };
    for _ in 0..missing {
        let Some(peer) = pool.set.pick(|peer| !peer.is_up_and_in_service()) else {
            let has_made_room = pool.set.lacks_room() && limit::make_room(pool);
            let is_short = !has_made_room && pool.set.lacks_connections();
            if lock(&pool.replacement.state).is_short_for(is_short, pause, now) {
                pool.set.refuse_for_limit(now);
            }
            return Some(now + pause);
        };
        if peer.read(Peer::is_full) {
            // All peers that serve are full. No link moves to a tier that does not serve.
            drop(LinkGuard::for_login(peer));
            if pool.set.lacks_room() {
                limit::make_room(pool);
            }
            return Some(now + pause);
        }
        let slow_at = now + peer.hedge_delay();
        {
            let state = &mut *lock(&pool.replacement.state);
            state.logins.push(slow_at);
            state.short_since = None;
        }
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
                let state = &mut *lock(&pool.replacement.state);
                let ended = state.logins.iter().position(|other| *other == slow_at);
                ended.map(|at| state.logins.swap_remove(at));
                (state.has_succeeded, state.has_failed) = (has_succeeded, !has_succeeded);
            }
            pool.set.wake();
            // Closing a connection may hang, and the destructor of a user-defined type is user code.
            let _ = catch_panic(|| drop(to_close));
        });
    }
    lock(&pool.replacement.state).next_slow(now)
}

/// Closes links on a thread of its own, because closing a connection may hang, and the destructor of a
/// user-defined type is user code.
fn close<C: Send + 'static>(links: Vec<Box<Link<C>>>) {
    if links.is_empty() {
        return;
    }
    // If there is no thread, the closure is dropped here, and the links with it.
    let close = move || drop(catch_panic(|| drop(links)));
    let started = catch_panic(|| thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(close));
    drop(started);
}
