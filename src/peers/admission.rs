//! What a peer has to be to be admitted, at the start and later.

use std::env;
use std::fmt;
use std::time::Duration;

use crate::dialect::Dialect;
use crate::error::{Flaw, Kind};
use crate::url::{Credentials, PeerUrl};

/// How much later than this crate libpq ends a login by itself. It counts whole seconds of the clock.
const LIBPQ_LATER: Duration = Duration::from_secs(2);

/// Where libpq finds the timeout of a login that no URL sets.
const LIBPQ_TIMEOUT: &str = "PGCONNECT_TIMEOUT";

/// A peer as it is given: its name, its URL, and, if they are not to be left as they are, its weight
/// and its tier.
///
/// ```
/// use diesel_peers::PeerConfig;
///
/// let peer = PeerConfig::new("db3", "mysql://app:secret@db3/shop").weight(2);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct PeerConfig {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) weight: Option<u32>,
    pub(crate) tier: Option<u32>,
}

impl PeerConfig {
    /// As [`PeerManagerBuilder::peer`](crate::PeerManagerBuilder::peer).
    #[must_use]
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self { name: name.into(), url: url.into(), weight: None, tier: None }
    }

    /// As [`PeerManagerBuilder::weight`](crate::PeerManagerBuilder::weight).
    ///
    /// Defaults to 1, and to what it was for a peer that is there already.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = Some(weight);
        self
    }

    /// As [`PeerManagerBuilder::tier`](crate::PeerManagerBuilder::tier).
    ///
    /// Defaults to 0, and to what it was for a peer that is there already.
    #[must_use]
    pub fn tier(mut self, tier: u32) -> Self {
        self.tier = Some(tier);
        self
    }
}

/// Without the URL, which is a secret, and the name, which is not known not to be one.
impl fmt::Debug for PeerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name: _, url: _, weight, tier } = self;
        f.debug_struct("PeerConfig")
            .field("weight", weight)
            .field("tier", tier)
            .finish_non_exhaustive()
    }
}

/// What the URLs of a manager's peers have to be, and what is made of them.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) dialect: Dialect,
    /// Who logs in to every peer, in place of what its URL says.
    pub(crate) login: Credentials,
    /// Whether that is asked for at each login.
    pub(crate) asked_at_login: bool,
    pub(crate) connect_timeout: Duration,
    /// Whether the names of hosts are resolved.
    pub(crate) resolves: bool,
}

impl Admission {
    /// Sees that the names and URLs of these newcomers can be such, and returns the URLs to log in with.
    pub(crate) fn check(&self, peers: &[PeerConfig]) -> Result<Vec<PeerUrl>, Kind> {
        check_names(peers)?;
        let urls = self.urls(peers)?;
        // At the start a setting is known to take the place of what a URL says. Here it was given long
        // ago, and who gives another password now wants that one to count.
        for PeerConfig { name, url, .. } in peers {
            if let Some(setting) = PeerUrl::new(url.clone()).conflict_with(&self.login) {
                return Err(Kind::Overruled { name: name.clone(), setting });
            }
        }
        Ok(urls)
    }

    /// The URLs to log in with, once it is seen that they can be such.
    pub(crate) fn urls(&self, peers: &[PeerConfig]) -> Result<Vec<PeerUrl>, Kind> {
        let url = |PeerConfig { name, url, .. }: &PeerConfig| {
            self.url(url.clone()).map_err(|flaw| Kind::Url { name: name.clone(), flaw })
        };
        peers.iter().map(url).collect()
    }

    /// Sees that the addresses of these peers' hosts may stand for them, where they are resolved.
    pub(crate) fn check_hosts(&self, peers: &[PeerConfig], urls: &[PeerUrl]) -> Result<(), Kind> {
        let resolved = peers.iter().zip(urls).filter(|(_, url)| self.host_name(url).is_some());
        for (PeerConfig { name, .. }, url) in resolved {
            let wrong = |flaw| Kind::Url { name: name.clone(), flaw };
            url.check_address_allowed(self.dialect).map_err(wrong)?;
        }
        Ok(())
    }

    /// The name of a peer's host, if it is one that is resolved.
    pub(crate) fn host_name(&self, url: &PeerUrl) -> Option<String> {
        self.resolves.then(|| url.host_name(self.dialect)).flatten()
    }

    fn url(&self, url: String) -> Result<PeerUrl, Flaw> {
        let mut url = PeerUrl::new(url);
        url.check(self.dialect)?;
        if self.login != Credentials::default() {
            url = url.with_credentials(&self.login)?;
        }
        if self.asked_at_login {
            url.with_credentials(&Credentials::new("", ""))?;
        }
        if self.dialect == Dialect::Postgres && env::var_os(LIBPQ_TIMEOUT).is_none() {
            // After ours: libpq's reads like an answer.
            url = url.with_libpq_timeout(self.connect_timeout.saturating_add(LIBPQ_LATER));
        }
        Ok(url)
    }
}

/// Sees that names can be such, and are different.
pub(crate) fn check_names(peers: &[PeerConfig]) -> Result<(), Kind> {
    for (index, PeerConfig { name, .. }) in peers.iter().enumerate() {
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
    }
    Ok(())
}

#[cfg(test)]
impl Default for Admission {
    fn default() -> Self {
        Self {
            dialect: Dialect::Other,
            login: Credentials::default(),
            asked_at_login: false,
            connect_timeout: Duration::from_secs(5),
            resolves: false,
        }
    }
}
