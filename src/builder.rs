//! The builder of a manager: every setting, with its default.

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

use crate::error::{BuildError, BuildErrorKind, Flaw, PeersError};
use crate::events::dispatcher;
use crate::events::log::EventLog;
use crate::events::{Event, EventHandler};
use crate::fault::{Classifier, Failure, Fault};
use crate::health::checker;
use crate::login::session::{ConnectionHook, Hooks};
use crate::manager::PeerManager;
use crate::peers::peer::Peer;
use crate::peers::peer_config::{PeerConfig, PeerValidator, validate_names};
use crate::peers::set::PeerSet;
use crate::pool::connection::PoolState;
use crate::pool::customizer::Customizer;
use crate::pool::exchange::Exchange;
use crate::pool::replacement::Replacement;
use crate::redact::{is_printable, shown_name};
use crate::resolver::{self, Resolve};
use crate::settings::Given;
use crate::settings::ledger::Ledger;
use crate::settings::policy::{
    AllDown, Balance, Donors, GaleraCheck, Recovery, Role, SlowPeers, StatementCache, Strategy,
};
use crate::url::dialect::Dialect;
use crate::url::{Credentials, CredentialsProvider};

/// The minimum of `slow_factor`. Peers of different hardware differ by less.
const LEAST_SLOW_FACTOR: f64 = 1.5;

/// Builds a [`PeerManager`]: the peers, and every setting with its default.
///
/// [`build`](Self::build) validates everything and returns the first error. Durations of more than a
/// year are treated as one year. The guide has tables of all settings, and their sources
/// ([configuration](crate::guide::configuration)).
pub struct PeerManagerBuilder<C> {
    peers: Vec<PeerConfig>,
    /// Weights, tiers and limits of peers by name. They may be set before the peers themselves.
    weights: Vec<(String, u32)>,
    tiers: Vec<(String, u32)>,
    limits: Vec<(String, u32)>,
    given: Given,
    health_check: Option<Box<ConnectionHook<C>>>,
    on_connect: Option<Box<ConnectionHook<C>>>,
    /// The credentials for every peer, in place of those in its URL.
    credentials: Credentials,
    credentials_provider: Option<Box<CredentialsProvider>>,
    event_handler: Option<Box<EventHandler>>,
    resolver: Box<Resolve>,
    rng_seed: Option<u64>,
    /// The prefixes of environment variables that were searched, for the error about missing peers.
    searched_prefixes: Vec<String>,
    /// The first error in a setting given as text.
    first_error: Option<BuildErrorKind>,
    /// Whether the checker runs no scheduled health checks.
    #[cfg(feature = "doctor")]
    without_checks: bool,
}

