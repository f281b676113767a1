//! Exports counters, gauges and histograms of each peer to the
//! [`metrics`](https://docs.rs/metrics) facade. The guide has the [list of metrics](crate::guide::observing#metrics).
//!
//! Every pool has one thread that reads its counters once a second and reports the changes to the
//! recorder of the process. A checkout or a query never waits for a recorder, and a recorder that panics
//! or blocks affects only the metrics. Changes from before a recorder was installed are not reported.
//!
//! - **Counters** are reported as increments. They never decrease, not even when a peer is removed and
//!   added again. Pools with the same name add up.
//! - **Gauges** are set to 0 when their peer is removed or their pool is dropped, because the facade
//!   cannot remove a gauge. Give each pool its own name
//!   ([`pool_name`](crate::PeerManagerBuilder::pool_name)); otherwise the gauges of one pool overwrite
//!   those of the other.
//! - **Histograms** receive, once a second and for each bucket of [`BUCKETS`], the number of new values
//!   with their mean. Counts, sums and buckets are therefore exact. A quantile that an exporter computes
//!   from single values is off by at most one bucket.

mod catalog;
mod counters;
mod exporter;
mod gauges;
mod labeled;

use crate::peers::counters::BUCKET_BOUNDS;

pub(crate) use self::exporter::start;

/// The upper bounds of the histogram buckets, in seconds. Configure the exporter with these buckets, so
/// that it shows exact counts. The guide has an example ([metrics](crate::guide::observing#metrics)).
pub const BUCKETS: [f64; BUCKET_BOUNDS.len()] = {
    let mut seconds = [0.0; BUCKET_BOUNDS.len()];
    let mut at = 0;
    while at < seconds.len() {
        seconds[at] = BUCKET_BOUNDS[at].as_secs_f64();
        at += 1;
    }
    seconds
};
