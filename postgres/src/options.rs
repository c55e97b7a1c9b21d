//! How to reach one Postgres database.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::Error;

/// How much of TLS is asked for; the names and meanings are libpq's `sslmode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// Plain text only.
    Disable,
    /// TLS when the server offers it, without verification; plain text otherwise.
    #[default]
    Prefer,
    /// TLS or nothing. The certificate is not verified, unless a root certificate
    /// is given: then as `verify-ca`, which is what libpq does.
    Require,
    /// TLS, and the certificate must lead to a trusted root.
    VerifyCa,
    /// As `verify-ca`, and the certificate must name the host connected to.
    VerifyFull,
}

impl SslMode {
    /// The `sslmode` word.
    pub fn as_str(self) -> &'static str {
        match self {
            SslMode::Disable => "disable",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        }
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SslMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "disable" => Ok(SslMode::Disable),
            "prefer" => Ok(SslMode::Prefer),
            "require" => Ok(SslMode::Require),
            "verify-ca" => Ok(SslMode::VerifyCa),
            "verify-full" => Ok(SslMode::VerifyFull),
            other => Err(Error::Invalid(format!(
                "unknown ssl mode {other:?}: use disable, prefer, require, verify-ca or verify-full"
            ))),
        }
    }
}

/// Where a database is and who connects to it. `Debug` shows no password.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Host name, IP address, or the directory of a Unix socket (starting with `/`).
    pub host: String,
    /// TCP port, also part of a Unix socket's name.
    pub port: u16,
    /// Role to log in as.
    pub user: String,
    /// Its password; may be empty where the server trusts the role.
    pub password: SecretString,
    /// Database name.
    pub database: String,
    /// How much of TLS is asked for. A Unix socket never has any.
    pub ssl_mode: SslMode,
    /// Trusted root certificates as PEM text. Without them the verifying modes use
    /// the system's trust store.
    pub ssl_root_cert: Option<String>,
}

impl ConnectOptions {
    /// `host:port/database`, for messages.
    pub fn target(&self) -> String {
        format!("{}:{}/{}", self.host, self.port, self.database)
    }

    /// Whether `host` is the directory of a Unix socket.
    pub fn is_unix_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    /// The mode in force: none on a Unix socket, and `require` with a root
    /// certificate verifies it, both as in libpq.
    pub(crate) fn effective_ssl_mode(&self) -> SslMode {
        match self.ssl_mode {
            _ if self.is_unix_socket() => SslMode::Disable,
            SslMode::Require if self.ssl_root_cert.is_some() => SslMode::VerifyCa,
            mode => mode,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ConnectOptions {
        ConnectOptions {
            host: "db.example".to_owned(),
            port: 5432,
            user: "replicator".to_owned(),
            password: SecretString::from("open sesame"),
            database: "shop".to_owned(),
            ssl_mode: SslMode::Require,
            ssl_root_cert: None,
        }
    }

    #[test]
    fn debug_hides_the_password() {
        let shown = format!("{:?}", options());
        assert!(!shown.contains("sesame"), "{shown}");
        assert!(shown.contains("replicator"), "{shown}");
    }

    #[test]
    fn modes_have_one_spelling() {
        for mode in [
            SslMode::Disable,
            SslMode::Prefer,
            SslMode::Require,
            SslMode::VerifyCa,
            SslMode::VerifyFull,
        ] {
            assert_eq!(mode.as_str().parse::<SslMode>().unwrap(), mode);
            let json = serde_json::to_string(&mode).unwrap();
            assert_eq!(json, format!("\"{mode}\""));
            assert_eq!(serde_json::from_str::<SslMode>(&json).unwrap(), mode);
        }
        assert!("Require".parse::<SslMode>().is_err());
    }

    #[test]
    fn a_root_certificate_makes_require_verify() {
        let mut options = options();
        assert_eq!(options.effective_ssl_mode(), SslMode::Require);
        options.ssl_root_cert = Some("pem".to_owned());
        assert_eq!(options.effective_ssl_mode(), SslMode::VerifyCa);
        options.host = "/run/postgresql".to_owned();
        assert_eq!(options.effective_ssl_mode(), SslMode::Disable);
    }
}
