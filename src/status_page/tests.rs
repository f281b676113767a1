use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::*;
use crate::fault::{Fault, LoginFailure};
use crate::peers::peer::Attempt;
use crate::peers::set::PeerSet;
use crate::peers::set::tests::set_of;
use crate::peers::snapshot::PeerState;
use crate::settings::policy::Recovery;

/// A page with buttons, of one pool with the given number of peers.
struct TestPage {
    page: StatusPage,
    peers: Peers,
    set: Arc<PeerSet>,
    start: Instant,
}

impl TestPage {
    fn new(peers: usize) -> Self {
        let (set, _woken, start) = set_of(peers, Recovery::AfterCheck);
        let peers = Peers::new(set.clone());
        Self { page: StatusPage::new().pool(peers.clone()).with_actions(), peers, set, start }
    }

    fn get(&self, query: Option<&str>) -> Response {
        self.page.respond("GET", query, |_| None, b"")
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.get(Some("json")).body).expect("the report is JSON")
    }

    /// Presses a button of the page. The form has these fields beside the token and the pool.
    fn press(&self, query: Option<&str>, fields: &str) -> Response {
        let body = format!("token={}&pool=default&{fields}", self.page.token);
        self.page.respond("POST", query, |_| None, body.as_bytes())
    }

    fn take_down(&self, peer: usize, reason: &str) {
        self.set.update(peer, self.start, |peer, check_times| {
            let failure = LoginFailure::refused(Fault::PeerDown, reason);
            peer.connect_failed(Attempt::at(self.start), failure, check_times);
        });
    }

    #[track_caller]
    fn assert_states(&self, expected: &[PeerState]) {
        let states: Vec<_> = self.peers.snapshot().peers.iter().map(|peer| peer.state).collect();
        assert_eq!(states, expected);
    }
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    let mut found = response.headers.iter().filter(|(given, _)| *given == name);
    let (_, value) = found.next().unwrap_or_else(|| panic!("the response has the header {name}"));
    assert!(found.next().is_none(), "the response has the header {name} only once");
    value
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// A snapshot and its events, written with serde, use the keys of the page's report.
#[cfg(feature = "serde")]
#[test]
fn serialized_snapshot_has_the_keys_of_the_report() {
    let test = TestPage::new(2);
    test.take_down(1, "refused");
    let snapshot = serde_json::to_value(test.peers.snapshot()).expect("a snapshot is an object");
    assert_eq!(
        keys(&snapshot),
        [
            "closed",
            "events",
            "events_dropped",
            "host_failure",
            "peers",
            "pool_name",
            "retry_budget",
            "retry_budget_max"
        ]
    );
    let report = test.json();
    let peer = &report["pools"][0]["peers"][1];
    let only_in_the_report = |key: &&str| !["remarks", "since"].contains(key);
    let expected: Vec<_> = keys(peer).into_iter().filter(only_in_the_report).collect();
    let serialized = &snapshot["peers"][1];
    assert_eq!(keys(serialized), expected);
    for key in [
        "name",
        "state",
        "reason",
        "fault",
        "is_available",
        "connections",
        "in_use",
        "transactions",
    ] {
        assert_eq!(serialized[key], peer[key], "{key} has the same value");
    }

    let event = &snapshot["events"][0];
    let expected = [
        "at_unix_seconds",
        "event",
        "fault",
        "in_service",
        "next_check_seconds",
        "peer",
        "reason",
        "text",
    ];
    assert_eq!(keys(event), expected);
    assert_eq!(event["event"], "down");
    assert_eq!(event["text"], report["pools"][0]["events"][0]["text"]);
}

