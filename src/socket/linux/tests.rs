//! These tests need no database: they use plain sockets on the loopback interface. Other tests run in
//! the same process at the same time, so there are always foreign sockets.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::*;

const V4: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const V6: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 0);

/// Longer than any working operation takes.
const TIMEOUT: Duration = Duration::from_secs(20);

#[expect(clippy::disallowed_methods, reason = "these tests wait for the kernel")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "these tests wait for the kernel")]
fn pause() {
    thread::sleep(Duration::from_millis(1));
}

#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = now() + TIMEOUT;
    while !condition() {
        assert!(now() < end, "this did not happen within {TIMEOUT:?}: {what}");
        pause();
    }
}

/// Stops the threads of a scope on drop, also when the test panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Answers each message with one byte. A message follows its length.
fn answer(mut stream: impl Read + Write) {
    let mut length = [0; 4];
    while stream.read_exact(&mut length).is_ok() {
        let length = u32::from_be_bytes(length).try_into().expect("the message is short");
        if stream.read_exact(&mut vec![0; length]).is_err() || stream.write_all(b"!").is_err() {
            return;
        }
    }
}

/// Sends a query of this length, and reads the answer.
fn ask(stream: &mut (impl Read + Write), length: u64) {
    let length = u32::try_from(length).expect("the message is short");
    let mut message = length.to_be_bytes().to_vec();
    message.resize(4 + usize::try_from(length).expect("the message is short"), 0);
    stream.write_all(&message).expect("the server reads");
    stream.read_exact(&mut [0]).expect("the server answers");
}

/// A server that answers every client.
struct Server {
    address: SocketAddr,
    stopped: std::sync::Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("a port is free");
        let address = listener.local_addr().expect("the listener is bound");
        let stopped = std::sync::Arc::new(AtomicBool::new(false));
        let is_stopped = stopped.clone();
        let thread = thread::Builder::new().name("server".to_owned()).spawn(move || {
            for stream in listener.incoming().flatten() {
                if is_stopped.load(Ordering::Relaxed) {
                    return;
                }
                let session = thread::Builder::new().name("session".to_owned());
                session.spawn(move || answer(stream)).expect("a thread can be started");
            }
        });
        Self { address, stopped, thread: Some(thread.expect("a thread can be started")) }
    }

    fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).expect("the server listens")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // The thread waits for a connection, so this opens one.
        if TcpStream::connect(self.address).is_ok() {
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }
}

/// Returns two lengths with a unique difference, which no other test of this file uses. The messages of
/// foreign connections always differ by a multiple of four.
fn lengths() -> [u64; 2] {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    [16, 17 + 16 * NEXT.fetch_add(1, Ordering::Relaxed)]
}

/// Proves which socket belongs to `stream`, in the way of a login.
fn prove(before: &Sockets, stream: &mut (impl Read + Write), lengths: [u64; 2]) -> Option<Socket> {
    let mut proof = Proof::begin(before)?;
    for length in lengths {
        ask(stream, length);
        proof.query_answered();
    }
    proof.end(&lengths)
}

#[track_caller]
fn inode_of(descriptor: &impl AsRawFd) -> u64 {
    inode(descriptor.as_raw_fd()).expect("the descriptor is a socket")
}

#[track_caller]
fn assert_is(found: Option<&Socket>, stream: &TcpStream) {
    let found = found.expect("the socket is found");
    assert_eq!(inode_of(&found.stream), inode_of(stream), "the socket is the connection's own");
}

#[test]
fn socket_is_found_among_many_by_the_lengths_of_its_queries() {
    let server = Server::start(V4);
    let before = Sockets::list();
    let mut streams: Vec<_> = (0..50).map(|_| server.dial()).collect();
    for index in [0, 17, 49] {
        let found = prove(&before, &mut streams[index], lengths());
        assert_is(found.as_ref(), &streams[index]);
    }
}

