//! Client of a schema registry outside, which speaks Confluent's REST API (Confluent's own,
//! Apicurio's `/apis/ccompat/v7`, Karapace).
//!
//! Two calls are all it takes: `POST /subjects/{subject}/versions`, which gives the same schema
//! the same id however often it is asked, and `GET /schemas/ids/{id}`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tokio::sync::Mutex;

use super::confirmed::Confirmed;
use crate::{Error, Result};

/// How long one answer may take, connecting included.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Largest answer that is read. A schema is a record in Kafka too and no larger than that.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How much of an answer that is no JSON is shown.
const SHOWN_CHARS_MAX: usize = 200;
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.schemaregistry.v1+json");

/// What is shown to the server with every request.
#[derive(Debug, Clone, Default)]
pub enum Credentials {
    /// Nothing.
    #[default]
    None,
    /// HTTP Basic.
    Password {
        /// User name, without a colon.
        user: String,
        /// Password.
        password: SecretString,
    },
    /// `Authorization: Bearer`.
    Token(SecretString),
}

/// A schema registry outside. One per process: what it has been asked is remembered.
pub struct Server {
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: String,
    authorization: Option<HeaderValue>,
    pub(super) confirmed: Mutex<Confirmed>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// An answer of status 200.
#[derive(Deserialize)]
struct Registration {
    id: u32,
}

#[derive(Deserialize)]
struct Found {
    schema: String,
}

impl Server {
    /// The registry at `url` (`http` or `https`, with the path under which it serves
    /// `/subjects`). `https` trusts the system's certificates. Does not connect.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming what is wrong with the URL or the credentials.
    pub fn new(url: &str, credentials: &Credentials) -> Result<Server> {
        let url = url.trim_end_matches('/');
        let uri: Uri = url
            .parse()
            .map_err(|_| invalid("is no URL, as http://registry:8081"))?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(invalid("must begin with http:// or https://")),
        };
        let authority = uri.authority().map(|found| found.as_str());
        match authority {
            None | Some("") => return Err(invalid("names no host")),
            Some(found) if found.contains('@') => {
                return Err(invalid(
                    "must not hold a password: user, password and token have settings of their own",
                ));
            }
            Some(_) => {}
        }
        if uri.query().is_some() || url.contains('#') {
            return Err(invalid("must end with the path"));
        }
        Ok(Server {
            http: client(is_tls)?,
            url: url.to_owned(),
            authorization: authorization(credentials)?,
            confirmed: Mutex::default(),
        })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Id of `schema` under `subject`, given by the registry when it has none.
    pub(super) async fn register(&self, subject: &str, schema: &str) -> Result<u32> {
        let path = format!("/subjects/{}/versions", in_path(subject));
        let body = json!({ "schema": schema }).to_string();
        let doing = || format!("register a schema of {subject}");
        let (status, answer) = self.ask(Method::POST, &path, body, &doing).await?;
        if status != StatusCode::OK {
            return Err(self.refusal(status, &answer, Some(subject), doing()));
        }
        let registration: Registration = self.read(&answer, &doing)?;
        Ok(registration.id)
    }

    /// The schema that has `id` there, if any.
    pub(super) async fn schema(&self, id: u32) -> Result<Option<String>> {
        let doing = || format!("look up schema {id}");
        let path = format!("/schemas/ids/{id}");
        let (status, answer) = self.ask(Method::GET, &path, String::new(), &doing).await?;
        match status {
            StatusCode::OK => {
                let found: Found = self.read(&answer, &doing)?;
                Ok(Some(found.schema))
            }
            // Only a registry says it like this; a wrong path answers 404 in other words.
            StatusCode::NOT_FOUND if error_code(&answer) == Some(SCHEMA_NOT_FOUND) => Ok(None),
            status => Err(self.refusal(status, &answer, None, doing())),
        }
    }

    /// One request and its answer. An answer that may be another one later is an error already.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: String,
        doing: &impl Fn() -> String,
    ) -> Result<(StatusCode, Bytes)> {
        let away = |why: String| Error::RegistryAway {
            url: self.url.clone(),
            doing: doing(),
            why,
        };
        let answered = tokio::time::timeout(ANSWER_MAX, self.exchange(method, path, body)).await;
        let (status, answer) = match answered {
            Ok(Ok(answered)) => answered,
            Ok(Err(why)) => return Err(away(why)),
            Err(_) => {
                let seconds = ANSWER_MAX.as_secs();
                return Err(away(format!("no answer within {seconds} s")));
            }
        };
        let may_change = status.is_server_error()
            || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
        if may_change {
            return Err(away(said(status, &answer)));
        }
        Ok((status, answer))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> std::result::Result<(StatusCode, Bytes), String> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header(
                ACCEPT,
                "application/vnd.schemaregistry.v1+json, application/json",
            )
            .header(CONTENT_TYPE, MEDIA_TYPE);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request
            .body(Full::from(body))
            .map_err(|error| error.to_string())?;
        let response = self.http.request(request).await.map_err(causes)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let answer = body.collect().await.map_err(|error| error.to_string())?;
        Ok((status, answer.to_bytes()))
    }

    fn read<'a, T: Deserialize<'a>>(
        &self,
        answer: &'a Bytes,
        doing: &impl Fn() -> String,
    ) -> Result<T> {
        serde_json::from_slice(answer).map_err(|_| Error::RegistryRefused {
            url: self.url.clone(),
            doing: doing(),
            why: format!("it answered {}", shown(answer)),
            cure: "is that the URL of a schema registry, its path included (Apicurio's is /apis/ccompat/v7)?".to_owned(),
        })
    }

