//! The guest book, as its visitors see it: what it takes and shows, in a browser too, and what they
//! notice while its peers are killed and frozen.

#![cfg(target_os = "linux")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{env, fs, thread};

use diesel::prelude::*;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use support::backend::PATIENCE;
use support::browser::Browser;
use support::guestbook::GuestBook;
use support::http::{Answer, Client};
use support::mariadb::MariaDb;
use support::{EndsThreads, wait_until};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// Where the browser's test puts its picture, if it is to be kept.
const SCREENSHOT: &str = "DIESEL_PEERS_TEST_SCREENSHOT";

/// Writes an entry, as a form does that was opened for it.
#[track_caller]
fn sign(visitor: &Client, name: &str, message: &str) -> Answer {
    let form = visitor.get("/").body;
    let key = between(&form, "name=\"key\" value=\"", "\"");
    visitor.post("/", &[("key", key), ("name", name), ("message", message)])
}

/// What stands between two texts.
#[track_caller]
fn between<'a>(page: &'a str, before: &str, after: &str) -> &'a str {
    all_between(page, before, after).next().unwrap_or_else(|| panic!("no {before} on {page}"))
}

/// What stands between these two texts, each time that they do.
fn all_between<'a>(page: &'a str, before: &str, after: &str) -> impl Iterator<Item = &'a str> {
    page.split(before).skip(1).filter_map(move |rest| rest.split(after).next())
}

/// The messages on a page.
fn messages(page: &str) -> Vec<&str> {
    all_between(page, "<p>", "</p>").collect()
}

#[test]
fn what_is_written_is_listed() {
    let app = GuestBook::start();
    let visitor = app.visitor();
    assert!(visitor.get("/").body.contains("Be the first!"), "the book is empty");

    let answer = sign(&visitor, "Zoë", "Good morning!\r\nA second line.");
    assert_eq!((answer.status, answer.location.as_deref()), (303, Some("/")), "it redirects");
    let page = visitor.get("/");
    assert_eq!(page.status, 200);
    assert_eq!(messages(&page.body), ["Good morning!\nA second line."]);
    assert!(page.body.contains("<h3>Zoë</h3>"), "with the name: {}", page.body);
    assert!(page.body.contains("One entry"), "they are counted: {}", page.body);
}

#[test]
fn a_form_with_a_mistake_comes_back() {
    let app = GuestBook::start();
    let visitor = app.visitor();
    let long = "ä".repeat(1001);
    let cases = [
        ("", "Hello", ["name"].as_slice()),
        ("Ann", " \r\n ", &["message"]),
        (" ", "", &["name", "message"]),
        (&long[..2 * 61], "Hello", &["name"]),
        ("Ann", &long, &["message"]),
    ];
    for (name, message, expected) in cases {
        let answer = sign(&visitor, name, message);
        assert_eq!(answer.status, 422, "{name} and {message} are not taken");
        let mistakes: Vec<_> =
            all_between(&answer.body, "<p class=\"mistake\" id=\"", "-mistake\">").collect();
        assert_eq!(mistakes, expected, "it says so beside the field");
        let refers = all_between(&answer.body, "aria-describedby=\"", "-mistake\"");
        assert_eq!(refers.collect::<Vec<_>>(), expected, "and to those who do not see it");
        assert!(answer.body.contains(&format!("value=\"{name}\"")), "what was typed is back");
        assert!(answer.body.contains(&format!("\n{message}</textarea>")), "what was typed is back");
    }
    assert_eq!(messages(&visitor.get("/").body), [""; 0], "nothing was written");

    let answer = sign(&visitor, &long[..2 * 60], &long[..2 * 1000]);
    assert_eq!(answer.status, 303, "characters are counted, and not bytes");
    let answer = visitor.post("/", &[]);
    assert_eq!(answer.status, 422, "no form of ours");
}

