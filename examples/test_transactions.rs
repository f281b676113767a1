//! How an application tests code that takes a pool, on a real server and without a trace: diesel's
//! `TestCustomizer` begins a transaction that nobody commits. On your own MySQL or MariaDB:
//!
//! ```sh
//! DATABASE_URL=mysql://app:secret@localhost/test \
//!     cargo test --features mysql --example test_transactions
//! ```
//!
//! What stays there is an empty table, `example_visitors`.

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

/// Yours are migrations.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS example_visitors (name VARCHAR(50) PRIMARY KEY)
    ENGINE = InnoDB";

fn manager() -> Result<PeerManager<MysqlConnection>, Box<dyn Error>> {
    let url = env::var("DATABASE_URL")
        .map_err(|_| "DATABASE_URL is not set: it is mysql://user:password@host/database")?;
    Ok(PeerManager::builder().url(&url).build()?)
}

/// Registers those who are named as arguments.
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

    /// Of one connection: each has a transaction of its own, in which others' rows are not seen.
    fn test_pool() -> Result<DbPool, Box<dyn Error>> {
        // Not in the test's transaction: MySQL commits before it makes a table.
        real_pool()?.get()?.batch_execute(TABLE)?;
        let pool = Pool::builder().max_size(1).connection_customizer(Box::new(TestCustomizer));
        Ok(pool.build(manager()?)?)
    }

    fn real_pool() -> Result<DbPool, Box<dyn Error>> {
        Ok(Pool::builder().max_size(1).build(manager()?)?)
    }

    #[test]
    fn who_has_registered_is_known() -> Result<(), Box<dyn Error>> {
        let pool = test_pool()?;
        assert!(!is_known(&pool, "Ada")?, "no other run left her behind");
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
        assert!(!is_known(&real_pool()?, "Grace")?, "it was never committed");
        Ok(())
    }
}
