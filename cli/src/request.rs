//! Reads the configuration that is to be examined, and finds out which database it is for.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use diesel::r2d2::R2D2Connection;
use diesel_peers::doctor::shown::shown_or_redacted;
use diesel_peers::doctor::{Report, examine_with_progress};
use diesel_peers::{BuildError, Config, PeerManager, PeerManagerBuilder};
use serde::Deserialize;
use toml::{Table, Value};

use crate::error::{RequestError, RequestErrorKind};
use crate::table::{
    PEER_KEYS, URL, find_table, first_peer, has_peers, parse_file, parse_table_path,
    tables_with_peers,
};

/// The settings that are given for each peer by its name.
const PER_PEER_KEYS: [&str; 3] = ["weight", "tier", "peer_max_connections"];

/// The table that contains a Rocket application's databases.
const ROCKET_DATABASES: &str = "databases";

/// Rocket's own settings of a database besides `url`.
const ROCKET_SIZE: &str = "pool_size";
const ROCKET_TIMEOUT: &str = "timeout";

/// The default of Rocket's setting `timeout`, in seconds.
const ROCKET_DEFAULT_TIMEOUT: i64 = 5;

/// The names of Rocket's own settings in r2d2.
const R2D2_NAMES: [(&str, &str); 2] =
    [("max_size", ROCKET_SIZE), ("connection_timeout", ROCKET_TIMEOUT)];

/// The name of Rocket's `timeout` in diesel-peers.
const POOL_TIMEOUT: &str = "pool_timeout";

/// The sources of a configuration: a TOML file, the environment, a URL, or a combination. Later sources in
/// this order override earlier ones. The scheme of the URL selects the database.
#[derive(Clone, Default)]
pub(crate) struct Request {
    file: Option<PathBuf>,
    table: Option<String>,
    url: Option<String>,
    prefix: Option<String>,
}

/// Hides the URL, and other values that may contain one by mistake.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, table, url: _, prefix } = self;
        let file = file.as_ref().map(|path| path.display().to_string());
        let shown =
            |text: &Option<String>| text.as_deref().map(|text| shown_or_redacted(text).to_owned());
        f.debug_struct("Request")
            .field("file", &shown(&file))
            .field("table", &shown(table))
            .field("prefix", &shown(prefix))
            .finish_non_exhaustive()
    }
}

impl Request {
    /// Creates a request without any source.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Sets a TOML file as a source. Each call of [`examine`](Self::examine) reads the file again.
    #[must_use]
    pub(crate) fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Sets the table of the file that contains the settings, such as `default.databases.shop`. A table
    /// inside a table `databases` belongs to a Rocket application and may also contain Rocket's settings
    /// `pool_size` and `timeout`.
    ///
    /// Defaults to the whole file.
    #[must_use]
    pub(crate) fn table(mut self, path: impl Into<String>) -> Self {
        self.table = Some(path.into());
        self
    }

