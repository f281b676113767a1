//! Tests whether a peer accepts the work that it is to get. Neither a login nor a ping (`SELECT 1`) shows
//! that: a Galera node that refuses all work accepts logins and answers pings.

use std::any::Any;
use std::fmt;

use diesel::connection::TransactionManager;
use diesel::r2d2::R2D2Connection;
use diesel::result::Error;

use crate::fault::Fault;
use crate::settings::policy::Requirements;

/// The reason why a peer that answers cannot be used.
#[derive(Debug)]
pub(crate) enum NotReady {
    /// A query of the test failed.
    Query(Error),
    /// The peer is in a state in which it cannot be used.
    #[cfg_attr(
        not(any(feature = "mysql", feature = "postgres")),
        expect(dead_code, reason = "other databases are not queried for their state")
    )]
    State(Fault, String),
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(error) => fmt::Display::fmt(error, f),
            Self::State(_, text) => f.write_str(text),
        }
    }
}

impl From<Error> for NotReady {
    fn from(error: Error) -> Self {
        Self::Query(error)
    }
}

/// Tests the peer over a new connection.
pub(crate) fn test<C: R2D2Connection + 'static>(
    conn: &mut C,
    requirements: Requirements,
) -> Result<(), NotReady> {
    let connection: &mut dyn Any = conn;
    #[cfg(feature = "mysql")]
    if let (true, Some(conn)) = (requirements.encrypted, connection.downcast_mut()) {
        mysql::check_encryption(conn)?;
    }
    let _ = connection;
    // Every database supports a transaction. A Galera node without a quorum refuses it, and so does a node
    // that rejects queries. A proxy runs all queries of a transaction on one server: otherwise the parts of
    // the state could be those of several servers.
    C::TransactionManager::begin_transaction(conn)?;
    let tested = test_state(conn, requirements);
    let rolled_back = C::TransactionManager::rollback_transaction(conn);
    tested?;
    Ok(rolled_back?)
}

/// Tests what the server says of its state.
#[cfg_attr(
    not(any(feature = "mysql", feature = "postgres")),
    expect(clippy::unnecessary_wraps, reason = "other databases are not queried for their state")
)]
fn test_state(conn: &mut dyn Any, requirements: Requirements) -> Result<(), NotReady> {
    #[cfg(feature = "mysql")]
    if let Some(conn) = conn.downcast_mut() {
        return mysql::check(conn, requirements);
    }
    #[cfg(feature = "postgres")]
    if let Some(conn) = conn.downcast_mut() {
        return postgres::check(conn, requirements);
    }
    let _ = (conn, requirements);
    Ok(())
}

/// Checks whether the server has the required role. `evidence` is how the server shows its role.
#[cfg(any(feature = "mysql", feature = "postgres"))]
fn check_role(
    is_read_only: bool,
    evidence: &str,
    role: crate::settings::policy::Role,
) -> Result<(), NotReady> {
    use crate::settings::policy::Role;

    let text = match (role, is_read_only) {
        (Role::Any, _) | (Role::ReadWrite, false) | (Role::ReadOnly, true) => return Ok(()),
        (Role::ReadWrite, true) => format!("the server is read-only ({evidence})"),
        (Role::ReadOnly, false) => format!("the server is not read-only ({evidence})"),
    };
    Err(NotReady::State(Fault::WrongRole, text))
}

