//! TLS for both clients of this crate, in every `sslmode`.
//!
//! The SQL client takes a rustls configuration; the replication client builds its
//! own from a file of trusted roots. Both get the same roots and the same rules, so
//! a peer that accepts one session accepts the other. The crypto provider is always
//! named, never the process default, except in the replication client, for which it
//! is installed as the default first.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

use crate::{ConnectOptions, Error, Result, SslMode};

/// The rustls configuration for `options`; `None` when TLS is not to be used.
pub(crate) fn client_config(options: &ConnectOptions) -> Result<Option<ClientConfig>> {
    let mode = options.effective_ssl_mode();
    if mode == SslMode::Disable {
        return Ok(None);
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Tls(error.to_string()))?;
    let config = match mode {
        SslMode::VerifyFull => builder
            .with_root_certificates(roots(options)?)
            .with_no_client_auth(),
        SslMode::VerifyCa => {
            let chain =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots(options)?), provider)
                    .build()
                    .map_err(|error| Error::Tls(error.to_string()))?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyName { chain }))
                .with_no_client_auth()
        }
        SslMode::Disable | SslMode::Prefer | SslMode::Require => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate { provider }))
            .with_no_client_auth(),
    };
    Ok(Some(config))
}

/// The trusted roots as a PEM file for the replication client, which must live until
/// it has connected; `None` where nothing is verified.
pub(crate) fn root_file(options: &ConnectOptions) -> Result<Option<RootFile>> {
    let verified = matches!(
        options.effective_ssl_mode(),
        SslMode::VerifyCa | SslMode::VerifyFull
    );
    if !verified {
        return Ok(None);
    }
    let pem = match &options.ssl_root_cert {
        Some(pem) => {
            parse_roots(pem)?; // so that a bad one gives the same error as elsewhere
            pem.clone()
        }
        None => system_certificates()?.iter().map(to_pem).collect(),
    };
    RootFile::write(&pem).map(Some)
}

/// Makes the provider used here the process default, unless there is one already.
pub(crate) fn install_default_provider() {
    // An error means that another was installed before, which is as good.
    let _ = aws_lc_rs::default_provider().install_default();
}

fn roots(options: &ConnectOptions) -> Result<RootCertStore> {
    let certificates = match &options.ssl_root_cert {
        Some(pem) => return parse_roots(pem),
        None => system_certificates()?,
    };
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates);
    Ok(store)
}

fn parse_roots(pem: &str) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate
            .map_err(|error| Error::Tls(format!("ssl_root_cert is not PEM: {error}")))?;
        store
            .add(certificate)
            .map_err(|error| Error::Tls(format!("ssl_root_cert: {error}")))?;
    }
    if store.is_empty() {
        return Err(Error::Tls(
            "ssl_root_cert holds no certificate; give it as PEM text".to_owned(),
        ));
    }
    Ok(store)
}

fn system_certificates() -> Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(Error::Tls(
            "the system has no trusted root certificates; give ssl_root_cert".to_owned(),
        ));
    }
    Ok(found.certs)
}

fn to_pem(certificate: &CertificateDer<'static>) -> String {
    let base64 = base64::engine::general_purpose::STANDARD.encode(certificate);
    format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n")
}

/// A temporary file of root certificates, removed on drop.
#[derive(Debug)]
pub(crate) struct RootFile {
    path: PathBuf,
}

impl RootFile {
    fn write(pem: &str) -> Result<RootFile> {
        let path = std::env::temp_dir().join(format!("bunny-roots-{}.pem", uuid::Uuid::new_v4()));
        let failed = |error| {
            Error::Tls(format!(
                "cannot write root certificates to {path:?}: {error}"
            ))
        };
        // `create_new` does not follow what somebody else may have put there.
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(failed)?;
        let written = file.write_all(pem.as_bytes());
        let root_file = RootFile { path: path.clone() };
        written.map_err(failed)?;
        Ok(root_file)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RootFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// `prefer` and `require`: encryption against listeners, no identity.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// `verify-ca`: the chain must lead to a root, the name may be any.
#[derive(Debug)]
struct AnyName {
    chain: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.chain.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        // The chain is verified before the name, so a wrong name means a good chain.
        match verified {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;

    fn options(ssl_mode: SslMode, ssl_root_cert: Option<&str>) -> ConnectOptions {
        ConnectOptions {
            host: "db.example".to_owned(),
            port: 5432,
            user: "replicator".to_owned(),
            password: SecretString::from("secret"),
            database: "shop".to_owned(),
            ssl_mode,
            ssl_root_cert: ssl_root_cert.map(str::to_owned),
        }
    }

    #[test]
    fn modes_without_verification_need_no_roots() {
        assert!(
            client_config(&options(SslMode::Disable, None))
                .unwrap()
                .is_none()
        );
        for mode in [SslMode::Prefer, SslMode::Require] {
            assert!(client_config(&options(mode, None)).unwrap().is_some());
            assert!(root_file(&options(mode, None)).unwrap().is_none());
        }
    }

    #[test]
    fn a_bad_root_certificate_is_refused_by_both() {
        for pem in [
            "",
            "hello",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            for mode in [SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull] {
                let options = options(mode, Some(pem));
                assert!(
                    matches!(client_config(&options), Err(Error::Tls(_))),
                    "{pem:?}"
                );
                assert!(matches!(root_file(&options), Err(Error::Tls(_))), "{pem:?}");
            }
        }
    }

    #[test]
    fn a_root_file_vanishes_with_its_owner() {
        let file = RootFile::write("text").unwrap();
        let path = file.path().to_owned();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
        drop(file);
        assert!(!path.exists());
    }
}
