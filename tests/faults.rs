//! One peer of three breaks in every way that a server and a network have, and heals: no `pool.get()`
//! fails, only queries in flight on it do, every thread comes back while it is still broken, it
//! serves again afterwards, and nothing of ours is left.
//!
//! One test after the other, as threads and descriptors are the whole process's.

#![cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]
#![allow(clippy::disallowed_methods, reason = "the figures are measured by the clock")]

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diesel::r2d2::{Pool, R2D2Connection};
use diesel_peers::{PeerManagerBuilder, PeerState, Peers};
use support::account::is_root;
use support::backend::{
    Backend, PATIENCE, RealServer, SOON, fill, links, manager_of, manager_over, pool_of, state,
};
use support::load::{Load, Seen};
use support::mariadb::MariaDb;
use support::network::{DroppedPackets, Drops, FullBacklog, Silent};
use support::port::Port;
use support::postgres::Postgres;
use support::process::our_threads;
use support::wait_until;

/// The pool's connections, and the threads that use them.
const CONNECTIONS: u32 = 9;
const THREADS: usize = 6;

/// How long a query of theirs takes, in seconds.
const QUERY: f64 = 0.005;

/// After how long at the most a peer serves again that has healed: many check intervals, and much less
/// than the kernel takes to give up a connection.
const BACK: Duration = Duration::from_secs(30);

/// What is ours in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ours {
    threads: usize,
    sockets: usize,
}

impl Ours {
    fn now() -> Self {
        let threads = our_threads().len();
        let local = fs::read_to_string("/proc/self/net/unix").expect("Linux tells of its sockets");
        let local: Vec<_> =
            local.lines().filter_map(|line| line.split_whitespace().nth(6)).collect();
        let descriptors = fs::read_dir("/proc/self/fd").expect("Linux tells of its descriptors");
        // One may be closed while it is looked at.
        let sockets = descriptors.flatten().filter(|descriptor| {
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            let inode = target.to_str().and_then(|target| target.strip_prefix("socket:["));
            // The bench claims its ports with local ones.
            inode.is_some_and(|inode| !local.contains(&inode.trim_end_matches(']')))
        });
        Self { threads, sockets: sockets.count() }
    }
}

/// One test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last pool was dropped: as much is ours as before.
#[track_caller]
fn nothing_is_left(before: Ours) {
    let mut now = before;
    let is_as_before = support::within(PATIENCE, || {
        now = Ours::now();
        now == before
    });
    assert!(is_as_before, "{before:?} before, {now:?} after");
}

/// Settings that do not keep a test waiting.
fn hurried<C>(builder: PeerManagerBuilder<C>) -> PeerManagerBuilder<C> {
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

/// Waits until every thread has come back some times, as long as whatever is the matter lasts.
#[track_caller]
fn everybody_comes_back(load: &Load) {
    let before = load.rounds();
    wait_until("every thread comes back", PATIENCE, || load.all_came_back(&before, 1));
    let before = load.rounds();
    wait_until("and goes on", PATIENCE, || load.all_came_back(&before, 20));
}

/// Waits until `peer0` is up and has and serves its share. Says how long that took.
#[track_caller]
fn it_comes_back(load: &Load, peers: &Peers) -> Duration {
    let (start, before) = (Instant::now(), load.served_by("peer0"));
    wait_until("it is up again", PATIENCE, || state(peers, "peer0") == PeerState::Up);
    wait_until("it serves again", PATIENCE, || load.served_by("peer0") > before);
    let took = start.elapsed();
    assert!(took < BACK, "it was healed {took:?} ago");
    wait_until("it has its share again", PATIENCE, || links(peers)[0] >= 2);
    wait_until("and serves it", PATIENCE, || load.served_by("peer0") > before + 20);
    took
}

/// The server's kind.
fn name_of<B>() -> &'static str {
    std::any::type_name::<B>().rsplit("::").next().unwrap_or_default()
}

/// Prints what a fault has done.
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

/// Checks whom a fault has done harm to: at most so many queries, on `peer0`.
#[track_caller]
fn harms_only<B>(lost: usize, seen: &Seen, back: Option<Duration>, fault: &str) {
    print_figures::<B>(seen, back, fault);
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    let is_its_own = seen.failed.iter().all(|(peer, _)| peer == "peer0");
    assert!(is_its_own, "only queries on the broken peer fail: {:?}", seen.failed);
    assert!(seen.failed.len() <= lost, "only those in flight: {:?}", seen.failed);
}

/// Whether sessions that are open go on while the fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sessions {
    End,
    GoOn,
}

