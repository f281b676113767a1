use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::*;
use crate::fault::{Fault, Refusal as LoginRefusal};
use crate::peers::peer::LoginOutcome;
use crate::peers::set::PeerSet;
use crate::peers::set::tests::set_of;
use crate::peers::snapshot::PeerState;
use crate::policy::Recovery;

/// A page of one pool of so many peers, with buttons.
struct Story {
    page: StatusPage,
    peers: Peers,
    set: Arc<PeerSet>,
    start: Instant,
}

impl Story {
    fn of(peers: usize) -> Self {
        let (set, _woken, start) = set_of(peers, Recovery::AfterCheck);
        let set = Arc::new(set);
        let peers = Peers::new(set.clone());
        Self { page: StatusPage::new().pool(peers.clone()).with_actions(), peers, set, start }
    }

    fn get(&self, query: Option<&str>) -> Response {
        self.page.respond("GET", query, |_| None, b"")
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.get(Some("json")).body).expect("it is JSON")
    }

    /// Presses a button of the page, with these fields besides.
    fn press(&self, query: Option<&str>, fields: &str) -> Response {
        let body = format!("token={}&pool=default&{fields}", self.page.token);
        self.page.respond("POST", query, |_| None, body.as_bytes())
    }

    fn take_down(&self, peer: usize, reason: &str) {
        self.set.update(peer, self.start, |peer, due| {
            let refused = LoginRefusal::new(Fault::PeerDown, reason);
            peer.connect_failed((self.start, self.start), LoginOutcome::Refused(refused), due)
        });
    }

    #[track_caller]
    fn is(&self, expected: &[PeerState]) {
        let states: Vec<_> = self.peers.snapshot().peers.iter().map(|peer| peer.state).collect();
        assert_eq!(states, expected);
    }
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    let mut found = response.headers.iter().filter(|(given, _)| *given == name);
    let (_, value) = found.next().unwrap_or_else(|| panic!("there is {name}"));
    assert!(found.next().is_none(), "{name} is there once");
    value
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("a table").keys().map(String::as_str).collect()
}

#[test]
fn the_json_has_these_keys() {
    let story = Story::of(2);
    story.take_down(1, "refused");
    let report = story.json();
    assert_eq!(keys(&report), ["actions", "at", "pools", "process"]);
    assert_eq!(keys(&report["process"]), ["host", "id", "pid", "uptime_seconds"]);
    let pool = &report["pools"][0];
    assert_eq!(keys(pool), ["closed", "events", "events_dropped", "name", "peers"]);
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
        "is_available",
        "is_being_removed",
        "is_full",
        "is_unresponsive",
        "name",
        "next_check_seconds",
        "queries",
        "queries_lost",
        "query_seconds",
        "reason",
        "remarks",
        "since",
        "state",
        "stuck_logins",
        "tier",
        "weight",
    ];
    assert_eq!(keys(&pool["peers"][0]), expected);
    assert_eq!(keys(&pool["events"][0]), ["at", "event", "in_service", "peer", "text"]);
    let docs = include_str!("../status_page.rs");
    let all = expected.iter().chain(&["at", "peer", "event", "in_service", "text"]);
    for key in all {
        let is_told = [format!("….{key}`"), format!("….{key}[]`"), format!("[].{key}`")];
        assert!(is_told.iter().any(|told| docs.contains(told)), "{key} is documented");
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
fn only_the_page_holds_the_token() {
    let story = Story::of(2);
    let token = &story.page.token;
    assert!(story.get(None).body.contains(&**token));
    assert!(!story.get(Some("json")).body.contains(&**token), "others may be given that");
    assert!(!format!("{:#?}", story.page).contains(&**token));
    assert_ne!(*token, StatusPage::new().token, "each page has its own");
    assert_eq!(token.len(), 32);
}

#[test]
fn an_answer_is_kept_by_nobody_and_runs_nothing_else() {
    let story = Story::of(1);
    let pages = [story.get(None), story.get(None), story.press(None, "peer=peer0&action=drain")];
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
        let nonce = nonce.expect("it has one");
        assert!(page.body.contains(&format!("<style nonce=\"{nonce}\">")));
        assert!(nonces.insert(nonce.to_owned()), "each answer has another");
        assert!(!page.body.contains("style=\""), "which the policy forbids");
    }
    let json = story.get(Some("json"));
    assert_eq!(header(&json, "Content-Type"), "application/json; charset=utf-8");
    assert_eq!(header(&json, "Cache-Control"), "no-store");
}

