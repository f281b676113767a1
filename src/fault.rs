//! The classification of errors: what an error says about its connection, its peer and its transaction.
//!
//! diesel reports MySQL's errors as text without a number, and every failed login as well. The texts of a
//! client library are the same in every language. The texts of a server are in the language of its setting
//! `lc_messages`; the tables here contain the English ones, and a few in other languages that contain the
//! name of a setting. An unknown text is an error of the query itself, or, for a login, a peer that is down.

pub(crate) mod commit;
pub(crate) mod host;
mod messages;
pub(crate) mod rollback;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use diesel::result::{ConnectionError, DatabaseErrorInformation, DatabaseErrorKind, Error};

use crate::fault::host::{HostFailure, Lack};
use crate::panics::catch_panic;
use crate::url::dialect::Dialect;

/// The classification of an error: what it says about its connection, its peer or its transaction. The guide
/// has examples and consequences of each fault ([errors](crate::guide::errors)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The connection is lost. That says nothing about the peer: a `KILL`, an idle timeout, a proxy that
    /// recycles its sessions and a crash cause the same errors.
    ConnectionLost,
    /// The peer cannot be reached, or refuses the login for no known reason.
    PeerDown,
    /// The peer is running but accepts no work at the moment: it starts up or shuts down, is a Galera node
    /// without a quorum, or is a proxy that is disabled or has lost its server.
    PeerNotReady,
    /// The peer has reached its maximum number of connections.
    PeerFull,
    /// The peer lacks something that the query needs: memory, space on a disk or threads, a store behind it,
    /// or the limit of its prepared statements is reached. Other queries may succeed.
    OutOfResources,
    /// The peer is read-only and was asked to write.
    WrongRole,
    /// The peer rejects the login: user, password, database or TLS are wrong on one of the two sides.
    Misconfigured,
    /// The transaction was rolled back, or the statement gave up, because of other transactions. The
    /// transaction may be run again from its beginning.
    Retryable,
    /// An error of the query itself; it says nothing about the connection or the peer.
    Query,
}

impl Fault {
    /// Classifies the error of a query.
    ///
    /// An error does not say which database it comes from, so the texts of all databases are recognized. The
    /// pool is more exact: it applies to a connection only the texts of that connection's database, and
    /// where it knows the connection's socket, it believes that a connection is lost only if the socket
    /// shows it. A user's own text in an error (`RAISE`, `SIGNAL`) can say anything.
    #[must_use]
    pub fn of(error: &Error) -> Self {
        Self::of_query(Dialect::Other, error)
    }

    /// Classifies the error of a login. As with [`of`](Self::of), the texts of all databases are recognized.
    #[must_use]
    pub fn of_login(error: &ConnectionError) -> Self {
        Self::of_login_to(Dialect::Other, error)
    }

    /// Classifies the error of a query on a connection to a database of this dialect.
    pub(crate) fn of_query(dialect: Dialect, error: &Error) -> Self {
        match error {
            Error::DatabaseError(kind, information) => {
                Self::of_kind(dialect, *kind, information.as_ref())
            }
            // The rollback is diesel's own and says less about the cause than the COMMIT.
            Error::RollbackErrorOnCommit { rollback_error, commit_error } => {
                match Self::of_query(dialect, commit_error) {
                    Self::Query => Self::of_query(dialect, rollback_error),
                    fault => fault,
                }
            }
            _ => Self::Query,
        }
    }

    /// Classifies the error of a login to a database of this dialect.
    fn of_login_to(dialect: Dialect, error: &ConnectionError) -> Self {
        match error {
            ConnectionError::BadConnection(text) => {
                messages::fault_of_login(dialect, text).unwrap_or(Self::PeerDown)
            }
            ConnectionError::InvalidConnectionUrl(_) | ConnectionError::InvalidCString(_) => {
                Self::Misconfigured
            }
            // The login succeeded, and the first queries failed.
            ConnectionError::CouldntSetupConfiguration(error) => {
                Self::of_preparation(dialect, error)
            }
            _ => Self::PeerDown,
        }
    }

    /// Classifies the error of the first queries on a new connection. A proxy that accepts the login itself
    /// reports there what the server behind it says of a login.
    fn of_preparation(dialect: Dialect, error: &Error) -> Self {
        let of_login = || match error {
            Error::DatabaseError(_, information) => {
                messages::fault_of_login(dialect, information.message())
            }
            _ => None,
        };
        match Self::of_query(dialect, error) {
            Self::Query | Self::ConnectionLost => of_login().unwrap_or(Self::PeerDown),
            fault => fault,
        }
    }

