//! A resolver that a test controls.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::backend::PATIENCE;
use super::scripted::Gate;
use super::wait_until;

/// The answer to a lookup of any name.
#[derive(Debug, Clone)]
pub enum Answer {
    Addresses(Vec<IpAddr>),
    Error(&'static str),
    Panic,
}

/// The answers of a resolver, and the number of its lookups.
#[derive(Debug)]
pub struct Script {
    /// The answers to the next lookups. The last one stays, and answers all later lookups.
    answers: Mutex<VecDeque<Answer>>,
    gate: Gate,
    asked: AtomicUsize,
}

impl Script {
    pub fn new(answer: Answer) -> Arc<Self> {
        let (gate, asked) = Default::default();
        Arc::new(Self { answers: Mutex::new([answer].into()), gate, asked })
    }

    /// Creates a script that answers with these addresses.
    pub fn of(addresses: &[&str]) -> Arc<Self> {
        Self::new(Answer::of(addresses))
    }

    /// Returns the closure for the builder.
    pub fn resolver(self: &Arc<Self>) -> impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + use<> {
        let script = self.clone();
        move |_| {
            script.asked.fetch_add(1, Ordering::SeqCst);
            script.gate.pass();
            let answer = script.next();
            match answer {
                Answer::Addresses(addresses) => Ok(addresses),
                Answer::Error(reason) => Err(io::Error::other(reason)),
                Answer::Panic => panic!("this resolver panics"),
            }
        }
    }

    fn answers(&self) -> MutexGuard<'_, VecDeque<Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Answer {
        let mut answers = self.answers();
        let last = answers.back().cloned().expect("there is always an answer");
        let next = answers.pop_front().expect("there is always an answer");
        if answers.is_empty() {
            answers.push_back(last);
        }
        next
    }

    /// Sets the answer to all lookups from now on.
    pub fn set_answer(&self, answer: Answer) {
        self.set_answers([answer]);
    }

    /// Sets the answers to the next lookups. The last one also answers all later lookups.
    pub fn set_answers(&self, answers: impl IntoIterator<Item = Answer>) {
        *self.answers() = answers.into_iter().collect();
    }

    /// Sets whether lookups are held back.
    pub fn hold(&self, hold: bool) {
        self.gate.close(hold);
    }

    /// Returns the number of lookups so far.
    pub fn lookups(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Waits until this number of further answers has been processed.
    #[track_caller]
    pub fn wait_for_answers(&self, more: usize) {
        // An answer has been processed when the next lookup starts. A lookup may be under way now.
        let before = self.lookups();
        wait_until("the name is resolved again", PATIENCE, || self.lookups() > before + more);
    }
}

impl Answer {
    /// Creates an answer of these addresses.
    pub fn of(addresses: &[&str]) -> Self {
        let addresses =
            addresses.iter().map(|address| address.parse().expect("the text is an IP address"));
        Self::Addresses(addresses.collect())
    }
}
