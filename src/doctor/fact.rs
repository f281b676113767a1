//! The aspects in which peers are compared, and the values that peers have for them.

use std::fmt;

/// A property of a peer that the examination collects and compares. Some describe the server, others a
/// session as the application gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Aspect {
    /// The version of the server; for SQLite, the version of the library.
    Version,
    /// The host and port that the server itself reports. (Not for SQLite.)
    Server,
    /// The current database of a session. (Not for SQLite.)
    Database,
    /// The TLS version and cipher of a session, or none if it is not encrypted. (Not for SQLite.)
    Encryption,
    /// Whether the peer accepts writes: `read-write`, `read-only` or `standby`. (Not for SQLite.)
    Role,
    /// The UUID of the Galera cluster, or none if the server is not a Galera node. (MySQL and MariaDB.)
    Cluster,
    /// Whether the node's part of the cluster has a quorum: `wsrep_cluster_status`. (Galera.)
    ClusterStatus,
    /// The number of nodes in the node's part of the cluster. (Galera.)
    ClusterSize,
    /// The state of the node, such as `Synced`. (Galera.)
    NodeState,
    /// Whether the node accepts queries. (Galera.)
    NodeReady,
    /// The system identifier of the database cluster, which a standby shares with its primary.
    /// (PostgreSQL.)
    SystemIdentifier,
    /// The inode and device of the database's file. (SQLite, on Unix.)
    File,
    /// The versions in diesel's table `__diesel_schema_migrations`, or none if the table does not exist.
    Migrations,
    /// The name of the history that the [ledger](crate::Ledger) of the pool has on the peer, or none if it was not
    /// used yet. A ledger of transaction ids has the system identifier.
    LedgerHistory,
    /// The `sql_mode` of a session. (MySQL and MariaDB.)
    SqlMode,
    /// The isolation level of a session's transactions. (Not for SQLite.)
    Isolation,
    /// The character set of the database.
    CharacterSet,
    /// The collation of the database. (Not for SQLite.)
    Collation,
    /// The collation of a session's connection. (MySQL and MariaDB.)
    SessionCollation,
    /// The client character set of a session. (Not for SQLite.)
    ClientCharacterSet,
    /// The default character set and collation of new databases. (MySQL and MariaDB.)
    ServerCharacterSet,
    /// The time zone of the server. diesel sets the time zone of its own sessions to UTC. (Not for
    /// SQLite.)
    TimeZone,
    /// The journal mode of the database's file. (SQLite.)
    JournalMode,
}

impl Aspect {
    /// Returns a stable `snake_case` name, as used in [`Report::to_json`](super::Report::to_json).
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Server => "server",
            Self::Database => "database",
            Self::Encryption => "encryption",
            Self::Role => "role",
            Self::Cluster => "cluster",
            Self::ClusterStatus => "cluster_status",
            Self::ClusterSize => "cluster_size",
            Self::NodeState => "node_state",
            Self::NodeReady => "node_ready",
            Self::SystemIdentifier => "system_identifier",
            Self::File => "file",
            Self::Migrations => "migrations",
            Self::LedgerHistory => "ledger_history",
            Self::SqlMode => "sql_mode",
            Self::Isolation => "isolation",
            Self::CharacterSet => "character_set",
            Self::Collation => "collation",
            Self::SessionCollation => "session_collation",
            Self::ClientCharacterSet => "client_character_set",
            Self::ServerCharacterSet => "server_character_set",
            Self::TimeZone => "time_zone",
            Self::JournalMode => "journal_mode",
        }
    }
}

/// Writes the name with spaces instead of underscores. `sql_mode` keeps its underscore.
impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Self::SqlMode => self.as_str().to_owned(),
            _ => self.as_str().replace('_', " "),
        })
    }
}

/// The value that a peer has for one [`Aspect`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FactValue {
    /// The peer has no such thing: no table of migrations, no encryption or no cluster.
    None,
    /// A single value, as the server reports it.
    Text(String),
    /// Several values in ascending order, such as the parts of `sql_mode` or the migrations.
    List(Vec<String>),
    /// The reason why the value could not be read. Unknown values are not compared.
    Unknown(String),
}

impl FactValue {
    #[cfg(any(test, feature = "mysql"))]
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn sorted_list(values: impl IntoIterator<Item = String>) -> Self {
        let mut values: Vec<String> = values.into_iter().collect();
        values.sort_unstable();
        Self::List(values)
    }

    /// Returns the text for tables and sentences. Migrations are reduced to their number and the newest.
    pub(super) fn summary(&self, aspect: Aspect) -> String {
        match (self, aspect) {
            (Self::None, _) => "none".to_owned(),
            (Self::Text(text), _) => text.clone(),
            (Self::List(versions), Aspect::Migrations) => match versions.last() {
                Some(newest) => format!("{}, the newest {newest}", versions.len()),
                None => "0".to_owned(),
            },
            (Self::List(values), _) => values.join(","),
            (Self::Unknown(reason), _) => format!("unknown: {reason}"),
        }
    }
}
