//! The HTML of the page, as the server renders it for the script and for browsers without scripts. The
//! templates beside this file escape every value.

use std::time::{Duration, SystemTime};

use askama::Template;
use serde_json::Value;

use super::actions::LastDrain;
use super::error::PageError;
use super::report::{Process, StatusReport, available, remarks, rfc3339};
use crate::events::Event;
use crate::peers::snapshot::table::{format_duration, format_remaining};
use crate::peers::snapshot::{PeerState, PeerStatus, Snapshot, TransactionCounts};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// How many events the page shows: these fit on a screen below the peers.
const EVENTS: usize = 20;

/// The text of a value that is unknown.
const UNKNOWN: &str = "–";

#[derive(Template)]
#[template(path = "page.html", config = "src/status_page/askama.toml")]
struct Page<'a> {
    nonce: &'a str,
    token: &'a str,
    title: String,
    process: &'a Process,
    uptime: String,
    at: String,
    has_actions: bool,
    pools: Vec<PoolSection<'a>>,
    /// The script adds peers as copies of this row.
    empty_row: PeerRow<'a>,
    report: Value,
}

struct PoolSection<'a> {
    name: &'a str,
    is_closed: bool,
    host_failure: Option<&'a str>,
    available: usize,
    rows: Vec<PeerRow<'a>>,
    transactions: Transactions<'a>,
    events: Vec<EventItem>,
}

#[derive(Default)]
struct PeerRow<'a> {
    pool: &'a str,
    name: &'a str,
    id: String,
    state: String,
    sign: &'static str,
    duration: String,
    next_check: String,
    connections: String,
    weight: String,
    share: String,
    queries: String,
    query_time: String,
    remarks: String,
    action: &'static str,
    button: &'static str,
    is_being_removed: bool,
}

/// What has become of interrupted transactions.
struct Transactions<'a> {
    /// Whether there is anything to show.
    is_hidden: bool,
    budget: String,
    /// The key and the title of each column.
    columns: Vec<(&'static str, &'static str)>,
    /// The peers that have interrupted any.
    rows: Vec<TransactionsRow<'a>>,
}

struct TransactionsRow<'a> {
    peer: &'a str,
    /// The title of each column, and the value in it.
    cells: Vec<(&'static str, u64)>,
}

struct EventItem {
    at: String,
    time: String,
    text: String,
}

#[derive(Template)]
#[template(path = "confirmation.html", config = "src/status_page/askama.toml")]
struct ConfirmationPage<'a> {
    nonce: &'a str,
    token: &'a str,
    drain: &'a LastDrain,
}

#[derive(Template)]
#[template(path = "error.html", config = "src/status_page/askama.toml")]
struct ErrorPage<'a> {
    nonce: &'a str,
    error: &'a PageError,
}

/// The page of all pools.
pub(super) fn page(report: &StatusReport<'_>, token: &str, nonce: &str) -> String {
    render(&Page {
        nonce,
        token,
        title: title(report),
        process: report.process,
        uptime: format_duration(report.since(report.process.since)),
        at: date_and_time(report.at),
        has_actions: report.has_actions,
        pools: report.pools.iter().map(|pool| PoolSection::new(report, pool)).collect(),
        empty_row: PeerRow::default(),
        report: report.to_json(),
    })
}

/// The page that asks for confirmation before no peer is available any more.
pub(super) fn confirmation(drain: &LastDrain, token: &str, nonce: &str) -> String {
    render(&ConfirmationPage { nonce, token, drain })
}

/// The page that shows why nothing was done.
pub(super) fn error(error: &PageError, nonce: &str) -> String {
    render(&ErrorPage { nonce, error })
}

fn render(template: &impl Template) -> String {
    template.render().expect("values are formatted without errors")
}

/// The title of the browser's tab.
fn title(report: &StatusReport<'_>) -> String {
    let pool_title = |pool: &Snapshot| {
        let name = &pool.pool_name;
        if pool.closed {
            return format!("{name} closed");
        }
        format!("{name} {}/{} available", available(pool), pool.peers.len())
    };
    let titles: Vec<String> = report.pools.iter().map(pool_title).collect();
    if titles.is_empty() { "Database peers".to_owned() } else { titles.join(", ") }
}

