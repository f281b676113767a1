//! The connection that r2d2 hands out.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use diesel::r2d2::{Error, R2D2Connection};

use crate::event::CloseReason;
use crate::peers::set::PeerSet;
use crate::policy::Balance;
use crate::pool::exchange::{Exchange, Reservation};
use crate::pool::link::Link;
use crate::pool::liveness::{Validation, refused};

/// A connection to one of the peers.
///
/// It dereferences to the diesel connection `C`, and implements the diesel traits that a pooled
/// connection of diesel's own manager implements, so that code written for
/// `&mut MysqlConnection`, for `impl Connection<Backend = Mysql>` or for
/// `&mut PooledConnection<_>` takes it as it is.
///
/// PostgreSQL's `COPY` is the exception, as diesel ties it to the type of its own manager: `COPY
/// FROM` needs `&mut *conn`, which is this type, and `COPY TO` the connection itself, `&mut **conn`.
///
/// For as long as it is checked out, it is one connection to one peer. Between two checkouts the
/// pool's connections change places, so the next checkout may get another one.
pub struct PeerConnection<C> {
    links: Arc<Links<C>>,
    /// The link in hand, if there is one; else the exchange has one for it.
    hand: OnceCell<Box<Link<C>>>,
    /// Until it is touched or checked out for the first time.
    own: Cell<Option<Reservation>>,
}

/// All links of one manager.
#[derive(Debug)]
pub(crate) struct Links<C> {
    pub(crate) set: Arc<PeerSet>,
    pub(crate) exchange: Exchange<Box<Link<C>>>,
    pub(crate) balance: Balance,
}

impl<C> Links<C> {
    /// The exchange, which knows the peers' newest states.
    pub(crate) fn exchange(&self) -> &Exchange<Box<Link<C>>> {
        self.exchange.learn(self.set.epoch(), || self.set.standings());
        &self.exchange
    }
}

impl<C> PeerConnection<C> {
    /// A slot of the pool with a new link: in the exchange, reserved for it, so that the pool is
    /// balanced before each of its slots has been checked out.
    pub(crate) fn new(links: Arc<Links<C>>, link: Box<Link<C>>) -> Self {
        match links.balance {
            Balance::PerCheckout => {
                let own = links.exchange().add_slot(link, thread::current().id());
                Self { links, hand: OnceCell::new(), own: Cell::new(Some(own)) }
            }
            Balance::PerConnection => {
                Self { links, hand: OnceCell::from(link), own: Cell::new(None) }
            }
        }
    }

    /// The name of the peer that this connection leads to.
    #[must_use]
    pub fn peer(&self) -> &str {
        self.link().guard.name()
    }

    fn link(&self) -> &Link<C> {
        self.hand.get_or_init(|| {
            let link = self.links.exchange().take(self.own.take(), thread::current().id());
            // Not by the pool's customizer, and in a pool that does not look at what it hands out.
            if link.guard.is_in_use() {
                link.guard.count_checkout();
            }
            link
        })
    }

    pub(crate) fn link_mut(&mut self) -> &mut Link<C> {
        self.link();
        self.hand.get_mut().expect("it was just taken in hand")
    }
}

impl<C: R2D2Connection> PeerConnection<C> {
    /// Takes the link that should serve in hand, and sees that its server answers. A dead one is
    /// exchanged for another in the same call.
    pub(crate) fn check_out(&mut self, clock: impl Fn() -> Instant) -> Result<(), Error> {
        let mut validation = Validation::begin(&self.links.set, clock);
        let outcome = if self.keeps_its_link() {
            self.check_out_as_it_is(&mut validation)
        } else {
            self.check_out_balanced(&mut validation)
        };
        match &outcome {
            Ok(()) => self.link().guard.count_checkout(),
            Err(_) => validation.fails(&self.links.set),
        }
        outcome
    }

