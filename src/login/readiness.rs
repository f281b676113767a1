//! Whether a peer takes the work that it is to get, which a login does not show, and a ping
//! (`SELECT 1`) neither: a Galera node that refuses all work accepts logins and answers pings.

use std::any::Any;
use std::fmt;

use diesel::connection::TransactionManager;
use diesel::r2d2::R2D2Connection;
use diesel::result::{Error, QueryResult};

use crate::fault::Fault;
use crate::policy::Requirements;

/// Why a peer that answers is not to be used.
#[derive(Debug)]
pub(crate) enum Unready {
    Query(Error),
    #[cfg_attr(
        not(any(feature = "mysql", feature = "postgres")),
        expect(dead_code, reason = "other databases are not asked")
    )]
    Says(Fault, String),
}

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(error) => fmt::Display::fmt(error, f),
            Self::Says(_, text) => f.write_str(text),
        }
    }
}

impl From<Error> for Unready {
    fn from(error: Error) -> Self {
        Self::Query(error)
    }
}

/// Looks at it, by a new connection.
pub(crate) fn check<C: R2D2Connection + 'static>(
    conn: &mut C,
    wanted: Requirements,
) -> Result<(), Unready> {
    let connection: &mut dyn Any = conn;
    #[cfg(feature = "mysql")]
    if let (true, Some(conn)) = (wanted.encrypted, connection.downcast_mut()) {
        mysql::check_encryption(conn)?;
    }
    let _ = connection;
    begin_and_roll_back(conn)?;
    let conn: &mut dyn Any = conn;
    #[cfg(feature = "mysql")]
    if let Some(conn) = conn.downcast_mut() {
        return mysql::check(conn, wanted);
    }
    #[cfg(feature = "postgres")]
    if let Some(conn) = conn.downcast_mut() {
        return postgres::check(conn, wanted);
    }
    let _ = (conn, wanted);
    Ok(())
}

/// What every database has. A Galera node without a quorum, and one that rejects queries, refuse it.
fn begin_and_roll_back<C: R2D2Connection>(conn: &mut C) -> QueryResult<()> {
    C::TransactionManager::begin_transaction(conn)?;
    C::TransactionManager::rollback_transaction(conn)
}

/// Whether it only reads, as far as that matters.
#[cfg(any(feature = "mysql", feature = "postgres"))]
fn check_role(only_reads: bool, how: &str, role: crate::policy::Role) -> Result<(), Unready> {
    use crate::policy::Role;

    let text = match (role, only_reads) {
        (Role::Any, _) | (Role::ReadWrite, false) | (Role::ReadOnly, true) => return Ok(()),
        (Role::ReadWrite, true) => format!("it only reads ({how})"),
        (Role::ReadOnly, false) => format!("it does not only read ({how})"),
    };
    Err(Unready::Says(Fault::WrongRole, text))
}

/// What a server cannot be asked is no reason against it, as long as it answers.
#[cfg(any(feature = "mysql", feature = "postgres"))]
fn unless_unknown<T>(answer: QueryResult<T>) -> Result<Option<T>, Unready> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if Fault::of(&error) == Fault::Query => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(feature = "mysql")]
pub(crate) mod mysql {
    use std::collections::HashMap;

    use diesel::MysqlConnection;
    use diesel::deserialize::QueryableByName;
    use diesel::query_dsl::RunQueryDsl;
    use diesel::result::QueryResult;
    use diesel::sql_types::Text;

    use super::{Unready, check_role, unless_unknown};
    use crate::fault::Fault;
    use crate::policy::{Donors, Requirements};

    /// The state of a Galera node that has all that the others have, and of one that helps another to
    /// get it, or was taken out of step by hand (`wsrep_desync`).
    const SYNCED: &str = "4";
    const DONOR: &str = "2";

    /// How a donor may hand over its state without being blocked meanwhile.
    const NON_BLOCKING: [&str; 4] = ["mariabackup", "xtrabackup-v2", "xtrabackup", "clone"];

