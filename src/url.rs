//! The database URL of a peer: a secret, which is used, validated and redacted from texts, but never shown.

mod conninfo;
mod credentials;
pub(crate) mod dialect;
mod host;
mod redaction;
mod uri;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::error::Flaw;
use crate::redact::{REDACTED, printable};
use crate::socket::Tuning;
pub(crate) use conninfo::is_conninfo;
use conninfo::parse_conninfo;
pub use credentials::Credentials;
pub(crate) use credentials::CredentialsProvider;
use dialect::{Dialect, Encryption, LIBRARY_HAS_SSL_MODE};
use redaction::Secrets;
#[cfg(test)]
pub(crate) use uri::percent_encoded;
pub(crate) use uri::{Parameter, Query, Uri, parameters, percent_decoded};

/// The option by which MariaDB's client library (3.3 and newer) refuses a server without TLS and one whose
/// certificate or name is wrong, before it sends the password. An older library takes the host with the
/// option for a name, which it cannot resolve.
const VERIFY_SERVER: &str = "ssl-verify-server-cert=1";

/// The URL of a peer. `Debug` does not show the URL, and there is no `Display`.
#[derive(Clone)]
pub(crate) struct PeerUrl {
    url: String,
    secrets: Secrets,
}

impl fmt::Debug for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl PeerUrl {
    pub(crate) fn new(url: String) -> Self {
        Self { secrets: Secrets::new(&url, None), url }
    }

    /// Checks that the URL has the form that a connection of this dialect accepts. Does not connect.
    pub(crate) fn check(&self, dialect: Dialect) -> Result<(), Flaw> {
        let Self { url, .. } = self;
        if url.trim().is_empty() {
            return Err("is empty".into());
        }
        if url.contains('\0') {
            return Err("contains a NUL byte".into());
        }
        match dialect {
            Dialect::Other => return Ok(()),
            Dialect::Sqlite => {
                let scheme = url.split_once("://").map(|(scheme, _)| scheme);
                if scheme.is_none_or(|scheme| matches!(scheme, "sqlite" | "file")) {
                    return Ok(());
                }
                let what = "is not a path, and SQLite would take all of it as the name of a file";
                return Err(Flaw::new(what, "give a path, such as `file:shop.db?mode=rw`"));
            }
            // libpq validates a conninfo string (`host=db0 dbname=shop`) itself, at login.
            Dialect::Postgres if is_conninfo(url) => return Ok(()),
            Dialect::MySql | Dialect::Postgres => {}
        }
        let uri = Uri::parse(url)?;
        dialect.check_scheme(&uri.scheme)?;
        if uri.hosts.len() > 1 {
            let correction = "pass it to `url`, or add each host as a separate peer";
            return Err(Flaw::new("names several hosts", correction));
        }
        if dialect == Dialect::MySql && uri.path.matches('/').count() > 1 {
            let correction = "the path is the name of the database, such as `/shop`";
            return Err(Flaw::new("has a path with several `/`", correction));
        }
        if uri.path.contains('&') {
            let correction = "begin the parameters with `?`, and write a `&` in a name as %26";
            return Err(Flaw::new("has a `&` without a `?` before it", correction));
        }
        // With several `@`, libpq and diesel's parser for MySQL find the host in different places.
        if dialect == Dialect::Postgres
            && uri.userinfo.as_ref().is_some_and(|text| text.contains('@'))
        {
            let correction = "write an `@` in a user or a password as %40";
            return Err(Flaw::new("has several `@`", correction));
        }
        if dialect == Dialect::MySql {
            if host::has_options(&uri) {
                let correction = "give the name of a host, or an address";
                return Err(Flaw::new("has a `=`, `;`, `{` or `}` in a host", correction));
            }
            let encryption = encryption(&uri)?;
            if !LIBRARY_HAS_SSL_MODE {
                check_encryption_by_mariadb(&uri, encryption)?;
            }
            if host::ignores_port(&uri) {
                return Err(Flaw::new(
                    "names a port on `localhost`, but MySQL's client libraries connect to `localhost` \
                     through a Unix socket and ignore the port",
                    "write 127.0.0.1 to use the port, or name the socket with `unix_socket`",
                ));
            }
        }
        let unknown = uri.parameters.iter().find(|parameter| !dialect.accepts(&parameter.key));
        // The rest of a password that is not escaped can look like parameters, so `shown` decides what may
        // be shown of the key.
        let Some(unknown) = unknown else { return Ok(()) };
        Err(Flaw::new(
            format!("has the unknown parameter `{}`", unknown.shown(false)),
            format!(
                "a {dialect} URL accepts {}; set this crate's settings with the builder's methods, or in \
                 the URL that is passed to `url`",
                dialect.parameters().join(", "),
            ),
        ))
    }

