//! What a transaction records of itself before its COMMIT, and how this decides about a COMMIT without an answer.

pub(super) mod table;
pub(super) mod xid;

use std::fmt::Write;
use std::sync::Arc;
use std::time::SystemTime;

use diesel::connection::{SimpleConnection, TransactionManager};
use diesel::r2d2::R2D2Connection;
use diesel::result::{Error, QueryResult};
use rand::TryRng;
use rand::rngs::SysRng;

use crate::pool::connection::PeerConnection;
use crate::settings::ledger::{Ledger, LedgerTable};
use crate::transaction::ledger::table::TableEntry;
use crate::transaction::ledger::xid::XidEntry;
use crate::transaction::outcome::DoubtReason;
use crate::transaction::session::TransactionSession;
use crate::url::dialect::Dialect;

/// The token of one run of a transaction, in hexadecimal digits: 48 bits of time in milliseconds and 80 random bits.
/// Tokens are ordered by time, so that a table grows at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token(pub(super) String);

impl Token {
    #[expect(clippy::disallowed_methods, reason = "a token must be new after a restart as well")]
    pub(super) fn new() -> QueryResult<Self> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let millis = since.map_or(0, |since| since.as_millis());
        let mut random = [0; 10];
        SysRng
            .try_fill_bytes(&mut random)
            .map_err(|error| Error::QueryBuilderError(Box::new(error)))?;
        let mut digits = Self::time_digits(millis);
        for byte in random {
            write!(digits, "{byte:02x}").expect("a string accepts everything");
        }
        Ok(Self(digits))
    }

    /// Returns the digits with which a token of this time begins.
    pub(super) fn time_digits(millis: u128) -> String {
        format!("{:012x}", millis & 0xffff_ffff_ffff)
    }
}

/// The time for which a try waits for a lock of the transaction in doubt.
const LOCK_TIMEOUT_SECONDS: u32 = 2;

/// A ledger that was found usable on a connection, for a transaction that begins there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OpenLedger {
    Table { table: LedgerTable, history: Arc<str> },
    Xid { system_identifier: Arc<str> },
}

/// What a transaction in doubt has recorded, by which it is known later whether it is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Table(TableEntry),
    Xid(XidEntry),
}

/// What one try has found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Committed,
    /// The transaction is not committed and never will be.
    Aborted,
    /// This will not be known any more.
    Unknown(DoubtReason),
    /// The peer has other data than the one that the transaction was run on. Another one may decide.
    OtherHistory,
    /// The peer is a standby. Another one may decide.
    Standby,
    /// Nothing is decided yet. The same connection may be asked again.
    Again,
}

impl Decision {
    fn is_final(self) -> bool {
        match self {
            Self::Committed | Self::Aborted | Self::Unknown(_) => true,
            Self::OtherHistory | Self::Standby | Self::Again => false,
        }
    }
}

impl Ledger {
    /// Opens the ledger for a transaction that begins next. At the first use of a connection, this verifies that the
    /// ledger is suitable. A transaction must not be open.
    ///
    /// # Errors
    ///
    /// Returns an error if the ledger cannot be used on this connection.
    pub(super) fn open<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<OpenLedger> {
        self.validate(Dialect::for_connection::<C>()).map_err(|flaw| {
            let correction = flaw.correction.unwrap_or_default();
            Error::QueryBuilderError(format!("the ledger {}; {correction}", flaw.what).into())
        })?;
        match self {
            Self::Table(table) => {
                let (table, history) = table.open(conn)?;
                Ok(OpenLedger::Table { table, history })
            }
            Self::Xid => {
                xid::open(conn).map(|system_identifier| OpenLedger::Xid { system_identifier })
            }
        }
    }
}

#[cfg(feature = "doctor")]
impl Ledger {
    /// Verifies the ledger as at its first use on a connection, without leaving anything behind. Returns the name of
    /// the history of the server's data, or `None` if the table was not used yet.
    ///
    /// # Errors
    ///
    /// Returns an [`Error::QueryBuilderError`] with the flaw and its correction if the ledger cannot be used, and the
    /// error of a statement if that is not known.
    pub(crate) fn inspect<C: R2D2Connection + 'static>(
        &self,
        conn: &mut C,
    ) -> QueryResult<Option<String>> {
        match self {
            Self::Table(table) => table.inspect(conn),
            Self::Xid => xid::inspect(conn),
        }
    }
}

