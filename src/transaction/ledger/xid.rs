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

use crate::peers::link_state::LinkLedger;
use crate::pool::connection::PeerConnection;
use crate::transaction::ledger::Decision;
use crate::transaction::outcome::DoubtReason;
use crate::transaction::{left_session, rows};
use crate::url::dialect::Dialect;

/// Identifies the data: a standby has that of its primary.
const SYSTEM: &str = "(SELECT system_identifier FROM pg_control_system())";

/// The timeline, which a promotion changes; the start of the server; and two signs of a restart after a crash, which
/// changes neither: the processes of the server itself, and the time at which its statistics began. (Before PostgreSQL
/// 15 the second one is slow to read.) An incarnation consists of digits, spaces and commas, and the timeline of
/// hexadecimal digits.
const INCARNATION: &str = "concat_ws(' ', left(pg_walfile_name(pg_current_wal_lsn()), 8), \
                           (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, \
                           (SELECT string_agg(pid::text, ',' ORDER BY pid) FROM \
                           pg_stat_get_activity(NULL) WHERE usesysid IS NULL AND datid IS NULL), \
                           CASE WHEN current_setting('server_version_num')::int >= 150000 THEN \
                           (SELECT (extract(epoch FROM stats_reset) * 1000000)::bigint FROM \
                           pg_stat_bgwriter) END)";

/// A transaction of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::transaction) struct XidEntry {
    pub(in crate::transaction) xid: u64,
    pub(in crate::transaction) system: Arc<str>,
    pub(in crate::transaction) incarnation: Arc<str>,
}

/// Verifies at the first use of a connection that its server is PostgreSQL 13 or newer. A transaction must not be open.
pub(super) fn open<C: R2D2Connection + Send + 'static>(
    conn: &mut PeerConnection<C>,
) -> QueryResult<()> {
    let link_state = conn.link_state();
    if matches!(link_state.ledger.get(), Some(LinkLedger::Xid)) {
        return Ok(());
    }
    verify_server(&mut **conn)?;
    XidEntry::read(&mut **conn, None)?;
    let _ = link_state.ledger.set(LinkLedger::Xid);
    Ok(())
}

fn verify_server<C: R2D2Connection + 'static>(conn: &mut C) -> QueryResult<()> {
    if Dialect::for_connection::<C>() != Dialect::Postgres {
        return Err(unsuitable("they need PostgreSQL"));
    }
    let version = "SELECT current_setting('server_version_num') || ' ' || version() AS text";
    let version = rows::text(conn, version)?.unwrap_or_default();
    if !has_ids(&version) {
        return Err(unsuitable(&format!("the server is not PostgreSQL 13 or newer: {version}")));
    }
    Ok(())
}

/// Verifies the server as at the first use of a connection, and returns the identifier of its data. A standby has no ids
/// of its own.
#[cfg(feature = "doctor")]
pub(super) fn inspect<C: R2D2Connection + 'static>(conn: &mut C) -> QueryResult<Option<String>> {
    verify_server(conn)?;
    let system = format!("SELECT concat_ws(' ', pg_is_in_recovery(), {SYSTEM}) AS text");
    let system = rows::text(conn, &system)?.unwrap_or_default();
    let (is_standby, system) = system.split_once(' ').unwrap_or_default();
    if is_standby == "f" {
        XidEntry::read(conn, None)?;
    }
    Ok(Some(system.to_owned()))
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

impl XidEntry {
    /// Returns the entry of the open transaction. `lock` is a function to call in the same statement.
    pub(super) fn read<C: R2D2Connection + 'static>(
        conn: &mut C,
        lock: Option<&str>,
    ) -> QueryResult<Self> {
        let lock = lock.map_or_else(String::new, |lock| format!(" FROM {lock}"));
        let sql = format!(
            "SELECT concat_ws(' ', pg_current_xact_id(), {SYSTEM}, {INCARNATION}) AS text{lock}"
        );
        let text = rows::text(conn, &sql)?.unwrap_or_default();
        let mut parts = text.splitn(3, ' ');
        let mut next = || parts.next().unwrap_or_default();
        let (xid, system, incarnation) = (next().parse(), next().into(), next().into());
        let xid = xid.map_err(|_| unsuitable("the server returns no id"))?;
        Ok(Self { xid, system, incarnation })
    }

    /// Whether these texts can be written into a statement.
    #[cfg(feature = "serde")]
    pub(in crate::transaction) fn is_valid(&self) -> bool {
        let is_plain = |c: char| c.is_ascii_hexdigit() || c == ' ' || c == ',';
        self.system.chars().chain(self.incarnation.chars()).all(is_plain)
    }

    /// Tries to decide about this transaction. A transaction must not be open.
    ///
    /// # Errors
    ///
    /// Returns the error of a statement, also if the server is a standby.
    pub(super) fn decide<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<Decision> {
        let Self { xid, system, incarnation } = self;
        // The server has lost the transaction if it has not used the id yet. `age` compares with the next id, and only
        // the lower half of both. (The resolver itself uses no id: it could be this one.)
        let sql = format!(
            "SELECT concat_ws(' ', {SYSTEM} = '{system}', {INCARNATION} = '{incarnation}', \
             CASE WHEN '{xid}'::xid8 >= pg_snapshot_xmax(pg_current_snapshot()) \
             AND age('{xid}'::xid8::xid) <= 0 THEN 'aborted' \
             ELSE pg_xact_status('{xid}'::xid8) END) AS text WHERE NOT pg_is_in_recovery()"
        );
        let answer = rows::text(&mut **conn, &sql)?;
        let answer = answer.ok_or_else(|| unsuitable("the server is a standby"))?;
        Ok(match answer.splitn(3, ' ').collect::<Vec<_>>()[..] {
            ["f", ..] => Decision::OtherHistory,
            [_, _, "aborted"] => Decision::Aborted,
            [_, "t", "committed"] => {
                wait_for_replicas(conn)?;
                Decision::Committed
            }
            [_, "f", "committed"] => Decision::Unknown(DoubtReason::IdReused),
            [_, "t", "in progress"] => {
                self.end(conn)?;
                Decision::Again
            }
            // The session of a stranger, or one that this server does not know any more to be ours.
            [_, _, "in progress"] => Decision::Again,
            _ => Decision::Unknown(DoubtReason::Forgotten),
        })
    }

    /// Ends the session in which the transaction is open, if it is that transaction for certain.
    fn end<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<()> {
        let Self { xid, incarnation, .. } = self;
        // Who waits for a synchronous standby has committed already.
        let sql = format!(
            "SELECT pg_terminate_backend(pid)::text AS text FROM pg_stat_activity WHERE backend_xid = \
             '{xid}'::xid8::xid AND wait_event IS DISTINCT FROM 'SyncRep' AND {INCARNATION} = \
             '{incarnation}'"
        );
        if rows::text(&mut **conn, &sql)?.is_some() {
            left_session::report_end(conn);
        }
        Ok(())
    }
}

/// Commits a message in the log of the server that means nothing. What is committed after the transaction reaches the
/// replicas after it, and its COMMIT waits for them.
fn wait_for_replicas<C: R2D2Connection + Send + 'static>(
    conn: &mut PeerConnection<C>,
) -> QueryResult<()> {
    let message = "SELECT pg_logical_emit_message(true, 'diesel_peers', ''::text)::text AS text";
    rows::text(&mut **conn, message).map(drop)
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
