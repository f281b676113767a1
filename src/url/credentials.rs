//! Credentials that replace the user and the password in the URL of a peer.

use std::error::Error;
use std::fmt;

use super::PeerUrl;
use super::conninfo::{is_conninfo, parse_conninfo};
use super::redaction::Secrets;
use super::uri::{Parameter, Uri, percent_decoded, percent_encoded};
use crate::error::Flaw;
use crate::redact::REDACTED;

/// A user and a password for a login, returned by the closure of
/// [`credentials`](crate::PeerManagerBuilder::credentials). `Debug` does not show the password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
}

impl Credentials {
    /// Creates credentials with this user and this password.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: Some(user.into()), password: Some(password.into()) }
    }

    /// Creates credentials with this password and the configured user: that of the setting
    /// [`user`](crate::PeerManagerBuilder::user), or otherwise that of the peer's URL.
    pub fn password(password: impl Into<String>) -> Self {
        Self { user: None, password: Some(password.into()) }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, password } = self;
        let password = password.as_ref().map(|_| REDACTED);
        f.debug_struct("Credentials").field("user", user).field("password", &password).finish()
    }
}

/// Provides the credentials for a peer, by its name.
pub(crate) type CredentialsProvider =
    dyn Fn(&str) -> Result<Credentials, Box<dyn Error + Send + Sync>> + Send + Sync;

impl PeerUrl {
    /// Returns the URL with its user and its password replaced by those that `credentials` has.
    pub(crate) fn with_credentials(&self, credentials: &Credentials) -> Result<Self, Flaw> {
        let Credentials { user, password } = credentials;
        if let Some(mut uri) =
            Uri::parse(&self.url).ok().filter(|uri| !["sqlite", "file"].contains(&&*uri.scheme))
        {
            // libpq prefers these parameters to the user and the password before the host.
            uri.parameters.retain(|Parameter { key, .. }| {
                !(key == "user" && user.is_some() || key == "password" && password.is_some())
            });
            let given = uri.userinfo.unwrap_or_default();
            let (given_user, given_password) = user_and_password(&given);
            let user = user.as_deref().map_or_else(|| given_user.to_owned(), percent_encoded);
            let password = password.as_deref().map(percent_encoded);
            uri.userinfo = Some(match password.as_deref().or(given_password) {
                Some(password) => format!("{user}:{password}"),
                None => user,
            });
            return Ok(Self::new(uri.to_string()));
        }
        if !is_conninfo(&self.url) {
            let correction = "do not set `user`, `password` or `credentials`";
            return Err(Flaw::new("cannot hold a user or a password", correction));
        }
        // libpq uses the last value of a repeated key.
        let mut url = self.url.clone();
        for (key, value) in [("user", user), ("password", password)] {
            if let Some(value) = value {
                let quoted = value.replace('\\', r"\\").replace('\'', r"\'");
                url = format!("{url} {key}='{quoted}'");
            }
        }
        // The password is passed separately because a message would quote it without the backslashes.
        Ok(Self { secrets: Secrets::new(&url, password.as_deref()), url })
    }

    /// Returns `"password"` or `"user"` if the URL contains one that differs from `credentials`.
    pub(crate) fn conflict_with(&self, credentials: &Credentials) -> Option<&'static str> {
        let Credentials { user, password } = credentials;
        let own = self.credentials();
        let differs = |given: &Option<String>, own: &Option<String>| {
            given.is_some() && own.is_some() && given != own
        };
        if differs(password, &own.password) {
            return Some("password");
        }
        differs(user, &own.user).then_some("user")
    }

    /// Returns the user and the password with which this URL alone logs in.
    fn credentials(&self) -> Credentials {
        let Credentials { user, password } = self.written_credentials();
        let is_for_libpq = is_conninfo(&self.url) || self.url.starts_with("postgres");
        // libpq ignores an empty user and an empty password.
        let given = |text: &String| !(is_for_libpq && text.is_empty());
        Credentials { user: user.filter(given), password: password.filter(given) }
    }

    /// Returns the user and the password in the text of the URL, even if they are empty.
    fn written_credentials(&self) -> Credentials {
        let Ok(uri) = Uri::parse(&self.url) else {
            let settings = parse_conninfo(&self.url).unwrap_or_default();
            // libpq uses the last value of a repeated key.
            let last = |wanted: &str| settings.iter().rfind(|(key, _)| key == wanted);
            let last = |wanted: &str| last(wanted).map(|(_, value)| value.clone());
            return Credentials { user: last("user"), password: last("password") };
        };
        let given = uri.userinfo.as_deref().filter(|given| !given.is_empty());
        let (user, password) = given.map(user_and_password).unzip();
        let password = password.flatten();
        let last = |wanted: &str| uri.parameters.iter().rfind(|parameter| parameter.key == wanted);
        let last = |wanted: &str| last(wanted).and_then(|parameter| parameter.value.as_deref());
        // libpq prefers its parameters; other libraries do not have these parameters.
        Credentials {
            user: last("user").or(user).map(percent_decoded),
            password: last("password").or(password).map(percent_decoded),
        }
    }
}

