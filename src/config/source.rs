//! The sources of settings in text form, which an error names as the place to correct.

use crate::config::keys;
use crate::config::value::SettingValue;
use crate::error::{BuildErrorKind, Flaw};
use crate::redact::may_be_shown;

/// The keys and values of one source, as they were read.
pub(crate) type Entries = Vec<(String, SettingValue)>;

/// The kind of a source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Source<'a> {
    /// A file, or the builder's method: the key is shown as it is.
    Named,
    /// The configuration of a database in Rocket, which also contains Rocket's own settings.
    #[cfg(feature = "rocket")]
    Rocket,
    Url,
    Environment {
        prefix: &'a str,
    },
}

impl Source<'_> {
    /// Describes a key for an error text. Does not show a key or a prefix that may be a secret.
    pub(super) fn describe(self, key: &str) -> String {
        match self {
            Self::Environment { prefix } if !(may_be_shown(prefix) && may_be_shown(key)) => {
                "an environment variable whose name may be a secret (not shown)".to_owned()
            }
            _ if !may_be_shown(key) => "a key that may be a secret (not shown)".to_owned(),
            Self::Named => format!("`{key}`"),
            #[cfg(feature = "rocket")]
            Self::Rocket => Self::Named.describe(key),
            Self::Url => format!("`{key}` in the URL"),
            Self::Environment { prefix } => {
                format!("the environment variable `{prefix}{}`", key.to_ascii_uppercase())
            }
        }
    }

    pub(super) fn error(self, key: &str, flaw: Flaw) -> BuildErrorKind {
        let setting = keys::all().find(|setting| *setting == key);
        BuildErrorKind::Setting { setting, key: self.describe(key), flaw }
    }
}
