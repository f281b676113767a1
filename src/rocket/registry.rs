//! The peers of every database of a Rocket application.

use std::collections::BTreeMap;
use std::sync::Mutex;

use rocket::fairing::{AdHoc, Fairing};
use rocket::figment::Figment;
use rocket::figment::value::Value;

use crate::panics::lock;
use crate::peers::handle::Peers;

/// Stands for the `url` that Rocket insists on where a table of peers takes its place.
pub(super) const PEERS: &str = "see peers";

/// The [`Peers`] of each database, in Rocket's state: `&State<Registry>` in a request, and
/// `rocket.state::<Registry>()` in a fairing.
#[derive(Debug, Default)]
pub struct Registry {
    databases: Mutex<BTreeMap<String, Peers>>,
}

impl Registry {
    /// Puts the registry into Rocket's state, and makes the table `peers` a substitute for `url` in a
    /// database's settings. Attach it before the databases' fairings.
    #[must_use]
    pub fn fairing() -> impl Fairing {
        AdHoc::on_ignite("Database peers", |rocket| async {
            let figment = with_urls(rocket.figment().clone());
            let rocket = rocket.configure(figment);
            if rocket.state::<Self>().is_some() { rocket } else { rocket.manage(Self::default()) }
        })
    }

    /// The peers of this database: `None` before its fairing has run, and for one that is no
    /// `PeerConnection`.
    #[must_use]
    pub fn peers(&self, database: &str) -> Option<Peers> {
        lock(&self.databases).get(database).cloned()
    }

    /// Every database's name and peers, by name.
    #[must_use]
    pub fn all(&self) -> Vec<(String, Peers)> {
        let databases = lock(&self.databases);
        databases.iter().map(|(database, peers)| (database.clone(), peers.clone())).collect()
    }

    pub(super) fn register(&self, database: &str, peers: Peers) {
        lock(&self.databases).insert(database.to_owned(), peers);
    }
}

/// Gives each database a `url` that has `peers` and none.
fn with_urls(figment: Figment) -> Figment {
    let databases = figment.find_value("databases").ok().and_then(Value::into_dict);
    databases.into_iter().flatten().fold(figment, |figment, (database, settings)| {
        let settings = settings.into_dict().unwrap_or_default();
        if settings.contains_key("url") || !settings.contains_key("peers") {
            return figment;
        }
        figment.join((format!("databases.{database}.url"), PEERS))
    })
}
