//! The host of a URL: its name, if it can be resolved, and its replacement by one of its addresses.

use std::net::IpAddr;

use super::conninfo::{is_conninfo, parse_conninfo};
use super::uri::{Parameter, Uri, percent_decoded};
use crate::url::dialect::Dialect;

/// libpq's parameter for an address. The host keeps its name, by which libpq verifies certificates and
/// looks up passwords.
const ADDRESS: &str = "hostaddr";

/// The parameters that make libpq connect to a server regardless of the host.
const OVERRIDES: [&str; 2] = [ADDRESS, "service"];

/// The host name that MySQL's client libraries replace with their default Unix socket.
const SOCKET_HOST: &str = "localhost";

/// The default port of MySQL, and so of the server behind the default socket.
const DEFAULT_PORT: u16 = 3306;

/// Returns the name of the host. Returns `None` for an address, a path, several hosts, or no host.
pub(super) fn host_name(url: &str, dialect: Dialect) -> Option<String> {
    let host = if uses_conninfo(url, dialect) {
        let settings = parse_conninfo(url)?;
        // libpq uses the last value of a repeated key.
        let last = |wanted: &str| settings.iter().rfind(|(key, _)| key == wanted);
        if OVERRIDES.into_iter().any(|key| last(key).is_some()) {
            return None;
        }
        last("host")?.1.clone()
    } else {
        let uri = Uri::parse(url).ok()?;
        let [host] = &uri.hosts[..] else { return None };
        let host = percent_decoded(without_port(host));
        let last = |wanted: &str| uri.parameters.iter().rfind(|parameter| parameter.key == wanted);
        match dialect.or_from_scheme(&uri.scheme) {
            Dialect::Sqlite => return None,
            Dialect::MySql if host == SOCKET_HOST || last("unix_socket").is_some() => return None,
            Dialect::Postgres if OVERRIDES.into_iter().any(|key| last(key).is_some()) => {
                return None;
            }
            Dialect::Postgres => {
                let given = last("host")
                    .and_then(|parameter| parameter.value.as_deref())
                    .map(percent_decoded);
                given.unwrap_or(host)
            }
            Dialect::MySql | Dialect::Other => host,
        }
    };
    let is_name = !host.is_empty() && !host.contains([':', '/', '@', ',', '[']);
    (is_name && host.parse::<IpAddr>().is_err()).then_some(host)
}

/// Whether the client library connects to a Unix socket, as far as the URL decides that.
pub(super) fn is_unix_socket(url: &str, dialect: Dialect) -> bool {
    let is_path = |host: &str| host.split(',').all(|host| host.starts_with(['/', '@']));
    if uses_conninfo(url, dialect) {
        let settings = parse_conninfo(url).unwrap_or_default();
        let last = |wanted: &str| settings.iter().rfind(|(key, _)| key == wanted);
        let is_overridden = OVERRIDES.into_iter().any(|key| last(key).is_some());
        return cfg!(unix) && !is_overridden && last("host").is_some_and(|(_, host)| is_path(host));
    }
    let Ok(uri) = Uri::parse(url) else { return false };
    let [host] = &uri.hosts[..] else { return false };
    let host = percent_decoded(without_port(host));
    let last = |wanted: &str| uri.parameters.iter().rfind(|parameter| parameter.key == wanted);
    cfg!(unix)
        && match dialect.or_from_scheme(&uri.scheme) {
            Dialect::MySql => host.is_empty() || host == SOCKET_HOST,
            Dialect::Postgres if OVERRIDES.into_iter().any(|key| last(key).is_some()) => false,
            Dialect::Postgres => {
                let given = last("host").and_then(|parameter| parameter.value.as_deref());
                is_path(&given.map_or(host, percent_decoded))
            }
            Dialect::Sqlite | Dialect::Other => false,
        }
}

/// Returns the TCP port to which the client library connects, as far as the URL decides that.
pub(super) fn port(url: &str, dialect: Dialect) -> Option<u16> {
    if uses_conninfo(url, dialect) {
        let settings = parse_conninfo(url)?;
        let last = |wanted: &str| settings.iter().rfind(|(key, _)| key == wanted);
        return last("service").map_or_else(|| last("port")?.1.trim().parse().ok(), |_| None);
    }
    let uri = Uri::parse(url).ok()?;
    let [host] = &uri.hosts[..] else { return None };
    let given = host[without_port(host).len()..].strip_prefix(':');
    match dialect.or_from_scheme(&uri.scheme) {
        Dialect::MySql => given.map_or(Some(DEFAULT_PORT), |port| port.parse().ok()),
        // Other parameters and the environment may name another port.
        Dialect::Postgres if uri.parameters.iter().all(|given| given.key != "port") => {
            given?.parse().ok()
        }
        Dialect::Postgres | Dialect::Sqlite | Dialect::Other => None,
    }
}

