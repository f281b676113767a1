//! Every setting, its default and its check.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use diesel::QueryResult;
use diesel::r2d2::R2D2Connection;
use rand::SeedableRng;
use rand::rngs::{SmallRng, SysRng};

use crate::checker;
use crate::connection::Links;
use crate::dial::OnConnect;
use crate::error::{BuildError, Kind};
use crate::exchange::Exchange;
use crate::manager::PeerManager;
use crate::peer::Peer;
use crate::policy::{AllDown, Balance, Recheck, Strategy};
use crate::set::{PeerSet, Rules};
use crate::url::PeerUrl;

/// How long a failure mark holds when nothing else is said. From django-proxysql.
const DEFAULT_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// The least time between two checks: a login each takes a server some milliseconds.
const LEAST_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// How long one login may take when nothing else is said: many times what one over a slow network
/// takes, and a sixth of the time for which r2d2 has its callers wait.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The least time between two connections that are closed to even out their number.
const DEFAULT_REBALANCE_PACE: Duration = Duration::from_millis(200);

/// How old a connection gets. As r2d2's `max_lifetime`, which counts for its slots.
const DEFAULT_LINK_MAX_AGE: Duration = Duration::from_secs(30 * 60);

/// Builds a [`PeerManager`].
///
/// Every check is made in [`build`](Self::build); a wrong setting is an error there, never
/// corrected silently.
pub struct PeerManagerBuilder<C> {
    peers: Vec<PeerConfig>,
    /// Weights and tiers of peers by name, which may be given before the peers themselves.
    weights: Vec<(String, u32)>,
    tiers: Vec<(String, u32)>,
    rules: Rules,
    balance: Balance,
    on_connect: Arc<OnConnect<C>>,
    rng_seed: Option<u64>,
}

/// A peer as it was given.
struct PeerConfig {
    name: String,
    url: String,
}

/// Not derived: the URLs are secrets, and `C` need not be `Debug`.
impl<C> fmt::Debug for PeerManagerBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peers, weights, tiers, rules, balance, on_connect: _, rng_seed } = self;
        // What was given as a name is not known to be one before `build()`.
        f.debug_struct("PeerManagerBuilder")
            .field("peers", &peers.len())
            .field("weights", weights)
            .field("tiers", tiers)
            .field("rules", rules)
            .field("balance", balance)
            .field("rng_seed", rng_seed)
            .finish_non_exhaustive()
    }
}

impl<C> PeerManagerBuilder<C> {
    pub(crate) fn new() -> Self {
        Self {
            peers: Vec::new(),
            weights: Vec::new(),
            tiers: Vec::new(),
            rules: Rules {
                check_interval: DEFAULT_CHECK_INTERVAL,
                connect_timeout: DEFAULT_CONNECT_TIMEOUT,
                recheck: Recheck::default(),
                all_down: AllDown::default(),
                strategy: Strategy::default(),
                rebalance_pace: DEFAULT_REBALANCE_PACE,
                link_max_age: DEFAULT_LINK_MAX_AGE,
            },
            balance: Balance::default(),
            on_connect: Arc::new(|_| Ok(())),
            rng_seed: None,
        }
    }

    /// Adds a peer. Its name stands in logs and in [`Peers`](crate::Peers); its URL, which is what
    /// diesel's `establish` takes, is a secret and shown nowhere.
    ///
    /// At least one peer is needed.
    #[must_use]
    pub fn peer(mut self, name: impl Into<String>, url: impl Into<String>) -> Self {
        self.peers.push(PeerConfig { name: name.into(), url: url.into() });
        self
    }

    /// The proportion of the work that a peer gets: one of weight 2 gets twice as much as one of
    /// weight 1, and one of weight 0 gets no new work. It is the proportion of connections too: the
    /// pool should have as many as the sum of the weights, or a multiple of that.
    ///
    /// Defaults to 1.
    #[must_use]
    pub fn weight(mut self, name: impl Into<String>, weight: u32) -> Self {
        self.weights.push((name.into(), weight));
        self
    }

