//! Where the configuration stands that is to be examined, and which database it is of.

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use diesel::r2d2::R2D2Connection;
use diesel_peers::doctor::{Report, examine_with_progress};
use diesel_peers::{BuildError, Config, PeerManager, PeerManagerBuilder};
use serde::Deserialize;
use toml::{Table, Value};

use crate::redaction::{may_be_shown, shown_or_struck};
use crate::table::{SOURCES, URL, find, first_peer, has_peers, keys_of, parse, those_with_peers};

/// The environment variable of a URL with several hosts, without its prefix.
const URL_VARIABLE: &str = "URL";

/// The table of the databases in the configuration of a Rocket application, Rocket's own settings of a database
/// besides `url`, and Rocket's default of `timeout` in seconds.
const ROCKETS: &str = "databases";
const ROCKETS_SIZE: &str = "pool_size";
const ROCKETS_TIMEOUT: &str = "timeout";
const ROCKETS_DEFAULT_TIMEOUT: i64 = 5;

/// The names that r2d2 has for Rocket's own settings.
const R2D2S: [(&str, &str); 2] =
    [("max_size", ROCKETS_SIZE), ("connection_timeout", ROCKETS_TIMEOUT)];

/// The name that diesel-peers has for Rocket's `timeout`.
const POOL_TIMEOUT: &str = "pool_timeout";

/// Where a configuration stands: in a TOML file, a URL, the environment, or several of them, of which
/// the later counts in this order. The scheme of the URL tells which database it is.
#[derive(Clone, Default)]
pub(crate) struct Request {
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
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A TOML file. It is read when it is examined, each time anew.
    #[must_use]
    pub(crate) fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// The table of the file in which the settings stand, as `default.databases.shop`. One that is in a
    /// table `databases` is a Rocket application's, which may have Rocket's `pool_size` and `timeout` as
    /// well.
    ///
    /// Defaults to the whole file.
    #[must_use]
    pub(crate) fn table(mut self, path: impl Into<String>) -> Self {
        self.table = Some(path.into());
        self
    }

    /// As [`PeerManagerBuilder::url`]. It counts more than what stands in the environment or in a file; but
    /// who logs in is said by their `user` and `password`, if they say it.
    #[must_use]
    pub(crate) fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// As [`PeerManagerBuilder::env`]. It counts more than what stands in a file.
    #[must_use]
    pub(crate) fn env(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Reads it, and [examines](examine_with_progress) the peers.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is no TOML or has no such table, when this crate was built without the
    /// database's feature, and as [`build`](PeerManagerBuilder::build).
    pub(crate) fn examine(&self, tell: impl FnMut(&[String])) -> Result<Report, RequestError> {
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
            let url = format!("{prefix}{URL_VARIABLE}");
            let counts = |name: &OsStr| self.url.is_none() || name != &*url;
            builder = builder.env_from(prefix, env::vars_os().filter(|(name, _)| counts(name)));
        }
        if let Some(url) = &self.url {
            builder = builder.url(url);
        }
        examine_with_progress(builder, tell).map_err(|error| self.not_built(&error).into())
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
        let timeout = take_whole(&mut settings, ROCKETS_TIMEOUT)?;
        let _ = take_whole(&mut settings, ROCKETS_SIZE)?;
        refuse_other_names(&settings)?;
        let timeout =
            Duration::from_secs(timeout.unwrap_or(ROCKETS_DEFAULT_TIMEOUT).unsigned_abs());
        Ok(builder.config(config(settings)?).pool_timeout(timeout))
    }

    /// The error of the builder, with the names that the settings have in the file.
    fn not_built(&self, error: &BuildError) -> Kind {
        let text = error.to_string();
        let text = if self.is_rockets() {
            text.replace(&format!("`{POOL_TIMEOUT}`"), &format!("`{ROCKETS_TIMEOUT}`"))
        } else {
            text
        };
        Kind::Settings { text, tables: self.tables_with_peers() }
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

/// Refuses the names that Rocket's own settings have elsewhere.
fn refuse_other_names(settings: &Table) -> Result<(), RequestError> {
    let url = settings.get(URL).and_then(Value::as_str).unwrap_or_default();
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters).split('&');
    let mut keys = parameters.map(|it| it.split_once('=').map_or(it, |(key, _)| key));
    if settings.contains_key(POOL_TIMEOUT) || keys.any(|key| key == POOL_TIMEOUT) {
        let flaw = format!("`{POOL_TIMEOUT}` is no setting there: give `{ROCKETS_TIMEOUT}`");
        return Err(Kind::Rockets(flaw).into());
    }
    let plain = |text: &str| text.replace(['_', '-'], "").to_ascii_lowercase();
    for key in settings.keys() {
        let of_r2d2 = R2D2S.iter().find(|(name, _)| name == key).map(|(_, own)| *own);
        let similar =
            || [ROCKETS_SIZE, ROCKETS_TIMEOUT].into_iter().find(|own| plain(own) == plain(key));
        if let Some(own) = of_r2d2.or_else(similar) {
            let flaw = format!("`{key}` is no setting: Rocket's own is `{own}`");
            return Err(Kind::Rockets(flaw).into());
        }
    }
    Ok(())
}

/// Whether a URL is of libpq's other form, `host=db0 dbname=shop`. A value in it may hold `://`.
fn is_keywords(url: &str) -> bool {
    let (before, rest) = url.split_once('=').unwrap_or(("", ""));
    let key = before.trim();
    let is_key =
        !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_key && !rest.is_empty()
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
        if is_keywords(url) {
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
pub(crate) struct RequestError(Kind);

pub(crate) enum Kind {
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
        text: String,
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
                "the URL is of a database whose feature this command was built without: run \
                 `cargo install diesel-peers-cli --features {feature}`",
            ),
            Kind::Settings { text, tables } if tables.is_empty() => f.write_str(text),
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
    fn what_may_be_a_secret_is_not_shown() {
        for secret in ["mysql://app:s3cret@db0/shop", "host=h password=s3cret"] {
            let request = Request::new().file(secret).table(secret).url(secret).env(secret);
            let told = format!("{request:?} {:?}", request.examine(|_| {}).expect_err("no file"));
            assert!(!told.contains("s3cret"), "{told}");
        }
    }

    #[test]
    fn names_that_rocket_has_for_its_own_settings() {
        let told = |settings: &str| {
            let settings = format!("url = 'x'\n{settings}").parse().expect("TOML");
            refuse_other_names(&settings).err().map(|error| error.to_string())
        };
        for (settings, expected) in [
            ("check_interval = 1", None),
            ("max_size = 1", Some("`max_size` is no setting: Rocket's own is `pool_size`")),
            ("poolSize = 1", Some("`poolSize` is no setting: Rocket's own is `pool_size`")),
            ("connection_timeout = 1", Some("Rocket's own is `timeout`")),
            ("pool_timeout = 1", Some("`pool_timeout` is no setting there: give `timeout`")),
        ] {
            let told = told(settings);
            let is_right = match expected {
                Some(expected) => told.as_deref().is_some_and(|told| told.contains(expected)),
                None => told.is_none(),
            };
            assert!(is_right, "{settings}: {told:?}");
        }
        let of_url = "url = 'mysql://db0/shop?check_interval=1&pool_timeout=2'".parse();
        refuse_other_names(&of_url.expect("TOML")).expect_err("it stands in the URL");
    }
}
