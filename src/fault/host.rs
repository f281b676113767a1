//! Failures of a login that are or may be this host's: what the client libraries report when this process
//! has no descriptors left, when this host has no network, or when it cannot resolve names.
//!
//! Only the texts of the client libraries themselves are read. A server can lack descriptors as well, and says
//! so in similar words.

use std::fmt;
use std::io;
use std::sync::Arc;

/// A failed login that shows that this host lacks something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostFailure {
    pub(crate) lack: Lack,
    /// The text of the client library, without secrets.
    pub(crate) reason: Arc<str>,
}

/// What this host lacks for a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    /// EMFILE or ENFILE.
    Descriptors,
    /// ENOBUFS or ENOMEM.
    Memory,
    Threads,
    /// EADDRNOTAVAIL. The kernel counts the ports of outgoing connections for each destination, and returns
    /// the same error where this host has no address of the kind (IPv6).
    Ports,
    /// ENETUNREACH.
    Network,
    /// The name of the peer cannot be resolved.
    Name,
    /// EHOSTUNREACH, or EPERM of a firewall on this host. It always concerns one peer.
    Way,
}

impl fmt::Display for HostFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.lack.describe(), self.reason)
    }
}

impl Lack {
    /// Recognizes a lack in the text of a client library, on one line. The text must not have been redacted:
    /// a part of a password may be a number.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        of_mysql_library(text).or_else(|| of_libpq(text))
    }

    /// Whether one login that fails in this way shows that no other login can succeed. The others may
    /// concern one peer only.
    pub(crate) fn concerns_all_peers(self) -> bool {
        matches!(self, Self::Descriptors | Self::Memory | Self::Threads)
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Descriptors => "this process has no file descriptors left (EMFILE or ENFILE)",
            Self::Memory => "this host has no memory left for sockets (ENOBUFS or ENOMEM)",
            Self::Threads => "this process cannot start a thread",
            Self::Ports => {
                "this host has no free port or no suitable address for any peer (EADDRNOTAVAIL)"
            }
            Self::Network => "this host has no route to the network of any peer (ENETUNREACH)",
            Self::Name => "this host cannot resolve the name of any peer",
            Self::Way => "this host cannot reach the peer (EHOSTUNREACH or EPERM)",
        }
    }

    /// Returns what an error number of the operating system shows.
    fn from_number(number: i32) -> Option<Self> {
        /// `EMFILE` and `ENFILE` have these numbers on every Unix, and Windows has one of its own.
        const NO_DESCRIPTORS: [i32; 3] = [24, 23, 10024];
        /// `ENOBUFS` of Linux, macOS and Windows.
        const NO_BUFFERS: [i32; 3] = [105, 55, 10055];
        if NO_DESCRIPTORS.contains(&number) {
            return Some(Self::Descriptors);
        }
        if NO_BUFFERS.contains(&number) {
            return Some(Self::Memory);
        }
        match io::Error::from_raw_os_error(number).kind() {
            io::ErrorKind::OutOfMemory => Some(Self::Memory),
            io::ErrorKind::AddrNotAvailable => Some(Self::Ports),
            io::ErrorKind::NetworkUnreachable => Some(Self::Network),
            io::ErrorKind::HostUnreachable | io::ErrorKind::PermissionDenied => Some(Self::Way),
            _ => None,
        }
    }
}

/// Recognizes the texts of MariaDB's and MySQL's libraries, which end with a number in parentheses.
fn of_mysql_library(text: &str) -> Option<Lack> {
    let (text, number) = text.trim_end().strip_suffix(')')?.rsplit_once(" (")?;
    let number = number.parse().ok()?;
    let begins = |beginnings: &[&str]| beginnings.iter().any(|words| text.starts_with(words));
    if begins(&["Unknown server host '", "Unknown MySQL server host '"]) {
        return Some(Lack::Name);
    }
    let is_of_connecting = text == "Can't create TCP/IP socket"
        || text == "Can't create UNIX socket"
        || begins(&["Can't connect to server on '", "Can't connect to MySQL server on '"]);
    Lack::from_number(number).filter(|_| is_of_connecting)
}