/// Splits the part of a URL before the host into a user and a password.
fn user_and_password(userinfo: &str) -> (&str, Option<&str>) {
    match userinfo.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (userinfo, None),
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;

    use super::*;
    use crate::cases::{any_text, for_each_case};
    use crate::url::dialect::Dialect;

    fn url(text: &str) -> PeerUrl {
        PeerUrl::new(text.to_owned())
    }

    #[test]
    fn credentials_replace_those_of_the_url() {
        let both = Credentials::new("shop", "p@ss/w:rd");
        let password = Credentials::password("it's \\ new");
        let cases = [
            ("mysql://db0/shop", &both, "mysql://shop:p%40ss%2Fw%3Ard@db0/shop"),
            ("mysql://app:old@db0/shop", &both, "mysql://shop:p%40ss%2Fw%3Ard@db0/shop"),
            ("mysql://app:old@db0/shop", &password, "mysql://app:it%27s%20%5C%20new@db0/shop"),
            ("mysql://app@db0/shop", &password, "mysql://app:it%27s%20%5C%20new@db0/shop"),
            (
                "postgres://db0?user=a&password=b&x=1",
                &both,
                "postgres://shop:p%40ss%2Fw%3Ard@db0?x=1",
            ),
            ("host=db0", &both, "host=db0 user='shop' password='p@ss/w:rd'"),
            ("host=db0 a=b://c", &both, "host=db0 a=b://c user='shop' password='p@ss/w:rd'"),
            ("host=db0 user=app", &password, r"host=db0 user=app password='it\'s \\ new'"),
        ];
        for (given, credentials, expected) in cases {
            let url = url(given).with_credentials(credentials).expect(given);
            assert_eq!(url.expose(), expected, "from {given}");
            let secret = credentials.password.as_deref().expect("both have a password");
            assert_eq!(url.redact(secret), REDACTED, "the new password is redacted, from {given}");
        }
        for path in ["shop.db", "file:shop.db?mode=rw", "file:///srv/shop.db", "sqlite://shop.db"] {
            url(path).with_credentials(&both).expect_err("a path cannot hold credentials");
        }
    }

    #[test]
    fn credentials_of_a_url_are_read_as_its_library_does() {
        let cases = [
            ("mysql://db0/shop", None, None),
            ("mysql://app@db0/shop", Some("app"), None),
            ("mysql://@db0/shop", None, None),
            ("mysql://app:@db0/shop", Some("app"), Some("")),
            ("postgres://app:@db0/shop", Some("app"), None),
            ("postgres://:p@db0/shop?user=", None, Some("p")),
            ("host=db0 user=app password=''", Some("app"), None),
            ("mysql://a%70p:p%40ss%3A:x@db0/shop", Some("app"), Some("p@ss::x")),
            ("postgres://a:b@db0?user=app&password=p%20w", Some("app"), Some("p w")),
            ("postgres://a:b@db0?password=w", Some("a"), Some("w")),
            ("host=db0 user=x user=app password='it\\'s'", Some("app"), Some("it's")),
            ("host=db0", None, None),
            ("host=db0 password='x", None, None),
            ("shop.db", None, None),
        ];
        for (given, user, password) in cases {
            let Credentials { user: found, password: secret } = url(given).credentials();
            assert_eq!((found.as_deref(), secret.as_deref()), (user, password), "{given}");
        }
    }

    #[test]
    fn conflicts_with_the_url_are_found() {
        let both = Credentials::new("app", "new");
        let password = Credentials::password("new");
        for (given, credentials, expected) in [
            ("mysql://db0/shop", &both, None),
            ("mysql://app:new@db0/shop", &both, None),
            ("mysql://app@db0/shop", &both, None),
            ("mysql://other@db0/shop", &both, Some("user")),
            ("mysql://other@db0/shop", &password, None),
            ("mysql://app:old@db0/shop", &password, Some("password")),
            ("host=db0 password=old", &both, Some("password")),
            ("mysql://app:old@db0/shop", &Credentials::default(), None),
        ] {
            assert_eq!(url(given).conflict_with(credentials), expected, "{given}");
        }
    }

    #[test]
    fn credentials_are_encoded_and_decoded_without_loss() {
        let user_and_password = |rng: &mut SmallRng| (any_text(rng, 1..=32), any_text(rng, 0..=32));
        for_each_case(user_and_password, |(user, password)| {
            let given = Credentials::new(&**user, &**password);
            let url = url("mysql://db0/shop")
                .with_credentials(&given)
                .expect("a MySQL URL can contain credentials");
            assert_eq!(url.check(Dialect::MySql), Ok(()));
            let uri = Uri::parse(url.expose()).expect("the result is a URL");
            let (read_user, read_password) = uri
                .userinfo
                .as_deref()
                .and_then(|userinfo| userinfo.split_once(':'))
                .expect("the URL has a user and a password");
            assert_eq!(percent_decoded(read_user), *user);
            assert_eq!(percent_decoded(read_password), *password);
        });
    }
}
