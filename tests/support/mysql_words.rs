//! A server that speaks MySQL's protocol far enough to greet, to accept each login and to answer each statement,
//! and that says any error instead, as ProxySQL and `TiDB` do.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::Deref;

use super::mariadb;
use super::words::{Answer, Script, ScriptedServer};

/// Protocol 4.1, TLS not offered, transactions, and authentication by a plugin.
const CAPABILITIES: u32 = 0x0001 | 0x0002 | 0x0008 | 0x0200 | 0x2000 | 0x8000 | 0x8_0000;

const OK: &[u8] = b"\0\0\0\x02\0\0\0";

/// A server that runs until the test ends.
#[derive(Debug)]
pub struct MySqlWords(ScriptedServer);

impl MySqlWords {
    /// Starts a server that answers each statement.
    pub fn start() -> Self {
        Self(ScriptedServer::start(|client, script| {
            Session { client, sequence: 0, prepared: Vec::new() }.run(script)
        }))
    }

    pub fn url(&self) -> String {
        mariadb::url(self.0.port())
    }
}

impl Deref for MySqlWords {
    type Target = Script;

    fn deref(&self) -> &Script {
        &self.0
    }
}

fn error_packet(code: &str, text: &str) -> Vec<u8> {
    let number: u16 = code.parse().expect("the code is a number");
    [&[0xff], &number.to_le_bytes()[..], b"#HY000", text.as_bytes()].concat()
}

struct Session {
    client: TcpStream,
    sequence: u8,
    /// The texts of prepared statements. Their numbers begin with 1.
    prepared: Vec<String>,
}

impl Session {
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
        if let Some(words) = script.answer_login() {
            return self.send(&error_packet(&words.code, &words.text));
        }
        self.send(OK)?;
        loop {
            let packet = self.receive()?;
            let Some((command, rest)) = packet.split_first() else { return Ok(()) };
            let text = || String::from_utf8_lossy(rest).into_owned();
            match command {
                // COM_QUIT
                0x01 => return Ok(()),
                // COM_QUERY
                0x03 => self.execute(script, &text())?,
                // COM_STMT_PREPARE. ProxySQL as well does not know SHOW here.
                0x16 if text().starts_with("SHOW") => {
                    self.send(&error_packet("1295", "This command is not supported"))?;
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
                    self.execute(script, &statement)?;
                }
                // COM_STMT_CLOSE has no answer.
                0x19 => {}
                _ => self.send(OK)?,
            }
        }
    }

    /// Answers a statement.
    fn execute(&mut self, script: &Script, statement: &str) -> io::Result<()> {
        match script.answer(statement)? {
            Answer::Ok => self.send(OK),
            Answer::Error(words) => {
                self.send(&error_packet(&words.code, &words.text))?;
                let aborted = || io::ErrorKind::ConnectionAborted.into();
                if words.are_last { Err(aborted()) } else { Ok(()) }
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