#[test]
fn what_is_written_is_text() {
    let app = GuestBook::start();
    let visitor = app.visitor();
    let text = "</p></textarea><script>alert(1)</script>";
    let quote = "\" onfocus=\"alert(1)' &amp;";
    assert_eq!(sign(&visitor, quote, text).status, 303);
    let listed = visitor.get("/").body;
    let in_fields = visitor.post("/", &[("key", quote), ("name", quote), ("message", "")]).body;
    let in_text = visitor.post("/", &[("key", quote), ("name", ""), ("message", text)]).body;
    for page in [&listed, &in_fields, &in_text] {
        assert!(!page.contains("<script"), "{page}");
        assert!(!page.contains("\" onfocus"), "{page}");
        assert!(page.contains("&amp;amp;"), "as it was written: {page}");
    }
    for page in [listed, in_text] {
        assert!(page.contains("&lt;script&gt;alert(1)"), "as it was written: {page}");
    }
}

#[test]
fn the_newest_entries_come_first() {
    let app = GuestBook::start();
    let visitor = app.visitor();
    for number in 1..=23 {
        assert_eq!(sign(&visitor, "Ann", &format!("Entry {number}.")).status, 303);
    }
    let expected = |numbers: std::ops::RangeInclusive<u32>| {
        numbers.rev().map(|number| format!("Entry {number}.")).collect::<Vec<_>>()
    };
    let mut page = visitor.get("/");
    for (numbers, next) in [(14..=23, Some("/?page=2")), (4..=13, Some("/?page=3")), (1..=3, None)]
    {
        assert_eq!(messages(&page.body), expected(numbers));
        let link = all_between(&page.body, "rel=\"next\" href=\"", "\"").next();
        assert_eq!(link, next, "{}", page.body);
        page = visitor.get(next.unwrap_or("/"));
    }
    for beyond in ["/?page=0", "/?page=4", "/?page=4294967295"] {
        assert_eq!(visitor.get(beyond).status, 404, "there is no {beyond}");
    }
}

#[test]
fn a_form_that_is_sent_twice_is_one_entry() {
    let app = GuestBook::start();
    let visitor = app.visitor();
    for _ in 0..2 {
        let answer = visitor.post("/", &[("key", "1"), ("name", "Ann"), ("message", "Hello")]);
        assert_eq!(answer.status, 303, "whoever sends it again is told that it is there");
    }
    assert_eq!(messages(&visitor.get("/").body), ["Hello"]);
    // Who goes back in the browser has the same form.
    let answer = visitor.post("/", &[("key", "1"), ("name", "Ann"), ("message", "Hello again")]);
    assert_eq!(answer.status, 303, "it is another entry");
    assert_eq!(messages(&visitor.get("/").body), ["Hello again", "Hello"]);
}

#[test]
fn other_sites_cannot_write() {
    let app = GuestBook::start();
    let visitor = app.visitor();
    let form = [("key", "1"), ("name", "Ann"), ("message", "Hello")];
    let foreign = [
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
        ("Origin", "http://elsewhere.example"),
        ("Origin", "null"),
    ];
    for header in foreign {
        let answer = visitor.post_with("/", &form, &[header]);
        assert_eq!(answer.status, 403, "refused with {header:?}");
        assert!(answer.body.contains("not sent from our own page"), "{}", answer.body);
    }
    assert_eq!(messages(&visitor.get("/").body), [""; 0], "nothing was written");
    let site = app.site();
    for header in [("Sec-Fetch-Site", "same-origin"), ("Origin", site.as_str())] {
        assert_eq!(visitor.post_with("/", &form, &[header]).status, 303, "taken with {header:?}");
    }
}

#[test]
fn what_is_not_there_is_not_found() {
    let app = GuestBook::start();
    let answer = app.visitor().get("/elsewhere");
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("There is no such page."), "{}", answer.body);
}

/// The peers on the page about them.
fn peers_of(app: &GuestBook) -> Vec<String> {
    let page = app.visitor().get("/peers").body;
    all_between(&page, "<th scope=\"row\">", "<").map(str::to_owned).collect()
}

