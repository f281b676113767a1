//! Two managers in one process share no state.

use diesel::r2d2::ManageConnection;
use diesel_peers::{PeerState, Peers};
use support::backend::{build, state, status};
use support::scripted::Servers;

#[test]
fn managers_of_the_same_server_share_neither_marks_nor_counters() {
    let servers = Servers::start(1);
    let (first, second) = (build(servers.builder()), build(servers.builder()));
    let conn = first.connect().expect("the peer is up");
    servers[0].crash();
    assert!(first.connect().is_err(), "the server has crashed");
    assert_eq!(state(&first.peers(), "peer0"), PeerState::Down, "the first manager has tried it");
    assert_eq!(state(&second.peers(), "peer0"), PeerState::Up, "the second manager has not");
    let connections = |peers: Peers| status(&peers, "peer0").connections;
    assert_eq!(connections(first.peers()), 1, "the first manager counts its connection");
    assert_eq!(connections(second.peers()), 0, "the second manager has no connection");
    drop(first);
    assert!(!second.peers().snapshot().closed, "the second manager outlives the first");
    drop(conn);
}
