//! The connection that r2d2 hands out.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use diesel::r2d2::{Error, R2D2Connection};

use crate::events::CloseReason;
use crate::login::dial;
use crate::login::session::Hooks;
use crate::panics::catch_panic;
use crate::peers::set::PeerSet;
use crate::pool::exchange::{Exchange, Parkable, Reservation, ToClose};
use crate::pool::link::Link;
use crate::pool::replacement::Replacement;
use crate::pool::validation::{self, Validation, discarded_error};
use crate::settings::policy::Balance;

/// A pooled connection, to one peer during each checkout.
///
/// A `PeerConnection` dereferences to the diesel connection `C`. It implements the diesel traits that
/// a pooled connection of diesel's own manager implements. So code written for
/// `&mut MysqlConnection`, for `impl Connection<Backend = Mysql>` or for `&mut PooledConnection<_>`
/// accepts it unchanged.
///
/// PostgreSQL's `COPY` is the exception, because diesel ties `COPY` to the type of its own manager:
/// `COPY FROM` needs `&mut *conn`, which is this type, and `COPY TO` needs the connection itself,
/// `&mut **conn`.
///
/// During a checkout, a `PeerConnection` is one connection to one peer. Between two checkouts the
/// pool's slots exchange their connections, so the next checkout may get another connection.
pub struct PeerConnection<C> {
    pub(crate) pool: Arc<PoolState<C>>,
    /// The link that this slot holds. If the slot is empty, the exchange has a link for it.
    held: OnceCell<Box<Link<C>>>,
    /// The reservation of a new link, until the slot is dereferenced or checked out for the first time.
    reservation: Cell<Option<Reservation>>,
    /// Whether the checkout has failed, so that r2d2 drops the slot next.
    has_failed: bool,
}

/// What r2d2 has to do with a slot that was checked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum AfterCheckIn {
    KeepSlot,
    /// Closes the slot together with the link that it holds. r2d2 opens another connection for it only if it has
    /// fewer than `min_idle`, and wakes no thread that waits. So a link that is not lost is replaced instead, unless
    /// limits leave no room for that, or the pool's customizer has to see each new link.
    CloseSlot,
}

/// The state that the slots of one pool share.
pub(crate) struct PoolState<C> {
    pub(crate) set: Arc<PeerSet>,
    pub(crate) exchange: Exchange<Box<Link<C>>>,
    pub(crate) replacement: Replacement,
    pub(crate) hooks: Arc<Hooks<C>>,
}

impl<C> PoolState<C> {
    fn balance(&self) -> Balance {
        self.set.settings().balance
    }

    /// Returns the exchange, after an update with the current views of the peers.
    pub(crate) fn updated_exchange(&self) -> &Exchange<Box<Link<C>>> {
        self.exchange.update_peers(self.set.epoch(), || self.set.peer_views());
        &self.exchange
    }
}

impl<C> PeerConnection<C> {
    /// Creates a slot of the pool for a new link. If checkouts are balanced, the link goes to the
    /// exchange, reserved for the slot, so that the pool is balanced before each of its slots has been
    /// checked out.
    pub(crate) fn new(pool: Arc<PoolState<C>>, link: Box<Link<C>>) -> Self {
        match pool.balance() {
            Balance::PerCheckout => {
                let reservation = pool.updated_exchange().add_slot(link, thread::current().id());
                Self {
                    pool,
                    held: OnceCell::new(),
                    reservation: Cell::new(Some(reservation)),
                    has_failed: false,
                }
            }
            Balance::PerConnection => Self {
                pool,
                held: OnceCell::from(link),
                reservation: Cell::new(None),
                has_failed: false,
            },
        }
    }

    /// Returns the name of the peer that this connection leads to.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.link().guard.peer.name
    }

    pub(crate) fn link(&self) -> &Link<C> {
        self.held.get_or_init(|| {
            let link =
                self.pool.updated_exchange().take(self.reservation.take(), thread::current().id());
            // This counts a checkout in a pool that does not test connections on checkout. A use by the
            // pool's customizer does not count.
            if link.guard.is_in_use() {
                link.guard.count_checkout();
            }
            link
        })
    }

    pub(crate) fn link_mut(&mut self) -> &mut Link<C> {
        self.link();
        self.held.get_mut().expect("`link` has just taken one")
    }
}

