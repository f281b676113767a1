//! Where the configuration stands that is to be examined, and which database it is of.

use std::env;
use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use diesel::r2d2::R2D2Connection;
use serde::Deserialize;
use toml::{Table, Value};

use super::{Report, examine_with_progress};
use crate::builder::PeerManagerBuilder;
use crate::config::{Config, ROCKET_POOL_SIZE, ROCKET_TIMEOUT};
use crate::error::{BuildError, may_be_shown, shown_or_struck};
use crate::manager::PeerManager;
use crate::url::is_conninfo;

/// The key in a TOML file, and the environment variable's after its prefix, of one URL with several hosts.
const URL: &str = "url";
const URL_VARIABLE: &str = "URL";

/// What names the peers in a file.
const SOURCES: [&str; 2] = [URL, "peers"];

/// The table that holds the databases' in a Rocket application's configuration, and the `timeout` that
/// it has by default, in seconds.
const ROCKETS: &str = "databases";
const ROCKETS_DEFAULT_TIMEOUT: i64 = 5;

/// Where a configuration stands: in a TOML file, a URL, the environment, or several of them, of which
/// the later counts in this order. The scheme of the URL tells which database it is.
#[derive(Clone, Default)]
pub struct Request {
    file: Option<PathBuf>,
    table: Option<String>,
    url: Option<String>,
    prefix: Option<String>,
}

/// The URL is a secret, also where it was given for something else.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, table, url: _, prefix } = self;
        let file = file.as_ref().map(|path| path.display().to_string());
        let shown =
            |text: &Option<String>| text.as_deref().map(|it| shown_or_struck(it).to_owned());
        f.debug_struct("Request")
            .field("file", &shown(&file))
            .field("table", &shown(table))
            .field("prefix", &shown(prefix))
            .finish_non_exhaustive()
    }
}

impl Request {
    /// What stands nowhere yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A TOML file. It is read when it is examined, each time anew.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// The table of the file in which the settings stand, as `default.databases.shop`. One that is in a
    /// table `databases` is a Rocket application's, which may have Rocket's `pool_size` and `timeout` as
    /// well.
    ///
    /// Defaults to the whole file.
    #[must_use]
    pub fn table(mut self, path: impl Into<String>) -> Self {
        self.table = Some(path.into());
        self
    }

