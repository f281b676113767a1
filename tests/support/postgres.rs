//! A real `PostgreSQL` server.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::account::Account;
use super::port::{Port, free_port};
use super::process::{Server, Signals, find_program, run, text};
use super::tls::Certificate;
use super::{APP, APP_PASSWORD, template};

/// The administrator's password. Nobody is let in without one.
const ADMIN_PASSWORD: &str = "s3cret-admin";

/// `postgres` with an empty database and a user of its own.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
}

impl Postgres {
    /// Starts a server with new data.
    pub fn start() -> Self {
        Self::start_with(free_port(), |_, _| Vec::new())
    }

    /// As [`start`](Self::start), on this port.
    pub fn start_on(port: Port) -> Self {
        Self::start_with(port, |_, _| Vec::new())
    }

    /// Starts a server that listens on IPv6 as well.
    pub fn start_on_both() -> Self {
        Self::start_with(free_port(), |_, _| vec!["listen_addresses=127.0.0.1,::1".to_owned()])
    }

    /// Starts a server that can do TLS.
    pub fn start_with_tls() -> Self {
        Self::start_with(free_port(), |account, folder| {
            let Certificate { certificate, key } = Certificate::make(account, folder);
            vec![
                "ssl=on".to_owned(),
                format!("ssl_cert_file={}", certificate.display()),
                format!("ssl_key_file={}", key.display()),
            ]
        })
    }

    /// Starts a server with new data, and with these settings besides.
    fn start_with(port: Port, settings: impl FnOnce(&Account, &Path) -> Vec<String>) -> Self {
        let account = Account::of("postgres");
        let folder = account.folder();
        // Also part of the archive's name: the program's version, and all of this file.
        let version = run(Command::new(find_program("postgres")).arg("--version"));
        let recipe = version + include_str!("postgres.rs");
        template::unpack("postgres", &recipe, &account, folder.path(), |data| {
            make_data(&account, data);
        });

        let mut command = account.command("postgres");
        command.arg("-D").arg(folder.path()).arg("-k").arg(folder.path());
        command.arg("-p").arg(port.number().to_string());
        command.arg("-c").arg(format!("listen_addresses={}", port.address()));
        // The data need to outlive the server's death, but not the machine's.
        for setting in [
            "max_connections=200",
            "shared_buffers=16MB",
            "dynamic_shared_memory_type=mmap",
            "autovacuum=off",
            "fsync=off",
        ] {
            command.args(["-c", setting]);
        }
        for setting in settings(&account, folder.path()) {
            command.arg("-c").arg(setting);
        }
        let ready =
            |server: &Server| greets_at(server.address(), server.port(), Duration::from_secs(1));
        // Killed outright, it would leave shared memory and unreaped sessions behind. With this
        // signal it only tidies up these; the data are left as by a crash.
        let signals = Signals { stop: "INT", kill: "QUIT" };
        Self { server: Server::start(folder, port, command, signals, ready) }
    }

    /// Where the application finds its database.
    pub fn url(&self) -> String {
        url_at(&self.address().to_string(), self.port())
    }

    /// How many sessions of the application the server has.
    pub fn sessions(&self) -> usize {
        let count =
            self.sql(&format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{APP}'"));
        count.trim().parse().expect("a count")
    }

    /// Has the server run statements as its administrator, and returns its answer.
    #[track_caller]
    pub fn sql(&self, statements: &str) -> String {
        let mut client = Command::new(find_program("psql"));
        client.env("PGPASSWORD", ADMIN_PASSWORD).env("PGCONNECT_TIMEOUT", "10");
        client.arg("-h").arg(self.folder()).arg("-p").arg(self.port().to_string());
        client.args(["-U", "postgres", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-AtX", "-c"]);
        run(client.arg(statements))
    }
}

/// The life of the process is the same for all servers: see [`Server`].
impl Deref for Postgres {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Postgres {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// The URL of the application's database behind `port`, on a server or something in front of it.
pub fn url(port: u16) -> String {
    url_at("127.0.0.1", port)
}

/// As [`url`], on another host.
pub fn url_at(host: &str, port: u16) -> String {
    format!("postgres://{APP}:{APP_PASSWORD}@{host}:{port}/{APP}")
}

/// Whether a server on `port` asks for the application's password.
///
/// The client speaks first in this protocol. A server that is still starting up answers as well,
/// with an error.
pub fn greets(port: u16, patience: Duration) -> bool {
    greets_at(Ipv4Addr::LOCALHOST, port, patience)
}

fn greets_at(address: Ipv4Addr, port: u16, patience: Duration) -> bool {
    let Ok(mut stream) = TcpStream::connect((address, port)) else { return false };
    stream.set_read_timeout(Some(patience)).expect("longer than nothing");
    // Protocol 3.0, then names and values, each ended by a zero; all after their length.
    let hello = format!("\0\x03\0\0user\0{APP}\0database\0{APP}\0\0");
    let length = u32::try_from(hello.len() + 4).expect("a short text");
    let mut answer = [0];
    stream.write_all(&[&length.to_be_bytes(), hello.as_bytes()].concat()).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer == *b"R"
}

/// Makes new data with the administrator's and the application's account.
fn make_data(account: &Account, data: &Path) {
    let password = NamedTempFile::new().expect("a temporary file");
    fs::write(password.path(), ADMIN_PASSWORD).expect("our own file");
    account.take(password.path());
    let mut initdb = account.command("initdb");
    initdb.arg("-D").arg(data).arg("--pwfile").arg(password.path()).args(["-U", "postgres"]);
    run(initdb.args(["-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "-N", "--wal-segsize=1"]));

    // Each line is one statement: there is no other end of a statement in this mode.
    let statements = format!(
        "CREATE ROLE {APP} LOGIN PASSWORD '{APP_PASSWORD}'\nCREATE DATABASE {APP} OWNER {APP}\n"
    );
    let mut single = account.command("postgres");
    run(single
        .arg("--single")
        .arg("-D")
        .arg(data)
        .args(["-F", "postgres"])
        .stdin(text(&statements)));
}
