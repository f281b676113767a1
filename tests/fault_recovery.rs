//! One of three peers breaks in all the ways in which a server or a network can fail, and recovers: no
//! `pool.get()` fails, only queries in flight on that peer fail, every thread goes on while the peer is still
//! broken, the peer serves again afterwards, and no thread or socket is left behind.
//!
//! The tests run one after the other, because threads and descriptors are counted for the whole process.

#![cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]
#![allow(clippy::disallowed_methods, reason = "the printed durations are measured by the clock")]

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use diesel::r2d2::{HandleError, Pool, R2D2Connection};
use diesel_peers::{Balance, PeerManagerBuilder, PeerState, Peers};
use support::account::is_root;
use support::backend::{
    Backend, PATIENCE, RealServer, SOON, build, fill, links, manager_of, manager_over, pool_of,
    state, status,
};
use support::load::{Load, Seen};
use support::mariadb::MariaDb;
use support::network::{DroppedPackets, Drops, FullBacklog, Silent};
use support::port::Port;
use support::postgres::Postgres;
use support::process::our_threads;
use support::wait_until;

/// The number of the pool's connections.
const CONNECTIONS: u32 = 9;
/// The number of threads that use the pool.
const THREADS: usize = 6;

/// The duration of a query, in seconds.
const QUERY: f64 = 0.005;

/// The time within which a peer serves again after a fault has ended: many check intervals, and much less
/// than the kernel takes to give up a connection.
const BACK: Duration = Duration::from_secs(30);

/// The number of threads and sockets of the crate in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ours {
    threads: usize,
    sockets: usize,
}

impl Ours {
    fn now() -> Self {
        let threads = our_threads().len();
        let local = fs::read_to_string("/proc/self/net/unix").expect("Linux lists its sockets");
        let local: Vec<_> =
            local.lines().filter_map(|line| line.split_whitespace().nth(6)).collect();
        let descriptors = fs::read_dir("/proc/self/fd").expect("Linux lists its descriptors");
        // A descriptor may be closed while it is inspected.
        let sockets = descriptors.flatten().filter(|descriptor| {
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            let inode = target.to_str().and_then(|target| target.strip_prefix("socket:["));
            // The test support reserves its ports with local sockets.
            inode.is_some_and(|inode| !local.contains(&inode.trim_end_matches(']')))
        });
        Self { threads, sockets: sockets.count() }
    }
}

/// Returns the lock that lets one test run at a time.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until there are as many threads and sockets as before. The last pool has been dropped.
#[track_caller]
fn assert_nothing_is_left(before: Ours) {
    let mut now = before;
    let is_as_before = support::within(PATIENCE, || {
        now = Ours::now();
        now == before
    });
    assert!(is_as_before, "no thread or socket is left: {before:?} before, {now:?} after");
}

/// Shortens the intervals and timeouts of a builder, so that a test need not wait long.
fn with_short_timeouts<C>(builder: PeerManagerBuilder<C>) -> PeerManagerBuilder<C> {
    builder
        .check_interval(SOON)
        .connect_timeout(Duration::from_secs(1))
        .stall_after(Duration::from_millis(300))
        .check_timeout(Duration::from_millis(200))
        .ping_timeout(Duration::from_millis(500))
        .rebalance_interval(Duration::from_millis(50))
}

fn is_full(peers: &Peers) -> bool {
    links(peers).iter().sum::<usize>() == CONNECTIONS as usize
}

/// Waits until every thread has finished some queries, while the fault lasts.
#[track_caller]
fn wait_for_all_threads(load: &Load) {
    let before = load.rounds();
    wait_until("every thread finishes a query", PATIENCE, || load.all_came_back(&before, 1));
    let before = load.rounds();
    wait_until("every thread goes on", PATIENCE, || load.all_came_back(&before, 20));
}

/// Waits until `peer0` is up and has and serves its share. Returns the time until its first query.
#[track_caller]
fn wait_for_recovery(load: &Load, peers: &Peers) -> Duration {
    let (start, before) = (Instant::now(), load.served_by("peer0"));
    wait_until("peer0 is up again", PATIENCE, || state(peers, "peer0") == PeerState::Up);
    wait_until("peer0 serves again", PATIENCE, || load.served_by("peer0") > before);
    let took = start.elapsed();
    assert!(took < BACK, "peer0 serves again in time: {took:?}");
    wait_until("peer0 has its share again", PATIENCE, || links(peers)[0] >= 2);
    wait_until("peer0 serves its share", PATIENCE, || load.served_by("peer0") > before + 20);
    took
}

