//! The schemas topic as the registry's handlers read it, and the registry's own way to refuse.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bunny_schemas::Error as SchemasError;
use bunny_schemas::kafka::KafkaConfig;
use bunny_schemas::registry::Registry;
use bunny_schemas::topics::Topics;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::OnceCell;

use crate::answer::{Answer, Form};
use crate::refusal::Refusal;

pub(crate) const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";
/// How long Kafka may take to answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);
/// After so long it is looked whether the topic is still the one that was read: a Kafka that was
/// lost and is there anew gives the same ids to other schemas.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Without an answer in that time, what is known is as good as it gets.
const READ_AGAIN_TIME_MAX: Duration = Duration::from_secs(3);

/// The schemas topic, opened when first asked for, so that the API starts while Kafka is away.
pub(crate) struct Schemas {
    kafka: KafkaConfig,
    topics: Topics,
    registry: OnceCell<Registry>,
    read_at: Mutex<Option<Instant>>,
}

/// A version of a subject: version from 1, schema id, schema.
pub(super) type Version = (u32, u32, Arc<str>);

/// A refusal in the registry's own words: its error code and a message. The first three digits of
/// the code are the HTTP status.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RegistryError {
    pub(super) code: u32,
    message: String,
}

impl RegistryError {
    pub(super) fn new(code: u32, message: impl Into<String>) -> Self {
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

/// The body of a refusal.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RegistryError")]
pub(crate) struct Refused {
    /// The HTTP status is in its first three digits.
    error_code: u32,
    /// What is wrong.
    message: String,
    /// The same, for callers that know our other answers.
    error: String,
}

impl IntoResponse for RegistryError {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = Refused {
            error_code: self.code,
            error: self.message.clone(),
            message: self.message,
        };
        (status, RegistryAnswer(body)).into_response()
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

/// JSON under the media type of registries.
pub(crate) struct RegistryAnswer<T>(pub(super) T);

impl<T: Serialize> IntoResponse for RegistryAnswer<T> {
    fn into_response(self) -> Response {
        let content_type = HeaderValue::from_static(CONTENT_TYPE);
        ([(header::CONTENT_TYPE, content_type)], Json(self.0)).into_response()
    }
}

impl<T: Serialize + JsonSchema> Answer for RegistryAnswer<T> {
    fn forms() -> Vec<Form> {
        vec![Form::of::<T>(200, CONTENT_TYPE)]
    }
}

impl Schemas {
    pub(crate) fn new(kafka: KafkaConfig, topics: Topics) -> Self {
        Self {
            kafka,
            topics,
            registry: OnceCell::new(),
            read_at: Mutex::default(),
        }
    }

    pub(crate) async fn registry(&self) -> Result<&Registry, SchemasError> {
        self.registry
            .get_or_try_init(|| Registry::open(self.kafka.clone(), &self.topics))
            .await
    }

    pub(super) async fn schema(&self, id: u32) -> Result<Arc<str>, RegistryError> {
        within(async {
            let registry = self.registry().await?;
            if self.is_due() {
                let refreshed = tokio::time::timeout(READ_AGAIN_TIME_MAX, registry.refresh());
                if !matches!(refreshed.await, Ok(Ok(()))) {
                    tracing::debug!("the schemas topic cannot be looked at now");
                }
            }
            registry.schema(id).await
        })
        .await
    }

    /// Whether it is time to look at the topic again; taken as done.
    fn is_due(&self) -> bool {
        let mut read_at = self.read_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = read_at.is_none_or(|at| at.elapsed() >= READ_AGAIN_AFTER);
        if is_due {
            *read_at = Some(Instant::now());
        }
        is_due
    }

    pub(super) async fn subjects(&self) -> Result<Vec<String>, RegistryError> {
        within(async {
            let registry = self.registry().await?;
            registry.refresh().await?;
            Ok(registry.subjects().await)
        })
        .await
    }

    pub(super) async fn versions(&self, subject: &str) -> Result<Vec<Version>, RegistryError> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