    fn refusal(
        &self,
        status: StatusCode,
        answer: &Bytes,
        subject: Option<&str>,
        doing: String,
    ) -> Error {
        let cure = match (status, subject) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                "check BUNNY_SCHEMA_REGISTRY_USER and _PASSWORD, or _TOKEN, and what they may do there; then start capture again".to_owned()
            }
            (StatusCode::CONFLICT, Some(subject)) => format!(
                "the schema has changed in a way that the compatibility set there forbids; set it to NONE (PUT {url}/config/{subject}, and where a rule for all subjects counts beside it, as Apicurio's does, PUT {url}/config), then retry the mirror",
                url = self.url
            ),
            (StatusCode::NOT_FOUND, _) => {
                "is that the URL of a schema registry, its path included (Apicurio's is /apis/ccompat/v7)?".to_owned()
            }
            _ => "remove the cause there, then retry the mirror".to_owned(),
        };
        Error::RegistryRefused {
            url: self.url.clone(),
            doing,
            why: said(status, answer),
            cure,
        }
    }
}

/// "Schema not found" in the REST API's own numbers.
const SCHEMA_NOT_FOUND: i64 = 40403;

fn error_code(answer: &[u8]) -> Option<i64> {
    let answer: Json = serde_json::from_slice(answer).ok()?;
    answer.get("error_code")?.as_i64()
}

/// The status and what the server said with it.
fn said(status: StatusCode, answer: &[u8]) -> String {
    let message = serde_json::from_slice(answer)
        .ok()
        .and_then(|answer: Json| answer.get("message")?.as_str().map(str::to_owned));
    format!(
        "{}: {}",
        status.as_u16(),
        message.unwrap_or_else(|| shown(answer))
    )
}

fn shown(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    let start: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    match start.trim() {
        "" => "nothing".to_owned(),
        start => start.to_owned(),
    }
}

/// hyper's own text leaves out what it came from, such as "connection refused".
fn causes(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(found) = cause {
        text = format!("{text}: {found}");
        cause = found.source();
    }
    // By rustls's word for it: the error itself is in I/O errors that do not give it as their source.
    if text.contains("UnknownIssuer") {
        text.push_str(
            " (its signer is not trusted here: name a file with the signer's certificate in SSL_CERT_FILE, then start capture again)",
        );
    }
    text
}

/// Percent-encodes what may not stand in a segment of a path.
fn in_path(subject: &str) -> String {
    let mut path = String::with_capacity(subject.len());
    for byte in subject.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

fn authorization(credentials: &Credentials) -> Result<Option<HeaderValue>> {
    let text = match credentials {
        Credentials::None => return Ok(None),
        Credentials::Password { user, password } => {
            let pair = format!("{user}:{}", password.expose_secret());
            format!("Basic {}", BASE64_STANDARD.encode(pair))
        }
        Credentials::Token(token) => format!("Bearer {}", token.expose_secret()),
    };
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| Error::Invalid("the token has characters that no header can hold".into()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn client(is_tls: bool) -> Result<Client<HttpsConnector<HttpConnector>, Full<Bytes>>> {
    let mut roots = RootCertStore::empty();
    if is_tls {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(invalid(
                "needs certificates to trust, and the system has none; SSL_CERT_FILE can name a file of them",
            ));
        }
    }
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Invalid(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

fn invalid(why: &str) -> Error {
    Error::Invalid(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(url: &str) -> String {
        Server::new(url, &Credentials::None)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn urls_are_checked_and_passwords_not_taken_from_them() {
        for url in [
            "registry:8081",
            "ftp://registry",
            "",
            "http://",
            "http:// x",
        ] {
            problem(url);
        }
        assert!(!problem("http://u:geheim@registry").contains("geheim"));
        problem("http://registry?x=y");
        let server = Server::new("http://registry:8081/apis/ccompat/v7/", &Credentials::None);
        assert_eq!(
            server.unwrap().url(),
            "http://registry:8081/apis/ccompat/v7"
        );
    }

    #[test]
    fn credentials_are_not_shown() {
        let credentials = Credentials::Password {
            user: "u".into(),
            password: "geheim".into(),
        };
        let header = authorization(&credentials).unwrap().unwrap();
        assert_eq!(header.to_str().unwrap(), "Basic dTpnZWhlaW0=");
        let server = Server::new("http://registry", &credentials).unwrap();
        assert!(!format!("{server:?} {header:?} {credentials:?}").contains("geheim"));
        assert!(!format!("{header:?}").contains("dTpn"));
        assert!(authorization(&Credentials::Token("a\nb".into())).is_err());
    }

    #[test]
    fn subjects_stand_in_paths() {
        assert_eq!(in_path("m.s.t_x20a.Envelope"), "m.s.t_x20a.Envelope");
        assert_eq!(in_path("a/b ü"), "a%2Fb%20%C3%BC");
    }

    #[test]
    fn what_a_server_said_is_passed_on_in_short() {
        let said_409 = said(
            StatusCode::CONFLICT,
            br#"{"error_code":409,"message":"no"}"#,
        );
        assert_eq!(said_409, "409: no");
        let page = "x".repeat(5000);
        assert!(said(StatusCode::BAD_GATEWAY, page.as_bytes()).len() < 300);
        assert_eq!(said(StatusCode::BAD_GATEWAY, b""), "502: nothing");
    }
}
