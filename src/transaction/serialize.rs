//! A doubt in the formats of serde, so that another process can resolve it.

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};

use crate::settings::ledger::Ledger;
use crate::transaction::ledger::table::TokenEntry;
use crate::transaction::ledger::xid::XidEntry;
use crate::transaction::ledger::{Entry, Token};
use crate::transaction::outcome::{Doubt, DoubtReason};

const REASONS: [(DoubtReason, &str); 5] = [
    (DoubtReason::CommitUnanswered, "commit_unanswered"),
    (DoubtReason::EndedEarly, "ended_early"),
    (DoubtReason::Forgotten, "forgotten"),
    (DoubtReason::OtherHistory, "other_history"),
    (DoubtReason::IdReused, "id_reused"),
];

/// Keys: `reason`, `peer`, `error`; with a table as the ledger `table`, `token` and `history`, and with PostgreSQL's ids
/// `xid`, `history` and `incarnation`. All values are texts. Keys may be added; within one major version none is renamed
/// or removed.
impl Serialize for Doubt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { reason, peer, error, entry } = self;
        let (_, name) = REASONS.iter().find(|(of, _)| of == reason).expect("all reasons are there");
        let mut keys = BTreeMap::from([("reason", *name), ("peer", peer), ("error", error)]);
        let digits;
        match entry {
            Some(Entry::Token(TokenEntry { table, token, history })) => {
                keys.extend([("table", &*table.name), ("token", &*token.0), ("history", history)]);
            }
            Some(Entry::Xid(XidEntry { xid, system, incarnation })) => {
                digits = xid.to_string();
                let incarnation = ("incarnation", &**incarnation);
                keys.extend([("xid", &*digits), ("history", system), incarnation]);
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
        let mut take = |key: &'static str| keys.remove(key).ok_or(Error::missing_field(key));
        let reason = take("reason")?;
        let reason = REASONS.iter().find(|(_, name)| *name == reason);
        let (reason, _) = reason.ok_or_else(|| Error::custom("the reason is not known"))?;
        let (peer, error) = (take("peer")?.into(), take("error")?.into());
        let entry = if let Ok(token) = take("token") {
            let table = Ledger::table(take("table")?);
            let is_token = token.len() == 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !is_token || table.validate().is_err() {
                return Err(Error::custom("the table or the token is not valid"));
            }
            let history = take("history")?.into();
            Some(Entry::Token(TokenEntry { table, token: Token(token), history }))
        } else if let Ok(xid) = take("xid") {
            let xid = xid.parse().map_err(Error::custom)?;
            let (system, incarnation) = (take("history")?.into(), take("incarnation")?.into());
            let entry = XidEntry { xid, system, incarnation };
            if !entry.is_valid() {
                return Err(Error::custom("the history or the incarnation is not valid"));
            }
            Some(Entry::Xid(entry))
        } else {
            None
        };
        Ok(Self { reason: *reason, peer, error, entry })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_is_read_as_it_was_written() {
        let table = Entry::Token(TokenEntry {
            table: Ledger::table("ledger"),
            token: Token::new().expect("the system has random numbers"),
            history: "abc".into(),
        });
        let incarnation = "00000001 1795676054403363 4244,4245,4247".into();
        let xid = Entry::Xid(XidEntry { xid: u64::MAX, system: "123".into(), incarnation });
        let entries = [Some(table), None, Some(xid)].into_iter().cycle();
        for (reason, entry) in REASONS.map(|(reason, _)| reason).into_iter().zip(entries) {
            let doubt = Doubt { reason, peer: "db1".into(), error: "\"lost\"".into(), entry };
            let json = serde_json::to_string(&doubt).expect("a doubt can be written");
            assert_eq!(serde_json::from_str::<Doubt>(&json).ok(), Some(doubt), "{json}");
        }
    }

    #[test]
    fn texts_that_would_change_a_statement_are_refused() {
        let doubt = |table: &str, token: &str| {
            serde_json::from_value::<Doubt>(serde_json::json!({
                "reason": "commit_unanswered", "peer": "", "error": "", "history": "",
                "table": table, "token": token,
            }))
        };
        assert!(doubt("ledger", &"0".repeat(32)).is_ok());
        assert!(doubt("ledger; DROP TABLE x", &"0".repeat(32)).is_err());
        assert!(doubt("ledger", &"'".repeat(32)).is_err());
        let doubt = |xid: &str, history: &str, incarnation: &str| {
            serde_json::from_value::<Doubt>(serde_json::json!({
                "reason": "commit_unanswered", "peer": "", "error": "",
                "xid": xid, "history": history, "incarnation": incarnation,
            }))
        };
        assert!(doubt("7", "1", "1 2,3").is_ok());
        assert!(doubt("7'", "1", "1").is_err());
        assert!(doubt("7", "'1", "1").is_err());
        assert!(doubt("7", "1", "1;").is_err());
    }
}
