//! Ports on loopback that stay reserved while their server is down.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The first port handed out.
///
/// All ports are below the range (from 32768 on) from which Linux takes the local ports of outgoing
/// connections. In that range any connection of the machine could occupy the port of a server that is
/// to be restarted. Worse, a client that repeatedly connects to a closed port sooner or later gets that
/// port as its own local port and connects to itself.
const FIRST: u32 = 20_000;
/// How many ports may be handed out.
const COUNT: u32 = 10_000;

/// A port on which no other program of the tests listens until this is dropped.
#[derive(Debug)]
pub struct Port {
    address: Ipv4Addr,
    number: u16,
    /// A name that only one process of the machine can hold, and that the kernel frees when the process
    /// ends. It keeps other test processes away. Listening on the port cannot do that: a server that is
    /// down must refuse connections.
    claim: Arc<UnixListener>,
}

impl Port {
    /// Returns the port's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Returns the address that the port's server listens on.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }
}

/// Claims a port number and returns it for each of these addresses.
pub fn free_port_at<const N: usize>(addresses: [Ipv4Addr; N]) -> [Port; N] {
    let Port { number, claim, .. } = free_port();
    addresses.map(|address| Port { address, number, claim: claim.clone() })
}

/// Claims a free port.
pub fn free_port() -> Port {
    /// A running number, so that a port is not reused soon after its server has ended.
    static NEXT: AtomicU32 = AtomicU32::new(0);

    // Test processes that start together have similar ids; keep their ports apart.
    let start = process::id().wrapping_mul(101);
    (0..COUNT)
        .find_map(|_| {
            claim(FIRST + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT)
        })
        .expect("a port is free")
}

/// Claims the port `number`, unless another test or another program has it.
fn claim(number: u32) -> Option<Port> {
    let name = SocketAddr::from_abstract_name(format!("diesel-peers-port-{number}")).ok()?;
    let claim = UnixListener::bind_addr(&name).ok()?;
    let number = u16::try_from(number).ok()?;
    TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
    Some(Port { address: Ipv4Addr::LOCALHOST, number, claim: Arc::new(claim) })
}
