//! Finds, verifies, inspects, tunes and shuts down the TCP socket of a connection.
//!
//! Client libraries do not expose their sockets. So a connection's socket is searched among the sockets
//! that the process has opened since the login began. Sockets are identified by their inode, because
//! no two sockets have the same inode at the same time. A foreign socket, which belongs to another part
//! of the application, must never be touched. There are two ways to be sure:
//!
//! - [`Proof`]: queries of chosen lengths are run on the connection, and the number of bytes that the
//!   socket has sent grows by exactly these lengths. (Addresses do not tell the connection from a foreign
//!   connection that is opened to the same server at the same moment.)
//! - [`awaited_by`]: during a login no query can be run yet, but the kernel shows on which descriptor a
//!   thread waits.
//!
//! A [`Socket`] is a duplicate of the descriptor. The duplicate is verified after it was created,
//! because at any time another thread may close the original and reuse its number. The duplicate is
//! closed on exec. The flags of a socket belong to all its descriptors, so no flags are changed. No
//! duplicate of a foreign socket is kept: a foreign connection ends, and its port is free, when its owner
//! closes it, and not later.
//!
//! This module holds the only unsafe code of the crate: four system calls.

#![allow(unsafe_code, reason = "std does not offer these calls: see `system`")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use super::Tuning;

/// A duplicate of the descriptor of a connection's socket.
#[derive(Debug)]
pub(crate) struct Socket {
    /// In a test or during a login, the socket may be of another family than TCP. All calls of this module
    /// work for other families too.
    stream: TcpStream,
    /// The descriptor of the client library.
    original: SeenSocket,
    user_timeout: UserTimeout,
}

/// The `TCP_USER_TIMEOUT` that this crate has set, in milliseconds, or 0; and whether it is suspended.
#[derive(Debug, Default)]
struct UserTimeout {
    millis: AtomicI32,
    is_suspended: AtomicBool,
}

/// The number of unanswered keepalive probes after which the kernel gives up a connection.
const KEEPALIVE_PROBES: libc::c_int = 3;

impl Socket {
    /// Whether the socket is open and has nothing to read. An idle connection has such
    /// a socket.
    pub(crate) fn is_quiet(&self) -> bool {
        system::has_nothing_to_read(self.stream.as_raw_fd())
    }

    /// Whether the connection has ended: the other end has closed or reset it, it has timed out, or it was
    /// shut down. Bytes that arrived before the end may still be unread.
    pub(crate) fn has_ended(&self) -> bool {
        !system::is_established(self.stream.as_raw_fd())
    }

    /// Whether the client library has closed its descriptor, as it does when it gives up a connection.
    pub(crate) fn is_abandoned(&self) -> bool {
        inode(self.original.fd) != Some(self.original.inode)
    }

    /// Ends the connection. Every thread that waits on the socket is woken with an error or an end of file.
    pub(crate) fn shut_down(&self) {
        // The call fails if the connection is closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Sets the options by which the kernel notices that the other machine has vanished.
    pub(crate) fn tune(&self, tuning: Tuning) {
        let set =
            |level, name, value| system::set_option(self.stream.as_raw_fd(), level, name, value);
        // If the kernel refuses an option, the connection works without it.
        if let Some(idle) = tuning.keepalive {
            set(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds(idle));
            set(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, seconds(idle / 3));
            set(libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEPALIVE_PROBES);
            set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
        }
        if let Some(timeout) = tuning.user_timeout {
            let millis = timeout.as_millis().try_into().unwrap_or(libc::c_int::MAX);
            set(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, millis);
            self.user_timeout.millis.store(millis, Ordering::Relaxed);
        }
    }

    /// Suspends `TCP_USER_TIMEOUT` while the other end does not read, and restores it afterwards. The kernel
    /// lets it expire as well when the window is closed, although the other end answers each of its probes.
    ///
    /// Must be called more often than the timeout expires. Only the checker calls this.
    pub(crate) fn spare_closed_window(&self) {
        let UserTimeout { millis, is_suspended } = &self.user_timeout;
        let millis = millis.load(Ordering::Relaxed);
        if millis == 0 {
            return;
        }
        let fd = self.stream.as_raw_fd();
        let is_closed = system::is_window_closed(fd);
        if is_suspended.swap(is_closed, Ordering::Relaxed) != is_closed {
            let millis = if is_closed { 0 } else { millis };
            system::set_option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, millis);
        }
    }

