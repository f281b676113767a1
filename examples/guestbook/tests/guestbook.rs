//! The guest book as its visitors see it: the entries that it accepts and shows, also in a browser, and while its
//! peers are killed and frozen.

#![cfg(target_os = "linux")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
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

/// The environment variable with the file to which the test with a browser writes a screenshot.
const SCREENSHOT: &str = "DIESEL_PEERS_TEST_SCREENSHOT";

/// Opens a form and submits an entry with it.
#[track_caller]
fn sign(visitor: &Client, name: &str, message: &str) -> Answer {
    let form = visitor.get("/").body;
    let key = between(&form, "name=\"key\" value=\"", "\"");
    visitor.post("/", &[("key", key), ("name", name), ("message", message)])
}

/// Returns the first text between these two texts.
#[track_caller]
fn between<'a>(page: &'a str, before: &str, after: &str) -> &'a str {
    all_between(page, before, after).next().unwrap_or_else(|| panic!("no {before} on {page}"))
}

/// Returns all texts between these two texts.
fn all_between<'a>(page: &'a str, before: &str, after: &str) -> impl Iterator<Item = &'a str> {
    page.split(before).skip(1).filter_map(move |rest| rest.split(after).next())
}

/// Returns the messages on a page.
fn messages(page: &str) -> Vec<&str> {
    all_between(page, "<p>", "</p>").collect()
}

#[test]
fn new_entry_is_listed() {
    let app = GuestBook::start();
    let visitor = app.visitor();
    assert!(visitor.get("/").body.contains("Be the first!"), "the book is empty");

    let answer = sign(&visitor, "Zoë", "Good morning!\r\nA second line.");
    assert_eq!(
        (answer.status, answer.location.as_deref()),
        (303, Some("/")),
        "a valid form is redirected to the list"
    );
    let page = visitor.get("/");
    assert_eq!(page.status, 200);
    assert_eq!(messages(&page.body), ["Good morning!\nA second line."]);
    assert!(page.body.contains("<h3>Zoë</h3>"), "the entry has the name: {}", page.body);
    assert!(page.body.contains("One entry"), "the entries are counted: {}", page.body);
}

#[test]
fn invalid_form_is_returned_with_its_mistakes() {
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
        assert_eq!(answer.status, 422, "{name} and {message} are refused");
        let mistakes: Vec<_> =
            all_between(&answer.body, "<p class=\"mistake\" id=\"", "-mistake\">").collect();
        assert_eq!(mistakes, expected, "the mistake is shown beside the field");
        let refers = all_between(&answer.body, "aria-describedby=\"", "-mistake\"");
        assert_eq!(
            refers.collect::<Vec<_>>(),
            expected,
            "the field refers to the mistake, for screen readers"
        );
        assert!(answer.body.contains(&format!("value=\"{name}\"")), "the form keeps its input");
        assert!(
            answer.body.contains(&format!("\n{message}</textarea>")),
            "the form keeps its input"
        );
    }
    assert_eq!(messages(&visitor.get("/").body), [""; 0], "an invalid form makes no entry");

    let answer = sign(&visitor, &long[..2 * 60], &long[..2 * 1000]);
    assert_eq!(answer.status, 303, "the limit counts characters, not bytes");
    let answer = visitor.post("/", &[]);
    assert_eq!(answer.status, 422, "a form without fields is refused");
}

#[test]
fn entries_are_escaped() {
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
        assert!(page.contains("&amp;amp;"), "the input is escaped: {page}");
    }
    for page in [listed, in_text] {
        assert!(page.contains("&lt;script&gt;alert(1)"), "the input is escaped: {page}");
    }
}

#[test]
fn newest_entries_come_first() {
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
        assert_eq!(visitor.get(beyond).status, 404, "{beyond} is not found");
    }
}

#[test]
fn form_sent_twice_makes_one_entry() {
    let app = GuestBook::start();
    let visitor = app.visitor();
    for _ in 0..2 {
        let answer = visitor.post("/", &[("key", "1"), ("name", "Ann"), ("message", "Hello")]);
        assert_eq!(answer.status, 303, "the second request succeeds as well");
    }
    assert_eq!(messages(&visitor.get("/").body), ["Hello"]);
    // After going back in the browser, a visitor has the same form.
    let answer = visitor.post("/", &[("key", "1"), ("name", "Ann"), ("message", "Hello again")]);
    assert_eq!(answer.status, 303, "the same form with another message makes another entry");
    assert_eq!(messages(&visitor.get("/").body), ["Hello again", "Hello"]);
}

#[test]
fn forms_of_other_sites_are_refused() {
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
        assert_eq!(answer.status, 403, "the form is refused with {header:?}");
        assert!(answer.body.contains("not sent from our own page"), "{}", answer.body);
    }
    assert_eq!(messages(&visitor.get("/").body), [""; 0], "a refused form makes no entry");
    let site = app.site();
    for header in [("Sec-Fetch-Site", "same-origin"), ("Origin", site.as_str())] {
        assert_eq!(
            visitor.post_with("/", &form, &[header]).status,
            303,
            "the form is accepted with {header:?}"
        );
    }
}

