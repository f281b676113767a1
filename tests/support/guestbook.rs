//! The application of `examples/guestbook`, running.

use std::net::{Ipv4Addr, TcpStream};

use super::account::Account;
use super::http::Client;
use super::port::free_port;
use super::process::{Server, Signals};
use super::program;

/// A guest book with a temporary folder of its own.
#[derive(Debug)]
pub struct GuestBook {
    server: Server,
}

impl GuestBook {
    /// Starts the guest book with its default databases, which are `SQLite`.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// Starts the guest book with these database settings, in Rocket's notation.
    pub fn start_with(databases: Option<&str>) -> Self {
        let account = Account::ourselves();
        let port = free_port();
        let program = program("guestbook", "guestbook");
        let mut command = account.command(program.to_str().expect("the path is UTF-8"));
        command.env("ROCKET_PORT", port.number().to_string()).env("ROCKET_CLI_COLORS", "false");
        command.envs(databases.map(|databases| ("ROCKET_DATABASES", databases)));
        let ready =
            |server: &Server| TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).is_ok();
        let signals = Signals { stop: "TERM", kill: "KILL" };
        Self { server: Server::start(account.folder(), port, command, signals, ready) }
    }

    /// Returns the URL of the site.
    pub fn site(&self) -> String {
        format!("http://localhost:{}", self.server.port())
    }

    pub fn visitor(&self) -> Client {
        Client::of(&self.site())
    }

    /// Returns all that the application has logged.
    pub fn log(&self) -> String {
        self.server.log()
    }
}