// Not derived, because the URLs are secrets and `C` need not be `Debug`.
impl<C> fmt::Debug for PeerManagerBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peers, weights, tiers, limits, given, credentials, rng_seed, .. } = self;
        // Names are left out: before `build()` has checked them, a name may be a URL.
        let numbers = |given: &[(String, u32)]| given.iter().map(|(_, number)| *number).collect();
        let [weights, tiers, limits]: [Vec<u32>; 3] =
            [weights, tiers, limits].map(|given| numbers(given));
        f.debug_struct("PeerManagerBuilder")
            .field("peers", &peers.len())
            .field("weights", &weights)
            .field("tiers", &tiers)
            .field("peer_max_connections", &limits)
            .field("settings", given)
            .field("credentials", credentials)
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
            limits: Vec::new(),
            given: Given::default(),
            health_check: None,
            on_connect: None,
            credentials: Credentials::default(),
            credentials_provider: None,
            event_handler: None,
            resolver: Box::new(resolver::system),
            rng_seed: None,
            searched_prefixes: Vec::new(),
            first_error: None,
            #[cfg(feature = "doctor")]
            without_checks: false,
        }
    }

    /// Adds a peer. The name appears in logs, metrics and [`Peers`](crate::Peers). The URL is the one
    /// that diesel's `establish` accepts; it is treated as a secret and never shown.
    ///
    /// At least one peer is required.
    #[must_use]
    pub fn peer(mut self, name: impl Into<String>, url: impl Into<String>) -> Self {
        self.peers.push(PeerConfig::new(name, url));
        self
    }

    /// Replaces the peers. A weight, tier or limit set for a peer that is no longer in the list is discarded; one
    /// in a [`PeerConfig`] replaces the earlier value.
    ///
    /// A [`PeerConfig`] carries a weight, a tier and a limit of its own, and is also what
    /// [`Peers::add`](crate::Peers::add) and [`Peers::replace`](crate::Peers::replace) accept, so one list of
    /// peers serves both the start and later changes.
    ///
    /// ```
    /// # use diesel::SqliteConnection;
    /// use diesel_peers::{PeerConfig, PeerManager};
    ///
    /// let peers = ["a", "b"].map(|name| PeerConfig::new(name, format!("file:{name}/shop.db?mode=rw")));
    /// let manager = PeerManager::<SqliteConnection>::builder().peers(peers).build()?;
    /// # Ok::<_, diesel_peers::BuildError>(())
    /// ```
    #[must_use]
    pub fn peers(mut self, peers: impl IntoIterator<Item = PeerConfig>) -> Self {
        let earlier = std::mem::replace(&mut self.peers, peers.into_iter().collect());
        let find = |name: &str| self.peers.iter().find(|peer| peer.name == name);
        let is_gone =
            |name: &str| find(name).is_none() && earlier.iter().any(|peer| peer.name == name);
        self.weights.retain(|(name, _)| {
            !is_gone(name) && find(name).is_none_or(|peer| peer.weight.is_none())
        });
        self.tiers.retain(|(name, _)| {
            !is_gone(name) && find(name).is_none_or(|peer| peer.tier.is_none())
        });
        self.limits.retain(|(name, _)| {
            !is_gone(name) && find(name).is_none_or(|peer| peer.max_connections.is_none())
        });
        self
    }

    /// Sets the name of the pool on status pages and in metrics, which distinguishes several pools. The
    /// name is shown as given.
    ///
    /// Defaults to `default`; in a Rocket application, to the name of the database.
    #[must_use]
    pub fn pool_name(mut self, pool_name: impl Into<String>) -> Self {
        self.given.pool_name = Some(pool_name.into());
        self
    }

    /// Sets the closure that is called for every [`Event`], one after the other, on a thread of its own.
    ///
    /// The handler may block and may panic: the pool goes on meanwhile. While it blocks, events queue up;
    /// events that find the queue full are dropped and counted in
    /// [`Snapshot::events_dropped`](crate::Snapshot::events_dropped). Events of the pool's last moments may
    /// be lost. The handler may use the [`Peers`](crate::Peers) and the pool, but must not own the pool,
    /// which would never end.
    ///
    /// The guide has an example ([events](crate::guide::observing#events)).
    ///
    /// No handler by default. The last call counts.
    #[must_use]
    pub fn event_handler(mut self, handler: impl Fn(&Event) + Send + 'static) -> Self {
        self.event_handler = Some(Box::new(handler));
        self
    }

    /// Sets the weight of a peer, by its name: its proportion of the work and of the connections. A peer
    /// of weight 2 gets twice the work of a peer of weight 1; a peer of weight 0 gets no new work. The
    /// pool should have as many connections as the sum of the weights, or a multiple of it.
    ///
    /// Defaults to 1.
    #[must_use]
    pub fn weight(mut self, name: impl Into<String>, weight: u32) -> Self {
        self.weights.push((name.into(), weight));
        self
    }

    /// Sets the tier of a peer, by its name, for [`Strategy::Ordered`]: the lowest tier with a peer that
    /// is up serves, and higher tiers wait. Other strategies ignore tiers.
    ///
    /// Defaults to 0.
    #[must_use]
    pub fn tier(mut self, name: impl Into<String>, tier: u32) -> Self {
        self.tiers.push((name.into(), tier));
        self
    }

    /// Sets the most connections that the pool may have with each peer, logins in progress included. So when
    /// peers fail, those that are left do not get all of the pool's connections, which together with those of
    /// other processes could be more than a server accepts. Health checks are not counted: a peer has at
    /// most one at a time, or two while its queries hang.
    ///
    /// While each peer that could take a connection has reached its limit, the pool has fewer connections
    /// than its `max_size`, and `pool.get()` waits for one of them; it fails after the pool's
    /// `connection_timeout`, and the error names the limit. The pool opens the missing connections as soon as
    /// a peer has room. The sum of the limits should be `max_size` or more, since `build` does not know
    /// `max_size`. Under [`Strategy::Ordered`], connections above the limits of a tier do not go to the next
    /// one.
    ///
    /// Defaults to no limit. The minimum is 1. [`peer_max_connections`](Self::peer_max_connections) sets the
    /// limit of one peer.
    #[must_use]
    pub fn max_connections(mut self, max_connections: u32) -> Self {
        self.given.max_connections = Some(Some(max_connections));
        self
    }

    /// Sets the most connections that the pool may have with one peer, by its name, in place of
    /// [`max_connections`](Self::max_connections).
    #[must_use]
    pub fn peer_max_connections(mut self, name: impl Into<String>, max_connections: u32) -> Self {
        self.limits.push((name.into(), max_connections));
        self
    }

    /// Chooses which peer serves a checkout.
    ///
    /// Defaults to [`Strategy::LeastConnections`].
    #[must_use]
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.given.strategy = Some(strategy);
        self
    }

    /// Chooses whether every checkout is balanced, or only the connections.
    ///
    /// Defaults to [`Balance::PerCheckout`].
    #[must_use]
    pub fn balance(mut self, balance: Balance) -> Self {
        self.given.balance = Some(balance);
        self
    }

    /// Sets the pace at which connections move to a peer that has too few: one per interval. A peer has
    /// too few because it came back, or was down at the start. A new connection to that peer takes the place
    /// of one to another peer, which is then closed.
    ///
    /// Defaults to 200 milliseconds, which moves 5 connections per second. With zero, slightly more
    /// connections than necessary may move.
    #[must_use]
    pub fn rebalance_interval(mut self, rebalance_interval: Duration) -> Self {
        self.given.rebalance_interval = Some(rebalance_interval);
        self
    }

    /// Sets the maximum age of a connection. A connection that comes back to the pool after this time is
    /// closed as soon as a new one has taken its place. Up to 10 % of the time is subtracted at random, so
    /// that connections that were opened together do not end together.
    ///
    /// r2d2's own `max_lifetime` and `idle_timeout` apply to the pool's slots, between which connections
    /// move.
    ///
    /// Defaults to 30 minutes, like r2d2's `max_lifetime`.
    #[must_use]
    pub fn connection_max_age(mut self, connection_max_age: Duration) -> Self {
        self.given.connection_max_age = Some(connection_max_age);
        self
    }

    /// Sets a closure that prepares each new connection before its first use, and the connection of each
    /// health check: `SET` statements, pragmas. An error is a failed login. The closure runs on a thread
    /// of its own, within [`connect_timeout`](Self::connect_timeout). An instrumentation that the
    /// closure sets is replaced afterwards.
    ///
    /// The pool's own `connection_customizer` works as well; one that uses the connection in
    /// `on_acquire` requires one call of [`prime`](crate::prime).
    ///
    /// Does nothing by default. The last call counts.
    #[must_use]
    pub fn on_connect(
        mut self,
        on_connect: impl Fn(&mut C) -> QueryResult<()> + Send + Sync + 'static,
    ) -> Self {
        self.on_connect = Some(Box::new(on_connect));
        self
    }

    /// Sets the user for the logins to every peer, in place of the user in the URLs.
    ///
    /// Defaults to the users in the URLs.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.credentials.user = Some(user.into());
        self
    }

    /// Sets the password for the logins to every peer, in place of the password in the URLs.
    ///
    /// Defaults to the passwords in the URLs.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.credentials.password = Some(password.into());
        self
    }

    /// Sets a closure that provides the credentials for a peer, by its name (`db/10.0.0.1` for an
    /// address of a [resolved](Self::resolve_interval) host `db`). The closure is called for every
    /// login, also for those of health checks, so passwords can change and tokens can expire while the
    /// application runs. The result takes the place of the URL's credentials and of
    /// [`user`](Self::user) and [`password`](Self::password). With [`Credentials::password`], the
    /// configured user stays in force: that of the setting `user`, or otherwise the URL's. An error or
    /// a panic of the closure is reported by the `connect()` that fails, or logged for a check; no peer
    /// is marked down for it.
    ///
    /// The closure runs on login threads, several at a time, within
    /// [`connect_timeout`](Self::connect_timeout). While all peers are down it is called every
    /// [`all_down_interval`](Self::all_down_interval) for each peer, so a closure that takes time should
    /// cache its result.
    ///
    /// The guide has an example ([credentials](crate::guide::configuration#credentials-from-a-closure)).
    ///
    /// Unset by default. The last call counts.
    #[must_use]
    pub fn credentials<E: Into<Box<dyn Error + Send + Sync>>>(
        mut self,
        credentials: impl Fn(&str) -> Result<Credentials, E> + Send + Sync + 'static,
    ) -> Self {
        self.credentials_provider =
            Some(Box::new(move |peer| credentials(peer).map_err(Into::into)));
        self
    }

    /// Sets the pool's `connection_timeout` for the manager, because r2d2 does not pass it to managers.
    /// The pool itself needs the same timeout. An explicit longer `connect_timeout`, `connect_deadline`
    /// or `ping_timeout` is then an error, and defaults are adjusted: `connect_deadline` becomes at
    /// most 80 % of the pool's timeout and `connect_timeout` at most 40 %, so that a pool that cannot
    /// be built reports the reason; `all_down_wait` becomes at least 60 %.
    ///
    /// Unset by default.
    #[must_use]
    pub fn pool_timeout(self, pool_timeout: Duration) -> Self {
        self.pool_timeout_as("pool_timeout", pool_timeout)
    }

    /// As `pool_timeout`, under the name that the setting has in its source, for errors.
    pub(crate) fn pool_timeout_as(mut self, name: &'static str, pool_timeout: Duration) -> Self {
        self.given.pool_timeout = Some(Some(pool_timeout));
        self.given.pool_timeout_name = Some(name);
        self
    }

    /// Sets the health check interval: the time after which a failed peer is checked, and between two
    /// checks of a peer that is up. Up to 10 % is added at random, so that many processes do not check
    /// at the same moment.
    ///
    /// Defaults to 30 seconds, as in django-proxysql. The minimum is 10 milliseconds.
    #[must_use]
    pub fn check_interval(mut self, check_interval: Duration) -> Self {
        self.given.check_interval = Some(check_interval);
        self
    }

    /// Sets the timeout of one login, including its readiness test (`BEGIN; ROLLBACK`),
    /// [`credentials`](Self::credentials), [`health_check`](Self::health_check) and
    /// [`on_connect`](Self::on_connect). A peer that has not answered by then is marked down, and its
    /// login is aborted. (diesel's `MysqlConnection` sets no timeout; `PgConnection` also gets libpq's
    /// own `connect_timeout`, in whole seconds, unless its URL or the environment sets one.)
    ///
    /// When a login takes longer than 250 milliseconds, and twice as long as usual for the peer, the
    /// next peer is tried in parallel, and the first to answer is used (a hedged login).
    ///
    /// Defaults to 5 seconds.
    #[must_use]
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.given.connect_timeout = Some(connect_timeout);
        self
    }

    /// Sets the deadline of one `connect()`, over all the logins that it makes. While every peer is
    /// down, add [`all_down_wait`](Self::all_down_wait) and one more `connect_deadline`.
    ///
    /// Defaults to 10 seconds.
    #[must_use]
    pub fn connect_deadline(mut self, connect_deadline: Duration) -> Self {
        self.given.connect_deadline = Some(connect_deadline);
        self
    }

    /// Sets the timeout of pings at a checkout, over all pings of that checkout. A connection is pinged
    /// if it was idle for [`ping_idle`](Self::ping_idle), if its socket has data to read or cannot be
    /// inspected, if its last queries leave a doubt, or if its peer is marked down.
    ///
    /// The ping of a connection whose socket is not known (a Unix socket, for example) is not bounded.
    ///
    /// Defaults to 1 second.
    #[must_use]
    pub fn ping_timeout(mut self, ping_timeout: Duration) -> Self {
        self.given.ping_timeout = Some(ping_timeout);
        self
    }

    /// Sets how often [`transaction_with_retry`](crate::PeerConnection::transaction_with_retry) and
    /// [`read_with_retry`](crate::PeerConnection::read_with_retry) run their work at most.
    ///
    /// Defaults to 10. 1 means that nothing is run again.
    #[must_use]
    pub fn retry_attempts(mut self, retry_attempts: u32) -> Self {
        self.given.retry_attempts = Some(retry_attempts);
        self
    }

    /// Sets the time after which work is not run again.
    ///
    /// Defaults to 30 seconds: a Galera cluster takes up to 15 to evict a member, and a query on a frozen server is
    /// aborted after some 4.
    #[must_use]
    pub fn retry_deadline(mut self, retry_deadline: Duration) -> Self {
        self.given.retry_deadline = Some(retry_deadline);
        self
    }

    /// Sets the ledger, which makes the outcome of each `COMMIT` of a
    /// [`transaction_with_retry`](crate::PeerConnection::transaction_with_retry) known.
    ///
    /// Defaults to none.
    #[must_use]
    pub fn ledger(mut self, ledger: impl Into<Ledger>) -> Self {
        self.given.ledger = Some(Some(ledger.into()));
        self
    }

    /// Sets the idle time after which a connection is pinged at its checkout. A connection that the
    /// server has closed meanwhile is detected without a ping.
    ///
    /// Defaults to 30 seconds. With zero, every checkout pings.
    #[must_use]
    pub fn ping_idle(mut self, ping_idle: Duration) -> Self {
        self.given.ping_idle = Some(ping_idle);
        self
    }

    /// Sets the time after which a query that is still running causes a health check of its peer. The
    /// peer is stalled when two checks in a row are not answered within
    /// [`check_timeout`](Self::check_timeout), an idle connection does not answer a ping, nothing else
    /// arrives from the peer, and another peer does answer. A stalled peer is marked down, and queries that
    /// have been running there for longer than this time are aborted: they fail as if their connection was
    /// lost. A query on a peer that answers is never aborted, however long it runs. A pooler that begins to
    /// answer logins and holds their queries is marked down only
    /// ([`pooler_wait`](Self::pooler_wait)).
    ///
    /// Defaults to 2 seconds. `None` never aborts queries.
    #[must_use]
    pub fn stall_after(mut self, stall_after: impl Into<Option<Duration>>) -> Self {
        self.given.stall_after = Some(stall_after.into());
        self
    }

    /// Sets how long a query may wait on a pooler that holds queries: it begins to answer logins and does not
    /// complete them, because it is paused or its server is gone. Its queries are aborted after this time
    /// if an idle connection does not answer a ping either, nothing else arrives from the peer, and another
    /// peer does answer. In any case such a peer is marked down and gets no new work.
    ///
    /// Must not be shorter than [`stall_after`](Self::stall_after). Defaults to `None`: the queries wait until
    /// the pooler goes on or reports its own timeout.
    #[must_use]
    pub fn pooler_wait(mut self, pooler_wait: impl Into<Option<Duration>>) -> Self {
        self.given.pooler_wait = Some(pooler_wait.into());
        self
    }

    /// Sets the timeout of a health check while queries hang or every peer is down. Twice the usual
    /// login time of the peer is used if that is longer, but never more than
    /// [`connect_timeout`](Self::connect_timeout). Before the first successful login to the peer, the
    /// full `connect_timeout` applies. While queries hang, a peer that has begun to answer within this
    /// time gets the full `connect_timeout`.
    ///
    /// Defaults to 1 second.
    #[must_use]
    pub fn check_timeout(mut self, check_timeout: Duration) -> Self {
        self.given.check_timeout = Some(check_timeout);
        self
    }

    /// Sets the idle time after which the kernel probes the other machine (TCP keepalive, in whole
    /// seconds). The kernel ends the connection after three unanswered probes, each a third of this time
    /// apart. The setting replaces the URL's.
    ///
    /// Defaults to 9 seconds, so that a vanished machine is detected within 18 seconds; the default leaves a
    /// longer `keepalives_idle` of a PostgreSQL URL, or its `keepalives=0`, unchanged. `None` leaves the setting
    /// of the client library or the URL unchanged.
    #[must_use]
    pub fn tcp_keepalive(mut self, keepalive: impl Into<Option<Duration>>) -> Self {
        self.given.tcp_keepalive = Some(keepalive.into());
        self
    }

    /// Sets the time for which sent data may stay unacknowledged before the kernel ends the connection
    /// (`TCP_USER_TIMEOUT`, in milliseconds). The setting replaces the URL's. A server that acknowledges and reads
    /// nothing for a while, because a bulk load waits for a lock, is given the time that it needs.
    ///
    /// Defaults to 20 seconds; the default leaves a longer `tcp_user_timeout` of a PostgreSQL URL unchanged.
    /// (The URL that is passed to [`peer`](Self::peer), where it counts milliseconds. In the URL that is passed
    /// to `url`, the name is that of this setting.) `None` leaves the setting of the client library or the URL
    /// unchanged.
    #[must_use]
    pub fn tcp_user_timeout(mut self, user_timeout: impl Into<Option<Duration>>) -> Self {
        self.given.tcp_user_timeout = Some(user_timeout.into());
        self
    }

    /// Chooses how a peer that is marked down comes back.
    ///
    /// Defaults to [`Recovery::AfterCheck`].
    #[must_use]
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.given.recovery = Some(recovery);
        self
    }

    /// Sets the role that every peer must have. The role is tested at each login and health check, and a
    /// peer with another role is marked down.
    ///
    /// Defaults to [`Role::Any`].
    #[must_use]
    pub fn require(mut self, role: Role) -> Self {
        self.given.requirements.get_or_insert_default().role = role;
        self
    }

    /// Chooses whether a Galera node serves while it is a donor.
    ///
    /// Defaults to [`Donors::ServeUnlessBlocked`].
    #[must_use]
    pub fn galera_donors(mut self, donors: Donors) -> Self {
        self.given.requirements.get_or_insert_default().donors = donors;
        self
    }

    /// Chooses whether a Galera node is asked for its state at each login and health check.
    ///
    /// Defaults to [`GaleraCheck::Enabled`].
    #[must_use]
    pub fn galera_check(mut self, galera_check: GaleraCheck) -> Self {
        self.given.requirements.get_or_insert_default().galera_check = galera_check;
        self
    }

    /// Chooses whether diesel keeps the prepared statements of each connection, as
    /// [`set_prepared_statement_cache_size`] does.
    ///
    /// Defaults to [`StatementCache::Unbounded`].
    ///
    /// [`set_prepared_statement_cache_size`]: diesel::Connection::set_prepared_statement_cache_size
    #[must_use]
    pub fn statement_cache(mut self, statement_cache: StatementCache) -> Self {
        self.given.statement_cache = Some(statement_cache);
        self
    }

    /// Sets a test that a peer must pass at each login and each health check. An error is a failed
    /// login. The closure runs on a thread of its own, within [`connect_timeout`](Self::connect_timeout)
    /// and before [`on_connect`](Self::on_connect); its changes of the session remain.
    ///
    /// Tests nothing in addition by default. The last call counts.
    #[must_use]
    pub fn health_check(
        mut self,
        health_check: impl Fn(&mut C) -> QueryResult<()> + Send + Sync + 'static,
    ) -> Self {
        self.health_check = Some(Box::new(health_check));
        self
    }

    /// Sets a closure that classifies failures before this crate's own tables do, for errors that the
    /// tables do not contain or classify wrongly. The closure is called for each failed login and each
    /// error of a query, in the thread of the failure; `None` leaves the decision to [`Fault::of_login`]
    /// and [`Fault::of`], and so does a panic. The error is the client library's own and may contain a
    /// URL or a password: do not log it.
    ///
    /// The fault of a query decides whether its connection is discarded ([`Fault::ConnectionLost`]), and
    /// whether its peer is marked down until an immediate check succeeds ([`Fault::PeerNotReady`]) or is
    /// only checked immediately ([`Fault::PeerDown`], [`Fault::Misconfigured`], [`Fault::OutOfResources`]).
    /// [`Fault::WrongRole`] under [`Role::ReadWrite`] has the connection's server asked for its role. The fault
    /// of a login decides whether the peer is marked down. The application receives the error unchanged.
    ///
    /// Unset by default. The last call counts.
    #[must_use]
    pub fn classify(
        mut self,
        classify: impl Fn(Failure<'_>) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        self.given.classifier = Some(Classifier::with_closure(Arc::new(classify)));
        self
    }

    /// Chooses what a new connection does while every peer is down.
    ///
    /// Defaults to [`AllDown::Try`].
    #[must_use]
    pub fn all_down(mut self, all_down: AllDown) -> Self {
        self.given.all_down = Some(all_down);
        self
    }

    /// Sets the health check interval while every peer is down. Up to 10 % is added at random. A peer
    /// that rejects the login is checked at most once every five seconds.
    ///
    /// Defaults to 250 milliseconds, so that a pool usually serves within half a second of a peer's
    /// return. The minimum is 10 milliseconds.
    #[must_use]
    pub fn all_down_interval(mut self, all_down_interval: Duration) -> Self {
        self.given.all_down_interval = Some(all_down_interval);
        self
    }

    /// Sets how long one `connect()` waits for a peer to return while every peer is down. The first
    /// `connect()` of an outage fails at once and reports the errors of all peers; after that, one call
    /// at a time waits, so that the pool serves as soon as a peer is back. (After a failed `connect()`,
    /// r2d2 lets the slot sleep for up to half the pool's `connection_timeout`.) A pool that is dropped
    /// meanwhile lives until the outage is over, but for about five minutes at most.
    ///
    /// Defaults to 20 seconds. The time should be more than half of the pool's `connection_timeout`.
    /// There is no wait with zero, with [`AllDown::Fail`], or on a worker of a `thread_pool` that was given to
    /// r2d2: other pools may need it.
    #[must_use]
    pub fn all_down_wait(mut self, all_down_wait: Duration) -> Self {
        self.given.all_down_wait = Some(all_down_wait);
        self
    }

    /// Sets the interval at which host names are resolved; up to 10 % is added at random. Each peer
    /// whose URL contains a host name is replaced by one peer for each of its addresses (`db/10.0.0.1`
    /// and so on for a peer `db`), with the same weight and tier. As the answers change, peers are
    /// added, and drained and removed. Peers whose URL contains an address or a socket stay unchanged. At most
    /// 256 addresses of a name are used.
    ///
    /// A name that was never resolved is a peer itself. [`build`](Self::build) waits up to a second for
    /// the first answers. An answer that is an error or contains no address changes nothing; an address
    /// is removed after it was missing from two answers in a row. Changes made by
    /// [`Peers`](crate::Peers) are not undone: a removed peer comes back only if its address disappeared
    /// and returned, and a peer added by hand stays.
    ///
    /// For `MysqlConnection`, `ssl_mode=verify_identity` is an error with this setting
    /// ([TLS](crate::guide::errors#tls)).
    ///
    /// Defaults to `None`: the client library resolves the name at each login and uses one of the
    /// addresses. The minimum is 10 milliseconds.
    #[must_use]
    pub fn resolve_interval(mut self, resolve_interval: impl Into<Option<Duration>>) -> Self {
        self.given.resolve_interval = Some(resolve_interval.into());
        self
    }

    /// Sets the closure that resolves host names for [`resolve_interval`](Self::resolve_interval). The
    /// closure is called for one name after the other on a thread of its own, which it may block. A
    /// panic counts as no answer.
    ///
    /// ```
    /// # use std::net::{IpAddr, ToSocketAddrs};
    /// # use diesel_peers::PeerManagerBuilder;
    /// # fn with_resolver<C>(builder: PeerManagerBuilder<C>) -> PeerManagerBuilder<C> {
    /// // A server with an IPv4 and an IPv6 address becomes one peer.
    /// builder.resolver(|host| {
    ///     let addresses = (host, 0).to_socket_addrs()?.map(|address| address.ip());
    ///     Ok(addresses.filter(IpAddr::is_ipv4).collect())
    /// })
    /// # }
    /// ```
    ///
    /// Defaults to the resolver of the operating system. The last call counts.
    #[must_use]
    pub fn resolver(
        mut self,
        resolver: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + 'static,
    ) -> Self {
        self.resolver = Box::new(resolver);
        self
    }

    /// Sets the time over which the share of a peer grows that begins to serve: a peer that comes back, is put
    /// back into service or is added at run time. It begins with a twentieth of its share of the work and of
    /// the connections, so that a server with a cold cache is not given its whole share at once. The peers at
    /// the start of the pool have their shares at once, and so does a peer that serves alone.
    ///
    /// Defaults to 0, which gives a peer its share at once.
    #[must_use]
    pub fn slow_start(mut self, slow_start: Duration) -> Self {
        self.given.slow_start = Some(slow_start);
        self
    }

    /// Chooses what happens when a peer is an outlier: alive, and much slower than the other peers.
    ///
    /// Compared is the query time of checkouts, which is the time that a checkout spends in its queries. A
    /// peer is slow if the middle of its query times is over [`slow_factor`](Self::slow_factor) times, and over
    /// [`slow_difference`](Self::slow_difference) above, that of the other peers, and a rank test says that
    /// chance is below one in a million. At most half of the peers are slow at a time. Peers are compared with
    /// those that serve at the same time, so with [`Strategy::Ordered`] within their tier, and not at all with
    /// [`Balance::PerConnection`].
    ///
    /// The guide says what a slow peer gets, and when to switch this off
    /// ([slow peers](crate::guide::slow_peers)).
    ///
    /// Defaults to [`SlowPeers::Shift`].
    #[must_use]
    pub fn slow_peers(mut self, slow_peers: SlowPeers) -> Self {
        self.given.slow_peers = Some(slow_peers);
        self
    }

    /// Sets how many times slower than the other peers a peer has to be in order to be slow.
    ///
    /// Defaults to 3. The minimum is 1.5.
    #[must_use]
    pub fn slow_factor(mut self, slow_factor: f64) -> Self {
        if !(slow_factor >= LEAST_SLOW_FACTOR && slow_factor.is_finite()) {
            let flaw = Flaw::new(format!("is {slow_factor}"), "give a number of at least 1.5");
            let (setting, key) = (Some("slow_factor"), "`slow_factor`".to_owned());
            return self.with_error(BuildErrorKind::Setting { setting, key, flaw });
        }
        self.given.slow_factor = Some(slow_factor);
        self
    }

    /// Sets the time by which the checkouts of a peer have to be longer than those of the other peers in order
    /// for the peer to be slow.
    ///
    /// Defaults to 1 millisecond.
    #[must_use]
    pub fn slow_difference(mut self, slow_difference: Duration) -> Self {
        self.given.slow_difference = Some(slow_difference);
        self
    }

    /// Seeds the random choices, which makes them repeatable as long as they are made in the same order.
    ///
    /// Defaults to a seed from the operating system.
    #[must_use]
    pub fn rng_seed(mut self, seed: u64) -> Self {
        self.rng_seed = Some(seed);
        self
    }
}