    /// As [`PeerManagerBuilder::url`]. It counts more than what stands in the environment or in a file; but
    /// who logs in is said by their `user` and `password`, if they say it.
    #[must_use]
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// As [`PeerManagerBuilder::env`]. It counts more than what stands in a file.
    #[must_use]
    pub fn env(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Reads it, and [examines](super::examine_with_progress) the peers.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is no TOML or has no such table, when this crate was built without the
    /// database's feature, and as [`build`](PeerManagerBuilder::build).
    pub fn examine(&self, tell: impl FnMut(&[String])) -> Result<Report, RequestError> {
        let settings = self.read()?;
        match Database::of(self.first_url(settings.as_ref()).as_deref())? {
            #[cfg(feature = "mysql")]
            Database::MySql => self.examine_of::<diesel::MysqlConnection>(settings, tell),
            #[cfg(feature = "postgres")]
            Database::Postgres => self.examine_of::<diesel::PgConnection>(settings, tell),
            #[cfg(feature = "sqlite")]
            Database::Sqlite => self.examine_of::<diesel::SqliteConnection>(settings, tell),
            #[cfg(not(all(feature = "mysql", feature = "postgres", feature = "sqlite")))]
            database => {
                let _ = (settings, tell);
                Err(Kind::NoFeature(database.feature()).into())
            }
        }
    }

    #[cfg_attr(
        not(any(feature = "mysql", feature = "postgres", feature = "sqlite")),
        expect(dead_code, reason = "there is no database to examine")
    )]
    fn examine_of<C: R2D2Connection + Send + 'static>(
        &self,
        settings: Option<Table>,
        tell: impl FnMut(&[String]),
    ) -> Result<Report, RequestError> {
        let mut builder = PeerManager::<C>::builder();
        // Peers that do not count may be of another database.
        if let Some(mut settings) = settings {
            if self.url_beside_file().is_some() {
                settings.retain(|key, _| !SOURCES.contains(&key));
            }
            builder = self.give(settings, builder)?;
        }
        if let Some(prefix) = &self.prefix {
            let has_url = self.url.is_some();
            builder = if has_url { builder.env_without_url(prefix) } else { builder.env(prefix) };
        }
        if let Some(url) = &self.url {
            builder = builder.url(url);
        }
        examine_with_progress(builder, tell)
            .map_err(|error| Kind::Settings { error, tables: self.tables_with_peers() }.into())
    }

    /// Gives a file's settings to the builder, as the application does.
    fn give<C: 'static>(
        &self,
        mut settings: Table,
        builder: PeerManagerBuilder<C>,
    ) -> Result<PeerManagerBuilder<C>, RequestError> {
        if !self.is_rockets() {
            return Ok(builder.config(config(settings)?));
        }
        let timeout = take_whole(&mut settings, ROCKET_TIMEOUT)?;
        let _ = take_whole(&mut settings, ROCKET_POOL_SIZE)?;
        let timeout =
            Duration::from_secs(timeout.unwrap_or(ROCKETS_DEFAULT_TIMEOUT).unsigned_abs());
        config(settings)?.apply_with_rocket_timeout(builder, timeout).ok_or_else(|| {
            let flaw = "`pool_timeout` is no setting there: give `timeout`";
            Kind::Rockets(flaw.to_owned()).into()
        })
    }

    fn is_rockets(&self) -> bool {
        let path = self.table.as_deref().and_then(keys_of).unwrap_or_default();
        path.iter().rev().nth(1).is_some_and(|key| key == ROCKETS)
    }

    /// The settings of the file, if there is one.
    fn read(&self) -> Result<Option<Table>, RequestError> {
        let Some(path) = &self.file else {
            return match &self.table {
                Some(_) => Err(Kind::TableOfNothing.into()),
                None => Ok(None),
            };
        };
        let file = parse(path)?;
        let Some(table) = &self.table else { return Ok(Some(file)) };
        find(&file, table).map(|table| Some(table.clone()))
    }

    /// The URL that counts: it tells which database it is.
    fn first_url(&self, settings: Option<&Table>) -> Option<String> {
        let of_file = || {
            let settings = settings?;
            let one = settings.get(URL).and_then(Value::as_str);
            one.or_else(|| settings.get("peers").and_then(first_peer)).map(str::to_owned)
        };
        self.url_beside_file().or_else(of_file)
    }

    /// The one that counts, unless it is the file's.
    fn url_beside_file(&self) -> Option<String> {
        let of_environment = || env::var(format!("{}{URL_VARIABLE}", self.prefix.as_ref()?)).ok();
        self.url.clone().or_else(of_environment)
    }

    /// The tables that hold peers, if the one that was read holds none and should.
    fn tables_with_peers(&self) -> Vec<String> {
        if self.url_beside_file().is_some() {
            return Vec::new();
        }
        let read = self.read().ok().flatten();
        let file = self.file.as_ref().filter(|_| read.is_some_and(|table| !has_peers(&table)));
        let file = file.and_then(|path| parse(path).ok());
        file.map(|file| those_with_peers(&file)).unwrap_or_default()
    }
}

fn parse(path: &Path) -> Result<Table, RequestError> {
    let text =
        fs::read_to_string(path).map_err(|error| Kind::Unreadable(path.to_owned(), error))?;
    text.parse().map_err(|error: toml::de::Error| {
        // Its own text quotes the line, which may hold a password.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        Kind::NoToml { path: path.to_owned(), line, what: error.message().to_owned() }.into()
    })
}

/// The keys of a path, each of which may be quoted as in a file.
fn keys_of(path: &str) -> Option<Vec<String>> {
    let mut table: Table = format!("{path} = 0").parse().ok()?;
    let mut keys = Vec::new();
    loop {
        let (key, value) = std::mem::take(&mut table).into_iter().next()?;
        keys.push(key);
        match value {
            Value::Table(inner) => table = inner,
            Value::Integer(0) => return Some(keys),
            _ => return None,
        }
    }
}

/// The table of this path.
fn find<'a>(file: &'a Table, path: &str) -> Result<&'a Table, RequestError> {
    let keys = keys_of(path).ok_or_else(|| Kind::NoPath(path.to_owned()))?;
    let mut table = file;
    for key in keys {
        table = table.get(&key).and_then(Value::as_table).ok_or_else(|| {
            let tables = table.iter().filter(|(_, value)| value.is_table());
            let others = tables.filter_map(|(name, _)| written(name)).collect();
            Kind::NoTable { path: path.to_owned(), key, others, tables: those_with_peers(file) }
        })?;
    }
    Ok(table)
}

