//! Fresh data folders, made once per machine and then unpacked.

use std::env;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tempfile::NamedTempFile;

use super::account::Account;
use super::process::run;

/// Fills the empty folder `into` with the data of a new server, as `make` lays it out.
///
/// The data are kept as an archive in the temporary folder. Being one file, it is put in place at
/// once, whichever of several test processes comes first, and is whole or missing. `recipe` is
/// all that decides over the data; a change of it makes a new archive.
pub fn unpack(name: &str, recipe: &str, account: &Account, into: &Path, make: impl FnOnce(&Path)) {
    let mut hash = DefaultHasher::new();
    recipe.hash(&mut hash);
    let us = into.metadata().expect("the folder is there").uid();
    let archive =
        env::temp_dir().join(format!("diesel-peers-bench-{name}-{us}-{:016x}.tar", hash.finish()));

    if !archive.exists() {
        let folder = account.folder();
        make(folder.path());
        let file = NamedTempFile::new().expect("a temporary file");
        let output = file.reopen().expect("our own file");
        let mut pack = account.command("tar");
        run(pack.args(["--sparse", "-cf", "-", "-C"]).arg(folder.path()).arg(".").stdout(output));
        file.persist(&archive).expect("it is in the same folder");
    }
    let input = File::open(&archive).expect("the archive is there");
    run(account.command("tar").args(["-xf", "-", "-C"]).arg(into).stdin(input));
}
