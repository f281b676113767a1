//! The pool's slots, the links that they exchange, and the choice of a link for a checkout.

pub(crate) mod connection;
pub(crate) mod customizer;
pub(crate) mod exchange;
mod limit;
pub(crate) mod link;
pub(crate) mod passthrough;
pub(crate) mod question;
pub(crate) mod replacement;
mod strategy;
mod validation;
