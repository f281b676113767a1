//! Where peers differ that should be equal, and how much that matters. All of it is pure.

use std::fmt;

use super::fact::{Aspect, Value};
use super::finding::Finding;
use super::text::{listed, listed_with};

/// How many of the modes or migrations that a peer lacks are named.
const NAMED: usize = 3;

/// How much a difference matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// It is good to know; the application need not notice.
    Note,
    /// The application works differently from one peer to the other.
    Problem,
}

impl Severity {
    /// What it is called in [`Report::to_json`](super::Report::to_json).
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Problem => "trouble",
        }
    }
}

/// Peers that say the same.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Group {
    /// What they say.
    pub value: Value,
    /// Their names.
    pub peers: Vec<String>,
}

/// Something in which peers differ. `Display` tells of it in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// In what.
    pub aspect: Aspect,
    /// How much that matters.
    pub severity: Severity,
    /// Who says what, the largest group first; at least two.
    pub groups: Vec<Group>,
}

impl Difference {
    /// The names of the peers that differ from more than half of those that were asked. None where there
    /// is no such majority: then there is no telling who is the odd one.
    #[must_use]
    pub fn odd(&self) -> Vec<&str> {
        let peers = |groups: &[Group]| groups.iter().map(|group| group.peers.len()).sum::<usize>();
        let Some((first, others)) = self.groups.split_first() else { return Vec::new() };
        if first.peers.len() <= peers(others) {
            return Vec::new();
        }
        others.iter().flat_map(|group| &group.peers).map(String::as_str).collect()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.aspect)?;
        let Some((usual, others)) = self.groups.split_first() else { return Ok(()) };
        let mut is_usual_told = true;
        for (index, group) in others.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            f.write_str(&listed(&group.peers))?;
            if let (Value::List(usual), Value::List(other)) = (&usual.value, &group.value) {
                f.write_str(&in_and_out(usual, other, group.peers.len() == 1))?;
            } else {
                is_usual_told = false;
                f.write_str(&has(group, self.aspect))?;
            }
        }
        if is_usual_told {
            write!(f, ", compared with {}", listed(&usual.peers))
        } else {
            write!(f, "; {}{}", listed(&usual.peers), has(usual, self.aspect))
        }
    }
}

/// " has this".
fn has(group: &Group, aspect: Aspect) -> String {
    let has = listed_with(&group.peers, "has", "have");
    format!(" {has} {}", group.value.shown(aspect))
}

/// " lacks a and b and has c besides".
fn in_and_out(usual: &[String], other: &[String], is_one: bool) -> String {
    let without = |some: &[String], others: &[String]| -> Vec<String> {
        some.iter().filter(|value| !others.contains(value)).cloned().collect()
    };
    let (lacks, has) = if is_one { ("lacks", "has") } else { ("lack", "have") };
    let (missing, extra) = (without(usual, other), without(other, usual));
    let missing = (!missing.is_empty()).then(|| format!(" {lacks} {}", some_of(&missing)));
    let extra = (!extra.is_empty()).then(|| format!(" {has} {} besides", some_of(&extra)));
    missing.into_iter().chain(extra).collect::<Vec<_>>().join(" and")
}

/// The first of them by name.
fn some_of(values: &[String]) -> String {
    match values.len().checked_sub(NAMED) {
        None | Some(0) => listed(values),
        Some(more) => format!("{} and {more} more", values[..NAMED].join(", ")),
    }
}

/// Every aspect in which they differ.
pub(super) fn differences(peers: &[Finding]) -> Vec<Difference> {
    let mut aspects: Vec<Aspect> =
        peers.iter().flat_map(|peer| peer.facts.keys().copied()).collect();
    aspects.sort_unstable();
    aspects.dedup();
    let difference = |aspect| {
        let groups = groups(peers, aspect);
        let severity = severity(aspect, &groups).filter(|_| groups.len() > 1)?;
        Some(Difference { aspect, severity, groups })
    };
    aspects.into_iter().filter_map(difference).collect()
}

/// Who says what of one aspect, the largest group first, and of several that are as large the one whose
/// peer comes first. What is not known is nobody's.
pub(super) fn groups(peers: &[Finding], aspect: Aspect) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for Finding { name, facts, .. } in peers {
        let Some(value) = facts.get(&aspect).filter(|value| !matches!(value, Value::Unknown(_)))
        else {
            continue;
        };
        match groups.iter_mut().find(|group| group.value == *value) {
            Some(group) => group.peers.push(name.clone()),
            None => groups.push(Group { value: value.clone(), peers: vec![name.clone()] }),
        }
    }
    groups.sort_by_key(|group| std::cmp::Reverse(group.peers.len()));
    groups
}

