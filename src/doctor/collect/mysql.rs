//! Collects the facts of a MySQL or MariaDB server. The queries use `SHOW`, which a Galera node answers
//! in every state.

use diesel::MysqlConnection;

use super::{FactRecorder, MIGRATIONS, RETURN_MIGRATIONS, RETURN_SETTINGS, column};
use crate::doctor::fact::{Aspect, FactValue};
use crate::fault::LoginFailure;
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

const GLOBAL_ASPECTS: [Aspect; 6] = [
    Aspect::Version,
    Aspect::Server,
    Aspect::Role,
    Aspect::Cluster,
    Aspect::TimeZone,
    Aspect::ServerCharacterSet,
];
const SESSION_ASPECTS: [Aspect; 6] = [
    Aspect::SqlMode,
    Aspect::Isolation,
    Aspect::CharacterSet,
    Aspect::Collation,
    Aspect::SessionCollation,
    Aspect::ClientCharacterSet,
];

pub(super) fn collect(
    conn: &mut MysqlConnection,
    recorder: &FactRecorder<'_>,
) -> Result<(), LoginFailure> {
    recorder.peer_progress.begin_step(RETURN_SETTINGS);
    let mut global = load(conn, GLOBAL);
    if let Ok(variables) = &mut global {
        if variables.get("wsrep_on").is_some_and(|on| on == "ON") {
            // If this query fails, the facts of the cluster are left out.
            variables.extend(load(conn, GALERA).unwrap_or_default());
        }
    }
    recorder.record_all(&GLOBAL_ASPECTS, global, |variables| global_facts(&variables))?;
    recorder
        .record_all(&SESSION_ASPECTS, load(conn, SESSION), |variables| session_facts(&variables))?;
    recorder.record_all(&[Aspect::Encryption], load(conn, TLS), |variables| {
        vec![(Aspect::Encryption, encryption(&variables))]
    })?;
    recorder.record(Aspect::Database, column::text(conn, "SELECT DATABASE() AS value"))?;
    recorder.peer_progress.begin_step(RETURN_MIGRATIONS);
    let find_table = format!(
        "SELECT TABLE_NAME AS value FROM information_schema.TABLES \
         WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{MIGRATIONS}'"
    );
    recorder.record(Aspect::Migrations, column::migrations(conn, &find_table))
}

fn global_facts(variables: &Variables) -> Vec<(Aspect, FactValue)> {
    let get = |name: &str| variables.get(name).map(String::as_str);
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
    let mut facts = known_texts([
        (Aspect::Version, get("version").map(str::to_owned)),
        (Aspect::Server, server),
        (Aspect::Role, role),
        (Aspect::Cluster, cluster),
        (Aspect::TimeZone, time_zone),
        (Aspect::ServerCharacterSet, charset),
    ]);
    if !is_node {
        facts.push((Aspect::Cluster, FactValue::None));
    }
    for (aspect, name) in [
        (Aspect::ClusterStatus, "wsrep_cluster_status"),
        (Aspect::ClusterSize, "wsrep_cluster_size"),
        (Aspect::NodeState, "wsrep_local_state_comment"),
        (Aspect::NodeReady, "wsrep_ready"),
    ] {
        facts.extend(get(name).map(|value| (aspect, FactValue::text(value))));
    }
    facts
}

fn session_facts(variables: &Variables) -> Vec<(Aspect, FactValue)> {
    let get = |name: &str| variables.get(name).cloned();
    let mut facts = known_texts([
        (Aspect::Isolation, get("transaction_isolation").or_else(|| get("tx_isolation"))),
        (Aspect::CharacterSet, get("character_set_database")),
        (Aspect::Collation, get("collation_database")),
        (Aspect::SessionCollation, get("collation_connection")),
        (Aspect::ClientCharacterSet, get("character_set_client")),
    ]);
    let modes = get("sql_mode").map(|modes| {
        let modes = modes.split(',').map(str::trim).filter(|mode| !mode.is_empty());
        FactValue::sorted_list(modes.map(str::to_owned))
    });
    facts.extend(modes.map(|modes| (Aspect::SqlMode, modes)));
    facts
}

