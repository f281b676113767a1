//! A page on which an operator sees the peers, and its JSON.
//!
//! It needs no framework: [`StatusPage::respond`] makes an answer of a request's parts, and whatever
//! serves the application hands both on. In a Rocket application it is a route, with one line
//! ([`diesel_peers::rocket`](crate::rocket)). In axum it is this, of the example in `examples/axum`:
//!
//! ```ignore
//! use std::sync::Arc;
//!
//! use axum::Router;
//! use axum::body::{Body, Bytes};
//! use axum::extract::{RawQuery, State};
//! use axum::http::uri::Authority;
//! use axum::http::{HeaderMap, Method, Uri};
//! use axum::response::Response;
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
//! ) -> Response {
//!     // Under HTTP/2 the host is a part of the address.
//!     let host = |name: &str| uri.authority().filter(|_| name == "Host").map(Authority::as_str);
//!     let header = |name: &str| headers.get(name).and_then(|it| it.to_str().ok()).or(host(name));
//!     let answer = page.respond(method.as_str(), query.as_deref(), header, &body);
//!     let mut response = Response::builder().status(answer.status);
//!     for (name, value) in answer.headers {
//!         response = response.header(name, value);
//!     }
//!     response.body(Body::from(answer.body)).expect("the page's headers are those of HTTP")
//! }
//!
//! // And in the application, where `/` is what it serves:
//! Router::new().merge(route("/peers", StatusPage::new().pool(peers_of_shop).with_actions()))
//! ```
//!
//! # Who may see it
//!
//! It shows no URL and no password, but names of peers, and errors in the words of client libraries,
//! which tell of hosts, ports and users. So it belongs where visitors do not come.
//!
//! [`with_actions`](StatusPage::with_actions) adds buttons that drain a peer and have it serve again.
//! Requests that other sites have an operator's browser send are refused: a form has to bring the token
//! that stands in the page, and the headers by which browsers tell where it comes from (`Origin`,
//! `Sec-Fetch-Site`) must not say that it comes from elsewhere. (Every browser sends one of them; a
//! program that is none need not. A proxy in front has to pass on the `Host` that the browser sent.) That
//! is no login: whoever can open the page can press its buttons. It has to lie behind the application's
//! own, or behind that of a proxy. A network of one's own keeps strangers out, but not the site in a
//! colleague's browser whose name is made to lead to this address (DNS rebinding); a login does.
//!
//! # The JSON
//!
//! The page's own address with the query `json` (`/peers?json`) is what the page shows, for programs.
//! Keys may be added, and are neither renamed nor removed. Times of day are RFC 3339 in UTC; what ends
//! in `seconds` is a number of seconds with its fraction; what is not known or not the case is `null`.
//! Counters count since the peer became one.
//!
//! | key | what |
//! |---|---|
//! | `at` | When this was so. |
//! | `process.id` | Drawn by chance when the page was made: another one is another process, or the same after a restart. |
//! | `process.pid` | The process's number. |
//! | `process.host` | The name of its machine or container, or `null`. |
//! | `process.uptime_seconds` | Since the page was made, by a clock that is never set. |
//! | `actions` | Whether the page has buttons. |
//! | `pools[].name` | What the pool is called. Of two that are called the same the second one is `… (2)`. |
//! | `pools[].closed` | Whether it is gone; all else is what was last known. |
//! | `pools[].events_dropped` | How many events the application's handler was not told, as it had not kept up. |
//! | `pools[].peers[].id` | A number that tells the peer from another one of its name, in this process. |
//! | `….name` | The peer's name. |
//! | `….state` | `up`, `down`, `draining` or `drained`. |
//! | `….is_available` | Whether it is up, in service and of a weight above 0. |
//! | `….since`, `….for_seconds` | Since when, and for how long. |
//! | `….reason` | Why it is down, or the last check failed: a client library's words. |
//! | `….fault` | What that says: `peer_down`, `peer_not_ready`, `peer_full`, `wrong_role`, `misconfigured`, `connection_lost`, `retryable` or `query`. |
//! | `….is_full` | Whether it had no connection to give. |
//! | `….is_unresponsive` | Whether a query waits there and nothing is heard. |
//! | `….is_being_removed` | Whether it is being removed: it cannot be resumed, and another one may have its name. |
//! | `….remarks[]` | The same in words, which may change. |
//! | `….next_check_seconds` | In how many seconds it is checked; 0 is now. |
//! | `….weight`, `….tier` | As they are set. |
//! | `….connections`, `….in_use` | Connections of the pool that are open, and those of them in use. |
//! | `….connecting`, `….stuck_logins` | Logins that are under way, and those that were given up and could not be ended. |
//! | `….connects`, `….connect_failures` | Counters: connections that were made, and logins that failed, those of checks too. |
//! | `….checkouts`, `….queries`, `….queries_lost` | Counters: checkouts served, queries ended, and queries that ended with a lost connection. |
//! | `….query_seconds` | A counter: how long those queries took, all together. |
//! | `pools[].events[]` | The last changes of state, up to 100, the newest last. |
//! | `….at`, `….peer` | When, and whose. |
//! | `….event` | What: the name of its [`EventKind`](crate::EventKind), as `down` or `has_room`. |
//! | `….in_service` | Whether the peer was in service, and not drained. |
//! | `….text` | The same in words, which may change. |
//!
//! A button of the page is a form in a `POST` to the same address, with the fields `token`, `pool`,
//! `peer` and `action` (`drain` or `resume`). Where draining would leave no peer that serves, the
//! answer is a question, and `confirm=yes` answers it.

