//! Server processes: tests start, kill and freeze them, and no process outlives its test.

use std::env;
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::port::Port;
use super::within;

/// The time in which a server starts, even on a machine that is busy with other tests.
const START: Duration = Duration::from_secs(60);
/// The time in which a server stops in good order. Then it is killed.
const STOP: Duration = Duration::from_secs(30);
/// The time in which the kernel stops or ends a process after a signal.
const SIGNALED: Duration = Duration::from_secs(10);

/// The signals that end a kind of server.
#[derive(Debug, Clone, Copy)]
pub struct Signals {
    /// The signal for an orderly stop.
    pub stop: &'static str,
    /// The signal that ends the server without regard to its sessions, whose processes have been killed
    /// before.
    pub kill: &'static str,
}

/// A server process with its folder and its port. The process is killed when this is dropped.
#[derive(Debug)]
pub struct Server {
    /// The command that starts the server, used again for each restart.
    command: Command,
    /// The process, from its start until its end has been awaited. The kernel keeps the id until then, so
    /// signals can never hit an unrelated process.
    child: Option<Child>,
    signals: Signals,
    /// Returns whether the server is ready to work.
    ready: fn(&Server) -> bool,
    port: Port,
    folder: TempDir,
}

impl Server {
    /// Starts a server and waits until it is `ready`. Its output goes to a file in `folder`.
    pub fn start(
        folder: TempDir,
        port: Port,
        command: Command,
        signals: Signals,
        ready: fn(&Server) -> bool,
    ) -> Self {
        let mut server = Self::prepare(folder, port, command, signals, ready);
        server.restart();
        server
    }

    /// Prepares a server without starting it.
    pub fn prepare(
        folder: TempDir,
        port: Port,
        mut command: Command,
        signals: Signals,
        ready: fn(&Server) -> bool,
    ) -> Self {
        let log = File::create(folder.path().join("log")).expect("the folder is writable");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("the file is open")).stderr(log);
        command.current_dir(folder.path());
        Self { command, child: None, signals, ready, port, folder }
    }

    /// Returns the port that the server listens on, also after a restart.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Returns the address that the server listens on.
    pub fn address(&self) -> Ipv4Addr {
        self.port.address()
    }

    /// Returns the folder with the server's files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns all output of the server.
    pub fn log(&self) -> String {
        let log = fs::read(self.folder().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Returns the process id while the server runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends the server at once, like a crash: sessions break, and its port is closed.
    pub fn kill(&mut self) {
        signal("KILL", &self.stop_processes());
        self.end(self.signals.kill, SIGNALED);
    }

    /// Stops the server and all its sessions, like a machine that hangs: the kernel still accepts
    /// connections for the server, but no answer ever comes.
    pub fn freeze(&mut self) {
        let pid = self.pid().expect("only a running server can be frozen");
        self.stop_processes();
        assert!(is_in_state(pid, "T"), "the server is frozen");
    }

    /// Resumes a frozen server.
    pub fn thaw(&mut self) {
        let children = self.stop_processes();
        signal("CONT", &children);
        signal("CONT", self.pid().as_slice());
    }

    /// Stops the server in good order, as an administrator would.
    pub fn stop(&mut self) {
        self.terminate(self.signals.stop, STOP);
    }

    /// Sends the signal `name`, which should end the process, and kills the process if it has not ended
    /// by the deadline.
    pub fn terminate(&mut self, name: &str, deadline: Duration) {
        self.thaw();
        self.end(name, deadline);
    }

    /// Starts the server again, on the same port and data. If the server still runs, it is killed first.
    pub fn restart(&mut self) {
        self.begin_restart();
        self.await_ready();
    }

    /// Starts the server again without waiting until it is ready.
    pub fn begin_restart(&mut self) {
        self.kill();
        self.child = Some(self.command.spawn().expect("`setpriv` is installed"));
    }

    /// Waits until the server is ready.
    pub fn await_ready(&mut self) {
        let mut ended = None;
        let settled = within(START, || {
            let child = self.child.as_mut().expect("the process was started");
            ended = child.try_wait().expect("the process is a child of this one");
            ended.is_some() || (self.ready)(self)
        });
        assert!(
            settled && ended.is_none(),
            "the server must start ({}): {:?}\n{}",
            ended.map_or(String::from("still starting"), |status| status.to_string()),
            self.command,
            self.log()
        );
    }

    /// Sends a signal that should end the process, frozen or not, and waits for its end.
    fn end(&mut self, name: &str, deadline: Duration) {
        let Some(mut child) = self.child.take() else { return };
        signal(name, &[child.id()]);
        signal("CONT", &[child.id()]);
        if !within(deadline, || {
            child.try_wait().expect("the process is a child of this one").is_some()
        }) {
            child.kill().expect("the process is a child of this one");
            child.wait().expect("the process is a child of this one");
        }
    }

    /// Stops the process and its children, and returns the children.
    ///
    /// A stopped parent neither forks nor reaps. So the list is complete, and its ids stay those of the
    /// descendants for as long as the parent is stopped.
    fn stop_processes(&self) -> Vec<u32> {
        let mut stopped = Vec::new();
        let mut parents: Vec<u32> = self.pid().into_iter().collect();
        while !parents.is_empty() && stop_all(&parents) {
            parents = parents.into_iter().flat_map(children_of).collect();
            stopped.extend(&parents);
        }
        stopped
    }
}

/// Implements `Deref` to [`Server`] for a kind of server, so that it has the methods of its process.
macro_rules! deref_to_server {
    ($kind:ty) => {
        impl std::ops::Deref for $kind {
            type Target = Server;

            fn deref(&self) -> &Server {
                &self.server
            }
        }

        impl std::ops::DerefMut for $kind {
            fn deref_mut(&mut self) -> &mut Server {
                &mut self.server
            }
        }
    };
}
pub(super) use deref_to_server;

/// A frozen process can also be killed.
impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Stops processes and waits until they are stopped: sending the signal does not wait for that.
fn stop_all(pids: &[u32]) -> bool {
    signal("STOP", pids);
    within(SIGNALED, || pids.iter().all(|pid| is_in_state(*pid, "TZX")))
}

/// Sends a signal with the shell's built-in `kill`, which needs no package.
pub fn signal(name: &str, pids: &[u32]) {
    if !pids.is_empty() {
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"kill -s "$@" 2>/dev/null"#, "sh", name]);
        // One of several processes may have ended by itself. The tests' signals have the same effect.
        shell.args(pids.iter().map(u32::to_string)).status().expect("a shell is installed");
    }
}

/// Returns the processes that the threads of `pid` have forked. `PostgreSQL` has one for each session, and
/// a Galera node has one for a state transfer.
fn children_of(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = threads.map(|thread| fs::read_to_string(thread.path().join("children")));
    let children: Vec<String> = children.map(Result::unwrap_or_default).collect();
    children.iter().flat_map(|pids| pids.split_whitespace()).flat_map(str::parse).collect()
}

/// Returns whether all threads of a process are in one of the `states`, or have ended.
fn is_in_state(pid: u32, states: &str) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        // The state is the letter after the name, which is in parentheses and may contain any character.
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        state.is_none_or(|state| states.contains(state))
    })
}