#[test]
fn ipv6_socket_is_found() {
    let server = Server::start(V6);
    let before = Sockets::list();
    let mut stream = server.dial();
    let found = prove(&before, &mut stream, lengths());
    assert_is(found.as_ref(), &stream);
}

#[test]
fn socket_that_is_older_than_the_login_is_not_found() {
    let server = Server::start(V4);
    let mut stream = server.dial();
    let before = Sockets::list();
    assert!(
        prove(&before, &mut stream, lengths()).is_none(),
        "a socket that is older than the login is not found"
    );
}

#[test]
fn no_socket_is_found_if_two_match() {
    let server = Server::start(V4);
    let before = Sockets::list();
    let mut streams = [server.dial(), server.dial()];
    let lengths = lengths();
    let mut proof = Proof::begin(&before).expect("there are two candidates");
    for length in lengths {
        for stream in &mut streams {
            ask(stream, length);
        }
        proof.query_answered();
    }
    assert!(proof.end(&lengths).is_none(), "no socket is found if there is a choice of two");
}

/// A socket does not match if it sends more than the queries, misses a query, sends queries of equal
/// lengths, or gets no answer.
#[test]
fn socket_with_other_traffic_is_not_found() {
    let server = Server::start(V4);
    let lengths = lengths();
    let assert_not_found = |traffic: &dyn Fn(&mut TcpStream, &mut Proof)| {
        let before = Sockets::list();
        let mut stream = server.dial();
        let mut proof = Proof::begin(&before).expect("there is a candidate");
        traffic(&mut stream, &mut proof);
        assert!(proof.end(&lengths).is_none(), "a socket with other traffic is not found");
    };
    assert_not_found(&|stream, proof| {
        for length in lengths {
            ask(stream, length);
            proof.query_answered();
        }
        ask(stream, 1);
    });
    assert_not_found(&|stream, proof| {
        ask(stream, lengths[1]);
        proof.query_answered();
        proof.query_answered();
    });
    assert_not_found(&|stream, proof| {
        for _ in lengths {
            ask(stream, lengths[1]);
            proof.query_answered();
        }
    });
    assert_not_found(&|stream, proof| {
        for length in lengths {
            // The server waits for the rest of one long message.
            let message = vec![0xff; usize::try_from(length).expect("the message is short")];
            stream.write_all(&message).expect("the server reads");
            proof.query_answered();
        }
    });
}

/// Other threads keep connecting to the same server, and send messages of all lengths, including those of
/// the proof.
#[test]
fn foreign_socket_is_never_found() {
    const PROOFS: u64 = 300;
    let server = Server::start(V4);
    let stopped = AtomicBool::new(false);
    let mut found = 0;
    thread::scope(|scope| {
        let _stop = Stop(&stopped);
        for number in 0..4 {
            let (server, stopped) = (&server, &stopped);
            scope.spawn(move || {
                let mut length = 16 * number;
                while !stopped.load(Ordering::Relaxed) {
                    let mut stream = server.dial();
                    for _ in 0..20 {
                        // Two threads send messages of equal length.
                        ask(&mut stream, if number < 2 { 16 } else { length });
                        length = (length + 16) % 500;
                    }
                }
            });
        }
        for number in 0..PROOFS {
            let before = Sockets::list();
            let mut stream = server.dial();
            if let Some(socket) = prove(&before, &mut stream, [16, 32 + 16 * (number % 32)]) {
                assert_is(Some(&socket), &stream);
                found += 1;
            }
        }
    });
    assert!(found > PROOFS / 2, "the socket is found in most cases: {found}");
}

