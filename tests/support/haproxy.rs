//! A real HAProxy in front of a server.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::account::Account;
use super::port::free_port;
use super::process::{Server, Signals, deref_to_server};
use super::{mariadb, postgres};

/// An `haproxy` that forwards TCP connections.
#[derive(Debug)]
pub struct HaProxy {
    server: Server,
}

impl HaProxy {
    /// Starts a proxy in front of the server that listens, or will listen, on the port `behind`.
    pub fn in_front_of(behind: u16) -> Self {
        // Without checks: the proxy must not detect a dead server before its clients do.
        Self::start(&format!("server behind 127.0.0.1:{behind}"))
    }

    /// Starts a load balancer over several servers with settings that are usual for databases: each server is
    /// checked every second, and its sessions end when it is down.
    pub fn balancing(behind: &[u16]) -> Self {
        let servers = behind.iter().map(|port| {
            format!("server s{port} 127.0.0.1:{port} check inter 1s fall 2 rise 2 on-marked-down shutdown-sessions")
        });
        let mut back = vec!["balance leastconn".to_owned(), "option redispatch".to_owned()];
        back.extend(servers);
        Self::start(&back.join("\n                 "))
    }

    fn start(back: &str) -> Self {
        let account = Account::of("haproxy");
        let folder = account.folder();
        let port = free_port();
        let front = port.number();
        let socket = folder.path().join("socket");
        let config = format!(
            "global
                 stats socket {} mode 600 level admin
             defaults
                 mode tcp
                 timeout connect 2s
                 timeout client 1h
                 timeout server 1h
             frontend front
                 bind 127.0.0.1:{front}
                 default_backend back
             backend back
                 {back}\n",
            socket.display()
        );
        let file = folder.path().join("config");
        fs::write(&file, config).expect("the test owns the folder");
        account.take(&file);

        let mut command = account.command("haproxy");
        // Run in the foreground, as one process.
        command.arg("-db").arg("-f").arg(&file);
        // Connect to its control socket: a connection to the port would open a session to the server behind.
        let ready = |server: &Server| ask(server.folder(), "show info").is_ok();
        let signals = Signals { stop: "TERM", kill: "KILL" };
        Self { server: Server::start(folder, port, command, signals, ready) }
    }

    /// Returns the database's URL through the proxy, for a `MariaDB` behind it.
    pub fn mysql_url(&self) -> String {
        mariadb::url(self.port())
    }

    /// Returns the database's URL through the proxy, for a `PostgreSQL` behind it.
    pub fn postgres_url(&self) -> String {
        postgres::url(self.port())
    }

    /// Makes the proxy refuse new connections. Open sessions go on.
    pub fn refuse(&self) {
        self.order("disable frontend front");
    }

    /// Makes the proxy accept connections again.
    pub fn accept(&self) {
        self.order("enable frontend front");
    }

    /// Makes the proxy queue new connections, as it does when it has reached its `maxconn`. Open sessions go on.
    pub fn queue(&self) {
        self.order("set maxconn frontend front 1");
    }

    /// Returns the current number of sessions with clients.
    pub fn sessions(&self) -> usize {
        // The statistics of frontends (type 1) are a line of names and a line of values. The columns begin
        // with proxy, server, current queue, highest queue, current sessions.
        let statistics = self.ask("show stat -1 1 -1");
        let front = statistics.lines().nth(1).expect("the proxy has a frontend");
        front
            .split(',')
            .nth(4)
            .and_then(|count| count.parse().ok())
            .expect("the fifth column is a number")
    }

    /// Sends a command to the control socket and returns the answer.
    #[track_caller]
    pub fn ask(&self, command: &str) -> String {
        ask(self.folder(), command).expect("the proxy runs")
    }

    /// Sends a command that has no output when it succeeds.
    #[track_caller]
    fn order(&self, command: &str) {
        let answer = self.ask(command);
        assert!(answer.trim().is_empty(), "{command}: {answer}");
    }
}

deref_to_server!(HaProxy);

/// Sends a command to the control socket in `folder` and returns the answer.
fn ask(folder: &Path, command: &str) -> std::io::Result<String> {
    let mut socket = UnixStream::connect(folder.join("socket"))?;
    writeln!(socket, "{command}")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}
