//! What a MySQL or MariaDB server is asked. `SHOW` is answered by a Galera node in each state.

use diesel::MysqlConnection;

use super::{APPLIED, Asker, MIGRATIONS, SETTINGS, one};
use crate::doctor::fact::{Aspect, Value};
use crate::login::bounded::LoginFailure;
use crate::login::readiness::mysql::{Variables, load};

const GLOBAL: &str = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('version', 'hostname', 'port', \
                      'read_only', 'time_zone', 'system_time_zone', 'character_set_server', \
                      'collation_server', 'wsrep_on')";
const SESSION: &str = "SHOW SESSION VARIABLES WHERE Variable_name IN ('sql_mode', 'tx_isolation', \
                       'transaction_isolation', 'character_set_database', 'collation_database', \
                       'character_set_client', 'collation_connection')";
const TLS: &str = "SHOW SESSION STATUS WHERE Variable_name IN ('Ssl_version', 'Ssl_cipher')";
const GALERA: &str = "SHOW GLOBAL STATUS WHERE Variable_name IN ('wsrep_cluster_state_uuid', \
                      'wsrep_cluster_status', 'wsrep_cluster_size', 'wsrep_local_state_comment', \
                      'wsrep_ready')";

const OF_GLOBAL: [Aspect; 6] = [
    Aspect::Version,
    Aspect::Server,
    Aspect::Role,
    Aspect::Cluster,
    Aspect::TimeZone,
    Aspect::ServerCharacterSet,
];
const OF_SESSION: [Aspect; 6] = [
    Aspect::SqlMode,
    Aspect::Isolation,
    Aspect::CharacterSet,
    Aspect::Collation,
    Aspect::SessionCollation,
    Aspect::ClientCharacterSet,
];

pub(super) fn ask(conn: &mut MysqlConnection, asker: &Asker<'_>) -> Result<(), LoginFailure> {
    asker.peer_progress.asks(Some(SETTINGS));
    let mut global = load(conn, GLOBAL);
    if let Ok(known) = &mut global {
        if known.get("wsrep_on").is_some_and(|on| on == "ON") {
            // What is not told there is left out.
            known.extend(load(conn, GALERA).unwrap_or_default());
        }
    }
    asker.put_all(&OF_GLOBAL, global, |known| of_global(&known))?;
    asker.put_all(&OF_SESSION, load(conn, SESSION), |known| of_session(&known))?;
    asker.put_all(&[Aspect::Encryption], load(conn, TLS), |known| {
        vec![(Aspect::Encryption, encryption(&known))]
    })?;
    asker.put(Aspect::Database, one::text(conn, "SELECT DATABASE() AS value"))?;
    asker.peer_progress.asks(Some(APPLIED));
    let find = format!(
        "SELECT TABLE_NAME AS value FROM information_schema.TABLES \
         WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{MIGRATIONS}'"
    );
    asker.put(Aspect::Migrations, one::migrations(conn, &find))
}

fn of_global(known: &Variables) -> Vec<(Aspect, Value)> {
    let get = |name: &str| known.get(name).map(String::as_str);
    let role = get("read_only").map(|read_only| match read_only {
        "OFF" | "0" => "read-write".to_owned(),
        _ => "read-only".to_owned(),
    });
    let server = get("hostname").zip(get("port")).map(|(host, port)| format!("{host}:{port}"));
    let time_zone = get("time_zone").map(|zone| match get("system_time_zone") {
        Some(system) if zone == "SYSTEM" => format!("SYSTEM ({system})"),
        _ => zone.to_owned(),
    });
    let charset = get("character_set_server").zip(get("collation_server"));
    let charset = charset.map(|(charset, collation)| format!("{charset}, {collation}"));
    let is_node = get("wsrep_on") == Some("ON");
    let cluster = get("wsrep_cluster_state_uuid").filter(|_| is_node).map(str::to_owned);
    let mut told = told([
        (Aspect::Version, get("version").map(str::to_owned)),
        (Aspect::Server, server),
        (Aspect::Role, role),
        (Aspect::Cluster, cluster),
        (Aspect::TimeZone, time_zone),
        (Aspect::ServerCharacterSet, charset),
    ]);
    if !is_node {
        told.push((Aspect::Cluster, Value::None));
    }
    for (aspect, name) in [
        (Aspect::ClusterStatus, "wsrep_cluster_status"),
        (Aspect::ClusterSize, "wsrep_cluster_size"),
        (Aspect::NodeState, "wsrep_local_state_comment"),
        (Aspect::NodeReady, "wsrep_ready"),
    ] {
        told.extend(get(name).map(|value| (aspect, Value::text(value))));
    }
    told
}