#[test]
fn a_button_drains_and_resumes() {
    let story = Story::of(2);
    let done = story.press(None, "peer=peer0&action=drain");
    assert_eq!((done.status, header(&done, "Location")), (303, "?"), "back to the page");
    story.is(&[PeerState::Draining, PeerState::Up]);
    let done = story.press(Some("json"), "peer=peer0&action=resume");
    assert_eq!(done.status, 200, "a script is told how things are");
    assert!(done.body.contains("\"state\":\"up\""), "{}", done.body);
    story.is(&[PeerState::Up, PeerState::Up]);
}

#[test]
fn nobody_is_left_only_on_purpose() {
    let story = Story::of(3);
    story.take_down(1, "refused");
    story.peers.set_weight("peer2", 0).expect("there is such a peer");
    let asked = story.press(None, "peer=peer0&action=drain");
    assert_eq!(asked.status, 409);
    assert!(asked.body.contains("No other peer of default takes work."), "{}", asked.body);
    assert!(asked.body.contains("name=\"confirm\" value=\"yes\""), "{}", asked.body);
    let asked = story.press(Some("json"), "peer=peer0&action=drain");
    assert!(asked.body.starts_with("{\"confirm\":\"No other peer"), "{}", asked.body);
    assert_eq!(story.json()["pools"][0]["peers"][0]["state"], "up", "nothing was done");

    assert_eq!(story.press(None, "peer=peer1&action=drain&confirm=no").status, 303, "peer0 is up");
    assert_eq!(story.press(None, "peer=peer0&action=drain&confirm=yes").status, 303);
    story.is(&[PeerState::Draining, PeerState::Draining, PeerState::Up]);
}

#[test]
fn what_cannot_be_done_is_told() {
    let story = Story::of(2);
    for (fields, status, told) in [
        ("peer=peer7&action=drain", 409, "peer7"),
        ("peer=%3Cb%3E&action=drain", 409, "&lt;b&gt;"),
        ("peer=peer0&action=explode", 400, "no form of this page"),
        ("peer=peer0", 400, "no form of this page"),
    ] {
        let refused = story.press(None, fields);
        assert_eq!(refused.status, status, "{fields}");
        assert!(refused.body.contains(told), "{fields}: {}", refused.body);
    }
    let body = format!("token={}&pool=<x>&peer=peer0&action=drain", story.page.token);
    let refused = story.page.respond("POST", None, |_| None, body.as_bytes());
    assert_eq!(refused.status, 409);
    assert!(
        refused.body.contains("there is no pool &lt;x&gt;: the pools are default."),
        "{}",
        refused.body
    );
    for method in ["PUT", "DELETE", "post", ""] {
        let refused = story.page.respond(method, None, |_| None, b"");
        assert_eq!((refused.status, header(&refused, "Allow")), (405, "GET, HEAD, POST"));
        assert!(refused.body.contains("asked by GET, HEAD or POST"), "{}", refused.body);
    }
    story.set.close();
    let refused = story.press(None, "peer=peer0&action=drain");
    assert_eq!(refused.status, 409);
    assert!(refused.body.contains("the pool default is closed"), "{}", refused.body);
    story.is(&[PeerState::Up, PeerState::Up]);
}

