//! A thread that makes one login, under a deadline: client libraries set no timeouts, and a server
//! that accepts and says nothing would keep its caller for ever.
//!
//! At the deadline the checker says so to whoever waits, and shuts the login's socket down, so that
//! the thread ends. Where the socket cannot be found the thread stays until its server or the kernel
//! ends it; it counts as *stuck*, and while one is, its peer is dialed by the checker alone.

use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::fault::{Fault, Refusal, is_timeout};
use crate::login::socket::{self, Socket, Sockets, Thread};
use crate::panics::{Panicked, catch_panic, lock};
use crate::peers::deadline::CancelReason;
use crate::peers::set::PeerSet;

/// The name of a thread that makes one login. Linux shows the first 15 characters.
const DIALER: &str = "peers-dial";

/// After how long a login that did not end when it was cut off is cut off again (it may have gone on
/// to the next address), and up to how long that grows.
const CUT_AGAIN: Duration = Duration::from_millis(250);
const CUT_AGAIN_AT_MOST: Duration = Duration::from_secs(30);

/// How often it is looked whether a login is met with silence that is late.
const LISTEN_AGAIN: Duration = Duration::from_millis(100);

/// Why a login came to nothing.
#[derive(Debug)]
pub(crate) enum LoginFailure {
    /// The peer, or its host, said so.
    Refused(Refusal),
    /// It has not answered in time, ours or the client library's own.
    Unanswered(Arc<str>),
    /// Because of this process: nobody was asked, or it did not come to hear the answer.
    NotAttempted(Arc<str>),
}

impl LoginFailure {
    /// As the client library says.
    pub(crate) fn said(refusal: Refusal) -> Self {
        if is_timeout(&refusal.reason) {
            Self::Unanswered(refusal.reason)
        } else {
            Self::Refused(refusal)
        }
    }

    fn late(patience: Duration) -> Self {
        Self::Unanswered(format!("no answer to a login within {patience:?}").into())
    }
}

impl fmt::Display for LoginFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(Refusal { reason, .. })
            | Self::Unanswered(reason)
            | Self::NotAttempted(reason) => f.write_str(reason),
        }
    }
}

/// How far a login is, and so where its socket is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    stage: Mutex<Stage>,
}

#[derive(Debug, Default)]
enum Stage {
    /// Code runs that is not the client library's.
    #[default]
    Elsewhere,
    /// The client library is at work: the thread waits for nothing but its server.
    LoggingIn { thread: Thread, before: Arc<Sockets> },
    /// Logged in, over this socket.
    In(Arc<Socket>),
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, Stage> {
        lock(&self.stage)
    }

    /// From now on this thread only talks to the server. Returns the sockets that there were before.
    pub(crate) fn logs_in(&self) -> Arc<Sockets> {
        let before = Arc::new(Sockets::of_this_process());
        if let Some(thread) = Thread::current() {
            *self.lock() = Stage::LoggingIn { thread, before: before.clone() };
        }
        before
    }

    /// Does something in between that is not the client library's.
    pub(crate) fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        let stage = mem::take(&mut *self.lock());
        let outcome = work();
        *self.lock() = stage;
        outcome
    }

    /// From now on it may do anything; its connection's socket is this, as far as is known.
    pub(crate) fn logged_in(&self, socket: Option<Arc<Socket>>) {
        *self.lock() = socket.map_or(Stage::Elsewhere, Stage::In);
    }

    /// How much the server has said for which the thread waits. `None` when it waits for something
    /// else: a processor, a resolver.
    fn heard(&self) -> Option<u64> {
        match &*self.lock() {
            Stage::LoggingIn { thread, before } => socket::awaited_by(thread, before)?.received(),
            Stage::Elsewhere | Stage::In(_) => None,
        }
    }

    /// Shuts its socket down, as far as that is known.
    fn cut(&self) {
        // The stage does not change meanwhile.
        match &*self.lock() {
            Stage::Elsewhere => {}
            Stage::LoggingIn { thread, before } => {
                if let Some(socket) = socket::awaited_by(thread, before) {
                    socket.shut_down();
                }
            }
            Stage::In(socket) => socket.shut_down(),
        }
    }
}

/// Who is told what became of the login.
type Report<T> = Box<dyn FnOnce(Result<T, LoginFailure>) + Send>;

struct Call<T> {
    set: Arc<PeerSet>,
    peer: usize,
    began: Instant,
    patience: Patience,
    progress: Progress,
    state: Mutex<State<T>>,
}

/// Whoever knows the outcome first takes the report.
enum State<T> {
    UnderWay(Report<T>),
    /// It was reported to be late, and is stuck.
    Late,
    Ended,
}

/// For how long a login is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) with_silence: Duration,
    /// When the server has begun to answer, or this process has not come to read it.
    pub(crate) at_most: Duration,
}

