//! No database is needed: what is looked for are plain sockets on loopback. Other tests run beside
//! these in the same process, so that there are always strangers.

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

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(20);

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
    let end = now() + PATIENCE;
    while !condition() {
        assert!(now() < end, "waited {PATIENCE:?} in vain for: {what}");
        pause();
    }
}

/// What stops threads of a scope, also when the test panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Answers each message, which comes after its length, with one byte.
fn answer(mut stream: impl Read + Write) {
    let mut length = [0; 4];
    while stream.read_exact(&mut length).is_ok() {
        let length = u32::from_be_bytes(length).try_into().expect("it is short");
        if stream.read_exact(&mut vec![0; length]).is_err() || stream.write_all(b"!").is_err() {
            return;
        }
    }
}

/// A query of this length, and its answer.
fn ask(stream: &mut (impl Read + Write), length: u64) {
    let length = u32::try_from(length).expect("it is short");
    let mut message = length.to_be_bytes().to_vec();
    message.resize(4 + usize::try_from(length).expect("it is short"), 0);
    stream.write_all(&message).expect("the server reads");
    stream.read_exact(&mut [0]).expect("the server answers");
}

/// A server that answers whoever dials it.
struct Server {
    address: SocketAddr,
    stopped: std::sync::Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let stopped = std::sync::Arc::new(AtomicBool::new(false));
        let is_stopped = stopped.clone();
        let thread = thread::Builder::new().name("server".to_owned()).spawn(move || {
            for stream in listener.incoming().flatten() {
                if is_stopped.load(Ordering::Relaxed) {
                    return;
                }
                let session = thread::Builder::new().name("session".to_owned());
                session.spawn(move || answer(stream)).expect("one thread more");
            }
        });
        Self { address, stopped, thread: Some(thread.expect("one thread more")) }
    }

    fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).expect("it listens")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // The thread waits for a connection: give it one.
        if TcpStream::connect(self.address).is_ok() {
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }
}

/// Two lengths that differ by something else than any others of these tests, and than what the
/// strangers in them say: that is always a multiple of four.
fn lengths() -> [u64; 2] {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    [16, 17 + 16 * NEXT.fetch_add(1, Ordering::Relaxed)]
}

/// As a login does it.
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
    inode(descriptor.as_raw_fd()).expect("it is a socket")
}

#[track_caller]
fn assert_is(found: Option<&Socket>, stream: &TcpStream) {
    let found = found.expect("it is found");
    assert_eq!(inode_of(&found.stream), inode_of(stream), "it is the connection's own");
}

#[test]
fn of_many_the_one_is_found_that_carried_these_lengths() {
    let server = Server::start(V4);
    let before = Sockets::of_this_process();
    let mut streams: Vec<_> = (0..50).map(|_| server.dial()).collect();
    for index in [0, 17, 49] {
        let found = prove(&before, &mut streams[index], lengths());
        assert_is(found.as_ref(), &streams[index]);
    }
}

#[test]
fn over_ipv6_as_well() {
    let server = Server::start(V6);
    let before = Sockets::of_this_process();
    let mut stream = server.dial();
    let found = prove(&before, &mut stream, lengths());
    assert_is(found.as_ref(), &stream);
}

#[test]
fn what_was_there_before_is_not_found() {
    let server = Server::start(V4);
    let mut stream = server.dial();
    let before = Sockets::of_this_process();
    assert!(prove(&before, &mut stream, lengths()).is_none(), "it is older than the login");
}

#[test]
fn of_two_that_match_neither_is_found() {
    let server = Server::start(V4);
    let before = Sockets::of_this_process();
    let mut streams = [server.dial(), server.dial()];
    let lengths = lengths();
    let mut proof = Proof::begin(&before).expect("there are two");
    for length in lengths {
        for stream in &mut streams {
            ask(stream, length);
        }
        proof.query_answered();
    }
    assert!(proof.end(&lengths).is_none(), "it could be either");
}

