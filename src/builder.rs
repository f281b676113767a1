//! Every setting, its default and its check.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use diesel::r2d2::R2D2Connection;
use rand::SeedableRng;
use rand::rngs::{SmallRng, SysRng};

use crate::checker;
use crate::manager::PeerManager;
use crate::set::PeerSet;
use crate::url::PeerUrl;

/// How long a failure mark holds when nothing else is said. From django-proxysql.
const DEFAULT_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// How a peer that is down comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Recheck {
    /// The manager logs in by itself and runs `BEGIN; ROLLBACK`. When that succeeds the mark is
    /// cleared, else it is renewed, so that no user's request is spent on finding out.
    #[default]
    Probe,
    /// The mark is cleared without asking, as django-proxysql does, and the next connection that
    /// goes there finds out. Peers that are up are probed all the same.
    Clear,
}

/// What a new connection does while every peer is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AllDown {
    /// Try them, the one that is due soonest first.
    #[default]
    Try,
    /// Fail at once, until a check has found a peer up.
    Fail,
}

/// Builds a [`PeerManager`].
///
/// Every check is made in [`build`](Self::build); a wrong setting is an error there, never
/// corrected silently.
pub struct PeerManagerBuilder<C> {
    peers: Vec<(String, String)>,
    check_interval: Duration,
    recheck: Recheck,
    all_down: AllDown,
    rng_seed: Option<u64>,
    connection: PhantomData<fn() -> C>,
}

/// Not derived: the URLs are secrets, and `C` need not be `Debug`.
impl<C> fmt::Debug for PeerManagerBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peers, check_interval, recheck, all_down, rng_seed, connection: _ } = self;
        let names: Vec<&str> = peers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("PeerManagerBuilder")
            .field("peers", &names)
            .field("check_interval", check_interval)
            .field("recheck", recheck)
            .field("all_down", all_down)
            .field("rng_seed", rng_seed)
            .finish()
    }
}

impl<C> PeerManagerBuilder<C> {
    pub(crate) fn new() -> Self {
        Self {
            peers: Vec::new(),
            check_interval: DEFAULT_CHECK_INTERVAL,
            recheck: Recheck::default(),
            all_down: AllDown::default(),
            rng_seed: None,
            connection: PhantomData,
        }
    }

    /// Adds a peer. Its name stands in logs and in [`Peers`](crate::Peers); its URL, which is what
    /// diesel's `establish` takes, is a secret and shown nowhere.
    ///
    /// At least one peer is needed.
    #[must_use]
    pub fn peer(mut self, name: impl Into<String>, url: impl Into<String>) -> Self {
        self.peers.push((name.into(), url.into()));
        self
    }

    /// How long a peer that failed is left alone before it is checked, and how often a peer that
    /// is up is probed. Each check comes up to 10 % later than that, by chance, so that many
    /// processes do not check at once.
    ///
    /// Defaults to 30 seconds, as in django-proxysql.
    #[must_use]
    pub fn check_interval(mut self, check_interval: Duration) -> Self {
        self.check_interval = check_interval;
        self
    }

    /// How a peer that is down comes back.
    ///
    /// Defaults to [`Recheck::Probe`].
    #[must_use]
    pub fn recheck(mut self, recheck: Recheck) -> Self {
        self.recheck = recheck;
        self
    }

    /// What a new connection does while every peer is down.
    ///
    /// Defaults to [`AllDown::Try`].
    #[must_use]
    pub fn all_down(mut self, all_down: AllDown) -> Self {
        self.all_down = all_down;
        self
    }

    /// Makes every choice by chance repeatable.
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
        let Self { peers, check_interval, recheck, all_down, rng_seed, connection: _ } = self;
        if peers.is_empty() {
            return Err(Kind::NoPeers.into());
        }
        for (index, (name, url)) in peers.iter().enumerate() {
            if name.trim().is_empty() {
                return Err(Kind::EmptyName { position: index + 1 }.into());
            }
            if name.chars().any(char::is_control) {
                return Err(Kind::UnprintableName { name: name.clone() }.into());
            }
            if peers[..index].iter().any(|(earlier, _)| earlier == name) {
                return Err(Kind::DuplicateName { name: name.clone() }.into());
            }
            if let Err(flaw) = check_url(url) {
                return Err(Kind::Url { name: name.clone(), flaw }.into());
            }
        }
        if check_interval.is_zero() {
            return Err(Kind::ZeroCheckInterval.into());
        }
        let rng = match rng_seed {
            Some(seed) => SmallRng::seed_from_u64(seed),
            None => SmallRng::try_from_rng(&mut SysRng)
                .map_err(|error| Kind::System(io::Error::other(error)))?,
        };
        let peers =
            peers.into_iter().map(|(name, url)| (Arc::from(name), PeerUrl::new(url))).collect();
        let (wake, woken) = bounded(1);
        #[expect(clippy::disallowed_methods, reason = "the manager's story starts here")]
        let now = Instant::now();
        let set = Arc::new(PeerSet::new(peers, check_interval, recheck, all_down, rng, wake, now));
        let checker = checker::start::<C>(set.clone(), woken).map_err(Kind::System)?;
        Ok(PeerManager::new(set, checker))
    }
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

/// Why a [`PeerManager`] was not built.
#[derive(Debug)]
pub struct BuildError {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    NoPeers,
    EmptyName { position: usize },
    UnprintableName { name: String },
    DuplicateName { name: String },
    Url { name: String, flaw: &'static str },
    ZeroCheckInterval,
    System(io::Error),
}

impl From<Kind> for BuildError {
    fn from(kind: Kind) -> Self {
        Self { kind }
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::NoPeers => {
                f.write_str("there is no peer: add at least one with `peer(name, url)`")
            }
            Kind::EmptyName { position } => write!(
                f,
                "the name of peer number {position} is empty: give it a name to be known by in logs",
            ),
            Kind::UnprintableName { name } => write!(
                f,
                "the peer name {name:?} holds a control character: names are printed in logs",
            ),
            Kind::DuplicateName { name } => {
                write!(f, "two peers have the name {name:?}: each peer needs a name of its own")
            }
            Kind::Url { name, flaw } => write!(
                f,
                "the URL of peer {name:?} {flaw}: give the URL that diesel's `establish` takes",
            ),
            Kind::ZeroCheckInterval => f.write_str(
                "`check_interval` is zero: give the time after which a failed peer is checked \
                 again, for example 30 seconds",
            ),
            Kind::System(error) => {
                write!(f, "the operating system did not give what the checker needs: {error}")
            }
        }
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            Kind::System(error) => Some(error),
            _ => None,
        }
    }
}
