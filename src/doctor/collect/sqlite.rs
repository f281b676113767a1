//! Collects the facts of an SQLite database.

use diesel::SqliteConnection;

use super::{FactRecorder, MIGRATIONS, RETURN_MIGRATIONS, RETURN_SETTINGS, column};
use crate::doctor::fact::{Aspect, FactValue};
use crate::fault::LoginFailure;

const QUERIES: [(Aspect, &str); 3] = [
    (Aspect::Version, "SELECT sqlite_version() AS value"),
    (Aspect::CharacterSet, "SELECT encoding AS value FROM pragma_encoding"),
    (Aspect::JournalMode, "SELECT journal_mode AS value FROM pragma_journal_mode"),
];

/// Returns the path of the database's file.
const FILE: &str = "SELECT file AS value FROM pragma_database_list WHERE name = 'main'";

pub(super) fn collect(
    conn: &mut SqliteConnection,
    recorder: &FactRecorder<'_>,
) -> Result<(), LoginFailure> {
    recorder.peer_progress.begin_step(RETURN_SETTINGS);
    for (aspect, query) in QUERIES {
        recorder.record(aspect, column::text(conn, query))?;
    }
    let file = column::texts(conn, FILE).map(|paths| paths.first().and_then(identity));
    recorder.record(Aspect::File, file)?;
    recorder.peer_progress.begin_step(RETURN_MIGRATIONS);
    let find_table = format!(
        "SELECT name AS value FROM sqlite_master WHERE type = 'table' AND name = '{MIGRATIONS}'"
    );
    recorder.record(Aspect::Migrations, column::migrations(conn, &find_table))
}

/// Identifies a file independently of the path that leads to it; links are followed. `None` for a database
/// in memory, which has no file.
#[cfg(unix)]
fn identity(path: &String) -> Option<FactValue> {
    use std::os::unix::fs::MetadataExt;

    let file = std::fs::metadata(path).ok()?;
    Some(FactValue::Text(format!("inode {} of device {}", file.ino(), file.dev())))
}

#[cfg(not(unix))]
fn identity(_path: &String) -> Option<FactValue> {
    None
}
