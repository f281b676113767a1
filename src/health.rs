//! Health checks: the thread that makes them, their schedule, and the detection of stalled peers.

pub(crate) mod checker;
mod outlier;
mod schedule;
mod stall;
