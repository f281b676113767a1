//! A table in which each transaction writes a token of its own, as its last statement. After a COMMIT without an answer
//! the resolution writes the same token, on another peer, and so decides: if it can commit, the original never will; if
//! the token is there already, the row says which of the two has written it.

mod verify;
mod watermark;

use std::sync::Arc;

use diesel::r2d2::R2D2Connection;
use diesel::result::{DatabaseErrorKind, Error, QueryResult};

use crate::panics::lock;
use crate::peers::link_state::{LinkLedgerTable, LinkState};
use crate::pool::connection::PeerConnection;
use crate::settings::ledger::LedgerTable;
use crate::transaction::ledger::{Decision, LOCK_TIMEOUT_SECONDS, Token, decide_in_transaction};
use crate::transaction::outcome::DoubtReason;
use crate::transaction::rows;
use crate::url::dialect::Dialect;

/// Written by the transaction itself.
const COMMITTED: &str = "c";
/// Written by the resolution.
const ABORTED: &str = "a";

/// What a transaction in doubt has written in a table, if it is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::transaction) struct TableEntry {
    pub(in crate::transaction) table: LedgerTable,
    pub(in crate::transaction) token: Token,
    /// The history that the transaction belongs to.
    pub(in crate::transaction) history: Arc<str>,
}

/// The key of the row with the name of the history. All peers with the same data have the same.
const HISTORY: &str = "history";

impl LedgerTable {
    /// Returns this table with its schema, and the name of the history that it belongs to on this connection. At the
    /// first use of a connection, this verifies that the table is suitable. A transaction must not be open.
    ///
    /// # Errors
    ///
    /// Returns an error if a statement fails, or if the table would not keep what a transaction has written.
    pub(super) fn open<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<(Self, Arc<str>)> {
        let link_state = conn.link_state();
        if let Some(known) = self.known_on(&link_state) {
            return Ok(known);
        }
        self.verify_table(&mut **conn)?;
        let table = self.qualified(&mut **conn)?;
        let history = table.history(conn).and_then(|history| {
            table.verify_key(&mut **conn, HISTORY)?;
            Ok(history)
        });
        let history = history.map_err(|error| table.explained(error))?;
        let (name, qualified) = (self.name.clone(), table.name.clone());
        let known = LinkLedgerTable { name, qualified, history: history.clone() };
        *lock(&link_state.ledger_table) = Some(known);
        Ok((table, history))
    }

    /// Reads the name of the history, and inserts one into a table that has none yet.
    fn history<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<Arc<str>> {
        if let Some(history) = self.read(conn, HISTORY)? {
            return Ok(history.into());
        }
        // Another process may do the same, and then the first one counts.
        let Token(new) = Token::new()?;
        match rows::execute(&mut **conn, &self.insert(HISTORY, &new)) {
            Ok(_) | Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => {}
            Err(error) => return Err(error),
        }
        self.read(conn, HISTORY)?.map(Arc::from).ok_or(Error::NotFound)
    }

    /// Returns what [`open`](Self::open) has found at the first use of a connection.
    fn known_on(&self, link_state: &LinkState) -> Option<(Self, Arc<str>)> {
        let known = lock(&link_state.ledger_table);
        let LinkLedgerTable { name, qualified, history } = known.as_ref()?;
        // A doubt names the table with its schema.
        let is_known = self.name == *name || self.name == *qualified;
        is_known.then(|| (Self { name: qualified.clone() }, history.clone()))
    }

    /// Returns this table with the schema of the one in which tokens of this connection are written.
    pub(super) fn of_tokens<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<Self> {
        match self.known_on(&conn.link_state()) {
            Some((table, _)) => Ok(table),
            None => self.qualified(&mut **conn),
        }
    }

    /// Inserts a row that is not there yet.
    fn insert_row<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
        sql: &str,
    ) -> QueryResult<()> {
        match rows::execute(&mut **conn, sql)? {
            1 => Ok(()),
            _ => Err(self.inserts_nothing()),
        }
    }

    pub(super) fn select(&self, token: &str) -> String {
        format!("SELECT outcome AS text FROM {} WHERE token = '{token}'", self.name)
    }

    pub(super) fn insert(&self, token: &str, outcome: &str) -> String {
        format!("INSERT INTO {} (token, outcome) VALUES ('{token}', '{outcome}')", self.name)
    }
}

impl TableEntry {
    /// Writes the token of the open transaction. `lock_call` is evaluated in the same statement.
    pub(super) fn write<C: R2D2Connection + Send + 'static>(
        self,
        conn: &mut PeerConnection<C>,
        lock_call: Option<&str>,
    ) -> QueryResult<Self> {
        let Self { table, token: Token(token), .. } = &self;
        let insert = match lock_call {
            None => table.insert(token, COMMITTED),
            Some(lock_call) => format!(
                "INSERT INTO {} (token, outcome) SELECT '{token}', '{COMMITTED}' FROM {lock_call}",
                table.name
            ),
        };
        table.insert_row(conn, &insert)?;
        Ok(self)
    }

    /// Tries to decide about the transaction that has written this entry.
    ///
    /// # Errors
    ///
    /// Returns the error of a statement. It may be one that does not repeat itself.
    pub(super) fn decide<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<Decision> {
        let Self { table, token, history } = self;
        let (table, found) = table.open(conn)?;
        if *found != **history {
            return Ok(Decision::OtherHistory);
        }
        match decide_in_transaction(conn, token, |conn| table.fence(conn, token)) {
            // The token is there, or it was.
            Ok(Decision::Again)
            | Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => {
                decide_in_transaction(conn, token, |conn| table.read_decision(conn, token))
            }
            decided => decided,
        }
    }
}

impl LedgerTable {
    /// Inserts the token, so that the transaction in doubt never can.
    fn fence<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
        token: &Token,
    ) -> QueryResult<Decision> {
        let insert = self.insert(&token.0, ABORTED);
        let insert = match Dialect::for_connection::<C>() {
            // MySQL takes the first part for a comment, and waits for as long as the server is configured to.
            Dialect::MySql => format!(
                "/*M!100100 SET STATEMENT innodb_lock_wait_timeout={LOCK_TIMEOUT_SECONDS} FOR */ {insert}"
            ),
            _ => insert,
        };
        self.insert_row(conn, &insert)?;
        // A cleaner that has deleted the token before the INSERT has raised the watermark before.
        let has_forgotten = self.has_forgotten(conn, token)?;
        Ok(if has_forgotten { Decision::Again } else { Decision::Aborted })
    }

    /// Reads who has written the token that is there.
    fn read_decision<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
        token: &Token,
    ) -> QueryResult<Decision> {
        let decision = match self.read(conn, &token.0)?.as_deref() {
            Some(COMMITTED) => Decision::Committed,
            Some(ABORTED) => Decision::Aborted,
            _ if self.has_forgotten(conn, token)? => Decision::Unknown(DoubtReason::Forgotten),
            // The transaction that had written it was rolled back since, or the token was deleted.
            _ => return Ok(Decision::Again),
        };
        let Token(barrier) = Token::new()?;
        self.insert_row(conn, &self.insert(&barrier, ABORTED))?;
        Ok(decision)
    }

    /// Reads a row. Outside of a transaction this sees every row that was committed before.
    pub(super) fn read<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
        token: &str,
    ) -> QueryResult<Option<String>> {
        rows::text(&mut **conn, &self.select(token))
    }
}