    /// Whether the timeout is suspended.
    pub(crate) fn spares_closed_window(&self) -> bool {
        self.user_timeout.is_suspended.load(Ordering::Relaxed)
    }

    fn new(stream: TcpStream, original: SeenSocket) -> Self {
        Self { stream, original, user_timeout: UserTimeout::default() }
    }

    /// Returns the number of bytes that have come from the other end, or `None` if this is not a TCP
    /// socket.
    pub(crate) fn received(&self) -> Option<u64> {
        system::traffic(self.stream.as_raw_fd()).map(|traffic| traffic.received)
    }

    /// Whether the other end has accepted the connection.
    pub(crate) fn is_connected(&self) -> bool {
        self.stream.peer_addr().is_ok()
    }

    /// Returns the addresses of this end and of the other one.
    pub(crate) fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        Some((self.stream.local_addr().ok()?, self.stream.peer_addr().ok()?))
    }

    /// Returns how long ago data last came from the other end, or a little more. `None` if this is not a TCP
    /// socket.
    pub(crate) fn since_received(&self) -> Option<Duration> {
        system::since_received(self.stream.as_raw_fd())
    }

    /// Whether `thread` waits for this socket in the kernel. `None` if the kernel does not show that of any
    /// thread.
    pub(crate) fn is_awaited_by(&self, thread: Thread) -> Option<bool> {
        let own = inode(self.stream.as_raw_fd())?;
        match thread.awaited_descriptor() {
            Some(fd) => Some(inode(fd) == Some(own)),
            None => Thread::current()?.call().map(|_| false),
        }
    }
}

#[cfg(test)]
impl Socket {
    /// Creates a socket for tests that need any socket.
    pub(crate) fn from_listener() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let original = SeenSocket { fd: listener.as_raw_fd(), inode: 0 };
        Self::new(TcpStream::from(std::os::fd::OwnedFd::from(listener)), original)
    }
}

fn seconds(duration: Duration) -> libc::c_int {
    duration.as_secs().clamp(1, 32_767).try_into().expect("the clamped value fits")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Traffic {
    sent: u64,
    received: u64,
}

/// The sockets that the process had at a point in time.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// In ascending order. `None` if they could not be listed, because the process has no descriptor left:
    /// then no socket is known to be newer.
    inodes: Option<Vec<u64>>,
}

impl Sockets {
    /// Lists all open sockets of the process, whichever code has opened them.
    pub(crate) fn list() -> Self {
        let inodes = socket_descriptors().map(|descriptors| {
            let mut inodes: Vec<u64> = descriptors.map(|(_, inode)| inode).collect();
            inodes.sort_unstable();
            inodes
        });
        Self { inodes }
    }

    /// Whether this socket was opened after the list was made.
    fn is_newer(&self, inode: u64) -> bool {
        self.inodes.as_ref().is_some_and(|inodes| inodes.binary_search(&inode).is_err())
    }

    /// Returns the TCP sockets that were opened after this list was made, and the bytes that they have
    /// carried so far.
    fn opened_since(&self) -> Vec<(SeenSocket, Traffic)> {
        let mut new = BTreeMap::new();
        for (fd, inode) in socket_descriptors().into_iter().flatten() {
            // A socket may have several descriptors (such as the duplicates that this module creates), and
            // some of them may be closed meanwhile.
            if self.is_newer(inode) && !new.contains_key(&inode) {
                let seen = SeenSocket { fd, inode };
                new.extend(seen.traffic().map(|traffic| (inode, (seen, traffic))));
            }
        }
        new.into_values().collect()
    }
}

