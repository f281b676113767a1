//! Regression tests for the texts that the fuzzer has kept: no URL and no settings file causes a panic.
//! The fuzzer is in `fuzz/`.

#![cfg(all(feature = "mysql", feature = "postgres", feature = "serde"))]

use std::fs;
use std::path::Path;

use diesel::r2d2::R2D2Connection;
use diesel::{MysqlConnection, PgConnection, SqliteConnection};
use diesel_peers::{Config, PeerManager, PeerManagerBuilder};

/// Returns all texts of a corpus.
fn texts(target: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let files =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let read = |file: fs::DirEntry| fs::read(file.path()).expect("the file is readable");
    let texts: Vec<String> = files
        .map(|file| {
            String::from_utf8_lossy(&read(file.expect("the folder is readable"))).into_owned()
        })
        .collect();
    assert!(texts.len() > 20, "{target} has a corpus");
    texts
}

/// Asserts that the builder returns a manager, or an error that explains what is valid.
#[track_caller]
fn assert_built_or_explained<C>(text: &str, builder: PeerManagerBuilder<C>)
where
    C: R2D2Connection + Send + 'static,
{
    if let Err(error) = builder.build() {
        assert!(error.to_string().contains(": "), "{text:?}: {error}");
    }
}

#[test]
fn fuzzed_urls_never_panic() {
    for text in texts("url") {
        assert_built_or_explained(&text, PeerManager::<MysqlConnection>::builder().url(&text));
        assert_built_or_explained(&text, PeerManager::<PgConnection>::builder().url(&text));
        assert_built_or_explained(&text, PeerManager::<SqliteConnection>::builder().url(&text));
    }
}

#[test]
fn fuzzed_files_never_panic() {
    for text in texts("file") {
        let Ok(config) = toml::from_str::<Config>(&text) else { continue };
        assert_built_or_explained(&text, PeerManager::<MysqlConnection>::builder().config(config));
    }
}
