//! The built-in schema registry, read only: the part of the Confluent Schema Registry API that
//! deserialisers use, with its error format and content type.
//! <https://docs.confluent.io/platform/current/schema-registry/develop/api.html>

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bunny_schemas::Error as SchemasError;
use bunny_schemas::kafka::KafkaConfig;
use bunny_schemas::registry::Registry;
use bunny_schemas::topics::Topics;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::refusal::Refusal;
use crate::request::Path;
use crate::service::Api;

const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";
/// How long Kafka may take to answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);

/// The schemas topic, opened when first asked for, so that the API starts while Kafka is away.
pub(crate) struct Schemas {
    kafka: KafkaConfig,
    topics: Topics,
    registry: OnceCell<Registry>,
}

/// A version of a subject: version from 1, schema id, schema.
type Version = (u32, u32, Arc<str>);

/// A refusal in the registry's own words: its error code and a message. The first three digits of
/// the code are the HTTP status.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RegistryError {
    code: u32,
    message: String,
}

impl RegistryError {
    fn new(code: u32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    fn unknown_subject(subject: &str) -> Self {
        Self::new(40401, format!("Subject '{subject}' not found."))
    }

    fn status(&self) -> StatusCode {
        let digits = if self.code >= 1000 {
            self.code / 100
        } else {
            self.code
        };
        u16::try_from(digits)
            .ok()
            .and_then(|status| StatusCode::from_u16(status).ok())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl IntoResponse for RegistryError {
    fn into_response(self) -> Response {
        // `error` is there for callers that know our other answers.
        let body =
            json!({ "error_code": self.code, "message": self.message, "error": self.message });
        answer(self.status(), &body)
    }
}

/// The guard's refusal in the registry's format.
pub(crate) fn refused(refusal: &Refusal) -> Response {
    let code = u32::from(refusal.status.as_u16());
    let mut response = RegistryError::new(code, refusal.message.clone()).into_response();
    if refusal.status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Basic realm=\"bunny schema registry\""),
        );
    }
    response
}

fn answer(status: StatusCode, body: &Value) -> Response {
    let content_type = HeaderValue::from_static(CONTENT_TYPE);
    (
        status,
        [(header::CONTENT_TYPE, content_type)],
        body.to_string(),
    )
        .into_response()
}

impl Schemas {
    pub(crate) fn new(kafka: KafkaConfig, topics: Topics) -> Self {
        Self {
            kafka,
            topics,
            registry: OnceCell::new(),
        }
    }

    pub(crate) async fn registry(&self) -> Result<&Registry, SchemasError> {
        self.registry
            .get_or_try_init(|| Registry::open(self.kafka.clone(), &self.topics))
            .await
    }

    async fn schema(&self, id: u32) -> Result<Arc<str>, RegistryError> {
        within(async { self.registry().await?.schema(id).await }).await
    }

    async fn subjects(&self) -> Result<Vec<String>, RegistryError> {
        within(async {
            let registry = self.registry().await?;
            registry.refresh().await?;
            Ok(registry.subjects().await)
        })
        .await
    }

    async fn versions(&self, subject: &str) -> Result<Vec<Version>, RegistryError> {
        let versions = within(async {
            let registry = self.registry().await?;
            registry.refresh().await?;
            Ok(registry.versions(subject).await)
        })
        .await?;
        if versions.is_empty() {
            return Err(RegistryError::unknown_subject(subject));
        }
        Ok(versions)
    }
}

async fn within<T>(
    asking: impl Future<Output = Result<T, SchemasError>>,
) -> Result<T, RegistryError> {
    match tokio::time::timeout(ANSWER_TIME_MAX, asking).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(SchemasError::UnknownId(id))) => {
            Err(RegistryError::new(40403, format!("Schema {id} not found")))
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "the schemas topic cannot be read");
            Err(RegistryError::new(
                50301,
                "the schemas cannot be read from Kafka; try again in a moment",
            ))
        }
        Err(_) => Err(RegistryError::new(
            50301,
            "Kafka does not answer; try again in a moment",
        )),
    }
}

/// `GET /registry/schemas/ids/{id}`.
pub(crate) async fn schema_by_id(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
) -> Result<Response, RegistryError> {
    let unknown = || RegistryError::new(40403, format!("Schema {id} not found"));
    let id: u32 = id.parse().map_err(|_| unknown())?;
    let schema = api.schemas.schema(id).await?;
    Ok(answer(StatusCode::OK, &json!({ "schema": &*schema })))
}

/// `GET /registry/subjects`.
pub(crate) async fn subjects(State(api): State<Arc<Api>>) -> Result<Response, RegistryError> {
    let subjects = api.schemas.subjects().await?;
    Ok(answer(StatusCode::OK, &json!(subjects)))
}

/// `GET /registry/subjects/{subject}/versions`.
pub(crate) async fn versions(
    State(api): State<Arc<Api>>,
    Path(subject): Path<String>,
) -> Result<Response, RegistryError> {
    let versions = api.schemas.versions(&subject).await?;
    let numbers: Vec<u32> = versions.iter().map(|(version, _, _)| *version).collect();
    Ok(answer(StatusCode::OK, &json!(numbers)))
}

/// `GET /registry/subjects/{subject}/versions/{version}`, the version a number or `latest`.
pub(crate) async fn version(
    State(api): State<Arc<Api>>,
    Path((subject, wanted)): Path<(String, String)>,
) -> Result<Response, RegistryError> {
    let versions = api.schemas.versions(&subject).await?;
    let (version, id, schema) = pick(&versions, &wanted)?;
    let body = json!({ "subject": subject, "version": version, "id": id, "schema": &**schema });
    Ok(answer(StatusCode::OK, &body))
}

fn pick<'a>(versions: &'a [Version], wanted: &str) -> Result<&'a Version, RegistryError> {
    if wanted == "latest" || wanted == "-1" {
        return versions
            .iter()
            .max_by_key(|(version, _, _)| *version)
            .ok_or_else(|| RegistryError::new(40402, "Version latest not found."));
    }
    let number: u32 = wanted.parse().ok().filter(|number| *number > 0).ok_or_else(|| {
        RegistryError::new(
            42202,
            format!("The specified version '{wanted}' is not a valid version id. Allowed values are between [1, 2^31-1] and the string \"latest\""),
        )
    })?;
    versions
        .iter()
        .find(|(version, _, _)| *version == number)
        .ok_or_else(|| RegistryError::new(40402, format!("Version {number} not found.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_picked_as_confluent_does() {
        let versions: Vec<Version> = vec![(1, 7, "a".into()), (2, 9, "b".into())];
        assert_eq!(pick(&versions, "latest").unwrap().1, 9);
        assert_eq!(pick(&versions, "1").unwrap().1, 7);
        assert_eq!(pick(&versions, "3").unwrap_err().code, 40402);
        for bad in ["0", "x", "-2", ""] {
            assert_eq!(pick(&versions, bad).unwrap_err().code, 42202, "{bad}");
        }
    }

    #[test]
    fn the_status_is_in_the_code() {
        assert_eq!(
            RegistryError::new(40403, "").status(),
            StatusCode::NOT_FOUND
        );
        assert_eq!(
            RegistryError::new(401, "").status(),
            StatusCode::UNAUTHORIZED
        );
        assert_eq!(RegistryError::new(50301, "").status().as_u16(), 503);
    }
}
