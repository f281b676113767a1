//! Outlier detection: decides which peers are alive and much slower than the others. Pure: the query times of
//! checkouts, the time and the states of the peers are arguments.
//!
//! A checkout's peer is chosen before its queries are known. So if the peers are alike, the query times of
//! their checkouts are samples of the same distribution, whatever the application does, and a rank test can
//! tell how probable a difference is by chance. A peer is *slow* if two conditions hold in a window of time:
//!
//! - the middle of its query times is over `slow_factor` times, and over `slow_difference` above, that of the
//!   others: of half of the others at least;
//! - chance is below [`MAX_CHANCE`], even for a peer that is `slow_factor` times slower. So its times are divided
//!   by the factor, or reduced by the difference, before they are compared. Otherwise a peer that is only a
//!   little slower would be an outlier whenever the middle of few times is far off by chance.
//!
//! The windows are the last 250 ms, 500 ms and so on, up to five seconds, and longer if a peer has too few
//! checkouts by then. The chance is that of one window, not of all that are ever judged.
//!
//! A window has the checkouts that have begun in it. Those that have ended in it would be no fair sample: a peer
//! that has many connections in use gets less new work, so of its checkouts the long ones end when others have
//! short ones. A checkout that is still running counts with the time so far, on all peers alike, so a query that
//! never ends counts as well.
//!
//! A checkout that has failed is not compared: its query time says nothing.
//!
//! A slow peer gets *trials*: single checkouts, which show whether it is still slow. It is not slow any more when
//! the last of them were as fast as the other peers', or less than the factor slower. A trial that has failed shows
//! nothing, and costs as much as one that was slow.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::peers::checkout_times::{Checkout, micros};

/// The largest probability that a peer that is not slow is taken for slow in one window.
const MAX_CHANCE: f64 = 1e-6;

/// The minimum number of checkouts of a peer in a window. Fewer can be slow for one common reason, such as a
/// row that they all wait for.
const MIN_SAMPLES: usize = 8;

/// The time between two judgements, and the unit of the windows.
const BLOCK: Duration = Duration::from_millis(250);

/// The longest window in which each peer has enough checkouts.
const WINDOW: Duration = Duration::from_secs(5);

/// The longest window. Peers without enough checkouts in this time are not compared.
const LONGEST_WINDOW: Duration = Duration::from_secs(60);

/// The number of query times of a peer that are kept of each block that is older than [`WINDOW`].
const KEPT_OF_OLD_BLOCK: usize = 8;

/// The number of blocks by which windows that are longer than [`WINDOW`] grow.
const LONG_STEP: usize = 20;

/// The pause after the first trial that does not show that a peer is fast. Each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The pool's query time is at least this many times that of the trials that were slow or have failed. So these take
/// at most 2 % of it.
const POOL_PER_TRIAL: u32 = 50;

/// The time after which a checkout is one of a worker that keeps its connection, and no trial.
const HELD_AFTER: Duration = Duration::from_secs(10);

/// The time after which a trial is made although the pool makes few queries, or although another trial has not
/// ended yet.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A peer that becomes slow again within this time needs twice as many fast trials as before.
const RELAPSE_TIME: Duration = Duration::from_secs(60);
const MOST_TRIALS: usize = 128;

/// What counts as slower.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    pub(super) factor: f64,
    pub(super) difference: Duration,
}

impl Rule {
    /// Returns the time in microseconds that a peer would have needed that is not slow, if this one is just not
    /// slow.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the quotient is not negative and not larger than the time"
    )]
    fn reduced(&self, time: u32) -> u32 {
        let quotient = (f64::from(time) / self.factor) as u32;
        quotient.min(time.saturating_sub(micros(self.difference)))
    }
}

/// The query times of a peer in a window.
#[derive(Debug, Default)]
struct Sample {
    /// Whether the peer is known to be slow.
    is_slow: bool,
    /// In microseconds, in any order.
    times: Vec<u32>,
}

/// A peer that is slower than the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outlier {
    /// The position of the peer among those that were compared.
    pub(super) peer: usize,
    /// The middle of its query times.
    pub(super) time: Duration,
    /// The middle of the other peers' query times.
    pub(super) others: Duration,
}

