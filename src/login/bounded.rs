//! Runs one login on a thread of its own, under a deadline. Client libraries set no timeouts, and a
//! server that accepts a connection without ever answering would block its caller forever.
//!
//! At the deadline the checker's thread reports the timeout to the caller, and shuts down the login's
//! socket, so that the login's thread ends. A health check may be left to wait instead, if its peer has accepted
//! the connection. A server that has sent nothing since is probably frozen: it would find each login that was
//! aborted in its queue later, and count it as an error of this host. A pooler that has begun to answer holds
//! the login's queries, and does not notice before it goes on that a client has gone: each aborted login would
//! use up one of its clients. The login that waits is the first to know when the peer goes on. It is aborted when
//! the next check of its peer is due. If the socket cannot be found, the thread stays until the server or the
//! kernel ends its connection. From the deadline until the thread ends, the login counts as *stuck*. While all
//! peers are down, only the checker dials a peer with a stuck login.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::deadlines::CancelReason;
use crate::fault::{Fault, LoginFailure};
use crate::panics::{Panicked, catch_panic, lock};
use crate::peers::set::peer_ref::PeerRef;
use crate::socket::{self, Socket, Sockets, Thread, Tuning};

/// The name of a thread that makes one login. Linux shows the first 15 characters.
const THREAD_NAME: &str = "peers-dial";

/// The delay until the socket of a stuck login is shut down again, because the client library may have
/// dialed the next address meanwhile. The delay doubles each time, up to the maximum.
const SHUTDOWN_RETRY_DELAY: Duration = Duration::from_millis(250);
const MAX_SHUTDOWN_RETRY_DELAY: Duration = Duration::from_secs(30);

/// The interval at which a late login is checked again, while it is given more time.
const PROGRESS_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The stage that a login has reached, which determines how its socket is found.
#[derive(Debug, Default)]
pub(crate) struct LoginProgress {
    stage: Mutex<Stage>,
    is_aborted: AtomicBool,
}

#[derive(Debug, Default)]
enum Stage {
    /// Other code than the client library's is running.
    #[default]
    OtherCode,
    /// The client library is logging in: the thread waits for nothing but its server.
    LoggingIn { thread: Thread, before: Arc<Sockets>, port: Option<u16> },
    /// The login has succeeded, over this socket.
    LoggedIn(Arc<Socket>),
}

impl LoginProgress {
    fn lock(&self) -> MutexGuard<'_, Stage> {
        lock(&self.stage)
    }

    /// Records that from now on this thread only communicates with the server. Returns the sockets that
    /// the process had before. `port` is the server's TCP port, if it is known.
    pub(crate) fn begin_login(&self, port: Option<u16>) -> Arc<Sockets> {
        let before = Arc::new(Sockets::list());
        if let Some(thread) = Thread::current() {
            *self.lock() = Stage::LoggingIn { thread, before: before.clone(), port };
        }
        before
    }

    /// Runs other code than the client library's in the middle of a login.
    pub(crate) fn run_other_code<T>(&self, work: impl FnOnce() -> T) -> T {
        let stage = mem::take(&mut *self.lock());
        let outcome = work();
        *self.lock() = stage;
        outcome
    }

    /// Records that the login has succeeded. From now on the thread may run any code. `socket` is the
    /// connection's socket, if it was found.
    pub(crate) fn end_login(&self, socket: Option<Arc<Socket>>) {
        *self.lock() = socket.map_or(Stage::OtherCode, Stage::LoggedIn);
    }

    /// Returns the socket of the server for which the thread waits. Returns `None` if the thread waits for
    /// something else: a processor, a resolver.
    fn awaited_socket(&self) -> Option<Socket> {
        match &*self.lock() {
            Stage::LoggingIn { thread, before, port } => socket::awaited_by(*thread, before, *port),
            Stage::OtherCode | Stage::LoggedIn(_) => None,
        }
    }

    /// Returns how many bytes have come from the server for which the thread waits.
    fn bytes_received(&self) -> Option<u64> {
        self.awaited_socket()?.received()
    }

    /// Whether the login was given up, so that nobody waits for another attempt.
    pub(crate) fn is_aborted(&self) -> bool {
        self.is_aborted.load(Ordering::Relaxed)
    }

    /// Shuts down the login's socket, if it can be found.
    fn shut_down_socket(&self) {
        self.is_aborted.store(true, Ordering::Relaxed);
        // The lock is held meanwhile, so that the stage does not change.
        match &*self.lock() {
            Stage::OtherCode => {}
            Stage::LoggingIn { thread, before, port } => {
                if let Some(socket) = socket::awaited_by(*thread, before, *port) {
                    socket.shut_down();
                }
            }
            Stage::LoggedIn(socket) => socket.shut_down(),
        }
    }
}