    fn check_out_balanced(
        &mut self,
        validation: &mut Validation<impl Fn() -> Instant>,
    ) -> Result<(), Error> {
        let exchange = self.links.exchange();
        let now = validation.began;
        let Some(link) = exchange.check_out(self.hand.take(), self.own.take(), || now) else {
            return Err(refused("no live connection is idle"));
        };
        self.hand = OnceCell::from(link);
        while let Err(error) = validation.of(self.link_mut()) {
            let Some(mut dead) = self.hand.take() else { return Err(error) };
            dead.guard.retire(CloseReason::Broken);
            match self.links.exchange().swap_dead(dead) {
                Ok(live) => self.hand = OnceCell::from(live),
                Err(dead) => {
                    self.hand = OnceCell::from(dead);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Lets go of the link. Says whether the slot is to be closed, with the link that it then has in
    /// hand: its own if that must not be used again, else one that waits to be carried out.
    pub(crate) fn check_in(&mut self, now: Instant) -> bool {
        if let Some(link) = self.hand.get_mut() {
            if link.is_broken() {
                link.guard.retire(CloseReason::Broken);
                return true;
            }
            link.comes_to_rest(now);
            if link.holds_test_transaction() {
                link.guard.set_in_use(false);
                return false;
            }
            // While no peer takes work none could be opened in its place.
            if link.is_too_old(now) && !link.guard.set().no_peer_available() {
                link.guard.retire(CloseReason::TooOld);
                return true;
            }
        }
        match self.links.balance {
            Balance::PerCheckout => {
                let set = &self.links.set;
                let surplus = |is_parked: &dyn Fn(usize) -> bool| set.take_surplus(is_parked, now);
                let exchange = self.links.exchange();
                let carried = exchange.check_in(self.hand.take(), self.own.take(), surplus);
                let Some(mut carried) = carried else { return false };
                let reason =
                    if carried.is_broken() { CloseReason::Broken } else { CloseReason::Rebalanced };
                carried.guard.retire(reason);
                self.hand = OnceCell::from(carried);
                true
            }
            Balance::PerConnection => {
                let guard = &mut self.link_mut().guard;
                guard.set_in_use(false);
                let (set, peer) = (guard.set(), guard.peer());
                let is_last = set.is_retired(peer)
                    || set.take_surplus(|surplus| surplus == peer, now).is_some();
                if is_last {
                    guard.retire(CloseReason::Rebalanced);
                }
                is_last
            }
        }
    }

    /// Whether this slot's link is its own for good: connections are balanced and not checkouts, or
    /// it holds a test transaction.
    fn keeps_its_link(&mut self) -> bool {
        self.links.balance == Balance::PerConnection
            || self.hand.get_mut().is_some_and(|link| link.holds_test_transaction())
    }

    fn check_out_as_it_is(
        &mut self,
        validation: &mut Validation<impl Fn() -> Instant>,
    ) -> Result<(), Error> {
        if self.links.set.is_retired(self.link().guard.peer()) {
            return Err(refused(&format!("peer {} is down", self.peer())));
        }
        let link = self.link_mut();
        let validated = validation.of(link);
        match validated {
            Ok(()) => link.guard.set_in_use(true),
            Err(_) => link.guard.retire(CloseReason::Broken),
        }
        validated
    }
}

/// A slot that ends without a link in hand takes one along, or there would be one too many.
impl<C> Drop for PeerConnection<C> {
    fn drop(&mut self) {
        if self.hand.get().is_none() && self.links.balance == Balance::PerCheckout {
            let carried = self.links.exchange.drop_slot(self.own.take());
            // Closed here, outside the exchange's lock.
            drop(carried);
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

/// Not derived: `C` need not be `Debug`, and may show its URL where it is. Being printed takes no
/// link in hand.
impl<C> fmt::Debug for PeerConnection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = self.hand.get().map(|link| link.guard.name());
        f.debug_struct("PeerConnection").field("peer", &peer).finish_non_exhaustive()
    }
}
