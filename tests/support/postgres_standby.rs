//! A synchronous standby of a real `PostgreSQL` server: no `COMMIT` on the primary is answered before the standby has
//! it on disk.

use std::fs::{self, DirEntry, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::account::Account;
use super::port::free_port;
use super::postgres::Postgres;
use super::process::run;
use super::wait_until;

/// Longer than a standby takes for any step, even on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

impl Postgres {
    /// Starts a new server as the synchronous standby of this one.
    pub fn start_synchronous_standby(&self) -> Self {
        let account = Account::of("postgres");
        let folder = account.folder();
        let mut standby = Self::prepare_in(&account, folder, free_port(), &[]);
        standby.become_standby_of(self);
        standby
    }

    /// Starts this server, which is down, as the synchronous standby of `primary`, with a copy of its data. From then
    /// on, whatever `primary` has answered is here.
    pub fn become_standby_of(&mut self, primary: &Self) {
        let account = Account::of("postgres");
        let copy = account.folder();
        let mut backup = account.command("pg_basebackup");
        primary.administers(&mut backup).arg("-D").arg(copy.path());
        run(backup.args(["--checkpoint=fast", "--write-recovery-conf", "--no-sync"]));
        for entry in data_in(self.folder()) {
            let path = entry.path();
            let is_folder = entry.file_type().expect("the test owns the folder").is_dir();
            let removed = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            removed.expect("the test owns the folder");
        }
        for entry in data_in(copy.path()) {
            let moved = fs::rename(entry.path(), self.folder().join(entry.file_name()));
            moved.expect("both folders are in the same one");
        }
        // The server refuses data that others may read.
        fs::set_permissions(self.folder(), Permissions::from_mode(0o700)).expect("our own folder");
        self.restart();
        primary.wait_for_standby();
    }

    /// Makes each `COMMIT` wait for the standby, and waits until the standby has everything from before.
    fn wait_for_standby(&self) {
        self.configure("ALTER SYSTEM SET synchronous_standby_names = '*'");
        wait_until("new sessions have the setting", PATIENCE, || {
            self.sql("SHOW synchronous_standby_names").trim() == "*"
        });
        // The process that makes checkpoints puts the setting into effect for all sessions. It does so first.
        self.sql("CHECKPOINT");
        let position = self.sql("SELECT pg_current_wal_flush_lsn()");
        let arrived = format!(
            "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND flush_lsn >= '{}'",
            position.trim()
        );
        wait_until("the standby has everything", PATIENCE, || self.sql(&arrived).trim() == "1");
    }

    /// Makes this standby the primary. No `COMMIT` waits for another server then.
    pub fn promote(&self) {
        self.configure("ALTER SYSTEM RESET synchronous_standby_names");
        assert_eq!(self.sql("SELECT pg_promote()").trim(), "t", "{}", self.log());
    }

    fn configure(&self, statement: &str) {
        self.sql(statement);
        self.sql("SELECT pg_reload_conf()");
    }
}

/// Returns what is in the folder of a server, except for its log.
fn data_in(folder: &Path) -> impl Iterator<Item = DirEntry> {
    let entries = fs::read_dir(folder).expect("the test owns the folder").flatten();
    entries.filter(|entry| entry.file_name() != "log")
}
