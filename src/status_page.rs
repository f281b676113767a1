//! A web page that shows the peers to an operator, and the same report as JSON.
//!
//! The page works with any web framework: [`StatusPage::respond`] turns the parts of a request into a
//! [`Response`], which converts into an `http::Response<String>`. In a Rocket application the page is
//! mounted in one line ([`diesel_peers::rocket`](crate::rocket)). The example `axum-example` mounts it like this:
//!
//! ```ignore
//! use std::sync::Arc;
//!
//! use axum::Router;
//! use axum::body::Bytes;
//! use axum::extract::{RawQuery, State};
//! use axum::http::uri::Authority;
//! use axum::http::{HeaderMap, Method, Response, Uri};
//! use axum::routing::any;
//! use diesel_peers::status_page::StatusPage;
//!
//! pub(crate) fn route(path: &str, page: StatusPage) -> Router {
//!     Router::new().route(path, any(respond)).with_state(Arc::new(page))
//! }
//!
//! async fn respond(
//!     State(page): State<Arc<StatusPage>>,
//!     method: Method,
//!     uri: Uri,
//!     RawQuery(query): RawQuery,
//!     headers: HeaderMap,
//!     body: Bytes,
//! ) -> Response<String> {
//!     // In HTTP/2 the host is a part of the address.
//!     let host = |name: &str| uri.authority().filter(|_| name == "Host").map(Authority::as_str);
//!     let header = |name: &str| headers.get(name).and_then(|it| it.to_str().ok()).or(host(name));
//!     page.respond(method.as_str(), query.as_deref(), header, &body).into()
//! }
//!
//! // In the application, beside its own routes:
//! Router::new().merge(route("/peers", StatusPage::new().pool(peers_of_shop).with_actions()))
//! ```
//!
//! # Security
//!
//! The page has no authentication. It shows no URL and no password, but the names of the peers, and error
//! messages of client libraries, which contain hosts, ports and users. Mount it where only operators have
//! access.
//!
//! [`with_actions`](StatusPage::with_actions) adds buttons that drain and resume peers. Whoever can open
//! the page can press them, so such a page belongs behind the application's or a proxy's login. A private
//! network alone is not enough: a site in a colleague's browser can reach the page by DNS rebinding.
//!
//! Cross-site requests (CSRF) are rejected: a form must contain the token that is embedded in the page, and
//! the headers `Origin` and `Sec-Fetch-Site` must not name another site. (Every browser sends at least one
//! of the two; other programs need not.) A proxy in front of the page must pass on the `Host` header that
//! the browser sent.
//!
//! # The JSON report
//!
//! The page's address with the query `json` (`/peers?json`) returns the content of the page for programs.
//! Keys may be added; within one major version none is renamed or removed. Times of day are RFC 3339 in UTC.
//! Keys that end in `seconds` are numbers of seconds with a fraction. A value that is unknown or does not
//! apply is `null`. Counters start at 0 when the peer is added.
//!
//! | key | value |
//! |---|---|
//! | `at` | The time of the report. |
//! | `process.id` | A random text, drawn when the page is created. Another one means another process, or a restart. |
//! | `process.pid` | The process id. |
//! | `process.host` | The name of the machine or container, or `null`. |
//! | `process.uptime_seconds` | The time since the page was created, by a monotonic clock. |
//! | `actions` | Whether the page has buttons. |
//! | `pools[].name` | The name of the pool. Further pools of the same name get a number: `… (2)`. |
//! | `pools[].closed` | Whether the pool is closed; the other values are the last known ones. |
//! | `pools[].host_failure` | Why this host cannot open connections, whichever the peer, or `null`. |
//! | `pools[].events_dropped` | The number of events that the event handler missed, because its queue was full. |
//! | `pools[].retry_budget`, `….retry_budget_max` | How many interrupted transactions may be run again at the moment, and the most that this can be. |
//! | `pools[].peers[].id` | A number that distinguishes the peer from others of the same name in this process. |
//! | `….name` | The name of the peer. |
//! | `….state` | `up`, `down`, `degraded` (logins fail, sessions work), `draining` or `drained`. |
//! | `….is_available` | Whether the peer gets new work: it is up, in service, and its weight is above 0. |
//! | `….since`, `….for_seconds` | When the state began, and for how long it has lasted. |
//! | `….reason` | Why the peer is down, or why the last check failed: the client library's message. |
//! | `….fault` | The kind of that error: `peer_down`, `peer_not_ready`, `peer_full`, `out_of_resources`, `wrong_role`, `misconfigured`, `connection_lost`, `retryable` or `query`. |
//! | `….is_full` | Whether the peer refused the last login because it has no free connection. |
//! | `….is_at_limit` | Whether the pool lacks connections because the peer has reached `max_connections`, and no other has room. |
//! | `….slow_for_seconds` | For how long the peer has been an outlier: alive, and much slower than the other peers; else `null`. |
//! | `….is_unresponsive` | Whether a query has been running for 100 ms without any answer from the peer since it began. |
//! | `….is_being_removed` | Whether the peer is being removed: it cannot be resumed, and a new peer may have its name. |
//! | `….remarks[]` | `reason` and the flags above, as sentences; the wording may change. |
//! | `….next_check_seconds` | The time until the next check; 0 means now. |
//! | `….weight`, `….tier`, `….max_connections` | As configured; the last is `null` without a limit. |
//! | `….connections`, `….in_use` | Open connections of the pool, and how many of them are in use. |
//! | `….connecting`, `….stuck_logins` | Logins in progress, and logins that passed their deadline and have not ended yet. |
//! | `….connects`, `….connect_failures` | Counters: connections opened, and failed logins, including those of checks. |
//! | `….checkouts`, `….queries`, `….queries_lost` | Counters: checkouts served, queries ended, and queries that ended with a lost connection. |
//! | `….query_seconds` | A counter: the total duration of `queries`. |
//! | `….transactions.retries`, `….retries_refused` | Counters: transactions and reads that were interrupted and run again, and those that were not, because the retry budget was used up. |
//! | `….transactions.commits_in_doubt` | A counter: `COMMIT`s whose error does not say whether they were executed. |
//! | `….transactions.found_committed`, `….found_aborted`, `….outcomes_unknown` | Counters: runs of `transaction_with_retry` that were in doubt, and what was found out. |
//! | `….transactions.sessions_ended` | A counter: sessions of transactions whose connection was lost that were ended through the peer. |
//! | `pools[].events[]` | The last changes of state, up to 100, the newest last. |
//! | `pools[].events[].at`, `….peer` | When the event happened, and to which peer. |
//! | `….event` | The name of its [`EventKind`](crate::EventKind), such as `down` or `has_room`. |
//! | `….in_service` | Whether the peer was in service, that is, neither draining nor drained. |
//! | `….text` | The event as a sentence, whose wording may change. |
//!
//! A button of the page is a form that is sent by `POST` to the same address, with the fields `token`,
//! `pool`, `peer` and `action` (`drain` or `resume`). If no other peer of the pool is available, `drain`
//! is answered with a request for confirmation (status 409), and needs the field `confirm=yes` as well.

