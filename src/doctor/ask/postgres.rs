//! What a PostgreSQL server is asked.

use std::collections::HashMap;

use diesel::deserialize::QueryableByName;
use diesel::sql_types::Text;
use diesel::{PgConnection, QueryResult, RunQueryDsl, sql_query};

use super::{APPLIED, Asker, MIGRATIONS, SETTINGS, one};
use crate::doctor::fact::{Aspect, Value};
use crate::login::bounded::LoginFailure;

/// A view that every server has, whichever of the settings it has. diesel sets the time zone of its own
/// sessions; what it was before is the server's.
const QUERY: &str = "SELECT name::text AS name, \
                     CASE name WHEN 'TimeZone' THEN reset_val ELSE setting END AS value \
                     FROM pg_settings WHERE name IN ('server_version', 'server_encoding', \
                     'client_encoding', 'TimeZone', 'default_transaction_isolation')";
const OF_SETTINGS: [(Aspect, &str); 5] = [
    (Aspect::Version, "server_version"),
    (Aspect::Isolation, "default_transaction_isolation"),
    (Aspect::CharacterSet, "server_encoding"),
    (Aspect::ClientCharacterSet, "client_encoding"),
    (Aspect::TimeZone, "TimeZone"),
];

/// Each is asked for by itself: a pooler, or another server that speaks this protocol, may not know one
/// of them.
const QUERIES: [(Aspect, &str); 6] = [
    // Over a Unix socket there is no address.
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

pub(super) fn ask(conn: &mut PgConnection, asker: &Asker<'_>) -> Result<(), LoginFailure> {
    asker.peer_progress.asks(Some(SETTINGS));
    asker.put_all(&OF_SETTINGS.map(|(aspect, _)| aspect), settings(conn), |mut known| {
        let told = |(aspect, name)| Some((aspect, Value::Text(known.remove(name)?)));
        OF_SETTINGS.into_iter().filter_map(told).collect()
    })?;
    for (aspect, query) in QUERIES {
        asker.put(aspect, one::text(conn, query))?;
    }
    asker.peer_progress.asks(Some(APPLIED));
    // As a query finds it, by the search path.
    let find = format!("SELECT to_regclass('{MIGRATIONS}')::text AS value");
    asker.put(Aspect::Migrations, one::migrations(conn, &find))
}

fn settings(conn: &mut PgConnection) -> QueryResult<HashMap<String, String>> {
    let settings: Vec<Setting> = sql_query(QUERY).load(conn)?;
    Ok(settings.into_iter().map(|Setting { name, value }| (name, value)).collect())
}
