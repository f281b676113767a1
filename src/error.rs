//! The errors of `build()` and of run-time changes: each names the flaw and its correction.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::time::Duration;

use crate::redact::may_be_shown;

/// A flaw of a named text, and how to correct it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    /// What is wrong, phrased to be read after the name: "is empty".
    pub(crate) what: Cow<'static, str>,
    /// An instruction. `None` if the correction follows from the kind of the text.
    pub(crate) correction: Option<Cow<'static, str>>,
}

impl Flaw {
    pub(crate) fn new(
        what: impl Into<Cow<'static, str>>,
        correction: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { what: what.into(), correction: Some(correction.into()) }
    }

    /// Adds a correction, unless there is one.
    pub(crate) fn or_correction(mut self, correction: &'static str) -> Self {
        self.correction.get_or_insert(correction.into());
        self
    }
}

impl<T: Into<Cow<'static, str>>> From<T> for Flaw {
    fn from(what: T) -> Self {
        Self { what: what.into(), correction: None }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.correction.iter().try_for_each(|correction| write!(f, ": {correction}"))
    }
}

/// The error of [`PeerManagerBuilder::build`](crate::PeerManagerBuilder::build).
///
/// `Display` names the setting, the value where it is not a secret, the flaw and the correction. `Debug`
/// prints the same text, because a `main` that returns an error prints `Debug`.
pub struct BuildError {
    kind: BuildErrorKind,
}

impl BuildError {
    /// Returns the name of the setting that the error is about, which is the name of its builder method.
    ///
    /// `None` for a flawed or missing peer, for a key that is not a setting, and for an error of the operating
    /// system. Of two settings that conflict this is the one to shorten.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use diesel::SqliteConnection;
    /// # use diesel_peers::PeerManager;
    /// let builder = PeerManager::<SqliteConnection>::builder().peer("db0", "file:shop.db");
    /// let error = builder.check_interval(Duration::ZERO).build().unwrap_err();
    /// assert_eq!(error.setting(), Some("check_interval"));
    /// ```
    #[must_use]
    pub fn setting(&self) -> Option<&str> {
        match &self.kind {
            BuildErrorKind::Setting { setting, .. }
            | BuildErrorKind::Peers(PeersError::UnknownPeer { setting, .. }) => *setting,
            BuildErrorKind::Peers(PeersError::NoWeight) => Some("weight"),
            BuildErrorKind::Peers(PeersError::NoConnections { .. }) => Some("peer_max_connections"),
            BuildErrorKind::Peers(_) | BuildErrorKind::System(_) => None,
            BuildErrorKind::TooShort { setting, .. }
            | BuildErrorKind::Conflict { shorter: (setting, _), .. } => Some(setting),
        }
    }
}

