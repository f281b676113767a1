//! The tests that share a process: none of them sets or counts what belongs to the whole process.

mod balance;
mod bulk_load;
mod client_library;
mod configuration;
mod doctor;
mod encryption;
mod events;
mod full_peer;
mod fuzz_corpus;
mod host_failures;
mod isolation;
mod killed_peer;
mod login_timeout;
mod lost_connection;
mod marks;
mod own_servers;
mod panics;
mod passthrough;
mod pause;
mod reaping;
mod refused_logins;
mod resolve;
mod role;
mod runtime_changes;
mod status;
mod support_selftest;
