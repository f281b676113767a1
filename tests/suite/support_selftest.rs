//! The test support itself: its servers start, fail and come back in the way that the other tests expect.
#![cfg(target_os = "linux")]
#![allow(clippy::disallowed_methods, reason = "the test support waits for real processes")]
#![cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]

use std::io::{ErrorKind, Read};
use std::ops::Deref;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::{Connection, MysqlConnection, PgConnection};

use support::account::is_root;
use support::haproxy::HaProxy;
use support::mariadb::{self, MariaDb};
use support::network::{DroppedPackets, Drops, FullBacklog, Silent, connect};
use support::postgres::{self, Postgres};
use support::process::Server;
use support::wait_until;

/// Long enough for everything that has to happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to watch for what must not happen.
const WATCH: Duration = Duration::from_millis(300);

/// Logs in and runs a query.
fn session<C: Connection>(url: &str) -> C {
    let mut session = C::establish(url).expect("the server accepts the login");
    assert!(works(&mut session), "a new session works");
    session
}

fn works(session: &mut impl SimpleConnection) -> bool {
    session.batch_execute("SELECT 1").is_ok()
}

/// The application's user may create and fill tables in its database.
fn owns_its_database(session: &mut impl SimpleConnection) {
    session
        .batch_execute("CREATE TABLE notes (body TEXT); INSERT INTO notes VALUES ('kept');")
        .expect("the application owns its database");
}

fn is_killed_and_restarted<C: Connection>(server: &mut Server, url: &str) {
    let mut old = session::<C>(url);
    owns_its_database(&mut old);
    server.kill();
    assert!(server.pid().is_none());
    assert!(!works(&mut old), "a session does not outlive its server");
    assert!(C::establish(url).is_err(), "a killed server accepts no login");

    server.restart();
    let mut new = session::<C>(url);
    new.batch_execute("DELETE FROM notes").expect("the data survive a restart");

    server.stop();
    assert!(!works(&mut new), "a session does not outlive its server");
    server.restart();
    session::<C>(url);
}

fn is_frozen_and_thawed<C: Connection + Send>(
    server: &mut Server,
    url: &str,
    greets: fn(&Server, Duration) -> bool,
) {
    let mut open = session::<C>(url);
    server.freeze();
    connect(server.port(), PATIENCE).expect("the kernel accepts connections for a frozen server");
    assert!(!greets(server, WATCH), "a frozen server sends no greeting");

    thread::scope(|scope| {
        let (answer, answered) = mpsc::channel();
        scope.spawn(move || answer.send(works(&mut open)));
        assert!(answered.recv_timeout(WATCH).is_err(), "an open session of a frozen server hangs");
        server.thaw();
        assert_eq!(answered.recv_timeout(PATIENCE), Ok(true), "the session goes on after the thaw");
    });
    assert!(greets(server, PATIENCE), "a thawed server sends its greeting");

    server.freeze();
    server.kill();
}

#[test]
fn mariadb_is_killed_and_restarted() {
    let mut server = MariaDb::start();
    let url = server.url();
    is_killed_and_restarted::<MysqlConnection>(&mut server, &url);
}

#[test]
fn postgres_is_killed_and_restarted() {
    let mut server = Postgres::start();
    let url = server.url();
    is_killed_and_restarted::<PgConnection>(&mut server, &url);
    server.kill();
    server.restart();
    session::<PgConnection>(&url);
}

#[test]
fn mariadb_is_frozen_and_thawed() {
    let mut server = MariaDb::start();
    let url = server.url();
    is_frozen_and_thawed::<MysqlConnection>(&mut server, &url, mariadb::greets);
}

#[test]
fn postgres_is_frozen_and_thawed() {
    let mut server = Postgres::start();
    let url = server.url();
    is_frozen_and_thawed::<PgConnection>(&mut server, &url, postgres::greets);
}

#[test]
fn servers_count_the_applications_sessions() {
    let (mysql, postgres) = (MariaDb::start(), Postgres::start());
    let open = (session::<MysqlConnection>(&mysql.url()), session::<PgConnection>(&postgres.url()));
    assert_eq!((mysql.sessions(), postgres.sessions()), (1, 1));
    drop(open);
    wait_until("both servers count no session", PATIENCE, || {
        mysql.sessions() + postgres.sessions() == 0
    });
}