/// A descriptor that is not a TCP socket is not a candidate, whatever it carries.
#[test]
fn only_tcp_sockets_are_candidates() {
    let before = Sockets::list();
    let folder = tempfile::tempdir().expect("a temporary folder can be created");
    let _listener =
        UnixListener::bind(folder.path().join("socket")).expect("the folder is writable");
    let (unix, _other) = UnixStream::pair().expect("a pair");
    let udp = UdpSocket::bind(V4).expect("a port is free");
    let (_reader, _writer) = std::io::pipe().expect("a pipe");
    let _file = File::create(folder.path().join("file")).expect("the folder is writable");
    let tcp = Server::start(V4);
    let stream = tcp.dial();
    let candidates: Vec<u64> = before.opened_since().iter().map(|(seen, _)| seen.inode).collect();
    assert!(candidates.contains(&inode_of(&stream)), "a TCP socket is a candidate");
    for other in [inode_of(&unix), inode_of(&udp)] {
        assert!(!candidates.contains(&other), "a Unix or UDP socket is not a candidate");
    }
}

/// A connection over a Unix socket is never mistaken for a foreign TCP connection.
#[test]
fn unix_socket_is_not_found() {
    let server = Server::start(V4);
    let before = Sockets::list();
    let mut foreign = server.dial();
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    thread::scope(|scope| {
        scope.spawn(|| answer(theirs));
        assert!(prove(&before, &mut ours, lengths()).is_none(), "a Unix socket has no counters");
        let mut proof = Proof::begin(&before).expect("the foreign socket is a candidate");
        let lengths = lengths();
        for length in lengths {
            ask(&mut ours, length);
            ask(&mut foreign, 2 * length);
            proof.query_answered();
        }
        assert!(proof.end(&lengths).is_none(), "the foreign socket sent something else");
        drop(ours);
    });
}

#[test]
fn several_descriptors_of_one_socket_are_one_candidate() {
    let server = Server::start(V4);
    let before = Sockets::list();
    let mut stream = server.dial();
    let copies: Vec<_> =
        (0..3).map(|_| stream.try_clone().expect("a descriptor is free")).collect();
    let found = prove(&before, &mut stream, lengths());
    assert_is(found.as_ref(), &stream);
    drop(copies);
    assert_is(found.as_ref(), &stream);
}

/// Descriptor numbers are reused all the time. No descriptor is ever mixed up, and no foreign descriptor
/// is closed.
#[test]
fn foreign_descriptors_survive_while_numbers_are_reused() {
    let server = Server::start(V4);
    let folder = tempfile::tempdir().expect("a temporary folder can be created");
    let path = folder.path();
    let stopped = AtomicBool::new(false);
    let end = now() + Duration::from_secs(1);
    thread::scope(|scope| {
        let _stop = Stop(&stopped);
        let repeat = |work: &'static (dyn Fn(&std::path::Path) + Sync)| {
            let stopped = &stopped;
            scope.spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    work(path);
                }
            });
        };
        repeat(&|folder| {
            let mut file = tempfile::tempfile_in(folder).expect("the folder is writable");
            file.write_all(b"ours").expect("the descriptor is still open");
        });
        repeat(&|_| {
            let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
            writer.write_all(b"ours").expect("the descriptor is still open");
            let mut read = [0; 4];
            reader.read_exact(&mut read).expect("the descriptor is still open");
            assert_eq!(&read, b"ours");
        });
        repeat(&|_| {
            let (mut one, mut other) = UnixStream::pair().expect("a pair");
            one.write_all(b"ours").expect("the descriptor is still open");
            other.read_exact(&mut [0; 4]).expect("the descriptor is still open");
        });
        repeat(&|_| {
            let socket = UdpSocket::bind(V4).expect("a port is free");
            let to = socket.local_addr().expect("the listener is bound");
            socket.send_to(b"ours", to).expect("the descriptor is still open");
        });
        let mut found = 0;
        while now() < end {
            let before = Sockets::list();
            let mut stream = server.dial();
            if let Some(socket) = prove(&before, &mut stream, lengths()) {
                assert_is(Some(&socket), &stream);
                found += 1;
            }
            ask(&mut stream, 1);
        }
        assert!(found > 0, "the socket is found all the same");
    });
}