#[test]
fn unknown_page_is_not_found() {
    let app = GuestBook::start();
    let answer = app.visitor().get("/elsewhere");
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("There is no such page."), "{}", answer.body);
}

/// Returns the names on the page of peers.
fn peers_of(app: &GuestBook) -> Vec<String> {
    let page = app.visitor().get("/peers").body;
    all_between(&page, "<th scope=\"row\">", "<").map(str::to_owned).collect()
}

#[test]
fn configured_peers_replace_the_default_peers() {
    assert_eq!(peers_of(&GuestBook::start()), ["db0", "db1", "db2"]);

    let folder = tempfile::tempdir().expect("a temporary folder can be created");
    let path = folder.path().join("book.db");
    fs::write(&path, "").expect("the test owns the folder");
    let path = path.display();
    let url = format!("{{guestbook={{url=\"sqlite://{path}?mode=rw\"}}}}");
    assert_eq!(peers_of(&GuestBook::start_with(Some(&url))).len(), 1, "one URL makes one peer");
    let peers = format!(
        "{{guestbook={{peers={{left=\"file:{path}?mode=rw\",right=\"file:{path}?mode=rw\"}}}}}}"
    );
    assert_eq!(
        peers_of(&GuestBook::start_with(Some(&peers))),
        ["left", "right"],
        "named peers keep their names"
    );
}

/// Returns the guest book's database settings for these servers.
fn databases(servers: &[MariaDb], settings: &str) -> String {
    let peers =
        servers.iter().enumerate().map(|(at, server)| format!("db{at}=\"{}\"", server.url()));
    let peers = peers.collect::<Vec<_>>().join(",");
    format!("{{guestbook={{peers={{{peers}}},{settings}}}}}")
}

/// Asserts that a page shows nothing about the database.
#[track_caller]
fn assert_shows_no_internals(page: &str) {
    for internal in ["MySQL", "mysql", "onnection", "127.0.0.1", support::APP_PASSWORD] {
        assert!(!page.contains(internal), "`{internal}` must not be on the page: {page}");
    }
}

#[test]
fn site_without_its_database_answers_503_and_keeps_the_input() {
    let mut servers = [MariaDb::start()];
    let settings = "timeout=2,pool_size=2,check_interval=\"200ms\"";
    let app = GuestBook::start_with(Some(&databases(&servers, settings)));
    let visitor = app.visitor();
    assert_eq!(sign(&visitor, "Zoë 🦀", "Before").status, 303, "the site works");
    let form = visitor.get("/").body;
    let key = between(&form, "name=\"key\" value=\"", "\"");
    let fields = [("key", key), ("name", "Ann"), ("message", "Meanwhile")];

    servers[0].kill();
    let answer = visitor.get("/");
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("come back in a moment"), "{}", answer.body);
    assert_shows_no_internals(&answer.body);
    let answer = visitor.post("/", &fields);
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("\nMeanwhile</textarea>"), "the form keeps its input");
    assert_eq!(between(&answer.body, "name=\"key\" value=\"", "\""), key, "the form keeps its key");
    assert_shows_no_internals(&answer.body);
    wait_until("the peer is shown as down", PATIENCE, || {
        visitor.get("/peers").body.contains("<th scope=\"row\">db0<td class=\"bad\">down")
    });

    servers[0].restart();
    wait_until("the form is accepted when it is sent again", PATIENCE, || {
        visitor.post("/", &fields).status == 303
    });
    assert_eq!(messages(&visitor.get("/").body), ["Meanwhile", "Before"]);
    assert!(!app.log().contains(support::APP_PASSWORD), "passwords are not logged");
}

/// Visitors who repeatedly read and write entries.
#[derive(Debug, Default)]
struct Visitors {
    stopped: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The number of pages that each peer has served.
    served: BTreeMap<String, usize>,
    /// The messages that were acknowledged.
    written: Vec<String>,
    /// The failed requests.
    failed: Vec<Answer>,
}

