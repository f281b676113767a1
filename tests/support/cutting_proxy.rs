//! A proxy before one server that cuts a client's connection at an exact moment: when the client sends a
//! statement with a certain text.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
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

/// A proxy that forwards everything until it is told to cut.
#[derive(Debug)]
pub struct CuttingProxy {
    port: u16,
    refuses: Arc<AtomicBool>,
    plan: Arc<Mutex<Option<Plan>>>,
    /// The end of a delay.
    release: Arc<(Mutex<bool>, Condvar)>,
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    text: &'static str,
    cut: Cut,
}

impl CuttingProxy {
    /// Starts a proxy before the server on this port of the loopback interface. It ends with the process.
    pub fn start(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = listener.local_addr().expect("the listener has an address").port();
        let plan: Arc<Mutex<Option<Plan>>> = Arc::default();
        let release: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        let refuses: Arc<AtomicBool> = Arc::default();
        let refuses_now = refuses.clone();
        let of_connections = (plan.clone(), release.clone());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if refuses_now.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else {
                    continue;
                };
                forward(client, server, &of_connections);
            }
        });
        Self { port, refuses, plan, release }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts the next connection that sends a statement with this text, once.
    pub fn cut_at(&self, text: &'static str, cut: Cut) {
        *self.plan.lock().expect("no thread panics with the lock") = Some(Plan { text, cut });
    }

    /// Closes each new connection from now on.
    pub fn refuse_connections(&self) {
        self.refuses.store(true, Ordering::SeqCst);
    }

    /// Ends the delay of a statement.
    pub fn release(&self) {
        *self.release.0.lock().expect("no thread panics with the lock") = true;
        self.release.1.notify_all();
    }

    /// Whether a cut is still to come.
    pub fn is_pending(&self) -> bool {
        self.plan.lock().expect("no thread panics with the lock").is_some()
    }
}

type Shared = (Arc<Mutex<Option<Plan>>>, Arc<(Mutex<bool>, Condvar)>);

fn forward(client: TcpStream, server: TcpStream, shared: &Shared) {
    let [client, server] = [client, server].map(Arc::new);
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("the stream is open");
    }
    // What to do with the next answer of the server.
    let (cuts_answer, shows_first_byte) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (plan, release) = shared.clone();
    let (from_client, to_server) = (client.clone(), server.clone());
    let flags = (cuts_answer.clone(), shows_first_byte.clone());
    thread::spawn(move || {
        copy(&from_client, &to_server, |data| {
            let is_meant = |plan: &Plan| {
                data.windows(plan.text.len()).any(|window| window == plan.text.as_bytes())
            };
            let planned =
                plan.lock().expect("no thread panics with the lock").take_if(|plan| is_meant(plan));
            let Some(Plan { cut, .. }) = planned else { return data.len() };
            match cut {
                Cut::BeforeServer => return 0,
                Cut::BeforeAnswer => {}
                Cut::Delayed | Cut::Held => {
                    if cut == Cut::Delayed {
                        let _ = from_client.shutdown(Shutdown::Both);
                    }
                    let mut released = release.0.lock().expect("no thread panics with the lock");
                    while !*released {
                        released =
                            release.1.wait(released).expect("no thread panics with the lock");
                    }
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
    thread::spawn(move || {
        copy(&server, &client, |data| {
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
fn copy(from: &TcpStream, to: &TcpStream, mut length: impl FnMut(&[u8]) -> usize) {
    let mut buffer = [0; 16 * 1024];
    let (mut reader, mut writer) = (from, to);
    while let Ok(read @ 1..) = reader.read(&mut buffer) {
        let forwarded = length(&buffer[..read]);
        if writer.write_all(&buffer[..forwarded]).is_err() || forwarded < read {
            break;
        }
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}
