//! A server that is not the `MySQL` server that a client expects. It asks for the password, and records what
//! the client sends to it instead of a login to a trusted server.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::account::Account;
use super::network::{connect, listen};
use super::port::{Port, free_port};
use super::process::find_program;
use super::tls::Certificate;
use super::within;

/// The capabilities of the server: the protocol since 4.1, a database and an authentication plugin.
const CAPABILITIES: u32 = 0x8_a209;
const TLS: u32 = 0x800;

/// The time in which OpenSSL starts.
const START: Duration = Duration::from_secs(10);

/// A listener that serves one connection.
#[derive(Debug)]
pub struct Impostor {
    port: Port,
    thread: JoinHandle<Vec<u8>>,
}

impl Impostor {
    /// Starts a server without TLS, which asks for the password in clear text.
    pub fn without_tls() -> Self {
        Self::start(|mut client| {
            client.write_all(&greeting(CAPABILITIES)).expect("the client is connected");
            let mut received = read(&client);
            if !received.is_empty() {
                let _ = client.write_all(&packet(2, b"\xfemysql_clear_password\0"));
                received.extend(read(&client));
            }
            received
        })
    }

    /// Starts a server with TLS and this certificate. It records what the client sends after the handshake.
    pub fn with_tls(certificate: &Certificate) -> Self {
        let port = free_port();
        let mut openssl = Account::ourselves().command("openssl");
        openssl.args(["s_server", "-quiet", "-naccept", "1", "-accept"]);
        openssl.arg(format!("{}:{}", port.address(), port.number()));
        openssl.arg("-cert").arg(&certificate.certificate).arg("-key").arg(&certificate.key);
        openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        Self::start(move |client| serve_with_tls(&client, &mut openssl, &port))
    }

    fn start(serve: impl FnOnce(TcpStream) -> Vec<u8> + Send + 'static) -> Self {
        let (listener, port) = listen();
        let accept = |listener: TcpListener| listener.accept().expect("a client connects").0;
        let thread = thread::Builder::new().name("impostor".into());
        let thread = thread.spawn(move || serve(accept(listener)));
        Self { port, thread: thread.expect("a thread can be started") }
    }

    /// Returns the port of the listener.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Returns what the client has sent after the greeting, or in the TLS session if there is one. The client
    /// must have disconnected.
    pub fn received(self) -> Vec<u8> {
        // The thread blocks until a connection arrives.
        drop(connect(self.port(), Duration::from_secs(1)));
        self.thread.join().expect("the thread does not panic")
    }
}

fn serve_with_tls(mut client: &TcpStream, openssl: &mut Command, port: &Port) -> Vec<u8> {
    client.write_all(&greeting(CAPABILITIES | TLS)).expect("the client is connected");
    let request = read(client);
    // The request for TLS is a packet of 32 bytes.
    if request.len() != 4 + 32 {
        return request;
    }
    let mut openssl = openssl.spawn().expect("`setpriv` starts");
    let mut server = None;
    let is_ready = within(START, || {
        server = connect(port.number(), START).ok();
        server.is_some()
    });
    assert!(is_ready, "{} must start", find_program("openssl").display());
    let server = server.expect("it is connected");
    let decrypted = thread::scope(|scope| {
        scope.spawn(|| forward(client, &server));
        scope.spawn(|| forward(&server, client));
        let mut decrypted = vec![0; 4096];
        let stdout = openssl.stdout.as_mut().expect("the output is piped");
        let length = stdout.read(&mut decrypted).expect("the output can be read");
        decrypted.truncate(length);
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
        decrypted
    });
    let _ = openssl.kill();
    let _ = openssl.wait();
    decrypted
}

/// Reads the next packet, with its header. Returns nothing at the end of the connection.
fn read(mut client: &TcpStream) -> Vec<u8> {
    let mut header = [0; 4];
    if client.read_exact(&mut header).is_err() {
        return Vec::new();
    }
    let mut packet = header.to_vec();
    let _ = client.take(u64::from(header[0])).read_to_end(&mut packet);
    packet
}

fn forward(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
}

/// Returns the first packet of a server with these capabilities.
fn greeting(capabilities: u32) -> Vec<u8> {
    let [c0, c1, c2, c3] = capabilities.to_le_bytes();
    let mut greeting = b"\x0a5.5.5-10.11.0-MariaDB\0".to_vec();
    greeting.extend([1, 0, 0, 0]); // the id of the session
    greeting.extend(b"challeng\0");
    greeting.extend([c0, c1, 45, 2, 0, c2, c3, 21]);
    greeting.extend([0; 10]);
    greeting.extend(b"e-challenge!\0mysql_native_password\0");
    packet(0, &greeting)
}

fn packet(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).expect("the packet is short");
    [&[length, 0, 0, number], content].concat()
}