/// A key as it stands in a path, if it may be shown.
fn written(key: &str) -> Option<String> {
    if !may_be_shown(key) || key.chars().any(char::is_control) {
        return None;
    }
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !key.is_empty() && key.bytes().all(is_bare) {
        return Some(key.to_owned());
    }
    Some(format!("\"{}\"", key.replace('\\', r"\\").replace('"', r#"\""#)))
}

fn has_peers(table: &Table) -> bool {
    SOURCES.iter().any(|key| table.contains_key(*key))
}

/// The tables of a file that hold peers.
fn those_with_peers(file: &Table) -> Vec<String> {
    let mut found = Vec::new();
    look_for_peers(file, "", &mut found);
    found
}

fn look_for_peers(table: &Table, path: &str, found: &mut Vec<String>) {
    for (key, value) in table {
        let Some((inner, key)) = value.as_table().zip(written(key)) else { continue };
        let path = if path.is_empty() { key } else { format!("{path}.{key}") };
        if has_peers(inner) {
            found.push(path);
        } else {
            look_for_peers(inner, &path, found);
        }
    }
}

/// The URL of the first of some peers, in each form that they may have.
fn first_peer(peers: &Value) -> Option<&str> {
    let first = match peers {
        Value::Array(peers) => peers.first(),
        Value::Table(peers) => peers.values().next(),
        _ => None,
    }?;
    first.as_str().or_else(|| first.get(URL).and_then(Value::as_str))
}

fn config(settings: Table) -> Result<Config, RequestError> {
    let config = Config::deserialize(Value::Table(settings));
    config.map_err(|error| Kind::Rockets(error.message().to_owned()).into())
}

/// One of Rocket's own settings: a whole number, at least 1.
fn take_whole(settings: &mut Table, key: &str) -> Result<Option<i64>, RequestError> {
    match settings.remove(key) {
        None => Ok(None),
        Some(Value::Integer(number @ 1..)) => Ok(Some(number)),
        Some(_) => {
            Err(Kind::Rockets(format!("`{key}` is no whole number, 1 or more: it is Rocket's"))
                .into())
        }
    }
}

/// The databases that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Database {
    MySql,
    Postgres,
    Sqlite,
}

impl Database {
    /// Told by the scheme. A slip in the rest of the URL is the builder's to tell. Where there is no URL,
    /// too: any database will do.
    fn of(url: Option<&str>) -> Result<Self, RequestError> {
        let Some(url) = url.map(str::trim) else { return Ok(Self::any()) };
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
        match &*scheme {
            "mysql" => return Ok(Self::MySql),
            "postgres" | "postgresql" => return Ok(Self::Postgres),
            "sqlite" | "file" => return Ok(Self::Sqlite),
            _ => {}
        }
        if is_conninfo(url) {
            return Ok(Self::Postgres);
        }
        if Path::new(url).extension().is_some_and(|it| it == "toml") {
            return Err(Kind::FileAsUrl.into());
        }
        if url.starts_with('$') {
            return Err(Kind::NoValue.into());
        }
        // The builder tells what is missing.
        let is_slip_of =
            |scheme: &str| url.strip_prefix(scheme).is_some_and(|rest| rest.starts_with("//"));
        if ["mysql", "postgres", "postgresql"].into_iter().any(is_slip_of) {
            return Ok(if url.starts_with("mysql") { Self::MySql } else { Self::Postgres });
        }
        // A word alone is more likely a slip than a file of that name.
        let is_path = !url.contains("://") && url.contains(['/', '.']);
        if is_path { Ok(Self::Sqlite) } else { Err(Kind::UnknownScheme.into()) }
    }

    fn any() -> Self {
        if cfg!(feature = "mysql") {
            Self::MySql
        } else if cfg!(feature = "postgres") {
            Self::Postgres
        } else {
            Self::Sqlite
        }
    }

    #[cfg(not(all(feature = "mysql", feature = "postgres", feature = "sqlite")))]
    fn feature(self) -> &'static str {
        match self {
            Self::MySql => "mysql",
            Self::Postgres => "postgres",
            Self::Sqlite => "sqlite",
        }
    }
}

/// Why there was nothing to examine. Neither `Debug` nor `Display` shows any part of a URL.
pub struct RequestError(Kind);

enum Kind {
    Unreadable(PathBuf, io::Error),
    NoToml {
        path: PathBuf,
        line: usize,
        what: String,
    },
    TableOfNothing,
    NoPath(String),
    NoTable {
        path: String,
        key: String,
        others: Vec<String>,
        /// Those that hold peers.
        tables: Vec<String>,
    },
    Rockets(String),
    UnknownScheme,
    FileAsUrl,
    NoValue,
    #[cfg(not(all(feature = "mysql", feature = "postgres", feature = "sqlite")))]
    NoFeature(&'static str),
    Settings {
        error: BuildError,
        /// Those that hold peers, while the one that was read has none.
        tables: Vec<String>,
    },
}

impl From<Kind> for RequestError {
    fn from(kind: Kind) -> Self {
        Self(kind)
    }
}

impl fmt::Debug for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which tables would be right.
struct Named<'a>(&'a [String]);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.0.join("`, and in `");
        write!(f, "there are peers in the table `{all}`: name it, with `--table`")
    }
}

