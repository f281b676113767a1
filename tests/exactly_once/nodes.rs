//! The nodes of a Galera cluster fail one at a time, so that the others keep the quorum: a node is killed, shut down,
//! or frozen for less time than the others take to evict it.

use std::thread;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use support::backend::PATIENCE;
use support::galera::Cluster;
use support::wait_until;

/// Has one node fail, and waits until it is back.
pub(crate) fn fail_one(cluster: &mut Cluster, rng: &mut SmallRng) {
    let victim = rng.random_range(0..3);
    match rng.random_range(0..4) {
        0 | 1 => {
            cluster.nodes[victim].kill();
            come_back(cluster, victim);
        }
        2 => {
            cluster.nodes[victim].stop();
            come_back(cluster, victim);
        }
        _ => {
            cluster.nodes[victim].freeze();
            // A node is suspected after two seconds.
            thread::sleep(Duration::from_millis(rng.random_range(200..1200)));
            cluster.nodes[victim].thaw();
            cluster.wait_synced();
        }
    }
    thread::sleep(Duration::from_millis(rng.random_range(200..500)));
}

fn come_back(cluster: &mut Cluster, victim: usize) {
    // A node that comes back while the others have not noticed its end may leave the group without a quorum.
    let others_notice = || {
        let mut others = (0..3).filter(|other| *other != victim).map(|at| &cluster.nodes[at]);
        others.all(|node| node.status("wsrep_cluster_size").as_deref() == Some("2"))
    };
    wait_until("the others are a group", PATIENCE, others_notice);
    cluster.nodes[victim].restart();
    cluster.wait_synced();
}
