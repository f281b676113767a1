//! A transaction in doubt is resolved later, also when tokens were deleted meanwhile.

#![cfg(all(target_os = "linux", any(feature = "mysql", feature = "postgres")))]

use std::fmt::Write;
use std::thread;
use std::time::Duration;

use diesel::connection::{Connection, SimpleConnection};
use diesel::r2d2::Pool;
use diesel::result::Error;
use diesel_peers::{
    Doubt, DoubtReason, Ledger, LedgerTable, Outcome, PeerConnection, PeerManager, Verdict,
};
use support::backend::{PATIENCE, RealServer, manager_of, pool_of};
use support::cutting_proxy::{Cut, CuttingProxy};
use support::wait_until;

use crate::transactions::{Kind, mark, on_servers};

type Conn<K> = PeerConnection<<K as RealServer>::Client>;

on_servers!(
    doubt_is_resolved_later_by_another_process,
    doubt_is_resolved_in_the_checkout_whose_connection_is_lost,
    deleted_token_is_never_called_aborted,
    token_that_is_deleted_while_the_resolution_looks_is_never_called_aborted,
    only_old_tokens_are_deleted,
);

const SOON: Duration = Duration::from_millis(300);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn ledger() -> LedgerTable {
    Ledger::table("ledger")
}

/// A pool of one connection to a server, or to a proxy before it.
fn pool<K: Kind>(port: u16, deadline: Duration) -> Pool<PeerManager<K::Client>> {
    let manager = manager_of::<K::Client>([K::url_at("127.0.0.1", port)])
        .ledger(ledger())
        .retry_deadline(deadline);
    pool_of(manager, 1).0
}

/// A server with the tables, and a pool.
fn scene<K: Kind>() -> (K, Pool<PeerManager<K::Client>>) {
    let server = K::start(1).pop().expect("one server was started");
    let pool = pool::<K>(server.port(), SOON);
    let mut conn = pool.get().expect("the peer is up");
    conn.batch_execute("CREATE TABLE marks (id INT PRIMARY KEY)").expect("a new database");
    conn.batch_execute(&ledger().create_table()).expect("a new database");
    drop(conn);
    (server, pool)
}

/// Runs a transaction whose COMMIT gets no answer, with no peer that could resolve it. Returns the doubt, as another
/// process reads it.
fn doubt<K: Kind>(server: &K, id: u32, cut: Cut) -> Doubt {
    let proxy = CuttingProxy::start(server.port());
    let pool = pool::<K>(proxy.port(), SOON);
    let mut conn = pool.get().expect("the peer is up");
    proxy.refuse_connections();
    proxy.cut_at("COMMIT", cut);
    let outcome = conn.transaction_with_retry(|conn| mark(conn, id));
    let Outcome::Unknown(doubt) = outcome else { panic!("{cut:?}: {outcome:?}") };
    assert_eq!(doubt.reason(), DoubtReason::CommitUnanswered);
    assert!(doubt.table().is_some_and(|table| table.ends_with(".ledger")), "{doubt:?}");
    stored(&doubt)
}

#[cfg(feature = "serde")]
fn stored(doubt: &Doubt) -> Doubt {
    let json = serde_json::to_string(doubt).expect("a doubt can be written");
    let read = serde_json::from_str(&json).expect("a doubt can be read");
    assert_eq!(*doubt, read);
    read
}

#[cfg(not(feature = "serde"))]
fn stored(doubt: &Doubt) -> Doubt {
    doubt.clone()
}

/// Deletes all tokens.
fn clean<K: Kind>(conn: &mut Conn<K>) {
    // Tokens of the current second are not deleted.
    wait_until("the tokens are deleted", PATIENCE, || {
        ledger().clean(conn, Duration::ZERO).expect("the peer is up") > 0
    });
}

fn reason(verdict: Verdict) -> DoubtReason {
    let Verdict::Unknown(doubt) = verdict else { panic!("{verdict:?}") };
    doubt.reason()
}

fn doubt_is_resolved_later_by_another_process<K: Kind>() {
    let (server, pool) = scene::<K>();
    let mut conn = pool.get().expect("the peer is up");
    let (aborted, committed) =
        (doubt(&server, 1, Cut::BeforeServer), doubt(&server, 2, Cut::BeforeAnswer));
    for _ in 0..2 {
        assert_eq!(aborted.resolve(&mut conn), Verdict::Aborted);
        assert_eq!(committed.resolve(&mut conn), Verdict::Committed);
    }
    assert_eq!(server.marks(), 1);

    let mut unknown = committed.clone();
    for _ in 0..2 {
        let within = conn.transaction(|conn| Ok::<_, Error>(unknown.resolve(conn)));
        let Ok(Verdict::Unknown(doubt)) = within else {
            panic!("a transaction is open: {within:?}")
        };
        assert_eq!(doubt.reason(), DoubtReason::CommitUnanswered);
        assert_eq!(doubt.to_string().matches("(not resolved: ").count(), 1, "{doubt}");
        unknown = doubt;
    }

    let (_other, other_pool) = scene::<K>();
    let mut other = other_pool.get().expect("the peer is up");
    for doubt in [aborted, committed] {
        assert_eq!(reason(doubt.resolve(&mut other)), DoubtReason::OtherHistory);
    }
}