#[test]
fn json_report_has_exactly_the_documented_keys() {
    let test = TestPage::new(2);
    test.take_down(1, "refused");
    let report = test.json();
    assert_eq!(keys(&report), ["actions", "at", "pools", "process"]);
    assert_eq!(keys(&report["process"]), ["host", "id", "pid", "uptime_seconds"]);
    let pool = &report["pools"][0];
    let keys_of_the_pool = [
        "closed",
        "events",
        "events_dropped",
        "host_failure",
        "name",
        "peers",
        "retry_budget",
        "retry_budget_max",
    ];
    assert_eq!(keys(pool), keys_of_the_pool);
    let expected = [
        "checkouts",
        "connect_failures",
        "connecting",
        "connections",
        "connects",
        "fault",
        "for_seconds",
        "id",
        "in_use",
        "is_at_limit",
        "is_available",
        "is_being_removed",
        "is_full",
        "is_unresponsive",
        "max_connections",
        "name",
        "next_check_seconds",
        "queries",
        "queries_lost",
        "query_seconds",
        "reason",
        "remarks",
        "since",
        "slow_for_seconds",
        "state",
        "stuck_logins",
        "tier",
        "transactions",
        "weight",
    ];
    assert_eq!(keys(&pool["peers"][0]), expected);
    let counts = &pool["peers"][0]["transactions"];
    let expected_counts = [
        "commits_in_doubt",
        "found_aborted",
        "found_committed",
        "outcomes_unknown",
        "retries",
        "retries_refused",
        "sessions_ended",
    ];
    assert_eq!(keys(counts), expected_counts);
    assert_eq!(keys(&pool["events"][0]), ["at", "event", "in_service", "peer", "text"]);
    let docs = include_str!("../status_page.rs");
    let of_the_pool = ["retry_budget", "retry_budget_max"];
    let all = expected.iter().chain(&of_the_pool).chain(&expected_counts);
    for key in all.chain(&["at", "peer", "event", "in_service", "text"]) {
        let forms = ["….{}`", "….{}[]`", "[].{}`", "….{}.", "….transactions.{}`"];
        let mut forms = forms.iter().map(|form| form.replace("{}", key));
        assert!(forms.any(|form| docs.contains(&form)), "{key} is documented");
    }

    let peer = &pool["peers"][1];
    assert_eq!(peer["state"], "down");
    assert_eq!(peer["reason"], "refused");
    assert_eq!(peer["fault"], "peer_down");
    assert_eq!(peer["remarks"], serde_json::json!(["refused."]));
    assert_eq!(pool["events"][0]["event"], "down");
    assert_eq!(pool["peers"][0]["reason"], Value::Null);
}

#[test]
fn page_shows_transactions_only_where_some_were_interrupted() {
    let test = TestPage::new(2);
    let section = |page: &str| {
        let (_, rest) = page.split_once("<div data-is=\"transactions\"").expect("a section");
        rest.split_once("</div>").expect("the end of the section").0.to_owned()
    };
    assert!(section(&test.get(None).body).starts_with(" hidden"), "there is nothing to show");

    let activity = test.set.read(|peers| peers[1].activity.clone());
    activity.counters.commits_in_doubt.add(70_001);
    let shown = section(&test.get(None).body);
    assert!(shown.starts_with('>'), "{shown}");
    assert!(shown.contains("<span data-is=\"budget\">100 of 100</span>"), "{shown}");
    assert!(shown.contains("data-head=\"In doubt\">70001</td>"), "{shown}");
    assert_eq!(shown.matches("<tbody").count(), 1, "peer0 has interrupted nothing: {shown}");
    assert!(shown.contains(">peer1</th>"), "{shown}");
    assert_eq!(test.json()["pools"][0]["peers"][1]["transactions"]["commits_in_doubt"], 70_001);
}

#[test]
fn page_shows_a_retry_budget_that_was_used() {
    let test = TestPage::new(1);
    assert!(test.set.retry_budget.withdraw(test.start + Duration::from_secs(3600)));
    let page = test.get(None).body;
    assert!(page.contains("<span data-is=\"budget\">99 of 100</span>"), "{page}");
    assert!(page.contains("<div data-is=\"transactions\">"), "{page}");
    assert!(page.contains("class=\"counts\" hidden>"), "{page}");
    assert_eq!(test.json()["pools"][0]["retry_budget"], 99);
}

#[test]
fn token_is_in_the_page_only() {
    let test = TestPage::new(2);
    let token = &test.page.token;
    assert!(test.get(None).body.contains(&**token));
    assert!(!test.get(Some("json")).body.contains(&**token), "the JSON report may be passed on");
    assert!(!format!("{:#?}", test.page).contains(&**token));
    assert_ne!(*token, StatusPage::new().token, "each page has its own token");
    assert_eq!(token.len(), 32);
}

