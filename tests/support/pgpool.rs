//! A real pgpool-II in front of a PostgreSQL server.

use std::fs;
use std::time::Duration;

use super::account::Account;
use super::port::free_port;
use super::postgres;
use super::process::{Server, Signals, deref_to_server};
use super::{APP, APP_PASSWORD};

/// A `pgpool` with one server behind it.
#[derive(Debug)]
pub struct Pgpool {
    server: Server,
}

impl Pgpool {
    /// Starts a pooler in front of the server on the port `behind`, with these additional settings.
    pub fn in_front_of(behind: u16, settings: &[&str]) -> Self {
        let account = Account::of("postgres");
        let folder = account.folder();
        let [port, control] = [free_port(), free_port()];
        let path = |name: &str| folder.path().join(name);
        let config_text = format!(
            "backend_clustering_mode = 'raw'
             listen_addresses = '127.0.0.1'
             port = {}
             pcp_listen_addresses = ''
             pcp_port = {}
             unix_socket_directories = '{folder}'
             pcp_socket_dir = '{folder}'
             pid_file_name = '{folder}/pid'
             logdir = '{folder}'
             backend_hostname0 = '127.0.0.1'
             backend_port0 = {behind}
             num_init_children = 16
             enable_pool_hba = on
             pool_passwd = '{folder}/passwords'
             {}\n",
            port.number(),
            control.number(),
            settings.join("\n"),
            folder = folder.path().display(),
        );
        let files = [
            ("config", config_text),
            ("hba", "host all all 127.0.0.1/32 scram-sha-256\n".to_owned()),
            ("passwords", format!("{APP}:TEXT{APP_PASSWORD}\n")),
            ("pcp", String::new()),
        ];
        for (name, text) in &files {
            fs::write(path(name), text).expect("the test owns the folder");
            account.take(&path(name));
        }
        let mut command = account.command("pgpool");
        // Run in the foreground.
        command.arg("-n").arg("-f").arg(path("config"));
        command.arg("-a").arg(path("hba")).arg("-F").arg(path("pcp"));
        let ready = |server: &Server| postgres::greets(server, Duration::from_secs(1));
        let signals = Signals { stop: "TERM", kill: "QUIT" };
        Self { server: Server::start(folder, port, command, signals, ready) }
    }

    /// Returns the URL of the application's database through the pooler.
    pub fn url(&self) -> String {
        postgres::url(self.port())
    }
}

deref_to_server!(Pgpool);
