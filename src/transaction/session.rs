//! The server's session of a transaction. If the connection is lost, the session is *orphaned*: until the server
//! notices the loss, which may take hours, it holds the locks of its transaction. It is terminated from another
//! connection, but only if it is the same for certain: a pooler may have given it to another client since.
//!
//! PostgreSQL: the transaction holds an advisory lock whose key are 64 random bits of its token. Whoever holds this
//! lock is in this transaction, behind whatever proxy or pooler.
//!
//! MySQL: no lock belongs to a transaction and can be looked up. The session is terminated if it has the same number,
//! user and address of the client, on the same server that was started at the same time; and only if this address is
//! that of our own socket. Behind a proxy it is not, and then nothing is terminated.

use std::fmt::Write;
use std::net::SocketAddr;

use diesel::connection::SimpleConnection;
use diesel::r2d2::R2D2Connection;
use diesel::result::QueryResult;
use log::{debug, info};

use crate::events::log::LOG_TARGET;
use crate::peers::session_sign::SessionSign;
use crate::pool::connection::PeerConnection;
use crate::redact::on_one_line;
use crate::settings::retry::{Isolation, RetryPolicy};
use crate::transaction::ledger::Token;
use crate::transaction::rows;
use crate::url::dialect::Dialect;

/// By how many seconds the start of a server may seem to change: its uptime is in whole seconds.
const START_TOLERANCE: u32 = 2;

/// When a MySQL server was started, in seconds since 1970. MariaDB reads the first comment, and MySQL 8 the second.
const SERVER_STARTED: &str = "CAST(UNIX_TIMESTAMP() - (SELECT variable_value FROM \
                              /*M!100100 information_schema. */ /*!80000 performance_schema. */ \
                              global_status WHERE variable_name = 'UPTIME') AS SIGNED)";

/// The digest of a session in MySQL's list of processes.
const DIGEST: &str = "SHA2(CONCAT_WS(' ', @@hostname, @@port, @@datadir, id, user, host), 256)";

/// The server's session of a transaction.
#[derive(Debug, Clone)]
pub(super) struct TransactionSession {
    sign: SessionSign,
    token: Token,
}

