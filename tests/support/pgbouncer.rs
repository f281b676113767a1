//! A real PgBouncer in front of a PostgreSQL server.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::account::Account;
use super::port::free_port;
use super::postgres;
use super::process::{Server, Signals, deref_to_server, find_program, run};
use super::{APP, APP_PASSWORD};

/// The user and the password of the administrator.
const ADMIN: &str = "admin";
const ADMIN_PASSWORD: &str = "s3cret-admin";

/// A `pgbouncer` with transaction pooling, the mode that poolers are used for.
#[derive(Debug)]
pub struct PgBouncer {
    server: Server,
}

impl PgBouncer {
    /// Starts a pooler in front of the server on the port `behind`, with these additional settings.
    pub fn in_front_of(behind: u16, settings: &[&str]) -> Self {
        let account = Account::of("postgres");
        let folder = account.folder();
        let port = free_port();
        let users = folder.path().join("users");
        let users_text =
            format!("\"{APP}\" \"{APP_PASSWORD}\"\n\"{ADMIN}\" \"{ADMIN_PASSWORD}\"\n");
        let config = folder.path().join("config");
        let config_text = format!(
            "[databases]
             {APP} = host=127.0.0.1 port={behind}
             [pgbouncer]
             listen_addr = 127.0.0.1
             listen_port = {}
             unix_socket_dir = {}
             auth_type = scram-sha-256
             auth_file = {}
             admin_users = {ADMIN}
             pool_mode = transaction
             {}\n",
            port.number(),
            folder.path().display(),
            users.display(),
            settings.join("\n"),
        );
        let unindented: Vec<&str> = config_text.lines().map(str::trim).collect();
        for (file, text) in [(&users, &*users_text), (&config, &*unindented.join("\n"))] {
            fs::write(file, text).expect("the test owns the folder");
            account.take(file);
        }
        let mut command = account.command("pgbouncer");
        command.arg(&config);
        let ready = |server: &Server| postgres::greets(server, Duration::from_secs(1));
        // With INT it ends when all servers are free: not before their transactions have ended.
        let signals = Signals { stop: "INT", kill: "KILL" };
        Self { server: Server::start(folder, port, command, signals, ready) }
    }

    /// Returns the setting with which the pooler does not track prepared statements, if it would.
    pub fn without_statements() -> Option<&'static str> {
        let version = run(Command::new(find_program("pgbouncer")).arg("--version"));
        let minor = version.split('.').nth(1).and_then(|minor| minor.parse().ok());
        // "PgBouncer 1.21.0" on the first line.
        minor.is_none_or(|minor: u32| minor >= 21).then_some("max_prepared_statements = 0")
    }

    /// Returns the URL of the application's database through the pooler.
    pub fn url(&self) -> String {
        postgres::url(self.port())
    }

    /// Returns the current number of the application's sessions with the pooler.
    pub fn clients(&self) -> usize {
        let clients = self.order("SHOW CLIENTS");
        // The columns begin with type, user, database.
        clients.lines().filter(|line| line.split('|').nth(1) == Some(APP)).count()
    }

    /// Sends a command to the administrator's console, and returns the answer.
    #[track_caller]
    pub fn order(&self, command: &str) -> String {
        let mut client = Command::new(find_program("psql"));
        client.env("PGPASSWORD", ADMIN_PASSWORD).env("PGCONNECT_TIMEOUT", "10");
        client.arg("-h").arg(self.folder()).arg("-p").arg(self.port().to_string());
        client.args(["-U", ADMIN, "-d", "pgbouncer", "-AtX", "-c", command]);
        run(&mut client)
    }
}

deref_to_server!(PgBouncer);
