//! Why the page refused a request.

use std::fmt;

/// Why the page refused a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PageError {
    MethodNotAllowed {
        has_actions: bool,
    },
    /// The browser sent the form from another site.
    CrossSite,
    /// The form does not contain the token of this page.
    WrongToken,
    InvalidForm,
    /// The given name, and the names of all pools.
    UnknownPool(String, Vec<String>),
    PoolClosed(String),
    /// The message of the [`ChangeError`](crate::ChangeError).
    ChangeFailed(String),
}

impl PageError {
    /// The HTTP status code.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::MethodNotAllowed { .. } => 405,
            Self::CrossSite | Self::WrongToken => 403,
            Self::InvalidForm => 400,
            Self::UnknownPool(..) | Self::PoolClosed(_) | Self::ChangeFailed(_) => 409,
        }
    }
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nothing was done: ")?;
        match self {
            Self::MethodNotAllowed { has_actions: false } => {
                f.write_str("this page has no buttons; only GET and HEAD are supported.")
            }
            Self::MethodNotAllowed { has_actions: true } => {
                f.write_str("only GET, HEAD and POST are supported.")
            }
            Self::CrossSite => f.write_str(
                "cross-site requests (CSRF) are rejected. If the request came from this page, a proxy \
                 did not pass on the Host header.",
            ),
            Self::WrongToken => f.write_str(
                "the page was loaded from another process. The application was restarted, or several \
                 processes share this address. Reload the page.",
            ),
            Self::InvalidForm => f.write_str("the request is not a valid form of this page."),
            Self::UnknownPool(pool, pools) => {
                write!(f, "there is no pool {pool}: the pools are {}.", pools.join(", "))
            }
            Self::PoolClosed(pool) => write!(f, "the pool {pool} is closed."),
            Self::ChangeFailed(error) => write!(f, "{error}."),
        }
    }
}
