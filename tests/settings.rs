//! A wrong setting is an error from `build()` that says what to change, before anything connects.

mod support;

use std::time::Duration;

use diesel::r2d2::ManageConnection;
use diesel_peers::{PeerManager, PeerManagerBuilder};
use support::scripted::{ScriptedConnection, Server};

fn builder() -> PeerManagerBuilder<ScriptedConnection> {
    PeerManager::builder()
}

#[test]
fn wrong_settings_are_refused() {
    let cases = [
        (builder(), "there is no peer"),
        (builder().peer("", "url"), "the name of peer number 1 is empty"),
        (builder().peer("a", "url").peer(" ", "url"), "the name of peer number 2 is empty"),
        (builder().peer("a\nb", "url"), r#"the peer name "a\nb" holds a control character"#),
        (builder().peer("a", "x").peer("b", "y").peer("a", "z"), r#"two peers have the name "a""#),
        (builder().peer("a", ""), r#"the URL of peer "a" is empty"#),
        (builder().peer("a", "x\0y"), r#"the URL of peer "a" holds a NUL byte"#),
        (builder().peer("mysql://a:s3cret@b", "a"), "the name of peer number 1 is a URL"),
        (builder().peer("a", "url").check_interval(Duration::ZERO), "`check_interval` is zero"),
        (builder().peer("a", "url").connect_timeout(Duration::ZERO), "`connect_timeout` is zero"),
        (builder().peer("a", "url").link_max_age(Duration::ZERO), "`link_max_age` is zero"),
        (builder().peer("a", "url").weight("b", 2), r#"there is no peer "b" to give a weight to"#),
        (builder().peer("a", "url").tier("b", 2), r#"there is no peer "b" to give a tier to"#),
        (builder().peer("a", "url").weight("a", 0), "every peer has weight 0"),
    ];
    for (builder, expected) in cases {
        let shown = format!("{builder:?}");
        let error = builder.build().map(|_| ()).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{shown}: {error}");
        assert!(error.contains(": "), "it says what to change: {error}");
        assert!(!(shown + &error).contains("s3cret"), "and shows no secret: {error}");
    }
}

#[test]
fn extreme_settings_are_no_panic() {
    for duration in [Duration::from_millis(10), Duration::MAX] {
        let server = Server::start();
        let builder = builder().peer("a", server.url()).weight("a", u32::MAX);
        let builder = builder.check_interval(duration).connect_timeout(duration);
        let manager = builder.link_max_age(duration).rebalance_pace(duration).build();
        let manager = manager.expect("as short, or as long, as one likes");
        ManageConnection::connect(&manager).expect("the server lives");
    }
}

#[test]
fn nothing_is_connected_to() {
    let server = Server::start();
    let manager = builder().peer("a", server.url()).build().expect("the settings are right");
    assert_eq!(server.logins(), 0, "not by `build()`");
    drop(manager);
}