fn encryption(variables: &Variables) -> FactValue {
    let get = |name: &str| variables.get(name).filter(|value| !value.is_empty());
    match (get("ssl_version"), get("ssl_cipher")) {
        (_, None) => FactValue::None,
        (Some(version), Some(cipher)) => FactValue::Text(format!("{version}, {cipher}")),
        (None, Some(cipher)) => FactValue::text(cipher),
    }
}

/// Returns the facts whose text is known.
fn known_texts<const N: usize>(all: [(Aspect, Option<String>); N]) -> Vec<(Aspect, FactValue)> {
    all.into_iter().filter_map(|(aspect, text)| Some((aspect, FactValue::Text(text?)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(values: &[(&str, &str)]) -> Variables {
        values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[track_caller]
    fn assert_fact(facts: &[(Aspect, FactValue)], aspect: Aspect, expected: Option<&FactValue>) {
        let value = facts.iter().find(|(other, _)| *other == aspect).map(|(_, value)| value);
        assert_eq!(value, expected, "the value of the aspect {aspect}");
    }

    #[test]
    fn global_variables_become_facts() {
        let plain = [
            ("version", "8.4.3"),
            ("hostname", "db0"),
            ("port", "3306"),
            ("read_only", "OFF"),
            ("time_zone", "SYSTEM"),
            ("system_time_zone", "CET"),
        ];
        let facts = global_facts(&variables(&plain));
        for (aspect, expected) in [
            (Aspect::Version, Some(FactValue::text("8.4.3"))),
            (Aspect::Server, Some(FactValue::text("db0:3306"))),
            (Aspect::Role, Some(FactValue::text("read-write"))),
            (Aspect::TimeZone, Some(FactValue::text("SYSTEM (CET)"))),
            (Aspect::Cluster, Some(FactValue::None)),
            (Aspect::NodeState, None),
            (Aspect::ServerCharacterSet, None),
        ] {
            assert_fact(&facts, aspect, expected.as_ref());
        }
        for read_only in ["ON", "1", "NO_LOCK_NO_ADMIN"] {
            let facts = global_facts(&variables(&[("read_only", read_only)]));
            assert_fact(&facts, Aspect::Role, Some(&FactValue::text("read-only")));
        }
        let facts =
            global_facts(&variables(&[("time_zone", "+02:00"), ("system_time_zone", "CET")]));
        assert_fact(&facts, Aspect::TimeZone, Some(&FactValue::text("+02:00")));
    }

    #[test]
    fn cluster_facts_come_from_galera_nodes_only() {
        let node =
            [("wsrep_on", "ON"), ("wsrep_cluster_state_uuid", "u"), ("wsrep_cluster_size", "3")];
        let facts = global_facts(&variables(&node));
        assert_fact(&facts, Aspect::Cluster, Some(&FactValue::text("u")));
        assert_fact(&facts, Aspect::ClusterSize, Some(&FactValue::text("3")));
        let facts = global_facts(&variables(&node[..1]));
        assert_fact(&facts, Aspect::Cluster, None);
    }

    #[test]
    fn session_variables_become_facts() {
        let facts = session_facts(&variables(&[("sql_mode", "B,A, C"), ("tx_isolation", "X")]));
        let modes = ["A", "B", "C"].map(str::to_owned);
        assert_fact(&facts, Aspect::SqlMode, Some(&FactValue::sorted_list(modes)));
        assert_fact(&facts, Aspect::Isolation, Some(&FactValue::text("X")));
        let both = [("transaction_isolation", "Y"), ("tx_isolation", "X"), ("sql_mode", "")];
        let facts = session_facts(&variables(&both));
        assert_fact(&facts, Aspect::Isolation, Some(&FactValue::text("Y")));
        assert_fact(&facts, Aspect::SqlMode, Some(&FactValue::List(Vec::new())));
    }

    #[test]
    fn encryption_is_none_without_a_cipher() {
        for (values, expected) in [
            (&[("ssl_version", "TLSv1.3"), ("ssl_cipher", "X")][..], FactValue::text("TLSv1.3, X")),
            (&[("ssl_cipher", "X")], FactValue::text("X")),
            (&[("ssl_version", ""), ("ssl_cipher", "")], FactValue::None),
            (&[], FactValue::None),
        ] {
            assert_eq!(encryption(&variables(values)), expected, "{values:?}");
        }
    }
}