/// Returns the peer that is slow and not known to be, of several the slowest. Never more than half of the peers
/// are slow.
fn find_outlier(rule: Rule, samples: &mut [Sample]) -> Option<Outlier> {
    let slow = samples.iter().filter(|sample| sample.is_slow).count();
    if 2 * (slow + 1) > samples.len() {
        return None;
    }
    // Of a known slow peer nothing needs to be learned. It stays slower than any that is not.
    let middles: Vec<Option<u32>> = samples
        .iter_mut()
        .map(|sample| if sample.is_slow { Some(u32::MAX) } else { middle(&mut sample.times) })
        .collect();
    let candidate = |peer: usize| {
        let (sample, time) = (&samples[peer], middles[peer]?);
        let mut others: Vec<u32> = middles
            .iter()
            .enumerate()
            .filter_map(|(other, middle)| middle.filter(|_| other != peer))
            .collect();
        others.sort_unstable();
        let other = *others.get(others.len() / 2)?;
        (!sample.is_slow && other != u32::MAX && rule.reduced(time) > other).then_some((
            f64::from(time) / f64::from(other.max(1)),
            peer,
            time,
            other,
        ))
    };
    let mut candidates: Vec<_> = (0..samples.len()).filter_map(candidate).collect();
    candidates.sort_unstable_by(|(one, ..), (other, ..)| other.total_cmp(one));
    // A peer that may be slow as well says nothing about the others.
    let is_other = |peer: usize| {
        let sample = &samples[peer];
        !sample.is_slow
            && sample.times.len() >= MIN_SAMPLES
            && candidates.iter().all(|(_, candidate, ..)| *candidate != peer)
    };
    let others = (0..samples.len()).filter(|peer| is_other(*peer));
    let others: Vec<u32> = others.flat_map(|peer| samples[peer].times.iter().copied()).collect();
    let is_significant = |peer: usize| {
        let own: Vec<u32> = samples[peer].times.iter().map(|time| rule.reduced(*time)).collect();
        chance(&own, &others) < MAX_CHANCE
    };
    let outlier = candidates.iter().find(|(_, peer, ..)| is_significant(*peer));
    outlier.map(|(_, peer, time, others)| Outlier {
        peer: *peer,
        time: Duration::from_micros((*time).into()),
        others: Duration::from_micros((*others).into()),
    })
}

/// Returns the middle of the times, if there are enough.
fn middle(times: &mut [u32]) -> Option<u32> {
    if times.len() < MIN_SAMPLES {
        return None;
    }
    let (_, middle, _) = times.select_nth_unstable(times.len() / 2);
    Some(*middle)
}

/// Returns the probability that as many of the longest times are a peer's `own`, if each time is as probably its
/// own as any other.
///
/// This is a rank test without approximation: of all times, the longest are counted, as many as there are of its
/// own, and how many of those are its own follows the hypergeometric distribution. Times that are equal to the
/// first one that is not among the longest do not count as long.
fn chance(own: &[u32], others: &[u32]) -> f64 {
    let all = own.len() + others.len();
    if own.is_empty() || others.is_empty() {
        return 1.0;
    }
    let mut times: Vec<u32> = own.iter().chain(others).copied().collect();
    let (_, bound, _) = times.select_nth_unstable_by(own.len(), |one, other| other.cmp(one));
    let bound = *bound;
    let count = |times: &[u32]| times.iter().filter(|time| **time > bound).count();
    let (own_long, long) = (count(own), count(own) + count(others));
    let ln_factorials = ln_factorials(all);
    let ln_choose = |of: usize, chosen: usize| {
        ln_factorials[of] - ln_factorials[chosen] - ln_factorials[of - chosen]
    };
    let ln_all = ln_choose(all, own.len());
    (own_long..=long.min(own.len()))
        .filter(|more| own.len() - more <= all - long)
        .map(|more| {
            (ln_choose(long, more) + ln_choose(all - long, own.len() - more) - ln_all).exp()
        })
        .sum::<f64>()
        .min(1.0)
}

/// Returns the natural logarithms of the factorials from 0 to `last`.
fn ln_factorials(last: usize) -> Vec<f64> {
    #[expect(clippy::cast_precision_loss, reason = "no window has that many checkouts")]
    let logarithms = (1..=last).map(|number| (number as f64).ln());
    let sums = logarithms.scan(0.0, |sum, logarithm| {
        *sum += logarithm;
        Some(*sum)
    });
    [0.0].into_iter().chain(sums).collect()
}

/// A peer that is compared with others, and what is new of it.
#[derive(Debug)]
pub(super) struct Observation {
    pub(super) id: u64,
    /// Since when the peer is known to be slow.
    pub(super) slow_since: Option<Instant>,
    /// Checkouts that have ended since the last observation.
    pub(super) ended: Vec<Checkout>,
    /// Checkouts that are running, with their query times so far.
    pub(super) running: Vec<Checkout>,
}