/// It does not rest when it should, or it is not spoken to each time, or is never answered, or it sends
/// the same each time.
#[test]
fn one_that_does_something_else_is_not_found() {
    let server = Server::start(V4);
    let lengths = lengths();
    let story = |story: &dyn Fn(&mut TcpStream, &mut Proof)| {
        let before = Sockets::of_this_process();
        let mut stream = server.dial();
        let mut proof = Proof::begin(&before).expect("there is one");
        story(&mut stream, &mut proof);
        assert!(proof.end(&lengths).is_none(), "it could be anything");
    };
    story(&|stream, proof| {
        for length in lengths {
            ask(stream, length);
            proof.query_answered();
        }
        ask(stream, 1);
    });
    story(&|stream, proof| {
        ask(stream, lengths[1]);
        proof.query_answered();
        proof.query_answered();
    });
    story(&|stream, proof| {
        for _ in lengths {
            ask(stream, lengths[1]);
            proof.query_answered();
        }
    });
    story(&|stream, proof| {
        for length in lengths {
            // The server waits for the rest of one long message.
            let message = vec![0xff; usize::try_from(length).expect("it is short")];
            stream.write_all(&message).expect("it reads");
            proof.query_answered();
        }
    });
}

/// Strangers dial the same server all the time, and talk: with messages of all lengths, and of these.
#[test]
fn a_stranger_is_never_found() {
    const PROOFS: u64 = 300;
    let server = Server::start(V4);
    let stopped = AtomicBool::new(false);
    let mut found = 0;
    thread::scope(|scope| {
        let _stop = Stop(&stopped);
        for stranger in 0..4 {
            let (server, stopped) = (&server, &stopped);
            scope.spawn(move || {
                let mut length = 16 * stranger;
                while !stopped.load(Ordering::Relaxed) {
                    let mut stream = server.dial();
                    for _ in 0..20 {
                        // Two speak with messages that are all equal.
                        ask(&mut stream, if stranger < 2 { 16 } else { length });
                        length = (length + 16) % 500;
                    }
                }
            });
        }
        for number in 0..PROOFS {
            let before = Sockets::of_this_process();
            let mut stream = server.dial();
            if let Some(socket) = prove(&before, &mut stream, [16, 32 + 16 * (number % 32)]) {
                assert_is(Some(&socket), &stream);
                found += 1;
            }
        }
    });
    assert!(found > PROOFS / 2, "it is seldom mistaken for a stranger: {found}");
}

/// What is not TCP does not count, whatever it carries.
#[test]
fn what_is_no_tcp_socket_is_no_candidate() {
    let before = Sockets::of_this_process();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let _listener = UnixListener::bind(folder.path().join("socket")).expect("our own folder");
    let (unix, _other) = UnixStream::pair().expect("a pair");
    let udp = UdpSocket::bind(V4).expect("a port is free");
    let (_reader, _writer) = std::io::pipe().expect("a pipe");
    let _file = File::create(folder.path().join("file")).expect("our own folder");
    let tcp = Server::start(V4);
    let stream = tcp.dial();
    let candidates: Vec<u64> = before.opened_since().iter().map(|(place, _)| place.inode).collect();
    assert!(candidates.contains(&inode_of(&stream)), "this one is");
    for other in [inode_of(&unix), inode_of(&udp)] {
        assert!(!candidates.contains(&other), "this one is not");
    }
}

/// A connection over a Unix socket is never taken for a stranger's TCP connection.
#[test]
fn a_unix_socket_is_not_found() {
    let server = Server::start(V4);
    let before = Sockets::of_this_process();
    let mut stranger = server.dial();
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    thread::scope(|scope| {
        scope.spawn(|| answer(theirs));
        assert!(prove(&before, &mut ours, lengths()).is_none(), "it has no counters");
        let mut proof = Proof::begin(&before).expect("there is the stranger");
        let lengths = lengths();
        for length in lengths {
            ask(&mut ours, length);
            ask(&mut stranger, 2 * length);
            proof.query_answered();
        }
        assert!(proof.end(&lengths).is_none(), "the stranger said something else");
        drop(ours);
    });
}