impl<'a> PoolSection<'a> {
    fn new(report: &StatusReport<'_>, pool: &'a Snapshot) -> Self {
        Self {
            name: &pool.pool_name,
            is_closed: pool.closed,
            host_failure: pool.host_failure.as_deref(),
            available: available(pool),
            rows: pool.peers.iter().map(|peer| PeerRow::new(report, pool, peer)).collect(),
            transactions: Transactions::new(pool),
            events: pool.events.iter().rev().take(EVENTS).map(EventItem::new).collect(),
        }
    }
}

impl<'a> PeerRow<'a> {
    fn new(report: &StatusReport<'_>, pool: &'a Snapshot, peer: &'a PeerStatus) -> Self {
        let checkouts = pool.peers.iter().map(|peer| peer.checkouts).sum();
        let (sign, action, button) = match peer.state {
            PeerState::Up => ("●", "drain", "Drain"),
            PeerState::Down => ("✕", "drain", "Drain"),
            PeerState::Degraded => ("▲", "drain", "Drain"),
            PeerState::Draining => ("◐", "resume", "Resume"),
            PeerState::Drained => ("○", "resume", "Resume"),
        };
        Self {
            pool: &pool.pool_name,
            name: &peer.name,
            id: peer.id.to_string(),
            state: peer.state.to_string(),
            sign,
            duration: format_duration(report.since(peer.since)),
            next_check: match format_remaining(report.until(peer.next_check)) {
                Some(left) => format!("in {left}"),
                None => "now".to_owned(),
            },
            connections: format!("{} / {}", peer.in_use, peer.connections),
            weight: match peer.tier {
                0 => peer.weight.to_string(),
                tier => format!("{}, tier {tier}", peer.weight),
            },
            share: percent(peer.checkouts, checkouts),
            queries: peer.queries.to_string(),
            query_time: mean(peer.query_time, peer.queries),
            remarks: remarks(peer, available(pool)).join(" "),
            action,
            button,
            is_being_removed: peer.is_being_removed,
        }
    }
}

impl<'a> Transactions<'a> {
    fn new(pool: &'a Snapshot) -> Self {
        let columns = TransactionCounts::default().columns();
        let row = |peer: &'a PeerStatus| TransactionsRow {
            peer: &peer.name,
            cells: peer.transactions.columns().map(|(_, title, value)| (title, value)).to_vec(),
        };
        let rows: Vec<_> = pool.peers_with_transactions().map(row).collect();
        let Snapshot { retry_budget, retry_budget_max, .. } = pool;
        Self {
            is_hidden: rows.is_empty() && retry_budget == retry_budget_max,
            budget: format!("{retry_budget} of {retry_budget_max}"),
            columns: columns.map(|(key, title, _)| (key, title)).to_vec(),
            rows,
        }
    }
}

impl EventItem {
    fn new(event: &Event) -> Self {
        let time = date_and_time(event.at);
        Self { at: rfc3339(event.at), time, text: event.to_string() }
    }
}

/// A time of day in UTC, as logs show it: `2024-02-29 12:00:00`.
fn date_and_time(time: SystemTime) -> String {
    rfc3339(time)[..19].replace('T', " ")
}

fn percent(part: u64, total: u64) -> String {
    let rounded = u128::from(part) * 100 + u128::from(total) / 2;
    let percent = rounded.checked_div(u128::from(total));
    percent.map_or_else(|| UNKNOWN.to_owned(), |percent| format!("{percent} %"))
}

fn mean(total: Duration, count: u64) -> String {
    if count == 0 {
        return UNKNOWN.to_owned();
    }
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let milliseconds = total.as_secs_f64() * 1_000.0 / count as f64;
    match milliseconds {
        ..10.0 => format!("{milliseconds:.2} ms"),
        ..1_000.0 => format!("{milliseconds:.0} ms"),
        _ => format!("{:.1} s", milliseconds / 1_000.0),
    }
}