mod actions;
mod csrf;
mod error;
mod escape;
mod html;
mod report;
mod time;

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Instant, SystemTime};

use rand::TryRng;
use rand::rngs::SysRng;

use crate::peers::handle::Peers;
use actions::Outcome;
#[cfg(feature = "rocket")]
pub(crate) use csrf::LONGEST;
use error::PageError;
use report::{Process, Report};

/// The query under which the page is JSON.
const JSON: &str = "json";

/// On every answer. The `Referrer-Policy` is none that withholds the `Origin` from our own forms.
const HEADERS: [(&str, &str); 4] = [
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "same-origin"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
];

/// What an answer may do that is no page.
const NOTHING: &str = "default-src 'none'; frame-ancestors 'none'";

/// A page on which an operator sees the peers of one or more pools.
///
/// It is made once: the token that its buttons send is its own, and another page's is refused.
///
/// ```
/// use diesel_peers::status_page::StatusPage;
///
/// # fn serve(peers_of_shop: diesel_peers::Peers, peers_of_users: diesel_peers::Peers) {
/// let page = StatusPage::new().pool(peers_of_shop).pool(peers_of_users);
/// let answer = page.respond("GET", Some("json"), |_| None, b"");
/// assert_eq!(answer.status, 200);
/// # }
/// ```
pub struct StatusPage {
    pools: Vec<Peers>,
    has_actions: bool,
    token: String,
    process: Process,
}

impl StatusPage {
    /// A page without pools and without buttons.
    ///
    /// # Panics
    ///
    /// When the operating system gives no randomness.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "it tells how old it is")]
    pub fn new() -> Self {
        Self {
            pools: Vec::new(),
            has_actions: false,
            token: draw(),
            process: Process::this(draw(), Instant::now()),
        }
    }

    /// Shows the peers of this pool as well.
    #[must_use]
    pub fn pool(mut self, peers: Peers) -> Self {
        self.pools.push(peers);
        self
    }

    /// Gives each peer a button that drains it, or has it serve again. See
    /// [above](self#who-may-see-it) who must not reach the page then.
    ///
    /// Defaults to no buttons, and any request but a `GET` is refused.
    #[must_use]
    pub fn with_actions(mut self) -> Self {
        self.has_actions = true;
        self
    }

