//! PostgreSQL knows of each transaction id whether it is committed (`pg_xact_status`). The id of a transaction is read
//! as its last statement, together with the *incarnation* of the server: what changes whenever ids may be used again. A
//! standby that is promoted, and a server that restarts after a crash, use the ids again that they had not received or
//! written.
//!
//! So *committed* counts only in the same incarnation. *Aborted* counts in each: if the transaction were part of this
//! server's data, its id would be committed.

use std::sync::Arc;

use diesel::r2d2::R2D2Connection;
use diesel::result::{Error, QueryResult};

use crate::pool::connection::PeerConnection;
use crate::transaction::ledger::{Decision, Token, decide_in_transaction};
use crate::transaction::outcome::DoubtReason;
use crate::transaction::rows;

/// Identifies the data: a standby has that of its primary.
const SYSTEM_IDENTIFIER: &str = "(SELECT system_identifier FROM pg_control_system())";

/// The timeline, which a promotion changes; the start of the server; and the time at which its statistics began, which
/// a restart after a crash changes and neither of the others. An incarnation consists of hexadecimal digits and spaces.
const INCARNATION: &str = "concat_ws(' ', left(pg_walfile_name(pg_current_wal_lsn()), 8), \
                           (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, \
                           (extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time()) * 1000000)::bigint)";

/// A transaction of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::transaction) struct XidEntry {
    pub(in crate::transaction) xid: u64,
    /// The key of the lock that the transaction holds.
    pub(in crate::transaction) token: Token,
    pub(in crate::transaction) system_identifier: Arc<str>,
    pub(in crate::transaction) incarnation: Arc<str>,
}

/// Verifies at the first use of a connection that its server is PostgreSQL 13 or newer, and returns the identifier of
/// its data. A transaction must not be open.
pub(super) fn open<C: R2D2Connection + Send + 'static>(
    conn: &mut PeerConnection<C>,
) -> QueryResult<Arc<str>> {
    let link_state = conn.link_state();
    if let Some(known) = link_state.system_identifier.get() {
        return Ok(known.clone());
    }
    let system_identifier: Arc<str> = verify_server(&mut **conn)?.into();
    let _ = link_state.system_identifier.set(system_identifier.clone());
    Ok(system_identifier)
}

/// Verifies the server as at the first use of a connection, and returns the identifier of its data.
#[cfg(feature = "doctor")]
pub(super) fn inspect<C: R2D2Connection + 'static>(conn: &mut C) -> QueryResult<Option<String>> {
    verify_server(conn).map(Some)
}

/// Verifies that the server has what a transaction reads, and returns the identifier of its data.
fn verify_server<C: R2D2Connection + 'static>(conn: &mut C) -> QueryResult<String> {
    let version = "SELECT current_setting('server_version_num') || ' ' || version() AS text";
    let version = rows::text(conn, version)?.unwrap_or_default();
    if !has_ids(&version) {
        return Err(unsuitable(&format!("the server is not PostgreSQL 13 or newer: {version}")));
    }
    // A standby has no ids of its own.
    let read = format!(
        "SELECT concat_ws(' ', {SYSTEM_IDENTIFIER}, EXISTS (SELECT FROM pg_proc WHERE proname = \
         'pg_logical_emit_message' AND has_function_privilege(oid, 'EXECUTE')), \
         CASE WHEN NOT pg_is_in_recovery() THEN {INCARNATION} END) AS text"
    );
    let read = rows::text(conn, &read)?.unwrap_or_default();
    let mut parts = read.split(' ');
    let system_identifier = parts.next().unwrap_or_default().to_owned();
    if parts.next() != Some("t") {
        return Err(unsuitable("the user has no right to execute pg_logical_emit_message"));
    }
    Ok(system_identifier)
}

/// Whether a server has PostgreSQL's transaction ids. `version` is its number and its own words.
fn has_ids(version: &str) -> bool {
    let (number, words) = version.split_once(' ').unwrap_or_default();
    // YugabyteDB calls itself `PostgreSQL 15.2-YB-2.25`.
    number.parse::<u32>().is_ok_and(|number| number >= 130_000)
        && words.starts_with("PostgreSQL ")
        && !words.contains("-YB-")
}

fn unsuitable(flaw: &str) -> Error {
    Error::QueryBuilderError(format!("transaction ids cannot be a ledger: {flaw}").into())
}