fn a_peer_breaks_and_heals<B: RealServer, F>(
    fault: &str,
    sessions: Sessions,
    break_it: impl FnOnce(&mut B) -> F,
    heal: impl FnOnce(&mut B, F),
) {
    let (_alone, before) = (alone(), Ours::now());
    let mut servers = B::start(3);
    let (pool, peers) = pool_of(hurried(manager_over(&servers)), CONNECTIONS);
    fill(&pool, &peers, &[3, 3, 3]);
    let mut back = None;
    let seen = Load::run(&pool, THREADS, &B::rest(QUERY), |load| {
        wait_until("every peer serves", PATIENCE, || {
            ["peer0", "peer1", "peer2"].iter().all(|peer| load.served_by(peer) > 20)
        });
        let broken = break_it(&mut servers[0]);
        everybody_comes_back(load);
        wait_until("it is marked", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
        wait_until("its connections are replaced", PATIENCE, || {
            links(&peers)[0] == 0 && is_full(&peers)
        });
        everybody_comes_back(load);
        heal(&mut servers[0], broken);
        back = Some(it_comes_back(load, &peers));
    });
    drop(pool);
    let lost = if sessions == Sessions::End { 3 } else { 0 };
    harms_only::<B>(lost, &seen, back, fault);
    nothing_is_left(before);
}

fn is_killed<B: RealServer>() {
    let restart = |server: &mut B, ()| Backend::restart(server);
    a_peer_breaks_and_heals("killed", Sessions::End, Backend::kill, restart);
}

fn is_frozen<B: RealServer>() {
    let freeze = |server: &mut B| server.freeze();
    a_peer_breaks_and_heals("frozen", Sessions::End, freeze, |server, ()| server.thaw());
}

fn loses_packets<B: RealServer>(fault: &str, drops: Drops, sessions: Sessions) {
    if !is_root() {
        eprintln!("skipped: only root can drop packets");
        return;
    }
    let lose = |server: &mut B| DroppedPackets::to_port(server.port(), drops);
    a_peer_breaks_and_heals(fault, sessions, lose, |_, lost| drop(lost));
}

fn cannot_be_reached_anew<B: RealServer>() {
    loses_packets::<B>("new connections dropped", Drops::NewOnly, Sessions::GoOn);
}

fn vanishes_without_a_word<B: RealServer>() {
    loses_packets::<B>("all packets dropped", Drops::All, Sessions::End);
}

/// What listens where a server should.
trait Impostor {
    fn start() -> Self;
    fn port(&self) -> u16;
    fn vanish(self) -> Port;
}

impl Impostor for Silent {
    fn start() -> Self {
        Self::start()
    }

    fn port(&self) -> u16 {
        self.port()
    }

    fn vanish(self) -> Port {
        self.vanish()
    }
}

impl Impostor for FullBacklog {
    fn start() -> Self {
        Self::start()
    }

    fn port(&self) -> u16 {
        self.port()
    }

    fn vanish(self) -> Port {
        self.vanish()
    }
}

/// No login is left behind by a pool that is dropped while one to `peer0` hangs.
fn a_pool_is_dropped<C>(builder: PeerManagerBuilder<C>)
where
    C: R2D2Connection + Send + 'static,
{
    let before = Ours::now().threads;
    let (pool, peers) = pool_of(builder, CONNECTIONS);
    wait_until("the pool is full", PATIENCE, || is_full(&peers));
    wait_until("beside the checker a login is there", PATIENCE, || {
        Ours::now().threads >= before + 2
    });
    drop(pool);
    wait_until("none of them is left", PATIENCE, || Ours::now().threads == before);
}

fn an_impostor_is_followed_by_a_server<B: RealServer, I: Impostor>(fault: &str) {
    let (_alone, before) = (alone(), Ours::now());
    let others = B::start(2);
    let impostor = I::start();
    let urls = [
        B::url_at("127.0.0.1", impostor.port()),
        Backend::url(&others[0]),
        Backend::url(&others[1]),
    ];
    let builder = || hurried(manager_of::<B::Connection>(&urls)).connect_timeout(2 * SOON);
    a_pool_is_dropped(builder());
    let (pool, peers) = pool_of(builder(), CONNECTIONS);
    wait_until("the pool is full", PATIENCE, || is_full(&peers));
    let mut back = None;
    let mut server = None;
    let seen = Load::run(&pool, THREADS, &B::rest(QUERY), |load| {
        wait_until("it is marked", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
        everybody_comes_back(load);
        let failures = || peers.snapshot().peers.swap_remove(0).connect_failures;
        let before = failures();
        wait_until("it is tried again", PATIENCE, || failures() >= before + 3);
        // Beside the checker there is one that hangs, and maybe a check of another peer.
        wait_until("logins to it do not pile up", PATIENCE, || Ours::now().threads <= 3);
        server = Some(B::start_on(impostor.vanish()));
        back = Some(it_comes_back(load, &peers));
    });
    drop(pool);
    harms_only::<B>(0, &seen, back, fault);
    nothing_is_left(before);
}

fn follows_one_that_says_nothing<B: RealServer>() {
    an_impostor_is_followed_by_a_server::<B, Silent>("a silent listener");
}

fn follows_one_that_does_not_accept<B: RealServer>() {
    an_impostor_is_followed_by_a_server::<B, FullBacklog>("a full accept queue");
}

fn has_a_name_that_does_not_resolve<B: RealServer>() {
    let (_alone, before) = (alone(), Ours::now());
    let others = B::start(2);
    let nowhere = B::url_at("peer0.invalid", others[0].port());
    let urls = [nowhere, Backend::url(&others[0]), Backend::url(&others[1])];
    let (pool, peers) = pool_of(hurried(manager_of::<B::Connection>(urls)), CONNECTIONS);
    wait_until("the pool is full", PATIENCE, || is_full(&peers));
    let seen = Load::run(&pool, THREADS, &B::rest(QUERY), |load| {
        wait_until("it is marked", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
        everybody_comes_back(load);
    });
    drop(pool);
    harms_only::<B>(0, &seen, None, "a name that does not resolve");
    nothing_is_left(before);
}

fn goes_and_so_do_the_others<B: RealServer>() {
    let (_alone, before) = (alone(), Ours::now());
    let mut servers = B::start(3);
    let manager = hurried(manager_over(&servers)).build().expect("the settings are right");
    let peers = manager.peers();
    // With r2d2's own settings.
    let pool = Pool::builder().max_size(CONNECTIONS).build(manager).expect("they live");
    let is_down = |name| state(&peers, name) == PeerState::Down;
    let mut back = None;
    let seen = Load::run(&pool, THREADS, &B::rest(QUERY), |load| {
        wait_until("they serve", PATIENCE, || load.served() > 60);
        servers.iter_mut().for_each(Backend::kill);
        wait_until("all are marked", PATIENCE, || {
            ["peer0", "peer1", "peer2"].into_iter().all(is_down)
        });
        // For a while nobody serves.
        support::within(Duration::from_secs(2), || false);
        let before = load.served();
        let start = Instant::now();
        Backend::restart(&mut servers[0]);
        let restarted = start.elapsed();
        wait_until("it serves again", PATIENCE, || load.served() > before);
        back = Some(start.elapsed().saturating_sub(restarted));
        everybody_comes_back(load);
    });
    drop(pool);
    print_figures::<B>(&seen, back, "all killed, one restarted");
    assert_eq!(seen.refused, [""; 0], "each `pool.get()` has waited for the end of it");
    // They are killed one after the other.
    let lost = 3 * THREADS;
    assert!(seen.failed.len() <= lost, "only queries in flight fail: {:?}", seen.failed);
    nothing_is_left(before);
}

/// Every connection needs a ping, and no peer answers one: they share one timeout.
fn hangs_and_so_do_the_others<B: RealServer>() {
    const PING: Duration = Duration::from_secs(2);
    const PATIENT: Duration = Duration::from_millis(500);
    let (_alone, before) = (alone(), Ours::now());
    let mut servers = B::start(3);
    // Nobody else finds out.
    let builder = manager_over(&servers).check_interval(PATIENCE).stall_after(None);
    let builder = builder.ping_idle(Duration::ZERO).ping_timeout(PING);
    let (pool, peers) = pool_of(builder, CONNECTIONS);
    wait_until("the pool is full", PATIENCE, || is_full(&peers));
    for server in &mut servers {
        server.freeze();
    }
    let start = Instant::now();
    // When one has not answered in time the others are not asked.
    drop(pool.get_timeout(PATIENT));
    let took = start.elapsed();
    println!("{}, all frozen: {took:.1?} of {PATIENT:?} and a ping of {PING:?}", name_of::<B>());
    // Three pings would have taken that long, and there are nine connections.
    assert!(took < 3 * PING, "it took {took:?}");
    for server in &mut servers {
        server.thaw();
    }
    wait_until("they serve again", PATIENCE, || pool.get().is_ok());
    drop(pool);
    nothing_is_left(before);
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
    is_killed,
    is_frozen,
    cannot_be_reached_anew,
    vanishes_without_a_word,
    follows_one_that_says_nothing,
    follows_one_that_does_not_accept,
    has_a_name_that_does_not_resolve,
    goes_and_so_do_the_others,
    hangs_and_so_do_the_others,
);
