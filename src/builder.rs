//! Every setting, and what it does.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use diesel::QueryResult;
use diesel::r2d2::R2D2Connection;
use rand::SeedableRng;
use rand::rngs::{SmallRng, SysRng};

use crate::checker;
use crate::dialect::Dialect;
use crate::dispatcher;
use crate::error::{BuildError, Kind, shown_name};
use crate::event::{Event, EventHandler};
use crate::fault::{Failure, Fault, Judge};
use crate::login::session::{Hooks, OnConnect};
use crate::manager::PeerManager;
use crate::peers::admission::{Admission, PeerConfig, check_names};
use crate::peers::journal::Journal;
use crate::peers::peer::Peer;
use crate::peers::set::PeerSet;
use crate::policy::{AllDown, Balance, Donors, Recovery, Role, Strategy};
use crate::pool::connection::Links;
use crate::pool::exchange::Exchange;
use crate::resolver::{self, Resolve};
use crate::settings::{ExplicitSettings, Settings};
use crate::url::{Credentials, CredentialsProvider};

/// Builds a [`PeerManager`].
///
/// Every check is made in [`build`](Self::build): a wrong setting is an error there. Times of more than
/// a year count as one.
pub struct PeerManagerBuilder<C> {
    peers: Vec<PeerConfig>,
    /// Weights and tiers of peers by name, which may be given before the peers themselves.
    weights: Vec<(String, u32)>,
    tiers: Vec<(String, u32)>,
    settings: Settings,
    asked: ExplicitSettings,
    balance: Balance,
    health_check: Box<OnConnect<C>>,
    on_connect: Box<OnConnect<C>>,
    /// Who logs in to every peer, in place of what its URL says.
    login: Credentials,
    credentials: Option<Box<CredentialsProvider>>,
    event_handler: Option<Box<EventHandler>>,
    resolver: Box<Resolve>,
    rng_seed: Option<u64>,
    /// The beginnings of the environment variables that were asked for.
    prefixes: Vec<String>,
    /// The first thing that was wrong with a setting in text.
    mistake: Option<Kind>,
    /// Whether nobody is to look at the peers unasked.
    #[cfg(feature = "cli")]
    unchecked: bool,
}