/// A foreign connection ends, and its port is free, when its owner closes it during a proof.
#[test]
fn foreign_socket_is_not_kept_open() {
    let before = Sockets::list();
    let listener = TcpListener::bind(V4).expect("a port is free");
    let address = listener.local_addr().expect("the listener is bound");
    let foreign = TcpStream::connect(address).expect("the server listens");
    let (mut other, _) = listener.accept().expect("a client has connected");
    let _proof = Proof::begin(&before).expect("the foreign socket is a candidate");
    drop((foreign, listener));
    other.set_read_timeout(Some(TIMEOUT)).expect("the timeout is not zero");
    assert_eq!(other.read(&mut [0]).expect("the read ends in time"), 0, "the connection is closed");
    wait_until("the port is free", || TcpStream::connect(address).is_err());
}

#[test]
fn socket_is_quiet_until_something_arrives_or_ends() {
    let listener = TcpListener::bind(V4).expect("a port is free");
    let address = listener.local_addr().expect("the listener is bound");
    let dial = || {
        let ours = TcpStream::connect(address).expect("the server listens");
        let theirs = listener.accept().expect("a client has connected").0;
        let socket = duplicate(ours.as_raw_fd(), inode_of(&ours)).expect("the socket is open");
        assert!(socket.is_quiet() && !socket.has_ended(), "a new socket is quiet");
        (ours, theirs, socket)
    };

    let (mut ours, mut theirs, socket) = dial();
    theirs.write_all(b"!").expect("the socket is open");
    wait_until("there is something to read", || !socket.is_quiet());
    ours.read_exact(&mut [0]).expect("the inspection has not consumed the byte");
    assert!(socket.is_quiet(), "the socket is quiet once the data is read");
    ours.write_all(b"?").expect("the socket is open");
    assert!(socket.is_quiet(), "sent data does not count");

    let (_ours, theirs, socket) = dial();
    drop(theirs);
    wait_until("the other end is closed", || !socket.is_quiet());
    assert!(socket.has_ended() && !socket.is_abandoned());

    let (ours, mut theirs, socket) = dial();
    theirs.write_all(b"!").expect("the socket is open");
    drop(theirs);
    wait_until("the other end is closed behind an unread byte", || socket.has_ended());
    drop(ours);
    assert!(socket.is_abandoned(), "the original descriptor is closed");

    let (ours, _theirs, socket) = dial();
    drop(ours);
    assert!(socket.is_abandoned() && !socket.has_ended(), "the duplicate keeps it open");

    let (mut ours, theirs, socket) = dial();
    // A socket that is closed with unread data resets the connection.
    ours.write_all(b"?").expect("the socket is open");
    wait_until("the byte has arrived", || theirs.peek(&mut [0]).is_ok_and(|read| read > 0));
    drop(theirs);
    // `poll` does not clear the error.
    assert_ne!(poll(&ours, 0) & libc::POLLERR, 0, "the connection is reset");
    for _ in 0..2 {
        assert!(
            !socket.is_quiet(),
            "the socket stays not quiet, although the error is reported once"
        );
        assert!(socket.has_ended());
    }

    let (_ours, _theirs, socket) = dial();
    socket.shut_down();
    assert!(!socket.is_quiet(), "a socket that was shut down is not quiet");
    assert!(socket.has_ended());
}

/// Returns an integer option of a socket.
#[allow(unsafe_code, reason = "std does not offer this call")]
fn option(stream: &TcpStream, level: libc::c_int, name: libc::c_int) -> libc::c_int {
    let mut value: libc::c_int = 0;
    let mut size: libc::socklen_t = size_of_val(&value).try_into().expect("the size is small");
    let into = (&raw mut value).cast();
    // SAFETY: the buffer has the size that is passed, and outlives the call.
    let outcome = unsafe { libc::getsockopt(stream.as_raw_fd(), level, name, into, &raw mut size) };
    assert_eq!(outcome, 0, "the option can be read");
    value
}