#[test]
fn other_sites_and_other_pages_drain_nothing() {
    let story = Story::of(2);
    let body = format!("token={}&pool=default&peer=peer0&action=drain", story.page.token);
    let post = |headers: &[(&str, &'static str)], body: &str| {
        let header = |name: &str| headers.iter().find(|(it, _)| *it == name).map(|(_, it)| *it);
        story.page.respond("POST", None, header, body.as_bytes()).status
    };
    let host = ("Host", "here");
    assert_eq!(post(&[("Sec-Fetch-Site", "cross-site")], &body), 403);
    assert_eq!(post(&[host, ("Origin", "http://elsewhere")], &body), 403);
    assert_eq!(post(&[], &body.replace(&story.page.token, &StatusPage::new().token)), 403);
    assert_eq!(post(&[], "pool=default&peer=peer0&action=drain"), 403);
    story.is(&[PeerState::Up, PeerState::Up]);
    assert_eq!(post(&[host, ("Origin", "http://here")], &body), 303);
}

#[test]
fn without_actions_there_are_no_buttons() {
    let mut story = Story::of(2);
    story.page.has_actions = false;
    let refused = story.press(None, "peer=peer0&action=drain");
    assert_eq!((refused.status, header(&refused, "Allow")), (405, "GET, HEAD"));
    assert!(refused.body.contains("it has no buttons"), "{}", refused.body);
    let page = story.get(None).body;
    for part in ["method=\"post\"", &story.page.token, "Action"] {
        assert!(!page.contains(part), "{part} is there");
    }
    assert_eq!(story.json()["actions"], false);
    story.is(&[PeerState::Up, PeerState::Up]);
}

#[test]
fn others_words_are_text() {
    let story = Story::of(2);
    story.take_down(0, "</script><script>alert(1)</script>\"'\u{2028}");
    let page = story.get(None).body;
    assert!(!page.contains("<script>alert"), "it is part of the page");
    let data = page.split("id=\"report\">").nth(1).and_then(|rest| rest.split("</script>").next());
    let data: Value = serde_json::from_str(data.expect("it is there")).expect("it is whole");
    let reason = &data["pools"][0]["peers"][0]["reason"];
    assert_eq!(reason, "</script><script>alert(1)</script>\"'\u{2028}");
}

#[test]
fn remarks_are_sentences_and_say_nothing_that_is_not_so() {
    let mut status = Story::of(1).peers.snapshot().peers.remove(0);
    status.is_unresponsive = true;
    assert!(report::remarks(&status, true)[0].starts_with("Hesitant: "));
    status.reason = Some("(111) refused \n".to_owned());
    assert_eq!(report::remarks(&status, true)[0], "The last check failed: (111) refused.");
    status.state = PeerState::Down;
    let told = report::remarks(&status, true);
    assert_eq!(told, ["(111) refused."], "it is down, and not hesitant");
    status.reason = Some("Why?".to_owned());
    status.connections = 1;
    assert_eq!(report::remarks(&status, true), ["Why?"]);
    let [_, told] = &report::remarks(&status, false)[..] else { panic!("its links work") };
    assert!(told.starts_with("No peer takes work, so its connections"), "{told}");
    status.connections = 0;
    assert_eq!(report::remarks(&status, false), ["Why?"]);
}

#[test]
fn pools_of_one_name_are_told_apart() {
    let (one, other) = (Story::of(1), Story::of(1));
    let page = StatusPage::new().pool(one.peers.clone()).pool(other.peers.clone()).with_actions();
    let report = page.respond("GET", Some("json"), |_| None, b"").body;
    let report: Value = serde_json::from_str(&report).expect("it is JSON");
    assert_eq!(report["pools"][0]["name"], "default");
    assert_eq!(report["pools"][1]["name"], "default (2)");
    let body = format!("token={}&pool=default+(2)&peer=peer0&action=drain&confirm=yes", page.token);
    assert_eq!(page.respond("POST", None, |_| None, body.as_bytes()).status, 303);
    one.is(&[PeerState::Up]);
    other.is(&[PeerState::Draining]);
}

#[test]
fn a_page_of_no_pool_says_so() {
    let page = StatusPage::default().respond("HEAD", None, |_| None, b"");
    assert_eq!(page.status, 200);
    assert!(page.body.contains("There is no pool."));
}

/// It cannot be resumed, and another one may have its name.
#[test]
fn a_peer_that_is_being_removed_has_no_button() {
    let story = Story::of(2);
    // A login is under way there.
    story.set.update_counts(0, |counts| counts.connecting = 1);
    story.peers.remove("peer0").expect("another one is there");
    story.is(&[PeerState::Draining, PeerState::Up]);
    assert_eq!(story.json()["pools"][0]["peers"][0]["is_being_removed"], true);
    let page = story.get(None).body;
    let button = |peer: &str, word: &str| {
        let (_, rest) =
            page.split_once(&format!("aria-label=\"{word} {peer}\"")).expect("a button");
        rest.split_once('>').expect("it ends").0
    };
    assert_eq!((button("peer0", "Resume"), button("peer1", "Drain")), (" hidden", ""));
    assert!(page.contains("It is being removed."), "and it is said why");
}