mod actions;
mod csrf;
mod error;
mod html;
mod report;

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Instant, SystemTime};

use rand::TryRng;
use rand::rngs::SysRng;
use serde_json::{Value, json};

use crate::peers::handle::Peers;
use actions::ActionOutcome;
#[cfg(feature = "rocket")]
pub(crate) use csrf::MAX_FORM_BYTES;
use error::PageError;
use report::{Process, StatusReport};

/// The query that selects the JSON report.
const JSON: &str = "json";

/// The headers of every response. `Referrer-Policy: no-referrer` would make browsers withhold the
/// `Origin` of the page's own forms.
const HEADERS: [(&str, &str); 4] = [
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "same-origin"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
];

/// The content security policy of responses that are not HTML.
const DENY_ALL: &str = "default-src 'none'; frame-ancestors 'none'";

/// A web page that shows the peers of one or more pools.
///
/// Create it once and share it: each page has a token of its own, and rejects forms of other pages.
///
/// ```
/// use diesel_peers::status_page::StatusPage;
///
/// # fn serve(peers_of_shop: diesel_peers::Peers, peers_of_users: diesel_peers::Peers) {
/// let page = StatusPage::new().pool(peers_of_shop).pool(peers_of_users);
/// let response = page.respond("GET", Some("json"), |_| None, b"");
/// assert_eq!(response.status, 200);
/// # }
/// ```
pub struct StatusPage {
    pools: Vec<Peers>,
    has_actions: bool,
    token: String,
    process: Process,
}

