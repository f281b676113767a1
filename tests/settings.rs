//! `build()` returns an error for a wrong setting, before anything connects. The error says what to change.

use std::time::{Duration, Instant};

use diesel::r2d2::ManageConnection;
use diesel_peers::{Ledger, PeerManager, PeerManagerBuilder};
use support::backend::build;
use support::scripted::{ScriptedConnection, Server};

fn builder() -> PeerManagerBuilder<ScriptedConnection> {
    PeerManager::builder()
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

#[test]
#[expect(clippy::disallowed_methods, reason = "the time that a connect takes is asserted")]
fn default_timeouts_are_shortened_to_a_short_pool_timeout() {
    let pool_timeout = Duration::from_millis(100);
    let server = Server::start();
    server.hold_logins(true);
    let builder = builder().peer("a", server.url()).pool_timeout(pool_timeout);
    let manager = build(builder);
    let start = Instant::now();
    let error = ManageConnection::connect(&manager).map(|_| ()).expect_err("no login ends");
    // The default timeout of a login is five seconds.
    assert!(start.elapsed() < SECOND, "the login is given up within the pool's timeout: {error}");
    server.hold_logins(false);
}

#[test]
fn wrong_setting_is_an_error_that_says_what_to_change() {
    let a = || builder().peer("a", "url");
    let cases = vec![
        (builder(), "no peer is configured"),
        (builder().peer("", "url"), "the name of peer number 1 is empty"),
        (builder().peer("a", "url").peer(" ", "url"), "the name of peer number 2 is empty"),
        (
            builder().peer("a\nb", "url"),
            r#"the peer name "a\nb" contains a character that is not printable"#,
        ),
        (builder().peer("a", "x").peer("b", "y").peer("a", "z"), r#"two peers have the name "a""#),
        (builder().peer("a", ""), r#"the URL of peer "a" is empty"#),
        (builder().peer("a", "x\0y"), r#"the URL of peer "a" contains a NUL byte"#),
        (builder().peer("mysql://a:s3cret@b", "a"), "the name of peer number 1 is a URL"),
        (builder().peer("a:s3cret@b/shop", "a"), "the name of peer number 1 is a URL"),
        (builder().peer("host=b password=s3cret", "a"), "the name of peer number 1 is a URL"),
        (a().check_interval(Duration::ZERO), "`check_interval` is 0ns: the minimum is 10ms"),
        (a().connect_timeout(Duration::ZERO), "`connect_timeout` is 0ns"),
        (a().connect_deadline(Duration::ZERO), "`connect_deadline` is 0ns"),
        (a().ping_timeout(Duration::ZERO), "`ping_timeout` is 0ns"),
        (a().stall_after(Duration::from_millis(99)), "`stall_after` is 99ms: the minimum is 100ms"),
        (a().check_timeout(Duration::ZERO), "`check_timeout` is 0ns"),
        (a().tcp_keepalive(Duration::from_millis(2_999)), "`tcp_keepalive` is 2.999s: "),
        (a().tcp_user_timeout(Duration::ZERO), "`tcp_user_timeout` is 0ns"),
        (a().all_down_interval(Duration::ZERO), "`all_down_interval` is 0ns"),
        (a().connection_max_age(Duration::ZERO), "`connection_max_age` is 0ns"),
        (
            a().resolve_interval(Duration::from_millis(9)),
            "`resolve_interval` is 9ms: the minimum is 10ms",
        ),
        (
            a().connect_timeout(MINUTE).connect_deadline(SECOND),
            "`connect_timeout` (60s) is longer than",
        ),
        (a().check_timeout(MINUTE).connect_timeout(SECOND), "`check_timeout` (60s) is longer than"),
        (a().check_timeout(MINUTE).check_interval(SECOND), "`check_timeout` (60s) is longer than"),
        (
            a().pool_timeout(SECOND).connect_deadline(MINUTE),
            "`connect_deadline` (60s) is longer than `pool_timeout` (1s): make the first no longer",
        ),
        (
            a().pool_timeout(SECOND).connect_timeout(MINUTE),
            "`connect_timeout` (60s) is longer than",
        ),
        (a().pool_timeout(Duration::ZERO), "`pool_timeout` is 0ns: the minimum is"),
        (a().user("app").url(""), "`url` is empty: give "),
        (a().url("mysql://app:s3cret"), "`url` has a port that is not a number"),
        (a().env(""), "the prefix of environment variables is empty: give"),
        (builder().peer("a", "url").weight("b", 2), r#"a weight is set for unknown peer "b": "#),
        (builder().peer("a", "url").tier("b", 2), r#"a tier is set for unknown peer "b": "#),
        (builder().peer("a", "url").weight("a", 0), "every peer has weight 0"),
        (builder().peer("a", "url").max_connections(0), "`max_connections` is 0: the minimum is 1"),
        (
            builder().peer("a", "url").peer_max_connections("a", 0),
            r#"the `max_connections` of peer "a" is 0: the minimum is 1"#,
        ),
        (builder().peer("a", "url").retry_attempts(0), "`retry_attempts` is 0: the minimum is 1"),
        (
            builder().peer("a", "url").ledger(Ledger::table("outcomes; DROP TABLE users")),
            "the ledger is not the name of a table: give",
        ),
        (
            builder().peer("a", "url").ledger(Ledger::table("outcomes")),
            "the ledger needs one of diesel's own connection types: leave",
        ),
    ];
    for (builder, expected) in cases {
        let shown = format!("{builder:?}");
        let error = builder.build().map(|_| ()).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{shown}: {error}");
        assert!(error.contains(": "), "the error says what to change: {error}");
        assert!(
            !(shown + &error).contains("s3cret"),
            "neither the builder nor the error shows a secret: {error}"
        );
    }
}

#[test]
fn extreme_settings_do_not_panic() {
    for duration in [Duration::from_millis(10), Duration::MAX] {
        let server = Server::start();
        let manager = builder()
            .peer("a", server.url())
            .weight("a", u32::MAX)
            .check_interval(duration)
            .connect_timeout(duration)
            .connect_deadline(duration.max(Duration::from_secs(1)))
            .ping_timeout(duration)
            .ping_idle(duration)
            .stall_after(duration.max(Duration::from_millis(100)))
            .check_timeout(duration)
            .tcp_keepalive(duration.max(Duration::from_secs(3)))
            .tcp_user_timeout(duration)
            .all_down_interval(duration)
            .all_down_wait(duration)
            .connection_max_age(duration)
            .resolve_interval(duration)
            .resolver(|_| Ok(Vec::new()))
            .rebalance_interval(duration)
            .build()
            .expect("very short and very long settings are valid");
        let mut conn = ManageConnection::connect(&manager).expect("the server is running");
        manager.is_valid(&mut conn).expect("the server is running");
        let _ = manager.has_broken(&mut conn);
    }
    let unset = builder().peer("a", "url").stall_after(None).tcp_keepalive(None);
    build(unset.tcp_user_timeout(None));
}

#[test]
fn build_opens_no_connection() {
    let server = Server::start();
    let manager = build(builder().peer("a", server.url()));
    assert_eq!(server.logins(), 0, "`build()` does not log in");
    drop(manager);
}

#[test]
fn build_error_names_the_setting_to_change() {
    let a = || builder().peer("a", "url");
    for (builder, expected) in [
        (a().check_interval(Duration::ZERO), Some("check_interval")),
        (a().connect_timeout(MINUTE).connect_deadline(SECOND), Some("connect_timeout")),
        (a().pool_name(""), Some("pool_name")),
        (a().weight("b", 2), Some("weight")),
        (a().weight("a", 0), Some("weight")),
        (a().max_connections(0), Some("max_connections")),
        (a().ledger(Ledger::table("a.b.c")), Some("ledger")),
        (a().peer_max_connections("a", 0), Some("peer_max_connections")),
        (a().peer_max_connections("b", 1), Some("peer_max_connections")),
        (a().url("mysql://db0/shop?strategy=fastest"), Some("strategy")),
        (a().url(""), Some("url")),
        // A key that is not a setting may be a part of a password.
        (a().url("mysql://db0/shop?chek_interval=1"), None),
        (a().env_from("S_", [("S_CHEK".into(), "1".into())]), None),
        (builder(), None),
        (builder().peer("", "url"), None),
        (a().env(""), None),
    ] {
        let error = builder.build().map(|_| ()).expect_err("the setting is wrong");
        assert_eq!(error.setting(), expected, "{error}");
    }
}
