//! The status page in a browser: an operator watches and drains peers while servers fail and visitors read,
//! and other sites cannot use the page.

#![cfg(target_os = "linux")]
#![allow(clippy::disallowed_methods, reason = "visitors pause, and real servers take their time")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use std::{env, fs, thread};

use diesel::prelude::*;
use diesel::r2d2::Pool;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use diesel_peers::status_page::StatusPage;
use diesel_peers::{PeerManager, Peers};
use serde_json::Value;
use support::backend::{PATIENCE, SOON, pool_of};
use support::browser::{Browser, ENTER, ESCAPE, TAB};
use support::guestbook::GuestBook;
use support::http::{Answer, Client};
use support::load::Load;
use support::mariadb::MariaDb;
use support::scripted::{ScriptedConnection, Server};
use support::site::Site;
use support::{EndsThreads, wait_until, within};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// The path of the guest book's status page.
const PAGE: &str = "/operator";

/// The environment variable with the path of a screenshot to take. With it, the test runs for as long as the
/// charts of the page show.
const SCREENSHOT: &str = "DIESEL_PEERS_TEST_STATUS_SCREENSHOT";

/// The time within which the session of a health check ends on a busy machine.
const SESSIONS_END: Duration = Duration::from_secs(5);

/// The text of a cell in the row of a peer, as the browser shows it.
#[track_caller]
fn cell(browser: &Browser, peer: &str, name: &str) -> String {
    let script = format!(
        "return document.querySelector('tbody[data-peer=\"{peer}\"] [data-is=\"{name}\"]').innerText"
    );
    browser.run(&script).as_str().expect("a text").to_owned()
}

#[track_caller]
fn wait_for_state(browser: &Browser, peer: &str, state: &str) {
    wait_until(&format!("the page shows {peer} as {state}"), PATIENCE, || {
        cell(browser, peer, "state") == state
    });
}

/// Waits as [`wait_for_state`] does until the peer is drained. Connections to SQLite have no sockets to shut
/// down, so they are closed only as the pool is used.
#[track_caller]
fn wait_until_drained(browser: &Browser, visitor: &Client, peer: &str) {
    wait_until(&format!("the page shows {peer} as drained"), PATIENCE, || {
        visitor.get("/");
        cell(browser, peer, "state") == "drained"
    });
}

/// The button of a peer.
fn button(peer: &str) -> String {
    format!("tbody[data-peer='{peer}'] button")
}

/// The text of an element of the page.
#[track_caller]
fn said(browser: &Browser, id: &str) -> String {
    let script = format!("return document.getElementById('{id}').textContent");
    browser.run(&script).as_str().expect("a text").to_owned()
}

#[track_caller]
fn wait_until_said(browser: &Browser, id: &str, expected: &str) {
    wait_until(&format!("it says: {expected}"), PATIENCE, || said(browser, id).contains(expected));
}

/// Asserts that the page is not wider than the screen.
#[track_caller]
fn fits(browser: &Browser) {
    let widths = browser
        .run("const page = document.documentElement; return [page.scrollWidth, page.clientWidth]");
    let width = |at: usize| widths[at].as_u64().expect("a number");
    assert!(width(0) <= width(1), "the page is as wide as the screen: {widths}");
}

/// Visitors who read the list again and again, and the answers that were errors.
#[derive(Debug, Default)]
struct Visitors {
    stopped: AtomicBool,
    visits: AtomicUsize,
    failed: Mutex<Vec<Answer>>,
}

impl Visitors {
    /// Lets `number` visitors read while `story` runs.
    fn visit(app: &GuestBook, number: usize, story: impl FnOnce(&Self)) {
        let visitors = Self::default();
        thread::scope(|scope| {
            for _ in 0..number {
                let client = app.visitor();
                let visitors = &visitors;
                scope.spawn(move || {
                    while !visitors.stopped.load(Ordering::Relaxed) {
                        let answer = client.get("/");
                        visitors.visits.fetch_add(1, Ordering::Relaxed);
                        if answer.status != 200 {
                            visitors.failed.lock().expect("it is whole").push(answer);
                        }
                        // Pauses leave processor time to the browser.
                        thread::sleep(Duration::from_millis(10));
                    }
                });
            }
            let _stop = EndsThreads(&visitors.stopped);
            story(&visitors);
        });
    }

