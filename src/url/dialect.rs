//! The database of a connection, which determines the form of its URL.

use std::any::TypeId;
use std::fmt;

use crate::error::Flaw;

/// The form of the URLs that a connection type accepts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(all(feature = "mysql", feature = "postgres", feature = "sqlite")), allow(dead_code))]
pub(crate) enum Dialect {
    MySql,
    Postgres,
    Sqlite,
    /// A connection type outside of diesel, or one that supports several databases.
    #[default]
    Other,
}

impl Dialect {
    /// Returns the dialect of diesel's connection type `C`. The backend does not decide, because a type
    /// that wraps a connection may have its own form of URLs.
    pub(crate) fn for_connection<C: 'static>() -> Self {
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

    /// Returns this dialect, or if it is `Other`, the dialect of the scheme of a URL.
    pub(crate) fn or_from_scheme(self, scheme: &str) -> Self {
        match scheme {
            _ if self != Self::Other => self,
            "mysql" => Self::MySql,
            "postgres" | "postgresql" => Self::Postgres,
            "sqlite" | "file" => Self::Sqlite,
            _ => Self::Other,
        }
    }

    /// Checks that diesel recognizes the scheme as a URL of this database.
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
        Err(format!("does not begin with `{}://`, as a {self} URL must", known[0]).into())
    }

    /// Whether a URL may have this parameter. True if the parameters of the dialect are not known.
    pub(crate) fn accepts(self, parameter: &str) -> bool {
        let accepted = self.parameters();
        accepted.is_empty() || accepted.contains(&parameter)
    }

    /// Returns the parameters that a URL may have. Empty if diesel passes all parameters on to the client
    /// library.
    pub(crate) fn parameters(self) -> &'static [&'static str] {
        match self {
            // diesel reads these and silently ignores all others.
            Self::MySql => &["unix_socket", "ssl_mode", "ssl_ca", "ssl_cert", "ssl_key"],
            Self::Postgres | Self::Sqlite | Self::Other => &[],
        }
    }
}

/// The encryption that the `ssl_mode` of a MySQL URL requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encryption {
    /// Encryption is disabled, or the client library and the server negotiate it.
    NotRequired,
    Required,
    /// Encryption is required, and the client library verifies who has signed the server's certificate.
    VerifiedCa,
    /// Encryption is required, and the client library verifies the server's certificate and its name.
    VerifiedIdentity,
}

impl Encryption {
    pub(crate) fn from_ssl_mode(ssl_mode: &str) -> Result<Self, Flaw> {
        match ssl_mode.to_ascii_lowercase().as_str() {
            "disabled" | "preferred" => Ok(Self::NotRequired),
            "required" => Ok(Self::Required),
            "verify_ca" => Ok(Self::VerifiedCa),
            "verify_identity" => Ok(Self::VerifiedIdentity),
            _ => Err(Flaw::new(
                "has an unknown `ssl_mode`",
                "give one of disabled, preferred, required, verify_ca and verify_identity",
            )),
        }
    }
}

/// Whether the linked client library supports `ssl_mode`. MariaDB's library ignores it.
#[cfg(feature = "mysql")]
pub(crate) const LIBRARY_HAS_SSL_MODE: bool = mysqlclient_sys::SUPPORTS_MYSQL_SSL_MODE;
#[cfg(not(feature = "mysql"))]
pub(crate) const LIBRARY_HAS_SSL_MODE: bool = true;

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
