//! Examines all peers of a configuration at once: whether the pool would use each of them, what each
//! reports about itself, and where peers differ that should be equal. The command `peers` (package
//! `diesel-peers-cli`) is built on this module.
//!
//! ```no_run
//! # #[cfg(feature = "mysql")]
//! # fn main() -> Result<(), diesel_peers::BuildError> {
//! use diesel::MysqlConnection;
//! use diesel_peers::{PeerManager, doctor};
//!
//! let url = "mysql://app:secret@db0,db1,db2/shop";
//! let report = doctor::examine(PeerManager::<MysqlConnection>::builder().url(url))?;
//! print!("{report}");
//! assert!(report.is_ok());
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "mysql"))]
//! # fn main() {}
//! ```
//!
//! The examination logs in to each peer once, in the same way as the pool and with the same tests. So a peer that is
//! *ready* here is usable for the pool. The examination leaves nothing behind: if the pool has a
//! [ledger](crate::Ledger), a token is written and rolled back, and missing SQLite files are not created. (SQLite
//! itself may write: when the last connection to a file closes, SQLite copies a write-ahead log that a crashed process
//! left into the file.)

#[cfg_attr(
    not(all(feature = "mysql", feature = "postgres", feature = "sqlite")),
    allow(dead_code, reason = "each database has queries of its own")
)]
mod collect;
mod compare;
mod examination;
mod fact;
mod finding;
mod json;
mod ledger;
mod progress;
mod sqlite_file;
mod table;
mod text;

use std::fmt;

/// What may be shown, for the command `peers`, which follows the rules of this crate.
#[doc(hidden)]
pub mod shown {
    use crate::redact;

    #[must_use]
    pub fn is_printable(c: char) -> bool {
        redact::is_printable(c)
    }

    #[must_use]
    pub fn may_be_shown(text: &str) -> bool {
        redact::may_be_shown(text)
    }

    #[must_use]
    pub fn shown_or_redacted(text: &str) -> &str {
        redact::shown_or_redacted(text)
    }
}

pub use compare::{Difference, Group, Severity};
pub use examination::{examine, examine_with_progress};
pub use fact::{Aspect, FactValue};
pub use finding::{Condition, Finding};

use text::join_names;

/// The result of an examination of all peers. `Display` writes a table; [`to_json`](Self::to_json) returns
/// JSON.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Report {
    /// One finding for each peer, in the order of the configuration.
    pub peers: Vec<Finding>,
    /// The differences between the peers, in the order of [`Aspect`]'s variants.
    pub differences: Vec<Difference>,
    /// The names of peers that report the same host and port, one list for each such server. This is
    /// expected if the peers are proxies for one server. Otherwise a URL is probably wrong.
    pub same_server: Vec<Vec<String>>,
    /// The settings of the pool that decide what each peer gets, with their values as they are given in text:
    /// `slow_peers`, `slow_factor`, `slow_difference` and `slow_start`.
    pub settings: Vec<(String, String)>,
}

impl Report {
    fn new(peers: Vec<Finding>, settings: Vec<(String, String)>) -> Self {
        let differences = compare::differences(&peers);
        let same_server = compare::same_server(&peers);
        Self { peers, differences, same_server, settings }
    }

    /// Whether all peers are ready, the ledger can be used on each, and no difference is a
    /// [problem](Severity::Problem).
    #[must_use]
    pub fn is_ok(&self) -> bool {
        let is_ok =
            |peer: &Finding| peer.condition == Condition::Ready && peer.ledger_flaw.is_none();
        self.peers.iter().all(is_ok)
            && self.differences.iter().all(|difference| difference.severity != Severity::Problem)
    }

    /// Returns one sentence for each problem: first the peers that are not ready or on which the ledger cannot be used,
    /// then the differences of severity [`Problem`](Severity::Problem).
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let of_peers = self.peers.iter().flat_map(Finding::problems);
        of_peers.chain(self.differences_of(Severity::Problem)).collect()
    }

    /// Returns one sentence for each note: first the differences of severity [`Note`](Severity::Note), then
    /// the peers that are the same server.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let same_server = self.same_server.iter();
        let same_server =
            same_server.map(|names| format!("{} are the same server", join_names(names)));
        self.differences_of(Severity::Note).chain(same_server).collect()
    }

    fn differences_of(&self, severity: Severity) -> impl Iterator<Item = String> {
        let differences =
            self.differences.iter().filter(move |difference| difference.severity == severity);
        differences.map(Difference::to_string)
    }

    /// Returns the table with ANSI colors, for terminals.
    #[must_use]
    pub fn colored(&self) -> impl fmt::Display + '_ {
        table::Colored(self)
    }

    /// Returns the report as JSON: an object with the following keys.
    ///
    /// - `is_ok`: the result of [`is_ok`](Self::is_ok).
    /// - `peers`: a list of objects, in the order of the configuration, with these keys:
    ///   - `name`: the name of the peer.
    ///   - `condition`: one of `ready`, `not_ready`, `wrong_role`, `full`, `misconfigured`, `unreachable`,
    ///     `timed_out` and `not_examined`; see [`Condition`].
    ///   - `fault`: the kind of the failure ([`Fault::as_str`](crate::Fault::as_str)), or `null` if the peer
    ///     is `ready`, `timed_out` or `not_examined`.
    ///   - `reason`: the reason why the peer is not ready, or `null` if it is.
    ///   - `login_ms`: the duration of the login in milliseconds, or `null` if it failed.
    ///   - `round_trip_ms`: the duration of a `SELECT 1` in milliseconds, or `null` if it was not answered.
    ///   - `max_connections`: the limit of the pool's connections to the peer, or `null` without a limit.
    ///   - `ledger_flaw`: why the ledger of the pool cannot be used on the peer, with the correction, or `null`.
    ///   - `facts`: an object whose keys are the names of [`Aspect`]s ([`Aspect::as_str`]). A value is a
    ///     text, a list of texts (`sql_mode`, `migrations`), `null` ([`FactValue::None`]), or
    ///     `{"unknown": reason}`. Aspects that the peer does not have are left out.
    /// - `differences`: a list of objects, one for each aspect in which peers differ, with these keys:
    ///   - `aspect`: the name of the aspect.
    ///   - `severity`: `problem` or `note`.
    ///   - `groups`: a list of objects with a `value` and the names of the `peers` that have it, the largest
    ///     group first.
    ///   - `outliers`: the names of the peers that differ from the majority
    ///     ([`Difference::outliers`]), an empty list if there is no majority.
    /// - `same_server`: a list of lists of names, as in [`same_server`](Self::same_server).
    /// - `settings`: an object with the names and the values of [`settings`](Self::settings).
    /// - `problems` and `notes`: lists of sentences, as returned by [`problems`](Self::problems) and
    ///   [`notes`](Self::notes).
    ///
    /// Keys may be added; within one major version none is renamed or removed.
    #[must_use]
    pub fn to_json(&self) -> String {
        json::report(self)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        table::write(self, f, false)
    }
}
