//! What the client library that is linked says of each fault is known for what it is: MariaDB's and MySQL's
//! own have different texts. `--nocapture` shows them, for whoever wants to know what another one says.

#![cfg(all(target_os = "linux", feature = "mysql"))]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use diesel::connection::{Connection, SimpleConnection};
use diesel::prelude::*;
use diesel::sql_types::Integer;
use diesel::{IntoSql, MysqlConnection};
use diesel_peers::Fault;
use support::backend::PATIENCE;
use support::mariadb::{MariaDb, url_at};
use support::network::connect;
use support::port::free_port;
use support::{APP, wait_until};

/// A login says what is the matter.
#[track_caller]
fn login_fails(url: &str, what: &str, fault: Fault) {
    let error = MysqlConnection::establish(url).map(drop).expect_err(what);
    println!("login, {what}: {error}");
    assert_eq!(Fault::of_login(&error), fault, "{what}: {error}");
}

/// A query says what is the matter.
#[track_caller]
fn fails(outcome: QueryResult<()>, what: &str, fault: Fault) {
    let error = outcome.expect_err(what);
    println!("query, {what}: {error}");
    assert_eq!(Fault::of(&error), fault, "{what}: {error}");
}

fn log_in(server: &MariaDb) -> MysqlConnection {
    MysqlConnection::establish(&server.url()).expect("the server lives")
}

/// Sent as text.
fn simple(conn: &mut MysqlConnection, query: &str) -> QueryResult<()> {
    conn.batch_execute(query)
}

/// Prepared first.
fn prepared(conn: &mut MysqlConnection, query: &str) -> QueryResult<()> {
    diesel::sql_query(query).execute(conn).map(drop)
}

/// Prepared once, and kept by diesel.
fn cached(conn: &mut MysqlConnection) -> QueryResult<()> {
    diesel::select(1.into_sql::<Integer>()).execute(conn).map(drop)
}

#[test]
fn logins_to_what_does_not_answer() {
    let nobody = free_port();
    login_fails(&url_at("127.0.0.1", nobody.number()), "refused", Fault::PeerDown);
    login_fails(&url_at("peer0.invalid", 3306), "no such host", Fault::PeerDown);
    let url = format!("mysql://{APP}@localhost/{APP}?unix_socket=/nowhere/socket");
    login_fails(&url, "no such socket", Fault::PeerDown);
    for (what, words) in
        [("hangs up", &b""[..]), ("says nonsense", b"HTTP/1.1 400 Bad Request\r\n\r\n")]
    {
        let port = answer(move |mut stream| drop(stream.write_all(words)));
        login_fails(&url_at("127.0.0.1", port), what, Fault::PeerDown);
    }
}

#[test]
fn logins_that_are_refused() {
    let server = MariaDb::start();
    let url = server.url();
    let nobody = url.replacen(APP, "nobody", 1);
    login_fails(&nobody, "no such user", Fault::Misconfigured);
    login_fails(&url.replace("s3cret", "wrong"), "wrong password", Fault::Misconfigured);
    let (address, _) = url.rsplit_once('/').expect("it names a database");
    login_fails(&format!("{address}/another"), "not their database", Fault::Misconfigured);
    server.sql(&format!("GRANT ALL ON *.* TO {APP}"));
    login_fails(&format!("{address}/another"), "no such database", Fault::Misconfigured);
    server.sql(&format!("REVOKE ALL ON *.* FROM {APP}"));

    server.sql(&format!("ALTER USER {APP} ACCOUNT LOCK"));
    login_fails(&url, "locked", Fault::Misconfigured);
    server.sql(&format!("ALTER USER {APP} ACCOUNT UNLOCK PASSWORD EXPIRE"));
    fails(simple(&mut log_in(&server), "SELECT 1"), "password expired", Fault::Misconfigured);
    server.sql("SET GLOBAL disconnect_on_expired_password = 1");
    login_fails(&url, "password expired", Fault::Misconfigured);
    server.sql(&format!("ALTER USER {APP} PASSWORD EXPIRE NEVER"));
    // MySQL's library does not have it.
    server.sql("INSTALL SONAME 'auth_ed25519'");
    server.sql("CREATE USER modern IDENTIFIED VIA ed25519 USING PASSWORD('s3cret-app')");
    server.sql(&format!("GRANT ALL ON {APP}.* TO modern"));
    let modern = url.replacen(APP, "modern", 1);
    match MysqlConnection::establish(&modern) {
        Ok(_) => println!("login, in MariaDB's own way: it knows that"),
        Err(_) => login_fails(&modern, "in MariaDB's own way", Fault::Misconfigured),
    }
    server.sql(&format!("RENAME USER {APP} TO {APP}@'192.0.2.1', modern TO modern@'192.0.2.1'"));
    login_fails(&url, "not from here", Fault::Misconfigured);
}