#[test]
fn tuning_sets_keepalive_and_user_timeout() {
    let options_with = |tuning: Tuning| {
        let (ours, _theirs) = silent_pair();
        let fd = ours.as_raw_fd();
        let socket = duplicate(fd, inode_of(&ours)).expect("the descriptor is a socket");
        socket.tune(tuning);
        [
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
        ]
        .map(|(level, name)| option(&ours, level, name))
    };
    let keepalive = Some(Duration::from_secs(9));
    let user_timeout = Some(Duration::from_millis(20_500));
    let untuned = options_with(Tuning { keepalive: None, user_timeout: None });
    let all = options_with(Tuning { keepalive, user_timeout });
    assert_eq!(all, [1, 9, 3, 3, 20_500], "the options are in seconds and milliseconds");
    let half = options_with(Tuning { keepalive: None, user_timeout });
    assert_eq!(half[..4], untuned[..4], "an option that is not configured stays unchanged");
    let half = options_with(Tuning { keepalive, user_timeout: None });
    assert_eq!(
        (half[0], half[4]),
        (1, untuned[4]),
        "an option that is not configured stays unchanged"
    );
}

/// Polls one descriptor, and returns the events that occurred.
fn poll(stream: &impl AsRawFd, events: libc::c_short) -> libc::c_short {
    let mut polled = libc::pollfd { fd: stream.as_raw_fd(), events, revents: 0 };
    let millis = TIMEOUT.as_millis().try_into().expect("the timeout is short");
    // SAFETY: the list holds one descriptor, and outlives the call.
    unsafe { libc::poll(&raw mut polled, 1, millis) };
    polled.revents
}

fn flags_of(fd: &impl AsRawFd) -> String {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
    let info = info.expect("the descriptor is open");
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .expect("the file has a line of flags");
    line.trim().to_owned()
}

fn is_set(flags: &str, flag: libc::c_int) -> bool {
    i32::from_str_radix(flags, 8).expect("the flags are octal") & flag == flag
}

#[test]
fn duplicate_is_closed_on_exec_and_leaves_the_flags_unchanged() {
    let server = Server::start(V4);
    for nonblocking in [false, true] {
        let before = Sockets::list();
        let mut stream = server.dial();
        let mut proof = Proof::begin(&before).expect("there is a candidate");
        let lengths = lengths();
        for length in lengths {
            ask(&mut stream, length);
            proof.query_answered();
        }
        stream.set_nonblocking(nonblocking).expect("the socket is open");
        let flags = flags_of(&stream);
        let found = proof.end(&lengths).expect("the socket is found");
        assert!(
            is_set(&flags_of(&found.stream), libc::O_CLOEXEC),
            "the duplicate is closed on exec"
        );
        found.tune(Tuning {
            keepalive: Some(Duration::from_secs(9)),
            user_timeout: Some(Duration::from_secs(20)),
        });
        assert!(found.is_quiet());
        assert_eq!(flags_of(&stream), flags, "the flags of the original are unchanged");
        assert_eq!(is_set(&flags, libc::O_NONBLOCK), nonblocking);
        drop(found);
        assert_eq!(flags_of(&stream), flags, "the original is still open");
    }
}

/// Runs `block`, which blocks, on a thread of its own, and passes that thread to `inspect` meanwhile.
fn blocked<T: Send>(block: impl FnOnce() -> T + Send, inspect: impl FnOnce(Thread)) -> T {
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let blocked = scope.spawn(move || {
            sender.send(Thread::current().expect("/proc is mounted")).expect("the test waits");
            block()
        });
        let thread = receiver.recv().expect("the thread reports itself");
        inspect(thread);
        blocked.join().expect("the thread does not panic")
    })
}

/// Waits until the socket on which the thread waits is found.
#[track_caller]
fn wait_for(thread: Thread, before: &Sockets) -> Socket {
    let mut found = None;
    wait_until("the socket is found", || {
        found = awaited_by(thread, before, None);
        found.is_some()
    });
    found.expect("the socket was found")
}