/// Runs a command to its end and returns its output.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.stderr(Stdio::piped()).output().expect("the program exists, so it starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed, {}: {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns an unnamed file with this content, as the input of a program. Unlike a pipe, the file needs no
/// writer while the program runs.
pub fn text(content: &str) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file can be created");
    file.write_all(content.as_bytes()).expect("the file is writable");
    file.rewind().expect("the file is seekable");
    file
}

/// Returns the path of an installed program, which need not be in `PATH`.
///
/// # Panics
///
/// Panics with what to install when the program is missing.
#[track_caller]
pub fn find_program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .chain(postgres_folders())
        .map(|folder| folder.join(name))
        .find(|program| program.is_file());
    found.unwrap_or_else(|| is_missing(name))
}

/// Panics with what to install.
#[track_caller]
pub fn is_missing(name: &str) -> ! {
    panic!(
        "`{name}` is not installed; run: apt-get install -y mariadb-server galera-4 \
         libmariadb-dev postgresql libpq-dev haproxy pgbouncer pgpool2 openssl chromium \
         chromium-driver"
    )
}

/// Returns the folders in which Debian puts the programs of `PostgreSQL`, the newest version first.
fn postgres_folders() -> Vec<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<u32> = versions
        .filter_map(|version| version.file_name().to_str().and_then(|name| name.parse().ok()))
        .collect();
    versions.sort_unstable_by(|one, other| other.cmp(one));
    versions.iter().map(|version| format!("/usr/lib/postgresql/{version}/bin").into()).collect()
}

/// Returns the names of the crate's threads in this process. r2d2's workers, which outlive a pool by half a
/// minute, have other names.
pub fn our_threads() -> Vec<String> {
    let threads = fs::read_dir("/proc/self/task").expect("Linux lists its threads");
    // A thread may end while it is inspected.
    let names = threads.flatten().flat_map(|thread| fs::read_to_string(thread.path().join("comm")));
    names.filter(|name| name.starts_with("peers-")).collect()
}
