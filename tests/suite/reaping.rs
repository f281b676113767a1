//! r2d2's reaper closes slots that are too old or have been idle for too long, and one link with each
//! slot. The reaper runs every 30 seconds, so this test takes that long.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::r2d2::{CustomizeConnection, Error, Pool};
use diesel_peers::PeerConnection;
use support::backend::{PATIENCE, build, links};
use support::scripted::{ScriptedConnection, Servers};
use support::wait_until;

/// Runs a statement on each connection that leaves the pool, as some applications do.
#[derive(Debug, Default)]
struct RunsAtRelease {
    released: Arc<AtomicUsize>,
}

impl CustomizeConnection<PeerConnection<ScriptedConnection>, Error> for RunsAtRelease {
    fn on_release(&self, mut conn: PeerConnection<ScriptedConnection>) {
        // Every slot that r2d2 passes to a customizer holds a link.
        conn.batch_execute("SET released").expect("the session is open");
        self.released.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn reaped_slot_takes_one_link_along() {
    let servers = Servers::start(3);
    let manager = build(servers.builder());
    let peers = manager.peers();
    let customizer = RunsAtRelease::default();
    let released = customizer.released.clone();
    let pool = Pool::builder()
        .max_size(9)
        .min_idle(Some(6))
        .max_lifetime(Some(Duration::from_secs(1)))
        .idle_timeout(Some(Duration::from_secs(1)))
        .connection_customizer(Box::new(customizer))
        .build(manager)
        .expect("all peers are up");
    // Three connections are in use while the other six are reaped.
    let mut in_use: Vec<_> = (0..9).map(|_| pool.get().expect("the pool has nine")).collect();
    let idle = in_use.split_off(3);
    drop(idle);
    wait_until("the idle slots are reaped", PATIENCE, || released.load(Ordering::SeqCst) >= 6);
    for conn in &mut in_use {
        conn.batch_execute("a query").expect("connections in use are not reaped");
    }
    drop(in_use);
    wait_until("the pool has `min_idle` connections again", PATIENCE, || {
        pool.state().connections >= 6 && links(&peers).iter().sum::<usize>() >= 6
    });
    // Health checks and logins in progress open sessions that are not counted.
    wait_until("the number of sessions is the number of links", PATIENCE, || {
        let open: usize = servers.iter().map(|server| server.open()).sum();
        open == links(&peers).iter().sum::<usize>()
    });
    assert!(pool.get().is_ok(), "the pool serves");
    drop(pool);
    wait_until("all sessions end", PATIENCE, || servers.iter().all(|server| server.open() == 0));
}