impl<C> PeerManagerBuilder<C> {
    /// Stores an error for `build()` to return, unless an earlier error is stored.
    pub(crate) fn with_error(mut self, error: BuildErrorKind) -> Self {
        self.first_error.get_or_insert(error);
        self
    }

    pub(crate) fn has_error(&self) -> bool {
        self.first_error.is_some()
    }

    /// Builds a manager without health checks: its checker only enforces deadlines.
    #[cfg(feature = "doctor")]
    pub(crate) fn without_checks(mut self) -> Self {
        self.without_checks = true;
        self
    }

    #[cfg(feature = "rocket")]
    pub(crate) fn has_pool_timeout(&self) -> bool {
        self.given.pool_timeout.is_some()
    }

    /// Records a prefix of environment variables under which `url` was searched.
    pub(crate) fn with_searched_prefix(mut self, prefix: &str) -> Self {
        self.searched_prefixes.push(prefix.to_owned());
        self
    }
}

/// The settings given so far, for tests to compare.
#[cfg(test)]
impl<C> PeerManagerBuilder<C> {
    /// Each peer's name and URL.
    pub(crate) fn given_peers(&self) -> Vec<(&str, &str)> {
        self.peers.iter().map(|peer| (&*peer.name, &*peer.url)).collect()
    }