/// Recognizes the texts of libpq, which end with the operating system's own text.
fn of_libpq(text: &str) -> Option<Lack> {
    // Two spaces follow the severity of a server's message.
    if text.contains(":  ") {
        return None;
    }
    let is_any_of = |errors: &[&str]| errors.iter().any(|error| text.contains(error));
    if is_any_of(&[": Too many open files"]) {
        return Some(Lack::Descriptors);
    }
    let cannot_create = "could not create socket: ";
    if text.split_once(cannot_create).is_some_and(|(_, error)| {
        ["No buffer space available", "Cannot allocate memory"]
            .iter()
            .any(|text| error.starts_with(text))
    }) {
        return Some(Lack::Memory);
    }
    // A name may have several addresses, of which each may fail in its own way.
    let errors: Vec<&str> = text.split(" failed: ").skip(1).collect();
    if errors.is_empty() {
        return text.starts_with("could not translate host name ").then_some(Lack::Name);
    }
    let all_are = |words: &[&str]| {
        errors.iter().all(|error| words.iter().any(|words| error.starts_with(words)))
    };
    if all_are(&["Network is unreachable"]) {
        Some(Lack::Network)
    } else if all_are(&["Cannot assign requested address", "Can't assign requested address"]) {
        Some(Lack::Ports)
    } else if all_are(&["No route to host"]) {
        Some(Lack::Way)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn failures_of_this_host_are_recognized_in_the_texts_of_client_libraries() {
        use Lack::{Descriptors, Memory, Name, Network, Ports, Way};
        let cases = [
            ("Can't create TCP/IP socket (24)", Some(Descriptors)),
            ("Can't create TCP/IP socket (23)", Some(Descriptors)),
            ("Can't create UNIX socket (24)", Some(Descriptors)),
            ("Can't create TCP/IP socket (105)", Some(Memory)),
            ("Can't create TCP/IP socket (12)", Some(Memory)),
            // IPv6 is disabled: another peer may have an IPv4 address.
            ("Can't create TCP/IP socket (97)", None),
            ("Can't connect to server on '10.0.0.1' (99)", Some(Ports)),
            ("Can't connect to MySQL server on '10.0.0.1:3306' (99)", Some(Ports)),
            ("Can't connect to server on '10.0.0.1' (101)", Some(Network)),
            ("Can't connect to server on '10.0.0.1' (113)", Some(Way)),
            ("Can't connect to server on '10.0.0.1' (1)", Some(Way)),
            ("Can't connect to server on '10.0.0.1' (115)", None),
            ("Can't connect to MySQL server on '10.0.0.1:3306' (111)", None),
            ("Can't connect to local server through socket '/run/x (24)' (2)", None),
            ("Unknown server host 'db0' (-2)", Some(Name)),
            ("Unknown server host 'db0' (-11)", Some(Name)),
            ("Unknown MySQL server host 'db0' (-3)", Some(Name)),
            // From servers.
            ("Can't create a new thread (errno 11)", None),
            (
                "Out of resources when opening file './x' (Errcode: 24 \"Too many open files\")",
                None,
            ),
            ("Host '10.0.0.1' is blocked (24)", None),
            ("could not look up local user ID 0: Too many open files", Some(Descriptors)),
            ("could not create socket: Too many open files in system", Some(Descriptors)),
            (
                "connection to server at \"db\" (10.0.0.1), port 5432 failed: could not create socket: Too \
                 many open files",
                Some(Descriptors),
            ),
            ("could not create socket: No buffer space available", Some(Memory)),
            (
                "connection to server at \"db\" (10.0.0.1), port 5432 failed: FATAL:  could not open file \
                 \"base/1/2\": Too many open files",
                None,
            ),
            (
                "connection to server at \"db\" (10.0.0.1), port 5432 failed: Network is unreachable, Is \
                 the server running on that host and accepting TCP/IP connections?",
                Some(Network),
            ),
            (
                "connection to server at \"db\" (10.0.0.1), port 5432 failed: Cannot assign requested \
                 address, Is the server running on that host and accepting TCP/IP connections?",
                Some(Ports),
            ),
            (
                "connection to server at \"db\" (::1), port 5432 failed: Network is unreachable, Is the \
                 server running on that host and accepting TCP/IP connections?, connection to server at \
                 \"db\" (127.0.0.1), port 5432 failed: Connection refused, Is the server running on that \
                 host and accepting TCP/IP connections?",
                None,
            ),
            (
                "connection to server at \"db\" (10.0.0.1), port 5432 failed: No route to host, Is the \
                 server running on that host and accepting TCP/IP connections?",
                Some(Way),
            ),
            (
                "could not translate host name \"db\" to address: Temporary failure in name resolution",
                Some(Name),
            ),
            // SQLite says the same for a file that is missing, so this remains the peer's.
            ("unable to open database file", None),
        ];
        for (text, expected) in cases {
            assert_eq!(Lack::from_text(text), expected, "{text}");
        }
    }
}
