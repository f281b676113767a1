//! The name of a URL's host, where it is one that can be resolved, and the same URL with one of its
//! addresses.

use std::net::IpAddr;

use super::conninfo::{conninfo, is_keywords};
use super::uri::{Parameter, Uri, percent_decoded};
use crate::dialect::Dialect;

/// How libpq is told an address. The name stays, for what is verified or looked up by it.
const ADDRESS: &str = "hostaddr";

/// What leads libpq to a place that has nothing to do with the host.
const ELSEWHERE: [&str; 2] = [ADDRESS, "service"];

/// With this name MySQL's client libraries mean their Unix socket.
const SOCKET: &str = "localhost";

/// The port of the server that is behind it, if nobody has said otherwise.
const ITS_PORT: u16 = 3306;

/// The name of the host. None where there is an address, a path, several hosts, or nothing at all.
pub(super) fn host_name(url: &str, dialect: Dialect) -> Option<String> {
    let host = if is_of_keywords(url, dialect) {
        let settings = conninfo(url)?;
        // Of several libpq takes the last.
        let last = |wanted: &str| settings.iter().rfind(|(key, _)| key == wanted);
        if ELSEWHERE.into_iter().any(|key| last(key).is_some()) {
            return None;
        }
        last("host")?.1.clone()
    } else {
        let uri = Uri::parse(url).ok()?;
        let [host] = &uri.hosts[..] else { return None };
        let host = percent_decoded(without_port(host));
        let last = |wanted: &str| uri.parameters.iter().rfind(|it| it.key == wanted);
        match dialect.of_scheme(&uri.scheme) {
            Dialect::Sqlite => return None,
            Dialect::MySql if host == SOCKET || last("unix_socket").is_some() => return None,
            Dialect::Postgres if ELSEWHERE.into_iter().any(|key| last(key).is_some()) => {
                return None;
            }
            Dialect::Postgres => {
                let given = last("host").and_then(|it| it.value.as_deref()).map(percent_decoded);
                given.unwrap_or(host)
            }
            Dialect::MySql | Dialect::Other => host,
        }
    };
    let is_name = !host.is_empty() && !host.contains([':', '/', '@', ',', '[']);
    (is_name && host.parse::<IpAddr>().is_err()).then_some(host)
}

/// Whether a MySQL URL leads to the Unix socket, and so not to the port that it names.
pub(super) fn forgets_its_port(uri: &Uri) -> bool {
    cfg!(unix)
        && uri.parameter("unix_socket").and_then(|it| it.value.as_deref()).is_none_or(str::is_empty)
        && uri.hosts.iter().any(|host| {
            let name = without_port(host);
            let port =
                host[name.len()..].strip_prefix(':').and_then(|port| port.parse::<u16>().ok());
            percent_decoded(name) == SOCKET && port.is_some_and(|port| port != ITS_PORT)
        })
}

/// The same URL with this address of its host, which has a name.
pub(super) fn at_address(url: &str, dialect: Dialect, address: IpAddr) -> String {
    if is_of_keywords(url, dialect) {
        return format!("{url} {ADDRESS}={address}");
    }
    let Ok(mut uri) = Uri::parse(url) else { return url.to_owned() };
    if dialect.of_scheme(&uri.scheme) == Dialect::Postgres {
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

fn is_of_keywords(url: &str, dialect: Dialect) -> bool {
    dialect == Dialect::Postgres && is_keywords(url)
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
    fn a_name_is_found_and_its_address_put_in() {
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
                let address = address.parse().expect("it is one");
                let at = at_address(url, dialect, address);
                assert_eq!(at, expected, "{dialect:?} {url}");
            }
        }
    }

    #[test]
    fn what_is_no_name_is_left_alone() {
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