/// Whether the client library ignores the port of a MySQL URL, because it connects to the Unix socket.
pub(super) fn ignores_port(uri: &Uri) -> bool {
    cfg!(unix)
        && uri
            .parameter("unix_socket")
            .and_then(|parameter| parameter.value.as_deref())
            .is_none_or(str::is_empty)
        && uri.hosts.iter().any(|host| {
            let name = without_port(host);
            let port =
                host[name.len()..].strip_prefix(':').and_then(|port| port.parse::<u16>().ok());
            percent_decoded(name) == SOCKET_HOST && port.is_some_and(|port| port != DEFAULT_PORT)
        })
}

/// Returns the URL with this address. The host of the URL must be a name.
pub(super) fn at_address(url: &str, dialect: Dialect, address: IpAddr) -> String {
    if uses_conninfo(url, dialect) {
        return format!("{url} {ADDRESS}={address}");
    }
    let Ok(mut uri) = Uri::parse(url) else { return url.to_owned() };
    if dialect.or_from_scheme(&uri.scheme) == Dialect::Postgres {
        let value = Some(address.to_string());
        uri.parameters.push(Parameter { key: ADDRESS.to_owned(), value });
    } else {
        for host in &mut uri.hosts {
            let port = &host[without_port(host).len()..];
            *host = match address {
                IpAddr::V4(address) => format!("{address}{port}"),
                IpAddr::V6(address) => format!("[{address}]{port}"),
            };
        }
    }
    uri.to_string()
}

/// Whether a host has characters with which MariaDB's client library separates options: that library reads
/// a host with a `;` or a `=` as a list of options.
pub(super) fn has_options(uri: &Uri) -> bool {
    uri.hosts.iter().any(|host| percent_decoded(host).contains(['=', ';', '{', '}']))
}

/// Whether a host is an IPv6 address.
pub(super) fn is_ipv6(uri: &Uri) -> bool {
    uri.hosts.iter().any(|host| host.starts_with('['))
}

/// Gives this option to MariaDB's client library, in the host of a MySQL URL. diesel has no parameter for it.
pub(super) fn add_option(uri: &mut Uri, option: &str) {
    for host in &mut uri.hosts {
        let (name, port) = host.split_at(without_port(host).len());
        *host = format!("host={name};{option}{port}");
    }
}

fn uses_conninfo(url: &str, dialect: Dialect) -> bool {
    dialect == Dialect::Postgres && is_conninfo(url)
}