    /// Adds libpq's own timeout for logins, unless the URL has one. libpq counts whole seconds, with a
    /// minimum of two.
    pub(crate) fn with_libpq_timeout(self, timeout: Duration) -> Self {
        const KEY: &str = "connect_timeout";
        let seconds = timeout.as_millis().div_ceil(1000).max(2).to_string();
        match Uri::parse(&self.url) {
            Ok(uri) if uri.parameter(KEY).is_some() => self,
            Ok(mut uri) => {
                uri.parameters.push(Parameter { key: KEY.to_owned(), value: Some(seconds) });
                self.with_text(uri.to_string())
            }
            Err(_) if self.url.contains(KEY) => self,
            Err(_) => self.with_text(format!("{} {KEY}={seconds}", self.url)),
        }
    }

    /// Returns the TCP settings that the URL asks libpq for. A zero asks for the setting of the kernel.
    pub(crate) fn libpq_tuning(&self, dialect: Dialect) -> Tuning {
        let number = |key| self.libpq_setting(dialect, key)?.trim().parse::<u32>().ok();
        let time = |key| number(key).filter(|number| *number > 0).map(u64::from);
        let keepalive = if number("keepalives") == Some(0) {
            Some(Duration::MAX)
        } else {
            time("keepalives_idle").map(Duration::from_secs)
        };
        Tuning { keepalive, user_timeout: time("tcp_user_timeout").map(Duration::from_millis) }
    }

    /// Returns the value of a libpq parameter. libpq uses the last value of a repeated parameter.
    fn libpq_setting(&self, dialect: Dialect, key: &str) -> Option<String> {
        let Ok(uri) = Uri::parse(&self.url) else {
            let settings = parse_conninfo(&self.url).filter(|_| dialect == Dialect::Postgres)?;
            return settings.into_iter().rfind(|(given, _)| given == key).map(|(_, value)| value);
        };
        let is_for_libpq = dialect.or_from_scheme(&uri.scheme) == Dialect::Postgres;
        is_for_libpq.then(|| last_value(&uri, key).map(percent_decoded)).flatten()
    }

    /// Returns the name of the host, if it can be resolved.
    pub(crate) fn host_name(&self, dialect: Dialect) -> Option<String> {
        host::host_name(&self.url, dialect)
    }

    /// Returns the TCP port of the server, as far as the URL decides that.
    pub(crate) fn port(&self, dialect: Dialect) -> Option<u16> {
        host::port(&self.url, dialect)
    }

    /// Whether a connection has no TCP socket, as far as the URL decides that.
    pub(crate) fn is_unix_socket(&self, dialect: Dialect) -> bool {
        host::is_unix_socket(&self.url, dialect)
    }

    /// Returns the URL with the host replaced by this address of the host.
    pub(crate) fn at_address(&self, dialect: Dialect, address: IpAddr) -> Self {
        self.with_text(host::at_address(&self.url, dialect, address))
    }

    /// Checks that the login does not depend on the name of the host, so that an address can replace it.
    pub(crate) fn check_address_allowed(&self, dialect: Dialect) -> Result<(), Flaw> {
        let Ok(uri) = Uri::parse(&self.url) else { return Ok(()) };
        let is_mysql = dialect.or_from_scheme(&uri.scheme) == Dialect::MySql;
        if is_mysql && encryption(&uri) == Ok(Encryption::VerifiedIdentity) {
            return Err(Flaw::new(
                "has `ssl_mode=verify_identity`, which compares the server's certificate with the host \
                 name, but `resolve_interval` replaces the name with an address",
                "remove one of the two",
            ));
        }
        Ok(())
    }

    /// Whether both URLs are equal except for the user and the password.
    pub(crate) fn has_same_target(&self, other: &Self) -> bool {
        let is_credential = |key: &str| ["user", "password"].contains(&key);
        let target = |url: &str| match Uri::parse(url) {
            Ok(mut uri) => {
                uri.userinfo = None;
                uri.parameters.retain(|parameter| !is_credential(&parameter.key));
                uri.to_string()
            }
            Err(_) => match parse_conninfo(url) {
                Some(settings) => {
                    // libpq uses the last value of a repeated key, and so does `collect`.
                    let settings: BTreeMap<_, _> = settings.into_iter().collect();
                    let settings = settings.iter().filter(|(key, _)| !is_credential(key));
                    format!("{:?}", settings.collect::<Vec<_>>())
                }
                None => url.to_owned(),
            },
        };
        target(&self.url) == target(&other.url)
    }