/// The callback that receives the outcome of the login.
pub(crate) type OnOutcome<T> = Box<dyn FnOnce(Result<T, LoginFailure>) + Send>;

struct BoundedLogin<T> {
    peer: PeerRef,
    began: Instant,
    timeout: LoginTimeout,
    progress: LoginProgress,
    state: Mutex<State<T>>,
    /// Receives the outcome of a login that was left to wait.
    on_late: Mutex<Option<OnOutcome<T>>>,
}

/// The state of a login. The thread that knows the outcome first takes the callback out of it.
enum State<T> {
    InProgress(OnOutcome<T>),
    /// The timeout was reported, and the login still waits for the server, which may have begun to answer.
    Waiting {
        on_late: OnOutcome<T>,
        is_held: bool,
    },
    /// The login was aborted, and its thread has not ended yet.
    Stuck,
    Ended,
}

/// The time after which a login is given up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoginTimeout {
    /// For a server that has not sent a single byte.
    pub(crate) silent: Duration,
    /// For a server that has begun to answer, or whose answer this process did not get to read.
    pub(crate) total: Duration,
}

impl LoginTimeout {
    /// Creates a timeout that does not depend on whether the server has begun to answer.
    pub(crate) fn uniform(total: Duration) -> Self {
        Self { silent: total, total }
    }
}

/// Runs `work`, which logs in to a server, on a thread of its own. Calls `on_outcome` at most
/// once: with the outcome of `work`, or with a failure when `timeout` is over. After the pool is gone,
/// an aborted login is not reported. With `on_late`, the login may be left to wait after the timeout, and
/// `on_late` is called if it has an outcome before it is aborted.
pub(crate) fn start<T: Send + 'static>(
    peer: PeerRef,
    began: Instant,
    timeout: LoginTimeout,
    work: impl FnOnce(&LoginProgress) -> Result<T, LoginFailure> + Send + 'static,
    on_outcome: impl FnOnce(Result<T, LoginFailure>) + Send + 'static,
    on_late: Option<OnOutcome<T>>,
) {
    let login = Arc::new(BoundedLogin {
        peer,
        began,
        timeout,
        progress: LoginProgress::default(),
        state: Mutex::new(State::InProgress(Box::new(on_outcome))),
        on_late: Mutex::new(on_late),
    });
    let login_at_deadline = login.clone();
    let ticket = login.peer.set.add_deadline(began + timeout.silent, move |reason| {
        login_at_deadline.handle_deadline(reason, SHUTDOWN_RETRY_DELAY);
    });
    let login_on_thread = login.clone();
    let thread = thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(move || {
        let outcome = catch_panic(|| work(&login_on_thread.progress));
        let panicked = |_| {
            let reason = format!("the login was aborted: {Panicked}");
            Err(LoginFailure::refused(Fault::PeerDown, reason))
        };
        login_on_thread.end(outcome.unwrap_or_else(panicked));
        login_on_thread.peer.set.deadlines.unregister(ticket);
    });
    if let Err(error) = thread {
        login.peer.set.deadlines.unregister(ticket);
        login.end(Err(LoginFailure::no_thread(&error)));
    }
}