/// What follows from an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Slow(Outlier),
    /// The peer at this position is not slow any more.
    NoLongerSlow(usize),
    /// The slow peer at this position is to get a checkout.
    TrialDue(usize),
    /// The slow peer at this position is to keep so many connections from now on.
    KeepsLinks(usize, usize),
}

impl Verdict {
    /// Returns the position of the peer among those that were compared.
    pub(super) fn position(&self) -> usize {
        match self {
            Self::Slow(outlier) => outlier.peer,
            Self::NoLongerSlow(position)
            | Self::TrialDue(position)
            | Self::KeepsLinks(position, _) => *position,
        }
    }
}

/// Compares the peers, over time.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// The ids of the peers that are compared.
    ids: Vec<u64>,
    /// The query times of the last seconds. The last block is not complete.
    blocks: VecDeque<Block>,
    /// The trials of the slow peers.
    trials: Vec<Trials>,
    /// The peers that were slow a short time ago.
    recovered: Vec<Recovered>,
}

/// The query times of the checkouts that have begun in a short time and have ended.
#[derive(Debug)]
struct Block {
    began: Instant,
    /// By the position of the peer.
    times: Vec<Vec<u32>>,
}

/// The trials of a slow peer.
#[derive(Debug)]
struct Trials {
    id: u64,
    /// When the peer was found slow. Checkouts that had begun before are no trials.
    since: Instant,
    /// Of each of the last checkouts, the probability that a checkout of another peer takes no longer, after its
    /// own time was reduced. It is above one half if the peer is still slow.
    grades: VecDeque<f64>,
    /// How many grades decide.
    needed: usize,
    pause: Duration,
    /// When the next trial is due at the earliest.
    next: Instant,
    /// The query time of the pool at which the next trial is due at the earliest.
    next_pool_time: Duration,
    /// The query time of the checkouts that have ended since the last trial was due. In a pool whose connections are
    /// all in use, others follow a trial until the connection has left.
    spent: Duration,
    /// When the last trial ended or was found due.
    last: Instant,
    /// Whether a trial was found due, and no checkout has ended since.
    is_expected: bool,
    /// Whether the last checkouts were no trials: the other peers had no idle connection.
    is_pool_full: bool,
    /// How many connections the peer keeps.
    links: usize,
}

#[derive(Debug)]
struct Recovered {
    id: u64,
    at: Instant,
    needed: usize,
}

impl Judge {
    /// Takes note of an observation of the peers that are compared. `pool_time` is the total query time of the
    /// pool so far.
    pub(super) fn observe(
        &mut self,
        rule: Rule,
        now: Instant,
        pool_time: Duration,
        peers: &[Observation],
    ) -> Vec<Verdict> {
        if !self.ids.iter().copied().eq(peers.iter().map(|peer| peer.id)) {
            // A window has the same peers from its begin to its end.
            self.blocks.clear();
            self.ids = peers.iter().map(|peer| peer.id).collect();
        }
        self.add_times(now, peers);
        let mut verdicts = Vec::new();
        if let Some(outlier) = self.judge(rule, now, peers) {
            verdicts.push(Verdict::Slow(outlier));
        }
        verdicts.extend(self.observe_trials(rule, now, pool_time, peers));
        verdicts
    }

    /// Adds the new query times to the blocks in which the checkouts have begun, and forgets old blocks.
    fn add_times(&mut self, now: Instant, peers: &[Observation]) {
        if self.blocks.is_empty() {
            self.begin_block(now);
        }
        for (position, peer) in peers.iter().enumerate() {
            for checkout in peer.ended.iter().filter(|checkout| !checkout.has_failed) {
                let block = self.blocks.iter_mut().rev().find(|one| one.began <= checkout.began);
                // Of those that have begun before all blocks, others of the same time are missing.
                if let Some(block) = block {
                    block.times[position].push(checkout.query_micros);
                }
            }
        }
        let is_older = |block: &Block, age| now.saturating_duration_since(block.began) > age;
        while self.blocks.front().is_some_and(|block| is_older(block, LONGEST_WINDOW)) {
            self.blocks.pop_front();
        }
        if self.blocks.is_empty() {
            self.begin_block(now);
        }
    }

    fn begin_block(&mut self, now: Instant) {
        self.blocks.push_back(Block { began: now, times: vec![Vec::new(); self.ids.len()] });
    }

