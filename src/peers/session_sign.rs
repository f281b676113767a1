//! The sign by which the server's session of a link is recognized from another connection.

/// The sign by which the server's session of a link is recognized from another connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SessionSign {
    /// There is none that is certain.
    None,
    /// PostgreSQL: an advisory lock that the open transaction holds. Its key is in the transaction's token.
    Lock {
        /// Whether the session's transactions are READ COMMITTED by default.
        read_committed: bool,
    },
    /// MySQL: what does not change and is the same for no other session.
    Identity {
        /// The digest of the names of the server and of the session.
        digest: String,
        /// When the server was started, in seconds since 1970. It may differ by a second from one time to the next.
        server_started: i64,
    },
}