/// A socket that may be foreign, and the descriptor under which it was seen. It is only inspected.
#[derive(Debug, Clone, Copy)]
struct SeenSocket {
    fd: RawFd,
    inode: u64,
}

impl SeenSocket {
    /// Returns the numbers of bytes that were sent to and received from the other end. Returns `None` if
    /// this is not a TCP socket, or the descriptor is no longer this socket.
    fn traffic(self) -> Option<Traffic> {
        let traffic = system::traffic(self.fd)?;
        (inode(self.fd) == Some(self.inode)).then_some(traffic)
    }
}

/// The candidates for the socket of a new connection, until one of them is proved to be the socket.
#[derive(Debug)]
pub(crate) struct Proof {
    candidates: Vec<Candidate>,
}

/// A socket that may be the connection's, with its last traffic and the growth by each query.
#[derive(Debug)]
struct Candidate {
    seen: SeenSocket,
    last: Traffic,
    growths: Vec<Traffic>,
}

impl Proof {
    /// Begins a proof with the TCP sockets that were opened since `before`. Returns `None` if there are
    /// none, because then the connection has no TCP socket.
    pub(crate) fn begin(before: &Sockets) -> Option<Self> {
        let candidates: Vec<_> = before
            .opened_since()
            .into_iter()
            .map(|(seen, last)| Candidate { seen, last, growths: Vec::new() })
            .collect();
        (!candidates.is_empty()).then_some(Self { candidates })
    }

    /// Records the traffic of one query that was run on the connection and answered.
    pub(crate) fn query_answered(&mut self) {
        self.candidates.retain_mut(|Candidate { seen, last, growths }| {
            let Some(now) = seen.traffic() else { return false };
            growths.push(Traffic {
                sent: now.sent.saturating_sub(last.sent),
                received: now.received.saturating_sub(last.received),
            });
            *last = now;
            true
        });
    }

    /// Ends the proof, and returns the one socket whose traffic matches queries of these `lengths`: the
    /// bytes sent differ as the lengths do, each query was answered, and nothing else was sent. Returns
    /// `None` unless exactly one socket matches, because a foreign socket must never be returned.
    pub(crate) fn end(self, lengths: &[u64]) -> Option<Socket> {
        let mut proved = self.candidates.into_iter().filter(|Candidate { seen, last, growths }| {
            // The protocol's overhead around the text of a query is the same for each query.
            let overheads = growths.iter().zip(lengths).map(|(growth, length)| {
                growth.sent.checked_sub(*length).filter(|_| growth.received > 0)
            });
            let overheads: Vec<Option<u64>> = overheads.collect();
            overheads.len() == lengths.len()
                && overheads.iter().all(|overhead| overhead.is_some() && *overhead == overheads[0])
                && seen.traffic().is_some_and(|now| now.sent == last.sent)
        });
        let Candidate { seen, .. } = proved.next()?;
        if proved.next().is_some() {
            return None;
        }
        duplicate(seen.fd, seen.inode)
    }
}

/// A thread of this process: the number by which the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thread(NonZeroU32);

impl Thread {
    /// Returns the calling thread.
    pub(crate) fn current() -> Option<Self> {
        let directory = fs::read_link("/proc/thread-self").ok()?;
        Some(Self(directory.file_name()?.to_str()?.parse().ok()?))
    }

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    pub(crate) fn number(self) -> u32 {
        self.0.get()
    }

    /// Returns the call in which the thread waits in the kernel, as the kernel shows it. (The kernel always
    /// lets a process inspect its own threads, whatever else it forbids.)
    fn call(self) -> Option<String> {
        fs::read_to_string(format!("/proc/self/task/{}/syscall", self.0)).ok()
    }

