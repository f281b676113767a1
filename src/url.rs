//! A peer's database URL: a secret that can be used, checked and struck out of texts, never shown.

mod conninfo;
mod credentials;
mod host;
mod redaction;
mod uri;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::dialect::{Dialect, Encryption};
use crate::error::{Flaw, REDACTED};
use conninfo::conninfo;
pub(crate) use conninfo::is_keywords;
pub(crate) use credentials::AskCredentials;
pub use credentials::Credentials;
use redaction::Secrets;
#[cfg(test)]
pub(crate) use uri::percent_encoded;
pub(crate) use uri::{Parameter, Query, Uri, parameters, percent_decoded};

/// A peer's URL. `Debug` does not show it, and there is no `Display`.
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
        Self { secrets: Secrets::of(&url, None), url }
    }

    /// Whether a connection of this kind could be made with it, as far as that can be told without
    /// making one.
    pub(crate) fn check(&self, dialect: Dialect) -> Result<(), Flaw> {
        let Self { url, .. } = self;
        if url.trim().is_empty() {
            return Err("is empty".into());
        }
        if url.contains('\0') {
            return Err("holds a NUL byte".into());
        }
        match dialect {
            Dialect::Other => return Ok(()),
            Dialect::Sqlite => {
                let scheme = url.split_once("://").map(|(scheme, _)| scheme);
                let flaw = "is no path: SQLite would take it for the name of a file";
                let is_path = scheme.is_none_or(|scheme| matches!(scheme, "sqlite" | "file"));
                return if is_path { Ok(()) } else { Err(flaw.into()) };
            }
            // `host=db0 dbname=shop`: libpq's other form, which is its own to judge.
            Dialect::Postgres if is_keywords(url) => return Ok(()),
            Dialect::MySql | Dialect::Postgres => {}
        }
        let uri = Uri::parse(url)?;
        dialect.check_scheme(&uri.scheme)?;
        if uri.hosts.len() > 1 {
            return Err(
                "names several hosts: give it to `url`, or each host as a peer of its own".into()
            );
        }
        if dialect == Dialect::MySql && uri.path.matches('/').count() > 1 {
            return Err(
                "has a path with several `/`: only the name of the database stands there".into()
            );
        }
        if uri.path.contains('&') {
            return Err(
                "has a `&` and no `?` before it: parameters begin with `?`, and a `&` in a name \
                        is %26"
                    .into(),
            );
        }
        // Where there are several, libpq takes another one than diesel's parser for MySQL does.
        if dialect == Dialect::Postgres && uri.userinfo.as_ref().is_some_and(|it| it.contains('@'))
        {
            return Err("has several `@`: one in a user or a password is %40".into());
        }
        if dialect == Dialect::MySql {
            encryption(&uri)?;
            if host::forgets_its_port(&uri) {
                return Err("names a port at `localhost`, which MySQL's client libraries take for \
                            their one Unix socket: write 127.0.0.1 for the port, or name the socket \
                            with `unix_socket`"
                    .into());
            }
        }
        let unknown = uri.parameters.iter().find(|parameter| !dialect.knows(&parameter.key));
        // Of a password that is not escaped the key is the first that is unknown.
        let Some(unknown) = unknown else { return Ok(()) };
        let known = dialect.parameters().join(", ");
        let flaw = format!(
            "has the parameter `{}`, and a {dialect} connection only knows {known} (settings of the \
             pool are the builder's, or stand in its `url`)",
            unknown.shown(false),
        );
        Err(flaw.into())
    }

    /// Has libpq end a login after so long by itself, in whole seconds, of which it takes two at
    /// least; unless the URL says something else.
    pub(crate) fn with_libpq_timeout(self, timeout: Duration) -> Self {
        const KEY: &str = "connect_timeout";
        let seconds = timeout.as_millis().div_ceil(1000).max(2).to_string();
        match Uri::parse(&self.url) {
            Ok(uri) if uri.parameter(KEY).is_some() => self,
            Ok(mut uri) => {
                uri.parameters.push(Parameter { key: KEY.to_owned(), value: Some(seconds) });
                self.leading_to(uri.to_string())
            }
            Err(_) if self.url.contains(KEY) => self,
            Err(_) => self.leading_to(format!("{} {KEY}={seconds}", self.url)),
        }
    }

    /// The name of its host, where that is one that can be resolved.
    pub(crate) fn host_name(&self, dialect: Dialect) -> Option<String> {
        host::host_name(&self.url, dialect)
    }

    /// The same URL at this address of its host.
    pub(crate) fn at(&self, dialect: Dialect, address: IpAddr) -> Self {
        self.leading_to(host::at_address(&self.url, dialect, address))
    }

    /// Whether an address may stand for the name of its host.
    pub(crate) fn check_at_address(&self, dialect: Dialect) -> Result<(), Flaw> {
        let Ok(uri) = Uri::parse(&self.url) else { return Ok(()) };
        let is_mysql = dialect.of_scheme(&uri.scheme) == Dialect::MySql;
        let ssl_mode = uri.parameters.iter().rfind(|it| it.key == "ssl_mode");
        let ssl_mode = ssl_mode.and_then(|it| it.value.as_deref()).unwrap_or_default();
        if is_mysql && ssl_mode.eq_ignore_ascii_case("verify_identity") {
            return Err(
                "asks with `ssl_mode=verify_identity` for a certificate of its host's name, and \
                 `resolve_interval` puts an address in the place of that: leave one of them out"
                    .into(),
            );
        }
        Ok(())
    }

    /// Whether both lead to the same database, whoever logs in.
    pub(crate) fn leads_to_the_same(&self, other: &Self) -> bool {
        let is_login = |key: &str| ["user", "password"].contains(&key);
        let place = |url: &str| match Uri::parse(url) {
            Ok(mut uri) => {
                uri.userinfo = None;
                uri.parameters.retain(|it| !is_login(&it.key));
                uri.to_string()
            }
            Err(_) => match conninfo(url) {
                Some(settings) => {
                    // Of several libpq takes the last.
                    let settings: BTreeMap<_, _> = settings.into_iter().collect();
                    let settings = settings.iter().filter(|(key, _)| !is_login(key));
                    format!("{:?}", settings.collect::<Vec<_>>())
                }
                None => url.to_owned(),
            },
        };
        place(&self.url) == place(&other.url)
    }

    /// Whether a MySQL connection that is not encrypted is none.
    pub(crate) fn requires_encryption(&self) -> bool {
        let asked = Uri::parse(&self.url).and_then(|uri| encryption(&uri));
        asked.is_ok_and(|asked| asked != Encryption::AsItComes)
    }

    /// Another text for this URL. What was a secret stays one.
    fn leading_to(&self, url: String) -> Self {
        Self { secrets: self.secrets.and(Secrets::of(&url, None)), url }
    }

    /// The URL itself, for diesel.
    pub(crate) fn expose(&self) -> &str {
        &self.url
    }

    /// `text` without this URL and its passwords: client libraries quote them in their messages.
    pub(crate) fn redact(&self, text: &str) -> String {
        self.secrets.redact(text)
    }
}

