//! The examination of peers as a function, for applications whose settings stand in code. (The tests of the
//! command `peers check` are in `cli/tests`.)

#![cfg(all(target_os = "linux", feature = "doctor", feature = "mysql"))]

use diesel::connection::SimpleConnection;
use diesel_peers::doctor::{self, Aspect, Condition, Severity, Value};
use support::backend::{Backend, manager_over};
use support::mariadb::MariaDb;
use support::{APP, APP_PASSWORD};

#[test]
fn as_a_function() {
    let servers = <MariaDb as Backend>::start(2);
    let builder = manager_over(&servers)
        .on_connect(|conn| conn.batch_execute("SET SESSION tx_isolation = 'SERIALIZABLE'"));
    let report = doctor::examine(builder).expect("the settings are right");
    assert!(report.is_ok(), "{report}");
    let facts = &report.peers[0].facts;
    let isolation = Value::Text("SERIALIZABLE".to_owned());
    assert_eq!(facts[&Aspect::Isolation], isolation, "that of the application's sessions");

    let builder = manager_over(&servers).credentials(|peer| match peer {
        "peer1" => Err("the vault is sealed"),
        _ => Ok(diesel_peers::Credentials::new(APP, APP_PASSWORD)),
    });
    let report = doctor::examine(builder).expect("the settings are right");
    assert_eq!(report.peers[1].condition, Condition::NotAsked);
    assert_eq!(report.problems(), ["peer1 was not asked: no credentials: the vault is sealed"]);
    assert!(report.differences.iter().all(|it| it.severity == Severity::Note), "{report}");
}