fn without_port(host: &str) -> &str {
    let end = if host.starts_with('[') { host.find("]:").map(|at| at + 1) } else { host.find(':') };
    &host[..end.unwrap_or(host.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "10.0.0.7";
    const V6: &str = "2001:db8::7";

    #[test]
    fn host_name_is_found_and_replaced_by_an_address() {
        // The URL, its host's name, and the URL at each of the two addresses.
        let cases = [
            (
                Dialect::MySql,
                "mysql://app:x@db.example:3307/shop?ssl_ca=/ca",
                "db.example",
                "mysql://app:x@10.0.0.7:3307/shop?ssl_ca=/ca",
                "mysql://app:x@[2001:db8::7]:3307/shop?ssl_ca=/ca",
            ),
            (Dialect::MySql, "mysql://db", "db", "mysql://10.0.0.7", "mysql://[2001:db8::7]"),
            (
                Dialect::Other,
                "mysql://db/shop",
                "db",
                "mysql://10.0.0.7/shop",
                "mysql://[2001:db8::7]/shop",
            ),
            (Dialect::Other, "x://a@db:1", "db", "x://a@10.0.0.7:1", "x://a@[2001:db8::7]:1"),
            (
                Dialect::Postgres,
                "postgres://app:x@db:5433/shop?sslmode=verify-full",
                "db",
                "postgres://app:x@db:5433/shop?sslmode=verify-full&hostaddr=10.0.0.7",
                "postgres://app:x@db:5433/shop?sslmode=verify-full&hostaddr=2001:db8::7",
            ),
            (
                Dialect::Other,
                "postgresql://db",
                "db",
                "postgresql://db?hostaddr=10.0.0.7",
                "postgresql://db?hostaddr=2001:db8::7",
            ),
            (
                Dialect::Postgres,
                "postgres:///shop?host=db",
                "db",
                "postgres:///shop?host=db&hostaddr=10.0.0.7",
                "postgres:///shop?host=db&hostaddr=2001:db8::7",
            ),
            (
                Dialect::Postgres,
                "host = db  password='host=a \\' b' user=x\\ y",
                "db",
                "host = db  password='host=a \\' b' user=x\\ y hostaddr=10.0.0.7",
                "host = db  password='host=a \\' b' user=x\\ y hostaddr=2001:db8::7",
            ),
            (
                Dialect::Postgres,
                "host=/run host='db'",
                "db",
                "host=/run host='db' hostaddr=10.0.0.7",
                "host=/run host='db' hostaddr=2001:db8::7",
            ),
        ];
        for (dialect, url, name, at_v4, at_v6) in cases {
            assert_eq!(host_name(url, dialect).as_deref(), Some(name), "{dialect:?} {url}");
            for (address, expected) in [(V4, at_v4), (V6, at_v6)] {
                let address = address.parse().expect("the constant is an address");
                let at = at_address(url, dialect, address);
                assert_eq!(at, expected, "{dialect:?} {url}");
            }
        }
    }

    #[test]
    #[cfg(unix)]
    fn unix_sockets_are_recognized_where_the_url_decides() {
        let cases = [
            (Dialect::MySql, "mysql://localhost/shop", true),
            (Dialect::MySql, "mysql://app:x@localhost/shop?unix_socket=/run/mysqld.sock", true),
            (Dialect::Other, "mysql://localhost/shop", true),
            // The libraries use the socket for `localhost` only.
            (Dialect::MySql, "mysql://db/shop?unix_socket=/run/mysqld.sock", false),
            (Dialect::MySql, "mysql://127.0.0.1/shop", false),
            (Dialect::Postgres, "postgres://%2Frun%2Fpostgresql/shop", true),
            (Dialect::Postgres, "postgres:///shop?host=/run/postgresql", true),
            (Dialect::Postgres, "host=/run/postgresql dbname=shop", true),
            (Dialect::Postgres, "host=@abstract", true),
            (Dialect::Postgres, "postgres:///shop?host=/run/postgresql,db", false),
            (Dialect::Postgres, "host=/run/postgresql hostaddr=10.0.0.1", false),
            (Dialect::Postgres, "postgres://localhost/shop", false),
            // The environment decides.
            (Dialect::Postgres, "postgres:///shop", false),
            (Dialect::Postgres, "dbname=shop", false),
            (Dialect::Other, "anything at all", false),
        ];
        for (dialect, url, expected) in cases {
            assert_eq!(is_unix_socket(url, dialect), expected, "{dialect:?} {url}");
        }
    }

    #[test]
    fn port_is_known_where_the_url_decides() {
        let cases = [
            (Dialect::MySql, "mysql://db:3307/shop", Some(3307)),
            (Dialect::MySql, "mysql://[::1]:3307/shop", Some(3307)),
            (Dialect::MySql, "mysql://db/shop", Some(3306)),
            (Dialect::Other, "mysql://db/shop", Some(3306)),
            (Dialect::Postgres, "postgres://db:5433/shop", Some(5433)),
            (Dialect::Postgres, "host=db port=5433", Some(5433)),
            // The environment or another parameter decides.
            (Dialect::Postgres, "postgres://db/shop", None),
            (Dialect::Postgres, "postgres://db:5433/shop?port=5434", None),
            (Dialect::Postgres, "host=db", None),
            (Dialect::Postgres, "host=db port=5433 service=shop", None),
            (Dialect::Postgres, "host=db port=5433,5434", None),
            (Dialect::Sqlite, "file://db:1/shop.db", None),
            (Dialect::Other, "anything at all", None),
        ];
        for (dialect, url, expected) in cases {
            assert_eq!(port(url, dialect), expected, "{dialect:?} {url}");
        }
    }

    #[test]
    fn hosts_that_cannot_be_resolved_have_no_name() {
        let cases = [
            (Dialect::MySql, "mysql://127.0.0.1:3306/shop"),
            (Dialect::MySql, "mysql://[::1]:3306/shop"),
            (Dialect::MySql, "mysql://[::1]/shop"),
            (Dialect::MySql, "mysql://localhost/shop"),
            (Dialect::MySql, "mysql://db/shop?unix_socket=/run/mysqld.sock"),
            (Dialect::Postgres, "postgres:///shop"),
            (Dialect::Postgres, "postgres://[fe80::1%25eth0]/shop"),
            (Dialect::Postgres, "postgres://%2Frun%2Fpostgresql/shop"),
            (Dialect::Postgres, "postgres:///shop?host=/run/postgresql"),
            (Dialect::Postgres, "postgres://db/shop?host=/run/postgresql"),
            (Dialect::Postgres, "postgres://db/shop?hostaddr=10.0.0.1"),
            (Dialect::Postgres, "postgres://db/shop?service=shop"),
            (Dialect::Postgres, "postgres:///shop?host=db0,db1"),
            (Dialect::Postgres, "host=db0,db1"),
            (Dialect::Postgres, "host=10.0.0.1 port=1"),
            (Dialect::Postgres, "host=::1"),
            (Dialect::Postgres, "host=@abstract"),
            (Dialect::Postgres, "host=db hostaddr=10.0.0.1"),
            (Dialect::Postgres, "service=shop host=db"),
            (Dialect::Postgres, "dbname=shop"),
            (Dialect::Postgres, "host=db password='x"),
            (Dialect::Postgres, "host=db password"),
            (Dialect::Sqlite, "file://db/shop.db"),
            (Dialect::Sqlite, "shop.db"),
            (Dialect::Other, "sqlite://db/shop.db"),
            (Dialect::Other, "host=db"),
            (Dialect::Other, "anything at all"),
        ];
        for (dialect, url) in cases {
            assert_eq!(host_name(url, dialect), None, "{dialect:?} {url}");
        }
    }
}
