//! A real `MariaDB` server.

use std::fs::File;
use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::account::Account;
use super::port::{Port, free_port};
use super::process::{Server, Signals, deref_to_server, find_program, run, text};
use super::tls::Certificate;
use super::{APP, APP_PASSWORD, template};

/// A `mariadbd` with an empty database and the user of the tests. Its only configuration file is in its
/// folder, and is empty except for Galera nodes.
#[derive(Debug)]
pub struct MariaDb {
    server: Server,
}

impl MariaDb {
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
        Self::start_with(free_port(), |_, _| vec!["--bind-address=127.0.0.1,::1".to_owned()])
    }

    /// Starts a server that refuses logins over TCP without TLS.
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

    /// Starts a server with new data and these additional settings.
    fn start_with(port: Port, settings: impl FnOnce(&Account, &Path) -> Vec<String>) -> Self {
        let account = Account::of("mysql");
        let folder = account.folder();
        unpack_data(&account, folder.path());
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
        let mut command = mariadbd(account, folder.path());
        command.arg(format!("--port={}", port.number()));
        command.arg(format!("--socket={}", folder.path().join("socket").display()));
        command.arg(format!("--pid-file={}", folder.path().join("pid").display()));
        command.arg(format!("--bind-address={}", port.address()));
        command.args([
            "--skip-name-resolve",
            "--max-connections=200",
            // A client that disconnects without logging in counts as an error.
            "--max-connect-errors=1000000",
        ]);
        command.args(settings);
        let ready = |server: &Server| greets(server, Duration::from_secs(1));
        let signals = Signals { stop: "TERM", kill: "KILL" };
        Self { server: Server::prepare(folder, port, command, signals, ready) }
    }

    /// Returns the URL of the application's database.
    pub fn url(&self) -> String {
        url_at(&self.address().to_string(), self.port())
    }

    /// Returns the number of the application's sessions on the server.
    pub fn sessions(&self) -> usize {
        let count = self.sql(&format!(
            "SELECT COUNT(*) FROM information_schema.processlist WHERE user = '{APP}'"
        ));
        count.trim().parse().expect("the answer is a number")
    }

    /// Runs statements as the administrator, and returns the answer.
    #[track_caller]
    pub fn sql(&self, statements: &str) -> String {
        run(&mut self.client(statements))
    }

    /// Runs statements as [`sql`](Self::sql) does, and returns `None` when the server is down or refuses.
    pub fn try_sql(&self, statements: &str) -> Option<String> {
        let output = self.client(statements).output().expect("the program exists, so it starts");
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

deref_to_server!(MariaDb);

/// Returns the URL of the application's database on a local port, of a server or of a proxy.
pub fn url(port: u16) -> String {
    url_at("127.0.0.1", port)
}

/// Returns the URL of the application's database on this host and port.
pub fn url_at(host: &str, port: u16) -> String {
    format!("mysql://{APP}:{APP_PASSWORD}@{host}:{port}/{APP}")
}

/// Returns whether the server sends its greeting, which comes before any login.
pub fn greets(server: &Server, patience: Duration) -> bool {
    let address = (server.address(), server.port());
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    stream.set_read_timeout(Some(patience)).expect("the timeout is not zero");
    // The greeting begins with four bytes of length and sequence number, and the version of the protocol,
    // which is 255 in an error packet.
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting).is_ok() && greeting[4] == 10
}

/// Fills an empty folder with the data of a new server.
pub(super) fn unpack_data(account: &Account, folder: &Path) {
    template::unpack("mariadb", &recipe(), account, folder, |data| make_data(account, data));
}

/// Returns all that determines the data: the program's version and the source of this file.
pub(super) fn recipe() -> String {
    run(Command::new(find_program("mariadbd")).arg("--version")) + include_str!("mariadb.rs")
}

/// Returns the path of the configuration file of a server in this folder.
pub(super) fn configuration(folder: &Path) -> PathBuf {
    folder.join("server.cnf")
}

/// Returns the command of the server with the options that shape its data and make it fast. The data have
/// to survive a crash of the server, but not of the machine.
pub(super) fn mariadbd(account: &Account, data: &Path) -> Command {
    let file = configuration(data);
    if !file.exists() {
        File::create(&file).expect("the test owns the folder");
        account.take(&file);
    }
    let mut command = account.command("mariadbd");
    command.arg(format!("--defaults-file={}", file.display()));
    command.arg(format!("--datadir={}", data.display()));
    // A starting server removes all temporary tables in its `tmpdir`, also those of other servers.
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

/// Makes new data without anonymous users and without an administrator over TCP, and with the
/// application's account.
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
