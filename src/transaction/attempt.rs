//! One run of a transaction.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use diesel::connection::{SimpleConnection, TransactionManager};
use diesel::r2d2::R2D2Connection;
use diesel::result::{Error, QueryResult};

use crate::fault::commit;
use crate::peers::transaction_record::{Interruption, TransactionRecord};
use crate::pool::connection::PeerConnection;
use crate::pool::passthrough::PeerTransactionManager;
use crate::redact::on_one_line;
use crate::settings::retry::RetryPolicy;
use crate::transaction::ledger::{Entry, OpenLedger, Token};
use crate::transaction::outcome::{Doubt, DoubtReason};
use crate::transaction::session::TransactionSession;
use crate::url::dialect::Dialect;

/// Marks the beginning of a transaction. If it is gone before the COMMIT, the transaction did not last until
/// then.
const SET_SAVEPOINT: &str = "SAVEPOINT diesel_peers_transaction";
const RELEASE_SAVEPOINT: &str = "RELEASE SAVEPOINT diesel_peers_transaction";
const ROLL_BACK_TO_SAVEPOINT: &str = "ROLLBACK TO SAVEPOINT diesel_peers_transaction";

/// The result of one run.
pub(super) enum Attempt<T, E> {
    Committed(T),
    /// Nothing was saved, and another run would not help.
    Aborted(E),
    /// Nothing was saved, because of this.
    Interrupted(E, Interruption),
    /// It has ended before its COMMIT, and a part of it may be saved.
    EndedEarly(Doubt),
    /// The COMMIT has failed with this error, and may have saved it or not. Contains what the closure has returned as
    /// well.
    InDoubt(Doubt, T, E),
}

/// One run of a transaction.
pub(super) struct Run<'a> {
    policy: &'a RetryPolicy,
    /// The ledger, and the token of this run.
    ledger: Option<(OpenLedger, Token)>,
    /// The session that the run uses, if it has a ledger.
    session: Option<TransactionSession>,
}

/// A transaction that has ended before its COMMIT.
enum EndedEarly {
    /// Nothing of it is saved.
    NothingSaved(Error),
    /// A part of it may be saved. Contains the text of the error.
    PartlySaved(Arc<str>),
}

impl<'a> Run<'a> {
    pub(super) fn new(policy: &'a RetryPolicy) -> Self {
        Self { policy, ledger: None, session: None }
    }

    /// Returns the session of the run, if it is orphaned: its connection is lost. Otherwise the transaction has ended,
    /// and the session goes on to serve others.
    pub(super) fn orphaned_session<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> Option<&TransactionSession> {
        self.session.as_ref().filter(|_| conn.link_mut().is_broken())
    }

    /// Runs the transaction from its BEGIN to its COMMIT.
    pub(super) fn execute<C, T, E>(
        &mut self,
        conn: &mut PeerConnection<C>,
        work: &mut impl FnMut(&mut PeerConnection<C>) -> Result<T, E>,
    ) -> Attempt<T, E>
    where
        C: R2D2Connection + Send + 'static,
        E: From<Error>,
    {
        let dialect = Dialect::for_connection::<C>();
        let link_state = conn.link_state();
        let record = &link_state.record;
        record.reset();
        if let Err(error) = self.begin(conn) {
            let attempt = fail(conn, record, error.into());
            conn.roll_back_uncounted();
            return match attempt {
                // diesel refuses to begin on a connection that was lost before this run. It sends no query, so the
                // record shows no failure.
                Attempt::Aborted(error) if conn.link_mut().is_broken() => {
                    Attempt::Interrupted(error, Interruption::ConnectionLost)
                }
                attempt => attempt,
            };
        }
        let returned = call(conn, work);
        let value = match (returned, release_savepoint(conn, record)) {
            (Ok(value), Ok(())) => value,
            (Ok(_), Err(EndedEarly::NothingSaved(error))) => {
                return fail(conn, record, error.into());
            }
            (Err(error), Ok(()) | Err(EndedEarly::NothingSaved(_))) => {
                return fail(conn, record, error);
            }
            (_, Err(EndedEarly::PartlySaved(text))) => {
                let doubt = conn.doubt(DoubtReason::EndedEarly, text);
                conn.roll_back();
                conn.roll_back_uncounted();
                return Attempt::EndedEarly(doubt);
            }
        };
        let entry = match self.write_entry(conn) {
            Ok(entry) => entry,
            Err(error) => return fail(conn, record, error.into()),
        };
        match PeerTransactionManager::commit_transaction(conn) {
            Ok(()) => Attempt::Committed(value),
            Err(error) if self.is_read_only(dialect) || commit::shows_abort(dialect, &error) => {
                fail(conn, record, error.into())
            }
            Err(error) => {
                let text = on_one_line(&error.to_string()).into();
                let mut doubt = conn.doubt(DoubtReason::CommitUnanswered, text);
                doubt.entry = entry.map(Box::new);
                Attempt::InDoubt(doubt, value, error.into())
            }
        }
    }