    /// Returns the descriptor on which the thread waits in the kernel.
    fn awaited_descriptor(self) -> Option<RawFd> {
        let call = self.call()?;
        let mut words = call.split_whitespace();
        let number: libc::c_long = words.next()?.parse().ok()?;
        let mut argument = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        if system::WAIT_ON_ONE_DESCRIPTOR.contains(&number) {
            return argument()?.try_into().ok();
        }
        if !system::WAIT_ON_DESCRIPTORS.contains(&number) {
            return None;
        }
        let (list, count) = (argument()?, argument()?);
        let mut polled = [0; size_of::<libc::pollfd>()];
        File::open("/proc/self/mem").ok()?.read_exact_at(&mut polled, list).ok()?;
        let fd = RawFd::from_ne_bytes(*polled.first_chunk()?);
        (count == 1).then_some(fd)
    }
}

/// Returns the socket on which `thread` waits, if the socket was opened since `before` and is not a TCP
/// connection to another port than this one. (An instrumentation that is called in the middle of a login may
/// wait for a connection of its own.)
pub(crate) fn awaited_by(thread: Thread, before: &Sockets, port: Option<u16>) -> Option<Socket> {
    let fd = thread.awaited_descriptor()?;
    let inode = inode(fd)?;
    if !before.is_newer(inode) {
        return None;
    }
    let socket = duplicate(fd, inode)?;
    // A socket that is not connected yet has no other end.
    let other_end = socket.stream.peer_addr().ok().filter(|_| socket.received().is_some());
    if other_end.zip(port).is_some_and(|(other_end, port)| other_end.port() != port) {
        return None;
    }
    // While the thread waits on this descriptor, the descriptor belongs to the thread's socket. While the
    // duplicate is open, no other socket has this inode.
    (thread.awaited_descriptor() == Some(fd) && self::inode(fd) == Some(inode)).then_some(socket)
}

/// Returns the descriptors and inodes of all sockets of this process, if they can be listed.
fn socket_descriptors() -> Option<impl Iterator<Item = (RawFd, u64)>> {
    let entries = fs::read_dir("/proc/self/fd").ok()?.flatten();
    Some(entries.filter_map(|entry| {
        let fd: RawFd = entry.file_name().to_str()?.parse().ok()?;
        Some((fd, inode(fd)?))
    }))
}

/// Returns the inode of a descriptor, if it is a socket.
fn inode(fd: RawFd) -> Option<u64> {
    inode_of(&target(fd)?)
}

fn inode_of(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Returns what a descriptor leads to: the path of a file, or a kind and an inode (`socket:[42]`).
fn target(fd: RawFd) -> Option<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{fd}")).ok()
}

/// Duplicates this descriptor. Returns `None` if the descriptor is not (or no longer) this socket.
fn duplicate(fd: RawFd, inode: u64) -> Option<Socket> {
    let duplicate = system::duplicate(fd)?;
    let target = target(duplicate.as_raw_fd())?;
    if inode_of(&target) == Some(inode) {
        let original = SeenSocket { fd, inode };
        return Some(Socket::new(TcpStream::from(duplicate), original));
    }
    if target.is_absolute() {
        // Meanwhile the number was reused for a file. The duplicate must not be closed: closing any
        // descriptor of a file releases all locks that the process has on the file, such as SQLite's.
        let _ = duplicate.into_raw_fd();
    }
    None
}

mod system {
    //! The system calls.

    use std::io;
    use std::os::fd::{FromRawFd, OwnedFd, RawFd};
    use std::time::Duration;

    use super::Traffic;

    /// The calls that wait on the descriptor that is their first argument.
    pub(super) const WAIT_ON_ONE_DESCRIPTOR: [libc::c_long; 8] = [
        libc::SYS_connect,
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_write,
    ];

    /// The calls that wait on a list of descriptors.
    #[cfg(target_arch = "x86_64")]
    pub(super) const WAIT_ON_DESCRIPTORS: [libc::c_long; 2] = [libc::SYS_poll, libc::SYS_ppoll];
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const WAIT_ON_DESCRIPTORS: [libc::c_long; 1] = [libc::SYS_ppoll];

    pub(super) fn duplicate(fd: RawFd) -> Option<OwnedFd> {
        // SAFETY: no memory is involved, and for a number that is not open the kernel returns an error.
        let duplicate = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        // SAFETY: the kernel has just created the descriptor, and nothing else owns it.
        (duplicate >= 0).then(|| unsafe { OwnedFd::from_raw_fd(duplicate) })
    }

