//! A server that speaks `PostgreSQL`'s protocol far enough to accept logins and to answer statements without rows,
//! and that says any error instead, as `CockroachDB` does.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::Deref;

use super::postgres;
use super::words::{Answer, Script, ScriptedServer, Words};

/// The codes in place of a version with which a client asks for TLS and for encryption by GSSAPI.
const ENCRYPTION_REQUESTS: [u32; 2] = [80_877_103, 80_877_104];

/// A server that runs until the test ends.
#[derive(Debug)]
pub struct PostgresWords(ScriptedServer);

impl PostgresWords {
    /// Starts a server that answers each statement.
    pub fn start() -> Self {
        Self(ScriptedServer::start(|client, script| {
            let mut session =
                Session { client, prepared: HashMap::new(), bound: String::new(), state: b'I' };
            session.run(script)
        }))
    }

    pub fn url(&self) -> String {
        postgres::url(self.0.port())
    }
}

impl Deref for PostgresWords {
    type Target = Script;

    fn deref(&self) -> &Script {
        &self.0
    }
}

struct Session {
    client: TcpStream,
    /// The texts of prepared statements by their names.
    prepared: HashMap<String, String>,
    /// The text of the statement that is executed next.
    bound: String,
    /// `I` outside of a transaction, `T` inside, `E` inside one that has failed.
    state: u8,
}

impl Session {
    fn run(&mut self, script: &Script) -> io::Result<()> {
        loop {
            let startup = self.receive_body()?;
            let code = startup.first_chunk().map(|code| u32::from_be_bytes(*code));
            if !code.is_some_and(|code| ENCRYPTION_REQUESTS.contains(&code)) {
                break;
            }
            self.client.write_all(b"N")?;
        }
        if let Some(words) = script.answer_login() {
            return self.send_error("FATAL", &words);
        }
        // The authentication is complete.
        self.send(b'R', &[0; 4])?;
        for (name, value) in [("server_version", "13.0.0"), ("client_encoding", "UTF8")] {
            self.send(b'S', format!("{name}\0{value}\0").as_bytes())?;
        }
        self.send_ready()?;
        // After an error, messages are skipped until the client synchronizes.
        let mut skips = false;
        loop {
            let mut kind = [0];
            self.client.read_exact(&mut kind)?;
            let body = self.receive_body()?;
            let mut texts = body.split(|byte| *byte == 0).map(String::from_utf8_lossy);
            let mut text = || texts.next().unwrap_or_default().into_owned();
            match kind[0] {
                // Terminate
                b'X' => return Ok(()),
                // Sync
                b'S' => {
                    skips = false;
                    self.send_ready()?;
                }
                _ if skips => {}
                // Query
                b'Q' => {
                    self.execute(script, &text())?;
                    self.send_ready()?;
                }
                // Parse
                b'P' => {
                    self.prepared.insert(text(), text());
                    self.send(b'1', b"")?;
                }
                // Bind
                b'B' => {
                    text();
                    self.bound = self.prepared[&text()].clone();
                    self.send(b'2', b"")?;
                }
                // Describe
                b'D' => {
                    if body.first() == Some(&b'S') {
                        self.send(b't', &[0; 2])?;
                    }
                    self.send(b'n', b"")?;
                }
                // Execute
                b'E' => {
                    let statement = self.bound.clone();
                    skips = !self.execute(script, &statement)?;
                }
                // Close
                b'C' => self.send(b'3', b"")?,
                _ => {}
            }
        }
    }

    /// Answers a statement. Returns whether it succeeds.
    fn execute(&mut self, script: &Script, statement: &str) -> io::Result<bool> {
        match script.answer(statement)? {
            Answer::Error(words) => {
                self.send_error("ERROR", &words)?;
                if words.are_last {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                if self.state == b'T' {
                    self.state = b'E';
                }
                Ok(false)
            }
            Answer::Ok => {
                let word = statement.split(' ').next().unwrap_or_default();
                self.state = match word {
                    "BEGIN" => b'T',
                    "COMMIT" | "ROLLBACK" => b'I',
                    _ => self.state,
                };
                self.send(b'C', format!("{word}\0").as_bytes())?;
                Ok(true)
            }
        }
    }

    fn send_error(&mut self, severity: &str, Words { code, text, .. }: &Words) -> io::Result<()> {
        let fields = format!("S{severity}\0V{severity}\0C{code}\0M{text}\0\0");
        self.send(b'E', fields.as_bytes())
    }

    fn send_ready(&mut self) -> io::Result<()> {
        self.send(b'Z', &[self.state])
    }

    fn send(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len() + 4).expect("a message is short").to_be_bytes();
        self.client.write_all(&[&[kind], &length[..], body].concat())
    }

    /// Receives the length and the body of a message.
    fn receive_body(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.client.read_exact(&mut length)?;
        let mut body = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
        self.client.read_exact(&mut body)?;
        Ok(body)
    }
}