    /// Waits for this many further visits.
    #[track_caller]
    fn wait_for(&self, visits: usize) {
        let before = self.visits.load(Ordering::Relaxed);
        wait_until("they visit", PATIENCE, || {
            self.visits.load(Ordering::Relaxed) >= before + visits
        });
    }

    /// Returns the answers that were errors since the last call.
    fn failed(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.failed.lock().expect("it is whole"))
    }
}

/// Asserts that the sessions of the application on this server end soon. Only health checks open further
/// sessions, and each of them is short.
#[track_caller]
fn has_no_sessions(server: &MariaDb) {
    let sessions = || {
        let list = format!(
            "SELECT id FROM information_schema.processlist WHERE user = '{}'",
            support::APP
        );
        server.sql(&list).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut stay = sessions();
    let is_empty = within(SESSIONS_END, || {
        let now = sessions();
        stay.retain(|id| now.contains(id));
        stay.is_empty()
    });
    assert!(is_empty, "there is no session but those of checks: {stay:?}");
}

#[test]
fn page_shows_a_killed_peer_and_drains_another_unnoticed_by_visitors() {
    let mut servers = [(); 3].map(|()| MariaDb::start());
    for server in &servers {
        let mut conn = MysqlConnection::establish(&server.url()).expect("it runs");
        conn.run_pending_migrations(MIGRATIONS).expect("they run on an empty database");
    }
    let peers = servers.iter().enumerate().map(|(at, it)| format!("db{at}=\"{}\"", it.url()));
    let peers = peers.collect::<Vec<_>>().join(",");
    let app = GuestBook::start_with(Some(&format!(
        "{{guestbook={{peers={{{peers}}},pool_size=9,timeout=20,check_interval=\"500ms\"}}}}"
    )));
    let browser = Browser::desktop(1280, 720);
    Visitors::visit(&app, 6, |visitors| {
        browser.open(&format!("{}{PAGE}", app.site()));
        browser.wait_for(".live");
        browser.run("window.wasNotReloaded = true");
        visitors.wait_for(100);

        servers[0].kill();
        wait_for_state(&browser, "db0", "down");
        assert!(!cell(&browser, "db0", "remarks").is_empty(), "it says why");
        wait_until_said(&browser, "spoken", "peer db0 is down");
        wait_until("the charts are drawn", PATIENCE, || {
            let lines = "return [...document.querySelectorAll('tbody .line, [data-peer=db0] .off')]\
                         .every((path) => (path.getAttribute('d') ?? '').length > 10)";
            browser.run(lines) == true
        });
        assert_eq!(browser.run("return document.title"), "guestbook 2/3 available");
        servers[0].restart();
        wait_for_state(&browser, "db0", "up");
        wait_until("it has its share", PATIENCE, || {
            cell(&browser, "db0", "connections").ends_with(" 3")
        });
        visitors.failed();

        browser.click(&button("db1"));
        wait_for_state(&browser, "db1", "drained");
        assert_eq!(browser.text(&button("db1")), "Resume");
        visitors.wait_for(100);
        has_no_sessions(&servers[1]);
        wait_until("its work is shown as none", PATIENCE, || {
            cell(&browser, "db1", "share") == "0 %"
        });
        browser.click(&button("db1"));
        wait_for_state(&browser, "db1", "up");
        wait_until("it has its share", PATIENCE, || {
            cell(&browser, "db1", "connections").ends_with(" 3")
        });
        wait_until("it is given work", PATIENCE, || {
            !["–", "0 %"].contains(&cell(&browser, "db1", "share").as_str())
        });
        assert!(servers[1].sessions() >= 3, "they are there");
        let failed = visitors.failed();
        assert!(failed.is_empty(), "nobody notices a drain: {failed:?}");
        assert_eq!(browser.run("return window.wasNotReloaded"), true);
    });

    drop(app);
    wait_until_said(&browser, "notice", "This page is outdated");
    assert!(browser.run("return document.title").to_string().contains("Outdated: guestbook"));
}

#[test]
fn page_is_operated_by_keyboard_alone() {
    let app = GuestBook::start();
    let visitor = app.visitor();
    let browser = Browser::desktop(1280, 720);
    browser.open(&format!("{}{PAGE}", app.site()));
    browser.wait_for(".live");
    let focus = || {
        let script = "return document.activeElement.getAttribute('aria-label') \
                      ?? document.activeElement.textContent";
        browser.run(script).as_str().unwrap_or_default().to_owned()
    };
    let mut order = Vec::new();
    for _ in 0..4 {
        browser.press(TAB);
        order.push(focus());
    }
    assert_eq!(order, ["Drain db0", "Drain db1", "Drain db2", "This report as JSON"]);

    browser.run("document.querySelectorAll('button')[0].focus()");
    browser.press(TAB);
    let outline = "return getComputedStyle(document.activeElement).outlineStyle";
    assert_eq!(browser.run(outline), "solid", "the focus is seen");
    assert_eq!(focus(), "Drain db1");
    browser.press(ENTER);
    wait_until_drained(&browser, &visitor, "db1");
    assert_eq!(focus(), "Resume db1", "it stays where it was");
    browser.press(" ");
    wait_for_state(&browser, "db1", "up");

    for peer in ["db1", "db2"] {
        browser.run(&format!("document.querySelector(\"{}\").focus()", button(peer)));
        browser.press(ENTER);
        wait_until_drained(&browser, &visitor, peer);
    }
    let asks = |peer: &str| {
        browser.run(&format!("document.querySelector(\"{}\").focus()", button(peer)));
        browser.press(ENTER);
        browser.wait_for("dialog[open]");
        assert!(browser.text("#asked").contains("No other peer of guestbook is available"));
        assert_eq!(focus(), "Keep it in service", "the harmless answer comes first");
    };
    let is_answered = || {
        wait_until("it is closed", PATIENCE, || {
            browser.run("return document.querySelector('dialog[open]')") == Value::Null
        });
    };
    for no in [ESCAPE, ENTER] {
        asks("db0");
        browser.press(no);
        is_answered();
        assert_eq!(focus(), "Drain db0", "the focus is back");
    }
    assert!(visitor.get(&format!("{PAGE}?json")).body.contains("\"state\":\"up\""), "still");
    asks("db0");
    browser.press(TAB);
    browser.press(ENTER);
    is_answered();
    wait_until("it is drained", PATIENCE, || cell(&browser, "db0", "state").starts_with("drain"));
    assert_eq!(browser.run("return document.title"), "guestbook 0/3 available");
}

#[test]
fn page_without_scripts_is_a_table_with_forms() {
    let app = GuestBook::start();
    let browser = Browser::without_scripts();
    browser.open(&format!("{}{PAGE}", app.site()));
    assert!(!browser.text("noscript").is_empty(), "it says that it stands still");
    for peer in ["db0", "db1"] {
        browser.click(&button(peer));
        wait_until("it is drained", PATIENCE, || {
            app.visitor().get("/");
            browser.open(&format!("{}{PAGE}", app.site()));
            browser.text(&format!("tbody[data-peer='{peer}'] b")) == "drained"
        });
    }
    fits(&browser);
    browser.click(&button("db2"));
    browser.wait_for("a[href='?']");
    assert!(browser.text(".notice").contains("No other peer of guestbook is available"));
    fits(&browser);
    browser.click("a[href='?']");
    browser.wait_for("tbody");
    assert_eq!(browser.text("tbody[data-peer='db2'] b"), "up", "nothing was done");
    browser.click(&button("db2"));
    browser.wait_for("input[name=confirm]");
    browser.click("button");
    browser.wait_for("tbody");
    assert!(browser.text("tbody[data-peer='db2'] b").starts_with("drain"));
}

/// The lowest contrast ratio between a text and its background on the whole page, from 1 to 21. WCAG requires
/// at least 4.5.
const CONTRAST: &str = r"
    const light = (color) => {
        const [r, g, b] = color.match(/[\d.]+/g).map((it) => it / 255)
            .map((it) => it <= 0.04 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        const color = getComputedStyle(element).backgroundColor;
        if (color !== 'rgba(0, 0, 0, 0)') return color;
        return element.parentElement ? behind(element.parentElement) : 'rgb(255, 255, 255)';
    };
    const texts = [...document.body.querySelectorAll('*')].filter((it) =>
        it.checkVisibility()
        && [...it.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
    return Math.min(...texts.map((it) => {
        const [one, other] = [getComputedStyle(it).color, behind(it)].map(light);
        return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    }));
";

#[test]
fn page_fits_a_phone_and_has_contrast_in_dark_and_light_mode() {
    let app = GuestBook::start();
    let small = Browser::phone(320, 640);
    small.open(&format!("{}{PAGE}", app.site()));
    small.wait_for(".live");
    small.click(&button("db1"));
    wait_until_drained(&small, &app.visitor(), "db1");
    let mut papers = Vec::new();
    for scheme in ["light", "dark"] {
        small.prefer(scheme);
        fits(&small);
        let contrast = small.run(CONTRAST).as_f64().expect("a number");
        assert!(contrast >= 4.5, "{scheme}: everything can be read: {contrast}");
        papers.push(small.run("return getComputedStyle(document.body).backgroundColor"));
    }
    assert_ne!(papers[0], papers[1], "they differ");
    let heights = "return Math.min(...[...document.querySelectorAll('section button')]\
                   .map((button) => button.offsetHeight))";
    assert!(small.run(heights).as_u64().expect("a number") >= 44, "a finger hits a button");
    // The state is not shown by color alone.
    assert_eq!(
        (cell(&small, "db0", "sign"), cell(&small, "db1", "sign")),
        ("●".into(), "○".into())
    );
}

#[test]
fn page_shows_two_pools_with_their_peers() {
    let mut servers = [(); 5].map(|()| MariaDb::start());
    let kept = env::var_os(SCREENSHOT);
    let interval = if kept.is_some() { Duration::from_secs(10) } else { SOON };
    let pool = |name: &str, peers: [(&str, &MariaDb, u32); 3], max_size| {
        let builder =
            PeerManager::<MysqlConnection>::builder().pool_name(name).check_interval(interval);
        let builder = peers.into_iter().fold(builder, |builder, (name, server, weight)| {
            builder.peer(name, server.url()).weight(name, weight)
        });
        pool_of(builder, max_size)
    };
    let [db0, db1, db2, users0, users1] = &servers;
    let (shop, peers_of_shop) =
        pool("shop", [("db0", db0, 1), ("db1", db1, 1), ("db2", db2, 2)], 12);
    let (users, peers_of_users) =
        pool("users", [("users0", users0, 1), ("users1", users1, 1), ("users2", users1, 0)], 4);
    let page = StatusPage::new().pool(peers_of_shop).pool(peers_of_users).with_actions();
    let site = Site::start(page);
    let browser = Browser::desktop(1280, 720);
    let linger = |seconds| {
        if kept.is_some() {
            thread::sleep(Duration::from_secs(seconds));
        }
    };
    Load::run(&shop, 5, "DO SLEEP(0.01)", |_| {
        Load::run(&users, 2, "DO SLEEP(0.004)", |_| {
            browser.open(&site.url());
            browser.wait_for(".live");
            linger(30);
            servers[1].kill();
            wait_for_state(&browser, "db1", "down");
            linger(20);
            servers[1].restart();
            wait_for_state(&browser, "db1", "up");
            linger(30);
            browser.click(&button("users0"));
            wait_for_state(&browser, "users0", "drained");
            linger(25);
            servers[0].kill();
            wait_for_state(&browser, "db0", "down");
            linger(12);
            if let Some(path) = &kept {
                fs::write(path, browser.screenshot()).expect("it can be written");
            }
        });
    });
    let texts = "return [...document.querySelectorAll('h2, [data-is=summary]')]\
                 .map((element) => element.textContent).join('; ')";
    assert_eq!(browser.run(texts), "shop; 2 of 3 peers available; users; 1 of 3 peers available");
    let remarks = cell(&browser, "db0", "remarks");
    assert!(remarks.contains("connect to server"), "it says why: {remarks}");
    assert_eq!(cell(&browser, "users2", "remarks"), "Weight 0: the peer gets no work.");
}

/// Starts scripted servers, and a pool over peers with these names.
fn scripted(
    names: &[&str],
) -> (Vec<std::sync::Arc<Server>>, Pool<PeerManager<ScriptedConnection>>, Peers) {
    let servers: Vec<_> = names.iter().map(|_| Server::start()).collect();
    let builder = PeerManager::builder().check_interval(SOON);
    let builder = names
        .iter()
        .zip(&servers)
        .fold(builder, |builder, (name, server)| builder.peer(*name, server.url()));
    let (pool, peers) = pool_of(builder, 2);
    (servers, pool, peers)
}

const MALICE: &str = "</script><img src=x onerror=\"alert(1)\"><script>alert('x')</script>&amp;";

#[test]
fn markup_in_names_and_reasons_is_shown_as_text() {
    let server = Server::start();
    let builder = PeerManager::<ScriptedConnection>::builder()
        .pool_name(MALICE)
        .peer(MALICE, server.url())
        .peer("db1", server.url())
        .health_check(|_| Err(diesel::result::Error::QueryBuilderError(MALICE.into())))
        .check_interval(SOON);
    let (_pool, peers) = pool_of(builder, 2);
    wait_until("it is down", PATIENCE, || {
        peers.snapshot().peers.iter().all(|it| it.reason.is_some())
    });
    let site = Site::start(StatusPage::new().pool(peers.clone()).with_actions());
    let browser = Browser::desktop(1280, 720);
    browser.open(&site.url());
    browser.wait_for(".live");
    browser.run("document.querySelector('button').focus()");
    let shows_it = |what: &str| {
        let script = format!("return document.querySelector('{what}').textContent");
        let text = browser.run(&script);
        assert!(text.as_str().expect("a text").contains(MALICE), "{what}: {text}");
    };
    let intact = || {
        for what in ["h2", "tbody [data-is=name]", "tbody [data-is=remarks]", "li span"] {
            shows_it(what);
        }
        let strangers =
            "return document.querySelectorAll('img, script:not([nonce]):not([type])').length";
        assert_eq!(browser.run(strangers), 0, "nothing of it is a part of the page");
    };
    intact();
    // The page's script writes the rows of peers that are added later.
    peers.add(diesel_peers::PeerConfig::new(format!("{MALICE}2"), server.url())).expect("a name");
    wait_until("it is shown", PATIENCE, || {
        browser.run("return document.querySelectorAll('tbody').length") == 3
    });
    intact();
    browser.press(ENTER);
    browser.wait_for("dialog[open]");
    shows_it("#asked");
    intact();
    browser.press(TAB);
    browser.press(ENTER);
    wait_until("its name finds it", PATIENCE, || {
        peers.snapshot().peer(MALICE).is_some_and(|it| it.state.to_string().starts_with("drain"))
    });
    peers.remove(MALICE).expect("there are others");
    wait_until("it is gone", PATIENCE, || {
        browser.run("return document.querySelectorAll('tbody').length") == 2
    });
    assert_eq!(
        browser.run("return document.querySelectorAll('tbody')[1].dataset.peer"),
        format!("{MALICE}2")
    );
}

#[test]
fn interrupted_transactions_are_shown_as_soon_as_there_are_some() {
    let (servers, pool, peers) = scripted(&["db0", "db1"]);
    let site = Site::start(StatusPage::new().pool(peers));
    let browsers = [Browser::desktop(1280, 720), Browser::phone(320, 640)];
    let is_shown = "return document.querySelector('[data-is=transactions]').checkVisibility()";
    for browser in &browsers {
        browser.open(&site.url());
        browser.wait_for(".live");
        assert_eq!(browser.run(is_shown), false, "there were none");
    }
    let interrupt = || {
        let mut conn = pool.get().expect("the peers are up");
        let server = if conn.peer() == "db0" { &servers[0] } else { &servers[1] };
        let mut runs = 0;
        let outcome = conn.transaction_with_retry(|conn| {
            runs += 1;
            if runs == 1 {
                server.cut_off();
            }
            diesel::connection::SimpleConnection::batch_execute(conn, "SELECT 1")
        });
        assert_eq!((outcome, runs), (diesel_peers::Outcome::Committed(()), 2));
    };
    let cells = "return [...document.querySelectorAll('.counts tbody')].map((body) => \
                 [...body.rows[0].cells].map((cell) => cell.textContent).join(' ')).join()";
    let shows = |browser: &Browser, sum: u64| {
        wait_until("the page shows them", PATIENCE, || {
            let text = browser.run(cells);
            let rows = text.as_str().expect("a text").split(',');
            let retries = rows.filter_map(|row| row.split(' ').nth(1)?.parse::<u64>().ok());
            retries.sum::<u64>() == sum
        });
        assert_eq!(browser.run(is_shown), true);
        fits(browser);
        let contrast = browser.run(CONTRAST).as_f64().expect("a number");
        assert!(contrast >= 4.5, "everything can be read: {contrast}");
    };
    for sum in 1..=3 {
        interrupt();
        for browser in &browsers {
            shows(browser, sum);
        }
    }
    // The page of the server is the same.
    for browser in &browsers {
        let shown = browser.run(cells);
        browser.open(&site.url());
        browser.wait_for(".live");
        assert_eq!(browser.run(cells), shown);
        let titles = "return [...document.querySelectorAll('.counts th')][1].textContent";
        assert_eq!(browser.run(titles), "Retries");
    }
}

#[test]
fn page_of_another_process_and_page_of_a_closed_pool_show_a_notice() {
    let (_servers, pool, peers) = scripted(&["db0", "db1"]);
    let site = Site::start(StatusPage::new().pool(peers.clone()).with_actions());
    let browser = Browser::desktop(1280, 720);
    browser.open(&site.url());
    browser.wait_for(".live");
    site.show(StatusPage::new().pool(peers.clone()).with_actions());
    wait_until_said(&browser, "notice", "Another process answers");
    browser.click(&button("db0"));
    wait_until_said(
        &browser,
        "outcome",
        "Nothing was done: the page was loaded from another process",
    );
    assert!(peers.snapshot().peers.iter().all(|peer| peer.state.to_string() == "up"));

    browser.open(&site.url());
    browser.wait_for(".live");
    assert_eq!(said(&browser, "notice"), "");
    drop(pool);
    let closed = "return document.querySelector('[data-is=closed]').checkVisibility()";
    wait_until("it says that it is closed", PATIENCE, || browser.run(closed) == true);
    wait_until_said(&browser, "spoken", "default is closed.");
    assert_eq!(browser.run("return document.title"), "default closed");
    browser.click(&button("db0"));
    wait_until_said(&browser, "outcome", "the pool default is closed");
}

/// The states of the guest book's peers, from the status page's JSON.
fn states(visitor: &Client) -> Vec<String> {
    let report = visitor.get(&format!("{PAGE}?json")).body;
    let report: Value = serde_json::from_str(&report).expect("it is JSON");
    let peers = report["pools"][0]["peers"].as_array().expect("a list");
    peers.iter().map(|peer| peer["state"].as_str().expect("a text").to_owned()).collect()
}

#[test]
fn forms_of_other_sites_are_rejected() {
    let app = GuestBook::start();
    let visitor = app.visitor();
    let page = visitor.get(PAGE).body;
    let token = page.split("name=\"token\" value=\"").nth(1).expect("it has one");
    let token = token.split('"').next().expect("it ends");
    let form =
        |token| [("token", token), ("pool", "guestbook"), ("peer", "db0"), ("action", "drain")];
    let site = app.site();
    let from_here = [("Origin", site.as_str()), ("Sec-Fetch-Site", "same-origin")];
    for (token, headers) in [
        (token, [("Sec-Fetch-Site", "cross-site")].as_slice()),
        (token, &[("Sec-Fetch-Site", "same-site")]),
        (token, &[("Origin", "http://elsewhere.example")]),
        (token, &[("Origin", "null")]),
        (token, &[("Origin", "http://elsewhere.example"), ("Sec-Fetch-Site", "same-origin")]),
        ("", &from_here),
        ("0123456789abcdef0123456789abcdef", &from_here),
    ] {
        let answer = visitor.post_with(PAGE, &form(token), headers);
        assert_eq!(answer.status, 403, "{token}, {headers:?}");
        assert!(answer.body.contains("Nothing was done"), "{}", answer.body);
    }
    assert_eq!(visitor.post_with(PAGE, &form(token)[1..], &from_here).status, 403, "no token");
    assert_eq!(states(&visitor), ["up", "up", "up"], "nothing was drained");
    let long = "x".repeat(20_000);
    assert_eq!(visitor.post(PAGE, &[("token", token), ("peer", &long)]).status, 400);

    let answer = visitor.post_with(PAGE, &form(token), &from_here);
    assert_eq!((answer.status, answer.location.as_deref()), (303, Some("?")));
    wait_until("it is drained", PATIENCE, || {
        visitor.get("/");
        states(&visitor) == ["drained", "up", "up"]
    });
    assert!(!app.log().contains(token), "the token is not logged");
    assert!(!app.log().contains("Refusing to overwrite"), "Rocket's Shield has nothing to say");
}