#[test]
fn several_descriptors_of_one_socket_are_one_candidate() {
    let server = Server::start(V4);
    let before = Sockets::of_this_process();
    let mut stream = server.dial();
    let copies: Vec<_> = (0..3).map(|_| stream.try_clone().expect("one more")).collect();
    let found = prove(&before, &mut stream, lengths());
    assert_is(found.as_ref(), &stream);
    drop(copies);
    assert_is(found.as_ref(), &stream);
}

/// Numbers of descriptors go from one thing to another all the time: none is ever mixed up, nothing
/// is closed that is not ours, and nothing is left behind.
#[test]
fn descriptors_may_come_and_go() {
    let server = Server::start(V4);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path();
    let stopped = AtomicBool::new(false);
    let end = now() + Duration::from_secs(1);
    thread::scope(|scope| {
        let _stop = Stop(&stopped);
        let hammer = |work: &'static (dyn Fn(&std::path::Path) + Sync)| {
            let stopped = &stopped;
            scope.spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    work(path);
                }
            });
        };
        hammer(&|folder| {
            let mut file = tempfile::tempfile_in(folder).expect("our own folder");
            file.write_all(b"ours").expect("it is still open");
        });
        hammer(&|_| {
            let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
            writer.write_all(b"ours").expect("it is still open");
            let mut read = [0; 4];
            reader.read_exact(&mut read).expect("it is still open");
            assert_eq!(&read, b"ours");
        });
        hammer(&|_| {
            let (mut one, mut other) = UnixStream::pair().expect("a pair");
            one.write_all(b"ours").expect("it is still open");
            other.read_exact(&mut [0; 4]).expect("it is still open");
        });
        hammer(&|_| {
            let socket = UdpSocket::bind(V4).expect("a port is free");
            let to = socket.local_addr().expect("it is bound");
            socket.send_to(b"ours", to).expect("it is still open");
        });
        let mut found = 0;
        while now() < end {
            let before = Sockets::of_this_process();
            let mut stream = server.dial();
            if let Some(socket) = prove(&before, &mut stream, lengths()) {
                assert_is(Some(&socket), &stream);
                found += 1;
            }
            ask(&mut stream, 1);
        }
        assert!(found > 0, "it is found all the same");
    });
}

/// Others' connections end when they close them, while a proof is under way, and their ports are free.
#[test]
fn nothing_of_a_stranger_is_kept_open() {
    let before = Sockets::of_this_process();
    let listener = TcpListener::bind(V4).expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let stranger = TcpStream::connect(address).expect("it listens");
    let (mut other, _) = listener.accept().expect("it was dialed");
    let _proof = Proof::begin(&before).expect("there is the stranger");
    drop((stranger, listener));
    other.set_read_timeout(Some(PATIENCE)).expect("longer than nothing");
    assert_eq!(other.read(&mut [0]).expect("in time"), 0, "it is closed");
    wait_until("its port is free", || TcpStream::connect(address).is_err());
}

#[test]
fn a_connection_is_quiet_or_is_not() {
    let listener = TcpListener::bind(V4).expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let dial = || {
        let ours = TcpStream::connect(address).expect("it listens");
        let theirs = listener.accept().expect("it was dialed").0;
        let socket = duplicate(ours.as_raw_fd(), inode_of(&ours)).expect("it is open");
        assert!(socket.is_quiet(), "nothing has happened");
        (ours, theirs, socket)
    };

    let (mut ours, mut theirs, socket) = dial();
    theirs.write_all(b"!").expect("it is open");
    wait_until("there is something to read", || !socket.is_quiet());
    ours.read_exact(&mut [0]).expect("looking has taken nothing away");
    assert!(socket.is_quiet(), "it was read");
    ours.write_all(b"?").expect("it is open");
    assert!(socket.is_quiet(), "what is sent does not count");

    let (_ours, theirs, socket) = dial();
    drop(theirs);
    wait_until("the other end is closed", || !socket.is_quiet());

    let (mut ours, theirs, socket) = dial();
    // What is closed with something unread is reset.
    ours.write_all(b"?").expect("it is open");
    wait_until("it has arrived", || theirs.peek(&mut [0]).is_ok_and(|read| read > 0));
    drop(theirs);
    // That does not take the error away.
    assert_ne!(poll(&ours, 0) & libc::POLLERR, 0, "it is reset");
    for _ in 0..2 {
        assert!(!socket.is_quiet(), "it stays so, though the error is told once");
    }

    let (_ours, _theirs, socket) = dial();
    socket.shut_down();
    assert!(!socket.is_quiet(), "it was ended here");
}