impl Patience {
    /// The same whether the server says something or not.
    pub(crate) fn of(at_most: Duration) -> Self {
        Self { with_silence: at_most, at_most }
    }
}

/// Runs `work`, which talks to a server, on a thread of its own, and reports its outcome; or that it
/// has taken longer than `patience`, when it has.
pub(crate) fn start<T: Send + 'static>(
    set: &Arc<PeerSet>,
    peer: usize,
    (began, patience): (Instant, Patience),
    work: impl FnOnce(&Progress) -> Result<T, LoginFailure> + Send + 'static,
    report: impl FnOnce(Result<T, LoginFailure>) + Send + 'static,
) {
    let call = Arc::new(Call {
        set: set.clone(),
        peer,
        began,
        patience,
        progress: Progress::default(),
        state: Mutex::new(State::UnderWay(Box::new(report))),
    });
    let late = call.clone();
    let ticket = set
        .add_deadline(began + patience.with_silence, move |reason| late.cut_off(reason, CUT_AGAIN));
    let worker = call.clone();
    let thread = thread::Builder::new().name(DIALER.to_owned()).spawn(move || {
        let outcome = catch_panic(|| work(&worker.progress));
        let panicked = |_| {
            let reason = format!("a login ended without a word: {Panicked}");
            Err(LoginFailure::Refused(Refusal::new(Fault::PeerDown, reason)))
        };
        worker.end(outcome.unwrap_or_else(panicked));
        worker.set.deadlines().end(ticket);
    });
    if let Err(error) = thread {
        set.deadlines().end(ticket);
        let reason = format!("no thread to log in from: {error}");
        call.end(Err(LoginFailure::NotAttempted(reason.into())));
    }
}

impl<T: Send + 'static> Call<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        lock(&self.state)
    }

    /// The login has ended. What comes too late is closed over here.
    fn end(&self, outcome: Result<T, LoginFailure>) {
        let report = {
            let state = &mut *self.lock();
            match mem::replace(state, State::Ended) {
                State::UnderWay(report) => Some(report),
                State::Late | State::Ended => {
                    // Closing it may hang as well, and be cut off.
                    *state = State::Late;
                    None
                }
            }
        };
        let is_late = report.is_none();
        // What it is reported to may panic, and so may what is reported to nobody.
        let _ = catch_panic(|| match report {
            Some(report) => report(outcome),
            None => drop(outcome),
        });
        if is_late {
            *self.lock() = State::Ended;
            self.set.update_counts(self.peer, |counts| counts.stuck_logins -= 1);
            // While it was stuck its peer was left alone.
            self.set.wake();
        }
    }

    /// What there is to say of one that is late. `None` when it is given more time: only a server that
    /// has not said a word is silent.
    fn verdict(&self, now: Instant) -> Option<LoginFailure> {
        let Patience { with_silence, at_most } = self.patience;
        if with_silence >= at_most {
            return Some(LoginFailure::late(at_most));
        }
        let heard = self.progress.heard();
        match heard {
            Some(0) => Some(LoginFailure::late(with_silence)),
            _ if now < self.began + at_most => None,
            Some(_) => Some(LoginFailure::late(at_most)),
            // It did not come to ask.
            None => Some(LoginFailure::NotAttempted("this process stood still".into())),
        }
    }

    /// It is late. Says so, once, if anybody waits for it, and cuts it off, until it ends.
    fn cut_off(self: &Arc<Self>, reason: CancelReason, wait: Duration) {
        let (report, failure) = {
            // It neither ends nor goes on to anything else meanwhile.
            let state = &mut *self.lock();
            let failure = match (&*state, reason) {
                (State::Ended, _) => return,
                (State::UnderWay(_), CancelReason::Deadline(now)) => {
                    let Some(failure) = self.verdict(now) else {
                        let later = self.clone();
                        self.set.add_deadline(now + LISTEN_AGAIN, move |reason| {
                            later.cut_off(reason, wait);
                        });
                        return;
                    };
                    Some(failure)
                }
                (State::UnderWay(_) | State::Late, _) => None,
            };
            let report = match mem::replace(state, State::Late) {
                State::UnderWay(report) => {
                    self.set.update_counts(self.peer, |counts| counts.stuck_logins += 1);
                    Some(report)
                }
                State::Late | State::Ended => None,
            };
            self.progress.cut();
            (report, failure)
        };
        let again = self.clone();
        let now = match reason {
            CancelReason::Deadline(now) => now,
            // All that is on the list is cut off again and again, whenever it is due.
            CancelReason::PoolClosed => self.began,
        };
        let longer = (wait * 2).min(CUT_AGAIN_AT_MOST);
        self.set.add_deadline(now + wait, move |reason| again.cut_off(reason, longer));
        if let (Some(report), Some(failure)) = (report, failure) {
            let _ = catch_panic(|| report(Err(failure)));
        }
    }
}
