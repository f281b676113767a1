//! The ledger: how the outcome of each transaction is recorded in the database, together with the transaction.

use crate::error::Flaw;
use crate::url::dialect::Dialect;

/// How the outcome of each transaction is recorded in the database, together with the transaction.
///
/// With a ledger, a `COMMIT` whose answer was lost is resolved. The guide has the details
/// ([transactions](crate::guide::transactions)).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ledger {
    /// A table in which each transaction writes a token. It works with MySQL, MariaDB, PostgreSQL and
    /// SQLite.
    Table(LedgerTable),
    /// PostgreSQL's own record of its transaction ids (13 and newer). There is no table, but the outcome of a
    /// transaction that was committed stays unknown if the server was restarted or replaced before it could be asked.
    Xid,
}

/// A table in which each transaction writes a token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LedgerTable {
    pub(crate) name: String,
}

impl Ledger {
    /// Returns a ledger in the table of this name, which may be qualified by the name of a schema. A schema with other
    /// characters than letters, digits and underscores has to be quoted.
    ///
    /// The application's user needs the rights to `SELECT` and to `INSERT`, and who calls
    /// [`clean`](LedgerTable::clean) those to `UPDATE` and to `DELETE`. [`create_table`](LedgerTable::create_table)
    /// returns the statement that creates the table.
    pub fn table(name: impl Into<String>) -> LedgerTable {
        LedgerTable { name: name.into() }
    }

    /// Returns the ledger with this text form: `xid`, or the name of a table.
    pub(crate) fn from_text(text: &str) -> Self {
        if text == "xid" { Self::Xid } else { Self::table(text).into() }
    }

    /// Checks that this ledger can be used with a database of this kind.
    pub(crate) fn validate(&self, dialect: Dialect) -> Result<(), Flaw> {
        if let Self::Table(table) = self {
            table.validate()?;
        }
        match (self, dialect) {
            (_, Dialect::Other) => {
                Err(Flaw::new("needs one of diesel's own connection types", "leave the ledger out"))
            }
            (Self::Xid, Dialect::MySql | Dialect::Sqlite) => {
                Err(Flaw::new("by transaction ids needs PostgreSQL", "give the name of a table"))
            }
            (Self::Table(_), _) | (Self::Xid, Dialect::Postgres) => Ok(()),
        }
    }
}

impl From<LedgerTable> for Ledger {
    fn from(table: LedgerTable) -> Self {
        Self::Table(table)
    }
}

impl LedgerTable {
    /// Returns the statement that creates the table, for a migration. It is the same for every database.
    #[must_use]
    pub fn create_table(&self) -> String {
        format!(
            "CREATE TABLE {} (token CHAR(32) NOT NULL PRIMARY KEY, outcome VARCHAR(32) NOT NULL, \
             created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)",
            self.name
        )
    }

    /// Checks that the name can be written into a statement.
    pub(crate) fn validate(&self) -> Result<(), Flaw> {
        let is_name = |part: &str| {
            !part.is_empty()
                && !part.starts_with(|c: char| c.is_ascii_digit())
                && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        // It is written into texts as well.
        let is_quoted = |part: &str| {
            let inner = ['"', '`'].into_iter().find_map(|quote| {
                part.strip_prefix(quote).and_then(|part| part.strip_suffix(quote))
            });
            let is_harmless = |c: char| !c.is_control() && !"\"`'\\".contains(c);
            inner.is_some_and(|inner| !inner.is_empty() && inner.chars().all(is_harmless))
        };
        let (schema, name) = self.parts();
        if is_name(name) && schema.is_none_or(|schema| is_name(schema) || is_quoted(schema)) {
            return Ok(());
        }
        let advice = "give letters, digits and underscores, and the schema before a dot, quoted if it has others";
        Err(Flaw::new("is not the name of a table", advice))
    }

    /// Returns the schema, which may be quoted, and the name in it.
    pub(crate) fn parts(&self) -> (Option<&str>, &str) {
        self.name
            .rsplit_once('.')
            .map_or((None, &*self.name), |(schema, name)| (Some(schema), name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ledger_that_a_database_does_not_have_is_refused() {
        let table = || Ledger::table("shop.ledger").into();
        for (ledger, dialect, expected) in [
            (table(), Dialect::MySql, None),
            (table(), Dialect::Sqlite, None),
            (table(), Dialect::Other, Some("needs one of diesel's own connection types")),
            (Ledger::Xid, Dialect::Postgres, None),
            (Ledger::Xid, Dialect::MySql, Some("by transaction ids needs PostgreSQL")),
            (Ledger::Xid, Dialect::Sqlite, Some("by transaction ids needs PostgreSQL")),
            (Ledger::table("`my-shop.x`.ledger").into(), Dialect::MySql, None),
            (Ledger::table("\"my-shop\".ledger").into(), Dialect::Postgres, None),
            (Ledger::table("7").into(), Dialect::MySql, Some("is not the name of a table")),
            (Ledger::table("`a`b`.c").into(), Dialect::MySql, Some("is not the name of a table")),
            (Ledger::table("`a'`.c").into(), Dialect::MySql, Some("is not the name of a table")),
            (Ledger::table("``.c").into(), Dialect::MySql, Some("is not the name of a table")),
        ] {
            let flaw = ledger.validate(dialect).err().map(|flaw| flaw.to_string());
            let is_expected = match (&flaw, expected) {
                (Some(flaw), Some(expected)) => flaw.starts_with(expected),
                (flaw, expected) => flaw.is_none() && expected.is_none(),
            };
            assert!(is_expected, "{ledger:?}, {dialect:?}: {flaw:?}");
        }
    }
}