/// Everything that [`BuildError`] reports.
#[derive(Debug)]
pub(crate) enum BuildErrorKind {
    Peers(PeersError),
    /// A setting given as text, or one whose value is not valid.
    Setting {
        /// The setting's name, if it is known and not a secret.
        setting: Option<&'static str>,
        /// The setting as it is called in its source: "`SHOP_DB_URL`", "`weight` in the URL".
        key: String,
        flaw: Flaw,
    },
    TooShort {
        setting: &'static str,
        duration: Duration,
        least: Duration,
    },
    /// `shorter` is longer than `longer`, and must not be.
    Conflict {
        shorter: (&'static str, Duration),
        longer: (&'static str, Duration),
    },
    System(io::Error),
}

/// A list of peers, or a change of one, that is not acceptable.
#[derive(Debug)]
pub(crate) enum PeersError {
    NoPeers {
        /// The prefixes of environment variables that were searched.
        prefixes: Vec<String>,
    },
    EmptyName {
        position: usize,
    },
    UrlAsName {
        position: usize,
    },
    UnprintableName {
        name: String,
    },
    DuplicateName {
        name: String,
    },
    /// The limit of connections is 0.
    NoConnections {
        name: String,
    },
    NameTaken {
        name: String,
    },
    Url {
        name: String,
        flaw: Flaw,
    },
    /// The peer's URL has a user or a password, and the setting has another one.
    Overruled {
        name: String,
        setting: &'static str,
    },
    UnknownPeer {
        /// The setting that the builder was to give to the peer.
        setting: Option<&'static str>,
        /// The name in a form that may be shown.
        name: Cow<'static, str>,
        names: Vec<String>,
    },
    NoWeight,
    LastPeer {
        name: String,
    },
}

impl From<BuildErrorKind> for BuildError {
    fn from(kind: BuildErrorKind) -> Self {
        Self { kind }
    }
}

impl From<PeersError> for BuildError {
    fn from(error: PeersError) -> Self {
        BuildErrorKind::Peers(error).into()
    }
}

impl fmt::Debug for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            BuildErrorKind::Peers(error) => fmt::Display::fmt(error, f),
            BuildErrorKind::Setting { setting: _, key, flaw } => write!(f, "{key} {flaw}"),
            BuildErrorKind::TooShort { setting, duration, least } => {
                write!(f, "`{setting}` is {duration:?}: the minimum is {least:?}")
            }
            BuildErrorKind::Conflict { shorter, longer } => write!(
                f,
                "`{}` ({:?}) is longer than `{}` ({:?}): make the first no longer than the second",
                shorter.0, shorter.1, longer.0, longer.1,
            ),
            BuildErrorKind::System(error) => {
                write!(f, "cannot start a background thread or obtain randomness: {error}")
            }
        }
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            BuildErrorKind::System(error) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Display for PeersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPeers { prefixes } => {
                f.write_str(
                    "no peer is configured: add at least one with `peer(name, url)`, `url` or `peers`",
                )?;
                prefixes.iter().filter(|prefix| may_be_shown(prefix)).try_for_each(|prefix| {
                    write!(f, " (the environment variable `{prefix}URL` is not set)")
                })
            }
            Self::EmptyName { position } => write!(
                f,
                "the name of peer number {position} is empty: every peer needs a name, which appears in \
                 logs and metrics",
            ),
            // The name is not shown: it is a URL, which may contain a password.
            Self::UrlAsName { position } => write!(
                f,
                "the name of peer number {position} is a URL or a part of one: the arguments are \
                 `peer(name, url)`, and names appear in logs",
            ),
            Self::UnprintableName { name } => write!(
                f,
                "the peer name {name:?} contains a character that is not printable: names appear in \
                 logs",
            ),
            Self::DuplicateName { name } => {
                write!(f, "two peers have the name {name:?}: every peer needs a name of its own")
            }
            Self::NoConnections { name } => write!(
                f,
                "the `max_connections` of peer {name:?} is 0: the minimum is 1; a peer of weight 0 gets no \
                 new connection, and a drained peer loses those that it has",
            ),
            Self::NameTaken { name } => write!(
                f,
                "a peer with the name {name:?} exists already: choose another name, or change that peer \
                 with `replace`, which takes the complete list of peers",
            ),
            Self::Overruled { name, setting } => write!(
                f,
                "the URL of peer {name:?} has another {setting} than the setting `{setting}`, which \
                 applies to every peer: remove the {setting} from the URL, or use the closure \
                 `credentials`, which is called for every login, in place of the setting",
            ),
            Self::Url { name, flaw: Flaw { what, correction } } => {
                let correction = correction.as_deref().unwrap_or(
                    "give a URL that diesel's `establish` accepts, as \
                     `mysql://user:password@host/database`",
                );
                write!(f, "the URL of peer {name:?} {what}: {correction}")
            }
            Self::UnknownPeer { setting, name, names } => {
                if let Some(setting) = setting {
                    write!(f, "a {setting} is set for ")?;
                }
                write!(f, "unknown peer {name}: the peers are {}", names.join(", "))
            }
            Self::NoWeight => f.write_str(
                "every peer has weight 0, so no peer would get any work: give at least one peer a \
                 weight of 1 or more",
            ),
            Self::LastPeer { name } => write!(
                f,
                "peer {name:?} cannot be removed: no other peer has a weight above 0, so no peer would \
                 be left to serve",
            ),
        }
    }
}

/// The error of a method of [`Peers`](crate::Peers) that changes the peers. After an error nothing has
/// changed.
///
/// `Display` and `Debug` print the same text: the flaw and the correction.
pub struct ChangeError {
    error: PeersError,
}

/// The category of a [`ChangeError`], for example to choose an HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ChangeErrorKind {
    /// No peer has this name, or the peer is being removed.
    UnknownPeer,
    /// Another peer has this name already.
    NameTaken,
    /// The name or the URL of a new peer is not valid, two new peers have the same name, or a limit of
    /// connections is 0.
    InvalidPeer,
    /// The change would leave no peer with a weight above 0.
    NoPeerLeft,
}

impl ChangeError {
    /// Returns the category of the error.
    ///
    /// ```
    /// use diesel_peers::{ChangeErrorKind, Peers};
    ///
    /// fn http_status_of_drain(peers: &Peers, name: &str) -> u16 {
    ///     match peers.drain(name).map_err(|error| error.kind()) {
    ///         Ok(_) => 202,
    ///         Err(ChangeErrorKind::UnknownPeer) => 404,
    ///         Err(_) => 409,
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn kind(&self) -> ChangeErrorKind {
        match &self.error {
            PeersError::UnknownPeer { .. } => ChangeErrorKind::UnknownPeer,
            PeersError::NameTaken { .. } => ChangeErrorKind::NameTaken,
            PeersError::EmptyName { .. }
            | PeersError::UrlAsName { .. }
            | PeersError::UnprintableName { .. }
            | PeersError::DuplicateName { .. }
            | PeersError::NoConnections { .. }
            | PeersError::Url { .. }
            | PeersError::Overruled { .. } => ChangeErrorKind::InvalidPeer,
            PeersError::NoPeers { .. } | PeersError::NoWeight | PeersError::LastPeer { .. } => {
                ChangeErrorKind::NoPeerLeft
            }
        }
    }
}

impl From<PeersError> for ChangeError {
    fn from(error: PeersError) -> Self {
        Self { error }
    }
}

impl fmt::Debug for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl std::error::Error for ChangeError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_that_is_a_url_is_not_shown() {
        let prefixes = vec!["mysql://app:s3cret@db0/".to_owned(), "SHOP_".to_owned()];
        let text = PeersError::NoPeers { prefixes }.to_string();
        assert!(text.contains("`SHOP_URL`") && !text.contains("s3cret"), "{text}");
    }
}