/// Reads the id of the open transaction, and the incarnation of the server, in one statement. `lock_call` is evaluated
/// in it as well.
pub(super) fn read<C: R2D2Connection + 'static>(
    conn: &mut C,
    lock_call: Option<&str>,
) -> QueryResult<(u64, Arc<str>)> {
    let from = lock_call.map_or_else(String::new, |call| format!(" FROM {call}"));
    let sql = format!("SELECT concat_ws(' ', pg_current_xact_id(), {INCARNATION}) AS text{from}");
    let text = rows::text(conn, &sql)?.unwrap_or_default();
    let (xid, incarnation) = text.split_once(' ').unwrap_or_default();
    let xid = xid.parse().map_err(|_| unsuitable("the server returns no id"))?;
    Ok((xid, incarnation.into()))
}

impl XidEntry {
    /// Checks that the texts can be written into a statement. Returns the key of the one that cannot.
    #[cfg(feature = "serde")]
    pub(in crate::transaction) fn validate(&self) -> Result<(), &'static str> {
        let is_incarnation = |c: char| c.is_ascii_hexdigit() || c == ' ';
        if self.system_identifier.parse::<i64>().is_err() {
            Err("history")
        } else if !self.incarnation.chars().all(is_incarnation) {
            Err("incarnation")
        } else {
            Ok(())
        }
    }

    /// Tries to decide about this transaction.
    ///
    /// # Errors
    ///
    /// Returns the error of a statement. It may be one that does not repeat itself.
    pub(super) fn decide<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<Decision> {
        decide_in_transaction(conn, &self.token, |conn| {
            let decision = self.read_decision(conn)?;
            if decision.is_final() && write_barrier(conn)? == Some(self.xid.to_string()) {
                // This is the id that was not used yet. It must not be committed.
                return Ok(Decision::Again);
            }
            Ok(decision)
        })
    }

    /// Reads the status of the id.
    fn read_decision<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<Decision> {
        let Self { xid, system_identifier, incarnation, .. } = self;
        // The server has lost the transaction if it has not assigned the id yet: `age` compares with the next id. It
        // does so modulo 2^32, so an id that is older by more is excluded before.
        let ask = format!(
            "SELECT concat_ws(' ', {SYSTEM_IDENTIFIER} = '{system_identifier}', {INCARNATION} = '{incarnation}', \
             CASE WHEN '{xid}'::xid8 >= pg_snapshot_xmax(pg_current_snapshot()) \
             AND age('{xid}'::xid8::xid) <= 0 THEN 'aborted' \
             ELSE pg_xact_status('{xid}'::xid8) END) AS text WHERE NOT pg_is_in_recovery()"
        );
        let answer = rows::text(&mut **conn, &ask)?;
        let Some(answer) = answer else { return Ok(Decision::Standby) };
        Ok(match answer.splitn(3, ' ').collect::<Vec<_>>()[..] {
            ["f", ..] => Decision::OtherHistory,
            // This is not our transaction, as we have its lock, or it could not take the lock.
            [_, _, "in progress"] => Decision::Again,
            [_, _, "aborted"] => Decision::Aborted,
            [_, "t", "committed"] => Decision::Committed,
            [_, _, "committed"] => Decision::Unknown(DoubtReason::OtherIncarnation),
            // `pg_xact_status` is NULL for an id whose status was discarded.
            _ => Decision::Unknown(DoubtReason::Forgotten),
        })
    }
}

/// Writes a message that no one reads into the log of the server. Returns the id of the open transaction.
fn write_barrier<C: R2D2Connection + Send + 'static>(
    conn: &mut PeerConnection<C>,
) -> QueryResult<Option<String>> {
    let message = "SELECT pg_current_xact_id()::text AS text \
                   FROM pg_logical_emit_message(true, 'diesel_peers', ''::text)";
    rows::text(&mut **conn, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_has_ids_if_it_is_postgres_13_or_newer() {
        for (version, expected) in [
            ("150012 PostgreSQL 15.12 (Debian 15.12-0+deb12u2) on x86_64-pc-linux-gnu", true),
            ("130000 PostgreSQL 13.0", true),
            ("120022 PostgreSQL 12.22", false),
            ("150002 PostgreSQL 15.2-YB-2.25.1.0-b0 on x86_64-pc-linux-gnu", false),
            ("130000 CockroachDB CCL v25.1.0", false),
            ("", false),
        ] {
            assert_eq!(has_ids(version), expected, "{version}");
        }
    }
}
