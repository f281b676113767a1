//! Examines the peers of a configuration, all at once: whether the pool would use each, what it says
//! of itself, and where peers differ that should be equal. The command `peers` (package `diesel-peers-cli`) uses it.
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
//! Each peer is logged in to once, as the pool does it, tests and all; so *ready* means what it means to
//! the pool. Nothing is written, and a missing SQLite file is not created. (But SQLite itself, when the
//! last connection to a file closes, folds the write-ahead log into it that a dead process left.)

#[cfg_attr(
    not(all(feature = "mysql", feature = "postgres", feature = "sqlite")),
    allow(dead_code, reason = "each database is asked in its own way")
)]
mod ask;
mod compare;
mod examination;
mod fact;
mod finding;
mod json;
mod progress;
mod sqlite_file;
mod table;
mod text;

use std::fmt;

pub use compare::{Difference, Group, Severity};
pub use examination::{examine, examine_with_progress};
pub use fact::{Aspect, Value};
pub use finding::{Condition, Finding};

use text::listed;

/// What was found out about the peers of one configuration. `Display` shows it as a table.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// Every peer, in the order in which they were given.
    pub peers: Vec<Finding>,
    /// Where they differ, in the order of the [`Aspect`]s.
    pub differences: Vec<Difference>,
    /// The names of peers that seem to be one server. That is as it should be where proxies lead to the
    /// same server, and a slip in a URL elsewhere.
    pub same_server: Vec<Vec<String>>,
}

impl Report {
    fn of(peers: Vec<Finding>) -> Self {
        let (differences, same_server) = (compare::differences(&peers), compare::doubles(&peers));
        Self { peers, differences, same_server }
    }

    /// Whether every peer is ready, and no difference is [trouble](Severity::Problem).
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.peers.iter().all(|peer| peer.condition == Condition::Ready)
            && self.differences.iter().all(|difference| difference.severity != Severity::Problem)
    }

    /// What has to be mended, a sentence each: peers that are not ready, then differences.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let unfit = self.peers.iter().filter_map(Finding::problem);
        unfit.chain(self.differences_of(Severity::Problem)).collect()
    }

    /// What is only good to know, a sentence each.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let doubles = self.same_server.iter();
        let doubles = doubles.map(|names| format!("{} are the same server", listed(names)));
        self.differences_of(Severity::Note).chain(doubles).collect()
    }

    fn differences_of(&self, severity: Severity) -> impl Iterator<Item = String> {
        let of_it = self.differences.iter().filter(move |it| it.severity == severity);
        of_it.map(Difference::to_string)
    }

    /// The table in colors, for terminals.
    #[must_use]
    pub fn colored(&self) -> impl fmt::Display + '_ {
        table::Colored(self)
    }

    /// All of it for machines: an object with these keys.
    ///
    /// - `is_ok`: as [`is_ok`](Self::is_ok).
    /// - `peers`: a list, in the order in which the peers were given, of objects with `name`;
    ///   `condition`, one of `ready`, `not_ready`, `wrong_role`, `full`, `misconfigured`, `unreachable`,
    ///   `silent` and `not_asked`; `fault` and `reason`, which are `null` where it is ready (`fault` also
    ///   where nothing was said); `login_ms` and `round_trip_ms`, numbers or `null`; and `facts`, an
    ///   object whose keys are [`Aspect::key`]s. A fact is a text, a list of texts (`sql_mode`,
    ///   `migrations`), `null` where there is no such thing, or `{"unknown": reason}`. What a server has
    ///   nothing to say of is left out.
    /// - `differences`: a list of objects with `aspect`; `severity`, which is `problem` or `note`;
    ///   `groups`, a list of objects with a `value` and the `peers` that have it, the largest first; and
    ///   `odd`, the names of those that differ from the majority, empty where there is none.
    /// - `same_server`: lists of names.
    /// - `problems` and `notes`: the sentences.
    ///
    /// Keys are added in later versions, and none is taken away within one major version.
    #[must_use]
    pub fn to_json(&self) -> String {
        json::of(self)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        table::write(self, f, false)
    }
}