fn encryption(uri: &Uri) -> Result<Encryption, Flaw> {
    // Of several diesel takes the last.
    let ssl_mode = uri.parameters.iter().rfind(|parameter| parameter.key == "ssl_mode");
    ssl_mode.map_or(Ok(Encryption::AsItComes), |Parameter { value, .. }| {
        Encryption::of(value.as_deref().unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> PeerUrl {
        PeerUrl::new(text.to_owned())
    }

    #[test]
    fn libpq_gets_a_time_out_unless_the_url_has_one() {
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
        assert!(url.expose().ends_with("=2"), "it takes no less than two seconds");
    }

    #[test]
    fn urls_that_lead_nowhere_are_refused() {
        let cases = [
            (Dialect::Other, " ", "is empty"),
            (Dialect::Other, "a\0b", "holds a NUL byte"),
            (Dialect::MySql, "db0", "is no URL"),
            (Dialect::MySql, "postgres://db0/shop", "does not begin with `mysql://`"),
            (Dialect::MySql, "mysql://db0,db1/shop", "names several hosts"),
            (Dialect::MySql, "mysql://localhost:3307/shop", "names a port at `localhost`"),
            (Dialect::MySql, "mysql://%6cocalhost:3307/shop", "names a port at `localhost`"),
            (Dialect::MySql, "mysql://localhost:3307/shop?unix_socket=", "names a port at"),
            (Dialect::MySql, "mysql://db0/shop&ssl_mode=required", "has a `&` and no `?` before"),
            (
                Dialect::Postgres,
                "postgres://db0/shop&sslmode=require",
                "has a `&` and no `?` before",
            ),
            (Dialect::MySql, "mysql://db0/shop/2", "has a path with several `/`"),
            (Dialect::MySql, "mysql://db0/shop?sslmode=require", "has the parameter `sslmode`"),
            (Dialect::MySql, "mysql://db0/shop?ssl_mode", "has an `ssl_mode` that is none"),
            (Dialect::MySql, "mysql://db0/shop?check_interval=5", "has the parameter `check_i"),
            (Dialect::MySql, "mysql://db0/shop?s3~cret=5", "has the parameter `***`"),
            (Dialect::Postgres, "shop", "is no URL"),
            (Dialect::Postgres, "mysql://db0/shop", "does not begin with `postgres://`"),
            (Dialect::Postgres, "postgres://a:x@y@db0/shop", "has several `@`"),
            (Dialect::Postgres, "postgres://a,b/shop", "names several hosts"),
            (Dialect::Sqlite, "mysql://db0/shop", "is no path"),
        ];
        for (dialect, text, expected) in cases {
            let flaw = url(text).check(dialect).expect_err(text);
            assert!(flaw.starts_with(expected), "{dialect:?} {text}: {flaw}");
        }
    }

    #[test]
    fn of_several_modes_of_encryption_the_last_counts() {
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
    fn an_address_has_no_certificate_of_a_name() {
        let cases = [
            (Dialect::MySql, "mysql://db/shop?ssl_mode=VERIFY_IDENTITY", false),
            (Dialect::Other, "mysql://db/shop?ssl_mode=verify_identity", false),
            (Dialect::MySql, "mysql://db/shop?ssl_mode=verify_identity&ssl_mode=required", true),
            (Dialect::MySql, "mysql://db/shop?ssl_mode=verify_ca", true),
            (Dialect::Postgres, "postgres://db/shop?sslmode=verify-full", true),
            (Dialect::Postgres, "host=db sslmode=verify-full", true),
        ];
        for (dialect, text, expected) in cases {
            let checked = url(text).check_at_address(dialect);
            assert_eq!(checked.is_ok(), expected, "{dialect:?} {text}: {checked:?}");
        }
    }

    #[test]
    fn secrets_stay_secrets_at_another_address() {
        let password = "it's s3cret";
        let url =
            url("host=db").with_credentials(&Credentials::password(password)).expect("a place");
        let url = url.with_libpq_timeout(Duration::from_secs(5));
        let url = url.at(Dialect::Postgres, [10, 0, 0, 1].into());
        assert_eq!(url.redact(password), REDACTED);
        assert_eq!(url.redact(url.expose()), REDACTED);
    }

    #[test]
    fn urls_that_diesel_takes_are_taken() {
        let cases = [
            (Dialect::Other, "anything at all"),
            (Dialect::MySql, "mysql://app:s3cret@db0:3306/shop?ssl_mode=required&ssl_ca=/ca.pem"),
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
    fn who_logs_in_does_not_matter_to_where_it_leads() {
        let same = [
            ("mysql://app:old@db/shop", "mysql://other:new@db/shop"),
            ("mysql://app:old@db/shop", "mysql://db/shop"),
            ("postgres://app@db?user=a&password=b&x=1", "postgres://db?x=1&user=c"),
            ("host=db user=app password=old", "host=db  password='n e w' user=other"),
            ("host=other host=db", "host=db password=x"),
            ("shop.db", "shop.db"),
        ];
        for (one, other) in same {
            assert!(url(one).leads_to_the_same(&url(other)), "{one} and {other}");
        }
        let others = [
            ("mysql://app@db/shop", "mysql://app@db/other"),
            ("postgres://db?x=1", "postgres://db?x=2"),
            ("host=db user=app", "host=other user=app"),
            ("host=db host=other", "host=other host=db"),
            ("shop.db", "other.db"),
        ];
        for (one, other) in others {
            assert!(!url(one).leads_to_the_same(&url(other)), "{one} and {other}");
        }
    }

    #[test]
    fn debug_does_not_show_it() {
        let url = url("mysql://app:s3cret@db/shop");
        assert_eq!(format!("{url:?}"), "***", "a URL is a secret");
    }
}