    /// The tier of a peer under [`Strategy::Ordered`]: the lowest tier in which a peer is up serves,
    /// and the others wait. Under the other strategies it does not matter.
    ///
    /// Defaults to 0.
    #[must_use]
    pub fn tier(mut self, name: impl Into<String>, tier: u32) -> Self {
        self.tiers.push((name.into(), tier));
        self
    }

    /// Which peer serves a check-out.
    ///
    /// Defaults to [`Strategy::LeastConnections`].
    #[must_use]
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.rules.strategy = strategy;
        self
    }

    /// Whether the work is balanced or the connections.
    ///
    /// Defaults to [`Balance::PerCheckout`].
    #[must_use]
    pub fn balance(mut self, balance: Balance) -> Self {
        self.balance = balance;
        self
    }

    /// The least time between two connections that are closed so that others can be opened to a
    /// peer that lacks them, because it came back or was down at the start.
    ///
    /// Defaults to 200 milliseconds: 5 connections a second. With zero a few more may be closed than
    /// are needed.
    #[must_use]
    pub fn rebalance_pace(mut self, rebalance_pace: Duration) -> Self {
        self.rules.rebalance_pace = rebalance_pace;
        self
    }

    /// How old a connection gets: when it comes back to the pool after that it is closed. Up to
    /// 10 % less, by chance, so that connections that were made together do not end together.
    ///
    /// r2d2's own `max_lifetime` and `idle_timeout` count for the pool's slots, between which
    /// connections change places.
    ///
    /// Defaults to 30 minutes, as r2d2's `max_lifetime`.
    #[must_use]
    pub fn link_max_age(mut self, link_max_age: Duration) -> Self {
        self.rules.link_max_age = link_max_age;
        self
    }

    /// What is done with each new connection before it is used, and with that of a check: `SET`
    /// statements, pragmas. An error is a failed login. It runs on a thread of its own, within
    /// [`connect_timeout`](Self::connect_timeout). An instrumentation that is set in it is replaced.
    ///
    /// The pool's own `connection_customizer` works as well, but one that uses the connection in
    /// `on_acquire` needs [`prime`](crate::prime) to be called once.
    ///
    /// Defaults to nothing. The last call counts.
    #[must_use]
    pub fn on_connect(
        mut self,
        on_connect: impl Fn(&mut C) -> QueryResult<()> + Send + Sync + 'static,
    ) -> Self {
        self.on_connect = Arc::new(on_connect);
        self
    }

    /// How long a peer that failed is left alone before it is checked, and how often a peer that
    /// is up is probed. Each check comes up to 10 % later than that, by chance, so that many
    /// processes do not check at once.
    ///
    /// Defaults to 30 seconds, as in django-proxysql. At least 10 milliseconds.
    #[must_use]
    pub fn check_interval(mut self, check_interval: Duration) -> Self {
        self.rules.check_interval = check_interval;
        self
    }

    /// How long one login may take, with `on_connect` and, for a check, `BEGIN; ROLLBACK`. A peer
    /// that has not answered by then is marked down. diesel's `MysqlConnection` sets no time-out, so
    /// that the login itself is left behind on a thread of its own until its server or the kernel
    /// ends it; while there is one, only the checker dials that peer, once each interval.
    ///
    /// Defaults to 5 seconds.
    #[must_use]
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.rules.connect_timeout = connect_timeout;
        self
    }

    /// How a peer that is down comes back.
    ///
    /// Defaults to [`Recheck::Probe`].
    #[must_use]
    pub fn recheck(mut self, recheck: Recheck) -> Self {
        self.rules.recheck = recheck;
        self
    }

    /// What a new connection does while every peer is down.
    ///
    /// Defaults to [`AllDown::Try`].
    #[must_use]
    pub fn all_down(mut self, all_down: AllDown) -> Self {
        self.rules.all_down = all_down;
        self
    }

    /// Makes the choices by chance repeatable, as far as they are asked for in the same order.
    ///
    /// Defaults to a seed from the operating system.
    #[must_use]
    pub fn rng_seed(mut self, seed: u64) -> Self {
        self.rng_seed = Some(seed);
        self
    }
}