    /// Returns a stable `snake_case` name, as used in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionLost => "connection_lost",
            Self::PeerDown => "peer_down",
            Self::PeerNotReady => "peer_not_ready",
            Self::PeerFull => "peer_full",
            Self::OutOfResources => "out_of_resources",
            Self::WrongRole => "wrong_role",
            Self::Misconfigured => "misconfigured",
            Self::Retryable => "retryable",
            Self::Query => "query",
        }
    }

    fn of_kind(
        dialect: Dialect,
        kind: DatabaseErrorKind,
        information: &(dyn DatabaseErrorInformation + Send + Sync),
    ) -> Self {
        match kind {
            // PostgreSQL: the first call after the loss and every later call. (Also the class 08 of
            // SQLSTATE, which a function of the application may raise.)
            DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand => {
                Self::ConnectionLost
            }
            DatabaseErrorKind::SerializationFailure => Self::Retryable,
            DatabaseErrorKind::ReadOnlyTransaction => Self::WrongRole,
            // MySQL: all errors but those of six kinds, and every error of BEGIN and COMMIT.
            DatabaseErrorKind::Unknown => {
                messages::fault_of_query(dialect, information.message()).unwrap_or(Self::Query)
            }
            _ => Self::Query,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The cause of a failed login, or of a mark: its classification, and a text without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FailureCause {
    pub(crate) fault: Fault,
    pub(crate) reason: Arc<str>,
    /// Whether a session has shown it, so that it concerns the other sessions of the peer as well. A refused
    /// login says nothing about them: a pooler that an operator has disabled goes on with its sessions.
    pub(crate) of_session: bool,
}

impl FailureCause {
    pub(crate) fn new(fault: Fault, reason: impl Into<Arc<str>>) -> Self {
        Self { fault, reason: reason.into(), of_session: false }
    }
}

/// The reason why a login for the pool or a health check failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LoginFailure {
    /// The peer, or its host, refused the login.
    Refused(FailureCause),
    /// The peer did not answer before our timeout or the client library's own.
    Unanswered(Arc<str>),
    /// The peer has begun to answer, and the login did not end before our timeout. A pooler that accepts
    /// logins itself holds their queries while it is paused, while its connections to the server are all in
    /// use, and while the server is gone.
    Held(Arc<str>),
    /// The login did not reach the peer: its name is not resolved, or no way leads to its address.
    Unreached(Arc<str>),
    /// This process is the cause: it did not send the login or did not get to read the answer.
    NotAttempted(Arc<str>),
    /// This host is the cause, or may be: [`Lack::concerns_all_peers`]. Whether it is the cause is decided
    /// with the outcomes of other peers.
    OfHost(HostFailure),
}

impl LoginFailure {
    /// Classifies a failure that the client library reports. libpq has a timeout of its own
    /// (`connect_timeout`). `lack` is what this host lacks, according to the text.
    pub(crate) fn from_cause(cause: FailureCause, lack: Option<Lack>) -> Self {
        if cause.reason.trim_end().ends_with("timeout expired") {
            return Self::Unanswered(cause.reason);
        }
        // Any other fault was recognized in the text, or by the application.
        match lack.filter(|_| cause.fault == Fault::PeerDown) {
            Some(lack) => Self::OfHost(HostFailure { lack, reason: cause.reason }),
            None => Self::Refused(cause),
        }
    }

    /// Takes note that the peer has accepted the login and that its session has shown the failure.
    pub(crate) fn of_session(mut self) -> Self {
        if let Self::Refused(cause) = &mut self {
            cause.of_session = true;
        }
        self
    }

    /// The thread of a login cannot be started.
    pub(crate) fn no_thread(error: &io::Error) -> Self {
        Self::OfHost(HostFailure { lack: Lack::Threads, reason: error.to_string().into() })
    }

    pub(crate) fn refused(fault: Fault, reason: impl Into<Arc<str>>) -> Self {
        Self::Refused(FailureCause::new(fault, reason))
    }

    pub(crate) fn timed_out(timeout: Duration) -> Self {
        Self::Unanswered(format!("no answer to a login within {timeout:?}").into())
    }

    pub(crate) fn held(timeout: Duration) -> Self {
        let reason = format!("a login was begun and not completed within {timeout:?}");
        Self::Held(reason.into())
    }

    /// Whether the login had no outcome before a timeout.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self, Self::Unanswered(_) | Self::Held(_))
    }

    /// Returns the fault of the peer that the failure shows, if any.
    pub(crate) fn fault(&self) -> Option<Fault> {
        match self {
            Self::Refused(cause) => Some(cause.fault),
            Self::Unanswered(_) | Self::Held(_) | Self::Unreached(_) => Some(Fault::PeerDown),
            Self::OfHost(failure) => {
                (!failure.lack.concerns_all_peers()).then_some(Fault::PeerDown)
            }
            Self::NotAttempted(_) => None,
        }
    }
}

