//! Compares the facts of the peers and rates the differences. The functions are pure.

use std::fmt;

use super::fact::{Aspect, FactValue};
use super::finding::Finding;
use super::text::{join_names, verb_for};

/// The number of modes or migrations that a sentence lists; more are only counted.
const MAX_LISTED: usize = 3;

/// The severity of a [`Difference`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// The difference is worth knowing, but should not affect the application.
    Note,
    /// Queries may give different results, or fail, depending on the peer that serves them.
    Problem,
}

impl Severity {
    /// Returns a stable `snake_case` name, as used in [`Report::to_json`](super::Report::to_json).
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Problem => "problem",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The peers that have the same value for an aspect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Group {
    /// The value that the peers have in common.
    pub value: FactValue,
    /// The names of the peers.
    pub peers: Vec<String>,
}

/// An aspect for which the peers have different values. `Display` describes the difference in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Difference {
    /// The aspect that differs.
    pub aspect: Aspect,
    /// The severity of the difference.
    pub severity: Severity,
    /// The values and the peers that have them: at least two groups, the largest first. Peers whose value is
    /// unknown are left out.
    pub groups: Vec<Group>,
}

impl Difference {
    /// Returns the names of the peers that differ from the majority. The majority is a value that more than
    /// half of the peers in [`groups`](Self::groups) have. Without a majority the list is empty.
    #[must_use]
    pub fn outliers(&self) -> Vec<&str> {
        let count = |groups: &[Group]| groups.iter().map(|group| group.peers.len()).sum::<usize>();
        let Some((first, others)) = self.groups.split_first() else { return Vec::new() };
        if first.peers.len() <= count(others) {
            return Vec::new();
        }
        others.iter().flat_map(|group| &group.peers).map(String::as_str).collect()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.aspect)?;
        let Some((usual, others)) = self.groups.split_first() else { return Ok(()) };
        let mut lists_only = true;
        for (index, group) in others.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            f.write_str(&join_names(&group.peers))?;
            if let (FactValue::List(usual), FactValue::List(other)) = (&usual.value, &group.value) {
                f.write_str(&list_difference(usual, other, &group.peers))?;
            } else {
                lists_only = false;
                f.write_str(&has_value(group, self.aspect))?;
            }
        }
        if lists_only {
            write!(f, ", compared with {}", join_names(&usual.peers))
        } else {
            write!(f, "; {}{}", join_names(&usual.peers), has_value(usual, self.aspect))
        }
    }
}

/// Returns `" has VALUE"` or `" have VALUE"`.
fn has_value(group: &Group, aspect: Aspect) -> String {
    let has = verb_for(&group.peers, "has", "have");
    format!(" {has} {}", group.value.summary(aspect))
}

/// Returns how a list differs from the usual one: `" lacks a and b and also has c"`.
fn list_difference(usual: &[String], other: &[String], peers: &[String]) -> String {
    let without = |some: &[String], others: &[String]| -> Vec<String> {
        some.iter().filter(|value| !others.contains(value)).cloned().collect()
    };
    let (lacks, has) = (verb_for(peers, "lacks", "lack"), verb_for(peers, "has", "have"));
    let (missing, extra) = (without(usual, other), without(other, usual));
    let missing = (!missing.is_empty()).then(|| format!(" {lacks} {}", abbreviated(&missing)));
    let extra = (!extra.is_empty()).then(|| format!(" also {has} {}", abbreviated(&extra)));
    missing.into_iter().chain(extra).collect::<Vec<_>>().join(" and")
}

/// Lists the first values and counts the others.
fn abbreviated(values: &[String]) -> String {
    match values.len().checked_sub(MAX_LISTED) {
        None | Some(0) => join_names(values),
        Some(more) => format!("{} and {more} more", values[..MAX_LISTED].join(", ")),
    }
}

/// Returns the aspects in which the peers differ, except those in which they are expected to.
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

