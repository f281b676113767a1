//! Why a configuration cannot be examined.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use diesel_peers::doctor::shown::may_be_shown;

/// The error of [`Request::examine`](crate::request::Request::examine). Neither `Debug` nor `Display` shows any part of a URL.
pub(crate) struct RequestError(RequestErrorKind);

/// Everything that [`RequestError`] reports.
pub(crate) enum RequestErrorKind {
    Unreadable(PathBuf, io::Error),
    InvalidToml {
        path: PathBuf,
        line: usize,
        reason: String,
    },
    TableWithoutFile,
    InvalidTablePath(String),
    TableNotFound {
        path: String,
        /// The first key of the path that does not exist.
        key: String,
        /// The tables that exist beside the missing one.
        existing: Vec<String>,
        /// The tables that contain peers.
        tables: Vec<String>,
    },
    InvalidSetting(String),
    UnknownScheme,
    FileInsteadOfUrl,
    UnexpandedVariable,
    #[cfg(not(all(feature = "mysql", feature = "postgres", feature = "sqlite")))]
    MissingFeature(&'static str),
    Settings {
        text: String,
        /// The tables that contain peers, if the settings were read from one that contains none.
        tables: Vec<String>,
    },
}

impl From<RequestErrorKind> for RequestError {
    fn from(kind: RequestErrorKind) -> Self {
        Self(kind)
    }
}

impl fmt::Debug for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Suggests the tables that contain peers.
struct Suggestion<'a>(&'a [String]);

impl fmt::Display for Suggestion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [table] => write!(f, "the table `{table}` contains peers: select it with `--table`"),
            tables => {
                let tables = tables.join("`, `");
                write!(f, "the tables `{tables}` contain peers: select one with `--table`")
            }
        }
    }
}

/// Returns the path of a file, or a replacement if the path may be a secret.
fn shown(path: &Path) -> String {
    let path = path.display().to_string();
    if may_be_shown(&path) { path } else { "the file (name hidden: may be a secret)".to_owned() }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            RequestErrorKind::Unreadable(path, error) => write!(f, "cannot read {}: {error}", shown(path)),
            RequestErrorKind::InvalidToml { path, line, reason } => {
                write!(f, "invalid TOML in {}, line {line}: {reason}", shown(path))
            }
            RequestErrorKind::TableWithoutFile => f.write_str("a table was given without a file"),
            RequestErrorKind::InvalidTablePath(path) => {
                if may_be_shown(path) {
                    write!(f, "`{path}`")?;
                } else {
                    f.write_str("the given path (hidden: may be a secret)")?;
                }
                f.write_str(" is not the path of a table: use the form `default.databases.shop`")
            }
            RequestErrorKind::TableNotFound { path, key, existing, tables } => {
                if may_be_shown(path) && may_be_shown(key) {
                    write!(f, "the file has no table `{path}`: `{key}` does not exist")?;
                } else {
                    f.write_str("the file has no table of the given path (hidden: may be a secret)")?;
                }
                if !existing.is_empty() {
                    write!(f, "; existing tables there: {}", existing.join(", "))?;
                }
                if tables.is_empty() { Ok(()) } else { write!(f, "; {}", Suggestion(tables)) }
            }
            RequestErrorKind::InvalidSetting(text) => f.write_str(text),
            RequestErrorKind::FileInsteadOfUrl => f.write_str(
                "the URL is the name of a TOML file: pass the file with `--config`",
            ),
            RequestErrorKind::UnexpandedVariable => f.write_str(
                "the URL begins with `$`: the shell did not expand the variable",
            ),
            RequestErrorKind::UnknownScheme => f.write_str(
                "the URL has no known scheme: use `mysql://` (also for MariaDB), `postgres://`, \
                 `postgresql://`, `sqlite://` or `file:`, or for SQLite a path that contains `/` or `.`",
            ),
            #[cfg(not(all(feature = "mysql", feature = "postgres", feature = "sqlite")))]
            RequestErrorKind::MissingFeature(feature) => write!(
                f,
                "the URL requires the feature `{feature}`, which is not enabled: run \
                 `cargo install diesel-peers-cli --features {feature}`",
            ),
            RequestErrorKind::Settings { text, tables } if tables.is_empty() => f.write_str(text),
            // The wrong table is the cause of the error, whichever the error is.
            RequestErrorKind::Settings { tables, .. } => Suggestion(tables).fmt(f),
        }
    }
}

impl Error for RequestError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            RequestErrorKind::Unreadable(_, error) => Some(error),
            _ => None,
        }
    }
}
