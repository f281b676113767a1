//! A recorder, and the labels of what it is told.

use std::time::Duration;

use metrics::{Key, Label, Level, Metadata, Recorder, SharedString};

use super::catalog::Metric;
use crate::peers::counters::{BUCKET_BOUNDS, Histogram};

static METADATA: Metadata<'static> =
    Metadata::new("diesel_peers", Level::INFO, Some(module_path!()));

/// Of each class of times, how many were told, and how many nanoseconds.
pub(super) type ToldTimes = [(u64, u64); BUCKET_BOUNDS.len() + 1];

/// A recorder, and the labels of what it is told. Metrics are looked up each time that they are told: an
/// exporter may have dropped those that did not change for a while.
pub(super) struct Labeled<'a> {
    recorder: &'a dyn Recorder,
    labels: Vec<Label>,
}

impl<'a> Labeled<'a> {
    pub(super) fn new(recorder: &'a dyn Recorder) -> Self {
        Self { recorder, labels: Vec::new() }
    }

    /// With one label more.
    pub(super) fn with(&self, name: &'static str, value: impl Into<SharedString>) -> Self {
        let mut labels = self.labels.clone();
        labels.push(Label::new(name, value));
        Self { recorder: self.recorder, labels }
    }

    fn key(&self, metric: &Metric) -> Key {
        Key::from_parts(metric.name, self.labels.clone())
    }

    /// What a gauge shows.
    pub(super) fn gauge(&self, metric: &Metric, value: usize) {
        let value = u32::try_from(value).unwrap_or(u32::MAX);
        self.recorder.register_gauge(&self.key(metric), &METADATA).set(value);
    }

    /// By how much a counter has grown since it was told last. It is told also if it has not: a counter
    /// that is there, and 0, is what a rate can be made of.
    pub(super) fn counter(&self, metric: &Metric, value: u64, told: &mut u64) {
        let counter = self.recorder.register_counter(&self.key(metric), &METADATA);
        counter.increment(value.saturating_sub(*told));
        *told = value;
    }

    /// What has been added to a histogram since it was told last.
    pub(super) fn histogram(&self, metric: &Metric, times: &Histogram, told: &mut ToldTimes) {
        let histogram = self.recorder.register_histogram(&self.key(metric), &METADATA);
        for (mean, count) in added(times.buckets(), told) {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            histogram.record_many(mean.as_secs_f64(), count);
        }
    }
}

/// What has been added to each class, as how many times the mean of that. The mean is of its class
/// although count and sum are read one after the other; what that leaves is in the next one.
fn added(
    now: impl Iterator<Item = (u64, u64)>,
    told: &mut ToldTimes,
) -> impl Iterator<Item = (Duration, u64)> {
    let ends = BUCKET_BOUNDS.map(|end| u64::try_from(end.as_nanos()).unwrap_or(u64::MAX));
    let from = [0].into_iter().chain(ends.map(|end| end + 1));
    let to = ends.into_iter().chain([u64::MAX]);
    let buckets = from.zip(to).zip(now).zip(told);
    buckets.filter_map(|(((from, to), (count, nanos)), (told_count, told_nanos))| {
        let more = count.checked_sub(*told_count).filter(|more| *more > 0)?;
        let mean = (nanos.saturating_sub(*told_nanos) / more).clamp(from, to);
        *told_count = count;
        *told_nanos = told_nanos.saturating_add(mean.saturating_mul(more));
        Some((Duration::from_nanos(mean), more))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of these times, which are in milliseconds.
    fn told_of(times: &Histogram, told: &mut ToldTimes) -> Vec<(u128, u64)> {
        let added = added(times.buckets(), told);
        added.map(|(mean, count)| (mean.as_micros(), count)).collect()
    }

    fn add(times: &Histogram, micros: impl IntoIterator<Item = u64>) {
        for micros in micros {
            times.add(Duration::from_micros(micros));
        }
    }

    #[test]
    fn what_is_new_is_told_once_as_the_mean_of_its_class() {
        let (times, mut told) = (Histogram::default(), ToldTimes::default());
        assert_eq!(told_of(&times, &mut told), [], "nothing yet");
        add(&times, [60, 80, 100, 101, 30_000_000]);
        let expected = [(80, 3), (101, 1), (30_000_000, 1)];
        assert_eq!(told_of(&times, &mut told), expected, "each class by itself");
        assert_eq!(told_of(&times, &mut told), [], "once");
        add(&times, [20]);
        assert_eq!(told_of(&times, &mut told), [(20, 1)], "without what was told before");
    }

    #[test]
    fn a_count_that_is_seen_before_its_sum_is_made_up_for() {
        let mut told = ToldTimes::default();
        let mut tell = |count, micros: u64| {
            let mut buckets = [(0, 0); BUCKET_BOUNDS.len() + 1];
            buckets[1] = (count, micros * 1000);
            let told = added(buckets.into_iter(), &mut told);
            told.map(|(mean, count)| (mean.as_nanos(), count)).collect::<Vec<_>>()
        };
        assert_eq!(tell(2, 200), [(100_001, 2)], "no mean is outside of its class");
        assert_eq!(tell(3, 600), [(250_000, 1)], "nor on the other side");
        assert_eq!(tell(5, 900), [(224_999, 2)], "and all together it is what it was");
    }
}
