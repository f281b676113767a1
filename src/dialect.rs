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

    /// The one of a URL with this scheme, which tells where the connection does not.
    pub(crate) fn of_scheme(self, scheme: &str) -> Self {
        match scheme {
            _ if self != Self::Other => self,
            "mysql" => Self::MySql,
            "postgres" | "postgresql" => Self::Postgres,
            "sqlite" | "file" => Self::Sqlite,
            _ => Self::Other,
        }
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

/// How a MySQL connection is to be encrypted, by the `ssl_mode` of its URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encryption {
    /// As the client library and the server agree on.
    AsItComes,
    Required,
    /// And the server's certificate is looked at.
    Verified,
}

impl Encryption {
    pub(crate) fn of(ssl_mode: &str) -> Result<Self, Flaw> {
        match ssl_mode.to_ascii_lowercase().as_str() {
            "disabled" | "preferred" => Ok(Self::AsItComes),
            "required" => Ok(Self::Required),
            "verify_ca" | "verify_identity" if LIBRARY_VERIFIES => Ok(Self::Verified),
            "verify_ca" | "verify_identity" => Err(
                "asks for the server's certificate to be verified, which the client library that is \
                 linked here, MariaDB's, does not do: link MySQL's own (`libmysqlclient`), or end TLS \
                 in a proxy beside the application"
                    .into(),
            ),
            _ => Err("has an `ssl_mode` that is none of disabled, preferred, required, verify_ca and \
                      verify_identity"
                .into()),
        }
    }
}

/// MariaDB's client library does not know `ssl_mode`.
#[cfg(feature = "mysql")]
const LIBRARY_VERIFIES: bool = mysqlclient_sys::SUPPORTS_MYSQL_SSL_MODE;
#[cfg(not(feature = "mysql"))]
const LIBRARY_VERIFIES: bool = true;

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
