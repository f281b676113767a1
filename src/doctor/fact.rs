//! What a peer can be asked about itself, and what it may say.

use std::fmt;

/// What a peer is asked about itself. Some are the server's, others those of a session as the application
/// has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Aspect {
    /// Its version. For SQLite that of the library.
    Version,
    /// Where it says it is: its host and port. (Not for SQLite.)
    Server,
    /// The database that a session is in. (Not for SQLite.)
    Database,
    /// The TLS version and cipher of the session, or none. (Not for SQLite.)
    Encryption,
    /// Whether it takes writes: `read-write`, `read-only` or `standby`. (Not for SQLite.)
    Role,
    /// The Galera cluster's UUID, or none. (MySQL and MariaDB.)
    Cluster,
    /// Galera: whether its part of the cluster has a quorum.
    ClusterStatus,
    /// Galera: of how many nodes its part of the cluster is.
    ClusterSize,
    /// Galera: what the node does, as `Synced`.
    NodeState,
    /// Galera: whether the node takes queries.
    NodeReady,
    /// What a cluster's data were made as, which a standby has in common with its primary. (PostgreSQL.)
    SystemIdentifier,
    /// The file that the path leads to: its inode and device. (SQLite, on Unix.)
    File,
    /// The versions in diesel's `__diesel_schema_migrations`, or none where there is no such table.
    Migrations,
    /// The session's modes. (MySQL and MariaDB.)
    SqlMode,
    /// The isolation level of the session's transactions. (Not for SQLite.)
    Isolation,
    /// The character set of the database.
    CharacterSet,
    /// The collation of the database. (Not for SQLite.)
    Collation,
    /// The collation of a session's texts. (MySQL and MariaDB.)
    SessionCollation,
    /// The character set of a session's texts. (Not for SQLite.)
    ClientCharacterSet,
    /// The character set and collation of databases that are created. (MySQL and MariaDB.)
    ServerCharacterSet,
    /// The server's time zone. diesel sets that of its sessions to UTC. (Not for SQLite.)
    TimeZone,
    /// How the file keeps its transactions. (SQLite.)
    JournalMode,
}

impl Aspect {
    /// What it is called in [`Report::to_json`](super::Report::to_json).
    #[must_use]
    pub fn key(self) -> &'static str {
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

/// The key, in words.
impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Self::SqlMode => self.key().to_owned(),
            _ => self.key().replace('_', " "),
        })
    }
}

/// What a peer says of one [`Aspect`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value {
    /// There is no such thing: no table of migrations, no encryption, no cluster.
    None,
    /// As the server says it.
    Text(String),
    /// Several, sorted: modes, migrations.
    List(Vec<String>),
    /// It could not be asked, and why. It is not compared.
    Unknown(String),
}

impl Value {
    #[cfg(any(test, feature = "mysql"))]
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn list(values: impl IntoIterator<Item = String>) -> Self {
        let mut values: Vec<String> = values.into_iter().collect();
        values.sort_unstable();
        Self::List(values)
    }

    /// As it is shown in a table. Of migrations only the newest matters.
    pub(super) fn shown(&self, aspect: Aspect) -> String {
        match (self, aspect) {
            (Self::None, _) => "none".to_owned(),
            (Self::Text(text), _) => text.clone(),
            (Self::List(versions), Aspect::Migrations) => match versions.last() {
                Some(newest) => format!("{}, the newest {newest}", versions.len()),
                None => "0".to_owned(),
            },
            (Self::List(values), _) => values.join(","),
            (Self::Unknown(reason), _) => format!("not known: {reason}"),
        }
    }
}
