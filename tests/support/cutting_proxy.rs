//! A proxy before one server that fails as a network does. It cuts a client's connection at an exact moment (when the
//! client sends a statement with a certain text), closes all connections, refuses new ones, or forwards nothing for a
//! while.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread;

/// When the connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Before the statement reaches the server.
    BeforeServer,
    /// After the server has executed the statement, before anything of its answer reaches the client.
    BeforeAnswer,
    /// The client's side is cut at once, and the statement reaches the server when the proxy is told so: it was in a
    /// buffer of the network.
    Delayed,
    /// Not at all: the statement waits in the proxy until the proxy is told so.
    Held,
    /// After the first byte of the answer has reached the client.
    InsideAnswer,
}

/// A proxy that forwards everything until it is told otherwise. It ends with the process.
#[derive(Debug)]
pub struct CuttingProxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    orders: Mutex<Orders>,
    changed: Condvar,
}

/// What the proxy was told.
#[derive(Debug, Default)]
struct Orders {
    plan: Option<Plan>,
    /// How often delays were ended.
    releases: u64,
    refuses: bool,
    traffic: Traffic,
    /// Both sides of each connection.
    streams: Vec<Weak<TcpStream>>,
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    text: &'static str,
    cut: Cut,
    /// The release that ends the delay of the statement.
    release: u64,
}

/// What the proxy does with what it receives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Traffic {
    #[default]
    Forwarded,
    Held,
    Dropped,
}

impl CuttingProxy {
    /// Starts a proxy before the server on this port of the loopback interface.
    pub fn start(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = listener.local_addr().expect("the listener has an address").port();
        let shared: Arc<Shared> = Arc::default();
        let of_connections = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if !of_connections.lets_pass() || of_connections.orders().refuses {
                    continue;
                }
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else {
                    continue;
                };
                forward(client, server, &of_connections);
            }
        });
        Self { port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts the next connection that sends a statement with this text, once.
    pub fn cut_at(&self, text: &'static str, cut: Cut) {
        let mut orders = self.shared.orders();
        let release = orders.releases + 1;
        orders.plan = Some(Plan { text, cut, release });
    }

    /// Whether a cut is still to come.
    pub fn is_pending(&self) -> bool {
        self.shared.orders().plan.is_some()
    }

    /// Ends the delay of the statements that were to be delayed.
    pub fn release(&self) {
        self.change(|orders| orders.releases += 1);
    }

    /// Closes each new connection from now on.
    pub fn refuse_connections(&self) {
        self.change(|orders| orders.refuses = true);
    }

    /// Accepts connections again.
    pub fn accept_connections(&self) {
        self.change(|orders| orders.refuses = false);
    }

    /// Closes all connections.
    pub fn close_connections(&self) {
        let streams = std::mem::take(&mut self.shared.orders().streams);
        for stream in streams.iter().filter_map(Weak::upgrade) {
            // Its other end may have closed it.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Forwards nothing from now on, but keeps what arrives, also the end of a connection.
    pub fn freeze(&self) {
        self.change(|orders| orders.traffic = Traffic::Held);
    }

    /// Loses everything from now on, as a cut cable does. A connection that has lost something is closed at the
    /// end.
    pub fn cut_off(&self) {
        self.change(|orders| orders.traffic = Traffic::Dropped);
    }

    /// Forwards again, beginning with what was kept.
    pub fn resume(&self) {
        self.change(|orders| orders.traffic = Traffic::Forwarded);
    }

    fn change(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.shared.orders());
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().expect("no thread panics with the lock")
    }

    /// Waits until the condition is over.
    fn wait_while(&self, condition: impl FnMut(&mut Orders) -> bool) {
        let orders = self.changed.wait_while(self.orders(), condition);
        drop(orders.expect("no thread panics with the lock"));
    }

    /// Waits while the proxy forwards nothing. Returns `false` if what has arrived is lost.
    fn lets_pass(&self) -> bool {
        let mut is_lost = false;
        self.wait_while(|orders| {
            is_lost |= orders.traffic == Traffic::Dropped;
            orders.traffic != Traffic::Forwarded
        });
        !is_lost
    }

    /// Returns the plan, once, if this statement is meant.
    fn take_plan(&self, statement: &[u8]) -> Option<Plan> {
        let is_meant = |plan: &mut Plan| {
            statement.windows(plan.text.len()).any(|window| window == plan.text.as_bytes())
        };
        self.orders().plan.take_if(is_meant)
    }
}

fn forward(client: TcpStream, server: TcpStream, shared: &Arc<Shared>) {
    let [client, server] = [client, server].map(Arc::new);
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("the stream is open");
    }
    let mut orders = shared.orders();
    orders.streams.retain(|stream| stream.strong_count() > 0);
    orders.streams.extend([&client, &server].map(Arc::downgrade));
    drop(orders);
    // What to do with the next answer of the server.
    let (cuts_answer, shows_first_byte) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (from_client, to_server) = (client.clone(), server.clone());
    let flags = (cuts_answer.clone(), shows_first_byte.clone());
    let orders = shared.clone();
    thread::spawn(move || {
        copy(&from_client, &to_server, &orders, |data| {
            let Some(Plan { cut, release, .. }) = orders.take_plan(data) else {
                return data.len();
            };
            match cut {
                Cut::BeforeServer => return 0,
                Cut::BeforeAnswer => {}
                Cut::Delayed | Cut::Held => {
                    if cut == Cut::Delayed {
                        let _ = from_client.shutdown(Shutdown::Both);
                    }
                    orders.wait_while(|orders| orders.releases < release);
                    if cut == Cut::Held {
                        return data.len();
                    }
                }
                Cut::InsideAnswer => flags.1.store(true, Ordering::SeqCst),
            }
            flags.0.store(true, Ordering::SeqCst);
            data.len()
        });
    });
    let orders = shared.clone();
    thread::spawn(move || {
        copy(&server, &client, &orders, |data| {
            if cuts_answer.load(Ordering::SeqCst) {
                usize::from(shows_first_byte.load(Ordering::SeqCst))
            } else {
                data.len()
            }
        });
    });
}

/// Copies data until either side ends. `length` returns how much of the data is forwarded; if that is not all, both
/// sides are closed.
fn copy(from: &TcpStream, to: &TcpStream, shared: &Shared, mut length: impl FnMut(&[u8]) -> usize) {
    let mut buffer = [0; 16 * 1024];
    let (mut reader, mut writer) = (from, to);
    loop {
        let read = reader.read(&mut buffer);
        if !shared.lets_pass() {
            break;
        }
        let Ok(read @ 1..) = read else { break };
        let forwarded = length(&buffer[..read]);
        if writer.write_all(&buffer[..forwarded]).is_err() || forwarded < read {
            break;
        }
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}
