//! A report for machines. Its keys are told where [`Report::to_json`] is.

use serde_json::{Map, Value as Json, json};

use super::Report;
use super::compare::{Difference, Group};
use super::fact::Value;
use super::finding::Finding;
use super::text::milliseconds;
use crate::fault::Fault;

pub(super) fn of(report: &Report) -> String {
    let peers: Vec<Json> = report.peers.iter().map(peer).collect();
    let differences: Vec<Json> = report.differences.iter().map(difference).collect();
    let json = json!({
        "is_ok": report.is_ok(),
        "peers": peers,
        "differences": differences,
        "same_server": report.same_server,
        "problems": report.problems(),
        "notes": report.notes(),
    });
    format!("{json:#}")
}

fn peer(peer: &Finding) -> Json {
    let Finding { name, condition, fault: of_it, reason, login, round_trip, facts } = peer;
    let facts: Map<String, Json> =
        facts.iter().map(|(aspect, told)| (aspect.key().to_owned(), value(told))).collect();
    json!({
        "name": name,
        "condition": condition.key(),
        "fault": of_it.map(Fault::as_str),
        "reason": reason,
        "login_ms": login.map(milliseconds),
        "round_trip_ms": round_trip.map(milliseconds),
        "facts": facts,
    })
}

fn difference(difference: &Difference) -> Json {
    let group =
        |Group { value: told, peers }: &Group| json!({ "value": value(told), "peers": peers });
    let groups: Vec<Json> = difference.groups.iter().map(group).collect();
    json!({
        "aspect": difference.aspect.key(),
        "severity": difference.severity.key(),
        "groups": groups,
        "odd": difference.odd(),
    })
}

fn value(value: &Value) -> Json {
    match value {
        Value::None => Json::Null,
        Value::Text(text) => json!(text),
        Value::List(values) => json!(values),
        Value::Unknown(reason) => json!({ "unknown": reason }),
    }
}
