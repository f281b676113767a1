//! Certificates for servers with TLS.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::account::Account;
use super::process::{find_program, run};

/// A self-signed certificate and its key.
#[derive(Debug)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificate {
    /// Makes a certificate in `folder` for a server of this account.
    pub fn make(account: &Account, folder: &Path) -> Self {
        let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| folder.join(name));
        // OpenSSL creates the key so that no other user can read it.
        let mut openssl = Command::new(find_program("openssl"));
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]);
        openssl.args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1,DNS:db.example",
        ]);
        run(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate));
        for file in [&certificate, &key] {
            account.take(file);
        }
        Self { certificate, key }
    }
}
