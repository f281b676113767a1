//! A resolver that says what a test tells it to.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::backend::PATIENCE;
use super::scripted::Gate;
use super::wait_until;

/// What is said of every name.
#[derive(Debug, Clone)]
pub enum Answer {
    Addresses(Vec<IpAddr>),
    Error(&'static str),
    Panic,
}

/// What it says from now on, and how many times it has said something.
#[derive(Debug)]
pub struct Script {
    /// Those to come. The last one is said again and again.
    answers: Mutex<VecDeque<Answer>>,
    gate: Gate,
    asked: AtomicUsize,
}

impl Script {
    pub fn new(answer: Answer) -> Arc<Self> {
        let (gate, asked) = Default::default();
        Arc::new(Self { answers: Mutex::new([answer].into()), gate, asked })
    }

    /// These addresses, each as text.
    pub fn of(addresses: &[&str]) -> Arc<Self> {
        Self::new(Answer::of(addresses))
    }

    /// The closure to build with.
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
        let last = answers.back().cloned().expect("there is always one");
        let next = answers.pop_front().expect("there is always one");
        if answers.is_empty() {
            answers.push_back(last);
        }
        next
    }

    /// Says this from now on.
    pub fn say(&self, answer: Answer) {
        self.say_each([answer]);
    }

    /// Says these one after the other, and the last one from then on.
    pub fn say_each(&self, answers: impl IntoIterator<Item = Answer>) {
        *self.answers() = answers.into_iter().collect();
    }

    /// Whether lookups wait until they are let through again.
    pub fn hold(&self, hold: bool) {
        self.gate.close(hold);
    }

    /// How many times it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Waits until so many answers more were dealt with.
    #[track_caller]
    pub fn wait_for_answers(&self, more: usize) {
        // The last one is, when it is asked again. Another one may be under way now.
        let before = self.asked();
        wait_until("the name is resolved", PATIENCE, || self.asked() > before + more);
    }
}

impl Answer {
    /// These addresses, each as text.
    pub fn of(addresses: &[&str]) -> Self {
        let addresses = addresses.iter().map(|address| address.parse().expect("an address"));
        Self::Addresses(addresses.collect())
    }
}
