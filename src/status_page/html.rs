//! The page as it is before its script has run, and for those who have none. What is not written here
//! goes through [`Text`].

use std::time::Duration;

use super::actions::Question;
use super::error::PageError;
use super::escape::{ScriptData, Text};
use super::report::{Process, Report, is_served, remarks, serving};
use super::time::Utc;
use crate::event::Event;
use crate::peers::snapshot::table::{format_duration, format_remaining};
use crate::peers::snapshot::{PeerState, PeerStatus, Snapshot};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// How many events the page shows: what fits on a screen beside the peers.
const EVENTS: usize = 20;

/// Titles of the columns, and what is said of them where they are too narrow to say it.
const HEADS: [&str; 9] = [
    "Peer",
    "State",
    "Next check",
    "In use / open",
    "Weight",
    "Share of work",
    "Queries",
    "Query time",
    "Action",
];

/// The page.
pub(super) fn page(report: &Report<'_>, token: &str, nonce: &str) -> String {
    let Process { pid, host, since, .. } = report.process;
    let host = host.as_ref().map(|host| format!(" on <b>{}</b>", Text(host)));
    let sections: String = report
        .pools
        .iter()
        .enumerate()
        .map(|(number, (name, pool))| section(report, (number, name, pool), token))
        .collect();
    let sections = if sections.is_empty() { "<p>There is no pool.</p>\n" } else { &sections };
    let content = format!(
        r#"<header>
<h1>Database peers</h1>
<p>Process <b>{pid}</b>{host}, running for <span id="uptime">{uptime}</span></p>
<p id="clock"><span id="live">As of</span> <time id="at">{at:#}</time> UTC</p>
</header>
<noscript><p class="notice">This page stands still without scripts: it shows what was so at {at:#} UTC.</p></noscript>
<p id="notice" class="notice" role="status"></p>
<p id="outcome" class="notice" role="status"></p>
<p id="spoken" class="unseen" role="status"></p>
<main>
{sections}</main>
<footer><p id="legend">Share of work, queries and their mean time: since each became a peer.</p>
<p>{reach} <a href="?json">The same as JSON</a></p></footer>
<dialog id="question" aria-labelledby="asked"><form method="dialog">
<p id="asked"></p>
<p class="buttons"><button value="no" autofocus>Leave it in service</button> <button value="yes">Drain it all the same</button></p>
</form></dialog>
<template id="peer">{template}</template>
<script type="application/json" id="report">{data}</script>
<script nonce="{nonce}">{SCRIPT}</script>
"#,
        uptime = format_duration(report.since(*since)),
        at = Utc(report.at),
        reach = if report.has_actions {
            "The buttons act on the pools of this one process."
        } else {
            "These are the pools of this one process."
        },
        host = host.unwrap_or_default(),
        template = row(report, None, "", token),
        data = ScriptData(&report.json()),
    );
    document(&title(report), &content, nonce)
}

/// Asks before nobody serves any more.
pub(super) fn question(question: &Question, token: &str, nonce: &str) -> String {
    let Question { pool, peer } = question;
    let content = format!(
        r#"<header><h1>Drain {name}?</h1></header>
<main>
<p class="notice">{text}</p>
<form method="post">
{fields}<input type="hidden" name="confirm" value="yes">
<p class="buttons"><a href="?">Leave it in service</a> <button name="action" value="drain">Drain it all the same</button></p>
</form>
</main>
"#,
        name = Text(peer),
        text = Text(question.text()),
        fields = fields(token, pool, peer),
    );
    document(&format!("Drain {peer}?"), &content, nonce)
}

/// Says why nothing was done.
pub(super) fn refusal(refusal: &PageError, nonce: &str) -> String {
    let content = format!(
        "<header><h1>Database peers</h1></header>\n<main>\n<p class=\"notice\">{}</p>\n\
         <p><a href=\"?\">To the peers</a></p>\n</main>\n",
        Text(refusal),
    );
    document("Nothing was done", &content, nonce)
}

fn document(title: &str, content: &str, nonce: &str) -> String {
    format!(
        r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="same-origin">
<title>{title}</title>
<style nonce="{nonce}">{STYLE}</style>
{content}</html>
"#,
        title = Text(title),
    )
}

/// What stands in the browser's tab.
fn title(report: &Report<'_>) -> String {
    let pool = |(name, pool): &(String, Snapshot)| {
        if pool.closed {
            return format!("{name} closed");
        }
        format!("{name} {}/{} serve", serving(pool), pool.peers.len())
    };
    let pools: Vec<String> = report.pools.iter().map(pool).collect();
    if pools.is_empty() { "Database peers".to_owned() } else { pools.join(", ") }
}

fn section(
    report: &Report<'_>,
    (number, name, pool): (usize, &str, &Snapshot),
    token: &str,
) -> String {
    let head = |head: &&str| format!("<th role=\"columnheader\" scope=\"col\">{head}");
    let shown = HEADS.iter().filter(|head| report.has_actions || **head != "Action");
    let heads: String = shown.map(head).collect();
    let rows: String =
        pool.peers.iter().map(|peer| row(report, Some((peer, pool)), name, token)).collect();
    let events: String = pool.events.iter().rev().take(EVENTS).map(event).collect();
    format!(
        r#"<section data-pool="{name}" aria-labelledby="pool{number}">
<h2 id="pool{number}">{name}</h2>
<p class="summary"><span data-is="summary">{serving} of {all} peers serve</span><span data-is="work"></span></p>
<p class="notice" data-is="closed"{open}>This pool is closed: what is shown was last known.</p>
<table role="table" aria-labelledby="pool{number}">
<thead role="rowgroup"><tr role="row">{heads}</thead>
{rows}</table>
<h3>Events</h3>
<p data-is="calm"{calm}>Nothing has happened yet.</p>
<ol data-is="events">{events}</ol>
</section>
"#,
        name = Text(name),
        serving = serving(pool),
        all = pool.peers.len(),
        open = hidden(!pool.closed),
        calm = hidden(!pool.events.is_empty()),
    )
}

/// The row of a peer, and an empty one for those that come later.
fn row(
    report: &Report<'_>,
    peer: Option<(&PeerStatus, &Snapshot)>,
    pool: &str,
    token: &str,
) -> String {
    let name = peer.map(|(peer, _)| peer.name.as_str()).unwrap_or_default();
    let state = peer.map_or(PeerState::Up, |(peer, _)| peer.state);
    let tell =
        |tell: &dyn Fn(&PeerStatus) -> String| peer.map(|(peer, _)| tell(peer)).unwrap_or_default();
    let served = |pool: &Snapshot| pool.peers.iter().map(|peer| peer.checkouts).sum();
    let share = peer.and_then(|(peer, pool)| percent(peer.checkouts, served(pool)));
    let remarks = peer.map(|(peer, pool)| remarks(peer, is_served(pool)));
    let remarks = remarks.unwrap_or_default().join(" ");
    let span = if report.has_actions { HEADS.len() } else { HEADS.len() - 1 };
    let button = if report.has_actions {
        let action = action(state);
        format!(
            "<td role=\"cell\" class=\"action\"><form method=\"post\">{}<button name=\"action\" \
             value=\"{action}\" aria-label=\"{word} {name}\"{gone}>{word}</button></form>",
            fields(token, pool, name),
            word = if action == "drain" { "Drain" } else { "Resume" },
            gone = hidden(peer.is_some_and(|(peer, _)| peer.is_being_removed)),
            name = Text(name),
        )
    } else {
        String::new()
    };
    format!(
        r#"<tbody role="rowgroup" data-peer="{name}" data-id="{id}" data-state="{state}">
<tr role="row"><th role="rowheader" scope="row" data-is="name">{name}</th>
<td role="cell" class="state"><span class="sign" aria-hidden="true" data-is="sign">{sign}</span> <b data-is="state">{state}</b> <span class="for">for <span data-is="for">{lasts}</span></span></td>
<td role="cell" class="number" data-head="Next check" data-is="next">{next}</td>
<td role="cell" class="number" data-head="In use / open" data-is="connections">{links}</td>
<td role="cell" class="number" data-head="Weight" data-is="weight">{weight}</td>
<td role="cell" class="number chart" data-head="Share of work"><span data-is="share">{share}</span>{chart}</td>
<td role="cell" class="number chart" data-head="Queries"><span data-is="rate">{queries}</span>{chart}</td>
<td role="cell" class="number chart" data-head="Query time"><span data-is="time">{time}</span>{chart}</td>
{button}</tr>
<tr role="row" class="remarks"{no_remarks}><td role="cell" colspan="{span}" data-is="remarks">{remarks}</td></tr>
</tbody>
"#,
        name = Text(name),
        id = tell(&|peer| peer.id.to_string()),
        sign = sign(state),
        lasts = tell(&|peer| format_duration(report.since(peer.since))),
        next = tell(&|peer| match format_remaining(report.until(peer.next_check)) {
            Some(left) => format!("in {left}"),
            None => "now".to_owned(),
        }),
        links = tell(&|peer| format!("{} / {}", peer.in_use, peer.connections)),
        weight = tell(&|peer| match peer.tier {
            0 => peer.weight.to_string(),
            tier => format!("{}, tier {tier}", peer.weight),
        }),
        share = share.unwrap_or_else(|| "–".to_owned()),
        queries = tell(&|peer| peer.queries.to_string()),
        time = tell(&|peer| milliseconds(peer.query_time, peer.queries)),
        chart = CHART,
        no_remarks = hidden(remarks.is_empty()),
        remarks = Text(&remarks),
    )
}

/// Where the script draws. It stretches to whatever room there is.
const CHART: &str = r#"<svg role="img" viewBox="0 0 120 24" preserveAspectRatio="none"><path class="off"/><path class="line"/></svg>"#;

fn fields(token: &str, pool: &str, peer: &str) -> String {
    let field = |name: &str, value: &str| {
        format!("<input type=\"hidden\" name=\"{name}\" value=\"{}\">\n", Text(value))
    };
    field("token", token) + &field("pool", pool) + &field("peer", peer)
}

fn event(event: &Event) -> String {
    format!(
        "<li><time datetime=\"{at}\">{at:#}</time> <span>{text}</span></li>",
        at = Utc(event.at),
        text = Text(event),
    )
}

fn action(state: PeerState) -> &'static str {
    match state {
        PeerState::Up | PeerState::Down => "drain",
        PeerState::Draining | PeerState::Drained => "resume",
    }
}

/// A state without its color.
fn sign(state: PeerState) -> char {
    match state {
        PeerState::Up => '●',
        PeerState::Down => '✕',
        PeerState::Draining => '◐',
        PeerState::Drained => '○',
    }
}

fn percent(part: u64, all: u64) -> Option<String> {
    let percent = u128::from(part) * 100 + u128::from(all) / 2;
    Some(format!("{} %", percent.checked_div(u128::from(all))?))
}

fn milliseconds(time: Duration, number: u64) -> String {
    if number == 0 {
        return "–".to_owned();
    }
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let milliseconds = time.as_secs_f64() * 1_000.0 / number as f64;
    match milliseconds {
        ..10.0 => format!("{milliseconds:.2} ms"),
        ..1_000.0 => format!("{milliseconds:.0} ms"),
        _ => format!("{:.1} s", milliseconds / 1_000.0),
    }
}

fn hidden(is_hidden: bool) -> &'static str {
    if is_hidden { " hidden" } else { "" }
}