#[test]
fn two_servers_run_side_by_side() {
    let (one, other) = (MariaDb::start(), MariaDb::start());
    owns_its_database(&mut session::<MysqlConnection>(&one.url()));
    owns_its_database(&mut session::<MysqlConnection>(&other.url()));
}

#[test]
fn haproxy_refuses_new_sessions_and_keeps_open_ones() {
    let server = MariaDb::start();
    let proxy = HaProxy::in_front_of(server.port());
    let url = proxy.mysql_url();
    let mut open = session::<MysqlConnection>(&url);
    assert_eq!(proxy.sessions(), 1);

    proxy.refuse();
    let refused = connect(proxy.port(), PATIENCE).expect_err("the proxy does not listen");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert!(MysqlConnection::establish(&url).is_err());
    assert!(works(&mut open), "the open session goes on");
    assert_eq!(proxy.sessions(), 1);

    proxy.accept();
    let _second = session::<MysqlConnection>(&url);
    assert_eq!(proxy.sessions(), 2);
    drop(open);
    wait_until("the proxy counts one session", PATIENCE, || proxy.sessions() == 1);
}

#[test]
fn haproxy_stops_and_comes_back() {
    let server = Postgres::start();
    let mut proxy = HaProxy::in_front_of(server.port());
    let url = proxy.postgres_url();
    let mut open = session::<PgConnection>(&url);
    proxy.stop();
    assert!(!works(&mut open), "a session does not outlive its proxy");
    assert!(PgConnection::establish(&url).is_err(), "a stopped proxy accepts no login");
    proxy.restart();
    session::<PgConnection>(&url);
}

#[test]
fn connecting_to_a_full_backlog_hangs() {
    let full = FullBacklog::start();
    for _ in 0..3 {
        let hung = connect(full.port(), WATCH).expect_err("the backlog is full");
        assert_eq!(hung.kind(), ErrorKind::TimedOut);
    }
}

#[test]
fn silent_port_accepts_and_sends_nothing() {
    let silent = Silent::start();
    let mut stream = connect(silent.port(), PATIENCE).expect("the port accepts connections");
    wait_until("the connection is accepted", PATIENCE, || silent.accepted() == 1);
    stream.set_read_timeout(Some(WATCH)).expect("the timeout is not zero");
    let silence = stream.read(&mut [0]).expect_err("the port sends nothing");
    assert_eq!(silence.kind(), ErrorKind::WouldBlock);
}

#[test]
fn dropped_packets_hang_connections_until_the_fault_ends() {
    if !is_root() {
        eprintln!("skipped: only root can drop packets");
        return;
    }
    let server = MariaDb::start();
    let mut open = session::<MysqlConnection>(&server.url());

    let dropped = DroppedPackets::to_port(server.port(), Drops::NewOnly);
    let hung = connect(server.port(), WATCH).expect_err("no packet arrives");
    assert_eq!(hung.kind(), ErrorKind::TimedOut);
    assert!(works(&mut open), "the open session goes on");
    drop(dropped);
    session::<MysqlConnection>(&server.url());

    let dropped = DroppedPackets::to_port(server.port(), Drops::All);
    thread::scope(|scope| {
        let (answer, answered) = mpsc::channel();
        scope.spawn(move || answer.send(works(&mut open)));
        assert!(answered.recv_timeout(WATCH).is_err(), "the open session hangs");
        drop(dropped);
        assert_eq!(
            answered.recv_timeout(PATIENCE),
            Ok(true),
            "the session goes on after the fault"
        );
    });
}

#[test]
fn dropped_server_leaves_no_process_and_no_folder() {
    fn leaves_nothing<S: Deref<Target = Server>>(server: S) {
        let process = format!("/proc/{}", server.pid().expect("the server runs"));
        let folder = server.folder().to_path_buf();
        assert!(Path::new(&process).exists() && folder.exists());
        drop(server);
        assert!(!Path::new(&process).exists(), "the server's process has ended");
        assert!(!folder.exists(), "the server's folder is removed");
    }
    leaves_nothing(MariaDb::start());
    leaves_nothing(Postgres::start());
    leaves_nothing(HaProxy::in_front_of(1));
}