/// A whole number that is set on a socket.
#[allow(unsafe_code, reason = "std does not tell it")]
fn option(stream: &TcpStream, level: libc::c_int, name: libc::c_int) -> libc::c_int {
    let mut value: libc::c_int = 0;
    let mut size: libc::socklen_t = size_of_val(&value).try_into().expect("it is small");
    let into = (&raw mut value).cast();
    // SAFETY: the buffer is as long as is said, and outlives the call.
    let outcome = unsafe { libc::getsockopt(stream.as_raw_fd(), level, name, into, &raw mut size) };
    assert_eq!(outcome, 0, "it can be read");
    value
}

#[test]
fn the_kernel_is_told_to_notice_who_vanishes() {
    let told = |tuning: Tuning| {
        let (ours, _theirs) = silent_pair();
        let fd = ours.as_raw_fd();
        let socket = duplicate(fd, inode_of(&ours)).expect("it is a socket");
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
    let untold = told(Tuning { keepalive: None, user_timeout: None });
    let all = told(Tuning { keepalive, user_timeout });
    assert_eq!(all, [1, 9, 3, 3, 20_500], "seconds, and milliseconds");
    let half = told(Tuning { keepalive: None, user_timeout });
    assert_eq!(half[..4], untold[..4], "what is not to be set is left alone");
    let half = told(Tuning { keepalive, user_timeout: None });
    assert_eq!((half[0], half[4]), (1, untold[4]), "what is not to be set is left alone");
}

/// The numbers of the standard library's own calls are not for tests to know.
fn poll(stream: &impl AsRawFd, events: libc::c_short) -> libc::c_short {
    let mut polled = libc::pollfd { fd: stream.as_raw_fd(), events, revents: 0 };
    let millis = PATIENCE.as_millis().try_into().expect("it is short");
    // SAFETY: one descriptor is on the list, which outlives the call.
    unsafe { libc::poll(&raw mut polled, 1, millis) };
    polled.revents
}

fn flags_of(fd: &impl AsRawFd) -> String {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
    let info = info.expect("it is open");
    let line = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("it has flags");
    line.trim().to_owned()
}

fn is_set(flags: &str, flag: libc::c_int) -> bool {
    i32::from_str_radix(flags, 8).expect("they are octal") & flag == flag
}

#[test]
fn a_duplicate_is_closed_on_exec_and_changes_nothing() {
    let server = Server::start(V4);
    for nonblocking in [false, true] {
        let before = Sockets::of_this_process();
        let mut stream = server.dial();
        let mut proof = Proof::begin(&before).expect("there is one");
        let lengths = lengths();
        for length in lengths {
            ask(&mut stream, length);
            proof.query_answered();
        }
        stream.set_nonblocking(nonblocking).expect("it is open");
        let flags = flags_of(&stream);
        let found = proof.end(&lengths).expect("it is found");
        assert!(is_set(&flags_of(&found.stream), libc::O_CLOEXEC), "it is closed on exec");
        found.tune(Tuning {
            keepalive: Some(Duration::from_secs(9)),
            user_timeout: Some(Duration::from_secs(20)),
        });
        assert!(found.is_quiet());
        assert_eq!(flags_of(&stream), flags, "it is as it was");
        assert_eq!(is_set(&flags, libc::O_NONBLOCK), nonblocking);
        drop(found);
        assert_eq!(flags_of(&stream), flags, "and open");
    }
}

/// Blocks a thread by `block`, and hands it to `story` when it is blocked.
fn blocked<T: Send>(block: impl FnOnce() -> T + Send, story: impl FnOnce(&Thread)) -> T {
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let blocked = scope.spawn(move || {
            tell.send(Thread::current().expect("/proc is mounted")).expect("the test waits");
            block()
        });
        let thread = told.recv().expect("it tells");
        story(&thread);
        blocked.join().expect("it does not panic")
    })
}

