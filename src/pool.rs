//! The pool's slots, the links that they swap, and which link serves.

pub(crate) mod connection;
pub(crate) mod exchange;
pub(crate) mod link;
pub(crate) mod passthrough;
pub(crate) mod prime;
mod sound;
mod strategy;
