//! Certificates for a test's TLS servers, and putting them into a running Postgres.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};

use crate::database::Session;

/// How long a server may take to use new settings.
const RELOAD: Duration = Duration::from_secs(20);

/// Someone who signs certificates.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A server's certificate and its key, as PEM.
pub struct ServerCertificate {
    certificate: String,
    key: String,
}

impl Authority {
    pub fn new(name: &str) -> Result<Authority> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Authority { issuer })
    }

    /// What a client trusts, as PEM.
    pub fn root(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for `host`, a name or an address.
    pub fn signs(&self, host: &str) -> Result<ServerCertificate> {
        self.sign(CertificateParams::new([host.to_owned()])?)
    }

    /// One that was good until 2021.
    pub fn signed_long_ago(&self, host: &str) -> Result<ServerCertificate> {
        let mut params = CertificateParams::new([host.to_owned()])?;
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Result<ServerCertificate> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(ServerCertificate {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl ServerCertificate {
    /// Writes both as `server.crt` and `server.key`, for a server that we run ourselves.
    pub fn write(&self, directory: &Path) -> Result<[PathBuf; 2]> {
        let files = ["server.crt", "server.key"].map(|name| directory.join(name));
        std::fs::write(&files[0], &self.certificate)?;
        std::fs::write(&files[1], &self.key)?;
        Ok(files)
    }

    /// Makes the server of `session` (a superuser's) offer TLS with this certificate from
    /// now on; returns when new connections get it. `name` tells it from others.
    pub async fn install(&self, session: &Session, name: &str) -> Result<()> {
        write_file(session, &format!("{name}.crt"), &self.certificate).await?;
        write_file(session, &format!("{name}.key"), &self.key).await?;
        for setting in [
            format!("ssl_cert_file = '{name}.crt'"),
            format!("ssl_key_file = '{name}.key'"),
            "ssl = on".to_owned(),
        ] {
            session.run(&format!("ALTER SYSTEM SET {setting}")).await?;
        }
        reload(session, "ssl_cert_file", &format!("{name}.crt")).await
    }
}

/// Takes TLS away from the server again.
pub async fn uninstall(session: &Session) -> Result<()> {
    for setting in ["ssl", "ssl_cert_file", "ssl_key_file"] {
        session
            .run(&format!("ALTER SYSTEM RESET {setting}"))
            .await?;
    }
    reload(session, "ssl", "off").await
}

/// Writes a file only the server's user can read, into its data directory: Postgres
/// refuses a key that others may see, and the server may run as another user than we.
async fn write_file(session: &Session, file: &str, text: &str) -> Result<()> {
    let lines: Vec<String> = text.lines().map(|line| format!("'{line}'")).collect();
    session
        .run(&format!(
            "COPY (SELECT line FROM unnest(ARRAY[{}]) WITH ORDINALITY AS given (line, n) ORDER BY n)
             TO PROGRAM 'umask 077; cat > {file}'",
            lines.join(", ")
        ))
        .await
        .with_context(|| format!("writing {file}"))
}

/// New connections come from the postmaster, whose reload shows in this session too.
async fn reload(session: &Session, setting: &str, wanted: &str) -> Result<()> {
    session.run("SELECT pg_reload_conf()").await?;
    tokio::time::timeout(RELOAD, async {
        while session.text(&format!("SHOW {setting}")).await? != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    })
    .await
    .with_context(|| format!("{setting} did not become {wanted}"))?
}