/// Returns the name of the kind of server.
fn name_of<B>() -> &'static str {
    std::any::type_name::<B>().rsplit("::").next().unwrap_or_default()
}

/// Prints the effects of a fault.
fn print_figures<B>(seen: &Seen, back: Option<Duration>, fault: &str) {
    println!(
        "{}, {fault}: longest get {:.0?}, longest query {:.0?}, {} failed, back after {}",
        name_of::<B>(),
        seen.longest_get,
        seen.longest_query,
        seen.failed.len(),
        back.map_or_else(|| String::from("-"), |back| format!("{back:.0?}")),
    );
}

/// Asserts that a fault failed at most `lost` queries, all of them on `peer0`.
#[track_caller]
fn assert_harm<B>(lost: usize, seen: &Seen, back: Option<Duration>, fault: &str) {
    print_figures::<B>(seen, back, fault);
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    let is_its_own = seen.failed.iter().all(|(peer, _)| peer == "peer0");
    assert!(is_its_own, "only queries on the broken peer fail: {:?}", seen.failed);
    assert!(seen.failed.len() <= lost, "only queries in flight fail: {:?}", seen.failed);
}

/// Whether open sessions go on while the fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sessions {
    End,
    GoOn,
}

fn peer_breaks_and_recovers<B: RealServer, F>(
    fault: &str,
    sessions: Sessions,
    break_it: impl FnOnce(&mut B) -> F,
    mend: impl FnOnce(&mut B, F),
) {
    let (_alone, before) = (alone(), Ours::now());
    let mut servers = B::start(3);
    let (pool, peers) = pool_of(with_short_timeouts(manager_over(&servers)), CONNECTIONS);
    fill(&pool, &peers, &[3, 3, 3]);
    let mut back = None;
    let seen = Load::run(&pool, THREADS, &B::rest(QUERY), |load| {
        wait_until("every peer serves", PATIENCE, || {
            ["peer0", "peer1", "peer2"].iter().all(|peer| load.served_by(peer) > 20)
        });
        let broken = break_it(&mut servers[0]);
        wait_for_all_threads(load);
        wait_until("peer0 is marked down", PATIENCE, || state(&peers, "peer0").is_marked_down());
        wait_until("the connections to peer0 are replaced", PATIENCE, || {
            links(&peers)[0] == 0 && is_full(&peers)
        });
        wait_for_all_threads(load);
        mend(&mut servers[0], broken);
        back = Some(wait_for_recovery(load, &peers));
    });
    drop(pool);
    let lost = if sessions == Sessions::End { 3 } else { 0 };
    assert_harm::<B>(lost, &seen, back, fault);
    assert_nothing_is_left(before);
}

fn killed_server_fails_only_queries_in_flight<B: RealServer>() {
    let restart = |server: &mut B, ()| Backend::restart(server);
    peer_breaks_and_recovers("killed", Sessions::End, Backend::kill, restart);
}

fn frozen_server_fails_only_queries_in_flight<B: RealServer>() {
    let freeze = |server: &mut B| server.freeze();
    peer_breaks_and_recovers("frozen", Sessions::End, freeze, |server, ()| server.thaw());
}

fn packets_are_dropped<B: RealServer>(fault: &str, drops: Drops, sessions: Sessions) {
    if !is_root() {
        eprintln!("skipped: only root can drop packets");
        return;
    }
    let drop_packets = |server: &mut B| DroppedPackets::to_port(server.port(), drops);
    peer_breaks_and_recovers(fault, sessions, drop_packets, |_, dropped| drop(dropped));
}

fn dropped_connection_attempts_fail_no_query<B: RealServer>() {
    packets_are_dropped::<B>("new connections dropped", Drops::NewOnly, Sessions::GoOn);
}

fn dropped_packets_fail_only_queries_in_flight<B: RealServer>() {
    packets_are_dropped::<B>("all packets dropped", Drops::All, Sessions::End);
}

