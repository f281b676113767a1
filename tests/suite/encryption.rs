//! A URL that requires TLS gets an encrypted connection, or a clear error: also where the client library
//! takes no notice of it.

#![cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::r2d2::{ManageConnection, R2D2Connection};
use diesel::sql_types::Bool;
use diesel::{MysqlConnection, PgConnection};
use diesel_peers::{Fault, PeerConnection, PeerManager};
use mysqlclient_sys::SUPPORTS_MYSQL_SSL_MODE;
use support::mariadb::MariaDb;
use support::postgres::Postgres;

/// Logs in, and tells why not, and what that says.
fn login<C: R2D2Connection + Send + 'static>(
    url: &str,
) -> Result<PeerConnection<C>, (String, Option<Fault>)> {
    let manager = PeerManager::<C>::builder().peer("db0", url).build();
    let manager = manager.map_err(|error| (error.to_string(), None))?;
    manager.connect().map_err(|error| {
        let fault = manager.peers().snapshot().peers[0].fault;
        (error.to_string(), fault)
    })
}

#[track_caller]
fn refused<C: R2D2Connection + Send + 'static>(url: &str, expected: &str, fault: Option<Fault>) {
    let (told, found) = login::<C>(url).map(|_| ()).expect_err(url);
    assert!(told.contains(expected), "{url}: {told}");
    assert_eq!(found, fault, "{url}: {told}");
}

#[test]
fn mysql() {
    let (with, without) = (MariaDb::start_with_tls(), MariaDb::start());
    let ca = with.folder().join("certificate.pem");
    let ca = ca.display();

    let is_encrypted = |url: &str| {
        let mut conn = login::<MysqlConnection>(url).unwrap_or_else(|(told, _)| panic!("{told}"));
        let cipher = "(SELECT VARIABLE_VALUE <> '' FROM information_schema.SESSION_STATUS \
                      WHERE VARIABLE_NAME = 'Ssl_cipher')";
        diesel::select(sql::<Bool>(cipher)).get_result::<bool>(&mut conn).expect("it is let in")
    };
    assert!(is_encrypted(&format!("{}?ssl_mode=required&ssl_ca={ca}", with.url())));
    assert!(!is_encrypted(&without.url()), "nobody asked for it");
    assert!(!is_encrypted(&format!("{}?ssl_mode=preferred", without.url())), "nor insisted on it");
    let mistake = Some(Fault::Misconfigured);
    for url in [with.url(), format!("{}?ssl_mode=required", with.url())] {
        if SUPPORTS_MYSQL_SSL_MODE {
            assert!(is_encrypted(&url), "where it can be had it is preferred");
        } else {
            refused::<MysqlConnection>(&url, "db0: ", mistake);
        }
    }

    let url = format!("{}?ssl_mode=required", without.url());
    let reason = if SUPPORTS_MYSQL_SSL_MODE { "SSL is required" } else { "is not encrypted" };
    refused::<MysqlConnection>(&url, reason, mistake);
    let url = format!("{}?ssl_mode=disabled", with.url());
    refused::<MysqlConnection>(&url, "db0: ", mistake);
    let url = format!("{}?ssl_mode=always", with.url());
    refused::<MysqlConnection>(&url, "has an unknown `ssl_mode`", None);
}

/// By MySQL's own library, that is.
#[test]
fn mysql_verifies() {
    if !SUPPORTS_MYSQL_SSL_MODE {
        eprintln!("skipped: MariaDB's client library does not verify");
        return;
    }
    let [with, stranger] = [(); 2].map(|()| MariaDb::start_with_tls());
    let without = MariaDb::start();
    let ca = with.folder().join("certificate.pem");
    let ca = ca.display();
    let mistake = Some(Fault::Misconfigured);
    for mode in ["verify_ca", "verify_identity"] {
        let verified = format!("ssl_mode={mode}&ssl_ca={ca}");
        login::<MysqlConnection>(&format!("{}?{verified}", with.url()))
            .unwrap_or_else(|(told, _)| panic!("{mode}: {told}"));
        let refused = |server: &MariaDb, parameters: &str, reason: &str| {
            let url = format!("{}?{parameters}", server.url());
            refused::<MysqlConnection>(&url, reason, mistake);
        };
        refused(&stranger, &verified, "certificate verify failed");
        refused(&without, &verified, "SSL is required");
        refused(&with, &format!("ssl_mode={mode}"), "CA certificate is required");
        refused(&with, &format!("ssl_mode={mode}&ssl_ca=/nowhere.pem"), "SSL connection error");
    }
    // The same address, by a name for which the certificate does not vouch.
    let elsewhere = with.url().replace("127.0.0.1", "127.1");
    let url = |mode: &str| format!("{elsewhere}?ssl_mode={mode}&ssl_ca={ca}");
    login::<MysqlConnection>(&url("verify_ca")).unwrap_or_else(|(told, _)| panic!("{told}"));
    refused::<MysqlConnection>(&url("verify_identity"), "SSL connection error", mistake);
}

/// After the login is too late: the password has been sent by then.
#[test]
fn what_the_library_does_not_verify_is_refused_before_anything_connects() {
    for mode in ["verify_ca", "verify_identity"] {
        let url = format!("mysql://app@127.0.0.1:1/app?ssl_mode={mode}&ssl_ca=/nowhere.pem");
        let manager = PeerManager::<MysqlConnection>::builder().peer("db0", url).build();
        let refused = manager.map(|_| ()).map_err(|error| error.to_string());
        if SUPPORTS_MYSQL_SSL_MODE {
            assert_eq!(refused, Ok(()), "the library verifies it");
        } else {
            let told = refused.expect_err(mode);
            assert!(told.contains("verifies the server's certificate, but"), "{told}");
        }
    }
}

/// There it is libpq's own.
#[test]
fn postgres() {
    let (with, without) = (Postgres::start_with_tls(), Postgres::start());
    let stranger = Postgres::start_with_tls();
    let ca = with.folder().join("certificate.pem");
    let is_encrypted = |url: &str| {
        let mut conn = login::<PgConnection>(url).unwrap_or_else(|(told, _)| panic!("{told}"));
        let ssl = "(SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid())";
        diesel::select(sql::<Bool>(ssl)).get_result::<bool>(&mut conn).expect("it is let in")
    };
    assert!(is_encrypted(&format!("{}?sslmode=require", with.url())));
    let verified = format!("sslmode=verify-ca&sslrootcert={}", ca.display());
    assert!(is_encrypted(&format!("{}?{verified}", with.url())));
    let mistake = Some(Fault::Misconfigured);
    let url = format!("{}?sslmode=require", without.url());
    refused::<PgConnection>(&url, "server does not support SSL", mistake);
    let url = format!("{}?{verified}", stranger.url());
    refused::<PgConnection>(&url, "certificate verify failed", mistake);
}