/// Peers that say they are at the same place.
pub(super) fn doubles(peers: &[Finding]) -> Vec<Vec<String>> {
    let groups = groups(peers, Aspect::Server).into_iter().map(|group| group.peers);
    groups.filter(|peers| peers.len() > 1).collect()
}

/// How much a difference matters. `None` where peers are to differ.
fn severity(aspect: Aspect, groups: &[Group]) -> Option<Severity> {
    let are_alike = |alike: fn(&Value) -> Option<String>| {
        groups.windows(2).all(|pair| alike(&pair[0].value) == alike(&pair[1].value))
    };
    Some(match aspect {
        Aspect::Server => return None,
        // What every query meets, or some write.
        Aspect::Database
        | Aspect::Role
        | Aspect::Cluster
        | Aspect::ClusterStatus
        | Aspect::ClusterSize
        | Aspect::File
        | Aspect::Migrations
        | Aspect::SqlMode
        | Aspect::Isolation
        | Aspect::CharacterSet
        | Aspect::Collation
        | Aspect::SessionCollation
        | Aspect::ClientCharacterSet => Severity::Problem,
        // An upgrade of one peer after the other goes through differences of the last number.
        Aspect::Version if !are_alike(release_series) => Severity::Problem,
        // Either all are encrypted or none is.
        Aspect::Encryption if !are_alike(is_there) => Severity::Problem,
        // diesel sets the time zone of its sessions. What a node does is the pool's to judge. Replicas by
        // logical replication have a system identifier each.
        Aspect::Version
        | Aspect::Encryption
        | Aspect::NodeState
        | Aspect::NodeReady
        | Aspect::SystemIdentifier
        | Aspect::ServerCharacterSet
        | Aspect::TimeZone
        | Aspect::JournalMode => Severity::Note,
    })
}

fn is_there(value: &Value) -> Option<String> {
    (*value != Value::None).then(String::new)
}

