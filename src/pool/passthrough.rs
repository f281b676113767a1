//! Passes diesel's traits through to the wrapped connection.
//!
//! Calls through `Deref` bypass this module (a function that takes `&mut MysqlConnection`, `build_transaction`), so
//! errors are recorded by the observer instead. Only open transactions are counted here: a closure that gets a
//! [`PeerConnection`] was called through it.

use std::any::Any;
use std::marker::PhantomData;

use diesel::connection::{
    CacheSize, Connection, ConnectionSealed, Instrumentation, LoadConnection,
    MultiConnectionHelper, SimpleConnection, TransactionManager, TransactionManagerStatus,
    WithMetadataLookup,
};
use diesel::expression::QueryMetadata;
use diesel::migration::MigrationConnection;
use diesel::query_builder::{Query, QueryFragment, QueryId};
use diesel::query_dsl::UpdateAndFetchResults;
use diesel::r2d2::R2D2Connection;
use diesel::result::{ConnectionError, ConnectionResult, QueryResult};
use diesel::sql_types::TypeMetadata;

use crate::login::observer::Observer;
use crate::pool::connection::PeerConnection;

impl<C: ConnectionSealed> ConnectionSealed for PeerConnection<C> {}

impl<C: SimpleConnection> SimpleConnection for PeerConnection<C> {
    fn batch_execute(&mut self, query: &str) -> QueryResult<()> {
        (**self).batch_execute(query)
    }
}

impl<C: R2D2Connection> Connection for PeerConnection<C> {
    type Backend = C::Backend;
    type TransactionManager = PeerTransactionManager<C::TransactionManager>;

    /// Always returns an error, as diesel's own pooled connections do: a [`PeerConnection`] comes from a
    /// pool.
    fn establish(_: &str) -> ConnectionResult<Self> {
        Err(ConnectionError::BadConnection(
            "a `PeerConnection` cannot be established directly: get it from a pool".to_owned(),
        ))
    }

    fn begin_test_transaction(&mut self) -> QueryResult<()> {
        (**self).begin_test_transaction()?;
        self.link().state().record.transaction_begins();
        Ok(())
    }

    fn execute_returning_count<T>(&mut self, source: &T) -> QueryResult<usize>
    where
        T: QueryFragment<Self::Backend> + QueryId,
    {
        (**self).execute_returning_count(source)
    }

    fn transaction_state(
        &mut self,
    ) -> &mut <Self::TransactionManager as TransactionManager<Self>>::TransactionStateData {
        (**self).transaction_state()
    }

    fn instrumentation(&mut self) -> &mut dyn Instrumentation {
        Observer::user_instrumentation((**self).instrumentation())
    }

    fn set_instrumentation(&mut self, instrumentation: impl Instrumentation) {
        self.link_mut().set_user_instrumentation(instrumentation.into());
    }

    fn set_prepared_statement_cache_size(&mut self, size: CacheSize) {
        (**self).set_prepared_statement_cache_size(size);
    }
}

impl<B, C: R2D2Connection + LoadConnection<B>> LoadConnection<B> for PeerConnection<C> {
    type Cursor<'conn, 'query>
        = C::Cursor<'conn, 'query>
    where
        Self: 'conn;
    type Row<'conn, 'query>
        = C::Row<'conn, 'query>
    where
        Self: 'conn;

    fn load<'conn, 'query, T>(&'conn mut self, source: T) -> QueryResult<C::Cursor<'conn, 'query>>
    where
        T: Query + QueryFragment<Self::Backend> + QueryId + 'query,
        Self::Backend: QueryMetadata<T::SqlType>,
    {
        (**self).load(source)
    }
}

/// The transaction manager of a [`PeerConnection`], which delegates to that of the wrapped connection.
#[doc(hidden)]
#[derive(Debug)]
pub struct PeerTransactionManager<T>(PhantomData<fn() -> T>);

impl<C, T> TransactionManager<PeerConnection<C>> for PeerTransactionManager<T>
where
    C: R2D2Connection<TransactionManager = T>,
    T: TransactionManager<C>,
{
    type TransactionStateData = T::TransactionStateData;

    fn begin_transaction(conn: &mut PeerConnection<C>) -> QueryResult<()> {
        T::begin_transaction(&mut **conn)?;
        conn.link().state().record.transaction_begins();
        Ok(())
    }

    fn rollback_transaction(conn: &mut PeerConnection<C>) -> QueryResult<()> {
        conn.link().state().record.transaction_ends();
        T::rollback_transaction(&mut **conn)
    }

    fn commit_transaction(conn: &mut PeerConnection<C>) -> QueryResult<()> {
        conn.link().state().record.transaction_ends();
        T::commit_transaction(&mut **conn)
    }

    fn transaction_manager_status_mut(
        conn: &mut PeerConnection<C>,
    ) -> &mut TransactionManagerStatus {
        T::transaction_manager_status_mut(&mut **conn)
    }

    fn is_broken_transaction_manager(conn: &mut PeerConnection<C>) -> bool {
        T::is_broken_transaction_manager(&mut **conn)
    }
}

impl<C: R2D2Connection> R2D2Connection for PeerConnection<C> {
    fn ping(&mut self) -> QueryResult<()> {
        (**self).ping()
    }

    fn is_broken(&mut self) -> bool {
        (**self).is_broken()
    }
}

impl<C: R2D2Connection + MigrationConnection> MigrationConnection for PeerConnection<C> {
    fn setup(&mut self) -> QueryResult<usize> {
        (**self).setup()
    }
}

impl<Changes, Output, C> UpdateAndFetchResults<Changes, Output> for PeerConnection<C>
where
    C: R2D2Connection + UpdateAndFetchResults<Changes, Output>,
{
    fn update_and_fetch(&mut self, changeset: Changes) -> QueryResult<Output> {
        (**self).update_and_fetch(changeset)
    }
}

impl<C: R2D2Connection + MultiConnectionHelper> MultiConnectionHelper for PeerConnection<C> {
    fn to_any<'a>(
        lookup: &mut <Self::Backend as TypeMetadata>::MetadataLookup,
    ) -> &mut (dyn Any + 'a) {
        C::to_any(lookup)
    }

    fn from_any(
        lookup: &mut dyn Any,
    ) -> Option<&mut <Self::Backend as TypeMetadata>::MetadataLookup> {
        C::from_any(lookup)
    }
}

impl<C: R2D2Connection + WithMetadataLookup> WithMetadataLookup for PeerConnection<C> {
    fn metadata_lookup(&mut self) -> &mut <Self::Backend as TypeMetadata>::MetadataLookup {
        (**self).metadata_lookup()
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use diesel::ExecuteCopyFromDsl;
    use diesel::pg::{CopyFromQuery, GetPgMetadataCache, Pg, PgMetadataCache};

    use super::{PeerConnection, R2D2Connection};

    impl<C: GetPgMetadataCache> GetPgMetadataCache for PeerConnection<C> {
        fn get_metadata_cache(&mut self) -> &mut PgMetadataCache {
            (**self).get_metadata_cache()
        }
    }

    impl<T, A, C> ExecuteCopyFromDsl<PeerConnection<C>> for CopyFromQuery<T, A>
    where
        C: R2D2Connection<Backend = Pg>,
        Self: ExecuteCopyFromDsl<C>,
    {
        type Error = <Self as ExecuteCopyFromDsl<C>>::Error;

        fn execute(
            self,
            conn: &mut PeerConnection<C>,
        ) -> Result<usize, <Self as ExecuteCopyFromDsl<C>>::Error> {
            self.execute(&mut **conn)
        }
    }
}
