//! Why a manager was not built, or its peers not changed: what is wrong, and what would be right.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::time::Duration;

/// What is wrong with a text, to be read after its name: "is empty".
pub(crate) type Flaw = Cow<'static, str>;

/// Why a [`PeerManager`](crate::PeerManager) was not built. `Debug` tells the same as `Display`: it is
/// what a `main` that returns an error shows.
pub struct BuildError {
    kind: Kind,
}

impl fmt::Debug for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug)]
pub(crate) enum Kind {
    NoPeers {
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
    /// One is to be added, and there is one by this name.
    NameTaken {
        name: String,
    },
    Url {
        name: String,
        flaw: Flaw,
    },
    /// Its URL says who logs in, and the setting says something else.
    Overruled {
        name: String,
        setting: &'static str,
    },
    /// A setting in text: its key where it stands, what is wrong, and what would be right.
    Setting {
        key: String,
        flaw: Flaw,
        right: Flaw,
    },
    TooShort {
        setting: &'static str,
        duration: Duration,
        least: Duration,
    },
    /// The first is longer, and would have to be no longer than the second.
    Contradiction {
        shorter: (&'static str, Duration),
        longer: (&'static str, Duration),
    },
    NoSuchPeer {
        /// What it was to be given, at the start.
        setting: Option<&'static str>,
        /// As it may be shown.
        name: Flaw,
        names: Vec<String>,
    },
    NoWeight,
    LastPeer {
        name: String,
    },
    System(io::Error),
}

/// What stands where a secret was.
pub(crate) const REDACTED: &str = "***";

/// Whether a text may be shown as it was given. Who mistakes one place for another gives a URL, or
/// libpq's keywords, where a name, a path or a number should stand; and they may hold a password.
pub(crate) fn may_be_shown(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    // A name tells nothing: `SHOP_DB_PASSWORD`.
    let is_name = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let is_plain = is_name || !text.contains("password");
    is_plain && !text.contains("://") && !text.contains(['@', '='])
}

/// A text, struck out if it may not be shown.
pub(crate) fn shown_or_struck(text: &str) -> &str {
    if may_be_shown(text) { text } else { REDACTED }
}

/// What was given as a name, if it may be shown.
pub(crate) fn shown_name(name: &str) -> Flaw {
    if may_be_shown(name) {
        format!("{name:?}").into()
    } else {
        "whose name may be a secret".into()
    }
}

impl From<Kind> for BuildError {
    fn from(kind: Kind) -> Self {
        Self { kind }
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.kind, f)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPeers { prefixes } => {
                f.write_str(
                    "there is no peer: give at least one, with `peer(name, url)`, `url` or `peers`",
                )?;
                prefixes.iter().filter(|prefix| may_be_shown(prefix)).try_for_each(|prefix| {
                    write!(f, " (the environment variable `{prefix}URL` is not set)")
                })
            }
            Self::EmptyName { position } => write!(
                f,
                "the name of peer number {position} is empty: give it a name to be known by in logs",
            ),
            // The name is not shown: it holds the password.
            Self::UrlAsName { position } => write!(
                f,
                "the name of peer number {position} is a URL: it is `peer(name, url)`, and names are \
                 printed in logs",
            ),
            Self::UnprintableName { name } => write!(
                f,
                "the peer name {name:?} holds a control character: names are printed in logs",
            ),
            Self::DuplicateName { name } => {
                write!(f, "two peers have the name {name:?}: each peer needs a name of its own")
            }
            Self::NameTaken { name } => write!(
                f,
                "there is a peer {name:?} already: give this one another name, or change that one with \
                 `replace`, which is given all peers",
            ),
            Self::Overruled { name, setting } => write!(
                f,
                "the URL of peer {name:?} names another {setting} than the setting `{setting}`, which \
                 is every peer's: leave it out of the URL, or give `credentials` in place of the \
                 setting, which is asked at each login",
            ),
            Self::Url { name, flaw } => write!(
                f,
                "the URL of peer {name:?} {flaw}{}",
                // What is said already how to mend needs no more.
                if flaw.contains(": ") {
                    ""
                } else {
                    ": give what diesel's `establish` takes, as `mysql://user:password@host/database`"
                },
            ),
            Self::Setting { key, flaw, right } => write!(f, "{key} {flaw}: {right}"),
            Self::TooShort { setting, duration, least } => {
                write!(f, "`{setting}` is {duration:?}: give at least {least:?}")
            }
            Self::Contradiction { shorter, longer } => write!(
                f,
                "`{}` is {:?}, and `{}` only {:?}: make the first no longer than the second",
                shorter.0, shorter.1, longer.0, longer.1,
            ),
            Self::NoSuchPeer { setting, name, names } => {
                write!(f, "there is no peer {name}")?;
                if let Some(setting) = setting {
                    write!(f, " to give a {setting} to")?;
                }
                write!(f, ": the peers are {}", names.join(", "))
            }
            Self::NoWeight => f.write_str(
                "every peer has weight 0: no peer would get any work, give one a weight",
            ),
            Self::LastPeer { name } => write!(
                f,
                "peer {name:?} cannot be removed: no other has a weight, so nobody would serve",
            ),
            Self::System(error) => {
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

/// Why the peers were not changed, from a method of [`Peers`](crate::Peers). Nothing was changed.
pub struct ChangeError {
    kind: Kind,
}

impl From<Kind> for ChangeError {
    fn from(kind: Kind) -> Self {
        Self { kind }
    }
}

impl fmt::Debug for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.kind, f)
    }
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.kind, f)
    }
}

impl std::error::Error for ChangeError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_shown() {
        for text in [
            "",
            "db0",
            "30 parsecs",
            "[::1]:5432",
            "/srv/shop.toml",
            "default.databases.shop",
            "DB_PASSWORD",
        ] {
            assert!(may_be_shown(text), "{text}");
        }
        for text in [
            "mysql://db0/shop",
            "mysql:/app:s3cret@db0/shop",
            "app:s3cret@db0",
            "host=h user=app",
            "my Password s3cret",
        ] {
            assert!(!may_be_shown(text), "{text}");
        }
    }

    #[test]
    fn a_prefix_that_is_a_url() {
        let prefixes = vec!["mysql://app:s3cret@db0/".to_owned(), "SHOP_".to_owned()];
        let told = Kind::NoPeers { prefixes }.to_string();
        assert!(told.contains("`SHOP_URL`") && !told.contains("s3cret"), "{told}");
    }
}
