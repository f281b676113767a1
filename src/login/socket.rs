//! The TCP socket under a connection: found, proved to be its own, looked at, tuned, shut down.
//!
//! Client libraries do not show their sockets, so one is looked for among those that the process has
//! opened since the login began, by the inode, which is never two sockets' at a time. A socket of
//! somebody else's must never be touched, hence two ways to be sure:
//!
//! - [`Proof`]: queries of chosen lengths were run on the connection, and the bytes that the socket
//!   has sent grew by just those. (A stranger who dials the same server at the same moment cannot be
//!   told apart by addresses.)
//! - [`awaited_by`]: during a login nothing can be asked yet, but the kernel tells on which descriptor
//!   a thread waits.
//!
//! What is kept is a duplicate of the descriptor, verified after it was made, as another thread may
//! close the original and be given its number at any time. It is closed on exec. The flags of a
//! socket belong to all its descriptors, so none are changed. Nothing else is duplicated: a stranger's
//! connection ends, and its port is free, when the stranger closes it, and not later.
//!
//! The only unsafe code of the crate: four system calls.

#![allow(unsafe_code, reason = "what std does not offer: see `system`")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::settings::Tuning;

/// A duplicate of the descriptor of a connection's socket.
#[derive(Debug)]
pub(crate) struct Socket {
    /// In a test or for a login it may be of another family: none of what is called here minds.
    stream: TcpStream,
}

/// How often the kernel asks again before it gives a connection up.
const KEEPALIVE_PROBES: libc::c_int = 3;

impl Socket {
    /// Whether nothing has arrived, and nothing has ended: a connection at rest.
    pub(crate) fn is_quiet(&self) -> bool {
        system::has_nothing_to_read(self.stream.as_raw_fd())
    }

    /// Ends the connection: whoever waits on it, in whatever thread, gets an error.
    pub(crate) fn shut_down(&self) {
        // What is closed already is not connected.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Has the kernel notice a peer that vanished.
    pub(crate) fn tune(&self, tuning: Tuning) {
        let set =
            |level, name, value| system::set_option(self.stream.as_raw_fd(), level, name, value);
        // A kernel that refuses one of these goes on as it would have.
        if let Some(idle) = tuning.keepalive {
            set(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds(idle));
            set(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, seconds(idle / 3));
            set(libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEPALIVE_PROBES);
            set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
        }
        if let Some(timeout) = tuning.user_timeout {
            let millis = timeout.as_millis().try_into().unwrap_or(libc::c_int::MAX);
            set(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, millis);
        }
    }

    /// How many bytes have come from the other end. `None` for what is not a TCP socket.
    pub(crate) fn received(&self) -> Option<u64> {
        system::traffic(self.stream.as_raw_fd()).map(|traffic| traffic.received)
    }
}

#[cfg(test)]
impl Socket {
    /// Any socket will do.
    pub(crate) fn of_listener() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("there are ports");
        Self { stream: TcpStream::from(std::os::fd::OwnedFd::from(listener)) }
    }
}

fn seconds(duration: Duration) -> libc::c_int {
    duration.as_secs().clamp(1, 32_767).try_into().expect("it fits")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Traffic {
    sent: u64,
    received: u64,
}

/// The sockets that the process had at one time.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// In ascending order.
    inodes: Vec<u64>,
}

impl Sockets {
    /// All that there are now, whoever has opened them.
    pub(crate) fn of_this_process() -> Self {
        let mut inodes: Vec<u64> = descriptors().map(|(_, inode)| inode).collect();
        inodes.sort_unstable();
        Self { inodes }
    }

    /// The TCP sockets that there are now and were not then, and what they have carried so far.
    fn opened_since(&self) -> Vec<(Place, Traffic)> {
        let mut new = BTreeMap::new();
        for (fd, inode) in descriptors() {
            // One may have several descriptors, and some of them may be closed meanwhile: duplicates,
            // such as those that are made here.
            if self.inodes.binary_search(&inode).is_err() && !new.contains_key(&inode) {
                let place = Place { fd, inode };
                new.extend(place.traffic().map(|traffic| (inode, (place, traffic))));
            }
        }
        new.into_values().collect()
    }
}

