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

/// Keys: `reason`, `peer`, `error`; with a ledger `token` and `history`; with a table `table`, and with PostgreSQL's ids
/// `xid` and `incarnation`. All values are texts. Keys may be added; within one major version none is renamed
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
            Some(Entry::Xid(XidEntry { xid, token, system, incarnation })) => {
                digits = xid.to_string();
                keys.extend([("xid", &*digits), ("token", &*token.0), ("history", system)]);
                keys.insert("incarnation", incarnation);
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
        let entry = match take("token") {
            Ok(token) => {
                let is_token =
                    token.len() == 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit());
                let (token, history) = (Token(token), take("history")?.into());
                let (is_valid, entry) = if let Ok(xid) = take("xid") {
                    let xid = xid.parse().map_err(Error::custom)?;
                    let incarnation = take("incarnation")?.into();
                    let entry = XidEntry { xid, token, system: history, incarnation };
                    (entry.is_valid(), Entry::Xid(entry))
                } else {
                    let table = Ledger::table(take("table")?);
                    let is_valid = table.validate().is_ok();
                    (is_valid, Entry::Token(TokenEntry { table, token, history }))
                };
                if !is_token || !is_valid {
                    return Err(Error::custom("the token or another key is not valid"));
                }
                Some(entry)
            }
            Err::<_, D::Error>(_) => None,
        };
        Ok(Self { reason: *reason, peer, error, entry })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_is_read_as_it_was_written() {
        let token = Token::new().expect("the system has random numbers");
        let table = Entry::Token(TokenEntry {
            table: Ledger::table("ledger"),
            token: token.clone(),
            history: "abc".into(),
        });
        let xid = Entry::Xid(XidEntry {
            xid: u64::MAX,
            token,
            system: "-123".into(),
            incarnation: "0000000A 1795676054403363 1795676053924007".into(),
        });
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
                "reason": "commit_unanswered", "peer": "", "error": "", "token": "0".repeat(32),
                "xid": xid, "history": history, "incarnation": incarnation,
            }))
        };
        assert!(doubt("7", "1", "1 2 3").is_ok());
        assert!(doubt("7'", "1", "1").is_err());
        assert!(doubt("7", "'1", "1").is_err());
        assert!(doubt("7", "1", "1;").is_err());
    }
}