impl<C: R2D2Connection + 'static> PeerConnection<C> {
    /// Attaches the link that the strategy chooses, and validates it. A dead link is exchanged for
    /// another one in the same call.
    pub(crate) fn check_out(&mut self, clock: impl Fn() -> Instant) -> Result<(), Error> {
        let mut validation = Validation::begin(&self.pool.set, clock);
        let outcome = if self.keeps_its_link() {
            self.check_out_own_link(&mut validation)
        } else {
            self.check_out_balanced(&mut validation)
        };
        if outcome.is_ok() {
            self.link().guard.count_checkout();
        } else {
            validation.record_failure(&self.pool.set);
            self.has_failed = true;
        }
        outcome
    }

    fn check_out_balanced(
        &mut self,
        validation: &mut Validation<impl Fn() -> Instant>,
    ) -> Result<(), Error> {
        let exchange = self.pool.updated_exchange();
        let now = validation.began;
        let Some(link) = exchange.check_out(self.held.take(), self.reservation.take(), now) else {
            return Err(discarded_error(if self.pool.set.lacks_room() {
                "no live connection is idle, and every peer that is up has reached max_connections"
            } else {
                "no live connection is idle"
            }));
        };
        self.held = OnceCell::from(link);
        self.validate_or_swap(validation)
    }

    /// Validates the link that the slot holds. A dead link is exchanged for another one.
    fn validate_or_swap(
        &mut self,
        validation: &mut Validation<impl Fn() -> Instant>,
    ) -> Result<(), Error> {
        while let Err(error) = validation.validate(self.link_mut()) {
            self.swap_dead(validation.began).map_err(|()| error)?;
        }
        Ok(())
    }

    /// Exchanges the dead link that the slot holds for a live one, if one is parked.
    fn swap_dead(&mut self, now: Instant) -> Result<(), ()> {
        let mut dead = self.held.take().ok_or(())?;
        dead.guard.set_close_reason(CloseReason::Broken);
        let (link, outcome) = match self.pool.updated_exchange().swap_dead(dead, now) {
            Ok(live) => (live, Ok(())),
            Err(dead) => (dead, Err(())),
        };
        self.held = OnceCell::from(link);
        outcome
    }

    /// Checks in the slot. Returns what r2d2 has to do with it.
    pub(crate) fn check_in(&mut self, now: Instant) -> AfterCheckIn {
        let balance = self.pool.balance();
        if let Some(link) = self.held.get_mut() {
            let closes_first = balance == Balance::PerConnection;
            if let Some(decision) = decide_by_link(link, closes_first, now) {
                return decision;
            }
            if link.is_too_old(now) {
                link.guard.mark_for_replacement(CloseReason::TooOld);
            }
        }
        match balance {
            Balance::PerCheckout => self.check_in_balanced(now),
            Balance::PerConnection => self.check_in_own_link(now),
        }
    }

    /// Gives the link of the slot, if it holds one, to the exchange, and closes what the exchange returns.
    fn check_in_balanced(&mut self, now: Instant) -> AfterCheckIn {
        let set = &self.pool.set;
        let claim_rebalance =
            |is_parked: &dyn Fn(usize) -> bool| set.claim_rebalance(is_parked, now);
        let exchange = self.pool.updated_exchange();
        match exchange.check_in(self.held.take(), self.reservation.take(), claim_rebalance) {
            ToClose::Nothing => AfterCheckIn::KeepSlot,
            ToClose::Replaced(link) => {
                // The link is closed here, outside the exchange's lock. Its destructor is user code.
                let _ = catch_panic(|| drop(link));
                // Another link may be replaced now that this one has come back.
                self.pool.set.wake();
                AfterCheckIn::KeepSlot
            }
            ToClose::WithSlot(link) => {
                self.held = OnceCell::from(link);
                AfterCheckIn::CloseSlot
            }
        }
    }

    /// Keeps the link in the slot, unless it must not be used again, or has to make room for another one.
    fn check_in_own_link(&mut self, now: Instant) -> AfterCheckIn {
        let guard = &mut self.link_mut().guard;
        guard.set_in_use(false);
        let is_own = |peer| peer == guard.peer.index;
        if guard.peer.set.claim_rebalance(is_own, now).is_some() {
            guard.mark_for_replacement(CloseReason::Rebalanced);
        }
        let is_to_be_replaced =
            guard.is_marked_for_replacement() || guard.peer.activity.must_replace_links();
        if guard.peer.must_close_links()
            || is_to_be_replaced && self.pool.exchange.take_pending_closing()
        {
            AfterCheckIn::CloseSlot
        } else {
            AfterCheckIn::KeepSlot
        }
    }

    /// Changes to a link of another peer in the middle of a checkout, because this one is lost or its peer takes
    /// no work. If no live link is parked, this thread logs in to a peer: no other slot is taken, for which this
    /// thread might wait forever. With peers to `avoid`, by their ids, this logs in to another one.
    pub(crate) fn change_link(
        &mut self,
        avoid: &[u64],
        clock: impl Fn() -> Instant,
    ) -> Result<(), String>
    where
        C: Send,
    {
        let mut validation = Validation::begin(&self.pool.set, clock);
        if self.pool.balance() == Balance::PerCheckout && avoid.is_empty() {
            let is_parked = if self.link_mut().is_broken() {
                self.swap_dead(validation.began)
                    .is_ok_and(|()| self.validate_or_swap(&mut validation).is_ok())
            } else {
                self.link_mut().set_idle(validation.began);
                self.check_out_balanced(&mut validation).is_ok()
            };
            if is_parked {
                self.link().state().record.reset();
                return Ok(());
            }
        }
        // The lost session takes no room on its peer.
        if let Some(link) = self.held.get_mut().filter(|link| link.state().is_lost()) {
            link.shut_down();
        }
        let opened = if avoid.is_empty() {
            dial::connect(&self.pool.set, &self.pool.hooks)
        } else {
            dial::dial_peers(&self.pool.set, &self.pool.hooks, avoid)
        };
        let mut new = Box::new(Link::new(opened?));
        new.guard.set_in_use(true);
        let old = match self.held.take() {
            Some(mut old) => {
                old.guard.set_close_reason(CloseReason::Broken);
                Some(old)
            }
            // The slot is empty, so the exchange has a link for it.
            None => self.pool.exchange.drop_slot(self.reservation.take()),
        };
        self.held = OnceCell::from(new);
        let _ = catch_panic(|| drop(old));
        Ok(())
    }

    /// Whether this slot always keeps its own link. That is so if the manager balances connections
    /// and not checkouts, or if the link holds a test transaction.
    fn keeps_its_link(&mut self) -> bool {
        self.pool.balance() == Balance::PerConnection
            || self.held.get_mut().is_some_and(|link| link.holds_test_transaction())
    }

    fn check_out_own_link(
        &mut self,
        validation: &mut Validation<impl Fn() -> Instant>,
    ) -> Result<(), Error> {
        if self.link().guard.peer.must_close_links() {
            return Err(discarded_error(&format!(
                "peer {} is down or not in service",
                self.peer()
            )));
        }
        let link = self.link_mut();
        let validated = validation.validate(link);
        match validated {
            Ok(()) => link.guard.set_in_use(true),
            Err(_) => link.guard.set_close_reason(CloseReason::Broken),
        }
        validated
    }
}

