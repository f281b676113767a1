//! Which database a connection is made to, as far as its URL depends on it.

use std::any::TypeId;
use std::fmt;

use crate::error::Flaw;

/// The form of a connection's URLs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(all(feature = "mysql", feature = "postgres", feature = "sqlite")), allow(dead_code))]
pub(crate) enum Dialect {
    MySql,
    Postgres,
    Sqlite,
    /// A connection of somebody else's, or several in one.
    Other,
}

impl Dialect {
    /// The one of diesel's connection `C`. (Not of its backend: what wraps a connection may have URLs
    /// of its own.)
    pub(crate) fn of<C: 'static>() -> Self {
        let connection = TypeId::of::<C>();
        #[cfg(feature = "mysql")]
        if connection == TypeId::of::<diesel::MysqlConnection>() {
            return Self::MySql;
        }
        #[cfg(feature = "postgres")]
        if connection == TypeId::of::<diesel::PgConnection>() {
            return Self::Postgres;
        }
        #[cfg(feature = "sqlite")]
        if connection == TypeId::of::<diesel::SqliteConnection>() {
            return Self::Sqlite;
        }
        let _ = connection;
        Self::Other
    }

    /// Whether diesel would know the URL for one of this database.
    pub(crate) fn check_scheme(self, scheme: &str) -> Result<(), Flaw> {
        let known: &[&str] = match self {
            Self::MySql => &["mysql"],
            Self::Postgres => &["postgres", "postgresql"],
            Self::Sqlite => &["sqlite", "file"],
            Self::Other => return Ok(()),
        };
        if known.contains(&scheme) {
            return Ok(());
        }
        Err(format!("does not begin with `{}://`, as a {self} URL does", known[0]).into())
    }

    /// Whether a connection knows this parameter of its URL. Where that cannot be told it does.
    pub(crate) fn knows(self, parameter: &str) -> bool {
        let known = self.parameters();
        known.is_empty() || known.contains(&parameter)
    }

    /// The parameters that a URL may have. Empty where others are passed on to the client library.
    pub(crate) fn parameters(self) -> &'static [&'static str] {
        match self {
            // diesel reads these, and silently passes over all others.
            Self::MySql => &["unix_socket", "ssl_mode", "ssl_ca", "ssl_cert", "ssl_key"],
            Self::Postgres | Self::Sqlite | Self::Other => &[],
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MySql => "MySQL",
            Self::Postgres => "PostgreSQL",
            Self::Sqlite => "SQLite",
            Self::Other => "database",
        })
    }
}
