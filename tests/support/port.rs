//! Ports on loopback that stay ours while their server is down.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The first port handed out.
///
/// All lie below the range (from 32768 on) from which Linux takes the local ports of outgoing
/// connections. There, any connection of the machine could sit on the port of a server that is
/// to be restarted. Worse, a client that tries again and again to reach a dead port is sooner or
/// later given that very port as its own and connects to itself.
const FIRST: u32 = 20_000;
/// How many ports may be handed out.
const COUNT: u32 = 10_000;

/// A port on which nobody else listens, from now on until this is dropped.
#[derive(Debug)]
pub struct Port {
    address: Ipv4Addr,
    number: u16,
    /// A name that only one process of the machine can hold, and that the kernel frees when we
    /// die. It keeps other test processes away where listening on the port cannot: a server that
    /// is down must refuse connections.
    claim: Arc<UnixListener>,
}

impl Port {
    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// The address that its server listens on.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }
}

/// The same free port at each of these addresses.
pub fn free_port_at<const N: usize>(addresses: [Ipv4Addr; N]) -> [Port; N] {
    let Port { number, claim, .. } = free_port();
    addresses.map(|address| Port { address, number, claim: claim.clone() })
}

/// Claims a free port.
pub fn free_port() -> Port {
    /// Counts on, so that a port is not used again soon after its server has gone.
    static NEXT: AtomicU32 = AtomicU32::new(0);

    // Test processes that start together have nearby ids; keep their ports apart.
    let start = process::id().wrapping_mul(101);
    (0..COUNT)
        .find_map(|_| {
            claim(FIRST + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT)
        })
        .expect("a free port")
}

/// The port `number`, if neither another test nor another program has it.
fn claim(number: u32) -> Option<Port> {
    let name = SocketAddr::from_abstract_name(format!("diesel-peers-port-{number}")).ok()?;
    let claim = UnixListener::bind_addr(&name).ok()?;
    let number = u16::try_from(number).ok()?;
    TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
    Some(Port { address: Ipv4Addr::LOCALHOST, number, claim: Arc::new(claim) })
}
