//! Counters, gauges and histograms of each peer, through the [`metrics`](https://docs.rs/metrics)
//! facade: [what they are](crate::guide::observing#metrics).
//!
//! Each pool has a thread for them that reads what is counted anyway, and tells the recorder of the
//! process each second what has changed. No checkout and no query ever waits for a recorder, and one
//! that panics or blocks harms nothing but the figures. What happens before a recorder is installed is
//! not told.
//!
//! - **Counters** are told by how much they have grown. They never go back, not even when a peer is
//!   removed and added again; and pools of one name add up.
//! - **Gauges** of a peer that is removed, and all gauges of a pool that is gone, are 0 from then on: the
//!   facade has no way to take them away. They need a name for each pool
//!   ([`pool_name`](crate::PeerManagerBuilder::pool_name)), or one pool's replace another's.
//! - **Histograms** are told once a second what has ended in each class of [`BUCKETS`], with the mean of
//!   the class. So each count, each sum and each bucket is exact, and a quantile that the exporter works
//!   out from single values is off by a class at most.

mod catalog;
mod counters;
mod exporter;
mod gauges;
mod labeled;

use crate::peers::counters::BUCKET_BOUNDS;

pub(crate) use self::exporter::start;

/// The upper ends of the classes into which times are sorted, in seconds: the buckets that an exporter
/// is to be given.
///
/// ```
/// use diesel_peers::metrics::BUCKETS;
/// use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
///
/// let prefix = Matcher::Prefix("diesel_peers_".to_owned());
/// let builder = PrometheusBuilder::new().set_buckets_for_metric(prefix, &BUCKETS)?;
/// # drop(builder.build_recorder());
/// # Ok::<(), metrics_exporter_prometheus::BuildError>(())
/// ```
pub const BUCKETS: [f64; BUCKET_BOUNDS.len()] = {
    let mut seconds = [0.0; BUCKET_BOUNDS.len()];
    let mut at = 0;
    while at < seconds.len() {
        seconds[at] = BUCKET_BOUNDS[at].as_secs_f64();
        at += 1;
    }
    seconds
};
