//! Collects the facts of a PostgreSQL server.

use std::collections::HashMap;

use diesel::deserialize::QueryableByName;
use diesel::sql_types::Text;
use diesel::{PgConnection, QueryResult, RunQueryDsl, sql_query};

use super::{FactRecorder, MIGRATIONS, RETURN_MIGRATIONS, RETURN_SETTINGS, column};
use crate::doctor::fact::{Aspect, FactValue};
use crate::fault::LoginFailure;

/// Reads settings from a view, because the query then succeeds even if the server lacks one of them.
/// diesel sets the time zone of its own sessions, so the server's time zone is the reset value.
const SETTINGS: &str = "SELECT name::text AS name, \
                     CASE name WHEN 'TimeZone' THEN reset_val ELSE setting END AS value \
                     FROM pg_settings WHERE name IN ('server_version', 'server_encoding', \
                     'client_encoding', 'TimeZone', 'default_transaction_isolation')";
const SETTINGS_BY_ASPECT: [(Aspect, &str); 5] = [
    (Aspect::Version, "server_version"),
    (Aspect::Isolation, "default_transaction_isolation"),
    (Aspect::CharacterSet, "server_encoding"),
    (Aspect::ClientCharacterSet, "client_encoding"),
    (Aspect::TimeZone, "TimeZone"),
];

/// One query for each aspect, because a pooler or a compatible server may not support all of them.
const QUERIES: [(Aspect, &str); 6] = [
    // A connection over a Unix socket has no server address.
    (
        Aspect::Server,
        "SELECT COALESCE(host(inet_server_addr()), 'localhost') || ':' || \
         current_setting('port') AS value",
    ),
    (Aspect::Database, "SELECT current_database()::text AS value"),
    (
        Aspect::Role,
        "SELECT CASE WHEN pg_is_in_recovery() THEN 'standby' \
         WHEN current_setting('transaction_read_only') = 'on' THEN 'read-only' \
         ELSE 'read-write' END AS value",
    ),
    (
        Aspect::Encryption,
        "SELECT version || ', ' || cipher AS value FROM pg_stat_ssl \
         WHERE pid = pg_backend_pid() AND ssl",
    ),
    (Aspect::SystemIdentifier, "SELECT system_identifier::text AS value FROM pg_control_system()"),
    (
        Aspect::Collation,
        "SELECT datcollate::text AS value FROM pg_database WHERE datname = current_database()",
    ),
];

#[derive(QueryableByName)]
struct Setting {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    value: String,
}

pub(super) fn collect(
    conn: &mut PgConnection,
    recorder: &FactRecorder<'_>,
) -> Result<(), LoginFailure> {
    recorder.peer_progress.begin_step(RETURN_SETTINGS);
    recorder.record_all(
        &SETTINGS_BY_ASPECT.map(|(aspect, _)| aspect),
        settings(conn),
        |mut settings| {
            let fact = |(aspect, name)| Some((aspect, FactValue::Text(settings.remove(name)?)));
            SETTINGS_BY_ASPECT.into_iter().filter_map(fact).collect()
        },
    )?;
    for (aspect, query) in QUERIES {
        recorder.record(aspect, column::text(conn, query))?;
    }
    recorder.peer_progress.begin_step(RETURN_MIGRATIONS);
    // The search path decides which table is found, as in a query of the application.
    let find_table = format!("SELECT to_regclass('{MIGRATIONS}')::text AS value");
    recorder.record(Aspect::Migrations, column::migrations(conn, &find_table))
}

fn settings(conn: &mut PgConnection) -> QueryResult<HashMap<String, String>> {
    let settings: Vec<Setting> = sql_query(SETTINGS).load(conn)?;
    Ok(settings.into_iter().map(|Setting { name, value }| (name, value)).collect())
}