#[test]
fn logins_to_a_full_server() {
    let server = MariaDb::start();
    server.sql(&format!("ALTER USER {APP} WITH MAX_USER_CONNECTIONS 1"));
    let one = log_in(&server);
    login_fails(&server.url(), "the user's are all in use", Fault::PeerFull);
    server.sql(&format!("ALTER USER {APP} WITH MAX_USER_CONNECTIONS 0"));
    server.sql("SET GLOBAL max_connections = 10");
    let all: Vec<_> =
        std::iter::from_fn(|| MysqlConnection::establish(&server.url()).ok()).collect();
    login_fails(&server.url(), "all are in use", Fault::PeerFull);
    drop((one, all));
}

#[test]
fn logins_without_tls_where_it_is_required() {
    let server = MariaDb::start_with_tls();
    let url = format!("{}?ssl_mode=disabled", server.url());
    login_fails(&url, "without TLS", Fault::Misconfigured);
}

/// A server that goes away while TLS is agreed on is not one with a wrong certificate.
#[test]
fn logins_that_end_while_tls_begins() {
    let server = MariaDb::start_with_tls();
    let ca = server.folder().join("certificate.pem");
    for (what, begins) in [("when it is asked for", false), ("when it has begun", true)] {
        for listens in [true, false] {
            let real = server.port();
            let port = answer(move |client| greet_and_hang_up(client, real, begins, listens));
            let url = url_at("127.0.0.1", port);
            let url = format!("{url}?ssl_mode=required&ssl_ca={}", ca.display());
            let what = format!("hangs up {what}, {}", if listens { "politely" } else { "rudely" });
            login_fails(&url, &what, Fault::PeerDown);
        }
    }
}