/// What changes how a server works: whose it is, and the first two numbers of its version, or the first
/// alone from 10 on where there are only two, as PostgreSQL counts.
fn release_series(value: &Value) -> Option<String> {
    let Value::Text(version) = value else { return None };
    let number =
        version.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
    let numbers: Vec<&str> = number.split('.').collect();
    let series = match numbers[..] {
        [first, _] => first.to_owned(),
        [first, second, ..] => format!("{first}.{second}"),
        _ => number.to_owned(),
    };
    let whose = if version.contains("MariaDB") { "MariaDB" } else { "" };
    Some(format!("{whose}{series}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::doctor::finding::Condition;

    fn peers(facts: &[(Aspect, &[Value])]) -> Vec<Finding> {
        let count = facts.iter().map(|(_, values)| values.len()).max().unwrap_or_default();
        let finding = |index: usize| {
            let of_peer = facts
                .iter()
                .filter_map(|(aspect, values)| Some((*aspect, values.get(index)?.clone())));
            Finding {
                name: format!("db{index}"),
                condition: Condition::Ready,
                fault: None,
                reason: None,
                login: None,
                round_trip: None,
                facts: of_peer.collect::<BTreeMap<_, _>>(),
            }
        };
        (0..count).map(finding).collect()
    }

    fn text(text: &str) -> Value {
        Value::text(text)
    }

    fn list(values: &[&str]) -> Value {
        Value::list(values.iter().map(|value| (*value).to_owned()))
    }

    fn unknown() -> Value {
        Value::Unknown("why".to_owned())
    }

    /// What is said of peers that say this.
    #[track_caller]
    fn assert_said(aspect: Aspect, values: &[Value], expected: Option<(Severity, &[&str], &str)>) {
        let found = differences(&peers(&[(aspect, values)]));
        let said = found.first().map(|it| (it.severity, it.odd(), it.to_string()));
        let said = said.as_ref().map(|(severity, odd, text)| (*severity, &odd[..], &**text));
        assert_eq!(said, expected, "{aspect} {values:?}");
    }

    #[test]
    fn who_differs_from_whom() {
        use Severity::Problem;
        let isolation = Aspect::Isolation;
        let (a, b, c) = (text("A"), text("B"), text("C"));
        for (values, expected) in [
            (&[a.clone(), a.clone()][..], None),
            (&[text("A")], None),
            (&[a.clone(), unknown()], None),
            (
                &[a.clone(), a.clone(), b.clone()],
                Some((Problem, &["db2"][..], "isolation: db2 has B; db0 and db1 have A")),
            ),
            (
                &[b.clone(), a.clone(), a.clone(), unknown()],
                Some((Problem, &["db0"], "isolation: db0 has B; db1 and db2 have A")),
            ),
            (&[a.clone(), b.clone()], Some((Problem, &[], "isolation: db1 has B; db0 has A"))),
            (
                &[b.clone(), a.clone(), c, a.clone(), a],
                Some((
                    Problem,
                    &["db0", "db2"],
                    "isolation: db0 has B; db2 has C; db1, db3 and db4 have A",
                )),
            ),
            (
                &[b, Value::None, Value::None],
                Some((Problem, &["db0"], "isolation: db0 has B; db1 and db2 have none")),
            ),
        ] {
            assert_said(isolation, values, expected);
        }
    }

    #[test]
    fn what_is_missing() {
        use Severity::Problem;
        let long = list(&["1", "2", "3", "4", "5", "6"]);
        for (aspect, values, odd, expected) in [
            (
                Aspect::SqlMode,
                [list(&["A", "B"]), list(&["A", "B"]), list(&["B", "C"])],
                &["db2"][..],
                "sql_mode: db2 lacks A and has C besides, compared with db0 and db1",
            ),
            (
                Aspect::Migrations,
                [long.clone(), list(&["1", "6"]), long.clone()],
                &["db1"],
                "migrations: db1 lacks 2, 3, 4 and 1 more, compared with db0 and db2",
            ),
            (
                Aspect::Migrations,
                [long.clone(), Value::None, long.clone()],
                &["db1"],
                "migrations: db1 has none; db0 and db2 have 6, the newest 6",
            ),
            (
                Aspect::Migrations,
                [list(&["1"]), list(&["1", "2"]), list(&["1", "2"])],
                &["db0"],
                "migrations: db0 lacks 2, compared with db1 and db2",
            ),
        ] {
            assert_said(aspect, &values, Some((Problem, odd, expected)));
        }
    }

    #[test]
    fn how_much_it_matters() {
        use Severity::{Note, Problem};
        for (aspect, one, other, expected) in [
            (Aspect::Version, text("10.11.6-MariaDB-log"), text("10.11.14-MariaDB"), Some(Note)),
            (Aspect::Version, text("10.6.2-MariaDB"), text("10.11.6-MariaDB"), Some(Problem)),
            (Aspect::Version, text("8.4.3"), text("8.4.4"), Some(Note)),
            (Aspect::Version, text("8.0.40"), text("8.4.3"), Some(Problem)),
            (Aspect::Version, text("11.4.2"), text("11.4.2-MariaDB"), Some(Problem)),
            (Aspect::Version, text("15.4 (Debian 15.4-1)"), text("15.8"), Some(Note)),
            (Aspect::Version, text("15.4"), text("16.4"), Some(Problem)),
            (Aspect::Encryption, text("TLSv1.3, A"), text("TLSv1.2, B"), Some(Note)),
            (Aspect::Encryption, text("TLSv1.3, A"), Value::None, Some(Problem)),
            (Aspect::Cluster, text("u"), text("v"), Some(Problem)),
            (Aspect::Cluster, text("u"), Value::None, Some(Problem)),
            (Aspect::TimeZone, text("UTC"), text("CET"), Some(Note)),
            (Aspect::Server, text("db0:3306"), text("db1:3306"), None),
        ] {
            let values = [one, other];
            let found = differences(&peers(&[(aspect, &values)]));
            assert_eq!(found.first().map(|it| it.severity), expected, "{aspect} {values:?}");
        }
    }

    #[test]
    fn peers_at_one_place() {
        let places = [text("a:1"), text("b:1"), text("a:1"), unknown()];
        let peers = peers(&[(Aspect::Server, &places)]);
        assert_eq!(doubles(&peers), [["db0", "db2"]]);
        assert!(differences(&peers).is_empty(), "they are to differ");
    }

    #[test]
    fn each_aspect_by_itself() {
        let peers = peers(&[
            (Aspect::TimeZone, &[text("UTC"), text("CET")]),
            (Aspect::Database, &[text("shop"), text("shop")]),
            (Aspect::Role, &[text("read-only"), text("read-write")]),
        ]);
        let aspects: Vec<_> = differences(&peers).iter().map(|it| it.aspect).collect();
        assert_eq!(aspects, [Aspect::Role, Aspect::TimeZone], "in the order of the table");
    }
}