    /// Sets the URL, as [`PeerManagerBuilder::url`] does. The URL overrides the environment and the file,
    /// except their settings `user` and `password`, which override the URL's user and password.
    #[must_use]
    pub(crate) fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// Sets the prefix of environment variables, as [`PeerManagerBuilder::env`] does. The variables override
    /// the file.
    #[must_use]
    pub(crate) fn env(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Reads the configuration and examines its peers, as [`examine_with_progress`] does.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is not valid TOML or lacks the table; if this command was built without the
    /// feature for the database; and the same as [`build`](PeerManagerBuilder::build).
    pub(crate) fn examine(
        &self,
        on_progress: impl FnMut(&[String]),
    ) -> Result<Report, RequestError> {
        let settings = self.read_settings()?;
        match Database::from_url(self.deciding_url(settings.as_ref()).as_deref())? {
            #[cfg(feature = "mysql")]
            Database::MySql => {
                self.examine_database::<diesel::MysqlConnection>(settings, on_progress)
            }
            #[cfg(feature = "postgres")]
            Database::Postgres => {
                self.examine_database::<diesel::PgConnection>(settings, on_progress)
            }
            #[cfg(feature = "sqlite")]
            Database::Sqlite => {
                self.examine_database::<diesel::SqliteConnection>(settings, on_progress)
            }
            #[cfg(not(all(feature = "mysql", feature = "postgres", feature = "sqlite")))]
            database => {
                let _ = (settings, on_progress);
                Err(RequestErrorKind::MissingFeature(database.feature()).into())
            }
        }
    }

    #[cfg_attr(
        not(any(feature = "mysql", feature = "postgres", feature = "sqlite")),
        expect(dead_code, reason = "no feature of a database is enabled")
    )]
    fn examine_database<C: R2D2Connection + Send + 'static>(
        &self,
        settings: Option<Table>,
        on_progress: impl FnMut(&[String]),
    ) -> Result<Report, RequestError> {
        let mut builder = PeerManager::<C>::builder();
        // Peers that are overridden may belong to another database. Their weights, tiers and
        // limits go with them.
        let names_peers = |key: &str| PEER_KEYS.contains(&key) || PER_PEER_KEYS.contains(&key);
        if let Some(mut settings) = settings {
            if self.url_outside_file().is_some() {
                settings.retain(|key, _| !names_peers(key));
            }
            builder = self.apply(settings, builder)?;
        }
        if let Some(prefix) = &self.prefix {
            let is_used = |name: &OsStr| {
                self.url.is_none()
                    || !key_of_variable(name, prefix).is_some_and(|key| names_peers(&key))
            };
            builder = builder.env_from(prefix, env::vars_os().filter(|(name, _)| is_used(name)));
        }
        if let Some(url) = &self.url {
            builder = builder.url(url);
        }
        examine_with_progress(builder, on_progress).map_err(|error| self.build_error(&error).into())
    }

    /// Passes a file's settings to the builder, as the application does.
    fn apply<C: 'static>(
        &self,
        mut settings: Table,
        builder: PeerManagerBuilder<C>,
    ) -> Result<PeerManagerBuilder<C>, RequestError> {
        if !self.is_rocket_table() {
            return Ok(builder.config(config(settings)?));
        }
        let timeout = take_whole_number(&mut settings, ROCKET_TIMEOUT)?;
        let _ = take_whole_number(&mut settings, ROCKET_SIZE)?;
        reject_other_names(&settings)?;
        let timeout = Duration::from_secs(timeout.unwrap_or(ROCKET_DEFAULT_TIMEOUT).unsigned_abs());
        Ok(builder.config(config(settings)?).pool_timeout(timeout))
    }

    /// Converts the error of `build()`: uses the names that the settings have in the file.
    fn build_error(&self, error: &BuildError) -> RequestErrorKind {
        let text = error.to_string();
        let text = if self.is_rocket_table() {
            text.replace(&format!("`{POOL_TIMEOUT}`"), &format!("`{ROCKET_TIMEOUT}`"))
        } else {
            text
        };
        RequestErrorKind::Settings { text, tables: self.tables_with_peers() }
    }

    /// Whether the table belongs to a Rocket application's databases.
    fn is_rocket_table(&self) -> bool {
        let path = self.table.as_deref().and_then(parse_table_path).unwrap_or_default();
        path.iter().rev().nth(1).is_some_and(|key| key == ROCKET_DATABASES)
    }

    /// Returns the settings of the file, or `None` if there is no file.
    fn read_settings(&self) -> Result<Option<Table>, RequestError> {
        let Some(path) = &self.file else {
            return match &self.table {
                Some(_) => Err(RequestErrorKind::TableWithoutFile.into()),
                None => Ok(None),
            };
        };
        let file = parse_file(path)?;
        let Some(table) = &self.table else { return Ok(Some(file)) };
        find_table(&file, table).map(|table| Some(table.clone()))
    }

    /// Returns the URL whose scheme selects the database.
    fn deciding_url(&self, settings: Option<&Table>) -> Option<String> {
        let from_file = || {
            let settings = settings?;
            let one = settings.get(URL).and_then(Value::as_str);
            one.or_else(|| settings.get("peers").and_then(first_peer)).map(str::to_owned)
        };
        self.url_outside_file().or_else(from_file)
    }

    /// Returns the URL that overrides the file's.
    fn url_outside_file(&self) -> Option<String> {
        let from_environment = || {
            let prefix = self.prefix.as_ref()?;
            let is_url = |name: &OsStr| key_of_variable(name, prefix).is_some_and(|key| key == URL);
            let (_, url) = env::vars_os().find(|(name, _)| is_url(name))?;
            url.into_string().ok()
        };
        self.url.clone().or_else(from_environment)
    }

    /// Returns the file's tables that contain peers, if no peers were found where they were expected.
    fn tables_with_peers(&self) -> Vec<String> {
        if self.url_outside_file().is_some() {
            return Vec::new();
        }
        let read = self.read_settings().ok().flatten();
        let file = self.file.as_ref().filter(|_| read.is_some_and(|table| !has_peers(&table)));
        let file = file.and_then(|path| parse_file(path).ok());
        file.map(|file| tables_with_peers(&file)).unwrap_or_default()
    }
}

/// Returns the key of an environment variable's setting, which may be written in any case.
fn key_of_variable(name: &OsStr, prefix: &str) -> Option<String> {
    name.to_str()?.strip_prefix(prefix).map(str::to_ascii_lowercase)
}

fn config(settings: Table) -> Result<Config, RequestError> {
    let config = Config::deserialize(Value::Table(settings));
    config.map_err(|error| RequestErrorKind::InvalidSetting(error.message().to_owned()).into())
}

/// Removes one of Rocket's own settings, which must be a whole number of at least 1.
fn take_whole_number(settings: &mut Table, key: &str) -> Result<Option<i64>, RequestError> {
    match settings.remove(key) {
        None => Ok(None),
        Some(Value::Integer(number @ 1..)) => Ok(Some(number)),
        Some(_) => {
            let text =
                format!("`{key}` must be a whole number of at least 1 (a setting of Rocket)");
            Err(RequestErrorKind::InvalidSetting(text).into())
        }
    }
}

