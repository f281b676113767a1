//! A doubt in the formats of serde, so that another process can resolve it.

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};

use crate::settings::retry::Ledger;
use crate::transaction::ledger::{Entry, Token};
use crate::transaction::outcome::{Doubt, DoubtReason};

const REASONS: [(DoubtReason, &str); 4] = [
    (DoubtReason::CommitUnanswered, "commit_unanswered"),
    (DoubtReason::EndedEarly, "ended_early"),
    (DoubtReason::Forgotten, "forgotten"),
    (DoubtReason::OtherHistory, "other_history"),
];

/// Keys: `reason`, `peer`, `error`, and with a ledger `table`, `token` and `history`. All values are texts. Keys may be
/// added; within one major version none is renamed or removed.
impl Serialize for Doubt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { reason, peer, error, entry } = self;
        let (_, name) = REASONS.iter().find(|(of, _)| of == reason).expect("all reasons are there");
        let mut keys = BTreeMap::from([("reason", *name), ("peer", peer), ("error", error)]);
        if let Some(Entry { ledger, token, history }) = entry {
            keys.extend([("table", &*ledger.table), ("token", &*token.0), ("history", history)]);
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
                let ledger = Ledger::table(take("table")?);
                let is_token =
                    token.len() == 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit());
                if !is_token || ledger.validate().is_err() {
                    return Err(Error::custom("the table or the token is not valid"));
                }
                Some(Entry { ledger, token: Token(token), history: take("history")?.into() })
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
        let entry = Entry {
            ledger: Ledger::table("ledger"),
            token: Token::new().expect("the system has random numbers"),
            history: "abc".into(),
        };
        for (reason, entry) in REASONS.map(|(reason, _)| reason).into_iter().zip([
            Some(entry.clone()),
            None,
            Some(entry.clone()),
            None,
        ]) {
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
    }
}
