//! Faults of the network, and of what answers in a server's place.

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
/// Nobody accepts, and the queue of those who wait for it is full; so the kernel ignores who else
/// wants to connect.
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
        // Until it hangs twice in a row: once may be the machine's delay.
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

    /// The port on which connecting hangs.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Goes away, and leaves its port to somebody else.
    pub fn vanish(self) -> Port {
        self.port
    }
}

/// A port that accepts connections and never says anything.
#[derive(Debug)]
pub struct Silent {
    // Before the port is free, its listener has gone.
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
        let thread = Some(thread.expect("one thread more"));
        Self { listening: Listening { port: port.number(), accepted, stopped, thread }, port }
    }

    /// The port on which it keeps silent.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// How many connections it has accepted so far.
    pub fn accepted(&self) -> usize {
        self.listening.accepted.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Goes away with all connections, and leaves its port to somebody else.
    pub fn vanish(self) -> Port {
        self.port
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // The thread waits for a connection: give it one.
        if connect(self.port, Duration::from_secs(1)).is_ok() {
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }
}

/// A listener on a port of our own.
fn listen() -> (TcpListener, Port) {
    let port = free_port();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number()));
    (listener.expect("the port is free"), port)
}

/// Which packets get lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drops {
    /// Those that open a connection. Established ones go on.
    NewOnly,
    /// All to and from the port: the cable is cut.
    All,
}

/// Packets on loopback are lost for as long as this lives. Only root can make it.
#[derive(Debug)]
pub struct DroppedPackets {
    /// An interactive `nft`. The kernel removes the rules together with the process that owns
    /// them, even if the test is killed; no rule can stay and puzzle the next one.
    nft: Child,
}

impl DroppedPackets {
    /// Loses the packets of `port` on loopback.
    ///
    /// They are dropped where they come in: where they go out, the sender would be told.
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
        let input = dropped.nft.stdin.as_mut().expect("it is piped");
        writeln!(input, "add table {table} {{ flags owner; }}").expect("it reads");
        writeln!(input, "add chain {table} in {{ type filter hook input priority -300; }}")
            .expect("it reads");
        for rule in rules {
            let rule = rule.replace("{port}", &port.to_string());
            writeln!(input, "add rule {table} in iif lo tcp {rule} drop").expect("it reads");
        }

        let mut list = Command::new(find_program("nft"));
        list.args(["list", "table"]).args(table.split(' '));
        let in_force = within(Duration::from_secs(10), || {
            let listed = list.output().expect("it was found, so it starts").stdout;
            String::from_utf8_lossy(&listed).matches(" drop\n").count() == rules.len()
        });
        assert!(in_force, "`nft` failed: {}", dropped.end());
        dropped
    }

    /// Ends the process, and so the loss; returns its complaints.
    fn end(&mut self) -> String {
        let _ = self.nft.kill();
        let _ = self.nft.wait();
        let mut complaints = String::new();
        if let Some(mut errors) = self.nft.stderr.take() {
            let _ = errors.read_to_string(&mut complaints);
        }
        complaints
    }
}

impl Drop for DroppedPackets {
    fn drop(&mut self) {
        self.end();
    }
}
