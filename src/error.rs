//! Why a manager was not built: every wrong setting, and what to change.

use std::fmt;
use std::io;
use std::time::Duration;

/// Why a [`PeerManager`](crate::PeerManager) was not built.
#[derive(Debug)]
pub struct BuildError {
    kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    NoPeers,
    EmptyName { position: usize },
    UrlAsName { position: usize },
    UnprintableName { name: String },
    DuplicateName { name: String },
    Url { name: String, flaw: &'static str },
    TooShort { setting: &'static str, least: Duration },
    NoSuchPeer { setting: &'static str, name: String },
    NoWeight,
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
            // The name is not shown: it holds the password.
            Kind::UrlAsName { position } => write!(
                f,
                "the name of peer number {position} is a URL: it is `peer(name, url)`, and names are \
                 printed in logs",
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
            Kind::TooShort { setting, least } => {
                write!(f, "`{setting}` is zero or too short: give at least {least:?}")
            }
            Kind::NoSuchPeer { setting, name } => write!(
                f,
                "there is no peer {name:?} to give a {setting} to: use a name given to `peer`",
            ),
            Kind::NoWeight => f.write_str(
                "every peer has weight 0: no peer would get any work, give one a weight",
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
