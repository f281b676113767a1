//! The module `doctor`: the examination of peers as a function of a builder. (The tests of the command `peers`
//! are in `cli/tests`.)

#![cfg(all(target_os = "linux", feature = "doctor", feature = "mysql"))]

use diesel::connection::SimpleConnection;
use diesel_peers::doctor::{self, Aspect, Condition, FactValue, Severity};
use support::backend::{Backend, manager_over};
use support::mariadb::MariaDb;
use support::{APP, APP_PASSWORD};

/// The function `examine` uses the settings of a builder, including its closures.
#[test]
fn examine_uses_closures_of_the_builder() {
    let servers = <MariaDb as Backend>::start(2);
    let builder = manager_over(&servers)
        .on_connect(|conn| conn.batch_execute("SET SESSION tx_isolation = 'SERIALIZABLE'"));
    let report = doctor::examine(builder).expect("the settings are valid");
    assert!(report.is_ok(), "the report has no problems: {report}");
    let facts = &report.peers[0].facts;
    let isolation = FactValue::Text("SERIALIZABLE".to_owned());
    assert_eq!(facts[&Aspect::Isolation], isolation, "`on_connect` has prepared the session");

    let builder = manager_over(&servers).credentials(|peer| match peer {
        "peer1" => Err("the vault is sealed"),
        _ => Ok(diesel_peers::Credentials::new(APP, APP_PASSWORD)),
    });
    let report = doctor::examine(builder).expect("the settings are valid");
    assert_eq!(report.peers[1].condition, Condition::NotExamined);
    assert_eq!(report.problems(), ["peer1 was not examined: no credentials: the vault is sealed"]);
    assert!(
        report.differences.iter().all(|it| it.severity == Severity::Note),
        "differences are notes: {report}"
    );
}