// Not derived: the URLs are secrets, and `C` need not be `Debug`.
impl<C> fmt::Debug for PeerManagerBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peers, weights, tiers, settings, balance, login, rng_seed, .. } = self;
        // What was given as a name is not known to be one before `build()`.
        let numbers = |given: &[(String, u32)]| given.iter().map(|(_, number)| *number).collect();
        let (weights, tiers): (Vec<u32>, Vec<u32>) = (numbers(weights), numbers(tiers));
        f.debug_struct("PeerManagerBuilder")
            .field("peers", &peers.len())
            .field("weights", &weights)
            .field("tiers", &tiers)
            .field("rules", settings)
            .field("balance", balance)
            .field("login", login)
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
            settings: Settings::default(),
            asked: ExplicitSettings::default(),
            balance: Balance::default(),
            health_check: Box::new(|_| Ok(())),
            on_connect: Box::new(|_| Ok(())),
            login: Credentials::default(),
            credentials: None,
            event_handler: None,
            resolver: Box::new(resolver::system),
            rng_seed: None,
            prefixes: Vec::new(),
            mistake: None,
            #[cfg(feature = "cli")]
            unchecked: false,
        }
    }

    /// Adds a peer. Its name stands in logs and in [`Peers`](crate::Peers); its URL, which is what
    /// diesel's `establish` takes, is a secret and shown nowhere.
    ///
    /// At least one peer is needed.
    #[must_use]
    pub fn peer(mut self, name: impl Into<String>, url: impl Into<String>) -> Self {
        self.peers.push(PeerConfig::new(name, url));
        self
    }

    /// What the pool is called on status pages and in metrics, where there may be several. It is shown
    /// as it is.
    ///
    /// Defaults to `default`; in a Rocket application to the database's name.
    #[must_use]
    pub fn pool_name(mut self, pool_name: impl Into<String>) -> Self {
        self.settings.pool_name = pool_name.into();
        self.asked.insert("pool_name");
        self
    }

    /// Calls `handler` for every [`Event`], one after the other, on a thread of its own.
    ///
    /// The handler may block and may panic: the pool goes on meanwhile. While it blocks, events queue up;
    /// events that find the queue full are dropped and counted in
    /// [`Snapshot::events_dropped`](crate::Snapshot::events_dropped). Events of the pool's last moments may
    /// be lost. The handler may use the [`Peers`](crate::Peers) and the pool, but must not own the pool,
    /// which would never end.
    ///
    /// ```
    /// # use diesel_peers::{EventKind, PeerManagerBuilder};
    /// # fn with_handler<C>(builder: PeerManagerBuilder<C>) -> PeerManagerBuilder<C> {
    /// builder.event_handler(|event| {
    ///     // A peer that an operator has drained wakes nobody.
    ///     if event.in_service && matches!(event.kind, EventKind::Down { .. }) {
    ///         eprintln!("page the operator on duty: {event}");
    ///     }
    /// })
    /// # }
    /// ```
    ///
    /// No handler by default. The last call counts.
    #[must_use]
    pub fn event_handler(mut self, handler: impl Fn(&Event) + Send + 'static) -> Self {
        self.event_handler = Some(Box::new(handler));
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

    /// Which peer serves a checkout.
    ///
    /// Defaults to [`Strategy::LeastConnections`].
    #[must_use]
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.settings.strategy = strategy;
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
    pub fn rebalance_interval(mut self, rebalance_interval: Duration) -> Self {
        self.settings.rebalance_interval = rebalance_interval;
        self
    }

    /// How old a connection gets: when it comes back to the pool after that it is closed. Up to
    /// 10 % less, by chance, so that connections that were made together do not end together. Not while no
    /// peer takes work: none could be opened in its place.
    ///
    /// r2d2's own `max_lifetime` and `idle_timeout` count for the pool's slots, between which
    /// connections change places.
    ///
    /// Defaults to 30 minutes, as r2d2's `max_lifetime`.
    #[must_use]
    pub fn connection_max_age(mut self, connection_max_age: Duration) -> Self {
        self.settings.connection_max_age = connection_max_age;
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
        self.on_connect = Box::new(on_connect);
        self
    }

    /// The user that logs in to every peer, in place of the one in its URL.
    ///
    /// Defaults to what the URLs say.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.login.user = Some(user.into());
        self
    }

    /// The password to log in to every peer with, in place of the one in its URL.
    ///
    /// Defaults to what the URLs say.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.login.password = Some(password.into());
        self
    }

    /// Who logs in to the peer of this name (`db/10.0.0.1` of a name that is
    /// [resolved](Self::resolve_interval)). It is asked at each login, those of checks included, so
    /// that passwords can be changed, and tokens can run out, while the application runs. What it gives
    /// takes the place of what the URL, [`user`](Self::user) and [`password`](Self::password) say. An
    /// error, or a panic, is told by the `connect()` that fails, or logged for a check; no peer is
    /// marked down for it.
    ///
    /// It runs on a thread of its own, several at a time, within
    /// [`connect_timeout`](Self::connect_timeout); and while all peers are down every
    /// [`all_down_interval`](Self::all_down_interval) for each of them, so what takes time is best kept
    /// for a while.
    ///
    /// ```
    /// # use diesel_peers::{Credentials, PeerManager, PeerManagerBuilder};
    /// # fn with_credentials<C>(builder: PeerManagerBuilder<C>) -> PeerManagerBuilder<C> {
    /// builder.credentials(|_peer| {
    ///     let password = std::fs::read_to_string("/run/secrets/db")?;
    ///     // Files end in a newline.
    ///     Ok::<_, std::io::Error>(Credentials::password(password.trim_end()))
    /// })
    /// # }
    /// ```
    ///
    /// Defaults to nothing. The last call counts.
    #[must_use]
    pub fn credentials<E: Into<Box<dyn Error + Send + Sync>>>(
        mut self,
        credentials: impl Fn(&str) -> Result<Credentials, E> + Send + Sync + 'static,
    ) -> Self {
        self.credentials = Some(Box::new(move |peer| credentials(peer).map_err(Into::into)));
        self
    }

    /// What the pool is given as its `connection_timeout`, which a manager is not told. With it a longer
    /// `connect_timeout`, `connect_deadline` or `ping_timeout` is an error, and what is left at its
    /// default fits in: `connect_deadline` becomes no more than 80 % of it and `connect_timeout` 40 %,
    /// so that a pool that cannot be built says why, and `all_down_wait` no less than 60 %.
    ///
    /// Defaults to not being known.
    #[must_use]
    pub fn pool_timeout(self, pool_timeout: Duration) -> Self {
        self.pool_timeout_as("pool_timeout", pool_timeout)
    }

    /// It is called so where it was told.
    pub(crate) fn pool_timeout_as(mut self, name: &'static str, pool_timeout: Duration) -> Self {
        self.settings.pool_timeout = Some(pool_timeout);
        self.settings.pool_timeout_name = name;
        self.asked.insert(name);
        self
    }

    /// How long a peer that failed is left alone before it is checked, and how often a peer that
    /// is up is checked. Each check comes up to 10 % later than that, by chance, so that many
    /// processes do not check at once.
    ///
    /// Defaults to 30 seconds, as in django-proxysql. At least 10 milliseconds.
    #[must_use]
    pub fn check_interval(mut self, check_interval: Duration) -> Self {
        self.settings.check_interval = check_interval;
        self.asked.insert("check_interval");
        self
    }

    /// How long one login may take, with `on_connect` and, for a check, `BEGIN; ROLLBACK`. A peer
    /// that has not answered by then is marked down, and the login is cut off. (diesel's
    /// `MysqlConnection` sets no timeout; `PgConnection` gets libpq's own as well, in whole seconds,
    /// unless its URL or the environment sets one.)
    ///
    /// A peer that takes longer than a quarter of a second, and twice what it usually takes, has the
    /// next one tried beside it; the first that answers is used.
    ///
    /// Defaults to 5 seconds.
    #[must_use]
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.settings.connect_timeout = connect_timeout;
        self.asked.insert("connect_timeout");
        self
    }

    /// How long one `connect()` may take with all the logins that it makes. While every peer is down it
    /// may wait for [`all_down_wait`](Self::all_down_wait) after that.
    ///
    /// Defaults to 10 seconds.
    #[must_use]
    pub fn connect_deadline(mut self, connect_deadline: Duration) -> Self {
        self.settings.connect_deadline = connect_deadline;
        self.asked.insert("connect_deadline");
        self
    }

    /// How long a ping at checkout may take. One checkout waits for no longer than that in all. A
    /// connection is pinged only if it has rested for [`ping_idle`](Self::ping_idle), or if its socket
    /// has something to read or cannot be looked at.
    ///
    /// A connection whose socket is not known (a Unix socket, for one) is pinged without a bound.
    ///
    /// Defaults to 1 second.
    #[must_use]
    pub fn ping_timeout(mut self, ping_timeout: Duration) -> Self {
        self.settings.ping_timeout = ping_timeout;
        self.asked.insert("ping_timeout");
        self
    }

    /// How long a connection may rest without being pinged when it is checked out. Whether it was
    /// closed meanwhile is seen without.
    ///
    /// Defaults to 30 seconds. With zero each checkout pings.
    #[must_use]
    pub fn ping_idle(mut self, ping_idle: Duration) -> Self {
        self.settings.ping_idle = ping_idle;
        self
    }

    /// After how long a query that is still running makes its peer be checked. When two checks in a
    /// row are not answered within [`check_timeout`](Self::check_timeout), nothing else is heard from
    /// the peer, and another peer does answer, then the peer has stopped: it is marked down, and what
    /// has been running there for longer than this is cut off, and fails as if the connection was
    /// lost. A query on a peer that answers is left alone, however long it runs.
    ///
    /// Defaults to 2 seconds. `None` switches it off.
    #[must_use]
    pub fn stall_after(mut self, stall_after: impl Into<Option<Duration>>) -> Self {
        self.settings.stall_after = stall_after.into();
        self
    }

    /// How long a check's answer is waited for while queries hang or every peer is down: this, or
    /// twice what a login there usually takes if that is more, but no longer than
    /// [`connect_timeout`](Self::connect_timeout). While queries hang, a peer that has begun to answer by
    /// then is given the latter.
    ///
    /// Defaults to 1 second.
    #[must_use]
    pub fn check_timeout(mut self, check_timeout: Duration) -> Self {
        self.settings.check_timeout = check_timeout;
        self.asked.insert("check_timeout");
        self
    }

    /// After how long without a byte the kernel asks whether the other machine is there (TCP
    /// keepalive, in whole seconds). It ends the connection when three questions, a third of that
    /// apart, go unanswered. It replaces what the URL sets.
    ///
    /// Defaults to 9 seconds, so that a machine that vanished is noticed in 18. `None` leaves the
    /// client library's setting alone.
    #[must_use]
    pub fn tcp_keepalive(mut self, keepalive: impl Into<Option<Duration>>) -> Self {
        self.settings.tuning.keepalive = keepalive.into();
        self
    }

    /// For how long what was sent may go unacknowledged before the kernel ends the connection
    /// (`TCP_USER_TIMEOUT`, in milliseconds). It replaces what the URL sets.
    ///
    /// Defaults to 20 seconds. `None` leaves the client library's setting alone.
    #[must_use]
    pub fn tcp_user_timeout(mut self, user_timeout: impl Into<Option<Duration>>) -> Self {
        self.settings.tuning.user_timeout = user_timeout.into();
        self
    }

    /// How a peer that is down comes back.
    ///
    /// Defaults to [`Recovery::AfterCheck`].
    #[must_use]
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.settings.recovery = recovery;
        self
    }

    /// What a peer has to be able to do, which is looked at at each login and check.
    ///
    /// Defaults to [`Role::Any`].
    #[must_use]
    pub fn require(mut self, role: Role) -> Self {
        self.settings.requirements.role = role;
        self
    }

    /// Whether a Galera node serves while it is a donor.
    ///
    /// Defaults to [`Donors::ServeUnlessBlocked`].
    #[must_use]
    pub fn galera_donors(mut self, donors: Donors) -> Self {
        self.settings.requirements.donors = donors;
        self
    }

    /// What a peer has to pass besides to be used, at each login and each check: an error is a failed
    /// login. It runs on a thread of its own, within [`connect_timeout`](Self::connect_timeout), before
    /// [`on_connect`](Self::on_connect); what it changes in the session stays.
    ///
    /// Defaults to nothing. The last call counts.
    #[must_use]
    pub fn health_check(
        mut self,
        health_check: impl Fn(&mut C) -> QueryResult<()> + Send + Sync + 'static,
    ) -> Self {
        self.health_check = Box::new(health_check);
        self
    }

    /// What a failure means, where this crate does not know, or is wrong. It is asked first, about each
    /// failed login and each error of a query, in the thread in which it happened; `None` leaves it to
    /// [`Fault::of_login`] and [`Fault::of`]. One that panics is not heard. It is given the error as the
    /// client library made it, which may quote a URL or a password: it is not to be logged.
    ///
    /// A query's fault decides what happens to its connection ([`Fault::ConnectionLost`]), whether its
    /// peer is marked down until a check that follows at once ([`Fault::PeerNotReady`]), or only checked
    /// at once ([`Fault::PeerDown`], [`Fault::Misconfigured`], and [`Fault::WrongRole`] under
    /// [`Role::ReadWrite`]); a login's, whether the peer is marked down. What the application gets is the
    /// error as it is.
    ///
    /// Defaults to nothing. The last call counts.
    #[must_use]
    pub fn classify(
        mut self,
        classify: impl Fn(Failure<'_>) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        self.settings.judge = Judge::asks(Arc::new(classify));
        self
    }

    /// What a new connection does while every peer is down.
    ///
    /// Defaults to [`AllDown::Try`].
    #[must_use]
    pub fn all_down(mut self, all_down: AllDown) -> Self {
        self.settings.all_down = all_down;
        self
    }

    /// How often the peers are checked while every one is down, and up to 10 % later by chance.
    ///
    /// Defaults to 250 milliseconds, so that a pool serves within half a second of a peer's return. At
    /// least 10 milliseconds.
    #[must_use]
    pub fn all_down_interval(mut self, all_down_interval: Duration) -> Self {
        self.settings.all_down_interval = all_down_interval;
        self
    }

    /// For how long a `connect()` waits that finds every peer down. The first one of an outage fails
    /// at once, so that its error can be told; after that one waits at a time, so that the pool serves
    /// as soon as a peer is back. (r2d2 lets a slot that could not connect sleep for up to half the
    /// pool's `connection_timeout`.) A pool that is dropped meanwhile lives until the outage is over,
    /// but no more than five minutes.
    ///
    /// Defaults to 20 seconds; more than half of the pool's `connection_timeout` is needed. Zero is
    /// not to wait, as is [`AllDown::Fail`].
    #[must_use]
    pub fn all_down_wait(mut self, all_down_wait: Duration) -> Self {
        self.settings.all_down_wait = all_down_wait;
        self.asked.insert("all_down_wait");
        self
    }

    /// How often the names of hosts are resolved, and up to 10 % later by chance. Each peer whose URL
    /// leads to a name is replaced by one for each of its addresses, `db/10.0.0.1` and so on of a peer
    /// `db`, with its weight and its tier; and these are added and removed (drained first) as the
    /// answers change. Peers whose URL holds an address or a socket stay as they are.
    ///
    /// As long as a name was never resolved, it is a peer itself. [`build`](Self::build) waits for the
    /// first answers for up to a second. An answer that is an error or holds no address changes nothing,
    /// and an address is gone when it is missing from two answers in a row. What is done by
    /// [`Peers`](crate::Peers) is not undone: a peer that was removed comes back only when its address
    /// was gone meanwhile, and one that was added is left alone.
    ///
    /// `PgConnection` is told name and address, and verifies a certificate by the name.
    /// `MysqlConnection` only knows the address: `ssl_mode=verify_identity` is an error then.
    ///
    /// Defaults to `None`: the client library resolves each name at each login, and uses one of the
    /// addresses. At least 10 milliseconds.
    #[must_use]
    pub fn resolve_interval(mut self, resolve_interval: impl Into<Option<Duration>>) -> Self {
        self.settings.resolve_interval = resolve_interval.into();
        self
    }

    /// Who resolves the names of hosts, with [`resolve_interval`](Self::resolve_interval). It is given
    /// one name after the other, on a thread of its own, which it may block; one that panics gives no
    /// answer.
    ///
    /// ```
    /// # use std::net::{IpAddr, ToSocketAddrs};
    /// # use diesel_peers::PeerManagerBuilder;
    /// # fn with_resolver<C>(builder: PeerManagerBuilder<C>) -> PeerManagerBuilder<C> {
    /// // Servers that have an address of each kind count once.
    /// builder.resolver(|host| {
    ///     let addresses = (host, 0).to_socket_addrs()?.map(|address| address.ip());
    ///     Ok(addresses.filter(IpAddr::is_ipv4).collect())
    /// })
    /// # }
    /// ```
    ///
    /// Defaults to the system's own. The last call counts.
    #[must_use]
    pub fn resolver(
        mut self,
        resolver: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + 'static,
    ) -> Self {
        self.resolver = Box::new(resolver);
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

impl<C> PeerManagerBuilder<C> {
    /// Only the first mistake is told.
    pub(crate) fn mistaken(mut self, mistake: Kind) -> Self {
        self.mistake.get_or_insert(mistake);
        self
    }

    pub(crate) fn is_mistaken(&self) -> bool {
        self.mistake.is_some()
    }

    /// A manager whose checker only keeps deadlines.
    #[cfg(feature = "cli")]
    pub(crate) fn unchecked(mut self) -> Self {
        self.unchecked = true;
        self
    }

    #[cfg(any(feature = "rocket", feature = "cli"))]
    pub(crate) fn is_asked(&self, setting: &str) -> bool {
        self.asked.contains(setting)
    }

    /// In place of those that were given before, with what was said of these.
    pub(crate) fn peers(mut self, peers: Vec<PeerConfig>) -> Self {
        let earlier = std::mem::replace(&mut self.peers, peers);
        let find = |name: &str| self.peers.iter().find(|peer| peer.name == name);
        let is_gone =
            |name: &str| find(name).is_none() && earlier.iter().any(|peer| peer.name == name);
        self.weights.retain(|(name, _)| {
            !is_gone(name) && find(name).is_none_or(|peer| peer.weight.is_none())
        });
        self.tiers.retain(|(name, _)| {
            !is_gone(name) && find(name).is_none_or(|peer| peer.tier.is_none())
        });
        self
    }

    /// Where `url` was looked for.
    pub(crate) fn looked_in_environment(mut self, prefix: &str) -> Self {
        self.prefixes.push(prefix.to_owned());
        self
    }
}

/// What was given, to compare.
#[cfg(test)]
impl<C> PeerManagerBuilder<C> {
    /// Each peer's name and URL.
    pub(crate) fn given_peers(&self) -> Vec<(&str, &str)> {
        self.peers.iter().map(|peer| (&*peer.name, &*peer.url)).collect()
    }

    /// All that can be given in text, secrets too.
    pub(crate) fn given(&self) -> String {
        let Self { weights, tiers, settings, asked, balance, rng_seed, mistake, .. } = self;
        let Credentials { user, password } = &self.login;
        let weights_and_tiers: Vec<_> =
            self.peers.iter().map(|peer| (peer.weight, peer.tier)).collect();
        format!(
            "{:?} {weights_and_tiers:?} {weights:?} {tiers:?} {settings:?} {asked:?} {balance:?} {user:?} \
             {password:?} {rng_seed:?} {mistake:?}",
            self.given_peers(),
        )
    }

    pub(crate) fn into_mistake(self) -> Option<String> {
        self.mistake.map(|mistake| BuildError::from(mistake).to_string())
    }
}

impl<C: R2D2Connection + Send + 'static> PeerManagerBuilder<C> {
    /// Builds the manager and starts its checker thread. Nothing is connected to, so peers may be
    /// down at this time. (With [`resolve_interval`](Self::resolve_interval) it waits for up to a second for
    /// the addresses of the peers.)
    ///
    /// # Errors
    ///
    /// When there is no peer, a name is empty, given twice or not printable, a URL is malformed, a
    /// setting in text cannot be read, a time is shorter than its least or than one that it has to hold,
    /// a weight or a tier is given to no peer, every weight is 0, or the operating system gives no
    /// thread or no randomness. Whether a well-formed URL leads anywhere is shown by the first login.
    pub fn build(self) -> Result<PeerManager<C>, BuildError> {
        let Self {
            peers,
            weights,
            tiers,
            settings,
            asked,
            balance,
            health_check,
            on_connect,
            login,
            ..
        } = self;
        if let Some(mistake) = self.mistake {
            return Err(mistake.into());
        }
        if peers.is_empty() {
            return Err(Kind::NoPeers { prefixes: self.prefixes }.into());
        }
        check_pool_name(&settings.pool_name)?;
        check_names(&peers)?;
        let weight_of = by_name("weight", &peers, &weights)?;
        let tier_of = by_name("tier", &peers, &tiers)?;
        let settings = settings.validate(&asked)?;
        #[cfg(feature = "cli")]
        let settings = if self.unchecked { settings.without_checks() } else { settings };
        let admission = Admission {
            dialect: Dialect::for_connection::<C>(),
            login,
            asked_at_login: self.credentials.is_some(),
            connect_timeout: settings.connect_timeout,
            resolves: settings.resolve_interval.is_some(),
        };
        let urls = admission.urls(&peers)?;
        admission.check_hosts(&peers, &urls)?;
        #[expect(clippy::disallowed_methods, reason = "the manager's story starts here")]
        let now = Instant::now();
        let peer = |(PeerConfig { name, weight, tier, .. }, url)| {
            let weight = weight_of(&name).or(weight).unwrap_or(1);
            let tier = tier_of(&name).or(tier).unwrap_or(0);
            Peer::new(Arc::from(name), url, weight, tier, now)
        };
        let peers: Vec<Peer> = peers.into_iter().zip(urls).map(peer).collect();
        if peers.iter().all(|peer| peer.weight == 0) {
            return Err(Kind::NoWeight.into());
        }
        let mut rng = match self.rng_seed {
            Some(seed) => SmallRng::seed_from_u64(seed),
            None => SmallRng::try_from_rng(&mut SysRng)
                .map_err(|error| Kind::System(io::Error::other(error)))?,
        };
        let hooks = Arc::new(Hooks { health_check, on_connect, credentials: self.credentials });
        // Each its own generator, so that the choices of one do not depend on the other's number.
        let exchange = Exchange::new(settings.strategy, rng.fork());
        let (stop, stopped) = bounded(0);
        let journal = match self.event_handler {
            Some(handler) => {
                let (journal, events) = Journal::with_reader();
                dispatcher::start(handler, events, stopped.clone()).map_err(Kind::System)?;
                journal
            }
            None => Journal::default(),
        };
        let (wake, woken) = bounded(1);
        let set = Arc::new(PeerSet::new(peers, settings, (admission, journal), rng, wake, now));
        #[cfg(feature = "metrics")]
        crate::metrics::start(set.clone(), stopped.clone()).map_err(Kind::System)?;
        let links = Arc::new(Links { set: set.clone(), exchange, balance });
        let checker_stopped = stopped.clone();
        checker::start(set.clone(), Arc::downgrade(&links), hooks.clone(), woken, checker_stopped)
            .map_err(Kind::System)?;
        if set.settings().resolve_interval.is_some() {
            resolver::start(self.resolver, set, stopped).map_err(Kind::System)?;
        }
        Ok(PeerManager::new(links, hooks, stop))
    }
}

fn check_pool_name(name: &str) -> Result<(), Kind> {
    let flaw = match name {
        _ if name.trim().is_empty() => "is empty",
        _ if name.contains("://") => "is a URL",
        _ if name.chars().any(char::is_control) => "holds a control character",
        _ => return Ok(()),
    };
    let right = "it is shown on pages and in metrics";
    Err(Kind::Setting { key: "`pool_name`".to_owned(), flaw: flaw.into(), right: right.into() })
}

/// Looks a setting up by the name of its peer; the last one that was given counts.
fn by_name<'a>(
    setting: &'static str,
    peers: &[PeerConfig],
    values: &'a [(String, u32)],
) -> Result<impl Fn(&str) -> Option<u32> + use<'a>, Kind> {
    let stray = values.iter().find(|(name, _)| peers.iter().all(|peer| peer.name != *name));
    if let Some((name, _)) = stray {
        let names = peers.iter().map(|peer| peer.name.clone()).collect();
        return Err(Kind::NoSuchPeer { setting: Some(setting), name: shown_name(name), names });
    }
    Ok(|wanted: &str| values.iter().rev().find(|(name, _)| name == wanted).map(|(_, value)| *value))
}