/// None of those that are there by default is left beside them.
#[test]
fn configured_peers_take_the_place_of_the_default_ones() {
    assert_eq!(peers_of(&GuestBook::start()), ["db0", "db1", "db2"]);

    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("book.db");
    fs::write(&path, "").expect("our own folder");
    let path = path.display();
    let url = format!("{{guestbook={{url=\"sqlite://{path}?mode=rw\"}}}}");
    assert_eq!(peers_of(&GuestBook::start_with(Some(&url))).len(), 1, "by one URL");
    let peers = format!(
        "{{guestbook={{peers={{left=\"file:{path}?mode=rw\",right=\"file:{path}?mode=rw\"}}}}}}"
    );
    assert_eq!(peers_of(&GuestBook::start_with(Some(&peers))), ["left", "right"], "by names");
}

/// The settings of the guest book on these servers.
fn databases(servers: &[MariaDb], settings: &str) -> String {
    let peers =
        servers.iter().enumerate().map(|(at, server)| format!("db{at}=\"{}\"", server.url()));
    let peers = peers.collect::<Vec<_>>().join(",");
    format!("{{guestbook={{peers={{{peers}}},{settings}}}}}")
}

/// Nothing of what is behind the site.
#[track_caller]
fn tells_no_internals(page: &str) {
    for internal in ["MySQL", "mysql", "onnection", "127.0.0.1", support::APP_PASSWORD] {
        assert!(!page.contains(internal), "`{internal}` is on {page}");
    }
}

#[test]
fn without_its_database_it_says_so() {
    let mut servers = [MariaDb::start()];
    let settings = "timeout=2,pool_size=2,check_interval=\"200ms\"";
    let app = GuestBook::start_with(Some(&databases(&servers, settings)));
    let visitor = app.visitor();
    assert_eq!(sign(&visitor, "Zoë 🦀", "Before").status, 303, "it works");
    let form = visitor.get("/").body;
    let key = between(&form, "name=\"key\" value=\"", "\"");
    let fields = [("key", key), ("name", "Ann"), ("message", "Meanwhile")];

    servers[0].kill();
    let answer = visitor.get("/");
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("come back in a moment"), "{}", answer.body);
    tells_no_internals(&answer.body);
    let answer = visitor.post("/", &fields);
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("\nMeanwhile</textarea>"), "what was typed is back");
    assert_eq!(between(&answer.body, "name=\"key\" value=\"", "\""), key, "it is the same entry");
    tells_no_internals(&answer.body);
    wait_until("the peer is shown as down", PATIENCE, || {
        visitor.get("/peers").body.contains("<th scope=\"row\">db0<td class=\"bad\">down")
    });

    servers[0].restart();
    wait_until("it is taken when it is sent again", PATIENCE, || {
        visitor.post("/", &fields).status == 303
    });
    assert_eq!(messages(&visitor.get("/").body), ["Meanwhile", "Before"]);
    assert!(!app.log().contains(support::APP_PASSWORD), "passwords are not logged");
}

/// Visitors who write and read, again and again, and what they have seen.
#[derive(Debug, Default)]
struct Visitors {
    stopped: AtomicBool,
    /// How many faults there have been.
    faults: AtomicUsize,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// How many pages each peer has served.
    served: BTreeMap<String, usize>,
    /// Messages that were acknowledged.
    written: Vec<String>,
    /// Requests that failed: whose, after how many faults, and the answer.
    failed: Vec<(usize, usize, Answer)>,
}