/// A socket that may be a stranger's, where it was seen: it is only looked at.
#[derive(Debug, Clone, Copy)]
struct Place {
    fd: RawFd,
    inode: u64,
}

impl Place {
    /// The bytes that were sent to the other end, and those that came from it. `None` for what is
    /// not a TCP socket, or not there any more.
    fn traffic(self) -> Option<Traffic> {
        let traffic = system::traffic(self.fd)?;
        (inode(self.fd) == Some(self.inode)).then_some(traffic)
    }
}

/// The sockets among which a new connection's must be, until it is proved which one it is.
#[derive(Debug)]
pub(crate) struct Proof {
    candidates: Vec<(Place, Traffic, Vec<Traffic>)>,
}

impl Proof {
    /// The sockets that were opened since `before`. `None` when there are none: the connection has no
    /// TCP socket.
    pub(crate) fn begin(before: &Sockets) -> Option<Self> {
        let candidates: Vec<_> = before
            .opened_since()
            .into_iter()
            .map(|(place, traffic)| (place, traffic, Vec::new()))
            .collect();
        (!candidates.is_empty()).then_some(Self { candidates })
    }

    /// A query was made on the connection, and answered.
    pub(crate) fn query_answered(&mut self) {
        self.candidates.retain_mut(|(place, last, growths)| {
            let Some(now) = place.traffic() else { return false };
            growths.push(Traffic {
                sent: now.sent.saturating_sub(last.sent),
                received: now.received.saturating_sub(last.received),
            });
            *last = now;
            true
        });
    }

    /// The one socket that has sent queries of these lengths, as far as they differ from each other,
    /// was answered each time, and has rested otherwise. `None` if there is not just one: rather none
    /// than a stranger's.
    pub(crate) fn end(self, lengths: &[u64]) -> Option<Socket> {
        let mut proved = self.candidates.into_iter().filter(|(place, last, growths)| {
            // What a query's bytes are wrapped in is the same for each.
            let wrappings = growths.iter().zip(lengths).map(|(growth, length)| {
                growth.sent.checked_sub(*length).filter(|_| growth.received > 0)
            });
            let wrappings: Vec<Option<u64>> = wrappings.collect();
            wrappings.len() == lengths.len()
                && wrappings.iter().all(|one| one.is_some() && *one == wrappings[0])
                && place.traffic().is_some_and(|now| now.sent == last.sent)
        });
        let (place, ..) = proved.next()?;
        if proved.next().is_some() {
            return None;
        }
        duplicate(place.fd, place.inode)
    }
}

/// A thread of this process, as the kernel knows it.
#[derive(Debug)]
pub(crate) struct Thread {
    folder: PathBuf,
}

impl Thread {
    /// The calling thread.
    pub(crate) fn current() -> Option<Self> {
        let folder = fs::read_link("/proc/thread-self").ok()?;
        Some(Self { folder: PathBuf::from("/proc").join(folder) })
    }

    /// The descriptor on which it waits in the kernel. (The kernel lets a process look at its own
    /// threads, whatever else it forbids.)
    fn awaits(&self) -> Option<RawFd> {
        let call = fs::read_to_string(self.folder.join("syscall")).ok()?;
        let mut words = call.split_whitespace();
        let number: libc::c_long = words.next()?.parse().ok()?;
        let mut argument = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        if system::TAKES_A_DESCRIPTOR.contains(&number) {
            return argument()?.try_into().ok();
        }
        if !system::TAKES_DESCRIPTORS.contains(&number) {
            return None;
        }
        let (list, count) = (argument()?, argument()?);
        let mut polled = [0; size_of::<libc::pollfd>()];
        File::open("/proc/self/mem").ok()?.read_exact_at(&mut polled, list).ok()?;
        let fd = RawFd::from_ne_bytes(*polled.first_chunk()?);
        (count == 1).then_some(fd)
    }
}