/// As the checker does it: until the one is found.
#[track_caller]
fn wait_for(thread: &Thread, before: &Sockets) -> Socket {
    let mut found = None;
    wait_until("it is found", || {
        found = awaited_by(thread, before);
        found.is_some()
    });
    found.expect("it was found")
}

fn silent_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(V4).expect("a port is free");
    let ours = TcpStream::connect(listener.local_addr().expect("it is bound"));
    let ours = ours.expect("it listens");
    // A test that fails ends all the same.
    ours.set_read_timeout(Some(PATIENCE)).expect("longer than nothing");
    ours.set_write_timeout(Some(PATIENCE)).expect("longer than nothing");
    (ours, listener.accept().expect("it was dialed").0)
}

#[test]
fn shutting_down_wakes_who_reads() {
    let before = Sockets::of_this_process();
    let (mut ours, _theirs) = silent_pair();
    let inode = inode_of(&ours);
    let read = blocked(
        move || ours.read(&mut [0]),
        |thread| {
            let socket = wait_for(thread, &before);
            assert_eq!(inode_of(&socket.stream), inode, "it is the one that is read");
            socket.shut_down();
        },
    );
    assert_eq!(read.expect("as if the other had closed it"), 0);
}

#[test]
fn shutting_down_wakes_who_polls() {
    for events in [libc::POLLIN, libc::POLLIN | libc::POLLPRI, 0] {
        let before = Sockets::of_this_process();
        let (ours, _theirs) = silent_pair();
        let inode = inode_of(&ours);
        let seen = blocked(
            || poll(&ours, events),
            |thread| {
                let socket = wait_for(thread, &before);
                assert_eq!(inode_of(&socket.stream), inode, "it is the one that is polled");
                socket.shut_down();
            },
        );
        assert_ne!(seen & libc::POLLHUP, 0, "it has ended: {seen:#x}");
    }
}

#[test]
fn shutting_down_wakes_who_writes() {
    let before = Sockets::of_this_process();
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
            assert_eq!(inode_of(&socket.stream), inode, "it is the one that is written to");
            // While it still gets rid of something it is not stuck.
            socket.shut_down();
        },
    );
    assert_eq!(written.kind(), std::io::ErrorKind::BrokenPipe);
}

/// As with a machine that is off: nobody accepts, and the queue of those who wait for it is full.
fn full_backlog() -> (TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind(V4).expect("a port is free");
    // SAFETY: no memory is involved. It only makes the queue shorter.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let address = listener.local_addr().expect("it is bound");
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
fn shutting_down_wakes_who_connects() {
    let (listener, _queue) = full_backlog();
    let address = listener.local_addr().expect("it is bound");
    let before = Sockets::of_this_process();
    let dialed =
        blocked(|| TcpStream::connect(address), |thread| wait_for(thread, &before).shut_down());
    dialed.expect_err("it was cut off");

    // With a timeout it is polled.
    let before = Sockets::of_this_process();
    let dialed = blocked(
        || TcpStream::connect_timeout(&address, PATIENCE),
        |thread| wait_for(thread, &before).shut_down(),
    );
    let error = dialed.expect_err("it was cut off");
    assert_ne!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
}

#[test]
fn one_that_was_there_before_is_not_touched() {
    let (mut ours, mut theirs) = silent_pair();
    let before = Sockets::of_this_process();
    let read = blocked(
        move || ours.read(&mut [0]),
        |thread| {
            wait_until("it waits", || thread.awaits().is_some());
            assert!(awaited_by(thread, &before).is_none(), "it is older than the login");
            theirs.write_all(b"!").expect("it is open");
        },
    );
    assert_eq!(read.expect("it is open"), 1);
}

#[test]
fn who_waits_for_no_socket_is_left_alone() {
    let before = Sockets::of_this_process();
    let _pair = silent_pair();

    // For what is neither a descriptor nor the kernel's.
    let (tell, told) = mpsc::channel::<()>();
    blocked(
        move || told.recv(),
        |thread| {
            for _ in 0..20 {
                assert!(awaited_by(thread, &before).is_none(), "it waits for another thread");
                pause();
            }
            drop(tell);
        },
    )
    .expect_err("nothing is told");

    // For a pipe.
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let read = blocked(
        move || reader.read(&mut [0]),
        |thread| {
            wait_until("it waits", || thread.awaits().is_some());
            assert!(awaited_by(thread, &before).is_none(), "it is no socket");
            drop(writer);
        },
    );
    assert_eq!(read.expect("it is closed"), 0);

    // For nothing: it is at work.
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
                assert!(awaited_by(thread, &before).is_none(), "it does not wait");
                pause();
            }
        },
    );

    // It has ended.
    let thread = thread::scope(|scope| {
        scope.spawn(Thread::current).join().expect("it does not panic").expect("/proc is mounted")
    });
    wait_until("it has gone", || !thread.folder_is_there());
    assert!(awaited_by(&thread, &before).is_none(), "it is gone");
}