/// Asserts that no login is left behind by a pool that is dropped while a login to `peer0` hangs.
fn assert_dropped_pool_leaves_no_login<C>(builder: PeerManagerBuilder<C>)
where
    C: R2D2Connection + Send + 'static,
{
    let before = Ours::now().threads;
    let (pool, peers) = pool_of(builder, CONNECTIONS);
    wait_until("the pool is full", PATIENCE, || is_full(&peers));
    wait_until("a login thread runs beside the checker", PATIENCE, || {
        Ours::now().threads >= before + 2
    });
    drop(pool);
    wait_until("none of the threads is left", PATIENCE, || Ours::now().threads == before);
}

/// Starts a listener at the port of `peer0`, and replaces it by a server under load.
fn server_replaces_a_listener<B: RealServer, L>(
    fault: &str,
    start: fn() -> L,
    port: fn(&L) -> u16,
    vanish: fn(L) -> Port,
) {
    let (_alone, before) = (alone(), Ours::now());
    let others = B::start(2);
    let listener = start();
    let urls = [
        B::url_at("127.0.0.1", port(&listener)),
        Backend::url(&others[0]),
        Backend::url(&others[1]),
    ];
    let builder =
        || with_short_timeouts(manager_of::<B::Connection>(&urls)).connect_timeout(2 * SOON);
    assert_dropped_pool_leaves_no_login(builder());
    let (pool, peers) = pool_of(builder(), CONNECTIONS);
    wait_until("the pool is full", PATIENCE, || is_full(&peers));
    let mut back = None;
    let mut server = None;
    let seen = Load::run(&pool, THREADS, &B::rest(QUERY), |load| {
        wait_until("peer0 is marked down", PATIENCE, || state(&peers, "peer0").is_marked_down());
        wait_for_all_threads(load);
        let failures = || status(&peers, "peer0").connect_failures;
        let before = failures();
        wait_until("peer0 is dialed three more times", PATIENCE, || failures() >= before + 3);
        // Beside the checker one login to peer0 hangs, and another peer may be checked.
        wait_until("logins to peer0 do not pile up", PATIENCE, || Ours::now().threads <= 3);
        server = Some(B::start_on(vanish(listener)));
        back = Some(wait_for_recovery(load, &peers));
    });
    drop(pool);
    assert_harm::<B>(0, &seen, back, fault);
    assert_nothing_is_left(before);
}

fn server_that_replaces_a_silent_listener_serves<B: RealServer>() {
    let (start, port, vanish) = (Silent::start, Silent::port, Silent::vanish);
    server_replaces_a_listener::<B, _>("a silent listener", start, port, vanish);
}

fn server_that_replaces_a_full_backlog_serves<B: RealServer>() {
    let (start, port, vanish) = (FullBacklog::start, FullBacklog::port, FullBacklog::vanish);
    server_replaces_a_listener::<B, _>("a full accept queue", start, port, vanish);
}

fn unresolvable_host_fails_no_query<B: RealServer>() {
    let (_alone, before) = (alone(), Ours::now());
    let others = B::start(2);
    let unresolvable = B::url_at("peer0.invalid", others[0].port());
    let urls = [unresolvable, Backend::url(&others[0]), Backend::url(&others[1])];
    let (pool, peers) =
        pool_of(with_short_timeouts(manager_of::<B::Connection>(urls)), CONNECTIONS);
    wait_until("the pool is full", PATIENCE, || is_full(&peers));
    let seen = Load::run(&pool, THREADS, &B::rest(QUERY), |load| {
        wait_until("peer0 is marked down", PATIENCE, || state(&peers, "peer0").is_marked_down());
        wait_for_all_threads(load);
    });
    drop(pool);
    assert_harm::<B>(0, &seen, None, "a name that does not resolve");
    assert_nothing_is_left(before);
}