impl TransactionSession {
    /// Identifies the session of a transaction that begins on this connection. At the first use of a connection, its
    /// sign is read. A transaction must not be open.
    pub(super) fn identify<C: R2D2Connection + Send + 'static>(
        conn: &mut PeerConnection<C>,
        token: Token,
    ) -> Self {
        let link_state = conn.link_state();
        let sign = match link_state.session_sign.get() {
            Some(sign) => sign.clone(),
            None => match read_sign(conn) {
                Ok(sign) => link_state.session_sign.get_or_init(|| sign).clone(),
                Err(error) => {
                    let error = on_one_line(&error.to_string());
                    debug!(target: LOG_TARGET, "a session cannot be recognized later: {error}");
                    SessionSign::None
                }
            },
        };
        Self { sign, token }
    }

    /// Returns the session of the transaction with this token, as far as the token tells.
    pub(super) fn of_token(token: Token) -> Self {
        Self { sign: SessionSign::Lock { read_committed: false }, token }
    }

    /// Returns the call of the function that takes the lock, if the session is recognized by one.
    pub(super) fn lock_sql(&self) -> Option<String> {
        match self.sign {
            SessionSign::Lock { .. } => Some(take_lock(&self.token)),
            SessionSign::None | SessionSign::Identity { .. } => None,
        }
    }

    /// Whether the lock is taken at the beginning of the transaction. At the higher isolation levels the first `SELECT`
    /// decides what the transaction sees, and that is for the closure: it may wait for locks before.
    fn locks_at_begin(&self, policy: &RetryPolicy) -> bool {
        let SessionSign::Lock { read_committed } = self.sign else { return false };
        policy.isolation.map_or(read_committed, |level| level == Isolation::ReadCommitted)
    }

    /// Returns what to put before the first statement of the transaction.
    pub(super) fn lock_sql_at_begin(&self, policy: &RetryPolicy) -> String {
        let lock = self.lock_sql().filter(|_| self.locks_at_begin(policy));
        lock.map_or_else(String::new, |lock| format!("SELECT {lock}; "))
    }

    /// Returns the function to call in the last statement of the transaction.
    pub(super) fn lock_sql_at_end(&self, policy: &RetryPolicy) -> Option<String> {
        self.lock_sql().filter(|_| !self.locks_at_begin(policy))
    }

    /// Terminates the session, if it is on the server of this connection. A transaction must not be open.
    pub(super) fn terminate<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) {
        match self.try_terminate(conn) {
            Ok(false) => {}
            Ok(true) => {
                conn.link().guard.peer.activity.counters.sessions_ended.add_one();
                let (pool, peer) = (&*conn.pool.set.settings().pool_name, conn.peer());
                info!(
                    target: LOG_TARGET, pool = pool, peer = peer, event = "session_ended";
                    "on peer {peer}, the session of a transaction that was lost is ended"
                );
            }
            Err(error) => {
                let error = on_one_line(&error.to_string());
                debug!(target: LOG_TARGET, "a session that was lost cannot be ended: {error}");
            }
        }
    }

    fn try_terminate<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<bool> {
        match (Dialect::for_connection::<C>(), &self.sign) {
            (Dialect::Postgres, SessionSign::Lock { .. }) => {
                let [high, low] = lock_key(&self.token);
                // Who waits for a synchronous standby has committed already.
                let terminate = format!(
                    "SELECT pg_terminate_backend(l.pid)::text AS text FROM pg_locks l JOIN \
                     pg_stat_activity a ON a.pid = l.pid WHERE l.locktype = 'advisory' AND l.granted \
                     AND l.objsubid = 1 AND l.classid = {high} AND l.objid = {low} AND l.database = \
                     (SELECT oid FROM pg_database WHERE datname = current_database()) AND \
                     a.wait_event IS DISTINCT FROM 'SyncRep'"
                );
                Ok(rows::text(&mut **conn, &terminate)?.is_some())
            }
            (Dialect::MySql, SessionSign::Identity { digest, server_started }) => {
                // Through a proxy, the number might mean a session of the proxy or of another server.
                if !matches!(
                    Self::identify(conn, self.token.clone()).sign,
                    SessionSign::Identity { .. }
                ) {
                    return Ok(false);
                }
                let find = format!(
                    "SELECT CAST(id AS CHAR) AS text FROM information_schema.processlist WHERE \
                     {DIGEST} = '{digest}' AND ABS({SERVER_STARTED} - {server_started}) <= \
                     {START_TOLERANCE}"
                );
                let id = rows::text(&mut **conn, &find)?.and_then(|id| id.parse::<u64>().ok());
                let Some(id) = id else { return Ok(false) };
                // While the server runs, it gives no number a second time.
                conn.batch_execute(&format!("KILL {id}"))?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

fn read_sign<C: R2D2Connection + Send + 'static>(
    conn: &mut PeerConnection<C>,
) -> QueryResult<SessionSign> {
    match Dialect::for_connection::<C>() {
        Dialect::Postgres => {
            // This also shows that the server has such locks. The key is one that nobody holds.
            let level = format!(
                "SELECT current_setting('default_transaction_isolation') AS text FROM {}",
                take_lock(&Token::new()?)
            );
            Ok(rows::text(&mut **conn, &level)?.map_or(SessionSign::None, |level| {
                SessionSign::Lock { read_committed: level == "read committed" }
            }))
        }
        Dialect::MySql => {
            let link_state = conn.link_state();
            let addresses = link_state.socket().and_then(|socket| socket.addresses());
            let Some((own, server)) = addresses else { return Ok(SessionSign::None) };
            let sign = rows::text(&mut **conn, &read_identity(own, server))?;
            let parts = sign.as_deref().and_then(|sign| sign.split_once(' '));
            let parts = parts.and_then(|(started, digest)| Some((started.parse().ok()?, digest)));
            Ok(parts.map_or(SessionSign::None, |(server_started, digest)| SessionSign::Identity {
                digest: digest.to_owned(),
                server_started,
            }))
        }
        Dialect::Sqlite | Dialect::Other => Ok(SessionSign::None),
    }
}

/// Returns the query for the identity of a MySQL session. It has no result if the server's view of the connection is
/// not that of our socket.
fn read_identity(own: SocketAddr, server: SocketAddr) -> String {
    let (address, port) = (own.ip().to_canonical(), own.port());
    let mut hosts = format!("'{address}:{port}'");
    if address.is_loopback() {
        // The server's name for it.
        write!(hosts, ", 'localhost:{port}'").expect("a string accepts everything");
    }
    format!(
        "SELECT CONCAT_WS(' ', {SERVER_STARTED}, {DIGEST}) AS text FROM \
         information_schema.processlist WHERE id = CONNECTION_ID() AND host IN ({hosts}) AND @@port = {}",
        server.port()
    )
}

/// The key of the transaction's advisory lock, in two halves of 32 bits: random bits of the token.
fn lock_key(token: &Token) -> [u32; 2] {
    [16..24, 24..32].map(|digits| {
        let digits = token.0.get(digits).unwrap_or_default();
        u32::from_str_radix(digits, 16).unwrap_or_default()
    })
}

fn take_lock(token: &Token) -> String {
    format!("pg_advisory_xact_lock({})", lock_number(token))
}

fn lock_number(token: &Token) -> i64 {
    let [high, low] = lock_key(token);
    (i64::from(high) << 32) | i64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_needs_the_address_of_the_own_socket() {
        let query = |own: &str| {
            let own = own.parse().expect("an address");
            read_identity(own, "10.0.0.2:3306".parse().expect("an address"))
        };
        assert!(query("10.0.0.1:4000").contains("IN ('10.0.0.1:4000') AND @@port = 3306"));
        let mapped = query("[::ffff:127.0.0.1]:4000");
        assert!(mapped.contains("IN ('127.0.0.1:4000', 'localhost:4000')"), "{mapped}");
    }

    #[test]
    fn key_of_the_lock_has_all_bits() {
        let token = Token("0123456789abcdefffffffff00000001".to_owned());
        assert_eq!(lock_key(&token), [u32::MAX, 1]);
        assert_eq!(take_lock(&token), "pg_advisory_xact_lock(-4294967295)");
    }
}