    /// Every server knows these statements, whichever of the variables it has; and a Galera node
    /// answers them in each state.
    const VARIABLES: &str = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('read_only', 'wsrep_on', \
                             'wsrep_reject_queries', 'wsrep_desync', 'wsrep_sst_method')";
    const STATUS: &str = "SHOW GLOBAL STATUS WHERE Variable_name IN ('wsrep_ready', \
                          'wsrep_cluster_status', 'wsrep_local_state', 'wsrep_local_state_comment')";

    #[derive(QueryableByName)]
    struct Variable {
        #[diesel(sql_type = Text, column_name = "Variable_name")]
        name: String,
        #[diesel(sql_type = Text, column_name = "Value")]
        value: String,
    }

    /// Variables by their names, in small letters.
    pub(crate) type Variables = HashMap<String, String>;

    pub(crate) fn load(conn: &mut MysqlConnection, query: &str) -> QueryResult<Variables> {
        let variables: Vec<Variable> = diesel::sql_query(query).load(conn)?;
        let pair = |Variable { name, value }| (name.to_ascii_lowercase(), value);
        Ok(variables.into_iter().map(pair).collect())
    }

    /// Which cipher this session uses.
    const CIPHER: &str = "SHOW SESSION STATUS WHERE Variable_name = 'Ssl_cipher'";

    pub(super) fn check_encryption(conn: &mut MysqlConnection) -> Result<(), Unready> {
        let known = load(conn, CIPHER)?;
        if known.get("ssl_cipher").is_some_and(|cipher| !cipher.is_empty()) {
            return Ok(());
        }
        let text = "the connection is not encrypted, which its URL requires (`ssl_mode`); MariaDB's \
                    client library knows no `ssl_mode`, and encrypts where there is an `ssl_ca`";
        Err(Unready::Says(Fault::Misconfigured, text.to_owned()))
    }

    pub(super) fn check(conn: &mut MysqlConnection, wanted: Requirements) -> Result<(), Unready> {
        let Some(mut known) = unless_unknown(load(conn, VARIABLES))? else { return Ok(()) };
        if known.get("wsrep_on").is_some_and(|on| on == "ON") {
            known.extend(unless_unknown(load(conn, STATUS))?.unwrap_or_default());
        }
        judge(&known, wanted)
    }

    /// What follows from what is known.
    pub(super) fn judge(known: &Variables, wanted: Requirements) -> Result<(), Unready> {
        let is = |name: &str, value: &str| {
            known.get(name).is_none_or(|known| known.eq_ignore_ascii_case(value))
        };
        let shown = |name: &str| known.get(name).map_or("", String::as_str);
        let not_ready = |name: &str| {
            let text = format!("the Galera node takes no work ({name} is {})", shown(name));
            Err(Unready::Says(Fault::PeerNotReady, text))
        };
        for (name, value) in [
            ("wsrep_cluster_status", "Primary"),
            ("wsrep_ready", "ON"),
            ("wsrep_reject_queries", "NONE"),
        ] {
            if !is(name, value) {
                return not_ready(name);
            }
        }
        let donor_serves = match wanted.donors {
            Donors::Serve => true,
            Donors::Wait => false,
            Donors::ServeUnlessBlocked => {
                shown("wsrep_desync") == "ON" || NON_BLOCKING.contains(&shown("wsrep_sst_method"))
            }
        };
        let has_all = is("wsrep_local_state", SYNCED);
        let helps_another = is("wsrep_local_state", DONOR);
        if !(has_all || helps_another && donor_serves) {
            return not_ready("wsrep_local_state_comment");
        }
        let read_only = shown("read_only");
        let how = format!("read_only is {read_only}");
        let only_reads = !matches!(read_only, "" | "OFF" | "0");
        check_role(only_reads, &how, wanted.role)
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use diesel::PgConnection;
    use diesel::deserialize::QueryableByName;
    use diesel::query_dsl::RunQueryDsl;
    use diesel::sql_types::Bool;

    use super::{Unready, check_role, unless_unknown};
    use crate::policy::{Requirements, Role};

    const QUERY: &str = "SELECT pg_is_in_recovery() AS recovers, \
                         current_setting('transaction_read_only') = 'on' AS only_reads";

    #[derive(QueryableByName)]
    struct State {
        #[diesel(sql_type = Bool)]
        recovers: bool,
        #[diesel(sql_type = Bool)]
        only_reads: bool,
    }

    pub(super) fn check(conn: &mut PgConnection, wanted: Requirements) -> Result<(), Unready> {
        if wanted.role == Role::Any {
            return Ok(());
        }
        let state = diesel::sql_query(QUERY).get_result(conn);
        let Some(State { recovers, only_reads }) = unless_unknown(state)? else { return Ok(()) };
        let how = match (recovers, only_reads) {
            (true, _) => "it is in recovery, as a standby is",
            (false, true) => "transactions are read-only",
            (false, false) => "it is a primary",
        };
        check_role(recovers || only_reads, how, wanted.role)
    }
}

#[cfg(all(test, feature = "mysql"))]
mod tests {
    use super::*;
    use crate::policy::{Donors, Role};

