//! Why a request did nothing: its status, and in words.

use std::fmt;

/// Why a request did nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PageError {
    Method {
        has_actions: bool,
    },
    /// Another site has had the browser send it.
    OtherSite,
    /// It has not the token of this page.
    OtherPage,
    NoForm,
    /// The name that was given, and those that there are.
    NoPool(String, Vec<String>),
    Closed(String),
    Peers(String),
}

impl PageError {
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::Method { .. } => 405,
            Self::OtherSite | Self::OtherPage => 403,
            Self::NoForm => 400,
            Self::NoPool(..) | Self::Closed(_) | Self::Peers(_) => 409,
        }
    }
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Method { has_actions: false } => {
                f.write_str("This page is only to be looked at: it has no buttons.")
            }
            Self::Method { has_actions: true } => {
                f.write_str("Nothing was done: this page is asked by GET, HEAD or POST.")
            }
            Self::OtherSite => f.write_str(
                "Nothing was done: this was not sent from this page, or a proxy in between has not \
                 passed on the Host header.",
            ),
            Self::OtherPage => f.write_str(
                "Nothing was done: the page is not of the process that answers now. The application \
                 was restarted, or several processes share this address. Reload the page.",
            ),
            Self::NoForm => f.write_str("Nothing was done: this is no form of this page."),
            Self::NoPool(pool, pools) => {
                let pools = pools.join(", ");
                write!(f, "Nothing was done: there is no pool {pool}: the pools are {pools}.")
            }
            Self::Closed(pool) => write!(f, "Nothing was done: the pool {pool} is closed."),
            Self::Peers(error) => write!(f, "Nothing was done: {error}."),
        }
    }
}
