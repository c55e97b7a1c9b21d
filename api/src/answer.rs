//! What handlers answer with. The type that a handler returns says which statuses there are and
//! what serde writes into the body, so the OpenAPI document is made from it: a field cannot be
//! answered and not documented.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;

/// The media type of most bodies.
pub(crate) const JSON: &str = "application/json";

/// One of the answers of a handler.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    /// HTTP status.
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    /// Makes the schema of the body.
    pub(crate) schema: fn(&mut SchemaGenerator) -> Schema,
}

impl Form {
    /// A body as serde writes a `T`.
    pub(crate) fn of<T: JsonSchema>(status: u16, content_type: &'static str) -> Self {
        Self {
            status,
            content_type,
            schema: |generator| generator.subschema_for::<T>(),
        }
    }
}

/// What a handler may return: its forms are known.
pub(crate) trait Answer: IntoResponse {
    /// Those of success; refusals have the same form everywhere.
    fn forms() -> Vec<Form>;
}

impl<T: Serialize + JsonSchema> Answer for Json<T> {
    fn forms() -> Vec<Form> {
        vec![Form::of::<T>(200, JSON)]
    }
}

impl<H> Answer for (H, Html<&'static str>)
where
    Self: IntoResponse,
{
    fn forms() -> Vec<Form> {
        vec![Form::of::<String>(200, "text/html")]
    }
}

impl<T: Answer, E: IntoResponse> Answer for Result<T, E> {
    fn forms() -> Vec<Form> {
        T::forms()
    }
}

/// A JSON body under another status than 200.
pub(crate) struct Under<const STATUS: u16, T>(pub(crate) T);

/// Something was made.
pub(crate) type Created<T> = Under<201, T>;
/// Something was asked for.
pub(crate) type Accepted<T> = Under<202, T>;
/// Something is away.
pub(crate) type Unavailable<T> = Under<503, T>;

impl<const STATUS: u16, T: Serialize> IntoResponse for Under<STATUS, T> {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(STATUS).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

impl<const STATUS: u16, T: Serialize + JsonSchema> Answer for Under<STATUS, T> {
    fn forms() -> Vec<Form> {
        vec![Form::of::<T>(STATUS, JSON)]
    }
}

/// One answer or another.
pub(crate) enum Either<A, B> {
    This(A),
    That(B),
}

impl<A: IntoResponse, B: IntoResponse> IntoResponse for Either<A, B> {
    fn into_response(self) -> Response {
        match self {
            Self::This(answer) => answer.into_response(),
            Self::That(answer) => answer.into_response(),
        }
    }
}

impl<A: Answer, B: Answer> Answer for Either<A, B> {
    fn forms() -> Vec<Form> {
        [A::forms(), B::forms()].concat()
    }
}

/// A handler with the arguments `A`, of which the answers are known.
pub(crate) trait Answering<A> {
    fn forms() -> Vec<Form>;
}

macro_rules! answering {
    ($($argument:ident),*) => {
        impl<Handler, Answered, $($argument),*> Answering<($($argument,)*)> for Handler
        where
            Handler: Fn($($argument),*) -> Answered,
            Answered: Future<Output: Answer>,
        {
            fn forms() -> Vec<Form> {
                <Answered::Output as Answer>::forms()
            }
        }
    };
}

answering!();
answering!(A);
answering!(A, B);
answering!(A, B, C);
answering!(A, B, C, D);

/// A sentence, where there is nothing else to say.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Message {
    pub(crate) message: String,
}
