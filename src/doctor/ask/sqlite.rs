//! What an SQLite file is asked.

use diesel::SqliteConnection;

use super::{APPLIED, Asker, MIGRATIONS, SETTINGS, one};
use crate::doctor::fact::{Aspect, Value};
use crate::login::bounded::LoginFailure;

const QUERIES: [(Aspect, &str); 3] = [
    (Aspect::Version, "SELECT sqlite_version() AS value"),
    (Aspect::CharacterSet, "SELECT encoding AS value FROM pragma_encoding"),
    (Aspect::JournalMode, "SELECT journal_mode AS value FROM pragma_journal_mode"),
];

/// Where it is. Links are followed.
const FILE: &str = "SELECT file AS value FROM pragma_database_list WHERE name = 'main'";

pub(super) fn ask(conn: &mut SqliteConnection, asker: &Asker<'_>) -> Result<(), LoginFailure> {
    asker.peer_progress.asks(Some(SETTINGS));
    for (aspect, query) in QUERIES {
        asker.put(aspect, one::text(conn, query))?;
    }
    asker
        .put(Aspect::File, one::texts(conn, FILE).map(|paths| paths.first().and_then(identity)))?;
    asker.peer_progress.asks(Some(APPLIED));
    let find = format!(
        "SELECT name AS value FROM sqlite_master WHERE type = 'table' AND name = '{MIGRATIONS}'"
    );
    asker.put(Aspect::Migrations, one::migrations(conn, &find))
}

/// What tells a file from others, whichever path leads to it. What is in memory has none.
#[cfg(unix)]
fn identity(path: &String) -> Option<Value> {
    use std::os::unix::fs::MetadataExt;

    let file = std::fs::metadata(path).ok()?;
    Some(Value::Text(format!("inode {} of device {}", file.ino(), file.dev())))
}

#[cfg(not(unix))]
fn identity(_path: &String) -> Option<Value> {
    None
}
