//! Two managers in one process share nothing.

use diesel::r2d2::ManageConnection;
use diesel_peers::PeerState;
use support::backend::{manager_of, state};
use support::scripted::{ScriptedConnection, Server};

#[test]
fn a_mark_in_one_manager_is_none_in_the_other() {
    let server = Server::start();
    let build = || {
        manager_of::<ScriptedConnection>([server.url()]).build().expect("the settings are right")
    };
    let (one, other) = (build(), build());
    let conn = one.connect().expect("the peer lives");
    server.crash();
    assert!(one.connect().is_err(), "the peer is down");
    assert_eq!(state(&one.peers(), "peer0"), PeerState::Down, "which this one has seen");
    assert_eq!(state(&other.peers(), "peer0"), PeerState::Up, "and the other has not");
    assert_eq!(one.peers().snapshot().peers[0].connections, 1, "its connection is counted here");
    assert_eq!(other.peers().snapshot().peers[0].connections, 0, "and not there");
    drop(one);
    assert!(!other.peers().snapshot().closed, "one's end is not the other's");
    drop(conn);
}
