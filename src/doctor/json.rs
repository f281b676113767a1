//! A report as JSON. [`Report::to_json`] documents the keys.

use serde_json::{Map, Value as Json, json};

use super::Report;
use super::compare::{Difference, Group};
use super::fact::FactValue;
use super::finding::Finding;
use super::text::milliseconds;
use crate::fault::Fault;

pub(super) fn report(report: &Report) -> String {
    let peers: Vec<Json> = report.peers.iter().map(peer).collect();
    let differences: Vec<Json> = report.differences.iter().map(difference).collect();
    let settings: Map<String, Json> =
        report.settings.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let json = json!({
        "is_ok": report.is_ok(),
        "peers": peers,
        "differences": differences,
        "same_server": report.same_server,
        "settings": settings,
        "problems": report.problems(),
        "notes": report.notes(),
    });
    format!("{json:#}")
}

fn peer(peer: &Finding) -> Json {
    let Finding {
        name,
        condition,
        fault,
        reason,
        login,
        round_trip,
        max_connections,
        ledger_flaw,
        facts,
    } = peer;
    let facts: Map<String, Json> =
        facts.iter().map(|(aspect, fact)| (aspect.as_str().to_owned(), value(fact))).collect();
    json!({
        "name": name,
        "condition": condition.as_str(),
        "fault": fault.map(Fault::as_str),
        "reason": reason,
        "login_ms": login.map(milliseconds),
        "round_trip_ms": round_trip.map(milliseconds),
        "max_connections": max_connections,
        "ledger_flaw": ledger_flaw,
        "facts": facts,
    })
}

fn difference(difference: &Difference) -> Json {
    let group =
        |Group { value: fact, peers }: &Group| json!({ "value": value(fact), "peers": peers });
    let groups: Vec<Json> = difference.groups.iter().map(group).collect();
    json!({
        "aspect": difference.aspect.as_str(),
        "severity": difference.severity.as_str(),
        "groups": groups,
        "outliers": difference.outliers(),
    })
}

fn value(value: &FactValue) -> Json {
    match value {
        FactValue::None => Json::Null,
        FactValue::Text(text) => json!(text),
        FactValue::List(values) => json!(values),
        FactValue::Unknown(reason) => json!({ "unknown": reason }),
    }
}
