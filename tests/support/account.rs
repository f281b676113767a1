//! The unprivileged account that a server runs as.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::process::find_program;

/// Whether the tests run as root, as they often do in a container.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").expect("/proc is mounted").uid() == 0
}

/// Closes what was inherited, then becomes the program. MariaDB's client library does not mark its
/// sockets close-on-exec: a server that is restarted by a test would keep the test's own
/// connections to the other servers open.
const CLOSE_INHERITED: &str = r#"
    for path in /proc/$$/fd/*; do
        fd=${path##*/}
        if ((fd > 2 && fd != 255)); then exec {fd}>&-; fi
    done
    exec "$@"
"#;

/// Who runs a server. Database servers refuse to run as root.
#[derive(Debug, Clone)]
pub struct Account {
    /// User and group to change to. None if we stay who we are: only root can change.
    ids: Option<(u32, u32)>,
}

impl Account {
    /// The account `name` that the server's package has made, or else `nobody`.
    pub fn of(name: &str) -> Self {
        let ids = is_root().then(|| {
            ids_of(name).or_else(|| ids_of("nobody")).expect("/etc/passwd lists `nobody`")
        });
        Self { ids }
    }

    /// The account that the tests run as.
    pub fn ourselves() -> Self {
        Self { ids: None }
    }

    /// A command that runs `program` as this account and is killed with the calling thread.
    ///
    /// The kernel sees to the latter even if the test is aborted. It takes the death of the
    /// *thread* that spawned the process, not of our process: a server lives within one test and
    /// cannot be kept in a `static` for the next one.
    ///
    /// `setpriv` and the shell replace themselves by the program, so that the child's process id is
    /// the server's.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(find_program("setpriv"));
        command.args(["--pdeathsig", "KILL"]);
        if let Some((user, group)) = self.ids {
            command.arg(format!("--reuid={user}"));
            command.arg(format!("--regid={group}"));
            command.arg("--clear-groups");
        }
        command.arg("--").arg(find_program("bash")).args(["-c", CLOSE_INHERITED, "bash"]);
        command.arg(find_program(program));
        command
    }

    /// A new temporary folder that only this account (and root) can enter.
    pub fn folder(&self) -> TempDir {
        let folder = TempDir::with_prefix("diesel-peers-").expect("a temporary folder");
        self.take(folder.path());
        folder
    }

    /// Makes this account the owner of a file or folder of ours.
    pub fn take(&self, path: &Path) {
        if let Some((user, group)) = self.ids {
            chown(path, Some(user), Some(group)).expect("root may give away");
        }
    }
}

/// The user and group id of a local account.
fn ids_of(name: &str) -> Option<(u32, u32)> {
    let accounts = fs::read_to_string("/etc/passwd").ok()?;
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        // Name and password, then the two numbers.
        let ours = fields.next()? == name && fields.next().is_some();
        let ids = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        ours.then_some(ids)
    })
}