fn of_session(known: &Variables) -> Vec<(Aspect, Value)> {
    let get = |name: &str| known.get(name).cloned();
    let mut told = told([
        (Aspect::Isolation, get("transaction_isolation").or_else(|| get("tx_isolation"))),
        (Aspect::CharacterSet, get("character_set_database")),
        (Aspect::Collation, get("collation_database")),
        (Aspect::SessionCollation, get("collation_connection")),
        (Aspect::ClientCharacterSet, get("character_set_client")),
    ]);
    let modes = get("sql_mode").map(|modes| {
        let modes = modes.split(',').map(str::trim).filter(|mode| !mode.is_empty());
        Value::list(modes.map(str::to_owned))
    });
    told.extend(modes.map(|modes| (Aspect::SqlMode, modes)));
    told
}

fn encryption(known: &Variables) -> Value {
    let get = |name: &str| known.get(name).filter(|value| !value.is_empty());
    match (get("ssl_version"), get("ssl_cipher")) {
        (_, None) => Value::None,
        (Some(version), Some(cipher)) => Value::Text(format!("{version}, {cipher}")),
        (None, Some(cipher)) => Value::text(cipher),
    }
}

/// Those of which there is something to tell.
fn told<const N: usize>(all: [(Aspect, Option<String>); N]) -> Vec<(Aspect, Value)> {
    all.into_iter().filter_map(|(aspect, told)| Some((aspect, Value::Text(told?)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(known: &[(&str, &str)]) -> Variables {
        known.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[track_caller]
    fn assert_told(told: &[(Aspect, Value)], aspect: Aspect, expected: Option<&Value>) {
        let told = told.iter().find(|(about, _)| *about == aspect).map(|(_, value)| value);
        assert_eq!(told, expected, "{aspect}");
    }

    #[test]
    fn servers() {
        let plain = [
            ("version", "8.4.3"),
            ("hostname", "db0"),
            ("port", "3306"),
            ("read_only", "OFF"),
            ("time_zone", "SYSTEM"),
            ("system_time_zone", "CET"),
        ];
        let told = of_global(&variables(&plain));
        for (aspect, expected) in [
            (Aspect::Version, Some(Value::text("8.4.3"))),
            (Aspect::Server, Some(Value::text("db0:3306"))),
            (Aspect::Role, Some(Value::text("read-write"))),
            (Aspect::TimeZone, Some(Value::text("SYSTEM (CET)"))),
            (Aspect::Cluster, Some(Value::None)),
            (Aspect::NodeState, None),
            (Aspect::ServerCharacterSet, None),
        ] {
            assert_told(&told, aspect, expected.as_ref());
        }
        for read_only in ["ON", "1", "NO_LOCK_NO_ADMIN"] {
            let told = of_global(&variables(&[("read_only", read_only)]));
            assert_told(&told, Aspect::Role, Some(&Value::text("read-only")));
        }
        let told = of_global(&variables(&[("time_zone", "+02:00"), ("system_time_zone", "CET")]));
        assert_told(&told, Aspect::TimeZone, Some(&Value::text("+02:00")));
    }

    #[test]
    fn galera_nodes() {
        let node =
            [("wsrep_on", "ON"), ("wsrep_cluster_state_uuid", "u"), ("wsrep_cluster_size", "3")];
        let told = of_global(&variables(&node));
        assert_told(&told, Aspect::Cluster, Some(&Value::text("u")));
        assert_told(&told, Aspect::ClusterSize, Some(&Value::text("3")));
        let told = of_global(&variables(&node[..1]));
        assert_told(&told, Aspect::Cluster, None);
    }

    #[test]
    fn sessions() {
        let told = of_session(&variables(&[("sql_mode", "B,A, C"), ("tx_isolation", "X")]));
        let modes = ["A", "B", "C"].map(str::to_owned);
        assert_told(&told, Aspect::SqlMode, Some(&Value::list(modes)));
        assert_told(&told, Aspect::Isolation, Some(&Value::text("X")));
        let both = [("transaction_isolation", "Y"), ("tx_isolation", "X"), ("sql_mode", "")];
        let told = of_session(&variables(&both));
        assert_told(&told, Aspect::Isolation, Some(&Value::text("Y")));
        assert_told(&told, Aspect::SqlMode, Some(&Value::List(Vec::new())));
    }

    #[test]
    fn tls() {
        for (known, expected) in [
            (&[("ssl_version", "TLSv1.3"), ("ssl_cipher", "X")][..], Value::text("TLSv1.3, X")),
            (&[("ssl_cipher", "X")], Value::text("X")),
            (&[("ssl_version", ""), ("ssl_cipher", "")], Value::None),
            (&[], Value::None),
        ] {
            assert_eq!(encryption(&variables(known)), expected, "{known:?}");
        }
    }
}
