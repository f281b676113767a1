//! The slow start of a peer that has begun to serve: its share grows in steps, over a time. Pure.

use std::time::{Duration, Instant};

/// The number of steps in which the share grows.
pub(crate) const STEPS: u32 = 20;

/// The slow start of a peer, if it has one at the moment.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlowStart(Option<Ramp>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ramp {
    began: Instant,
    step: u32,
}

impl SlowStart {
    /// Begins the slow start, of this length. There is none if the length is zero.
    pub(crate) fn begin(&mut self, now: Instant, length: Duration) {
        self.0 = (!length.is_zero()).then_some(Ramp { began: now, step: 1 });
    }

    pub(crate) fn end(&mut self) {
        self.0 = None;
    }

    /// Whether the peer has less than its share.
    pub(crate) fn is_running(self) -> bool {
        self.0.is_some()
    }

    /// Returns how many of all [`STEPS`] the share has reached.
    pub(crate) fn step(self) -> u32 {
        self.0.map_or(STEPS, |ramp| ramp.step)
    }

    /// Takes the steps that are due, and returns when the next one is.
    pub(crate) fn advance(&mut self, now: Instant, length: Duration) -> Option<Instant> {
        let ramp = self.0.as_mut()?;
        let step_length = length / STEPS;
        while ramp.step < STEPS {
            let next = ramp.began + step_length * ramp.step;
            if next > now {
                return Some(next);
            }
            ramp.step += 1;
        }
        self.0 = None;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn share_grows_in_steps_and_is_whole_after_the_time() {
        let (start, length) = (Instant::now(), Duration::from_secs(20));
        let second = Duration::from_secs(1);
        let mut slow_start = SlowStart::default();
        assert_eq!((slow_start.step(), slow_start.advance(start, length)), (STEPS, None));
        slow_start.begin(start, Duration::ZERO);
        assert!(!slow_start.is_running(), "a length of zero is none");
        slow_start.begin(start, length);
        for (passed, step, next) in
            [(0, 1, Some(1)), (1, 2, Some(2)), (7, 8, Some(8)), (19, 20, None)]
        {
            let next = next.map(|next| start + next * second);
            assert_eq!(slow_start.advance(start + passed * second, length), next, "{passed} s");
            assert_eq!(slow_start.step(), step, "{passed} s");
        }
        assert!(!slow_start.is_running());
    }
}
