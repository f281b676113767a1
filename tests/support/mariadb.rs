//! A real `MariaDB` server.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::account::Account;
use super::port::{Port, free_port};
use super::process::{Server, Signals, find_program, run, text};
use super::tls::Certificate;
use super::{APP, APP_PASSWORD, template};

/// `mariadbd` with an empty database and a user of its own. It reads no configuration file but one in
/// its folder, which is empty for most.
#[derive(Debug)]
pub struct MariaDb {
    server: Server,
}

impl MariaDb {
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
        Self::start_with(free_port(), |_, _| vec!["--bind-address=127.0.0.1,::1".to_owned()])
    }

    /// Starts a server that lets nobody in over TCP without TLS.
    pub fn start_with_tls() -> Self {
        Self::start_with(free_port(), |account, folder| {
            let Certificate { certificate, key } = Certificate::make(account, folder);
            vec![
                format!("--ssl-cert={}", certificate.display()),
                format!("--ssl-key={}", key.display()),
                "--require-secure-transport=ON".to_owned(),
            ]
        })
    }

    /// Starts a server with new data, and with these settings besides.
    fn start_with(port: Port, settings: impl FnOnce(&Account, &Path) -> Vec<String>) -> Self {
        let account = Account::of("mysql");
        let folder = account.folder();
        unpack_data(&account, folder.path());
        let settings = settings(&account, folder.path());
        let mut server = Self::prepare_in(&account, folder, port, &settings);
        server.restart();
        server
    }

    /// A server that is not started yet, on the data that are in this folder.
    pub(super) fn prepare_in(
        account: &Account,
        folder: TempDir,
        port: Port,
        settings: &[String],
    ) -> Self {
        let mut command = mariadbd(account, folder.path());
        command.arg(format!("--port={}", port.number()));
        command.arg(format!("--socket={}", folder.path().join("socket").display()));
        command.arg(format!("--pid-file={}", folder.path().join("pid").display()));
        command.arg(format!("--bind-address={}", port.address()));
        command.args([
            "--skip-name-resolve",
            "--max-connections=200",
            // A port check that hangs up without logging in counts as an error.
            "--max-connect-errors=1000000",
        ]);
        command.args(settings);
        let ready =
            |server: &Server| greets_at(server.address(), server.port(), Duration::from_secs(1));
        let signals = Signals { stop: "TERM", kill: "KILL" };
        Self { server: Server::prepare(folder, port, command, signals, ready) }
    }

    /// Where the application finds its database.
    pub fn url(&self) -> String {
        url_at(&self.address().to_string(), self.port())
    }

    /// How many sessions of the application the server has.
    pub fn sessions(&self) -> usize {
        let count = self.sql(&format!(
            "SELECT COUNT(*) FROM information_schema.processlist WHERE user = '{APP}'"
        ));
        count.trim().parse().expect("a count")
    }

    /// Has the server run statements as its administrator, and returns its answer.
    #[track_caller]
    pub fn sql(&self, statements: &str) -> String {
        run(&mut self.client(statements))
    }

    /// As [`sql`](Self::sql), of a server that may be down or refuse.
    pub fn try_sql(&self, statements: &str) -> Option<String> {
        let output = self.client(statements).output().expect("it was found, so it starts");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn client(&self, statements: &str) -> Command {
        let mut client = Command::new(find_program("mariadb"));
        client.arg("--no-defaults");
        client.arg(format!("--socket={}", self.folder().join("socket").display()));
        client.args(["--user=root", "--connect-timeout=10", "--batch", "--skip-column-names"]);
        client.arg("--execute").arg(statements);
        client
    }
}

/// The life of the process is the same for all servers: see [`Server`].
impl Deref for MariaDb {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for MariaDb {
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
    format!("mysql://{APP}:{APP_PASSWORD}@{host}:{port}/{APP}")
}

/// Whether a server on `port` says hello: it speaks first, before any login.
pub fn greets(port: u16, patience: Duration) -> bool {
    greets_at(Ipv4Addr::LOCALHOST, port, patience)
}

fn greets_at(address: Ipv4Addr, port: u16, patience: Duration) -> bool {
    let Ok(mut stream) = TcpStream::connect((address, port)) else { return false };
    stream.set_read_timeout(Some(patience)).expect("longer than nothing");
    // Four bytes of length and sequence, then the protocol's version; an error has 255 there.
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting).is_ok() && greeting[4] == 10
}

/// Fills an empty folder with the data of a new server.
pub(super) fn unpack_data(account: &Account, folder: &Path) {
    template::unpack("mariadb", &recipe(), account, folder, |data| make_data(account, data));
}

/// Also part of the archive's name: the program's version, and all of this file.
pub(super) fn recipe() -> String {
    run(Command::new(find_program("mariadbd")).arg("--version")) + include_str!("mariadb.rs")
}

/// The configuration file of a server in this folder.
pub(super) fn configuration(folder: &Path) -> PathBuf {
    folder.join("server.cnf")
}

/// The server program with what shapes its data and what makes it quick. The data need to outlive
/// the server's death, but not the machine's.
pub(super) fn mariadbd(account: &Account, data: &Path) -> Command {
    let file = configuration(data);
    if !file.exists() {
        File::create(&file).expect("our own folder");
        account.take(&file);
    }
    let mut command = account.command("mariadbd");
    command.arg(format!("--defaults-file={}", file.display()));
    command.arg(format!("--datadir={}", data.display()));
    // A server that starts removes the temporary tables that it finds there, also those of others.
    command.arg(format!("--tmpdir={}", data.display()));
    command.args([
        "--innodb-log-file-size=4M",
        "--innodb-buffer-pool-size=16M",
        "--innodb-use-native-aio=OFF",
        "--innodb-flush-log-at-trx-commit=2",
        "--performance-schema=OFF",
        "--debug-no-sync",
    ]);
    command
}

/// Makes new data: no anonymous users, no administrator over TCP, and the application's account.
fn make_data(account: &Account, data: &Path) {
    let mut install = account.command("mariadb-install-db");
    install.arg("--no-defaults").arg(format!("--datadir={}", data.display()));
    run(install.args([
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        "--innodb-log-file-size=4M",
    ]));

    let statements = format!(
        "DELETE FROM mysql.global_priv WHERE user = '' OR host <> 'localhost';
         FLUSH PRIVILEGES;
         CREATE DATABASE {APP};
         CREATE USER {APP}@'%' IDENTIFIED BY '{APP_PASSWORD}';
         GRANT ALL ON {APP}.* TO {APP}@'%';"
    );
    run(mariadbd(account, data).arg("--bootstrap").stdin(text(&statements)));
}
