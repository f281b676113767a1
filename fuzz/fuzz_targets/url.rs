//! A URL of several hosts, whatever it is, is peers and settings or an error.

#![no_main]

use diesel::{MysqlConnection, PgConnection, SqliteConnection};
use diesel_peers::PeerManager;
use libfuzzer_sys::fuzz_target;

macro_rules! build {
    ($connection:ty, $url:expr) => {
        if let Err(error) = PeerManager::<$connection>::builder().url($url).build() {
            assert!(error.to_string().contains(": "), "it says what would be right: {error}");
        }
    };
}

fuzz_target!(|url: &str| {
    build!(MysqlConnection, url);
    build!(PgConnection, url);
    build!(SqliteConnection, url);
});