/// Groups the peers by their value for one aspect, the largest group first. Groups of the same size keep the
/// order of the peers. Unknown values are left out.
pub(super) fn groups(peers: &[Finding], aspect: Aspect) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for Finding { name, facts, .. } in peers {
        let Some(value) =
            facts.get(&aspect).filter(|value| !matches!(value, FactValue::Unknown(_)))
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

/// Returns the names of peers that report the same host and port, one list for each server.
pub(super) fn same_server(peers: &[Finding]) -> Vec<Vec<String>> {
    let groups = groups(peers, Aspect::Server).into_iter().map(|group| group.peers);
    groups.filter(|peers| peers.len() > 1).collect()
}

/// Rates a difference. `None` if peers are expected to differ in this aspect.
fn severity(aspect: Aspect, groups: &[Group]) -> Option<Severity> {
    let are_alike = |feature: fn(&FactValue) -> Option<String>| {
        groups.windows(2).all(|pair| feature(&pair[0].value) == feature(&pair[1].value))
    };
    Some(match aspect {
        Aspect::Server => return None,
        // These affect every query or some writes.
        Aspect::Database
        | Aspect::Role
        | Aspect::Cluster
        | Aspect::ClusterStatus
        | Aspect::ClusterSize
        | Aspect::File
        | Aspect::Migrations
        | Aspect::LedgerHistory
        | Aspect::SqlMode
        | Aspect::Isolation
        | Aspect::CharacterSet
        | Aspect::Collation
        | Aspect::SessionCollation
        | Aspect::ClientCharacterSet => Severity::Problem,
        // A rolling upgrade to a patch release is only a note.
        Aspect::Version if !are_alike(release_series) => Severity::Problem,
        // Only some of the connections are encrypted.
        Aspect::Encryption if !are_alike(presence) => Severity::Problem,
        // diesel sets the time zone of its own sessions. The pool itself evaluates the state of a node.
        // Logical replicas each have a system identifier of their own.
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

/// Distinguishes only whether there is a value.
fn presence(value: &FactValue) -> Option<String> {
    (*value != FactValue::None).then(String::new)
}

/// Returns the product and release series: the first two numbers of the version, or only the first if there
/// are just two, as in PostgreSQL since version 10.
fn release_series(value: &FactValue) -> Option<String> {
    let FactValue::Text(version) = value else { return None };
    let number =
        version.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
    let numbers: Vec<&str> = number.split('.').collect();
    let series = match numbers[..] {
        [first, _] => first.to_owned(),
        [first, second, ..] => format!("{first}.{second}"),
        _ => number.to_owned(),
    };
    let product = if version.contains("MariaDB") { "MariaDB" } else { "" };
    Some(format!("{product}{series}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::doctor::finding::Condition;

    fn peers(facts: &[(Aspect, &[FactValue])]) -> Vec<Finding> {
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
                max_connections: None,
                ledger_flaw: None,
                facts: of_peer.collect::<BTreeMap<_, _>>(),
            }
        };
        (0..count).map(finding).collect()
    }

    fn text(text: &str) -> FactValue {
        FactValue::text(text)
    }

    fn list(values: &[&str]) -> FactValue {
        FactValue::sorted_list(values.iter().map(|value| (*value).to_owned()))
    }

    fn unknown() -> FactValue {
        FactValue::Unknown("reason".to_owned())
    }

    /// Asserts the first difference between peers with these values: severity, outliers and sentence.
    #[track_caller]
    fn assert_difference(
        aspect: Aspect,
        values: &[FactValue],
        expected: Option<(Severity, &[&str], &str)>,
    ) {
        let found = differences(&peers(&[(aspect, values)]));
        let found =
            found.first().map(|first| (first.severity, first.outliers(), first.to_string()));
        let found =
            found.as_ref().map(|(severity, outliers, text)| (*severity, &outliers[..], &**text));
        assert_eq!(found, expected, "the difference of {values:?} in the aspect {aspect}");
    }

    #[test]
    fn outliers_differ_from_a_majority() {
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
                &[b, FactValue::None, FactValue::None],
                Some((Problem, &["db0"], "isolation: db0 has B; db1 and db2 have none")),
            ),
        ] {
            assert_difference(isolation, values, expected);
        }
    }

    #[test]
    fn lists_are_described_by_missing_and_additional_values() {
        use Severity::Problem;
        let long = list(&["1", "2", "3", "4", "5", "6"]);
        for (aspect, values, outliers, expected) in [
            (
                Aspect::SqlMode,
                [list(&["A", "B"]), list(&["A", "B"]), list(&["B", "C"])],
                &["db2"][..],
                "sql_mode: db2 lacks A and also has C, compared with db0 and db1",
            ),
            (
                Aspect::Migrations,
                [long.clone(), list(&["1", "6"]), long.clone()],
                &["db1"],
                "migrations: db1 lacks 2, 3, 4 and 1 more, compared with db0 and db2",
            ),
            (
                Aspect::Migrations,
                [long.clone(), FactValue::None, long.clone()],
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
            assert_difference(aspect, &values, Some((Problem, outliers, expected)));
        }
    }

    #[test]
    fn severity_depends_on_aspect_and_values() {
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
            (Aspect::Encryption, text("TLSv1.3, A"), FactValue::None, Some(Problem)),
            (Aspect::Cluster, text("u"), text("v"), Some(Problem)),
            (Aspect::Cluster, text("u"), FactValue::None, Some(Problem)),
            (Aspect::TimeZone, text("UTC"), text("CET"), Some(Note)),
            (Aspect::Server, text("db0:3306"), text("db1:3306"), None),
        ] {
            let values = [one, other];
            let found = differences(&peers(&[(aspect, &values)]));
            assert_eq!(
                found.first().map(|difference| difference.severity),
                expected,
                "the severity of {values:?} in the aspect {aspect}"
            );
        }
    }

    #[test]
    fn peers_with_the_same_address_are_one_server() {
        let addresses = [text("a:1"), text("b:1"), text("a:1"), unknown()];
        let peers = peers(&[(Aspect::Server, &addresses)]);
        assert_eq!(same_server(&peers), [["db0", "db2"]]);
        assert!(differences(&peers).is_empty(), "different addresses are not a difference");
    }

    #[test]
    fn aspects_are_compared_independently() {
        let peers = peers(&[
            (Aspect::TimeZone, &[text("UTC"), text("CET")]),
            (Aspect::Database, &[text("shop"), text("shop")]),
            (Aspect::Role, &[text("read-only"), text("read-write")]),
        ]);
        let aspects: Vec<_> =
            differences(&peers).iter().map(|difference| difference.aspect).collect();
        assert_eq!(
            aspects,
            [Aspect::Role, Aspect::TimeZone],
            "differences are in the order of the aspects"
        );
    }
}