impl<C: R2D2Connection + Send + 'static> PeerManagerBuilder<C> {
    /// Builds the manager and starts its checker thread. Nothing is connected to, so peers may be
    /// down at this time.
    ///
    /// # Errors
    ///
    /// When there is no peer, a name is empty, given twice or not printable, a URL is empty or
    /// not one, the check interval is zero, or the operating system gives no thread.
    pub fn build(self) -> Result<PeerManager<C>, BuildError> {
        let Self { peers, weights, tiers, rules, balance, on_connect, rng_seed } = self;
        check_peers(&peers)?;
        let weight_of = by_name("weight", &peers, &weights)?;
        let tier_of = by_name("tier", &peers, &tiers)?;
        for (setting, duration, least) in [
            ("check_interval", rules.check_interval, LEAST_CHECK_INTERVAL),
            ("connect_timeout", rules.connect_timeout, Duration::from_millis(1)),
            ("link_max_age", rules.link_max_age, Duration::from_millis(1)),
        ] {
            if duration < least {
                return Err(Kind::TooShort { setting, least }.into());
            }
        }
        let mut rng = match rng_seed {
            Some(seed) => SmallRng::seed_from_u64(seed),
            None => SmallRng::try_from_rng(&mut SysRng)
                .map_err(|error| Kind::System(io::Error::other(error)))?,
        };
        #[expect(clippy::disallowed_methods, reason = "the manager's story starts here")]
        let now = Instant::now();
        let peers: Vec<Peer> = peers
            .into_iter()
            .map(|PeerConfig { name, url }| {
                let (weight, tier) = (weight_of(&name).unwrap_or(1), tier_of(&name).unwrap_or(0));
                Peer::new(Arc::from(name), PeerUrl::new(url), weight, tier, now, now)
            })
            .collect();
        if peers.iter().all(|peer| peer.weight == 0) {
            return Err(Kind::NoWeight.into());
        }
        let in_use: Vec<_> = peers.iter().map(|peer| peer.in_use.clone()).collect();
        // Each its own generator, so that the choices of one do not depend on the other's number.
        let exchange = Exchange::new(rules.strategy, in_use, rng.fork());
        let (wake, woken) = bounded(1);
        let set = Arc::new(PeerSet::new(peers, rules, rng, wake, now));
        let checker =
            checker::start(set.clone(), on_connect.clone(), woken).map_err(Kind::System)?;
        let links = Arc::new(Links { set, exchange, balance });
        Ok(PeerManager::new(links, on_connect, checker))
    }
}

fn check_peers(peers: &[PeerConfig]) -> Result<(), Kind> {
    if peers.is_empty() {
        return Err(Kind::NoPeers);
    }
    for (index, PeerConfig { name, url }) in peers.iter().enumerate() {
        if name.trim().is_empty() {
            return Err(Kind::EmptyName { position: index + 1 });
        }
        if name.contains("://") {
            return Err(Kind::UrlAsName { position: index + 1 });
        }
        if name.chars().any(char::is_control) {
            return Err(Kind::UnprintableName { name: name.clone() });
        }
        if peers[..index].iter().any(|earlier| earlier.name == *name) {
            return Err(Kind::DuplicateName { name: name.clone() });
        }
        if let Err(flaw) = check_url(url) {
            return Err(Kind::Url { name: name.clone(), flaw });
        }
    }
    Ok(())
}

/// Looks a setting up by the name of its peer; the last one that was given counts.
fn by_name<'a>(
    setting: &'static str,
    peers: &[PeerConfig],
    values: &'a [(String, u32)],
) -> Result<impl Fn(&str) -> Option<u32> + use<'a>, Kind> {
    let stray = values.iter().find(|(name, _)| peers.iter().all(|peer| peer.name != *name));
    if let Some((name, _)) = stray {
        return Err(Kind::NoSuchPeer { setting, name: name.clone() });
    }
    Ok(|wanted: &str| values.iter().rev().find(|(name, _)| name == wanted).map(|(_, value)| *value))
}

/// What no backend takes. The rest of a URL is the backend's to judge, at the first connection.
fn check_url(url: &str) -> Result<(), &'static str> {
    if url.trim().is_empty() {
        return Err("is empty");
    }
    if url.contains('\0') {
        return Err("holds a NUL byte");
    }
    Ok(())
}