/// Rejects other names of Rocket's own settings.
fn reject_other_names(settings: &Table) -> Result<(), RequestError> {
    let url = settings.get(URL).and_then(Value::as_str).unwrap_or_default();
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters).split('&');
    let mut keys =
        parameters.map(|parameter| parameter.split_once('=').map_or(parameter, |(key, _)| key));
    if settings.contains_key(POOL_TIMEOUT) || keys.any(|key| key == POOL_TIMEOUT) {
        let text = format!(
            "`{POOL_TIMEOUT}` is not a setting of this table: use Rocket's `{ROCKET_TIMEOUT}`"
        );
        return Err(RequestErrorKind::InvalidSetting(text).into());
    }
    let plain = |text: &str| text.replace(['_', '-'], "").to_ascii_lowercase();
    for key in settings.keys() {
        let r2d2_name = R2D2_NAMES.iter().find(|(name, _)| name == key).map(|(_, own)| *own);
        let similar =
            || [ROCKET_SIZE, ROCKET_TIMEOUT].into_iter().find(|own| plain(own) == plain(key));
        if let Some(own) = r2d2_name.or_else(similar) {
            let text = format!("`{key}` is not a setting of this table: use Rocket's `{own}`");
            return Err(RequestErrorKind::InvalidSetting(text).into());
        }
    }
    Ok(())
}

/// Whether a URL is a conninfo string of libpq, such as `host=db0 dbname=shop`. Its values may contain `://`.
fn is_conninfo(url: &str) -> bool {
    let (before, rest) = url.split_once('=').unwrap_or(("", ""));
    let key = before.trim();
    let is_key =
        !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_key && !rest.is_empty()
}

/// The supported databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Database {
    MySql,
    Postgres,
    Sqlite,
}

impl Database {
    /// Returns the database for the scheme of a URL. The builder reports mistakes in the rest of the URL, and
    /// also a missing URL, for which any database will do.
    fn from_url(url: Option<&str>) -> Result<Self, RequestError> {
        let Some(url) = url.map(str::trim) else { return Ok(Self::any_enabled()) };
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
        if Path::new(url).extension().is_some_and(|extension| extension == "toml") {
            return Err(RequestErrorKind::FileInsteadOfUrl.into());
        }
        if url.starts_with('$') {
            return Err(RequestErrorKind::UnexpandedVariable.into());
        }
        // The builder reports the missing colon.
        let lacks_colon =
            |scheme: &str| url.strip_prefix(scheme).is_some_and(|rest| rest.starts_with("//"));
        if ["mysql", "postgres", "postgresql"].into_iter().any(lacks_colon) {
            return Ok(if url.starts_with("mysql") { Self::MySql } else { Self::Postgres });
        }
        // A single word is more likely a mistake than the name of a file.
        let is_path = !url.contains("://") && url.contains(['/', '.']);
        if is_path { Ok(Self::Sqlite) } else { Err(RequestErrorKind::UnknownScheme.into()) }
    }

    /// Returns a database whose feature is enabled.
    fn any_enabled() -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheme_selects_the_database() {
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
            (None, Some(Database::any_enabled())),
        ] {
            let found = Database::from_url(url);
            let error = found.as_ref().err().map(ToString::to_string).unwrap_or_default();
            assert!(!error.contains("s3cret"), "the error shows no secret: {error}");
            assert_eq!(found.ok(), expected, "the database of the URL {url:?}");
        }
    }

    #[test]
    fn possible_secrets_are_not_shown() {
        for secret in ["mysql://app:s3cret@db0/shop", "host=h password=s3cret"] {
            let request = Request::new().file(secret).table(secret).url(secret).env(secret);
            let error = request.examine(|_| {}).expect_err("the file does not exist");
            let shown = format!("{request:?} {error:?}");
            assert!(!shown.contains("s3cret"), "no secret is shown: {shown}");
        }
    }

    #[test]
    fn other_names_of_rockets_settings_are_rejected() {
        let error = |settings: &str| {
            let settings = format!("url = 'x'\n{settings}").parse().expect("TOML");
            reject_other_names(&settings).err().map(|error| error.to_string())
        };
        for (settings, expected) in [
            ("check_interval = 1", None),
            (
                "max_size = 1",
                Some("`max_size` is not a setting of this table: use Rocket's `pool_size`"),
            ),
            (
                "poolSize = 1",
                Some("`poolSize` is not a setting of this table: use Rocket's `pool_size`"),
            ),
            ("connection_timeout = 1", Some("use Rocket's `timeout`")),
            (
                "pool_timeout = 1",
                Some("`pool_timeout` is not a setting of this table: use Rocket's `timeout`"),
            ),
        ] {
            let error = error(settings);
            let is_right = match expected {
                Some(expected) => error.as_deref().is_some_and(|error| error.contains(expected)),
                None => error.is_none(),
            };
            assert!(is_right, "{settings}: {error:?}");
        }
        let of_url = "url = 'mysql://db0/shop?check_interval=1&pool_timeout=2'".parse();
        reject_other_names(&of_url.expect("TOML")).expect_err("it stands in the URL");
    }
}
