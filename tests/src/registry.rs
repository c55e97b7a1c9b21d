//! Apicurio Registry, a schema registry that no one here wrote.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_RSA_SHA256, SigningKey as _};
use serde_json::{Value, json};

use crate::certificates::Authority;
use crate::clients::{Program, output_of};
use crate::ports::free_port;
use crate::services::{Services, repository};

/// It starts in seven seconds; a busy machine took longer than two minutes.
const START_MAX: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(200);
/// Where it speaks Confluent's REST API.
pub const PATH: &str = "/apis/ccompat/v7";

/// A registry that forgets all when it ends; killed when it is dropped.
pub struct SchemaRegistry {
    program: Program,
    http: reqwest::Client,
    port: u16,
    guard: Option<Guard>,
}

/// Who is let in, and by which port with TLS.
struct Guard {
    token: String,
    tls_port: u16,
}

impl SchemaRegistry {
    /// Starts one, installed if it is not there. Its log goes to `directory`.
    pub async fn start(
        services: &Arc<Services>,
        directory: &Path,
    ) -> anyhow::Result<SchemaRegistry> {
        SchemaRegistry::start_with(services, directory, None, &[]).await
    }

    /// One that asks for a token, and also speaks TLS with a certificate of `authority`.
    pub async fn start_guarded(
        services: &Arc<Services>,
        directory: &Path,
        authority: &Authority,
    ) -> anyhow::Result<SchemaRegistry> {
        let files = authority.signs("127.0.0.1")?.write(directory)?;
        let [certificate, key] = files.map(|file| file.display().to_string());
        let signer = KeyPair::generate_for(&PKCS_RSA_SHA256)?;
        let guard = Guard {
            token: token(&signer)?,
            tls_port: free_port(),
        };
        let tls_port = guard.tls_port.to_string();
        let pem = signer.public_key_pem();
        let public_key: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let settings = [
            ("QUARKUS_HTTP_SSL_PORT", tls_port.as_str()),
            ("QUARKUS_HTTP_SSL_CERTIFICATE_FILES", &certificate),
            ("QUARKUS_HTTP_SSL_CERTIFICATE_KEY_FILES", &key),
            ("REGISTRY_AUTH_ENABLED", "true"),
            // A token is good by its signature alone: nobody is asked about it.
            ("QUARKUS_OIDC_AUTH_SERVER_URL", ""),
            ("QUARKUS_OIDC_PUBLIC_KEY", &public_key),
        ];
        SchemaRegistry::start_with(services, directory, Some(guard), &settings).await
    }

    async fn start_with(
        services: &Arc<Services>,
        directory: &Path,
        guard: Option<Guard>,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<SchemaRegistry> {
        let jar = tokio::task::spawn_blocking(install).await??;
        let port = free_port();
        // The program itself and not a link to it: by that the servers' reaper knows it.
        let java =
            output_of(Command::new("sh").args(["-c", "readlink -f \"$(command -v java)\""]))?;
        let mut command = Command::new(java.trim());
        command
            .args(["-Xmx256m", "-XX:TieredStopAtLevel=1", "-jar"])
            .arg(jar)
            .env("QUARKUS_HTTP_HOST", "127.0.0.1")
            .env("QUARKUS_HTTP_PORT", port.to_string())
            .envs(settings.iter().copied());
        let program = Program::start(services, command, directory, "registry")?;
        let mut registry = SchemaRegistry {
            program,
            http: reqwest::Client::new(),
            port,
            guard,
        };
        let deadline = Instant::now() + START_MAX;
        while registry.get("/subjects").await.is_err() {
            let runs = registry.program.is_running()?;
            ensure!(
                runs && Instant::now() < deadline,
                "{}",
                registry.program.output()?
            );
            tokio::time::sleep(POLL).await;
        }
        Ok(registry)
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What clients are given.
    pub fn url(&self) -> String {
        format!("http://{}{PATH}", self.address())
    }

    /// The answer to a question, which must be a good one.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.url());
        let mut request = self.http.get(url);
        if let Some(guard) = &self.guard {
            request = request.bearer_auth(&guard.token);
        }
        let response = request.send().await?.error_for_status()?;
        Ok(response.json().await?)
    }

    /// What clients are given who are to use TLS, and the token that lets them in.
    pub fn guarded_url(&self) -> anyhow::Result<(String, &str)> {
        let guard = self.guard.as_ref().context("everybody is let in")?;
        let url = format!("https://127.0.0.1:{}{PATH}", guard.tls_port);
        Ok((url, &guard.token))
    }

    /// Sets the compatibility of a subject.
    pub async fn set_compatibility(&self, subject: &str, level: &str) -> anyhow::Result<()> {
        let url = format!("{}/config/{subject}", self.url());
        let body = json!({ "compatibility": level });
        let response = self.http.put(url).json(&body).send().await?;
        let status = response.status();
        if !status.is_success() {
            bail!("{status}: {}", response.text().await?);
        }
        Ok(())
    }
}

/// A JSON Web Token for a day.
fn token(signer: &KeyPair) -> anyhow::Result<String> {
    let now = chrono::Utc::now().timestamp();
    let claims = json!({"sub": "capture", "iat": now, "exp": now + 24 * 3600});
    let part = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", part(&json!({"alg": "RS256"})), part(&claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(signer.sign(signed.as_bytes())?);
    Ok(format!("{signed}.{signature}"))
}

fn install() -> anyhow::Result<PathBuf> {
    output_of(
        Command::new(repository().join("scripts/install-deps")).args(["--servers", "--registry"]),
    )?;
    let pom = std::fs::read_to_string(repository().join("scripts/registry-pom.xml"))?;
    let version = pom
        .split_once("<apicurio.version>")
        .and_then(|(_, rest)| rest.split_once('<'))
        .context("no version in registry-pom.xml")?
        .0;
    let directory = repository()
        .join(".local")
        .join(format!("apicurio-{version}"));
    let jar = directory.join(format!("apicurio-registry-app-{version}-runner.jar"));
    ensure!(jar.is_file(), "no {}", jar.display());
    Ok(jar)
}