/// A file's path, if it may be shown.
fn shown(path: &Path) -> String {
    let path = path.display().to_string();
    if may_be_shown(&path) { path } else { "the file, whose name may be a secret,".to_owned() }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Unreadable(path, error) => write!(f, "{} cannot be read: {error}", shown(path)),
            Kind::NoToml { path, line, what } => {
                write!(f, "{}, line {line}, is no TOML: {what}", shown(path))
            }
            Kind::TableOfNothing => f.write_str("a table was named, and no file that could have it"),
            Kind::NoPath(path) => {
                if may_be_shown(path) {
                    write!(f, "`{path}`")?;
                } else {
                    f.write_str("what was named, which may be a secret,")?;
                }
                f.write_str(" is no path of a table: give it as `default.databases.shop`")
            }
            Kind::NoTable { path, key, others, tables } => {
                if may_be_shown(path) && may_be_shown(key) {
                    write!(f, "the file has no table `{path}`: there is no `{key}`")?;
                } else {
                    f.write_str("the file has no table of that name, which may be a secret")?;
                }
                if !others.is_empty() {
                    write!(f, " beside {}", others.join(", "))?;
                }
                if tables.is_empty() { Ok(()) } else { write!(f, "; {}", Named(tables)) }
            }
            Kind::Rockets(flaw) => f.write_str(flaw),
            Kind::FileAsUrl => f.write_str(
                "a TOML file stands where a URL is expected: give it with `--config`",
            ),
            Kind::NoValue => f.write_str(
                "the URL begins with `$`: the shell has put no value in the variable's place",
            ),
            Kind::UnknownScheme => f.write_str(
                "the URL begins with none of `mysql://`, `postgres://`, `postgresql://`, `sqlite://` \
                 and `file:`, which tell the database (MariaDB's is `mysql://`; a path is SQLite's, if there is a \
                 `/` or a `.` in it)",
            ),
            #[cfg(not(all(feature = "mysql", feature = "postgres", feature = "sqlite")))]
            Kind::NoFeature(feature) => write!(
                f,
                "the URL is of a database whose feature this was built without: build it with \
                 `--features cli,{feature}`",
            ),
            Kind::Settings { error, tables } if tables.is_empty() => fmt::Display::fmt(error, f),
            // Whatever the error says, it is of that.
            Kind::Settings { tables, .. } => Named(tables).fmt(f),
        }
    }
}

