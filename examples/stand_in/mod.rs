//! Stands in for your servers, so that examples run with nothing installed: SQLite is compiled in.

use std::fs;
use std::io;

use tempfile::TempDir;

/// Equal SQLite peers are one file under several paths; several files would be several databases.
pub(crate) struct OneFile {
    folder: TempDir,
}

impl OneFile {
    pub(crate) fn new() -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("app.db"), "")?;
        Ok(Self { folder })
    }

    /// The URL of one more peer.
    pub(crate) fn peer(&self, name: &str) -> io::Result<String> {
        let path = self.folder.path().join(name);
        fs::create_dir(&path)?;
        let path = path.join("..");
        // diesel would create a missing file.
        Ok(format!("file:{}/app.db?mode=rw", path.display()))
    }
}