#[test]
fn responses_are_not_cached_and_run_no_foreign_code() {
    let test = TestPage::new(1);
    let pages = [test.get(None), test.get(None), test.press(None, "peer=peer0&action=drain")];
    let mut nonces = BTreeSet::new();
    for page in pages {
        assert_eq!(header(&page, "Cache-Control"), "no-store");
        assert_eq!(header(&page, "X-Content-Type-Options"), "nosniff");
        assert_eq!(header(&page, "Referrer-Policy"), "same-origin");
        assert_eq!(header(&page, "Content-Type"), "text/html; charset=utf-8");
        let policy = header(&page, "Content-Security-Policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'nonce-"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        let nonce = policy.split('\'').find_map(|part| part.strip_prefix("nonce-"));
        let nonce = nonce.expect("the policy has a nonce");
        assert!(page.body.contains(&format!("<style nonce=\"{nonce}\">")));
        assert!(nonces.insert(nonce.to_owned()), "each response has a new nonce");
        assert!(!page.body.contains("style=\""), "the policy forbids inline styles");
    }
    let json = test.get(Some("json"));
    assert_eq!(header(&json, "Content-Type"), "application/json; charset=utf-8");
    assert_eq!(header(&json, "Cache-Control"), "no-store");
}

#[test]
fn button_drains_and_resumes_a_peer() {
    let test = TestPage::new(2);
    let done = test.press(None, "peer=peer0&action=drain");
    assert_eq!(
        (done.status, header(&done, "Location")),
        (303, "?"),
        "the browser goes back to the page"
    );
    test.assert_states(&[PeerState::Draining, PeerState::Up]);
    let done = test.press(Some("json"), "peer=peer0&action=resume");
    assert_eq!(done.status, 200, "a script receives the new state");
    assert!(done.body.contains("\"state\":\"up\""), "{}", done.body);
    test.assert_states(&[PeerState::Up, PeerState::Up]);
}

#[test]
fn last_available_peer_is_drained_only_after_confirmation() {
    let test = TestPage::new(3);
    test.take_down(1, "refused");
    test.peers.set_weight("peer2", 0).expect("the peer exists");
    let asked = test.press(None, "peer=peer0&action=drain");
    assert_eq!(asked.status, 409);
    assert!(asked.body.contains("No other peer of default is available."), "{}", asked.body);
    assert!(asked.body.contains("name=\"confirm\" value=\"yes\""), "{}", asked.body);
    let asked = test.press(Some("json"), "peer=peer0&action=drain");
    assert!(asked.body.starts_with("{\"confirm\":\"No other peer"), "{}", asked.body);
    assert_eq!(
        test.json()["pools"][0]["peers"][0]["state"],
        "up",
        "nothing is done without confirmation"
    );

    assert_eq!(
        test.press(None, "peer=peer1&action=drain&confirm=no").status,
        303,
        "peer0 is still available"
    );
    assert_eq!(test.press(None, "peer=peer0&action=drain&confirm=yes").status, 303);
    test.assert_states(&[PeerState::Draining, PeerState::Draining, PeerState::Up]);
}

#[test]
fn impossible_actions_are_refused_with_a_reason() {
    let test = TestPage::new(2);
    for (fields, status, expected) in [
        ("peer=peer7&action=drain", 409, "peer7"),
        ("peer=%3Cb%3E&action=drain", 409, "&#60;b&#62;"),
        ("peer=peer0&action=explode", 400, "not a valid form of this page"),
        ("peer=peer0", 400, "not a valid form of this page"),
    ] {
        let refused = test.press(None, fields);
        assert_eq!(refused.status, status, "{fields}");
        assert!(refused.body.contains(expected), "{fields}: {}", refused.body);
    }
    let body = format!("token={}&pool=<x>&peer=peer0&action=drain", test.page.token);
    let refused = test.page.respond("POST", None, |_| None, body.as_bytes());
    assert_eq!(refused.status, 409);
    assert!(
        refused.body.contains("there is no pool &#60;x&#62;: the pools are default."),
        "{}",
        refused.body
    );
    for method in ["PUT", "DELETE", "post", ""] {
        let refused = test.page.respond(method, None, |_| None, b"");
        assert_eq!((refused.status, header(&refused, "Allow")), (405, "GET, HEAD, POST"));
        assert!(refused.body.contains("only GET, HEAD and POST are supported"), "{}", refused.body);
    }
    test.set.close();
    let refused = test.press(None, "peer=peer0&action=drain");
    assert_eq!(refused.status, 409);
    assert!(refused.body.contains("the pool default is closed"), "{}", refused.body);
    test.assert_states(&[PeerState::Up, PeerState::Up]);
}

#[test]
fn forms_of_other_sites_and_of_other_pages_are_rejected() {
    let test = TestPage::new(2);
    let body = format!("token={}&pool=default&peer=peer0&action=drain", test.page.token);
    let post = |headers: &[(&str, &'static str)], body: &str| {
        let header =
            |name: &str| headers.iter().find(|(given, _)| *given == name).map(|(_, value)| *value);
        test.page.respond("POST", None, header, body.as_bytes()).status
    };
    let host = ("Host", "here");
    assert_eq!(post(&[("Sec-Fetch-Site", "cross-site")], &body), 403);
    assert_eq!(post(&[host, ("Origin", "http://elsewhere")], &body), 403);
    assert_eq!(post(&[], &body.replace(&test.page.token, &StatusPage::new().token)), 403);
    assert_eq!(post(&[], "pool=default&peer=peer0&action=drain"), 403);
    test.assert_states(&[PeerState::Up, PeerState::Up]);
    assert_eq!(post(&[host, ("Origin", "http://here")], &body), 303);
}

#[test]
fn page_without_actions_has_no_buttons_and_rejects_forms() {
    let mut test = TestPage::new(2);
    test.page.has_actions = false;
    let refused = test.press(None, "peer=peer0&action=drain");
    assert_eq!((refused.status, header(&refused, "Allow")), (405, "GET, HEAD"));
    assert!(refused.body.contains("this page has no buttons"), "{}", refused.body);
    let page = test.get(None).body;
    for part in ["method=\"post\"", &test.page.token, "Action"] {
        assert!(!page.contains(part), "the page does not contain {part}");
    }
    assert_eq!(test.json()["actions"], false);
    test.assert_states(&[PeerState::Up, PeerState::Up]);
}

#[test]
fn report_in_the_page_cannot_end_its_script() {
    let test = TestPage::new(2);
    test.take_down(0, "</script><script>alert(1)</script>\"'\u{2028}");
    let page = test.get(None).body;
    assert!(!page.contains("<script>alert"), "a reason does not become a script");
    let data = page.split("id=\"report\">").nth(1).and_then(|rest| rest.split("</script>").next());
    let data: Value = serde_json::from_str(data.expect("the page contains the report"))
        .expect("the report is complete");
    let reason = &data["pools"][0]["peers"][0]["reason"];
    assert_eq!(reason, "</script><script>alert(1)</script>\"'\u{2028}");
}

/// Ends every element and attribute that it could stand in.
const MALICE: &str = "</script></title><i id=\"x\" onload='x'>&amp;\u{2028}";

#[test]
fn names_and_messages_are_escaped_everywhere() {
    let test = TestPage::new(2);
    test.take_down(0, MALICE);
    let mut pool = test.peers.snapshot();
    assert_eq!(pool.peers[0].reason.as_deref(), Some(MALICE));
    assert!(pool.events[0].to_string().contains(MALICE));
    pool.pool_name = MALICE.to_owned();
    pool.peers[0].name = MALICE.to_owned();
    pool.peers[0].transactions.retries = 1;
    let mut process = Process::current(MALICE.to_owned(), test.start);
    process.host = Some(MALICE.to_owned());
    let report = StatusReport {
        at: SystemTime::UNIX_EPOCH,
        now: test.start,
        process: &process,
        has_actions: true,
        pools: vec![pool],
    };
    let drain = actions::LastDrain { pool: MALICE.to_owned(), peer: MALICE.to_owned() };
    let error = PageError::UnknownPool(MALICE.to_owned(), vec![MALICE.to_owned()]);
    let page = html::page(&report, "token", "nonce");
    let confirmation = html::confirmation(&drain, "token", "nonce");
    let error = html::error(&error, "nonce");
    for (name, html, places) in [
        // The title, the host, the pool, its label and its fields in two forms; the peer, its label,
        // field and button; the remark, its transactions, the event.
        ("page", &page, 13),
        // Twice the title, twice in the question, two fields.
        ("confirmation", &confirmation, 6),
        ("error", &error, 2),
    ] {
        for part in ["</script></", "<i ", "\"x\"", "'x'", "&amp;"] {
            let at = html.find(part).map(|at| &html[at.saturating_sub(40)..at]);
            assert_eq!(at, None, "{part} is escaped in the {name}");
        }
        let escaped =
            "&#60;/script&#62;&#60;/title&#62;&#60;i id=&#34;x&#34; onload=&#39;x&#39;&#62;";
        assert_eq!(html.matches(escaped).count(), places, "the {name} shows every text");
    }
    let (_, data) = page.split_once("id=\"report\">").expect("the page contains the report");
    let (data, _) = data.split_once("</script>").expect("the end of the script");
    let data: Value = serde_json::from_str(data).expect("the report is complete");
    assert_eq!(data, report.to_json());
}

#[test]
fn remarks_are_sentences_and_match_the_state() {
    let mut status = TestPage::new(1).peers.snapshot().peers.remove(0);
    status.is_unresponsive = true;
    assert!(report::remarks(&status, 1)[0].starts_with("Unresponsive: "));
    status.reason = Some("(111) refused \n".to_owned());
    assert_eq!(report::remarks(&status, 1)[0], "The last check failed: (111) refused.");
    status.state = PeerState::Down;
    let remarks = report::remarks(&status, 1);
    assert_eq!(remarks, ["(111) refused."], "a peer that is down is not called unresponsive");
    status.reason = Some("Why?".to_owned());
    status.connections = 1;
    assert_eq!(report::remarks(&status, 1), ["Why?"]);
    let [_, remark] = &report::remarks(&status, 0)[..] else { panic!("its connections are used") };
    assert!(remark.starts_with("No peer is available, so the open connections"), "{remark}");
    status.connections = 0;
    assert_eq!(report::remarks(&status, 0), ["Why?"]);
}

#[test]
fn pools_of_the_same_name_are_numbered() {
    let (one, other) = (TestPage::new(1), TestPage::new(1));
    let page = StatusPage::new().pool(one.peers.clone()).pool(other.peers.clone()).with_actions();
    let report = page.respond("GET", Some("json"), |_| None, b"").body;
    let report: Value = serde_json::from_str(&report).expect("the report is JSON");
    assert_eq!(report["pools"][0]["name"], "default");
    assert_eq!(report["pools"][1]["name"], "default (2)");
    let body = format!("token={}&pool=default+(2)&peer=peer0&action=drain&confirm=yes", page.token);
    assert_eq!(page.respond("POST", None, |_| None, body.as_bytes()).status, 303);
    one.assert_states(&[PeerState::Up]);
    other.assert_states(&[PeerState::Draining]);
}

#[test]
fn page_without_pools_says_so() {
    let page = StatusPage::default().respond("HEAD", None, |_| None, b"");
    assert_eq!(page.status, 200);
    assert!(page.body.contains("This page has no pools."));
}

/// Such a peer cannot be resumed, and a new peer may have its name.
#[test]
fn peer_that_is_being_removed_has_no_button() {
    let test = TestPage::new(2);
    // A login is in progress, which delays the removal.
    test.set.update_counts(0, |counts| counts.connecting = 1);
    test.peers.remove("peer0").expect("another peer remains");
    test.assert_states(&[PeerState::Draining, PeerState::Up]);
    assert_eq!(test.json()["pools"][0]["peers"][0]["is_being_removed"], true);
    let page = test.get(None).body;
    let attributes = |label: &str| {
        let (_, rest) = page.split_once(&format!("aria-label=\"{label}\"")).expect("a button");
        rest.split_once('>').expect("the end of the element").0
    };
    assert_eq!((attributes("Resume peer0"), attributes("Drain peer1")), (" hidden", ""));
    assert!(page.contains("The peer is being removed."), "the page shows the reason");
}
