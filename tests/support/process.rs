//! Processes of servers: started, killed, frozen, and never left behind.

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

/// Within this time a server starts, even on a machine busy with other tests.
const START: Duration = Duration::from_secs(60);
/// Within this time a server that was asked to stop does so; then it is killed.
const STOP: Duration = Duration::from_secs(30);
/// Within this time the kernel stops or ends a process.
const SIGNALLED: Duration = Duration::from_secs(10);

/// The signals that end a kind of server.
#[derive(Debug, Clone, Copy)]
pub struct Signals {
    /// Asks for an orderly stop.
    pub stop: &'static str,
    /// Ends it without regard to its sessions, which we have killed before.
    pub kill: &'static str,
}

/// A server process with its folder and its port. It is killed when dropped.
#[derive(Debug)]
pub struct Server {
    /// Starts the server; used again for each restart.
    command: Command,
    /// The process, from its start until we have waited for its end. So its id is never stale:
    /// the kernel keeps it until then, and no stranger can be hit by our signals.
    child: Option<Child>,
    signals: Signals,
    /// Whether the server is ready to work.
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

    /// As [`start`](Self::start), of one that is not started yet.
    pub fn prepare(
        folder: TempDir,
        port: Port,
        mut command: Command,
        signals: Signals,
        ready: fn(&Server) -> bool,
    ) -> Self {
        let log = File::create(folder.path().join("log")).expect("a file in our folder");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        command.current_dir(folder.path());
        Self { command, child: None, signals, ready, port, folder }
    }

    /// The port it listens on, and keeps for restarts.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The address that it listens on.
    pub fn address(&self) -> Ipv4Addr {
        self.port.address()
    }

    /// Where it keeps its files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// All its output so far.
    pub fn log(&self) -> String {
        let log = fs::read(self.folder().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends it at once, like a crash: sessions break, and nobody listens on its port any more.
    pub fn kill(&mut self) {
        signal("KILL", &self.stop_processes());
        self.end(self.signals.kill, SIGNALLED);
    }

    /// Halts it and all its sessions, like a machine that hangs: the kernel still accepts
    /// connections for it, but nothing is ever answered.
    pub fn freeze(&mut self) {
        let pid = self.pid().expect("only a running server can be frozen");
        self.stop_processes();
        assert!(is_in_state(pid, "T"), "a server could not be frozen");
    }

    /// Lets a frozen server go on.
    pub fn thaw(&mut self) {
        let children = self.stop_processes();
        signal("CONT", &children);
        signal("CONT", self.pid().as_slice());
    }

    /// Stops it in good order, as an administrator would.
    pub fn stop(&mut self) {
        self.terminate(self.signals.stop, STOP);
    }

    /// Sends `name`, a signal that should end the process, and kills it if it has not ended by the
    /// deadline.
    pub fn terminate(&mut self, name: &str, deadline: Duration) {
        self.thaw();
        self.end(name, deadline);
    }

    /// Starts it again, on the same port and data. If it still runs, it is killed first.
    pub fn restart(&mut self) {
        self.begin_restart();
        self.await_ready();
    }

    /// As [`restart`](Self::restart), and does not wait until it is ready.
    pub fn begin_restart(&mut self) {
        self.kill();
        self.child = Some(self.command.spawn().expect("`setpriv` starts"));
    }

    /// Waits until it is ready.
    pub fn await_ready(&mut self) {
        let mut ended = None;
        let settled = within(START, || {
            let child = self.child.as_mut().expect("it was spawned");
            ended = child.try_wait().expect("the process is ours");
            ended.is_some() || (self.ready)(self)
        });
        assert!(
            settled && ended.is_none(),
            "a server did not start ({}): {:?}\n{}",
            ended.map_or(String::from("still trying"), |status| status.to_string()),
            self.command,
            self.log()
        );
    }

    /// Sends a signal that should end the process, frozen or not, and waits for its end.
    fn end(&mut self, name: &str, deadline: Duration) {
        let Some(mut child) = self.child.take() else { return };
        signal(name, &[child.id()]);
        signal("CONT", &[child.id()]);
        if !within(deadline, || child.try_wait().expect("the process is ours").is_some()) {
            child.kill().expect("the process is ours");
            child.wait().expect("the process is ours");
        }
    }

    /// Stops the process and its children, and returns these.
    ///
    /// A stopped parent neither forks nor reaps: the list is complete, and the ids in it are its
    /// children's (and theirs) for as long as the parent stands still.
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

/// A frozen process can be killed, too.
impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Stops processes and waits until they stand still: the signal alone does not wait for it.
fn stop_all(pids: &[u32]) -> bool {
    signal("STOP", pids);
    within(SIGNALLED, || pids.iter().all(|pid| is_in_state(*pid, "TZX")))
}

/// Sends a signal by the shell's own `kill`, which needs no package.
fn signal(name: &str, pids: &[u32]) {
    if !pids.is_empty() {
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"kill -s "$@" 2>/dev/null"#, "sh", name]);
        // One of several may have ended by itself. That is what signals of ours lead to anyway.
        shell.args(pids.iter().map(u32::to_string)).status().expect("there is a shell");
    }
}

/// The processes that `pid` has forked, from any of its threads (`PostgreSQL` has one for each
/// session, and a Galera node one for a state transfer).
fn children_of(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = threads.map(|thread| fs::read_to_string(thread.path().join("children")));
    let children: Vec<String> = children.map(Result::unwrap_or_default).collect();
    children.iter().flat_map(|pids| pids.split_whitespace()).flat_map(str::parse).collect()
}

/// Whether all threads of a process are in one of the `states`, or have gone.
fn is_in_state(pid: u32, states: &str) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        // The state is the letter after the name, which stands in parentheses and may hold any.
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        state.is_none_or(|state| states.contains(state))
    })
}

/// Runs a command to its end and returns its output.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.stderr(Stdio::piped()).output().expect("it was found, so it starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed, {}: {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A file without a name that holds `content`, as the input of a program. Unlike a pipe it needs
/// nobody to write into it while the program runs.
pub fn text(content: &str) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(content.as_bytes()).expect("room for a few bytes");
    file.rewind().expect("a file");
    file
}

/// The path of an installed program, which need not be in `PATH`.
///
/// # Panics
///
/// Says what to install when it is missing.
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

/// Says what to install.
#[track_caller]
pub fn is_missing(name: &str) -> ! {
    panic!(
        "`{name}` is not installed; run: apt-get install -y mariadb-server galera-4 \
         libmariadb-dev postgresql libpq-dev haproxy openssl chromium chromium-driver"
    )
}

/// Where Debian puts the programs of `PostgreSQL`, the newest version first.
fn postgres_folders() -> Vec<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<u32> = versions
        .filter_map(|version| version.file_name().to_str().and_then(|name| name.parse().ok()))
        .collect();
    versions.sort_unstable_by(|one, other| other.cmp(one));
    versions.iter().map(|version| format!("/usr/lib/postgresql/{version}/bin").into()).collect()
}

/// The names of this process's threads that are ours. r2d2's own workers outlive a pool by half a
/// minute, and are called otherwise.
pub fn our_threads() -> Vec<String> {
    let threads = fs::read_dir("/proc/self/task").expect("Linux tells of its threads");
    // A thread may end while it is looked at.
    let names = threads.flatten().flat_map(|thread| fs::read_to_string(thread.path().join("comm")));
    names.filter(|name| name.starts_with("peers-")).collect()
}
