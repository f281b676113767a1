//! A server that speaks MySQL's protocol far enough to greet, to accept each login and to answer each statement,
//! and that says any error instead. For what only proxies such as ProxySQL say, which Debian does not package.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::mariadb;

/// Protocol 4.1, TLS not offered, transactions, and authentication by a plugin.
const CAPABILITIES: u32 = 0x0001 | 0x0002 | 0x0008 | 0x0200 | 0x2000 | 0x8000 | 0x8_0000;

const OK: &[u8] = b"\0\0\0\x02\0\0\0";

/// A server that runs until the test ends.
#[derive(Debug)]
pub struct MySqlWords {
    port: u16,
    script: Arc<Script>,
}

#[derive(Debug, Default)]
struct Script {
    /// The beginnings of statements that fail, and with which number and text.
    errors: Mutex<HashMap<String, (u16, String)>>,
    logins: AtomicUsize,
    /// How many sessions end at their next statement.
    sessions_to_end: AtomicUsize,
}

impl MySqlWords {
    /// Starts a server that answers each statement.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = listener.local_addr().expect("the listener is bound").port();
        let script = Arc::<Script>::default();
        let of_sessions = script.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let script = of_sessions.clone();
                // A session ends with the client's last packet.
                thread::spawn(move || Session::new(client).and_then(|mut it| it.run(&script)));
            }
        });
        Self { port, script }
    }

    pub fn url(&self) -> String {
        mariadb::url(self.port)
    }

    /// Answers each statement that begins like this with an error.
    pub fn say(&self, beginning: &str, number: u16, text: &str) {
        self.script.lock().insert(beginning.to_owned(), (number, text.to_owned()));
    }

    /// Answers each statement again.
    pub fn say_nothing_more(&self) {
        self.script.lock().clear();
    }

    /// Returns the number of logins so far.
    pub fn logins(&self) -> usize {
        self.script.logins.load(Ordering::Relaxed)
    }

    /// Ends this many sessions at their next statement.
    pub fn end_sessions(&self, count: usize) {
        self.script.sessions_to_end.store(count, Ordering::Relaxed);
    }
}

impl Script {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (u16, String)>> {
        self.errors.lock().expect("no thread has panicked")
    }

    /// Returns the answer to a statement.
    fn answer(&self, statement: &str) -> io::Result<Vec<u8>> {
        let one_less = |count: usize| count.checked_sub(1);
        if self.sessions_to_end.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
        {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let errors = self.lock();
        let error = errors.iter().find(|(beginning, _)| statement.starts_with(beginning.as_str()));
        Ok(error.map_or_else(|| OK.to_vec(), |(_, (number, text))| error_packet(*number, text)))
    }
}

fn error_packet(number: u16, text: &str) -> Vec<u8> {
    [&[0xff], &number.to_le_bytes()[..], b"#HY000", text.as_bytes()].concat()
}

struct Session {
    client: TcpStream,
    sequence: u8,
    /// The texts of prepared statements. Their numbers begin with 1.
    prepared: Vec<String>,
}

impl Session {
    fn new(client: TcpStream) -> io::Result<Self> {
        client.set_nodelay(true)?;
        Ok(Self { client, sequence: 0, prepared: Vec::new() })
    }

    fn run(&mut self, script: &Script) -> io::Result<()> {
        let [a, b, c, d] = CAPABILITIES.to_le_bytes();
        self.send(
            &[
                b"\x0a5.5.5-10.11.0-words\0\x07\0\0\x0012345678\0".as_slice(),
                &[a, b],
                b"\x2d\x02\0",
                &[c, d],
                b"\x15\0\0\0\0\0\0\0\0\0\x00123456789012\0mysql_native_password\0",
            ]
            .concat(),
        )?;
        self.receive()?;
        script.logins.fetch_add(1, Ordering::Relaxed);
        self.send(OK)?;
        loop {
            let packet = self.receive()?;
            let Some((command, rest)) = packet.split_first() else { return Ok(()) };
            let text = || String::from_utf8_lossy(rest).into_owned();
            match command {
                // COM_QUIT
                0x01 => return Ok(()),
                // COM_QUERY
                0x03 => self.send(&script.answer(&text())?)?,
                // COM_STMT_PREPARE. ProxySQL as well does not know SHOW here.
                0x16 if text().starts_with("SHOW") => {
                    self.send(&error_packet(1295, "This command is not supported"))?;
                }
                0x16 => {
                    self.prepared.push(text());
                    let number = u32::try_from(self.prepared.len()).expect("a few statements");
                    self.send(&[&[0], &number.to_le_bytes()[..], &[0; 7]].concat())?;
                }
                // COM_STMT_EXECUTE
                0x17 => {
                    let number = rest.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
                    let statement = self.prepared[number as usize - 1].clone();
                    self.send(&script.answer(&statement)?)?;
                }
                // COM_STMT_CLOSE has no answer.
                0x19 => {}
                _ => self.send(OK)?,
            }
        }
    }

    fn send(&mut self, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).expect("a packet is short").to_le_bytes();
        let header = [length[0], length[1], length[2], self.sequence];
        self.sequence = self.sequence.wrapping_add(1);
        self.client.write_all(&[&header, payload].concat())
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut header = [0; 4];
        self.client.read_exact(&mut header)?;
        let [a, b, c, sequence] = header;
        self.sequence = sequence.wrapping_add(1);
        let mut payload = vec![0; u32::from_le_bytes([a, b, c, 0]) as usize];
        self.client.read_exact(&mut payload)?;
        Ok(payload)
    }
}
