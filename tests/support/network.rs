//! Faults of the network, and listeners that behave badly in place of a server.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::account::Account;
use super::port::{Port, free_port};
use super::process::find_program;
use super::within;

/// Tries to connect to a port on loopback for no longer than `patience`.
pub fn connect(port: u16, patience: Duration) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), patience)
}

/// A port on which connecting hangs, as with a machine that is off or behind a firewall.
///
/// No process accepts connections and the accept queue is full, so the kernel ignores further attempts.
#[derive(Debug)]
pub struct FullBacklog {
    port: Port,
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl FullBacklog {
    /// Fills the queue of a new listener.
    pub fn start() -> Self {
        let (listener, port) = listen();
        let mut queue = Vec::new();
        // The queue is full when connecting hangs twice in a row: one timeout may be the machine's delay.
        let mut hung = 0;
        while hung < 2 {
            match connect(port.number(), Duration::from_millis(100)) {
                Ok(stream) => {
                    queue.push(stream);
                    hung = 0;
                }
                Err(_) => hung += 1,
            }
        }
        Self { port, _listener: listener, _queue: queue }
    }

    /// Returns the port on which connecting hangs.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Stops listening and returns the port.
    pub fn vanish(self) -> Port {
        self.port
    }
}

/// A port that accepts connections and never sends anything.
#[derive(Debug)]
pub struct Silent {
    // The first field is dropped first: the listener is closed before the port is released.
    listening: Listening,
    port: Port,
}

/// A thread that accepts connections and keeps them.
#[derive(Debug)]
struct Listening {
    port: u16,
    accepted: Arc<Mutex<Vec<TcpStream>>>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Silent {
    /// Listens on a new port.
    pub fn start() -> Self {
        let (listener, port) = listen();
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let stopped = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("silent".into());
        let thread = thread.spawn({
            let (accepted, stopped) = (Arc::clone(&accepted), Arc::clone(&stopped));
            move || {
                for stream in listener.incoming().flatten() {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    accepted.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
                }
            }
        });
        let thread = Some(thread.expect("a thread can be started"));
        Self { listening: Listening { port: port.number(), accepted, stopped, thread }, port }
    }

    /// Returns the port of the silent listener.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Returns the number of accepted connections.
    pub fn accepted(&self) -> usize {
        self.listening.accepted.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Closes the listener and all its connections, and returns the port.
    pub fn vanish(self) -> Port {
        self.port
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // The thread blocks until a connection arrives.
        if connect(self.port, Duration::from_secs(1)).is_ok() {
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }
}

/// Opens a listener on a newly claimed port.
pub(super) fn listen() -> (TcpListener, Port) {
    let port = free_port();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number()));
    (listener.expect("the port is free"), port)
}

/// The packets that are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drops {
    /// Packets that open a connection. Established connections go on.
    NewOnly,
    /// All packets to and from the port, as if the cable were cut.
    All,
}

/// A fault that drops packets on loopback until it is dropped. Only root can create it.
#[derive(Debug)]
pub struct DroppedPackets {
    /// An interactive `nft`. The kernel removes the rules together with the process that owns them, even
    /// if the test is killed, so no rule can remain and disturb the next test.
    nft: Child,
}

impl DroppedPackets {
    /// Drops packets of `port` on loopback.
    ///
    /// The rules drop incoming packets: for an outgoing packet the sender would get an error.
    pub fn to_port(port: u16, drops: Drops) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let table = format!("inet diesel_peers_{}_{number}", process::id());
        let rules: &[&str] = match drops {
            Drops::NewOnly => &["dport {port} tcp flags & (syn | ack) == syn"],
            Drops::All => &["dport {port}", "sport {port}"],
        };

        let mut command = Account::ourselves().command("nft");
        command.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut dropped = Self { nft: command.spawn().expect("`setpriv` starts") };
        let input = dropped.nft.stdin.as_mut().expect("the input is piped");
        writeln!(input, "add table {table} {{ flags owner; }}").expect("`nft` reads its input");
        writeln!(input, "add chain {table} in {{ type filter hook input priority -300; }}")
            .expect("`nft` reads its input");
        for rule in rules {
            let rule = rule.replace("{port}", &port.to_string());
            writeln!(input, "add rule {table} in iif lo tcp {rule} drop")
                .expect("`nft` reads its input");
        }

        let mut list = Command::new(find_program("nft"));
        list.args(["list", "table"]).args(table.split(' '));
        let in_force = within(Duration::from_secs(10), || {
            let listed = list.output().expect("the program exists, so it starts").stdout;
            String::from_utf8_lossy(&listed).matches(" drop\n").count() == rules.len()
        });
        assert!(in_force, "`nft` must apply the rules: {}", dropped.end());
        dropped
    }

    /// Ends the process, which removes the rules, and returns its error output.
    fn end(&mut self) -> String {
        let _ = self.nft.kill();
        let _ = self.nft.wait();
        let mut errors = String::new();
        if let Some(mut stderr) = self.nft.stderr.take() {
            let _ = stderr.read_to_string(&mut errors);
        }
        errors
    }
}

impl Drop for DroppedPackets {
    fn drop(&mut self) {
        self.end();
    }
}
