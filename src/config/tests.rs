//! Tests that every source yields the same settings, and that no input panics or shows a secret.

use std::ffi::OsString;
use std::fmt::Write;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::*;
use crate::cases::{LOWERCASE, any_text, for_each_case, maybe, one_of, several, text_of};
use crate::manager::PeerManager;
use crate::settings::policy::{AllDown, Balance, Recovery};

/// A connection type without a dialect, so that URLs of every form are accepted. No test connects.
struct NoConnection;

fn builder() -> PeerManagerBuilder<NoConnection> {
    PeerManager::builder()
}

#[test]
fn hosts_become_peers_and_parameters_settings() {
    let url = "mysql://app:s3cret@db0,db1:3307/shop?weight.db0=2&check_interval=5s&ssl_ca=/ca.pem";
    let by_hand = builder()
        .peer("db0", "mysql://app:s3cret@db0/shop?ssl_ca=/ca.pem")
        .peer("db1:3307", "mysql://app:s3cret@db1:3307/shop?ssl_ca=/ca.pem")
        .weight("db0", 2)
        .check_interval(Duration::from_secs(5));
    assert_eq!(builder().url(url).given(), by_hand.given());
}

#[test]
fn each_host_or_path_of_a_url_is_a_peer() {
    for (url, expected) in [
        ("postgres://[::1]:5432/shop", &[("[::1]:5432", "postgres://[::1]:5432/shop")][..]),
        (
            "postgres://%2Frun%2Fa,%2Frun%2Fb:5433/shop",
            &[
                ("/run/a", "postgres://%2Frun%2Fa/shop"),
                ("/run/b:5433", "postgres://%2Frun%2Fb:5433/shop"),
            ],
        ),
        ("postgres:///shop?host=/run/a", &[("/run/a", "postgres:///shop?host=/run/a")]),
        (
            "mysql:///shop?unix_socket=/run/m.sock",
            &[("localhost", "mysql:///shop?unix_socket=/run/m.sock")],
        ),
        ("a/shop.db", &[("a/shop.db", "a/shop.db")]),
        (
            "file:a/shop.db,b/shop.db?mode=rw&check_interval=30",
            &[("a/shop.db", "file:a/shop.db?mode=rw"), ("b/shop.db", "file:b/shop.db?mode=rw")],
        ),
        (
            "sqlite:///srv/a.db,/srv/b.db",
            &[("/srv/a.db", "sqlite:///srv/a.db"), ("/srv/b.db", "sqlite:///srv/b.db")],
        ),
        ("host=a,b password=c", &[("peer0", "host=a"), ("peer1", "b password=c")]),
    ] {
        assert_eq!(builder().url(url).given_peers(), expected, "{url}");
    }
}