    /// Answers a request: its method, its query (what stands behind the `?`), its headers by name, and
    /// its body. The path is the application's choice.
    ///
    /// It waits for no server, and does no more than to read what the pools know.
    ///
    /// # Panics
    ///
    /// When the operating system gives no randomness.
    pub fn respond<'h>(
        &self,
        method: &str,
        query: Option<&str>,
        header: impl Fn(&str) -> Option<&'h str>,
        body: &[u8],
    ) -> Response {
        let pools = self.pools.iter().map(|peers| (peers.pool_name().to_owned(), peers.clone()));
        self.respond_of(pools.collect(), method, query, header, body)
    }

    /// As [`respond`](Self::respond), of these pools.
    pub(crate) fn respond_of<'h>(
        &self,
        pools: Vec<(String, Peers)>,
        method: &str,
        query: Option<&str>,
        header: impl Fn(&str) -> Option<&'h str>,
        body: &[u8],
    ) -> Response {
        let pools = told_apart(pools);
        let is_json = |part: &str| part.split('=').next() == Some(JSON);
        let wants_json = query.is_some_and(|query| query.split('&').any(is_json));
        let outcome = match method {
            "GET" | "HEAD" => return self.show(&pools, wants_json),
            "POST" if self.has_actions => {
                csrf::check(header, body, &self.token).and_then(|form| actions::act(&pools, &form))
            }
            _ => Err(PageError::Method { has_actions: self.has_actions }),
        };
        match outcome {
            Ok(Outcome::Done) if wants_json => self.show(&pools, true),
            // The page's own address, without what was sent to it.
            Ok(Outcome::Done) => Response::new(303, "text/plain", NOTHING, String::new())
                .with("Location", "?".to_owned()),
            Ok(Outcome::Asks(question)) if wants_json => {
                Response::json(409, &serde_json::json!({ "confirm": question.text() }))
            }
            Ok(Outcome::Asks(question)) => {
                let nonce = draw();
                let page = html::question(&question, &self.token, &nonce);
                Response::html(409, &nonce, page)
            }
            Err(refusal) => {
                let status = refusal.status();
                let response = if wants_json {
                    Response::json(status, &serde_json::json!({ "error": refusal.to_string() }))
                } else {
                    let nonce = draw();
                    Response::html(status, &nonce, html::refusal(&refusal, &nonce))
                };
                let allowed = if self.has_actions { "GET, HEAD, POST" } else { "GET, HEAD" };
                match refusal {
                    PageError::Method { .. } => response.with("Allow", allowed.to_owned()),
                    _ => response,
                }
            }
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

    #[expect(clippy::disallowed_methods, reason = "what is shown is shown as of now")]
    fn show(&self, pools: &[(String, Peers)], as_json: bool) -> Response {
        let snapshots = pools.iter().map(|(name, peers)| (name.clone(), peers.snapshot()));
        let report = Report {
            at: SystemTime::now(),
            now: Instant::now(),
            process: &self.process,
            has_actions: self.has_actions,
            pools: snapshots.collect(),
        };
        if as_json {
            return Response::json(200, &report.json());
        }
        let nonce = draw();
        Response::html(200, &nonce, html::page(&report, &self.token, &nonce))
    }
}

impl Default for StatusPage {
    fn default() -> Self {
        Self::new()
    }
}

/// Without the token, which is a secret.
impl fmt::Debug for StatusPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusPage")
            .field("pools", &self.pools.len())
            .field("has_actions", &self.has_actions)
            .finish_non_exhaustive()
    }
}

/// What a request is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Response {
    /// The status of HTTP.
    pub status: u16,
    /// Names and values. Its length is not among them.
    pub headers: Vec<(&'static str, String)>,
    /// The text. It is there for a `HEAD` as well: what serves it leaves it out.
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

    fn json(status: u16, value: &serde_json::Value) -> Self {
        Self::new(status, "application/json", NOTHING, value.to_string())
    }

    /// Nothing runs, and nothing is loaded, but what stands in the page itself, under this nonce.
    fn html(status: u16, nonce: &str, page: String) -> Self {
        let policy = format!(
            "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
             connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        );
        Self::new(status, "text/html", &policy, page)
    }

    fn with(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// 128 bits by chance, that nobody can guess.
fn draw() -> String {
    let half = || SysRng.try_next_u64().expect("the operating system gives randomness");
    format!("{:016x}{:016x}", half(), half())
}

/// Pools that are called the same are numbered.
fn told_apart(pools: Vec<(String, Peers)>) -> Vec<(String, Peers)> {
    let mut names = BTreeSet::new();
    let name = |name: String| {
        let numbered = (2..).map(|number| format!("{name} ({number})"));
        let mut all = std::iter::once(name.clone()).chain(numbered);
        let free = all.find(|name| names.insert(name.clone()));
        free.unwrap_or(name)
    };
    let (found, peers): (Vec<_>, Vec<_>) = pools.into_iter().unzip();
    found.into_iter().map(name).zip(peers).collect()
}

#[cfg(test)]
mod tests;
