//! The tests that share a process: none of them sets or counts what belongs to the whole process.

mod balance;
mod bench;
mod client_library;
mod configuration;
mod doctor;
mod encryption;
mod events;
mod failover;
mod failure;
mod full;
mod fuzz_corpus;
mod hang;
mod isolation;
mod lost_connection;
mod operate;
mod own_servers;
mod panics;
mod passthrough;
mod pause;
mod reaping;
mod resolve;
mod role;
mod status;
