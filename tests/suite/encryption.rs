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
use support::account::Account;
use support::backend::status;
use support::impostor::Impostor;
use support::mariadb::{MariaDb, url_at};
use support::postgres::Postgres;
use support::tls::Certificate;
use support::{APP, APP_PASSWORD};

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
    assert!(is_encrypted(&format!("{}?ssl_mode=verify_identity&ssl_ca={ca}", with.url())));
    assert!(!is_encrypted(&without.url()), "without the parameter there is no encryption");
    assert!(
        !is_encrypted(&format!("{}?ssl_mode=preferred", without.url())),
        "`preferred` does not insist on encryption"
    );
    let misconfigured = Some(Fault::Misconfigured);
    if SUPPORTS_MYSQL_SSL_MODE {
        assert!(is_encrypted(&with.url()), "MySQL's library prefers encryption");
        assert!(is_encrypted(&format!("{}?ssl_mode=required", with.url())));
        let url = format!("{}?ssl_mode=required", without.url());
        refused::<MysqlConnection>(&url, "SSL is required", misconfigured);
    } else {
        refused::<MysqlConnection>(&with.url(), "db0: ", misconfigured);
        let preferred = format!("{}?ssl_mode=preferred&ssl_ca={ca}", with.url());
        assert!(is_encrypted(&preferred), "MariaDB's library encrypts where there is an `ssl_ca`");
    }
    let url = format!("{}?ssl_mode=disabled", with.url());
    refused::<MysqlConnection>(&url, "db0: ", misconfigured);
    let url = format!("{}?ssl_mode=always", with.url());
    refused::<MysqlConnection>(&url, "has an unknown `ssl_mode`", None);
}

#[test]
fn mysql_url_that_requires_verification_verifies_the_certificate() {
    let [with, stranger] = [(); 2].map(|()| MariaDb::start_with_tls());
    let without = MariaDb::start();
    let ca = with.folder().join("certificate.pem");
    let ca = ca.display();
    let misconfigured = Some(Fault::Misconfigured);
    let modes = ["verify_identity", "verify_ca"];
    for mode in &modes[..if SUPPORTS_MYSQL_SSL_MODE { 2 } else { 1 }] {
        let verified = format!("ssl_mode={mode}&ssl_ca={ca}");
        login::<MysqlConnection>(&format!("{}?{verified}", with.url()))
            .unwrap_or_else(|(error, _)| panic!("{mode}: {error}"));
        let refused = |server: &MariaDb, parameters: &str, reasons: [&str; 2], fault| {
            let url = format!("{}?{parameters}", server.url());
            let [by_mysql, by_mariadb] = reasons;
            let reason = if SUPPORTS_MYSQL_SSL_MODE { by_mysql } else { by_mariadb };
            refused::<MysqlConnection>(&url, reason, fault);
        };
        let reasons = ["certificate verify failed", "TLS/SSL error: self-signed certificate"];
        refused(&stranger, &verified, reasons, misconfigured);
        refused(&without, &verified, ["SSL is required"; 2], misconfigured);
        let reasons = ["CA certificate is required", "without an `ssl_ca`"];
        let fault = misconfigured.filter(|_| SUPPORTS_MYSQL_SSL_MODE);
        refused(&with, &format!("ssl_mode={mode}"), reasons, fault);
        let reasons = ["SSL connection error", "TLS/SSL error: No such file or directory"];
        refused(&with, &format!("ssl_mode={mode}&ssl_ca=/nowhere.pem"), reasons, misconfigured);
    }
    // The same address, by a name that is not in the certificate.
    let elsewhere = with.url().replace("127.0.0.1", "127.1");
    let url = |mode: &str| format!("{elsewhere}?ssl_mode={mode}&ssl_ca={ca}");
    if SUPPORTS_MYSQL_SSL_MODE {
        login::<MysqlConnection>(&url("verify_ca")).unwrap_or_else(|(error, _)| panic!("{error}"));
    }
    refused::<MysqlConnection>(&url("verify_identity"), "SSL", misconfigured);
}

/// A server that is not trusted, by its lack of TLS, its certificate or its name, gets neither the password nor
/// what is computed from it.
#[test]
fn mysql_server_that_is_not_trusted_gets_nothing_of_a_login() {
    let account = Account::ourselves();
    let [folder, other] = [(); 2].map(|()| account.folder());
    let trusted = Certificate::make(&account, folder.path());
    let stranger = Certificate::make(&account, other.path());
    let ca = trusted.certificate.display();
    let received = |impostor: Impostor, host: &str, parameters: &str| {
        let url = format!("{}?{parameters}", url_at(host, impostor.port()));
        let (error, _) = login::<MysqlConnection>(&url).map(|_| ()).expect_err(&url);
        eprintln!("{parameters} at {host}: {error}");
        impostor.received()
    };
    let contains = |received: &[u8], text: &str| {
        received.windows(text.len()).any(|window| window == text.as_bytes())
    };
    let verified = format!("ssl_mode=verify_identity&ssl_ca={ca}");

    // The servers record a login if there is one.
    let plain = received(Impostor::without_tls(), "127.0.0.1", "ssl_mode=preferred");
    assert!(contains(&plain, APP), "the user arrives");
    if !SUPPORTS_MYSQL_SSL_MODE {
        assert!(contains(&plain, APP_PASSWORD), "MariaDB's library sends a password in clear text");
    }
    for mode in ["required", "verify_ca", "verify_identity"] {
        let parameters = format!("ssl_mode={mode}&ssl_ca={ca}");
        let plain = received(Impostor::without_tls(), "127.0.0.1", &parameters);
        assert_eq!(plain, b"", "{mode}, without TLS");
    }
    let encrypted = received(Impostor::with_tls(&trusted), "127.0.0.1", &verified);
    assert!(contains(&encrypted, APP), "a server that is trusted gets the login: {encrypted:?}");
    let strange = received(Impostor::with_tls(&stranger), "127.0.0.1", &verified);
    assert_eq!(strange, b"", "another certificate");
    let renamed = received(Impostor::with_tls(&trusted), "127.1", &verified);
    assert_eq!(renamed, b"", "another name");
}

/// A refusal after the login would be too late, as the password has been sent by then.
#[test]
fn encryption_that_the_client_library_cannot_require_is_refused_before_connecting() {
    for mode in ["required", "verify_ca"] {
        let url = format!("mysql://app@127.0.0.1:1/app?ssl_mode={mode}&ssl_ca=/nowhere.pem");
        let manager = PeerManager::<MysqlConnection>::builder().peer("db0", url).build();
        let refused = manager.map(|_| ()).map_err(|error| error.to_string());
        if SUPPORTS_MYSQL_SSL_MODE {
            assert_eq!(refused, Ok(()), "MySQL's library requires encryption");
        } else {
            let error = refused.expect_err(mode);
            assert!(error.contains("give `ssl_mode=verify_identity` and an `ssl_ca`"), "{error}");
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