fn silent_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(V4).expect("a port is free");
    let ours = TcpStream::connect(listener.local_addr().expect("the listener is bound"));
    let ours = ours.expect("the server listens");
    // With a timeout, a failing test ends too.
    ours.set_read_timeout(Some(TIMEOUT)).expect("the timeout is not zero");
    ours.set_write_timeout(Some(TIMEOUT)).expect("the timeout is not zero");
    (ours, listener.accept().expect("a client has connected").0)
}

#[test]
fn shutting_down_wakes_a_reading_thread() {
    let before = Sockets::list();
    let (mut ours, _theirs) = silent_pair();
    let inode = inode_of(&ours);
    let read = blocked(
        move || ours.read(&mut [0]),
        |thread| {
            let socket = wait_for(thread, &before);
            assert_eq!(inode_of(&socket.stream), inode, "the socket is the one that is read");
            socket.shut_down();
        },
    );
    assert_eq!(read.expect("the read ends as if the other end had closed"), 0);
}

#[test]
fn shutting_down_wakes_a_polling_thread() {
    for events in [libc::POLLIN, libc::POLLIN | libc::POLLPRI, 0] {
        let before = Sockets::list();
        let (ours, _theirs) = silent_pair();
        let inode = inode_of(&ours);
        let seen = blocked(
            || poll(&ours, events),
            |thread| {
                let socket = wait_for(thread, &before);
                assert_eq!(inode_of(&socket.stream), inode, "the socket is the one that is polled");
                socket.shut_down();
            },
        );
        assert_ne!(seen & libc::POLLHUP, 0, "the socket has hung up: {seen:#x}");
    }
}

#[test]
fn shutting_down_wakes_a_writing_thread() {
    let before = Sockets::list();
    let (mut ours, _theirs) = silent_pair();
    let inode = inode_of(&ours);
    let written = blocked(
        move || loop {
            if let Err(error) = ours.write_all(&[0; 4_096]) {
                return error;
            }
        },
        |thread| {
            let socket = wait_for(thread, &before);
            assert_eq!(inode_of(&socket.stream), inode, "the socket is the one that is written to");
            // `wait_for` finds the socket only once the thread is blocked in a write.
            socket.shut_down();
        },
    );
    assert_eq!(written.kind(), std::io::ErrorKind::BrokenPipe);
}

/// Behaves like a machine that is off: no connection is accepted, and the queue of connections is full.
fn full_backlog() -> (TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind(V4).expect("a port is free");
    // SAFETY: no memory is involved. The call only shortens the queue.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let address = listener.local_addr().expect("the listener is bound");
    let mut queue = Vec::new();
    let mut hung = 0;
    while hung < 2 {
        match TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
            Ok(stream) => queue.push(stream),
            Err(_) => hung += 1,
        }
    }
    (listener, queue)
}

#[test]
fn shutting_down_wakes_a_connecting_thread() {
    let (listener, _queue) = full_backlog();
    let address = listener.local_addr().expect("the listener is bound");
    let before = Sockets::list();
    let dialed =
        blocked(|| TcpStream::connect(address), |thread| wait_for(thread, &before).shut_down());
    dialed.expect_err("the connecting call was aborted");

    // With a timeout, the standard library polls the socket.
    let before = Sockets::list();
    let dialed = blocked(
        || TcpStream::connect_timeout(&address, TIMEOUT),
        |thread| wait_for(thread, &before).shut_down(),
    );
    let error = dialed.expect_err("the connecting call was aborted");
    assert_ne!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
}

#[test]
fn awaited_socket_that_is_older_than_the_login_is_not_found() {
    let (mut ours, mut theirs) = silent_pair();
    let before = Sockets::list();
    let read = blocked(
        move || ours.read(&mut [0]),
        |thread| {
            wait_until("the thread waits", || thread.awaited_descriptor().is_some());
            assert!(
                awaited_by(thread, &before, None).is_none(),
                "a socket that is older than the login is not found"
            );
            theirs.write_all(b"!").expect("the socket is open");
        },
    );
    assert_eq!(read.expect("the socket is open"), 1);
}

