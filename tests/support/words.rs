//! What a scripted server says, whichever protocol it speaks: any error in answer to a statement or a login. For the
//! words of servers and proxies that Debian does not package.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// An error that a server reports. The code is a number of MySQL or an SQLSTATE of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    pub(super) code: String,
    pub(super) text: String,
    /// Whether the session ends after these words.
    pub(super) are_last: bool,
}

impl Words {
    fn new(code: &str, text: &str, are_last: bool) -> Self {
        Self { code: code.to_owned(), text: text.to_owned(), are_last }
    }
}

/// The time after which a statement is answered that is held.
const LONG: Duration = Duration::from_secs(30);

/// The answer to a statement.
pub(super) enum Answer {
    Ok,
    Error(Words),
}

/// The state of a scripted server, which a test changes at any time.
#[derive(Debug, Default)]
pub struct Script {
    /// The errors of statements that begin like this.
    errors: Mutex<HashMap<String, Words>>,
    /// The beginning of statements that are held.
    held: Mutex<Option<String>>,
    /// The error of each login.
    refusal: Mutex<Option<Words>>,
    sessions: Mutex<Vec<TcpStream>>,
    logins: AtomicUsize,
    /// How many sessions end at their next statement.
    sessions_to_end: AtomicUsize,
    is_stopped: AtomicBool,
}

/// A scripted server, which runs until the test ends.
#[derive(Debug)]
pub struct ScriptedServer {
    port: u16,
    script: Arc<Script>,
}

impl ScriptedServer {
    /// Starts a server. `session` speaks its protocol with one client.
    pub(super) fn start(session: fn(TcpStream, &Script) -> io::Result<()>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = listener.local_addr().expect("the listener is bound").port();
        let script = Arc::<Script>::default();
        let of_sessions = script.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let script = of_sessions.clone();
                if script.is_stopped.load(Ordering::SeqCst) {
                    // A client whose connection is closed at once is told as much as by a closed port.
                    continue;
                }
                // A session ends with the client's last packet.
                thread::spawn(move || {
                    client.set_nodelay(true)?;
                    script.sessions().push(client.try_clone()?);
                    let outcome = session(client.try_clone()?, &script);
                    // The duplicate would keep the connection open.
                    let _ = client.shutdown(Shutdown::Both);
                    outcome
                });
            }
        });
        Self { port, script }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

impl Deref for ScriptedServer {
    type Target = Script;

    fn deref(&self) -> &Script {
        &self.script
    }
}

impl Script {
    fn errors(&self) -> MutexGuard<'_, HashMap<String, Words>> {
        self.errors.lock().expect("no thread has panicked")
    }

    fn sessions(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.sessions.lock().expect("no thread has panicked")
    }

    /// Answers each statement that begins like this with an error.
    pub fn say(&self, beginning: &str, code: &str, text: &str) {
        let words = Words::new(code, text, false);
        self.errors().insert(beginning.to_owned(), words);
    }

    /// Does the same, and ends the session.
    pub fn say_at_last(&self, beginning: &str, code: &str, text: &str) {
        let words = Words::new(code, text, true);
        self.errors().insert(beginning.to_owned(), words);
    }

    /// Does not answer statements that begin like this for a long time.
    pub fn hold(&self, beginning: &str) {
        *self.held.lock().expect("no thread has panicked") = Some(beginning.to_owned());
    }

    /// Answers each statement and accepts each login again.
    pub fn say_nothing_more(&self) {
        self.errors().clear();
        *self.refusal.lock().expect("no thread has panicked") = None;
    }

    /// Refuses each login with an error. Sessions continue.
    pub fn refuse_logins(&self, code: &str, text: &str) {
        let words = Words::new(code, text, true);
        *self.refusal.lock().expect("no thread has panicked") = Some(words);
    }

    /// Accepts no connection any more, or accepts connections again. Sessions continue.
    pub fn close_port(&self, closed: bool) {
        self.is_stopped.store(closed, Ordering::SeqCst);
    }

    /// Returns the number of logins so far that were accepted.
    pub fn logins(&self) -> usize {
        self.logins.load(Ordering::Relaxed)
    }

    /// Ends this many sessions at their next statement.
    pub fn end_sessions(&self, count: usize) {
        self.sessions_to_end.store(count, Ordering::Relaxed);
    }

    /// Ends each session now, without a word.
    pub fn end_all_sessions(&self) {
        for session in self.sessions().drain(..) {
            // The client may have closed it.
            let _ = session.shutdown(Shutdown::Both);
        }
    }

    /// Returns the error of a login, or accepts it.
    pub(super) fn answer_login(&self) -> Option<Words> {
        let refusal = self.refusal.lock().expect("no thread has panicked").clone();
        if refusal.is_none() {
            self.logins.fetch_add(1, Ordering::Relaxed);
        }
        refusal
    }

    /// Returns the answer to a statement.
    pub(super) fn answer(&self, statement: &str) -> io::Result<Answer> {
        let one_less = |count: usize| count.checked_sub(1);
        if self.sessions_to_end.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
        {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let held = self.held.lock().expect("no thread has panicked").clone();
        if held.is_some_and(|held| statement.starts_with(&held)) {
            thread::sleep(LONG);
        }
        let errors = self.errors();
        let error = errors.iter().find(|(beginning, _)| statement.starts_with(beginning.as_str()));
        Ok(error.map_or(Answer::Ok, |(_, words)| Answer::Error(words.clone())))
    }
}