    /// Looks for a slow peer at the end of each block.
    fn judge(&mut self, rule: Rule, now: Instant, peers: &[Observation]) -> Option<Outlier> {
        let age = |block: &Block| now.saturating_duration_since(block.began);
        if self.blocks.back().is_none_or(|block| age(block) < BLOCK) {
            return None;
        }
        let mut samples: Vec<Sample> = peers
            .iter()
            .map(|peer| Sample { is_slow: peer.slow_since.is_some(), times: Vec::new() })
            .collect();
        let mut outlier = None;
        let mut long_blocks = 0;
        let mut block_end = now;
        for block in self.blocks.iter_mut().rev() {
            let is_long = age(block) > WINDOW + BLOCK;
            if is_long {
                if samples.iter().all(|one| one.is_slow || one.times.len() >= MIN_SAMPLES) {
                    break;
                }
                block.times.iter_mut().for_each(thin_out);
            }
            for ((sample, times), peer) in samples.iter_mut().zip(&block.times).zip(peers) {
                sample.times.extend(times);
                let running = peer.running.iter().filter(|checkout| !checkout.has_failed);
                let of_block =
                    running.filter(|one| one.began >= block.began && one.began < block_end);
                sample.times.extend(of_block.map(|checkout| checkout.query_micros));
            }
            block_end = block.began;
            long_blocks += usize::from(is_long);
            if long_blocks % LONG_STEP == 0 {
                outlier = find_outlier(rule, &mut samples);
            }
            if outlier.is_some() {
                break;
            }
        }
        self.begin_block(now);
        outlier
    }

    /// Grades the checkouts of the slow peers, and finds which of them are to get another one.
    fn observe_trials(
        &mut self,
        rule: Rule,
        now: Instant,
        pool_time: Duration,
        peers: &[Observation],
    ) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        let slow = |peer: &Observation| peer.slow_since.is_some();
        let mut slow_peers = peers.iter().filter(|peer| slow(peer)).count();
        self.trials.retain(|one| peers.iter().any(|peer| slow(peer) && peer.id == one.id));
        self.recovered.retain(|one| now.saturating_duration_since(one.at) < RELAPSE_TIME);
        let others = if slow_peers == 0 { Vec::new() } else { self.sorted_times(now, peers) };
        for (position, peer) in peers.iter().enumerate() {
            let Some(since) = peer.slow_since else { continue };
            let trials = trials_of(&mut self.trials, &self.recovered, peer.id, now);
            let budget = POOL_PER_TRIAL * u32::try_from(slow_peers).unwrap_or(u32::MAX);
            let later = peer.ended.iter().filter(|checkout| checkout.began >= since).count();
            if later > 0 {
                trials.is_pool_full = later > usize::from(trials.is_expected);
                trials.is_expected = false;
            }
            trials.add(rule, now, pool_time, budget, &peer.ended, &others);
            let is_one_too_many = 2 * slow_peers > peers.len();
            if trials.are_fast() || is_one_too_many {
                slow_peers -= 1;
                let needed = trials.needed;
                self.recovered.push(Recovered { id: peer.id, at: now, needed });
                verdicts.push(Verdict::NoLongerSlow(position));
                continue;
            }
            // A checkout that has begun before is no trial.
            let is_held =
                |checkout: &&Checkout| now.saturating_duration_since(checkout.began) > HELD_AFTER;
            let held = peer.running.iter().filter(is_held).count();
            let mut running = peer.running.iter().filter(|checkout| !is_held(checkout));
            let is_running = running.any(|checkout| checkout.began >= since);
            let is_due = trials.is_due(now, pool_time, is_running);
            if is_due {
                trials.is_expected = true;
                verdicts.push(Verdict::TrialDue(position));
            }
            let keeps_one = !trials.is_pool_full || trials.is_expected || trials.pause.is_zero();
            // No trial can be made on the connections that are held.
            let links = held + usize::from(keeps_one);
            if links != trials.links {
                trials.links = links;
                verdicts.push(Verdict::KeepsLinks(position, links));
            }
        }
        if verdicts.iter().any(|verdict| matches!(verdict, Verdict::NoLongerSlow(_))) {
            // The trials must not make the peer slow again.
            self.blocks.clear();
        }
        verdicts
    }

    /// Returns the query times of the peers that are not slow, in order: of the last seconds, or of a longer time
    /// if they are few.
    fn sorted_times(&self, now: Instant, peers: &[Observation]) -> Vec<u32> {
        let mut times = Vec::new();
        for block in self.blocks.iter().rev() {
            let age = now.saturating_duration_since(block.began);
            if age > WINDOW && times.len() >= MIN_SAMPLES {
                break;
            }
            let of_block = block.times.iter().zip(peers);
            let of_fast = of_block.filter(|(_, peer)| peer.slow_since.is_none());
            times.extend(of_fast.flat_map(|(times, _)| times));
        }
        times.sort_unstable();
        times
    }
}