    /// Whether a MySQL connection must be encrypted.
    pub(crate) fn requires_encryption(&self) -> bool {
        let encryption = Uri::parse(&self.url).and_then(|uri| encryption(&uri));
        encryption.is_ok_and(|encryption| encryption != Encryption::NotRequired)
    }

    /// Replaces the text of the URL. The secrets of the previous text are still redacted.
    fn with_text(&self, url: String) -> Self {
        Self { secrets: self.secrets.merged_with(Secrets::new(&url, None)), url }
    }

    /// Returns the text with which diesel logs in. MariaDB's client library takes the requirement to verify
    /// the server as an option in the host.
    pub(crate) fn for_login(&self, dialect: Dialect) -> Cow<'_, str> {
        let uri = Uri::parse(&self.url).ok().filter(|uri| {
            dialect == Dialect::MySql
                && !LIBRARY_HAS_SSL_MODE
                && encryption(uri) == Ok(Encryption::VerifiedIdentity)
        });
        let Some(mut uri) = uri else { return Cow::Borrowed(self.expose()) };
        host::add_option(&mut uri, VERIFY_SERVER);
        Cow::Owned(uri.to_string())
    }

    /// Returns the URL itself, which only diesel may receive.
    pub(crate) fn expose(&self) -> &str {
        &self.url
    }

    /// Replaces this URL and its passwords in `text`, because client libraries quote them in their
    /// messages, and what is not printable. Every text of a server passes here before it is shown.
    pub(crate) fn redact(&self, text: &str) -> String {
        let text = self.secrets.redact(text);
        let lines: Vec<String> = text.lines().map(printable).collect();
        lines.join("\n")
    }
}

fn encryption(uri: &Uri) -> Result<Encryption, Flaw> {
    last_value(uri, "ssl_mode").map_or(Ok(Encryption::NotRequired), Encryption::from_ssl_mode)
}

/// Checks that MariaDB's client library refuses a server that does not fulfill the requirement, before it
/// sends the password. The library does so only where it verifies the name of the server.
fn check_encryption_by_mariadb(uri: &Uri, encryption: Encryption) -> Result<(), Flaw> {
    const ALTERNATIVES: &str = "link MySQL's client library (`libmysqlclient`), or terminate TLS in a proxy \
                                beside the application";
    match encryption {
        Encryption::Required | Encryption::VerifiedCa => Err(Flaw::new(
            "has an `ssl_mode` that requires encryption, but this program is linked with MariaDB's client \
             library, which sends the password to a server without TLS",
            format!("give `ssl_mode=verify_identity` and an `ssl_ca`, {ALTERNATIVES}"),
        )),
        Encryption::VerifiedIdentity
            if last_value(uri, "ssl_ca").unwrap_or_default().is_empty() =>
        {
            Err(Flaw::new(
                "has `ssl_mode=verify_identity` without an `ssl_ca`",
                "name the file with the certificate of the server's authority",
            ))
        }
        Encryption::VerifiedIdentity if host::is_ipv6(uri) => Err(Flaw::new(
            "has `ssl_mode=verify_identity` and an IPv6 address, which this crate cannot pass to MariaDB's \
             client library together with that requirement",
            format!("give the name of the host, {ALTERNATIVES}"),
        )),
        Encryption::NotRequired | Encryption::VerifiedIdentity => Ok(()),
    }
}

