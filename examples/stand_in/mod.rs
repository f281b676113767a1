//! Replaces your servers, so that the examples run with nothing installed: SQLite is compiled in.

use std::fs;
use std::io;

use tempfile::TempDir;

/// One SQLite file with several paths. Each path is a peer, and all peers have the same data.
pub(crate) struct OneFile {
    folder: TempDir,
}

impl OneFile {
    pub(crate) fn new() -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("app.db"), "")?;
        Ok(Self { folder })
    }

    /// Adds a path to the file, and returns its URL.
    pub(crate) fn peer(&self, name: &str) -> io::Result<String> {
        let path = self.folder.path().join(name);
        fs::create_dir(&path)?;
        let path = path.join("..");
        // Without `mode=rw`, SQLite would create a missing file.
        Ok(format!("file:{}/app.db?mode=rw", path.display()))
    }
}