/// Ignores the error of a query that the server does not support. An unsupported query is no reason
/// against a server that answers.
#[cfg(any(feature = "mysql", feature = "postgres"))]
fn ignore_unsupported<T>(answer: diesel::QueryResult<T>) -> Result<Option<T>, NotReady> {
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

    use super::{NotReady, check_role, ignore_unsupported};
    use crate::fault::Fault;
    use crate::settings::policy::{Donors, GaleraCheck, Requirements, Role};

    /// The state of a Galera node that has the same data as the cluster.
    const SYNCED: &str = "4";

    /// The state of a Galera node that transfers its state to another node, or that was desynchronized
    /// by hand (`wsrep_desync`).
    const DONOR: &str = "2";

    /// The methods by which a donor transfers its state without being blocked meanwhile.
    const NON_BLOCKING: [&str; 4] = ["mariabackup", "xtrabackup-v2", "xtrabackup", "clone"];

    /// Every server supports these statements, whichever of the variables it has. A Galera node answers
    /// them in every state.
    const VARIABLES: &str = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('read_only', \
                             'super_read_only', 'innodb_read_only', 'wsrep_on', \
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

    /// The values of variables by their names in lower case.
    pub(crate) type Variables = HashMap<String, String>;

    pub(crate) fn load(conn: &mut MysqlConnection, query: &str) -> QueryResult<Variables> {
        let variables: Vec<Variable> = diesel::sql_query(query).load(conn)?;
        let pair = |Variable { name, value }| (name.to_ascii_lowercase(), value);
        Ok(variables.into_iter().map(pair).collect())
    }

    /// Reports the cipher of this session.
    const CIPHER: &str = "SHOW SESSION STATUS WHERE Variable_name = 'Ssl_cipher'";

    pub(super) fn check_encryption(conn: &mut MysqlConnection) -> Result<(), NotReady> {
        let variables = load(conn, CIPHER)?;
        if variables.get("ssl_cipher").is_some_and(|cipher| !cipher.is_empty()) {
            return Ok(());
        }
        let text = "the connection is not encrypted, but the URL requires it (`ssl_mode`)";
        Err(NotReady::State(Fault::Misconfigured, text.to_owned()))
    }

    pub(super) fn check(
        conn: &mut MysqlConnection,
        requirements: Requirements,
    ) -> Result<(), NotReady> {
        let is_galera_checked = requirements.galera_check == GaleraCheck::Enabled;
        if requirements.role == Role::Any && !is_galera_checked {
            return Ok(());
        }
        let Some(mut variables) = ignore_unsupported(load(conn, VARIABLES))? else {
            return Ok(());
        };
        if !is_galera_checked {
            variables.retain(|name, _| !name.starts_with("wsrep_"));
        }
        if variables.get("wsrep_on").is_some_and(|on| on == "ON") {
            variables.extend(ignore_unsupported(load(conn, STATUS))?.unwrap_or_default());
        }
        evaluate(&variables, requirements)
    }

    /// Decides from a server's variables whether the server can be used.
    pub(super) fn evaluate(
        variables: &Variables,
        requirements: Requirements,
    ) -> Result<(), NotReady> {
        let is = |name: &str, value: &str| {
            variables.get(name).is_none_or(|actual| actual.eq_ignore_ascii_case(value))
        };
        let shown = |name: &str| variables.get(name).map_or("", String::as_str);
        let not_ready = |name: &str| {
            let text = format!("the Galera node takes no work ({name} is {})", shown(name));
            Err(NotReady::State(Fault::PeerNotReady, text))
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
        let donor_serves = match requirements.donors {
            Donors::Serve => true,
            Donors::Wait => false,
            Donors::ServeUnlessBlocked => {
                shown("wsrep_desync") == "ON" || NON_BLOCKING.contains(&shown("wsrep_sst_method"))
            }
        };
        let is_synced = is("wsrep_local_state", SYNCED);
        let is_donor = is("wsrep_local_state", DONOR);
        if !(is_synced || is_donor && donor_serves) {
            return not_ready("wsrep_local_state_comment");
        }
        // A reader of Aurora has `innodb_read_only` alone.
        let is_set = |name: &&str| !matches!(shown(name), "" | "OFF" | "0");
        let set = ["read_only", "super_read_only", "innodb_read_only"].into_iter().find(is_set);
        let name = set.unwrap_or("read_only");
        let evidence = format!("{name} is {}", shown(name));
        check_role(set.is_some(), &evidence, requirements.role)
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use diesel::PgConnection;
    use diesel::deserialize::QueryableByName;
    use diesel::query_dsl::RunQueryDsl;
    use diesel::sql_types::Bool;

    use super::{NotReady, check_role, ignore_unsupported};
    use crate::settings::policy::{Requirements, Role};

    const QUERY: &str = "SELECT pg_is_in_recovery() AS in_recovery, \
                         current_setting('transaction_read_only') = 'on' AS read_only";

    #[derive(QueryableByName)]
    struct State {
        #[diesel(sql_type = Bool)]
        in_recovery: bool,
        #[diesel(sql_type = Bool)]
        read_only: bool,
    }

    pub(super) fn check(
        conn: &mut PgConnection,
        requirements: Requirements,
    ) -> Result<(), NotReady> {
        if requirements.role == Role::Any {
            return Ok(());
        }
        let state = diesel::sql_query(QUERY).get_result(conn);
        let Some(State { in_recovery, read_only }) = ignore_unsupported(state)? else {
            return Ok(());
        };
        let evidence = match (in_recovery, read_only) {
            (true, _) => "it is in recovery, as a standby is",
            (false, true) => "transactions are read-only",
            (false, false) => "it is a primary",
        };
        check_role(in_recovery || read_only, evidence, requirements.role)
    }
}

#[cfg(all(test, feature = "mysql"))]
mod tests {
    use super::*;
    use crate::settings::policy::{Donors, Role};

    /// Returns the reason, if any, against a healthy node with these differences.
    fn reason_against(
        different: &[(&str, &str)],
        requirements: Requirements,
    ) -> Option<(Fault, String)> {
        let healthy = [
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
        let variables = healthy.iter().chain(different);
        let variables =
            variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        match mysql::evaluate(&variables, requirements) {
            Ok(()) => None,
            Err(NotReady::State(fault, text)) => Some((fault, text)),
            Err(NotReady::Query(error)) => panic!("`evaluate` makes no query: {error}"),
        }
    }

    #[test]
    fn galera_node_that_is_not_synced_is_not_ready() {
        let requirements = Requirements::default();
        assert_eq!(reason_against(&[], requirements), None, "a synced node can be used");
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
            let (fault, text) = reason_against(different, requirements).expect(expected);
            assert_eq!(fault, Fault::PeerNotReady);
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn donor_serves_as_the_setting_requires() {
        let donor = [("wsrep_local_state", "2")];
        let with_backup = [donor[0], ("wsrep_sst_method", "mariabackup")];
        let by_hand = [donor[0], ("wsrep_desync", "ON")];
        for (donors, expected) in [
            (Donors::ServeUnlessBlocked, [false, true, true]),
            (Donors::Serve, [true, true, true]),
            (Donors::Wait, [false, false, false]),
        ] {
            let requirements = Requirements { donors, ..Requirements::default() };
            let serves = [&donor[..], &with_backup, &by_hand]
                .map(|different| reason_against(different, requirements).is_none());
            assert_eq!(serves, expected, "{donors:?}");
        }
    }

    #[test]
    fn server_is_used_only_in_the_required_role() {
        for name in ["read_only", "super_read_only", "innodb_read_only"] {
            for (role, read_only, serves) in [
                (Role::Any, "ON", true),
                (Role::ReadWrite, "ON", false),
                (Role::ReadWrite, "OFF", true),
                (Role::ReadOnly, "ON", true),
                (Role::ReadOnly, "OFF", false),
            ] {
                let requirements = Requirements { role, ..Requirements::default() };
                let reason = reason_against(&[(name, read_only)], requirements);
                assert_eq!(reason.is_none(), serves, "{role:?} where {name} is {read_only}");
                let quotes = |(_, text): (_, String)| text.contains(&format!("{name} is ON"));
                assert!(reason.is_none_or(|it| role == Role::ReadOnly || quotes(it)));
            }
        }
    }

    #[test]
    fn servers_outside_a_cluster_are_ready() {
        let variables = mysql::Variables::from([("wsrep_on".to_owned(), "OFF".to_owned())]);
        assert!(
            mysql::evaluate(&variables, Requirements::default()).is_ok(),
            "MariaDB without Galera is ready"
        );
        assert!(
            mysql::evaluate(&mysql::Variables::new(), Requirements::default()).is_ok(),
            "MySQL 8 is ready"
        );
    }
}