impl Visitors {
    /// Runs this number of visitors while `scenario` runs, and returns what they observed until its end.
    fn visit(app: &GuestBook, number: usize, scenario: impl FnOnce(&Self)) -> Seen {
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
            scenario(&visitors);
        });
        visitors.seen.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn one_visit(&self, client: &Client, number: usize, visit: usize) {
        let answer = client.get("/");
        let key = all_between(&answer.body, "name=\"key\" value=\"", "\"").next();
        let peer = all_between(&answer.body, "<strong id=\"peer\">", "<").next();
        let Some((key, peer)) = key.zip(peer).filter(|_| answer.status == 200) else {
            return self.seen().failed.push(answer);
        };
        *self.seen().served.entry(peer.to_owned()).or_default() += 1;
        let message = format!("Visit {visit} of visitor {number}.");
        let fields = [("key", key), ("name", "A visitor"), ("message", message.as_str())];
        let answer = client.post("/", &fields);
        if answer.status != 303 {
            return self.seen().failed.push(answer);
        }
        self.seen().written.push(message);
    }

    /// Waits until each of these peers has served this number of further pages.
    #[track_caller]
    fn wait_for(&self, peers: &[&str], pages: usize) {
        let before = self.seen().served.clone();
        let served = |peer: &str, seen: &BTreeMap<_, _>| seen.get(peer).copied().unwrap_or(0);
        wait_until(&format!("{peers:?} serve"), PATIENCE, || {
            let now = self.seen().served.clone();
            peers.iter().all(|peer| served(peer, &now) >= served(peer, &before) + pages)
        });
    }

    /// Waits until each of these peers serves its share of the pages.
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
fn visitors_get_no_error_while_peers_are_killed_and_frozen() {
    const VISITORS: usize = 8;
    const PEERS: [&str; 3] = ["db0", "db1", "db2"];

    let mut servers = [(); 3].map(|()| MariaDb::start());
    for server in &servers {
        let mut conn = MysqlConnection::establish(&server.url()).expect("the server runs");
        conn.run_pending_migrations(MIGRATIONS).expect("the migrations fit an empty database");
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

        servers[0].kill();
        wait_until("db0 is marked down", PATIENCE, || is("db0", "down"));
        visitors.wait_for(&["db1", "db2"], 50);
        servers[0].restart();
        wait_until("db0 is up again", PATIENCE, || is("db0", "up"));
        visitors.wait_for_fair_shares(&PEERS);

        servers[1].freeze();
        wait_until("db1 is marked down", PATIENCE, || is("db1", "down"));
        visitors.wait_for(&["db0", "db2"], 50);
        servers[1].thaw();
        wait_until("db1 is up again", PATIENCE, || is("db1", "up"));
        visitors.wait_for_fair_shares(&PEERS);
    });

    assert!(seen.failed.is_empty(), "no visitor gets an error: {:?}", seen.failed);
    assert!(!seen.written.is_empty(), "visitors have written entries");
    // These servers do not share their data. An entry whose COMMIT got no answer may be on two of them, under the same
    // id: equivalent servers would have it once.
    let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for server in &servers {
        for row in server.sql("SELECT id, message FROM app.entries").lines() {
            let (id, message) = row.split_once('\t').expect("two columns");
            ids.entry(message.to_owned()).or_default().insert(id.to_owned());
        }
    }
    for message in &seen.written {
        assert!(ids.contains_key(message), "the acknowledged {message} is stored");
    }
    assert!(ids.values().all(|ids| ids.len() == 1), "no entry is stored twice: {ids:?}");
}

/// Asserts that the page is not wider than the screen.
#[track_caller]
fn assert_fits(browser: &Browser) {
    let widths = browser
        .run("const page = document.documentElement; return [page.scrollWidth, page.clientWidth]");
    let width = |at: usize| widths[at].as_u64().expect("the width is a number");
    assert!(width(0) <= width(1), "the page is no wider than the screen: {widths}");
}

#[test]
fn browser_writes_and_reads_entries() {
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
    assert_fits(&phone);
    for field in ["name", "message"] {
        let label = format!("return document.querySelector('#{field}').labels.length");
        assert_eq!(phone.run(&label), 1, "{field} has a label");
    }
    // Without the browser's own validation, the empty form is sent, and the site refuses it.
    phone.run("document.querySelector('form').noValidate = true");
    phone.type_into("#message", "Half an hour");
    phone.click("button");
    phone.wait_for("#name-mistake");
    assert_eq!(phone.text("#name-mistake"), "Please write something here.");
    assert_fits(&phone);

    phone.type_into("#name", "Olga");
    phone.type_into("#message", " in the sun on your bench: the best of my holidays.");
    phone.click("button");
    phone.wait_for(".notice");
    assert_eq!(phone.text(".notice"), "Thank you! Your entry is in the book.");
    assert_eq!(phone.text("li:first-child h3"), "Olga");
    let message = "Half an hour in the sun on your bench: the best of my holidays.";
    assert_eq!(phone.text("li:first-child p"), message);
    assert_eq!(phone.text("li:last-child p"), entries[0].1);
    assert!(phone.text("#peer").starts_with("db"), "the page names its peer");
    assert_eq!(
        phone.run("return getComputedStyle(document.querySelector('ol')).listStyleType"),
        "none",
        "the page has its style"
    );
    assert_fits(&phone);
    if let Some(path) = env::var_os(SCREENSHOT) {
        fs::write(path, phone.screenshot()).expect("the file is writable");
    }

    assert_eq!(sign(&visitor, &"W".repeat(60), &"W".repeat(1000)).status, 303);
    let desktop = Browser::desktop(1280, 800);
    for browser in [&phone, &desktop] {
        for path in ["/", "/peers", "/elsewhere"] {
            browser.open(&format!("{}{path}", app.site()));
            assert_fits(browser);
        }
    }
}
