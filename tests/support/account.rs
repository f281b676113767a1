//! The unprivileged account that a server runs as.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::process::find_program;

/// Returns whether the tests run as root, as they often do in a container.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").expect("/proc is mounted").uid() == 0
}

/// A script that closes all inherited descriptors and replaces itself by the program. MariaDB's client
/// library does not mark its sockets close-on-exec: a server that a test restarts would keep the test's
/// connections to the other servers open.
const CLOSE_INHERITED: &str = r#"
    for path in /proc/$$/fd/*; do
        fd=${path##*/}
        if ((fd > 2 && fd != 255)); then exec {fd}>&-; fi
    done
    exec "$@"
"#;

/// The account that a server runs as. Database servers refuse to run as root.
#[derive(Debug, Clone)]
pub struct Account {
    /// The user and the group to change to. `None` keeps the account of the tests, as only root can change.
    ids: Option<(u32, u32)>,
}

impl Account {
    /// Returns the account `name`, which the server's package has created, or `nobody` when it is missing.
    pub fn of(name: &str) -> Self {
        let ids = is_root().then(|| {
            ids_of(name).or_else(|| ids_of("nobody")).expect("/etc/passwd lists `nobody`")
        });
        Self { ids }
    }

    /// Returns the account that the tests run as.
    pub fn ourselves() -> Self {
        Self { ids: None }
    }

    /// Returns a command that runs `program` as this account and is killed when the calling thread ends.
    ///
    /// The kernel kills the program even if the test is aborted. What counts is the end of the *thread*
    /// that started the program, not of the test process: a server exists within one test and cannot be
    /// kept in a `static` for the next one.
    ///
    /// `setpriv` and the shell replace themselves by the program, so that the process id of the child is
    /// that of the server.
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

    /// Creates a temporary folder that only this account and root can enter.
    pub fn folder(&self) -> TempDir {
        let folder =
            TempDir::with_prefix("diesel-peers-").expect("a temporary folder can be created");
        self.take(folder.path());
        folder
    }

    /// Makes this account the owner of a file or folder of the tests.
    pub fn take(&self, path: &Path) {
        if let Some((user, group)) = self.ids {
            chown(path, Some(user), Some(group)).expect("root may change the owner");
        }
    }
}

/// Returns the user and the group id of a local account.
fn ids_of(name: &str) -> Option<(u32, u32)> {
    let accounts = fs::read_to_string("/etc/passwd").ok()?;
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        // A line begins with the name, the password and the two ids.
        let ours = fields.next()? == name && fields.next().is_some();
        let ids = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        ours.then_some(ids)
    })
}