impl<T: Send + 'static> BoundedLogin<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        lock(&self.state)
    }

    /// Ends the login: reports the outcome, or closes a connection that comes too late.
    fn end(&self, outcome: Result<T, LoginFailure>) {
        let mut has_waited = None;
        let on_outcome = {
            let state = &mut *self.lock();
            match mem::replace(state, State::Ended) {
                State::InProgress(on_outcome) => Some(on_outcome),
                State::Waiting { on_late, is_held } => {
                    has_waited = Some(is_held);
                    Some(on_late)
                }
                State::Stuck | State::Ended => {
                    // Closing the connection may hang as well, and then its socket is shut down again.
                    *state = State::Stuck;
                    None
                }
            }
        };
        let is_late = on_outcome.is_none();
        if let Some(is_held) = has_waited {
            self.peer.update_counts(|counts| {
                counts.stuck_logins -= 1;
                counts.end_waiting(is_held);
            });
        }
        // The callback may panic, and so may the destructor of an outcome that no caller waits for.
        let _ = catch_panic(|| match on_outcome {
            Some(on_outcome) => on_outcome(outcome),
            None => drop(outcome),
        });
        if is_late {
            *self.lock() = State::Ended;
            self.peer.update_counts(|counts| counts.stuck_logins -= 1);
            // While the login was stuck, only the regular checks dialed its peer.
            self.peer.set.wake();
        }
    }

    /// Returns the failure of a login that is late, or `None` if the login is given more time. The
    /// shorter timeout is only for a server that has not sent a single byte.
    fn failure_if_late(&self, now: Instant) -> Option<LoginFailure> {
        let LoginTimeout { silent, total } = self.timeout;
        let is_uniform = silent >= total;
        match self.progress.bytes_received() {
            Some(0) => Some(LoginFailure::timed_out(silent)),
            _ if !is_uniform && now < self.began + total => None,
            Some(_) => Some(LoginFailure::held(total)),
            None if is_uniform => Some(LoginFailure::timed_out(total)),
            // The thread waits for something else than the server, so the server is not to blame.
            None => Some(LoginFailure::NotAttempted(
                "this process did not get to send the login or to read the answer".into(),
            )),
        }
    }

    /// Handles the deadline of a login. Unless the login is given more time, this reports the failure
    /// once, and shuts down the socket repeatedly until the login ends.
    fn handle_deadline(self: &Arc<Self>, reason: CancelReason, delay: Duration) {
        let (on_outcome, failure) = {
            // While this lock is held, the login neither ends nor changes its state.
            let mut guard = self.lock();
            let state = &mut *guard;
            let failure = match (&*state, reason) {
                (State::Ended, _) => return,
                (State::InProgress(_), CancelReason::Deadline(now)) => {
                    let Some(failure) = self.failure_if_late(now) else {
                        let login = self.clone();
                        self.peer.set.add_deadline(now + PROGRESS_POLL_INTERVAL, move |reason| {
                            login.handle_deadline(reason, delay);
                        });
                        return;
                    };
                    Some(failure)
                }
                (State::InProgress(_) | State::Waiting { .. } | State::Stuck, _) => None,
            };
            let on_outcome = match mem::replace(state, State::Stuck) {
                State::InProgress(on_outcome) => {
                    if let (CancelReason::Deadline(now), Some(on_late)) = (reason, self.may_wait())
                    {
                        let is_held = matches!(failure, Some(LoginFailure::Held(_)));
                        *state = State::Waiting { on_late, is_held };
                        self.peer.update_counts(|counts| {
                            counts.stuck_logins += 1;
                            counts.waiting_logins += 1;
                            counts.held_logins += usize::from(is_held);
                        });
                        drop(guard);
                        self.wait_on(now, on_outcome, failure);
                        return;
                    }
                    self.peer.update_counts(|counts| counts.stuck_logins += 1);
                    Some(on_outcome)
                }
                State::Waiting { is_held, .. } => {
                    self.peer.update_counts(|counts| counts.end_waiting(is_held));
                    None
                }
                State::Stuck | State::Ended => None,
            };
            self.progress.shut_down_socket();
            (on_outcome, failure)
        };
        let login = self.clone();
        let now = match reason {
            CancelReason::Deadline(now) => now,
            // Once the pool is gone, every call on the list of deadlines is aborted repeatedly,
            // whatever its deadline.
            CancelReason::PoolClosed => self.began,
        };
        let next_delay = (delay * 2).min(MAX_SHUTDOWN_RETRY_DELAY);
        self.peer
            .set
            .add_deadline(now + delay, move |reason| login.handle_deadline(reason, next_delay));
        if let (Some(on_outcome), Some(failure)) = (on_outcome, failure) {
            let _ = catch_panic(|| on_outcome(Err(failure)));
        }
    }

    /// Returns the callback of a login that may be left to wait: its server has accepted the connection. One
    /// login for each peer is enough.
    fn may_wait(&self) -> Option<OnOutcome<T>> {
        let on_late = &mut *lock(&self.on_late);
        let may_wait = on_late.is_some()
            && self.progress.awaited_socket().is_some_and(|socket| socket.is_connected())
            && self.peer.read(|peer| peer.counts.waiting_logins == 0 && peer.is_in_service());
        if may_wait { on_late.take() } else { None }
    }

    /// Reports the timeout of a login that is left to wait, and aborts it when the next check is due.
    fn wait_on(
        self: &Arc<Self>,
        now: Instant,
        on_outcome: OnOutcome<T>,
        failure: Option<LoginFailure>,
    ) {
        // Otherwise nobody notices that the machine or the network has vanished meanwhile.
        if let Some(socket) = self.progress.awaited_socket() {
            socket
                .tune(self.peer.settings().tuning(Tuning { keepalive: None, user_timeout: None }));
        }
        if let Some(failure) = failure {
            let _ = catch_panic(|| on_outcome(Err(failure)));
        }
        let cannot_connect = self.peer.set.cannot_connect();
        let next_check = self.peer.read(|peer| peer.scheduled_check(cannot_connect));
        let login = self.clone();
        self.peer.set.add_deadline(next_check.max(now), move |reason| {
            login.handle_deadline(reason, SHUTDOWN_RETRY_DELAY);
        });
    }
}
