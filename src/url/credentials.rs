//! Who logs in, when that is not in the URLs.

use std::error::Error;
use std::fmt;

use crate::error::REDACTED;

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