    /// Every setting that can be given as text, secrets included.
    pub(crate) fn given(&self) -> String {
        let Self { weights, tiers, limits, given, rng_seed, first_error, .. } = self;
        let Credentials { user, password } = &self.credentials;
        let of_peer = |peer: &PeerConfig| (peer.weight, peer.tier, peer.max_connections);
        let of_peers: Vec<_> = self.peers.iter().map(of_peer).collect();
        format!(
            "{:?} {of_peers:?} {weights:?} {tiers:?} {limits:?} {given:?} {user:?} {password:?} {rng_seed:?} \
             {first_error:?}",
            self.given_peers(),
        )
    }

    pub(crate) fn into_first_error(self) -> Option<String> {
        self.first_error.map(|error| BuildError::from(error).to_string())
    }
}

impl<C: R2D2Connection + Send + 'static> PeerManagerBuilder<C> {
    /// Builds the manager and starts its background threads. Does not connect to any peer, so peers may be
    /// down at this time. (With [`resolve_interval`](Self::resolve_interval), the call waits up to a
    /// second for the addresses of the peers.)
    ///
    /// # Errors
    ///
    /// An error is returned when there is no peer; when a name is empty, used twice or not printable; when a URL is
    /// malformed; when a setting given as text cannot be parsed; when a duration is below its minimum or conflicts with
    /// another one; when a weight, a tier or a limit is set for an unknown peer; when every weight or any limit is 0;
    /// or when the operating system provides no thread or no randomness. Whether a well-formed URL leads to a server is
    /// found out by the first login.
    pub fn build(self) -> Result<PeerManager<C>, BuildError> {
        let Self { peers, weights, tiers, limits, given, health_check, on_connect, .. } = self;
        if let Some(error) = self.first_error {
            return Err(error.into());
        }
        if peers.is_empty() {
            return Err(PeersError::NoPeers { prefixes: self.searched_prefixes }.into());
        }
        if let Some(name) = &given.pool_name {
            validate_pool_name(name)?;
        }
        if let Some(Some(ledger)) = &given.ledger {
            validate_ledger(ledger, Dialect::for_connection::<C>())?;
        }
        validate_names(&peers)?;
        let weight_of = by_name("weight", &peers, &weights)?;
        let tier_of = by_name("tier", &peers, &tiers)?;
        let limit_of = by_name("peer_max_connections", &peers, &limits)?;
        if let Some(PeerConfig { name, .. }) =
            peers.iter().find(|peer| limit_of(&peer.name) == Some(0))
        {
            return Err(PeersError::NoConnections { name: name.clone() }.into());
        }
        let mut settings = given.resolve()?;
        settings.classifier.dialect = Dialect::for_connection::<C>();
        #[cfg(feature = "doctor")]
        let settings = if self.without_checks { settings.without_checks() } else { settings };
        let validator = PeerValidator {
            dialect: Dialect::for_connection::<C>(),
            credentials: self.credentials,
            credentials_at_login: self.credentials_provider.is_some(),
            connect_timeout: settings.connect_timeout,
            resolve_hosts: settings.resolve_interval.is_some(),
        };
        let urls = validator.login_urls(&peers)?;
        validator.validate_hosts(&peers, &urls)?;
        #[expect(clippy::disallowed_methods, reason = "the manager's clock starts here")]
        let now = Instant::now();
        let peer = |(PeerConfig { name, weight, tier, max_connections, .. }, url)| {
            let weight = weight_of(&name).or(weight).unwrap_or(1);
            let tier = tier_of(&name).or(tier).unwrap_or(0);
            let max_connections = limit_of(&name).or(max_connections).or(settings.max_connections);
            let mut peer = Peer::new(Arc::from(name), url, weight, tier, now);
            peer.max_connections = max_connections;
            peer
        };
        let peers: Vec<Peer> = peers.into_iter().zip(urls).map(peer).collect();
        if peers.iter().all(|peer| peer.weight == 0) {
            return Err(PeersError::NoWeight.into());
        }
        let mut rng = match self.rng_seed {
            Some(seed) => SmallRng::seed_from_u64(seed),
            None => SmallRng::try_from_rng(&mut SysRng)
                .map_err(|error| BuildErrorKind::System(io::Error::other(error)))?,
        };
        let hooks = Arc::new(Hooks {
            health_check,
            on_connect,
            credentials_provider: self.credentials_provider,
        });
        let customizer = match settings.balance {
            Balance::PerCheckout => Customizer::Unknown,
            // In such a pool nothing shows whether the customizer uses its connections.
            Balance::PerConnection => Customizer::UsesAll,
        };
        // A generator of its own: the random choices of the set and of the exchange stay independent.
        let exchange_rng = rng.fork();
        let exchange = Exchange::new(settings.strategy, customizer, exchange_rng);
        let (stop, stopped) = bounded(0);
        let event_log = match self.event_handler {
            Some(handler) => {
                let (event_log, events) = EventLog::with_queue();
                dispatcher::start(handler, events, stopped.clone())
                    .map_err(BuildErrorKind::System)?;
                event_log
            }
            None => EventLog::default(),
        };
        let (wake, woken) = bounded(1);
        let set = Arc::new(PeerSet::new(peers, settings, validator, event_log, rng, wake, now));
        #[cfg(feature = "metrics")]
        crate::metrics::start(set.clone(), stopped.clone()).map_err(BuildErrorKind::System)?;
        let pool = Arc::new(PoolState {
            set: set.clone(),
            exchange,
            replacement: Replacement::default(),
            hooks,
        });
        let checker_stopped = stopped.clone();
        checker::start(
            set.clone(),
            Arc::downgrade(&pool),
            pool.hooks.clone(),
            woken,
            checker_stopped,
        )
        .map_err(BuildErrorKind::System)?;
        if set.settings().resolve_interval.is_some() {
            resolver::start(self.resolver, set, stopped).map_err(BuildErrorKind::System)?;
        }
        Ok(PeerManager::new(pool, stop))
    }
}

