//! Whether the process answers (`/health`) and whether it can do its work (`/ready`).

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Either, Unavailable, Under};
use crate::readiness::Answer;
use crate::state::Api;

/// The process answers.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ServiceHealth")]
pub(crate) struct Alive {
    #[schemars(extend("enum" = ["ok"]))]
    status: &'static str,
    /// Of BunnyDB.
    version: &'static str,
}

/// Whether the service can do its work.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Readiness {
    #[schemars(extend("enum" = ["ready", "not ready"]))]
    status: &'static str,
    catalog: Reachable,
    kafka: Reachable,
    /// What is away, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(inline)]
#[serde(rename_all = "snake_case")]
enum Reachable {
    Ok,
    Unreachable,
}

type Ready = Either<Json<Readiness>, Unavailable<Readiness>>;

pub(crate) async fn health() -> Json<Alive> {
    Json(Alive {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
    })
}

pub(crate) async fn ready(State(api): State<Arc<Api>>) -> Ready {
    let answer = api.readiness.answer(&api.catalog, &api.kafka).await;
    let described = describe(&answer);
    match described.error {
        None => Either::This(Json(described)),
        Some(_) => Either::That(Under(described)),
    }
}

fn describe(answer: &Answer) -> Readiness {
    let word = |reachable: bool| match reachable {
        true => Reachable::Ok,
        false => Reachable::Unreachable,
    };
    let away: Vec<&str> = [
        (answer.catalog, "the catalog database"),
        (answer.kafka, "Kafka"),
    ]
    .into_iter()
    .filter_map(|(reachable, what)| (!reachable).then_some(what))
    .collect();
    let error = (!away.is_empty()).then(|| {
        format!(
            "{} cannot be reached; check that it runs and that its settings are right",
            away.join(" and ")
        )
    });
    Readiness {
        status: if error.is_none() {
            "ready"
        } else {
            "not ready"
        },
        catalog: word(answer.catalog),
        kafka: word(answer.kafka),
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_away_is_named() {
        let body = describe(&Answer {
            catalog: true,
            kafka: false,
        });
        assert_eq!((body.status, body.catalog), ("not ready", Reachable::Ok));
        assert!(body.error.unwrap().starts_with("Kafka cannot"));
        let body = describe(&Answer {
            catalog: true,
            kafka: true,
        });
        assert_eq!((body.status, body.error), ("ready", None));
    }
}
