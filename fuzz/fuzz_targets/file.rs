//! A file of settings, whatever stands in it, is peers and settings or an error.

#![no_main]

use diesel::MysqlConnection;
use diesel_peers::{Config, PeerManager};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(config) = toml::from_str::<Config>(text) else { return };
    if let Err(error) = PeerManager::<MysqlConnection>::builder().config(config).build() {
        assert!(error.to_string().contains(": "), "it says what would be right: {error}");
    }
});
