//! Who logs in, when that is not in the URLs.

use std::error::Error;
use std::fmt;

use super::PeerUrl;
use super::conninfo::{conninfo, is_keywords};
use super::redaction::Secrets;
use super::uri::{Parameter, Uri, percent_decoded, percent_encoded};
use crate::error::{Flaw, REDACTED};

/// A user and a password to log in with, from
/// [`credentials`](crate::PeerManagerBuilder::credentials). `Debug` does not show the password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
}

impl Credentials {
    /// This user with this password.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: Some(user.into()), password: Some(password.into()) }
    }

    /// This password; the user is the one of the peer's URL.
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

/// Asks the application who logs in to the peer of this name.
pub(crate) type AskCredentials =
    dyn Fn(&str) -> Result<Credentials, Box<dyn Error + Send + Sync>> + Send + Sync;

impl PeerUrl {
    /// This URL with another user and password.
    pub(crate) fn with_credentials(&self, credentials: &Credentials) -> Result<Self, Flaw> {
        let Credentials { user, password } = credentials;
        if let Some(mut uri) =
            Uri::parse(&self.url).ok().filter(|uri| !["sqlite", "file"].contains(&&*uri.scheme))
        {
            // libpq prefers these to what stands before the host.
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
        if !is_keywords(&self.url) {
            return Err("has no place for a user or a password".into());
        }
        // Of several libpq takes the last.
        let mut url = self.url.clone();
        for (key, value) in [("user", user), ("password", password)] {
            if let Some(value) = value {
                let quoted = value.replace('\\', r"\\").replace('\'', r"\'");
                url = format!("{url} {key}='{quoted}'");
            }
        }
        // Quoted as it is there, it is another text than a message would quote.
        Ok(Self { secrets: Secrets::of(&url, password.as_deref()), url })
    }

    /// Which of a user and a password it names itself, where these would have others in their place.
    pub(crate) fn contradicts(&self, credentials: &Credentials) -> Option<&'static str> {
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

    /// Who logs in by the URL alone.
    fn credentials(&self) -> Credentials {
        let Credentials { user, password } = self.written_credentials();
        let is_libpqs = is_keywords(&self.url) || self.url.starts_with("postgres");
        // For libpq what is empty is as if it was not there.
        let given = |text: &String| !(is_libpqs && text.is_empty());
        Credentials { user: user.filter(given), password: password.filter(given) }
    }

    fn written_credentials(&self) -> Credentials {
        let Ok(uri) = Uri::parse(&self.url) else {
            let settings = conninfo(&self.url).unwrap_or_default();
            // Of several libpq takes the last.
            let last = |wanted: &str| settings.iter().rfind(|(key, _)| key == wanted);
            let last = |wanted: &str| last(wanted).map(|(_, value)| value.clone());
            return Credentials { user: last("user"), password: last("password") };
        };
        let given = uri.userinfo.as_deref().filter(|given| !given.is_empty());
        let (user, password) = given.map(user_and_password).unzip();
        let password = password.flatten();
        let last = |wanted: &str| uri.parameters.iter().rfind(|it| it.key == wanted);
        let last = |wanted: &str| last(wanted).and_then(|it| it.value.as_deref());
        // libpq prefers its parameters; other libraries know none of these.
        Credentials {
            user: last("user").or(user).map(percent_decoded),
            password: last("password").or(password).map(percent_decoded),
        }
    }
}

/// What stands before the host, taken apart.
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
    use crate::dialect::Dialect;

    fn url(text: &str) -> PeerUrl {
        PeerUrl::new(text.to_owned())
    }

    #[test]
    fn credentials_take_their_place() {
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
            let secret = credentials.password.as_deref().expect("it has one");
            assert_eq!(url.redact(secret), REDACTED, "they are secrets as well");
        }
        for path in ["shop.db", "file:shop.db?mode=rw", "file:///srv/shop.db", "sqlite://shop.db"] {
            url(path).with_credentials(&both).expect_err("a file asks nobody who they are");
        }
    }

    #[test]
    fn who_logs_in_by_the_url_alone() {
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
    fn contradictions_are_noticed() {
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
            assert_eq!(url(given).contradicts(credentials), expected, "{given}");
        }
    }

    #[test]
    fn credentials_come_through() {
        let user_and_password = |rng: &mut SmallRng| (any_text(rng, 1..=32), any_text(rng, 0..=32));
        for_each_case(user_and_password, |(user, password)| {
            let given = Credentials::new(&**user, &**password);
            let url = url("mysql://db0/shop").with_credentials(&given).expect("it has a place");
            assert_eq!(url.check(Dialect::MySql), Ok(()));
            let uri = Uri::parse(url.expose()).expect("it is one");
            let (read_user, read_password) = uri
                .userinfo
                .as_deref()
                .and_then(|userinfo| userinfo.split_once(':'))
                .expect("both");
            assert_eq!(percent_decoded(read_user), *user);
            assert_eq!(percent_decoded(read_password), *password);
        });
    }
}
