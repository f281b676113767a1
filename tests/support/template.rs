//! Data folders of new servers, made once per machine and then unpacked.

use std::env;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tempfile::NamedTempFile;

use super::account::Account;
use super::process::run;

/// Fills the empty folder `into` with the data of a new server, as `make` writes them.
///
/// The data are kept as an archive in the temporary folder. As the archive is one file, it appears
/// atomically, whichever of several test processes is first, and is complete or missing. `recipe` is
/// all that determines the data; when it changes, a new archive is made.
pub fn unpack(name: &str, recipe: &str, account: &Account, into: &Path, make: impl FnOnce(&Path)) {
    let mut hash = DefaultHasher::new();
    recipe.hash(&mut hash);
    let us = into.metadata().expect("the folder exists").uid();
    let archive =
        env::temp_dir().join(format!("diesel-peers-bench-{name}-{us}-{:016x}.tar", hash.finish()));

    if !archive.exists() {
        let folder = account.folder();
        make(folder.path());
        let file = NamedTempFile::new().expect("a temporary file can be created");
        let output = file.reopen().expect("the temporary file exists");
        let mut pack = account.command("tar");
        run(pack.args(["--sparse", "-cf", "-", "-C"]).arg(folder.path()).arg(".").stdout(output));
        file.persist(&archive).expect("both files are in the same folder");
    }
    let input = File::open(&archive).expect("the archive exists");
    run(account.command("tar").args(["-xf", "-", "-C"]).arg(into).stdin(input));
}