fn checkouts_wait_until_one_of_all_killed_servers_is_back<B: RealServer>() {
    let (_alone, before) = (alone(), Ours::now());
    let mut servers = B::start(3);
    let manager = build(with_short_timeouts(manager_over(&servers)));
    let peers = manager.peers();
    // The pool has r2d2's default settings.
    let pool = Pool::builder().max_size(CONNECTIONS).build(manager).expect("the servers are up");
    let is_down = |name| state(&peers, name).is_marked_down();
    let mut back = None;
    let seen = Load::run(&pool, THREADS, &B::rest(QUERY), |load| {
        wait_until("the peers serve", PATIENCE, || load.served() > 60);
        servers.iter_mut().for_each(Backend::kill);
        wait_until("all peers are marked down", PATIENCE, || {
            ["peer0", "peer1", "peer2"].into_iter().all(is_down)
        });
        // For a while no peer serves.
        support::within(Duration::from_secs(2), || false);
        let before = load.served();
        let start = Instant::now();
        Backend::restart(&mut servers[0]);
        let restarted = start.elapsed();
        wait_until("the restarted peer serves", PATIENCE, || load.served() > before);
        back = Some(start.elapsed().saturating_sub(restarted));
        wait_for_all_threads(load);
    });
    drop(pool);
    print_figures::<B>(&seen, back, "all killed, one restarted");
    assert_eq!(seen.refused, [""; 0], "each `pool.get()` waits until the outage ends");
    // The servers are killed one after the other.
    let lost = 3 * THREADS;
    assert!(seen.failed.len() <= lost, "only queries in flight fail: {:?}", seen.failed);
    assert_nothing_is_left(before);
}

/// An error handler that takes its time.
#[derive(Debug)]
struct SlowHandler;

impl<E> HandleError<E> for SlowHandler {
    fn handle_error(&self, _: E) {
        thread::sleep(Duration::from_millis(30));
    }
}

/// Every connection needs a ping, and no peer answers.
fn pings_to_frozen_servers_share_one_timeout<B: RealServer>() {
    const PING: Duration = Duration::from_secs(2);
    const GET: Duration = Duration::from_millis(500);
    let (_alone, before) = (alone(), Ours::now());
    let mut servers = B::start(3);
    for balance in [Balance::PerCheckout, Balance::PerConnection] {
        // Neither a check nor the stall detection marks a peer.
        let builder = manager_over(&servers).check_interval(PATIENCE).stall_after(None);
        let builder = builder.ping_idle(Duration::ZERO).ping_timeout(PING).balance(balance);
        let manager = build(builder);
        let peers = manager.peers();
        let pool = Pool::builder()
            .max_size(CONNECTIONS)
            .connection_timeout(Duration::from_secs(5))
            .error_handler(Box::new(SlowHandler))
            .build_unchecked(manager);
        wait_until("the pool is full", PATIENCE, || is_full(&peers));
        for server in &mut servers {
            server.freeze();
        }
        let start = Instant::now();
        // When one ping has timed out, no other connection is pinged.
        drop(pool.get_timeout(GET));
        let took = start.elapsed();
        println!(
            "{}, all frozen, {balance:?}: a checkout took {took:.1?}, with {GET:?} for it and {PING:?} for a \
             ping",
            name_of::<B>()
        );
        // Three timeouts would take that long, and there are nine connections.
        assert!(took < 3 * PING, "a checkout waits for one timeout, and took {took:?}");
        for server in &mut servers {
            server.thaw();
        }
        wait_until("the peers serve again", PATIENCE, || pool.get().is_ok());
    }
    assert_nothing_is_left(before);
}

/// Makes one test of each fault for each kind of server.
macro_rules! on_every_server {
    ($($suite:ident),+ $(,)?) => {
        mod mariadb {
            $(#[test] fn $suite() { super::$suite::<super::MariaDb>(); })+
        }
        mod postgres {
            $(#[test] fn $suite() { super::$suite::<super::Postgres>(); })+
        }
    };
}

on_every_server!(
    killed_server_fails_only_queries_in_flight,
    frozen_server_fails_only_queries_in_flight,
    dropped_connection_attempts_fail_no_query,
    dropped_packets_fail_only_queries_in_flight,
    server_that_replaces_a_silent_listener_serves,
    server_that_replaces_a_full_backlog_serves,
    unresolvable_host_fails_no_query,
    checkouts_wait_until_one_of_all_killed_servers_is_back,
    pings_to_frozen_servers_share_one_timeout,
);
