//! The peers of every database of a Rocket application.

use std::collections::BTreeMap;
use std::sync::Mutex;

use rocket::fairing::{AdHoc, Fairing};
use rocket::figment::Figment;
use rocket::figment::value::Value;

use crate::panics::lock;
use crate::peers::handle::Peers;

/// The placeholder for the `url` that Rocket requires, in a database with a table `peers`.
pub(super) const URL_PLACEHOLDER: &str = "see peers";

/// The handles to the peers of every Rocket database, by name; a managed state of Rocket. Use
/// `&State<Registry>` in a request, and `rocket.state::<Registry>()` in a fairing.
#[derive(Debug, Default)]
pub struct Registry {
    databases: Mutex<BTreeMap<String, Peers>>,
}

impl Registry {
    /// Returns the fairing that adds the registry to Rocket's state, and that allows a table `peers` in place
    /// of `url` in the settings of a database. Attach the fairing before those of the databases.
    #[must_use]
    pub fn fairing() -> impl Fairing {
        AdHoc::on_ignite("Database peers", |rocket| async {
            let figment = with_urls(rocket.figment().clone());
            let rocket = rocket.configure(figment);
            if rocket.state::<Self>().is_some() { rocket } else { rocket.manage(Self::default()) }
        })
    }

    /// Returns the peers of a database. Returns `None` before the fairing of the database has run, and if the
    /// database does not use `PeerConnection`.
    #[must_use]
    pub fn peers(&self, database: &str) -> Option<Peers> {
        lock(&self.databases).get(database).cloned()
    }

    /// Returns the name and the peers of every database, sorted by name.
    #[must_use]
    pub fn all(&self) -> Vec<(String, Peers)> {
        let databases = lock(&self.databases);
        databases.iter().map(|(database, peers)| (database.clone(), peers.clone())).collect()
    }

    pub(super) fn register(&self, database: &str, peers: Peers) {
        lock(&self.databases).insert(database.to_owned(), peers);
    }
}

/// Adds the placeholder `url` to each database that has `peers` but no `url`.
fn with_urls(figment: Figment) -> Figment {
    let databases = figment.find_value("databases").ok().and_then(Value::into_dict);
    databases.into_iter().flatten().fold(figment, |figment, (database, settings)| {
        let settings = settings.into_dict().unwrap_or_default();
        if settings.contains_key("url") || !settings.contains_key("peers") {
            return figment;
        }
        figment.join((format!("databases.{database}.url"), URL_PLACEHOLDER))
    })
}