/// Returns the value that diesel and libpq use of a repeated parameter. A parameter without a value is empty.
fn last_value<'a>(uri: &'a Uri, key: &str) -> Option<&'a str> {
    let last = uri.parameters.iter().rfind(|parameter| parameter.key == key)?;
    Some(last.value.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> PeerUrl {
        PeerUrl::new(text.to_owned())
    }

    #[test]
    fn libpq_timeout_is_added_unless_the_url_has_one() {
        let cases = [
            ("postgres://app:x@db/shop", "postgres://app:x@db/shop?connect_timeout=5"),
            ("postgresql://db/shop?a=b", "postgresql://db/shop?a=b&connect_timeout=5"),
            ("postgres://db/shop?", "postgres://db/shop?connect_timeout=5"),
            ("postgres://db/shop?a=b&", "postgres://db/shop?a=b&connect_timeout=5"),
            ("host=db dbname=shop", "host=db dbname=shop connect_timeout=5"),
            ("host=db connect_timeout=9", "host=db connect_timeout=9"),
            ("postgres://db?connect_timeout=9", "postgres://db?connect_timeout=9"),
        ];
        for (given, expected) in cases {
            let url = url(given).with_libpq_timeout(Duration::from_millis(4_100));
            assert_eq!(url.expose(), expected, "from {given}");
        }
        let url = url("postgres://db").with_libpq_timeout(Duration::from_millis(1));
        assert!(url.expose().ends_with("=2"), "libpq's minimum is two seconds");
    }

    #[test]
    fn tcp_settings_for_libpq_are_read() {
        let (s, ms) = (Duration::from_secs, Duration::from_millis);
        let cases = [
            (Dialect::Postgres, "postgres://db", None, None),
            (Dialect::Postgres, "postgres://db?keepalives_idle=60", Some(s(60)), None),
            (Dialect::Postgres, "postgres://db?tcp_user_timeout=60000", None, Some(ms(60_000))),
            (
                Dialect::Postgres,
                "postgres://db?keepalives_idle=1&keepalives_idle=%202",
                Some(s(2)),
                None,
            ),
            (Dialect::Postgres, "postgres://db?keepalives=0", Some(Duration::MAX), None),
            (Dialect::Postgres, "postgres://db?keepalives=1&keepalives_idle=60", Some(s(60)), None),
            (Dialect::Postgres, "postgres://db?keepalives_idle=0&tcp_user_timeout=0", None, None),
            (Dialect::Postgres, "postgres://db?keepalives_idle=-1&tcp_user_timeout=x", None, None),
            (
                Dialect::Postgres,
                "host=db keepalives_idle='60' tcp_user_timeout=7",
                Some(s(60)),
                Some(ms(7)),
            ),
            (Dialect::Other, "postgresql://db?keepalives_idle=60", Some(s(60)), None),
            (Dialect::Other, "host=db keepalives_idle=60", None, None),
            (Dialect::Other, "x://db?keepalives_idle=60", None, None),
            (Dialect::MySql, "mysql://db?keepalives_idle=60", None, None),
            (Dialect::Sqlite, "shop.db", None, None),
        ];
        for (dialect, text, keepalive, user_timeout) in cases {
            let expected = Tuning { keepalive, user_timeout };
            assert_eq!(url(text).libpq_tuning(dialect), expected, "{dialect:?} {text}");
        }
    }

    #[test]
    fn malformed_urls_are_rejected() {
        let cases = [
            (Dialect::Other, " ", "is empty"),
            (Dialect::Other, "a\0b", "contains a NUL byte"),
            (Dialect::MySql, "db0", "is not a URL"),
            (Dialect::MySql, "postgres://db0/shop", "does not begin with `mysql://`"),
            (Dialect::MySql, "mysql://db0,db1/shop", "names several hosts"),
            (Dialect::MySql, "mysql://localhost:3307/shop", "names a port on `localhost`"),
            (Dialect::MySql, "mysql://%6cocalhost:3307/shop", "names a port on `localhost`"),
            (Dialect::MySql, "mysql://localhost:3307/shop?unix_socket=", "names a port on"),
            (
                Dialect::MySql,
                "mysql://db0/shop&ssl_mode=required",
                "has a `&` without a `?` before",
            ),
            (
                Dialect::Postgres,
                "postgres://db0/shop&sslmode=require",
                "has a `&` without a `?` before",
            ),
            (Dialect::MySql, "mysql://db0/shop/2", "has a path with several `/`"),
            (Dialect::MySql, "mysql://db0;tls-ca=x/shop", "has a `=`, `;`, `{` or `}` in a host"),
            (Dialect::MySql, "mysql://host=db0/shop", "has a `=`, `;`, `{` or `}` in a host"),
            (Dialect::MySql, "mysql://%7Bdb0%7D/shop", "has a `=`, `;`, `{` or `}` in a host"),
            (
                Dialect::MySql,
                "mysql://db0/shop?sslmode=require",
                "has the unknown parameter `sslmode`: a",
            ),
            (Dialect::MySql, "mysql://db0/shop?ssl_mode", "has an unknown `ssl_mode`: give"),
            (Dialect::MySql, "mysql://db0/shop?check_interval=5", "has the unknown parameter `ch"),
            (Dialect::MySql, "mysql://db0/shop?s3~cret=5", "has the unknown parameter `***`"),
            (Dialect::Postgres, "shop", "is not a URL"),
            (Dialect::Postgres, "mysql://db0/shop", "does not begin with `postgres://`"),
            (Dialect::Postgres, "postgres://a:x@y@db0/shop", "has several `@`"),
            (Dialect::Postgres, "postgres://a,b/shop", "names several hosts"),
            (Dialect::Sqlite, "mysql://db0/shop", "is not a path"),
        ];
        for (dialect, text, expected) in cases {
            let flaw = url(text).check(dialect).expect_err(text).to_string();
            assert!(flaw.starts_with(expected), "{dialect:?} {text}: {flaw}");
        }
    }

    #[test]
    fn last_of_several_ssl_modes_applies() {
        let cases = [
            ("", false),
            ("?ssl_mode=REQUIRED", true),
            ("?ssl_mode=preferred&ssl_mode=required", true),
            ("?ssl_mode=required&ssl_mode=disabled", false),
        ];
        for (parameters, expected) in cases {
            let url = url(&format!("mysql://db0/shop{parameters}"));
            assert_eq!(url.requires_encryption(), expected, "{parameters}");
        }
    }

    #[test]
    fn encryption_that_mariadbs_library_cannot_require_is_refused() {
        let cases = [
            ("mysql://db0", Ok(())),
            ("mysql://db0?ssl_mode=disabled", Ok(())),
            ("mysql://db0?ssl_mode=preferred&ssl_ca=/ca.pem", Ok(())),
            (
                "mysql://db0?ssl_mode=required&ssl_ca=/ca.pem",
                Err("has an `ssl_mode` that requires"),
            ),
            (
                "mysql://db0?ssl_mode=Verify_CA&ssl_ca=/ca.pem",
                Err("has an `ssl_mode` that requires"),
            ),
            ("mysql://db0?ssl_mode=verify_identity", Err("without an `ssl_ca`: name the file")),
            (
                "mysql://db0?ssl_mode=verify_identity&ssl_ca=",
                Err("without an `ssl_ca`: name the file"),
            ),
            ("mysql://db0?ssl_mode=VERIFY_identity&ssl_ca=/ca.pem", Ok(())),
            ("mysql://10.0.0.1:3307?ssl_mode=verify_identity&ssl_ca=/ca.pem", Ok(())),
            ("mysql://[::1]:3307?ssl_mode=verify_identity&ssl_ca=/ca.pem", Err("an IPv6 address")),
        ];
        for (text, expected) in cases {
            let uri = Uri::parse(text).expect(text);
            let encryption = encryption(&uri).expect(text);
            let checked = check_encryption_by_mariadb(&uri, encryption);
            match (checked, expected) {
                (Ok(()), Ok(())) => {}
                (Err(flaw), Err(expected)) => {
                    assert!(flaw.to_string().contains(expected), "{text}: {flaw}");
                }
                (checked, _) => panic!("{text}: {checked:?}"),
            }
        }
    }

    #[test]
    fn mariadbs_library_gets_the_requirement_to_verify_in_the_host() {
        let cases = [
            ("mysql://db:3307/shop", "mysql://db:3307/shop"),
            ("mysql://db/shop?ssl_mode=preferred", "mysql://db/shop?ssl_mode=preferred"),
            (
                "mysql://app:x@db:3307/shop?ssl_mode=verify_identity&ssl_ca=/ca.pem",
                "mysql://app:x@host=db;ssl-verify-server-cert=1:3307/shop?ssl_mode=verify_identity&ssl_ca=/ca.pem",
            ),
            (
                "mysql://db?ssl_mode=verify_identity&ssl_ca=/ca.pem",
                "mysql://host=db;ssl-verify-server-cert=1?ssl_mode=verify_identity&ssl_ca=/ca.pem",
            ),
        ];
        for (given, expected) in cases {
            let expected = if LIBRARY_HAS_SSL_MODE { given } else { expected };
            assert_eq!(url(given).for_login(Dialect::MySql), expected, "from {given}");
            assert_eq!(url(given).for_login(Dialect::Other), given, "another connection type");
        }
    }

    #[test]
    fn verifying_the_host_name_forbids_addresses() {
        let cases = [
            (Dialect::MySql, "mysql://db/shop?ssl_mode=VERIFY_IDENTITY", false),
            (Dialect::Other, "mysql://db/shop?ssl_mode=verify_identity", false),
            (Dialect::MySql, "mysql://db/shop?ssl_mode=verify_identity&ssl_mode=required", true),
            (Dialect::MySql, "mysql://db/shop?ssl_mode=verify_ca", true),
            (Dialect::Postgres, "postgres://db/shop?sslmode=verify-full", true),
            (Dialect::Postgres, "host=db sslmode=verify-full", true),
        ];
        for (dialect, text, expected) in cases {
            let checked = url(text).check_address_allowed(dialect);
            assert_eq!(checked.is_ok(), expected, "{dialect:?} {text}: {checked:?}");
        }
    }

    #[test]
    fn secrets_of_earlier_texts_are_redacted() {
        let password = "it's s3cret";
        let url = url("host=db")
            .with_credentials(&Credentials::password(password))
            .expect("a conninfo string can hold a password");
        let url = url.with_libpq_timeout(Duration::from_secs(5));
        let url = url.at_address(Dialect::Postgres, [10, 0, 0, 1].into());
        assert_eq!(url.redact(password), REDACTED);
        assert_eq!(url.redact(url.expose()), REDACTED);
    }

    #[test]
    fn urls_that_diesel_accepts_are_accepted() {
        let cases = [
            (Dialect::Other, "anything at all"),
            (
                Dialect::MySql,
                "mysql://app:s3cret@db0:3306/shop?ssl_mode=verify_identity&ssl_ca=/ca.pem",
            ),
            (Dialect::MySql, "mysql://a=;b:c{}@db0/shop?ssl_mode=preferred&ssl_ca=/ca.pem"),
            (Dialect::MySql, "mysql://app:a@b@db0/shop"),
            (Dialect::MySql, "mysql://app:p%40ss%2Fw@[::1]:3306/shop"),
            (Dialect::MySql, "mysql://app@localhost/shop?unix_socket=/run/mysqld/mysqld.sock"),
            (Dialect::MySql, "mysql://app@localhost:3307/shop?unix_socket=/run/mysqld/mysqld.sock"),
            (Dialect::MySql, "mysql://localhost/shop"),
            (Dialect::MySql, "mysql://localhost:3306/shop"),
            (Dialect::MySql, "mysql://localhost:03306/shop"),
            (Dialect::Postgres, "postgres://localhost:5433/shop"),
            (Dialect::MySql, "mysql://db0"),
            (
                Dialect::Postgres,
                "postgres://app:s3cret@db0/shop?sslmode=require&options=-c%20a%3Db",
            ),
            (Dialect::Postgres, "postgresql:///shop?host=/run/postgresql"),
            (Dialect::Postgres, "postgres://%2Frun%2Fpostgresql:5433/shop"),
            (Dialect::Postgres, "postgres://[fe80::1%25eth0]:5432/shop"),
            (Dialect::Postgres, "host=db0,db1 password='a b' dbname=shop"),
            (Dialect::Postgres, "host=db0 password=x://y oauth_issuer=https://id.example"),
            (Dialect::Sqlite, "shop.db"),
            (Dialect::Sqlite, ":memory:"),
            (Dialect::Sqlite, "file:/srv/shop.db?mode=rw"),
            (Dialect::Sqlite, "file:///srv/shop.db?mode=rw"),
            (Dialect::Sqlite, "sqlite:///srv/shop.db"),
        ];
        for (dialect, text) in cases {
            assert_eq!(url(text).check(dialect), Ok(()), "{dialect:?} {text}");
        }
    }

    #[test]
    fn target_does_not_depend_on_user_and_password() {
        let same = [
            ("mysql://app:old@db/shop", "mysql://other:new@db/shop"),
            ("mysql://app:old@db/shop", "mysql://db/shop"),
            ("postgres://app@db?user=a&password=b&x=1", "postgres://db?x=1&user=c"),
            ("host=db user=app password=old", "host=db  password='n e w' user=other"),
            ("host=other host=db", "host=db password=x"),
            ("shop.db", "shop.db"),
        ];
        for (one, other) in same {
            assert!(url(one).has_same_target(&url(other)), "{one} and {other}");
        }
        let others = [
            ("mysql://app@db/shop", "mysql://app@db/other"),
            ("postgres://db?x=1", "postgres://db?x=2"),
            ("host=db user=app", "host=other user=app"),
            ("host=db host=other", "host=other host=db"),
            ("shop.db", "other.db"),
        ];
        for (one, other) in others {
            assert!(!url(one).has_same_target(&url(other)), "{one} and {other}");
        }
    }

    #[test]
    fn debug_does_not_show_the_url() {
        let url = url("mysql://app:s3cret@db/shop");
        assert_eq!(format!("{url:?}"), "***", "a URL is a secret");
    }
}