impl StatusPage {
    /// Creates a page without pools and without buttons.
    ///
    /// # Panics
    ///
    /// If the operating system provides no randomness.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the page shows for how long it has existed")]
    pub fn new() -> Self {
        Self {
            pools: Vec::new(),
            has_actions: false,
            token: random_token(),
            process: Process::current(random_token(), Instant::now()),
        }
    }

    /// Adds a pool to the page.
    #[must_use]
    pub fn pool(mut self, peers: Peers) -> Self {
        self.pools.push(peers);
        self
    }

    /// Adds to each peer a button that drains or resumes it. The page has no authentication: see
    /// [Security](self#security).
    ///
    /// Defaults to no buttons; the page then rejects every method but `GET` and `HEAD`.
    #[must_use]
    pub fn with_actions(mut self) -> Self {
        self.has_actions = true;
        self
    }

    /// Responds to a request, given by its method, its query (the part after the `?`), a function that
    /// looks up a header by its name, and its body. The path is not needed: the application chooses it.
    ///
    /// Never waits for a server: the page shows what the pools know already.
    ///
    /// # Panics
    ///
    /// If the operating system provides no randomness.
    pub fn respond<'h>(
        &self,
        method: &str,
        query: Option<&str>,
        header: impl Fn(&str) -> Option<&'h str>,
        body: &[u8],
    ) -> Response {
        let pools = self.pools.iter().map(|peers| (peers.pool_name().to_owned(), peers.clone()));
        self.respond_for_pools(pools.collect(), method, query, header, body)
    }

    /// Responds as [`respond`](Self::respond) does, but shows these pools.
    pub(crate) fn respond_for_pools<'h>(
        &self,
        pools: Vec<(String, Peers)>,
        method: &str,
        query: Option<&str>,
        header: impl Fn(&str) -> Option<&'h str>,
        body: &[u8],
    ) -> Response {
        let pools = with_unique_names(pools);
        let query = query.unwrap_or_default().as_bytes();
        let as_json = form_urlencoded::parse(query).any(|(name, _)| name == JSON);
        let outcome = match method {
            "GET" | "HEAD" => return self.report_response(&pools, as_json),
            "POST" if self.has_actions => csrf::check(header, body, &self.token)
                .and_then(|form| actions::perform(&pools, &form)),
            _ => Err(PageError::MethodNotAllowed { has_actions: self.has_actions }),
        };
        match outcome {
            Ok(ActionOutcome::Done) if as_json => self.report_response(&pools, true),
            // The page's own address, so that reloading does not send the form again.
            Ok(ActionOutcome::Done) => Response::new(303, "text/plain", DENY_ALL, String::new())
                .with_header("Location", "?".to_owned()),
            Ok(ActionOutcome::NeedsConfirmation(drain)) if as_json => {
                Response::json(409, &json!({ "confirm": drain.text() }))
            }
            Ok(ActionOutcome::NeedsConfirmation(drain)) => {
                Response::html(409, |nonce| html::confirmation(&drain, &self.token, nonce))
            }
            Err(error) => self.error_response(&error, as_json),
        }
    }

    #[cfg(feature = "rocket")]
    pub(crate) fn pools(&self) -> &[Peers] {
        &self.pools
    }

    #[cfg(feature = "rocket")]
    pub(crate) fn has_actions(&self) -> bool {
        self.has_actions
    }

    #[expect(clippy::disallowed_methods, reason = "the page shows the present state")]
    fn report_response(&self, pools: &[(String, Peers)], as_json: bool) -> Response {
        let snapshots = pools.iter().map(|(name, peers)| {
            let mut snapshot = peers.snapshot();
            snapshot.pool_name.clone_from(name);
            snapshot
        });
        let report = StatusReport {
            at: SystemTime::now(),
            now: Instant::now(),
            process: &self.process,
            has_actions: self.has_actions,
            pools: snapshots.collect(),
        };
        if as_json {
            Response::json(200, &report.to_json())
        } else {
            Response::html(200, |nonce| html::page(&report, &self.token, nonce))
        }
    }

    fn error_response(&self, error: &PageError, as_json: bool) -> Response {
        let response = if as_json {
            Response::json(error.status(), &json!({ "error": error.to_string() }))
        } else {
            Response::html(error.status(), |nonce| html::error(error, nonce))
        };
        let allowed = if self.has_actions { "GET, HEAD, POST" } else { "GET, HEAD" };
        match error {
            PageError::MethodNotAllowed { .. } => response.with_header("Allow", allowed.to_owned()),
            _ => response,
        }
    }
}