/// Has a thread answer one connection to the port that it returns.
fn answer(how: impl FnOnce(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there are ports");
    let port = listener.local_addr().expect("it is bound").port();
    let thread = thread::Builder::new().name("answers".into());
    let thread = thread.spawn(move || how(listener.accept().expect("somebody comes").0));
    drop(thread.expect("one thread more"));
    port
}

/// Hands on the greeting of the server on port `real`, and is gone when the client has asked for TLS, or
/// has even begun it; if it did not listen then, the client is told so by a reset.
fn greet_and_hang_up(mut client: TcpStream, real: u16, begins: bool, listens: bool) {
    let mut packet = [0; 4096];
    let mut server = connect(real, PATIENCE).expect("the server lives");
    let length = server.read(&mut packet).expect("it greets");
    client.write_all(&packet[..length]).expect("the client listens");
    // A packet of 32 bytes asks for TLS, in both libraries.
    let asks = &mut [0; 36];
    if begins || listens {
        client.read_exact(asks).expect("the client asks");
    } else {
        client.peek(asks).expect("the client asks");
    }
    if begins {
        let hello = if listens { client.read(&mut packet) } else { client.peek(&mut packet) };
        hello.expect("the client begins");
    }
}

#[test]
fn sessions_that_end() {
    let server = MariaDb::start();
    let kill_all = || {
        server.sql(&format!("KILL USER {APP}"));
        wait_until("they end", PATIENCE, || server.sessions() == 0);
    };
    let mut conns: Vec<_> = (0..3).map(|_| log_in(&server)).collect();
    cached(&mut conns[2]).expect("it serves");
    kill_all();
    fails(simple(&mut conns[0], "SELECT 1"), "killed at rest", Fault::ConnectionLost);
    fails(prepared(&mut conns[1], "SELECT 1"), "the same, prepared", Fault::ConnectionLost);
    fails(cached(&mut conns[2]), "the same, prepared before", Fault::ConnectionLost);
    for conn in &mut conns {
        fails(simple(conn, "SELECT 1"), "and afterwards", Fault::ConnectionLost);
        fails(prepared(conn, "SELECT 1"), "and afterwards, prepared", Fault::ConnectionLost);
        fails(cached(conn), "and afterwards, kept", Fault::ConnectionLost);
        fails(conn.begin_test_transaction(), "a transaction", Fault::ConnectionLost);
    }

    let mut conn = log_in(&server);
    simple(&mut conn, "SET wait_timeout = 1").expect("it serves");
    wait_until("it has rested for too long", PATIENCE, || server.sessions() == 0);
    fails(simple(&mut conn, "SELECT 1"), "rested for too long", Fault::ConnectionLost);

    let mut conn = log_in(&server);
    let long = format!("SELECT '{}'", "x".repeat(20 << 20));
    fails(simple(&mut conn, &long), "a packet that is too large", Fault::ConnectionLost);
}

/// A query that hangs.
const HANGS: &str = "SELECT SLEEP(100), 1";

fn wait_until_it_hangs(server: &MariaDb) {
    let count =
        format!("SELECT COUNT(*) FROM information_schema.processlist WHERE info = '{HANGS}'");
    wait_until("it runs", PATIENCE, || server.sql(&count).trim() == "1");
}

/// What a query that hangs is told when `end` happens, sent as text and prepared.
fn while_it_runs(server: &MariaDb, what: &str, fault: Fault, end: impl Fn()) {
    for (how, run) in [("sent", simple as fn(&mut _, &_) -> _), ("prepared", prepared)] {
        let mut conn = log_in(server);
        thread::scope(|scope| {
            let query = scope.spawn(move || run(&mut conn, HANGS));
            wait_until_it_hangs(server);
            end();
            fails(query.join().expect("it ends"), &format!("{what} ({how})"), fault);
        });
    }
}

#[test]
fn queries_that_end() {
    let mut server = MariaDb::start();
    let id = format!("SELECT id FROM information_schema.processlist WHERE info = '{HANGS}'");
    let kill = |what: &str| server.sql(&format!("KILL {what} {}", server.sql(&id).trim()));
    while_it_runs(&server, "its session is killed", Fault::ConnectionLost, || {
        kill("CONNECTION");
    });
    while_it_runs(&server, "it is killed", Fault::Query, || {
        kill("QUERY");
    });

    let mut conn = log_in(&server);
    let queries = [simple as fn(&mut _, &_) -> _, prepared];
    for run in queries {
        let limited = "SET STATEMENT max_statement_time = 0.1 FOR SELECT SLEEP(100)";
        fails(run(&mut conn, limited), "it takes too long", Fault::Query);
    }
    simple(&mut conn, "CREATE TABLE t (id INT PRIMARY KEY)").expect("it serves");
    simple(&mut conn, "INSERT INTO t VALUES (1)").expect("it serves");
    let mut holds = log_in(&server);
    simple(&mut holds, "BEGIN").expect("it serves");
    simple(&mut holds, "UPDATE t SET id = 1").expect("it serves");
    simple(&mut holds, "DELETE FROM t").expect("it serves");
    simple(&mut conn, "SET innodb_lock_wait_timeout = 1").expect("it serves");
    for run in queries {
        fails(run(&mut conn, "DELETE FROM t"), "waits for a lock", Fault::Retryable);
    }
    simple(&mut holds, "ROLLBACK").expect("it serves");
    server.sql("SET GLOBAL read_only = ON");
    for run in queries {
        fails(run(&mut conn, "DELETE FROM t"), "the server only reads", Fault::WrongRole);
    }

    let mut conn = log_in(&server);
    thread::scope(|scope| {
        let query = scope.spawn(move || simple(&mut conn, HANGS));
        wait_until_it_hangs(&server);
        server.kill();
        fails(query.join().expect("it ends"), "the server is killed", Fault::ConnectionLost);
    });
}