impl Thread {
    fn folder_is_there(&self) -> bool {
        self.folder.exists()
    }
}

/// Lists of several descriptors tell nothing: any of them may be a stranger's.
#[test]
fn who_waits_for_several_is_left_alone() {
    let before = Sockets::of_this_process();
    let pairs = [silent_pair(), silent_pair()];
    let count = blocked(
        || {
            let mut polled = pairs.each_ref().map(|(ours, _)| libc::pollfd {
                fd: ours.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            });
            // SAFETY: two descriptors are on the list, which outlives the call.
            unsafe { libc::poll(polled.as_mut_ptr(), 2, 20_000) }
        },
        |thread| {
            for _ in 0..20 {
                assert!(awaited_by(thread, &before).is_none(), "it could be either");
                pause();
            }
            (&pairs[0].1).write_all(b"!").expect("it is open");
        },
    );
    assert_eq!(count, 1);
}

/// Has the process be allowed so many descriptors.
fn allow_descriptors(wanted: libc::rlim_t) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is the kernel's own, and outlives the call.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    if limit.rlim_cur < wanted {
        limit.rlim_cur = wanted;
        limit.rlim_max = limit.rlim_max.max(wanted);
        // SAFETY: the structure is the kernel's own, and outlives the call.
        let outcome = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
        assert_eq!(outcome, 0, "this test needs {wanted} descriptors: raise `ulimit -Hn`");
    }
}

/// Most are of a kind that a busy server has many of; half of the sockets come during the login.
#[test]
fn among_ten_thousand_descriptors() {
    const MANY: usize = 10_000;
    allow_descriptors(12_000);
    let server = Server::start(V4);
    let pairs = |count: usize| -> Vec<_> {
        (0..count / 2).map(|_| UnixStream::pair().expect("a pair")).collect()
    };
    let listener = UdpSocket::bind(V4).expect("a port is free");
    let copies: Vec<_> = (0..MANY / 2).map(|_| listener.try_clone().expect("one more")).collect();
    let old = pairs(MANY / 4);
    let began = now();
    let before = Sockets::of_this_process();
    let listed = began.elapsed();
    let new = pairs(MANY / 4);
    let mut stream = server.dial();
    let lengths = lengths();
    let began = now();
    let mut proof = Proof::begin(&before).expect("there is one");
    let begun = began.elapsed();
    for length in lengths {
        ask(&mut stream, length);
        proof.query_answered();
    }
    let found = proof.end(&lengths);
    println!(
        "{} descriptors: listing the sockets takes {listed:?}, beginning a proof {begun:?}",
        fs::read_dir("/proc/self/fd").expect("/proc is mounted").count(),
    );
    assert_is(found.as_ref(), &stream);
    drop((copies, old, new));
}