impl Default for StatusPage {
    fn default() -> Self {
        Self::new()
    }
}

/// Omits the token, which is a secret.
impl fmt::Debug for StatusPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusPage")
            .field("pools", &self.pools.len())
            .field("has_actions", &self.has_actions)
            .finish_non_exhaustive()
    }
}

/// An HTTP response of the [`StatusPage`].
///
/// Frameworks built on `http` 1, such as axum and hyper, take it as an `http::Response<String>`; for
/// others, copy the fields.
///
/// ```
/// # let page = diesel_peers::status_page::StatusPage::new();
/// let response: http::Response<String> = page.respond("GET", None, |_| None, b"").into();
/// assert_eq!(response.headers()["Cache-Control"], "no-store");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Response {
    /// The HTTP status code.
    pub status: u16,
    /// The names and values of the headers, without `Content-Length`. The framework must not add a second
    /// `Content-Type`.
    pub headers: Vec<(&'static str, String)>,
    /// The body. A `HEAD` request gets it as well: the server has to omit it.
    pub body: String,
}

impl Response {
    fn new(status: u16, content_type: &str, policy: &str, body: String) -> Self {
        let mut headers = vec![
            ("Content-Type", format!("{content_type}; charset=utf-8")),
            ("Content-Security-Policy", policy.to_owned()),
        ];
        headers.extend(HEADERS.map(|(name, value)| (name, value.to_owned())));
        Self { status, headers, body }
    }

    fn json(status: u16, value: &Value) -> Self {
        Self::new(status, "application/json", DENY_ALL, value.to_string())
    }

    /// Renders the page with a new nonce. The policy allows only the script and the style that carry it.
    fn html(status: u16, render: impl FnOnce(&str) -> String) -> Self {
        let nonce = random_token();
        let policy = format!(
            "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
             connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        );
        Self::new(status, "text/html", &policy, render(&nonce))
    }

    fn with_header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// Panics if the application has changed the response's fields to values that HTTP does not allow.
impl From<Response> for http::Response<String> {
    fn from(Response { status, headers, body }: Response) -> Self {
        let builder = http::Response::builder().status(status);
        let builder =
            headers.into_iter().fold(builder, |builder, (name, value)| builder.header(name, value));
        builder.body(body).expect("the status and the headers are valid in HTTP")
    }
}

/// 128 random bits in hexadecimal digits.
fn random_token() -> String {
    let half = || SysRng.try_next_u64().expect("the operating system provides randomness");
    format!("{:016x}{:016x}", half(), half())
}

/// Appends numbers to names that occur more than once.
fn with_unique_names(pools: Vec<(String, Peers)>) -> Vec<(String, Peers)> {
    let mut taken = BTreeSet::new();
    let unique = |name: String| {
        let numbered = (2..).map(|number| format!("{name} ({number})"));
        let mut candidates = std::iter::once(name.clone()).chain(numbered);
        candidates.find(|name| taken.insert(name.clone())).unwrap_or(name)
    };
    let (names, peers): (Vec<_>, Vec<_>) = pools.into_iter().unzip();
    names.into_iter().map(unique).zip(peers).collect()
}

#[cfg(test)]
mod tests;
