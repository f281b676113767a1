//! A real proxy in front of a server.

use std::fs;
use std::io::{Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::account::Account;
use super::port::free_port;
use super::process::{Server, Signals};
use super::{mariadb, postgres};

/// `haproxy` that passes TCP connections on to one server.
#[derive(Debug)]
pub struct HaProxy {
    server: Server,
}

impl HaProxy {
    /// Starts a proxy in front of whatever listens, or will listen, on the port `behind`.
    pub fn in_front_of(behind: u16) -> Self {
        // No checks: the proxy must not notice a dead server before its clients do.
        Self::start(&format!("server behind 127.0.0.1:{behind}"))
    }

    /// Starts a load balancer over several servers, as one is set up in front of a database: each is
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
        fs::write(&file, config).expect("our own folder");
        account.take(&file);

        let mut command = account.command("haproxy");
        // In the foreground, as one process.
        command.arg("-db").arg("-f").arg(&file);
        // Its own socket, and not the port: that would open a session to the server behind.
        let ready = |server: &Server| ask(server.folder(), "show info").is_ok();
        let signals = Signals { stop: "TERM", kill: "KILL" };
        Self { server: Server::start(folder, port, command, signals, ready) }
    }

    /// The database's URL through the proxy, if the server behind is a `MariaDB`.
    pub fn mysql_url(&self) -> String {
        mariadb::url(self.port())
    }

    /// The database's URL through the proxy, if the server behind is a `PostgreSQL`.
    pub fn postgres_url(&self) -> String {
        postgres::url(self.port())
    }

    /// Refuses new connections from now on. Open sessions go on.
    pub fn refuse(&self) {
        self.order("disable frontend front");
    }

    /// Accepts connections again.
    pub fn accept(&self) {
        self.order("enable frontend front");
    }

    /// How many sessions it has with clients at the moment.
    pub fn sessions(&self) -> usize {
        // Of all frontends (type 1): a line of names, then one of values. Statistics begin with
        // proxy, server, current and highest queue, current sessions.
        let statistics = self.ask("show stat -1 1 -1");
        let front = statistics.lines().nth(1).expect("there is one frontend");
        front.split(',').nth(4).and_then(|count| count.parse().ok()).expect("a count")
    }

    /// What its administrator gets for an answer.
    #[track_caller]
    pub fn ask(&self, question: &str) -> String {
        ask(self.folder(), question).expect("it runs")
    }

    /// Gives an order, which is obeyed without a word.
    #[track_caller]
    fn order(&self, order: &str) {
        let answer = self.ask(order);
        assert!(answer.trim().is_empty(), "{order}: {answer}");
    }
}

/// The life of the process is the same for all servers: see [`Server`].
impl Deref for HaProxy {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for HaProxy {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// Asks the proxy that lives in `folder` over its administrator's socket.
fn ask(folder: &Path, question: &str) -> std::io::Result<String> {
    let mut socket = UnixStream::connect(folder.join("socket"))?;
    writeln!(socket, "{question}")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}
