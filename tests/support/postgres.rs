//! A real `PostgreSQL` server.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::{NamedTempFile, TempDir};

use super::account::Account;
use super::port::{Port, free_port};
use super::process::{Server, Signals, deref_to_server, find_program, run, text};
use super::tls::Certificate;
use super::{APP, APP_PASSWORD, template};

/// The administrator's password. Every login needs one.
const ADMIN_PASSWORD: &str = "s3cret-admin";

/// A `postgres` with an empty database and the user of the tests.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
}

impl Postgres {
    /// Starts a server with new data.
    pub fn start() -> Self {
        Self::start_with(free_port(), |_, _| Vec::new())
    }

    /// Starts a server with new data on this port.
    pub fn start_on(port: Port) -> Self {
        Self::start_with(port, |_, _| Vec::new())
    }

    /// Starts a server that listens on IPv6 as well.
    pub fn start_on_both() -> Self {
        Self::start_with(free_port(), |_, _| vec!["listen_addresses=127.0.0.1,::1".to_owned()])
    }

    /// Starts a server that supports TLS.
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

    /// Starts a server with new data and these additional settings.
    fn start_with(port: Port, settings: impl FnOnce(&Account, &Path) -> Vec<String>) -> Self {
        let account = Account::of("postgres");
        let folder = account.folder();
        // The program's version and the source of this file determine the data.
        let version = run(Command::new(find_program("postgres")).arg("--version"));
        let recipe = version + include_str!("postgres.rs");
        template::unpack("postgres", &recipe, &account, folder.path(), |data| {
            make_data(&account, data);
        });
        let settings = settings(&account, folder.path());
        let mut server = Self::prepare_in(&account, folder, port, &settings);
        server.restart();
        server
    }

    /// Prepares a server on the data in this folder without starting it.
    pub(super) fn prepare_in(
        account: &Account,
        folder: TempDir,
        port: Port,
        settings: &[String],
    ) -> Self {
        let mut command = account.command("postgres");
        command.arg("-D").arg(folder.path()).arg("-k").arg(folder.path());
        command.arg("-p").arg(port.number().to_string());
        command.arg("-c").arg(format!("listen_addresses={}", port.address()));
        // The data have to survive a crash of the server, but not of the machine.
        for setting in [
            "max_connections=200",
            "shared_buffers=16MB",
            "dynamic_shared_memory_type=mmap",
            "autovacuum=off",
            "wal_retrieve_retry_interval=200ms",
            "fsync=off",
        ] {
            command.args(["-c", setting]);
        }
        for setting in settings {
            command.arg("-c").arg(setting);
        }
        let ready = |server: &Server| greets(server, Duration::from_secs(1));
        // `KILL` would leave shared memory and unreaped sessions behind. `QUIT` makes the server remove only
        // these; its data stay as after a crash.
        let signals = Signals { stop: "INT", kill: "QUIT" };
        Self { server: Server::prepare(folder, port, command, signals, ready) }
    }

    /// Returns the URL of the application's database.
    pub fn url(&self) -> String {
        url_at(&self.address().to_string(), self.port())
    }

    /// Returns the number of the application's sessions on the server.
    pub fn sessions(&self) -> usize {
        let count =
            self.sql(&format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{APP}'"));
        count.trim().parse().expect("the answer is a number")
    }

    /// Runs statements as the administrator, and returns the answer.
    #[track_caller]
    pub fn sql(&self, statements: &str) -> String {
        self.sql_in("postgres", statements)
    }

    /// Runs statements in this database, as [`sql`](Self::sql) does.
    #[track_caller]
    pub fn sql_in(&self, database: &str, statements: &str) -> String {
        let mut client = Command::new(find_program("psql"));
        self.administers(&mut client).env("PGCONNECT_TIMEOUT", "10");
        client.args(["-d", database, "-v", "ON_ERROR_STOP=1", "-AtX", "-c"]);
        run(client.arg(statements))
    }

    /// Adds what a client of the administrator needs to connect to this server.
    pub(super) fn administers<'a>(&self, client: &'a mut Command) -> &'a mut Command {
        client.env("PGPASSWORD", ADMIN_PASSWORD).args(["-U", "postgres"]);
        client.arg("-h").arg(self.folder()).arg("-p").arg(self.port().to_string())
    }
}

deref_to_server!(Postgres);

/// Returns the URL of the application's database on a local port, of a server or of a proxy.
pub fn url(port: u16) -> String {
    url_at("127.0.0.1", port)
}

/// Returns the URL of the application's database on this host and port.
pub fn url_at(host: &str, port: u16) -> String {
    format!("postgres://{APP}:{APP_PASSWORD}@{host}:{port}/{APP}")
}

/// Returns whether the server asks for the application's password.
///
/// In this protocol the client sends the first message. A server that is still starting answers with an
/// error.
pub fn greets(server: &Server, patience: Duration) -> bool {
    let address = (server.address(), server.port());
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    stream.set_read_timeout(Some(patience)).expect("the timeout is not zero");
    // A startup message has its length, the version of the protocol (3.0), and names and values that each
    // end with a zero.
    let hello = format!("\0\x03\0\0user\0{APP}\0database\0{APP}\0\0");
    let length = u32::try_from(hello.len() + 4).expect("the message is short");
    let mut answer = [0];
    stream.write_all(&[&length.to_be_bytes(), hello.as_bytes()].concat()).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer == *b"R"
}

/// Makes new data with the administrator's and the application's account.
fn make_data(account: &Account, data: &Path) {
    let password = NamedTempFile::new().expect("a temporary file can be created");
    fs::write(password.path(), ADMIN_PASSWORD).expect("the temporary file is writable");
    account.take(password.path());
    let mut initdb = account.command("initdb");
    initdb.arg("-D").arg(data).arg("--pwfile").arg(password.path()).args(["-U", "postgres"]);
    run(initdb.args(["-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "-N", "--wal-segsize=1"]));

    // In single-user mode each line is one statement.
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