impl Error for RequestError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Kind::Unreadable(_, error) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_tells_the_database() {
        use Database::{MySql, Postgres, Sqlite};
        for (url, expected) in [
            (Some("mysql://app@db0,db1/shop"), Some(MySql)),
            (Some(" MYSQL://db0/shop\n"), Some(MySql)),
            (Some("mysql:/app:s3cret@db0/shop"), Some(MySql)),
            (Some("postgres://db0/shop"), Some(Postgres)),
            (Some("postgresql://db0/shop"), Some(Postgres)),
            (Some("host=db0 dbname=shop"), Some(Postgres)),
            (Some("sqlite://shop.db"), Some(Sqlite)),
            (Some("file:a/shop.db,b/shop.db?mode=rw"), Some(Sqlite)),
            (Some("a/shop.db"), Some(Sqlite)),
            (Some("mariadb://app:s3cret@db0/shop"), None),
            (Some("mysql//app:s3cret@db0/shop"), Some(MySql)),
            (Some("postgresql//app:s3cret@db0/shop"), Some(Postgres)),
            (Some("shop.toml"), None),
            (Some("$DATABASE_URL"), None),
            (Some("./shop"), Some(Sqlite)),
            (Some("shop"), None),
            (Some(""), None),
            (None, Some(Database::any())),
        ] {
            let found = Database::of(url);
            let told = found.as_ref().err().map(ToString::to_string).unwrap_or_default();
            assert!(!told.contains("s3cret"), "{told}");
            assert_eq!(found.ok(), expected, "{url:?}");
        }
    }

    #[test]
    fn paths_of_tables() {
        let keys = |path| keys_of(path).map(|keys| keys.join("|"));
        for (path, expected) in [
            ("shop", Some("shop")),
            ("default.databases.shop", Some("default|databases|shop")),
            (r#"a."b.c""#, Some("a|b.c")),
            ("", None),
            ("a..b", None),
            ("a = 1\nb", None),
            ("[a]", None),
        ] {
            assert_eq!(keys(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn tables_that_are_not_there() {
        let file: Table = "[default.databases.shop]\nurl = 'x'\n[debug]\n".parse().expect("TOML");
        assert!(find(&file, "default.databases.shop").is_ok_and(has_peers));
        let error = find(&file, "default.databases.shopp").expect_err("it is not there");
        let told = "the file has no table `default.databases.shopp`: there is no `shopp` beside shop; \
                    there are peers in the table `default.databases.shop`: name it, with `--table`";
        assert_eq!(error.to_string(), told);
        assert_eq!(those_with_peers(&file), ["default.databases.shop"]);
    }

    /// What is told can be given.
    #[test]
    fn keys_that_need_quotes() {
        for key in ["shop.eu", "", "a b", r#"a"b\c"#, "é"] {
            let inner = Value::Table([("url".to_owned(), Value::from("x"))].into_iter().collect());
            let tables = Value::Table([(key.to_owned(), inner)].into_iter().collect());
            let file: Table = [("databases".to_owned(), tables)].into_iter().collect();
            let found = those_with_peers(&file);
            assert_eq!(found.len(), 1, "{key}");
            assert!(find(&file, &found[0]).is_ok_and(has_peers), "{found:?}");
            let error = find(&file, "databases.none").expect_err("it is not there").to_string();
            let key = found[0].trim_start_matches("databases.");
            assert!(error.contains(&format!("beside {key}; ")), "{error}");
        }
    }

    #[test]
    fn what_may_be_a_secret_is_not_shown() {
        for secret in ["mysql://app:s3cret@db0/shop", "host=h password=s3cret"] {
            let file: Table =
                format!("['{secret}'.b]\nurl = 'x'\n[a.'{secret}']\n").parse().expect("TOML");
            let found = those_with_peers(&file);
            assert!(found.is_empty(), "{found:?}");
            for path in [secret, &format!("'{secret}'.c"), "b", "a.b", &format!("a.'{secret}'.b")] {
                let told = find(&file, path).expect_err("it is not there").to_string();
                assert!(!told.contains("s3cret"), "{told}");
            }
            let request = Request::new().file(secret).table(secret).url(secret).env(secret);
            let told = format!("{request:?} {:?}", request.examine(|_| {}).expect_err("no file"));
            assert!(!told.contains("s3cret"), "{told}");
        }
    }

    #[test]
    fn the_first_of_several_peers() {
        for (peers, expected) in [
            (r#"peers = ["a", "b"]"#, Some("a")),
            (r#"peers = [{ url = "a", name = "x" }]"#, Some("a")),
            (r#"peers = { db0 = "a", db1 = "b" }"#, Some("a")),
            (r#"peers = { db0 = { url = "a" } }"#, Some("a")),
            ("peers = 1", None),
            ("peers = []", None),
        ] {
            let file: Table = peers.parse().expect("TOML");
            assert_eq!(first_peer(&file["peers"]), expected, "{peers}");
        }
    }
}
