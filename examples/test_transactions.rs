//! Tests of application code that uses a pool, on a real server that the tests do not change: diesel's
//! `TestCustomizer` begins a transaction that is never committed. On your own MySQL or MariaDB server:
//!
//! ```sh
//! DATABASE_URL=mysql://app:secret@localhost/test \
//!     cargo test --features mysql --example test_transactions
//! ```
//!
//! Only an empty table, `example_visitors`, stays on the server.

use std::env;
use std::error::Error;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::Pool;
use diesel_peers::PeerManager;
use schema::example_visitors as visitors;

type DbPool = Pool<PeerManager<MysqlConnection>>;

mod schema {
    diesel::table! { example_visitors (name) { name -> VarChar, } }
}

/// An application would use migrations instead.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS example_visitors (name VARCHAR(50) PRIMARY KEY)
    ENGINE = InnoDB";

fn manager() -> Result<PeerManager<MysqlConnection>, Box<dyn Error>> {
    let url = env::var("DATABASE_URL")
        .map_err(|_| "DATABASE_URL is not set: set it to mysql://user:password@host/database")?;
    Ok(PeerManager::builder().url(&url).build()?)
}

/// Registers the visitors whose names are given as arguments.
fn main() -> Result<(), Box<dyn Error>> {
    let pool = Pool::builder().max_size(4).build(manager()?)?;
    pool.get()?.batch_execute(TABLE)?;
    for name in env::args().skip(1) {
        let known = is_known(&pool, &name)?;
        println!("{name}: {}", if known { "welcome back" } else { "welcome" });
        register(&pool, &name)?;
    }
    Ok(())
}

fn is_known(pool: &DbPool, name: &str) -> Result<bool, Box<dyn Error>> {
    let visitor = visitors::table.find(name);
    Ok(diesel::select(diesel::dsl::exists(visitor)).get_result(&mut pool.get()?)?)
}

fn register(pool: &DbPool, name: &str) -> Result<(), Box<dyn Error>> {
    let visitor = visitors::name.eq(name);
    diesel::insert_or_ignore_into(visitors::table).values(visitor).execute(&mut pool.get()?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use diesel::r2d2::TestCustomizer;

    /// A pool of one connection, because each connection has its own test transaction and does not see the rows of
    /// another.
    fn test_pool() -> Result<DbPool, Box<dyn Error>> {
        // Outside of the test transaction: MySQL commits the transaction before it creates a table.
        plain_pool()?.get()?.batch_execute(TABLE)?;
        let pool = Pool::builder().max_size(1).connection_customizer(Box::new(TestCustomizer));
        Ok(pool.build(manager()?)?)
    }

    fn plain_pool() -> Result<DbPool, Box<dyn Error>> {
        Ok(Pool::builder().max_size(1).build(manager()?)?)
    }

    #[test]
    fn who_has_registered_is_known() -> Result<(), Box<dyn Error>> {
        let pool = test_pool()?;
        assert!(!is_known(&pool, "Ada")?, "no other run has stored a visitor");
        register(&pool, "Ada")?;
        assert!(is_known(&pool, "Ada")?, "the next checkout is in the same transaction");
        Ok(())
    }

    #[test]
    fn nothing_is_left_behind() -> Result<(), Box<dyn Error>> {
        let pool = test_pool()?;
        register(&pool, "Grace")?;
        assert!(is_known(&pool, "Grace")?);
        drop(pool);
        assert!(!is_known(&plain_pool()?, "Grace")?, "the visitor was never committed");
        Ok(())
    }
}