impl fmt::Display for LoginFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(FailureCause { reason, .. })
            | Self::Unanswered(reason)
            | Self::Held(reason)
            | Self::Unreached(reason)
            | Self::NotAttempted(reason) => f.write_str(reason),
            Self::OfHost(failure) if failure.lack.concerns_all_peers() => failure.fmt(f),
            // Whether it concerns more than one peer is not known here.
            Self::OfHost(failure) => f.write_str(&failure.reason),
        }
    }
}

/// A failed login or query, as passed to the closure [`classify`](crate::PeerManagerBuilder::classify).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Failure<'a> {
    /// A failed login, for the pool or for a health check.
    Login(&'a ConnectionError),
    /// A failed query, of the application or of a health check.
    Query(&'a Error),
}

/// The application's own classification, which takes precedence.
pub(crate) type Classify = dyn Fn(Failure<'_>) -> Option<Fault> + Send + Sync;

/// Classifies failures: by the application's closure, then by the tables of the database.
#[derive(Clone, Default)]
pub(crate) struct Classifier {
    closure: Option<Arc<Classify>>,
    /// The database whose texts are recognized.
    pub(crate) dialect: Dialect,
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.closure.is_some() { "closure, then tables" } else { "tables" })
    }
}

/// Whether the error of a query says that its connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The error does not say so.
    No,
    /// The error says so, by a text or a code that could also be the text of a user.
    Claimed,
    /// The application's closure has decided so.
    Decided,
}

impl Classifier {
    pub(crate) fn with_closure(classify: Arc<Classify>) -> Self {
        Self { closure: Some(classify), dialect: Dialect::default() }
    }

    pub(crate) fn classify_login(&self, error: &ConnectionError) -> Fault {
        let decided = self.call_closure(Failure::Login(error));
        decided.unwrap_or_else(|| Fault::of_login_to(self.dialect, error))
    }

    /// Classifies the error of a query of a login.
    pub(crate) fn classify_preparation(&self, error: &Error) -> Fault {
        let decided = self.call_closure(Failure::Query(error));
        decided.unwrap_or_else(|| Fault::of_preparation(self.dialect, error))
    }

    /// Classifies the error of a query, and returns whether it says that its connection is lost.
    pub(crate) fn classify_query(&self, error: &Error) -> (Fault, Loss) {
        match self.call_closure(Failure::Query(error)) {
            Some(Fault::ConnectionLost) => (Fault::ConnectionLost, Loss::Decided),
            Some(fault) => (fault, Loss::No),
            None if claims_loss(self.dialect, error) => {
                (Fault::of_query(self.dialect, error), Loss::Claimed)
            }
            None => (Fault::of_query(self.dialect, error), Loss::No),
        }
    }

    /// Calls the closure. A panic counts as no decision.
    fn call_closure(&self, failed: Failure<'_>) -> Option<Fault> {
        let classify = self.closure.as_ref()?;
        catch_panic(|| classify(failed)).ok().flatten()
    }
}

/// Whether `error` says that its connection is lost. For a failed COMMIT, either of its two errors is
/// sufficient.
fn claims_loss(dialect: Dialect, error: &Error) -> bool {
    match error {
        Error::RollbackErrorOnCommit { rollback_error, commit_error } => {
            claims_loss(dialect, rollback_error) || claims_loss(dialect, commit_error)
        }
        error => Fault::of_query(dialect, error) == Fault::ConnectionLost,
    }
}

#[cfg(test)]
mod tests;