fn validate_ledger(ledger: &Ledger, dialect: Dialect) -> Result<(), BuildErrorKind> {
    ledger.validate(dialect).map_err(|flaw| BuildErrorKind::Setting {
        setting: Some("ledger"),
        key: "the ledger".to_owned(),
        flaw,
    })
}

fn validate_pool_name(name: &str) -> Result<(), BuildErrorKind> {
    let flaw = match name {
        _ if name.trim().is_empty() => "is empty",
        _ if name.contains("://") => "is a URL",
        _ if !name.chars().all(is_printable) => "contains a character that is not printable",
        _ => return Ok(()),
    };
    let flaw = Flaw::new(flaw, "give a name to show on pages and in metrics");
    Err(BuildErrorKind::Setting { setting: Some("pool_name"), key: "`pool_name`".to_owned(), flaw })
}

/// Looks up a setting by the name of its peer. The last value set for a name counts.
fn by_name<'a>(
    setting: &'static str,
    peers: &[PeerConfig],
    values: &'a [(String, u32)],
) -> Result<impl Fn(&str) -> Option<u32> + use<'a>, PeersError> {
    let stray = values.iter().find(|(name, _)| peers.iter().all(|peer| peer.name != *name));
    if let Some((name, _)) = stray {
        let names = peers.iter().map(|peer| peer.name.clone()).collect();
        return Err(PeersError::UnknownPeer {
            setting: Some(setting),
            name: shown_name(name),
            names,
        });
    }
    Ok(|wanted: &str| values.iter().rev().find(|(name, _)| name == wanted).map(|(_, value)| *value))
}