/// The socket on which `thread` waits, if it was opened since `before`.
pub(crate) fn awaited_by(thread: &Thread, before: &Sockets) -> Option<Socket> {
    let fd = thread.awaits()?;
    let inode = inode(fd)?;
    if before.inodes.binary_search(&inode).is_ok() {
        return None;
    }
    let socket = duplicate(fd, inode)?;
    // While it waits on that number, the number is its socket's; and while the duplicate is open the
    // inode is nobody else's.
    (thread.awaits() == Some(fd) && self::inode(fd) == Some(inode)).then_some(socket)
}

/// The sockets of this process: descriptors and inodes.
fn descriptors() -> impl Iterator<Item = (RawFd, u64)> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let fd: RawFd = entry.file_name().to_str()?.parse().ok()?;
        Some((fd, inode(fd)?))
    })
}

/// The inode of a descriptor that is a socket.
fn inode(fd: RawFd) -> Option<u64> {
    inode_of(&target(fd)?)
}

fn inode_of(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// What a descriptor is: the path of a file, or a word and an inode.
fn target(fd: RawFd) -> Option<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{fd}")).ok()
}

/// A duplicate of this descriptor, if it is (still) this socket.
fn duplicate(fd: RawFd, inode: u64) -> Option<Socket> {
    let duplicate = system::duplicate(fd)?;
    let target = target(duplicate.as_raw_fd())?;
    if inode_of(&target) == Some(inode) {
        return Some(Socket { stream: TcpStream::from(duplicate) });
    }
    if target.is_absolute() {
        // Meanwhile the number was given to a file. It must not be closed: closing any descriptor of a
        // file ends all locks that the process has on it, SQLite's for one.
        let _ = duplicate.into_raw_fd();
    }
    None
}

mod system {
    //! The system calls.

    use std::io;
    use std::os::fd::{FromRawFd, OwnedFd, RawFd};

    use super::Traffic;

    /// Those that wait on the descriptor that is their first argument.
    pub(super) const TAKES_A_DESCRIPTOR: [libc::c_long; 8] = [
        libc::SYS_connect,
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_write,
    ];

    /// Those that wait on a list of descriptors.
    #[cfg(target_arch = "x86_64")]
    pub(super) const TAKES_DESCRIPTORS: [libc::c_long; 2] = [libc::SYS_poll, libc::SYS_ppoll];
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const TAKES_DESCRIPTORS: [libc::c_long; 1] = [libc::SYS_ppoll];

    pub(super) fn duplicate(fd: RawFd) -> Option<OwnedFd> {
        // SAFETY: no memory is involved; of a number that is not open the kernel says so.
        let duplicate = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        // SAFETY: the kernel has just made it, and nobody else has it.
        (duplicate >= 0).then(|| unsafe { OwnedFd::from_raw_fd(duplicate) })
    }

    pub(super) fn has_nothing_to_read(fd: RawFd) -> bool {
        let mut byte = 0_u8;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: the buffer is one byte long, and outlives the call.
        let read = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, flags) };
        read < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
    }

    pub(super) fn set_option(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
        let size = size_of_val(&value).try_into().expect("it is small");
        // SAFETY: the value is as long as is said, and outlives the call.
        unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size) };
    }

    /// Where in `struct tcp_info`, in words of eight bytes, the kernel (4.19 and newer) counts bytes. The
    /// `libc` crate does not know these fields on every C library; the kernel only ever adds to the
    /// end.
    const BYTES_RECEIVED: usize = 128 / 8;
    const BYTES_SENT: usize = 200 / 8;
    const BYTES_RETRANSMITTED: usize = 208 / 8;

    pub(super) fn traffic(fd: RawFd) -> Option<Traffic> {
        let mut info = [0_u64; BYTES_RETRANSMITTED + 1];
        let mut size: libc::socklen_t = size_of_val(&info).try_into().expect("it is small");
        let into = (&raw mut info).cast();
        // SAFETY: the buffer is as long as is said, and any bytes are a valid value of it.
        let outcome =
            unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut size) };
        // An older kernel tells less.
        let is_whole = usize::try_from(size) == Ok(size_of_val(&info));
        (outcome == 0 && is_whole).then(|| Traffic {
            sent: info[BYTES_SENT].saturating_sub(info[BYTES_RETRANSMITTED]),
            received: info[BYTES_RECEIVED],
        })
    }
}

#[cfg(test)]
mod tests;