#[test]
fn no_socket_is_found_for_a_thread_that_waits_for_something_else() {
    let before = Sockets::list();
    let _pair = silent_pair();

    // The thread waits for another thread.
    let (sender, receiver) = mpsc::channel::<()>();
    blocked(
        move || receiver.recv(),
        |thread| {
            for _ in 0..20 {
                assert!(
                    awaited_by(thread, &before, None).is_none(),
                    "a thread that waits for another thread waits on no socket"
                );
                pause();
            }
            drop(sender);
        },
    )
    .expect_err("nothing is sent");

    // The thread waits for a pipe.
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let read = blocked(
        move || reader.read(&mut [0]),
        |thread| {
            wait_until("the thread waits", || thread.awaited_descriptor().is_some());
            assert!(awaited_by(thread, &before, None).is_none(), "a pipe is not a socket");
            drop(writer);
        },
    );
    assert_eq!(read.expect("the pipe is closed"), 0);

    // The thread is busy.
    let stopped = AtomicBool::new(false);
    blocked(
        || {
            while !stopped.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        },
        |thread| {
            let _stop = Stop(&stopped);
            for _ in 0..20 {
                assert!(
                    awaited_by(thread, &before, None).is_none(),
                    "a busy thread waits on no socket"
                );
                pause();
            }
        },
    );

    // The thread has ended.
    let thread = thread::scope(|scope| {
        scope
            .spawn(Thread::current)
            .join()
            .expect("the thread does not panic")
            .expect("/proc is mounted")
    });
    wait_until("the kernel has removed the thread", || !thread.exists());
    assert!(
        awaited_by(thread, &before, None).is_none(),
        "a thread that has ended waits on no socket"
    );
}

#[test]
fn thread_waits_for_its_socket_only() {
    let (ours, mut peers) = silent_pair();
    let (other, _peer) = silent_pair();
    let [own, other] = [ours.as_raw_fd(), other.as_raw_fd()].map(|fd| {
        duplicate(fd, inode(fd).expect("it is a socket")).expect("the descriptor is open")
    });
    let ended = blocked(
        || {
            (&ours).read_exact(&mut [0]).expect("the peer answers");
            Thread::current().expect("/proc is mounted")
        },
        |thread| {
            wait_until("the thread waits", || own.is_awaited_by(thread) == Some(true));
            assert_eq!(other.is_awaited_by(thread), Some(false), "it waits for another socket");
            let silent = own.since_received().expect("it is a TCP socket");
            wait_until("time passes", || {
                own.since_received() > Some(silent + Duration::from_millis(50))
            });
            peers.write_all(b"!").expect("the socket is open");
            wait_until("the answer is seen", || {
                own.since_received() < Some(silent + Duration::from_millis(50))
            });
        },
    );
    wait_until("the kernel has removed the thread", || !ended.exists());
    assert_eq!(own.is_awaited_by(ended), Some(false), "a thread that has ended waits for nothing");
}

impl Thread {
    fn exists(self) -> bool {
        Path::new("/proc/self/task").join(self.number().to_string()).exists()
    }
}

/// A list of several descriptors is ambiguous, because any of them may be foreign.
#[test]
fn no_socket_is_found_for_a_thread_that_waits_on_several() {
    let before = Sockets::list();
    let pairs = [silent_pair(), silent_pair()];
    let count = blocked(
        || {
            let mut polled = pairs.each_ref().map(|(ours, _)| libc::pollfd {
                fd: ours.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            });
            // SAFETY: the list holds two descriptors, and outlives the call.
            unsafe { libc::poll(polled.as_mut_ptr(), 2, 20_000) }
        },
        |thread| {
            for _ in 0..20 {
                assert!(
                    awaited_by(thread, &before, None).is_none(),
                    "no socket is found if there is a choice of two"
                );
                pause();
            }
            (&pairs[0].1).write_all(b"!").expect("the socket is open");
        },
    );
    assert_eq!(count, 1);
}