    /// What becomes of a node of which this is known besides that it is fine.
    fn verdict(different: &[(&str, &str)], wanted: Requirements) -> Option<(Fault, String)> {
        let fine = [
            ("wsrep_on", "ON"),
            ("wsrep_reject_queries", "NONE"),
            ("wsrep_desync", "OFF"),
            ("wsrep_sst_method", "rsync"),
            ("wsrep_ready", "ON"),
            ("wsrep_cluster_status", "Primary"),
            ("wsrep_local_state", "4"),
            ("wsrep_local_state_comment", "Synced"),
            ("read_only", "OFF"),
        ];
        let known = fine.iter().chain(different);
        let known = known.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        match mysql::judge(&known, wanted) {
            Ok(()) => None,
            Err(Unready::Says(fault, text)) => Some((fault, text)),
            Err(Unready::Query(error)) => panic!("nothing was asked: {error}"),
        }
    }

    #[test]
    fn galera_nodes() {
        let wanted = Requirements::default();
        assert_eq!(verdict(&[], wanted), None, "it is synced");
        for (different, expected) in [
            (&[("wsrep_ready", "OFF")][..], "wsrep_ready is OFF"),
            (&[("wsrep_cluster_status", "non-Primary")], "wsrep_cluster_status is non-Primary"),
            (&[("wsrep_cluster_status", "Disconnected")], "wsrep_cluster_status is Disconnected"),
            (&[("wsrep_reject_queries", "ALL")], "wsrep_reject_queries is ALL"),
            (
                &[("wsrep_local_state", "3"), ("wsrep_local_state_comment", "Joined")],
                "wsrep_local_state_comment is Joined",
            ),
        ] {
            let (fault, text) = verdict(different, wanted).expect(expected);
            assert_eq!(fault, Fault::PeerNotReady);
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn donors() {
        let donor = [("wsrep_local_state", "2")];
        let with_backup = [donor[0], ("wsrep_sst_method", "mariabackup")];
        let by_hand = [donor[0], ("wsrep_desync", "ON")];
        for (donors, expected) in [
            (Donors::ServeUnlessBlocked, [false, true, true]),
            (Donors::Serve, [true, true, true]),
            (Donors::Wait, [false, false, false]),
        ] {
            let wanted = Requirements { donors, ..Requirements::default() };
            let serves = [&donor[..], &with_backup, &by_hand]
                .map(|different| verdict(different, wanted).is_none());
            assert_eq!(serves, expected, "{donors:?}");
        }
    }

    #[test]
    fn roles() {
        for (role, read_only, serves) in [
            (Role::Any, "ON", true),
            (Role::ReadWrite, "ON", false),
            (Role::ReadWrite, "OFF", true),
            (Role::ReadOnly, "ON", true),
            (Role::ReadOnly, "OFF", false),
        ] {
            let wanted = Requirements { role, ..Requirements::default() };
            let verdict = verdict(&[("read_only", read_only)], wanted);
            assert_eq!(verdict.is_none(), serves, "{role:?} where read_only is {read_only}");
        }
    }

    #[test]
    fn other_servers() {
        let known = mysql::Variables::from([("wsrep_on".to_owned(), "OFF".to_owned())]);
        assert!(mysql::judge(&known, Requirements::default()).is_ok(), "no Galera node");
        assert!(
            mysql::judge(&mysql::Variables::new(), Requirements::default()).is_ok(),
            "nor MySQL 8"
        );
    }
}
