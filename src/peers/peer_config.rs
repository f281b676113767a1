//! The configuration of a peer, and its validation in `build()` and at run time: names are valid and
//! unique, and URLs are prepared for logging in.

use std::env;
use std::fmt;
use std::time::Duration;

use crate::error::{Flaw, PeersError};
use crate::redact::{is_mistaken_url, is_printable};
use crate::url::dialect::Dialect;
use crate::url::{Credentials, PeerUrl};

/// The time by which libpq's own timeout of a login is longer than the one of this crate. libpq counts
/// whole seconds of the clock.
const LIBPQ_TIMEOUT_MARGIN: Duration = Duration::from_secs(2);

/// The environment variable from which libpq takes the timeout of a login if the URL does not set
/// one.
const LIBPQ_TIMEOUT_VARIABLE: &str = "PGCONNECT_TIMEOUT";

/// The configuration of a peer: its name, its URL and, optionally, its weight, its tier and its limit of
/// connections.
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
    pub(crate) max_connections: Option<u32>,
}

impl PeerConfig {
    /// Creates the configuration of a peer from its name and its URL, as
    /// [`PeerManagerBuilder::peer`](crate::PeerManagerBuilder::peer) does.
    #[must_use]
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        let (name, url) = (name.into(), url.into());
        Self { name, url, weight: None, tier: None, max_connections: None }
    }

    /// Sets the weight, as [`PeerManagerBuilder::weight`](crate::PeerManagerBuilder::weight) does.
    ///
    /// Defaults to 1 for a new peer. A peer that exists already keeps its weight.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = Some(weight);
        self
    }

    /// Sets the tier, as [`PeerManagerBuilder::tier`](crate::PeerManagerBuilder::tier) does.
    ///
    /// Defaults to 0 for a new peer. A peer that exists already keeps its tier.
    #[must_use]
    pub fn tier(mut self, tier: u32) -> Self {
        self.tier = Some(tier);
        self
    }

    /// Sets the limit of connections, as
    /// [`PeerManagerBuilder::peer_max_connections`](crate::PeerManagerBuilder::peer_max_connections) does.
    ///
    /// Defaults to [`max_connections`](crate::PeerManagerBuilder::max_connections) for a new peer. A peer that
    /// exists already keeps its limit.
    #[must_use]
    pub fn max_connections(mut self, max_connections: u32) -> Self {
        self.max_connections = Some(max_connections);
        self
    }
}

/// Omits the URL, which is a secret, and the name, which may contain one.
impl fmt::Debug for PeerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name: _, url: _, weight, tier, max_connections } = self;
        f.debug_struct("PeerConfig")
            .field("weight", weight)
            .field("tier", tier)
            .field("max_connections", max_connections)
            .finish_non_exhaustive()
    }
}

/// Validates peers, and prepares their URLs for logging in.
#[derive(Debug)]
pub(crate) struct PeerValidator {
    pub(crate) dialect: Dialect,
    /// The user and the password for every peer. They take precedence over those in its URL.
    pub(crate) credentials: Credentials,
    /// Whether the credentials are requested from the application for each login.
    pub(crate) credentials_at_login: bool,
    pub(crate) connect_timeout: Duration,
    /// Whether this crate resolves the host names.
    pub(crate) resolve_hosts: bool,
}

impl PeerValidator {
    /// Validates the names and URLs of peers that are added at run time, and returns the URLs for
    /// logging in.
    pub(crate) fn validate(&self, peers: &[PeerConfig]) -> Result<Vec<PeerUrl>, PeersError> {
        validate_names(peers)?;
        let urls = self.login_urls(peers)?;
        // In `build()` the settings take precedence over the URLs. At run time they were given long
        // ago, and an operator who gives another password in a URL expects that one to be used. So
        // a conflict is an error.
        for PeerConfig { name, url, .. } in peers {
            if let Some(setting) = PeerUrl::new(url.clone()).conflict_with(&self.credentials) {
                return Err(PeersError::Overruled { name: name.clone(), setting });
            }
        }
        Ok(urls)
    }

    /// Validates the URLs of these peers, and returns the URLs for logging in.
    pub(crate) fn login_urls(&self, peers: &[PeerConfig]) -> Result<Vec<PeerUrl>, PeersError> {
        let url = |PeerConfig { name, url, .. }: &PeerConfig| {
            self.login_url(url.clone()).map_err(|flaw| PeersError::Url { name: name.clone(), flaw })
        };
        peers.iter().map(url).collect()
    }

    /// Validates that in the URL of each peer whose host name is resolved, the name can be replaced
    /// by an address.
    pub(crate) fn validate_hosts(
        &self,
        peers: &[PeerConfig],
        urls: &[PeerUrl],
    ) -> Result<(), PeersError> {
        let resolved = peers.iter().zip(urls).filter(|(_, url)| self.host_name(url).is_some());
        for (PeerConfig { name, .. }, url) in resolved {
            let invalid = |flaw| PeersError::Url { name: name.clone(), flaw };
            url.check_address_allowed(self.dialect).map_err(invalid)?;
        }
        Ok(())
    }

    /// Returns the name of a peer's host, if that name is to be resolved.
    pub(crate) fn host_name(&self, url: &PeerUrl) -> Option<String> {
        self.resolve_hosts.then(|| url.host_name(self.dialect)).flatten()
    }

    fn login_url(&self, url: String) -> Result<PeerUrl, Flaw> {
        let mut url = PeerUrl::new(url);
        url.check(self.dialect)?;
        if self.credentials != Credentials::default() {
            url = url.with_credentials(&self.credentials)?;
        }
        if self.credentials_at_login {
            url.with_credentials(&Credentials::new("", ""))?;
        }
        if self.dialect == Dialect::Postgres && env::var_os(LIBPQ_TIMEOUT_VARIABLE).is_none() {
            // libpq's timeout must be the later one, because its error would look like an answer of
            // the server.
            url = url.with_libpq_timeout(self.connect_timeout.saturating_add(LIBPQ_TIMEOUT_MARGIN));
        }
        Ok(url)
    }
}

/// Validates that the names of peers are valid and unique, and that each peer may get a connection.
pub(crate) fn validate_names(peers: &[PeerConfig]) -> Result<(), PeersError> {
    for (index, PeerConfig { name, max_connections, .. }) in peers.iter().enumerate() {
        if name.trim().is_empty() {
            return Err(PeersError::EmptyName { position: index + 1 });
        }
        if is_mistaken_url(name) {
            return Err(PeersError::UrlAsName { position: index + 1 });
        }
        if !name.chars().all(is_printable) {
            return Err(PeersError::UnprintableName { name: name.clone() });
        }
        if peers[..index].iter().any(|earlier| earlier.name == *name) {
            return Err(PeersError::DuplicateName { name: name.clone() });
        }
        if *max_connections == Some(0) {
            return Err(PeersError::NoConnections { name: name.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
impl Default for PeerValidator {
    fn default() -> Self {
        Self {
            dialect: Dialect::Other,
            credentials: Credentials::default(),
            credentials_at_login: false,
            connect_timeout: Duration::from_secs(5),
            resolve_hosts: false,
        }
    }
}
