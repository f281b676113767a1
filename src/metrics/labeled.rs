//! A recorder with fixed labels.

use std::time::Duration;

use metrics::{Key, Label, Level, Metadata, Recorder, SharedString};

use super::catalog::Metric;
use crate::peers::counters::{BUCKET_BOUNDS, Histogram};

static METADATA: Metadata<'static> =
    Metadata::new("diesel_peers", Level::INFO, Some(module_path!()));

/// The count and the sum in nanoseconds of each bucket, as last reported.
pub(super) type ReportedBuckets = [(u64, u64); BUCKET_BOUNDS.len() + 1];

/// A recorder with the labels of the metrics that it receives. Metrics are registered for every report,
/// because an exporter may drop metrics that did not change for a while.
pub(super) struct LabeledRecorder<'a> {
    recorder: &'a dyn Recorder,
    labels: Vec<Label>,
}

impl<'a> LabeledRecorder<'a> {
    pub(super) fn new(recorder: &'a dyn Recorder) -> Self {
        Self { recorder, labels: Vec::new() }
    }

    /// Returns the same recorder with one more label.
    pub(super) fn with(&self, name: &'static str, value: impl Into<SharedString>) -> Self {
        let mut labels = self.labels.clone();
        labels.push(Label::new(name, value));
        Self { recorder: self.recorder, labels }
    }

    fn key(&self, metric: &Metric) -> Key {
        Key::from_parts(metric.name, self.labels.clone())
    }

    /// Sets a gauge.
    pub(super) fn gauge(&self, metric: &Metric, value: usize) {
        let value = u32::try_from(value).unwrap_or(u32::MAX);
        self.recorder.register_gauge(&self.key(metric), &METADATA).set(value);
    }

    /// Reports the increment of a counter since the last report. An increment of 0 is reported as well, so
    /// that the counter exists from the start and a rate can be computed.
    pub(super) fn counter(&self, metric: &Metric, value: u64, reported: &mut u64) {
        let counter = self.recorder.register_counter(&self.key(metric), &METADATA);
        counter.increment(value.saturating_sub(*reported));
        *reported = value;
    }

    /// Reports the values that were added to a histogram since the last report.
    pub(super) fn histogram(
        &self,
        metric: &Metric,
        durations: &Histogram,
        reported: &mut ReportedBuckets,
    ) {
        let histogram = self.recorder.register_histogram(&self.key(metric), &METADATA);
        for (mean, count) in added(durations.buckets(), reported) {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            histogram.record_many(mean.as_secs_f64(), count);
        }
    }
}

/// Returns the mean and the number of the values that were added to each bucket since the last report.
///
/// Count and sum of a bucket are not read atomically, so the mean is clamped to the bounds of the bucket.
/// The difference between the actual and the reported sum is carried over to the next report.
fn added(
    now: impl Iterator<Item = (u64, u64)>,
    reported: &mut ReportedBuckets,
) -> impl Iterator<Item = (Duration, u64)> {
    let ends = BUCKET_BOUNDS.map(|end| u64::try_from(end.as_nanos()).unwrap_or(u64::MAX));
    let lower = [0].into_iter().chain(ends.map(|end| end + 1));
    let upper = ends.into_iter().chain([u64::MAX]);
    let buckets = lower.zip(upper).zip(now).zip(reported);
    buckets.filter_map(|(((lower, upper), (count, nanos)), (reported_count, reported_nanos))| {
        let added = count.checked_sub(*reported_count).filter(|added| *added > 0)?;
        let mean = (nanos.saturating_sub(*reported_nanos) / added).clamp(lower, upper);
        *reported_count = count;
        *reported_nanos = reported_nanos.saturating_add(mean.saturating_mul(added));
        Some((Duration::from_nanos(mean), added))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the reported means, in microseconds, and counts.
    fn report(durations: &Histogram, reported: &mut ReportedBuckets) -> Vec<(u128, u64)> {
        let added = added(durations.buckets(), reported);
        added.map(|(mean, count)| (mean.as_micros(), count)).collect()
    }

    fn add(durations: &Histogram, micros: impl IntoIterator<Item = u64>) {
        for micros in micros {
            durations.add(Duration::from_micros(micros));
        }
    }

    #[test]
    fn new_values_are_reported_once_with_the_mean_of_their_bucket() {
        let (durations, mut reported) = (Histogram::default(), ReportedBuckets::default());
        assert_eq!(report(&durations, &mut reported), [], "nothing was added yet");
        add(&durations, [60, 80, 100, 101, 30_000_000]);
        let expected = [(80, 3), (101, 1), (30_000_000, 1)];
        assert_eq!(report(&durations, &mut reported), expected, "each bucket has its own mean");
        assert_eq!(report(&durations, &mut reported), [], "values are reported once");
        add(&durations, [20]);
        assert_eq!(
            report(&durations, &mut reported),
            [(20, 1)],
            "earlier values are not reported again"
        );
    }

    #[test]
    fn later_reports_make_up_for_a_count_read_before_its_sum() {
        let mut reported = ReportedBuckets::default();
        let mut report = |count, micros: u64| {
            let mut buckets = [(0, 0); BUCKET_BOUNDS.len() + 1];
            buckets[1] = (count, micros * 1000);
            let reported = added(buckets.into_iter(), &mut reported);
            reported.map(|(mean, count)| (mean.as_nanos(), count)).collect::<Vec<_>>()
        };
        assert_eq!(
            report(2, 200),
            [(100_001, 2)],
            "the mean is at least the lower bound of its bucket"
        );
        assert_eq!(
            report(3, 600),
            [(250_000, 1)],
            "the mean is at most the upper bound of its bucket"
        );
        assert_eq!(report(5, 900), [(224_999, 2)], "the sum of all reports is exact");
    }
}