/// Returns what becomes of a slot because of the link that it brings back: the link is lost, or holds a test
/// transaction, or is above the limit of its peer. Returns `None` if the link may serve the next checkout.
fn decide_by_link<C: R2D2Connection + 'static>(
    link: &mut Link<C>,
    closes_first: bool,
    now: Instant,
) -> Option<AfterCheckIn> {
    if link.is_broken() {
        link.guard.set_close_reason(CloseReason::Broken);
        return Some(AfterCheckIn::CloseSlot);
    }
    link.set_idle(now);
    if link.holds_test_transaction() {
        link.guard.set_in_use(false);
        return Some(AfterCheckIn::KeepSlot);
    }
    // The application may have ended a transaction by a text.
    link.state().record.all_transactions_end();
    // A link that cannot be aborted is pinged at its checkout in any case.
    if link.can_be_aborted() && link.is_in_doubt(now) && !link.dispel_doubts(now) {
        link.guard.set_close_reason(CloseReason::Broken);
        return Some(AfterCheckIn::CloseSlot);
    }
    link.guard.claim_closing_over_limit(closes_first).then_some(AfterCheckIn::CloseSlot)
}

/// An empty slot takes a link out of the exchange when it is dropped. Otherwise the exchange would hold
/// one link too many.
impl<C> Drop for PeerConnection<C> {
    #[expect(clippy::disallowed_methods, reason = "the time of a failed checkout is taken here")]
    fn drop(&mut self) {
        if self.held.get().is_none() && self.pool.balance() == Balance::PerCheckout {
            let link = self.pool.exchange.drop_slot(self.reservation.take());
            // The link is closed here, outside the exchange's lock.
            drop(link);
        }
        if self.has_failed {
            drop(self.held.take());
            validation::failed_slot_dropped(Instant::now());
        }
    }
}

impl<C> Deref for PeerConnection<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.link().conn
    }
}

impl<C> DerefMut for PeerConnection<C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.link_mut().conn
    }
}

/// Shows the name of the peer only. Not derived, because `C` need not be `Debug`, and its output might
/// contain the URL. Formatting an empty slot does not take a link.
impl<C> fmt::Debug for PeerConnection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = self.held.get().map(|link| &link.guard.peer.name);
        f.debug_struct("PeerConnection").field("peer", &peer).finish_non_exhaustive()
    }
}