fn doubt_is_resolved_in_the_checkout_whose_connection_is_lost<K: Kind>() {
    let (server, _) = scene::<K>();
    let proxy = CuttingProxy::start(server.port());
    let pool = pool::<K>(proxy.port(), SOON);
    let mut conn = pool.get().expect("the peer is up");
    proxy.refuse_connections();
    proxy.cut_at("COMMIT", Cut::BeforeAnswer);
    let outcome = conn.transaction_with_retry(|conn| mark(conn, 1));
    let Outcome::Unknown(doubt) = outcome else { panic!("{outcome:?}") };
    proxy.accept_connections();
    wait_until("the doubt is resolved", PATIENCE, || {
        doubt.resolve(&mut conn) == Verdict::Committed
    });
}

fn deleted_token_is_never_called_aborted<K: Kind>() {
    let (server, pool) = scene::<K>();
    let mut conn = pool.get().expect("the peer is up");
    let committed = doubt(&server, 1, Cut::BeforeAnswer);
    clean::<K>(&mut conn);
    for _ in 0..2 {
        assert_eq!(reason(committed.resolve(&mut conn)), DoubtReason::Forgotten);
    }
    assert_eq!(server.marks(), 1, "it is committed");
    // The retention of a second cleaner is longer. It does not lower the watermark.
    let cleaned = ledger().clean(&mut conn, DAY);
    assert_eq!(cleaned, Ok(0), "nothing is a day old");
    assert_eq!(reason(committed.resolve(&mut conn)), DoubtReason::Forgotten);
    let young = doubt(&server, 2, Cut::BeforeServer);
    assert_eq!(young.resolve(&mut conn), Verdict::Aborted, "it is younger than the watermark");
}

fn token_that_is_deleted_while_the_resolution_looks_is_never_called_aborted<K: Kind>() {
    let (server, pool) = scene::<K>();
    let committed = doubt(&server, 1, Cut::BeforeAnswer);
    let proxy = CuttingProxy::start(server.port());
    let through_proxy = self::pool::<K>(proxy.port(), PATIENCE);
    // The INSERT of the resolution has found the token, and now it reads the row. Tokens begin with a zero until 2527.
    proxy.cut_at("WHERE token = '0", Cut::Held);
    let verdict = thread::scope(|scope| {
        scope.spawn(|| {
            wait_until("the resolution reads", PATIENCE, || !proxy.is_pending());
            clean::<K>(&mut pool.get().expect("the peer is up"));
            proxy.release();
        });
        committed.resolve(&mut through_proxy.get().expect("the peer is up"))
    });
    assert_eq!(reason(verdict), DoubtReason::Forgotten);
    assert!(!proxy.is_pending(), "the resolution has read the row");
}

fn only_old_tokens_are_deleted<K: Kind>() {
    let (server, pool) = scene::<K>();
    let mut conn = pool.get().expect("the peer is up");
    let mut insert = "INSERT INTO ledger (token, outcome) VALUES ".to_owned();
    for number in 0..2500 {
        let comma = if number == 0 { "" } else { ", " };
        write!(insert, "{comma}('0{number:031}', 'c')").expect("a string accepts everything");
    }
    conn.batch_execute(&insert).expect("the table is there");
    assert_eq!(conn.transaction_with_retry(|conn| mark(conn, 1)), Outcome::Committed(()));
    // The token of a transaction that is open does not hinder the cleaner, nor the other way round.
    let writer = self::pool::<K>(server.port(), SOON);
    let outcome = conn.transaction_with_retry(|conn| {
        let mut writer = writer.get().expect("the peer is up");
        assert_eq!(ledger().clean(&mut writer, DAY), Ok(2500));
        mark(conn, 2)
    });
    assert_eq!(outcome, Outcome::Committed(()));
    assert_eq!(ledger().clean(&mut conn, DAY), Ok(0));
    let within = conn.transaction(|conn| ledger().clean(conn, DAY));
    assert_eq!(within, Err(Error::AlreadyInTransaction));
    assert_eq!(ledger().clean(&mut conn, Duration::MAX), Ok(0));
}

/// The tokens are in the table that was found at the first use of the connection.
#[cfg(feature = "postgres")]
#[test]
fn session_that_looks_for_tables_elsewhere_cleans_the_table_of_the_tokens() {
    let (server, pool) = scene::<support::postgres::Postgres>();
    let mut conn = pool.get().expect("the peer is up");
    assert_eq!(conn.transaction_with_retry(|conn| mark(conn, 1)), Outcome::Committed(()));
    let old = "INSERT INTO public.ledger (token, outcome) VALUES (repeat('0', 32), 'c')";
    for statement in [
        "CREATE SCHEMA tenant",
        "CREATE TABLE tenant.ledger (LIKE ledger INCLUDING ALL)",
        "SET search_path TO tenant",
        old,
        &old.replace("public", "tenant"),
    ] {
        conn.batch_execute(statement).expect(statement);
    }
    assert_eq!(ledger().clean(&mut conn, DAY), Ok(1));
    let count = |schema| {
        let old = format!("SELECT count(*) FROM {schema}.ledger WHERE token = repeat('0', 32)");
        server.sql_in("app", &old).trim().to_owned()
    };
    assert_eq!((count("public"), count("tenant")), ("0".to_owned(), "1".to_owned()));
}
