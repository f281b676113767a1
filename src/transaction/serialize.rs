//! A doubt in the formats of serde, so that another process can resolve it.

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};

use crate::settings::ledger::Ledger;
use crate::transaction::ledger::table::TableEntry;
use crate::transaction::ledger::xid::XidEntry;
use crate::transaction::ledger::{Entry, Token};
use crate::transaction::outcome::{Doubt, DoubtReason};

const REASONS: [DoubtReason; 5] = [
    DoubtReason::CommitUnanswered,
    DoubtReason::EndedEarly,
    DoubtReason::Forgotten,
    DoubtReason::OtherHistory,
    DoubtReason::OtherIncarnation,
];

/// The kinds of ledgers.
const TABLE: &str = "table";
const XID: &str = "xid";

/// Keys: `reason`, `peer`, `error`; after a resolution that could not decide `unresolved`; with a ledger `ledger`
/// (`table` or `xid`), `token` and `history`; with a table `table`, and with PostgreSQL's transaction ids `xid` and
/// `incarnation`. All values are texts. Keys may be added; within one major version none is renamed or removed.
impl Serialize for Doubt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { reason, peer, error, unresolved, entry } = self;
        let mut keys =
            BTreeMap::from([("reason", reason.as_str()), ("peer", peer), ("error", error)]);
        keys.extend(unresolved.as_deref().map(|unresolved| ("unresolved", unresolved)));
        let digits;
        match entry.as_deref() {
            Some(Entry::Table(TableEntry { table, token, history })) => {
                keys.extend([("ledger", TABLE), ("token", &token.0), ("history", history)]);
                keys.insert("table", &table.name);
            }
            Some(Entry::Xid(XidEntry { xid, token, system_identifier, incarnation })) => {
                digits = xid.to_string();
                keys.extend([("ledger", XID), ("token", &token.0), ("history", system_identifier)]);
                keys.extend([("xid", &*digits), ("incarnation", incarnation)]);
            }
            None => {}
        }
        keys.serialize(serializer)
    }
}

/// What is read becomes part of statements, so names and tokens are examined.
impl<'de> Deserialize<'de> for Doubt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut keys = BTreeMap::<String, String>::deserialize(deserializer)?;
        let ledger = keys.remove("ledger");
        let unresolved = keys.remove("unresolved").map(Into::into);
        let mut take = |key: &'static str| keys.remove(key).ok_or(Error::missing_field(key));
        let invalid = |key: &str| Error::custom(format!("the value of `{key}` is not valid"));
        let reason = take("reason")?;
        let reason = REASONS.into_iter().find(|known| known.as_str() == reason);
        let reason = reason.ok_or_else(|| invalid("reason"))?;
        let (peer, error) = (take("peer")?.into(), take("error")?.into());
        let mut token = || {
            let token = take("token")?;
            let is_token = token.len() == 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit());
            if is_token { Ok(Token(token)) } else { Err(invalid("token")) }
        };
        let entry = match ledger.as_deref() {
            Some(TABLE) => {
                let token = token()?;
                let table = Ledger::table(take("table")?);
                table.validate().map_err(|_| invalid("table"))?;
                Some(Entry::Table(TableEntry { table, token, history: take("history")?.into() }))
            }
            Some(XID) => {
                let token = token()?;
                let xid = take("xid")?.parse().map_err(|_| invalid("xid"))?;
                let system_identifier = take("history")?.into();
                let incarnation = take("incarnation")?.into();
                let entry = XidEntry { xid, token, system_identifier, incarnation };
                entry.validate().map_err(invalid)?;
                Some(Entry::Xid(entry))
            }
            Some(_) => return Err(invalid("ledger")),
            None => None,
        };
        Ok(Self { reason, peer, error, unresolved, entry: entry.map(Box::new) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_is_read_as_it_was_written() {
        let token = Token::new().expect("the system has random numbers");
        let table = Entry::Table(TableEntry {
            table: Ledger::table("ledger"),
            token: token.clone(),
            history: "abc".into(),
        });
        let xid = Entry::Xid(XidEntry {
            xid: u64::MAX,
            token,
            system_identifier: "-123".into(),
            incarnation: "0000000A 1795676054403363 1795676053924007".into(),
        });
        let entries = [Some(table), None, Some(xid)].into_iter().cycle();
        for (reason, entry) in REASONS.into_iter().zip(entries) {
            let unresolved = entry.is_some().then(|| "refused".into());
            let doubt = Doubt {
                reason,
                peer: "db1".into(),
                error: "\"lost\"".into(),
                unresolved,
                entry: entry.map(Box::new),
            };
            let json = serde_json::to_string(&doubt).expect("a doubt can be written");
            assert_eq!(serde_json::from_str::<Doubt>(&json).ok(), Some(doubt), "{json}");
        }
    }

    #[test]
    fn texts_that_would_change_a_statement_are_refused() {
        let doubt = |table: &str, token: &str| {
            serde_json::from_value::<Doubt>(serde_json::json!({
                "reason": "commit_unanswered", "peer": "", "error": "", "history": "",
                "ledger": "table", "table": table, "token": token,
            }))
        };
        assert!(doubt("ledger", &"0".repeat(32)).is_ok());
        assert!(doubt("ledger; DROP TABLE x", &"0".repeat(32)).is_err());
        assert!(doubt("ledger", &"'".repeat(32)).is_err());
        let doubt = |xid: &str, history: &str, incarnation: &str| {
            serde_json::from_value::<Doubt>(serde_json::json!({
                "reason": "commit_unanswered", "peer": "", "error": "", "token": "0".repeat(32),
                "ledger": "xid", "xid": xid, "history": history, "incarnation": incarnation,
            }))
        };
        assert!(doubt("7", "1", "1 2 3").is_ok());
        assert!(doubt("7'", "1", "1").is_err());
        assert!(doubt("7", "'1", "1").is_err());
        assert!(doubt("7", "1", "1;").is_err());
    }
}