impl Visitors {
    /// Has so many of them visit while `story` goes on, and tells what they saw until its end.
    fn visit(app: &GuestBook, number: usize, story: impl FnOnce(&Self)) -> Seen {
        let visitors = Self::default();
        thread::scope(|scope| {
            for number in 0..number {
                let visitors = &visitors;
                let client = app.visitor();
                scope.spawn(move || {
                    for visit in 0.. {
                        if visitors.stopped.load(Ordering::Relaxed) {
                            return;
                        }
                        visitors.one_visit(&client, number, visit);
                    }
                });
            }
            let _stop = EndsThreads(&visitors.stopped);
            story(&visitors);
        });
        visitors.seen.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn one_visit(&self, client: &Client, number: usize, visit: usize) {
        let answer = client.get("/");
        let key = all_between(&answer.body, "name=\"key\" value=\"", "\"").next();
        let peer = all_between(&answer.body, "<strong id=\"peer\">", "<").next();
        let Some((key, peer)) = key.zip(peer).filter(|_| answer.status == 200) else {
            return self.failed(number, answer);
        };
        *self.seen().served.entry(peer.to_owned()).or_default() += 1;
        let message = format!("Visit {visit} of visitor {number}.");
        let fields = [("key", key), ("name", "A visitor"), ("message", message.as_str())];
        let answer = client.post("/", &fields);
        if answer.status != 303 {
            return self.failed(number, answer);
        }
        self.seen().written.push(message);
    }

    fn failed(&self, number: usize, answer: Answer) {
        let faults = self.faults.load(Ordering::Relaxed);
        self.seen().failed.push((number, faults, answer));
    }

    /// Waits until each of these peers has served so many pages more.
    #[track_caller]
    fn wait_for(&self, peers: &[&str], pages: usize) {
        let before = self.seen().served.clone();
        let served = |peer: &str, seen: &BTreeMap<_, _>| seen.get(peer).copied().unwrap_or(0);
        wait_until(&format!("{peers:?} serve"), PATIENCE, || {
            let now = self.seen().served.clone();
            peers.iter().all(|peer| served(peer, &now) >= served(peer, &before) + pages)
        });
    }

    /// Waits until each of these peers serves its share of some hundred pages.
    #[track_caller]
    fn wait_for_fair_shares(&self, peers: &[&str]) {
        wait_until(&format!("{peers:?} serve their shares"), PATIENCE, || {
            let before = self.seen().served.clone();
            self.wait_for(peers, 60);
            let now = self.seen().served.clone();
            let served: Vec<_> = peers.iter().map(|peer| now[*peer] - before[*peer]).collect();
            let all: usize = served.iter().sum();
            served.iter().all(|served| (23..=43).contains(&(100 * served / all)))
        });
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[test]
fn visitors_hardly_notice_what_happens_to_a_peer() {
    const VISITORS: usize = 8;
    const PEERS: [&str; 3] = ["db0", "db1", "db2"];

    let mut servers = [(); 3].map(|()| MariaDb::start());
    for server in &servers {
        let mut conn = MysqlConnection::establish(&server.url()).expect("it runs");
        conn.run_pending_migrations(MIGRATIONS).expect("they run on an empty database");
    }
    let settings = "pool_size=12,timeout=30,check_interval=\"200ms\",connect_timeout=\"2s\",\
                    stall_after=\"500ms\",check_timeout=\"200ms\"";
    let app = GuestBook::start_with(Some(&databases(&servers, settings)));
    let visitor = app.visitor();
    let is = |peer: &str, state: &str| {
        let page = visitor.get("/peers").body;
        between(&page, &format!("<th scope=\"row\">{peer}<td class=\""), "<td>").ends_with(state)
    };
    let seen = Visitors::visit(&app, VISITORS, |visitors| {
        visitors.wait_for(&PEERS, 30);

        visitors.faults.store(1, Ordering::Relaxed);
        servers[0].kill();
        wait_until("it is marked", PATIENCE, || is("db0", "down"));
        visitors.wait_for(&["db1", "db2"], 50);
        servers[0].restart();
        wait_until("it is up again", PATIENCE, || is("db0", "up"));
        visitors.wait_for_fair_shares(&PEERS);

        visitors.faults.store(2, Ordering::Relaxed);
        servers[1].freeze();
        wait_until("it is marked", PATIENCE, || is("db1", "down"));
        visitors.wait_for(&["db0", "db2"], 50);
        servers[1].thaw();
        wait_until("it is up again", PATIENCE, || is("db1", "up"));
        visitors.wait_for_fair_shares(&PEERS);
    });

    let mut unlucky = BTreeSet::new();
    for (visitor, faults, answer) in &seen.failed {
        assert_ne!(*faults, 0, "all peers worked: {answer:?}");
        assert!(unlucky.insert((visitor, faults)), "once is bad luck: {:?}", seen.failed);
        assert_eq!(answer.status, 503, "{answer:?}");
        tells_no_internals(&answer.body);
    }
    assert!(!seen.written.is_empty(), "there was something to lose");
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for server in &servers {
        for message in server.sql("SELECT message FROM app.entries").lines() {
            *times.entry(message.to_owned()).or_default() += 1;
        }
    }
    for message in &seen.written {
        assert_eq!(times.get(message), Some(&1), "{message} was acknowledged");
    }
    assert!(times.values().all(|times| *times == 1), "none is there twice: {times:?}");
}

/// The page is no wider than the screen.
#[track_caller]
fn fits(browser: &Browser) {
    let widths = browser
        .run("const page = document.documentElement; return [page.scrollWidth, page.clientWidth]");
    let width = |at: usize| widths[at].as_u64().expect("a number");
    assert!(width(0) <= width(1), "the page is as wide as the screen: {widths}");
}

#[test]
fn a_browser_writes_and_reads() {
    let app = GuestBook::start();
    let visitor = app.visitor();
    let entries = [
        ("Nadia", "What a lovely place. We came for the lighthouse and stayed for the cake."),
        ("Tom", "Back after eleven years, and the view is still the same.\nSee you soon!"),
        ("Zoë & René", "Merci pour tout : on reviendra l’été prochain, avec les grands-parents."),
    ];
    for (name, message) in entries {
        assert_eq!(sign(&visitor, name, message).status, 303);
    }

    let phone = Browser::phone(390, 844);
    phone.open(&app.site());
    fits(&phone);
    for field in ["name", "message"] {
        let label = format!("return document.querySelector('#{field}').labels.length");
        assert_eq!(phone.run(&label), 1, "{field} has a label");
    }
    // The browser lets nobody send an empty form; without its help the site does not take it.
    phone.run("document.querySelector('form').noValidate = true");
    phone.type_into("#message", "Half an hour");
    phone.click("button");
    phone.wait_for("#name-mistake");
    assert_eq!(phone.text("#name-mistake"), "Please write something here.");
    fits(&phone);

    phone.type_into("#name", "Olga");
    phone.type_into("#message", " in the sun on your bench: the best of my holidays.");
    phone.click("button");
    phone.wait_for(".notice");
    assert_eq!(phone.text(".notice"), "Thank you! Your entry is in the book.");
    assert_eq!(phone.text("li:first-child h3"), "Olga");
    let message = "Half an hour in the sun on your bench: the best of my holidays.";
    assert_eq!(phone.text("li:first-child p"), message);
    assert_eq!(phone.text("li:last-child p"), entries[0].1);
    assert!(phone.text("#peer").starts_with("db"), "one of them served it");
    assert_eq!(
        phone.run("return getComputedStyle(document.querySelector('ol')).listStyleType"),
        "none",
        "it has its style"
    );
    fits(&phone);
    if let Some(path) = env::var_os(SCREENSHOT) {
        fs::write(path, phone.screenshot()).expect("it can be written");
    }

    assert_eq!(sign(&visitor, &"W".repeat(60), &"W".repeat(1000)).status, 303);
    let desktop = Browser::desktop(1280, 800);
    for browser in [&phone, &desktop] {
        for path in ["/", "/peers", "/elsewhere"] {
            browser.open(&format!("{}{path}", app.site()));
            fits(browser);
        }
    }
}