#[test]
fn errors_name_the_key_the_value_and_the_correction() {
    let url = |parameters: &str| builder().url(format!("mysql://db0,db1/shop?{parameters}"));
    let env = |name: &str, value: &str| {
        builder().env_from("SHOP_", [(OsString::from(name), OsString::from(value))])
    };
    let cases = vec![
        (
            url("check_interval=30parsecs"),
            r#"`check_interval` in the URL is "30parsecs": give a duration"#,
        ),
        (url("check_interval"), r#"`check_interval` in the URL is "": give a duration"#),
        (url("check_interval=-1"), r#"`check_interval` in the URL is "-1": give a duration"#),
        (url("check_interval=1e9"), r#"`check_interval` in the URL is "1e9": give a duration"#),
        (url("tcp_user_timeout=20000"), "a unit is required because libpq counts milliseconds"),
        (
            url("chek_interval=30s"),
            "`chek_interval` in the URL is not a setting: did you mean `check",
        ),
        (
            url("checkInterval=30s"),
            "`checkInterval` in the URL is not a setting: did you mean `check",
        ),
        (url("strategy=fastest"), r#"is "fastest": give one of "least_connections", "random""#),
        (url("weight.db0=-1"), r#"`weight` in the URL is "-1": give a whole number from 0"#),
        (
            url("weight.db0=4294967296"),
            r#"is "4294967296": give a whole number from 0 to 4294967295"#,
        ),
        (url("rng_seed=x"), r#"`rng_seed` in the URL is "x": give a whole number"#),
        (url("check_interval=1&check_interval=2"), "`check_interval` in the URL is given twice"),
        (url("unix_socket=/run/m.sock"), "would connect every peer to the same server"),
        (builder().url(""), "`url` is empty: give `scheme://"),
        (builder().url("mysql://db0,,db2"), "`url` has an empty host (host number 2): give"),
        (builder().url("a.db?mode=rw"), "a parameter of the `url` is not a setting, and SQLite"),
        (env("SHOP_CHECK_INTERVAL", "soon"), r#"variable `SHOP_CHECK_INTERVAL` is "soon": give a"#),
        (
            env("SHOP_CHECKINTERVAL", "1"),
            "variable `SHOP_CHECKINTERVAL` is not a setting: did you mean",
        ),
        (
            env("SHOP_MAX_SIZE", "1"),
            "`SHOP_MAX_SIZE` is not a setting: it belongs to the pool; set it on",
        ),
        (
            env("SHOP_RESOLVER", "8.8.8.8"),
            "it is a closure; set it in code, with the builder's `resolver`",
        ),
        (env("SHOP_COLOR", "red"), "`SHOP_COLOR` is not a setting: the settings are url, peers,"),
        (
            env("SHOP_PEERS", "a,b"),
            "is neither a list nor a table: an environment variable can hold neither; set `SHOP_URL`",
        ),
        (
            env("SHOP_WEIGHT", "db0"),
            "`SHOP_WEIGHT` is not a list of numbers by peer: give a number for each peer",
        ),
        (builder().env_from("", []), "the prefix of environment variables is empty"),
    ];
    for (builder, expected) in cases {
        let error = builder.into_first_error().expect(expected);
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn unknown_keys_get_the_nearest_correction() {
    for (name, expected) in [
        ("SHOP_DB_URL", "did you mean the prefix `SHOP_DB_`?"),
        ("SHOP_DB_PASSWORD", "did you mean the prefix `SHOP_DB_`?"),
        ("SHOP__CHECK_INTERVAL", "did you mean the prefix `SHOP__`?"),
        ("SHOP_PASSWORD_FILE", "read the file in code, with the builder's `credentials`"),
        ("SHOP_PASS", "did you mean `password`?"),
        ("SHOP_HOSTS", "did you mean `url`?"),
    ] {
        let error = builder().env_from("SHOP_", [(name.into(), "x".into())]).into_first_error();
        let expected = format!("the environment variable `{name}` is not a setting: {expected}");
        assert_eq!(error, Some(expected));
    }
    let hosts = "postgres://db0/shop?hostaddr=10.0.0.1&dbname=shop";
    assert_eq!(
        builder().url(hosts).into_first_error(),
        None,
        "libpq's own parameters are accepted"
    );
}

/// The variables of a service `shop-db` in the same namespace.
#[test]
fn variables_that_kubernetes_sets_for_a_service_are_passed_over() {
    let read = |variables: &[(&str, &str)]| {
        let variable = |&(name, value): &(&str, &str)| (name.into(), value.into());
        builder().env_from("SHOP_DB_", variables.iter().map(variable))
    };
    let of_kubernetes = [
        ("SHOP_DB_SERVICE_HOST", "10.0.0.11"),
        ("SHOP_DB_SERVICE_PORT", "3306"),
        ("SHOP_DB_SERVICE_PORT_MYSQL_X", "3306"),
        ("SHOP_DB_PORT", "tcp://10.0.0.11:3306"),
        ("SHOP_DB_PORT_3306_TCP", "tcp://10.0.0.11:3306"),
        ("SHOP_DB_PORT_3306_TCP_PROTO", "tcp"),
        ("SHOP_DB_PORT_3306_TCP_PORT", "3306"),
        ("SHOP_DB_PORT_3306_TCP_ADDR", "10.0.0.11"),
        ("SHOP_DB_PORT_53_UDP", "udp://10.0.0.11:53"),
        ("SHOP_DB_PORT_53_UDP_ADDR", "10.0.0.11"),
        ("SHOP_DB_PORT_7_SCTP_PROTO", "sctp"),
    ];
    let mut variables = of_kubernetes.to_vec();
    variables.push(("SHOP_DB_CHECK_INTERVAL", "1s"));
    let by_hand = builder().check_interval(Duration::from_secs(1));
    assert_eq!(read(&variables).given(), by_hand.given());
    assert_eq!(read(&[("SHOP_DB_PORT", "udp://10.0.0.11:53")]).into_first_error(), None);

    for (name, value) in [
        ("SHOP_DB_PORT", "3306"),
        ("SHOP_DB_PORT", "http://10.0.0.11"),
        ("SHOP_DB_PORT_TCP", "tcp://10.0.0.11:3306"),
        ("SHOP_DB_PORT_X_TCP", "tcp://10.0.0.11:3306"),
        ("SHOP_DB_PORT__TCP", "tcp://10.0.0.11:3306"),
        ("SHOP_DB_PORT_3306_ICMP", "x"),
        ("SHOP_DB_PORT_3306_TCP_", "x"),
        ("SHOP_DB_PORT_3306_TCP_HOST", "x"),
        ("SHOP_DB_SERVICE_HOSTS", "10.0.0.11"),
        ("SHOP_DB_SERVICE_PORT_", "3306"),
        ("SHOP_DB_SERVICE", "3306"),
        ("SHOP_DB_service_host", "10.0.0.11"),
        ("SHOP_DB_MYSQL_SERVICE_HOST", "10.0.0.11"),
    ] {
        let error = read(&[(name, value)]).into_first_error().expect(name);
        assert!(error.contains("is not a setting"), "{name}={value}: {error}");
    }
}

#[test]
fn no_setting_has_a_name_that_kubernetes_sets() {
    for key in keys::all() {
        let name = key.to_ascii_uppercase();
        assert!(!name.starts_with("SERVICE_") && !name.starts_with("PORT"), "{key}");
    }
}

#[test]
fn first_error_is_reported() {
    let variables = [("SHOP_STRATEGY".into(), "fastest".into())];
    let builder = builder().url("mysql://db0?chek_interval=1").url("mysql://db0,,db1");
    let error = builder.env_from("SHOP_", variables).into_first_error();
    let error = error.expect("the settings have three errors");
    assert!(error.starts_with("`chek_interval` in the URL"), "{error}");
}

#[test]
fn ambiguous_settings_are_rejected() {
    let url = |parameters: &str| builder().url(format!("mysql://db0,db1/shop?{parameters}"));
    let empty = [(OsString::from("SHOP_URL"), OsString::from(" "))];
    for (builder, expected) in [
        (url("host=db0"), "`host` in the URL would connect every peer to the same server"),
        (url("hostaddr=::1"), "would connect every peer to the same server"),
        (url("service=shop"), "would connect every peer to the same server"),
        (url("weight.db0=1&weight.db0=2"), "`weight` in the URL is given twice for the same peer"),
        (url("max_size=3"), "`max_size` in the URL is not a setting: it belongs to the pool"),
        (builder().url("mysql://a:b@db0,c:d@db1"), "`url` has several `@`: write the user once"),
        (builder().env_from("SHOP_", empty), "the environment variable `SHOP_URL` is empty: give"),
        (url("check_interval=x").url("").env(""), "`check_interval` in the URL is \"x\""),
    ] {
        let error = builder.into_first_error().expect(expected);
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn later_source_overrides_earlier_sources() {
    let variables =
        [("SHOP_URL", "mysql://db2,db3/shop"), ("SHOP_PASSWORD", "s3cret"), ("HOME", "/")];
    let variables = variables.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let given = builder().peer("a", "mysql://a").url("mysql://db0,db1/shop?check_interval=1s");
    let given = given.env_from("SHOP_", variables).peer("b", "mysql://b");
    let by_hand = builder()
        .peer("db2", "mysql://db2/shop")
        .peer("db3", "mysql://db3/shop")
        .peer("b", "mysql://b")
        .check_interval(Duration::from_secs(1))
        .password("s3cret");
    assert_eq!(given.given(), by_hand.given());
}

/// A URL or a conninfo string that is given for another setting is not shown.
#[test]
fn values_that_may_be_secrets_are_not_shown() {
    let env = |prefix: &str, key: &str, value: &str| {
        builder().env_from(prefix, [(OsString::from(format!("{prefix}{key}")), value.into())])
    };
    for secret in ["mysql://app:s3cret@db0/shop", "host=h password=s3cret", "app:s3cret@db0"] {
        let encoded = crate::url::percent_encoded(secret);
        for (builder, expected) in [
            (
                env("SHOP_", "CHECK_INTERVAL", secret),
                "`SHOP_CHECK_INTERVAL` is a string that may be a secret (not shown): give a dur",
            ),
            (
                env("SHOP_", "STRATEGY", secret),
                "is a string that may be a secret (not shown): give one of",
            ),
            (env("SHOP_", "WEIGHT", secret), "`SHOP_WEIGHT` is not a list of numbers by peer"),
            (
                env("SHOP_", secret, "1"),
                "an environment variable whose name may be a secret (not shown) is not a",
            ),
            (
                env("SHOP_", &format!("{secret}_URL"), "x"),
                "an environment variable whose name may be a secret (not shown) is not a",
            ),
            (
                env(secret, "CHECK_INTERVAL", "x"),
                "variable whose name may be a secret (not shown) is \"x\"",
            ),
            (
                env(secret, "PEERS", "x"),
                "whose name may be a secret (not shown) is neither a list nor a table",
            ),
            (
                builder().url(format!("mysql://db0?check_interval={encoded}")),
                "in the URL is a string that may be a secret (not shown): give a duration",
            ),
        ] {
            let error = builder.into_first_error().expect(expected);
            assert!(error.contains(expected), "{secret}: {error}");
            assert!(!error.to_ascii_lowercase().contains("s3cret"), "{error}");
        }
    }
    let error = env("SHOP_", "WEIGHT", "mysql://app:x=s3cret,y=1@db0").into_first_error();
    assert!(error.is_some_and(
        |error| error.contains("is not a list of numbers by peer") && !error.contains("s3cret")
    ));
}

/// Every key sets the builder's setting of the same name, in the right unit.
#[test]
fn every_key_sets_its_setting() {
    type Set = fn(PeerManagerBuilder<NoConnection>) -> PeerManagerBuilder<NoConnection>;
    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }
    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }
    let cases: [(&str, Set); 45] = [
        ("weight.a=2", |b| b.weight("a", 2)),
        ("tier.a=2", |b| b.tier("a", 2)),
        ("weight.%61=2", |b| b.weight("a", 2)),
        ("retry_attempts=3", |b| b.retry_attempts(3)),
        ("retry_deadline=7", |b| b.retry_deadline(s(7))),
        ("ledger=outcomes", |b| b.ledger(crate::Ledger::table("outcomes"))),
        ("ledger=xid", |b| b.ledger(crate::Ledger::Xid)),
        ("max_connections=4", |b| b.max_connections(4)),
        ("peer_max_connections.a=2", |b| b.peer_max_connections("a", 2)),
        ("strategy=least_connections", |b| b.strategy(crate::Strategy::LeastConnections)),
        ("pool_name=shop", |b| b.pool_name("shop")),
        ("strategy=random", |b| b.strategy(crate::Strategy::Random)),
        ("strategy=round_robin", |b| b.strategy(crate::Strategy::RoundRobin)),
        ("strategy=ordered", |b| b.strategy(crate::Strategy::Ordered)),
        ("balance=per_connection", |b| b.balance(Balance::PerConnection)),
        ("rebalance_interval=7", |b| b.rebalance_interval(s(7))),
        ("connection_max_age=7h", |b| b.connection_max_age(s(7 * 3_600))),
        ("user=x", |b| b.user("x")),
        ("password=x", |b| b.password("x")),
        ("pool_timeout=7m", |b| b.pool_timeout(s(7 * 60))),
        ("check_interval=7min", |b| b.check_interval(s(7 * 60))),
        ("connect_timeout=7", |b| b.connect_timeout(s(7))),
        ("connect_deadline=7s", |b| b.connect_deadline(s(7))),
        ("ping_timeout=7ms", |b| b.ping_timeout(ms(7))),
        ("ping_idle=0.5", |b| b.ping_idle(ms(500))),
        ("stall_after=1.5m", |b| b.stall_after(s(90))),
        ("pooler_wait=7", |b| b.pooler_wait(s(7))),
        ("check_timeout=7", |b| b.check_timeout(s(7))),
        ("tcp_keepalive=7", |b| b.tcp_keepalive(s(7))),
        ("tcp_user_timeout=7ms", |b| b.tcp_user_timeout(ms(7))),
        ("require=read_only", |b| b.require(crate::Role::ReadOnly)),
        ("galera_donors=wait", |b| b.galera_donors(crate::Donors::Wait)),
        ("galera_check=disabled", |b| b.galera_check(crate::GaleraCheck::Disabled)),
        ("statement_cache=disabled", |b| b.statement_cache(crate::StatementCache::Disabled)),
        ("recovery=after_interval", |b| b.recovery(Recovery::AfterInterval)),
        ("all_down=fail", |b| b.all_down(AllDown::Fail)),
        ("all_down_interval=7", |b| b.all_down_interval(s(7))),
        ("all_down_wait=7", |b| b.all_down_wait(s(7))),
        ("resolve_interval=7", |b| b.resolve_interval(s(7))),
        ("resolve_interval=none", |b| b.resolve_interval(None)),
        ("slow_start=7min", |b| b.slow_start(s(7 * 60))),
        ("slow_peers=tell", |b| b.slow_peers(crate::SlowPeers::Tell)),
        ("slow_factor=2.5", |b| b.slow_factor(2.5)),
        ("slow_difference=7ms", |b| b.slow_difference(ms(7))),
        ("rng_seed=7", |b| b.rng_seed(7)),
    ];
    for (text, set) in cases {
        let by_hand = set(builder()).peer("a", "mysql://a");
        assert_eq!(builder().url(format!("mysql://a?{text}")).given(), by_hand.given(), "{text}");
    }
    for key in keys::SETTINGS {
        assert!(cases.iter().any(|(text, _)| text.starts_with(key)), "there is a case for {key}");
    }
}

#[test]
fn settings_beside_a_url_override_its_parameters() {
    let variables =
        [("SHOP_URL", "mysql://a?user=x&check_interval=1"), ("SHOP_CHECK_INTERVAL", "2")];
    let variables = variables.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let by_hand = builder().peer("a", "mysql://a").user("x").check_interval(Duration::from_secs(2));
    assert_eq!(builder().env_from("SHOP_", variables).given(), by_hand.given());
}

#[test]
fn weights_are_dropped_with_replaced_peers() {
    let given = builder().url("mysql://a,b?weight.a=2&tier.a=1").url("mysql://b,c?weight.c=3");
    let by_hand = builder().peer("b", "mysql://b").peer("c", "mysql://c").weight("c", 3);
    assert_eq!(given.given(), by_hand.given());
    let given = builder().weight("a", 2).url("mysql://a,b");
    let by_hand = builder().weight("a", 2).peer("a", "mysql://a").peer("b", "mysql://b");
    assert_eq!(given.given(), by_hand.given(), "a weight may be set before its peer");
}

#[cfg(feature = "serde")]
#[test]
fn files_have_the_same_settings_and_errors() {
    let read = |text: &str| builder().config(toml::from_str(text).expect("the text is TOML"));
    let by_hand = builder()
        .peer("peer0", "mysql://db0/shop")
        .peer("peer1", "mysql://db1/shop")
        .weight("peer1", 2)
        .check_interval(Duration::from_secs(30))
        .stall_after(None)
        .ping_idle(Duration::from_millis(1_500))
        .given();
    let settings =
        "check_interval = 30\nstall_after = false\nping_idle = 1.5\nweight = { peer1 = 2 }\n";
    let table = "[peers]\npeer0 = 'mysql://db0/shop'\npeer1 = { url = 'mysql://db1/shop' }";
    assert_eq!(read(&format!("{settings}{table}")).given(), by_hand);
    let list = "[[peers]]\nname = 'peer0'\nurl = 'mysql://db0/shop'\n\
                [[peers]]\nname = 'peer1'\nurl = 'mysql://db1/shop'";
    assert_eq!(read(&format!("{settings}{list}")).given(), by_hand);

    let named =
        read("peers = ['mysql://app:s3cret@db0/shop', 'a/shop.db', 'host=db', 'x//a:s3cret@b']");
    let own =
        read("peers = { a = { url = 'x', weight = 2, tier = 3, max_connections = 4 } }").given();
    let none = read("peers = { a = 'x' }").given();
    assert_eq!(
        own,
        none.replace("[(None, None, None)]", "[(Some(2), Some(3), Some(4))]"),
        "a weight in the table belongs to its peer"
    );
    let later: Config =
        toml::from_str("peers = { a = { url = 'x', weight = 2 } }").expect("the text is TOML");
    let later = builder().weight("a", 1).config(later);
    assert!(
        later.given().contains("[(Some(2), None, None)] []"),
        "the later weight applies: {}",
        later.given()
    );
    let names: Vec<&str> = named.given_peers().iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        ["db0", "a/shop.db", "peer2", "peer3"],
        "a peer without a name is named after its host, if the host is known"
    );

    for (text, expected) in [
        ("url = 3", "`url` is not a string: put the value in quotes"),
        ("peers = 3", "`peers` is neither a list nor a table"),
        ("peers = [3]", "`peers` has neither a string nor a table for peer number 1: give a URL"),
        (
            "peers = { 'mysql://app:s3cret@db0' = { weight = 1 } }",
            "`peers` has no `url` for a peer whose name may be a secret (not shown)",
        ),
        ("'mysql://app:s3cret@db0' = 1", "a key that may be a secret (not shown) is not a setting"),
        ("weight = 'mysql://app:s3cret@db0'", "`weight` is not a list of numbers by peer"),
        ("peers = { db0 = { weight = 1 } }", "`peers` has no `url` for peer \"db0\""),
        (
            "peers = { db0 = { uri = 'x' } }",
            "`peers` has an unknown or invalid `uri` for peer \"db0\": give a URL",
        ),
        (
            "peers = { db0 = { url = 'x', weight = -1 } }",
            "`peers` has a `weight` for peer \"db0\" that is -1: give a whole number",
        ),
        (
            "url = 'mysql://db0'\npeers = []",
            "`peers` and `url` both define the peers: remove one of them",
        ),
        (
            "check_interval = '30'\ncheckinterval = 1",
            "`checkinterval` is not a setting: did you mean",
        ),
        ("check_interval = -30", "`check_interval` is -30: give a duration"),
        ("check_interval = nan", "`check_interval` is NaN: give a duration"),
        ("check_interval = [1]", "`check_interval` is a list: give a duration"),
        ("check_interval = true", "`check_interval` is true: give a duration"),
        ("pool_name = 3", "`pool_name` is not a string: put the value in quotes"),
        ("strategy = 3", "`strategy` is 3: give one of"),
        ("url = ['mysql://db0']", "`url` is not a string: give several URLs in `peers`"),
        (
            "peers = { db0 = { url = 'x', weight = 'mysql://app:s3cret@db0' } }",
            "`peers` has a `weight` for peer \"db0\" that is a string that may be a secret",
        ),
        (
            "peers = { db0 = { 'mysql://app:s3cret@db0' = 'x' } }",
            "`peers` has an unknown or invalid `***` for peer \"db0\"",
        ),
        ("'host=h password=s3cret' = 1", "a key that may be a secret (not shown) is not a setting"),
        (
            "max_size = 3",
            "`max_size` is not a setting: it belongs to the pool; set it on `Pool::builder()`",
        ),
    ] {
        let error = read(text).into_first_error().expect(expected);
        assert!(error.starts_with(expected), "{text}: {error}");
        let config: Config = toml::from_str(text).expect("the text is TOML");
        assert!(!error.contains("s3cret") && !format!("{config:?}").contains("s3cret"), "{error}");
    }
}

const PEERS: &str = "mysql://db0,db1/shop";

fn time(rng: &mut SmallRng) -> String {
    let unit = one_of(rng, &["ms", "s", "min", "m", "h", ""]);
    let half = one_of(rng, &["", ".5"]);
    format!("{}{half}{unit}", rng.random_range(0..100_000))
}

/// Returns a setting and a valid text for it.
fn setting(rng: &mut SmallRng) -> (&'static str, String) {
    let name = |rng: &mut SmallRng, names: &[&str]| one_of(rng, names).to_owned();
    match rng.random_range(0..18) {
        0 => {
            let keys =
                ["rebalance_interval", "connection_max_age", "pool_timeout", "check_interval"];
            (one_of(rng, &keys), time(rng))
        }
        1 => {
            let keys = ["connect_timeout", "connect_deadline", "ping_timeout", "ping_idle"];
            (one_of(rng, &keys), time(rng))
        }
        2 => (one_of(rng, &["check_timeout", "all_down_interval", "all_down_wait"]), time(rng)),
        3 => {
            let keys = ["stall_after", "pooler_wait", "tcp_keepalive", "resolve_interval"];
            let key = one_of(rng, &keys);
            (key, maybe(rng, time).unwrap_or_else(|| "none".to_owned()))
        }
        4 => {
            let clear = |rng: &mut SmallRng| {
                let unit = one_of(rng, &["ms", "s"]);
                format!("{}{unit}", rng.random::<u32>())
            };
            ("tcp_user_timeout", maybe(rng, clear).unwrap_or_else(|| "none".to_owned()))
        }
        5 => ("rng_seed", rng.random::<u64>().to_string()),
        6 => {
            let key = one_of(rng, &["user", "password"]);
            (key, text_of(rng, &format!("{LOWERCASE}@:/?#%&= é"), 0..=9))
        }
        7 => ("pool_name", "shop".to_owned()),
        8 => {
            let names = ["least_connections", "random", "round_robin", "ordered"];
            ("strategy", name(rng, &names))
        }
        9 => ("balance", name(rng, &["per_checkout", "per_connection"])),
        10 => ("require", name(rng, &["any", "read_write", "read_only"])),
        11 => ("galera_donors", name(rng, &["serve_unless_blocked", "serve", "wait"])),
        12 => ("recovery", name(rng, &["after_check", "after_interval"])),
        13 => ("all_down", name(rng, &["try", "fail"])),
        14 => ("weight", "db0=3,db1=4".to_owned()),
        15 => ("max_connections", "4".to_owned()),
        16 => ("peer_max_connections", "db0=3".to_owned()),
        _ => ("tier", "db1=1".to_owned()),
    }
}

#[test]
fn settings_are_the_same_in_every_source() {
    let any_settings = |rng: &mut SmallRng| {
        let mut given = several(rng, 0..=7, setting);
        given.sort();
        given.dedup_by_key(|(key, _)| *key);
        given
    };
    for_each_case(any_settings, |given| {
        let mut url = PEERS.to_owned();
        for (index, (key, value)) in given.iter().enumerate() {
            let separator = if index == 0 { '?' } else { '&' };
            let value = crate::url::percent_encoded(value);
            write!(url, "{separator}{key}={value}").expect("writing to a string succeeds");
        }
        let from_url = builder().url(&url);

        let variable = |(key, value): &(&str, String)| {
            (OsString::from(format!("SHOP_{}", key.to_ascii_uppercase())), OsString::from(value))
        };
        let variables = given.iter().map(variable).chain([("SHOP_URL".into(), PEERS.into())]);
        let from_environment = builder().env_from("SHOP_", variables);
        assert_eq!(from_url.given(), from_environment.given());
        assert!(from_url.into_first_error().is_none());

        #[cfg(feature = "serde")]
        {
            let mut table = toml::Table::new();
            table.insert("url".to_owned(), PEERS.into());
            for (key, value) in given {
                let number =
                    value.parse::<i64>().ok().filter(|_| *key != "password" && *key != "user");
                let value = number.map_or_else(|| value.clone().into(), toml::Value::from);
                table.insert((*key).to_owned(), value);
            }
            let from_file = builder().config(table.try_into().expect("the settings are a table"));
            assert_eq!(from_file.given(), from_environment.given());
        }
    });
}

const SPECIAL: &str = r"[]\@:/?#,%&= .abcd1234";

/// No error of a malformed URL shows a part of the password.
#[test]
fn errors_of_malformed_urls_show_no_secret() {
    let any_url = |rng: &mut SmallRng| {
        let schemes = ["mysql://", "postgres://", "mysql:/", "mysql//", "", "file:", "sqlite://"];
        let rests = ["@db0,db1/shop", "@db0/shop?check_interval=1", "@db0,db1/shop?x=y"];
        let scheme = one_of(rng, &schemes);
        let before = text_of(rng, SPECIAL, 0..=6);
        let after = text_of(rng, SPECIAL, 0..=6);
        let rest = one_of(rng, &rests);
        let form = maybe(rng, |rng| one_of(rng, &["file", "list"]));
        (format!("{scheme}app:{before}s3cret{after}{rest}"), form)
    };
    for_each_case(any_url, |(url, form)| {
        assert_shows_no_secret::<NoConnection>(url, *form);
        #[cfg(feature = "mysql")]
        assert_shows_no_secret::<diesel::MysqlConnection>(url, *form);
        #[cfg(feature = "postgres")]
        assert_shows_no_secret::<diesel::PgConnection>(url, *form);
        #[cfg(feature = "sqlite")]
        assert_shows_no_secret::<diesel::SqliteConnection>(url, *form);
    });
}

#[test]
fn no_text_panics() {
    let any_texts = |rng: &mut SmallRng| {
        let scheme = maybe(rng, |rng| text_of(rng, LOWERCASE, 0..=6) + "://").unwrap_or_default();
        [any_text(rng, 0..=32), scheme + &text_of(rng, SPECIAL, 0..=20)]
    };
    for_each_case(any_texts, |texts| {
        for text in texts {
            let _ = builder().url(text).into_first_error();
            let _ = SettingValue::Text(text.clone()).numbers_by_peer();
            let _ = SettingValue::Text(text.clone()).duration();
        }
    });
}

fn assert_shows_no_secret<C: 'static>(url: &str, form: Option<&str>) {
    let builder = PeerManager::<C>::builder();
    let builder = match form {
        None => builder.url(url),
        Some(form) => {
            let value = SettingValue::Text(url.to_owned());
            let value = if form == "list" {
                SettingValue::List(vec![value])
            } else {
                SettingValue::Table(vec![(
                    "db0".to_owned(),
                    SettingValue::Table(vec![("url".to_owned(), value)]),
                )])
            };
            apply(builder, Source::Url, vec![("peers".to_owned(), value)])
        }
    };
    let shown = format!("{builder:?}");
    assert!(!shown.contains("s3cret"), "{shown}");
    for (name, _) in builder.given_peers() {
        assert!(!name.contains("s3cret"), "{url} names a peer {name}");
    }
    let error = builder.into_first_error().unwrap_or_default();
    assert!(!error.contains("s3cret"), "{url}: {error}");
}