    fn begin<C: R2D2Connection + Send + 'static>(
        &mut self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<()> {
        let dialect = Dialect::for_connection::<C>();
        if let Some(ledger) = self.policy.ledger.as_ref().filter(|_| !self.is_read_only(dialect)) {
            let ledger = ledger.open(conn)?;
            let token = Token::new()?;
            self.session = Some(TransactionSession::identify(conn, token.clone()));
            self.ledger = Some((ledger, token));
        }
        if let Some(before) = self.policy.before_begin(dialect) {
            conn.batch_execute(&before)?;
        }
        PeerTransactionManager::begin_transaction(conn)?;
        if let Some(after) = self.policy.after_begin(dialect) {
            conn.batch_execute(&after)?;
        }
        let lock = self.session.as_ref().map(|session| session.lock_sql_at_begin(self.policy));
        conn.batch_execute(&format!("{}{SET_SAVEPOINT}", lock.unwrap_or_default()))
    }
    /// Writes the entry of the transaction in its ledger, as the last statement before the COMMIT.
    fn write_entry<C: R2D2Connection + Send + 'static>(
        &mut self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<Option<Entry>> {
        let Some((ledger, token)) = self.ledger.take() else { return Ok(None) };
        let lock = self.session.as_ref().and_then(|session| session.lock_sql_at_end(self.policy));
        ledger.write_entry(conn, token, lock.as_deref()).map(Some)
    }

    /// Whether the transaction has nothing to save. (Other databases do not have READ ONLY transactions.)
    fn is_read_only(&self, dialect: Dialect) -> bool {
        self.policy.read_only && matches!(dialect, Dialect::MySql | Dialect::Postgres)
    }
}

/// Calls the closure. After a panic the transaction is rolled back.
fn call<C, T, E>(
    conn: &mut PeerConnection<C>,
    work: &mut impl FnMut(&mut PeerConnection<C>) -> Result<T, E>,
) -> Result<T, E>
where
    C: R2D2Connection + Send + 'static,
    E: From<Error>,
{
    match catch_unwind(AssertUnwindSafe(|| work(conn))) {
        // The COMMIT would release the savepoint of a nested transaction that was left open.
        Ok(returned) if conn.transaction_depth().is_ok_and(|depth| depth > 1) => {
            conn.roll_back_to(1);
            returned.and_then(|_| Err(Error::AlreadyInTransaction.into()))
        }
        Ok(returned) => returned,
        Err(panic) => {
            conn.roll_back();
            resume_unwind(panic);
        }
    }
}

/// Releases the savepoint that was set at the beginning, which shows that the transaction has lasted until now.
fn release_savepoint<C: R2D2Connection + Send + 'static>(
    conn: &mut PeerConnection<C>,
    record: &TransactionRecord,
) -> Result<(), EndedEarly> {
    record.control_begins();
    let Err(error) = conn.batch_execute(RELEASE_SAVEPOINT) else { return Ok(()) };
    let was_interrupted_at_last = match Dialect::for_connection::<C>() {
        Dialect::Postgres => {
            record.interruption() == Some(Interruption::ConnectionLost)
                && conn.link_state().is_lost()
        }
        _ => record.was_interrupted_at_last(),
    };
    // PostgreSQL refuses everything after an error but this, and this as well if the savepoint is gone.
    record.control_begins();
    let has_lasted = conn.batch_execute(ROLL_BACK_TO_SAVEPOINT).is_ok();
    Err(if has_lasted || was_interrupted_at_last {
        EndedEarly::NothingSaved(error)
    } else {
        EndedEarly::PartlySaved(on_one_line(&error.to_string()).into())
    })
}

/// Rolls back a transaction of which nothing was saved.
fn fail<C: R2D2Connection + Send + 'static, T, E>(
    conn: &mut PeerConnection<C>,
    record: &TransactionRecord,
    error: E,
) -> Attempt<T, E> {
    conn.roll_back();
    match record.interruption() {
        Some(interruption) => Attempt::Interrupted(error, interruption),
        None => Attempt::Aborted(error),
    }
}