/// Raises the limit of descriptors of this process to at least this number.
fn allow_descriptors(wanted: libc::rlim_t) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is the one that the kernel expects, and outlives the call.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    if limit.rlim_cur < wanted {
        limit.rlim_cur = wanted;
        limit.rlim_max = limit.rlim_max.max(wanted);
        // SAFETY: the structure is the one that the kernel expects, and outlives the call.
        let outcome = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
        assert_eq!(
            outcome, 0,
            "this test needs {wanted} descriptors: raise the limit with `ulimit -Hn`"
        );
    }
}

/// Most descriptors are of kinds that a busy server has many of. Half of the sockets are opened during the
/// login.
#[test]
fn socket_is_found_among_ten_thousand_descriptors() {
    const MANY: usize = 10_000;
    allow_descriptors(12_000);
    let server = Server::start(V4);
    let pairs = |count: usize| -> Vec<_> {
        (0..count / 2).map(|_| UnixStream::pair().expect("a pair")).collect()
    };
    let listener = UdpSocket::bind(V4).expect("a port is free");
    let copies: Vec<_> =
        (0..MANY / 2).map(|_| listener.try_clone().expect("a descriptor is free")).collect();
    let old = pairs(MANY / 4);
    let began = now();
    let before = Sockets::list();
    let listed = now() - began;
    let new = pairs(MANY / 4);
    let mut stream = server.dial();
    let lengths = lengths();
    let began = now();
    let mut proof = Proof::begin(&before).expect("there is a candidate");
    let proof_began = now() - began;
    for length in lengths {
        ask(&mut stream, length);
        proof.query_answered();
    }
    let found = proof.end(&lengths);
    println!(
        "{} descriptors: listing the sockets takes {listed:?}, beginning a proof {proof_began:?}",
        fs::read_dir("/proc/self/fd").expect("/proc is mounted").count(),
    );
    assert_is(found.as_ref(), &stream);
    drop((copies, old, new));
}

/// The kernel ends a connection whose other end does not read for the length of `TCP_USER_TIMEOUT`, although
/// that end acknowledges.
#[test]
fn connection_whose_other_end_does_not_read_outlives_the_timeout() {
    let survives = |is_spared: bool| {
        let listener = TcpListener::bind(V4).expect("a port is free");
        let address = listener.local_addr().expect("the listener is bound");
        let mut stream = TcpStream::connect(address).expect("the listener accepts");
        let (mut other, _) = listener.accept().expect("a connection waits");
        let original = SeenSocket { fd: stream.as_raw_fd(), inode: 0 };
        let socket = Socket::new(stream.try_clone().expect("a descriptor is free"), original);
        let user_timeout = Some(Duration::from_millis(500));
        socket.tune(Tuning { keepalive: None, user_timeout });
        stream.set_nonblocking(true).expect("the socket is open");
        while stream.write(&[0; 4096]).is_ok() {}
        let end = now() + Duration::from_secs(3);
        while now() < end {
            if is_spared {
                socket.spare_closed_window();
            }
            pause();
        }
        let is_open = socket.stream.take_error().expect("the socket is valid").is_none();
        if is_open {
            assert!(socket.spares_closed_window(), "the window is closed");
            other.set_nonblocking(true).expect("the socket is open");
            wait_until("the timeout is restored when the other end reads", || {
                while other.read(&mut [0; 4096]).is_ok() {}
                socket.spare_closed_window();
                !socket.spares_closed_window()
            });
        }
        is_open
    };
    thread::scope(|scope| {
        let is_ended = scope.spawn(|| !survives(false));
        assert!(survives(true), "the timeout is suspended while the window is closed");
        assert!(is_ended.join().expect("no panic"), "the kernel ends the connection otherwise");
    });
}
