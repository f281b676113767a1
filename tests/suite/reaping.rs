//! r2d2's reaper closes slots that are too old or idle for too long, a link with each of them. It
//! runs every 30 seconds, so this takes as long.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::r2d2::{CustomizeConnection, Error, Pool};
use diesel_peers::PeerConnection;
use support::backend::{PATIENCE, links, manager_of};
use support::scripted::{ScriptedConnection, Server};
use support::wait_until;

/// Says goodbye to each connection that leaves the pool, as some applications do.
#[derive(Debug, Default)]
struct Goodbye {
    said: Arc<AtomicUsize>,
}

impl CustomizeConnection<PeerConnection<ScriptedConnection>, Error> for Goodbye {
    fn on_release(&self, mut conn: PeerConnection<ScriptedConnection>) {
        // Wherever r2d2 hands a slot out, there is a connection in it.
        conn.batch_execute("SET goodbye").expect("its session lives");
        self.said.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn reaped_slots_take_a_link_along_each() {
    let servers: Vec<_> = (0..3).map(|_| Server::start()).collect();
    let manager = manager_of::<ScriptedConnection>(servers.iter().map(|server| server.url()));
    let manager = manager.build().expect("the settings are right");
    let peers = manager.peers();
    let goodbye = Goodbye::default();
    let said = goodbye.said.clone();
    let pool = Pool::builder()
        .max_size(9)
        .min_idle(Some(6))
        .max_lifetime(Some(Duration::from_secs(1)))
        .idle_timeout(Some(Duration::from_secs(1)))
        .connection_customizer(Box::new(goodbye))
        .build(manager)
        .expect("all peers live");
    // Some are held while the others are reaped.
    let mut held: Vec<_> = (0..9).map(|_| pool.get().expect("there are nine")).collect();
    let idle = held.split_off(3);
    drop(idle);
    wait_until("the idle ones are reaped", PATIENCE, || said.load(Ordering::SeqCst) >= 6);
    for conn in &mut held {
        conn.batch_execute("a query").expect("those in use are left alone");
    }
    drop(held);
    wait_until("the pool is as full as it is told to be", PATIENCE, || {
        pool.state().connections >= 6 && links(&peers).iter().sum::<usize>() >= 6
    });
    // But for those of checks and of logins that are under way just then.
    wait_until("there are as many sessions as are counted", PATIENCE, || {
        let open: usize = servers.iter().map(|server| server.open()).sum();
        open == links(&peers).iter().sum::<usize>()
    });
    assert!(pool.get().is_ok(), "it serves");
    drop(pool);
    wait_until("all sessions end", PATIENCE, || servers.iter().all(|server| server.open() == 0));
}