impl OpenLedger {
    /// Records the open transaction, as its last statement before the COMMIT. `lock_call` is the call that takes the
    /// advisory lock of the transaction, if it is to be evaluated in this statement.
    pub(super) fn write_entry<C: R2D2Connection + Send + 'static>(
        self,
        conn: &mut PeerConnection<C>,
        token: Token,
        lock_call: Option<&str>,
    ) -> QueryResult<Entry> {
        match self {
            Self::Table { table, history } => {
                TableEntry { table, token, history }.write(conn, lock_call).map(Entry::Table)
            }
            Self::Xid { system_identifier } => {
                let (xid, incarnation) = xid::read(&mut **conn, lock_call)?;
                Ok(Entry::Xid(XidEntry { xid, token, system_identifier, incarnation }))
            }
        }
    }
}

impl Entry {
    pub(super) fn token(&self) -> &Token {
        match self {
            Self::Table(TableEntry { token, .. }) | Self::Xid(XidEntry { token, .. }) => token,
        }
    }

    /// Tries to decide about the transaction that has recorded this entry. A transaction must not be open.
    ///
    /// # Errors
    ///
    /// Returns the error of a statement. It may be one that does not repeat itself.
    pub(super) fn decide<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<Decision> {
        match self {
            Self::Table(entry) => entry.decide(conn),
            Self::Xid(entry) => entry.decide(conn),
        }
    }
}

/// Runs a transaction that decides about the one with this token. It is committed if the decision is final, and rolled
/// back otherwise.
///
/// Before a final decision `ask` has to write something, a *barrier* if there is nothing else to write. What was read
/// may not have reached the replicas that a COMMIT has to wait for (the server was restarted in the middle, or the
/// session was terminated), or the server may not be the primary any more. A COMMIT of something written that is
/// answered shows that neither is so: what was committed before it reaches the replicas before it.
fn decide_in_transaction<C: R2D2Connection + Send + 'static>(
    conn: &mut PeerConnection<C>,
    token: &Token,
    ask: impl FnOnce(&mut PeerConnection<C>) -> QueryResult<Decision>,
) -> QueryResult<Decision> {
    let decided = begin(conn, token).and_then(|()| {
        let decision = ask(conn)?;
        if decision.is_final() {
            C::TransactionManager::commit_transaction(&mut **conn)?;
        }
        Ok(decision)
    });
    conn.roll_back();
    if decided.is_err() {
        conn.roll_back_uncounted();
    }
    decided
}

/// Begins a transaction that decides. It sees what others commit meanwhile, waits for no lock longer than it should,
/// and its COMMIT waits for the replicas, whatever the session's settings are. On PostgreSQL it takes the advisory lock
/// of the transaction in doubt, which is free when that one has ended. So if the connection is lost here, the next try
/// can terminate this session as well.
fn begin<C: R2D2Connection + Send + 'static>(
    conn: &mut PeerConnection<C>,
    token: &Token,
) -> QueryResult<()> {
    match Dialect::for_connection::<C>() {
        Dialect::MySql => {
            conn.batch_execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")?;
            C::TransactionManager::begin_transaction(&mut **conn)
        }
        Dialect::Postgres => {
            let lock = TransactionSession::identify(conn, token.clone()).lock_sql();
            let lock = lock.map_or_else(String::new, |lock| format!("; SELECT {lock}"));
            C::TransactionManager::begin_transaction(&mut **conn)?;
            conn.batch_execute(&format!(
                "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = on; \
                 SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'{lock}"
            ))
        }
        Dialect::Sqlite | Dialect::Other => C::TransactionManager::begin_transaction(&mut **conn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_new_and_ordered() {
        let mut tokens: Vec<_> = (0..3)
            .map(|_| {
                std::thread::yield_now();
                Token::new().expect("the system has random numbers").0
            })
            .collect();
        assert!(tokens.iter().all(|token| token.len() == 32), "{tokens:?}");
        let times: Vec<_> = tokens.iter().map(|token| token[..12].to_owned()).collect();
        assert!(times.is_sorted(), "{tokens:?}");
        tokens.dedup();
        assert_eq!(tokens.len(), 3);
    }
}
