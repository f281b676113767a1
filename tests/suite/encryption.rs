//! A URL that requires TLS leads to an encrypted connection or to a clear error, also when the client library
//! ignores the requirement.

#![cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::r2d2::{ManageConnection, R2D2Connection};
use diesel::sql_types::Bool;
use diesel::{MysqlConnection, PgConnection};
use diesel_peers::{Fault, PeerConnection, PeerManager};
use mysqlclient_sys::SUPPORTS_MYSQL_SSL_MODE;
use support::backend::status;
use support::mariadb::MariaDb;
use support::postgres::Postgres;

/// Logs in. An error comes with its text and, if the manager could be built, with the peer's fault.
fn login<C: R2D2Connection + Send + 'static>(
    url: &str,
) -> Result<PeerConnection<C>, (String, Option<Fault>)> {
    let manager = PeerManager::<C>::builder().peer("db0", url).build();
    let manager = manager.map_err(|error| (error.to_string(), None))?;
    manager.connect().map_err(|error| {
        let fault = status(&manager.peers(), "db0").fault;
        (error.to_string(), fault)
    })
}

#[track_caller]
fn refused<C: R2D2Connection + Send + 'static>(url: &str, expected: &str, fault: Option<Fault>) {
    let (error, found) = login::<C>(url).map(|_| ()).expect_err(url);
    assert!(error.contains(expected), "{url}: {error}");
    assert_eq!(found, fault, "{url}: {error}");
}

#[test]
fn mysql_url_that_requires_tls_gets_an_encrypted_connection() {
    let (with, without) = (MariaDb::start_with_tls(), MariaDb::start());
    let ca = with.folder().join("certificate.pem");
    let ca = ca.display();

    let is_encrypted = |url: &str| {
        let mut conn = login::<MysqlConnection>(url).unwrap_or_else(|(error, _)| panic!("{error}"));
        let cipher = "(SELECT VARIABLE_VALUE <> '' FROM information_schema.SESSION_STATUS \
                      WHERE VARIABLE_NAME = 'Ssl_cipher')";
        diesel::select(sql::<Bool>(cipher)).get_result::<bool>(&mut conn).expect("the server is up")
    };
    assert!(is_encrypted(&format!("{}?ssl_mode=required&ssl_ca={ca}", with.url())));
    assert!(!is_encrypted(&without.url()), "without the parameter there is no encryption");
    assert!(
        !is_encrypted(&format!("{}?ssl_mode=preferred", without.url())),
        "`preferred` does not insist on encryption"
    );
    let misconfigured = Some(Fault::Misconfigured);
    for url in [with.url(), format!("{}?ssl_mode=required", with.url())] {
        if SUPPORTS_MYSQL_SSL_MODE {
            assert!(is_encrypted(&url), "MySQL's library prefers encryption");
        } else {
            refused::<MysqlConnection>(&url, "db0: ", misconfigured);
        }
    }

    let url = format!("{}?ssl_mode=required", without.url());
    let reason = if SUPPORTS_MYSQL_SSL_MODE { "SSL is required" } else { "is not encrypted" };
    refused::<MysqlConnection>(&url, reason, misconfigured);
    let url = format!("{}?ssl_mode=disabled", with.url());
    refused::<MysqlConnection>(&url, "db0: ", misconfigured);
    let url = format!("{}?ssl_mode=always", with.url());
    refused::<MysqlConnection>(&url, "has an unknown `ssl_mode`", None);
}

/// Only MySQL's client library verifies certificates.
#[test]
fn mysql_url_that_requires_verification_verifies_the_certificate() {
    if !SUPPORTS_MYSQL_SSL_MODE {
        eprintln!("skipped: MariaDB's client library does not verify");
        return;
    }
    let [with, stranger] = [(); 2].map(|()| MariaDb::start_with_tls());
    let without = MariaDb::start();
    let ca = with.folder().join("certificate.pem");
    let ca = ca.display();
    let misconfigured = Some(Fault::Misconfigured);
    for mode in ["verify_ca", "verify_identity"] {
        let verified = format!("ssl_mode={mode}&ssl_ca={ca}");
        login::<MysqlConnection>(&format!("{}?{verified}", with.url()))
            .unwrap_or_else(|(error, _)| panic!("{mode}: {error}"));
        let refused = |server: &MariaDb, parameters: &str, reason: &str| {
            let url = format!("{}?{parameters}", server.url());
            refused::<MysqlConnection>(&url, reason, misconfigured);
        };
        refused(&stranger, &verified, "certificate verify failed");
        refused(&without, &verified, "SSL is required");
        refused(&with, &format!("ssl_mode={mode}"), "CA certificate is required");
        refused(&with, &format!("ssl_mode={mode}&ssl_ca=/nowhere.pem"), "SSL connection error");
    }
    // The same address, by a name that is not in the certificate.
    let elsewhere = with.url().replace("127.0.0.1", "127.1");
    let url = |mode: &str| format!("{elsewhere}?ssl_mode={mode}&ssl_ca={ca}");
    login::<MysqlConnection>(&url("verify_ca")).unwrap_or_else(|(error, _)| panic!("{error}"));
    refused::<MysqlConnection>(&url("verify_identity"), "SSL connection error", misconfigured);
}

/// A refusal after the login would be too late, as the password has been sent by then.
#[test]
fn verification_that_the_client_library_lacks_is_refused_before_connecting() {
    for mode in ["verify_ca", "verify_identity"] {
        let url = format!("mysql://app@127.0.0.1:1/app?ssl_mode={mode}&ssl_ca=/nowhere.pem");
        let manager = PeerManager::<MysqlConnection>::builder().peer("db0", url).build();
        let refused = manager.map(|_| ()).map_err(|error| error.to_string());
        if SUPPORTS_MYSQL_SSL_MODE {
            assert_eq!(refused, Ok(()), "MySQL's library verifies certificates");
        } else {
            let error = refused.expect_err(mode);
            assert!(error.contains("verifies the server's certificate, but"), "{error}");
        }
    }
}

/// For `PostgreSQL`, libpq enforces the requirement.
#[test]
fn postgres_url_that_requires_tls_gets_an_encrypted_connection() {
    let (with, without) = (Postgres::start_with_tls(), Postgres::start());
    let stranger = Postgres::start_with_tls();
    let ca = with.folder().join("certificate.pem");
    let is_encrypted = |url: &str| {
        let mut conn = login::<PgConnection>(url).unwrap_or_else(|(error, _)| panic!("{error}"));
        let ssl = "(SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid())";
        diesel::select(sql::<Bool>(ssl)).get_result::<bool>(&mut conn).expect("the server is up")
    };
    assert!(is_encrypted(&format!("{}?sslmode=require", with.url())));
    let verified = format!("sslmode=verify-ca&sslrootcert={}", ca.display());
    assert!(is_encrypted(&format!("{}?{verified}", with.url())));
    let misconfigured = Some(Fault::Misconfigured);
    let url = format!("{}?sslmode=require", without.url());
    refused::<PgConnection>(&url, "server does not support SSL", misconfigured);
    let url = format!("{}?{verified}", stranger.url());
    refused::<PgConnection>(&url, "certificate verify failed", misconfigured);
}