/// Returns the trials of this peer, which has become slow at `now` if it has none yet.
fn trials_of<'a>(
    all: &'a mut Vec<Trials>,
    recovered: &[Recovered],
    id: u64,
    now: Instant,
) -> &'a mut Trials {
    let at = all.iter().position(|trials| trials.id == id).unwrap_or_else(|| {
        let before = recovered.iter().rev().find(|one| one.id == id);
        let needed = before.map_or(MIN_SAMPLES, |one| (2 * one.needed).min(MOST_TRIALS));
        all.push(Trials {
            id,
            since: now,
            grades: VecDeque::new(),
            needed,
            pause: Duration::ZERO,
            next: now + FIRST_PAUSE,
            next_pool_time: Duration::ZERO,
            last: now,
            spent: Duration::ZERO,
            is_expected: false,
            is_pool_full: false,
            links: 1,
        });
        all.len() - 1
    });
    &mut all[at]
}

impl Trials {
    /// Adds checkouts that have ended. Those that have not failed are graded by the sorted query times of the
    /// `others`.
    fn add(
        &mut self,
        rule: Rule,
        now: Instant,
        pool_time: Duration,
        budget: u32,
        ended: &[Checkout],
        others: &[u32],
    ) {
        if ended.is_empty() {
            return;
        }
        let is_comparable = others.len() >= MIN_SAMPLES;
        let succeeded = ended.iter().filter(|checkout| is_comparable && !checkout.has_failed);
        let mut last_grade = None;
        for checkout in succeeded {
            if self.grades.len() == self.needed {
                self.grades.pop_front();
            }
            let grade = grade(rule.reduced(checkout.query_micros), others);
            self.grades.push_back(grade);
            last_grade = Some(grade);
        }
        if last_grade.is_some_and(|grade| grade <= 0.5) {
            // A checkout that is as fast as on the other peers costs nothing.
            (self.pause, self.next_pool_time) = (Duration::ZERO, pool_time);
        } else {
            // Without the pause, all work of a pool that has little would be trials with nothing to compare them
            // with, and all work of a peer that fails fast would be trials that fail.
            self.pause = (2 * self.pause).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            let is_cost = |checkout: &&Checkout| {
                checkout.began >= self.since && (is_comparable || checkout.has_failed)
            };
            let times = ended.iter().filter(is_cost).map(Checkout::query_time);
            self.spent += times.sum::<Duration>();
            self.next_pool_time = pool_time + budget.saturating_sub(1) * self.spent;
        }
        (self.next, self.last) = (now + self.pause, now);
    }

    /// Whether the last trials that have not failed were fast.
    fn are_fast(&self) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let half = self.grades.len() as f64 / 2.0;
        self.grades.len() == self.needed && self.grades.iter().sum::<f64>() <= half
    }

    /// Whether another trial is due.
    fn is_due(&mut self, now: Instant, pool_time: Duration, is_running: bool) -> bool {
        let is_affordable = self.next <= now && self.next_pool_time <= pool_time && !is_running;
        let is_overdue = now.saturating_duration_since(self.last) >= LONGEST_WAIT;
        if is_overdue {
            self.last = now;
        }
        let is_due = is_affordable || is_overdue;
        if is_due {
            self.spent = Duration::ZERO;
        }
        is_due
    }
}

/// Keeps some of the times, evenly spread: those of checkouts that have ended first are short.
fn thin_out(times: &mut Vec<u32>) {
    let step = times.len().div_ceil(KEPT_OF_OLD_BLOCK).max(1);
    let mut at = 0;
    times.retain(|_| {
        at += 1;
        (at - 1) % step == 0
    });
}

/// Returns the probability that one of the other times is shorter. An equal one counts half.
#[expect(clippy::cast_precision_loss, reason = "no window has that many checkouts")]
fn grade(time: u32, others: &[u32]) -> f64 {
    let shorter = others.partition_point(|other| *other < time);
    let not_longer = others.partition_point(|other| *other <= time);
    (shorter + not_longer) as f64 / (2 * others.len()) as f64
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