    pub(super) fn has_nothing_to_read(fd: RawFd) -> bool {
        let mut byte = 0_u8;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: the buffer is one byte long, and outlives the call.
        let read = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, flags) };
        read < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
    }

    /// Whether this is an open TCP connection that neither end has begun to close, as far as the kernel
    /// knows.
    pub(super) fn is_established(fd: RawFd) -> bool {
        // The state is the first byte of `struct tcp_info`.
        const TCP_ESTABLISHED: u8 = 1;
        let mut state = 0_u8;
        let mut size: libc::socklen_t = 1;
        let into = (&raw mut state).cast();
        // SAFETY: the buffer has the size that is passed, and any byte is a valid value of it.
        let outcome =
            unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut size) };
        outcome == 0 && state == TCP_ESTABLISHED
    }

    pub(super) fn set_option(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
        let size = size_of_val(&value).try_into().expect("the size is small");
        // SAFETY: the value has the size that is passed, and outlives the call.
        unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size) };
    }

    /// The positions, in words of eight bytes, of the byte counters in the kernel's `struct tcp_info`
    /// (Linux 4.19 and newer). The `libc` crate does not define these fields for every C library. The
    /// kernel only ever adds fields at the end.
    const BYTES_RECEIVED: usize = 128 / 8;
    const BYTES_SENT: usize = 200 / 8;
    const BYTES_RETRANSMITTED: usize = 208 / 8;

    /// The word of eight bytes whose second half is the time since data last came, in milliseconds.
    const SINCE_RECEIVED: usize = 48 / 8;

    /// The kernel's clock of that time ticks this often at least.
    const TICK: Duration = Duration::from_millis(10);

    /// The positions, in bytes, of two older fields: the number of times that a timer was doubled, and the
    /// number of packets that were sent and not acknowledged.
    const BACKOFF: usize = 4;
    const UNACKNOWLEDGED: usize = 24;

    fn info<const WORDS: usize>(fd: RawFd) -> Option<[u64; WORDS]> {
        let mut info = [0_u64; WORDS];
        let mut size: libc::socklen_t = size_of_val(&info).try_into().expect("the size is small");
        let into = (&raw mut info).cast();
        // SAFETY: the buffer has the size that is passed, and any bytes are a valid value of it.
        let outcome =
            unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut size) };
        // An older kernel returns fewer fields.
        let is_whole = usize::try_from(size) == Ok(size_of_val(&info));
        (outcome == 0 && is_whole).then_some(info)
    }

    pub(super) fn traffic(fd: RawFd) -> Option<Traffic> {
        let info = info::<{ BYTES_RETRANSMITTED + 1 }>(fd)?;
        Some(Traffic {
            sent: info[BYTES_SENT].saturating_sub(info[BYTES_RETRANSMITTED]),
            received: info[BYTES_RECEIVED],
        })
    }

    pub(super) fn since_received(fd: RawFd) -> Option<Duration> {
        let info = info::<{ SINCE_RECEIVED + 1 }>(fd)?;
        let [_, _, _, _, millis @ ..] = info[SINCE_RECEIVED].to_ne_bytes();
        Some(Duration::from_millis(u32::from_ne_bytes(millis).into()) + TICK)
    }

    /// Whether the kernel only waits for the other end to open its window: a timer is doubled although
    /// everything that was sent has been acknowledged.
    pub(super) fn is_window_closed(fd: RawFd) -> bool {
        info::<{ UNACKNOWLEDGED / 8 + 1 }>(fd).is_some_and(|info| {
            let byte = |at: usize| info[at / 8].to_ne_bytes()[at % 8];
            let unacknowledged = [0, 1, 2, 3].map(|offset| byte(UNACKNOWLEDGED + offset));
            byte(BACKOFF) > 0 && u32::from_ne_bytes(unacknowledged) == 0
        })
    }
}

#[cfg(test)]
mod tests;
