//! What the fuzzer has found: no text is a panic, whether it is a URL or a file of settings.
//! (`fuzz/` looks for more.)

#![cfg(all(feature = "mysql", feature = "postgres", feature = "serde"))]

use std::fs;
use std::path::Path;

use diesel::r2d2::R2D2Connection;
use diesel::{MysqlConnection, PgConnection, SqliteConnection};
use diesel_peers::{Config, PeerManager, PeerManagerBuilder};

/// Every text that was kept.
fn texts(target: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let files =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let read = |file: fs::DirEntry| fs::read(file.path()).expect("it is there");
    let texts: Vec<String> = files
        .map(|file| String::from_utf8_lossy(&read(file.expect("it is there"))).into_owned())
        .collect();
    assert!(texts.len() > 20, "{target} has a corpus");
    texts
}

/// Either there is a manager, or it is said what would be right.
#[track_caller]
fn is_judged<C>(text: &str, builder: PeerManagerBuilder<C>)
where
    C: R2D2Connection + Send + 'static,
{
    if let Err(error) = builder.build() {
        assert!(error.to_string().contains(": "), "{text:?}: {error}");
    }
}

#[test]
fn urls() {
    for text in texts("url") {
        is_judged(&text, PeerManager::<MysqlConnection>::builder().url(&text));
        is_judged(&text, PeerManager::<PgConnection>::builder().url(&text));
        is_judged(&text, PeerManager::<SqliteConnection>::builder().url(&text));
    }
}

#[test]
fn files() {
    for text in texts("file") {
        let Ok(config) = toml::from_str::<Config>(&text) else { continue };
        is_judged(&text, PeerManager::<MysqlConnection>::builder().config(config));
    }
}
