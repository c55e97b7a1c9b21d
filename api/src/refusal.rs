//! What a caller is told when a request cannot be done: one HTTP status and one sentence that says
//! what is wrong and what to do, as `{"error": "..."}`.
//!
//! Internals never leave the process: [`Refusal::internal`] writes them to the log, once, and gives
//! the caller a sentence without them.

use std::fmt::Display;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

/// Result of everything a handler calls.
pub(crate) type Result<T, E = Refusal> = std::result::Result<T, E>;

/// The body of a refusal.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub(crate) struct Refused {
    /// What is wrong and what to do.
    error: String,
}

/// A request refused, with the HTTP status and the sentence for its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// Seconds for the `Retry-After` header, where waiting is the cure.
    pub(crate) retry_after_seconds: Option<u64>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            retry_after_seconds: None,
        }
    }

    /// 400: the input is wrong whatever the state of the service.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 401: who is asking is unknown.
    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    /// 403: who is asking is known and may not.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// 404: the thing named does not exist.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409: the request conflicts with the present state.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 422: a peer or a table fails validation.
    pub(crate) fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, message)
    }

    /// 429: too many attempts; try again after so many seconds.
    pub(crate) fn too_many(message: impl Into<String>, retry_after_seconds: u64) -> Self {
        Self {
            retry_after_seconds: Some(retry_after_seconds),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, message)
        }
    }

    /// 503: something the service needs is away; the same request may work in a moment.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self {
            retry_after_seconds: Some(1),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
        }
    }

    /// 500: our own fault. `doing` and `error` go to the log only.
    pub(crate) fn internal(doing: &str, error: impl Display) -> Self {
        tracing::error!(doing, %error, "a request failed inside the service");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the service failed to do this; its log has the details",
        )
    }
}

impl From<bunny_catalog::Error> for Refusal {
    fn from(error: bunny_catalog::Error) -> Self {
        use bunny_catalog::Error as Catalog;
        match error {
            Catalog::NotFound { .. } => Self::not_found(error.to_string()),
            Catalog::Conflict { .. } | Catalog::InUse { .. } => Self::conflict(error.to_string()),
            Catalog::Invalid { .. } => Self::bad_request(error.to_string()),
            other if other.is_transient() => {
                tracing::warn!(error = %other, "the catalog is away");
                Self::unavailable("the catalog database cannot be reached; try again in a moment")
            }
            other => Self::internal("working with the catalog", other),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (
            self.status,
            Json(Refused {
                error: self.message,
            }),
        )
            .into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
